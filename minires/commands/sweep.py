"""`minires sweep`: the paper's study, on every core, many machines or a GPU."""

import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from minires import arrays
from minires.arrays import text
from minires.arrays.text import say
from minires.commands import pretrained

FOUND = "which-lenet.json"
SIZES = (
    ("seeds", "repeats"),
    ("train", "training images"),
    ("test", "test images"),
    ("epochs", "epochs of pre-training"),
    ("updates", "updates of fine-tuning"),
    ("batch", "images in a mini-batch"),
)


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    from minires.study.grid import CANDIDATES, PROFILES
    from minires.study.sweep import SIDE_BY_SIDE_ON_GPU

    parser = subparsers.add_parser(
        "sweep",
        help="the paper's studies: many cells, on every core, many machines or a GPU",
        description="Compute every cell of a profile of the study: pre-trainings and fine-tunings, "
        "with the paper's method and others for comparison. Give the same command again after it "
        "was stopped: it computes what is missing.",
    )
    parser.add_argument(
        "--profile",
        choices=(*PROFILES, "which-lenet", "pretrained"),
        default="smoke",
        help="smoke (half a minute, only to see that everything works), class (four minutes), lite "
        "(MNIST, an hour), full (the paper's grid, a night), which-lenet (eight networks that the "
        "paper may have used), pretrained (your own network, on photographs); without this option "
        "smoke",
    )
    parser.add_argument(
        "--data", choices=("glyphs", "mnist"), help="the images (as the profile says)"
    )
    parser.add_argument("--data-dir", type=Path, help="the folder of the MNIST files")
    parser.add_argument("--out", type=Path, help="folder for results (runs/sweep-PROFILE-DATA)")
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="where to compute (cpu)"
    )
    parser.add_argument(
        "--side-by-side",
        type=int,
        help=f"the most cells that train side by side on a GPU ({SIDE_BY_SIDE_ON_GPU})",
    )
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="compute on the workers of this Dask scheduler"
    )
    for name, what in SIZES:
        parser.add_argument(f"--{name}", type=int, help=f"{what} (as the profile says)")
    parser.add_argument(
        "--only",
        action="append",
        choices=[candidate.name for candidate in CANDIDATES],
        metavar="CANDIDATE",
        help="for which-lenet: only this network; give the option several times for several: "
        + ", ".join(candidate.name for candidate in CANDIDATES),
    )
    parser.add_argument(
        "--outside",
        action="store_true",
        help="for which-lenet: also compute ℓ₁ = 0.05 and 0.6, for claim C1",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compute nothing; list the cells and how long they would take",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    pretrained.add_options(parser)
    parser.set_defaults(
        run=run, kept="; what is finished is kept, the same command goes on with it"
    )


def run(options: Any) -> int:
    """Carry out the command: check everything, compute what is missing, print the findings."""
    from minires.arrays.results import locked_folder, tidy

    _check_options(options)
    if options.profile == "pretrained":
        return pretrained.run(options)
    profiles = _profiles(options)
    out = options.out or Path("runs") / f"sweep-{options.profile}-{profiles[0].data}"
    source, dataset = _find_data(profiles[0], options.data_dir)
    sweeps = []
    for profile in profiles:
        folder = out / profile.name if _tries_networks(options) else out
        own = replace(source, folder=str((folder / "data").resolve()), inputs=profile.inputs)
        sweeps.append((profile, folder, own))
    chosen = [sweep for sweep in sweeps if not options.only or sweep[0].name in options.only]
    if options.dry_run:
        _check_all(options, chosen, sweeps)
        return _dry_run(options, chosen, dataset)
    with locked_folder(out):
        _check_all(options, chosen, sweeps)
        tidy(out, FOUND)
        for sweep in chosen:
            _compute(options, *sweep, dataset)
        return _print_findings(options, sweeps, out)


def _tries_networks(options):
    return options.profile == "which-lenet"


def _profiles(options):
    """The profile that the options ask for, or every candidate for a network."""
    from minires.study.grid import CANDIDATES, OUTSIDE, PROFILES

    changed = {name: getattr(options, name) for name in ("data", *(name for name, _ in SIZES))}
    changed = {name: value for name, value in changed.items() if value is not None}
    if not _tries_networks(options):
        return [replace(PROFILES[options.profile], **changed)]
    if options.outside:
        changed["l1_outside"] = OUTSIDE
    return [replace(candidate, **changed) for candidate in CANDIDATES]


def _check_options(options):
    """Refuse options that exclude each other, before anything is loaded or written."""
    pretrained.check_options(options)
    for name in ("workers", "side_by_side"):
        value = getattr(options, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is {value}, expected 1 or more")
    arrays.module_for(options.device)  # is there a GPU?
    if options.cluster == "":
        raise ValueError(
            "--cluster is empty: give the scheduler's address, such as tcp://host:8786"
        )
    if options.cluster and not options.cluster.rpartition(":")[2].isdigit():
        raise ValueError(
            f"--cluster is {options.cluster}, which names no port: give the scheduler's address, "
            "such as tcp://host:8786"
        )
    if options.cluster and options.workers:
        raise ValueError("--workers are of this machine, --cluster computes on others: give one")
    if options.device == "gpu" and (options.workers or options.cluster):
        raise ValueError(
            "--workers and --cluster are for CPUs, --device gpu works in one process: leave one "
            "of them out (on a GPU, --side-by-side says how many cells train at a time)"
        )
    if options.device == "cpu" and options.side_by_side:
        raise ValueError("--side-by-side is for --device gpu: on CPUs every worker has one cell")
    if (options.only or options.outside) and not _tries_networks(options):
        raise ValueError("--only and --outside are for --profile which-lenet: leave them out")


def _find_data(profile, data_dir):
    """The images of a profile, and the Source that tells workers where to find them."""
    from minires.study.cells import Source
    from minires.study.experiment import fingerprint

    data_dir = None if data_dir is None else str(Path(data_dir).resolve())
    source = Source("", profile.data, profile.train, profile.test, data_dir, "")
    dataset = source.load_dataset()
    counts = {"train": len(dataset.train_images), "test": len(dataset.test_images)}
    if profile.batch > counts["train"]:
        raise ValueError(
            f"--batch is {profile.batch}, but there are {counts['train']} training images"
        )
    other = dataset.name if profile.data == "mnist" and dataset.name != "MNIST" else ""
    return replace(source, **counts, sha256=fingerprint(dataset), other=other), dataset


def _check_all(options, chosen, sweeps):
    """Check, before any work, that each folder fits its sweep, and that disk and memory suffice.

    The sweeps that are not chosen may be there from earlier commands, and are shown beside.
    """
    from minires.arrays.limits import check_memory
    from minires.study.sweep import check_settings, check_space, worker_bytes

    for profile, folder, source in sweeps:
        check_settings(folder, profile, source, options.device)
    for profile, folder, source in chosen:
        check_space(folder, profile, source)
        if options.device == "cpu" and not options.cluster:
            workers = options.workers or arrays.default_threads()
            check_memory(0, worker_bytes(profile), workers, "--workers")


def _compute(options, profile, folder, source, dataset):
    """Compute what is missing of one sweep."""
    import numpy as np

    from minires.arrays.files import complete, save_json
    from minires.study.store import load_sweep, tabulate
    from minires.study.sweep import done_cells, duration, prepare, run_sweep

    cells = profile.cells()
    if _tries_networks(options) and set(cells) <= done_cells(folder):
        return
    prepare(folder, profile, source, options.device)
    if not options.quiet:
        say(
            f"{dataset.name}: {source.train:,} training, {source.test:,} test images; "
            f"{profile.network}: {profile.model(0.0, (28, 28, 1)).size:,} weights; "
            f"{len(cells)} cells; results go to {folder}"
        )
    began = time.monotonic()
    source.share(dataset)
    with complete(folder / "predictions" / "labels.npy") as file:
        np.save(file, dataset.test_labels)
    crew = _crew(options)
    with _remedy_for(crew):
        count = run_sweep(profile, source, folder, crew, options.quiet)
    source.remove_shared()
    save_json(folder / "table.json", tabulate(load_sweep(folder)))
    if not options.quiet:
        seconds = time.monotonic() - began
        say(
            f"{count} cells in {duration(seconds)}, {3600 * count / seconds:,.0f} an hour; "
            f"table.json and all records are in {folder}"
        )


def _print_findings(options, sweeps, out):
    """Print the findings: the table of the sweep, or a line for each network."""
    from minires.arrays.files import load_json, save_json
    from minires.study import which_lenet
    from minires.study.claims import TOO_SMALL
    from minires.study.grid import TESTING
    from minires.study.store import load_sweep, text_table
    from minires.study.sweep import done_cells

    if not _tries_networks(options):
        print(text_table(load_json(out / "table.json")))
        if options.profile in TESTING:
            print(f"\n{TOO_SMALL}")
        return 0
    rows = [
        which_lenet.findings(profile, load_sweep(folder))
        for profile, folder, _ in sweeps
        if set(replace(profile, seeds=1).cells()) <= done_cells(folder)  # perhaps earlier
    ]
    save_json(out / FOUND, rows)
    print(which_lenet.table(rows))
    return 0


@contextlib.contextmanager
def _remedy_for(crew):
    """When a GPU's memory is full, say what to lower."""
    try:
        yield
    except MemoryError as error:
        if type(error).__name__ != "OutOfMemoryError":  # CuPy's; another is this machine's memory
            raise
        raise MemoryError(
            f"the GPU's memory is full ({error}): lower --side-by-side, now {crew.side_by_side}, "
            "or end other programs that use the card; what is finished is kept"
        ) from error


def _crew(options, dry_run=False):
    """Who does the work. For a dry run never a cluster: the time is measured on this machine."""
    from minires.study.crews import Cluster, Device, Processes
    from minires.study.sweep import SIDE_BY_SIDE_ON_GPU

    if options.device == "gpu":
        return Device(options.side_by_side or SIDE_BY_SIDE_ON_GPU)
    if options.cluster and not dry_run:
        return Cluster(options.cluster)
    return Processes(options.workers or arrays.default_threads())


# --- a dry run ----------------------------------------------------------------------------


def _dry_run(options, sweeps, dataset):
    """Print the cells, and how long the missing ones would take; nothing is written."""
    from minires.study.sweep import Cost, done_cells

    crew = _crew(options, dry_run=True)
    rows, costs = [], []
    for profile, folder, _ in sweeps:
        cells, done = profile.cells(), done_cells(folder)
        missing = [cell for cell in cells if cell not in done]
        with _remedy_for(crew):
            cost = Cost.measure(profile, missing, dataset, crew)
        costs.append(cost)
        if not _tries_networks(options):
            print(_describe(profile, cells, done))
            print(cost.describe())
            return 0
        rows.append([
            profile.name, f"{len(missing)} of {len(cells)}", f"{1000 * cost.step:.1f} ms",
            f"{cost.seconds / 60:.1f} min",
        ])  # fmt: skip
    where = "the GPU" if options.device == "gpu" else "one core"
    total = sum(cost.seconds for cost in costs)
    rows += [None, ["all", "", "", f"{total / 60:.1f} min"]]
    print(text.table(["candidate", "cells to do", "a step", f"of {where}"], rows))
    return 0


def _describe(profile, cells, done):
    """One line for each configuration: its seeds, and how many of them are in `done`."""
    groups, finished = Counter(), Counter()
    for cell in cells:
        groups[replace(cell, seed=0)] += 1
        finished[replace(cell, seed=0)] += cell in done
    rows = []
    for cell, seeds in groups.items():
        name = f"{cell.optimizer} {cell.l1:g}, dropout {cell.dropout:g}"
        if not cell.is_pretraining:
            name = f"  then {cell.finetune_optimizer} {cell.l2:g}"
        rows.append([
            name, f"{seeds} seeds", f"{finished[cell]} done", ", ".join(sorted(profile.parts(cell)))
        ])  # fmt: skip
    before = sum(cell.is_pretraining for cell in cells)
    total = f"{len(cells)} cells: {before} pre-trainings, {len(cells) - before} fine-tunings"
    return f"{text.table([], rows)}\n{total}"
