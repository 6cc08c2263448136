"""Every kernel for a GPU against its twin for a CPU: on a stand-in, or on a card (`-m gpu`)."""

import gc
import threading

import numpy as np
import pytest
from helpers import assert_close, lay_out

from minires.arrays import to_device
from minires.kernels import cpu, cublas, gpu

DEVICES = ["emulated", "as a card", pytest.param("cupy", marks=pytest.mark.gpu)]
ROUNDING = {np.float32: 3e-6, np.float64: 1e-14}

# x (H, W, C), kernel, stride, padding, dilation
WINDOWS = {
    "plain": ((6, 7, 3), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "same": ((6, 7, 2), (5, 3), (1, 1), ((2, 2), (1, 1)), (1, 1)),
    "one pixel": ((5, 4, 6), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "one pixel, stride": ((5, 4, 3), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    "stride": ((9, 8, 2), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
    "uneven": ((8, 9, 2), (2, 4), (3, 1), ((1, 0), (2, 1)), (1, 2)),
    "dilation": ((9, 9, 2), (3, 2), (1, 2), ((2, 2), (1, 1)), (2, 3)),
    "whole image": ((4, 4, 5), (4, 4), (1, 1), ((0, 0), (0, 0)), (1, 1)),
}
POOLS = {name: case for name, case in WINDOWS.items() if name not in ("dilation", "uneven")}
NETWORKS = {"one": (1, 1), "shared": (1, 3), "own": (3, 3)}  # sources, replicas


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def both(name, device, *arguments, tolerance=1e-13, **settings):
    """A kernel on NumPy arrays and on the device; the results must agree."""

    def moved(value):
        return device.asarray(value) if isinstance(value, np.ndarray) else value

    expected = getattr(cpu, name)(*arguments, **settings)
    there = {key: moved(value) for key, value in settings.items()}
    actual = getattr(gpu, name)(*map(moved, arguments), **there)
    assert type(actual) is device.ndarray
    assert actual.dtype == expected.dtype
    assert_close(actual.get(), expected, tolerance)


def case(rng, name, networks, dtype, images=3):
    shape, kernel, *settings = WINDOWS[name]
    sources, replicas = NETWORKS[networks]
    x = rng.standard_normal((sources, images, *shape)).astype(dtype)
    return x, replicas, kernel, settings


def outputs(x, kernel, stride, padding, dilation):
    return tuple(
        (n + sum(border) - d * (k - 1) - 1) // s + 1
        for n, k, s, border, d in zip(
            x.shape[-3:-1], kernel, stride, padding, dilation, strict=True
        )
    )


# --- products -----------------------------------------------------------------------------

LAYOUTS = (
    "plain", "transposed", "part", "columns", "rows", "every other", "backwards", "one for all",
)  # fmt: skip


def arranged(rng, shape, layout, dtype):
    """Random numbers in a given order in memory; the first axis are networks."""
    networks, p, q = shape

    def draw(*size):
        return rng.standard_normal(size).astype(dtype)

    if layout == "transposed":
        return draw(networks, q, p).swapaxes(-1, -2)
    if layout == "part":  # a matrix of one layer, of many
        return draw(networks, p * q + 5)[:, 3 : 3 + p * q].reshape(networks, p, q)
    if layout == "columns":  # some of them, of a wider matrix
        return draw(networks, p, q + 3)[:, :, 2 : 2 + q]
    if layout == "rows":  # of the transpose of a wider one
        return draw(networks, q, p + 3).swapaxes(-1, -2)[:, 1 : 1 + p]
    if layout == "every other":
        return draw(networks, 2 * p, 2 * q)[:, ::2, ::2]
    if layout == "backwards":
        return draw(networks, p, q)[::-1, :, ::-1]
    if layout == "one for all":
        return draw(p, q)
    return draw(networks, p, q)


def on_device(device, array):
    """The same numbers on the device, in the same order in memory."""
    if array.base is None:
        return device.asarray(array)
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    moved = device.asarray(base)
    if isinstance(moved, np.ndarray):
        return moved
    return _strided(device, moved, array, offset)


def _strided(device, moved, array, offset):
    if hasattr(moved, "_array"):  # the stand-in
        view = np.ndarray(array.shape, array.dtype, moved._array, offset, array.strides)
        return device.ndarray(view)
    return device.ndarray(array.shape, array.dtype, moved.data + offset, array.strides)


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_products_of_matrices_in_any_layout(device, rng, left, right):
    dtype = np.float64 if left == right else np.float32
    a, b = arranged(rng, (3, 4, 5), left, dtype), arranged(rng, (3, 5, 2), right, dtype)
    actual = gpu.matmul(on_device(device, a), on_device(device, b))
    assert_close(actual.get(), a @ b, ROUNDING[dtype])


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 5), (5, 2)), ((1, 5), (5, 2)), ((4, 1), (1, 2)), ((4, 5), (5, 1)), ((1, 1), (1, 1)),
        ((0, 5), (5, 2)), ((4, 0), (0, 2)), ((2, 0, 4, 5), (5, 2)), ((3, 4, 5), (5, 2)),
        ((4, 5), (3, 5, 2)), ((2, 3, 4, 5), (5, 2)), ((2, 3, 4, 5), (3, 5, 2)),
        ((2, 1, 4, 5), (3, 5, 2)), ((2, 3, 4, 5), (2, 3, 5, 2)), ((1, 3, 4, 5), (2, 1, 5, 2)),
    ],
)  # fmt: skip
def test_products_of_any_shapes(device, rng, shapes, dtype):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    actual = gpu.matmul(device.asarray(a), device.asarray(b))
    assert_close(actual.get(), a @ b, ROUNDING[dtype])


def test_a_product_is_written_where_it_belongs(device, rng):
    a, b = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 5, 2))
    theta = device.zeros((3, 20))
    out = theta[:, 7:15].reshape(3, 4, 2)
    assert gpu.matmul(device.asarray(a), device.asarray(b), out) is out
    assert_close(theta.get()[:, 7:15].reshape(3, 4, 2), a @ b, 1e-14)
    assert not theta.get()[:, :7].any()
    assert not theta.get()[:, 15:].any()


@pytest.mark.parametrize("out", [(4, 3), (2, 4)], ids=["another shape", "transposed"])
def test_a_result_that_does_not_fit_is_left_alone(device, rng, out):
    a, b = device.asarray(rng.standard_normal((4, 5))), device.asarray(rng.standard_normal((5, 2)))
    given = device.zeros(out)
    given = given.T if out == (2, 4) else given
    result = gpu.matmul(a, b, given)
    assert result is not given
    assert_close(result.get(), a.get() @ b.get(), 1e-14)


def test_whole_numbers_and_mixed_types_are_multiplied(device, rng):
    a, b = rng.integers(0, 9, (4, 5)), rng.integers(0, 9, (5, 2))
    np.testing.assert_array_equal(gpu.matmul(device.asarray(a), device.asarray(b)).get(), a @ b)
    mixed = gpu.matmul(device.asarray(a.astype(np.float32)), device.asarray(b.astype(float)))
    assert mixed.dtype == np.float64


def test_a_thread_that_ends_gives_back_its_connection_to_cublas(device, rng):
    library = getattr(cublas._library(), "library", None)
    if library is None:
        pytest.skip("only the stand-in counts connections")
    a, count = device.asarray(rng.standard_normal((2, 3))), library.handles
    gpu.matmul(a, a.T)
    before, within = count(), []

    def multiply():
        gpu.matmul(a, a.T)
        within.append(count())

    for _ in range(2):
        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
        gc.collect()
    assert within == [before + 1] * 2
    assert count() == before


def test_tf32_is_a_choice(device, rng, monkeypatch):
    if hasattr(device, "cuda") and device.cuda.runtime.getDeviceProperties(0)["major"] < 8:
        pytest.skip("this card has no TF32")
    size = 512 if device.__name__ == "cupy" else 64  # cuBLAS may multiply small matrices exactly
    a, b = (rng.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    there = device.asarray(a), device.asarray(b)
    expected = a.astype(float) @ b
    monkeypatch.delenv("MINIRES_TF32", raising=False)
    exact = np.abs(gpu.matmul(*there).get() - expected).max()
    monkeypatch.setenv("MINIRES_TF32", "1")
    rough = np.abs(gpu.matmul(*there).get() - expected).max()
    assert exact < 2e-4 < 1e-3 < rough < 0.5


# --- convolution --------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_convolution(device, rng, name, networks, activation, dtype):
    x, replicas, kernel, settings = case(rng, name, networks, dtype)
    w = rng.standard_normal((replicas, *kernel, x.shape[-1], 4)).astype(dtype)
    bias = None if activation == "relu" else rng.standard_normal((replicas, 4)).astype(dtype)
    arguments = 3 * x, w, bias, *settings, activation
    both("convolve", device, *arguments, tolerance=ROUNDING[dtype])


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("networks", NETWORKS)
def test_gradients_of_convolution(device, rng, name, networks, dtype):
    x, replicas, kernel, settings = case(rng, name, networks, dtype)
    w = rng.standard_normal((replicas, *kernel, x.shape[-1], 4)).astype(dtype)
    size = outputs(x, kernel, *settings)
    g = rng.standard_normal((replicas, x.shape[1], *size, 4)).astype(dtype)
    tolerance = ROUNDING[dtype]
    both("convolve_weight_gradient", device, x, g, kernel, *settings, tolerance=tolerance)
    shape = x.shape[1:]
    both("convolve_input_gradient", device, g, w, shape, *settings, tolerance=tolerance)


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_convolution_and_pooling_at_once(device, rng, networks, window, activation, dtype):
    x, replicas, kernel, settings = case(rng, "same", networks, dtype)
    w = np.round(rng.standard_normal((replicas, *kernel, x.shape[-1], 4))).astype(dtype)
    x = np.round(x)  # many equals
    bias = None if activation else rng.standard_normal((replicas, 4)).astype(dtype)
    expected = cpu.convolve_and_pool(x, w, bias, *settings, activation, window)
    given = None if bias is None else device.asarray(bias)
    arrays = device.asarray(x), device.asarray(w), given
    actual = gpu.convolve_and_pool(*arrays, *settings, activation, window)
    assert_close(actual[0].get(), expected[0], ROUNDING[dtype])
    np.testing.assert_array_equal(actual[1].get(), expected[1])
    g = rng.standard_normal(expected[0].shape).astype(dtype)
    both("unpool", device, g, expected[1], window, outputs(x, kernel, *settings), tolerance=0)


@pytest.mark.parametrize("images", [0, 1, 5])
def test_a_batch_in_pieces(device, rng, monkeypatch, images):
    """Two images at a time, and a single one at the end."""
    x, replicas, kernel, settings = case(rng, "same", "own", np.float64, images)
    size = outputs(x, kernel, *settings)
    monkeypatch.setattr(gpu, "WINDOW_BYTES", 2 * 3 * 8 * size[0] * size[1] * 30)
    windows = gpu._Windows(x.shape, kernel, *settings)
    assert len(windows.pieces(3, images, np.float64)) == -(-images // 2)
    w = rng.standard_normal((replicas, *kernel, x.shape[-1], 4))
    g = rng.standard_normal((replicas, images, *size, 4))
    both("convolve", device, x, w, None, *settings, "relu")
    both("convolve_input_gradient", device, g, w, x.shape[1:], *settings)
    both("convolve_weight_gradient", device, x, g, kernel, *settings)


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("name", ["same", "one pixel", "stride"])
def test_a_long_sum_is_cut_into_parts(device, rng, monkeypatch, name, networks):
    """Into as many as divide the rows, so that each has the same number of them."""
    monkeypatch.setattr(gpu, "SHORTEST", 10)
    x, replicas, kernel, settings = case(rng, name, networks, np.float64)
    size = outputs(x, kernel, *settings)
    g = rng.standard_normal((replicas, x.shape[1], *size, 4))
    products, multiply = [], gpu.matmul

    def counted(a, b, out=None):
        products.append(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        return multiply(a, b, out)

    monkeypatch.setattr(gpu, "matmul", counted)
    both("convolve_weight_gradient", device, x, g, kernel, *settings)
    rows = x.shape[1] * size[0] * size[1]
    parts = max(n for n in range(2, rows // 10 + 1) if rows % n == 0)
    assert products == ([(parts,)] * 3 if networks == "shared" else [(replicas, parts)])


def test_products_that_fill_the_card_are_not_cut(device, rng, monkeypatch):
    monkeypatch.setattr(gpu, "SHORTEST", 10)
    monkeypatch.setattr(gpu, "FILL", 7)
    monkeypatch.setattr(gpu, "TILE", 2)
    x, _, kernel, settings = case(rng, "one pixel", "one", np.float64)
    g = rng.standard_normal((1, x.shape[1], *outputs(x, kernel, *settings), 4))
    monkeypatch.setattr(gpu, "sum_rows", None)  # 3 × 2 tiles: one part
    both("convolve_weight_gradient", device, x, g, kernel, *settings)


def test_a_weight_gradient_is_written_where_it_belongs(device, rng):
    x, replicas, kernel, settings = case(rng, "same", "own", np.float64)
    g = rng.standard_normal((replicas, x.shape[1], *outputs(x, kernel, *settings), 4))
    expected = cpu.convolve_weight_gradient(x, g, kernel, *settings)
    size = expected[0].size
    theta = device.zeros((replicas, size + 7))
    out = theta[:, 3 : 3 + size].reshape(expected.shape)
    gpu.convolve_weight_gradient(device.asarray(x), device.asarray(g), kernel, *settings, out)
    assert_close(theta.get()[:, 3 : 3 + size].reshape(expected.shape), expected, 1e-13)


@pytest.mark.parametrize("how", ["channels first", "every other", "backwards"])
def test_images_in_any_layout(device, rng, how):
    x, replicas, kernel, settings = case(rng, "same", "one", np.float64)
    w = rng.standard_normal((replicas, *kernel, x.shape[-1], 4))
    there = on_device(device, lay_out(x, how))
    actual = gpu.convolve(there, device.asarray(w), None, *settings, None)
    assert_close(actual.get(), cpu.convolve(x, w, None, *settings, None), 1e-13)
    actual = gpu.max_pool(there[0], (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    assert_close(actual.get(), cpu.max_pool(x[0], (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), 0)


def test_what_is_not_a_number_is_not_hidden(device):
    x = device.asarray(np.array([[[np.nan, -1.0, 2.0, 7.0, -np.inf, np.inf]]]))
    one, none = device.asarray(np.ones((1, 1, 6))), device.asarray(np.zeros((1, 1, 6)))
    y = gpu.normalize(x, one, none, 1, "relu6")
    np.testing.assert_array_equal(y.get(), [[[np.nan, 0, 2, 6, 0, 6]]])
    x = np.zeros((1, 4, 4, 2))
    x[0, 1, 2, 1] = np.nan
    settings = (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)
    actual, expected = gpu.max_pool(device.asarray(x), *settings), cpu.max_pool(x, *settings)
    np.testing.assert_array_equal(actual.get(), expected)
    assert np.isnan(expected[0, 0, 1, 1])


# --- batch norm ---------------------------------------------------------------------------


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("lanes", [gpu.LANES, 2])
def test_batch_norm(device, rng, dtype, networks, activation, lanes, monkeypatch):
    """150 rows are three parts of 64, or one where few threads share many rows."""
    monkeypatch.setattr(gpu, "LANES", lanes)
    (sources, replicas), rows, channels = NETWORKS[networks], 150, 3
    x = 1 + rng.standard_normal((sources, rows, channels)).astype(dtype)
    g = 4 * rng.standard_normal((replicas, rows, channels)).astype(dtype)
    factor, offset, slope = rng.standard_normal((3, replicas, 1, channels)).astype(dtype)
    tolerance = 100 * ROUNDING[dtype]
    both("normalize", device, x, factor, offset, replicas, activation, tolerance=tolerance)

    given = g, x, slope, factor, offset
    there = [device.asarray(array) for array in given]
    expected = cpu.norm_sums(*given, activation)
    actual = gpu.norm_sums(*there, activation)
    for ours, theirs in zip(actual[1:], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype == np.float64
        assert_close(ours.get(), theirs, tolerance)
    for moments in (None, (slope, offset)):
        on_cpu = cpu.norm_gradient(expected[0], x, factor, offset, moments, activation)
        moments = moments and (there[2], there[4])
        on_gpu = gpu.norm_gradient(actual[0], there[1], *there[3:], moments, activation)
        assert_close(on_gpu.get(), on_cpu, tolerance)

    mean, variance = (a.get() for a in gpu.norm_moments(there[1]))
    assert_close(mean, x.mean(axis=1, keepdims=True, dtype=np.float64), tolerance)
    assert_close(variance, x.var(axis=1, keepdims=True, dtype=np.float64), tolerance)


# --- depthwise convolution ----------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("networks", NETWORKS)
def test_depthwise_convolution(device, rng, name, networks, dtype):
    x, replicas, kernel, settings = case(rng, name, networks, dtype, images=9)
    w = rng.standard_normal((replicas, *kernel, x.shape[-1])).astype(dtype)
    bias = rng.standard_normal((replicas, x.shape[-1])).astype(dtype)
    tolerance = ROUNDING[dtype]
    both("depthwise", device, x, w, bias, *settings, "relu6", tolerance=tolerance)
    both("depthwise", device, x, w, None, *settings, None, tolerance=tolerance)
    g = rng.standard_normal((replicas, 9, *outputs(x, kernel, *settings), x.shape[-1]))
    g = g.astype(dtype)
    both("depthwise_weight_gradient", device, x, g, kernel, *settings, tolerance=tolerance)
    both("depthwise_input_gradient", device, g, w, x.shape[1:], *settings, tolerance=tolerance)


# --- pooling ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWS)
def test_max_pooling(device, rng, name, dtype):
    x, _, window, settings = case(rng, name, "one", dtype, images=4)
    for values in (x[0], np.round(x[0])):  # the second with many equals
        y = cpu.max_pool(values, window, *settings)
        both("max_pool", device, values, window, *settings, tolerance=0)
        g = rng.standard_normal(y.shape).astype(dtype)
        both(
            "max_pool_gradient", device, g, values, y, window, *settings,
            tolerance=ROUNDING[dtype],
        )  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_mean_pooling(device, rng, name, dtype):
    x, _, window, settings = case(rng, name, "one", dtype, images=4)
    size = outputs(x, window, *settings)
    divisor = rng.integers(1, 9, (*size, 1)).astype(dtype)
    tolerance = ROUNDING[dtype]
    both("mean_pool", device, x[0], divisor, window, *settings, tolerance=tolerance)
    g = rng.standard_normal((4, *size, x.shape[-1])).astype(dtype)
    shape = x.shape[1:]
    both("mean_pool_gradient", device, g, divisor, shape, window, *settings, tolerance=tolerance)


# --- division -----------------------------------------------------------------------------


def test_divisions_by_multiplying_and_shifting_are_exact():
    """At multiples of the size, and one below, where a quotient that is too large shows first."""
    sizes = [*range(1, 1000), 2**15 - 1, 2**15, 46341, 10**6 + 3, 2**30 - 1, 2**30, 2**31 - 1]
    for size in sizes:
        by = int(gpu.divisor(size))
        multiplier, shift = by >> 8, by & 255
        assert multiplier < 2**32
        top = 2**31 - 1
        for near in (size, 2 * size, top // 2 // size * size, top // size * size, top):
            for number in (near - 1, near):
                if 0 <= number <= top:
                    assert number * multiplier < 2**64
                    assert number * multiplier >> shift == number // size


# --- sums, random numbers -----------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 4096, 5000])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_sums_of_rows(device, rng, rows, lead, dtype):
    x = rng.standard_normal((*lead, rows, 5)).astype(dtype)
    actual = gpu.sum_rows(device.asarray(x)).get()
    assert_close(actual, x.sum(axis=-2, dtype=float), 1e-6, scale=1 + np.sqrt(rows))
    assert actual.dtype == dtype


PUBLISHED = [  # counter, key, random words: philox4x32 with 10 rounds, in Random123's kat_vectors
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def philox(counter, key):
    """Philox 4×32-10 in whole numbers without end."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = (right >> 32) ^ c1 ^ k0, right % 2**32
        c2, c3 = (left >> 32) ^ c3 ^ k1, left % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_the_philox_that_tests_use_is_the_published_one(counter, key, words):
    numbers = lambda text: [int(part, 16) for part in text.split()]
    assert list(philox(numbers(counter), numbers(key))) == numbers(words)


@pytest.mark.parametrize("seeds", [[0], [2**63 - 25], [7, 2**40 + 3, 11]])
@pytest.mark.parametrize("size", [1, 4, 5, 1027])
def test_random_numbers_are_philox(device, seeds, size):
    shape = (len(seeds), size) if len(seeds) > 1 else (size,)
    table = device.asarray(np.array([seeds], np.uint64))
    actual = gpu.uniform(gpu.Seeds(table), shape, like=table).get()
    for seed, numbers in zip(seeds, actual.reshape(len(seeds), size), strict=True):
        key = seed % 2**32, seed >> 32
        words = [w for block in range(-(-size // 4)) for w in philox((block, 0, 0, 0), key)]
        expected = (np.array(words[:size], np.uint64) >> 8) / 2.0**24
        np.testing.assert_array_equal(numbers, expected)
    assert actual.dtype == np.float32


def test_counters_of_64_bits_change_nothing(device, rng, monkeypatch):
    """What is compiled for arrays of more than a thousand million numbers, on small ones."""
    monkeypatch.setattr(gpu, "SMALL", 0)
    monkeypatch.setattr(gpu, "BLOCKS", 2)  # and every thread takes several results
    test_gradients_of_convolution(device, rng, "uneven", "own", np.float64)
    test_depthwise_convolution(device, rng, "uneven", "shared", np.float64)
    test_max_pooling(device, rng, "same", np.float64)
    test_mean_pooling(device, rng, "same", np.float64)
    test_sums_of_rows(device, rng, 5000, (3,), np.float64)
    test_random_numbers_are_philox(device, [7, 11], 1027)


def test_numbers_too_small_for_full_precision_do_not_matter_to_adam(device, rng):
    """A card makes them 0: g² of 1e-40, and √v with it. ε is 1e-8."""
    theta, gradient = rng.standard_normal((2, 1000)).astype(np.float32)
    gradient *= np.float32(10.0) ** -rng.integers(15, 25, 1000).astype(np.float32)
    vectors = theta, gradient, np.zeros_like(theta), np.zeros_like(theta)
    there = [device.asarray(vector) for vector in vectors]
    numbers = np.float32([0.1]), np.float32([1e-8])
    for _ in range(3):
        cpu.step_adam(*vectors, *numbers, 0.9, 0.999)
        gpu.step_adam(*there, *map(device.asarray, numbers), 0.9, 0.999)
    np.testing.assert_array_equal(there[0].get(), theta)


def test_two_threads_that_write_to_one_address_are_caught(device):
    """So the threads of a grid may run in any order."""
    if getattr(getattr(device, "_graph_state", None), "as_a_card", False) is False:
        pytest.skip("only the stand-in looks, when it computes as a card does")
    for body in ("y[k / 2] = x[k];", "y[k] = k ? y[k - 1] : x[k];", "y[0] += x[k];"):
        text = f"""extern "C" __global__ void race(int count, const float* x, float* y)
            {{ int k = blockIdx.x * blockDim.x + threadIdx.x; if (k < count) {{ {body} }} }}"""
        kernel = device.RawModule(code=text).get_function("race")
        x, y = device.ones(100, np.float32), device.zeros(100, np.float32)
        with pytest.raises(MemoryError, match="race: two threads touch one address"):
            kernel((2,), (64,), (np.int32(100), x, y))
    text = text.replace(body, "y[k] = 2 * x[k];")
    device.RawModule(code=text).get_function("race")((2,), (64,), (np.int32(100), x, y))
    assert (y.get() == 2).all()


# --- refusals -----------------------------------------------------------------------------


def test_kernels_refuse_what_they_would_misread(device):
    with pytest.raises(ValueError, match="max_pool: arrays are int64, expected float32 or float64"):
        gpu.max_pool(device.zeros((1, 4, 4, 1), np.int64), (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    vector = device.zeros((4, 2))[:, 0]
    with pytest.raises(ValueError, match="fold_moments: an array is not contiguous"):
        gpu.fold_moments(vector, vector, vector, vector, vector)


def test_to_device_gives_arrays_of_the_device(device):
    assert type(to_device(np.ones(2), "gpu")) is device.ndarray
