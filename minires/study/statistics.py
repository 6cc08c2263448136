"""The statistics of the study: how sure may one be of a difference between two methods?

Everything is paired. Two methods of one seed start from the same network and see the same batches,
so each seed gives one difference. The tests ask of these differences: are they above zero, or
below what matters? The test is Wilcoxon's, of signed ranks. Student's t asks the same of the mean.
But now and then a training diverges, and its accuracy is 10 %. One such difference among ten
makes the mean useless; among ranks it is only the largest.

`scipy.stats` does the arithmetic. The functions here add what study data need: differences that
are all zero or all equal, ties (an accuracy is a whole number of images), one or two seeds.

A test gives a p-value: the probability of differences at least as large as these if there were no
effect. Below `ALPHA` the effect counts as shown. An effect that is *not* shown may still be there.
To show that it is too small to matter needs a test of its own, `p_equivalent`.
"""

import numpy as np
from scipy import stats

ALPHA = 0.05
LEAST_SEEDS = 5  # all five of one sign have p = 1/32; with four, 1/16, nothing can be shown
EXACT = 13  # up to so many seeds all 2ⁿ signs are tried


def spread(values):
    """Mean and standard deviation (ddof = 1) over the last axis; NaN for one value.

    values   (…, S)
    Returns  two arrays (…)
    """
    values = np.asarray(values, float)
    if values.shape[-1] < 2:
        return values.mean(axis=-1), np.full(values.shape[:-1], np.nan)
    return values.mean(axis=-1), values.std(axis=-1, ddof=1)


def p_greater(differences, than=0.0):
    """How probable are such large differences, if above and below `than` were equally likely?

    Wilcoxon's signed-rank test, exact also where there are ties: all 2ⁿ signs are tried, for
    more than 13 seeds 2¹³ at random. Differences that equal `than` do not count.

    differences   (…, n), one for each seed
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
    # `stats.wilcoxon` would do just this where there are ties, in 20 times as long.
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


def p_less(differences, than=0.0):
    """How probable are such small differences, if above and below `than` were equally likely?"""
    return p_greater(-np.asarray(differences, float), -than)


def p_different(differences):
    """Two-sided: how probable are differences so far from zero, if there were no effect?"""
    return np.minimum(1, 2 * np.minimum(p_greater(differences), p_less(differences)))


def p_equivalent(differences, margin):
    """How probable are these differences, if the true ones were outside ±margin?

    TOST, two one-sided tests: they are shown to lie above −margin and below +margin.

    differences   (…, n), one for each seed
    margin        the largest difference that does not matter, above 0
    Returns       the larger of the two p-values, (…)
    Source        Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15
    """
    if not margin > 0:
        raise ValueError(f"p_equivalent: margin is {margin}, expected a number above 0")
    return np.maximum(p_greater(differences, -margin), p_less(differences, margin))


def p_t(differences):
    """Student's paired t-test, two-sided: as `p_different`, but of the mean.

    differences   (n,)
    Returns       1 for a single seed; where all are equal there is no spread, and no test: NaN
    """
    differences = _rounded(differences)
    if len(differences) < 2:
        return 1.0
    if _all_equal(differences):
        return np.nan
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def p_rising(table):
    """Do the columns rise from left to right? Page's test; for two columns `p_greater`.

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


def changes(table, x):
    """How much each seed's straight line through its values rises from the first x to the last.

    table     (S, K)
    x         (K,), rising, at least two
    Returns   (S,)
    """
    slopes = np.polynomial.polynomial.polyfit(x, np.transpose(table), 1)[1]
    return slopes * (x[-1] - x[0])


def p_mcnemar(only_first, only_second):
    """Does one of two classifiers do better on the same images? McNemar's exact test.

    Only the images count that exactly one of them got right. If both were equally good, each of
    these would be a toss of a coin.

    only_first, only_second   numbers of images
    Returns                   a two-sided p-value
    """
    images = only_first + only_second
    return float(stats.binomtest(only_first, images).pvalue) if images else 1.0


def holm(p_values):
    """p-values made larger, so that all the tests together give a false alarm with probability α.

    The i-th smallest of m is multiplied by m − i, i = 0 … m−1, and none may come out below
    one that was smaller than itself.

    p_values   (m,)
    Returns    (m,), in the same order
    Source     Holm 1979, Scandinavian Journal of Statistics 6
    """
    p_values = np.asarray(p_values, float)
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"holm: {p_values} are no p-values")
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def interval(values):
    """A 95 % interval of the mean, by Student's t.

    mean ± t(0.975, n − 1) · s/√n

    Of 100 such intervals of normal values 95 hold the true mean, at any n. Of skewed values fewer
    do: of exponential ones 88 at n = 5 and 90 at n = 10. Bootstrap intervals are worse there: with
    so few values, samples of the sample vary too little.

    values    (n,), finite
    Returns   (low, high); the value itself where all are equal; NaN below `LEAST_SEEDS` values
    Raises    ValueError when a value is not finite
    Source    Student 1908, Biometrika 6
    """
    values = _rounded(values)
    if len(values) < LEAST_SEEDS:
        return np.nan, np.nan
    if _all_equal(values):
        return float(values[0]), float(values[0])
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(1 - ALPHA)
    return float(low), float(high)


def middle(cells):
    """The mean over the middle half of the cells: a quarter is cut off at either end.

    A median would be as safe from a diverged run. But accuracies are whole numbers of images, so
    most differences of medians would be zero.

    cells     (C, …)
    Returns   (…)
    """
    return stats.trim_mean(cells, 0.25, axis=0)


def best_of_the_others(values):
    """For each seed the setting that is best by the mean of the other seeds.

    To pick the best of five settings and then to test how good it is gives too high a score: part
    of what made it the best is luck. Picked by the other seeds, it owes nothing to this one's luck.

    values    (K, S), S at least 2
    Returns   (S,) indices in [0, K)
    """
    if not np.isfinite(values).all():
        raise ValueError("best_of_the_others: values are missing: see `complete`")
    return (values.sum(axis=1, keepdims=True) - values).argmax(axis=0)


def complete(cells):
    """The largest part of a sweep, finished or not, in which nothing is missing.

    A cell counts when all it consists of is there for a seed. Enough seeds to test come
    first, then as many numbers as possible.

    cells     (C, …, S), NaN where something was not measured
    Returns   (C', …, S') without NaN; C' or S' may be 0
    """
    measured = np.isfinite(cells)
    measured = measured.all(axis=tuple(range(1, cells.ndim - 1)))  # (C, S)
    best, chosen = (0, 0), cells[:0, ..., :0]
    for least in sorted(set(measured.sum(axis=1)) - {0}):
        kept = measured.sum(axis=1) >= least
        seeds = measured[kept].all(axis=0)
        rank = min(seeds.sum(), LEAST_SEEDS), kept.sum() * seeds.sum()
        if rank > best:
            best, chosen = rank, cells[kept][..., seeds]
    return chosen


def _rounded(values):
    """Finite values without their last digits, in which equal differences of accuracies differ.

    A missing value is no evidence: it would count as a rank, and as a difference.
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
