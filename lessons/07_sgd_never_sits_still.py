# %% [markdown]
# # 7. SGD never sits still
#
# **After this lesson you can** collect the weights of some hundred updates, and say what their bell
# curves leave out.
#
# *12 minutes of yours, about 15 seconds of the computer's*
#
# You know how to keep a running mean and variance (lesson 6). Now we point them at a network that
# learns. The paper's recipe has three parts: train; then fine-tune for about one more epoch (500
# updates of 128 images); and after *every* update take θ in.
#
#     θ⁰ → step → θ¹ → step → θ² → … → θ⁵⁰⁰
#                  ↓            ↓             ↓
#                moments      moments       moments
#
# θ⁰, the trained network, is not taken in. In the end each weight has a mean and a variance, as if
# its 500 values were samples from a **bell curve** (a normal, or Gaussian, distribution). The paper
# writes N(θ̄, σ²). Is that so? We look.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.testing import check_collector
from minires.testing.classroom import bar, picture_style, rejected

picture_style()

# %% [markdown]
# ## Train, then collect
#
# The rate stays at ℓ₂ = 0.1 all the time. So SGD cannot come to rest: each batch has another
# gradient, and each gradient is followed by a full step.

# %% tags=["sizes"] small={"IMAGES": 300, "TRAINING": 8, "UPDATES": 60}
IMAGES, BATCH = 3000, 32
TRAINING, UPDATES, RATE = 250, 500, np.float32(0.1)

# %%
digits = load("glyphs", train=IMAGES, test=100)
images, labels = scale(digits.train_images), digits.train_labels
model = minires.lenet(channels=(4, 8), hidden=32, dropout=0)
rng = np.random.default_rng(7)


def step(theta):
    """One update, in place."""
    chosen = rng.choice(IMAGES, BATCH, replace=False)
    _, gradient = model.loss_and_gradient(theta, images[chosen], labels[chosen])
    theta -= RATE * gradient


theta = model.init(rng)
for _ in bar(range(TRAINING), "training"):
    step(theta)

moments = minires.Moments(theta.shape)
lives = np.empty((UPDATES, model.size), np.float32)  # all of it: this network is small
for number in bar(range(UPDATES), "fine-tuning"):
    step(theta)
    moments.update(theta)
    lives[number] = theta
print(f"{moments.count} updates of {model.size:,} weights")
print(
    f"all of them: {lives.nbytes / 1e6:.0f} MB. Mean and variance: {2 * theta.nbytes / 1e6:.2f} MB"
)

# %% [markdown]
# ## Predict
#
# Split the life of a weight in two halves of 250 updates, and take the mean of each. If the values
# were *independent* samples from a bell curve, these two means would differ by about 0.09 σ.
# (σ/√250 each, times √2.) For a typical weight of our network they will differ by
#
# - **a)** about 0.09 σ
# - **b)** about 0.3 σ
# - **c)** more than 1 σ
#
# <details><summary>Choose first. Then open.</summary>
#
# c). θ⁷ is not a fresh sample. It is θ⁶ plus one small step. Weights *drift*, slowly, and 500
# updates are too few for most of them to go there and back again.
#
# </details>

# %%
moving = moments.std > 0
half = UPDATES // 2
drift = np.abs(lives[:half].mean(axis=0) - lives[half:].mean(axis=0))[moving] / moments.std[moving]
print(f"difference of the halves: {np.median(drift):.2f} σ for the median weight")
print(f"weights that did not move at all: {np.sum(~moving)} of {model.size:,}")

# %% [markdown]
# ## The picture: six lives, with their bell curves
#
# Each row is one weight. On the left its life; the band is mean ± σ. On the right the histogram of
# its 500 values, and the bell curve that the paper puts in its place. We did not choose the weights
# for their beauty: we sorted all weights that move by how much they drift, and took six at equal
# distances, from the calm end (above) to the other. (Bars that leave the right panel are cut.)

# %%
order = np.flatnonzero(moving)[np.argsort(drift)]
six = order[(np.linspace(0.05, 0.95, 6) * (len(order) - 1)).astype(int)]

figure, panels = plt.subplots(
    6, 2, figsize=(11, 10), sharey="row", sharex="col", gridspec_kw={"width_ratios": [3, 1]}
)
updates = np.arange(1, UPDATES + 1)
for (life, bell), weight in zip(panels, six, strict=True):
    mean, sigma = moments.mean[weight], moments.std[weight]
    values = (lives[:, weight] - mean) / sigma
    life.fill_between([1, UPDATES], -1, 1, color="0.88")
    life.plot(updates, values, color="#0b3954", linewidth=1.2, linestyle="-")
    name = next(
        e.name for e in model.layout.weights if e.start <= weight < e.start + e.size
    )  # which layer it belongs to
    life.set_title(f"{name}: mean {mean:+.3g}, σ {sigma:.2g}", fontsize=12, loc="left")
    bell.hist(
        values,
        bins=np.linspace(-3.5, 3.5, 36),
        density=True,
        orientation="horizontal",
        color="#7fa8d1",
    )
    height = np.linspace(-3.5, 3.5, 100)
    bell.plot(np.exp(-(height**2) / 2) / np.sqrt(2 * np.pi), height, color="black", linestyle="-")
    life.set_ylim(-3.5, 3.5)
    life.set_yticks([-2, 0, 2])
    life.grid(False)
    bell.grid(False)
    bell.set_xlim(0, 1.5)
figure.supylabel("distance of the weight from its mean, in σ")
panels[-1, 0].set_xlabel("update of fine-tuning")
panels[-1, 1].set_xlabel("share per σ")
plt.show()

# %% [markdown]
# Hardly any of them is a bell. Some weights *jump* and then rest: their unit is
# silent for most images (its ReLU gives zero), so most batches have no gradient for them. Others
# *wander*, and σ tells how far they have gone, not how much they tremble. Look for one that only
# trembles around its mean, as a bell curve would have it: there is hardly any.
#
# Does that spoil the method? The mean needs no bell: lesson 8's argument uses only the mean and the
# spread. The *samples* of lesson 9 do use the bell, and each weight on its own. But weights move
# *side by side*. Here is how much: how many directions hold 90 % of all steps? To compare, we put
# the steps of each weight in an order of its own. So it makes the same steps as before, but no two
# weights make them together.

# %%
steps = np.diff(lives, axis=0)
alone = np.random.default_rng(0).permuted(steps, axis=0)
for name, values in ("as they were", steps), ("each weight for itself", alone):
    motion = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    share = np.cumsum(motion) / motion.sum()
    count = np.searchsorted(share, 0.9) + 1
    print(f"{name}: {count} of {len(steps)} directions, the first one holds {share[0]:.0%}")

# %% [markdown]
# (Of the places θ, not the steps, some seven directions hold 90 %. That shows nothing: whatever
# drifts slowly has few directions, even if each weight drifts for itself.)
#
# ## Exercise: the collector
#
# Two settings beyond the paper. A **burn-in** of 2 leaves out the first two updates, when θ still
# goes downhill. A **stride** of 3 counts only every third update after them: neighbours are nearly
# the same anyhow. The last update of each three counts: 5, 8, 11, …


# %% tags=["exercise", "collect"]
def collect(theta, step, updates, burn_in=0, stride=1):
    """Fine-tune, and collect the mean and the variance of the weights on the way.

    theta      (P,), the trained weights θ⁰; changed in place by step
    step       step(theta) makes one update, in place
    updates    how many steps to make
    burn_in    how many updates are made before any counts
    stride     after them every stride-th counts: burn_in + stride, burn_in + 2·stride, …
    Returns    mean (P,) and variance (P,) (divided by n) of the θ that count; θ⁰ does not
    """
    raise NotImplementedError("step, then take θ in")


# %% tags=["solution", "collect"]
def collect(theta, step, updates, burn_in=0, stride=1):
    """Fine-tune, and collect the mean and the variance of the weights on the way."""
    count, mean, squares = 0, 0 * theta, 0 * theta
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and (number - burn_in) % stride == 0:
            count += 1
            d = theta - mean
            mean = mean + d / count
            squares = squares + d**2 * (count - 1) / count
    return mean, squares / count


# %% tags=["check", "collect"]
print(check_collector(collect))


# %% tags=["wrong", "collect"]
def takes_theta_before_the_step(theta, step, updates, burn_in=0, stride=1):
    """Counts θ⁰, and leaves the last θ out."""
    seen = []
    for number in range(1, updates + 1):
        if number > burn_in and (number - burn_in) % stride == 0:
            seen.append(theta.copy())
        step(theta)
    return np.mean(seen, axis=0), np.var(seen, axis=0)


rejected(check_collector, takes_theta_before_the_step)


# %% tags=["wrong", "collect"]
def keeps_no_copies(theta, step, updates, burn_in=0, stride=1):
    """Every element of the list is the same array, which SGD changes in place."""
    seen = []
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and (number - burn_in) % stride == 0:
            seen.append(theta)
    return np.mean(seen, axis=0), np.var(seen, axis=0)


rejected(check_collector, keeps_no_copies)


# %% tags=["wrong", "collect"]
def stride_from_the_start(theta, step, updates, burn_in=0, stride=1):
    """Counts the strides from update 1, not from the end of the burn-in."""
    seen = []
    for number in range(1, updates + 1):
        step(theta)
        if number > burn_in and number % stride == 0:
            seen.append(theta.copy())
    return np.mean(seen, axis=0), np.var(seen, axis=0)


rejected(check_collector, stride_from_the_start)

# %% [markdown]
# ## What would break this?
#
# **Too few updates.** σ grows with the time that we watch, because weights drift. So there is no
# such thing as *the* σ of a weight:

# %%
for count in (UPDATES // 20, UPDATES // 5, UPDATES):
    sigma = lives[:count, moving].std(axis=0)
    print(f"after {count:3} updates: σ = {np.median(sigma):.5f} for the median weight")

# %% [markdown]
# **A rate that falls to zero.** Then SGD does come to rest, all late θ's are the same, and their
# variance tells nothing. The method wants a rate that stays.
#
# **Momentum or Adam.** They change how θ moves, so they change σ too. The formula takes any θ. What
# it then means is another question, and the paper tries Adam only once.
#
# ## Three questions
#
# **1.** Why is a stride of 5 nearly as good as a stride of 1?
#
# <details><summary>Answer</summary>
#
# Neighbours are almost equal: five of them in a row tell hardly more than one. The mean of every
# fifth is about the mean of all. It saves time where it is expensive to take θ in.
#
# </details>
#
# **2.** 500 batches of 128 images are 64,000. MNIST has 60,000 training images. What happens?
#
# <details><summary>Answer</summary>
#
# It is a little more than one epoch: 468 whole batches, then the images are shuffled again. The
# paper says "about one epoch" and means this.
#
# </details>
#
# **3.** Some weights have σ = 0, exactly. Which?
#
# <details><summary>Answer</summary>
#
# Weights whose gradient is zero at every update. Here nearly all of them are in the first dense
# layer: the number that such a weight multiplies is zero for every image (ReLU has cut it), or its
# unit is silent whenever that number is not. Sampling leaves these weights as they are. (With
# weight decay even they would move.)
#
# </details>
#
# ## Where this is
#
# In the paper: section 2, which "assigns" each weight a Gaussian distribution, and does not test
# it. In the code: `Moments(shape, burn_in=…, stride=…)` in `minires/resampling/moments.py`. `SWAG`
# in `minires/resampling/baselines.py` also keeps directions in which weights move together (Maddox
# et al. 2019). Next: lesson 8 asks why the mean of all these θ's is a better network than the last.
