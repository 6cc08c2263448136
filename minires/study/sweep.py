"""`minires sweep`: every cell of a profile, on all cores, many machines or a GPU; stop and go.

The folder of a sweep, DIR:

    sweep.json          the settings, written once: a rerun with others is refused
    results.jsonl       one line for every finished cell, appended in one piece
    pretrained/*.npz    θ after each pre-training, where fine-tunings start
    predictions/*.npy   test probabilities of the fine-tuned networks, for deep ensembles
    data/*.npy          the images, which all workers read from the same memory
    table.json          everything that was found, sorted; the same bits for any number of workers

A cell is finished when its line is there. Whatever stops a sweep, the same command does what is
missing. On a GPU dozens of cells are finished at once, and as many are lost when it is stopped.
Dropout masks are others there, and what trains side by side may change the rounding; so sweep.json
says where it is done.
"""

import contextlib
import itertools
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minires import arrays
from minires.arrays.files import complete, load_arrays, load_json, save_arrays, save_json
from minires.resampling.moments import Moments
from minires.study.cells import TOGETHER, Source, Start, alike, compute, work
from minires.study.crews import Cluster, Device, Processes, failure, is_death
from minires.study.experiment import fingerprint
from minires.study.grid import MEMBERS, PROFILES, Cell
from minires.study.store import Store, load_sweep, tabulate, text_table
from minires.training.optimizers import SGD
from minires.training.timing import Problem

TOGETHER_ON_GPU = 50  # networks of the full profile need some 10 GB, with all baselines 15
MEASURED = 5  # rounds of a measurement
DEATHS = 3  # of a cell's worker; after that the cell runs alone, and once more is an error


# --- the sweep ----------------------------------------------------------------------------


def run_sweep(profile, source, folder, crew, quiet=False):
    """Compute every cell of a profile that the folder does not hold yet.

    profile   Profile
    source    Source of the data
    folder    of the sweep, prepared by `prepare`
    crew      Processes, Cluster or Device: has `submit`, `capacity`, `together`, `renew`, `close`
    quiet     no progress bar
    Returns   how many cells were missing, and are now there
    Raises    RuntimeError when a cell kills its worker again and again
    """
    folder = Path(folder)
    with Store(folder / "results.jsonl") as store:
        plan = Plan(profile, store, folder)
        count, missing = len(profile.cells()), plan.missing
        bar = tqdm(
            desc=f"sweep {profile.name}",
            total=count,
            initial=count - missing,
            unit="cell",
            disable=True if quiet else None,
        )
        try:
            with bar:
                _carry_out(plan, profile, source, crew, bar)
        finally:
            crew.close()
    return missing


def _carry_out(plan, profile, source, crew, bar):
    running, deaths = {}, Counter()
    while plan.ready or running:
        while plan.ready and len(running) < crew.capacity:
            cells = plan.next(crew.together)
            involved = itertools.chain(cells, *running.values())
            if running and any(deaths[cell] >= DEATHS for cell in involved):
                break  # a suspect runs alone, so that nobody else is blamed
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
            finished, _ = wait(running)  # where one process died, all calls are lost
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
                    f"nothing else at work ({type(error).__name__}): is there too little memory? "
                    "What is finished is kept"
                ) from error
            plan.put_back(cells)
        if errors:
            crew.renew()


class Plan:
    """What is still to be done, and in which order; what is done goes to the files.

    profile  Profile, whose cells make the sweep
    store    the open Store
    folder   of the sweep
    """

    def __init__(self, profile, store, folder):
        self.profile = profile
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
                    self.put_back([before])  # its weights are not there: once more
                self._blocked.setdefault(before, []).append(cell)

    def _settle_lost(self, cell):
        """Record a cell that has nothing to start from, and say whether it is one."""
        before = self._done.get(cell.pretraining, {})
        if "diverged" not in before:
            return False
        reason = f"its pre-training: {before['diverged']}"
        self._append(cell, {"cell": asdict(cell), "diverged": reason})
        return True

    def _weights(self, cell):
        return self.folder / "pretrained" / f"{cell.key}.npz"

    def next(self, most):
        """The cells to be done next, side by side: those that are `alike`, `most` at most.

        Where there are more they are parted evenly. Pre-trainings come first then: the more of
        them are done, the more fine-tunings can start at once.
        """
        first = min(self.ready, key=lambda cell: (most > 1 and not cell.is_pretraining, cell.order))
        if most == 1:
            return [first]
        kind = alike(first, self.profile)
        found = [cell for cell in self.ready if alike(cell, self.profile) == kind]
        calls = -(-len(found) // most)
        return sorted(found, key=lambda cell: cell.order)[: -(-len(found) // calls)]

    def take(self, cells):
        """Somebody does these cells now."""
        self.ready = [cell for cell in self.ready if cell not in cells]

    def put_back(self, cells):
        """These cells are to be done (again)."""
        self.ready += cells

    def starts_of(self, cells):
        """[Start, …] of fine-tunings, None for pre-trainings."""
        return None if cells[0].is_pretraining else [self._start_of(cell) for cell in cells]

    def _start_of(self, cell):
        theta = load_arrays(self._weights(cell.pretraining), "theta")["theta"]
        return Start(theta, self._done[cell.pretraining]["methods"]["pretrained"])

    def finish(self, cell, outcome):
        """Keep what came of a cell, the line in the results last; returns how many are new."""
        if outcome.theta is not None:
            save_arrays(self._weights(cell), theta=outcome.theta)
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
        self.store.append(record)
        self._done[cell] = record
        return 1


def prepare(folder, profile, source, device="cpu"):
    """Make the folder of a sweep, or check that it holds the same one; refuse a full disk.

    Raises   ValueError when it holds a sweep with other settings or data, or of another device;
             OSError when the results would not fit on the disk
    """
    folder = Path(folder)
    settings = folder / "sweep.json"
    now = check_settings(folder, profile, source, device)
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, profile, source)
    for part in ("pretrained", "predictions", "data"):
        (folder / part).mkdir(exist_ok=True)
        for unfinished in (folder / part).glob("*.part"):  # of a sweep that was killed
            unfinished.unlink()
    if not settings.exists():
        save_json(settings, now)


def check_settings(folder, profile, source, device="cpu"):
    """Refuse a folder that holds another sweep; nothing is written.

    Returns  what sweep.json is to say
    Raises   ValueError when it holds one with other settings or data, or of another device
    """
    now = profile.settings() | {
        "train": source.train,
        "test": source.test,
        "data_sha256": source.sha256,
    }
    if device != "cpu":
        now["device"] = device
    settings = folder / "sweep.json"
    if settings.exists():
        usual = {"device": "cpu"}  # where nothing is said
        before, wanted = usual | load_json(settings), usual | now
        changed = [name for name in {**wanted, **before} if before.get(name) != wanted.get(name)]
        if changed:
            what = ", ".join(f"{n} was {before.get(n)!r}, now {wanted.get(n)!r}" for n in changed)
            raise ValueError(
                f"{folder} holds a sweep with other settings ({what}): name another folder with "
                "--out"
            )
    elif (folder / "results.jsonl").exists():
        raise ValueError(
            f"{folder} holds results, but not the sweep.json that says of what: name another "
            "folder with --out"
        )
    return now


def _check_space(folder, profile, source):
    weights = profile.model(0.0, (28, 28, 1)).size
    needed = (source.train + source.test) * 28 * 28 * 4
    for cell in profile.cells():
        if cell.is_pretraining:
            needed += 0 if _exists(folder, "pretrained", cell) else 4 * weights
        elif "baselines" in profile.parts(cell):
            needed += 0 if _exists(folder, "predictions", cell) else 40 * source.test
        needed += 8_000  # its line in the results, and again in the table
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: the sweep needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free: "
            "name another folder with --out, or fewer --seeds"
        )


def _exists(folder, part, cell):
    return any((folder / part).glob(f"{cell.key}.np*"))


# --- the estimate -------------------------------------------------------------------------


def measure(profile, dataset):
    """Seconds of one training step with its moments update, and of predicting the test images.

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


def measure_on_gpu(profile, dataset, together):
    """The same for one of the networks that share a GPU.

    together   how many train side by side
    """
    model = profile.model(max(profile.dropout), dataset.train_images.shape[1:])
    training = Problem(model, profile.batch, together, "gpu")
    step = training.step_seconds(MEASURED, moments=True) / together
    ensemble = Problem(model, TOGETHER, MEMBERS, "gpu")
    predicting = ensemble.predict_seconds(MEASURED) / (MEMBERS * len(ensemble.images))
    return step, predicting * len(dataset.test_images)


def estimate(profile, cells, dataset, crew):
    """What the cells will cost, from one measured step and one measured prediction.

    crew     Processes or Device
    Returns  text
    """
    on_gpu = isinstance(crew, Device)
    if on_gpu:
        together = max(1, min(crew.together, len(cells)))
        step, predicting = measure_on_gpu(profile, dataset, together)
    else:
        step, predicting = measure(profile, dataset)
    train, test = len(dataset.train_images), len(dataset.test_images)
    costs = [work(cell, profile, train, test) for cell in cells]
    updates = sum(cost[0] for cost in costs)
    predictions = sum(cost[1] for cost in costs)
    seconds = updates * step + predictions * predicting
    if on_gpu:
        how = f"{together} side by side"
        whole = f"{_duration(seconds)}, and what the host needs besides"
    else:
        how = "one thread"
        whole = (
            f"{_duration(seconds)} of one core, {_duration(seconds / crew.count)} on "
            f"{crew.count} workers if each has a core to itself"
        )
    digits = 4 if on_gpu else 2
    return (
        f"{updates:,} updates of {1000 * step:.{digits - 1}f} ms and {predictions:,.0f} "
        f"predictions of {test:,} images, {predicting:.{digits}f} s each ({how}, measured now):\n"
        f"about {whole}"
    )


def _duration(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def describe(profile, cells, done):
    """The cells by configuration, one line each; `done` are finished already."""
    groups = {}
    for cell in cells:
        groups.setdefault(replace(cell, seed=0), []).append(cell)
    lines = []
    for first, group in groups.items():
        name = f"{first.optimizer} {first.l1:g}, dropout {first.dropout:g}"
        if not first.is_pretraining:
            name = f"  then {first.finetune_optimizer} {first.l2:g}"
        parts = ", ".join(sorted(profile.parts(first)))
        finished = sum(cell in done for cell in group)
        lines.append(f"{name:28} {len(group):3} seeds, {finished:3} done  {parts}".rstrip())
    before = sum(cell.is_pretraining for cell in cells)
    lines.append(f"{len(cells)} cells: {before} pre-trainings, {len(cells) - before} fine-tunings")
    return "\n".join(lines)


# --- the command --------------------------------------------------------------------------


def add_parser(subparsers):
    """Add `minires sweep` to the command line."""
    parser = subparsers.add_parser(
        "sweep",
        help="the paper's MNIST study: many cells, on every core, many machines or a GPU",
        description="Compute every cell of a profile of the study: pre-trainings, fine-tunings, "
        "the paper's method and others beside it. The same command, given again, does what is "
        "missing.",
    )
    parser.add_argument(
        "--profile",
        choices=tuple(PROFILES),
        default="smoke",
        help="smoke (half a minute), class (four), lite (MNIST, an hour), full (the paper's "
        "grid, a night); smoke by default",
    )
    parser.add_argument("--data", choices=("glyphs", "mnist"), help="other data than the profile's")
    parser.add_argument("--data-dir", type=Path, help="the folder of the MNIST files")
    parser.add_argument("--out", type=Path, help="folder for results (runs/sweep-PROFILE-DATA)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where (cpu)")
    parser.add_argument(
        "--together",
        type=int,
        help=f"cells that train side by side on a GPU, at most ({TOGETHER_ON_GPU})",
    )
    parser.add_argument("--workers", type=int, help="processes (one for each core)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler: work there")
    for name, what in (
        ("seeds", "repeats"),
        ("train", "training images"),
        ("test", "test images"),
        ("epochs", "epochs of pre-training"),
        ("updates", "updates of fine-tuning"),
        ("batch", "images in a mini-batch"),
    ):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (as the profile says)")
    parser.add_argument("--dry-run", action="store_true", help="only list the cells and the time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run)


def _run(options):
    profile = PROFILES[options.profile]
    named = ("data", "seeds", "train", "test", "epochs", "updates", "batch")
    changed = {name: getattr(options, name) for name in named}
    profile = replace(profile, **{k: value for k, value in changed.items() if value is not None})
    _check_options(options)
    folder = options.out or Path("runs") / f"sweep-{profile.name}-{profile.data}"
    source, dataset = _find_data(profile, folder, options.data_dir)
    cells = profile.cells()

    def say(text):
        if not options.quiet:
            print(text, file=sys.stderr)

    if options.dry_run:
        done = set()
        check_settings(folder, profile, source, options.device)
        if (folder / "sweep.json").exists():
            sweep = load_sweep(folder)
            done = {Cell(**record["cell"]) for record in sweep.records + sweep.diverged}
        print(describe(profile, cells, done))
        missing = [cell for cell in cells if cell not in done]
        crew = _crew(options, dry_run=True)
        with _remedy_for(crew):
            print(estimate(profile, missing, dataset, crew))
        return 0

    prepare(folder, profile, source, options.device)
    say(
        f"{dataset.name}: {source.train:,} training, {source.test:,} test images; "
        f"{profile.network}: {profile.model(0.0, (28, 28, 1)).size:,} weights; {len(cells)} cells; "
        f"results go to {folder}"
    )
    began = time.monotonic()
    source.share(dataset)
    with complete(folder / "predictions" / "labels.npy") as file:
        np.save(file, dataset.test_labels)
    crew = _crew(options)
    try:
        with _remedy_for(crew):
            count = run_sweep(profile, source, folder, crew, options.quiet)
    except KeyboardInterrupt:
        print(
            "\nstopped; what is finished is kept, the same command goes on with it",
            file=sys.stderr,
        )
        return 130
    shutil.rmtree(folder / "data")
    table = tabulate(load_sweep(folder))
    save_json(folder / "table.json", table)
    print(text_table(table))
    seconds = time.monotonic() - began
    say(
        f"{count} cells in {_duration(seconds)}, {3600 * count / seconds:,.0f} an hour; "
        f"table.json and all records are in {folder}"
    )
    return 0


@contextlib.contextmanager
def _remedy_for(crew):
    """Where a GPU's memory is full, say what to lower."""
    try:
        yield
    except MemoryError as error:
        if type(error).__name__ != "OutOfMemoryError":  # CuPy's; another is this machine's memory
            raise
        raise MemoryError(
            f"the GPU's memory is full ({error}): lower --together, now {crew.together}, or end "
            "other programs that use the card; what is finished is kept"
        ) from error


def _check_options(options):
    """Refuse what does not go together, before anything is loaded or written."""
    for name in ("workers", "together"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected 1 or more")
    arrays.module_for(options.device)  # is there a GPU?
    if options.device == "gpu" and (options.workers or options.cluster):
        raise ValueError(
            "--workers and --cluster are for CPUs, --device gpu works in one process: leave one "
            "of them out (--together says how many cells train side by side on the GPU)"
        )
    if options.device == "cpu" and options.together:
        raise ValueError("--together is for --device gpu: on CPUs every worker has one cell")


def _crew(options, dry_run=False):
    """Who does the work, by the options; nobody asks a cluster what the work would cost."""
    if options.device == "gpu":
        return Device(options.together or TOGETHER_ON_GPU)
    if options.cluster and not dry_run:
        return Cluster(options.cluster)
    return Processes(options.workers or arrays.default_threads())


def _find_data(profile, folder, data_dir):
    """The images of a profile, and the Source by which workers find them."""
    data_dir = None if data_dir is None else str(Path(data_dir).resolve())
    shared = str((Path(folder) / "data").resolve())
    source = Source(shared, profile.data, profile.train, profile.test, data_dir, "")
    dataset = source.load_dataset()
    counts = {"train": len(dataset.train_images), "test": len(dataset.test_images)}
    if profile.batch > counts["train"]:
        raise ValueError(
            f"--batch is {profile.batch}, but there are {counts['train']} training images"
        )
    return replace(source, **counts, sha256=fingerprint(dataset)), dataset
