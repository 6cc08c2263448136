"""What files of other programs say, and how it is understood: never wrong without a word."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402
from onnx_models import node, runtime, write  # noqa: E402

import minires.onnx  # noqa: E402
from minires.onnx import FormatError, UnsupportedError  # noqa: E402


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


HEAD = [node("Flatten", "x", "f"), node("MatMul", "f w", "z")]


# --- the ends of a graph ------------------------------------------------------------------

ENDS = {
    "clipped": [node("Softmax", "z", "p"), node("Clip", "p low high", "y")],
    "from a sum": [node("Exp", "z", "e"), node("ReduceSum", "e axes", "s", keepdims=1),
                   node("Div", "e s", "y")],
    "with a factor": [node("Softmax", "z", "p"), node("Mul", "p high", "y")],
}  # fmt: skip


@pytest.mark.parametrize("end", list(ENDS))
def test_outputs_that_are_probabilities_already_are_taken_as_such(path, rng, end):
    arrays = {"w": normal(rng, 192, 4) / 8, "low": np.float32(0), "high": np.float32(1)}
    arrays["axes"] = np.array([1])
    write(path, [*HEAD, *ENDS[end]], arrays)
    network = minires.onnx.load(path)
    assert network.output_kind == "probabilities"
    assert "probabilities" in network.summary()
    images, labels = normal(rng, 5, 3, 8, 8), np.array([0, 1, 2, 3, 0])
    (expected,) = runtime(path)(x=images)
    np.testing.assert_allclose(network.predict(network.theta, images), expected, atol=1e-6)
    loss, gradient = network.loss_and_gradient(network.theta, images, labels)
    np.testing.assert_allclose(loss, -np.log(expected[range(5), labels]).mean(), rtol=1e-4)
    write(path, [*HEAD[:1], node("MatMul", "f w", "y")], arrays)
    plain = minires.onnx.load(path)
    assert plain.output_kind == "logits"
    _, slope = plain.loss_and_gradient(plain.theta, images, labels)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)


def test_probabilities_are_seen_at_the_first_picture_where_no_size_is_known(path, rng):
    arrays = {"w": normal(rng, 4, 3, 1, 1), "low": np.float32(0), "high": np.float32(1)}
    nodes = [
        node("Conv", "x w", "c"),
        node("GlobalAveragePool", "c", "g"),
        node("Flatten", "g", "z"),
    ]
    write(path, [*nodes, *ENDS["clipped"]], arrays, shape=(None, 3, None, None))
    images = normal(rng, 5, 3, 8, 8)
    network = minires.onnx.load(path)
    (expected,) = runtime(path)(x=images)
    np.testing.assert_allclose(network.predict(network.theta, images), expected, atol=1e-6)


def test_a_softmax_of_a_softmax_is_refused(path, rng):
    nodes = [*HEAD, node("Softmax", "z", "p"), node("Softmax", "p", "y")]
    write(path, nodes, {"w": normal(rng, 192, 4)})
    network = minires.onnx.load(path)
    images = normal(rng, 2, 3, 8, 8)
    assert network.run(images).shape == (2, 4)
    with pytest.raises(UnsupportedError, match="Softmax of a Softmax"):
        network.predict(network.theta, images)


def test_one_output_behind_a_sigmoid_is_refused_with_the_remedy(path, rng):
    write(path, [*HEAD, node("Sigmoid", "z", "y")], {"w": normal(rng, 192, 1)})
    network = minires.onnx.load(path)
    with pytest.raises(UnsupportedError, match="Export the network with a softmax"):
        network.predict(network.theta, normal(rng, 2, 3, 8, 8))


def test_one_of_several_outputs_is_named(path, rng):
    arrays = {"w": normal(rng, 192, 4), "v": normal(rng, 192, 7)}
    nodes = [*HEAD, node("MatMul", "f v", "side")]
    write(path, nodes, arrays, outputs=["z", "side"])
    images = normal(rng, 2, 3, 8, 8)
    both = minires.onnx.load(path)
    with pytest.raises(UnsupportedError, match="--output"):
        both.predict(both.theta, images)
    one = minires.onnx.load(path, output="z")
    assert (one.size, one.classes) == (192 * 4, 4)
    np.testing.assert_allclose(one.logits(one.theta, images), runtime(path)(x=images)[0], rtol=1e-4)
    new = path.with_name("new.onnx")
    minires.onnx.save(one, new, theta=2 * one.theta)
    z, side = runtime(new)(x=images)
    np.testing.assert_allclose(z, 2 * runtime(path)(x=images)[0], rtol=1e-5)
    np.testing.assert_array_equal(side, runtime(path)(x=images)[1])
    with pytest.raises(ValueError, match="there is none named 'other'"):
        minires.onnx.load(path, output="other")


def test_predictions_believe_no_declared_number_of_classes(path, rng):
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    model = write(path, nodes, {"w": normal(rng, 192, 4)}, shape=(None, 3, None, None))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 10**9]))
    onnx.save(model, path)
    network = minires.onnx.load(path)
    assert network.predict(network.theta, normal(rng, 5, 3, 8, 8)).shape == (5, 4)


# --- the inputs of a graph ----------------------------------------------------------------


@pytest.mark.parametrize("scale", [("Sub", "Div"), ("Mul", "Add")])
def test_what_prepares_the_images_is_no_weight(path, rng, scale):
    arrays = {"m": normal(rng, 3, 1, 1), "s": 1 + normal(rng, 3, 1, 1) ** 2}
    arrays |= {"k": normal(rng, 6, 3, 3, 3), "b": normal(rng, 6, 1, 1)}
    nodes = [node(scale[0], "x m", "a"), node(scale[1], "a s", "c")]
    nodes += [node("Conv", "c k", "d"), node("Add", "d b", "y")]
    write(path, nodes, arrays)
    network = minires.onnx.load(path)
    assert [entry.name for entry in network.weights] == ["k", "b"]
    images = normal(rng, 2, 3, 8, 8)
    np.testing.assert_allclose(
        network.run(images), runtime(path)(x=images)[0], rtol=1e-3, atol=1e-4
    )


def test_pictures_of_bytes(path, rng):
    arrays = {"m": np.float32(127.5), "k": normal(rng, 4, 3, 3, 3)}
    nodes = [node("Cast", "x", "a", to=TensorProto.FLOAT), node("Div", "a m", "b")]
    nodes += [
        node("Conv", "b k", "c"),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "y"),
    ]
    model = write(path, nodes, arrays, dtype=TensorProto.UINT8)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 4]))
    onnx.save(model, path)
    images = rng.integers(256, size=(3, 3, 8, 8)).astype(np.uint8)
    network = minires.onnx.load(path)
    assert (network.input_dtype, network.input_layout) == (np.uint8, "NCHW")
    (expected,) = runtime(path)(x=images)
    found = network.logits(network.theta, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    loss, gradient = network.loss_and_gradient(network.theta, images, np.array([0, 1, 2]))
    assert np.isfinite(loss)
    assert gradient.any()
    with pytest.raises(ValueError, match="expected uint8"):
        network.logits(network.theta, images.astype(np.float32))


def test_a_batch_written_as_minus_one_is_free(path, rng):
    model = write(path, [*HEAD[:1], node("MatMul", "f w", "y")], {"w": normal(rng, 192, 4)})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, path)
    network = minires.onnx.load(path)
    assert network.fixed_batch is None
    assert network.logits(network.theta, normal(rng, 5, 3, 8, 8)).shape == (5, 4)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2
    onnx.save(model, path)
    with pytest.raises(FormatError, match="-2"):
        minires.onnx.load(path)


def test_a_free_batch_that_a_reshape_binds_is_taken_one_by_one(path, rng):
    arrays = {"w": normal(rng, 192, 4), "one": np.array([1, 192])}
    write(path, [node("Reshape", "x one", "f"), node("MatMul", "f w", "y")], arrays)
    network = minires.onnx.load(path)
    assert network.fixed_batch == 1
    images = normal(rng, 3, 3, 8, 8)
    each = [runtime(path)(x=images[i : i + 1])[0] for i in range(3)]
    found = network.logits(network.theta, images)
    np.testing.assert_allclose(found, np.concatenate(each), rtol=1e-4, atol=1e-5)


# --- nodes --------------------------------------------------------------------------------


def test_nodes_in_any_order(path, rng):
    nodes = [*HEAD, node("Relu", "z", "r"), node("Neg", "r", "n"), node("Add", "n z", "y")]
    arrays = {"w": normal(rng, 192, 4)}
    write(path, nodes, arrays)
    images = normal(rng, 2, 3, 8, 8)
    expected = minires.onnx.load(path).run(images)
    write(path, [nodes[i] for i in (4, 2, 0, 3, 1)], arrays)
    network = minires.onnx.load(path)
    np.testing.assert_array_equal(network.run(images), expected)
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=2 * network.theta)
    assert [n.op_type for n in onnx.load(new).graph.node] == [
        "Add",
        "Relu",
        "Flatten",
        "Neg",
        "MatMul",
    ]
    write(path, [*nodes[:4], node("Add", "n y", "z2"), node("Neg", "z2", "y")], arrays)
    with pytest.raises(FormatError, match="not defined before it is used"):
        minires.onnx.load(path)


def test_a_node_that_stands_there_twice_is_taken_once(path, rng):
    nodes = [node("Identity", "x", "i"), node("Identity", "x", "i"), node("Neg", "i", "y")]
    write(path, nodes)
    images = normal(rng, 2, 3, 8, 8)
    np.testing.assert_array_equal(minires.onnx.load(path).run(images), -images)


def test_an_output_that_is_named_twice_is_one(path, rng):
    model = write(path, [*HEAD[:1], node("MatMul", "f w", "y")], {"w": normal(rng, 192, 4)})
    model.graph.output.append(model.graph.output[0])
    onnx.save(model, path)
    network = minires.onnx.load(path)
    images = normal(rng, 2, 3, 8, 8)
    assert network.run(images).shape == network.predict(network.theta, images).shape == (2, 4)


def test_numbers_for_each_channel_make_spatial_0_mean_1(path, rng):
    arrays = {n: 1 + normal(rng, 3) ** 2 for n in "sbmv"}
    write(path, [node("BatchNormalization", "x s b m v", "y")], arrays, opset=7)
    images = normal(rng, 2, 3, 8, 8)
    expected = minires.onnx.load(path).run(images)
    write(path, [node("BatchNormalization", "x s b m v", "y", spatial=0)], arrays, opset=7)
    np.testing.assert_array_equal(minires.onnx.load(path).run(images), expected)


@pytest.mark.parametrize("expanded", [False, True])
def test_a_class_token_is_a_weight(path, rng, expanded):
    """A tiny vision transformer's first layers: patches, a token in front, places added."""
    arrays = {"k": normal(rng, 5, 3, 4, 4), "token": normal(rng, 1, 1, 5), "w": normal(rng, 5, 4)}
    arrays |= {"place": normal(rng, 1, 5, 5), "zero": np.array([0]), "rest": np.array([1, 5])}
    arrays |= {"rows": np.array([0, 5, 4]), "first": np.array(0)}
    nodes = [node("Conv", "x k", "c", strides=[4, 4]), node("Reshape", "c rows", "d")]
    nodes += [node("Transpose", "d", "patches", perm=[0, 2, 1])]
    token = "token"
    if expanded:
        nodes += [node("Shape", "x", "all"), node("Gather", "all zero", "n")]
        nodes += [node("Concat", "n rest", "wide", axis=0), node("Expand", "token wide", "tokens")]
        token = "tokens"
    nodes += [node("Concat", f"{token} patches", "s", axis=1), node("Add", "s place", "p")]
    nodes += [node("Gather", "p first", "g", axis=1), node("MatMul", "g w", "y")]
    write(path, nodes, arrays, shape=(None if expanded else 1, 3, 8, 8))
    network = minires.onnx.load(path)
    assert {entry.name for entry in network.weights} == {"k", "token", "place", "w"}
    images = normal(rng, 3 if expanded else 1, 3, 8, 8)
    (expected,) = runtime(path)(x=images)
    np.testing.assert_allclose(network.run(images), expected, rtol=1e-4, atol=1e-5)
    labels = np.zeros(len(images), np.int64)
    gradient = network.loss_and_gradient(network.theta, images, labels)[1]
    assert network.arrays(gradient)["token"].any()


CURVES = {
    "Elu": {"alpha": 1.3}, "Selu": {}, "Celu": {"alpha": 0.7}, "Gelu": {}, "Erf": {}, "Exp": {},
    "Softplus": {}, "Softsign": {}, "Mish": {}, "Abs": {}, "Log": {}, "Pow": {}, "ReduceMax": {},
    "Where": {}, "LayerNormalization": {},
    "ConvTranspose": {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0],
                      "group": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", list(CURVES))
def test_gradients_of_more_operators_are_slopes(path, rng, name):
    """Forward they are held against the standard's own tests, in test_onnx_standard."""
    arrays = {"k": normal(rng, 3, 3, 1, 1), "w": normal(rng, 192, 4), "two": np.float32(2.5)}
    arrays |= {"scale": 1 + normal(rng, 8), "bias": normal(rng, 8), "axes": np.array([3])}
    arrays |= {"mask": rng.random((3, 8, 8)) < 0.5, "low": np.float32(0.1)}
    given = {"Pow": "a two", "ReduceMax": "a", "Where": "mask a x", "ConvTranspose": "a up shift",
             "LayerNormalization": "a scale bias"}.get(name, "a")  # fmt: skip
    nodes = [node("Conv", "x k", "c"), node("Identity", "c", "a")]
    if name == "ConvTranspose":
        arrays |= {"up": normal(rng, 3, 2, 3, 2), "shift": normal(rng, 6)}
        arrays["w"] = normal(rng, 6 * 17 * 8, 4) / 4
    if name in ("Log", "Pow"):  # of positive numbers
        nodes[1:] = [node("Abs", "c", "d"), node("Add", "d low", "a")]
    if name == "ReduceMax":
        arrays["w"] = normal(rng, 24, 4)
        given, CURVES[name]["axes"] = "a", [3]
    nodes += [node(name, given, "b", **CURVES[name]), node("Flatten", "b", "f")]
    nodes += [node("MatMul", "f w", "y")]
    opset = 22 if name in ("Gelu", "Mish") else 17
    write(path, nodes, arrays, opset=opset, ir=10 if opset > 20 else 8)
    network = minires.onnx.load(path)
    images, labels = rng.standard_normal((3, 3, 8, 8)), np.array([0, 1, 3])
    (expected,) = runtime(path)(x=images.astype(np.float32))
    np.testing.assert_allclose(
        network.run(images.astype(np.float32)), expected, rtol=2e-4, atol=2e-4
    )
    theta = network.theta.astype(np.float64)
    _, gradient = network.loss_and_gradient(theta, images, labels)
    for _ in range(3):
        step = 1e-6 * rng.standard_normal(theta.shape)
        ends = (
            network.loss_and_gradient(t, images, labels)[0] for t in (theta + step, theta - step)
        )
        upper, lower = ends
        np.testing.assert_allclose(2 * gradient @ step, upper - lower, rtol=1e-3, atol=1e-11)


RESIZES = {  # settings, opset, new height and width of 8 × 8 pixels
    "nearest": ({}, 13, (16, 5)),
    "nearest, down from corners": (
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 11, (3, 24)),
    "linear": ({"mode": "linear"}, 13, (13, 3)),
    "linear, corners": (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, 18, (5, 11)),
    "linear, as PyTorch": (
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, 11, (1, 12)),
    "cubic": ({"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, 19, (17, 6)),
}  # fmt: skip


@pytest.mark.parametrize("by", ["sizes", "scales"])
@pytest.mark.parametrize("name", list(RESIZES))
def test_images_that_are_resized(path, rng, name, by):
    settings, opset, size = RESIZES[name]
    arrays = {"k": normal(rng, 5, 3, 1, 1), "w": normal(rng, 5, 4)}
    arrays["sizes"] = np.array([2, 5, *size])
    arrays["scales"] = np.array([1, 1, size[0] / 8 + 1e-6, size[1] / 8 + 1e-6], np.float32)
    arrays["none"] = np.zeros(0, np.float32)
    given = {"sizes": "a none none sizes", "scales": "a none scales"}[by]
    nodes = [node("Conv", "x k", "a"), node("Resize", given, "b", **settings)]
    nodes += [node("Tanh", "b", "c"), node("GlobalAveragePool", "c", "d")]
    nodes += [node("Flatten", "d", "f"), node("MatMul", "f w", "y")]
    write(path, nodes, arrays, opset=opset, shape=(2, 3, 8, 8))
    network = minires.onnx.load(path)
    assert {entry.name for entry in network.weights} == {"k", "w"}
    images = rng.standard_normal((2, 3, 8, 8))
    (expected,) = runtime(path)(x=images.astype(np.float32))
    np.testing.assert_allclose(network.run(images.astype(np.float32)), expected, atol=1e-5)
    theta, labels = network.theta.astype(np.float64), np.array([1, 3])
    _, gradient = network.loss_and_gradient(theta, images, labels)
    step = 1e-6 * rng.standard_normal(theta.shape)
    upper, lower = (
        network.loss_and_gradient(t, images, labels)[0] for t in (theta + step, theta - step)
    )
    np.testing.assert_allclose(2 * gradient @ step, upper - lower, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("axis", [None, 0])
def test_weights_stored_as_whole_numbers_are_read_and_written_as_floats(path, rng, axis):
    whole = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    count = 1 if axis is None else 4
    scale = (0.01 + 0.02 * rng.random(count)).astype(np.float32)
    zero = rng.integers(-3, 4, count).astype(np.int8)
    arrays = {
        "q": whole,
        "s": scale if axis == 0 else scale[0],
        "z": zero if axis == 0 else zero[0],
    }
    extra = {} if axis is None else {"axis": axis}
    nodes = [node("DequantizeLinear", "q s z", "k", **extra), node("Conv", "x k", "y")]
    write(path, nodes, arrays)
    network = minires.onnx.load(path)
    assert [entry.name for entry in network.weights] == ["k"]
    images = normal(rng, 2, 3, 8, 8)
    np.testing.assert_allclose(
        network.run(images), runtime(path)(x=images)[0], rtol=1e-4, atol=1e-4
    )
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=network.theta * 1.01)
    np.testing.assert_allclose(
        runtime(new)(x=images)[0], network.run(images) * 1.01, rtol=1e-4, atol=1e-4
    )


def test_words_of_a_file_reach_no_terminal(path, rng):
    nasty = "a\x1b[2Jb\ad\u202ee"
    path = path.with_name(f"{nasty}.onnx")
    write(path, [node("Flatten", "x", "f"), helper.make_node("MatMul", ["f", "w"], [nasty], nasty)],
          {"w": normal(rng, 192, 4)}, outputs=[nasty])  # fmt: skip
    network = minires.onnx.load(path)
    for text in (network.summary(), repr(network)):
        assert not set("\x1b\a\u202e") & set(text)
    write(path, [helper.make_node("Evil" + nasty, ["x"], ["y"], nasty)])
    with pytest.raises(UnsupportedError) as caught:
        minires.onnx.load(path)
    assert not set("\x1b\a\u202e\n") & set(str(caught.value))
