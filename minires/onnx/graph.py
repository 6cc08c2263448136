"""An ONNX graph as a network: which arrays are weights, in which order it is computed.

Loading takes four steps.

1. *Constants.* Everything that does not depend on an input is computed once.
2. *Roles.* The input slot where an array is used says what it is: the second input of a
   convolution is a weight, the fourth of a batch norm a statistic, the bound of a Clip a
   constant. An array that scales or shifts the images before the first product with weights is a
   constant too: it prepares the images. There may be nodes between an array and its slot that only
   change its shape (Transpose, Reshape, Cast …). Then the array in front of them is the weight, and
   they stay in the graph. An array that is used in many places is one weight: its gradients add.
3. *Steps.* A convolution, the batch norm behind it and the activation behind that are one step.
   For predictions on a CPU a separable convolution (pointwise, depthwise, pointwise) is one step.
4. *Trial.* One image of zeros goes through the graph, within the limits of `limits`. So a graph
   that does not work is refused at loading, not after hours of training. A trial that takes long
   is stopped, and the graph is accepted.

`Network` then has the interface of `minires.Model`: θ is one vector, `stats` another. It is loaded
and tried on the CPU, and computes wherever θ is:

    theta = minires.to_device(network.theta, "gpu")
    probabilities = network.predict(theta, images)
"""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import Array, device_of, restored_on_error, to_device, to_host, xp_of
from minires.arrays.text import shown, table
from minires.engine import ops
from minires.engine.autodiff import data_of, gradients, variable
from minires.kernels import kernels_of, runs_as_written
from minires.networks.model import Entry
from minires.onnx import operators as operators_of
from minires.onnx import reading
from minires.onnx.errors import (
    FormatError,
    OnnxError,
    SecurityError,
    UnsupportedError,
    unsupported,
)
from minires.onnx.limits import MEMORY, TOUCH, TRIAL, VIEWS, WORK, Run, TooLong
from minires.onnx.operators import OPERATORS
from minires.onnx.reading import Node
from minires.onnx.values import CHANNELS_LAST, KERNEL, Order, Value

# Which inputs of an operator are weights, and which are statistics.
WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
}
WEIGHTS |= {"PRelu": (1,), "LayerNormalization": (1, 2)}
CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = set(WEIGHTS)  # what comes before the first of these prepares the images
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
WEIGHTS |= dict.fromkeys(ARITHMETIC, (0, 1))
STATISTICS = {"BatchNormalization": (3, 4)}
# Operators that show which axes are pixels, and operators whose results have their inputs' axes.
ON_IMAGES = {
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalMaxPool",
    "GlobalAveragePool",
    "LRN",
}
ON_IMAGES |= {"BatchNormalization"}
ALIKE = {"Identity", "Cast", "CastLike", "Pad", "Slice", "Split", "Concat", "Clip", "Dropout"}
ALIKE |= {*ARITHMETIC, "Neg", "Sqrt", "Relu", "Sigmoid", "Tanh", "Max", "Min", "Sum", "Resize"}


@dataclass(frozen=True, slots=True)
class FileEntry(Entry):
    """The place of one array of the file in a vector.

    name    of the initialiser, or of the node's output that it comes from
    start   its first place in the vector
    shape   as it is stored in the vector
    order   which axis of the file each stored axis is
    """

    order: Order = ()

    def file_view(self, vector: Array) -> Array:
        """The array with the file's axes.

        vector    (…, P)
        Returns   (…, the file's axes), a view
        """
        lead = vector.ndim - 1
        axes = [lead + self.order.index(axis) for axis in range(len(self.order))]
        return self.view(vector).transpose([*range(lead), *axes])


@dataclass
class Step:
    """One thing to compute: a node, or a convolution with its batch norm and activation."""

    node: reading.Node
    inputs: list
    outputs: list
    norm: reading.Node | None = None  # its own four inputs follow those of the convolution
    activation: str | None = None
    done: tuple = ()  # names that nobody needs after this step
    parts: tuple = ()  # the steps that this one replaces

    def __call__(self, run, values):
        """Compute: Values in, a list of Values out."""
        if self.norm is None and self.activation is None:
            result = OPERATORS[self.node.operator](run, self.node, *values)
            return list(result) if isinstance(result, tuple) else [result]
        x, w, *rest = values
        operators_of.expect_images(self.node, x)
        bias = rest[0] if len(rest) % 4 else None
        if self.norm is None or run.mode == "predict":
            w, bias = self.folded(w, *rest)
            y = operators_of.conv(run, self.node, x, w, bias, activation=self.activation)
            return [y]
        self.expect_norm(w, rest[-4:])
        y = operators_of.conv(run, self.node, x, w, bias)
        return [
            operators_of.batch_normalization(
                run, self.norm, y, *rest[-4:], activation=self.activation
            )
        ]

    def expect_norm(self, w: Value, norm: Sequence[Value]) -> None:
        """Check that a batch norm has one number for each output of the convolution.

        w        the convolution's weights
        norm     scale, shift, mean and variance
        Raises   ValueError when it has not
        """
        if any(value.shape != w.shape[:1] for value in norm):
            raise ValueError(
                f"a batch norm over {norm[0].shape} channels stands behind a convolution with "
                f"{w.shape[0]} outputs"
            )

    def folded(self, w: Value, *rest: Value) -> tuple[Value, Value | None]:
        """A convolution's weights and bias, with the batch norm behind it folded into both.

        w         the weights
        rest      the bias, if there is one, and the inputs of the batch norm, if there is one
        Returns   weights, bias: two Values; or None for the bias
        """
        bias = rest[0] if len(rest) % 4 else None
        if self.norm is None:
            return w, bias
        self.expect_norm(w, rest[-4:])
        factor, shift = operators_of.as_affine(self.norm, *rest[-4:])
        if bias is not None:
            shift = ops.add(shift, ops.multiply(factor, bias.data))
        return Value(ops.multiply(w.stored(KERNEL), factor), KERNEL), Value(shift)

    def is_pointwise(self, static: Mapping[str, Value]) -> bool:
        """Whether it is a convolution that mixes the channels of each pixel by itself.

        static   name → Value: what depends on no input
        """
        node = self.node
        shape = self._kernel(static)
        plain = set(node["strides"] or [1]) == {1} and not any(node["pads"] or [0])
        return shape is not None and shape[2:] == (1, 1) and node["group"] == 1 and plain

    def is_depthwise(self, static: Mapping[str, Value]) -> bool:
        """Whether it is a convolution that filters each channel by itself.

        static   name → Value: what depends on no input
        """
        node, shape = self.node, self._kernel(static)
        each = shape is not None and len(shape) == 4 and shape[0] == node["group"] and shape[1] == 1
        return each and set(node["dilations"] or [1]) == {1}

    def _kernel(self, static):
        """The shape of a convolution's weights; None unless all of its arrays are in the file."""
        alone = self.node.operator == "Conv" and not self.parts
        known = alone and all(name in static for name in self.inputs[1:])
        return static[self.inputs[1]].shape if known else None


@dataclass
class Separable(Step):
    """A pointwise convolution or none, a depthwise one and a pointwise one, as one step."""

    @classmethod
    def of(cls, *parts: Step) -> "Separable":
        """The step that replaces two or three.

        parts   Steps, one behind the other
        """
        inputs = parts[0].inputs + [name for part in parts[1:] for name in part.inputs[1:]]
        between = {part.outputs[0] for part in parts[:-1]}
        done = tuple(name for part in parts for name in part.done if name not in between)
        return cls(parts[0].node, inputs, parts[-1].outputs, done=done, parts=parts)

    def __call__(self, run, values):
        x, *rest = values
        each = []
        for part in self.parts:
            each.append((part, rest[: len(part.inputs) - 1]))
            rest = rest[len(part.inputs) - 1 :]
        fits = x.rank == 4 and x.data.dtype == run.dtype and self._fit(each, x.shape[1])
        if not fits:
            for part, more in each:  # the part that does not fit raises an error
                (x,) = part(run, [x, *more])
            return [x]
        images = x.stored(CHANNELS_LAST)
        shape, given = images.shape, []
        for part, more in each:
            with named(part.node):
                w, bias = part.folded(*more)
                outputs, depth, *kernel = w.shape
                window = operators_of.Window(part.node, shape[1:3], kernel)
                window.reserve(run, shape, outputs, depth)
                if part is self.parts[-2]:
                    how = window.stride, window.padding
                shape = (shape[0], *window.output, outputs)
                w = w.stored(KERNEL)
                own = w.shape[:2] if part is self.parts[-2] else w.shape[2:3]
                w = w.reshape(1, *own, outputs)
                zeros = np.zeros(outputs, w.dtype)
                given.append((w, (zeros if bias is None else bias.data).reshape(1, -1)))
        activations = [part.activation for part in self.parts]
        if len(given) == 2:
            given, activations = [None, *given], [None, *activations]
        y = kernels_of(images).separable(images[None], *given, *how, activations)
        return [Value(y[0], CHANNELS_LAST)]

    @staticmethod
    def _fit(each, channels):
        """Whether the arrays of every part fit what comes in: the kernel trusts their shapes."""
        for part, (w, *rest) in each:
            outputs, depth, *kernel = w.shape
            bias = rest[0].shape if len(rest) % 4 else (outputs,)
            stated = part.node["kernel_shape"] or kernel
            if (depth * part.node["group"], bias, stated) != (channels, (outputs,), kernel):
                return False
            channels = outputs
        return True


@contextlib.contextmanager
def named(node: Node) -> Iterator[None]:
    """Put a node's name in front of every error in the block.

    node     a `reading.Node`
    Raises   FormatError in place of a ValueError; an OnnxError stays what it is
    """
    try:
        yield
    except OnnxError as error:
        raise type(error)(f"{node}: {error}", *error.args[1:]) from None
    except ValueError as error:
        raise FormatError(f"{node}: {error}") from error


def are_probabilities(rows: Array) -> bool:
    """Whether outputs are at least 0 and sum to 1 for each image.

    rows   (N, classes, …)
    """
    rows = to_host(rows).reshape(len(rows), -1)
    if rows.shape[1] < 2 or not (rows >= 0).all():
        return False
    return bool(np.allclose(rows.sum(axis=1, dtype=np.float64), 1, atol=1e-3))


class Network:
    """A network from an ONNX file, with the interface of `minires.Model`: see `minires.onnx.load`.

    path, memory, work, output   as in `minires.onnx.load`

    theta         (P,) float32, every trainable weight of the file
    stats         (S,) float32, the running mean and variance of every batch norm
    layout        name → FileEntry: where each array lies in theta or stats
    input_name, declared_shape, input_dtype
                  of the image input, as the file declares it; None for what is free
    input_shape   of one image, without the batch axis
    input_layout  "NCHW" or "NHWC"; None when the file's nodes do not show it
    output_kind   "logits"; "softmax" (the file ends in one; `logits` are taken before it);
                  "probabilities" (without a softmax: `logits` are their logarithms); "sigmoid"
                  or "softmax twice" (no logits: neither loss nor predictions)
    classes       the number of outputs
    fixed_batch   the number of images that the file fixes; None when any number can be given
    batch         how many images `logits` and `predict` take at once: the fixed number, or 32
    """

    batch = 32

    def __init__(
        self, path: str | Path, memory: int = MEMORY, work: int = WORK, output: str | None = None
    ):
        self.path, self.limits = path, (memory, work)
        self.graph = graph = reading.read(path, OPERATORS, memory)
        if output is not None:
            self._keep(output)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._shapes = {}  # name → shape of each value of four axes, as the trial found it
        self._compute_constants()
        self._assign_roles()
        self._plan()
        self._describe()
        if self.declared_shape is not None:
            self.try_size(self.declared_shape[1:])

    def __repr__(self) -> str:
        size = "×".join("any" if n is None else str(n) for n in self.input_shape or ())
        return (
            f"<Network from {shown(self.path)}: input {size or 'of any shape'}"
            f"{f' ({self.input_layout})' if self.input_layout else ''}, "
            f"{self.theta.size:,} weights, {self.stats.size:,} statistics, {self.classes} classes>"
        )

    # --- loading ---------------------------------------------------------------------------

    def _keep(self, output):
        """Leave out all outputs but one, and all nodes that only the others need."""
        graph = self.graph
        names = [value.name for value in graph.outputs]
        if output not in names:
            raise ValueError(f"the outputs are {names}, there is none named {output!r}")
        graph.outputs = [value for value in graph.outputs if value.name == output]
        needed, kept = {output}, []
        for node in reversed(graph.nodes):
            if not needed.isdisjoint(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        graph.nodes = kept[::-1]

    def _trial(self, like, images=1):
        """A Run for loading: it may take a part of the time of one image, for all images."""
        return Run(like.dtype, like, self.limits, images=images, part=TRIAL * images)

    def _compute_constants(self):
        """Compute what depends on no input: `self.static`, name → Value."""
        self.static = {name: Value(array) for name, array in self.graph.arrays.items()}
        self.root = {name: name for name in self.graph.arrays}  # the array that a view is of
        self.maker = {}
        self._checked = set()  # names of variances: several nodes may share one
        nothing = np.empty(0, np.float32)
        run = self._trial(nothing)
        run.held = sum(map(len, self.graph.outside.values()))
        for node in self.graph.nodes:
            self.maker.update((name, node) for name in node.outputs if name)
            self._check_arrays(node)
            inputs = [name for name in node.inputs if name]
            if any(name not in self.static for name in inputs):
                continue
            values = [self.static[name] if name else None for name in node.inputs]
            results = self._compute(Step(node, node.inputs, node.outputs), run, values)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    self.static[name] = value
                    # Each may become a weight or a constant of its own, so a view counts as a copy.
                    run.held += value.array.nbytes
            if node.operator == "Constant" or (
                node.operator in VIEWS
                and node.inputs[0] in self.root
                # Floats made of whole numbers or truth values could not be stored as these again.
                and self.static[node.inputs[0]].is_float == self.static[node.outputs[0]].is_float
            ):
                first = node.outputs[0]
                self.root[first] = first if not inputs else self.root[inputs[0]]

    def _check_arrays(self, node):
        """Check a node's arrays as far as that is possible before it is computed."""
        if node.operator == "DequantizeLinear" and node.inputs[0] not in self.static:
            raise unsupported(
                node,
                "whole numbers that depend on the input; export the float network instead of the "
                "quantised one (weights stored as whole numbers can be read)",
            )
        if node.operator == "BatchNormalization":
            scale = self.static.get(node.inputs[1])
            # Some exporters wrote spatial=0 and meant 1: then there is one number per channel.
            each_pixel = node["spatial"] == 0 and (scale is None or scale.rank != 1)
            if node["training_mode"] or any(node.outputs[1:]) or each_pixel:
                raise unsupported(
                    node,
                    "training mode, more outputs than one, or spatial=0; export the network for "
                    "inference (minires itself trains it)",
                )
            lengths = {self.static[name].shape for name in node.inputs[1:] if name in self.static}
            if len(lengths) > 1:
                raise FormatError(f"{node}: scale, B, mean and var have the shapes {lengths}")
            name = node.inputs[4]
            if name in self.static and name not in self._checked:
                self._checked.add(name)
                if not (self.static[name].array >= 0).all():
                    raise FormatError(f"{node}: {name!r} holds a negative variance")
        if node.operator == "Conv" and node.inputs[1] in self.static:
            kernel = list(self.static[node.inputs[1]].shape)
            group = node["group"]
            if len(kernel) < 3 or group < 1 or kernel[0] % group:
                raise FormatError(f"{node}: weights {kernel} do not divide into {group} groups")

    def _assign_roles(self):
        """Find weights and statistics, and lay them out in θ and `stats`."""
        order, kinds = {}, {}
        # Names of values that are made of the input without a weight: they prepare the images. None
        # if the graph has no product with weights.
        has_product = any(
            node.operator in PRODUCTS and any(name in self.static for name in node.inputs)
            for node in self.graph.nodes
        )
        raw = {value.name for value in self.inputs if has_product}
        for node in self.graph.nodes:
            moving = [name for name in node.inputs if name and name not in self.static]
            if not moving:
                continue
            is_raw = raw.issuperset(moving)
            slots = WEIGHTS.get(node.operator, ())
            if node.operator in ARITHMETIC and is_raw:
                slots = ()
            if node.operator == "Expand" or (node.operator == "Concat" and not is_raw):
                slots = [i for i, name in enumerate(node.inputs) if self._varies(name)]
            if is_raw and node.operator not in PRODUCTS and not slots:
                raw.update(node.outputs)
            statistics = STATISTICS.get(node.operator, ())
            for kind, places in (("weight", slots), ("statistic", statistics)):
                for slot in places:
                    name = node.inputs[slot] if slot < len(node.inputs) else ""
                    if name not in self.static or not self.static[name].is_float:
                        continue
                    if node.operator in ARITHMETIC and self.static[name].size == 1:
                        continue  # one number that scales or shifts all others is a constant
                    origin = self.root.get(name, name)
                    if kinds.setdefault(origin, kind) != kind:
                        raise unsupported(
                            node,
                            f"{origin!r} is a weight in one place and a batch-norm statistic in "
                            "another; export the network without merging arrays",
                        )
                    axes = tuple(range(self.static[origin].rank))
                    if origin == name and node.operator in CONVOLUTIONS and len(axes) == 4:
                        axes = KERNEL
                    elif origin == name and node.operator == "Gemm" and slot == 1:
                        axes = (1, 0) if node["transB"] else axes
                    order.setdefault(origin, axes)
        self.weights, theta = self._lay_out([n for n in kinds if kinds[n] == "weight"], order)
        statistics = [n for n in kinds if kinds[n] == "statistic"]
        self.statistics, stats = self._lay_out(statistics, order)
        self.theta, self.stats = theta, stats
        self.layout = {entry.name: entry for entry in (*self.weights, *self.statistics)}

    def _varies(self, name):
        """Whether an array holds floats that are not all equal. A border of zeros does not."""
        value = self.static.get(name)
        return value is not None and value.is_float and value.size > 1 and np.ptp(value.array) > 0

    def _lay_out(self, names, order):
        """Entries for arrays, in the file's order, and the vector that holds them."""
        place = {name: i for i, name in enumerate(self.static)}
        names = sorted(names, key=place.get)
        vector = np.empty(sum(self.static[name].size for name in names), np.float32)
        entries, start = [], 0
        for name in names:
            stored = self.static[name].stored(order[name])
            if not np.isfinite(stored).all():
                raise FormatError(f"{name!r} is to be trained, but holds NaN or infinite numbers")
            entries.append(FileEntry(name, start, stored.shape, order=order[name]))
            entries[-1].view(vector)[...] = stored
            start += stored.size
        return entries, vector

    def _plan(self):
        """Make the steps: nodes that depend on an input or a weight, some of them joined."""
        live = set(self.layout) | {value.name for value in self.inputs}
        steps = []
        for node in self.graph.nodes:
            if live.isdisjoint(node.inputs) or all(n in self.layout for n in node.outputs if n):
                continue
            live.update(name for name in node.outputs if name)
            steps.append(Step(node, list(node.inputs), list(node.outputs)))
        self.softmax = self._final_softmax(steps)
        steps = self._fuse(steps)
        wanted = {value.name for value in self.outputs}
        kept = wanted.union(self.layout, self.static, [""])
        last = {}
        for i, step in enumerate(steps):
            for name in (*step.inputs, *step.outputs):
                last[name] = i
        for i, step in enumerate(steps):
            names = {name for name in (*step.inputs, *step.outputs) if last[name] == i}
            step.done = tuple(names - kept)
        self.steps, self.joined = steps, self._join_separable(steps)
        live = {name for step in steps for name in step.inputs} | wanted
        live.difference_update(self.layout)
        self.constants = {name: v for name, v in self.static.items() if name in live}
        self._cast_constants = {}

    def _fuse(self, steps):
        """Join Conv → BatchNormalization → Relu or Clip(0, 6), if no other node uses the values
        between them.
        """
        uses = Counter(name for step in steps for name in step.inputs)
        uses.update(value.name for value in self.outputs)
        # A joined step is computed in the convolution's place, so all other inputs must be there.
        made = {name for step in steps for name in step.outputs if name}
        joined, heads = [], {}  # output of a convolution that may be joined with more → its step
        for step in steps:
            head = heads.pop(step.inputs[0], None) if step.inputs else None
            alone = head is not None and uses[step.inputs[0]] == 1
            if alone and made.isdisjoint(step.inputs[1:]) and self._joins(head, step):
                heads[step.outputs[0]] = head
                continue
            joined.append(step)
            if step.node.operator == "Conv" and len([n for n in step.inputs if n]) >= 2:
                step.inputs = [name for name in step.inputs if name]
                heads[step.outputs[0]] = step
        return joined

    def _join_separable(self, steps):
        """The steps for predictions on a CPU: those of a separable convolution are one."""
        uses = Counter(name for step in steps for name in step.inputs)
        uses.update(value.name for value in self.outputs)

        def follows(before, step):
            return step.inputs[0] == before.outputs[0] and uses[step.inputs[0]] == 1

        joined = []
        for step in steps:
            middle = joined[-1] if joined else None
            if (
                step.is_pointwise(self.static)
                and middle is not None
                and middle.is_depthwise(self.static)
                and follows(middle, step)
            ):
                parts = [joined.pop(), step]
                if joined and joined[-1].is_pointwise(self.static) and follows(joined[-1], middle):
                    parts.insert(0, joined.pop())
                step = Separable.of(*parts)
            joined.append(step)
        return joined

    def _joins(self, head, step):
        """Join a step with the convolution before it, if it is a batch norm or an activation.

        Returns   whether it was joined
        """
        if head.activation is None:
            if step.node.operator == "BatchNormalization" and head.norm is None:
                head.norm = step.node
                head.inputs += step.inputs[1:]
                head.outputs = step.outputs[:1]
                return True
            activation = self._activation(step.node)
            if activation is not None:
                head.activation, head.outputs = activation, step.outputs
                return True
        return False

    def _activation(self, node):
        """ "relu" or "relu6" if a node is that activation, else None."""
        if node.operator == "Relu":
            return "relu"
        if node.operator == "Clip":
            bounds = [self.static.get(name) if name else None for name in node.inputs[1:]]
            if any(
                name and value is None for name, value in zip(node.inputs[1:], bounds, strict=True)
            ):
                return None
            low, high = operators_of.clip_bounds(node, *bounds)
            return "relu6" if (low, high) == (0, 6) else None
        return None

    def _final_softmax(self, steps):
        """The Softmax or Sigmoid at the end of the graph, perhaps with views behind it."""
        if len(self.outputs) != 1:
            return None
        name = self.outputs[0].name
        made = {n: step.node for step in steps for n in step.outputs}
        uses = Counter(n for step in steps for n in step.inputs)
        while name in made and uses[name] <= (name != self.outputs[0].name):
            node = made[name]
            if node.operator in ("Softmax", "Sigmoid"):
                return node
            if node.operator not in VIEWS:
                return None
            name = node.inputs[0]
        return None

    def _describe(self):
        """Note what the file declares about its input and output."""
        images = [value for value in self.inputs if value.dtype.kind == "f"]
        bytes_ = [v for v in self.inputs if v.dtype == np.uint8 and v.shape and len(v.shape) == 4]
        image = next(iter(images + bytes_), None)
        self.input_name = image.name if image else None
        self.input_dtype = image.dtype if image else None
        self.declared_shape = image.shape if image else None
        self.input_layout = self._layout_of(image) if image else None
        ends = self.softmax.operator if self.softmax else ""
        self.output_kind = {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(ends, "logits")
        if self.output_kind == "softmax":
            makers = {name: node for node in self.graph.nodes for name in node.outputs}
            before = makers.get(self.softmax.inputs[0])
            while before is not None and before.operator in VIEWS | {"Clip", "Dropout"}:
                before = makers.get(before.inputs[0])
            if before is not None and before.operator == "Softmax":
                self.output_kind = "softmax twice"
        self._is_known = self.output_kind != "logits"  # which kind of outputs these are
        shape = self.outputs[0].shape
        self.classes = shape[1] if shape and len(shape) > 1 else None
        self.fixed_batch = self.declared_shape[0] if self.declared_shape else None
        self.batch = self.fixed_batch or self.batch

    def _layout_of(self, image):
        """ "NCHW" or "NHWC", by the first node that knows which axes are pixels.

        On the way there it notes for each axis of a value which of the image's axes it is; None for
        a new axis.
        """
        if image.shape is None or len(image.shape) != 4:
            return None
        axes = {image.name: (0, 1, 2, 3)}
        for node in self.graph.nodes:
            seen = [axes[name] for name in node.inputs if name in axes]
            if not seen:
                continue
            if node.operator in ON_IMAGES:
                # If channels were taken apart and joined again, their axis is a new one.
                place = {axis: k for k, axis in enumerate(seen[0])}
                if len(seen[0]) != 4 or len(place) != 4:
                    return None
                order = (place.get(axis, place.get(None)) for axis in range(4))
                return "".join("NCHW"[k] for k in order)
            try:
                after = self._axes_after(node, max(seen, key=len))
            except (IndexError, ValueError):  # the trial will raise an error that names the node
                after = None
            if after is not None and len(after) <= reading.RANK:
                axes.update((name, after) for name in node.outputs)
        return None

    def _axes_after(self, node, before):
        """Which of the image's axes each axis of a node's result is; None if that is unknown."""
        if node.operator == "Transpose":
            perm = node["perm"] or list(range(len(before)))[::-1]
            return tuple(before[axis] for axis in perm)
        if node.operator in ("Unsqueeze", "Squeeze"):
            given = self.static.get(node.inputs[1]) if len(node.inputs) > 1 else None
            chosen = operators_of.setting(node, "axes", given)
            if chosen is None:
                return None
            rank = len(before) + (len(chosen) if node.operator == "Unsqueeze" else 0)
            chosen = {axis % rank for axis in chosen}
            if node.operator == "Squeeze":
                return tuple(axis for k, axis in enumerate(before) if k not in chosen)
            rest = iter(before)
            return tuple(None if k in chosen else next(rest, None) for k in range(rank))
        if node.operator == "Gather":
            indices = self.static.get(node.inputs[1])
            if indices is None or indices.rank > 1:
                return None
            place = node["axis"] % len(before)
            return before if indices.rank else before[:place] + before[place + 1 :]
        return before if node.operator in ALIKE else None

    def try_size(self, size: Sequence[int]) -> None:
        """Send one image of zeros through the graph.

        This finds faults and the number of classes. It also finds out whether the graph takes any
        number of images, although the file may declare one: then `fixed_batch` becomes None. It is
        done at loading, unless the file leaves the size of its images free.

        size     of an image in the file's layout, without the batch: for example (3, 224, 224)
        Raises   FormatError when the graph does not fit such images, SecurityError when they
                 need too much memory
        """
        fixed = self.declared_shape[0] if self.declared_shape else None
        if len(self.inputs) != 1 or None in size or 0 in (fixed, *size):
            return
        count = fixed or 1
        run = self._trial(self.theta)
        try:
            run.reserve((count, *size))
            zeros = np.zeros((count, *size), self.input_dtype)
            if zeros.dtype.kind == "f":
                zeros = zeros.astype(np.float32)
            outputs = self._forward(run, self.theta, self.stats, {self.input_name: zeros})
        except TooLong:
            return
        except SecurityError:
            if count > 1:  # the limit is for one image, and what one image needs is unknown
                return
            raise
        for value, declared in zip(outputs, self.outputs, strict=True):
            if declared.shape is not None and (
                len(declared.shape) != value.rank
                or any(
                    wanted not in (None, size)
                    for wanted, size in zip(declared.shape[1:], value.shape[1:], strict=True)
                )
            ):
                warnings.warn(
                    f"{shown(self.path)}: the output {shown(declared.name)!r} is declared "
                    f"{declared.shape}, but is {value.shape}: the declaration is ignored",
                    stacklevel=2,
                )
        shape = outputs[0].shape
        if len(shape) < 2 or math.prod(shape[2:]) != 1:
            return
        self.classes = shape[1]
        if are_probabilities(outputs[0].plain) and not self._is_known:
            rng = np.random.default_rng(0)
            images = rng.uniform(-1, 1, zeros.shape)
            if zeros.dtype.kind != "f":
                images = rng.integers(256, size=zeros.shape)
            images = {self.input_name: images.astype(zeros.dtype)}
            with contextlib.suppress(OnnxError):  # takes too long: the first predictions will tell
                run = self._trial(self.theta, images=2)
                (output,) = self._forward(run, self.theta, self.stats, images)
                self._recognise(output.plain)
        self._is_known = True
        if fixed is None:
            binds = any(
                node.operator == "Reshape" and self._names_one(node) for node in self.graph.nodes
            )
        else:
            binds = True
        if binds:
            self.fixed_batch = None if self._batch_is_free(count, size) else count
            self.batch = self.fixed_batch or type(self).batch

    def _names_one(self, node):
        """Whether a Reshape names 1 as the first size: then several images would not fit."""
        wanted = self.static.get(node.inputs[1])
        return wanted is not None and wanted.size > 0 and wanted.array.reshape(-1)[0] == 1

    def _recognise(self, rows):
        """Note whether outputs (N, classes, …) are probabilities."""
        self._is_known = True
        if self.output_kind == "logits" and are_probabilities(rows):
            self.output_kind = "probabilities"

    def _batch_is_free(self, count, size):
        """Whether a graph with a fixed batch treats each of twice as many images alike."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((2 * count, *size), np.float32)
        if self.input_dtype.kind != "f":
            images = rng.integers(256, size=images.shape).astype(self.input_dtype)
        run = self._trial(self.theta, images=2)
        try:
            both, *halves = (
                self._forward(run, self.theta, self.stats, {self.input_name: part})[0]
                for part in (images, images[:count], images[count:])
            )
        except OnnxError:
            return False
        apart = np.concatenate([half.plain for half in halves])
        return both.shape == apart.shape and np.allclose(both.plain, apart, rtol=1e-3, atol=1e-4)

    # --- running ---------------------------------------------------------------------------

    def _compute(self, step, run, values):
        """Compute one step within the limits. Errors begin with the name of its node."""
        try:
            run.admit(step.node, values, operators_of.COSTS[step.node.operator])
            with np.errstate(all="ignore"):
                results = step(run, values)
            run.spend(TOUCH * sum(value.array.size for value in results))
            return results
        except OnnxError as error:
            if str(error).startswith(tuple(str(part.node) for part in (step, *step.parts))):
                raise
            raise type(error)(f"{step.node}: {error}", *error.args[1:]) from None
        except MemoryError as error:
            if type(error).__name__ == "OutOfMemoryError":  # CuPy's: the GPU's memory is full
                raise
            raise SecurityError(f"{step.node}: the system has too little memory for it") from error
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise FormatError(f"{step.node}: {error}") from error

    def _forward(self, run, theta, stats, inputs, gradient=None, before=None):
        """Compute the outputs.

        gradient   a vector like theta: weights are variables whose gradients are written into it
        before     a node to leave out: its input takes the place of its output
        Returns    a list of Values; with `gradient` also the variables
        """
        values = {name: Value(self._as_run(array, run)) for name, array in inputs.items()}
        run.held, run.owners = 0, {}
        constants = self._constants_for(run)
        for array in (theta, stats, *(value.array for value in constants.values())):
            run.lend(array)
        for value in values.values():
            run.hold(value)
        variables = []
        for entry in self.weights:
            array = entry.view(theta)
            if gradient is not None:
                array = variable(array, entry.view(gradient))
                variables.append(array)
            values[entry.name] = Value(array, entry.order)
        for entry in self.statistics:
            values[entry.name] = Value(entry.view(stats), entry.order)
        values.update(constants)
        predicts = gradient is None and run.mode == "predict" and xp_of(theta) is np
        for step in self.joined if predicts and not runs_as_written() else self.steps:
            arguments = [values[name] if name else None for name in step.inputs]
            skip = step.node is before
            if skip:
                self._expect_rows(step.node, arguments[0])
            results = [arguments[0]] if skip else self._compute(step, run, arguments)
            for name, value in zip(step.outputs, results, strict=False):
                if name and name not in self.layout:  # one output of a node may be a weight
                    values[name] = value
                    run.hold(value)
                    if run.part > 1 and value.rank == 4:
                        self._shapes[name] = value.shape
            del arguments, results
            for name in step.done:
                value = values.pop(name)
                if gradient is None:  # otherwise it is kept for the way back
                    run.release(value)
        outputs = [values[value.name] for value in self.outputs]
        return outputs if gradient is None else (outputs, variables)

    @staticmethod
    def _expect_rows(node, x):
        """Raise unless a final Softmax is one over the classes of an image, and nothing else."""
        axis = x.axis(node["axis"])
        size = math.prod(x.shape[axis:]) if node.version < 13 else x.shape[axis]
        if x.rank > 1 and (axis == 0 or size != math.prod(x.shape[1:])):
            raise unsupported(
                node,
                f"over axis {axis} of {x.shape}, at the end: it is not one over all classes of an "
                "image; export the network with its logits",
            )

    def _as_run(self, array, run):
        """An input as a run computes: floats in its type, on its device; others on the host."""
        if array.dtype.kind != "f":
            return to_host(array)
        return to_device(array, device_of(run.like)).astype(run.dtype, copy=False)

    def _constants_for(self, run):
        """The constants, with floats in the type and on the device of a run; made once."""
        key = xp_of(run.like).__name__, run.dtype
        if key not in self._cast_constants:
            self._cast_constants[key] = {
                name: Value(run.constant(v.data), v.order, v.array) if v.is_float else v
                for name, v in self.constants.items()
            }
        return self._cast_constants[key]

    def run(
        self, images: Any = None, theta: Array = None, stats: Array = None, **inputs: Array
    ) -> Any:
        """The outputs of the graph, exactly as the file defines them.

        images   an array for the only input, or a dict of arrays by name
        theta    (P,) weights: everything is computed in their type. None: the file's own, in
                 float64 if the images are float64, else in float32
        stats    (S,) statistics; None: the file's own
        inputs   more arrays, name=array
        Returns  an array with the axes that the file declares, or a tuple of arrays when the
                 graph has several outputs. Floats have the type that they were computed in,
                 or float16 where the file declares that; other types are the file's
        Raises   ValueError when an input is missing, or its shape or type disagrees
        """
        if isinstance(images, dict):
            inputs = {**images, **inputs}
        elif images is not None:
            inputs = {self.inputs[0].name: images, **inputs}
        for value in self.inputs:
            if value.name not in inputs:
                raise ValueError(f"run: input {value.name!r} is missing")
            self._check_input(value, inputs[value.name])
        if len(inputs) > len(self.inputs):
            raise ValueError(
                f"run: inputs {list(inputs)}, the file has {[value.name for value in self.inputs]}"
            )
        floats = [array for array in inputs.values() if array.dtype.kind == "f"]
        theta, stats = self._vectors(theta, stats, floats[0].dtype if floats else np.float32)
        count = max((len(array) for array in inputs.values() if array.ndim), default=1)
        run = Run(theta.dtype, theta, self.limits, images=count)
        outputs = self._forward(run, theta, stats, inputs)
        arrays = []
        for value, declared in zip(outputs, self.outputs, strict=True):
            array = value.plain
            if declared.dtype is not None and declared.dtype.itemsize < 4 and value.is_float:
                array = array.astype(declared.dtype)
            array = xp_of(array).array(array, order="C")  # the caller's own, no view of weights
            run.hold(Value(array))  # many outputs may be views of one array
            arrays.append(array)
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def _vectors(self, theta, stats, dtype):
        """θ and the statistics in one type; the file's own in place of None."""
        if theta is None:
            wide = np.float64 if dtype == np.float64 else np.float32
            theta = self.theta.astype(wide, copy=False)
        if theta.shape != self.theta.shape or theta.dtype.kind != "f":
            raise ValueError(
                f"theta is {theta.dtype} {theta.shape}, this network has {self.theta.size:,} "
                f"weights: expected floats {self.theta.shape}"
            )
        if stats is None:
            stats = xp_of(theta).asarray(self.stats, theta.dtype)
        if stats.shape != self.stats.shape or stats.dtype != theta.dtype:
            raise ValueError(
                f"stats is {stats.dtype} {stats.shape}, expected {theta.dtype} {self.stats.shape}"
            )
        return theta, stats

    def _transposed(self, shape, wanted):
        """The remedy for images whose channels are on the other side, else nothing."""
        order = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 2, 3, 1)}.get(self.input_layout)
        if order is None or len(shape) != 4 or len(wanted) != 4:
            return ""
        turned = [shape[axis] for axis in order]
        fits = all(w in (None, n) for w, n in zip(wanted[1:], turned[1:], strict=True))
        return f": pass images.transpose{order}" if fits else ""

    def _check_input(self, declared, array):
        """Raise unless an array fits an input; the batch may differ where the graph allows it."""
        shape = declared.shape
        wanted = shape
        if shape is not None and declared.name == self.input_name and shape:
            wanted = (self.fixed_batch, *shape[1:])
        fits = wanted is None or (
            len(wanted) == array.ndim
            and all(w in (None, n) for w, n in zip(wanted, array.shape, strict=True))
        )
        if not fits:
            text = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(
                f"the input {declared.name!r} is {array.shape}, expected ({text})"
                + (f" in the layout {self.input_layout}" if self.input_layout else "")
                + self._transposed(array.shape, wanted)
            )
        if (array.dtype.kind == "f") != (declared.dtype.kind == "f"):
            raise ValueError(
                f"the input {declared.name!r} is {array.dtype}, expected {declared.dtype}"
            )

    def _check_images(self, images, theta):
        if len(self.inputs) != 1 or self.input_name is None:
            raise ValueError(
                f"{self.path}: the graph has the inputs {[value.name for value in self.inputs]}; "
                "a classifier has one, of images. Use run(…) to get the outputs"
            )
        if len(self.outputs) != 1:
            raise UnsupportedError(
                f"{self.path}: the graph has the outputs {[value.name for value in self.outputs]}; "
                "a classifier has one: name it with load(…, output=…) or --output, or use run(…) "
                "to get them all"
            )
        if self.output_kind == "sigmoid":
            raise UnsupportedError(
                f"{self.path}: the graph ends in a Sigmoid, so its outputs do not sum to 1. "
                "Export the network with a softmax over its classes, or with its logits"
            )
        if self.output_kind == "softmax twice":
            raise UnsupportedError(
                f"{self.path}: the graph ends in a Softmax of a Softmax: its outputs are nearly "
                "the same for all classes. Export the network with only one of them"
            )
        if not len(images):
            raise ValueError(f"{self.path}: there are no images")
        self._check_input(self.inputs[0], images)
        if xp_of(theta) is np and xp_of(images) is not np:
            raise ValueError("images are on the GPU, theta is not: use minires.to_device")

    def loss_and_gradient(
        self,
        theta: Array,
        images: Array,
        labels: Array,
        stats: Array = None,
        rng: np.random.Generator | None = None,
        *,
        training: bool = True,
        smoothing: float = 0.0,
        classes: Array = None,
    ) -> tuple[Any, Array]:
        """The mean loss of a batch (softmax cross-entropy), and its gradient.

        theta      (P,) float32 or float64: everything is computed in its type
        images     the file's input, (N, …) floats in the file's own layout
        labels     (N,) integers
        stats      (S,), dtype of theta. In training batch norm uses the mean and variance of the
                   batch, and updates these in place (with the unbiased variance, as PyTorch does).
                   None: the network's own, `network.stats`, are read and stay as they are
        rng        a Generator; needed only in training with dropout
        training   False: the gradient of the network as `predict` computes it
        smoothing  of the labels, from 0 to below 1: see `softmax_cross_entropy`
        classes    (C,) numbers of the outputs in the softmax; the others are left out, and label k
                   means classes[k]. None: all outputs
        Returns    loss: a float, on a GPU an array of no axes; gradient: like theta
        Raises     ValueError when a shape or a type disagrees
        """
        self._check_images(images, theta)
        own = stats is None
        theta, stats = self._vectors(theta, stats, theta.dtype)
        stats = stats.copy() if own else stats
        gradient = xp_of(theta).empty(theta.shape, theta.dtype)
        mode = "train" if training else "predict"
        run = Run(theta.dtype, theta, self.limits, mode, rng, len(images))
        inputs = {self.input_name: images}
        with restored_on_error(stats):
            (output,), variables = self._forward(run, theta, stats, inputs, gradient, self._skipped)
            rows = self._as_rows(output)
            if classes is not None:
                rows = ops.take(rows, index=(slice(None), xp_of(theta).asarray(classes)))
            loss = ops.softmax_cross_entropy(rows, labels, smoothing=smoothing)
            gradients(loss, variables)
        return loss.data[()], gradient  # a number, not an array of no axes

    def measure(self, theta: Array, images: Array, stats: Array, momentum: float) -> None:
        """Move the batch-norm statistics towards those of one batch; no training.

        stats ← momentum · stats + (1 − momentum) · (mean and unbiased variance of this batch)

        Every batch norm normalises by the batch, as in training. Dropout does nothing, since the
        statistics are measured for predictions.

        theta      (P,); left as it is
        images     the file's input, (N, …) floats in the file's own layout
        stats      (S,) float32 or float64, updated in place
        momentum   the share of the old statistics that is kept, from 0 to 1
        Raises     ValueError when a shape or a type disagrees
        """
        self._check_images(images, theta)
        theta, own = self._vectors(theta, None, theta.dtype)
        if stats.shape != own.shape:
            raise ValueError(f"measure: stats is {stats.shape}, expected {own.shape}")
        run = Run(theta.dtype, theta, self.limits, "measure", images=len(images), momentum=momentum)
        self._forward(run, theta, stats, {self.input_name: images})

    def init_stats(
        self, replicas: int | None = None, dtype: Any = np.float32, device: str = "cpu"
    ) -> Array:
        """The statistics to begin with: those of the file.

        replicas   R, for R networks
        dtype      float32 or float64
        device     "cpu" or "gpu"
        Returns    stats (S,) or (R, S), a copy
        """
        stats = self.stats.astype(dtype)
        return to_device(stats if replicas is None else np.tile(stats, (replicas, 1)), device)

    @property
    def _skipped(self):
        return self.softmax if self.output_kind == "softmax" else None

    def _as_rows(self, output):
        if output.rank < 2 or math.prod(output.shape[2:]) != 1:
            raise UnsupportedError(
                f"{self.path}: the output is {output.shape}; logits are (N, classes)"
            )
        rows = ops.reshape(output.plain, shape=output.shape[:2])
        if not self._is_known:
            self._recognise(data_of(rows))
        if self.output_kind == "probabilities":
            tiny = float(np.finfo(rows.dtype).tiny)
            rows = ops.log(ops.clip(rows, low=tiny, high=np.inf))
        return rows

    def logits(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """The outputs before the softmax, `batch` images at a time.

        theta    (P,), or (R, P): R networks, one after another
        images   (N, …) floats in the file's own layout
        stats    (S,) or (R, S), dtype of theta; None: the file's own
        batch    images at a time, from 1 up; None: `self.batch`. If the file fixes a number, that
                 one is used
        Returns  (N, classes), or (R, N, classes), dtype of theta
        Raises   ValueError when a shape, a type or the number of images does not fit;
                 UnsupportedError when the graph is not a classifier
        """
        if theta.ndim == 2:
            each = [None] * len(theta) if stats is None else stats
            each = [stats] * len(theta) if stats is not None and stats.ndim == 1 else each
            members = zip(theta, each, strict=True)
            return xp_of(theta).stack([self.logits(t, images, s, batch) for t, s in members])
        if batch is not None and batch < 1:
            raise ValueError(f"logits: batch is {batch}, expected 1 or more")
        step = self.fixed_batch or batch or self.batch
        if self.fixed_batch and len(images) % step:
            raise ValueError(
                f"this graph takes {step} images at a time, and {len(images)} is not a multiple"
            )
        parts = [images[start : start + step] for start in range(0, len(images), step)]
        theta, stats = self._vectors(theta, stats, theta.dtype)
        for part in parts[:1] + parts[-1:] or [images]:
            self._check_images(part, theta)
        result = None
        for i, part in enumerate(parts):
            run = Run(theta.dtype, theta, self.limits, images=len(part))
            inputs = {self.input_name: part}
            (output,) = self._forward(run, theta, stats, inputs, before=self._skipped)
            rows = self._as_rows(output)
            if result is None:  # the file may declare another number of classes
                result = xp_of(theta).empty((len(images), rows.shape[1]), theta.dtype)
            result[i * step : i * step + len(part)] = rows
        return result

    def predict(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """Class probabilities, `batch` images at a time.

        theta, images, stats, batch   as for `logits`
        Returns                       (N, classes), or (R, N, classes), dtype of theta
        Raises                        as `logits`
        """
        return ops.softmax(self.logits(theta, images, stats, batch))

    # --- looking ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """P, the number of trainable weights."""
        return self.theta.size

    @property
    def stats_size(self) -> int:
        """S, the number of batch-norm statistics."""
        return self.stats.size

    @property
    def input_shape(self) -> tuple[int | None, ...] | None:
        """The shape of one image, without the batch axis; None for a size that the file leaves
        free, or for all when it declares none.
        """
        return None if self.declared_shape is None else self.declared_shape[1:]

    @property
    def flattened(self) -> list[tuple[Node, tuple[int, int, int]]]:
        """Dense layers that read an image's channels first: [(node, (C, H, W)), …].

        They are known only if the trial at loading went through.
        """
        makers = {name: node for node in self.graph.nodes for name in node.outputs}
        found = []
        for node in self.graph.nodes:
            if node.operator not in ("Gemm", "MatMul") or node.inputs[1] not in self.layout:
                continue
            name = node.inputs[0]
            while name in makers and makers[name].operator in VIEWS - {"Transpose"} | {"Dropout"}:
                name = makers[name].inputs[0]
            shape = self._shapes.get(name, ())
            entry = self.layout[node.inputs[1]]
            moved = name in makers and makers[name].operator == "Transpose"
            fits = len(shape) == 4 and entry.shape[0] == math.prod(shape[1:]) > shape[1] > 1
            if fits and not moved:
                found.append((node, shape[1:]))
        return found

    def arrays(self, theta: Array = None, stats: Array = None) -> dict[str, Array]:
        """Every array by name, with the file's axes: views of the vectors.

        theta    (P,) or (R, P); None: the file's own
        stats    (S,) or (R, S). None: no statistics; or the file's own, if theta is None too
        Returns  {name: view}: writing into an array changes the vector
        Raises   ValueError when a vector does not fit
        """
        if theta is None:
            theta, stats = self.theta, self.stats if stats is None else stats
        views = {}
        for vector, entries, size in (
            (theta, self.weights, self.size),
            (stats, self.statistics, self.stats_size),
        ):
            if vector is None:
                continue
            if vector.shape[-1:] != (size,):
                raise ValueError(f"arrays: a vector is {vector.shape}, expected (…, {size})")
            views |= {entry.name: entry.file_view(vector) for entry in entries}
        return views

    def batch_norms(self) -> dict[str, int]:
        """How many batch norms are nodes, folded into convolutions, or decomposed.

        Returns   {"live": nodes BatchNormalization;
                  "decomposed": a multiplication and an addition of one number per channel;
                  "folded": convolutions that have a bias, but neither of these behind them: their
                  batch norm was folded into them, if there ever was one}
        """
        live = decomposed = folded = 0
        users = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)

        def behind(node, depth=6):
            """Operators behind a node, as long as they are views or per-channel arithmetic."""
            found = []
            while depth and len(users.get(node.outputs[0], [])) == 1:
                node, depth = users[node.outputs[0]][0], depth - 1
                channelwise = node.operator in ARITHMETIC and any(
                    self.root.get(name, name) in self.layout for name in node.inputs
                )
                if not channelwise and node.operator not in VIEWS | {"BatchNormalization"}:
                    break
                found.append(node.operator)
            return found

        for node in self.graph.nodes:
            live += node.operator == "BatchNormalization"
            if node.operator == "Conv" and node.inputs[1] not in self.static:
                continue
            if node.operator == "Conv":
                after = behind(node)
                if "BatchNormalization" in after:
                    continue
                if "Mul" in after or "Div" in after:
                    decomposed += 1
                elif len(node.inputs) > 2:
                    folded += 1
        return {"live": live, "folded": folded, "decomposed": decomposed}

    def summary(self) -> str:
        """A description as text: steps with weights, batch norms, input and output."""
        rows = []
        for step in self.steps:
            owned = [n for n in dict.fromkeys(step.inputs) if n in self.layout]
            owned = [n for n in owned if self.layout[n] in self.weights]
            if not owned:
                continue
            kind = " + ".join(
                part
                for part in (
                    step.node.operator,
                    "BatchNormalization" if step.norm else None,
                    step.activation,
                )
                if part
            )
            shapes = ", ".join("×".join(map(str, self.static[name].shape)) for name in owned)
            count = sum(self.layout[name].size for name in owned)
            rows.append((step.outputs[0], kind, f"{count:,}", shapes))
        norms = self.batch_norms()
        sizes = "×".join("N" if n is None else str(n) for n in self.declared_shape or ())
        kinds = {
            "logits": "logits",
            "softmax": "a softmax; the loss and logits() use its input",
            "probabilities": "probabilities; the loss and logits() use their logarithms",
            "sigmoid": "a sigmoid: no loss, no predictions",
            "softmax twice": "a softmax of a softmax: no loss, no predictions",
        }
        lines = [
            table(("output", "operators", "weights", "arrays"), rows, align="llrl"),
            "",
            f"file          {shown(self.path)}, opset {self.graph.opset}, "
            f"{len(self.graph.nodes)} nodes in {len(self.steps)} steps",
            f"weights       {self.theta.size:,} in {len(self.weights)} arrays, "
            f"{self.stats.size:,} statistics",
            f"input         {shown(self.input_name)!r} {sizes} "
            f"{self.input_layout or 'layout unknown'}, "
            f"batch {self.fixed_batch or 'free'}",
            f"output        {', '.join(repr(v.name) for v in self.outputs)}: "
            f"{self.classes} {kinds[self.output_kind]}",
            f"batch norms   {norms['live']} live, {norms['folded']} folded or never there, "
            f"{norms['decomposed']} decomposed into multiplications and additions",
        ]
        return "\n".join(lines)
