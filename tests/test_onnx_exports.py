"""The networks that people have: every export of torchvision, timm and Keras is read, and trained.

Slow, and optional: without the packages that the networks come from a test skips. `-k resnet18`
tests one.
"""

import functools
import importlib.util

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
import exported_networks as exported  # noqa: E402
from onnx_models import runtime  # noqa: E402
from torch_reference import Reference, distance, largest  # noqa: E402

import minires.onnx  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore"),  # exporters warn about themselves, at import too
]
PACKAGES = {
    "torchvision": ("torchvision", "onnxscript"),
    "timm": ("timm", "torchvision", "onnxscript"),
    "keras": ("keras", "tensorflow", "tf2onnx"),
}


def needs(*packages):
    """Skip without a package."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


module_of = functools.lru_cache(maxsize=1)(exported.module_of)  # the same for each exporter


def make_torch(name, exporter, path):
    needs(*PACKAGES["timm" if name.startswith("timm") else "torchvision"])
    module, side = module_of(name)
    exported.export_module(module, side, exporter, path)
    return module


def images_for(network, rng, count=3):
    """Random images in the file's layout; 0 … 255 for Keras' networks that scale within."""
    shape = (count, *network.declared_shape[1:])
    images = rng.standard_normal(shape)
    return images.astype(np.float16 if network.input_dtype == np.float16 else np.float32)


def check(path, rng, limit=1e-4, scale=1.0):
    """All that can be said of any file.

    limit    relative to the largest output: how far ONNX Runtime may be
    Returns  the network, images (float64), labels; its gradient in float64
    """
    network = minires.onnx.load(path)
    assert network.fixed_batch is None
    images = images_for(network, rng) * images_for(network, rng, 1).dtype.type(scale)
    assert_like_runtime(path, network, images, limit)
    # Gradients: every weight has one, and it is PyTorch's.
    theta, stats = network.theta.astype(np.float64), network.stats.astype(np.float64)
    images, labels = images.astype(np.float64), rng.integers(network.classes, size=3)
    reference = Reference(path, [entry.name for entry in network.weights])
    expected, slopes = reference.loss_and_gradients(images, labels)
    loss, gradient = network.loss_and_gradient(theta, images, labels, stats, training=False)
    assert loss == pytest.approx(expected, rel=1e-8)
    views = {entry.name: entry.file_view(gradient) for entry in network.weights}
    whole = max(map(largest, slopes.values()))
    for name, slope in slopes.items():
        least = max(largest(slope), 1e-4 * whole)
        assert largest(views[name] - slope) <= 1e-8 * least, name
    # A step against it lowers the loss by what it promises.
    square = gradient @ gradient
    step = 1e-5 * loss / square
    lower, _ = network.loss_and_gradient(
        theta - step * gradient, images, labels, stats, training=False
    )
    assert loss - lower == pytest.approx(step * square, rel=0.02)
    # The file with other weights runs, and computes what minires does.
    moved = network.theta - (0.03 * loss / square * gradient).astype(np.float32)
    new = path.with_name("moved.onnx")
    minires.onnx.save(network, new, theta=moved)
    again = minires.onnx.load(new)
    given = images.astype(network.input_dtype)
    assert largest(again.run(given) - network.run(given)) > 0
    assert_like_runtime(new, again, given, limit)
    return network, images, labels, views


def assert_like_runtime(path, network, images, limit):
    (expected,) = runtime(path)(**{network.input_name: images})
    found = network.run(images)
    assert largest(found.astype(np.float64) - expected) <= limit * largest(expected)


@pytest.mark.parametrize("exporter", list(exported.EXPORTERS))
@pytest.mark.parametrize("name", list(exported.NETWORKS))
def test_pytorch(tmp_path, rng, name, exporter):
    path = tmp_path / "model.onnx"
    module = make_torch(name, exporter, path)
    network, images, labels, views = check(path, rng)
    # The module itself, where the file has its arrays by their names.
    module = module.double()
    try:
        module.zero_grad()
        logits = module(torch.from_numpy(images))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        ours = network.logits(network.theta.astype(np.float64), images)
        assert largest(ours - logits.detach().numpy()) <= 1e-5 * largest(ours)
        if exporter == "dynamo, live":
            named = {n: p.grad.numpy() for n, p in module.named_parameters()}
            assert network.size == sum(map(np.size, named.values()))
            assert distance({n: v for n, v in views.items() if n in named}, {
                n: named[n] for n in views if n in named
            }) <= 1e-4  # fmt: skip
    finally:
        module.float()
    norms = sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
    if "live" in exporter:
        assert network.batch_norms()["live"] == norms


@pytest.mark.parametrize("name", list(exported.KERAS))
def test_keras(tmp_path, rng, name):
    needs(*PACKAGES["keras"])
    path = tmp_path / "model.onnx"
    exported.export_keras(name, path)
    if name == "EfficientNetB0":  # its exporter leaves two arrays out: no runtime can compute it
        assert len(minires.onnx.load(path).inputs) == 3
        return
    network, *_ = check(path, rng, scale=60.0 if "V3S" in name or "V3L" in name else 1.0)
    assert (network.input_layout, network.output_kind) == ("NHWC", "softmax")


@pytest.mark.parametrize("change", list(exported.CHANGES))
@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18"])
def test_changed_files(tmp_path, rng, name, change):
    path, new = tmp_path / "model.onnx", tmp_path / "changed.onnx"
    if change.startswith("onnxs"):
        needs(change)
    make_torch(name, "torchscript, live", path)
    exported.CHANGES[change](path, new)
    # In float16 ONNX Runtime rounds every value in between, minires none.
    check(new, rng, limit=3e-2 if change == "float16" else 1e-4)
