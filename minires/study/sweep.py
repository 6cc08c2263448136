"""A sweep: every cell of a profile, on all cores, many machines or a GPU; it can stop and go on.

The folder of a sweep, DIR:

    sweep.json          the settings; a sweep with other settings is refused
    cells/*.json        the record of each finished cell, one file per cell
    pretrained/*.npz    θ after each pre-training, where fine-tunings start
    predictions/*.npy   test probabilities of the fine-tuned networks, for deep ensembles
    data/*.npy          the images, which all workers map into the same memory
    table.json          all findings, sorted; the same bits for any number of workers

A cell is finished when its file exists. When a sweep was stopped, the same command computes what is
missing. A GPU finishes dozens of cells at the same moment; stopped before that, it loses them all.
A GPU has other dropout masks, and cells that train side by side may round differently. So
sweep.json also names the device.
"""

import itertools
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minires import arrays
from minires.arrays.files import complete, load_arrays, load_json, save_arrays
from minires.arrays.limits import check_disk
from minires.arrays.results import settle, tidy
from minires.arrays.text import progress
from minires.resampling.moments import Moments
from minires.study.cells import ENSEMBLE_BATCH, Outcome, Source, Start, alike, compute, work
from minires.study.crews import Device, failure, is_death
from minires.study.grid import MEMBERS, Cell, Profile
from minires.study.store import FORMAT, SETTINGS, Store, check_free, read_cells
from minires.training.optimizers import SGD
from minires.training.timing import Problem

PARTS = ("cells", "pretrained", "predictions", "data")  # folders in that of a sweep
# 50 networks of the full profile need about 10 GB of the GPU's memory, with all baselines 15 GB.
SIDE_BY_SIDE_ON_GPU = 50
MEASURED = 5  # rounds of a measurement
# After so many deaths of its worker a cell is computed alone; one more death is an error.
DEATHS = 3


# --- the sweep ----------------------------------------------------------------------------


def run_sweep(
    profile: Profile, source: Source, folder: Path, crew: Any, quiet: bool = False
) -> int:
    """Compute every cell of a profile that the folder does not hold yet.

    profile   Profile
    source    Source of the data
    folder    of the sweep, prepared by `prepare`
    crew      Processes, Cluster or Device: it has `submit`, `capacity`, `side_by_side`, `renew` and
              `close`
    quiet     no progress bar
    Returns   how many cells were missing; all of them are now finished
    Raises    RuntimeError when the workers of a cell die again and again
    """
    folder = Path(folder)
    plan = Plan(profile, Store(folder), folder, source)
    count, missing = len(profile.cells()), plan.missing
    settings = {"desc": f"sweep {profile.name}", "unit": "cell", "quiet": quiet}
    try:
        with progress(total=count, initial=count - missing, **settings) as bar:
            _carry_out(plan, profile, source, crew, bar)
    finally:
        crew.close()
    return missing


def _carry_out(plan, profile, source, crew, bar):
    running, deaths = {}, Counter()
    while plan.ready or running:
        while plan.ready and len(running) < crew.capacity:
            cells = plan.next(crew.side_by_side)
            involved = itertools.chain(cells, *running.values())
            if running and any(deaths[cell] >= DEATHS for cell in involved):
                break  # a suspected cell is computed alone, so that no other cell is blamed
            plan.take(cells)
            try:
                call = crew.submit(compute, cells, profile, source, plan.starts_of(cells))
                running[call] = cells
            except BrokenExecutor:  # a worker died just now
                plan.put_back(cells)
                if not running:
                    crew.renew()
                break
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        if any(isinstance(failure(future), BrokenExecutor) for future in finished):
            finished, _ = wait(running)  # when one process dies, all calls are lost
        errors = {}
        for future in finished:
            cells = running.pop(future)
            if error := failure(future):
                errors[tuple(cells)] = error
            else:
                for cell, outcome in zip(cells, future.result(), strict=True):
                    bar.update(plan.finish(cell, outcome))
        for cells, error in errors.items():
            if not is_death(error):
                raise error
            deaths.update(cells)
            if deaths[cells[0]] > DEATHS:
                raise RuntimeError(
                    f"{cells[0].key}: its worker died {deaths[cells[0]]} times, the last time with "
                    f"no other cell at work ({type(error).__name__}): is there too little memory? "
                    "What is finished is kept"
                ) from error
            plan.put_back(cells)
        if errors:
            crew.renew()


class Plan:
    """Which cells are missing, and in which order they are computed; writes the finished ones.

    profile  Profile, whose cells make the sweep
    store    Store
    folder   of the sweep
    source   Source of the data
    """

    def __init__(self, profile: Profile, store: Store, folder: Path, source: Source):
        self.profile = profile
        self.source = source
        self.store = store
        self.folder = folder
        self.ready = []
        self._blocked = {}  # fine-tunings that wait for a pre-training
        self._done = {Cell(**record["cell"]): record for record in store.records}
        self.missing = 0
        for cell in profile.cells():
            before = cell.pretraining
            if cell in self._done or self._settle_lost(cell):
                continue
            self.missing += 1
            if cell == before or (before in self._done and self._weights(before).exists()):
                self.put_back([cell])
            else:
                if before in self._done and before not in self._blocked:
                    self.put_back([before])  # its weights are missing: compute them again
                self._blocked.setdefault(before, []).append(cell)

    def _settle_lost(self, cell):
        """Whether the pre-training of a cell has diverged; if so, write the record of the cell."""
        before = self._done.get(cell.pretraining, {})
        if "diverged" not in before:
            return False
        reason = f"its pre-training: {before['diverged']}"
        self._append(cell, {"cell": asdict(cell), "diverged": reason})
        return True

    def _weights(self, cell):
        return self.folder / "pretrained" / f"{cell.key}.npz"

    @cached_property
    def _size(self):
        """How many weights a network has."""
        return self.profile.model(0.0, self.source.data().train_images.shape[1:]).size

    def next(self, most: int) -> list[Cell]:
        """The next cells to compute side by side: at most `most`, all `alike`.

        If there are more of one kind, they are divided into equal groups. With `most` above 1,
        pre-trainings come first: then more fine-tunings can start at the same time.

        most   how many
        """
        first = min(self.ready, key=lambda cell: (most > 1 and not cell.is_pretraining, cell.order))
        if most == 1:
            return [first]
        kind = alike(first, self.profile)
        found = [cell for cell in self.ready if alike(cell, self.profile) == kind]
        calls = -(-len(found) // most)
        return sorted(found, key=lambda cell: cell.order)[: -(-len(found) // calls)]

    def take(self, cells: list[Cell]) -> None:
        """These cells are being computed."""
        self.ready = [cell for cell in self.ready if cell not in cells]

    def put_back(self, cells: list[Cell]) -> None:
        """These cells must be computed (again)."""
        self.ready += cells

    def starts_of(self, cells: list[Cell]) -> list[Start] | None:
        """[Start, …] for fine-tunings, None for pre-trainings."""
        return None if cells[0].is_pretraining else [self._start_of(cell) for cell in cells]

    def _start_of(self, cell):
        before = cell.pretraining
        path = self._weights(before)
        try:
            kept = load_arrays(path, "cell", "sweep", shapes={"theta": (self._size,)})
        except ValueError as error:
            raise ValueError(f"{error}: remove it, it will be made again") from error
        if (str(kept["sweep"]), str(kept["cell"])) != (self.store.name, before.key):
            raise ValueError(f"{path} belongs to another sweep: remove it, it will be made again")
        return Start(kept["theta"], self._done[before]["methods"]["pretrained"])

    def finish(self, cell: Cell, outcome: Outcome) -> int:
        """Write the result of a cell, its record last; returns how many records are new.

        outcome   its Outcome, as from `cells.compute`
        """
        if outcome.theta is not None:
            names = {"cell": np.array(cell.key), "sweep": np.array(self.store.name)}
            save_arrays(self._weights(cell), theta=outcome.theta, **names)
        if outcome.predictions is not None:
            with complete(self.folder / "predictions" / f"{cell.key}.npy") as file:
                np.save(file, outcome.predictions)
        new = self._append(cell, outcome.record)
        for after in self._blocked.pop(cell, []):
            if self._settle_lost(after):
                new += 1
            else:
                self.put_back([after])
        return new

    def _append(self, cell, record):
        if cell in self._done:
            return 0
        self.store.add(record)
        self._done[cell] = record
        return 1


def prepare(folder: Path, profile: Profile, source: Source, device: str = "cpu") -> None:
    """Make the folder of a sweep, or check that it holds the same sweep; check the disk's space.

    folder   held by `locked_folder`
    device   "cpu" or "gpu"
    Raises   ValueError when it holds a sweep with other settings or data, or of another device;
             OSError when the results would not fit on the disk
    """
    folder = Path(folder)
    now = check_settings(folder, profile, source, device)
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, profile, source)
    for part in PARTS:
        (folder / part).mkdir(exist_ok=True)
    tidy(folder, SETTINGS, "table.json", *(f"{part}/*" for part in PARTS))
    settle(folder, SETTINGS, now)


def check_settings(folder: Path, profile: Profile, source: Source, device: str = "cpu") -> dict:
    """Check that a folder holds no other sweep; nothing is written.

    device    "cpu" or "gpu"
    Returns   the settings for sweep.json
    Raises    ValueError when it holds a sweep with other settings or data, or of another device
    """
    folder = Path(folder)
    now = {"format": FORMAT, **profile.settings(), "device": device}
    now |= {"train": source.train, "test": source.test, "data_sha256": source.sha256}
    name = source.other
    if has_begun := (folder / SETTINGS).exists():
        read_cells(folder)  # damaged ones, or those of an earlier version, are refused here
        name = load_json(folder / SETTINGS).get("data_name")  # a moved folder holds the same data
    if name:
        now["data_name"] = name
    if has_begun:
        settle(folder, SETTINGS, now, write=False)
    check_free(folder, "results.jsonl", *PARTS)
    return now


def check_space(folder: Path, profile: Profile, source: Source) -> None:
    """Check that the disk can hold the results; OSError says how many seeds would fit."""
    weights = profile.model(0.0, (28, 28, 1)).size
    shared = (source.train + source.test) * 28 * 28 * 4
    each = 0  # bytes of one seed
    for cell in replace(profile, seeds=1).cells():
        each += 16_000  # its record, in its file and in the table
        each += 4 * weights if cell.is_pretraining else 0
        each += 40 * source.test if "baselines" in profile.parts(cell) else 0
    done = sum(path.stat().st_size for part in PARTS for path in (folder / part).glob("*.*"))
    check_disk(folder, shared - done, each, profile.seeds, "--seeds")


def worker_bytes(profile: Profile) -> int:
    """The least memory of a worker: for the program, and for all that it keeps of its networks."""
    return 60_000_000 + 80 * profile.model(0.0, (28, 28, 1)).size


def done_cells(folder: Path) -> set[Cell]:
    """The cells of a folder that are finished or diverged."""
    if not (Path(folder) / SETTINGS).exists():
        return set()
    return {Cell(**record["cell"]) for record in read_cells(folder)[1]}


# --- the estimate -------------------------------------------------------------------------


def measure(profile: Profile, dataset: Any) -> tuple[float, float]:
    """Seconds of one training step with its update of the moments, and of one prediction.

    Both on one thread, as in a worker of `Processes`.
    """
    images, labels = dataset.train_images[:2048].astype(np.float32) / 255, dataset.train_labels
    model = profile.model(max(profile.dropout), images.shape[1:])
    rng = np.random.default_rng(0)
    theta, optimizer, chosen = model.init(rng), SGD(0.01), slice(0, profile.batch)
    moments, steps = Moments(theta.shape), []
    with arrays.threads(1):
        for _ in range(13):
            began = time.perf_counter()
            _, gradient = model.loss_and_gradient(theta, images[chosen], labels[chosen], rng=rng)
            optimizer.step(theta, gradient)
            moments.update(theta)
            steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        model.predict(theta, images)
        predicting = time.perf_counter() - began
    return float(np.median(steps[3:])), predicting / len(images) * len(dataset.test_images)


def measure_on_gpu(profile: Profile, dataset: Any, side_by_side: int) -> tuple[float, float]:
    """The same as `measure`, per network, when several share a GPU.

    side_by_side   how many networks
    """
    model = profile.model(max(profile.dropout), dataset.train_images.shape[1:])
    training = Problem(model, profile.batch, side_by_side, "gpu")
    step = training.step_seconds(MEASURED, moments=True) / side_by_side
    ensemble = Problem(model, ENSEMBLE_BATCH, MEMBERS, "gpu")
    predicting = ensemble.predict_seconds(MEASURED) / (MEMBERS * len(ensemble.images))
    return step, predicting * len(dataset.test_images)


@dataclass(frozen=True)
class Cost:
    """How long cells will take, computed from one measured step and one measured prediction.

    updates        of training, summed over all cells
    predictions    of all test images, summed over all cells
    images         number of test images
    step           seconds of one update
    predicting     seconds of one prediction
    side_by_side   networks side by side on a GPU; None on a CPU
    workers        on a CPU
    """

    updates: int
    predictions: float
    images: int
    step: float
    predicting: float
    side_by_side: int | None
    workers: int

    @classmethod
    def measure(cls, profile: Profile, cells: list[Cell], dataset: Any, crew: Any) -> "Cost":
        """Measure on the crew's device.

        cells   the missing ones
        crew    Processes or Device
        """
        train, test = len(dataset.train_images), len(dataset.test_images)
        side_by_side = None
        if isinstance(crew, Device):
            kinds = Counter(alike(cell, profile) for cell in cells)
            side_by_side = max(1, min(crew.side_by_side, max(kinds.values(), default=1)))
            step, predicting = measure_on_gpu(profile, dataset, side_by_side)
        else:
            step, predicting = measure(profile, dataset)
        costs = [work(cell, profile, train, test) for cell in cells]
        updates, predictions = (sum(cost[part] for cost in costs) for part in (0, 1))
        workers = getattr(crew, "count", 1)
        return cls(updates, predictions, test, step, predicting, side_by_side, workers)

    @property
    def seconds(self) -> float:
        """Seconds of one core, or of the GPU."""
        return self.updates * self.step + self.predictions * self.predicting

    def describe(self) -> str:
        """The cost as text."""
        if self.side_by_side:
            how, digits = f"{self.side_by_side} side by side", 4
            whole = f"{duration(self.seconds)}, plus what the host needs"
        else:
            how, digits = "one thread", 2
            whole = (
                f"{duration(self.seconds)} of one core, {duration(self.seconds / self.workers)} "
                f"on {self.workers} workers if each has a core to itself"
            )
        return (
            f"{self.updates:,} updates of {1000 * self.step:.{digits - 1}f} ms and "
            f"{self.predictions:,.0f} predictions of {self.images:,} images, "
            f"{self.predicting:.{digits}f} s each ({how}, measured now):\nabout {whole}"
        )


def duration(seconds: float) -> str:
    """Seconds as text, in seconds, minutes or hours.

    seconds   of the work
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
