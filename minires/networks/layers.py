"""Layers: architecture without arrays.

A layer holds settings only. `connect` tells it the shape of its input (without the batch); it
then declares, in a `Layout`, the weights it needs, and answers with the shape of its output.
`apply` computes, taking the weights from a `ForwardPass`. So one layer serves any number of
networks, one after another or side by side. A layer that stands twice in one network has one
set of weights, which both places share.
"""

import math
from typing import Any

from minires.arrays.checks import number_in, one_of, whole_number
from minires.engine import ops
from minires.engine.autodiff import data_of
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.engine.convolution import (
    borders,
    conv2d,
    depthwise_conv2d,
    max_pool,
    mean_pool,
    pair,
)
from minires.kernels.plain import output_size

Shape = tuple[int, ...]  # of one image, without the batch axis
Pixels = int | tuple[int, int]  # one number, or (rows, columns)

# --- initial weights ----------------------------------------------------------------------


def glorot_uniform(rng: Any, shape: Shape, fan_in: int, fan_out: int) -> Any:
    """U(−a, a) with a = √(6 / (fan_in + fan_out)).

    rng      numpy.random.Generator
    shape    of the array
    fan_in   how many inputs each output adds up
    fan_out  how many outputs each input goes to
    Returns  float64 array of `shape`
    Source   Glorot and Bengio 2010
    """
    limit = math.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: Any, shape: Shape, fan_in: int, fan_out: int) -> Any:
    """N(0, 2 / fan_in).

    rng, shape, fan_in, fan_out   as for `glorot_uniform`
    Returns  float64 array of `shape`
    Source   He et al. 2015
    """
    return rng.normal(0, math.sqrt(2 / fan_in), shape)


def truncated_normal(rng: Any, shape: Shape, fan_in: int, fan_out: int, std: float = 0.1) -> Any:
    """N(0, std²), sampled again beyond two standard deviations.

    rng, shape, fan_in, fan_out   as for `glorot_uniform`; the fans do not matter here
    std      standard deviation before the tails are cut off
    Returns  float64 array of `shape`
    """
    values = rng.normal(0, std, shape)
    while (outside := abs(values) > 2 * std).any():
        values[outside] = rng.normal(0, std, int(outside.sum()))
    return values


def zeros(rng: Any, shape: Shape, fan_in: int, fan_out: int) -> float:
    """All zeros.

    rng, shape, fan_in, fan_out   as for `glorot_uniform`; none of them matters
    """
    return 0.0


def ones(rng: Any, shape: Shape, fan_in: int, fan_out: int) -> float:
    """All ones.

    rng, shape, fan_in, fan_out   as for `glorot_uniform`; none of them matters
    """
    return 1.0


INITIALIZERS = {
    "glorot": glorot_uniform,
    "he": he_normal,
    "truncated_normal": truncated_normal,
}

FUSED = (None, "relu", "relu6")  # activations that a convolution or a batch norm can do itself
FUNCTIONS = ("relu", "relu6", "tanh", "sigmoid")  # of `Activation`

# --- layers -------------------------------------------------------------------------------


class Layer:
    """What all layers share: a kind, a name, and perhaps parts.

    To write your own, override `connect` if it has weights or changes the shape, and `apply`.
    """

    name = None  # given by the network that holds it, unless its maker gave it one
    parts: tuple = ()  # the layers that it consists of

    @property
    def kind(self) -> str:
        """The word that names are made from: "Dense", "relu" …"""
        return type(self).__name__

    def settings(self) -> dict[str, Any]:
        """What it was made with, for `repr`: {argument: value}."""
        return {}

    def __repr__(self) -> str:
        inner = [repr(part) for part in self.parts]
        inner += [f"{name}={value!r}" for name, value in self.settings().items()]
        return f"{type(self).__name__}({', '.join(inner)})"

    def connect(self, shape: Shape, layout) -> Shape:
        """Declare the weights.

        shape    of the input, without the batch
        layout   the `Layout` that takes the declarations
        Returns  the shape of the output, without the batch
        Raises   ValueError when the layer cannot take this input
        """
        return shape

    def apply(self, x, forward):
        """Compute the output.

        x        (…, N, *shape): an array, or a Tensor in training
        forward  the `ForwardPass`: `forward[self, "weight"]` is an array of this layer
        Returns  (…, N, *output shape)
        Raises   NotImplementedError: every kind of layer has its own
        """
        raise NotImplementedError

    def expect(self, shape: Shape, axes: int) -> None:
        """Check how many axes the input has.

        shape    of the input
        axes     1 for features, 3 for images
        Raises   ValueError for another number
        """
        if len(shape) != axes:
            wanted = {1: "(features,)", 3: "(H, W, C)"}[axes]
            raise ValueError(f"{self.kind}: the input is {shape}, expected {wanted}")


class Dense(Layer):
    """A fully connected layer: y = x @ weight + bias.

    units        how many outputs
    bias         whether a bias is added
    initializer  of the weights: "glorot", "he" or "truncated_normal"
    """

    def __init__(self, units: int, bias: bool = True, initializer: str = "glorot"):
        self.units = whole_number("Dense", "units", units, 1)
        self.has_bias = bias
        self.initializer = one_of("Dense", "initializer", initializer, INITIALIZERS)

    def settings(self) -> dict[str, Any]:
        return {"units": self.units, "bias": self.has_bias, "initializer": self.initializer}

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 1)
        fans = shape[0], self.units
        layout.add(self, "weight", fans, INITIALIZERS[self.initializer], fans)
        if self.has_bias:
            layout.add(self, "bias", (self.units,), zeros)
        return (self.units,)

    def apply(self, x, forward):
        bias = forward[self, "bias"] if self.has_bias else None
        return ops.dense(x, forward[self, "weight"], bias)


class _Convolution(Layer):
    """What both kinds of convolution share: all settings but the number of channels."""

    def __init__(self, kernel, stride, padding, dilation, bias, activation, initializer):
        self.kernel = _pair_of(self, "kernel", kernel)
        self.stride = _pair_of(self, "stride", stride)
        self.dilation = _pair_of(self, "dilation", dilation)
        self.padding = _padding_of(self, padding, self.kernel, self.stride, self.dilation)
        self.has_bias = bias
        self.activation = one_of(self.kind, "activation", activation, FUSED)
        self.initializer = one_of(self.kind, "initializer", initializer, INITIALIZERS)

    def settings(self) -> dict[str, Any]:
        names = ("kernel", "stride", "padding", "dilation")
        found = {name: getattr(self, name) for name in names}
        return found | {
            "bias": self.has_bias,
            "activation": self.activation,
            "initializer": self.initializer,
        }

    def declare(self, shape, layout, channels, fans):
        """Declare weights (kh, kw, *channels) and a bias; return the output's shape."""
        weight = (*self.kernel, *channels)
        layout.add(self, "weight", weight, INITIALIZERS[self.initializer], fans)
        if self.has_bias:
            layout.add(self, "bias", channels[-1:], zeros)
        return (*_output_size(self, shape, self.kernel), channels[-1])

    def apply(self, x, forward, **joined):
        # `joined`: the activation and the pooling of the layers behind, done in the same pass.
        weight = forward[self, "weight"]
        bias = forward[self, "bias"] if self.has_bias else None
        places = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return self.function(x, weight, bias, **places, **{"activation": self.activation, **joined})


class Conv2D(_Convolution):
    """A convolution that mixes all input channels into new ones.

    channels     how many new channels
    kernel       pixels: a number, or (rows, columns)
    stride       pixels from one window to the next: a number, or (rows, columns)
    padding      pixels of zeros around the image: a number, (rows, columns), ((top, bottom),
                 (left, right)), "same" (the output has the input's size / stride) or "valid" (0)
    dilation     pixels from one tap of the kernel to the next: a number, or (rows, columns)
    bias         whether a bias is added to each channel
    activation   None, "relu" or "relu6"
    initializer  of the weights: "glorot", "he" or "truncated_normal"
    """

    function = staticmethod(conv2d)

    def __init__(
        self,
        channels: int,
        kernel: Pixels,
        stride: Pixels = 1,
        padding: Any = "same",
        dilation: Pixels = 1,
        bias: bool = True,
        activation: str | None = None,
        initializer: str = "glorot",
    ):
        super().__init__(kernel, stride, padding, dilation, bias, activation, initializer)
        self.channels = whole_number("Conv2D", "channels", channels, 1)

    def settings(self) -> dict[str, Any]:
        return {"channels": self.channels, **super().settings()}

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 3)
        taps, inputs = math.prod(self.kernel), shape[-1]
        fans = taps * inputs, taps * self.channels
        return self.declare(shape, layout, (inputs, self.channels), fans)


class DepthwiseConv2D(_Convolution):
    """A convolution of every channel with a kernel of its own.

    kernel, stride, padding, dilation, bias, activation, initializer   as for `Conv2D`
    """

    function = staticmethod(depthwise_conv2d)

    def __init__(
        self,
        kernel: Pixels,
        stride: Pixels = 1,
        padding: Any = "same",
        dilation: Pixels = 1,
        bias: bool = True,
        activation: str | None = None,
        initializer: str = "glorot",
    ):
        super().__init__(kernel, stride, padding, dilation, bias, activation, initializer)

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 3)
        taps = math.prod(self.kernel)
        return self.declare(shape, layout, (shape[-1],), (taps, taps))


def _pair_of(layer, name, value):
    """(rows, columns) of a setting in pixels."""
    try:
        return pair(value, name)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{layer.kind}: {name} is {value!r}, expected one or two whole numbers from 1 up"
        ) from error


def _padding_of(layer, padding, window, stride, dilation):
    """The padding as it was given, once it is known to make sense."""
    try:
        borders(padding, window, window, stride, dilation)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{layer.kind}: padding is {padding!r}, expected pixels from 0 up (a number, "
            "(rows, columns) or ((top, bottom), (left, right))), 'same' or 'valid'"
        ) from error
    return padding


def _output_size(layer, shape, window):
    padding = borders(layer.padding, shape[:2], window, layer.stride, layer.dilation)
    size = output_size(shape[:2], window, layer.stride, padding, layer.dilation)
    if min(size) < 1:
        raise ValueError(
            f"{layer.kind}: a window of {window} exceeds the image of {shape[:2]} with padding "
            f"{padding}: give larger images or a smaller window"
        )
    return size


class _Pool(Layer):
    """What both kinds of pooling share: the windows."""

    dilation = (1, 1)

    def __init__(self, window, stride, padding):
        self.window = _pair_of(self, "window", window)
        self.stride = _pair_of(self, "stride", window if stride is None else stride)
        self.padding = _padding_of(self, padding, self.window, self.stride, self.dilation)

    def settings(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride, "padding": self.padding}

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 3)
        return (*_output_size(self, shape, self.window), shape[-1])


class MaxPool(_Pool):
    """The largest value of every window.

    window   pixels: a number, or (rows, columns)
    stride   pixels from one window to the next; the window's own size without it
    padding  as for `Conv2D`; a padded pixel is never the largest
    """

    def __init__(self, window: Pixels = 2, stride: Pixels | None = None, padding: Any = 0):
        super().__init__(window, stride, padding)

    def apply(self, x, forward):
        return max_pool(x, window=self.window, stride=self.stride, padding=self.padding)


class MeanPool(_Pool):
    """The mean of every window.

    window, stride, padding   as for `MaxPool`
    count_padding   whether padded pixels count as zeros; if not, they are left out
    """

    def __init__(
        self,
        window: Pixels = 2,
        stride: Pixels | None = None,
        padding: Any = 0,
        count_padding: bool = False,
    ):
        super().__init__(window, stride, padding)
        self.count_padding = count_padding

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"count_padding": self.count_padding}

    def apply(self, x, forward):
        return mean_pool(
            x,
            window=self.window,
            stride=self.stride,
            padding=self.padding,
            count_padding=self.count_padding,
        )


class GlobalMeanPool(Layer):
    """The mean over all pixels: (H, W, C) → (C,)."""

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 3)
        return (shape[-1],)

    def apply(self, x, forward):
        return ops.global_mean(x)


class Flatten(Layer):
    """(H, W, C) → (H·W·C,), pixel by pixel."""

    def connect(self, shape: Shape, layout) -> Shape:
        self.expect(shape, 3)
        return (math.prod(shape),)

    def apply(self, x, forward):
        return ops.flatten(x)


class Activation(Layer):
    """A function of each value.

    function   "relu", "relu6", "tanh" or "sigmoid"
    """

    def __init__(self, function: str):
        self.function = one_of("Activation", "function", function, FUNCTIONS)

    @property
    def kind(self) -> str:
        """The function's name."""
        return self.function

    def settings(self) -> dict[str, Any]:
        return {"function": self.function}

    def apply(self, x, forward):
        return getattr(ops, self.function)(x)


def ReLU() -> Activation:
    """max(x, 0)"""
    return Activation("relu")


def ReLU6() -> Activation:
    """min(max(x, 0), 6)"""
    return Activation("relu6")


class Dropout(Layer):
    """In training, set a share of the values to zero at random; in prediction, do nothing.

    rate     the share, 0 <= rate < 1; the values that stay are divided by 1 − rate
    Source   Srivastava et al. 2014
    """

    def __init__(self, rate: float = 0.5):
        self.rate = number_in("Dropout", "rate", rate, 0, 1)

    def settings(self) -> dict[str, Any]:
        return {"rate": self.rate}

    def apply(self, x, forward):
        if forward.mode != "train" or self.rate == 0:
            return x
        if forward.rng is None:
            raise ValueError(
                f"Dropout: a training pass with rate {self.rate} needs random numbers: pass "
                "rng=numpy.random.default_rng(…), or build the network with dropout=0"
            )
        if forward.theta.ndim == 2 and x.ndim in (2, 4):
            # (N, features) or (N, H, W, C): no layer with weights came before, so R networks
            # share x. Each must drop its own values.
            x = ops.broadcast_to(x, shape=(len(forward.theta), *x.shape))
        return ops.dropout(x, rate=self.rate, rng=forward.rng)


class _Chain(Layer):
    """Layers one after another: what `Sequential` is, and what others are made from."""

    def __init__(self, *layers: Layer):
        self.layers = _layers_of(self, layers)

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The layers, from the input to the output."""
        return self.layers

    def connect(self, shape: Shape, layout) -> Shape:
        for layer in self.layers:
            shape = layout.connect(layer, shape)
        return shape

    def apply(self, x, forward):
        for layer in self.layers:
            x = layer.apply(x, forward)
        return x


def _layers_of(container, layers):
    for place, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            remedy = ""
            if isinstance(layer, (list, tuple)):
                remedy = f": write {container.kind}(*layers), with a star before the list"
            elif isinstance(layer, type):
                remedy = f": write {layer.__name__}(…), with brackets"
            raise TypeError(
                f"{container.kind}: argument {place + 1} is {layer!r}, expected a layer, such as "
                f"Dense(10){remedy}"
            )
    return tuple(layers)


class Sequential(_Chain):
    """Layers one after another.

    layers   from the input to the output
    """


# --- layers of the larger networks --------------------------------------------------------


class BatchNorm(Layer):
    """Batch normalisation, and the activation after it (see `minires.engine.batch_norm`).

    In training the batch's own mean and variance are used, and the running ones follow:

        running ← momentum · running + (1 − momentum) · batch

    In prediction the running ones are used; with `frozen`, in training too: then they stay as
    they are, and gradients flow as through any other constants.

    momentum    of the running statistics, 0 <= momentum <= 1: the share of the old value kept
    epsilon     added to the variance, above 0
    scale       whether there is a trainable scale (there always is a trainable shift)
    activation  None, "relu" or "relu6"
    unbiased    whether the running variance is that of the population the batch comes from,
                n/(n−1) times the batch's own: as in PyTorch, not in Keras and ONNX
    frozen      train with the running statistics, and leave them as they are
    """

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        scale: bool = True,
        activation: str | None = None,
        unbiased: bool = False,
        frozen: bool = False,
    ):
        self.momentum = (
            momentum if momentum == 1 else number_in("BatchNorm", "momentum", momentum, 0, 1)
        )
        self.epsilon = number_in("BatchNorm", "epsilon", epsilon, 0)
        self.has_scale = scale
        self.activation = one_of("BatchNorm", "activation", activation, FUSED)
        self.unbiased, self.frozen = unbiased, frozen

    def settings(self) -> dict[str, Any]:
        return {
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "scale": self.has_scale,
            "activation": self.activation,
            "unbiased": self.unbiased,
            "frozen": self.frozen,
        }

    def connect(self, shape: Shape, layout) -> Shape:
        channels = (shape[-1],)
        if self.has_scale:
            layout.add(self, "scale", channels, ones)
        layout.add(self, "shift", channels, zeros)
        layout.add_statistic(self, "mean", channels, zeros)
        layout.add_statistic(self, "variance", channels, ones)
        return shape

    def apply(self, x, forward):
        running = forward.statistic(self, "mean"), forward.statistic(self, "variance")
        measures = forward.mode == "measure"
        of_batch = measures or (forward.mode == "train" and not self.frozen)
        if of_batch:
            mean, variance = batch_moments(data_of(x))
            momentum = forward.momentum if measures else self.momentum
            count = math.prod(x.shape) / mean.size
            correction = count / (count - 1) if self.unbiased else 1
            for old, new in zip(running, (mean, variance * correction), strict=True):
                old *= momentum
                old += (1 - momentum) * new
        else:
            mean, variance = running
        return batch_norm(
            x,
            forward[self, "scale"] if self.has_scale else None,
            forward[self, "shift"],
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            of_batch=of_batch,
            activation=self.activation,
        )


class Affine(Layer):
    """scale · x + shift for every channel: what is left of a batch norm after folding.

    activation   None, "relu" or "relu6"
    """

    def __init__(self, activation: str | None = None):
        self.activation = one_of("Affine", "activation", activation, FUSED)

    def settings(self) -> dict[str, Any]:
        return {"activation": self.activation}

    def connect(self, shape: Shape, layout) -> Shape:
        layout.add(self, "scale", (shape[-1],), ones)
        layout.add(self, "shift", (shape[-1],), zeros)
        return shape

    def apply(self, x, forward):
        scale, shift = forward[self, "scale"], forward[self, "shift"]
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


class Residual(_Chain):
    """x + f(x), f being layers one after another that keep the shape.

    layers   of f, from the input to the output
    """

    def connect(self, shape: Shape, layout) -> Shape:
        output = super().connect(shape, layout)
        if output != shape:
            raise ValueError(
                f"Residual: the layers turn {shape} into {output}; a sum needs equal shapes"
            )
        return shape

    def apply(self, x, forward):
        return ops.add(x, super().apply(x, forward))


class Branches(Layer):
    """Several layers that take the same input; their output channels stand side by side.

    layers   one per branch, often a `Sequential`
    """

    def __init__(self, *layers: Layer):
        self.layers = _layers_of(self, layers)

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The branches."""
        return self.layers

    def connect(self, shape: Shape, layout) -> Shape:
        outputs = [layout.connect(layer, shape) for layer in self.layers]
        if len({output[:-1] for output in outputs}) > 1:
            raise ValueError(f"Branches: the branches end with {outputs}: only channels may differ")
        return (*outputs[0][:-1], sum(output[-1] for output in outputs))

    def apply(self, x, forward):
        outputs = [layer.apply(x, forward) for layer in self.layers]
        axes = max(output.ndim for output in outputs)
        if any(output.ndim < axes for output in outputs):
            # R networks share x, and a branch without weights has one output for all of them.
            lead = (len(forward.theta),)
            outputs = [
                y if y.ndim == axes else ops.broadcast_to(y, shape=lead + y.shape) for y in outputs
            ]
        return ops.concatenate(outputs)


class AuxiliaryHead(_Chain):
    """A second classifier, halfway, that trains the layers below; x itself passes unchanged.

    The training loss is that of the logits plus `weight` times that of this head's.

    layers   of the head, from its input to its logits
    weight   of its loss, at least 0
    Source   Szegedy et al. 2015, arXiv:1512.00567, §4
    """

    def __init__(self, *layers: Layer, weight: float = 0.4):
        super().__init__(*layers)
        self.weight = number_in("AuxiliaryHead", "weight", weight, 0)

    def settings(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def connect(self, shape: Shape, layout) -> Shape:
        super().connect(shape, layout)
        return shape

    def apply(self, x, forward):
        if forward.mode != "predict":
            forward.auxiliary.append((self.weight, super().apply(x, forward)))
        return x
