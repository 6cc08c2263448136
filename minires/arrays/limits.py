"""Checks before long work that memory and disk are large enough for its results."""

import os
import shutil
import sys
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")  # where Linux keeps a container's limits (control groups, version 2)


def available_memory() -> int | None:
    """How many bytes this process can still get; None if the system does not tell it."""
    if sys.platform == "win32":
        return _available_on_windows()
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        most = (GROUP / "memory.max").read_text().strip()
        if most != "max":
            used = int((GROUP / "memory.current").read_text())
            kept = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
            found.append(int(most) - used + int(kept["inactive_file"]))  # files can be read again
    except (OSError, ValueError, IndexError, KeyError):
        pass
    if not found and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS tells only what is built in
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _available_on_windows():
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "page", "free_page", "virtual", "free_virtual", "more")
        ]

    status = Status(length=ctypes.sizeof(Status))
    known = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.free if known else None


def check_memory(fixed: int, each: int, count: int, option: str) -> None:
    """Refuse a number whose results exceed the memory; the error names one that fits.

    fixed    bytes that are needed in any case
    each     bytes for each of `count`
    count    how many are wanted
    option   the command's option for the number, such as "--members"
    Raises   MemoryError
    """
    free = available_memory()
    if free is not None and fixed + each * count > free:
        _refuse(MemoryError, "memory: it", fixed, each, count, option, free)


def check_disk(folder: Path, fixed: int, each: int, count: int, option: str) -> None:
    """Refuse a number whose results exceed the disk; the error names one that fits.

    folder   for the results; it need not exist yet
    fixed    bytes that are needed in any case
    each     bytes for each of `count`
    count    how many are wanted
    option   the command's option for the number, such as "--seeds"
    Raises   OSError
    """
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if fixed + each * count > free:
        _refuse(OSError, f"{folder}: the results", fixed, each, count, option, free)


def _refuse(kind, what, fixed, each, count, option, free):
    fits = (free - fixed) // each
    remedy = f"{option} {fits} would fit" if fits > 0 else f"not even {option} 1 would fit"
    raise kind(
        f"{option} {count}: {what} would take {(fixed + each * count) / 1e6:,.0f} MB, "
        f"{free / 1e6:,.0f} MB are free: {remedy}"
    )
