# %% [markdown]
# # 1. See it first
#
# **After this lesson you can** read the table and the error bars of `minires run`.
#
# *12 minutes of yours, about 10 seconds of the computer's*
#
# A neural network is a function with many adjustable numbers, its *weights* θ. Training changes
# them step by step: look at a few images, see which way the error (the *loss*) falls, go a small
# step ℓ that way.
#
#     θ ← θ − ℓ · gradient              ℓ is the learning rate                      (eq. 1)
#
# In the end one keeps the last θ and forgets all those before. The paper of this project does
# something else, and it is this easy:
#
# 1. Take a trained network. Train it a little more (*fine-tuning*), at a learning rate ℓ₂.
# 2. After every step add θ to a running mean θ̄.
# 3. Predict with θ̄, the **mean model**, instead of the last θ.
#
# The mean model is *one* network of the same size. It costs nothing more when it predicts. Is it
# better? In this lesson you see the answer first. Lessons 2 to 6 build everything it needs, lessons
# 7 to 12 look for the reason.
#
# We measure two things on images that the networks have never seen:
#
#     accuracy    how many of 100 digits are right                             larger is better
#     NLL         mean of −log(probability given to the right digit)           smaller is better
#
# The accuracy counts each image as right or wrong. The NLL (negative log-likelihood) also sees *how
# sure* a network was, so it notices smaller changes.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.testing import check_paired_difference
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import accuracy, nll

picture_style()

# %% [markdown]
# ## The data and the network
#
# The digits are drawn by this program, from the fonts that come with Matplotlib, then bent and made
# noisy. So there is nothing to download. Some fonts are in the test images only. To be quick, we
# make each image half as wide and half as high: 14 × 14 pixels.

# %% tags=["sizes"] small={"IMAGES": 400, "TEST": 100, "TRAINING": 6, "FINE_TUNING": 4}
IMAGES, TEST, BATCH = 6000, 1000, 32
TRAINING, FINE_TUNING = 200, 60  # updates
SEEDS, RATES = 4, np.array([0.05, 0.1, 0.15, 0.2, 0.25])  # RATES: ℓ₂, those of the paper


# %%
def halved(pictures):
    """Each pixel is the mean of 2 × 2."""
    return scale(pictures).reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4))


digits = load("glyphs", train=IMAGES, test=TEST)
images, test_images = halved(digits.train_images), halved(digits.test_images)

figure, panels = plt.subplots(2, 10, figsize=(11, 2.6))
for axes, image, label in zip(panels.flat, images, digits.train_labels, strict=False):
    axes.imshow(image[..., 0], cmap="gray")
    axes.set_title(str(label), fontsize=12)
    axes.axis("off")
plt.show()

model = minires.lenet(channels=(6, 12), hidden=64, dropout=0, input_shape=(14, 14, 1))
print(f"a small LeNet: {model.size:,} weights")

# %% [markdown]
# ## Predict
#
# After fine-tuning, the last θ of each network has about 90 % of the test digits right. Now we take
# the 60 lists of weights that it had on its way, and average them, weight by weight. The network
# made of these averages will be
#
# - **a)** nonsense: a network is not linear, so averages of its weights mean nothing
# - **b)** about as good as the last θ
# - **c)** better than the last θ
#
# <details><summary>Choose first. Then open.</summary>
#
# At small rates b), at large rates c). The worry in a) is right for two networks that were trained
# *apart*: their average is nonsense. Here all 60 lie close together, in one valley of the loss.
# Lesson 8 draws that valley.
#
# </details>
#
# ## Run
#
# We do it for four *seeds*: four networks with other random starts and another order of the images.
# Each is trained once and then fine-tuned at five rates ℓ₂. That makes 20 networks, and `minires`
# trains them side by side: θ has 20 rows.


# %%
def update(theta, rates, rngs, copies=1):
    """One step of gradient descent for all networks, in place (eq. 1).

    Networks with the same seed see the same images: `copies` of them stand side by side.
    """
    chosen = np.stack([rng.choice(IMAGES, BATCH, replace=False) for rng in rngs])
    chosen = chosen.repeat(copies, axis=0)
    _, gradient = model.loss_and_gradient(theta, images[chosen], digits.train_labels[chosen])
    theta -= rates * gradient


rngs = [np.random.default_rng(seed) for seed in range(SEEDS)]
theta = model.init(rngs)  # (4, P)
for _ in bar(range(TRAINING), "training"):
    update(theta, np.float32(0.2), rngs)
trained = theta.copy()

theta = trained.repeat(len(RATES), axis=0)  # (20, P)
rates = np.tile(RATES, SEEDS)[:, None].astype(np.float32)
moments = minires.Moments(theta.shape)
for _ in bar(range(FINE_TUNING), "fine-tuning"):
    update(theta, rates, rngs, copies=len(RATES))
    moments.update(theta)  # the running mean: this line is the method

score = {}
for name, weights in (("trained", trained), ("fine-tuned", theta), ("mean", moments.mean)):
    probabilities = model.predict(weights, test_images)
    shape = (SEEDS, -1)  # a row per seed, a column per ℓ₂
    score[name] = {
        "accuracy": 100 * accuracy(probabilities, digits.test_labels).reshape(shape),
        "nll": nll(probabilities, digits.test_labels).reshape(shape),
    }

# %% [markdown]
# ## The picture: which rate does each like?
#
# Each point is the mean over four seeds. The bar is the *standard deviation* over the seeds: how
# far single runs scatter.

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 4.6))
for axes, metric, label in zip(
    panels,
    ("accuracy", "nll"),
    ("accuracy, % (up is better)", "NLL, nats per image (down is better)"),
    strict=True,
):
    for name, marker, side in (("fine-tuned", "s", -0.002), ("mean", "o", 0.002)):
        values = score[name][metric]
        axes.errorbar(
            RATES + side, values.mean(axis=0), yerr=values.std(axis=0, ddof=1),
            marker=marker, ms=8, capsize=4, label={"mean": "mean model"}.get(name, name),
        )  # fmt: skip
    axes.set_xlabel("learning rate of fine-tuning, ℓ₂")
    axes.set_ylabel(label)
    axes.set_xticks(RATES)
panels[0].legend()
plt.show()

# %% [markdown]
# The last θ gets worse at large rates: its steps are too large to settle. The mean model hardly
# minds. The paper finds the same with MNIST: plain fine-tuning wants a small ℓ₂, the mean likes a
# larger one.
#
# ## The table, and what ± says
#
# `minires run` prints a table of this form. **±** is the standard deviation over the seeds. **Δ**
# is the difference to the fine-tuned network *of the same seed*. Look at the ± of Δ, and at the
# last line:

# %%
column = 1  # ℓ₂ = 0.1
plain, mean = (score[name]["accuracy"][:, column] for name in ("fine-tuned", "mean"))
print("accuracy, %     seed by seed                    mean ± standard deviation")
for name, values, sign in (
    ("fine-tuned", plain, ""), ("mean model", mean, ""), ("  Δ", mean - plain, "+"),
):  # fmt: skip
    seeds = "  ".join(f"{value:{sign}6.2f}" for value in values)
    print(f"{name:14}  {seeds}  {values.mean():{sign}10.2f} ± {values.std(ddof=1):.2f}")
unpaired = np.sqrt(plain.var(ddof=1) + mean.var(ddof=1))
print(f"± of a difference between two networks of different seeds would be about {unpaired:.2f}")

# %% [markdown]
# Seeds differ: one start is luckier than another. But luck helps both networks of a seed. In the
# difference it cancels. That is why we **pair**: same seed, same trained network, same images, and
# only one thing differs.
#
# One more step. ± says how far *one* run scatters. How well do we know the *mean* of n runs? Its
# **standard error** is smaller, since errors partly cancel:
#
#     d = a − b, pair by pair       s² = Σ (d − mean d)² / (n − 1)       standard error = s / √n
#
# As a rule of thumb, a difference of three standard errors or more is hardly chance. With only four
# pairs even that is weak evidence. Lesson 11 does it properly.
#
# ## Exercise: a paired difference and its standard error


# %% tags=["exercise", "paired_difference"]
def paired_difference(a, b):
    """The mean of a − b, and its standard error.

    a, b      (n,): a number per seed for each of two methods, in the same order; n >= 2
    Returns   the mean of the differences, and s / √n with s² = Σ (d − mean d)² / (n − 1)
    """
    raise NotImplementedError("take the differences first")


# %% tags=["solution", "paired_difference"]
def paired_difference(a, b):
    """The mean of a − b, and its standard error."""
    d = np.asarray(a) - np.asarray(b)
    return d.mean(), d.std(ddof=1) / np.sqrt(len(d))


# %% tags=["check", "paired_difference"]
print(check_paired_difference(paired_difference))


# %% tags=["wrong", "paired_difference"]
def not_paired(a, b):
    """As if the seeds had nothing to do with one another."""
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return a.mean() - b.mean(), error


rejected(check_paired_difference, not_paired)


# %% tags=["wrong", "paired_difference"]
def deviation_not_error(a, b):
    """How far one difference scatters, not how well the mean is known."""
    return (a - b).mean(), (a - b).std(ddof=1)


rejected(check_paired_difference, deviation_not_error)


# %% tags=["wrong", "paired_difference"]
def population(a, b):
    """Divides by n where the mean was itself estimated: n − 1."""
    return (a - b).mean(), (a - b).std() / np.sqrt(len(a))


rejected(check_paired_difference, population)

# %% [markdown]
# ## What would break this?
#
# Here is Δ for every rate, with its standard error. Read it before you read on. Where does the mean
# help, where does it not?

# %%
print("  ℓ₂     Δ accuracy, points     Δ NLL")
for column, rate in enumerate(RATES):
    words = []
    for metric, digits_shown in (("accuracy", 2), ("nll", 4)):
        pair = (score[name][metric][:, column] for name in ("mean", "fine-tuned"))
        d = np.subtract(*pair)
        error = d.std(ddof=1) / np.sqrt(SEEDS)
        words.append(f"{d.mean():+.{digits_shown}f} ± {error:.{digits_shown}f}")
    print(f"{rate:5.2f}   {words[0]:>16}      {words[1]}")

# %% [markdown]
# **A small rate.** At ℓ₂ = 0.05 there is next to nothing to gain: the last θ has hardly wandered.
# While a network still learns, the mean even lags behind, for it counts the early, worse θ too.
#
# **A rate that is too large.** Large steps can throw a network far back. The long bars of
# *fine-tuned* in the picture come from such networks. At still larger rates a network may be lost
# for good. Then nothing helps: the average of bad networks is a bad network.
#
# **We chose.** Small images, a small network and large rates were chosen so that you *see* the
# effect. With the paper's LeNet on MNIST the gain is about a tenth of a percent, if ℓ₂ is large:
# 5 to 15 more digits in 10,000. And an exponential average, or a rate that falls to zero, does as
# well. The README of this project shows the numbers, for and against.
#
# ## Three questions
#
# **1.** A table says 98.9 ± 0.2 for one method and 99.0 ± 0.2 for another. Is the second better?
#
# <details><summary>Answer</summary>
#
# One cannot know from this. If the runs are paired, look at Δ and *its* ±: +0.10 ± 0.03 over ten
# seeds would be clear, +0.10 ± 0.30 would not.
#
# </details>
#
# **2.** Four seeds have a standard error of 0.2. How many are needed for 0.05?
#
# <details><summary>Answer</summary>
#
# The error falls with √n. Four times smaller needs 16 times as many: 64.
#
# </details>
#
# **3.** We looked at the test images for five rates and could now report the best. What is wrong
# with that?
#
# <details><summary>Answer</summary>
#
# The best of five is partly the luckiest of five on *these* images, so new images would give a
# little less. The paper does it too: it has no third set of images for choosing.
#
# </details>
#
# ## Where this is
#
# In the paper: Figure 1, and section 3.1. In the code: `minires run` does it with the paper's
# network and shows sampled ensembles too (lesson 9); `minires/study/experiment.py` prints the
# table. Next: how does one get a gradient at all? Lesson 2 starts with single numbers.
