"""Properties of gradients: any function, and the parts of an engine."""

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np

from minires.testing import oracles
from minires.testing.judging import (
    Misfit,
    Property,
    Summary,
    Words,
    Wrong,
    array_of,
    ask,
    ask_pullbacks,
    compare,
    grain,
    is_float32,
    judge,
    required_arguments,
    show,
    strategies,
    suite_of,
)

# --- any function ------------------------------------------------------------------------


def check_gradient(
    f: Callable,
    shapes: Sequence,
    domain: tuple[float, float] = (-2.0, 2.0),
    value: Callable | None = None,
) -> Summary:
    """Judge the gradients of any function of arrays.

        def multiply(x, y):
            return x * y, (lambda g: g * y, lambda g: g * x)    # the result, a pullback per input

        check_gradient(multiply, [(2, 3), (2, 3)])

    f(*arrays) returns a pair. The first is the result, a number or an array. The second is

    - a tuple of functions, one an input, each from the gradient of the result to that input's;
    - or one function from the gradient of the result to the gradients of all inputs, as a tuple
      (to one array where there is one input);
    - or, where the result is a number, the gradients themselves.

    Every coordinate of every input is moved, and the difference quotient compared with the
    gradient. Of more than 64 coordinates, 12 are moved one by one, and all at once in random
    directions: that is how the gradient of a whole network is judged. Steps get smaller until no
    kink lies within them. Where f has a kink just there, anything between the slopes on its two
    sides is right.

    f        as above; its inputs are float64
    shapes   the shape of each input
    domain   the inputs lie between these two numbers, for functions such as log
    value    the right result of the same inputs, such as np.multiply. Without it any function with
             right gradients passes
    Returns  Summary
    Raises   Falsified
    """
    return judge("gradient", gradient_properties(f, shapes, domain, value))


# Shares of the domain by which inputs are moved: the next smaller where a kink may lie within.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_STEPS_FLOAT32 = (4e-3, 1e-3)


def gradient_suite(
    f: Callable,
    shapes: Sequence,
    domain: tuple[float, float] = (-2.0, 2.0),
    value: Callable | None = None,
) -> Callable:
    """`check_gradient` for pytest: one test a property."""
    return suite_of("gradient", gradient_properties(f, shapes, domain, value))


def _pull(f, arrays, g=None):
    """(result, g, gradients) of f, however it gives them; g is ones where it is None."""
    returned = f(*[array.copy() for array in arrays])
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise Misfit(
            Words(type(returned).__name__),
            Words("a pair: the result, and its pullbacks or gradients"),
        )
    result, back = returned
    g = np.ones(np.shape(result)) if g is None else np.asarray(g)
    if is_float32(result):
        g = g.astype(np.float32)
    if isinstance(back, tuple | list) and back and all(map(callable, back)):
        if len(back) != len(arrays):
            raise Misfit(Words(f"{len(back)} pullbacks"), Words(f"{len(arrays)}, one an input"))
        gradients = [pullback(g.copy()) for pullback in back]
    else:
        gradients = back(g.copy()) if callable(back) else back
        if not callable(back) and np.size(result) != 1:
            raise Misfit(Words("gradients of an array"), Words("a function of the gradient of it"))
        if len(arrays) == 1 and not (isinstance(gradients, tuple | list) and len(gradients) == 1):
            gradients = [gradients]
    if not isinstance(gradients, tuple | list) or len(gradients) != len(arrays):
        raise Misfit(Words(type(gradients).__name__), Words(f"{len(arrays)} gradients"))
    return result, g, gradients


def gradient_properties(
    f: Callable,
    shapes: Sequence,
    domain: tuple[float, float] = (-2.0, 2.0),
    value: Callable | None = None,
) -> list[Property]:
    """The properties that `check_gradient` tries."""
    st = strategies()
    shapes = [tuple(np.ravel(shape).astype(int).tolist()) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    low, high = domain

    def arrays_of(case):
        if isinstance(case, int):  # too many numbers for Hypothesis to choose each
            rng = np.random.default_rng(case)
            return [rng.uniform(low, high, shape) for shape in shapes]
        # sixteenths of the domain, but for its ends
        numbers = iter(case)
        return [
            np.array([low + (high - low) * next(numbers) / 16 for _ in range(size)]).reshape(shape)
            for size, shape in zip(sizes, shapes, strict=True)
        ]

    def tell(case):
        if isinstance(case, int) and sum(sizes) > 64:
            return f"random inputs of shape {', '.join(map(str, shapes))}, seed {case}"
        return "inputs " + ", ".join(show(array) for array in arrays_of(case))

    places = [list(np.ndindex(shape)) for shape in shapes]
    if large := sum(sizes) > 64:
        rng = np.random.default_rng(3)
        most = max(1, 12 // len(shapes))
        places = [
            [own[i] for i in sorted(rng.choice(len(own), min(most, len(own)), replace=False))]
            for own in places
        ]
    if sum(sizes) <= 24:
        # Simplest first: the middle of the domain, then to both sides.
        order = sorted(range(1, 16), key=lambda k: abs(k - 12))
        cases = st.tuples(*[st.sampled_from(order)] * sum(sizes))
    else:
        cases = tuple(range(4 if large else 20))  # seeds

    def seed_of(shape):
        return np.random.default_rng(7).uniform(0.5, 2, shape).round(2)

    def shapes_fit(case):
        arrays = arrays_of(case)
        _, _, gradients = _pull(f, arrays)
        for number, (array, gradient) in enumerate(zip(arrays, gradients, strict=True)):
            if np.shape(gradient) != array.shape:
                return Wrong(
                    Words(f"shape {np.shape(gradient)} for input {number}"),
                    Words(f"shape {array.shape}"),
                    "an input that was broadcast gets the sum over all its copies"
                    if np.size(gradient) > array.size
                    else "",
                )
        return None

    def right_value(case):
        right = np.asarray(value(*arrays_of(case)), np.float64)
        return compare(_pull(f, arrays_of(case))[0], right, 1e-4 * (1 + np.abs(right)))

    def measured(case, g=None):
        """What is needed to compare slopes: (arrays, gradients, result of moved arrays, …)."""
        arrays = arrays_of(case)
        result, g, gradients = _pull(f, arrays, g)
        narrow = is_float32(result) or any(map(is_float32, gradients))
        size = 1 + float(np.abs(np.asarray(result, float) * g).sum())
        room = size * (2e-3 if narrow else 1e-7)
        steps = [(high - low) * part for part in (_STEPS_FLOAT32 if narrow else _STEPS)]
        gradients = [array_of(own, a.shape) for own, a in zip(gradients, arrays, strict=True)]

        def result_of(moved):
            result, _ = f(*[array.copy() for array in moved])
            return float((np.asarray(result, np.float64) * g).sum())

        return arrays, gradients, result_of, lambda line: oracles.slope(line, steps, room / 2), room

    def wrong_slope(yours, slopes, room, where):
        least, most = slopes
        if least - room <= yours <= most + room:
            return None
        hint = "the sign is wrong" if abs(yours + (least + most) / 2) <= room else ""
        return Wrong(Words(show(yours) + where), Words(show((least + most) / 2)), hint)

    def agrees(case, g=None):
        arrays, gradients, result_of, slopes, room = measured(case, g)
        for number, array in enumerate(arrays):
            for place in places[number]:

                def moved(by, number=number, array=array, place=place):
                    own = array.copy()
                    own[place] += by
                    return result_of([*arrays[:number], own, *arrays[number + 1 :]])

                at = f" at input {number}{list(place) if place else ''}"
                wrong = wrong_slope(gradients[number][place], slopes(moved), room, at)
                if wrong:
                    return wrong
        return None

    def along(case):
        arrays, gradients, result_of, slopes, room = measured(case)
        rng = np.random.default_rng(4)
        for _ in range(4):
            way = [rng.standard_normal(shape) for shape in shapes]
            length = math.sqrt(sum(float((part**2).sum()) for part in way))
            way = [part / length for part in way]
            yours = sum(float((a * b).sum()) for a, b in zip(gradients, way, strict=True))

            def moved(by, way=way):
                return result_of([a + by * part for a, part in zip(arrays, way, strict=True)])

            wrong = wrong_slope(yours, slopes(moved), room, " along a random direction")
            if wrong:
                return wrong
        return None

    def weighted(case):
        result, _, _ = _pull(f, arrays_of(case))
        return agrees(case, seed_of(np.shape(result)))

    def tell_weighted(case):
        try:
            shape = np.shape(f(*arrays_of(case))[0])
        except Exception:  # then there is no result, and no g
            return tell(case)
        return f"{tell(case)}, g {show(seed_of(shape))}"

    def alone(case):
        arrays = arrays_of(case)
        given = [array.copy() for array in arrays]
        result, back = f(*given)
        for pullback in back if isinstance(back, tuple | list) else [back]:
            if callable(pullback):
                pullback(seed_of(np.shape(result)))
        for number, (before, after) in enumerate(zip(arrays, given, strict=True)):
            if not np.array_equal(before, after):
                return Wrong(
                    Words(f"input {number} becomes {show(after)}"),
                    Words(show(before)),
                    "an input is changed in place: others still need it",
                )
        return None

    found = []
    if value is not None:
        found.append(
            Property("the result is that of the formula", cases, right_value, tell,
                     "the forward pass: look at the formula again", examples=20)
        )  # fmt: skip
    found += [
        Property("a gradient has the shape of its input", cases, shapes_fit, tell, examples=5),
        Property("the gradient is the difference quotient", cases, agrees, tell,
                 "differentiate the formula again, one input at a time", examples=20),
    ]  # fmt: skip
    if large:
        found.append(
            Property("all inputs at once, in random directions", cases, along, tell,
                     "a coordinate that was not moved by itself has a wrong gradient")
        )  # fmt: skip
    middle = 12 if sum(sizes) <= 24 else 0
    probe = arrays_of((middle,) * sum(sizes) if sum(sizes) <= 24 else 0)
    try:
        by_function = not isinstance(f(*probe)[1], np.ndarray) and (
            callable(f(*probe)[1]) or callable(f(*probe)[1][0])
        )
    except Exception:  # the properties above will say it
        by_function = False
    if by_function:
        found.append(
            Property("the gradient of the result is multiplied in", cases, weighted, tell_weighted,
                     "chain rule: a pullback multiplies by g, the gradient of the result",
                     examples=20)
        )  # fmt: skip
    found.append(Property("the inputs stay as they are", cases, alone, tell, examples=5))
    return found


# --- unbroadcast -------------------------------------------------------------------------


def check_unbroadcast(f: Callable) -> Summary:
    """Judge the function that undoes broadcasting in the backward pass.

        def unbroadcast(gradient, shape): ...    # returns an array of `shape`

        check_unbroadcast(unbroadcast)

    gradient has the broadcast shape; each element of `shape` gets the sum over all its copies.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("unbroadcast", unbroadcast_properties(f))


def unbroadcast_suite(f: Callable) -> Callable:
    """`check_unbroadcast` for pytest: one test a property."""
    return suite_of("unbroadcast", unbroadcast_properties(f))


def unbroadcast_properties(f: Callable) -> list[Property]:
    """The properties that `check_unbroadcast` tries."""
    st = strategies()

    @st.composite
    def cases(draw, shorter=True, ones=True):
        shape = draw(st.lists(st.integers(1 if ones else 2, 3), min_size=0, max_size=3))
        cut = draw(st.integers(0, len(shape))) if shorter else 0
        small = [1 if ones and draw(st.booleans()) else size for size in shape[cut:]]
        return tuple(shape), tuple(small), draw(st.integers(0, 3))

    def gradient_of(case):
        shape, _, seed = case
        return np.random.default_rng(seed).integers(1, 9, shape) * grain(seed)

    def outcome(case):
        g = gradient_of(case)
        yours = ask(f, g, case[1])
        right = oracles.sum_to(g, case[1])
        return compare(yours, right, 1e-5 * (1 + np.abs(right)))

    def tell(case):
        return f"gradient {show(gradient_of(case))} of shape {case[0]} to shape {case[1]}"

    return [
        Property("equal shapes: nothing changes", cases(shorter=False, ones=False), outcome, tell,
                 "there is nothing to sum", "arrays", 30),
        Property("new axes in front are summed away", cases(ones=False), outcome, tell,
                 "g.sum(axis=0) as long as the gradient has more axes", "arrays", 40),
        Property("an axis of length one is summed, and kept", cases(shorter=False), outcome, tell,
                 "g.sum(axis=axis, keepdims=True) where `shape` has a 1", "arrays", 40),
        Property("both at once", cases(), outcome, tell,
                 "first the new axes in front, then those of length one", "arrays", 90),
    ]  # fmt: skip


# --- matmul ------------------------------------------------------------------------------


def check_matmul(pullbacks: Callable) -> Summary:
    """Judge the two pullbacks of a matrix product y = x @ w.

        def pullbacks(x, w, g):                 # (M, K), (K, L), (M, L)
            return x_gradient, w_gradient       # (M, K), (K, L)

        check_matmul(pullbacks)

    A function of x and w that returns (y, (pullback of x, pullback of w)) is judged too.

    pullbacks   the code to be judged, as above
    Returns     Summary
    Raises      Falsified
    """
    return judge("matmul", matmul_properties(pullbacks))


def matmul_suite(pullbacks: Callable) -> Callable:
    """`check_matmul` for pytest: one test a property."""
    return suite_of("matmul", matmul_properties(pullbacks))


def matmul_properties(pullbacks: Callable) -> list[Property]:
    """The properties that `check_matmul` tries."""
    st = strategies()
    cases = st.tuples(*[st.integers(1, 3)] * 3, st.integers(0, 5))
    as_op = len(required_arguments(pullbacks)) == 2

    def arrays_of(case):
        m, k, n, seed = case
        rng = np.random.default_rng(seed)
        return [rng.integers(-4, 5, shape) * grain(seed) for shape in [(m, k), (k, n), (m, n)]]

    def pulled(case):
        x, w, g = arrays_of(case)
        if as_op:
            return ask_pullbacks(pullbacks, g, x, w)
        return ask(pullbacks, x, w, g)

    def outcome(which):
        def compared(case):
            x, w, g = arrays_of(case)
            right = [g @ w.T, x.T @ g][which]
            both = pulled(case)
            if not isinstance(both, tuple | list) or len(both) != 2:
                raise Misfit(Words(type(both).__name__), Words("two arrays"))
            hints = [
                (right / len(x), "divided by the number of rows: a product has no mean in it"),
                (-right, "the sign"),
                ([x.T @ g, g @ w.T][which], "they are exchanged: first that of x, then that of w"),
            ]
            return compare(both[which], right, 1e-4, hints)

        return compared

    def tell(case):
        x, w, g = arrays_of(case)
        return f"x {show(x)}, w {show(w)}, g {show(g)}"

    return [
        Property("the gradient of x is g @ wᵀ", cases, outcome(0), tell,
                 "x is (M, K): only g (M, L) times wᵀ (L, K) has that shape", "products"),
        Property("the gradient of w is xᵀ @ g", cases, outcome(1), tell,
                 "w is (K, L): only xᵀ (K, M) times g (M, L) has that shape", "products"),
    ]  # fmt: skip


# --- softmax and its loss ----------------------------------------------------------------


def check_log_softmax(f: Callable) -> Summary:
    """Judge log-softmax over the last axis.

        def log_softmax(logits): ...     # (N, C) → (N, C)

        check_log_softmax(log_softmax)

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("log_softmax", log_softmax_properties(f))


def log_softmax_suite(f: Callable) -> Callable:
    """`check_log_softmax` for pytest: one test a property."""
    return suite_of("log_softmax", log_softmax_properties(f))


_WHOLE = (-4, 4)


def _matrices(st, columns=(2, 3), rows=(1, 3)):
    """Tuples of tuples of small whole numbers: (N, C)."""
    return st.integers(*columns).flatmap(
        lambda c: st.lists(
            st.tuples(*[st.integers(*_WHOLE)] * c), min_size=rows[0], max_size=rows[1]
        ).map(tuple)
    )


def log_softmax_properties(f: Callable) -> list[Property]:
    """The properties that `check_log_softmax` tries."""
    st = strategies()

    def outcome(shift=0.0, scale=1.0):
        def compared(case):
            z = np.array(case, float) * scale + shift
            yours = ask(f, z)
            right = oracles.log_softmax(z)
            room = 4e-6 if is_float32(yours) else 1e-9
            with np.errstate(all="ignore"):
                shifted = z - z.max()
                hints = [
                    (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)),
                     "the largest logit of the whole batch is subtracted: each row needs its own"),
                ]  # fmt: skip
            return compare(yours, right, room * (1 + np.abs(z).max()), hints)

        return compared

    def tell(shift=0.0, scale=1.0):
        return lambda case: f"logits {show(np.array(case, float) * scale + shift)}"

    def sums(case):
        total = np.exp(array_of(ask(f, np.array(case, float)), np.shape(case))).sum(axis=-1)
        return compare(total, np.ones(len(case)), 1e-4)

    return [
        Property("it is scipy.special.log_softmax", _matrices(st), outcome(), tell(),
                 "z − log Σ eᶻ, the sum over the classes (the last axis) of each row"),
        Property("probabilities sum to one", _matrices(st), sums, tell(),
                 "sum over the last axis, and keep it: axis=-1, keepdims=True", examples=30),
        Property("logits of a thousand do not overflow", _matrices(st), outcome(1000.0), tell(1000),
                 "subtract the largest logit of each row first: e^1000 is infinite", examples=30),
        Property("logits far apart stay finite", _matrices(st), outcome(scale=500.0),
                 tell(scale=500.0), "z − max − log Σ: do not take the log of a softmax that is 0",
                 examples=30),
    ]  # fmt: skip


def check_softmax_cross_entropy(f: Callable) -> Summary:
    """Judge the mean cross-entropy of logits.

        def softmax_cross_entropy(logits, labels):     # (N, C) float, (N,) integers in [0, C)
            return loss                                # or loss, gradient (N, C)

        check_softmax_cross_entropy(softmax_cross_entropy)

    loss = mean of −log p(label), in nats. The gradient, where there is one, may also be a
    function of the gradient of the loss (or a tuple of one).

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("softmax_cross_entropy", softmax_cross_entropy_properties(f))


def softmax_cross_entropy_suite(f: Callable) -> Callable:
    """`check_softmax_cross_entropy` for pytest: one test a property."""
    return suite_of("softmax_cross_entropy", softmax_cross_entropy_properties(f))


def _labelled(st):
    """Tuples (row of logits, label)."""
    return st.integers(2, 3).flatmap(
        lambda c: st.lists(
            st.tuples(st.tuples(*[st.integers(*_WHOLE)] * c), st.integers(0, c - 1)),
            min_size=1,
            max_size=4,
        ).map(tuple)
    )


def softmax_cross_entropy_properties(f: Callable) -> list[Property]:
    """The properties that `check_softmax_cross_entropy` tries."""
    st = strategies()

    def data(case, shift=0.0):
        return (
            np.array([row for row, _ in case], float) + shift,
            np.array([label for _, label in case]),
        )

    def tell(shift=0.0):
        return lambda case: "logits {}, labels {}".format(*map(show, data(case, shift)))

    def loss_of(logits, labels):
        returned = ask(f, logits, labels)
        return returned[0] if isinstance(returned, tuple | list) else returned

    def value(shift=0.0):
        def compared(case):
            logits, labels = data(case, shift)
            own = -oracles.log_softmax(logits)[np.arange(len(labels)), labels]
            p = np.exp(oracles.log_softmax(logits))
            hints = [
                (own.sum(), "that is the sum: divide by the number of rows"),
                (own.sum() / logits.size, "divided by all logits: the mean is over the rows only"),
                (-own.mean(), "the sign: −log p(label)"),
                (-p[np.arange(len(labels)), labels].mean(), "take the logarithm of p"),
            ]
            yours = array_of(loss_of(logits, labels), (), "a number")
            return compare(yours, own.mean(), 1e-4 * (1 + abs(own.mean())), hints)

        return compared

    def gradient(case):
        logits, labels = data(case)
        _, back = ask(f, logits, labels)
        if isinstance(back, tuple | list) and len(back) and callable(back[0]):
            back = back[0]
        yours = back(np.array(1.0)) if callable(back) else back
        right = np.exp(oracles.log_softmax(logits))
        right[np.arange(len(labels)), labels] -= 1
        count = len(labels)
        hints = [(right, "the loss is a mean: divide by the number of rows")] if count > 1 else []
        return compare(yours, right / count, 1e-5, hints)

    found = [
        Property("the loss is the mean of −log p(label)", _labelled(st), value(), tell(),
                 "pick the log-probability of each row's own label", "batches", 40),
        Property("logits of a thousand do not overflow", _labelled(st), value(1000.0), tell(1000.0),
                 "subtract the largest logit of each row first: e^1000 is infinite", "batches", 30),
    ]  # fmt: skip
    try:
        returned = f(np.zeros((1, 2)), np.zeros(1, int))
    except Exception:  # the properties above will say it
        return found
    if isinstance(returned, tuple | list) and len(returned) == 2:
        found.append(
            Property("the gradient is (p − one at the label) / N", _labelled(st), gradient, tell(),
                     "softmax minus one-hot, divided by the number of rows", "batches", 30)
        )  # fmt: skip
    return found


# --- dropout -----------------------------------------------------------------------------


def check_dropout(f: Callable) -> Summary:
    """Judge dropout as it is in training.

        def dropout(x, rate, rng):       # any shape, 0 <= rate < 1, numpy.random.Generator
            return y                     # or y, pullback

        check_dropout(dropout)

    Each element is dropped with probability `rate`, the others are divided by 1 − rate. Where a
    pullback is returned, the gradient must go through the elements that were kept.

    f         the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    Source    Srivastava et al. 2014
    """
    return judge("dropout", dropout_properties(f))


def dropout_suite(f: Callable) -> Callable:
    """`check_dropout` for pytest: one test a property."""
    return suite_of("dropout", dropout_properties(f))


def dropout_properties(f: Callable) -> list[Property]:
    """The properties that `check_dropout` tries."""
    st = strategies()
    rates = st.sampled_from([0.5, 0.25, 0.75])
    small = st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple), rates, st.integers(0, 9)
    )

    def run(x, rate, seed):
        returned = ask(f, x, rate, np.random.default_rng(seed))
        return returned if isinstance(returned, tuple | list) else (returned, None)

    def tell(case):
        x, rate, seed = case
        many = f"{x:,} ones" if isinstance(x, int) else f"x {list(map(float, x))}"
        return f"{many}, rate {rate}, seed {seed}"

    def nothing(case):
        x = np.array(case[0], float)
        return compare(run(x.copy(), 0.0, case[2])[0], x, 1e-5)

    def scaled(case):
        x, rate = np.array(case[0], float), case[1]
        y = array_of(run(x.copy(), rate, case[2])[0], x.shape)
        right = np.where(y == 0, 0, x / (1 - rate))
        hint = [
            (np.where(y == 0, 0, x), "divide what is kept by 1 − rate, so that the mean stays"),
            (np.where(y == 0, 0, x / rate), "divide by 1 − rate, the share that is kept"),
        ]
        return compare(y, right, 1e-5 * (1 + np.abs(right)), hint)  # fmt: skip

    def share(case):
        size, rate, seed = case
        y = array_of(run(np.ones(size), rate, seed)[0], (size,))
        dropped = float((y == 0).mean())
        room = 5 * math.sqrt(rate * (1 - rate) / size)
        hint = "`rate` is the share that is dropped, not the share that is kept"
        return compare(dropped, rate, room, hint if abs(dropped - (1 - rate)) <= room else "")

    def fresh(case):
        size, rate, seed = case
        rng = np.random.default_rng(seed)
        masks = []
        for _ in range(2):
            returned = f(np.ones(size), rate, rng)
            y = returned[0] if isinstance(returned, tuple | list) else returned
            masks.append(array_of(y, (size,)) == 0)
        if np.array_equal(*masks):
            return Wrong(Words("the same elements twice"), Words("others at the second call"))
        again = array_of(run(np.ones(size), rate, seed)[0], (size,)) == 0
        if not np.array_equal(again, masks[0]):
            return Wrong(
                Words("others for the same seed"), Words("the same"),
                "take random numbers from the given `rng`, from nothing else",
            )  # fmt: skip
        return None

    def back(case):
        x, rate = np.array(case[0], float), case[1]
        y, pullback = run(x.copy(), rate, case[2])
        pullback = pullback[0] if isinstance(pullback, tuple | list) else pullback
        y = array_of(y, x.shape)
        g = np.arange(1.0, 1 + x.size)
        return compare(pullback(g.copy()), g * y / x, 1e-4 * (1 + np.abs(g * y / x)))

    many = st.tuples(st.just(4000), rates, st.integers(0, 9))
    found = [
        Property("rate 0 changes nothing", small, nothing, tell, examples=20),
        Property("an element becomes 0 or x / (1 − rate)", small, scaled, tell,
                 "divide what is kept by 1 − rate, so that the mean stays"),
        Property("the share of zeros is `rate`", many, share, tell,
                 "each element is dropped on its own, with probability `rate`", examples=10),
        Property("masks are new at each call, the same for one seed", many, fresh, tell,
                 "choose a new mask at every call", examples=5),
    ]  # fmt: skip
    try:
        returned = f(np.ones(3), 0.5, np.random.default_rng(0))
    except Exception:  # the properties above will say it
        return found
    if isinstance(returned, tuple | list) and len(returned) == 2:
        second = returned[1][0] if isinstance(returned[1], tuple | list) else returned[1]
        if callable(second):
            found.append(
                Property("the gradient goes through what was kept", small, back, tell,
                         "use the mask of the forward pass, and its 1 / (1 − rate)")
            )  # fmt: skip
    return found


# --- a tape of scalars -------------------------------------------------------------------


def check_topological_backward(value_class: type, backward: Callable | None = None) -> Summary:
    """Judge reverse mode on numbers: a class of values that remember how they were made.

        class Value:
            def __init__(self, data): ...
            data, grad                             # a number, and ∂output/∂self after backward
            def __add__(self, other): ...          # Value + Value, and __mul__
            def backward(self): ...                # fills `grad` of everything it was made from

        check_topological_backward(Value)

    Random expressions of + and ·, with values that are used several times. A function `backward`
    must also take a chain of thousands of values, which one that calls itself cannot.

    value_class  as above
    backward     a function of the output, instead of the method
    Returns      Summary
    Raises       Falsified
    """
    return judge("topological_backward", topological_backward_properties(value_class, backward))


def topological_backward_suite(value_class: type, backward: Callable | None = None) -> Callable:
    """`check_topological_backward` for pytest: one test a property."""
    return suite_of("topological_backward", topological_backward_properties(value_class, backward))


def count_lines(function: Callable) -> int:
    """Call a function, and count the lines of Python that run until it returns.

    function   without arguments
    """
    count, before = 0, sys.gettrace()

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def topological_backward_properties(
    value_class: type, backward: Callable | None = None
) -> list[Property]:
    """The properties that `check_topological_backward` tries."""
    st = strategies()

    # An expression is its leaves and its steps. Step k makes value number len(leaves) + k out of
    # two earlier ones.
    @st.composite
    def expressions(draw, most_steps=6, reuse=True):
        leaves = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
        if not reuse:
            leaves = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
        steps, count = [], len(leaves)
        if reuse:
            for _ in range(draw(st.integers(0, most_steps))):
                last = count + len(steps) - 1
                name = draw(st.sampled_from("+*"))
                steps.append((name, last, draw(st.integers(0, last))))
        else:  # each value is used once: a chain
            for k in range(count - 1):
                steps.append((draw(st.sampled_from("+*")), count + k - 1 if k else 0, k + 1))
        return tuple(leaves), tuple(steps)

    def evaluate(case, make):
        leaves, steps = case
        values = [make(float(leaf)) for leaf in leaves]
        for name, a, b in steps:
            values.append(values[a] + values[b] if name == "+" else values[a] * values[b])
        return values

    def right_gradients(case):
        """Forward mode, one leaf at a time."""
        leaves, steps = case
        gradients = []
        for own in range(len(leaves)):
            values = [(float(x), float(i == own)) for i, x in enumerate(leaves)]
            for name, a, b in steps:
                (x, dx), (y, dy) = values[a], values[b]
                values.append((x + y, dx + dy) if name == "+" else (x * y, dx * y + x * dy))
            gradients.append(values[-1][1])
        return gradients

    def value(case):
        yours = evaluate(case, value_class)[-1].data
        right = evaluate(case, float)[-1]
        return compare(yours, right, 1e-5 * (1 + abs(right)))

    def gradient(case):
        values = evaluate(case, value_class)
        (backward or value_class.backward)(values[-1])
        yours = [float(v.grad) for v in values[: len(case[0])]]
        right = np.array(right_gradients(case))
        return compare(yours, right, 1e-5 * (1 + np.abs(right)))

    def tell(case):
        leaves, steps = case
        names = [*"abcd"[: len(leaves)], *[f"v{k + 1}" for k in range(len(steps))]]
        words = [f"{n} = {x}" for n, x in zip(names, leaves, strict=False)]
        for k, (name, a, b) in enumerate(steps):
            words.append(f"{names[len(leaves) + k]} = {names[a]} {name} {names[b]}")
        return "; ".join(words) + f"; gradients of {names[-1]} to {', '.join(names[: len(leaves)])}"

    def long(depth):
        x = value_class(1.0)
        y = x
        for _ in range(depth):
            y = y + x
        (backward or value_class.backward)(y)
        return compare(float(x.grad), depth + 1.0, 1e-6 * depth)

    def doubled(times):
        """2ⁿ paths lead from y to x. Whoever walks them all does thousands of lines of code."""
        y = x = value_class(1.0)
        for _ in range(times):
            y = y + y
        lines = count_lines(lambda: (backward or value_class.backward)(y))
        wrong = compare(float(x.grad), 2.0**times, 1e-6 * 2.0**times)
        if wrong is None and lines > 2**times:
            wrong = Wrong(Words(f"{lines:,} lines of code were run"), Words("some hundreds"),
                          "each value hands on once, when its gradient is complete")  # fmt: skip
        return wrong

    deep = Property("a chain of 3,000 values", (3000,), long,
                    lambda depth: f"x + x + … + x, {depth + 1} times",
                    "no function that calls itself: a list of what is still to do")  # fmt: skip
    return [
        Property("the value is that of plain numbers", expressions(), value, tell,
                 unit="expressions", examples=40),
        Property("a chain: each value used once", expressions(reuse=False), gradient, tell,
                 "y = a·b: ∂y/∂a = b, times the gradient of y; the output's own gradient is 1",
                 "expressions", 30),
        Property("a value used several times adds its gradients", expressions(2), gradient, tell,
                 "grad += …, not grad = …; and a value hands on only once it has received all",
                 "expressions", 40),
        Property("no value before all that was made from it", expressions(), gradient, tell,
                 "walk in reversed topological order: a value hands on when its gradient is "
                 "complete, and once", "expressions", 60),
        Property("one value used 50 times", (50,), long,
                 lambda depth: f"x + x + … + x, {depth + 1} times", "grad += …, not grad = …"),
        Property("not every path by itself", (12,), doubled,
                 lambda times: f"y = x, then {times} times y = y + y"),
        *([deep] if backward else []),
    ]  # fmt: skip
