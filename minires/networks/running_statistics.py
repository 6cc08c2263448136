"""Batch-norm statistics for weights that no network ever trained with.

The running mean and variance of a batch-norm layer belong to the weights in front of it. An
averaged θ̄ has other activations than any of the θ it was made from, so which statistics go
with it? The paper does not say. There are three answers, and a careful study reports them all:

    "averaged"     averaged over the updates, like the weights
    "recomputed"   measured again: θ̄ looks at training batches, nothing else changes
    "last"         those of the last iterate, as they are

Source   Izmailov et al. 2018, arXiv:1803.05407, §3.2, for the second
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.arrays import checks, device_of, single_threaded_blas
from minires.networks.model import ForwardPass

POLICIES = ("averaged", "recomputed", "last")


@single_threaded_blas
def reestimate_stats(model: Any, theta: Any, batches: Iterable[Any]) -> Any:
    """The statistics of a network, as the average over batches of training images.

    mean ← m mean + (1 − m) mean of the batch,   m = 1 − N/(images so far, with these N)

    So each image counts alike, also where the last batch is smaller; and the same for the variance.

    model    a Model
    theta    (P,) or (R, P)
    batches  images (N, H, W, C), or (R, N, H, W, C), one batch after another, such as a list
    Returns  stats (S,) or (R, S), dtype of theta
    Raises   ValueError without any batch, or when images do not fit the model
    """
    checks.theta_for("reestimate_stats", theta, model.size)
    replicas = theta.shape[0] if theta.ndim == 2 else None
    stats = model.init_stats(replicas, dtype=np.float64, device=device_of(theta))
    count = 0  # images so far
    for images in batches:
        checks.images_for("reestimate_stats", images, theta, model.input_shape)
        count += images.shape[-4]
        momentum = 1 - images.shape[-4] / count
        forward = ForwardPass(model.layout, theta, stats, "measure", momentum=momentum)
        model.apply(images, forward)
    if count == 0:
        raise ValueError("reestimate_stats: there is no batch of images to look at")
    return stats.astype(theta.dtype)


def batch_norm_policies(
    model: Any, theta: Any, averaged: Any, last: Any, batches: Iterable[Any]
) -> dict[str, Any]:
    """The statistics that each policy gives an averaged θ.

    model     a Model
    theta     the averaged weights, (P,) or (R, P)
    averaged  the mean of the statistics over the updates, (S,) or (R, S)
    last      the statistics of the last iterate, (S,) or (R, S)
    batches   training images, one batch after another, for "recomputed"
    Returns   {policy: stats}, in the order of `POLICIES`; only "last" where there is no batch
              norm: all would be empty
    """
    if not model.stats_size:
        return {"last": last}
    return {
        "averaged": averaged,
        "recomputed": reestimate_stats(model, theta, batches),
        "last": last,
    }
