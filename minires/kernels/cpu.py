"""The few functions that are worth writing for a CPU: convolution, pooling, batch norm, products.

The arithmetic is in `cpu.c`, which `compiled.py` compiles. Here stand its names, with the shapes
of all arrays, and the results are made. Where there is no C compiler, or where arrays are neither
float32 nor float64, NumPy does the same in `tiled.py`.

Arrays carry their replica axis explicitly here, `x (1 | R, N, H, W, C)`, `w (R, kh, kw, C, O)`:
one network is R = 1, and an input shared by R networks is copied into windows only once.
`minires.convolution` and `minires.batch_norm` take any leading axes.
"""

import functools

import numpy as np

from minires.backend import empty, get_threads
from minires.kernels import compiled, tiled

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}


def call(name, dtype, *arguments):
    """Call a function of `cpu.c`.

    Raises   MemoryError when the system has none left for its intermediate results
    """
    if compiled.functions(dtype)[name](*arguments, get_threads()):
        raise MemoryError(f"{name}: no memory for intermediate results")


def in_c(function):
    """Runs a function of this file, or the one of `tiled.py` where its first array needs that."""
    otherwise = getattr(tiled, function.__name__)

    @functools.wraps(function)
    def choose(array, *rest, **named):
        fast = compiled.functions(array.dtype) is not None
        return (function if fast else otherwise)(array, *rest, **named)

    return choose


# --- written in NumPy still ---------------------------------------------------------------

matmul = tiled.matmul
convolve = tiled.convolve
convolve_and_pool = tiled.convolve_and_pool
convolve_weight_gradient = tiled.convolve_weight_gradient
convolve_input_gradient = tiled.convolve_input_gradient
unpool = tiled.unpool
max_pool = tiled.max_pool
max_pool_gradient = tiled.max_pool_gradient
mean_pool = tiled.mean_pool
mean_pool_gradient = tiled.mean_pool_gradient


# --- batch norm ---------------------------------------------------------------------------

PART = 1 << 16  # values in a part of the rows that one thread takes


def contiguous(array, dtype):
    return np.ascontiguousarray(array, dtype)


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
    """The moments of every channel of a batch, of some rows at a time.

    rows     (R, M, C)
    Returns  how many rows each part has, (parts, 1, 1, 1); their means and their sums of squared
             deviations, (parts, R, 1, C): all float64
    """
    numbers, shape = _rows(len(rows), rows.shape)
    means, squares = np.empty((2, *shape))
    call("norm_moments", rows.dtype, contiguous(rows, rows.dtype), numbers, means, squares)
    ends = np.arange(shape[0] + 1) * rows.shape[1] // shape[0]
    return np.diff(ends).astype(float).reshape(-1, 1, 1, 1), means, squares


@in_c
def normalize(rows, factor, offset, replicas, activation, backwards=False):
    """y = f(factor · x + offset).

    rows            x (1 | R, M, C)
    factor, offset  (R, 1, C)
    backwards       begin with the last rows, which were read last
    Returns         (R, M, C)
    """
    y = empty((replicas, *rows.shape[1:]), rows.dtype)
    numbers, _ = _rows(len(rows), y.shape, activation)
    arrays = (contiguous(array, y.dtype) for array in (rows, factor, offset))
    call("normalize", y.dtype, *arrays, numbers, backwards, y)
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

    g        (R, N, OH, OW, C)
    w        (R, kh, kw, C)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    dtype, (replicas, *kernel, _) = g.dtype, w.shape
    numbers, _ = _depthwise(replicas, replicas, shape, kernel, stride, padding, dilation)
    x_gradient = empty((replicas, *shape), dtype)
    arrays = contiguous(g, dtype), contiguous(w, dtype)
    call("depthwise_input_gradient", dtype, *arrays, numbers, x_gradient)
    return x_gradient


# --- updates of all weights ---------------------------------------------------------------


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
    n            (1,) int64: how many updates count, with this one
    """
    call("fold_moments", theta.dtype, theta, first, offset, m2, theta.size, float(n[0]))
