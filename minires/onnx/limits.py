"""One pass through a graph, within limits of memory and time.

No operator is trusted to stay within these limits. Before every step `Run.admit` asks for the
memory and the time that the step may need, judged by its inputs. After it, `Run.hold` counts what
the step really made. An operator whose results can be larger than its first input, or that takes
longer than to touch every number a few times, asks for more itself: `reserve` and `spend`.

The unit of time is one multiplication in a product of large matrices. A core does 2 · 10¹⁰ of them
a second, or more. Everything else is counted as so many multiplications as take the same time.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minires.arrays import Array, xp_of
from minires.onnx.errors import SecurityError
from minires.onnx.reading import Node
from minires.onnx.values import Value

MEMORY = 1 << 31  # bytes at the same time, for one image
COPIES = 4  # an operator may need so many arrays of the size of its largest one
WORK = 10**12  # time for one image: less than a minute. Inception-V3 takes 10¹⁰, VGG-19 5 · 10¹⁰
TRIAL = 10  # loading may take this part of the time for one image
CALL = 5_000_000  # time of one step, or of one more call of NumPy on all threads
TOUCH = 200  # time to compute one number from another

# Nodes that keep the numbers and change the shape only.
VIEWS = {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast", "CastLike"}


class Cost(NamedTuple):
    """What an operator needs beside its own requests.

    touches      how often each number of its inputs is worked on
    broadcasts   whether its result has the shape to which all of its inputs broadcast
    """

    touches: int = 1
    broadcasts: bool = False


class TooLong(SecurityError):
    """Loading takes too long to wait for it. The network may still be a real one."""


class Run:
    """One pass through a graph: how it computes, and how much it may use.

    dtype      of all floats: float32 or float64
    like       an array on the device where it computes
    limits     (bytes at the same time, units of time), each for one image
    mode       "predict"; "train": batch norm uses the batch and moves its running statistics, and
               dropout drops; "measure": as "train", but dropout does nothing
    rng        a Generator for dropout, or None
    images     how many images there are: the limits are multiplied by it
    part       the run may take one part in so many of the time
    momentum   in "measure": the share of the old statistics that is kept
    """

    def __init__(
        self,
        dtype: Any,
        like: Array,
        limits: tuple[int, int],
        mode: str = "predict",
        rng: np.random.Generator | None = None,
        images: int = 1,
        part: int = 1,
        momentum: float | None = None,
    ):
        self.dtype, self.like, self.mode, self.rng = dtype, like, mode, rng
        self.momentum = momentum
        self.images, (self.memory, self.work) = max(images, 1), limits
        self.part = part
        self.held = self.spent = 0
        self.owners = {}  # id of an array that owns memory → [how many values are in it, itself]

    def constant(self, array: Array) -> Array:
        """Numbers as floats of this run, on its device.

        array   NumPy or CuPy
        """
        return xp_of(self.like).asarray(array, self.dtype)

    def number(self, value: float) -> np.floating:
        """One number as a float of this run. It goes to a GPU with the call, in no array.

        value   the number
        """
        return np.dtype(self.dtype).type(value)

    def admit(self, node: Node, values: Sequence[Value | None], cost: Cost) -> None:
        """Ask for what a step may need, before it is computed.

        node     of the step
        values   its inputs
        cost     of its operator
        Raises   SecurityError when that is more than the run has
        """
        given = [value for value in values if value is not None]
        self.spend(CALL + cost.touches * TOUCH * sum(value.size for value in given))
        if cost.broadcasts:
            shape = np.broadcast_shapes(*(value.shape for value in given))
            self.reserve(shape, max(value.array.itemsize for value in given))
        elif given:
            copies = 1 if node.operator in VIEWS else COPIES
            self._check(copies * given[0].array.nbytes, given[0].shape)

    def reserve(self, shape: Sequence[int], itemsize: int | None = None) -> int:
        """Ask for `COPIES` arrays: a result, and as much again for what is needed on the way.

        shape      of the result
        itemsize   bytes of an element; None: those of a float of this run
        Returns    the number of elements of one array
        Raises     SecurityError when these and all that is held exceed the memory
        """
        count = math.prod(int(size) for size in shape)
        self._check(count * COPIES * (itemsize or np.dtype(self.dtype).itemsize), shape)
        return count

    def _check(self, more, shape):
        wanted = self.held + more
        if wanted > self.memory * self.images:
            raise SecurityError(
                f"an array {tuple(shape)} takes the memory in use to {wanted:,} bytes; the limit "
                f"is {self.memory:,} per image: load(…, memory=…) raises it, if you trust the file"
            )

    def spend(self, multiplications: float) -> None:
        """Ask for time.

        multiplications   units of time
        Raises            SecurityError when an image may not take so much; TooLong when it may, but
                          this run may not
        """
        self.spent += multiplications
        wanted, remedy = self.spent, "load(…, work=…) raises the limit, if you trust the file"
        if wanted > self.work * self.images:
            raise SecurityError(
                f"up to here the graph takes {wanted:.1e} multiplications; the limit is "
                f"{self.work:.0e} per image: {remedy}"
            )
        if wanted * self.part > self.work * self.images:
            raise TooLong(
                f"up to here loading the graph takes {wanted:.1e} multiplications; the limit is "
                f"{self.work * self.images / self.part:.0e}: {remedy}"
            )

    def lend(self, array: Array) -> None:
        """Do not count the memory of an array: the caller holds it anyway.

        array   a weight, a statistic or a constant
        """
        owner = _owner(array)
        self.owners.setdefault(id(owner), [0, owner])[0] += 1

    def hold(self, value: Value) -> None:
        """Count the memory that a new value keeps alive: for a view, that of the whole array.

        value    a result
        Raises   SecurityError when it exceeds what the run has
        """
        owner = _owner(value.array)
        if id(owner) not in self.owners:
            self.owners[id(owner)] = [0, owner]
            self.held += owner.nbytes
            self._check(0, value.shape)
        self.owners[id(owner)][0] += 1

    def release(self, value: Value) -> None:
        """Subtract the memory of a value that is dropped, if no other value is in it.

        value   one that `hold` counted
        """
        owner = _owner(value.array)
        entry = self.owners[id(owner)]
        entry[0] -= 1
        if not entry[0]:
            del self.owners[id(owner)]
            self.held -= owner.nbytes


def _owner(array):
    """The array that owns the memory that another one is a view of."""
    while isinstance(array.base, type(array)):
        array = array.base
    return array
