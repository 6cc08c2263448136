"""Separable convolutions at prediction: pointwise, depthwise, pointwise in one pass, by tiles.

An inverted residual (MobileNetV2) has six times as many channels within as before and behind,
five megabytes an image at 112 × 112 pixels, written and read three times. Here a thread
computes the few rows of them that some rows of outputs need, or those of a few small images,
filters those, projects them, and goes on; what is wide never leaves the cache. Rows that two
tiles of one image need are computed twice, which costs less than remembering them.

A thread that calls NumPy must wait for the interpreter whenever another one holds it. So a
tile is a handful of calls, each as long as the cache allows, and what tiles have in common
(buffers, views, borders of zeros) is made once.
"""

import threading

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.arrays import run_tiles, scratch, single_threaded_blas
from minires.kernels.cpu import RUN
from minires.kernels.outputs import Outputs, activate, add_bias, neighbours, row_of

TILE_BYTES = 1 << 21  # of wide values in a tile


class _Tiles:
    """Whole images, or strips of rows of one: what of the input each needs, and where it goes.

    The columns of a padded image lie in `stride` groups: first every stride-th from the first,
    then from the second, … So what one tap meets lies side by side in memory at any stride.
    """

    def __init__(self, shape, wide, itemsize, kernel, stride, padding):
        self.images, self.height, self.width, self.channels = shape
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.output = tuple(
            (size + sum(border) - k) // s + 1
            for size, border, k, s in zip(shape[1:3], padding, kernel, stride, strict=True)
        )
        down, across = stride
        self.columns = self.output[1] + (kernel[1] - 1) // across  # in each group
        self.side_by_side = neighbours(self.output[1], wide, RUN)  # pixels filtered in one run
        row_bytes = self.columns * across * wide * itemsize
        fitting = max(1, (TILE_BYTES // row_bytes - kernel[0]) // down + 1)
        self.strips = -(-self.output[0] // fitting)
        self.rows = -(-self.output[0] // self.strips)  # of outputs in a strip, all much alike
        self.high = (self.rows - 1) * down + kernel[0]  # rows of the padded image behind them
        together = max(1, TILE_BYTES // (row_bytes * self.high)) if self.strips == 1 else 1
        blocks = max(1, -(-self.images // together))
        # A power of two: the same number for each of 2, 4 or 8 threads. No more than are needed:
        # with more, small batches take longer on two threads.
        blocks = 1 << (blocks - 1).bit_length()
        self.together = max(1, -(-self.images // blocks))  # images in a tile
        self.count = -(-self.images // self.together) * self.strips
        first = self.place(0)[2]  # rows of the image that a tile needs, at most
        self.seen = first.stop - first.start if self.strips == 1 else min(self.high, self.height)
        self.groups = []  # of columns: (number, columns of the image, columns of the group)
        for group in range(across):
            start = max(0, -((group - padding[1][0]) // across))
            first = group + start * across - padding[1][0]
            met = range(first, self.width, across)[: self.columns - start]
            if met:
                taken = slice(first, met[-1] + 1, across)
                self.groups.append((group, taken, slice(start, start + len(met))))

    def place(self, tile):
        """What a tile is: its images; its rows of outputs; the rows of the image that it needs,
        and where these lie among those of its padded image; how many rows that has."""
        block, strip = divmod(tile, self.strips)
        first = block * self.together
        images = slice(first, min(first + self.together, self.images))
        rows = slice(strip * self.rows, min((strip + 1) * self.rows, self.output[0]))
        above = rows.start * self.stride[0] - self.padding[0][0]  # where the tile begins
        high = (rows.stop - rows.start - 1) * self.stride[0] + self.kernel[0]
        top = min(max(0, -above), high)
        bottom = min(max(top, self.height - above), high)
        return images, rows, slice(above + top, above + bottom), slice(top, bottom), high


class _Workspace:
    """A thread's buffers for the tiles of one convolution.

    pixels    input pixels and a 1: the weight of that one more channel is the bias
    hidden    what is filtered, with its border of zeros
    windows   what the taps meet in each group of columns: views of `hidden`
    filtered  and what comes of it
    """

    def __init__(self, tiles, wide, expands, dtype):
        count, across = tiles.together, tiles.stride[1]
        self.hidden = scratch("hidden", (count, tiles.high, across, tiles.columns, wide), dtype)
        self.hidden[...] = 0
        if expands:
            inside = tiles.seen, across, -(-tiles.width // across)
            self.pixels = scratch("pixels", (count, *inside, tiles.channels + 1), dtype)
            self.pixels[...] = 0  # where a group has a column less than another, too
            self.pixels[..., -1] = 1
            self.expanded = scratch("expanded", (count, *inside, wide), dtype)
        shape = count, tiles.rows, tiles.output[1]
        self.filtered = scratch("filtered", (*shape, wide), dtype)
        self.runs = self.filtered.reshape(*shape[:2], -1, tiles.side_by_side * wide)
        self.more = scratch("more", self.runs.shape, dtype)
        image, row, _, pixel, channel = self.hidden.strides
        (kh, kw), (down, _) = tiles.kernel, tiles.stride
        self.windows = [
            as_strided(
                self.hidden[:, :, first],
                (*self.runs.shape[:3], kh, len(range(first, kw, across)), self.runs.shape[3]),
                (image, down * row, tiles.side_by_side * pixel, row, pixel, channel),
            )
            for first in range(min(across, kw))
        ]


@single_threaded_blas
def convolve_separably(x, expand, filters, project, stride, padding, activations):
    """Expand each pixel, filter every channel by itself, project each pixel.

    x            (1 | R, N, H, W, C) float
    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    filters      weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    stride       (rows, columns), pixels, of the depthwise convolution
    padding      ((top, bottom), (left, right)), pixels of zeros around what it filters
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    taps, taps_bias = filters
    projection, offset = project
    replicas, *kernel, wide = taps.shape
    tiles = _Tiles(x.shape[1:], wide, x.itemsize, tuple(kernel), stride, padding)
    if expand is not None:
        expansion = np.concatenate([expand[0], expand[1][:, None]], axis=1)
    shape = replicas, x.shape[1], *tiles.output, projection.shape[-1]
    outputs = Outputs(shape, x.dtype, offset, activations[2])
    taps, taps_bias = np.tile(taps, tiles.side_by_side), row_of(taps_bias, tiles.output[1])
    workspaces = {}

    def run(tile):
        thread = threading.get_ident()
        if thread not in workspaces:
            workspaces[thread] = _Workspace(tiles, wide, expand is not None, x.dtype)
        work = workspaces[thread]
        source, tile = divmod(tile, tiles.count)
        images, rows, seen, inside, high = tiles.place(tile)
        part = x[source, images, seen]
        count, size = len(part), rows.stop - rows.start
        hidden = work.hidden[:count, :high]
        if tiles.strips > 1:  # else the rows of the border stay as they are
            hidden[:, : inside.start] = 0
            hidden[:, inside.stop :] = 0
        if expand is not None:
            pixels = work.pixels[:count, : part.shape[1]]
            expanded = work.expanded[:count, : part.shape[1]]
            for group, taken, columns in tiles.groups:
                width = columns.stop - columns.start
                pixels[:, :, group, :width, :-1] = part[:, :, taken]
        for r in range(replicas) if len(x) == 1 else [source]:
            if expand is not None:
                flat_pixels = pixels.reshape(-1, pixels.shape[-1])
                np.matmul(flat_pixels, expansion[r], out=expanded.reshape(-1, wide))
            for group, taken, columns in tiles.groups:
                goal = hidden[:, inside, group, columns]
                if expand is None:
                    goal[...] = part[:, :, taken]
                else:
                    width = columns.stop - columns.start
                    activate(expanded[:, :, group, :width], activations[0], out=goal)
            runs = work.runs[:count, :size]
            for first, windows in enumerate(work.windows):
                own = taps[r][:, first :: stride[1]]
                out = work.more[:count, :size] if first else runs
                np.einsum("nhwuvc,uvc->nhwc", windows[:count, :size], own, out=out)
                if first:
                    runs += out
            filtered = work.filtered[:count, :size]
            add_bias(filtered, taps_bias, r)
            activate(filtered, activations[1])
            result = outputs.tile(r, images, rows)
            flat_result = result.reshape(-1, result.shape[-1])
            np.matmul(filtered.reshape(-1, wide), projection[r], out=flat_result)
            outputs.finish(result, r, images, rows)

    run_tiles(run, len(x) * tiles.count)
    return outputs.y
