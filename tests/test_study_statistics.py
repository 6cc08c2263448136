"""The study's statistics: against hand calculation, published examples, and awkward data."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from minires.study import statistics
from minires.study.statistics import (
    best_of_the_others,
    changes,
    complete,
    holm,
    interval,
    middle,
    p_different,
    p_equivalent,
    p_greater,
    p_less,
    p_mcnemar,
    p_rising,
    p_t,
    spread,
)

# Hours of sleep that two drugs added to ten patients' (Student 1908, after Cushny and Peebles).
SLEEP = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])

# Differences of accuracy as they come: whole images of ten thousand, few of them, many ties.
images = st.lists(st.integers(-3, 3), min_size=1, max_size=12).map(lambda n: np.array(n) / 10_000)


def test_t_is_students_own_example():
    """Student's table gave odds of 0.9985 that the second drug is better; t is 4.06, df 9."""
    assert p_t(SLEEP) == pytest.approx(0.00283, abs=5e-6)
    assert p_t(-SLEEP) == p_t(SLEEP)


def test_t_needs_a_spread():
    """The last digits, in which 0.9931 − 0.9930 and 0.9912 − 0.9911 differ, are none."""
    assert np.isnan(p_t(np.array([0.9931, 0.9912, 0.9925]) - [0.9930, 0.9911, 0.9924]))
    assert np.isnan(p_t(np.zeros(4)))
    assert p_t([0.1]) == 1


def signed_ranks(differences):
    """P(W₊ ≥ seen): all 2ⁿ signs of the ranks, tried in a loop."""
    differences = differences[differences != 0]
    ranks = stats.rankdata(abs(differences))
    sums = [
        sum(rank for place, rank in enumerate(ranks) if signs >> place & 1)
        for signs in range(2 ** len(ranks))
    ]
    return np.mean(np.array(sums) >= ranks[differences > 0].sum() - 1e-9)


@pytest.mark.parametrize(
    "differences",
    [[1, 2, 3, 4, 5], [1, 1, 1, -1, 2, 2], [0, 0, 1, 1, -2, 3], [2, -1], [3, 3, 3], [0, 0, 0]],
)
def test_signed_ranks_are_exact_with_ties_and_zeros(differences):
    differences = np.array(differences) / 10_000
    assert p_greater(differences) == pytest.approx(signed_ranks(differences))
    assert p_less(differences) == pytest.approx(signed_ranks(-differences))


def test_signed_ranks_are_scipys_where_there_are_no_ties():
    differences = np.random.default_rng(5).normal(0.3, 1, 9)
    assert p_greater(differences) == pytest.approx(
        stats.wilcoxon(differences, alternative="greater", method="exact").pvalue
    )
    assert p_different(differences) == pytest.approx(
        stats.wilcoxon(differences, method="exact").pvalue
    )


def test_wilcoxons_limits():
    """Five of a sign are 1 of 32; four can show nothing at α = 0.05; one shows nothing."""
    assert p_greater([1, 2, 3, 4, 5]) == 1 / 32
    assert p_greater([1, 2, 3, 4]) == 1 / 16 > statistics.ALPHA
    assert p_greater([5.0]) == 1
    assert p_different([1, 2, 3, 4, 5]) == 1 / 16


def test_ties_are_seen_through_rounding():
    """0.9931 − 0.9930 and 0.9912 − 0.9911 are the same number of images."""
    first = np.array([0.9931, 0.9912, 0.9925, 0.9921, 0.9908])
    second = np.array([0.9930, 0.9911, 0.9926, 0.9919, 0.9906])
    whole = np.round((first - second) * 10_000)
    assert p_greater(first - second) == pytest.approx(signed_ranks(whole))
    assert p_greater(first - second, 0.0001) == pytest.approx(signed_ranks(whole - 1))


def test_many_seeds_are_drawn_not_tried():
    rng = np.random.default_rng(6)
    differences = rng.normal(0.5, 1, 20)
    expected = stats.wilcoxon(differences, alternative="greater", method="exact").pvalue
    assert p_greater(differences) == pytest.approx(expected, abs=0.005)
    assert p_greater(differences) == p_greater(differences)


def test_an_outlier_sways_the_mean_and_not_the_ranks():
    differences = np.array([0.001] * 9 + [0.89]) + np.arange(10) * 1e-5
    assert p_t(differences) > 0.05
    assert p_greater(differences) == 1 / 1024


def test_a_threshold_moves_the_null():
    assert p_greater(SLEEP, than=1) == pytest.approx(p_greater(SLEEP - 1))
    assert p_less(SLEEP, than=2) == pytest.approx(p_less(SLEEP - 2))
    assert p_less(SLEEP, than=5) == 1 / 1024


def test_equivalence_needs_both_sides():
    centred = SLEEP - np.median(SLEEP)
    for shift, shown in ((0, True), (1.9, False), (-1.9, False), (5, False)):
        assert bool(p_equivalent(centred + shift, 2) < 0.05) is shown
    assert p_equivalent(centred, 2) == max(p_greater(centred, -2), p_less(centred, 2))


def test_many_cells_at_once_are_each_alone():
    rng = np.random.default_rng(4)
    cells = np.round(rng.normal(0.0003, 0.0004, (3, 4, 6)), 4)
    cells[0, 0], cells[0, 1], cells[0, 2] = 0, 0.0001, -0.0001
    for p in (p_greater, p_less, p_different, lambda d: p_equivalent(d, 0.0005)):
        np.testing.assert_allclose(p(cells), [[p(d) for d in row] for row in cells], rtol=1e-9)
    np.testing.assert_allclose(p_rising(cells), [p_rising(table) for table in cells])


def test_no_difference_found_is_not_equivalence_shown():
    noise = np.array([-0.9, 1.1, -1.0, 0.8])
    assert p_different(noise) > 0.5
    assert p_equivalent(noise, 0.5) > 0.05


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_equal_differences_count_by_their_sign(count):
    same = np.full(count, 0.0001)
    sure = 0.5**count if count > 1 else 1.0
    assert p_greater(same) == p_less(-same) == sure
    assert p_less(same) == p_greater(-same) == 1
    assert p_equivalent(same, 0.0005) == p_equivalent(np.zeros(count), 0.0005) == sure
    assert p_greater(np.zeros(count)) == p_less(np.zeros(count)) == 1
    assert p_different(np.zeros(count)) == 1
    assert p_greater(same, than=0.0001) == 1


@given(images)
@settings(max_examples=20)
def test_tests_of_a_location_stand_all_data(differences):
    for p in (p_greater, p_less, p_different):
        assert 0 <= p(differences) <= 1
    assert 0 <= p_equivalent(differences, 0.0005) <= 1
    assert p_greater(differences) == p_less(-differences)
    assert np.isnan(p_t(differences)) or 0 <= p_t(differences) <= 1
    low, high = interval(differences)
    if len(differences) < statistics.LEAST_SEEDS:
        assert np.isnan([low, high]).all()
    else:
        assert low - 1e-12 <= differences.mean() <= high + 1e-12


# --- trends -------------------------------------------------------------------------------


def test_page_by_trying_every_order():
    """L = Σ_k k · (sum of the ranks in column k); how many orders within rows reach it?"""
    table = np.array([[0.1, 0.3, 0.2], [0.4, 0.6, 0.9], [0.5, 0.2, 0.7], [0.1, 0.2, 0.3]])

    def statistic(rows):
        return (stats.rankdata(rows, axis=1).sum(axis=0) * [1, 2, 3]).sum()

    orders = list(itertools.permutations(range(3)))
    reached = [
        statistic([row[list(order)] for row, order in zip(table, choice, strict=True)])
        for choice in itertools.product(orders, repeat=len(table))
    ]
    expected = np.mean(np.array(reached) >= statistic(table))
    assert p_rising(table) == pytest.approx(expected)
    assert expected < 0.05 < 0.9 < p_rising(table[:, ::-1])


small_tables = arrays(
    float,
    st.tuples(st.integers(1, 6), st.integers(2, 6)),
    elements=st.integers(-2, 2).map(lambda n: n / 10_000),
)


@given(small_tables)
def test_trends_stand_all_data(table):
    assert 0 <= p_rising(table) <= 1
    assert changes(table, np.arange(table.shape[1])).shape == (len(table),)


def test_a_trend_over_two_columns_is_a_paired_difference():
    table = np.stack([np.zeros(10), SLEEP], axis=1)
    assert p_rising(table) == p_greater(SLEEP)


def test_changes_of_straight_lines():
    x = np.array([0.05, 0.1, 0.2, 0.25])
    slopes = np.array([1.0, -2.0, 0.0])
    table = 7 + slopes[:, None] * x
    np.testing.assert_allclose(changes(table, x), slopes * 0.2, atol=1e-12)


# --- several tests, counts, intervals -----------------------------------------------------


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04; none below one before it."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.5, 0.9], [1, 1]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        # R: p.adjust(c(.01, .02, .03, .04, .05), "holm")
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
    ],
)
def test_holm(p_values, expected):
    np.testing.assert_allclose(holm(p_values), expected)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    """Holm's own wording: go up from the smallest, stop at the first p > α/(m − i)."""
    rejected, m = set(), len(p_values)
    for i, place in enumerate(np.argsort(p_values, kind="stable")):
        if not p_values[place] * (m - i) <= 0.05:
            break
        rejected.add(int(place))
    assert set(np.flatnonzero(holm(p_values) <= 0.05)) == rejected


def test_mcnemar_by_hand():
    assert p_mcnemar(0, 0) == 1
    assert p_mcnemar(0, 5) == pytest.approx(2 / 32)
    assert p_mcnemar(5, 0) == pytest.approx(2 / 32)
    assert p_mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert p_mcnemar(4, 4) == 1


@pytest.mark.parametrize("values", [SLEEP, -SLEEP, SLEEP[:5], [0, 0, 0, 0, 1], [1, 2, 3, 4, 5]])
def test_an_interval_ends_where_the_farther_of_two_statistics_says(values):
    """Student's T, and Hall's T + a T²/3 + a² T³/27 + a/6, which allows for the skewness a √n."""
    n, mean, deviation = len(values), np.mean(values), np.std(values, ddof=1)
    a = stats.skew(values, bias=False) / np.sqrt(n)
    for end, t in zip(interval(values), stats.t.ppf([0.975, 0.025], n - 1), strict=True):
        student = (mean - end) / (deviation / np.sqrt(n))
        hall = student + a * student**2 / 3 + a**2 * student**3 / 27 + a / 6
        nearer = min(np.sign(t) * student, np.sign(t) * hall)
        assert nearer == pytest.approx(abs(t), abs=1e-9)


def test_an_interval_of_symmetric_values_is_students():
    assert interval([1, 2, 3, 4, 5]) == pytest.approx(
        stats.ttest_1samp([1, 2, 3, 4, 5], 0).confidence_interval(0.95)
    )
    assert interval([0.25] * 5) == (0.25, 0.25)
    assert interval(np.zeros(5)) == (0, 0)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_below_five_seeds_there_is_no_interval(seeds):
    assert np.isnan(interval(SLEEP[:seeds])).all()
    assert np.isfinite(interval(SLEEP[:5])).all()


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, shape: rng.standard_normal(shape), 0),
        (lambda rng, shape: rng.gamma(4, size=shape), 4),
        (lambda rng, shape: rng.standard_exponential(shape), 1),
        (lambda rng, shape: -rng.standard_exponential(shape), -1),
    ],
    ids=["normal", "skewness 1", "skewness 2", "skewness -2"],
)
def test_intervals_cover_as_often_as_they_say(seeds, draw, truth):
    """95 % ± 2 of the intervals hold the mean, whether the values are skewed or not."""
    values = draw(np.random.default_rng(1), (4000, seeds))
    hits = np.mean([low < truth < high for low, high in map(interval, values)])
    error = 3 * np.sqrt(0.95 * 0.05 / len(values))  # of this simulation
    assert 0.93 - error <= hits <= 0.97 + error


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "test",
    [
        p_greater, p_less, p_different, p_t, interval,
        lambda d: p_equivalent(d, 0.1), lambda d: p_rising(np.stack([d, d, d], axis=-1)),
        lambda d: best_of_the_others(np.stack([d, d])), lambda d: p_greater(SLEEP, than=d[-1]),
    ],
)  # fmt: skip
def test_a_missing_value_is_no_evidence(test, missing):
    with pytest.raises(ValueError, match=r"not finite|missing"):
        test(np.append(SLEEP, missing))


def test_what_is_no_p_value_and_no_margin_is_refused():
    for bad in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="not p-values"):
            holm([0.5, bad])
        if not bad > 0:
            with pytest.raises(ValueError, match="margin"):
                p_equivalent(SLEEP, bad)


def test_spread_divides_by_one_less():
    mean, deviation = spread([[1, 2, 3, 4], [5, 5, 5, 5]])
    np.testing.assert_allclose(mean, [2.5, 5])
    np.testing.assert_allclose(deviation, [np.sqrt(5 / 3), 0])
    mean, deviation = spread([[3.0]])
    assert mean == 3
    assert np.isnan(deviation).all()


# --- choosing -----------------------------------------------------------------------------


def test_a_seed_has_no_say_in_what_is_best_for_it():
    values = np.array([[1.0, 1.0, 9.0], [2.0, 2.0, 2.0]])
    assert best_of_the_others(values).tolist() == [0, 0, 1]


def test_choosing_the_best_by_the_others_flatters_nobody():
    rng = np.random.default_rng(2)
    gains, flattered = [], []
    for _ in range(400):
        values = rng.standard_normal((5, 10))
        chosen = values[best_of_the_others(values), np.arange(10)]
        gains.append(chosen.mean())
        flattered.append(values.mean(axis=1).max())
    error = np.std(gains) / np.sqrt(len(gains))
    assert abs(np.mean(gains)) < 4 * error
    assert np.mean(flattered) > 10 * error


def test_the_middle_is_safe_from_lost_runs_and_finer_than_an_image():
    cells = np.array([[0.0, 0.0, 0.0, 0.0], [1, 0, 2, 1], [2, 0, 1, 2], [-900, 0, 3, 900]]) / 1e4
    np.testing.assert_allclose(middle(cells), np.array([0.5, 0, 1.5, 1.5]) / 1e4)
    np.testing.assert_allclose(middle(cells[:3]), np.array([1, 0, 1, 1]) / 1e4)
    np.testing.assert_allclose(middle(cells[:1]), cells[0])


def test_complete_takes_the_largest_part_without_holes():
    cells = np.arange(40.0).reshape(5, 8)
    np.testing.assert_array_equal(complete(cells), cells)
    holes = cells.copy()
    holes[4, 3:] = np.nan  # one cell has just begun: the others with all their seeds
    np.testing.assert_array_equal(complete(holes), cells[:4])
    holes = cells.copy()
    holes[2:, 7] = np.nan  # the last seed has just begun: all cells without it
    np.testing.assert_array_equal(complete(holes), cells[:, :7])
    assert complete(np.full((3, 4), np.nan)).size == 0
    assert complete(np.empty((0, 4))).size == 0


def test_complete_would_rather_have_seeds_enough_than_cells():
    cells = np.full((10, 5), np.nan)
    cells[:, :2] = 1
    cells[0] = 1
    assert complete(cells).shape == (1, 5)


def test_complete_parts_cells_with_equally_many_seeds():
    cells = np.ones((2, 10))
    cells[0, :4] = cells[1, 4:8] = np.nan
    assert complete(cells).shape == (1, 6)
    cells[0, :5] = cells[1, 5:] = np.nan
    assert complete(cells).shape == (1, 5)


def test_complete_takes_cells_of_many_numbers_whole():
    cells = np.ones((4, 3, 6))
    cells[1, 2, :] = np.nan
    assert complete(cells).shape == (3, 3, 6)


@given(arrays(float, st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(0, 6)),
              elements=st.sampled_from([0.0, np.nan])))  # fmt: skip
def test_complete_leaves_no_hole(cells):
    chosen = complete(cells)
    assert np.isfinite(chosen).all()
    assert chosen.ndim == cells.ndim
    assert (chosen.size > 0) == np.isfinite(cells).all(axis=1).any()


def test_false_alarms_are_as_rare_as_they_say():
    """Five per cent, within the spread of a thousand tries, on accuracies with ties."""
    rng = np.random.default_rng(3)
    null = np.round(rng.normal(0, 0.0004, (1000, 10)), 4)
    alarms = {
        "greater": (p_greater(null) < statistics.ALPHA).sum(),
        "equivalent": (p_equivalent(null + 0.0005, 0.0005) < statistics.ALPHA).sum(),
    }
    for name, count in alarms.items():
        assert 25 <= count <= 75, f"{name}: {count} of 1000"
