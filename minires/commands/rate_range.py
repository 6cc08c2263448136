"""Which rates to try: a range test, for `minires improve` without `--rate`.

Some thirty updates of fine-tuning, each at a rate 1.5 times the one before it, from 10⁻⁶ up. Each
shows a new batch, and the network that began is shown the same one: the loss of the batch is
compared with what it was without the updates. So it does not matter that some batches are harder
than others, and to learn the pictures by heart does not help. The test ends when a loss has risen
by a tenth of ln C, the loss of guessing among C classes. The largest rate before that was tried
for one update only, and hundreds move the weights further: a third of it is the end of the range.
From there five rates go down over a decade and a half.

Source   Smith 2017, "Cyclical learning rates for training neural networks", WACV, section 3.3
"""

import itertools
import math
from typing import Any

import numpy as np

from minires.training.loop import batches, stream

RATES = tuple(1e-6 * 1.5**number for number in range(35))  # up to 1
SHARE = 0.1  # of ln C: the rise of a loss that ends the test
MARGIN = 3.0  # the largest rate of the test, over the largest one proposed
SPAN = 30.0  # the largest rate proposed, over the smallest: a decade and a half
COUNT = 5  # rates proposed


def largest_rate(
    examination: Any, indices: np.ndarray, optimizer: Any, batch: int, seed: int
) -> float:
    """The largest rate of a range test before the loss rises.

    examination  minires.commands.evaluate.Examination
    indices      of the pictures to train on, at least `batch` of them
    optimizer    SGD or Adam; its rate is changed
    batch        pictures in a batch
    seed         of the order of the pictures, and of dropout
    Returns      one of `RATES`
    Raises       ValueError when the smallest rate is too large, or no picture can be used
    """
    network, limit = examination.network, SHARE * math.log(len(examination.compared))
    first, first_stats = examination.own_vectors()
    theta, stats = first.copy(), first_stats.copy()
    order = batches(len(indices), batch, stream(seed, "fine-tuning order"))
    plan = (indices[chosen] for chosen in itertools.islice(order, len(RATES)))
    largest = tried = None
    for number, (images, labels, _) in enumerate(examination.batches(plan)):
        if not len(labels):
            continue
        images, labels = examination.whole_batches(images, labels)
        targets, classes = examination.targets(labels)

        def slope(theta, stats, images=images, targets=targets, classes=classes, number=number):
            rng = stream(seed, "fine-tuning dropout", number)
            with np.errstate(over="ignore", invalid="ignore"):
                return network.loss_and_gradient(
                    theta, images, targets, stats=stats, rng=rng, classes=classes
                )

        before, _ = slope(first, first_stats.copy())
        loss, gradient = slope(theta, stats)
        if not float(loss) - float(before) <= limit:  # not a number either
            break
        largest, tried = tried, RATES[number]
        optimizer.rate = tried
        optimizer.step(theta, gradient)
    if largest is None:
        raise ValueError(
            f"the loss rises, or is no number, at the rate {RATES[0]:g} already "
            f"({examination.notes}): does `minires evaluate` give the network's accuracy with this "
            "--preset?"
        )
    return largest


def proposed(largest: float) -> list[float]:
    """Five rates below that of a range test, with two digits, in rising order.

    largest   as from `largest_rate`
    """
    rates = np.geomspace(1 / SPAN, 1, COUNT) * largest / MARGIN
    return [float(f"{rate:.2g}") for rate in rates]
