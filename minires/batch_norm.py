"""Batch normalisation as a differentiable function.

    x̂ = (x − mean) / √(variance + ε)        y = f( scale · x̂ + shift )

for every channel, over all images and pixels of a batch. In training the mean and the variance
are the batch's own, so they depend on x and the gradient flows through them:

    ∂L/∂x = scale / √(variance + ε) · ( g − mean(g) − x̂ · mean(g · x̂) )

where g is the gradient of the loss with respect to y, behind the activation f. At test, or
"frozen", they are constants and only the factor in front remains.

The arithmetic is nothing, the memory traffic is everything: a layer of MobileNetV2 is a hundred
megabytes. So all steps are done on one tile of rows after another, while it is in the cache.
"""

import functools

import numpy as np

from minires.autodiff import op
from minires.backend import empty, kernels_of, neighbours, run_tiles, scratch, sum_rows, xp_of
from minires.convolution import once

TILE = 1 << 18  # values in a tile: smaller ones cost more calls, larger ones leave the cache
SIDE_BY_SIDE = 1 << 12  # values in a row of sums
RUN = 1 << 10  # values that NumPy treats in one run: of far shorter ones it is the runs that cost


def _rows(x):
    """`x` (…, N, H, W, C) or (…, N, C) as rows of channels: (replicas, rows, C)."""
    own = 4 if x.ndim >= 4 else 2  # axes of one network's batch; any others are replicas
    replicas = int(np.prod(x.shape[:-own], dtype=np.int64))
    return x.reshape(replicas, -1, x.shape[-1])


def _side_by_side(rows):
    """How many rows (…, M, C) are taken for one of many channels."""
    return neighbours(*rows.shape[-2:], RUN) if xp_of(rows) is np else 1


def _repeat(vector, together, xp):
    """A vector of channels (…, 1, C) for rows that lie `together`: (…, 1, together · C)."""
    return xp.concatenate([vector] * together, axis=-1) if together > 1 else vector


def _each_tile(function, rows, again=False):
    """Call `function(part, number)` for every tile of `rows` (R, M, C), on all threads.

    `rows[part]` is a tile, (m, C); with CuPy there is one tile, all of it. `number` counts
    the tiles of one replica.

    again     visit them backwards: what the pass before touched last is still in the cache
    Returns   the number of tiles of a replica
    """
    if xp_of(rows) is not np:
        function((slice(None), slice(None)), 0)
        return 1
    replicas, count, channels = rows.shape
    step = max(1, TILE // channels)
    tiles = -(-count // step)

    def run(tile):
        r, number = divmod(replicas * tiles - 1 - tile if again else tile, tiles)
        function((r, slice(number * step, (number + 1) * step)), number)

    run_tiles(run, replicas * tiles)
    return tiles


def _count_tiles(rows):
    return 1 if xp_of(rows) is not np else -(-rows.shape[1] // max(1, TILE // rows.shape[2]))


def _buffer(like, xp, dtype=None, name="tile"):
    """Working memory like `like`, this thread's own."""
    dtype = like.dtype if dtype is None else dtype
    return scratch(name, like.shape, dtype) if xp is np else xp.empty_like(like, dtype)


@functools.lru_cache(maxsize=256)
def _ones(count, dtype):
    return np.ones((1, count), dtype)


def _column_sums(tile, channels, xp):
    """Σ of each channel over a tile of rows, (…, 1, C) float64.

    A product with ones, which is fast. Some rows side by side make its rows long and its sums
    short, of a few dozen values; these sums are then added in float64. A float32 sum of all
    rows would be wrong in its sixth digit, and every layer behind it too.
    """
    if xp is not np:
        return sum_rows(tile)[..., None, :]
    rows, width = tile.shape
    together = max(1, min(SIDE_BY_SIDE // width, rows))
    count = rows // together
    side_by_side = tile[: count * together].reshape(count, -1)
    sums = _ones(count, tile.dtype) @ side_by_side
    total = sums.reshape(-1, channels).sum(axis=0, dtype=np.float64)
    if count * together < rows:
        total += tile[count * together :].reshape(-1, channels).sum(axis=0, dtype=np.float64)
    return total[None]


def batch_moments(x):
    """The mean and the population variance of every channel of a batch.

    Each tile's are computed in two passes, mean first, then squared deviations; tiles are
    merged in float64. So a variance much smaller than the mean keeps its digits.

    x        (…, N, H, W, C) or (…, N, C)
    Returns  mean and variance, each (…, C), dtype of x
    Raises   ValueError for fewer than two values a channel
    Source   Chan, Golub and LeVeque 1983, eq. 1.5, for the merging
    """
    xp = xp_of(x)
    rows = _rows(x)
    replicas, count, channels = rows.shape
    if count < 2:
        raise ValueError(
            f"batch norm: the batch {x.shape} has {count} value a channel, whose variance is 0: "
            "train on larger batches, or freeze the statistics"
        )
    together = _side_by_side(rows)
    rows = rows.reshape(replicas, count // together, together * channels)
    shape = (_count_tiles(rows), replicas, 1, channels)
    sizes = np.zeros((shape[0], 1, 1, 1))
    means = xp.empty(shape, np.float64)
    squares = xp.empty(shape, np.float64)

    def run(part, number):
        tile = rows[part]
        size = tile.shape[-2] * together
        mean = _column_sums(tile, channels, xp) / size
        center = _repeat(mean.astype(x.dtype), together, xp)
        deviation = xp.subtract(tile, center, out=_buffer(tile, xp))
        xp.multiply(deviation, deviation, out=deviation)
        sizes[number] = size
        means[number][part[0]] = mean
        squares[number][part[0]] = _column_sums(deviation, channels, xp)

    _each_tile(run, rows)
    weights = sizes / count if xp is np else 1.0  # there is one tile, of all
    mean = (weights * means).sum(axis=0)
    variance = (squares.sum(axis=0) / count) + (weights * (means - mean) ** 2).sum(axis=0)
    shape = (*x.shape[: x.ndim - (4 if x.ndim >= 4 else 2)], channels)
    return tuple(v.reshape(shape).astype(x.dtype) for v in (mean, variance))


@op
def batch_norm(x, scale, shift, *, mean, variance, epsilon=1e-3, of_batch=False, activation=None):
    """y = f( scale · (x − mean) / √(variance + ε) + shift ), for every channel.

    x               (…, N, H, W, C) or (…, N, C) float
    scale           (…, C), or None for 1
    shift           (…, C)
    mean, variance  (…, C)
    of_batch        whether they are `batch_moments(x)`: the gradient then flows through them
    activation      None, "relu" or "relu6"
    Returns         like x
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
    rows = _rows(x)
    channels = x.shape[-1]
    # Where R networks see the same x, there is one batch and R results.
    replicas = max(len(rows), shift.size // channels)
    together, count = _side_by_side(rows), rows.shape[1]
    rows = rows.reshape(len(rows), count // together, together * channels)
    whole = (replicas, *rows.shape[1:])
    rows = xp.broadcast_to(rows, whole)

    def of_channels(vector):
        return xp.broadcast_to(vector.reshape(-1, 1, channels), (replicas, 1, channels))

    center = of_channels(mean)
    inverse = of_channels(1 / xp.sqrt(variance + x.dtype.type(epsilon)))
    factor = inverse if scale is None else of_channels(scale) * inverse
    offset = of_channels(shift) - center * factor
    y = empty(whole, x.dtype, like=x)
    factors = _repeat(factor, together, xp)
    offsets = _repeat(offset, together, xp)
    activate = kernels_of(x).activate

    def forward(part, number):
        result = y[part]
        xp.multiply(rows[part], factors[part[0]], out=result)
        xp.add(result, offsets[part[0]], out=result)
        activate(result, activation)

    _each_tile(forward, y, again=of_batch)

    def before_activation(g, part, out):
        """The tile of g behind f: zero where f is flat. Written to `out` if it changes."""
        if activation is None:
            return g[part]
        through = xp.greater(y[part], 0, out=_buffer(out, xp, bool))
        if activation == "relu6":
            below = xp.less(y[part], 6, out=_buffer(out, xp, bool, "below"))
            xp.logical_and(through, below, out=through)
        return xp.multiply(g[part], through, out=out)

    @once
    def backward(g):
        g = g.reshape(whole)
        x_gradient = empty(whole, x.dtype, like=x)
        shape = (_count_tiles(y), replicas, 1, channels)
        sums = xp.empty(shape, np.float64)  # Σ g
        products = xp.empty(shape, np.float64)  # Σ g · (x − mean)
        centers = _repeat(center, together, xp)

        def reduce(part, number):
            # What f lets through is kept in x_gradient, for the second pass.
            tile = before_activation(g, part, x_gradient[part])
            product = xp.subtract(rows[part], centers[part[0]], out=_buffer(tile, xp))
            xp.multiply(product, tile, out=product)
            sums[number][part[0]] = _column_sums(tile, channels, xp)
            products[number][part[0]] = _column_sums(product, channels, xp)

        _each_tile(reduce, y)
        total, product = sums.sum(axis=0), products.sum(axis=0)
        if of_batch:
            slope = (-factor * inverse**2 * product / count).astype(x.dtype)
            constant = (-center * slope - factor * total / count).astype(x.dtype)
            slopes = _repeat(slope, together, xp)
            constants = _repeat(constant, together, xp)

        def spread(part, number):
            result = x_gradient[part]
            tile = g[part] if activation is None else result
            xp.multiply(tile, factors[part[0]], out=result)
            if of_batch:
                rest = xp.multiply(rows[part], slopes[part[0]], out=_buffer(result, xp))
                xp.add(rest, constants[part[0]], out=rest)
                xp.add(result, rest, out=result)

        _each_tile(spread, y, again=True)
        return x_gradient, (product * inverse).astype(x.dtype), total.astype(x.dtype)

    lead = shift.shape[:-1] if shift.ndim > 1 else x.shape[: x.ndim - (4 if x.ndim >= 4 else 2)]
    own = x.shape[-4:] if x.ndim >= 4 else x.shape[-2:]

    def to_channels(gradient, like):
        # One scale for several batches: its gradient is the sum of theirs.
        gradient = gradient.reshape(replicas, channels)
        return gradient.reshape(like.shape) if like.size == gradient.size else gradient.sum(axis=0)

    return y.reshape(*lead, *own), (
        lambda g: backward(g)[0].reshape(*lead, *own),
        lambda g: to_channels(backward(g)[1], scale),
        lambda g: to_channels(backward(g)[2], shift),
    )
