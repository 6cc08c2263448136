"""Writes a network of this library as an ONNX file.

    minires.onnx.export(model, theta, stats, "lenet.onnx")

The file takes images (N, C, H, W) for any N, and gives logits (N, classes). Every layer becomes one
node or two; batch norms are nodes of their own; each array keeps its name in θ. A dense layer
behind Flatten has its weights in the order of this library, (H, W, C). So a Transpose in front of
Flatten brings the pixels into that order, and the weights stay as they are.
"""

from pathlib import Path

import numpy as np

from minires.arrays import Array, to_host
from minires.arrays.files import complete
from minires.engine.convolution import borders
from minires.networks import layers
from minires.networks.model import Model
from minires.onnx.reading import import_onnx

OPSET, IR = 17, 8
INPUT, OUTPUT = "images", "logits"
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def export(model: Model, theta: Array, stats: Array, path: str | Path) -> None:
    """Write a network of this library as an ONNX file.

    model    a minires.Model: LeNet, MobileNet, Inception, or your own layers
    theta    (P,) its weights
    stats    (S,) its batch-norm statistics; None when it has none
    path     of the new file
    Raises   ValueError when a vector does not fit or holds NaN, or a layer has no counterpart in
             ONNX; OSError when the file cannot be written
    """
    onnx = import_onnx()
    stats = np.zeros(model.stats_size, np.float32) if stats is None else stats
    for name, vector, size in (("theta", theta, model.size), ("stats", stats, model.stats_size)):
        if vector.shape != (size,):
            raise ValueError(f"export: {name} is {vector.shape}, this model has ({size},)")
        if not np.isfinite(to_host(vector)).all():
            raise ValueError(f"export: {name} holds NaN or infinite numbers: training has diverged")
    writer = _Writer(model, to_host(theta), to_host(stats))
    writer.add("Identity", [writer.layer(model.network, INPUT)], OUTPUT)
    high, wide, depth = model.input_shape
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes,
        "minires",
        [value(INPUT, onnx.TensorProto.FLOAT, ["N", depth, high, wide])],
        [value(OUTPUT, onnx.TensorProto.FLOAT, ["N", model.classes])],
        [onnx.numpy_helper.from_array(array, name) for name, array in writer.arrays.items()],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    message = onnx.helper.make_model(
        graph, producer_name="minires", opset_imports=opset, ir_version=IR
    )
    with complete(path) as file:
        file.write(message.SerializeToString())


class _Writer:
    """The nodes and arrays of a file. Its methods add to them; values go by their names."""

    def __init__(self, model, theta, stats):
        self.model, self.theta, self.stats = model, theta, stats
        self.nodes, self.arrays = [], {}
        # Sizes of each layer's inputs in the order in which it comes: it may stand at two places.
        self.sizes = {}
        for _, layer, before, _ in model.layout.rows:
            self.sizes.setdefault(id(layer), []).append(before[:2])

    def add(self, operator, inputs, output=None, **settings):
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        helper = import_onnx().helper
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **settings))
        return output

    def array(self, entry, vector, axes=None):
        """An array of the model, with its axes in another order; its name in the file."""
        array = np.asarray(entry.view(vector), np.float32)
        array = array if axes is None else array.transpose(axes)
        self.arrays[entry.name] = np.ascontiguousarray(array)
        return entry.name

    def constant(self, name, array):
        self.arrays[name] = array
        return name

    def layer(self, layer, x):
        if isinstance(layer, layers.AuxiliaryHead):
            return x  # it is for training only
        if isinstance(layer, layers.Residual):
            return self.add("Add", [x, self.sequence(layer, x)])
        if isinstance(layer, layers.Sequential):
            return self.sequence(layer, x)
        if isinstance(layer, layers.Branches):
            return self.add("Concat", [self.layer(part, x) for part in layer.parts], axis=1)
        own = self.model.layout.of(layer)
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            weights = self.array(
                own["weight"], self.theta, (2, 0, 1) if depthwise else (3, 2, 0, 1)
            )
            if depthwise:
                self.arrays[weights] = self.arrays[weights][:, None]
            inputs = [x, weights] + ([self.array(own["bias"], self.theta)] if "bias" in own else [])
            groups = len(self.arrays[weights]) if depthwise else 1
            y = self.add("Conv", inputs, group=groups, **self.window(layer, layer.kernel))
            return self.activation(layer.activation, y)
        if isinstance(layer, layers.MeanPool):
            count = int(layer.count_padding)
            window = self.window(layer, layer.window)
            return self.add("AveragePool", [x], count_include_pad=count, **window)
        if isinstance(layer, layers.MaxPool):
            return self.add("MaxPool", [x], **self.window(layer, layer.window))
        if isinstance(layer, layers.BatchNorm):
            return self.batch_norm(layer, own, x)
        if isinstance(layer, layers.Dense):
            inputs = [x] + [self.array(own[n], self.theta) for n in ("weight", "bias") if n in own]
            return self.add("Gemm", inputs)
        if isinstance(layer, layers.GlobalMeanPool):
            return self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        if isinstance(layer, layers.Flatten):
            return self.add("Flatten", [self.add("Transpose", [x], perm=[0, 2, 3, 1])])
        if isinstance(layer, layers.Activation):
            return self.activation(layer.function, x)
        if isinstance(layer, layers.Dropout):
            return x
        raise ValueError(
            f"export: a layer of the kind {layer.kind} has no counterpart in ONNX here"
        )

    def sequence(self, layer, x):
        for part in layer.parts:
            x = self.layer(part, x)
        return x

    def batch_norm(self, layer, own, x):
        shift = self.array(own["shift"], self.theta)
        if "scale" in own:
            scale = self.array(own["scale"], self.theta)
        else:
            scale = self.constant(f"{shift}.one", np.ones(own["shift"].shape, np.float32))
        running = [self.array(own[name], self.stats) for name in ("mean", "variance")]
        settings = {"epsilon": layer.epsilon, "momentum": layer.momentum}
        y = self.add("BatchNormalization", [x, scale, shift, *running], **settings)
        return self.activation(layer.activation, y)

    def activation(self, name, x):
        if name is None:
            return x
        if name == "relu6":
            bounds = [self.constant(n, np.float32(v)) for n, v in (("zero", 0), ("six", 6))]
            return self.add("Clip", [x, *bounds])
        return self.add(ACTIVATIONS[name], [x])

    def window(self, layer, kernel):
        size = self.sizes[id(layer)].pop(0)
        (top, bottom), (left, right) = borders(
            layer.padding, size, kernel, layer.stride, layer.dilation
        )
        settings = {"kernel_shape": kernel, "strides": layer.stride}
        settings |= {"pads": [top, left, bottom, right]}
        dilated = tuple(layer.dilation) != (1, 1)
        return settings | ({"dilations": layer.dilation} if dilated else {})
