"""What used to be wrong without a word: each is now right, or refused with its name and place."""

import math

import numpy as np
import pytest

import minires
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.networks.layers import BatchNorm, Dense, Flatten, Sequential
from minires.networks.model import Model
from minires.networks.running_statistics import reestimate_stats
from minires.resampling.averages import average, prefix_averages
from minires.resampling.baselines import EMA, SWAG
from minires.resampling.moments import Moments
from minires.training.loop import Task, fine_tune, train
from minires.training.metrics import ece, evaluate
from minires.training.optimizers import SGD


def small(*layers):
    return Model((2, 3, 1), Sequential(*layers, Flatten(), Dense(3)))


def images_of(rng, count=20):
    return rng.standard_normal((count, 2, 3, 1)).astype(np.float32)


# --- images and labels --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.zeros(40, int), r"20 images, but labels are \(40,\): expected \(20,\), one label per"),
        (np.zeros(12, int), r"20 images, but labels are \(12,\)"),
        (np.zeros(20), r"labels are float64 \(20,\), expected integers: use labels.astype"),
        (np.full(20, 3), "labels go from 3 to 3, expected 0 to 2"),
        (np.full(20, 3), "labels go from 3 to 3, .*: do they count from 1. Then subtract 1"),
        (np.full(20, 4), "labels go from 4 to 4, .*: the network needs 5 classes"),
        (np.full(20, -1), "labels go from -1 to -1, expected 0 to 2$"),
        (np.zeros((20, 3)), r"labels are float64 \(20, 3\), .*: use labels.argmax"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_training(rng, labels, complaint):
    with pytest.raises(ValueError, match="Task: " + complaint):
        Task(small(), images_of(rng), labels, batch=4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"batch": 0}, "Task: batch is 0, expected a whole number >= 1"),
        ({"batch": -1}, "Task: batch is -1"),
        ({"batch": 2.5}, "Task: batch is 2.5"),
        ({"batch": 21}, "Task: batch is 21, but there are 20 images: lower it"),
        ({"seed": -1}, "Task: seed is -1"),
        ({"seed": [3, 0.5]}, "Task: seed is 0.5"),
    ],
)
def test_settings_of_a_task(rng, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Task(small(), images_of(rng), [0] * 20, **settings)


def test_labels_may_be_a_list(rng):
    model, images, labels = small(), images_of(rng), [0, 1, 2, 1] * 5
    theta = model.init(rng)
    loss, _ = model.loss_and_gradient(theta, images, labels)
    assert loss == model.loss_and_gradient(theta, images, np.array(labels))[0]
    assert train(Task(model, images, labels, 4), theta, model.init_stats(), SGD(0.1), 3).lost == {}


@pytest.mark.parametrize("function", [train, fine_tune])
def test_a_pixel_that_is_no_number_is_named_rather_than_the_weights_blamed(rng, function):
    model, images = small(), images_of(rng)
    images[7, 1, 2, 0] = np.nan
    message = "image 7 holds nan at row 1, column 2, channel 0: replace it"
    with pytest.raises(ValueError, match=message):
        function(
            Task(model, images, [0] * 20, 4), model.init(rng), model.init_stats(), SGD(0.1), 10
        )


def test_empty_batches_and_batch_sizes_below_one(rng):
    model, images = small(), images_of(rng)
    theta = model.init(rng)
    with pytest.raises(ValueError, match=r"loss_and_gradient: .*there is no image"):
        model.loss_and_gradient(theta, images[:0], [])
    for batch in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"logits: batch is {batch}, expected a whole"):
            model.logits(theta, images, batch=batch)
    with pytest.raises(ValueError, match="images are empty"):
        Task(model, images[:0], [])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m, t, x: m.logits(t.tolist(), x),
        lambda m, t, x: m.logits(t, x.tolist()),
        lambda m, t, x: m.init(5),
        lambda m, t, x: m.init(5, replicas=2),
        lambda m, t, x: m.loss_and_gradient(t, x, [0] * 20, rng=5),
        lambda m, t, x: SWAG(t.shape, 2).sample(1, 5),
        lambda m, t, x: EMA(0.5).update(t.tolist()),
        lambda m, t, x: Moments(t.shape).update(t.tolist()),
        lambda m, t, x: SGD(0.1).step(t.tolist(), t),
    ],
)
def test_lists_and_seeds_where_arrays_and_generators_are_needed(rng, wrong):
    model = small()
    with pytest.raises(TypeError, match=r"convert it with|expected numpy.random.default_rng"):
        wrong(model, model.init(rng), images_of(rng))


def test_integer_weights_are_refused(rng):
    model, images = small(), images_of(rng)
    with pytest.raises(ValueError, match="theta is int64, expected float32 or float64"):
        model.logits(np.zeros(model.size, int), images.astype(int))
    with pytest.raises(ValueError, match=r"SGD.step: theta is int64"):
        SGD(0.1).step(np.ones(3, int), np.ones(3, int))


# --- probabilities ------------------------------------------------------------------------


def test_metrics_are_the_same_in_both_dtypes_at_the_edges_of_bins():
    """0.6 = 9/15 ends a bin in float64; as float32 it is 0.60000002, as is all that lies near."""
    edges = np.arange(8, 15) / 15
    rounded = edges.astype(np.float32).astype(np.float64)
    for edge in (*edges, *(rounded + 1e-8), *(rounded - 1e-8)):
        probabilities = np.array([[edge, 1 - edge], [edge - 0.01, 1.01 - edge]])
        found = ece(probabilities, [0, 1]), ece(probabilities.astype(np.float32), [0, 1])
        assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_probabilities_and_labels_may_be_lists():
    assert evaluate([[0.5, 0.5], [0.25, 0.75]], [0, 1])["accuracy"] == 1
    assert average([[[0.5, 0.5]], [[0.0, 1.0]]]).tolist() == [[0.25, 0.75]]


def test_votes_of_integers_are_refused_rather_than_zero():
    with pytest.raises(ValueError, match=r"probabilities are int64.*convert them with .astype"):
        average(np.array([[[1, 0]], [[0, 1]]]), "vote")


@pytest.mark.parametrize("function", [average, prefix_averages])
@pytest.mark.parametrize("rule", ["probabilities", "geometric", "vote"])
def test_a_lost_network_is_named_rather_than_averaged(function, rule):
    members = np.full((5, 3, 2), 0.5)
    members[[1, 4], 2] = np.nan
    message = r"2 of 5 networks predict NaN \(numbers 1, 4, from 0\)"
    with pytest.raises(FloatingPointError, match=message):
        function(members, rule)


def test_logits_are_not_averaged_as_probabilities(rng):
    with pytest.raises(ValueError, match=r"row 0, 0 of the probabilities .*are these logits"):
        average(rng.standard_normal((2, 3, 4)) + 5)


# --- weights and their moments ------------------------------------------------------------


def test_averages_of_integers_are_refused():
    with pytest.raises(ValueError, match=r"EMA.update: theta is int64, expected float32"):
        EMA(0.9).update(np.arange(3))
    ema = EMA(0.9)
    ema.update(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="theta is float64, expected float32 as before"):
        ema.update(np.ones(3))


def test_an_average_is_not_restored_with_another_decay():
    kept = EMA(0.9)
    kept.update(np.ones(3))
    with pytest.raises(ValueError, match=r"the state has decay 0\.9, this average has 0\.99"):
        EMA(0.99).restore(kept.state())
    again = EMA(0.9)
    again.restore(kept.state())
    np.testing.assert_array_equal(again.mean, kept.mean)


@pytest.mark.parametrize("which", ["variance", "sample"])
def test_moments_that_leave_the_range_of_their_dtype_say_so(which):
    moments = Moments((3,))
    for sign in (1, -1):
        moments.update(np.array([0, 3e38 * sign, 1], np.float32))
    assert moments.mean.tolist() == [0, 0, 1]
    assert moments.std[1] == pytest.approx(3e38, rel=1e-6)
    message = {
        "variance": r"Moments.variance: 1 of 3 numbers exceed 3.4e\+38, the largest float32",
        "sample": r"Moments.sample: .* exceed 3.4e\+38, the largest float32",
    }[which]
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=message):
        moments.variance if which == "variance" else moments.sample(20, np.random.default_rng(0))


def test_squares_that_leave_the_range_of_float64_say_so():
    moments = Moments((2,))
    with np.errstate(over="ignore"):
        for sign in (1, -1):
            moments.update(np.array([1.0, 1e200 * sign]))
    with pytest.raises(
        FloatingPointError, match=r"squared changes of 1 of 2 weights exceed 1.8e308"
    ):
        _ = moments.variance
    assert moments.mean.tolist() == [1, 0]


def test_a_small_last_batch_weighs_by_its_size(rng):
    """As one pass over all images together, for the mean; and the variance, image by image."""
    model = Model((4, 4, 2), Sequential(BatchNorm(), Flatten(), Dense(3)))
    theta = model.init(rng, dtype=np.float64)
    images = rng.standard_normal((10, 4, 4, 2)) + np.arange(10)[:, None, None, None]
    found = reestimate_stats(model, theta, [images[:4], images[4:8], images[8:]])
    np.testing.assert_allclose(found[:2], images.mean(axis=(0, 1, 2)), rtol=1e-12)
    parts = [part.var(axis=(0, 1, 2)) for part in (images[:4], images[4:8], images[8:])]
    np.testing.assert_allclose(found[2:], 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2])


# --- derivatives --------------------------------------------------------------------------


def test_a_class_with_probability_zero_does_not_spoil_the_loss():
    logits = variable(np.array([[0.0, -math.inf, 1.0]]))
    loss = ops.softmax_cross_entropy(logits, [0])
    assert float(loss.data) == pytest.approx(1.3133, abs=1e-4)
    (gradient,) = gradients(loss, [logits])
    np.testing.assert_allclose(gradient, [[-0.731059, 0, 0.731059]], atol=1e-6)
    assert ops.softmax_cross_entropy(np.array([[0.0, -math.inf]]), [1]) == math.inf


def test_the_power_zero_has_gradient_zero_everywhere():
    x = variable(np.array([0.0, 2.0]))
    assert gradients(x**0, [x])[0].tolist() == [0, 0]


def test_the_gradient_of_a_quotient_does_not_underflow():
    """y² is 1e-60, which float32 cannot hold."""
    x, y = variable(np.array([1e-30], np.float32)), variable(np.array([1e-30], np.float32))
    by_x, by_y = gradients(x / y, [x, y])
    assert by_x[0] == pytest.approx(1e30, rel=1e-6)
    assert by_y[0] == pytest.approx(-1e30, rel=1e-6)


def test_integers_have_no_gradient():
    x = variable(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"holds integers, which have no gradient: convert"):
        gradients(x.mean(), [x])


def test_a_seed_must_have_the_shape_of_the_output():
    x = variable(np.ones((2, 3)))
    for seed in (np.ones(3), np.ones((2, 1)), np.ones((2, 3), int)):
        with pytest.raises(ValueError, match=r"gradients: seed is .*expected floats \(2, 3\)"):
            gradients(x * 2, [x], seed)


# --- θ in a file --------------------------------------------------------------------------


def test_weights_come_back_from_a_file(rng, tmp_path):
    model = minires.mobilenet_v1(0.125, input_shape=(16, 16, 1), classes=4)
    theta, stats = model.init(rng, replicas=2), model.init_stats(2)
    model.save(tmp_path / "theta.npz", theta, stats)
    again = model.load(tmp_path / "theta.npz")
    for ours, theirs in zip(again, (theta, stats), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_another_networks_weights_are_refused_though_the_number_fits(rng, tmp_path):
    wide = Model((2, 2, 1), Sequential(Flatten(), Dense(3, bias=False), Dense(4, bias=False)))
    tall = Model((2, 2, 1), Sequential(Flatten(), Dense(4, bias=False), Dense(2, bias=False)))
    assert wide.size == tall.size == 24
    wide.save(tmp_path / "theta.npz", wide.init(rng))
    message = r"theta\.npz holds another network's weights: it has dense_1\.weight 4×3, .* this mo"
    with pytest.raises(ValueError, match=message):
        tall.load(tmp_path / "theta.npz")
    with pytest.raises(ValueError, match=r"save: theta is \(23,\)"):
        wide.save(tmp_path / "x.npz", wide.init(rng)[1:])
    Moments((3,)).save(tmp_path / "moments.npz")
    with pytest.raises(ValueError, match=r"moments\.npz lacks layout, theta, stats"):
        wide.load(tmp_path / "moments.npz")


def test_an_average_restored_to_its_beginning_has_forgotten_everything():
    ema = EMA(0.9)
    empty = ema.state()
    ema.update(np.array([np.nan, 1.0], np.float32))
    ema.restore(empty)
    ema.update(np.ones(3))
    np.testing.assert_array_equal(ema.mean, np.ones(3))
