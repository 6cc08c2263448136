"""A stand-in for CuPy on machines without a GPU: strict where CuPy is strict, slow everywhere.

It lets the whole GPU path run on the host, line by line:

- Its arrays are no NumPy arrays. They refuse to become one unasked, and to mix with one, as CuPy's
  do; sums and single elements are arrays of no axes.
- It has only the functions and methods that the installed CuPy has, and takes only the keywords
  that CuPy takes.
- `RawModule` compiles CUDA C with g++ behind a dozen lines of make-believe: the threads of a grid
  run one after another, the last one first. Arguments must match the declared types; a kernel
  that writes beside its arrays, or to one declared const, is caught; what it reads there is NaN.
- cuBLAS is the few lines of C++ below, written from NVIDIA's manual.
- A stream that records a graph runs nothing, forbids what CUDA forbids meanwhile, and the graph
  replays what was recorded on the same memory.

    with emulated_cupy.installed() as cupy: ...
"""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
import weakref
from pathlib import Path

import numpy as np

try:
    import cupy as real
except ImportError:
    real = None

__version__ = getattr(real, "__version__", None)
COMPILER = shutil.which("g++") or shutil.which("c++")


def missing():
    """Why this machine cannot run the stand-in; None if it can."""
    if real is None:
        return "CuPy is not installed (extra test, gpu12 or gpu13)"
    if COMPILER is None:
        return "there is no C++ compiler"
    return None


@contextlib.contextmanager
def installed():
    """Within, `import cupy` gives this module, and minires multiplies with the cuBLAS below."""
    from minires.kernels import cublas

    this, before = sys.modules[__name__], sys.modules.get("cupy")
    library = cublas._library
    special = sys.modules.get("cupyx.scipy.special")
    sys.modules["cupy"] = this
    sys.modules["cupyx.scipy.special"] = types.SimpleNamespace(erf=_erf)
    cublas._library = functools.cache(lambda: cublas.declare(_Cublas()))
    cublas._handles.known.clear()
    try:
        yield this
    finally:
        cublas._library = library
        cublas._handles.known.clear()
        _graph_state.recording = None
        for name, module in (("cupy", before), ("cupyx.scipy.special", special)):
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _erf(x):
    from scipy.special import erf

    return _apply(erf, x)


# --- recording ----------------------------------------------------------------------------


class _State:
    recording = None  # the list of what a graph will do, while a stream records
    pool = None  # the memory pool in use, if not the common one
    stream = None
    made = ()  # arrays made while recording
    synchronisations = 0  # of host and device so far


_graph_state = _State()
_alive = weakref.WeakValueDictionary()
_bases = weakref.WeakValueDictionary()  # id of NumPy's array that owns memory → our view of all


def _do(action):
    """Run an action on the device, and keep it if a graph is being recorded."""
    if _graph_state.recording is not None:
        _graph_state.recording.append(action)
    return action()


def _synchronise(what):
    if _graph_state.recording is not None:
        raise RuntimeError(f"{what}: the current stream is capturing")
    _graph_state.synchronisations += 1


# --- arrays -------------------------------------------------------------------------------


def _refuse(value):
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _bare(value):
    """The NumPy arrays within arguments that CuPy would take."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, (list, tuple)):
        return type(value)(map(_bare, value))
    return _refuse(value)


def _wrapped(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wrapped, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return value


def _arrays_in(values):
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays_in(value)


def _apply(function, *arguments, **settings):
    """Call a NumPy function on arrays of the device."""
    arguments, settings = _bare(arguments), {k: _bare(v) for k, v in settings.items()}
    result = function(*arguments, **settings)
    if _graph_state.recording is not None:
        given = [*_arrays_in(arguments), *_arrays_in(settings.values())]
        fresh = isinstance(result, (np.ndarray, np.generic)) and not any(
            np.may_share_memory(result, array) for array in given
        )
        if fresh:
            result = np.asarray(result)

            def again():
                result[...] = function(*arguments, **settings)

            _graph_state.recording.append(again)
        elif settings.get("out") is not None or result is None:
            _graph_state.recording.append(lambda: function(*arguments, **settings))
    return _wrapped(result)


class _Data:
    def __init__(self, array):
        self.ptr = array.ctypes.data


class ndarray:
    """An array on the device that is none."""

    __module__ = "cupy"
    __slots__ = ("__weakref__", "_array")
    __hash__ = None

    def __init__(self, array):
        self._array = array
        _alive[id(self)] = self
        if _graph_state.pool is not None:
            _graph_state.pool.kept.append(array)
        if _graph_state.recording is not None:
            _graph_state.made.append(array)

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: _wrapped(self._array.T))
    data = property(lambda self: _Data(self._array))

    @property
    def base(self):
        """The array whose memory this one sees: for every view the same object, as in CuPy."""
        owner = self._array.base
        if not isinstance(owner, np.ndarray):
            return None
        base = _bases.get(id(owner))
        if base is None or base._array is not owner:
            base = _bases[id(owner)] = ndarray(owner)
        return base

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    def __repr__(self):
        return f"emulated {self._array!r}"

    def __array__(self, *arguments, **settings):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use .get()")

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        if method != "__call__":
            raise TypeError(f"{ufunc.__name__}.{method} is not supported")
        return getattr(sys.modules[__name__], ufunc.__name__)(*inputs, **settings)

    def get(self):
        _synchronise("get")
        return self._array.copy()

    def item(self):
        _synchronise("item")
        return self._array.item()

    def tolist(self):
        _synchronise("tolist")
        return self._array.tolist()

    def set(self, array):
        _synchronise("set")
        self._array[...] = array

    def __bool__(self):
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __index__(self):
        return self._array[()].__index__() if self.item() is not None else None

    def _key(self, key):
        parts = key if isinstance(key, tuple) else (key,)
        for part in parts:
            _refuse(part)
            if isinstance(part, ndarray) and part.dtype == bool:
                _synchronise("an index of truth values")
        return _bare(key)

    def __getitem__(self, key):
        return _apply(lambda array: array[self._key(key)], self)

    def __setitem__(self, key, value):
        array, key, value = self._array, self._key(key), _bare(value)

        def assign():
            array[key] = value

        _do(assign)

    def fill(self, value):
        self[...] = value

    def __getattr__(self, name):
        if name.startswith("_") or not hasattr(real.ndarray, name):
            raise AttributeError(f"a CuPy array has no {name!r}")
        if callable(getattr(self._array, name)):
            return lambda *a, **k: _apply(
                lambda array, *a, **k: getattr(array, name)(*a, **k), self, *a, **k
            )
        raise AttributeError(f"the stand-in has no {name!r} yet")


def _operator(name):
    def operate(self, *others):
        if any(not isinstance(o, (ndarray, int, float, complex, np.generic)) for o in others):
            if any(isinstance(o, np.ndarray) for o in others):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
            return NotImplemented
        if name.startswith("__i") and name not in ("__invert__",):
            array, others = self._array, _bare(others)
            _do(lambda: getattr(array, name)(*others))
            return self
        return _apply(lambda array, *others: getattr(array, name)(*others), self, *others)

    return operate


_BOTH = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_ALONE = ("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne")
for _name in [
    *(f"__{prefix}{name}__" for prefix in ("", "r", "i") for name in _BOTH),
    *(f"__{name}__" for name in _ALONE),
]:
    setattr(ndarray, _name, _operator(_name))


# --- functions ----------------------------------------------------------------------------

FROM_HOST = ("asarray", "array", "ascontiguousarray")  # these take NumPy arrays


def _keywords(function):
    """What CuPy's function takes by name, or None if it does not tell."""
    if isinstance(function, real.ufunc):
        return {"out", "casting", "dtype"}
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return None
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if any_name else set(parameters)


class _Function:
    def __init__(self, name):
        self.__name__ = name
        self.real, self.numpy = getattr(real, name), getattr(np, name)
        self.keywords = _keywords(self.real)

    def __call__(self, *arguments, **settings):
        if settings and self.keywords is not None and not set(settings) <= self.keywords:
            raise TypeError(f"cupy.{self.__name__} does not take all of {set(settings)}")
        settings.pop("blocking", None)
        if self.__name__ == "matmul" and _graph_state.recording is not None:
            raise NotImplementedError(
                "calling cuBLAS API during stream capture is currently unsupported"
            )
        if self.__name__ in FROM_HOST:
            if not isinstance(arguments[0], ndarray):
                _synchronise(f"{self.__name__} from the host")
                # A copy: memory of the host is not the device's.
                result = self.numpy(np.array(arguments[0]), *arguments[1:], **settings)
                return _wrapped(result)
            if self.__name__ == "asarray":
                result = _apply(self.numpy, *arguments, **settings)
                return arguments[0] if result._array is arguments[0]._array else result
        return _apply(self.numpy, *arguments, **settings)

    @property
    def at(self):
        def at(array, *arguments):
            array, arguments = _bare(array), _bare(arguments)
            _do(lambda: self.numpy.at(array, *arguments))

        if not hasattr(self.real, "at"):
            raise AttributeError(f"cupy.{self.__name__} has no at")
        return at


@functools.cache
def _function(name):
    value = getattr(real, name)
    if isinstance(value, type) or not callable(value):
        return value  # types and constants
    return _Function(name)


def __getattr__(name):
    if name.startswith("__") or not hasattr(real, name):
        raise AttributeError(f"CuPy {real.__version__ if real else ''} has no {name!r}")
    return _function(name)


# --- kernels ------------------------------------------------------------------------------

SHIM = """
#include <cmath>
#define __global__
#define __device__
struct Place { unsigned x, y, z; };
static thread_local Place gridDim, blockDim, blockIdx, threadIdx;
using std::sqrt;
"""

DECLARATION = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')

CTYPES = {
    "int": (ctypes.c_int, np.int32),
    "long long": (ctypes.c_longlong, np.int64),
    "unsigned long long": (ctypes.c_ulonglong, np.uint64),
    "unsigned char": (ctypes.c_ubyte, np.uint8),
    "float": (ctypes.c_float, np.float32),
    "double": (ctypes.c_double, np.float64),
}


def compile_library(source, name, flags=("-O2",)):
    """A shared library from C++, compiled once for each source."""
    digest = hashlib.sha256("\0".join((source, *flags)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"minires-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}-{digest}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        command = [COMPILER, "-x", "c++", "-std=c++17", "-shared", "-fPIC", "-Wall", *flags]
        done = subprocess.run(
            [*command, "-ffp-contract=off", "-o", str(part), "-"],
            input=source, text=True, capture_output=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} does not compile:\n{done.stderr}")
        os.replace(part, path)
    return ctypes.CDLL(str(path))


def expand(source, options):
    """CUDA C with its macros replaced, nothing else."""
    done = subprocess.run(
        [COMPILER, "-x", "c++", "-E", "-P", *options, "-"],
        input=source, text=True, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


def parameters_of(text):
    """[(type, is a pointer, is const)] of a parameter list."""
    found = []
    for part in text.split(","):
        words = part.replace("*", " * ").split()
        const, pointer = "const" in words, "*" in words
        kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
        found.append((kind, pointer, const))
    return found


class RawModule:
    """CUDA C, compiled for the host."""

    def __init__(self, code, options=()):
        if any(not isinstance(option, str) for option in options):
            raise TypeError("options are strings")
        code.encode("ascii")  # CuPy writes it in the system's own encoding, whatever that is
        expanded = expand(code, options)
        self.kernels = {name: parameters_of(text) for name, text in DECLARATION.findall(expanded)}
        launchers = "".join(
            self._launcher(name, text) for name, text in DECLARATION.findall(expanded)
        )
        self.library = compile_library(SHIM + expanded + launchers, "kernels")

    @staticmethod
    def _launcher(name, text):
        words = ", ".join(part.replace("*", " ").split()[-1] for part in text.split(","))
        return f"""
extern "C" void launch_{name}(unsigned grid, unsigned block, {text}) {{
    gridDim.x = grid; blockDim.x = block;
    for (blockIdx.x = grid; blockIdx.x-- > 0;)
        for (threadIdx.x = block; threadIdx.x-- > 0;) {name}({words});
}}"""

    def get_function(self, name):
        return _Kernel(name, getattr(self.library, f"launch_{name}"), self.kernels[name])


GUARD = 64  # values before and behind every array


class _Kernel:
    def __init__(self, name, function, parameters):
        self.name, self.function, self.parameters = name, function, parameters
        function.restype = None
        function.argtypes = [ctypes.c_uint] * 2 + [
            ctypes.c_void_p if pointer else CTYPES[kind][0] for kind, pointer, _ in parameters
        ]

    def __call__(self, grid, block, arguments):
        (blocks,), (threads,) = grid, block
        if not 0 < blocks < 1 << 31 or not 0 < threads <= 1024:
            raise RuntimeError(f"{self.name}: a grid of {blocks} blocks of {threads} threads")
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name}: {len(arguments)} of {len(self.parameters)} arguments")
        for value, (kind, pointer, _) in zip(arguments, self.parameters, strict=True):
            wanted = CTYPES[kind][1]
            if pointer != isinstance(value, ndarray) or value.dtype != wanted:
                raise TypeError(f"{self.name}: {value!r} for {kind}{' *' if pointer else ''}")
        _do(lambda: self._run(blocks, threads, arguments))

    def _run(self, blocks, threads, arguments):
        guarded, passed = {}, []
        for value, (_, pointer, const) in zip(arguments, self.parameters, strict=True):
            if not pointer:
                passed.append(value.item())
                continue
            array = value._array
            key = array.ctypes.data, array.size
            if key not in guarded:
                room = np.empty(array.size + 2 * GUARD, array.dtype)
                room[:GUARD] = room[-GUARD:] = _mark(array.dtype)
                room[GUARD : GUARD + array.size] = array.reshape(-1)
                guarded[key] = room, array, []
            guarded[key][2].append(const)
            passed.append(guarded[key][0].ctypes.data + GUARD * array.itemsize)
        self.function(blocks, threads, *passed)
        for room, array, const in guarded.values():
            mark = np.full(GUARD, _mark(array.dtype)).tobytes()
            if room[:GUARD].tobytes() != mark or room[-GUARD:].tobytes() != mark:
                raise MemoryError(f"{self.name} wrote beside an array of {array.shape}")
            inner = room[GUARD : GUARD + array.size].reshape(array.shape)
            if all(const):
                if inner.tobytes() != array.tobytes():
                    raise MemoryError(f"{self.name} changed an array declared const")
            else:
                array[...] = inner


def _mark(dtype):
    return dtype.type(np.nan if dtype.kind == "f" else 0x5A)


# --- cuBLAS -------------------------------------------------------------------------------

CUBLAS = r"""
#include <cstring>
#include <cstdint>
static int made = 0;
extern "C" int cublasCreate_v2(void** handle) { *handle = &made; made = 1; return 0; }
extern "C" int cublasSetStream_v2(void* handle, void*) { return handle == &made ? 0 : 1; }
extern "C" int cublasSetWorkspace_v2(void* handle, void* memory, size_t bytes)
{ return handle == &made ? (memory && bytes ? 0 : 7) : 1; }

static float cut(float x) {  // TF32: 10 bits of fraction
    uint32_t bits; memcpy(&bits, &x, 4); bits = (bits + 0x1000) & 0xFFFFE000; memcpy(&x, &bits, 4);
    return x;
}
static double same(double x) { return x; }

// C = alpha op(A) op(B) + beta C by columns: element (i, j) is at i + j * ld.
template <class T, class Cut>
static void multiply(int ta, int tb, int m, int n, int k, T alpha, const T* A, int lda,
                     const T* B, int ldb, T beta, T* C, int ldc, Cut cut)
{
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += (double)cut(ta ? A[l + (long long)i * lda] : A[i + (long long)l * lda])
                    * cut(tb ? B[j + (long long)l * ldb] : B[l + (long long)j * ldb]);
            T& c = C[i + (long long)j * ldc];
            c = (T)(alpha * sum) + (beta == 0 ? 0 : beta * c);
        }
}

extern "C" int cublasGemmStridedBatchedEx(
    void* handle, int ta, int tb, int m, int n, int k, const void* alpha,
    const void* A, int type_a, int lda, long long next_a,
    const void* B, int type_b, int ldb, long long next_b, const void* beta,
    void* C, int type_c, int ldc, long long next_c, int batch, int compute, int algorithm)
{
    if (handle != &made) return 1;
    if (ta < 0 || ta > 1 || tb < 0 || tb > 1 || m < 0 || n < 0 || k < 0 || batch < 0) return 7;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    if (lda < 1 || ldb < 1 || ldc < 1) return 7;
    if (type_a != type_b || type_a != type_c || algorithm != -1) return 15;
    if (batch > 1 && next_c < (long long)ldc * (n - 1) + m) return 7;  // matrices that overlap
    bool single = type_a == 0 && (compute == 68 || compute == 77);
    if (!single && !(type_a == 1 && compute == 70)) return 15;
    for (int b = 0; b < batch; b++)
        if (type_a == 1)
            multiply(ta, tb, m, n, k, *(const double*)alpha, (const double*)A + b * next_a, lda,
                     (const double*)B + b * next_b, ldb, *(const double*)beta,
                     (double*)C + b * next_c, ldc, same);
        else if (compute == 77)
            multiply(ta, tb, m, n, k, *(const float*)alpha, (const float*)A + b * next_a, lda,
                     (const float*)B + b * next_b, ldb, *(const float*)beta,
                     (float*)C + b * next_c, ldc, cut);
        else
            multiply(ta, tb, m, n, k, *(const float*)alpha, (const float*)A + b * next_a, lda,
                     (const float*)B + b * next_b, ldb, *(const float*)beta,
                     (float*)C + b * next_c, ldc, same);
    return 0;
}
"""


class _Cublas:
    """The library above; its products can be recorded."""

    def __init__(self):
        self.library = compile_library(CUBLAS, "cublas", ("-O3",))
        for name in ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2"):
            setattr(self, name, getattr(self.library, name))
        self.cublasGemmStridedBatchedEx = _Product(self.library.cublasGemmStridedBatchedEx)


class _Product:
    def __init__(self, function):
        self.function = function

    @property
    def argtypes(self):
        return self.function.argtypes

    @argtypes.setter
    def argtypes(self, types):
        self.function.argtypes = types

    def __call__(self, handle, *arguments):
        # The two factors are read when cuBLAS is called, not when the graph runs.
        scalar = ctypes.c_double if arguments[7] == 1 else ctypes.c_float
        arguments = list(arguments)
        kept = [scalar.from_address(arguments[place]).value for place in (5, 14)]
        kept = [scalar(value) for value in kept]
        arguments[5], arguments[14] = map(ctypes.addressof, kept)
        return _do(lambda kept=kept: self.function(handle, *arguments))


# --- cupy.cuda ----------------------------------------------------------------------------


class _CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class Graph:
    def __init__(self, actions):
        self.actions = actions

    def launch(self, stream=None):
        for action in self.actions:
            action()

    def upload(self, stream=None):
        pass


class Stream:
    """A queue of work, which is done at once; or a graph, which is done later."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        self.before = []

    def __enter__(self):
        self.before.append(_graph_state.stream)
        _graph_state.stream = self
        return self

    def __exit__(self, *error):
        _graph_state.stream = self.before.pop()

    def begin_capture(self, mode=None):
        if self.ptr == 0 or not self.non_blocking:
            raise _CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
        if _graph_state.stream is not self:
            raise AssertionError("this stream is not the current one: nothing would be recorded")
        if _graph_state.pool is None:
            raise AssertionError("a graph would keep addresses in memory that others use")
        self.kept = [(a._array, a._array.copy()) for a in list(_alive.values())]
        _graph_state.recording, _graph_state.made = [], []

    def end_capture(self):
        actions, _graph_state.recording = _graph_state.recording, None
        if actions is None:
            raise _CUDARuntimeError("cudaErrorIllegalState")
        # Nothing has happened so far: what was there is there, what is new is arbitrary.
        for array in _graph_state.made:
            if array.flags.writeable and array.dtype.kind == "f":
                array[...] = np.nan
        for array, before in self.kept:
            if array.flags.writeable:
                array[...] = before
        self.kept = []
        return Graph(actions)

    def is_capturing(self):
        return _graph_state.recording is not None

    def synchronize(self):
        _synchronise("synchronize")


Stream.null = Stream(null=True)


class MemoryPool:
    def __init__(self, allocator=None):
        self.kept = []

    def malloc(self, size):
        raise AssertionError("only a name for using_allocator")

    def used_bytes(self):
        return sum(array.nbytes for array in self.kept)

    def free_all_blocks(self, stream=None):
        pass


@contextlib.contextmanager
def _using_allocator(allocator=None):
    before, _graph_state.pool = _graph_state.pool, allocator.__self__
    try:
        yield
    finally:
        _graph_state.pool = before


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        pass

    def record(self, stream=None):
        import time

        self.time = time.perf_counter()

    def synchronize(self):
        _synchronise("synchronize")


PROPERTIES = {
    "name": b"a GPU that is none",
    "totalGlobalMem": 4 << 30,
    "major": 9,
    "minor": 0,
    "multiProcessorCount": 1,
}


def _as_strided(x, shape=None, strides=None):
    view = np.lib.stride_tricks.as_strided(x._array, shape, strides)
    low, high = np.lib.array_utils.byte_bounds(x._array)
    assert view.size == 0 or (
        np.lib.array_utils.byte_bounds(view)[0] >= low
        and np.lib.array_utils.byte_bounds(view)[1] <= high
    ), "out of bounds"
    return ndarray(view)


lib = types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=_as_strided))
cuda = types.SimpleNamespace(
    Stream=Stream,
    Graph=Graph,
    Event=Event,
    MemoryPool=MemoryPool,
    using_allocator=_using_allocator,
    get_current_stream=lambda: _graph_state.stream or Stream.null,
    get_elapsed_time=lambda start, end: 1e3 * (end.time - start.time),
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        CUDARuntimeError=_CUDARuntimeError,
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: PROPERTIES,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        deviceGetAttribute=lambda attribute, number: {36: 1_000_000, 37: 64}[attribute],
        memGetInfo=lambda: (3 << 30, 4 << 30),
        deviceSynchronize=lambda: _synchronise("deviceSynchronize"),
    ),
)


def get_default_memory_pool():
    return MemoryPool()
