"""Convolution, pooling and products in C against the same in NumPy, in every odd case."""

import itertools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers import assert_close, generator, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.arrays import threads
from minires.kernels import compiled, cpu, plain, winograd

ROOT = Path(__file__).resolve().parent.parent
ACTIVATIONS = [None, "relu", "relu6"]
pytestmark = pytest.mark.skipif(
    compiled.functions(np.dtype(np.float32)) is None, reason="there is no C compiler"
)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


def same_bits(function):
    """The result on one thread; on two and five it must be the same, bit for bit."""
    results = []
    for count in (1, 2, 5):
        with threads(count):
            result = function()
            results.append(result if isinstance(result, tuple) else (result,))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return results[0] if len(results[0]) > 1 else results[0][0]


def compare(actual, expected, terms, rough=1):
    """Sums of so many products of normal numbers: equal to rounding."""
    assert actual.dtype == expected.dtype
    tolerance = {4: 4e-7, 8: 1e-15}[actual.itemsize] * rough
    assert_close(actual, expected, tolerance * 10, scale=5 * np.sqrt(max(terms, 1)))


def draw_arrays(draw, kernel, size, channels, out_channels):
    replicas, images = draw(st.sampled_from([1, 3])), draw(st.integers(0, 11))
    dtype, rng = draw(st.sampled_from([np.float32, np.float64])), generator(draw(seeds))
    x = rng.standard_normal((draw(st.sampled_from([1, replicas])), images, *size, channels))
    w = rng.standard_normal((replicas, *kernel, channels, out_channels))
    bias = rng.standard_normal((replicas, out_channels))
    bias = bias.astype(dtype) if draw(st.booleans()) else None
    return x.astype(dtype), w.astype(dtype), bias, rng


@st.composite
def convolutions(draw):
    kernel, stride, padding = draw(pairs), draw(pairs), draw(st.tuples(sides, sides))
    dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    size = [
        max(d * (k - 1) + 1 - sum(border), 1) + draw(st.integers(0, 12))
        for k, d, border in zip(kernel, dilation, padding, strict=True)
    ]
    channels = draw(st.sampled_from([1, 2, 3, 7, 16, 17]))
    out_channels = draw(st.sampled_from([1, 4, 8, 15, 17, 33, 49, 64, 70]))
    arrays = draw_arrays(draw, kernel, size, channels, out_channels)
    return *arrays, (stride, padding, dilation)


@st.composite
def winograd_convolutions(draw):
    r = draw(st.sampled_from([3, 5]))
    border = st.tuples(st.integers(0, r - 1), st.integers(0, r - 1))
    size = draw(st.tuples(st.integers(8, 20), st.integers(8, 20)))
    channels, out_channels = (draw(st.sampled_from([16, 17, 20, 33])) for _ in range(2))
    arrays = draw_arrays(draw, (r, r), size, channels, out_channels)
    return *arrays, ((1, 1), draw(st.tuples(border, border)), (1, 1))


def check(case, activation, window, rough):
    x, w, bias, rng, how = case
    kernel, terms = w.shape[1:3], w[0, ..., 0].size
    expected = plain.convolve(x, w, bias, *how, None)
    y = same_bits(lambda: cpu.convolve(x, w, bias, *how, None))
    compare(y, expected, terms, rough)
    active = cpu.convolve(x, w, bias, *how, activation)
    np.testing.assert_array_equal(active, plain.activate(y, None, activation))
    if y.shape[2] >= window[0] and y.shape[3] >= window[1]:
        pooled, winners = same_bits(
            lambda: cpu.convolve_and_pool(x, w, bias, *how, activation, window)
        )
        images = active.reshape(-1, *active.shape[2:])
        largest = plain.max_pool(images, window, window, ((0, 0), (0, 0)), (1, 1))
        np.testing.assert_array_equal(pooled, largest.reshape(pooled.shape))
        g = rng.standard_normal(pooled.shape).astype(x.dtype)
        unpool = g, winners, window, y.shape[2:4]
        np.testing.assert_array_equal(same_bits(lambda: cpu.unpool(*unpool)), plain.unpool(*unpool))
    g = rng.standard_normal(y.shape).astype(x.dtype)
    actual = same_bits(lambda: cpu.convolve_weight_gradient(x, g, kernel, *how))
    expected = plain.convolve_weight_gradient(x, g, kernel, *how)
    compare(actual, expected, g[0, ..., 0].size, rough)
    actual = same_bits(lambda: cpu.convolve_input_gradient(g, w, x.shape[1:], *how))
    expected = plain.convolve_input_gradient(g, w, x.shape[1:], *how)
    compare(actual, expected, terms * w.shape[-1], rough)


@settings(max_examples=100)
@given(convolutions(), st.sampled_from(ACTIVATIONS), pairs, st.sampled_from([1, 2000, 1 << 19]))
def test_convolution_and_its_gradients(case, activation, window, tile_bytes):
    with mock.patch.object(cpu, "TILE_BYTES", tile_bytes):
        check(case, activation, window, rough=1)


tile_sizes = st.sampled_from([1, 1 << 17, 1 << 20])


@settings(max_examples=25)
@given(
    winograd_convolutions(),
    st.sampled_from(ACTIVATIONS),
    pairs,
    tile_sizes,
)
def test_winograd_and_its_gradients(case, activation, window, tile_bytes):
    x, w, *_ = case
    assert winograd.applies(x.shape[-3:], w.shape[1:], (1, 1), (1, 1))
    with mock.patch.object(cpu, "PIECES_BYTES", tile_bytes):
        check(case, activation, window, rough=20)


@pytest.mark.parametrize("window", [(3, 2), (2, 3)])
def test_tiles_of_winograd_hold_whole_windows_of_a_pooling(rng, window):
    """The smallest tile would be one row of pieces: four rows of pixels."""
    x, w = rng.standard_normal((1, 2, 18, 17, 16)), rng.standard_normal((1, 3, 3, 16, 16))
    case = x, w, None, rng, ((1, 1), ((1, 1), (1, 1)), (1, 1))
    with mock.patch.object(cpu, "PIECES_BYTES", 1):
        check(case, "relu", window, rough=20)


@pytest.mark.parametrize("channels", [3, 16])
def test_what_is_no_number_stays_so(rng, channels):
    """Through convolution, ReLU and pooling, wherever it lies in a window."""
    x, w = rng.standard_normal((1, 1, 9, 10, channels)), rng.standard_normal((1, 2, 2, channels, 5))
    for place in np.ndindex(9, 10):
        spoilt = x.copy()
        spoilt[0, 0][place] = np.nan
        case = spoilt, w, None, (1, 1), ((0, 1), (1, 0)), (1, 1), "relu"
        y, _ = cpu.convolve_and_pool(*case, (2, 2))
        with np.errstate(invalid="ignore"):
            expected, _ = plain.convolve_and_pool(*case, (2, 2))
            np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        assert np.isnan(y).any()
        pooled = cpu.max_pool(spoilt[0], (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 1))
        with np.errstate(invalid="ignore"):
            expected = plain.max_pool(spoilt[0], (3, 2), (2, 1), ((1, 0), (0, 1)), (1, 1))
        np.testing.assert_array_equal(pooled, expected)


@settings(max_examples=100)
@given(
    window=pairs, stride=pairs, dilation=st.sampled_from([(1, 1), (2, 1)]), more=pairs,
    images=st.integers(0, 5), channels=st.sampled_from([1, 2, 7, 16, 33]), seed=seeds,
    data=st.data(),
)  # fmt: skip
def test_pooling_and_its_gradients(window, stride, dilation, more, images, channels, seed, data):
    rng = generator(seed)
    padding = tuple(
        tuple(data.draw(st.integers(0, (k - 1) // 2)) for _ in range(2)) for k in window
    )
    size = [d * (k - 1) + m for d, k, m in zip(dilation, window, more, strict=True)]
    x = rng.integers(-3, 4, (images, *size, channels)).astype(np.float32)  # many equal values
    how = window, stride, padding, dilation
    y = same_bits(lambda: cpu.max_pool(x, *how))
    np.testing.assert_array_equal(y, plain.max_pool(x, *how))
    g = rng.integers(-3, 4, y.shape).astype(np.float32)
    if np.isfinite(y).all():
        actual = same_bits(lambda: cpu.max_pool_gradient(g, x, y, *how))
        np.testing.assert_array_equal(actual, plain.max_pool_gradient(g, x, y, *how))
    divisor = rng.integers(1, 5, (*y.shape[1:3], 1)).astype(np.float32)
    assert_close(cpu.mean_pool(x, divisor, *how), plain.mean_pool(x, divisor, *how), 1e-6)
    case = g, divisor, x.shape, *how
    actual = same_bits(lambda: cpu.mean_pool_gradient(*case))
    assert_close(actual, plain.mean_pool_gradient(*case), 1e-6)


sizes = st.sampled_from([0, 1, 2, 5, 8, 9, 16, 33, 50, 129, 300])


@settings(max_examples=150)
@given(
    rows=sizes, inner=sizes, columns=sizes, lead=st.sampled_from([(), (1,), (3,), (2, 3)]),
    shared=st.booleans(), turned=st.tuples(st.booleans(), st.booleans()), backwards=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]), seed=seeds,
)  # fmt: skip
def test_products(rows, inner, columns, lead, shared, turned, backwards, dtype, seed):
    rng = generator(seed)

    def draw(lead, high, wide, turned):
        shape = (*lead, wide, high) if turned else (*lead, high, wide)
        array = rng.standard_normal(shape).astype(dtype)
        return array.swapaxes(-1, -2) if turned else array

    a = draw(lead, rows, inner, turned[0])
    b = draw(() if shared else lead, inner, columns, turned[1])
    b = b[..., ::-1] if backwards else b
    compare(same_bits(lambda: cpu.matmul(a, b)), plain.matmul(a, b), inner)


@pytest.mark.slow
@pytest.mark.parametrize("short_vectors", [False, True])
def test_the_parity_tests_pass_with_sanitizers(tmp_path, short_vectors):
    """No read or write outside of an array, no undefined behaviour, in any parity test.

    Masked loads and stores are not watched. Without AVX there are none, but the same loops.
    """
    if short_vectors and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("other processors have no masked loads")
    if (compiler := shutil.which("gcc")) is None or sys.platform != "linux":
        pytest.skip("needs gcc and its sanitizers on Linux")
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        libraries.append(done.stdout.strip())
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("gcc's sanitizers are not installed")
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    flags += " -mno-avx" * short_vectors
    environment = os.environ | {
        "CC": compiler, "MINIRES_CACHE": str(tmp_path), "MINIRES_CFLAGS": flags,
        "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip
    files = ["tests/test_kernels_convolution.py", "tests/test_kernels_channels.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "lead"), [(2, ()), (4, (3,))])
@pytest.mark.parametrize(("inner", "columns"), [(700, 377), (3136, 1024), (1, 1 << 18)])
def test_few_rows_times_a_large_matrix(dtype, rows, lead, inner, columns):
    """A few images and a dense layer: every number of threads gives the same bits."""
    rng = np.random.default_rng(inner)
    a = rng.standard_normal((*lead, rows, inner)).astype(dtype)
    b = rng.standard_normal((*lead, inner, columns)).astype(dtype)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append(cpu.matmul(a, b))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    exact = a.astype(np.float64) @ b.astype(np.float64)
    limit = 8 * np.finfo(dtype).eps * np.sqrt(inner)
    assert np.abs(results[0] - exact).max() <= limit * np.abs(exact).max()
    a[..., 0, 0] = np.nan
    lost = np.isnan(cpu.matmul(a, b))
    assert lost[..., 0, :].all()
    assert not lost[..., 1, :].any()


def test_few_rows_may_lie_apart_in_memory():
    """Rows of a that are columns, and rows of b that are parts of longer ones: the same bits."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((700, 3)), rng.standard_normal((700, 500))
    apart, part = a.T, b[:, 40:440]
    assert part.size >= 1 << 18
    close = np.ascontiguousarray(apart), np.ascontiguousarray(part)
    np.testing.assert_array_equal(cpu.matmul(apart, part), cpu.matmul(*close))
    assert_close(cpu.matmul(apart, part), apart @ part, 1e-13, scale=30)


@pytest.mark.parametrize(
    "shape",
    [(40, 300, 25), (19, 130, 400), (3, 700, 1500), (3, 20, 7), (19, 2100, 60), (9, 1500, 60)],
)
def test_products_of_matrices_with_any_steps(shape):
    """Rows and columns lie apart; nothing but the result is written to."""
    rows, inner, columns = shape
    rng = np.random.default_rng(rows)
    for steps, turned in itertools.product([(1, 1), (2, 3)], itertools.product([0, 1], repeat=2)):
        a, b = (
            _with_steps(rng, size[::-1], steps).T if turn else _with_steps(rng, size, steps)
            for size, turn in zip(((rows, inner), (inner, columns)), turned, strict=True)
        )
        around = np.full((rows + 64, columns), 7.0)
        product = cpu.matmul(a, b, around[32:-32])
        assert np.shares_memory(product, around)
        assert_close(product, a @ b, 1e-13, scale=np.sqrt(inner))
        assert (around[:32] == 7).all()
        assert (around[-32:] == 7).all()


def _with_steps(rng, shape, steps):
    rows, columns = (n * step for n, step in zip(shape, steps, strict=True))
    return rng.standard_normal((rows, columns))[:: steps[0], :: steps[1]]
