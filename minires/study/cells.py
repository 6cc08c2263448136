"""How cells of the study are computed: a pure function of the cells, their settings and data.

    compute(cells, profile, source, starts) → [Outcome, …]

It reads only the files of the data. The cell's seed decides every random number. So it does not
matter where, when or how often a cell is computed: the record is the same, bit for bit, except for
its seconds and for what says who made it. One seed has the same initial weights, order of images
and dropout at every rate and for every method, so methods can be compared in pairs.

Cells that differ only in seed and rates are `alike`: they can train side by side, as θ (R, P). Then
each is measured alone. On a CPU a call has one cell, and the cores share the calls. A GPU needs
dozens of cells at once to be busy. If one of them diverges, the others train on. Cells that train
side by side influence each other only by rounding: larger products are summed in another order.
The difference is about 1e-7 at first. It grows when a value lies at the kink of a ReLU, where the
gradient jumps. Then the weights go another way, which is equally good.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

from minires import arrays
from minires.arrays import aligned, device_of, to_host, xp_of
from minires.arrays.files import complete
from minires.engine import ops
from minires.kernels import kernels_in_use
from minires.networks.model import ForwardPass
from minires.resampling.averages import average, prefix_averages
from minires.resampling.baselines import EMA, SWAG, isotropic_members
from minires.resampling.moments import Moments
from minires.study.experiment import fingerprint, make_optimizer
from minires.study.grid import MEMBERS, Cell, Profile
from minires.training import loop
from minires.training.metrics import nll
from minires.training.schedules import cyclic, linear

FEW_MEMBERS = 3  # the cheap ensemble has the first 3 members of the large one
EMA_DECAY = 0.99  # an average over about the last 100 updates
SWAG_COLLECTED = 20  # SWAG collects so many θ, evenly over the updates
SWAG_RANK = 10  # columns of SWAG's low-rank part
WATCHED = 64  # the values of so many weights are kept after every update, to check the moments
BINS = 15  # bins of the reliability diagram
AVERAGED = (1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 1000, 2000)  # updates, for a curve
NOISE = tuple(quarter / 4 for quarter in range(9))  # scales of σ, for another curve
NOISE_MEMBERS = 3  # networks sampled at each scale; their scores are averaged
LANDSCAPE_IMAGES = 2_000  # the losses of the portrait are measured on so many images
LINE = tuple(step / 10 - 0.5 for step in range(31))  # positions along the line of the portrait
PLANE = 21  # points along each axis of the plane of the portrait
FILTERS = 128  # the portrait keeps at most so many values of σ for each array
# When ten networks predict, they take so many images at once: then their results fit in the cache.
ENSEMBLE_BATCH = 64


# --- the data -----------------------------------------------------------------------------


class Data(NamedTuple):
    """Images (N, 28, 28, 1) float32 in [−1, 1], labels (N,) int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Source:
    """Where a worker finds the images: in files that all workers share, or by their name.

    folder     of the shared files; a worker that cannot read it loads the data itself
    name       "glyphs" or "mnist"
    train      how many training images (None: all)
    test       how many test images (None: all)
    data_dir   the folder of the MNIST files, on that machine
    sha256     `experiment.fingerprint` of the right data
    inputs     how grey levels are scaled: see `Profile`
    other      what files in MNIST's format are called that are not the original MNIST; else ""
    """

    folder: str
    name: str
    train: int | None
    test: int | None
    data_dir: str | None
    sha256: str
    inputs: str = "[-1, 1]"
    other: str = ""

    def load_dataset(self) -> Any:
        """The images unscaled, uint8; downloaded or made if they are not on disk."""
        from minires import data as data_tools

        sizes = {"train": self.train, "test": self.test}
        return data_tools.load(self.name, data_dir=self.data_dir, progress=False, **sizes)

    def share(self, dataset: Any) -> None:
        """Write the shared files. All workers on this machine map them into the same memory."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        for name, array in _scaled(dataset, self.inputs)._asdict().items():
            with complete(self._file(name)) as file:
                np.save(file, array)

    def remove_shared(self) -> None:
        """Remove the shared files, and their folder if nothing else is in it."""
        for name in Data._fields:
            self._file(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(self.folder).rmdir()

    def data(self) -> Data:
        """The data, loaded once in each process.

        Returns  Data
        Raises   ValueError when this machine has other data of the same name
        """
        return _load(self)

    def _file(self, name):
        return Path(self.folder) / f"{self.sha256[:16]}_{name}.npy"


@lru_cache(maxsize=1)
def _load(source):
    try:
        files = [np.load(source._file(name), mmap_mode="r") for name in Data._fields]
        return Data(*map(np.asarray, files))
    except OSError:  # it is not there, or of another user
        dataset = source.load_dataset()
    found = fingerprint(dataset)
    if found != source.sha256:
        raise ValueError(
            f"{source.name} on this machine has the SHA-256 {found[:16]}…, the sweep's has "
            f"{source.sha256[:16]}…: give the workers the same data, or a folder that all can read"
        )
    return _scaled(dataset, source.inputs)


@lru_cache(maxsize=1)
def _on_device(source, xp):
    return Data(*map(xp.asarray, source.data()))


def _scaled(dataset, inputs):
    """The images of a data set as a network gets them."""
    from minires.data import scale

    train, test = scale(dataset.train_images), scale(dataset.test_images)
    if inputs != "[-1, 1]":
        mean, deviation = -1.0, 2.0
        if inputs == "standardised":  # in float64: MNIST has 47 million values
            mean, deviation = (f(train, dtype=np.float64) for f in (np.mean, np.std))
        for images in (train, test):
            images -= np.float32(mean)
            images /= np.float32(deviation)
    return Data(train, dataset.train_labels, test, dataset.test_labels)


# --- some cells ---------------------------------------------------------------------------


@dataclass
class Start:
    """What a fine-tuning gets from its pre-training: θ (P,), and the scores of this network."""

    theta: np.ndarray
    scores: dict


@dataclass
class Outcome:
    """The result of a cell.

    record        what its file holds
    theta         (P,) after a pre-training, else None
    predictions   (N, classes) of the fine-tuned network in cells with baselines, else None
    """

    record: dict
    theta: np.ndarray | None = None
    predictions: np.ndarray | None = None


def compute(
    cells: list[Cell],
    profile: Profile,
    source: Source,
    starts: list | None = None,
    device: str = "cpu",
) -> list[Outcome]:
    """Train some cells side by side, and measure each; on a CPU on one thread.

    cells     [Cell, …], all `alike`
    profile   Profile: the settings
    source    Source of the data
    starts    for fine-tunings, [Start, …] of the cells; their θ are left as they are
    device    "cpu" or "gpu"
    Returns   [Outcome, …] of the cells. If the loss became infinite, the record has "diverged" with
              the reason, and no scores
    Raises    ValueError when the cells cannot train side by side
    """
    began = time.perf_counter()
    if len({alike(cell, profile) for cell in cells}) != 1:
        names = ", ".join(cell.key for cell in cells)
        raise ValueError(f"compute: cells that differ in more than seed and rates: {names}")
    xp = arrays.module_for(device)
    if xp is np and arrays.get_threads() != 1:
        arrays.set_threads(1)  # the calls are the parallelism
    data = source.data() if xp is np else _on_device(source, xp)
    cohort = Cohort(cells, profile, data)
    with threadpoolctl.threadpool_limits(1, "blas"), warnings.catch_warnings():
        # Weights that diverge overflow first. Training itself notices that.
        warnings.simplefilter("ignore", RuntimeWarning)
        outcomes = _pretrain(cohort) if starts is None else _fine_tune(cohort, starts)
    seconds = (time.perf_counter() - began) / len(cells)
    for cell, outcome in zip(cells, outcomes, strict=True):
        outcome.record = {"cell": asdict(cell), **outcome.record}
        outcome.record["seconds"]["cell"] = seconds
        outcome.record["made"] = made_by(device)
    return outcomes


def made_by(device: str) -> dict[str, str]:
    """Versions, kernels, processor and date: a reader of one number may want to know them.

    device   "cpu" or "gpu"
    """
    from minires import __version__

    return {
        "minires": __version__,
        "numpy": np.__version__,
        "kernels": kernels_in_use() if device == "cpu" else device,
        "processor": arrays.describe_processor(),
        "date": date.today().isoformat(),
    }


def alike(cell: Cell, profile: Profile) -> tuple:
    """What must be the same in cells that train side by side."""
    optimizer = cell.optimizer if cell.is_pretraining else cell.finetune_optimizer
    parts = profile.parts(cell) & {"baselines", "curves"}  # a portrait needs no other training
    return cell.is_pretraining, optimizer, cell.dropout, parts


def work(cell: Cell, profile: Profile, train: int, test: int) -> tuple[float, float]:
    """How much work a cell is: (updates of training, predictions of all test images).

    train, test   the number of training and of test images
    """
    if cell.is_pretraining:
        return profile.epochs * (train // profile.batch), 1
    parts = profile.parts(cell)
    updates, predictions = profile.updates, 3 + MEMBERS
    if "baselines" in parts:
        updates *= 3
        predictions += 2 + MEMBERS * (5 if cell.dropout else 4)
    if "curves" in parts:
        predictions += len(averaged_updates(profile)) + 1 + NOISE_MEMBERS * (len(NOISE) - 2)
    if "portrait" in parts:
        images = (PLANE**2 + len(LINE)) * min(LANDSCAPE_IMAGES, test)
        predictions += (images + len(LINE) * min(LANDSCAPE_IMAGES, train)) / test
    return updates, predictions


def averaged_updates(profile: Profile) -> list[int]:
    """The numbers of updates after which a cell with curves measures the mean so far."""
    return [t for t in AVERAGED if t < profile.updates] + [profile.updates]


class Cohort:
    """Cells that train side by side, on the device where the data is.

    data     the images, on the device that computes
    probes   a Probe for each cell
    lost     {number of a cell, from 0: FloatingPointError} where loss or weights are not finite
    """

    def __init__(self, cells: list[Cell], profile: Profile, data: Data):
        self.cells, self.profile, self.data = cells, profile, data
        self.model = profile.model(cells[0].dropout, data.train_images.shape[1:])
        self.parts = frozenset.union(*map(profile.parts, cells))
        self.probes = [Probe(cell, profile, self.model, data) for cell in cells]
        self.lost = {}

    def train(self, theta: Any, optimizer: Any, updates: int, **options: Any) -> np.ndarray:
        """`loop.train` with the cells' data and streams; θ (R, P) changes in place.

        theta       (R, P)
        optimizer   SGD or Adam, with R rates
        updates     how many
        options     more arguments of `loop.train`
        Returns     the watched weights after every update, (updates, R, watched)
        """
        data, seeds = self.data, [cell.seed for cell in self.cells]
        batch = self.profile.batch
        task = loop.Task(self.model, data.train_images, data.train_labels, batch, seeds, quiet=True)
        stats = xp_of(theta).zeros((len(theta), 0), theta.dtype)  # no batch norm
        options["raise_lost"] = False
        trained = loop.train(task, theta, stats, optimizer, updates, **options)
        self.lost = trained.lost | self.lost  # of several errors of a network the first is kept
        return trained.history

    def tune(self, theta: Any, **options: Any) -> np.ndarray:
        """Fine-tune θ (R, P) in place, each network with its own ℓ₂.

        theta     (R, P)
        options   more arguments of `loop.train`
        """
        rates = np.array([[cell.l2] for cell in self.cells])
        optimizer = make_optimizer(self.cells[0].finetune_optimizer, rates)
        updates = self.profile.updates
        return self.train(theta, optimizer, updates, phase="fine-tuning", **options)

    def outcomes(self, measure: Callable) -> list[Outcome]:
        """`measure(place, probe)` of each cell; for a lost cell a record that says why.

        measure   (place, Probe) → Outcome
        """
        return [self._outcome(measure, place, probe) for place, probe in enumerate(self.probes)]

    def _outcome(self, measure, place, probe):
        # If the error were raised, its traceback would keep the cohort's arrays in memory.
        error = self.lost.get(place)
        if error is None:
            try:
                return measure(place, probe)
            except FloatingPointError as found:
                error = str(found)
        return Outcome({"diverged": str(error), "seconds": {}})


@dataclass
class Probe:
    """Measures the networks of one cell."""

    cell: object
    profile: object
    model: object
    data: Data

    def stream(self, purpose: str) -> np.random.Generator:
        """A random generator of the cell's seed.

        purpose   one of `loop.STREAMS`
        """
        return loop.stream(self.cell.seed, purpose)

    def predict(self, theta: Any) -> Any:
        """Class probabilities of all test images: θ (P,) → (N, C), θ (R, P) → (R, N, C).

        theta   (P,) or (R, P)
        """
        batch = self.model.batch if theta.ndim == 1 else ENSEMBLE_BATCH
        return self.model.predict(theta, self.data.test_images, batch=batch)

    def predict_timed(self, theta: Any) -> tuple:
        """The result of `predict`, and how many seconds it took.

        theta   (P,) or (R, P)
        """
        xp = xp_of(theta)

        def done():
            if xp is not np:
                xp.cuda.get_current_stream().synchronize()
            return time.perf_counter()

        began = done()
        probabilities = self.predict(theta)
        return probabilities, done() - began

    def score(self, probabilities: Any) -> dict[str, float]:
        """Accuracy, NLL, Brier score and ECE of a prediction.

        probabilities   (N, C) of the test images
        """
        return loop.score(probabilities, self.data.test_labels)

    def score_each(self, thetas: list) -> dict[str, list]:
        """Scores of several networks, predicted one after another; each score a list.

        thetas   of (P,)
        """
        return _columns([self.score(self.predict(theta)) for theta in thetas])

    def right(self, probabilities: Any) -> Any:
        """Which test images are classified correctly, (N,) bool.

        probabilities   (N, C) of the test images
        """
        return probabilities.argmax(axis=-1) == self.data.test_labels


def _columns(scores):
    return {name: [row[name] for row in scores] for name in ("accuracy", "nll")}


def _pretrain(cohort):
    first = cohort.cells[0]
    weights = [probe.stream("initial weights") for probe in cohort.probes]
    theta = cohort.model.init(weights, device=device_of(cohort.data.train_images))
    rates = np.array([[cell.l1] for cell in cohort.cells])
    updates = cohort.profile.epochs * (len(cohort.data.train_images) // cohort.profile.batch)
    cohort.train(theta, make_optimizer(first.optimizer, rates), updates)

    def measure(place, probe):
        methods = {"pretrained": probe.score(probe.predict(theta[place]))}
        return Outcome({"methods": methods, "seconds": {}}, to_host(theta[place]))

    return cohort.outcomes(measure)


def _fine_tune(cohort, starts):
    xp = xp_of(cohort.data.train_images)
    start = xp.asarray(np.stack([start.theta for start in starts]))
    theta, recorder = aligned(start.copy()), Recorder(cohort)
    history = cohort.tune(
        theta, moments=recorder.averages(theta), watch=recorder.watched, after_update=recorder
    )
    others = OtherTunings(cohort, start) if "baselines" in cohort.parts else None

    def measure(place, probe):
        found = recorder.of(place), history[:, place], others.of(place) if others else None
        return _measure(probe, starts[place].scores, start[place], theta[place], *found)

    return cohort.outcomes(measure)


def _measure(probe, scores, start, theta, recorder, history, others):
    """The Outcome of one fine-tuned network; `scores` are those of `start`."""
    parts = probe.profile.parts(probe.cell)
    moments, mean = recorder.moments, recorder.moments.mean
    members = moments.sample(MEMBERS, probe.stream("sampled networks"))

    finetuned, finetuned_seconds = probe.predict_timed(theta)
    of_mean, mean_seconds = probe.predict_timed(mean)
    of_members = probe.predict(members)
    ensembles = prefix_averages(of_members)
    predictions = {
        "finetuned": finetuned,
        "mean": of_mean,
        "draw": of_members[0],
        f"ensemble_{FEW_MEMBERS}": ensembles[FEW_MEMBERS - 1],
        f"ensemble_{MEMBERS}": ensembles[MEMBERS - 1],
        "ema": probe.predict(recorder.ema),
    }
    if "baselines" in parts:
        predictions |= _baselines(probe, theta, recorder, others)
    record = {
        "methods": {"pretrained": scores}
        | {name: probe.score(prediction) for name, prediction in predictions.items()},
        "mcnemar": _mcnemar(probe, predictions),
        "seconds": recorder.seconds
        | {"predict_finetuned": finetuned_seconds, "predict_mean": mean_seconds},
    }
    if "curves" in parts:
        record["curves"] = _curves(probe, recorder, of_members, ensembles)
        record["reliability"] = {
            name: _reliability(to_host(predictions[name]), to_host(probe.data.test_labels))
            for name in ("finetuned", "mean", f"ensemble_{MEMBERS}")
        }
        record["moments_check"] = _check_moments(recorder, history)
    if "portrait" in parts:
        record["portrait"] = _portrait(probe, start, theta, moments)
    return Outcome(record, predictions=to_host(finetuned) if "baselines" in parts else None)


class Recorder:
    """Keeps averages and some values of θ (R, P) during fine-tuning; called after every update.

    cohort   whose weights it follows
    """

    def __init__(self, cohort: Cohort):
        shape, updates = (len(cohort.cells), cohort.model.size), cohort.profile.updates
        self.moments = Moments(shape)
        self.stopwatch = Stopwatch(self.moments)
        self.ema = EMA(EMA_DECAY)
        self.swag = None
        if "baselines" in cohort.parts:
            stride = max(1, updates // SWAG_COLLECTED)
            self.swag = SWAG(shape, min(SWAG_RANK, updates // stride), stride)
        curves = "curves" in cohort.parts
        self.averaged = averaged_updates(cohort.profile) if curves else []
        self.means = []
        self.watched = loop.choose_weights(
            cohort.model, WATCHED if curves else 0, np.random.default_rng(0)
        )

    def averages(self, theta: Any) -> list[tuple]:
        """The averages that `loop.train` updates with θ after every update.

        theta   (R, P), the array that training changes in place
        """
        moments = self.stopwatch if xp_of(theta) is np else self.moments
        kept = [moments, self.ema] + ([self.swag.moments] if self.swag else [])
        return [(average, theta) for average in kept]

    def __call__(self, number, theta, loss):
        if self.swag is not None:
            self.swag.collect(theta)
        if number + 1 in self.averaged:
            self.means.append(self.moments.mean_so_far())
        self.stopwatch.stepped = time.perf_counter()

    def of(self, place: int) -> "Recorded":
        """What was kept for one network.

        place   of the network in its cohort
        """
        return Recorded(
            moments=self.moments[place],
            ema=self.ema[place].mean,
            swag=self.swag[place] if self.swag else None,
            averaged=self.averaged,
            means=[mean[place] for mean in self.means],
            watched=self.watched,
            seconds=self.stopwatch.seconds(),
        )


class Recorded(NamedTuple):
    """What `Recorder` kept for one network, θ (P,)."""

    moments: Moments
    ema: np.ndarray
    swag: SWAG | None
    averaged: list
    means: list
    watched: list
    seconds: dict


class Stopwatch:
    """Updates the moments, and measures the time of that and of the rest of a step.

    On a GPU, step and moments are parts of one recorded graph, so nothing can be measured.

    moments   Moments
    """

    def __init__(self, moments: Moments):
        self.moments = moments
        self.stepped = time.perf_counter()  # when the last step ended
        self._steps, self._updates = [], []

    def update(self, theta: Any) -> None:
        """Update the moments, and note the time.

        theta   (R, P)
        """
        began = time.perf_counter()
        self.moments.update(theta)
        self._steps.append(began - self.stepped)
        self._updates.append(time.perf_counter() - began)

    def seconds(self) -> dict[str, float]:
        """{"step": …, "moments": …}, medians; {} if nothing was measured."""
        if not self._steps:
            return {}
        return {"step": median(self._steps), "moments": median(self._updates)}


# --- other methods ------------------------------------------------------------------------


class OtherTunings:
    """Other fine-tunings of the same networks, each with the paper's number of updates.

    cohort   whose networks are tuned again
    start    θ (R, P)
    """

    def __init__(self, cohort: Cohort, start: Any):
        updates = cohort.profile.updates
        length = max(1, updates // MEMBERS)
        self.swa = Moments(start.shape, stride=length)
        self.snapshots = [[] for _ in cohort.cells]  # predictions

        def collect(number, theta, loss):
            if self.swa.count > len(self.snapshots[0]):
                for probe, own, snapshots in zip(cohort.probes, theta, self.snapshots, strict=True):
                    snapshots.append(probe.predict(own))

        theta = aligned(start.copy())
        cohort.tune(
            theta, schedule=cyclic(length), moments=[(self.swa, theta)], after_update=collect
        )
        self.decayed = aligned(start.copy())
        cohort.tune(self.decayed, schedule=linear(updates))

    def of(self, place: int) -> tuple:
        """For one network: θ with a decayed rate, the mean of SWA, predictions of snapshots.

        place   of the network in its cohort
        """
        return self.decayed[place], self.swa[place], self.snapshots[place]


def _baselines(probe, finetuned, recorder, others):
    """Predictions of the other methods, each with the paper's number of updates.

    decayed         the last θ; the rate falls to zero along a line
    swa             the mean of ten θ; each is the end of a cycle of the rate
    snapshot        the ensemble of these ten networks
    swag            ten networks from N(θ̄, diag σ²) of twenty θ, at the constant rate
    swag_low_rank   the same with SWAG's low-rank covariance
    isotropic_10    ten networks with noise that is equally strong within each array
    mc_dropout_10   the fine-tuned network, ten times with dropout on

    Source   Izmailov et al. 2018, arXiv:1803.05407 (SWA); Huang et al. 2017, arXiv:1704.00109,
             and Garipov et al. 2018, arXiv:1802.10026 (snapshots of a cyclic rate); Maddox et
             al. 2019, arXiv:1902.02476 (SWAG); Gal and Ghahramani 2016, arXiv:1506.02142
    """
    last, swa, snapshots = others
    xp = xp_of(finetuned)
    moments, layout = recorder.moments, probe.model.layout.weights
    arrays = [slice(entry.start, entry.start + entry.size) for entry in layout]

    def ensemble(members):
        return average(probe.predict(members))

    def noise():  # the same random numbers for every method that samples networks
        return probe.stream("sampled networks")

    found = {
        "decayed": probe.predict(last),
        "swa": probe.predict(swa.mean),
        "snapshot": average(xp.stack(snapshots)),
        "swag": ensemble(recorder.swag.moments.sample(MEMBERS, noise())),
        "swag_low_rank": ensemble(recorder.swag.sample(MEMBERS, noise())),
        f"isotropic_{MEMBERS}": ensemble(
            isotropic_members(moments.mean, moments.std, arrays, MEMBERS, noise())
        ),
    }
    if probe.cell.dropout:
        passes = [predict_with_dropout(probe, finetuned, rng) for rng in noise().spawn(MEMBERS)]
        found[f"mc_dropout_{MEMBERS}"] = average(xp.stack(passes))
    return found


def predict_with_dropout(probe: Probe, theta: Any, rng: np.random.Generator) -> Any:
    """Class probabilities of the test images from one pass with dropout on, (N, classes).

    probe   Probe of the cell
    theta   (P,)
    rng     random numbers for the dropout
    """
    images, step = probe.data.test_images, probe.model.batch
    forward = ForwardPass(probe.model.layout, theta, mode="train", rng=rng)
    logits = [
        probe.model.apply(images[start : start + step], forward)
        for start in range(0, len(images), step)
    ]
    return ops.softmax(xp_of(images).concatenate(logits))


# --- cells with curves --------------------------------------------------------------------


def _mcnemar(probe, predictions):
    """How many images only one of two networks classifies correctly, for some pairs."""
    right = {name: probe.right(prediction) for name, prediction in predictions.items()}

    def only(a, b):
        return [int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum())]

    small, large = f"ensemble_{FEW_MEMBERS}", f"ensemble_{MEMBERS}"
    found = {name: only("finetuned", name) for name in ("mean", small, large)}
    return found | {f"mean_vs_{small}": only("mean", small)}


def _curves(probe, recorder, of_members, ensembles):
    """Scores against the ensemble size, the number of averaged updates, and the noise scale."""

    def noisy(scale):
        """The mean scores of a few networks, with the same ε at every scale."""
        if scale == 1:
            predictions = of_members[:NOISE_MEMBERS]
        else:
            rng = probe.stream("sampled networks")
            members = recorder.moments.sample(NOISE_MEMBERS, rng, scale)
            # At scale 0 all of them are the mean model.
            predictions = probe.predict(members if scale else members[:1])
        scores = _columns([probe.score(prediction) for prediction in predictions])
        return {name: float(np.mean(values)) for name, values in scores.items()}

    return {
        "ensemble": {
            "members": list(range(1, MEMBERS + 1)),
            **_columns([probe.score(ensemble) for ensemble in ensembles]),
        },
        "updates": {"updates": recorder.averaged, **probe.score_each(recorder.means)},
        "noise": {"scale": list(NOISE), **_columns([noisy(scale) for scale in NOISE])},
    }


def _reliability(probabilities, labels):
    """Mean confidence, accuracy and count in equal bins of confidence, closed on the right."""
    confidence = probabilities.max(axis=-1).astype(np.float64)
    right = probabilities.argmax(axis=-1) == labels
    bin_of = np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")
    count = np.bincount(bin_of, minlength=BINS)

    def mean(values):
        sums = np.bincount(bin_of, weights=values, minlength=BINS)
        return [
            float(total / size) if size else None for total, size in zip(sums, count, strict=True)
        ]

    return {"confidence": mean(confidence), "accuracy": mean(right), "count": count.tolist()}


def _check_moments(recorder, history):
    """The largest relative errors of the running moments, compared with all kept values."""
    history = history.astype(np.float64)

    def error(found, exact):
        gap = np.abs(to_host(found)[recorder.watched] - exact)
        return float((gap / np.where(exact == 0, 1, np.abs(exact))).max())

    return {
        "weights": len(recorder.watched),
        "mean": error(recorder.moments.mean, history.mean(axis=0)),
        "variance": error(recorder.moments.variance, history.var(axis=0)),
    }


# --- the portrait of one cell -------------------------------------------------------------


def _portrait(probe, pretrained, finetuned, moments):
    """How much the weights move, and the loss around the three networks."""
    xp, mean = xp_of(finetuned), moments.mean
    sigma = to_host(mean), to_host(moments.std)
    first = [array[:LANDSCAPE_IMAGES] for array in probe.data]

    def losses(thetas, images, labels):
        found = []
        for start in range(0, len(thetas), MEMBERS):  # ten at once, so that they share the images
            networks = xp.stack(thetas[start : start + MEMBERS])
            found += nll(
                probe.model.predict(networks, images, batch=ENSEMBLE_BATCH), labels
            ).tolist()
        return found

    train_loss = partial(losses, images=first[0], labels=first[1])
    test_loss = partial(losses, images=first[2], labels=first[3])
    line = [point_on_line(position, pretrained, finetuned, mean) for position in LINE]
    return {
        "sigma": [_sigma(entry, *sigma) for entry in probe.model.layout.weights],
        "line": {
            "position": list(LINE),
            "train_loss": train_loss(line),
            "test_loss": test_loss(line),
        },
        "plane": plane_of(pretrained, finetuned, mean, test_loss),
    }


def _sigma(entry, mean, std):
    """How much each filter of one array moves, and the whole array."""
    sigma = entry.view(std).astype(np.float64)
    squares = np.square(sigma).reshape(-1, sigma.shape[-1])
    filters = np.sqrt(squares.mean(axis=0))
    if len(filters) > FILTERS:
        filters = np.quantile(filters, np.linspace(0, 1, FILTERS))
    size = np.sqrt(np.square(entry.view(mean), dtype=np.float64).mean())
    return {
        "name": entry.name,
        "filters": filters.tolist(),
        "relative": float(np.sqrt(squares.mean()) / size) if size else None,
        "quantiles": np.quantile(sigma, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist(),
    }


def point_on_line(position: float, *stations: Any) -> Any:
    """A point on the straight lines from station to station; beyond the ends the line goes on.

    position   0, 1, 2, … are the stations; 0.5 is half-way between the first two
    stations   vectors
    """
    leg = int(np.clip(np.floor(position), 0, len(stations) - 2))
    start, end = stations[leg : leg + 2]
    return start + (end - start) * np.float32(position - leg)


def plane_of(pretrained: Any, finetuned: Any, mean: Any, losses: Callable) -> dict:
    """The loss on the plane through three networks.

    The first axis goes from the pre-trained to the fine-tuned network. The second is at a right
    angle to it, towards the mean. Distances are Euclidean, in θ.

    pretrained, finetuned, mean   (P,) the weights of the three
    losses                        a function: a list of θ (P,) → a list of losses
    Returns                       {"x", "y": positions, "test_loss": [y][x], "points": {name: [x,
                                  y]}}
    """
    across = (finetuned - pretrained).astype(np.float64)
    width = math.sqrt(across @ across)
    across /= width
    up = (mean - pretrained).astype(np.float64)
    along = float(up @ across)
    up -= along * across
    height = math.sqrt(up @ up)
    up /= height
    points = {"pretrained": (0.0, 0.0), "finetuned": (width, 0.0), "mean": (along, height)}
    low, high = np.min(list(points.values()), axis=0), np.max(list(points.values()), axis=0)
    margin = (high - low).max() / 2
    x, y = np.linspace(low - margin, high + margin, PLANE).T.tolist()
    test_loss = [
        losses([(pretrained + a * across + b * up).astype(pretrained.dtype) for a in x]) for b in y
    ]
    return {
        "x": x,
        "y": y,
        "test_loss": test_loss,
        "points": {name: [float(a), float(b)] for name, (a, b) in points.items()},
    }
