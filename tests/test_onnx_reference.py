"""Networks that PyTorch and Keras exported: outputs, gradients and training steps as theirs.

The references hold what PyTorch computed in float64, rounded to float32 when it was stored: a
difference of half a unit in the last place, 6e-8, is the rounding of the file.
"""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
import minires.onnx  # noqa: E402

NAMES = {  # name → (weights, statistics, batch norms live, folded or none, decomposed)
    "special_lenet_tanh_op13": (61_706, 0, 0, 2, 0),
    "special_shared_weights_op13_bn": (914, 16, 2, 1, 0),
    "tiny_inception_dynamo": (377_578, 0, 0, 18, 0),
    "tiny_inception_old_op13_bn": (378_906, 2_656, 18, 0, 0),
    "tiny_keras_tensorflow_mobilenetv1_025": (214_146, 0, 0, 15, 13),
    "tiny_keras_torch_mobilenetv2_035": (415_978, 0, 0, 0, 52),
    "tiny_mobilenetv2_035_dynamo": (401_898, 0, 0, 52, 0),
    "tiny_mobilenetv2_035_old_op13_bn": (408_938, 14_080, 52, 0, 0),
}
ROUNDING = 6e-8


@pytest.fixture
def folder(data_dir, request):
    path = data_dir / "onnx_models" / request.param
    if not path.is_dir():
        pytest.skip(f"{path} is missing")
    return path


def largest(array):
    return np.abs(array).max()


@pytest.mark.parametrize("folder", NAMES, indirect=True)
def test_outputs_are_those_of_onnxruntime(folder):
    network = minires.onnx.load(folder / "model.onnx")
    images, expected = np.load(folder / "input.npy"), np.load(folder / "output.npy")
    result = network.run(images)
    assert result.dtype == expected.dtype
    assert largest(result - expected) <= 1e-5 * largest(expected)
    softmax = network.output_kind == "softmax"
    assert softmax == ("keras" in folder.name)
    assert network.input_layout == ("NHWC" if softmax else "NCHW")
    scores = network.predict if softmax else network.logits
    assert largest(scores(network.theta, images, network.stats) - expected) <= 1e-5


@pytest.mark.parametrize("folder", NAMES, indirect=True)
def test_every_weight_is_trainable_and_batch_norms_are_counted(folder):
    network = minires.onnx.load(folder / "model.onnx")
    norms = network.batch_norms()
    found = (network.theta.size, network.stats.size, *norms.values())
    assert found == NAMES[folder.name]
    assert f"{network.theta.size:,} in {len(network.weights)} arrays" in network.summary()
    wide = {name for name, array in network.graph.arrays.items() if array.size > 1}
    wide = {name for name in wide if network.graph.arrays[name].dtype == np.float32}
    assert wide - set(network.layout) <= set(network.root)  # nothing large is left a constant


def references(folder):
    for name in ("finetune_ref.npz", "grads_eval.npz"):
        if (folder / name).exists():
            return dict(np.load(folder / name))
    raise AssertionError(f"no reference in {folder}")


REFERENCED = [
    "special_shared_weights_op13_bn",
    "tiny_inception_old_op13_bn",
    "tiny_mobilenetv2_035_old_op13_bn",
]


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, ROUNDING), (np.float32, 1e-3)])
@pytest.mark.parametrize("folder", REFERENCED, indirect=True)
def test_gradients_at_test_time_are_those_of_pytorch(folder, dtype, limit):
    reference = references(folder)
    network = minires.onnx.load(folder / "model.onnx")
    images = reference.get("x", np.load(folder / "input.npy")).astype(dtype)
    theta, stats = network.theta.astype(dtype), network.stats.astype(dtype)
    before = stats.copy()
    loss, gradient = network.loss_and_gradient(
        theta, images, reference["labels"], stats, training=False
    )
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(stats, before)
    if "eval_logits" in reference:
        logits = network.logits(theta, images, stats)
        exact = reference["eval_logits"]
        assert largest(logits - exact) <= (1e-12 if dtype == np.float64 else 1e-4) * largest(exact)
    kind = "evalgrad:" if "eval_loss" in reference else "g:"
    expected = {k.removeprefix(kind): v for k, v in reference.items() if k.startswith(kind)}
    found = {entry.name: entry.file_view(gradient) for entry in network.weights}
    assert found.keys() == expected.keys()
    scale = max(map(largest, expected.values()))
    error = max(largest(found[name] - expected[name]) for name in expected) / scale
    if "eval_loss" not in reference:
        limit = max(limit, 2e-6)  # this file's references were computed in float32
        assert abs(loss - reference["loss"]) <= 1e-7
    assert error <= limit


@pytest.mark.parametrize("folder", REFERENCED[1:], indirect=True)
def test_three_training_steps_are_those_of_pytorch(folder):
    reference = references(folder)
    network = minires.onnx.load(folder / "model.onnx")
    images = reference["x"].astype(np.float64)
    theta, stats = network.theta.astype(np.float64), network.stats.astype(np.float64)
    velocity = np.zeros_like(theta)
    for expected in reference["train_losses"]:
        loss, gradient = network.loss_and_gradient(theta, images, reference["labels"], stats)
        assert abs(loss - expected) <= 1e-8 * expected
        velocity = 0.9 * velocity + gradient + 1e-4 * theta
        theta -= 0.01 * velocity
    after = network.arrays(theta, stats)
    expected = {k.removeprefix("after:"): v for k, v in reference.items() if k[:6] == "after:"}
    assert after.keys() == expected.keys()
    for name, array in expected.items():
        assert largest(after[name] - array) <= ROUNDING * max(largest(array), 1e-3), name
    logits = network.logits(theta, images, stats)
    exact = reference["after_eval_logits"]
    assert largest(logits - exact) <= 1e-8 * largest(exact)


@pytest.mark.parametrize("folder", REFERENCED[1:], indirect=True)
def test_float32_gradients_at_each_of_the_three_steps(folder, rng):
    """From the same weights a float32 gradient is the exact one, of nearly the same images.

    Float32's own three steps say nothing: a batch of three images makes batch norm multiply every
    rounding by about a hundred a step, and after three PyTorch's own float32 is 0.21 of the
    largest logit away from its float64 (MobileNet). And where the input of a ReLU is zero but for
    rounding, the exact gradient jumps; images that differ by 10⁻⁶ lie on both sides. (PyTorch's
    float32 gradients at these six states: 7e-7, 8e-7, 1.7e-3; 6e-5, 3e-5, 1.7e-2.)
    """
    reference = references(folder)
    network = minires.onnx.load(folder / "model.onnx")
    images, labels = reference["x"], reference["labels"]
    theta, stats = network.theta.astype(np.float64), network.stats.astype(np.float64)
    velocity = np.zeros_like(theta)
    for _ in range(3):
        rounded = theta.astype(np.float32), stats.astype(np.float32)
        loss, gradient = network.loss_and_gradient(rounded[0], images, labels, rounded[1].copy())
        errors = []
        for size in (0, *[1e-6] * 16):
            near = images * (1 + size * rng.standard_normal(images.shape))
            wide = (array.astype(np.float64) for array in rounded)
            exact_loss, exact = network.loss_and_gradient(next(wide), near, labels, next(wide))
            errors.append(largest(gradient - exact) / largest(exact))
            if errors[-1] <= 1e-3:
                break
        assert min(errors) <= 1e-3, errors
        assert errors[0] <= 0.02
        assert abs(loss - exact_loss) <= 1e-5 * exact_loss
        _, exact = network.loss_and_gradient(theta, images.astype(np.float64), labels, stats)
        velocity = 0.9 * velocity + exact + 1e-4 * theta
        theta -= 0.01 * velocity
