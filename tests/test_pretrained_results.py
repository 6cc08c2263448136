"""The README's numbers of the pre-trained study are those of the rows in docs/results."""

import re
from pathlib import Path

import pytest

from minires.arrays.results import check
from minires.study.figures import number
from minires.study.pretrained_findings import METRICS, Difference, load, verdicts
from minires.study.pretrained_report import draw_all, write_page

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted((ROOT / "docs" / "results").glob("pretrained-*"))
README = (ROOT / "README.md").read_text("utf-8")


def name(folder):
    return folder.name


def line_of(found, rate):
    """A line of a table of the README: what was found at a rate."""
    cells = [number(rate)]
    for metric, digits, methods in (
        ("accuracy", 2, ("finetuned", "ema", "mean", "ensemble_10")),
        ("nll", 4, ("finetuned", "ema", "mean", "ensemble_10")),
    ):
        factor = 100 if metric == "accuracy" else 1
        for method in methods:
            cells.append(f"{factor * found.score(method, rate, metric).mean():.{digits}f}")
    for other in (("finetuned", rate), ("base", None)):
        difference = Difference.of(found.gain("nll", ("mean", rate), other), "nll")
        half = (difference.high - difference.low) / 2
        cells.append(f"{-difference.mean:+.4f} ± {half:.4f}".replace("-", "−"))
    return f"| {' | '.join(cells)} |"


def base_of(found):
    """The base in words."""
    accuracy, nll = (found.score("base", None, metric)[0] for metric in METRICS)
    return f"base: {100 * accuracy:.2f} %, NLL {nll:.4f}"


def seeds_of(found):
    """How many seeds every rate has; and which rates have more."""
    counts = {rate: len(found.seeds(rate)) for rate in found.rates}
    least = min(counts.values())
    more = [number(rate) for rate, count in counts.items() if count > least]
    text = f"{least} seed" + "s" * (least != 1)
    return text + (f" (one more at ℓ₂ {', '.join(more)})" if more else "")


def hours_of(found):
    seconds = sum(sum(record["seconds"].values()) for record in found.records.values())
    return f"{seconds / 3600:.1f} hours"


def verdict_line(found, claim):
    """A line of the table of verdicts."""
    words = [
        next(v.outcome for v in verdicts(found, metric) if v.claim == claim) for metric in METRICS
    ]
    return f"| {' | '.join([claim, found.settings['model'], *words])} |"


def flat(text):
    """Text without line breaks, as a reader sees it."""
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_readme_says_what_the_rows_say(folder):
    found, text = load(folder), flat(README)
    for rate in found.rates:
        assert line_of(found, rate) in text, line_of(found, rate)
    assert base_of(found) in text, base_of(found)
    for claim in ("C13", "C14"):
        assert verdict_line(found, claim) in text, verdict_line(found, claim)
    updates = f"{found.settings['updates']} updates"
    paragraphs = [flat(paragraph) for paragraph in README.split("\n\n")]
    about = next(p for p in paragraphs if base_of(found) in p and updates in p)
    assert seeds_of(found) in about, seeds_of(found)
    assert hours_of(found) in about, hours_of(found)


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_rows_are_small_and_make_the_page(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    found = load(folder)
    page = write_page(found, draw_all(found), folder)
    assert "Figures 3 and 4" in page
    check(folder, found.base["made"], {"processor": str, "kernels": str, "*": str})


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_wrong_number_would_be_seen(folder):
    """The lines are compared digit by digit: one that is off by its last digit is not there."""
    found = load(folder)
    line = line_of(found, found.rates[0])
    last = re.search(r"(\d)(?=\D*$)", line)
    changed = line[: last.start()] + str((int(last[0]) + 1) % 10) + line[last.end() :]
    assert changed not in flat(README)


def test_the_sentences_about_the_tables_are_true():
    """What the README says in words below its tables."""
    first, second, quarter = (
        load(ROOT / "docs/results" / f"pretrained-mobilenet-{k}")
        for k in ("v1", "v2", "v2-quarter")
    )

    def nll(found, method):
        return [found.score(method, rate, "nll").mean() for rate in found.rates]

    assert nll(quarter, "finetuned") == sorted(nll(quarter, "finetuned"))
    base = quarter.score("base", None, "nll")[0]
    below = [
        rate
        for rate, value in zip(quarter.rates, nll(quarter, "mean"), strict=True)
        if value < base
    ]
    assert below[-1] / below[0] > 10
    assert max(nll(second, "mean")) < base < nll(second, "finetuned")[-1]
    gains = [
        Difference.of(second.gain("nll", ("mean", rate), ("finetuned", rate)), "nll")
        for rate in second.rates
    ]
    assert [gain.low > 0 or gain.high < 0 for gain in gains] == [False] * 4 + [True]
    assert f"{gains[-1].mean:.3f} ± {(gains[-1].high - gains[-1].low) / 2:.3f}" in flat(README)

    def behind(found):
        return [ema > mean for ema, mean in zip(nll(found, "ema"), nll(found, "mean"), strict=True)]

    assert (behind(second), behind(first)) == ([True] * 5, [True] * 2 + [False] * 3)
    averaged, recomputed = nll(first, "mean"), nll(first, "mean_recomputed")
    better = [a < r - 0.0005 for a, r in zip(averaged, recomputed, strict=True)]
    assert all(better)
    outcomes = [
        v.outcome for f in (first, second, quarter) for m in METRICS for v in verdicts(f, m)[:2]
    ]
    assert set(outcomes) == {"inconclusive"}

    small = load(ROOT / "docs/results/pretrained-inception-small")
    assert nll(small, "finetuned") == sorted(nll(small, "finetuned"), reverse=True)
    base = small.score("base", None, "nll")[0]
    for tuned, mean in zip(nll(small, "finetuned"), nll(small, "mean"), strict=True):
        assert tuned < mean < base
