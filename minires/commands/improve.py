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

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays.text import counted, say, shown
from minires.commands import rate_range
from minires.commands.evaluate import (
    Examination,
    add_picture_options,
    check_batch,
    check_counts,
    describe_notes,
    hash_of_network,
    hash_of_pictures,
    open_examination,
    other_pictures,
)
from minires.commands.improve_results import compare, contenders, report, score_all, write_networks
from minires.commands.improve_training import State, split, updates_of
from minires.networks.running_statistics import POLICIES

CHECKPOINT = "checkpoint.npz"
WRITTEN = ("mean.onnx", "member_*.onnx", "moments.npz", "results.json", "figure.png")


# --- the command ----------------------------------------------------------------------------


def add_parser(subparsers: Any) -> None:
    """Add `minires improve` to the command line.

    subparsers   of the parser of `minires`
    """
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
    add("--rate", type=float, help="learning rate; if it is not given, a range test of some thirty "
        "updates finds rates to try, and nothing is written")  # fmt: skip
    add("--updates", type=int, required=True, help="updates of fine-tuning")
    add("--batch", type=int, default=32, help="photographs in a batch (%(default)s)")
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="of fine-tuning (%(default)s)")
    add("--batch-norm", choices=POLICIES, default="averaged",
        help="how averaged weights get their batch-norm statistics (%(default)s)")  # fmt: skip
    add("--members", type=int, default=3,
        help="networks sampled for the ensemble; 0: no ensemble (%(default)s)")  # fmt: skip
    add("--ema", type=float, default=0.999, metavar="DECAY",
        help="decay of the moving average that is compared too (%(default)s)")  # fmt: skip
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--holdout", type=float, default=0.2, metavar="SHARE",
                      help="share of the pictures to compare on (%(default)s)")  # fmt: skip
    held.add_argument("--test-images", type=Path, metavar="DIR",
                      help="a folder of other pictures to compare on")  # fmt: skip
    add("--seed", type=int, default=0, help="decides every random choice (%(default)s)")
    add("--checkpoint-every", type=float, default=180, metavar="SECONDS",
        help="seconds between checkpoints (%(default)s); 0: after every update")  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for the results; fine-tuning goes on from a checkpoint in it")  # fmt: skip
    parser.set_defaults(run=run)


def run(options: Any) -> int:
    """`minires improve`.

    options   the command line
    Returns   the exit code: 0, or 130 after Ctrl-C
    """
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

    options: Any
    examination: Examination
    training: np.ndarray
    test: Any
    held_out: np.ndarray

    @property
    def settings(self) -> dict:
        """What must be the same when a later command goes on from a checkpoint."""
        options, examination = self.options, self.examination
        network, pictures = examination.network, examination.pictures
        names = ("rate", "batch", "optimizer", "ema", "seed", "device", "among")
        return {
            "model": hash_of_network(options, network),
            "pictures": hash_of_pictures(pictures, self.training),
            "preset": str(examination.preset),
            "size": examination.size,
            **{name: getattr(options, name) for name in names},
        }


def improve(options: Any) -> int:
    """Do all that the command line asks for, or what is left of it.

    options   the command line
    Returns   0, the exit code
    """
    from minires.arrays.results import locked_folder

    job = open_job(options)
    if options.rate is None:
        print(rates_to_try(job))
        return 0
    with locked_folder(options.out) as out:
        settings = job.settings
        state = start(job, out / CHECKPOINT, settings)
        state.go_on(
            job.examination.network,
            updates_of(job.examination, state, job.training, options),
            options.updates,
            save=lambda: state.save(out / CHECKPOINT, settings),
            every=options.checkpoint_every,
        )
        networks = contenders(job, state)
        write_networks(job, state, networks, out)
        outcomes = compare(job.examination, networks, job.test, job.held_out, options.batch)
        report(job, settings, state, score_all(outcomes), out)
    return 0


def rates_to_try(job: Job) -> str:
    """What to give as `--rate`, by a range test: a sentence.

    job      Job
    """
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


def open_job(options: Any) -> Job:
    """Check the command line, and open the network and the pictures.

    options   the command line
    Raises    ValueError for a setting out of its range, or pictures that do not fit the network
    """
    check_counts(options, "updates")
    if options.members < 0 or options.seed < 0:
        raise ValueError("--members and --seed must be 0 or more")
    if options.rate is not None and not 0 <= options.rate < math.inf:
        raise ValueError(f"--rate is {options.rate}, expected a number from 0 up")
    examination = open_examination(options)
    network, pictures = examination.network, examination.pictures
    check_batch(options, network)
    if options.test_images is None:
        training, held_out = split(len(pictures), options.holdout, options.seed)
        test = pictures
    else:
        test = other_pictures(options, options.test_images, pictures.classes)
        training, held_out = np.arange(len(pictures)), np.arange(len(test))
    if options.batch > len(training):
        raise ValueError(
            f"--batch is {options.batch}, but there are {len(training)} pictures to train on"
        )
    return Job(options, examination, training, test, held_out)


def start(job: Job, checkpoint: Path, settings: dict) -> State:
    """The State to begin with, or that of a checkpoint; says how much there is to do.

    job          Job
    checkpoint   the file that may hold an earlier State
    settings     `Job.settings`
    Raises       ValueError for a checkpoint of other settings, or beyond --updates;
                 FileExistsError for results without a checkpoint
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
        state.load(checkpoint, settings)
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
