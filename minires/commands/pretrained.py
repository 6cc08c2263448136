"""`minires sweep --profile pretrained`: the paper's second half, on anybody's network.

    minires sweep --profile pretrained --model net.onnx --images train --test-images test --among

`minires.study.pretrained` says what a cell computes and what lies in the folder.
"""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays.text import counted, say
from minires.commands.evaluate import (
    check_batch,
    check_counts,
    describe_notes,
    hash_of_network,
    hash_of_pictures,
    open_examination,
    other_pictures,
)

USED = "pictures.json"  # how many of the pictures can be used, and which

# Options that say something to this profile only.
OWN = (
    "model", "images", "test_images", "choose_images", "rates", "synsets", "labels", "among",
    "background", "output", "scale", "mean", "std", "channels", "resize", "crop", "interpolation",
    "size", "threads",
)  # fmt: skip
OTHERS = (
    "data",
    "data_dir",
    "side_by_side",
    "workers",
    "cluster",
    "train",
    "test",
    "epochs",
    "only",
)


def add_options(parser: Any) -> None:
    """Add to `minires sweep` what this profile needs to know."""
    from minires.commands.evaluate import add_preparation_options

    own = parser.add_argument_group("for --profile pretrained")
    own.add_argument("--model", type=Path, metavar="FILE", help="the ONNX file")
    own.add_argument("--images", type=Path, metavar="DIR",
                     help="pictures to fine-tune on: one folder per class, or a tar")  # fmt: skip
    own.add_argument("--test-images", type=Path, metavar="DIR",
                     help="pictures to compare on")  # fmt: skip
    own.add_argument("--choose-images", type=Path, metavar="DIR",
                     help="other pictures, on which the best rate is chosen (if not given, it is "
                     "chosen on the test pictures, as in the paper)")  # fmt: skip
    own.add_argument("--rates", type=_rates, metavar="A,B,…",
                     help="the rates ℓ₂ to compare (0.0003,0.001,0.003,0.01,0.03)")  # fmt: skip
    add_preparation_options(parser)


def _rates(words):
    """Rates from "0.001,0.01"."""
    return [float(word) for word in words.split(",")]


def check_options(options: Any) -> None:
    """Refuse options that do not go with the profile.

    Raises   ValueError, which names them
    """

    def given(names):
        found = [name for name in names if getattr(options, name) not in (None, False)]
        return ", ".join(f"--{name.replace('_', '-')}" for name in found)

    if options.profile != "pretrained":
        if given(OWN):
            raise ValueError(f"{given(OWN)}: for --profile pretrained only: leave it out")
        return
    if given(OTHERS) or options.outside:
        raise ValueError(
            f"{given(OTHERS) or '--outside'}: for the other profiles only: leave it out"
        )
    needed = ("model", "images", "test_images")
    lacking = [f"--{n.replace('_', '-')}" for n in needed if getattr(options, n) is None]
    if lacking:
        raise ValueError(f"--profile pretrained needs {' and '.join(lacking)}")
    check_counts(options, "seeds", "updates", "batch")
    if options.rates is not None and not all(0 < rate < math.inf for rate in options.rates):
        raise ValueError(f"--rates are {options.rates}, expected numbers above 0")


def run(options: Any) -> int:
    """Carry the command out: check everything, then compute what is missing, then print.

    Raises   ValueError for a batch of more pictures than there are
    """
    from minires.arrays.results import locked_folder, settle, tidy
    from minires.study import pretrained, pretrained_findings
    from minires.study.store import SETTINGS, check_free

    out = options.out or Path("runs") / f"sweep-pretrained-{options.model.stem}"
    batch = options.batch
    options.batch = batch or 32
    examination = open_examination(options)
    network, pictures = examination.network, examination.pictures
    check_batch(options, network)
    if options.batch > len(pictures):
        raise ValueError(
            f"--batch is {options.batch}, but there are only {counted(len(pictures), 'picture')} "
            f"to fine-tune on: --batch {len(pictures)}, or fewer"
        )
    others = {
        name: other_pictures(options, path, pictures.classes)
        for name, path in (("test", options.test_images), ("choose", options.choose_images))
        if path
    }
    updates = options.updates or 2 * (len(pictures) // options.batch)
    plan = pretrained.Plan(updates, options.batch)
    rates = options.rates or pretrained.RATES
    cells = pretrained.cells_of(options.seeds or 1, rates)
    settings = _settings(options, examination, {"train": pictures, **others}, plan)
    with locked_folder(out):
        check_free(out, "cells", "means", "data")
        settle(out, SETTINGS, settings, write=False)
        done = pretrained.read_cells(out)[1] if (out / SETTINGS).exists() else {}
        missing = [cell for cell in cells if cell not in done]
        check_space(out, settings, missing, examination.preset)
        if options.dry_run:
            return _dry_run(examination, plan, cells, missing, settings)
        settle(out, SETTINGS, settings)
        tidy(out, SETTINGS, USED, "cells/*", "means/*", "unfinished_*", "data/*")
        kinds = {"train": pictures, **others}
        found = {name: _decoded(out, name, kinds[name], examination) for name in kinds}
        # The names of all are in the settings. Which of them can be used may change later.
        try:
            settle(
                out, USED, {name: _share(used, kinds[name]) for name, (_, used) in found.items()}
            )
        except ValueError:
            _forget_pixels(out, kinds)  # so that pictures that were mended are read again
            say(*describe_notes(examination))
            raise
        shown = {
            name: _photographs(name, pixels, kinds[name].labels[used], examination)
            for name, (pixels, used) in found.items()
        }
        theta, stats = examination.own_vectors()
        subject = pretrained.Subject(
            network=network, theta=theta, stats=stats, train=shown["train"], test=shown["test"],
            choose=shown.get("choose"), outputs=examination.targets(pictures.labels)[1],
            predict=examination.predict,
        )  # fmt: skip
        say(examination.outputs)
        say(
            f"{counted(len(subject.train), 'picture')} to fine-tune on, {len(subject.test):,} to "
            f"compare on; {theta.size:,} weights, {stats.size:,} batch-norm statistics; "
            f"{len(cells)} cells of {updates} updates; results go to {out}"
        )
        say(*describe_notes(examination))
        began = time.monotonic()
        count = pretrained.run_sweep(subject, plan, cells, out, options.quiet)
        _forget_pixels(out, shown)
        say(f"{counted(count, 'cell')} in {(time.monotonic() - began) / 60:.0f} minutes: {out}")
    print(pretrained_findings.text_table(pretrained_findings.load(out)))
    return 0


def _decoded(out, name, pictures, examination):
    """Pixels of the photographs of one kind, decoded into the folder if need be; which are used."""
    from minires.data import imagenet
    from minires.study import pretrained

    return pretrained.decode(
        out / "data" / f"{name}.npy", pictures, imagenet.preparation(examination.preset),
        examination.size, examination.notes, examination.threads,
    )  # fmt: skip


def _forget_pixels(out, names):
    """Remove what `_decoded` has left."""
    from minires.study import pretrained

    for name in names:
        pixels = out / "data" / f"{name}.npy"
        for path in (pixels, pretrained.used_beside(pixels)):
            path.unlink(missing_ok=True)


def _share(used, pictures):
    """How many pictures are used, and a code for which: "498 of 500 (3f2a90b1)"."""
    code = hashlib.sha256(used.astype("<i8").tobytes()).hexdigest()[:8]
    return f"{len(used)} of {len(pictures)} ({code})"


def _photographs(name, pixels, labels, examination):
    """Photographs of one kind, with labels as the network has them."""
    from minires.data import imagenet
    from minires.study import pretrained

    preparation = imagenet.preparation(examination.preset)
    labels = examination.targets(labels)[0] if name == "train" else examination.places(labels)
    return pretrained.Photographs(
        pixels, labels, lambda cut: examination.as_input(preparation.scaled(cut))
    )


def _settings(options, examination, shown, plan):
    """What must be the same for a sweep to be gone on with; more seeds and rates are more of it."""
    from minires.study import pretrained

    network, pictures = examination.network, shown["train"]
    return {
        "format": pretrained.FORMAT,
        "profile": pretrained.PROFILE,
        "model": options.model.name,
        "model_sha256": hash_of_network(options, network),
        "weights": network.theta.size,
        "statistics": network.stats.size,
        "folders": {name: Path(each.where).name for name, each in shown.items()},
        "images": {name: len(each) for name, each in shown.items()},
        "images_sha256": {name: hash_of_pictures(each) for name, each in shown.items()},
        "classes": [pictures.classes[number] for number in examination.compared],
        "outputs": network.classes,
        "among": options.among,
        "preset": str(examination.preset),
        "size": examination.size,
        "updates": plan.updates,
        "batch": plan.batch,
        "ema": pretrained.EMA_DECAY,
        "members": pretrained.MEMBERS,
        "device": options.device,
    }


def check_space(folder: Path, settings: dict, cells: list, preset: Any) -> None:
    """Refuse a sweep whose results the disk cannot hold.

    folder     of the sweep
    settings   what its sweep.json will say
    cells      those that are missing
    preset     name or Preparation of the pictures
    Raises     OSError, which says how many cells would fit
    """
    from minires.arrays.limits import check_disk
    from minires.data import imagenet
    from minires.study import pretrained

    pixels = 3 * settings["size"] ** 2 * sum(settings["images"].values())
    pixels *= pretrained.dtype_of(imagenet.preparation(preset)).itemsize
    pixels -= sum(path.stat().st_size for path in (folder / "data").glob("*"))
    vectors = settings["weights"] + settings["statistics"]
    each = 4 * vectors + 200 * settings["images"]["test"]
    check_disk(folder, pixels + 40 * vectors, each, len(cells), "cells")


# --- what it would cost -------------------------------------------------------------------


def _dry_run(examination, plan, cells, missing, settings):
    """Print the cells, and how long those that are missing would take; nothing is kept."""
    from minires.study import pretrained
    from minires.study.sweep import duration

    network, rng = examination.network, np.random.default_rng(0)
    shape = (plan.batch, examination.size, examination.size, 3)
    images = examination.as_input(rng.uniform(-1, 1, shape).astype(np.float32))
    labels, classes = examination.targets(examination.pictures.labels[: plan.batch])
    theta, stats = examination.own_vectors()
    steps = []
    for _ in range(4):
        began = time.perf_counter()
        network.loss_and_gradient(theta, images, labels, stats=stats, rng=rng, classes=classes)
        steps.append(time.perf_counter() - began)
    step = float(np.median(steps[1:]))
    began = time.perf_counter()
    examination.predict(theta, images, stats)
    each = (time.perf_counter() - began) / plan.batch
    compared = 3 + 2 * bool(stats.size)
    shown = (compared + pretrained.MEMBERS) * settings["images"]["test"]
    shown += compared * settings["images"].get("choose", 0)
    seconds = sum(plan.updates * step + shown * each for cell in missing if cell.rate is not None)
    print(
        f"{len(missing)} of {counted(len(cells), 'cell')} to do: {plan.updates} updates of "
        f"{step:.2f} s and {shown:,} predictions of {1000 * each:.1f} ms each (measured now):\n"
        f"about {duration(seconds)}"
    )
    return 0
