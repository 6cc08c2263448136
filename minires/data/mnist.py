"""MNIST: 70,000 handwritten digits, read from disk or downloaded once and checked.

The four files are in IDX format, a header and then plain bytes, usually packed with gzip:

    offset  bytes  meaning
    0       2      zero
    2       1      type of the numbers; 8 is the unsigned byte
    3       1      how many dimensions, D
    4       4 · D  the length of each dimension, most significant byte first
    4+4·D          the numbers, last dimension fastest

They are looked for in this order:

1. in the folder that the caller names, or in the folder mnist/ in it; a missing file is an error;
2. in the folder that the environment variable MINIRES_DATA names, if it holds any of the files;
3. in the cache folder (see minires.data.cache_folder);
4. on the internet: from the mirrors below, one after the other, into the cache.

A downloaded file must have the SHA-256 of the original. Files that are found on disk are used as
they are. So any data set in the format of MNIST works (Fashion-MNIST, Kuzushiji-MNIST …); its name
tells whether the files are the originals.
"""

import gzip
import hashlib
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minires.data import Dataset, cache_folder

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

# File name → SHA-256 of its unpacked content.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

# At most so many bytes of a file are unpacked, whatever its header says (1.3 million images).
LARGEST = 1 << 30


def load(
    data_dir: str | Path | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Return MNIST, or a data set in its format from the named folder.

    data_dir  folder of the four files, or the folder that holds them as mnist/; None: see the
              top of this file
    train     how many of the training images, from the first on; None: all
    test      how many of the test images, from the first on; None: all
    progress  show a bar while downloading
    Returns   Dataset; its name is "MNIST" only if all four files are the originals
    Raises    FileNotFoundError when data_dir lacks a file; ValueError when a file is damaged or a
              count is too large; ConnectionError when no mirror delivers
    """
    paths = find(data_dir)
    if paths is None:
        paths = download(cache_folder() / "mnist", MIRRORS, progress)
    contents = [_read(path, name) for path, name in zip(paths, FILES, strict=True)]
    train_images, train_labels, test_images, test_labels = (array for array, _ in contents)
    original = [digest for _, digest in contents] == list(FILES.values())
    return Dataset(
        *_first(train, train_images, train_labels, "training", paths[:2]),
        *_first(test, test_images, test_labels, "test", paths[2:]),
        "MNIST" if original else f"{paths[0].parent.resolve().name} (not the original MNIST)",
    )


def find(data_dir: str | Path | None = None) -> list[Path] | None:
    """Look for the four files on disk; nothing is downloaded.

    data_dir  as in load
    Returns   list of four paths in the order of FILES, or None when no folder has the files
    Raises    FileNotFoundError when data_dir (or the folder named by MINIRES_DATA) does not
              exist, when data_dir lacks a file, or when a folder holds some of the four files only
    """
    if data_dir is not None:
        return _find_in(Path(data_dir).expanduser(), "data_dir", required=True)
    named = os.environ.get("MINIRES_DATA")
    if named:
        paths = _find_in(Path(named).expanduser(), "the environment variable MINIRES_DATA")
        if paths:
            return paths
    # A download may have been stopped: a cache with some of the files is completed later.
    cached = [_variant(cache_folder() / "mnist", name) for name in FILES]
    return cached if all(cached) else None


def _find_in(folder, origin, required=False):
    if not folder.is_dir():
        raise FileNotFoundError(
            f"mnist: {folder} (named by {origin}) is not a folder: name the one with the files"
        )
    inside = sorted(place for place in folder.iterdir() if place.is_dir())
    full = [place for place in inside if all(_variant(place, name) for name in FILES)]
    # The files may lie one folder deeper, if only one inner folder has all of them.
    for place in (folder, full[0] if len(full) == 1 else folder / "mnist"):
        paths = {name: _variant(place, name) for name in FILES}
        missing = [name for name, path in paths.items() if path is None]
        if not missing:
            return list(paths.values())
        if len(missing) < len(FILES):
            raise FileNotFoundError(
                f"mnist: {place} (named by {origin}) lacks {', '.join(missing)}; "
                f"put the file there, plain or as .gz, from {MIRRORS[0]}{missing[0]}.gz"
            )
    if required:
        raise FileNotFoundError(
            f"mnist: neither {folder} (named by {origin}) nor {folder / 'mnist'} holds "
            f"{', '.join(FILES)} (plain or as .gz); name the folder that does, or name none to "
            "download them"
        )
    return None


def _variant(folder, name):
    """Return the file of that name, packed or not; some archives write a dot, not a hyphen."""
    for variant in (f"{name}.gz", name, name.replace("-idx", ".idx")):
        if (folder / variant).is_file():
            return folder / variant
    return None


def download(
    folder: str | Path, mirrors: Iterable[str] = MIRRORS, progress: bool = True
) -> list[Path]:
    """Download those of the four files that a folder lacks, and check them.

    A file appears in the folder only when it is complete and has the right SHA-256.

    folder    where the files go; it is made if it does not exist
    mirrors   addresses, each with a slash at the end. If one does not deliver a file, the next is
              tried; a mirror that failed is tried last for the other files
    progress  show a bar for each file
    Returns   list of four paths in the order of FILES
    Raises    ConnectionError when no mirror delivers a file: it lists each failure and the
              remedy; OSError when the folder cannot be written
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mirrors = list(mirrors)
    return [
        _variant(folder, name) or _download_file(folder, name, mirrors, progress) for name in FILES
    ]


def _download_file(folder, name, mirrors, progress):
    """Download one file from the first mirror that delivers it, and return its path."""
    import pooch
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    file = f"{name}.gz"
    fetch = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16, timeout=20)
    failures = []
    # This folder is deleted at the end, with all files in it. A complete file is moved out, in one
    # step that cannot be done by half.
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        arrived = Path(temporary, file)
        for mirror in list(mirrors):
            try:
                fetch(mirror + file, str(arrived), None)
                _, digest = _read(arrived, name)
                if digest != FILES[name]:
                    raise ValueError(f"the content has SHA-256 {digest}, not {FILES[name]}")
            except (RequestException, HTTPError, ValueError) as error:
                failures.append(f"  {mirror}{file}: {error}")
                mirrors.remove(mirror)
                mirrors.append(mirror)
            else:
                os.replace(arrived, folder / file)
                return folder / file
    raise ConnectionError(
        f"mnist: no mirror delivered {file}:\n"
        + "\n".join(failures)
        + "\nTry again with a working connection; or put the four files "
        + f"({', '.join(FILES)}, plain or as .gz) into a folder and name it: "
        + "data_dir=FOLDER, --data-dir FOLDER, or MINIRES_DATA=FOLDER in the environment"
    )


def read_images(path: Path) -> np.ndarray:
    """Read an IDX file of images, packed with gzip or not.

    path     file
    Returns  (N, 28, 28, 1) uint8
    Raises   ValueError when the file is damaged or something else; OSError when it cannot be read
    """
    return _read(path, "images")[0]


def read_labels(path: Path) -> np.ndarray:
    """Read an IDX file of labels, packed with gzip or not.

    path     file
    Returns  (N,) int64, 0 … 9
    Raises   ValueError when the file is damaged or something else; OSError when it cannot be read
    """
    return _read(path, "labels")[0]


def _read(path, name):
    """Read images or labels (as the name says); return them and the content's SHA-256."""
    if "images" in name:
        array, digest = _read_idx(path, 3)
        if array.shape[1:] != (28, 28):
            raise ValueError(
                f"{path}: images are {array.shape[1]} × {array.shape[2]} pixels, not 28 × 28; "
                "put a file in the format of MNIST there"
            )
        return array[..., None], digest
    array, digest = _read_idx(path, 1)
    if array.max() > 9:
        where = np.argmax(array > 9)
        raise ValueError(
            f"{path}: label {where} is {array[where]}, not 0 to 9; put labels of ten classes there"
        )
    return array.astype(np.int64), digest


def _read_idx(path, dimensions):
    """Read an IDX file of bytes: uint8 array with that many dimensions, and the SHA-256."""

    def damaged(what):
        return ValueError(f"{path}: {what}; delete the file and put a fresh copy there")

    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            header = file.read(4 + 4 * dimensions)
            magic = bytes([0, 0, 8, dimensions])
            if header[:4] != magic:
                raise damaged(
                    f"starts with the bytes {header[:4].hex(' ')}, but an IDX file of bytes with "
                    f"{dimensions} dimension(s) starts with {magic.hex(' ')}"
                )
            if len(header) < 4 + 4 * dimensions:
                raise damaged(f"ends within its header, after {len(header)} bytes")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            if not 0 < size <= LARGEST:
                raise damaged(
                    f"its header promises {' × '.join(map(str, shape))} = {size} bytes, "
                    f"and 1 to {LARGEST} are allowed"
                )
            # Ask for one byte more than the header says. Then gzip reaches the end of the file and
            # compares the checksum, and a file that is too long shows itself. A file that would
            # unpack to far more is never unpacked. It is read in pieces, so memory grows with
            # what is in the file, not with what the header says.
            content = bytearray()
            while part := file.read(min(1 << 20, size + 1 - len(content))):
                content += part
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise damaged(f"cannot be unpacked ({error})") from error
    if len(content) < size:
        raise damaged(f"holds {len(content)} bytes after its header, which promises {size}")
    if len(content) > size:
        raise damaged(f"holds more than the {size} bytes that its header promises")
    digest = hashlib.sha256(header)
    digest.update(content)
    return np.frombuffer(content, np.uint8).reshape(shape), digest.hexdigest()


def _first(count, images, labels, what, paths):
    """Return the first `count` images and labels; all of them for None."""
    if len(images) != len(labels):
        raise ValueError(
            f"{paths[0]} holds {len(images)} images but {paths[1]} {len(labels)} labels; "
            "put files there that belong to each other"
        )
    if count is None:
        return images, labels
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise ValueError(f"mnist: the number of {what} images must be whole, not {count!r}")
    if not 0 < count <= len(images):
        raise ValueError(
            f"mnist: asked for {count} {what} images, but {paths[0]} holds {len(images)}; "
            f"ask for 1 to {len(images)}"
        )
    return images[:count], labels[:count]
