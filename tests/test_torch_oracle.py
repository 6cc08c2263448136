"""The same networks in PyTorch: losses and gradients agree. Skipped where it is not installed."""

import numpy as np
import pytest
from helpers import assert_close, naive_borders, pull_back

from minires import lenet, lenet_classic
from minires.engine import ops
from minires.engine.convolution import conv2d, max_pool, mean_pool
from minires.training.optimizers import SGD

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
functional = torch.nn.functional

PRECISION = [(np.float64, 1e-10), (np.float32, 1e-4)]
in_both_precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)


def to_torch(array):
    return torch.tensor(np.ascontiguousarray(array), requires_grad=True)


def channels_first(tensor):
    return tensor.permute(0, 3, 1, 2)


def channels_last(tensor):
    return tensor.permute(0, 2, 3, 1)


def convolve_in_torch(x, w, b, stride, sides, dilation):
    """x (N, H, W, C), w (kh, kw, C, O), as here; NCHW and OIHW is what PyTorch wants."""
    (top, bottom), (left, right) = sides
    padded = functional.pad(channels_first(x), (left, right, top, bottom))
    kernel = w.permute(3, 2, 0, 1)
    return channels_last(functional.conv2d(padded, kernel, b, stride=stride, dilation=dilation))


def assert_same(ours, theirs, arrays, rng, tolerance):
    """Values, and gradients of a random combination of them."""
    tensors = [to_torch(array) for array in arrays]
    expected = theirs(*tensors)
    y = ours(*arrays)
    assert_close(y, expected.detach().numpy(), tolerance)
    g = rng.standard_normal(y.shape).astype(y.dtype)
    expected.backward(torch.tensor(g))
    for found, tensor in zip(pull_back(ours, arrays, g), tensors, strict=True):
        assert_close(found, tensor.grad.numpy(), tolerance)


CONVOLUTIONS = {
    "first of LeNet": ((9, 28, 28, 1), (5, 5, 8), {"padding": "same"}),
    "second of LeNet": ((9, 14, 14, 32), (5, 5, 64), {"padding": "same"}),
    "3×3": ((5, 17, 12, 16), (3, 3, 20), {"padding": 1}),
    "strided": ((5, 17, 12, 3), (3, 3, 20), {"padding": ((0, 1), (2, 1)), "stride": (2, 3)}),
    "dilated": ((5, 17, 12, 7), (3, 2, 4), {"padding": 2, "dilation": (2, 3)}),
    "pixels": ((5, 7, 6, 7), (1, 1, 9), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@in_both_precisions
def test_conv2d(rng, name, dtype, tolerance):
    size, (*kernel, out_channels), options = CONVOLUTIONS[name]
    x = rng.standard_normal(size).astype(dtype)
    w = rng.standard_normal((*kernel, size[-1], out_channels)).astype(dtype)
    b = rng.standard_normal(out_channels).astype(dtype)
    stride, dilation = options.get("stride", (1, 1)), options.get("dilation", (1, 1))
    sides = naive_borders(options.get("padding", 0), size[1:3], kernel, stride, dilation)
    assert_same(
        lambda *a: conv2d(*a, **options),
        lambda *a: convolve_in_torch(*a, stride, sides, dilation),
        [x, w, b], rng, tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
@pytest.mark.parametrize("levels", [2, 10**6], ids=["many ties", "no ties"])
@in_both_precisions
def test_pooling(rng, window, stride, padding, levels, dtype, tolerance):
    """Ties too: PyTorch as well gives the gradient to the first in reading order."""
    x = (rng.integers(0, levels, (3, 11, 9, 4)) / levels).astype(dtype)
    options = {"window": window, "stride": stride, "padding": padding}
    assert_same(
        lambda x: max_pool(x, **options),
        lambda x: channels_last(functional.max_pool2d(channels_first(x), window, stride, padding)),
        [x], rng, tolerance,
    )  # fmt: skip
    for counted in (True, False):
        assert_same(
            lambda x, counted=counted: mean_pool(x, **options, count_padding=counted),
            lambda x, counted=counted: channels_last(
                functional.avg_pool2d(
                    channels_first(x), window, stride, padding, count_include_pad=counted
                )
            ),
            [x], rng, tolerance,
        )  # fmt: skip


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@in_both_precisions
def test_the_loss(rng, smoothing, dtype, tolerance):
    z = (3 * rng.standard_normal((20, 7))).astype(dtype)
    labels = rng.integers(0, 7, 20)
    assert_same(
        lambda z: ops.softmax_cross_entropy(z, labels, smoothing=smoothing),
        lambda z: functional.cross_entropy(z, torch.tensor(labels), label_smoothing=smoothing),
        [z], rng, tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["exp", "log", "sqrt", "tanh", "sigmoid", "relu", "relu6", "log_softmax", "softmax"]
)
@in_both_precisions
def test_elementwise_functions(rng, name, dtype, tolerance):
    x = (4 * rng.standard_normal((20, 7))).astype(dtype)
    if name in ("log", "sqrt"):
        x = abs(x) + dtype(0.1)
    theirs = getattr(functional, name, None) or getattr(torch, name)
    last = {"dim": -1} if name.endswith("softmax") else {}
    assert_same(getattr(ops, name), lambda x: theirs(x, **last), [x], rng, tolerance)


def lenet_in_torch(model, theta, images, padding):
    """The network of `lenet` or `lenet_classic` from the same vector of weights."""
    arrays = {entry.name: theta[entry.start : entry.start + entry.size].reshape(entry.shape)
              for entry in model.layout.weights}  # fmt: skip
    x = images
    for number, pad in ((1, 2), (2, padding)):
        w, b = arrays[f"conv2d_{number}.weight"], arrays[f"conv2d_{number}.bias"]
        x = convolve_in_torch(x, w, b, 1, ((pad, pad), (pad, pad)), 1)
        x = channels_last(functional.relu(functional.max_pool2d(channels_first(x), 2)))
    x = x.reshape(len(x), -1)
    count = sum(name.startswith("dense") for name in arrays) // 2
    for number in range(1, count + 1):
        x = x @ arrays[f"dense_{number}.weight"] + arrays[f"dense_{number}.bias"]
        x = functional.relu(x) if number < count else x
    return x


@pytest.mark.parametrize(("make", "padding"), [(lenet, 2), (lenet_classic, 0)])
@in_both_precisions
def test_the_gradient_of_lenet(rng, make, padding, dtype, tolerance):
    model = make(dropout=0.0)
    theta = model.init(rng, dtype=dtype)
    images = rng.standard_normal((16, 28, 28, 1)).astype(dtype)
    labels = rng.integers(0, 10, 16)
    loss, gradient = model.loss_and_gradient(theta, images, labels)
    weights = to_torch(theta)
    logits = lenet_in_torch(model, weights, torch.tensor(images), padding)
    expected = functional.cross_entropy(logits, torch.tensor(labels))
    expected.backward()
    assert_close(model.logits(theta, images), logits.detach().numpy(), tolerance)
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    theirs = weights.grad.numpy()
    for entry in model.layout.weights:
        assert_close(entry.view(gradient), entry.view(theirs), tolerance)


def test_ten_steps_of_lenet_are_ten_steps_in_torch(rng):
    model = lenet_classic(dropout=0.0)
    theta = model.init(rng, dtype=np.float64)
    weights = to_torch(theta)
    ours, theirs = SGD(0.1), torch.optim.SGD([weights], 0.1)
    for _ in range(10):
        images = rng.standard_normal((8, 28, 28, 1))
        labels = rng.integers(0, 10, 8)
        _, gradient = model.loss_and_gradient(theta, images, labels)
        ours.step(theta, gradient)
        theirs.zero_grad()
        logits = lenet_in_torch(model, weights, torch.tensor(images), 0)
        functional.cross_entropy(logits, torch.tensor(labels)).backward()
        theirs.step()
    assert_close(theta, weights.detach().numpy(), 1e-10)
