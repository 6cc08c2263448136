"""Layers: the shapes they announce and keep, the weights they ask for, initial weights, errors."""

import math
import re

import numpy as np
import pytest
from helpers import assert_close

from minires.engine import ops
from minires.engine.convolution import conv2d, max_pool, mean_pool
from minires.networks.layers import (
    INITIALIZERS,
    Activation,
    AuxiliaryHead,
    BatchNorm,
    Branches,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalMeanPool,
    Layer,
    MaxPool,
    MeanPool,
    ReLU,
    ReLU6,
    Sequential,
    ones,
    zeros,
)
from minires.networks.model import ForwardPass, Layout, Model


def connect(layer, shape):
    """The output shape, and the declared arrays {name: shape}."""
    layout = Layout()
    output = layer.connect(shape, layout)
    return output, layout


def apply(layer, layout, x, rng=None, training=False):
    """The output, and θ: normal numbers in every array."""
    size = sum(entry.size for entry in layout.weights)
    theta = np.random.default_rng(0).standard_normal(size)
    mode = "train" if training else "predict"
    return layer.apply(x, ForwardPass(layout, theta, np.empty(0), mode, rng)), theta


IMAGES = (11, 9, 3)
CASES = [
    (Dense(5), (7,), {"weight": (7, 5), "bias": (5,)}),
    (Dense(5, bias=False), (7,), {"weight": (7, 5)}),
    (Conv2D(4, 3), IMAGES, {"weight": (3, 3, 3, 4), "bias": (4,)}),
    (Conv2D(4, (3, 2), stride=2, bias=False), IMAGES, {"weight": (3, 2, 3, 4)}),
    (Conv2D(4, 3, padding="valid"), IMAGES, {"weight": (3, 3, 3, 4), "bias": (4,)}),
    (Conv2D(4, 3, padding=((0, 2), (1, 0)), stride=(3, 1)), IMAGES, None),
    (Conv2D(4, 3, dilation=(2, 3), padding=0), IMAGES, None),
    (Conv2D(4, 3, activation="relu"), IMAGES, None),
    (MaxPool(), IMAGES, {}),
    (MaxPool(3, stride=2, padding="same"), IMAGES, {}),
    (MaxPool((2, 3), stride=(1, 2), padding=1), IMAGES, {}),
    (MeanPool(), IMAGES, {}),
    (MeanPool(3, stride=1, padding=1, count_padding=True), IMAGES, {}),
    (GlobalMeanPool(), IMAGES, {}),
    (Flatten(), IMAGES, {}),
    (ReLU(), IMAGES, {}),
    (ReLU6(), (7,), {}),
    (Activation("tanh"), (7,), {}),
    (Activation("sigmoid"), (7,), {}),
    (Dropout(), IMAGES, {}),
    (Sequential(Conv2D(4, 3), MaxPool(), Flatten(), Dense(2)), IMAGES, None),
]


@pytest.mark.parametrize(("layer", "shape", "arrays"), CASES)
@pytest.mark.parametrize("lead", [(2,), (3, 2)])
def test_a_layer_keeps_the_shape_it_announces(rng, layer, shape, arrays, lead):
    output, layout = connect(layer, shape)
    if arrays is not None:
        assert {entry.name: entry.shape for entry in layout.weights} == arrays
    result, _ = apply(layer, layout, rng.standard_normal((*lead, *shape)))
    assert result.shape == (*lead, *output)


def test_dense_and_convolutions_compute_what_they_say(rng):
    x = rng.standard_normal((2, 7))
    layer = Dense(5)
    result, theta = apply(layer, connect(layer, (7,))[1], x)
    assert_close(result, x @ theta[:35].reshape(7, 5) + theta[35:], 1e-14)
    images = rng.standard_normal((2, *IMAGES))
    for options in (
        {"stride": 2, "padding": "same"},
        {"padding": ((0, 2), (1, 0)), "dilation": (2, 1)},
        {"padding": "valid", "activation": "relu6"},
    ):
        layer = Conv2D(4, (3, 2), **options)
        result, theta = apply(layer, connect(layer, IMAGES)[1], images)
        w, b = theta[:72].reshape(3, 2, 3, 4), theta[72:]
        np.testing.assert_array_equal(result, conv2d(images, w, b, **options))


def test_pools_and_activations_compute_what_they_say(rng):
    x = rng.standard_normal((2, *IMAGES))
    options = {"window": (2, 3), "stride": (1, 2), "padding": 1}
    for layer, expected in [
        (MaxPool(**options), max_pool(x, **options)),
        (MaxPool(), max_pool(x)),
        (MeanPool(), mean_pool(x)),
        (MeanPool(**options), mean_pool(x, **options)),
        (MeanPool(**options, count_padding=True), mean_pool(x, **options, count_padding=True)),
        (GlobalMeanPool(), x.mean(axis=(1, 2))),
        (Flatten(), x.reshape(2, -1)),
        (ReLU(), np.maximum(x, 0)),
        (ReLU6(), np.clip(x, 0, 6)),
        (Activation("tanh"), np.tanh(x)),
        (Activation("sigmoid"), 1 / (1 + np.exp(-x))),
    ]:
        result, _ = apply(layer, connect(layer, IMAGES)[1], x)
        assert_close(result, expected, 1e-14)


def test_dropout_drops_in_training_only(rng):
    x = rng.standard_normal((20, 30))
    layer = Dropout(0.3)
    layout = connect(layer, (30,))[1]
    assert apply(layer, layout, x)[0] is x
    assert apply(Dropout(0), layout, x, training=True)[0] is x
    dropped, _ = apply(layer, layout, x, np.random.default_rng(3), training=True)
    expected = ops.dropout(x, rate=0.3, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(dropped, expected)
    assert (dropped == 0).any()


def test_dropout_without_random_numbers_says_what_to_pass(rng):
    layer = Dropout(0.3)
    with pytest.raises(ValueError, match=r"rate 0.3 needs random numbers: pass rng="):
        apply(layer, connect(layer, (30,))[1], rng.standard_normal((2, 30)), training=True)


@pytest.mark.parametrize("images", [3, 5])
def test_networks_that_share_their_images_drop_each_its_own(rng, images):
    model = Model((2, 2, 3), Sequential(Dropout(0.5), Flatten(), Dense(4)))
    theta = model.init(rng, replicas=3, dtype=np.float64)
    x, labels = rng.standard_normal((images, 2, 2, 3)), rng.integers(0, 4, images)
    together = [np.random.default_rng(seed) for seed in range(3)]
    losses, gradients = model.loss_and_gradient(theta, x, labels, rng=together)
    for r in range(3):
        alone = model.loss_and_gradient(theta[r], x, labels, rng=np.random.default_rng(r))
        assert_close(losses[r], alone[0])
        assert_close(gradients[r], alone[1])


def test_branches_on_images_that_networks_share(rng):
    network = Sequential(Branches(MaxPool(2), Conv2D(4, 3, stride=2)), Flatten(), Dense(4))
    model = Model((4, 4, 3), network)
    theta = model.init(rng, replicas=2, dtype=np.float64)
    x, labels = rng.standard_normal((5, 4, 4, 3)), rng.integers(0, 4, 5)
    losses, gradients = model.loss_and_gradient(theta, x, labels)
    for r in range(2):
        alone = model.loss_and_gradient(theta[r], x, labels)
        assert_close(losses[r], alone[0])
        assert_close(gradients[r], alone[1])


def test_a_weight_that_a_pass_does_not_use_has_gradient_zero(rng, monkeypatch):
    class Idle(Layer):
        def connect(self, shape, layout):
            layout.add(self, "weight", (40_000,), zeros)
            return shape

        def apply(self, x, run):
            return x

    model = Model((1, 1, 3), Sequential(Idle(), Flatten(), Dense(10)))
    theta = model.init(rng, dtype=np.float64)
    # What memory that nobody has filled may hold.
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, 777, dtype))
    _, gradient = model.loss_and_gradient(theta, rng.standard_normal((2, 1, 1, 3)), np.arange(2))
    assert not gradient[:40_000].any()
    assert gradient[40_000:].any()


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_dropout_rates(rate):
    with pytest.raises(ValueError, match=r"Dropout: rate is .*, expected 0 <= rate < 1"):
        Dropout(rate)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Dense(5), IMAGES, r"Dense: the input is \(11, 9, 3\), expected \(features,\)"),
        (Conv2D(5, 3), (7,), r"Conv2D: the input is \(7,\), expected \(H, W, C\)"),
        (Flatten(), (7,), "Flatten: the input is"),
        (MaxPool(), (7,), "MaxPool: the input is"),
        (MeanPool(), (7,), "MeanPool: the input is"),
        (GlobalMeanPool(), (7,), "GlobalMeanPool: the input is"),
        (Conv2D(5, 12, padding="valid"), IMAGES, "exceeds the image of .* larger images or a sm"),
        (MaxPool(10), IMAGES, r"MaxPool: a window of \(10, 10\) exceeds the image of \(11, 9\)"),
    ],
)
def test_inputs_that_do_not_fit(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        connect(layer, shape)


def test_settings_that_mean_nothing():
    for make in (lambda: Conv2D(3, 0), lambda: MaxPool(0), lambda: MaxPool(2, stride=0)):
        with pytest.raises(ValueError, match="expected one or two whole numbers from 1 up"):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Dense(3, initializer="xavier"),
            "Dense: initializer is 'xavier', expected one of 'glorot', 'he', 'truncated_normal'",
        ),
        (lambda: Dense(0), "Dense: units is 0, expected a whole number >= 1"),
        (lambda: Dense(2.5), "Dense: units is 2.5"),
        (lambda: Conv2D(0, 3), "Conv2D: channels is 0"),
        (lambda: Conv2D(3, "3"), "Conv2D: kernel is '3', expected one or two whole numbers"),
        (lambda: Conv2D(3, 3, stride=None), "Conv2D: stride is None"),
        (lambda: Conv2D(3, 3, dilation=0), "Conv2D: dilation is 0"),
        (lambda: Conv2D(3, 3, padding="full"), "Conv2D: padding is 'full', expected pixels"),
        (lambda: Conv2D(3, 3, padding=-1), "Conv2D: padding is -1"),
        (
            lambda: Conv2D(3, 3, activation="tanh"),
            "Conv2D: activation is 'tanh', expected one of None, 'relu', 'relu6'",
        ),
        (lambda: DepthwiseConv2D(3, initializer="x"), "DepthwiseConv2D: initializer is 'x'"),
        (lambda: DepthwiseConv2D(3, activation="elu"), "DepthwiseConv2D: activation is 'elu'"),
        (lambda: MaxPool(2, padding="x"), "MaxPool: padding is 'x'"),
        (lambda: MeanPool(0), "MeanPool: window is 0"),
        (
            lambda: Activation("gelu"),
            "Activation: function is 'gelu', expected one of 'relu', 'relu6', 'tanh', 'sigmoid'",
        ),
        (lambda: Dropout("half"), "Dropout: rate is 'half', expected 0 <= rate < 1"),
        (lambda: Dropout(float("nan")), "Dropout: rate is nan"),
        (lambda: BatchNorm(momentum=1.5), "BatchNorm: momentum is 1.5"),
        (lambda: BatchNorm(epsilon=-1), "BatchNorm: epsilon is -1"),
        (lambda: BatchNorm(activation="tanh"), "BatchNorm: activation is 'tanh'"),
        (lambda: AuxiliaryHead(Dense(2), weight=-1), "AuxiliaryHead: weight is -1"),
        (lambda: Model((8, 0, 1), Flatten()), "Model: input_shape is 0"),
        (lambda: Model((8, 8, 1), Flatten(), smoothing=1), "Model: smoothing is 1"),
    ],
)
def test_a_bad_setting_is_refused_where_it_is_given(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_what_is_no_layer_is_refused():
    with pytest.raises(
        TypeError, match=r"Sequential: argument 2 is <class .*Flatten'>, expected a"
    ):
        Sequential(Dense(3), Flatten)
    with pytest.raises(TypeError, match=r"write Flatten\(…\), with brackets"):
        Sequential(Flatten)
    with pytest.raises(TypeError, match=r"write Sequential\(\*layers\), with a star"):
        Sequential([Flatten(), Dense(3)])


def test_layers_show_their_settings():
    assert repr(Dense(3)) == "Dense(units=3, bias=True, initializer='glorot')"
    assert repr(Sequential(Dropout(0.5), ReLU())) == (
        "Sequential(Dropout(rate=0.5), Activation(function='relu'))"
    )
    assert repr(MaxPool(2)) == "MaxPool(window=(2, 2), stride=(2, 2), padding=0)"
    assert repr(Flatten()) == "Flatten()"


def test_a_layer_without_arithmetic_says_so():
    with pytest.raises(NotImplementedError):
        Layer().apply(None, None)


# --- initial weights ----------------------------------------------------------------------


def test_glorot_is_uniform_within_its_bounds(rng):
    values = INITIALIZERS["glorot"](rng, (300, 200), 300, 200)
    limit = math.sqrt(6 / 500)
    assert np.abs(values).max() <= limit
    assert np.abs(values).max() > 0.999 * limit
    assert abs(values.mean()) < 5 * limit / math.sqrt(3 * values.size)
    assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.01)


def test_he_is_normal_with_variance_two_over_fan_in(rng):
    values = INITIALIZERS["he"](rng, (300, 200), 300, 200)
    assert values.std() == pytest.approx(math.sqrt(2 / 300), rel=0.01)
    assert abs(values.mean()) < 5 * values.std() / math.sqrt(values.size)
    assert np.abs(values).max() > 3.5 * values.std()  # not uniform, not truncated


def test_truncated_normal_ends_at_two_deviations(rng):
    values = INITIALIZERS["truncated_normal"](rng, (300, 200), 300, 200)
    assert 0.1999 < np.abs(values).max() <= 0.2
    # The deviation of a normal number cut at ±2σ is 0.8796 σ.
    assert values.std() == pytest.approx(0.1 * 0.8796, rel=0.01)


def test_constants(rng):
    assert zeros(rng, (2,), 1, 1) == 0
    assert ones(rng, (2,), 1, 1) == 1


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_fans_of_dense_and_convolution(initializer):
    """fan-in counts the taps of every input channel, fan-out those of every output channel."""
    for layer, shape, fans in [
        (Dense(5, initializer=initializer), (7,), (7, 5)),
        (Conv2D(4, (3, 2), initializer=initializer), IMAGES, (18, 24)),
    ]:
        _, layout = connect(layer, shape)
        assert layout["weight"].fans == fans
        assert layout["weight"].initializer is INITIALIZERS[initializer]
        assert layout["bias"].initializer is zeros
