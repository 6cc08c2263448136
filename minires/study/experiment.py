"""One experiment: train, fine-tune with moments, compare; for one seed or several.

Each seed goes through three stages, and each stage leaves one file in the folder of results:

    seed_0_pretrained.npz   θ and statistics after training
    seed_0_finetuned.npz    the same after fine-tuning, and the life of a few weights
    seed_0_moments.npz      mean and variance of θ over the fine-tuning updates
    seed_0_records.json     what the methods scored

A stage whose file is there is not done again, so a run that was stopped, however rudely, goes
on where it was. At the end `results.json`, and the picture.
"""

import hashlib
import inspect
import itertools
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minires.arrays import to_device, to_host
from minires.arrays.files import load_arrays, load_json, save_arrays, save_json
from minires.networks import NETWORKS
from minires.networks.running_statistics import batch_norm_policies
from minires.resampling.averages import average
from minires.resampling.moments import Moments
from minires.training import loop
from minires.training.optimizers import SGD, Adam

METRICS = ("accuracy", "nll", "brier", "ece")
OWN_PART = re.compile(r"(config\.json|results\.json|figure\.png|seed_\d+_\w+\.\w+)\.\d+\.part")
WATCHED = 6  # weights whose life is drawn
SMALL_ENSEMBLE = 3  # the paper's cheap ensemble, beside that of all members
STATISTICS_BATCHES = 20  # training batches from which "recomputed" measures batch norm


ADAM_RATE = 1e-3  # its default in TensorFlow 1.8

# What is not said is chosen for the network: settings under which it learns well from 28×28
# pixels, in minutes on two cores. Those in SETTINGS replace those in USUAL.
USUAL = {"width": None, "l1": 0.2, "l2": 0.15, "momentum": 0.0, "dropout": 0.5}
SETTINGS = {
    "mobilenet_v1": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
    "mobilenet_v2": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
    "inception_v3": {"width": 0.25, "l1": 0.05, "l2": 0.05, "momentum": 0.9, "dropout": 0.2},
}
# Batch norm's running statistics. The networks' own 0.99 remembers a hundred updates; in runs as
# short as these the weights have moved on by then.
STATISTICS_MOMENTUM = 0.9
GLYPHS_L2 = 0.25  # LeNet's ℓ₂ there; both lie within the paper's range, where averaging shows


@dataclass(frozen=True)
class Config:
    """Everything that a result depends on. What is None is chosen for the network.

    data                 "glyphs" or "mnist"
    network              a name in `minires.networks.NETWORKS`
    width                what multiplies the channels of a network that has a `width`
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
    device               "cpu" or "gpu": the same weights and batches, other dropout masks
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
        """The values of what was left open."""
        chosen = USUAL | SETTINGS.get(self.network, {})
        if self.data == "glyphs" and self.network not in SETTINGS:
            chosen["l2"] = GLYPHS_L2
        if self.optimizer == "adam":
            chosen["l1"] = ADAM_RATE
        if self.finetune_optimizer == "adam":
            chosen["l2"] = ADAM_RATE
        return chosen

    def model(self, input_shape):
        """The network of this configuration for images of one shape."""
        options = {"dropout": self.dropout, "input_shape": input_shape, "classes": 10}
        if self.width is not None:  # the networks with batch norm
            options |= {"width": self.width, "momentum": STATISTICS_MOMENTUM}
        return NETWORKS[self.network](**options)


def make_optimizer(name, rate, momentum=0.0):
    """SGD at a rate; or Adam, as in TensorFlow 1.8, which knows no momentum of this kind."""
    return SGD(rate, momentum) if name == "sgd" else Adam(rate)


def fingerprint(dataset):
    """SHA-256 over all images and labels: what a resumed run must find again."""
    digest = hashlib.sha256()
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        array = getattr(dataset, name)
        digest.update(f"{name} {array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class Folder:
    """Where an experiment keeps its stages, or nowhere.

    path     a folder, made if need be; None keeps nothing
    config   the Config that belongs to it
    resume   go on with a folder that holds an earlier run of the same configuration
    data     the `fingerprint` of the data
    Raises   FileExistsError when it holds a run and `resume` is off, or stages without their
             settings; ValueError when that run had other settings or other data
    """

    def __init__(self, path, config, resume=False, data=None):
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        settings = self.path / "config.json"
        now = asdict(config) | {"data_sha256": data}
        if settings.exists():
            if not resume:
                raise FileExistsError(
                    f"{self.path} holds an earlier run: add --resume to go on with it, or name "
                    "another folder with --out"
                )
            before = load_json(settings)
            # More seeds are more of the same: those done already count.
            changed = [n for n in now if n != "seeds" and before.get(n) != now[n]]
            if changed:
                what = ", ".join(f"{n} was {before.get(n)!r}, now {now[n]!r}" for n in changed)
                raise ValueError(f"{self.path} holds a run with other settings ({what})")
        elif any(self.path.glob("seed_*.npz")):
            raise FileExistsError(
                f"{self.path} holds stages of a run, but not the config.json that says which: "
                "name another folder with --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for unfinished in self.path.glob("*.part"):  # a killed run cannot tidy up after itself
            if OWN_PART.fullmatch(unfinished.name):
                unfinished.unlink()
        save_json(settings, now)

    def file(self, name):
        """The path of a file here, or None."""
        return None if self.path is None else self.path / name

    def has(self, name):
        """Whether a finished file of that name is here."""
        return self.path is not None and (self.path / name).exists()


def run(config, dataset, folder, quiet=False):
    """All stages for all seeds.

    config    Config
    dataset   a data_tools.Dataset of uint8 images
    folder    Folder
    Returns   {"config": …, "records": [{"seed", "method", "members", accuracy, nll, …}, …]}
    """
    from minires.data import scale  # the command's data; the library itself needs none

    images = scale(dataset.train_images), scale(dataset.test_images)
    train_images, test_images = (to_device(array, config.device) for array in images)
    train_labels = to_device(dataset.train_labels, config.device)
    split = train_images, train_labels, test_images, dataset.test_labels
    model = config.model(dataset.train_images.shape[1:])
    records = []
    for seed in range(config.seed, config.seed + config.seeds):
        records += _run_seed(config, model, seed, split, folder, quiet)
    results = {"config": asdict(config), "records": records}
    if folder.path is not None:
        save_json(folder.file("results.json"), results)
    return results


def _run_seed(config, model, seed, split, folder, quiet):
    name = f"seed_{seed}_records.json"
    if folder.has(name):
        return load_json(folder.file(name))
    train_images, train_labels, test_images, test_labels = split
    settings = {"batch": config.batch, "seed": seed, "quiet": quiet}
    data = train_images, train_labels
    device = config.device

    def there(array):
        return to_device(array, device)

    def pretrain():
        theta = model.init(loop.stream(seed, "initial weights"), device=device)
        stats = model.init_stats(device=device)
        updates = config.epochs * (len(train_images) // config.batch)
        optimizer = make_optimizer(config.optimizer, config.l1, config.momentum)
        loop.train(model, theta, stats, *data, optimizer, updates, **settings)
        return {"theta": to_host(theta), "stats": to_host(stats)}

    def fine_tune(start):
        theta, stats = there(start["theta"].copy()), there(start["stats"].copy())
        watched = loop.choose_weights(model, WATCHED, np.random.default_rng(0))
        moments, moments_of_stats, history = loop.fine_tune(
            model,
            theta,
            stats,
            *data,
            make_optimizer(config.finetune_optimizer, config.l2, config.momentum),
            config.updates,
            watch=watched,
            **settings,
        )
        if folder.path is not None:
            moments.save(folder.file(f"seed_{seed}_moments.npz"))
        return {
            "theta": to_host(theta),
            "stats": to_host(stats),
            "mean_stats": to_host(moments_of_stats.mean),
            "watched": np.array(watched),
            "history": history,
        }, moments

    pretrained = _stage(folder, f"seed_{seed}_pretrained.npz", pretrain)
    finetuned_file, moments_file = f"seed_{seed}_finetuned.npz", f"seed_{seed}_moments.npz"
    if folder.has(finetuned_file) and folder.has(moments_file):
        finetuned = _load(folder, finetuned_file)
        moments = Moments.load(folder.file(moments_file), device)
    else:
        finetuned, moments = fine_tune(pretrained)
        _save(folder, finetuned_file, finetuned)

    members = moments.sample(config.members, loop.stream(seed, "drawn networks"))
    records = []

    def record(method, members, probabilities, policy=None):
        if np.isnan(probabilities).any():
            raise FloatingPointError(
                f"{label_of(method, members, policy)}: predictions are not numbers: lower --l1 or "
                f"--l2, now {config.l1} and {config.l2}"
            )
        scores = loop.score(probabilities, test_labels)
        # Only networks with batch norm have the choice of statistics.
        named = {"batch_norm": policy} if policy else {}
        records.append({"seed": seed, "method": method, "members": members, **named, **scores})

    def predict(theta, stats, what):
        desc = f"{what} (seed {seed})"
        return loop.predict(model, there(theta), test_images, there(stats), quiet, desc)

    def statistics(theta):
        """The statistics that go with resampled weights, by each policy."""
        lead = theta.shape[:-1]
        if not model.stats_size:
            return {None: model.init_stats(*lead)}
        order = loop.batches(len(train_images), config.batch, loop.stream(seed, "statistics order"))
        chosen = itertools.islice(order, STATISTICS_BATCHES)
        looks = (train_images[there(batch)] for batch in chosen)
        averaged, last = (
            there(np.broadcast_to(finetuned[key], (*lead, model.stats_size)).copy())
            for key in ("mean_stats", "stats")
        )
        return batch_norm_policies(model, theta, averaged, last, looks)

    record("pretrained", 1, predict(pretrained["theta"], pretrained["stats"], "pre-trained"))
    record("finetuned", 1, predict(finetuned["theta"], finetuned["stats"], "fine-tuned"))
    for policy, stats in statistics(moments.mean).items():
        record("mean", 1, predict(moments.mean, stats, "mean model"), policy)
    for policy, stats in statistics(members).items():
        drawn = predict(members, stats, f"{config.members} drawn networks")
        record("draw", 1, drawn[0], policy)
        for size in sorted({min(SMALL_ENSEMBLE, config.members), config.members}):
            record("ensemble", size, average(drawn[:size]), policy)
    if folder.path is not None:
        save_json(folder.file(name), records)
    return records


def _stage(folder, name, work):
    """Do a stage, or read what it left when it was done before."""
    if folder.has(name):
        return _load(folder, name)
    result = work()
    _save(folder, name, result)
    return result


def _save(folder, name, arrays):
    if folder.path is not None:
        save_arrays(folder.file(name), **arrays)


def _load(folder, name):
    return load_arrays(folder.file(name), "theta", "stats")


# --- the table ----------------------------------------------------------------------------


def label_of(method, members, policy):
    """What a row or a bar of results is called."""
    name = {
        "pretrained": "pre-trained",
        "finetuned": "fine-tuned",
        "mean": "mean model",
        "draw": "1 drawn network",
        "ensemble": f"ensemble of {members}",
    }[method]
    return f"{name}, {policy}" if policy else name


FINETUNED = ("finetuned", 1, None)


def collect(records):
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


def table(records):
    """The results as text: mean ± standard deviation over seeds, and below it Δ to fine-tuned.

    Δ is the mean over seeds of the difference between two networks of the same seed, and its
    standard deviation (ddof = 1). Accuracy and ECE in per cent.
    """
    rows = collect(records)
    seeds = len(next(iter(rows.values()))["accuracy"])
    reference = rows[FINETUNED]
    lines = [["method", *(heading for _, heading, _, _ in COLUMNS)]]
    for key, row in rows.items():
        lines.append([label_of(*key)])
        lines[-1] += [
            _spread(row[metric] * factor, digits) for metric, _, factor, digits in COLUMNS
        ]
        if key != FINETUNED:
            lines.append(["  Δ"])
            lines[-1] += [
                _spread((row[metric] - reference[metric]) * factor, digits, sign="+")
                for metric, _, factor, digits in COLUMNS
            ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(cells):
        first, *rest = cells
        aligned = [first.ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("─" * width for width in widths)
    note = (
        f"{seeds} seeds, ± standard deviation over them (ddof 1); "
        if seeds > 1
        else "one seed, so no spread; "
    )
    note += "Δ: against fine-tuned, same seed"
    notes = [note]
    if any(policy for _, _, policy in rows):
        notes.append(
            "batch-norm statistics: averaged like the weights, recomputed from training images, "
            "or those of the last update"
        )
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:]), rule, *notes])


def _spread(values, digits, sign=""):
    mean = f"{values.mean():{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def check_space(folder, model, config):
    """Raise OSError before the work, rather than after, when the disk is too full."""
    if folder.path is None:
        return
    # θ twice in float32; the moments take 20 bytes a weight.
    sizes = {"pretrained": 4, "finetuned": 4, "moments": 20}
    needed = sum(
        size * model.size
        for seed in range(config.seed, config.seed + config.seeds)
        for stage, size in sizes.items()
        if not folder.has(f"seed_{seed}_{stage}.npz")
    )
    free = shutil.disk_usage(folder.path).free
    if needed > free:
        raise OSError(
            f"{folder.path}: the results need {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
            "free: name another folder with --out, or fewer --seeds"
        )
