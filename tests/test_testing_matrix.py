"""The properties judged themselves: every mistake caught, every property of use, no right answer
rejected, and the same smallest counterexample each time.
"""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from minires.testing import judging
from minires.testing.judging import Falsified, examine, judge
from minires.testing.kinds import KINDS
from minires.testing.mistakes import MISTAKES, matrix, table
from minires.testing.references import RIGHT

# These remember earlier calls, so what they do to one input depends on those before it.
WITH_A_MEMORY = {
    "a generator of its own",
    "the state is a default argument of all",
    "a velocity for all optimizers",
}
FEW = 6  # inputs: they show most mistakes


def label(answer):
    return f"{answer.kind}: {answer.name}"


def properties_of(answer):
    return KINDS[answer.kind](*answer.judged, **answer.options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mistake_is_caught_and_every_property_catches_one(kind):
    """Each mistake is tried until one property rejects it, each property until it rejects one."""
    answers = [answer for answer in MISTAKES if answer.kind == kind]
    assert answers, "no mistake to try these properties on"
    sets = [{own.name: own for own in properties_of(answer)} for answer in answers]
    useful = set()
    for answer, properties in zip(answers, sets, strict=True):
        first = first_that_fails(properties.values())
        assert first is not None, f"{answer.name}: accepted"
        useful.add(first.name)
    for name in dict.fromkeys(name for properties in sets for name in properties):
        # The last mistakes are the likeliest: those that came first had a property already.
        own = (properties[name] for properties in reversed(sets) if name in properties)
        assert name in useful or first_that_fails(list(own)) is not None, name


def first_that_fails(properties):
    """The first property that a few inputs falsify; else the first that all its inputs do."""
    for few in (FEW, None):
        for own in properties:
            tried = own if few is None else replace(own, examples=few)
            if examine(tried, smallest=False)[0] is not None:
                return own
    return None


@pytest.mark.slow
def test_the_whole_matrix():
    rows = {kind: table(kind) for kind in KINDS}
    for kind, (answers, caught) in rows.items():
        assert all(any(column) for column in zip(*caught.values(), strict=True)), kind
        assert all(any(row) for row in caught.values()), kind
        assert len(answers) >= 2, kind


@pytest.mark.parametrize("answer", RIGHT, ids=label)
def test_no_right_answer_is_rejected(answer):
    judge(answer.kind, properties_of(answer))


def test_every_kind_has_a_right_answer():
    assert {answer.kind for answer in RIGHT} == set(KINDS)


def test_there_are_enough_mistakes():
    public = [answer for answer in MISTAKES if answer.source]
    assert len(public) == 7
    assert len(MISTAKES) - len(public) >= 20
    assert len({label(answer) for answer in MISTAKES}) == len(MISTAKES)


def first_failure(answer):
    """The text of the first property that fails, and how often the code was tried on the way."""
    for own in properties_of(answer):
        failure, calls = examine(own)
        if failure is not None:
            return str(failure), calls
    raise AssertionError("nothing failed")


def one_of_each(*kinds):
    """One mistake of each of these kinds; those of the others, and all others, are slow."""
    for answer in MISTAKES:
        if answer.name not in WITH_A_MEMORY:
            quick = answer.kind in kinds
            kinds = [kind for kind in kinds if kind != answer.kind]
            yield pytest.param(answer, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("answer", list(one_of_each("moments", "convolution", "adam")), ids=label)
def test_the_smallest_counterexample_is_the_same_each_time_and_soon_found(answer):
    once, calls = first_failure(answer)
    assert first_failure(answer) == (once, calls)
    assert calls <= judging.MOST_CALLS
    assert "smallest counterexample: " in once


# Judges the mistakes of some kinds; prints what each is told, and the processor's seconds.
JUDGED = """
import json, sys, time
from minires.testing.judging import Falsified, judge
from minires.testing.kinds import KINDS
from minires.testing.mistakes import MISTAKES
told = {}
for answer in MISTAKES:
    if answer.kind in sys.argv[1:]:
        started = time.process_time()
        try:
            text = str(judge(answer.kind, KINDS[answer.kind](*answer.judged, **answer.options)))
        except Falsified as error:
            text = str(error)
        told[f"{answer.kind}: {answer.name}"] = text, time.process_time() - started
print(json.dumps(told))
"""


QUICK = "matmul", "sampler"


@pytest.mark.parametrize(
    "kinds",
    [QUICK, pytest.param([kind for kind in KINDS if kind not in QUICK], marks=pytest.mark.slow)],
    ids=["two kinds", "the others"],
)
def test_a_mistake_is_told_the_same_in_every_process_and_soon(kinds):
    first, again = (
        json.loads(
            subprocess.run(
                [sys.executable, "-c", JUDGED, *kinds],
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
                stdout=subprocess.PIPE, encoding="utf-8", check=True,
            ).stdout
        )
        for seed in "12"
    )  # fmt: skip
    assert set(first) == {label(answer) for answer in MISTAKES if answer.kind in kinds}
    for name, (text, seconds) in first.items():
        assert text == again[name][0]
        assert text.startswith("✗ ")
        assert text.splitlines()[1].startswith("    smallest counterexample: ")
        assert seconds < 5, name


def test_the_number_of_tries_is_bounded_even_where_everything_fails():
    tried = []

    class Hopeless:
        def update(self, theta):
            tried.append(theta)

        mean = variance = 7.0

    with pytest.raises(Falsified) as falsified:
        judge("moments", KINDS["moments"](Hopeless))
    failures = len(falsified.value.failures)
    assert failures > 5
    assert len(tried) < 20_000 + 12 * failures * judging.MOST_CALLS


def test_warnings_of_the_judged_code_change_nothing():
    """An overflow is judged by the number it gives, whatever the filter of warnings says."""
    answer = next(a for a in MISTAKES if a.name == "overflow: nothing is subtracted")
    texts = set()
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            texts.add(first_failure(answer)[0])
    assert len(texts) == 1


def test_the_matrix_is_a_table_of_sentences_and_letters():
    text = matrix(["matmul"])
    assert text.splitlines()[0].split() == ["matmul", "a", "b"]
    assert "the gradient of x is g @ wᵀ" in text
    assert "b  swapped transpose" in text
    assert text.count("✗") == 2
