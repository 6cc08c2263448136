"""The README's tables of `minires run` are those of the rows in docs/results."""

import numpy as np
import pytest
from test_pretrained_results import README as PRINTED
from test_pretrained_results import ROOT, flat

from minires.arrays.files import load_json

FOLDERS = sorted((ROOT / "docs" / "results").glob("run-*"))
README = flat(PRINTED.replace("**", ""))
NAMES = {
    "pretrained": "pre-trained",
    "finetuned": "fine-tuned",
    "mean": "mean model",
    "mean averaged": "mean model, statistics averaged too",
    "mean recomputed": "mean model, statistics recomputed",
    "mean last": "mean model, statistics of the last update",
    "draw": "1 sampled network",
    "ensemble 3": "ensemble of 3",
    "ensemble 10": "ensemble of 10",
    "ensemble 10 recomputed": "ensemble of 10, recomputed",
}


def scores(folder):
    """{method: {"accuracy": (S,) in percent, "nll": (S,)}}."""
    found = {}
    for record in load_json(folder / "results.json")["records"]:
        members = str(record["members"]) if record["method"] == "ensemble" else ""
        parts = record["method"], members, record.get("batch_norm", "")
        found.setdefault(" ".join(filter(None, parts)), []).append(record)
    for method, records in found.items():
        records.sort(key=lambda record: record["seed"])
        found[method] = {
            "accuracy": 100 * np.array([record["accuracy"] for record in records]),
            "nll": np.array([record["nll"] for record in records]),
        }
    return found


def line_of(found, method):
    """A line of a table of the README."""
    cells = []
    for metric, digits in (("accuracy", 2), ("nll", 4)):
        values = found[method][metric]
        gain = values - found["finetuned"][metric]
        cells.append(f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}")
        cells.append(f"{gain.mean():+.{digits}f} ± {gain.std(ddof=1):.{digits}f}")
        if method == "finetuned":
            cells[-1] = ""
    numbers = " | ".join(cells).replace("-", "−")
    return flat(f"| {NAMES[method]} | {numbers} |")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_readme_says_what_the_rows_say(folder):
    found = scores(folder)
    lines = [line_of(found, method) for method in found if method in NAMES]
    assert len(lines) >= 5
    missing = [line for line in lines if line not in README]
    assert not missing, "\n".join(missing)


def test_the_sentences_about_lenet_are_true():
    found = scores(ROOT / "docs" / "results" / "run-lenet")
    mean, finetuned = found["mean"], found["finetuned"]
    assert (mean["nll"] < finetuned["nll"]).all()
    assert (mean["accuracy"] > finetuned["accuracy"]).tolist() == [True, True, False]


def test_the_sentences_about_mobilenet_are_true():
    found = scores(ROOT / "docs" / "results" / "run-mobilenet-v2")
    images = {
        policy: 100 * (found[f"mean {policy}"]["accuracy"] - found["finetuned"]["accuracy"])
        for policy in ("averaged", "recomputed", "last")
    }
    gains = np.concatenate([images["averaged"], images["recomputed"]])
    assert f"by {gains.min():.0f} to {gains.max():.0f} images" in README
    for policy in ("averaged", "recomputed"):
        assert (found[f"mean {policy}"]["nll"] < found["finetuned"]["nll"]).all()
    assert (images["last"] < 0).all()
