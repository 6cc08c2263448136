"""The definition of every kernel. `cpu` and `gpu` compute the same, faster.

The code uses only functions that NumPy and CuPy share, so it runs on arrays of either. It is as
simple as possible: no tiles, no threads, no buffers. Two pictures explain almost all of it.

*A window* is what one output sees: kh × kw pixels of the padded image, `dilation` pixels apart;
from one output to the next the window moves by `stride` pixels. `windows` shows the windows of all
outputs without copying a pixel. A convolution is then one product: every window times the kernel.

*A gradient goes the way back.* Each output's gradient is shared among the pixels of its window, and
each pixel adds up its shares: `spread`.

The letters: r network, n image, m image of any network, i j output pixel, u v pixel of a window
("tap"), c channel, o output channel, s stride, d dilation, p padding; L is the loss.

An argument means the same in all kernels, and a formula's indices are an array's axes:

    x                images (1 | R, N, H, W, C); with 1 in front R networks see the same ones.
                     Pooling: (M, H, W, C)
    w                kernels (R, kh, kw, C, O), dtype of x. Depthwise: (R, kh, kw, C)
    bias             b: (R, O), or None
    activation       f: None, "relu" or "relu6"
    y                the result (R, N, OH, OW, O). Pooling: (M, OH, OW, C)
    g                ∂L/∂y, like y. Convolution: of y before bias and activation
    shape            of x
    kernel, window   (rows, columns), pixels of a window
    stride           (rows, columns), pixels from one window to the next
    padding          ((top, bottom), (left, right)), pixels around the images: 0 unless said
    dilation         (rows, columns), pixels between the taps of a window
    out              an array to write the result to, if its shape and type fit; or None

    with minires.kernels("plain"):                 # or MINIRES_KERNELS=plain in the environment
        loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from minires.arrays import Array, to_host, xp_of

Pair = tuple[int, int]  # (rows, columns)
Borders = tuple[Pair, Pair]  # ((top, bottom), (left, right))
Generators = np.random.Generator | Sequence[np.random.Generator]  # one, or one for each network

PIECE = 1 << 23  # bytes of copied windows at once; a larger batch is cut, so memory stays bounded
NO_BORDER = (0, 0), (0, 0)

# --- windows ------------------------------------------------------------------------------


def output_size(
    size: Pair, kernel: Pair, stride: Pair, padding: Borders, dilation: Pair = (1, 1)
) -> Pair:
    """How many windows an image has: ⌊(n + borders − (d (k − 1) + 1)) / s⌋ + 1 along each axis.

    size     (H, W) of the image, pixels
    Returns  (OH, OW)
    """
    return tuple(
        (n + sum(border) - (d * (k - 1) + 1)) // s + 1
        for n, k, s, border, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def windows(
    x: Array, kernel: Pair, stride: Pair, padding: Borders, dilation: Pair, outside: float = 0
) -> Array:
    """What every output sees: a view of the padded images, which copies no window.

    view[…, i, j, u, v, c] = x[…, i·s + u·d − p, j·s + v·d − p, c]

    x        (…, H, W, C)
    outside  the value of the pixels in the padding
    Returns  (…, OH, OW, kh, kw, C)
    """
    if np.any(padding):
        border = [(0, 0)] * (x.ndim - 3) + [*padding, (0, 0)]
        x = xp_of(x).pad(x, border, constant_values=outside)
    size = output_size(x.shape[-3:-1], kernel, stride, NO_BORDER, dilation)
    *lead, row, pixel, channel = x.strides
    (sh, sw), (dh, dw) = stride, dilation
    strides = (*lead, sh * row, sw * pixel, dh * row, dw * pixel, channel)
    shape = (*x.shape[:-3], *size, *kernel, x.shape[-1])
    return xp_of(x).lib.stride_tricks.as_strided(x, shape, strides)


def taps(view: Array) -> list[Array]:
    """For each tap u, v: that pixel of every window.

    view     (…, OH, OW, kh, kw, C), from `windows`
    Returns  kh · kw views (…, OH, OW, C), in reading order. In one view no pixel occurs twice
    """
    return [view[..., u, v, :] for u, v in np.ndindex(*view.shape[-3:-1])]


def spread(
    shares: Iterable[Array], g: Array, shape: tuple[int, ...], kernel: Pair, stride: Pair,
    padding: Borders, dilation: Pair,
) -> Array:  # fmt: skip
    """The way back from windows to pixels: each pixel adds up its shares from all windows.

    x[…, i·s + u·d − p, j·s + v·d − p, c] = Σ_uv shares[u, v][…, i, j, c]

    shares   an array (…, OH, OW, C) for each tap u, v, in reading order. They can be made one after
             another, so that only one is in memory
    g        ∂L/∂y: the result has its dtype, and lies on its device
    shape    (…, H, W, C) of the images
    Returns  (…, H, W, C)
    """
    *lead, high, wide, channels = shape
    (top, bottom), (left, right) = padding
    padded_shape = (*lead, top + high + bottom, left + wide + right, channels)
    padded = xp_of(g).zeros(padded_shape, g.dtype)
    view = windows(padded, kernel, stride, NO_BORDER, dilation)
    for pixels, share in zip(taps(view), shares, strict=True):
        pixels += share
    return padded[..., top : top + high, left : left + wide, :]


def pieces(networks: int, images: int, image_bytes: int) -> list[tuple[int, slice]]:
    """Cut a batch into pieces of about `PIECE` bytes of windows, at least one image each.

    networks      R
    images        N
    image_bytes   of the windows of one image
    Returns       [(network, slice of its images), …]
    """
    step = max(1, PIECE // max(1, image_bytes))
    cuts = [slice(first, first + step) for first in range(0, images, step)]
    return [(network, cut) for network in range(networks) for cut in cuts]


# --- activations --------------------------------------------------------------------------


def activate(y: Array, bias: Array, activation: str | None) -> Array:
    """f(y + bias): f(a) is a for None, max(a, 0) for "relu", min(max(a, 0), 6) for "relu6".

    y      (R, N, H, W, C)
    bias   (R, C) or None
    """
    if bias is not None:
        y = y + bias[:, None, None, None]
    return y if activation is None else y.clip(0, 6 if activation == "relu6" else None)


def activate_gradient(g: Array, y: Array, activation: str | None) -> Array:
    """∂L/∂a = g · f'(a), given g = ∂L/∂y and y = f(a)."""
    if activation is None:
        return g
    return g * (y > 0 if activation == "relu" else (y > 0) & (y < 6))


# --- products and sums --------------------------------------------------------------------


def matmul(a: Array, b: Array, out: Array = None) -> Array:
    """y[m,l] = Σ_k a[m,k] · b[k,l]

    a, b   (…, M, K) and (…, K, L)
    """
    product = xp_of(a).matmul(a, b)
    if out is None or (out.shape, out.dtype) != (product.shape, product.dtype):
        return product
    out[...] = product
    return out


def sum_rows(array: Array) -> Array:
    """Σ_m array[…, m, c], added up in float64.

    array   (…, M, C)
    """
    if array.dtype.kind != "f":
        return array.sum(axis=-2)
    return array.sum(axis=-2, dtype=np.float64).astype(array.dtype)


# --- convolution --------------------------------------------------------------------------


def convolve(
    x: Array, w: Array, bias: Array, stride: Pair, padding: Borders, dilation: Pair,
    activation: str | None,
) -> Array:  # fmt: skip
    """y[r,n,i,j,o] = f( b[r,o] + Σ_uvc x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c,o] )"""
    xp, view = xp_of(x), windows(x, w.shape[1:3], stride, padding, dilation)
    y = xp.empty((len(w), *view.shape[1:4], w.shape[-1]), x.dtype)
    for r, part in pieces(len(w), len(y[0]), view[:1, :1].nbytes):
        y[r, part] = xp.tensordot(view[r % len(view), part], w[r], axes=3)
    return activate(y, bias, activation)


def convolve_weight_gradient(
    x: Array, g: Array, kernel: Pair, stride: Pair, padding: Borders, dilation: Pair,
    out: Array = None,
) -> Array:  # fmt: skip
    """∂L/∂w[r,u,v,c,o] = Σ_nij x[r, n, i·s + u·d − p, j·s + v·d − p, c] · g[r,n,i,j,o]"""
    xp, view = xp_of(x), windows(x, kernel, stride, padding, dilation)
    if out is None:
        out = xp.empty((len(g), *view.shape[-3:], g.shape[-1]), x.dtype)
    out[...] = 0
    for r, part in pieces(len(g), len(g[0]), view[:1, :1].nbytes):
        rows = view[r % len(view), part].reshape(-1, out[r, ..., 0].size)  # a window each
        out[r] += (rows.T @ g[r, part].reshape(len(rows), -1)).reshape(out[r].shape)
    return out


def convolve_input_gradient(
    g: Array, w: Array, shape: tuple[int, ...], stride: Pair, padding: Borders, dilation: Pair
) -> Array:
    """∂L/∂x: the share of pixel u, v of window i, j is Σ_o g[r,n,i,j,o] · w[r,u,v,c,o]."""
    kernel, rows = w.shape[1:3], g.reshape(len(g), -1, g.shape[-1])
    shares = (
        (rows @ w[:, u, v].swapaxes(-1, -2)).reshape(*g.shape[:-1], w.shape[3])
        for u, v in np.ndindex(*kernel)
    )
    return spread(shares, g, (len(w), *shape), kernel, stride, padding, dilation)


def convolve_and_pool(
    x: Array, w: Array, bias: Array, stride: Pair, padding: Borders, dilation: Pair,
    activation: str | None, window: Pair,
) -> tuple[Array, Array]:  # fmt: skip
    """`convolve`, and of its outputs the largest of each window; the windows lie side by side.

    The rest of an image that fills no whole window is left out.

    window   (rows, columns), of 256 pixels at most
    Returns  y (R, N, OH // rows, OW // columns, O); and winners, like y, uint8: which pixel of
             its window was the largest, counted in reading order, the first among equals
    """
    y = convolve(x, w, None, stride, padding, dilation, None)
    first, *others = taps(windows(y, window, window, NO_BORDER, (1, 1)))
    winners, largest = xp_of(y).zeros(first.shape, np.uint8), first
    for number, pixels in enumerate(others, 1):
        winners[pixels > largest] = number
        largest = xp_of(y).maximum(largest, pixels)
    # The largest of all plus the bias is the largest of (each plus the bias); so for f.
    return activate(largest, bias, activation), winners


def unpool(g: Array, winners: Array, window: Pair, size: Pair) -> Array:
    """The way back from `convolve_and_pool`: each gradient goes to the pixel that won.

    winners  like g, uint8, from `convolve_and_pool`
    size     (OH, OW), before the pooling
    Returns  (R, N, OH, OW, O)
    """
    shares = (g * (winners == tap) for tap in range(math.prod(window)))
    shape = (*g.shape[:-3], *size, g.shape[-1])
    return spread(shares, g, shape, window, window, NO_BORDER, (1, 1))


# --- depthwise convolution ----------------------------------------------------------------


def depthwise(
    x: Array, w: Array, bias: Array, stride: Pair, padding: Borders, dilation: Pair,
    activation: str | None,
) -> Array:  # fmt: skip
    """y[r,n,i,j,c] = f( b[r,c] + Σ_uv x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c] )"""
    xp, view = xp_of(x), windows(x, w.shape[1:3], stride, padding, dilation)
    y = xp.empty((len(w), *view.shape[1:4], w.shape[-1]), x.dtype)
    for r in range(len(w)):
        y[r] = xp.einsum("nijuvc,uvc->nijc", view[r % len(view)], w[r])
    return activate(y, bias, activation)


def depthwise_weight_gradient(
    x: Array, g: Array, kernel: Pair, stride: Pair, padding: Borders, dilation: Pair
) -> Array:
    """∂L/∂w[r,u,v,c] = Σ_nij x[r, n, i·s + u·d − p, j·s + v·d − p, c] · g[r,n,i,j,c]"""
    xp, view = xp_of(x), windows(x, kernel, stride, padding, dilation)
    w_gradient = xp.empty((len(g), *view.shape[-3:]), x.dtype)
    for r in range(len(g)):
        of_images = xp.einsum("nijuvc,nijc->nuvc", view[r % len(view)], g[r])
        w_gradient[r] = of_images.sum(axis=0, dtype=np.float64)
    return w_gradient


def depthwise_input_gradient(
    g: Array, w: Array, shape: tuple[int, ...], stride: Pair, padding: Borders, dilation: Pair
) -> Array:
    """∂L/∂x: the share of pixel u, v of window i, j is g[r,n,i,j,c] · w[r,u,v,c]."""
    kernel = w.shape[1:3]
    shares = (g * w[:, None, None, None, u, v] for u, v in np.ndindex(*kernel))
    return spread(shares, g, (len(w), *shape), kernel, stride, padding, dilation)


def separable(
    x: Array, expand: tuple[Array, Array] | None, filters: tuple[Array, Array],
    project: tuple[Array, Array], stride: Pair, padding: Borders,
    activations: Sequence[str | None],
) -> Array:  # fmt: skip
    """Expand each pixel, filter every channel by itself, project each pixel: three convolutions.

    Stride and padding are those of the depthwise convolution in the middle.

    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    filters      weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    steps = convolve, depthwise
    return in_three_steps(steps, x, expand, filters, project, stride, padding, activations)


def in_three_steps(
    steps: tuple[Callable, Callable], x: Array, expand: tuple[Array, Array] | None,
    filters: tuple[Array, Array], project: tuple[Array, Array], stride: Pair, padding: Borders,
    activations: Sequence[str | None],
) -> Array:  # fmt: skip
    """`separable` by the kernels of this file, or of another.

    steps   convolve and depthwise
    x, expand, filters, project, stride, padding, activations   as in `separable`
    """
    convolve, depthwise = steps
    one = (1, 1), NO_BORDER, (1, 1)  # stride, padding and dilation of a 1×1 kernel
    if expand is not None:
        x = convolve(x, expand[0][:, None, None], expand[1], *one, activations[0])
    x = depthwise(x, *filters, stride, padding, (1, 1), activations[1])
    return convolve(x, project[0][:, None, None], project[1], *one, activations[2])


# --- pooling ------------------------------------------------------------------------------


def max_pool(x: Array, window: Pair, stride: Pair, padding: Borders, dilation: Pair) -> Array:
    """y[m,i,j,c] = max_uv x[m, i·s + u·d − p, j·s + v·d − p, c], where the padding is −∞"""
    view = windows(x, window, stride, padding, dilation, -np.inf)
    return functools.reduce(xp_of(x).maximum, taps(view), -np.inf)


def max_pool_gradient(
    g: Array, x: Array, y: Array, window: Pair, stride: Pair, padding: Borders, dilation: Pair
) -> Array:
    """∂L/∂x: window i, j gives g[m,i,j,c] to its largest pixel, the first among equals."""
    view = windows(x, window, stride, padding, dilation, -np.inf)

    def shares():
        is_open = xp_of(y).ones(y.shape, bool)  # nobody has won yet
        for pixels in taps(view):
            won = (pixels == y) & is_open
            is_open &= ~won
            yield g * won

    return spread(shares(), g, x.shape, window, stride, padding, dilation)


def mean_pool(
    x: Array, divisor: Array, window: Pair, stride: Pair, padding: Borders, dilation: Pair
) -> Array:
    """y[m,i,j,c] = Σ_uv x[m, i·s + u·d − p, j·s + v·d − p, c] / divisor[i,j]; the padding is 0

    divisor   (OH, OW, 1), dtype of x: how many pixels count in each window
    """
    return windows(x, window, stride, padding, dilation).sum(axis=(-3, -2)) / divisor


def mean_pool_gradient(
    g: Array, divisor: Array, shape: tuple[int, ...], window: Pair, stride: Pair,
    padding: Borders, dilation: Pair,
) -> Array:  # fmt: skip
    """∂L/∂x: each pixel of window i, j is given g[m,i,j,c] / divisor[i,j].

    divisor   as in `mean_pool`
    """
    shares = itertools.repeat(g / divisor, math.prod(window))
    return spread(shares, g, shape, window, stride, padding, dilation)


# --- batch norm ---------------------------------------------------------------------------


def norm_moments(rows: Array) -> tuple[Array, Array]:
    """The mean over m of x[r,m,c], and the mean over m of ( x[r,m,c] − mean )², in float64.

    rows     x (R, M, C)
    Returns  mean and variance, each (R, 1, C) float64
    """
    mean = rows.mean(axis=1, keepdims=True, dtype=np.float64)
    return mean, ((rows - mean) ** 2).mean(axis=1, keepdims=True)


def norm_factors(
    mean: Array, variance: Array, scale: Array, shift: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """inverse = 1 / √( variance + ε ),   factor = scale · inverse,   offset = shift − mean · factor

    mean, variance, shift   (R, 1, C), all of one dtype
    scale                   like these; or None, for 1
    epsilon                 ε, a number
    Returns                 inverse, factor, offset, each (R, 1, C)
    """
    inverse = 1 / xp_of(variance).sqrt(variance + variance.dtype.type(epsilon))
    factor = inverse if scale is None else scale * inverse
    return inverse, factor, shift - mean * factor


def normalize(
    rows: Array, factor: Array, offset: Array, replicas: int, activation: str | None
) -> Array:
    """y[r,m,c] = f( factor[r,c] · x[r,m,c] + offset[r,c] )

    rows            x (1 | R, M, C)
    factor, offset  (R, 1, C)
    replicas        R
    Returns         (R, M, C)
    """
    return activate(rows * factor + offset, None, activation)


def norm_sums(
    g: Array, rows: Array, center: Array, factor: Array, offset: Array, activation: str | None
) -> tuple[Array, Array, Array]:
    """Σ_m g' and Σ_m g' · (x − center), with g' = g · f', the gradient in front of f.

    g        (R, M, C): the gradient of y = f( factor · x + offset )
    rows     x (1 | R, M, C)
    center, factor, offset   (R, 1, C)
    Returns  what `norm_gradient` takes as g: here g'; and the two sums, (R, 1, C) float64
    """
    g = activate_gradient(g, rows * factor + offset, activation)
    total = g.sum(axis=1, keepdims=True, dtype=np.float64)
    return g, total, (g * (rows - center)).sum(axis=1, keepdims=True, dtype=np.float64)


def norm_slopes(
    total: Array, product: Array, center: Array, inverse: Array, factor: Array, count: int
) -> tuple[Array, Array, Array, Array]:
    """The part of x's gradient that flows through the batch's own moments; and of scale and shift.

    slope = −factor · inverse² · product / M,   constant = −center · slope − factor · total / M

    total, product           from `norm_sums`, (R, 1, C) float64
    center, inverse, factor  (R, 1, C)
    count                    M, how many rows there were
    Returns                  slope, constant, product · inverse, total: (R, 1, C), dtype of factor
    """
    dtype = factor.dtype
    slope = (-factor * inverse**2 * product / count).astype(dtype)
    constant = (-center * slope - factor * total / count).astype(dtype)
    return slope, constant, (product * inverse).astype(dtype), total.astype(dtype)


def norm_gradient(
    g: Array, rows: Array, factor: Array, offset: Array,
    through_moments: tuple[Array, Array] | None, activation: str | None,
) -> Array:  # fmt: skip
    """∂L/∂x = factor · g' + slope · x + constant

    g                from `norm_sums`; it may be written over
    rows, factor, offset, activation   as in `norm_sums`
    through_moments  (slope, constant), each (R, 1, C); or None: both are 0
    Returns          (R, M, C)
    """
    if through_moments is None:
        return g * factor
    slope, constant = through_moments
    return g * factor + (rows * slope + constant)


# --- random numbers, optimizers, moments --------------------------------------------------


def uniform(rng: Generators, shape: tuple[int, ...], like: Array) -> Array:
    """Random float32 in [0, 1), made on the CPU. (`gpu` makes other numbers, on the device.)

    rng      a Generator; or a list of R of them: each of R networks gets what it would get alone
    shape    of the result; its first axis is R
    like     an array on the device where the result should be
    Returns  an array of `shape`
    """
    if isinstance(rng, (list, tuple)):
        values = np.stack([generator.random(shape[1:], np.float32) for generator in rng])
    else:
        values = rng.random(shape, np.float32)
    return xp_of(like).asarray(values)


def step_sgd(
    theta: Array, gradient: Array, velocity: Array, rates: Array, momentum: float, decay: float
) -> None:
    """v ← μ v + g + λ θ,   θ ← θ − ℓ v

    theta      θ, (P,) or (R, P); changed
    gradient   g, like theta
    velocity   v, like theta, changed; or None: μ = 0
    rates      ℓ, (1,) or (R,), on the device
    momentum   μ
    decay      λ
    """
    step = gradient + decay * theta if decay else gradient
    if velocity is not None:
        velocity *= momentum
        velocity += step
        step = velocity
    theta -= rates.reshape(-1, *(1,) * (theta.ndim - 1)) * step


def step_adam(
    theta: Array, gradient: Array, first: Array, second: Array, rates: Array, epsilon: Array,
    beta1: float, beta2: float,
) -> None:  # fmt: skip
    """m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   θ ← θ − ℓ m / (√v + ε)

    theta           θ, (P,) or (R, P); changed
    gradient        g, like theta
    first, second   m and v, like theta; changed
    rates, epsilon  ℓ (1,) or (R,), and ε (1,), on the device; both corrected for the start
    beta1, beta2    β₁ and β₂
    """
    first += (1 - beta1) * (gradient - first)
    second += (1 - beta2) * (gradient * gradient - second)
    rates = rates.reshape(-1, *(1,) * (theta.ndim - 1))
    theta -= rates * first / (xp_of(theta).sqrt(second) + epsilon)


def fold_moments(theta: Array, first: Array, offset: Array, m2: Array, n: Array) -> None:
    """d = θ − θ̄,   θ̄ ← θ̄ + d/n,   nσ² ← nσ² + (n−1)/n d²   (eqs. 2-3), in float64

    theta        θ, of any shape
    first        θ₁, like theta; set where n = 1
    offset, m2   θ̄ − θ₁ and nσ², like theta, float64; changed
    n            (1,) int64 on the device: the number of this update among those that count, from 1;
                 0: this one does not count, nothing changes
    """
    n = int(to_host(n)[0])
    if n == 1:
        first[...], offset[...], m2[...] = theta, 0, 0
    if n > 1:
        d = theta.astype(np.float64) - first - offset
        offset += d / n
        m2 += d * d * ((n - 1) / n)


def fold_average(mean: Array, theta: Array, weight: Array) -> None:
    """m ← m + w (θ − m), in float64

    mean     m, of any shape, float64; changed
    theta    θ, like mean, float32 or float64
    weight   w, (1,) float64 on the device
    """
    mean += weight[0] * (theta - mean)
