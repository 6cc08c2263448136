"""How long a training step, a prediction and the moments' update take on this machine.

Each number is the median of several rounds, after one round that does not count. On a GPU a
round ends when the device has finished all queued work.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minires import arrays
from minires.kernels import kernels_of, runs_as_written
from minires.resampling.moments import Moments
from minires.training import capture
from minires.training.loop import Task
from minires.training.optimizers import SGD

# For each float32 weight, one update of the moments reads θ, θ₁, θ̄ − θ₁ and nσ², and writes the
# last two: 4 + 4 + 8 + 8 + 8 + 8 bytes.
MOMENTS_BYTES = 40
ROUND_UPDATES = 20


class Problem:
    """A network, and random images to train it on.

    model      a Model
    batch      images in a mini-batch
    replicas   networks side by side
    device     "cpu" or "gpu"
    images     how many; None: four batches
    """

    def __init__(
        self,
        model: Any,
        batch: int,
        replicas: int = 1,
        device: str = "cpu",
        images: int | None = None,
    ):
        rng = np.random.default_rng(0)
        self.model, self.batch, self.replicas, self.device = model, batch, replicas, device
        self.xp = arrays.module_for(device)
        several = None if replicas == 1 else replicas
        self.theta = model.init(rng, replicas=several, device=device)
        self.stats = model.init_stats(several, device=device)
        shape = (images or 4 * batch, *model.input_shape)
        self.images = arrays.to_device(rng.standard_normal(shape, dtype=np.float32), device)
        self.labels = arrays.to_device(rng.integers(0, model.classes, shape[0]), device)
        self.rngs = rng.spawn(replicas) if several else rng
        lead = (replicas,) if several else ()
        self.order = rng.integers(0, shape[0], (ROUND_UPDATES, *lead, batch))
        self.reason = None

    def _step(self, batch, optimizer):
        data = self.images[batch], self.labels[batch], self.stats
        _, gradient = self.model.loss_and_gradient(self.theta, *data, rng=self.rngs)
        optimizer.step(self.theta, gradient)

    def step_seconds(self, rounds: int, record: bool = True, moments: bool = False) -> float:
        """How many seconds one update of all networks takes.

        rounds    how many times to measure
        record    on a GPU: whether to record the update and play it again
        moments   whether to update the moments of θ, too
        """
        optimizer = SGD(1e-4)
        kept = [(Moments(self.theta.shape), self.theta)] if moments else []
        if self.xp is np or runs_as_written():
            order = self.xp.asarray(self.order)

            def updates():
                for batch in order:
                    self._step(batch, optimizer)
                    for moments, vector in kept:
                        moments.update(vector)

            return median_seconds(self.xp, updates, rounds) / len(order)
        order = np.concatenate([self.order[: capture.PLAIN + 1], *[self.order] * rounds])
        task = Task(self.model, self.images, self.labels, self.batch)
        settings = {"rng": self.rngs, "moments": kept, "record": record}
        times = []
        with capture.RecordedSteps(
            task, self.theta, self.stats, optimizer, order, **settings
        ) as steps:
            for number in range(len(order)):
                steps.take()
                if (number - capture.PLAIN) % len(self.order) == 0:
                    self.xp.cuda.get_current_stream().synchronize()
                    times.append(time.perf_counter())
        self.reason = steps.reason
        return statistics.median(np.diff(times)) / len(self.order)

    def predict_seconds(self, rounds: int) -> float:
        """How many seconds it takes to predict all images with all networks.

        rounds   how many times to measure
        """

        def predict():
            self.model.logits(self.theta, self.images, self.stats, batch=self.batch)

        return median_seconds(self.xp, predict, rounds)

    def moments_seconds(self, rounds: int) -> float:
        """How many seconds one update of the moments of all networks takes.

        rounds   how many times to measure
        """
        moments = Moments(self.theta.shape)
        if self.xp is np:
            return median_seconds(np, lambda: moments.update(self.theta), max(rounds, 5))
        moments.start(self.theta)
        number, update = self.xp.asarray(np.array([2])), kernels_of(self.theta).fold_moments

        def several():
            for _ in range(ROUND_UPDATES):
                update(self.theta, *moments.arrays, number)

        return median_seconds(self.xp, several, rounds) / ROUND_UPDATES


def median_seconds(xp: Any, function: Callable[[], Any], rounds: int) -> float:
    """The median time of a function, with all the work that it gives to a GPU.

    xp        the array module that it uses: numpy or cupy
    function  called without arguments
    rounds    how many times to measure, after one call that does not count
    """

    def once():
        start = time.perf_counter()
        function()
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(rounds))


def copy_seconds(xp: Any, rounds: int, size: int = 1 << 28) -> tuple[float, int]:
    """How long it takes to copy memory.

    xp       the array module: numpy or cupy
    rounds   how many times to measure
    size     bytes to copy
    Returns  seconds, and how many bytes were copied
    """
    source = xp.zeros(size // 4, np.float32)
    target = xp.ones(size // 4, np.float32)

    def copy():
        target[...] = source

    return median_seconds(xp, copy, rounds), source.nbytes
