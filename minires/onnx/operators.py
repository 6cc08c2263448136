"""What each ONNX operator does: one function for each, made of those in `minires.engine.ops`.

Every function takes a step's inputs as Values, None for an input that is left out, and returns a
Value or several. An argument means the same in all of them:

    run    the `Run` that the step belongs to: how it computes, and how much it may use
    node   the `Node` with its settings: node["axis"] is an attribute, None where it has no value
    x      the first input, a Value. Floats, unless the text says more

    Raises   ValueError when the inputs or settings do not fit each other; UnsupportedError for what
             is valid but not implemented; SecurityError when the run may not use so much

The standard moved some settings from attributes to inputs: both places are read. Whole numbers and
truth values are always on the host, floats on the device where the run computes. Arrays of whole
numbers describe shapes and places, and carry no gradient. So a graph on a GPU waits for the GPU
only if it turns floats into whole numbers.

A file of a few hundred bytes can describe an image of a terabyte. Before a function is called, the
run asks for as much memory as four copies of the first input, and for some time for each number.
A function whose results can be larger calls `run.reserve` before it makes them. One that needs
more time than to touch every number of its inputs and results calls `run.spend`.

Source   https://onnx.ai/onnx/operators/, opsets 7 to 28
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires.arrays import Array, to_host, xp_of
from minires.engine import convolution, ops
from minires.engine.autodiff import data_of, op
from minires.engine.batch_norm import batch_moments, batch_norm
from minires.kernels import kernels_of
from minires.kernels.plain import output_size
from minires.onnx.errors import unsupported
from minires.onnx.limits import CALL, TOUCH, Cost, Run
from minires.onnx.reading import DTYPES, Node
from minires.onnx.values import CHANNELS_LAST, KERNEL, Value

OPERATORS, COSTS = {}, {}  # name → function, name → Cost
COPY = 40  # time to copy one number into a window, in the unit of `limits`
SLOW = 50  # time to multiply two whole numbers
SHORT = 4096  # numbers in a list of sizes or places, at most


def operator(*names: str, **cost: Any) -> Callable:
    """Register a function as an operator.

    names     of the operator in the standard
    cost      fields of its `Cost`
    Returns   a decorator
    """

    def register(function):
        OPERATORS.update(dict.fromkeys(names, function))
        COSTS.update(dict.fromkeys(names, Cost(**cost)))
        return function

    return register


# --- settings -----------------------------------------------------------------------------


def whole_numbers(value: Value) -> list[int]:
    """The content of a small array of whole numbers, as a list.

    value    a Value
    Returns  list of int
    Raises   ValueError for floats, and for more than `SHORT` numbers
    """
    array = value.on_host
    if array.dtype.kind not in "iu" or array.size > SHORT:
        raise ValueError(f"expected a short list of whole numbers, got {array.dtype} {array.shape}")
    return [int(number) for number in array.reshape(-1)]


def setting(node: Node, name: str, value: Value | None) -> list[int] | None:
    """A list of whole numbers that is an attribute, or an input in later versions.

    node     the Node
    name     of the attribute
    value    the input, a Value; None: the attribute counts
    Returns  list of int, or None
    """
    if value is not None:
        return whole_numbers(value)
    return node[name]


def scalar(value: Value | None, default: Any) -> Any:
    """A single number that is an input.

    value     a Value of one element, or None
    default   the result for None
    Raises    ValueError for more elements than one
    """
    if value is None:
        return default
    if value.size != 1:
        raise ValueError(f"expected one number, got an array {value.shape}")
    return value.on_host.reshape(()).item()


def expect_images(node: Node, x: Value) -> None:
    """Check that a value holds images.

    node     its Node, for the message
    x        the Value
    Raises   UnsupportedError for other than four axes
    """
    if x.rank != 4:
        raise unsupported(node, f"the input is {x.shape}; only images (N, C, H, W) are implemented")


# --- convolution and pooling --------------------------------------------------------------


class Window:
    """The window, strides and borders of a convolution or pooling node.

    With `ceil_mode` the border at the end grows until there is room for one window more, if that
    window begins within the image or its first border, as in onnxruntime and PyTorch.

    node      the Node
    size      (H, W) of the images, pixels
    kernel    (rows, columns) of the window, pixels

    kernel, stride, dilation   (rows, columns), pixels
    borders                    ((top, bottom), (left, right)), as the node gives them
    padding                    the same, with what `ceil_mode` adds
    settings                   stride, padding and dilation, as functions of the engine take them
    output                     (OH, OW)
    Raises                     ValueError for settings that do not fit, or a window that exceeds the
                               image and its border
    Source                     the operators' specification
    """

    def __init__(self, node: Node, size: Sequence[int], kernel: Sequence[int]):
        self.kernel = tuple(kernel)
        self.stride = self._pair(node, "strides", 1)
        self.dilation = self._pair(node, "dilations", 1)
        if min(self.kernel) < 1:
            raise ValueError(f"the window is {self.kernel}")
        self.borders = self._borders(node, size)
        self.padding = []
        for n, k, s, d, (before, after) in zip(
            size, self.kernel, self.stride, self.dilation, self.borders, strict=True
        ):
            span = d * (k - 1) + 1
            room = n + before + after - span
            if room < 0:
                raise ValueError(
                    f"a window of {span} exceeds {n} pixels and their border of {before} + {after}"
                )
            # With so much more border at the end there is room for one window more.
            more = -room % s if node["ceil_mode"] else 0
            if more and room + more >= n + before:  # where that window begins
                more = 0
            self.padding.append((before, after + more))
        self.padding = tuple(self.padding)
        self.settings = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
        }
        self.output = output_size(size, self.kernel, **self.settings)

    def _pair(self, node, name, default):
        values = node[name] or [default] * 2
        if len(values) != 2 or min(values) < 1:
            raise ValueError(f"{name} is {values}, expected two numbers from 1 up")
        return tuple(values)

    def _borders(self, node, size):
        auto, pads = node["auto_pad"] or "NOTSET", node["pads"]
        if auto == "NOTSET":
            pads = pads or [0] * 4
            if len(pads) != 4 or min(pads) < 0:
                raise ValueError(f"pads is {pads}, expected four numbers from 0 up")
            return (pads[0], pads[2]), (pads[1], pads[3])
        if pads and any(pads):
            raise ValueError(f"both auto_pad {auto} and pads {pads} are given")
        if auto == "VALID":
            return (0, 0), (0, 0)
        if auto not in ("SAME_UPPER", "SAME_LOWER"):
            raise ValueError(f"auto_pad is {auto!r}")
        sides = convolution.borders("same", size, self.kernel, self.stride, self.dilation)
        return tuple(side[::-1] for side in sides) if auto == "SAME_LOWER" else sides

    def reserve(self, run: Run, shape: Sequence[int], channels: int, depth: int) -> None:
        """Ask for the memory and time of a layer over images.

        run        the Run
        shape      of the images, (N, H, W, C)
        channels   of the outputs
        depth      channels of the input that each of them sees
        """
        count, *size, inputs = shape
        few = 16  # channels; copying a window of fewer takes as long
        wide = [n + sum(border) for n, border in zip(size, self.padding, strict=True)]
        run.reserve((count, *wide, inputs))
        outputs = run.reserve((count, *self.output, channels))
        windows = count * math.prod(self.output) * math.prod(self.kernel)
        run.spend(windows * max(inputs, few) * COPY + outputs * math.prod(self.kernel) * depth)

    def count_taps(self, run: Run) -> None:
        """Ask for the time of pooling, which passes over the images once per pixel of the window.

        run   the Run
        """
        run.spend(math.prod(self.kernel) * CALL // 100)
        for taps, count in zip(self.kernel, self.output, strict=True):
            run.reserve((count, taps), itemsize=8)


@operator("Conv")
def conv(
    run: Run,
    node: Node,
    x: Value,
    w: Value,
    b: Value | None = None,
    *,
    activation: str | None = None,
) -> Value:
    """Conv: a convolution, also depthwise and in groups, with an activation behind it.

    x            images (N, C, H, W)
    w            kernels (O, C/group, kh, kw)
    b            bias (O,), or None
    activation   None, "relu" or "relu6"
    """
    expect_images(node, x)
    if w.rank != 4:
        raise ValueError(f"the weights are {w.shape}, expected (O, C/group, kh, kw)")
    group = node["group"]
    outputs, depth, *kernel = w.shape
    channels = x.shape[1]
    if min(group, depth) < 1 or channels != depth * group or outputs % group:
        raise ValueError(
            f"{channels} channels in {group} groups, but the weights are {w.shape}: expected "
            f"(O, {channels}/{group}, kh, kw) with O a multiple of {group}"
        )
    if node["kernel_shape"] and node["kernel_shape"] != kernel:
        raise ValueError(f"kernel_shape is {node['kernel_shape']}, the weights are {w.shape}")
    if b is not None and b.shape != (outputs,):
        raise ValueError(f"the bias is {b.shape}, expected ({outputs},)")
    images, kernels = x.stored(CHANNELS_LAST), w.stored(KERNEL)
    window = Window(node, x.shape[2:], kernel)
    if depth == 1 < group and outputs > channels:  # each channel is repeated for its kernels
        repeated = (*images.shape[:3], outputs)
        window.reserve(run, repeated, outputs, depth)
        run.spend(4 * TOUCH * math.prod(repeated))
    else:
        window.reserve(run, images.shape, outputs, depth)
    run.reserve((window.output[1], *kernel, channels))  # copies of the windows of one row
    run.spend(group * CALL if depth > 1 else 0)
    settings = window.settings | {"activation": activation}
    bias = None if b is None else b.data
    if group == 1:
        y = convolution.conv2d(images, kernels, bias, **settings)
    elif depth == 1:
        y = _depthwise(images, kernels, channels, bias, settings)
    else:
        each = outputs // group
        parts = [
            convolution.conv2d(
                _part(images, 3, i * depth, (i + 1) * depth),
                _part(kernels, 3, i * each, (i + 1) * each),
                None if bias is None else _part(bias, 0, i * each, (i + 1) * each),
                **settings,
            )
            for i in range(group)
        ]
        y = ops.concatenate(parts)
    return Value(y, CHANNELS_LAST)


def _depthwise(images, kernels, channels, bias, settings):
    """Each channel with its own kernels: w (kh, kw, 1, C·m), m outputs for each channel."""
    kh, kw, _, outputs = kernels.shape
    many = outputs // channels
    if many > 1:  # output c·m + i sees channel c
        each = ops.reshape(images, shape=(*images.shape, 1))
        each = ops.broadcast_to(each, shape=(*images.shape, many))
        images = ops.reshape(each, shape=(*images.shape[:-1], outputs))
    kernels = ops.reshape(kernels, shape=(kh, kw, outputs))
    return convolution.depthwise_conv2d(images, kernels, bias, **settings)


@operator("ConvTranspose")
def conv_transpose(run: Run, node: Node, x: Value, w: Value, b: Value | None = None) -> Value:
    """ConvTranspose, a convolution's way back: each pixel lays down its kernels, and they add up.

    y[n,i·s+u·d−p,j·s+v·d−p,m] = b[m] + Σ_c x[n,i,j,c] · w[c,m,u,v], summed over all that meet there

    x   images (N, C, H, W)
    w   kernels (C, O/group, kh, kw)
    b   bias (O,), or None
    """
    expect_images(node, x)
    if w.rank != 4:
        raise ValueError(f"the weights are {w.shape}, expected (C, O/group, kh, kw)")
    group, channels = node["group"], x.shape[1]
    inputs, each, *kernel = w.shape
    if min(group, each) < 1 or inputs != channels or channels % group:
        raise ValueError(
            f"{channels} channels in {group} groups, but the weights are {w.shape}: expected "
            f"({channels}, O/group, kh, kw) with {channels} a multiple of {group}"
        )
    if node["kernel_shape"] and node["kernel_shape"] != kernel:
        raise ValueError(f"kernel_shape is {node['kernel_shape']}, the weights are {w.shape}")
    if b is not None and b.shape != (each * group,):
        raise ValueError(f"the bias is {b.shape}, expected ({each * group},)")
    spread = Spread(node, x.shape[2:], kernel)
    count, pixels, taps = x.shape[0], math.prod(x.shape[2:]), math.prod(kernel)
    run.reserve((count, *spread.size, each * group))
    run.reserve((pixels, taps, each))  # what one image lays down
    few = 16
    run.spend(count * pixels * taps * (max(each, few) * COPY * group + channels * each))
    run.spend(group * CALL)
    images, kernels, depth = x.stored(CHANNELS_LAST), w.stored(KERNEL), channels // group
    parts = [
        _lay_down(
            _part(images, 3, i * depth, (i + 1) * depth) if group > 1 else images,
            _part(kernels, 3, i * depth, (i + 1) * depth) if group > 1 else kernels,
            spread=spread,
        )
        for i in range(group)
    ]
    y = parts[0] if group == 1 else ops.concatenate(parts)
    if any(map(any, spread.empty)):
        y = _padded(y, [(0, 0), *spread.empty, (0, 0)], 0)
    return Value(y if b is None else ops.add_bias(y, b.data), CHANNELS_LAST)


class Spread:
    """Where a ConvTranspose lays its kernels.

    node      the Node
    size      (H, W) of the images, pixels
    kernel    (rows, columns), pixels

    stride, dilation  (rows, columns)
    borders           what is cut off: ((top, bottom), (left, right))
    size              (OH, OW) that kernels reach, without these borders
    empty             what no kernel reaches, in the form of `borders`: zeros (and the bias)
    Raises            ValueError for settings that do not fit, or that leave no pixel
    Source            the operator's specification
    """

    def __init__(self, node: Node, size: Sequence[int], kernel: Sequence[int]):
        self.stride, self.dilation = (
            tuple(node[name] or [1, 1]) for name in ("strides", "dilations")
        )
        more = node["output_padding"] or [0, 0]
        pads = node["pads"] or [0] * 4
        lengths = len(self.stride), len(self.dilation), len(more), len(pads)
        if lengths != (2, 2, 2, 4) or min(*self.stride, *self.dilation, *kernel) < 1:
            raise ValueError(
                f"strides {self.stride}, dilations {self.dilation}, output_padding {more}, pads "
                f"{pads}, kernel {kernel}: expected two numbers each (four of pads), from 1 up"
            )
        if min(*more, *pads) < 0:
            raise ValueError(f"output_padding {more} and pads {pads}: expected numbers from 0 up")
        whole = [
            (n - 1) * s + d * (k - 1) + 1
            for n, k, s, d in zip(size, kernel, self.stride, self.dilation, strict=True)
        ]
        auto = node["auto_pad"] or "NOTSET"
        wanted = node["output_shape"]
        if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
            wanted = [n * s for n, s in zip(size, self.stride, strict=True)]
        if wanted is not None:
            wanted = wanted[-2:]  # some files name the batch and the channels too
            total = [w + m - n for w, m, n in zip(whole, more, wanted, strict=True)]
            sides = [(t // 2, t - t // 2) for t in total]
            if auto != "SAME_UPPER":  # the odd pixel is cut off at the start
                sides = [side[::-1] for side in sides]
            # If there are too few pixels, zeros are added at the end, as in onnxruntime.
            sides = [(0, t) if t < 0 else side for t, side in zip(total, sides, strict=True)]
        elif auto in ("NOTSET", "VALID"):
            sides = [(pads[i], pads[i + 2]) for i in range(2)]
        else:
            raise ValueError(f"auto_pad is {auto!r}")
        ends = [(before, after - m) for (before, after), m in zip(sides, more, strict=True)]
        self.borders = tuple((max(a, 0), max(b, 0)) for a, b in ends)
        self.empty = tuple((max(-a, 0), max(-b, 0)) for a, b in ends)
        self.size = tuple(n - sum(cut) for n, cut in zip(whole, self.borders, strict=True))
        if min(self.size) < 1:
            raise ValueError(f"pads {self.borders} leave nothing of {whole} pixels")


@op
def _lay_down(x, w, *, spread):
    """x (N, H, W, C), w (kh, kw, O, C) → (N, OH, OW, O): the input gradient of a convolution."""
    kernels, settings = kernels_of(x), (spread.stride, spread.borders, spread.dilation)
    source, weights = x[None], w[None]
    shape = len(x), *spread.size, w.shape[2]
    y = kernels.convolve_input_gradient(source, weights, shape, *settings)[0]

    def x_gradient(g):
        return kernels.convolve(g[None], weights, None, *settings, None)[0]

    def w_gradient(g):
        return kernels.convolve_weight_gradient(g[None], source, w.shape[:2], *settings)[0]

    return y, (x_gradient, w_gradient)


def _part(x, axis, start, stop):
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop)
    return ops.take(x, index=tuple(index))


@operator("MaxPool")
def max_pool(run: Run, node: Node, x: Value) -> Value:
    """MaxPool: the largest value of each window.

    x   images (N, C, H, W)
    """
    expect_images(node, x)
    if not x.is_float or any(node.outputs[1:]):
        raise unsupported(node, "whole numbers, and the indices of the maxima, are not implemented")
    images = x.stored(CHANNELS_LAST)
    window = Window(node, x.shape[2:], node["kernel_shape"])
    window.reserve(run, images.shape, images.shape[-1], 1)
    window.count_taps(run)
    y = convolution.max_pool(images, window=window.kernel, **window.settings)
    return Value(y, CHANNELS_LAST)


@operator("AveragePool")
def average_pool(run: Run, node: Node, x: Value) -> Value:
    """AveragePool: the mean of each window.

    x   images (N, C, H, W)
    """
    expect_images(node, x)
    images = x.stored(CHANNELS_LAST)
    window = Window(node, x.shape[2:], node["kernel_shape"])
    window.reserve(run, images.shape, images.shape[-1], 1)
    window.count_taps(run)
    counted = bool(node["count_include_pad"])
    y = convolution.mean_pool(
        images, window=window.kernel, count_padding=counted, **window.settings
    )
    if counted and window.padding != window.borders:
        # The last window may reach beyond the border: only its pixels within the border count.
        within = _pixels_within(window, x.shape[2:])
        share = math.prod(window.kernel) / np.maximum(within, 1)
        y = ops.multiply(y, run.constant(share[..., None]))
    return Value(y, CHANNELS_LAST)


def _pixels_within(window, size):
    """How many pixels of each window are in the image or its border: (OH, OW)."""
    counts = []
    for n, k, s, d, out, border in zip(
        size,
        window.kernel,
        window.stride,
        window.dilation,
        window.output,
        window.borders,
        strict=True,
    ):
        room = n + sum(border) - np.arange(out) * s  # from a window's first pixel on
        counts.append(np.clip(-(-room // d), 0, k))
    return np.outer(*counts)


@operator("GlobalAveragePool")
def global_average_pool(run: Run, node: Node, x: Value) -> Value:
    """GlobalAveragePool: the mean over all pixels, (N, C, 1, 1).

    x   images (N, C, H, W)
    """
    expect_images(node, x)
    y = ops.global_mean(x.stored(CHANNELS_LAST))
    return Value(ops.reshape(y, shape=(x.shape[0], 1, 1, x.shape[1])), CHANNELS_LAST)


@operator("GlobalMaxPool")
def global_max_pool(run: Run, node: Node, x: Value) -> Value:
    """GlobalMaxPool: the largest value over all pixels, (N, C, 1, 1).

    x   images (N, C, H, W)
    """
    expect_images(node, x)
    return Value(_global_max(x.stored(CHANNELS_LAST)), CHANNELS_LAST)


@op
def _global_max(x):
    """The largest value per channel, (N, H, W, C) → (N, 1, 1, C); equal ones share the gradient."""
    y = x.max(axis=(1, 2), keepdims=True)

    def pullback(g):
        largest = x == y
        return g / largest.sum(axis=(1, 2), keepdims=True, dtype=g.dtype) * largest

    return y, (pullback,)


# --- normalisation ------------------------------------------------------------------------


@operator("BatchNormalization")
def batch_normalization(
    run: Run,
    node: Node,
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    activation: str | None = None,
) -> Value:
    """BatchNormalization, with an activation behind it: see `minires.engine.batch_norm`.

    Unless the run predicts, it normalises by the batch and moves the running statistics.

    x                (N, C, …)
    scale, bias      (C,)
    mean, variance   (C,), the running statistics; changed unless the run predicts
    activation       None, "relu" or "relu6"
    """
    if x.rank < 2:
        raise ValueError(f"the input is {x.shape}, expected (N, C, …)")
    for name, value in (("scale", scale), ("B", bias), ("mean", mean), ("var", variance)):
        if value.shape != (x.shape[1],):
            raise ValueError(f"{name} is {value.shape}, expected ({x.shape[1]},)")
    order = (0, *range(2, x.rank), 1)
    data = x.stored(order)
    shape = data.shape
    if x.rank not in (2, 4):
        data = ops.reshape(data, shape=(-1, x.shape[1]))
    of_batch = run.mode != "predict"
    if of_batch:
        moments = batch_moments(data_of(data))
        momentum = node["momentum"] if run.mode == "train" else run.momentum
        update_running(momentum, (mean.array, variance.array), moments, x.size // x.shape[1])
    else:
        moments = mean.array, variance.array
    y = batch_norm(
        data,
        scale.data,
        bias.data,
        mean=moments[0],
        variance=moments[1],
        epsilon=node["epsilon"],
        of_batch=of_batch,
        activation=activation,
    )
    return Value(ops.reshape(y, shape=shape) if y.shape != shape else y, order)


def update_running(
    momentum: float, running: Sequence[Array], moments: Sequence[Array], count: int
) -> None:
    """Move the running mean and variance towards those of a batch, in place.

    running ← momentum · running + (1 − momentum) · new

    The batch is normalised with the population's variance, but the unbiased estimate is kept, as in
    PyTorch. (ONNX's own training mode keeps the population's. No exporter writes that mode for
    inference.)

    momentum   the share of the old values that is kept: the attribute `momentum` of a node.
               PyTorch's "momentum" is one minus this
    running    mean and variance (C,), changed
    moments    mean and population variance (C,) of the batch
    count      how many values of each channel the batch has
    """
    mean, variance = moments
    new = mean, variance * (count / max(count - 1, 1))
    for kept, value in zip(running, new, strict=True):
        kept *= momentum
        kept += (1 - momentum) * value


def as_affine(
    node: Node, scale: Value, bias: Value, mean: Value, variance: Value
) -> tuple[Array, Array]:
    """Batch norm with its running statistics, as y = x · factor + shift.

    node             its Node, for ε
    scale, bias      (C,) Values
    mean, variance   (C,) Values
    Returns          factor, shift: (C,) arrays or Tensors
    """
    xp = xp_of(variance.array)
    deviation = xp.sqrt(variance.array + variance.array.dtype.type(node["epsilon"]))
    factor = ops.divide(scale.data, deviation)
    return factor, ops.subtract(bias.data, ops.multiply(factor, mean.array))


@operator("LayerNormalization", touches=7)
def layer_normalization(
    run: Run, node: Node, x: Value, scale: Value, bias: Value | None = None
) -> Value | tuple[Value, ...]:
    """LayerNormalization: (x − mean) / √(variance + ε) · scale + bias, over the axes from one on.

    scale, bias   of the shape of these axes, or broadcast to it; bias may be None
    Source        Ba et al. 2016, arXiv:1607.06450
    """
    axes = tuple(range(x.axis(node["axis"]), x.rank))
    if np.broadcast_shapes(scale.shape, x.shape) != x.shape:
        raise ValueError(f"scale is {scale.shape}, the input {x.shape}")
    data = x.plain
    mean = ops.mean(data, axis=axes, keepdims=True)
    centred = ops.subtract(data, mean)
    variance = ops.mean(ops.multiply(centred, centred), axis=axes, keepdims=True)
    deviation = ops.sqrt(ops.add(variance, run.number(node["epsilon"])))
    y = ops.multiply(ops.divide(centred, deviation), scale.plain)
    y = Value(y if bias is None else ops.add(y, bias.plain))
    if len(node.outputs) == 1:
        return y
    return y, Value(mean), Value(ops.power(deviation, exponent=-1))


@operator("DequantizeLinear")
def dequantize(run: Run, node: Node, x: Value, scale: Value, zero: Value | None = None) -> Value:
    """DequantizeLinear: (x − zero) · scale, for weights stored as small whole numbers.

    x       whole numbers
    scale   floats: one, or one for each place along an axis
    zero    whole numbers like scale, or None for 0
    """
    if x.is_float or (node["block_size"] or 0) > 0:
        raise unsupported(node, f"blocks, or an input that is {x.array.dtype}")
    shape = [1] * x.rank
    if scale.size > 1 and x.rank:
        shape[x.place(node["axis"])] = scale.size
    run.reserve(x.shape, itemsize=8)
    whole = x.array.astype(np.int64)
    if zero is not None:
        whole = whole - zero.array.astype(np.int64).reshape(shape if zero.size > 1 else ())
    numbers = whole.astype(np.float64) * scale.on_host.astype(np.float64).reshape(
        shape if scale.size > 1 else ()
    )
    return Value(run.constant(numbers.astype(np.float32)), x.order)


@operator("LRN")
def local_response_normalization(run: Run, node: Node, x: Value) -> Value:
    """LRN: x / (k + α/n · Σ x²)^β, the sum over n neighbouring channels.

    x        images (N, C, H, W)
    Source   Krizhevsky et al. 2012
    """
    expect_images(node, x)
    data, size = x.stored(CHANNELS_LAST), node["size"]
    if size < 1:
        raise ValueError(f"size is {size}")
    before, after = (size - 1) // 2, size // 2
    channels = data.shape[-1]
    run.reserve((*data.shape[:-1], channels + size - 1))
    run.spend(size * (CALL + TOUCH * x.size))
    squares = _padded(ops.multiply(data, data), [(0, 0)] * 3 + [(before, after)], 0)
    total = None
    for i in range(size):
        part = _part(squares, 3, i, i + channels)
        total = part if total is None else ops.add(total, part)
    base = ops.add(ops.multiply(total, run.number(node["alpha"] / size)), run.number(node["bias"]))
    return Value(ops.multiply(data, ops.power(base, exponent=-node["beta"])), CHANNELS_LAST)


@operator("Dropout")
def dropout(
    run: Run, node: Node, x: Value, ratio: Value | None = None, training: Value | None = None
) -> Value | tuple[Value, Value]:
    """Dropout: in training a share of the values is set to 0; otherwise x itself.

    ratio      the share to drop, one number; None: the default
    training   whether the file itself asks for training mode, which is refused
    """
    rate = scalar(ratio, 0.5) if node.version >= 12 else node["ratio"]
    if training is not None and scalar(training, False):
        text = "the file asks for training mode; export the network for inference "
        raise unsupported(node, text + "(minires itself drops values in loss_and_gradient)")
    y = x
    if run.mode == "train" and rate > 0:
        if run.rng is None:
            raise ValueError(f"{node} drops {rate:.0%}: pass rng=numpy.random.default_rng(…)")
        y = Value(ops.dropout(x.data, rate=rate, rng=run.rng), x.order)
    if len(node.outputs) == 1:
        return y
    return y, Value(np.ones(x.array.shape, bool), x.order)


# --- elementwise --------------------------------------------------------------------------


def aligned(x: Value, y: Value) -> tuple[Array, Array, tuple[int, ...]]:
    """Two values with their axes in one order, ready to broadcast.

    x, y      Values
    Returns   two arrays or Tensors, and the order of the axes
    """
    rank = max(x.rank, y.rank)
    leader = x if (x.rank, x.size) >= (y.rank, y.size) else y
    order = leader.with_rank(rank).order
    return (*(v.data if v.rank == 0 else v.with_rank(rank).stored(order) for v in (x, y)), order)


def binary(function: Callable, on_whole_numbers: Callable) -> Callable:
    """Make an operator on two inputs that broadcast.

    function           of two arrays or Tensors of floats
    on_whole_numbers   of two arrays of whole numbers
    """

    def apply(run, node, x, y):
        a, b, order = aligned(x, y)
        if x.is_float:
            return Value(function(a, b), order)
        return Value(np.asarray(on_whole_numbers(data_of(a), data_of(b))), order)

    return apply


def _divide_whole(x, y):
    """Division towards zero, as in C."""
    if not np.all(y):
        raise ValueError("a whole number is divided by zero")
    down = x // y
    return down + ((down < 0) & (down * y != x))


operator("Add", broadcasts=True)(binary(ops.add, np.add))
operator("Sub", broadcasts=True)(binary(ops.subtract, np.subtract))
operator("Mul", broadcasts=True)(binary(ops.multiply, np.multiply))
operator("Div", broadcasts=True)(binary(ops.divide, _divide_whole))


@operator("Mod", broadcasts=True)
def mod(run: Run, node: Node, x: Value, y: Value) -> Value:
    """Mod: the remainder. It has the sign of the divisor; with `fmod`, that of the dividend.

    x, y   whole numbers that broadcast
    """
    if x.is_float:
        raise unsupported(node, "remainders of floats are not implemented")
    if not np.all(y.array):
        raise ValueError("a whole number is divided by zero")
    return binary(None, np.fmod if node["fmod"] else np.mod)(run, node, x, y)


def variadic(combine: Callable) -> Callable:
    """Make an operator on any number of inputs, which combines two at a time.

    combine   an operator on two inputs
    """

    def apply(run, node, first, *others):
        for other in others:
            first = combine(run, node, first, other)
        return first

    return apply


operator("Max", broadcasts=True)(variadic(binary(ops.maximum, np.maximum)))
operator("Min", broadcasts=True)(variadic(binary(ops.minimum, np.minimum)))
operator("Sum", broadcasts=True)(variadic(OPERATORS["Add"]))


def unary(function: Callable) -> Callable:
    """Make an operator on each number by itself.

    function   of an array or Tensor
    """

    def apply(run, node, x):
        return Value(function(x.data), x.order)

    return apply


operator("Relu")(unary(ops.relu))
operator("Sigmoid")(unary(ops.sigmoid))
operator("Tanh")(unary(ops.tanh))
operator("Neg")(unary(ops.negative))
operator("Sqrt")(unary(ops.sqrt))
operator("Identity")(unary(lambda x: x))


operator("Exp")(unary(ops.exp))
operator("Log")(unary(ops.log))


@op
def _absolute(x):
    """|x|, with derivative 0 at 0"""
    xp = xp_of(x)
    return xp.abs(x), (lambda g: g * xp.sign(x),)


@op
def _softplus(x):
    """ln(1 + eˣ), which cannot overflow; its derivative is the sigmoid"""
    xp = xp_of(x)
    return xp.logaddexp(x, x.dtype.type(0)), (lambda g: g * (1 + xp.tanh(x / 2)) / 2,)


@op
def _softsign(x):
    """x / (1 + |x|)"""
    below = 1 + xp_of(x).abs(x)
    return x / below, (lambda g: g / (below * below),)


@op
def _erf(x):
    """The error function, (2/√π) ∫₀ˣ e^(−t²) dt"""
    xp = xp_of(x)
    if xp is np:
        from scipy.special import erf
    else:
        from cupyx.scipy.special import erf
    slope = x.dtype.type(2 / math.sqrt(math.pi))
    return erf(x), (lambda g: g * slope * xp.exp(-x * x),)


@op
def _elu(x, *, low, inner, outer):
    """outer · x above 0, outer · low · (e^(x · inner) − 1) below"""
    xp, dtype = xp_of(x), x.dtype.type
    low, inner, outer = dtype(low), dtype(inner), dtype(outer)
    below = low * xp.expm1(xp.minimum(x, 0) * inner)
    y = outer * xp.where(x > 0, x, below)
    slope = outer * xp.where(x > 0, dtype(1), (below + low) * inner)
    return y, (lambda g: g * slope,)


operator("Abs")(unary(lambda x: _absolute(x) if x.dtype.kind == "f" else np.abs(x)))
operator("Softplus")(unary(_softplus))
operator("Softsign")(unary(_softsign))
operator("Erf")(unary(_erf))
operator("Mish")(unary(lambda x: ops.multiply(x, ops.tanh(_softplus(x)))))


@operator("Elu")
def elu(run: Run, node: Node, x: Value) -> Value:
    """Elu: x above 0, α (eˣ − 1) below."""
    return Value(_elu(x.data, low=node["alpha"], inner=1, outer=1), x.order)


@operator("Selu")
def selu(run: Run, node: Node, x: Value) -> Value:
    """Selu: γ x above 0, γ α (eˣ − 1) below."""
    return Value(_elu(x.data, low=node["alpha"], inner=1, outer=node["gamma"]), x.order)


@operator("Celu")
def celu(run: Run, node: Node, x: Value) -> Value:
    """Celu: x above 0, α (e^(x/α) − 1) below."""
    alpha = node["alpha"]
    return Value(_elu(x.data, low=alpha, inner=1 / alpha, outer=1), x.order)


@operator("Gelu", touches=5)
def gelu(run: Run, node: Node, x: Value) -> Value:
    """Gelu: x · Φ(x), with Φ by the error function or, if the node asks for it, by tanh."""
    data, number = x.data, run.number
    if node["approximate"] == "tanh":
        cube = ops.multiply(ops.multiply(data, data), data)
        inner = ops.add(data, ops.multiply(cube, number(0.044715)))
        inside = ops.tanh(ops.multiply(inner, number(math.sqrt(2 / math.pi))))
    else:
        inside = _erf(ops.multiply(data, number(1 / math.sqrt(2))))
    half = ops.multiply(ops.add(inside, number(1)), number(0.5))
    return Value(ops.multiply(data, half), x.order)


@op
def _raise_to(x, *, exponent):
    """x^exponent; where the exponent is 0 the derivative is 0, at 0 too"""
    xp = xp_of(x)
    if exponent == 0:
        return xp.ones_like(x), (lambda g: xp.zeros_like(g),)
    power = x.dtype.type(exponent)
    return x**power, (lambda g: g * power * x ** (power - x.dtype.type(1)),)


@operator("Pow")
def pow_(run: Run, node: Node, x: Value, y: Value) -> Value:
    """Pow: x to a constant power.

    x   floats or whole numbers
    y   the exponent, one number
    """
    if y.size != 1 or y.rank > x.rank:
        raise unsupported(node, f"exponents {y.shape}; only a single number is implemented")
    exponent = y.on_host.reshape(()).item()
    if not x.is_float:
        if exponent < 0:
            raise ValueError(f"a whole number is raised to {exponent}")
        if not float(exponent).is_integer():
            if (x.array < 0).any():
                raise ValueError(f"a whole number below 0 is raised to {exponent}")
            return Value(np.power(x.array, float(exponent)).astype(x.array.dtype), x.order)
        return Value(np.power(x.array, x.array.dtype.type(exponent)), x.order)
    return Value(_raise_to(x.data, exponent=exponent), x.order)


def comparison(function: Callable) -> Callable:
    """Make an operator on two inputs whose results are truth values, on the host.

    function   of two NumPy arrays
    """

    def apply(run, node, x, y):
        plain = (data_of(value.plain) for value in (x, y))
        return Value(np.asarray(function(*map(to_host, plain))))

    return apply


for _name, _function in {
    "Equal": np.equal, "Greater": np.greater, "Less": np.less, "And": np.logical_and,
    "Or": np.logical_or, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal,
}.items():  # fmt: skip
    operator(_name, broadcasts=True)(comparison(_function))


@operator("Not")
def not_(run: Run, node: Node, x: Value) -> Value:
    """Not: the opposite of each truth value.

    x   truth values
    """
    return Value(np.logical_not(x.array), x.order)


@operator("Where", touches=3, broadcasts=True)
def where(run: Run, node: Node, condition: Value, x: Value, y: Value) -> Value:
    """Where: x where the condition is true, else y.

    condition   truth values
    x, y        floats or whole numbers; all three broadcast
    """
    if not x.is_float:
        return Value(np.where(*(data_of(value.plain) for value in (condition, x, y))))
    chosen = run.constant(condition.plain)
    # Each is set to 0 where the other is chosen, so numbers that are not chosen may be infinite.
    parts = [_masked(v.plain, mask=m) for v, m in ((x, chosen), (y, 1 - chosen))]
    return Value(ops.add(*parts))


@op
def _masked(x, *, mask):
    """x where the mask is not 0, else 0"""
    return xp_of(x).where(mask != 0, x, x.dtype.type(0)), (lambda g: g * mask,)


@op
def _leaky_relu(x, *, slope):
    factor = xp_of(x).where(x < 0, x.dtype.type(slope), x.dtype.type(1))
    return x * factor, (lambda g: g * factor,)


@operator("LeakyRelu")
def leaky_relu(run: Run, node: Node, x: Value) -> Value:
    """LeakyRelu: x above 0, α x below."""
    return Value(_leaky_relu(x.data, slope=node["alpha"]), x.order)


@operator("PRelu")
def prelu(run: Run, node: Node, x: Value, slope: Value) -> Value:
    """PRelu: max(x, 0) + slope · min(x, 0).

    slope   an array that broadcasts to x
    """
    a, b, order = aligned(x, slope)
    if np.broadcast_shapes(a.shape, b.shape) != a.shape:
        raise ValueError(f"the slope is {slope.shape}, the input {x.shape}")
    below = ops.negative(ops.relu(ops.negative(a)))
    return Value(ops.add(ops.relu(a), ops.multiply(below, b)), order)


def _between(x, slope, shift):
    """x · slope + shift, held between 0 and 1."""
    dtype = x.dtype.type
    return ops.clip(ops.add(ops.multiply(x, dtype(slope)), dtype(shift)), low=0, high=1)


@operator("HardSigmoid")
def hard_sigmoid(run: Run, node: Node, x: Value) -> Value:
    """HardSigmoid: α x + β, held between 0 and 1."""
    return Value(_between(x.data, node["alpha"], node["beta"]), x.order)


@operator("HardSwish")
def hard_swish(run: Run, node: Node, x: Value) -> Value:
    """HardSwish: x · (x/6 + 1/2, held between 0 and 1)."""
    return Value(ops.multiply(x.data, _between(x.data, 1 / 6, 0.5)), x.order)


def clip_bounds(
    node: Node, low: Value | None = None, high: Value | None = None
) -> tuple[float | None, float | None]:
    """The bounds of a Clip node, which are attributes before opset 11 and inputs later.

    node        the Node
    low, high   its inputs, Values or None
    Returns     two numbers, each may be None
    """
    if node.version < 11:
        return node["min"], node["max"]
    return scalar(low, None), scalar(high, None)


@operator("Clip")
def clip(
    run: Run, node: Node, x: Value, low: Value | None = None, high: Value | None = None
) -> Value:
    """Clip: x held between two bounds.

    x           floats or whole numbers
    low, high   one number each, or None
    """
    low, high = clip_bounds(node, low, high)
    if not x.is_float:
        return Value(np.clip(x.array, low, high), x.order)
    if (low, high) == (0, 6):
        return Value(ops.relu6(x.data), x.order)
    low, high = -np.inf if low is None else low, np.inf if high is None else high
    # If the lower bound exceeds the upper one, the upper one counts.
    return Value(ops.clip(x.data, low=min(low, high), high=high), x.order)


# --- other sizes --------------------------------------------------------------------------


@operator("Resize")
def resize(
    run: Run,
    node: Node,
    x: Value,
    region: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
) -> Value:
    """Resize: another number of pixels; along each axis a result is a mean of a few, weighted.

    region   not used: it is for a mode that is not implemented
    scales   new length / old length, for each axis; before opset 11 in the place of `region`
    sizes    new lengths, if there are no scales
    Source   the operator's specification: where a result lies among the pixels, and how they are
             weighted, each by its name
    """
    if node.version < 11:  # there was no region
        scales = region
    axes = list(range(x.rank)) if node["axes"] is None else node["axes"]
    places = [x.place(axis) for axis in axes]
    before = [x.data.shape[place] for place in places]
    lengths, scales = _new_lengths(node, before, scales, sizes)
    data, order = x.data, x.order
    for place, length, scale in zip(places, lengths, scales, strict=True):
        size = data.shape[place]
        if (length, scale) == (size, 1):
            continue
        shape = (*data.shape[:place], length, *data.shape[place + 1 :])
        run.reserve((length, max(size, 1)), itemsize=8)
        run.spend(run.reserve(shape) * size)
        where = _places_between(node, size, length, scale)
        if (node["mode"] or "nearest") == "nearest":
            data = _choose(data, axis=place, chosen=_nearest(node, where, size))
            continue
        means = run.constant(_means(node, where, size))
        lead = math.prod(data.shape[:place])
        rows = ops.reshape(data, shape=(lead, size, -1))
        data = ops.reshape(ops.matmul(means, rows), shape=shape)
    return Value(data, order)


def _new_lengths(node, before, scales, sizes):
    """The new lengths of a Resize, and new / old, from `scales` or `sizes`."""
    if scales is not None and scales.size:
        scales = [float(number) for number in scales.on_host.reshape(-1)]
        # In float32, as the scales are stored: 10 · 0.7 is 7, not 6.9999999.
        lengths = [
            math.floor(np.float32(n) * np.float32(s)) for n, s in zip(before, scales, strict=True)
        ]
    elif sizes is not None and sizes.size:
        lengths = whole_numbers(sizes)
        scales = [new / max(old, 1) for new, old in zip(lengths, before, strict=True)]
        policy = node["keep_aspect_ratio_policy"] or "stretch"
        if policy != "stretch":
            scale = {"not_larger": min, "not_smaller": max}[policy](scales)
            scales = [scale] * len(lengths)
            lengths = [math.floor(n * scale + 0.5) for n in before]
    else:
        raise ValueError("neither scales nor sizes are given")
    if not all(map(math.isfinite, scales)) or min(*scales, 1) <= 0 or min(*lengths, 1) < 1:
        raise ValueError(f"lengths {before} become {lengths}, by scales {scales}")
    return lengths, scales


def _places_between(node, size, length, scale):
    """Where each of `length` results lies among `size` pixels: pixel n is at n."""
    mode = node["coordinate_transformation_mode"] or "asymmetric"  # before opset 11 there was one
    i = np.arange(length)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * ((size - 1) / max(length - 1, 1))
    if mode == "tf_half_pixel_for_nn":
        return (i + 0.5) / scale
    middle = (i + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return middle
    if mode == "pytorch_half_pixel":
        return middle if length > 1 else np.zeros(1)
    if mode == "half_pixel_symmetric":
        return middle + size / 2 * (1 - length / (scale * size))
    raise unsupported(node, f"coordinate_transformation_mode {mode!r} is not implemented")


def _nearest(node, where, size):
    """The pixel nearest to each place."""
    rounding = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    chosen = rounding[node["nearest_mode"] or "floor"](where)  # before opset 11 there was one
    return np.clip(chosen, 0, size - 1).astype(np.int64)


def _means(node, where, size):
    """The weights of linear or cubic interpolation: (results, pixels)."""
    if node["antialias"] or node["mode"] not in ("linear", "cubic"):
        text = f"mode {node['mode']!r}, antialias {node['antialias']} is not implemented"
        raise unsupported(node, text)
    first = np.floor(where)
    t = where - first
    if node["mode"] == "linear":
        taps = {0: 1 - t, 1: t}
    else:
        # Keys 1981, "Cubic convolution interpolation for digital image processing"
        a = node["cubic_coeff_a"]
        near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1
        far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        taps = {-1: far(1 + t), 0: near(t), 1: near(1 - t), 2: far(2 - t)}
    means, rows = np.zeros((len(where), size)), np.arange(len(where))
    for offset, weights in taps.items():
        pixel = first + offset
        if node["exclude_outside"]:
            weights = weights * ((pixel >= 0) & (pixel < size))
        means[rows, np.clip(pixel, 0, size - 1).astype(int)] += weights
    return means / means.sum(axis=1, keepdims=True) if node["exclude_outside"] else means


# --- products -----------------------------------------------------------------------------


@operator("Gemm")
def gemm(run: Run, node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    """Gemm: α · A B + β · C, with A and B transposed if the node says so.

    a, b   matrices
    c      an array that broadcasts to the product, or None
    """
    if a.rank != 2 or b.rank != 2:
        raise ValueError(f"A is {a.shape} and B {b.shape}, expected two matrices")
    a = a.transposed([1, 0]) if node["transA"] else a
    b = b.transposed([1, 0]) if node["transB"] else b
    y = _product(run, a, b)
    if node["alpha"] != 1:
        y = ops.multiply(y, run.number(node["alpha"]))
    if c is not None and node["beta"] != 0:
        addend = c.plain
        if node["beta"] != 1:
            addend = ops.multiply(addend, run.number(node["beta"]))
        if np.broadcast_shapes(addend.shape, y.shape) != tuple(y.shape):
            raise ValueError(f"C is {c.shape}, the product {tuple(y.shape)}")
        y = ops.add_bias(y, addend) if addend.shape == y.shape[1:] else ops.add(y, addend)
    return Value(y)


@operator("MatMul")
def matmul(run: Run, node: Node, a: Value, b: Value) -> Value:
    """MatMul: the matrix product of A and B, over leading axes that broadcast.

    a, b   arrays of one axis or more
    """
    if not a.rank or not b.rank:
        raise ValueError(f"A is {a.shape} and B {b.shape}: a product needs axes")
    row, column = a.rank == 1, b.rank == 1
    if row:
        a = a.with_rank(2)
    if column:
        b = Value(ops.reshape(b.data, shape=(*b.shape, 1)))
    y = _product(run, a, b)
    shape = y.shape
    if row or column:
        keep = shape[:-2] + (() if row else shape[-2:-1]) + (() if column else shape[-1:])
        y = ops.reshape(y, shape=keep)
    return Value(y)


def _product(run, a, b):
    left, right = a.plain, b.plain
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    work = run.reserve((*lead, left.shape[-2], right.shape[-1])) * left.shape[-1]
    run.spend(math.prod(lead) * CALL + work * (1 if a.is_float else SLOW))
    if not a.is_float:
        return np.matmul(left, right)
    return ops.matmul(left, right)


# --- reductions ---------------------------------------------------------------------------


def reduction(function: Callable, on_whole_numbers: Callable) -> Callable:
    """Make an operator that reduces some axes to one number.

    function           of an array or Tensor of floats, with axis and keepdims
    on_whole_numbers   the same for whole numbers
    """

    def apply(run, node, x, axes=None):
        axes = setting(node, "axes", axes)
        if not axes:
            if node["noop_with_empty_axes"]:
                return x
            axes = list(range(x.rank))
        axes = sorted(set(map(x.axis, axes)))
        if 0 in x.shape and function is ops.mean:
            raise ValueError(f"an array {x.shape} holds nothing to average")
        keep = bool(node["keepdims"])
        is_mean = function is ops.mean and x.is_float
        if is_mean and axes == [2, 3] and x.order == CHANNELS_LAST:
            y = ops.global_mean(x.data)
            return Value(ops.reshape(y, shape=(*y.shape, 1, 1)) if keep else y)
        places = tuple(x.place(axis) for axis in axes)
        reduce = function if x.is_float else on_whole_numbers
        if function is _largest and 0 in x.shape:
            raise unsupported(node, f"an array {x.shape} has no largest number")
        y = reduce(x.data, axis=places, keepdims=keep)
        if keep:
            return Value(y, x.order)
        left = [axis for axis in range(x.rank) if axis not in axes]
        return Value(y, tuple(left.index(axis) for axis in x.order if axis in left))

    return apply


def _sum_whole(x, axis, keepdims):
    """The sum in the type of its numbers; NumPy's own would be wider."""
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype))


def _mean_whole(x, axis, keepdims):
    total = _sum_whole(x, axis, keepdims)
    return np.asarray(_divide_whole(total, x.dtype.type(x.size // max(total.size, 1))))


@op
def _largest(x, *, axis, keepdims):
    """The largest value along some axes; equal ones share the gradient."""
    xp = xp_of(x)
    top = x.max(axis=axis, keepdims=True)
    y = top if keepdims else xp.asarray(x.max(axis=axis))

    def pullback(g):
        largest = x == top
        share = largest / largest.sum(axis=axis, keepdims=True, dtype=x.dtype)
        return g.reshape(top.shape) * share

    return y, (pullback,)


operator("ReduceMax")(
    reduction(_largest, lambda x, axis, keepdims: np.asarray(x.max(axis=axis, keepdims=keepdims)))
)
operator("ReduceMean")(reduction(ops.mean, _mean_whole))
operator("ReduceSum")(reduction(ops.sum, _sum_whole))


def softmax_of(function: Callable) -> Callable:
    """Make Softmax or its logarithm: over one axis; before opset 13 over all axes from that one on.

    function   `ops.softmax` or `ops.log_softmax`
    """

    def apply(run, node, x):
        axis = x.axis(node["axis"])
        if node.version < 13:
            flat = ops.reshape(x.plain, shape=(math.prod(x.shape[:axis]), -1))
            return Value(ops.reshape(function(flat), shape=x.shape))
        order = (*(a for a in range(x.rank) if a != axis), axis)
        return Value(function(x.stored(order)), order)

    return apply


operator("Softmax", touches=4)(softmax_of(ops.softmax))
operator("LogSoftmax", touches=4)(softmax_of(ops.log_softmax))

# --- shapes -------------------------------------------------------------------------------


def _reshaped(run, x, shape):
    if math.prod(shape) != x.size:
        raise ValueError(f"an array {x.shape} cannot take the shape {tuple(shape)}")
    return Value(ops.reshape(x.plain, shape=tuple(shape)))


@operator("Reshape")
def reshape(run: Run, node: Node, x: Value, shape: Value) -> Value:
    """Reshape: the same numbers in another shape.

    shape   whole numbers; 0 keeps a size, −1 stands for what is left
    """
    wanted = whole_numbers(shape)
    if not node["allowzero"]:
        if 0 in wanted[x.rank :]:
            raise ValueError(f"the shape {wanted} copies an axis that {x.shape} does not have")
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if any(size < -1 for size in wanted) or wanted.count(-1) > 1:
        raise ValueError(f"the shape asked for is {wanted}")
    if -1 in wanted:
        known = -math.prod(wanted)
        if not known or x.size % known:
            raise ValueError(f"an array {x.shape} cannot take the shape {wanted}")
        wanted[wanted.index(-1)] = x.size // known
    return _reshaped(run, x, wanted)


@operator("Flatten")
def flatten(run: Run, node: Node, x: Value) -> Value:
    """Flatten: a matrix; the axes before `axis` become its rows."""
    axis = x.rank if node["axis"] == x.rank else x.axis(node["axis"])
    return _reshaped(run, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@operator("Squeeze")
def squeeze(run: Run, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Squeeze: the axes of size 1 are left out.

    axes   which; None: the attribute, or all of size 1
    """
    axes = setting(node, "axes", axes)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = set(map(x.axis, axes))
    if any(x.shape[axis] != 1 for axis in gone):
        raise ValueError(f"the axes {sorted(gone)} of {x.shape} are not all of size 1")
    return _reshaped(run, x, [size for axis, size in enumerate(x.shape) if axis not in gone])


@operator("Unsqueeze")
def unsqueeze(run: Run, node: Node, x: Value, axes: Value | None = None) -> Value:
    """Unsqueeze: new axes of size 1.

    axes   their places in the result; None: the attribute
    """
    axes = setting(node, "axes", axes)
    rank = x.rank + len(axes)
    new = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(new) != len(axes):
        raise ValueError(f"axes {axes} of a result with {rank} axes")
    sizes = iter(x.shape)
    return _reshaped(run, x, [1 if axis in new else next(sizes) for axis in range(rank)])


@operator("Transpose")
def transpose(run: Run, node: Node, x: Value) -> Value:
    """Transpose: the axes in another order. No number moves."""
    axes = node["perm"]
    axes = list(range(x.rank))[::-1] if axes is None else axes
    if sorted(axes) != list(range(x.rank)):
        raise ValueError(f"perm is {axes} for an array with {x.rank} axes")
    return x.transposed(axes)


@operator("Expand")
def expand(run: Run, node: Node, x: Value, shape: Value) -> Value:
    """Expand: x repeated along axes of size 1 and new leading axes.

    shape   whole numbers, broadcast with the shape of x
    """
    shape = np.broadcast_shapes(x.shape, tuple(whole_numbers(shape)))
    run.reserve(shape, itemsize=x.array.itemsize)
    ones = xp_of(x.array).ones(shape, x.array.dtype)
    return Value(ops.multiply(x.plain, ones) if x.is_float else x.plain * ones)


@operator("Concat")
def concat(run: Run, node: Node, *values: Value) -> Value:
    """Concat: arrays joined along an axis.

    values   arrays of equal shape but for that axis
    """
    first = max(values, key=lambda v: v.order == CHANNELS_LAST)
    order, axis = first.order, first.axis(node["axis"])
    shapes = [value.shape for value in values]
    if len({(len(s), *s[:axis], *s[axis + 1 :]) for s in shapes}) != 1:
        raise ValueError(f"the inputs are {shapes}, the axis is {axis}")
    total = sum(shape[axis] for shape in shapes)
    whole = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    run.reserve(whole, itemsize=first.array.itemsize)
    if len(values) == 1:
        return first
    joined = ops.concatenate([value.stored(order) for value in values], axis=order.index(axis))
    return Value(joined, order)


@operator("Split")
def split(run: Run, node: Node, x: Value, sizes: Value | None = None) -> tuple[Value, ...]:
    """Split: parts of an array along an axis, one for each output.

    sizes   of the parts; None: the attribute, or equal parts
    """
    place, count = x.place(node["axis"]), len(node.outputs)
    length = x.data.shape[place]
    sizes = setting(node, "split", sizes)
    if sizes is None:
        if node["num_outputs"] not in (None, count):
            raise ValueError(f"num_outputs is {node['num_outputs']}, the node has {count}")
        if node.version < 18 and length % count:
            raise ValueError(f"{length} does not divide into {count} equal parts")
        step = -(-length // count)
        sizes = [max(min(step, length - i * step), 0) for i in range(count)]
    if len(sizes) != count or min(sizes) < 0 or sum(sizes) != length:
        raise ValueError(f"parts of {sizes} for {count} outputs and {length} in all")
    run.spend(count * CALL // 10)
    ends = np.cumsum(sizes).tolist()
    return tuple(
        Value(_part(x.data, place, end - size, end), x.order)
        for size, end in zip(sizes, ends, strict=True)
    )


@operator("SplitToSequence")
def split_to_sequence(run: Run, node: Node, x: Value, sizes: Value | None = None) -> "Parts":
    """SplitToSequence: the array itself, and where it is cut.

    sizes   of the parts: one number for all, or a list
    """
    place = x.place(node["axis"])
    length = x.data.shape[place]
    if sizes is None:
        raise unsupported(node, "parts without given sizes are not implemented")
    step = whole_numbers(sizes)
    if sizes.rank == 0 and step[0] > 0:
        step = [min(step[0], length - at) for at in range(0, length, step[0])][:SHORT]
    if min(step, default=0) < 0 or sum(step) != length:
        raise ValueError(f"parts of {step} for {length} in all")
    return Parts(x, place, step)


class Parts(Value):
    """Parts of an array along one axis. Only SequenceAt takes it.

    value   the array, a Value
    place   the axis of its stored array that is cut
    sizes   of the parts
    """

    __slots__ = ("place_of_cut", "sizes")

    def __init__(self, value: Value, place: int, sizes: list[int]):
        super().__init__(value.data, value.order, value.known)
        self.place_of_cut, self.sizes = place, sizes


@operator("SequenceAt")
def sequence_at(run: Run, node: Node, parts: Value, position: Value) -> Value:
    """SequenceAt: one part of what SplitToSequence cut.

    parts      a Parts
    position   which part; below 0: from the end
    """
    if not isinstance(parts, Parts):
        raise unsupported(node, "only sequences made by SplitToSequence are implemented")
    sizes, (number,) = parts.sizes, whole_numbers(position)
    if not -len(sizes) <= number < len(sizes):
        raise ValueError(f"part {number} of {len(sizes)}")
    start = sum(sizes[: number % len(sizes)])
    stop = start + sizes[number]
    return Value(_part(parts.data, parts.place_of_cut, start, stop), parts.order)


@operator("Range")
def range_(run: Run, node: Node, start: Value, limit: Value, delta: Value) -> Value:
    """Range: start, start + delta, … up to the limit, which is left out.

    start, limit, delta   one number each
    """
    first, last, step = (scalar(value, None) for value in (start, limit, delta))
    if step == 0 or not all(map(math.isfinite, (first, last, step))):
        raise ValueError(f"from {first} to {last} by {step}")
    count = max(math.ceil((last - first) / step), 0)
    run.reserve((count,), itemsize=8)
    numbers = first + np.arange(count) * step
    return Value(run.constant(numbers) if start.is_float else numbers.astype(start.array.dtype))


@operator("Pad")
def pad(
    run: Run,
    node: Node,
    x: Value,
    pads: Value | None = None,
    value: Value | None = None,
    axes: Value | None = None,
) -> Value:
    """Pad: a constant border around an array; a negative width cuts off.

    pads    widths: all at the start, then all at the end; None: the attribute
    value   of the border; None: 0
    axes    that the widths are for; None: all
    """
    mode = node["mode"]
    if mode != "constant":
        raise unsupported(node, f"mode {mode!r} is not implemented, only 'constant'")
    pads = setting(node, "pads", pads)
    fill = node["value"] if node.version < 11 else scalar(value, 0)
    axes = list(range(x.rank)) if axes is None else whole_numbers(axes)
    if len(pads) != 2 * len(axes) or len({axis % max(x.rank, 1) for axis in axes}) != len(axes):
        raise ValueError(f"pads {pads} for the axes {axes}")
    widths = [(0, 0)] * x.rank
    for i, axis in enumerate(axes):
        widths[x.place(axis)] = pads[i], pads[i + len(axes)]
    data = x.data
    for place, (before, after) in enumerate(widths):
        if min(before, after) < 0:  # a negative border cuts off
            first, stop = max(-before, 0), data.shape[place] + min(after, 0)
            if stop < first:
                raise ValueError(f"pads {pads} cut off more of {x.shape} than there is")
            data = _part(data, place, first, stop)
    widths = [(max(before, 0), max(after, 0)) for before, after in widths]
    wide = [size + sum(w) for size, w in zip(data.shape, widths, strict=True)]
    run.reserve(wide, itemsize=x.array.itemsize)
    return Value(_padded(data, widths, fill) if np.any(widths) else data, x.order)


def _padded(x, widths, value):
    return _pad(x, widths=tuple(widths), value=value)


@op
def _pad(x, *, widths, value):
    inside = tuple(
        slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True)
    )
    shape = [n + sum(width) for n, width in zip(x.shape, widths, strict=True)]
    y = xp_of(x).full(shape, value, x.dtype)
    y[inside] = x
    return y, (lambda g: g[inside],)


@operator("Slice")
def slice_(
    run: Run,
    node: Node,
    x: Value,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Value:
    """Slice: x[start:end:step] along some axes.

    starts, ends   whole numbers; None: the attributes
    axes           None: the attribute, or the first ones
    steps          None: 1
    """
    starts, ends, axes = (
        setting(node, name, value)
        for name, value in (("starts", starts), ("ends", ends), ("axes", axes))
    )
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else whole_numbers(steps)
    places = [x.place(axis) for axis in axes]
    distinct = len(set(places)) == len(starts) == len(ends) == len(steps)
    if not distinct or len(places) != len(starts) or 0 in steps:
        raise ValueError(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    index = [slice(None)] * x.rank
    for start, end, place, step in zip(starts, ends, places, steps, strict=True):
        size = x.data.shape[place]
        if step < 0:  # in Python only None means "down to the first one"
            start, end = max(start, -size), None if end < -size else end
        index[place] = slice(start, end, step)
    return Value(ops.take(x.data, index=tuple(index)), x.order)


@operator("Gather")
def gather(run: Run, node: Node, x: Value, indices: Value) -> Value:
    """Gather: x[…, indices, …] along one axis.

    indices   whole numbers, below 0 from the end
    """
    axis, chosen = x.axis(node["axis"]), data_of(indices.plain)
    place = x.order.index(axis)
    size = x.data.shape[place]
    if chosen.dtype.kind not in "iu" or (chosen < -size).any() or (chosen >= size).any():
        raise ValueError(f"indices ({chosen.dtype}) outside of an axis with {size} places")
    chosen = np.where(chosen < 0, chosen + size, chosen)
    result = x.shape[:axis] + chosen.shape + x.shape[axis + 1 :]
    run.reserve(result, itemsize=x.array.itemsize)
    if chosen.ndim == 0:
        data = ops.take(x.data, index=(slice(None),) * place + (int(chosen),))
        order = (a - (a > axis) for a in x.order if a != axis)
        return Value(data, tuple(order))
    if not x.is_float:
        return Value(np.take(x.plain, chosen, axis=axis))
    repeats = int(np.bincount(chosen.reshape(-1)).max(initial=0))
    run.spend(repeats * CALL // 10)
    return Value(_choose(x.plain, axis=axis, chosen=chosen))


@op
def _choose(x, *, axis, chosen):
    """x[…, chosen, …] along one axis; the gradients of an index that comes again are added

    In the order of `chosen`, on a GPU too, whose own scattered sums have none.
    """
    xp, before = xp_of(x), (slice(None),) * axis

    def pullback(g):
        gradient = xp.zeros_like(x)
        each = g.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
        for places, indices in _without_repeats(chosen.reshape(-1)):
            own = each[(*before, xp.asarray(places))]
            gradient[(*before, xp.asarray(indices))] += own
        return gradient

    return x[(*before, xp.asarray(chosen))], (pullback,)


def _without_repeats(chosen):
    """Parts of an index array, none of which holds an index twice: [(places, indices), …]"""
    order = np.argsort(chosen, kind="stable")
    ranked = chosen[order]
    number = np.arange(len(chosen)) - np.searchsorted(ranked, ranked)  # how often it came before
    parts = (order[number == k] for k in range(number.max(initial=-1) + 1))
    return [(places, chosen[places]) for places in parts]


@operator("Shape")
def shape(run: Run, node: Node, x: Value) -> Value:
    """Shape: the sizes of the axes, as whole numbers."""
    start, end = node["start"] or 0, node["end"]
    return Value(np.array(x.shape[start:end], np.int64))


@operator("Constant")
def constant(run: Run, node: Node) -> Value:
    """Constant: an array or a number that is an attribute."""
    given = [name for name in node.attributes if node[name] is not None]
    if len(given) != 1:
        raise ValueError(f"the attributes are {given}, expected exactly one")
    value = node[given[0]]
    if given[0] == "value":
        return Value(value)
    if given[0] in ("value_float", "value_floats"):
        return Value(np.array(value, np.float32))
    if given[0] in ("value_int", "value_ints"):
        return Value(np.array(value, np.int64))
    raise unsupported(node, f"{given[0]} is not implemented")


@operator("ConstantOfShape")
def constant_of_shape(run: Run, node: Node, shape: Value) -> Value:
    """ConstantOfShape: an array of equal numbers.

    shape   whole numbers
    """
    sizes = whole_numbers(shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"the shape is {sizes}")
    value = node["value"]
    value = np.zeros((), np.float32) if value is None else value.reshape(())
    run.reserve(sizes, itemsize=value.itemsize)
    filled = np.full(sizes, value)
    return Value(run.constant(filled) if filled.dtype.kind == "f" else filled)


def cast_to(run: Run, node: Node, x: Value, dtype: np.dtype) -> Value:
    """Convert numbers; floats keep the width in which the run computes.

    dtype   the NumPy type that the file names
    """
    if dtype.kind == "f" and x.is_float:
        return x
    run.reserve(x.shape, itemsize=8)
    if dtype.kind == "f":
        return Value(run.constant(x.array), x.order)
    if xp_of(x.array) is not np and x.size > SHORT:
        text = f"an array {x.shape} of floats becomes whole numbers, which stay off the GPU: "
        raise unsupported(node, text + "run this network on the CPU (--device cpu)")
    return Value(to_host(x.array).astype(dtype), x.order)


@operator("Cast")
def cast(run: Run, node: Node, x: Value) -> Value:
    """Cast: the numbers in another type."""
    if node["to"] not in DTYPES:
        raise unsupported(node, f"a cast to type {node['to']} is not implemented")
    return cast_to(run, node, x, DTYPES[node["to"]])


@operator("CastLike")
def cast_like(run: Run, node: Node, x: Value, like: Value) -> Value:
    """CastLike: the numbers in the type of another input.

    like   a Value of that type
    """
    return cast_to(run, node, x, like.array.dtype)
