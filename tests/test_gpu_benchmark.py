"""The benchmark of GPUs runs at tiny sizes where there is none; its figures mean nothing."""

import importlib.util
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
        together=2,
    )  # fmt: skip


def test_every_part_gives_rows(benchmark, device, monkeypatch):
    monkeypatch.setattr("minires.training.timing.ROUND_UPDATES", 2)
    monkeypatch.setattr("minires.study.cells.PLANE", 2)
    monkeypatch.setattr("minires.study.cells.LINE", (0.5, 1.5))
    parts = [part for part in benchmark.PARTS if part != "inception"]  # as mobilenet, but larger
    rows = list(benchmark.measure(parts, device, tiny(benchmark)))
    assert not [row.ours for row in rows if "not recorded" in row.what and row.ratio is None]
    text = "\n".join(map(benchmark.line, rows))
    for what in ("LeNet step", "side by side", "mobilenet_v2, training", "inference", "moments"):
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
    assert "there is no part resnet" in capsys.readouterr().err
