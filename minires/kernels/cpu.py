"""The few functions that are worth writing for a CPU: convolution, pooling, batch norm, products.

Everything heavy in a network is a matrix product, and a matrix product is as fast as a CPU
gets. So the art is to *feed* it. A convolution is a product of two matrices once every window
of the image has been copied into a row ("im2col"), but copying a whole batch writes and reads
back a hundred megabytes, which takes longer than the arithmetic. Here the batch is cut into
tiles: a few images are copied into a small buffer that stays in the cache, multiplied, and
the buffer is used again.

Arrays carry their replica axis explicitly here, `x (1 | R, N, H, W, C)`, `w (R, kh, kw, C, O)`:
one network is R = 1, and an input shared by R networks is copied into windows only once.
`minires.engine.convolution` and `minires.engine.batch_norm` take any leading axes.
"""

import functools

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.arrays import each_block, empty, run_tiles, scratch, single_threaded_blas
from minires.kernels import winograd
from minires.kernels.outputs import Outputs, activate, add_bias, neighbours, row_of, windows_of
from minires.kernels.sums import merge_moments

WINDOW_BYTES = 5 << 19  # of windows in a tile: larger leaves the cache, smaller starves BLAS
LEAST_TILES = 8  # of a batch that has as many images: every thread gets some
LEAST_ROWS = 196  # of a product, where images are small: fewer, and BLAS moves more than it counts
LANES = 16  # at most so many partial sums of a weight gradient
PRODUCT_WORK = 1 << 26  # multiplications in a tile of a plain product
STRIP_BYTES = 1 << 19  # of outputs in a tile of a depthwise convolution
RUN = 2048  # channels of neighbouring pixels that are multiplied in one run
NORM_TILE = 1 << 18  # values in a tile: smaller ones cost more calls, larger ones leave the cache
NORM_RUN = 1 << 10  # values of it in one run of NumPy's: far shorter ones cost more
SIDE_BY_SIDE = 1 << 12  # values in a row of sums


# --- products -----------------------------------------------------------------------------


@single_threaded_blas
def matmul(a, b, out=None):
    """The product `a @ b`, cut into tiles for the threads.

    a        (…, M, K)
    b        (…, K, L)
    out      an array to write the result to, if its shape and type fit
    Returns  (…, M, L)
    """
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = a.shape[-2], b.shape[-1]
    shape = (*lead, rows, columns)
    dtype = np.result_type(a, b)
    if out is None or out.shape != shape or out.dtype != dtype:
        out = empty(shape, dtype)
    work = rows * columns * a.shape[-1]
    cuts = min(1 << (work // PRODUCT_WORK).bit_length(), LANES)  # even for 2, 4, 8 threads
    a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
    b = np.broadcast_to(b, (*lead, *b.shape[-2:]))
    matrices = list(np.ndindex(lead))
    if len(matrices) * work < PRODUCT_WORK // 8:
        return np.matmul(a, b, out=out)
    by_rows = rows > columns
    step = -(-max(rows, columns) // cuts)

    def run(tile):
        which, cut = divmod(tile, cuts)
        part = slice(cut * step, (cut + 1) * step)
        left, right, result = (array[matrices[which]] for array in (a, b, out))
        if by_rows:
            np.matmul(left[part], right, out=result[part])
        else:
            np.matmul(left, right[:, part], out=result[:, part])

    run_tiles(run, len(matrices) * cuts)
    return out


def sum_rows(array):
    """Sum over the last axis but one: (…, M, C) → (…, C).

    Written as products with a vector of ones, two thousand rows at a time: faster than adding
    one row after another, and more exact in float32, as no sum grows long.
    """
    rows, step = array.shape[-2], 2048
    if array.dtype.kind != "f":
        return array.sum(axis=-2)
    if rows <= step:
        return (np.ones((1, rows), array.dtype) @ array)[..., 0, :]
    ones = np.ones((1, step), array.dtype)
    partial = np.empty((-(-rows // step), *array.shape[:-2], 1, array.shape[-1]), array.dtype)

    def add(tile):
        part = array[..., tile * step : (tile + 1) * step, :]
        np.matmul(ones[:, : part.shape[-2]], part, out=partial[tile])

    run_tiles(add, len(partial))
    return partial.sum(axis=0)[..., 0, :]


# --- convolution --------------------------------------------------------------------------


class _Windows:
    """The windows of a convolution, cut into tiles of whole images or of rows of one image."""

    def __init__(self, shape, dtype, kernel, stride, padding, dilation):
        self.images, self.height, self.width, self.channels = shape
        self.dtype = dtype
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
        self.output = tuple(
            (size + sum(border) - span) // step + 1
            for size, border, span, step in zip(shape[1:3], padding, self.span, stride, strict=True)
        )
        self.size = kernel[0] * kernel[1] * self.channels
        # With few channels a window is many tiny runs of memory; copied tap by tap instead,
        # the runs are as long as a row of outputs.
        self.by_taps = self.channels <= 4 and self.size > self.channels
        # A 1×1 kernel's windows are the pixels themselves: nothing to copy.
        self.plain = kernel == (1, 1) and stride == (1, 1) and not np.any(padding)
        rows, columns = self.output
        row_bytes = max(1, columns * self.size * np.dtype(dtype).itemsize)
        self.rows = int(min(rows, max(1, WINDOW_BYTES // row_bytes)))
        fitting = max(1, WINDOW_BYTES // (row_bytes * rows))
        enough = max(1, self.images // LEAST_TILES, LEAST_ROWS // max(1, rows * columns))
        self.count = int(min(fitting, enough))  # images in a tile
        self.align(1)

    def align(self, multiple):
        """Cut tiles, of rows a multiple of `multiple`."""
        self.rows = max(multiple, self.rows // multiple * multiple)
        self.strips = -(-self.output[0] // self.rows)
        self.tiles = -(-self.images // self.count) * self.strips

    def place(self, tile):
        """The images and the rows of outputs that a tile covers."""
        block, strip = divmod(tile, self.strips)
        first, top = block * self.count, strip * self.rows
        return (
            slice(first, min(first + self.count, self.images)),
            slice(top, min(top + self.rows, self.output[0])),
        )

    def gather(self, x, place):
        """The windows of a tile as a matrix (outputs, kh·kw·C); x (N, H, W, C)."""
        images, rows = place
        if self.plain:
            return x[images, rows].reshape(-1, self.channels)
        piece = self.padded(x[images], rows)
        count, high, wide = len(piece), rows.stop - rows.start, self.output[1]
        image, row, pixel, channel = piece.strides
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        if self.by_taps:
            shape = (kh, kw, self.channels, count, high, wide)
            strides = (dh * row, dw * pixel, channel, image, sh * row, sw * pixel)
        else:
            shape = (count, high, wide, kh, kw, self.channels)
            strides = (image, sh * row, sw * pixel, dh * row, dw * pixel, channel)
            if dw == 1 and pixel == self.channels * channel:
                # The taps of a kernel's row are neighbours: one run of memory.
                shape = (count, high, wide, kh, kw * self.channels)
                strides = (image, sh * row, sw * pixel, dh * row, channel)
        windows = scratch("windows", shape, self.dtype)
        np.copyto(windows, as_strided(piece, shape, strides))
        return windows.reshape(self.size, -1).T if self.by_taps else windows.reshape(-1, self.size)

    def taps(self, piece):
        """What each tap of the kernel meets, as a view (kh, kw, images, OH, OW, C)."""
        image, row, pixel, channel = piece.strides
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        shape = (kh, kw, len(piece), *self.output, self.channels)
        strides = (dh * row, dw * pixel, image, sh * row, sw * pixel, channel)
        return as_strided(piece, shape, strides)

    def padded(self, x, rows, value=0):
        """The input rows behind some rows of outputs, with their border of zeros."""
        (top, _), (left, right) = self.padding
        first = rows.start * self.stride[0] - top
        last = (rows.stop - 1) * self.stride[0] - top + self.span[0]
        # At most all of the rows: a wide border can hide the image from them.
        above = min(max(0, -first), last - first)
        below = min(max(0, last - self.height), last - first - above)
        if not (above or below or left or right):
            return x[:, first:last]
        shape = (len(x), last - first, left + self.width + right, self.channels)
        padded = scratch("padded", shape, self.dtype)
        padded[:, :above] = value
        padded[:, last - first - below :] = value
        padded[:, :, :left] = value
        padded[:, :, left + self.width :] = value
        inside = padded[:, above : last - first - below, left : left + self.width]
        if inside.size:
            inside[...] = x[:, first + above : last - below]
        return padded


def _lanes(run, sources, replicas, tiles, shape, dtype, out=None):
    """Sum what every tile adds to a weight gradient, in an order that no thread can change.

    Tiles are dealt to lanes; a lane adds up its own tiles, one after another, and the lanes'
    sums are added last.

    run(source, tile, partial, first)   adds a tile to `partial` (R, *shape), or starts it
    Returns                             (R, *shape)
    """
    lanes = max(1, min(tiles, LANES // sources))
    partial = empty((lanes, replicas, *shape), dtype)

    def lane(number):
        source, number = divmod(number, lanes)
        for tile in range(number, tiles, lanes):
            run(source, tile, partial[number], first=tile == number)

    run_tiles(lane, sources * lanes)
    if not tiles:
        partial[...] = 0
    if lanes == 1:
        return partial[0]
    if out is None or not out.flags.c_contiguous:  # of R networks: a part of each one's vector
        out = empty(partial.shape[1:], dtype)
    flat, total = partial.reshape(lanes, -1), out.reshape(-1)
    step = 1 << 15

    def add(block):
        part = slice(block * step, (block + 1) * step)
        np.add.reduce(flat[:, part], axis=0, out=total[part])

    run_tiles(add, -(-total.size // step))
    return out


def _accumulate(a, b, total, first):
    """total = a @ b, or total += a @ b."""
    if first:
        np.matmul(a, b, out=total)
    else:
        total += np.matmul(a, b, out=scratch("product", total.shape, total.dtype))


def unpool(g, winners, window, size):
    """The gradient before a max pooling whose windows tile the image: each goes to its winner.

    g        (R, N, PH, PW, C), behind the pooling
    winners  like g, uint8, from `convolve_and_pool`
    size     (OH, OW), before the pooling
    Returns  (R, N, OH, OW, C)
    """
    result = empty((*g.shape[:2], *size, g.shape[-1]), g.dtype)
    exact = all(n == k * m for n, k, m in zip(size, window, g.shape[2:4], strict=True))
    count = max(1, (1 << 18) // max(1, result[0, :1].nbytes))
    tiles = -(-g.shape[1] // count)

    def run(tile):
        r, number = divmod(tile, tiles)
        part = r, slice(number * count, (number + 1) * count)
        if not exact:
            result[part] = 0
        places = windows_of(result[part], window, g[part].shape)
        won = scratch("later", g[part].shape, bool)
        for u, v in np.ndindex(window):
            np.equal(winners[part], u * window[1] + v, out=won)
            np.multiply(g[part], won, out=places[u, v])

    run_tiles(run, len(g) * tiles)
    return result


def convolve(x, w, bias, stride, padding, dilation, activation):
    """Correlate images with kernels, add the bias and apply the activation.

    y[r,n,i,j,o] = f( b[r,o] + Σ_uvc x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c,o] )

    x           (1 | R, N, H, W, C) float
    w           (R, kh, kw, C, O), dtype of x
    bias        (R, O) or None
    stride      (rows, columns), pixels
    padding     ((top, bottom), (left, right)), pixels of zeros
    dilation    (rows, columns), pixels between taps
    activation  None, "relu" or "relu6": applied to a tile while it is in the cache
    Returns     (R, N, OH, OW, O)
    """
    return _convolve(x, w, bias, stride, padding, dilation, activation, None).y


def convolve_and_pool(x, w, bias, stride, padding, dilation, activation, window):
    """The same, and of the outputs only the largest of every window, side by side.

    window      (rows, columns), pixels; what no whole window covers is left out
    Returns     (R, N, OH // rows, OW // columns, O), and winners, for `unpool`
    """
    outputs = _convolve(x, w, bias, stride, padding, dilation, activation, window)
    return outputs.y, outputs.winners


@single_threaded_blas
def _convolve(x, w, bias, stride, padding, dilation, activation, window):
    replicas, *kernel, _, out_channels = w.shape
    windows = _Windows(x.shape[1:], x.dtype, tuple(kernel), stride, padding, dilation)
    shape = (replicas, windows.images, *windows.output, out_channels)
    outputs = Outputs(shape, x.dtype, bias, activation, window)
    if winograd.applies(x.shape[-3:], w.shape[-4:], stride, dilation):
        winograd.convolve(x, w, padding, outputs)
        return outputs
    if window is not None:
        windows.align(window[0])
    flat = w.reshape(replicas, windows.size, out_channels)

    def run(tile):
        source, tile = divmod(tile, windows.tiles)
        place = windows.place(tile)
        rows = windows.gather(x[source], place)
        for r in range(replicas) if len(x) == 1 else [source]:
            part = outputs.tile(r, *place)  # whole images, or rows of one image: contiguous
            np.matmul(rows, flat[r], out=part.reshape(-1, out_channels))
            outputs.finish(part, r, *place)

    run_tiles(run, len(x) * windows.tiles)
    return outputs


@single_threaded_blas
def convolve_weight_gradient(x, g, kernel, stride, padding, dilation, out=None):
    """The gradient of `convolve` with respect to w, given that of y.

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, O)
    kernel   (kh, kw)
    out      an array (R, kh, kw, C, O) to write to
    Returns  (R, kh, kw, C, O)
    """
    replicas, *_, out_channels = g.shape
    if winograd.applies(x.shape[-3:], (*kernel, x.shape[-1], out_channels), stride, dilation):
        return winograd.convolve_weight_gradient(x, g, kernel[0], padding, _lanes, _accumulate)
    windows = _Windows(x.shape[1:], x.dtype, kernel, stride, padding, dilation)

    def run(source, tile, partial, first):
        place = windows.place(tile)
        rows = windows.gather(x[source], place)
        for r in range(replicas) if len(x) == 1 else [source]:
            part = g[(r, *place)].reshape(-1, out_channels)
            _accumulate(rows.T, part, partial[r], first)

    flat = None if out is None else out.reshape(replicas, windows.size, out_channels)
    shape = (windows.size, out_channels)
    total = _lanes(run, len(x), replicas, windows.tiles, shape, x.dtype, flat)
    return total.reshape(replicas, *kernel, x.shape[-1], out_channels)


@single_threaded_blas
def convolve_input_gradient(g, w, shape, stride, padding, dilation):
    """The gradient of `convolve` with respect to x, given that of y.

    With stride 1 it is a convolution again: of g, padded, with the kernels flipped. With a
    larger stride most of that would multiply zeros; instead each window's gradient is
    computed and added where the window lay.

    g        (R, N, OH, OW, O)
    w        (R, kh, kw, C, O)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    replicas, kh, kw, channels, out_channels = w.shape
    if stride == (1, 1):
        flipped = np.ascontiguousarray(w[:, ::-1, ::-1].swapaxes(-1, -2))
        border = tuple(
            (d * (k - 1) - before, d * (k - 1) - after)
            for (before, after), k, d in zip(padding, (kh, kw), dilation, strict=True)
        )
        if min(map(min, border)) >= 0:
            return convolve(g, flipped, None, stride, border, dilation, None)
    windows = _Windows(shape, g.dtype, (kh, kw), stride, padding, dilation)
    flat = w.reshape(replicas, windows.size, out_channels).swapaxes(-1, -2)
    x_gradient = empty((replicas, *shape), g.dtype)
    (top, bottom), (left, right) = windows.padding
    high, wide = windows.output
    # Whole images only: the windows of neighbouring rows overlap.
    step = max(1, min(windows.count, windows.images))
    tiles = -(-windows.images // step)

    def run(tile):
        r, tile = divmod(tile, tiles)
        part = g[r, tile * step : (tile + 1) * step]
        rows = scratch("windows", (part[..., 0].size, windows.size), g.dtype)
        np.matmul(part.reshape(-1, out_channels), flat[r], out=rows)
        rows = rows.reshape(len(part), high, wide, kh, kw, channels)
        height, width = windows.height + top + bottom, windows.width + left + right
        padded = scratch("padded", (len(part), height, width, channels), g.dtype)
        padded[...] = 0
        for u in range(kh):
            for v in range(kw):
                padded[:, _taps(u, 0, windows), _taps(v, 1, windows)] += rows[:, :, :, u, v]
        inside = padded[:, top : top + windows.height, left : left + windows.width]
        x_gradient[r, tile * step : (tile + 1) * step] = inside

    run_tiles(run, replicas * tiles)
    return x_gradient


def _taps(tap, axis, windows):
    """The padded pixels that one tap of the kernel meets, over all outputs of an axis."""
    stride, start = windows.stride[axis], tap * windows.dilation[axis]
    return slice(start, start + stride * (windows.output[axis] - 1) + 1, stride)


# --- pooling ------------------------------------------------------------------------------


def _pooling(x, window, stride, padding, dilation):
    """The windows of a pooling layer, in tiles of whole images that fit the cache."""
    windows = _Windows(x.shape, x.dtype, window, stride, padding, dilation)
    windows.rows, windows.strips = windows.output[0], 1
    windows.count = max(1, (1 << 19) // max(1, x[:1].nbytes))
    windows.tiles = -(-windows.images // windows.count)
    return windows


def _each_tap(windows):
    """For each tap of a window: the rows and the columns of the padded image that it meets."""
    for u in range(windows.kernel[0]):
        for v in range(windows.kernel[1]):
            yield _taps(u, 0, windows), _taps(v, 1, windows)


@single_threaded_blas
def max_pool(x, window, stride, padding, dilation):
    """The largest value of every window; the padding is −∞.

    x        (M, H, W, C) float
    window   (rows, columns), pixels; stride, padding and dilation as in `convolve`
    Returns  (M, OH, OW, C)
    """
    windows = _pooling(x, window, stride, padding, dilation)
    y = empty((len(x), *windows.output, windows.channels), x.dtype)

    def run(tile):
        place = windows.place(tile)
        piece = windows.padded(x[place[0]], place[1], -np.inf)
        # The maximum of a window is the maximum over its columns of the maxima over rows.
        # Rows first: their runs of memory are long.
        rows = piece[:, _taps(0, 0, windows)]
        if window[0] > 1:
            rows = scratch("rows", rows.shape, x.dtype)
            np.maximum(piece[:, _taps(0, 0, windows)], piece[:, _taps(1, 0, windows)], out=rows)
            for u in range(2, window[0]):
                np.maximum(rows, piece[:, _taps(u, 0, windows)], out=rows)
        result = y[place[0]]
        result[...] = rows[:, :, _taps(0, 1, windows)]
        for v in range(1, window[1]):
            np.maximum(result, rows[:, :, _taps(v, 1, windows)], out=result)

    run_tiles(run, windows.tiles)
    return y


@single_threaded_blas
def max_pool_gradient(g, x, y, window, stride, padding, dilation):
    """The gradient of `max_pool` with respect to x. Among equals the first of a window wins.

    g        (M, OH, OW, C), the gradient of y
    x, y     (M, H, W, C) and (M, OH, OW, C)
    Returns  (M, H, W, C)
    """
    windows = _pooling(x, window, stride, padding, dilation)
    x_gradient = empty(x.shape, x.dtype)
    (top, bottom), (left, right) = padding
    # Whether the windows tile the image: then every pixel is written, and written once.
    size = tuple(n * k for n, k in zip(windows.output, window, strict=True))
    plain = stride == window and dilation == (1, 1) and not any((top, bottom, left, right))
    exact = plain and size == x.shape[1:3]

    def run(tile):
        images, rows = windows.place(tile)
        taps = windows.taps(windows.padded(x[images], rows, -np.inf))
        values = scratch("values", taps.shape, x.dtype)  # long runs for all that follows
        np.copyto(values, taps)
        hit = np.equal(values, y[images], out=scratch("hit", taps.shape, bool))
        hit = hit.reshape(-1, *y[images].shape)
        taken = hit[0].copy()
        for number in range(1, len(hit)):  # a later tap wins only where no earlier one has
            np.greater(hit[number], taken, out=hit[number])
            np.logical_or(taken, hit[number], out=taken)
        np.multiply(g[images], hit.reshape(taps.shape), out=values)
        if exact:
            windows.taps(x_gradient[images])[...] = values
            return
        height, width = top + windows.height + bottom, left + windows.width + right
        shape = (len(values[0, 0]), height, width, windows.channels)
        result = scratch("result", shape, x.dtype)
        result[...] = 0
        for u, v in np.ndindex(window):
            result[:, _taps(u, 0, windows), _taps(v, 1, windows)] += values[u, v]
        x_gradient[images] = result[:, top : top + windows.height, left : left + windows.width]

    run_tiles(run, windows.tiles)
    return x_gradient


@single_threaded_blas
def mean_pool(x, divisor, window, stride, padding, dilation):
    """The sum of every window over a divisor; the padding is 0.

    x        (M, H, W, C) float
    divisor  (OH, OW, 1), dtype of x: how many pixels count in each window
    Returns  (M, OH, OW, C)
    """
    windows = _pooling(x, window, stride, padding, dilation)
    y = empty((len(x), *windows.output, windows.channels), x.dtype)

    def run(tile):
        images, rows = windows.place(tile)
        piece = windows.padded(x[images], rows)
        result = y[images]
        result[...] = 0
        for row, column in _each_tap(windows):
            result += piece[:, row, column]
        result /= divisor

    run_tiles(run, windows.tiles)
    return y


@single_threaded_blas
def mean_pool_gradient(g, divisor, shape, window, stride, padding, dilation):
    """The gradient of `mean_pool` with respect to x.

    g        (M, OH, OW, C)
    shape    (M, H, W, C) of x
    Returns  (M, H, W, C)
    """
    x_gradient = empty(shape, g.dtype)
    windows = _pooling(x_gradient, window, stride, padding, dilation)
    (top, bottom), (left, right) = padding
    padded = (top + windows.height + bottom, left + windows.width + right, windows.channels)

    def run(tile):
        images, _ = windows.place(tile)
        part = g[images]
        share = scratch("rest", part.shape, g.dtype)
        np.divide(part, divisor, out=share)
        result = scratch("result", (len(part), *padded), g.dtype)
        result[...] = 0
        for row, column in _each_tap(windows):
            result[:, row, column] += share
        x_gradient[images] = result[:, top : top + windows.height, left : left + windows.width]

    run_tiles(run, windows.tiles)
    return x_gradient


# --- batch norm ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _ones(count, dtype):
    return np.ones((1, count), dtype)


def _column_sums(tile, channels):
    """Σ of each channel over a tile of rows, (1, C) float64.

    A product with ones, which is fast. Some rows side by side make its rows long and its sums
    short, of a few dozen values; these sums are then added in float64. A float32 sum of all
    rows would be wrong in its sixth digit, and every layer behind it too.
    """
    rows, width = tile.shape
    together = max(1, min(SIDE_BY_SIDE // width, rows))
    count = rows // together
    side_by_side = tile[: count * together].reshape(count, -1)
    sums = _ones(count, tile.dtype) @ side_by_side
    total = sums.reshape(-1, channels).sum(axis=0, dtype=np.float64)
    if count * together < rows:
        total += tile[count * together :].reshape(-1, channels).sum(axis=0, dtype=np.float64)
    return total[None]


class _Rows:
    """The rows (R, M, C) of a batch, in tiles that stay in the cache.

    NumPy works along one run of memory at a time, so rows of few channels are taken several
    side by side.
    """

    def __init__(self, shape):
        self.replicas, self.count, self.channels = shape
        self.together = neighbours(self.count, self.channels, NORM_RUN)
        self.shape = self.replicas, self.count // self.together, self.together * self.channels
        self.step = max(1, NORM_TILE // self.shape[2])
        self.tiles = -(-self.shape[1] // self.step)  # of a replica

    def of(self, array):
        """Rows x (1 | R, M, C) as the tiles see them."""
        return np.broadcast_to(array.reshape(len(array), *self.shape[1:]), self.shape)

    def of_channels(self, vector):
        """A vector of channels (R, 1, C), once for each of the rows side by side."""
        return np.tile(vector, self.together)

    def each(self, function, backwards=False):
        """Call `function((r, rows), number)` for every tile, on all threads.

        backwards   from the last to the first: what a pass before touched last is in the cache
        """
        count = self.replicas * self.tiles

        def run(tile):
            r, number = divmod(count - 1 - tile if backwards else tile, self.tiles)
            function((r, slice(number * self.step, (number + 1) * self.step)), number)

        run_tiles(run, count)


@single_threaded_blas
def norm_moments(rows):
    """The mean and the population variance of every channel of a batch.

    Each tile's are computed in two passes, mean first, then squared deviations; tiles are merged
    in float64. So a variance much smaller than the mean keeps its digits.

    rows     (R, M, C)
    Returns  mean and variance, each (R, 1, C) float64
    Source   Chan, Golub and LeVeque 1983, eq. 1.5, for the merging
    """
    tiles = _Rows(rows.shape)
    sizes = np.zeros((tiles.tiles, 1, 1, 1))
    means, squares = np.empty((2, tiles.tiles, tiles.replicas, 1, tiles.channels))
    rows = tiles.of(rows)

    def run(part, number):
        tile, replica = rows[part], part[0]
        size = len(tile) * tiles.together
        mean = _column_sums(tile, tiles.channels) / size
        deviation = scratch("tile", tile.shape, tile.dtype)
        np.subtract(tile, tiles.of_channels(mean.astype(tile.dtype)), out=deviation)
        np.multiply(deviation, deviation, out=deviation)
        sizes[number] = size
        means[number, replica] = mean
        squares[number, replica] = _column_sums(deviation, tiles.channels)

    tiles.each(run)
    return merge_moments(tiles.count, sizes, means, squares)


@single_threaded_blas
def normalize(rows, factor, offset, replicas, activation):
    """y = f(factor · x + offset).

    rows            x (1 | R, M, C)
    factor, offset  (R, 1, C)
    Returns         (R, M, C)
    """
    y = empty((replicas, *rows.shape[1:]), rows.dtype)
    tiles = _Rows(y.shape)
    rows, results = tiles.of(rows), y.reshape(tiles.shape)
    factor, offset = map(tiles.of_channels, (factor, offset))

    def run(part, number):
        result = results[part]
        np.multiply(rows[part], factor[part[0]], out=result)
        np.add(result, offset[part[0]], out=result)
        activate(result, activation)

    tiles.each(run, backwards=True)  # what was read or written last is still in the cache
    return y


@single_threaded_blas
def norm_sums(g, y, rows, center, activation):
    """Σ g' and Σ g' · (x − center) for every channel, where g' is g where f lets it through.

    g, y     (R, M, C): the gradient of y = f(…), and y
    rows     x (1 | R, M, C)
    center   (R, 1, C)
    Returns  what `norm_gradient` is to be given for g; and two arrays (R, 1, C) float64
    """
    tiles = _Rows(y.shape)
    passed = g if activation is None else empty(y.shape, y.dtype)
    sums, products = np.empty((2, tiles.tiles, tiles.replicas, 1, tiles.channels))
    results = passed.reshape(tiles.shape)
    g, y, rows, center = *map(tiles.of, (g, y, rows)), tiles.of_channels(center)

    def run(part, number):
        tile, replica = results[part], part[0]
        if activation is not None:
            through = np.greater(y[part], 0, out=scratch("through", tile.shape, bool))
            if activation == "relu6":
                below = np.less(y[part], 6, out=scratch("below", tile.shape, bool))
                np.logical_and(through, below, out=through)
            np.multiply(g[part], through, out=tile)
        product = scratch("tile", tile.shape, tile.dtype)
        np.subtract(rows[part], center[replica], out=product)
        np.multiply(product, tile, out=product)
        sums[number, replica] = _column_sums(tile, tiles.channels)
        products[number, replica] = _column_sums(product, tiles.channels)

    tiles.each(run)
    return passed, sums.sum(axis=0), products.sum(axis=0)


@single_threaded_blas
def norm_gradient(g, y, rows, factor, through_moments, activation):
    """The gradient with respect to x: factor · g', and slope · x + constant if these are given.

    g                from `norm_sums`; what that made is written over
    y, rows          as there
    factor           (R, 1, C)
    through_moments  (slope, constant), each (R, 1, C), or None
    Returns          (R, M, C)
    """
    tiles = _Rows(y.shape)
    x_gradient = empty(y.shape, y.dtype) if activation is None else g
    results = x_gradient.reshape(tiles.shape)
    g, rows, factor = tiles.of(g), tiles.of(rows), tiles.of_channels(factor)
    if through_moments is not None:
        slope, constant = map(tiles.of_channels, through_moments)

    def run(part, number):
        result, replica = results[part], part[0]
        np.multiply(g[part], factor[replica], out=result)
        if through_moments is not None:
            rest = scratch("tile", result.shape, result.dtype)
            np.multiply(rows[part], slope[replica], out=rest)
            np.add(rest, constant[replica], out=rest)
            np.add(result, rest, out=result)

    tiles.each(run, backwards=True)
    return x_gradient


# --- depthwise convolution ----------------------------------------------------------------


def _depthwise(shape, dtype, kernel, stride, padding, dilation):
    """The windows of a depthwise convolution, in tiles whose strip of the image fits the cache."""
    windows = _Windows(shape, dtype, kernel, stride, padding, dilation)
    rows, columns = windows.output
    row_bytes = max(1, columns * windows.channels * windows.dtype.itemsize)
    windows.rows = int(min(rows, max(1, STRIP_BYTES // row_bytes)))
    windows.count = int(max(1, STRIP_BYTES // (row_bytes * rows)))
    windows.strips = -(-rows // windows.rows)
    windows.tiles = -(-windows.images // windows.count) * windows.strips
    # Only at stride 1 do the windows of neighbouring pixels lie side by side.
    windows.together = neighbours(columns, windows.channels, RUN) if stride[1] == 1 else 1
    return windows


def _pixels_together(piece, windows):
    """The windows of a strip `piece` (k, h, W, C): (k, OH, OW / t, kh, kw, t · C)."""
    if piece.strides[2] != windows.channels * piece.strides[3]:  # no pixel beside the next
        piece = np.ascontiguousarray(piece)
    image, row, pixel, channel = piece.strides
    (sh, sw), (dh, dw), together = windows.stride, windows.dilation, windows.together
    high = (piece.shape[1] - windows.span[0]) // sh + 1
    shape = (len(piece), high, windows.output[1] // together, *windows.kernel)
    strides = (image, sh * row, sw * together * pixel, dh * row, dw * pixel, channel)
    return as_strided(piece, (*shape, together * windows.channels), strides)


@single_threaded_blas
def depthwise(x, w, bias, stride, padding, dilation, activation):
    """Filter every channel with its own kernel, add the bias and apply the activation.

    y[r,n,i,j,c] = f( b[r,c] + Σ_uv x[r, n, i·s + u·d − p, j·s + v·d − p, c] · w[r,u,v,c] )

    x        (1 | R, N, H, W, C) float
    w        (R, kh, kw, C), dtype of x
    bias     (R, C) or None
    Returns  (R, N, OH, OW, C); stride, padding, dilation and activation as in `convolve`
    """
    replicas, *kernel, channels = w.shape
    windows = _depthwise(x.shape[1:], x.dtype, tuple(kernel), stride, padding, dilation)
    taps = np.tile(w, windows.together)
    y = empty((replicas, windows.images, *windows.output, channels), x.dtype)
    bias = row_of(bias, y.shape[-2])

    def run(tile):
        source, tile = divmod(tile, windows.tiles)
        images, rows = place = windows.place(tile)
        pixels = _pixels_together(windows.padded(x[source, images], rows), windows)
        for r in range(replicas) if len(x) == 1 else [source]:
            part = y[(r, *place)]
            flat = part.reshape(*pixels.shape[:3], -1)
            np.einsum("nhwuvc,uvc->nhwc", pixels, taps[r], out=flat)
            add_bias(part, bias, r)
            activate(part, activation)

    run_tiles(run, len(x) * windows.tiles)
    return y


@single_threaded_blas
def depthwise_weight_gradient(x, g, kernel, stride, padding, dilation):
    """The gradient of `depthwise` with respect to w, given that of y.

    x        (1 | R, N, H, W, C)
    g        (R, N, OH, OW, C)
    Returns  (R, kh, kw, C)
    """
    replicas, channels = len(g), g.shape[-1]
    windows = _depthwise(x.shape[1:], x.dtype, kernel, stride, padding, dilation)

    def run(source, tile, partial, first):
        images, rows = place = windows.place(tile)
        pixels = _pixels_together(windows.padded(x[source, images], rows), windows)
        for r in range(replicas) if len(x) == 1 else [source]:
            part = g[(r, *place)].reshape(*pixels.shape[:3], -1)
            total = np.einsum("nhwuvc,nhwc->uvc", pixels, part)
            if first:
                partial[r] = total
            else:
                partial[r] += total

    shape = (*kernel, windows.together * channels)
    total = _lanes(run, len(x), replicas, windows.tiles, shape, x.dtype)
    return total.reshape(replicas, *kernel, windows.together, channels).sum(axis=-2)


@single_threaded_blas
def depthwise_input_gradient(g, w, shape, stride, padding, dilation):
    """The gradient of `depthwise` with respect to x, given that of y.

    With stride 1 a depthwise convolution again: of g, padded, with the kernels flipped. With a
    larger stride every tap's share is added to the pixels that it met.

    g        (R, N, OH, OW, C)
    w        (R, kh, kw, C)
    shape    (N, H, W, C) of x
    Returns  (R, N, H, W, C)
    """
    replicas, *kernel, _ = w.shape
    if stride == (1, 1):
        border = tuple(
            (d * (k - 1) - before, d * (k - 1) - after)
            for (before, after), k, d in zip(padding, kernel, dilation, strict=True)
        )
        if min(map(min, border)) >= 0:
            return depthwise(g, w[:, ::-1, ::-1], None, stride, border, dilation, None)
    windows = _Windows(shape, g.dtype, tuple(kernel), stride, padding, dilation)
    x_gradient = empty((replicas, *shape), g.dtype)
    (top, bottom), (left, right) = padding
    padded = (top + windows.height + bottom, left + windows.width + right, windows.channels)

    def run(tile):
        r, image = divmod(tile, windows.images)
        part = g[r, image]
        result = scratch("result", padded, g.dtype)
        result[...] = 0
        share = scratch("rest", part.shape, g.dtype)
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                np.multiply(part, w[r, u, v], out=share)
                result[_taps(u, 0, windows), _taps(v, 1, windows)] += share
        inside = result[top : top + windows.height, left : left + windows.width]
        x_gradient[r, image] = inside

    run_tiles(run, replicas * windows.images)
    return x_gradient


def separable(x, expand, filters, project, stride, padding, activations):
    """Expand each pixel, filter every channel by itself, project each pixel: see `separable.py`.

    x            (1 | R, N, H, W, C) float
    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    filters      weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    stride       (rows, columns), pixels, of the depthwise convolution
    padding      ((top, bottom), (left, right)), pixels of zeros around what it filters
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    from minires.kernels.separable import convolve_separably

    return convolve_separably(x, expand, filters, project, stride, padding, activations)


# --- random numbers, optimizers, moments --------------------------------------------------


def uniform(rng, shape, like):
    """Random float32 in [0, 1).

    rng      a Generator; or a list of R of them: each of R networks gets what it would get alone
    shape    its first axis is R
    like     an array on the device where the result should be: this one
    Returns  an array of `shape`
    """
    if isinstance(rng, (list, tuple)):
        return np.stack([generator.random(shape[1:], np.float32) for generator in rng])
    return rng.random(shape, np.float32)


def _networks(rates, *vectors):
    """The rate and the vectors of all networks; one by one where rates differ."""
    if rates.size == 1:
        yield float(rates[0]), *vectors
    else:  # blocks of flat vectors do not end where networks end
        yield from zip(rates.tolist(), *vectors, strict=True)


def step_sgd(theta, gradient, velocity, rates, momentum, decay):
    """One step of `SGD`: v ← μ v + g + λ θ,  θ ← θ − ℓ v.

    theta      (P,) or (R, P), contiguous; changed
    gradient   like theta
    velocity   like theta, changed; or None without momentum
    rates      (1,) or (R,): ℓ
    momentum   μ; decay is λ
    """

    def step(rate, theta, gradient, velocity=None):
        if decay:
            gradient = gradient + decay * theta
        if velocity is not None:
            velocity *= momentum
            velocity += gradient
            gradient = velocity
        theta -= rate * gradient

    state = () if velocity is None else (velocity,)
    for rate, *own in _networks(rates, theta, gradient, *state):
        each_block(functools.partial(step, rate), *own)


def step_adam(theta, gradient, first, second, rates, epsilon, beta1, beta2):
    """One step of `Adam`: m and v follow g and g²,  θ ← θ − ℓ m / (√v + ε).

    theta           (P,) or (R, P), contiguous; changed
    gradient        like theta
    first, second   m and v, like theta; changed
    rates, epsilon  (1,) or (R,), and (1,): ℓ and ε, corrected for the start
    beta1, beta2    β₁ and β₂
    """
    epsilon = float(epsilon[0])

    def step(rate, theta, gradient, first, second):
        first += (1 - beta1) * (gradient - first)
        second += (1 - beta2) * (gradient * gradient - second)
        theta -= rate * first / (np.sqrt(second) + epsilon)

    for rate, *own in _networks(rates, theta, gradient, first, second):
        each_block(functools.partial(step, rate), *own)


def fold_moments(theta, first, offset, m2, n):
    """One update of `Moments` (eqs. 2-3), in float64.

    theta        the weights, contiguous
    first        like theta; offset and m2 like it in float64: changed
    n            (1,) int64: how many updates count, with this one; 0: not this one
    """
    n = int(n[0])
    if n == 1:
        first[...], offset[...], m2[...] = theta, 0, 0
    if n <= 1:
        return

    def fold(theta, first, offset, m2):
        d = theta.astype(np.float64)  # float32 minus float32 would be rounded to float32
        d -= first
        d -= offset
        offset += d / n
        d *= d
        d *= (n - 1) / n
        m2 += d

    # Seven short expressions a block: larger blocks spend less time between them.
    each_block(fold, theta, first, offset, m2, block=1 << 17)
