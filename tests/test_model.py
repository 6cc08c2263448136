"""Model: where each weight lies, what is checked, and gradients of whole networks."""

import gc
import weakref

import numpy as np
import pytest
from helpers import assert_close

from minires import arrays, lenet, lenet_classic
from minires.networks import layers
from minires.networks.layers import (
    Activation,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalMeanPool,
    Layer,
    MaxPool,
    MeanPool,
    ReLU,
    Sequential,
)
from minires.networks.model import Layout, Model


def tiny(dropout=0.0, smoothing=0.0):
    """Every kind of layer, and both ways of convolving, in a few hundred weights."""
    return Model(
        (8, 9, 2),
        Sequential(
            Conv2D(16, 3, activation="relu"),
            Conv2D(16, 3, padding=1),
            MaxPool(2),
            Activation("tanh"),
            Sequential(Conv2D(5, (2, 3), stride=(2, 1), bias=False), ReLU()),
            MeanPool(2, stride=1),
            Flatten(),
            Dense(7, initializer="he"),
            Activation("sigmoid"),
            Dropout(dropout),
            Dense(4),
        ),
        smoothing=smoothing,
    )


def data(rng, model, count=6, lead=(), dtype=np.float64):
    images = rng.standard_normal((*lead, count, *model.input_shape)).astype(dtype)
    return images, rng.integers(0, model.classes, (*lead, count))


# --- layout -------------------------------------------------------------------------------


def test_names_shapes_and_places():
    names = [(entry.name, entry.shape, entry.start) for entry in tiny().layout.weights]
    assert names == [
        ("conv2d_1.weight", (3, 3, 2, 16), 0),
        ("conv2d_1.bias", (16,), 288),
        ("conv2d_2.weight", (3, 3, 16, 16), 304),
        ("conv2d_2.bias", (16,), 2608),
        ("sequential_1.conv2d_1.weight", (2, 3, 16, 5), 2624),
        ("dense_1.weight", (15, 7), 3104),
        ("dense_1.bias", (7,), 3209),
        ("dense_2.weight", (7, 4), 3216),
        ("dense_2.bias", (4,), 3244),
    ]
    assert tiny().size == 3248
    assert tiny().stats_size == 0


def test_every_weight_belongs_to_exactly_one_array():
    for model in (tiny(), lenet(), lenet_classic()):
        seen = np.zeros(model.size, int)
        for entry in model.layout.weights:
            entry.view(seen)[...] += 1
        assert (seen == 1).all()


def test_views_share_memory_with_theta(rng):
    model = tiny()
    for theta in (rng.standard_normal(model.size), rng.standard_normal((3, model.size))):
        for entry in model.layout.weights:
            view = entry.view(theta)
            assert view.shape == (*theta.shape[:-1], *entry.shape)
            assert np.shares_memory(view, theta)
            view[...] = 7
            part = theta[..., entry.start : entry.start + entry.size]
            assert (part == 7).all()


def test_arrays_by_name():
    layout = tiny().layout
    assert layout["dense_2.bias"].shape == (4,)
    with pytest.raises(KeyError, match=r"no array is named 'dense_3.bias'; there are conv2d_1\."):
        layout["dense_3.bias"]


def test_given_names_and_scopes():
    first, second = Dense(3), Dense(2)
    first.name = "hidden"
    model = Model((4,), Sequential(first, second))
    assert [e.name for e in model.layout.weights] == [
        "hidden.weight", "hidden.bias", "dense_1.weight", "dense_1.bias",
    ]  # fmt: skip


def test_one_name_twice_is_an_error():
    first, second = Dense(3), Dense(2)
    first.name = second.name = "same"
    with pytest.raises(ValueError, match=r"two layers have the name 'same\.weight': give one of"):
        Model((4,), Sequential(first, second))


def test_one_layer_twice_shares_its_weights(rng):
    dense, relu = Dense(4), ReLU()
    model = Model((1, 1, 4), Sequential(Flatten(), dense, relu, Sequential(dense, relu), Dense(2)))
    assert model.size == 20 + 10
    layers_of_two = [Flatten(), Dense(4), relu, Sequential(Dense(4), relu), Dense(2)]
    apart = Model((1, 1, 4), Sequential(*layers_of_two))
    assert apart.size == 20 + 20 + 10
    theta = model.init(rng, dtype=np.float64)
    twice = np.concatenate([theta[:20], theta])
    images, labels = rng.standard_normal((3, 1, 1, 4)), np.array([0, 1, 1])
    loss, gradient = model.loss_and_gradient(theta, images, labels)
    expected_loss, both = apart.loss_and_gradient(twice, images, labels)
    assert_close(loss, expected_loss, 1e-14)
    assert_close(gradient[:20], both[:20] + both[20:40], 1e-13)
    assert_close(gradient[20:], both[40:], 1e-13)
    assert_close(model.logits(theta, images), apart.logits(twice, images), 1e-14)


def test_what_makes_no_model_is_told_in_words():
    with pytest.raises(TypeError, match=r"Model: network is \[Dense.*\], expected a layer"):
        Model((2, 3, 1), [Dense(3)])
    assert Model(6, Sequential(Dense(3))).input_shape == (6,)

    class Forgetful(Layer):
        def connect(self, shape, layout):
            layout.add(self, "weight", shape, None)

    with pytest.raises(TypeError, match=r"Forgetful.connect returned None, expected a tuple"):
        Model(6, Sequential(Forgetful(), Dense(3)))
    with pytest.raises(ValueError, match=r"dtype is .*float16.*, expected float32 or float64"):
        Model(6, Sequential(Dense(3))).init(np.random.default_rng(0), dtype=np.float16)
    with pytest.raises(ValueError, match=r"init_stats: dtype is .*float16"):
        Model(6, Sequential(Dense(3))).init_stats(dtype=np.float16)


def test_one_layer_in_two_places_that_need_other_shapes():
    dense = Dense(4)
    message = r"dense_2: this very layer stands in the network already, with weight \(9, 4\), and h"
    with pytest.raises(ValueError, match=message):
        Model((9,), Sequential(dense, dense))


def test_layers_may_serve_several_models(rng):
    """Elsewhere a layer's weights lie elsewhere: the first model must not notice."""
    shared = Dense(4)
    first = Model((1, 2, 2), Sequential(Flatten(), shared))
    theta = first.init(rng)
    images = rng.standard_normal((3, 1, 2, 2)).astype(np.float32)
    before = first.logits(theta, images)
    second = Model((1, 2, 2), Sequential(Flatten(), Dense(9), shared))
    np.testing.assert_array_equal(first.logits(theta, images), before)
    assert second.logits(second.init(rng), images).shape == (3, 4)
    assert vars(shared).keys() == vars(Dense(4)).keys(), "a model has touched the layer itself"


def test_statistics_have_a_vector_of_their_own():
    layout = Layout()
    layer = Dense(3)
    layout.add(layer, "weight", (2, 3), layers.zeros)
    layout.add_statistic(layer, "mean", (3,), layers.zeros)
    layout.add_statistic(layer, "variance", (3,), layers.ones)
    assert [entry.start for entry in layout.statistics] == [0, 3]
    assert layout["variance"].shape == (3,)


def test_a_network_must_end_with_classes():
    with pytest.raises(ValueError, match=r"ends with \(8, 9, 2\), expected \(classes,\)"):
        Model((8, 9, 2), Sequential(ReLU()))


@pytest.mark.parametrize(("make", "size"), [(lenet, 3_274_634), (lenet_classic, 61_706)])
def test_published_numbers_of_weights(make, size):
    model = make()
    assert model.size == size
    assert model.classes == 10
    assert model.input_shape == (28, 28, 1)


def test_networks_for_other_images_and_classes(rng):
    for make in (lenet, lenet_classic):
        model = make(input_shape=(20, 24, 3), classes=4)
        theta = model.init(rng)
        images = rng.standard_normal((2, 20, 24, 3)).astype(np.float32)
        assert model.predict(theta, images).shape == (2, 4)


def test_summary():
    text = tiny().summary()
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "output", "weights", "arrays"]
    assert lines[2].split() == ["conv2d_1", "8×9×16", "304", "weight", "3×3×2×16,", "bias", "16"]
    assert lines[3].split()[:3] == ["conv2d_2", "8×9×16", "2,320"]
    assert lines[4].split() == ["maxpool_1", "4×4×16"]
    assert any(line.startswith("sequential_1.conv2d_1 ") for line in lines)
    assert lines[-1] == "input 8×9×2, 3,248 weights"
    assert "dense_2" in lines[-3]
    numbers = [int(line.split()[2].replace(",", "")) for line in lines[2:-2] if "×" in line
               and len(line.split()) > 2]  # fmt: skip
    assert sum(numbers) <= 3248
    assert all(len(line) == len(line.rstrip()) for line in lines)
    assert "3,274,634 weights" in lenet().summary()


# --- initial weights ----------------------------------------------------------------------


def test_init_depends_on_the_generator_alone():
    model = tiny()
    first, again, other = (model.init(np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    assert first.dtype == np.float32
    assert first.shape == (model.size,)
    double = model.init(np.random.default_rng(1), dtype=np.float64)
    np.testing.assert_array_equal(double.astype(np.float32), first)


def test_init_of_several_networks():
    model = tiny()
    rngs = [np.random.default_rng(s) for s in (1, 2, 3)]
    listed = model.init(rngs)
    assert listed.shape == (3, model.size)
    for s in (1, 2, 3):
        np.testing.assert_array_equal(listed[s - 1], model.init(np.random.default_rng(s)))
    spawned = model.init(np.random.default_rng(5), replicas=4)
    for theta, generator in zip(spawned, np.random.default_rng(5).spawn(4), strict=True):
        np.testing.assert_array_equal(theta, model.init(generator))


@pytest.mark.parametrize("make", [tiny, lenet_classic])
def test_glorot_bounds_and_zero_biases(rng, make):
    model = make()
    theta = model.init(rng)
    for entry in model.layout.weights:
        values = entry.view(theta)
        if entry.name.endswith("bias"):
            assert not values.any()
        elif entry.initializer is layers.glorot_uniform:
            limit = np.float32(np.sqrt(6 / sum(entry.fans)))
            assert 0.8 * limit < np.abs(values).max() <= limit


def test_statistics_of_a_network_without_any():
    assert tiny().init_stats().shape == (0,)
    assert tiny().init_stats(replicas=3).shape == (3, 0)


# --- loss and gradient --------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_in_random_directions(rng, smoothing, dropout):
    model = tiny(dropout, smoothing)
    theta = model.init(rng, dtype=np.float64) + 0.05 * rng.standard_normal(model.size)
    images, labels = data(rng, model)

    def loss_at(theta):
        seeded = np.random.default_rng(11)  # the same units are dropped each time
        return model.loss_and_gradient(theta, images, labels, rng=seeded)

    loss, gradient = loss_at(theta)
    assert np.shape(loss) == ()
    assert gradient.shape == theta.shape
    for _ in range(5):
        direction = rng.standard_normal(model.size)
        step = 1e-6
        expected = (loss_at(theta + step * direction)[0] - loss_at(theta - step * direction)[0]) / (
            2 * step
        )
        scale = np.linalg.norm(gradient) * np.sqrt(model.size) / 10
        assert abs(gradient @ direction - expected) < 1e-6 * scale


def test_the_loss_is_that_of_the_predictions(rng):
    model = tiny()
    theta = model.init(rng, dtype=np.float64)
    images, labels = data(rng, model)
    loss, _ = model.loss_and_gradient(theta, images, labels)
    p = model.predict(theta, images)
    assert_close(p.sum(axis=-1), np.ones(6), 1e-14)
    assert loss == pytest.approx(-np.log(p[np.arange(6), labels]).mean(), rel=1e-12)


@pytest.mark.parametrize("own", [True, False], ids=["own batches", "one batch"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_at_once_are_networks_one_by_one(rng, own, dropout, dtype):
    """The losses to the bit, the gradients to rounding (their sums are cut differently)."""
    model = tiny(dropout)
    theta = model.init(rng, replicas=3, dtype=dtype)
    images, labels = data(rng, model, 33, (3,) if own else (), dtype)
    together = [np.random.default_rng(r) for r in range(3)]
    losses, gradients = model.loss_and_gradient(theta, images, labels, rng=together)
    assert losses.shape == (3,)
    assert losses.dtype == gradients.dtype == dtype
    tolerance = 1e-13 if dtype is np.float64 else 2e-6
    for r in range(3):
        batch = (images[r], labels[r]) if own else (images, labels)
        loss, gradient = model.loss_and_gradient(theta[r], *batch, rng=np.random.default_rng(r))
        assert losses[r] == loss
        assert_close(gradients[r], gradient, tolerance)


@pytest.mark.parametrize("own", [True, False], ids=["own batches", "one batch"])
def test_lenet_at_once_is_lenet_one_by_one(rng, own):
    """150 images: more than one tile of every layer. Logits to the bit."""
    model = lenet(channels=(4, 16), hidden=40)
    theta = model.init(rng, replicas=2)
    images, labels = data(rng, model, 150, (2,) if own else (), np.float32)
    logits = model.logits(theta, images)
    losses, gradients = model.loss_and_gradient(
        theta, images, labels, rng=[np.random.default_rng(r) for r in range(2)]
    )
    for r in range(2):
        batch = (images[r], labels[r]) if own else (images, labels)
        np.testing.assert_array_equal(logits[r], model.logits(theta[r], batch[0]))
        loss, gradient = model.loss_and_gradient(theta[r], *batch, rng=np.random.default_rng(r))
        assert losses[r] == pytest.approx(float(loss), rel=1e-6)
        for entry in model.layout.weights:
            assert_close(entry.view(gradients)[r], entry.view(gradient), 1e-5)


def test_the_number_of_threads_changes_no_bit(rng):
    model = lenet(channels=(8, 16), hidden=200)
    theta = model.init(rng, replicas=2)
    images, labels = data(rng, model, 60, (), np.float32)
    results = []
    for count in (1, 2, 3):
        with arrays.threads(count):
            rngs = [np.random.default_rng(r) for r in range(2)]
            loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rngs)
            results.append((loss, gradient, model.logits(theta, images)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_batches_of_predictions_change_nothing(rng):
    model = tiny()
    theta = model.init(rng, replicas=2, dtype=np.float64)
    images, _ = data(rng, model, 11)
    whole = model.logits(theta, images, batch=100)
    for batch in (1, 4, 11):
        assert_close(model.logits(theta, images, batch=batch), whole, 1e-13)
    model.batch = 3
    assert_close(model.logits(theta, images), whole, 1e-13)
    with pytest.raises(ValueError, match="there is no image, pass at least 1"):
        model.logits(theta, images[:0])
    own = np.stack([images, images[::-1]])
    assert_close(model.logits(theta, own, batch=4)[1], whole[1, ::-1], 1e-13)


def test_prediction_draws_nothing_and_records_nothing(rng):
    model = tiny(dropout=0.5)
    theta = model.init(rng)
    images, _ = data(rng, model, dtype=np.float32)
    first, second = model.predict(theta, images), model.predict(theta, images)
    np.testing.assert_array_equal(first, second)
    assert type(first) is np.ndarray


def test_theta_is_left_alone_and_gradients_are_new(rng):
    model = tiny()
    theta = model.init(rng)
    images, labels = data(rng, model, dtype=np.float32)
    copies = theta.copy(), images.copy(), labels.copy()
    _, first = model.loss_and_gradient(theta, images, labels)
    kept = first.copy()
    _, second = model.loss_and_gradient(theta * 2, images, labels)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    for now, before in zip((theta, images, labels), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_training_step_leaves_nothing_behind(rng):
    model = lenet_classic(dropout=0.3)
    theta = model.init(rng)
    images, labels = data(rng, model, 8, dtype=np.float32)
    model.loss_and_gradient(theta, images, labels, rng=rng)
    gc.collect()
    gc.disable()
    try:
        _, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
        dead = weakref.ref(gradient)
        del gradient
        assert dead() is None
        assert gc.collect() == 0, "a step makes reference cycles"
    finally:
        gc.enable()


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theta", "images", "message"),
    [
        ((5,), (6, 8, 9, 2), r"theta is \(5,\), this model has 3,248 weights: expected \(3248,\)"),
        ((2, 2, 3248), (6, 8, 9, 2), r"theta is \(2, 2, 3248\).* or \(R, 3248\)"),
        ((3248,), (8, 9, 2), r"images are \(8, 9, 2\), expected \(N, 8, 9, 2\)$"),
        ((3248,), (6, 9, 8, 2), r"images are \(6, 9, 8, 2\), expected \(N, 8, 9, 2\)$"),
        ((3248,), (1, 6, 8, 9, 2), r"images are .*expected \(N, 8, 9, 2\)$"),
        ((2, 3248), (3, 6, 8, 9, 2), r"expected \(N, 8, 9, 2\) or \(2, N, 8, 9, 2\)"),
    ],
)
def test_shapes_that_do_not_fit(theta, images, message):
    model = tiny()
    arrays = np.zeros(theta), np.zeros(images)
    with pytest.raises(ValueError, match=message):
        model.loss_and_gradient(*arrays, np.zeros(6, int))
    with pytest.raises(ValueError, match=message):
        model.logits(*arrays)


def test_images_of_another_type_say_what_to_do(rng):
    model = tiny()
    theta = model.init(rng)
    images, labels = data(rng, model)
    with pytest.raises(ValueError, match=r"images are float64, theta is float32: convert"):
        model.loss_and_gradient(theta, images, labels)
    with pytest.raises(ValueError, match=r"images are uint8, theta.*minires\.data\.scale"):
        model.predict(theta, images.astype(np.uint8))


def test_labels_that_do_not_fit(rng):
    model = tiny()
    theta = model.init(rng, dtype=np.float64)
    images, labels = data(rng, model)
    with pytest.raises(ValueError, match=r"labels \(5,\) for logits \(6, 4\): expected \(6,\)"):
        model.loss_and_gradient(theta, images, labels[:5])
    with pytest.raises(ValueError, match=r"labels go from 4 to 4, expected 0 to 3: do they"):
        model.loss_and_gradient(theta, images, np.full(6, 4))


def test_dropout_without_a_generator_says_what_to_pass(rng):
    model = tiny(dropout=0.5)
    images, labels = data(rng, model)
    with pytest.raises(ValueError, match=r"Dropout: .* pass rng=.*or build .* dropout=0"):
        model.loss_and_gradient(model.init(rng, dtype=np.float64), images, labels)


def test_statistics_that_do_not_fit(rng):
    model = tiny()
    images, labels = data(rng, model)
    theta = model.init(rng, dtype=np.float64)
    model.loss_and_gradient(theta, images, labels, stats=np.empty(0))
    with pytest.raises(ValueError, match=r"stats is \(3,\), expected \(0,\)"):
        model.loss_and_gradient(theta, images, labels, stats=np.empty(3))


def test_a_global_mean_network(rng):
    model = Model((6, 7, 3), Sequential(Conv2D(16, 3), ReLU(), GlobalMeanPool(), Dense(3)))
    theta = model.init(rng, dtype=np.float64)
    images, labels = data(rng, model)
    _, gradient = model.loss_and_gradient(theta, images, labels)
    direction = rng.standard_normal(model.size)
    high, low = (
        model.loss_and_gradient(theta + step * direction, images, labels)[0]
        for step in (1e-6, -1e-6)
    )
    assert gradient @ direction == pytest.approx((high - low) / 2e-6, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "stacked",
    [
        lambda theta: np.broadcast_to(theta, (3, theta.size)),
        lambda theta: np.stack([theta, 2 * theta])[::-1],
        lambda theta: np.asfortranarray(np.stack([theta, 2 * theta])),
        lambda theta: np.stack([theta, 2 * theta] * 2)[::2],
        lambda theta: np.stack([theta, 2 * theta]).repeat(2, axis=1)[:, ::2],
    ],
)
def test_networks_may_lie_in_memory_in_any_way(rng, stacked):
    model = tiny()
    theta = stacked(model.init(rng, dtype=np.float64))
    images, labels = rng.standard_normal((4, 8, 9, 2)), [0, 1, 2, 3]
    expected = model.loss_and_gradient(np.ascontiguousarray(theta), images, labels)
    found = model.loss_and_gradient(theta, images, labels)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_an_error_leaves_the_statistics_as_they_were(rng):
    model = Model((4, 4, 1), Sequential(layers.BatchNorm(), Dropout(0.5), Flatten(), Dense(3)))
    theta, stats = model.init(rng), model.init_stats()
    images = rng.standard_normal((4, 4, 4, 1)).astype(np.float32)
    for labels, given in (([0, 1, 2, 3], rng), ([0, 1], rng), ([0, 1, 2, 0], None)):
        with pytest.raises(ValueError, match=r"labels|rng"):
            model.loss_and_gradient(theta, images, labels, stats, given)
        np.testing.assert_array_equal(stats, model.init_stats())
    model.loss_and_gradient(theta, images, [0, 1, 2, 0], stats, rng)
    assert (stats != model.init_stats()).any()
