"""Estimates for a GPU that nobody has: launches, bytes and multiplications of training steps.

    python benchmarks/gpu_on_paper.py

Every launch of an update is counted on a GPU without memory (`tests/shapes_only.py`), with its real
shapes. The bound of a launch is the longer of two times: its bytes at 3.35 TB/s, each array once;
and its multiplications and additions at 67 TFLOP/s, an H100's in float32 without TF32. No card has
run any of this: the figures are estimates, and what a card needs is more.
"""

import collections
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import shapes_only  # noqa: E402

import minires  # noqa: E402
from minires.arrays import aligned  # noqa: E402
from minires.training import capture, loop  # noqa: E402

BYTES, WORK = 3.35e12, 67e12  # a second, by the data sheet of an H100
OURS = 5  # kernels that are named, of each step
PHOTOS = {"variant": "torch", "dropout": 0.2}
STEPS = {  # model, batch, networks side by side
    "LeNet, batch 128": (minires.lenet, 128, 1),
    "LeNet, batch 128, 10 side by side": (minires.lenet, 128, 10),
    "MobileNetV2, batch 64": (
        lambda: minires.mobilenet_v2(input_shape=(224, 224, 3), width=1.0, **PHOTOS), 64, 1,
    ),
    "Inception-V3, batch 64": (
        lambda: minires.inception_v3(input_shape=(299, 299, 3), width=1.0, **PHOTOS), 64, 1,
    ),
}  # fmt: skip


def launches_of_an_update(model, batch, replicas):
    """What a recorded update holds: gradient, step, moments; [Launch, …]."""
    with shapes_only.installed() as cupy:
        lead = () if replicas == 1 else (replicas,)
        theta = aligned(cupy.empty((*lead, model.size), np.float32))
        stats = cupy.empty((*lead, model.stats_size), np.float32)
        images = cupy.empty((batch, *model.input_shape), np.float32)
        seeds = list(range(replicas)) if lead else 0
        order, rng = loop.order_and_dropout(batch, batch, seeds, "training")
        order = [next(order) for _ in range(2)]
        labels = cupy.empty((batch,), np.int64)
        task = object.__new__(loop.Task)  # labels without values cannot be checked
        for name, value in {"model": model, "images": images, "labels": labels}.items():
            object.__setattr__(task, name, value)
        kept = [(minires.Moments(theta.shape), theta)]
        optimizer = minires.SGD(0.1)
        settings = {"rng": rng, "moments": kept, "record": False}
        with capture.RecordedSteps(task, theta, stats, optimizer, order, **settings) as steps:
            steps.take()
            cupy.launches.clear()
            steps.take()  # the first one also makes arrays that stay
        return list(cupy.launches)


def bound(launch):
    """Seconds that a launch takes at least."""
    return max(launch.bytes / BYTES, launch.work / WORK)


def main():
    for name, (make, batch, replicas) in STEPS.items():
        found = launches_of_an_update(make(), batch, replicas)
        total = sum(map(bound, found))
        read, work = (sum(getattr(launch, n) for launch in found) for n in ("bytes", "work"))
        print(
            f"{name}: {len(found):,} launches, {read / 1e9:.2f} GB, {work / 1e9:,.1f} GFLOP, "
            f"at least {1e3 * total:.2f} ms"
        )
        times, counts = collections.Counter(), collections.Counter()
        for launch in found:
            times[launch.name] += bound(launch)
            counts[launch.name] += 1
        for kernel, seconds in times.most_common(OURS):
            print(f"    {kernel:<32}{counts[kernel]:>5} launches{1e3 * seconds:>9.2f} ms")


if __name__ == "__main__":
    main()
