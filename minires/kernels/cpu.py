"""The few functions that are worth writing for a CPU: convolution, pooling, batch norm, products.

The arithmetic is in `cpu.c`, which `compiled.py` compiles. Here stand its names, with the shapes
of all arrays, and the results are made. Where there is no C compiler, or where arrays are neither
float32 nor float64, NumPy does the same in `plain.py`.

Arrays carry their replica axis explicitly here, `x (1 | R, N, H, W, C)`, `w (R, kh, kw, C, O)`:
one network is R = 1, and an input shared by R networks is copied into windows only once.
`minires.engine.convolution` and `minires.engine.batch_norm` take any leading axes.
"""

import functools
import math

import numpy as np

from minires.arrays import empty, get_threads, within_tile
from minires.kernels import compiled, plain, winograd
from minires.kernels.compiled import Strided
from minires.kernels.sums import merge_moments

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}


def call(name, dtype, *arguments):
    """Call a function of `cpu.c`.

    Raises   MemoryError when the system has none left for its intermediate results
    """
    count = 1 if within_tile() else get_threads()
    if compiled.functions(dtype)[name](*arguments, count):
        raise MemoryError(f"{name}: no memory for intermediate results")


def contiguous(array, dtype):
    return np.ascontiguousarray(array, dtype)


def in_c(function):
    """Runs a function of this file, or the one of `plain.py` where its first array needs that."""
    otherwise = getattr(plain, function.__name__)

    @functools.wraps(function)
    def choose(array, *rest, **named):
        fast = compiled.functions(array.dtype) is not None
        return (function if fast else otherwise)(array, *rest, **named)

    return choose


# --- products -----------------------------------------------------------------------------


@in_c
def matmul(a, b, out=None):
    """The product `a @ b`, cut into tiles for the threads.

    a        (…, M, K)
    b        (…, K, L)
    out      an array to write the result to, if its shape and type fit
    Returns  (…, M, L)
    """
    if b.dtype != a.dtype:
        return plain.matmul(a, b, out)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (rows, inner), columns = a.shape[-2:], b.shape[-1]
    shape = (*lead, rows, columns)
    if out is None or out.shape != shape or out.dtype != a.dtype or not out.flags.c_contiguous:
        out = empty(shape, a.dtype)
    if out.size:
        count = math.prod(lead)
        (a, *a_steps), (b, *b_steps) = (_matrices(matrix, lead) for matrix in (a, b))
        call("matmul", out.dtype, a, b, out, (count, rows, inner, columns, *a_steps, *b_steps))
    return out


def _matrices(array, lead):
    """An array (…, K, L) that C can read as (count, K, L), and its steps."""
    size = array.itemsize
    regular = all(step % size == 0 and step >= 0 for step in array.strides)
    if (array.ndim > 2 and array.shape[:-2] != lead) or array.ndim > 3 or not regular:
        array = np.ascontiguousarray(np.broadcast_to(array, (*lead, *array.shape[-2:])))
        array = array.reshape(math.prod(lead), *array.shape[-2:])
    *first, row, column = (step // size for step in array.strides)
    return Strided(array), *(first or [0]), row, column


# --- convolution --------------------------------------------------------------------------

PIECES_BYTES = 1 << 20  # of points and products in a tile of Winograd's
TILE_BYTES = 1 << 19  # of input and output in a tile: what stays in a processor's own cache


def _windows(sources, replicas, shape, kernel, stride, padding, dilation):
    """The first numbers of `struct windows`; and the size of the output, (OH, OW)."""
    before, after = zip(*padding, strict=True)
    output = tuple(
        (size + sum(border) - (d * (k - 1) + 1)) // s + 1
        for size, border, k, s, d in zip(shape[1:3], padding, kernel, stride, dilation, strict=True)
    )
    numbers = sources, replicas, *shape, *kernel, *stride, *before, *after, *dilation, *output
    return numbers, output


@in_c
def convolve(x, w, bias, stride, padding, dilation, activation):
    """Correlate images with kernels, add the bias and apply the activation.

    y[r,n,i,j,o] = f( b[r,o] + Σ_uvc x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c,o] )

    x           (1 | R, N, H, W, C) float
    w           (R, kh, kw, C, O), dtype of x
    bias        (R, O) or None
    stride      (rows, columns), pixels
    padding     ((top, bottom), (left, right)), pixels of zeros
    dilation    (rows, columns), pixels between taps
    activation  None, "relu" or "relu6": applied to a tile while it is in the cache
    Returns     (R, N, OH, OW, O)
    """
    return _convolve(x, w, bias, stride, padding, dilation, activation)[0]


@in_c
def convolve_and_pool(x, w, bias, stride, padding, dilation, activation, window):
    """The same, and of the outputs only the largest of every window, side by side.

    window      (rows, columns), pixels; what no whole window covers is left out
    Returns     (R, N, OH // rows, OW // columns, O), and winners, for `unpool`
    """
    return _convolve(x, w, bias, stride, padding, dilation, activation, window)


def _convolve(x, w, bias, stride, padding, dilation, activation, window=None, transposed=False):
    """With `transposed`, kernels (R, kh, kw, O, C) flipped: what the gradient needs."""
    dtype, (replicas, *kernel, _, _) = x.dtype, w.shape
    out_channels = w.shape[-2 if transposed else -1]
    numbers, size = _windows(len(x), replicas, x.shape[1:], kernel, stride, padding, dilation)
    pool = window or (1, 1)
    shape = replicas, x.shape[1], size[0] // pool[0], size[1] // pool[1], out_channels
    y = empty(shape, dtype)
    winners = None if window is None else empty(shape, np.uint8)
    arrays = (None if a is None else contiguous(a, dtype) for a in (x, w, bias))
    if winograd.applies(x.shape[-3:], (*kernel, x.shape[-1], out_channels), stride, dilation):
        numbers += out_channels, *pool, ACTIVATIONS[activation], PIECES_BYTES
        matrices = winograd.matrices(kernel[0], dtype)
        call("convolve_winograd", dtype, *arrays, y, winners, numbers, transposed, *matrices)
        return y, winners
    numbers += out_channels, *pool, ACTIVATIONS[activation], TILE_BYTES
    call("convolve", dtype, *arrays, y, winners, numbers, transposed)
    return y, winners


@in_c
def convolve_weight_gradient(x, g, kernel, stride, padding, dilation, out=None):
    """The gradient of `convolve` with respect to w, given that of y.

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, O)
    kernel   (kh, kw)
    out      an array (R, kh, kw, C, O) to write to
    Returns  (R, kh, kw, C, O)
    """
    dtype, replicas, channels, out_channels = x.dtype, len(g), x.shape[-1], g.shape[-1]
    shape = (*kernel, channels, out_channels)
    if out is None or not out.flags.c_contiguous:  # of R networks: a part of each one's vector
        out = empty((replicas, *shape), dtype)
    numbers, _ = _windows(len(x), replicas, x.shape[1:], kernel, stride, padding, dilation)
    numbers += out_channels, 1, 1, 0
    arrays = contiguous(x, dtype), contiguous(g, dtype), out
    if winograd.applies(x.shape[-3:], shape, stride, dilation):
        matrices = winograd.matrices(kernel[0], dtype)
        numbers += (PIECES_BYTES,)
        call("convolve_weight_gradient_winograd", dtype, *arrays, numbers, *matrices)
    else:
        numbers += (TILE_BYTES,)
        call("convolve_weight_gradient", dtype, *arrays, numbers)
    return out


@in_c
def convolve_input_gradient(g, w, shape, stride, padding, dilation):
    """The gradient of `convolve` with respect to x, given that of y.

    With stride 1 it is a convolution again: of g, padded, with the kernels flipped. With a
    larger stride most of that would multiply zeros; instead each window's gradient is
    computed and added where the window lay.

    g        (R, N, OH, OW, O)
    w        (R, kh, kw, C, O)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    kernel = w.shape[1:3]
    border = tuple(
        (d * (k - 1) - before, d * (k - 1) - after)
        for (before, after), k, d in zip(padding, kernel, dilation, strict=True)
    )
    if stride == (1, 1) and min(map(min, border)) >= 0:
        return _convolve(g, w, None, stride, border, dilation, None, transposed=True)[0]
    dtype, x_gradient = g.dtype, empty((len(w), *shape), g.dtype)
    numbers, _ = _windows(len(w), len(w), shape, kernel, stride, padding, dilation)
    numbers += w.shape[-1], 1, 1, 0, 0
    arrays = contiguous(g, dtype), contiguous(w, dtype), x_gradient
    call("convolve_input_gradient", dtype, *arrays, numbers)
    return x_gradient


# --- pooling ------------------------------------------------------------------------------


def _pooling(shape, window, stride, padding, dilation):
    """`struct windows` of pooling images (M, H, W, C); and the shape of what comes of it."""
    numbers, size = _windows(1, 1, shape, window, stride, padding, dilation)
    return (*numbers, shape[-1], 1, 1, 0, 0), (shape[0], *size, shape[-1])


@in_c
def max_pool(x, window, stride, padding, dilation):
    """The largest value of every window; the padding is −∞.

    x        (M, H, W, C) float
    window   (rows, columns), pixels; stride, padding and dilation as in `convolve`
    Returns  (M, OH, OW, C)
    """
    numbers, shape = _pooling(x.shape, window, stride, padding, dilation)
    y = empty(shape, x.dtype)
    call("max_pool", x.dtype, contiguous(x, x.dtype), y, numbers)
    return y


@in_c
def max_pool_gradient(g, x, y, window, stride, padding, dilation):
    """The gradient of `max_pool` with respect to x. Among equals the first of a window wins.

    g        (M, OH, OW, C), the gradient of y
    x, y     (M, H, W, C) and (M, OH, OW, C)
    Returns  (M, H, W, C)
    """
    numbers, _ = _pooling(x.shape, window, stride, padding, dilation)
    x_gradient = empty(x.shape, x.dtype)
    arrays = (contiguous(array, x.dtype) for array in (g, x, y))
    call("max_pool_gradient", x.dtype, *arrays, x_gradient, numbers)
    return x_gradient


@in_c
def mean_pool(x, divisor, window, stride, padding, dilation):
    """The sum of every window over a divisor; the padding is 0.

    x        (M, H, W, C) float
    divisor  (OH, OW, 1), dtype of x: how many pixels count in each window
    Returns  (M, OH, OW, C)
    """
    numbers, shape = _pooling(x.shape, window, stride, padding, dilation)
    y = empty(shape, x.dtype)
    call("mean_pool", x.dtype, contiguous(x, x.dtype), contiguous(divisor, x.dtype), y, numbers)
    return y


@in_c
def mean_pool_gradient(g, divisor, shape, window, stride, padding, dilation):
    """The gradient of `mean_pool` with respect to x.

    g        (M, OH, OW, C)
    shape    (M, H, W, C) of x
    Returns  (M, H, W, C)
    """
    numbers, _ = _pooling(shape, window, stride, padding, dilation)
    x_gradient = empty(shape, g.dtype)
    arrays = contiguous(g, g.dtype), contiguous(divisor, g.dtype), x_gradient
    call("mean_pool_gradient", g.dtype, *arrays, numbers)
    return x_gradient


@in_c
def unpool(g, winners, window, size):
    """The gradient before a max pooling whose windows tile the image: each goes to its winner.

    g        (R, N, PH, PW, C), behind the pooling
    winners  like g, uint8, from `convolve_and_pool`
    size     (OH, OW), before the pooling
    Returns  (R, N, OH, OW, C)
    """
    replicas, images, *pooled, channels = g.shape
    result = empty((replicas, images, *size, channels), g.dtype)
    none = (0, 0), (0, 0)
    numbers, _ = _windows(1, 1, (replicas * images, *size, channels), (1, 1), (1, 1), none, (1, 1))
    numbers = *numbers[:-2], *pooled, channels, *window, 0, 0
    call("unpool", g.dtype, contiguous(g, g.dtype), contiguous(winners, np.uint8), result, numbers)
    return result


# --- batch norm ---------------------------------------------------------------------------

PART = 1 << 16  # values in a part of the rows that one thread takes


def _parts(rows, channels):
    return max(1, min(rows, rows * channels // PART))


def _rows(sources, shape, activation=None, with_moments=False):
    """`struct rows` for (R, M, C) values, of `sources` replicas; and the shape of sums of parts."""
    replicas, rows, channels = shape
    parts = _parts(rows, channels)
    numbers = sources, replicas, rows, channels, parts, ACTIVATIONS[activation], with_moments
    return numbers, (parts, replicas, 1, channels)


@in_c
def norm_moments(rows):
    """The mean and the population variance of every channel of a batch.

    Each part's are computed in two passes, mean first, then squared deviations; parts are merged
    in float64. So a variance much smaller than the mean keeps its digits.

    rows     (R, M, C)
    Returns  mean and variance, each (R, 1, C) float64
    """
    numbers, shape = _rows(len(rows), rows.shape)
    means, squares = np.empty((2, *shape))
    call("norm_moments", rows.dtype, contiguous(rows, rows.dtype), numbers, means, squares)
    ends = np.arange(shape[0] + 1) * rows.shape[1] // shape[0]
    sizes = np.diff(ends).astype(float).reshape(-1, 1, 1, 1)
    return merge_moments(rows.shape[1], sizes, means, squares)


@in_c
def normalize(rows, factor, offset, replicas, activation):
    """y = f(factor · x + offset).

    rows            x (1 | R, M, C)
    factor, offset  (R, 1, C)
    Returns         (R, M, C)
    """
    y = empty((replicas, *rows.shape[1:]), rows.dtype)
    numbers, _ = _rows(len(rows), y.shape, activation)
    arrays = (contiguous(array, y.dtype) for array in (rows, factor, offset))
    call("normalize", y.dtype, *arrays, numbers, True, y)
    return y


@in_c
def norm_sums(g, y, rows, center, activation):
    """Σ g' and Σ g' · (x − center) for every channel, where g' is g where f lets it through.

    g, y     (R, M, C): the gradient of y = f(…), and y
    rows     x (1 | R, M, C)
    center   (R, 1, C)
    Returns  what `norm_gradient` is to be given for g; and two arrays (R, 1, C) float64
    """
    g = contiguous(g, y.dtype)
    numbers, shape = _rows(len(rows), y.shape, activation)
    sums, products = np.empty((2, *shape))
    arrays = (contiguous(array, y.dtype) for array in (g, y, rows, center))
    call("norm_sums", y.dtype, *arrays, numbers, sums, products)
    return g, sums.sum(axis=0), products.sum(axis=0)


@in_c
def norm_gradient(g, y, rows, factor, through_moments, activation):
    """The gradient with respect to x: factor · g', and slope · x + constant if these are given.

    g                from `norm_sums`
    y, rows          as there
    factor           (R, 1, C)
    through_moments  (slope, constant), each (R, 1, C), or None
    Returns          (R, M, C)
    """
    x_gradient = empty(y.shape, y.dtype)
    numbers, _ = _rows(len(rows), y.shape, activation, through_moments is not None)
    slope, constant = through_moments or (factor, factor)
    arrays = (contiguous(array, y.dtype) for array in (g, y, rows, factor, slope, constant))
    call("norm_gradient", y.dtype, *arrays, numbers, x_gradient)
    return x_gradient


@in_c
def sum_rows(array):
    """Sum over the last axis but one: (…, M, C) → (…, C). No sum in float32 grows long."""
    *lead, rows, channels = array.shape
    result = np.empty((*lead, channels), array.dtype)
    if result.size:
        numbers, shape = _rows(0, (result.size // channels, rows, channels))
        source = contiguous(array, array.dtype)
        call("sum_rows", array.dtype, source, numbers, np.empty(shape), result)
    return result


# --- depthwise convolution ----------------------------------------------------------------

WEIGHT_PARTS = 16  # of a batch, whose weight gradients are added last


def _depthwise(sources, replicas, shape, kernel, stride, padding, dilation, activation=None):
    """`struct depthwise`; and the size of the output."""
    images, height, width, channels = shape
    output = tuple(
        (size + sum(border) - (d * (k - 1) + 1)) // s + 1
        for size, border, k, s, d in zip(
            (height, width), padding, kernel, stride, dilation, strict=True
        )
    )
    before = padding[0][0], padding[1][0]
    numbers = (
        sources, replicas, images, height, width, channels, *kernel, *stride, *before, *dilation,
        *output, ACTIVATIONS[activation],
    )  # fmt: skip
    return numbers, output


@in_c
def depthwise(x, w, bias, stride, padding, dilation, activation):
    """Filter every channel with its own kernel, add the bias and apply the activation.

    y[r,n,i,j,c] = f( b[r,c] + Σ_uv x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c] )

    x        (1 | R, N, H, W, C) float
    w        (R, kh, kw, C), dtype of x
    bias     (R, C) or None
    Returns  (R, N, OH, OW, C); stride, padding, dilation and activation as in `convolve`
    """
    dtype, (replicas, *kernel, channels) = x.dtype, w.shape
    numbers, output = _depthwise(
        len(x), replicas, x.shape[1:], kernel, stride, padding, dilation, activation
    )
    y = empty((replicas, x.shape[1], *output, channels), dtype)
    bias = None if bias is None else contiguous(bias, dtype)
    call("depthwise", dtype, contiguous(x, dtype), contiguous(w, dtype), bias, numbers, y)
    return y


@in_c
def depthwise_weight_gradient(x, g, kernel, stride, padding, dilation):
    """The gradient of `depthwise` with respect to w, given that of y.

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, C)
    Returns  (R, kh, kw, C)
    """
    dtype, shape = x.dtype, x.shape[1:]
    numbers, output = _depthwise(len(x), len(g), shape, kernel, stride, padding, dilation)
    parts = max(1, min(WEIGHT_PARTS, shape[0] * output[0]))
    result = np.empty((len(g), *kernel, shape[-1]), dtype)
    partial = np.empty((parts, *result.shape))
    arrays = contiguous(x, dtype), contiguous(g, dtype)
    call("depthwise_weight_gradient", dtype, *arrays, numbers, partial, parts, result)
    return result


@in_c
def depthwise_input_gradient(g, w, shape, stride, padding, dilation):
    """The gradient of `depthwise` with respect to x, given that of y.

    With stride 1 it is a depthwise convolution again: of g, with the kernels flipped.

    g        (R, N, OH, OW, C)
    w        (R, kh, kw, C)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    if stride == (1, 1):
        border = tuple(
            (d * (k - 1) - before, d * (k - 1) - after)
            for (before, after), k, d in zip(padding, w.shape[1:3], dilation, strict=True)
        )
        return depthwise(g, w[:, ::-1, ::-1], None, stride, border, dilation, None)
    dtype, (replicas, *kernel, _) = g.dtype, w.shape
    numbers, _ = _depthwise(replicas, replicas, shape, kernel, stride, padding, dilation)
    x_gradient = empty((replicas, *shape), dtype)
    arrays = contiguous(g, dtype), contiguous(w, dtype)
    call("depthwise_input_gradient", dtype, *arrays, numbers, x_gradient)
    return x_gradient


# --- separable convolutions at prediction -------------------------------------------------

WIDE_BYTES = 1 << 20  # of wide values in a tile: what stays in a processor's own cache


@in_c
def separable(x, expand, filters, project, stride, padding, activations):
    """Expand each pixel, filter every channel by itself, project each pixel.

    x            (1 | R, N, H, W, C) float
    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    filters      weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    stride       (rows, columns), pixels, of the depthwise convolution
    padding      ((top, bottom), (left, right)), pixels of zeros around what it filters
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    dtype = x.dtype
    replicas, *kernel, wide = filters[0].shape
    settings, output = _depthwise(len(x), replicas, x.shape[1:], kernel, stride, padding, (1, 1))
    y = empty((replicas, x.shape[1], *output, project[0].shape[-1]), dtype)
    arrays = [contiguous(a, dtype) for a in (*(expand or (x, x)), *filters, *project)]
    if expand is None:
        arrays[:2] = None, None
    before = padding[0][0], padding[1][0]
    numbers = (
        *settings[:6], wide, y.shape[-1], expand is not None, *kernel, *stride, *before, *output,
        *(ACTIVATIONS[activation] for activation in activations), WIDE_BYTES,
    )  # fmt: skip
    call("separable", dtype, contiguous(x, dtype), *arrays, numbers, y)
    return y


# --- updates of all weights ---------------------------------------------------------------

uniform = plain.uniform


@in_c
def step_sgd(theta, gradient, velocity, rates, momentum, decay):
    """One step of `SGD`: v ← μ v + g + λ θ,  θ ← θ − ℓ v.

    theta      (P,) or (R, P), contiguous; changed
    gradient   like theta
    velocity   like theta, changed; or None without momentum
    rates      (1,) or (R,): ℓ
    """
    rates = contiguous(rates, np.float64)
    sizes = theta.size, theta.size // rates.size
    arrays = theta, gradient, velocity, rates
    call("step_sgd", theta.dtype, *arrays, *sizes, float(momentum), float(decay))


@in_c
def step_adam(theta, gradient, first, second, rates, epsilon, beta1, beta2):
    """One step of `Adam`: m and v follow g and g²,  θ ← θ − ℓ m / (√v + ε).

    theta           (P,) or (R, P), contiguous; changed
    gradient        like theta
    first, second   m and v, like theta; changed
    rates, epsilon  (1,) or (R,), and (1,): ℓ and ε, corrected for the start
    """
    rates = contiguous(rates, np.float64)
    sizes = theta.size, theta.size // rates.size
    arrays = theta, gradient, first, second, rates
    call("step_adam", theta.dtype, *arrays, *sizes, float(epsilon[0]), 1 - beta1, 1 - beta2)


@in_c
def fold_moments(theta, first, offset, m2, n):
    """One update of `Moments` (eqs. 2-3), in double: reads and writes 40 bytes a float32 weight.

    theta        the weights, contiguous
    first        like theta; offset and m2 like it in float64: changed
    n            (1,) int64: how many updates count, with this one; 0: not this one
    """
    if n[0] == 1:
        first[...], offset[...], m2[...] = theta, 0, 0
    if n[0] > 1:
        numbers = theta.size, float(n[0])
        call("fold_moments", theta.dtype, theta, first, offset, m2, *numbers)
