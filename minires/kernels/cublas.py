"""Matrix products on a GPU, by NVIDIA's cuBLAS: C = A @ B for matrices in any regular layout.

CuPy multiplies with cuBLAS too. But it copies matrices that are transposed or part of a larger
array, and it refuses to do so while a CUDA graph is recorded. Here cuBLAS is called directly, with
the arrays' own strides: the weights of R networks, parts of one matrix θ (R, P), are read where
they are, and a gradient is written into its place in a vector.

cuBLAS stores matrices by columns. Our A, read by columns, is Aᵀ. So cuBLAS computes Cᵀ = Bᵀ Aᵀ.
"""

import ctypes
import functools
import math
import os
import threading
import weakref
from typing import Any

import numpy as np

from minires.arrays import xp_of

WORKSPACE = 32 << 20  # bytes, what NVIDIA advises for Hopper

# Names and values in cublas_api.h and library_types.h.
PLAIN, TRANSPOSED = 0, 1
DEFAULT_ALGORITHM = -1
TYPES = {"float32": (0, ctypes.c_float), "float64": (1, ctypes.c_double)}
COMPUTE = {"float32": 68, "float64": 70}
COMPUTE_TF32 = 77  # inputs cut to 10 bits of fraction: on tensor cores, with three digits


def tf32() -> bool:
    """Whether the inputs of float32 products are rounded to TF32: MINIRES_TF32=1 asks for it."""
    return os.environ.get("MINIRES_TF32", "0") not in ("", "0")


@functools.cache
def _library():
    """The cuBLAS that CuPy uses, and the types of the five functions called here."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return declare(ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path))


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of each function, so that ctypes refuses anything else.

    library   as `ctypes.CDLL` loads it
    Returns   it
    """
    pointer, number, stride = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    matrix = pointer, number, number, stride  # data, type, leading dimension, to the next one
    functions = {
        "cublasCreate_v2": (ctypes.POINTER(pointer),),
        "cublasDestroy_v2": (pointer,),
        "cublasSetStream_v2": (pointer, pointer),
        "cublasSetWorkspace_v2": (pointer, pointer, ctypes.c_size_t),
        "cublasGemmStridedBatchedEx": (
            pointer, number, number, number, number, number, pointer,
            *matrix, *matrix, pointer, *matrix, number, number, number,
        ),
    }  # fmt: skip
    for name, types in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, ctypes.c_int
    return library


def _call(name, *arguments):
    status = getattr(_library(), name)(*arguments)
    if status:
        raise RuntimeError(f"{name} answers with status {status} (see cublas_api.h)")


class _Connection:
    """A connection to cuBLAS on the current GPU, with memory to work in. It ends with this object.

    xp   the array module
    """

    def __init__(self, xp: Any):
        self.handle, self.stream = ctypes.c_void_p(), None
        _call("cublasCreate_v2", ctypes.byref(self.handle))
        self.workspace = xp.empty(WORKSPACE, np.uint8)
        ending = weakref.finalize(self, _library().cublasDestroy_v2, self.handle)
        ending.atexit = False  # at the end of the process CUDA itself may have gone before

    def use(self, stream: int) -> ctypes.c_void_p:
        """The handle, for products on a stream.

        stream   its address
        """
        if stream != self.stream:
            _call("cublasSetStream_v2", self.handle, stream)
            # A new stream has forgotten the memory. Without any, cuBLAS would allocate its own.
            memory = self.workspace.data.ptr, self.workspace.nbytes
            _call("cublasSetWorkspace_v2", self.handle, *memory)
            self.stream = stream
        return self.handle


class _Handles(threading.local):
    """A thread's own connections to cuBLAS, one for each GPU; they end with the thread."""

    def __init__(self):
        self.known = {}

    def get(self, xp):
        device = xp.cuda.runtime.getDevice()
        if device not in self.known:
            self.known[device] = _Connection(xp)
        return self.known[device].use(xp.cuda.get_current_stream().ptr)


_handles = _Handles()


def matmul(a, b, out=None):
    """As `plain.matmul`, by cuBLAS."""
    xp, dtype = xp_of(a), np.result_type(a.dtype, b.dtype)
    if dtype.name not in TYPES:
        return xp.matmul(a, b)
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*lead, a.shape[-2], b.shape[-1])
    left, right = _matrices(a, lead), _matrices(b, lead)
    target = None
    if out is not None and out.shape == shape and out.dtype == dtype:
        target = _layout(out, lead)
    if target is None or target[1] == TRANSPOSED:
        out = xp.empty(shape, dtype)
        target = _layout(out, lead)
    if 0 in shape:
        return out
    if a.shape[-1] == 0:
        out[...] = 0
        return out
    code, scalar = TYPES[dtype.name]
    compute = COMPUTE_TF32 if dtype.name == "float32" and tf32() else COMPUTE[dtype.name]
    one, zero = scalar(1), scalar(0)
    (a, order_a, rows_a, next_a), (b, order_b, rows_b, next_b) = left, right
    _call(
        "cublasGemmStridedBatchedEx", _handles.get(xp),
        order_b, order_a, shape[-1], shape[-2], a.shape[-1], ctypes.addressof(one),
        b.data.ptr, code, rows_b, next_b,
        a.data.ptr, code, rows_a, next_a, ctypes.addressof(zero),
        out.data.ptr, code, target[2], target[3],
        math.prod(lead), compute, DEFAULT_ALGORITHM,
    )  # fmt: skip
    return out


def _matrices(array, lead):
    """`array` and its layout, copied to a regular one if it has none."""
    layout = _layout(array, lead)
    if layout is None:
        xp = xp_of(array)
        array = xp.ascontiguousarray(array)
        layout = _layout(array, lead)
        if layout is None:  # some of its leading axes are shared, others not
            array = xp.ascontiguousarray(xp.broadcast_to(array, (*lead, *array.shape[-2:])))
            layout = _layout(array, lead)
    return layout


def _layout(array, lead):
    """How cuBLAS can read matrices `array` (…, p, q), or None if it cannot.

    Returns  the array; PLAIN if each row is contiguous, TRANSPOSED if each column is; the distance
             from one of these to the next; and from one matrix to the next, 0 if all are the same
    """
    size = array.dtype.itemsize
    (p, q), strides = array.shape[-2:], [stride // size for stride in array.strides]
    down, across = strides[-2:]
    if (across == 1 or q == 1) and (down >= q or p == 1):
        order, line = PLAIN, max(down if p > 1 else q, 1)
    elif (down == 1 or p == 1) and (across >= p or q == 1):
        order, line = TRANSPOSED, max(across if q > 1 else p, 1)
    else:
        return None
    own = (1,) * (len(lead) - array.ndim + 2) + array.shape[:-2]
    steps = (0,) * (len(own) - array.ndim + 2) + tuple(strides[:-2])
    step = 0
    # From the last axis on: each step must be that of the axis behind it times its size. Or all
    # axes are shared.
    count = 1
    for wanted, have, stride in zip(reversed(lead), reversed(own), reversed(steps), strict=True):
        if wanted == 1:
            continue
        stride = 0 if have == 1 else stride
        if count == 1:
            step = stride
        elif stride != step * count:
            return None
        count *= wanted
    return array, order, line, step
