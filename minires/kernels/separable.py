"""Separable convolutions at prediction: pointwise, depthwise, pointwise in one pass, by strips.

An inverted residual (MobileNetV2) has six times as many channels within as before and behind,
five megabytes an image at 112 × 112 pixels, written and read three times. Here a thread
computes the few rows of them that some rows of outputs need, filters those, projects them, and
goes on; what is wide never leaves the cache. Rows at the border of two strips are computed
twice, which costs less than remembering them.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minires.backend import empty, neighbours, run_tiles, scratch, single_threaded_blas
from minires.kernels.cpu import RUN, activate

STRIP_BYTES = 3 << 18  # of wide values in a strip


class _Strips:
    """Which input pixels the strips of a depthwise convolution meet, and in what order.

    The columns of a padded image lie in `stride` groups: first every stride-th from the first,
    then from the second, … So what one tap meets lies side by side in memory at any stride.
    """

    def __init__(self, shape, wide, itemsize, kernel, stride, padding):
        self.images, self.height, self.width, self.channels = shape
        self.kernel, self.stride, self.padding, self.wide = kernel, stride, padding, wide
        self.output = tuple(
            (size + sum(border) - k) // s + 1
            for size, border, k, s in zip(shape[1:3], padding, kernel, stride, strict=True)
        )
        columns = self.output[1] + (kernel[1] - 1) // stride[1]
        self.columns = columns  # in each group
        row_bytes = columns * stride[1] * wide * itemsize
        fitting = (STRIP_BYTES // row_bytes - kernel[0]) // stride[0] + 1
        self.rows = min(max(1, fitting), self.output[0])
        self.count = -(-self.output[0] // self.rows)
        self.together = neighbours(self.output[1], wide, RUN)

    def fill(self, x, first, pixels):
        """Copy the rows of `x` (H, W, C), padded, from `first` on to `pixels` (h, s, w, C or more).

        Any further channels become 1 where the image is, and 0 like all others in the border.
        """
        pixels[...] = 0
        above, left = first - self.padding[0][0], self.padding[1][0]
        top = min(max(0, -above), len(pixels))
        bottom = min(max(top, self.height - above), len(pixels))
        step = self.stride[1]
        for group in range(step):
            start = max(0, -((group - left) // step))  # the first column of x in this group
            column = group + start * step - left
            count = min(len(range(column, self.width, step)), self.columns - start)
            if count > 0 and top < bottom:
                inside = pixels[top:bottom, group, start : start + count]
                seen = slice(column, column + count * step, step)
                inside[..., : self.channels] = x[above + top : above + bottom, seen]
                inside[..., self.channels :] = 1

    def filter(self, pixels, taps, out):
        """Depthwise convolution of `pixels` (h, s, w, E) with `taps` (kh, kw, t·E)."""
        row, _, pixel, channel = pixels.strides
        (kh, _), (down, across), together = self.kernel, self.stride, self.together
        runs = out.reshape(len(out), -1, together * self.wide)
        for first in range(min(across, self.kernel[1])):
            part = taps[:, first::across]
            windows = as_strided(
                pixels[:, first],
                (*runs.shape[:2], kh, part.shape[1], runs.shape[2]),
                (down * row, together * pixel, row, pixel, channel),
            )
            if first == 0:
                np.einsum("hwuvc,uvc->hwc", windows, part, out=runs)
            else:
                more = scratch("more", runs.shape, runs.dtype)
                runs += np.einsum("hwuvc,uvc->hwc", windows, part, out=more)


@single_threaded_blas
def convolve(x, expand, depthwise, project, stride, padding, activations):
    """Expand each pixel, filter every channel by itself, project each pixel.

    x            (1 | R, N, H, W, C) float
    expand       weights (R, C, E) and bias (R, E), or None: E = C, x is filtered itself
    depthwise    weights (R, kh, kw, E) and bias (R, E)
    project      weights (R, E, O) and bias (R, O)
    stride       (rows, columns), pixels, of the depthwise convolution
    padding      ((top, bottom), (left, right)), pixels of zeros around what it filters
    activations  after each of the three: None, "relu" or "relu6"
    Returns      (R, N, OH, OW, O)
    """
    taps, taps_bias = depthwise
    projection, offset = project
    replicas, *kernel, wide = taps.shape
    strips = _Strips(x.shape[1:], wide, x.itemsize, tuple(kernel), stride, padding)
    taps = np.tile(taps, strips.together)
    images, channels = x.shape[1], x.shape[-1]
    if expand is not None:
        # The bias is the weight of one more channel, 1 in the image and 0 in its border: so
        # the border stays 0, as it must.
        expansion = np.concatenate([expand[0], expand[1][:, None]], axis=1)
        channels += 1
    y = empty((replicas, images, *strips.output, projection.shape[-1]), x.dtype)

    def run(tile):
        source, tile = divmod(tile, images * strips.count)
        image, strip = divmod(tile, strips.count)
        rows = slice(strip * strips.rows, min((strip + 1) * strips.rows, strips.output[0]))
        high = (rows.stop - rows.start - 1) * stride[0] + kernel[0]
        shape = high, stride[1], strips.columns
        pixels = scratch("pixels", (*shape, channels), x.dtype)
        strips.fill(x[source, image], rows.start * stride[0], pixels)
        for r in range(replicas) if len(x) == 1 else [source]:
            hidden = pixels
            if expand is not None:
                hidden = scratch("hidden", (*shape, wide), x.dtype)
                flat = pixels.reshape(-1, channels)
                np.matmul(flat, expansion[r], out=hidden.reshape(-1, wide))
                activate(hidden, activations[0])
            shape_behind = rows.stop - rows.start, strips.output[1], wide
            filtered = scratch("filtered", shape_behind, x.dtype)
            strips.filter(hidden, taps[r], filtered)
            filtered += taps_bias[r]
            activate(filtered, activations[1])
            result = y[r, image, rows]
            flat = result.reshape(-1, result.shape[-1])
            np.matmul(filtered.reshape(-1, wide), projection[r], out=flat)
            result += offset[r]
            activate(result, activations[2])

    run_tiles(run, len(x) * images * strips.count)
    return y
