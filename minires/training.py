"""Training, fine-tuning with moments, and evaluation: the method, in order.

    train      θ by epochs of mini-batches (eq. 1)
    fine_tune  a little more of the same, every θ folded into the moments (eqs. 2-3)
    predict    with the last θ, the mean model, the networks drawn from the moments; and score

Every random choice has a stream of its own, made from the seed and its purpose, so that a
stage can be done again, alone, with the same bits.
"""

import itertools

import numpy as np
from tqdm import tqdm

from minires import capture, metrics
from minires.backend import to_host, xp_of
from minires.moments import Moments

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
):
    """Improve θ by mini-batch gradient descent (eq. 1), in place.

    On a GPU updates are recorded and played again (`minires.capture`), and the losses are looked
    at once an epoch.

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
    Raises        FloatingPointError when the loss is no longer a number, or θ at the end
    """
    settings = optimizer, updates, batch, seed, phase, after_update, quiet
    if xp_of(theta) is np:
        _train_on_cpu(model, theta, stats, images, labels, *settings)
    else:
        _train_on_gpu(model, theta, stats, images, labels, *settings)
    _require_finite(phase, theta, stats, updates, optimizer)


def _require_finite(phase, theta, stats, updates, optimizer):
    xp = xp_of(theta)
    if not (xp.isfinite(theta).all() and xp.isfinite(stats).all()):
        raise FloatingPointError(
            f"{phase}: after {updates} updates weights or batch-norm statistics are infinite or "
            f"not a number: lower the rate, {optimizer.rate}"
        )


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


def _diverged(phase, loss, number, updates, optimizer):
    remedy = (
        f"lower the rate, {optimizer.rate}"
        if number
        else "the weights to start from are no good: lower the rate that led to them"
    )
    return FloatingPointError(
        f"{phase}: the loss is {loss} at update {number + 1} of {updates}: {remedy}"
    )


def _train_on_cpu(
    model, theta, stats, images, labels, optimizer, updates, batch, seed, phase, after_update, quiet
):
    order, dropout = _order_and_dropout(len(images), batch, seed, phase)
    with _progress(phase, seed, updates, quiet) as bar:
        for number, chosen in enumerate(itertools.islice(order, updates)):
            loss, gradient = model.loss_and_gradient(
                theta, images[chosen], labels[chosen], stats=stats, rng=dropout
            )
            if not np.isfinite(loss).all():
                raise _diverged(phase, loss, number, updates, optimizer)
            optimizer.step(theta, gradient)
            if number % 20 == 0:
                bar.set_postfix(loss=f"{np.mean(loss):.4f}", refresh=False)
            if after_update is not None:
                after_update(number, theta, loss)
            bar.update()


def _train_on_gpu(
    model,
    theta,
    stats,
    images,
    labels,
    optimizer,
    updates,
    batch,
    seed,
    phase,
    after_update,
    quiet,
    **options,
):
    """Also returns what was watched, see `capture.Updates`."""
    order, dropout = _order_and_dropout(len(images), batch, seed, phase)
    order = list(itertools.islice(order, updates))
    data = images, labels, optimizer, order, dropout
    steps = capture.Updates(model, theta, stats, *data, **options)
    looks = set(capture.epoch_ends(updates, len(images), batch))
    with _progress(phase, seed, updates, quiet) as bar:
        for number in steps:
            if after_update is not None:
                after_update(number, theta, None)
            if number in looks:
                losses = to_host(steps.losses[: number + 1])
                if (first := capture.finite_until(losses)) is not None:
                    raise _diverged(phase, losses[first], first, updates, optimizer)
                bar.set_postfix(loss=f"{losses[number].mean():.4f}", refresh=False)
                bar.update(number + 1 - bar.n)
    return steps.history


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
    if xp_of(theta) is not np:
        kept = [(moments, theta), (moments_of_stats, stats)]
        settings = optimizer, updates, batch, seed, "fine-tuning", None, quiet
        data = model, theta, stats, images, labels
        history = to_host(_train_on_gpu(*data, *settings, moments=kept, watch=watch))
        _require_finite("fine-tuning", theta, stats, updates, optimizer)
        return moments, moments_of_stats, history
    watch = np.asarray(watch, int)
    history = np.empty((updates, *theta.shape[:-1], len(watch)), theta.dtype)

    def fold(number, theta, loss):
        moments.update(theta)
        moments_of_stats.update(stats)
        history[number] = theta[..., watch]

    train(
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
        after_update=fold,
        quiet=quiet,
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
