"""Weights from files for the networks built here: whatever the exporter did to the graph.

A little exporter writes our own networks as ONNX in the forms that real ones use: batch norms
live, folded, or taken apart; borders in a Pad node; images with channels last; arrays with
names that say nothing and in any order. The weights must come back from all of them.
"""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx_models import node, runtime, write  # noqa: E402

import minires.onnx  # noqa: E402
from minires.engine.convolution import borders  # noqa: E402
from minires.networks import (  # noqa: E402
    inception_v3,
    layers,
    mobilenet_v1,
    mobilenet_v2,
)
from minires.onnx import MismatchError  # noqa: E402


class Exporter:
    """Writes a Model as ONNX nodes and arrays.

    norms    "live", "folded" or "apart" (four operations on each channel)
    padded   borders in Pad nodes
    """

    def __init__(self, model, theta, stats, rng, norms="live", padded=False):
        self.layout, self.theta, self.stats, self.rng = model.layout, theta, stats, rng
        self.norms, self.padded = norms, padded
        self.nodes, self.arrays, self.count = [], {}, 0
        self.sizes = {id(layer): before for _, layer, before, _ in model.layout.rows}

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def constant(self, array):
        name = f"c{self.rng.integers(1 << 40)}"
        self.arrays[name] = np.asarray(array, np.float32)
        return name

    def add(self, operator, inputs, **attributes):
        self.nodes.append(node(operator, inputs, self.name(), **attributes))
        return self.nodes[-1].output[0]

    def layer(self, layer, x):
        if isinstance(layer, layers.Residual):
            parts = [x, self.sequence(layer.parts, x)]
            return self.add("Add", " ".join(parts[:: self.rng.choice([1, -1])]))
        if isinstance(layer, layers.Sequential | layers.AuxiliaryHead):
            return self.sequence(layer.parts, x)
        if isinstance(layer, layers.Branches):
            # Computed in any order, laid side by side in the layer's.
            ends = {
                i: self.layer(layer.parts[i], x) for i in self.rng.permutation(len(layer.parts))
            }
            return self.add("Concat", " ".join(ends[i] for i in range(len(ends))), axis=1)
        if isinstance(layer, layers.Dropout):
            return self.add("Identity", x)
        if isinstance(layer, layers.GlobalMeanPool):
            return self.add("Flatten", self.add("GlobalAveragePool", x))
        if isinstance(layer, layers.Dense):
            own = self.layout.of(layer)
            w, b = (own[name].view(self.theta) for name in ("weight", "bias"))
            if self.norms == "folded":
                product = self.add("MatMul", f"{x} {self.constant(w)}")
                return self.add("Add", f"{self.constant(b)} {product}")
            return self.add("Gemm", f"{x} {self.constant(w.T)} {self.constant(b)}", transB=1)
        x, pads = self.border(layer, layer.window, x, pooling=True)
        kind = "AveragePool" if isinstance(layer, layers.MeanPool) else "MaxPool"
        counted = {"count_include_pad": int(layer.count_padding)} if kind == "AveragePool" else {}
        settings = {"kernel_shape": layer.window, "strides": layer.stride, "pads": pads}
        return self.add(kind, x, **settings, **counted)

    def sequence(self, steps, x):
        steps = list(steps)
        while steps:
            layer = steps.pop(0)
            if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
                x = self.convolution(layer, steps.pop(0), x)
            else:
                x = self.layer(layer, x)
        return x

    def border(self, layer, kernel, x, pooling=False):
        sides = borders(layer.padding, self.sizes[id(layer)][:2], kernel, layer.stride)
        (top, bottom), (left, right) = sides
        pads = [top, left, bottom, right]
        if self.padded and any(pads) and not pooling:
            self.arrays[name := f"pads{self.count}"] = np.array(
                [0, 0, top, left, 0, 0, bottom, right]
            )
            return self.add("Pad", f"{x} {name}"), [0] * 4
        return x, pads

    def convolution(self, layer, norm, x):
        w = self.layout[layer, "weight"].view(self.theta)
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        w = w[:, :, None] if depthwise else w
        x, pads = self.border(layer, layer.kernel, x)
        settings = {"strides": layer.stride, "pads": pads, "group": w.shape[3] if depthwise else 1}
        own, ones = self.layout.of(norm), np.ones(w.shape[3], np.float32)
        scale = own["scale"].view(self.theta) if norm.has_scale else ones
        shift = own["shift"].view(self.theta)
        mean, variance = own["mean"].view(self.stats), own["variance"].view(self.stats)
        factor = scale / np.sqrt(variance + norm.epsilon)
        offset = shift - mean * factor
        if self.norms == "folded":
            kernel, bias = self.constant((w * factor).transpose(3, 2, 0, 1)), self.constant(offset)
            x = self.add("Conv", f"{x} {kernel} {bias}", **settings)
        else:
            kernel = self.constant(w.transpose(3, 2, 0, 1))
            x = self.add("Conv", f"{x} {kernel}", **settings)
            if self.norms == "live":
                arrays = " ".join(map(self.constant, (scale, shift, mean, variance)))
                x = self.add("BatchNormalization", f"{x} {arrays}", epsilon=norm.epsilon)
            else:
                deviation = np.sqrt(variance + norm.epsilon)
                x = self.add("Sub", f"{x} {self.constant(mean[:, None, None])}")
                x = self.add("Div", f"{x} {self.constant(deviation[:, None, None])}")
                x = self.add("Mul", f"{x} {self.constant(scale[:, None, None])}")
                x = self.add("Add", f"{self.constant(shift[None, :, None, None])} {x}")
        if norm.activation == "relu6":
            return self.add("Clip", f"{x} {self.constant(0)} {self.constant(6)}")
        return self.add("Relu", x) if norm.activation else x


def export(path, model, rng, softmax=False, channels_last=False, **options):
    """Random weights for a model, and the model as a file; returns theta and stats."""
    theta = model.init(rng)
    theta += 0.05 * rng.standard_normal(theta.size).astype(np.float32)
    stats = model.init_stats() * rng.uniform(0.5, 2, model.stats_size).astype(np.float32)
    stats += 0.1 * rng.random(model.stats_size).astype(np.float32)
    exporter = Exporter(model, theta, stats, rng, **options)
    high, wide, depth = model.input_shape
    first = exporter.add("Transpose", "x", perm=[0, 3, 1, 2]) if channels_last else "x"
    last = exporter.layer(model.network, first)
    last = exporter.add("Softmax", last, axis=1) if softmax else last
    exporter.nodes.append(node("Identity", last, "y"))
    names = list(exporter.arrays)
    rng.shuffle(names)
    arrays = {name: exporter.arrays[name] for name in names}
    shape = (None, high, wide, depth) if channels_last else (None, depth, high, wide)
    write(path, exporter.nodes, arrays, shape=shape)
    return theta, stats


def make(name, **options):
    """Small networks of each kind; 28 pixels leave the first convolution at full size."""
    size = {"input_shape": (28, 28, 3), "classes": 5, "width": 0.25} | options
    function = {"v1": mobilenet_v1, "v2": mobilenet_v2, "inception": inception_v3}[name]
    return function(**size)


LARGE = {"input_shape": (299, 299, 3), "width": 0.1}  # the auxiliary head needs 17×17 pixels


@pytest.mark.parametrize("name", ["v1", "v2", "inception"])
@pytest.mark.parametrize("variant", ["tf", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        {"norms": "live"},
        {"norms": "folded", "padded": True},
        {"norms": "apart", "softmax": True, "channels_last": True},
    ],
    ids=lambda options: options["norms"],
)
def test_weights_come_back_from_every_form(tmp_path, rng, name, variant, options):
    path = tmp_path / "model.onnx"
    model = make(name, variant=variant)
    theta, stats = export(path, model, rng, **options)
    network = minires.onnx.load(path)
    found, found_stats = minires.onnx.transfer(network, model)
    images = rng.standard_normal((2, *model.input_shape)).astype(np.float32)
    expected = model.logits(theta, images, stats)
    logits = model.logits(found, images, found_stats)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    if options["norms"] == "live" and not (name == "inception" and variant == "tf"):
        np.testing.assert_array_equal(found, theta)
        np.testing.assert_allclose(found_stats, stats, rtol=1e-6)
    seen = images if options.get("channels_last") else images.transpose(0, 3, 1, 2)
    (outputs,) = runtime(path)(x=np.ascontiguousarray(seen))
    theirs = minires.engine.ops.softmax(logits) if options.get("softmax") else logits
    assert np.abs(outputs - theirs).max() <= 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        (("v2", {"variant": "tf"}), ("v2", {"variant": "torch"}), "border"),
        (("v2", {}), ("v2", {"width": 0.5}), "outputs of"),
        (("v2", {}), ("v2", {"classes": 6}), "dense layer"),
        (("v1", {}), ("v2", {}), "the graphs differ at layer"),
        (("inception", {"variant": "torch"}), ("inception", {"variant": "tf"}), "count"),
        (("v1", {}), ("v1", {"input_shape": (32, 32, 3)}), "images differ|border"),
        (("inception", LARGE), ("inception", LARGE | {"auxiliary": True}), "auxiliary=False"),
    ],
)
def test_where_the_graphs_differ(tmp_path, rng, file, model, words):
    path = tmp_path / "model.onnx"
    export(path, make(file[0], **file[1]), rng)
    with pytest.raises(MismatchError, match=words):
        minires.onnx.transfer(minires.onnx.load(path), make(model[0], **model[1]))


@pytest.mark.parametrize("before", [[], [layers.MaxPool(2)]], ids=["first", "behind a pooling"])
def test_a_batch_norm_without_a_convolution_is_named(tmp_path, rng, before):
    path = tmp_path / "model.onnx"
    parts = [*before, layers.BatchNorm(), layers.GlobalMeanPool(), layers.Dense(3)]
    model = minires.Model((8, 8, 3), layers.Sequential(*parts))
    minires.onnx.export(model, model.init(rng), model.init_stats(), path)
    with pytest.raises(MismatchError, match="BatchNorm without a convolution before it"):
        minires.onnx.transfer(minires.onnx.load(path), model)


def test_images_that_the_file_prepares_are_named(tmp_path, rng):
    path = tmp_path / "model.onnx"
    model = make("v1")
    export(path, model, rng)
    file = onnx.load(path)
    file.graph.node[0].input[0] = "prepared"
    file.graph.node.insert(0, node("Mul", "x x", "prepared"))
    onnx.save(file, path)
    with pytest.raises(MismatchError, match="prepare the images"):
        minires.onnx.transfer(minires.onnx.load(path), model)


BETWEEN = {  # what may stand between a convolution and its ReLU
    "a bias, and a batch norm": [node("BatchNormalization", "c scale shift mean var", "n")],
    "a bias, and arithmetic": [
        node("Add", "c a", "c1"), node("Mul", "f c1", "c2"), node("Sub", "c2 b", "c3"),
        node("Div", "c3 d", "c4"), node("Mul", "c4 a", "c5"), node("Add", "c5 f", "n"),
    ],
    "a batch norm of one": [node("BatchNormalization", "c one shift mean var", "n")],
}  # fmt: skip


def small_file(path, rng, between, last="Relu"):
    """Convolution with a bias, what is between, ReLU, mean, dense layer."""
    names = ["scale", "shift", "mean", "var", "bias", "one"]
    arrays = {name: 1 + rng.random(4).astype(np.float32) for name in names}
    arrays["one"][...] = 1
    arrays |= {name: 0.5 + rng.random((4, 1, 1)).astype(np.float32) for name in "abdf"}
    arrays["k"] = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    arrays["w"] = rng.standard_normal((4, 5)).astype(np.float32)
    nodes = [node("Conv", "x k bias", "c", pads=[1, 1, 1, 1]), *between, node(last, "n", "r")]
    nodes += [node("GlobalAveragePool", "r", "g"), node("Flatten", "g", "z")]
    write(path, [*nodes, node("Gemm", "z w", "y")], arrays)
    return path


def small_model(**settings):
    norm = layers.BatchNorm(activation="relu", **settings)
    parts = layers.Conv2D(4, 3, bias=False), norm, layers.GlobalMeanPool(), layers.Dense(5)
    return minires.Model((8, 8, 3), layers.Sequential(*parts))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("between", list(BETWEEN))
def test_what_stands_between_a_convolution_and_its_activation(tmp_path, rng, between, scale):
    path = small_file(tmp_path / "model.onnx", rng, BETWEEN[between])
    model = small_model(scale=scale)
    theta, stats = minires.onnx.transfer(minires.onnx.load(path), model)
    images = rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    (expected,) = runtime(path)(x=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.logits(theta, images, stats), expected, rtol=1e-4, atol=1e-4)


def test_another_activation_is_named(tmp_path, rng):
    between = BETWEEN["a bias, and a batch norm"]
    path = small_file(tmp_path / "model.onnx", rng, between, last="Tanh")
    with pytest.raises(MismatchError, match=r"'batchnorm_1'.*followed by relu, the file has Tanh"):
        minires.onnx.transfer(minires.onnx.load(path), small_model())


def test_layers_that_match_with_other_logits_are_no_match(tmp_path, rng):
    """Rows and columns change places: every layer fits, the images do not."""
    between = [node("Transpose", "c", "t", perm=[0, 1, 3, 2])]
    between += [node("BatchNormalization", "t scale shift mean var", "n")]
    path = small_file(tmp_path / "model.onnx", rng, between)
    model = small_model()
    minires.onnx.transfer(minires.onnx.load(path), model)  # the mean over all pixels hides it
    parts = layers.Conv2D(4, 3, bias=False), layers.BatchNorm(activation="relu")
    model = minires.Model((8, 8, 3), layers.Sequential(*parts, layers.Flatten(), layers.Dense(5)))
    file = onnx.load(path)
    del file.graph.node[-3]
    file.graph.node[-2].input[0] = "r"
    (w,) = (array for array in file.graph.initializer if array.name == "w")
    w.CopyFrom(onnx.numpy_helper.from_array(rng.random((256, 5)).astype(np.float32), "w"))
    onnx.save(file, path)
    with pytest.raises(MismatchError, match="all layers match, but logits"):
        minires.onnx.transfer(minires.onnx.load(path), model)


def test_branches_of_two_values_are_named(tmp_path, rng):
    path = tmp_path / "model.onnx"
    arrays = {name: rng.standard_normal((3, 3, 1, 1)).astype(np.float32) for name in "klm"}
    arrays |= {name: rng.random(3).astype(np.float32) for name in "abc"}
    arrays["w"] = rng.standard_normal((6, 5)).astype(np.float32)
    nodes = [node("Conv", "x k a", "p"), node("Conv", "p l b", "q"), node("Conv", "x m c", "r")]
    nodes += [node("Concat", "q r", "s", axis=1), node("GlobalAveragePool", "s", "g")]
    nodes += [node("Flatten", "g", "z"), node("Gemm", "z w", "y")]
    write(path, nodes, arrays)
    branches = layers.Branches(layers.Conv2D(3, 1), layers.Conv2D(3, 1))
    parts = layers.Conv2D(3, 1), branches, layers.GlobalMeanPool(), layers.Dense(5)
    model = minires.Model((8, 8, 3), layers.Sequential(*parts))
    with pytest.raises(MismatchError, match="branches from one value, the file has branches from"):
        minires.onnx.transfer(minires.onnx.load(path), model)


@pytest.mark.parametrize(
    ("name", "model"),
    [("mobilenet_v1_0.25_224", lambda: mobilenet_v1(0.25)), ("mobilenet_v2_1.0_224", mobilenet_v2)],
)
def test_published_weights(data_dir, rng, name, model):
    path = data_dir / "onnx" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    network, model = minires.onnx.load(path), model()
    theta, stats = minires.onnx.transfer(network, model)
    images = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    ours = model.logits(theta, images, stats)
    (theirs,) = runtime(path)(**{network.input_name: images.transpose(0, 3, 1, 2).copy()})
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
