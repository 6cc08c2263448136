"""One prediction from those of several networks: the rules of averaging."""

import numpy as np

from minires.arrays import xp_of


def average(probabilities, rule="probabilities"):
    """One prediction from the predictions of K networks.

    "probabilities"   Σ_k p_k / K, the paper's
    "geometric"       Π_k p_k^(1/K), made to sum to one. A class that one network excludes, all
                      exclude; probabilities below the dtype's smallest normal number count as
                      that number, so that log is finite
    "logits"          softmax(Σ_k z_k / K), the same thing by another name: z = log p + a number
                      that is equal for all classes, and softmax does not see it
    "vote"            the fraction of the networks that choose each class; of equal
                      probabilities a network chooses the first

    probabilities   (K, …, C) float, from model.predict
    rule            one of the four
    Returns         (…, C), dtype of probabilities
    Raises          ValueError for another rule, or without networks
    Source          §2: "ensembling the model predictions by the average"
    """
    return _combine(probabilities, rule, lambda votes: votes.mean(axis=0, dtype=np.float64))


def prefix_averages(probabilities, rule="probabilities"):
    """The ensembles of the first 1, 2, … K networks, all in one pass.

    prefix_averages(p)[k - 1] = average(p[:k])

    probabilities   (K, …, C) float, from model.predict
    rule            as in `average`
    Returns         (K, …, C), dtype of probabilities
    Raises          ValueError for another rule, or without networks
    """

    def running_mean(votes):
        size = xp_of(votes).arange(1, len(votes) + 1).reshape(-1, *[1] * (votes.ndim - 1))
        return votes.cumsum(axis=0, dtype=np.float64) / size

    return _combine(probabilities, rule, running_mean)


def _combine(probabilities, rule, mean):
    """Turn probabilities into what the rule averages, take the mean, and turn that back."""
    if rule not in _RULES:
        raise ValueError(f"average: rule is {rule!r}, expected one of {', '.join(_RULES)}")
    if probabilities.ndim < 2 or 0 in (len(probabilities), probabilities.shape[-1]):
        raise ValueError(
            f"average: probabilities are {probabilities.shape}, expected (K, …, classes), K >= 1"
        )
    to_votes, from_mean = _RULES[rule]
    return from_mean(mean(to_votes(probabilities))).astype(probabilities.dtype)


def _unchanged(array):
    return array


def _logarithm(probabilities):
    xp = xp_of(probabilities)
    return xp.log(xp.maximum(probabilities, float(np.finfo(probabilities.dtype).tiny)))


def _softmax(logits):
    exponentials = xp_of(logits).exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _chosen(probabilities):
    classes = xp_of(probabilities).arange(probabilities.shape[-1])
    return probabilities.argmax(axis=-1)[..., None] == classes


_RULES = {
    "probabilities": (_unchanged, _unchanged),
    "geometric": (_logarithm, _softmax),
    "logits": (_logarithm, _softmax),
    "vote": (_chosen, _unchanged),
}
