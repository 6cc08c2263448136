"""One training step and one evaluation of the slim LeNet, against PyTorch on as many threads.

    python benchmarks/lenet.py
    python benchmarks/lenet.py --scaling      two threads against one

Prints medians, quartiles and ratios, the cost of the moments' update, the peak memory of a
process that trains, and the time of `import minires`. Needs the extra `bench`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from compare import THREADS, child_peak, interleave, one_process, own_peak, report, scaling

BATCH, IMAGES = 128, 10_000
FEW = (1, 2, 4, 8, 32)  # images predicted at once


def minires_step(moments_seconds=None):
    """A function that does one step with minires: dropout and SGD.

    With a list `moments_seconds` the moments are updated too, and the time of that goes there.
    """
    import minires

    minires.set_threads(THREADS)
    rng = np.random.default_rng(0)
    model = minires.lenet()
    theta, optimizer = model.init(rng), minires.SGD(0.01)
    moments = minires.Moments(theta.shape)
    images = rng.standard_normal((BATCH, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, 10, BATCH)

    def step():
        _, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
        optimizer.step(theta, gradient)
        if moments_seconds is not None:
            start = time.perf_counter()
            moments.update(theta)
            moments_seconds.append(time.perf_counter() - start)

    return step


def plain_step():
    """A function that does one step with minires' plain kernels."""
    import minires

    step = minires_step()

    def on_plain_kernels():
        with minires.kernels("plain"):
            step()

    return on_plain_kernels


def minires_evaluation(count=IMAGES):
    """A function that predicts `count` images with minires."""
    import minires

    minires.set_threads(THREADS)
    rng = np.random.default_rng(0)
    model = minires.lenet()
    theta = model.init(rng)
    images = rng.standard_normal((count, 28, 28, 1), dtype=np.float32)
    return lambda: model.predict(theta, images)


def torch_network():
    import torch
    from torch import nn

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return torch, nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, 10),
    )  # fmt: skip


def torch_step():
    """A function that does the same step with PyTorch."""
    torch, network = torch_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images = torch.randn(BATCH, 1, 28, 28)
    labels = torch.randint(0, 10, (BATCH,))

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def torch_evaluation(batch, count=IMAGES):
    """A function that predicts `count` images with PyTorch, `batch` at a time."""
    torch, network = torch_network()
    network.eval()
    images = torch.randn(count, 1, 28, 28)

    def evaluate():
        with torch.no_grad():
            return torch.cat([network(part).softmax(1) for part in images.split(batch)])

    return evaluate


def import_time(module, rounds=7):
    """Median seconds that `import module` takes in a fresh process, the interpreter's own off.

    The bytecode is there, as pip leaves it.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = one_process() | {"PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def once(code):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
            return time.perf_counter() - start

        once(f"import {module}")
        return statistics.median(once(f"import {module}") - once("pass") for _ in range(rounds))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--scaling", action="store_true", help=f"{THREADS} threads against one")
    parser.add_argument("--memory", choices=("minires", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        step = {"minires": minires_step, "torch": torch_step}[options.memory]()
        for _ in range(10):
            step()
        print(own_peak())
        return
    if options.scaling:
        functions = {
            "step with moments": minires_step([]),
            "10,000 images": minires_evaluation(),
            "PyTorch: step": torch_step(),
            "PyTorch: 10,000 images": torch_evaluation(128),
        }
        scaling(functions, options.rounds)
        return
    moments_seconds = []
    steps = {
        "minires": minires_step(),
        "minires, with moments": minires_step(moments_seconds),
        "minires, plain kernels": plain_step(),
        "PyTorch": torch_step(),
    }
    times = interleave(steps, options.rounds)
    report(f"training step, batch {BATCH}, {THREADS} threads", times, "PyTorch")
    update, step = map(statistics.median, (moments_seconds, times["minires"]))
    share = f"{100 * update / step:.1f} % of a step without"
    print(f"  the moments' update alone: {update * 1e3:.1f} ms, {share}")
    evaluations = {"minires": minires_evaluation()}
    evaluations |= {f"PyTorch, batch {b}": torch_evaluation(b) for b in (128, 256)}
    times = interleave(evaluations, max(options.rounds // 5, 3), calls=1)
    report(f"evaluation of {IMAGES:,} images", times, "PyTorch, batch 128")
    for count in FEW:
        pair = {"minires": minires_evaluation(count), "PyTorch": torch_evaluation(count, count)}
        times = interleave(pair, options.rounds, calls=10)
        report(f"prediction of {count} image" + "s" * (count > 1), times, "PyTorch")
    print("\npeak memory of a process that takes ten steps")
    for name in ("minires", "torch"):
        print(f"  {name:<28}{child_peak(__file__, '--memory', name):>7.0f} MiB")
    print(f"\nimport minires: {import_time('minires'):.2f} s")


if __name__ == "__main__":
    main()
