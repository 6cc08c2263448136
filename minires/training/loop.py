"""Training, fine-tuning with moments, and evaluation: the method, in order.

    task = Task(model, images, labels, batch=128, seed=0)
    train(task, theta, stats, SGD(0.2), updates=1000)          eq. 1, θ changes in place
    tuned = fine_tune(task, theta, stats, SGD(0.15), 500)      eqs. 2-3
    probabilities = model.predict(tuned.moments.mean, images, tuned.moments_of_stats.mean)

Every random choice has a stream of its own, which the seed and its purpose decide. So one stage
can be done again alone and gives the same bits.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minires.arrays import checks, to_host, xp_of
from minires.arrays.text import progress
from minires.kernels import runs_as_written
from minires.networks.model import Model
from minires.resampling.moments import Moments
from minires.training import capture, metrics
from minires.training.schedules import Schedule, constant

STREAMS = (
    "initial weights",
    "training order",
    "training dropout",
    "fine-tuning order",
    "fine-tuning dropout",
    "sampled networks",
    "statistics order",
    "held-out images",
)


def stream(seed: int, purpose: str, number: int | None = None) -> np.random.Generator:
    """The random generator of a seed for one purpose.

    seed     a whole number from 0 up
    purpose  one of `STREAMS`
    number   of an update, for a generator of its own; None: one generator for all updates
    Returns  a Generator; the same seed, purpose and number give the same random numbers
    Raises   ValueError for another purpose
    """
    checks.one_of("stream", "purpose", purpose, STREAMS)
    key = (STREAMS.index(purpose),) if number is None else (STREAMS.index(purpose), number)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def batches(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless index arrays. Every epoch has a new order; a partial batch at its end is left out.

    count    number of examples
    batch    examples in a batch
    rng      random numbers for the order
    Returns  an iterator over arrays (batch,) of integers
    Raises   ValueError when a batch has more examples than there are
    """
    if not 0 < batch <= count:
        raise ValueError(f"batches: {batch} examples in a batch, but there are {count}")
    checks.generator_of("batches", rng)

    def epochs():
        while True:
            order = rng.permutation(count)
            yield from order[: count - count % batch].reshape(-1, batch)

    return epochs()


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be learnt: a network, images, and the random choices.

    model    a `minires.networks.protocol.Classifier`, such as a Model
    images   (N, H, W, C), with the dtype and the device of θ
    labels   (N,) integers from 0 to classes − 1, or a list of them
    batch    images in a mini-batch
    seed     for the order of the images and for dropout; or R seeds, one for each network
    quiet    no progress bar (there is none either when standard error is not a terminal)
    Raises   ValueError when a length, a label or a setting does not fit
    """

    model: Any
    images: Any
    labels: Any
    batch: int = 128
    seed: int | Sequence[int] = 0
    quiet: bool = False

    def __repr__(self) -> str:
        return (
            f"<Task: {len(self.images):,} images for {self.model!r}, batch {self.batch}, "
            f"seed {self.seed}>"
        )

    def __post_init__(self):
        checks.is_array("Task", "images", self.images)
        count, classes = len(self.images), self.model.classes
        if count == 0:
            raise ValueError("Task: images are empty, there is nothing to learn from")
        labels = checks.labels_for("Task", self.labels, count, classes, like=self.images)
        object.__setattr__(self, "labels", labels)
        for seed in self.seed if np.ndim(self.seed) else [self.seed]:
            checks.whole_number("Task", "seed", seed, 0)
        batch = checks.whole_number("Task", "batch", self.batch, 1)
        if batch > count:
            raise ValueError(f"Task: batch is {batch}, but there are {count} images: lower it")


class Trained(NamedTuple):
    """What `train` returns. θ and the batch-norm statistics it changed in place.

    history   the watched weights after every update, (updates, [R,] watched), on the host; NaN for
              updates that were not made, since every network was lost
    lost      {number of the network, from 0: FloatingPointError} for every network whose loss
              or final weights are not finite; empty unless `raise_lost` was off
    """

    history: np.ndarray
    lost: dict[int, FloatingPointError]


class FineTuned(NamedTuple):
    """What `fine_tune` returns. θ and the batch-norm statistics it changed in place.

    moments            of θ over the updates
    moments_of_stats   of the batch-norm statistics
    history            the watched weights after every update, (updates, [R,] watched)
    """

    moments: Moments
    moments_of_stats: Moments
    history: np.ndarray


def train(
    task: Task,
    theta: Any,
    stats: Any,
    optimizer: Any,
    updates: int,
    *,
    phase: str = "training",
    schedule: Schedule | None = None,
    moments: Sequence[tuple[Any, Any]] = (),
    watch: Sequence[int] = (),
    after_update: Callable[[int, Any, Any], None] | None = None,
    raise_lost: bool = True,
) -> Trained:
    """Improve θ by mini-batch gradient descent (eq. 1), in place.

    On a GPU an update is recorded once and then played again (`minires.training.capture`); the
    losses are checked once per epoch. With plain kernels nothing is recorded.

    task          what to learn
    theta         (P,), or (R, P) for R networks side by side; changed in place
    stats         (S,), or (R, S); changed in place; S = 0 without batch norm
    optimizer     SGD or Adam
    updates       how many mini-batches
    phase         "training" or "fine-tuning": which of the seed's random streams to use
    schedule      schedule(t) is the share of the optimizer's rate at update t = 0, 1, …; None:
                  the whole rate at every update (see `minires.training.schedules`)
    moments       [(Moments or EMA, vector), …]: updated with the vector after every update
    watch         indices of weights; their values after every update are returned
    after_update  called with (number of the update, theta, loss) after each update; on a GPU the
                  loss is None, since it may not be known yet
    raise_lost    True: the first loss or weight that is not finite raises an error. False: such
                  networks are returned in `lost`, and the others train on
    Returns       Trained
    Raises        FloatingPointError, if `raise_lost`, when a loss or the final θ is not finite;
                  ValueError when an image holds a NaN, or an argument does not fit; TypeError
                  when `optimizer` is none
    """
    updates = checks.whole_number("train", "updates", updates, 0)
    if not (hasattr(optimizer, "step") and hasattr(optimizer, "rate")):
        raise TypeError(f"train: optimizer is {optimizer!r}, expected one such as minires.SGD(0.1)")
    order, dropout = order_and_dropout(len(task.images), task.batch, task.seed, phase)
    order = list(itertools.islice(order, updates))
    if xp_of(theta) is np or runs_as_written():
        kind, looks = Steps, set(range(updates))
    else:
        kind = capture.RecordedSteps
        looks = set(capture.epoch_ends(updates, len(task.images), task.batch))
    check, seen = _Check(phase, updates, optimizer.rate, task.images, raise_lost), 0
    steps = kind(task, theta, stats, optimizer, order, dropout, schedule, moments, watch)
    with _progress(phase, task, updates) as bar, steps:
        for number in range(updates):
            with np.errstate(over="ignore", invalid="ignore"):  # the check of losses says it better
                loss = steps.take()
            if number in looks:
                losses = to_host(steps.losses[seen : number + 1])
                if check.losses(losses, seen) == losses[0].size:
                    break
                seen = number + 1
                bar.set_postfix(loss=f"{losses[-1].mean():.4f}", refresh=False)
                bar.update(seen - bar.n)
            if after_update is not None:
                after_update(number, theta, loss)
    check.weights(theta, stats)
    if steps.reason:
        warnings.warn(
            f"{phase} is slower than it could be: no update could be recorded as a CUDA graph "
            f"({steps.reason})",
            stacklevel=2,
        )
    return Trained(to_host(steps.history), check.lost)


class Steps:
    """Updates of θ: each takes a batch, makes a step of the optimizer, and updates the moments.

    task            what to learn
    theta, stats    (P,) and (S,), or (R, P) and (R, S); changed in place
    optimizer       SGD or Adam
    order           [(batch,) or (R, batch) integers, …]: the images of each update
    rng             for dropout: a Generator, or a list of R
    schedule        schedule(t) is the share of the rate at update t = 0, 1, …; None: all of it
    moments         [(Moments or EMA, vector), …]: updated with the vector after every step
    watch           indices of weights; their values after every update are kept in `history`

    `losses` is (updates,) or (updates, R), `history` (updates, [R,] watched). On a GPU
    `capture.RecordedSteps` does this work, unless the kernels are plain.
    """

    reason = None  # RecordedSteps says here why nothing could be recorded

    def __init__(
        self,
        task: Task,
        theta: np.ndarray,
        stats: np.ndarray,
        optimizer: Any,
        order: Sequence[np.ndarray],
        rng: Any,
        schedule: Schedule | None = None,
        moments: Sequence[tuple[Any, np.ndarray]] = (),
        watch: Sequence[int] = (),
    ):
        self.task, self.theta, self.stats, self.optimizer = task, theta, stats, optimizer
        self.order, self.rng, self.moments = order, rng, moments
        xp, lead = xp_of(theta), theta.shape[:-1]
        self.schedule, self.watch = schedule or constant, xp.asarray(np.asarray(watch, int))
        self.number = 0
        self.losses = xp.empty((len(order), *lead), theta.dtype)
        # NaN for updates that are not made, where all networks are lost before the end.
        self.history = xp.full((len(order), *lead, len(watch)), np.nan, theta.dtype)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def take(self) -> Any:
        """Make the next update.

        Returns  its loss: a number, or (R,)
        """
        number, task, optimizer = self.number, self.task, self.optimizer
        batch = xp_of(self.theta).asarray(self.order[number])
        loss, gradient = task.model.loss_and_gradient(
            self.theta, task.images[batch], task.labels[batch], stats=self.stats, rng=self.rng
        )
        rate = optimizer.rate
        try:  # also after Ctrl-C the rate is the optimizer's own again
            optimizer.rate = rate * self.schedule(number)
            optimizer.step(self.theta, gradient)
        finally:
            optimizer.rate = rate
        for average, vector in self.moments:
            average.update(vector)
        self.losses[number], self.history[number] = loss, self.theta[..., self.watch]
        self.number += 1
        return loss


@dataclass
class _Check:
    """Checks whether losses and weights are finite, and remembers which networks are lost.

    rate        the optimizer's own, before any schedule: the error says to lower it
    raise_lost  whether to raise the first error
    """

    phase: str
    updates: int
    rate: Any
    images: Any
    raise_lost: bool

    def __post_init__(self):
        self.lost = {}

    def losses(self, losses, first):
        """Check the losses (n, [R]) of updates from `first` on; returns how many are lost."""
        losses = losses.reshape(len(losses), -1)
        bad = ~np.isfinite(losses)
        for network in np.flatnonzero(bad.any(axis=0)):
            row = bad[:, network].argmax()
            number, loss = first + row, losses[row, network]
            remedy = (
                f"lower the rate, {self._rate(network)}"
                if number
                else "the initial weights give no finite loss: start from others, or lower the "
                "rate that led to them"
            )
            what = f"the loss is {loss} at update {number + 1} of {self.updates}: {remedy}"
            self._lose(network, what)
        return len(self.lost)

    def weights(self, theta, stats):
        """Check θ (P,) or (R, P) and the batch-norm statistics after the last update."""
        xp = xp_of(theta)
        good = xp.isfinite(theta).all(axis=-1) & xp.isfinite(stats).all(axis=-1)
        for network in np.flatnonzero(~to_host(good).reshape(-1)):
            self._lose(
                network,
                f"after {self.updates} updates, weights or batch-norm statistics are infinite or "
                f"not a number: lower the rate, {self._rate(network)}",
            )

    def _rate(self, network):
        rates = np.ravel(self.rate)
        return float(rates[network % len(rates)])

    def _lose(self, network, what):
        if not self.lost:  # images that are not finite may be the cause, and not the rate
            checks.images_are_finite(self.phase, self.images)
        error = FloatingPointError(f"{self.phase}: {what}")
        if self.raise_lost:
            raise error
        self.lost.setdefault(int(network), error)


def order_and_dropout(
    count: int, batch: int, seed: int | Sequence[int], phase: str
) -> tuple[Iterator[np.ndarray], Any]:
    """The random choices of a training.

    count    number of images
    batch    images in a mini-batch
    seed     a whole number, or R of them, one for each network
    phase    "training" or "fine-tuning"
    Returns  endless batches, (batch,) or (R, batch) indices; and one Generator, or R, for dropout
    """
    if np.ndim(seed) == 0:
        order = batches(count, batch, stream(seed, f"{phase} order"))
        return order, stream(seed, f"{phase} dropout")
    orders = [batches(count, batch, stream(s, f"{phase} order")) for s in seed]
    side_by_side = map(np.stack, zip(*orders, strict=True))
    return side_by_side, [stream(s, f"{phase} dropout") for s in seed]


def _progress(phase, task, updates):
    desc = f"{phase} (seed {task.seed})"
    return progress(quiet=task.quiet, desc=desc, total=updates, unit="update", leave=False)


def fine_tune(
    task: Task,
    theta: Any,
    stats: Any,
    optimizer: Any,
    updates: int,
    *,
    schedule: Schedule | None = None,
    watch: Sequence[int] = (),
    **moments_options: int,
) -> FineTuned:
    """Train on for a few hundred updates and keep the moments of θ over all of them (eqs. 2-3).

    task             what to learn
    theta            (P,) or (R, P), trained weights; changed in place
    stats            (S,) or (R, S); changed in place
    optimizer        SGD or Adam
    updates          how many mini-batches; about an epoch in the paper
    schedule         as for `train`; the paper's rate is constant
    watch            indices of weights; their values after every update are kept, for a picture
    moments_options  ddof, burn_in, stride: see `Moments`
    Returns          FineTuned
    Raises           FloatingPointError, ValueError as `train`
    """
    moments = Moments(theta.shape, **moments_options)
    moments_of_stats = Moments(stats.shape, **moments_options)
    kept = [(moments, theta), (moments_of_stats, stats)]
    trained = train(
        task,
        theta,
        stats,
        optimizer,
        updates,
        phase="fine-tuning",
        schedule=schedule,
        moments=kept,
        watch=watch,
    )
    return FineTuned(moments, moments_of_stats, trained.history)


def predict(
    model: Any,
    theta: Any,
    images: Any,
    stats: Any = None,
    quiet: bool = False,
    desc: str = "evaluating",
) -> np.ndarray:
    """Class probabilities, with a progress bar.

    model    a Classifier
    theta    (P,) or (R, P)
    images   (N, H, W, C), dtype and device of theta
    stats    (S,) or (R, S); needed with batch norm only
    quiet    no progress bar
    desc     the text beside the bar
    Returns  (N, classes) or (R, N, classes), on the host
    Raises   ValueError as `Model.predict`
    """

    step = model.batch
    result = np.empty((*theta.shape[:-1], len(images), model.classes), theta.dtype)
    if isinstance(model, Model) and model.folds:
        model, theta = model.fold(theta, stats)  # once, not for every batch
        stats = None
    starts = range(0, len(images), step)
    for start in progress(starts, quiet, desc=desc, unit="batch", leave=False):
        part = slice(start, start + step)
        result[..., part, :] = to_host(model.predict(theta, images[part], stats))
    return result


def score(probabilities: Any, labels: Any) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE of one prediction, as plain floats.

    probabilities  (N, classes)
    labels         (N,) integers
    Returns        {"accuracy", "nll", "brier", "ece"}
    """
    return {name: float(value) for name, value in metrics.evaluate(probabilities, labels).items()}


def choose_weights(model: Any, count: int, rng: np.random.Generator) -> list[int]:
    """Indices into θ of some weights to watch, spread over the layers.

    model    a Model
    count    how many
    rng      random numbers for the choice
    Returns  [index, …]
    """
    kernels = [entry for entry in model.layout.weights if entry.name.endswith("weight")]
    return [
        int(entry.start + rng.integers(entry.size))
        for entry in itertools.islice(itertools.cycle(kernels), count)
    ]
