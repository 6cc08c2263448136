"""Properties of what is done with whole vectors of weights: collecting, walking, choosing."""

from collections.abc import Callable, Iterable

import numpy as np

from minires.testing.judging import (
    Misfit,
    Property,
    Summary,
    Words,
    Wrong,
    array_of,
    ask,
    compare,
    judge,
    show,
    strategies,
    suite_of,
)

# --- collecting --------------------------------------------------------------------------


def check_collector(collect: Callable) -> Summary:
    """Judge the loop that fine-tunes and collects.

        def collect(theta, step, updates, burn_in=0, stride=1): ...   # → mean, variance

        check_collector(collect)

    `step(theta)` changes θ in place by one update. After `updates` steps the function returns
    the mean and the (population) variance of the θ that count: θ⁰, before the first step, does
    not; of the others, updates burn_in + stride, burn_in + 2·stride, … do.

    collect   the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("collector", collector_properties(collect))


def collector_suite(collect: Callable) -> Callable:
    """`check_collector` for pytest: one test a property."""
    return suite_of("collector", collector_properties(collect))


def collector_properties(collect: Callable) -> list[Property]:
    """The properties that `check_collector` tries."""
    st = strategies()
    small = st.integers(-4, 4)

    def cases(burn_in=0, stride=1):
        @st.composite
        def drawn(draw):
            burn, every = draw(st.integers(0, burn_in)), draw(st.integers(1, stride))
            least = burn + every
            way = draw(st.lists(small, min_size=least, max_size=least + 4).map(tuple))
            return draw(small), way, burn, every

        return drawn()

    def run(case):
        start, way, burn, every = case
        theta, ways, calls = np.array([float(start)]), iter(way), []

        def step(theta):
            calls.append(1)
            theta += next(ways, 0.0)

        settings = {"burn_in": burn} if burn else {}
        settings |= {"stride": every} if every > 1 else {}
        pair = collect(theta, step, len(way), **settings)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Misfit(Words(type(pair).__name__), Words("a pair: mean, variance"))
        return pair, len(calls)

    def outcome(which):
        def compared(case):
            start, way, burn, every = case
            seen = start + np.cumsum(way, dtype=float)
            counted = seen[burn + every - 1 :: every]
            of = (np.mean, np.var)[which]
            if burn == 0 and every == 1:
                hints = [
                    (of([start, *seen]), "θ⁰ is counted: take θ in after the step, not before"),
                    (of([start, *seen[:-1]]), "θ is taken in before the step"),
                    (of(np.full(len(way), seen[-1])), "every θ kept is the same array: copy it"),
                ]
            else:
                hints = [
                    (of(seen[every - 1 :: every]), "the burn-in is not left out"),
                    (of(seen[burn:]), "the stride is not used"),
                    (of(seen[burn::every]), "the first that counts is number burn_in + stride"),
                ]
            hints = [(np.array([value]), words) for value, words in hints]
            pair, _ = run(case)
            right = np.array([of(counted)])
            return compare(pair[which], right, 1e-6 * (1 + np.abs(right)), hints)

        return compared

    def all_steps(case):
        return compare(run(case)[1], len(case[1]), 0)

    def tell(case):
        start, way, burn, every = case
        seen = (start + np.cumsum(way)).tolist()
        return f"θ⁰ {start}, then θ = {seen}, burn_in {burn}, stride {every}"

    rule = "updates burn_in + stride, burn_in + 2·stride, … count"
    return [
        Property("θ⁰ does not count, every update does", cases(), outcome(0), tell,
                 "step first, then take θ in", "walks", 40),
        Property("the variance is that of the same θ", cases(), outcome(1), tell,
                 "step first, then take θ in", "walks", 40),
        Property("the burn-in is seen and not counted", cases(burn_in=3), outcome(0), tell, rule,
                 "walks", 40),
        Property("every stride-th counts", cases(burn_in=2, stride=3), outcome(0), tell, rule,
                 "walks", 40),
        Property("the variance is that of those that count", cases(burn_in=2, stride=3), outcome(1),
                 tell, "divide by how many count, not by `updates`", "walks", 40),
        Property("all updates are made", cases(burn_in=2, stride=2), all_steps, tell,
                 "`updates` calls of step", "walks", 20),
    ]  # fmt: skip


# --- walking -----------------------------------------------------------------------------


def check_line(points: Callable) -> Summary:
    """Judge points on the straight line through two vectors of weights.

        def points(a, b, places): ...      # (P,), (P,), (K,) → (K, P)

        check_line(points)

    Place 0 is a, place 1 is b, 0.5 lies in the middle, and 2 as far beyond b again.

    points    the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("line", line_properties(points))


def line_suite(points: Callable) -> Callable:
    """`check_line` for pytest: one test a property."""
    return suite_of("line", line_properties(points))


def line_properties(points: Callable) -> list[Property]:
    """The properties that `check_line` tries."""
    st = strategies()

    def cases(*places):
        one = st.integers(-9, 9)
        pair = st.integers(1, 3).flatmap(lambda p: st.tuples(*[st.tuples(*[one] * p)] * 2))
        where = st.lists(st.sampled_from(places), min_size=1, max_size=3).map(tuple)
        return st.tuples(pair, where)

    def outcome(case):
        (a, b), places = case
        a, b, places = (np.array(values, float) for values in (a, b, places))
        right = a + places[:, None] * (b - a)
        swapped = b + places[:, None] * (a - b)
        inside = a + np.clip(places, 0, 1)[:, None] * (b - a)
        hints = [
            (swapped, "0 is a and 1 is b: they are exchanged"),
            (inside, "a place below 0 or above 1 lies beyond the ends: do not cut it"),
        ]
        return compare(ask(points, a, b, places), right, 1e-6, hints)

    def tell(case):
        (a, b), places = case
        return f"a {show(np.array(a))}, b {show(np.array(b))}, places {show(np.array(places))}"

    rule = "a + place · (b − a), a row for every place"
    return [
        Property("place 0 is a, place 1 is b", cases(0.0, 1.0), outcome, tell, rule, "lines", 40),
        Property("places between lie between", cases(0.5, 0.25), outcome, tell, rule, "lines", 40),
        Property("places beyond lie beyond", cases(-1.0, 2.0), outcome, tell, rule, "lines", 40),
    ]  # fmt: skip


def check_harm(harmful: Callable) -> Summary:
    """Judge the search for the settings at which one method is surely worse than another.

        def harmful(settings, plain, mean): ...      # (K,), (n, K), (n, K) → the settings

        check_harm(harmful)

    A row of `plain` and `mean` is a run, its numbers are losses. A setting is harmful when the mean
    of the differences mean − plain lies more than two of its standard errors (s / √n) above 0.

    harmful   the code to be judged, as above
    Returns   Summary
    Raises    Falsified
    """
    return judge("harm", harm_properties(harmful))


def harm_suite(harmful: Callable) -> Callable:
    """`check_harm` for pytest: one test a property."""
    return suite_of("harm", harm_properties(harmful))


def harm_properties(harmful: Callable) -> list[Property]:
    """The properties that `check_harm` tries."""
    st = strategies()
    column = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(0, 5))] * 4).filter(
        lambda pairs: len({a - b for a, b in pairs}) > 1
    )
    cases = st.lists(column, min_size=1, max_size=3).map(tuple)

    def arrays(case):
        settings = np.array([0.1, 0.2, 0.4])[: len(case)]
        plain, mean = np.array(case, float).transpose(2, 1, 0)
        return settings, plain, mean

    def outcome(case):
        settings, plain, mean = arrays(case)
        d = mean - plain
        far = d.mean(axis=0) / (d.std(axis=0, ddof=1) / np.sqrt(len(d)))
        if (np.abs(np.abs(far) - 2) < 0.05).any():
            return None  # too near to the border for rounding to decide
        right = settings[far > 2].tolist()
        yours = np.sort(array_of(ask(harmful, settings, plain, mean)).ravel()).tolist()
        if np.allclose(yours, right) if len(yours) == len(right) else False:
            return None
        unpaired = np.sqrt((plain.var(axis=0, ddof=1) + mean.var(axis=0, ddof=1)) / len(d))
        hints = []
        for chosen, words in (
            (far < -2, "a loss: larger is worse. The sign is mean − plain"),
            (d.mean(axis=0) > 0, "worse on average is not enough: two standard errors"),
            (d.mean(axis=0) > 2 * unpaired, "the runs are pairs: take the differences first"),
            (d.mean(axis=0) > 2 * d.std(axis=0, ddof=1), "the standard error is s / √n, not s"),
            ((d > 0).any(axis=0), "one bad run is not enough"),
        ):
            own = settings[chosen].tolist()
            if own and len(own) == len(yours) and np.allclose(own, yours):
                hints.append(words)
        return Wrong(Words(str(yours)), Words(str(right)), tuple(hints))

    def at_the_border(case):
        wrong = outcome(case)
        return wrong and Wrong(wrong.yours, wrong.right)

    def tell(case):
        settings, plain, mean = arrays(case)
        return f"rates {show(settings)}, plain {show(plain)}, mean {show(mean)}"

    # Differences whose mean lies between 1.8 and 1.95 standard errors: with n instead of n − 1 they
    # would seem to be harmful.
    near = st.sampled_from([(0, 1, 2, 5), (-1, 2, 3, 4), (0, 1, 3, 6), (-1, 2, 4, 4)])
    border = near.flatmap(st.permutations).map(lambda ds: (tuple((2, 2 + d) for d in ds),))

    return [
        Property("harmful: worse by more than two standard errors", cases, outcome, tell,
                 "d = mean − plain; d̄ > 2 s / √n, column by column", "tables", 150),
        Property("a difference just below two standard errors", border, at_the_border, tell,
                 "d̄ > 2 s / √n, with s over n − 1: std(ddof=1)", "tables", 20),
    ]  # fmt: skip


# --- choosing ----------------------------------------------------------------------------


def check_weights_of(weights_of: Callable) -> Summary:
    """Judge which arrays of a file are weights.

        def weights_of(nodes, arrays): ...
            # [(operator, names of the inputs), …], {name: array} → list of names

        check_weights_of(weights_of)

    Inputs 1 and 2 of Conv and of Gemm are weights (2, the bias, may be missing), input 1 of MatMul,
    and inputs 1 and 2 (scale and shift) of BatchNormalization, whose inputs 3 and 4 are statistics.
    Inputs count from 0. Only names in `arrays` are arrays of the file. Each comes once, in the
    order of its first use.

    weights_of   the code to be judged, as above
    Returns      Summary
    Raises       Falsified
    """
    return judge("weights_of", weights_of_properties(weights_of))


_SLOTS = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "BatchNormalization": (1, 2)}
_INPUTS = {
    "Conv": 3, "Gemm": 3, "MatMul": 2, "BatchNormalization": 5, "Clip": 3, "Reshape": 2, "Relu": 1,
}  # fmt: skip


def weights_of_suite(weights_of: Callable) -> Callable:
    """`check_weights_of` for pytest: one test a property."""
    return suite_of("weights_of", weights_of_properties(weights_of))


def weights_of_properties(weights_of: Callable) -> list[Property]:
    """The properties that `check_weights_of` tries."""
    st = strategies()

    def cases(*operators, shared=False, computed=False, bare=False):
        one = st.tuples(
            st.sampled_from(operators),
            st.integers(0, 2) if shared else st.just(0),  # 1, 2: uses the arrays of the first node
            st.integers(0, 2) if computed else st.just(0),  # 1: input 1 is another node's result
            st.booleans() if bare else st.just(False),  # without a bias
        )
        return st.lists(one, min_size=1, max_size=3).map(tuple)

    def build(case):
        nodes, arrays = [], {}
        for number, (operator, again, computed, bare) in enumerate(case):
            owner = 0 if again and case[0][0] == operator else number
            inputs = [f"x{number}"]
            for slot in range(1, _INPUTS[operator] - bare):
                if computed == 1 and slot == 1:
                    inputs.append(f"x{number}")
                    continue
                name = f"array{owner}_{slot}"
                inputs.append(name)
                arrays[name] = np.ones(2, np.int64 if operator == "Reshape" else np.float32)
            nodes.append((operator, inputs))
        return nodes, dict(sorted(arrays.items(), reverse=True))

    def outcome(case):
        nodes, arrays = build(case)
        right = []
        for operator, inputs in nodes:
            for name in (inputs[slot] for slot in _SLOTS.get(operator, ()) if slot < len(inputs)):
                if name in arrays and name not in right:
                    right.append(name)
        yours = weights_of([(o, list(i)) for o, i in nodes], dict(arrays))
        names = list(yours) if isinstance(yours, Iterable) else [yours]
        if isinstance(yours, str) or not all(isinstance(name, str) for name in names):
            raise Misfit(Words(type(yours).__name__), Words("a list of names"))
        yours = names
        if yours == right:
            return None
        more = [name for name in yours if name not in right]
        hint = ""
        if len(set(yours)) < len(yours):
            hint = "an array that is used twice is one weight"
        elif more and any(name not in arrays for name in more):
            hint = "the result of another node is no array of the file"
        elif more:
            used = next(o for o, i in nodes if more[0] in i)
            hint = f"{more[0]} is no weight: see which inputs of {used} are"
        elif sorted(yours) == sorted(right):
            hint = "in the order of their first use"
        return Wrong(Words(str(yours)), Words(str(right)), hint)

    def tell(case):
        return f"nodes {build(case)[0]}"

    rule = "look at the input that an array goes into, not at its name or type"
    return [
        Property("inputs 1 and 2 of Conv and Gemm, input 1 of MatMul",
                 cases("Conv", "Gemm", "MatMul"), outcome, tell, rule, "graphs", 40),
        Property("statistics, bounds and shapes are no weights",
                 cases("BatchNormalization", "Clip", "Reshape", "Relu"), outcome, tell, rule,
                 "graphs", 40),
        Property("a bias may be missing", cases("Conv", "Gemm", bare=True), outcome, tell,
                 "a node may have fewer inputs: see how many there are", "graphs", 40),
        Property("an array that is used twice comes once", cases("Conv", "Gemm", shared=True),
                 outcome, tell, rule, "graphs", 40),
        Property("what a node computes is no array of the file",
                 cases("MatMul", "Conv", computed=True), outcome, tell, rule, "graphs", 40),
    ]  # fmt: skip
