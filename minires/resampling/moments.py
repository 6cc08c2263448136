"""The running mean and variance of a network's weights: the heart of the method.

While a network is fine-tuned, every update leaves slightly different weights θ. This file
keeps their mean θ̄ and variance σ² without keeping the weights themselves (eqs. 2-3 of Liu,
Tripathi, Kurup and Shah, arXiv:1807.00847, after Welford 1962). It also samples new networks from
the normal distribution with this mean and variance.

`literal_update` is the paper's formula, for reading and for testing. `Moments` computes the
same numbers, made safe for ten thousand updates of millions of float32 weights:

- It adds in float64. In float32, after some thousand updates, d/n is so small that adding it to θ̄
  changes nothing. For a weight of 0.1 that drifts by 3e-5, σ² then becomes 20 % too large.
- It adds up θ − θ₁: how far a weight has moved from the first θ that was counted. Otherwise a
  weight of 300 that moves by 0.08 would use four of its sixteen digits for the 300.
- It adds up n σ², a sum of squares. Nothing is ever subtracted from it, so the variance cannot
  become negative and needs no clamp.
"""

import html
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import checks, stepped, to_device, to_host, xp_of
from minires.arrays.files import content_of, load_arrays, save_arrays
from minires.kernels.vectors import apply_formula


def literal_update(mean: Any, variance: Any, theta: Any, t: int) -> tuple[Any, Any]:
    """Eqs. 2 and 3 as they are printed.

    θ̄⁽ᵗ⁺¹⁾ = θ̄⁽ᵗ⁾ + (θ⁽ᵗ⁺¹⁾ − θ̄⁽ᵗ⁾) / (t+1)
    σ²⁽ᵗ⁺¹⁾ = (σ²⁽ᵗ⁾ t + t/(t+1) (θ⁽ᵗ⁺¹⁾ − θ̄⁽ᵗ⁾)²) / (t+1)

    mean, variance   of the first t updates, any shape; at t = 0 any finite numbers will do
    theta            θ⁽ᵗ⁺¹⁾, the weights after update t+1
    t                how many updates came before this one, from 0
    Returns          mean and variance of the first t+1 updates
    Source           eqs. 2-3; population variance (ddof 0)
    """
    difference = theta - mean
    mean = mean + difference / (t + 1)
    variance = (variance * t + t / (t + 1) * difference**2) / (t + 1)
    return mean, variance


class Moments:
    """The mean and variance of every weight over the updates seen so far.

        moments = Moments(theta.shape)
        for images, labels in batches:
            ...                                  # one step of SGD
            moments.update(theta)
        probabilities = model.predict(moments.mean, images)
        members = moments.sample(10, rng)        # ten networks sampled from N(θ̄, σ²)

    shape     of the weights: (P,), or (R, P) for R networks side by side
    ddof      0: population variance, Σ(θ−θ̄)²/n, as in eq. 3; 1: sample variance, over n−1
    burn_in   how many updates at the start are seen but not counted
    stride    after the burn-in, every stride-th update is counted. If the stride is the length of
              a learning-rate cycle, the mean is stochastic weight averaging (arXiv:1803.05407)
    Raises    ValueError for a ddof above 1, or a number that is not whole

    `seen` is the number of calls of `update`, `count` the number of them that count.

    The weights may be float32 or float64, on the CPU or on a GPU. The sums lie on the same
    device: 20 bytes for each float32 weight. A weight that was once infinite or not a number makes
    its sums infinite or NaN for ever. `update` does not look for such weights, since that would
    cost one more pass over θ. `mean`, `variance`, `std`, `sample` and `save` do: they raise
    FloatingPointError and say how many weights are lost.

    Source    eqs. 2-3; Welford 1962, Technometrics 4(3)
    """

    def __init__(self, shape: Any, ddof: int = 0, burn_in: int = 0, stride: int = 1):
        self.shape = tuple(_whole("shape", size, 0) for size in np.ravel(shape).tolist())
        self.ddof = _whole("ddof", ddof, 0)
        self.burn_in = _whole("burn_in", burn_in, 0)
        self.stride = _whole("stride", stride, 1)
        if self.ddof > 1:
            raise ValueError(f"Moments: ddof is {ddof}, expected 0 (population) or 1 (sample)")
        self.seen = 0
        self.count = 0
        self._first = None  # θ₁, the first θ counted, in its own dtype
        self._offset = None  # θ̄ − θ₁, float64
        self._m2 = None  # Σ (θ − θ̄)² = n σ², float64

    def update(self, theta: Any) -> None:
        """Add the weights after one more update to the mean and the variance (eqs. 2-3).

        d = θ − θ̄,   θ̄ ← θ̄ + d/n,   nσ² ← nσ² + (n−1)/n d²

        theta    of `shape`, float32 or float64; always the same dtype and device
        Raises   ValueError when shape, dtype or device differ from what was seen before
        """
        theta = self.accepted(theta)
        self.seen += 1
        if not self.counts(self.seen):
            return
        self.count += 1
        if self.count == 1:
            self.start(theta)
            return

        def formula(theta, first, offset, m2, n):
            d = theta.astype(np.float64)  # float32 minus float32 would be rounded to float32
            d -= first
            d -= offset
            offset += d / n
            d *= d
            d *= (n - 1) / n
            m2 += d

        vectors = theta, *self.arrays
        apply_formula(formula, *vectors, numbers=[self.count], kernel="fold_moments")

    def counts(self, seen: int) -> bool:
        """Whether an update counts: not during the burn-in, and then every stride-th one.

        seen     the number of the update, from 1
        """
        after = seen - self.burn_in
        return after > 0 and after % self.stride == 0

    def accepted(self, theta: Any) -> Any:
        """Check that weights fit those counted so far.

        theta    as for `update`
        Returns  theta, contiguous or `aligned`
        Raises   ValueError
        """
        checks.is_array("Moments.update", "theta", theta)
        theta = stepped(theta)
        self._check(theta, "update")
        return theta

    def start(self, theta: Any) -> None:
        """Make the arrays for a first θ.

        theta    of `shape`
        """
        self._first = theta.copy()
        self._offset = xp_of(theta).zeros(theta.shape, np.float64)
        self._m2 = xp_of(theta).zeros(theta.shape, np.float64)

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """θ₁, θ̄ − θ₁ and n σ²: what `update` changes; each None before the first θ."""
        return self._first, self._offset, self._m2

    def merge(self, other: "Moments") -> None:
        """Add the updates that `other` has counted, as if they had been counted here.

        d = θ̄_b − θ̄_a,   θ̄ = θ̄_a + d n_b/n,   nσ² = n_a σ²_a + n_b σ²_b + d² n_a n_b/n

        Merging in another order gives the same result, up to rounding. `other` is left as it is;
        so are `seen`, burn-in and stride of these moments.

        other    Moments of the same shape, dtype and device
        Raises   ValueError when they differ
        Source   Chan, Golub and LeVeque 1983, The American Statistician 37(3)
        """
        if other.shape != self.shape:
            raise ValueError(f"Moments.merge: other has shape {other.shape}, expected {self.shape}")
        if other.count == 0:
            return
        self._check(other._first, "merge")
        if self.count == 0:
            self._first = other._first.copy()
            self._offset = other._offset.copy()
            self._m2 = other._m2.copy()
            self.count = other.count
            return

        n_a, n_b = self.count, other.count
        n = n_a + n_b

        d = other._first.astype(np.float64)
        d -= self._first
        d += other._offset - self._offset
        self._offset += d * (n_b / n)
        d *= d
        d *= n_a * n_b / n
        self._m2 += other._m2
        self._m2 += d
        self.count = n

    def __getitem__(self, network: int) -> "Moments":
        """The moments of one of R networks: Moments of shape (P,) that share these arrays."""
        if len(self.shape) < 2:
            raise IndexError(f"Moments: shape {self.shape} is that of one network, expected (R, P)")
        own = Moments(self.shape[1:], self.ddof, self.burn_in, self.stride)
        own.seen, own.count = self.seen, self.count
        if self._first is not None:
            own._first, own._offset, own._m2 = (array[network] for array in self.arrays)
        return own

    @property
    def mean(self) -> Any:
        """θ̄, a new array of `shape` and of θ's dtype: the mean model."""
        self._require("mean", 1)
        return self._finite(self._first + self._offset).astype(self._first.dtype)

    def mean_so_far(self) -> Any:
        """θ̄ like `mean`, for use between updates. Nothing is checked: a GPU need not stop."""
        self._require("mean_so_far", 1)
        return (self._first + self._offset).astype(self._first.dtype)

    @property
    def variance(self) -> Any:
        """σ², a new array of `shape` and of θ's dtype. After one update 0 (ddof 1: error)."""
        return self._in_dtype("variance", self._variance("variance"))

    @property
    def std(self) -> Any:
        """σ, a new array of `shape` and of θ's dtype."""
        variance = self._variance("std")
        return self._in_dtype("std", xp_of(variance).sqrt(variance))

    def sample(self, k: int, rng: Any, scale: float = 1.0) -> Any:
        """Sample k networks around the mean.

        θⱼ = θ̄ + scale · σ · εⱼ,   εⱼ ~ N(0, 1), independent for every weight

        Member j has its own random stream, the j-th that `rng` spawns. So it does not depend on
        k: with the same `rng`, the first 3 of 10 networks are those of k = 3. A second call with
        this `rng` gives other networks, since it spawns new streams. The noise is made on the
        host, so that a GPU gets the same networks.

        k        how many networks, at least 1
        rng      numpy.random.Generator
        scale    of the standard deviation, at least 0; 1 is the paper's
        Returns  (k, *shape), dtype and device of θ
        Raises   ValueError, TypeError for an argument that does not fit; FloatingPointError when
                 the weights are lost or too large
        Source   §2, the second approach
        """
        k = _whole("k", k, 1)
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"Moments.sample: rng is {rng!r}, expected np.random.default_rng(seed)")
        if not 0 <= scale < np.inf:
            raise ValueError(f"Moments.sample: scale is {scale}, expected a finite number >= 0")
        mean = self.mean.reshape(-1)
        deviation = float(scale) * self.std.reshape(-1)
        largest = np.finfo(mean.dtype).max
        if mean.size and float(abs(mean).max()) + 6 * float(deviation.max()) > largest:
            raise FloatingPointError(
                f"Moments.sample: weights of mean + 6 σ exceed {largest:.2g}, the largest "
                f"{mean.dtype} (a learning rate too high?)"
            )

        streams = rng.spawn(k)
        noise = np.empty((k, mean.size), mean.dtype)
        for stream, member in zip(streams, noise, strict=True):
            stream.standard_normal(out=member, dtype=noise.dtype)
        members = xp_of(mean).asarray(noise)
        for member in members:
            member *= deviation
            member += mean
        return members.reshape(k, *self.shape)

    def save(self, path: str | Path) -> None:
        """Write all that is needed to go on later, bit for bit, to one .npz file.

        The file appears under its name only when it is complete.

        path     the file's name, used as it is
        Raises   FloatingPointError when a weight is not finite; OSError
        """
        save_arrays(path, **self.state())

    def state(self) -> dict[str, Any]:
        """All that is needed to go on later, bit for bit.

        Returns  dict of new arrays on the host, which may be kept in a file with other things
        Raises   FloatingPointError when a weight is not finite
        """
        content = {"format": np.array(_FORMAT), "shape": np.array(self.shape, np.int64)}
        content |= {name: np.array(getattr(self, name), np.int64) for name in _NUMBERS}
        if self.count:
            self._finite(self._offset + self._first)
            self._finite(self._m2)
            content |= {name: to_host(getattr(self, "_" + name)).copy() for name in _ARRAYS}
        return content

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Moments":
        """Read what `save` wrote, and go on from there.

        path     a file written by `save`
        device   "cpu" or "gpu": where the next weights will be
        Returns  Moments
        Raises   FileNotFoundError; ValueError when the file is damaged or of another kind
        """
        content = load_arrays(path)
        with content_of(path):
            moments = cls.from_state(content)
        if moments.count:
            for name in _ARRAYS:
                setattr(moments, "_" + name, to_device(getattr(moments, "_" + name), device))
        return moments

    @classmethod
    def from_state(cls, content: dict[str, Any]) -> "Moments":
        """Go on from what `state` gave. Its content is checked first.

        content  dict of arrays on the host; they are copied
        Returns  Moments
        Raises   KeyError, TypeError or ValueError when the content is not that of moments
        """
        if str(content["format"]) != _FORMAT:
            raise ValueError(f"format is {str(content['format'])!r}, expected {_FORMAT!r}")
        ddof, burn_in, stride, seen, count = (content[name].item() for name in _NUMBERS)
        moments = cls(content["shape"], ddof, burn_in, stride)
        moments.seen = _whole("seen", seen, 0)
        moments.count = _whole("count", count, 0)
        if moments.count == 0:
            return moments
        for name in _ARRAYS:
            array = content[name]
            if array.shape != moments.shape:
                raise ValueError(f"{name} is {array.shape}, expected {moments.shape}")
            if array.dtype != np.float64 and not (name == "first" and array.dtype == np.float32):
                raise ValueError(f"{name} is {array.dtype}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
            setattr(moments, "_" + name, array.copy())
        moments._check_possible()
        return moments

    def _check_possible(self):
        """Raise ValueError for sums that no weights of θ's dtype can have."""
        first, offset, m2 = self.arrays
        if (m2 < 0).any():
            raise ValueError("m2, a sum of squares, is negative")
        if self.count == 1 and bool(offset.any() | m2.any()):
            raise ValueError("offset and m2 of one update are not 0")
        xp = xp_of(first)
        with np.errstate(over="ignore"):
            mean = (first + offset).astype(first.dtype)
        if not xp.isfinite(mean).all():
            raise ValueError(f"first + offset, the mean, exceeds the largest {first.dtype}")
        # Numbers from −a to a have a standard deviation of a at most.
        if (xp.sqrt(m2 / self.count) > np.finfo(first.dtype).max).any():
            raise ValueError(f"m2 is larger than {self.count} weights of {first.dtype} can make it")

    def _check(self, theta, where):
        """Raise ValueError unless weights fit those counted so far."""
        if theta.shape != self.shape:
            raise ValueError(
                f"Moments.{where}: theta is {theta.shape}, expected {self.shape}, "
                "the shape that Moments was made with"
            )
        if theta.dtype not in (np.float32, np.float64):
            raise ValueError(f"Moments.{where}: theta is {theta.dtype}, not float32 or float64")
        if self._first is None:
            return
        if theta.dtype != self._first.dtype:
            raise ValueError(
                f"Moments.{where}: theta is {theta.dtype}, expected {self._first.dtype} as before"
            )
        if xp_of(theta) is not xp_of(self._first):
            raise ValueError(
                f"Moments.{where}: theta is a {xp_of(theta).__name__} array, expected "
                f"{xp_of(self._first).__name__} as before (minires.to_device moves it)"
            )

    def _require(self, what, count):
        if self.count < count:
            raise ValueError(
                f"Moments.{what}: {self.count} updates counted of {self.seen} seen (burn_in "
                f"{self.burn_in}, stride {self.stride}), ddof {self.ddof} needs {count} or more"
            )

    def _variance(self, what):
        self._require(what, 1 + self.ddof)
        self._finite(self._first)  # after one update, a weight that is not finite is only here
        self._finite(self._offset)
        variance = self._m2 / (self.count - self.ddof)
        large = int((~xp_of(variance).isfinite(variance)).sum())
        if large:
            raise FloatingPointError(
                f"Moments.{what}: the squared changes of {large} of {variance.size} weights exceed "
                "1.8e308, the largest float64 (a learning rate too high?)"
            )
        return variance

    def _in_dtype(self, what, array):
        """`array` in θ's dtype; FloatingPointError where it is too large for that."""
        largest, dtype = float(np.finfo(self._first.dtype).max), self._first.dtype
        if array.size and float(array.max()) > largest:
            raise FloatingPointError(
                f"Moments.{what}: {int((array > largest).sum())} of {array.size} numbers exceed "
                f"{largest:.2g}, the largest {dtype} (a learning rate too high?)"
            )
        return array.astype(dtype)

    @staticmethod
    def _finite(array):
        lost = array.size - int(xp_of(array).isfinite(array).sum())
        if lost:
            raise FloatingPointError(
                f"Moments: {lost} of {array.size} weights were infinite or not a number in some "
                "update (a learning rate too high?); their moments are lost: start anew"
            )
        return array

    def _described(self):
        """What `repr` and a notebook show: [(name, value), …]."""
        return [(name, str(getattr(self, name))) for name in ("shape", *_NUMBERS)]

    def __repr__(self) -> str:
        return f"<Moments: {', '.join(f'{name} {value}' for name, value in self._described())}>"

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        rows = (
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._described()
        )
        return f"<table><caption>Moments</caption><tbody>{''.join(rows)}</tbody></table>"


# What a file holds.
_FORMAT = "minires moments 1"
_NUMBERS = ("ddof", "burn_in", "stride", "seen", "count")
_ARRAYS = ("first", "offset", "m2")


def _whole(name, value, least):
    return checks.whole_number("Moments", name, value, least)
