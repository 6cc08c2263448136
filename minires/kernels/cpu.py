"""The kernels of `plain.py`, made fast for a CPU: same names, same arguments, same results.

The arithmetic is in `cpu.c`, which `compiled.py` compiles. This file allocates the results and
passes the arrays' shapes to C. Where there is no C compiler, or where arrays are neither
float32 nor float64, NumPy does the same in `plain.py`.

Arrays always have a replica axis here, `x (1 | R, N, H, W, C)`, `w (R, kh, kw, C, O)`:
one network is R = 1, and an input shared by R networks is copied into windows only once.
`minires.engine.convolution` and `minires.engine.batch_norm` take any leading axes.
"""

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.arrays import get_threads
from minires.kernels import compiled, plain, winograd
from minires.kernels.compiled import Strided
from minires.kernels.memory import empty

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}


def call(name: str, dtype: np.dtype, *arguments: Any) -> None:
    """Call a function of `cpu.c`.

    name        of the function
    dtype       float32 or float64: which of the two libraries
    arguments   all but the last, which is the number of threads
    Raises      MemoryError when the system has none left for its intermediate results; ValueError
                when the result's array is read-only
    """
    try:
        failed = compiled.functions(dtype)[name](*arguments, get_threads())
    except ctypes.ArgumentError as error:
        # ctypes reports whatever ends the conversion of an argument as this error, Ctrl-C too.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        if compiled.READ_ONLY in str(error):
            raise ValueError(f"{name}: {compiled.READ_ONLY}") from None
        raise
    if failed:
        raise MemoryError(f"{name}: no memory for intermediate results")


def contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in C order, copied only if it is not.

    array   NumPy
    dtype   of the result
    """
    return np.ascontiguousarray(array, dtype)


def in_c(function: Callable) -> Callable:
    """Make a kernel that falls back to `plain.py` if C cannot take its first array.

    function   of this file, with the name and the arguments of one in `plain.py`
    """
    otherwise = getattr(plain, function.__name__)

    @functools.wraps(function)
    def choose(array, *rest, **named):
        fast = compiled.functions(array.dtype) is not None
        return (function if fast else otherwise)(array, *rest, **named)

    return choose


# --- products -----------------------------------------------------------------------------


@in_c
def matmul(a, b, out=None):
    """As `plain.matmul`: in tiles, one for each thread at a time."""
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


@in_c
def activate_gradient(g, y, activation):
    """As `plain.activate_gradient`."""
    if activation is None:
        return g
    result = empty(y.shape, y.dtype)
    arrays = contiguous(g, y.dtype), contiguous(y, y.dtype)
    call("activate_gradient", y.dtype, *arrays, y.size, ACTIVATIONS[activation], result)
    return result


# --- convolution --------------------------------------------------------------------------

# What fits into a core's own cache: bytes of points and products in a tile of Winograd's method,
# and bytes of input and output in a tile of any other convolution.
PIECES_BYTES, TILE_BYTES = 1 << 20, 1 << 19


def _windows(sources, replicas, shape, kernel, stride, padding, dilation):
    """The first numbers of `struct windows`; and the size of the output, (OH, OW)."""
    padded = math.prod(n + sum(border) for n, border in zip(shape[1:3], padding, strict=True))
    if padded * shape[0] * shape[3] >= 1 << 56:  # whole numbers of 64 bits could not count it
        raise MemoryError(f"images {shape[1:]} with a border of {padding} fit into no memory")
    before, after = zip(*padding, strict=True)
    output = plain.output_size(shape[1:3], kernel, stride, padding, dilation)
    numbers = sources, replicas, *shape, *kernel, *stride, *before, *after, *dilation, *output
    return numbers, output


@in_c
def convolve(x, w, bias, stride, padding, dilation, activation):
    """As `plain.convolve`: each tile is finished while it is in the cache."""
    return _convolve(x, w, bias, stride, padding, dilation, activation)[0]


@in_c
def convolve_and_pool(x, w, bias, stride, padding, dilation, activation, window):
    """As `plain.convolve_and_pool`: each tile is pooled while it is in the cache."""
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
    if not y.size:
        return y, winners
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
    """As `plain.convolve_weight_gradient`: in tiles, by Winograd's transforms where these pay."""
    dtype, replicas, channels, out_channels = x.dtype, len(g), x.shape[-1], g.shape[-1]
    shape = (*kernel, channels, out_channels)
    if out is None or not out.flags.c_contiguous:  # of R networks: a part of each one's vector
        out = empty((replicas, *shape), dtype)
    numbers, size = _windows(len(x), replicas, x.shape[1:], kernel, stride, padding, dilation)
    if min(size) < 1:
        out[...] = 0
        return out
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
    """As `plain.convolve_input_gradient`.

    With stride 1 it is a convolution again: of g, padded, with the kernels flipped. With a larger
    stride most of these products would be with zeros. So each window's gradient is computed and
    added to the pixels that the window saw.
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
    """`struct windows` for pooling images (M, H, W, C); and the shape of the result."""
    numbers, size = _windows(1, 1, shape, window, stride, padding, dilation)
    return (*numbers, shape[-1], 1, 1, 0, 0), (shape[0], *size, shape[-1])


@in_c
def max_pool(x, window, stride, padding, dilation):
    """As `plain.max_pool`."""
    numbers, shape = _pooling(x.shape, window, stride, padding, dilation)
    y = empty(shape, x.dtype)
    call("max_pool", x.dtype, contiguous(x, x.dtype), y, numbers)
    return y


@in_c
def max_pool_gradient(g, x, y, window, stride, padding, dilation):
    """As `plain.max_pool_gradient`."""
    numbers, _ = _pooling(x.shape, window, stride, padding, dilation)
    x_gradient = empty(x.shape, x.dtype)
    arrays = (contiguous(array, x.dtype) for array in (g, x, y))
    call("max_pool_gradient", x.dtype, *arrays, x_gradient, numbers)
    return x_gradient


@in_c
def mean_pool(x, divisor, window, stride, padding, dilation):
    """As `plain.mean_pool`."""
    numbers, shape = _pooling(x.shape, window, stride, padding, dilation)
    y = empty(shape, x.dtype)
    call("mean_pool", x.dtype, contiguous(x, x.dtype), contiguous(divisor, x.dtype), y, numbers)
    return y


@in_c
def mean_pool_gradient(g, divisor, shape, window, stride, padding, dilation):
    """As `plain.mean_pool_gradient`."""
    numbers, _ = _pooling(shape, window, stride, padding, dilation)
    x_gradient = empty(shape, g.dtype)
    arrays = contiguous(g, g.dtype), contiguous(divisor, g.dtype), x_gradient
    call("mean_pool_gradient", g.dtype, *arrays, numbers)
    return x_gradient


@in_c
def unpool(g, winners, window, size):
    """As `plain.unpool`."""
    replicas, images, *pooled, channels = g.shape
    result = empty((replicas, images, *size, channels), g.dtype)
    none = (0, 0), (0, 0)
    numbers, _ = _windows(1, 1, (replicas * images, *size, channels), (1, 1), (1, 1), none, (1, 1))
    numbers = *numbers[:-2], *pooled, channels, *window, 0, 0
    call("unpool", g.dtype, contiguous(g, g.dtype), contiguous(winners, np.uint8), result, numbers)
    return result


# --- batch norm ---------------------------------------------------------------------------

PART = 1 << 16  # values in one part of the rows; a thread takes one part at a time


def _rows(sources, shape, activation=None, with_moments=False):
    """`struct rows` for (R, M, C) values, of `sources` replicas."""
    replicas, rows, channels = shape
    parts = max(1, min(rows, rows * channels // PART))
    return sources, replicas, rows, channels, parts, ACTIVATIONS[activation], with_moments


def _sums(numbers, count=2):
    """Arrays for sums over the rows: (count, parts, R, 1, C) of the parts, (count, R, 1, C)."""
    _, replicas, _, channels, parts, *_ = numbers
    shape = replicas, 1, channels
    return np.empty((count, parts, *shape)), np.empty((count, *shape))


@in_c
def norm_moments(rows):
    """As `plain.norm_moments`: in parts, whose results are merged in float64.

    Each part takes two passes: first its mean, then the squared deviations from it. So a variance
    that is much smaller than the mean keeps its digits.
    """
    numbers = _rows(len(rows), rows.shape)
    partial, (mean, variance) = _sums(numbers)
    source = contiguous(rows, rows.dtype)
    call("norm_moments", rows.dtype, source, numbers, *partial, mean, variance)
    return mean, variance


# A number for each channel: nothing to make faster.
norm_factors, norm_slopes = plain.norm_factors, plain.norm_slopes


@in_c
def normalize(rows, factor, offset, replicas, activation):
    """As `plain.normalize`."""
    y = empty((replicas, *rows.shape[1:]), rows.dtype)
    numbers = _rows(len(rows), y.shape, activation)
    arrays = (contiguous(array, y.dtype) for array in (rows, factor, offset))
    call("normalize", y.dtype, *arrays, numbers, True, y)
    return y


@in_c
def norm_sums(g, rows, center, factor, offset, activation):
    """As `plain.norm_sums`, but returns g, not g': each pass computes g' again."""
    dtype = rows.dtype
    g = contiguous(g, dtype)
    numbers = _rows(len(rows), g.shape, activation)
    partial, (total, product) = _sums(numbers)
    arrays = (contiguous(array, dtype) for array in (g, rows, center, factor, offset))
    call("norm_sums", dtype, *arrays, numbers, *partial, total, product)
    return g, total, product


@in_c
def norm_gradient(g, rows, factor, offset, through_moments, activation):
    """As `plain.norm_gradient`."""
    dtype, x_gradient = rows.dtype, empty(g.shape, rows.dtype)
    numbers = _rows(len(rows), g.shape, activation, through_moments is not None)
    slope, constant = through_moments or (factor, factor)
    arrays = (contiguous(array, dtype) for array in (g, rows, factor, offset, slope, constant))
    call("norm_gradient", dtype, *arrays, numbers, x_gradient)
    return x_gradient


@in_c
def sum_rows(array):
    """As `plain.sum_rows`: in parts, so that no sum in float32 has many terms."""
    *lead, rows, channels = array.shape
    if not math.prod(lead) * channels:
        return np.empty((*lead, channels), array.dtype)
    numbers = _rows(0, (math.prod(lead), rows, channels))
    (partial,), (sums,) = _sums(numbers, 1)
    call("sum_rows", array.dtype, contiguous(array, array.dtype), numbers, partial, sums)
    return sums.reshape(*lead, channels).astype(array.dtype)


# --- depthwise convolution ----------------------------------------------------------------

WEIGHT_PARTS = 16  # parts of a batch, at most; their weight gradients are added at the end


def _depthwise(sources, replicas, shape, kernel, stride, padding, dilation, activation=None):
    """`struct depthwise`; and the size of the output."""
    images, height, width, channels = shape
    output = plain.output_size((height, width), kernel, stride, padding, dilation)
    before = padding[0][0], padding[1][0]
    numbers = (
        sources, replicas, images, height, width, channels, *kernel, *stride, *before, *dilation,
        *output, ACTIVATIONS[activation],
    )  # fmt: skip
    return numbers, output


@in_c
def depthwise(x, w, bias, stride, padding, dilation, activation):
    """As `plain.depthwise`."""
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
    """As `plain.depthwise_weight_gradient`: in parts of the batch, added last."""
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
    """As `plain.depthwise_input_gradient`: with stride 1 by `depthwise`, kernels flipped."""
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

WIDE_BYTES = 1 << 20  # bytes of expanded values in a tile: what fits into a core's own cache


@in_c
def separable(x, expand, filters, project, stride, padding, activations):
    """As `plain.separable`: a tile goes through all three while it is in the cache."""
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
    """As `plain.step_sgd`: one pass over θ, which must be contiguous."""
    rates = contiguous(rates, np.float64)
    sizes = theta.size, theta.size // rates.size
    arrays = theta, gradient, velocity, rates
    call("step_sgd", theta.dtype, *arrays, *sizes, float(momentum), float(decay))


@in_c
def step_adam(theta, gradient, first, second, rates, epsilon, beta1, beta2):
    """As `plain.step_adam`: one pass over θ, which must be contiguous."""
    rates = contiguous(rates, np.float64)
    sizes = theta.size, theta.size // rates.size
    arrays = theta, gradient, first, second, rates
    call("step_adam", theta.dtype, *arrays, *sizes, float(epsilon[0]), 1 - beta1, 1 - beta2)


@in_c
def fold_moments(theta, first, offset, m2, n):
    """As `plain.fold_moments`: one pass, of 40 bytes per float32 weight. θ must be contiguous."""
    if n[0] == 1:
        first[...], offset[...], m2[...] = theta, 0, 0
    if n[0] > 1:
        numbers = theta.size, float(n[0])
        call("fold_moments", theta.dtype, theta, first, offset, m2, *numbers)


def fold_average(mean, theta, weight):
    """As `plain.fold_average`: one pass, of 20 bytes per float32 weight; both contiguous."""
    if compiled.functions(theta.dtype) is None:
        return plain.fold_average(mean, theta, weight)
    return call("fold_average", theta.dtype, mean, theta, theta.size, float(weight[0]))
