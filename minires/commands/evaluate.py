"""`minires evaluate`: how good an ONNX network is on a folder of photographs.

    network = minires.onnx.load("mobilenet.onnx")
    pictures = minires.data.imagenet.load("val", synsets="synsets.txt")
    examination = Examination(network, pictures, "keras")
    outcomes, speed = examine(examination)
    summarize(outcomes)                     # top-1, top-5, NLL, ECE, each with a standard error

An accuracy needs its error: 78 % of 1,000 photographs is 78 ± 1.3 %, which cannot be distinguished
from 77 %. So every score here has its standard error.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import describe_gpus, module_for, set_threads, to_device, to_host, xp_of
from minires.arrays.text import counted, progress, say, shown
from minires.engine import ops
from minires.training.metrics import place_of_label

# So many photographs are shown at once. A larger number is not faster, and takes more memory.
BATCH = 32


class Examination:
    """A network and the photographs that it is shown. Here sizes, layout and class numbers agree.

    network     as minires.onnx.load gives it
    pictures    minires.data.imagenet.Pictures
    preset      how photographs are prepared: a name in imagenet.PRESETS, or a Preparation
    size        of the input, pixels; None: as the network's file says
    threads     how many threads decode photographs; None: one for each core
    device      "cpu" or "gpu": where the network computes
    among       compare only the classes that the pictures show; the others are left out of the
                softmax, as is usual for ImageNet-A, ImageNet-R and Imagenette
    background  whether output 0 is a background class; see imagenet.match_outputs
    Raises      ValueError when the network is not for photographs, or has other classes
    """

    def __init__(
        self,
        network: Any,
        pictures: Any,
        preset: Any,
        size: int | None = None,
        threads: int | None = None,
        device: str = "cpu",
        among: bool = False,
        background: bool | None = None,
    ):
        from minires.data import imagenet

        self.network, self.pictures = network, pictures
        self.preset, self.threads, self.device = preset, threads, device
        self.layout, self.size = _input_of(network, size)
        self.takes_bytes = network.input_dtype.kind != "f"
        known = imagenet.PRESETS.get(preset) if isinstance(preset, str) else preset
        if self.takes_bytes and known is not None and not known.keeps_bytes:
            raise ValueError(
                f"{network.path} takes bytes, 0 … 255, and scales them: use --preset keras-raw, "
                "without --scale, --mean and --std"
            )
        if None in network.declared_shape[1:]:  # then loading could not try an image
            sides = self.size, self.size
            try:
                network.try_size((3, *sides) if self.layout == "NCHW" else (*sides, 3))
            except ValueError as error:
                raise ValueError(
                    f"{network.path} does not take pictures of {self.size} × {self.size}: {error}"
                ) from error
        if network.classes is None:
            raise ValueError(
                f"{network.path}: the outputs are {[value.name for value in network.outputs]} of "
                "unknown shape; a classifier has one, (N, classes). Name it with --output"
            )
        self.offset, self.outputs = imagenet.match_outputs(
            len(pictures.classes), network.classes, background
        )
        self.notes = imagenet.Notes()
        self.among = among
        self.compared = np.arange(len(pictures.classes))  # the classes that compete
        if among:
            self.compared = np.unique(pictures.labels)
            self.outputs += f"; compared among the {len(self.compared)} classes of the pictures"

    def targets(self, labels: np.ndarray) -> tuple:
        """What the loss of a training step is told.

        labels   (n,) numbers of classes
        Returns  labels (n,), and the outputs that compete, as Network.loss_and_gradient takes
                 them: None for all; with `among` only those of the pictures' classes
        """
        if self.among:
            return self.places(labels), self.compared + self.offset
        return labels + self.offset, None

    def places(self, labels: np.ndarray) -> np.ndarray:
        """Where each class stands among those that are compared.

        labels   (n,) numbers of classes
        Returns  (n,)
        Raises   ValueError for a class that is not compared
        """
        places = np.minimum(np.searchsorted(self.compared, labels), len(self.compared) - 1)
        if not np.array_equal(self.compared[places], labels):
            raise ValueError(
                "--among: the pictures to compare on show a class that the others do not show"
            )
        return places

    def outcomes(self, probabilities: np.ndarray, labels: np.ndarray) -> "Outcomes":
        """How well photographs were predicted: Outcomes.

        probabilities  (n, classes compared), as from `predict`
        labels         (n,) numbers of classes
        Raises         ValueError for a class that is not compared
        """
        return Outcomes.of(probabilities, self.places(labels))

    def batches(self, plan: Iterable, pictures: Any = None) -> Iterator[tuple]:
        """Photographs as the network expects them, in the layout of its file, batch by batch.

        plan      iterable of index arrays
        pictures  other pictures than the examination's own
        Yields    images on the device, labels (numbers of classes) and indices; photographs that
                  cannot be used are missing
        """
        from minires.data import imagenet

        pictures = pictures or self.pictures
        for batch in imagenet.batches(
            pictures, plan, self.preset, self.size, self.notes, self.threads
        ):
            images = self.as_input(batch.images)
            yield images, batch.labels, batch.indices

    def as_input(self, images: np.ndarray) -> Any:
        """Prepared photographs (n, size, size, 3) in the layout and the type of the file's input.

        images    (n, size, size, 3), prepared
        Returns   an array on the device
        """
        if self.network.input_dtype.kind != "f":
            images = self.as_bytes(images)
        images = to_device(images, self.device)
        return images.transpose(0, 3, 1, 2) if self.layout == "NCHW" else images

    def as_bytes(self, images: np.ndarray) -> np.ndarray:
        """Whole numbers 0 … 255, for a graph that scales its pictures itself.

        images    (n, size, size, 3), from 0 to 255
        Returns   the same shape, of the input's type
        """
        return np.rint(images).astype(self.network.input_dtype)

    def whole_batches(self, *arrays: Any) -> list:
        """Fill the last batch of a graph with a fixed batch size: some photographs appear again.

        arrays   images (n, …), perhaps labels (n,)
        Returns  list of arrays, (n or more, …): n rounded up to a multiple of the fixed batch
        """
        count, fixed = len(arrays[0]), self.network.fixed_batch or 1
        if count % fixed == 0:
            return list(arrays)
        shown = np.arange(-(-count // fixed) * fixed) % count
        return [array[xp_of(array).asarray(shown)] for array in arrays]

    def predict(self, theta: Any, images: Any, stats: Any = None) -> np.ndarray:
        """Probabilities of the classes that are compared: (n, classes), on the host.

        The logits of all others, and of a background class, are left out of the softmax.

        theta    (P,) weights
        images   (n, …), as from `batches`
        stats    (S,) batch-norm statistics; None: those of the file
        """
        count = len(images)
        (images,) = self.whole_batches(images)
        if len(self.compared) == self.network.classes:
            return to_host(self.network.predict(theta, images, stats))[:count]
        logits = to_host(self.network.logits(theta, images, stats))[:count]
        return ops.softmax(logits[:, self.compared + self.offset])

    def own_vectors(self) -> tuple:
        """The weights and statistics of the network's file, on the device."""
        return tuple(to_device(v, self.device) for v in (self.network.theta, self.network.stats))


class NativeNetwork:
    """A Model with the weights of a file, in the place of the network from the file.

    network   as minires.onnx.load gives it
    Raises    MismatchError when this library cannot build that network
    """

    input_layout, input_dtype, fixed_batch = "NHWC", np.dtype(np.float32), None

    def __init__(self, network: Any):
        import minires.onnx

        self.path, self.outputs, self.classes = network.path, network.outputs, network.classes
        self.model, self.theta, self.stats = minires.onnx.native(network)
        self.declared_shape = (None, *self.model.input_shape)

    def logits(self, theta: Any, images: Any, stats: Any = None, batch: int | None = None) -> Any:
        """As `minires.Model.logits`.

        theta, images, stats, batch   as there
        """
        return self.model.logits(theta, images, stats, batch)

    def predict(self, theta: Any, images: Any, stats: Any = None, batch: int | None = None) -> Any:
        """As `minires.Model.predict`.

        theta, images, stats, batch   as there
        """
        return self.model.predict(theta, images, stats, batch)


def plan_of(count: int, batch: int) -> list[np.ndarray]:
    """The indices of all photographs in order, in arrays of `batch`; the last may be shorter.

    count   of the photographs
    batch   of them in an array
    """
    return [np.arange(start, min(start + batch, count)) for start in range(0, count, batch)]


# --- scores ---------------------------------------------------------------------------------


@dataclass
class Outcomes:
    """How well each photograph was predicted: all that the scores need, in a few bytes.

    top1, top5  (N,) bool: whether the label is the most probable class, or one of the five first
    nll         (N,) float64: −ln of the label's probability, as in minires.training.metrics.nll
    confidence  (N,) float64: the largest probability; NaN where a prediction is NaN
    """

    top1: np.ndarray
    top5: np.ndarray
    nll: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Outcomes":
        """From predictions (N, classes) and labels (N,).

        probabilities   (N, classes)
        labels          (N,) numbers of the classes
        """
        rows = np.arange(len(labels))
        own = probabilities[rows, labels]
        place = place_of_label(probabilities, labels)
        is_number = ~np.isnan(probabilities).any(axis=1)
        tiny = np.finfo(probabilities.dtype).tiny
        return cls(
            top1=place < 1,
            top5=place < 5,
            nll=np.where(is_number, -np.log(np.maximum(own, tiny).astype(np.float64)), np.nan),
            confidence=probabilities.max(axis=1).astype(np.float64),
        )

    @classmethod
    def joined(cls, parts: Iterable["Outcomes"]) -> "Outcomes":
        """The outcomes of several batches as one.

        parts   of the batches, in order
        """
        names = ("top1", "top5", "nll", "confidence")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self):
        return len(self.top1)


def summarize(outcomes: Outcomes) -> dict:
    """The scores of a network, each with its standard error.

    top1, top5  fractions; √(p(1−p)/N)
    nll         nats per photograph; standard deviation (ddof 1)/√N
    ece         see minires.training.metrics.ece; its error is a bootstrap: the standard deviation
                over 200 random choices of N photographs with replacement, always the same choices

    outcomes  Outcomes of N photographs
    Returns   dict: "images", each score, and each score's "…_error". For one photograph an error
              is NaN: nothing is known about how much other photographs would differ
    """
    count = len(outcomes)
    top1, top5 = float(outcomes.top1.mean()), float(outcomes.top5.mean())
    ece, ece_error = _calibration(outcomes)
    return {
        "images": count,
        "top1": top1,
        "top1_error": _error_of_share(top1, count),
        "top5": top5,
        "top5_error": _error_of_share(top5, count),
        "nll": float(outcomes.nll.mean()),
        "nll_error": standard_error(outcomes.nll),
        "ece": ece,
        "ece_error": ece_error,
    }


def _error_of_share(share, count):
    return math.sqrt(share * (1 - share) / count) if count > 1 else math.nan


def standard_error(values: np.ndarray) -> float:
    """The error of the mean of N numbers: their standard deviation (ddof 1)/√N; NaN for one.

    values   (N,)
    """
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _calibration(outcomes, resamplings=200):
    """The expected calibration error and its bootstrap standard error."""
    from minires.training import metrics

    if np.isnan(outcomes.confidence).any():
        return math.nan, math.nan
    confidence, correct, count = outcomes.confidence, outcomes.top1.astype(bool), len(outcomes)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamplings):
        chosen = rng.integers(count, size=count)
        draws.append(metrics.calibration_error(confidence[chosen], correct[chosen]))
    error = float(np.std(draws, ddof=1)) if count > 1 else math.nan
    return float(metrics.calibration_error(confidence, correct)), error


def is_no_better_than_chance(outcomes: Outcomes, classes: int) -> bool:
    """Whether the accuracy is so low that guessing would give the same, within three errors.

    The top-5 accuracy decides, or with ten classes or fewer the top-1 accuracy: there guessing
    alone has a high top-5 accuracy. Of fewer than 20 pictures nothing can be said: False.

    outcomes   of the photographs
    classes    how many are compared
    """
    count = len(outcomes)
    if classes < 2 or count < 20:
        return False
    right, tries = (outcomes.top5, 5) if classes > 10 else (outcomes.top1, 1)
    chance = tries / classes
    return right.mean() <= chance + 3 * math.sqrt(chance * (1 - chance) / count)


def better_preset(examination: Examination, most: int = 60) -> str:
    """A sentence that names another preset with which the network predicts well; "" for none.

    examination   with the preset that may be wrong
    most          how many photographs to try, spread over all
    """
    from minires.data import imagenet

    if examination.takes_bytes:
        return ""  # it scales them by itself
    tried, preset = {}, examination.preset
    notes = examination.notes
    try:
        for name in imagenet.PRESETS:
            examination.preset, examination.notes = name, imagenet.Notes()
            tried[name] = examine(examination, limit=most, quiet=True)[0]
    finally:
        examination.preset, examination.notes = preset, notes
    best = max(tried, key=lambda name: tried[name].top1.mean())
    if is_no_better_than_chance(tried[best], len(examination.compared)) or best == preset:
        return ""
    found = tried[best]
    return f"--preset {best} gives {100 * found.top1.mean():.0f} % on {len(found)} of the pictures"


# --- one network ----------------------------------------------------------------------------


def examine(
    examination: Examination,
    theta: Any = None,
    stats: Any = None,
    batch: int = BATCH,
    limit: int | None = None,
    quiet: bool = False,
) -> tuple:
    """Show a network all photographs, in order.

    examination   Examination
    theta, stats  weights and statistics; None: those of the network's file
    batch         photographs at once
    limit         show only so many, spread evenly over all; None: all
    quiet         no progress bar (there is none either without a terminal)
    Returns       Outcomes; and a dict: "seconds", photographs per second with decoding
                  ("images_per_second") and in the network alone ("network_images_per_second")
    Raises        ValueError when no photograph can be used
    """
    if theta is None or stats is None:
        own_theta, own_stats = examination.own_vectors()
        theta = own_theta if theta is None else theta
        stats = own_stats if stats is None else stats
    count = len(examination.pictures)
    chosen = np.arange(count)
    if limit is not None and limit < count:
        chosen = np.arange(limit) * count // limit
    parts, computing, started = [], 0.0, time.perf_counter()
    networks = {"": (theta, stats)}
    for labels, found, seconds in predictions(examination, networks, chosen, batch, quiet=quiet):
        parts.append(examination.outcomes(found[""], labels))
        computing += seconds
    if not parts:
        raise ValueError(
            f"{examination.pictures.where}: none of {len(chosen)} pictures can be used "
            f"({examination.notes}); the first: {examination.notes.lines()[0]}"
        )
    outcomes = Outcomes.joined(parts)
    seconds = time.perf_counter() - started
    return outcomes, {
        "seconds": seconds,
        "images_per_second": len(outcomes) / seconds,
        "network_images_per_second": len(outcomes) / computing,
    }


def predictions(
    examination: Examination,
    networks: dict,
    indices: np.ndarray,
    batch: int,
    pictures: Any = None,
    **bar: Any,
) -> Iterator[tuple]:
    """What networks predict for photographs. Each photograph is decoded once, for all networks.

    examination   Examination
    networks      {name: (theta, stats)}
    indices       of the photographs, in the order in which they are shown
    batch         photographs at once
    pictures      others than the examination's own
    bar           settings of the progress bar: quiet, desc
    Yields        labels (n,), {name: probabilities (n, classes compared)}, and the seconds that
                  the networks took. Batches without a usable photograph are left out
    """
    plan = [indices[part] for part in plan_of(len(indices), batch)]
    with progress(total=len(indices), unit="image", **bar) as shown_so_far:
        batches = examination.batches(plan, pictures)
        for planned, (images, labels, _) in zip(plan, batches, strict=True):
            if len(labels):
                begun = time.perf_counter()
                found = {
                    name: examination.predict(theta, images, stats)
                    for name, (theta, stats) in networks.items()
                }
                yield labels, found, time.perf_counter() - begun
            shown_so_far.update(len(planned))


def _input_of(network, size):
    """The layout of the network's input, and the side of the square it expects, pixels."""
    shape, layout = network.declared_shape, network.input_layout
    if shape is None or len(shape) != 4 or layout not in ("NCHW", "NHWC"):
        raise ValueError(
            f"{network.path}: the input is {shape} ({layout or 'layout unknown'}), expected "
            "photographs: (N, 3, H, W) or (N, H, W, 3)"
        )
    channels, *sides = shape[1:] if layout == "NCHW" else (shape[3], *shape[1:3])
    if channels not in (3, None):
        raise ValueError(f"{network.path}: the input has {channels} channels, photographs have 3")
    fixed = {side for side in sides if side is not None}
    if len(fixed) > 1:
        raise ValueError(f"{network.path}: the input is {sides} pixels, expected a square")
    if not fixed and size is None:
        raise ValueError(f"{network.path} takes pictures of any size: say which with --size")
    if fixed and size is not None and {size} != fixed:
        raise ValueError(f"{network.path} takes pictures of size {fixed.pop()}, --size is {size}")
    return layout, size or fixed.pop()


# --- text -----------------------------------------------------------------------------------


def with_error(scores: dict, key: str, digits: int, factor: float = 1, sign: str = "") -> str:
    """A score and its standard error as text; – for an error that is NaN.

    scores   as from `summarize`
    key      of the score
    digits   after the point
    factor   100 for per cent
    sign     "+": write it for positive values too
    """
    value, error = scores[key] * factor, scores[key + "_error"] * factor
    return f"{value:{sign}.{digits}f} ± " + (f"{error:.{digits}f}" if error == error else "–")


# --- the command ----------------------------------------------------------------------------


def add_parser(subparsers: Any) -> None:
    """Add `minires evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="accuracy, NLL and calibration of an ONNX network",
        description="Show the photographs of a folder to an ONNX network. Print top-1, top-5, "
        "negative log-likelihood and calibration error, each with its standard error, and the "
        "speed.",
    )
    add_picture_options(parser)
    parser.add_argument(
        "--batch", type=int, default=BATCH, help="photographs at once (%(default)s)"
    )
    parser.add_argument("--limit", type=int, help="use only so many, spread evenly over all")
    parser.add_argument(
        "--native",
        action="store_true",
        help="use this library's own MobileNet or Inception, with the weights of the file",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def add_picture_options(parser: Any) -> None:
    """Add the options that `evaluate` and `improve` share: the network and the pictures."""
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR",
                        help="a folder with one folder per class, or a tar of it")  # fmt: skip
    add_preparation_options(parser)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu",
                        help="where to compute (cpu)")  # fmt: skip


def add_preparation_options(parser: Any) -> None:
    """Add how classes are numbered and pictures prepared: for every command that shows pictures."""
    parser.add_argument("--synsets", type=Path, metavar="FILE",
                        help="a text file: line n begins with the name (WordNet id) of class n; "
                        "needed if the folder does not have all classes")  # fmt: skip
    parser.add_argument("--labels", type=Path, metavar="FILE",
                        help="for pictures without class folders: a CSV file, or lines \"picture "
                        "class\"; or line n is the class of the n-th picture by name")  # fmt: skip
    parser.add_argument("--among", action="store_true",
                        help="compare only the classes that the pictures show")  # fmt: skip
    parser.add_argument("--background", action="store_true", default=None,
                        help="output 0 is a background class")  # fmt: skip
    parser.add_argument("--output", metavar="NAME",
                        help="the output that holds the classes, if there are several")  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="keras",
                        help="prepare pictures as this program does for its networks "
                        "(%(default)s)")  # fmt: skip
    own = parser.add_argument_group("preparation", "Each option replaces a part of the preset.")
    own.add_argument("--scale", type=_number, help="multiply bytes 0 … 255 by this, as 1/255")
    own.add_argument("--mean", type=_three, metavar="A,B,C", help="then subtract this")
    own.add_argument("--std", type=_three, metavar="A,B,C", help="then divide by this")
    own.add_argument("--channels", choices=("rgb", "bgr"), help="the order of the colours")
    own.add_argument("--resize", type=int, metavar="PIXELS", help="length of the short side")
    own.add_argument(
        "--crop", type=float, metavar="SHARE", help="share of the picture that is used"
    )
    own.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic", "lanczos"),
                     help="how pixels are computed when the size changes")  # fmt: skip
    parser.add_argument("--size", type=int, help="pixels, for a network that takes any size")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")


# The names in imagenet.PRESETS. They stand here so that `--help` need not import that module.
PRESETS = ("keras", "torchvision", "tf-slim", "keras-raw", "keras-caffe", "keras-torch")


def _number(text):
    """A number, or a fraction such as 1/255."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a fraction") from None


def _three(text):
    """Numbers for three channels from "a,b,c" or, for all, "a"."""
    numbers = [_number(part) for part in text.split(",")]
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number or three, as 1,2,3")
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def preparation_of(options: Any) -> Any:
    """The preset that the command line names; a Preparation if options change a part of it.

    Raises   ValueError for options that exclude each other
    """
    from minires.data import imagenet

    names = "mean", "std", "channels", "resize", "crop", "interpolation"
    own = {name: getattr(options, name) for name in names}
    own["divisor"] = None if options.scale is None else 1 / options.scale if options.scale else 0
    own = {name: value for name, value in own.items() if value is not None}
    if not own:
        return options.preset
    if "crop" in own and "resize" in own:
        raise ValueError("--crop and --resize both say how large a part is seen: give one of them")
    return dataclasses.replace(imagenet.PRESETS[options.preset], **own)


def check_counts(options: Any, *names: str) -> None:
    """Check that none of the named options is given and below 1.

    names    of options
    Raises   ValueError
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected 1 or more")


def open_examination(options: Any) -> Examination:
    """The network and the pictures that the command line names, as an Examination.

    Raises   ValueError, OSError when a file does not fit or is not there
    """
    import minires.onnx
    from minires.data import imagenet

    check_counts(options, "batch", "size", "threads")
    module_for(options.device)  # before anything is loaded: is there a GPU?
    if options.threads is not None:
        set_threads(options.threads)
    preset = preparation_of(options)
    network = minires.onnx.load(options.model, output=options.output)
    if getattr(options, "native", False):
        network = NativeNetwork(network)
    pictures = imagenet.load(options.images, options.synsets, options.labels)
    return Examination(
        network, pictures, preset, options.size, options.threads, options.device, options.among,
        options.background,
    )  # fmt: skip


def check_batch(options: Any, network: Any) -> None:
    """Check that a network from a file takes batches of --batch pictures.

    network   as minires.onnx.load gives it
    Raises    ValueError, which names the batch that it takes
    """
    if network.fixed_batch not in (None, options.batch):
        raise ValueError(
            f"--batch is {options.batch}, but {options.model} takes {network.fixed_batch} pictures "
            f"at a time: --batch {network.fixed_batch}, or export it with a free batch"
        )


def other_pictures(options: Any, folder: Path, classes: list) -> Any:
    """The pictures of another folder than --images.

    folder    of the pictures
    classes   those of --images
    Returns   minires.data.imagenet.Pictures, whose classes have the same numbers
    Raises    ValueError when they have not
    """
    from minires.data import imagenet

    try:
        found = imagenet.load(folder, options.synsets)
    except ValueError as error:
        if options.labels is None:
            raise
        raise ValueError(
            f"{error}; --labels is for {options.images} alone, other pictures need class folders"
        ) from error
    if found.classes != classes:
        raise ValueError(
            f"{folder} holds other classes than {options.images}: name the order of all classes "
            "with --synsets"
        )
    return found


def hash_of_network(options: Any, network: Any) -> str:
    """SHA-256 of a network's file and of its weights, which may lie in files of their own.

    network   as minires.onnx.load gives it
    """
    digest = hashlib.sha256(Path(options.model).read_bytes())
    digest.update(network.theta.tobytes())
    digest.update(network.stats.tobytes())
    return digest.hexdigest()


def hash_of_pictures(pictures: Any, *chosen: np.ndarray) -> str:
    """SHA-256 of the names and classes of pictures.

    pictures   minires.data.imagenet.Pictures
    chosen     indices of some of them, which count too
    """
    digest = hashlib.sha256("\n".join(pictures.names).encode("utf-8", "surrogateescape"))
    for array in (pictures.labels, *chosen):
        digest.update(array.tobytes())
    return digest.hexdigest()


def describe_notes(examination: Examination, most: int = 10) -> list[str]:
    """Lines about files that were left out or converted: their number, and the first names.

    examination   after its photographs were shown
    most          how many files are named
    """
    notes, ignored = examination.notes, examination.pictures.ignored
    lines = []
    if ignored:
        lines.append(
            f"{len(ignored)} files or folders do not have the name of a picture, or cannot be "
            f"opened: {ignored[0]} …"
        )
    if notes.counts:
        found = notes.lines()
        lines += [f"pictures: {notes}", *(f"  {line}" for line in found[:most])]
        if len(found) > most:
            lines.append(f"  and {len(found) - most} more")
    return lines


def run(options: Any) -> int:
    """`minires evaluate`: print the scores; 0 is the exit code."""
    check_counts(options, "limit")
    try:
        examination = open_examination(options)
        say(examination.outputs)
        outcomes, speed = examine(examination, batch=options.batch, limit=options.limit)
    except KeyboardInterrupt:
        say("", "stopped: there are no scores")
        return 130
    pictures = examination.pictures
    say(*describe_notes(examination))
    if is_no_better_than_chance(outcomes, len(examination.compared)):
        say(
            "guessing would do as well: is the order of the classes "
            f"({options.synsets or 'sorted by name'}) the network's own? Is the preset "
            f"({options.preset}) the right one for this network?"
        )
        better = better_preset(examination)
        if better:
            say(better)
    scores = summarize(outcomes)
    if options.json:
        result = {
            "model": str(options.model),
            "pictures": pictures.where,
            "preset": str(examination.preset),
            "size": examination.size,
            "device": options.device,
            "outputs": examination.outputs,
            "among": len(examination.compared),
            **scores,
            "left_out": examination.notes.skipped,
            "notes": examination.notes.counts,
            "noted": examination.notes.lines(),
            "not_pictures": len(pictures.ignored),
            **speed,
        }
        print(json.dumps(without_nan(result), ensure_ascii=False, allow_nan=False))
        return 0
    size = examination.size
    print(
        f"{shown(options.model)} on {counted(len(outcomes), 'picture')} of {shown(pictures.where)}"
    )
    print(f"preset {examination.preset}, {size} × {size}; ± is one standard error")
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("ECE", "ece")):
        print(f"  {name:<6} {with_error(scores, key, 2, 100):>13} %")
    print(f"  NLL      {with_error(scores, 'nll', 4)} nats")
    print(
        f"  speed  {speed['images_per_second']:.0f} pictures a second, "
        f"{speed['network_images_per_second']:.0f} in the network alone"
        + (f" ({describe_gpus()[0]})" if options.device == "gpu" else "")
    )
    return 0


def without_nan(content: dict) -> dict:
    """A dict with None in the place of NaN and infinity, which JSON does not have.

    content   of plain values
    """
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in content.items()
    }
