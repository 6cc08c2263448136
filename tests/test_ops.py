"""Every differentiable function: its value, its gradient, broadcasting, replicas, its errors."""

import numpy as np
import pytest
from helpers import (
    assert_adjoint,
    assert_close,
    assert_complex_step,
    assert_gradient,
    generator,
    pull_back,
    seeds,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from minires.engine import ops
from minires.engine.autodiff import Tensor, gradients, variable

shapes = array_shapes(min_dims=0, max_dims=4, max_side=4)
pairs_of_shapes = mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4)


def distinct(rng, shape):
    """Numbers at least 0.01 apart and from zero: no finite step crosses a kink."""
    size = int(np.prod(shape))
    return ((rng.permutation(size) - size // 2 + 0.5) * 0.02).reshape(shape)


# --- elementwise --------------------------------------------------------------------------

ANALYTIC = {
    "negative": (ops.negative, np.negative, 0),
    "exp": (ops.exp, np.exp, 0),
    "tanh": (ops.tanh, np.tanh, 0),
    "sigmoid": (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 0),
    "log": (ops.log, np.log, 3),  # the last number is added to the input: a positive one
    "sqrt": (ops.sqrt, np.sqrt, 3),
    "cube": (lambda x: ops.power(x, exponent=3), lambda x: x * x * x, 0),
    "square": (lambda x: ops.power(x, exponent=2), lambda x: x * x, 0),
    "root of an inverse": (lambda x: ops.power(x, exponent=-0.5), lambda x: 1 / np.sqrt(x), 3),
}


@pytest.mark.parametrize("name", ANALYTIC)
@given(shape=shapes, seed=seeds)
def test_analytic_functions(name, shape, seed):
    rng = generator(seed)
    function, oracle, offset = ANALYTIC[name]
    x = rng.uniform(-2, 2, shape) + offset
    assert_close(function(x), oracle(x), 1e-14)
    assert_complex_step(function, x, rng=rng)


BINARY = {
    "add": (ops.add, np.add, 0),
    "subtract": (ops.subtract, np.subtract, 0),
    "multiply": (ops.multiply, np.multiply, 0),
    "divide": (ops.divide, np.divide, 3),
}


@pytest.mark.parametrize("name", BINARY)
@given(pair=pairs_of_shapes, seed=seeds)
def test_arithmetic_broadcasts(name, pair, seed):
    rng = generator(seed)
    function, oracle, offset = BINARY[name]
    x, y = (rng.uniform(-2, 2, shape) for shape in pair.input_shapes)
    y = np.asarray(y + offset)
    assert_close(function(x, y), oracle(x, y), 1e-14)
    assert_complex_step(function, np.asarray(x), y, rng=rng)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
@given(pair=pairs_of_shapes, seed=seeds)
def test_the_larger_and_the_smaller_broadcast(name, pair, seed):
    rng = generator(seed)
    x, y = (distinct(rng, shape) for shape in pair.input_shapes)
    y = y + 0.005
    assert_close(getattr(ops, name)(x, y), getattr(np, name)(x, y), 0)
    assert_gradient(getattr(ops, name), x, y, rng=rng)


@pytest.mark.parametrize("function", [ops.maximum, ops.minimum])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_share_the_gradient(function, dtype):
    x, y = np.array([1, 2, 3], dtype), np.array([1, 3, 2], dtype)
    gx, gy = pull_back(function, [x, y], np.array([10, 20, 30], dtype))
    first = [5, 0, 30] if function is ops.maximum else [5, 20, 0]
    np.testing.assert_array_equal(gx, first)
    np.testing.assert_array_equal(gy, np.array([10, 20, 30]) - first)
    assert gx.dtype == gy.dtype == dtype


KINKED = {
    "relu": (ops.relu, lambda x: np.where(x > 0, x, 0)),
    "relu6": (lambda x: ops.relu6(x * 40.0), lambda x: np.minimum(np.maximum(x * 40, 0), 6)),
    "clip": (
        lambda x: ops.clip(x, low=-0.1, high=0.3),
        lambda x: np.minimum(np.maximum(x, -0.1), 0.3),
    ),
}


@pytest.mark.parametrize("name", KINKED)
@given(shape=shapes, seed=seeds)
def test_functions_with_kinks(name, shape, seed):
    rng = generator(seed)
    function, oracle = KINKED[name]
    x = distinct(rng, shape) + 0.0033
    assert_close(function(x), oracle(x), 1e-14)
    assert_gradient(function, x, rng=rng)


@pytest.mark.parametrize(
    ("function", "x", "slope"),
    [
        (ops.relu, [-1, 0, 1], [0, 0, 1]),
        (ops.relu6, [-1, 0, 3, 6, 7], [0, 0, 1, 0, 0]),
        (lambda x: ops.clip(x, low=-1, high=1), [-2, -1, 0, 1, 2], [0, 1, 1, 1, 0]),
    ],
)
def test_the_derivative_at_a_kink(function, x, slope):
    x = np.array(x, np.float32)
    (gradient,) = pull_back(function, [x], np.full_like(x, 3))
    np.testing.assert_array_equal(gradient, 3 * np.array(slope))
    assert gradient.dtype == np.float32


def test_sigmoid_of_huge_numbers_is_zero_or_one():
    x = np.array([-1e30, -800, 800, 1e30])
    np.testing.assert_array_equal(ops.sigmoid(x), [0, 0, 1, 1])


def test_operators_are_the_functions():
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 5.0], [1.0, 0.5]])
    x, y = variable(a), variable(b)
    cases = [
        (x + y, a + b), (x + 2, a + 2), (2 + x, 2 + a), (b + x, b + a),
        (x - y, a - b), (x - 2, a - 2), (2 - x, 2 - a), (b - x, b - a),
        (x * y, a * b), (x * 2, a * 2), (2 * x, 2 * a), (b * x, b * a),
        (x / y, a / b), (x / 2, a / 2), (2 / x, 2 / a), (b / x, b / a),
        (-x, -a), (x**3, a**3), (x @ y, a @ b), (x @ b, a @ b), (b @ x, b @ a),
        (x[0], a[0]), (x[:, 1], a[:, 1]), (x.sum(axis=0), a.sum(axis=0)), (x.mean(), a.mean()),
        (x.reshape(4), a.reshape(4)), (x.reshape(-1, 1), a.reshape(-1, 1)),
    ]  # fmt: skip
    for ours, expected in cases:
        assert isinstance(ours, Tensor)
        np.testing.assert_allclose(ours.data, expected, rtol=1e-15)
    for function in (
        lambda x, y: (2 - x) * (3 / y) + x / y - y,
        lambda x, y: (b - x) / (b / y) + (b @ x) @ y + (x @ b),
        lambda x, y: x**3 + (-y) ** 2 * x[0] + x.mean() * y.sum(axis=1).reshape(2, 1),
    ):
        take_gradients = [variable(a), variable(b)]
        found = gradients(function(*take_gradients), take_gradients)
        for number, gradient in enumerate(found):
            step = np.zeros_like(a)
            for place in np.ndindex(a.shape):
                step[...] = 0
                step[place] = 1e-6
                moved = [[a, b], [a, b]]
                moved[0][number] = moved[0][number] + step
                moved[1][number] = moved[1][number] - step
                # Operators need a Tensor on one side; constants record nothing.
                high, low = (function(*map(Tensor, m)).data.sum() for m in moved)
                assert abs((high - low) / 2e-6 - gradient[place]) < 1e-6


# --- products -----------------------------------------------------------------------------


@given(
    lead=mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    seed=seeds,
)
def test_matmul(lead, sizes, seed):
    rng = generator(seed)
    rows, inner, columns = sizes
    x = rng.standard_normal((*lead.input_shapes[0], rows, inner))
    w = rng.standard_normal((*lead.input_shapes[1], inner, columns))
    assert_close(ops.matmul(x, w), np.einsum("...ij,...jk->...ik", x, w), 1e-14)
    assert_adjoint(ops.matmul, x, w, rng=rng)


@pytest.mark.parametrize(
    "shape", [(3, 700, 300, 900), (1, 1000, 501, 403), (2, 403, 501, 1000), (40, 90, 70, 80)]
)
def test_matmul_in_tiles(rng, shape):
    """Large enough to be cut by rows or by columns, in parts that do not divide."""
    replicas, rows, inner, columns = shape
    x = rng.standard_normal((replicas, rows, inner))
    w = rng.standard_normal((replicas, inner, columns))
    assert_close(ops.matmul(x, w), np.matmul(x, w), 1e-13)
    shared = ops.matmul(x[0], w)
    for r in range(replicas):
        assert_close(shared[r], x[0] @ w[r], 1e-13)
    assert_adjoint(ops.matmul, x, w, rng=rng)


def test_matmul_writes_where_it_is_told_if_that_fits(rng):
    x, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 5))
    kernel = ops.kernels_of(x).matmul
    out = np.full((3, 5), np.nan)
    assert kernel(x, w, out) is out
    assert_close(out, x @ w)
    for other in (np.full((5, 3), np.nan), np.full((3, 5), np.nan, np.float32)):
        assert_close(kernel(x, w, other), x @ w)
        assert np.isnan(other).all()


@pytest.mark.parametrize(
    ("x", "w"), [((3, 4), (5, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((2, 3, 4), (2, 3, 4))]
)
def test_matmul_of_what_does_not_fit(x, w):
    with pytest.raises(ValueError, match=r"matmul: x \(.*\) has . columns, w \(.*\) must have as"):
        ops.matmul(np.ones(x), np.ones(w))


@given(lead=array_shapes(min_dims=0, max_dims=2, max_side=3), middle=shapes, seed=seeds)
def test_add_bias(lead, middle, seed):
    rng = generator(seed)
    middle = middle or (2,)  # at least the batch
    x, b = rng.standard_normal((*lead, *middle, 3)), rng.standard_normal((*lead, 3))
    expected = x + b.reshape(*lead, *[1] * len(middle), 3)
    assert_close(ops.add_bias(x, b), expected, 1e-15)
    assert_complex_step(ops.add_bias, x, b, rng=rng)


@pytest.mark.parametrize("bias", [True, False])
def test_dense(rng, bias):
    x, w, b = (rng.standard_normal(shape) for shape in [(2, 5, 3), (2, 3, 4), (2, 4)])
    arrays = (x, w, b) if bias else (x, w)
    expected = np.stack([x[r] @ w[r] + (b[r] if bias else 0) for r in range(2)])
    assert_close(ops.dense(*arrays), expected, 1e-14)
    assert_complex_step(ops.dense, *arrays, rng=rng)


def test_a_bias_gradient_over_many_rows_keeps_its_digits_in_float32(rng):
    g = rng.random((100_000, 8)).astype(np.float32)
    _, gb = pull_back(ops.add_bias, [np.zeros_like(g), np.zeros(8, np.float32)], g)
    np.testing.assert_allclose(gb, g.sum(axis=0, dtype=float), rtol=2e-5)


# --- reductions and shapes ----------------------------------------------------------------


@st.composite
def shapes_and_axes(draw):
    shape = draw(array_shapes(min_dims=1, max_dims=4, max_side=4))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    kind = draw(st.sampled_from(["all", "one", "some"]))
    if kind == "all" or not axes:
        return shape, None
    signed = [axis - len(shape) if draw(st.booleans()) else axis for axis in axes]
    return shape, signed[0] if kind == "one" else tuple(signed)


@pytest.mark.parametrize("name", ["sum", "mean"])
@given(case=shapes_and_axes(), keepdims=st.booleans(), seed=seeds)
def test_reductions(name, case, keepdims, seed):
    rng = generator(seed)
    shape, axis = case
    x = rng.standard_normal(shape)

    def function(x):
        return getattr(ops, name)(x, axis=axis, keepdims=keepdims)

    expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    assert_close(function(x), expected, 1e-14, scale=10)
    assert_adjoint(function, x, rng=rng)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_reductions_drop_the_axes_unless_told_otherwise(rng, name):
    x = rng.standard_normal((2, 3))
    assert getattr(ops, name)(x).shape == ()
    assert getattr(ops, name)(x, axis=0).shape == (3,)
    assert getattr(ops, name)(x, keepdims=True).shape == (1, 1)


@given(
    lead=array_shapes(min_dims=1, max_dims=3, max_side=3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    seed=seeds,
)
def test_global_mean(lead, size, seed):
    rng = generator(seed)
    x = rng.standard_normal((*lead, *size))
    assert_close(ops.global_mean(x), x.mean(axis=(-3, -2)), 1e-14, scale=1)
    assert_adjoint(ops.global_mean, x, rng=rng)


@given(shape=shapes, seed=seeds)
def test_reshape_and_flatten(shape, seed):
    rng = generator(seed)
    x = rng.standard_normal(shape)
    assert_close(ops.reshape(x, shape=(-1, 1)), x.reshape(-1, 1), 0)
    assert_adjoint(lambda x: ops.reshape(x, shape=(1, -1)), x, rng=rng)
    images = rng.standard_normal((*shape, 2, 3, 2))
    assert_close(ops.flatten(images), images.reshape(*shape, 12), 0)
    assert_adjoint(ops.flatten, images, rng=rng)


@given(shape=shapes, seed=seeds, signs=st.lists(st.booleans(), min_size=4, max_size=4))
def test_transpose(shape, seed, signs):
    rng = generator(seed)
    x = rng.standard_normal(shape)
    order = rng.permutation(x.ndim).tolist()
    axes = tuple(a - x.ndim if s else a for a, s in zip(order, signs, strict=False))
    assert_close(ops.transpose(x, axes=axes), x.transpose(axes), 0)
    assert_adjoint(lambda x: ops.transpose(x, axes=axes), x, rng=rng)


INDICES = [
    0,
    -1,
    slice(1, None),
    slice(None, None, -2),
    (slice(None), 1),
    (Ellipsis, slice(0, 2)),
    (None, 2),
    (0, 1, 2),
    np.array([2, 0, 2, 2]),
    np.array([[0, 1], [1, 0]]),
    (np.array([0, 0, 2]), np.array([1, 1, 3])),
    (slice(None), np.array([1, 1])),
    [0, 2, 0],
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_take(rng, index, dtype):
    x = rng.standard_normal((3, 4, 5)).astype(dtype)
    assert_close(ops.take(x, index=index), x[index], 0)
    assert_adjoint(lambda x: ops.take(x, index=index), x.astype(float), rng=rng, tolerance=1e-13)
    (gradient,) = pull_back(lambda x: x[index], [x], np.ones_like(x[index]))
    expected = np.zeros(x.shape)
    places = np.arange(x.size).reshape(x.shape)[index]
    for place in np.ravel(places):
        expected.flat[place] += 1
    np.testing.assert_array_equal(gradient, expected)
    assert gradient.dtype == dtype


def test_take_by_a_mask(rng):
    x = rng.standard_normal((3, 4))
    mask = x > 0
    assert_close(ops.take(x, index=mask), x[mask], 0)
    assert_adjoint(lambda x: ops.take(x, index=mask), x, rng=rng)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    axis=st.integers(-3, 2),
    seed=seeds,
)
def test_concatenate(sizes, axis, seed):
    rng = generator(seed)
    arrays = []
    for size in sizes:
        shape = [2, 3, 2]
        shape[axis] = size
        arrays.append(rng.standard_normal(shape))

    def function(*arrays):
        return ops.concatenate(list(arrays), axis=axis)

    assert_close(function(*arrays), np.concatenate(arrays, axis), 0)
    g = rng.standard_normal(function(*arrays).shape)
    ends = np.cumsum(sizes)[:-1]
    for gradient, part in zip(pull_back(function, arrays, g), np.split(g, ends, axis), strict=True):
        assert_close(gradient, part, 0)


# --- probability --------------------------------------------------------------------------


@given(shape=array_shapes(min_dims=1, max_dims=4, max_side=5), seed=seeds)
def test_softmax(shape, seed):
    rng = generator(seed)
    z = rng.standard_normal(shape) * 3
    expected = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    assert_close(ops.softmax(z), expected, 1e-14)
    assert_close(ops.log_softmax(z), np.log(expected), 1e-13, scale=1 + np.abs(z).max())
    assert_gradient(ops.softmax, z, rng=rng)
    assert_gradient(ops.log_softmax, z, rng=rng)


def test_softmax_does_not_overflow():
    z = np.array([[1e4, 1e4, -1e4], [-1e30, 0, 1e30]])
    np.testing.assert_array_equal(ops.softmax(z), [[0.5, 0.5, 0], [0, 0, 1]])


def literal_cross_entropy(logits, labels, smoothing):
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    total = 0.0
    for n, label in enumerate(labels):
        for c in range(p.shape[-1]):
            target = smoothing / p.shape[-1] + (1 - smoothing) * (c == label)
            total -= target * np.log(p[n, c])
    return total / len(labels)


@given(
    replicas=st.sampled_from([None, 1, 3]),
    own_labels=st.booleans(),
    count=st.integers(1, 5),
    classes=st.integers(1, 6),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    seed=seeds,
)
def test_softmax_cross_entropy(replicas, own_labels, count, classes, smoothing, seed):
    rng = generator(seed)
    lead = () if replicas is None else (replicas,)
    z = rng.standard_normal((*lead, count, classes)) * 2
    labels = rng.integers(0, classes, (*lead, count) if own_labels else count)

    def function(z):
        return ops.softmax_cross_entropy(z, labels, smoothing=smoothing)

    every = np.broadcast_to(labels, (*lead, count)).reshape(-1, count)
    expected = [
        literal_cross_entropy(*case, smoothing)
        for case in zip(z.reshape(-1, count, classes), every, strict=True)
    ]
    assert_close(function(z), np.reshape(expected, lead), 1e-13, scale=1)
    assert_gradient(function, z, rng=rng)


def test_softmax_cross_entropy_of_huge_logits_and_float32():
    z = np.array([[1e4, 0, 0], [0, 0, -1e4]], np.float32)
    loss = ops.softmax_cross_entropy(z, np.array([1, 0]))
    assert loss.dtype == np.float32
    assert loss == pytest.approx((1e4 + np.log(2)) / 2)
    (gradient,) = pull_back(
        lambda z: ops.softmax_cross_entropy(z, np.array([1, 0]), smoothing=0.1), [z], np.float32(1)
    )
    assert gradient.dtype == np.float32


def test_softmax_cross_entropy_errors(rng):
    z = rng.standard_normal((4, 3))
    with pytest.raises(ValueError, match=r"labels \(3,\) for logits \(4, 3\): expected \(4,\)$"):
        ops.softmax_cross_entropy(z, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"integers: use labels.argmax\(axis=-1\)"):
        ops.softmax_cross_entropy(z, np.eye(3)[[0, 1, 2, 0]])
    with pytest.raises(ValueError, match=r"labels go from 0 to 3, .*: the network needs 4 classes"):
        ops.softmax_cross_entropy(z, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"labels go from -1 to 2, expected 0 to 2$"):
        ops.softmax_cross_entropy(z, np.array([0, 1, 2, -1]))


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout(rate, dtype):
    x = np.full((200, 500), 2, dtype)
    y = ops.dropout(x, rate=rate, rng=np.random.default_rng(5))
    assert y.dtype == dtype
    assert set(np.unique(y)) <= {0, dtype(2) * dtype(1 / (1 - rate))}
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / x.size) + 1e-12
    assert abs(y.mean() - 2) < 10 * np.sqrt(rate / (1 - rate) / x.size) + 1e-6
    (gradient,) = pull_back(
        lambda x: ops.dropout(x, rate=rate, rng=np.random.default_rng(5)), [x], np.ones_like(x)
    )
    np.testing.assert_array_equal(gradient * 2, y)
    assert gradient.dtype == dtype


def test_dropout_draws_anew_each_time_and_alike_in_both_precisions():
    rng = np.random.default_rng(1)
    x = np.ones((10, 20))
    first, second = (ops.dropout(x, rate=0.5, rng=rng) for _ in range(2))
    assert (first != second).any()
    single = ops.dropout(x.astype(np.float32), rate=0.5, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(single, first)


def test_dropout_with_a_generator_each_is_each_network_alone():
    x = np.random.default_rng(0).standard_normal((3, 10, 20))
    together = ops.dropout(x, rate=0.5, rng=[np.random.default_rng(r) for r in range(3)])
    for r in range(3):
        alone = ops.dropout(x[r], rate=0.5, rng=np.random.default_rng(r))
        np.testing.assert_array_equal(together[r], alone)


def test_dropout_with_too_few_generators():
    with pytest.raises(ValueError, match=r"2 generators for x \(3, 4, 5\).*each of the 3 networks"):
        ops.dropout(np.ones((3, 4, 5)), rate=0.5, rng=[np.random.default_rng(r) for r in range(2)])


# --- R at once, and types -----------------------------------------------------------------

BATCHED = {
    "relu": (ops.relu, [(4, 3)]),
    "tanh": (ops.tanh, [(4, 3)]),
    "softmax": (ops.softmax, [(4, 3)]),
    "log_softmax": (ops.log_softmax, [(4, 3)]),
    "global_mean": (ops.global_mean, [(4, 5, 6, 3)]),
    "flatten": (ops.flatten, [(4, 5, 6, 3)]),
    "matmul": (ops.matmul, [(40, 30), (30, 20)]),
    "add_bias": (ops.add_bias, [(40, 3), (3,)]),
    "add_bias of images": (ops.add_bias, [(4, 5, 6, 3), (3,)]),
    "dense": (ops.dense, [(40, 30), (30, 20), (20,)]),
    "loss": (lambda z: ops.softmax_cross_entropy(z, np.array([0, 2, 1, 1])), [(4, 3)]),
}


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_networks_at_once_are_networks_one_by_one_to_the_bit(rng, name, dtype):
    function, sizes = BATCHED[name]
    arrays = [rng.standard_normal((3, *size)).astype(dtype) for size in sizes]
    together = function(*arrays)
    g = rng.standard_normal(together.shape).astype(dtype)
    pulled = pull_back(function, arrays, g)
    assert together.dtype == dtype
    for r in range(3):
        alone = [array[r] for array in arrays]
        np.testing.assert_array_equal(together[r], function(*alone))
        for gradient, one in zip(pulled, pull_back(function, alone, g[r]), strict=True):
            np.testing.assert_array_equal(gradient[r], one)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.sigmoid(ops.tanh(x)) * 2 + 1 - x / 3,
        lambda x: ops.sqrt(ops.exp(x)) + ops.power(x, exponent=2) + ops.log(x * x + 1),
        lambda x: ops.mean(x, axis=0) + ops.sum(x, axis=0),
        lambda x: ops.maximum(x, 0.0 * x) + ops.minimum(x, 0.5 * x) + ops.clip(x, low=-1, high=1),
        lambda x: ops.relu6(x) + ops.relu(x) + ops.softmax(x) + ops.log_softmax(x),
        lambda x: ops.softmax_cross_entropy(x, np.array([0, 1, 1]), smoothing=0.1),
        lambda x: ops.concatenate([x, x[:, :1]]),
    ],
)
def test_float32_stays_float32(rng, function):
    x = variable(rng.standard_normal((3, 2)).astype(np.float32))
    result = function(x)
    assert result.dtype == np.float32
    (gradient,) = gradients(result, [x])
    assert gradient.dtype == np.float32


def test_every_public_function_is_exported():
    own = {
        name
        for name, value in vars(ops).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "minires.engine.ops"
    }
    assert own == set(ops.__all__)


def test_labels_that_are_no_integers_are_refused(rng):
    with pytest.raises(ValueError, match=r"labels are float64 \(3,\), expected integers: use"):
        ops.softmax_cross_entropy(rng.standard_normal((3, 4)), np.array([0.5, 1.5, 2.5]))


def test_the_mean_of_axes_in_an_array_without_elements():
    x = variable(np.zeros((0, 3)))
    y = ops.mean(x, axis=1)
    assert y.shape == (0,)
    assert gradients(y, [x])[0].shape == (0, 3)
