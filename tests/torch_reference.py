"""A file as PyTorch computes it, node by node: a second opinion on outputs and gradients.

Nothing here is shared with minires but the file: the arrays are read by the onnx package, each
operator is PyTorch's own, and its autograd does the gradients.
"""

import math

import numpy as np
import onnx
import torch
from torch.nn import functional


def sides(settings, size, kernel):
    """The border of a window as PyTorch's pad wants it: left, right, top, bottom."""
    auto = settings.get("auto_pad", b"NOTSET").decode()
    if auto in ("NOTSET", "VALID"):
        top, left, bottom, right = settings.get("pads", [0] * 4)
        return left, right, top, bottom
    strides, dilations = (settings.get(name, [1, 1]) for name in ("strides", "dilations"))
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return *found[1], *found[0]


def convolve(settings, x, w, b=None):
    x = functional.pad(x, sides(settings, x.shape[2:], w.shape[2:]))
    stride, dilation = settings.get("strides", [1, 1]), settings.get("dilations", [1, 1])
    return functional.conv2d(x, w, b, stride, 0, dilation, settings.get("group", 1))


def pool_largest(settings, x):
    window = settings["kernel_shape"]
    x = functional.pad(x, sides(settings, x.shape[2:], window), value=-math.inf)
    return functional.max_pool2d(
        x, window, settings["strides"], ceil_mode=bool(settings.get("ceil_mode"))
    )


def pool_mean(settings, x):
    window, stride = settings["kernel_shape"], settings.get("strides", [1, 1])
    assert not settings.get("ceil_mode")
    border = sides(settings, x.shape[2:], window)

    def sums(array):
        return functional.avg_pool2d(functional.pad(array, border), window, stride) * math.prod(
            window
        )

    counted = bool(settings.get("count_include_pad", 0))
    return sums(x) / (math.prod(window) if counted else sums(torch.ones_like(x)))


def multiply_matrices(settings, a, b, c):
    assert settings.get("alpha", 1) == settings.get("beta", 1) == 1
    return a @ (b.T if settings.get("transB") else b) + c


def pad(settings, x, pads, value=0, axes=None):
    pads = pads.tolist()
    places = list(range(x.ndim)) if axes is None else axes.tolist()
    both = dict.fromkeys(range(x.ndim), (0, 0))
    both |= {axis % x.ndim: (pads[i], pads[i + len(places)]) for i, axis in enumerate(places)}
    return functional.pad(
        x, [size for axis in reversed(range(x.ndim)) for size in both[axis]], value=value or 0
    )


def mean(settings, x, axes=None):
    axes = settings["axes"] if axes is None else axes.tolist()
    return x.mean(axes, keepdim=bool(settings.get("keepdims", 1)))


def total(settings, x, axes=None):
    axes = settings["axes"] if axes is None else axes.tolist()
    return x.sum(axes, keepdim=bool(settings.get("keepdims", 1)))


def cast(settings, x):
    proto = onnx.TensorProto
    if settings["to"] in (proto.FLOAT, proto.FLOAT16, proto.DOUBLE):
        return x if x.is_floating_point() else x.to(torch.float64)
    kinds = {proto.INT32: torch.int32, proto.INT64: torch.int64, proto.BOOL: torch.bool}
    return x.to(kinds[settings["to"]])


def cut(settings, x, starts, ends, axes=None, steps=None):
    axes = torch.arange(len(starts)) if axes is None else axes
    steps = torch.ones_like(starts) if steps is None else steps
    for start, end, axis, step in torch.stack([starts, ends, axes, steps], 1).tolist():
        size = x.shape[axis]
        end = None if step < 0 and end < -size else end
        chosen = range(*slice(start, end, step).indices(size))
        x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def divide(settings, a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def gather(settings, x, indices):
    return x[(slice(None),) * (settings.get("axis", 0) % x.ndim) + (indices,)]


def reshape(settings, x, shape):
    sizes = shape.tolist()
    if not settings.get("allowzero"):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def squeeze(settings, x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def unsqueeze(settings, x, axes):
    places = [axis % (x.ndim + len(axes)) for axis in axes.tolist()]
    for axis in sorted(places):
        x = x.unsqueeze(axis)
    return x


def split(settings, x, sizes=None):
    axis = settings.get("axis", 0)
    if sizes is None:
        return torch.tensor_split(x, settings["num_outputs"], axis)
    return torch.split(x, sizes.tolist(), axis)


def normalize_layer(settings, x, scale, bias=None):
    shape = x.shape[settings.get("axis", -1) % x.ndim :]
    return functional.layer_norm(x, shape, scale, bias, settings.get("epsilon", 1e-5))


def dequantize(settings, x, scale, zero):
    shape = [1] * x.ndim
    if scale.ndim:
        shape[settings.get("axis", 1)] = -1
    exact = (x.to(torch.float64) - zero.to(torch.float64).reshape(shape)) * scale.reshape(shape)
    return exact.to(torch.float32).to(scale.dtype)  # the type that the file's scale has


def clip(settings, x, low=None, high=None):
    return torch.clip(x, low, high)


def softmax(settings, x):
    return torch.softmax(x, settings.get("axis", -1))


OPERATORS = {
    "Add": lambda settings, a, b: a + b,
    "AveragePool": pool_mean,
    "Cast": cast,
    "CastLike": lambda settings, x, like: x.to(like.dtype),
    "Clip": clip,
    "Concat": lambda settings, *parts: torch.cat(parts, settings["axis"]),
    "Constant": lambda settings: next(
        value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for value in settings.values()
    ),
    "ConstantOfShape": lambda settings, shape: settings["value"].expand(shape.tolist()),
    "Conv": convolve,
    "DequantizeLinear": dequantize,
    "Div": divide,
    "Equal": lambda settings, a, b: a == b,
    "Erf": lambda settings, x: torch.erf(x),
    "Expand": lambda settings, x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype),
    "Flatten": lambda settings, x: x.flatten(1),
    "Gather": gather,
    "Gelu": lambda settings, x: functional.gelu(x),
    "Gemm": multiply_matrices,
    "GlobalAveragePool": lambda settings, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda settings, x: torch.clip(
        settings.get("alpha", 0.2) * x + settings.get("beta", 0.5), 0, 1
    ),
    "HardSwish": lambda settings, x: functional.hardswish(x),
    "Identity": lambda settings, x: x,
    "LayerNormalization": normalize_layer,
    "MatMul": lambda settings, a, b: a @ b,
    "MaxPool": pool_largest,
    "Mod": lambda settings, a, b: torch.fmod(a, b) if settings.get("fmod") else a % b,
    "Mul": lambda settings, a, b: a * b,
    "Pad": pad,
    "Pow": lambda settings, a, b: a**b,
    "Range": lambda settings, a, b, step: torch.arange(a.item(), b.item(), step.item()),
    "ReduceMean": mean,
    "ReduceSum": total,
    "Relu": lambda settings, x: torch.relu(x),
    "Reshape": reshape,
    "SequenceAt": lambda settings, parts, position: parts[int(position)],
    "Shape": lambda settings, x: torch.tensor(x.shape[settings.get("start") : settings.get("end")]),
    "Sigmoid": lambda settings, x: torch.sigmoid(x),
    "Slice": cut,
    "Softmax": softmax,
    "Split": split,
    "SplitToSequence": lambda settings, x, size: torch.split(x, int(size), settings["axis"]),
    "Sqrt": lambda settings, x: torch.sqrt(x),
    "Squeeze": squeeze,
    "Sub": lambda settings, a, b: a - b,
    "Tanh": lambda settings, x: torch.tanh(x),
    "Transpose": lambda settings, x: x.permute(settings["perm"]),
    "Unsqueeze": unsqueeze,
    "Where": lambda settings, chosen, a, b: torch.where(chosen, a, b),
}


class Reference:
    """A file as PyTorch computes it.

    names   of the arrays that are trained; `arrays` holds them from the first call on, with the
            others, and each one's gradient after `loss_and_gradients`
    A softmax that the file ends in is left out: the loss wants what is before it.
    """

    def __init__(self, path, names, dtype=torch.float64):
        self.graph, self.names, self.dtype = onnx.load(path).graph, list(names), dtype
        self.arrays = {message.name: self.tensor(message) for message in self.graph.initializer}
        (self.input,) = (value.name for value in self.graph.input if value.name not in self.arrays)

    def tensor(self, message):
        array = torch.from_numpy(onnx.numpy_helper.to_array(message).copy())
        return array.to(self.dtype) if array.is_floating_point() else array

    def setting(self, attribute):
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return self.tensor(value)
        # The decimal that was meant: 0.001 is stored as 0.00100000004749745.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def logits(self, images, training=False):
        """(N, classes)"""
        for name in self.names:
            if name in self.arrays:
                self.arrays[name] = self.arrays[name].detach().requires_grad_()
        values = {**self.arrays, "": None, self.input: torch.from_numpy(images)}
        last = self.graph.output[0].name
        for node in self.graph.node:
            settings = {attribute.name: self.setting(attribute) for attribute in node.attribute}
            inputs = [values[name] for name in node.input]
            name = node.output[0]
            if name in self.names:  # a weight that the file computes from others
                if name not in self.arrays:
                    made = OPERATORS[node.op_type](settings, *inputs)
                    self.arrays[name] = made.detach().clone().requires_grad_()
                values[name] = self.arrays[name]
            elif node.op_type == "BatchNormalization":
                x, scale, shift, *running = inputs  # updated in place
                momentum, epsilon = 1 - settings.get("momentum", 0.9), settings["epsilon"]
                values[name] = functional.batch_norm(
                    x, *running, scale, shift, training, momentum, epsilon
                )
            elif node.op_type == "Softmax" and name == last:
                values[name] = inputs[0]
            elif node.op_type == "Split":
                settings.setdefault("num_outputs", len(node.output))
                values |= zip(node.output, split(settings, *inputs), strict=True)
            else:
                values[name] = OPERATORS[node.op_type](settings, *inputs)
        return values[last].flatten(1)

    def loss_and_gradients(self, images, labels, training=False):
        """The mean loss, and the gradient of each array by name."""
        logits = self.logits(images, training)
        loss = functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        return loss.item(), {name: self.arrays[name].grad.numpy() for name in self.names}


def largest(array):
    return np.abs(array).max()


def distance(found, expected):
    """The largest difference in any array, relative to the largest number of that array."""
    assert found.keys() == expected.keys()
    return max(largest(found[n] - expected[n]) / max(largest(expected[n]), 1e-30) for n in expected)
