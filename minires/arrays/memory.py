"""Memory that is used again, because fresh memory costs a page fault every four kilobytes."""

import math
import sys
import threading

import numpy as np

from minires.arrays.device import xp_of


class _Recycler:
    """Hands out uninitialised arrays, taking back those that nobody else refers to.

    A fresh array of some megabytes costs a page fault for every four kilobytes, each time;
    on a training step that is a quarter of the time. A block whose only reference is the one
    held here is free, and its pages are already there: CPython's reference count says so,
    and since NumPy's views refer to the array that owns the memory, it counts them too.
    """

    smallest = 1 << 16  # bytes; below this malloc is as good
    idle_limit = 1 << 28  # bytes kept although nobody uses them

    def __init__(self):
        self._lock = threading.Lock()
        self._blocks = []  # in order of last use, oldest first

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < self.smallest:
            return np.empty(shape, dtype)
        with self._lock:
            block = self._take(size)
        return block[:size].view(dtype).reshape(shape)

    def _take(self, size):
        blocks = self._blocks
        best = None
        idle = 0
        for index in range(len(blocks)):
            # Two references: the list's and getrefcount's own argument.
            if sys.getrefcount(blocks[index]) == 2:
                length = len(blocks[index])
                idle += length
                # At most a quarter is wasted.
                fits = size <= length <= size + size // 4
                if fits and (best is None or length < len(blocks[best])):
                    best = index
        if best is not None:
            blocks.append(blocks.pop(best))
            return blocks[-1]
        index = 0
        while idle + size > self.idle_limit and index < len(blocks):
            if sys.getrefcount(blocks[index]) == 2:
                idle -= len(blocks.pop(index))
            else:
                index += 1
        blocks.append(np.empty(size, np.uint8))
        return blocks[-1]

    def release(self):
        """Forget every block that nobody uses."""
        with self._lock:
            self._blocks = [b for b in self._blocks if sys.getrefcount(b) > 3]


_recycler = _Recycler()


def empty(shape, dtype, like=None):
    """An uninitialised array, from recycled memory where that saves page faults.

    shape    its shape
    dtype    its type
    like     an array on the device where it should live (NumPy without it)
    """
    if like is not None and xp_of(like) is not np:
        return xp_of(like).empty(shape, dtype)  # CuPy recycles by itself
    return _recycler.empty(shape, dtype)


def release_memory():
    """Give the recycled memory that nobody uses back to the system."""
    _recycler.release()
