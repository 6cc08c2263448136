# %% [markdown]
# # 4. Loss and descent
#
# **After this lesson you can** train a small network from nothing.
#
# *15 minutes of yours, about 5 seconds of the computer's*
#
# A network gives one number per class, the *logits* z. **Softmax** makes probabilities of them, and
# the **loss** asks how probable the right class was:
#
#     p[c] = e^z[c] / Σₖ e^z[k]              all p are positive and sum to 1
#     loss = − log p[right class]             0 if p is 1; large if p is near 0
#
# The average of this loss over a batch of N images is what we make small. Its name is
# *cross-entropy*, or negative log-likelihood (NLL). **Descent** goes a small step against the
# gradient:
#
#     θ ← θ − ℓ · ∇ (1/N) Σₙ lossₙ(θ)           ℓ is the learning rate        (eq. 1)
#
# Read eq. 1 in the paper with care: it *sums* the loss over the batch and does not divide by N.
# With batches of 128 images, the paper's ℓ = 0.15 would then be a rate of 128 · 0.15 = 19 for the
# mean. We will see what that does.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

from minires.data import load
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.testing import check_log_softmax, check_optimizer
from minires.testing.classroom import bar, picture_style, rejected

picture_style()

# %% tags=["sizes"] small={"UPDATES": 60}
UPDATES, HIDDEN, BATCH = 2000, 16, 128

# %% [markdown]
# ## Three digits, two numbers each
#
# To *see* what a network learns we need data that fit on paper. We take the digits 0, 1 and 6, and
# of each image only two numbers: how much of its ink lies in the middle, and how tall the ink is.
# (Both are measured in standard deviations σ from their mean, so that neither is larger than the
# other.) That is little, so nobody can be right every time.

# %%
digits = load("glyphs", train=6000, test=500)
wanted = np.isin(digits.train_labels, (0, 1, 6))
images = digits.train_images[wanted, :, :, 0] / 255.0
labels = np.searchsorted((0, 1, 6), digits.train_labels[wanted])

ink = images.sum(axis=(1, 2))
middle = images[:, 10:18, 10:18].sum(axis=(1, 2)) / ink
rows = (np.arange(28) - 13.5) ** 2
height = np.sqrt((images.sum(axis=2) * rows).sum(axis=1) / ink)
features = np.stack([middle, height], axis=1)
features = (features - features.mean(axis=0)) / features.std(axis=0)
print(f"{len(features)} images, each with {features.shape[1]} numbers")


# %%
def network(theta, x):
    """Two layers: tanh(x W + b) V + c."""
    w, b, v, c = theta
    return ops.tanh(x @ w + b) @ v + c


def start(rng):
    """Weights that are small and random, biases that are zero."""
    return [
        rng.normal(0, 2**-0.5, (2, HIDDEN)), np.zeros(HIDDEN),
        rng.normal(0, 0.1, (HIDDEN, 3)), np.zeros(3),
    ]  # fmt: skip


def loss_and_gradient(theta, x, y):
    """The mean loss of a batch, and its gradient for each array of θ."""
    theta = [variable(array) for array in theta]
    loss = ops.softmax_cross_entropy(network(theta, x), y)
    return float(loss.data), gradients(loss, theta)


def train(rate, updates, seed=1, looks=()):
    """Descend from a random start. Returns the losses, and θ at some of the updates."""
    rng = np.random.default_rng(seed)
    theta, losses, kept = start(rng), [], {}
    for number in bar(range(updates + 1), "training"):
        if number in looks:
            kept[number] = [array.copy() for array in theta]
        batch = rng.choice(len(features), BATCH, replace=False)
        loss, gradient = loss_and_gradient(theta, features[batch], labels[batch])
        losses.append(loss)
        for array, slope in zip(theta, gradient, strict=True):
            array -= rate * slope
    return np.array(losses), kept


# %% [markdown]
# ## Predict
#
# Three classes, and a network that knows nothing yet. Its loss at the start is about
#
# - **a)** 0.33
# - **b)** 1.1
# - **c)** 3
#
# And then, with the rate 0.15 · 128 = 19, which is eq. 1 taken word for word, the loss will
#
# - **d)** fall faster
# - **e)** jump about, and stay far higher
#
# <details><summary>Choose first. Then open.</summary>
#
# b) and e). A network that knows nothing gives each class ⅓, and −log ⅓ = 1.1. A loss near
# log(number of classes) at the start is the first thing to look at in any training. A larger one
# says: the weights are too large, or something is wrong. With rate 19 each step goes much too far:
# over the valley, and up on the other side. Look below.
#
# </details>

# %%
looks = sorted({0, UPDATES // 1000 + 1, UPDATES // 20, UPDATES})
losses, kept = train(rate=0.15, updates=UPDATES, looks=looks)
summed, _ = train(rate=0.15 * BATCH, updates=UPDATES)
tail = UPDATES // 4
print(
    f"loss at the start         {losses[0]:.2f}   (a network that knows nothing: {np.log(3):.2f})"
)
print(f"mean loss,   ℓ = 0.15     {losses[-tail:].mean():.2f}   (last quarter)")
print(f"summed loss, ℓ = 0.15     {summed[-tail:].mean():.2f}   (last quarter)")

# %% [markdown]
# ## The picture: borders that find their place
#
# Each point is an image. The grey behind it is what the network would answer there: light for 0,
# middle for 1, dark for 6. At the start the borders lie anywhere. Three updates turn them roughly
# the right way. The other two thousand bring the last ten percent or so. At the end a band for the
# sixes has opened between the zeros and the ones, and it bends. Only a network with a hidden layer
# can bend a border.

# %%
grid = np.stack(np.meshgrid(np.linspace(-3, 3, 160), np.linspace(-3, 3, 160)), axis=-1)
shown = np.arange(min(len(features), 240))
figure, panels = plt.subplots(2, 2, figsize=(9, 8.6), sharex=True, sharey=True)
for axes, number in zip(panels.flat, looks, strict=True):
    chosen = network(kept[number], grid.reshape(-1, 2)).argmax(axis=-1).reshape(160, 160)
    axes.contourf(
        grid[..., 0], grid[..., 1], chosen, levels=[-0.5, 0.5, 1.5, 2.5],
        colors=["#f6f6f6", "#d4d4d4", "#a9a9a9"],
    )  # fmt: skip
    for k, (marker, colour) in enumerate(
        zip("os^", ("#0b3954", "#d55e00", "#7b2d8b"), strict=True)
    ):
        own = shown[labels[shown] == k]
        axes.plot(
            *features[own].T, marker, color=colour, ms=7, mec="white", mew=0.6, ls="",
            label=f"digit {(0, 1, 6)[k]}",
        )  # fmt: skip
    right = (network(kept[number], features).argmax(axis=-1) == labels).mean()
    axes.set_title(f"after {number:,} updates: {right:.0%} right")
    axes.set_xlim(-3, 3)
    axes.set_ylim(-3, 3)
    axes.grid(visible=False)
figure.supxlabel("ink in the middle (σ)")
figure.supylabel("height of the ink (σ)")
handles, names = panels[0, 0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside upper center", ncols=3, markerscale=1.5)
plt.show()


# %% [markdown]
# ## Exercise 1: a logarithm of softmax that cannot overflow
#
# e^z is infinite for z = 1000 in float64, and for z = 89 in float32. Logits can get there. But
# softmax does not change when the same number is subtracted from all logits of a row. Choose that
# number well.


# %% tags=["exercise", "log_softmax"]
def log_softmax(logits):
    """log p for each row: z − log Σₖ e^z[k].

    logits    (N, C)
    Returns   (N, C)
    """
    raise NotImplementedError("subtract something first")


# %% tags=["solution", "log_softmax"]
def log_softmax(logits):
    """log p for each row: z − log Σₖ e^z[k]."""
    z = logits - logits.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


# %% tags=["check", "log_softmax"]
print(check_log_softmax(log_softmax))


# %% tags=["wrong", "log_softmax"]
def by_the_letter(logits):
    """The formula as it is written."""
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


rejected(check_log_softmax, by_the_letter)


# %% tags=["wrong", "log_softmax"]
def logarithm_too_late(logits):
    """Safe softmax, then its logarithm: a small p becomes 0, and log 0 is −∞."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.log(e / e.sum(axis=-1, keepdims=True))


rejected(check_log_softmax, logarithm_too_late)


# %% tags=["wrong", "log_softmax"]
def one_maximum_for_all(logits):
    """Subtracts the largest logit of the whole batch, not of each row."""
    z = logits - logits.max()
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


rejected(check_log_softmax, one_maximum_for_all)

# %% [markdown]
# ## Exercise 2: one step of SGD
#
# Eq. 1 as code. θ is an array that other parts of a program hold too, so change it *in place*.


# %% tags=["exercise", "sgd"]
def sgd(theta, gradient, rate):
    """Go one step down, in place. Returns nothing.

    theta      (P,), changed
    gradient   (P,), of the mean loss; not changed
    rate       ℓ
    """
    raise NotImplementedError("one line")


# %% tags=["solution", "sgd"]
def sgd(theta, gradient, rate):
    """Go one step down, in place."""
    theta -= rate * gradient


# %% tags=["check", "sgd"]
print(check_optimizer(sgd, "sgd", in_place=True))


# %% tags=["wrong", "sgd"]
def uphill(theta, gradient, rate):
    """The gradient points up."""
    theta += rate * gradient


rejected(check_optimizer, uphill, "sgd", in_place=True)


# %% tags=["wrong", "sgd"]
def not_in_place(theta, gradient, rate):
    """Makes a new array. What else holds θ keeps the old numbers."""
    return theta - rate * gradient


rejected(check_optimizer, not_in_place, "sgd", in_place=True)

# %% [markdown]
# ## Exercise 3: one step of Adam
#
# Adam divides each gradient by its own usual size, so every weight moves by about ℓ per step. m and
# v are averages of g and g² that forget the past. They start at 0, so they are too small at first;
# dividing by 1 − βᵗ mends that. With β₁ = 0.9, β₂ = 0.999, ε = 10⁻⁸, and t = 1 at the first step:
#
#     m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
#     θ ← θ − ℓ · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)


# %% tags=["exercise", "adam"]
def adam(theta, gradient, state, rate):
    """One step of Adam, in place. Returns nothing.

    theta      (P,), changed
    gradient   (P,), not changed
    state      a dict for what you must remember; empty before the first step
    rate       ℓ
    """
    raise NotImplementedError("t, m and v live in the state")


# %% tags=["solution", "adam"]
def adam(theta, gradient, state, rate):
    """One step of Adam, in place."""
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = m = 0.9 * state.get("m", 0) + 0.1 * gradient
    state["v"] = v = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    theta -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


# %% tags=["check", "adam"]
print(check_optimizer(adam, "adam", in_place=True))


# %% tags=["wrong", "adam"]
def without_correction(theta, gradient, state, rate):
    """Leaves out the division by 1 − βᵗ."""
    state["m"] = m = 0.9 * state.get("m", 0) + 0.1 * gradient
    state["v"] = v = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    theta -= rate * m / (np.sqrt(v) + 1e-8)


rejected(check_optimizer, without_correction, "adam", in_place=True)


# %% tags=["wrong", "adam"]
def time_stands_still(theta, gradient, state, rate):
    """Corrects as if every step were the first."""
    state["m"] = m = 0.9 * state.get("m", 0) + 0.1 * gradient
    state["v"] = v = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    theta -= rate * (m / (1 - 0.9)) / (np.sqrt(v / (1 - 0.999)) + 1e-8)


rejected(check_optimizer, time_stands_still, "adam", in_place=True)

# %% [markdown]
# ## What would break this?
#
# **A start at zero.** If all weights are 0, all hidden units compute the same, get the same
# gradient, and stay equal for ever. The random start is what makes them different.
#
# **A rate that does not fit.** Too small: nothing happens. Too large: the loss jumps about or
# becomes `nan`. There is no formula for the right one. The paper tries several rates and shows the
# best; it looks at the *test* images to choose. Then the accuracy that is reported is a little too
# good. A third set of images, only for choosing, would be fair.
#
# **Another meaning of one word.** A rate belongs to a mean loss *or* to a summed loss. If you copy
# 0.15 from a paper into a program that sums, you get a rate of 19. We do not know what the authors'
# program did; their numbers make sense for the mean only.
#
# ## Three questions
#
# **1.** The loss at the start of a training with ten classes is 9.2. Is anything wrong?
#
# <details><summary>Answer</summary>
#
# Yes. log 10 = 2.3 is the loss of somebody who knows nothing. 9.2 means: sure of itself and wrong.
# The weights are too large at the start, or the labels do not belong to the images.
#
# </details>
#
# **2.** Two networks are right for the same 99 % of the images. Can their losses differ?
#
# <details><summary>Answer</summary>
#
# Yes. The loss also asks *how sure* a network was. One that says 100 % and errs pays much more than
# one that says 60 % and errs. This is why this project always shows the NLL beside the accuracy.
#
# </details>
#
# **3.** Adam's first step moves each weight by almost exactly ℓ, whatever the gradient. Why?
#
# <details><summary>Answer</summary>
#
# At t = 1 the corrected m is g and the corrected √v is |g|. Their quotient is +1 or −1.
#
# </details>
#
# ## Where this is
#
# In the paper: equation 1, and section 3 for the rates ℓ₁ and ℓ₂. In the code:
# `softmax_cross_entropy` in `minires/engine/ops.py`, and `SGD` and `Adam` in
# `minires/training/optimizers.py`. Next: lesson 5 gives the network all 784 pixels.
