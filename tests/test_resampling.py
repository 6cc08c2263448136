"""Averaging predictions by each rule, prefix ensembles, and the moving average of weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires import arrays, kernels
from minires.resampling.averages import average, prefix_averages
from minires.resampling.baselines import EMA
from minires.resampling.moments import Moments

RULES = ["probabilities", "geometric", "logits", "vote"]
every_rule = pytest.mark.parametrize("rule", RULES)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.fixture
def logits(rng):
    return 3 * rng.standard_normal((5, 20, 4))


def test_each_rule_is_its_formula(xp, logits):
    p = softmax(logits)
    geometric = p.prod(axis=0) ** (1 / 5)
    votes = np.zeros((20, 4))
    for member in p:
        for image, row in enumerate(member):
            votes[image, list(row).index(max(row))] += 1 / 5
    for rule, expected in {
        "probabilities": p.sum(axis=0) / 5,
        "geometric": geometric / geometric.sum(axis=-1, keepdims=True),
        "logits": softmax(logits.mean(axis=0)),
        "vote": votes,
    }.items():
        result = average(xp.asarray(p), rule)
        assert type(result) is type(xp.zeros(1))
        np.testing.assert_allclose(arrays.to_host(result), expected, rtol=1e-12)


@every_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_are_probabilities_of_the_same_dtype(rng, logits, rule, dtype):
    result = average(softmax(logits).astype(dtype), rule)
    assert result.dtype == dtype
    assert result.shape == (20, 4)
    np.testing.assert_allclose(result.sum(axis=-1), 1, rtol=1e-6)


@every_rule
def test_prefixes_are_the_averages_of_the_first_members(xp, logits, rule):
    p = xp.asarray(softmax(logits))
    prefixes = prefix_averages(p, rule)
    assert prefixes.shape == p.shape
    for k in range(1, 6):
        np.testing.assert_allclose(
            arrays.to_host(prefixes[k - 1]), arrays.to_host(average(p[:k], rule)), rtol=1e-12
        )


@pytest.mark.parametrize("rule", ["probabilities", "geometric", "logits"])
def test_equal_members_average_to_themselves(logits, rule):
    p = softmax(logits[:1]).repeat(3, axis=0)
    np.testing.assert_allclose(average(p, rule), p[0], rtol=1e-12)


@every_rule
def test_replicas_at_once_equal_one_by_one(logits, rule):
    p = softmax(logits).reshape(5, 2, 10, 4)
    together = average(p, rule)
    for replica in range(2):
        np.testing.assert_allclose(together[replica], average(p[:, replica], rule), rtol=1e-13)


def test_a_class_that_one_network_excludes_all_exclude():
    p = np.array([[[1, 0, 0]], [[0.0, 0.2, 0.8]], [[0.3, 0.3, 0.4]]], np.float32)
    with np.errstate(all="raise"):
        result = average(p, "geometric")
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result.sum(), 1, rtol=1e-6)
    certain = np.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    np.testing.assert_allclose(average(certain, "geometric"), [[1, 0]], atol=1e-300)


def test_one_confident_network_does_not_outvote_two():
    p = np.array([[[0.49, 0.51]], [[0.49, 0.51]], [[1.0, 0.0]]])
    np.testing.assert_allclose(average(p, "vote"), [[1 / 3, 2 / 3]])
    assert average(p)[0].argmax() == 0


def test_of_equal_probabilities_a_network_chooses_the_first():
    np.testing.assert_array_equal(average(np.full((2, 1, 3), 1 / 3), "vote"), [[1, 0, 0]])


@every_rule
def test_a_weight_of_two_counts_as_two_networks(xp, logits, rule):
    p = softmax(logits)[:3]
    twice = average(p[[0, 0, 2]], rule)
    result = average(xp.asarray(p), rule, weights=[0.5, 0, 0.25])
    np.testing.assert_allclose(arrays.to_host(result), twice, rtol=1e-12)
    assert average(p.astype(np.float32), rule, xp.asarray(np.ones(3))).dtype == np.float32


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, -1], [0, 0, 0], [1, np.nan, 1], [1, np.inf, 1]])
def test_weights_that_do_not_fit_are_refused(logits, weights):
    with pytest.raises(ValueError, match=r"weights are \[.*\], expected 3 numbers from 0 up"):
        average(softmax(logits)[:3], weights=weights)


def test_what_does_not_fit_is_refused(logits):
    for function in (average, prefix_averages):
        with pytest.raises(ValueError, match="rule is 'median', expected one of 'probabilities', "):
            function(softmax(logits), "median")
        with pytest.raises(ValueError, match=r"probabilities are \(0, 20, 4\)"):
            function(softmax(logits)[:0])
        with pytest.raises(ValueError, match=r"probabilities are \(3,\)"):
            function(np.ones(3))


# --- the moving average of weights --------------------------------------------------------


@given(st.floats(0, 0.9999), st.integers(1, 30))
def test_ema_is_the_corrected_moving_average(decay, steps):
    thetas = np.random.default_rng(steps).standard_normal((steps, 3)) + 5
    ema, biased = EMA(decay), np.zeros(3)
    for theta in thetas:
        ema.update(theta)
        biased = decay * biased + (1 - decay) * theta
    np.testing.assert_allclose(ema.mean, biased / (1 - decay**steps), rtol=1e-10)


def test_ema_without_decay_is_the_last_and_with_nearly_one_the_mean(xp, rng):
    thetas = rng.standard_normal((6, 2, 70_000)).astype(np.float32)
    last, slow, moments = EMA(0), EMA(1 - 1e-9), Moments((2, 70_000))
    for theta in xp.asarray(thetas):
        for average_of_weights in (last, slow, moments):
            average_of_weights.update(theta)
    assert last.mean.dtype == slow.mean.dtype == np.float32
    np.testing.assert_array_equal(arrays.to_host(last.mean), thetas[-1])
    np.testing.assert_allclose(
        arrays.to_host(slow.mean), arrays.to_host(moments.mean), rtol=1e-5, atol=1e-6
    )


def test_ema_copies(rng):
    theta = np.ones(3)
    ema = EMA(0.5)
    ema.update(theta)
    theta[:] = 7
    ema.mean[:] = 9
    np.testing.assert_array_equal(ema.mean, np.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ema_has_the_bits_of_its_formula_in_any_layout(rng, dtype):
    thetas = rng.standard_normal((3, 40, 500)).astype(dtype)
    single, turned, plain, mean = EMA(0.9), EMA(0.9), EMA(0.9), None
    for count, theta in enumerate(thetas, 1):
        single.update(theta)
        turned.update(np.asfortranarray(theta))
        with kernels("plain"):
            plain.update(theta)
        mean = theta.astype(np.float64) if mean is None else mean
        mean = mean + single.weight(count) * (theta - mean)
    for ema in (single, turned, plain):
        np.testing.assert_array_equal(ema.mean, mean.astype(dtype))
    dot = EMA(0.5)
    dot.update(np.array(3.0))
    assert dot.mean == 3


def test_ema_refuses_what_does_not_fit():
    for decay in (-0.1, 1, np.nan):
        with pytest.raises(ValueError, match="decay is"):
            EMA(decay)
    ema = EMA(0.9)
    with pytest.raises(ValueError, match="no update yet"):
        _ = ema.mean
    ema.update(np.ones(3))
    with pytest.raises(ValueError, match=r"theta is \(4,\), expected \(3,\)"):
        ema.update(np.ones(4))
    assert ema.count == 1
