"""Verdicts: right where the test knows the truth, rarely wrong where there is nothing to see."""

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.study import claims
from minires.study.claims import verdicts
from minires.study.propositions import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    RATE,
    SUPPORTED,
    Claim,
    Part,
)
from minires.study.scores import curve
from minires.study.store import Sweep
from tests.study_records import NOTHING, Effects, synthetic_sweep

NAMES = [*(f"C{number}" for number in range(1, 13)), "C16", "C17"]
BY_NAME = dict(zip(NAMES, claims.CLAIMS, strict=True))


def ask(name, sweep):
    claim = BY_NAME[name](sweep)
    assert claim.claim == name
    return claim


SMALL = {"l1": (0.15, 0.3), "l2": (0.05, 0.15, 0.25)}  # as quick as it can be


def small_sweep(seeds=10, effects=None, **options):
    return synthetic_sweep(seeds, effects, **SMALL | options)


@pytest.fixture(scope="module")
def papers_world():
    """A sweep in which all that the paper says is so."""
    return small_sweep()


@pytest.fixture(scope="module")
def papers_verdicts(papers_world):
    return verdicts(papers_world)


# --- three outcomes of every claim --------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_supported_where_it_is_so(name, papers_world):
    assert ask(name, papers_world).outcome == SUPPORTED


OPPOSITE = {
    "C1": [{"inner_l1": -0.3}, {"inner_l1": 0.0}],
    "C2": [{"l1_plain": -0.04}, {"l2_plain": 0.06}, {"l2_plain": 0.0}, {"l1_plain": 0.0}],
    "C3": [{"l2_plain": 0.06, "l2_mean": -0.06}, {"l2_plain": -0.06, "l2_mean": -0.06}],
    "C4": [{"l2_mean": -0.1}, {"l2_mean": 0.1}],
    "C5": [{"dropout_plain": -0.2}],
    "C6": [
        {"dropout_mean": 0.35},
        {"dropout_mean": 0.15},
        {"dropout_plain": -0.05, "dropout_mean": -0.3},
        {"dropout_plain": 0.1, "dropout_mean": -0.3},
    ],
    "C7": [{"ensemble_3": 0.2}, {"ensemble_3": -0.2}],
    "C8": [{"ensemble_10": -0.05}, {"ensemble_10": 0.2}],
    "C9": [{"time_constant": 300, "resampled": 5}, {"time_constant": 0.1}],
    "C10": [{"adam_pattern": -1}, {"adam_pattern": 0}],
    "C11": [{"adam_plain": 0.5}, {"adam_resampled": -0.2}, {"adam_resampled": 0.0}],
    "C12": [{"dropout_adam": 0.3}, {"dropout_adam": -0.3}],
    "C16": [{"moments_seconds": 0.3}, {"predict_ratio": 1.3}],
    "C17": [{"moments_error": 1e-3}],
}


@pytest.mark.parametrize(
    ("name", "effects"), [(name, effects) for name in NAMES for effects in OPPOSITE[name]]
)
def test_not_supported_where_the_opposite_is_so(name, effects):
    assert ask(name, small_sweep(effects=Effects(**effects))).outcome == NOT_SUPPORTED


NOISE = {"seed_noise": 0.5, "path_noise": 0.5, "method_noise": 0.5}


@pytest.mark.parametrize(
    ("name", "effects"),
    [
        ("C6", {"dropout_plain": -0.2, "dropout_mean": -0.03}),  # it harms, the mean model less
        ("C6", {"dropout_plain": 0.2, "dropout_mean": -0.03}),
        ("C11", {"adam_plain": 0.1}),
    ],
)
def test_supported_in_other_worlds_too(name, effects):
    assert ask(name, small_sweep(effects=Effects(**effects))).outcome == SUPPORTED


def test_a_gain_may_grow_while_both_fall():
    """Both are best at the smallest ℓ₂, yet the mean model loses less beyond it."""
    sweep = small_sweep(effects=Effects(l2_plain=-0.1, l2_mean=-0.02))
    claim = ask("C3", sweep)
    assert claim.states == ["open", "shown"]
    assert claim.outcome == INCONCLUSIVE


def test_the_best_rate_inside_is_what_counts(papers_world):
    """One ℓ₁ inside that is worse than those outside does not matter."""

    def spoil(record):
        if record["cell"]["l1"] == 0.15:
            record["methods"]["pretrained"]["accuracy"] -= 0.006

    assert ask("C1", without(papers_world, spoil)).outcome == SUPPORTED


def test_a_worker_that_was_held_up_counts_for_little(papers_world):
    def hold_up(record):
        if record["cell"]["l2"] == 0.25 and record["cell"]["dropout"] == 0:
            record["seconds"]["moments"] *= 100

    assert ask("C16", without(papers_world, hold_up)).outcome == SUPPORTED


@pytest.fixture(scope="module")
def noisy_worlds():
    effects = replace(NOTHING, **NOISE, time_constant=0.1)
    return [small_sweep(5, effects, test=1_000, random_state=state) for state in range(5)]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("C16", "C17")])
def test_inconclusive_where_noise_hides_everything(name, noisy_worlds):
    """Not in every world: α of them deceive, one way or the other."""
    outcomes = Counter(ask(name, world).outcome for world in noisy_worlds)
    assert outcomes[INCONCLUSIVE] >= 3, outcomes


def test_inconclusive_where_clocks_are_useless():
    sweep = small_sweep(5, Effects(clock_noise=1.0, predict_ratio=1.05))
    assert ask("C16", sweep).outcome == INCONCLUSIVE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_four_seeds_are_too_few(name, seeds):
    claim = ask(name, small_sweep(seeds))
    if name == "C17":  # arithmetic, one run is enough
        assert claim.outcome == SUPPORTED
    else:
        assert claim.outcome == INCONCLUSIVE
        plural = "s" * (seeds > 1)
        assert f"but {seeds} seed{plural}: too few" in claim.verdict().reason


@pytest.mark.parametrize("name", NAMES)
def test_inconclusive_where_nothing_was_measured(name, papers_world):
    claim = ask(name, Sweep(papers_world.settings, [], [], []))
    assert claim.outcome == INCONCLUSIVE
    assert "not measured" in claim.verdict().reason


def without(sweep, remove):
    """The sweep, each record changed in a copy."""
    records = json.loads(json.dumps(sweep.records))
    for record in records:
        remove(record)
    return replace(sweep, records=records)


@pytest.mark.parametrize(
    ("name", "remove"),
    [
        ("C7", lambda record: record["methods"].pop("ensemble_3", None)),
        ("C8", lambda record: record["methods"].pop("ensemble_10", None)),
        ("C3", lambda record: record["methods"].pop("mean", None)),
        ("C4", lambda record: record["methods"].pop("mean", None)),
        ("C6", lambda record: record["methods"].pop("mean", None)),
        ("C10", lambda record: record["methods"].pop("mean", None)),
        ("C11", lambda record: record["methods"].pop("mean", None)),
        ("C12", lambda record: record["methods"].pop("mean", None)),
        ("C9", lambda record: record.pop("curves", None)),
        ("C16", lambda record: record["seconds"].pop("moments", None)),
        ("C17", lambda record: record.pop("moments_check", None)),
    ],
)
def test_inconclusive_where_a_method_is_missing(name, remove, papers_world):
    claim = ask(name, without(papers_world, remove))
    assert claim.outcome == INCONCLUSIVE
    assert "not measured" in claim.verdict().reason


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("C1", {"outer": (0.05,)}),
        ("C1", {"outer": (0.6,)}),
        ("C1", {"l1": (0.4,), "outer": (0.05, 0.6)}),
        ("C2", {"l1": (0.2,)}),
        ("C2", {"l2": (0.15,)}),
        ("C3", {"l2": (0.15,)}),
        ("C4", {"l2": (0.15,)}),
        ("C5", {"dropouts": (0.5,)}),
        ("C5", {"dropouts": (0.25, 0.5)}),
        ("C6", {"dropouts": (0.0,)}),
        ("C10", {"adam": False}),
        ("C10", {"l2": (0.15,)}),
        ("C11", {"adam": False}),
        ("C12", {"adam": False}),
        ("C12", {"dropouts": (0.5,)}),
    ],
)
def test_inconclusive_where_the_grid_is_too_small(name, options):
    assert ask(name, small_sweep(**options)).outcome == INCONCLUSIVE


# --- how often it errs --------------------------------------------------------------------

SWEEPS = 200
# For each claim a world at the very edge of being so: as often as α it may seem to be.
EDGES = {
    "C1": {"inner_l1": 0},
    "C2": {"l1_plain": 0, "l2_plain": 0},
    "C3": {},
    "C4": {"l2_mean": -0.025},
    "C5": {"dropout_plain": 0},
    "C6": {"dropout_plain": 0.1, "dropout_mean": 0.1},
    "C7": {"ensemble_3": 0.05},
    "C8": {"ensemble_10": 0},
    "C9": {"time_constant": 0.01},
    "C10": {},
    "C11": {"adam_plain": 0.2, "adam_resampled": 0.0},
    "C12": {"dropout_adam": 0.06},
    "C16": {"moments_seconds": 0.1, "predict_ratio": 1.05},
}


def outcomes_of(name, effects):
    """What a claim comes to in `SWEEPS` worlds that differ in their noise."""
    needed = {"baselines": False, "curves": name == "C9", "adam": name in ("C10", "C11", "C12")}
    return Counter(
        ask(name, small_sweep(10, effects, random_state=state, **needed)).outcome
        for state in range(SWEEPS)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGES)
def test_false_alarms_are_rare(name):
    outcomes = outcomes_of(name, replace(NOTHING, **EDGES[name]))
    # 0.05 of 200 is 10; more than 20 has a probability of 0.0013.
    assert outcomes[SUPPORTED] <= 20, outcomes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edge"),
    [
        ("C1", {"inner_l1": 0.05}),
        ("C5", {"dropout_plain": 0.05}),
        ("C7", {}),
        ("C8", {}),
        ("C12", {"dropout_adam": -0.05}),
    ],
)
def test_false_refutations_are_rare(name, edge):
    """The edge of the other side: an effect just as large as the margin."""
    outcomes = outcomes_of(name, replace(NOTHING, **edge))
    assert outcomes[NOT_SUPPORTED] <= 20, outcomes


# --- what a verdict is made of ------------------------------------------------------------


def part(pro, con=1.0, mixed=""):
    return Part("it is so", pro, con, "found", "too little", mixed)


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        ([part(0.04)], SUPPORTED),
        ([part(0.06)], INCONCLUSIVE),
        ([part(0.5, 0.04)], NOT_SUPPORTED),
        ([part(0.04), part(0.04)], SUPPORTED),
        ([part(0.04), part(0.06)], INCONCLUSIVE),
        ([part(0.04), part(0.5, 0.01)], NOT_SUPPORTED),
        ([part(0.04), part(0.5, 0.04)], INCONCLUSIVE),  # Holm: 2 × 0.04
        ([part(0.01, 0.01)], SUPPORTED),  # there, though small
        ([part(0.04, mixed="a cell says no")], INCONCLUSIVE),
    ],
)
def test_parts_make_an_outcome(parts, outcome):
    claim = Claim("C0", "All is so.", "a test", parts)
    assert claim.outcome == outcome
    assert claim.verdict().outcome == outcome


def test_reasons_are_sentences():
    reason = Claim("C0", "", "", [part(0.01), part(0.5, 0.001), part(0.2, 1)]).verdict().reason
    assert reason == (
        "It is so: shown (found). It is so: contradicted (found; too little). "
        "It is so: open (found; p = 0.2)."
    )


def plain_table(values):
    """A sweep of one ℓ₁ and one ℓ₂: plain accuracies, one row for each dropout."""
    records = [
        {
            "cell": {
                "optimizer": "sgd", "l1": 0.2, "dropout": dropout, "seed": seed,
                "finetune_optimizer": "sgd", "l2": 0.15,
            },
            "methods": {"finetuned": {"accuracy": accuracy, "nll": 1 - accuracy}},
        }
        for dropout, row in values.items()
        for seed, accuracy in enumerate(row)
    ]  # fmt: skip
    return Sweep({"data": "mnist", "train": 60_000, "batch": 128}, records, [], [])


def test_numbers_by_hand():
    """Differences .1, .2, .3, .2, .2 points: five of one sign, p = 1/32; t = 6.3, df 4."""
    sweep = plain_table({0.0: [0.99] * 5, 0.5: [0.991, 0.992, 0.993, 0.992, 0.992]})
    verdict = ask("C5", sweep).verdict()
    assert verdict.outcome == SUPPORTED
    (label, text), (nll_label, nll) = verdict.numbers
    assert label == "plain fine-tuning is better with dropout"
    assert text.startswith("+0.200 points [+0.1")
    assert ", median +0.200; signed ranks: p = 0.031; Student's t, two-sided: p = 0.0032" in text
    assert text.endswith("5 seeds")
    assert nll_label.strip() == "the same by NLL"
    assert nll.startswith("−0.0020")


def test_a_pair_is_a_seed():
    """The same accuracies, other partners: the mean is the same, the certainty is not."""
    low = [0.990, 0.985, 0.980, 0.975, 0.970]
    high = [0.991, 0.986, 0.981, 0.976, 0.971]
    assert ask("C5", plain_table({0.0: low, 0.5: high})).outcome == SUPPORTED
    assert ask("C5", plain_table({0.0: low, 0.5: high[::-1]})).outcome == INCONCLUSIVE


def test_one_lost_run_is_not_all_there_is_to_say():
    """A network that died without dropout: nine differences of .1 points and one of 89."""
    low, high = [0.990] * 9 + [0.098], [0.991] * 10
    claim = ask("C5", plain_table({0.0: low, 0.5: high}))
    assert claim.outcome == SUPPORTED
    assert "shown (+0.100 points)" in claim.verdict().reason
    assert ask("C5", plain_table({0.0: high, 0.5: low})).outcome == NOT_SUPPORTED


def test_a_lost_run_is_a_degradation(papers_world):
    """Median and ranks would not see it; whoever says "no loss" must."""

    def lose(record):
        cell = record["cell"]
        if cell["l2"] == 0.25 and cell["seed"] == 3 and cell["dropout"] == 0:
            record["methods"]["mean"]["accuracy"] = 0.1

    claim = ask("C4", without(papers_world, lose))
    assert claim.outcome != SUPPORTED
    verdict = claim.verdict()
    assert "2 of 120 runs were lost" in verdict.reason
    assert "2 runs below 50 %" in dict(verdict.numbers)["  loss at ℓ₂ 0.25"]


def test_a_cell_that_disagrees_makes_a_claim_inconclusive(papers_world):
    def spoil(record):
        cell = record["cell"]
        if (cell["l1"], cell["l2"], cell["dropout"]) == (0.15, 0.15, 0.5):
            record["methods"]["finetuned"]["accuracy"] -= 0.004

    claim = ask("C5", without(papers_world, spoil))
    assert claim.outcome == INCONCLUSIVE
    assert "1 of 6 single cells contradict it" in claim.verdict().reason


def test_mcnemar_is_counted(papers_world):
    def differ(record):
        if record["cell"]["seed"] == 0 and "mcnemar" in record:
            record["mcnemar"]["mean_vs_ensemble_3"] = [0, 40]

    numbers = dict(ask("C7", without(papers_world, differ)).verdict().numbers)
    for name, pairs, differ in (("SGD", 120, 12), ("Adam", 80, 8)):
        text = numbers[f"  McNemar, run by run, trained with {name}"]
        assert f"of {pairs} pairs of networks {differ} differ with p < 0.05, {differ} after" in text


def test_the_ceiling_is_about_mnist(papers_world):
    glyphs = replace(papers_world, settings=papers_world.settings | {"data": "glyphs"})
    claim = ask("C11", glyphs)
    assert claim.outcome == INCONCLUSIVE
    assert "the number is about MNIST" in claim.verdict().reason


def test_an_epoch_is_counted_in_batches(papers_world):
    short = replace(papers_world, settings=papers_world.settings | {"train": 30_000})
    reason = ask("C9", short).verdict().reason
    assert "500 against 10; an epoch has 234" in reason
    assert "From 200 updates on nothing more is gained (500 against 200, 300 and 400)" in reason


def with_curve(sweep, gains):
    """The sweep, the means of few updates worse by so many points: {updates: points}."""

    def bend(record):
        if "curves" in record:
            found, end = record["curves"]["updates"], record["methods"]["mean"]["accuracy"]
            found["updates"] = list(gains)
            found["accuracy"] = [end - points / 100 for points in gains.values()]
            found["nll"] = [1 - accuracy for accuracy in found["accuracy"]]

    return without(sweep, bend)


@pytest.mark.parametrize(
    ("gains", "states"),
    [
        ({1: 0.4, 20: 0.3, 300: 0.01, 400: 0.01, 500: 0}, ["shown", "shown"]),
        # Still climbing, a little at every step: 400 and 500 alone would not show it.
        ({1: 0.4, 20: 0.3, 200: 0.2, 300: 0.08, 400: 0.03, 500: 0}, ["shown", "open"]),
        ({1: 0.4, 20: 0.3, 300: 0.4, 400: 0.1, 500: 0}, ["shown", "contradicted"]),
        ({1: 0.4, 20: 0.3, 300: -0.2, 500: 0}, ["shown", "open"]),  # it falls: that is not flat
        ({1: 0.0, 20: 0.0, 300: 0, 400: 0, 500: 0}, ["contradicted", "shown"]),
        # 300 of 468 are not an epoch: what is gained after them says nothing about one.
        ({1: 0.4, 20: 0.3, 300: 0.4, 500: 0}, ["shown", "open"]),
        ({1: 0.4, 20: 0.3, 400: 0.01, 1000: 0}, ["shown", "shown"]),
        ({1: 0.4, 20: 0.3, 400: 0.1, 500: 0.01, 1000: 0}, ["shown", "shown"]),
        ({1: 0.4, 20: 0.3, 400: 0.01, 500: 0.1, 1000: 0}, ["shown", "contradicted"]),
    ],
)
def test_a_curve_is_flat_or_climbs(gains, states, papers_world):
    assert ask("C9", with_curve(papers_world, gains)).states == states


def test_a_short_curve_says_nothing_of_an_epoch(papers_world):
    claim = ask("C9", with_curve(papers_world, {1: 0.4, 20: 0.3, 50: 0.01, 100: 0}))
    assert claim.states == ["shown", "open"]
    assert "the curve ends after 100 updates, an epoch has 468" in claim.verdict().reason


def test_curves_of_other_optimizers_do_not_count(papers_world):
    def rename(record):
        record["cell"]["optimizer"] = "rmsprop"

    claim = ask("C9", without(papers_world, rename))
    assert claim.outcome == INCONCLUSIVE
    assert "not measured" in claim.verdict().reason


def test_curves_are_compared_where_all_were_measured(papers_world):
    def shorten(record):
        if "curves" in record and record["cell"]["seed"] == 0:
            for values in record["curves"]["updates"].values():
                del values[8]  # 300 updates

    sweep = without(papers_world, shorten)
    assert "(500 against 400)" in ask("C9", sweep).verdict().reason
    counts, values = curve(sweep, "updates", "updates", "accuracy")
    found = [record["curves"]["updates"] for record in sweep.records if "curves" in record]
    rows = [dict(zip(each["updates"], each["accuracy"], strict=True)) for each in found]
    assert values.shape == (1, len(counts), len(rows))
    expected = [[row[count] for row in rows] for count in counts]
    np.testing.assert_array_equal(np.sort(values[0]), np.sort(expected))


def test_a_run_that_diverged_is_a_loss(papers_world):
    """Where ℓ₂ = .25 makes some runs diverge, nobody may say that there is no degradation."""
    gone = [r for r in papers_world.records if r["cell"]["l2"] == 0.25 and r["cell"]["seed"] < 5]
    diverged = [{"cell": record["cell"], "diverged": "inf", "seconds": {}} for record in gone]
    records = [record for record in papers_world.records if record not in gone]
    sweep = replace(papers_world, records=records, diverged=diverged)
    claim = ask("C4", sweep)
    assert claim.outcome != SUPPORTED
    # 5 of 10 seeds at a tenth instead of 99 %
    assert "the largest loss, at ℓ₂ 0.25, is 44." in claim.verdict().reason
    assert ask("C5", sweep).outcome == SUPPORTED
    # A comparison within the lost runs is not possible; it says what is left without them.
    assert "(+0.020 points in 8 of 12 cells)" in ask("C8", sweep).verdict().reason


def diverging(sweep, gone):
    """The sweep, some of its runs diverged."""
    records = [record for record in sweep.records if not gone(record["cell"])]
    lost = [{"cell": r["cell"], "diverged": "inf"} for r in sweep.records if gone(r["cell"])]
    return replace(sweep, records=records, diverged=lost)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("C2", lambda cell: cell["l2"] == 0.25),
        ("C5", lambda cell: cell["l2"] == 0.25 and cell["dropout"] == 0),
    ],
)
def test_a_seed_with_a_diverged_run_still_counts_where_runs_are_compared(name, gone, papers_world):
    sweep = diverging(papers_world, lambda cell: cell["seed"] == 3 and gone(cell))
    claim = ask(name, sweep)
    assert claim.outcome == SUPPORTED
    assert "of 10 seeds" not in claim.verdict().reason


def test_networks_that_only_guess_show_nothing(papers_world):
    def forget(record):
        for scores in record["methods"].values():
            scores["accuracy"] = 0.1

    outcomes = {v.claim: v for v in verdicts(without(papers_world, forget))}
    assert "240 of 240 runs were lost" not in outcomes["C17"].reason
    for name in NAMES[:-2]:
        assert outcomes[name].outcome == INCONCLUSIVE
        assert "200 of 200 runs were lost" in outcomes[name].reason
    gone = diverging(papers_world, lambda cell: cell["l2"] is not None and cell["seed"] < 6)
    assert "120 of 200 runs were lost" in verdicts(gone)[6].reason


def test_seeds_that_lack_a_run_are_told(papers_world):
    sweep = diverging(papers_world, lambda cell: cell["seed"] == 3 and cell["l2"] is not None)
    assert "(+0.020 points in 9 of 10 seeds)" in ask("C8", sweep).verdict().reason


def test_the_order_of_records_does_not_matter(papers_world):
    records = list(papers_world.records)
    random.Random(0).shuffle(records)
    shuffled = replace(papers_world, records=records)
    for name in NAMES:
        claim, again = ask(name, papers_world), ask(name, shuffled)
        assert [(part.pro, part.con) for part in claim.parts] == [
            (part.pro, part.con) for part in again.parts
        ]


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 1))
@settings(max_examples=6)
def test_an_unfinished_sweep_has_verdicts(seed, share):
    rng = np.random.default_rng(seed)
    whole = small_sweep(5, baselines=False)
    kept = [record for record in whole.records if rng.random() < share]
    found = verdicts(replace(whole, records=kept))
    assert [verdict.claim for verdict in found] == NAMES


def test_equal_results_raise_nothing():
    """A data set so easy that every network is perfect: zeros and ties everywhere."""
    effects = replace(NOTHING, seed_noise=0, path_noise=0, method_noise=0)
    found = {v.claim: v.outcome for v in verdicts(small_sweep(6, effects, test=50))}
    assert found["C7"] == SUPPORTED
    assert found["C5"] == NOT_SUPPORTED


def test_a_profile_that_only_tests_judges_nothing(papers_world, papers_verdicts):
    smoke = replace(papers_world, settings=papers_world.settings | {"profile": "smoke"})
    found = verdicts(smoke)
    assert {verdict.outcome for verdict in found} == {INCONCLUSIVE}
    assert all(claims.TOO_SMALL in verdict.reason for verdict in found)
    assert not any(claims.TOO_SMALL in verdict.reason for verdict in papers_verdicts)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.05, "ℓ₂ larger by 0.050"), (-0.05, "ℓ₂ smaller by 0.050"), (1e-9, "the same ℓ₂")],
)
def test_a_difference_of_rates_is_said_in_words(value, words):
    assert RATE.phrase(value) == words
