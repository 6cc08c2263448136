"""Claims are divided into propositions, which data can show, contradict or leave open.

A claim is supported when each of its propositions is shown at α = 0.05. All of them must hold, so
this needs no correction for many tests. One contradicted proposition is enough against the claim,
so for contradictions α is corrected by Holm's method.

A proposition about many cells is decided by the mean over the middle half of the cells: one number
for each seed. The page also says in how many single cells it is shown, with Holm's correction. If
a single cell contradicts it, the claim is inconclusive. Tests use ranks and the mean is trimmed, so
that one diverged run does not decide.

"Contradicted" needs evidence, as "shown" does: for the opposite, or for an effect too small to
matter. A proposition is open when the data cannot decide: few seeds, much noise, no data.

An argument means the same in all of this file:

    says      the proposition, a sentence
    of        metric → (cells, S), NaN where something is missing
    unit      a Unit: how the effect is written
    metrics   the first one decides; the others are only reported
    effect    (S,), one for each seed
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minires.arrays.text import counted
from minires.study.statistics import (
    ALPHA,
    LEAST_SEEDS,
    changes,
    complete,
    holm,
    interval,
    middle,
    p_different,
    p_equivalent,
    p_greater,
    p_less,
    p_rising,
    p_t,
    spread,
)

# Smaller differences do not matter. 0.05 percentage points are 5 of 10,000 images. One accuracy of
# 99.3 % is known to ± 0.083 only (binomial standard error); an NLL near 0.025 to about ± 0.002.
MARGIN = {"accuracy": 0.0005, "nll": 0.001}

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"


# --- effects as text ----------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """How an effect is written.

    factor   a value is multiplied by this
    digits   after the point
    name     written after the number
    sign     "+": the sign is always written; "": only for negative values
    words    for no effect, a positive and a negative one, instead of a sign and a name
    """

    factor: float
    digits: int
    name: str
    sign: str = "+"
    words: tuple = ()

    def write(self, value: float, sign: str | None = None) -> str:
        """A value without its unit's name.

        value   to be written
        sign    in the place of the unit's own
        """
        value = round(value * self.factor, self.digits) + 0.0  # no "-0.000"
        text = f"{value:{self.sign if sign is None else sign}.{self.digits}f}"
        return text.replace("-", "−")

    def phrase(self, value: float, sign: str | None = None) -> str:
        """A value with its unit.

        value   to be written
        sign    in the place of the unit's own
        """
        if not self.words:
            return f"{self.write(value, sign)}{self.name}"
        size = self.write(abs(value), "")
        none, positive, negative = self.words
        if not float(size):
            return none
        return f"{positive if value > 0 else negative} {size}"

    def edge(self, value: float) -> str:
        """A bound, with three digits at most.

        value   of the bound
        """
        return f"{value * self.factor:.3g}{self.name}"


POINTS = Unit(100, 3, " points")
PERCENT = Unit(100, 1, " %")
SHARE = Unit(100, 2, " %", sign="")
RATE = Unit(1, 3, "", words=("the same ℓ₂", "ℓ₂ larger by", "ℓ₂ smaller by"))
NLL = Unit(1, 4, "")


@dataclass(frozen=True)
class Part:
    """One proposition of a claim, and what the data say about it.

    says      the proposition
    pro       p-value: below α the proposition is shown
    con       p-value: below α the proposition is contradicted
    found     the effect in a few words
    limit     for a contradicted proposition: what contradicts it
    mixed     what contradicts it in single cells, or ""
    numbers   a function that returns [(what, text), …]
    """

    says: str
    pro: float
    con: float
    found: str
    limit: str = ""
    mixed: str = ""
    numbers: Callable = list


def unknown(says: str, why: str) -> Part:
    """A proposition that the data say nothing about.

    why   nothing is known, as "not measured"
    """
    return Part(says, 1.0, 1.0, why)


@dataclass(frozen=True)
class Test:
    """How a proposition is tested on one cell, or on the middle of all cells.

    name      for the reader
    pro       data → p-value for the proposition; for several cells (cells,)
    con       data → p-value against it
    against   data of several cells → (cells,) p-values of a contradiction in single cells
    limit     for a contradicted proposition: what contradicts it
    effect    data → (S,), the size of the effect
    margin    for the NLL, when equality is tested
    """

    name: str
    pro: Callable
    con: Callable
    against: Callable
    limit: str
    effect: Callable
    margin: float | None = None


def _itself(data):
    return data


def more(
    says: str,
    of: Callable,
    margin: float | None = None,
    unit: Unit = POINTS,
    metrics: tuple = ("accuracy", "nll"),
) -> Part:
    """The proposition that a difference is above zero. Contradicted: surely below the margin.

    of       metric → (cells, S)
    margin   the smallest difference that matters; None: that of accuracies
    """
    margin = MARGIN["accuracy"] if margin is None else margin
    limit = f"surely below {unit.edge(margin)}" if margin else "the opposite"
    test = Test("signed ranks", p_greater, lambda d: p_less(d, margin), p_less, limit, _itself)
    return proposition(says, of, test, unit, metrics)


def at_most(
    says: str, of: Callable, bound: float, unit: Unit = POINTS, metrics: tuple = ("accuracy", "nll")
) -> Part:
    """The proposition that a difference is below a bound. Contradicted: surely above.

    bound   that the difference stays below
    """

    def below(d):
        return p_less(d, bound)

    def above(d):
        return p_greater(d, bound)

    edge = unit.edge(bound)
    test = Test(f"signed ranks, below {edge}", below, above, above, f"surely above {edge}", _itself)
    return proposition(says, of, test, unit, metrics)


def same(
    says: str, of: Callable, unit: Unit = POINTS, metrics: tuple = ("accuracy", "nll")
) -> Part:
    """The proposition that a difference does not matter. Contradicted: surely not zero."""
    margin = MARGIN["accuracy"]

    def beyond(d):
        return np.minimum(1, 2 * np.minimum(p_greater(d, margin), p_less(d, -margin)))

    test = Test(
        f"TOST ± {unit.edge(margin)}",
        lambda d: p_equivalent(d, margin),
        p_different,
        beyond,
        f"surely not zero, not surely within ± {unit.edge(margin)}",
        _itself,
        MARGIN["nll"],
    )
    return proposition(says, of, test, unit, metrics)


def rising(says: str, of: Callable, x: Any, unit: Unit = POINTS) -> Part:
    """The proposition that values rise along x. Contradicted: the rise is surely too small.

    of   metric → (cells, K, S)
    x    (K,), rising
    """
    if len(x) < 2:
        return unknown(says, "not measured: a trend needs two values or more")
    margin = MARGIN["accuracy"]

    def change(data):
        return changes(data.T, x)

    test = Test(
        "Page" if len(x) > 2 else "signed ranks",
        lambda data: p_rising(data.swapaxes(-1, -2)),
        lambda data: p_less(change(data), margin),
        lambda data: p_rising(data.swapaxes(-1, -2)[..., ::-1]),
        f"surely below {unit.edge(margin)}",
        change,
    )
    return proposition(says, of, test, unit, ("accuracy", "nll"))


def proposition(says: str, of: Callable, test: Test, unit: Unit, metrics: tuple) -> Part:
    """Test the middle of the cells, and each cell alone.

    says      the proposition
    of        metric → (cells, …, S) for the test, NaN where something is missing
    test      Test
    unit      of the effect
    metrics   the first one decides; the others are only reported
    Returns   Part
    """
    measured = of(metrics[0])
    chosen = complete(measured)
    if not chosen.size:
        return unknown(says, "not measured")
    data = middle(chosen)
    effect = test.effect(data)
    cells, seeds = len(chosen), len(effect)
    left = [  # cells and seeds with a missing or diverged run are left out
        f"{some} of {counted(all_, noun)}"
        for some, all_, noun in (
            (cells, len(measured), "cell"),
            (seeds, measured.shape[-1], "seed"),
        )
        if some < all_
    ]
    found = " in ".join([unit.phrase(np.median(effect)), *left])
    if seeds < LEAST_SEEDS:
        few = f"{found}, but {counted(seeds, 'seed')}: too few"
        return replace(unknown(says, few), numbers=lambda: [(says, few)])

    pro, con = test.pro(data), test.con(data)
    good = int((holm(test.pro(chosen)) < ALPHA).sum())
    bad = int((holm(test.against(chosen)) < ALPHA).sum())
    mixed = f"{bad} of {cells} single cells contradict it" if bad and cells > 1 else ""

    def numbers():
        text = f"{size(effect, unit)}; {test.name}: {p_text(pro)}"
        if test.name == "signed ranks":
            text += f"; Student's t, two-sided: {p_text(p_t(effect))}"
        text += f"; {counted(seeds, 'seed')}"
        if left:
            text += f" ({' in '.join(left)}: in the others a run is missing or diverged)"
        if cells > 1 and cells * 0.5**seeds >= ALPHA and not good and not bad:
            text += f"; {cells} cells, too few seeds to test single cells"
        elif cells > 1:
            text += f"; single cells (Holm): shown in {good} of {cells}, contradicted in {bad}"
        rows = [(says, text)]
        same = NLL if unit is POINTS else unit
        for metric in metrics[1:]:
            beside = complete(of(metric))
            if beside.size:
                by_nll = test.effect(middle(beside))
                rows.append(("  the same by NLL", describe(by_nll, same, test.margin)))
        return rows

    return Part(says, pro, con, found, test.limit, mixed, numbers)


def mean_and_spread(accuracies: np.ndarray) -> str:
    """Mean ± standard deviation as text, in per cent.

    accuracies   (seeds,)
    """
    mean, deviation = spread(accuracies)
    text = SHARE.phrase(float(mean))
    return text if math.isnan(deviation) else f"{text} ± {SHARE.write(float(deviation))}"


def p_text(p: float) -> str:
    """A p-value as text.

    p   NaN when all values were equal
    """
    if math.isnan(p):
        return "no spread"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def describe(effect: np.ndarray, unit: Unit, margin: float | None = None) -> str:
    """An effect that is only reported: its size, its interval, and a test whether it is not zero.

    margin    if given, the test is whether the effect is within ± margin
    """
    text = size(effect, unit)
    if margin is None:
        return f"{text}; signed ranks, two-sided: {p_text(p_different(effect))}"
    return f"{text}; TOST ± {unit.edge(margin)}: {p_text(p_equivalent(effect, margin))}"


def size(effect: np.ndarray, unit: Unit) -> str:
    """The mean, its interval, and the median. One diverged run does not change the median."""
    median = unit.write(np.median(effect))
    return f"{unit.phrase(effect.mean())} {_brackets(effect, unit)}, median {median}"


def _brackets(effect, unit):
    low, high = interval(effect)
    if math.isnan(low):
        return "(too few seeds for an interval)"
    return f"[{unit.write(low)}, {unit.write(high)}]"


# --- claims -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a sweep says about one claim.

    claim      "C1" …
    statement  what the paper says
    outcome    "supported", "not supported" or "inconclusive"
    numbers    [(what, text), …]
    reason     all sentences of `parts`
    parts      [(state, sentence), …], state "shown", "contradicted" or "open"
    test       which tests were used
    """

    claim: str
    statement: str
    outcome: str
    numbers: list
    reason: str
    parts: list
    test: str


@dataclass(frozen=True)
class Claim:
    """A claim, divided into propositions.

    parts    a list of Part; all of them must hold
    beside   functions that return more [(what, text), …]; these numbers are only reported
    """

    claim: str
    statement: str
    test: str
    parts: list
    beside: list = field(default_factory=list)

    @property
    def states(self) -> list[str]:
        """The state of each part: "shown", "contradicted" or "open"."""
        against = holm([part.con for part in self.parts])
        return [
            "shown" if part.pro < ALPHA else "contradicted" if p < ALPHA else "open"
            for part, p in zip(self.parts, against, strict=True)
        ]

    @property
    def outcome(self) -> str:
        """SUPPORTED, NOT_SUPPORTED or INCONCLUSIVE."""
        states = self.states
        if "contradicted" in states:
            return NOT_SUPPORTED
        if "open" in states or any(part.mixed for part in self.parts):
            return INCONCLUSIVE
        return SUPPORTED

    def verdict(self) -> Verdict:
        """The Verdict, with all its numbers."""
        parts = []
        for part, state in zip(self.parts, self.states, strict=True):
            found = [part.found, part.mixed]
            if state == "contradicted":
                found.insert(1, part.limit)
            elif state == "open" and part.pro < 1:
                found.insert(1, p_text(part.pro))
            sentence = f"{part.says}: {state} ({'; '.join(filter(None, found))})."
            parts.append((state, sentence[0].upper() + sentence[1:]))
        numbers = [row for part in self.parts for row in part.numbers()]
        for rows in self.beside:
            numbers += rows()
        return Verdict(
            claim=self.claim,
            statement=self.statement,
            outcome=self.outcome,
            numbers=numbers,
            reason=" ".join(sentence for _, sentence in parts),
            parts=parts,
            test=self.test,
        )
