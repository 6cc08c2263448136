"""`minires run` and `minires info`, from the command line to the files they leave."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import minires
from minires import arrays, reestimate_stats
from minires import data as data_tools
from minires.arrays import limits
from minires.arrays.files import load_arrays, load_json, save_arrays
from minires.commands import cli, run
from minires.kernels import kernels_in_use
from minires.networks import NETWORKS
from minires.networks.layers import BatchNorm
from minires.resampling.moments import Moments
from minires.study import experiment
from minires.study import experiment_figure as figures
from minires.study.experiment import Config, Folder, open_folder
from minires.training import loop
from minires.training.optimizers import SGD, Adam

ROOT = Path(__file__).resolve().parent.parent
PICTURE = "figure.png"
pytestmark = pytest.mark.usefixtures("own_cache")
TINY = [
    "run", "--train", "256", "--test", "64", "--epochs", "1", "--updates", "4", "--batch", "32",
    "--network", "lenet_classic", "--members", "4", "--seed", "5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """What runs in this process leaves an empty picture: to draw it would take the longest."""
    monkeypatch.setattr(figures, "draw_folder", lambda folder, *_: folder.file(PICTURE).touch())


@pytest.fixture(scope="module")
def finished(own_cache, tmp_path_factory):
    """An uninterrupted run of two seeds: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "deep" / "folder"
    done = subprocess.run(
        [sys.executable, "-m", "minires", *TINY, "--seeds", "2", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return out, done.stdout, done.stderr


def main(capsys, *arguments):
    """The exit code, and what came out."""
    code = cli.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# --- what a run leaves --------------------------------------------------------------------


def test_the_table_and_nothing_else_is_on_stdout(finished):
    out, stdout, stderr = finished
    records = load_json(out / "results.json")["records"]
    assert stdout == experiment.table(records) + "\n"
    assert "%|" not in stderr, "a progress bar, off a terminal"
    assert "\r" not in stderr
    lines = stderr.splitlines()
    assert len(lines) == 3
    assert "61,706 weights" in lines[0]
    assert lines[1].endswith(f"results, weights and figure.png are in {out}")
    assert lines[2].startswith(f"next: open the picture {out / 'figure.png'}; give --seeds 3")


def test_who_has_three_seeds_is_not_told_to_take_three():
    assert "--seeds 3" in run._what_next(experiment.Config(seeds=2))
    assert "minires sweep" in run._what_next(experiment.Config(seeds=3))


def test_the_files_of_a_run(finished):
    out, _, _ = finished
    stages = [
        f"seed_{seed}_{name}"
        for seed in (5, 6)
        for name in ("pretrained.npz", "finetuned.npz", "moments.npz", "records.json")
    ]
    assert set(os.listdir(out)) == {"config.json", "results.json", "figure.png", *stages}


def test_results_json_is_exactly_what_is_promised(finished):
    out, _, _ = finished
    results = load_json(out / "results.json")
    assert set(results) == {"config", "records"}
    kept = load_json(out / "config.json")
    assert re.fullmatch("[0-9a-f]{64}", kept.pop("data_sha256"))
    assert kept.pop("kernels") == kernels_in_use()
    assert kept.pop("format") == 2
    assert results["config"] == kept
    expected = {
        "network": "lenet_classic", "data": "glyphs", "train": 256, "test": 64, "epochs": 1,
        "updates": 4, "batch": 32, "members": 4, "seed": 5, "seeds": 2, "l1": 0.2, "l2": 0.25,
    }  # fmt: skip
    assert expected.items() <= results["config"].items()
    rows = [(r["seed"], r["method"], r["members"]) for r in results["records"]]
    assert rows == [
        (seed, method, members)
        for seed in (5, 6)
        for method, members in [
            ("pretrained", 1), ("finetuned", 1), ("mean", 1), ("draw", 1),
            ("ensemble", 3), ("ensemble", 4),
        ]
    ]  # fmt: skip
    for record in results["records"]:
        assert set(record) == {"seed", "method", "members", "accuracy", "nll", "brier", "ece"}
        assert 0 <= record["accuracy"] <= 1
        assert record["accuracy"] * 64 == round(record["accuracy"] * 64)
        assert 0 < record["nll"] < 10
        assert 0 < record["brier"] < 2
        assert 0 <= record["ece"] <= 1


def test_the_figure_is_a_png(finished):
    out, _, _ = finished
    content = (out / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.rstrip().endswith(b"IEND\xaeB`\x82")
    assert len(content) > 20_000


def test_every_record_can_be_computed_again_from_the_files(finished):
    """The numbers are those of the weights that were kept, by the method's own formulas."""
    out, _, _ = finished
    results = load_json(out / "results.json")
    config = Config(**results["config"])
    data = data_tools.load("glyphs", train=256, test=64)
    images, labels = data_tools.scale(data.test_images), data.test_labels
    model = config.model((28, 28, 1))
    for seed in (5, 6):
        pretrained = load_arrays(out / f"seed_{seed}_pretrained.npz")["theta"]
        finetuned = load_arrays(out / f"seed_{seed}_finetuned.npz")["theta"]
        moments = Moments.load(out / f"seed_{seed}_moments.npz")
        assert moments.count == 4
        members = moments.sample(4, loop.stream(seed, "sampled networks"))
        drawn = model.predict(members, images)
        expected = [
            model.predict(pretrained, images),
            model.predict(finetuned, images),
            model.predict(moments.mean, images),
            drawn[0],
            drawn[:3].mean(axis=0),
            drawn.mean(axis=0),
        ]
        records = [record for record in results["records"] if record["seed"] == seed]
        for record, p in zip(records, expected, strict=True):
            assert record["accuracy"] == (p.argmax(axis=1) == labels).mean()
            nll = -np.log(p[np.arange(64), labels].astype(float)).mean()
            assert record["nll"] == pytest.approx(nll, rel=1e-5)
            brier = ((p - np.eye(10)[labels]) ** 2).sum(axis=1).mean()
            assert record["brier"] == pytest.approx(brier, rel=1e-5)


def test_the_stages_are_training_and_fine_tuning(finished):
    """Done again with the library: the same bits."""
    out, _, _ = finished
    config = Config(**load_json(out / "results.json")["config"])
    data = data_tools.load("glyphs", train=256, test=64)
    arrays = data_tools.scale(data.train_images), data.train_labels
    model = config.model((28, 28, 1))
    theta = model.init(loop.stream(6, "initial weights"))
    stats = model.init_stats()
    task = loop.Task(model, *arrays, 32, 6, quiet=True)
    loop.train(task, theta, stats, SGD(0.2), 8)
    kept = load_arrays(out / "seed_6_pretrained.npz")
    np.testing.assert_array_equal(kept["theta"], theta)
    kept = load_arrays(out / "seed_6_finetuned.npz")
    moments, _, history = loop.fine_tune(task, theta, stats, SGD(0.25), 4, watch=kept["watched"])
    np.testing.assert_array_equal(kept["theta"], theta)
    np.testing.assert_array_equal(kept["history"], history)
    np.testing.assert_array_equal(kept["history"][-1], theta[kept["watched"]])
    saved = Moments.load(out / "seed_6_moments.npz")
    np.testing.assert_array_equal(saved.mean, moments.mean)
    np.testing.assert_array_equal(saved.variance, moments.variance)


# --- stopped and resumed ------------------------------------------------------------------

# Runs the command, and dies by SIGKILL before or after one of its files takes its name.
KILLED = """
import os, signal, sys
from minires.commands.cli import main
moment, name = sys.argv[1:3]
replace = os.replace
def killing(source, target):
    hit = os.path.basename(target) == name
    if hit and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if hit and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = killing
sys.exit(main(sys.argv[3:]))
"""


def assert_same_results(out, expected):
    """Bit for bit, all but the picture."""
    assert (out / "results.json").read_bytes() == (expected / "results.json").read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir(expected))
    for path in expected.glob("*.npz"):
        ours, theirs = load_arrays(out / path.name), load_arrays(path)
        assert set(ours) == set(theirs)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(finished, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [*TINY, "--seeds", "2", "--out", str(out)]
    for number, (moment, name) in enumerate(
        [
            ("before", "seed_5_pretrained.npz"),
            ("after", "seed_5_moments.npz"),
            ("after", "seed_5_finetuned.npz"),
            ("before", "seed_6_finetuned.npz"),
            ("before", "results.json"),
        ]
    ):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, moment, name, *arguments, *["--resume"][:number]],
            cwd=ROOT, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert (out / name).exists() == (moment == "after")
        assert not (out / "results.json").exists()
        for path in out.glob("*.npz"):
            load_arrays(path)  # whole, or it raises
    code, stdout, _ = main(capsys, *arguments, "--resume")
    assert code == 0
    assert stdout == finished[1]
    assert_same_results(out, finished[0])


def test_finished_stages_are_not_done_again(finished, tmp_path, capsys, monkeypatch):
    out, expected, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("seed_*")}
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(loop, "predict", lambda *a, **k: pytest.fail("evaluated again"))
    code, stdout, _ = main(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert (code, stdout) == (0, expected)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("seed_*")}


def test_more_seeds_are_more_of_the_same(finished, tmp_path, capsys):
    out = tmp_path / "out"
    code, stdout, stderr = main(capsys, *TINY, "--quiet", "--out", out)
    assert (code, stderr) == (0, "")
    one = load_json(out / "results.json")
    assert one["records"] == load_json(finished[0] / "results.json")["records"][:6]
    assert stdout == experiment.table(one["records"]) + "\n"
    code, _, _ = main(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert code == 0
    assert_same_results(out, finished[0])


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def heed_ctrl_c():
    """Ctrl-C interrupts even if these tests are run in a job that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="SIGINT ends the process there")
@pytest.mark.usefixtures("heed_ctrl_c")
@pytest.mark.parametrize("moment", ["while training", "while writing"])
def test_control_c_exits_with_130_and_leaves_nothing_half_written(
    finished, tmp_path, capsys, monkeypatch, moment
):
    out = tmp_path / "out"
    arguments = [*TINY, "--seeds", "2", "--out", out]
    count = 0

    def after(calls, function):
        def wrapped(*args):
            nonlocal count
            count += 1
            if count == calls:
                interrupt()
            return function(*args)

        return wrapped

    with monkeypatch.context() as patch:
        if moment == "while training":
            patch.setattr(SGD, "step", after(10, SGD.step))  # the second of fine-tuning
        else:
            patch.setattr(os, "fsync", after(3, os.fsync))  # in the midst of the moments' file
        code, stdout, stderr = main(capsys, *arguments)
    assert (code, stdout) == (130, "")
    assert "`run --resume` goes on" in stderr
    assert "Traceback" not in stderr
    assert set(os.listdir(out)) == {"config.json", "seed_5_pretrained.npz"}
    code, stdout, _ = main(capsys, *arguments, "--resume")
    assert (code, stdout) == (0, finished[1])
    assert_same_results(out, finished[0])


# --- what is refused ----------------------------------------------------------------------


def refused(capsys, *arguments):
    """The one line of an exit with code 2."""
    code, stdout, stderr = main(capsys, *arguments, "--quiet")
    assert code == 2
    assert stdout == ""
    assert stderr.count("\n") == 1
    assert stderr.startswith("minires: ")
    return stderr


def test_an_earlier_run_is_not_overwritten(finished, capsys):
    out, _, _ = finished
    before = {path: path.read_bytes() for path in out.iterdir()}
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out)
    assert f"{out} holds an earlier run: add --resume to go on with it, or name another" in line
    assert before == {path: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--l1", 0.3, "l1 was 0.2, now 0.3"),
        ("--updates", 5, "updates was 4, now 5"),
        ("--network", "lenet", "network was 'lenet_classic', now 'lenet'"),
        ("--seed", 6, "seed was 5, now 6"),
        ("--train", 250, "train was 256, now 250"),
    ],
)
def test_other_settings_are_not_resumed(finished, capsys, option, value, what):
    out, _, _ = finished
    before = {path: path.read_bytes() for path in out.iterdir()}
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out, "--resume", option, value)
    assert "holds results with other settings" in line
    assert what in line
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_a_damaged_stage_is_named(finished, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "seed_5_pretrained.npz"):
        (out / name).write_bytes((finished[0] / name).read_bytes())
    path = out / "seed_5_pretrained.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert f"{path} is damaged" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", -1], "epochs is -1, expected 0 or more"),
        (["--updates", 0], "updates is 0, expected 1 or more"),
        (["--batch", 0], "batch is 0, expected 1 or more"),
        (["--members", 0], "members is 0, expected 1 or more"),
        (["--seeds", 0], "seeds is 0, expected 1 or more"),
        (["--seed", -3], "seed is -3, expected 0 or more"),
        (["--l1", 0], "l1 is 0.0, expected a positive rate"),
        (["--l2", -1], "l2 is -1.0, expected a positive rate"),
        (["--l2", "nan"], "l2 is nan, expected a positive rate"),
        (["--l1", "inf"], "l1 is inf, expected a positive rate"),
        (["--dropout", 1], "dropout is 1.0, expected 0 <= dropout < 1"),
        (["--momentum", 1], "momentum is 1.0, expected 0 <= momentum < 1"),
        (["--width", 0.5], "width is 0.5, but lenet_classic has none to choose"),
        (["--network", "mobilenet_v1", "--width", 0], "width is 0.0, expected a positive factor"),
        (["--network", "alexnet"], "network is 'alexnet', there are lenet, lenet_classic"),
        (["--threads", 0], "count is 0, expected at least 1"),
        (["--resume"], "there is no folder runs/glyphs-lenet_classic-…"),
        (["--batch", 300], "--batch is 300, but there are 256 training images"),
        (["--data-dir", "x"], "glyphs are made, not read"),
        (["--train", 0], "count must be a whole number ≥ 1, not 0"),
        (["--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_values_are_one_line_and_leave_no_folder(
    tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *TINY, *arguments)
    if "--resume" not in arguments:
        assert message in refused(capsys, *TINY, *arguments, "--out", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_the_number_of_threads_reaches_those_that_draw(capsys, monkeypatch):
    def load(*args, threads, **options):
        raise ValueError(f"{threads} threads")

    monkeypatch.setattr(data_tools, "load", load)
    with arrays.threads(arrays.get_threads()):
        assert "minires: 7 threads" in refused(capsys, *TINY, "--threads", 7)


@pytest.mark.parametrize(
    "arguments",
    [["walk"], ["run", "--bogus"], ["run", "--epochs", "two"], ["run", "--data", "cats"],
     ["run", "--optimizer", "lion"]],
)  # fmt: skip
def test_arguments_that_do_not_exist(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("minires")
    assert "error:" in printed.err


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text


def test_divergence_is_one_line(tmp_path, capsys):
    line = refused(capsys, *TINY, "--l1", 1e30, "--out", tmp_path / "out")
    assert re.search(
        r"training: the loss is (nan|inf) at update \d of 8: lower the rate, 1e\+30", line
    )


@pytest.mark.parametrize("network", ["mobilenet_v1", "mobilenet_v2", "inception_v3"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        # One update is too few to see it in a loss.
        (["--l1", 1e39], "training: after 1 updates, weights or batch-norm statistics are inf"),
        (
            ["--l2", 1e38],
            r"fine-tuning: the loss is nan at update [23] of 4: lower the rate, 1e\+38",
        ),
    ],
)
def test_networks_with_batch_norm_diverge_in_one_line(
    tmp_path, capsys, network, options, complaint
):
    out = tmp_path / "out"
    small = ["--network", network, "--width", 0.1, "--train", 32, "--test", 8]
    assert re.search(complaint, refused(capsys, *TINY, *small, *options, "--out", out))
    assert "results.json" not in os.listdir(out)


def test_predictions_that_are_not_numbers_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "predict", lambda *a: np.full((64, 10), np.nan, np.float32))
    line = refused(capsys, *TINY, "--out", tmp_path / "out")
    assert "pre-trained: predictions are not numbers: lower --l1 or --l2, now 0.2 and 0.25" in line


def test_a_full_disk_is_told_before_the_work(tmp_path, capsys, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("worked all the same"))
    line = refused(capsys, *TINY, "--out", tmp_path / "out")
    assert re.search("--seeds 1: .* would take 2 MB, 0 MB are free: not even --seeds 1", line)
    assert not (tmp_path / "out").exists()


def test_more_seeds_than_the_disk_holds_are_refused_with_a_number_that_fits(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained all the same"))
    line = refused(capsys, *TINY, "--seeds", 10**9, "--out", tmp_path / "out")
    assert re.search(r"--seeds 1000000000: .*: --seeds \d+ would fit", line)
    assert os.listdir(tmp_path) == []


def test_more_members_than_memory_holds_are_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *a, **k: pytest.fail("trained all the same"))
    monkeypatch.setattr(limits, "available_memory", lambda: 200_000_000)
    line = refused(capsys, *TINY, "--members", 200_000, "--out", tmp_path / "out")
    fits = int(re.search(r"--members 200000: .* 200 MB are free: --members (\d+) would", line)[1])
    assert 500 < fits < 1000
    assert os.listdir(tmp_path) == []


def damaged_run(finished, tmp_path):
    """A copy of a finished run whose table is to be made again."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "results.json").unlink()
    return out


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{", '{"format": 1}', '{"format": 2, "seed": "five"}', '{"l1": NaN}'],
)
def test_a_damaged_config_is_named(finished, tmp_path, capsys, content):
    out = damaged_run(finished, tmp_path)
    (out / "config.json").write_text(content)
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert "config.json" in line or "other settings" in line
    assert (out / "config.json").read_text() == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: "3", lambda text: "[]", lambda text: text[:-9],
        lambda text: text.replace('"seed": 5', '"seed": 6'),
        lambda text: re.sub('"nll": [^,]*', '"nll": NaN', text, count=1),
        lambda text: re.sub('"nll": [^,]*', '"nll": [1]', text, count=1),
        lambda text: re.sub('"accuracy": [^,]*', '"accuracy": 1e308', text, count=1),
        lambda text: re.sub('"brier": [^,]*', '"brier": -0.5', text, count=1),
        lambda text: re.sub('"run": "[^"]*"', '"run": "0000"', text),
        lambda text: re.sub(r'"records": \[.*\]', '"records": []', text, flags=re.DOTALL),
    ],
)  # fmt: skip
def test_damaged_records_are_named_and_no_results_are_written(finished, tmp_path, capsys, damage):
    out = damaged_run(finished, tmp_path)
    path = out / "seed_5_records.json"
    path.write_text(damage(path.read_text()))
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert str(path) in line
    assert not (out / "results.json").exists()


def change_arrays(path, **changed):
    arrays = load_arrays(path)
    save_arrays(path, **(arrays | {name: change(arrays[name]) for name, change in changed.items()}))


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("finetuned", {"theta": lambda a: a * np.nan}),
        ("finetuned", {"theta": lambda a: a[:-1]}),
        ("finetuned", {"theta": lambda a: a + 1}),
        ("finetuned", {"history": lambda a: a[:-1]}),
        ("finetuned", {"watched": lambda a: a + 10**8}),
        ("finetuned", {"watched": lambda a: a.astype(float)}),
        ("finetuned", {"watched": lambda a: a[:, None]}),
        ("finetuned", {"run": lambda a: np.array("0000")}),
        ("pretrained", {"theta": lambda a: a[:, None]}),
        ("moments", {"offset": lambda a: a + 1}),
        ("moments", {"count": lambda a: a + 1}),
        ("moments", {"m2": lambda a: a * np.nan}),
        ("moments", {"shape": lambda a: a + 1}),
    ],
)
def test_stages_that_contradict_each_other_are_named(finished, tmp_path, capsys, stage, changed):
    out = damaged_run(finished, tmp_path)
    (out / "seed_5_records.json").unlink()
    change_arrays(out / f"seed_5_{stage}.npz", **changed)
    line = refused(capsys, *TINY, "--seeds", 2, "--out", out, "--resume")
    assert f"seed_5_{stage}.npz" in line
    assert not (out / "seed_5_records.json").exists()


@pytest.mark.parametrize(
    ("environment", "redirect"),
    [
        ({"PYTHONIOENCODING": "cp1252", "MPLBACKEND": "module://matplotlib_inline.not_here"}, ""),
        ({"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"}, "2>&-"),
        ({}, "2>&- >&-"),
    ],
)
def test_any_terminal_will_do(tmp_path, environment, redirect):
    """Other encodings, a notebook's settings, closed streams: exit 0, and a whole run."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minires", *TINY, "--out", str(out)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *command],
        cwd=ROOT, capture_output=True, env=os.environ | environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"results.json", "figure.png"} <= set(os.listdir(out))
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    if ">&- " not in redirect and not redirect.endswith(" >&-"):
        printed = done.stdout.decode(encoding)
        assert "mean model" in printed
        assert ("Δ" in printed) == (encoding == "utf-8")


def test_a_path_cannot_command_the_terminal(tmp_path, capsys):
    out = tmp_path / "x\x1b[31m\nminires: all is well"
    out.touch()
    line = refused(capsys, *TINY, "--out", out)
    assert "x\\x1b[31m\\nminires: all is well" in line


def test_an_error_of_ours_shows_its_trace(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "run", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*TINY, "--quiet", "--out", str(tmp_path / "out")])


# --- other settings -----------------------------------------------------------------------


def test_adam_no_epochs_one_member_and_a_folder_named_by_the_time(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = main(
        capsys, *TINY, "--epochs", 0, "--members", 1, "--optimizer", "adam",
        "--finetune-optimizer", "adam", "--quiet",
    )  # fmt: skip
    assert code == 0
    (out,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"glyphs-lenet_classic-\d{8}-\d{6}", out.name)
    records = load_json(out / "results.json")["records"]
    assert [(r["method"], r["members"]) for r in records] == [
        ("pretrained", 1), ("finetuned", 1), ("mean", 1), ("draw", 1), ("ensemble", 1),
    ]  # fmt: skip
    assert {**records[3], "method": ""} == {**records[4], "method": ""}
    config = Config(**load_json(out / "results.json")["config"])
    untrained = config.model((28, 28, 1)).init(loop.stream(5, "initial weights"))
    kept = load_arrays(out / "seed_5_pretrained.npz")["theta"]
    np.testing.assert_array_equal(kept, untrained)


def test_an_optimizer_by_name():
    sgd, adam = (experiment.make_optimizer(name, 0.3, 0.8) for name in ("sgd", "adam"))
    assert (type(sgd), sgd.rate, sgd.momentum) == (SGD, 0.3, 0.8)
    assert (type(adam), adam.rate) == (Adam, 0.3)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"width": None, "l1": 0.2, "l2": 0.25, "momentum": 0, "dropout": 0.5}),
        ({"data": "mnist"}, {"l1": 0.2, "l2": 0.15}),
        ({"network": "mobilenet_v2"}, {"width": 0.25, "momentum": 0.9, "dropout": 0.2}),
        ({"network": "mobilenet_v2", "width": 1, "momentum": 0}, {"width": 1, "momentum": 0}),
        ({"network": "mobilenet_v1", "optimizer": "adam", "l2": 3}, {"l1": 0.001, "l2": 3}),
        ({"finetune_optimizer": "adam", "l1": 3}, {"l1": 3, "l2": 0.001}),
    ],
)
def test_what_is_not_said_is_chosen_for_the_network(said, expected):
    config = asdict(Config(**said))
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize("network", experiment.SETTINGS)
def test_what_is_chosen_reaches_the_network(network):
    model = Config(network=network).model((28, 28, 1))
    same = NETWORKS[network](0.25, input_shape=(28, 28, 1), classes=10)
    assert model.size == same.size
    kept = {layer.momentum for *_, layer, _, _ in model.layout.rows if isinstance(layer, BatchNorm)}
    assert kept == {0.9}


@pytest.mark.parametrize("network", ["mobilenet_v1", "mobilenet_v2", "inception_v3"])
def test_networks_with_batch_norm_compare_every_policy(tmp_path, capsys, monkeypatch, network):
    """From the command to the table; done again from the files and the library."""
    monkeypatch.setattr(experiment, "STATISTICS_BATCHES", 3)
    code, stdout, _ = main(
        capsys, *TINY, "--network", network, "--width", 0.1, "--train", 64, "--test", 32,
        "--updates", 3, "--members", 2, "--momentum", 0.5, "--dropout", 0,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    results = load_json(tmp_path / "out" / "results.json")
    policies = "averaged", "recomputed", "last"
    rows = [(r["method"], r["members"], r.get("batch_norm")) for r in results["records"]]
    assert rows == [
        ("pretrained", 1, None),
        ("finetuned", 1, None),
        *[("mean", 1, policy) for policy in policies],
        *[(*kind, policy) for policy in policies for kind in (("draw", 1), ("ensemble", 2))],
    ]
    names = "mean model", "1 sampled network", "ensemble of 2"
    for name, policy in itertools.product(names, policies):
        assert f"{name}, {policy}  " in stdout
    assert stdout.endswith("on training images, or those of the last update\n")

    config = Config(**results["config"])
    data = data_tools.load("glyphs", train=64, test=32)
    images, labels = data_tools.scale(data.train_images), data.train_labels
    model = config.model((28, 28, 1))
    theta, stats = model.init(loop.stream(5, "initial weights")), model.init_stats()
    task = loop.Task(model, images, labels, 32, 5, quiet=True)
    loop.train(task, theta, stats, SGD(config.l1, 0.5), 2)
    kept = load_arrays(tmp_path / "out" / "seed_5_pretrained.npz")
    np.testing.assert_array_equal(kept["theta"], theta)
    np.testing.assert_array_equal(kept["stats"], stats)
    moments, of_stats, _ = loop.fine_tune(task, theta, stats, SGD(config.l2, 0.5), 3)
    order = loop.batches(64, 32, loop.stream(5, "statistics order"))
    looks = (images[next(order)] for _ in range(experiment.STATISTICS_BATCHES))
    expected = {
        "averaged": of_stats.mean,
        "recomputed": reestimate_stats(model, moments.mean, looks),
        "last": stats,
    }
    for record, policy in zip(results["records"][2:5], policies, strict=True):
        p = model.predict(moments.mean, data_tools.scale(data.test_images), expected[policy])
        nll = -np.log(p[np.arange(32), data.test_labels].astype(float)).mean()
        assert record["nll"] == pytest.approx(nll, rel=1e-5)


def test_a_run_without_a_folder_keeps_nothing_and_gives_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_json(finished[0] / "results.json")
    config = Config(**expected["config"])
    data = data_tools.load("glyphs", train=256, test=64)
    results = experiment.run(config, data, Folder(), quiet=True)
    assert results == expected
    assert os.listdir(tmp_path) == []


# --- table and picture --------------------------------------------------------------------


def some_records(seeds):
    """Scores that can be checked by hand."""
    records = []
    for seed in range(seeds):
        for number, (method, members) in enumerate(
            [("pretrained", 1), ("finetuned", 1), ("mean", 1), ("ensemble", 3)]
        ):
            scores = {
                "accuracy": 0.9 + 0.01 * number + 0.02 * seed * (number == 2),
                "nll": 0.5 - 0.1 * number,
                "brier": 0.2,
                "ece": 0.0125,
            }
            records.append({"seed": seed, "method": method, "members": members, **scores})
    return records


def test_the_table_by_hand():
    lines = experiment.table(some_records(1)).splitlines()
    assert lines[0].split() == ["method", "accuracy", "%", "NLL", "Brier", "ECE", "%"]
    assert lines[2].split() == ["pre-trained", "90.00", "0.5000", "0.2000", "1.25"]
    assert lines[3].split() == ["Δ", "-1.00", "+0.1000", "+0.0000", "+0.00"]
    assert lines[4].split() == ["fine-tuned", "91.00", "0.4000", "0.2000", "1.25"]
    assert lines[5].split() == ["mean", "model", "92.00", "0.3000", "0.2000", "1.25"]
    assert lines[6].split() == ["Δ", "+1.00", "-0.1000", "+0.0000", "+0.00"]
    assert lines[7].split()[:4] == ["ensemble", "of", "3", "93.00"]
    assert lines[-1].startswith("one seed, so no spread; Δ: difference to fine-tuned, same seed")
    assert len({len(line) for line in (lines[1], lines[-2])}) == 1


def test_the_table_of_several_seeds_has_deviations():
    lines = experiment.table(some_records(2)).splitlines()
    # 92 and 94: mean 93, deviation √2 (ddof 1); the differences are 1 and 3.
    assert lines[5].split()[2:5] == ["93.00", "±", "1.41"]
    assert lines[6].split()[1:4] == ["+2.00", "±", "1.41"]
    assert lines[4].split()[1:4] == ["91.00", "±", "0.00"]
    assert lines[-1].startswith("2 seeds, ± standard deviation over them (ddof 1)")
    shuffled = some_records(2)[::-1]
    assert sorted(experiment.table(shuffled).splitlines()) == sorted(lines)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("watched", [0, 1, 6])
def test_the_picture(tmp_path, rng, seeds, watched):
    results = {"config": asdict(Config(seeds=seeds)), "records": some_records(seeds)}
    history = rng.standard_normal((7, watched)) if watched else None
    path = tmp_path / "figure.png"
    figures.draw_experiment(results, path, history, [f"weight {k}" for k in range(watched)])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path) == ["figure.png"]


def test_the_policies_of_batch_norm_share_a_row_of_the_picture():
    policies = ("averaged", "recomputed", "last")
    records = [
        record for record in some_records(2) if record["method"] in ("pretrained", "finetuned")
    ]
    records += [
        {**record, "method": "mean", "batch_norm": policy}
        for policy in policies
        for record in some_records(2)
        if record["method"] == "finetuned"
    ]
    figure = Figure()
    figures._draw_methods(figure, {"config": asdict(Config()), "records": records})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(policies)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["pre-trained", "fine-tuned", "mean model"]
    heights = [bar.lines[0].get_ydata()[0] for bar in axes.containers]
    assert heights == pytest.approx([0, 1, 1.76, 2, 2.24])


def test_weights_that_stand_still_can_be_drawn(tmp_path):
    results = {"config": asdict(Config()), "records": some_records(1)}
    figures.draw_experiment(results, tmp_path / "x.png", np.ones((1, 2), np.float32), ["a", "b"])


def test_names_of_single_weights():
    model = Config(network="lenet_classic").model((28, 28, 1))
    assert figures.name_of(model, 0) == "conv2d_1.weight[0, 0, 0, 0]"
    assert figures.name_of(model, 149) == "conv2d_1.weight[4, 4, 0, 5]"
    assert figures.name_of(model, 150) == "conv2d_1.bias[0]"
    assert figures.name_of(model, model.size - 1) == "dense_3.bias[9]"
    with pytest.raises(IndexError, match="61706 weights, there is no number 61706"):
        figures.name_of(model, model.size)


# --- info ---------------------------------------------------------------------------------


def test_only_a_run_is_told_to_go_on_with_resume(capsys, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_info():
    done = subprocess.run(
        [sys.executable, "-m", "minires", "info"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert {"minires", "python", "numpy", "threads", "blas", "gpus"} <= set(facts)
    assert facts["numpy"] == np.__version__
    assert facts["threads"] >= 1
    assert done.stderr == ""


def test_a_resume_with_other_data_is_refused(tmp_path):
    config = Config(network="lenet_classic", train=64, test=32)
    one, other = (data_tools.load("glyphs", train=64, test=32, seed=seed) for seed in (0, 1))
    model = config.model((28, 28, 1))
    open_folder(tmp_path, config, model, data=experiment.fingerprint(one))
    open_folder(tmp_path, config, model, True, experiment.fingerprint(one))
    with pytest.raises(ValueError, match="data_sha256 was"):
        open_folder(tmp_path, config, model, True, experiment.fingerprint(other))


def test_a_resume_on_other_kernels_is_refused(tmp_path):
    config = Config(network="lenet_classic", train=64, test=32)
    model = config.model((28, 28, 1))
    with minires.kernels("plain"):
        open_folder(tmp_path, config, model)
        open_folder(tmp_path, config, model, True)
    with pytest.raises(ValueError, match=f"kernels was 'plain', now '{kernels_in_use()}'"):
        open_folder(tmp_path, config, model, True)


@pytest.mark.parametrize("name", ["seed_0_pretrained.npz", "results.json", "figure.png"])
def test_files_without_their_settings_are_not_taken_for_ones_own(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileExistsError, match=rf"holds {name}, but no config\.json"):
        open_folder(tmp_path, Config(), Config().model((28, 28, 1)))


def test_only_own_unfinished_files_are_tidied_up(tmp_path):
    own = ["config.json.7.part", "seed_3_moments.npz.12.part", "figure.png.1.part"]
    for name in [*own, "film.mkv.part", "seeds.part"]:
        (tmp_path / name).write_bytes(b"")
    open_folder(tmp_path, Config(), Config().model((28, 28, 1)))
    assert set(os.listdir(tmp_path)) == {"config.json", "film.mkv.part", "seeds.part"}


def test_resume_without_a_name_takes_the_newest_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("20200101-000000", "20210101-000000"):
        path = tmp_path / "runs" / f"glyphs-lenet_classic-{name}"
        path.mkdir(parents=True)
        open_folder(path, Config(seed=99), Config().model((28, 28, 1)))
    assert "20210101-000000 holds results with other settings" in refused(capsys, *TINY, "--resume")
