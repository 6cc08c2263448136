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


def sentences_of_full():
    """What the README says of the paper's own network, from as many seeds as there are."""
    rows = lines(RESULTS / "full")
    cell = {"optimizer": "sgd", "finetune_optimizer": "sgd", "l1": 0.2}
    tuned, mean = (
        [
            f"{100 * mean_score(rows, method, 'accuracy', dropout=0.0, l2=l2, **cell):.2f}"
            for l2 in (0.05, 0.25)
        ]
        for method in ("finetuned", "mean")
    )
    nll = [
        f"{mean_score(rows, method, 'nll', dropout=0.5, l2=0.25, **cell):.4f}"
        for method in ("finetuned", "mean", "ema", "decayed")
    ]
    seeds = len({row["cell"]["seed"] for row in rows})
    return seeds, (
        f"without dropout plain fine-tuning goes from {tuned[0]} to {tuned[1]} % as ℓ₂ rises from "
        f".05 to .25, the mean model from {mean[0]} to {mean[1]} %. With dropout and ℓ₂ .25 the "
        f"NLL is {nll[0]} for the fine-tuned network, {nll[1]} for the mean model, {nll[2]} for "
        f"the moving average and {nll[3]} with a decayed rate"
    )


def lines_of_baselines(folder):
    """The page's table of other methods, as the README has it."""
    (group,) = report.baselines_of(load_sweep(folder), {"baselines": []})
    (table,) = group["tables"]
    found = []
    for name, *scores, _, ece in table["rows"]:
        bold = "**" if name == "mean model" else ""
        cells = (f"{bold}{cell}{bold}" if cell else "" for cell in (name, *scores, ece))
        found.append(f"| {' | '.join(cells)} |")
    return found


def test_the_readme_has_the_table_of_other_methods():
    for line in lines_of_baselines(RESULTS / "lite"):
        assert line in README
    rows = lines(RESULTS / "lite")
    last = [row["methods"].get("finetuned", row["methods"]["pretrained"]) for row in rows]
    lost = [scores for scores in last if scores["accuracy"] < 0.5]
    assert f"{len(lost)} of {len(rows)} runs did" in README


def test_what_the_readme_says_of_the_papers_own_network():
    seeds, text = sentences_of_full()
    assert text in flat(README)
    assert f"`docs/results/full`: {seeds} of 10 seeds" in README


def test_the_readmes_figures_are_those_of_the_rows(tmp_path):
    """Not bit for bit: another version of Matplotlib draws a letter a little differently."""
    names = {path.name for path in (ROOT / "docs" / "study").glob("*.png")}
    assert names == set(re.findall(r"docs/study/([\w.-]+\.png)", README))
    drawn = itertools.chain(*figures.draw_all(load_sweep(RESULTS / "lite")).values())
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
