"""The engine: what it adds up, what it lets go of, and random graphs against a naive engine."""

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import assert_close
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from minires.engine import ops
from minires.engine.autodiff import (
    Tensor,
    Variable,
    data_of,
    gradients,
    op,
    takes_out,
    variable,
)


@contextmanager
def no_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- what comes out -----------------------------------------------------------------------


def test_plain_arrays_give_plain_arrays_and_record_nothing(rng):
    x = rng.standard_normal((2, 3))
    assert type(ops.exp(x)) is np.ndarray
    assert type(ops.matmul(x, x.T)) is np.ndarray


def test_a_result_of_constants_is_a_constant():
    result = ops.exp(Tensor(np.ones(2)))
    assert isinstance(result, Tensor)
    assert result.node is None
    assert gradients(result, []) == []
    assert "constant" in repr(result)
    assert "tensor" in repr(variable(np.ones(2)))


def test_a_tensor_tells_its_shape():
    x = variable(np.ones((2, 3), np.float32))
    assert (x.shape, x.ndim, x.dtype) == ((2, 3), 2, np.float32)
    assert data_of(x) is x.data
    assert data_of(5) == 5


def test_gradients_start_from_ones_or_from_a_seed():
    x = variable(np.array([1.0, 2.0, 3.0]))
    (ones,) = gradients(x * x, [x])
    np.testing.assert_array_equal(ones, [2, 4, 6])
    (seeded,) = gradients(x * x, [x], np.array([1.0, 10.0, 100.0]))
    np.testing.assert_array_equal(seeded, [2, 40, 600])


def test_gradients_that_meet_are_added():
    x = variable(np.array(3.0))
    y = x * x
    assert gradients(y + y * y + x, [x]) == [2 * 3 + 4 * 27 + 1]


def test_adding_gradients_leaves_the_seed_and_the_pulled_arrays_alone():
    """`x + x` pulls the very same array back twice; it must not be changed in place."""
    x, y = variable(np.ones(3)), variable(np.ones(3))
    seed = np.array([1.0, 2.0, 3.0])
    total = (x + y) + (x + y) + x
    gx, gy = gradients(total, [x, y], seed)
    np.testing.assert_array_equal(seed, [1, 2, 3])
    np.testing.assert_array_equal(gx, 3 * seed)
    np.testing.assert_array_equal(gy, 2 * seed)


def test_a_sum_of_the_walk_before_gives_no_leave_to_change_arrays_now():
    """Once added up, a gradient may be changed in place: that one, not the next walk's."""
    x = variable(np.ones(3))
    gradients(x * x, [x])
    seed = np.array([1.0, 2.0, 3.0])
    (gradient,) = gradients(x + x, [x], seed)
    np.testing.assert_array_equal(seed, [1, 2, 3])
    np.testing.assert_array_equal(gradient, [2, 4, 6])


def test_unreached_variables_get_zeros():
    x, y = variable(np.ones(2)), variable(np.ones((2, 2)))
    gx, gy = gradients(x * 2, [x, y])
    np.testing.assert_array_equal(gx, [2, 2])
    np.testing.assert_array_equal(gy, np.zeros((2, 2)))
    np.testing.assert_array_equal(gradients(Tensor(np.ones(2)), [x])[0], [0, 0])


def test_one_variable_named_twice_gets_its_gradient_twice():
    x, y = variable(np.array(2.0)), variable(np.array(3.0))
    assert gradients(x * y, [x, x]) == [3, 3]


def test_a_variable_not_asked_for_keeps_nothing_for_the_next_walk():
    x, y = variable(np.array(2.0)), variable(np.array(3.0))
    gradients(x * y, [x])
    assert gradients(x * y, [x, y]) == [3, 2]


def test_a_generator_of_variables_is_as_good_as_a_list():
    x, y = variable(np.array(2.0)), variable(np.array(3.0))
    assert gradients(x * y, (v for v in (x, y))) == [3, 2]


def test_a_variable_as_output():
    x = variable(np.array([2.0, 3.0]))
    np.testing.assert_array_equal(gradients(x, [x])[0], [1, 1])


def test_only_variables_can_be_asked_for():
    x = variable(np.ones(2))
    y = x * x
    with pytest.raises(ValueError, match=r"is not a variable: make it with `variable"):
        gradients(y * y, [y])
    with pytest.raises(ValueError, match="is not a variable"):
        gradients(y, [Tensor(np.ones(2))])
    np.testing.assert_array_equal(gradients(y, [x])[0], [2, 2])


def test_gradients_are_written_where_the_variable_says():
    whole = np.full(7, np.nan)
    x = variable(np.array([1.0, 2.0]), whole[:2])
    y = variable(np.array([3.0, 4.0]), whole[2:4])
    idle = variable(np.array([5.0]), whole[4:5])
    gx, gy, _ = gradients(x * y + x, [x, y, idle])
    assert np.shares_memory(gx, whole)
    assert np.shares_memory(gy, whole)
    np.testing.assert_array_equal(whole, [4, 5, 1, 2, 0, np.nan, np.nan])


def test_a_gradient_that_meets_another_at_its_place_is_added_to_it():
    """matmul writes its gradient into `out` itself; the second must not overwrite the first."""
    out = np.full((2, 2), np.nan)
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [5.0, 2.0]])
    w = variable(np.eye(2), out)
    gradients(ops.matmul(a, w) + ops.matmul(b, w), [w])
    np.testing.assert_array_equal(out, (a + b).T @ np.ones((2, 2)))


def test_a_pullback_with_a_place_for_its_result_gets_it_once():
    given = []

    @op
    def twice(x):
        @takes_out
        def pullback(g, out=None):
            given.append(out)
            return np.multiply(g, 2, out=out)

        return 2 * x, (pullback,)

    out = np.zeros(3)
    x = variable(np.ones(3), out)
    gradients(twice(x) + twice(x), [x])
    assert given[0] is out
    assert given[1] is None
    np.testing.assert_array_equal(out, [4, 4, 4])


def test_an_argument_called_out_says_nothing_without_the_mark():
    @op
    def twice(x):
        return 2 * x, (lambda g, out=None: pytest.fail("not marked") if out is not None else 2 * g,)

    x = variable(np.ones(3), np.zeros(3))
    np.testing.assert_array_equal(gradients(twice(x), [x])[0], [2, 2, 2])


def test_what_all_pullbacks_begin_with_is_done_once():
    calls = []

    @op
    def product_of_squares(x, y):
        """(x y)²: both gradients begin with 2 x y g."""

        def first(g):
            calls.append(g)
            return 2 * x * y * g

        return (x * y) ** 2, (lambda g: g * y, lambda g: g * x), first

    x, y = variable(np.array([3.0])), variable(np.array([5.0]))
    found = gradients(product_of_squares(x, y) + product_of_squares(x, 1.0), [x, y])
    np.testing.assert_array_equal(found, [[2 * 3 * 25 + 2 * 3], [2 * 9 * 5]])
    assert len(calls) == 2


def test_what_a_first_step_made_is_gone_after_the_walk():
    made = []

    @op
    def identity(x):
        def first(g):
            copy = g.copy()
            made.append(weakref.ref(copy))
            return copy

        return x + 0, (lambda g: g * 1,), first

    x = variable(np.ones(2))
    y = identity(identity(x))
    with no_garbage_collector():
        gradients(y, [x])
        assert [reference() for reference in made] == [None, None]


def test_pullbacks_of_constants_are_dropped_and_never_called():
    @op
    def product(x, y):
        return x * y, (lambda g: g * y, lambda g: pytest.fail("not a variable"))

    x = variable(np.array(2.0))
    assert gradients(product(x, np.array(3.0)), [x]) == [3]
    assert gradients(product(x, Tensor(np.array(3.0))), [x]) == [3]


def test_arrays_on_the_left_give_way_to_tensors():
    x = variable(np.array([1.0, 2.0]))
    for result in (np.ones(2) + x, np.ones(2) - x, np.ones(2) * x, np.ones(2) / x):
        assert isinstance(result, Tensor)
        assert result.data.shape == (2,)
    assert isinstance(np.ones((1, 2)) @ variable(np.ones((2, 1))), Tensor)


def test_a_chain_of_a_hundred_thousand_steps_needs_no_recursion():
    x = y = variable(np.array(1.0))
    for _ in range(100_000):
        y = y + 1.0
    assert gradients(y, [x]) == [1]


# --- walked twice -------------------------------------------------------------------------


def test_a_second_walk_says_so():
    x = variable(np.ones(2))
    y = x * x
    gradients(y, [x])
    with pytest.raises(RuntimeError, match=r"used before.*compute the output again"):
        gradients(y, [x])
    with pytest.raises(RuntimeError, match="used before"):
        gradients(y * x, [x])


def test_nothing_is_left_behind_by_a_walk_that_failed():
    x, z = variable(np.array(2.0)), variable(np.array(5.0))
    fresh = z * 3.0  # older than `y`, so the walk gives it a gradient but never comes to it
    y = x * x
    gradients(y, [x])
    newest = x * 7.0  # walked before the error
    with pytest.raises(RuntimeError, match="used before"):
        gradients(newest + y * fresh, [x, z])
    assert gradients(x * z, [x, z]) == [5, 2]
    assert gradients(fresh, [z]) == [3]


def test_a_failing_pullback_leaves_nothing_behind():
    @op
    def broken(x):
        def pullback(g):
            raise ArithmeticError("on purpose")

        return x, (pullback,)

    x = variable(np.array(2.0))
    with pytest.raises(ArithmeticError, match="on purpose"):
        gradients(broken(x) + x, [x])
    assert gradients(x * 1.0, [x]) == [1]


# --- memory -------------------------------------------------------------------------------


def small_network(x, w, watched):
    """A few steps; weak references to every array and Tensor made on the way."""

    def watch(tensor):
        watched.append(weakref.ref(tensor))
        watched.append(weakref.ref(tensor.data))
        return tensor

    y = watch(ops.matmul(x, w))
    y = watch(ops.tanh(y))
    y = watch(ops.exp(y))
    y = watch(ops.concatenate([y, watch(y * y)]))
    y = watch(ops.reshape(y, shape=(-1,)))
    return ops.sum(watch(y * y))


def test_intermediate_arrays_die_with_the_walk_and_without_the_garbage_collector(rng):
    x, w = variable(rng.standard_normal((4, 3))), variable(rng.standard_normal((3, 5)))
    watched = []
    with no_garbage_collector():
        loss = small_network(x, w, watched)
        assert sum(ref() is not None for ref in watched) >= 5, "nothing is kept for the walk"
        gradients(loss, [x, w])  # `loss` itself is still held
        assert [ref() for ref in watched if ref() is not None] == []


def test_a_graph_never_walked_dies_with_its_last_name(rng):
    x, w = variable(rng.standard_normal((4, 3))), variable(rng.standard_normal((3, 5)))
    watched = []
    with no_garbage_collector():
        loss = small_network(x, w, watched)
        del loss
        assert [ref() for ref in watched if ref() is not None] == []


def test_a_failed_walk_holds_nothing_either(rng):
    x = variable(rng.standard_normal(4))
    with no_garbage_collector():
        y = ops.exp(x)
        gradients(y, [x])
        z = ops.exp(x)
        array = weakref.ref(z.data)
        with pytest.raises(RuntimeError, match="used before"):
            gradients(z * y, [x])
        del z
        assert array() is None


def test_no_reference_cycles(rng):
    x, w = variable(rng.standard_normal((4, 3))), variable(rng.standard_normal((3, 5)))
    with no_garbage_collector():
        gradients(small_network(x, w, []), [x, w])
        small_network(x, w, [])
        assert gc.collect() == 0


def test_arrays_are_freed_during_the_walk_not_after_it(rng):
    """When the walk comes to an early step, what the later steps held is gone already."""
    alive = []

    @op
    def early(x):
        def pullback(g):
            alive.append([ref() is not None for ref in watched])
            return g

        return x + 0, (pullback,)

    with no_garbage_collector():
        x = variable(rng.standard_normal(5))
        start = early(x)
        first = ops.exp(start)
        second = ops.tanh(first)
        third = second * second
        watched = [weakref.ref(tensor.data) for tensor in (first, second, third)]
        del first, second
        gradients(ops.sum(third), [x])
    # `third` still has a name here; the other two lived for the walk only.
    assert alive == [[False, False, True]]


def test_gradients_of_later_steps_are_freed_during_the_walk(rng):
    made, alive = [], []

    @op
    def step(x):
        def pullback(g):
            alive.append([ref() is not None for ref in made])
            gradient = g + 1.0
            made.append(weakref.ref(gradient))
            return gradient

        return x + 0, (pullback,)

    with no_garbage_collector():
        x = variable(rng.standard_normal(5))
        gradients(step(step(step(x))), [x])
    # Each step finds the gradient that it is given, and none of those before.
    assert alive == [[], [True], [False, True]]


def test_a_constant_input_is_not_kept(rng):
    x = variable(rng.standard_normal(5))
    with no_garbage_collector():
        y = ops.exp(rng.standard_normal(5))
        array = weakref.ref(y)
        z = x + y
        del y
        assert array() is None
        del z


def test_nodes_cannot_point_forward():
    x = variable(np.ones(2))
    y = x * x
    assert [type(parent) for parent, _ in y.node.parents] == [Variable, Variable]
    assert all(parent.serial < y.node.serial for parent, _ in y.node.parents)


# --- random graphs ------------------------------------------------------------------------

SHAPES = ((2, 3), (3,), (2, 1))
SIZES = [int(np.prod(shape)) for shape in SHAPES]


class Naive:
    """A value and its derivatives with respect to every number of every variable.

    Forward mode: each step says how a small change of its inputs changes its result. There
    is no graph, no pullback, and nothing to release; so it shares no idea with the engine.
    """

    def __init__(self, value, changes):
        self.value = value
        self.changes = changes  # one array of the value's shape for each number

    def step(self, function, derivative, *others):
        inputs = (self, *others)
        value = function(*(i.value for i in inputs))
        changes = [
            derivative(*(i.value for i in inputs), *(i.changes[k] for i in inputs))
            for k in range(len(self.changes))
        ]
        return Naive(value, [np.broadcast_to(change, value.shape) for change in changes])


UNARY = {
    "tanh": (ops.tanh, np.tanh, lambda x, dx: dx / np.cosh(x) ** 2),
    "sigmoid": (
        ops.sigmoid,
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x, dx: dx * np.exp(-x) / (1 + np.exp(-x)) ** 2,
    ),
    "relu": (ops.relu, lambda x: x * (x > 0), lambda x, dx: dx * (x > 0)),
    "negative": (lambda x: -x, lambda x: -x, lambda x, dx: -dx),
    "half": (lambda x: 0.5 * x, lambda x: 0.5 * x, lambda x, dx: 0.5 * dx),
    "sum": (
        lambda x: ops.sum(x, axis=-1, keepdims=True),
        lambda x: x.sum(axis=-1, keepdims=True),
        lambda x, dx: dx.sum(axis=-1, keepdims=True),
    ),
    "mean": (
        lambda x: ops.mean(x, axis=0),
        lambda x: x.mean(axis=0),
        lambda x, dx: dx.mean(axis=0),
    ),
    "first": (lambda x: x[..., :1], lambda x: x[..., :1], lambda x, dx: dx[..., :1]),
    "twice the last": (
        lambda x: x[np.array([-1, -1])],
        lambda x: np.stack([x[-1], x[-1]]),
        lambda x, dx: np.stack([dx[-1], dx[-1]]),
    ),
    "turned": (
        lambda x: ops.transpose(x, axes=tuple(range(x.ndim))[::-1]),
        np.transpose,
        lambda x, dx: dx.T,
    ),
    "flat": (lambda x: x.reshape(-1), np.ravel, lambda x, dx: dx.ravel()),
}
BINARY = {
    "add": (lambda x, y: x + y, lambda x, y: x + y, lambda x, y, dx, dy: dx + dy),
    "subtract": (lambda x, y: x - y, lambda x, y: x - y, lambda x, y, dx, dy: dx - dy),
    "multiply": (lambda x, y: x * y, lambda x, y: x * y, lambda x, y, dx, dy: dx * y + x * dy),
    "divide": (
        lambda x, y: x / (y * y + 1.0),
        lambda x, y: x / (y * y + 1),
        lambda x, y, dx, dy: dx / (y * y + 1) - x * 2 * y * dy / (y * y + 1) ** 2,
    ),
    "maximum": (
        ops.maximum,
        np.maximum,
        lambda x, y, dx, dy: np.where(x > y, dx, np.where(x < y, dy, (dx + dy) / 2)),
    ),
}


class RandomGraphs(RuleBasedStateMachine):
    """Grow one graph in both engines, and now and then compare all gradients of some value.

    A walk uses up the part of the graph below its output. From then on whatever reaches into
    that part must raise.
    """

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed):
        rng = np.random.default_rng(seed)
        self.rng = rng
        total, start = sum(SIZES), 0
        self.variables = []
        self.values = []  # (Tensor, Naive, the numbers of its ancestors and itself)
        for place, (shape, size) in enumerate(zip(SHAPES, SIZES, strict=True)):
            array = rng.standard_normal(shape)
            changes = np.zeros((total, *shape))
            changes[np.arange(start, start + size), *np.unravel_index(np.arange(size), shape)] = 1
            start += size
            self.variables.append(variable(array))
            self.values.append((self.variables[-1], Naive(array, list(changes)), {place}))
        self.made = len(SHAPES)
        self.used = set()

    def keep(self, tensor, naive, ancestors):
        assert_close(tensor.data, naive.value, 1e-13)
        if not naive.value.size or np.abs(naive.value).max() > 1e3 or naive.value.size > 64:
            return
        self.values.append((tensor, naive, ancestors | {self.made}))
        self.made += 1

    def pick(self, number):
        # The newest values most of the time, so that graphs grow deep.
        return self.values[-1 - number % len(self.values)]

    @rule(name=st.sampled_from(sorted(UNARY)), x=st.integers(0, 5))
    def apply_to_one(self, name, x):
        tensor, naive, ancestors = self.pick(x)
        if naive.value.ndim == 0 and name in ("sum", "mean", "first", "twice the last"):
            return
        ours, value, derivative = UNARY[name]
        self.keep(ours(tensor), naive.step(value, derivative), ancestors)

    @rule(name=st.sampled_from(sorted(BINARY)), x=st.integers(0, 5), y=st.integers(0, 50))
    def apply_to_two(self, name, x, y):
        (a, naive_a, ancestors_a), (b, naive_b, ancestors_b) = self.pick(x), self.pick(y)
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            return
        ours, value, derivative = BINARY[name]
        self.keep(ours(a, b), naive_a.step(value, derivative, naive_b), ancestors_a | ancestors_b)

    @rule(x=st.integers(0, 5), y=st.integers(0, 50))
    def multiply_matrices(self, x, y):
        (a, naive_a, ancestors_a), (b, naive_b, ancestors_b) = self.pick(x), self.pick(y)
        if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2]:
            return
        naive = naive_a.step(np.matmul, lambda x, y, dx, dy: dx @ y + x @ dy, naive_b)
        self.keep(a @ b, naive, ancestors_a | ancestors_b)

    @rule(x=st.integers(0, 5), y=st.integers(0, 50))
    def join(self, x, y):
        (a, naive_a, ancestors_a), (b, naive_b, ancestors_b) = self.pick(x), self.pick(y)
        if a.ndim == 0 or a.ndim != b.ndim or a.shape[:-1] != b.shape[:-1]:
            return
        naive = naive_a.step(
            lambda x, y: np.concatenate([x, y], -1),
            lambda x, y, dx, dy: np.concatenate([dx, dy], -1),
            naive_b,
        )
        self.keep(ops.concatenate([a, b]), naive, ancestors_a | ancestors_b)

    @precondition(lambda self: len(self.values) > len(SHAPES) + 3)
    @rule(x=st.integers(0, 3))
    def compare(self, x):
        tensor, naive, ancestors = self.pick(x)
        inner = {number for number in ancestors if number >= len(SHAPES)}
        if inner & self.used:
            with pytest.raises(RuntimeError, match="used before"):
                gradients(tensor, self.variables)
            # How far it came depends on the graph: nothing of it is looked at again.
            self.used |= inner
            self.values = [value for value in self.values if not value[2] & inner]
            return
        seed = self.rng.standard_normal(tensor.shape)
        found = gradients(tensor, self.variables, seed)
        expected = np.array([(change * seed).sum() for change in naive.changes])
        start = 0
        for gradient, shape, size in zip(found, SHAPES, SIZES, strict=True):
            want = expected[start : start + size].reshape(shape)
            assert_close(gradient, want, 1e-10, scale=1 + np.abs(expected).max())
            start += size
        self.used |= inner


RandomGraphs.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestRandomGraphs = RandomGraphs.TestCase


def test_a_pullback_with_a_default_argument_is_not_handed_memory_to_write_to():
    @op
    def scaled(x, *, factor):
        return x * factor, (lambda g, factor=factor: g * factor,)

    x = variable(np.ones(3), out=np.full(3, 7.0))
    (gradient,) = gradients(scaled(x, factor=2.0), [x])
    np.testing.assert_array_equal(gradient, [2, 2, 2])


def test_a_tensor_by_keyword_is_refused():
    x, y = variable(np.ones(3)), variable(np.ones(3))
    with pytest.raises(TypeError, match="multiply: give Tensors by position"):
        ops.multiply(x, y=y)
