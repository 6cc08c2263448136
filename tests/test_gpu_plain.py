"""The path that cannot fail for the sake of our own kernels: `plain` on arrays of a GPU.

Networks train and predict through `kernels/plain.py` and CuPy's own functions; none of gpu.cu is
compiled, we do not call cuBLAS, nothing is recorded. The numbers are those of `plain` on NumPy.
"""

import numpy as np
import pytest
from helpers import assert_close
from test_gpu_networks import NETWORKS, compare_with_the_cpu

import minires
from minires.arrays import to_host
from minires.commands import cli, machine_check
from minires.kernels import cublas, gpu
from minires.training import capture, loop
from minires.training.optimizers import SGD, Adam
from minires.training.timing import Problem


@pytest.fixture(autouse=True)
def plain_alone(monkeypatch):
    """Kernels of our own, cuBLAS and graphs are out of order."""

    def out_of_order(*arguments, **settings):
        raise AssertionError("this is not plain")

    monkeypatch.setenv("MINIRES_KERNELS", "plain")
    monkeypatch.setattr(gpu, "_launch", out_of_order)
    monkeypatch.setattr(cublas, "matmul", out_of_order)
    monkeypatch.setattr(gpu, "matmul", out_of_order)
    monkeypatch.setattr(capture, "RecordedSteps", out_of_order)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("replicas", [None, 2])
def test_networks(device, rng, name, replicas):
    """Loss, gradient, statistics and predictions."""
    compare_with_the_cpu(
        device, rng, name, replicas, gradient=1e-10, statistics=1e-12, output=1e-12
    )


@pytest.mark.parametrize("make", [lambda: SGD(0.05, momentum=0.9), lambda: Adam(1e-3)])
@pytest.mark.parametrize("seeds", [3, [3, 4]])
def test_training_and_fine_tuning(device, make, seeds):
    """With dropout, the moments, and weights that are watched: as on a CPU, step by step."""
    model = minires.lenet(channels=(2, 3), hidden=8, dropout=0.5, input_shape=(12, 12, 1))
    replicas = None if seeds == 3 else 2
    found = {}
    for where in ("cpu", "gpu"):
        rng = np.random.default_rng(0)
        move = device.asarray if where == "gpu" else np.asarray
        theta = move(model.init(rng, replicas=replicas, dtype=np.float64))
        stats = move(model.init_stats(replicas, dtype=np.float64))
        images = move(rng.standard_normal((12, *model.input_shape)))
        task = loop.Task(model, images, move(rng.integers(0, 10, 12)), 4, seeds, True)
        loop.train(task, theta, stats, make(), 3)
        tuned = loop.fine_tune(task, theta, stats, make(), 4, watch=[1, 5])
        found[where] = theta, tuned.moments.mean, tuned.moments.std, tuned.history
        members = tuned.moments.sample(2, np.random.default_rng(5))
        predicted = loop.predict(model, members if replicas is None else theta, images, quiet=True)
        found[where] += members, predicted
    for there, here in zip(found["gpu"], found["cpu"], strict=True):
        assert_close(to_host(there), here, 1e-10)


def test_a_run_of_the_command(device, tmp_path, capsys):
    """All that `minires run` does, evaluation and averages too."""
    small = ["--network", "lenet_classic", "--train", "24", "--test", "12", "--epochs", "1"]
    small += ["--updates", "3", "--batch", "8", "--members", "3", "--quiet"]
    assert cli.main(["run", *small, "--device", "gpu", "--out", str(tmp_path)]) == 0
    assert "mean model" in capsys.readouterr().out


@pytest.mark.parametrize("moments", [False, True])
def test_times_are_measured(device, moments):
    model = minires.lenet(channels=(2, 3), hidden=8, dropout=0.5, input_shape=(12, 12, 1))
    problem = Problem(model, 2, device="gpu")
    assert 0 < problem.step_seconds(1, moments=moments) < 5
    assert problem.reason is None


def test_the_check_leaves_out_what_plain_kernels_do_not_do(device, monkeypatch):
    monkeypatch.setattr(machine_check, "PRECISIONS", (np.float32,))
    monkeypatch.setattr(machine_check, "_product_error", lambda *a: machine_check.Finding(""))
    found = list(machine_check.findings("gpu"))
    assert all(finding.passed for finding in found), [f.cells() for f in found if not f.passed]
    names = {finding.what for finding in found}
    assert "memory is given back" in names
    assert not any("recorded" in name for name in names)
