"""Which LeNet was it? `python -m minires.study.identify`: a small sweep of each candidate.

The paper says "the LeNet model" and no more. This asks which shape, which initial weights and
which scale of the inputs let its claims C1, C5 and C11 come out, and which reach the accuracies
that it shows, 99.3 % and more. One thing at a time differs from the default.

    DIR/CANDIDATE/…      a sweep like any other: `minires report DIR/CANDIDATE` shows it
    DIR/identify.json    what came out, for all candidates

Stopped, the same command goes on.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minires import arrays
from minires.arrays.files import complete, save_json
from minires.study.cells import Source, work
from minires.study.claims import ADAM_CEILING, verdicts
from minires.study.crews import Device, Processes
from minires.study.experiment import fingerprint
from minires.study.grid import ADAM_RATE, Cell, Profile
from minires.study.propositions import count
from minires.study.store import load_sweep
from minires.study.sweep import (
    TOGETHER_ON_GPU,
    check_settings,
    measure,
    measure_on_gpu,
    prepare,
    run_sweep,
)

REACH = 0.993  # the paper's figures begin about there
L1, L2 = 0.2, 0.15
OUTSIDE = (0.05, 0.6)  # of the paper's range of ℓ₁, for C1
CLAIMS = ("C1", "C5", "C11")


@dataclass(frozen=True)
class Candidate(Profile):
    """A network that may have been the paper's.

    inputs   what grey levels 0 … 255 become: "[-1, 1]", "[0, 1]", or "standardised" to mean 0
             and standard deviation 1 over the training images
    """

    data: str = "mnist"
    l1: tuple = (L1,)
    l1_outside: tuple = ()
    l2: tuple = (L2,)
    seeds: int = 1
    inputs: str = "[-1, 1]"
    baselines: tuple = ()
    curves: tuple = ()

    def cells(self):
        """SGD after SGD, Adam after Adam, with and without dropout."""
        found = set()
        for seed in range(self.seeds):
            for dropout in self.dropout:
                for optimizer, l1, l2 in (("sgd", L1, L2), ("adam", ADAM_RATE, ADAM_RATE)):
                    start = Cell(optimizer, l1, dropout, seed)
                    found |= {start, replace(start, finetune_optimizer=optimizer, l2=l2)}
            found |= {Cell("sgd", l1, max(self.dropout), seed) for l1 in self.l1_outside}
        return sorted(found, key=lambda cell: cell.order)

    def parts(self, cell):
        """Nothing beyond the paper's methods."""
        return frozenset()


CANDIDATES = (
    Candidate("slim-1024"),
    Candidate("slim-512", options={"hidden": 512}),
    Candidate("20-50-500", options={"channels": (20, 50), "hidden": 500}),
    Candidate("6-16-120-84", network="lenet_classic"),
    Candidate("slim-1024-he", options={"initializer": "he"}),
    Candidate("slim-1024-truncated-normal", options={"initializer": "truncated_normal"}),
    Candidate("slim-1024-inputs-0-1", inputs="[0, 1]"),
    Candidate("slim-1024-inputs-standardised", inputs="standardised"),
)


@dataclass(frozen=True)
class Rescaled(Source):
    """Images on another scale than [−1, 1]; all workers read the files that `share` wrote.

    inputs   as in `Candidate`
    """

    inputs: str = field(default="[-1, 1]", kw_only=True)

    def share(self, dataset):
        """Write the files, in the scale of `inputs`."""
        super().share(dataset)
        if self.inputs == "[-1, 1]":
            return
        images = np.load(self._file("train_images"), mmap_mode="r")
        # Means in float64: 47 million values.
        mean, deviation = {
            "[0, 1]": lambda: (-1.0, 2.0),
            "standardised": lambda: (
                images.mean(dtype=np.float64),
                images.std(dtype=np.float64),
            ),
        }[self.inputs]()
        for name in ("train_images", "test_images"):
            images = np.load(self._file(name))
            images -= np.float32(mean)
            images /= np.float32(deviation)
            with complete(self._file(name)) as file:
                np.save(file, images)

    def data(self):
        """The data; FileNotFoundError where the files are not, as no other scale will do."""
        if not self._file("train_images").exists():
            raise FileNotFoundError(f"{self._file('train_images')}: the shared images are gone")
        return super().data()


# --- what came out ------------------------------------------------------------------------


def findings(candidate, sweep):
    """What a sweep says of one candidate.

    Returns  dict: "candidate"; "weights", how many; "scores", {what: mean accuracy over seeds};
             "best", the largest of them; "reaches", whether that is `REACH` or more; "claims",
             {"C1": {"outcome", "points": {what: difference}, "agrees"}, …}. `agrees` is the
             direction alone, None where nothing was measured; with one seed it is no test.
    """
    found = {}
    for record in sweep.records:
        cell = record["cell"]
        start = cell["optimizer"], cell["l1"], cell["dropout"]
        for method, scores in record["methods"].items():
            found.setdefault((*start, method), []).append(scores["accuracy"])
    means = {key: float(np.mean(values)) for key, values in found.items()}
    on, off = max(candidate.dropout), min(candidate.dropout)

    def at(optimizer, method, dropout=on, l1=None):
        rate = l1 or (L1 if optimizer == "sgd" else ADAM_RATE)
        return means.get((optimizer, rate, dropout, method), np.nan)

    inner = at("sgd", "pretrained")
    outcomes = {verdict.claim: verdict.outcome for verdict in verdicts(sweep)}
    differences = {
        "C1": {f"{L1:g} − {l1:g}": inner - at("sgd", "pretrained", l1=l1) for l1 in OUTSIDE},
        "C5": {"dropout": at("sgd", "finetuned") - at("sgd", "finetuned", off)},
        "C11": {
            f"plain below {ADAM_CEILING}": ADAM_CEILING
            - max(at("adam", "finetuned"), at("adam", "finetuned", off)),
            "mean − plain": (
                at("adam", "mean")
                + at("adam", "mean", off)
                - at("adam", "finetuned")
                - at("adam", "finetuned", off)
            )
            / 2,
        },
    }
    claims = {}
    for claim, parts in differences.items():
        measured = {what: value for what, value in parts.items() if np.isfinite(value)}
        whole = len(measured) == len(parts)
        claims[claim] = {
            "outcome": outcomes[claim],
            "points": {what: 100 * value for what, value in measured.items()},
            "agrees": all(value > 0 for value in measured.values()) if whole else None,
        }
    scores = {
        f"{optimizer} {l1:g}, dropout {dropout:g}: {method}": value
        for (optimizer, l1, dropout, method), value in means.items()
    }
    best = max(scores, key=scores.get, default=None)
    return {
        "candidate": candidate.name,
        "weights": candidate.model(on, (28, 28, 1)).size,
        "seeds": len({record["cell"]["seed"] for record in sweep.records}),
        "scores": scores,
        "best": best,
        "reaches": None if best is None else scores[best] >= REACH,
        "claims": claims,
    }


def table(rows):
    """What `findings` say, as text: a line for each candidate."""
    lines = [
        f"{'candidate':30} {'weights':>9} {'best %':>7} {'≥ 99.3':>6}  "
        + "  ".join(f"{claim:22}" for claim in CLAIMS)
    ]
    for row in rows:
        best = f"{100 * row['scores'][row['best']]:7.2f}" if row["best"] else f"{'':7}"
        line = f"{row['candidate']:30} {row['weights']:9,} {best} {_word(row['reaches']):>6}  "
        for claim in CLAIMS:
            found = row["claims"][claim]
            points = " ".join(f"{value:+.2f}" for value in found["points"].values())
            line += f"{_word(found['agrees'])} {points}".ljust(24)
        lines.append(line.rstrip())
    seeds = max((row["seeds"] for row in rows), default=0)
    lines += [
        "",
        f"{count(seeds, 'seed')}; percentage points. yes, no: the direction; a single accuracy is "
        "known to ± 0.08, so differences of one seed show little.",
        f"C1: ℓ₁ {L1:g} minus {OUTSIDE[0]:g} and {OUTSIDE[1]:g}. C5: plain fine-tuning, dropout "
        "on minus off.",
        f"C11, trained and fine-tuned with Adam: {ADAM_CEILING} minus plain; mean model minus "
        "plain.",
        "best: of all methods, after SGD and after Adam, with dropout and without.",
    ]
    return "\n".join(lines)


def _word(truth):
    return {True: "yes", False: "no", None: "–"}[truth]


# --- the command --------------------------------------------------------------------------


def main(arguments=None):
    """Run the candidates; the exit code is 0, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m minires.study.identify", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", choices=("glyphs", "mnist"), default="mnist")
    parser.add_argument("--data-dir", type=Path, help="the folder of the MNIST files")
    parser.add_argument("--out", type=Path, default=Path("runs/identify"), help="(runs/identify)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where (cpu)")
    parser.add_argument(
        "--together",
        type=int,
        help=f"seeds that train side by side on a GPU, at most ({TOGETHER_ON_GPU})",
    )
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument(
        "--only",
        action="append",
        choices=[candidate.name for candidate in CANDIDATES],
        metavar="CANDIDATE",
        help="only this one; may be given again: "
        + ", ".join(candidate.name for candidate in CANDIDATES),
    )
    parser.add_argument("--outside", action="store_true", help="C1 too: ℓ₁ 0.05 and 0.6")
    for name, what in (
        ("seeds", "repeats (1)"),
        ("train", "training images (all)"),
        ("test", "test images (all)"),
        ("epochs", "of pre-training (2)"),
        ("updates", "of fine-tuning (500)"),
        ("batch", "images in a mini-batch (128)"),
    ):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--dry-run", action="store_true", help="only the cells and the time")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with it", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        remedy = ""
        if type(error).__name__ == "OutOfMemoryError":  # CuPy's
            remedy = ": the GPU's memory is full: lower --together or --batch"
        print(f"identify: {error}{remedy}", file=sys.stderr)
        return 2


def _crew(options):
    """Who does the work; said before anything is loaded."""
    arrays.module_for(options.device)  # is there a GPU?
    for name in ("workers", "together"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected 1 or more")
    if options.device == "cpu":
        if options.together:
            raise ValueError("--together is for --device gpu: on CPUs every worker has one cell")
        return Processes(options.workers or arrays.default_threads())
    if options.workers:
        raise ValueError("--workers is for CPUs, --device gpu works in one process: leave it out")
    return Device(options.together or TOGETHER_ON_GPU)


def _run(options):
    crew = _crew(options)
    named = ("data", "seeds", "train", "test", "epochs", "updates", "batch")
    changed = {name: getattr(options, name) for name in named}
    changed = {name: value for name, value in changed.items() if value is not None}
    if options.outside:
        changed["l1_outside"] = OUTSIDE
    chosen = [
        replace(candidate, **changed)
        for candidate in CANDIDATES
        if not options.only or candidate.name in options.only
    ]
    data_dir = None if options.data_dir is None else str(options.data_dir.resolve())
    source = Rescaled("", options.data, options.train, options.test, data_dir, "")
    dataset = source.load_dataset()
    source = replace(
        source,
        train=len(dataset.train_images),
        test=len(dataset.test_images),
        sha256=fingerprint(dataset),
    )
    for candidate in chosen:  # a finished folder, too, must be one of these settings
        check_settings(options.out / candidate.name, candidate, source, options.device)
    if options.dry_run:
        print(_estimate(chosen, options.out, dataset, crew))
        return 0
    for candidate in chosen:
        folder = options.out / candidate.name
        cells = candidate.cells()
        if len(_done(folder, cells)) < len(cells):
            images = replace(
                source, folder=str((folder / "data").resolve()), inputs=candidate.inputs
            )
            prepare(folder, candidate, images, options.device)
            images.share(dataset)
            run_sweep(candidate, images, folder, crew, options.quiet)
            shutil.rmtree(folder / "data")
    rows = [findings(candidate, load_sweep(options.out / candidate.name)) for candidate in chosen]
    save_json(options.out / "identify.json", rows)
    print(table(rows))
    return 0


def _done(folder, cells):
    """Those of the cells that a folder holds."""
    if not (folder / "sweep.json").exists():
        return set()
    sweep = load_sweep(folder)
    return {Cell(**record["cell"]) for record in [*sweep.records, *sweep.diverged]} & set(cells)


def _estimate(candidates, out, dataset, crew):
    """The cells that are missing, and their time from one measured step of each network."""
    lines, total = [], 0.0
    on_gpu = isinstance(crew, Device)
    of = "the GPU" if on_gpu else "one core"
    sizes = len(dataset.train_images), len(dataset.test_images)
    for candidate in candidates:
        if on_gpu:  # only seeds are side by side: all other cells differ in more than rates
            together = min(crew.together, candidate.seeds)
            step, predicting = measure_on_gpu(candidate, dataset, together)
        else:
            step, predicting = measure(candidate, dataset)
        cells = candidate.cells()
        missing = set(cells) - _done(out / candidate.name, cells)
        costs = [work(cell, candidate, *sizes) for cell in missing]
        seconds = sum(updates * step + scored * predicting for updates, scored in costs)
        total += seconds
        lines.append(
            f"{candidate.name:30} {len(missing):3} of {len(cells):3} cells to do, "
            f"{1000 * step:6.1f} ms a step: {seconds / 60:6.1f} min of {of}"
        )
    shared = "" if on_gpu else f", {total / crew.count / 60:.1f} on {crew.count}"
    lines.append(f"{'all':30} {total / 60:.1f} min of {of}{shared}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
