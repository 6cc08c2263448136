# %% [markdown]
# # 11. Is it true?
#
# **After this lesson you can** turn a claim into a test, and say when two methods are equally good.
#
# *15 minutes of yours, about 55 seconds of the computer's*
#
# "The mean model is better." Better than what, measured how, in how many runs, and could it be
# chance? A claim becomes a test in four steps, *before* one looks at numbers:
#
# 1. **A number per run.** Here: the test NLL of the mean, minus that of the last θ.
# 2. **Pairs.** Both come from the same seed: same start, same images in the same order (lesson 1).
# 3. **A null hypothesis,** what would be so if the claim were false: the differences scatter around
#    zero.
# 4. **A p-value:** how often chance alone would give differences at least as large as ours.
#
# For n differences d with mean d̄ and standard deviation s (over n − 1), **Student's t** measures
# how many standard errors d̄ lies from zero:
#
#     t = d̄ / (s / √n)         compared with Student's distribution with n − 1 degrees of freedom
#
# A small p (by custom below 0.05) speaks against the null hypothesis. A large p speaks for
# *nothing*: perhaps there is no difference, perhaps there were too few runs. To show that two
# methods are **equally good** needs another test. It asks: does the difference lie within ± a
# margin?
#
#     TOST: two one-sided tests. d̄ is surely above −margin, and surely below +margin.
#     p is the larger of their two p-values.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import minires
from minires.data import load, scale
from minires.testing import check_equivalence, check_paired_test
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import accuracy, nll

picture_style()

# %% [markdown]
# ## The experiment of the class: Figure 1, small
#
# Eight seeds, each trained once and fine-tuned at five rates. These rates are half of the paper's,
# since our batches are small (16 images, not 128), and small batches make larger jumps. In a class,
# give each group other numbers in `SEEDS`, and put the rows together at the end: that is real
# replication.

# %% tags=["sizes"] small={"IMAGES": 300, "TRAINING": 5, "FINE_TUNING": 5, "SEEDS": [0, 1, 2]}
IMAGES, TEST, BATCH = 3000, 1000, 16
TRAINING, FINE_TUNING = 300, 100  # updates
SEEDS = [0, 1, 2, 3, 4, 5, 6, 7]  # your group's

# %%
RATES = np.array([0.025, 0.05, 0.075, 0.1, 0.125], np.float32)  # ℓ₂
digits = load("glyphs", train=IMAGES, test=TEST)
images, labels = scale(digits.train_images), digits.train_labels
test_images, test_labels = scale(digits.test_images), digits.test_labels
model = minires.lenet(channels=(4, 8), hidden=32, dropout=0)


def run(seed):
    """Train one network and fine-tune it at every rate.

    Returns   {method: (NLL, accuracy in %)}, each of shape (2, rates)
    """
    rng = np.random.default_rng([11, seed])
    theta = model.init(rng)
    for _ in range(TRAINING):
        chosen = rng.choice(IMAGES, BATCH, replace=False)
        theta -= np.float32(0.1) * model.loss_and_gradient(theta, images[chosen], labels[chosen])[1]
    theta = np.tile(theta, (len(RATES), 1))  # five networks side by side
    moments = minires.Moments(theta.shape)
    for _ in range(FINE_TUNING):
        chosen = np.tile(rng.choice(IMAGES, BATCH, replace=False), (len(RATES), 1))
        theta -= RATES[:, None] * model.loss_and_gradient(theta, images[chosen], labels[chosen])[1]
        moments.update(theta)
    found = {}
    for name, weights in (("last θ", theta), ("mean", moments.mean)):
        p = model.predict(weights, test_images)
        found[name] = np.stack([nll(p, test_labels), 100 * accuracy(p, test_labels)])
    return found


runs = [run(seed) for seed in bar(SEEDS, "seeds")]
table = {name: np.stack([each[name] for each in runs]) for name in ("last θ", "mean")}
print("for the class: NLL of the last θ | NLL of the mean, a row per seed, a column per ℓ₂")
for seed, plain, mean in zip(SEEDS, table["last θ"][:, 0], table["mean"][:, 0], strict=True):
    print(f"seed {seed}: ", *(f"{v:.3f}" for v in plain), " | ", *(f"{v:.3f}" for v in mean))

# %% [markdown]
# ## Predict
#
# Suppose that there is *no* difference between two methods: all is chance. You run two seeds, and
# take it as proof when both favour the same method. How often will you "prove" something?
#
# - **a)** in 5 % of all such experiments
# - **b)** in 25 %
# - **c)** in 50 %
#
# <details><summary>Choose first. Then open.</summary>
#
# c). The first seed favours one of the two. The second agrees with it in half of all cases. With
# five seeds that all agree it is 2 · (1/2)⁵ = 6 %, with six 3 %.
#
# </details>

# %%
rng = np.random.default_rng(0)
print("seeds    all agree by chance    p < 0.05 by chance    a real effect of size s is found")
for n in (2, 3, 4, 6, 8):
    chance = rng.standard_normal((20_000, n))
    agree = (chance > 0).all(axis=1) | (chance < 0).all(axis=1)
    small_p = stats.ttest_1samp(chance, 0, axis=1).pvalue < 0.05
    found = stats.ttest_1samp(chance + 1, 0, axis=1).pvalue < 0.05  # an effect as large as s
    print(f"{n:5}    {agree.mean():19.0%}    {small_p.mean():18.0%}    {found.mean():32.0%}")

# %% [markdown]
# Read the last column too. The t-test keeps its promise even for two seeds: only 5 % false alarms.
# But with two seeds it hardly ever *finds* anything. That is why a failed test proves nothing.
#
# ## The picture: paired differences
#
# Left: the small Figure 1, mean ± standard deviation over the seeds. Right: the same runs as paired
# differences, with a 95 % interval of their mean (d̄ ± t · s/√n). Where the interval leaves out
# zero, p is below 0.05.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
for side, (name, marker) in zip((-0.001, 0.001), (("last θ", "s"), ("mean", "o")), strict=True):
    values = table[name][:, 1]
    left.errorbar(
        RATES + side, values.mean(axis=0), yerr=values.std(axis=0, ddof=1),
        marker=marker, ms=8, capsize=4, label=name,
    )  # fmt: skip
left.set_xlabel("learning rate of fine-tuning, ℓ₂")
left.set_ylabel("test accuracy, %")
left.set_xticks(RATES)
left.legend()

d = table["mean"][:, 0] - table["last θ"][:, 0]  # (seeds, rates): below 0 the mean is better
error = d.std(axis=0, ddof=1) / np.sqrt(len(d))
reach = stats.t.ppf(0.975, len(d) - 1) * error
right.plot(RATES, d.T, ".", color="0.55", markersize=9, linestyle="")
right.errorbar(RATES + 0.003, d.mean(axis=0), yerr=reach, fmt="o", color="#0b3954", capsize=6, ms=9)
right.axhline(0, color="black", linewidth=1, linestyle="-")
for rate, p in zip(RATES, stats.ttest_1samp(d, 0).pvalue, strict=True):
    right.text(rate, 1.01, f"p = {p:.3f}", ha="center", transform=right.get_xaxis_transform())
right.set_xlabel("learning rate of fine-tuning, ℓ₂")
right.set_ylabel("test NLL, mean − last θ (below 0: better)")
right.set_xticks(RATES)
right.margins(x=0.1)
plt.show()

# %% [markdown]
# Five rates are five tests. If each errs in 5 % of all cases, one of five errs in up to 25 %. The
# simplest remedy (Bonferroni): with m tests, ask for p < 0.05 / m.

# %%
for rate, p in zip(RATES, stats.ttest_1samp(d, 0).pvalue, strict=True):
    verdict = "shown" if p < 0.05 / len(RATES) else "not shown"
    print(f"ℓ₂ = {rate:.3f}: a difference is {verdict} at 0.05 / {len(RATES)} (p = {p:.4f})")

# %% [markdown]
# ## Exercise 1: the paired t-test


# %% tags=["exercise", "paired_test"]
def paired_test(a, b):
    """The two-sided p-value of the paired t-test.

    a, b      (n,): a number per run for each of two methods, paired; n >= 2
    Returns   p = 2 · P(T > |t|), T with n − 1 degrees of freedom: stats.t.sf(x, degrees)
    """
    raise NotImplementedError("differences, t, p")


# %% tags=["solution", "paired_test"]
def paired_test(a, b):
    """The two-sided p-value of the paired t-test."""
    d = np.asarray(a) - np.asarray(b)
    t = d.mean() / (d.std(ddof=1) / np.sqrt(len(d)))
    return 2 * stats.t.sf(abs(t), len(d) - 1)


# %% tags=["check", "paired_test"]
print(check_paired_test(paired_test))


# %% tags=["wrong", "paired_test"]
def forgets_the_pairs(a, b):
    """The luck of the seeds is in both samples, and hides the difference."""
    return stats.ttest_ind(a, b).pvalue


rejected(check_paired_test, forgets_the_pairs)


# %% tags=["wrong", "paired_test"]
def normal_instead_of_t(a, b):
    """As if s were known exactly. From few runs it is not: p comes out too small."""
    d = a - b
    return 2 * stats.norm.sf(abs(d.mean() / (d.std(ddof=1) / np.sqrt(len(d)))))


rejected(check_paired_test, normal_instead_of_t)

# %% [markdown]
# ## Exercise 2: equally good
#
# The paper says that the mean is as good as an ensemble of three: "no significant difference". This
# test would show it. You must choose the margin *before* you look at the numbers.


# %% tags=["exercise", "equivalence"]
def equivalence(a, b, margin):
    """The p-value of two one-sided t-tests: small when the means differ by less than the margin.

    a, b      (n,): paired runs; n >= 2
    margin    the largest difference that does not matter, above 0
    Returns   the larger of the p-values of "a − b > −margin" and "a − b < margin"
    """
    raise NotImplementedError("one test for each side")


# %% tags=["solution", "equivalence"]
def equivalence(a, b, margin):
    """The p-value of two one-sided t-tests."""
    d = np.asarray(a) - np.asarray(b)
    error, degrees = d.std(ddof=1) / np.sqrt(len(d)), len(d) - 1
    above = stats.t.sf((d.mean() + margin) / error, degrees)
    below = stats.t.cdf((d.mean() - margin) / error, degrees)
    return max(above, below)


# %% tags=["check", "equivalence"]
print(check_equivalence(equivalence))


# %% tags=["wrong", "equivalence"]
def one_side_is_enough(a, b, margin):
    """Takes the smaller p: then a method may be far better or far worse and still pass."""
    d = a - b
    error, degrees = d.std(ddof=1) / np.sqrt(len(d)), len(d) - 1
    above = stats.t.sf((d.mean() + margin) / error, degrees)
    return min(above, stats.t.cdf((d.mean() - margin) / error, degrees))


rejected(check_equivalence, one_side_is_enough)


# %% tags=["wrong", "equivalence"]
def not_different_so_equal(a, b, margin):
    """The paper's argument: a large p of the t-test, turned round."""
    return 1 - stats.ttest_rel(a, b).pvalue


rejected(check_equivalence, not_different_so_equal)

# %% [markdown]
# ## What would break this?
#
# **Choosing after looking.** Take the best rate of each method *on the test images*, and compare
# these. The best of five is partly luck. Here is how much, for networks that are all equal: five
# accuracies of 94 % on 1,000 images each, all by chance:

# %%
five = rng.binomial(1000, 0.94, size=(20_000, 5)) / 10
print(f"one of them: {five[:, 0].mean():.2f} %; the best of five: {five.max(axis=1).mean():.2f} %")

# %% [markdown]
# The paper has no third set of images for choosing. So its best numbers are a little too good. This
# holds for both methods, so their *difference* suffers less, but it suffers.
#
# **A few large differences.** Student's t asks about the *mean* of the differences. One lost run
# makes the mean large, and s larger still, so t gets *smaller*. (In the picture: at ℓ₂ = 0.075
# one point lies far below the others. On another computer it may be another rate, or none.) A
# test that counts only who was better in each pair does not mind. (The **sign test**: heads or
# tails for each seed.)

# %%
for rate, column in zip(RATES, d.T, strict=True):
    better, p_sign = (column < 0).sum(), stats.binomtest((column < 0).sum(), len(column)).pvalue
    p_t = stats.ttest_1samp(column, 0).pvalue
    print(f"ℓ₂ = {rate:.3f}: mean better in {better} of {len(column)} seeds; p = {p_sign:.3f} "
          f"by signs, {p_t:.3f} by t")  # fmt: skip

# %% [markdown]
# But do not now choose the test that says what you hoped for: that is choosing after looking, once
# more. Which test, which rates and how many seeds must be written down *before*. The study of this
# project uses ranks (Wilcoxon), which stand between the two.
#
# **The same test images for all seeds.** All our seeds share 1,000 digits. So what we learn is
# about other *seeds*, on these images. Other images are another source of chance: at 94 % of 1,000
# the standard error of one accuracy is √(0.94 · 0.06 / 1000) = 0.75 points.
#
# ## Three questions
#
# **1.** p = 0.3 for the difference of mean and ensemble, with ten seeds. Are they equally good?
#
# <details><summary>Answer</summary>
#
# One cannot say. Do the test of equivalence. It may fail too: then there are too few runs for
# either claim, and "inconclusive" is the honest word.
#
# </details>
#
# **2.** Is p the probability that the null hypothesis is true?
#
# <details><summary>Answer</summary>
#
# No. It is the probability of such data *if* the null hypothesis is true. How probable the
# hypothesis itself is depends on what one believed before.
#
# </details>
#
# **3.** p = 0.001, and the gain is 0.02 % accuracy. Is that important?
#
# <details><summary>Answer</summary>
#
# It is probably *real*. Whether it is important is no question of statistics: it costs nothing at
# prediction, but hardly anybody would notice two more digits in 10,000.
#
# </details>
#
# ## Where this is
#
# In the paper: section 3.1, Figure 1, with error bars over 10 runs and no tests. In the code:
# `minires/study/statistics.py` (the tests) and `minires/study/claims.py` (the paper's claims, each
# with its null hypothesis, its test and its verdict). Next: lesson 12, with a network of your own.
