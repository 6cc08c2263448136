"""Training, fine-tuning with moments, and evaluation: the method, in order.

    train      θ by epochs of mini-batches (eq. 1)
    fine_tune  a little more of the same, every θ folded into the moments (eqs. 2-3)
    predict    with the last θ, the mean model, the networks drawn from the moments; and score

Every random choice has a stream of its own, made from the seed and its purpose, so that a
stage can be done again, alone, with the same bits.
"""

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from minires.arrays import to_host, xp_of
from minires.kernels import runs_as_written
from minires.resampling.moments import Moments
from minires.training import capture, metrics

STREAMS = (
    "initial weights",
    "training order",
    "training dropout",
    "fine-tuning order",
    "fine-tuning dropout",
    "drawn networks",
    "statistics order",
)


def stream(seed, purpose):
    """The random generator of a seed for one of the purposes in `STREAMS`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(purpose),)))


def batches(count, batch, rng):
    """Index arrays (batch,) without end: every epoch in a new order, a partial batch dropped.

    count   number of examples
    batch   examples in a batch
    rng     where the order comes from
    Raises  ValueError when a batch has more examples than there are
    """
    if not 0 < batch <= count:
        raise ValueError(f"batches: {batch} examples a batch, but there are {count}")

    def epochs():
        while True:
            order = rng.permutation(count)
            yield from order[: count - count % batch].reshape(-1, batch)

    return epochs()


def train(
    model,
    theta,
    stats,
    images,
    labels,
    optimizer,
    updates,
    batch,
    seed,
    phase="training",
    after_update=None,
    quiet=False,
    schedule=None,
    moments=(),
    watch=(),
    lost=None,
):
    """Improve θ by mini-batch gradient descent (eq. 1), in place.

    On a GPU updates are recorded and played again (`minires.training.capture`), and the losses
    are looked at once an epoch; with plain kernels neither.

    model         a Model
    theta         (P,), or (R, P) for R networks side by side; changed in place
    stats         (S,), or (R, S); changed in place
    images        (N, H, W, C), dtype of theta
    labels        (N,) integers
    optimizer     SGD or Adam
    updates       how many mini-batches
    batch         examples in a batch
    seed          of the order of the batches, and of dropout; or R of them, one for each network
    phase         "training" or "fine-tuning": which of the seed's streams to use
    after_update  called with (number of the update, theta, loss) after each; on a GPU the loss
                  is None, since it may not be known yet
    quiet         no progress bar (there is none off a terminal in any case)
    schedule      schedule(t) is the share of the optimizer's rate at update t = 0, 1, …; without
                  one it is all of it
    moments       [(Moments or EMA, vector), …]: each vector is folded in after every update
    watch         indices of weights whose every value is returned
    lost          a dict: where a network's loss is no longer a number, or θ at the end, it gets
                  {place among the R: FloatingPointError}, and the other networks go on. One that
                  it names already is lost
    Returns       the watched values (updates, [R,] len(watch)), on the host
    Raises        FloatingPointError when the loss is no longer a number, or θ at the end
    """
    order, dropout = _order_and_dropout(len(images), batch, seed, phase)
    order = list(itertools.islice(order, updates))
    problem = model, theta, stats, images, labels, optimizer, order, dropout
    if xp_of(theta) is np or runs_as_written():
        steps, looks = _Updates(*problem, schedule, moments, watch), set(range(updates))
    else:
        steps = capture.Updates(*problem, schedule, moments, watch)
        looks = set(capture.epoch_ends(updates, len(images), batch))
    check, seen = _Check(phase, updates, optimizer.rate, lost), 0
    with _progress(phase, seed, updates, quiet) as bar:
        for number in steps:
            if number in looks:
                losses = to_host(steps.losses[seen : number + 1])
                if check.losses(losses, seen) == losses[0].size:
                    break
                seen = number + 1
                bar.set_postfix(loss=f"{losses[-1].mean():.4f}", refresh=False)
                bar.update(seen - bar.n)
            if after_update is not None:
                after_update(number, theta, steps.loss)
    check.weights(theta, stats)
    if steps.reason:
        warnings.warn(
            f"{phase}: slower than it could be, as no update could be recorded as a CUDA graph "
            f"({steps.reason})",
            stacklevel=2,
        )
    return to_host(steps.history)


class _Updates:
    """As `capture.Updates`, on any device: each update is done when it is asked for."""

    reason = None

    def __init__(
        self, model, theta, stats, images, labels, optimizer, order, rng, schedule, moments, watch
    ):
        self.model, self.theta, self.stats = model, theta, stats
        self.images, self.labels, self.optimizer = images, labels, optimizer
        self.order, self.rng, self.moments = order, rng, moments
        self.schedule = schedule or capture.constant
        xp, lead = xp_of(theta), theta.shape[:-1]
        self.watch = xp.asarray(np.asarray(watch, int))
        self.losses = xp.empty((len(order), *lead), theta.dtype)
        self.history = xp.empty((len(order), *lead, len(watch)), theta.dtype)
        self.loss = None

    def __iter__(self):
        for number, batch in enumerate(self.order):
            batch = xp_of(self.images).asarray(batch)
            loss, gradient = self.model.loss_and_gradient(
                self.theta, self.images[batch], self.labels[batch], stats=self.stats, rng=self.rng
            )
            self.loss = self.losses[number] = loss
            rate = self.optimizer.rate
            self.optimizer.rate = rate * self.schedule(number)
            self.optimizer.step(self.theta, gradient)
            self.optimizer.rate = rate
            for kept, vector in self.moments:
                kept.update(vector)
            self.history[number] = self.theta[..., self.watch]
            yield number


@dataclass
class _Check:
    """Looks whether losses and weights are numbers, and says which networks are lost.

    rate   of the training that is looked at, before any schedule: what the remedy is to lower
    lost   {place of a network: its error}, or None: raise the first one
    """

    phase: str
    updates: int
    rate: object
    lost: dict | None

    def losses(self, losses, first):
        """Look at the losses (n, [R]) of updates from `first` on; returns how many are lost."""
        losses = losses.reshape(len(losses), -1)
        bad = ~np.isfinite(losses)
        for network in np.flatnonzero(bad.any(axis=0)):
            row = bad[:, network].argmax()
            number, loss = first + row, losses[row, network]
            remedy = (
                f"lower the rate, {self._rate(network)}"
                if number
                else "the weights to start from are no good: lower the rate that led to them"
            )
            self._lose(
                network, f"the loss is {loss} at update {number + 1} of {self.updates}: {remedy}"
            )
        return len(self.lost or ())

    def weights(self, theta, stats):
        """Look at θ (P,) or (R, P) and the statistics after the last update."""
        xp = xp_of(theta)
        good = xp.isfinite(theta).all(axis=-1) & xp.isfinite(stats).all(axis=-1)
        for network in np.flatnonzero(~to_host(good).reshape(-1)):
            self._lose(
                network,
                f"after {self.updates} updates weights or batch-norm statistics are infinite or "
                f"not a number: lower the rate, {self._rate(network)}",
            )

    def _rate(self, network):
        rates = np.ravel(self.rate)
        return float(rates[network % len(rates)])

    def _lose(self, network, what):
        error = FloatingPointError(f"{self.phase}: {what}")
        if self.lost is None:
            raise error
        self.lost.setdefault(int(network), error)


def _order_and_dropout(count, batch, seed, phase):
    """Endless batches, (batch,) or (R, batch) indices; and generators, one or R."""
    if np.ndim(seed) == 0:
        order = batches(count, batch, stream(seed, f"{phase} order"))
        return order, stream(seed, f"{phase} dropout")
    orders = [batches(count, batch, stream(s, f"{phase} order")) for s in seed]
    together = map(np.stack, zip(*orders, strict=True))
    return together, [stream(s, f"{phase} dropout") for s in seed]


def _progress(phase, seed, updates, quiet):
    return tqdm(
        desc=f"{phase} (seed {seed})",
        total=updates,
        unit="update",
        disable=True if quiet else None,
        leave=False,
    )


def fine_tune(
    model,
    theta,
    stats,
    images,
    labels,
    optimizer,
    updates,
    batch,
    seed,
    watch=(),
    quiet=False,
    **moments_options,
):
    """Train on for a few hundred updates and keep the moments of θ over them all.

    watch            indices of weights whose every value is kept, for a picture
    moments_options  ddof, burn_in, stride: see `Moments`
    Returns          the moments of θ, those of the statistics, and the watched values
                     (updates, [R,] len(watch)); theta and stats are changed in place
    """
    moments = Moments(theta.shape, **moments_options)
    moments_of_stats = Moments(stats.shape, **moments_options)
    history = train(
        model,
        theta,
        stats,
        images,
        labels,
        optimizer,
        updates,
        batch,
        seed,
        phase="fine-tuning",
        quiet=quiet,
        moments=[(moments, theta), (moments_of_stats, stats)],
        watch=watch,
    )
    return moments, moments_of_stats, history


def predict(model, theta, images, stats=None, quiet=False, desc="evaluating"):
    """Class probabilities, with a progress bar; theta (P,) or (R, P)."""
    step = model.batch
    result = np.empty((*theta.shape[:-1], len(images), model.classes), theta.dtype)
    starts = range(0, len(images), step)
    for start in tqdm(
        starts, desc=desc, unit="batch", disable=True if quiet else None, leave=False
    ):
        part = slice(start, start + step)
        result[..., part, :] = to_host(model.predict(theta, images[part], stats))
    return result


def score(probabilities, labels):
    """Accuracy, NLL, Brier score and ECE of one prediction (N, classes), as plain floats."""
    return {name: float(value) for name, value in metrics.evaluate(probabilities, labels).items()}


def choose_weights(model, count, rng):
    """Indices into θ of `count` weights to watch, spread over the layers."""
    kernels = [entry for entry in model.layout.weights if entry.name.endswith("weight")]
    return [
        int(entry.start + rng.integers(entry.size))
        for entry in itertools.islice(itertools.cycle(kernels), count)
    ]
