"""Files that are either complete or not there.

Everything is written under another name in the same folder, forced to the disk, and renamed
at the end. Whatever stops a program, a reader never sees half a file.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def complete(path, mode="wb"):
    """Open a file for writing that takes the name `path` only when the block has succeeded.

    path     the file's final name
    mode     "wb" or "w" (UTF-8)
    Yields   the open file
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        raise


def save_arrays(path, **arrays):
    """Write arrays of numbers to an .npz file. TypeError for other objects: no pickle."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{path}: {name} holds Python objects, which are not written")
    with complete(path) as file:
        np.savez(file, **arrays)


def load_arrays(path, *names):
    """Read arrays that `save_arrays` wrote.

    Returns  a dict of the arrays
    Raises   FileNotFoundError; ValueError when the file is damaged or lacks one of `names`
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive}
        except Exception as error:  # a damaged file can make zipfile and NumPy raise anything
            raise ValueError(
                f"{path} is damaged or not an .npz file of plain arrays "
                f"({type(error).__name__}: {error})"
            ) from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it was written by something else")
    return arrays


def save_json(path, content):
    """Write a JSON file that a person can read."""
    with complete(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def load_json(path):
    """Read a JSON file; ValueError names it when it is damaged."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
