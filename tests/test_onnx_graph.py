"""How a file becomes a network: roles, sharing, layouts, batches, and the traps of real files."""

import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import classifier, node, runtime, write  # noqa: E402

import minires.onnx  # noqa: E402
from minires.onnx import UnsupportedError, graph, operators  # noqa: E402
from minires.onnx.limits import COPIES  # noqa: E402


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture
def network(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays, outputs=["y"])
    return minires.onnx.load(path)


def agrees(path, images, **options):
    """Whether a file's outputs are onnxruntime's; returns the network."""
    network = minires.onnx.load(path)
    expected = runtime(path)(x=images)
    found = network.run(images, **options)
    for a, b in zip(found if isinstance(found, tuple) else [found], expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    return network


# --- the interface ------------------------------------------------------------------------


def test_minires_does_not_import_onnx():
    code = (
        "import sys, minires, minires.onnx; assert 'onnx' not in sys.modules\n"
        "sys.modules['onnx'] = None\n"
        "try: minires.onnx.load(sys.argv[1])\n"
        "except ImportError as error: assert \"pip install 'minires[onnx]'\" in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code, __file__], check=True)


def test_roles_follow_the_slots(network):
    assert [e.name for e in network.weights] == ["w1", "scale", "shift", "w2", "b2", "w3", "b3"]
    assert [e.name for e in network.statistics] == ["mean", "var"]
    assert (network.classes, network.fixed_batch, network.output_kind) == (5, None, "logits")
    assert network.batch_norms() == {"live": 1, "folded": 1, "decomposed": 0}
    assert "1 live, 1 folded" in network.summary()
    for name, array in network.arrays().items():
        np.testing.assert_array_equal(array, network.graph.arrays[name])


def test_outputs_logits_and_predictions(network, path, rng):
    images = normal(rng, 5, 3, 8, 8)
    (expected,) = runtime(path)(x=images)
    np.testing.assert_allclose(network.run(images), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(network.run({"x": images}), expected, rtol=1e-5, atol=1e-6)
    logits = network.logits(network.theta, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    few = network.logits(network.theta, images, batch=2)
    np.testing.assert_allclose(few, expected, rtol=1e-5, atol=1e-6)
    predictions = network.predict(network.theta, images)
    np.testing.assert_allclose(predictions.sum(axis=-1), 1, rtol=1e-5)


def test_members_are_each_predicted(network, rng):
    images = normal(rng, 4, 3, 8, 8)
    members = network.theta + 0.1 * normal(rng, 3, network.theta.size)
    together = network.logits(members, images)
    for one, theta in zip(together, members, strict=True):
        np.testing.assert_array_equal(one, network.logits(theta, images))


@pytest.mark.parametrize("training", [False, True])
def test_gradient_is_the_slope_of_the_loss(network, rng, training):
    theta = network.theta.astype(np.float64)
    images, labels = rng.standard_normal((4, 3, 8, 8)), np.array([0, 1, 4, 2])

    def loss(theta):
        stats = network.stats.astype(np.float64)
        return network.loss_and_gradient(theta, images, labels, stats, training=training)

    _, gradient = loss(theta)
    for _ in range(5):
        direction = rng.standard_normal(theta.shape)
        step = 1e-6 * direction
        slope = (loss(theta + step)[0] - loss(theta - step)[0]) / 2e-6
        np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-5)


def test_training_updates_the_statistics_in_place(network, rng):
    images, labels = normal(rng, 4, 3, 8, 8), np.arange(4)
    stats = network.stats.copy()
    network.loss_and_gradient(network.theta, images, labels, stats)
    assert not np.array_equal(stats, network.stats)
    before = network.stats.copy()
    network.loss_and_gradient(network.theta, images, labels, training=False)
    np.testing.assert_array_equal(network.stats, before)
    # Without stats= the network's own are read, never changed; also where θ has another type.
    network.loss_and_gradient(network.theta, images, labels)
    wide = network.theta.astype(float), images.astype(float)
    network.loss_and_gradient(*wide, labels)
    np.testing.assert_array_equal(network.stats, before)


def test_wrong_arguments_are_named(network, rng):
    images = normal(rng, 2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"expected \(any, 3, 8, 8\) in the layout NCHW: pass"):
        network.run(images.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"in the layout NCHW$"):
        network.run(images[..., :5])
    turned = images.transpose(0, 2, 3, 1)
    with pytest.raises(ValueError, match=r"pass images.transpose") as error:
        network.run(turned)
    remedy = str(error.value).rpartition("images.transpose")[2]
    assert turned.transpose(*map(int, remedy.strip("()").split(", "))).shape == images.shape
    size = f"{network.theta.size:,} weights, {network.stats.size:,} statistics"
    assert repr(network).endswith(f": input 3×8×8 (NCHW), {size}, {network.classes} classes>")
    with pytest.raises(ValueError, match="expected float32"):
        network.run(images.astype(np.uint8))
    with pytest.raises(ValueError, match="theta is"):
        network.logits(network.theta[:-1], images)
    with pytest.raises(ValueError, match="input 'x' is missing"):
        network.run({"z": images})
    with pytest.raises(ValueError, match="labels go from"):
        network.loss_and_gradient(network.theta, images, np.array([0, 5]), network.stats.copy())


def test_values_are_freed_after_their_last_use(path, rng):
    # Twenty layers of 512 KiB each: at no time are more than two alive.
    arrays = {f"w{i}": normal(rng, 8, 8, 1, 1) for i in range(20)}
    names = ["x", *(f"t{i}" for i in range(19)), "y"]
    nodes = [node("Conv", f"{names[i]} w{i}", names[i + 1]) for i in range(20)]
    write(path, nodes, arrays, shape=(1, 8, 128, 128))
    size = 8 * 128 * 128 * 4
    minires.onnx.load(path, memory=(COPIES + 1.5) * size)
    with pytest.raises(minires.onnx.SecurityError):
        minires.onnx.load(path, memory=(COPIES + 1) * size - 1)


def test_a_step_may_need_copies_of_its_input_but_a_view_needs_none(path):
    images = np.ones((1, 8, 128, 128), np.float32)
    write(path, [node("Flatten", "x", "y")], shape=images.shape)
    minires.onnx.load(path, memory=COPIES * images.nbytes).run(images)
    write(path, [node("Tanh", "x", "y")], shape=images.shape)
    enough = (1 + COPIES) * images.nbytes
    minires.onnx.load(path, memory=enough).run(images)
    with pytest.raises(minires.onnx.SecurityError, match="memory"):
        minires.onnx.load(path, memory=enough - 1).run(images)


def test_arrays_of_the_file_that_steps_only_look_at_are_not_counted_again(path, rng):
    """The network holds them anyway: views of them take no memory of a run."""
    arrays = {"v": normal(rng, 1000, 500), "w": normal(rng, 500, 1000)}
    nodes = [node("CastLike", "v x", "m"), node("CastLike", "w x", "n"), node("Flatten", "x", "r")]
    nodes += [node("MatMul", "r m", "p"), node("MatMul", "p n", "y")]
    write(path, nodes, arrays, shape=(1, 1000, 1, 1), opset=15)
    network = minires.onnx.load(path, memory=int(1.5 * arrays["v"].nbytes))
    network.run(normal(rng, 1, 1000, 1, 1))


# --- the traps of real files (padding and pooling: see test_onnx_differential) ------------


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
def test_average_pool_counts_the_border_or_not(path, rng, counted, ceil):
    # Under ceil_mode the last window reaches beyond the border; there nothing counts.
    settings = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 0], "strides": [2, 2]}
    settings |= {"count_include_pad": counted, "ceil_mode": ceil}
    write(path, [node("AveragePool", "x", "y", **settings)])
    agrees(path, normal(rng, 2, 3, 8, 8))


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (9, 2), (13, 1), (13, -1)])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax_before_opset_13_is_over_all_axes_from_one_on(path, rng, operator, opset, axis):
    write(path, [node(operator, "x", "y", axis=axis)], opset=opset)
    agrees(path, normal(rng, 2, 3, 8, 8))


def test_separable_convolutions_are_done_in_one_pass(path, rng):
    """A chain as in MobileNetV2: without expansion; after it one with batch norms; a residual."""
    norm = {"s": normal(rng, 6), "o": normal(rng, 6), "m": normal(rng, 6)}
    norm["v"] = normal(rng, 6) ** 2
    arrays = {"d1": normal(rng, 3, 1, 3, 3), "p1": normal(rng, 4, 3, 1, 1), "b1": normal(rng, 4)}
    arrays |= {"e": normal(rng, 6, 4, 1, 1), "d2": normal(rng, 6, 1, 3, 3), "b2": normal(rng, 6)}
    arrays |= {"p2": normal(rng, 4, 6, 1, 1), "zero": np.float32(0), "six": np.float32(6), **norm}
    around = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x d1", "c1", group=3, strides=[2, 1], **around),
        node("Conv", "c1 p1 b1", "c2"),
        node("Conv", "c2 e", "c3"),
        node("BatchNormalization", "c3 s o m v", "c4"),
        node("Clip", "c4 zero six", "c5"),
        node("Conv", "c5 d2 b2", "c6", group=6, **around),
        node("Relu", "c6", "c7"),
        node("Conv", "c7 p2", "c8"),
        node("Add", "c2 c8", "y"),
    ]
    write(path, nodes, arrays)
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert [len(step.parts) for step in network.joined] == [2, 3, 0]
    # What others look at is not joined, and stays what it was.
    write(path, nodes, arrays, outputs=["y", "c7", "c1"])
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert [len(step.parts) for step in network.joined] == [0] * 6


def test_a_convolution_that_others_look_at_keeps_its_own_output(path, rng):
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "r c", "y")]
    write(path, nodes, {"w": normal(rng, 4, 3, 3, 3)})
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert len(network.steps) == 3
    write(path, nodes[:2], {"w": normal(rng, 4, 3, 3, 3)}, outputs=["c", "r"])
    agrees(path, normal(rng, 2, 3, 8, 8))


def test_batch_norm_epsilon_is_the_decimal_that_was_meant(network):
    assert network.graph.nodes[1]["epsilon"] == 1e-3
    assert network.graph.nodes[1]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("attributes", "outputs", "opset"),
    [({"training_mode": 1}, "y", 15), ({}, "y m v s t", 13), ({"spatial": 0}, "y", 7)],
)
def test_batch_norm_in_training_mode_is_refused(path, attributes, outputs, opset):
    shape = (4, 3, 8, 8) if "spatial" in attributes else (4, 3)
    arrays = dict(zip("abcd", np.ones(shape, np.float32), strict=True))
    bn = node("BatchNormalization", "x a b c d", outputs, **attributes)
    write(path, [bn], arrays, opset=opset)
    with pytest.raises(UnsupportedError, match="training mode"):
        minires.onnx.load(path)


def test_dropout_in_training_mode_is_refused_and_ours_drops(path, rng):
    arrays = {"ratio": np.float32(0.5), "train": np.array(True), "w": normal(rng, 192, 4)}
    rest = [node("Flatten", "d", "f"), node("MatMul", "f w", "y")]
    write(path, [node("Dropout", "x ratio train", "d"), *rest], arrays)
    with pytest.raises(UnsupportedError, match="training mode"):
        minires.onnx.load(path)
    write(path, [node("Dropout", "x ratio", "d"), *rest], arrays)
    images, labels = normal(rng, 3, 3, 8, 8), np.arange(3)
    network = agrees(path, images)
    with pytest.raises(ValueError, match="rng="):
        network.loss_and_gradient(network.theta, images, labels)
    losses = {
        float(network.loss_and_gradient(network.theta, images, labels, rng=generator)[0])
        for generator in map(np.random.default_rng, (1, 1, 2))
    }
    assert len(losses) == 2


def test_initialisers_may_be_listed_as_inputs(path, rng):
    nodes, arrays = classifier(rng)
    model = write(path, nodes, arrays, ir=3)
    for name, array in arrays.items():
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        model.graph.input.append(info)
    onnx.save(model, path)
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert [value.name for value in network.inputs] == ["x"]


def test_quantised_graphs_are_refused_with_every_operator(path):
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("If", "d", "i", then_branch=onnx.GraphProto(), else_branch=onnx.GraphProto()),
        node("DequantizeLinear", "i s z", "y"),
    ]
    write(path, nodes, {"s": np.float32(1), "z": np.uint8(0)})
    with pytest.raises(UnsupportedError, match="export the float network") as caught:
        minires.onnx.load(path)
    assert [name for name, _, _ in caught.value.operators] == ["QuantizeLinear", "If"]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "operator", ["QLinearConv", "ConvInteger", "LSTM", "GRU", "NonMaxSuppression"]
)
def test_what_is_out_of_scope_is_refused_by_name(path, operator):
    write(path, [node("Relu", "x", "r"), node(operator, "r", "y")])
    with pytest.raises(UnsupportedError, match=rf"not implemented: {operator} \(1×") as caught:
        minires.onnx.load(path)
    quantised = operator in ("QLinearConv", "ConvInteger")
    assert ("instead of the quantised one" in str(caught.value)) == quantised


def test_a_fixed_reshape_fixes_the_batch(path, rng):
    arrays = {"shape": np.array([1, 192]), "w": normal(rng, 192, 4)}
    write(path, [node("Reshape", "x shape", "f"), node("MatMul", "f w", "y")], arrays, (1, 3, 8, 8))
    images = normal(rng, 4, 3, 8, 8)
    network = agrees(path, images[:1])
    assert network.fixed_batch == 1
    with pytest.raises(ValueError, match=r"expected \(1, 3, 8, 8\)"):
        network.run(images)
    (each,) = zip(*(runtime(path)(x=images[i : i + 1]) for i in range(4)), strict=True)
    found = network.logits(network.theta, images)
    np.testing.assert_allclose(found, np.concatenate(each), rtol=1e-5, atol=1e-5)
    arrays["shape"] = np.array([2, 192])
    write(path, [node("Reshape", "x shape", "f"), node("MatMul", "f w", "y")], arrays, (2, 3, 8, 8))
    network = minires.onnx.load(path)
    assert network.logits(network.theta, images).shape == (4, 4)
    with pytest.raises(ValueError, match="takes 2 images at a time, and 3 is not a multiple"):
        network.logits(network.theta, images[:3])


def test_a_declared_batch_does_not_bind_a_graph_that_is_free(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays, shape=(1, 3, 8, 8))
    network = minires.onnx.load(path)
    assert network.fixed_batch is None
    assert network.run(normal(rng, 4, 3, 8, 8)).shape == (4, 5)


@pytest.mark.parametrize(
    ("shape", "allowzero"), [([0, -1], 0), ([-1, 192], 0), ([2, 0, 64], 0), ([2, -1], 1)]
)
def test_reshape_copies_zeros_and_finds_the_rest(path, rng, shape, allowzero):
    extra = {"allowzero": allowzero} if allowzero else {}
    reshape = node("Reshape", "x shape", "y", **extra)
    write(path, [reshape], {"shape": np.array(shape)}, shape=(2, 3, 8, 8), opset=15)
    agrees(path, normal(rng, 2, 3, 8, 8))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_narrow_and_wide_weights_become_float32(path, rng, kind):
    weights = normal(rng, 4, 3, 3, 3)
    model = write(path, [node("Conv", "x w", "y")], {"w": weights})
    if kind == "bfloat16":
        stored = (weights.view(np.uint32) >> 16).astype(np.uint16)
        exact = (stored.astype(np.uint32) << 16).view(np.float32)
        tensor = model.graph.initializer[0]
        tensor.data_type, tensor.raw_data = TensorProto.BFLOAT16, stored.tobytes()
    else:
        exact = weights.astype(kind).astype(np.float32)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.astype(kind), "w"))
    onnx.save(model, path)
    network = minires.onnx.load(path)
    assert network.theta.dtype == np.float32
    np.testing.assert_array_equal(network.arrays()["w"], exact)


def test_a_float16_file_answers_in_float16(path, rng):
    weights = normal(rng, 4, 3, 3, 3).astype(np.float16)
    write(path, [node("Conv", "x w", "y")], {"w": weights}, dtype=TensorProto.FLOAT16)
    images = normal(rng, 2, 3, 8, 8).astype(np.float16)
    found = minires.onnx.load(path).run(images)
    assert found.dtype == np.float16
    (expected,) = runtime(path)(x=images)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_shared_weights_stay_one_and_their_gradients_add(path, rng):
    arrays = {"w": normal(rng, 3, 3, 1, 1), "v": normal(rng, 192, 4)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Tanh", "a", "t"),
        node("Conv", "t w", "b"),
        node("Flatten", "b", "f"),
        node("MatMul", "f v", "y"),
    ]
    write(path, nodes, arrays)
    images, labels = normal(rng, 2, 3, 8, 8).astype(np.float64), np.array([1, 3])
    network = minires.onnx.load(path)
    assert network.theta.size == 9 + 192 * 4
    twice = {"w": arrays["w"], "w2": arrays["w"], "v": arrays["v"]}
    write(path, [*nodes[:2], node("Conv", "t w2", "b"), *nodes[3:]], twice)
    apart = minires.onnx.load(path)
    gradients = [
        n.arrays(n.loss_and_gradient(n.theta.astype(np.float64), images, labels)[1])
        for n in (network, apart)
    ]
    np.testing.assert_allclose(gradients[0]["w"], gradients[1]["w"] + gradients[1]["w2"])


def test_weights_behind_views_are_the_arrays_they_start_from(path, rng):
    # A matrix that two layers use, one of them transposed, as tied weights are.
    arrays = {"w": normal(rng, 192, 192), "c": normal(rng, 3, 1, 1, 3)}
    nodes = [
        node("Constant", "", "flat", value=numpy_helper.from_array(normal(rng, 4 * 192))),
        node("Constant", "", "shape", value_ints=[192, 4]),
        node("Reshape", "flat shape", "v"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Transpose", "c", "ct", perm=[3, 0, 1, 2]),
        node("Conv", "x ct", "a"),
        node("Flatten", "a", "f"),
        node("MatMul", "f w", "g"),
        node("MatMul", "g wt", "h"),
        node("MatMul", "h v", "y"),
    ]
    write(path, nodes, arrays)
    images = normal(rng, 2, 3, 8, 8)
    network = agrees(path, images)
    assert {e.name: e.size for e in network.weights} == {"w": 192**2, "c": 9, "flat": 768}
    theta, labels = network.theta.astype(np.float64), np.array([0, 3])
    direction = rng.standard_normal(theta.shape)
    images = images.astype(np.float64)
    _, gradient = network.loss_and_gradient(theta, images, labels)
    up, down = (
        network.loss_and_gradient(theta + s * direction, images, labels)[0] for s in (1e-7, -1e-7)
    )
    np.testing.assert_allclose(gradient @ direction, (up - down) / 2e-7, rtol=1e-4)


def test_weights_that_the_file_computes_are_trainable(path, rng):
    # Batch norm as JAX exports it: the scale over the deviation is folded, and is the weight.
    arrays = {"gamma": normal(rng, 3, 1, 1), "var": normal(rng, 3, 1, 1) ** 2}
    arrays |= {"eps": np.float32(1e-3), "shape": np.array([4, 192])}
    arrays |= {"k": normal(rng, 3, 3, 1, 1)}
    nodes = [
        node("Add", "var eps", "v"),
        node("Sqrt", "v", "s"),
        node("Div", "gamma s", "factor"),
        node("Conv", "x k", "c"),
        node("Mul", "c factor", "a"),
        node("Flatten", "a", "f"),
        node("ConstantOfShape", "shape", "w", value=numpy_helper.from_array(np.ones(1, "f"))),
        node("Gemm", "f w", "y", transB=1),
    ]
    write(path, nodes, arrays)
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert {e.name: e.size for e in network.weights} == {"k": 9, "factor": 3, "w": 768}


def test_scalars_and_bounds_are_constants(path, rng):
    arrays = {
        "half": np.full((1, 1), 0.5, np.float32),
        "low": np.float32(-1),
        "w": np.ones((3, 1, 1), "f"),
    }
    nodes = [
        node("Mul", "x half", "a"),
        node("Max", "a low", "b"),
        node("Clip", "b low", "c"),
        node("Mul", "c w", "y"),
    ]
    write(path, nodes, arrays)
    network = agrees(path, normal(rng, 2, 3, 8, 8))
    assert [e.name for e in network.weights] == ["w"]


@pytest.mark.parametrize("tail", ["none", "identity", "reshape", "before 13"])
def test_the_loss_sees_what_goes_into_a_final_softmax(path, rng, tail):
    arrays = {"w": normal(rng, 192, 4), "shape": np.array([-1, 4, 1, 1])}
    head = [node("Flatten", "x", "f"), node("MatMul", "f w", "z")]
    softmax = [node("Softmax", "z", "y", **({} if tail == "before 13" else {"axis": 1}))]
    if tail == "identity":
        softmax = [node("Softmax", "z", "p", axis=1), node("Identity", "p", "y")]
    if tail == "reshape":
        softmax = [
            node("Reshape", "z shape", "z4"),
            node("Softmax", "z4", "p", axis=1),
            node("Flatten", "p", "y"),
        ]
    write(path, [*head, *softmax], arrays, opset=9 if tail == "before 13" else 13)
    images, labels = normal(rng, 3, 3, 8, 8), np.array([0, 2, 3])
    network = agrees(path, images)
    assert network.output_kind == "softmax"
    logits = images.reshape(3, -1) @ arrays["w"]
    np.testing.assert_allclose(network.logits(network.theta, images), logits, rtol=1e-4)
    np.testing.assert_allclose(
        network.predict(network.theta, images), network.run(images), rtol=1e-4, atol=1e-6
    )
    loss, _ = network.loss_and_gradient(network.theta, images, labels)
    expected = -np.log(network.run(images)[np.arange(3), labels]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_a_softmax_within_the_graph_is_none_at_its_end(path, rng):
    nodes = [node("Flatten", "x", "f"), node("Softmax", "f", "p"), node("MatMul", "p w", "y")]
    write(path, nodes, {"w": normal(rng, 192, 4)})
    assert agrees(path, normal(rng, 2, 3, 8, 8)).output_kind == "logits"


def test_a_final_sigmoid_has_no_logits(path, rng):
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "z"), node("Sigmoid", "z", "y")]
    write(path, nodes, {"w": normal(rng, 192, 4)})
    images = normal(rng, 2, 3, 8, 8)
    network = agrees(path, images)
    with pytest.raises(UnsupportedError, match="Sigmoid"):
        network.predict(network.theta, images)


def test_nhwc_inputs_are_reported_and_transposes_cost_nothing(path, rng):
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c"),
        node("Transpose", "c", "y", perm=[0, 2, 3, 1]),
    ]
    write(path, nodes, {"w": normal(rng, 4, 3, 3, 3)}, shape=(None, 8, 8, 3))
    images = normal(rng, 2, 8, 8, 3)
    network = agrees(path, images)
    assert network.input_layout == "NHWC"
    assert network.run(images).flags.c_contiguous


def test_several_outputs_come_as_a_tuple(path, rng):
    write(path, [node("Split", "x", "a b c", axis=1)], outputs=["c", "a"])
    first, second = minires.onnx.load(path).run(images := normal(rng, 2, 3, 8, 8))
    np.testing.assert_array_equal(first, images[:, 2:])
    np.testing.assert_array_equal(second, images[:, :1])


@pytest.mark.parametrize(
    ("opset", "fits"), [(6, False), (7, True), (28, True), (29, False), (999, False)]
)
def test_operator_sets_outside_the_range_are_refused_by_number(path, opset, fits):
    write(path, [node("Relu", "x", "y")], opset=opset)
    if fits:
        assert minires.onnx.load(path).graph.opset == opset
        return
    with pytest.raises(UnsupportedError, match=f"operator set {opset}: supported are 7 to 28"):
        minires.onnx.load(path)


@pytest.mark.parametrize(("channels", "outputs", "group"), [(4, 4, 4), (4, 12, 4), (4, 6, 2)])
def test_grouped_convolutions_and_their_gradients(path, rng, channels, outputs, group):
    arrays = {"w": normal(rng, outputs, channels // group, 3, 3), "b": normal(rng, outputs)}
    conv = node("Conv", "x w b", "c", group=group, strides=[2, 1], pads=[1, 0, 2, 1])
    nodes = [conv, node("GlobalAveragePool", "c", "g"), node("Flatten", "g", "y")]
    write(path, nodes, arrays, shape=(None, channels, 8, 8))
    network = agrees(path, normal(rng, 2, channels, 8, 8))
    theta = network.theta.astype(np.float64)
    images, labels = rng.standard_normal((2, channels, 8, 8)), np.array([0, 1])
    _, gradient = network.loss_and_gradient(theta, images, labels)
    direction = rng.standard_normal(theta.shape)
    up, down = (
        network.loss_and_gradient(theta + s * direction, images, labels)[0] for s in (1e-6, -1e-6)
    )
    np.testing.assert_allclose(gradient @ direction, (up - down) / 2e-6, rtol=1e-5)


def test_a_declared_output_that_is_wrong_is_a_warning(path):
    model = write(path, [node("Flatten", "x", "y")])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 10]))
    onnx.save(model, path)
    with pytest.warns(UserWarning, match=r"declared \(None, 10\), but is \(1, 192\)"):
        network = minires.onnx.load(path)
    assert network.classes == 192


def test_a_batch_norm_of_other_channels_than_its_convolution_is_refused(path, rng):
    arrays = {"w": normal(rng, 1, 3, 3, 3)} | {n: 1 + normal(rng, 4) ** 2 for n in "sbmv"}
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", "c s b m v", "y")]
    write(path, nodes, arrays)
    with pytest.raises(minires.onnx.FormatError, match="behind a convolution with 1 outputs"):
        minires.onnx.load(path)


def test_a_graph_of_several_outputs_runs_but_is_no_classifier(path, rng):
    write(path, [node("Relu", "x", "y"), node("Neg", "x", "z")], outputs=["y", "z"])
    network = minires.onnx.load(path)
    images = normal(rng, 2, 3, 8, 8)
    assert len(network.run(images)) == 2
    with pytest.raises(minires.onnx.UnsupportedError, match=r"outputs \['y', 'z'\]"):
        network.logits(network.theta, images)


def test_every_operator_between_an_image_and_its_convolution(path, rng):
    arrays = {"w": normal(rng, 4, 3, 3, 3), "half": np.full(1, 0.5, np.float32)}
    arrays |= {"mean": normal(rng, 1, 3, 1, 1), "i0": np.array(0), "i1": np.array([2, 1, 0])}
    arrays["one"] = np.array([1])
    split = [node("Gather", "x i0", "r", axis=1), node("Unsqueeze", "r one", "r4")]
    split += [node("Mul", "half r4", "a"), node("Add", "a half", "b")]
    before = {  # nodes that make "p" of "x", and the layout
        "Mul": [node("Mul", "half x", "p")],
        "Sub": [node("Sub", "x mean", "p")],
        "Div": [node("Cast", "x", "c", to=1), node("Div", "c half", "p")],
        "channels": [*split, node("Concat", "b b b", "p", axis=1)],
        "reversed": [node("Gather", "x i1", "p", axis=1)],
        "parts": [node("Split", "x", "s t u", axis=1), node("Concat", "u t s", "p", axis=1)],
        "max": [node("Max", "half x", "p")],
    }
    for nodes in before.values():
        write(path, [*nodes, node("Conv", "p w", "y")], arrays)
        assert agrees(path, normal(rng, 2, 3, 8, 8)).input_layout == "NCHW"
    last = [
        node("Mul", "half x", "h"),
        node("Gather", "h i0", "r", axis=3),
        node("Unsqueeze", "r one", "r4"),
        node("Concat", "r4 r4 r4", "p", axis=1),
        node("Conv", "p w", "y"),
    ]
    write(path, last, arrays, shape=(None, 8, 8, 3))
    assert agrees(path, normal(rng, 2, 8, 8, 3)).input_layout == "NHWC"
    transposed = [node("Mul", "half x", "h"), node("Transpose", "h", "p", perm=[0, 3, 1, 2])]
    write(path, [*transposed, node("Conv", "p w", "y")], arrays, shape=(None, 8, 8, 3))
    assert agrees(path, normal(rng, 2, 8, 8, 3)).input_layout == "NHWC"
    write(path, [node("Flatten", "x", "y")])
    assert minires.onnx.load(path).input_layout is None


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("behind", ["BatchNormalization", "Relu", None])
def test_convolutions_of_one_or_three_axes_are_valid_but_not_implemented(
    path, rng, dimensions, behind
):
    kernel = (3,) * dimensions
    arrays = {"w": normal(rng, 4, 3, *kernel)} | {n: 1 + normal(rng, 4) ** 2 for n in "sbmv"}
    nodes = [node("Conv", "x w", "c")]
    inputs = "c s b m v" if behind == "BatchNormalization" else "c"
    nodes.append(node(behind or "Neg", inputs, "y"))
    write(path, nodes, arrays, shape=(None, 3, *(8,) * dimensions))
    with pytest.raises(UnsupportedError, match=r"only images \(N, C, H, W\)") as caught:
        minires.onnx.load(path)
    assert [name for name, _, _ in caught.value.operators] == ["Conv"]


def test_run_computes_in_the_type_of_its_weights_or_images(network, path, rng):
    images = normal(rng, 2, 3, 8, 8)
    assert network.run(images).dtype == np.float32
    assert network.run(images.astype(np.float16)).dtype == np.float32
    assert network.run(images.astype(np.float64)).dtype == np.float64
    assert network.run(images, theta=network.theta.astype(np.float64)).dtype == np.float64
    assert network.run(images.astype(np.float64), theta=network.theta).dtype == np.float32
    write(path, [node("Shape", "x", "n"), node("Relu", "x", "y")], outputs=["n", "y"])
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, path)
    shape, _ = minires.onnx.load(path).run(images.astype(np.float64))
    assert shape.dtype == np.int64


def test_a_graph_too_large_to_be_tried_is_loaded_untried(path, rng, monkeypatch):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays, shape=(1, 3, 8, 8))
    images = normal(rng, 1, 3, 8, 8)
    expected = minires.onnx.load(path).run(images)
    monkeypatch.setattr(graph, "TRIAL", graph.WORK // (3 * operators.CALL))
    untried = minires.onnx.load(path)
    assert (untried.fixed_batch, untried.classes) == (1, None)  # what the file declares
    np.testing.assert_array_equal(untried.run(images), expected)


def test_a_fixed_batch_too_large_to_be_tried_stays(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays, shape=(40, 3, 64, 64))
    assert minires.onnx.load(path).fixed_batch is None
    few = minires.onnx.load(path, memory=1 << 20)
    assert few.fixed_batch == 40
    assert few.run(normal(rng, 40, 3, 64, 64)).shape == (40, 5)


# --- whole numbers and truth values whose axes are stored in another order -------------------


def behind_a_convolution(rng):
    """Nodes that make c (N, 4, 8, 8), stored with the channels last; and their arrays."""
    return [node("Conv", "x w", "c", pads=[1, 1, 1, 1])], {"w": normal(rng, 4, 3, 3, 3)}


def test_gather_with_transposed_indices(path, rng):
    nodes, arrays = behind_a_convolution(rng)
    arrays |= {"i": np.array([[0, 1, 2], [3, 0, 1]])}
    nodes += [node("Transpose", "i", "it", perm=[1, 0]), node("Gather", "c it", "y", axis=1)]
    write(path, nodes, arrays)
    agrees(path, normal(rng, 2, 3, 8, 8))


@pytest.mark.parametrize("made_by", ["Greater", "Cast"])
def test_where_between_whole_numbers_with_a_condition_of_images(path, rng, made_by):
    nodes, arrays = behind_a_convolution(rng)
    arrays |= {"zero": np.float32(0), "p": np.arange(8), "q": -np.arange(64).reshape(8, 8)}
    if made_by == "Greater":
        nodes += [node("Greater", "c zero", "g"), node("Transpose", "g", "t", perm=[0, 1, 3, 2])]
    else:
        nodes += [node("Relu", "c", "r"), node("Cast", "r", "t", to=TensorProto.BOOL)]
    nodes += [node("Where", "t p q", "z"), node("Cast", "z", "y", to=TensorProto.FLOAT)]
    write(path, nodes, arrays)
    agrees(path, normal(rng, 2, 3, 8, 8))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_whole_weights_that_are_transposed_before_they_are_scaled(path, rng, axis):
    arrays = {
        "row": np.array([-1, 12]),
        "w": rng.integers(-9, 9, (12, 12)).astype(np.int8),
        "scale": rng.uniform(1, 3, 12).astype(np.float32),
        "zero": rng.integers(-3, 3, 12).astype(np.int8),
    }
    nodes = [
        node("Reshape", "x row", "f"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("DequantizeLinear", "wt scale zero", "d", axis=axis),
        node("MatMul", "f d", "y"),
    ]
    write(path, nodes, arrays, shape=(None, 3, 2, 2))
    images = normal(rng, 2, 3, 2, 2)
    scale, zero = (arrays[name].reshape((-1, 1) if axis == 0 else -1) for name in ("scale", "zero"))
    weights = scale * (arrays["w"].T.astype(int) - zero)
    found = minires.onnx.load(path).run(images)
    np.testing.assert_allclose(found, images.reshape(2, 12) @ weights, rtol=1e-4, atol=1e-4)


def test_whole_numbers_to_a_broken_power(path, rng):
    arrays = {"k": np.array([0, 1, 4, 9, 10]), "half": np.float32(0.5), "w": normal(rng, 192, 5)}
    arrays |= {"row": np.array([-1, 192])}
    nodes = [
        node("Pow", "k half", "p"), node("Cast", "p", "pf", to=TensorProto.FLOAT),
        node("Reshape", "x row", "f"), node("MatMul", "f w", "m"), node("Mul", "m pf", "y"),
    ]  # fmt: skip
    write(path, nodes, arrays)
    agrees(path, normal(rng, 2, 3, 8, 8))
    arrays["k"][0] = -4
    write(path, nodes, arrays)
    with pytest.raises(minires.onnx.FormatError, match=r"below 0 is raised to 0\.5"):
        minires.onnx.load(path)


def test_an_exponent_with_more_axes_and_a_border_that_cuts_off_too_much_are_refused(path, rng):
    arrays = {"two": np.full((1, 1, 1, 1, 1), 2, np.float32), "row": np.array([0, -1])}
    write(path, [node("Reshape", "x row", "f"), node("Pow", "f two", "y")], arrays)
    with pytest.raises(minires.onnx.UnsupportedError, match="only a single number"):
        minires.onnx.load(path)
    nodes = [node("Pad", "x pads", "p"), node("Reshape", "p row", "y")]
    write(path, nodes, arrays | {"pads": np.array([0, 0, -5, 0, 0, 0, 1, -7])})
    agrees(path, normal(rng, 2, 3, 8, 8))
    write(path, nodes, arrays | {"pads": np.array([0, 0, -5, 0, 0, 0, -4, 0])})
    with pytest.raises(minires.onnx.FormatError, match="than there is"):
        minires.onnx.load(path)


# --- separable convolutions that do not fit ---------------------------------------------------


@pytest.mark.parametrize("fault", ["first", "last", "bias", "window"])
def test_separable_convolutions_whose_channels_differ_are_refused(path, rng, fault):
    """The kernel that does all three would read behind the arrays."""
    arrays = {
        "w1": normal(rng, 8 if fault == "first" else 16, 3, 1, 1),
        "w2": normal(rng, 16, 1, 3, 3),
        "b2": normal(rng, 9 if fault == "bias" else 16),
        "w3": normal(rng, 4, 9 if fault == "last" else 16, 1, 1),
    }
    window = {"kernel_shape": [5, 5] if fault == "window" else [3, 3]}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "a w2 b2", "b", group=16, pads=[1, 1, 1, 1], **window),
        node("Conv", "b w3", "c"),
        node("GlobalAveragePool", "c", "g"),
        node("Flatten", "g", "y"),
    ]
    write(path, nodes, arrays)
    with pytest.raises(minires.onnx.FormatError):
        minires.onnx.load(path)


# --- the end of a graph, and results ------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "opset"),
    [((0, 2, 2), 2, 13), ((0, 4), 0, 13), ((0, 4, 1, 1), -1, 13), ((0, 2, 2), 2, 11)],
)
def test_a_softmax_that_is_not_over_the_classes_is_refused(path, rng, shape, axis, opset):
    arrays = {"w": normal(rng, 192, 4), "all": np.array([-1, 192])}
    arrays |= {"s": np.array(shape), "rows": np.array([0, 4])}
    nodes = [
        node("Reshape", "x all", "f"), node("MatMul", "f w", "m"), node("Reshape", "m s", "g"),
        node("Softmax", "g", "p", axis=axis), node("Reshape", "p rows", "y"),
    ]  # fmt: skip
    write(path, nodes, arrays, opset=opset)

    def load_and_predict():
        network = minires.onnx.load(path)
        return network.predict(network.theta, normal(rng, 3, 3, 8, 8))

    with pytest.raises(UnsupportedError, match="not one over all classes"):
        load_and_predict()


def test_results_are_the_caller_s(path, rng):
    arrays = {"w": normal(rng, 3, 8, 8), "c": normal(rng, 4), "two": np.float32(2)}
    nodes = [
        node("Identity", "x", "a"), node("Identity", "w", "b"), node("Mul", "c two", "d"),
        node("Mul", "x w", "e"),
    ]  # fmt: skip
    write(path, nodes, arrays, outputs=["a", "b", "d", "e"])
    network, images = minires.onnx.load(path), normal(rng, 2, 3, 8, 8)
    before, theta = images.copy(), network.theta.copy()
    first = [array.copy() for array in network.run(images)]
    for array in network.run(images):
        array[...] = 9
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(network.theta, theta)
    for array, expected in zip(network.run(images), first, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_mean_of_whole_numbers_is_whole(path, rng):
    nodes = [
        node("Mul", "x ten", "t"), node("Cast", "t", "i", to=TensorProto.INT32),
        node("Transpose", "i", "p", perm=[0, 3, 1, 2]),
        node("ReduceMean", "p", "m", axes=[2, 3]), node("Cast", "m", "y", to=TensorProto.FLOAT),
    ]  # fmt: skip
    write(path, nodes, {"ten": np.float32(10)}, shape=(None, 5, 7, 3))
    agrees(path, np.abs(normal(rng, 2, 5, 7, 3)))


@pytest.mark.parametrize("scale", [0.7, 2.3])
def test_a_scale_is_multiplied_as_it_is_stored(path, rng, scale):
    arrays = {"s": np.array([1, 1, scale, scale], np.float32)}
    write(path, [node("Resize", "x - s", "y", mode="linear")], arrays, shape=(None, 3, 10, 10))
    images = normal(rng, 2, 3, 10, 10)
    (expected,) = runtime(path)(x=images)
    assert minires.onnx.load(path).run(images).shape == expected.shape


def test_a_softmax_over_as_many_images_as_classes_is_refused(path, rng):
    arrays = {"w": normal(rng, 192, 4), "all": np.array([-1, 192])}
    nodes = [
        node("Reshape", "x all", "f"), node("MatMul", "f w", "m"),
        node("Softmax", "m", "y", axis=0),
    ]  # fmt: skip
    write(path, nodes, arrays, shape=(4, 3, 8, 8))

    def load_and_predict():
        network = minires.onnx.load(path)
        return network.predict(network.theta, normal(rng, 4, 3, 8, 8))

    with pytest.raises(UnsupportedError, match="not one over all classes"):
        load_and_predict()
