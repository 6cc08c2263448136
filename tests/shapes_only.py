"""A GPU without memory: its arrays have shapes, types, strides and addresses, and nothing in them.

A step of Inception-V3 on 256 photographs needs a hundred gigabytes; here it needs none, and takes
a second. Nothing is computed. But every launch of a kernel and every product is looked at as it
would reach the card: is the grid legal, do 32 bits count everything, does a product stay within its
arrays, how are they aligned? And launches and bytes can be counted.

    with shapes_only.installed() as cupy:
        model.loss_and_gradient(theta, images, labels)      # θ from cupy.empty(…)
    cupy.launches                                           # [Launch, …]

Arrays are NumPy's own, at addresses where there is no memory: NumPy works out views of them without
a look at what is there. Shapes and types of results come from calls with a single number.
"""

import bisect
import contextlib
import functools
import math
import sys
import types
from dataclasses import dataclass

import emulated_cupy
import numpy as np

ALIGNMENT = 512  # bytes: where CuPy's pools let an array begin


@dataclass
class Launch:
    """A kernel that a card would be given.

    name    of the kernel of gpu.cu, "product", or the name of CuPy's function
    bytes   that its arrays have, as far as the kernel reads or writes them
    work    multiplications and additions, of a product
    shape   (rows, columns, inner, how many), of a product
    aligned whether a product's matrices all begin at multiples of 16 bytes
    bits    of the index, of a kernel of gpu.cu
    """

    name: str
    bytes: int
    work: int = 0
    shape: tuple = ()
    aligned: bool = True
    bits: int = 0


launches: list[Launch] = []
_blocks: list[tuple[int, int]] = []  # (address, bytes) of every array so far, in order


def reset():
    """Forget launches and arrays."""
    launches.clear()
    _blocks.clear()


@contextlib.contextmanager
def installed():
    """Within, `import cupy` gives this module, and products are looked at, not computed."""
    from minires.kernels import cublas, gpu

    this, before, library = sys.modules[__name__], sys.modules.get("cupy"), cublas._library
    sys.modules["cupy"] = this
    cublas._library = functools.cache(lambda: cublas.declare(_Library()))
    reset()
    for known in (cublas._handles.known, gpu._modules):
        known.clear()
    try:
        yield this
    finally:
        cublas._library = library
        for known in (cublas._handles.known, gpu._modules):
            known.clear()
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before


# --- arrays -------------------------------------------------------------------------------


class _Nowhere:
    def __init__(self, address, shape, dtype):
        self.__array_interface__ = {
            "data": (address, False),
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


def empty(shape, dtype=float, order="C"):
    """An array at the next free address."""
    shape = (shape,) if np.ndim(shape) == 0 else tuple(map(int, shape))
    size = math.prod(shape) * np.dtype(dtype).itemsize
    address = sum(_blocks[-1]) if _blocks else 1 << 44
    address = -(-address // ALIGNMENT) * ALIGNMENT
    _blocks.append((address, max(1, size)))
    return ndarray(np.asarray(_Nowhere(address, shape, dtype)))


def _made(name, shape, dtype, *read):
    """A new array that a kernel of CuPy writes."""
    result = empty(shape, dtype)
    launches.append(Launch(name, result.nbytes + sum(array.nbytes for array in read)))
    return result


def _written(name, target, *read):
    """An array that a kernel of CuPy writes to."""
    launches.append(Launch(name, target.nbytes + sum(array.nbytes for array in read)))
    return target


def _one(value):
    """A single number of the same type, in as many axes."""
    return np.ones((1,) * value.ndim, value.dtype) if isinstance(value, ndarray) else value


def _elementwise(name, function, *values, out=None, **settings):
    given = [value for value in values if isinstance(value, ndarray)]
    shape = np.broadcast_shapes(*(value.shape for value in given))
    with np.errstate(all="ignore"):
        dtype = function(*map(_one, values), **settings).dtype
    if out is not None:
        assert out.shape == shape
        return _written(name, out, *given)
    return _made(name, shape, dtype, *given)


class ndarray:
    """What a GPU would hold."""

    __module__ = "cupy"
    __hash__ = None

    def __init__(self, array):
        self._array = array

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    itemsize = property(lambda self: self._array.itemsize)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: ndarray(self._array.T))
    data = property(lambda self: types.SimpleNamespace(ptr=self._array.ctypes.data))

    @property
    def nbytes(self):
        """How many bytes there are to read: what is repeated counts once."""
        return math.prod(
            n for n, step in zip(self.shape, self.strides, strict=True) if step
        ) * (self.itemsize if self.size else 0)  # fmt: skip

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    def __repr__(self):
        return f"nothing of shape {self.shape} {self.dtype}"

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        return _elementwise(ufunc.__name__, ufunc, *inputs, **settings)

    def __getitem__(self, key):
        parts = key if isinstance(key, tuple) else (key,)
        if not any(isinstance(part, ndarray) for part in parts):
            rest = () if Ellipsis in parts else (Ellipsis,)
            return ndarray(self._array[(*parts, *rest)])  # a view, also of one number
        index = next(part for part in parts if isinstance(part, ndarray))
        assert parts in ((index,), (Ellipsis, index)) or len(parts) <= 2
        first = parts[0] is index
        shape = (
            (*index.shape, *self.shape[1:]) if first else (*self.shape[:-1], *index.shape)
        )  # fmt: skip
        return _made("take", shape, self.dtype, index, empty(shape, self.dtype))

    def __setitem__(self, key, value):
        parts = key if isinstance(key, tuple) else (key,)
        indexed = any(isinstance(part, ndarray) for part in parts)
        target = value if indexed else self[key]
        read = [value] if isinstance(value, ndarray) else []
        launches.append(Launch("copy", target.nbytes + sum(v.nbytes for v in read)))

    def reshape(self, *shape, order="C"):
        shape = shape[0] if len(shape) == 1 and np.ndim(shape[0]) else shape
        try:
            return ndarray(np.reshape(self._array, shape, copy=False))
        except ValueError:
            copied = self.copy()
            return ndarray(np.reshape(copied._array, shape, copy=False))

    def swapaxes(self, a, b):
        return ndarray(self._array.swapaxes(a, b))

    def transpose(self, *axes):
        return ndarray(self._array.transpose(*axes))

    def astype(self, dtype, copy=True, order="K"):
        if not copy and self.dtype == dtype:
            return self
        return _made("astype", self.shape, dtype, self)

    def copy(self):
        return _made("copy", self.shape, self.dtype, self)

    def clip(self, low=None, high=None):
        return _made("clip", self.shape, self.dtype, self)

    def _reduced(self, name, axis=None, keepdims=False, dtype=None):
        axes = range(self.ndim) if axis is None else np.atleast_1d(axis) % self.ndim
        shape = [1 if place in axes else n for place, n in enumerate(self.shape)]
        if not keepdims:
            shape = [n for place, n in enumerate(self.shape) if place not in axes]
        settings = {} if dtype is None else {"dtype": dtype}
        dtype = getattr(_one(self), name)(**settings).dtype
        return _made(name, shape, dtype, self)

    sum = functools.partialmethod(_reduced, "sum")
    mean = functools.partialmethod(_reduced, "mean")
    max = functools.partialmethod(_reduced, "max")


def _operator(name):
    def operate(self, *others):
        if name.startswith("__i") and name != "__invert__":
            return _written(name, self, self, *(o for o in others if isinstance(o, ndarray)))
        function = lambda array, *others: getattr(np.asarray(array), name)(*others)
        if isinstance(others[0] if others else 0, ndarray) or np.ndim(others or 0) <= 1:
            return _elementwise(name, function, self, *others)
        return NotImplemented

    return operate


for _name in emulated_cupy.CAPTURABLE:
    if _name.startswith("__") and _name not in ("__getitem__", "__setitem__"):
        setattr(ndarray, _name, _operator(_name))


# --- functions ----------------------------------------------------------------------------


def asarray(value, dtype=None, order=None):
    if not isinstance(value, ndarray):
        value = np.asarray(value, dtype)
        return empty(value.shape, value.dtype)
    if dtype is not None and value.dtype != dtype:
        return value.astype(dtype)
    return ascontiguousarray(value) if order == "C" else value


def ascontiguousarray(value, dtype=None):
    value = value if dtype is None else value.astype(dtype, copy=False)
    return value if value.flags.c_contiguous else value.copy()


def zeros(shape, dtype=float):
    return _made("fill", (shape,) if np.ndim(shape) == 0 else shape, dtype)


ones = zeros


def full(shape, value, dtype=float):
    return zeros(shape, dtype)


def zeros_like(value):
    return zeros(value.shape, value.dtype)


ones_like = zeros_like


def empty_like(value):
    return empty(value.shape, value.dtype)


def arange(*numbers, dtype=None):
    example = np.arange(*numbers, dtype=dtype)
    return _made("arange", example.shape, example.dtype)


def broadcast_to(value, shape):
    return ndarray(np.broadcast_to(value._array, shape))


def expand_dims(value, axis):
    return ndarray(np.expand_dims(value._array, axis))


def concatenate(arrays, axis=0):
    assert len(arrays) <= emulated_cupy.MOST_CONCATENATED
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    result = empty(shape, arrays[0].dtype)
    launches.extend(Launch("concatenate", 2 * array.nbytes) for array in arrays)
    return result


def take(value, index, axis, out):
    return _written("take", out, out)


def where(condition, x, y):
    return _elementwise("where", np.where, condition, x, y)


def __getattr__(name):
    function = getattr(np, name, None)
    if isinstance(function, np.ufunc) or name == "clip":
        return functools.partial(_elementwise, name, function)
    raise AttributeError(f"the GPU without memory has no {name!r} yet")


lib = types.SimpleNamespace()
cuda = emulated_cupy.cuda


def get_default_memory_pool():
    return emulated_cupy.get_default_memory_pool()


# --- what reaches the card ----------------------------------------------------------------


class RawModule:
    """The kernels of gpu.cu: what they are given is checked and noted, nothing more."""

    def __init__(self, code, options=()):
        self.index = next(o.partition("=")[2] for o in options if o.startswith("-DINDEX"))
        real = next(o.partition("=")[2] for o in options if o.startswith("-DREAL"))
        text = emulated_cupy.expand(code, tuple(options))
        self.real = real
        self.kernels = {
            name: emulated_cupy.parameters_of(declared)
            for name, declared in emulated_cupy.DECLARATION.findall(text)
        }

    def get_function(self, name):
        return functools.partial(self._launch, name)

    def _launch(self, name, grid, block, arguments):
        (blocks,), (threads,) = grid, block
        assert 1 <= blocks < 1 << 31, (name, grid)
        assert 1 <= threads <= 1024, (name, block)
        parameters = self.kernels[name]
        assert len(arguments) == len(parameters), name
        most, read = int(arguments[0]), 0
        for value, (kind, pointer, _, word) in zip(arguments, parameters, strict=True):
            wanted = emulated_cupy.CTYPES[kind][1]
            assert pointer == isinstance(value, ndarray), (name, word)
            assert value.dtype == wanted, (name, word, value.dtype)
            if pointer:
                assert value.data.ptr % value.itemsize == 0, (name, word, "is not aligned")
                assert value.flags.c_contiguous, (name, word)
                most, read = max(most, value.size), read + value.nbytes
        step = blocks * threads
        if self.index == "int":
            assert most + step < 1 << 31, (name, most, "exceeds 32 bits")
        launches.append(Launch(name, read, bits=32 if self.index == "int" else 64))


class _Library:
    """cuBLAS: what a product is given is checked and noted."""

    def __init__(self):
        for name in ("Create", "Destroy", "SetStream", "SetWorkspace"):
            setattr(self, f"cublas{name}_v2", _Answer())
        self.cublasGemmStridedBatchedEx = _Answer(_product)


class _Answer:
    """A function of a C library."""

    def __init__(self, function=lambda *arguments: None):
        self.function = function

    def __call__(self, *arguments):
        self.function(*arguments)
        return 0


def _inside(address, size):
    """Whether memory lies in one array."""
    place = bisect.bisect(_blocks, (address, math.inf)) - 1
    start, own = _blocks[place]
    return start <= address and address + size <= start + own


def _product(handle, ta, tb, m, n, k, alpha, *rest):
    """C (m, n) = A (m, k) B (k, n), by columns."""
    a, type_a, lda, next_a, b, _, ldb, next_b, _, c, _, ldc, next_c, batch, _, _ = rest
    size = {0: 4, 1: 8}[type_a]
    matrices = [
        (a, lda, next_a, *((k, m) if ta else (m, k))),
        (b, ldb, next_b, *((n, k) if tb else (k, n))),
        (c, ldc, next_c, m, n),
    ]
    assert batch >= 1, "cuBLAS is asked for nothing"
    read, aligned = 0, True
    for address, leading, step, rows, columns in matrices:
        assert 1 <= rows <= leading < 1 << 31, (rows, leading)
        assert 1 <= columns < 1 << 31
        assert step >= 0
        extent = (step * (batch - 1) + leading * (columns - 1) + rows) * size
        assert _inside(address, extent), "a product reaches beyond its array"
        read += rows * columns * size * (batch if step else 1)
        aligned &= address % 16 == 0 and (step * size) % 16 == 0 and leading * size % 16 == 0
    if batch > 1:
        assert next_c >= ldc * (n - 1) + m, "results lie one on the other"
    launches.append(Launch("product", read, 2 * m * n * k * batch, (n, m, k, batch), aligned))
