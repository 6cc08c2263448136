"""`minires improve`: the paper's method on anybody's network, from an ONNX file to an ONNX file.

1. Fine-tune the network on photographs. Every update's θ goes into the moments (eqs. 1-3).
2. Compare five networks on held-out photographs: the file's own weights, the fine-tuned ones,
   their exponential moving average, the mean model, and an ensemble sampled from the moments.
3. Write the mean model and the sampled networks as ONNX files that any runtime loads.

The seed and the number t decide what happens at update t: which photographs are shown, and which
units drop out. So a checkpoint is a few vectors and a counter. A training that was killed and
started again ends with the same bits as one that was not. A GPU drops other units and rounds sums
in another order, so a training goes on only on the device where it began.

An average of weights also needs batch-norm statistics. `minires.networks.running_statistics`
explains the three choices: averaged, recomputed, last.
"""

import hashlib
import itertools
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minires.arrays import device_of, to_device, to_host
from minires.arrays.text import progress, say, shown, table
from minires.commands import rate_range
from minires.commands.evaluate import (
    Examination,
    Outcomes,
    add_picture_options,
    check_counts,
    counted,
    describe_notes,
    open_examination,
    predictions,
    standard_error,
    summarize,
    with_error,
    without_nan,
)
from minires.networks.running_statistics import POLICIES, stats_by_policy
from minires.training.loop import batches, stream

RECOMPUTE_BATCHES = 100  # the most training batches that recomputed statistics are measured on
CHECKPOINT = "checkpoint.npz"
WRITTEN = ("mean.onnx", "member_*.onnx", "moments.npz", "results.json", "figure.png")
FORMAT = "minires improve 3"


# --- what one update hands to the next ------------------------------------------------------


class State:
    """Everything that changes while fine-tuning; saved and restored bit for bit.

    theta, stats   the weights (P,) and the batch-norm statistics (S,); both are copied. All other
                   vectors are made on the same device
    optimizer      SGD or Adam
    decay          of the exponential moving average
    notes          minires.data.imagenet.Notes: files that were left out so far
    """

    def __init__(self, theta, stats, optimizer, decay, notes):
        from minires.resampling.baselines import EMA
        from minires.resampling.moments import Moments

        self.updates = 0
        self.theta, self.stats = theta.copy(), stats.copy()
        self.optimizer = optimizer
        self.moments, self.moments_of_stats = Moments(theta.shape), Moments(stats.shape)
        self.ema, self.ema_of_stats = EMA(decay), EMA(decay)
        self.losses, self.notes = [], notes

    def record(self, loss):
        """Count the update that has just been made, and take its θ into every average."""
        self.updates += 1
        self.losses.append(float(loss))
        self.moments.update(self.theta)
        self.ema.update(self.theta)
        self.moments_of_stats.update(self.stats)
        self.ema_of_stats.update(self.stats)

    def save(self, path, settings):
        """Write everything to one file, which appears only when it is complete.

        settings   dict of plain values: what the command line asked for
        """
        from minires.arrays.files import save_arrays

        arrays = {
            "format": np.array(FORMAT),
            "settings": np.array(json.dumps(settings)),
            "updates": np.array(self.updates),
            "losses": np.array(self.losses, np.float64),
            "notes": np.array(json.dumps(self.notes.rows())),
            "theta": to_host(self.theta),
            "stats": to_host(self.stats),
        }
        for owner in _OWNERS:
            state = getattr(self, owner).state()
            arrays |= {f"{owner}.{name}": value for name, value in state.items()}
        save_arrays(path, **{name: np.asarray(to_host(value)) for name, value in arrays.items()})

    def restore(self, path, settings):
        """Go on from what `save` wrote.

        Raises   ValueError when the file is damaged, or was written with other settings
        """
        from minires.arrays.files import load_arrays

        names = "format", "settings", "updates", "losses", "notes", "theta", "stats"
        arrays = load_arrays(path, *names)
        if str(arrays["format"]) != FORMAT:
            raise ValueError(
                f"{path} has the format {shown(arrays['format'])}, expected {FORMAT!r}: name "
                "another folder with --out, or delete that file to start anew"
            )
        try:
            before = {"device": "cpu", "among": False} | json.loads(str(arrays["settings"]))
            changed = [f"{n} was {shown(before.get(n))}, now {v}" for n, v in settings.items()
                       if before.get(n) != v]  # fmt: skip
            if not changed:
                self._take(arrays)
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {shown(error)})"
            ) from error
        if changed:
            raise ValueError(
                f"{path} was written with other settings ({'; '.join(changed)}): name another "
                "folder with --out, or delete that file to start anew"
            )

    def _take(self, arrays):
        """Take over the arrays of a checkpoint, once they are known to fit one another."""
        from minires.resampling.moments import Moments

        updates, losses = int(arrays["updates"]), arrays["losses"]
        if updates < 1 or losses.shape != (updates,) or not np.isfinite(losses).all():
            raise ValueError(f"{updates} updates, and losses {losses.shape}")
        for name in ("theta", "stats"):
            array, own = arrays[name], getattr(self, name)
            if (array.shape, array.dtype) != (own.shape, own.dtype) or not np.isfinite(array).all():
                raise ValueError(f"{name} is {array.shape} {array.dtype}, or not finite")
        device = device_of(self.theta)
        kept = {owner: {} for owner in _OWNERS}
        for name, array in arrays.items():
            owner, point, part = name.partition(".")
            if point and owner in kept:
                vector = array.ndim and array.dtype.kind == "f"
                if array.ndim and owner == "optimizer" and array.shape != arrays["theta"].shape:
                    raise ValueError(f"{name} is {array.shape}")
                kept[owner][part] = to_device(array, device) if vector else array
        self.moments = Moments.from_state(kept["moments"])
        self.moments_of_stats = Moments.from_state(kept["moments_of_stats"])
        for owner in ("optimizer", "ema", "ema_of_stats"):
            getattr(self, owner).restore(kept[owner])
        for vector, owners in (
            ("theta", (self.moments, self.ema)),
            ("stats", (self.moments_of_stats, self.ema_of_stats)),
        ):
            for owner in owners:
                if (owner.count, owner.mean.shape) != (updates, arrays[vector].shape):
                    raise ValueError(f"an average of {vector} of {owner.count} updates")
        if self.optimizer.count != updates:
            raise ValueError(f"{updates} updates, and {self.optimizer.count} of the optimizer")
        for name, kind, text in json.loads(str(arrays["notes"])):
            self.notes.add(str(name), str(kind), str(text))
        self.updates, self.losses = updates, losses.tolist()
        self.theta, self.stats = (to_device(arrays[name], device) for name in ("theta", "stats"))


# Parts of a State with a state of their own: each can give it, and go on from it.
_OWNERS = ("optimizer", "moments", "moments_of_stats", "ema", "ema_of_stats")


# --- fine-tuning ----------------------------------------------------------------------------


def split(count, share, seed):
    """Hold out a random share of the photographs.

    count    how many there are
    share    of them held out, in (0, 1)
    seed     decides which
    Returns  indices to train on, indices held out, each in rising order
    """
    held = round(count * share)
    if not 0 < held < count:
        raise ValueError(
            f"--holdout {share} of {counted(count, 'picture')} leaves nothing on one side: name "
            "more pictures, or others to compare on with --test-images"
        )
    order = stream(seed, "held-out images").permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def fine_tune(examination, state, indices, updates, batch, seed, save=None, every=180.0):
    """Fine-tune from the update that `state` has reached.

    θ ← optimizer(θ, gradient of the mean loss of one batch), and every θ into the moments

    examination  the network and the photographs
    state        State, changed
    indices      of the photographs to train on
    updates      the number of the last update, counted from the first one of all
    batch        photographs in a batch
    seed         of the order of the photographs, and of dropout
    save         called with no argument when a checkpoint is due, at the end, and after Ctrl-C
    every        seconds between checkpoints
    Raises       FloatingPointError when the loss is no longer a number
    """
    done = state.updates
    order = batches(len(indices), batch, stream(seed, "fine-tuning order"))
    plan = (indices[chosen] for chosen in itertools.islice(order, done, updates))
    saved, whole = time.monotonic(), True  # whole: no update is half done
    with progress(total=updates, initial=done, unit="update", desc="fine-tuning") as bar:
        try:
            for images, labels, _ in examination.batches(plan):
                stats = state.stats.copy()
                loss, gradient = _slope(examination, state, stats, images, labels, seed)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} at update {state.updates + 1} of {updates}: lower "
                        f"the rate (now {state.optimizer.rate})"
                    )
                whole = False
                state.stats = stats
                state.optimizer.step(state.theta, gradient)
                state.record(loss)
                whole = True
                bar.update()
                bar.set_postfix(loss=f"{state.losses[-1]:.4f}", refresh=False)
                if save is not None and time.monotonic() - saved >= every:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if save is not None and whole and state.updates > done:
                save()
            raise
    if save is not None and state.updates > done:
        save()


def _slope(examination, state, stats, images, labels, seed):
    """The loss of the next update's batch, and its gradient; `stats` follow the batch."""
    if len(labels) == 0:
        raise ValueError(
            f"no picture in the batch of update {state.updates + 1} can be used "
            f"({examination.notes}): mend the files, or use larger batches"
        )
    # A graph of fixed batch takes so many pictures and no fewer: others stand in for broken ones.
    images, labels = examination.whole_batches(images, labels)
    rng = stream(seed, "fine-tuning dropout", state.updates)
    targets, classes = examination.targets(labels)
    with np.errstate(over="ignore", invalid="ignore"):  # the check of the loss says it better
        loss, gradient = examination.network.loss_and_gradient(
            state.theta, images, targets, stats=stats, rng=rng, classes=classes
        )
    return float(loss), gradient


# --- comparing ------------------------------------------------------------------------------


def training_batches(job):
    """The photographs that recomputed statistics are measured on, batch by batch.

    Yields   images (N, …)
    Raises   ValueError when none of them can be used
    """
    examination, batch, count = job.examination, job.options.batch, len(job.training)
    order = batches(count, batch, stream(job.options.seed, "statistics order"))
    plan = itertools.islice(order, min(RECOMPUTE_BATCHES, count // batch))
    empty = True
    for images, labels, _ in examination.batches(job.training[chosen] for chosen in plan):
        if len(labels):
            empty = False
            yield examination.whole_batches(images)[0]
    if empty:
        raise ValueError("no training picture can be used to recompute batch-norm statistics")


def contenders(job, state):
    """The networks to compare: their weights and the statistics that go with them.

    job      Job
    state    State after the last update
    Returns  {name: (theta, stats)} on the device of `state`, sampled networks as "member 1", …
             The mean model is "mean" with the policy of --batch-norm. When the network has
             statistics, it appears once more for every other policy
    """
    options, network = job.options, job.examination.network
    mean, averaged = state.moments.mean, state.moments_of_stats.mean

    def with_stats(theta, averaged, policy=options.batch_norm):
        last = state.stats
        return theta, stats_by_policy(policy, network, theta, averaged, last, training_batches(job))

    found = {
        "base": job.examination.own_vectors(),
        "fine-tuned": (state.theta, state.stats),
        "EMA": with_stats(state.ema.mean, state.ema_of_stats.mean),
        "mean": with_stats(mean, averaged),
    }
    if state.stats.size:
        for policy in POLICIES:
            if policy != options.batch_norm:
                found[f"mean, statistics {policy}"] = with_stats(mean, averaged, policy)
    if options.members:
        rng = stream(options.seed, "sampled networks")
        for number, theta in enumerate(state.moments.sample(options.members, rng), 1):
            found[f"member {number}"] = with_stats(theta, averaged)
    return found


def compare(examination, networks, pictures, indices, batch):
    """Show held-out photographs to all networks.

    networks  as `contenders` gives them; the ensemble of all members is added
    pictures  the ones that hold the held-out photographs
    indices   of these
    Returns   {name: Outcomes}, members replaced by "ensemble of K"
    """
    parts = defaultdict(list)
    for labels, found, _ in predictions(
        examination, networks, indices, batch, pictures, desc="comparing"
    ):
        members = [found.pop(name) for name in list(found) if name.startswith("member")]
        if members:
            found[f"ensemble of {len(members)}"] = np.mean(members, axis=0, dtype=np.float64)
        for name, probabilities in found.items():
            parts[name].append(examination.outcomes(probabilities, labels))
    if not parts:
        raise ValueError(f"none of {len(indices)} held-out pictures can be used")
    return {name: Outcomes.joined(found) for name, found in parts.items()}


def score_all(outcomes):
    """The scores of every network, and its differences to the base, photograph by photograph.

    The errors of the differences are those of paired samples. Two networks that are wrong on the
    same photographs differ by much less than the error of either.

    outcomes  {name: Outcomes}, "base" among them
    Returns   list of dicts: "name", all of `summarize`, and "top1_difference", "nll_difference",
              each with its "…_error"
    """
    base, rows = outcomes["base"], []
    for name, found in outcomes.items():
        row = {"name": name, **summarize(found)}
        for key in ("top1", "nll"):
            difference = getattr(found, key).astype(float) - getattr(base, key).astype(float)
            row[f"{key}_difference"] = float(difference.mean())
            row[f"{key}_difference_error"] = standard_error(difference)
        rows.append(row)
    return rows


def score_table(rows):
    """The scores as text; ± is one standard error, Δ the paired difference to the base."""
    heads = ["network", "top-1 %", "Δ", "top-5 %", "NLL", "Δ", "ECE %"]
    lines = []
    for row in rows:
        plain = row["name"] == "base"
        lines.append(
            [
                row["name"],
                with_error(row, "top1", 2, 100),
                "" if plain else with_error(row, "top1_difference", 2, 100, "+"),
                with_error(row, "top5", 2, 100),
                with_error(row, "nll", 4),
                "" if plain else with_error(row, "nll_difference", 4, 1, "+"),
                with_error(row, "ece", 2, 100),
            ]
        )
    return table(heads, lines)


def plot(rows, losses, path):
    """The comparison and the training loss as one picture (PNG)."""
    from minires.arrays.pictures import default_style, new_figure, save_png
    from minires.study.experiment_figure import INK, OURS, PLAIN, one_row_each, tidy

    others = [row for row in rows if row["name"] != "base"]
    names = [row["name"] for row in others]
    with default_style():
        figure = new_figure(11, 1.7 + 0.36 * len(others), 130)
        figure.suptitle(
            f"Against the base (top-1 {100 * rows[0]['top1']:.1f} %, NLL {rows[0]['nll']:.3f}) on "
            f"the same {rows[0]['images']:,} held-out pictures; bars: one standard error",
            fontsize=10, color=INK,
        )  # fmt: skip
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
        for axes, key, factor, title, labels in (
            (left, "top1_difference", 100, "top-1, points (right is better)", names),
            (middle, "nll_difference", 1, "NLL (left is better)", [""] * len(names)),
        ):
            for height, row in enumerate(others):
                axes.errorbar(
                    row[key] * factor, height, xerr=row[f"{key}_error"] * factor, fmt="o",
                    capsize=3, color=PLAIN if row["name"] in ("fine-tuned", "EMA") else OURS,
                )  # fmt: skip
            one_row_each(axes, labels, 0, title)
        width = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        right.plot(np.arange(1, len(losses) + 1), losses, color=PLAIN, lw=0.6)
        right.plot(np.arange(width, len(losses) + 1), smooth, color=OURS, lw=1.4)
        right.set_title("training loss, by update", fontsize=10, color=INK)
        tidy(right)
        save_png(figure, path)


# --- the command ----------------------------------------------------------------------------


def add_parser(subparsers):
    """Add `minires improve` to the command line."""
    parser = subparsers.add_parser(
        "improve",
        help="fine-tune an ONNX network with moments, write the averaged one",
        description="Fine-tune an ONNX network and keep the running mean and variance of its "
        "weights. Compare it, on held-out photographs, with the mean model and with an ensemble "
        "sampled from the moments. Write these as ONNX files. If the command is stopped, give it "
        "again: it goes on from the last checkpoint and ends with the same bits.",
    )
    add_picture_options(parser)
    add = parser.add_argument
    add("--rate", type=float, help="learning rate; without it, rates to try are named: a range "
        "test of some twenty updates finds them, and nothing is written")  # fmt: skip
    add("--updates", type=int, required=True, help="updates of fine-tuning")
    add("--batch", type=int, default=32, help="photographs in a batch (%(default)s)")
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="(%(default)s)")
    add("--batch-norm", choices=POLICIES, default="averaged",
        help="which batch-norm statistics go with averaged weights (%(default)s)")  # fmt: skip
    add("--members", type=int, default=3,
        help="networks sampled for the ensemble; 0: no ensemble (%(default)s)")  # fmt: skip
    add("--ema", type=float, default=0.999, metavar="DECAY",
        help="decay of the moving average to compare with (%(default)s)")  # fmt: skip
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--holdout", type=float, default=0.2, metavar="SHARE",
                      help="share of the pictures to compare on (%(default)s)")  # fmt: skip
    held.add_argument("--test-images", type=Path, metavar="DIR",
                      help="a folder of other pictures to compare on")  # fmt: skip
    add("--seed", type=int, default=0, help="of every random choice (%(default)s)")
    add("--checkpoint-every", type=float, default=180, metavar="SECONDS",
        help="seconds between checkpoints (%(default)s); 0: after every update")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for the results; fine-tuning goes on from a checkpoint in it")  # fmt: skip
    parser.set_defaults(run=run)


def run(options):
    """`minires improve`: the exit code is 0, or 130 after Ctrl-C."""
    try:
        return improve(options)
    except KeyboardInterrupt:
        say("", "stopped: the same command goes on with what is finished")
        return 130


@dataclass
class Job:
    """What the command line asks for, once everything is open and known to fit.

    options       the command line
    examination   the network, and the photographs to train on
    training      indices of these
    test          pictures that hold those to compare on
    held_out      indices of these
    """

    options: object
    examination: Examination
    training: np.ndarray
    test: object
    held_out: np.ndarray

    @property
    def settings(self):
        """What must be the same for a checkpoint to be gone on with."""
        options, examination = self.options, self.examination
        network, pictures = examination.network, examination.pictures
        model = hashlib.sha256(Path(options.model).read_bytes())
        model.update(network.theta.tobytes())  # weights may lie in files of their own
        model.update(network.stats.tobytes())
        shown = hashlib.sha256("\n".join(pictures.names).encode())
        shown.update(pictures.labels.tobytes())
        shown.update(self.training.tobytes())
        names = ("rate", "batch", "optimizer", "ema", "seed", "device", "among")
        return {
            "model": model.hexdigest(),
            "pictures": shown.hexdigest(),
            "preset": str(examination.preset),
            "size": examination.size,
            **{name: getattr(options, name) for name in names},
        }


def improve(options):
    """Do all that the command line asks for, or what is left of it; 0 is the exit code."""
    from minires.arrays.results import locked_folder

    job = open_job(options)
    if options.rate is None:
        print(rates_to_try(job))
        return 0
    with locked_folder(options.out) as out:
        settings = job.settings
        state = start(job, out / CHECKPOINT, settings)
        fine_tune(
            job.examination, state, job.training, options.updates, options.batch, options.seed,
            save=lambda: state.save(out / CHECKPOINT, settings), every=options.checkpoint_every,
        )  # fmt: skip
        networks = contenders(job, state)
        write_networks(job, state, networks, out)
        outcomes = compare(job.examination, networks, job.test, job.held_out, options.batch)
        report(job, settings, state, score_all(outcomes), out)
    return 0


def rates_to_try(job):
    """What to give as `--rate`, by a range test: a sentence."""
    from minires.study.experiment import make_optimizer

    options = job.options
    optimizer = make_optimizer(options.optimizer, rate_range.RATES[0])
    largest = rate_range.largest_rate(
        job.examination, job.training, optimizer, options.batch, options.seed
    )
    say(*describe_notes(job.examination))
    rates = ", ".join(f"{rate:g}" for rate in rate_range.proposed(largest))
    return (
        f"rates to try, one --out each: {rates} (in a range test the loss rose above {largest:.2g})"
    )


def open_job(options):
    """Check the command line, and open the network and the pictures.

    Raises   ValueError for a setting out of its range, or pictures that do not fit the network
    """
    check_counts(options, "updates")
    if options.members < 0 or options.seed < 0:
        raise ValueError("--members and --seed must be 0 or more")
    if options.rate is not None and not 0 <= options.rate < math.inf:
        raise ValueError(f"--rate is {options.rate}, expected a number from 0 up")
    examination = open_examination(options)
    network, pictures = examination.network, examination.pictures
    if network.batch not in (None, options.batch):
        raise ValueError(
            f"--batch is {options.batch}, but {options.model} takes {network.batch} pictures at a "
            f"time: --batch {network.batch}, or export it with a free batch"
        )
    if options.test_images is None:
        training, held_out = split(len(pictures), options.holdout, options.seed)
        test = pictures
    else:
        test = _other_pictures(options, pictures.classes)
        training, held_out = np.arange(len(pictures)), np.arange(len(test))
    if options.batch > len(training):
        raise ValueError(
            f"--batch is {options.batch}, but there are {len(training)} pictures to train on"
        )
    return Job(options, examination, training, test, held_out)


def _other_pictures(options, classes):
    """The pictures of --test-images; their classes must have the same numbers."""
    from minires.data import imagenet

    test = imagenet.load(options.test_images, options.synsets)
    if test.classes != classes:
        raise ValueError(
            f"{options.test_images} holds other classes than {options.images}: name the order "
            "of all classes with --synsets"
        )
    return test


def start(job, checkpoint, settings):
    """The State to begin with, or that of a checkpoint; says how much there is to do.

    Raises   ValueError for a checkpoint of other settings, or beyond --updates
    """
    from minires.arrays.results import tidy
    from minires.study.experiment import make_optimizer

    options, examination = job.options, job.examination
    optimizer = make_optimizer(options.optimizer, options.rate)
    state = State(*examination.own_vectors(), optimizer, options.ema, examination.notes)
    others = [path.name for name in WRITTEN for path in checkpoint.parent.glob(name)]
    if others and not checkpoint.exists():
        raise FileExistsError(
            f"{options.out} holds {shown(others[0])}, but no {CHECKPOINT} that says of what: name "
            "another folder with --out"
        )
    if checkpoint.exists():
        state.restore(checkpoint, settings)
        say(f"going on after update {state.updates} ({checkpoint})")
        if state.updates > options.updates:
            raise ValueError(
                f"{options.out} has made {state.updates} updates already, --updates is "
                f"{options.updates}: name another folder with --out"
            )
    tidy(checkpoint.parent, CHECKPOINT, *(f"{name}*" for name in WRITTEN))
    say(examination.outputs)
    say(
        f"{counted(len(job.training), 'picture')} to train on, {len(job.held_out):,} to compare "
        f"on; {state.theta.size:,} weights, {state.stats.size:,} batch-norm statistics"
    )
    return state


def write_networks(job, state, networks, out):
    """Write moments.npz, mean.onnx and member_1.onnx, … into the folder `out`."""
    import minires.onnx

    state.moments.save(out / "moments.npz")
    for name, (theta, stats) in networks.items():
        if name == "mean" or name.startswith("member"):
            path = out / f"{name.replace(' ', '_')}.onnx"
            minires.onnx.save(job.examination.network, path, theta=theta, stats=stats)


def report(job, settings, state, rows, out):
    """Write results.json and figure.png into the folder `out`, and print the table."""
    from minires.arrays.files import save_json

    options, examination = job.options, job.examination
    say(*describe_notes(examination))
    save_json(
        out / "results.json",
        {
            "settings": settings | {"updates": options.updates, "members": options.members},
            "outputs": examination.outputs,
            "training_images": len(job.training),
            "notes": examination.notes.lines(),
            "networks": [without_nan(row) for row in rows],
            "losses": state.losses,
        },
    )
    plot(rows, state.losses, out / "figure.png")
    print(score_table(rows))
    print(
        f"{counted(rows[0]['images'], 'held-out picture')}; ± is one standard error, Δ the "
        "difference to the base, photograph by photograph"
    )
    if state.stats.size:
        print(f"batch-norm statistics of averaged networks: {options.batch_norm}, unless named")
    members = counted(options.members, "member")
    say(f"mean.onnx, {members}, moments.npz, results.json, figure.png: in {out}")
