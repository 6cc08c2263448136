"""One prediction from those of several networks: the rules of averaging."""

from typing import Any

import numpy as np

from minires.arrays import checks, to_host, xp_of


def average(probabilities: Any, rule: str = "probabilities", weights: Any = None) -> Any:
    """One prediction from the predictions of K networks.

    "probabilities"   Σ_k p_k / K, the paper's
    "geometric"       Π_k p_k^(1/K), divided by its sum over the classes. If one network gives a
                      class probability 0, the class gets about 0. (The logarithm must be finite,
                      so a probability counts as at least the dtype's smallest normal number)
    "logits"          softmax(Σ_k z_k / K). This equals "geometric": z is log p plus a number that
                      is the same for all classes, and softmax ignores such a number
    "vote"            the fraction of the networks that choose each class. If two classes have
                      the same probability, the network chooses the first

    probabilities   (K, …, C) float32 or float64, or a list, from model.predict
    rule            one of the four
    weights         (K,) numbers from 0 up, how much each network counts: the mean becomes
                    Σ_k w_k …_k / Σ_k w_k; None: all count alike
    Returns         (…, C), dtype of probabilities
    Raises          ValueError for another rule, for no networks, for weights that do not fit, and
                    for rows that do not hold probabilities; FloatingPointError when networks
                    predict NaN: it names them
    Source          §2: "ensembling the model predictions by the average"
    """
    if weights is None:
        return _combine(probabilities, rule, lambda votes: votes.mean(axis=0, dtype=np.float64))
    shares = np.asarray(to_host(weights), np.float64)
    fits = shares.shape == (len(probabilities),) and bool((shares >= 0).all())
    if not (fits and 0 < shares.sum() < np.inf):
        raise ValueError(
            f"average: weights are {shares.tolist()}, expected {len(probabilities)} numbers from 0 "
            "up, one for each network, not all 0"
        )

    def weighted(votes):
        terms = zip((shares / shares.sum()).tolist(), votes, strict=True)
        return sum(share * vote.astype(np.float64) for share, vote in terms)

    return _combine(probabilities, rule, weighted)


def prefix_averages(probabilities: Any, rule: str = "probabilities") -> Any:
    """The ensembles of the first 1, 2, … K networks, all in one pass.

    prefix_averages(p)[k - 1] = average(p[:k])

    probabilities, rule, Raises   as in `average`
    Returns         (K, …, C), dtype of probabilities
    """

    def running_mean(votes):
        size = xp_of(votes).arange(1, len(votes) + 1).reshape(-1, *[1] * (votes.ndim - 1))
        return votes.cumsum(axis=0, dtype=np.float64) / size

    return _combine(probabilities, rule, running_mean)


def _combine(probabilities, rule, mean):
    """Turn probabilities into what the rule averages, take the mean, and turn it back."""
    checks.one_of("average", "rule", rule, _RULES)
    probabilities = checks.probabilities_of("average", probabilities)
    others = tuple(range(1, probabilities.ndim))
    lost = np.flatnonzero(to_host(xp_of(probabilities).isnan(probabilities).any(axis=others)))
    if lost.size:
        names = ", ".join(map(str, lost[:10].tolist())) + (", …" if lost.size > 10 else "")
        raise FloatingPointError(
            f"average: {lost.size} of {len(probabilities)} networks predict NaN (numbers {names}, "
            "from 0): their weights are lost, leave them out"
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
