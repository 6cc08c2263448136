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

import importlib.util
import io
import math
import os
import re
import tarfile
import warnings
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minires.data import cores, scale

__all__ = ["PRESETS", "Batch", "Notes", "Pictures", "batches", "decode", "load", "match_outputs"]

LARGEST_FILE = 1 << 28  # bytes; ImageNet's largest file has 15 million
LARGEST_PICTURE = 1 << 26  # pixels, also after resizing; 200 MB decoded. ImageNet: 61 million

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".gif", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # by content, whatever the suffix says


# --- which pictures there are ---------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be read one by one, and the class of each.

    where    the folder or tar they come from
    names    of the files, in order
    labels   (N,) int64, the class of each
    classes  name of every class, in order: WordNet ids
    ignored  names of files that are no pictures, by their suffix
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

    images   a folder that holds one folder for each class (val/n01440764/….JPEG); a tar with
             such folders in it; or the tar of the validation set, with `labels`
    synsets  a file whose line n (from 0) begins with the name of class n. Without it the names
             must be WordNet ids, and their sorted order is the order of the classes
    labels   for pictures that lie in no class folders: a file whose line n is the class of the
             n-th picture by name, either a WordNet id, or the number in
             ILSVRC2012_validation_ground_truth.txt. Those numbers are in an order of their own,
             which meta.mat of the same development kit explains: it must lie beside the file
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
    if labels is None:
        keys = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
        if "" in keys:
            raise ValueError(
                f"imagenet: {names[keys.index('')]} in {path} lies in no class folder: name the "
                "ground-truth file that says its class (--labels), or sort the pictures into one "
                "folder for each class"
            )
    else:
        keys = _read_labels(Path(labels).expanduser(), len(names), path)
    classes = _class_order(keys, synsets, path)
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


def match_outputs(classes, outputs):
    """Tell how the outputs of a network belong to the classes.

    classes  how many classes the pictures know
    outputs  how many outputs the network has
    Returns  offset, sentence: class c is output c + offset; the sentence says so in words
    Raises   ValueError when the numbers do not fit
    """
    if outputs == classes:
        return 0, f"{outputs} outputs for {classes} classes: class n is output n"
    if outputs == classes + 1:
        return 1, (
            f"{outputs} outputs for {classes} classes: output 0 is the background and left out, "
            "class n is output n + 1"
        )
    raise ValueError(
        f"imagenet: the pictures know {classes} classes, the network has {outputs} outputs: name "
        "the order of all its classes with a synsets file (--synsets), line n (from 0) beginning "
        "with the name of class n"
    )


def _scan_folder(folder):
    """The files one level down, sorted, and how to read one."""
    names, ignored = [], []
    with os.scandir(folder) as entries:
        inner = sorted(entries, key=lambda entry: entry.name)
    for entry in inner:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            with os.scandir(entry.path) as files:
                found = [f"{entry.name}/{file.name}" for file in files if file.is_file()]
        else:
            found = [entry.name] if entry.is_file() else []
        for name in sorted(found):
            (names if _is_picture(name) else ignored).append(name)

    def read(name):
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_file_size(size)
            return file.read(LARGEST_FILE)

    return names, ignored, read


def _scan_tar(path):
    """The pictures in a tar, sorted, and how to read one where it lies: nothing is unpacked."""
    places, ignored = {}, []
    try:
        # "r:" refuses compression: a compressed tar can only be read from its start.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if _is_picture(member.name) and member.isreg() and not member.issparse():
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


def _class_order(keys, synsets, where):
    """The names of all classes in order, from the file or, for WordNet ids, by sorting."""
    names = sorted(set(keys))
    if synsets is None:
        odd = [name for name in names if not _is_wordnet_id(name)]
        if odd:
            raise ValueError(
                f"imagenet: the class {odd[0]!r} in {where} is not a WordNet id (n and eight "
                "digits), so its number is not known: name the order of the classes with a "
                "synsets file (--synsets), line n (from 0) beginning with the name of class n"
            )
        return names
    synsets = Path(synsets).expanduser()
    classes = [line.split()[0] for line in _lines(synsets)]
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise ValueError(f"imagenet: {synsets} names the class {twice[0]!r} more than once")
    missing = sorted(set(names) - set(classes))
    if missing:
        raise ValueError(
            f"imagenet: {where} has the class {missing[0]!r} (and {len(missing) - 1} more) that is "
            f"not among the {len(classes)} of {synsets}"
        )
    return classes


def _read_labels(path, count, where):
    """The class name of each picture, from a ground-truth file."""
    words = [line.split()[0] for line in _lines(path)]
    if len(words) != count:
        raise ValueError(f"imagenet: {path} has {len(words)} labels, {where} {count} pictures")
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


def _lines(path):
    """The lines of a text file, of which none but the last ones may be empty."""
    if not path.is_file():
        raise FileNotFoundError(f"imagenet: there is no file {path}")
    lines = path.read_text("utf-8", errors="replace").rstrip().splitlines()
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

    content  bytes of a JPEG, PNG, WebP, GIF or BMP file
    Returns  a PIL image of mode RGB, and a list of (kind, text), what had to be converted
    Raises   an exception with a kind and a text, when the picture cannot be used
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise _Refused("empty", "0 bytes")
    try:
        picture = Image.open(io.BytesIO(content), formats=_FORMATS)
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


def torchvision(picture, size):
    """As the networks of torchvision were evaluated: standardised channels.

    1. Short side S = round(size/0.875) (224 → 256, 299 → 342), long side
       int(S · long/short), bilinear with Pillow, which averages when it shrinks.
    2. The middle size × size, from column round((width − size)/2), row round((height − size)/2);
       a half is rounded to the even number.
    3. y = (x/255 − mean)/std, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).

    picture  a PIL image of mode RGB
    size     of the network's input, pixels
    Returns  (size, size, 3) float32
    Source   the evaluation transforms that torchvision's weights document
    """
    scaled = _resize_then_crop(picture, size, int, round).astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.array([0.485, 0.456, 0.406], np.float32)
    scaled /= np.array([0.229, 0.224, 0.225], np.float32)
    return scaled


def keras(picture, size):
    """As the networks of Keras expect it: numbers in [−1, 1].

    1. Short side S = round(size/0.875), long side round(S · long/short), bilinear with Pillow.
    2. The middle size × size, from column ⌊(width − size)/2⌋, row ⌊(height − size)/2⌋.
    3. y = x/127.5 − 1.

    Keras fixes step 3 only; 1 and 2 are the usual ones, the central 87.5 %.

    picture  a PIL image of mode RGB
    size     of the network's input, pixels
    Returns  (size, size, 3) float32
    """
    return scale(_resize_then_crop(picture, size, round, math.floor))


def tf_slim(picture, size):
    """As TF-slim evaluated Inception and MobileNet: cut first, then squash into a square.

    1. Cut the central 87.5 %: the first int((n − 0.875 n)/2) rows and as many of the last are
       left out; columns likewise. The cut keeps the picture's proportions.
    2. Resize to size × size whatever the proportions: pixel i is read at the place i · n/size of
       the cut, between its two neighbours, linearly. Nothing is averaged when shrinking, and
       the place is measured from the pixel's corner: old TensorFlow's bilinear rule.
    3. y = 2 (x/255 − 0.5).

    picture  a PIL image of mode RGB
    size     of the network's input, pixels
    Returns  (size, size, 3) float32
    Source   TF-slim's Inception preprocessing for evaluation; TensorFlow 1's central_crop and
             resize_bilinear without align_corners
    """
    pixels = np.asarray(picture)
    rows, columns = (_legacy_places(length, size) for length in pixels.shape[:2])
    upper, lower, down = rows
    left, right, across = columns
    across = across[:, None]

    def along_rows(chosen):
        """The chosen rows, interpolated along themselves."""
        a = pixels[chosen[:, None], left].astype(np.float32)
        b = pixels[chosen[:, None], right].astype(np.float32)
        return a + (b - a) * across

    top = along_rows(upper)
    result = top + (along_rows(lower) - top) * down[:, None, None]
    return scale(result)


PRESETS = {"torchvision": torchvision, "keras": keras, "tf-slim": tf_slim}


def _resize_then_crop(picture, size, whole_side, whole_offset):
    """Scale the short side to round(size/0.875), then cut out the middle.

    The programs differ in how they make the long side and the offset whole numbers, which moves
    the cut by a pixel: some predictions of a hundred change with it.

    Returns  (size, size, 3) uint8
    """
    from PIL import Image

    short = round(size / 0.875)
    width, height = picture.size
    if width <= height:
        width, height = short, whole_side(short * height / width)
    else:
        width, height = whole_side(short * width / height), short
    # A line of 1 × 60000 pixels is harmless until it is 256 wide.
    _check_pixels(width, height, " once resized")
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = whole_offset((width - size) / 2), whole_offset((height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _legacy_places(length, size):
    """Where `size` pixels are read from the central cut of `length`: below, above, and between."""
    start = int((length - length * 0.875) / 2)
    cut = length - 2 * start
    place = np.arange(size, dtype=np.float32) * np.float32(cut / size)
    below = np.minimum(place.astype(np.int64), cut - 1)
    above = np.minimum(below + 1, cut - 1)
    return start + below, start + above, place - below.astype(np.float32)


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
    preset    a name in PRESETS
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
    if preset not in PRESETS:
        raise ValueError(f"batches: preset is {preset!r}, expected one of {', '.join(PRESETS)}")
    notes = Notes() if notes is None else notes
    return _batches(pictures, iter(plan), PRESETS[preset], size, notes, threads, ahead)


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
