"""A value in a graph: an array that remembers how its axes are stored.

ONNX stores images as (N, C, H, W), the kernels of this library take (N, H, W, C). Copying every
array into another order before and after every node would cost more than the nodes. So a value
keeps its array as it is, and remembers which axis is which. An operator asks for the order that it
needs; an array that is stored in that order is not copied. A Transpose node moves no number at all.
"""

import math
from collections.abc import Sequence

import numpy as np

from minires.arrays import Array, to_host
from minires.engine import ops
from minires.engine.autodiff import data_of

Order = tuple[int, ...]  # which axis of the file each stored axis is
CHANNELS_LAST = (0, 2, 3, 1)  # images (N, C, H, W) stored as (N, H, W, C)
KERNEL = (2, 3, 1, 0)  # weights (O, C, kh, kw) stored as (kh, kw, C, O)


class Value:
    """An array (or Tensor), and which axis of the file each of its axes is.

    data    the stored array: its axis k is axis order[k] of the file
    order   a permutation; None: the file's own order
    known   the same numbers as a NumPy array, if they are known; then a GPU need not be asked
    """

    __slots__ = ("data", "known", "order")

    def __init__(self, data: Array, order: Order | None = None, known: np.ndarray | None = None):
        self.data, self.known = data, known
        self.order = tuple(range(data.ndim)) if order is None else order

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with the file's own axes."""
        shape = [0] * len(self.order)
        for axis, size in zip(self.order, self.data.shape, strict=True):
            shape[axis] = size
        return tuple(shape)

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.order)

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floats: else they are whole numbers or truth values."""
        return self.data.dtype.kind == "f"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.data.shape)

    @property
    def plain(self) -> Array:
        """The array (or Tensor) with the file's own axes."""
        return self.stored(tuple(range(self.rank)))

    def stored(self, order: Order) -> Array:
        """The array (or Tensor) with its axes in a given order.

        order   axis k of the result is axis order[k] of the file
        """
        if order == self.order:
            return self.data
        return ops.transpose(self.data, axes=tuple(self.order.index(axis) for axis in order))

    def transposed(self, axes: Sequence[int]) -> "Value":
        """The value with the file's axes in another order. The array stays as it is stored.

        axes   axis k of the result is axis axes[k] of this one
        """
        return Value(self.data, tuple(axes.index(axis) for axis in self.order))

    def with_rank(self, rank: int) -> "Value":
        """The value with axes of size 1 in front, as broadcasting would add them.

        rank   how many axes the result has, not fewer than now
        """
        more = rank - self.rank
        if not more:
            return self
        data = ops.reshape(self.data, shape=(1,) * more + tuple(self.data.shape))
        return Value(data, (*range(more), *(axis + more for axis in self.order)))

    def axis(self, number: int) -> int:
        """An axis of the file, counted from the first one.

        number   of the axis; below 0: from the end
        Raises   ValueError when there is no such axis
        """
        if not -self.rank <= number < self.rank:
            raise ValueError(f"axis {number} of an array with {self.rank} axes")
        return number % self.rank

    def place(self, number: int) -> int:
        """Which axis of the stored array is an axis of the file.

        number   of the file's axis; below 0: from the end
        Raises   ValueError when there is no such axis
        """
        return self.order.index(self.axis(number))

    @property
    def array(self) -> Array:
        """The array itself, without the node that a Tensor has."""
        return data_of(self.data)

    @property
    def on_host(self) -> np.ndarray:
        """The numbers as a NumPy array. If a GPU computes them, this waits for it."""
        return to_host(self.array) if self.known is None else self.known
