"""Differentiable functions of arrays: arithmetic, products, shapes, and the loss.

Every function takes arrays and returns (result, pullbacks); `@op` makes it accept Tensors.
Forward and backward stand side by side, so a reader can check one against the other.
Axes count from the right: `(…, N, features)`. The dots stand for any leading axes, for example
those of ten networks side by side.

Numbers are float32 or float64. An argument is an array, NumPy or CuPy, or a Tensor of one. The
result has the shape of the arguments, broadcast, unless a docstring says another.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.arrays import Array, checks, xp_of
from minires.engine.autodiff import Tensor, data_of, op, takes_out
from minires.kernels import kernels_of
from minires.kernels.memory import empty
from minires.kernels.plain import Generators
from minires.kernels.sums import sum_rows

# CuPy joins up to so many arrays with one kernel for each. For more it sends a table of addresses
# to the GPU, and a CUDA graph cannot record that.
MOST_JOINED = 8
Axes = int | Sequence[int] | None

# --- elementwise --------------------------------------------------------------------------


@op
def add(x: Array, y: Array) -> Array:
    """x + y.

    x, y    arrays that broadcast
    """
    return x + y, (lambda g: g, lambda g: g)


@op
def subtract(x: Array, y: Array) -> Array:
    """x − y.

    x, y    arrays that broadcast
    """
    return x - y, (lambda g: g, lambda g: -g)


@op
def multiply(x: Array, y: Array) -> Array:
    """x · y, number by number.

    x, y    arrays that broadcast
    """
    return x * y, (lambda g: g * y, lambda g: g * x)


@op
def divide(x: Array, y: Array) -> Array:
    """x / y.

    x, y    arrays that broadcast
    """
    return x / y, (lambda g: g / y, lambda g: -(g / y) * (x / y))  # y² may underflow


@op
def negative(x: Array) -> Array:
    """−x.

    x    (…)
    """
    return -x, (lambda g: -g,)


@op
def power(x: Array, *, exponent: float) -> Array:
    """x to a constant power.

    x          (…)
    exponent   a number. Where it is 0, the derivative is 0, at x = 0 too
    """
    if exponent == 0:  # 0 · 0⁻¹ would be NaN
        return x**exponent, (lambda g: 0 * g,)
    return x**exponent, (lambda g: g * (exponent * x ** (exponent - 1)),)


@op
def exp(x: Array) -> Array:
    """eˣ.

    x    (…)
    """
    y = xp_of(x).exp(x)
    return y, (lambda g: g * y,)


@op
def log(x: Array) -> Array:
    """The natural logarithm.

    x    (…), above 0
    """
    return xp_of(x).log(x), (lambda g: g / x,)


@op
def sqrt(x: Array) -> Array:
    """The square root.

    x    (…), above 0
    """
    y = xp_of(x).sqrt(x)
    return y, (lambda g: g / (2 * y),)


@op
def tanh(x: Array) -> Array:
    """The hyperbolic tangent.

    x    (…)
    """
    y = xp_of(x).tanh(x)
    return y, (lambda g: g * (1 - y * y),)


@op
def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ), computed as (1 + tanh(x/2)) / 2, which cannot overflow.

    x    (…)
    """
    y = 0.5 * (1 + xp_of(x).tanh(0.5 * x))
    return y, (lambda g: g * y * (1 - y),)


@op
def relu(x: Array) -> Array:
    """max(x, 0). The derivative at 0 is 0.

    x    (…)
    """
    y = xp_of(x).maximum(x, 0)
    return y, (lambda g: g * (y > 0),)


@op
def relu6(x: Array) -> Array:
    """min(max(x, 0), 6). The derivative at 0 and at 6 is 0.

    x    (…)
    """
    y = xp_of(x).clip(x, 0, 6)
    return y, (lambda g: g * ((y > 0) & (y < 6)),)


@op
def clip(x: Array, *, low: float, high: float) -> Array:
    """min(max(x, low), high). The derivative is 1 between the bounds and at them, else 0.

    x           (…)
    low, high   numbers; −∞ and ∞ for no bound
    """
    return xp_of(x).clip(x, low, high), (lambda g: g * ((x >= low) & (x <= high)),)


@op
def maximum(x: Array, y: Array) -> Array:
    """The larger of x and y, number by number. Where they are equal, each gets half the gradient.

    x, y    arrays that broadcast
    """
    z = xp_of(x).maximum(x, y)
    both = (x == y) * 0.5
    return z, (
        lambda g: (g * ((x > y) + both)).astype(g.dtype, copy=False),
        lambda g: (g * ((y > x) + both)).astype(g.dtype, copy=False),
    )


def minimum(x: Array, y: Array) -> Array:
    """The smaller of x and y, number by number. Where they are equal, each gets half the gradient.

    x, y    arrays that broadcast
    """
    return negative(maximum(negative(x), negative(y)))


# --- products -----------------------------------------------------------------------------


@op
def matmul(x: Array, w: Array) -> Array:
    """The matrix product x @ w.

    x        (…, M, K)
    w        (…, K, L)
    Returns  (…, M, L)
    Raises   ValueError when the inner sizes differ
    """
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
def add_bias(x: Array, b: Array) -> Array:
    """x + b: one number of b for each channel.

    x        (…, N, channels)
    b        (…, channels)
    """
    rows = x.reshape(*x.shape[: b.ndim - 1], -1, x.shape[-1])
    y = (rows + b[..., None, :]).reshape(x.shape)
    return y, (lambda g: g, lambda g: sum_rows(g.reshape(rows.shape)))


def dense(x: Array, w: Array, b: Array = None) -> Array:
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
def sum(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The sum over some axes.

    x          (…)
    axis       a number or several; None: all axes
    keepdims   whether the summed axes stay, with size 1
    """
    xp = xp_of(x)
    return xp.asarray(x.sum(axis=axis, keepdims=keepdims)), (
        lambda g: _spread(g, axis, keepdims, x.shape, xp),
    )


@op
def mean(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """The mean over some axes.

    x          (…)
    axis       a number or several; None: all axes
    keepdims   whether the averaged axes stay, with size 1
    """
    xp = xp_of(x)
    y = xp.asarray(x.mean(axis=axis, keepdims=keepdims))
    share = y.size / max(1, x.size)
    return y, (lambda g: _spread(g * x.dtype.type(share), axis, keepdims, x.shape, xp),)


@op
def global_mean(x: Array) -> Array:
    """The mean over all pixels of an image, for each channel.

    x        (…, N, H, W, C)
    Returns  (…, N, C)
    """
    pixels = x.shape[-3] * x.shape[-2]
    xp = xp_of(x)
    y = sum_rows(x.reshape(*x.shape[:-3], pixels, x.shape[-1])) / pixels
    return y, (lambda g: xp.broadcast_to(g[..., None, None, :] / pixels, x.shape),)


@op
def reshape(x: Array, *, shape: Sequence[int]) -> Array:
    """The same numbers in another shape.

    x       (…)
    shape   with as many elements; −1 for one size that follows from the others
    """
    return x.reshape(shape), (lambda g: g.reshape(x.shape),)


@op
def broadcast_to(x: Array, *, shape: Sequence[int]) -> Array:
    """The same numbers, repeated along new leading axes and along axes of size 1.

    x       (…)
    shape   that x broadcasts to
    """
    return xp_of(x).broadcast_to(x, shape), (lambda g: g,)


@op
def transpose(x: Array, *, axes: Sequence[int]) -> Array:
    """The axes in another order.

    x      (…)
    axes   axis k of the result is axis axes[k] of x
    """
    back = tuple(np.argsort([axis % x.ndim for axis in axes]).tolist())
    return x.transpose(axes), (lambda g: g.transpose(back),)


def flatten(x: Array) -> Array:
    """All pixels and channels of an image in one row.

    x        (…, N, H, W, C)
    Returns  (…, N, H·W·C)
    """
    return reshape(x, shape=(*x.shape[:-3], math.prod(x.shape[-3:])))


@op
def take(x: Array, *, index: Any) -> Array:
    """x[index]. If an index array names an element several times, its gradients add.

    A GPU adds them in any order: three or more may then round differently each time.

    x       (…)
    index   slices, whole numbers, arrays of whole numbers, or a tuple of these
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


def concatenate(tensors: Sequence[Array], axis: int = -1) -> Array:
    """Join arrays along an axis.

    tensors   arrays or Tensors, of equal shape but for that axis
    axis      along which they are joined
    """
    return _concatenate(*tensors, axis=axis)


@op
def _concatenate(*arrays, axis):
    def pullback(start, stop):
        return lambda g: g[_along(axis, slice(start, stop), g.ndim)]

    ends = np.cumsum([array.shape[axis] for array in arrays]).tolist()
    starts = [0, *ends[:-1]]
    xp, joined, to = xp_of(arrays[0]), list(arrays), {}
    if xp is np:
        shape = list(arrays[0].shape)
        shape[axis] = ends[-1]
        to["out"] = empty(shape, np.result_type(*arrays))
    while len(joined) > MOST_JOINED and xp is not np:
        first = [xp.concatenate(joined[:MOST_JOINED], axis=axis)]
        joined = first + joined[MOST_JOINED:]
    return xp.concatenate(joined, axis=axis, **to), tuple(map(pullback, starts, ends))


def _along(axis, part, ndim):
    """The index that takes `part` of one axis and all of the others."""
    index = [slice(None)] * ndim
    index[axis] = part
    return tuple(index)


# --- probability --------------------------------------------------------------------------


@op
def dropout(x: Array, *, rate: float, rng: Generators) -> Array:
    """Set a share of the values to 0, and divide the others by 1 − rate: the mean stays the same.

    x        (…, N, features)
    rate     the share to drop, 0 ≤ rate < 1
    rng      a Generator; or a list of R of them for x (R, …), so that each of R networks
             drops what it would drop alone
    Raises   ValueError when the list has another length than x
    Source   Srivastava et al. 2014
    """
    generators = rng if isinstance(rng, (list, tuple)) else None
    if generators is not None and len(generators) != x.shape[0]:
        raise ValueError(
            f"dropout: {len(generators)} generators for x {x.shape}: one is needed for each of "
            f"the {x.shape[0]} networks"
        )
    chances = kernels_of(x).uniform(rng, x.shape, like=x)
    factor = (chances >= rate) * x.dtype.type(1 / (1 - rate))
    return x * factor, (lambda g: g * factor,)


def softmax(logits: Array) -> Array:
    """Probabilities e^z / Σ e^z, shifted so that nothing overflows.

    logits   z, (…, classes)
    """
    return exp(log_softmax(logits))


@op
def log_softmax(logits: Array) -> Array:
    """z − log Σ e^z, the logarithm of `softmax`.

    logits   z, (…, classes)
    """
    xp = xp_of(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    return y, (lambda g: g - xp.exp(y) * g.sum(axis=-1, keepdims=True),)


@op
def softmax_cross_entropy(logits: Array, labels: Array, *, smoothing: float = 0.0) -> Array:
    """The mean over a batch of −log p(label).

    With smoothing s the target is 1 − s + s/C for the label and s/C for the other classes.

    logits     (…, N, C) float
    labels     (N,) or (…, N) integers in [0, C)
    smoothing  s, 0 ≤ s < 1
    Returns    (…), one loss for each network
    Raises     ValueError when the shapes disagree or a label is out of range. Labels that are on a
               GPU already are not looked at: that would wait for all its work
    """
    xp = xp_of(logits)
    count, classes = logits.shape[-2:]
    labels = xp_of(labels).asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(checks.labels_are_no_integers("softmax_cross_entropy", labels))
    if labels.shape not in ((count,), logits.shape[:-1]):
        raise ValueError(
            f"softmax_cross_entropy: labels {labels.shape} for logits {logits.shape}: expected "
            + " or ".join(map(str, dict.fromkeys(((count,), logits.shape[:-1]))))
        )
    on_host = xp_of(labels) is np
    if on_host and labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            checks.labels_out_of_range("softmax_cross_entropy", labels.min(), labels.max(), classes)
        )
    labels = xp.asarray(labels)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    target = (labels[..., None] == xp.arange(classes)).astype(logits.dtype)
    if smoothing:
        target = target * logits.dtype.type(1 - smoothing) + logits.dtype.type(smoothing / classes)
    # A logit of −∞ means probability 0. If its target is 0 too, it adds 0, not 0 · ∞ = NaN.
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
