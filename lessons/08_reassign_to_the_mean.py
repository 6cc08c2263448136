# %% [markdown]
# # 8. Reassign to the mean
#
# **After this lesson you can** say why the mean is better than the last θ, and find where it is
# worse.
#
# *15 minutes of yours, about 30 seconds of the computer's*
#
# The paper's first approach takes one line: after fine-tuning, put the mean θ̄ of all updates in
# the place of the last θ. Lesson 1 showed that this helps. Why should it?
#
# Near a minimum θ* the loss is a valley. A cut through the valley is nearly a parabola, with some
# curvature h:
#
#     loss(θ) ≈ loss(θ*) + h/2 · (θ − θ*)²
#
# SGD does not come to rest at θ*. Each batch pulls in a slightly different direction, so θ jumps
# from slope to slope. Suppose that it jumps around θ̄, with variance σ². Then the *average loss of
# the θ's* is
#
#     average of loss(θ) = loss(θ̄) + h/2 · σ²
#
# So θ̄ is better than a typical θ by h/2 · σ², exactly. With many weights it is a sum over all
# directions: much is gained where the valley is steep and SGD jumps far. That is the whole
# argument. It holds where the valley bends *upwards*, and it compares θ̄ with a *typical* θ. It
# does not say that θ̄ is the best point of all. You will see both limits.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np

import minires
from minires.data import load, scale
from minires.testing import check_harm, check_line
from minires.testing.classroom import bar, picture_style, rejected
from minires.training.metrics import nll

picture_style()

# %% [markdown]
# ## The network and its way
#
# A small LeNet is trained, then fine-tuned at ℓ₂ = 0.15. We keep each θ for the picture.

# %% tags=["sizes"] small={"IMAGES": 300, "TEST": 100, "TRAINING": 8, "FINE_TUNING": 8, "GRID": 5}
IMAGES, TEST, BATCH = 3000, 600, 16
TRAINING, FINE_TUNING = 300, 120  # updates
GRID = 10  # points along each side of the map
SEEDS = 4

# %%
digits = load("glyphs", train=IMAGES, test=TEST)
images, labels = scale(digits.train_images), digits.train_labels
test_images, test_labels = scale(digits.test_images), digits.test_labels
model = minires.lenet(channels=(4, 8), hidden=32, dropout=0)


def update(theta, rates, rngs):
    """One step of gradient descent for all networks, in place. rngs: a stream for each network."""
    chosen = np.stack([rng.choice(IMAGES, BATCH, replace=False) for rng in rngs])
    _, gradient = model.loss_and_gradient(theta, images[chosen], labels[chosen])
    theta -= rates * gradient


def loss_of(thetas, count=250):
    """The loss of many networks on the first training images."""
    return nll(model.predict(thetas, images[:count]), labels[:count])


rng = np.random.default_rng(1)
theta = model.init([rng])  # (1, P)
for _ in bar(range(TRAINING), "training"):
    update(theta, np.float32(0.1), [rng])

path, moments = [theta[0].copy()], minires.Moments(theta.shape)
for _ in bar(range(FINE_TUNING), "fine-tuning"):
    update(theta, np.float32(0.15), [rng])
    moments.update(theta)
    path.append(theta[0].copy())
path, mean = np.array(path), moments.mean[0]

# %% [markdown]
# ## Predict
#
# Here are the losses of the last 40 θ's, on the same 250 training images. Where will the loss of
# their common mean lie?
#
# - **a)** near the average of the losses
# - **b)** near the best of them
# - **c)** below all of them
#
# <details><summary>Choose first. Then open.</summary>
#
# c), or nearly: here and there one lucky θ is as good. The mean was never *visited*: no single θ
# was ever there. It lies near the floor of the valley, and the θ's lie on its slopes.
#
# </details>

# %%
own_mean = path[-40:].mean(axis=0)
losses = loss_of(path[-40:])
loss_of_mean = loss_of(own_mean[None])[0]
print(f"the θ's: best {losses.min():.4f}, average {losses.mean():.4f}, worst {losses.max():.4f}")
print(f"their mean: {loss_of_mean:.4f}")

# %% [markdown]
# ## Exercise 1: points on a line
#
# To see the valley we walk through it. A *slice* of the loss is the loss at points of a straight
# line through two θ's.


# %% tags=["exercise", "line"]
def points(a, b, places):
    """Points on the straight line through a and b.

    a, b      (P,)
    places    (K,): 0 is a, 1 is b, 0.5 the middle; below 0 and above 1 the line goes on
    Returns   (K, P)
    """
    raise NotImplementedError("start at a, go some part of the way to b")


# %% tags=["solution", "line"]
def points(a, b, places):
    """Points on the straight line through a and b."""
    return a + np.asarray(places)[:, None] * (b - a)


# %% tags=["check", "line"]
print(check_line(points))


# %% tags=["wrong", "line"]
def exchanged(a, b, places):
    """Starts at b."""
    return np.stack([place * a + (1 - place) * b for place in places])


rejected(check_line, exchanged)


# %% tags=["wrong", "line"]
def stops_at_the_ends(a, b, places):
    """Never leaves the piece between a and b."""
    return a + np.clip(places, 0, 1)[:, None] * (b - a)


rejected(check_line, stops_at_the_ends)


# %% tags=["setup"]
def line(a, b, places):
    """The same, for the picture, in a's own dtype."""
    return (a + np.asarray(places)[:, None] * (b - a)).astype(a.dtype)


# %% [markdown]
# ## The picture: the valley, and the way through it
#
# θ has thousands of weights, paper has two directions. On the left we choose the two in which the
# way is longest (its first two *principal directions*). Each point of the map is a network, and its
# grey tells its loss. The path is drawn as its shadow on that plane.
#
# On the right is one slice: along the line from the last θ (place 0) to the mean (place 1) and on.

# %%
centred = path - mean
_, _, directions = np.linalg.svd(centred[1:], full_matrices=False)
shadow = centred @ directions[:2].T  # (updates + 1, 2)
reach = 1.25 * np.abs(shadow).max(axis=0)
grid = [np.linspace(-r, r, GRID) for r in reach]
plane = np.array([[x, y] for y in grid[1] for x in grid[0]]) @ directions[:2]
map_losses = loss_of((mean + plane).astype(np.float32), 150).reshape(GRID, GRID)

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2))
levels = np.geomspace(map_losses.min(), map_losses.max(), 12)
shades = left.contourf(*grid, map_losses, levels=levels, cmap="Greys", alpha=0.75)
left.plot(*shadow.T, "-", color="#d55e00", linewidth=1, marker=".", markersize=5)
for point, marker, name in (
    (shadow[0], "s", "trained"), (shadow[-1], "^", "last θ"), ((0, 0), "o", "mean"),
):  # fmt: skip
    left.plot(*point, marker, color="white", markeredgecolor="black", markersize=12)
    left.annotate(
        name, point, xytext=(9, 9), textcoords="offset points", fontweight="bold",
        bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
    )  # fmt: skip
left.set_xlabel("first principal direction, change of θ")
left.set_ylabel("second principal direction, change of θ")
left.set_title("The valley from above (darker is worse)")
figure.colorbar(shades, ax=left, label="training loss, nats", format="%.2f")

places = np.linspace(-0.5, 2, 16)
slice_ = line(path[-1], mean, places)
right.plot(places, loss_of(slice_), label="training images")
right.plot(places, nll(model.predict(slice_, test_images), test_labels), label="test images")
for place, name in ((0, "last θ"), (1, "mean")):
    right.axvline(place, color="0.6", linewidth=1, linestyle="-")
    right.text(place, right.get_ylim()[1], name, ha="center", va="bottom")
right.set_xlabel("place on the line")
right.set_ylabel("loss, nats")
right.legend()
plt.show()

# %% [markdown]
# Read the right picture with care. The mean lies lower than the last θ. (How much lower is luck: is
# this last θ a typical one? Compare it with the losses that were printed above.) But the lowest
# point of the slice need not be at the mean: θ̄ is a good guess, found without looking at the loss.
# And the map on the left shows *two* directions. In the thousands that it leaves out, each θ lies
# far from this plane, and higher up. So no point of the drawn path has the loss of the grey below
# it.
#
# ## The argument, checked with numbers
#
# If the valley is a parabola, the loss along the line from θ to θ̄ tells h/2 · d², where d is the
# distance. We can check the sentence "average loss = loss of the mean + what the jumps cost": the
# cost can be measured *on the other side*. A parabola is as high at θ̄ − d as it is at θ̄ + d, on
# average over all the d: a slope cancels.

# %%
mirrored = loss_of((2 * own_mean - path[-40:]).astype(np.float32))
print(f"loss of the mean                          {loss_of_mean:.4f}")
print(f"average loss of the θ's                   {losses.mean():.4f}")
print(f"average loss of their mirror images       {mirrored.mean():.4f}")

# %% [markdown]
# If the valley were a perfect parabola, the last two lines would be equal. Their difference tells
# how much this simple picture leaves out: walls that are not equally steep. It is a model, not the
# truth.
#
# ## Where the mean is worse
#
# The argument needs θ to jump *around* something. A network that is still on its way down does not:
# its newest θ is its best, and the mean drags old, worse ones along. So we take four networks after
# 40 updates of training, and again after 160, and fine-tune both at several ℓ₂.

# %%
RATES = np.array([0.01, 0.03, 0.1, 0.2], np.float32)
rngs = [np.random.default_rng([2, seed]) for seed in range(SEEDS)]
theta = model.init(rngs)
start = {}
for name, updates in (("trained for 40 updates", 40), ("trained for 160 updates", 120)):
    for _ in range(min(updates, TRAINING)):
        update(theta, np.float32(0.1), rngs)
    start[name] = theta.copy()

losses_of = {}
for name, trained in start.items():
    plain, averaged = (np.empty((SEEDS, len(RATES))) for _ in range(2))
    for column, rate in enumerate(RATES):
        theta, moments = trained.copy(), minires.Moments(trained.shape)
        order = [np.random.default_rng([3, seed]) for seed in range(SEEDS)]  # the same at each ℓ₂
        for _ in range(FINE_TUNING // 3):
            update(theta, rate, order)
            moments.update(theta)
        for table, weights in ((plain, theta), (averaged, moments.mean)):
            table[:, column] = nll(model.predict(weights, test_images), test_labels)
    losses_of[name] = plain, averaged

figure, axes = plt.subplots(figsize=(9, 4.6))
for (name, (plain, averaged)), marker, side in zip(
    losses_of.items(), "so", (0.97, 1.03), strict=True
):
    d = averaged - plain
    error = d.std(axis=0, ddof=1) / np.sqrt(SEEDS)
    axes.errorbar(
        side * RATES, d.mean(axis=0), yerr=2 * error, marker=marker, capsize=4, label=name
    )
axes.axhline(0, color="black", linewidth=1, linestyle="-")
axes.set_xscale("log")
axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
axes.minorticks_off()
axes.set_xlabel("learning rate of fine-tuning, ℓ₂ (logarithmic)")
axes.set_ylabel("test NLL, mean − last θ, nats")
axes.set_title("Above the line the mean is worse (bars: two standard errors, four seeds)")
axes.legend()
plt.show()

# %% [markdown]
# With four seeds the bars are wide. Still: the mean harms the network that has hardly learnt, at
# small rates beyond doubt. With the other one it depends on ℓ₂. At the smallest rate it goes
# downhill all the time, and the mean is a little behind. At large rates it jumps, and the mean is
# better. Where a bar reaches over the line, four seeds cannot tell.
#
# ## Exercise 2: find the rates that harm
#
# One run that goes up is no proof. Write the function that names the rates at which the mean is
# worse *beyond doubt*: by more than two standard errors of the paired difference (lesson 1).


# %% tags=["exercise", "harmful"]
def harmful(rates, plain, mean):
    """The rates at which the mean model is worse by more than two standard errors.

    rates     (K,)
    plain     (n, K): the loss of the last θ, a row per seed, a column per rate
    mean      (n, K): the loss of the mean model, in the same order
    Returns   those of the rates where average of (mean − plain) > 2 · s / √n
    """
    raise NotImplementedError("the differences first")


# %% tags=["solution", "harmful"]
def harmful(rates, plain, mean):
    """The rates at which the mean model is worse by more than two standard errors."""
    d = mean - plain
    error = d.std(axis=0, ddof=1) / np.sqrt(len(d))
    return rates[d.mean(axis=0) > 2 * error]


# %% tags=["check", "harmful"]
print(check_harm(harmful))


# %% tags=["wrong", "harmful"]
def worse_on_average(rates, plain, mean):
    """Takes chance for harm."""
    return rates[mean.mean(axis=0) > plain.mean(axis=0)]


rejected(check_harm, worse_on_average)


# %% tags=["wrong", "harmful"]
def wrong_sign(rates, plain, mean):
    """A larger loss is worse, not better."""
    d = plain - mean
    return rates[d.mean(axis=0) > 2 * d.std(axis=0, ddof=1) / np.sqrt(len(d))]


rejected(check_harm, wrong_sign)

# %% [markdown]
# ## What would break this?
#
# **Two valleys.** Two networks that were trained apart, from other random starts, lie in different
# valleys. Between them the loss is a mountain, and the argument fails from its first line. Here is
# the loss on the straight line between two of the four networks:

# %%
first, second = start["trained for 160 updates"][:2]
places = np.linspace(0, 1, 6)
for place, loss in zip(places, loss_of(line(first, second, places)), strict=True):
    print(f"place {place:.1f}: loss {loss:5.2f}  " + "#" * round(20 * loss))

# %% [markdown]
# **The paper's eq. 1.** It *sums* the loss over the images of a batch. With 128 images a rate of
# 0.15 would then act like 19, and no network survives that. So it must be the mean over the batch.
# That is how it is done here, and you can tell from such a check which of the two a text means.
#
# **What is not known.** A lower loss on training images is no promise for test images. People say
# that the mean lies in a *flatter* place, and that flat places carry over better. The first half is
# often measured. Why the second should follow is still debated.
#
# ## Three questions
#
# **1.** SGD jumps with σ = 0.01 in two directions, with curvature 100 and 1. How much lower does
# the mean lie than a typical θ?
#
# <details><summary>Answer</summary>
#
# h/2 · σ² = 0.005 in the first and 0.00005 in the second: 0.00505 in all. The steep direction
# decides.
#
# </details>
#
# **2.** Why does a *larger* ℓ₂ make the mean more useful, up to a point?
#
# <details><summary>Answer</summary>
#
# Larger steps make larger jumps, so there is more to average away. They also carry θ further down
# the valley in the same time. Beyond the point θ leaves the valley.
#
# </details>
#
# **3.** In the under-trained network, how could one still use a mean?
#
# <details><summary>Answer</summary>
#
# Leave out the beginning: a burn-in (lesson 7). Or forget old θ's little by little: an exponential
# moving average.
#
# </details>
#
# ## Where this is
#
# In the paper: section 2, the first approach ("reassign"), and eq. 1. In the code: the method is
# `model.predict(moments.mean, images)`; `minires/study/` measures over which ℓ₂ it helps. Averages
# of SGD are older: Ruppert (1988) and Polyak (1990) proved them best for one valley. Next: lesson 9
# samples whole networks from the same two numbers per weight.
