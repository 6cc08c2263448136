"""A folder of results: one process at a time, settings that do not change, files that are checked.

    with locked_folder(out) as folder:              # a second process is refused here
        settle(folder, "config.json", settings)     # other settings are refused here
        ...                                         # files, each by `files.complete`

Whoever is refused has written nothing. `check` compares what a file holds with what it must hold,
so that a damaged file is named, instead of an error somewhere later.
"""

import contextlib
import errno
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from minires.arrays.files import load_json, save_json

LOCK = "in-use.lock"
LARGEST = {int: 2**63, float: math.inf}
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def locked_folder(path: str | Path) -> Iterator[Path]:
    """Make a folder if it does not exist, and lock it until the block ends.

    The system releases the lock when a process dies. A folder that was made here is removed again
    if nothing was written into it.

    path     the folder
    Yields   it, as a Path
    Raises   BlockingIOError while another process holds it; OSError when nothing can be written
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path)
    except BlockingIOError:
        raise
    except OSError as error:
        _remove(missing)
        raise OSError(
            f"{path}: nothing can be written there ({error.strerror or error}): name another "
            "folder with --out"
        ) from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK).unlink()  # while it is held: see `_take_lock`
        os.close(lock)
        with contextlib.suppress(OSError):
            (path / LOCK).unlink()  # Windows removes no open file
        _remove(missing)


def _remove(folders):
    """Remove those of the folders that are empty, inner ones first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _take_lock(path):
    """An open file in the folder that is locked."""
    while True:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(lock, path)
            # The last holder may have removed the file between the two lines above: try again.
            if os.path.samestat(os.fstat(lock), os.stat(path / LOCK)):
                return lock
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _lock(file, path):
    try:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"{path} cannot be locked ({error.strerror}): make sure that no second process "
                "works in this folder",
                stacklevel=4,
            )
            return
        raise BlockingIOError(
            f"{path}: another process is at work in this folder: wait for it, or name another "
            "folder with --out"
        ) from error


def tidy(folder: Path, *names: str) -> None:
    """Remove what a process that was killed left half written.

    folder   held by `locked_folder`, so no living process writes such a file
    names    of the files that are written under the lock, such as "results.json" or "cells/*"
    """
    for name in names:
        for unfinished in Path(folder).glob(f"{name}.*.part"):
            if re.fullmatch(r".+\.\d+\.part", unfinished.name):
                unfinished.unlink()


def settle(
    folder: Path, name: str, settings: dict, free: tuple = (), write: bool = True
) -> dict | None:
    """Write the settings of a folder's results; or check that the settings in it are the same.

    folder    held by `locked_folder`
    name      of the file, such as "config.json"
    settings  plain values, as JSON has them
    free      names of settings that may differ, such as the number of seeds
    write     False: only check
    Returns   the content of the file before; None when there was no file
    Raises    ValueError, which names each setting, its old value and its new one
    """
    path = Path(folder) / name
    before = None
    if path.exists():
        before = load_json(path)
        check(path, before, {"*": object})
        names = [key for key in {**settings, **before} if key not in free]
        changed = [key for key in names if before.get(key) != settings.get(key)]
        if changed:
            what = ", ".join(
                f"{key} was {before.get(key)!r}, now {settings.get(key)!r}" for key in changed
            )
            raise ValueError(
                f"{folder} holds results with other settings ({what}) in {name}: name another "
                "folder with --out"
            )
    if write and before != settings:
        save_json(path, settings)
    return before


def check(path: str | Path, value: object, schema: object, place: str = "") -> None:
    """Compare what a JSON file holds with what it must hold.

    path      of the file, for the message
    value     what it holds
    schema    a dict {name: schema}, where "name?" may be missing and "*" stands for every other
              name; a list [schema] of any number of them; a tuple of schemas, one of which must
              fit; float (a finite number), int, str, bool, None; object for anything; or a
              function that is True for what fits
    place     where the value stands in the file
    Raises    ValueError, which names the file, the place and what was expected there
    """

    def refuse(expected):
        found = repr(value)
        found = found if len(found) < 60 else f"{found[:57]}…"
        where = f"{place} is" if place else "holds"
        raise ValueError(
            f"{path} is damaged or not of this program: {where} {found}, expected {expected}"
        )

    if schema is object:
        return
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            refuse("names with values")
        known = {name.rstrip("?"): inner for name, inner in schema.items()}
        lacking = [name for name in schema if name not in value and not name.endswith(("?", "*"))]
        if lacking:
            refuse(f"also {', '.join(lacking)}")
        for name, inner in value.items():
            if name not in known and "*" not in known:
                refuse(f"no {name}")
            check(path, inner, known.get(name, known.get("*")), f"{place}.{name}".lstrip("."))
    elif isinstance(schema, list):
        if not isinstance(value, list):
            refuse("a list")
        for number, each in enumerate(value):
            check(path, each, schema[0], f"{place}[{number}]")
    elif isinstance(schema, tuple):
        for each in schema:
            with contextlib.suppress(ValueError):
                return check(path, value, each, place)
        refuse(" or ".join(map(_name_of, schema)))
    elif not _fits(value, schema):
        refuse(_name_of(schema))
    return None


def _fits(value, schema):
    if schema is None:
        return value is None
    if schema in (float, int):
        kinds = int if schema is int else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        # JSON has whole numbers of any length; no float and no array takes them all.
        return number and abs(value) < LARGEST[type(value)]
    return isinstance(value, schema) if isinstance(schema, type) else bool(schema(value))


def _name_of(schema):
    """What a schema expects, in words."""
    if isinstance(schema, dict):
        return "names with values"
    if isinstance(schema, list):
        return "a list"
    if schema is None:
        return "null"
    words = {float: "a finite number", int: "a whole number", str: "text", bool: "true or false"}
    told = schema.__doc__ or schema.__name__
    return words.get(schema) or told.partition("\n")[0]  # the rest is for programmers
