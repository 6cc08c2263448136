"""How many threads the fast kernels of the CPU use. The results do not depend on it."""

import contextlib
import os
from collections.abc import Iterator

_count = None  # what `set_threads` was given


def default_threads() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_threads() -> int:
    """The number of threads the CPU kernels use.

    Raises   ValueError when the environment variable MINIRES_THREADS is no number from 1 up
    """
    if _count:
        return _count
    named = os.environ.get("MINIRES_THREADS") or str(default_threads())
    if not named.isdecimal() or int(named) < 1:
        raise ValueError(f"MINIRES_THREADS is {named!r}, expected a whole number from 1 up")
    return int(named)


def set_threads(count: int) -> None:
    """Set the number of threads the CPU kernels use (the results do not depend on it).

    count   at least 1; the default is MINIRES_THREADS, or every core of this process
    Raises   ValueError
    """
    global _count
    if int(count) < 1:
        raise ValueError(f"set_threads: count is {count}, expected at least 1")
    _count = int(count)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use another number of threads within a `with` block.

    count   as for `set_threads`
    """
    before = get_threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)
