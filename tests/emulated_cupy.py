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
- A stream that records a graph runs nothing, takes only calls from a list of those that a graph can
  hold, and the graph replays what was recorded on the same memory, if that is still there.

    with emulated_cupy.installed() as cupy: ...
    with emulated_cupy.installed(as_a_card=True) as cupy: ...

The second computes as a card does: multiplications and additions are fused, numbers too small
for full precision become 0, products are added up in the arrays' own type, and the threads of a
grid run in a mixed order. Two threads that touch one address, one of them writing, are an error.
"""

import contextlib
import ctypes
import functools
import hashlib
import inspect
import math
import os
import platform
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
def installed(as_a_card=False):
    """Within, `import cupy` gives this module, and minires multiplies with the cuBLAS below.

    as_a_card   whether to round, and to order threads, as a card does
    """
    from minires.kernels import cublas, gpu

    this, before = sys.modules[__name__], sys.modules.get("cupy")
    library = cublas._library
    special = sys.modules.get("cupyx.scipy.special")
    sys.modules["cupy"] = this
    sys.modules["cupyx.scipy.special"] = types.SimpleNamespace(erf=_erf)
    cublas._library = functools.cache(lambda: cublas.declare(_Cublas(as_a_card)))
    cublas._handles.known.clear()
    gpu._modules.clear()
    _graph_state.as_a_card = as_a_card
    try:
        yield this
    finally:
        cublas._library = library
        cublas._handles.known.clear()
        gpu._modules.clear()
        _graph_state.recording, _graph_state.as_a_card = None, False
        for name, module in (("cupy", before), ("cupyx.scipy.special", special)):
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _erf(x):
    from scipy.special import erf

    return _apply("erf", erf, x)


# --- recording ----------------------------------------------------------------------------


class _State:
    as_a_card = False  # see `installed`
    recording = None  # the list of what a graph will do, while a stream records
    touched = ()  # while a stream records: the memory that the graph will use
    pool = None  # the memory pool in use, if not the common one
    stream = None
    made = ()  # arrays made while recording
    synchronisations = 0  # of host and device so far


_graph_state = _State()
_alive = weakref.WeakValueDictionary()
_memory = weakref.WeakValueDictionary()  # NumPy's arrays that are known already
_bases = weakref.WeakValueDictionary()  # id of NumPy's array that owns memory → our view of all


# What a graph can hold of CuPy: each launches kernels, or copies within the device, or only looks
# at memory in another way. All else is refused while a stream records: what copies from the host or
# to it, or asks for a number; and what nobody has looked up yet, in CuPy 14's sources.
CAPTURABLE = {
    *("__getitem__", "__setitem__", "reshape", "swapaxes", "transpose", "T", "ravel", "squeeze"),
    *("broadcast_to", "expand_dims", "concatenate", "take", "copy", "astype", "ascontiguousarray"),
    *("asarray", "empty", "empty_like", "zeros", "zeros_like", "ones", "ones_like", "arange"),
    *("add", "subtract", "multiply", "true_divide", "divide", "negative", "power", "maximum"),
    *("minimum", "sqrt", "exp", "log", "tanh", "clip", "abs", "where", "greater", "isfinite"),
    *("sum", "mean", "max", "min", "square", "reciprocal"),
    *("__neg__", "__invert__", "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"),
    *("__and__", "__or__", "__rmul__", "__radd__", "__rsub__", "__rtruediv__", "__iadd__"),
    *("__isub__", "__imul__", "__itruediv__", "__add__", "__sub__", "__mul__", "__truediv__"),
    "__pow__",
}  # fmt: skip
MOST_CONCATENATED = 8  # more arrays, and CuPy copies a table of their addresses from the host


def _capturable(name, arguments=()):
    """Refuse what a graph cannot hold, while one is recorded."""
    if _graph_state.recording is None:
        return
    if name not in CAPTURABLE:
        raise RuntimeError(f"{name} is not known to be possible while the stream is capturing")
    many = name == "concatenate" and len(arguments[0]) > MOST_CONCATENATED
    if many:
        raise RuntimeError(
            f"concatenate of {len(arguments[0])} arrays copies from the host: "
            "the current stream is capturing"
        )


def _owner(array):
    """The NumPy array whose memory this one sees."""
    while getattr(array, "base", None) is not None:  # `as_strided` puts an object between
        array = array.base
    return array


def _touch(*arrays):
    """Note that a graph will use this memory."""
    if _graph_state.recording is not None:
        _graph_state.touched += [_owner(array) for array in arrays]


def _do(action, *arrays):
    """Run an action on arrays of the device, and keep it if a graph is being recorded."""
    if _graph_state.recording is not None:
        _graph_state.recording.append(action)
        _touch(*arrays)
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


def _apply(name, function, *arguments, **settings):
    """Call a NumPy function, which CuPy knows by a name, on arrays of the device."""
    _capturable(name, arguments)
    arguments, settings = _bare(arguments), {k: _bare(v) for k, v in settings.items()}
    result = function(*arguments, **settings)
    if _graph_state.recording is not None:
        given = [*_arrays_in(arguments), *_arrays_in(settings.values())]
        _touch(*given)
        fresh = isinstance(result, (np.ndarray, np.generic)) and not any(
            np.may_share_memory(result, array) for array in given
        )
        if fresh:
            result = np.asarray(result)
            if result.base is not None:  # NumPy made it as a view
                _graph_state.pool.take(_owner(result))
            _touch(result)

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
        fresh = array.base is None and _memory.get(id(array)) is not array
        if fresh and _graph_state.pool is not None:
            _graph_state.pool.take(array)
        _memory[id(array)] = array
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
    T = property(lambda self: _apply("T", lambda array: array.T, self))
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
        key = self._key(key)
        _touch(*_arrays_in(key if isinstance(key, tuple) else (key,)))
        return _apply("__getitem__", lambda array: array[key], self)

    def __setitem__(self, key, value):
        array, key, value = self._array, self._key(key), _bare(value)

        def assign():
            array[key] = value

        _capturable("__setitem__")
        given = _arrays_in([array, value, *(key if isinstance(key, tuple) else (key,))])
        _do(assign, *given)

    def fill(self, value):
        self[...] = value

    def __getattr__(self, name):
        if name.startswith("_") or not hasattr(real.ndarray, name):
            raise AttributeError(f"a CuPy array has no {name!r}")
        if callable(getattr(self._array, name)):
            return lambda *a, **k: _apply(
                name, lambda array, *a, **k: getattr(array, name)(*a, **k), self, *a, **k
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
            _capturable(name)
            _do(lambda: getattr(array, name)(*others), array, *_arrays_in(others))
            return self
        return _apply(name, lambda array, *others: getattr(array, name)(*others), self, *others)

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
                result = _apply("asarray", self.numpy, *arguments, **settings)
                return arguments[0] if result._array is arguments[0]._array else result
        if self.__name__ in ("empty", "empty_like"):  # what is read too early is seen
            result = _apply(self.__name__, self.numpy, *arguments, **settings)
            result._array[...] = _mark(result.dtype)
            return result
        if self.__name__ == "bincount" and settings.get("weights") is not None:
            # A GPU adds weights as the threads come, and so does this: the last one first.
            backwards = (values[::-1] for values in (*arguments, settings.pop("weights")))
            arguments, settings["weights"] = [next(backwards)], next(backwards)
        return _apply(self.__name__, self.numpy, *arguments, **settings)

    @property
    def at(self):
        def at(array, *arguments):
            _capturable(f"{self.__name__}.at")
            array, arguments = _bare(array), _bare(arguments)
            _do(lambda: self.numpy.at(array, *arguments), array, *_arrays_in(arguments))

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
#include <algorithm>
#include <cmath>
#define __global__
#define __device__
#define __restrict__
struct Place { unsigned x, y, z; };
static thread_local Place gridDim, blockDim, blockIdx, threadIdx;
using std::sqrt;
using std::min;
static unsigned this_thread() { return 1 + blockIdx.x * blockDim.x + threadIdx.x; }

// Memory that a kernel may write: `Written<T> y` for its parameter `T* y`. Beside every value is
// kept which thread has touched it; `fault` becomes 1 when another one has, and one of them writes.
static thread_local int fault;
struct Touched { unsigned who; bool written; };
[[maybe_unused]] static void touch(Touched& place, bool writes)
{
    if (place.who && place.who != this_thread() && (writes || place.written)) fault = 1;
    if (!place.who || writes) place.who = this_thread();
    place.written |= writes;
}
template <class T> struct Value {
    T& value; Touched& place;
    operator T() const { touch(place, false); return value; }
    Value& operator=(T other) { touch(place, true); value = other; return *this; }
    Value& operator=(const Value& other) { return *this = (T)other; }
    Value& operator+=(T other) { return *this = (T)*this + other; }
    Value& operator-=(T other) { return *this = (T)*this - other; }
};
template <class T> struct Written {
    T* values; Touched* places;
    Value<T> operator[](long long k) const { return {values[k], places[k]}; }
};
"""

# What a card does to numbers below the smallest of full precision: nothing is left of them.
FLUSH = """
#if defined(__SSE__)
#include <xmmintrin.h>
struct Flush {
    unsigned before = _mm_getcsr();
    Flush() { _mm_setcsr(before | 0x8040); }
    ~Flush() { _mm_setcsr(before); }
};
#else
struct Flush {};
#endif
"""
FMA = ("-mfma",) if platform.machine() in ("x86_64", "AMD64") else ()
AS_A_CARD = ("-ffp-contract=fast", *FMA)

DECLARATION = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')

CTYPES = {
    "int": (ctypes.c_int, np.int32),
    "long long": (ctypes.c_longlong, np.int64),
    "unsigned long long": (ctypes.c_ulonglong, np.uint64),
    "unsigned char": (ctypes.c_ubyte, np.uint8),
    "float": (ctypes.c_float, np.float32),
    "double": (ctypes.c_double, np.float64),
}


@functools.cache
def compile_library(source, name, flags=("-O2", "-ffp-contract=off")):
    """A shared library from C++, compiled once for each source."""
    digest = hashlib.sha256("\0".join((source, *flags)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"minires-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{name}-{digest}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        command = [COMPILER, "-x", "c++", "-std=c++17", "-shared", "-fPIC", "-Wall", *flags]
        done = subprocess.run(
            [*command, "-o", str(part), "-"],
            input=source, text=True, capture_output=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{name} does not compile:\n{done.stderr}")
        os.replace(part, path)
    return ctypes.CDLL(str(path))


@functools.cache
def expand(source, options):
    """CUDA C with its macros replaced, nothing else."""
    done = subprocess.run(
        [COMPILER, "-x", "c++", "-E", "-P", *options, "-"],
        input=source, text=True, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


def parameters_of(text):
    """[(type, is a pointer, is const, name)] of a parameter list."""
    found = []
    for part in text.split(","):
        words = part.replace("*", " * ").split()
        const, pointer = "const" in words, "*" in words
        kind = " ".join(word for word in words[:-1] if word not in ("const", "*"))
        found.append((kind, pointer, const, words[-1]))
    return found


class RawModule:
    """CUDA C, compiled for the host."""

    def __init__(self, code, options=()):
        if any(not isinstance(option, str) for option in options):
            raise TypeError("options are strings")
        code.encode("ascii")  # CuPy writes it in the system's own encoding, whatever that is
        expanded = expand(code, tuple(options))
        declared = DECLARATION.findall(expanded)
        self.kernels = {name: parameters_of(text) for name, text in declared}
        launchers = "".join(self._launcher(name, text) for name, text in declared)
        flags = ("-O2", "-ffp-contract=off")
        if _graph_state.as_a_card:
            flags = "-O2", *AS_A_CARD
            expanded = DECLARATION.sub(self._watched, expanded)
        self.library = compile_library(SHIM + FLUSH + expanded + launchers, "kernels", flags)

    @staticmethod
    def _watched(declaration):
        """The head of a kernel that notes who touches what it may write."""
        name, text = declaration.groups()
        parts = [
            part if "*" not in part or "const" in part.split()
            else "Written<{}> {}".format(*(words.strip() for words in part.split("*")))
            for part in text.split(",")
        ]  # fmt: skip
        return f"static void {name}({', '.join(parts)})"

    @staticmethod
    def _launcher(name, text):
        """Runs the threads of a grid: number `start_` first, then always `step_` further."""
        watched = _graph_state.as_a_card
        words, places = [], []
        for kind, pointer, const, word in parameters_of(text):
            written = watched and pointer and not const
            words.append(f"Written<{kind}>{{{word}, places_{word}}}" if written else word)
            places += [f", Touched* places_{word}"] if written else []
        flush = "Flush flush;" if watched else ""
        return f"""
extern "C" int launch_{name}(unsigned grid, unsigned block, unsigned start_, unsigned step_,
                             {text}{"".join(places)}) {{
    {flush} fault = 0; gridDim.x = grid; blockDim.x = block;
    unsigned long long all = (unsigned long long)grid * block, number = start_ % all;
    for (unsigned long long k = 0; k < all; k++, number = (number + step_) % all) {{
        blockIdx.x = number / block; threadIdx.x = number % block; {name}({", ".join(words)});
    }}
    return fault;
}}"""

    def get_function(self, name):
        return _Kernel(name, getattr(self.library, f"launch_{name}"), self.kernels[name])


def order_of(threads):
    """Which thread is first, and the step to the next: the last one first, or a mixed order."""
    if not _graph_state.as_a_card or threads < 3:
        return threads - 1, threads - 1
    step = next(n for n in range(int(0.618 * threads), threads) if math.gcd(n, threads) == 1)
    return threads // 3, step


GUARD = 64  # values before and behind every array


class _Kernel:
    def __init__(self, name, function, parameters):
        self.name, self.function, self.parameters = name, function, parameters
        self.watched = _graph_state.as_a_card
        written = sum(pointer and not const for _, pointer, const, _ in parameters)
        function.restype = ctypes.c_int
        function.argtypes = (
            [ctypes.c_uint] * 4
            + [
                ctypes.c_void_p if pointer else CTYPES[kind][0]
                for kind, pointer, _, _ in parameters
            ]
            + [ctypes.c_void_p] * written * self.watched
        )

    def __call__(self, grid, block, arguments):
        (blocks,), (threads,) = grid, block
        if not 0 < blocks < 1 << 31 or not 0 < threads <= 1024:
            raise RuntimeError(f"{self.name}: a grid of {blocks} blocks of {threads} threads")
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name}: {len(arguments)} of {len(self.parameters)} arguments")
        for value, (kind, pointer, _, _) in zip(arguments, self.parameters, strict=True):
            wanted = CTYPES[kind][1]
            if pointer != isinstance(value, ndarray) or value.dtype != wanted:
                raise TypeError(f"{self.name}: {value!r} for {kind}{' *' if pointer else ''}")
        # A graph knows addresses: it must not keep our arrays alive.
        arguments = [v._array if isinstance(v, ndarray) else v for v in arguments]
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        _do(lambda: self._run(blocks, threads, arguments), *arrays)

    def _run(self, blocks, threads, arguments):
        guarded, passed, places = {}, [], []
        for array, (_, pointer, const, _) in zip(arguments, self.parameters, strict=True):
            if not pointer:
                passed.append(array.item())
                continue
            key = array.ctypes.data, array.size
            if key not in guarded:
                room = np.empty(array.size + 2 * GUARD, array.dtype)
                room[:GUARD] = room[-GUARD:] = _border(array.dtype)
                room[GUARD : GUARD + array.size] = array.reshape(-1)
                touched = np.zeros(2 * (array.size + 2 * GUARD) * self.watched, np.uint32)
                guarded[key] = room, array, [], touched
            guarded[key][2].append(const)
            passed.append(guarded[key][0].ctypes.data + GUARD * array.itemsize)
            if self.watched and not const:
                places.append(guarded[key][3].ctypes.data + GUARD * 8)
        order = order_of(blocks * threads)
        if self.function(blocks, threads, *order, *passed, *places):
            raise MemoryError(f"{self.name}: two threads touch one address, and one writes to it")
        for room, array, const, _ in guarded.values():
            mark = _border(array.dtype).tobytes()
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


@functools.cache
def _border(dtype):
    return np.full(GUARD, _mark(dtype))


# --- cuBLAS -------------------------------------------------------------------------------

CUBLAS = r"""
#include <cstring>
#include <cstdint>
static int made = 0;
extern "C" int cublasCreate_v2(void** handle) { *handle = &made; made++; return 0; }
extern "C" int cublasDestroy_v2(void* handle)
{ return handle == &made && made ? made--, 0 : 1; }
extern "C" int handles() { return made; }
extern "C" int cublasSetStream_v2(void* handle, void*) { return handle == &made ? 0 : 1; }
extern "C" int cublasSetWorkspace_v2(void* handle, void* memory, size_t bytes)
{ return handle == &made ? (memory && bytes ? 0 : 7) : 1; }

static float cut(float x) {  // TF32: 10 bits of fraction
    uint32_t bits; memcpy(&bits, &x, 4); bits = (bits + 0x1000) & 0xFFFFE000; memcpy(&x, &bits, 4);
    return x;
}
static double same(double x) { return x; }

// C = alpha op(A) op(B) + beta C by columns: element (i, j) is at i + j * ld.
#ifdef AS_A_CARD
#define SUM T
#else
#define SUM double
#endif
template <class T, class Cut>
static void multiply(int ta, int tb, int m, int n, int k, T alpha, const T* A, int lda,
                     const T* B, int ldb, T beta, T* C, int ldc, Cut cut)
{
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            SUM sum = 0;
            for (int l = 0; l < k; l++)
                sum += (SUM)cut(ta ? A[l + (long long)i * lda] : A[i + (long long)l * lda])
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

    def __init__(self, as_a_card):
        own = (*AS_A_CARD, "-DAS_A_CARD") if as_a_card else ("-ffp-contract=off",)
        self.library = compile_library(CUBLAS, "cublas", ("-O3", *own))
        for name in ("Create", "Destroy", "SetStream", "SetWorkspace"):
            name = f"cublas{name}_v2"
            setattr(self, name, getattr(self.library, name))
        self.cublasGemmStridedBatchedEx = _Product(self.library.cublasGemmStridedBatchedEx)


def _array_at(pointer):
    """An array of the device whose memory holds this address; it is likely to be a young one."""
    for array in [value._array for value in reversed(list(_alive.values()))]:
        low, high = np.lib.array_utils.byte_bounds(array)
        if low <= pointer < high:
            return array
    raise AssertionError("a product reads or writes memory that no array holds")


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
        if _graph_state.recording is not None:
            used = (arguments[place] for place in (6, 10, 15))
            _touch(*(array for pointer in used for array in [_array_at(pointer)]))
        return _do(lambda kept=kept: self.function(handle, *arguments))


# --- cupy.cuda ----------------------------------------------------------------------------


class _CUDARuntimeError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class Graph:
    """What was recorded, and the memory that it uses: as addresses only, so others must hold it."""

    def __init__(self, actions, touched, pool):
        self.actions, self.pool = actions, pool
        self.touched = {id(array): array for array in touched}

    def launch(self, stream=None):
        held = {id(_owner(value._array)) for value in list(_alive.values())}
        held |= {id(array) for array in self.pool.kept}
        for key, array in self.touched.items():
            if key not in held:
                raise MemoryError(f"a graph uses memory {array.shape} that was given back")
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
        _graph_state.recording, _graph_state.made, _graph_state.touched = [], [], []

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
        touched, _graph_state.touched = _graph_state.touched, ()
        return Graph(actions, touched, _graph_state.pool)

    def is_capturing(self):
        return _graph_state.recording is not None

    def synchronize(self):
        _synchronise("synchronize")


Stream.null = Stream(null=True)


class Memory:
    """Memory of the device."""

    room = None  # bytes left; None: enough

    def __init__(self, size):
        if Memory.room is not None and size > Memory.room:
            raise _CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")


class MemoryPointer:
    def __init__(self, memory, offset):
        pass


class MemoryPool:
    """Keeps memory for later. When there is none left, it gives back what nobody uses."""

    def __init__(self, allocator=None):
        self.kept, self.allocator = [], allocator

    def malloc(self, size):
        raise AssertionError("only a name for using_allocator")

    def take(self, array):
        """Memory for one more array, as CuPy's pool asks for it."""
        allocate = self.allocator or Memory
        try:
            allocate(array.nbytes)
        except _CUDARuntimeError:
            self.free_all_blocks()
            Memory.room = None  # what was given back is enough
            allocate(array.nbytes)
        self.kept.append(array)

    def used_bytes(self):
        return sum(array.nbytes for array in self.kept)

    def free_all_blocks(self, stream=None):
        used = {id(_owner(value._array)) for value in list(_alive.values())}
        self.kept = [array for array in self.kept if id(array) in used]


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
    Memory=Memory,
    MemoryPointer=MemoryPointer,
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
