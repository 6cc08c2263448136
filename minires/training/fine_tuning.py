"""A fine-tuning that can be stopped after any update and then goes on with the same bits.

    tuning = FineTuning(theta, stats, SGD(0.05), decay=0.999)
    tuning.update(network, images, labels, rng)               # eq. 1, then eqs. 2-3
    save_arrays(path, **tuning.arrays())
    tuning.restore(load_arrays(path))

`minires.training.loop` trains on images that are all in memory. Here the caller brings the images
of each update, so they may be read from files meanwhile.
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minires.arrays import checks, device_of, to_device, to_host
from minires.arrays.text import progress
from minires.resampling.baselines import EMA
from minires.resampling.moments import Moments

# Parts with a state of their own: each can give it, and go on from it.
PARTS = ("optimizer", "moments", "moments_of_stats", "ema", "ema_of_stats")


class FineTuning:
    """Everything that one update hands to the next.

    theta      (P,) the weights to begin with; copied. All other vectors are on the same device
    stats      (S,) the batch-norm statistics to begin with; copied
    optimizer  SGD or Adam
    decay      of the exponential moving average of θ
    """

    def __init__(self, theta: Any, stats: Any, optimizer: Any, decay: float):
        self.theta, self.stats = theta.copy(), stats.copy()
        self.optimizer = optimizer
        self.moments, self.moments_of_stats = Moments(theta.shape), Moments(stats.shape)
        self.ema, self.ema_of_stats = EMA(decay), EMA(decay)
        self.losses: list[float] = []
        self.seconds = 0.0  # that updates took, their images included
        self.whole = True  # no update is half done

    @property
    def updates(self) -> int:
        """How many updates have been made."""
        return len(self.losses)

    def update(
        self, network: Any, images: Any, labels: Any, rng: Any = None, classes: Any = None
    ) -> None:
        """Make one update (eq. 1), then take θ and the statistics into every average (eqs. 2-3).

        network   as `minires.onnx.load` gives it
        images    (n, …) of the batch
        labels    (n,) their classes, as the network's loss takes them
        rng       random numbers for dropout
        classes   the outputs that compete; None: all
        Raises    FloatingPointError when the loss is not finite; then nothing has changed
        """
        stats = self.stats.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # the check of the loss says it better
            loss, gradient = network.loss_and_gradient(
                self.theta, images, labels, stats=stats, rng=rng, classes=classes
            )
        if not math.isfinite(loss := float(loss)):
            raise FloatingPointError(
                f"the loss is {loss} at update {self.updates + 1}: lower the rate (now "
                f"{self.optimizer.rate})"
            )
        self.whole = False
        self.stats = stats
        self.optimizer.step(self.theta, gradient)
        self.record(loss)
        self.whole = True

    def record(self, loss: float) -> None:
        """Count the update that has just been made, and add it to every average.

        loss   of its batch, before the update
        """
        self.losses.append(loss)
        for average, vector in self._averages():
            average.update(vector)

    def go_on(
        self,
        network: Any,
        shown: Iterable[tuple],
        updates: int,
        save: Callable[[], None] | None = None,
        every: float = 180.0,
        desc: str = "fine-tuning",
    ) -> None:
        """Make all updates that are missing.

        network   as for `update`
        shown     for each of them, what `update` takes after the network
        updates   how many are made in the end, those already made included
        save      called when a save is due, at the end, and after Ctrl-C
        every     seconds between two saves
        desc      the text beside the progress bar
        Raises    FloatingPointError when the loss is not finite
        """
        done, saved, began = self.updates, time.monotonic(), time.perf_counter()
        with progress(total=updates, initial=done, unit="update", desc=desc) as bar:
            try:
                for batch in shown:
                    self.update(network, *batch)
                    self.seconds += time.perf_counter() - began
                    bar.update()
                    bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
                    due = self.updates == updates or time.monotonic() - saved >= every
                    if save is not None and due:
                        save()
                        saved = time.monotonic()
                    began = time.perf_counter()
            except KeyboardInterrupt:
                if save is not None and self.whole and self.updates > done:
                    save()
                raise

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, on the host."""
        found = {
            "updates": self.updates,
            "losses": np.array(self.losses, np.float64),
            "theta": self.theta,
            "stats": self.stats,
        }
        for part in PARTS:
            state = getattr(self, part).state()
            found |= {f"{part}.{name}": value for name, value in state.items()}
        return {name: np.asarray(to_host(value)) for name, value in found.items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `arrays` gave; other names are ignored.

        arrays   by name
        Raises   LookupError, TypeError, ValueError or ArithmeticError when they do not fit one
                 another, or not this network and optimizer; some parts may have changed then, so
                 this object is of no more use
        """
        where, rate = "FineTuning.restore", self.optimizer.rate
        updates = checks.whole_number(where, "updates", arrays["updates"].item(), 1)
        losses = arrays["losses"]
        if (losses.shape, losses.dtype) != ((updates,), np.float64):
            raise ValueError(f"{where}: {updates} updates, losses {losses.shape} {losses.dtype}")
        theta, stats = (
            checks.array_like(where, name, arrays[name], getattr(self, name))
            for name in ("theta", "stats")
        )
        for name, array in (("losses", losses), ("theta", theta), ("stats", stats)):
            if not np.isfinite(array).all():
                raise ValueError(f"{where}: {name} is not finite")
        kept = self._by_part(arrays)
        self.moments = Moments.from_state(kept["moments"])
        self.moments_of_stats = Moments.from_state(kept["moments_of_stats"])
        for part in ("optimizer", "ema", "ema_of_stats"):
            getattr(self, part).restore(kept[part])
        for average, vector in self._averages():
            checks.array_like(where, "an average", average.mean, vector)
            if average.count != updates:
                raise ValueError(f"{where}: {average.count} of {updates} updates averaged")
        if (self.optimizer.count, self.optimizer.rate) != (updates, rate):
            raise ValueError(f"{where}: {self.optimizer!r}, {updates} updates made at rate {rate}")
        for name in self.optimizer.vectors:
            checks.array_like(where, name, getattr(self.optimizer, name), self.theta)
        device = device_of(self.theta)
        self.theta, self.stats = to_device(theta, device), to_device(stats, device)
        self.losses = losses.tolist()

    def _averages(self):
        """Pairs of an average, and the vector that it is of."""
        yield self.moments, self.theta
        yield self.ema, self.theta
        yield self.moments_of_stats, self.stats
        yield self.ema_of_stats, self.stats

    def _by_part(self, arrays):
        """{part: its state}; vectors on the device."""
        device, kept = device_of(self.theta), {part: {} for part in PARTS}
        for name, array in arrays.items():
            part, point, own = name.partition(".")
            if point and part in kept:
                vector = array.ndim and array.dtype.kind == "f"
                kept[part][own] = to_device(array, device) if vector else array
        return kept
