"""Batch norm: its formula, gradients, statistics, modes, folding, and the three policies."""

import numpy as np
import pytest
from helpers import assert_close, assert_gradient, generator, pull_back, seeds
from hypothesis import given
from hypothesis import strategies as st

from minires.arrays import threads
from minires.engine.autodiff import data_of, gradients, variable
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.kernels import cpu
from minires.networks import lenet
from minires.networks.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalMeanPool,
    ReLU,
    Sequential,
)
from minires.networks.model import ForwardPass, Model
from minires.networks.running_statistics import POLICIES, batch_norm_policies, reestimate_stats


def normalised(x, scale, shift, activation=None, epsilon=1e-3):
    """The definition, in NumPy's own words, over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    z = (x - x.mean(axis=axes)) / np.sqrt(x.var(axis=axes) + epsilon) * scale + shift
    return {None: z, "relu": np.maximum(z, 0), "relu6": np.clip(z, 0, 6)}[activation]


def trained(x, scale, shift, activation=None, epsilon=1e-3):
    """The op as the layer uses it in training."""
    mean, variance = batch_moments(data_of(x))
    return batch_norm(
        x, scale, shift, mean=mean, variance=variance, epsilon=epsilon, of_batch=True,
        activation=activation,
    )  # fmt: skip


def draw_case(rng, shape):
    channels = shape[-1]
    x = 2 * rng.standard_normal(shape) + rng.standard_normal(channels)
    return x, 1 + rng.standard_normal(channels), rng.standard_normal(channels)


# --- the op -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@given(seed=seeds, channels=st.integers(1, 4), images=st.booleans())
def test_value_and_gradient_in_training(activation, seed, channels, images):
    rng = generator(seed)
    case = draw_case(rng, (3, 4, 2, channels) if images else (7, channels))
    assert_close(trained(*case, activation), normalised(*case, activation), 1e-10)
    if activation is None:  # a kink within the difference's step would spoil it
        assert_gradient(trained, *case, rng=rng, tolerance=1e-6)


def test_the_gradient_is_that_of_the_definition(rng):
    """Complex step: exact to rounding, through mean, variance, scale and shift."""
    x, scale, shift = draw_case(rng, (2, 3, 4, 3))
    seed = rng.standard_normal(x.shape)
    pulled = pull_back(trained, (x, scale, shift), seed)

    def loss(x, scale, shift):
        axes = (0, 1, 2)
        centred = x - x.mean(axis=axes)
        z = centred / np.sqrt((centred**2).mean(axis=axes) + 1e-3) * scale + shift
        return (z * seed).sum()

    for number, array in enumerate((x, scale, shift)):
        direction = rng.standard_normal(array.shape)
        moved = [x, scale, shift]
        moved[number] = array + 1e-200j * direction
        assert np.isclose(loss(*moved).imag / 1e-200, (pulled[number] * direction).sum(), 1e-11)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_no_gradient_where_the_activation_is_flat(activation, rng):
    x, *_ = draw_case(rng, (4, 5, 5, 3))
    scale, shift = np.array([4.0, -3, 5]), np.array([2.0, 1, 3])
    z = trained(x, scale, shift)
    g = rng.standard_normal(x.shape)
    open_ = (z > 0) & (z < 6) if activation == "relu6" else z > 0
    assert 0.1 < open_.mean() < 0.9
    with_activation = pull_back(lambda *a: trained(*a, activation), (x, scale, shift), g)
    for ours, wanted in zip(
        with_activation, pull_back(trained, (x, scale, shift), g * open_), strict=True
    ):
        assert_close(ours, wanted, 1e-11)


def test_frozen_statistics_are_constants(rng):
    x, scale, shift = draw_case(rng, (2, 3, 4, 3))
    mean, variance = rng.standard_normal(3), rng.uniform(0.5, 2, 3)

    def function(x, scale, shift):
        return batch_norm(x, scale, shift, mean=mean, variance=variance, epsilon=0.1)

    wanted = (x - mean) / np.sqrt(variance + 0.1) * scale + shift
    assert_close(function(x, scale, shift), wanted)
    assert_gradient(function, x, scale, shift, rng=rng)


def test_without_a_scale(rng):
    x, _, shift = draw_case(rng, (2, 3, 4, 3))
    ones = np.ones(3)
    assert_close(trained(x, None, shift), trained(x, ones, shift))
    g = rng.standard_normal(x.shape)
    kept, moved = variable(x), variable(shift)
    pulled = gradients(trained(kept, None, moved), [kept, moved], g)
    wanted = pull_back(trained, (x, ones, shift), g)
    assert_close(pulled[0], wanted[0])
    assert_close(pulled[1], wanted[2])


def test_replicas_have_statistics_of_their_own(rng):
    cases = [draw_case(rng, (3, 4, 4, 2)) for _ in range(3)]
    x, scale, shift = (np.stack(part) for part in zip(*cases, strict=True))
    y = trained(x, scale, shift, "relu6")
    assert_close(y, np.stack([trained(*case, "relu6") for case in cases]))
    g = rng.standard_normal(y.shape)
    together = pull_back(trained, (x, scale, shift), g)
    singly = [pull_back(trained, case, g[r]) for r, case in enumerate(cases)]
    for number in range(3):
        assert_close(together[number], np.stack([s[number] for s in singly]), 1e-11)


def test_replicas_of_one_batch(rng):
    x, *_ = draw_case(rng, (3, 4, 4, 2))
    scale, shift = rng.standard_normal((2, 5, 2))
    y = trained(x, scale, shift)
    assert_close(y, np.stack([trained(x, *pair) for pair in zip(scale, shift, strict=True)]))
    g = rng.standard_normal(y.shape)
    pulled = pull_back(trained, (x, scale, shift), g)
    singly = [pull_back(trained, (x, scale[r], shift[r]), g[r]) for r in range(5)]
    assert_close(pulled[0], sum(s[0] for s in singly), 1e-11)
    assert_close(pulled[1], np.stack([s[1] for s in singly]), 1e-11)


def test_tiles_and_threads_change_nothing(rng, monkeypatch):
    x, scale, shift = (a.astype(np.float32) for a in draw_case(rng, (3, 17, 13, 5)))

    def everything():
        y = trained(x, scale, shift, "relu")
        return y, *pull_back(lambda *a: trained(*a, "relu"), (x, scale, shift), y)

    whole = everything()
    monkeypatch.setattr(cpu, "PART", 64)
    with threads(1):
        one = everything()
    with threads(3):
        three = everything()
    for a, b, c in zip(whole, one, three, strict=True):
        assert_close(b, a, 1e-5)
        np.testing.assert_array_equal(b, c)


# --- moments ------------------------------------------------------------------------------


def test_a_small_variance_beside_a_large_mean_keeps_its_digits(rng, monkeypatch):
    """E[x²] − E[x]² in float32 would lose all of them: 1e8 against 1."""
    monkeypatch.setattr(cpu, "PART", 100)
    x = (1e4 + rng.standard_normal((8, 16, 16, 3))).astype(np.float32)
    mean, variance = batch_moments(x)
    assert variance.dtype == np.float32
    assert_close(mean, x.mean(axis=(0, 1, 2), dtype=float), 1e-6)
    assert_close(variance, x.var(axis=(0, 1, 2), dtype=float), 1e-3)


def test_the_batch_variance_is_the_population_variance():
    x = np.array([[1.0], [2.0], [6.0]])
    mean, variance = batch_moments(x)
    assert mean == [3.0]
    assert np.isclose(variance, 14 / 3)


def test_one_value_a_channel_has_no_variance():
    with pytest.raises(ValueError, match="larger batches, or freeze"):
        batch_moments(np.zeros((1, 1, 1, 3)))


# --- the layer ----------------------------------------------------------------------------


def model_with(settings, shape=(4, 4, 2)):
    return Model(shape, Sequential(BatchNorm(**settings), Flatten(), Dense(3)))


@pytest.mark.parametrize("unbiased", [False, True])
def test_running_statistics_follow_by_the_momentum(unbiased, rng):
    model = model_with({"momentum": 0.8, "unbiased": unbiased})
    theta, stats = model.init(rng, dtype=float), model.init_stats(dtype=float)
    mean, variance = np.zeros(2), np.ones(2)
    for _ in range(3):
        images = 3 + 2 * rng.standard_normal((5, 4, 4, 2))
        model.loss_and_gradient(theta, images, rng.integers(0, 3, 5), stats=stats)
        mean = 0.8 * mean + 0.2 * images.mean(axis=(0, 1, 2))
        variance = 0.8 * variance + 0.2 * images.var(axis=(0, 1, 2), ddof=int(unbiased))
    assert_close(stats, np.concatenate([mean, variance]))


def test_prediction_and_frozen_training_use_the_running_statistics(rng):
    images, labels = rng.standard_normal((5, 4, 4, 2)), rng.integers(0, 3, 5)
    losses = {}
    for frozen in (False, True):
        model = model_with({"frozen": frozen})
        theta = model.init(np.random.default_rng(1), dtype=float)
        stats = np.array([1.0, -1, 4, 0.25])
        before = stats.copy()
        losses[frozen], gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
        assert (stats == before).all() == frozen
    logits = model.logits(theta, images, before)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert np.isclose(losses[True], -log_p[np.arange(5), labels].mean())
    assert not np.isclose(losses[False], losses[True])
    step = 1e-6 * rng.standard_normal(theta.shape)
    ahead, _ = model.loss_and_gradient(theta + step, images, labels, stats=before)
    behind, _ = model.loss_and_gradient(theta - step, images, labels, stats=before)
    assert np.isclose((ahead - behind) / 2, gradient @ step, 1e-6)


def test_statistics_are_needed_and_checked(rng):
    model = model_with({})
    theta, images = model.init(rng), np.zeros((2, 4, 4, 2), np.float32)
    with pytest.raises(ValueError, match="init_stats"):
        model.logits(theta, images)
    with pytest.raises(ValueError, match="stats is"):
        model.logits(theta, images, np.zeros(3, np.float32))


# --- folding ------------------------------------------------------------------------------


def mixed_model():
    """Every kind of batch norm: behind convolutions, with biases or none, behind an activation."""
    return Model(
        (8, 8, 3),
        Sequential(
            Conv2D(4, 3, bias=True),
            BatchNorm(activation="relu6"),
            DepthwiseConv2D(3, 2, bias=False),
            BatchNorm(scale=False, activation="relu"),
            Sequential(Conv2D(6, 1, bias=False, activation="relu"), BatchNorm()),
            ReLU(),
            BatchNorm(activation="relu6"),
            GlobalMeanPool(),
            Dense(5),
        ),
    )


def random_stats(model, rng, dtype=np.float32):
    stats = rng.uniform(0.5, 2, model.stats_size).astype(dtype)
    for entry in model.layout.statistics:
        if entry.name.endswith("mean"):
            entry.view(stats)[...] -= 1
    return stats


@pytest.mark.parametrize("channels", [1, 8, 33, 5000])
@pytest.mark.parametrize("mean", [0.3, 30.0])
def test_moments_of_float32_are_exact_to_its_last_digit(rng, channels, mean):
    """A sum of all rows in float32 is wrong in the sixth digit, and so is every layer behind it.

    Where the mean is so many times larger than the deviation, as many times larger is the error.
    """
    rows = 3 * 700_000 // channels // 3
    x = (mean + rng.standard_normal((1, 3, rows // 3, channels))).astype(np.float32)
    found = batch_moments(x)
    exact = x.astype(float)
    expected = exact.mean(axis=(0, 1, 2)), exact.var(axis=(0, 1, 2))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1.2e-7 * (1 + mean), atol=1e-7)


def test_gradients_of_float32_are_exact_to_its_last_digit(rng):
    x = rng.standard_normal((4, 112, 112, 8)).astype(np.float32)
    # So that both sums are large, and their error is not that of a difference.
    g = x + rng.uniform(0, 1, x.shape).astype(np.float32)
    scale, shift = (rng.uniform(0.5, 1, 8).astype(np.float32) for _ in range(2))

    def function(x, scale, shift):
        mean, variance = batch_moments(x)
        return pull_back(
            lambda *arrays: batch_norm(*arrays, mean=mean, variance=variance, of_batch=True),
            [x, scale, shift],
            g.astype(x.dtype),
        )

    exact = function(*(array.astype(float) for array in (x, scale, shift)))
    # The gradient to x is a difference, of things four times as large.
    for one, other, tolerance in zip(
        function(x, scale, shift), exact, (6e-7, 1.5e-7, 1.5e-7), strict=True
    ):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("replicas", [None, 3])
def test_folding_changes_no_prediction(replicas, rng):
    model = mixed_model()
    theta = model.init(rng, replicas)
    theta += 0.3 * rng.standard_normal(theta.shape, np.float32)
    stats = random_stats(model, rng)
    stats = stats if replicas is None else np.tile(stats, (replicas, 1)) * np.float32(1.1)
    images = rng.standard_normal((6, 8, 8, 3), np.float32)
    folded, folded_theta = model.fold(theta, stats)
    assert folded.stats_size == 0
    plainly = model.network.apply(images, ForwardPass(model.layout, theta, stats))
    assert_close(folded.logits(folded_theta, images), plainly, 1e-5)
    assert_close(model.logits(theta, images, stats), plainly, 1e-5)


def test_folding_leaves_theta_and_stats_alone(rng):
    model = mixed_model()
    theta, stats = model.init(rng), random_stats(model, rng)
    before = theta.copy(), stats.copy()
    model.fold(theta, stats)[1][...] = 7
    np.testing.assert_array_equal(theta, before[0])
    np.testing.assert_array_equal(stats, before[1])


# --- re-estimation and policies -----------------------------------------------------------


def test_reestimation_is_the_plain_average_over_batches(rng):
    model = model_with({"momentum": 0.5, "frozen": True})
    theta = model.init(rng, dtype=float)
    batches = [k + rng.standard_normal((5, 4, 4, 2)) for k in range(4)]
    stats = reestimate_stats(model, theta, batches)
    means = np.mean([b.mean(axis=(0, 1, 2)) for b in batches], axis=0)
    variances = np.mean([b.var(axis=(0, 1, 2)) for b in batches], axis=0)
    assert_close(stats, np.concatenate([means, variances]))


def test_reestimation_sees_the_weights_in_front(rng):
    model = mixed_model()
    theta, images = model.init(rng), rng.standard_normal((6, 8, 8, 3), np.float32)
    stats = reestimate_stats(model, theta, [images])
    assert stats.dtype == np.float32
    entry = model.layout["conv2d_1.weight"]
    entry.view(theta)[...] *= 2
    doubled = reestimate_stats(model, theta, [images])
    first = model.layout["batchnorm_1.variance"]
    assert_close(first.view(doubled), 4 * first.view(stats), 1e-5)


def test_reestimation_of_replicas(rng):
    model = mixed_model()
    theta = model.init(rng, 3)
    batches = [rng.standard_normal((4, 8, 8, 3), np.float32) for _ in range(2)]
    stats = reestimate_stats(model, theta, batches)
    assert_close(stats, np.stack([reestimate_stats(model, t, batches) for t in theta]), 1e-5)


def test_reestimation_needs_a_batch(rng):
    model = mixed_model()
    with pytest.raises(ValueError, match="no batch"):
        reestimate_stats(model, model.init(rng), [])


def test_the_three_policies(rng):
    model = mixed_model()
    theta, batches = model.init(rng), [rng.standard_normal((4, 8, 8, 3), np.float32)]
    averaged, last = random_stats(model, rng), random_stats(model, rng)
    found = batch_norm_policies(model, theta, averaged, last, batches)
    assert tuple(found) == POLICIES
    assert found["averaged"] is averaged
    assert found["last"] is last
    np.testing.assert_array_equal(found["recomputed"], reestimate_stats(model, theta, batches))


def test_without_batch_norm_there_is_one_policy(rng):
    model = lenet(channels=(2, 3), hidden=4)
    stats = model.init_stats()
    assert list(batch_norm_policies(model, model.init(rng), stats, stats, [])) == ["last"]


def test_unequal_numbers_of_networks_and_dtypes_are_refused():
    x, four = np.ones((2, 3, 4), np.float32), np.ones(4, np.float32)
    many = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match=r"has 2 networks, shift .* has 4"):
        batch_norm(x, many, many, mean=four, variance=four)
    with pytest.raises(ValueError, match="shift is float64: convert one of them"):
        batch_norm(x, four, np.ones(4), mean=four, variance=four)
