"""Properties of one update of the weights."""

import inspect
from collections.abc import Callable

import numpy as np

from minires.testing import oracles
from minires.testing.judging import (
    Property,
    Summary,
    Wrong,
    array_of,
    compare,
    judge,
    required_arguments,
    show,
    strategies,
    suite_of,
)

KINDS = ("sgd", "adam")


def check_optimizer(step: Callable, kind: str, in_place: bool = False) -> Summary:
    """Judge one update of SGD or Adam.

        def sgd(theta, gradient, rate):               # changes theta in place, or returns the new
            theta -= rate * gradient

        def adam(theta, gradient, state, rate): ...   # state: a dict, empty before the first step

        check_optimizer(sgd, "sgd")
        check_optimizer(adam, "adam")

    Or something that makes an optimizer: `step(rate)` returns an object whose method
    `step(theta, gradient)` does the same. Adam with β₁ = 0.9, β₂ = 0.999, ε = 1e-8; ε may stand
    on either side of the correction.

    step      the code to be judged, as above
    kind      "sgd": θ ← θ − ℓ g, eq. 1; or "adam"
    in_place  whether the array θ itself must change: then a new array that is returned is not used
    Returns   Summary
    Raises    Falsified; ValueError for another kind
    Source    eq. 1; Kingma and Ba 2015, algorithm 1
    """
    return judge(f"optimizer {kind}", optimizer_properties(step, kind, in_place))


def optimizer_suite(step: Callable, kind: str, in_place: bool = False) -> Callable:
    """`check_optimizer` for pytest: one test a property."""
    return suite_of(f"optimizer {kind}", optimizer_properties(step, kind, in_place))


def _stepper(step, kind, rate, in_place):
    """A function (theta, gradient) → new theta, with a state of its own."""
    if inspect.isclass(step) or len(required_arguments(step)) <= 1:
        method, extra = step(rate).step, ()
    else:
        method, extra = step, (rate,) if kind == "sgd" else ({}, rate)

    def one(theta, gradient):
        returned = method(theta, gradient, *extra)
        return theta if returned is None or in_place else returned

    return one


def optimizer_properties(step: Callable, kind: str, in_place: bool = False) -> list[Property]:
    """The properties that `check_optimizer` tries."""
    if kind not in KINDS:
        raise ValueError(f"check_optimizer: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    st = strategies()
    rates = st.sampled_from([0.5, 0.125])
    # Of size 1 to 9, never 0: ε is then too small to be seen.
    slopes = st.sampled_from([*range(1, 10), *range(-9, 0)])

    def cases(fewest=1, most=1):
        return st.integers(1, 2).flatmap(
            lambda width: st.tuples(
                st.tuples(*[st.integers(-3, 3)] * width),
                st.lists(st.tuples(*[slopes] * width), min_size=fewest, max_size=most).map(tuple),
                rates,
            )
        )

    def right_steps(case):
        theta, gradients, rate = np.array(case[0], float), np.array(case[1], float), case[2]
        if kind == "adam":
            return oracles.adam(theta, gradients, rate)
        return [theta - rate * gradients[: t + 1].sum(axis=0) for t in range(len(gradients))]

    def hints(case):
        theta, gradients, rate = np.array(case[0], float), np.array(case[1], float), case[2]
        g = gradients[0]
        still = (theta, "θ is as before: change its numbers (θ -= …)"
                 + (", not a new array" if in_place else ", or return the new array"))  # fmt: skip
        if kind == "sgd":
            return [(theta + rate * g, "uphill: subtract the gradient"),
                    (theta - g, "multiply the gradient by the rate"), still]  # fmt: skip
        return [
            still,
            (theta - rate * 0.1 * g / np.sqrt(0.001 * g * g), "without the bias correction: "
             "divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ, with t = 1 at the first step"),
            (theta + rate * np.sign(g), "uphill: subtract"),
        ]  # fmt: skip

    def outcome(case):
        theta, gradients, rate = np.array(case[0], float), np.array(case[1], float), case[2]
        one = _stepper(step, kind, rate, in_place)
        for gradient, right in zip(gradients, right_steps(case), strict=True):
            kept = gradient.copy()
            theta = array_of(one(theta, gradient), right.shape)
            if not np.array_equal(gradient, kept):
                return Wrong(gradient, kept, "the gradient is changed in place")
            wrong = compare(theta, right, 1e-4 * (1 + np.abs(right)), hints(case))
            if wrong:
                return wrong
        return None

    def apart(case):
        """Two optimizers at once: nothing is shared between them."""
        theta, gradients, rate = np.array(case[0], float), np.array(case[1], float), case[2]
        first, second = (_stepper(step, kind, rate, in_place) for _ in range(2))
        for gradient in gradients[:-1]:
            first(theta.copy(), gradient.copy())
        right = right_steps((case[0], case[1][-1:], rate))[0]
        yours = array_of(second(theta.copy(), gradients[-1].copy()), right.shape)
        return compare(yours, right, 1e-4 * (1 + np.abs(right)))

    def still(case):
        theta = np.array(case[0], float)
        one = _stepper(step, kind, case[2], in_place)
        after = array_of(one(theta.copy(), np.zeros_like(theta)), theta.shape)
        if not np.isfinite(after).all():
            return Wrong(after, theta, "0 / 0: add ε to the root of v, not to nothing")
        return compare(after, theta, 1e-6)

    def small(case):
        """√v is 1e-4, as ε would be if it stood under the root: the step would be 0.7 ℓ."""
        theta, gradients, rate = np.array(case[0], float), 1e-4 * np.sign(case[1]), case[2]
        after = _stepper(step, kind, rate, in_place)(theta.copy(), gradients[0])
        return compare(array_of(after, theta.shape), theta - rate * np.sign(gradients[0]), rate / 9)

    def tell_small(case):
        return tell((case[0], 1e-4 * np.sign(case[1]), case[2]))

    def tell(case):
        theta, gradients, rate = case
        words = ", ".join(show(np.array(g, float)) for g in gradients)
        return f"θ {show(np.array(theta, float))}, gradients {words}, rate {rate}"

    formula = {
        "sgd": "θ ← θ − ℓ g",
        "adam": "m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², θ ← θ − ℓ m̂/(√v̂ + ε)",
    }[kind]
    found = [
        Property("the first step is the formula's", cases(), outcome, tell, formula, "steps", 40),
        Property("later steps are the formula's", cases(2, 6), outcome, tell,
                 f"the first step is right, a later one is not: {formula}", "runs", 30),
        Property("a gradient of 0 changes nothing at first", cases(), still, tell,
                 formula, "steps", 10),
        Property("two optimizers know nothing of each other", cases(2, 3), apart, tell,
                 "keep the state in `state` or in the object, not in a global name", "runs", 10),
    ]  # fmt: skip
    if kind == "adam":
        found.append(
            Property("ε is added to the root of v, not to v", cases(), small, tell_small,
                     "√v̂ + ε with ε = 1e-8: it is larger, or stands under the root, where 1e-8 is "
                     "1e-4", "steps", 10)
        )  # fmt: skip
    return found
