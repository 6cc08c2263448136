# %% [markdown]
# # 5. Convolution and LeNet
#
# **After this lesson you can** write a convolution and its two gradients in twenty lines.
#
# *15 minutes of yours, about 10 seconds of the computer's*
#
# A digit is the same digit three pixels further right. A dense layer does not know that: each pixel
# has weights of its own. A **convolution** does. It lays a small *kernel* of weights on the image,
# multiplies number by number, sums up, moves one pixel on, and does it again *with the same
# weights*:
#
#     y[n, i, j, o] = Σ over p, q, c of  x[n, s·i + p, s·j + q, c] · w[p, q, c, o]
#
#     n image    i, j place in the result    c channel in    o channel out    p, q place in kernel
#     s stride: how far the kernel moves      padding: zeros laid around x before
#
# An image of height H with padding P and a kernel of height K gives (H + 2P − K) / s + 1 rows,
# rounded down.
#
# Two remarks. In mathematics a convolution first turns the kernel round, and the formula above is
# called a *correlation*. Every deep-learning library uses the formula above and calls it a
# convolution. And: y depends on x *linearly*. So the gradient of x is the same sum, read the other
# way: each y[i, j] gives its gradient back to the K × K pixels that it was made from.

# %% tags=["setup"]
import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import minires
from minires.data import load, scale
from minires.engine import convolution
from minires.testing import check_convolution, check_pooling
from minires.testing.classroom import bar, picture_style, rejected

picture_style()

# %% [markdown]
# ## Predict
#
# LeNet's first layer makes 6 channels of 28 × 28 numbers from one image of 28 × 28 pixels, with
# kernels of 5 × 5. How many weights does it have, biases included? And how many weights would a
# dense layer need to make as many numbers?
#
# - **a)** 156 and 3.7 million
# - **b)** 4,704 and 3.7 million
# - **c)** 122,304 and 614,656
#
# <details><summary>Choose first. Then open.</summary>
#
# a). Six kernels of 5 × 5 × 1 weights and six biases: 6 · 25 + 6 = 156. Dense: 28 · 28 · 6 = 4,704
# outputs, each with 784 weights and a bias: 3.7 million. Equal weights at every place are what
# makes the difference.
#
# </details>

# %%
model = minires.lenet_classic()
print(model.summary())
print(f"\nthe paper's LeNet (the shape of TF-slim): {minires.lenet().size:,} weights")

# %% [markdown]
# The paper says "LeNet" and no more, and there are many networks of that name. This lesson takes
# the small one of 1998. Elsewhere this project takes a larger one, which is likelier to be the
# paper's. It has 53 times as many weights, nearly all in one dense layer. Only the authors know.
#
# Now we train the small one for a moment, to have kernels worth looking at.

# %% tags=["sizes"] small={"IMAGES": 300, "UPDATES": 5}
IMAGES, UPDATES, BATCH, RATE = 6000, 300, 32, 0.1

# %%
digits = load("glyphs", train=IMAGES, test=500)
images, labels = scale(digits.train_images), digits.train_labels
rng = np.random.default_rng(0)
theta = model.init(rng)
for _ in bar(range(UPDATES), "training"):
    batch = rng.choice(len(images), BATCH, replace=False)
    loss, gradient = model.loss_and_gradient(theta, images[batch], labels[batch])
    theta -= RATE * gradient  # eq. 1
right = model.predict(theta, scale(digits.test_images)).argmax(axis=-1) == digits.test_labels
print(f"{right.mean():.1%} of the test digits are right after {UPDATES} updates")

# %% [markdown]
# ## The picture: kernels, and what they see
#
# Above: the six kernels of the first layer; white is a positive weight, black a negative one.
# Below: what each makes of the digit at the left (each in its own greys). Compare a kernel with its
# map. One that is bright on one side and dark on the other answers to edges of that direction. The
# frame around each map comes from the padding: its zeros are grey, but the background is −1, black.

# %%
kernels = model.layout["conv2d_1.weight"].view(theta)  # (5, 5, 1, 6)
image = images[np.flatnonzero(labels == 5)[:1]]
maps = convolution.conv2d(image, kernels, padding=2)

figure, panels = plt.subplots(2, 7, figsize=(12, 4))
panels[0, 0].axis("off")
panels[0, 0].text(0.5, 0.5, "kernels\n5 × 5\n→", ha="center", va="center", fontsize=14)
panels[1, 0].imshow(image[0, ..., 0], cmap="gray", vmin=-1, vmax=1)
panels[1, 0].set_title("the image", fontsize=12)
most, largest = np.abs(kernels).max(), np.abs(maps).max(axis=(0, 1, 2))
for k in range(6):
    panels[0, k + 1].imshow(kernels[..., 0, k], cmap="gray", vmin=-most, vmax=most)
    panels[0, k + 1].set_title(f"kernel {k + 1}", fontsize=12)
    panels[1, k + 1].imshow(maps[0, ..., k], cmap="gray", vmin=-largest[k], vmax=largest[k])
    panels[1, k + 1].set_title(f"map {k + 1}", fontsize=12)
for axes in panels.flat:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
plt.show()

# %% [markdown]
# ## Exercise 1: the sum
#
# Two loops over the places in the kernel are enough, or `sliding_window_view` and `einsum` without
# any. Four loops over the pixels are right too, but slow.


# %% tags=["exercise", "conv2d"]
def conv2d(x, w, stride=1, padding=0):
    """Slide kernels over images; the kernels are not turned round.

    x         (N, H, W, C)
    w         (K, K', C, O)
    stride    how many pixels the kernel moves
    padding   zeros on each of the four sides of x
    Returns   (N, OH, OW, O) with OH = (H + 2 · padding − K) // stride + 1
    """
    raise NotImplementedError("pad, take windows, multiply and sum")


# %% tags=["solution", "conv2d"]
def conv2d(x, w, stride=1, padding=0):
    """Slide kernels over images; the kernels are not turned round."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nijcpq,pqco->nijo", windows, w)


# %% tags=["check", "conv2d"]
print(check_convolution(conv2d))


# %% tags=["wrong", "conv2d"]
def turns_the_kernel(x, w, stride=1, padding=0):
    """What mathematics calls a convolution."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nijcpq,pqco->nijo", windows, w[::-1, ::-1])


rejected(check_convolution, turns_the_kernel)


# %% tags=["wrong", "conv2d"]
def pads_one_side(x, w, stride=1, padding=0):
    """All the zeros at the bottom and the right: the shape is right, the picture has moved."""
    x = np.pad(x, ((0, 0), (0, 2 * padding), (0, 2 * padding), (0, 0)))
    windows = sliding_window_view(x, w.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nijcpq,pqco->nijo", windows, w)


rejected(check_convolution, pads_one_side)

# %% [markdown]
# ## Exercise 2: its two gradients
#
# g has the shape of y. For the gradient of w, ask: which x were multiplied by w[p, q], at all
# places i, j? For the gradient of x, ask: into which y did each x go? One loop over p and q does
# both. And here is a test for any linear step A with pullback Aᵀ, without a single derivative:
#
#     sum(A(x) · g) = sum(x · Aᵀ(g))        for every x and every g
#
# The check below prints this test in short: ⟨a, b⟩ means sum(a · b), x̄ is your gradient of x, and
# w̄ your gradient of w.


# %% tags=["exercise", "conv2d_backward"]
def conv2d_backward(x, w, g, stride=1, padding=0):
    """The gradients of x and of w.

    x, w, stride, padding   as for conv2d
    g         (N, OH, OW, O), the gradient of the loss with respect to y
    Returns   the gradients of x (N, H, W, C) and of w (K, K', C, O)
    """
    raise NotImplementedError("give each g back to the pixels it was made from")


# %% tags=["solution", "conv2d_backward"]
def conv2d_backward(x, w, g, stride=1, padding=0):
    """The gradients of x and of w."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    (height, width), (rows, columns) = x.shape[1:3], g.shape[1:3]
    x_gradient, w_gradient = np.zeros_like(x), np.zeros_like(w)
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            there = np.s_[:, p : p + stride * rows : stride, q : q + stride * columns : stride]
            x_gradient[there] += g @ w[p, q].T
            w_gradient[p, q] = np.einsum("nijc,nijo->co", x[there], g)
    return x_gradient[:, padding : height - padding, padding : width - padding], w_gradient


# %% tags=["check", "conv2d_backward"]
print(check_convolution(convolution.conv2d, conv2d_backward))


# %% tags=["wrong", "conv2d_backward"]
def forgets_the_stride(x, w, g, stride=1, padding=0):
    """Puts the gradients of neighbours side by side, whatever the stride was."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    (height, width), (rows, columns) = x.shape[1:3], g.shape[1:3]
    x_gradient, w_gradient = np.zeros_like(x), np.zeros_like(w)
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            there = np.s_[:, p : p + rows, q : q + columns]
            x_gradient[there] += g @ w[p, q].T
            w_gradient[p, q] = np.einsum("nijc,nijo->co", x[there], g)
    return x_gradient[:, padding : height - padding, padding : width - padding], w_gradient


rejected(check_convolution, convolution.conv2d, forgets_the_stride)


# %% tags=["wrong", "conv2d_backward"]
def writes_where_it_should_add(x, w, g, stride=1, padding=0):
    """Windows overlap: a pixel gets gradients from several places."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    (height, width), (rows, columns) = x.shape[1:3], g.shape[1:3]
    x_gradient, w_gradient = np.zeros_like(x), np.zeros_like(w)
    for p in range(w.shape[0]):
        for q in range(w.shape[1]):
            there = np.s_[:, p : p + stride * rows : stride, q : q + stride * columns : stride]
            x_gradient[there] = g @ w[p, q].T
            w_gradient[p, q] = np.einsum("nijc,nijo->co", x[there], g)
    return x_gradient[:, padding : height - padding, padding : width - padding], w_gradient


rejected(check_convolution, convolution.conv2d, writes_where_it_should_add)


# %% tags=["setup"]
def max_pool(x):
    """The largest of each 2 × 2 pixels."""
    return convolution.max_pool(x, window=2)


# %% [markdown]
# ## Exercise 3: max pooling's gradient
#
# Max pooling keeps the largest of each 2 × 2 pixels. Only the winner had an influence on the
# result, so only the winner gets the gradient. Where several pixels are equally large, take the
# first of them. A row or column that does not fill a window is left out: its gradient is 0.


# %% tags=["exercise", "max_pool_backward"]
def max_pool_backward(x, g):
    """The gradient of x, when y is the largest of each 2 × 2 pixels.

    x         (N, H, W, C)
    g         (N, H // 2, W // 2, C)
    Returns   (N, H, W, C)
    """
    raise NotImplementedError("the winner takes it all")


# %% tags=["solution", "max_pool_backward"]
def max_pool_backward(x, g):
    """The gradient of x, when y is the largest of each 2 × 2 pixels."""
    rows, columns = g.shape[1:3]
    parts = [
        np.s_[:, p : p + 2 * rows : 2, q : q + 2 * columns : 2] for p in (0, 1) for q in (0, 1)
    ]
    winner = np.argmax([x[:, : 2 * rows, : 2 * columns][part] for part in parts], axis=0)
    gradient = np.zeros_like(x)
    for number, part in enumerate(parts):
        gradient[:, : 2 * rows, : 2 * columns][part] = g * (winner == number)
    return gradient


# %% tags=["check", "max_pool_backward"]
print(check_pooling(max_pool, max_pool_backward))


# %% tags=["wrong", "max_pool_backward"]
def all_winners_in_full(x, g):
    """Where two pixels are equal, both get all of it: twice as much as there is."""
    rows, columns = g.shape[1:3]
    gradient = np.zeros_like(x)
    whole = np.s_[:, : 2 * rows, : 2 * columns]
    spread = [array.repeat(2, axis=1).repeat(2, axis=2) for array in (max_pool(x), g)]
    gradient[whole] = spread[1] * (x[whole] == spread[0])
    return gradient


rejected(check_pooling, max_pool, all_winners_in_full)


# %% tags=["wrong", "max_pool_backward"]
def shared_by_all_four(x, g):
    """That is the gradient of the mean."""
    gradient = np.zeros_like(x)
    spread = g.repeat(2, axis=1).repeat(2, axis=2) / 4
    gradient[:, : spread.shape[1], : spread.shape[2]] = spread
    return gradient


rejected(check_pooling, max_pool, shared_by_all_four)

# %% [markdown]
# ## What would break this?
#
# **A shift.** Does LeNet really not care where a digit stands? The feature maps move with the
# image, exactly. But pooling takes every second pixel, and the dense layers know places again. Let
# us shift the test digits:

# %%
test = scale(digits.test_images)
for pixels in (0, 1, 2, 4, 6):
    moved = np.roll(test, pixels, axis=2)
    moved[:, :, :pixels] = -1  # background
    right = model.predict(theta, moved).argmax(axis=-1) == digits.test_labels
    print(f"moved {pixels} pixels to the right: {right.mean():.1%} right")

# %% [markdown]
# So a convolution helps with small shifts, and is no guarantee. What the network sees in training,
# it learns. (At six pixels some digits also lose ink over the edge.)
#
# **Turned kernels.** A network that was trained with one convention and runs with the other gives
# nonsense, and no error. The same goes for the order of axes: channels last here, channels first in
# PyTorch.
#
# ## Three questions
#
# **1.** Why does ReLU stand *after* the pooling in `minires/networks/lenet.py`, when textbooks put
# it before?
#
# <details><summary>Answer</summary>
#
# The largest of four numbers, then cut at zero, is the same as each cut at zero, then the largest.
# After pooling there are four times fewer numbers to cut.
#
# </details>
#
# **2.** Two layers with 5 × 5 kernels, one after the other, no pooling, padding 0. How many pixels
# of the image does one number of the result see?
#
# <details><summary>Answer</summary>
#
# 9 × 9: the second sees 5 × 5 numbers, each of which sees 5 × 5 pixels; 5 + 5 − 1 = 9.
#
# </details>
#
# **3.** In exercise 2, does the pullback of x need x itself?
#
# <details><summary>Answer</summary>
#
# No. y is linear in x, so its slope does not depend on x. The pullback needs w, and the shape of x.
# The pullback of w needs x.
#
# </details>
#
# ## Where this is
#
# In the paper: section 3.1, "LeNet". In the code: `minires/engine/convolution.py`,
# `minires/networks/lenet.py`, and the kernels in `minires/kernels/`, which compute the same sums
# faster. Next: lesson 6 keeps the mean and the variance of all these weights while they learn.
