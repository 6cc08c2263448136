"""`minires improve`: the paper's method on anybody's network, from an ONNX file to an ONNX file.

1. Fine-tune the network on photographs; fold every θ into the moments (eqs. 1-3).
2. Compare, on photographs that were held out: the file's own weights, the fine-tuned ones,
   their exponential moving average, the mean model, and an ensemble drawn from the moments.
3. Write the mean model and the drawn networks as ONNX files that any runtime loads.

What happens at update t is a function of the seed and of t alone: which photographs, and which
units drop out. So a checkpoint is a handful of vectors and a counter, and a run that was killed
and started again ends with the same bits as one that was not. On a GPU other units drop out, and
sums are rounded in another order: a run goes on where it began.

With batch normalisation, a mean of weights needs statistics to go with it. Three choices:

    averaged      the statistics' own running mean, like the weights'
    recomputed    the mean of the batch statistics that the mean weights see, over training batches
    last          whatever the last update left

Source   Liu, Tripathi, Kurup and Shah, arXiv:1807.00847; on recomputing: Izmailov et al. 2018,
         arXiv:1803.05407, §3.2
"""

import hashlib
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np

from minires.arrays import device_of, to_device, to_host
from minires.arrays.text import progress, say, table
from minires.commands.evaluate import (
    Outcomes,
    add_picture_options,
    check_counts,
    counted,
    describe_notes,
    open_examination,
    plan_of,
    standard_error,
    summarize,
    with_error,
)

STATISTICS = ("averaged", "recomputed", "last")
RECOMPUTE_BATCHES = 100  # at most so many training batches give the recomputed statistics
CHECKPOINT = "checkpoint.npz"
FORMAT = "minires improve 2"


# --- what a run carries from one update to the next -----------------------------------------


class State:
    """Everything that changes while fine-tuning; saved and restored bit for bit.

    theta, stats   the weights (P,) and the batch-norm statistics (S,), copied; all vectors live
                   where these do
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

    def fold(self, loss):
        """Count the update that has just been made."""
        self.updates += 1
        self.losses.append(float(loss))
        self.moments.update(self.theta)
        self.ema.update(self.theta)
        self.moments_of_stats.update(self.stats)
        self.ema_of_stats.update(self.stats)

    def save(self, path, settings):
        """Write everything to one file, which appears only when it is complete.

        settings   dict of plain values: what the run was asked to do
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

        Raises   ValueError when it is damaged, or belongs to a run that was asked for other things
        """
        from minires.arrays.files import load_arrays
        from minires.resampling.moments import Moments

        arrays = load_arrays(
            path, "format", "settings", "updates", "losses", "notes", "theta", "stats"
        )
        if str(arrays["format"]) != FORMAT:
            raise ValueError(f"{path} has the format {arrays['format']}, expected {FORMAT!r}")
        before = {"device": "cpu"} | json.loads(str(arrays["settings"]))
        changed = [f"{n} was {before.get(n)}, now {v}" for n, v in settings.items()
                   if before.get(n) != v]  # fmt: skip
        if changed:
            raise ValueError(
                f"{path} belongs to a run with other settings ({'; '.join(changed)}): name another "
                "folder with --out, or delete that file to start anew"
            )
        self.updates = int(arrays["updates"])
        self.losses = arrays["losses"].tolist()
        for row in json.loads(str(arrays["notes"])):
            self.notes.add(*row)
        device = device_of(self.theta)
        self.theta, self.stats = (to_device(arrays[name], device) for name in ("theta", "stats"))
        kept = {owner: {} for owner in _OWNERS}
        for name, array in arrays.items():
            owner, point, part = name.partition(".")
            if point and owner in kept:
                vector = array.ndim and array.dtype.kind == "f"
                kept[owner][part] = to_device(array, device) if vector else array
        try:
            self.moments = Moments.from_state(kept["moments"])
            self.moments_of_stats = Moments.from_state(kept["moments_of_stats"])
            for owner in ("optimizer", "ema", "ema_of_stats"):
                getattr(self, owner).restore(kept[owner])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from error


# What a State keeps besides plain arrays: each can give its own state, and go on from it.
_OWNERS = ("optimizer", "moments", "moments_of_stats", "ema", "ema_of_stats")


# --- fine-tuning ----------------------------------------------------------------------------


def split(count, share, seed):
    """Hold out a share of the photographs, drawn by the seed.

    count    how many there are
    share    of them held out, in (0, 1)
    Returns  indices to train on, indices held out, each in rising order
    """
    held = round(count * share)
    if not 0 < held < count:
        raise ValueError(
            f"--holdout {share} of {counted(count, 'picture')} leaves nothing on one side: name "
            "more pictures, or others to compare on with --test-images"
        )
    order = _generator(seed, "holdout").permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def order_of(indices, batch, seed):
    """Training batches without end: every epoch in a new order, a partial batch dropped.

    indices  of the photographs to train on
    Yields   (batch,) of them
    """
    if not 0 < batch <= len(indices):
        raise ValueError(f"--batch is {batch}, but there are {len(indices)} pictures to train on")
    rng = _generator(seed, "order")
    while True:
        epoch = indices[rng.permutation(len(indices))]
        yield from epoch[: len(epoch) - len(epoch) % batch].reshape(-1, batch)


def fine_tune(examination, state, indices, updates, batch, seed, save=None, every=180.0):
    """Fine-tune from wherever `state` is up to a number of updates.

    θ ← optimizer(θ, gradient of the mean loss of one batch), and every θ into the moments

    examination  the network and the photographs
    state        State, changed
    indices      of the photographs to train on
    updates      to have been made in the end
    batch        photographs in a batch
    seed         of the order of the photographs, and of dropout
    save         called with no argument when a checkpoint is due, at the end, and after Ctrl-C
    every        seconds between checkpoints
    Raises       FloatingPointError when the loss is no longer a number
    """
    done = state.updates
    plan = itertools.islice(order_of(indices, batch, seed), done, updates)
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
                state.fold(loss)
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
    # In the place of one that cannot be used, a graph of fixed batch sees another again.
    images, labels = examination.whole_batches(images, labels)
    rng = _generator(seed, "dropout", state.updates)
    with np.errstate(over="ignore", invalid="ignore"):  # a loss that is no number says it better
        loss, gradient = examination.network.loss_and_gradient(
            state.theta, images, labels + examination.offset, stats=stats, rng=rng
        )
    return float(loss), gradient


def recompute_statistics(examination, theta, like, plan):
    """Batch-norm statistics for weights that were never trained: what training batches show.

    A training step moves every statistic s towards the batch's own b: s ← m s + (1 − m) b. From
    s = 0 it gets to (1 − m) b. The momenta m, which the file says, show by starting from 1 too:
    the two end m apart. The result is the mean of b over the batches; a statistic that does
    not move (m = 1) stays.

    theta    (P,), left as it is
    like     (S,), statistics of the same network
    plan     list of index arrays, the training batches
    Returns  (S,)
    """
    network, device = examination.network, examination.device
    total, share, count = np.zeros(like.shape, np.float64), None, 0

    def after_a_step(start, theta, images):
        stats = to_device(np.full(like.shape, start, theta.dtype), device)
        network.follow_batch(theta, images, stats, np.random.default_rng(count))  # of dropout
        return to_host(stats).astype(np.float64)

    for images, labels, _ in examination.batches(plan):
        if len(labels) == 0:
            continue
        (images,) = examination.whole_batches(images)
        if share is None:
            enough = network.batch or 4
            few = theta.astype(np.float64), images[:enough]
            share = 1 - (after_a_step(1, *few) - after_a_step(0, *few))
        total += after_a_step(0, theta, images)
        count += 1
    if count == 0:
        raise ValueError("no training picture can be used to recompute batch-norm statistics")
    moves = share > 1e-9
    batch_mean = total / count / np.where(moves, share, 1)
    return to_device(np.where(moves, batch_mean, to_host(like)).astype(like.dtype), device)


# --- comparing ------------------------------------------------------------------------------


def contenders(examination, state, choice, members, plan):
    """The networks to compare: their weights and the statistics that go with them.

    choice   of STATISTICS: what goes with averaged weights
    members  (K, P), drawn from the moments; K may be 0
    plan     training batches, for recomputing
    Returns  {name: (theta, stats)}, members as "member 1", … ; the mean model appears once for
             each choice when the network has statistics, and as "mean" with the chosen ones. All
             are where `state` is
    """
    mean, ema = state.moments.mean, state.ema.mean

    def statistics(theta, averaged, choice):
        if choice == "last" or not state.stats.size:
            return state.stats
        if choice == "averaged":
            return averaged
        return recompute_statistics(examination, theta, state.stats, plan)

    averaged = state.moments_of_stats.mean
    found = {
        "base": examination.own_vectors(),
        "fine-tuned": (state.theta, state.stats),
        "EMA": (ema, statistics(ema, state.ema_of_stats.mean, choice)),
        "mean": (mean, statistics(mean, averaged, choice)),
    }
    if state.stats.size:
        for other in STATISTICS:
            if other != choice:
                found[f"mean, statistics {other}"] = mean, statistics(mean, averaged, other)
    for number, theta in enumerate(members, 1):
        found[f"member {number}"] = theta, statistics(theta, averaged, choice)
    return found


def compare(examination, networks, pictures, indices, batch):
    """Show held-out photographs to all networks, each photograph decoded once.

    networks  as `contenders` gives them; the ensemble of all members is added
    pictures  the ones that hold the held-out photographs
    indices   of these
    Returns   {name: Outcomes}, members replaced by "ensemble of K"
    """
    parts = {}
    plan = [indices[part] for part in plan_of(len(indices), batch)]
    with progress(total=len(indices), unit="image", desc="comparing") as bar:
        shown = examination.batches(plan, pictures)
        for planned, (images, labels, _) in zip(plan, shown, strict=True):
            bar.update(len(planned))
            if len(labels) == 0:
                continue
            drawn = []
            for name, (theta, stats) in networks.items():
                probabilities = examination.predict(theta, images, stats)
                if name.startswith("member"):
                    drawn.append(probabilities)
                else:
                    outcomes = examination.outcomes(probabilities, labels)
                    parts.setdefault(name, []).append(outcomes)
            if drawn:
                mean = np.mean(drawn, axis=0, dtype=np.float64)
                name = f"ensemble of {len(drawn)}"
                parts.setdefault(name, []).append(examination.outcomes(mean, labels))
    if not parts:
        raise ValueError(f"none of {len(indices)} held-out pictures can be used")
    return {name: Outcomes.joined(found) for name, found in parts.items()}


def score_all(outcomes):
    """The scores of every network, and its differences to the base, photograph by photograph.

    The errors of the differences are those of paired samples: two networks that err on the same
    photographs differ by much less than the error of either.

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


def draw(rows, losses, path):
    """The comparison and the training loss as one picture (PNG)."""
    from minires.arrays.pictures import new_figure, save_png
    from minires.study.experiment_figure import INK, OURS, PLAIN

    others = [row for row in rows if row["name"] != "base"]
    figure = new_figure(11, 1.7 + 0.36 * len(others), 130)
    figure.suptitle(
        f"Against the base (top-1 {100 * rows[0]['top1']:.1f} %, NLL {rows[0]['nll']:.3f}) on the "
        f"same {rows[0]['images']:,} held-out pictures; bars: one standard error",
        fontsize=10, color=INK,
    )  # fmt: skip
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
    for axes, key, factor, title in (
        (left, "top1_difference", 100, "top-1, points (right is better)"),
        (middle, "nll_difference", 1, "negative log-likelihood (left is better)"),
    ):
        for place, row in enumerate(others):
            axes.errorbar(
                row[key] * factor, place, xerr=row[f"{key}_error"] * factor, fmt="o", capsize=3,
                color=PLAIN if row["name"] in ("fine-tuned", "EMA") else OURS,
            )  # fmt: skip
        axes.axvline(0, color=PLAIN, lw=1, ls=":")
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.set_title(title, fontsize=9, color=INK)
    left.set_yticks(range(len(others)), [row["name"] for row in others], fontsize=8.5)
    middle.set_yticks(range(len(others)), [""] * len(others))
    width = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    right.plot(np.arange(1, len(losses) + 1), losses, color=PLAIN, lw=0.6)
    right.plot(np.arange(width, len(losses) + 1), smooth, color=OURS, lw=1.4)
    right.set_title("training loss, by update", fontsize=9, color=INK)
    for axes in (left, middle, right):
        axes.tick_params(labelsize=8.5, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    save_png(figure, path)


# --- the command ----------------------------------------------------------------------------


def add_parser(subparsers):
    """Add `minires improve` to the command line."""
    parser = subparsers.add_parser(
        "improve",
        help="fine-tune an ONNX network with moments, write the averaged one",
        description="Fine-tune an ONNX network while keeping the running mean and variance of its "
        "weights; compare it, on held-out photographs, with the mean model and an ensemble drawn "
        "from the moments; write these as ONNX files. The same command goes on where a run that "
        "was stopped had its last checkpoint, and ends with the same bits.",
    )
    add_picture_options(parser)
    parser.add_argument("--rate", type=float, required=True, help="learning rate")
    parser.add_argument("--updates", type=int, required=True, help="of fine-tuning")
    parser.add_argument(
        "--batch", type=int, default=32, help="photographs in a batch (%(default)s)"
    )
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="(%(default)s)")
    parser.add_argument("--batch-norm", choices=STATISTICS, default="averaged",
                        help="which statistics go with averaged weights (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--members",
        type=int,
        default=3,
        help="networks drawn for the ensemble, 0 for none (%(default)s)",
    )
    parser.add_argument("--ema", type=float, default=0.999, metavar="DECAY",
                        help="of the moving average to compare with (%(default)s)")  # fmt: skip
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--holdout", type=float, default=0.2, metavar="SHARE",
                      help="of the pictures that are kept to compare on (%(default)s)")  # fmt: skip
    held.add_argument("--test-images", type=Path, metavar="DIR",
                      help="other pictures to compare on")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (%(default)s)")
    parser.add_argument("--checkpoint-every", type=float, default=180, metavar="SECONDS",
                        help="(%(default)s); 0: after every update")  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the results; with a checkpoint in it, the run goes on",
    )
    parser.set_defaults(run=run)


def run(options):
    """`minires improve`: the exit code is 0, or 130 after Ctrl-C."""
    try:
        return improve(options)
    except KeyboardInterrupt:
        say("", "stopped: the same command goes on with what is finished")
        return 130


def improve(options):
    """Do all that the command line asks for, or what is left of it; 0 is the exit code."""
    from minires.arrays.results import locked_folder
    from minires.data import imagenet

    check_counts(options, "updates")
    if options.members < 0 or options.seed < 0:
        raise ValueError("--members and --seed must be 0 or more")
    if not 0 <= options.rate < math.inf:
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
        # By its own class folders, but with the numbers of all classes.
        test = imagenet.load(options.test_images, options.synsets)
        if test.classes != pictures.classes:
            raise ValueError(
                f"{options.test_images} holds other classes than {options.images}: name the order "
                "of all classes with --synsets"
            )
        training, held_out = np.arange(len(pictures)), np.arange(len(test))
    with locked_folder(options.out) as out:
        return _improve_in(out, options, examination, training, test, held_out)


def _improve_in(out, options, examination, training, test, held_out):
    """The same in a folder that no other process may use meanwhile.

    out        the folder
    training   indices of the pictures to train on
    test       pictures that hold those to compare on
    held_out   indices of these
    """
    import minires.onnx
    from minires.arrays.files import save_json

    network = examination.network
    settings = _settings(options, examination, training)
    state = State(*examination.own_vectors(), _optimizer(options), options.ema, examination.notes)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        state.restore(checkpoint, settings)
        say(f"going on after update {state.updates} ({checkpoint})")
        if state.updates > options.updates:
            raise ValueError(
                f"{out} has made {state.updates} updates already, --updates is {options.updates}: "
                "name another folder with --out"
            )
    say(examination.outputs)
    say(
        f"{counted(len(training), 'picture')} to train on, {len(held_out):,} to compare on; "
        f"{state.theta.size:,} weights, {state.stats.size:,} batch-norm statistics"
    )
    fine_tune(
        examination, state, training, options.updates, options.batch, options.seed,
        save=lambda: state.save(checkpoint, settings), every=options.checkpoint_every,
    )  # fmt: skip

    members = np.empty((0, state.theta.size), np.float32)
    if options.members:
        members = state.moments.sample(options.members, _generator(options.seed, "members"))
    plan = list(
        itertools.islice(
            order_of(training, options.batch, options.seed),
            min(RECOMPUTE_BATCHES, len(training) // options.batch),
        )
    )
    networks = contenders(examination, state, options.batch_norm, members, plan)
    state.moments.save(out / "moments.npz")
    for name, (theta, stats) in networks.items():
        if name == "mean" or name.startswith("member"):
            path = out / f"{name.replace(' ', '_')}.onnx"
            minires.onnx.save(network, path, theta=theta, stats=stats)
    outcomes = compare(examination, networks, test, held_out, options.batch)
    rows = score_all(outcomes)
    say(*describe_notes(examination))
    save_json(
        out / "results.json",
        {
            "settings": settings | {"updates": options.updates, "members": options.members},
            "outputs": examination.outputs,
            "training_images": len(training),
            "notes": examination.notes.lines(),
            "networks": _without_nan(rows),
            "losses": state.losses,
        },
    )
    draw(rows, state.losses, out / "figure.png")
    print(score_table(rows))
    print(
        f"{counted(rows[0]['images'], 'held-out picture')}; ± is one standard error, Δ the "
        "difference to the base, photograph by photograph"
    )
    if state.stats.size:
        print(f"batch-norm statistics of averaged networks: {options.batch_norm}, unless named")
    drawn = counted(options.members, "member")
    say(f"mean.onnx, {drawn}, moments.npz, results.json, figure.png: in {out}")
    return 0


def _settings(options, examination, training):
    """What must be the same for a checkpoint to be gone on with."""
    network, pictures = examination.network, examination.pictures
    model = hashlib.sha256(Path(options.model).read_bytes())
    model.update(network.theta.tobytes())  # weights may lie in files of their own
    model.update(network.stats.tobytes())
    shown = hashlib.sha256("\n".join(pictures.names).encode())
    shown.update(pictures.labels.tobytes())
    shown.update(training.tobytes())
    return {
        "model": model.hexdigest(),
        "pictures": shown.hexdigest(),
        "preset": str(examination.preset),
        "size": examination.size,
        "rate": options.rate,
        "batch": options.batch,
        "optimizer": options.optimizer,
        "ema": options.ema,
        "seed": options.seed,
        "device": options.device,
    }


def _optimizer(options):
    from minires.training.optimizers import SGD, Adam

    return {"sgd": SGD, "adam": Adam}[options.optimizer](options.rate)


def _generator(seed, purpose, number=0):
    """The random generator of a seed for one purpose."""
    key = ("holdout", "order", "dropout", "members").index(purpose)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key, number)))


def _without_nan(rows):
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
