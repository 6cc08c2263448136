"""Winograd's minimal filtering: a convolution with fewer multiplications.

To compute m neighbouring outputs of a filter with r taps, the definition multiplies m·r
times. Winograd (1980) needs only n = m + r − 1: read input d and filter g as the coefficients
of polynomials, evaluate both at n points, multiply the values, and interpolate:

    y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]

In two dimensions every piece of n × n pixels goes through `Bᵀ` along both axes, first down
the columns, then along the rows. What was one product per pixel and tap becomes n² independent
matrix products (pieces × C) · (C × O), one a point. A 5×5 kernel with m = 3 multiplies 49 times
where the definition multiplies 225 times. Counting the transforms, which are small matrix
products too, twice as fast in practice.

The price is rounding: about 5e-6 of the largest output in float32, against 7e-7.

Source   S. Winograd, Arithmetic Complexity of Computations, 1980;
         Lavin and Gray, arXiv:1509.09308
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.backend import empty, run_tiles, scratch

# Small points keep the powers in Aᵀ small, and with them the rounding.
POINTS = (0, 1, -1, 0.5, -0.5, 2, -2)

# Kernel size → outputs per piece and axis: the fastest of those measured.
OUTPUTS = {3: 2, 5: 3}


@functools.cache
def transforms(m, r):
    """The matrices Aᵀ (m, n), G (n, r) and Bᵀ (n, n) for m outputs of r taps, n = m + r − 1.

    n − 1 points are finite, the last is infinity (the leading coefficient). Column j of Aᵀ
    and row j of G evaluate at point j; row j of Bᵀ is the polynomial that vanishes at all the
    other points.
    """
    n = m + r - 1
    points = np.array(POINTS[: n - 1], float)
    to_output, filter_side, input_side = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        to_output[:, j] = point ** np.arange(m)
        filter_side[j] = point ** np.arange(r) / np.prod(point - others)
        input_side[j, : n - 1] = np.poly(others)[::-1]
    to_output[-1, -1] = filter_side[-1, -1] = 1
    input_side[-1] = np.poly(points)[::-1]
    return to_output, filter_side, input_side


@functools.cache
def _transforms_of(m, r, dtype):
    """Aᵀ (m, n), G ⊗ G (n², r²) and Bᵀ (n, n) in one precision."""
    to_output, filter_side, to_points = transforms(m, r)
    matrices = to_output, np.kron(filter_side, filter_side), to_points
    return tuple(np.ascontiguousarray(matrix, dtype) for matrix in matrices)


def applies(image, kernel, stride, dilation):
    """Whether this file is for a convolution: every pixel of it, and enough channels.

    image    (H, W, C) of the input
    kernel   (kh, kw, C, O)
    """
    kh, kw, channels, out_channels = kernel
    return (
        kh == kw
        and kh in OUTPUTS
        and stride == (1, 1)
        and dilation == (1, 1)
        and min(channels, out_channels) >= 16
        and image[0] * image[1] >= 4 * OUTPUTS[kh] ** 2
    )


class _Pieces:
    """How a batch of images is cut into overlapping pieces of n × n pixels, m apart."""

    def __init__(self, shape, dtype, kernel, padding):
        images, height, width, self.channels = shape
        (top, bottom), (left, right) = padding
        self.dtype = dtype
        self.padding = top, left
        self.input = height, width
        self.output = height + top + bottom - kernel + 1, width + left + right - kernel + 1
        self.m = OUTPUTS[kernel]
        self.n = self.m + kernel - 1
        self.grid = tuple(-(-size // self.m) for size in self.output)
        # About a hundred pieces make products large enough, and buffers that stay in cache.
        self.images = max(1, 100 // (self.grid[0] * self.grid[1]))
        self.tiles = -(-images // self.images)

    def padded(self, x):
        """`x` (k, H, W, C) with its border of zeros, in this thread's scratch memory."""
        top, left = self.padding
        height, width = self.input
        extra = self.n - self.m
        # A border wider than the pieces need has no output behind it.
        size = [
            max(grid * self.m + extra, before + inside)
            for grid, before, inside in zip(self.grid, self.padding, self.input, strict=True)
        ]
        padded = scratch("padded", (len(x), *size, self.channels), self.dtype)
        padded[:, :top] = padded[:, top + height :] = 0
        padded[:, :, :left] = padded[:, :, left + width :] = 0
        padded[:, top : top + height, left : left + width] = x
        return padded

    def strips(self, padded):
        """A view of the rows of pieces: (k, grid rows, n, W·C)."""
        image, row, _, channel = padded.strides
        shape = len(padded), self.grid[0], self.n, padded.shape[2] * self.channels
        return as_strided(padded, shape, (image, self.m * row, row, channel))

    def cut(self, strips):
        """A view of the pieces of `strips` (k, grid rows, n, W·C): (n, n, k, grid, C)."""
        image, strip, row, channel = strips.strides
        pixel = self.channels * channel
        shape = self.n, self.n, len(strips), *self.grid, self.channels
        return as_strided(strips, shape, (row, pixel, image, strip, self.m * pixel, channel))


def _input_points(x, pieces, to_points):
    """Bᵀ d B of every piece of `x` (k, H, W, C), as (n², pieces, C)."""
    n, channels = pieces.n, pieces.channels
    strips = pieces.strips(pieces.padded(x))
    # Down the columns while neighbouring pieces still share their pixels, then along the rows.
    columns = scratch("strips", strips.shape, x.dtype)
    np.matmul(to_points, strips, out=columns)
    cut = pieces.cut(columns)
    d = scratch("pieces", cut.shape, x.dtype)
    np.copyto(d, cut)
    d = d.reshape(n, n, -1)
    points = scratch("input points", d.shape, x.dtype)
    np.matmul(to_points, d, out=points)
    return points.reshape(n * n, -1, channels)


def convolve(x, w, padding, finish):
    """`kernels.cpu.convolve` for stride 1. x (1 | R, N, H, W, C), w (R, r, r, C, O)."""
    replicas, kernel, _, channels, out_channels = w.shape
    pieces = _Pieces(x.shape[1:], x.dtype, kernel, padding)
    m, n = pieces.m, pieces.n
    to_output, filter_side, to_points = _transforms_of(m, kernel, x.dtype)
    filters = np.matmul(filter_side, w.reshape(replicas, kernel * kernel, -1))
    filters = filters.reshape(replicas, n * n, channels, out_channels)
    images = x.shape[1]
    y = empty((replicas, images, *pieces.output, out_channels), x.dtype)

    def run(tile):
        source, tile = divmod(tile, pieces.tiles)
        chosen = slice(tile * pieces.images, (tile + 1) * pieces.images)
        points = _input_points(x[source, chosen], pieces, to_points)
        for r in range(replicas) if len(x) == 1 else [source]:
            products = scratch("products", (n * n, points.shape[1], out_channels), x.dtype)
            np.matmul(points, filters[r], out=products)
            products = products.reshape(n, n, -1)
            rows = scratch("strips", (n, m, products.shape[-1]), x.dtype)
            np.matmul(to_output, products, out=rows)
            result = scratch("pieces", (m, m, products.shape[-1]), x.dtype)
            np.matmul(to_output, rows.swapaxes(0, 1), out=result.swapaxes(0, 1))
            _place(result, y[r, chosen], pieces)
            finish(y[r, chosen], r)

    run_tiles(run, len(x) * pieces.tiles)
    return y


def _grid(y, pieces):
    """`y` (k, grid rows · m, grid columns · m, O) as its pieces: (m, m, k, grid, O)."""
    rows, columns = pieces.grid
    split = y.reshape(len(y), rows, pieces.m, columns, pieces.m, y.shape[-1])
    return split.transpose(2, 4, 0, 1, 3, 5)


def _place(result, y, pieces):
    """Lay the outputs of the pieces (m, m, pieces · O) side by side in `y` (k, OH, OW, O)."""
    (rows, columns), m = pieces.grid, pieces.m
    height, width = pieces.output
    whole = y
    if height != rows * m or width != columns * m:
        whole = scratch("padded", (len(y), rows * m, columns * m, y.shape[-1]), y.dtype)
    grid = _grid(whole, pieces)
    grid[...] = result.reshape(grid.shape)
    if whole is not y:
        y[...] = whole[:, :height, :width]


def convolve_weight_gradient(x, g, kernel, padding, lanes, accumulate):
    """`kernels.cpu.convolve_weight_gradient` for stride 1: the adjoint of `convolve` in w.

    x   (1 | R, N, H, W, C)
    g   (R, N, OH, OW, O)
    Returns  (R, r, r, C, O)
    """
    replicas, images, _, _, out_channels = g.shape
    pieces = _Pieces(x.shape[1:], x.dtype, kernel, padding)
    m, n, channels = pieces.m, pieces.n, pieces.channels
    to_output, filter_side, to_points = _transforms_of(m, kernel, x.dtype)
    from_output = np.ascontiguousarray(to_output.T)

    def run(source, tile, partial, first):
        chosen = slice(tile * pieces.images, min((tile + 1) * pieces.images, images))
        points = _input_points(x[source, chosen], pieces, to_points)
        for r in range(replicas) if len(x) == 1 else [source]:
            cut = _cut(g[r, chosen], pieces)
            columns = scratch("strips", (n, m, cut.shape[-1]), x.dtype)
            np.matmul(from_output, cut.swapaxes(0, 1), out=columns.swapaxes(0, 1))
            products = scratch("products", (n, n, cut.shape[-1]), x.dtype)
            np.matmul(from_output, columns, out=products)
            products = products.reshape(n * n, -1, out_channels)
            accumulate(points.swapaxes(1, 2), products, partial[r], first)

    shape = (n * n, channels, out_channels)
    total = lanes(run, len(x), replicas, pieces.tiles, shape, x.dtype)
    gradient = np.matmul(filter_side.T, total.reshape(replicas, n * n, -1))
    return gradient.reshape(replicas, kernel, kernel, channels, out_channels)


def _cut(g, pieces):
    """The outputs of each piece of `g` (k, OH, OW, O), (m, m, pieces · O): undoes `_place`."""
    (rows, columns), m = pieces.grid, pieces.m
    height, width = pieces.output
    if height != rows * m or width != columns * m:
        whole = scratch("padded", (len(g), rows * m, columns * m, g.shape[-1]), g.dtype)
        whole[:, height:] = 0
        whole[:, :, width:] = 0
        whole[:, :height, :width] = g
        g = whole
    grid = _grid(g, pieces)
    cut = scratch("pieces", grid.shape, g.dtype)
    np.copyto(cut, grid)
    return cut.reshape(m, m, -1)
