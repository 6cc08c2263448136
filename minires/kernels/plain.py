"""Every kernel in the words that define it. `cpu` and `gpu` compute the same, faster.

The code uses only functions that NumPy and CuPy share, so it runs on arrays of either. Nothing is
clever: no tiles, no threads, no buffers. Two pictures explain almost all of it.

*A window* is what one output sees: kh × kw pixels of the padded image, `dilation` pixels apart;
from one output to the next the window moves by `stride` pixels. `windows` shows the windows of all
outputs without copying a pixel. A convolution is then one matrix product: every window, written
out as a row, times the kernel, written out as a column.

*A gradient goes the way back.* Each output's gradient is shared among the pixels that the output
saw, and each pixel adds up the shares that it is given: `spread`.

Arrays carry the axis of networks explicitly: x (1 | R, N, H, W, C), w (R, kh, kw, C, O). With 1 in
front of x all R networks see the same images. The letters: r network, n image, i j output pixel,
u v pixel of a window ("tap"), c channel, o output channel; s stride, d dilation, p padding.

    with minires.kernels("plain"):                 # or MINIRES_KERNELS=plain in the environment
        loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
"""

import math

import numpy as np

from minires.arrays import to_host, xp_of

PIECE = 1 << 22  # bytes of copied windows at once: a larger batch is cut, so memory stays bounded

# --- windows ------------------------------------------------------------------------------


def pad(x, padding, value=0):
    """The images x (…, H, W, C) with a border of ((top, bottom), (left, right)) pixels."""
    border = [(0, 0)] * (x.ndim - 3) + [*padding, (0, 0)]
    return xp_of(x).pad(x, border, constant_values=value) if np.any(padding) else x


def output_size(size, kernel, stride, padding, dilation=(1, 1)):
    """How many windows there are in images of (H, W) pixels, in rows and columns: (OH, OW)."""
    return tuple(
        (n + sum(border) - (d * (k - 1) + 1)) // s + 1
        for n, k, s, border, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def windows(padded, kernel, stride, dilation):
    """What every output sees: a view of the padded images, without a copy.

    view[…, i, j, u, v, c] = padded[…, i·s + u·d, j·s + v·d, c]

    padded    (…, H, W, C)
    kernel    (kh, kw); stride and dilation as in `convolve`
    Returns   (…, OH, OW, kh, kw, C)
    """
    *lead, row, pixel, channel = padded.strides
    (sh, sw), (dh, dw) = stride, dilation
    size = output_size(padded.shape[-3:-1], kernel, stride, ((0, 0), (0, 0)), dilation)
    shape = (*padded.shape[:-3], *size, *kernel, padded.shape[-1])
    strides = (*lead, sh * row, sw * pixel, dh * row, dw * pixel, channel)
    return xp_of(padded).lib.stride_tricks.as_strided(padded, shape, strides)


def spread(shares, size, stride, padding, dilation):
    """The way back from windows to pixels: each pixel adds up its shares from all windows.

    x[…, i·s + u·d − p, j·s + v·d − p, c] = Σ shares[…, i, j, u, v, c]

    shares   (…, OH, OW, kh, kw, C)
    size     (H, W) of the images
    Returns  (…, H, W, C)
    """
    (top, bottom), (left, right) = padding
    high, wide = size
    shape = (*shares.shape[:-5], top + high + bottom, left + wide + right, shares.shape[-1])
    padded = xp_of(shares).zeros(shape, shares.dtype)
    view = windows(padded, shares.shape[-3:-1], stride, dilation)
    for u, v in np.ndindex(*shares.shape[-3:-1]):  # within one tap no pixel occurs twice
        pixels = view[..., u, v, :]
        pixels += shares[..., u, v, :]
    return padded[..., top : top + high, left : left + wide, :]


def pieces(images, window_bytes):
    """Cuts a batch: slices of it, each with about `PIECE` bytes of windows, of one image at least.

    images         how many there are
    window_bytes   of one image
    """
    step = max(1, PIECE // max(1, window_bytes))
    return [slice(first, first + step) for first in range(0, images, step)]


def matrix(array, axes):
    """`array` as matrices (first axis, …): its axes but the last `axes` are rows, those columns."""
    rows, columns = array.shape[1 : array.ndim - axes], array.shape[array.ndim - axes :]
    return array.reshape(len(array), math.prod(rows), math.prod(columns))


def activate(y, activation):
    """f(y): y itself for None, max(y, 0) for "relu", min(max(y, 0), 6) for "relu6"."""
    return y if activation is None else y.clip(0, 6 if activation == "relu6" else None)


# --- products and sums --------------------------------------------------------------------


def matmul(a, b, out=None):
    """y[m,l] = Σ_k a[m,k] · b[k,l]

    a        (…, M, K)
    b        (…, K, L)
    out      an array to write the result to, if its shape and type fit
    Returns  (…, M, L)
    """
    product = xp_of(a).matmul(a, b)
    if out is None or (out.shape, out.dtype) != (product.shape, product.dtype):
        return product
    out[...] = product
    return out


def sum_rows(array):
    """Σ_m array[…, m, c], added up in float64: (…, M, C) → (…, C)."""
    if array.dtype.kind != "f":
        return array.sum(axis=-2)
    return array.sum(axis=-2, dtype=np.float64).astype(array.dtype)


# --- convolution --------------------------------------------------------------------------


def convolve(x, w, bias, stride, padding, dilation, activation):
    """y[r,n,i,j,o] = f( b[r,o] + Σ_uvc x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c,o] )

    x           (1 | R, N, H, W, C) float
    w           (R, kh, kw, C, O), dtype of x
    bias        (R, O) or None
    stride      (rows, columns), pixels
    padding     ((top, bottom), (left, right)), pixels of zeros
    dilation    (rows, columns), pixels between taps
    activation  None, "relu" or "relu6"
    Returns     (R, N, OH, OW, O)
    """
    view = windows(pad(x, padding), w.shape[1:3], stride, dilation)
    y = xp_of(x).empty((len(w), *view.shape[1:4], w.shape[-1]), x.dtype)
    for part in pieces(view.shape[1], view[:, :1].nbytes):
        y[:, part] = (matrix(view[:, part], 3) @ matrix(w, 1)).reshape(y[:, part].shape)
    if bias is not None:
        y += bias[:, None, None, None]
    return activate(y, activation)


def convolve_weight_gradient(x, g, kernel, stride, padding, dilation, out=None):
    """∂L/∂w[r,u,v,c,o] = Σ_nij x[r, n, i·s + u·d − p, j·s + v·d − p, c] · g[r,n,i,j,o]

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, O), the gradient of y before bias and activation
    kernel   (kh, kw)
    out      an array (R, kh, kw, C, O) to write the result to
    Returns  (R, kh, kw, C, O)
    """
    view = windows(pad(x, padding), kernel, stride, dilation)
    if out is None:
        out = xp_of(x).empty((len(g), *view.shape[-3:], g.shape[-1]), x.dtype)
    out[...] = 0
    for part in pieces(view.shape[1], view[:, :1].nbytes):
        rows = matrix(view[:, part], 3)
        out += (rows.swapaxes(1, 2) @ matrix(g[:, part], 1)).reshape(out.shape)
    return out


def convolve_input_gradient(g, w, shape, stride, padding, dilation):
    """∂L/∂x: the share of pixel u, v of window i, j is Σ_o g[r,n,i,j,o] · w[r,u,v,c,o].

    g        (R, N, OH, OW, O), the gradient of y before bias and activation
    w        (R, kh, kw, C, O)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    x_gradient = xp_of(g).empty((len(w), *shape), g.dtype)
    per_image = len(w) * math.prod(g.shape[2:4]) * w[0, ..., 0].nbytes
    for part in pieces(len(g[0]), per_image):
        shares = matrix(g[:, part], 1) @ matrix(w, 1).swapaxes(1, 2)
        shares = shares.reshape(*g[:, part].shape[:4], *w.shape[1:4])
        x_gradient[:, part] = spread(shares, shape[1:3], stride, padding, dilation)
    return x_gradient


def convolve_and_pool(x, w, bias, stride, padding, dilation, activation, window):
    """`convolve`, and of its outputs the largest of each window; the windows lie side by side.

    window   (rows, columns), pixels, 256 in all at most; the rest of an image that fills no
             whole window is left out
    Returns  y (R, N, OH // rows, OW // columns, O); and winners, like y, uint8: which pixel of
             its window was the largest, counted in reading order, the first among equals
    """
    y = convolve(x, w, None, stride, padding, dilation, None)
    view = windows(y, window, window, (1, 1))
    largest, winners = view[..., 0, 0, :].copy(), xp_of(y).zeros(view[..., 0, 0, :].shape, np.uint8)
    for number, (u, v) in enumerate(np.ndindex(*window)):
        winners[view[..., u, v, :] > largest] = number
        largest = xp_of(y).maximum(largest, view[..., u, v, :])
    # The largest of all plus the bias is the largest of (each plus the bias); so for f.
    return activate(largest if bias is None else largest + bias[:, None, None, None], activation), (
        winners
    )


def unpool(g, winners, window, size):
    """The way back from `convolve_and_pool`: each gradient goes to the pixel that won.

    g        (R, N, PH, PW, C), the gradient of y before bias and activation
    winners  like g, uint8, from `convolve_and_pool`
    size     (OH, OW), before the pooling
    Returns  (R, N, OH, OW, C)
    """
    taps = xp_of(g).arange(math.prod(window), dtype=np.uint8).reshape(*window, 1)
    shares = g[..., None, None, :] * (winners[..., None, None, :] == taps)
    return spread(shares, size, window, ((0, 0), (0, 0)), (1, 1))


# --- depthwise convolution ----------------------------------------------------------------


def depthwise(x, w, bias, stride, padding, dilation, activation):
    """y[r,n,i,j,c] = f( b[r,c] + Σ_uv x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c] )

    x        (1 | R, N, H, W, C) float
    w        (R, kh, kw, C), dtype of x
    bias     (R, C) or None
    Returns  (R, N, OH, OW, C); stride, padding, dilation and activation as in `convolve`
    """
    view = windows(pad(x, padding), w.shape[1:3], stride, dilation)
    view = xp_of(x).broadcast_to(view, (len(w), *view.shape[1:]))
    y = xp_of(x).einsum("rnijuvc,ruvc->rnijc", view, w)
    if bias is not None:
        y += bias[:, None, None, None]
    return activate(y, activation)


def depthwise_weight_gradient(x, g, kernel, stride, padding, dilation):
    """∂L/∂w[r,u,v,c] = Σ_nij x[r, n, i·s + u·d − p, j·s + v·d − p, c] · g[r,n,i,j,c]

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, C), the gradient of y before bias and activation
    Returns  (R, kh, kw, C)
    """
    view = windows(pad(x, padding), kernel, stride, dilation)
    view = xp_of(x).broadcast_to(view, (len(g), *view.shape[1:]))
    of_images = xp_of(x).einsum("rnijuvc,rnijc->rnuvc", view, g)
    return of_images.sum(axis=1, dtype=np.float64).astype(x.dtype)


def depthwise_input_gradient(g, w, shape, stride, padding, dilation):
    """∂L/∂x: the share of pixel u, v of window i, j is g[r,n,i,j,c] · w[r,u,v,c].

    g        (R, N, OH, OW, C), the gradient of y before bias and activation
    w        (R, kh, kw, C)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    x_gradient = xp_of(g).empty((len(w), *shape), g.dtype)
    for part in pieces(shape[0], g[:, :1].nbytes * math.prod(w.shape[1:3])):
        shares = g[:, part, :, :, None, None] * w[:, None, None, None]
        x_gradient[:, part] = spread(shares, shape[1:3], stride, padding, dilation)
    return x_gradient


def separable(x, expand, filters, project, stride, padding, activations):
    """Expand each pixel, filter every channel by itself, project each pixel: three convolutions.

    x            (1 | R, N, H, W, C) float
    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    filters      weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    stride       (rows, columns), pixels, of the depthwise convolution
    padding      ((top, bottom), (left, right)), pixels of zeros around what it filters
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    steps = convolve, depthwise
    return in_three_steps(steps, x, expand, filters, project, stride, padding, activations)


def in_three_steps(steps, x, expand, filters, project, stride, padding, activations):
    """`separable` by the kernels `steps`: (convolve, depthwise) of this file, or of another."""
    convolve, depthwise = steps
    one = (1, 1), ((0, 0), (0, 0)), (1, 1)  # stride, padding and dilation of a 1×1 kernel
    if expand is not None:
        x = convolve(x, expand[0][:, None, None], expand[1], *one, activations[0])
    x = depthwise(x, *filters, stride, padding, (1, 1), activations[1])
    return convolve(x, project[0][:, None, None], project[1], *one, activations[2])


# --- pooling ------------------------------------------------------------------------------


def max_pool(x, window, stride, padding, dilation):
    """y[m,i,j,c] = max_uv x[m, i·s + u·d − p, j·s + v·d − p, c], where the padding is −∞

    x        (M, H, W, C) float
    window   (rows, columns), pixels; stride, padding and dilation as in `convolve`
    Returns  (M, OH, OW, C)
    """
    return windows(pad(x, padding, -np.inf), window, stride, dilation).max(axis=(-3, -2))


def max_pool_gradient(g, x, y, window, stride, padding, dilation):
    """∂L/∂x: window i, j gives g[m,i,j,c] to its largest pixel, the first among equals.

    g        (M, OH, OW, C), the gradient of y
    x, y     (M, H, W, C) and (M, OH, OW, C)
    Returns  (M, H, W, C)
    """
    view = windows(pad(x, padding, -np.inf), window, stride, dilation)
    shares, waiting = xp_of(g).empty(view.shape, g.dtype), xp_of(g).ones(y.shape, bool)
    for u, v in np.ndindex(*window):
        won = (view[..., u, v, :] == y) & waiting
        shares[..., u, v, :] = g * won
        waiting &= ~won
    return spread(shares, x.shape[1:3], stride, padding, dilation)


def mean_pool(x, divisor, window, stride, padding, dilation):
    """y[m,i,j,c] = Σ_uv x[m, i·s + u·d − p, j·s + v·d − p, c] / divisor[i,j]; the padding is 0

    x        (M, H, W, C) float
    divisor  (OH, OW, 1), dtype of x: how many pixels count in each window
    Returns  (M, OH, OW, C)
    """
    return windows(pad(x, padding), window, stride, dilation).sum(axis=(-3, -2)) / divisor


def mean_pool_gradient(g, divisor, shape, window, stride, padding, dilation):
    """∂L/∂x: each pixel of window i, j is given g[m,i,j,c] / divisor[i,j].

    g        (M, OH, OW, C)
    shape    (M, H, W, C) of x
    Returns  (M, H, W, C)
    """
    shares = (g / divisor)[..., None, None, :]
    shares = xp_of(g).broadcast_to(shares, (*g.shape[:3], *window, g.shape[3]))
    return spread(shares, shape[1:3], stride, padding, dilation)


# --- batch norm ---------------------------------------------------------------------------


def norm_moments(rows):
    """The mean over m of x[r,m,c], and the mean of ( x[r,m,c] − mean )², in float64.

    rows     x (R, M, C)
    Returns  mean and variance, each (R, 1, C) float64
    """
    mean = rows.mean(axis=1, keepdims=True, dtype=np.float64)
    return mean, ((rows - mean) ** 2).mean(axis=1, keepdims=True)


def normalize(rows, factor, offset, replicas, activation):
    """y[r,m,c] = f( factor[r,c] · x[r,m,c] + offset[r,c] )

    rows            x (1 | R, M, C)
    factor, offset  (R, 1, C)
    replicas        R
    Returns         (R, M, C)
    """
    return activate(rows * factor + offset, activation)


def norm_sums(g, y, rows, center, activation):
    """Σ_m g' and Σ_m g' · (x − center), where g' is g where f is not flat, and 0 elsewhere.

    g, y     (R, M, C): the gradient of y = f(…), and y
    rows     x (1 | R, M, C)
    center   (R, 1, C)
    Returns  g', or what else `norm_gradient` is to be given for g; the sums, (R, 1, C) float64
    """
    if activation is not None:
        g = g * ((y > 0) & (y < 6) if activation == "relu6" else y > 0)
    total = g.sum(axis=1, keepdims=True, dtype=np.float64)
    return g, total, (g * (rows - center)).sum(axis=1, keepdims=True, dtype=np.float64)


def norm_gradient(g, y, rows, factor, through_moments, activation):
    """∂L/∂x = factor · g' + slope · x + constant

    g                from `norm_sums`; it may be written over
    y, rows          as there
    factor           (R, 1, C)
    through_moments  (slope, constant), each (R, 1, C); or None: both are 0
    Returns          (R, M, C)
    """
    if through_moments is None:
        return g * factor
    slope, constant = through_moments
    return g * factor + (rows * slope + constant)


# --- random numbers, optimizers, moments --------------------------------------------------


def uniform(rng, shape, like):
    """Random float32 in [0, 1), drawn on the CPU. (`gpu` draws other numbers, on the device.)

    rng      a Generator; or a list of R of them: each of R networks gets what it would get alone
    shape    its first axis is R
    like     an array on the device where the result should be
    Returns  an array of `shape`
    """
    if isinstance(rng, (list, tuple)):
        values = np.stack([generator.random(shape[1:], np.float32) for generator in rng])
    else:
        values = rng.random(shape, np.float32)
    return xp_of(like).asarray(values)


def step_sgd(theta, gradient, velocity, rates, momentum, decay):
    """v ← μ v + g + λ θ,   θ ← θ − ℓ v

    theta      θ, (P,) or (R, P); changed
    gradient   g, like theta
    velocity   v, like theta, changed; or None: μ = 0
    rates      ℓ, (1,) or (R,), on the device
    momentum   μ; decay is λ
    """
    step = gradient + decay * theta if decay else gradient
    if velocity is not None:
        velocity *= momentum
        velocity += step
        step = velocity
    theta -= rates.reshape(-1, *(1,) * (theta.ndim - 1)) * step


def step_adam(theta, gradient, first, second, rates, epsilon, beta1, beta2):
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


def fold_moments(theta, first, offset, m2, n):
    """d = θ − θ̄,   θ̄ ← θ̄ + d/n,   nσ² ← nσ² + (n−1)/n d²   (eqs. 2-3), in float64

    theta        θ, of any shape
    first        θ₁, like theta; set where n = 1
    offset, m2   θ̄ − θ₁ and nσ², like theta, float64; changed
    n            (1,) int64 on the device: how many updates count, with this one; 0: not this one
    """
    n = int(to_host(n)[0])
    if n == 1:
        first[...], offset[...], m2[...] = theta, 0, 0
    if n > 1:
        d = theta.astype(np.float64) - first - offset
        offset += d / n
        m2 += d * d * ((n - 1) / n)
