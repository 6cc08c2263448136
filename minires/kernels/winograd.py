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

from minires.backend import run_tiles, scratch

# Small points keep the powers in Aᵀ small, and with them the rounding.
POINTS = (0, 1, -1, 0.5, -0.5, 2, -2)

# Kernel size → outputs per piece and axis: the fastest of those measured.
OUTPUTS = {3: 2, 5: 3}

TILE_BYTES = 3 << 20  # of points and products in a tile: what works best, in the cache or not
LEAST_TILES = 4  # of a batch that has as many images: every thread gets some


@functools.cache
def transforms(m, r, points=POINTS):
    """The matrices Aᵀ (m, n), G (n, r) and Bᵀ (n, n) for m outputs of r taps, n = m + r − 1.

    n − 1 points are finite, the last is infinity (the leading coefficient). Column j of Aᵀ
    and row j of G evaluate at point j; row j of Bᵀ is the polynomial that vanishes at all the
    other points.
    """
    n = m + r - 1
    points = np.array(points[: n - 1], float)
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


# As OUTPUTS, for the kernels in C; and the points, of those tried the ones that round least. Each
# stands beside its negative: even powers of the two are equal, and odd ones opposite.
PAIRS = {3: (4, (0, 0.75, -0.75, 1.5, -1.5)), 5: (4, (0, 1, -1, 0.5, -0.5, 2, -2))}


@functools.cache
def matrices(r, dtype):
    """A (n, m), G (n, r), Bᵀ (n, n), and m, as `c/winograd.c` takes them."""
    m, points = PAIRS[r]
    to_output, filter_side, to_points = transforms(m, r, points)
    arrays = to_output.T, filter_side, to_points
    return *(np.ascontiguousarray(matrix, dtype) for matrix in arrays), m


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
        # Few pixels do not pay for the transforms of many kernels.
        and image[0] * image[1] * 500 >= channels * out_channels
    )


class _Pieces:
    """How a batch of images is cut into overlapping pieces of n × n pixels, m apart.

    A tile is some rows of pieces of one image, or all of those of some images: enough of them
    to make large products, few enough to keep the buffers in the cache.
    """

    def __init__(self, shape, dtype, kernel, padding, out_channels, multiple=1):
        images, height, width, self.channels = shape
        (top, bottom), (left, right) = padding
        self.dtype = dtype
        self.padding = top, left
        self.input = height, width
        self.output = height + top + bottom - kernel + 1, width + left + right - kernel + 1
        self.m = OUTPUTS[kernel]
        self.n = self.m + kernel - 1
        self.all_images, self.all_rows = images, -(-self.output[0] // self.m)
        self.columns = -(-self.output[1] // self.m)
        piece_bytes = self.n**2 * (self.channels + out_channels) * np.dtype(dtype).itemsize
        row_bytes = self.columns * piece_bytes
        fitting = max(1, TILE_BYTES // row_bytes)
        self.rows = min(self.all_rows, -(-fitting // multiple) * multiple)
        self.images = max(1, min(fitting // self.all_rows, images // LEAST_TILES))
        self.strips = -(-self.all_rows // self.rows)
        self.tiles = -(-images // self.images) * self.strips

    def place(self, tile):
        """The images and the rows of outputs that a tile covers."""
        block, strip = divmod(tile, self.strips)
        first, top = block * self.images, strip * self.rows * self.m
        return (
            slice(first, min(first + self.images, self.all_images)),
            slice(top, min(top + self.rows * self.m, self.output[0])),
        )

    def padded(self, x, rows):
        """The pixels of `x` (k, H, W, C) behind some rows of outputs, with a border of zeros."""
        (above, left), (height, width) = self.padding, self.input
        extra = self.n - self.m
        high = -(-(rows.stop - rows.start) // self.m) * self.m + extra
        shape = len(x), high, self.columns * self.m + extra, self.channels
        padded = scratch("padded", shape, self.dtype)
        first = rows.start - above
        top, bottom = (min(max(0, row - first), high) for row in (0, height))
        padded[:, :top] = padded[:, bottom:] = 0
        padded[:, :, :left] = padded[:, :, left + width :] = 0
        padded[:, top:bottom, left : left + width] = x[:, first + top : first + bottom]
        return padded

    def bands(self, padded):
        """A view of the rows of pieces: (k, grid rows, n, W·C)."""
        image, row, _, channel = padded.strides
        rows = (padded.shape[1] - self.n) // self.m + 1
        shape = len(padded), rows, self.n, padded.shape[2] * self.channels
        return as_strided(padded, shape, (image, self.m * row, row, channel))

    def cut(self, bands):
        """A view of the pieces of `bands` (k, grid rows, n, W·C): (n, n, k, grid, C)."""
        image, band, row, channel = bands.strides
        pixel = self.channels * channel
        shape = self.n, self.n, *bands.shape[:2], self.columns, self.channels
        return as_strided(bands, shape, (row, pixel, image, band, self.m * pixel, channel))


def _input_points(x, rows, pieces, to_points):
    """Bᵀ d B of the pieces behind some rows of outputs of `x` (k, H, W, C): (n², pieces, C)."""
    n, channels = pieces.n, pieces.channels
    bands = pieces.bands(pieces.padded(x, rows))
    # Down the columns while neighbouring pieces still share their pixels, then along the rows.
    columns = scratch("bands", bands.shape, x.dtype)
    np.matmul(to_points, bands, out=columns)
    cut = pieces.cut(columns)
    d = scratch("pieces", cut.shape, x.dtype)
    np.copyto(d, cut)
    d = d.reshape(n, n, -1)
    points = scratch("input points", d.shape, x.dtype)
    np.matmul(to_points, d, out=points)
    return points.reshape(n * n, -1, channels)


def convolve(x, w, padding, outputs):
    """The tiles of `kernels.cpu.convolve`. x (1 | R, N, H, W, C), w (R, r, r, C, O)."""
    replicas, kernel, _, channels, out_channels = w.shape
    multiple = 1 if outputs.window is None else outputs.window[0]
    pieces = _Pieces(x.shape[1:], x.dtype, kernel, padding, out_channels, multiple)
    m, n = pieces.m, pieces.n
    to_output, filter_side, to_points = _transforms_of(m, kernel, x.dtype)
    filters = np.matmul(filter_side, w.reshape(replicas, kernel * kernel, -1))
    filters = filters.reshape(replicas, n * n, channels, out_channels)

    def run(tile):
        source, tile = divmod(tile, pieces.tiles)
        images, rows = pieces.place(tile)
        points = _input_points(x[source, images], rows, pieces, to_points)
        for r in range(replicas) if len(x) == 1 else [source]:
            products = scratch("products", (n * n, points.shape[1], out_channels), x.dtype)
            np.matmul(points, filters[r], out=products)
            products = products.reshape(n, n, -1)
            along = scratch("bands", (n, m, products.shape[-1]), x.dtype)
            np.matmul(to_output, products, out=along)
            result = scratch("pieces", (m, m, products.shape[-1]), x.dtype)
            np.matmul(to_output, along.swapaxes(0, 1), out=result.swapaxes(0, 1))
            y = outputs.tile(r, images, rows)
            _place(result, y, pieces.m)
            outputs.finish(y, r, images, rows)

    run_tiles(run, len(x) * pieces.tiles)


def _grid(y, m):
    """`y` (k, grid rows · m, grid columns · m, O) as its pieces: (m, m, k, grid, O)."""
    count, height, width, channels = y.shape
    split = y.reshape(count, height // m, m, width // m, m, channels)
    return split.transpose(2, 4, 0, 1, 3, 5)


def _whole(y, m):
    """An array like `y` (k, OH, OW, O) with room for whole pieces; y itself if it has."""
    count, height, width, channels = y.shape
    if height % m == 0 and width % m == 0:
        return y
    shape = count, -(-height // m) * m, -(-width // m) * m, channels
    return scratch("padded", shape, y.dtype)


def _place(result, y, m):
    """Lay the outputs of the pieces (m, m, pieces · O) side by side in `y` (k, OH, OW, O)."""
    whole = _whole(y, m)
    grid = _grid(whole, m)
    grid[...] = result.reshape(grid.shape)
    if whole is not y:
        y[...] = whole[:, : y.shape[1], : y.shape[2]]


def convolve_weight_gradient(x, g, kernel, padding, lanes, accumulate):
    """`kernels.cpu.convolve_weight_gradient` for stride 1: the adjoint of `convolve` in w.

    x   (1 | R, N, H, W, C)
    g   (R, N, OH, OW, O)
    Returns  (R, r, r, C, O)
    """
    replicas, *_, out_channels = g.shape
    pieces = _Pieces(x.shape[1:], x.dtype, kernel, padding, out_channels)
    m, n, channels = pieces.m, pieces.n, pieces.channels
    to_output, filter_side, to_points = _transforms_of(m, kernel, x.dtype)
    from_output = np.ascontiguousarray(to_output.T)

    def run(source, tile, partial, first):
        images, rows = pieces.place(tile)
        points = _input_points(x[source, images], rows, pieces, to_points)
        for r in range(replicas) if len(x) == 1 else [source]:
            cut = _cut(g[r, images, rows], m)
            columns = scratch("bands", (n, m, cut.shape[-1]), x.dtype)
            np.matmul(from_output, cut.swapaxes(0, 1), out=columns.swapaxes(0, 1))
            products = scratch("products", (n, n, cut.shape[-1]), x.dtype)
            np.matmul(from_output, columns, out=products)
            products = products.reshape(n * n, -1, out_channels)
            accumulate(points.swapaxes(1, 2), products, partial[r], first)

    shape = (n * n, channels, out_channels)
    total = lanes(run, len(x), replicas, pieces.tiles, shape, x.dtype)
    gradient = np.matmul(filter_side.T, total.reshape(replicas, n * n, -1))
    return gradient.reshape(replicas, kernel, kernel, channels, out_channels)


def _cut(g, m):
    """The outputs of each piece of `g` (k, OH, OW, O), (m, m, pieces · O): undoes `_place`."""
    _, height, width, _ = g.shape
    whole = _whole(g, m)
    if whole is not g:
        whole[:, height:] = 0
        whole[:, :, width:] = 0
        whole[:, :height, :width] = g
    grid = _grid(whole, m)
    cut = scratch("pieces", grid.shape, g.dtype)
    np.copyto(cut, grid)
    return cut.reshape(m, m, -1)
