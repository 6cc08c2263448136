"""The results that lie in docs/results: whole, readable, and judged as other code judges them.

Three verdicts (C1, C7, C8) are computed here anew from the raw lines, in plain Python and without
any function of the study: signs are tried one by one, quarters are cut off by hand.
"""

import gzip
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from study_records import NOTHING, Effects, synthetic_sweep

from minires.study.claims import verdicts
from minires.study.pretrained_findings import is_pretrained
from minires.study.store import load_sweep, save_rows

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/cells.jsonl.gz"))
SWEEPS = [folder for folder in FOLDERS if not is_pretrained(folder)]  # those have other rows
ALPHA, POINT = 0.05, 0.0005  # of significance; a difference of accuracies that does not matter
SGD_RANGE = (0.15, 0.3)


def lines(folder):
    """The records of a folder of rows, as they stand there."""
    with gzip.open(folder / "cells.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def p_above(differences, than):
    """Wilcoxon's signed ranks, by trying all 2ⁿ signs: the share of sums at least as large."""
    shifted = [round(d - than, 13) for d in differences]
    sizes = sorted(abs(d) for d in shifted if d)
    rank = {}
    for size in set(sizes):  # equal sizes share their ranks
        places = [place for place, other in enumerate(sizes, 1) if other == size]
        rank[size] = sum(places) / len(places)
    ranks = [rank[abs(d)] if d else 0.0 for d in shifted]
    found = sum(math.copysign(r, d) for r, d in zip(ranks, shifted, strict=True))
    sums = [
        sum(sign * r for sign, r in zip(signs, ranks, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(ranks))
    ]
    return sum(total >= found - 1e-9 for total in sums) / len(sums)


def p_below(differences, than):
    return p_above([-d for d in differences], -than)


def middle_half(columns):
    """For each seed the mean of its cells without the lowest and the highest quarter."""
    kept = []
    for cells in columns:
        cut = len(cells) // 4
        middle = sorted(cells)[cut : len(cells) - cut]
        kept.append(sum(middle) / len(middle))
    return kept


def differences(records, first, second):
    """[[first − second of each cell with SGD in both phases] of each seed]; None if one lacks."""
    by_seed = {}
    for record in records:
        if (record["cell"]["optimizer"], record["cell"]["finetune_optimizer"]) != ("sgd", "sgd"):
            continue
        if "methods" not in record:
            return None
        methods, seed = record["methods"], record["cell"]["seed"]
        gain = methods[first]["accuracy"] - methods[second]["accuracy"]
        by_seed.setdefault(seed, []).append(gain)
    if len({len(cells) for cells in by_seed.values()}) != 1:
        return None
    return [by_seed[seed] for seed in sorted(by_seed)]


def holm(p_values):
    order, worst, found = sorted(p_values), 0.0, {}
    for place, p in enumerate(order):
        worst = max(worst, min(1.0, p * (len(order) - place)))
        found.setdefault(p, worst)
    return [found[p] for p in p_values]


def some_cell_disagrees(columns, p_against):
    """Whether a single cell alone, corrected for their number, speaks against the proposition."""
    cells = list(zip(*columns, strict=True))
    return len(cells) > 1 and min(holm([p_against(cell) for cell in cells])) < ALPHA


def outcome(shown, contradicted, mixed):
    """What is shown is not contradicted: a difference may surely be small, and surely not zero."""
    against = zip(shown, holm(contradicted), strict=True)
    if any(pro >= ALPHA and con < ALPHA for pro, con in against):
        return "not supported"
    return "supported" if all(p < ALPHA for p in shown) and not mixed else "inconclusive"


def c1(records):
    """The best ℓ₁ inside the paper's range beats every ℓ₁ outside it."""
    dropout = max(record["cell"]["dropout"] for record in records)
    accuracy = {}
    for record in records:
        cell = record["cell"]
        if cell["l2"] is None and (cell["optimizer"], cell["dropout"]) == ("sgd", dropout):
            if "methods" not in record:
                return None
            rate = accuracy.setdefault(cell["l1"], {})
            rate[cell["seed"]] = record["methods"]["pretrained"]["accuracy"]
    inside = sorted(rate for rate in accuracy if SGD_RANGE[0] <= rate <= SGD_RANGE[1])
    outside = sorted(set(accuracy) - set(inside))
    seeds = sorted(set.intersection(*(set(values) for values in accuracy.values())))
    best = {}
    for seed in seeds:  # what is best is told by the other seeds, so that luck does not count
        others = {r: sum(accuracy[r][s] for s in seeds if s != seed) for r in inside}
        best[seed] = accuracy[max(inside, key=others.get)][seed]
    losses = [[best[seed] - accuracy[rate][seed] for seed in seeds] for rate in outside]
    return outcome([p_above(d, 0) for d in losses], [p_below(d, POINT) for d in losses], False)


def c7(records):
    """Mean model and ensemble of 3 are equivalent: within 0.05 points."""
    columns = differences(records, "ensemble_3", "mean")
    if columns is None:
        return None
    data = middle_half(columns)
    equal = max(p_above(data, -POINT), p_below(data, POINT))
    apart = min(1, 2 * min(p_above(data, 0), p_below(data, 0)))

    def beyond(cell):
        return min(1, 2 * min(p_above(cell, POINT), p_below(cell, -POINT)))

    return outcome([equal], [apart], some_cell_disagrees(columns, beyond))


def c8(records):
    """The ensemble of 10 beats the mean model, by less than 0.1 points."""
    columns = differences(records, "ensemble_10", "mean")
    if columns is None:
        return None
    data, visible = middle_half(columns), 0.001
    return outcome(
        [p_above(data, 0), p_below(data, visible)],
        [p_below(data, 0), p_above(data, visible)],
        some_cell_disagrees(columns, lambda cell: p_below(cell, 0))
        or some_cell_disagrees(columns, lambda cell: p_above(cell, visible)),
    )


JUDGES = {"C1": c1, "C7": c7, "C8": c8}


def judged(folder):
    """{claim: outcome} by the study and by the code above, where that has all it needs."""
    records = lines(folder)
    seeds = {record["cell"]["seed"] for record in records}
    if len(seeds) < 5:
        expected = dict.fromkeys(JUDGES, "inconclusive")
    else:
        expected = {name: judge(records) for name, judge in JUDGES.items()}
    found = {v.claim: v.outcome for v in verdicts(load_sweep(folder)) if v.claim in expected}
    return found, {name: result or found[name] for name, result in expected.items()}, expected


WORLDS = {
    "as the paper says": ({}, ("supported", "supported", "supported")),
    "nothing differs": (asdict(NOTHING), ("not supported", "supported", None)),
    "ten gain much": ({"ensemble_10": 0.3}, ("supported", "supported", "not supported")),
    "three gain much": ({"ensemble_3": 0.2}, ("supported", "not supported", "supported")),
    "noise": ({"method_noise": 1.5, "seed_noise": 0.6}, (None, "inconclusive", None)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_three_verdicts_by_other_code_on_a_made_up_sweep(tmp_path, world):
    changed, outcomes = WORLDS[world]
    save_rows(synthetic_sweep(seeds=7, effects=Effects(**changed)), tmp_path)
    found, expected, independent = judged(tmp_path)
    assert None not in independent.values()
    assert found == expected
    for name, known in zip(JUDGES, outcomes, strict=True):
        assert known in (None, found[name]), name


def test_one_collapsed_run_of_a_seed_does_not_decide(tmp_path):
    sweep = synthetic_sweep(seeds=7)
    for seed in range(7):
        record = [r for r in sweep.records if "mean" in r["methods"]][3 + 51 * seed]
        record["methods"]["ensemble_3"]["accuracy"] -= 0.4
    save_rows(sweep, tmp_path)
    found, expected, _ = judged(tmp_path)
    assert found == expected
    assert found["C7"] == "supported"


def test_a_cell_that_disagrees_in_every_seed_leaves_a_claim_open(tmp_path):
    sweep = synthetic_sweep(seeds=10, l1=(0.15, 0.3), l2=(0.05, 0.25), baselines=False)
    for record in sweep.records:
        cell = record["cell"]
        if (cell["l1"], cell["l2"], cell["dropout"]) == (0.15, 0.05, 0.0):
            record["methods"]["ensemble_3"]["accuracy"] -= 0.4
    save_rows(sweep, tmp_path)
    found, expected, _ = judged(tmp_path)
    assert found == expected
    assert found["C7"] == "inconclusive"


def test_the_best_rate_inside_is_what_the_rates_outside_are_measured_by(tmp_path):
    sweep = synthetic_sweep(seeds=7)
    for record in sweep.records:
        if record["cell"]["l1"] in (0.2, 0.3) and record["cell"]["l2"] is None:
            record["methods"]["pretrained"]["accuracy"] -= 0.1
    save_rows(sweep, tmp_path)
    found, expected, _ = judged(tmp_path)
    assert found == expected
    assert found["C1"] == "supported"


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda folder: folder.name)
def test_three_verdicts_by_other_code_on_the_results(folder):
    found, expected, _ = judged(folder)
    assert found == expected


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda folder: folder.name)
def test_results_are_small_whole_and_say_what_made_them(folder, tmp_path):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
    sweep = load_sweep(folder)
    made = [record["made"] for record in (*sweep.records, *sweep.diverged)]
    assert made
    assert all({"minires", "kernels", "processor", "date"} <= set(each) for each in made)
    save_rows(sweep, tmp_path)
    assert load_sweep(tmp_path) == sweep


def test_rows_are_not_replaced_by_fewer(tmp_path):
    save_rows(synthetic_sweep(seeds=2), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ValueError, match=r"holds \d+ cells that this sweep lacks: name another"):
        save_rows(synthetic_sweep(seeds=1), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    save_rows(synthetic_sweep(seeds=3), tmp_path)
    assert len({row["cell"]["seed"] for row in lines(tmp_path)}) == 3


@pytest.mark.parametrize("holds", ["rows", "cells", "rows without settings"])
def test_rows_are_not_written_over_another_sweep(tmp_path, holds):
    save_rows(synthetic_sweep(seeds=2), tmp_path)
    if holds == "cells":
        (tmp_path / "cells.jsonl.gz").unlink()
        (tmp_path / "cells").mkdir()
        (tmp_path / "cells" / "one.json").write_text("{}")
    if holds != "rows":
        (tmp_path / "sweep.json").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    other = load_sweep(SWEEPS[0])
    with pytest.raises(ValueError, match="holds another sweep: name another folder with --rows"):
        save_rows(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
