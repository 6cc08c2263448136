"""The study on a GPU, cells side by side: what each finds on a CPU, alone; and what goes wrong."""

import gc
import math
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

from minires import data as data_tools
from minires.arrays import to_host
from minires.arrays.files import load_json
from minires.commands import cli
from minires.kernels import gpu
from minires.study import cells as cells_module
from minires.study.cells import Source, Start, alike, compute
from minires.study.crews import Device
from minires.study.experiment import fingerprint
from minires.study.grid import FULL, Candidate, Cell, Profile
from minires.study.store import Store, load_sweep, tabulate
from minires.study.sweep import Plan, prepare, run_sweep
from minires.training import loop

TINY = Profile(
    "tiny",
    "glyphs",
    options={"channels": (2, 3), "hidden": 8},
    train=64,
    test=20,
    epochs=1,
    updates=5,
    batch=16,
    seeds=2,
    l1=(0.2,),
    l1_outside=(0.05,),
    l2=(0.05, 0.15),
    dropout=(0.5,),
    baselines=(0.05, 0.15),
    curves=(0.15,),
)
RELATIVE, ABSOLUTE = 2e-4, 2e-5  # what rounding may change after a few updates


@pytest.fixture(scope="module")
def dataset():
    """Small images of noise."""
    rng = np.random.default_rng(3)

    def images_and_labels(count):
        return rng.integers(0, 256, (count, 8, 8, 1), np.uint8), rng.integers(0, 10, count)

    return data_tools.Dataset(
        *images_and_labels(TINY.train), *images_and_labels(TINY.test), "noise"
    )


@pytest.fixture(autouse=True)
def small_portrait(monkeypatch):
    monkeypatch.setattr(cells_module, "PLANE", 3)
    monkeypatch.setattr(cells_module, "LINE", (-0.5, 0.5, 1.5, 2.5))


class Host:
    """The crew of a CPU, here and now: cell by cell, or side by side too."""

    capacity = 1

    def __init__(self, side_by_side=1):
        self.side_by_side = side_by_side

    def submit(self, function, *arguments):
        device = Device(self.side_by_side)
        return device.submit(lambda *a, device: function(*a), *arguments)

    def renew(self):
        pass

    def close(self):
        pass


def ready(folder, dataset, profile, device="cpu"):
    """A prepared folder, and its Source."""
    sizes = len(dataset.train_images), len(dataset.test_images)
    source = Source(str(folder / "data"), "glyphs", *sizes, None, fingerprint(dataset))
    prepare(folder, profile, source, device)
    source.share(dataset)
    np.save(folder / "predictions" / "labels.npy", dataset.test_labels)
    return source


def sweep(folder, dataset, crew, profile=TINY):
    """The table of a sweep."""
    device = "gpu" if isinstance(crew, Device) else "cpu"
    source = ready(folder, dataset, profile, device)
    run_sweep(profile, source, folder, crew, quiet=True)
    table = tabulate(load_sweep(folder))
    assert len(table["records"]) + len(table["diverged"]) == len(profile.cells())
    return {name: table[name] for name in ("records", "diverged", "deep_ensembles")}


def assert_same(ours, theirs, where="table"):
    """All numbers agree but for rounding; everything else is equal."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name in ours:
            if name != "moments_check":  # is rounding, nothing else
                assert_same(ours[name], theirs[name], f"{where}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    elif isinstance(ours, float):
        assert math.isclose(ours, theirs, rel_tol=RELATIVE, abs_tol=ABSOLUTE), (where, ours, theirs)
    else:
        assert ours == theirs, where


class AsOnDevice:
    """A Generator on the host whose masks are those that a GPU makes of its seeds."""

    def __init__(self, generator, device):
        self.generator, self.device = generator, device

    def random(self, shape, dtype):
        like = self.device.zeros(1, dtype)
        return to_host(gpu.uniform(self.generator, shape, like))


@pytest.fixture
def masks_of_the_device(device, monkeypatch):
    """Dropout on the host drops what it drops on the device."""
    stream, dropped = loop.stream, cells_module.predict_with_dropout

    def own_stream(seed, purpose):
        generator = stream(seed, purpose)
        return AsOnDevice(generator, device) if purpose.endswith("dropout") else generator

    def own_dropped(lab, theta, rng):
        return dropped(lab, theta, AsOnDevice(rng, device))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "stream", own_stream)
        patch.setattr(cells_module, "predict_with_dropout", own_dropped)
        yield patch


def test_the_sweep_of_a_gpu_is_that_of_a_cpu(device, masks_of_the_device, dataset, tmp_path):
    """Every number of every method, whatever trains beside."""
    on_host = sweep(tmp_path / "host", dataset, Host())
    assert_same(sweep(tmp_path / "host, side by side", dataset, Host(50)), on_host)
    masks_of_the_device.undo()
    for side_by_side in (3, 50):  # groups of three leave one alone
        table = sweep(tmp_path / f"{side_by_side}", dataset, Device(side_by_side))
        assert_same(table, on_host)
    methods = {name for record in table["records"] for name in record["methods"]}
    assert methods > {"swa", "snapshot", "swag_low_rank", "isotropic_10", "mc_dropout_10"}
    parts = {name for record in table["records"] for name in record}
    assert parts > {"curves", "reliability", "moments_check", "portrait"}
    checks = [record["moments_check"] for record in table["records"] if "moments_check" in record]
    assert len(checks) == 2
    assert all(0 < check[name] < 1e-6 for check in checks for name in ("mean", "variance"))


# --- those that diverge -------------------------------------------------------------------


@pytest.fixture
def source(dataset, tmp_path):
    return ready(tmp_path / "source", dataset, TINY)


def starts_of(cells, size):
    """A Start for each, of random weights."""
    rng = np.random.default_rng(1)
    theta = [rng.normal(0, 0.1, size).astype(np.float32) for _ in cells]
    return [Start(own, {"accuracy": 0.5}) for own in theta]


def without_seconds(record):
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize("fault", ["rate", "start"])
def test_a_network_that_diverges_takes_no_other_along(device, source, where, fault):
    """Of three the middle one: the records of the others stay what they were, bit for bit."""
    cells = [Cell("sgd", 0.2, 0.5, seed, "sgd", 0.15) for seed in (0, 1, 2)]
    starts = starts_of(cells, TINY.model(0.5, (8, 8, 1)).size)
    profile = replace(TINY, baselines=(0.15, 1e30), curves=(0.15, 1e30))
    good = compute(cells, profile, source, starts, where)
    if fault == "rate":
        cells[1] = replace(cells[1], l2=1e30)
    else:
        starts[1].theta[7] = np.nan
    found = compute(cells, profile, source, starts, where)
    for place in (0, 2):
        assert without_seconds(found[place].record) == without_seconds(good[place].record)
        np.testing.assert_array_equal(found[place].predictions, good[place].predictions)
    assert set(found[1].record) == {"cell", "diverged", "seconds", "made"}
    assert found[1].predictions is None
    reason = found[1].record["diverged"]
    assert reason.startswith("fine-tuning: the loss is ")
    assert reason.endswith(
        "of 5: lower the rate, 1e+30" if fault == "rate" else "lower the rate that led to them"
    )
    if where == "cpu":
        (alone,) = compute(cells[1:2], profile, source, starts[1:2])
        assert alone.record["diverged"] == reason


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_a_pre_training_that_diverges_takes_no_other_along(device, source, where):
    cells = [Cell("sgd", l1, 0.5, 3) for l1 in (0.2, 1e30, 0.05)]
    found = compute(cells, TINY, source, device=where)
    assert "lower the rate, 1e+30" in found[1].record["diverged"]
    assert found[1].theta is None
    for place in (0, 2):
        (alone,) = compute([cells[place]], TINY, source, device=where)
        np.testing.assert_allclose(found[place].theta, alone.theta, atol=1e-5)
        assert np.isfinite(found[place].theta).all()


def test_all_of_a_group_may_diverge(device, source):
    cells = [Cell("adam", 1e30, 0.5, seed) for seed in (0, 1)]
    assert all("diverged" in o.record for o in compute(cells, TINY, source, device="gpu"))
    cells = [Cell("sgd", 0.2, 0.5, seed, "sgd", 1e30) for seed in (0, 1)]
    profile = replace(TINY, baselines=(1e30,))
    starts = starts_of(cells, TINY.model(0.5, (8, 8, 1)).size)
    found = compute(cells, profile, source, starts, "gpu")
    assert all("diverged" in outcome.record for outcome in found)


def test_what_follows_a_diverged_pre_training_is_settled(device, dataset, tmp_path):
    profile = replace(TINY, adam=False, l1=(0.2, 1e30), l2=(0.15,), l1_outside=(), curves=())
    table = sweep(tmp_path, dataset, Device(50), profile)
    lost = {Cell(**record["cell"]) for record in table["diverged"]}
    assert lost == {cell for cell in profile.cells() if cell.l1 == 1e30}


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize("rate", [0.15, 1e30])
def test_a_group_leaves_no_memory_behind(device, source, where, rate, monkeypatch):
    """Gigabytes on a GPU, and the next group needs them: nothing may wait for the collector."""
    kept, prepare_track = [], cells_module.Recorder.__init__

    def watched(self, group):
        prepare_track(self, group)
        kept.extend([weakref.ref(self), weakref.ref(group)])

    monkeypatch.setattr(cells_module.Recorder, "__init__", watched)
    profile = replace(TINY, baselines=(0.15, 1e30), curves=(0.15, 1e30))
    cells = [Cell("sgd", 0.2, 0.5, seed, "sgd", l2) for seed, l2 in enumerate((0.15, rate))]
    starts = starts_of(cells, TINY.model(0.5, (8, 8, 1)).size)
    gc.collect()
    gc.disable()
    try:
        outcomes = compute(cells, profile, source, starts, where)
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()
    assert ("diverged" in outcomes[1].record) == (rate == 1e30)


# --- who trains beside whom ---------------------------------------------------------------


def plan_of(profile, tmp_path):
    source = Source("", "glyphs", 64, 20, None, "")
    prepare(tmp_path, profile, source)
    return Plan(profile, Store(tmp_path), tmp_path, source)


@pytest.mark.parametrize("most", [1, 7, 50, 1000])
def test_a_plan_hands_out_cells_that_are_alike(tmp_path, most):
    plan = plan_of(FULL, tmp_path)
    taken = []
    while plan.ready:
        cells = plan.next(most)
        assert 1 <= len(cells) <= most
        assert len({alike(cell, FULL) for cell in cells}) == 1
        plan.take(cells)
        taken.append(cells)
    found = [cell for cells in taken for cell in cells]
    assert sorted(map(str, found)) == sorted(
        str(cell) for cell in FULL.cells() if cell.is_pretraining
    )
    if most == 1:
        assert found == sorted(found, key=lambda cell: cell.order)
    # 60 with dropout and 40 without by SGD, 10 and 10 by Adam.
    sizes = {1: [1] * 120, 50: [30, 30, 40, 10, 10], 1000: [60, 40, 10, 10]}
    if most in sizes:
        assert sorted(map(len, taken)) == sorted(sizes[most])


def test_pre_trainings_come_first_where_cells_train_side_by_side(tmp_path):
    plan = plan_of(TINY, tmp_path)
    first = min(plan.ready, key=lambda cell: cell.order)
    tuning = replace(first, finetune_optimizer="sgd", l2=0.15)
    plan.take([first])
    plan.put_back([tuning])
    assert plan.next(1) == [tuning]
    assert all(cell.is_pretraining for cell in plan.next(2))


def test_cells_that_are_not_alike_are_refused(source):
    one, other = Cell("sgd", 0.2, 0.5, 0), Cell("adam", 1e-3, 0.5, 0)
    with pytest.raises(ValueError, match=r"differ in more than seed and rates: sgd_0\.2_.*, adam"):
        compute([one, other], TINY, source)
    assert alike(one, TINY) != alike(replace(one, dropout=0.0), TINY)
    tunings = [replace(c, finetune_optimizer="sgd", l2=0.1, seed=1) for c in (one, other)]
    assert alike(tunings[0], TINY) == alike(tunings[1], TINY) != alike(one, TINY)
    drawn, plain = (replace(one, finetune_optimizer="sgd", l2=0.15, seed=s) for s in (0, 1))
    assert TINY.parts(drawn) > TINY.parts(plain)
    assert alike(drawn, TINY) == alike(plain, TINY), "a portrait needs no training of its own"


# --- nothing waits ------------------------------------------------------------------------


def test_nothing_asks_the_host_within_an_epoch(device, source, monkeypatch):
    """Moments, averages, columns of SWAG, snapshots: all are queued."""
    if not hasattr(device, "_graph_state"):
        pytest.skip("only the stand-in counts")
    counts, train = [], loop.train

    def counting(*arguments, after_update=None, **options):
        own = counts.append([]) or counts[-1]

        def after(number, theta, loss):
            if after_update is not None:
                after_update(number, theta, loss)
            own.append(device._graph_state.synchronisations)

        return train(*arguments, after_update=after, **options)

    monkeypatch.setattr(loop, "train", counting)
    cells = [Cell("sgd", 0.2, 0.5, seed, "sgd", 0.15) for seed in (0, 1)]
    profile = replace(TINY, updates=12, batch=4)
    compute(cells, profile, source, starts_of(cells, TINY.model(0.5, (8, 8, 1)).size), "gpu")
    assert len(counts) == 3
    for own in counts:
        assert len(own) == 12
        assert own[1] == own[10], "an epoch has 16 updates: the host looks after the last only"


def test_cells_side_by_side_begin_at_16_bytes(device, source, monkeypatch):
    """In the training, in the fine-tuning, and in the two other ways to fine-tune."""
    distances, train = [], loop.train

    def looking(task, theta, *arguments, **options):
        distances.append(theta.strides[0])
        return train(task, theta, *arguments, **options)

    monkeypatch.setattr(loop, "train", looking)
    size = TINY.model(0.5, (8, 8, 1)).size
    compute([Cell("sgd", 0.2, 0.5, seed) for seed in (0, 1)], TINY, source, None, "gpu")
    cells = [Cell("sgd", 0.2, 0.5, seed, "sgd", 0.15) for seed in (0, 1)]
    compute(cells, TINY, source, starts_of(cells, size), "gpu")
    assert size % 4
    assert distances == [4 * (size + -size % 4)] * 4


# --- stop and go --------------------------------------------------------------------------


def test_a_sweep_on_a_gpu_goes_on_where_it_was_stopped(device, dataset, tmp_path):
    profile = replace(TINY, baselines=(), curves=(), adam=False)
    whole = sweep(tmp_path / "whole", dataset, Device(3), profile)
    for stop in (1, 3):
        folder, calls = tmp_path / f"{stop}", []

        class Stopped(Device):
            def submit(self, *call, calls=calls, stop=stop):
                if len(calls) == stop:
                    raise KeyboardInterrupt
                calls.append(call[1])
                return super().submit(*call)

        with pytest.raises(KeyboardInterrupt):
            sweep(folder, dataset, Stopped(3), profile)
        done = [cell for cells in calls for cell in cells]
        assert len(load_sweep(folder).records) == len(done) > 0
        again = []

        class Counted(Device):
            def submit(self, *call, again=again):
                again.extend(call[1])
                return super().submit(*call)

        assert_same(sweep(folder, dataset, Counted(2), profile), whole)
        assert not set(again) & set(done)


def test_a_group_may_be_cut_off_while_its_cells_are_kept(device, dataset, tmp_path, monkeypatch):
    """The second of three has weights on the disk, but no record: it and the third are redone."""
    profile = replace(TINY, baselines=(), curves=(), adam=False, l2=(0.15,))
    whole = sweep(tmp_path / "whole", dataset, Device(3), profile)
    add, records = Store.add, []

    def cut_off(self, record):
        records.append(record)
        if len(records) == 2:
            raise KeyboardInterrupt
        add(self, record)

    folder = tmp_path / "cut off"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", cut_off)
        with pytest.raises(KeyboardInterrupt):
            sweep(folder, dataset, Device(3), profile)
    assert len(load_sweep(folder).records) == 1
    assert len(list((folder / "pretrained").iterdir())) == 2
    assert_same(sweep(folder, dataset, Device(3), profile), whole)
    assert len(list((folder / "cells").iterdir())) == len(profile.cells())


def test_a_mistake_on_the_device_is_raised_and_what_is_done_is_kept(
    device, dataset, tmp_path, monkeypatch
):
    class Mistaken(Device):
        calls = 0

        def submit(self, *call):
            self.calls += 1
            if self.calls == 2:
                return super().submit(lambda *a, device: 1 / 0)
            return super().submit(*call)

    with pytest.raises(ZeroDivisionError):
        sweep(tmp_path, dataset, Mistaken(50))
    assert load_sweep(tmp_path).records


def test_a_folder_belongs_to_one_device(dataset, tmp_path):
    ready(tmp_path / "cpu", dataset, TINY)
    assert load_json(tmp_path / "cpu" / "sweep.json")["device"] == "cpu"
    ready(tmp_path / "cpu", dataset, TINY)
    with pytest.raises(ValueError, match=r"other settings \(device was 'cpu', now 'gpu'\)"):
        ready(tmp_path / "cpu", dataset, TINY, "gpu")
    ready(tmp_path / "gpu", dataset, TINY, "gpu")
    assert load_json(tmp_path / "gpu" / "sweep.json")["device"] == "gpu"
    with pytest.raises(ValueError, match=r"other settings \(device was 'gpu', now 'cpu'\)"):
        ready(tmp_path / "gpu", dataset, TINY)


# --- the command --------------------------------------------------------------------------

COMMAND = [
    "sweep", "--train", "64", "--test", "20", "--epochs", "1", "--updates", "3", "--batch", "16",
    "--seeds", "1", "--quiet",
]  # fmt: skip


@pytest.fixture
def command(dataset, monkeypatch):
    """`minires sweep` of a few cells, on small images."""
    monkeypatch.setattr(data_tools, "load", lambda *a, **k: dataset)
    few = replace(TINY, dropout=(0.0,), l2=(0.15,), adam=False, l1_outside=())
    monkeypatch.setattr("minires.study.grid.PROFILES", {"smoke": few})
    return lambda *more: cli.main([*COMMAND, *map(str, more)])


def test_the_command_on_a_gpu(device, command, tmp_path, capsys):
    from minires.study.claims import verdicts

    assert command("--device", "gpu", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "sgd 0.2, dropout 0, then sgd 0.15 (1 seed)" in printed.out
    assert printed.err == ""
    found = load_sweep(tmp_path / "out")
    assert found.settings["device"] == "gpu"
    assert load_json(tmp_path / "out" / "table.json")["settings"]["device"] == "gpu"
    seconds = found.records[-1]["seconds"]
    # A step and an update of the moments are one graph there: no times of their own.
    assert set(seconds) == {"cell", "predict_finetuned", "predict_mean"}
    assert all(value > 0 for value in seconds.values())
    outcomes = {verdict.claim: verdict.outcome for verdict in verdicts(found)}
    assert outcomes["C16"] == "inconclusive"
    assert command("--out", tmp_path / "out") == 2
    assert "device was 'gpu', now 'cpu'" in capsys.readouterr().err


def test_the_dry_run_measures_on_the_device(device, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minires.training.timing.ROUND_UPDATES", 1)
    monkeypatch.setattr("minires.study.sweep.MEASURED", 1)
    assert (
        command("--device", "gpu", "--side-by-side", 1, "--dry-run", "--out", tmp_path / "out") == 0
    )
    printed = capsys.readouterr().out
    assert "13 updates of " in printed  # 4, and three times 3
    assert "(1 side by side, measured now)" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_a_full_card_says_what_to_lower(device, command, tmp_path, capsys, monkeypatch, dry):
    def full(*arguments, **settings):
        raise device.cuda.memory.OutOfMemoryError(1 << 30, 1 << 31)

    where = (
        "minires.training.timing.capture.RecordedSteps" if dry else "minires.training.loop.train"
    )
    monkeypatch.setattr(where, full)
    more = ["--dry-run"] if dry else []
    assert command("--device", "gpu", "--side-by-side", 7, "--out", tmp_path, *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the GPU's memory is full" in error
    assert "lower --side-by-side, now 7" in error


def test_a_full_machine_is_not_taken_for_a_full_card(
    device, command, tmp_path, capsys, monkeypatch
):
    def full(*arguments, **settings):
        raise MemoryError("Unable to allocate 3 GiB")

    monkeypatch.setattr(loop, "train", full)
    assert command("--device", "gpu", "--out", tmp_path) == 2
    assert capsys.readouterr().err == "minires: Unable to allocate 3 GiB\n"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_the_command_refuses_the_folder_of_a_cpu(device, command, dataset, tmp_path, capsys, dry):
    assert command("--out", tmp_path) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    capsys.readouterr()
    assert command("--device", "gpu", "--out", tmp_path, *dry) == 2
    printed = capsys.readouterr()
    assert "holds results with other settings (device was 'cpu', now 'gpu')" in printed.err
    assert printed.out == ""
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu", "--workers", "2"], "--workers and --cluster are for CPUs"),
        (["--device", "gpu", "--cluster", "tcp://127.0.0.1:9"], "--workers and --cluster are for"),
        (["--side-by-side", "2"], "--side-by-side is for --device gpu"),
        (["--device", "gpu", "--side-by-side", "0"], "--side-by-side is 0, expected 1 or more"),
    ],
)
def test_what_does_not_go_together_is_one_error(
    device, command, tmp_path, capsys, arguments, message
):
    assert command("--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_the_remedy_is_one_line(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command("--device", "gpu", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'minires[gpu13]'" in error
    assert not (tmp_path / "out").exists()


# --- which LeNet --------------------------------------------------------------------------

SMALL = Candidate("small", options={"channels": (2, 3), "hidden": 8}, inputs="[0, 1]")
WHICH = [
    "sweep", "--profile", "which-lenet", "--data", "glyphs", "--train", "32", "--test", "10",
    "--epochs", "1", "--updates", "2", "--batch", "16", "--quiet", "--device", "gpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_candidate(monkeypatch):
    monkeypatch.setattr("minires.study.grid.CANDIDATES", (SMALL,))


def test_a_candidate_trains_on_the_device(device, tmp_path, capsys, monkeypatch):
    """Like any other sweep there, on images of another scale too."""
    assert cli.main([*WHICH, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("small ") == 1
    (row,) = load_json(tmp_path / "which-lenet.json")
    assert load_json(tmp_path / "small" / "sweep.json")["device"] == "gpu"
    assert len(row["scores"]) == 2 * 2 * 7
    assert all(0 <= score <= 1 for score in row["scores"].values())
    monkeypatch.setattr("minires.study.sweep.run_sweep", None)
    monkeypatch.setattr("minires.study.sweep.measure_on_gpu", lambda *arguments: (0.06, 0.0))
    assert cli.main([*WHICH, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main([*WHICH, "--out", str(tmp_path), "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "small" in line)
    assert line.split() == ["small", "0", "of", "8", "60.0", "ms", "0.0", "min"]
