"""Published weights for the networks of this library: two graphs, matched node by node.

`minires.mobilenet_v2()` and a file `mobilenetv2.onnx` may be the same network. Names, the order of
nodes and the number of arrays do not show it: exporters reorder and merge nodes, fold batch norms
into convolutions or decompose them. So both graphs are followed from the output to the input.
Exactly one node of the file makes each value, and it must do the same as the layer in that place:
the same window, stride, border, groups and activation. Branches are matched by their place in the
concatenation; for the two sides of a sum, both ways are tried.

In the end both networks get the same random images, and must give the same logits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minires import networks
from minires.engine.convolution import borders
from minires.kernels.plain import Borders, output_size
from minires.networks import layers
from minires.networks.model import Model
from minires.onnx import operators
from minires.onnx.errors import MismatchError, OnnxError
from minires.onnx.graph import Network

# Nodes that change neither numbers nor their places within an image.
SKIPPED = {"Identity", "Cast", "CastLike", "Transpose", "Dropout"}
RESHAPING = SKIPPED | {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}
CONVOLUTIONS = layers.Conv2D, layers.DepthwiseConv2D
CHANNELWISE = {"Add", "Sub", "Mul", "Div"}


def transfer(network: Network, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The weights of an ONNX network for a network of this library.

    network   from `minires.onnx.load`
    model     a minires.Model of the same architecture, input size and number of classes
    Returns   theta (P,) and stats (S,) for the model, float32. If batch norms are folded in the
              file, they stay folded into the convolutions' weights: the model's own batch norms get
              the mean 0, and 1 as variance + ε
    Raises    MismatchError, which names the first layer that differs, from the output
    """
    match = _Match(network, model)
    last = network.outputs[0].name
    if network.softmax is not None:
        last = network.softmax.inputs[0]
    first = match.layer(model.network, last)
    first = match.behind_views(first, SKIPPED)
    if first != network.input_name:
        raise MismatchError(
            f"all layers match, but the file first computes {first!r} from its input by "
            f"{match.describe(first)}: prepare the images in the same way, and export the network "
            "without it"
        )
    _compare_logits(network, model, match.theta, match.stats)
    return match.theta, match.stats


WIDTHS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.3, 1.4, 0.125)  # published networks have these


def native(
    network: Network, name: str | None = None, **settings: Any
) -> tuple[Model, np.ndarray, np.ndarray]:
    """The network of this library that an ONNX file holds, with the file's weights.

    network   from `minires.onnx.load`
    name      "lenet", "lenet_classic", "mobilenet_v1", "mobilenet_v2" or "inception_v3"; None:
              try all
    settings  of that function, such as width or variant; those that are not given are tried
    Returns   model, theta (P,), stats (S,)
    Raises    MismatchError when the file holds no such network; the message is that of the attempt
              with the most matching layers
    """
    furthest = None
    for model in _candidates(network, name, settings):
        try:
            return model, *transfer(network, model)
        except MismatchError as error:
            if furthest is None or error.matched > furthest.matched:
                furthest = error
    raise furthest or MismatchError("no network of this library has such images or layers")


def _candidates(network, name, settings):
    """Models that a file might hold, the likely ones first."""
    shape = network.declared_shape
    if shape is None or len(shape) != 4 or network.classes is None:
        return
    size = shape[2:] + shape[1:2] if network.input_layout != "NHWC" else shape[1:]
    if None in size:
        raise MismatchError("the file leaves the size of its images free: fix it at export")
    common = {"input_shape": tuple(size), "classes": network.classes} | settings
    convolutions = [n for n in network.graph.nodes if n.operator == "Conv"]
    dense = [n for n in network.graph.nodes if n.operator in ("Gemm", "MatMul")]
    if len(convolutions) == 2 and name in (None, "lenet", "lenet_classic"):
        shapes = [network.static[n.inputs[1]].shape for n in convolutions + dense[:1]]
        if len(dense) == 3 and name != "lenet":
            yield networks.lenet_classic(**common)
        if len(dense) == 2 and name != "lenet_classic":
            units = shapes[2][0] if dense[0]["transB"] else shapes[2][1]
            ours = {"channels": (shapes[0][0], shapes[1][0]), "hidden": units}
            yield networks.lenet(**ours | common)
        return
    makers = {
        "mobilenet_v1": networks.mobilenet_v1,
        "mobilenet_v2": networks.mobilenet_v2,
        "inception_v3": networks.inception_v3,
    }
    for known, make in makers.items():
        if name not in (None, known):
            continue
        for width in [settings["width"]] if "width" in settings else WIDTHS:
            for variant in [settings["variant"]] if "variant" in settings else ("tf", "torch"):
                own = {"width": width, "variant": variant} | common
                if known == "inception_v3":
                    own = {"auxiliary": False} | own
                try:
                    yield make(**own)
                except ValueError:  # images that are too small for it
                    continue


def _compare_logits(network, model, theta, stats):
    """Raise unless both give the same logits for the same random images."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, *model.input_shape))
    images = images.astype(np.float32)
    ours = model.logits(theta, images, stats)
    if network.input_layout != "NHWC":
        images = images.transpose(0, 3, 1, 2)
    try:
        theirs = network.logits(network.theta, np.ascontiguousarray(images))
    except ValueError as error:
        raise MismatchError(f"all layers match, but the images differ: {error}") from None
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error <= 1e-3:
        raise MismatchError(
            f"all layers match, but logits of random images differ by {error:.1e} of the largest"
        )


class _Match:
    """The search from the output to the input. On the way it fills `theta` and `stats`.

    A method for a layer takes the name of the value that the layer makes, and returns the name of
    the layer's input.
    """

    def __init__(self, network, model):
        self.network, self.model = network, model
        self.static, self.maker = network.static, network.maker
        self.theta = np.zeros(model.size, np.float32)
        self.stats = model.init_stats()
        self.layout, rows = model.layout, model.layout.rows
        self.path = {id(layer): path for path, layer, _, _ in rows}
        self.size = {id(layer): before for _, layer, before, _ in rows}
        self.matched = 0
        self.dense_before = None  # the last dense layer: a Flatten may re-order its weights

    # --- looking at the file ---------------------------------------------------------------

    def behind_views(self, name, kinds):
        """The value in front of nodes of some kinds, which change nothing."""
        while (node := self.maker.get(name)) is not None and node.operator in kinds:
            name = node.inputs[0]
        return name

    def node(self, name, kinds=SKIPPED):
        """The node that made a value, or None for an input."""
        return self.maker.get(self.behind_views(name, kinds))

    def describe(self, name):
        node = self.node(name)
        return f"the input {name!r}" if node is None else str(node)

    def part(self, layer, expected, name, found=None):
        """The error for a layer where the two graphs differ."""
        where = self.path.get(id(layer), layer.kind)
        error = MismatchError(
            f"the graphs differ at layer {where!r} ({self.matched} layers match, from the output): "
            f"it is {expected}, the file has {found or self.describe(name)}"
        )
        error.matched = self.matched
        return error

    def array(self, layer, name):
        """A constant of the file."""
        if name not in self.static:
            raise self.part(layer, "a layer with constant weights", name)
        return self.static[name].plain

    # --- walking ---------------------------------------------------------------------------

    def layer(self, layer, name):
        """Match a layer of any kind."""
        if isinstance(layer, layers.Residual):
            return self.residual(layer, name)
        if isinstance(layer, layers.AuxiliaryHead):
            raise MismatchError(
                "an ONNX file for inference has no auxiliary head: build with auxiliary=False"
            )
        if isinstance(layer, layers.Sequential):
            return self.sequence(layer, name)
        if isinstance(layer, layers.Branches):
            return self.branches(layer, name)
        if isinstance(layer, layers.Dropout):
            return name
        if isinstance(layer, CONVOLUTIONS):
            return self.convolution(layer, None, name)
        kinds = {
            layers.Dense: self.dense,
            layers.GlobalMeanPool: self.global_mean,
            layers.Flatten: self.flatten,
            layers.Activation: self.activation,
            layers.MeanPool: self.pool,
            layers.MaxPool: self.pool,
        }
        if type(layer) not in kinds:
            raise self.part(layer, f"of the kind {layer.kind}, which cannot be matched", name)
        name = kinds[type(layer)](layer, name)
        self.matched += 1
        return name

    def sequence(self, layer, name):
        """Match layers in a row, the last one first; a batch norm goes with its convolution."""
        waiting = list(layer.parts)
        while waiting:
            last = waiting.pop()
            if isinstance(last, layers.BatchNorm):
                if not waiting or not isinstance(waiting[-1], CONVOLUTIONS):
                    alone = "a BatchNorm without a convolution before it, which cannot be matched"
                    raise self.part(last, alone, name)
                name = self.convolution(waiting.pop(), last, name)
            elif self.in_other_order(last, waiting, name):
                pool = waiting.pop()
                name = self.layer(last, self.layer(pool, name))
            else:
                name = self.layer(last, name)
        return name

    def in_other_order(self, layer, waiting, name):
        """Whether a ReLU comes before a max pooling in the file, but after it in the model. Both
        orders give the same numbers.
        """
        is_relu = isinstance(layer, layers.Activation) and layer.function in ("relu", "relu6")
        behind_pool = waiting and type(waiting[-1]) is layers.MaxPool
        node = self.node(name)
        return is_relu and behind_pool and node is not None and node.operator == "MaxPool"

    def activation(self, layer, name):
        node = self.node(name)
        found = node and (self.network._activation(node) or node.operator.lower())
        if found != layer.function:
            raise self.part(layer, layer.function, name)
        return node.inputs[0]

    def flatten(self, layer, name):
        """Match a Flatten. If the file has the channels first, the dense weights are re-ordered."""
        name = self.behind_views(name, {"Identity", "Cast", "CastLike", "Dropout"})
        node = self.maker.get(name)
        while node is not None and node.operator in ("Flatten", "Reshape", "Squeeze"):
            name = node.inputs[0]
            node = self.maker.get(name)
        high, wide, depth = self.size[id(layer)]
        if node is not None and node.operator == "Transpose" and node["perm"] == [0, 2, 3, 1]:
            return node.inputs[0]
        if self.dense_before is not None:
            weights = self.layout[self.dense_before, "weight"].view(self.theta)
            first = weights.reshape(depth, high, wide, -1).transpose(1, 2, 0, 3)
            weights[...] = first.reshape(weights.shape).copy()
        return name

    def residual(self, layer, name):
        node = self.node(name)
        if node is None or node.operator != "Add":
            raise self.part(layer, "a sum", name)
        failures = []
        for long, short in (node.inputs, node.inputs[::-1]):
            before = self.theta.copy(), self.stats.copy(), self.matched
            try:
                start = self.behind_views(self.sequence(layer, long), SKIPPED)
                if start == self.behind_views(short, SKIPPED):
                    return start
                failures.append((self.matched, self.part(layer, "a sum with its own input", name)))
            except MismatchError as error:
                failures.append((self.matched, error))
            self.theta, self.stats, self.matched = before
        raise max(failures, key=lambda failure: failure[0])[1]

    def branches(self, layer, name):
        node = self.node(name)
        if node is None or node.operator != "Concat" or len(node.inputs) != len(layer.parts):
            raise self.part(layer, f"a concatenation of {len(layer.parts)}", name)
        starts = [
            self.behind_views(self.layer(branch, value), SKIPPED)
            for branch, value in zip(layer.parts, node.inputs, strict=True)
        ]
        if len(set(starts)) != 1:
            found = f"branches from {', '.join(sorted(set(starts)))}"
            raise self.part(layer, "branches from one value", name, found)
        return starts[0]

    # --- single layers ---------------------------------------------------------------------

    def convolution(self, layer, norm, name):
        """Match a convolution, its batch norm in any form, and the activation."""
        activation = (norm or layer).activation
        if activation is not None:
            node = self.node(name)
            found = self.network._activation(node) if node is not None else None
            if found != activation:
                raise self.part(norm or layer, f"followed by {activation}", name)
            name = node.inputs[0]
        channels = self.layout[layer, "weight"].shape[-1]
        live, factor, shift, name = self.affine(layer, norm, name, channels)
        node = self.node(name)
        if node is None or node.operator != "Conv":
            raise self.part(layer, self.settings_of(layer), name)
        weights = self.array(layer, node.inputs[1])
        bias = self.array(layer, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0
        name = self.window(layer, node, weights.shape)
        weights = weights.transpose(2, 3, 1, 0)
        if live is not None:
            scale, offset, mean, variance = live
            self.fill(norm, scale, offset, mean - bias, variance)
        else:
            weights, shift = weights * factor, shift + bias * factor
            if norm is not None:
                self.fill(norm, 1, shift, 0, 1 - norm.epsilon)
            elif layer.has_bias:
                self.layout[layer, "bias"].view(self.theta)[...] = shift
            elif np.any(shift):
                raise self.part(layer, "without a bias", name, f"{node} with one")
        own = self.layout[layer, "weight"]
        own.view(self.theta)[...] = weights.reshape(own.shape)
        self.matched += 1
        return name

    def affine(self, layer, norm, name, channels):
        """The nodes between a convolution and its activation, as y = factor · x + shift.

        Returns   (scale, shift, mean, variance) of a batch norm that the layer can take as it
                  is, or None; factor; shift; and the name of the convolution's output
        """
        factor, shift = np.ones(channels), np.zeros(channels)
        while (node := self.node(name)) is not None:
            if node.operator == "BatchNormalization":
                scale, offset, mean, variance = (self.array(layer, n) for n in node.inputs[1:])
                variance = variance + np.float64(node["epsilon"])
                plain = not shift.any() and (factor == 1).all()
                has_scale = norm is not None and (norm.has_scale or (scale == 1).all())
                if plain and has_scale and min(variance) > norm.epsilon:
                    own = scale, offset, mean, variance - norm.epsilon
                    return own, factor, shift, node.inputs[0]
                scale = scale / np.sqrt(variance)
                factor, shift = factor * scale, shift + factor * (offset - mean * scale)
                name = node.inputs[0]
                continue
            constants = [n for n in node.inputs if n in self.static]
            if node.operator not in CHANNELWISE or len(constants) != 1:
                break
            values = self.static[constants[0]].plain.astype(np.float64).reshape(-1)
            if values.size not in (1, channels):
                break
            position = node.inputs.index(constants[0])
            if node.operator == "Add":
                shift = shift + factor * values
            elif node.operator == "Sub" and position == 1:
                shift = shift - factor * values
            elif node.operator == "Mul":
                factor = factor * values
            elif node.operator == "Div" and position == 1:
                factor = factor / values
            else:
                break
            name = node.inputs[1 - position]
        return None, factor, shift, name

    def fill(self, norm, scale, shift, mean, variance):
        """Give a batch norm its numbers."""
        own = self.layout.of(norm)
        if norm.has_scale:
            own["scale"].view(self.theta)[...] = scale
        own["shift"].view(self.theta)[...] = shift
        own["mean"].view(self.stats)[...] = mean
        own["variance"].view(self.stats)[...] = variance

    def window(self, layer, node, shape):
        """Compare a window of the file with that of a layer. Returns the name of the input.

        shape   of the weights (O, C/group, kh, kw), or None for pooling
        """
        size = self.size[id(layer)]
        name, pads = self.outer_border(layer, node.inputs[0])
        kernel = node["kernel_shape"] or list(shape[2:])
        height, width = (n + sum(pad) for n, pad in zip(size[:2], pads, strict=True))
        try:
            window = operators.Window(node, (height, width), kernel)
        except (OnnxError, ValueError) as error:
            raise self.part(layer, self.settings_of(layer), name, f"{node}: {error}") from None
        theirs = [
            (own[0] + pad[0], own[1] + pad[1])
            for own, pad in zip(window.padding, pads, strict=True)
        ]
        dilation = layer.dilation
        ours = borders(layer.padding, size[:2], _window_of(layer), layer.stride, dilation)
        found = [tuple(kernel), window.stride, window.dilation]
        found.append(_needed(size, tuple(kernel), window.stride, window.dilation, theirs))
        wanted = [_window_of(layer), layer.stride, dilation]
        wanted.append(_needed(size, _window_of(layer), layer.stride, dilation, ours))
        if shape is not None:
            found.append((*shape[:2], node["group"]))
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            channels = size[-1]
            outputs = self.layout[layer, "weight"].shape[-1]
            wanted.append((outputs, 1 if depthwise else channels, channels if depthwise else 1))
        if found != wanted:
            raise self.part(layer, _window_text(wanted), name, f"{node}, {_window_text(found)}")
        return name

    def outer_border(self, layer, name):
        """A Pad node before a window is part of its border: (name in front of it, borders)."""
        node = self.node(name)
        if node is None or node.operator != "Pad":
            return name, ((0, 0), (0, 0))
        pads = node["pads"] if node.version < 11 else None
        if pads is None and node.inputs[1] in self.static:
            pads = operators.whole_numbers(self.static[node.inputs[1]])
        if pads is None or len(pads) != 8 or min(pads) < 0 or len(node.inputs) > 3:
            raise self.part(layer, "a window with a border of constant width", name)
        images = [(pads[i], pads[i + 4]) for i in range(4)]
        images = images[2:] if images[1] == (0, 0) else images[1:3]
        return node.inputs[0], tuple(images)

    def settings_of(self, layer):
        return f"a {layer.kind} of {_window_of(layer)}, stride {layer.stride}"

    def pool(self, layer, name):
        wanted = "AveragePool" if isinstance(layer, layers.MeanPool) else "MaxPool"
        node = self.node(name)
        if node is None or node.operator != wanted:
            raise self.part(layer, wanted, name)
        if wanted == "AveragePool" and any(map(any, borders_of(layer, self.size[id(layer)]))):
            counted = bool(node["count_include_pad"])
            if counted != layer.count_padding:
                raise self.part(
                    layer,
                    f"a mean with count_padding={layer.count_padding}",
                    name,
                    f"{node} with count_include_pad={int(counted)} (another variant=…)",
                )
        return self.window(layer, node, None)

    def global_mean(self, layer, name):
        node = self.node(name, RESHAPING)
        if node is None or node.operator not in ("GlobalAveragePool", "ReduceMean"):
            raise self.part(layer, "a mean over all pixels", name)
        return node.inputs[0]

    def dense(self, layer, name):
        """Match a dense layer: Gemm, MatMul with or without Add, or a convolution of one pixel."""
        node, bias = self.node(name, RESHAPING), 0
        if node is not None and node.operator == "Add":
            constants = [n for n in node.inputs if n in self.static]
            if len(constants) == 1:
                bias = self.array(layer, constants[0]).reshape(-1)
                position = 1 - node.inputs.index(constants[0])
                node = self.node(node.inputs[position], RESHAPING)
        if node is None or node.operator not in ("Gemm", "MatMul", "Conv"):
            raise self.part(layer, "a dense layer", name)
        weights = self.array(layer, node.inputs[1])
        if node.operator == "Conv":
            weights = weights.reshape(len(weights), -1).T
        elif node.operator == "Gemm":
            weights = weights.T if node["transB"] else weights
            if (node["alpha"], node["beta"], node["transA"]) != (1, 1, 0):
                raise self.part(layer, "a plain dense layer", name)
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = bias + self.array(layer, node.inputs[2]).reshape(-1)
        own = self.layout.of(layer)
        if weights.shape != own["weight"].shape:
            found = f"{node} with weights {weights.shape}"
            raise self.part(layer, f"a dense layer {own['weight'].shape}", name, found)
        own["weight"].view(self.theta)[...] = weights
        if "bias" in own:
            own["bias"].view(self.theta)[...] = bias
        elif np.any(bias):
            raise self.part(layer, "a dense layer without a bias", name, f"{node} with one")
        self.dense_before = layer
        return node.inputs[0]


def _window_of(layer):
    """The (rows, columns) of a convolution's kernel or a pooling's window."""
    pools = layers.MaxPool, layers.MeanPool
    return layer.window if isinstance(layer, pools) else layer.kernel


def borders_of(layer: layers.Layer, size: Sequence[int]) -> Borders:
    """A layer's padding as ((top, bottom), (left, right)).

    layer   a convolution or pooling
    size    (H, W, C) of its input
    """
    return borders(layer.padding, size[:2], _window_of(layer), layer.stride, layer.dilation)


def _needed(size, kernel, stride, dilation, padding):
    """The part of a border that windows reach: the rest at its end is left out."""
    outputs = output_size(size[:2], kernel, stride, padding, dilation)
    return tuple(
        (before, max(0, (count - 1) * s + d * (k - 1) + 1 - n - before))
        for count, n, k, s, d, (before, _) in zip(
            outputs, size[:2], kernel, stride, dilation, padding, strict=True
        )
    )


def _window_text(settings):
    kernel, stride, dilation, padding, *groups = settings
    text = f"a window of {kernel}, stride {stride}, dilation {dilation}, border {padding}"
    for outputs, depth, group in groups:
        text += f", {outputs} outputs of {depth} channels in {group} groups"
    return text
