"""Files that are either complete or do not exist.

Everything is written under another name in the same folder, forced to the disk, and renamed
at the end. So a reader never sees half a file, even if a program is stopped in the middle.
"""

import contextlib
import errno
import json
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from minires.arrays.text import shown

FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk; a full share of it


@contextlib.contextmanager
def complete(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing. It gets the name `path` only when the block has succeeded.

    path     the file's final name
    mode     "wb" or "w" (UTF-8)
    Yields   the open file
    Raises   FileNotFoundError when its folder does not exist; OSError, which names the file, when
             it cannot be written, as on a full disk
    """
    path = Path(path)
    if not path.parent.exists():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}: make it first")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        if not isinstance(error, OSError) or error.filename is not None:
            raise
        if error.errno in FULL or (type(error) is OSError and error.errno is None):  # NumPy's
            raise full_disk(path, error) from error
        if error.errno is not None:
            error.filename = str(path)
        raise


def full_disk(path: str | Path, error: OSError) -> OSError:
    """The error to be raised in place of one that says that the disk is full.

    path    the file that did not fit
    error   of Python or NumPy
    """
    return OSError(f"{path}: {error.strerror or error}: make room, and run the command again")


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write arrays of numbers to an .npz file, not compressed.

    path     the file's name, used as it is
    arrays   by name
    Raises   TypeError for other objects than numbers and text: nothing is pickled;
             FileNotFoundError when the folder does not exist
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{path}: {name} holds Python objects, which are not written")
    with complete(path) as file:
        np.savez(file, **arrays)


def load_arrays(path: str | Path, *names: str, shapes: dict | None = None) -> dict[str, np.ndarray]:
    """Read arrays that `save_arrays` wrote.

    Names, types and sizes are checked before any content is read. `save_arrays` does not compress,
    so no array can be larger than the file, and a small file cannot fill the memory.

    path     the .npz file
    names    arrays that must be in it
    shapes   {name: shape} of arrays that must be in it with that shape: float32, all finite
    Returns  a dict of all the arrays in it
    Raises   FileNotFoundError; ValueError when the file is damaged, lacks one of `names`, or
             holds something else than `shapes` says
    """
    shapes = shapes or {}
    with open(path, "rb") as file:
        try:
            found = _headers(file)
            missing = [name for name in (*names, *shapes) if name not in found]
            if not missing:
                with np.load(file, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in archive}
                for array in arrays.values():
                    if array.dtype.kind == "U":  # its characters are numbers: some are none
                        for text in array.ravel().tolist():
                            list(text)  # raises, where all other functions go on with a wreck
        except Exception as error:  # a damaged file can make zipfile and NumPy raise anything
            raise ValueError(
                f"{path} is damaged or not an .npz file of plain arrays "
                f"({type(error).__name__}: {error})"
            ) from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it was written by something else")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: {name} is {arrays[name].shape}, expected {shape}")
        if arrays[name].dtype != np.float32:
            raise ValueError(f"{path}: {name} is {arrays[name].dtype}, expected float32")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name} has values that are infinite or not numbers")
    return arrays


def _headers(file):
    """{name: (shape, dtype)} of the arrays in an .npz file; their contents are not read."""
    size = os.fstat(file.fileno()).st_size
    found, total = {}, 0
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            total += entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or total > size:
                raise ValueError("its arrays are larger than the file")
            with archive.open(entry) as array:
                version = np.lib.format.read_magic(array)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(array)
                if dtype.hasobject:
                    raise ValueError(f"{entry.filename} holds Python objects, not numbers")
                if math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise ValueError(f"{entry.filename} is not the array that it says it is")
            found[entry.filename.removesuffix(".npy")] = shape, dtype
    file.seek(0)
    return found


@contextlib.contextmanager
def content_of(path: str | Path, remedy: str = "") -> Iterator[None]:
    """Use what was read from a file. If its content causes an error, the error names the file.

        arrays = load_arrays(path)
        with content_of(path, "remove it"):
            moments = Moments.from_state(arrays)

    path     the file
    remedy   what to do with a damaged file
    Raises   ValueError in place of errors that wrong numbers, names and types lead to
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        what = f"{path} is damaged ({type(error).__name__}: {shown(error)})"
        raise ValueError(f"{what}: {remedy}" if remedy else what) from error


def save_json(path: str | Path, content: object) -> None:
    """Write a JSON file that a person can read.

    path     the file's name
    content  dicts, lists, text and numbers
    Raises   ValueError for NaN and infinity, which JSON does not have
    """
    with complete(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def load_json(path: str | Path) -> object:
    """Read a JSON file.

    path     the file's name
    Raises   FileNotFoundError; ValueError, which names it, when it is damaged or holds NaN
    """

    def refuse(constant):
        raise ValueError(f"it holds {constant}, which JSON does not have")

    try:
        return json.loads(Path(path).read_text("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
