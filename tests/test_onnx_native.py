"""Networks built here, as files and back; and PyTorch's order of weights."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx_models import node, runtime, write  # noqa: E402

import minires.onnx  # noqa: E402
from minires.networks import (  # noqa: E402
    inception_v3,
    layers,
    lenet,
    lenet_classic,
    mobilenet_v1,
    mobilenet_v2,
)
from minires.networks.model import Model  # noqa: E402
from minires.networks.state_dict import from_state_dict, to_state_dict  # noqa: E402
from minires.onnx import MismatchError  # noqa: E402

MODELS = {
    "lenet": lambda: lenet((4, 6), 10, input_shape=(12, 12, 3), classes=5),
    "lenet_classic": lambda: lenet_classic(),
    "mobilenet_v1": lambda: mobilenet_v1(0.25, (32, 32, 3), 5),
    "mobilenet_v2": lambda: mobilenet_v2(0.35, (32, 32, 3), 5, variant="torch"),
    "inception_v3": lambda: inception_v3(0.125, (28, 28, 3), 5),
}  # fmt: skip


def weights(model, rng):
    theta = model.init(rng) + 0.02 * rng.standard_normal(model.size).astype(np.float32)
    stats = model.init_stats() * rng.uniform(0.5, 2, model.stats_size).astype(np.float32)
    return theta, stats + 0.1 * rng.random(model.stats_size).astype(np.float32)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_network_built_here_becomes_a_file_and_comes_back(tmp_path, rng, name):
    path, model = tmp_path / "model.onnx", MODELS[name]()
    theta, stats = weights(model, rng)
    minires.onnx.export(model, theta, stats, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for count in (1, 3):
        images = rng.uniform(-1, 1, (count, *model.input_shape)).astype(np.float32)
        (found,) = runtime(path)(images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        ours = model.logits(theta, images, stats)
        np.testing.assert_allclose(found, ours, rtol=1e-5, atol=1e-5 * abs(ours).max())
    network = minires.onnx.load(path)
    assert (network.fixed_batch, network.classes) == (None, model.classes)
    assert network.size == model.size + _unit_scales(network)
    twin, *vectors = minires.onnx.native(network)
    assert twin.size == model.size
    np.testing.assert_array_equal(vectors[0], theta)
    np.testing.assert_array_equal(vectors[1], stats)


def of_every_layer(dropout=0.5, head=True, bias=False):
    """A network with every kind of layer, and settings that no published network has."""
    aside = [layers.AuxiliaryHead(layers.GlobalMeanPool(), layers.Dense(5), weight=0)]
    norm = {"momentum": 0.7, "epsilon": 1e-2, "unbiased": True}
    inner = layers.Conv2D(6, 3, bias=False), layers.BatchNorm(activation="relu6", **norm)
    own = layers.Sequential(layers.Conv2D(4, 1, activation="relu"), layers.DepthwiseConv2D((1, 3)))
    return minires.Model(
        (13, 11, 3),
        layers.Sequential(
            layers.Conv2D(6, (3, 2), (1, 2), ((1, 2), (0, 1)), (2, 1), bias=False),
            layers.BatchNorm(activation="relu", **norm),
            layers.MaxPool((3, 2), 2, padding=((0, 1), (1, 0))),
            layers.Residual(*inner),
            *(aside if head else []),
            layers.DepthwiseConv2D((2, 3), activation="relu6"),
            layers.Activation("tanh"),
            layers.MeanPool(2, 1, padding=1, count_padding=True),
            layers.Branches(own, layers.Conv2D(3, 2, bias=False)),
            layers.Activation("sigmoid"),
            layers.MeanPool(3, 2, padding=1),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(7, bias=bias),
            layers.Activation("relu"),
            layers.Dense(5),
        ),
    )


def test_every_kind_of_layer_is_written_and_trains_as_before(tmp_path, rng):
    path, model = tmp_path / "model.onnx", of_every_layer()
    theta, stats = weights(model, rng)
    minires.onnx.export(model, theta, stats, path)
    images = rng.uniform(-1, 1, (4, *model.input_shape)).astype(np.float32)
    given = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    (found,) = runtime(path)(images=given)
    np.testing.assert_allclose(found, model.logits(theta, images, stats), rtol=1e-5, atol=1e-5)
    network = minires.onnx.load(path)
    assert network.classes == 5
    # Training the file moves the statistics, and gives the gradient, as training the model does.
    model, labels = of_every_layer(dropout=0), np.array([0, 1, 2, 4])
    theta, stats = theta.astype(np.float64), stats.astype(np.float64)
    start, given = network.theta.astype(np.float64), given.astype(np.float64)
    measured = network.stats.astype(np.float64)
    loss, gradient = model.loss_and_gradient(theta, images.astype(np.float64), labels, stats)
    ours, slope = network.loss_and_gradient(start, given, labels, measured)
    assert ours == pytest.approx(loss, rel=1e-10)
    expected = {entry.name: entry.view(gradient) for entry in model.layout.weights}
    for entry in network.weights:
        size = np.linalg.norm(entry.view(slope))
        assert size == pytest.approx(np.linalg.norm(expected[entry.name]), rel=1e-7), entry.name
    by_name = {entry.name: entry.view(stats) for entry in model.layout.statistics}
    for entry in network.statistics:
        np.testing.assert_allclose(entry.view(measured), by_name[entry.name], rtol=1e-9)


def test_weights_of_every_kind_of_layer_come_back(tmp_path, rng):
    path, model = tmp_path / "model.onnx", of_every_layer(head=False)
    theta, stats = weights(model, rng)
    minires.onnx.export(model, theta, stats, path)
    found = minires.onnx.transfer(minires.onnx.load(path), model)
    np.testing.assert_array_equal(found[0], theta)
    np.testing.assert_allclose(found[1], stats, rtol=1e-6)
    biased = of_every_layer(head=False, bias=True)
    theta, stats = weights(biased, rng)
    minires.onnx.export(biased, theta, stats, path)
    with pytest.raises(MismatchError, match="a dense layer without a bias"):
        minires.onnx.transfer(minires.onnx.load(path), model)


def _unit_scales(network):
    """Batch norms without a scale have one of ones in the file."""
    return sum(entry.size for entry in network.weights if entry.name.endswith(".one"))


def test_what_cannot_be_written_is_named(tmp_path, rng):
    model = MODELS["lenet"]()
    theta, stats = weights(model, rng)
    with pytest.raises(ValueError, match="theta is"):
        minires.onnx.export(model, theta[:-1], stats, tmp_path / "n.onnx")
    with pytest.raises(ValueError, match="NaN"):
        minires.onnx.export(model, theta * np.nan, stats, tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())


def torch_lenet(rng, path, size=8):
    """A file as PyTorch writes it: ReLU before the pooling, channels first behind Flatten."""

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32) / 3

    inner = (size // 4) ** 2 * 6
    state = {
        "0.weight": normal(4, 3, 5, 5), "0.bias": normal(4), "3.weight": normal(6, 4, 5, 5),
        "3.bias": normal(6), "7.weight": normal(10, inner), "7.bias": normal(10),
        "9.weight": normal(5, 10), "9.bias": normal(5),
    }  # fmt: skip
    same, pool = {"pads": [2, 2, 2, 2]}, {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Conv", "x 0.weight 0.bias", "a", **same), node("Relu", "a", "b"),
        node("MaxPool", "b", "c", **pool), node("Conv", "c 3.weight 3.bias", "d", **same),
        node("Relu", "d", "e"), node("MaxPool", "e", "f", **pool), node("Flatten", "f", "g"),
        node("Gemm", "g 7.weight 7.bias", "h", transB=1), node("Relu", "h", "i"),
        node("Gemm", "i 9.weight 9.bias", "y", transB=1),
    ]  # fmt: skip
    write(path, nodes, state, shape=(None, 3, size, size))
    return state


def test_pytorchs_order_of_the_pixels_becomes_ours(tmp_path, rng):
    path = tmp_path / "torch.onnx"
    state = torch_lenet(rng, path)
    model, theta, _ = minires.onnx.native(minires.onnx.load(path))
    images = rng.standard_normal((3, 8, 8, 3)).astype(np.float32)
    (expected,) = runtime(path)(x=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.logits(theta, images), expected, rtol=1e-4, atol=1e-4)
    ours, _ = from_state_dict(model, state)
    np.testing.assert_array_equal(ours, theta)
    back = to_state_dict(model, theta, None, like=state)
    assert list(back) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


def test_theta_of_another_layout_is_not_written_into_a_file(tmp_path, rng):
    path = tmp_path / "torch.onnx"
    torch_lenet(rng, path)
    network = minires.onnx.load(path)
    _, theta, _ = minires.onnx.native(network)
    assert theta.size == network.size
    theta = theta + 0.05 * rng.standard_normal(theta.size).astype(np.float32)
    with pytest.raises(ValueError, match=r"another layout.*minires\.onnx\.export"):
        minires.onnx.save(network, tmp_path / "new.onnx", theta=theta)
    assert not (tmp_path / "new.onnx").exists()
    minires.onnx.save(network, tmp_path / "new.onnx", theta=network.theta + 0.05)


def test_batch_norm_and_depthwise_from_a_state_dict(rng):
    model = MODELS["mobilenet_v1"]()
    theta, stats = weights(model, rng)
    like, number = {}, 0
    for _, layer, _, _ in model.layout.rows:
        own = model.layout.of(layer)
        if not own:
            continue
        shapes = {name: entry.shape for name, entry in own.items()}
        if layer.kind == "BatchNorm":
            names = {"weight": "scale", "bias": "shift"}
            names |= {"running_mean": "mean", "running_var": "variance"}
            found = {last: shapes[name] for last, name in names.items()} | {
                "num_batches_tracked": ()
            }
        elif layer.kind == "DepthwiseConv2D":
            kh, kw, c = shapes["weight"]
            found = {"weight": (c, 1, kh, kw)}
        else:
            found = {n: shape[::-1] if len(shape) < 4 else (shape[3], shape[2], *shape[:2])
                     for n, shape in shapes.items()}  # fmt: skip
        like |= {f"{number}.{name}": np.zeros(shape, np.float32) for name, shape in found.items()}
        number += 1
    state = to_state_dict(model, theta, stats, like)
    again = from_state_dict(model, state)
    np.testing.assert_array_equal(again[0], theta)
    np.testing.assert_array_equal(again[1], stats)
    state.pop("0.weight")
    with pytest.raises(ValueError, match="conv2d_1"):
        from_state_dict(model, state)


def test_a_state_dict_is_read_by_its_names_and_written_as_it_was(rng):
    norm = layers.BatchNorm()
    parts = layers.Conv2D(4, 3, bias=False), norm, layers.Flatten(), layers.Dense(5)
    model = minires.Model((8, 8, 3), layers.Sequential(*parts))
    shapes = {"a.weight": (4, 3, 3, 3), "b.weight": 4, "b.bias": 4, "b.running_mean": 4}
    shapes |= {"b.running_var": 4, "b.num_batches_tracked": (), "c.weight": (5, 256), "c.bias": 5}
    state = {name: rng.random(shape) for name, shape in shapes.items()}  # float64
    theta, stats = from_state_dict(model, state)
    own = model.layout.of(norm)
    for ours, vector, theirs in (
        ("scale", theta, "weight"), ("shift", theta, "bias"),
        ("mean", stats, "running_mean"), ("variance", stats, "running_var"),
    ):  # fmt: skip
        np.testing.assert_allclose(own[ours].view(vector), state[f"b.{theirs}"], rtol=1e-6)
    kept = {name: array.copy() for name, array in state.items()}
    written = to_state_dict(model, 2 * theta, 2 * stats, state)
    for name, array in kept.items():
        np.testing.assert_array_equal(state[name], array)  # what was given is left alone
        assert written[name].dtype == array.dtype
        factor = 1 if name == "b.num_batches_tracked" else 2
        np.testing.assert_allclose(written[name], factor * array, rtol=1e-6)
    with pytest.raises(ValueError, match="no layer for 'd'"):
        from_state_dict(model, state | {"d.weight": np.ones((5, 5))})
    with pytest.raises(ValueError, match=r"c\.bias is \(6,\)"):
        from_state_dict(model, state | {"c.bias": np.ones(6)})


def test_another_network_is_none_of_ours(tmp_path, rng):
    path = tmp_path / "n.onnx"
    write(path, [node("Flatten", "x", "f"), node("MatMul", "f w", "y")],
          {"w": rng.standard_normal((192, 4)).astype(np.float32)})  # fmt: skip
    with pytest.raises(MismatchError):
        minires.onnx.native(minires.onnx.load(path))


def test_batch_norm_behind_a_flatten_takes_pytorchs_order_of_the_pixels(rng):
    network = layers.Sequential(
        layers.Conv2D(3, 3, padding=0), layers.Flatten(), layers.BatchNorm(), layers.Dense(7)
    )
    model = Model((6, 7, 1), network)
    theta, stats = weights(model, rng)
    like = {
        "0.weight": np.zeros((3, 1, 3, 3)), "0.bias": np.zeros(3),
        **{f"2.{name}": np.zeros(60) for name in ("weight", "bias", "running_mean", "running_var")},
        "3.weight": np.zeros((7, 60)), "3.bias": np.zeros(7),
    }  # fmt: skip
    state = to_state_dict(model, theta, stats, like)
    again = from_state_dict(model, state)
    np.testing.assert_array_equal(again[0], theta)
    np.testing.assert_array_equal(again[1], stats)
    # By hand: channels first, as PyTorch's modules compute.
    images = rng.standard_normal((5, 6, 7, 1)).astype(np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(images[..., 0], (3, 3), axis=(1, 2))
    y = np.einsum("nijuv,ouv->noij", patches, state["0.weight"][:, 0])
    y = (y + state["0.bias"][:, None, None]).reshape(5, 60)
    y = (y - state["2.running_mean"]) / np.sqrt(state["2.running_var"] + 1e-3)
    y = y * state["2.weight"] + state["2.bias"]
    expected = y @ state["3.weight"].T + state["3.bias"]
    np.testing.assert_allclose(model.logits(theta, images, stats), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [layers.MaxPool, layers.DepthwiseConv2D])
def test_a_layer_at_two_places_is_written_for_both_sizes(tmp_path, rng, make):
    twice = make(3, 2, "same")
    network = layers.Sequential(
        twice, twice, layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(3)
    )
    model = Model((15, 14, 2), network)
    theta, path = model.init(rng), tmp_path / "twice.onnx"
    minires.onnx.export(model, theta, None, path)
    images = rng.standard_normal((4, 15, 14, 2)).astype(np.float32)
    (found,) = runtime(path)(images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found, model.logits(theta, images), rtol=1e-4, atol=1e-4)
