"""Threads of the CPU: tiles of work are shared among them.

A kernel cuts its work into *tiles*, pieces small enough to stay in the cache, and `run_tiles`
hands them to a pool of threads. What a tile is depends on shapes alone, never on the number of
threads, and no two tiles write the same memory. So one thread and eight give the same bits.
"""

import contextlib
import contextvars
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl

from minires.arrays.device import xp_of

_pool = None
_pool_size = None
_pool_lock = threading.Lock()
_working = threading.local()


def default_threads():
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_threads():
    """The number of threads the CPU kernels use."""
    if _pool_size:
        return _pool_size
    named = os.environ.get("MINIRES_THREADS") or str(default_threads())
    if not named.isdecimal() or int(named) < 1:
        raise ValueError(f"MINIRES_THREADS is {named!r}, expected a whole number from 1 up")
    return int(named)


def set_threads(count):
    """Set the number of threads the CPU kernels use (the results do not depend on it).

    count   at least 1; the default is MINIRES_THREADS, or every core of this process
    """
    global _pool, _pool_size
    if int(count) < 1:
        raise ValueError(f"set_threads: count is {count}, expected at least 1")
    with _pool_lock:
        old, _pool, _pool_size = _pool, None, int(count)
    if old is not None:
        old.shutdown(wait=True)


def _forget_pool():
    """A forked child has the pool object but none of its threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()  # its holder may be a thread left behind


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class _SingleThreadedBlas(contextlib.ContextDecorator):
    """Holds BLAS to one thread while kernels run: the tiles are the parallelism.

    A whole training step is done under it. One product outside would wake BLAS's own threads,
    and they keep spinning for some 20 ms after their work, on a core that the tiles need.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._users = 0
        self._libraries = None
        self._before = ()

    def __enter__(self):
        with self._lock:
            if self._libraries is None:
                found = threadpoolctl.ThreadpoolController().select(user_api="blas")
                self._libraries = found.lib_controllers
            if self._users == 0:
                self._before = [library.num_threads for library in self._libraries]
                self._set(itertools.repeat(1))
            self._users += 1

    def __exit__(self, *error):
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._set(self._before)

    def _set(self, counts):
        for library, count in zip(self._libraries, counts, strict=False):
            if library.num_threads != count:
                library.set_num_threads(count)
                # Newer versions of threadpoolctl heed only the first thread that sets a
                # number, until it ends or gives this up: another may be next. While somebody
                # else's limit holds, in another thread, that one holds here too.
                release = getattr(library, "clear_controlling_thread", None)
                if release is not None:
                    release()


single_threaded_blas = _SingleThreadedBlas()


def run_tiles(function, count):
    """Call `function(0)` … `function(count - 1)`, shared among the threads.

    The calling thread works too. Tiles must not write the same memory. The first error is
    raised here once every thread has stopped.
    """
    global _pool
    if getattr(_working, "depth", 0):  # a tile that calls a kernel: no threads within threads
        for tile in range(count):
            function(tile)
        return
    with single_threaded_blas:
        helpers = min(get_threads(), count) - 1
        todo = itertools.count()

        def work():
            _working.depth = 1
            try:
                while (tile := next(todo)) < count:
                    function(tile)
            except BaseException:
                while next(todo) < count:  # leave nothing for the others to start
                    pass
                raise
            finally:
                _working.depth = 0

        if helpers <= 0:
            work()
            return
        with _pool_lock:  # another thread may be setting the number of threads
            if _pool is None:
                _pool = ThreadPoolExecutor(max(get_threads() - 1, 1), thread_name_prefix="minires")
            # In a copy of this thread's context each: what it has chosen holds for its helpers.
            running = [_pool.submit(contextvars.copy_context().run, work) for _ in range(helpers)]
        try:
            work()
        finally:
            # Wait for all before raising: a tile still running would write into memory that
            # its owner believes free.
            errors = [job.exception() for job in running]
        for error in errors:
            if error is not None:
                raise error


def each_block(function, *vectors, block=1 << 15):
    """Apply an elementwise, in-place expression to vectors, one cache-sized block at a time.

    `theta -= rate * gradient` on three million weights writes a temporary array of twelve
    megabytes and reads it back. On blocks of 128 KiB the same expression, unchanged, never
    leaves the cache, and the blocks go to the threads. On a GPU it is called once.

    function   called with a block of each vector; changes them in place
    vectors    arrays of equal shape, each contiguous
    """
    if xp_of(vectors[0]) is not np:
        function(*vectors)
        return
    flat = [vector.reshape(-1) for vector in vectors]
    if any(not np.shares_memory(a, b) for a, b in zip(flat, vectors, strict=True) if a.size):
        raise ValueError("each_block: a vector is not contiguous, pass np.ascontiguousarray(it)")
    length = flat[0].size

    def run(tile):
        start = tile * block
        function(*(vector[start : start + block] for vector in flat))

    run_tiles(run, -(-length // block))


@contextlib.contextmanager
def threads(count):
    """Use `count` threads within a `with` block."""
    before = get_threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)
