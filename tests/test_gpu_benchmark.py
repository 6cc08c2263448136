"""The benchmark of GPUs runs at tiny sizes where there is none; its figures mean nothing."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minires.study.grid import FULL

STUDY = replace(
    FULL, options={"channels": (2, 3), "hidden": 4}, train=16, test=6, epochs=1, updates=4, batch=4,
)  # fmt: skip
SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
    spec = importlib.util.spec_from_file_location("benchmark_of_gpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def tiny(benchmark):
    return benchmark.Sizes(
        batch=2, replicas=2, channels=(2, 3), hidden=4, large_batch=2, pixels=(32, 75), width=0.25,
        rounds=2, large_rounds=1, steps=2, copied=1 << 12, torch_device="cpu", study=STUDY,
        together=2, products=(("small", 3, 4, 4096),),
    )  # fmt: skip


def test_every_part_gives_rows(benchmark, device, monkeypatch):
    monkeypatch.setattr("minires.training.timing.ROUND_UPDATES", 2)
    monkeypatch.setattr("minires.study.cells.PLANE", 2)
    monkeypatch.setattr("minires.study.cells.LINE", (0.5, 1.5))
    # Inception is as MobileNet, but larger; the other two have tests of their own.
    parts = [part for part in benchmark.PARTS if part not in ("inception", "check", "parity")]
    rows = [row for part in parts for row in benchmark.measure(part, device, tiny(benchmark))]
    assert not [row.ours for row in rows if "not recorded" in row.what and row.ratio is None]
    text = "\n".join(map(benchmark.line, rows))
    kinds = "mobilenet_v2, training", "inference", "moments", "small: 3×4 over 4,096"
    for what in ("LeNet step", "side by side", "no gaps", "with TF32", *kinds):
        assert what in text
    assert "full profile" in text
    for kind in (
        "2 pre-trainings, each", "2 fine-tunings, each", "2 fine-tunings, with baselines, each",
        "2 fine-tunings, with baselines, with curves, each",
    ):  # fmt: skip
        assert kind in text
    assert "there are 120\n" in text
    assert "640 cells, by these" in text
    targets = [row.target for row in rows if row.target is not None]
    assert sorted(targets) == [0.03, 0.2, 0.5, 0.7, 1.3, 1.3, 10]


def test_targets_are_met_or_missed(benchmark):
    row = benchmark.Row("what", "1 ms", "2 ms", 0.5, 0.5)
    assert benchmark.line(row).endswith("≤ 0.5 met")
    row.ratio = 0.51
    assert benchmark.line(row).endswith("≤ 0.5 MISSED")
    row.least = True
    assert benchmark.line(row).endswith("≥ 0.5 met")
    assert benchmark.Row("what", "1 ms", "").verdict() == ""


def test_without_a_gpu_it_says_so_in_one_line(benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert benchmark.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "CuPy is not installed" in error


def test_a_part_that_is_not_there(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["resnet"])
    assert "there is no stage resnet" in capsys.readouterr().err


# --- stages -------------------------------------------------------------------------------


@pytest.fixture
def stages(benchmark, monkeypatch):
    """Two stages of two rows each; the second may break at its second row."""
    broken = []

    def stage(name):
        def rows(xp, sizes):
            yield benchmark.Row(f"{name} 1", "1 ms", "")
            if name in broken:
                raise KeyboardInterrupt
            yield benchmark.Row(f"{name} 2", "2 ms", "", failed=name == "moments")

        return rows

    for name in ("lenet", "moments"):
        monkeypatch.setattr(benchmark, name, stage(name))
    return broken


def test_a_benchmark_that_was_cut_off_goes_on(benchmark, stages, tmp_path, capsys):
    path, parts = tmp_path / "results.jsonl", ("lenet", "moments")
    stages.append("moments")
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_stages(parts, benchmark.Results(path, "card"), None, None)
    out = capsys.readouterr().out
    assert "lenet 2" in out
    assert "moments 1" in out  # printed before the stage was over
    with path.open("a") as file:
        file.write('{"card": "card", "part": "mom')  # and the file ends within a line
    stages.clear()
    assert not benchmark.run_stages(parts, benchmark.Results(path, "card"), None, None)
    out = capsys.readouterr().out
    assert "lenet (measured before)" in out
    assert "lenet 2" in out
    assert "moments (measured before)" not in out
    assert "moments 2" in out
    again = benchmark.Results(path, "card")
    assert again.finished == set(parts)
    assert benchmark.Results(path, "another card").finished == set()
    assert benchmark.run_stages(("lenet",), again, None, None, again=True)
    assert "measured before" not in capsys.readouterr().out


def test_a_stage_that_fails_does_not_hold_up_the_others(benchmark, monkeypatch, tmp_path, capsys):
    path, parts, broken = tmp_path / "results.jsonl", ("lenet", "moments"), [True]

    def lenet(xp, sizes):
        yield benchmark.Row("first", "1 ms", "")
        if broken:
            raise RuntimeError("no graph")
        yield benchmark.Row("second", "1 ms", "")

    monkeypatch.setattr(benchmark, "lenet", lenet)
    monkeypatch.setattr(benchmark, "moments", lambda *_: [benchmark.Row("third", "1 ms", "")])
    assert not benchmark.run_stages(parts, benchmark.Results(path, "card"), None, None)
    out = capsys.readouterr().out
    assert "FAILED: RuntimeError: no graph" in out
    assert "third" in out
    broken.clear()
    assert benchmark.run_stages(parts, benchmark.Results(path, "card"), None, None)
    out = capsys.readouterr().out
    assert "lenet (measured before)" not in out
    assert "moments (measured before)" in out
    kept = benchmark.Results(path, "card")
    assert kept.finished == set(parts)
    assert [row.what for row in kept.rows["lenet"]] == ["first", "second"]


def test_a_stage_ends_when_its_time_is_up(benchmark, stages):
    rows = list(benchmark.measure("lenet", None, None, seconds=0))
    assert [row.what for row in rows] == ["lenet 1", "  lenet: time is up"]


def test_the_check_is_a_stage(benchmark, monkeypatch):
    from minires.commands import machine_check

    good = machine_check.Finding("one", 1e-7, 1e-5)
    bad = machine_check.Finding("two", 0.3, 1e-5, "lost", passed=False)
    monkeypatch.setattr(machine_check, "findings", lambda device: iter([good, bad]))
    rows = list(benchmark.check(None, None))
    assert [row.what for row in rows] == ["  two: FAILED", "checks that passed"]
    assert rows[-1].failed
    assert rows[-1].ours == "1 of 2"


@pytest.mark.parametrize(("code", "result"), [(0, "passed"), (1, "FAILED"), (5, "no tests")])
def test_tests_run_file_by_file_and_are_not_held_back(benchmark, monkeypatch, code, result):
    calls = []

    def run(command, **settings):
        calls.append(command)
        assert "capture_output" not in settings
        assert settings["timeout"] <= 120
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    rows = list(benchmark.parity(None, tiny(benchmark)))
    assert len(rows) == len(calls) >= 8
    assert {row.ours for row in rows} == {result}
    assert any(row.failed for row in rows) == (code == 1)


def test_it_runs_from_a_checkout_that_is_not_installed(tmp_path):
    """By its path, from elsewhere, without PYTHONPATH; and what it imports is this checkout."""
    code = (
        f"import runpy, sys; sys.argv = ['gpu.py']; runpy.run_path({str(SCRIPT)!r}); "
        "import minires; print(minires.__file__)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(SCRIPT.parents[1])
