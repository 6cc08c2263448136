"""One experiment: train, fine-tune with moments, compare; for one seed or several.

Each seed goes through three stages, which leave these files in the folder of results:

    seed_0_pretrained.npz   θ and batch-norm statistics after training
    seed_0_finetuned.npz    the same after fine-tuning, and every value of a few weights
    seed_0_moments.npz      mean and variance of θ over the fine-tuning updates
    seed_0_records.json     the scores of all methods

A stage is not done again when its files exist. So after Ctrl-C, a crash or `kill -9`, the work goes
on from the last finished stage. At the end `results.json` and the picture are written.
"""

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import text, to_device, to_host
from minires.arrays.files import load_arrays, load_json, save_arrays, save_json
from minires.arrays.limits import check_disk, check_memory
from minires.arrays.results import check, settle, tidy
from minires.kernels import kernels_in_use
from minires.networks import NETWORKS
from minires.networks.running_statistics import batch_norm_policies
from minires.resampling.averages import average
from minires.resampling.moments import Moments
from minires.study.grid import ADAM_RATE
from minires.training import loop
from minires.training.optimizers import SGD, Adam

METRICS = ("accuracy", "nll", "brier", "ece")
FINETUNED = ("finetuned", 1, None)  # method, members, batch-norm policy: what all are compared to
CONFIG, FORMAT = "config.json", 2  # in format 2 every file of a folder names its settings
SIDE_BY_SIDE = 10  # so many sampled networks predict at a time
OWN_FILES = (CONFIG, "results.json", "figure.png", "seed_*")
WATCHED = 6  # the values of so many weights are kept after every update, for the picture
FEW_MEMBERS = 3  # the paper's cheap ensemble; it is compared with that of all members
STATISTICS_BATCHES = 20  # "recomputed" batch-norm statistics are measured on so many batches

# A setting that is not given is chosen so that the network learns well from 28×28 pixels, within
# minutes on two cores. SETTINGS replace those in USUAL.
USUAL = {"width": None, "l1": 0.2, "l2": 0.15, "momentum": 0.0, "dropout": 0.5}
SETTINGS = {
    "mobilenet_v1": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
    "mobilenet_v2": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
    "inception_v3": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
}
# The momentum of batch norm's running statistics. The networks' own 0.99 averages over a hundred
# updates. That is too slow for a short training: meanwhile the weights change too much.
STATISTICS_MOMENTUM = 0.9
GLYPHS_L2 = 0.25  # LeNet's ℓ₂ on glyphs, within the paper's range; there averaging helps visibly


@dataclass(frozen=True)
class Config:
    """Everything that a result depends on. A value of None is chosen for the network.

    data                 "glyphs" or "mnist"
    network              a name in `minires.networks.NETWORKS`
    width                factor on the number of channels, for a network that has a `width`
    l1, l2               ℓ₁ and ℓ₂, the learning rates of training and of fine-tuning
    momentum             of SGD, in both phases
    epochs               of training
    updates              of fine-tuning; about an epoch in the paper
    batch                examples in a mini-batch
    dropout              share of hidden units dropped, in both phases
    optimizer            of training, "sgd" or "adam"
    finetune_optimizer   of fine-tuning, likewise
    members              networks in the large ensemble
    seed, seeds          the first seed, and how many
    train, test          how many images (None: all that the data set has)
    device               "cpu" or "gpu"; they have the same weights and batches, but other dropout
                         masks
    """

    data: str = "glyphs"
    network: str = "lenet"
    width: float | None = None
    l1: float | None = None
    l2: float | None = None
    momentum: float | None = None
    epochs: int = 2
    updates: int = 500
    batch: int = 128
    dropout: float | None = None
    optimizer: str = "sgd"
    finetune_optimizer: str = "sgd"
    members: int = 10
    seed: int = 0
    seeds: int = 1
    train: int | None = None
    test: int | None = None
    device: str = "cpu"

    def __post_init__(self):
        if self.network not in NETWORKS:
            raise ValueError(f"network is {self.network!r}, there are {', '.join(NETWORKS)}")
        for name, value in self._chosen().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("epochs", "updates", "batch", "members", "seeds"):
            least = 0 if name == "epochs" else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")
        for name in ("l1", "l2"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive rate")
        if self.device not in ("cpu", "gpu"):
            raise ValueError(f"device is {self.device!r}, there are cpu and gpu")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        for name in ("dropout", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        if self.width is not None:
            if "width" not in inspect.signature(NETWORKS[self.network]).parameters:
                raise ValueError(f"width is {self.width}, but {self.network} has none to choose")
            if not 0 < self.width < np.inf:
                raise ValueError(f"width is {self.width}, expected a positive factor")
        for name in ("optimizer", "finetune_optimizer"):
            if getattr(self, name) not in ("sgd", "adam"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, there are sgd, adam")

    def _chosen(self):
        """The values for settings that were not given."""
        chosen = USUAL | SETTINGS.get(self.network, {})
        if self.data == "glyphs" and self.network not in SETTINGS:
            chosen["l2"] = GLYPHS_L2
        if self.optimizer == "adam":
            chosen["l1"] = ADAM_RATE
        if self.finetune_optimizer == "adam":
            chosen["l2"] = ADAM_RATE
        return chosen

    def model(self, input_shape: tuple) -> Any:
        """The network for images of one shape.

        input_shape   (H, W, C)
        """
        options = {"dropout": self.dropout, "input_shape": input_shape, "classes": 10}
        if self.width is not None:  # the networks with batch norm
            options |= {"width": self.width, "momentum": STATISTICS_MOMENTUM}
        return NETWORKS[self.network](**options)


def make_optimizer(name: str, rate: float, momentum: float = 0.0) -> SGD | Adam:
    """The optimizer of a name.

    name       "sgd", or "adam" as in TensorFlow 1.8
    rate       ℓ, its learning rate
    momentum   of SGD; Adam ignores it
    """
    return SGD(rate, momentum) if name == "sgd" else Adam(rate)


def fingerprint(dataset: Any) -> str:
    """SHA-256 over all images and labels of a data set; with `--resume` it must be the same."""
    digest = hashlib.sha256()
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        array = getattr(dataset, name)
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


# --- the folder ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """The folder of an experiment; with path None nothing is kept.

    path   a folder held by `locked_folder`, or None
    run    a code for the settings. Every file carries it, so that files of another experiment are
           noticed
    """

    path: Path | None = None
    run: str = ""

    def file(self, name: str) -> Path | None:
        """The path of a file in the folder, or None.

        name   of the file
        """
        return None if self.path is None else self.path / name

    def has(self, name: str) -> bool:
        """Whether the folder has a finished file of that name.

        name   of the file
        """
        return self.path is not None and (self.path / name).exists()

    def save(self, name: str, **arrays: Any) -> None:
        """Write a stage.

        name     of the file
        arrays   by name
        """
        if self.path is not None:
            save_arrays(self.file(name), run=np.array(self.run), **arrays)

    def load(self, name: str, **shapes: tuple) -> dict:
        """Read a stage; ValueError when it is damaged or belongs to another experiment.

        name      of the file
        shapes    that its arrays must have, by name
        Returns   {name: array}
        Raises    ValueError when it is damaged or belongs to another experiment
        """
        arrays = load_arrays(self.file(name), "run", shapes=shapes)
        self.own(name, str(arrays.pop("run")))
        return arrays

    def own(self, name: str, run: str) -> None:
        """Check that a file is of this experiment.

        name     of the file
        run      the code that the file carries
        Raises   ValueError when it is of another one
        """
        if run != self.run:
            raise ValueError(
                f"{self.file(name)} belongs to another run: remove it, it will be made again"
            )


def open_folder(
    path: Path, config: Config, model: Any, resume: bool = False, data: str | None = None
) -> Folder:
    """Check that a folder is right for this experiment, then write its config.json.

    path     held by `locked_folder`
    config   Config
    model    the network; its size tells how much space the results need
    resume   whether to go on with an earlier run of the same settings
    data     the `fingerprint` of the data
    Raises   FileExistsError when the folder holds a run and `resume` is off, or stages without
             their settings; ValueError when that run had other settings, data or kernels; OSError
             when the disk is too full
    """
    if (path / CONFIG).exists():
        if not resume:
            raise FileExistsError(
                f"{path} holds an earlier run: add --resume to go on with it, or name another "
                "folder with --out"
            )
    elif theirs := sorted(p.name for n in OWN_FILES for p in path.glob(n) if p.suffix != ".part"):
        raise FileExistsError(
            f"{path} holds {', '.join(theirs[:3])}, but no {CONFIG} that says what it belongs to: "
            "name another folder with --out"
        )
    settings = {
        "format": FORMAT,
        **asdict(config),
        "data_sha256": data,
        "kernels": kernels_in_use(),
    }
    settle(path, CONFIG, settings, free=("seeds",), write=False)
    # θ and one copy in float32, and the moments' 20 bytes a weight, for each seed.
    done = sum(path_.stat().st_size for path_ in path.glob("seed_*.npz"))
    check_disk(path, -done, 28 * model.size, config.seeds, "--seeds")
    tidy(path, *OWN_FILES)
    settle(path, CONFIG, settings, free=("seeds",))
    same = json.dumps({k: v for k, v in settings.items() if k != "seeds"}, sort_keys=True)
    return Folder(path, hashlib.sha256(same.encode()).hexdigest()[:16])


def check_members(config: Config, model: Any, dataset: Any) -> None:
    """Check, before anything is trained, that the ensemble fits into memory.

    config   Config
    model    the network
    Raises   MemoryError, which names a number of members that would fit
    """
    images = 784 * 4 * (len(dataset.train_images) + len(dataset.test_images))
    each = 4 * model.size + 8 * len(dataset.test_images) * model.classes
    check_memory(images + 60 * model.size, each, config.members, "--members")


# --- the stages ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    """What all stages of all seeds share.

    config         Config
    model          the network
    train_images   (N, 28, 28, 1) float32, on the device, like train_labels and test_images
    test_labels    on the host
    folder         Folder
    quiet          no progress bars
    """

    config: Config
    model: object
    train_images: object
    train_labels: object
    test_images: object
    test_labels: np.ndarray
    folder: Folder
    quiet: bool

    def to_device(self, array: Any) -> Any:
        """An array where this experiment computes.

        array   on any device
        """
        return to_device(array, self.config.device)

    def predict(self, theta: Any, stats: Any, what: str) -> np.ndarray:
        """Class probabilities of the test images, on the host.

        theta   (P,) or (R, P)
        stats   (S,) or (R, S)
        what    the text beside the progress bar
        """
        theta, stats = self.to_device(theta), self.to_device(stats)
        return loop.predict(self.model, theta, self.test_images, stats, self.quiet, what)

    def train(
        self, do: Callable, *vectors: Any, phase: str, updates: int, seed: int, **options: Any
    ) -> Any:
        """`loop.train` or `loop.fine_tune` (`do`) by this experiment's data and settings.

        do        `loop.train` or `loop.fine_tune`
        phase     "training" or "fine-tuning"
        updates   how many
        seed      of the order of images and of dropout
        vectors   θ and the batch-norm statistics, changed in place
        options   more arguments of `do`
        """
        config, tuning = self.config, phase == "fine-tuning"
        optimizer = make_optimizer(
            config.finetune_optimizer if tuning else config.optimizer,
            config.l2 if tuning else config.l1,
            config.momentum,
        )
        data = self.train_images, self.train_labels
        task = loop.Task(self.model, *data, config.batch, seed, self.quiet)
        return do(task, *vectors, optimizer, updates, **options)


def run(config: Config, dataset: Any, folder: Folder, quiet: bool = False) -> dict:
    """All stages for all seeds.

    config    Config
    dataset   a data_tools.Dataset of uint8 images
    folder    Folder
    quiet     no progress bars
    Returns   {"config": …, "records": [{"seed", "method", "members", accuracy, nll, …}, …]}
    Raises    FloatingPointError when training diverges; ValueError when a file in the folder is
              damaged, or of another run
    """
    from minires.data import scale  # the command's data; the library itself needs none

    device_arrays = [
        to_device(array, config.device)
        for array in (
            scale(dataset.train_images),
            dataset.train_labels,
            scale(dataset.test_images),
        )
    ]
    model = config.model(dataset.train_images.shape[1:])
    experiment = Experiment(config, model, *device_arrays, dataset.test_labels, folder, quiet)
    records = []
    for seed in range(config.seed, config.seed + config.seeds):
        records += run_seed(experiment, seed)
    results = {"config": asdict(config), "records": records}
    if folder.path is not None:
        save_json(folder.file("results.json"), results)
    return results


def run_seed(experiment: Experiment, seed: int) -> list:
    """The three stages of one seed; finished ones are read from the folder.

    experiment   Experiment
    seed         decides the weights, the order of images, dropout and noise
    Returns      the records of the seed
    """
    name, folder = f"seed_{seed}_records.json", experiment.folder
    if folder.has(name):
        return load_records(folder, name, seed)
    pretrained = pretrain(experiment, seed)
    finetuned, moments = fine_tune(experiment, seed, pretrained)
    records = compare(experiment, seed, pretrained, finetuned, moments)
    if folder.path is not None:
        save_json(folder.file(name), {"run": folder.run, "seed": seed, "records": records})
    return records


def load_records(folder: Folder, name: str, seed: int) -> list:
    """Read the records of a finished seed.

    folder   Folder
    name     of the file in it
    seed     the seed that the records must have
    Raises   ValueError, which names the file, when it is damaged or of another run or seed
    """
    path = folder.file(name)
    content = load_json(path)
    scores = dict.fromkeys(METRICS, is_score)
    record = {"seed": int, "method": is_method, "members": int, "batch_norm?": str, **scores}
    check(path, content, {"run": str, "seed": int, "records": [record]})
    folder.own(name, content["run"])
    seeds = {content["seed"], *(record["seed"] for record in content["records"])}
    methods = {(record["method"], record["members"]) for record in content["records"]}
    if seeds != {seed} or not {("pretrained", 1), FINETUNED[:2], ("mean", 1)} <= methods:
        raise ValueError(f"{path} does not hold the records of seed {seed}: remove it")
    return content["records"]


def pretrain(experiment: Experiment, seed: int) -> dict:
    """Train from initial weights, or read the result from the folder.

    experiment, seed   as in `run_seed`
    Returns            {"theta": (P,), "stats": (S,)} on the host
    """
    model, config = experiment.model, experiment.config
    folder, name = experiment.folder, f"seed_{seed}_pretrained.npz"
    if folder.has(name):
        return folder.load(name, theta=(model.size,), stats=(model.stats_size,))
    theta = model.init(loop.stream(seed, "initial weights"), device=config.device)
    stats = model.init_stats(device=config.device)
    updates = config.epochs * (len(experiment.train_images) // config.batch)
    experiment.train(loop.train, theta, stats, phase="training", updates=updates, seed=seed)
    found = {"theta": to_host(theta), "stats": to_host(stats)}
    folder.save(name, **found)
    return found


def fine_tune(experiment: Experiment, seed: int, start: dict) -> tuple:
    """Fine-tune with moments, or read the result from the folder.

    experiment, seed   as in `run_seed`
    start     what `pretrain` returned
    Returns   {"theta", "stats", "mean_stats", "watched", "history"}, and the Moments of θ
    """
    model, config, folder = experiment.model, experiment.config, experiment.folder
    name, moments_name = f"seed_{seed}_finetuned.npz", f"seed_{seed}_moments.npz"
    if folder.has(name) and folder.has(moments_name):
        return load_finetuned(experiment, name, moments_name)
    theta, stats = (experiment.to_device(start[key].copy()) for key in ("theta", "stats"))
    watched = loop.choose_weights(model, WATCHED, np.random.default_rng(0))
    moments, moments_of_stats, history = experiment.train(
        loop.fine_tune, theta, stats, phase="fine-tuning", updates=config.updates, seed=seed,
        watch=watched,
    )  # fmt: skip
    if folder.path is not None:
        moments.save(folder.file(moments_name))
    found = {
        "theta": to_host(theta),
        "stats": to_host(stats),
        "mean_stats": to_host(moments_of_stats.mean),
        "watched": np.array(watched),
        "history": history,
    }
    folder.save(name, **found)
    return found, moments


def load_finetuned(experiment: Experiment, name: str, moments_name: str) -> tuple:
    """Read the result of a fine-tuning.

    experiment           Experiment
    name, moments_name   its two files
    Returns              as `fine_tune`
    Raises               ValueError, which names a file, when the files do not fit each other
    """
    model, config, folder = experiment.model, experiment.config, experiment.folder
    found = folder.load(
        name,
        theta=(model.size,),
        stats=(model.stats_size,),
        mean_stats=(model.stats_size,),
        history=(config.updates, WATCHED),
    )
    watched, history = found.get("watched", np.array([])), found["history"]
    whole = watched.dtype.kind == "i" and watched.shape == (WATCHED,)
    if not whole or not ((watched >= 0) & (watched < model.size)).all():
        raise ValueError(f"{folder.file(name)}: `watched` does not hold numbers of weights")
    if not np.array_equal(history[-1], found["theta"][watched]):
        raise ValueError(f"{folder.file(name)}: its history does not end with theta")
    moments = Moments.load(folder.file(moments_name), config.device)
    mean = to_host(moments.mean) if moments.shape == (model.size,) and moments.count else None
    same = mean is not None and np.allclose(mean[watched], history.mean(axis=0), 1e-4, 1e-5)
    if not same or moments.count != config.updates:
        raise ValueError(
            f"{folder.file(moments_name)} does not hold the moments of {name}: remove both files, "
            "they will be made again"
        )
    return found, moments


def compare(
    experiment: Experiment, seed: int, pretrained: dict, finetuned: dict, moments: Moments
) -> list:
    """Score every method on the test images.

    experiment, seed   as in `run_seed`
    pretrained         what `pretrain` returned
    finetuned          what `fine_tune` returned, with
    moments            the Moments of θ
    Returns            the records of the seed
    """
    config, records = experiment.config, []

    def record(method, members, probabilities, policy=None):
        if np.isnan(probabilities).any():
            raise FloatingPointError(
                f"{label_of(method, members, policy)}: predictions are not numbers: lower --l1 or "
                f"--l2, now {config.l1} and {config.l2}"
            )
        scores = loop.score(probabilities, experiment.test_labels)
        # Only networks with batch norm have a choice of policies.
        named = {"batch_norm": policy} if policy else {}
        records.append({"seed": seed, "method": method, "members": members, **named, **scores})

    def predict(theta, stats, what):
        return experiment.predict(theta, stats, f"{what} (seed {seed})")

    record("pretrained", 1, predict(pretrained["theta"], pretrained["stats"], "pre-trained"))
    record("finetuned", 1, predict(finetuned["theta"], finetuned["stats"], "fine-tuned"))
    for policy, stats in statistics_of(experiment, seed, finetuned, moments.mean).items():
        record("mean", 1, predict(moments.mean, stats, "mean model"), policy)
    members = moments.sample(config.members, loop.stream(seed, "sampled networks"))
    for policy, stats in statistics_of(experiment, seed, finetuned, members).items():
        predictions = np.concatenate([  # ten at a time, so that memory does not grow with members
            predict(members[some], stats[some], f"{config.members} sampled networks")
            for some in (slice(k, k + SIDE_BY_SIDE) for k in range(0, len(members), SIDE_BY_SIDE))
        ])  # fmt: skip
        record("draw", 1, predictions[0], policy)
        for size in sorted({min(FEW_MEMBERS, config.members), config.members}):
            record("ensemble", size, average(predictions[:size]), policy)
    return records


def statistics_of(experiment: Experiment, seed: int, finetuned: dict, theta: Any) -> dict:
    """Batch-norm statistics for resampled weights, one set for each policy.

    experiment, seed   as in `run_seed`
    finetuned          what `fine_tune` returned
    theta     (P,), or (R, P)
    Returns   {policy: (S,) or (R, S)}; one policy, None, for a network without batch norm
    """
    model, lead = experiment.model, theta.shape[:-1]
    if not model.stats_size:
        return {None: model.init_stats(*lead)}
    images = experiment.train_images
    order = loop.batches(
        len(images), experiment.config.batch, loop.stream(seed, "statistics order")
    )
    chosen = itertools.islice(order, STATISTICS_BATCHES)
    looks = (images[experiment.to_device(batch)] for batch in chosen)
    averaged, last = (
        experiment.to_device(np.broadcast_to(finetuned[key], (*lead, model.stats_size)).copy())
        for key in ("mean_stats", "stats")
    )
    return batch_norm_policies(model, theta, averaged, last, looks)


# --- the table ----------------------------------------------------------------------------


NAMES = {
    "pretrained": "pre-trained",
    "finetuned": "fine-tuned",
    "mean": "mean model",
    "draw": "1 sampled network",
    "ensemble": "ensemble",
}


def is_score(value: object) -> bool:
    """a number from 0 to a million

    No metric is negative, and no loss is larger: a probability counts as the smallest float at
    least. Means and percentages of such numbers stay finite.

    value   whatever stands in its place
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= 1e6


def is_method(name: object) -> bool:
    """the name of a method

    name   whatever stands in its place
    """
    return isinstance(name, str) and name in NAMES


def label_of(method: str, members: int, policy: str | None) -> str:
    """The name of a method in tables and pictures.

    method    a key of `NAMES`
    members   how many networks
    policy    of the batch-norm statistics, or None
    """
    name = f"ensemble of {members}" if method == "ensemble" else NAMES[method]
    return f"{name}, {policy}" if policy else name


def collect(records: list) -> dict:
    """{(method, members, batch-norm policy): {metric: array over seeds}}, seeds in order."""
    table = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        key = record["method"], record["members"], record.get("batch_norm")
        row = table.setdefault(key, {})
        for metric in METRICS:
            row.setdefault(metric, []).append(record[metric])
    return {key: {m: np.array(v) for m, v in row.items()} for key, row in table.items()}


# Metric, heading, factor and digits of each column.
COLUMNS = (
    ("accuracy", "accuracy %", 100, 2),
    ("nll", "NLL", 1, 4),
    ("brier", "Brier", 1, 4),
    ("ece", "ECE %", 100, 2),
)


def table(records: list) -> str:
    """The results as text: mean ± standard deviation over seeds, and in the next row Δ.

    Δ is the difference to the fine-tuned network of the same seed: its mean ± standard deviation
    over seeds (ddof 1). Accuracy and ECE are in per cent.
    """
    rows = collect(records)
    seeds = len(next(iter(rows.values()))["accuracy"])
    reference = rows[FINETUNED]
    lines = []
    for key, row in rows.items():
        scores = [spread_text(row[m] * factor, digits) for m, _, factor, digits in COLUMNS]
        lines.append([label_of(*key), *scores])
        if key != FINETUNED:
            gaps = [
                spread_text((row[m] - reference[m]) * factor, digits, "+")
                for m, _, factor, digits in COLUMNS
            ]
            lines.append(["  Δ", *gaps])
    heads = ["method", *(heading for _, heading, _, _ in COLUMNS)]
    spread = (
        f"{seeds} seeds, ± standard deviation over them (ddof 1)"
        if seeds > 1
        else "one seed, so no spread"
    )
    notes = [f"{spread}; Δ: difference to fine-tuned, same seed"]
    if any(policy for _, _, policy in rows):
        notes.append(
            "batch-norm statistics: averaged like the weights, recomputed on training images, or "
            "those of the last update"
        )
    return "\n".join([text.table(heads, [*lines, None]), *notes])


def spread_text(values: np.ndarray, digits: int, sign: str = "") -> str:
    """Mean ± standard deviation (ddof 1) as text; only the mean of a single value.

    values   (seeds,)
    digits   after the point
    sign     "+": write it for positive values too
    """
    mean = f"{values.mean():{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
