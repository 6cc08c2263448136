"""The forms that operators had in earlier and later versions of the standard, opset 7 to 23.

Each case is a node as a file of that version would hold it, against onnxruntime: what was an
attribute became an input, what was one number became a list.
"""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx_models import node, runtime, write

import minires.onnx

ARRAYS = {
    "low": np.float32(-0.5),
    "high": np.float32(0.5),
    "ratio": np.float32(0.3),
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 3]),
    "negative": np.array([0, 0, -1, 1, 0, 0, 0, -2]),
    "two pads": np.array([1, 2, 3, 0]),
    "rows": np.array([-2, -1]),
    "pixels": np.array([2, 3]),
    "one": np.array([1]),
    "parts": np.array([1, 2]),
    "starts": np.array([1, -1]),
    "ends": np.array([7, -100]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, -2]),
    "places": np.array([[2, 0], [-1, 1]]),
    "shape": np.array([2, 1, 3, 8, 8]),
    "none": np.zeros(0, np.float32),
    "larger": np.array([1, 1, 2.5, 1.5], np.float32),
    "slope": np.array([0.1, 0.2, 0.3], np.float32).reshape(3, 1, 1),
    "bn": np.array([0.5, 1.5, 2.5], np.float32),
    "mu": np.array([0.7, 0.2, 1.1], np.float32),
}
NAMES = {name: name.replace(" ", "_") for name in ARRAYS}

CASES = [  # (versions, node)
    ((7, 8, 9, 10), node("Clip", "x", "y", min=-0.5, max=0.5)),
    ((7, 10), node("Clip", "x", "y")),
    ((11, 12, 13, 23), node("Clip", "x low high", "y")),
    ((11, 13, 23), node("Clip", "x - high", "y")),
    ((7, 8, 10), node("Dropout", "x", "y", ratio=0.3)),
    ((12, 13, 22), node("Dropout", "x ratio", "y")),
    ((7, 10), node("Pad", "x", "y", pads=[0, 0, 1, 2, 0, 0, 0, 3], value=0.5)),
    ((11, 13, 18, 19, 21, 23), node("Pad", "x pads high", "y")),
    ((11, 13), node("Pad", "x negative", "y")),
    ((18, 23), node("Pad", "x two_pads - rows", "y")),
    ((7, 11, 13), node("ReduceMean", "x", "y", axes=[2, 3])),
    ((7, 11, 13), node("ReduceMean", "x", "y", axes=[-1, 1], keepdims=0)),
    ((18, 23), node("ReduceMean", "x pixels", "y", keepdims=0)),
    ((18, 23), node("ReduceMean", "x", "y", noop_with_empty_axes=1)),
    ((7, 23), node("ReduceMean", "x", "y")),
    ((7, 11), node("ReduceSum", "x", "y", axes=[1])),
    ((13, 23), node("ReduceSum", "x one", "y")),
    ((7, 11), node("Unsqueeze", "x", "y", axes=[0, 3])),
    ((13, 21, 23), node("Unsqueeze", "x starts", "y")),
    ((7, 11), node("Split", "x", "y z", axis=1, split=[1, 2])),
    ((13, 18, 23), node("Split", "x parts", "y z", axis=1)),
    ((18, 23), node("Split", "x", "y z", axis=1, num_outputs=2)),
    ((7, 9), node("Slice", "x", "y", starts=[1, -3], ends=[7, 100], axes=[2, 3])),
    ((10, 11, 13, 23), node("Slice", "x starts ends axes steps", "y")),
    ((7, 11, 13, 23), node("Gather", "x places", "y", axis=1)),
    ((10,), node("Resize", "x larger", "y", mode="nearest")),
    ((10,), node("Resize", "x larger", "y", mode="linear")),
    ((11, 13, 18, 19), node("Resize", "x none larger", "y", mode="linear")),
    ((11, 13, 18, 19), node("Resize", "x none larger", "y", mode="nearest")),
    ((11, 13, 18, 19), node("Resize", "x none larger", "y", mode="cubic")),
    ((8, 13, 23), node("Expand", "x shape", "y")),
    ((7, 9, 14, 15), node("BatchNormalization", "x bn bn mu mu", "y", epsilon=0.01)),
    ((7, 9, 16), node("PRelu", "x slope", "y")),
    ((7, 16), node("LeakyRelu", "x", "y", alpha=0.2)),
    ((7, 22), node("HardSigmoid", "x", "y", alpha=0.3, beta=0.4)),
    ((14, 22), node("HardSwish", "x", "y")),
    ((7, 13, 23), node("Concat", "x x", "y", axis=2)),
    ((13, 23), node("Concat", "x x", "y", axis=-3)),
    ((7, 13), node("Transpose", "x", "y")),
    ((7, 13), node("LRN", "x", "y", size=3, alpha=0.5, beta=0.6, bias=1.5)),
    ((9, 11, 13), node("Flatten", "x", "y", axis=2)),
    ((11, 13, 23), node("Flatten", "x", "y", axis=-1)),
    ((8, 13), node("Max", "x slope high", "y")),
    ((8, 13), node("Min", "x low", "y")),
    ((8, 13), node("Sum", "x slope low", "y")),
    ((7, 14), node("Div", "x slope", "y")),
    ((7, 14), node("Sub", "slope x", "y")),
    ((7, 22), node("GlobalMaxPool", "x", "y")),
    ((7, 13), node("Tanh", "x", "y")),
    ((7, 13), node("Sigmoid", "x", "y")),
    ((7, 13), node("Neg", "x", "y")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1].op_type}-{case[0][0]}")
def test_the_forms_of_each_version(tmp_path, rng, case):
    versions, one = case
    path = tmp_path / "model.onnx"
    images = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    arrays = {NAMES[name]: array for name, array in ARRAYS.items()}
    arrays = {name: array for name, array in arrays.items() if name in one.input}
    for opset in versions:
        write(path, [one], arrays, opset=opset)
        (expected,) = runtime(path)(x=images)
        network = minires.onnx.load(path)
        found = network.run(images)
        assert found.shape == expected.shape, opset
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(opset))
        theta = network.theta.astype(np.float64)
        wide = network.run(images.astype(np.float64), theta=theta)
        assert wide.dtype == np.float64
        np.testing.assert_allclose(wide, expected, rtol=1e-4, atol=1e-5)


# A mean over everything leaves nothing to classify.
WITH_BATCH = [case for case in CASES if case[1].attribute or case[1].op_type != "ReduceMean"]


@pytest.mark.parametrize("case", WITH_BATCH, ids=lambda case: f"{case[1].op_type}-{case[0][0]}")
def test_gradients_pass_through_every_operator(tmp_path, rng, case):
    # Conv → the operator → mean → dense: the slope along a random direction of all weights.
    versions, one = case
    path = tmp_path / "model.onnx"
    images = rng.standard_normal((2, 3, 8, 8))
    arrays = {NAMES[name]: array for name, array in ARRAYS.items()}
    arrays = {name: array for name, array in arrays.items() if name in one.input}
    write(path, [one], arrays, opset=versions[-1])
    size = int(np.prod(minires.onnx.load(path).run(images).shape)) // 2
    arrays |= {
        "k": rng.standard_normal((3, 3, 1, 1)).astype(np.float32),
        "rows2": np.array([2, size]),
        "w": rng.standard_normal((size, 4)).astype(np.float32) / size,
    }
    inside = [name if name != "x" else "c" for name in one.input]
    middle = node(one.op_type, " ".join(n or "-" for n in inside), "m")
    middle.attribute.extend(one.attribute)
    middle.output.extend(one.output[1:])
    tail = [node("Reshape", "m rows2", "f"), node("MatMul", "f w", "y")]
    nodes = [node("Conv", "x k", "c"), middle, *tail]
    write(path, nodes, arrays, shape=(2, 3, 8, 8), opset=versions[-1])
    network = minires.onnx.load(path)
    theta, labels = network.theta.astype(np.float64), np.array([1, 3])

    def loss(theta):
        stats = network.stats.astype(np.float64)
        return network.loss_and_gradient(theta, images, labels, stats, training=False)

    direction = rng.standard_normal(theta.shape)
    _, gradient = loss(theta)
    slope = (loss(theta + 1e-6 * direction)[0] - loss(theta - 1e-6 * direction)[0]) / 2e-6
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-4, atol=1e-8)


WHOLE = [  # (node, ONNX's number of its type)
    (node("Div", "x three", "y"), 7),
    (node("Div", "x three", "y"), 6),
    (node("ReduceMean", "x", "y", axes=[1]), 7),
    (node("ReduceMean", "x", "y", axes=[-1, 2]), 6),
    (node("ReduceSum", "x one", "y"), 6),
    (node("ReduceSum", "x one", "y", keepdims=0), 7),
    (node("Slice", "x far farther one back", "y"), 7),
    (node("Slice", "x far near one", "y"), 7),
    (node("Slice", "x last farther one back", "y"), 7),
]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: f"{case[0].op_type}-{case[1]}")
def test_whole_numbers_keep_their_type_and_round_towards_zero(tmp_path, rng, case):
    one, kind = case
    dtype = {6: np.int32, 7: np.int64}[kind]
    images = rng.integers(-9, 10, (2, 3, 4, 5)).astype(dtype)
    if one.op_type == "Div":
        images[0, 0, 0, 0] = np.iinfo(dtype).min
    arrays = {"three": np.array(3, dtype), "one": np.array([1]), "back": np.array([-1])}
    arrays |= {"far": np.array([-100]), "farther": np.array([-200]), "near": np.array([2])}
    arrays["last"] = np.array([-1])
    arrays = {name: array for name, array in arrays.items() if name in one.input}
    write(tmp_path / "m.onnx", [one], arrays, shape=images.shape, dtype=kind)
    (expected,) = runtime(tmp_path / "m.onnx")(x=images)
    found = minires.onnx.load(tmp_path / "m.onnx").run(images)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (node("Unsqueeze", "x axes", "y"), r"axes \[0, -6\] of a result with 6 axes"),
        (node("Slice", "x axes axes axes", "y"), "starts"),
        (node("Reshape", "x beyond", "y"), "copies an axis that"),
        (node("Squeeze", "x beyond", "y"), "not all of size 1"),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_axes_that_do_not_fit_are_named(tmp_path, one, words):
    arrays = {"axes": np.array([0, -6]), "beyond": np.array([2, 3, 1, 1, 0])}
    if one.op_type != "Unsqueeze":
        arrays["axes"] = np.array([0, -4])
    if one.op_type == "Squeeze":
        arrays["beyond"] = np.array([0, 1])
    arrays = {name: array for name, array in arrays.items() if name in one.input}
    write(tmp_path / "m.onnx", [one], arrays, shape=(2, 3, 1, 1))
    with pytest.raises(minires.onnx.FormatError, match=words):
        minires.onnx.load(tmp_path / "m.onnx")
