"""Properties of what turns repeated runs into a claim."""

from collections.abc import Callable

import numpy as np

from minires.testing.judging import (
    Misfit,
    Property,
    Summary,
    Words,
    array_of,
    ask,
    compare,
    judge,
    show,
    strategies,
    suite_of,
)


def check_paired_difference(f: Callable) -> Summary:
    """Judge the mean difference of paired runs and its standard error.

        def paired_difference(a, b): ...      # (n,), (n,) → mean of a − b, its standard error

        check_paired_difference(paired_difference)

    The standard error is s / √n, with s the sample standard deviation (over n − 1) of the n
    differences.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("paired_difference", paired_difference_properties(f))


def paired_difference_suite(f: Callable) -> Callable:
    """`check_paired_difference` for pytest: one test a property."""
    return suite_of("paired_difference", paired_difference_properties(f))


def check_paired_test(f: Callable) -> Summary:
    """Judge a paired t-test: the probability of a difference this large if there were none.

        def paired_test(a, b): ...      # (n,), (n,) → two-sided p-value

        check_paired_test(paired_test)

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    Source    Student 1908; scipy.stats.ttest_rel
    """
    return judge("paired_test", paired_test_properties(f))


def paired_test_suite(f: Callable) -> Callable:
    """`check_paired_test` for pytest: one test a property."""
    return suite_of("paired_test", paired_test_properties(f))


def check_equivalence(f: Callable) -> Summary:
    """Judge a test of equivalence by two one-sided t-tests.

        def equivalence(a, b, margin): ...      # (n,), (n,), > 0 → p-value

        check_equivalence(equivalence)

    The null hypothesis is that the means differ by `margin` or more; p is the larger of the two
    one-sided p-values. A small p says that the difference lies within ± margin.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    Source    Schuirmann 1987
    """
    return judge("equivalence", equivalence_properties(f))


def equivalence_suite(f: Callable) -> Callable:
    """`check_equivalence` for pytest: one test a property."""
    return suite_of("equivalence", equivalence_properties(f))


def _pairs(st, least=2):
    """n pairs whose differences are not all equal."""
    return (
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=least, max_size=6)
        .filter(lambda pairs: len({a - b for a, b in pairs}) > 1)
        .map(tuple)
    )


def _arrays(case):
    return np.array([a for a, _ in case], float), np.array([b for _, b in case], float)


def _tell(case):
    return "a {}, b {}".format(*map(show, _arrays(case)))


def paired_difference_properties(f: Callable) -> list[Property]:
    """The properties that `check_paired_difference` tries."""
    st = strategies()

    def outcome(which):
        def compared(case):
            a, b = _arrays(case)
            d, n = a - b, len(a)
            right = (d.mean(), d.std(ddof=1) / np.sqrt(n))[which]
            yours = ask(f, a, b)
            if not isinstance(yours, tuple | list) or len(yours) != 2:
                raise Misfit(Words(type(yours).__name__), Words("a pair: difference, error"))
            hints = [
                (-d.mean(), "the sign: a − b"),
                (d.std(ddof=1), "that is s of one difference: divide by √n"),
                (d.std(ddof=1) / n, "divide by √n, not by n"),
                (d.std() / np.sqrt(n), "s is over n − 1: std(ddof=1)"),
                (np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n),
                 "not paired: take the differences first"),
            ]  # fmt: skip
            return compare(
                yours[which], right, 1e-5 * (1 + abs(right)), hints if which else hints[:1]
            )

        return compared

    return [
        Property("the difference is the mean of a − b", _pairs(st), outcome(0), _tell,
                 "the mean over the pairs", "samples", 40),
        Property("its standard error is s / √n", _pairs(st), outcome(1), _tell,
                 "s: the sample standard deviation of the differences", "samples", 30),
    ]  # fmt: skip


def paired_test_properties(f: Callable) -> list[Property]:
    """The properties that `check_paired_test` tries."""
    st = strategies()

    def outcome(case):
        from scipy import stats

        a, b = _arrays(case)
        right = float(stats.ttest_rel(a, b).pvalue)
        d, n = a - b, len(a)
        t = d.mean() / (d.std(ddof=1) / np.sqrt(n))
        hints = [
            (right / 2, "that is one-sided: double it"),
            (float(stats.ttest_ind(a, b).pvalue), "not paired: test the differences"),
            (float(2 * stats.norm.sf(abs(t))), "Student's t with n − 1 degrees, not the normal"),
            (1 - right, "that is 1 − p"),
            (float(2 * stats.t.sf(abs(t), n)), "n − 1 degrees of freedom, not n"),
        ]
        return compare(ask(f, a, b), right, 1e-4, hints)

    def both_ways(case):
        a, b = _arrays(case)
        return compare(ask(f, b, a), array_of(ask(f, a, b), (), "a number"), 1e-6)

    return [
        Property("p is that of scipy.stats.ttest_rel", _pairs(st), outcome, _tell,
                 "t = mean / (s / √n) of the differences, n − 1 degrees of freedom", "samples", 40),
        Property("exchanging a and b changes nothing", _pairs(st), both_ways, _tell,
                 "two-sided: take |t|", "samples", 20),
    ]  # fmt: skip


def equivalence_properties(f: Callable) -> list[Property]:
    """The properties that `check_equivalence` tries."""
    st = strategies()
    cases = st.tuples(_pairs(st), st.sampled_from([1.0, 0.5, 4.0]))

    def outcome(case):
        from scipy import stats

        (a, b), margin = _arrays(case[0]), case[1]
        d, n = a - b, len(a)
        error = d.std(ddof=1) / np.sqrt(n)
        above = float(stats.t.sf((d.mean() + margin) / error, n - 1))
        below = float(stats.t.cdf((d.mean() - margin) / error, n - 1))
        hints = [
            (min(above, below), "the larger of the two: both must be small"),
            (float(stats.ttest_rel(a, b).pvalue), "a p-value above 0.05 shows no equivalence"),
            (1 - max(above, below), "that is 1 − p"),
        ]
        return compare(ask(f, a, b, margin), max(above, below), 1e-4, hints)

    def tell(case):
        return f"{_tell(case[0])}, margin {case[1]}"

    return [
        Property("p is the larger of two one-sided tests", cases, outcome, tell,
                 "test a − b > −margin and a − b < margin, each by Student's t", "samples", 50),
    ]  # fmt: skip
