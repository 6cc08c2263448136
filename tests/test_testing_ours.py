"""This project's own code, judged by the properties that it offers to others."""

import numpy as np
import pytest
from helpers import pull_back

import minires
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.engine.convolution import conv2d, depthwise_conv2d, max_pool, mean_pool
from minires.resampling.averages import average
from minires.resampling.moments import literal_update
from minires.testing import (
    Falsified,
    average_suite,
    batch_norm_suite,
    check_convolution,
    check_depthwise,
    check_gradient,
    convolution_suite,
    depthwise_suite,
    dropout_suite,
    log_softmax_suite,
    matmul_suite,
    metric_suite,
    moments_suite,
    optimizer_suite,
    pooling_suite,
    sampler_suite,
    softmax_cross_entropy_suite,
    topological_backward_suite,
    unbroadcast_suite,
)
from minires.training import metrics


def with_pullbacks(function):
    """A function of Tensors as (result, a function of g that gives the gradient of each input)."""

    def called(*arrays, **settings):
        def own(*inputs):
            return function(*inputs, **settings)

        return own(*arrays), lambda g: pull_back(own, arrays, g)

    return called


# --- the moments ----------------------------------------------------------------------------


class Literal:
    """Eqs. 2 and 3 as they are printed."""

    def __init__(self):
        self.t, self.mean, self.variance = 0, 0.0, 0.0

    def update(self, theta):
        theta = theta.astype(np.float64)
        self.mean, self.variance = literal_update(self.mean, self.variance, theta, self.t)
        self.t += 1


test_moments = moments_suite(minires.Moments)
test_the_literal_equations = moments_suite(Literal)


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes", "domain"),
    [
        (ops.add, [(2, 3), (3,)], (-2, 2)),
        (ops.subtract, [(2, 1), (2, 3)], (-2, 2)),
        (ops.multiply, [(2, 3), ()], (-2, 2)),
        (ops.divide, [(2, 3), (3,)], (0.5, 2)),
        (ops.maximum, [(2, 2), (2,)], (-2, 2)),
        (ops.exp, [(3,)], (-2, 2)),
        (ops.log, [(3,)], (0.5, 3)),
        (ops.sqrt, [(3,)], (0.5, 3)),
        (ops.tanh, [(3,)], (-2, 2)),
        (ops.sigmoid, [(3,)], (-4, 4)),
        (ops.relu, [(4,)], (-2, 2)),
        (ops.relu6, [(4,)], (-2, 9)),
        (ops.dense, [(2, 3), (3, 2), (2,)], (-2, 2)),
        (ops.softmax, [(2, 3)], (-2, 2)),
        (ops.log_softmax, [(2, 3)], (-2, 2)),
        (ops.global_mean, [(1, 2, 2, 2)], (-2, 2)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_ops(function, shapes, domain):
    check_gradient(with_pullbacks(function), shapes, domain)


def unbroadcast(gradient, shape):
    """What the engine does for every op."""
    x = variable(np.zeros(shape))
    (pulled,) = gradients(ops.broadcast_to(x, shape=gradient.shape), [x], gradient)
    return pulled


class Value:
    """The engine as a tape of scalars."""

    def __init__(self, data, leaves=None):
        self.tensor = data if leaves is not None else variable(np.array(data))
        self.leaves = [self] if leaves is None else leaves

    data = property(lambda self: self.tensor.data)
    grad = 0.0

    def __add__(self, other):
        return Value(self.tensor + other.tensor, self.leaves + other.leaves)

    def __mul__(self, other):
        return Value(self.tensor * other.tensor, self.leaves + other.leaves)

    def backward(self):
        leaves = list(dict.fromkeys(self.leaves))
        found = gradients(self.tensor, [leaf.tensor for leaf in leaves])
        for leaf, gradient in zip(leaves, found, strict=True):
            leaf.grad = gradient


def dropped(x, rate, rng):
    """One mask for the result and its gradient."""
    inputs = variable(x)
    y = ops.dropout(inputs, rate=rate, rng=rng)
    return y.data, lambda g: gradients(y, [inputs], g)[0]


test_unbroadcast = unbroadcast_suite(unbroadcast)
test_topological_backward = topological_backward_suite(Value)
test_matmul = matmul_suite(lambda x, w, g: pull_back(ops.matmul, (x, w), g))
test_log_softmax = log_softmax_suite(ops.log_softmax)
test_dropout = dropout_suite(dropped)


def cross_entropy(logits, labels):
    def loss(z):
        return ops.softmax_cross_entropy(z, labels)

    return loss(logits), lambda g: pull_back(loss, (logits,), g)[0]


test_softmax_cross_entropy = softmax_cross_entropy_suite(cross_entropy)


# --- kernels --------------------------------------------------------------------------------


def convolution(x, w, stride=1, padding=0):
    return with_pullbacks(conv2d)(x, w, stride=stride, padding=padding)


def depthwise(x, w, stride=1, padding=0):
    return with_pullbacks(depthwise_conv2d)(x, w, stride=stride, padding=padding)


def pooling(function):
    def pooled(x, window=2, stride=None):
        return with_pullbacks(function)(x, window=window, stride=stride)

    return pooled


def normalised(x, scale, shift, epsilon):
    mean, variance = batch_moments(x)
    return with_pullbacks(batch_norm)(
        x, scale, shift, mean=mean, variance=variance, epsilon=epsilon, of_batch=True
    )


test_convolution = convolution_suite(convolution)
test_depthwise = depthwise_suite(depthwise)
test_max_pool = pooling_suite(pooling(max_pool))
test_mean_pool = pooling_suite(pooling(mean_pool), kind="mean")
test_batch_norm = batch_norm_suite(normalised)


@pytest.mark.parametrize(("check", "function"), [(check_convolution, conv2d),
                                                 (check_depthwise, depthwise_conv2d)])  # fmt: skip
def test_convolutions_in_float32(check, function):
    def narrow(x, w, stride=1, padding=0):
        x, w = x.astype(np.float32), w.astype(np.float32)
        return with_pullbacks(function)(x, w, stride=stride, padding=padding)

    check(narrow)


# --- training -------------------------------------------------------------------------------

test_sgd = optimizer_suite(minires.SGD, "sgd")
test_adam = optimizer_suite(minires.Adam, "adam")
test_adam_epsilon_inside = optimizer_suite(
    lambda rate: minires.Adam(rate, epsilon_inside=True), "adam"
)
test_accuracy = metric_suite(metrics.accuracy, "accuracy")
test_nll = metric_suite(metrics.nll, "nll")
test_brier = metric_suite(metrics.brier, "brier")
test_ece = metric_suite(metrics.ece, "ece")


# --- ensembles ------------------------------------------------------------------------------


def sample(mean, variance, k, rng, scale=1.0):
    """Two updates, θ̄ + σ and θ̄ − σ, have just this mean and variance."""
    moments = minires.Moments(mean.shape)
    for sign in (1, -1):
        moments.update(mean + sign * np.sqrt(variance))
    return moments.sample(k, rng, scale)


test_sample = sampler_suite(sample)
test_average = average_suite(average)
test_geometric = average_suite(lambda p: average(p, "geometric"), "geometric")
test_logits = average_suite(lambda p: average(p, "logits"), "logits")
test_vote = average_suite(lambda p: average(p, "vote"), "vote")


# --- whole networks -------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["plain", "cpu"])
@pytest.mark.parametrize("name", ["lenet", "batch norm"])
def test_a_whole_network(name, kernels):
    """LeNet with its dropout, and a small MobileNet with batch norm: θ and the loss."""
    if name == "lenet":
        model = minires.lenet(input_shape=(12, 12, 1), channels=(2, 3), hidden=8, classes=3)
    else:
        model = minires.Model((8, 8, 1), minires.layers.Sequential(*separable()))
    rng = np.random.default_rng(5)
    images, labels = rng.standard_normal((6, *model.input_shape)), rng.integers(0, 3, 6)

    def loss(theta):
        return model.loss_and_gradient(
            theta, images, labels, model.init_stats(), rng=np.random.default_rng(6)
        )

    def wrong(theta):
        value, gradient = loss(theta)
        gradient = gradient.copy()
        gradient[model.size // 2 :] *= 1 + 1e-4
        return value, gradient

    with minires.kernels(kernels):
        check_gradient(loss, [(model.size,)], (-0.5, 0.5))
        with pytest.raises(Falsified):
            check_gradient(wrong, [(model.size,)], (-0.5, 0.5))


def separable():
    """A convolution and a depthwise one, batch norm behind each, and a dense layer."""
    layers = minires.layers
    yield layers.Conv2D(3, 3, 2, bias=False)
    yield layers.BatchNorm(activation="relu6")
    yield layers.DepthwiseConv2D(3, 1, bias=False)
    yield layers.BatchNorm(activation="relu")
    yield layers.Flatten()
    yield layers.Dense(3)
