"""ImageNet and folders like it: photographs read, prepared as a network expects them, in order.

    pictures = imagenet.load("val", synsets="synsets.txt")
    plan = np.array_split(np.arange(len(pictures)), 16)         # which pictures, batch by batch
    for batch in imagenet.batches(pictures, plan, "keras", 224):
        batch.images                                            # (n, 224, 224, 3) float32

Three things decide whether a published accuracy comes out, and each has one place here:

- The order of the classes. Networks number them by WordNet id (n01440764 is class 0). The
  validation set's own ground truth counts in another order, and TF-slim's networks have one
  class more, the background, in front.
- How a photograph is cut and scaled: a *preset*, named after the programs that use it. They
  differ in ways that cost tenths of a point, so each states its rule to the last rounding.
- Files that are not what they seem. ImageNet itself holds grey and CMYK pictures and a PNG
  called .JPEG; a copy of it, broken files. Each is named and counted; none stops the run.

Pictures are decoded by threads ahead of the caller. What comes out, and in which order, does
not depend on their number.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
]

LARGEST_FILE = 1 << 28  # bytes; ImageNet's largest file has 15 million
LARGEST_PICTURE = 1 << 26  # pixels, also after resizing; 200 MB decoded. ImageNet: 61 million

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
# By content, whatever the suffix says. The last three only where Pillow was built with them.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
DEEPEST = 32  # folders within folders


# --- which pictures there are ---------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be read one by one, and the class of each.

    where    the folder or tar they come from
    names    of the files, in order
    labels   (N,) int64, the class of each
    classes  name of every class, in order: WordNet ids
    ignored  names of files that are no pictures, by their suffix; and of folders and links that
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


def load(images, synsets=None, labels=None):
    """List the pictures of a folder of class folders, or of a tar.

    images   a folder that holds one folder for each class (val/n01440764/….JPEG), which may hold
             folders of their own; a tar with such folders in it; or pictures in no class
             folders, with `labels`
    synsets  a file whose line n (from 0) is, or begins with, the name of class n. Without it the
             names must be WordNet ids, and their sorted order is the order of the classes
    labels   for pictures that lie in no class folders. Either a file of lines "picture class"
             (val.txt, or CSV with or without a head line); the class is a name, or a number n
             that stands for line n of `synsets`. Or a file whose line n is the class of the
             n-th picture by name, either a WordNet id, or the number in
             ILSVRC2012_validation_ground_truth.txt. Those last numbers are in an order of their
             own, which meta.mat of the same development kit explains: it must lie beside the file
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


def match_outputs(classes, outputs, background=None):
    """Tell how the outputs of a network belong to the classes.

    classes     how many classes the pictures know
    outputs     how many outputs the network has
    background  whether output 0 is a background class, of which there are no pictures. None: only
                for the 1,001 outputs of TF-slim's ImageNet networks. One output more than there
                are classes means nothing otherwise: one class folder may be missing
    Returns     offset, sentence: class c is output c + offset; the sentence says so in words
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
        f"imagenet: the pictures know {classes} classes, the network has {outputs} outputs: name "
        "the order of all its classes with a synsets file (--synsets), line n (from 0) beginning "
        f"with the name of class n{more}"
    )


def _scan_folder(folder):
    """The pictures of a folder and of all folders in it, sorted, and how to read one."""
    names, ignored = [], []

    def scan(prefix, above):
        """Look through one folder. `above`: the real paths of the folders that it lies in."""
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
            elif _is_picture(name):  # a link that leads nowhere shows when it is read
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

    in_folder   whether the picture lies in a folder: then the first part is the class. In a tar,
                it is the first part that is a WordNet id or one of `listed`, or the last part
    """
    parts = [unicodedata.normalize("NFC", part) for part in name.split("/")[:-1]]
    if in_folder or not parts:
        return parts[0] if parts else ""
    known = {part for part in parts if part in listed or _is_wordnet_id(part)}
    return next((part for part in parts if part in known), parts[-1])


def _scan_tar(path):
    """The pictures in a tar, sorted, and how to read one where it lies: nothing is unpacked."""
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
                archive.members = []  # or the archive would keep every one
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
    """The names of all classes in order, from the file or, for WordNet ids, by sorting."""
    names = sorted(set(keys))
    if listed is None:
        odd = [name for name in names if not _is_wordnet_id(name)]
        if odd:
            raise ValueError(
                f"imagenet: the class {odd[0]!r} in {where} is not a WordNet id (n and eight "
                "digits), so its number is not known: name the order of the classes with a "
                "synsets file (--synsets), line n (from 0) beginning with the name of class n"
            )
        return names
    for separator in ("\n", "\t", ",", None):  # the whole line may be a name, or a part of it
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
        raise ValueError(f"imagenet: {path} has {len(words)} labels, {where} {len(names)} pictures")
    if not all(word.isdecimal() for word in words):
        return words
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise ValueError(
            f"imagenet: {path} holds numbers, and which classes they mean stands in meta.mat of "
            f"the ILSVRC2012 development kit: put it beside, as {meta}, or name a file of "
            "WordNet ids"
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

    def stem(name):
        return os.path.splitext(name.replace("\\", "/").rpartition("/")[2])[0]

    # A class may have more words behind it: "n03995372 85 1 499 272".
    known = {stem(row[0].strip()): (row[1].split() or [""])[0] for row in rows}
    missing = [name for name in names if stem(name) not in known]
    if missing:
        raise ValueError(
            f"imagenet: {path} does not say the class of {missing[0]} in {where} (and of "
            f"{len(missing) - 1} more)"
        )
    words = [known[stem(name)] for name in names]
    if not all(word.isdecimal() for word in words):
        return words
    if listed is None:
        raise ValueError(
            f"imagenet: {path} holds numbers of classes: name the order of the classes with a "
            "synsets file (--synsets), line n (from 0) beginning with the name of class n"
        )
    most = max(map(int, words))
    if most >= len(listed):
        raise ValueError(f"imagenet: {path} has the class {most}, --synsets only {len(listed)}")
    return [listed[int(word)].split()[0] for word in words]


def _lines(path):
    """The lines of a text file, of which none but the last ones may be empty.

    It is UTF-8, or UTF-16 that begins with its mark, as Windows writes it.
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
    """Files with something to tell: which were left out, which had to be converted.

    Each file is noted once for each kind, however often it is read.
    """

    def __init__(self):
        self._found = {}

    def add(self, name, kind, text):
        """Note that the file `name` is of a kind in SKIPPED or CONVERTED."""
        self._found.setdefault((name, kind), text)

    def rows(self):
        """Everything noted, as (name, kind, text): what `add` takes."""
        return [(name, kind, text) for (name, kind), text in self._found.items()]

    @property
    def counts(self):
        """How many files of each kind, for the kinds that occur."""
        found = Counter(kind for _, kind in self._found)
        return {kind: found[kind] for kind in SKIPPED + CONVERTED if found[kind]}

    @property
    def skipped(self):
        """How many files were left out."""
        return sum(self.counts.get(kind, 0) for kind in SKIPPED)

    def lines(self):
        """One line a file: its name, its kind and the reason, those left out first."""
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


def decode(content):
    """Turn a file's bytes into an RGB picture.

    Of several frames the first is taken; transparency is dropped; a rotation noted in the
    file (EXIF) is ignored, as all published accuracies do. JPEG is decoded at full size:
    decoding to a half or a quarter is faster, and gives other pixels.

    content  bytes of a file in one of _FORMATS
    Returns  a PIL image of mode RGB, and a list of (kind, text), what had to be converted
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
    # A palette with transparent entries must be unfolded before they can be dropped.
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

    The size first. "short side": the picture's short side becomes `resize` pixels, or
    round(size / crop) without it, and the middle size × size is cut out. "square": the middle
    share `crop` of both sides is cut out, and squeezed into size × size whatever its shape.

    Then the numbers: y = (x · scale − mean) / std for each channel, x from 0 to 255.

    cut            "short side" or "square"
    rounding       "pillow" or "floor", of "short side" only: the long side becomes int(…) or
                   round(…), the cut begins at round(…) or ⌊…⌋. That moves it by a pixel, and some
                   predictions of a hundred change with it
    crop           share of the picture that is seen, in (0, 1]
    resize         pixels of the short side; None: by `crop`
    interpolation  "nearest", "bilinear", "bicubic" or "lanczos" of Pillow, which averages when it
                   shrinks; "legacy" with "square": two neighbours, pixels measured from their
                   corner, nothing averaged (TensorFlow 1)
    divisor        1 / scale: 255 for numbers from 0 to 1, 1 for 0 to 255
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
            raise ValueError(f"crop is {self.crop}, expected a share from above 0 to 1")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"resize is {self.resize}, expected pixels")
        if 0 in self.std or not 0 < self.divisor < math.inf:
            raise ValueError(f"std {self.std} and scale 1/{self.divisor} may not be 0")

    def __call__(self, picture, size):
        """Prepare one picture.

        picture  a PIL image of mode RGB
        size     of the network's input, pixels
        Returns  (size, size, 3) float32
        """
        cut = self._square if self.cut == "square" else self._middle
        pixels = cut(picture, size).astype(np.float32)
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
        # A line of 1 × 60000 pixels is harmless until it is 256 wide.
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

    # Where the whole picture becomes larger or smaller by a short side, "legacy" has no meaning.
    return Image.Resampling["BILINEAR" if name == "legacy" else name.upper()]


def _legacy_places(length, size, crop):
    """Where `size` pixels are read from the central cut of `length`: below, above, and between."""
    start = int((length - length * crop) / 2)
    cut = length - 2 * start
    place = np.arange(size, dtype=np.float32) * np.float32(cut / size)
    below = np.minimum(place.astype(np.int64), cut - 1)
    above = np.minimum(below + 1, cut - 1)
    return start + below, start + above, place - below.astype(np.float32)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# As the networks of torchvision were evaluated. Short side round(size/0.875) (224 → 256,
# 299 → 342). Source: the evaluation transforms that torchvision's weights document.
torchvision = Preparation(rounding="pillow", mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Numbers in [−1, 1]: Keras' MobileNet V1 and V2, Inception, Xception, NASNet. Keras fixes the
# numbers only; the central 87.5 % are usual.
keras = Preparation(divisor=127.5, mean=(1.0, 1.0, 1.0))
# As TF-slim evaluated Inception and MobileNet: cut first, then squeeze into a square. Source:
# TF-slim's Inception preprocessing; TensorFlow 1's central_crop, and resize_bilinear without
# align_corners.
tf_slim = Preparation("square", interpolation="legacy", divisor=127.5, mean=(1.0, 1.0, 1.0))

PRESETS = {
    "torchvision": torchvision,
    "keras": keras,
    "tf-slim": tf_slim,
    # 0 … 255, for networks that scale within: Keras' EfficientNet, MobileNetV3, ConvNeXt, RegNet.
    "keras-raw": Preparation(divisor=1.0),
    # Blue, green, red, less the mean of each: Keras' VGG and ResNet, and networks from Caffe.
    "keras-caffe": Preparation(divisor=1.0, mean=(103.939, 116.779, 123.68), channels="bgr"),
    # Standardised, cut as by Keras: Keras' DenseNet.
    "keras-torch": Preparation(mean=IMAGENET_MEAN, std=IMAGENET_STD),
}


# --- ahead of the caller --------------------------------------------------------------------


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


def batches(pictures, plan, preset, size, notes=None, threads=None, ahead=2):
    """Decode and prepare pictures, batch by batch, while the caller computes.

    Memory is bounded: besides the batch that the caller has, at most ahead + 1 are kept. Pillow's
    warnings about odd files are silenced for the whole process, since a filter cannot be kept
    to one thread; what is wrong with a file is found in `notes`.

    pictures  Pictures
    plan      iterable of integer arrays, the indices of the pictures of each batch
    preset    a name in PRESETS, or a Preparation
    size      of the network's input, pixels
    notes     Notes, to be added to
    threads   how many decode; None: one for each core of this process
    ahead     how many batches are prepared while the caller has one
    Yields    Batch, in the order of the plan; pictures that cannot be used are missing in it (it
              may be empty)
    Raises    ValueError for an unknown preset; ImportError without Pillow
    """
    if importlib.util.find_spec("PIL") is None:
        raise ImportError("photographs are decoded with Pillow: pip install 'minires[onnx]'")
    if not isinstance(preset, Preparation) and preset not in PRESETS:
        raise ValueError(f"batches: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    notes = Notes() if notes is None else notes
    prepare = PRESETS.get(preset, preset) if isinstance(preset, str) else preset
    return _batches(pictures, iter(plan), prepare, size, notes, threads, ahead)


def _batches(pictures, plan, prepare, size, notes, threads, ahead):
    warnings.filterwarnings("ignore", module=r"PIL\.")

    def work(index, place):
        """Put a picture where it belongs; return its remarks, and whether it can be used."""
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
            del images, jobs  # or a batch would stay alive while the next one is awaited
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
