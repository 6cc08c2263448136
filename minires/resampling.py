"""What to do with several networks: average their predictions, or their weights.

The networks come from `moments.sample`; the mean model needs nothing from here, it is
`model.predict(moments.mean, images)`. Stochastic weight averaging (SWA) is `Moments` with a
stride. The exponential moving average below is the baseline beside them.
"""

import numpy as np

from minires.backend import each_block, xp_of


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


class EMA:
    """The exponential moving average of the weights, corrected for its start.

    m ← m + w (θ − m),   w = (1 − β) / (1 − βⁿ)

    That is a ← β a + (1 − β) θ from a = 0, divided by 1 − βⁿ: the weights of θ₁ … θₙ sum to
    one, and nothing of the start is left. As β goes to 1, w goes to 1/n: eq. 2.

        ema = EMA(0.999)
        ema.update(theta)                # after every step
        model.predict(ema.mean, images)

    decay     β, in [0, 1): about the last 1/(1 − β) updates count
    """

    def __init__(self, decay):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay is {decay}, expected 0 <= decay < 1")
        self.decay = float(decay)
        self.count = 0
        self._mean = None

    def update(self, theta):
        """Fold the weights after one more update into the average.

        theta    float32 or float64, contiguous, any shape, always the same
        Raises   ValueError when the shape differs from the first one's
        """
        if self._mean is None:
            self._mean = theta.astype(np.float64)
            self._dtype = theta.dtype
        if theta.shape != self._mean.shape:
            raise ValueError(f"EMA.update: theta is {theta.shape}, expected {self._mean.shape}")
        self.count += 1
        weight = (1 - self.decay) / (1 - self.decay**self.count)

        def fold(theta, mean):
            mean += weight * (theta - mean)

        each_block(fold, theta, self._mean)

    @property
    def mean(self):
        """The average, a new array of θ's shape and dtype."""
        if self.count == 0:
            raise ValueError("EMA.mean: no update yet")
        return self._mean.astype(self._dtype)

    def state(self):
        """Everything needed to go on later, bit for bit: a dict of arrays."""
        if self.count == 0:
            return {"count": np.array(0)}
        mean = self._mean.copy()
        return {"count": np.array(self.count), "mean": mean, "dtype": np.array(str(self._dtype))}

    def restore(self, state):
        """Go on from what `state` gave, in an average made with the same decay."""
        self.count = int(state["count"])
        if self.count:
            self._mean, self._dtype = state["mean"].copy(), np.dtype(str(state["dtype"]))
