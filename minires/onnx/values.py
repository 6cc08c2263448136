"""A value in a graph: an array that remembers how its axes are stored.

ONNX speaks of images as (N, C, H, W), the kernels here want (N, H, W, C). Re-laying every
array before and after every node would cost more than the nodes. So a value keeps its array as
it is and says which axis is which; an operator asks for the order it needs, and what already
lies in that order is not touched. A Transpose node then moves nothing at all.
"""

import math

from minires.arrays import to_host
from minires.engine import ops
from minires.engine.autodiff import data_of

CHANNELS_LAST = (0, 2, 3, 1)  # images (N, C, H, W) stored as (N, H, W, C)
KERNEL = (2, 3, 1, 0)  # weights (O, C, kh, kw) stored as (kh, kw, C, O)


class Value:
    """An array (or Tensor), and the file's axis that each of its axes is.

    data    its axis k is axis order[k] of the file
    order   a permutation; the file's own order without it
    known   the same numbers on the host, where they are known already: a GPU need not be asked
    """

    __slots__ = ("data", "known", "order")

    def __init__(self, data, order=None, known=None):
        self.data, self.known = data, known
        self.order = tuple(range(data.ndim)) if order is None else order

    @property
    def shape(self):
        """The shape that the file speaks of."""
        shape = [0] * len(self.order)
        for axis, size in zip(self.order, self.data.shape, strict=True):
            shape[axis] = size
        return tuple(shape)

    @property
    def rank(self):
        return len(self.order)

    @property
    def is_float(self):
        return self.data.dtype.kind == "f"

    @property
    def size(self):
        return math.prod(self.data.shape)

    @property
    def plain(self):
        """The array (or Tensor) with the file's own axes."""
        return self.stored(tuple(range(self.rank)))

    def stored(self, order):
        """The array (or Tensor) with its axes in some order."""
        if order == self.order:
            return self.data
        return ops.transpose(self.data, axes=tuple(self.order.index(axis) for axis in order))

    def transposed(self, axes):
        """The value whose axis k is this one's axes[k]: only the names of axes change."""
        return Value(self.data, tuple(axes.index(axis) for axis in self.order))

    def with_rank(self, rank):
        """The value with axes of size 1 in front, as broadcasting would add them."""
        more = rank - self.rank
        if not more:
            return self
        data = ops.reshape(self.data, shape=(1,) * more + tuple(self.data.shape))
        return Value(data, (*range(more), *(axis + more for axis in self.order)))

    def place(self, axis):
        """Which axis of the array is an axis of the file (negative: from the end)."""
        if not -self.rank <= axis < self.rank:
            raise ValueError(f"axis {axis} of an array with {self.rank} axes")
        return self.order.index(axis % self.rank)

    @property
    def array(self):
        """The array itself, without its history."""
        return data_of(self.data)

    @property
    def on_host(self):
        """The array in NumPy; a GPU that computes it is waited for."""
        return to_host(self.array) if self.known is None else self.known
