"""One test for every kind of network: a `Classifier` keeps its promises."""

import numpy as np
import pytest
from helpers import assert_close

import minires
from minires.networks.protocol import Classifier
from minires.networks.running_statistics import reestimate_stats
from minires.training import loop


def native_lenet(rng):
    model = minires.lenet_classic(input_shape=(12, 12, 1), classes=4)
    return model, model.init(rng), model.init_stats()


def native_mobilenet(rng):
    model = minires.mobilenet_v2(0.125, input_shape=(16, 16, 3), classes=4, dropout=0)
    return model, model.init(rng), model.init_stats()


def from_an_onnx_file(rng):
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    import onnx_models

    return onnx_models.loaded(rng)


# Each makes (network, θ, statistics) from a Generator: float32, and no dropout.
MAKERS = [native_lenet, native_mobilenet, from_an_onnx_file]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def problem(request, rng):
    network, theta, stats = request.param(rng)
    images = rng.standard_normal((6, *network.input_shape)).astype(theta.dtype)
    return network, theta, stats, images, rng.integers(0, network.classes, 6)


def test_it_has_the_names_and_the_sizes(problem):
    network, theta, stats, _, _ = problem
    assert isinstance(network, Classifier)
    assert theta.shape == (network.size,)
    assert stats.shape == (network.stats_size,)


def test_a_step_against_the_gradient_lowers_the_loss(problem):
    network, theta, stats, images, labels = problem
    before = theta.copy(), images.copy()
    loss, gradient = network.loss_and_gradient(theta, images, labels, stats=stats.copy())
    assert gradient.shape == theta.shape
    assert gradient.dtype == theta.dtype
    np.testing.assert_array_equal(theta, before[0])
    np.testing.assert_array_equal(images, before[1])
    step = 1e-3 * gradient / np.sqrt(np.square(gradient).sum())
    lower, _ = network.loss_and_gradient(theta - step, images, labels, stats=stats.copy())
    assert 0 < lower < loss


def test_predictions_with_a_progress_bar_are_those_without(problem):
    network, theta, stats, images, _ = problem
    assert network.batch >= 1
    assert network.fixed_batch is None
    many = np.concatenate([images] * 6)  # more than a file's network takes at once
    found = loop.predict(network, theta, many, stats, quiet=True)
    assert_close(found, network.predict(theta, many, stats), 1e-6)


def test_training_updates_the_statistics_in_place_and_prediction_leaves_them(problem):
    network, theta, stats, images, labels = problem
    own = stats.copy()
    network.predict(theta, images, own)
    np.testing.assert_array_equal(own, stats)
    network.loss_and_gradient(theta, images, labels, stats=own)
    assert (own != stats).any() == (network.stats_size > 0)


def test_measured_statistics_are_the_mean_over_batches_and_leave_the_weights(problem):
    network, theta, stats, images, _ = problem
    before, parts = theta.copy(), []
    for part in (images[:3], images[3:]):
        parts.append(network.init_stats(dtype=np.float64))
        network.measure(theta, part, parts[-1], 0)
    np.testing.assert_allclose(
        reestimate_stats(network, theta, [images[:3], images[3:]]),
        np.mean(parts, axis=0), rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    assert (parts[0] != parts[1]).any() == (network.stats_size > 0)
    moved = stats.astype(np.float64)
    network.measure(theta, images[:3], moved, 0.25)
    np.testing.assert_allclose(moved, 0.25 * stats + 0.75 * parts[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(theta, before)
    np.testing.assert_array_equal(network.init_stats(), stats)
    np.testing.assert_array_equal(network.init_stats(2), [stats, stats])


def test_predictions_are_probabilities_whatever_the_batch(problem):
    network, theta, stats, images, _ = problem
    probabilities = network.predict(theta, images, stats)
    assert probabilities.shape == (6, network.classes)
    assert probabilities.dtype == theta.dtype
    assert_close(probabilities.sum(axis=-1), np.ones(6), 1e-5)
    assert_close(network.predict(theta, images, stats, batch=4), probabilities, 1e-5)
    logits = network.logits(theta, images, stats, batch=1)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    assert_close(exponentials / exponentials.sum(axis=-1, keepdims=True), probabilities, 1e-5)


def test_networks_side_by_side_are_each_alone(problem):
    network, theta, stats, images, _ = problem
    both, of_both = np.stack([theta, 0.9 * theta]), np.stack([stats, 1.2 * stats])
    found = network.predict(both, images, of_both)
    assert found.shape == (2, 6, network.classes)
    for own, *alone in zip(found, both, of_both, strict=True):
        assert_close(own, network.predict(alone[0], images, alone[1]), 1e-5)


def test_arrays_are_views_that_cover_theta_once(problem):
    network, theta, _, _, _ = problem
    theta = theta.copy()
    arrays = network.arrays(theta)
    assert sum(array.size for array in arrays.values()) == network.size
    for array in arrays.values():
        array += 1000
    assert (theta > 500).all()
    assert (theta < 1500).all(), "two arrays share a weight"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda n, t, s, x, y: n.loss_and_gradient(t[:-1], x, y, stats=s),
        lambda n, t, s, x, y: n.loss_and_gradient(t, x[..., :-1], y, stats=s),
        lambda n, t, s, x, y: n.loss_and_gradient(t, x, y[:-1], stats=s),
        lambda n, t, s, x, y: n.loss_and_gradient(t, x, y + n.classes, stats=s),
        lambda n, t, s, x, y: n.loss_and_gradient(t, x[:0], y[:0], stats=s),
        lambda n, t, s, x, y: n.predict(t, x[:0], s),
        lambda n, t, s, x, y: n.predict(t, x, s, batch=0),
        lambda n, t, s, x, y: n.predict(t, x, s, batch=-1),
        lambda n, t, s, x, y: n.arrays(t[1:]),
        lambda n, t, s, x, y: n.measure(t, x, np.append(s, s.dtype.type(0)), 0),
        lambda n, t, s, x, y: n.measure(t[1:], x, s, 0),
        lambda n, t, s, x, y: n.measure(t, x[..., :-1], s, 0),
    ],
)
def test_what_does_not_fit_is_a_value_error(problem, break_it):
    with pytest.raises(ValueError, match=r".+"):
        break_it(*problem)
