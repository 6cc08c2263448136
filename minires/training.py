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

from minires import metrics
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

    model         a Model
    theta         (P,), changed in place
    stats         (S,), changed in place
    images        (N, H, W, C), dtype of theta
    labels        (N,) integers
    optimizer     SGD or Adam
    updates       how many mini-batches
    batch         examples in a batch
    seed          of the order of the batches, and of dropout
    phase         "training" or "fine-tuning": which of the seed's streams to use
    after_update  called with (number of the update, theta, loss) after each
    quiet         no progress bar (there is none off a terminal in any case)
    Raises        FloatingPointError when the loss is no longer a number, or θ at the end
    """
    order = batches(len(images), batch, stream(seed, f"{phase} order"))
    dropout = stream(seed, f"{phase} dropout")
    bar = tqdm(
        itertools.islice(order, updates),
        desc=f"{phase} (seed {seed})",
        total=updates,
        unit="update",
        disable=True if quiet else None,
        leave=False,
    )
    for number, chosen in enumerate(bar):
        chosen = xp_of(images).asarray(chosen)
        loss, gradient = model.loss_and_gradient(
            theta, images[chosen], labels[chosen], stats=stats, rng=dropout
        )
        if not np.isfinite(to_host(loss)):
            remedy = (
                f"lower the rate, {optimizer.rate}"
                if number
                else "the weights to start from are no good: lower the rate that led to them"
            )
            raise FloatingPointError(
                f"{phase}: the loss is {loss} at update {number + 1} of {updates}: {remedy}"
            )
        optimizer.step(theta, gradient)
        if number % 20 == 0:
            bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
        if after_update is not None:
            after_update(number, theta, loss)
    xp = xp_of(theta)
    if not (xp.isfinite(theta).all() and xp.isfinite(stats).all()):
        raise FloatingPointError(
            f"{phase}: after {updates} updates weights or batch-norm statistics are infinite or "
            f"not a number: lower the rate, {optimizer.rate}"
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
                     (updates, len(watch)); theta and stats are changed in place
    """
    moments = Moments(theta.shape, **moments_options)
    moments_of_stats = Moments(stats.shape, **moments_options)
    watch = xp_of(theta).asarray(watch, int)
    history = np.empty((updates, len(watch)), theta.dtype)

    def fold(number, theta, loss):
        moments.update(theta)
        moments_of_stats.update(stats)
        history[number] = to_host(theta[watch])

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
