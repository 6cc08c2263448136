"""What a judgement says, in a test, in pytest and on a terminal of another age."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import strategies as st

from minires.testing import (
    Falsified,
    Unfinished,
    check_average,
    check_convolution,
    check_gradient,
    check_harm,
    check_log_softmax,
    check_matmul,
    check_merge,
    check_metric,
    check_moments,
    check_optimizer,
    check_paired_difference,
    check_pooling,
    check_reestimation,
    check_running_statistics,
    check_sampler,
    check_unbroadcast,
    check_weights_of,
    judging,
    mistakes,
)
from minires.testing import references as right
from minires.testing.judging import Property, Wrong, examine, readable, show, show_both


class DividedByNMinusOne(right.Welford):
    @property
    def variance(self):
        return self.squares / max(self.count - 1, 1)


def text_of(check, *arguments, **options):
    with pytest.raises(Falsified) as falsified:
        check(*arguments, **options)
    return str(falsified.value)


def test_a_failure_is_three_lines_and_what_holds():
    lines = text_of(check_paired_difference, lambda a, b: ((a - b).mean(), 0.0)).splitlines()
    assert lines == [
        "✗ its standard error is s / √n",
        "    smallest counterexample: a [0, 0], b [0, 1]    yours: 0    right: 0.5",
        "    s: the sample standard deviation of the differences",
        "✓ the difference is the mean of a − b (40 samples)",
    ]


def test_of_several_failures_the_first_is_explained_and_the_others_are_named():
    text = text_of(check_moments, DividedByNMinusOne)
    assert text.startswith("✗ the variance is numpy.var\n")
    assert "smallest counterexample: updates [0.0, 1.0]    yours: 0.5    right: 0.25" in text
    assert "divided by n − 1, and eq. 3 divides by n" in text
    assert text.count("smallest counterexample") == 1
    assert "\n✗ a large mean leaves the variance as it is" in text
    assert "✓ the mean is numpy.mean (" in text


def test_a_summary_lists_what_holds():
    summary = check_unbroadcast(right.unbroadcast)
    assert str(summary) == repr(summary)
    assert len(summary.held) == 4
    assert str(summary).startswith("✓ equal shapes: nothing changes (30 arrays)")


def test_the_judged_code_s_own_error_is_told_with_its_input_and_chained():
    def broken(gradient, shape):
        if gradient.ndim > 1:
            raise KeyError("no such axis")
        return right.unbroadcast(gradient, shape)

    with pytest.raises(Falsified) as falsified:
        check_unbroadcast(broken)
    text = str(falsified.value)
    assert "yours: raises KeyError: 'no such axis'    right: no error" in text
    assert "smallest counterexample: gradient [[" in text
    assert "raised in line" in text
    assert ", in broken" in text
    assert isinstance(falsified.value.__cause__, KeyError)


def test_an_exercise_that_is_not_done_says_so():
    class Stub:
        def __init__(self, shape):
            """Keep what you need."""

        def update(self, theta):
            raise NotImplementedError("update is yours to write")

    with pytest.raises(NotImplementedError) as unfinished:
        check_moments(Stub)
    assert isinstance(unfinished.value, Unfinished)
    assert isinstance(unfinished.value, AssertionError)
    assert str(unfinished.value) == (
        "not written yet: raises NotImplementedError: update is yours to write"
    )


@pytest.mark.parametrize(
    ("answer", "yours"),
    [
        (
            lambda probabilities: None,
            "None    right: an array (1, 2)\n    nothing comes back: is a `return` missing?",
        ),
        (
            lambda probabilities: "high",
            "str 'high'    right: an array (1, 2)\n    another form is asked for: see Returns",
        ),
        (lambda probabilities: probabilities, "shape (1, 1, 2)"),
        (lambda: 3, "raises TypeError"),
    ],
)
def test_what_is_no_answer_is_named(answer, yours):
    text = text_of(check_average, answer)
    assert f"yours: {yours}" in text


def convolve_with_zeros_on_two_sides(x, w, stride=1, padding=0):
    return right.conv2d(np.pad(x, [(0, 0), *[(0, 2 * padding)] * 2, (0, 0)]), w, stride)


def one_maximum_for_the_batch(logits):
    z = logits - logits.max()
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def takes_the_first_for_all(batches):
    batches[-1][...] = batches[0][0]
    return right.reestimation(batches)


class WithoutTheFactor(right.Welford):
    def update(self, theta):
        self.count += 1
        d = theta - self.mean
        self.mean = self.mean + d / self.count
        self.squares = self.squares + d**2


@pytest.mark.parametrize(
    ("check", "answer", "hint"),
    [
        (check_matmul, lambda x, w, g: (g @ w.T, x.T @ g / len(x)), "divided by the number of"),
        (check_matmul, lambda x, w, g: (x.T @ g, g @ w.T), "they are exchanged"),
        (check_log_softmax, one_maximum_for_the_batch, "each row needs its own"),
        (lambda step: check_optimizer(step, "sgd"), lambda theta, g, rate: None, "θ is as before"),
        (check_convolution, convolve_with_zeros_on_two_sides, "p zeros on each of the four sides"),
        (check_average, lambda p: np.exp(np.log(p).mean(0)) / np.exp(np.log(p).mean(0)).sum(
            -1, keepdims=True), "the mean of the logarithms"),
        (check_sampler, lambda mean, variance, k, rng: np.stack([mean + variance**0.5
            * own.standard_normal() for own in rng.spawn(k)]), "one ε: each needs its own"),
        (check_moments, WithoutTheFactor, "the factor (n − 1)/n is missing"),
        (check_merge, mistakes.halves_weigh_the_same, "a mean weighs as much as its count"),
        (check_merge, mistakes.forgets_the_distance, "the means differ too"),
        (check_merge, lambda *halves: None, "is a `return` missing?"),
        (check_weights_of, lambda nodes, arrays: None, "is a `return` missing?"),
        (check_running_statistics, lambda *arguments: None, "is a `return` missing?"),
        (check_paired_difference, mistakes.becomes_the_differences, "others still need this array"),
        (check_reestimation, takes_the_first_for_all, "others still need this array"),
        (check_unbroadcast, mistakes.cuts_off_fractions, "cuts off fractions"),
        (check_harm, mistakes.population_harm, "std(ddof=1)"),
        (lambda step: check_optimizer(step, "adam"), mistakes.epsilon_under_the_root, "√v̂ + ε"),
    ],
    ids=["rows", "exchanged", "one maximum", "still", "zeros", "logits", "one ε", "factor",
         "halves", "distance", "nothing", "no names", "no statistics", "a −= b", "a list",
         "whole numbers", "n", "ε"],
)  # fmt: skip
def test_a_known_mistake_is_named(check, answer, hint):
    assert hint in text_of(check, answer).splitlines()[2]


def test_of_several_mistakes_that_give_the_answer_the_one_that_fits_most_inputs_is_named():
    """After one update a mean of θ² gives the same; after several it does not."""
    text = text_of(check_moments, WithoutTheFactor)
    assert "updates [1.0]" in text.splitlines()[1]
    assert "the mean of θ²" not in text
    wrong = Wrong(1, 0, ("rare", "frequent", "as frequent"))
    others = [Wrong(1, 0, ("frequent", "as frequent")), Wrong(1, 0, ("as frequent", "frequent"))]
    assert judging._hint_of(wrong, [wrong, *others]) == "frequent; or: as frequent"
    assert judging._hint_of(wrong, [wrong, *[Wrong(1, 0)] * 6]) == ""


def test_one_known_mistake_is_not_named_where_larger_inputs_show_another():
    """With two pairs s/n is what s over n instead of n − 1 gives."""
    by_n = lambda a, b: ((a - b).mean(), (a - b).std(ddof=1) / len(a))
    assert text_of(check_paired_difference, by_n).splitlines()[2].strip() == (
        "divide by √n, not by n"
    )


def test_an_error_is_told_with_the_line_that_called_numpy():
    def third_axis(probabilities):
        return np.mean(probabilities, axis=3)

    line = third_axis.__code__.co_firstlineno + 1
    assert f"raised in line {line}, in third_axis" in text_of(check_average, third_axis)


def test_nothing_chosen_is_not_taken_for_the_wrong_sign():
    assert "The sign is" not in text_of(check_harm, lambda settings, plain, mean: [])


def test_an_array_that_the_judged_code_changes_is_named():
    text = text_of(check_paired_difference, mistakes.becomes_the_differences)
    assert "yours: a is changed to [0, -1]    right: a as it was, [0, 0]" in text

    def unnamed(*arrays):
        arrays[1][...] = 7
        return right.paired_difference(*arrays)

    assert "yours: argument 2 is changed to [7, 7]" in text_of(check_paired_difference, unnamed)


def test_a_list_that_the_judged_code_sorts_or_empties_is_its_own():
    def empties(batches):
        batches.sort(key=len)
        found = right.reestimation(list(batches))
        batches.clear()
        return found

    assert len(check_reestimation(empties).held) == 4


def test_a_counterexample_of_two_halves_shows_what_was_given():
    assert (
        "smallest counterexample: counts 1 and 1, means [1] and [0], variances [0] and [0]"
        "    yours: 0    right: 0.25\n"
    ) in text_of(check_merge, mistakes.forgets_the_distance)
    told = "counts 2 and 1, means [0.5] and [1], variances [0.25] and [0]    yours: 0.75"
    assert told in text_of(check_merge, mistakes.halves_weigh_the_same)
    text = text_of(check_merge, lambda *halves: (halves[0] + halves[3], halves[1]))
    assert "yours: 2 things    right: three things: count, mean, variance" in text


def test_a_gradient_s_counterexample_shows_g():
    """Without it nobody can compute the right answer by hand."""
    times = lambda factor: lambda *arrays: [factor * own for own in right.conv2d_backward(*arrays)]
    text = text_of(check_convolution, right.conv2d, times(2))
    assert ", g [[[[" in text.splitlines()[1]
    text = text_of(check_pooling, lambda x: right.max_pool(x), lambda x, g: 0 * x)
    assert ", g [[[[" in text.splitlines()[1]
    text = text_of(check_gradient, lambda x: (x**2, (lambda g: 2 * x,)), [(2,)])
    assert ", g [" in text.splitlines()[1]


class OldFormula:
    def __init__(self, shape):
        self.count, self.total, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def update(self, theta):
        self.count += 1
        self.total += theta
        self.squares += theta**2

    mean = property(lambda self: self.total / self.count)
    variance = property(lambda self: self.squares / self.count - self.mean**2)


def test_a_difference_of_squares_fails_for_three_equal_numbers():
    """The example around which lesson 6 and the plan of the hour are built."""
    assert text_of(check_moments, OldFormula).startswith(
        "✗ a constant stream has variance 0\n"
        "    smallest counterexample: updates [0.1, 0.1, 0.1]    yours: -1.73e-18    right: 0\n"
    )


class KeepsTheta:
    def __init__(self, shape):
        self.seen = []

    def update(self, theta):
        self.seen.append(theta)

    mean = property(lambda self: np.mean(self.seen, axis=0))
    variance = property(lambda self: np.var(self.seen, axis=0))


def test_an_array_that_is_kept_shows_after_one_update():
    text = text_of(check_moments, KeepsTheta)
    assert (
        "counterexample: updates [0.0]    yours: 99    right: 0\n    an array of θ itself" in text
    )


def test_nothing_where_a_pair_is_wanted_is_named_too():
    text = text_of(check_paired_difference, lambda a, b: None)
    assert "yours: None    right: a pair: difference, error" in text
    assert "is a `return` missing?" in text


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: check_metric(right.nll, "loss"), "kind is 'loss', expected one of accuracy, nll"),
        (lambda: check_optimizer(right.sgd, "lion"), "kind is 'lion', expected one of sgd, adam"),
        (lambda: check_average(right.vote, "median"), "rule is 'median', expected one of"),
        (lambda: check_pooling(right.max_pool, kind="min"), "kind is 'min', expected 'max' or"),
    ],
)
def test_kinds_that_there_are_not_are_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_code_that_answers_otherwise_each_time_is_caught():
    """Hypothesis alone would call that flaky and say nothing of the input."""
    calls = []

    def moody(case):
        calls.append(case)
        return Wrong(1, 2) if len(calls) % 3 == 0 else None

    failure, _ = examine(Property("moods", st.integers(0, 100), moody, str))
    assert failure is not None


def test_without_stride_and_padding_these_are_not_asked_for():
    plain = lambda x, w: right.conv2d(x, w)
    assert not any("stride" in held or "padding" in held for held in check_convolution(plain).held)
    held = check_convolution(right.conv2d, right.conv2d_backward).held
    assert sum("stride" in own for own in held) == 3


def test_a_gradient_between_the_slopes_of_a_kink_is_right():
    check_gradient(lambda x: (np.abs(x - 1), lambda g: g * np.sign(x - 1)), [(3,)])
    text = text_of(check_gradient, lambda x: (np.abs(x - 1), lambda g: 3 * g), [(3,)])
    assert "the gradient is the difference quotient" in text


@pytest.mark.parametrize(
    ("yours", "expected", "texts"),
    [
        (0.5, 0.25, ("0.5", "0.25")),
        (1 + 1e-9, 1.0, ("1.000000001", "1")),
        (float("nan"), 0.0, ("nan", "0")),
        (float("inf"), 1e7, ("inf", "1e+07")),
        (np.array([1.0, 2.0]), np.array([1.0, 2.5]), ("[1, 2]", "[1, 2.5]")),
    ],
)
def test_numbers_are_short_but_differ(yours, expected, texts):
    assert show_both(yours, expected) == texts


def test_a_large_array_is_named_by_its_shape():
    assert show(np.zeros((9, 9))) == "an array (9, 9)"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "utf-8"])
def test_every_terminal_can_show_a_failure(encoding):
    text = text_of(check_moments, DividedByNMinusOne)
    shown = readable(text, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    shown.encode(encoding)
    if encoding == "utf-8":
        assert shown == text
    else:
        assert shown.startswith("x the variance is numpy.var")
        assert "divided by n - 1" in shown
        assert "\\u" not in shown


def test_pytest_gives_one_test_a_property_and_no_file_stays(tmp_path):
    (tmp_path / "test_answers.py").write_text(
        "from minires.testing import metric_suite\n"
        "from minires.testing import references as right, mistakes as wrong\n"
        "test_mine = metric_suite(right.nll, 'nll')\n"
        "test_other = metric_suite(wrong.nll_sum, 'nll')\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_other[several rows: the definition]" in done.stdout
    assert "smallest counterexample: probabilities" in done.stdout
    assert "that is the sum: divide by the number of rows" in done.stdout
    held = len(check_metric(right.nll, "nll").held)
    assert held > 1
    assert f"1 failed, {2 * held - 1} passed" in done.stdout
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"test_answers.py"}
