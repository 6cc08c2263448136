"""The rows of the study in docs/results: whole seeds, enough for the page and for the README."""

import itertools
import re
import statistics

import pytest
from matplotlib import image
from test_pretrained_results import FOLDERS as PRETRAINED
from test_pretrained_results import README, ROOT, flat
from test_results_rows import RESULTS, SWEEPS, lines

from minires.study import figures, pretrained_findings, report
from minires.study.claims import verdicts
from minires.study.grid import PROFILES
from minires.study.store import load_sweep


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda folder: folder.name)
def test_the_rows_hold_whole_seeds(folder):
    cells = [record["cell"] for record in lines(folder)]
    wanted = [cell for cell in PROFILES[folder.name].cells() if cell.seed == 0]
    seeds = {cell["seed"] for cell in cells}
    assert seeds == set(range(len(seeds)))
    assert len(cells) == len(wanted) * len(seeds)


def scores_of(rows, method, lost):
    """{(ℓ₁, ℓ₂, dropout): {seed: accuracy}} of all fine-tuning by SGD after SGD.

    lost   the score of a run that diverged
    """
    table = {}
    for row in rows:
        cell = row["cell"]
        if cell["optimizer"] == cell["finetune_optimizer"] == "sgd":
            found = row["methods"][method]["accuracy"] if "methods" in row else lost
            setting = cell["l1"], cell["l2"], cell["dropout"]
            table.setdefault(setting, {})[cell["seed"]] = found
    return table


@pytest.mark.parametrize("folder", SWEEPS, ids=lambda folder: folder.name)
def test_the_rows_make_the_page(folder):
    sweep = load_sweep(folder)
    page = report.write_page(sweep)
    means, last = (scores_of(lines(folder), name, 0.0) for name in ("mean", "finetuned"))
    assert means
    for setting, seeds in means.items():  # networks that collapsed are left out
        sound = [score for seed, score in seeds.items() if last[setting][seed] > 0.5]
        assert f"{100 * statistics.fmean(sound):.2f}" in page


# --- the README -----------------------------------------------------------------------------

ROW = re.compile(r"^\| (C\d+) \| [^|]+ \| \**([a-z ]+?)\** \| ([^|]+) \| `?([^|`]*)`? \|$", re.M)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d*\.?\d+(?:e[+-]?\d+)?")


def numbers_in(text):
    return NUMBER.findall(text.replace("−", "-").replace(",", ""))


def is_rounded_from(number, others):
    """Whether a number of a sentence is one of others, with fewer digits, or without its sign."""
    digits = len(number.partition(".")[2]) if "e" not in number else 12
    reach = 0.5 * 10.0**-digits + 1e-9
    return any(
        abs(abs(float(number)) - abs(float(other))) <= reach
        and (
            number[0] not in "+-" or (float(number) < 0) == (float(other) < 0) or not float(number)
        )
        for other in others
    )


def test_the_readme_gives_the_verdicts_of_the_rows():
    rows = ROW.findall(README)
    assert [claim for claim, *_ in rows] == [f"C{number}" for number in range(1, 18)]
    found = {
        folder.name: {each.claim: each for each in verdicts(load_sweep(folder))}
        for folder in SWEEPS
    }
    for claim, outcome, numbers, where in rows:
        if claim == "C15":
            assert f"{1_281_167 // 4 // 32:,} batches of 32" in numbers
            continue
        if claim in ("C13", "C14"):
            by_network = [
                each.outcome
                for path in PRETRAINED
                for each in pretrained_findings.verdicts(pretrained_findings.load(path), "accuracy")
                if each.claim == claim
            ]
            assert set(by_network) == {outcome}
            continue
        verdict = found[where][claim]
        assert outcome == verdict.outcome, claim
        text = " ".join([verdict.reason, *map(" ".join, verdict.numbers)])
        said = numbers_in(text)
        assert all(share in text for share in re.findall(r"\d+ of \d+", numbers)), claim
        for number in numbers_in(numbers):
            assert is_rounded_from(number, said), (claim, number)


def mean_score(rows, method, metric, **wanted):
    """The mean over seeds of a method's score in the cells that are wanted."""
    found = [row["methods"] for row in rows if wanted.items() <= row["cell"].items()]
    return statistics.fmean(methods[method][metric] for methods in found)


def sentence_of_the_slopes():
    """What the README says of both methods along ℓ₂."""
    rows = lines(RESULTS / "full")
    cell = {"optimizer": "sgd", "finetune_optimizer": "sgd", "l1": 0.2}
    tuned, mean = (
        [
            f"{100 * mean_score(rows, method, 'accuracy', dropout=0.0, l2=l2, **cell):.2f}"
            for l2 in (0.05, 0.25)
        ]
        for method in ("finetuned", "mean")
    )
    return (
        f"Without dropout, at ℓ₁ .2, plain fine-tuning goes from {tuned[0]} to {tuned[1]} % as ℓ₂ "
        f"rises from .05 to .25, the mean model from {mean[0]} to {mean[1]} %"
    )


def lines_of_baselines():
    """The README's two tables of other methods, from the page's: ℓ₂ .15 whole, the rest short."""
    tables = {
        group["l2"]: group["tables"][0]["rows"]
        for group in report.baselines_of(load_sweep(RESULTS / "full"), {"baselines": []})
    }
    found = [[name, *scores, ece] for name, *scores, _, ece in tables.pop(0.15)]
    for same in zip(*tables.values(), strict=True):
        short = [
            cell.partition(" ")[0]
            for _, accuracy, _, nll, _, _, ece in same
            for cell in (accuracy, nll, ece)
        ]
        found.append([same[0][0], *short])
    return [as_line(cells) for cells in found]


def as_line(cells):
    """A line of a table; the mean model's is bold."""
    bold = "**" if cells[0] == "mean model" else ""
    return f"| {' | '.join(f'{bold}{cell}{bold}' if cell else '' for cell in cells)} |"


def test_the_readme_has_the_tables_of_other_methods():
    for line in lines_of_baselines():
        assert line in README


def test_what_the_readme_says_of_the_rows():
    seeds = {row["cell"]["seed"] for row in lines(RESULTS / "full")}
    assert f"`docs/results/full`: {len(seeds)} of 10 seeds" in README
    assert sentence_of_the_slopes() in flat(README)


def test_what_the_readme_says_of_a_small_network():
    full, lite = (verdicts(load_sweep(RESULTS / name)) for name in ("full", "lite"))
    others = [
        f"{small.claim} is {small.outcome}"
        for small, large in zip(lite, full, strict=True)
        if small.outcome != large.outcome
    ]
    said = re.search(r"A small network differs.*?\n\n", README, re.S)[0]
    assert re.findall(r"C\d+ is (?:supported|not supported|inconclusive)", flat(said)) == others
    rows = lines(RESULTS / "lite")
    last = [row["methods"].get("finetuned", row["methods"]["pretrained"]) for row in rows]
    lost = [scores for scores in last if scores["accuracy"] < 0.5]
    assert f"{len(lost)} of {len(rows)} runs" in flat(said)


def test_the_readmes_figures_are_those_of_the_rows(tmp_path):
    """Not bit for bit: another version of Matplotlib draws a letter a little differently."""
    names = {path.name for path in (ROOT / "docs" / "study").glob("*.png")}
    assert names == set(re.findall(r"docs/study/([\w.-]+\.png)", README))
    drawn = itertools.chain(*figures.draw_all(load_sweep(RESULTS / "full")).values())
    shown = [panel for panel in drawn if f"{panel.name}.png" in names]
    figures.write_pngs({"README": shown}, tmp_path)
    for name in names:
        kept, drawn = (pixels(folder / name) for folder in (ROOT / "docs" / "study", tmp_path))
        high, wide = (min(sizes) for sizes in zip(kept.shape[:2], drawn.shape[:2], strict=True))
        assert abs(kept.shape[0] - drawn.shape[0]) <= 8
        assert abs(kept.shape[1] - drawn.shape[1]) <= 8
        assert abs(kept[:high, :wide] - drawn[:high, :wide]).mean() < 0.03


def pixels(path):
    return image.imread(path)[..., :3]
