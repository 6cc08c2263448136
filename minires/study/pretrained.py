"""The paper's second half: a network that others have trained, fine-tuned over a range of rates.

A cell is one fine-tuning, with a seed and a rate ℓ₂. It starts from the weights of the network's
file. Every update goes into the moments (eqs. 2-3) and into a moving average. Then these networks
are compared on photographs that were not used for training:

    finetuned        θ after the last update
    ema              the exponential moving average of θ
    mean             the mean of θ; batch-norm statistics averaged likewise
    mean_recomputed  the same weights; statistics measured again on training photographs
    mean_last        the same weights; statistics of the last update
    ensemble_3, _10  predictions averaged over networks that are sampled around the mean

The folder of a sweep, DIR:

    sweep.json               the settings: a second sweep with others is refused
    cells/*.json             what each finished cell found, photograph by photograph
    means/*_mean.onnx        the mean model of each cell
    data/*.npy               the photographs, decoded once
    pictures.json            how many of them can be used; with others a second sweep is refused
    unfinished_*.npz         the cell that is being computed; it is saved every half minute

Only its seed and its rate decide what a cell finds. A sweep that was killed goes on after the last
save, and ends with the same bits. All rates of one seed see the same photographs in the same order,
so rates and methods can be compared in pairs.

An argument means the same in all of this file:

    subject   a Subject: the network, and the photographs that it sees
    plan      a Plan: how many updates, and how many photographs in a batch
    tuning    a Tuning: the fine-tuning of a cell as far as it has come
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import checks, device_of, to_host
from minires.arrays.files import (
    complete,
    content_of,
    full_disk,
    load_arrays,
    load_json,
    save_arrays,
)
from minires.arrays.results import check
from minires.arrays.text import progress, say
from minires.networks.running_statistics import reestimate_stats
from minires.study.cells import made_by
from minires.study.store import ROWS, SETTINGS, name_of_sweep, read_rows
from minires.training import loop
from minires.training.fine_tuning import FineTuning
from minires.training.optimizers import SGD

FORMAT = 1
PROFILE = "pretrained"
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
EMA_DECAY = 0.99  # about the last 100 updates count
MEMBERS, FEW_MEMBERS = 10, 3
RECOMPUTE_BATCHES = 50  # training batches that show the recomputed statistics
SAVE_EVERY = 30.0  # seconds between two saves of an unfinished cell
SHOWN = 50  # photographs that a network predicts at once


# --- the photographs ------------------------------------------------------------------------


@dataclass(frozen=True)
class Photographs:
    """Photographs, decoded and cut, in a file of which only the parts in use are read.

    pixels    (N, size, size, 3), red, green and blue from 0 to 255, memory-mapped
    labels    (N,) classes, numbered as the loss or the comparison expects
    as_input  turns pixels of some photographs into what the network takes
    """

    pixels: np.ndarray
    labels: np.ndarray
    as_input: Callable

    def __len__(self):
        return len(self.labels)

    def images(self, chosen: Any) -> Any:
        """Some of the photographs as the network takes them.

        chosen   indices, or a slice
        """
        return self.as_input(self.pixels[chosen])


def dtype_of(preparation: Any) -> np.dtype:
    """The type of decoded pixels: bytes, or float32 where TF-slim's way interpolates by itself.

    preparation   minires.data.imagenet.Preparation
    """
    return np.dtype(np.float32 if preparation.interpolation == "legacy" else np.uint8)


def decode(
    path: Path, pictures: Any, preparation: Any, size: int, notes: Any, threads: Any = None
) -> tuple:
    """Decode and cut pictures, unless the files exist already.

    path         of the file of pixels, DIR/data/train.npy; train_used.npy says which are used
    pictures     minires.data.imagenet.Pictures
    preparation  minires.data.imagenet.Preparation
    size         of the network's input, pixels
    notes        Notes; files that cannot be used are added
    threads      how many decode
    Returns      pixels (N, size, size, 3), memory-mapped; their places among the pictures (N,).
                 Pictures that cannot be used are left out
    Raises       ValueError when none can be used; OSError when the disk is full
    """
    from minires.data import imagenet

    used = used_beside(path)
    if not (path.exists() and used.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = replace(preparation, divisor=1.0, mean=(0, 0, 0), std=(1, 1, 1), channels="rgb")
        shape = (len(pictures), size, size, 3)
        part, kept = path.with_name(f"{path.name}.part"), []
        pixels = np.lib.format.open_memmap(part, "w+", dtype_of(preparation), shape)
        _reserve(part)
        plan = [np.arange(n, min(n + 64, shape[0])) for n in range(0, shape[0], 64)]
        with progress(total=shape[0], unit="image", desc=f"decoding {path.stem}") as bar:
            for batch in imagenet.batches(pictures, plan, plain, size, notes, threads):
                pixels[len(kept) : len(kept) + len(batch.indices)] = batch.images
                kept += batch.indices.tolist()
                bar.update(64)
        if not kept:
            raise ValueError(f"{pictures.where}: no picture can be used ({notes})")
        pixels.flush()
        del pixels
        part.replace(path)
        with complete(used) as file:  # last: it says that the pixels are complete
            np.save(file, np.array(kept))
    kept = np.load(used)
    return np.load(path, mmap_mode="r")[: len(kept)], kept


def _reserve(path):
    """Take the whole file's room on the disk now: a full disk would end the program at a write."""
    if not hasattr(os, "posix_fallocate"):  # such as on macOS
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise full_disk(path, error) from error


def used_beside(path: Path) -> Path:
    """The file that says which pictures a file of pixels holds.

    path   DIR/data/train.npy
    """
    return path.with_name(f"{path.stem}_used.npy")


# --- a cell ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One fine-tuning; or the base, the network of the file, which has no seed and no rate."""

    seed: int | None = None
    rate: float | None = None

    @property
    def key(self) -> str:
        """A name fit for a file."""
        return "base" if self.rate is None else f"seed_{self.seed}_rate_{self.rate!r}"

    @property
    def order(self) -> tuple:
        """What cells are sorted by: the base, then seeds outermost."""
        return (-1, 0) if self.rate is None else (self.seed, self.rate)


@dataclass(frozen=True)
class Subject:
    """What is studied: a network, and the photographs it sees.

    network   as minires.onnx.load gives it
    theta     (P,) the weights of its file, on the device that computes
    stats     (S,) its batch-norm statistics
    train     Photographs to fine-tune on
    test      Photographs to compare on
    choose    Photographs to choose the best rate on, or None
    outputs   (C,) numbers of the outputs that are compared; None: all
    predict   (theta, images, stats) → (n, C) probabilities of these classes, on the host
    """

    network: Any
    theta: Any
    stats: Any
    train: Photographs
    test: Photographs
    choose: Photographs | None
    outputs: np.ndarray | None
    predict: Callable


@dataclass(frozen=True)
class Plan:
    """How every cell is fine-tuned: how many updates, and photographs in a batch."""

    updates: int
    batch: int


class Tuning(FineTuning):
    """The fine-tuning of a cell as far as it has come; saved and restored bit for bit.

    subject   what is studied
    cell      a Cell with a rate
    """

    def __init__(self, subject: Subject, cell: Cell):
        super().__init__(subject.theta, subject.stats, SGD(cell.rate), EMA_DECAY)
        self.cell = cell

    def save(self, path: Path, sweep: str) -> None:
        """Write everything to one file.

        path    of the file
        sweep   the name of the sweep
        """
        names = {"sweep": sweep, "cell": self.cell.key, "seconds": self.seconds}
        save_arrays(path, **{n: np.array(value) for n, value in names.items()}, **self.arrays())

    def load(self, path: Path, sweep: str) -> None:
        """Go on from what `save` wrote.

        path    of the file
        sweep   the name of the sweep
        Raises  ValueError when the file is damaged, or of another sweep
        """
        shapes = {"theta": self.theta.shape, "stats": self.stats.shape}
        arrays = load_arrays(path, "sweep", "cell", "losses", "seconds", shapes=shapes)
        if (str(arrays["sweep"]), str(arrays["cell"])) != (sweep, self.cell.key):
            raise ValueError(f"{path} belongs to another sweep: remove it")
        with content_of(path, "remove it"):
            self.restore(arrays)
            seconds = checks.array_like("load", "seconds", arrays["seconds"], np.array(0.0))
            self.seconds = checks.number_in("load", "seconds", float(seconds), 0)


def updates_of(tuning: Tuning, subject: Subject, plan: Plan) -> Iterator[tuple]:
    """What `FineTuning.update` takes for every update that is missing.

    tuning    as far as it has come
    subject   what is studied
    plan      how many updates
    Yields    images and labels of a batch, random numbers for dropout, the outputs that compete
    """
    seed, done, train = tuning.cell.seed, tuning.updates, subject.train
    order = loop.batches(len(train), plan.batch, _stream(seed, "fine-tuning order"))
    for number, chosen in enumerate(itertools.islice(order, done, plan.updates), done):
        rng = _stream(seed, "fine-tuning dropout", number)
        yield train.images(chosen), train.labels[chosen], rng, subject.outputs


def networks(tuning: Tuning, subject: Subject, plan: Plan) -> Iterator[tuple]:
    """The networks that a cell compares, one after another, so that few are in memory.

    Yields   name, θ (P,), statistics (S,); the name of a sampled network is None
    """
    mean, averaged = tuning.moments.mean, tuning.moments_of_stats.mean
    yield "finetuned", tuning.theta, tuning.stats
    yield "ema", tuning.ema.mean, tuning.ema_of_stats.mean
    yield "mean", mean, averaged
    if tuning.stats.size:
        order = loop.batches(
            len(subject.train), plan.batch, _stream(tuning.cell.seed, "statistics order")
        )
        most = min(RECOMPUTE_BATCHES, len(subject.train) // plan.batch)
        shown = (subject.train.images(chosen) for chosen in itertools.islice(order, most))
        yield "mean_recomputed", mean, reestimate_stats(subject.network, mean, shown)
        yield "mean_last", mean, tuning.stats
    rng = _stream(tuning.cell.seed, "sampled networks")
    for _ in range(MEMBERS):  # one at a time: member k is the same as of ten at once
        yield None, tuning.moments.sample(1, rng)[0], averaged


def _stream(seed, purpose, number=0):
    """The random generator of a seed for one purpose; dropout has one for each update."""
    return loop.stream(seed, purpose, number)


# --- what networks predict ------------------------------------------------------------------


def probabilities_of(
    subject: Subject, photographs: Photographs, theta: Any, stats: Any
) -> np.ndarray:
    """The class probabilities of all photographs: (N, C) float64.

    photographs   those to show
    theta         (P,)
    stats         (S,)
    """
    parts = [
        subject.predict(theta, photographs.images(slice(n, n + SHOWN)), stats)
        for n in range(0, len(photographs), SHOWN)
    ]
    return np.concatenate(parts).astype(np.float64)


def pictures_of(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """What was predicted for each photograph, with as many digits as a file needs.

    probabilities   (N, C)
    labels          (N,) from 0 to C − 1
    Returns         {"predicted": the most probable class, "nll": −ln of the label's probability,
                    "confidence": the largest probability}, lists of N
    Raises          FloatingPointError for a NaN
    """
    if not np.isfinite(probabilities).all():
        raise FloatingPointError("a prediction is not a number")
    own = probabilities[np.arange(len(labels)), labels]
    nll = -np.log(np.maximum(own, float(np.finfo(np.float32).tiny)))
    return {
        "predicted": probabilities.argmax(axis=1).tolist(),
        "nll": [float(f"{value:.4g}") for value in nll + 0.0],
        "confidence": np.round(probabilities.max(axis=1), 4).tolist(),
    }


def scored(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy and NLL of the photographs on which the best rate is chosen.

    probabilities   (N, C)
    labels          (N,) places among the C
    """
    scores = loop.score(probabilities, labels)
    return {name: scores[name] for name in ("accuracy", "nll")}


def examine(subject: Subject, compared: Iterator[tuple]) -> dict:
    """Let networks predict the photographs.

    compared  as from `networks`
    Returns   {"pictures": {method: as from `pictures_of`}, "choose": {method: scores}}
    """
    labels = subject.test.labels
    pictures, choose = {}, {}
    total, members = 0.0, 0
    for name, theta, stats in compared:
        found = probabilities_of(subject, subject.test, theta, stats)
        if name is None:
            total, members = total + found, members + 1
            if members in (FEW_MEMBERS, MEMBERS):
                pictures[f"ensemble_{members}"] = pictures_of(total / members, labels)
            continue
        pictures[name] = pictures_of(found, labels)
        if subject.choose is not None:
            found = probabilities_of(subject, subject.choose, theta, stats)
            choose[name] = scored(found, subject.choose.labels)
    return {"pictures": pictures, "choose": choose}


# --- the sweep ------------------------------------------------------------------------------

NUMBERS = {"predicted": [int], "nll": [float], "confidence": [float]}
RECORD = {
    "sweep": str,
    "cell": {"seed": (int, None), "rate": (float, None)},
    "diverged?": str,
    "labels?": [int],
    "made?": {"*": str},
    "pictures?": {"*": NUMBERS},
    "choose?": {"*": {"accuracy": float, "nll": float}},
    "losses?": [float],
    "seconds?": {"*": float},
}


def cells_of(seeds: int, rates: list) -> list:
    """Every cell in the order of the work: the base, then seed after seed.

    seeds   how many
    rates   ℓ₂ to try
    """
    tuned = [Cell(seed, rate) for seed in range(seeds) for rate in sorted(set(rates))]
    return [Cell(), *tuned]


def run_sweep(subject: Subject, plan: Plan, cells: list, folder: Path, quiet: bool = False) -> int:
    """Compute every cell that the folder does not hold yet.

    folder    of the sweep, with its sweep.json, held by `locked_folder`
    quiet     say nothing of finished cells
    Returns   how many were missing; all of them are now finished
    """
    folder = Path(folder)
    name, done = read_cells(folder)
    missing = [cell for cell in cells if cell not in done]
    for number, cell in enumerate(missing, 1):
        record = _base(subject) if cell.rate is None else _tuned(subject, plan, cell, folder, name)
        record |= {"made": made_by(device_of(subject.theta))}
        record = {"sweep": name, "cell": {"seed": cell.seed, "rate": cell.rate}, **record}
        path = folder / "cells" / f"{cell.key}.json"
        path.parent.mkdir(exist_ok=True)
        with complete(path, "w") as file:
            json.dump(record, file, allow_nan=False)
            file.write("\n")
        with contextlib.suppress(FileNotFoundError):
            _unfinished(folder, cell).unlink()
        if not quiet:
            say(f"{cell.key}: {number} of {len(missing)} cells; {_in_words(record)}")
    return len(missing)


def _unfinished(folder, cell):
    return folder / f"unfinished_{cell.key}.npz"


def _base(subject):
    """The record of the network of the file."""
    began = time.perf_counter()
    found = examine(subject, [("base", subject.theta, subject.stats)])
    return {
        "labels": subject.test.labels.tolist(),
        **found,
        "seconds": {"cell": time.perf_counter() - began},
    }


def _tuned(subject, plan, cell, folder, sweep):
    """The record of a fine-tuning; its mean model is written as ONNX."""
    import minires.onnx

    tuning, unfinished = Tuning(subject, cell), _unfinished(folder, cell)
    if unfinished.exists():
        tuning.load(unfinished, sweep)
        say(f"{cell.key}: going on after update {tuning.updates}")
    try:
        tuning.go_on(
            subject.network, updates_of(tuning, subject, plan), plan.updates,
            lambda: tuning.save(unfinished, sweep), SAVE_EVERY, cell.key,
        )  # fmt: skip
        began = time.perf_counter()
        found = examine(subject, networks(tuning, subject, plan))
    except FloatingPointError as error:
        return {"diverged": str(error)}
    means = folder / "means"
    means.mkdir(exist_ok=True)
    minires.onnx.save(
        subject.network,
        means / f"{cell.key}_mean.onnx",
        theta=to_host(tuning.moments.mean),
        stats=to_host(tuning.moments_of_stats.mean),
    )
    seconds = {"updates": tuning.seconds, "comparing": time.perf_counter() - began}
    return {
        **found,
        "losses": [float(f"{loss:.4g}") for loss in tuning.losses],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _in_words(record):
    if "diverged" in record:
        return record["diverged"]
    parts = [
        f"{method} NLL {np.mean(found['nll']):.4f}" for method, found in record["pictures"].items()
    ]
    return ", ".join(parts)


def read_cells(folder: Path) -> tuple[str, dict]:
    """The name of the sweep in a folder, and its cells: those in files, and those in rows.

    Returns  name; {Cell: record}, in order
    Raises   FileNotFoundError when it holds no sweep; ValueError, which names a damaged file
    """
    settings = load_json(folder / SETTINGS)
    name, found = name_of_sweep(settings), {}
    for path in sorted((folder / "cells").glob("*.json")):
        record = checked(path, load_json(path), name)
        found[Cell(**record["cell"])] = record
    if (folder / ROWS).exists():
        for number, row in enumerate(read_rows(folder / ROWS), 1):
            record = checked(f"{folder / ROWS}, line {number}", row, name)
            found.setdefault(Cell(**record["cell"]), record)
    return name, dict(sorted(found.items(), key=lambda item: item[0].order))


def checked(path: Any, record: Any, name: str) -> dict:
    """Check a record, and return it without the name of its sweep.

    path     where the record was found, for the error
    name     of the sweep
    Raises   ValueError when it is damaged, or of another sweep
    """
    check(path, record, RECORD)
    if record["sweep"] != name:
        raise ValueError(f"{path} belongs to another sweep: remove it, and it is computed again")
    if ("diverged" in record) == ("pictures" in record):
        raise ValueError(
            f"{path} must have either results, or the reason why there are none: remove it"
        )
    if (record["cell"]["rate"] is None) != ("labels" in record):
        raise ValueError(f"{path}: the base must have labels, and no other cell: remove it")
    lengths = {
        len(each) for found in record.get("pictures", {}).values() for each in found.values()
    }
    if len(lengths) > 1:
        raise ValueError(f"{path} has results of unequal lengths: remove it")
    return {key: value for key, value in record.items() if key != "sweep"}
