"""Which LeNet: the candidates, their inputs, the small sweeps, and what is said of them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from minires import data as data_tools
from minires.commands import cli
from minires.study.cells import Source
from minires.study.experiment import fingerprint
from minires.study.grid import CANDIDATES, OUTSIDE, Candidate
from minires.study.store import Sweep, load_sweep
from minires.study.which_lenet import findings, table

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}
TINY = [
    "sweep", "--profile", "which-lenet", "--data", "glyphs", "--train", "64", "--test", "20",
    "--epochs", "1", "--updates", "2", "--batch", "16", "--workers", "1", "--quiet",
    "--only", "6-16-120-84",
]  # fmt: skip


def test_candidates_differ_from_the_default_in_one_thing():
    default = CANDIDATES[0]
    assert (default.network, default.options, default.inputs) == ("lenet", {}, "[-1, 1]")
    for candidate in CANDIDATES[1:]:
        changed = [
            name
            for name in ("network", "options", "inputs")
            if getattr(candidate, name) != getattr(default, name)
        ]
        assert len(changed) == 1, candidate.name
        assert replace(candidate, name=default.name, **{
            name: getattr(default, name) for name in changed
        }) == default  # fmt: skip


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("slim-1024", 3_274_634),
        ("slim-512", 1_663_370),
        ("20-50-500", 1_256_080),
        ("6-16-120-84", 61_706),
        ("slim-1024-he", 3_274_634),
    ],
)
def test_sizes_by_hand(name, weights):
    """20-50-500: 520 + 25,050 + 7·7·50·500 + 500 + 5,010 for padding "same"."""
    assert BY_NAME[name].model(0.5, (28, 28, 1)).size == weights


def test_cells_are_few():
    cells = Candidate("x").cells()
    assert len(cells) == 8  # two optimizers, two dropouts, before and after
    assert not any(Candidate("x").parts(cell) for cell in cells)
    assert {(c.optimizer, c.finetune_optimizer) for c in cells} == {
        ("sgd", None), ("sgd", "sgd"), ("adam", None), ("adam", "adam")
    }  # fmt: skip
    outside = set(Candidate("x", l1_outside=OUTSIDE).cells()) - set(cells)
    assert {(c.l1, c.dropout, c.is_pretraining) for c in outside} == {
        (0.05, 0.5, True), (0.6, 0.5, True)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "of"),
    [
        ("[-1, 1]", lambda x, train: x / 127.5 - 1),
        ("[0, 1]", lambda x, train: x / 255),
        ("standardised", lambda x, train: (x - train.mean()) / train.std()),
    ],
)
def test_inputs_are_scaled_as_they_say(tmp_path, inputs, of):
    dataset = data_tools.load("glyphs", train=64, test=20, progress=False)
    source = Source(str(tmp_path / inputs), "glyphs", 64, 20, None, fingerprint(dataset), inputs)
    source.share(dataset)
    data = source.data()
    train = dataset.train_images.astype(float)
    np.testing.assert_allclose(data.train_images, of(train, train), atol=1e-5)
    test = dataset.test_images.astype(float)
    np.testing.assert_allclose(data.test_images, of(test, train), atol=1e-5)
    assert data.train_images.dtype == np.float32
    np.testing.assert_array_equal(data.test_labels, dataset.test_labels)
    source.share(dataset)  # again, after a stop: not scaled twice
    np.testing.assert_allclose(np.load(source._file("train_images")), of(train, train), atol=1e-5)


def test_a_worker_that_cannot_see_the_files_scales_them_alike(tmp_path):
    dataset = data_tools.load("glyphs", train=64, test=20, progress=False)
    seen, unseen = (
        Source(str(tmp_path / name), "glyphs", 64, 20, None, fingerprint(dataset), "standardised")
        for name in ("seen", "unseen")
    )
    seen.share(dataset)
    for ours, theirs in zip(unseen.data(), seen.data(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("which")
    assert cli.main([*TINY, "--out", str(out), "--outside"]) == 0
    return out


def test_a_tiny_run(tiny_run):
    (row,) = json.loads((tiny_run / "which-lenet.json").read_text("utf-8"))
    assert row["candidate"] == "6-16-120-84"
    assert row["weights"] == 61_706
    assert row["seeds"] == 1
    assert len(row["scores"]) == 2 * 2 * 7 + 2  # seven methods; two pre-trainings outside
    assert {claim: found["outcome"] for claim, found in row["claims"].items()} == dict.fromkeys(
        ("C1", "C5", "C11"), "inconclusive"
    )
    settings = load_sweep(tiny_run / "6-16-120-84").settings
    assert settings["inputs"] == "[-1, 1]"
    assert settings["l1_outside"] == [0.05, 0.6]
    assert not (tiny_run / "6-16-120-84" / "data").exists()


def test_again_does_nothing_again(tiny_run, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr("minires.study.sweep.run_sweep", never)
    before = (tiny_run / "6-16-120-84" / "sweep.json").stat().st_mtime_ns
    assert cli.main([*TINY, "--out", str(tiny_run), "--outside"]) == 0
    assert (tiny_run / "6-16-120-84" / "sweep.json").stat().st_mtime_ns == before
    assert "6-16-120-84" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [["--outside", "--updates", "3"], ["--dry-run"], []])
def test_a_finished_folder_of_other_settings_is_refused(tiny_run, capsys, changed):
    before = (tiny_run / "which-lenet.json").read_bytes()
    assert cli.main([*TINY, "--out", str(tiny_run), *changed]) == 2
    what = "updates was 2, now 3" if "--updates" in changed else "l1_outside was [0.05, 0.6]"
    assert what in capsys.readouterr().err
    assert (tiny_run / "which-lenet.json").read_bytes() == before


def test_what_is_missing_is_done(tiny_run, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(tiny_run, out)
    next((out / "6-16-120-84" / "cells").glob("*then*")).unlink()
    assert cli.main([*TINY, "--out", str(out), "--outside", "--dry-run"]) == 0
    assert "1 of 10" in capsys.readouterr().out
    assert cli.main([*TINY, "--out", str(out), "--outside"]) == 0
    whole, again = (json.loads((f / "which-lenet.json").read_text()) for f in (tiny_run, out))
    assert again == whole


def test_the_findings_about_other_networks_are_kept(tiny_run, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(tiny_run, out)
    other = [*TINY[:-1], "slim-512", "--out", str(out)]
    assert cli.main([*other, "--outside"]) == 0
    rows = json.loads((out / "which-lenet.json").read_text("utf-8"))
    assert [row["candidate"] for row in rows] == ["slim-512", "6-16-120-84"]
    assert rows[1:] == json.loads((tiny_run / "which-lenet.json").read_text("utf-8"))
    printed = capsys.readouterr().out
    assert "slim-512" in printed
    assert "6-16-120-84" in printed
    assert cli.main([*other, "--outside", "--seeds", "2"]) == 0
    rows = json.loads((out / "which-lenet.json").read_text("utf-8"))
    assert [row["seeds"] for row in rows] == [2, 1]
    assert "\n1 to 2 seeds; percentage points" in capsys.readouterr().out
    third = [*TINY[:-1], "slim-1024", "--out", str(out)]
    assert cli.main(third) == 2  # it would be shown beside sweeps of other settings
    assert "l1_outside was [0.05, 0.6]" in capsys.readouterr().err
    assert cli.main([*third, "--dry-run"]) == 2
    assert not (out / "slim-1024").exists()


@pytest.mark.parametrize("option", [["--outside"], ["--only", "slim-512"]])
def test_its_options_are_for_no_other_profile(tmp_path, capsys, option):
    assert cli.main(["sweep", "--out", str(tmp_path / "out"), *option]) == 2
    assert "--only and --outside are for --profile which-lenet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def made_up(accuracies):
    """A sweep of one seed: {(optimizer, ℓ₁, dropout, method): accuracy}."""
    records = {}
    for (optimizer, l1, dropout, method), accuracy in accuracies.items():
        after = method != "pretrained"
        cell = {
            "optimizer": optimizer, "l1": l1, "dropout": dropout, "seed": 0,
            "finetune_optimizer": optimizer if after else None,
            "l2": (0.15 if optimizer == "sgd" else 1e-3) if after else None,
        }  # fmt: skip
        record = records.setdefault(str(cell), {"cell": cell, "methods": {}})
        record["methods"][method] = {"accuracy": accuracy, "nll": 1 - accuracy}
    settings = {"data": "mnist", "train": 60_000, "batch": 128}
    return Sweep(settings, list(records.values()), [], [])


def test_findings_by_hand():
    sweep = made_up({
        ("sgd", 0.2, 0.5, "pretrained"): 0.987,
        ("sgd", 0.6, 0.5, "pretrained"): 0.984,
        ("sgd", 0.05, 0.5, "pretrained"): 0.981,
        ("sgd", 0.2, 0.5, "finetuned"): 0.990,
        ("sgd", 0.2, 0.0, "finetuned"): 0.992,
        ("sgd", 0.2, 0.5, "mean"): 0.9935,
        ("adam", 1e-3, 0.5, "finetuned"): 0.991,
        ("adam", 1e-3, 0.0, "finetuned"): 0.990,
        ("adam", 1e-3, 0.5, "mean"): 0.993,
        ("adam", 1e-3, 0.0, "mean"): 0.992,
    })  # fmt: skip
    found = findings(BY_NAME["slim-1024"], sweep)
    assert found["best"] == "sgd 0.2, dropout 0.5: mean"
    assert found["reaches"] is True
    c1, c5, c11 = (found["claims"][name] for name in ("C1", "C5", "C11"))
    assert c1["agrees"] is True
    assert c1["points"] == pytest.approx({"0.2 − 0.05": 0.6, "0.2 − 0.6": 0.3})
    assert c5["agrees"] is False
    assert c5["points"] == pytest.approx({"dropout": -0.2})
    assert c11["agrees"] is True
    assert c11["points"] == pytest.approx({"plain below 0.993": 0.2, "mean − plain": 0.2})
    line = table([found]).splitlines()[2]
    assert line.split()[:4] == ["slim-1024", "3,274,634", "99.35", "yes"]
    assert line.split()[4:] == [
        "yes", "+0.60", "+0.30", "no", "-0.20", "yes", "+0.20", "+0.20"
    ]  # fmt: skip


def test_findings_of_nothing():
    found = findings(BY_NAME["slim-512"], made_up({}))
    assert found["best"] is None
    assert found["reaches"] is None
    assert {claim["agrees"] for claim in found["claims"].values()} == {None}
    assert "slim-512" in table([found])
    json.dumps(found, allow_nan=False)
