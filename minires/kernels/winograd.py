"""Winograd's minimal filtering: a convolution with fewer multiplications.

To compute m neighbouring outputs of a filter with r taps, the definition multiplies m·r
times. Winograd (1980) needs only n = m + r − 1: read input d and filter g as the coefficients
of polynomials, evaluate both at n points, multiply the values, and interpolate:

    y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]

In two dimensions every piece of n × n pixels goes through `Bᵀ` along both axes, first down
the columns, then along the rows. What was one product per pixel and tap becomes n² independent
matrix products (pieces × C) · (C × O), one a point. A 5×5 kernel with m = 4 multiplies 64 times
where the definition multiplies 400 times. Counting the transforms, which use a pair of opposite
points to halve their own multiplications, twice as fast in practice.

The price is rounding, in float32 about 1e-6 of the largest output for 3×3 kernels and 5e-6 for
5×5 kernels, against 5e-7.

Here are the matrices; `c/winograd.c` does the work.

Source   S. Winograd, Arithmetic Complexity of Computations, 1980;
         Lavin and Gray, arXiv:1509.09308
"""

import functools

import numpy as np

OUTPUTS = 4  # m: of 2, 3, 4 and 6 the fastest

# Kernel size r → the finite points, n − 1 of them: of those tried the ones that round least. Each
# stands beside its negative: even powers of the two are equal, and odd ones opposite.
POINTS = {3: (0, 0.75, -0.75, 1.5, -1.5), 5: (0, 1, -1, 0.5, -0.5, 2, -2)}


def transforms(points, m, r):
    """The matrices Aᵀ (m, n), G (n, r) and Bᵀ (n, n) for m outputs of r taps, n = m + r − 1.

    n − 1 points are finite, the last is infinity (the leading coefficient). Column j of Aᵀ
    and row j of G evaluate at point j; row j of Bᵀ is the polynomial that vanishes at all the
    other points.
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
def matrices(r, dtype):
    """A (n, m), G (n, r), Bᵀ (n, n), and m, as `c/winograd.c` takes them."""
    to_output, filter_side, input_side = transforms(POINTS[r], OUTPUTS, r)
    arrays = to_output.T, filter_side, input_side
    return *(np.ascontiguousarray(matrix, dtype) for matrix in arrays), OUTPUTS


def applies(image, kernel, stride, dilation):
    """Whether this file is for a convolution: every pixel of it, and enough channels.

    image    (H, W, C) of the input
    kernel   (kh, kw, C, O)
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
