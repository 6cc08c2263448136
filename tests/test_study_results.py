"""The rows of the study in docs/results: small, whole seeds, and enough for the page."""

import gzip
import json

import pytest
from test_pretrained_results import README, ROOT, flat

from minires.study import report
from minires.study.grid import PROFILES
from minires.study.store import load_sweep

RESULTS = ROOT / "docs" / "results"
FOLDERS = [RESULTS / name for name in PROFILES if (RESULTS / name).exists()]


def rows_of(folder):
    """The rows as any program can read them."""
    with gzip.open(folder / "cells.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_rows_are_small_and_hold_whole_seeds(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    cells = [record["cell"] for record in rows_of(folder)]
    wanted = [cell for cell in PROFILES[folder.name].cells() if cell.seed == 0]
    seeds = {cell["seed"] for cell in cells}
    assert seeds == set(range(len(seeds)))
    assert len(cells) == len(wanted) * len(seeds)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_rows_make_the_page(folder):
    sweep = load_sweep(folder)
    page = report.write_page(sweep)
    for record in rows_of(folder):
        if record["cell"]["l2"] == 0.25 and record["cell"]["l1"] == 0.3:
            accuracy = record["methods"]["mean"]["accuracy"]
            assert f"{100 * accuracy:.2f}" in page


def test_what_the_readme_says_of_the_first_seed():
    cell = {"optimizer": "sgd", "finetune_optimizer": "sgd", "l1": 0.2, "dropout": 0.0, "seed": 0}

    def accuracy(method, l2):
        wanted = {**cell, "l2": l2}
        (row,) = [row for row in rows_of(RESULTS / "full") if row["cell"] == wanted]
        return f"{100 * row['methods'][method]['accuracy']:.2f}"

    plain, mean = (
        [accuracy(method, l2) for l2 in (0.05, 0.25)] for method in ("finetuned", "mean")
    )
    text = flat(README)
    assert f"plain fine-tuning goes from {plain[0]} to {plain[1]} %" in text
    assert f"the mean model from {mean[0]} to {mean[1]} %" in text
