"""Sums over rows and over the axes along which an array was broadcast."""

import math

from minires.arrays import Array
from minires.kernels import kernels_of


def sum_rows(array: Array) -> Array:
    """Sum over the last axis but one.

    array    (…, M, C)
    Returns  (…, C)
    """
    return kernels_of(array).sum_rows(array)


def sum_leading(array: Array, count: int) -> Array:
    """Sum over the first axes.

    array    of any shape
    count    how many axes
    Returns  an array of the other axes
    """
    rest = array.shape[count:]
    # Both sizes are given: NumPy cannot infer a size of an empty array.
    return sum_rows(array.reshape(math.prod(array.shape[:count]), math.prod(rest))).reshape(rest)


def sum_to_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum `array` over every axis along which `shape` was stretched.

    shape    what was broadcast
    array    any shape that `shape` broadcasts to
    Returns  an array of `shape`; `array` itself where the two agree
    """
    if array.shape == shape:
        return array
    array = sum_leading(array, array.ndim - len(shape)) if array.ndim > len(shape) else array
    stretched = tuple(
        axis
        for axis, (size, now) in enumerate(zip(shape, array.shape, strict=True))
        if size == 1 and now != 1
    )
    return array.sum(axis=stretched, keepdims=True) if stretched else array
