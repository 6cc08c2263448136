"""Batch-norm statistics for averaged weights, which no network was trained with.

The running mean and variance of a batch-norm layer belong to the weights in front of it. An
averaged θ̄ has other activations than each θ that it was made from. So which statistics belong
to it? The paper does not say. There are three answers, and a careful study reports them all:

    "averaged"     averaged over the updates, like the weights
    "recomputed"   measured again, on batches of training images; the weights do not change
    "last"         those of the last iterate, as they are

Source   Izmailov et al. 2018, arXiv:1803.05407, §3.2, for the second
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from minires.arrays import checks, device_of

POLICIES = ("averaged", "recomputed", "last")


def reestimate_stats(model: Any, theta: Any, batches: Iterable[Any]) -> Any:
    """The statistics of a network, as the average over batches of training images.

    mean ← m mean + (1 − m) mean of the batch,   m = 1 − N/(images so far, with these N)

    So every image counts the same, even when the last batch is smaller. The variance is averaged in
    the same way.

    model    a Classifier: a Model, or a network from a file
    theta    (P,); for a Model also (R, P)
    batches  a list, or anything else to iterate over, of images (N, H, W, C) or (R, N, H, W, C)
    Returns  stats (S,) or (R, S), dtype of theta
    Raises   ValueError without any batch, or when images do not fit the model
    """
    replicas = theta.shape[0] if theta.ndim == 2 else None
    stats = model.init_stats(replicas, dtype=np.float64, device=device_of(theta))
    count = 0  # images so far
    for images in batches:
        count += images.shape[-4]
        model.measure(theta, images, stats, 1 - images.shape[-4] / count)
    if count == 0:
        raise ValueError("reestimate_stats: there is no batch of images to look at")
    return stats.astype(theta.dtype)


def batch_norm_policies(
    model: Any, theta: Any, averaged: Any, last: Any, batches: Iterable[Any]
) -> dict[str, Any]:
    """The statistics that each policy gives an averaged θ.

    model     a Classifier
    theta     the averaged weights, (P,); for a Model also (R, P)
    averaged  the mean of the statistics over the updates, (S,) or (R, S)
    last      the statistics of the last iterate, (S,) or (R, S)
    batches   training images, one batch after another, for "recomputed"
    Returns   {policy: stats}, in the order of `POLICIES`; only "last" where there is no batch
              norm: all would be empty
    """
    if not model.stats_size:
        return {"last": last}
    return {
        policy: stats_by_policy(policy, model, theta, averaged, last, batches)
        for policy in POLICIES
    }


def stats_by_policy(
    policy: str, model: Any, theta: Any, averaged: Any, last: Any, batches: Iterable[Any]
) -> Any:
    """The statistics that one policy gives an averaged θ.

    policy                                    one of `POLICIES`
    model, theta, averaged, last, batches     as for `batch_norm_policies`
    Returns                                   stats (S,) or (R, S)
    Raises                                    ValueError for another policy
    """
    checks.one_of("stats_by_policy", "policy", policy, POLICIES)
    if policy == "recomputed" and model.stats_size:
        return reestimate_stats(model, theta, batches)
    return averaged if policy == "averaged" else last
