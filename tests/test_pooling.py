"""max_pool and mean_pool against windows listed one by one, and their gradients."""

import functools
import itertools

import numpy as np
import pytest
from helpers import (
    assert_adjoint,
    assert_close,
    generator,
    lay_out,
    naive_borders,
    naive_windows,
    pull_back,
    seeds,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from minires import arrays
from minires.engine import ops
from minires.engine.convolution import max_pool, mean_pool, pixels_counted

LAYOUTS = ("plain", "channels first", "every other", "backwards")


@st.composite
def poolings(draw):
    """Overlapping and disjoint windows, sizes they do not divide, padding, many equal values."""
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    number = st.integers(0, 2)
    two = st.tuples(number, number)
    padding = draw(st.one_of(number, two, st.tuples(two, two), st.sampled_from(["same", "valid"])))
    size = tuple(
        d * (k - 1) + 1 + draw(st.integers(0, 5)) for k, d in zip(window, dilation, strict=True)
    )
    rng = generator(draw(seeds))
    shape = (*draw(st.sampled_from([(1,), (3,), (2, 2)])), *size, draw(st.integers(1, 4)))
    levels = draw(st.sampled_from([2, 4, 10**6]))  # two levels: ties in every window
    x = rng.integers(-levels, levels, shape) / 4.0
    options = {"window": window, "stride": stride, "padding": padding, "dilation": dilation}
    steps = stride or window
    sides = naive_borders(padding, size, window, steps, dilation)
    return (
        lay_out(x, draw(st.sampled_from(LAYOUTS))),
        options,
        (window, steps, sides, dilation),
        rng,
    )


@settings(max_examples=150)
@given(case=poolings())
def test_max_pool_takes_the_first_of_the_largest(case):
    x, options, literal, rng = case
    images = x.reshape(-1, *x.shape[-3:])
    windows = list(naive_windows(images, *literal, -np.inf))
    if any(max(values) == -np.inf for *_, values, _ in windows):
        with pytest.raises(
            ValueError, match=r"max_pool: a window of .* sees nothing but the paddi"
        ):
            max_pool(x, **options)
        return
    y = max_pool(x, **options)
    g = rng.standard_normal(y.shape)
    (gradient,) = pull_back(lambda x: max_pool(x, **options), [x], g)
    flat_g = g.reshape(-1, *g.shape[-3:])
    expected_y = np.full(flat_g.shape, np.nan)
    (top, bottom), (left, right) = literal[2]
    height, width = images.shape[1:3]
    wide = np.zeros((len(images), height + top + bottom, width + left + right, x.shape[-1]))
    for n, i, j, c, values, places in windows:
        winner = max(range(len(values)), key=lambda k: (values[k], -k))
        expected_y[n, i, j, c] = values[winner]
        wide[n, *places[winner], c] += flat_g[n, i, j, c]
    np.testing.assert_array_equal(y, expected_y.reshape(y.shape))
    expected = wide[:, top : top + height, left : left + width].reshape(x.shape)
    assert_close(gradient, expected, 1e-14, scale=10)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4, 4), {"window": 2, "padding": 2}),
        ((4, 4), {"window": 2, "padding": ((0, 0), (0, 2))}),
        ((1, 4), {"window": 2, "stride": 1, "padding": ((1, 2), (0, 0)), "dilation": (3, 1)}),
    ],
)
def test_windows_of_padding_only_have_no_largest_value(size, options):
    """The last one reaches across the image: its two taps lie before and behind the only row."""
    with pytest.raises(ValueError, match=r"sees nothing but the padding.*give less padding"):
        max_pool(np.ones((1, *size, 1)), **options)
    assert (mean_pool(np.ones((1, *size, 1)), **options) >= 0).all()


@settings(max_examples=150)
@given(case=poolings(), count_padding=st.booleans())
def test_mean_pool_is_the_mean(case, count_padding):
    x, options, literal, rng = case

    def function(x):
        return mean_pool(x, **options, count_padding=count_padding)

    y = function(x)
    images = x.reshape(-1, *x.shape[-3:])
    expected = np.full((len(images), *y.shape[-3:]), np.nan)
    for n, i, j, c, values, _ in naive_windows(images, *literal, np.nan):
        inside = [value for value in values if not np.isnan(value)]
        divisor = len(values) if count_padding else max(len(inside), 1)
        expected[n, i, j, c] = sum(inside) / divisor
    assert_close(y, expected.reshape(y.shape), 1e-13, scale=10)
    assert_adjoint(function, x, rng=rng)


@pytest.mark.parametrize("window", [2, 3])
def test_every_small_border(rng, window):
    """A border that the strides make up for elsewhere: as many outputs as without it, shifted."""
    for size in (4, 6):
        x = rng.standard_normal((2, size, size, 2))
        for sides in itertools.product(range(window), repeat=4):
            for pool, stride in itertools.product((max_pool, mean_pool), range(1, window + 2)):
                options = {"window": window, "stride": stride, "padding": (sides[:2], sides[2:])}
                # Both only choose and weigh numbers of x: linear, as long as the choice stays.
                assert_adjoint(functools.partial(pool, **options), x, rng=rng)


def test_max_pool_ties_by_hand():
    x = np.array([[7, 7, 1, 2], [7, 7, 2, 2], [0, 0, 5, 4]], float).reshape(1, 3, 4, 1)
    (gradient,) = pull_back(max_pool, [x], np.array([10.0, 20.0]).reshape(1, 1, 2, 1))
    expected = [[10, 0, 0, 20], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)
    (gradient,) = pull_back(
        lambda x: max_pool(x, window=2, stride=1), [x], np.arange(1.0, 7).reshape(1, 2, 3, 1)
    )
    # Overlap: a pixel takes from every window it wins.
    expected = [[1, 2, 0, 3], [4, 5, 0, 0], [0, 0, 6, 0]]
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_max_pool_of_zeros_sends_the_gradient_to_one_pixel_only():
    """After a ReLU most windows are all zeros: a tie is the rule, not the exception."""
    x = np.zeros((2, 6, 6, 3), np.float32)
    (gradient,) = pull_back(max_pool, [x], np.ones((2, 3, 3, 3), np.float32))
    assert gradient[:, ::2, ::2].min() == 1
    assert gradient.sum() == 2 * 3 * 3 * 3


def test_the_padding_never_wins():
    x = np.full((1, 3, 3, 1), -5.0)
    y = max_pool(x, window=3, stride=2, padding=1)
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 1), -5))
    (gradient,) = pull_back(lambda x: max_pool(x, window=3, stride=2, padding=1), [x], y)
    assert gradient.sum() == y.sum()


def test_what_a_stride_leaves_over_gets_no_gradient(rng):
    x = rng.standard_normal((2, 7, 5, 3))
    for pool in (max_pool, mean_pool):
        y = pool(x)
        assert y.shape == (2, 3, 2, 3)
        (gradient,) = pull_back(pool, [x], np.ones_like(y))
        assert not gradient[:, 6].any()
        assert not gradient[:, :, 4].any()
        assert_close(gradient.sum(), y.size, 1e-13)


def test_mean_pool_counts_by_hand():
    arguments = (3, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)
    np.testing.assert_array_equal(pixels_counted(*arguments, False)[..., 0], [[4, 4], [4, 4]])
    np.testing.assert_array_equal(pixels_counted(*arguments, True)[..., 0], [[9, 9], [9, 9]])
    x = np.ones((1, 3, 3, 1))
    options = {"window": 3, "stride": 2, "padding": 1}
    assert (mean_pool(x, **options) == 1).all()
    assert (mean_pool(x, **options, count_padding=True) == 4 / 9).all()


POOLS = [
    (max_pool, {"window": 2}),
    (max_pool, {"window": 3, "stride": 2, "padding": 1}),
    (mean_pool, {"window": 2}),
    (mean_pool, {"window": 3, "stride": 2, "padding": "same", "count_padding": True}),
]
every_pool = pytest.mark.parametrize(("pool", "options"), POOLS)


@every_pool
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_at_once_are_networks_one_by_one_to_the_bit(rng, pool, options, dtype):
    x = rng.standard_normal((3, 5, 8, 9, 4)).astype(dtype)
    y = pool(x, **options)
    g = rng.standard_normal(y.shape).astype(dtype)
    (gradient,) = pull_back(lambda x: pool(x, **options), [x], g)
    assert y.dtype == gradient.dtype == dtype
    for r in range(3):
        np.testing.assert_array_equal(y[r], pool(x[r], **options))
        (alone,) = pull_back(lambda x: pool(x, **options), [x[r]], g[r])
        np.testing.assert_array_equal(gradient[r], alone)


@every_pool
def test_the_number_of_threads_changes_no_bit(rng, pool, options):
    x = rng.standard_normal((60, 33, 32, 16)).astype(np.float32)  # several tiles
    results = []
    for count in (1, 2, 3):
        with arrays.threads(count):
            y = pool(x, **options)
            (gradient,) = pull_back(lambda x: pool(x, **options), [x], y)
            results.append((y, gradient))
    for y, gradient in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])


@every_pool
def test_many_tiles_are_the_images_one_by_one(rng, pool, options):
    """More images than one tile holds, and a number that tiles do not divide."""
    x = rng.standard_normal((13, 80, 80, 8)).astype(np.float32)
    y = pool(x, **options)
    g = rng.standard_normal(y.shape).astype(np.float32)
    (gradient,) = pull_back(lambda x: pool(x, **options), [x], g)
    for n in (0, 5, 12):
        np.testing.assert_array_equal(y[n], pool(x[n : n + 1], **options)[0])
        (alone,) = pull_back(lambda x: pool(x, **options), [x[n : n + 1]], g[n : n + 1])
        np.testing.assert_array_equal(gradient[n], alone[0])


@every_pool
@pytest.mark.parametrize("images", [0, 1])
def test_a_batch_of_one_and_of_none(rng, pool, options, images):
    x = rng.standard_normal((images, 8, 9, 4))
    y = pool(x, **options)
    (gradient,) = pull_back(lambda x: pool(x, **options), [x], np.ones_like(y))
    assert y.shape == (images, 4, pool(np.ones((1, 8, 9, 4)), **options).shape[2], 4)
    assert gradient.shape == x.shape


@every_pool
def test_gradients_that_repeat_one_number_in_memory(rng, pool, options):
    x = rng.standard_normal((2, 6, 7, 3))
    shape = pool(x, **options).shape
    (view,) = pull_back(lambda x: ops.global_mean(pool(x, **options)), [x], np.ones((2, 3)))
    whole = np.full(shape, 1 / (shape[1] * shape[2]))
    (expected,) = pull_back(lambda x: pool(x, **options), [x], whole)
    assert_close(view, expected, 1e-14)


@pytest.mark.parametrize("pool", [max_pool, mean_pool])
def test_errors_say_what_is_wrong(pool):
    x = np.ones((1, 4, 8, 3))
    name = pool.__name__
    with pytest.raises(ValueError, match=rf"{name}: a window of 5×5 pixels.* the image of 4×8"):
        pool(x, window=5)
    with pytest.raises(ValueError, match=rf"{name}: x is \(4, 8, 3\), expected \(…, N, H, W, C\)"):
        pool(x[0])
    with pytest.raises(ValueError, match="window is 0, expected"):
        pool(x, window=0)
    with pytest.raises(ValueError, match="stride is 0, expected"):
        pool(x, window=2, stride=0)
    with pytest.raises(ValueError, match="padding is -1, expected"):
        pool(x, padding=-1)
