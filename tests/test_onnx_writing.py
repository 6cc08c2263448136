"""Weights written back: the same file but for its numbers, and any runtime agrees."""

import os

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, numpy_helper  # noqa: E402
from onnx_models import classifier, node, runtime, write  # noqa: E402

import minires.onnx  # noqa: E402


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def changed(network, rng):
    """Other weights and statistics for a network."""
    theta = network.theta + normal(rng, network.theta.size) / 10
    return theta, network.stats * rng.uniform(0.5, 2, network.stats.size).astype(np.float32)


def save_and_compare(path, rng, images=None):
    """Save other weights; onnxruntime on the new file must agree with the network."""
    network = minires.onnx.load(path)
    theta, stats = changed(network, rng)
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=theta, stats=stats)
    images = normal(rng, 2, 3, 8, 8) if images is None else images
    expected = network.run(images, theta=theta, stats=stats)
    (found,) = runtime(new)(x=images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    again = minires.onnx.load(new)
    assert [entry.name for entry in again.weights] == [entry.name for entry in network.weights]
    np.testing.assert_array_equal(again.theta, theta)
    np.testing.assert_array_equal(again.stats, stats)
    assert sorted(os.listdir(path.parent)) == sorted({*os.listdir(path.parent), "new.onnx"})
    return network, new, theta


@pytest.mark.parametrize("stored", ["as bytes", "one by one", "computed"])
def test_unchanged_weights_give_the_same_bytes(path, rng, stored):
    nodes, arrays = classifier(rng)
    if stored == "computed":
        nodes[0].input[1] = "scaled"
        nodes.insert(0, node("Mul", "w1 six", "scaled"))
    model = write(path, nodes, arrays)
    if stored == "one by one":
        for tensor in model.graph.initializer:
            tensor.float_data.extend(numpy_helper.to_array(tensor).reshape(-1))
            tensor.ClearField("raw_data")
        onnx.save(model, path)
    new = path.with_name("new.onnx")
    minires.onnx.save(minires.onnx.load(path), new)
    assert new.read_bytes() == path.read_bytes()


def test_only_the_bytes_of_weights_and_statistics_change(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays)
    network, new, _ = save_and_compare(path, rng)
    before, after = path.read_bytes(), new.read_bytes()
    assert len(before) == len(after)
    numbers = bytearray(before)
    for name in network.layout:
        at = before.index(arrays[name].tobytes())
        numbers[at : at + arrays[name].nbytes] = after[at : at + arrays[name].nbytes]
    assert numbers == after


def test_numbers_stored_one_by_one_become_plain_bytes(path, rng):
    nodes, arrays = classifier(rng)
    model = write(path, nodes, arrays)
    for tensor in model.graph.initializer:
        numbers = numpy_helper.to_array(tensor).reshape(-1)
        tensor.ClearField("raw_data")
        tensor.float_data.extend(numbers)
    # Not packed, as old protobuf libraries wrote it: a tag before every number.
    content = model.SerializeToString()
    tensor = model.graph.initializer[0]
    packed = tensor.SerializeToString()
    apart = onnx.TensorProto(dims=tensor.dims, data_type=1, name=tensor.name).SerializeToString()
    apart += b"".join(b"\x25" + np.float32(v).tobytes() for v in tensor.float_data)
    model.graph.initializer[0].Clear()
    assert packed in content
    onnx.save(model, path)
    rest = onnx.ModelProto.FromString(path.read_bytes())
    del rest.graph.initializer[0]
    graph = rest.graph.SerializeToString() + b"\x2a" + _varint(len(apart)) + apart
    rest.ClearField("graph")
    path.write_bytes(rest.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph)
    save_and_compare(path, rng)


def _varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("kind", ["value", "value_floats"])
def test_weights_in_constant_nodes(path, rng, kind):
    weights = normal(rng, 3, 1, 1) if kind == "value" else normal(rng, 8)
    value = numpy_helper.from_array(weights) if kind == "value" else weights.tolist()
    nodes = [node("Constant", "-", "w", **{kind: value}), node("Mul", "x w", "y")]
    nodes[0].ClearField("input")
    write(path, nodes)
    save_and_compare(path, rng)


def test_weights_that_the_file_computes_take_the_place_of_their_node(path, rng):
    arrays = {"gamma": normal(rng, 3, 1, 1), "deviation": 1 + normal(rng, 3, 1, 1) ** 2}
    write(path, [node("Div", "gamma deviation", "f"), node("Mul", "x f", "y")], arrays)
    _, new, theta = save_and_compare(path, rng)
    model = onnx.load(new)
    assert [n.op_type for n in model.graph.node] == ["Mul"]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[-1]).ravel(), theta)


def test_float16_files_stay_float16(path, rng):
    weights = normal(rng, 4, 3, 3, 3).astype(np.float16)
    write(path, [node("Conv", "x w", "y")], {"w": weights}, dtype=TensorProto.FLOAT16)
    network = minires.onnx.load(path)
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=network.theta * 2)
    (tensor,) = onnx.load(new).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights * 2)
    with pytest.raises(ValueError, match="does not fit in float16"):
        minires.onnx.save(network, new, theta=network.theta * 1e6)


@pytest.mark.parametrize("external", ["all", "one"])
def test_external_data_stays_external(tmp_path, rng, external):
    nodes, arrays = classifier(rng)
    folder = tmp_path / "old"
    folder.mkdir()
    path = folder / "model.onnx"
    model = write(path, nodes, arrays)
    threshold = 0 if external == "all" else 500
    onnx.save(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=threshold
    )
    network, new, _ = save_and_compare(path, rng)
    assert (folder / "new.onnx.data").exists()
    assert new.stat().st_size < path.stat().st_size + 200
    outside = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(new, load_external_data=False).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    assert {entry["location"] for entry in outside} == {"new.onnx.data"}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in outside), "it cannot be mapped"
    minires.onnx.save(network, tmp_path / "far.onnx")
    far = minires.onnx.load(tmp_path / "far.onnx")
    np.testing.assert_array_equal(far.theta, network.theta)
    # The same name would overwrite numbers that the old file still needs.
    model = write(path, nodes, arrays)
    onnx.save(model, path, save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    with pytest.raises(ValueError, match="choose another name"):
        minires.onnx.save(minires.onnx.load(path), folder / "b.onnx")


def test_a_vector_that_does_not_fit_is_named_and_nothing_is_written(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays)
    network = minires.onnx.load(path)
    new = path.with_name("new.onnx")
    with pytest.raises(ValueError, match="theta is"):
        minires.onnx.save(network, new, theta=network.theta[1:])
    with pytest.raises(ValueError, match="NaN"):
        minires.onnx.save(network, new, theta=network.theta * np.nan)
    assert os.listdir(path.parent) == ["model.onnx"]


NAMES = [
    "special_shared_weights_op13_bn",
    "tiny_keras_tensorflow_mobilenetv1_025",
    "tiny_keras_torch_mobilenetv2_035",
    "tiny_mobilenetv2_035_old_op13_bn",
]


@pytest.mark.parametrize("name", NAMES)
def test_exported_networks_with_other_weights(data_dir, tmp_path, rng, name):
    folder = data_dir / "onnx_models" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    network = minires.onnx.load(folder / "model.onnx")
    images = np.load(folder / "input.npy")
    theta = network.theta * (1 + normal(rng, network.theta.size) / 100)
    new = tmp_path / "new.onnx"
    minires.onnx.save(network, new, theta=theta)
    (found,) = runtime(new)(**{network.input_name: images})
    expected = network.run(images, theta=theta)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert new.stat().st_size == (folder / "model.onnx").stat().st_size


@pytest.mark.parametrize("view", ["Identity", "Reshape"])
def test_a_batch_norm_whose_scale_is_made_behind_the_convolution(path, rng, view):
    nodes = [
        node("Conv", "x w", "c"),
        node(view, "s0 shape" if view == "Reshape" else "s0", "s"),
        node("BatchNormalization", "c s b m v", "y"),
    ]
    arrays = {name: 1 + normal(rng, 4) ** 2 for name in ("s0", "b", "m", "v")}
    arrays |= {"w": normal(rng, 4, 3, 3, 3), "shape": np.array([4])}
    if view == "Identity":
        del arrays["shape"]
    write(path, nodes, arrays)
    save_and_compare(path, rng)


@pytest.mark.parametrize("rest", ["weight", "constant", "read from a weight"])
def test_weights_that_come_from_one_node_of_several_outputs(path, rng, rest):
    # The parts of a Split: both weights, or one a bound, of an array that is a weight or none.
    arrays = {"w": normal(rng, 6, 1, 1), "v": normal(rng, 6, 1, 1)}
    use = {"weight": [node("Add", "c b", "y")], "constant": [node("Max", "c b", "y")]}
    nodes = [node("Split", "w", "a b", axis=0), node("Mul", "x a", "c")]
    if rest == "read from a weight":
        nodes += [node("Max", "c b", "d"), node("Concat", "x d", "e", axis=1)]
        nodes += [node("Add", "e w", "f"), node("Add", "f v", "y")]
    else:
        nodes += use[rest]
        del arrays["v"]
    write(path, nodes, arrays)
    _, new, _ = save_and_compare(path, rng)
    assert ("Split" in [n.op_type for n in onnx.load(new).graph.node]) == (rest != "weight")


def test_what_the_file_computes_from_a_weight_is_written_when_only_the_other_changes(path, rng):
    arrays = {"w": 1 + normal(rng, 3, 1, 1) ** 2}
    nodes = [node("Sqrt", "w", "s"), node("Mul", "x s", "c"), node("Add", "c w", "y")]
    write(path, nodes, arrays)
    network = minires.onnx.load(path)
    theta = network.theta.copy()
    network.arrays(theta)["w"][...] += 1  # and "s", a weight too, stays
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=theta)
    images = normal(rng, 2, 3, 8, 8)
    (found,) = runtime(new)(x=images)
    np.testing.assert_allclose(found, network.run(images, theta=theta), rtol=1e-4, atol=1e-5)


def test_computed_float16_weights_stay_float16(path, rng):
    arrays = {
        "gamma": normal(rng, 3, 1, 1).astype(np.float16),
        "deviation": (1 + normal(rng, 3, 1, 1) ** 2).astype(np.float16),
    }
    nodes = [node("Div", "gamma deviation", "f"), node("Mul", "x f", "y")]
    write(path, nodes, arrays, dtype=TensorProto.FLOAT16)
    network = minires.onnx.load(path)
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=network.theta * 2)
    assert onnx.load(new).graph.initializer[-1].data_type == TensorProto.FLOAT16
    images = normal(rng, 2, 3, 8, 8).astype(np.float16)
    (found,) = runtime(new)(x=images)
    expected = network.run(images, theta=network.theta * 2)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("operator", ["Cast", "CastLike"])
def test_a_computed_array_has_the_type_to_which_it_was_cast(path, rng, operator):
    arrays = {"gamma": normal(rng, 3, 1, 1), "deviation": 1 + normal(rng, 3, 1, 1) ** 2}
    arrays["deviation"] = arrays["deviation"].astype(np.float16)
    if operator == "Cast":
        cast = node("Cast", "gamma", "c", to=TensorProto.FLOAT16)
    else:
        cast = node("CastLike", "gamma deviation", "c")
    nodes = [cast, node("Div", "c deviation", "f"), node("Mul", "x f", "y")]
    write(path, nodes, arrays, dtype=TensorProto.FLOAT16, opset=15)
    network = minires.onnx.load(path)
    new = path.with_name("new.onnx")
    minires.onnx.save(network, new, theta=network.theta * 2)
    assert onnx.load(new).graph.initializer[-1].data_type == TensorProto.FLOAT16
    images = normal(rng, 2, 3, 8, 8).astype(np.float16)
    expected = network.run(images, theta=network.theta * 2)
    np.testing.assert_allclose(runtime(new)(x=images)[0], expected, rtol=1e-2, atol=1e-2)


def test_a_computed_array_of_an_old_file_is_an_input_too(path, rng):
    """So it was before version 4 of the format: without a default, runtimes refuse the file."""
    arrays = {"gamma": normal(rng, 3, 1, 1), "deviation": 1 + normal(rng, 3, 1, 1) ** 2}
    nodes = [node("Div", "gamma deviation", "f"), node("Mul", "x f", "y")]
    model = write(path, nodes, arrays, opset=8, ir=3)
    for name, array in arrays.items():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, array.shape))
    onnx.save(model, path)
    _, new, _ = save_and_compare(path, rng)
    graph = onnx.load(new).graph
    assert {tensor.name for tensor in graph.initializer} <= {value.name for value in graph.input}


def test_saving_over_its_own_second_file_again_and_again(path, rng):
    nodes = [node("Conv", "x w", "c"), node("Mul", "c a", "d"), node("Add", "d b", "y")]
    arrays = {"w": normal(rng, 4, 3, 3, 3), "a": normal(rng, 4, 1, 1), "b": normal(rng, 4, 1, 1)}
    model = write(path, nodes, arrays)
    options = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(model, path, location="model.onnx.data", **options)
    network = minires.onnx.load(path)
    images = normal(rng, 2, 3, 8, 8)
    for factor in np.float32([2, 3, 4]):
        theta = network.theta * factor
        network.arrays(theta)["b"][...] = network.arrays()["b"]  # one that does not change
        minires.onnx.save(network, path, theta=theta)
        (found,) = runtime(path)(x=images)
        np.testing.assert_allclose(found, network.run(images, theta=theta), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unchanged", [False, True])
def test_a_constant_in_another_file_comes_into_the_new_one(tmp_path, rng, unchanged):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    path, new = tmp_path / "old" / "m.onnx", tmp_path / "new" / "m.onnx"
    tensor = numpy_helper.from_array(normal(rng, 3, 1, 1), "w")
    nodes = [node("Constant", "", "w", value=tensor), node("Mul", "x w", "y")]
    model = write(path, nodes)
    tensor = model.graph.node[0].attribute[0].t
    (path.parent / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    onnx.save(model, path)
    network = minires.onnx.load(path)
    theta = network.theta * (1 if unchanged else 2)
    minires.onnx.save(network, new, theta=theta)
    assert os.listdir(new.parent) == ["m.onnx"]
    images = normal(rng, 2, 3, 8, 8)
    (found,) = runtime(new)(x=images)
    np.testing.assert_allclose(found, network.run(images, theta=theta), rtol=1e-5)


@pytest.mark.parametrize("kind", [np.int64, np.bool_])
def test_floats_made_of_other_numbers_are_written_as_floats(path, rng, kind):
    """As whole numbers they could not keep what training makes of them."""
    arrays = {
        "w": normal(rng, 8, 3),
        "k": np.array([1, 0, 1]).astype(kind),
        "row": np.array([-1, 192]),
    }
    arrays["w"] = normal(rng, 192, 3)
    nodes = [
        node("Reshape", "x row", "f"),
        node("MatMul", "f w", "m"),
        node("Cast", "k", "kf", to=TensorProto.FLOAT),
        node("Mul", "m kf", "y"),
    ]
    write(path, nodes, arrays)
    network = minires.onnx.load(path)
    theta = network.theta + 0.4
    minires.onnx.save(network, path.with_name("new.onnx"), theta=theta)
    images = normal(rng, 2, 3, 8, 8)
    (found,) = runtime(path.with_name("new.onnx"))(x=images)
    np.testing.assert_allclose(found, network.run(images, theta=theta), rtol=1e-4, atol=1e-4)
