"""Methods to compare with: EMA, SWAG, and noise that is equally strong within each array.

Stochastic weight averaging (SWA) is `Moments` with a stride.
"""

import copy
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from minires.arrays import checks, stepped, xp_of
from minires.kernels.vectors import apply_formula
from minires.resampling.moments import Moments


class EMA:
    """The exponential moving average of the weights, corrected for its start.

    m ← m + w (θ − m),   w = (1 − β) / (1 − βⁿ)

    This equals a ← β a + (1 − β) θ, begun at a = 0 and divided by 1 − βⁿ. So θ₁ … θₙ have
    weights whose sum is one, and the start a = 0 has no influence. As β goes to 1, w goes to 1/n,
    which is eq. 2.

        ema = EMA(0.999)
        ema.update(theta)                # after every step
        model.predict(ema.mean, images)

    decay     β, in [0, 1): the average is over about the last 1/(1 − β) updates
    """

    def __init__(self, decay: float):
        self.decay = float(checks.number_in("EMA", "decay", decay, 0, 1))
        self.count = 0
        self._mean = None
        self._dtype = None

    def __repr__(self) -> str:
        return f"<EMA: decay {self.decay}, {self.count:,} updates>"

    def update(self, theta: Any) -> None:
        """Add the weights after one more update to the average.

        theta    float32 or float64, any shape, always the same
        Raises   ValueError when shape, dtype or device differ from the first one's
        """
        self.ready(theta)
        theta = stepped(theta)
        self.count += 1

        def formula(mean, theta, weight):
            mean += weight * (theta - mean)

        numbers = [self.weight(self.count)]
        apply_formula(formula, self._mean, theta, numbers=numbers, kernel="fold_average")

    def weight(self, count: int) -> float:
        """w, the weight of an update.

        count    n, the number of the update, from 1: the first has w = 1
        """
        return (1 - self.decay) / (1 - self.decay**count)

    def ready(self, theta: Any) -> Any:
        """Check θ, and make the array of the average if there is none.

        theta    as for `update`
        Returns  the average so far, float64; an update changes it in place
        Raises   ValueError
        """
        checks.is_array("EMA.update", "theta", theta)
        if theta.dtype not in (np.float32, np.float64):
            raise ValueError(f"EMA.update: theta is {theta.dtype}, expected float32 or float64")
        if self._mean is None:
            self._mean = theta.astype(np.float64, order="C")
            self._dtype = theta.dtype
        if theta.shape != self._mean.shape or theta.dtype != self._dtype:
            raise ValueError(
                f"EMA.update: theta is {theta.shape}, expected {self._mean.shape} as before"
                if theta.shape != self._mean.shape
                else f"EMA.update: theta is {theta.dtype}, expected {self._dtype} as before"
            )
        if xp_of(theta) is not xp_of(self._mean):
            raise ValueError(
                f"EMA.update: theta is a {xp_of(theta).__name__} array, expected "
                f"{xp_of(self._mean).__name__} as before (minires.to_device moves it)"
            )
        return self._mean

    def __getitem__(self, network: int) -> "EMA":
        """The average of one of R networks; it shares this array."""
        own = copy.copy(self)
        own._mean = self._mean[network]
        return own

    @property
    def mean(self) -> Any:
        """The average, a new array of θ's shape and dtype.

        Raises   ValueError before the first update
        """
        if self.count == 0:
            raise ValueError("EMA.mean: no update yet")
        return self._mean.astype(self._dtype)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later, bit for bit.

        Returns  dict of arrays
        """
        state = {"count": np.array(self.count), "decay": np.array(self.decay)}
        if self.count:
            state |= {"mean": self._mean.copy(), "dtype": np.array(str(self._dtype))}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in an average made with the same decay.

        state    dict; its array is copied
        Raises   KeyError, TypeError or ValueError when it is no such state, or has another decay
        """
        decay = np.asarray(state["decay"]).item() if "decay" in state else None
        if decay != self.decay:
            raise ValueError(
                f"EMA.restore: the state has decay {decay}, this average has {self.decay}: make "
                "it with the same decay"
            )
        count = checks.whole_number("EMA.restore", "count", np.asarray(state["count"]).item(), 0)
        if count:
            mean, dtype = state["mean"], str(state["dtype"])
            checks.one_of("EMA.restore", "dtype", dtype, ("float32", "float64"))
            if mean.dtype != np.float64 or not bool((abs(mean) <= np.finfo(dtype).max).all()):
                raise ValueError(f"EMA.restore: mean is {mean.dtype}, or beyond {dtype}")
            self._mean, self._dtype = mean.copy(), np.dtype(dtype)
        else:
            self._mean = self._dtype = None
        self.count = count


class SWAG:
    """A Gaussian with low-rank covariance, from every stride-th θ of a fine-tuning.

    There are two normal distributions. Both have the mean θ̄ of the T weights collected:

    diagonal    N(θ̄, diag σ²), in `swag.moments`: as in the paper, but only every stride-th θ counts
    low rank    N(θ̄, ½ diag σ² + D Dᵀ / (2 (K − 1))), in `swag`
                θ̃ = θ̄ + σ z₁ / √2 + D z₂ / √(2 (K − 1)),   z₁ ~ N(0, I_P), z₂ ~ N(0, I_K)

    The K columns of D are θᵢ − θ̄ᵢ for the last K weights collected; θ̄ᵢ is the mean of the first
    i of them. So the low-rank form knows which weights change at the same time.

        swag = SWAG(theta.shape, rank=10, stride=25)
        swag.update(theta)                           # after every step
        members = swag.sample(10, rng)               # or swag.moments.sample(10, rng)

    shape    of the weights: (P,); or (R, P), and then `swag[r].sample` gives members of network r
    rank     K, at least 2: how many columns of D are kept
    stride   every stride-th update is collected
    Source   Maddox et al. 2019, arXiv:1902.02476, §3 and algorithm 1
    """

    def __init__(self, shape: Any, rank: int, stride: int = 1):
        rank = checks.whole_number("SWAG", "rank", rank, 2)  # we divide by K − 1
        self.moments = Moments(shape, stride=stride)
        self.deviations = deque(maxlen=rank)
        self._collected = 0

    def __repr__(self) -> str:
        rank, stride = self.deviations.maxlen, self.moments.stride
        return (
            f"<SWAG: shape {self.moments.shape}, rank {rank}, stride {stride}, "
            f"{self.moments.count:,} weights collected>"
        )

    def update(self, theta: Any) -> None:
        """Add the weights after one more update to the moments; collect every `stride`-th one.

        theta    of `shape`, float32 or float64; always the same dtype and device
        Raises   ValueError when shape, dtype or device differ from what was seen before
        """
        self.moments.update(theta)
        self.collect(theta)

    def collect(self, theta: Any) -> None:
        """Keep a column of D, if `moments` has just counted θ.

        theta    what `moments` was last updated with, by `SWAG.update` or from outside
        """
        if self.moments.count > self._collected:
            self._collected = self.moments.count
            self.deviations.append(theta - self.moments.mean_so_far())

    def __getitem__(self, network: int) -> "SWAG":
        """The Gaussian of one of R networks; it shares these arrays."""
        own = copy.copy(self)
        own.moments = self.moments[network]
        own.deviations = deque((d[network] for d in self.deviations), self.deviations.maxlen)
        return own

    def sample(self, k: int, rng: Any) -> Any:
        """Sample k networks; member j depends on `rng` and j, not on k (see `Moments.sample`).

        k        how many networks
        rng      numpy.random.Generator
        Returns  (k, P), dtype of θ
        Raises   ValueError before K weights are collected
        """
        k = checks.whole_number("SWAG.sample", "k", k, 1)
        checks.generator_of("SWAG.sample", rng)
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


def isotropic_members(mean: Any, std: Any, arrays: Sequence[slice], k: int, rng: Any) -> Any:
    """Networks around the mean. The noise is equally strong for all weights of an array.

    θⱼ = θ̄ + s εⱼ,   s² = mean of σ² over the array that the weight belongs to

    In each array the noise has the same expected squared norm as σ ε. If these networks are as
    good as those of `Moments.sample`, then it does not matter which weight has which σ. The same
    `rng` gives the same ε as in `Moments.sample`.

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
