"""`minires improve`: killed and started again it ends with the same bits; its files are right."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from test_evaluate import SIZE, command, write_network, write_pictures
from test_imagenet import ODD, WORDNET

import minires.onnx
from minires import SGD, Moments
from minires.commands import evaluate, improve, improve_results, improve_training
from minires.data import imagenet
from minires.networks.running_statistics import POLICIES, reestimate_stats
from minires.training import loop

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")

ARRAYS = (
    "theta", "stats", "losses", "moments.first", "moments.offset", "moments.m2",
    "moments_of_stats.offset", "ema.mean", "ema_of_stats.mean",
)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network and 24 pictures of three classes; figures take time: none."""
    monkeypatch.setattr(improve_results, "plot", lambda *arguments: None)
    write_network(tmp_path / "n.onnx")
    write_pictures(tmp_path / "val", each=8)
    return tmp_path


def words(place, out="out", **options):
    """A command line; options replace the usual ones."""
    usual = {"rate": 0.05, "updates": 9, "batch": 5, "members": 2, "holdout": 0.25, "ema": 0.9}
    found = ["improve", place / "n.onnx", "--images", place / "val", "--out", place / out]
    for name, value in (usual | options).items():
        if value is not None:
            found += [f"--{name.replace('_', '-')}", value]
    return [str(word) for word in found]


def checkpoint(place, out="out"):
    with np.load(place / out / improve.CHECKPOINT, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def assert_equal_runs(place, one, other):
    """Every array and every written network of two runs: the same bits."""
    a, b = checkpoint(place, one), checkpoint(place, other)
    assert set(ARRAYS) <= set(a)
    assert set(a) == set(b)
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name
    for name in ("mean.onnx", "member_1.onnx", "member_2.onnx", "moments.npz"):
        assert (place / one / name).read_bytes() == (place / other / name).read_bytes(), name
    results = [json.loads((place / name / "results.json").read_text()) for name in (one, other)]
    assert results[0] == results[1]


# The method


@pytest.mark.parametrize(("optimizer", "classes"), [("sgd", 3), ("adam", 3), ("sgd", 4)])
def test_the_moments_are_those_of_every_update(place, optimizer, classes):
    """The whole run again, in plain steps; with 4 outputs for 3 classes, labels are one higher."""
    write_network(place / "n.onnx", classes=classes)
    told = ["--background"] if classes == 4 else []
    assert command(*words(place, optimizer=optimizer, rate=0.01), *told) == 0
    network = minires.onnx.load(place / "n.onnx")
    pictures = imagenet.load(place / "val")
    background = classes == 4 or None
    examination = evaluate.Examination(network, pictures, "keras", background=background)
    training, held_out = improve.split(24, 0.25, seed=0)
    order = loop.batches(len(training), 5, loop.stream(0, "fine-tuning order"))
    theta, stats = network.theta.copy(), network.stats.copy()
    step = {"sgd": SGD, "adam": minires.Adam}[optimizer](0.01)
    seen, seen_stats = [], []
    for _ in range(9):
        images, labels, _ = next(iter(examination.batches([training[next(order)]])))
        _, gradient = network.loss_and_gradient(theta, images, labels + classes - 3, stats=stats)
        step.step(theta, gradient)
        seen.append(theta.astype(np.float64))
        seen_stats.append(stats.astype(np.float64))
    moments = Moments.load(place / "out" / "moments.npz")
    assert moments.count == 9
    np.testing.assert_allclose(moments.mean, np.mean(seen, axis=0), atol=1e-6)
    np.testing.assert_allclose(moments.variance, np.var(seen, axis=0), rtol=1e-4, atol=1e-12)
    written = minires.onnx.load(place / "out" / "mean.onnx")
    np.testing.assert_array_equal(written.theta, moments.mean)
    np.testing.assert_allclose(written.stats, np.mean(seen_stats, axis=0), atol=1e-6)
    assert not np.array_equal(written.theta, network.theta)
    assert len(held_out) == 6
    weights = 0.9 ** np.arange(8, -1, -1)
    ema = np.average(seen, axis=0, weights=weights)
    np.testing.assert_allclose(checkpoint(place)["ema.mean"], ema, atol=1e-6)


def test_every_epoch_shows_every_picture_once_in_a_new_order(place, monkeypatch):
    """18 pictures to train on in batches of 6: an epoch is 3 updates, whatever the seed."""
    plain, shown = evaluate.Examination.batches, {}

    def batches(self, plan, pictures=None):
        for images, labels, indices in plain(self, plan, pictures):
            shown.setdefault(seed, []).append(indices)
            yield images, labels, indices

    monkeypatch.setattr(evaluate.Examination, "batches", batches)
    for seed in (3, 4):
        command(*words(place, out=f"{seed}", batch=6, updates=12, members=0, seed=seed,
                       batch_norm="last"))  # fmt: skip
    training = {seed: improve.split(24, 0.25, seed)[0] for seed in shown}
    epochs = {seed: np.reshape(shown[seed][:12], (4, 18)) for seed in shown}
    for seed, found in epochs.items():
        for epoch in found:
            np.testing.assert_array_equal(np.sort(epoch), training[seed])
        assert len({epoch.tobytes() for epoch in found}) == 4
    places = [np.searchsorted(training[seed], epochs[seed][0]) for seed in epochs]
    assert not np.array_equal(*places)


def test_every_update_drops_other_units(place, monkeypatch):
    """At rate 0, with the same batch at every update, only dropout can make losses differ."""
    monkeypatch.setattr(
        improve_training, "batches", lambda count, *rest: itertools.repeat(np.arange(count))
    )
    for dropout in (False, True):
        write_network(place / "n.onnx", dropout=dropout)
        command(*words(place, out=f"{dropout}", rate=0, batch=18, updates=5, members=0))
        losses = json.loads((place / f"{dropout}" / "results.json").read_text())["losses"]
        if dropout:
            assert np.diff(np.sort(losses)).min() > 1e-3
        else:
            np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_held_out_pictures_are_never_trained_on():
    training, held_out = improve.split(50, 0.3, seed=1)
    assert len(held_out) == 15
    np.testing.assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(50))
    assert not np.array_equal(held_out, improve.split(50, 0.3, seed=2)[1])
    for share in (0, 1, 0.001):
        with pytest.raises(ValueError, match="leaves nothing on one side"):
            improve.split(50, share, seed=0)


def test_recomputed_statistics_are_the_mean_over_the_batches(place):
    """Against the convolution written out: its output's mean and variance, batch by batch."""
    network = minires.onnx.load(place / "n.onnx")
    pictures = imagenet.load(place / "val")
    examination = evaluate.Examination(network, pictures, "keras")
    theta = network.theta * np.float32(1.3)
    plan = [np.arange(0, 24, 3), np.arange(1, 24, 3)]
    kernel = network.arrays(theta)["kernel"].astype(np.float64)
    expected = {"mean": 0, "variance": 0}
    for images, _, _ in examination.batches(plan):
        padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (0, 1), (0, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        outputs = np.einsum("ncijuv,ocuv->noij", windows[:, :, ::2, ::2], kernel)
        assert outputs.shape[2] == SIZE // 2
        expected["mean"] += outputs.mean(axis=(0, 2, 3)) / 2
        expected["variance"] += outputs.var(axis=(0, 2, 3), ddof=1) / 2
    before = theta.copy()
    batches = (images for images, _, _ in examination.batches(plan))
    found = reestimate_stats(network, theta, batches)
    np.testing.assert_array_equal(theta, before)
    for name, value in expected.items():
        np.testing.assert_allclose(network.arrays(None, found)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", POLICIES)
def test_each_choice_of_statistics_reaches_the_file(place, choice):
    command(*words(place, batch_norm=choice, updates=4))
    network = minires.onnx.load(place / "n.onnx")
    mean = minires.onnx.load(place / "out" / "mean.onnx")
    state = checkpoint(place)
    if choice == "last":
        expected = state["stats"]
    elif choice == "averaged":
        expected = state["moments_of_stats.first"] + state["moments_of_stats.offset"]
    else:
        examination = evaluate.Examination(network, imagenet.load(place / "val"), "keras")
        order = loop.batches(18, 5, loop.stream(0, "statistics order"))
        plan = [improve.split(24, 0.25, 0)[0][next(order)] for _ in range(3)]
        batches = (images for images, _, _ in examination.batches(plan))
        expected = reestimate_stats(network, mean.theta, batches)
    np.testing.assert_allclose(mean.stats, expected, rtol=1e-6)
    rows = json.loads((place / "out" / "results.json").read_text())["networks"]
    others = [f"mean, statistics {other}" for other in POLICIES if other != choice]
    assert [row["name"] for row in rows] == [
        "base", "fine-tuned", "EMA", "mean", *others, "ensemble of 2"
    ]  # fmt: skip


def test_results_are_those_of_the_written_files(place, capsys):
    """The table, the file and `minires evaluate` agree; differences are paired."""
    command(*words(place))
    printed = capsys.readouterr().out
    results = json.loads((place / "out" / "results.json").read_text())
    rows = {row["name"]: row for row in results["networks"]}
    pictures = imagenet.load(place / "val")
    _, held_out = improve.split(24, 0.25, 0)
    found, drawn = {}, []
    for name in ("mean", "member_1", "member_2"):
        network = minires.onnx.load(place / "out" / f"{name}.onnx")
        examination = evaluate.Examination(network, pictures, "keras")
        images, labels, _ = next(iter(examination.batches([held_out])))
        probabilities = examination.predict(network.theta, images, network.stats)
        found[name] = evaluate.Outcomes.of(probabilities, labels)
        drawn.append(probabilities)
    base = minires.onnx.load(place / "n.onnx")
    base = evaluate.Outcomes.of(base.predict(base.theta, images, base.stats), labels)
    mean = np.mean(drawn[1:], axis=0, dtype=np.float64)
    found["ensemble of 2"] = evaluate.Outcomes.of(mean, labels)
    state = checkpoint(place)
    ema = (state[f"{name}.mean"].astype(np.float32) for name in ("ema", "ema_of_stats"))
    for name, (theta, stats) in {
        "EMA": ema, "fine-tuned": (state["theta"], state["stats"])
    }.items():  # fmt: skip
        found[name] = evaluate.Outcomes.of(network.predict(theta, images, stats), labels)
    for name in ("mean", "ensemble of 2", "EMA", "fine-tuned"):
        expected = evaluate.summarize(found[name])
        for key in ("images", "top1", "nll", "nll_error"):
            assert rows[name][key] == pytest.approx(expected[key], rel=1e-5), (name, key)
        difference = found[name].nll - base.nll
        assert rows[name]["nll_difference"] == pytest.approx(difference.mean(), rel=1e-3)
        assert rows[name]["nll_difference_error"] == pytest.approx(
            difference.std(ddof=1) / np.sqrt(6), rel=1e-3
        )
    assert f"{rows['mean']['nll']:.4f} ± {rows['mean']['nll_error']:.4f}" in printed
    assert "6 held-out pictures" in printed
    assert len(results["losses"]) == 9


def test_the_figure_is_drawn(place, monkeypatch):
    monkeypatch.undo()
    command(*words(place))
    assert (place / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_written_mean_runs_in_another_runtime(place):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    command(*words(place))
    path = place / "out" / "mean.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state = checkpoint(place)
    network = minires.onnx.load(place / "n.onnx")
    examination = evaluate.Examination(network, imagenet.load(place / "val"), "keras")
    images, _, _ = next(iter(examination.batches([np.arange(24)])))
    theta = Moments.load(place / "out" / "moments.npz").mean
    stats = state["moments_of_stats.first"] + state["moments_of_stats.offset"]
    found = network.logits(theta, images, stats.astype(np.float32))
    expected = session.run(None, {"x": np.ascontiguousarray(images)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


# Going on


class Killed(Exception):
    pass


def test_stopped_anywhere_it_ends_with_the_same_bits(place, monkeypatch):
    write_network(place / "n.onnx", dropout=True)
    command(*words(place, out="whole", optimizer="adam", rate=0.01))
    plain = improve.State.record
    for stops_after in (2, 6):

        def record(self, loss, stops_after=stops_after):
            # Within an update, before anything of it was kept.
            if self.updates == stops_after:
                raise Killed
            plain(self, loss)

        monkeypatch.setattr(improve.State, "record", record)
        with pytest.raises(Killed):
            command(*words(place, optimizer="adam", rate=0.01, checkpoint_every=0))
        assert checkpoint(place)["updates"] == stops_after
    monkeypatch.setattr(improve.State, "record", plain)
    command(*words(place, optimizer="adam", rate=0.01))
    assert_equal_runs(place, "whole", "out")


@pytest.mark.parametrize("place_of_it", ["gradient", "record"])
def test_after_control_c_the_same_command_goes_on(place, monkeypatch, capsys, place_of_it):
    """Between two updates the checkpoint is of the last one; within one, it is the last kept."""
    command(*words(place, out="whole"))
    owner = minires.onnx.Network if place_of_it == "gradient" else improve.State
    name = "loss_and_gradient" if place_of_it == "gradient" else "record"
    plain, calls = getattr(owner, name), []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        result = plain(self, *arguments, **options)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    capsys.readouterr()
    every = 180 if place_of_it == "gradient" else 0
    assert command(*words(place, checkpoint_every=every)) == 130
    assert "stopped: the same command goes on" in capsys.readouterr().err
    assert checkpoint(place)["updates"] == 4
    monkeypatch.setattr(owner, name, plain)
    assert command(*words(place)) == 0
    assert "going on after update 4" in capsys.readouterr().err
    assert_equal_runs(place, "whole", "out")


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(place):
    """Kill -9 wherever it happens to be, in a process of its own."""
    command(*words(place, out="whole", updates=120))
    program = (
        "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); "
        "from test_evaluate import command; sys.exit(command(*sys.argv[1:]))"
    )
    folders = ":".join([os.path.dirname(__file__), *filter(None, sys.path)])
    line = [sys.executable, "-c", program, folders, *words(place, updates=120, checkpoint_every=0)]
    path = place / "out" / improve.CHECKPOINT
    done = 0
    for _ in range(3):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not path.exists() or checkpoint(place)["updates"] < done + 15:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done = int(checkpoint(place)["updates"])
        assert done < 120
    assert subprocess.run(line, capture_output=True, check=True, text=True).stdout.startswith("net")
    assert_equal_runs(place, "whole", "out")


def test_more_updates_go_on_from_fewer(place):
    for name in ("empty.JPEG", "cut.JPEG", "grey.JPEG"):
        (place / "val" / WORDNET[1] / name).write_bytes(ODD[name][1])
    command(*words(place, out="whole"))
    command(*words(place, updates=4))
    command(*words(place, updates=9))
    assert_equal_runs(place, "whole", "out")
    with pytest.raises(ValueError, match="has made 9 updates already, --updates is 5"):
        command(*words(place, updates=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.1}, "rate was 0.05, now 0.1"),
        ({"seed": 7}, "seed was 0, now 7"),
        ({"batch": 4, "optimizer": "adam"}, "batch was 5, now 4; optimizer was sgd, now adam"),
        ({"holdout": 0.5}, "pictures was"),
        ({"preset": "tf-slim"}, "preset was keras, now tf-slim"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(place, options, message):
    command(*words(place, updates=2))
    with pytest.raises(ValueError, match=message):
        command(*words(place, **options))


def test_a_checkpoint_of_other_weights_or_pictures_is_refused(place):
    command(*words(place, updates=2))
    (place / "val" / WORDNET[0] / "new.png").write_bytes(ODD["good.JPEG"][1])
    with pytest.raises(ValueError, match="pictures was"):
        command(*words(place))
    (place / "val" / WORDNET[0] / "new.png").unlink()
    write_network(place / "n.onnx", seed=1)
    with pytest.raises(ValueError, match="model was"):
        command(*words(place))


def test_a_checkpoint_remembers_what_was_left_out(place):
    for name in ("empty.JPEG", "cut.JPEG", "grey.JPEG"):
        (place / "val" / WORDNET[1] / name).write_bytes(ODD[name][1])
    command(*words(place, updates=4))
    saved = checkpoint(place)
    state = improve.State(saved["theta"], saved["stats"], SGD(0.05), 0.9, imagenet.Notes())
    path = place / "out" / improve.CHECKPOINT
    state.load(path, json.loads(str(saved["settings"])))
    names = {name.split("/")[1] for name, _, _ in state.notes.rows()}
    assert names
    assert names <= {"empty.JPEG", "cut.JPEG", "grey.JPEG"}


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_refused(place, damage):
    command(*words(place, updates=2))
    path = place / "out" / improve.CHECKPOINT
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        np.savez(path, theta=np.zeros(3))
    with pytest.raises(ValueError, match=r"checkpoint\.npz .*(damaged|lacks)"):
        command(*words(place))


# What can go wrong


def test_a_rate_too_high_says_so_and_keeps_the_last_checkpoint(place):
    command(*words(place, updates=2))
    before = checkpoint(place)["theta"]
    with pytest.raises(FloatingPointError, match=r"lower the rate \(now 1e\+30\)"):
        command(*words(place, out="hot", rate=1e30))
    np.testing.assert_array_equal(checkpoint(place)["theta"], before)
    assert not (place / "hot" / "mean.onnx").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(place, monkeypatch):
    monkeypatch.setattr(improve.State, "go_on", None)
    (place / "file").write_text("")
    for name in ("file", "file/inner"):
        with pytest.raises(OSError, match=rf"{name}: nothing can be written there .*--out"):
            command(*words(place, out=name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1}, "--rate is -1.0, expected a number from 0 up"),
        ({"rate": "nan"}, "--rate is nan"),
        ({"rate": "inf"}, "--rate is inf"),
        ({"holdout": 1.5}, "--holdout 1.5 of 24 pictures leaves nothing .*--test-images"),
        ({"members": -1}, "--members and --seed must be 0 or more"),
        ({"updates": 0}, "--updates is 0"),
        ({"batch": 19}, "--batch is 19, but there are 18 pictures to train on"),
    ],
)
def test_settings_out_of_range_are_named(place, options, message):
    with pytest.raises(ValueError, match=message):
        command(*words(place, **options))
    assert not (place / "out").exists()


def test_broken_pictures_are_left_out_and_named(place, capsys):
    for name in ("empty.JPEG", "cut.JPEG", "grey.JPEG"):
        (place / "val" / WORDNET[1] / name).write_bytes(ODD[name][1])
    assert command(*words(place)) == 0
    assert "2 left out (1 empty, 1 corrupt), 1 converted (1 grey)" in capsys.readouterr().err


@pytest.mark.parametrize("choice", ["averaged", "recomputed"])
def test_broken_pictures_in_a_graph_of_fixed_batch(place, capsys, choice):
    """Each update sees a whole batch: another picture stands in for one that is broken."""
    for name in ("empty.JPEG", "cut.JPEG"):
        (place / "val" / WORDNET[1] / name).write_bytes(ODD[name][1])
    write_network(place / "n.onnx", batch=5)
    assert command(*words(place, updates=15, batch_norm=choice)) == 0
    assert "2 left out (1 empty, 1 corrupt)" in capsys.readouterr().err
    fixed = json.loads((place / "out" / "results.json").read_text())
    write_network(place / "n.onnx")
    command(*words(place, out="free", updates=15, batch_norm=choice))
    free = json.loads((place / "free" / "results.json").read_text())
    assert len(fixed["losses"]) == 15
    # The runs agree up to the first broken picture, which one of them replaces.
    same = np.isclose(fixed["losses"], free["losses"], rtol=1e-5)
    assert same[: np.argmin(same)].all()
    assert not same.all()
    write_network(place / "n.onnx", batch=5)
    with pytest.raises(
        ValueError, match=r"--batch is 4, but .* takes 5 pictures at a time: --batch 5,"
    ):
        command(*words(place, batch=4))


def test_recomputing_statistics_asks_for_no_gradient(place, monkeypatch):
    monkeypatch.setattr(minires.onnx.Network, "loss_and_gradient", None)
    network = minires.onnx.load(place / "n.onnx")
    examination = evaluate.Examination(network, imagenet.load(place / "val"), "keras")
    batches = (images for images, _, _ in examination.batches([np.arange(9)]))
    stats = reestimate_stats(network, network.theta, batches)
    assert not np.array_equal(stats, network.stats)


def test_other_pictures_to_compare_on(place, capsys):
    write_pictures(place / "test", each=5)
    command(*words(place, holdout=None, test_images=place / "test"))
    printed = capsys.readouterr()
    assert "15 held-out pictures" in printed.out
    assert "24 pictures to train on" in printed.err
    network = minires.onnx.load(place / "n.onnx")
    shown = evaluate.Examination(network, imagenet.load(place / "test"), "keras")
    expected = evaluate.summarize(evaluate.examine(shown, quiet=True)[0])
    rows = json.loads((place / "out" / "results.json").read_text())["networks"]
    assert rows[0]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    for path in sorted((place / "test").glob("*/*")):  # the same without class folders
        path.rename(place / "test" / f"{path.parent.name}-{path.name}")
        with suppress(OSError):
            path.parent.rmdir()
    named = [f"{path.name} {path.name.partition('-')[0]}" for path in (place / "test").iterdir()]
    (place / "labels").write_text("\n".join(named))
    options = SimpleNamespace(synsets=None, labels=place / "labels", images=place / "val")
    with pytest.raises(ValueError, match=r"class folder: .*; --labels is for .*val alone"):
        evaluate.other_pictures(options, place / "test", sorted(WORDNET))
    options.labels = None
    with pytest.raises(ValueError, match="lies in no class folder"):
        evaluate.other_pictures(options, place / "test", sorted(WORDNET))
    write_pictures(place / "fewer", each=1, names=WORDNET[:2])
    with pytest.raises(ValueError, match="holds other classes"):
        command(*words(place, holdout=None, test_images=place / "fewer"))


def test_without_batch_norm_there_are_no_statistics_to_choose(place, capsys):
    model = onnx.load(place / "n.onnx")
    graph = model.graph
    norm = next(node for node in graph.node if node.op_type == "BatchNormalization")
    norm.op_type = "Identity"
    del norm.input[1:], norm.attribute[:]
    onnx.save(model, place / "n.onnx")
    assert command(*words(place, members=0)) == 0
    assert "statistics" not in capsys.readouterr().out
    rows = json.loads((place / "out" / "results.json").read_text())["networks"]
    assert [row["name"] for row in rows] == ["base", "fine-tuned", "EMA", "mean"]


@pytest.mark.parametrize(
    ("difference", "error", "worse"), [(0.3, 0.1, True), (0.19, 0.1, False), (-1.0, 0.1, False)]
)
def test_a_mean_that_is_worse_is_told_from_one_that_may_be_chance(difference, error, worse):
    base = {"name": "base", "nll_difference": 0.0, "nll_difference_error": 0.0}
    mean = {"name": "mean", "nll_difference": difference, "nll_difference_error": error}
    assert improve_results.is_worse([base, mean]) is worse


def test_a_mean_that_is_worse_is_said(place, monkeypatch, capsys):
    command(*words(place, updates=2))
    assert "lower rate" not in capsys.readouterr().out
    monkeypatch.setattr(improve_results, "is_worse", lambda rows: True)
    command(*words(place, updates=2, out="other"))
    assert "a lower rate than 0.05" in capsys.readouterr().out


def test_an_ensemble_can_be_as_wrong_as_its_members_and_no_more(monkeypatch):
    sure = np.array([[1, 0], [0, 1]], np.float32)  # of the wrong class, and of the right one
    found = {"base": sure, "member 1": sure.copy(), "member 2": sure.copy()}
    monkeypatch.setattr(
        improve_results, "predictions", lambda *_, **__: [(np.array([1, 1]), found, None)]
    )
    examination = mock.Mock(outcomes=evaluate.Outcomes.of)
    outcomes = improve_results.compare(examination, {}, None, np.arange(2), 2)
    np.testing.assert_array_equal(outcomes["ensemble of 2"].nll, outcomes["base"].nll)


def test_members_of_an_earlier_command_do_not_stay(place, tmp_path, capsys):
    for members in (3, 2):
        command(*words(place, tmp_path / "out", members=members))
        found = {path.name for path in (tmp_path / "out").glob("member_*.onnx")}
        assert found == {f"member_{number}.onnx" for number in range(1, members + 1)}
