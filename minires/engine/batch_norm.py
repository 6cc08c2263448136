"""Batch normalisation as a differentiable function.

    x̂ = (x − mean) / √(variance + ε)        y = f( scale · x̂ + shift )

for every channel, over all images and pixels of a batch. In training the mean and the variance
are the batch's own, so they depend on x and the gradient flows through them:

    ∂L/∂x = scale / √(variance + ε) · ( g − mean(g) − x̂ · mean(g · x̂) )

where g is the gradient of the loss with respect to f's argument. In predictions, or when they
are frozen, mean and variance are constants, and only the first factor times g remains.

The arithmetic takes little time, the memory traffic takes much: one layer's values in MobileNetV2
are a hundred megabytes. The passes over all of them are in `kernels/`; here are the formulas.
"""

import numpy as np

from minires.arrays import Array, xp_of
from minires.engine.autodiff import op
from minires.kernels import kernels_of


def _rows(x):
    """`x` (…, N, H, W, C) or (…, N, C) as rows of channels: (replicas, rows, C)."""
    own = 4 if x.ndim >= 4 else 2  # axes of one network's batch; any others are replicas
    replicas = int(np.prod(x.shape[:-own], dtype=np.int64))
    return x.reshape(replicas, -1, x.shape[-1])


def batch_moments(x: Array) -> tuple[Array, Array]:
    """The mean and the population variance of every channel of a batch.

    x        (…, N, H, W, C) or (…, N, C)
    Returns  mean and variance, each (…, C), dtype of x
    Raises   ValueError for fewer than two values per channel
    """
    rows = _rows(x)
    count = rows.shape[1]
    if count < 2:
        raise ValueError(
            f"batch norm: the batch {x.shape} has {count} value per channel, so the variance is 0: "
            "train on larger batches, or freeze the statistics"
        )
    shape = (*x.shape[: x.ndim - (4 if x.ndim >= 4 else 2)], x.shape[-1])
    return tuple(v.reshape(shape).astype(x.dtype) for v in kernels_of(x).norm_moments(rows))


@op
def batch_norm(
    x: Array, scale: Array, shift: Array, *, mean: Array, variance: Array, epsilon: float = 1e-3,
    of_batch: bool = False, activation: str | None = None,
) -> Array:  # fmt: skip
    """y = f( scale · (x − mean) / √(variance + ε) + shift ), for every channel.

    x               (…, N, H, W, C) or (…, N, C) float
    scale           (…, C), or None for 1
    shift           (…, C)
    mean, variance  (…, C)
    epsilon         added to the variance, above 0
    of_batch        whether mean and variance are `batch_moments(x)`: then the gradient flows
                    through them too
    activation      f: None, "relu" or "relu6"
    Returns         like x
    Raises          ValueError for another activation, or when the channels disagree
    Source          Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1
    """
    xp = xp_of(x)
    if activation not in (None, "relu", "relu6"):
        raise ValueError(
            f"batch_norm: activation is {activation!r}, expected None, 'relu' or 'relu6'"
        )
    if shift.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"batch_norm: x has {x.shape[-1]} channels, shift has {shift.shape[-1]} "
            f"(x {x.shape}, shift {shift.shape})"
        )
    rows, channels, kernels = _rows(x), x.shape[-1], kernels_of(x)
    mean, variance = (v.astype(x.dtype, copy=False) for v in (mean, variance))
    # When R networks see the same x, there is one batch and R results.
    replicas, count = max(len(rows), shift.size // channels), rows.shape[1]
    if len(rows) not in (1, replicas):
        raise ValueError(
            f"batch_norm: x {x.shape} has {len(rows)} networks, shift {shift.shape} has {replicas}"
        )
    for name, array in (("scale", scale), ("shift", shift)):
        if array is not None and array.dtype != x.dtype:
            raise ValueError(
                f"batch_norm: x is {x.dtype}, {name} is {array.dtype}: convert one of them"
            )

    def of_channels(vector):
        vector = vector.reshape(-1, 1, channels)
        whole = len(vector) == replicas  # to broadcast takes as long as a small kernel
        return vector if whole else xp.broadcast_to(vector, (replicas, 1, channels))

    center, own_scale = of_channels(mean), None if scale is None else of_channels(scale)
    inverse, factor, offset = kernels.norm_factors(
        center, of_channels(variance), own_scale, of_channels(shift), epsilon
    )
    y = kernels.normalize(rows, factor, offset, replicas, activation)

    def first(g):
        g = g.reshape(y.shape)
        passed, total, product = kernels.norm_sums(g, rows, center, factor, offset, activation)
        slope, constant, *gradients = kernels.norm_slopes(
            total, product, center, inverse, factor, max(1, count)
        )
        through_moments = (slope, constant) if of_batch else None
        x_gradient = kernels.norm_gradient(
            passed, rows, factor, offset, through_moments, activation
        )
        return x_gradient, *gradients

    lead = shift.shape[:-1] if shift.ndim > 1 else x.shape[: x.ndim - (4 if x.ndim >= 4 else 2)]
    own = x.shape[-4:] if x.ndim >= 4 else x.shape[-2:]

    def to_channels(gradient, like):
        # If several batches share one scale, its gradient is the sum over the batches.
        gradient = gradient.reshape(replicas, channels)
        return gradient.reshape(like.shape) if like.size == gradient.size else gradient.sum(axis=0)

    return (
        y.reshape(*lead, *own),
        (
            lambda gradients: gradients[0].reshape(*lead, *own),
            lambda gradients: to_channels(gradients[1], scale),
            lambda gradients: to_channels(gradients[2], shift),
        ),
        first,
    )
