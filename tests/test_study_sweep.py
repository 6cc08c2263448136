"""The sweep: nothing lost, nothing double, the same table, whatever dies on the way."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from study_records import synthetic_sweep
from test_mnist import write_four

from minires import data as data_tools
from minires.arrays.files import load_arrays, load_json, save_arrays
from minires.commands import cli
from minires.commands import sweep as sweep_command
from minires.study import report, store
from minires.study import sweep as sweep_module
from minires.study.cells import Source
from minires.study.claims import TOO_SMALL, verdicts
from minires.study.crews import Cluster, Processes
from minires.study.experiment import METRICS, fingerprint
from minires.study.grid import SMOKE, Cell, Profile
from minires.study.store import Store, load_sweep, save_rows, tabulate, text_table
from minires.study.sweep import prepare, run_sweep
from minires.training import metrics

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).resolve().parent.parent
TINY = replace(
    SMOKE,
    options={"channels": (2, 3), "hidden": 8},
    train=64,
    test=20,
    epochs=1,
    updates=3,
    batch=16,
    seeds=2,
    dropout=(0.5,),
    adam=False,
    baselines=(0.25,),
)


@pytest.fixture(scope="module")
def dataset(own_cache):
    return data_tools.load("glyphs", train=TINY.train, test=TINY.test)


class Inline:
    """A crew of one, here and now; `stop_after` cells it is interrupted like by Ctrl-C."""

    capacity = side_by_side = 1

    def __init__(self, stop_after=None):
        self.left = stop_after
        self.called = []

    def submit(self, function, cells, *rest):
        if self.left == len(self.called):
            raise KeyboardInterrupt
        self.called += cells
        future = Future()
        future.set_result(function(cells, *rest))
        return future

    def renew(self):
        pass

    def close(self):
        pass


def ready(folder, dataset, profile=TINY):
    """A prepared folder, and its Source."""
    source = Source(str(folder / "data"), "glyphs", 64, 20, None, fingerprint(dataset))
    prepare(folder, profile, source)
    source.share(dataset)
    np.save(folder / "predictions" / "labels.npy", dataset.test_labels)
    return source


def sweep(folder, dataset, crew, profile=TINY):
    """Run a sweep; its table as text that must be the same bit for bit."""
    run_sweep(profile, ready(folder, dataset, profile), folder, crew, quiet=True)
    return finished_table(folder, profile)


def finished_table(folder, profile=TINY):
    """Every cell is there once; the table."""
    found = [Cell(**load_json(path)["cell"]) for path in (folder / "cells").iterdir()]
    assert set(found) == set(profile.cells()), "a cell was lost"
    return json.dumps(tabulate(load_sweep(folder)))


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """The folder of a sweep that nothing happened to, and its table."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, sweep(folder, dataset, Inline())


# --- the store ----------------------------------------------------------------------------


def record_of(seed):
    return {
        "cell": asdict(Cell("sgd", 0.2, 0.5, seed)),
        "methods": {"pretrained": dict.fromkeys(METRICS, 0.5)},
        "seconds": {"cell": 1.5},
    }


@pytest.fixture
def empty(tmp_path, dataset):
    """The folder of a sweep without a cell."""
    ready(tmp_path, dataset)
    return tmp_path


def test_a_cell_is_a_file_that_reached_the_disk(empty, monkeypatch):
    order, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or sync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or rename(a, b))
    store = Store(empty)
    for seed in (2, 1):
        store.add(record_of(seed))
    assert order == ["fsync", "replace"] * 2
    assert Store(empty).records == [record_of(1), record_of(2)]


def test_a_full_disk_leaves_no_half_file(empty, monkeypatch):
    store = Store(empty)
    store.add(record_of(1))

    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"seed_2\.json: No space left on device: make room"):
        store.add(record_of(2))
    assert store.records == Store(empty).records == [record_of(1)]
    assert len(list((empty / "cells").iterdir())) == 1


def without(record, *names):
    return {name: value for name, value in record.items() if name not in names}


NASTY = {
    "truncated": lambda text, record: text[:-30],
    "empty": lambda text, record: "",
    "a list": lambda text, record: "[]",
    "a number": lambda text, record: "3",
    "no cell": lambda text, record: json.dumps(without(record, "cell")),
    "no scores": lambda text, record: json.dumps(without(record, "methods")),
    "another sweep": lambda text, record: json.dumps(record | {"sweep": "0" * 16}),
    "another cell": lambda text, record: text.replace('"seed": 0', '"seed": 1'),
    "a list as seed": lambda text, record: text.replace('"seed": 0', '"seed": [0]'),
    "NaN": lambda text, record: re.sub('"accuracy": [^,]*', '"accuracy": NaN', text, count=1),
    "no number": lambda text, record: re.sub('"nll": [^,]*', '"nll": "low"', text, count=1),
    "too large": lambda text, record: re.sub('"nll": [^,]*', '"nll": 1e999', text, count=1),
    "above one": lambda text, record: re.sub('"accuracy": [^,]*', '"accuracy": 2', text, count=1),
    "a method missing": lambda text, record: text.replace('"mean":', '"median":', 1),
    "something else": lambda text, record: json.dumps(record | {"more": 1}),
    "unequal curves": lambda text, record: json.dumps(
        record | {"curves": {"noise": {"scale": [1, 2], "nll": [1]}}}
    ),
}


@pytest.mark.parametrize("damage", NASTY)
@pytest.mark.parametrize("command", ["report", "sweep"])
def test_damaged_cells_are_named_and_nothing_is_overwritten(
    undisturbed, dataset, tmp_path, damage, command
):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    path = folder / "cells" / "sgd_0.2_dropout_0.5_seed_0_then_sgd_0.25.json"
    text = path.read_text()
    path.write_text(NASTY[damage](text, json.loads(text)))
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_sweep(folder) if command == "report" else ready(folder, dataset)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"format": 2', '{"format": 1}'])
def test_damaged_settings_are_named(undisturbed, dataset, tmp_path, content):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    (folder / "sweep.json").write_text(content)
    for use in (load_sweep, lambda folder: ready(folder, dataset)):
        with pytest.raises(ValueError, match=r"sweep\.json"):
            use(folder)
    assert (folder / "sweep.json").read_text() == content


def test_damaged_predictions_are_named(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    path = next((folder / "predictions").glob("sgd*"))
    good = np.load(path)
    for bad in (good[:-1], good * np.nan, good[0]):
        np.save(path, bad)
        with pytest.raises(ValueError, match="predict"):
            load_sweep(folder)
    for content in (b"", path.read_bytes()[:-5], b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_sweep(folder)


def test_weights_of_another_sweep_are_not_started_from(undisturbed, dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    for path in (folder / "cells").glob("*then*"):
        path.unlink()
    first, second = sorted((folder / "pretrained").glob("*0.2_*"))
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=rf"{second.name} belongs to another sweep: remove it"):
        sweep(folder, dataset, Inline())
    for path in (folder / "cells").glob("*then*"):
        path.unlink()
    names = {name: load_arrays(first)[name] for name in ("cell", "sweep")}
    weights = load_arrays(first)["theta"]
    for theta, message in (
        (weights * np.float32(np.nan), "theta has values that are infinite or not numbers"),
        (weights[:-1], f"theta is .*, expected .{weights.size},"),
        (weights.astype("U9"), "theta is <U9, expected float32"),
    ):
        save_arrays(first, theta=theta, **names)
        with pytest.raises(ValueError, match=rf"{first.name}: {message}.*: remove it, it will be"):
            sweep(folder, dataset, Inline())


def test_a_folder_of_an_earlier_version_is_refused(dataset, tmp_path, undisturbed):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    (folder / "results.jsonl").touch()
    with pytest.raises(ValueError, match=r"of an earlier version .* results\.jsonl: name another"):
        load_sweep(folder)
    with pytest.raises(ValueError, match="of an earlier version"):
        ready(folder, dataset)


def test_rows_for_a_repository_are_the_same_sweep(undisturbed, dataset, tmp_path):
    rows = tmp_path / "rows"
    assert cli.main(["report", str(undisturbed[0]), "--rows", str(rows)]) == 0
    assert {path.name for path in rows.iterdir()} == {
        "sweep.json", "cells.jsonl.gz", "deep_ensembles.json", "predictions.npz"
    }  # fmt: skip
    assert load_sweep(rows) == load_sweep(undisturbed[0])
    first = (rows / "cells.jsonl.gz").read_bytes()
    save_rows(load_sweep(rows), rows)
    assert (rows / "cells.jsonl.gz").read_bytes() == first
    # A sweep with more seeds goes on from them.
    crew = Inline()
    more = replace(TINY, seeds=3)
    run_sweep(more, ready(rows, dataset, more), rows, crew, quiet=True)
    assert {cell.seed for cell in crew.called} == {2}
    assert len(load_sweep(rows).records) == 12
    (entry,) = load_sweep(rows).deep_ensembles
    assert entry["seeds"] == [0, 1, 2], "an ensemble of seeds that were computed apart"
    content = first[:-20]
    (rows / "cells.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cells\.jsonl\.gz is damaged"):
        load_sweep(rows)


# --- stop and go --------------------------------------------------------------------------


def test_what_a_sweep_leaves(undisturbed, dataset):
    folder, table = undisturbed
    records = load_sweep(folder).records
    assert len(records) == len(TINY.cells()) == 2 * 4
    cells = [Cell(**record["cell"]) for record in records]
    assert cells == sorted(cells, key=lambda cell: cell.order)
    names = {path.name for path in (folder / "pretrained").iterdir()}
    assert names == {f"{cell.key}.npz" for cell in cells if cell.is_pretraining}
    for record, cell in zip(records, cells, strict=True):
        if not cell.is_pretraining:
            before = records[cells.index(cell.pretraining)]
            assert record["methods"]["pretrained"] == before["methods"]["pretrained"]
    assert "seconds" in records[0]
    assert not {"seconds", "made"} & set(table)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_sweep_goes_on(undisturbed, dataset, tmp_path, stop):
    first = Inline(stop_after=stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, dataset, first)
    assert len(load_sweep(tmp_path).records) == stop
    second = Inline()
    assert sweep(tmp_path, dataset, second) == undisturbed[1]
    assert not set(first.called) & set(second.called)
    third = Inline()
    assert sweep(tmp_path, dataset, third) == undisturbed[1]
    assert third.called == []


def test_half_a_file_does_not_count(undisturbed, dataset, tmp_path):
    """What a process that was killed while writing leaves behind."""
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    path = next((folder / "cells").glob("*then*"))
    path.rename(path.with_name(f"{path.name}.7.part"))
    assert len(load_sweep(folder).records) == 7
    assert len(list((folder / "cells").glob("*.part"))) == 1, "to load is not to change"
    crew = Inline()
    assert sweep(folder, dataset, crew) == undisturbed[1]
    assert [cell.key for cell in crew.called] == [path.stem]


def test_lost_weights_are_trained_again(undisturbed, dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    for file in (*(folder / "pretrained").iterdir(), *(folder / "cells").glob("*then*")):
        file.unlink()
    crew = Inline()
    assert sweep(folder, dataset, crew) == undisturbed[1]
    # The pre-training at a rate that nothing starts from need not be done again.
    assert sum(cell.is_pretraining for cell in crew.called) == 2


def test_more_seeds_do_only_what_is_new(undisturbed, dataset, tmp_path):
    one = replace(TINY, seeds=1)
    sweep(tmp_path, dataset, Inline(), one)
    crew = Inline()
    assert sweep(tmp_path, dataset, crew) == undisturbed[1]
    assert {cell.seed for cell in crew.called} == {1}


def test_other_settings_or_data_are_refused(undisturbed, dataset):
    folder, table = undisturbed
    with pytest.raises(ValueError, match=r"other settings \(updates was 3, now 4\) in sweep"):
        ready(folder, dataset, replace(TINY, updates=4))
    source = Source("", "glyphs", 64, 20, None, "other")
    with pytest.raises(ValueError, match=r"data_sha256 was '.*', now 'other'"):
        prepare(folder, TINY, source)
    assert finished_table(folder) == table


def test_data_in_mnist_s_format_keep_their_own_name(tmp_path):
    write_four(tmp_path / "fashion", train=40, test=9)
    profile = replace(TINY, data="mnist", train=32, test=None)
    source, _ = sweep_command._find_data(profile, tmp_path / "fashion")
    prepare(tmp_path / "out", profile, source)
    settings = load_sweep(tmp_path / "out").settings
    assert settings["data_name"] == "fashion (not the original MNIST)"
    (tmp_path / "fashion").rename(tmp_path / "moved")
    moved, _ = sweep_command._find_data(profile, tmp_path / "moved")
    prepare(tmp_path / "out", profile, moved)
    assert load_sweep(tmp_path / "out").settings == settings
    other = synthetic_sweep(seeds=5)
    kept = {name: settings[name] for name in ("data", "data_name", "train", "test")}
    other = replace(other, settings=other.settings | kept)
    facts = dict(report.facts_of(other, None))
    assert "--data-dir DIR" in facts["command"]
    assert facts["data"] == "fashion (not the original MNIST): 32 training and 9 test images"
    page = report.content_of(other, {"baselines": []})
    assert page["title"] == "Weight resampling on fashion (not the original MNIST)"
    ceiling = next(verdict for verdict in verdicts(other) if verdict.claim.startswith("C11"))
    assert "the number is about MNIST" in ceiling.reason


@pytest.mark.parametrize("name", ["cells/x.json", "data/thesis.txt", "predictions/mine.npy"])
def test_files_of_others_are_refused_and_kept(dataset, tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=r"is there, but no sweep\.json"):
        ready(tmp_path, dataset)
    assert (tmp_path / name).read_text() == "precious"
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        load_sweep(tmp_path)


def test_a_full_disk_is_refused_before_the_work(dataset, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"--seeds 2: .* would take \d MB, 0 MB are free: not even"):
        ready(tmp_path, dataset)
    assert not (tmp_path / "sweep.json").exists()


def test_what_diverges_is_recorded_and_left_out(dataset, tmp_path):
    profile = replace(TINY, seeds=1, l1=(1e30, 0.2))
    crew = Inline()
    sweep(tmp_path, dataset, crew, profile)
    found = load_sweep(tmp_path)
    lost = {Cell(**record["cell"]) for record in found.diverged}
    assert lost == {cell for cell in profile.cells() if cell.l1 == 1e30}
    assert not lost & {Cell(**record["cell"]) for record in found.records}
    assert len(crew.called) == len(profile.cells()) - 2  # no fine-tuning of what is lost
    assert "3 cells diverged" in text_table(tabulate(found))
    again = Inline()
    sweep(tmp_path, dataset, again, profile)
    assert again.called == []


def test_weights_lost_with_the_records_of_what_followed(dataset, tmp_path):
    """Killed between the record of a diverged pre-training and those of its fine-tunings."""
    profile = replace(TINY, seeds=1, l1=(1e30,), l1_outside=())
    sweep(tmp_path, dataset, Inline(), profile)
    for path in (tmp_path / "cells").glob("*then*"):
        path.unlink()
    sweep(tmp_path, dataset, Inline(), profile)
    assert len(load_sweep(tmp_path).diverged) == 3


# --- the table ----------------------------------------------------------------------------


def test_the_table_is_mean_deviation_and_paired_difference(undisturbed):
    folder, _ = undisturbed
    found = load_sweep(folder)
    table = tabulate(found)
    cell = {
        "optimizer": "sgd", "l1": 0.2, "dropout": 0.5, "finetune_optimizer": "sgd", "l2": 0.25,
    }  # fmt: skip
    values = {
        method: [
            record["methods"][method]["nll"]
            for record in found.records
            if {**record["cell"], "seed": 0} == {**cell, "seed": 0}
        ]
        for method in ("finetuned", "mean")
    }
    (row,) = (r for r in table["rows"] if r["cell"] == cell and r["method"] == "mean")
    assert row["seeds"] == 2
    a, b = values["mean"]
    assert row["nll"]["mean"] == pytest.approx((a + b) / 2, rel=1e-12)
    assert row["nll"]["sd"] == pytest.approx(abs(a - b) / 2**0.5, rel=1e-12)
    d = [m - f for m, f in zip(values["mean"], values["finetuned"], strict=True)]
    assert row["nll"]["delta"]["mean"] == pytest.approx(sum(d) / 2, rel=1e-9)
    assert row["nll"]["delta"]["sd"] == pytest.approx(abs(d[0] - d[1]) / 2**0.5, rel=1e-9)
    text = text_table(table)
    assert "sgd 0.2, dropout 0.5, then sgd 0.25 (2 seeds)" in text
    assert f"{(a + b) / 2:.4f} ± {abs(a - b) / 2**0.5:.4f}" in text


def test_seeds_wait_for_a_deep_ensemble_and_are_then_let_go(undisturbed, tmp_path, monkeypatch):
    """Rows keep predictions while a group is too small, and no longer."""
    partly = load_sweep(undisturbed[0])
    assert len(partly.waiting) == 3  # two seeds, and the labels
    monkeypatch.setattr(store, "DEEP_MEMBERS", 2)
    whole = load_sweep(undisturbed[0])
    assert whole.waiting == {}
    save_rows(partly, tmp_path)
    assert (tmp_path / "predictions.npz").exists()
    assert load_sweep(tmp_path) == whole
    save_rows(load_sweep(tmp_path), tmp_path)
    assert not (tmp_path / "predictions.npz").exists()
    assert load_sweep(tmp_path) == whole


def test_a_deep_ensemble_averages_what_the_seeds_predict(undisturbed, dataset):
    folder, _ = undisturbed
    (entry,) = load_sweep(folder).deep_ensembles
    assert entry["cell"]["l2"] == 0.25
    assert "seed" not in entry["cell"]
    assert (entry["seeds"], entry["members"]) == ([0, 1], 2)
    name = "sgd_0.2_dropout_0.5_seed_{}_then_sgd_0.25.npy"
    one, other = (np.load(folder / "predictions" / name.format(seed)) for seed in (0, 1))
    assert one.dtype == np.float32
    expected = metrics.nll((one + other) / 2, dataset.test_labels)
    assert entry["nll"] == pytest.approx(expected, rel=1e-6)
    for seed, predictions in enumerate((one, other)):
        (record,) = (
            r
            for r in load_sweep(folder).records
            if r["cell"]["seed"] == seed and "baselines" in TINY.parts(Cell(**r["cell"]))
        )
        plain = record["methods"]["finetuned"]["nll"]
        assert metrics.nll(predictions, dataset.test_labels) == plain


# --- who works, and who dies --------------------------------------------------------------


class Reluctant(Inline):
    """Dies at some cells, so many times each."""

    def __init__(self, deaths, capacity=3):
        super().__init__()
        self.deaths = dict(deaths)
        self.capacity = capacity
        self.renewed = 0

    def submit(self, function, cells, *rest):
        (cell,) = cells
        if self.deaths.get(cell.key, 0) > 0:
            self.deaths[cell.key] -= 1
            future = Future()
            future.set_exception(BrokenProcessPool("a worker was killed"))
            return future
        return super().submit(function, cells, *rest)

    def renew(self):
        self.renewed += 1


def test_a_cell_whose_worker_dies_is_done_again(undisturbed, dataset, tmp_path):
    deaths = {cell.key: 1 + number % 3 for number, cell in enumerate(TINY.cells())}
    crew = Reluctant(deaths)
    assert sweep(tmp_path, dataset, crew) == undisturbed[1]
    assert crew.renewed >= 3


def test_a_cell_that_always_kills_its_worker_is_named(dataset, tmp_path, monkeypatch):
    """With real processes, of which a death takes all calls along; nobody else is blamed."""
    monkeypatch.setattr(sweep_module, "DEATHS", 1)  # each takes seconds
    culprit = TINY.cells()[1]
    assert culprit.is_pretraining

    class Poisoned(Processes):
        def submit(self, function, cells, *rest):
            if cells == [culprit]:
                return super().submit(os._exit, 1)
            return super().submit(function, cells, *rest)

    with pytest.raises(RuntimeError, match=f"{culprit.key}: its worker died 2 times, the last"):
        sweep(tmp_path, dataset, Poisoned(2))
    assert load_sweep(tmp_path).records, "what was finished is kept"


def test_a_mistake_in_a_cell_is_not_a_death(dataset, tmp_path):
    class Mistaken(Inline):
        def submit(self, function, cells, *rest):
            future = super().submit(function, cells, *rest)
            if len(self.called) == 3:
                future = Future()
                future.set_exception(ZeroDivisionError("once is enough"))
            return future

    with pytest.raises(ZeroDivisionError, match="once is enough"):
        sweep(tmp_path, dataset, Mistaken())
    assert len(load_sweep(tmp_path).records) == 2


def kill_once(folder, pids, after):
    """Kill one of the processes as soon as there are so many results."""

    def wait_and_kill():
        while results_in(folder) < after:
            time.sleep(0.005)
        os.kill(random.Random(after).choice(pids()), signal.SIGKILL)
        killed.set()

    killed = threading.Event()
    threading.Thread(target=wait_and_kill, daemon=True).start()
    return killed


def results_in(folder):
    """How many cells are finished."""
    return len(list((folder / "cells").glob("*.json")))


def test_workers_that_are_busy_with_a_large_result_can_be_ended():
    """In a process of its own: what waits for ever would not let this one end either."""
    program = """if __name__ == "__main__":
        import numpy as np
        from minires.study.crews import Processes
        crew = Processes(2)
        calls = [crew.submit(np.zeros, 20_000_000) for _ in range(4)]
        calls[0].result()
        crew.close()
        print("closed")"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.stdout == "closed\n"


def test_one_process_and_two_of_which_one_is_killed(undisturbed, dataset, tmp_path):
    assert sweep(tmp_path / "one", dataset, Processes(1)) == undisturbed[1]
    crew, folder = Processes(2), tmp_path / "two"
    killed = kill_once(folder, lambda: list(crew._executor._processes), 2)
    assert sweep(folder, dataset, crew) == undisturbed[1]
    assert killed.is_set()


def test_a_cluster_of_which_a_worker_is_killed(undisturbed, dataset, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (cluster)")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]
        killed = kill_once(tmp_path, lambda: pids, 2)
        assert sweep(tmp_path, dataset, Cluster(cluster.scheduler_address)) == undisturbed[1]
        assert killed.is_set()


def test_a_cluster_that_goes_away(dataset, tmp_path):
    """Its scheduler and worker die for good: one clear error, and a sweep that can go on."""
    pytest.importorskip("distributed", reason="Dask is not installed (cluster)")
    code = (
        "import sys, distributed\n"
        "if __name__ == '__main__':\n"
        "    options = {'n_workers': 1, 'processes': False, 'protocol': 'tcp://'}\n"
        "    options |= {'host': '127.0.0.1', 'dashboard_address': None}\n"
        "    print(distributed.LocalCluster(**options).scheduler_address)\n"
        "    sys.stdout.flush()\n"
        "    sys.stdin.read()\n"
    )
    cluster = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with cluster:
        crew = Cluster(cluster.stdout.readline().strip(), patience="5s")
        killed = kill_once(tmp_path, lambda: [cluster.pid], 1)
        with pytest.raises(ConnectionError, match="no longer answers; what is finished is kept"):
            sweep(tmp_path, dataset, crew)
        assert killed.is_set()
    assert 1 <= results_in(tmp_path) < 8


def test_a_cluster_that_nobody_runs():
    pytest.importorskip("distributed", reason="Dask is not installed (cluster)")
    with pytest.raises(OSError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        Cluster("tcp://127.0.0.1:9", patience="0.2s")


# --- the command --------------------------------------------------------------------------

COMMAND = [
    sys.executable, "-m", "minires", "sweep", "--train", "64", "--test", "20", "--epochs", "1",
    "--updates", "3", "--batch", "16", "--seeds", "1", "--workers", "2",
]  # fmt: skip


def heed_ctrl_c():
    """Ctrl-C reaches a new process even if these tests run in a job that ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_command(out, *more):
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *more], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_ctrl_c if os.name == "posix" else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def completed(own_cache, tmp_path_factory):
    """The folder of a command that nothing happened to, and what it printed."""
    out = tmp_path_factory.mktemp("command") / "deep" / "folder"
    process = start_command(out)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return out, stdout, stderr


def test_the_command(completed):
    out, stdout, stderr = completed
    names = {path.name for path in out.iterdir()}
    assert names == {"sweep.json", "cells", "table.json", "pretrained", "predictions"}
    table = load_json(out / "table.json")
    assert stdout == f"{text_table(table)}\n\n{TOO_SMALL}\n"
    assert table == json.loads(json.dumps(tabulate(load_sweep(out))))
    first, last = stderr.splitlines()
    assert "26,714 weights; 15 cells" in first
    assert re.match(r"15 cells in \d+ s, [\d,]+ an hour; ", last)
    assert last.endswith(f"table.json and all records are in {out}")


def test_only_the_shared_files_are_removed(dataset, tmp_path):
    source = ready(tmp_path, dataset)
    (tmp_path / "data" / "notes.txt").write_text("precious")
    assert len(list((tmp_path / "data").iterdir())) == 5
    source.remove_shared()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["notes.txt"]
    (tmp_path / "data" / "notes.txt").unlink()
    source.remove_shared()
    assert not (tmp_path / "data").exists()


def test_a_worker_that_may_not_read_the_shared_files_loads_the_data_itself(dataset, tmp_path):
    source = ready(tmp_path, dataset)
    source = replace(source, folder=str(tmp_path / "of another user"))  # asked for the first time
    denied = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    loaded = mock.patch.object(Source, "load_dataset", return_value=dataset)
    with mock.patch.object(np, "load", denied), loaded:
        data = source.data()
    np.testing.assert_array_equal(data.train_labels, dataset.train_labels)


def session_of(leader):
    """The processes of a session that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def kill_campaign(out, completed, kills, seed):
    """`kill -9` the sweep at random moments, start it again, let it end; how many kills it took."""
    rng, done = random.Random(seed), 0
    for _ in range(kills):
        process = start_command(out)
        # A moment at random among those where it works, not those where it starts.
        target = results_in(out) + rng.randint(0, 2)
        deadline = time.monotonic() + 60
        while results_in(out) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        if process.poll() is None:
            process.kill()
            done += 1
        process.communicate()
        deadline = time.monotonic() + 20
        while session_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not session_of(process.pid), "workers outlived the sweep"
    process = start_command(out)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert (out / "table.json").read_bytes() == (completed[0] / "table.json").read_bytes()
    assert results_in(out) == 15
    for part in ("cells", "pretrained", "predictions"):
        names = {path.name for path in (out / part).iterdir()}
        assert names == {path.name for path in (completed[0] / part).iterdir()}
    return done


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look into")


@linux
def test_killed_three_times(completed, tmp_path):
    assert kill_campaign(tmp_path / "out", completed, kills=3, seed=1) >= 2


@linux
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_many_times(completed, tmp_path, seed):
    assert kill_campaign(tmp_path / "out", completed, kills=8, seed=seed) >= 4


@linux
def test_ctrl_c_keeps_what_is_finished(completed, tmp_path):
    process = start_command(tmp_path)
    while results_in(tmp_path) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("stopped; what is finished is kept, the same command goes on with it\n")
    assert "Traceback" not in stderr
    assert stdout == ""
    deadline = time.monotonic() + 20  # the tracker of shared resources ends a moment later
    while session_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not session_of(process.pid)
    assert 2 <= results_in(tmp_path) < 15


def test_the_dry_run_prints_the_cells_and_a_time(completed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep_module, "measure", lambda profile, dataset: (0.5, 2.0))
    arguments = [*COMMAND[3:], "--out", str(tmp_path / "new"), "--dry-run"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^sgd 0\.2, dropout 0\.5 +1 seeds +0 done$", printed, re.MULTILINE)
    line = r"^  then sgd 0\.25 +1 seeds +0 done +baselines, curves(, portrait)?$"
    assert re.search(line, printed, re.MULTILINE)
    assert "15 cells: 5 pre-trainings, 10 fine-tunings" in printed
    # 5 pre-trainings of 4 updates, 10 fine-tunings of 3, some of them three times.
    thrice = sum("baselines" in SMOKE.parts(cell) for cell in replace(SMOKE, seeds=1).cells())
    assert f"{5 * 4 + 10 * 3 + thrice * 2 * 3} updates of 500.0 ms" in printed
    assert not (tmp_path / "new").exists()

    assert cli.main([*COMMAND[3:], "--out", str(completed[0]), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search("1 done +baselines, curves", printed)
    assert " 0 done" not in printed
    assert "0 updates of 500.0 ms and 0 predictions" in printed


def test_a_step_and_a_prediction_are_measured(dataset):
    step, predicting = sweep_module.measure(TINY, dataset)
    assert 0 < step < 5
    assert 0 < predicting < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers is 0, expected 1 or more"),
        (["--seeds", "0"], "seeds is 0, expected 1 or more"),
        (["--batch", "65"], "--batch is 65, but there are 64 training images"),
        (["--data", "mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["--updates", "1"], "updates is 1, expected 2 or more (--updates)"),
        (["--cluster", ""], "--cluster is empty"),
        (["--cluster", "foo"], "--cluster is foo, which names no port"),
        (["--cluster", "tcp://127.0.0.1:9"], "--workers are of this machine"),
    ],
)
def test_mistakes_of_the_caller_are_one_line(tmp_path, capsys, arguments, message):
    assert cli.main([*COMMAND[3:], "--out", str(tmp_path / "out"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_dask_the_error_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    arguments = [*COMMAND[3:-2], "--out", str(tmp_path / "out"), "--cluster", "tcp://127.0.0.1:9"]
    assert cli.main(arguments) == 2
    assert "pip install 'minires[cluster]'" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("option", ["--seeds", "--workers"])
def test_what_disk_or_memory_cannot_hold_is_refused_at_once(
    tmp_path, capsys, monkeypatch, option, dry
):
    out, cells = tmp_path / "out", Profile.cells

    def counted(profile):
        assert profile.seeds < 10, "the cells of so many seeds are listed"
        return cells(profile)

    monkeypatch.setattr(Profile, "cells", counted)
    assert cli.main([*COMMAND[3:], "--out", str(out), option, str(10**9), *dry]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"{option} 1000000000: .* are free: {option} \d+ would fit", error)
    assert error.count("\n") == 1
    assert not out.exists()
