"""Accuracy, NLL, Brier and ECE, against slow definitions and numbers worked out by hand."""

import math

import numpy as np
import pytest

from minires.training.metrics import accuracy, brier, ece, evaluate, nll, top_k

METRICS = [accuracy, nll, brier, ece, top_k]
every_metric = pytest.mark.parametrize("metric", METRICS)


def predictions(rng, *shape, dtype=np.float64):
    """Probabilities (…, N, C) and labels (N,)."""
    weights = rng.standard_exponential(shape) ** 3
    probabilities = (weights / weights.sum(axis=-1, keepdims=True)).astype(dtype)
    return probabilities, rng.integers(0, shape[-1], shape[-2])


# Four images, three classes; right, right, wrong, wrong.
HAND = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
HAND_LABELS = np.array([0, 1, 1, 0])


def test_numbers_worked_out_by_hand():
    result = evaluate(HAND, HAND_LABELS)
    assert set(result) == {"accuracy", "nll", "brier", "ece"}
    assert result["accuracy"] == 0.5
    assert result["nll"] == pytest.approx(-math.log(0.6 * 0.8 * 0.25 * 0.2) / 4)
    # .16+.09+.01, .01+.04+.01, .25+.5625+.0625, .64+.04+.36
    assert result["brier"] == pytest.approx((0.26 + 0.06 + 0.875 + 1.04) / 4)
    # 0.6 is right once and wrong once: |1.2 − 1|; 0.8 right: 0.2; 0.5 wrong: 0.5
    assert result["ece"] == pytest.approx((0.2 + 0.2 + 0.5) / 4)


@every_metric
def test_leading_axes_are_networks(xp, rng, metric):
    probabilities, labels = predictions(rng, 2, 3, 50, 4, dtype=np.float32)
    together = metric(xp.asarray(probabilities), labels)
    assert together.shape == (2, 3)
    assert together.dtype == np.float64
    assert isinstance(together, np.ndarray)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(together[index], metric(probabilities[index], labels), 1e-12)


@every_metric
def test_one_network_gives_a_plain_number_and_nothing_is_changed(rng, metric):
    probabilities, labels = predictions(rng, 20, 4)
    before = probabilities.copy()
    assert isinstance(metric(probabilities, labels), float)
    np.testing.assert_array_equal(probabilities, before)


@every_metric
def test_sums_of_float32_are_in_float64(rng, metric):
    probabilities, labels = predictions(rng, 30_000, 10, dtype=np.float32)
    exact = metric(probabilities.astype(np.float64), labels)
    assert metric(probabilities, labels) == pytest.approx(exact, rel=1e-13)


def test_perfect_and_worst_predictions():
    perfect, labels = np.eye(3, dtype=np.float32), np.arange(3)
    assert evaluate(perfect, labels) == {"accuracy": 1, "nll": 0, "brier": 0, "ece": 0}
    worst = evaluate(perfect, (labels + 1) % 3)
    tiny = -math.log(np.finfo(np.float32).tiny)
    assert worst == {"accuracy": 0, "nll": pytest.approx(tiny), "brier": 2, "ece": 1}


def test_of_equal_probabilities_the_first_is_chosen():
    equal, labels = np.full((2, 4), 0.25), np.array([0, 3])
    assert accuracy(equal, labels) == 0.5
    assert [top_k(equal, labels, k) for k in (1, 3, 4)] == [0.5, 0.5, 1]


def test_a_label_is_among_the_k_most_probable_classes(rng):
    assert [top_k(HAND, HAND_LABELS, k) for k in (1, 2, 3)] == [0.5, 1, 1]
    probabilities, labels = predictions(rng, 2, 500, 12)
    best = np.argsort(-probabilities, axis=-1)[..., :5]
    expected = (best == labels[:, None]).any(axis=-1).mean(axis=-1)
    np.testing.assert_array_equal(top_k(probabilities, labels), expected)
    np.testing.assert_array_equal(top_k(probabilities, labels, 1), accuracy(probabilities, labels))
    with pytest.raises(ValueError, match="k is 0"):
        top_k(HAND, HAND_LABELS, 0)


def test_calibrated_predictions_have_no_calibration_error():
    probabilities = np.tile([0.75, 0.25], (8, 1))
    assert ece(probabilities, np.array([0, 0, 0, 1] * 2)) == 0
    assert ece(probabilities, np.array([0, 0, 1, 1] * 2), bins=1) == 0.25


def test_a_prediction_that_is_not_a_number_is_wrong():
    probabilities = HAND.copy()
    probabilities[0] = np.nan
    result = evaluate(probabilities, HAND_LABELS)
    assert result["accuracy"] == 0.25
    assert top_k(probabilities, HAND_LABELS, 9) == 0.75
    assert all(math.isnan(result[name]) for name in ("nll", "brier", "ece"))


@every_metric
@pytest.mark.parametrize(
    ("probabilities", "labels", "complaint"),
    [
        (HAND, [0, 1, 2, 3], "labels go from 0 to 3, expected 0 to 2"),
        (HAND, [0, 1, 2, -1], "labels go from -1 to 2"),
        (HAND, [0, 1, 2], r"4 images, but labels are \(3,\)"),
        (HAND, [[0, 1, 2, 0]], r"4 images, but labels are \(1, 4\)"),
        (HAND[0], [0], r"probabilities are \(3,\)"),
        (HAND[:0], [], r"probabilities are \(0, 3\), .* none empty"),
        (HAND, [], "labels are float64"),
        (HAND * 2, HAND_LABELS, "row 0 of the probabilities sums to 2 .*are these logits"),
        (HAND - [[0.7, 0, -0.7]], HAND_LABELS, "row 0 .* its smallest number is -0.1"),
        (np.where(HAND > 0.7, np.inf, HAND), HAND_LABELS, "row 1 of the probabilities sums to inf"),
        (HAND, [0.0, 1.0, 2.0, 0.0], "labels are float64 .4,., expected integers: use"),
        (HAND.astype(int), HAND_LABELS, "probabilities are int64"),
    ],
)
def test_what_does_not_fit_is_refused(metric, probabilities, labels, complaint):
    with pytest.raises(ValueError, match=f"{metric.__name__}: .*({complaint})"):
        metric(probabilities, labels)
