"""What stands beside the mean model: EMA, SWAG, and noise that knows nothing of single weights.

Stochastic weight averaging (SWA) is `Moments` with a stride.
"""

import copy
from collections import deque

import numpy as np

from minires.arrays import each_block, xp_of
from minires.resampling.moments import Moments


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
