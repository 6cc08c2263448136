"""What is done to a convolution's outputs while they are in the cache: bias, activation, pooling.

The outputs of a tile have just been computed. To come back for them later would mean to read and
write every one of them once more, which takes longer than the arithmetic.
"""

import numpy as np

from minires.arrays import empty, scratch


def activate(y, activation, out=None):
    """Apply None, "relu" or "relu6" in place, or write the result to `out`."""
    # NumPy clips three times as fast as it takes the larger of an array and a number.
    if activation is not None:
        np.clip(y, 0, 6 if activation == "relu6" else np.inf, out=y if out is None else out)
    elif out is not None:
        out[...] = y


class Outputs:
    """Where the tiles of a convolution go, and what is done to each while it is in the cache.

    Bias and activation; and before them, with a `window`, max pooling. The largest of some
    values plus a bias, then cut at zero, is the largest of all of them so treated, and this way
    only a few are treated, and only those few ever leave the cache.

    y         what comes of it, (R, N, OH, OW, O)
    winners   like y, uint8: which pixel of each window was the largest, in reading order
    """

    def __init__(self, shape, dtype, bias, activation, window=None):
        self.activation, self.window = activation, window
        self.dtype, self.width, self.winners = dtype, shape[-2], None
        if window is not None:
            pooled = (n // size for n, size in zip(shape[2:4], window, strict=True))
            shape = (*shape[:2], *pooled, shape[-1])
            self.winners = empty(shape, np.uint8)
        self.y = empty(shape, dtype)
        self.bias = row_of(bias, shape[-2])

    def tile(self, r, images, rows):
        """An array in which to compute some rows of some images: (k, rows, width, O)."""
        if self.window is None:
            return self.y[r, images, rows]
        count = len(self.y[r, images])
        shape = count, rows.stop - rows.start, self.width, self.y.shape[-1]
        return scratch("outputs", shape, self.dtype)

    def finish(self, tile, r, images, rows):
        """Take in a tile that has been computed."""
        y = tile
        if self.window is not None:
            rows = slice(rows.start // self.window[0], rows.stop // self.window[0])
            y = self.y[r, images, rows]
            _keep_largest(tile, self.window, y, self.winners[r, images, rows])
        add_bias(y, self.bias, r)
        activate(y, self.activation)


def row_of(bias, width):
    """A bias (R, O) or None for every pixel of a row: (R, width · O)."""
    # NumPy works along one run of memory at a time, and a row is a long one.
    return None if bias is None else np.tile(bias, width)


def add_bias(y, bias, r):
    """Add one network's bias, from `row_of`, to `y` (k, rows, width, O) in place."""
    if bias is not None:
        rows = y.reshape(*y.shape[:2], y.shape[2] * y.shape[3])  # a view: rows are whole
        rows += bias[r]


def _keep_largest(x, window, largest, winners):
    """The largest value of every window of `x` (k, H, W, C), and which it was."""
    windows = windows_of(x, window, largest.shape)
    values = scratch("values", windows.shape, x.dtype)  # long runs for all that follows
    np.copyto(values, windows)
    largest[...] = values[0, 0]
    winners[...] = 0
    later = scratch("later", winners.shape, bool)
    for u, v in np.ndindex(window):
        if u or v:  # among equals the first stays
            np.greater(values[u, v], largest, out=later)
            number = np.multiply(later, np.uint8(u * window[1] + v), out=later.view(np.uint8))
            np.maximum(winners, number, out=winners)
            np.maximum(largest, values[u, v], out=largest)


def windows_of(x, window, shape):
    """The windows that tile `x` (k, H, W, C): a view (rows, columns, k, OH, OW, C)."""
    (rows, columns), (count, high, wide, channels) = window, shape
    inside = x[:, : high * rows, : wide * columns]
    split = inside.reshape(count, high, rows, wide, columns, channels)
    return split.transpose(2, 4, 0, 1, 3, 5)


def neighbours(count, channels, run):
    """How many neighbouring pixels are best taken for one of many channels.

    NumPy works along one run of memory at a time, and each run has its price. The channels of one
    pixel may be few; those of neighbours side by side are more.

    count      pixels in a row, which the neighbours must divide
    channels   of each
    run        values that a run should have at most
    """
    fitting = range(1, max(1, run // channels) + 1)
    return max(together for together in fitting if count % together == 0)
