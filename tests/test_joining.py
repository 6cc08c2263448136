"""Pooling and activations done together with the convolution before them: the same network."""

import numpy as np
import pytest
from helpers import assert_close

from minires import lenet, ops
from minires.autodiff import gradients
from minires.folding import JoinedConv2D, joined_network
from minires.layers import (
    Branches,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool,
    MeanPool,
    ReLU,
    ReLU6,
    Sequential,
)
from minires.model import Model, Run


def kinds(network):
    """What is done, one layer after another: (layer, activation, pool) or the layer's kind."""
    return [
        (layer.activation, layer.pool) if isinstance(layer, JoinedConv2D) else layer.kind
        for layer in joined_network(network).layers
    ]


def connected(*layers, shape=(9, 8, 2)):
    return Model(shape, Sequential(*layers, Flatten(), Dense(2))).network


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
    expected = np.empty_like(theta)
    run = Run(theta, None, training=True, gradient=expected)
    plain = ops.softmax_cross_entropy(model.network.apply(images, run), labels)
    gradients(plain, run.variables.values())
    assert_close(loss, plain.data, 1e-13)
    assert_close(gradient, expected, 1e-12)
    assert_close(model.logits(theta, images), model.network.apply(images, Run(theta, None)), 1e-12)
