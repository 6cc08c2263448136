"""Differentiable functions of arrays: arithmetic, products, shapes, and the loss.

Every function takes arrays and returns (result, pullbacks); `@op` makes it accept Tensors.
Forward and backward stand side by side, so each can be checked against the other at sight.
Axes count from the right: `(…, N, features)`. Whatever stands at the dots, one network or ten
side by side, needs no word here.
"""

import math

import numpy as np

from minires.arrays import xp_of
from minires.engine.autodiff import Tensor, data_of, op, takes_out
from minires.kernels import kernels_of
from minires.kernels.sums import sum_rows

# CuPy joins so many arrays by a kernel for each. Of more it sends a table of addresses to the GPU,
# which cannot be recorded.
MOST_JOINED = 8

# --- elementwise --------------------------------------------------------------------------


@op
def add(x, y):
    """x + y"""
    return x + y, (lambda g: g, lambda g: g)


@op
def subtract(x, y):
    """x − y"""
    return x - y, (lambda g: g, lambda g: -g)


@op
def multiply(x, y):
    """x · y"""
    return x * y, (lambda g: g * y, lambda g: g * x)


@op
def divide(x, y):
    """x / y"""
    return x / y, (lambda g: g / y, lambda g: -(g / y) * (x / y))  # y² may underflow


@op
def negative(x):
    """−x"""
    return -x, (lambda g: -g,)


@op
def power(x, *, exponent):
    """x to a constant power"""
    if exponent == 0:  # 0 · 0⁻¹ would be NaN
        return x**exponent, (lambda g: 0 * g,)
    return x**exponent, (lambda g: g * (exponent * x ** (exponent - 1)),)


@op
def exp(x):
    """eˣ"""
    y = xp_of(x).exp(x)
    return y, (lambda g: g * y,)


@op
def log(x):
    """The natural logarithm"""
    return xp_of(x).log(x), (lambda g: g / x,)


@op
def sqrt(x):
    """The square root"""
    y = xp_of(x).sqrt(x)
    return y, (lambda g: g / (2 * y),)


@op
def tanh(x):
    """The hyperbolic tangent"""
    y = xp_of(x).tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@op
def sigmoid(x):
    """1 / (1 + e⁻ˣ), as (1 + tanh(x/2)) / 2, which cannot overflow"""
    y = 0.5 * (1 + xp_of(x).tanh(0.5 * x))
    return y, (lambda g: g * y * (1 - y),)


@op
def relu(x):
    """max(x, 0), with derivative 0 at 0"""
    y = xp_of(x).maximum(x, 0)
    return y, (lambda g: g * (y > 0),)


@op
def relu6(x):
    """min(max(x, 0), 6), with derivative 0 at both ends"""
    y = xp_of(x).clip(x, 0, 6)
    return y, (lambda g: g * ((y > 0) & (y < 6)),)


@op
def clip(x, *, low, high):
    """x held between two constants; the derivative is 1 within and at the bounds"""
    return xp_of(x).clip(x, low, high), (lambda g: g * ((x >= low) & (x <= high)),)


@op
def maximum(x, y):
    """The larger of each pair; equals share the gradient"""
    z = xp_of(x).maximum(x, y)
    both = (x == y) * 0.5
    return z, (
        lambda g: (g * ((x > y) + both)).astype(g.dtype, copy=False),
        lambda g: (g * ((y > x) + both)).astype(g.dtype, copy=False),
    )


def minimum(x, y):
    """The smaller of each pair; equals share the gradient"""
    return negative(maximum(negative(x), negative(y)))


# --- products -----------------------------------------------------------------------------


@op
def matmul(x, w):
    """x @ w with x (…, M, K) and w (…, K, L)"""
    if x.ndim < 2 or w.ndim < 2 or x.shape[-1] != w.shape[-2]:
        raise ValueError(
            f"matmul: x {x.shape} has {x.shape[-1]} columns, w {w.shape} must have as many rows"
        )
    product = kernels_of(x).matmul
    return product(x, w), (
        takes_out(lambda g, out=None: product(g, w.swapaxes(-1, -2), out)),
        takes_out(lambda g, out=None: product(x.swapaxes(-1, -2), g, out)),
    )


@op
def add_bias(x, b):
    """x + b with x (…, N, channels) and b (…, channels)"""
    rows = x.reshape(*x.shape[: b.ndim - 1], -1, x.shape[-1])
    y = (rows + b[..., None, :]).reshape(x.shape)
    return y, (lambda g: g, lambda g: sum_rows(g.reshape(rows.shape)))


def dense(x, w, b=None):
    """A fully connected layer: y = x @ w + b.

    x        (…, N, inputs)
    w        (…, inputs, outputs)
    b        (…, outputs) or None
    Returns  (…, N, outputs)
    """
    y = matmul(x, w)
    return y if b is None else add_bias(y, b)


# --- reductions and shapes ----------------------------------------------------------------


def _spread(g, axis, keepdims, shape, xp):
    """Repeat a reduced gradient along the axes that were summed."""
    if not keepdims and axis is not None:
        g = xp.expand_dims(g, axis)
    return xp.broadcast_to(g, shape)


@op
def sum(x, *, axis=None, keepdims=False):
    """The sum over some axes (all without `axis`)"""
    xp = xp_of(x)
    return xp.asarray(x.sum(axis=axis, keepdims=keepdims)), (
        lambda g: _spread(g, axis, keepdims, x.shape, xp),
    )


@op
def mean(x, *, axis=None, keepdims=False):
    """The mean over some axes (all without `axis`)"""
    xp = xp_of(x)
    y = xp.asarray(x.mean(axis=axis, keepdims=keepdims))
    share = y.size / x.size
    return y, (lambda g: _spread(g * x.dtype.type(share), axis, keepdims, x.shape, xp),)


@op
def global_mean(x):
    """The mean over the pixels: (…, N, H, W, C) → (…, N, C)"""
    pixels = x.shape[-3] * x.shape[-2]
    xp = xp_of(x)
    y = sum_rows(x.reshape(*x.shape[:-3], pixels, x.shape[-1])) / pixels
    return y, (lambda g: xp.broadcast_to(g[..., None, None, :] / pixels, x.shape),)


@op
def reshape(x, *, shape):
    """The same numbers in another shape"""
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


@op
def broadcast_to(x, *, shape):
    """The same numbers, repeated along axes of length one and new leading axes"""
    return xp_of(x).broadcast_to(x, shape), (lambda g: g,)


@op
def transpose(x, *, axes):
    """The axes in another order"""
    back = tuple(np.argsort([axis % x.ndim for axis in axes]).tolist())
    return x.transpose(axes), (lambda g: g.transpose(back),)


def flatten(x):
    """(…, N, H, W, C) → (…, N, H·W·C)"""
    return reshape(x, shape=(*x.shape[:-3], math.prod(x.shape[-3:])))


@op
def take(x, *, index):
    """x[index] for slices, integers and index arrays; a repeated index adds its gradients

    A GPU adds those of an index array in any order: three or more of one index may then round
    differently each time.
    """
    xp = xp_of(x)

    def pullback(g):
        gradient = xp.zeros_like(x)
        parts = index if isinstance(index, tuple) else (index,)
        if all(isinstance(part, (int, slice, type(None), type(Ellipsis))) for part in parts):
            gradient[index] += g
        else:
            xp.add.at(gradient, index, g)
        return gradient

    return x[index], (pullback,)


def concatenate(tensors, axis=-1):
    """Join along an axis."""
    return _concatenate(*tensors, axis=axis)


@op
def _concatenate(*arrays, axis):
    def pullback(start, stop):
        return lambda g: g[_along(axis, slice(start, stop), g.ndim)]

    ends = np.cumsum([array.shape[axis] for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    xp, joined = xp_of(arrays[0]), list(arrays)
    while len(joined) > MOST_JOINED and xp is not np:
        first = [xp.concatenate(joined[:MOST_JOINED], axis=axis)]
        joined = first + joined[MOST_JOINED:]
    return xp.concatenate(joined, axis=axis), tuple(map(pullback, starts, ends))


def _along(axis, part, ndim):
    """The index that takes `part` of one axis and all of the others."""
    index = [slice(None)] * ndim
    index[axis] = part
    return tuple(index)


# --- probability --------------------------------------------------------------------------


@op
def dropout(x, *, rate, rng):
    """Zero a share of the values, divide the others by what is left, so that the mean stays.

    x        (…, N, features)
    rate     the share to drop, 0 ≤ rate < 1
    rng      a Generator; or a list of R of them for x (R, …), so that each of R networks
             drops what it would drop alone
    Source   Srivastava et al. 2014
    """
    generators = rng if isinstance(rng, (list, tuple)) else None
    if generators is not None and len(generators) != x.shape[0]:
        raise ValueError(
            f"dropout: {len(generators)} generators for x {x.shape}: one is needed for each of "
            f"the {x.shape[0]} networks"
        )
    draw = kernels_of(x).uniform(rng, x.shape, like=x)
    factor = (draw >= rate) * x.dtype.type(1 / (1 - rate))
    return x * factor, (lambda g: g * factor,)


def softmax(logits):
    """Probabilities from logits (…, classes): e^z / Σ e^z, shifted so that nothing overflows."""
    return exp(log_softmax(logits))


@op
def log_softmax(logits):
    """z − log Σ e^z over the last axis"""
    xp = xp_of(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    return y, (lambda g: g - xp.exp(y) * g.sum(axis=-1, keepdims=True),)


@op
def softmax_cross_entropy(logits, labels, *, smoothing=0.0):
    """The mean over a batch of −log p(label).

    With smoothing s the target is 1 − s + s/C for the label and s/C for the other classes.

    logits     (…, N, C) float
    labels     (N,) or (…, N) integers in [0, C)
    smoothing  s, 0 ≤ s < 1
    Returns    (…), one loss for each network
    Raises     ValueError when the shapes disagree or a label is out of range
    """
    xp = xp_of(logits)
    count, classes = logits.shape[-2:]
    labels = xp.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(f"softmax_cross_entropy: labels are {labels.dtype}, expected integers")
    if labels.shape not in ((count,), logits.shape[:-1]):
        raise ValueError(
            f"softmax_cross_entropy: labels {labels.shape} for logits {logits.shape}: "
            f"expected {(count,)} or {logits.shape[:-1]}"
        )
    if xp is np and labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"softmax_cross_entropy: labels from {labels.min()} to {labels.max()} "
            f"for {classes} classes"
        )
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    target = (labels[..., None] == xp.arange(classes)).astype(logits.dtype)
    if smoothing:
        target = target * logits.dtype.type(1 - smoothing) + logits.dtype.type(smoothing / classes)
    # A logit of −∞ is a class with probability 0: with target 0 it adds 0, not 0 · ∞ = NaN.
    with np.errstate(invalid="ignore"):
        products = xp.where((target == 0) & (log_p == -math.inf), 0 * target, target * log_p)
    loss = -products.sum(axis=-1).mean(axis=-1)
    return xp.asarray(loss), (lambda g: (xp.exp(log_p) - target) * (g / count)[..., None, None],)


# --- operators of Tensor ------------------------------------------------------------------

Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda self, other: subtract(other, self)
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda self, other: divide(other, self)
Tensor.__neg__ = negative
Tensor.__pow__ = lambda self, exponent: power(self, exponent=exponent)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(other, self)
Tensor.__getitem__ = lambda self, index: take(self, index=data_of(index))
Tensor.sum = sum
Tensor.mean = mean
Tensor.reshape = lambda self, *shape: reshape(self, shape=shape)

__all__ = [
    "add",
    "add_bias",
    "broadcast_to",
    "clip",
    "concatenate",
    "dense",
    "divide",
    "dropout",
    "exp",
    "flatten",
    "global_mean",
    "log",
    "log_softmax",
    "matmul",
    "maximum",
    "mean",
    "minimum",
    "multiply",
    "negative",
    "power",
    "relu",
    "relu6",
    "reshape",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "sqrt",
    "subtract",
    "sum",
    "take",
    "tanh",
    "transpose",
]
