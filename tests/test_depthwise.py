"""Depthwise convolution against loops and `scipy.signal`, its gradients, its replicas."""

import numpy as np
import pytest
from helpers import assert_adjoint, assert_close, assert_gradient, generator, pull_back, seeds
from hypothesis import given
from hypothesis import strategies as st

from minires.arrays import threads
from minires.engine.convolution import borders, depthwise_conv2d
from minires.kernels import cpu


def literally(x, w, stride, padding, dilation):
    """The sum in the docstring, one output after another."""
    padding = borders(padding, x.shape[1:3], w.shape[:2], stride, dilation)
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    span = [d * (k - 1) + 1 for k, d in zip(w.shape[:2], dilation, strict=True)]
    high, wide = ((n - s) // t + 1 for n, s, t in zip(x.shape[1:3], span, stride, strict=True))
    y = np.zeros((len(x), high, wide, x.shape[-1]))
    for i in range(high):
        for j in range(wide):
            for u in range(w.shape[0]):
                for v in range(w.shape[1]):
                    row, column = i * stride[0] + u * dilation[0], j * stride[1] + v * dilation[1]
                    y[:, i, j] += x[:, row, column] * w[u, v]
    return y


@st.composite
def cases(draw):
    small = st.integers(1, 3)
    kernel, stride, dilation = ((draw(small), draw(small)) for _ in range(3))
    size = tuple(
        d * (k - 1) + 1 + draw(st.integers(0, 6)) for k, d in zip(kernel, dilation, strict=True)
    )
    edge = st.integers(0, 2)
    padding = draw(
        st.one_of(
            edge,
            st.tuples(st.tuples(edge, edge), st.tuples(edge, edge)),
            st.sampled_from(["same", "valid"]),
        )
    )
    rng = generator(draw(seeds))
    channels, count = draw(st.integers(1, 5)), draw(small)
    x = rng.standard_normal((count, *size, channels))
    w = rng.standard_normal((*kernel, channels))
    return x, w, {"stride": stride, "padding": padding, "dilation": dilation}, rng


@given(cases())
def test_every_output_is_the_sum_of_its_window(case):
    x, w, settings, _ = case
    assert_close(depthwise_conv2d(x, w, **settings), literally(x, w, **settings))


@given(cases())
def test_gradients_are_adjoint(case):
    x, w, settings, rng = case
    assert_adjoint(lambda x, w: depthwise_conv2d(x, w, **settings), x, w, rng=rng)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_bias_and_activation(activation, rng):
    x, w = 4 * rng.standard_normal((2, 6, 5, 3)), rng.standard_normal((3, 3, 3))
    b = rng.standard_normal(3)
    y = literally(x, w, (1, 1), 1, (1, 1)) + b
    wanted = {None: y, "relu": np.maximum(y, 0), "relu6": np.clip(y, 0, 6)}[activation]

    def function(x, w, b):
        return depthwise_conv2d(x, w, b, padding=1, activation=activation)

    assert_close(function(x, w, b), wanted)
    assert_gradient(function, x, w, b, rng=rng)


@pytest.mark.parametrize("stride", [1, 2])
def test_replicas_at_once_equal_one_by_one(stride, rng):
    w, b = rng.standard_normal((3, 3, 3, 4)), rng.standard_normal((3, 4))
    for shape in [(2, 7, 6, 4), (3, 2, 7, 6, 4)]:
        x = rng.standard_normal(shape)

        def function(x, w, b):
            return depthwise_conv2d(x, w, b, stride=stride, padding="same", activation="relu")

        y = function(x, w, b)
        seed = rng.standard_normal(y.shape)
        pulled = pull_back(function, (x, w, b), seed)
        images = [x[r] if x.ndim == 5 else x for r in range(3)]
        singly = [pull_back(function, (images[r], w[r], b[r]), seed[r]) for r in range(3)]
        assert_close(y, np.stack([function(images[r], w[r], b[r]) for r in range(3)]))
        together = np.stack([s[0] for s in singly])
        assert_close(pulled[0], together if x.ndim == 5 else together.sum(axis=0))
        for number in (1, 2):
            assert_close(pulled[number], np.stack([s[number] for s in singly]))


@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_and_threads_change_nothing(stride, rng, monkeypatch):
    x = rng.standard_normal((3, 21, 24, 5), np.float32)
    w = rng.standard_normal((3, 3, 5), np.float32)

    def everything():
        y = depthwise_conv2d(x, w, stride=stride, padding=1)
        return y, *pull_back(
            lambda x, w: depthwise_conv2d(x, w, stride=stride, padding=1), (x, w), y
        )

    whole = everything()
    monkeypatch.setattr(cpu, "WEIGHT_PARTS", 2)  # so that a part adds up several rows
    with threads(1):
        one = everything()
    with threads(3):
        three = everything()
    for a, b, c in zip(whole, one, three, strict=True):
        assert_close(b, a, 1e-5)
        np.testing.assert_array_equal(b, c)


def test_float32_is_float32_and_exact(rng):
    x, w = rng.standard_normal((2, 30, 30, 8)), rng.standard_normal((3, 3, 8))

    def function(x, w):
        return depthwise_conv2d(x, w, padding="same")

    g = rng.standard_normal((2, 30, 30, 8))
    single = [a.astype(np.float32) for a in (x, w, g)]
    y = function(*single[:2])
    assert y.dtype == np.float32
    assert_close(y, function(x, w), 1e-6)
    pulled = pull_back(function, single[:2], single[2])
    for low, high in zip(pulled, pull_back(function, (x, w), g), strict=True):
        assert low.dtype == np.float32
        assert_close(low, high, 1e-5)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((1, 5, 5, 3), (3, 3, 4), "x has 3 channels, w has 4"),
        ((5, 5, 3), (3, 3, 3), "expected"),
        ((1, 5, 5, 3), (7, 7, 3), "exceeds the image"),
        ((2, 1, 5, 5, 3), (3, 3, 3, 3), "leading axes"),
    ],
)
def test_errors_name_the_shapes(x, w, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(np.zeros(x), np.zeros(w))


def test_wrong_types_bias_and_activation_are_named():
    x, w = np.zeros((1, 5, 5, 3)), np.zeros((3, 3, 3))
    with pytest.raises(ValueError, match="x is float64, w is float32"):
        depthwise_conv2d(x, w.astype(np.float32))
    with pytest.raises(ValueError, match=r"b is \(4,\)"):
        depthwise_conv2d(x, w, np.zeros(4))
    with pytest.raises(ValueError, match="'tanh'"):
        depthwise_conv2d(x, w, activation="tanh")
