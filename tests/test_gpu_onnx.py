"""ONNX networks on a GPU give what they give on a CPU: on a stand-in, or on a card (`-m gpu`).

Every operator and its gradients, files of other programs, and the commands from the first picture
to the last file. In float64, so that only the order of sums can differ.
"""

import json
import sys

import numpy as np
import pytest
from helpers import assert_close

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
import emulated_cupy
import onnx
from onnx_models import node, write
from test_evaluate import command, write_network, write_pictures
from test_improve import (
    Killed,
    assert_equal_runs,
    checkpoint,
    place,  # noqa: F401
    words,
)

import minires.onnx
from minires.commands import cli, improve
from minires.networks.running_statistics import POLICIES
from minires.onnx import UnsupportedError
from minires.onnx.operators import OPERATORS

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def whole(*numbers):
    return np.array(numbers, np.int64)


def small(*shape):
    """Weights that are always the same."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# --- every operator -----------------------------------------------------------------------

# What stands between a convolution, whose images h are (N, 6, 5, 7), and a dense layer that takes
# y: nodes and arrays. A Conv before and a Gemm behind see that gradients come through.
CASES = {
    "Conv": (
        [node("Conv", "h w b", "y", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2])],
        {"w": small(4, 6, 3, 2), "b": small(4)},
    ),
    "Conv, groups": (
        [node("Conv", "h w b", "y", group=2)],
        {"w": small(8, 3, 2, 2), "b": small(8)},
    ),
    "Conv, depthwise": (
        [node("Conv", "h w", "c", group=6, pads=[1, 1, 1, 1]), node("Relu", "c", "y")],
        {"w": small(6, 1, 3, 3)},
    ),
    "Conv, three kernels for each channel": (
        [node("Conv", "h w b", "y", group=6, auto_pad="SAME_LOWER")],
        {"w": small(18, 1, 3, 3), "b": small(18)},
    ),
    "MaxPool": ([node("MaxPool", "h", "y", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)], {}),
    "AveragePool": (
        [node("AveragePool", "h", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {},
    ),
    "AveragePool, beyond the border": (
        [
            node("AveragePool", "h", "y", kernel_shape=[2, 2], strides=[3, 2], ceil_mode=1,
                 count_include_pad=1)
        ],
        {},
    ),
    "GlobalAveragePool": ([node("GlobalAveragePool", "h", "y")], {}),
    "GlobalMaxPool": ([node("GlobalMaxPool", "h", "y")], {}),
    "BatchNormalization": (
        [node("BatchNormalization", "h s b m v", "n"), node("Relu", "n", "y")],
        {"s": small(6), "b": small(6), "m": small(6), "v": small(6) ** 2},
    ),
    "LayerNormalization": (
        [node("LayerNormalization", "h s b", "y", axis=-2)], {"s": small(5, 7), "b": small(5, 7)}
    ),
    "LRN": ([node("LRN", "h", "y", size=4, alpha=0.3, beta=0.7, bias=2.0)], {}),
    "Dropout": (
        [node("Dropout", "h ratio", "d mask"), node("Cast", "mask", "m", to=FLOAT),
         node("Add", "d m", "y")],
        {"ratio": np.float32(0.3)},
    ),
    "arithmetic": (
        [node("Mul", "h h", "s"), node("Add", "s w", "p"), node("Div", "h p", "q"),
         node("Sub", "q half", "r"), node("Neg", "r", "t"), node("Sum", "t h s", "y")],
        {"w": 5 + small(6, 1, 1) ** 2, "half": np.float32(0.5)},
    ),
    "Max and Min": (
        [node("Neg", "h", "g"), node("Max", "h low g", "m"), node("Min", "m high", "y")],
        {"low": np.float32(0.3), "high": small(1, 6, 1, 1)},
    ),
    "Abs": ([node("Abs", "h", "y")], {}),
    "Exp": ([node("Exp", "h", "y")], {}),
    "Log": ([node("Exp", "h", "e"), node("Add", "e one", "t"), node("Log", "t", "y")],
            {"one": np.float32(1)}),
    "Pow": ([node("Pow", "h three", "y")], {"three": np.float32(3)}),
    "Erf": ([node("Erf", "h", "y")], {}),
    "truth values": (
        [node("Neg", "h", "g"), node("Greater", "h low", "a"), node("Less", "h high", "b"),
         node("And", "a b", "c"), node("GreaterOrEqual", "h g", "d"),
         node("LessOrEqual", "h low", "e"), node("Or", "d e", "all"), node("Equal", "c all", "i"),
         node("Not", "i", "o"), node("Where", "o h g", "y")],
        {"low": np.float32(-0.2), "high": small(6, 1, 1) ** 2},
    ),
    "Sqrt": ([node("Mul", "h h", "s"), node("Add", "s one", "t"), node("Sqrt", "t", "y")],
             {"one": np.float32(1)}),
    "Relu": ([node("Relu", "h", "y")], {}),
    "Sigmoid": ([node("Sigmoid", "h", "y")], {}),
    "Tanh": ([node("Tanh", "h", "y")], {}),
    "Softplus": ([node("Softplus", "h", "y")], {}),
    "Softsign": ([node("Softsign", "h", "y")], {}),
    "Elu": ([node("Elu", "h", "y", alpha=0.7)], {}),
    "Selu": ([node("Selu", "h", "y")], {}),
    "Celu": ([node("Celu", "h", "y", alpha=0.6)], {}),
    "Mish": ([node("Mish", "h", "y")], {}),
    "Gelu": ([node("Gelu", "h", "y")], {}),
    "Gelu, by tanh": ([node("Gelu", "h", "y", approximate="tanh")], {}),
    "LeakyRelu": ([node("LeakyRelu", "h", "y", alpha=0.2)], {}),
    "PRelu": ([node("PRelu", "h a", "y")], {"a": small(6, 1, 1)}),
    "HardSigmoid": ([node("HardSigmoid", "h", "y", alpha=0.4)], {}),
    "HardSwish": ([node("HardSwish", "h", "y")], {}),
    "Clip": ([node("Clip", "h low high", "y")], {"low": np.float32(-1), "high": np.float32(0.4)}),
    "Clip, as a ReLU6": (
        [node("Identity", "h", "i"), node("Clip", "i low high", "y")],
        {"low": np.float32(0), "high": np.float32(6)},
    ),
    "Gemm": (
        [node("Flatten", "h", "f"), node("Gemm", "f w c", "y", alpha=0.5, beta=2.0, transB=1)],
        {"w": small(5, 210), "c": small(1, 5)},
    ),
    "MatMul": ([node("MatMul", "h w", "y")], {"w": small(7, 4)}),
    "MatMul with a vector": ([node("MatMul", "h w", "y")], {"w": small(7)}),
    "ReduceMean": ([node("ReduceMean", "h", "m", axes=[2, 3]), node("Identity", "m", "y")], {}),
    "ReduceMean, of rows": ([node("ReduceMean", "h", "y", axes=[3], keepdims=0)], {}),
    "ReduceMax": ([node("ReduceMax", "h", "y", axes=[1, 3])], {}),
    "ReduceSum": ([node("ReduceSum", "h a", "y", keepdims=0)], {"a": whole(1, -1)}),
    "Softmax": ([node("Softmax", "h", "y", axis=1)], {}),
    "LogSoftmax": ([node("LogSoftmax", "h", "y", axis=2)], {}),
    "shapes": (
        [node("Shape", "h", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n first", "u"),
         node("Concat", "u rest", "t", axis=0), node("Reshape", "h t", "r"),
         node("Transpose", "r", "p", perm=[0, 2, 1]), node("Unsqueeze", "p second", "q"),
         node("Squeeze", "q second", "y")],
        {"zero": np.int64(0), "first": whole(0), "rest": whole(30, -1), "second": whole(2)},
    ),
    "arithmetic of shapes": (
        [node("Shape", "h", "s"), node("Slice", "s a b", "n"), node("Mul", "n two", "d"),
         node("Div", "d two", "e"), node("Add", "e two", "g"), node("Sub", "g two", "j"),
         node("Mod", "j g", "k"), node("ReduceSum", "k", "whole"), node("Max", "whole two", "l"),
         node("CastLike", "l two", "m"), node("ConstantOfShape", "k", "z"),
         node("Add", "z one", "o"), node("Expand", "o k", "p"), node("Mul", "h p", "y")],
        {"a": whole(2), "b": whole(4), "two": whole(2), "one": np.float32(1.5)},
    ),
    "Constant": (
        [onnx.helper.make_node("Constant", [], ["c"], value_float=0.7), node("Mul", "h c", "y")],
        {},
    ),
    "DequantizeLinear": (
        [node("DequantizeLinear", "q scale zero", "w", axis=0), node("Conv", "h w", "y")],
        {"q": (20 * small(4, 6, 2, 2)).astype(np.int8), "scale": small(4) ** 2,
         "zero": np.arange(4, dtype=np.int8)},
    ),
    "Expand": ([node("ReduceMean", "h", "m", axes=[3]), node("Expand", "m s", "y")],
               {"s": whole(1, 6, 5, 3)}),
    "ConvTranspose": (
        [node("ConvTranspose", "h w b", "y", strides=[2, 1], pads=[1, 0, 0, 1],
              output_padding=[1, 0])],
        {"w": small(6, 4, 3, 2), "b": small(4)},
    ),
    "Resize": (
        [node("Resize", "h none near", "n"), node("Resize", "n none far", "y", mode="linear")],
        {"none": np.zeros(0, np.float32), "near": np.array([1, 1, 2, 1], np.float32),
         "far": np.array([1, 1, 0.7, 3], np.float32)},
    ),
    "SplitToSequence": (
        [node("SplitToSequence", "h two", "q", axis=1), node("SequenceAt", "q one", "t"),
         node("Tanh", "t", "y")],
        {"two": np.int64(2), "one": np.int64(1)},
    ),
    "Range": (
        [node("Shape", "h", "s"), node("Gather", "s last", "n"), node("Range", "zero n one", "r"),
         node("CastLike", "r h", "c"), node("Mul", "h c", "y")],
        {"last": np.int64(3), "zero": np.int64(0), "one": np.int64(1)},
    ),
    "Concat and Split": (
        [node("Split", "h sizes", "a b", axis=1), node("Tanh", "a", "t"),
         node("Concat", "b t h", "y", axis=-3)],
        {"sizes": whole(2, 4)},
    ),
    "Pad": (
        [node("Pad", "h pads value", "y")],
        {"pads": whole(0, 0, 1, -1, 0, 0, 2, 1), "value": np.float32(0.25)},
    ),
    "Slice": (
        [node("Slice", "h a b axes steps", "y")],
        {"a": whole(-1, 1), "b": whole(-9, 9), "axes": whole(3, 1), "steps": whole(-2, 1)},
    ),
    "Gather": ([node("Gather", "h i", "y", axis=1)], {"i": np.int64(-2)}),
    "Gather, some again": ([node("Gather", "h i", "y", axis=1)], {"i": whole(5, 0, 5, -6, 5)}),
    "Cast, of a few": (
        [node("ReduceMean", "h", "m", axes=[1, 2, 3]), node("Cast", "m", "i", to=INT64),
         node("Cast", "i", "f", to=FLOAT), node("Add", "h f", "y")],
        {},
    ),
}  # fmt: skip
# The first opset that has the operator, where it is not 15.
NEWER = {"LayerNormalization": 17, "Mish": 18, "Gelu": 20, "Gelu, by tanh": 20}
# Indices are sent to the device. Whole numbers and truth values come back from it.
SYNCHRONISING = {
    "Range": 1,
    "Gather, some again": 4,
    "Resize": 4,
    "Cast, of a few": 2,
    "Dropout": 1,
}
SYNCHRONISING |= {"AveragePool, beyond the border": 1, "arithmetic of shapes": 1}
SYNCHRONISING |= {"truth values": 5}


def build(path, name):
    """A classifier of three classes with the nodes of a case in its middle, loaded."""
    nodes, arrays = CASES[name]
    head = [node("Flatten", "y", "flat"), node("Gemm", "flat dense bias", "logits")]
    nodes = [node("Conv", "x kernel", "h"), *nodes, *head]
    arrays = arrays | {"kernel": small(6, 3, 2, 2), "bias": small(3)}
    settings = {"shape": (None, 3, 6, 8), "opset": NEWER.get(name, 15)}
    write(path, nodes[:-2], arrays, **settings)
    features = minires.onnx.load(path).run(np.zeros((1, 3, 6, 8), np.float32)).size
    arrays["dense"] = small(features, 3) / features**0.5
    write(path, nodes, arrays, **settings, outputs=["logits"])
    return minires.onnx.load(path)


def problem(network, rng, count=3):
    """Weights, images, labels and statistics, in float64."""
    size = [
        count if network.fixed_batch is None else network.fixed_batch,
        *network.declared_shape[1:],
    ]
    images = rng.standard_normal(size)
    labels = rng.integers(0, network.classes, size[0])
    return network.theta.astype(float), images, labels, network.stats.astype(float)


def slope(network, theta, images, labels, stats, training):
    return network.loss_and_gradient(
        theta, images, labels, stats, rng=np.random.default_rng(0), training=training
    )


def synchronisations():
    return emulated_cupy._graph_state.synchronisations


def test_every_operator_has_a_case():
    assert {n.op_type for nodes, _ in CASES.values() for n in nodes} | {"Flatten"} == {*OPERATORS}


@pytest.mark.parametrize("name", CASES)
def test_operators_and_their_gradients(device, path, rng, name):
    network = build(path, name)
    theta, images, labels, stats = problem(network, rng)
    training = name == "BatchNormalization"  # dropout would drop other units
    loss, gradient = slope(network, theta, images, labels, stats.copy(), training)
    logits = network.logits(theta, images, stats)
    there = [device.asarray(array) for array in (theta, images, labels, stats)]
    found, found_gradient = slope(network, *there, training)
    moved = there[3].get()
    before = synchronisations()
    slope(network, *there, training)
    assert synchronisations() - before <= 2 * SYNCHRONISING.get(name, 0)
    there[3][...] = device.asarray(stats)
    found_logits = network.logits(there[0], there[1], there[3])
    assert type(found_logits) is type(found_gradient) is device.ndarray
    assert found_gradient.dtype == np.float64
    assert_close(found.get(), loss, 1e-12)
    assert_close(found_gradient.get(), gradient, 1e-11)
    assert_close(found_logits.get(), logits, 1e-12)
    assert network.layout["kernel"].view(gradient).any()
    slope(network, theta, images, labels, stats, training)
    assert_close(moved, stats, 1e-12)


def test_dropout_on_the_device(device, path, rng):
    """Other units than on the host, the same again for the same generator; none at test time."""
    network = build(path, "Dropout")
    there = [device.asarray(array) for array in problem(network, rng)]
    losses = [float(slope(network, *there, training)[0]) for training in (True, True, False)]
    assert losses[0] == losses[1] != losses[2]


def test_gradients_of_a_repeated_index_have_an_order(device, path, rng, monkeypatch):
    """CuPy's `add.at` adds atomically, in any order: it is not used."""
    network = build(path, "Gather, some again")
    there = [device.asarray(array) for array in problem(network, rng)]
    monkeypatch.setattr(device, "add", None)
    _, first = slope(network, *there, training=False)
    _, again = slope(network, *there, training=False)
    np.testing.assert_array_equal(first.get(), again.get())


def test_images_of_whole_numbers(device, path):
    nodes = [
        node("Div", "x two", "half"),
        node("Cast", "half", "f", to=FLOAT),
        node("ReduceMean", "f", "y", axes=[1]),
    ]
    write(path, nodes, {"two": whole(2)}, shape=(None, 40), dtype=INT64)
    network = minires.onnx.load(path)
    images = np.repeat(np.arange(1, 160, 4, dtype=np.int64), 2).reshape(2, 40)
    found = network.run(device.asarray(images), theta=device.asarray(network.theta))
    assert type(found) is device.ndarray
    np.testing.assert_array_equal(found.get(), [[19], [59]])


def test_images_that_become_whole_numbers_are_refused(device, path):
    """They would go to the host and back at every step; a CPU has no such trouble."""
    nodes = [node("Cast", "x", "i", to=INT64), node("Cast", "i", "y", to=FLOAT)]
    write(path, nodes, shape=(None, 3, 40, 40))
    network = minires.onnx.load(path)
    images = np.full((1, 3, 40, 40), 2.7, np.float32)
    assert (network.run(images) == 2).all()
    with pytest.raises(UnsupportedError, match=r"Cast 'Cast_i': .* on the CPU \(--device cpu\)"):
        network.run(device.asarray(images), theta=device.asarray(network.theta))


def test_a_full_card_is_no_fault_of_the_file(device, path, rng, monkeypatch):
    network = build(path, "Tanh")

    def full(*arguments):
        raise device.cuda.memory.OutOfMemoryError(1 << 30, 1 << 31)

    monkeypatch.setitem(OPERATORS, "Tanh", full)
    theta, images, *_ = problem(network, rng)
    with pytest.raises(device.cuda.memory.OutOfMemoryError):
        network.logits(device.asarray(theta), images)


# --- files of other programs --------------------------------------------------------------

FILES = {  # file → images that it is shown
    "onnx_models/special_lenet_tanh_op13/model": 4,
    "onnx_models/special_shared_weights_op13_bn/model": 4,
    "onnx_models/tiny_inception_dynamo/model": 2,
    "onnx_models/tiny_inception_old_op13_bn/model": 2,
    "onnx_models/tiny_keras_tensorflow_mobilenetv1_025/model": 2,
    "onnx_models/tiny_keras_torch_mobilenetv2_035/model": 2,
    "onnx_models/tiny_mobilenetv2_035_dynamo/model": 2,
    "onnx_models/tiny_mobilenetv2_035_old_op13_bn/model": 2,
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs(device, data_dir, rng, name):
    """Two updates of fine-tuning: loss, gradient, statistics, and what is predicted then."""
    path = data_dir / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"the data folder has no {name}.onnx")
    network = minires.onnx.load(path)
    theta, images, labels, stats = problem(network, rng, FILES[name])
    there = [device.asarray(array) for array in (theta, images, labels, stats)]
    for update in range(2):
        loss, gradient = slope(network, theta, images, labels, stats, training=True)
        before = synchronisations()
        found, found_gradient = slope(network, *there, training=True)
        assert synchronisations() == before or update == 0
        assert_close(found.get(), loss, 1e-9)
        assert_close(found_gradient.get(), gradient, 1e-8)
        assert_close(there[3].get(), stats, 1e-9)
        theta -= 0.01 * gradient
        there[0] -= 0.01 * found_gradient
    expected = network.predict(theta, images, stats)
    assert_close(network.predict(there[0], there[1], there[3]).get(), expected, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_224", "mobilenet_v2_1.0_224"])
def test_published_weights(device, data_dir, name):
    """In float32, on photographs: the same probabilities and the same slope, within rounding."""
    from minires.commands.evaluate import Examination
    from minires.data import imagenet

    path = data_dir / "onnx" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"the data folder has no onnx/{name}.onnx")
    network = minires.onnx.load(path)
    pictures = imagenet.load(data_dir / "imagenet/val", data_dir / "imagenet/synsets.txt")
    found = []
    for where in ("cpu", "gpu"):
        examination = Examination(network, pictures, "keras", device=where)
        theta, stats = examination.own_vectors()
        ((images, labels, _),) = examination.batches([[0, 250]])
        probabilities = examination.predict(theta, images, stats)
        loss, gradient = network.loss_and_gradient(
            theta, images, labels + examination.offset, stats, training=False
        )
        found.append([probabilities, *(minires.to_device(a, "cpu") for a in (loss, gradient))])
    for (expected, actual), limit in zip(zip(*found, strict=True), (1e-4, 1e-4, 5e-3), strict=True):
        assert np.linalg.norm(actual - expected) <= limit * np.linalg.norm(expected)


# --- the commands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"layout": "NHWC", "softmax": True}, {"classes": 4}, {"batch": 5}],
    ids=["NCHW", "NHWC", "background", "fixed batch"],
)
def test_evaluate_gives_the_scores_of_the_cpu(device, tmp_path, capsys, options):
    model = write_network(tmp_path / "n.onnx", **options)
    folder, found = write_pictures(tmp_path / "val"), []
    line = ["evaluate", model, "--images", folder, "--batch", 7]
    line += ["--background"] if "classes" in options else []
    for where in ("cpu", "gpu"):
        assert command(*line, "--json", "--device", where) == 0
        found.append(json.loads(capsys.readouterr().out))
    ours, theirs = reversed(found)
    assert (ours["device"], theirs["device"]) == ("gpu", "cpu")
    assert ours["images"] == 12
    for score in ("top1", "top5", "nll", "nll_error", "ece"):
        assert ours[score] == pytest.approx(theirs[score], rel=1e-5), score
    assert command(*line, "--device", "gpu") == 0
    assert "compute capability" in capsys.readouterr().out  # the speed is that of this card


@pytest.mark.parametrize("batch", ["N", 5])
@pytest.mark.parametrize("choice", POLICIES)
def test_improve_gives_the_results_of_the_cpu(device, place, choice, batch):  # noqa: F811
    write_network(place / "n.onnx", batch=batch, layout="NHWC")
    for where in ("cpu", "gpu"):
        options = {"device": where, "batch_norm": choice, "updates": 6}
        assert command(*words(place, out=where, **options)) == 0
    results = [json.loads((place / name / "results.json").read_text()) for name in ("gpu", "cpu")]
    np.testing.assert_allclose(results[0]["losses"], results[1]["losses"], rtol=1e-4)
    for ours, theirs in zip(*(found["networks"] for found in results), strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["nll"] == pytest.approx(theirs["nll"], rel=1e-4)
    for name in ("mean", "member_1", "member_2"):
        ours, theirs = (minires.onnx.load(place / w / f"{name}.onnx") for w in ("gpu", "cpu"))
        assert_close(ours.theta, theirs.theta, 1e-4)
        assert_close(ours.stats, theirs.stats, 1e-4)
    ours, theirs = (minires.Moments.load(place / w / "moments.npz") for w in ("gpu", "cpu"))
    assert_close(ours.std, theirs.std, 1e-3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_stopped_on_the_gpu_it_ends_with_the_same_bits(device, place, monkeypatch, optimizer):  # noqa: F811
    write_network(place / "n.onnx", dropout=True)
    usual = {"optimizer": optimizer, "rate": 0.01, "device": "gpu"}
    command(*words(place, out="whole", **usual))
    plain = improve.State.record

    def record(self, loss):
        if self.updates == 4:  # within an update, before anything of it was kept
            raise Killed
        plain(self, loss)

    monkeypatch.setattr(improve.State, "record", record)
    with pytest.raises(Killed):
        command(*words(place, **usual, checkpoint_every=0))
    assert checkpoint(place)["updates"] == 4
    monkeypatch.setattr(improve.State, "record", plain)
    command(*words(place, **usual))
    assert_equal_runs(place, "whole", "out")


def test_a_run_stays_on_its_device(device, place):  # noqa: F811
    command(*words(place, updates=2, device="gpu"))
    with pytest.raises(ValueError, match=r"other settings .*device was gpu, now cpu"):
        command(*words(place))


def test_a_checkpoint_that_names_no_device_is_of_a_cpu(device, place):  # noqa: F811
    command(*words(place, updates=2))
    path = place / "out" / improve.CHECKPOINT
    arrays = checkpoint(place)
    settings = json.loads(str(arrays["settings"]))
    assert settings.pop("device") == "cpu"
    np.savez(path, **arrays | {"settings": np.array(json.dumps(settings))})
    with pytest.raises(ValueError, match="device was cpu, now gpu"):
        command(*words(place, updates=3, device="gpu"))
    assert command(*words(place, updates=3)) == 0


@pytest.mark.parametrize("which", ["evaluate", "improve"])
def test_a_full_card_says_what_to_lower(device, place, monkeypatch, capsys, which):  # noqa: F811
    def full(*arguments):
        raise device.cuda.memory.OutOfMemoryError(1 << 30, 1 << 31)

    monkeypatch.setitem(OPERATORS, "GlobalAveragePool", full)
    monkeypatch.setattr(minires.onnx.Network, "try_size", lambda self, size: None)
    assert cli.main(line(place, which)) == 2
    error = capsys.readouterr().err
    assert "the GPU's memory is full" in error
    assert "lower --batch" in error


@pytest.mark.parametrize("which", ["evaluate", "improve"])
def test_without_cupy_the_remedy_is_one_line(place, monkeypatch, capsys, which):  # noqa: F811
    monkeypatch.setitem(sys.modules, "cupy", None)
    before = sorted(place.iterdir())
    assert cli.main(line(place, which)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'minires[gpu13]'" in error
    assert sorted(place.iterdir()) == before


def line(place, which):  # noqa: F811
    """A command line for a GPU."""
    if which == "improve":
        return words(place, device="gpu")
    return ["evaluate", str(place / "n.onnx"), "--images", str(place / "val"), "--device", "gpu"]
