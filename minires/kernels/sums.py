"""Sums over rows and over the axes along which an array was broadcast."""

import math

import numpy as np

from minires.arrays import run_tiles, xp_of
from minires.kernels import kernels_of


def sum_rows(array):
    """Sum over the last axis but one: (…, M, C) → (…, C).

    Written as products with a vector of ones, two thousand rows at a time: faster than adding
    one row after another, and more exact in float32, as no sum grows long.
    """
    xp, step = xp_of(array), 2048
    if array.dtype.kind != "f":
        return array.sum(axis=-2)
    rows = array.shape[-2]
    if xp is not np:
        return kernels_of(array).sum_rows(array)
    if rows <= step:
        return (np.ones((1, rows), array.dtype) @ array)[..., 0, :]
    ones = np.ones((1, step), array.dtype)
    partial = np.empty((-(-rows // step), *array.shape[:-2], 1, array.shape[-1]), array.dtype)

    def add(tile):
        part = array[..., tile * step : (tile + 1) * step, :]
        np.matmul(ones[:, : part.shape[-2]], part, out=partial[tile])

    run_tiles(add, len(partial))
    return partial.sum(axis=0)[..., 0, :]


def sum_leading(array, count):
    """Sum the first `count` axes away."""
    rest = array.shape[count:]
    # Both sizes in full: of an empty array NumPy cannot infer one.
    return sum_rows(array.reshape(math.prod(array.shape[:count]), math.prod(rest))).reshape(rest)


def sum_to_shape(array, shape):
    """Undo broadcasting: sum `array` over every axis along which `shape` was stretched.

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
