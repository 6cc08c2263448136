"""The large networks against PyTorch: logits, loss, gradients, statistics, three updates.

The networks are defined once more, with PyTorch's own modules, in `torch_networks.py`.
"""

import contextlib
import copy
from unittest import mock

import numpy as np
import pytest

from minires.engine.autodiff import data_of
from minires.networks import inception_v3, layers, mobilenet_v1, mobilenet_v2
from minires.networks.mobilenet import VARIANTS as MOBILENET

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
nn, functional = torch.nn, torch.nn.functional
twins = pytest.importorskip("torch_networks")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

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


# --- single precision ---------------------------------------------------------------------
#
# A network of ReLUs and max pooling is linear piece by piece. Rounding moves one in a million
# values across a kink, onto another piece, and a single one changes the whole gradient in its
# third digit: PyTorch's own float32 gradient differs from its float64 one by 5e-3 where one to
# eight of eight million values crossed, by 2e-5 where none did. More images only let more values
# cross. So which values pass, and which pixel of a window wins, is noted in our pass, and
# PyTorch computes the gradient of that very piece. What is left is rounding.


class Follow(nn.Module):
    """An activation or max pooling whose gradient keeps to noted choices."""

    def __init__(self, choices, pooling=None, top=None):
        super().__init__()
        self.choices, self.pooling, self.top = choices, pooling, top
        self.crossed = self.seen = 0

    def forward(self, x):
        noted = self.choices.pop(0)
        if self.pooling is None:
            passes = (x > 0) & (x < (self.top or np.inf))
            self.crossed += (passes != noted).sum().item()
            self.seen += noted.numel()
            return x.clamp(0, self.top).detach() + (x - x.detach()) * noted
        _, winners = functional.max_pool2d(
            noted, self.pooling.kernel_size, self.pooling.stride, return_indices=True
        )
        return x.flatten(2).gather(2, winners.flatten(2)).view(winners.shape)


def follow(module, passed, pooled):
    """Make all of a PyTorch network keep to the choices in two lists, filled before each pass."""
    for name, part in module.named_children():
        if isinstance(part, nn.ReLU6):
            setattr(module, name, Follow(passed, top=6))
        elif isinstance(part, nn.ReLU):
            setattr(module, name, Follow(passed))
        elif isinstance(part, nn.MaxPool2d):
            setattr(module, name, Follow(pooled, part))
        else:
            follow(part, passed, pooled)


@contextlib.contextmanager
def choices(passed, pooled):
    """Within, our passes note where each activation passes, and what each max pooling sees."""

    def nchw(array):
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())

    batch_norm_before, max_pool_before = layers.batch_norm, layers.max_pool

    def batch_norm(x, *weights, activation=None, **settings):
        y = batch_norm_before(x, *weights, activation=activation, **settings)
        if activation is not None:
            values = data_of(y)
            passed.append(nchw((values > 0) & (values < (6 if activation == "relu6" else np.inf))))
        return y

    def max_pool(x, **settings):
        pooled.append(nchw(data_of(x)))
        return max_pool_before(x, **settings)

    with (
        mock.patch.object(layers, "batch_norm", batch_norm),
        mock.patch.object(layers, "max_pool", max_pool),
    ):
        yield


def torch_gradient(network, model, images, labels):
    """The loss and the gradient with respect to all weights, as float64."""
    network.train()
    network.zero_grad()
    dtype = next(network.parameters()).dtype
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
    loss = torch_loss(network(images), torch.from_numpy(labels), model.smoothing)
    loss.backward()
    gradients = [p.grad for p in trainable(network)]
    return loss.item(), gather(model.layout.weights, gradients, np.float64)


def compare_float32(name, width, size, batch, conditioned=True):
    """Three updates in float32, PyTorch's in float32 and in float64: all equal to 1e-4.

    conditioned   every array's gradient by itself, too; for a network that magnifies rounding
                  the whole gradient, to 1e-4 or twice as far off as PyTorch's in float32
    """
    rng = np.random.default_rng(7)
    model, network = make(name, "torch", width, (size, size, 3))
    theta, stats = model.init(rng), model.init_stats()
    set_weights(model, network, theta)
    truth, single = copy.deepcopy(network).double(), copy.deepcopy(network)
    lists = {twin: ([], []) for twin in (truth, single)}
    for twin, (passed, pooled) in lists.items():
        follow(twin, passed, pooled)
    rate = 1e-4
    for _ in range(3):
        images = rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)
        labels = rng.integers(0, 10, batch)
        passed, pooled = lists[truth]
        with choices(passed, pooled):
            loss, gradient = model.loss_and_gradient(theta, images, labels, stats=stats)
        lists[single][0][:], lists[single][1][:] = passed, pooled
        true_loss, wanted = torch_gradient(truth, model, images, labels)
        single_loss, theirs = torch_gradient(single, model, images, labels)
        assert not any(lists[truth] + lists[single]), "PyTorch's has fewer activations than ours"
        assert abs(loss - true_loss) <= 1e-4 * true_loss
        assert abs(loss - single_loss) <= 1e-4 * true_loss
        assert distance(stats, statistics(truth, model)) <= 1e-4
        assert distance(stats, statistics(single, model)) <= 1e-4
        limit = 1e-4 if conditioned else max(1e-4, 2 * distance(theirs, wanted))
        assert distance(gradient, wanted) <= limit
        assert distance(gradient, theirs) <= limit
        for entry in model.layout.weights if conditioned else []:
            # A shift in front of another batch norm has gradient 0, but for rounding.
            scale = max(np.linalg.norm(entry.view(wanted)), 1e-2 * np.linalg.norm(wanted))
            error = np.linalg.norm(entry.view(gradient) - entry.view(wanted))
            assert error <= 1e-4 * scale, entry.name
        theta -= rate * gradient
        for p in (*trainable(truth), *trainable(single)):
            p.data -= rate * p.grad
    followed = [module for module in truth.modules() if isinstance(module, Follow)]
    assert sum(f.crossed for f in followed) <= 1e-5 * sum(f.seen for f in followed)
    true_theta = gather(model.layout.weights, trainable(truth), np.float64)
    assert distance(theta, true_theta) <= 1e-6
    network.double().load_state_dict(truth.state_dict())
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).double())
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert distance(model.logits(theta, images, stats), logits.numpy()) <= 1e-4


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_float32_equals_pytorch(name):
    compare_float32(name, 0.25, 66, 6)


@pytest.mark.slow
def test_inception_in_float32_equals_pytorch():
    compare_float32("inception_v3", 0.1, 139, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v1", 224), ("mobilenet_v2", 224), ("inception_v3", 299)]
)
def test_full_size_float32_equals_pytorch(name, size):
    compare_float32(name, 1.0, size, 4, conditioned=name != "inception_v3")


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v1", 66), ("mobilenet_v2", 66), ("inception_v3", 107)]
)
def test_every_layer_is_as_exact_as_pytorch_s(name, size):
    """What rounding makes of the values of each layer, in front of its activation."""
    rng = np.random.default_rng(7)
    model, network = make(name, "torch", 0.25, (size, size, 3))
    theta, stats = model.init(rng), model.init_stats()
    set_weights(model, network, theta)
    images = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)
    ours, theirs, truth = [], [], []
    batch_norm_before = layers.batch_norm

    def batch_norm(x, *weights, activation=None, **settings):
        ours.append(batch_norm_before(data_of(x), *map(data_of, weights), **settings))
        return batch_norm_before(x, *weights, activation=activation, **settings)

    with mock.patch.object(layers, "batch_norm", batch_norm):
        model.loss_and_gradient(theta, images, np.arange(4), stats=stats)
    for values, twin in ((theirs, network), (truth, copy.deepcopy(network).double())):
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda module, inputs, y, values=values: values.append(y.detach().clone())
                )
        dtype = next(twin.parameters()).dtype
        twin.train()
        twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype))
    assert len(ours) == len(theirs) == len(truth)
    for mine, single, exact in zip(ours, theirs, truth, strict=True):
        mine, exact = mine.transpose(0, 3, 1, 2), exact.numpy()
        assert distance(mine, exact) <= 1.5 * distance(single.numpy(), exact)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["tf", "torch"])
@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v1", 224), ("mobilenet_v2", 224), ("inception_v3", 299)]
)
def test_full_size_equals_pytorch(name, size, variant):
    auxiliary = name == "inception_v3" and variant == "torch"
    compare(name, variant, 1.0, (size, size, 3), 4, np.float64, 1e-9, auxiliary)
