"""What to do with several networks: average their predictions, or their weights.

The networks come from `moments.sample`; the mean model needs nothing from here, it is
`model.predict(moments.mean, images)`. Stochastic weight averaging (SWA) is `Moments` with a
stride. Below are the baselines that stand beside them: an exponential moving average, SWAG, and
noise that knows nothing of single weights.
"""

import copy
from collections import deque

import numpy as np

from minires.backend import each_block, xp_of
from minires.moments import Moments


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
        self.prepare(theta)
        self.fold(theta, self.count_update())

    def count_update(self):
        """Count one more update; returns w."""
        (weight,) = self.next_numbers(1)
        self.count += 1
        return weight

    def next_numbers(self, updates):
        """What `count_update` would return for each of the updates to come, in a list."""
        counts = range(self.count + 1, self.count + 1 + updates)
        return [(1 - self.decay) / (1 - self.decay**count) for count in counts]

    def prepare(self, theta):
        """Check θ, and make the array if there is none; the first w is 1, so nothing of θ stays."""
        if self._mean is None:
            self._mean = theta.astype(np.float64)
            self._dtype = theta.dtype
        if theta.shape != self._mean.shape:
            raise ValueError(f"EMA.update: theta is {theta.shape}, expected {self._mean.shape}")

    def fold(self, theta, weight):
        """Fold θ into the average without counting it; on a GPU w may be there."""

        def fold(theta, mean):
            mean += weight * (theta - mean)

        if theta.ndim == 2:  # one network at a time: on a GPU what is in between takes memory
            for own_theta, own_mean in zip(theta, self._mean, strict=True):
                each_block(fold, own_theta, own_mean)
        else:
            each_block(fold, theta, self._mean)

    def __getitem__(self, network):
        """The average of one of R networks, which shares this array."""
        own = copy.copy(self)
        own._mean = self._mean[network]
        return own

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


class SWAG:
    """A Gaussian with low-rank covariance, from every stride-th θ of a fine-tuning.

    Two normal distributions with the same mean θ̄, that of the T weights collected:

    diagonal    N(θ̄, diag σ²): the paper's, but for its collecting seldom; `swag.moments`
    low rank    N(θ̄, ½ diag σ² + D Dᵀ / (2 (K − 1))): `swag`
                θ̃ = θ̄ + σ z₁ / √2 + D z₂ / √(2 (K − 1)),   z₁ ~ N(0, I_P), z₂ ~ N(0, I_K)

    The K columns of D are θᵢ − θ̄ᵢ for the last K collected, θ̄ᵢ being the mean of the first i.
    So it knows which weights move together.

        swag = SWAG(theta.shape, rank=10, stride=25)
        swag.update(theta)                           # after every step
        members = swag.sample(10, rng)               # or swag.moments.sample(10, rng)

    shape    of the weights: (P,); or (R, P), of which `swag[r]` draws
    rank     K, at least 2: how many columns of D are kept
    stride   of the updates, every stride-th is collected
    Source   Maddox et al. 2019, arXiv:1902.02476, §3 and algorithm 1
    """

    def __init__(self, shape, rank, stride=1):
        if rank < 2:
            raise ValueError(f"SWAG: rank is {rank}, expected 2 or more (K − 1 divides)")
        self.moments = Moments(shape, stride=stride)
        self.deviations = deque(maxlen=rank)
        self._collected = 0

    def update(self, theta):
        """Look at the weights after one more update, float32 or float64, always the same."""
        self.moments.update(theta)
        self.collect(theta)

    def collect(self, theta):
        """Keep a column if θ is one that `moments` has just counted, whoever folded it."""
        if self.moments.count > self._collected:
            self._collected = self.moments.count
            self.deviations.append(theta - self.moments.mean_so_far())

    def __getitem__(self, network):
        """The Gaussian of one of R networks, which shares these arrays."""
        own = copy.copy(self)
        own.moments = self.moments[network]
        own.deviations = deque((d[network] for d in self.deviations), self.deviations.maxlen)
        return own

    def sample(self, k, rng):
        """Draw k networks; member j depends on `rng` and j, not on k (as in `Moments.sample`).

        k        how many networks
        rng      numpy.random.Generator
        Returns  (k, P), dtype of θ
        Raises   ValueError before K weights are collected
        """
        columns = len(self.deviations)
        if columns < self.deviations.maxlen:
            raise ValueError(
                f"SWAG.sample: {columns} weights are collected, rank {self.deviations.maxlen} "
                "needs as many: update more often, or lower the rank or the stride"
            )
        mean, half = self.moments.mean, self.moments.std * 0.5**0.5
        xp = xp_of(mean)
        members = xp.empty((k, *mean.shape), mean.dtype)
        for member, own in zip(members, rng.spawn(k), strict=True):
            z1 = xp.asarray(own.standard_normal(mean.shape, dtype=mean.dtype))
            z2 = own.standard_normal(columns) / (2 * (columns - 1)) ** 0.5
            member[...] = mean + half * z1
            for column, z in zip(self.deviations, z2, strict=True):
                member += float(z) * column
        return members


def isotropic_members(mean, std, arrays, k, rng):
    """Networks around the mean with noise as strong as σ's, but equal within each array.

    θⱼ = θ̄ + s εⱼ,   s² = mean of σ² over the array that the weight belongs to

    The expected squared norm of the noise in each array is that of σ ε. If these networks are
    as good as those of `Moments.sample`, then σ says nothing about single weights. The same
    `rng` gives the same ε as there.

    mean, std  θ̄ and σ, (P,)
    arrays     slices that cut θ into its arrays
    k          how many networks
    rng        numpy.random.Generator
    Returns    (k, P), dtype of mean
    """
    xp = xp_of(mean)
    level = xp.empty_like(std)
    for part in arrays:
        level[part] = xp.sqrt(xp.mean(xp.square(std[part], dtype=np.float64)))
    noise = np.empty((k, mean.size), mean.dtype)
    for row, own in zip(noise, rng.spawn(k), strict=True):
        own.standard_normal(out=row, dtype=noise.dtype)
    return mean + level * xp.asarray(noise)
