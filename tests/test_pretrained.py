"""The pre-trained study: cells that go on after a kill, true to their updates; sound verdicts."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from test_evaluate import SIZE, write_network, write_pictures
from test_imagenet import WORDNET
from test_study_report import Page

import minires.onnx
from minires import EMA, SGD, Moments, metrics
from minires.commands import cli, evaluate
from minires.data import imagenet
from minires.study import pretrained, pretrained_findings, pretrained_report
from minires.study.pretrained import Cell
from minires.study.pretrained_findings import Difference, Findings, ahead, load, verdicts
from minires.training import loop

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ("predicted", "nll", "confidence")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network of five outputs and pictures of three of its classes."""
    place = tmp_path_factory.mktemp("pretrained")
    write_network(place / "n.onnx", classes=5)
    write_pictures(place / "train", each=8)
    write_pictures(place / "test", each=5)
    write_pictures(place / "choose", each=4)
    names = [WORDNET[0], "n00000001", WORDNET[1], "n00000002", WORDNET[2]]
    (place / "synsets.txt").write_text("\n".join(names))
    return place


def words(place, out, *more, **options):
    """A command line; options replace the usual ones."""
    usual = {
        "model": place / "n.onnx", "images": place / "train", "test_images": place / "test",
        "choose_images": place / "choose", "synsets": place / "synsets.txt",
        "rates": "0.01,0.1", "updates": 7, "batch": 5, "seeds": 2, "out": place / out,
    }  # fmt: skip
    found = ["sweep", "--profile", "pretrained", "--among", *more]
    for name, value in (usual | options).items():
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


@pytest.fixture(scope="module")
def folder(place):
    """A finished sweep."""
    assert cli.main(words(place, "sweep")) == 0
    return place / "sweep"


@pytest.fixture(scope="module")
def found(folder):
    return load(folder)


# A cell, again in plain steps


def again(place, seed, rate, updates=7, batch=5):
    """A cell's networks: {name: (θ, statistics)}, computed with nothing of the study."""
    network = minires.onnx.load(place / "n.onnx")
    pictures = imagenet.load(place / "train", place / "synsets.txt")
    theta, own_stats, optimizer = network.theta.copy(), network.stats.copy(), SGD(rate)
    moments, averages = Moments(theta.shape), {"ema": EMA(0.99), "stats": EMA(0.99)}
    seen, seen_stats = [], []
    examination = evaluate.Examination(network, pictures, "keras", among=True)
    key = loop.STREAMS.index("fine-tuning order"), 0
    order = loop.batches(
        24, batch, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    )
    for _, chosen in zip(range(updates), order, strict=False):
        images, labels, _ = next(iter(examination.batches([chosen])))
        places = np.searchsorted([0, 2, 4], labels)
        _, gradient = network.loss_and_gradient(
            theta, images, places, stats=own_stats, classes=np.array([0, 2, 4])
        )
        optimizer.step(theta, gradient)
        seen.append(theta.copy())
        seen_stats.append(own_stats.copy())
        moments.update(theta)
        averages["ema"].update(theta)
        averages["stats"].update(own_stats)
    mean, mean_stats = (
        np.mean(each, axis=0, dtype=np.float64).astype(np.float32) for each in (seen, seen_stats)
    )
    key = loop.STREAMS.index("sampled networks"), 0
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return {
        "finetuned": [(theta, own_stats)],
        "ema": [(averages["ema"].mean, averages["stats"].mean)],
        "mean": [(mean, mean_stats)],
        "mean_last": [(mean, own_stats)],
        "ensemble_3": [(member, mean_stats) for member in moments.sample(3, rng)],
    }


def test_a_cell_is_what_plain_steps_give(place, found):
    test = imagenet.load(place / "test", place / "synsets.txt")
    network = minires.onnx.load(place / "n.onnx")
    examination = evaluate.Examination(network, test, "keras", among=True)
    ((images, labels, _),) = examination.batches([np.arange(15)])
    places = np.searchsorted([0, 2, 4], labels)
    np.testing.assert_array_equal(found.labels, places)
    for name, networks in again(place, 1, 0.1).items():
        each = [examination.predict(theta, images, stats) for theta, stats in networks]
        expected = np.mean(each, axis=0, dtype=np.float64)
        written = found.pictures(name, 0.1, 1)
        np.testing.assert_array_equal(written["predicted"], expected.argmax(axis=1), name)
        own = expected[np.arange(15), places]
        np.testing.assert_allclose(written["nll"], -np.log(own), rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(written["confidence"], expected.max(axis=1), atol=1e-3)


def test_recomputed_statistics_are_those_of_training_batches(place, found):
    network = minires.onnx.load(place / "n.onnx")
    written = minires.onnx.load(place / "sweep" / "means" / f"{Cell(0, 0.1).key}_mean.onnx")
    assert not np.array_equal(written.theta, network.theta)
    last, averaged = (
        np.array(found.pictures(name, 0.1, 0)["nll"]) for name in ("mean_last", "mean")
    )
    recomputed = np.array(found.pictures("mean_recomputed", 0.1, 0)["nll"])
    assert not np.allclose(recomputed, averaged, rtol=1e-3)
    assert not np.allclose(recomputed, last, rtol=1e-3)


def test_the_base_is_what_evaluate_says(place, found, capsys):
    own = ["--images", place / "test", "--synsets", place / "synsets.txt", "--among", "--json"]
    assert cli.main([str(word) for word in ("evaluate", place / "n.onnx", *own)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert found.score("base", None, "accuracy")[0] == pytest.approx(scores["top1"], abs=1e-12)
    assert found.score("base", None, "nll")[0] == pytest.approx(scores["nll"], rel=1e-3)
    assert found.score("base", None, "ece")[0] == pytest.approx(scores["ece"], abs=2e-3)


def test_the_written_mean_is_the_mean_also_in_another_runtime(place, found):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = place / "sweep" / "means" / f"{Cell(1, 0.1).key}_mean.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    test = imagenet.load(place / "test", place / "synsets.txt")
    examination = evaluate.Examination(minires.onnx.load(path), test, "keras")
    ((images, _, _),) = examination.batches([np.arange(15)])
    logits = session.run(None, {"x": np.ascontiguousarray(images)})[0][:, [0, 2, 4]]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    nll = -np.log(probabilities[np.arange(15), found.labels])
    np.testing.assert_allclose(found.pictures("mean", 0.1, 1)["nll"], nll, rtol=1e-3)


def test_choosing_pictures_are_others_than_those_compared_on(place, found):
    """The scores that choose a rate are those of the folder of choosing pictures."""
    choose = imagenet.load(place / "choose", place / "synsets.txt")
    network = minires.onnx.load(place / "n.onnx")
    examination = evaluate.Examination(network, choose, "keras", among=True)
    ((images, labels, _),) = examination.batches([np.arange(12)])
    ((theta, own),) = again(place, 0, 0.01)["finetuned"]
    probabilities = examination.predict(theta, images, own).astype(np.float64)
    expected = metrics.nll(probabilities, np.searchsorted([0, 2, 4], labels))
    record = found.records[Cell(0, 0.01)]
    assert record["choose"]["finetuned"]["nll"] == pytest.approx(expected, rel=1e-5)


# Stopped and started again


def test_killed_inside_a_cell_it_goes_on_and_ends_with_the_same_bits(place, folder):
    """Saved after every update, killed by force at some of them, until it is done."""
    out = place / "killed"
    code = (
        "import sys, time\n"
        "from minires.commands import cli\n"
        "from minires.study import pretrained\n"
        "pretrained.SAVE_EVERY = 0\n"
        "update = pretrained.Tuning.update\n"
        "def slow(*arguments):\n"
        "    time.sleep(0.02)\n"
        "    update(*arguments)\n"
        "pretrained.Tuning.update = slow\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, *words(place, "killed")]
    kills = 0
    for wanted in ("unfinished_seed_0_rate_0.01.npz", "unfinished_seed_1_rate_0.1.npz"):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / wanted).exists():
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert cli.main(words(place, "killed")) == 0
    for path in sorted((folder / "cells").glob("*.json")):
        one, other = (json.loads((f / "cells" / path.name).read_text()) for f in (folder, out))
        for record in (one, other):
            record.pop("seconds")
            record.pop("made", None)
        assert one == other, path.name
    for path in (folder / "means").glob("*.onnx"):
        assert path.read_bytes() == (out / "means" / path.name).read_bytes()
    assert not list(out.glob("unfinished*"))
    assert not list((out / "data").glob("*.npy"))


def test_more_seeds_and_rates_are_more_of_the_same(place, folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*")}
    assert cli.main(words(place, "sweep", "--dry-run", seeds=3, rates="0.01,0.1,0.3")) == 0
    assert "5 of 10 cells to do" in capsys.readouterr().out
    assert cli.main(words(place, "sweep")) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*")}
    assert before == after


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"updates": 8}, "updates was 7, now 8"),
        ({"batch": 4}, "batch was 5, now 4"),
        ({"choose_images": None}, "images was"),
        ({"preset": "torchvision"}, "preset was"),
    ],
)
def test_other_settings_are_refused(place, folder, capsys, changed, message):
    assert cli.main(words(place, "sweep", **changed)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--profile", "smoke", "--rates", "0.1"], "--rates: for --profile pretrained only"),
        (["--profile", "smoke", "--among"], "--among: for --profile pretrained only"),
        (["--profile", "pretrained", "--images", "a"], "needs --model and --test-images"),
        (["--profile", "pretrained", "--epochs", "2"], "--epochs: for the other profiles only"),
        (
            ["--profile", "pretrained", "--model", "m", "--images", "a", "--test-images", "b",
             "--rates", "0.1,-1"],
            "--rates are [0.1, -1.0]",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(capsys, line, message):
    assert cli.main(["sweep", *line]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_cell_is_named(place, folder, tmp_path, capsys):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    cell = tmp_path / "copy" / "cells" / "seed_0_rate_0.1.json"
    record = json.loads(cell.read_text())
    for damage in (
        {"sweep": "another"}, {"pictures": 3}, {"labels": [0]}, {"diverged": "both"},
        {"cell": {"seed": 0, "rate": "0.1"}},
    ):  # fmt: skip
        cell.write_text(json.dumps(record | damage))
        with pytest.raises(ValueError, match=re.escape(str(cell))):
            load(tmp_path / "copy")
    record["pictures"]["mean"]["nll"].pop()
    cell.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="unequal lengths"):
        load(tmp_path / "copy")


def test_a_rate_at_which_the_loss_becomes_infinite_is_recorded_and_not_scored(place, capsys):
    line = words(place, "lost", rates="0.01,1e30", seeds=1)
    assert cli.main(line) == 0
    found = load(place / "lost")
    assert "the loss is" in found.diverged[Cell(0, 1e30)]
    assert found.rates == [0.01]
    page = pretrained_report.write_page(found, pretrained_report.draw_all(found))
    assert "seed_0_rate_1e+30 has no scores" in page


def test_decoded_pictures_give_the_bits_of_the_usual_way(place, tmp_path):
    pictures = imagenet.load(place / "train", place / "synsets.txt")
    for name in ("keras", "keras-caffe", "torchvision", "tf-slim"):
        preparation = imagenet.preparation(name)
        notes = imagenet.Notes()
        pixels, used = pretrained.decode(
            tmp_path / name / "p.npy", pictures, preparation, SIZE, notes
        )
        (batch,) = imagenet.batches(pictures, [np.arange(24)], name, SIZE)
        np.testing.assert_array_equal(preparation.scaled(pixels), batch.images, name)
        np.testing.assert_array_equal(used, np.arange(24))
        assert pixels.dtype == (np.float32 if name == "tf-slim" else np.uint8)


def test_pictures_that_cannot_be_used_are_left_out(place, tmp_path):
    shutil.copytree(place / "train", tmp_path / "train")
    (tmp_path / "train" / WORDNET[0] / "0.png").write_bytes(b"no picture")
    pictures, notes = imagenet.load(tmp_path / "train"), imagenet.Notes()
    pixels, used = pretrained.decode(
        tmp_path / "p.npy", pictures, imagenet.preparation("keras"), SIZE, notes
    )
    assert len(pixels) == 23
    lost = [name.endswith(f"{WORDNET[0]}/0.png") for name in pictures.names].index(True)
    assert list(used) == [index for index in range(24) if index != lost]
    assert notes.skipped == 1
    (batch,) = imagenet.batches(pictures, [np.arange(24)], "keras", SIZE)
    scaled = imagenet.preparation("keras").scaled(pixels)
    np.testing.assert_array_equal(scaled, batch.images)


def test_pictures_that_become_unreadable_between_two_commands_are_noticed(place, tmp_path, capsys):
    """The names are the same, and scores of other pictures would be compared with the first."""
    shutil.copytree(place / "test", tmp_path / "test")
    line = words(place, tmp_path / "sweep", seeds=1, rates="0.1", test_images=tmp_path / "test")
    assert cli.main(line) == 0
    picture = next(iter((tmp_path / "test" / WORDNET[0]).iterdir()))
    content = picture.read_bytes()
    picture.write_bytes(b"no picture")
    capsys.readouterr()
    line[line.index("--seeds") + 1] = "2"
    assert cli.main(line) == 2
    told = capsys.readouterr().err
    assert "test was '15 of 15 (" in told
    assert "now '14 of 15 (" in told
    assert picture.name in told
    assert list(load(tmp_path / "sweep").records) == [Cell(0, 0.1)]
    picture.write_bytes(content)  # mended
    assert cli.main(line) == 0
    assert list(load(tmp_path / "sweep").records) == [Cell(0, 0.1), Cell(1, 0.1)]


def test_a_full_disk_is_told_before_pixels_are_written(place, tmp_path, monkeypatch):
    def full(file, start, size):
        assert size > 24 * SIZE * SIZE * 3
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    pictures = imagenet.load(place / "train", place / "synsets.txt")
    with pytest.raises(OSError, match=r"p\.npy\.part: No space left on device: make room"):
        pretrained.decode(
            tmp_path / "p.npy", pictures, imagenet.preparation("keras"), SIZE, imagenet.Notes()
        )
    assert list(tmp_path.iterdir()) == []


# What was found


def synthetic(gains, pictures=400, seed=0, choose=True, rates=(0.01, 0.1)):
    """Findings in which each method errs at its own rate: gains {(method, rate, seed): NLL}."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=pictures)
    hard = rng.normal(size=pictures)

    def numbers(level):
        own = 1 / (1 + np.exp(hard + level + 0.3 * rng.normal(size=pictures)))
        right = own > 0.4
        return {
            "predicted": np.where(right, labels, (labels + 1) % 10).tolist(),
            "nll": (-np.log(own)).tolist(),
            "confidence": np.maximum(own, 0.5).tolist(),
        }

    def record(rate, number):
        methods = ("finetuned", "mean", "ema", "ensemble_3", "ensemble_10")
        found = {name: numbers(gains.get((name, rate, number), 0.0)) for name in methods}
        chosen = {
            name: {
                "accuracy": float(np.mean(np.array(each["predicted"]) == labels)),
                "nll": float(np.mean(each["nll"])),
            }
            for name, each in found.items()
        }
        return {
            "cell": {"seed": number, "rate": rate}, "pictures": found, "choose": chosen,
            "losses": [1.0], "seconds": {"updates": 1.0, "comparing": 1.0},
        }  # fmt: skip

    seeds = sorted({key[2] for key in gains if key != "base"}) or [0]
    images = {"train": 1000, "test": pictures} | ({"choose": pictures} if choose else {})
    settings = {
        "profile": "pretrained", "model": "n.onnx", "model_sha256": "0", "weights": 10,
        "statistics": 0, "folders": dict.fromkeys(images, "folder"), "images": images,
        "classes": [str(n) for n in range(10)], "outputs": 1000, "among": True, "size": 32,
        "updates": 100, "batch": 32,
    }  # fmt: skip
    made = dict.fromkeys(("processor", "date", "kernels", "minires", "numpy"), "x")
    base = {
        "cell": {"seed": None, "rate": None}, "labels": labels.tolist(), "choose": {},
        "pictures": {"base": numbers(gains.get("base", 0.0))},
        "made": made,
    }  # fmt: skip
    records = {Cell(n, rate): record(rate, n) for n in seeds for rate in rates}
    return Findings(settings, base, records, {})


def levels(tuned, mean, seeds=3, rates=(0.01, 0.1)):
    """Levels of error: the same for every seed and rate."""
    return {
        (name, rate, number): level
        for name, level in (("finetuned", tuned), ("mean", mean))
        for rate in rates
        for number in range(seeds)
    }


def outcomes(found, metric):
    return {verdict.claim: verdict.outcome for verdict in verdicts(found, metric)}


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize(
    ("tuned", "mean", "c13", "c14"),
    [
        (-0.5, -1.5, "supported", "supported"),
        (0.5, -1.0, "supported", "not supported"),  # fine-tuning harms
        (-1.0, 0.5, "not supported", "not supported"),
        (-1.0, -1.0, "inconclusive", "inconclusive"),  # the mean is fine-tuning's equal
        (0.0, 0.0, "inconclusive", "inconclusive"),
    ],
)
def test_verdicts_follow_what_was_put_in(metric, tuned, mean, c13, c14):
    found = synthetic(levels(tuned, mean))
    assert outcomes(found, metric) == {"C13": c13, "C14": c14, "C15": "supported"}


def test_one_seed_that_says_the_opposite_makes_it_inconclusive():
    gains = levels(-0.5, -1.5)
    for rate in (0.01, 0.1):
        gains["mean", rate, 2] = -0.2  # behind fine-tuning, which is at −0.5
    found = synthetic(gains)
    reasons = {verdict.claim: verdict for verdict in verdicts(found, "nll")}
    assert reasons["C13"].outcome == "inconclusive"
    assert "1 of 3 seeds with the opposite sign" in reasons["C13"].reason


def test_one_seed_that_says_the_opposite_does_not_let_the_others_contradict():
    gains = levels(-0.5, 0.5)
    for rate in (0.01, 0.1):
        gains["mean", rate, 2] = -1.0  # two seeds are worse than the base, this one is better
    found = synthetic(gains)
    reasons = {verdict.claim: verdict for verdict in verdicts(found, "nll")}
    assert reasons["C13"].outcome == "inconclusive"
    assert "1 of 3 seeds with the opposite sign" in reasons["C13"].reason


def test_one_rate_without_a_gain_is_enough_against_all_cases():
    gains = levels(-0.5, -1.5)
    for number in range(3):
        gains["mean", 0.1, number] = -0.1
    assert outcomes(synthetic(gains), "nll") == {
        "C13": "supported", "C14": "not supported", "C15": "supported",
    }  # fmt: skip


def test_differences_are_student_and_mcnemar_over_pictures():
    rng = np.random.default_rng(1)
    gain = rng.integers(-1, 2, size=(3, 500)).astype(float)
    found = Difference.of(gain, "accuracy")
    over = gain.mean(axis=0)
    expected = stats.ttest_1samp(over, 0)
    assert found.mean == pytest.approx(over.mean())
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.by_seed == pytest.approx(gain.mean(axis=1))
    for p, row in zip(found.mcnemar, gain, strict=True):
        first, second = int((row == 1).sum()), int((row == -1).sum())
        assert p == pytest.approx(stats.binomtest(first, first + second).pvalue)
    assert found.p_above + found.p_below == pytest.approx(1)
    assert Difference.of(np.abs(gain), "accuracy").p_above < 1e-6
    assert Difference.of(-np.abs(gain), "nll").p_above > 1 - 1e-6
    nothing = Difference.of(np.zeros((1, 500)), "accuracy")
    assert (nothing.p, nothing.mean, nothing.mcnemar) == (1.0, 0.0, [1.0])


def test_a_false_alarm_is_as_rare_as_promised():
    """Two methods that are equally good: 5 % of 400 tests, one-sided, and not 20 %."""
    alarms = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shared = rng.exponential(size=200)
        gain = (shared * rng.normal(size=(2, 200))).astype(float)
        alarms += Difference.of(gain, "nll").p_above < 0.05
    assert 8 <= alarms <= 36


def test_an_nll_that_falls_is_a_gain_and_is_written_with_a_minus():
    found = synthetic(levels(-0.5, -1.5))
    part = ahead(found, "nll", "better", ("mean", 0.1), ("finetuned", 0.1))
    assert part.pro < 1e-6
    assert part.found.startswith("NLL −")
    low, high = (float(x.replace("−", "-")) for x in re.findall(r"[−+][\d.]+", part.found)[1:])
    assert low < high < 0
    (text,) = (text for _, text in part.numbers())
    assert text.count("−") >= 6  # mean, both ends, three seeds


def test_what_the_interval_does_not_show_has_its_one_sided_p():
    """At p = 0.07, two-sided, the interval holds 0, and the proposition is shown all the same."""
    noise = np.resize([1.0, -1.0], 200)
    for size, told in ((0.13, "; one-sided p = 0.034"), (0.3, None), (0.0, None)):
        found = SimpleNamespace(
            seeds=lambda *rates: [0], gain=lambda *pair, size=size: size + noise[None], labels=noise
        )
        part = ahead(found, "nll", "better", ("mean", 0.1), ("finetuned", 0.1))
        assert (part.pro < 0.05) == (size > 0)
        assert told in part.found if told else "one-sided" not in part.found


def test_the_best_rate_is_chosen_on_other_pictures_where_there_are_any():
    gains = levels(0.0, 0.0) | {("mean", 0.01, n): -1.0 for n in range(3)}
    found = synthetic(gains)
    assert found.best_rate("mean", "accuracy") == found.best_rate("mean", "nll") == 0.01
    for cell, record in found.records.items():  # what the test pictures say does not count
        record["choose"]["mean"] = {"accuracy": cell.rate, "nll": 1 - cell.rate}
    assert found.best_rate("mean", "accuracy") == found.best_rate("mean", "nll") == 0.1
    images = {name: n for name, n in found.settings["images"].items() if name != "choose"}
    found = replace(found, settings=found.settings | {"images": images})
    assert found.best_rate("mean", "accuracy") == found.best_rate("mean", "nll") == 0.01


def test_only_seeds_that_have_both_rates_are_compared():
    found = synthetic(levels(-0.5, -1.0))
    del found.records[Cell(1, 0.1)]
    assert found.seeds(0.01, 0.1) == [0, 2]
    assert found.seeds(0.01, None) == [0, 1, 2]
    assert found.gain("nll", ("mean", 0.01), ("finetuned", 0.1)).shape == (2, 400)
    assert found.gain("nll", ("mean", 0.1), ("base", None)).shape == (2, 400)


def test_rows_give_the_same_page_and_are_the_same_bytes(folder, tmp_path):
    rows = tmp_path / "rows"
    assert cli.main(["report", str(folder), "--rows", str(rows)]) == 0
    assert {path.name for path in rows.iterdir()} == {"sweep.json", "cells.jsonl.gz"}
    one, other = load(folder), load(rows)
    assert one == other
    pages = [pretrained_report.write_page(f, pretrained_report.draw_all(f)) for f in (one, other)]
    assert pages[0] == pages[1]
    first = (rows / "cells.jsonl.gz").read_bytes()
    assert cli.main(["report", str(rows), "--rows", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "cells.jsonl.gz").read_bytes() == first


def test_the_page_is_whole_and_says_what_differs_from_the_paper(folder, tmp_path, capsys):
    assert (
        cli.main(["report", str(folder), "--png", str(tmp_path), "--out", str(tmp_path / "p")]) == 0
    )
    text = (tmp_path / "p").read_text("utf-8").replace("\u00a0", " ")
    page = Page(text)
    for key in ("claims", "sweep", "figure", "cells"):
        assert any(a.get("id") == key for a in page.all("section"))
    assert "in the paper 10,000 updates, 0.25 of a pass over 1,281,167" in text
    assert "3 classes compete, of the 5 outputs" in text
    assert len(page.all("svg")) > 8
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"pretrained-accuracy.png", "pretrained-nll-minus-finetuned.png"} <= names


def test_the_figure_shows_the_numbers(found):
    panels = pretrained_report.draw_all(found)
    (axes,) = panels["figure"][0].figure.axes
    lines = {line.get_color(): line for line in axes.lines}
    base = 100 * found.score("base", None, "accuracy")[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [base, base])
    mean = [100 * found.score("mean", rate, "accuracy").mean() for rate in found.rates]
    np.testing.assert_allclose(lines[pretrained_report.COLOURS["mean"]].get_ydata(), mean)
    (axes,) = panels["differences"][1].figure.axes  # NLL minus fine-tuning
    mean = [
        (found.score("mean", rate, "nll") - found.score("finetuned", rate, "nll")).mean()
        for rate in found.rates
    ]
    lines = {line.get_color(): line for line in axes.lines}
    np.testing.assert_allclose(lines[pretrained_report.COLOURS["mean"]].get_ydata(), mean)


def test_the_table_is_what_the_pictures_say(found):
    rows = pretrained_findings.table(found)
    row = next(row for row in rows if row[:2] == ["0.1", "mean model"])
    accuracy = found.score("mean", 0.1, "accuracy").mean()
    assert row[2] == f"{100 * accuracy:.2f}"
    gain = accuracy - found.score("base", None, "accuracy").mean()
    assert row[3].replace("−", "-").startswith(f"{100 * gain:+.2f}")
    change = found.score("mean", 0.1, "nll").mean() - found.score("finetuned", 0.1, "nll").mean()
    assert row[7].replace("−", "-").startswith(f"{change:+.4f}")
    assert len(rows) == 1 + 2 * (len(found.methods) - 1)


def test_a_sweep_goes_on_from_its_rows(place, folder, tmp_path, capsys):
    rows = tmp_path / "rows"
    assert cli.main(["report", str(folder), "--rows", str(rows)]) == 0
    assert cli.main(words(place, rows, "--dry-run", seeds=3)) == 0
    assert "2 of 7 cells to do" in capsys.readouterr().out
    (rows / "unfinished_seed_0_rate_0.1.npz.123.part").write_text("left behind")
    assert cli.main(words(place, rows, seeds=2)) == 0
    assert not list(rows.glob("*.part"))
    assert load(rows) == load(folder)
    other = load(folder)
    other.settings["updates"] = 8
    with pytest.raises(ValueError, match="another sweep"):
        pretrained_findings.save_rows(other, rows)
    fewer = load(folder)
    fewer.records.pop(next(iter(fewer.records)))
    with pytest.raises(ValueError, match="holds 1 cell that this sweep lacks"):
        pretrained_findings.save_rows(fewer, rows)
    assert load(rows) == load(folder)


def test_a_batch_of_more_pictures_than_there_are_is_refused(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(words(place, out, batch=25, updates=None)) == 2
    assert "--batch is 25, but there are only 24 pictures" in capsys.readouterr().err
    assert not list(out.glob("*.json"))


def test_only_what_is_missing_must_fit_on_the_disk(folder, monkeypatch):
    from minires.arrays import limits
    from minires.commands import pretrained as command

    asked = []
    monkeypatch.setattr(limits, "check_disk", lambda *numbers: asked.append(numbers[1:4]))
    settings = json.loads((folder / "sweep.json").read_text())
    for preset in ("keras", "tf-slim"):
        command.check_space(folder, settings, [1, 2], preset)
    (shared, each, count), (wide, *_) = asked
    pixels = 3 * settings["size"] ** 2 * sum(settings["images"].values())
    assert wide - shared == 3 * pixels  # float32 instead of bytes
    assert count == 2
    assert each > 0


def test_the_page_s_command_is_the_sweep_s(place, found):
    """Parsed again, it asks for the same settings."""
    out = Path("runs/my results")
    command = shlex.split(pretrained_report.command(found, out))
    assert command[:1] == ["minires"]
    assert "…" in command  # --synsets: five outputs, three classes
    command.remove("…")
    given = cli.parser().parse_args(command[1:])
    assert (given.out, given.preset, given.among) == (out, "keras", True)
    assert (given.updates, given.batch, given.seeds, given.rates) == (7, 5, 2, [0.01, 0.1])
    other = {**found.settings, "preset": "Preparation(…)", "classes": ["a"] * 5}
    assert "…" in pretrained_report.command(replace(found, settings=other))
    other["preset"] = "keras"
    assert "…" not in pretrained_report.command(replace(found, settings=other))
