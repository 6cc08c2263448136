"""The large networks against PyTorch: logits, loss, gradients, statistics, three updates.

The networks are defined once more, with PyTorch's own modules, in `torch_networks.py`.
"""

import numpy as np
import pytest

from minires.networks import inception_v3, mobilenet_v1, mobilenet_v2
from minires.networks.mobilenet import VARIANTS as MOBILENET

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
nn, functional = torch.nn, torch.nn.functional
twins = pytest.importorskip("torch_networks")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks: PyTorch's threads would wait for one another more than work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- between the two ----------------------------------------------------------------------


def to_ours(array, shape):
    """A PyTorch weight in our order of axes."""
    array = array.detach().numpy()
    if array.ndim == 4:
        array = array[:, 0].transpose(1, 2, 0) if len(shape) == 3 else array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    assert array.shape == tuple(shape)
    return array


def gather(entries, tensors, like):
    """PyTorch tensors in one of our vectors."""
    vector = np.empty(entries[-1].start + entries[-1].size, like)
    assert len(entries) == len(tensors)
    for entry, tensor in zip(entries, tensors, strict=True):
        entry.view(vector)[...] = to_ours(tensor, entry.shape)
    return vector


def trainable(network):
    return [p for p in network.parameters() if p.requires_grad]


def set_weights(model, network, theta):
    """Copy one of our vectors into a PyTorch network."""
    for entry, p in zip(model.layout.weights, trainable(network), strict=True):
        array = entry.view(theta)
        if p.ndim == 4:
            depthwise = array.ndim == 3
            array = array.transpose(2, 0, 1)[:, None] if depthwise else array.transpose(3, 2, 0, 1)
        elif p.ndim == 2:
            array = array.T
        p.data = torch.from_numpy(array.copy())


def statistics(network, model):
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    buffers = [b for m in norms for b in (m.running_mean, m.running_var)]
    return gather(model.layout.statistics, buffers, np.float64)


def distance(a, b):
    """The relative distance of two vectors."""
    return np.linalg.norm(np.asarray(a, float) - b) / np.linalg.norm(b)


def mobile_settings(variant):
    values = MOBILENET[variant]
    return values["epsilon"], values["momentum"], variant == "tf"


def make(name, variant, width, input_shape, auxiliary=False):
    """The same network twice."""
    options = {"width": width, "input_shape": input_shape, "classes": 10, "variant": variant}
    channels, stride = input_shape[-1], 1 if input_shape[0] <= 64 else 2
    if name == "inception_v3":
        model = inception_v3(**options, dropout=0, smoothing=0.1, auxiliary=auxiliary)
        network = twins.TorchInception(width, channels, 10, variant, auxiliary)
    else:
        maker = {"mobilenet_v1": mobilenet_v1, "mobilenet_v2": mobilenet_v2}[name]
        model = maker(**options, dropout=0)
        twin = {"mobilenet_v1": twins.torch_mobilenet_v1, "mobilenet_v2": twins.torch_mobilenet_v2}
        network = twin[name](width, channels, 10, stride, mobile_settings(variant))
    return model, network


def torch_loss(output, labels, smoothing):
    logits, head = output if isinstance(output, tuple) else (output, None)
    loss = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    if head is not None:
        loss = loss + 0.4 * functional.cross_entropy(head, labels, label_smoothing=smoothing)
    return loss


def compare(name, variant, width, input_shape, batch, dtype, tolerance, auxiliary=False, rate=1e-4):
    """Three updates of both; everything must agree, before, between and after."""
    rng = np.random.default_rng(7)
    model, network = make(name, variant, width, input_shape, auxiliary)
    network.to(getattr(torch, np.dtype(dtype).name))
    theta, stats = model.init(rng, dtype=dtype), model.init_stats(dtype=dtype)
    # Scales and shifts that are not 1 and 0, so that no gradient is tested at a special point.
    theta += (0.05 * rng.standard_normal(theta.shape)).astype(dtype) * (theta == np.round(theta))
    set_weights(model, network, theta)
    unbiased = variant == "torch"
    for _ in range(3):
        images = rng.uniform(-1, 1, (batch, *input_shape)).astype(dtype)
        labels = rng.integers(0, 10, batch)
        nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        network.train()
        network.zero_grad()
        loss = torch_loss(network(nchw), torch.from_numpy(labels), model.smoothing)
        loss.backward()
        ours, gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
        assert abs(ours - loss.item()) <= tolerance * abs(loss.item())
        for entry, p in zip(model.layout.weights, trainable(network), strict=True):
            wanted = to_ours(p.grad, entry.shape)
            scale = max(np.linalg.norm(wanted), 1e-3 * np.linalg.norm(gradient))
            assert np.linalg.norm(entry.view(gradient) - wanted) <= tolerance * scale, entry.name
        if unbiased:
            assert distance(stats, statistics(network, model)) <= tolerance
        theta -= rate * gradient
        for p in trainable(network):
            p.data -= rate * p.grad
    if not unbiased:  # PyTorch knows the unbiased convention only: copy ours for the last check
        values = iter(model.layout.statistics)
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):
                theirs_mean, theirs_var = m.running_mean.clone(), m.running_var.clone()
                mean, var = next(values).view(stats), next(values).view(stats)
                assert distance(mean, theirs_mean.numpy()) <= tolerance
                assert (var <= theirs_var.numpy() * (1 + tolerance)).all()
                m.running_mean.copy_(torch.from_numpy(mean))
                m.running_var.copy_(torch.from_numpy(var))
    network.eval()
    with torch.no_grad():
        logits = network(nchw)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert distance(model.logits(theta, images, stats), logits.numpy()) <= tolerance
    assert distance(theta, gather(model.layout.weights, trainable(network), np.float64)) <= (
        tolerance
    )


@pytest.mark.parametrize("variant", ["tf", "torch"])
@pytest.mark.parametrize(
    ("name", "input_shape"),
    [("mobilenet_v1", (66, 66, 3)), ("mobilenet_v2", (67, 66, 3)), ("mobilenet_v2", (28, 28, 1))],
)
def test_mobilenets_equal_pytorch(name, input_shape, variant):
    compare(name, variant, 0.25, input_shape, 8, np.float64, 1e-9)


@pytest.mark.parametrize(("variant", "auxiliary"), [("tf", False), ("torch", False)])
def test_inception_equals_pytorch(variant, auxiliary):
    compare("inception_v3", variant, 0.1, (107, 107, 3), 6, np.float64, 1e-9, auxiliary)


def one_pass(network, model, images, labels, dtype):
    """Loss, gradient and running statistics of PyTorch in one precision, as float64."""
    network.to(dtype).train()
    network.zero_grad()
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
    loss = torch_loss(network(images), torch.from_numpy(labels), model.smoothing)
    loss.backward()
    gradient = gather(model.layout.weights, [p.grad for p in trainable(network)], np.float64)
    return loss.item(), gradient, statistics(network, model)


def compare_float32(name, width, size, batch):
    """In float32: loss, statistics and logits to 1e-4; gradients as far as a gradient is defined.

    A value that rounding moves across the kink of a ReLU switches a path of the gradient on or
    off. Among millions of values some always are, so the gradient of a deep network is not
    continuous and PyTorch's own float32 differs from its float64 by up to one part in a hundred.
    """
    rng = np.random.default_rng(7)
    model, network = make(name, "torch", width, (size, size, 3))
    theta, stats = model.init(rng), model.init_stats()
    set_weights(model, network, theta)
    images = rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch)
    loss, gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
    logits = model.logits(theta, images, stats)
    true_loss, true_gradient, true_stats = one_pass(network, model, images, labels, torch.float64)
    network.eval()
    with torch.no_grad():
        wanted = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double())
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert abs(loss - true_loss) <= 1e-4 * true_loss
    assert distance(stats, true_stats) <= 1e-4
    assert distance(logits, wanted.numpy()) <= 1e-4
    assert distance(gradient, true_gradient) <= 3e-2


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_float32_equals_pytorch(name):
    compare_float32(name, 0.25, 96, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v1", 224), ("mobilenet_v2", 224), ("inception_v3", 299)]
)
def test_full_size_float32_equals_pytorch(name, size):
    compare_float32(name, 1.0, size, 4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tf", "torch"])
@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v1", 224), ("mobilenet_v2", 224), ("inception_v3", 299)]
)
def test_full_size_equals_pytorch(name, size, variant):
    auxiliary = name == "inception_v3" and variant == "torch"
    compare(name, variant, 1.0, (size, size, 3), 4, np.float64, 1e-9, auxiliary)
