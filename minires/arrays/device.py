"""Where an array lives: on the CPU (NumPy) or on a GPU (CuPy).

The array's own type picks the backend. `xp_of(array)` is the module that made it, so the same
line of mathematics runs on both.
"""

import contextlib
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a NumPy or a CuPy array; in the engine also a Tensor of one


def xp_of(array: Any) -> ModuleType:
    """The module whose functions work on an array.

    array    of any kind
    Returns  `cupy` for a CuPy array, else `numpy`
    """
    if type(array).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"]
    return np


def device_of(array: Any) -> str:
    """Where an array lives.

    array    of any kind
    Returns  "gpu" for a CuPy array, else "cpu"
    """
    return "cpu" if xp_of(array) is np else "gpu"


def to_host(array: Any) -> Any:
    """An array in the memory of the CPU.

    array    NumPy or CuPy
    Returns  a NumPy array: the same object if it is one already
    """
    return array if xp_of(array) is np else array.get()


def to_device(array: Any, device: str = "cpu") -> Any:
    """An array on a device.

    array    NumPy or CuPy
    device   "cpu" or "gpu"
    Returns  a NumPy or a CuPy array
    Raises   RuntimeError when a GPU is asked for and CuPy or the GPU is missing
    """
    if device == "cpu":
        return to_host(array)
    return module_for(device).asarray(array)


def aligned(theta: Any) -> Any:
    """R networks, each of which begins at a multiple of 16 bytes if they are on a GPU.

    cuBLAS has faster kernels for matrices at such addresses. The first network begins there, and
    the next one P numbers later: too early or too late, unless P is a multiple of four (LeNet's is
    not). So up to three numbers are left free between two networks.

    theta    (P,) or (R, P)
    Returns  the same numbers, (R, P): a part of a new array with longer rows; or θ itself
    """
    xp, free = xp_of(theta), -theta.shape[-1] % (16 // theta.itemsize)
    if xp is np or theta.ndim < 2 or not free:
        return theta
    result = xp.empty((len(theta), theta.shape[1] + free), theta.dtype)[:, :-free]
    result[...] = theta
    return result


def empty_beside(theta: Any) -> Any:
    """A new array, not filled, in which networks are as far from each other as in θ.

    theta    (P,) or (R, P)
    Returns  like theta
    """
    has_gaps = (
        theta.ndim == 2
        and theta.strides[1] == theta.itemsize
        and theta.strides[0] > theta.shape[1] * theta.itemsize
    )
    if not has_gaps:  # networks may also overlap, or their axes lie in another order
        return xp_of(theta).empty(theta.shape, theta.dtype)
    rows = xp_of(theta).empty((len(theta), theta.strides[0] // theta.itemsize), theta.dtype)
    return rows[:, : theta.shape[1]]


@contextlib.contextmanager
def restored_on_error(array: Any) -> Iterator[None]:
    """Within the block an array may be written to; an error, or Ctrl-C, brings back what was there.

    array   NumPy or CuPy, or None
    """
    before = None if array is None else array.copy()
    try:
        yield
    except BaseException:
        if array is not None:
            array[...] = before
        raise


def can_be_stepped(theta: Any) -> bool:
    """Whether kernels can go through all numbers of θ: it is contiguous, or, on a GPU, `aligned`.

    theta    (P,) or (R, P)
    """
    own = theta if xp_of(theta) is np or theta.ndim < 2 else theta[:1]
    return own.flags.c_contiguous


def stepped(theta: Any) -> Any:
    """θ if it `can_be_stepped`, else a copy in C order that can.

    theta    of any shape
    """
    return xp_of(theta).asarray(theta, order=None if can_be_stepped(theta) else "C")


def module_for(device: str) -> ModuleType:
    """The module whose arrays live on a device.

    device   "cpu" or "gpu"
    Returns  `numpy` or `cupy`
    Raises   ValueError for another device; RuntimeError when a GPU is asked for and CuPy or the
             GPU is missing
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"device is {device!r}, expected 'cpu' or 'gpu'")
    if device == "cpu":
        return np
    try:
        return _import_cupy()
    except RuntimeError as error:
        raise RuntimeError(f"a GPU was asked for, but {error}") from error


def _import_cupy():
    """CuPy. Raises RuntimeError with the reason and the remedy where no GPU can be used."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "CuPy is not installed: "
            "pip install 'minires[gpu13]' (CUDA 13) or 'minires[gpu12]' (CUDA 12)"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"the CUDA driver finds none ({error}): "
            "install or update the NVIDIA driver, or use the CPU"
        ) from error
    if count == 0:
        raise RuntimeError("this machine has none: use the CPU")
    return cupy


def describe_gpus() -> list[str] | str:
    """A line about each GPU, for `minires info`; or the reason why none can be used."""
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


def describe_cuda() -> str:
    """The versions of CuPy and CUDA, as one line.

    Raises   RuntimeError when CuPy or the GPU is missing
    """
    cupy = _import_cupy()
    runtime = cupy.cuda.runtime
    versions = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    numbers = [f"{version // 1000}.{version % 1000 // 10}" for version in versions]
    return f"CuPy {cupy.__version__}, CUDA {numbers[0]}, driver for CUDA {numbers[1]}"


def describe_processor() -> str:
    """The name of this machine's processor, if the system tells it, and its number of cores."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:  # not on Linux
        names = []
    named = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{named}, cores: {os.cpu_count()}"


def describe_blas() -> list[str]:
    """The BLAS libraries in this process, with their kernels' architecture and threads."""
    import threadpoolctl  # here, since importing it takes longer than any module of minires

    return [
        f"{library['internal_api']} {library['version']} "
        f"({library.get('architecture', 'unknown architecture')}, {library['num_threads']} threads)"
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]
