"""The statistics of the study: how sure may one be of a difference between two methods?

Everything is paired. Two methods of one seed start from the same network and see the same
batches, so each seed gives one difference, and the tests ask about these: is their mean above
zero, or surely smaller than what matters? `scipy.stats` does the arithmetic. What stands here
sees to the cases that study data are full of and textbooks are not: differences that are all
zero or all equal, ties (an accuracy is a whole number of images), one or two seeds.

A test gives a p-value: how probable differences at least like these would be, were there no
effect. Below `ALPHA` the effect counts as shown. That an effect was *not* shown says nothing;
to show that there is none to speak of takes a test of its own, `p_equivalent`.
"""

import numpy as np
from scipy import stats

ALPHA = 0.05
LEAST_SEEDS = 4  # with three, a spread is hardly known: two degrees of freedom
RESAMPLES = 9999
EXACT = 13  # up to so many seeds all 2ⁿ signs can be tried


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
    """How probable is so large a mean, were the true one `than` or less? Paired t-test.

    Differences that are all equal have no spread to compare with; then only their sign
    counts, and the test is the sign test: 2⁻ⁿ.

    differences   (…, n), one for each seed
    Returns       one-sided p-values (…); 1 for a single seed
    """
    differences = _rounded(differences)
    *cells, seeds = differences.shape
    if seeds < 2:
        return np.ones(cells)[()]
    flat = _all_equal(differences)
    excess = _rounded(differences[..., 0] - than)
    p_values = np.where(excess > 0, 0.5**seeds, 1.0)
    if not flat.all():
        found = stats.ttest_1samp(differences[~flat], than, axis=-1, alternative="greater")
        p_values[~flat] = found.pvalue
    return p_values[()]


def p_less(differences, than=0.0):
    """How probable is so small a mean, were the true one `than` or more? As `p_greater`."""
    return p_greater(-np.asarray(differences, float), -than)


def p_different(differences):
    """Two-sided: how probable is a mean so far from zero, were the true one zero?"""
    return np.minimum(1, 2 * np.minimum(p_greater(differences), p_less(differences)))


def p_equivalent(differences, margin):
    """How probable are these differences, were the true mean outside ±margin?

    TOST, two one-sided tests: the mean is shown to be above −margin and below +margin.

    differences   (…, n), one for each seed
    margin        the largest difference that does not matter, above 0
    Returns       the larger of the two p-values, (…)
    Source        Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15
    """
    return np.maximum(p_greater(differences, -margin), p_less(differences, margin))


def p_wilcoxon(differences):
    """Two-sided signed-rank test: as `p_different`, but of ranks, so no outlier can sway it."""
    differences = _rounded(differences)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    ranks = stats.rankdata(abs(differences))
    ties = len(np.unique(ranks)) < len(ranks)
    if ties and len(ranks) <= EXACT:
        # Exact: all signs of the ranks. `stats.wilcoxon` would do just this, in 20 times as long.
        signed = np.sign(differences) * ranks
        test = stats.permutation_test(
            (signed,), np.mean, permutation_type="samples", n_resamples=2**EXACT, vectorized=True
        )
    else:
        test = stats.wilcoxon(differences, method="asymptotic" if ties else "auto")
    return float(test.pvalue)


def p_rising(table):
    """Do the columns rise from left to right? Page's test; for two columns the paired t-test.

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
    """What each seed's straight line through its values rises from the first x to the last.

    table     (S, K)
    x         (K,), rising, at least two
    Returns   (S,)
    """
    slopes = np.polynomial.polynomial.polyfit(x, np.transpose(table), 1)[1]
    return slopes * (x[-1] - x[0])


def p_mcnemar(only_first, only_second):
    """Does one of two classifiers do better on the same images? McNemar's exact test.

    Only the images count that one of them alone got right; were both as good, each of these
    would be a toss of a coin.

    only_first, only_second   numbers of images
    Returns                   a two-sided p-value
    """
    images = only_first + only_second
    return float(stats.binomtest(only_first, images).pvalue) if images else 1.0


def holm(p_values):
    """p-values made larger so that of all the tests together only α err.

    The i-th smallest of m is multiplied by m − i, i = 0 … m−1, and none may come out below
    one that was smaller than itself.

    p_values   (m,)
    Returns    (m,), in the same order
    Source     Holm 1979, Scandinavian Journal of Statistics 6
    """
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def interval(values):
    """A 95 % bootstrap interval of the mean, bias-corrected and accelerated (BCa).

    values    (n,)
    Returns   (low, high); the value itself where all are equal, NaN where there is only one
    Source    Efron 1987, J. American Statistical Association 82
    """
    values = _rounded(values)
    if len(values) < 2:
        return np.nan, np.nan
    if _all_equal(values):
        return float(values[0]), float(values[0])
    # A fixed seed: the same data give the same interval.
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def best_of_the_others(values):
    """For each seed the setting that is best by the mean of the other seeds.

    Whoever picks the best of five settings and then tests how good it is flatters it: part
    of what made it the best is luck. Picked by the other seeds, it owes nothing to this one's.

    values    (K, S), S at least 2
    Returns   (S,) indices in [0, K)
    """
    return (values.sum(axis=1, keepdims=True) - values).argmax(axis=0)


def complete(cells):
    """The largest part of a sweep, as yet unfinished perhaps, in which nothing is missing.

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
    """Away with the last digits, in which equal differences of accuracies differ."""
    return np.round(np.asarray(values, float), 13)


def _all_equal(values):
    return np.ptp(values, axis=-1) <= 1e-9 * abs(values).max(axis=-1)
