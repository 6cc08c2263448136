"""Layers: architecture without arrays.

A layer holds settings only. `connect` tells it the shape of its input (without the batch); it
then declares, in a `Layout`, the weights it needs, and answers with the shape of its output.
`apply` computes, taking the weights from a `Run`. So one layer serves any number of networks,
one after another or side by side.
"""

import math

from minires.engine import ops
from minires.engine.autodiff import data_of
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.engine.convolution import (
    borders,
    conv2d,
    depthwise_conv2d,
    max_pool,
    mean_pool,
    output_size,
    pair,
)

# --- initial weights ----------------------------------------------------------------------


def glorot_uniform(rng, shape, fan_in, fan_out):
    """U(−a, a) with a = √(6 / (fan_in + fan_out)): Glorot and Bengio 2010."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, shape)


def he_normal(rng, shape, fan_in, fan_out):
    """N(0, 2 / fan_in): He et al. 2015."""
    return rng.normal(0, math.sqrt(2 / fan_in), shape)


def truncated_normal(rng, shape, fan_in, fan_out, std=0.1):
    """N(0, std²), drawn again beyond two standard deviations."""
    values = rng.normal(0, std, shape)
    while (outside := abs(values) > 2 * std).any():
        values[outside] = rng.normal(0, std, int(outside.sum()))
    return values


def zeros(rng, shape, fan_in, fan_out):
    """All zeros."""
    return 0.0


def ones(rng, shape, fan_in, fan_out):
    """All ones."""
    return 1.0


INITIALIZERS = {
    "glorot": glorot_uniform,
    "he": he_normal,
    "truncated_normal": truncated_normal,
}

# --- layers -------------------------------------------------------------------------------


class Layer:
    """What all layers share: a kind, a name, and a place in one network."""

    name = None  # given by the network that holds it, unless the maker gave one

    @property
    def kind(self):
        return type(self).__name__

    def connect(self, shape, layout):
        """Declare weights for an input of `shape` (no batch); return the output's shape."""
        return shape

    def apply(self, x, run):
        """The output for input `x` (…, N, *shape); `run[entry]` are the weights."""
        raise NotImplementedError

    def expect(self, shape, axes):
        """Raise unless the input has this many axes."""
        if len(shape) != axes:
            wanted = {1: "(features,)", 3: "(H, W, C)"}[axes]
            raise ValueError(f"{self.kind}: the input is {shape}, expected {wanted}")


class Dense(Layer):
    """A fully connected layer: y = x @ weight + bias."""

    def __init__(self, units, bias=True, initializer="glorot"):
        self.units, self.has_bias, self.initializer = units, bias, INITIALIZERS[initializer]

    def connect(self, shape, layout):
        self.expect(shape, 1)
        fans = shape[0], self.units
        self.weight = layout.add("weight", fans, self.initializer, fans)
        self.bias = layout.add("bias", (self.units,), zeros) if self.has_bias else None
        return (self.units,)

    def apply(self, x, run):
        return ops.dense(x, run[self.weight], run[self.bias] if self.bias else None)


class _Convolution(Layer):
    """What both kinds share: settings, bias and activation (see `minires.engine.convolution`).

    kernel, stride, dilation   pixels: a number, or (rows, columns)
    padding                    pixels: a number, (rows, columns), ((top, bottom), (left, right)),
                               "same" or "valid"
    bias                       whether there is one
    activation                 None, "relu" or "relu6"
    initializer                of the weights: a name in `INITIALIZERS`
    """

    def __init__(
        self,
        kernel,
        stride=1,
        padding="same",
        dilation=1,
        bias=True,
        activation=None,
        initializer="glorot",
    ):
        self.kernel, self.padding = pair(kernel, "kernel"), padding
        self.stride, self.dilation = pair(stride), pair(dilation, "dilation")
        self.has_bias, self.activation = bias, activation
        self.initializer = INITIALIZERS[initializer]

    def declare(self, shape, layout, channels, fans):
        """Declare weights (kh, kw, *channels) and a bias; return the output's shape."""
        self.expect(shape, 3)
        weight = (*self.kernel, *channels)
        self.weight = layout.add("weight", weight, self.initializer, fans)
        self.bias = layout.add("bias", channels[-1:], zeros) if self.has_bias else None
        return (*_output_size(self, shape, self.kernel), channels[-1])

    def apply(self, x, run, **joined):
        """`joined`: the activation and the pooling of layers behind, done in the same pass."""
        settings = {"activation": self.activation, **joined}
        return self.function(
            x,
            run[self.weight],
            run[self.bias] if self.bias else None,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            **settings,
        )


class Conv2D(_Convolution):
    """A convolution that mixes all channels into `channels` new ones.

    Conv2D(channels, kernel, stride=1, padding="same", …), the rest as in `_Convolution`.
    """

    function = staticmethod(conv2d)

    def __init__(self, channels, kernel, *settings, **named):
        super().__init__(kernel, *settings, **named)
        self.channels = channels

    def connect(self, shape, layout):
        taps, inputs = math.prod(self.kernel), shape[-1]
        fans = taps * inputs, taps * self.channels
        return self.declare(shape, layout, (inputs, self.channels), fans)


class DepthwiseConv2D(_Convolution):
    """A convolution of every channel with a kernel of its own.

    DepthwiseConv2D(kernel, stride=1, padding="same", …), the rest as in `_Convolution`.
    """

    function = staticmethod(depthwise_conv2d)

    def connect(self, shape, layout):
        taps = math.prod(self.kernel)
        return self.declare(shape, layout, (shape[-1],), (taps, taps))


def _output_size(layer, shape, window):
    padding = borders(layer.padding, shape[:2], window, layer.stride, layer.dilation)
    size = output_size(shape[:2], window, layer.stride, padding, layer.dilation)
    if min(size) < 1:
        raise ValueError(
            f"{layer.kind}: a window of {window} exceeds the image of {shape[:2]} with padding "
            f"{padding}: give larger images or a smaller window"
        )
    return size


class MaxPool(Layer):
    """The largest value of every window."""

    def __init__(self, window=2, stride=None, padding=0):
        self.window, self.padding, self.dilation = pair(window, "window"), padding, (1, 1)
        self.stride = pair(window if stride is None else stride)

    def connect(self, shape, layout):
        self.expect(shape, 3)
        return (*_output_size(self, shape, self.window), shape[-1])

    def apply(self, x, run):
        return max_pool(x, window=self.window, stride=self.stride, padding=self.padding)


class MeanPool(MaxPool):
    """The mean of every window."""

    def __init__(self, window=2, stride=None, padding=0, count_padding=False):
        super().__init__(window, stride, padding)
        self.count_padding = count_padding

    def apply(self, x, run):
        return mean_pool(
            x,
            window=self.window,
            stride=self.stride,
            padding=self.padding,
            count_padding=self.count_padding,
        )


class GlobalMeanPool(Layer):
    """The mean over all pixels: (H, W, C) → (C,)."""

    def connect(self, shape, layout):
        self.expect(shape, 3)
        return (shape[-1],)

    def apply(self, x, run):
        return ops.global_mean(x)


class Flatten(Layer):
    """(H, W, C) → (H·W·C,), pixel by pixel."""

    def connect(self, shape, layout):
        self.expect(shape, 3)
        return (math.prod(shape),)

    def apply(self, x, run):
        return ops.flatten(x)


class Activation(Layer):
    """A function of each value: "relu", "relu6", "tanh" or "sigmoid"."""

    def __init__(self, function):
        self.function = function

    @property
    def kind(self):
        return self.function

    def apply(self, x, run):
        return getattr(ops, self.function)(x)


def ReLU():
    """max(x, 0)"""
    return Activation("relu")


def ReLU6():
    """min(max(x, 0), 6)"""
    return Activation("relu6")


class Dropout(Layer):
    """In training, zero a share of the values at random; at test, do nothing."""

    def __init__(self, rate=0.5):
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate is {rate}, expected 0 ≤ rate < 1")
        self.rate = rate

    def connect(self, shape, layout):
        self.axes = len(shape)
        return shape

    def apply(self, x, run):
        if not run.training or self.rate == 0:
            return x
        if run.rng is None:
            raise ValueError(
                f"Dropout: a training pass with rate {self.rate} needs random numbers: pass "
                "rng=numpy.random.default_rng(…), or build the network with dropout=0"
            )
        if run.theta.ndim == 2 and x.ndim == self.axes + 1:
            # No layer with weights came before: R networks share x, but each drops its own.
            x = ops.broadcast_to(x, shape=(len(run.theta), *x.shape))
        return ops.dropout(x, rate=self.rate, rng=run.rng)


class Sequential(Layer):
    """Layers one after another."""

    def __init__(self, *layers):
        self.layers = layers

    def connect(self, shape, layout):
        for layer in self.layers:
            with layout.scope(layer):
                before, shape = shape, layer.connect(shape, layout)
                layout.record(layer, before, shape)
        return shape

    def apply(self, x, run):
        for layer in self.layers:
            x = layer.apply(x, run)
        return x


# --- layers of the larger networks --------------------------------------------------------


class BatchNorm(Layer):
    """Batch normalisation, and the activation after it (see `minires.engine.batch_norm`).

    In training the batch's own mean and variance are used, and the running ones follow:

        running ← momentum · running + (1 − momentum) · batch

    At test the running ones are used; with `frozen`, in training too: then they stay as they
    are, and gradients flow as through any other constants.

    momentum    of the running statistics: the share of the old value that is kept
    epsilon     added to the variance
    scale       whether there is a trainable scale (a shift there always is)
    unbiased    whether the running variance is that of the population the batch was drawn
                from, n/(n−1) times the batch's own: as in PyTorch, not in Keras and ONNX
    """

    def __init__(
        self,
        momentum=0.9,
        epsilon=1e-3,
        scale=True,
        activation=None,
        unbiased=False,
        frozen=False,
    ):
        self.momentum, self.epsilon, self.has_scale = momentum, epsilon, scale
        self.activation, self.unbiased, self.frozen = activation, unbiased, frozen

    def connect(self, shape, layout):
        channels = (shape[-1],)
        self.scale = layout.add("scale", channels, ones) if self.has_scale else None
        self.shift = layout.add("shift", channels, zeros)
        self.mean = layout.add_statistic("mean", channels, zeros)
        self.variance = layout.add_statistic("variance", channels, ones)
        return shape

    def apply(self, x, run):
        running = self.mean.view(run.stats), self.variance.view(run.stats)
        of_batch = run.momentum is not None or (run.training and not self.frozen)
        if of_batch:
            mean, variance = batch_moments(data_of(x))
            momentum = self.momentum if run.momentum is None else run.momentum
            count = math.prod(x.shape) / mean.size
            correction = count / (count - 1) if self.unbiased else 1
            for old, new in zip(running, (mean, variance * correction), strict=True):
                old *= momentum
                old += (1 - momentum) * new
        else:
            mean, variance = running
        return batch_norm(
            x,
            run[self.scale] if self.scale else None,
            run[self.shift],
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            of_batch=of_batch,
            activation=self.activation,
        )


class Affine(Layer):
    """scale · x + shift for every channel: what is left of a batch norm once it is folded."""

    def __init__(self, activation=None):
        self.activation = activation

    def connect(self, shape, layout):
        self.scale = layout.add("scale", (shape[-1],), ones)
        self.shift = layout.add("shift", (shape[-1],), zeros)
        return shape

    def apply(self, x, run):
        scale, shift = run[self.scale], run[self.shift]
        nothing = 0 * data_of(shift)
        return batch_norm(
            x,
            scale,
            shift,
            mean=nothing,
            variance=nothing + 1,
            epsilon=0,
            activation=self.activation,
        )


class Residual(Sequential):
    """x + f(x), f being layers one after another that keep the shape."""

    def connect(self, shape, layout):
        output = super().connect(shape, layout)
        if output != shape:
            raise ValueError(
                f"Residual: the layers turn {shape} into {output}; a sum needs equal shapes"
            )
        return shape

    def apply(self, x, run):
        return ops.residual_sum(x, super().apply(x, run))


class Branches(Layer):
    """Several ways from one input, their channels side by side."""

    def __init__(self, *layers):
        self.layers = layers

    def connect(self, shape, layout):
        outputs = []
        for layer in self.layers:
            with layout.scope(layer):
                outputs.append(layer.connect(shape, layout))
                layout.record(layer, shape, outputs[-1])
        if len({output[:-1] for output in outputs}) > 1:
            raise ValueError(f"Branches: the branches end with {outputs}: only channels may differ")
        return (*outputs[0][:-1], sum(output[-1] for output in outputs))

    def apply(self, x, run):
        outputs = [layer.apply(x, run) for layer in self.layers]
        axes = max(output.ndim for output in outputs)
        if any(output.ndim < axes for output in outputs):
            # R networks share x, and some of the branches have no weights to tell them apart.
            lead = (len(run.theta),)
            outputs = [
                y if y.ndim == axes else ops.broadcast_to(y, shape=lead + y.shape) for y in outputs
            ]
        return ops.concatenate(outputs)


class AuxiliaryHead(Sequential):
    """A second classifier, halfway, that trains the layers below; x itself passes unchanged.

    The training loss is that of the logits plus `weight` times that of this head's.

    Source   Szegedy et al. 2015, arXiv:1512.00567, §4
    """

    def __init__(self, *layers, weight=0.4):
        super().__init__(*layers)
        self.weight = weight

    def connect(self, shape, layout):
        super().connect(shape, layout)
        return shape

    def apply(self, x, run):
        if run.training or run.momentum is not None:
            run.auxiliary.append((self.weight, super().apply(x, run)))
        return x
