"""Kernels in C that work channel by channel, against the same in NumPy, in every odd case."""

import itertools
from unittest import mock

import numpy as np
import pytest
from helpers import assert_close, generator, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.arrays import threads
from minires.kernels import compiled, cpu, plain

DTYPES = [np.float32, np.float64]
ACTIVATIONS = [None, "relu", "relu6"]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}

not_a_number = pytest.mark.filterwarnings("ignore:invalid value")
pytestmark = pytest.mark.skipif(
    compiled.functions(np.dtype(np.float32)) is None, reason="there is no C compiler"
)


def same_bits(function, *arrays):
    """The result on one thread; on two and five it must be the same, bit for bit."""
    results = []
    for count in (1, 2, 5):
        with threads(count):
            result = function(*arrays)
            results.append(result if isinstance(result, tuple) else (result,))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return results[0] if len(results[0]) > 1 else results[0][0]


def assert_same_as_plain(actual, expected, dtype, scale=None):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert_close(actual[finite], expected[finite], TOLERANCE[dtype], scale)


# --- depthwise convolution ----------------------------------------------------------------

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
sides = st.tuples(st.integers(0, 4), st.integers(0, 4))


@st.composite
def depthwise_cases(draw):
    """Every kernel, stride, padding and dilation; 3×3, which has loops of its own, more often."""
    kernel = draw(st.sampled_from([(3, 3), None])) or draw(pairs)
    stride, dilation = draw(st.sampled_from([(1, 1), (2, 2), None])) or draw(pairs), draw(pairs)
    dilation = draw(st.sampled_from([(1, 1), dilation]))
    padding = draw(st.tuples(sides, sides))
    size = [
        max(d * (k - 1) + 1 - sum(border), 1) + draw(st.integers(0, 12))
        for k, d, border in zip(kernel, dilation, padding, strict=True)
    ]
    replicas, images = draw(st.sampled_from([1, 3])), draw(st.integers(0, 3))
    sources, channels = draw(st.sampled_from([1, replicas])), draw(st.integers(1, 40))
    dtype, rng = draw(st.sampled_from(DTYPES)), generator(draw(seeds))
    x = rng.standard_normal((sources, images, *size, channels)).astype(dtype)
    w = rng.standard_normal((replicas, *kernel, channels)).astype(dtype)
    bias = rng.standard_normal((replicas, channels)).astype(dtype) if draw(st.booleans()) else None
    return x, w, bias, (stride, padding, dilation), rng


@settings(max_examples=200)
@given(case=depthwise_cases(), activation=st.sampled_from(ACTIVATIONS))
def test_depthwise_and_its_gradients(case, activation):
    x, w, bias, how, rng = case
    dtype, kernel, shape = x.dtype.type, w.shape[1:3], x.shape[1:]
    y = same_bits(lambda: cpu.depthwise(x, w, bias, *how, activation))
    assert_same_as_plain(y, plain.depthwise(x, w, bias, *how, activation), dtype)
    g = rng.standard_normal(y.shape).astype(dtype)
    assert_same_as_plain(
        same_bits(lambda: cpu.depthwise_input_gradient(g, w, shape, *how)),
        plain.depthwise_input_gradient(g, w, shape, *how),
        dtype,
    )
    assert_same_as_plain(
        same_bits(lambda: cpu.depthwise_weight_gradient(x, g, kernel, *how)),
        plain.depthwise_weight_gradient(x, g, kernel, *how),
        dtype,
        scale=max(1, np.sqrt(g[0, ..., 0].size)),
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 16, 35])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@not_a_number
def test_depthwise_carries_what_is_no_number(rng, stride, channels, activation):
    x, w = rng.standard_normal((1, 2, 9, 8, channels)), rng.standard_normal((1, 3, 3, channels))
    x[0, 0, 0, 0, 0], x[0, 0, 4, 5, 1], x[0, 1, 8, 7, 2] = np.nan, np.inf, -np.inf
    how = (stride, stride), ((1, 1), (1, 1)), (1, 1)
    y = plain.depthwise(x, w, None, *how, activation)
    assert np.isnan(y).any()
    assert_same_as_plain(cpu.depthwise(x, w, None, *how, activation), y, np.float64)
    g = rng.standard_normal(y.shape)
    assert_same_as_plain(
        cpu.depthwise_weight_gradient(x, g, (3, 3), *how),
        plain.depthwise_weight_gradient(x, g, (3, 3), *how),
        np.float64,
    )
    g[0, 0, 1, 1, 0], g[0, 1, 2, 2, 1] = np.nan, np.inf
    assert_same_as_plain(
        cpu.depthwise_input_gradient(g, w, x.shape[1:], *how),
        plain.depthwise_input_gradient(g, w, x.shape[1:], *how),
        np.float64,
    )


# --- separable convolutions ---------------------------------------------------------------


@st.composite
def separable_cases(draw):
    kernel, stride = draw(pairs), draw(pairs)
    padding = draw(st.tuples(sides, sides))
    size = [
        max(k - sum(border), 1) + draw(st.integers(0, 12))
        for k, border in zip(kernel, padding, strict=True)
    ]
    replicas, images = draw(st.sampled_from([1, 2])), draw(st.integers(0, 9))
    sources, expands = draw(st.sampled_from([1, replicas])), draw(st.booleans())
    channels, wide, after = (draw(st.integers(1, 50)) for _ in range(3))
    wide = draw(st.sampled_from([wide, wide, 112, 200, 331]))  # many: in parts
    dtype, rng = draw(st.sampled_from(DTYPES)), generator(draw(seeds))
    if not expands:
        wide = channels

    def weights(*shape):
        return (
            rng.standard_normal((replicas, *shape)).astype(dtype),
            rng.standard_normal((replicas, shape[-1])).astype(dtype),
        )

    return (
        rng.standard_normal((sources, images, *size, channels)).astype(dtype),
        weights(channels, wide) if expands else None,
        weights(*kernel, wide),
        weights(wide, after),
        stride,
        padding,
        [draw(st.sampled_from(ACTIVATIONS)) for _ in range(3)],
    )


def one_after_another(x, expand, depthwise, project, stride, padding, activations):
    one, none = (1, 1), ((0, 0), (0, 0))
    first, second, third = activations
    if expand is not None:
        x = plain.convolve(x, expand[0][:, None, None], expand[1], one, none, one, first)
    x = plain.depthwise(x, *depthwise, stride, padding, one, second)
    return plain.convolve(x, project[0][:, None, None], project[1], one, none, one, third)


@settings(max_examples=200)
@given(case=separable_cases(), tile_bytes=st.sampled_from([1, 3000, 50000, 1 << 20]))
def test_separable_convolutions_are_one_after_another(case, tile_bytes):
    with mock.patch.object(cpu, "WIDE_BYTES", tile_bytes):
        y = same_bits(lambda: cpu.separable(*case))
    x, _, (taps, _), *_ = case
    scale = np.sqrt(x.shape[-1] * taps[0].size)  # of a sum of so many terms
    assert_same_as_plain(y, one_after_another(*case), x.dtype.type, scale)


@not_a_number
def test_separable_convolutions_carry_what_is_no_number(rng):
    x = rng.standard_normal((1, 2, 6, 5, 3))
    x[0, 0, 2, 2, 1], x[0, 1, 5, 4, 0] = np.nan, np.inf
    weights = [(1, 3, 18), (1, 3, 3, 18), (1, 18, 5)]
    weights = [(rng.standard_normal(s), rng.standard_normal((1, s[-1]))) for s in weights]
    case = x, *weights, (1, 1), ((1, 1), (1, 1)), [None, "relu6", None]
    expected = one_after_another(*case)
    assert 0 < np.isnan(expected).sum() < expected.size
    assert_same_as_plain(cpu.separable(*case), expected, np.float64)


def test_separable_convolutions_of_many_images_whose_last_row_no_window_meets(rng):
    """Some small images are one tile only where a tile has all of their rows."""
    x = rng.standard_normal((1, 40, 4, 5, 3))
    expand = rng.standard_normal((1, 3, 18)), rng.standard_normal((1, 18))
    filters = rng.standard_normal((1, 3, 3, 18)), rng.standard_normal((1, 18))
    project = rng.standard_normal((1, 18, 7)), rng.standard_normal((1, 7))
    case = x, expand, filters, project, (2, 2), ((0, 0), (0, 0)), ("relu6", "relu6", None)
    assert_same_as_plain(cpu.separable(*case), one_after_another(*case), np.float64)


@settings(max_examples=5)
@given(case=separable_cases())
def test_separable_convolutions_without_a_compiler(case):
    with mock.patch.object(compiled, "functions", return_value=None):
        y = cpu.separable(*case)
    assert_same_as_plain(y, one_after_another(*case), case[0].dtype.type)


# --- batch norm ---------------------------------------------------------------------------


@st.composite
def norm_cases(draw):
    replicas, rows = draw(st.sampled_from([1, 3])), draw(st.integers(1, 300))
    sources, channels = draw(st.sampled_from([1, replicas])), draw(st.integers(1, 70))
    dtype, rng = draw(st.sampled_from(DTYPES)), generator(draw(seeds))
    x = rng.standard_normal((sources, rows, channels)) + 5 * rng.standard_normal(channels)
    return x.astype(dtype), replicas, draw(st.sampled_from(ACTIVATIONS)), rng


@settings(max_examples=200)
@given(case=norm_cases(), part=st.sampled_from([1, 500, 1 << 16]), of_batch=st.booleans())
def test_the_four_passes_of_batch_norm(case, part, of_batch):
    x, replicas, activation, rng = case
    dtype, (_, rows, channels) = x.dtype.type, x.shape

    def per_channel():
        return rng.standard_normal((replicas, 1, channels)).astype(dtype)

    factor, offset, center, slope, constant = (per_channel() for _ in range(5))
    with mock.patch.object(cpu, "PART", part):
        moments = same_bits(cpu.norm_moments, x)
        for actual, expected in zip(moments, plain.norm_moments(x), strict=True):
            assert_same_as_plain(actual, expected, dtype)

        y = same_bits(cpu.normalize, x, factor, offset, replicas, activation)
        expected = plain.normalize(x, factor, offset, replicas, activation)
        assert_same_as_plain(y, expected, dtype)

        g = rng.standard_normal(y.shape).astype(dtype)
        given = g, x, center, factor, offset, activation
        given_on, *sums = same_bits(cpu.norm_sums, *given)
        plain_g, *expected = plain.norm_sums(*given)
        for actual, wanted in zip(sums, expected, strict=True):
            assert_same_as_plain(actual, wanted, dtype, scale=5 * np.sqrt(rows))

        through = (slope, constant) if of_batch else None
        given = x, factor, offset, through, activation
        actual = same_bits(cpu.norm_gradient, given_on, *given)
        expected = plain.norm_gradient(plain_g, *given)
        assert_same_as_plain(actual, expected, dtype)


@not_a_number
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 39, (1 << 14) - 1, 3 * (1 << 14) + 5])
def test_the_gradient_of_an_activation(rng, dtype, size):
    g, a = 4 * rng.standard_normal((2, size), dtype=dtype)
    if size > 20:
        g[[0, 1, 18]], a[[2, 3, 17]], a[[4, -1]] = np.nan, np.nan, (6, 0)
        g[:10], a[0] = np.inf, -1
    for activation in ACTIVATIONS:
        y = plain.activate(a, None, activation)
        actual = same_bits(cpu.activate_gradient, g, y, activation)
        np.testing.assert_array_equal(actual, plain.activate_gradient(g, y, activation))
        assert actual.dtype == dtype


@not_a_number
def test_batch_norm_carries_what_is_no_number(rng):
    x, g = rng.standard_normal((2, 1, 50, 19))
    x[0, 3, 4], x[0, 7, 17], g[0, 5, 1], g[0, 6, 18] = np.nan, np.inf, np.nan, np.inf
    factor, offset, center = rng.standard_normal((3, 1, 1, 19))
    for activation in ACTIVATIONS:
        y = plain.normalize(x, factor, offset, 1, activation)
        actual = cpu.normalize(x, factor, offset, 1, activation)
        assert_same_as_plain(actual, y, np.float64)
        own, *sums = cpu.norm_sums(g, x, center, factor, offset, activation)
        plain_own, *expected = plain.norm_sums(g, x, center, factor, offset, activation)
        for a, b in zip(sums, expected, strict=True):
            assert_same_as_plain(a, b, np.float64)
        assert_same_as_plain(
            cpu.norm_gradient(own, x, factor, offset, (offset, center), activation),
            plain.norm_gradient(plain_own, x, factor, offset, (offset, center), activation),
            np.float64,
        )
    (mean, variance), (plain_mean, plain_variance) = cpu.norm_moments(x), plain.norm_moments(x)
    assert_same_as_plain(mean, plain_mean, np.float64)  # infinite, or not a number, as there
    np.testing.assert_array_equal(np.isfinite(variance), np.isfinite(plain_variance))


def test_moments_of_a_batch_keep_a_variance_far_below_the_mean(rng):
    """Deviations of 0.01 around 100: E[x²] − E[x]² in float32 would have no digit of them."""
    x = (100 + 1e-2 * rng.standard_normal((1, 200_000, 17))).astype(np.float32)
    mean, variance = cpu.norm_moments(x)
    exact = x.astype(float)
    assert_close(mean[0], exact.mean(axis=1), 1e-8)
    assert_close(variance[0], exact.var(axis=1), 1e-4)


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 101])
@pytest.mark.parametrize("rows", [50, 300, 64 * 300])
@pytest.mark.parametrize("away", [1, 32])
@pytest.mark.parametrize("deviation", [0, 1e-3])
def test_moments_keep_their_digits_however_the_rows_are_arranged(
    rng, deviation, away, rows, channels
):
    """The first rows are far from all others, which may be constant, as zeros after a ReLU are."""
    x = np.float32(deviation) * rng.standard_normal((1, rows, channels), dtype=np.float32)
    x[0, :away] += rng.uniform(1, 2, channels).astype(np.float32)
    for order in (slice(None), slice(None, None, -1)):
        exact = x[:, order].astype(float)
        mean, variance = cpu.norm_moments(x[:, order])
        assert_close(mean[0], exact.mean(axis=1), 1e-6)
        assert_close(variance[0] / exact.var(axis=1), np.ones((1, channels)), 2e-6)


@pytest.mark.parametrize("rows", [3, 7, 33, 1000])
@pytest.mark.parametrize("size", [1, 1e-23])  # the squares of the smaller ones are 0 in float32
def test_a_channel_that_is_the_same_everywhere_has_no_variance(rng, size, rows):
    channels = np.float32(size) * rng.standard_normal(160, dtype=np.float32)
    mean, variance = cpu.norm_moments(np.broadcast_to(channels, (1, rows, 160)))
    assert_close(mean[0, 0], channels, 1e-6)
    assert (variance >= 0).all()
    assert variance.max() < 1e-12 * size**2


@given(case=norm_cases(), part=st.sampled_from([1, 500, 1 << 16]))
def test_sums_over_rows(case, part):
    x, *_ = case
    with mock.patch.object(cpu, "PART", part):
        actual = same_bits(cpu.sum_rows, x)
    assert_same_as_plain(actual, plain.sum_rows(x), x.dtype.type, scale=10 * np.sqrt(x.shape[1]))


def test_sums_over_rows_of_any_shape(rng):
    for shape in [(0, 3), (4, 0), (0, 2, 3), (2, 0, 3), (2, 5, 4, 3)]:
        x = rng.standard_normal(shape)
        assert_close(cpu.sum_rows(x), x.sum(axis=-2))
    turned = rng.standard_normal((5, 7)).T
    assert_close(cpu.sum_rows(turned), turned.sum(axis=-2))


def test_sums_of_a_million_float32_keep_their_digits():
    x = np.full((1_000_000, 3), 0.1, np.float32)
    assert_close(cpu.sum_rows(x), x.astype(float).sum(axis=0), 1e-6)


# --- updates of all weights ---------------------------------------------------------------


@st.composite
def updates(draw):
    """θ, and vectors like it; sizes that no block divides"""
    size = draw(st.sampled_from([0, 1, 7, 1000, (1 << 14) + 5, 50_001]))
    shape = draw(st.sampled_from([(size,), (1, size), (3, size)]))
    dtype, rng = draw(st.sampled_from(DTYPES)), generator(draw(seeds))
    rates = [0.1] if draw(st.booleans()) or len(shape) == 1 else [0.1, 0.2, 0.3][: shape[0]]
    vectors = [rng.standard_normal(shape).astype(dtype) for _ in range(4)]
    return vectors, np.array(rates, dtype), rng


def both(name, arrays, *arguments):
    """Do the same to copies of arrays in C and in NumPy; the bits must be the same."""
    expected = [None if a is None else a.copy() for a in arrays]
    getattr(plain, name)(*expected, *arguments)
    for count in (1, 2, 5):
        actual = [None if a is None else a.copy() for a in arrays]
        with threads(count):
            getattr(cpu, name)(*actual, *arguments)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    pairs = zip(arrays, expected, strict=True)
    return sum(a is not None and not np.array_equal(a, b) for a, b in pairs)


@given(case=updates())
def test_steps_and_moments_have_the_bits_of_the_formula(case):
    (theta, gradient, first, second), rates, rng = case
    for momentum, decay in itertools.product((0, 0.9), (0, 1e-2)):
        velocity = first if momentum else None
        changed = both("step_sgd", (theta, gradient, velocity), rates, momentum, decay)
        assert changed == (1 + bool(momentum)) * bool(theta.size)
    epsilon = np.array([1e-8], theta.dtype)
    both("step_adam", (theta, gradient, first, second**2), rates, epsilon, 0.9, 0.999)
    offset, m2 = rng.standard_normal((2, *theta.shape))
    for n in (2, 7, 10_000):
        changed = both("fold_moments", (theta, first, offset, m2**2), np.array([n]))
        assert changed == 2 * bool(theta.size)
    assert both("fold_average", (offset, theta), rng.uniform(size=1)) == bool(theta.size)


@not_a_number
def test_updates_carry_what_is_no_number(rng):
    theta, gradient, first, second = (rng.standard_normal(100) for _ in range(4))
    gradient[3], gradient[4], theta[50], second[7] = np.nan, np.inf, -np.inf, np.nan
    both("step_sgd", (theta, gradient, first), np.array([0.1]), 0.9, 1e-3)
    both("step_adam", (theta, gradient, first, second**2), np.array([0.1]), [1e-8], 0.9, 0.99)
    both("fold_moments", (theta, first, gradient, second**2), np.array([3]))
    both("fold_average", (gradient, theta), np.array([0.1]))


# --- results that are written past the caches ---------------------------------------------

FAR = 1 << 24  # FAR_BYTES of c/vectors.h


@pytest.mark.parametrize("channels", [48, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_larger_than_the_caches_have_the_same_bits(rng, dtype, channels):
    """Each image alone is small; all are written in another way, for whole vectors of channels."""
    images, size = FAR // (32 * 32 * 48 * np.dtype(dtype).itemsize) + 1, (32, 32)
    x = rng.standard_normal((1, images, *size, channels), dtype=dtype)
    g = rng.standard_normal(x.shape, dtype=dtype)
    factor, offset, slope, constant = rng.standard_normal((4, 1, 1, channels), dtype=dtype)
    weights = rng.standard_normal((1, 1, 1, channels, channels), dtype=dtype)
    none = (1, 1), ((0, 0), (0, 0)), (1, 1)

    def rows(array):
        return array.reshape(1, -1, channels)

    kernels = {
        "normalize": lambda x, g: cpu.normalize(rows(x), factor, offset, 1, "relu6"),
        "norm_gradient": lambda x, g: cpu.norm_gradient(
            rows(g), rows(x), factor, offset, (slope, constant), "relu"
        ),
        "convolve": lambda x, g: cpu.convolve(x, weights, offset[:, 0], *none, "relu6"),
    }
    for name, kernel in kernels.items():
        whole = same_bits(kernel, x, g)
        assert whole.nbytes >= FAR
        parts = [kernel(x[:, [n]], g[:, [n]]) for n in range(images)]
        np.testing.assert_array_equal(
            rows(whole), np.concatenate([*map(rows, parts)], axis=1), name
        )
