"""The rows of the study in docs/results: small, whole seeds, and enough for the page."""

import gzip
import json
from pathlib import Path

import pytest

from minires.study import report
from minires.study.grid import PROFILES
from minires.study.store import load_sweep

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
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
