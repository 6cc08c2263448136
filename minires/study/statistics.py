"""The significance tests of the study: is a difference between two methods more than chance?

Everything is paired. Two methods of one seed start from the same network and see the same batches,
so each seed gives one difference. The tests ask whether these differences are above zero, or too
small to matter. The main test is Wilcoxon's signed-rank test. Student's t-test asks the same
question about the mean. But sometimes a training diverges, and its accuracy is 10 %. One such
difference among ten makes the mean useless. In a test of ranks it is only the largest of ten.

`scipy.stats` does the arithmetic. The functions here add what the study's data need: differences
that are all zero or all equal, ties (an accuracy is a whole number of images), one or two seeds.

A test gives a p-value: the probability of differences at least as large as these if there were no
effect. Below `ALPHA` the effect counts as shown. An effect that is *not* shown may still exist. To
show that it is too small to matter, another test is needed: `p_equivalent`.
"""

from typing import Any

import numpy as np
from scipy import special, stats

ALPHA = 0.05
# With five seeds p can be as small as 1/32, when all differences have one sign. With four it is at
# least 1/16, so nothing can be shown.
LEAST_SEEDS = 5
EXACT = 13  # with up to so many seeds all 2ⁿ signs are tried


def spread(values: Any) -> tuple:
    """Mean and standard deviation (ddof = 1) over the last axis; NaN for one value.

    values   (…, S)
    Returns  two arrays (…)
    """
    values = np.asarray(values, float)
    if values.shape[-1] < 2:
        return values.mean(axis=-1), np.full(values.shape[:-1], np.nan)
    return values.mean(axis=-1), values.std(axis=-1, ddof=1)


def p_greater(differences: Any, than: Any = 0.0) -> Any:
    """Are the differences larger than `than`? A one-sided p-value.

    Wilcoxon's signed-rank test. If values above and below `than` were equally likely, every choice
    of signs would be equally likely. So all 2ⁿ signs are tried (with more than 13 seeds 2¹³ random
    ones). That is exact also when there are ties. Differences that equal `than` do not count.

    differences   (…, n), one for each seed
    than          a number, or one for each cell
    Returns       one-sided p-values (…), at least 2⁻ⁿ; 1 for a single seed
    Raises        ValueError when a difference is not finite
    Source        Wilcoxon 1945, Biometrics Bulletin 1
    """
    excess = _rounded(differences - np.asarray(than, float))
    *cells, seeds = excess.shape
    if seeds < 2:
        return np.ones(cells)[()]
    zeros = (excess == 0).sum(axis=-1, keepdims=True)
    ranks = np.where(excess == 0, 0, stats.rankdata(abs(excess), axis=-1) - zeros)
    # With ties `stats.wilcoxon` would do the same, but take 20 times as long.
    return stats.permutation_test(
        (np.sign(excess) * ranks,),
        np.sum,
        permutation_type="samples",
        alternative="greater",
        n_resamples=2**EXACT,
        vectorized=True,
        axis=-1,
        random_state=np.random.default_rng(0),
    ).pvalue


def p_less(differences: Any, than: Any = 0.0) -> Any:
    """Are the differences smaller than `than`? A one-sided p-value, as `p_greater`.

    differences   (…, n), one for each seed
    than          a number
    """
    return p_greater(-np.asarray(differences, float), -than)


def p_different(differences: Any) -> Any:
    """Are the differences not zero? A two-sided p-value, as `p_greater`.

    differences   (…, n), one for each seed
    """
    return np.minimum(1, 2 * np.minimum(p_greater(differences), p_less(differences)))


def p_equivalent(differences: Any, margin: float) -> Any:
    """Are the differences within ±margin? A p-value by TOST, two one-sided tests.

    One test shows that they are above −margin, the other that they are below +margin.

    differences   (…, n), one for each seed
    margin        the largest difference that does not matter, above 0
    Returns       the larger of the two p-values, (…)
    Raises        ValueError for a margin that is not above 0
    Source        Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15
    """
    if not margin > 0:
        raise ValueError(f"p_equivalent: margin is {margin}, expected a number above 0")
    return np.maximum(p_greater(differences, -margin), p_less(differences, margin))


def p_t(differences: Any) -> float:
    """Is the mean difference not zero? Student's paired t-test, two-sided.

    differences   (n,)
    Returns       a p-value; 1 for a single seed; NaN when all are equal, since there is no spread
    """
    differences = _rounded(differences)
    if len(differences) < 2:
        return 1.0
    if _all_equal(differences):
        return np.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def p_rising(table: Any) -> Any:
    """Do the values rise from the first column to the last? Page's test; for two `p_greater`.

    table     (…, S, K): for each seed the values at K settings, in order
    Returns   one-sided p-values (…)
    Source    Page 1963, J. American Statistical Association 58
    """
    table = _rounded(table)
    if table.shape[-1] < 3:
        return p_greater(table[..., -1] - table[..., 0])
    if table.ndim > 2:
        return np.array([p_rising(each) for each in table])
    if len(table) < 2:
        return 1.0
    return float(stats.page_trend_test(table).pvalue)


def changes(table: Any, x: Any) -> np.ndarray:
    """For each seed, how much a straight line through its values rises over the range of x.

    table     (S, K)
    x         (K,), rising, at least two
    Returns   (S,)
    """
    slopes = np.polynomial.polynomial.polyfit(x, np.transpose(table), 1)[1]
    return slopes * (x[-1] - x[0])


def p_mcnemar(only_first: int, only_second: int) -> float:
    """Is one of two classifiers better on the same images? McNemar's exact test.

    Only those images count that exactly one of them classifies correctly. If both were equally
    good, it would be a matter of chance which of the two that is.

    only_first, only_second   numbers of images
    Returns                   a two-sided p-value
    """
    images = only_first + only_second
    return float(stats.binomtest(only_first, images).pvalue) if images else 1.0


def holm(p_values: Any) -> np.ndarray:
    """p-values made larger, so that any false alarm among all m tests has probability α at most.

    The i-th smallest of m is multiplied by m − i, i = 0 … m−1. Then each is made at least as large
    as those before it.

    p_values   (m,)
    Returns    (m,), in the same order
    Raises     ValueError for numbers that are not from 0 to 1
    Source     Holm 1979, Scandinavian Journal of Statistics 6
    """
    p_values = np.asarray(p_values, float)
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"holm: {p_values} are not p-values")
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def student_interval(values: Any) -> tuple[float, float]:
    """A 95 % interval of the mean of many values, θ̄ ± t(0.975, n − 1) s/√n.

    values    (n,), finite
    Returns   (low, high); both are the value itself if all are equal; NaN for fewer than
              `LEAST_SEEDS` values
    Raises    ValueError when a value is not finite
    Source    Student 1908, Biometrika 6
    """
    values = _rounded(values)
    if len(values) < LEAST_SEEDS:
        return np.nan, np.nan
    if _all_equal(values):
        return float(values[0]), float(values[0])
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    reach = special.stdtrit(len(values) - 1, 1 - ALPHA / 2) * error
    return float(mean - reach), float(mean + reach)


def interval(values: Any) -> tuple[float, float]:
    """A 95 % interval of the mean of a few values, which may be skewed.

    At each end the farther of two, with t = t(0.975, n − 1) and γ the sample's skewness:

    Student   θ̄ ± t s/√n
    Hall      θ̄ − g(± t) s/√n,  g(q) = 3/a · ((1 + a (q − a/6))^⅓ − 1),  a = γ/√n

    Of 100 of Student's intervals 95 contain the true mean, if the values are normal. If they are
    exponential, only 88 do at n = 5, and 90 at n = 10. Hall's ends follow the skewness, but with
    few values one of them is too near. So many in 100 contain the mean if both are used:

                   n = 5   n = 10   n = 20
    normal            97       96       96
    gamma (4)         96       96       96      skewness 1
    exponential       94       95       96      skewness 2

    For normal values they are longer than Student's: by 40 % at n = 5, by 10 % at n = 10, and by
    4 % at n = 20.

    values    (n,), finite
    Returns   (low, high); both are the value itself if all are equal; NaN for fewer than
              `LEAST_SEEDS` values
    Raises    ValueError when a value is not finite
    Source    Student 1908, Biometrika 6; Hall 1992, J. Royal Statistical Society B 54
    """
    low, high = student_interval(values)
    if not low < high:
        return low, high
    values = _rounded(values)
    n, mean, deviation = len(values), values.mean(), values.std(ddof=1)
    cubes = (((values - mean) / deviation) ** 3).sum()
    a = n / ((n - 1) * (n - 2)) * cubes / np.sqrt(n)
    if abs(a) > 1e-6:
        q = special.stdtrit(n - 1, [1 - ALPHA / 2, ALPHA / 2])  # t and −t
        g = 3 / a * (np.cbrt(1 + a * (q - a / 6)) - 1)
        hall = mean - g * deviation / np.sqrt(n)
        low, high = min(low, float(hall[0])), max(high, float(hall[1]))
    return low, high


def middle(cells: np.ndarray) -> np.ndarray:
    """The mean over the middle half of the cells; the lowest and the highest quarter are left out.

    A median would also be safe from a diverged run. But accuracies are whole numbers of images, so
    most differences of medians would be zero.

    cells     (C, …)
    Returns   (…)
    """
    return stats.trim_mean(cells, 0.25, axis=0)


def best_of_the_others(values: np.ndarray) -> np.ndarray:
    """For each seed the setting that has the best mean over the other seeds.

    If we choose the best of five settings and then report its score, the score is too high: the
    setting is the best partly by luck. Here the other seeds choose, so this seed's luck has no part
    in the choice.

    values    (K, S), S at least 2
    Returns   (S,) indices in [0, K)
    Raises    ValueError for a NaN
    """
    if not np.isfinite(values).all():
        raise ValueError("best_of_the_others: values are missing: see `complete`")
    return (values.sum(axis=1, keepdims=True) - values).argmax(axis=0)


def complete(cells: np.ndarray) -> np.ndarray:
    """The largest part of a sweep, finished or not, in which nothing is missing.

    For a seed, a cell counts only if all its values were measured. Cells are left out one by one,
    each time the one without which most seeds are whole. Of all these parts the one is taken that
    has enough seeds for a test, if possible, and then most values.

    cells     (C, …, S), NaN where something was not measured
    Returns   (C', …, S') without NaN; C' or S' may be 0
    """
    measured = np.isfinite(cells)
    measured = measured.all(axis=tuple(range(1, cells.ndim - 1)))  # (C, S)
    best, chosen = (0, 0), cells[:0, ..., :0]
    kept = np.flatnonzero(measured.any(axis=1))
    while len(kept):
        lacking = ~measured[kept]
        seeds = ~lacking.any(axis=0)
        rank = min(seeds.sum(), LEAST_SEEDS), len(kept) * seeds.sum()
        if rank > best:
            best, chosen = rank, cells[kept][..., seeds]
        whole_without = (lacking.sum(axis=0) == lacking).sum(axis=1)
        worst = np.lexsort((lacking.sum(axis=1), whole_without))[-1]
        kept = np.delete(kept, worst)
    return chosen


def _rounded(values):
    """Values without their last digits, in which equal differences of accuracies may differ.

    Values that are missing raise ValueError: they would count as differences, without evidence.
    """
    values = np.asarray(values, float)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ValueError(
            f"{bad} of {values.size} values are not finite: leave those seeds out (`complete` does)"
        )
    return np.round(values, 13)


def _all_equal(values):
    return np.ptp(values, axis=-1) <= 1e-9 * abs(values).max(axis=-1)
