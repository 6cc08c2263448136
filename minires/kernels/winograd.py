"""Winograd's minimal filtering: a convolution with fewer multiplications.

To compute m neighbouring outputs of a filter with r taps, the definition multiplies m·r
times. Winograd (1980) needs only n = m + r − 1: read input d and filter g as the coefficients
of polynomials, evaluate both at n points, multiply the values, and interpolate:

    y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]

In two dimensions every piece of n × n pixels is multiplied by `Bᵀ` along both axes, first down
the columns, then along the rows. The convolution then is n² independent matrix products
(pieces × C) · (C × O), one per pair of points. For a 5×5 kernel and m = 4 that is 64
multiplications where the definition needs 400. The transforms cost time too, though opposite
points halve their multiplications: in practice the method is twice as fast.

It rounds more: in float32 the error is about 1e-6 of the largest output for 3×3 kernels and 5e-6
for 5×5 kernels; without the method it is 5e-7.

This file says for which convolutions the method is used (`applies`) and makes its matrices
(`matrices`); `c/winograd.c` does the work.

Source   S. Winograd, Arithmetic Complexity of Computations, 1980;
         Lavin and Gray, arXiv:1509.09308
"""

import functools
from collections.abc import Sequence

import numpy as np

from minires.kernels.plain import Pair

OUTPUTS = 4  # m: of 2, 3, 4 and 6 the fastest

# Kernel size r → its n − 1 finite points: those that round least, of all that were tried. Each
# point is followed by its negative: their even powers are equal, their odd powers opposite.
POINTS = {3: (0, 0.75, -0.75, 1.5, -1.5), 5: (0, 1, -1, 0.5, -0.5, 2, -2)}


def transforms(
    points: Sequence[float], m: int, r: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices for m outputs of a filter with r taps, from n = m + r − 1 points.

    n − 1 points are finite, the last is infinity (the leading coefficient). Column j of Aᵀ
    and row j of G evaluate at point j; row j of Bᵀ is the polynomial that vanishes at all the
    other points.

    points   the n − 1 finite points
    m        outputs
    r        taps of the filter
    Returns  Aᵀ (m, n), G (n, r) and Bᵀ (n, n), float64
    """
    n = m + r - 1
    points = np.array(points, float)
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
def matrices(r: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The matrices as `c/winograd.c` takes them.

    r        taps of the filter: 3 or 5
    dtype    float32 or float64
    Returns  A (n, m), G (n, r), Bᵀ (n, n), and m
    """
    to_output, filter_side, input_side = transforms(POINTS[r], OUTPUTS, r)
    arrays = to_output.T, filter_side, input_side
    return *(np.ascontiguousarray(matrix, dtype) for matrix in arrays), OUTPUTS


def applies(image: Sequence[int], kernel: Sequence[int], stride: Pair, dilation: Pair) -> bool:
    """Whether Winograd's method is the faster one.

    It is for stride 1, 3×3 or 5×5 kernels, at least 16 channels, and an image that is not small.

    image      (H, W, C) of the input
    kernel     (kh, kw, C, O)
    stride     (rows, columns), pixels
    dilation   (rows, columns), pixels
    """
    kh, kw, channels, out_channels = kernel
    pixels = image[0] * image[1]
    return (
        kh == kw
        and kh in POINTS
        and stride == (1, 1)
        and dilation == (1, 1)
        and min(channels, out_channels) >= 16
        and pixels >= 4 * OUTPUTS**2
        # Few pixels do not pay for the transforms of many kernels.
        and pixels * 500 >= channels * out_channels
    )
