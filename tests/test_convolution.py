"""conv2d against loops from the definition, SciPy, and its own adjoint; both algorithms."""

from unittest import mock

import numpy as np
import pytest
from helpers import (
    assert_adjoint,
    assert_close,
    assert_gradient,
    generator,
    lay_out,
    naive_borders,
    naive_conv2d,
    pull_back,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from minires import arrays
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.engine.convolution import (
    borders,
    conv2d,
    depthwise_conv2d,
    max_pool,
    pair,
)
from minires.kernels import compiled, cpu, winograd
from minires.kernels.plain import output_size

LAYOUTS = ("plain", "channels first", "every other", "backwards")


@st.composite
def paddings(draw, most=3):
    """Padding in every way it can be said."""
    number = st.integers(0, most)
    two = st.tuples(number, number)
    return draw(st.one_of(number, two, st.tuples(two, two), st.sampled_from(["same", "valid"])))


@st.composite
def convolutions(draw):
    """Arrays and settings: any stride, dilation and padding, shared or own images."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding = draw(paddings())
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding not in ("same", "valid"):
        sides = naive_borders(padding, None, None, None, None)
        least = [max(n - sum(side), 1) for n, side in zip(least, sides, strict=True)]
    if padding == "same":
        least = [1, 1]
    size = tuple(n + draw(st.integers(0, 5)) for n in least)
    images, channels, out_channels = (draw(st.integers(1, n)) for n in (4, 6, 4))
    replicas = draw(st.sampled_from([None, 1, 3]))
    lead = () if replicas is None else (replicas,)
    x_lead = draw(st.sampled_from([(), lead]))
    rng = generator(draw(seeds))
    x = lay_out(
        rng.standard_normal((*x_lead, images, *size, channels)), draw(st.sampled_from(LAYOUTS))
    )
    w = rng.standard_normal((*lead, *kernel, channels, out_channels))
    b = rng.standard_normal((*lead, out_channels)) if draw(st.booleans()) else None
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    # So few bytes of windows that images are cut into rows, so that tiles do not divide them.
    window_bytes = draw(st.sampled_from([1, 1000, 6000, cpu.TILE_BYTES]))
    return x, w, b, settings, window_bytes, rng


def expected_conv2d(x, w, b, settings):
    """The loops of `naive_conv2d` for each network alone."""
    size, kernel = x.shape[-3:-1], w.shape[-4:-2]
    stride, dilation = settings["stride"], settings["dilation"]
    sides = naive_borders(settings["padding"], size, kernel, stride, dilation)
    if w.ndim == 4:
        images = x.reshape(-1, *x.shape[-3:])
        y = naive_conv2d(images, w, b, stride, sides, dilation)
        return y.reshape(*x.shape[:-3], *y.shape[1:])
    return np.stack(
        [
            naive_conv2d(
                x if x.ndim == 4 else x[r],
                w[r],
                None if b is None else b[r],
                stride,
                sides,
                dilation,
            )
            for r in range(len(w))
        ]
    )


@settings(max_examples=200)
@given(case=convolutions())
def test_conv2d_is_the_sum_in_its_definition(case):
    x, w, b, options, window_bytes, _ = case
    with mock.patch.object(cpu, "TILE_BYTES", window_bytes):
        y = conv2d(x, w, b, **options)
    assert_close(y, expected_conv2d(x, w, b, options), 1e-13, scale=10)


@settings(max_examples=200)
@given(case=convolutions())
def test_conv2d_gradients_are_its_adjoints(case):
    """In x, in w, and in b: all three are linear."""
    x, w, b, options, window_bytes, rng = case
    with mock.patch.object(cpu, "TILE_BYTES", window_bytes):
        assert_adjoint(lambda x, w: conv2d(x, w, **options), x, w, rng=rng)
        if b is not None:
            assert_adjoint(lambda b: conv2d(0 * x, w, b, **options), b, rng=rng)


@settings(max_examples=150)
@given(case=convolutions(), parts=st.sampled_from([1, 3, cpu.WEIGHT_PARTS]))
def test_depthwise_is_a_convolution_with_diagonal_kernels(case, parts):
    x, w, _, options, _, rng = case
    w = w[..., 0]  # (…, kh, kw, C)
    b = rng.standard_normal((*w.shape[:-3], w.shape[-1]))
    diagonal = w[..., None] * np.eye(w.shape[-1])
    with mock.patch.object(cpu, "WEIGHT_PARTS", parts):
        y = depthwise_conv2d(x, w, b, **options)
        assert_close(y, expected_conv2d(x, diagonal, b, options), 1e-13, scale=10)
        assert_adjoint(lambda x, w: depthwise_conv2d(x, w, **options), x, w, rng=rng)
        assert_adjoint(lambda b: depthwise_conv2d(0 * x, w, b, **options), b, rng=rng)


@st.composite
def winograd_convolutions(draw):
    """3×3 and 5×5 with enough channels; sizes that no piece divides; tiles of many images."""
    kernel = draw(st.sampled_from([3, 5]))
    size = draw(st.tuples(st.integers(4, 14), st.integers(4, 14)))
    if size[0] * size[1] < 64:
        size = (16, size[1])
    padding = draw(paddings(most=kernel - 1))
    if padding not in ("same", "valid"):
        sides = naive_borders(padding, None, None, None, None)
        size = tuple(max(n, kernel - sum(s)) for n, s in zip(size, sides, strict=True))
    elif padding == "valid":
        size = tuple(max(n, kernel) for n in size)
    images = draw(st.integers(1, 5))
    channels, out_channels = (draw(st.sampled_from([16, 17, 20])) for _ in range(2))
    lead = draw(st.sampled_from([(), (1,), (2,)]))
    x_lead = draw(st.sampled_from([(), lead]))
    rng = generator(draw(seeds))
    x = lay_out(
        rng.standard_normal((*x_lead, images, *size, channels)), draw(st.sampled_from(LAYOUTS))
    )
    w = rng.standard_normal((*lead, kernel, kernel, channels, out_channels))
    b = rng.standard_normal((*lead, out_channels)) if draw(st.booleans()) else None
    assert winograd.applies(x.shape[-3:], w.shape[-4:], (1, 1), (1, 1))
    return x, w, b, {"stride": (1, 1), "padding": padding, "dilation": (1, 1)}, rng


# Tiles of one row of pieces, of a few rows, of whole images.
tile_bytes = st.sampled_from([1, 100_000, cpu.PIECES_BYTES])


@settings(max_examples=25)
@given(case=winograd_convolutions(), tile_bytes=tile_bytes)
def test_winograd_is_the_sum_in_the_definition(case, tile_bytes):
    x, w, b, options, _ = case
    with (
        mock.patch.object(cpu, "call", wraps=cpu.call) as used,
        mock.patch.object(cpu, "PIECES_BYTES", tile_bytes),
    ):
        y = conv2d(x, w, b, **options)
    if compiled.functions(x.dtype):
        assert "convolve_winograd" in {call.args[0] for call in used.call_args_list}
    assert_close(y, expected_conv2d(x, w, b, options), 1e-12)


@settings(max_examples=25)
@given(case=winograd_convolutions(), tile_bytes=tile_bytes)
def test_winograd_gradients_are_its_adjoints(case, tile_bytes):
    x, w, b, options, rng = case
    with (
        mock.patch.object(cpu, "call", wraps=cpu.call) as used,
        mock.patch.object(cpu, "PIECES_BYTES", tile_bytes),
    ):
        assert_adjoint(lambda x, w: conv2d(x, w, **options), x, w, rng=rng, tolerance=1e-11)
    if compiled.functions(x.dtype):
        assert "convolve_weight_gradient_winograd" in {call.args[0] for call in used.call_args_list}
    if b is not None:
        assert_adjoint(lambda b: conv2d(0 * x, w, b, **options), b, rng=rng)


winograd_points = winograd.POINTS[5]


@pytest.mark.parametrize(("m", "r"), [(2, 3), (3, 5), (4, 3), (1, 3), (3, 1)])
def test_winograd_transforms_filter_exactly(rng, m, r):
    """Aᵀ[(G g) ⊙ (Bᵀ d)] is the m outputs of r taps over n = m + r − 1 inputs."""
    to_output, filter_side, input_side = winograd.transforms(winograd_points[: m + r - 2], m, r)
    g, d = rng.standard_normal(r), rng.standard_normal(m + r - 1)
    expected = [sum(d[i + k] * g[k] for k in range(r)) for i in range(m)]
    assert_close(to_output @ ((filter_side @ g) * (input_side @ d)), expected, 1e-13, scale=10)


@pytest.mark.parametrize(
    ("x", "w", "stride", "dilation", "applies"),
    [
        ((8, 8, 16), (3, 3, 16, 16), (1, 1), (1, 1), True),
        ((16, 4, 16), (3, 3, 16, 16), (1, 1), (1, 1), True),
        ((7, 9, 16), (3, 3, 16, 16), (1, 1), (1, 1), False),
        ((8, 8, 256), (3, 3, 256, 256), (1, 1), (1, 1), False),
        ((8, 8, 15), (3, 3, 15, 16), (1, 1), (1, 1), False),
        ((8, 8, 16), (3, 3, 16, 15), (1, 1), (1, 1), False),
        ((8, 8, 16), (3, 5, 16, 16), (1, 1), (1, 1), False),
        ((8, 8, 16), (7, 7, 16, 16), (1, 1), (1, 1), False),
        ((8, 8, 16), (3, 3, 16, 16), (1, 2), (1, 1), False),
        ((8, 8, 16), (3, 3, 16, 16), (1, 1), (2, 1), False),
    ],
)
def test_winograd_is_used_where_it_is_meant_to_be(x, w, stride, dilation, applies):
    assert winograd.applies(x, w, stride, dilation) is applies


@pytest.mark.parametrize("size", [(28, 28, 1, 32, 5), (14, 14, 32, 64, 5), (17, 19, 16, 24, 3)])
def test_float32_keeps_five_digits(rng, size):
    """Both algorithms, at the sizes of a real network, forward and backward."""
    height, width, channels, out_channels, kernel = size
    x = rng.standard_normal((7, height, width, channels))
    w = rng.standard_normal((kernel, kernel, channels, out_channels)) / kernel
    b = rng.standard_normal(out_channels)
    options = {"stride": (1, 1), "padding": "same", "dilation": (1, 1)}
    expected = expected_conv2d(x, w, b, options)
    g = rng.standard_normal(expected.shape)
    exact = pull_back(lambda *a: conv2d(*a, **options), [x, w, b], g)
    single = [array.astype(np.float32) for array in (x, w, b)]
    y = conv2d(*single, **options)
    assert y.dtype == np.float32
    assert_close(y, expected, 1e-5)
    rough = pull_back(lambda *a: conv2d(*a, **options), single, g.astype(np.float32))
    for actual, wanted in zip(rough, exact, strict=True):
        assert actual.dtype == np.float32
        assert_close(actual, wanted, 2e-5)


@pytest.mark.parametrize("padding", ["valid", "same", "full"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (2, 4), (7, 1)])
@pytest.mark.parametrize("channels", [2, 16])
def test_conv2d_against_scipy(rng, padding, kernel, channels):
    x, w = rng.standard_normal((3, 15, 13, channels)), rng.standard_normal((*kernel, channels, 16))
    pads = [(0, 0), (0, 0)]
    if padding == "full":
        pads = [(k - 1, k - 1) for k in kernel]
    elif padding == "same":
        pads = [((k - 1) // 2, k // 2) for k in kernel]
    wide = np.pad(x, [(0, 0), *pads, (0, 0)])
    expected = np.stack(
        [
            np.stack(
                [
                    np.sum(
                        [
                            signal.correlate(wide[n, :, :, c], w[:, :, c, o], mode="valid")
                            for c in range(channels)
                        ],
                        axis=0,
                    )
                    for o in range(16)
                ],
                axis=-1,
            )
            for n in range(3)
        ]
    )
    given = tuple(pads) if padding == "full" else padding
    assert_close(conv2d(x, w, padding=given), expected, 1e-12)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_a_fused_activation_is_the_activation_after_it(rng, activation, channels, lead):
    x = rng.standard_normal((3, 9, 8, channels)) * 2
    w = rng.standard_normal((*lead, 3, 3, channels, 16))
    b = rng.standard_normal((*lead, 16))
    function = getattr(ops, activation)
    fused = conv2d(x, w, b, padding=1, activation=activation)
    apart = function(conv2d(x, w, b, padding=1))
    np.testing.assert_array_equal(fused, apart)
    assert (fused == 0).any()
    assert (fused > 0).any()
    g = rng.standard_normal(fused.shape)
    found = pull_back(lambda *a: conv2d(*a, padding=1, activation=activation), [x, w, b], g)
    wanted = pull_back(lambda *a: function(conv2d(*a, padding=1)), [x, w, b], g)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, 1e-13)


def test_a_fused_activation_by_finite_differences(rng):
    x, w, b = (rng.standard_normal(s) for s in [(2, 6, 5, 3), (3, 2, 3, 4), (4,)])
    assert_gradient(lambda *a: conv2d(*a, activation="relu"), x, w, b, rng=rng, tolerance=1e-6)


def test_two_steps_that_pull_back_through_one_convolution(rng):
    """The masked gradient is remembered for one walk; the next walk must not meet it."""
    x, w = rng.standard_normal((2, 6, 6, 3)), rng.standard_normal((3, 3, 3, 4))

    def function(x, w):
        return conv2d(conv2d(x, w, activation="relu"), w.reshape(3, 3, 4, 3), activation="relu6")

    for _ in range(2):
        assert_gradient(function, x, w, rng=rng, tolerance=1e-6)


# --- several networks ---------------------------------------------------------------------

ROUTES = {
    "im2col": ((5, 9, 10, 5), (3, 2), 7, {"stride": 2, "padding": 1}),
    "few channels": ((5, 9, 10, 2), (3, 3), 7, {"padding": "same"}),
    "pixels": ((5, 9, 10, 5), (1, 1), 7, {}),
    "strided pixels": ((5, 9, 10, 5), (1, 1), 7, {"stride": 2}),
    "winograd 3": ((70, 9, 10, 16), (3, 3), 16, {"padding": "same"}),
    "winograd 5": ((5, 14, 13, 17), (5, 5), 16, {"padding": "same"}),
}
every_route = pytest.mark.parametrize("route", ROUTES)


@every_route
@pytest.mark.parametrize("own", [True, False], ids=["own images", "shared images"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_at_once_are_networks_one_by_one(rng, route, own, dtype):
    """The outputs and the gradients to x to the bit; those to w to rounding."""
    size, kernel, out_channels, options = ROUTES[route]
    x = rng.standard_normal((3, *size) if own else size).astype(dtype)
    w = rng.standard_normal((3, *kernel, size[-1], out_channels)).astype(dtype)
    b = rng.standard_normal((3, out_channels)).astype(dtype)

    def function(x, w, b):
        return conv2d(x, w, b, activation="relu", **options)

    y = function(x, w, b)
    g = rng.standard_normal(y.shape).astype(dtype)
    gx, gw, gb = pull_back(function, [x, w, b], g)
    tolerance = 1e-13 if dtype is np.float64 else 1e-5
    same = 0 if compiled.functions(x.dtype) else tolerance  # a BLAS promises no bits
    sum_x = 0
    for r in range(3):
        alone = [x[r] if own else x, w[r], b[r]]
        assert_close(y[r], function(*alone), same)
        gx_alone, gw_alone, gb_alone = pull_back(function, alone, g[r])
        sum_x = sum_x + gx_alone.astype(float)
        if own:
            assert_close(gx[r], gx_alone, same)
        assert_close(gw[r], gw_alone, tolerance)
        assert_close(gb[r], gb_alone, tolerance)
    if not own:
        assert_close(gx, sum_x, tolerance)


@every_route
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 4)])
@pytest.mark.parametrize("tile_bytes", [1, 5000, cpu.TILE_BYTES])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_pooling_in_the_same_pass_is_pooling_after_it(rng, route, window, tile_bytes, lead):
    """To the bit, though tiles of rows end where windows end, and bias and ReLU come last."""
    size, kernel, out_channels, options = ROUTES[route]
    x = rng.standard_normal((*lead, 3, *size[1:]))
    w = rng.standard_normal((*lead, *kernel, size[-1], out_channels))
    b = rng.standard_normal((*lead, out_channels))

    def at_once(x, w, b):
        return conv2d(x, w, b, activation="relu", pool=window, **options)

    def one_by_one(x, w, b):
        return max_pool(conv2d(x, w, b, activation="relu", **options), window=window)

    with (
        mock.patch.object(cpu, "TILE_BYTES", tile_bytes),
        mock.patch.object(cpu, "PIECES_BYTES", tile_bytes),
    ):
        y = at_once(x, w, b)
        np.testing.assert_array_equal(y, one_by_one(x, w, b))
        g = rng.standard_normal(y.shape)
        found = pull_back(at_once, [x, w, b], g)
        for gradient, expected in zip(found, pull_back(one_by_one, [x, w, b], g), strict=True):
            assert_close(gradient, expected, 1e-12)


def test_among_equal_values_the_first_is_the_winner():
    """As in `max_pool`: in reading order, row by row."""
    x = np.array([[0, 3, 3, 0], [3, 1, 3, 3], [2, 2, 5, 5], [2, 2, 5, 4]], float)
    for function in (
        lambda x: conv2d(x, np.ones((1, 1, 1, 1)), pool=2),
        lambda x: max_pool(x, window=2),
    ):
        (gradient,) = pull_back(function, [x[None, :, :, None]], np.ones((1, 2, 2, 1)))
        expected = [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
        np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_a_pool_that_exceeds_the_outputs():
    with pytest.raises(ValueError, match=r"pool \(5, 5\) exceeds the outputs of 4×4"):
        conv2d(np.ones((1, 6, 6, 2)), np.ones((3, 3, 2, 2)), pool=5)
    with pytest.raises(ValueError, match=r"pool \(16, 17\) has more than 256 pixels"):
        conv2d(np.ones((1, 20, 20, 2)), np.ones((3, 3, 2, 2)), pool=(16, 17))


@pytest.mark.parametrize("window_bytes", [1, 3000, cpu.TILE_BYTES])
@every_route
def test_weight_gradients_land_in_each_network_s_own_vector(rng, route, window_bytes):
    """Inside a model the place for a gradient is a slice of (R, P): not contiguous."""
    size, kernel, out_channels, options = ROUTES[route]
    x = rng.standard_normal(size)
    shape = (3, *kernel, size[-1], out_channels)
    w = rng.standard_normal(shape)
    whole = np.full((3, 11 + w[0].size + 5), np.nan)
    out = whole[:, 11:-5].reshape(shape)
    assert np.shares_memory(out, whole)
    with mock.patch.object(cpu, "TILE_BYTES", window_bytes):
        place = variable(w, out)
        y = conv2d(x, place, **options)
        g = rng.standard_normal(y.shape)
        gradients(y, [place], g)
        (expected,) = pull_back(lambda w: conv2d(x, w, **options), [w], g)
    assert_close(whole[:, 11:-5].reshape(shape), expected, 1e-13)
    assert np.isnan(whole[:, :11]).all()
    assert np.isnan(whole[:, -5:]).all()


def test_leading_axes_of_images_are_one_long_batch(rng):
    x, w = rng.standard_normal((2, 3, 4, 7, 6, 5)), rng.standard_normal((3, 3, 5, 4))
    y = conv2d(x, w)
    np.testing.assert_array_equal(y.reshape(24, 5, 4, 4), conv2d(x.reshape(24, 7, 6, 5), w))
    assert_adjoint(conv2d, x, w, rng=rng)


def test_two_leading_axes_of_networks(rng):
    w, b = rng.standard_normal((2, 3, 3, 3, 5, 4)), rng.standard_normal((2, 3, 4))
    for x in (rng.standard_normal((2, 3, 2, 7, 6, 5)), rng.standard_normal((2, 7, 6, 5))):
        y = conv2d(x, w, b)
        assert y.shape == (2, 3, 2, 5, 4, 4)
        alone = conv2d(x[1, 2] if x.ndim > 4 else x, w[1, 2], b[1, 2])
        np.testing.assert_array_equal(y[1, 2], alone)
        assert_adjoint(lambda x, w: conv2d(x, w), x, w, rng=rng)


# --- threads and tiles --------------------------------------------------------------------


@every_route
@pytest.mark.parametrize("lead", [(), (2,)])
def test_the_number_of_threads_changes_no_bit(rng, route, lead):
    size, kernel, out_channels, options = ROUTES[route]
    x = rng.standard_normal((*lead, *size)).astype(np.float32)
    w = rng.standard_normal((*lead, *kernel, size[-1], out_channels)).astype(np.float32)
    b = rng.standard_normal((*lead, out_channels)).astype(np.float32)

    def function(x, w, b):
        return conv2d(x, w, b, activation="relu", **options)

    results = []
    g = None
    with mock.patch.object(cpu, "TILE_BYTES", 1000):
        for count in (1, 2, 3):
            with arrays.threads(count):
                y = function(x, w, b)
                g = rng.standard_normal(y.shape).astype(np.float32) if g is None else g
                results.append([y, *pull_back(function, [x, w, b], g)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@every_route
@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_of_one_and_of_none(rng, route, images):
    size, kernel, out_channels, options = ROUTES[route]
    x = rng.standard_normal((images, *size[1:]))
    w = rng.standard_normal((2, *kernel, size[-1], out_channels))
    options = {"stride": 1, "padding": 0, "dilation": 1, **options}
    paired = {name: v if isinstance(v, str) else (v, v) for name, v in options.items()}
    y = conv2d(x, w, **options)
    gx, gw = pull_back(lambda x, w: conv2d(x, w, **options), [x, w], np.ones_like(y))
    assert gx.shape == x.shape
    if images:
        assert_close(y, expected_conv2d(x, w, None, paired), 1e-12)
        assert_adjoint(lambda x, w: conv2d(x, w, **options), x, w, rng=rng, tolerance=1e-11)
    else:
        assert y.shape[1] == 0
        np.testing.assert_array_equal(gw, np.zeros_like(w))


@pytest.mark.parametrize("window_bytes", [1, 2000, cpu.TILE_BYTES])
@pytest.mark.parametrize("padding", [7, ((9, 0), (0, 9)), ((0, 9), (9, 0))])
def test_a_border_wider_than_the_image(rng, window_bytes, padding):
    """Then some tiles are rows of nothing but border."""
    x, w = rng.standard_normal((2, 5, 4, 6)), rng.standard_normal((3, 2, 6, 3))
    options = {"stride": (1, 2), "padding": padding, "dilation": (2, 1)}
    with mock.patch.object(cpu, "TILE_BYTES", window_bytes):
        assert_close(conv2d(x, w, **options), expected_conv2d(x, w, None, options), 1e-13, scale=10)
        assert_adjoint(lambda x, w: conv2d(x, w, **options), x, w, rng=rng)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("channels", [2, 5, 16])
def test_gradients_that_repeat_one_number_in_memory(rng, kernel, channels):
    """A mean hands down its gradient as a view with strides of zero."""
    x = rng.standard_normal((2, 6, 7, channels))
    w = rng.standard_normal((kernel, kernel, channels, 16))
    options = {"padding": kernel - 1}

    def function(x, w):
        return ops.global_mean(conv2d(x, w, **options))

    assert_adjoint(function, x, w, rng=rng, tolerance=1e-11)
    constant = np.broadcast_to(rng.standard_normal((2, 1, 1, channels)), x.shape)
    assert_close(conv2d(constant, w), conv2d(constant.copy(), w), 0)


def test_non_contiguous_weights(rng):
    x = rng.standard_normal((2, 6, 7, 5))
    w = rng.standard_normal((4, 5, 3, 3)).transpose(2, 3, 1, 0)
    assert_close(conv2d(x, w), conv2d(x, np.ascontiguousarray(w)), 1e-14)
    assert_adjoint(conv2d, x, w, rng=rng)


# --- settings -----------------------------------------------------------------------------


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_same_padding_is_the_least_that_keeps_every_stride(size, kernel, stride, dilation):
    sides = borders("same", size, kernel, stride, dilation)
    assert sides == naive_borders("same", size, kernel, stride, dilation)
    assert all(0 <= after - before <= 1 for before, after in sides)
    expected = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    assert output_size(size, kernel, stride, sides, dilation) == expected


def test_the_forms_of_padding():
    arguments = (9, 9), (3, 3), (1, 1)
    assert borders(2, *arguments) == ((2, 2), (2, 2))
    assert borders((1, 2), *arguments) == ((1, 1), (2, 2))
    assert borders([[1, 2], [3, 4]], *arguments) == ((1, 2), (3, 4))
    assert borders(np.int64(1), *arguments) == ((1, 1), (1, 1))
    assert borders("VALID", *arguments) == ((0, 0), (0, 0))
    assert borders("SAME", *arguments) == ((1, 1), (1, 1))
    assert pair(3) == (3, 3)
    assert pair((2, 5)) == (2, 5)


@pytest.mark.parametrize("padding", [-1, 1.5, (1, 2, 3), "full", ((1, -1), (0, 0)), None])
def test_padding_that_means_nothing(padding):
    with pytest.raises(ValueError, match=r"padding is .*expected"):
        conv2d(np.ones((1, 8, 8, 2)), np.ones((3, 3, 2, 2)), padding=padding)


@pytest.mark.parametrize("name", ["stride", "dilation"])
@pytest.mark.parametrize("value", [0, -1, 1.5, (1, 0)])
def test_strides_and_dilations_are_whole_numbers_from_one(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*whole numbers from 1 up"):
        conv2d(np.ones((1, 8, 8, 2)), np.ones((3, 3, 2, 2)), **{name: value})


@pytest.mark.parametrize(
    ("x", "w", "b", "options", "message"),
    [
        ((8, 32, 32, 3), (3, 3, 4, 16), None, {}, r"x has 3 channels, w expects 4 \(x \(8, 32"),
        ((8, 32, 32, 3), (3, 16), None, {}, "x has 3 channels, w expects"),
        ((32, 32, 3), (3, 3, 3, 4), None, {}, r"x is \(32, 32, 3\), expected \(…, N, H, W, C\)"),
        ((1, 8, 8, 3), (3, 3, 3, 4), (3,), {}, r"b is \(3,\), w .* needs \(4,\)"),
        ((1, 8, 8, 3), (2, 3, 3, 3, 4), (4,), {}, r"b is \(4,\), w .* needs \(2, 4\)"),
        ((3, 1, 8, 8, 3), (2, 3, 3, 3, 4), None, {}, r"leading axes \(3,\).*has \(2,\)"),
        ((1, 4, 8, 3), (5, 5, 3, 4), None, {}, r"window of 5×5 pixels.* exceeds the image of 4×8"),
        ((1, 4, 8, 3), (3, 3, 3, 4), None, {"dilation": 2}, r"dilation \(2, 2\), exceeds"),
        ((1, 8, 8, 3), (3, 3, 3, 4), None, {"activation": "tanh"}, "activation is 'tanh', expec"),
    ],
)
def test_errors_say_what_is_wrong(x, w, b, options, message):
    b = None if b is None else np.ones(b)
    with pytest.raises(ValueError, match=message):
        conv2d(np.ones(x), np.ones(w), b, **options)


def test_types_must_agree():
    with pytest.raises(ValueError, match="x is float32, w is float64: convert one of them"):
        conv2d(np.ones((1, 8, 8, 2), np.float32), np.ones((3, 3, 2, 2)))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
@pytest.mark.parametrize("channels", [3, 16])  # with 16, by Winograd's transforms
def test_images_without_rows_have_gradients_without_rows(size, channels):
    x = variable(np.ones((2, *size, channels), np.float32))
    w = variable(np.ones((3, 3, channels, 16), np.float32))
    y = conv2d(x, w, padding=2)
    assert y.shape == (2, size[0] + 2, size[1] + 2, 16)
    x_gradient, w_gradient = gradients(y, [x, w])
    assert x_gradient.shape == x.shape
    assert not w_gradient.any()


def test_a_border_beyond_all_memory_is_refused():
    x, w = np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    with pytest.raises(MemoryError, match="fit into no memory"):
        conv2d(x, w, dilation=2**61, padding=2**61)


def test_a_bias_of_another_dtype_is_refused():
    x, w = np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    with pytest.raises(ValueError, match="b is float64: convert one of them"):
        conv2d(x, w, np.ones(1))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_outputs_without_rows_give_the_weights_no_gradient(size):
    x, g = np.ones((1, 2, *size, 3), np.float32), np.ones((1, 2, *size, 4), np.float32)
    once, no_border = (1, 1), ((0, 0), (0, 0))
    found = cpu.convolve_weight_gradient(x, g, once, once, no_border, once)
    assert found.shape == (1, 1, 1, 3, 4)
    assert not found.any()
