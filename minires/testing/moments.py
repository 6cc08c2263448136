"""Properties of a running mean and variance (eqs. 2-3)."""

import functools
import inspect
from collections.abc import Callable

import numpy as np

from minires.testing import oracles
from minires.testing.judging import (
    Misfit,
    Property,
    Summary,
    Words,
    Wrong,
    array_of,
    ask,
    compare,
    judge,
    required_arguments,
    show,
    strategies,
    suite_of,
)


def check_moments(make: Callable) -> Summary:
    """Judge a running mean and variance.

        class Running:
            def __init__(self, shape): ...      # or no argument at all
            def update(self, theta): ...        # the weights after one more update
            mean = property(...)                # θ̄ of the updates so far; or a method
            variance = property(...)            # σ², divided by n; or a method

        check_moments(Running)

    Where there are `merge(other)` and `count`, they are judged too. θ is changed in place after
    `update` has seen it, as SGD does.

    make     called as `make(shape)` if it needs an argument (or has one named shape), else
             `make()`; returns a new object. θ is a float64 array of `shape`
    Returns  Summary
    Raises   Falsified
    Source   eqs. 2-3; Welford 1962; Chan, Golub and LeVeque 1983 for the merging
    """
    return judge("moments", moments_properties(make))


def moments_suite(make: Callable) -> Callable:
    """`check_moments` for pytest: `test_mine = moments_suite(Running)` is one test a property."""
    return suite_of("moments", moments_properties(make))


def check_merge(merge: Callable) -> Summary:
    """Judge a function that merges the moments of two streams of updates.

        def merge(count_a, mean_a, variance_a, count_b, mean_b, variance_b): ...
            # → count, mean, variance of all updates

        check_merge(merge)

    A count is 1 or more. Means and variances are float64 arrays of one shape.

    merge    the code to be judged, as above
    Returns  Summary
    Raises   Falsified
    Source   Chan, Golub and LeVeque 1983
    """
    return judge("merge", merge_properties(merge))


def merge_suite(merge: Callable) -> Callable:
    """`check_merge` for pytest: one test a property."""
    return suite_of("merge", merge_properties(merge))


def _new(make, shape):
    return make(shape) if _takes_shape(make) else make()


def _takes_shape(make):
    if required_arguments(make):
        return True
    try:
        return "shape" in inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False


def _read(moments, name, shape):
    value = getattr(moments, name)
    return array_of(value() if callable(value) else value, shape)


def _fold(make, rows, dtype=np.float64):
    rows = np.array(rows, dtype)
    moments = _new(make, rows.shape[1:])
    for row in rows:
        moments.update(row.copy())
    return moments


def _told(rows):
    rows = np.array(rows, np.float64)
    numbers = rows[:, 0] if rows.shape[1:] == (1,) else rows
    return f"updates {numbers.tolist()}"


def _without_the_factor(x):
    """What eq. 3 gives if it adds d² and not d² (n − 1)/n."""
    mean, squares = 0.0, 0.0
    for n, row in enumerate(x, start=1):
        squares = squares + (row - mean) ** 2
        mean = mean + (row - mean) / n
    return squares / len(x)


def _streams(least=1, most=12, widest=3):
    """Rows of equal width. Numbers are chosen before the width, so that a smaller width is found
    by itself: the same numbers, in more rows."""
    st = strategies()

    def rows(case):
        numbers, width = case
        missing = max(least * width - len(numbers), -len(numbers) % width)
        numbers = numbers + [0] * missing
        return tuple(tuple(numbers[i : i + width]) for i in range(0, len(numbers), width))

    lists = st.lists(st.integers(-9, 9), min_size=1, max_size=most)
    return st.tuples(lists, st.integers(1, widest)).map(rows)


def _halves():
    """Two streams of equal width."""
    return (
        strategies()
        .tuples(_streams(2), strategies().integers(1, 3))
        .map(lambda case: (case[0][: case[1]], case[0][case[1] :] or case[0][:1]))
    )


def moments_properties(make: Callable) -> list[Property]:
    """The properties that `check_moments` tries."""
    st = strategies()

    @functools.cache
    def digits():
        """Judged by its answer to one update: has it seven digits or sixteen?"""
        try:
            off = abs(float(_read(_fold(make, [[0.1]]), "mean", (1,))[0]) - 0.1)
        except Exception:  # the properties will say it
            return 2.3e-16
        return 1.2e-7 if 1e-12 < off < 1e-7 else 2.3e-16

    def room(rows):
        """What rounding may do to a mean of these numbers."""
        return 8 * len(rows) * digits() * max(1.0, float(np.abs(rows).max()))

    def mean(rows):
        x = np.array(rows, float)
        n, (right, _) = len(x), oracles.exact_moments(rows)
        hints = [
            ((x.sum(axis=0) + x[0]) / (n + 1), "the first update seems to count twice"),
            ((x.sum(axis=0) + x[0]) / n, "the sum seems to start at θ₁ instead of 0"),
            (x.sum(axis=0) / (n + 1), "the divisor is one too large: after n updates it is n"),
            (x.sum(axis=0), "that is the sum: divide by the number of updates"),
            (x[-1], "only the last update counts: θ̄ ← θ̄ + (θ − θ̄)/n"),
        ]
        return compare(_read(_fold(make, rows), "mean", x.shape[1:]), right, room(x), hints)

    def variance(rows):
        x = np.array(rows, float)
        n, (center, right) = len(x), oracles.exact_moments(rows)
        square = (x**2).sum(axis=0)
        hints = [
            (right * n / max(n - 1, 1), "divided by n − 1, and eq. 3 divides by n"),
            (right * n, "that is Σ(θ − θ̄)²: divide by n"),
            (np.sqrt(right), "that is σ: the variance is σ²"),
            (square / n, "that is the mean of θ²: subtract θ̄ before squaring"),
            (_without_the_factor(x), "S ← S + d² (n − 1)/n: the factor (n − 1)/n is missing"),
            ((square + x[0] ** 2) / n - ((x.sum(axis=0) + x[0]) / n) ** 2,
             "the sums seem to start at θ₁ instead of 0"),
        ]  # fmt: skip
        scale = max(1.0, float(np.abs(x).max()))
        return compare(
            _read(_fold(make, rows), "variance", center.shape), right, 2 * scale * room(x), hints
        )

    def one_update(rows):
        moments = _fold(make, rows)
        wrong = compare(_read(moments, "mean", (1,)), rows[0], room(np.array(rows, float)))
        return wrong or compare(_read(moments, "variance", (1,)), [0.0], 1e-12)

    def constant(case):
        number, n = case
        yours = _read(_fold(make, [[number / 10]] * n), "variance", (1,))
        return compare(yours, [0.0], (8 * n * digits() * abs(number / 10)) ** 2)

    def shifted(rows):
        far = 2.0**14 if digits() > 1e-10 else 2.0**30
        right = oracles.exact_moments(rows)[1]
        x = far + np.array(rows, float)
        error = digits() * far
        yours = _read(_fold(make, x), "variance", right.shape)
        if (yours < 0).any():
            return Wrong(yours, right)
        return compare(yours, right, 16 * len(rows) * (20 * error + error**2))

    def tell_shifted(rows):
        far = 14 if digits() > 1e-10 else 30
        return f"updates 2**{far} + {_told(rows).removeprefix('updates ')}"

    def reversed_(rows):
        x = np.array(rows, float)
        for name in ("mean", "variance"):
            one, other = (_read(_fold(make, part), name, x.shape[1:]) for part in (x, x[::-1]))
            scale = 1.0 if name == "mean" else 2 * max(1.0, float(np.abs(x).max()))
            wrong = compare(other, one, 2 * scale * room(x))
            if wrong:
                return Wrong(
                    Words(f"{name} {wrong.yours} backwards"), Words(f"{wrong.right} as forwards")
                )
        return None

    def in_place(rows):
        x = np.array(rows, float)
        theta = x[0].copy()
        moments = _new(make, theta.shape)
        for row in x:
            theta[...] = row
            moments.update(theta)
            if not np.array_equal(theta, row):
                return Wrong(theta, row, "`update` changes θ itself: the training would go astray")
        theta[...] = 99
        center, spread = oracles.exact_moments(rows)
        hint = "an array of θ itself is kept, and SGD changes it in place: keep a copy"
        return compare(_read(moments, "mean", theta.shape), center, room(x), hint) or compare(
            _read(moments, "variance", theta.shape),
            spread,
            2 * max(1.0, float(np.abs(x).max())) * room(x),
            hint,
        )

    def read_between(rows):
        x = np.array(rows, float)
        moments = _new(make, x.shape[1:])
        for n, row in enumerate(x, start=1):
            moments.update(row.copy())
            right = oracles.exact_moments(rows[:n])
            for name, value, scale in zip(
                ("mean", "variance"),
                right,
                (1.0, 2 * max(1.0, float(np.abs(x).max()))),
                strict=True,
            ):
                wrong = compare(_read(moments, name, x.shape[1:]), value, scale * room(x))
                if wrong:
                    return wrong
        return None

    def long(steps):
        x = _drift(steps)
        right = x.var(axis=0, dtype=np.float64)
        return compare(_read(_fold(make, x, np.float32), "variance", right.shape), right, right / 8)

    found = [
        Property("the mean is numpy.mean", _streams(), mean, _told,
                 "eq. 2: θ̄ ← θ̄ + (θ − θ̄)/n with n = 1, 2, …", "streams", 40),
        Property("the variance is numpy.var", _streams(), variance, _told,
                 "eq. 3: the mean of the squared differences from θ̄, divided by n",
                 "streams", 40),
        Property("one update is the mean, and has variance 0",
                 st.integers(-9, 9).map(lambda k: ((k,),)), one_update, _told,
                 "after one update n is 1", "streams", 20),
        Property("a constant stream has variance 0",
                 st.tuples(st.integers(1, 99), st.integers(1, 12)), constant,
                 lambda case: f"updates {[case[0] / 10] * case[1]}",
                 "E[x²] − E[x]² subtracts two nearly equal numbers: sum up squared differences "
                 "instead", "streams", 50),
        Property("a large mean leaves the variance as it is", _streams(), shifted, tell_shifted,
                 "E[x²] − E[x]² subtracts two nearly equal numbers: sum up squared differences "
                 "instead", "streams"),
        Property("order does not matter", _streams(least=2), reversed_, _told,
                 "every update must weigh 1/n in the end", "streams"),
        Property("θ may change after `update`", _streams(most=4, widest=1), in_place, _told,
                 "keep a copy of θ, not θ itself", "streams"),
        Property("reading between updates changes nothing", _streams(widest=1), read_between, _told,
                 "right when read at the end, wrong when read after every update: reading must "
                 "not change what is kept", "streams"),
        Property("10,000 small steps of float32 keep their variance", (1000, 10_000), long,
                 lambda steps: f"{steps:,} float32 updates that drift from 0.1 by 3e-9 each",
                 "sums in float32 lose small steps: accumulate in float64 (0.0 + θ stays "
                 "float32), or θ − θ₁"),
    ]  # fmt: skip

    try:
        one = _fold(make, [[1.0]])
    except Exception:  # the properties above will say it
        return found
    if hasattr(one, "merge"):

        def merge(case):
            a, b = case
            x = np.array(a + b, float)
            whole_mean, whole_variance = oracles.exact_moments(a + b)
            first, second = _fold(make, a), _fold(make, b)
            result = first.merge(second)
            first = first if result is None else result
            scale = 2 * max(1.0, float(np.abs(x).max()))
            return compare(
                _read(first, "mean", x.shape[1:]), whole_mean, room(x),
                "the means weigh as many as each has counted: n_a/n and n_b/n",
            ) or compare(
                _read(first, "variance", x.shape[1:]), whole_variance, scale * room(x),
                "nσ² = n_a σ²_a + n_b σ²_b + d² n_a n_b/n, with d the difference of the means",
            )  # fmt: skip

        found.append(
            Property(
                "two halves merge", _halves(), merge,
                lambda case: f"{_told(case[0])} merged with {_told(case[1])}", unit="pairs",
            )
        )  # fmt: skip
    if hasattr(one, "count"):

        def count(rows):
            moments = _fold(make, rows)
            value = moments.count() if callable(moments.count) else moments.count
            return compare(value, float(len(rows)), 0)

        found.append(
            Property(
                "`count` is the number of updates", _streams(widest=1), count, _told, unit="streams"
            )
        )
    return found


def merge_properties(merge: Callable) -> list[Property]:
    """The properties that `check_merge` tries."""

    def merged(case):
        """What comes back for two streams, and what each alone and both have."""
        parts = [(len(rows), *oracles.exact_moments(rows)) for rows in case]
        found = ask(merge, *[part for own in parts for part in own])
        if not isinstance(found, (tuple, list)) or len(found) != 3:
            many = isinstance(found, (tuple, list))
            yours = f"{len(found)} things" if many else type(found).__name__
            raise Misfit(Words(yours), Words("three things: count, mean, variance"))
        return found, parts, oracles.exact_moments(case[0] + case[1])

    def tell(case):
        (n_a, mean_a, variance_a), (n_b, mean_b, variance_b) = (
            (len(rows), *(show(m.tolist(), 3) for m in oracles.exact_moments(rows)))
            for rows in case
        )
        return (
            f"counts {n_a} and {n_b}, means {mean_a} and {mean_b}, "
            f"variances {variance_a} and {variance_b}"
        )

    def tolerance(case):
        return 1e-5 * max(1.0, float(np.abs(np.array(case[0] + case[1])).max()) ** 2)

    def count(case):
        return compare(merged(case)[0][0], len(case[0] + case[1]), 0)

    def mean(case):
        found, (a, b), (right, _) = merged(case)
        hints = [
            ((a[1] + b[1]) / 2, "a mean weighs as much as its count: n_a/n and n_b/n"),
            (a[1] + b[1], "that is the sum of the means"),
        ]
        return compare(array_of(found[1], right.shape), right, tolerance(case), hints)

    def variance(case):
        found, (a, b), (_, right) = merged(case)
        n = a[0] + b[0]
        inside = (a[0] * a[2] + b[0] * b[2]) / n
        hints = [
            (inside, "the means differ too: d² n_a n_b/n is missing in nσ²"),
            (right * n, "that is nσ²: divide by n"),
            (np.sqrt(right), "that is σ: the variance is σ²"),
        ]
        return compare(array_of(found[2], right.shape), right, tolerance(case), hints)

    return [
        Property("the counts add up", _halves(), count, tell, "n = n_a + n_b", "pairs", 20),
        Property("the mean is that of all updates", _halves(), mean, tell,
                 "θ̄ = (n_a θ̄_a + n_b θ̄_b)/n", "pairs", 30),
        Property("the variance is that of all updates", _halves(), variance, tell,
                 "nσ² = n_a σ²_a + n_b σ²_b + d² n_a n_b/n, with d the difference of the means",
                 "pairs", 30),
    ]  # fmt: skip


def _drift(steps, weights=8):
    """Float32 weights near 0.1 that move slowly: (steps, weights)."""
    noise = np.random.default_rng(1).standard_normal((steps, weights))
    drift = 3e-9 * np.arange(steps)[:, None]
    return (0.1 + drift + 1e-5 * noise).astype(np.float32)
