"""Oracles that several test files share: slow, literal, and written from the definitions."""

import numpy as np
from hypothesis import strategies as st

from minires.engine.autodiff import gradients, variable

seeds = st.integers(0, 2**32 - 1)


def generator(seed):
    return np.random.default_rng(seed)


def assert_close(actual, expected, tolerance=1e-12, scale=None):
    """Equal shapes, and no difference above `tolerance` times the largest expected number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    if not expected.size:
        return
    scale = max(np.abs(expected).max(), 1e-300) if scale is None else scale
    worst = np.abs(actual - expected).max()
    assert worst <= tolerance * scale, f"off by {worst:.3g}, allowed {tolerance * scale:.3g}"


def pull_back(function, arrays, seed):
    """The gradients of ⟨function(arrays), seed⟩ with respect to every array."""
    variables = [variable(array) for array in arrays]
    return gradients(function(*variables), variables, seed)


def assert_adjoint(function, *arrays, rng, tolerance=1e-12):
    """For a linear function A of one array, and for each of a multilinear one:

    ⟨A x, g⟩ = ⟨x, Aᵀ g⟩
    """
    result = function(*arrays)
    g = rng.standard_normal(result.shape)
    forward = (result * g).sum()
    scale = np.abs(result * g).sum() + 1e-300
    for number, (array, pulled) in enumerate(
        zip(arrays, pull_back(function, arrays, g), strict=True)
    ):
        assert pulled.shape == array.shape
        assert pulled.dtype == array.dtype
        backward = (array * pulled).sum()
        size = max(scale, np.abs(array * pulled).sum())
        assert abs(forward - backward) <= tolerance * size, f"argument {number}"


def assert_gradient(function, *arrays, rng, step=1e-6, tolerance=1e-7):
    """Every argument's gradient, in a random direction, against a central difference."""
    seed = rng.standard_normal(np.shape(function(*arrays)))
    pulled = pull_back(function, arrays, seed)
    for number, array in enumerate(arrays):
        direction = rng.standard_normal(array.shape)

        def moved(by, number=number, direction=direction):
            inputs = list(arrays)
            inputs[number] = inputs[number] + by * direction
            return (function(*inputs) * seed).sum()

        expected = (moved(step) - moved(-step)) / (2 * step)
        actual = (pulled[number] * direction).sum()
        scale = np.abs(pulled[number] * direction).sum() + abs(expected) + 1e-3
        assert pulled[number].shape == array.shape
        assert abs(actual - expected) <= tolerance * scale, f"argument {number}"


def assert_complex_step(function, *arrays, rng, tolerance=1e-12):
    """As `assert_gradient`, exact to rounding, for functions that are analytic.

    d/dt f(x + t d) = Im f(x + i h d) / h, where h may be 1e-30: nothing is subtracted.
    """
    seed = rng.standard_normal(np.shape(function(*arrays)))
    pulled = pull_back(function, arrays, seed)
    for number, array in enumerate(arrays):
        direction = rng.standard_normal(array.shape)
        inputs = list(arrays)
        inputs[number] = array + 1e-30j * direction
        expected = (np.imag(function(*inputs)) / 1e-30 * seed).sum()
        actual = (pulled[number] * direction).sum()
        scale = np.abs(pulled[number] * direction).sum() + abs(expected) + 1e-300
        assert pulled[number].shape == array.shape
        assert pulled[number].dtype == array.dtype
        assert abs(actual - expected) <= tolerance * scale, f"argument {number}"


# --- images -------------------------------------------------------------------------------


def pad(x, padding, value=0.0):
    """`x` (…, H, W, C) with a border."""
    return np.pad(x, [(0, 0)] * (x.ndim - 3) + [*padding, (0, 0)], constant_values=value)


def naive_same(size, kernel, stride, dilation):
    """The border of padding "same" along one axis, found by trying."""
    total = 0
    while (size + total - (dilation * (kernel - 1) + 1)) // stride + 1 < -(-size // stride):
        total += 1
    return total // 2, total - total // 2


def naive_borders(padding, size, kernel, stride, dilation):
    if padding == "same":
        return tuple(map(naive_same, size, kernel, stride, dilation))
    if padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding[0], int):
        return tuple((p, p) for p in padding)
    return padding


def naive_conv2d(x, w, b, stride, borders, dilation):
    """Two loops over outputs and two over taps: x (N, H, W, C), w (kh, kw, C, O)."""
    x = pad(x, borders)
    kh, kw, _, out_channels = w.shape
    high = (x.shape[1] - (dilation[0] * (kh - 1) + 1)) // stride[0] + 1
    wide = (x.shape[2] - (dilation[1] * (kw - 1) + 1)) // stride[1] + 1
    y = np.zeros((len(x), high, wide, out_channels), np.result_type(x, w))
    for i in range(high):
        for j in range(wide):
            for u in range(kh):
                for v in range(kw):
                    row, column = i * stride[0] + u * dilation[0], j * stride[1] + v * dilation[1]
                    y[:, i, j] += np.einsum("nc,co->no", x[:, row, column], w[u, v])
    return y if b is None else y + b


def naive_windows(x, window, stride, borders, dilation, value):
    """Every window of every image as a list of (n, i, j, c, values, their places)."""
    padded = pad(x, borders, value)
    high = (padded.shape[1] - (dilation[0] * (window[0] - 1) + 1)) // stride[0] + 1
    wide = (padded.shape[2] - (dilation[1] * (window[1] - 1) + 1)) // stride[1] + 1
    for n in range(len(x)):
        for i in range(high):
            for j in range(wide):
                places = [
                    (i * stride[0] + u * dilation[0], j * stride[1] + v * dilation[1])
                    for u in range(window[0])
                    for v in range(window[1])
                ]
                for c in range(x.shape[-1]):
                    yield n, i, j, c, [padded[n, r, k, c] for r, k in places], places


def lay_out(x, how):
    """The same numbers, another way in memory; images (…, H, W, C)."""
    if how == "channels first":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, -3)), -3, -1)
    if how == "every other":
        wide = np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if how == "backwards":
        return np.ascontiguousarray(x[..., ::-1, ::-1, :])[..., ::-1, ::-1, :]
    return np.ascontiguousarray(x)
