"""ImageNet and folders like it: photographs are read and prepared as a network expects them.

    pictures = imagenet.load("val", synsets="synsets.txt")
    plan = np.array_split(np.arange(len(pictures)), 16)         # which pictures, batch by batch
    for batch in imagenet.batches(pictures, plan, "keras", 224):
        batch.images                                            # (n, 224, 224, 3) float32

To get a published accuracy again, three things must be right. Each has one place here:

- The order of the classes. Networks number the classes by WordNet id (n01440764 is class 0). The
  validation set's own ground truth uses another order. TF-slim's networks have one more class, the
  background, in front of all others.
- How a photograph is cut and scaled: a *preset*, named after the program that uses it. Programs
  differ in details that cost tenths of a point, so each preset defines even how it rounds.
- Files that are not what they seem. ImageNet itself holds grey and CMYK pictures and a PNG that is
  called .JPEG; a copy of it may hold broken files. All are named and counted; none stops the work.

Threads decode the next pictures while the caller computes. The number of threads changes neither
the pictures nor their order.
"""

import csv
import functools
import importlib.util
import io
import math
import os
import re
import tarfile
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.data import cores

__all__ = [
    "PRESETS",
    "Batch",
    "Notes",
    "Pictures",
    "Preparation",
    "batches",
    "decode",
    "load",
    "match_outputs",
    "preparation",
]

LARGEST_FILE = 1 << 28  # bytes of a file, at most; ImageNet's largest file has 15 million
LARGEST_PICTURE = 1 << 26  # pixels, at most, also after resizing: 200 MB. ImageNet: 61 million

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
# The content decides the format, not the suffix. Some Pillows lack the last three.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
DEEPEST = 32  # folders within folders, at most


# --- which pictures there are ---------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be read one by one, and the class of each.

    where    the folder or tar that they come from
    names    of the files, in order
    labels   (N,) int64, the class of each
    classes  the names of all classes, in order: WordNet ids
    ignored  names of files whose suffix is not that of a picture, and of folders and links that
             cannot be opened
    read     read(index) returns a file's bytes; safe to call from several threads
    """

    where: str
    names: list
    labels: np.ndarray
    classes: list
    ignored: list
    read: object

    def __len__(self):
        return len(self.names)


def load(
    images: str | Path, synsets: str | Path | None = None, labels: str | Path | None = None
) -> Pictures:
    """List the pictures of a folder of class folders, or of a tar.

    images   a folder that holds one folder for each class (val/n01440764/….JPEG), with or without
             more folders inside; or a tar with such folders in it; or, with `labels`, pictures
             without class folders
    synsets  a file whose line n (from 0) is, or begins with, the name of class n. Without it the
             names must be WordNet ids, and their sorted order is the order of the classes
    labels   for pictures without class folders. Either a file of lines "picture class" (val.txt,
             or CSV with or without a head line); the class is a name, or a number n that means
             line n of `synsets`. Or a file whose line n is the class of the n-th picture by name:
             a WordNet id, or the number in ILSVRC2012_validation_ground_truth.txt. These numbers
             have an order of their own. The file meta.mat of the same development kit explains
             it, and must lie beside the file
    Returns  Pictures, sorted by class and name; with `labels`, by name
    Raises   FileNotFoundError; ValueError when the order of the classes is not known
    """
    path = Path(images).expanduser()
    if path.is_dir():
        names, ignored, read = _scan_folder(path)
    elif path.is_file():
        names, ignored, read = _scan_tar(path)
    else:
        raise FileNotFoundError(f"imagenet: {path} is neither a folder nor a tar file")
    if not names:
        raise ValueError(
            f"imagenet: {path} holds no picture ({', '.join(_SUFFIXES)}) in a class folder: "
            "name the folder that holds one folder for each class"
        )
    listed = None if synsets is None else _lines(Path(synsets).expanduser())
    if labels is None:
        keys = [_class_of(name, path.is_dir(), listed or ()) for name in names]
        if "" in keys:
            raise ValueError(
                f"imagenet: {names[keys.index('')]} in {path} lies in no class folder: name the "
                "ground-truth file that says its class (--labels), or sort the pictures into one "
                "folder for each class"
            )
    else:
        keys = _read_labels(Path(labels).expanduser(), names, path, listed)
    classes = _class_order(keys, synsets, listed, path)
    number = {name: index for index, name in enumerate(classes)}
    found = np.array([number[key] for key in keys], np.int64)
    order = range(len(names)) if labels is not None else np.argsort(found, kind="stable")
    return Pictures(
        where=str(path),
        names=[names[index] for index in order],
        labels=found[list(order)],
        classes=classes,
        ignored=ignored,
        read=lambda index, names=[names[index] for index in order]: read(names[index]),
    )


def match_outputs(classes: int, outputs: int, background: bool | None = None) -> tuple[int, str]:
    """Find out which output of a network belongs to which class.

    classes     how many classes the pictures have
    outputs     how many outputs the network has
    background  whether output 0 is a background class, for which there are no pictures. None: yes
                only for the 1,001 outputs of TF-slim's ImageNet networks. In other cases one
                output too many may also mean that a class folder is missing
    Returns     offset, sentence: class c is output c + offset; the sentence says this in words
    Raises      ValueError when the numbers do not fit
    """
    if background is None:
        background = (classes, outputs) == (1000, 1001)
    if outputs == classes + background:
        words = f"{outputs} outputs for {classes} classes: "
        if background:
            return 1, words + "output 0 is the background and left out, class n is output n + 1"
        return 0, words + "class n is output n"
    more = (
        ". If output 0 is a background class, say so with --background"
        if outputs == classes + 1
        else ""
    )
    raise ValueError(
        f"imagenet: the pictures have {classes} classes, the network has {outputs} outputs: name "
        "the order of all its classes with a synsets file (--synsets), whose line n (from 0) "
        f"begins with the name of class n{more}"
    )


def _scan_folder(folder):
    """The sorted pictures of a folder and of all folders in it, and a function to read one."""
    names, ignored = [], []

    def scan(prefix, above):
        """Look through one folder. `above`: the real paths of all folders above it."""
        place = os.path.join(folder, prefix)
        real = os.path.realpath(place)
        try:
            if real in above or len(above) == DEEPEST:
                raise OSError("a link to a folder above it, or too deep")
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not above:
                raise
            ignored.append(prefix)
            return
        for entry in found:
            name = prefix + entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            if is_folder:
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    scan(name + "/", (*above, real))
            elif _is_picture(name):  # a link to nothing is noticed when it is read
                names.append(name)
            elif above or not entry.name.startswith("."):
                ignored.append(name)

    scan("", ())

    def read(name):
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_file_size(size)
            return file.read(LARGEST_FILE)

    return names, ignored, read


def _class_of(name, in_folder, listed):
    """The class folder in a picture's name, "" for none.

    in_folder   True: the pictures lie in a folder, and the first part of the name is the class.
                False: in a tar the class is the first part that is a WordNet id or one of
                `listed`; if there is none, the last part
    """
    parts = [unicodedata.normalize("NFC", part) for part in name.split("/")[:-1]]
    if in_folder or not parts:
        return parts[0] if parts else ""
    known = {part for part in parts if part in listed or _is_wordnet_id(part)}
    return next((part for part in parts if part in known), parts[-1])


def _scan_tar(path):
    """The sorted pictures in a tar, and a function to read one; nothing is unpacked to disk."""
    places, ignored = {}, []
    try:
        # "r:" refuses compression: a compressed tar can only be read from its start.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                usable = member.isreg() and not member.issparse()
                if usable and _is_picture(member.name) and "__MACOSX" not in member.name:
                    places[member.name.removeprefix("./")] = member.offset_data, member.size
                elif not member.isdir():
                    ignored.append(member.name)
                archive.members = []  # else the archive would keep all of them
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"imagenet: {path} cannot be read as a tar ({error}): name a folder of class folders, "
            "or an uncompressed .tar (gunzip a .tar.gz first)"
        ) from error

    def read(name):
        start, size = places[name]
        _check_file_size(size)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)

    return sorted(places), sorted(ignored), read


def _is_picture(name):
    return name.lower().endswith(_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _class_order(keys, synsets, listed, where):
    """The names of all classes in order: from the file, or WordNet ids sorted."""
    names = sorted(set(keys))
    if listed is None:
        odd = [name for name in names if not _is_wordnet_id(name)]
        if odd:
            raise ValueError(
                f"imagenet: the class {odd[0]!r} in {where} is not a WordNet id (n and eight "
                "digits), so its number is not known: name the order of the classes with a synsets "
                "file (--synsets), whose line n (from 0) begins with the name of class n"
            )
        return names
    for separator in ("\n", "\t", ",", None):  # the name is the whole line, or its first part
        classes = [line.split(separator)[0].strip() for line in listed]
        if len(set(classes)) == len(classes) and set(names) <= set(classes):
            return classes
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise ValueError(f"imagenet: {synsets} names the class {twice[0]!r} more than once")
    missing = sorted(set(names) - set(classes))
    raise ValueError(
        f"imagenet: {where} has the class {missing[0]!r} (and {len(missing) - 1} more) that is "
        f"not among the {len(classes)} of {synsets}"
    )


def _read_labels(path, names, where, listed):
    """The class name of each picture, from a ground-truth file."""
    lines = _lines(path)
    separator = next((mark for mark in ",\t;" if mark in lines[0]), None)
    rows = list(csv.reader(lines, delimiter=separator)) if separator else [x.split() for x in lines]
    if all(len(row) > 1 for row in rows):
        return _labels_by_name(path, rows, names, where, listed)
    words = [line.split()[0] for line in lines]
    if len(words) != len(names):
        raise ValueError(
            f"imagenet: {path} has {len(words)} labels, but {where} has {len(names)} pictures"
        )
    if not all(word.isdecimal() for word in words):
        return words
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise ValueError(
            f"imagenet: {path} holds numbers. The file meta.mat of the ILSVRC2012 development kit "
            f"says which classes they mean: put it there as {meta}, or name a file of WordNet ids"
        )
    from scipy.io import loadmat

    try:
        table = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
        wordnet = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ValueError(f"imagenet: {meta} is not the development kit's ({error})") from error
    unknown = [word for word in words if int(word) not in wordnet]
    if unknown:
        raise ValueError(f"imagenet: {path} has the class {unknown[0]}, which {meta} lacks")
    return [wordnet[int(word)] for word in words]


def _labels_by_name(path, rows, names, where, listed):
    """The class name of each picture, from rows (picture, class, …)."""

    def plain(name):
        """Without its suffix; a letter and its accent are one character."""
        name = unicodedata.normalize("NFC", name.strip().replace("\\", "/")).removeprefix("./")
        start, dot, suffix = name.rpartition(".")
        return start if (dot + suffix).lower() in _SUFFIXES else name

    def stem(name):
        return plain(name).rpartition("/")[2]

    by_path, by_stem = {}, {}  # {name: classes}; files may leave the folders out
    for picture, word, *_ in rows:
        # A class may have more words behind it: "n03995372 85 1 499 272".
        word = (word.split() or [""])[0]
        by_path.setdefault(plain(picture), set()).add(word)
        by_stem.setdefault(stem(picture), set()).add(word)
    sharing = Counter(map(stem, names))
    known, missing = {}, []
    for name in names:
        alone = by_stem.get(stem(name), ()) if sharing[stem(name)] == 1 else ()
        found = by_path.get(plain(name)) or alone
        if len(found) > 1 or (not found and stem(name) in by_stem):
            raise ValueError(
                f"imagenet: {path} does not say which class {name} in {where} has: several "
                f"pictures, or lines, are called {stem(name)!r}. Write each with its folder"
            )
        if found:
            known[name] = next(iter(found))
        else:
            missing.append(name)
    if missing:
        raise ValueError(
            f"imagenet: {path} does not say the class of {missing[0]} in {where} (and of "
            f"{len(missing) - 1} more)"
        )
    words = [known[name] for name in names]
    if not all(word.isdecimal() for word in words):
        return words
    if listed is None:
        raise ValueError(
            f"imagenet: {path} holds numbers of classes: name the order of the classes with a "
            "synsets file (--synsets), whose line n (from 0) begins with the name of class n"
        )
    most = max(map(int, words))
    if most >= len(listed):
        raise ValueError(f"imagenet: {path} has the class {most}, --synsets only {len(listed)}")
    return [listed[int(word)].split()[0] for word in words]


def _lines(path):
    """The lines of a text file. Only lines at its end may be empty.

    The file is UTF-8, or UTF-16 with a byte-order mark, as Windows writes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"imagenet: there is no file {path}")
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    lines = unicodedata.normalize("NFC", text).rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"imagenet: line {number} of {path} is empty")
    if not lines:
        raise ValueError(f"imagenet: {path} is empty")
    return lines


def _is_wordnet_id(name):
    return re.fullmatch(r"n\d{8}", name, re.ASCII) is not None


# --- from bytes to a picture ----------------------------------------------------------------

SKIPPED = ("empty", "unreadable", "corrupt", "too large")  # such pictures are left out
CONVERTED = ("grey", "CMYK", "animated", "other colours")  # such pictures are used


class Notes:
    """A list of unusual files: those that were left out, and those that were converted.

    A file that is read several times is noted only once for each kind.
    """

    def __init__(self):
        self._found = {}

    def add(self, name: str, kind: str, text: str) -> None:
        """Note an unusual file.

        name   of the file
        kind   one in SKIPPED or CONVERTED
        text   what to say about it
        """
        self._found.setdefault((name, kind), text)

    def rows(self) -> list[tuple[str, str, str]]:
        """Everything noted, as (name, kind, text): what `add` takes."""
        return [(name, kind, text) for (name, kind), text in self._found.items()]

    @property
    def counts(self) -> dict[str, int]:
        """How many files of each kind, for the kinds that occur."""
        found = Counter(kind for _, kind in self._found)
        return {kind: found[kind] for kind in SKIPPED + CONVERTED if found[kind]}

    @property
    def skipped(self) -> int:
        """How many files were left out."""
        return sum(self.counts.get(kind, 0) for kind in SKIPPED)

    def lines(self) -> list[str]:
        """One line per file: its name, its kind and the reason. Those left out come first."""
        items = sorted(self._found.items(), key=lambda item: item[0][1] in CONVERTED)
        return [f"{name}: {kind} ({text})" for (name, kind), text in items]

    def __str__(self):
        """Two counts in words: left out, and converted."""
        parts = []
        for what, kinds in (("left out", SKIPPED), ("converted", CONVERTED)):
            found = {kind: self.counts[kind] for kind in kinds if kind in self.counts}
            each = ", ".join(f"{count} {kind}" for kind, count in found.items())
            parts.append(f"{sum(found.values())} {what}" + (f" ({each})" if each else ""))
        return ", ".join(parts)


class _Refused(Exception):
    """A picture that is left out; the arguments are its kind and the reason."""


def decode(content: bytes) -> tuple[Any, list[tuple[str, str]]]:
    """Turn a file's bytes into an RGB picture.

    The first of several frames is used, and transparency is dropped. A rotation that is noted in
    the file (EXIF) is ignored, as for all published accuracies. JPEG is decoded at full size:
    decoding to a half or a quarter is faster, but gives other pixels.

    content  bytes of a file in one of _FORMATS
    Returns  a PIL image of mode RGB, and a list of (kind, text): what was converted
    Raises   an exception with a kind and a text, when the picture cannot be used
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise _Refused("empty", "0 bytes")
    try:
        picture = Image.open(io.BytesIO(content), formats=_formats())
        _check_pixels(*picture.size)
        remarks = []
        if getattr(picture, "is_animated", False):
            remarks.append(("animated", "several frames, the first is used"))
        picture.load()
        return _to_rgb(picture, remarks), remarks
    except (_Refused, MemoryError):
        raise
    except UnidentifiedImageError:
        start = content[:8].hex(" ")
        raise _Refused("corrupt", f"no {', '.join(_FORMATS)}: starts with {start}") from None
    except Image.DecompressionBombError as error:
        raise _Refused("too large", str(error)) from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise _Refused("corrupt", f"{type(error).__name__}: {error}") from None


@functools.cache
def _formats():
    """The formats that are read here and that this Pillow can decode."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(picture, remarks):
    mode = picture.mode
    if mode == "RGB":
        return picture
    if mode.startswith("I;16"):
        # Pillow would cut 16-bit grey at 255 instead of scaling it.
        from PIL import Image

        remarks.append(("grey", "16 bits, the upper 8 are used"))
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("1", "L", "LA"):
        remarks.append(("grey", f"mode {mode}"))
    elif mode == "CMYK":
        remarks.append(("CMYK", "mode CMYK"))
    elif mode in ("P", "PA", "RGBA", "RGBX", "YCbCr", "LAB", "HSV"):
        remarks.append(("other colours", f"mode {mode}"))
    else:
        raise _Refused("corrupt", f"mode {mode} is no colour picture")
    # In a palette, transparency belongs to the entries: make it a channel, then drop that.
    return (picture.convert("RGBA") if mode == "P" else picture).convert("RGB")


def _check_file_size(size):
    if size > LARGEST_FILE:
        raise _Refused("too large", f"{size:,} bytes, {LARGEST_FILE:,} are allowed")


def _check_pixels(width, height, why=""):
    if width * height > LARGEST_PICTURE:
        raise _Refused(
            "too large", f"{width} × {height} pixels{why}, {LARGEST_PICTURE:,} are allowed in all"
        )


# --- from a picture to what a network expects -----------------------------------------------


@dataclass(frozen=True)
class Preparation:
    """How a photograph becomes what a network expects: how it is cut, and how it is scaled.

    First the picture is cut. "short side": the short side becomes `resize` pixels, or
    round(size / crop) if that is None; then the middle size × size is cut out. "square": the
    middle share `crop` of both sides is cut out; then it is resized to size × size, whatever its
    shape.

    Then the numbers are scaled: y = (x / divisor − mean) / std for each channel, x from 0 to 255.

    cut            "short side" or "square"
    rounding       for "short side" only. "pillow": the long side becomes int(…), the cut begins at
                   round(…). "floor": the long side becomes round(…), the cut begins at ⌊…⌋. The
                   two differ by a pixel, which changes a few predictions in a hundred
    crop           share of the picture that is seen, in (0, 1]
    resize         pixels of the short side; None: by `crop`
    interpolation  "nearest", "bilinear", "bicubic" or "lanczos" of Pillow, which averages when it
                   makes a picture smaller. With "square" also "legacy", as in TensorFlow 1: only
                   the neighbouring pixels count, measured from their corners, without averaging
    divisor        255 gives numbers from 0 to 1; 1 leaves 0 to 255
    mean, std      of the channels, in the order in which the network takes them
    channels       "rgb" or "bgr"
    """

    cut: str = "short side"
    rounding: str = "floor"
    crop: float = 0.875
    resize: int | None = None
    interpolation: str = "bilinear"
    divisor: float = 255.0
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    channels: str = "rgb"

    def __post_init__(self):
        for name, known in (
            ("interpolation", INTERPOLATIONS),
            ("channels", ("rgb", "bgr")),
            ("cut", ("short side", "square")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {', '.join(known)}")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} is {numbers}, expected one number for each of 3 channels")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}, expected a share above 0 and up to 1")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize is {self.resize}, expected pixels")
        if 0 in self.std or not 0 < self.divisor < math.inf:
            raise ValueError(f"std {self.std} and scale 1/{self.divisor} may not be 0")

    @property
    def keeps_bytes(self) -> bool:
        """Whether the numbers stay what they are in the picture, from 0 to 255."""
        return self.divisor == 1 and not any(self.mean) and set(self.std) == {1}

    def __call__(self, picture, size):
        """Prepare one picture.

        picture  a PIL image of mode RGB
        size     of the network's input, pixels
        Returns  (size, size, 3) float32
        """
        cut = self._square if self.cut == "square" else self._middle
        return self.scaled(cut(picture, size))

    def scaled(self, pixels: np.ndarray) -> np.ndarray:
        """The numbers of pictures that are cut already.

        pixels   (…, size, size, 3), red, green and blue from 0 to 255; left as they are
        Returns  the same shape, float32
        """
        pixels = pixels.astype(np.float32)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1].copy()
        if self.divisor != 1:
            pixels /= np.float32(self.divisor)
        if any(self.mean):
            pixels -= np.array(self.mean, np.float32)
        if self.std != (1, 1, 1):
            pixels /= np.array(self.std, np.float32)
        return pixels

    def _middle(self, picture, size):
        """Scale the short side, then cut out the middle: (size, size, 3) uint8."""
        short = self.resize or round(size / self.crop)
        if short < size:
            raise ValueError(f"the short side becomes {short} pixels, the network takes {size}")
        exact = self.rounding == "pillow"
        whole_side, whole_offset = (int, round) if exact else (round, math.floor)
        width, height = picture.size
        if width <= height:
            width, height = short, whole_side(short * height / width)
        else:
            width, height = whole_side(short * width / height), short
        # A picture of 1 × 60000 pixels is small. With a short side of 256 it becomes huge.
        _check_pixels(width, height, " once resized")
        picture = picture.resize((width, height), _resampling(self.interpolation))
        left, top = whole_offset((width - size) / 2), whole_offset((height - size) / 2)
        return np.asarray(picture.crop((left, top, left + size, top + size)))

    def _square(self, picture, size):
        """Cut out the middle, then squeeze it into a square: (size, size, 3)."""
        if self.interpolation != "legacy":
            width, height = picture.size
            left, top = (int((n - n * self.crop) / 2) for n in (width, height))
            box = left, top, width - left, height - top
            return np.asarray(picture.resize((size, size), _resampling(self.interpolation), box))
        pixels = np.asarray(picture)
        rows, columns = (_legacy_places(length, size, self.crop) for length in pixels.shape[:2])
        upper, lower, down = rows
        left, right, across = columns
        across = across[:, None]

        def along_rows(chosen):
            """The chosen rows, interpolated along themselves."""
            a = pixels[chosen[:, None], left].astype(np.float32)
            b = pixels[chosen[:, None], right].astype(np.float32)
            return a + (b - a) * across

        top = along_rows(upper)
        return top + (along_rows(lower) - top) * down[:, None, None]


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "legacy")


def _resampling(name):
    from PIL import Image

    # "legacy" is defined for "square" only; elsewhere it means bilinear.
    return Image.Resampling["BILINEAR" if name == "legacy" else name.upper()]


def _legacy_places(length, size, crop):
    """Where `size` pixels are read from the middle of `length`.

    Returns   the pixel before each place, the one after it, and the share of the latter
    """
    start = int((length - length * crop) / 2)
    cut = length - 2 * start
    place = np.arange(size, dtype=np.float32) * np.float32(cut / size)
    below = np.minimum(place.astype(np.int64), cut - 1)
    above = np.minimum(below + 1, cut - 1)
    return start + below, start + above, place - below.astype(np.float32)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# For the networks of torchvision, as they were evaluated: short side round(size/0.875) (224 → 256,
# 299 → 342). Source: the evaluation transforms in the documentation of torchvision's weights.
torchvision = Preparation(rounding="pillow", mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Numbers in [−1, 1], for Keras' MobileNet V1 and V2, Inception, Xception, NASNet. Keras defines
# the numbers only; it is usual to cut out the central 87.5 %.
keras = Preparation(divisor=127.5, mean=(1.0, 1.0, 1.0))
# For TF-slim's Inception and MobileNet, as they were evaluated: cut first, then resize to a square.
# Source: TF-slim's Inception preprocessing; TensorFlow 1's central_crop, and resize_bilinear
# without align_corners.
tf_slim = Preparation("square", interpolation="legacy", divisor=127.5, mean=(1.0, 1.0, 1.0))

PRESETS = {
    "torchvision": torchvision,
    "keras": keras,
    "tf-slim": tf_slim,
    # 0 … 255, for networks that scale images themselves: Keras' EfficientNet, MobileNetV3,
    # ConvNeXt, RegNet.
    "keras-raw": Preparation(divisor=1.0),
    # Blue, green, red, minus the mean of each: Keras' VGG and ResNet, and networks from Caffe.
    "keras-caffe": Preparation(divisor=1.0, mean=(103.939, 116.779, 123.68), channels="bgr"),
    # torchvision's numbers with Keras' way of cutting: Keras' DenseNet.
    "keras-torch": Preparation(mean=IMAGENET_MEAN, std=IMAGENET_STD),
}


def preparation(preset: "str | Preparation") -> Preparation:
    """A Preparation by its name in PRESETS; one that is given is given back.

    preset   a name, or a Preparation
    Raises   ValueError for an unknown name
    """
    if isinstance(preset, Preparation):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


# --- batches --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Pictures ready for a network.

    images   (n, size, size, 3) float32
    labels   (n,) int64, classes in the order of Pictures.classes
    indices  (n,) int64, which of the pictures these are
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def batches(
    pictures: Pictures,
    plan: Iterable[np.ndarray],
    preset: "str | Preparation",
    size: int,
    notes: Notes | None = None,
    threads: int | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Decode and prepare pictures, batch by batch, while the caller computes.

    Memory is bounded: besides the caller's batch, at most ahead + 1 batches are kept. Pillow's
    warnings about odd files are switched off for the whole process, since Python has no filter
    for one thread; `notes` says what is wrong with a file.

    pictures  Pictures
    plan      iterable of integer arrays, the indices of the pictures of each batch
    preset    a name in PRESETS, or a Preparation
    size      of the network's input, pixels
    notes     Notes; unusual files are added to it
    threads   how many decode; None: one for each core of this process
    ahead     how many batches are prepared while the caller has one
    Yields    Batch, in the order of the plan. Pictures that cannot be used are missing in it, so
              it may be empty
    Raises    ValueError for an unknown preset; ImportError without Pillow
    """
    if importlib.util.find_spec("PIL") is None:
        raise ImportError("photographs are decoded with Pillow: pip install 'minires[onnx]'")
    prepare = preparation(preset)
    notes = Notes() if notes is None else notes
    return _batches(pictures, iter(plan), prepare, size, notes, threads, ahead)


def _batches(pictures, plan, prepare, size, notes, threads, ahead):
    warnings.filterwarnings("ignore", module=r"PIL\.")

    def work(index, place):
        """Write a picture into its place; return its remarks, and whether it can be used."""
        try:
            picture, remarks = decode(pictures.read(index))
            place[...] = prepare(picture, size)
        except _Refused as error:
            return [error.args], False
        except OSError as error:
            return [("unreadable", f"{type(error).__name__}: {error}")], False
        return remarks, True

    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="pictures")
    waiting = deque()

    def start_one():
        indices = next(plan, None)
        if indices is not None:
            indices = np.asarray(indices, np.int64)
            images = np.empty((len(indices), size, size, 3), np.float32)
            jobs = [
                pool.submit(work, int(index), place)
                for index, place in zip(indices, images, strict=True)
            ]
            waiting.append((indices, images, jobs))

    try:
        for _ in range(ahead):
            start_one()
        while waiting:
            start_one()
            indices, images, jobs = waiting.popleft()
            usable = np.ones(len(indices), bool)
            for position, (index, job) in enumerate(zip(indices, jobs, strict=True)):
                remarks, usable[position] = job.result()
                for kind, text in remarks:
                    notes.add(pictures.names[index], kind, text)
            if not usable.all():
                images, indices = images[usable], indices[usable]
            yield Batch(images, pictures.labels[indices], indices)
            del images, jobs  # else this batch stays in memory while the next one is made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
