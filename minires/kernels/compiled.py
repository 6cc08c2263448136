"""Compiles the kernels in C at their first use, and lets Python call them.

`cpu.c` is compiled for this very processor by any C compiler that is installed, once for float and
once for double. The libraries are kept in the user's cache. If a step fails, for example because
there is no compiler, only speed is lost: there is one warning, and NumPy does the work.

In the cache an index file `<key>.txt` holds the digest of a library `<key>-<digest>.so`. The key
is a hash of everything that the library depends on: source, compiler, flags and processor. Both
files are written under another name first and then renamed, the index last. So a library is in the
cache as a whole or not at all, several processes may compile at the same time, and a damaged file
is noticed and compiled again.
"""

import ctypes
import hashlib
import importlib.util
import itertools
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("cpu.c")
PARTS = Path(__file__).with_name("c")

# "contract": a product and the sum that follows it are rounded once, in every place where the
# processor can do so. Never -ffast-math: it may lose a NaN.
FLAGS = (
    "-std=gnu11", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-fPIC", "-shared", "-pthread",
)  # fmt: skip
# Flags for all that this processor can do, in the words of two kinds of compilers; the last entry
# works with every compiler.
MACHINE = (("-march=native",), ("-mcpu=native",), ())
# Where "contract" would change the bits of an update, the source forbids it. clang obeys only with
# this flag, which other compilers refuse.
OBEY = (("-ffp-contract=fast-honor-pragmas",), ())
REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
TIMEOUT = 300  # seconds for one compilation


class Unavailable(Exception):
    """Why there is no compiled library, and the remedy: one line."""


# --- compiling ----------------------------------------------------------------------------


def compilers() -> list[list[str]]:
    """The commands of all C compilers on this machine, the preferred one first."""
    if os.environ.get("CC"):
        return [shlex.split(os.environ["CC"])]
    found = [[path] for name in ("cc", "clang", "gcc") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang") is not None:
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def cache_folder() -> Path:
    """The private folder for compiled libraries. It is made if it does not exist.

    Raises   Unavailable when it cannot be made, or when other users could put a library into it
    """
    base = os.environ.get("MINIRES_CACHE") or os.environ.get("XDG_CACHE_HOME")
    remedy = "name another folder with MINIRES_CACHE"
    try:
        base = base or Path.home() / ".cache"
    except RuntimeError as error:
        raise Unavailable(f"there is no folder for a cache ({error}): {remedy}") from error
    folder = Path(base) / "minires" / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"the cache {folder} cannot be made ({error}): {remedy}") from error
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise Unavailable(f"the cache {folder} belongs to another user: {remedy}")
    if os.name == "posix" and status.st_mode & 0o022:
        raise Unavailable(f"others may write into the cache {folder}: chmod 700 it, or {remedy}")
    return folder


def sources() -> list[Path]:
    """The files that a library is made of; not those that an editor keeps beside them."""
    own = (part for part in PARTS.iterdir() if not part.name.startswith("."))
    return [SOURCE, *sorted(part for part in own if part.suffix in (".c", ".h"))]


def processor() -> str:
    """What this processor can do, as text: a library for one processor may fail on another."""
    lines = [platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "flags", "Features", "CPU part")):
                    lines.append(line)
                if not line.strip():  # the next core
                    break
    except OSError:
        pass
    return "\n".join(lines)


def _key(command, real, flags):
    """A name for the library that a compiler makes of the present source for this processor."""
    digest = hashlib.sha256()
    where = shutil.which(command[0])
    status = os.stat(where) if where else None
    compiler = (command, where, status and (status.st_size, status.st_mtime_ns))
    if "ziglang" in command:
        compiler += (metadata.version("ziglang"),)
    for part in (repr(compiler), repr((*FLAGS, *flags, MACHINE, OBEY)), processor(), sys.platform):
        digest.update(part.encode() + b"\0")
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{real}-{digest.hexdigest()[:24]}"


def _compile(command, real, flags, path):
    """Compile `cpu.c` to a shared library.

    Raises   Unavailable with the compiler's first error
    """
    said = ""
    for machine, obey in itertools.product(MACHINE, OBEY):
        options = (*FLAGS, *obey, *flags, *machine, f"-Dreal={real}", "-o", str(path))
        full = [*command, *options, str(SOURCE)]
        try:
            done = subprocess.run(
                [*full, "-lm"], capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"the C compiler {command[0]!r} does not run ({error})") from error
        if done.returncode == 0:
            return
        said = said or ("" if obey else done.stderr)
    lines = [line for line in said.splitlines() if "error:" in line.lower()] or said.splitlines()
    reason = lines[0].strip() if lines else f"exit status {done.returncode}"
    raise Unavailable(f"the C compiler {shlex.join(command)!r} fails: {reason}")


def _cached(folder, key):
    """The library of a key, if it is whole."""
    try:
        digest = (folder / f"{key}.txt").read_text("ascii").strip()
        path = folder / f"{key}-{digest[:16]}.so"
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except (OSError, UnicodeDecodeError):
        return None
    return path if whole else None


def _write(folder, name, content):
    """A file in the cache: as a whole, or not at all."""
    number, part = tempfile.mkstemp(prefix=".part-", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.replace(part, folder / name)
    except BaseException:
        os.unlink(part)
        raise


def build(real: str, flags: Sequence[str] = ()) -> Path:
    """The path of the library for one precision, compiled unless the cache has it.

    real     "float" or "double"
    flags    more of them for the compiler
    Raises   Unavailable with the reason and the remedy
    """
    commands, folder, problems = compilers(), cache_folder(), []
    for command in commands:
        key = _key(command, real, flags)
        path = _cached(folder, key)
        if path is not None:
            return path
        try:
            with tempfile.TemporaryDirectory() as work:
                made = Path(work) / "kernels.so"
                _compile(command, real, flags, made)
                content = made.read_bytes()
            if key != _key(command, real, flags):
                raise Unavailable("the source of the kernels changed while it was compiled")
            digest = hashlib.sha256(content).hexdigest()
            _write(folder, f"{key}-{digest[:16]}.so", content)
            _write(folder, f"{key}.txt", digest.encode())
        except OSError as error:
            raise Unavailable(
                f"the cache {folder} cannot be written to ({error}): "
                "name another folder with MINIRES_CACHE"
            ) from error
        except Unavailable as error:
            problems.append(str(error))
            continue
        return folder / f"{key}-{digest[:16]}.so"
    if problems:
        raise Unavailable(f"{problems[0]}; pip install 'minires[fast]' brings another")
    raise Unavailable("there is no C compiler: pip install 'minires[fast]' brings one, or set CC")


# --- calling ------------------------------------------------------------------------------

EXPORTED = re.compile(r"^EXPORT\s+int\s+(\w+)\(([^)]*)\)", re.MULTILINE)


class Strided:
    """Marks an array that need not be contiguous: C is told its steps as well.

    array   NumPy
    """

    def __init__(self, array: np.ndarray):
        self.array = array


READ_ONLY = "the array for the result is read-only: give a copy of it"


def _pointer(kind, is_const):
    """A ctypes argument: None, or a contiguous array of one type, which C may write to or not."""

    class Pointer:
        @staticmethod
        def from_param(array):
            if array is None:
                return None
            contiguous = not isinstance(array, Strided)
            array = array if contiguous else array.array
            if array.dtype != kind or (contiguous and not array.flags.c_contiguous):
                raise TypeError(f"a kernel got {array.dtype}, not a contiguous array of {kind}")
            try:  # three times as fast as asking for the interface, and a call has many arrays
                return ctypes.byref(ctypes.c_char.from_buffer(array))
            except (TypeError, ValueError, BufferError):  # read-only, with gaps, or empty
                if not is_const and not array.flags.writeable:
                    raise ValueError(READ_ONLY) from None
                return ctypes.c_void_p(array.__array_interface__["data"][0])

    return Pointer


class _Numbers:
    """A ctypes argument: a sequence of whole numbers, for a struct of int64_t."""

    @staticmethod
    def from_param(numbers):
        return struct.pack(f"{len(numbers)}q", *numbers)


def _argument_types(parameters, dtype):
    """The ctypes of a C function's parameters, as its declaration in the source has them."""
    arrays = {"real": dtype, "double": np.dtype(np.float64), "uint8_t": np.dtype(np.uint8)}
    numbers = {
        "int64_t": ctypes.c_int64,
        "real": np.ctypeslib.as_ctypes_type(dtype),
        "double": ctypes.c_double,
    }
    types = []
    for parameter in parameters.split(","):
        words = parameter.replace("const ", "").split()
        if words[0] == "struct":
            types.append(_Numbers)
        elif "*" in parameter:
            types.append(_pointer(arrays[words[0]], "const " in parameter))
        else:
            types.append(numbers[words[0]])
    return types


def load(path: Path, dtype: np.dtype) -> dict[str, Callable]:
    """The functions of a compiled library, by name.

    path     of the library
    dtype    of the arrays that they take: the one that it was compiled for
    Returns  {name: function}
    Raises   Unavailable where the system refuses to load it
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(
            f"the compiled library cannot be loaded ({error}): name a folder on a disk that "
            "allows programs with MINIRES_CACHE"
        ) from error
    functions = {}
    for source in sources():
        for name, parameters in EXPORTED.findall(source.read_text("utf-8")):
            function = getattr(library, name)
            function.restype = ctypes.c_int
            function.argtypes = _argument_types(parameters, dtype)
            functions[name] = function
    return functions


_lock = threading.Lock()
_loaded = {}  # dtype → functions, or None where there are none


def _after_fork():
    """In the child no thread is left that could open a lock again."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def functions(dtype: np.dtype) -> dict[str, Callable] | None:
    """The compiled functions for arrays of one type.

    The first call compiles and loads the library. If that fails, there is one warning.
    MINIRES_CFLAGS adds flags for the compiler.

    dtype    of the arrays, a NumPy dtype
    Returns  {name: function}; None when there is no library, or none for this type
    """
    if dtype in _loaded:
        return _loaded[dtype]
    with _lock:
        if dtype in _loaded:
            return _loaded[dtype]
        if dtype not in REAL:
            return None
        try:
            flags = shlex.split(os.environ.get("MINIRES_CFLAGS", ""))
            found = load(build(REAL[dtype], flags), dtype)
        except Unavailable as error:
            for kind in REAL:  # what is loaded already goes on
                _loaded.setdefault(kind, None)
            warnings.warn(
                f"the fast kernels are not used, NumPy computes instead, more slowly: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        _loaded[dtype] = found
        return found
