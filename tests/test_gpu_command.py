"""The commands with --device gpu: on a stand-in, on a card (`-m gpu`), and where there is none."""

import json
import os
import sys

import numpy as np
import pytest
from helpers import assert_close

import minires
from minires import kernels
from minires.arrays.files import load_arrays, load_json
from minires.commands import cli, machine_check
from minires.study import experiment, experiment_figure
from minires.training import capture

SMALL = [
    "--network", "lenet_classic", "--train", "60", "--test", "30", "--epochs", "1",
    "--updates", "5", "--batch", "12", "--members", "3", "--quiet",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """It is the same on every device, and to draw it takes longer than such a run."""
    monkeypatch.setattr(experiment_figure, "draw_folder", lambda *arguments: None)


def run(*arguments):
    return cli.main(["run", *SMALL, *map(str, arguments)])


def test_a_run_on_the_gpu_is_the_run_on_the_cpu(device, tmp_path, capsys):
    """Without dropout, whose masks differ: the same figures but for rounding."""
    for where in ("cpu", "gpu"):
        assert run("--dropout", 0, "--device", where, "--out", tmp_path / where) == 0
    capsys.readouterr()
    records = [load_json(tmp_path / where / "results.json")["records"] for where in ("gpu", "cpu")]
    assert len(records[0]) == len(records[1]) >= 5
    for ours, theirs in zip(*records, strict=True):
        assert ours["method"] == theirs["method"]
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=2e-3)
    for stage in ("pretrained", "finetuned"):
        ours, theirs = (
            load_arrays(tmp_path / where / f"seed_0_{stage}.npz", "theta")["theta"]
            for where in ("gpu", "cpu")
        )
        assert_close(ours, theirs, 2e-3)


def test_a_network_with_batch_norm_runs_on_the_gpu(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "STATISTICS_BATCHES", 2)
    shape = "--network", "mobilenet_v1", "--width", 0.125, "--batch", 5, "--train", 15
    sizes = "--test", 8, "--updates", 3, "--members", 2
    assert run(*shape, *sizes, "--device", "gpu", "--out", tmp_path) == 0
    records = load_json(tmp_path / "results.json")["records"]
    assert {record.get("batch_norm") for record in records} > {"averaged", "recomputed", "last"}
    assert all(np.isfinite(record["nll"]) for record in records)


def test_a_run_on_the_gpu_is_taken_up_again(device, tmp_path, capsys):
    assert run("--device", "gpu", "--out", tmp_path) == 0
    first = load_json(tmp_path / "results.json")
    (tmp_path / "seed_0_records.json").unlink()
    (tmp_path / "results.json").unlink()
    assert run("--device", "gpu", "--out", tmp_path, "--resume") == 0
    for once, again in zip(first["records"], load_json(tmp_path / "results.json")["records"],
                           strict=True):  # fmt: skip
        assert once == again
    assert run("--device", "cpu", "--out", tmp_path, "--resume") == 2
    assert "device was 'gpu', now 'cpu'" in capsys.readouterr().err


def test_the_card_is_in_the_facts(device, capsys):
    assert cli.main(["info"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "GiB" in facts["gpus"][0]
    assert facts["cuda"].startswith("CuPy 1")


@pytest.mark.parametrize("where", ["gpu", "cpu"])
@pytest.mark.parametrize("replicas", ["1", "2"])
def test_bench(device, capsys, monkeypatch, where, replicas):
    monkeypatch.setattr("minires.training.timing.ROUND_UPDATES", 2)
    monkeypatch.setattr("minires.commands.bench.copy_seconds", lambda xp, rounds: (1e-3, 1 << 20))
    command = ["bench", "--device", where, "--network", "lenet_classic", "--batch", "2"]
    assert cli.main([*command, "--replicas", replicas, "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "not recorded:" not in out
    assert out.count(" ms") == (5 if where == "gpu" else 4)
    assert "GB/s" in out


def test_copying_is_measured(device):
    from minires.commands import bench

    for xp in (np, device):
        seconds, size = bench.copy_seconds(xp, 1, 1 << 12)
        assert size == 1 << 12
        assert seconds > 0


@pytest.mark.parametrize("command", ["run", "bench"])
def test_without_cupy_the_remedy_is_one_line(monkeypatch, capsys, tmp_path, command):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, "--device", "gpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'minires[gpu13]'" in error
    assert not list(tmp_path.iterdir())


def test_a_full_card_says_what_to_lower(device, monkeypatch, capsys, tmp_path):
    from minires.training import loop

    def full(*arguments, **settings):
        raise device.cuda.memory.OutOfMemoryError(1 << 30, 1 << 31)

    monkeypatch.setattr(loop, "train", full)
    assert run("--device", "gpu", "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lower --batch" in error


# --- minires info --check -----------------------------------------------------------------


def checked(capsys, *arguments):
    """The exit code, and {what was checked: its line}."""
    code = cli.main(["info", "--check", *arguments])
    out = capsys.readouterr().out
    lines = out[out.index("checked") :].splitlines()[2:]
    return code, {line.split("  ")[0]: line for line in lines}, out


def test_the_check_knows_every_kernel():
    calls = machine_check.kernel_calls("cpu", np.float32)
    assert {*calls, "uniform"} == set(kernels.KERNELS)


def test_the_check_passes_on_this_machine(capsys):
    code, lines, out = checked(capsys, "--device", "cpu")
    assert code == 0
    assert "55 of 55 checks passed" in out
    assert all(" pass" in line for line in list(lines.values())[:-1])


@pytest.mark.slow
def test_the_check_passes_on_a_gpu(device, capsys):
    code, lines, out = checked(capsys, "--device", "gpu")
    assert code == 0, out
    assert "56 of 56 checks passed" in out
    assert set(lines) > {"recorded steps of LeNet", "memory is given back"}


def test_kernels_are_checked_without_tf32(device, monkeypatch):
    """With it, right ones would look wrong."""
    monkeypatch.setenv("MINIRES_TF32", "1")
    asked = []

    def compute(module):
        asked.append(os.environ["MINIRES_TF32"])
        return [np.ones(2)]

    assert machine_check._kernel_error("gpu", compute, np.dtype("float32").type).error == 0
    assert asked == ["0", "0"]
    assert os.environ["MINIRES_TF32"] == "1"


@pytest.mark.parametrize("fault", ["wrong", "breaks", "not a number", "another shape"])
def test_the_check_finds_a_kernel_that_is_out_of_order(device, capsys, monkeypatch, fault):
    """And goes on with the others."""
    monkeypatch.setattr(machine_check, "ALLOWED", {"float32": 5e-5})
    monkeypatch.setattr(machine_check, "_gradient_error", lambda *a: machine_check.Finding(""))
    monkeypatch.setattr(machine_check, "_recorded_error", lambda *a: machine_check.Finding(""))
    monkeypatch.setattr(machine_check, "_product_error", lambda *a: machine_check.Finding(""))
    monkeypatch.setattr(machine_check, "_memory_left", lambda *a: machine_check.Finding(""))
    monkeypatch.setattr(machine_check, "PRECISIONS", (np.float32,))
    depthwise = kernels.gpu.depthwise

    def broken(*arguments):
        if fault == "breaks":
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS:\n an illegal memory access")
        y = depthwise(*arguments)
        if fault == "another shape":
            return y[:, :1]
        y[0, 0, 0, 0, 0] = y[0, 0, 0, 0, 0] * (1.01 if fault == "wrong" else np.nan) + 0.01
        return y

    monkeypatch.setattr(kernels.gpu, "depthwise", broken)
    code, lines, out = checked(capsys, "--device", "gpu")
    assert code == 1
    failed = {name for name, line in lines.items() if " FAIL" in line}
    assert failed == {"depthwise, float32", "separable, float32"}
    assert "Please report this" in out
    assert "MINIRES_KERNELS=plain" in out
    if fault == "breaks":
        assert "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access" in out


def test_the_check_finds_steps_that_were_not_recorded(device, capsys, monkeypatch):
    def fail(self):
        self.record, self.reason = False, "out of order"

    monkeypatch.setattr(capture.RecordedSteps, "_record", fail)
    model = minires.lenet(channels=(2, 3), hidden=8)
    finding = machine_check._recorded_error(model)
    assert not finding.passed
    assert finding.remark == "not recorded: out of order"


def test_without_a_gpu_nothing_is_checked(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cli.main(["info", "--check", "--device", "gpu"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "pip install 'minires[gpu13]'" in output.err
