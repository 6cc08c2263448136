"""Where arrays live and who works on them: NumPy or CuPy, threads, recycled memory.

The array's own type picks the backend. `xp_of(array)` is the module that made it, so the
same line of mathematics runs on a CPU and on a GPU. Only the few functions in `kernels/` are
for one of them. On a CPU a kernel cuts its work into *tiles*, pieces small enough to stay in the
cache, and `run_tiles` hands them to a pool of threads.

What a tile is depends on shapes alone, never on the number of threads, and no two tiles
write the same memory. So one thread and eight give the same bits.
"""

import contextlib
import importlib
import itertools
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import threadpoolctl

# --- which module made this array ---------------------------------------------------------


def xp_of(array):
    """The module whose functions work on `array`: `numpy`, or `cupy` for a CuPy array."""
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return np


def device_of(array):
    """Where an array lives: "cpu" or "gpu"."""
    return "cpu" if xp_of(array) is np else "gpu"


def kernels_of(array):
    """The kernel module for `array`: `minires.kernels.cpu` or `minires.kernels.gpu`."""
    return importlib.import_module(f"minires.kernels.{device_of(array)}")


def to_host(array):
    """`array` as a NumPy array (the same object if it is one already)."""
    return array if xp_of(array) is np else array.get()


def to_device(array, device="cpu"):
    """`array` on a device.

    device   "cpu" or "gpu"
    Returns  a NumPy or a CuPy array
    Raises   RuntimeError when a GPU is asked for and CuPy or the GPU is missing
    """
    if device == "cpu":
        return to_host(array)
    return module_for(device).asarray(array)


def module_for(device):
    """The module whose arrays live on a device: `numpy` for "cpu", `cupy` for "gpu".

    Raises   RuntimeError when a GPU is asked for and CuPy or the GPU is missing
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"device is {device!r}, expected 'cpu' or 'gpu'")
    return np if device == "cpu" else _import_cupy()


def _import_cupy():
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "a GPU was asked for, but CuPy is not installed: "
            "pip install 'minires[gpu13]' (CUDA 13) or 'minires[gpu12]' (CUDA 12)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"a GPU was asked for, but the CUDA driver finds none ({error}): "
            "install or update the NVIDIA driver, or run on the CPU"
        ) from error
    if count == 0:
        raise RuntimeError("a GPU was asked for, but this machine has none: run on the CPU")
    return cupy


def describe_gpus():
    """What `minires info` says of the GPUs: a list of cards, or the reason why there is none."""
    try:
        runtime = _import_cupy().cuda.runtime
    except RuntimeError as error:
        return str(error)
    cards = [runtime.getDeviceProperties(number) for number in range(runtime.getDeviceCount())]
    return [
        f"{card['name'].decode()}, {card['totalGlobalMem'] / 2**30:.0f} GiB, "
        f"compute capability {card['major']}.{card['minor']}"
        for card in cards
    ]


def describe_cuda():
    """The versions of CuPy and CUDA, where there is a GPU."""
    cupy = _import_cupy()
    runtime = cupy.cuda.runtime
    versions = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    numbers = [f"{version // 1000}.{version % 1000 // 10}" for version in versions]
    return f"CuPy {cupy.__version__}, CUDA {numbers[0]}, driver for CUDA {numbers[1]}"


def describe_blas():
    """The BLAS libraries in this process, with their kernels' architecture and threads."""
    return [
        f"{library['internal_api']} {library['version']} "
        f"({library.get('architecture', 'unknown architecture')}, {library['num_threads']} threads)"
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]


# --- sums ---------------------------------------------------------------------------------


def sum_rows(array):
    """Sum over the last axis but one: (…, M, C) → (…, C). No sum in float32 grows long."""
    if array.dtype.kind != "f":
        return array.sum(axis=-2)
    return kernels_of(array).sum_rows(array)


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


# --- threads ------------------------------------------------------------------------------

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


def within_tile():
    """Whether this thread runs a tile: then other threads run others, and a kernel uses one."""
    return bool(getattr(_working, "depth", 0))


def run_tiles(function, count):
    """Call `function(0)` … `function(count - 1)`, shared among the threads.

    The calling thread works too. Tiles must not write the same memory. The first error is
    raised here once every thread has stopped.
    """
    global _pool
    if within_tile():  # a tile that calls a kernel: no threads within threads
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
            running = [_pool.submit(work) for _ in range(helpers)]
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


def neighbours(count, channels, run):
    """How many neighbouring pixels are best taken for one of many channels.

    NumPy works along one run of memory at a time, and each run has its price. The channels of one
    pixel may be few; those of neighbours side by side are more.

    count      pixels in a row, which the neighbours must divide
    channels   of each
    run        values that a run should have at most
    """
    fitting = range(1, max(1, run // channels) + 1)
    return max(together for together in fitting if count % together == 0)


# --- memory -------------------------------------------------------------------------------


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


_scratch = threading.local()


def scratch(name, shape, dtype):
    """A thread's own working buffer, reused by every tile it runs.

    Its content lasts until the same thread asks for the same name again.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffers = _scratch.__dict__
    if name not in buffers or len(buffers[name]) < size:
        buffers[name] = np.empty(size, np.uint8)
    return buffers[name][:size].view(dtype).reshape(shape)


@contextlib.contextmanager
def threads(count):
    """Use `count` threads within a `with` block."""
    before = get_threads()
    set_threads(count)
    try:
        yield
    finally:
        set_threads(before)
