"""Layers done in one pass, pooling and separable convolutions: the same network, faster."""

import itertools
from unittest import mock

import numpy as np
import pytest
from helpers import assert_close, generator, seeds
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minires import kernels, lenet, mobilenet_v2
from minires.arrays import threads
from minires.engine import ops
from minires.engine.autodiff import gradients
from minires.kernels import cpu
from minires.networks.folding import JoinedConv2D, joined_network
from minires.networks.layers import (
    BatchNorm,
    Branches,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    Layer,
    MaxPool,
    MeanPool,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    ones,
)
from minires.networks.model import ForwardPass, Model


def kinds(network):
    """What is done, one layer after another: (layer, activation, pool) or the layer's kind."""
    return [
        (layer.activation, layer.pool) if isinstance(layer, JoinedConv2D) else layer.kind
        for layer in joined_network(network).layers
    ]


def connected(*layers, shape=(9, 8, 2)):
    return Model(shape, Sequential(*layers, Flatten(), Dense(2))).network


def plain_gradient(model, theta, images, labels, stats=None):
    """Loss and gradient of the network as it was written, no layer joined with another."""
    gradient = np.zeros_like(theta)
    run = ForwardPass(model.layout, theta, stats, "train", gradient=gradient)
    loss = ops.softmax_cross_entropy(model.network.apply(images, run), labels)
    gradients(loss, run.variables.values())
    return loss.data, gradient


def test_lenet_has_two_passes_over_images():
    expected = ["Flatten", "Dense", "relu", "Dropout", "Dense"]
    assert kinds(lenet().network) == [("relu", (2, 2))] * 2 + expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([Conv2D(3, 2), ReLU6()], [("relu6", None)]),
        ([Conv2D(3, 2), ReLU(), MaxPool((2, 3))], [("relu", (2, 3))]),
        ([Conv2D(3, 2, activation="relu"), MaxPool(2)], [("relu", (2, 2))]),
        # Not in one pass: overlapping or padded windows, other functions, a second of a kind.
        ([Conv2D(3, 2), MaxPool(3, 2)], [(None, None), "MaxPool"]),
        ([Conv2D(3, 2), MaxPool(2, padding=1)], [(None, None), "MaxPool"]),
        ([Conv2D(3, 2), MeanPool(2)], [(None, None), "MeanPool"]),
        ([Conv2D(3, 2), MaxPool(2), MaxPool(2)], [(None, (2, 2)), "MaxPool"]),
        ([Conv2D(3, 2), ReLU(), ReLU6()], [("relu", None), "relu6"]),
        ([MaxPool(2), ReLU()], ["MaxPool", "relu"]),
        ([Conv2D(3, 2), Dropout(0.1), ReLU()], [(None, None), "Dropout", "relu"]),
    ],
)
def test_what_is_joined(layers, expected):
    assert kinds(connected(*layers)) == [*expected, "Flatten", "Dense"]


@pytest.mark.parametrize(("window", "joins"), [((16, 16), True), ((1, 257), False)])
def test_only_a_window_whose_pixels_fit_a_byte_is_joined(rng, window, joins):
    model = Model((17, 258, 1), Sequential(Conv2D(2, 1), MaxPool(window), Flatten(), Dense(3)))
    assert kinds(model.network)[0] == (None, window if joins else None)
    theta = model.init(rng, dtype=float)
    images, labels = rng.standard_normal((2, 17, 258, 1)), np.array([0, 2])
    _, expected = plain_gradient(model, theta, images, labels)
    assert_close(model.loss_and_gradient(theta, images, labels)[1], expected, 1e-12)


def test_branches_are_no_sequence():
    network = connected(Branches(Conv2D(2, 1), ReLU()))
    assert [type(layer) for layer in joined_network(network).layers[0].layers] == [
        JoinedConv2D,
        type(ReLU()),
    ]


@pytest.mark.parametrize("replicas", [None, 2])
@pytest.mark.parametrize("own", [False, True])
def test_joined_and_plain_networks_are_equal(rng, replicas, own):
    """Loss, every gradient, and logits; for odd images, whose last row no window covers."""
    model = lenet(channels=(16, 17), hidden=8, dropout=0, input_shape=(15, 14, 2))
    theta = model.init(rng, replicas, dtype=float)
    images = rng.standard_normal((*([replicas] if own and replicas else []), 5, 15, 14, 2))
    labels = rng.integers(0, 10, images.shape[:-3])
    loss, gradient = model.loss_and_gradient(theta, images, labels)
    expected_loss, expected = plain_gradient(model, theta, images, labels)
    assert_close(loss, expected_loss, 1e-13)
    assert_close(gradient, expected, 1e-12)
    forward = ForwardPass(model.layout, theta)
    assert_close(model.logits(theta, images), model.network.apply(images, forward), 1e-12)


# --- separable convolutions ---------------------------------------------------------------


@st.composite
def separable_convolutions(draw):
    """Any kernel, stride and padding, with and without expansion, shared and own images."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    side = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = draw(st.tuples(side, side))
    size = [
        max(k - sum(border), 1) + draw(st.integers(0, 8))
        for k, border in zip(kernel, padding, strict=True)
    ]
    replicas = draw(st.sampled_from([1, 2]))
    sources = draw(st.sampled_from([1, replicas]))
    images, channels, wide, out_channels = (draw(st.integers(1, n)) for n in (3, 4, 9, 4))
    rng = generator(draw(seeds))
    expand = None
    if draw(st.booleans()):
        bias = rng.standard_normal((replicas, wide))
        expand = rng.standard_normal((replicas, channels, wide)), bias
    else:
        wide = channels
    x = rng.standard_normal((sources, images, *size, channels))
    bias = rng.standard_normal((replicas, wide))
    depthwise = rng.standard_normal((replicas, *kernel, wide)), bias
    bias = rng.standard_normal((replicas, out_channels))
    project = rng.standard_normal((replicas, wide, out_channels)), bias
    activations = draw(st.tuples(*[st.sampled_from([None, "relu", "relu6"])] * 3))
    return x, expand, depthwise, project, stride, padding, activations


def one_after_another(x, expand, depthwise, project, stride, padding, activations):
    one, none = (1, 1), ((0, 0), (0, 0))
    first, second, third = activations
    y = x
    if expand is not None:
        y = cpu.convolve(y, expand[0][:, None, None], expand[1], one, none, one, first)
    y = cpu.depthwise(y, *depthwise, stride, padding, one, second)
    return cpu.convolve(y, project[0][:, None, None], project[1], one, none, one, third)


@settings(max_examples=200)
@given(case=separable_convolutions(), tile_bytes=st.sampled_from([1, 500, 1 << 20]))
def test_separable_convolutions_are_one_after_another(case, tile_bytes):
    with mock.patch.object(cpu, "WIDE_BYTES", tile_bytes):
        assert_close(cpu.separable(*case), one_after_another(*case), 1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("expands", [False, True])
def test_separable_convolutions_of_every_width(rng, stride, expands):
    for kernel, width, left, right in itertools.product((1, 2, 3, 4), range(1, 9), (0, 1), (0, 2)):
        if left + width + right < kernel:
            continue
        parts = [((1, 2, 2), (1, 2)), ((1, 2, kernel, 2), (1, 2)), ((1, 2, 3), (1, 3))]
        parts = [tuple(rng.standard_normal(shape) for shape in shapes) for shapes in parts]
        if not expands:
            parts[0] = None
        x, padding = rng.standard_normal((1, 2, 4, width, 2)), ((1, 0), (left, right))
        case = x, *parts, (1, stride), padding, ("relu", "relu6", None)
        assert_close(cpu.separable(*case), one_after_another(*case), 1e-12)


def test_separable_convolutions_are_the_same_bits_on_any_number_of_threads(rng):
    x = rng.standard_normal((1, 3, 9, 8, 2))
    parts = [
        tuple(rng.standard_normal(shape) for shape in shapes)
        for shapes in (((2, 2, 5), (2, 5)), ((2, 3, 3, 5), (2, 5)), ((2, 5, 4), (2, 4)))
    ]
    results = []
    for count in (1, 2, 3):
        with threads(count), mock.patch.object(cpu, "WIDE_BYTES", 1500):
            results.append(
                cpu.separable(x, *parts, (2, 1), ((1, 1), (1, 1)), ("relu6", None, "relu"))
            )
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_what_a_thread_s_buffers_held_before_is_no_input(rng):
    """Of 7 columns at stride 2 one group has fewer than the other: nothing is there to compute."""
    x = rng.standard_normal((1, 2, 7, 7, 3))
    parts = [
        tuple(rng.standard_normal(shape) for shape in shapes)
        for shapes in (((1, 3, 8), (1, 8)), ((1, 3, 3, 8), (1, 8)), ((1, 8, 2), (1, 2)))
    ]
    case = x, *parts, (2, 2), ((1, 1), (1, 1)), ("relu", "relu", None)
    with threads(1):
        cpu.separable(np.full((1, 2, 17, 17, 3), np.inf), *case[1:])
        result = cpu.separable(*case)
    assert_close(result, one_after_another(*case), 1e-12)


def test_which_convolutions_are_joined():
    def kinds(*layers):
        network = connected(*layers)
        return [type(layer).__name__ for layer in joined_network(network).layers[:-2]]

    pointwise, depthwise = Conv2D(4, 1, activation="relu"), DepthwiseConv2D(3)
    assert kinds(pointwise, depthwise, Conv2D(3, 1)) == ["JoinedSeparable"]
    assert kinds(depthwise, Conv2D(3, 1), ReLU6()) == ["JoinedSeparable"]
    assert kinds(Conv2D(4, 3), depthwise, pointwise) == ["JoinedConv2D", "JoinedSeparable"]
    # No pixel by itself, a pooling between, holes in the kernel, no bias.
    for between, last in (
        (depthwise, Conv2D(4, 3)),
        (depthwise, Conv2D(4, 1, 2)),
        (DepthwiseConv2D(3, dilation=2), pointwise),
        (DepthwiseConv2D(3, bias=False), pointwise),
    ):
        assert kinds(between, last) == ["DepthwiseConv2D", "JoinedConv2D"]
    assert kinds(Conv2D(4, 1), MaxPool(2), depthwise, pointwise)[0] == "JoinedConv2D"


@pytest.mark.parametrize("variant", ["tf", "torch"])
@pytest.mark.parametrize("replicas", [None, 2])
def test_a_joined_mobilenet_predicts_the_same(rng, variant, replicas):
    model = mobilenet_v2(width=0.1, input_shape=(66, 67, 3), classes=5, variant=variant)
    theta = model.init(rng, replicas, dtype=float)
    stats = model.init_stats(replicas, dtype=float)
    images = rng.standard_normal((2, 66, 67, 3))
    plain = model.network.apply(images, ForwardPass(model.layout, theta, stats))
    with mock.patch.object(cpu, "separable", wraps=cpu.separable) as used:
        assert_close(model.logits(theta, images, stats), plain, 1e-10)
    assert used.call_count == 17


@pytest.mark.parametrize("before", [[], [Conv2D(3, 3)]])
def test_networks_with_separable_convolutions_and_no_batch_norm_are_trained(rng, before):
    layers = Conv2D(4, 1), DepthwiseConv2D(3, 2, activation="relu6"), Conv2D(3, 1)
    model = Model((9, 8, 2), Sequential(*before, *layers, Flatten(), Dense(3)))
    theta, images = model.init(rng, dtype=float), rng.standard_normal((4, 9, 8, 2))
    labels = np.array([0, 1, 2, 0])
    _, expected = plain_gradient(model, theta, images, labels)
    assert_close(model.loss_and_gradient(theta, images, labels)[1], expected, 1e-13)


# --- any network --------------------------------------------------------------------------

activations = st.sampled_from([None, "relu", "relu6"])
paddings = st.sampled_from(["same", "same", "valid", 0, 1, (1, 0), ((1, 0), (0, 2))])
channels = st.sampled_from([1, 2, 3, 5, 17])


@st.composite
def some_layers(draw, now):
    """One layer, or some that belong together, for images of `now` channels; few fit no image."""
    which = draw(st.integers(0, 6))
    if which == 0:
        kernel = draw(st.sampled_from([1, 3, 5, (2, 3)]))
        stride, bias = draw(st.sampled_from([1, 1, 2, (1, 2)])), draw(st.booleans())
        return [Conv2D(draw(channels), kernel, stride, draw(paddings), 1, bias, draw(activations))]
    if which == 1:
        return [BatchNorm(activation=draw(activations), frozen=draw(st.booleans()))]
    if which == 2:
        return [MaxPool(draw(st.sampled_from([2, (1, 2), (2, 3)]))), ReLU()]
    if which == 3:
        return [Branches(Sequential(Conv2D(3, 1), ReLU6()), Conv2D(draw(channels), 3))]
    if which == 4:
        return [draw(st.sampled_from([ReLU, ReLU6]))()]
    stride = 1 if which == 5 else draw(st.sampled_from([1, 2, (2, 1)]))
    after, norms = now if which == 5 else draw(channels), draw(st.booleans())
    parts = [
        Conv2D(draw(channels), 1, activation=draw(activations)),
        DepthwiseConv2D(3, stride, "same", activation=draw(activations)),
        Conv2D(after, 1, activation=draw(activations)),
    ]
    if norms:
        parts = [layer for part in parts for layer in (part, BatchNorm())]
    return [Residual(*parts)] if which == 5 else parts


@st.composite
def networks(draw):
    """(model, replicas, images of one shape)"""
    shape = draw(st.tuples(st.integers(4, 15), st.integers(4, 15), channels))
    layers, now = [], shape[-1]
    for _ in range(draw(st.integers(1, 5))):
        more = draw(some_layers(now))
        try:
            model = Model(shape, Sequential(*layers, *more, Flatten(), Dense(3)))
        except ValueError:  # a window that exceeds the image
            continue
        layers += more
        now = model.layout.rows[-2][2][-1]
    assume(layers)
    replicas = draw(st.sampled_from([None, 1, 2]))
    lead = [replicas] if replicas and draw(st.booleans()) else []
    images = generator(draw(seeds)).standard_normal((*lead, draw(st.integers(2, 4)), *shape))
    return Model(shape, Sequential(*layers, Flatten(), Dense(3))), replicas, images


@settings(max_examples=60)
@given(case=networks(), tile_bytes=st.sampled_from([1, 3000, 1 << 20]), count=st.integers(1, 4))
def test_any_network_joined_and_folded_is_the_network_as_written(case, tile_bytes, count):
    model, replicas, images = case
    rng = np.random.default_rng(0)
    theta = model.init(rng, replicas, dtype=float)
    theta += 0.3 * rng.standard_normal(theta.shape)
    stats = model.init_stats(replicas, dtype=float)
    stats += rng.random(stats.shape)
    labels = rng.integers(0, 3, images.shape[:-3])
    with (
        threads(count),
        mock.patch.object(cpu, "WIDE_BYTES", tile_bytes),
        mock.patch.object(cpu, "TILE_BYTES", tile_bytes),
        mock.patch.object(cpu, "PIECES_BYTES", tile_bytes),
    ):
        plain = model.network.apply(images, ForwardPass(model.layout, theta, stats))
        assert_close(model.logits(theta, images, stats), plain, 1e-9)
        expected_stats = stats.copy()
        loss, gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
    expected_loss, expected = plain_gradient(model, theta, images, labels, expected_stats)
    assert_close(loss, expected_loss, 1e-10)
    assert_close(gradient, expected, 1e-7)  # batch norms over two values magnify rounding
    assert_close(stats, expected_stats, 1e-10)


class ScaledResidual(Residual):
    """Somebody's own container, with a weight of its own."""

    def connect(self, shape, layout):
        layout.add(self, "alpha", (), ones)
        return super().connect(shape, layout)

    def apply(self, x, forward):
        alpha = forward[self, "alpha"]
        return ops.add(
            x, ops.multiply(alpha.reshape(*alpha.shape, 1, 1, 1, 1), self.inner(x, forward))
        )

    def inner(self, x, forward):
        for number in range(len(self.layers)):
            x = self.layers[number].apply(x, forward)
        return x


class Scaled(Layer):
    """Somebody's own layer, with a statistic."""

    def connect(self, shape, layout):
        layout.add_statistic(self, "factor", shape[-1:], ones)
        return shape

    def apply(self, x, forward):
        return ops.multiply(x, 3 * forward.statistic(self, "factor"))


class Doubled(Conv2D):
    """A convolution that computes something else."""

    def apply(self, x, forward):
        return ops.multiply(super().apply(x, forward), 2.0)


class Block(Sequential):
    """A convolution and what stands behind it, under a name."""

    def __init__(self):
        super().__init__(Conv2D(2, 3), BatchNorm(), ReLU())


class Gate(Layer):
    """Somebody's own layer that holds another one, and does not say so."""

    def __init__(self):
        self.inner = Conv2D(2, 1)

    def connect(self, shape, layout):
        return layout.connect(self.inner, shape)

    def apply(self, x, forward):
        return ops.multiply(x, ops.sigmoid(self.inner.apply(x, forward)))


class Hidden(Gate):
    """The same, where no attribute shows it."""

    def __init__(self):
        inner = Conv2D(2, 1)
        self.ask = lambda: inner

    def connect(self, shape, layout):
        return layout.connect(self.ask(), shape)

    def apply(self, x, forward):
        return ops.multiply(x, ops.sigmoid(self.ask().apply(x, forward)))


class Tied(Layer):
    """Adds the bias of another layer."""

    def __init__(self, *others):
        self.others = others

    def apply(self, x, forward):
        bias = forward[self.others[0], "bias"]
        return ops.add(x, bias.reshape(*bias.shape[:-1], 1, 1, 1, bias.shape[-1]))


def tied():
    convolution = Conv2D(2, 3)
    return Sequential(convolution, BatchNorm(), Tied(convolution))


def shared_convolution():
    layer = Conv2D(2, 3)
    layer.name = "shared"
    return Sequential(layer, BatchNorm(), layer, BatchNorm(), layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaledResidual(Conv2D(2, 3), ReLU(), Conv2D(2, 3), BatchNorm()),
        Scaled,
        lambda: Sequential(Doubled(2, 3), BatchNorm(), ReLU(), MaxPool(2)),
        Block,
        shared_convolution,
        Gate,
        Hidden,
        tied,
    ],
)
def test_layers_of_other_kinds_predict_and_train_as_they_are_written(rng, make):
    model = Model((8, 8, 2), Sequential(make(), BatchNorm(), Flatten(), Dense(3)))
    theta = model.init(rng, dtype=np.float64) * 1.5
    stats = model.init_stats(dtype=np.float64) * rng.uniform(0.5, 2, model.stats_size)
    images, labels = rng.standard_normal((4, 8, 8, 2)), [0, 1, 2, 0]
    found, own = model.logits(theta, images, stats), stats.copy()
    loss, gradient = model.loss_and_gradient(theta, images, labels, own)
    with kernels("plain"):
        expected, other = model.logits(theta, images, stats), stats.copy()
        plain_loss, plain = model.loss_and_gradient(theta, images, labels, other)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-10)
    np.testing.assert_allclose(gradient, plain, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(own, other, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_folded_says_so(rng):
    model = Model((4, 4, 2), Sequential(Scaled(), BatchNorm(), Flatten(), Dense(3)))
    with pytest.raises(TypeError, match="fold: "):
        model.fold(model.init(rng), model.init_stats())


class Wider(Layer):
    """More channels than it says."""

    def apply(self, x, forward):
        return np.concatenate([x] * 100, axis=-1)


class Shorter(Layer):
    """Fewer rows than it says."""

    def apply(self, x, forward):
        return x[..., :2, :, :]


@pytest.mark.parametrize(("lying", "message"), [(Wider(), "channels"), (Shorter(), "exceed")])
@pytest.mark.parametrize("expands", [True, False])
def test_separable_convolutions_refuse_what_each_of_them_refuses(rng, lying, message, expands):
    first = [Conv2D(4, 1)] if expands else []
    model = Model(
        (6, 6, 4),
        Sequential(
            lying, *first, DepthwiseConv2D(3, padding="valid"), Conv2D(4, 1), Flatten(), Dense(2)
        ),
    )
    images = rng.standard_normal((2, 6, 6, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        model.logits(model.init(rng), images)
