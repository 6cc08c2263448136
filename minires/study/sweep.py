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
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minires import backend, training
from minires.bench import Problem
from minires.experiment import METRICS, fingerprint
from minires.files import complete, load_arrays, load_json, save_arrays, save_json
from minires.moments import Moments
from minires.optimizers import SGD
from minires.study.cells import TOGETHER, Source, Start, alike, compute, work
from minires.study.grid import MEMBERS, PROFILES, Cell

GROUP = 5  # networks in a deep ensemble
TOGETHER_ON_GPU = 50  # networks of the full profile need some 10 GB, with all baselines 15
MEASURED = 5  # rounds of a measurement
DEATHS = 3  # of a cell's worker; after that the cell runs alone, and once more is an error


# --- what is kept -------------------------------------------------------------------------


class Store:
    """The finished cells, one line of JSON each, in a file that only grows.

        with Store(folder / "results.jsonl") as store:
            store.append(record)

    A line goes to the file in a single write, and to the disk before `append` returns. A
    process that is killed in between leaves at most one line without an end, the last; the
    next to open the file cuts it off.

    path     the file, made if need be
    Raises   BlockingIOError while another process has it open (where the system can tell);
             ValueError when the file is damaged
    """

    def __init__(self, path):
        self.path = Path(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o644)
        try:
            self._lock()
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(self._file, whole)
            self.records = _parse(self.path, content[:whole])
        except BaseException:
            self.close()
            raise

    def append(self, record):
        """Add a finished cell."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "the disk is full"
        if written < len(line):
            os.ftruncate(self._file, before)
            raise OSError(f"{self.path}: {reason}: make room, and run the command again")
        self.records.append(record)

    def close(self):
        """Give the file free."""
        os.close(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _lock(self):
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path.parent}: another sweep is at work here: wait for it, or name "
                "another folder with --out"
            ) from error


def _parse(path, content):
    """The records in the whole lines of a file; ValueError names a line that makes no sense."""
    records, seen = [], {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = json.loads(line)
            cell = Cell(**record["cell"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a record of a cell ({error})") from error
        if cell in seen:
            raise ValueError(f"{path}: lines {seen[cell]} and {number} are the same cell")
        seen[cell] = number
        records.append(record)
    return records


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found so far.

    settings        what sweep.json says
    records         one for each finished cell, sorted
    deep_ensembles  of the fine-tuned networks of several seeds
    diverged        records of cells whose loss became infinite: they have no scores
    """

    settings: dict
    records: list
    deep_ensembles: list
    diverged: list


def load_sweep(folder):
    """Read the folder of a sweep, finished or not; nothing in it is changed.

    Returns  Sweep
    Raises   FileNotFoundError when it holds no sweep; ValueError when it is damaged
    """
    folder = Path(folder)
    if not (folder / "sweep.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no sweep (no sweep.json): `minires sweep --out {folder}` makes one"
        )
    results = folder / "results.jsonl"
    content = results.read_bytes() if results.exists() else b""
    records = _parse(results, content[: content.rfind(b"\n") + 1])
    records.sort(key=lambda record: Cell(**record["cell"]).order)
    return Sweep(
        settings=load_json(folder / "sweep.json"),
        records=[record for record in records if "diverged" not in record],
        deep_ensembles=_deep_ensembles(folder / "predictions", records),
        diverged=[record for record in records if "diverged" in record],
    )


def _deep_ensembles(folder, records):
    """Networks of several seeds averaged, wherever their predictions were kept.

    Returns  [{"cell" without its seed, "seeds", "members", accuracy, nll, brier, ece}, …]
    """
    groups = {}
    for record in records:  # sorted: seeds come in order
        cell = Cell(**record["cell"])
        if (folder / f"{cell.key}.npy").exists():
            group = {name: value for name, value in asdict(cell).items() if name != "seed"}
            groups.setdefault(tuple(group.items()), []).append(cell)
    found = []
    for group, cells in sorted(groups.items(), key=lambda item: str(item[0])):
        labels = np.load(folder / "labels.npy")
        for start in range(0, len(cells), GROUP):
            chosen = cells[start : start + GROUP]
            networks = [np.load(folder / f"{cell.key}.npy") for cell in chosen]
            average = np.mean(networks, axis=0, dtype=np.float64).astype(np.float32)
            found.append(
                {
                    "cell": dict(group),
                    "seeds": [cell.seed for cell in chosen],
                    "members": len(chosen),
                    **training.score(average, labels),
                }
            )
    return found


# --- who works ----------------------------------------------------------------------------


class Processes:
    """Worker processes on this machine, one thread each.

    count   how many
    """

    together = 1  # cells in a call

    def __init__(self, count):
        self.count = count
        self.capacity = count + 1  # one more, so that nobody waits for the next
        self._executor = None

    def submit(self, *call):
        """Have a function called; returns its Future."""
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), initializer=_begin_worker
            )
        return self._executor.submit(*call)

    def renew(self):
        """After a worker's death: give up all that are left; new ones come when needed."""
        self.close()

    def close(self):
        """End the workers, whatever they do."""
        executor, self._executor = self._executor, None
        if executor is not None:
            # A worker may be ended in the middle of a result, and the rest of it would be waited
            # for as long as somebody could write it: as this process could.
            executor._result_queue._writer.close()
            for worker in list((executor._processes or {}).values()):
                worker.terminate()
            executor.shutdown(cancel_futures=True)


def _begin_worker():
    """Ctrl-C is the sweep's to handle; and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own would outlive a worker that is ended
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Cluster:
    """Workers of a Dask cluster, on other machines perhaps.

    address    of its scheduler, such as tcp://10.0.0.1:8786
    patience   how long to wait for an answer
    Raises     RuntimeError without Dask; OSError when nobody answers
    """

    together = 1  # cells in a call

    def __init__(self, address, patience="20s"):
        try:
            import dask
            from distributed import Client
        except ImportError as error:
            raise RuntimeError(
                "--cluster needs Dask, which is not installed: pip install 'minires[cluster]'"
            ) from error
        self._address = address
        # A fine-tuning carries its starting weights along; they may be large.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})
        try:
            self._client = Client(address, timeout=patience, set_as_default=False)
        except OSError as error:
            raise OSError(
                f"no Dask scheduler answers at {address}: start one with `dask scheduler`, and "
                "workers with `dask worker`"
            ) from error
        self._executor = self._client.get_executor(pure=False)

    @property
    def capacity(self):
        """How many cells to hand over at a time; workers may come and go."""
        try:
            return 1 + max(1, sum(self._client.ncores().values()))
        except OSError as error:
            raise ConnectionError(
                f"the Dask scheduler at {self._address} no longer answers; what is finished is "
                "kept: the same command goes on with it, on this cluster or another"
            ) from error

    def submit(self, *call):
        """Have a function called; returns its Future."""
        return self._executor.submit(*call)

    def renew(self):
        """Nothing to do: Dask starts its own workers anew."""

    def close(self):
        """Take back what is not done, and leave."""
        self._executor.shutdown(wait=False)
        self._client.close()


class Device:
    """A GPU, told by this process what to do; cells train side by side on it.

    together   how many at a time, at most
    """

    capacity = 1

    def __init__(self, together):
        self.together = together

    def submit(self, function, *arguments):
        """Call a function here and now; returns a Future that is done."""
        future = Future()
        try:
            future.set_result(function(*arguments, device="gpu"))
        except Exception as error:
            future.set_exception(error)
        return future

    def renew(self):
        """Nothing to do: there is no worker that could die alone."""

    def close(self):
        """Nothing to do either."""


def _failure(future):
    """What went wrong with a call, or None."""
    try:
        return future.exception()
    except CancelledError as error:  # Dask lost its scheduler, or the worker with the result
        return error


def _is_death(error):
    """Whether a worker died, rather than its work failed."""
    return isinstance(error, (BrokenExecutor, CancelledError)) or (
        type(error).__name__ == "KilledWorker"
    )


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
        if any(isinstance(_failure(future), BrokenExecutor) for future in finished):
            finished, _ = wait(running)  # where one process died, all calls are lost
        errors = {}
        for future in finished:
            cells = running.pop(future)
            if error := _failure(future):
                errors[tuple(cells)] = error
            else:
                for cell, outcome in zip(cells, future.result(), strict=True):
                    bar.update(plan.finish(cell, outcome))
        for cells, error in errors.items():
            if not _is_death(error):
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


# --- the table ----------------------------------------------------------------------------


def tabulate(sweep):
    """All that a sweep found, without anything that differs from run to run.

    Returns  dict for table.json: "settings", "rows" (mean and standard deviation over seeds
             for each cell and method, and their paired difference to "finetuned"),
             "deep_ensembles", "records", "diverged"
    """

    def timeless(records):
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    return {
        "settings": sweep.settings,
        "rows": _rows(sweep.records),
        "deep_ensembles": sweep.deep_ensembles,
        "records": timeless(sweep.records),
        "diverged": timeless(sweep.diverged),
    }


def _rows(records):
    groups = {}
    for record in records:
        group = {name: value for name, value in record["cell"].items() if name != "seed"}
        groups.setdefault(Cell(seed=0, **group), []).append(record["methods"])
    rows = []
    for cell, seeds in sorted(groups.items(), key=lambda item: item[0].order):
        group = {name: value for name, value in asdict(cell).items() if name != "seed"}
        for method in seeds[0]:
            row = {"cell": group, "method": method, "seeds": len(seeds)}
            for metric in METRICS:
                values = np.array([methods[method][metric] for methods in seeds])
                row[metric] = _summary(values)
                if "finetuned" in seeds[0]:
                    plain = np.array([methods["finetuned"][metric] for methods in seeds])
                    row[metric]["delta"] = _summary(values - plain)
            rows.append(row)
    return rows


def _summary(values):
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": deviation}


def text_table(table):
    """The table as text: a block for each pre-training, Δ against fine-tuned, same seed."""
    lines = ["accuracy % and NLL, mean ± standard deviation over seeds (ddof 1);"]
    lines += ["Δ against fine-tuned, paired by seed", ""]
    head = f"  {'':26} {'accuracy %':>15} {'Δ':>15} {'NLL':>17} {'Δ':>18}"
    deep = {}
    for entry in table["deep_ensembles"]:
        deep.setdefault(str(entry["cell"]), []).append(entry)
    for cell, rows in itertools.groupby(table["rows"], key=lambda row: row["cell"]):
        rows = list(rows)
        start = f"{cell['optimizer']} {cell['l1']:g}, dropout {cell['dropout']:g}"
        after = f", then {cell['finetune_optimizer']} {cell['l2']}" if cell["l2"] else ""
        lines += [f"{start}{after} ({rows[0]['seeds']} seeds)", head]
        for row in rows:
            accuracy, nll = row["accuracy"], row["nll"]
            text = f"  {row['method']:26} {_spread(accuracy, 100, 2):>15}"
            text += f" {_spread(accuracy.get('delta'), 100, 2, '+'):>15}"
            text += f" {_spread(nll, 1, 4):>17} {_spread(nll.get('delta'), 1, 4, '+'):>18}"
            lines.append(text)
        for entry in deep.get(str(cell), []):
            name = f"deep_ensemble of {entry['members']}"
            text = f"  {name:26} {100 * entry['accuracy']:15.2f} {'':15} {entry['nll']:17.4f}"
            lines.append(text)
        lines.append("")
    if table["diverged"]:
        lines.append(f"{len(table['diverged'])} cells diverged and have no scores")
    return "\n".join(lines).rstrip()


def _spread(summary, factor, digits, sign=""):
    if summary is None:
        return ""
    mean = f"{factor * summary['mean']:{sign}.{digits}f}"
    return mean if summary["sd"] is None else f"{mean} ± {factor * summary['sd']:.{digits}f}"


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
    with backend.threads(1):
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
    backend.module_for(options.device)  # is there a GPU?
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
    return Processes(options.workers or backend.default_threads())


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
