"""Batch-norm statistics for weights that no network ever trained with.

The running mean and variance of a batch-norm layer belong to the weights in front of it. An
averaged θ̄ has other activations than any of the θ it was made from, so which statistics go
with it? The paper does not say. There are three answers, and a careful study reports them all:

    "averaged"     averaged over the updates, like the weights
    "recomputed"   measured again: θ̄ looks at training batches, nothing else changes
    "last"         those of the last iterate, as they are

Source   Izmailov et al. 2018, arXiv:1803.05407, §3.2, for the second
"""

import numpy as np

from minires.arrays import device_of, single_threaded_blas
from minires.networks.model import Run

POLICIES = ("averaged", "recomputed", "last")


@single_threaded_blas
def reestimate_stats(model, theta, batches):
    """The statistics of a network, as the plain average over batches of training images.

    Batch number t is taken in with momentum 1 − 1/t, so that all t count alike.

    model    a Model
    theta    (P,) or (R, P)
    batches  images (N, H, W, C), or (R, N, H, W, C), of equal size, one batch after another
    Returns  stats (S,) or (R, S), dtype of theta
    Raises   ValueError without any batch
    """
    replicas = theta.shape[0] if theta.ndim == 2 else None
    stats = model.init_stats(replicas, dtype=np.float64, device=device_of(theta))
    count = 0
    for images in batches:
        count += 1
        model.apply(images, Run(theta, stats, momentum=1 - 1 / count))
    if count == 0:
        raise ValueError("reestimate_stats: there is no batch of images to look at")
    return stats.astype(theta.dtype)


def batch_norm_policies(model, theta, averaged, last, batches):
    """The statistics that each policy gives an averaged θ.

    model     a Model
    theta     the averaged weights, (P,) or (R, P)
    averaged  the mean of the statistics over the updates, (S,)
    last      the statistics of the last iterate, (S,)
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
