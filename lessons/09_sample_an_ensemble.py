# %% [markdown]
# # 9. Sample an ensemble
#
# **After this lesson you can** sample networks from a mean and a variance, average what they
# predict, and judge whether their confidence can be trusted.
#
# *15 minutes of yours, about 20 seconds of the computer's*
#
# An **ensemble** is a group of networks that predict together. Usually each of them must be trained
# for itself, and that is expensive. The paper's second approach needs no further training.
# Fine-tuning has left a mean θ̄ and a variance σ² for each weight. They describe a bell curve, and
# we *sample* from it:
#
#     θₖ = θ̄ + σ · εₖ         εₖ ~ N(0, 1), a fresh number for every weight and every member
#
#     p(class | image) = (1/K) · Σ pₖ(class | image)         the average of the K predictions
#
# Mind the order. Lesson 8 averaged *weights* and then predicted once. Here each member predicts,
# and the *probabilities* are averaged. That takes K times as long.
#
# One more idea. A network that says "80 % sure" should be right in 80 of 100 such cases. Then it is
# **calibrated**. To measure it, sort the images into bins B by their confidence, and compare:
#
#     ECE = Σ over bins  |B|/N · | mean confidence in B − share of right answers in B |
#
# ECE is the *expected calibration error*. 0 is perfect.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.testing import check_average, check_metric, check_sampler
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import accuracy, ece, nll

picture_style()

# %% [markdown]
# ## One network, fine-tuned, with its mean and variance

# %% tags=["sizes"] small={"IMAGES": 300, "TEST": 90, "TRAINING": 8, "FINE_TUNING": 8, "MEMBERS": 3}
IMAGES, TEST, BATCH = 3000, 1500, 32
TRAINING, FINE_TUNING = 450, 150  # updates
MEMBERS = 20  # networks of the ensemble

# %%
digits = load("glyphs", train=IMAGES, test=TEST)
images, labels = scale(digits.train_images), digits.train_labels
test_images, test_labels = scale(digits.test_images), digits.test_labels
model = minires.lenet(channels=(4, 8), hidden=32, dropout=0)

rng = np.random.default_rng(2)
theta = model.init(rng)
moments = minires.Moments(theta.shape)
for number in bar(range(TRAINING + FINE_TUNING), "training"):
    fine_tuning = number >= TRAINING
    chosen = rng.choice(IMAGES, BATCH, replace=False)
    _, gradient = model.loss_and_gradient(theta, images[chosen], labels[chosen])
    theta -= np.float32(0.15 if fine_tuning else 0.1) * gradient
    if fine_tuning:
        moments.update(theta)

# %% [markdown]
# ## Predict
#
# We sample 20 networks around θ̄. How good is *one* of them, compared with θ̄ itself?
#
# - **a)** as good: it is a typical network of fine-tuning, after all
# - **b)** better: noise makes networks robust
# - **c)** worse
#
# <details><summary>Choose first. Then open.</summary>
#
# c), though sometimes only the NLL shows it. A sampled network leaves the floor of the valley in
# *all* directions at once, the steep ones included (lesson 8: loss(θ̄) + h/2 · σ²). And it is not a
# typical θ. SGD moves many weights *at once*, in common directions (lesson 7). A sample knows
# nothing of these directions: it has one σ per weight and nothing else.
#
# </details>

# %%
members = moments.sample(MEMBERS, np.random.default_rng(5))  # (20, P)
p_members = model.predict(members, test_images)  # (20, N, 10)
p_mean = model.predict(moments.mean, test_images)
p_last = model.predict(theta, test_images)
p_ensemble = p_members.mean(axis=0)

print("                      accuracy, %     NLL      ECE, %")
for name, p in (
    ("last θ", p_last), ("mean model", p_mean), ("one sampled network", p_members[0]),
    (f"ensemble of {MEMBERS}", p_ensemble),
):  # fmt: skip
    values = (metric(p, test_labels) for metric in (accuracy, nll, ece))
    print("{:20}  {:9.2f}   {:8.4f}   {:8.2f}".format(name, *np.multiply([100, 1, 100], [*values])))

# %% [markdown]
# ## The picture: how many, how sure, how much noise
#
# Above left: the NLL of an ensemble of the first K. Above right: a *reliability diagram*. A
# calibrated network lies on the diagonal. Below the diagonal it is too sure of itself, above it too
# modest. (The number of images differs from point to point: most are at the right end.) Below: what
# happens when σ is multiplied by a *scale*.

# %%
scales = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2])
noise_few = min(8, MEMBERS)
dial = {"one network (average)": [], f"ensemble of {noise_few}": []}
for factor in scales:
    own = moments.sample(noise_few, np.random.default_rng(5), scale=factor)
    p = model.predict(own, test_images[:800])
    dial["one network (average)"].append(nll(p, test_labels[:800]).mean())
    dial[f"ensemble of {noise_few}"].append(nll(p.mean(axis=0), test_labels[:800]))

figure, panels = plt.subplot_mosaic("AB;CC", figsize=(11, 9))
left, right, below = panels.values()
counts = np.arange(1, MEMBERS + 1)
growing = p_members.cumsum(axis=0) / counts[:, None, None]
left.plot(counts, nll(p_members, test_labels), "o", color="0.6", label="each member alone")
left.plot(counts, nll(growing, test_labels), color="#0b3954", linestyle="-", label="the first K")
for p, name, dashes in ((p_mean, "mean model", "--"), (p_last, "last θ", ":")):
    left.axhline(nll(p, test_labels), color="#d55e00", linestyle=dashes, label=name)
left.set_xlabel("number of members K")
left.set_xticks([1, *range(5, MEMBERS + 1, 5)])
left.set_ylabel("test NLL, nats per image")
left.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))

edges = np.linspace(0, 1, 6)
for p, name, marker in (
    (p_last, "last θ", "^"),
    (p_mean, "mean", "o"),
    (p_ensemble, "ensemble", "s"),
):
    confidence, right_answer = p.max(axis=1), p.argmax(axis=1) == test_labels
    bin_of = np.clip(np.searchsorted(edges, confidence) - 1, 0, 4)
    bins = [b for b in range(5) if (bin_of == b).sum() >= 10]
    right.plot(
        [confidence[bin_of == b].mean() for b in bins],
        [right_answer[bin_of == b].mean() for b in bins],
        marker=marker, ms=8, label=name,
    )  # fmt: skip
right.plot([0.2, 1], [0.2, 1], color="black", linewidth=1, linestyle="-")
right.set_xlabel("confidence (largest probability)")
right.set_ylabel("share of right answers")
right.legend()

for (name, values), marker in zip(dial.items(), "os", strict=True):
    below.plot(scales, values, marker=marker, ms=8, label=name)
below.set_xlabel("scale of σ (0: mean model, 1: paper)")
below.set_ylabel("test NLL, nats per image")
below.legend()
plt.show()

# %% [markdown]
# Now compare your own picture with these sentences, which hold for most seeds: one
# sampled network is worse than the mean model. Averaging several wins most of that back, the first
# few members most. Against the mean model little is left to win, if anything. The paper says so
# too: the mean is about as good as an ensemble of three, and ten members are only slightly better,
# at ten times the cost.
#
# ## Exercise 1: sample
#
# Sample so that member k is the same whether you ask for three members or for ten. Then "the first
# 3 of the 10" means something. `rng.spawn(k)` gives k independent streams of random numbers.


# %% tags=["exercise", "sample"]
def sample(mean, variance, k, rng, scale=1.0):
    """Sample k networks: mean + scale · σ · ε, with ε ~ N(0, 1) for every weight on its own.

    mean, variance   (P,)
    k                how many
    rng              a numpy.random.Generator; all randomness comes from it
    scale            of the standard deviation σ; 0 gives the mean
    Returns          (k, P); member j does not depend on k
    """
    raise NotImplementedError("sample member by member")


# %% tags=["solution", "sample"]
def sample(mean, variance, k, rng, scale=1.0):
    """Sample k networks: mean + scale · σ · ε."""
    sigma = np.sqrt(variance)
    streams = rng.spawn(k)
    return np.stack([mean + scale * sigma * own.standard_normal(len(mean)) for own in streams])


# %% tags=["check", "sample"]
print(check_sampler(sample))


# %% tags=["wrong", "sample"]
def variance_not_sigma(mean, variance, k, rng, scale=1.0):
    """Multiplies the noise by σ². Public code does this: small noise becomes none."""
    own = rng.spawn(k)
    return np.stack([mean + scale * variance * each.standard_normal(len(mean)) for each in own])


rejected(check_sampler, variance_not_sigma)


# %% tags=["wrong", "sample"]
def one_number_for_all(mean, variance, k, rng, scale=1.0):
    """All weights of a member go up together, or down."""
    return np.stack(
        [mean + scale * np.sqrt(variance) * own.standard_normal() for own in rng.spawn(k)]
    )


rejected(check_sampler, one_number_for_all)

# %% [markdown]
# ## Exercise 2: average
#
# The paper says that predictions are averaged, and leaves open which numbers. We take the
# probabilities, so that the result is one again: rows that sum to one.


# %% tags=["exercise", "average"]
def average(probabilities):
    """One prediction from those of K networks: the mean of their probabilities.

    probabilities   (K, N, C)
    Returns         (N, C)
    """
    raise NotImplementedError("over which axis?")


# %% tags=["solution", "average"]
def average(probabilities):
    """One prediction from those of K networks: the mean of their probabilities."""
    return probabilities.mean(axis=0)


# %% tags=["check", "average"]
print(check_average(average))


# %% tags=["wrong", "average"]
def average_of_logits(probabilities):
    """Averages before the softmax: a sensible rule, but another one."""
    p = np.exp(np.log(probabilities).mean(axis=0))
    return p / p.sum(axis=-1, keepdims=True)


rejected(check_average, average_of_logits)

# %% [markdown]
# ## Exercise 3: the calibration error


# %% tags=["exercise", "ece"]
def calibration_error(probabilities, labels, bins=15):
    """The ECE: Σ |B|/N · |mean confidence in B − share of right answers in B|.

    probabilities   (N, C)
    labels          (N,) whole numbers
    bins            as many bins of equal width, closed on the right: (b/bins, (b + 1)/bins]
    Returns         a number in [0, 1]
    """
    raise NotImplementedError("confidence, bin, gap")


# %% tags=["solution", "ece"]
def calibration_error(probabilities, labels, bins=15):
    """The expected calibration error."""
    confidence = probabilities.max(axis=1)
    right_answer = probabilities.argmax(axis=1) == labels
    bin_of = np.ceil(confidence * bins).astype(int)  # 1 … bins
    total = 0.0
    for b in range(1, bins + 1):
        inside = bin_of == b
        if inside.any():
            gap = confidence[inside].mean() - right_answer[inside].mean()
            total += inside.mean() * abs(gap)
    return total


# %% tags=["check", "ece"]
print(check_metric(calibration_error, "ece"))


# %% tags=["wrong", "ece"]
def one_bin(probabilities, labels, bins=15):
    """Too sure here and too modest there: the two cancel."""
    return abs(probabilities.max(axis=1).mean() - (probabilities.argmax(axis=1) == labels).mean())


rejected(check_metric, one_bin, "ece")


# %% tags=["wrong", "ece"]
def bins_weigh_alike(probabilities, labels, bins=15):
    """A bin with one image counts as much as one with a thousand."""
    confidence, right_answer = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.ceil(confidence * bins)
    gaps = [
        abs(confidence[bin_of == b].mean() - right_answer[bin_of == b].mean())
        for b in np.unique(bin_of)
    ]
    return np.mean(gaps)


rejected(check_metric, bins_weigh_alike, "ece")

# %% [markdown]
# ## What would break this?
#
# **A σ that is too large.** Turn the dial of the lower picture further up. A sampled network then
# errs more and more often. Averaging helps, but in the end not enough:

# %%
for factor in (1, 3, 10):
    far = moments.sample(4, np.random.default_rng(6), scale=factor)
    p = model.predict(far, test_images[:400])
    alone, together = accuracy(p, test_labels[:400]).mean(), accuracy(p.mean(0), test_labels[:400])
    print(f"scale {factor:2}: one sampled network {alone:.0%} right, four together {together:.0%}")

# %% [markdown]
# **An ECE from few images.** ECE is never negative, so chance makes it larger, never smaller. Even
# a perfectly calibrated network would show some ECE. With few images, or many bins, do not compare
# small differences. The NLL is the better judge there: it sees accuracy and calibration at once.
#
# **Choosing on the test images.** If you turn the dial until the test NLL is best, you have chosen
# with the test images, and must not report that NLL. You need a third set of images for choosing.
#
# ## Three questions
#
# **1.** All weights have σ = 0.01, and there are 10,000 of them. How far from θ̄ does a sampled
# network lie?
#
# <details><summary>Answer</summary>
#
# Squares add: √(10,000 · 0.01²) = 1. And hardly any sample lies much nearer: in high dimensions all
# of them lie on a *shell* around θ̄. The middle, where θ̄ is, is empty.
#
# </details>
#
# **2.** Why is the NLL of an average of probabilities never worse than the average of the NLLs?
#
# <details><summary>Answer</summary>
#
# −log is a convex function: the −log of an average is at most the average of the −log (Jensen).
# So an ensemble beats its *average* member, always. Whether it beats θ̄ is another question.
#
# </details>
#
# **3.** A network predicts "each class 10 %" for all images, and ten classes are equally frequent.
# What is its ECE?
#
# <details><summary>Answer</summary>
#
# 0: it is right in 10 % of all cases, as it says. Calibrated, and useless. So never report ECE
# without accuracy or NLL.
#
# </details>
#
# ## Where this is
#
# In the paper: section 2, the second approach, and the ensembles of 3 and 10 in section 3. In the
# code: `Moments.sample`, `minires/resampling/averages.py`, `minires/training/metrics.py`. ECE is of
# Guo et al. (2017). Next: lesson 10, where averaging weights is *not* enough.
