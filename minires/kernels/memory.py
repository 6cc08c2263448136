"""Memory for the results of the fast kernels, used again and again.

New memory from the system costs a page fault for every four kilobytes, and is filled with zeros
first. A training step of MobileNetV2 makes two gigabytes of results. So the system is asked for a
few large *slabs*, and each result is put into a piece of one. When its last array is gone, a piece
becomes a *gap*. Gaps side by side become one, so that pieces of any size find room in them.
"""

import bisect
import math
import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

SMALLEST = 1 << 20  # bytes: below it malloc is as good
LINE = 64  # bytes of a cache line: where every piece begins
SLAB = 1 << 28  # bytes; what nobody has written to takes no memory
MOST_IDLE = 1 << 30  # bytes of unused slabs that are kept, at most

_lock = threading.Lock()
_slabs = []  # in the order in which they were made


def _after_fork():
    """In the child no thread is left that could open a lock again."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Slab:
    """Memory from the system, and its gaps: [(start, stop), …] in this order."""

    def __init__(self, size):
        memory = np.empty(size + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        self.memory, self.gaps = memory[start : start + size], [(0, size)]

    def take(self, size):
        """Where a piece begins: at the start of the first gap that is large enough; or None."""
        for k, (start, stop) in enumerate(self.gaps):
            if stop - start >= size:
                self.gaps[k : k + 1] = [(start + size, stop)] if start + size < stop else []
                return start
        return None

    def give_back(self, start, stop):
        """Make a gap of a piece, one with the gaps beside it."""
        k = bisect.bisect(self.gaps, (start, stop))
        if k < len(self.gaps) and self.gaps[k][0] == stop:
            stop = self.gaps.pop(k)[1]
        if k > 0 and self.gaps[k - 1][1] == start:
            k -= 1
            start = self.gaps.pop(k)[0]
        self.gaps.insert(k, (start, stop))

    @property
    def idle(self):
        """Its bytes, if nobody uses any of them; else 0."""
        return len(self.memory) if self.gaps == [(0, len(self.memory))] else 0


class _Owner:
    """Holds a piece of a slab as long as there is an array in it: views refer to their owner."""

    # `__del__` may happen anywhere, in any thread, even while `_lock` is held. So it takes no
    # lock: appending to a deque is safe by itself.
    given_back: ClassVar = deque()

    def __init__(self, slab, start, stop):
        self.piece = slab, start, stop
        self.__array_interface__ = slab.memory[start:stop].__array_interface__

    def __del__(self):
        self.given_back.append(self.piece)


def empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """As `np.empty`, an array without values, but in memory that was used before.

    shape    of the array
    dtype    of its numbers
    Returns  an array in C order
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        owner = _Owner(*_take(size + -size % LINE))
    return np.asarray(owner)[:size].view(dtype).reshape(shape)


def _take(size):
    """A piece of the first slab that has room for it: so the last slabs may become idle."""
    while _Owner.given_back:
        slab, start, stop = _Owner.given_back.popleft()
        slab.give_back(start, stop)
    _let_go()
    for slab in _slabs:
        start = slab.take(size)
        if start is not None:
            return slab, start, start + size
    _slabs.append(_Slab(max(size, SLAB)))
    return _slabs[-1], _slabs[-1].take(size), size


def _let_go():
    """Of idle slabs beyond the limit the last goes first."""
    idle = sum(slab.idle for slab in _slabs)
    for slab in _slabs[::-1]:
        if idle > MOST_IDLE and slab.idle:
            idle -= slab.idle
            _slabs.remove(slab)
