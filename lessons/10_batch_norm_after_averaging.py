# %% [markdown]
# # 10. Batch norm after averaging
#
# **After this lesson you can** explain why averaged weights need new batch-norm statistics, and
# measure them again.
#
# *15 minutes of yours, about 15 seconds of the computer's*
#
# Newer networks, such as MobileNet in the paper, have **batch norm** behind each convolution. In
# training it takes the mean m and variance v of each channel *over the batch*, and makes
#
#     y = scale · (x − m) / √(v + ε) + shift
#
# scale and shift are weights, part of θ. m and v are not. At test there may be one single image, so
# one uses *running* statistics instead, which followed those of the batches in training:
#
#     running ← momentum · running + (1 − momentum) · the batch's        momentum, for example 0.9
#
# So a network with batch norm is θ *and* statistics. They belong together: m and v describe what
# the layers in front, with *these* weights, produce. Now replace θ by the mean θ̄ of 100 updates.
# No network ever ran with θ̄. So which statistics should it take? There are three answers:
#
#     last         those of the last θ, as they are
#     averaged     averaged over the updates, as the weights are
#     recomputed   measured again: θ̄ looks at some training images, and nothing is trained
#
# The paper does not say which it took.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.networks.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    Sequential,
)
from minires.testing import check_depthwise, check_reestimation, check_running_statistics
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import accuracy, nll

picture_style()

# %% [markdown]
# ## A MobileNet for laptops
#
# A 3 × 3 convolution from C to O channels multiplies 9 · C · O times per pixel. MobileNet splits
# it: a **depthwise** convolution filters each channel with a kernel of its own (9 · C), and a 1 × 1
# convolution mixes the channels (C · O).

# %% tags=["sizes"] small={"IMAGES": 300, "TEST": 100, "TRAINING": 6, "FINE_TUNING": 6}
IMAGES, TEST, BATCH = 3000, 1000, 32
TRAINING, FINE_TUNING = 200, 100  # updates
SEEDS, RATES = 3, np.array([0.1, 0.5, 1.0], np.float32)

# %%
digits = load("glyphs", train=IMAGES, test=TEST)
images, labels = scale(digits.train_images), digits.train_labels
test_images, test_labels = scale(digits.test_images), digits.test_labels


def separable(channels, stride):
    """A depthwise and a 1 × 1 convolution, each with batch norm and ReLU behind it."""
    yield DepthwiseConv2D(3, stride, bias=False, initializer="he")
    yield BatchNorm(activation="relu")
    yield Conv2D(channels, 1, bias=False, initializer="he")
    yield BatchNorm(activation="relu")


model = minires.Model(
    (28, 28, 1),
    Sequential(
        Conv2D(8, 3, 2, bias=False, initializer="he"),
        BatchNorm(activation="relu"),
        *separable(16, 2),
        *separable(32, 2),
        Flatten(),
        Dense(10),
    ),
)
print(f"{model.size:,} weights and {model.stats_size} statistics (a mean and a variance a channel)")

# %% [markdown]
# ## Predict
#
# We take the mean θ̄ after fine-tuning at a very large rate, ℓ₂ = 1, and leave the statistics of
# the last θ as they are. Compared with the last θ itself, this mean model will be
#
# - **a)** better, as in the lessons before
# - **b)** about as good: what averaging gains, the wrong statistics lose
# - **c)** worse
#
# <details><summary>Choose first. Then open.</summary>
#
# c), at this rate. The statistics of the last θ follow its jumps: with momentum 0.9 they remember
# the last ten batches or so. θ̄ stands elsewhere. Each channel is then shifted and scaled a little
# wrongly, and each layer hands its error on to the next. At the middle rate it is rather b), at the
# small one nothing happens.
#
# </details>
#
# ## Run: three seeds, three rates, three policies

# %%


def update(theta, stats, rates, rngs):
    """One step for all networks, in place; the statistics follow by themselves."""
    chosen = np.stack([rng.choice(IMAGES, BATCH, replace=False) for rng in rngs])
    _, gradient = model.loss_and_gradient(theta, images[chosen], labels[chosen], stats)
    theta -= rates * gradient


rngs = [np.random.default_rng([10, seed]) for seed in range(SEEDS)]
theta, stats = model.init(rngs), model.init_stats(SEEDS)
for _ in bar(range(TRAINING), "training"):
    update(theta, stats, np.float32(0.3), rngs)

theta, stats = theta.repeat(len(RATES), axis=0), stats.repeat(len(RATES), axis=0)  # 9 networks
rates = np.tile(RATES, SEEDS)[:, None]
rngs = [np.random.default_rng([11, n // len(RATES)]) for n in range(len(theta))]
weights, statistics = minires.Moments(theta.shape), minires.Moments(stats.shape)
for _ in bar(range(FINE_TUNING), "fine-tuning"):
    update(theta, stats, rates, rngs)
    weights.update(theta)
    statistics.update(stats)

batches = [images[start : start + 100] for start in range(0, min(IMAGES, 1000), 100)]
recomputed = minires.reestimate_stats(model, weights.mean, batches)
networks = {
    "last θ, its own": (theta, stats),
    "mean, last": (weights.mean, stats),
    "mean, averaged": (weights.mean, statistics.mean),
    "mean, recomputed": (weights.mean, recomputed),
}
scores = {}
for name, (own_theta, own_stats) in networks.items():
    p = model.predict(own_theta, test_images, own_stats)
    scores[name] = {
        "accuracy": 100 * accuracy(p, test_labels).reshape(SEEDS, -1),
        "nll": nll(p, test_labels).reshape(SEEDS, -1),
    }

# %% [markdown]
# ## The picture: three policies side by side
#
# Points are seeds, lines their mean.

# %%
figure, panels = plt.subplots(1, 2, figsize=(12, 4.8))
for axes, metric, label in zip(
    panels,
    ("nll", "accuracy"),
    ("test NLL, nats (down is better)", "test accuracy, % (up is better)"),
    strict=True,
):
    for side, (name, marker) in enumerate(zip(scores, "^sDo", strict=True)):
        values = scores[name][metric]
        places = np.arange(len(RATES)) + 0.09 * (side - 1.5)
        (line,) = axes.plot(places, values.mean(axis=0), marker=marker, ms=9, label=name)
        axes.plot(places, values.T, marker, ms=4, color=line.get_color(), linestyle="")
    axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    axes.set_xlabel("learning rate of fine-tuning, ℓ₂")
    axes.set_ylabel(label)
panels[0].legend(fontsize=11, title="weights, statistics")
plt.show()

# %%
print("σ² of θ̄'s layers, as the policies have it, against what it is (recomputed):")
print("   ℓ₂     last   averaged     (median over channels and seeds; 1.00 is right)")
variances = np.concatenate(
    [
        np.arange(entry.start, entry.start + entry.size)
        for entry in model.layout.statistics
        if entry.name.endswith("variance")
    ]
)
for column, rate in enumerate(RATES):
    own = np.arange(column, len(theta), len(RATES))
    ratios = [np.median((s / recomputed)[own][:, variances]) for s in (stats, statistics.mean)]
    print(f"{rate:5.2f}   {ratios[0]:6.2f}   {ratios[1]:6.2f}")

# %% [markdown]
# At the small rate θ̄ and the last θ are neighbours, and any statistics will do. The
# further SGD jumps, the worse the last ones fit. Averaged and recomputed statistics are hardly
# apart here.
#
# One could expect more: noise in the weights adds variance to what they produce, so the *averaged*
# variances should be too large for θ̄, in which that noise is gone. The table does not show this. It
# may show for longer averages or larger steps; nobody can promise that it never matters. So
# recomputing is the safe way: it asks θ̄ itself. It costs one pass over some training images,
# without gradients. *Which images:* never the test images. The statistics are part of the network,
# and would be fitted to them.
#
# ## Exercise 1: let the statistics follow


# %% tags=["exercise", "follow"]
def follow(mean, variance, x, momentum):
    """The running statistics after one more batch.

    mean, variance   (C,), the old ones
    x                (N, C): what the batch gives for each channel
    momentum         the share of the old that is kept
    Returns          the new mean and variance; the batch's variance is divided by N
    """
    raise NotImplementedError("a part of the old, a part of the new")


# %% tags=["solution", "follow"]
def follow(mean, variance, x, momentum):
    """The running statistics after one more batch."""
    keep, take = momentum, 1 - momentum
    return keep * mean + take * x.mean(axis=0), keep * variance + take * x.var(axis=0)


# %% tags=["check", "follow"]
print(check_running_statistics(follow))


# %% tags=["wrong", "follow"]
def momentum_of_pytorch(mean, variance, x, momentum):
    """There "momentum" is the share of the *new*: 0.1 where TensorFlow says 0.9."""
    keep, take = 1 - momentum, momentum
    return keep * mean + take * x.mean(axis=0), keep * variance + take * x.var(axis=0)


rejected(check_running_statistics, momentum_of_pytorch)

# %% [markdown]
# ## Exercise 2: measure again
#
# The batches of training images need not be of equal size: the last one is often smaller. An image
# in it must not count more than others.


# %% tags=["exercise", "reestimate"]
def reestimate(batches):
    """Mean and variance of each channel over all batches.

    batches   a list of arrays (N_i, C)
    Returns   mean (C,) and variance (C,), each batch weighing as many rows as it has
    """
    raise NotImplementedError("sizes are weights")


# %% tags=["solution", "reestimate"]
def reestimate(batches):
    """Mean and variance of each channel over all batches."""
    sizes = [len(batch) for batch in batches]
    mean = np.average([batch.mean(axis=0) for batch in batches], axis=0, weights=sizes)
    variance = np.average([batch.var(axis=0) for batch in batches], axis=0, weights=sizes)
    return mean, variance


# %% tags=["check", "reestimate"]
print(check_reestimation(reestimate))


# %% tags=["wrong", "reestimate"]
def batches_weigh_alike(batches):
    """An image in a batch of 4 counts 25 times as much as one in a batch of 100."""
    mean = np.mean([batch.mean(axis=0) for batch in batches], axis=0)
    return mean, np.mean([batch.var(axis=0) for batch in batches], axis=0)


rejected(check_reestimation, batches_weigh_alike)

# %% [markdown]
# ## Exercise 3: the depthwise convolution
#
# As in lesson 5, but channels are never mixed: channel c of the result comes from channel c of x
# and kernel c alone.


# %% tags=["exercise", "depthwise"]
def depthwise(x, w, stride=1, padding=0):
    """y[n, i, j, c] = Σ over p, q of x[n, stride·i + p, stride·j + q, c] · w[p, q, c].

    x         (N, H, W, C); `padding` rows and columns of zeros are laid around it first
    w         (K, K', C)
    Returns   (N, OH, OW, C), OH = (H + 2·padding − K) // stride + 1
    """
    raise NotImplementedError("two loops over the kernel are enough")


# %% tags=["solution", "depthwise"]
def depthwise(x, w, stride=1, padding=0):
    """Each channel of x with a kernel of its own."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (x.shape[1] - w.shape[0]) // stride + 1
    columns = (x.shape[2] - w.shape[1]) // stride + 1
    y = np.zeros((len(x), rows, columns, x.shape[3]))
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            y += x[:, p : p + stride * rows : stride, q : q + stride * columns : stride] * w[p, q]
    return y


# %% tags=["check", "depthwise"]
print(check_depthwise(depthwise))


# %% tags=["wrong", "depthwise"]
def mixes_channels(x, w, stride=1, padding=0):
    """Sums over the channels too, as an ordinary convolution does."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (x.shape[1] - w.shape[0]) // stride + 1
    columns = (x.shape[2] - w.shape[1]) // stride + 1
    y = np.zeros((len(x), rows, columns, x.shape[3]))
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            part = x[:, p : p + stride * rows : stride, q : q + stride * columns : stride]
            y += (part * w[p, q]).sum(axis=-1, keepdims=True)
    return y


rejected(check_depthwise, mixes_channels)

# %% [markdown]
# ## What would break this?
#
# **Statistics of another network.** How bad can it be? Give the mean model the statistics of
# another seed:

# %%
swapped = np.roll(recomputed, len(RATES), axis=0)  # those of the next seed
p = model.predict(weights.mean, test_images, swapped)
right = scores["mean, recomputed"]["accuracy"].mean()
print(
    f"its own: {right:.1f} % right. Another seed's: {100 * accuracy(p, test_labels).mean():.1f} %"
)

# %% [markdown]
# **Sampled networks.** Each of the K members of lesson 9 is another θ. So each of them needs
# statistics of its own, and the ensemble costs K more passes over training images.
#
# **A variance is not enough.** Re-estimation averages the *variances of the batches*. That leaves
# out how far the batches' means lie apart. With shuffled batches of a hundred images this is
# little. With batches sorted by digit it would be much.
#
# ## Three questions
#
# **1.** Momentum 0.99, and 100 updates of fine-tuning. How much of the statistics still comes from
# *before* the fine-tuning?
#
# <details><summary>Answer</summary>
#
# 0.99¹⁰⁰ = 37 %. "Last" statistics are an average too, over about the last 1/(1 − momentum) = 100
# updates, and lag behind when θ moves.
#
# </details>
#
# **2.** Why does LeNet not have this problem?
#
# <details><summary>Answer</summary>
#
# It has no batch norm: all that it needs is in θ.
#
# </details>
#
# **3.** A file holds a network whose batch norm was *folded*: scale/√(v + ε) is multiplied into the
# convolution. What can you still do?
#
# <details><summary>Answer</summary>
#
# Fine-tune and average it like any network without batch norm. There are no statistics left that
# could be measured again, and training no longer normalises anything.
#
# </details>
#
# ## Where this is
#
# In the paper: section 3.2, MobileNet and Inception-V3; nothing on statistics. In the code:
# `minires/networks/running_statistics.py` has the three policies, and the study reports all of
# them. Izmailov et al. (2018) recompute. Next: lesson 11 asks when a difference is real.
