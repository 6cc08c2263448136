"""Memory for the results of the fast kernels, used again and again.

New memory from the system costs a page fault for every four kilobytes. A training step of
MobileNetV2 makes two gigabytes of results, and would spend a sixth of its time on page faults. So
a block of memory is kept when its last array is gone, and the next result is put into it.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

SMALLEST = 1 << 20  # bytes: below it malloc is as good
LINE = 64  # bytes of a cache line: where every block begins
MOST_IDLE = 1 << 28  # bytes of unused blocks that are kept, at most

_lock = threading.Lock()
_idle = []  # blocks nobody uses, oldest first


class _Owner:
    """Holds a block of memory as long as there is an array in it: views refer to their owner."""

    # `__del__` may happen anywhere, in any thread, even while `_lock` is held. So it takes no
    # lock: appending to a deque is safe by itself.
    given_back: ClassVar = deque()

    def __init__(self, block):
        self.block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self):
        self.given_back.append(self.block)


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
        block = _take(size)
    return np.asarray(_Owner(block))[:size].view(dtype).reshape(shape)


def _take(size):
    """The smallest idle block that fits, at most a quarter too large; else a new one."""
    while _Owner.given_back:
        _idle.append(_Owner.given_back.popleft())
    fitting = [k for k, block in enumerate(_idle) if size <= len(block) <= size + size // 4]
    if fitting:
        return _idle.pop(min(fitting, key=lambda k: len(_idle[k])))
    idle = sum(map(len, _idle))
    while idle + size > MOST_IDLE and _idle:
        idle -= len(_idle.pop(0))
    block = np.empty(size + LINE, np.uint8)
    start = -block.ctypes.data % LINE
    return block[start : start + size]
