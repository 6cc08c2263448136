"""Which LeNet: the candidates, their inputs, the small sweeps, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minires import data as data_tools
from minires.study import identify
from minires.study.experiment import fingerprint
from minires.study.identify import CANDIDATES, Candidate, Rescaled, findings, main, table
from minires.study.store import Sweep, load_sweep

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}
TINY = [
    "--data", "glyphs", "--train", "64", "--test", "20", "--epochs", "1", "--updates", "2",
    "--batch", "16", "--workers", "1", "--quiet", "--only", "6-16-120-84",
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
    outside = set(Candidate("x", l1_outside=identify.OUTSIDE).cells()) - set(cells)
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
    source = Rescaled(
        str(tmp_path / inputs), "glyphs", 64, 20, None, fingerprint(dataset), inputs=inputs
    )
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


def test_no_other_scale_is_taken_instead(tmp_path):
    with pytest.raises(FileNotFoundError, match="shared images are gone"):
        Rescaled(str(tmp_path), "glyphs", 64, 20, None, "0" * 64, inputs="[0, 1]").data()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("identify")
    assert main([*TINY, "--out", str(out), "--outside"]) == 0
    return out


def test_a_tiny_run(tiny_run):
    (row,) = json.loads((tiny_run / "identify.json").read_text("utf-8"))
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

    monkeypatch.setattr(identify, "run_sweep", never)
    before = (tiny_run / "6-16-120-84" / "results.jsonl").read_bytes()
    assert main([*TINY, "--out", str(tiny_run), "--outside"]) == 0
    assert (tiny_run / "6-16-120-84" / "results.jsonl").read_bytes() == before
    assert "6-16-120-84" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [["--outside", "--updates", "3"], ["--dry-run"], []])
def test_a_finished_folder_of_other_settings_is_refused(tiny_run, capsys, changed):
    before = (tiny_run / "identify.json").read_bytes()
    assert main([*TINY, "--out", str(tiny_run), *changed]) == 2
    what = "updates was 2, now 3" if "--updates" in changed else "l1_outside was [0.05, 0.6]"
    assert what in capsys.readouterr().err
    assert (tiny_run / "identify.json").read_bytes() == before


def test_what_is_missing_is_done(tiny_run, tmp_path, capsys):
    folder = tmp_path / "6-16-120-84"
    (folder / "pretrained").mkdir(parents=True)
    for name in ("sweep.json", "results.jsonl"):
        (folder / name).write_bytes((tiny_run / "6-16-120-84" / name).read_bytes())
    for path in (tiny_run / "6-16-120-84" / "pretrained").iterdir():
        (folder / "pretrained" / path.name).write_bytes(path.read_bytes())
    lines = (folder / "results.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "results.jsonl").write_bytes(b"".join(lines[:-1]))
    assert main([*TINY, "--out", str(tmp_path), "--outside", "--dry-run"]) == 0
    assert "  1 of  10 cells to do" in capsys.readouterr().out
    assert main([*TINY, "--out", str(tmp_path), "--outside"]) == 0
    whole, again = (json.loads((out / "identify.json").read_text()) for out in (tiny_run, tmp_path))
    assert again == whole


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
    line = table([found]).splitlines()[1]
    assert line.split()[:4] == ["slim-1024", "3,274,634", "99.35", "yes"]
    assert "yes +0.60 +0.30" in line
    assert "no -0.20" in line


def test_findings_of_nothing():
    found = findings(BY_NAME["slim-512"], made_up({}))
    assert found["best"] is None
    assert found["reaches"] is None
    assert {claim["agrees"] for claim in found["claims"].values()} == {None}
    assert "slim-512" in table([found])
    json.dumps(found, allow_nan=False)
