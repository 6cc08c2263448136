"""Convolution and pooling as differentiable functions of images (…, N, H, W, C).

This file checks the arguments and arranges the leading axes; the arithmetic is in `kernels/`.
For one network with `w (kh, kw, C, O)` all leading axes are one long batch. R networks with
`w (R, kh, kw, C, O)` see the same images `(N, H, W, C)`, or each its own `(R, N, H, W, C)`.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from minires.arrays import Array, xp_of
from minires.engine.autodiff import op, takes_out
from minires.kernels import kernels_of
from minires.kernels.plain import Borders, Pair, output_size, windows
from minires.kernels.sums import sum_rows

Pixels = int | Sequence[int]  # one number, or (rows, columns)
Padding = str | int | Sequence  # see `borders`
MOST_POOLED = 256  # pixels of a window, at most: the place of the largest is kept in one byte

# --- settings -----------------------------------------------------------------------------


def pair(value: Pixels, name: str = "stride") -> Pair:
    """One or two whole numbers as (rows, columns).

    value    a number or (rows, columns), from 1 up, pixels
    name     of the setting, for the message
    Returns  (rows, columns)
    Raises   ValueError for anything else
    """
    numbers = value
    if not isinstance(value, tuple):
        numbers = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(numbers) != 2 or any(int(n) != n or n < 1 for n in numbers):
        raise ValueError(f"{name} is {value!r}, expected one or two whole numbers from 1 up")
    return int(numbers[0]), int(numbers[1])


def borders(
    padding: Padding, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> Borders:  # fmt: skip
    """The padding, given in any form, as ((top, bottom), (left, right)).

    padding  pixels: a number for all four sides; (rows, columns);
             ((top, bottom), (left, right)); "valid" for none; or "same": as little as gives
             ⌈size / stride⌉ outputs, the odd pixel at the end, as in TensorFlow
    size     (H, W) of the images
    kernel, stride, dilation   (rows, columns) each, pixels
    Returns  ((top, bottom), (left, right)), pixels
    Raises   ValueError for another form
    """
    if isinstance(padding, str):
        if padding.lower() == "valid":
            return (0, 0), (0, 0)
        if padding.lower() != "same":
            raise ValueError(f"padding is {padding!r}, expected numbers, 'same' or 'valid'")
        total = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        return tuple((t // 2, t - t // 2) for t in total)
    sides = np.asarray(padding)
    if sides.shape == (2,):
        sides = np.stack([sides, sides], axis=1)
    if sides.shape not in ((), (2, 2)) or sides.dtype.kind not in "iu" or sides.min() < 0:
        raise ValueError(
            f"padding is {padding!r}, expected a number, (rows, columns), "
            "((top, bottom), (left, right)), 'same' or 'valid'"
        )
    return tuple(tuple(side) for side in np.broadcast_to(sides, (2, 2)).tolist())


def _settings(name, x, kernel, stride, padding, dilation):
    if x.ndim < 4:
        raise ValueError(f"{name}: x is {x.shape}, expected (…, N, H, W, C)")
    stride, dilation = pair(stride), pair(dilation, "dilation")
    size = x.shape[-3:-1]
    padding = borders(padding, size, kernel, stride, dilation)
    if min(output_size(size, kernel, stride, padding, dilation)) < 1:
        raise ValueError(
            f"{name}: a window of {kernel[0]}×{kernel[1]} pixels, dilation {dilation}, exceeds "
            f"the image of {size[0]}×{size[1]} with padding {padding} (x {x.shape})"
        )
    return stride, padding, dilation


def _arrange(name, axes, x, w, b, stride, padding, dilation, activation):
    """Check the arguments of a convolution; x, w and b with one axis of networks in front.

    axes     how many axes of w are one network's own: 4, or 3 of a depthwise convolution
    Returns  x (1 | R, N, H, W, C), w (R, kh, kw, …), b (R, channels) or None;
             (stride, padding, dilation); the axes of the result before its pixels
    """
    if x.dtype != w.dtype:
        raise ValueError(f"{name}: x is {x.dtype}, w is {w.dtype}: convert one of them")
    if b is not None and b.dtype != x.dtype:
        raise ValueError(f"{name}: x is {x.dtype}, b is {b.dtype}: convert one of them")
    lead, own = w.shape[:-axes], w.shape[-axes:]
    if b is not None and b.shape != (*lead, own[-1]):
        raise ValueError(f"{name}: b is {b.shape}, w {w.shape} needs {(*lead, own[-1])}")
    if activation not in (None, "relu", "relu6"):
        raise ValueError(f"{name}: activation is {activation!r}, expected None, 'relu' or 'relu6'")
    settings = _settings(name, x, own[:2], stride, padding, dilation)
    if lead and x.ndim > 4 and x.shape[:-4] != lead:
        raise ValueError(
            f"{name}: x {x.shape} has leading axes {x.shape[:-4]}, w {w.shape} has {lead}: "
            "they must be equal, or x must have none"
        )
    bias = None if b is None else b.reshape(-1, own[-1])
    outer = (*lead, x.shape[-4]) if lead else x.shape[:-3]  # of the result
    images = x.shape[-4] if lead else math.prod(outer)  # one network's
    source = x.reshape(-1 if x.size else 1, images, *x.shape[-3:])
    return source, w.reshape(-1, *own), bias, settings, outer


# --- convolution --------------------------------------------------------------------------


@op
def conv2d(
    x: Array, w: Array, b: Array = None, *, stride: Pixels = 1, padding: Padding = 0,
    dilation: Pixels = 1, activation: str | None = None, pool: Pixels | None = None,
) -> Array:  # fmt: skip
    """Correlate images with kernels, add a bias, apply an activation; with `pool`, max pooling.

    y[n,i,j,o] = f( b[o] + Σ_uvc x[n, i·s + u·d − p, j·s + v·d − p, c] · w[u,v,c,o] )

    x           (…, N, H, W, C) float
    w           (kh, kw, C, O) or (…, kh, kw, C, O), dtype of x
    b           (O,) or (…, O), or None
    stride      pixels: a number or (rows, columns)
    padding     pixels: a number, (rows, columns), ((top, bottom), (left, right)), "same", "valid"
    dilation    pixels between taps: a number or (rows, columns)
    activation  None, "relu" or "relu6"
    pool        None, or the window (rows, columns) of a max pooling in the same pass, of at most
                256 pixels
    Returns     (…, N, OH, OW, O); with pooling (…, N, OH // rows, OW // columns, O)
    Raises      ValueError when shapes disagree or a kernel or window exceeds its image
    """
    if w.ndim < 4 or x.shape[-1] != w.shape[-2]:
        raise ValueError(
            f"conv2d: x has {x.shape[-1]} channels, w expects {w.shape[-2] if w.ndim > 1 else '?'}"
            f" (x {x.shape}, w {w.shape})"
        )
    source, weights, bias, settings, outer = _arrange(
        "conv2d", 4, x, w, b, stride, padding, dilation, activation
    )
    kernels, kernel = kernels_of(x), weights.shape[1:3]
    if pool is None:
        y = kernels.convolve(source, weights, bias, *settings, activation)
    else:
        stride, padding, dilation = settings
        size = output_size(x.shape[-3:-1], kernel, stride, padding, dilation)
        pool = pair(pool, "pool")
        if pool[0] * pool[1] > MOST_POOLED:
            raise ValueError(
                f"conv2d: pool {pool} has more than {MOST_POOLED} pixels: use max_pool after it"
            )
        if size[0] < pool[0] or size[1] < pool[1]:
            raise ValueError(
                f"conv2d: pool {pool} exceeds the outputs of {size[0]}×{size[1]} (x {x.shape})"
            )
        y, winners = kernels.convolve_and_pool(source, weights, bias, *settings, activation, pool)

    def first(g):
        """The gradients of y before its activation, and before its pooling."""
        g = kernels.activate_gradient(g.reshape(y.shape), y, activation)
        return g, g if pool is None else kernels.unpool(g, winners, pool, size)

    def x_gradient(gradients):
        shape = source.shape[1:]
        gradient = kernels.convolve_input_gradient(gradients[1], weights, shape, *settings)
        return gradient.reshape(*outer, *shape[1:])

    @takes_out
    def w_gradient(gradients, out=None):
        out = None if out is None else out.reshape(weights.shape)
        gradient = kernels.convolve_weight_gradient(source, gradients[1], kernel, *settings, out)
        return gradient.reshape(w.shape)

    def b_gradient(gradients):
        return sum_rows(gradients[0].reshape(len(y), -1, y.shape[-1])).reshape(b.shape)

    return y.reshape(*outer, *y.shape[-3:]), (x_gradient, w_gradient, b_gradient), first


@op
def depthwise_conv2d(
    x: Array, w: Array, b: Array = None, *, stride: Pixels = 1, padding: Padding = 0,
    dilation: Pixels = 1, activation: str | None = None,
) -> Array:  # fmt: skip
    """Filter every channel with its own kernel, add a bias, apply an activation.

    y[n,i,j,c] = f( b[c] + Σ_uv x[n, i·s + u·d − p, j·s + v·d − p, c] · w[u,v,c] )

    x        (…, N, H, W, C) float
    w        (kh, kw, C) or (…, kh, kw, C), dtype of x
    b        (C,) or (…, C), or None
    stride, padding, dilation, activation   as in `conv2d`
    Returns  (…, N, OH, OW, C)
    Raises   ValueError when shapes disagree or the kernel exceeds the padded image
    Source   Howard et al. 2017, arXiv:1704.04861, §3.1
    """
    if w.ndim < 3 or x.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"depthwise_conv2d: x has {x.shape[-1]} channels, w has {w.shape[-1]} "
            f"(x {x.shape}, w {w.shape}): one kernel is needed for each channel"
        )
    source, weights, bias, settings, outer = _arrange(
        "depthwise_conv2d", 3, x, w, b, stride, padding, dilation, activation
    )
    kernels, kernel = kernels_of(x), weights.shape[1:3]
    y = kernels.depthwise(source, weights, bias, *settings, activation)

    def first(g):
        return kernels.activate_gradient(g.reshape(y.shape), y, activation)

    def x_gradient(g):
        gradient = kernels.depthwise_input_gradient(g, weights, source.shape[1:], *settings)
        return gradient.reshape(*outer, *x.shape[-3:])

    def w_gradient(g):
        return kernels.depthwise_weight_gradient(source, g, kernel, *settings).reshape(w.shape)

    def b_gradient(g):
        return sum_rows(g.reshape(len(y), -1, y.shape[-1])).reshape(b.shape)

    return y.reshape(*outer, *y.shape[-3:]), (x_gradient, w_gradient, b_gradient), first


# --- pooling ------------------------------------------------------------------------------


@op
def max_pool(
    x: Array, *, window: Pixels = 2, stride: Pixels | None = None, padding: Padding = 0,
    dilation: Pixels = 1,
) -> Array:  # fmt: skip
    """The largest value of every window; the padding never wins.

    Among equal values the first in reading order takes the gradient.

    x         (…, N, H, W, C) float
    window    pixels: a number or (rows, columns)
    stride    pixels; the window's size without it
    padding   as in `conv2d`
    dilation  as in `conv2d`
    Returns   (…, N, OH, OW, C)
    Raises    ValueError when a window exceeds the padded image, or sees nothing but padding
    """
    window = pair(window, "window")
    stride = window if stride is None else stride
    settings = _settings("max_pool", x, window, stride, padding, dilation)
    padding = settings[1]
    if np.any(padding) and not pixels_counted(x.shape[-3:-1], window, *settings, False).all():
        raise ValueError(
            f"max_pool: a window of {window[0]}×{window[1]} pixels sees nothing but the padding "
            f"{padding} (x {x.shape}): give less padding, or a larger window"
        )
    kernels = kernels_of(x)
    source = x.reshape(-1, *x.shape[-3:])
    y = kernels.max_pool(source, window, *settings)

    def pullback(g):
        g = g.reshape(y.shape)
        return kernels.max_pool_gradient(g, source, y, window, *settings).reshape(x.shape)

    return y.reshape(*x.shape[:-3], *y.shape[-3:]), (pullback,)


@op
def mean_pool(
    x: Array, *, window: Pixels = 2, stride: Pixels | None = None, padding: Padding = 0,
    dilation: Pixels = 1, count_padding: bool = False,
) -> Array:  # fmt: skip
    """The mean of every window.

    x              (…, N, H, W, C) float
    window         pixels: a number or (rows, columns)
    stride         pixels; the window's size without it
    padding        as in `conv2d`
    dilation       as in `conv2d`
    count_padding  whether pixels of the padding count in the mean, as zeros
    Returns        (…, N, OH, OW, C)
    Raises         ValueError when a window exceeds the padded image
    """
    window = pair(window, "window")
    stride = window if stride is None else stride
    stride, padding, dilation = _settings("mean_pool", x, window, stride, padding, dilation)
    counted = x.shape[-3:-1], window, stride, padding, dilation, count_padding
    divisor = _divisor(xp_of(x), x.dtype, counted)
    kernels = kernels_of(x)
    source = x.reshape(-1, *x.shape[-3:])
    settings = divisor, window, stride, padding, dilation
    y = kernels.mean_pool(source, *settings)

    def pullback(g):
        g = g.reshape(y.shape)
        divisor, *rest = settings
        return kernels.mean_pool_gradient(g, divisor, source.shape, *rest).reshape(x.shape)

    return y.reshape(*x.shape[:-3], *y.shape[-3:]), (pullback,)


@functools.cache
def _divisor(xp, dtype, counted):
    """The numbers that the windows' sums are divided by: a few kilobytes for each kind of pooling.

    They stay on the device as long as the program: a recorded step cannot send them, and it
    remembers their address.
    """
    count = pixels_counted(*counted)
    return xp.asarray(np.maximum(count, 1), dtype)  # the mean of no pixels is zero


def pixels_counted(
    size: Pair, window: Pair, stride: Pair, padding: Borders, dilation: Pair, count_padding: bool
) -> np.ndarray:
    """How many pixels count in each window.

    size                      (H, W) of the images
    window, stride, dilation  (rows, columns), pixels
    padding                   ((top, bottom), (left, right)), pixels
    count_padding             whether pixels of the padding count
    Returns                   (OH, OW, 1)
    """
    image, outside = np.ones((*size, 1)), float(count_padding)
    return windows(image, window, stride, padding, dilation, outside).sum(axis=(-3, -2))
