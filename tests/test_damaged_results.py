"""Every file of a folder of results, damaged in every way: one error names it, the rest stays."""

import contextlib
import io
import json
import re
import shutil
import types

import numpy as np
import pytest
import test_improve
import test_run_command
import test_study_sweep
from test_study_sweep import Inline, sweep

from minires import data as data_tools
from minires.arrays import results
from minires.arrays.files import load_arrays
from minires.commands import cli, improve, improve_results, improve_training
from minires.commands.sweep import FOUND
from minires.data import imagenet
from minires.study import experiment_figure, pretrained
from minires.study.store import load_sweep
from minires.training.optimizers import Adam

RUN = [*test_run_command.TINY, "--quiet", "--resume", "--out"]
TUNED = "sgd_0.2_dropout_0.5_seed_0_then_sgd_0.25"
TRAINED = "sgd_0.2_dropout_0.5_seed_0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of the three commands, and the rows of the sweep."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIRES_CACHE", str(place / "cache"))
        patch.setattr(experiment_figure, "draw_folder", lambda *arguments: None)
        patch.setattr(improve_results, "plot", lambda *arguments: None)
        assert cli.main([*RUN, str(place / "run")]) == 0
        dataset = data_tools.load(
            "glyphs", train=test_study_sweep.TINY.train, test=test_study_sweep.TINY.test
        )
        sweep(place / "sweep", dataset, Inline())
        assert cli.main(["report", str(place / "sweep"), "--rows", str(place / "rows")]) == 0
        test_improve.write_network(place / "n.onnx")
        test_improve.write_pictures(place / "val", each=8)
        assert cli.main(test_improve.words(place, "improve", updates=2)) == 0
        yield place, dataset


# Each file, what must go so that it is read, and whether a version stands in it.
FILES = {
    "run/config.json": ((), True),
    "run/seed_5_records.json": ((), False),
    "run/seed_5_pretrained.npz": (("seed_5_records.json", "seed_5_finetuned.npz"), False),
    "run/seed_5_finetuned.npz": (("seed_5_records.json",), False),
    "run/seed_5_moments.npz": (("seed_5_records.json",), True),
    "sweep/sweep.json": ((), True),
    f"sweep/cells/{TUNED}.json": ((), False),
    f"sweep/cells/{TRAINED}.json": ((), False),
    f"sweep/pretrained/{TRAINED}.npz": ((f"cells/{TUNED}.json",), False),
    f"sweep/predictions/{TUNED}.npy": ((), False),
    "sweep/predictions/labels.npy": ((), False),
    "rows/sweep.json": ((), True),
    "rows/cells.jsonl.gz": ((), False),
    "rows/deep_ensembles.json": ((), False),
    "rows/predictions.npz": ((), False),
    "improve/checkpoint.npz": ((), True),
}
DAMAGES = ("truncated", "empty", "wrong type", "NaN", "other version", "of another run")
# What a file does not say cannot be wrong in it.
IMPOSSIBLE = {
    ("rows/deep_ensembles.json", "of another run"),
    ("rows/deep_ensembles.json", "NaN"),  # of two seeds it holds no number
    ("run/config.json", "NaN"),
    *((name, "other version") for name, (_, version) in FILES.items() if not version),
}
CASES = [(name, damage) for name in FILES for damage in DAMAGES if (name, damage) not in IMPOSSIBLE]


def damaged(content, name, damage):
    """The bytes of a file with one kind of damage."""
    if damage == "truncated":
        return content[: len(content) // 2]
    if damage == "empty":
        return b""
    if name.endswith(".json"):
        return damaged_json(json.loads(content), name, damage)
    if name.endswith(".gz"):
        import gzip

        rows = gzip.decompress(content).splitlines()
        rows[0] = damaged_json(json.loads(rows[0]), name, damage)
        return gzip.compress(b"\n".join(rows))
    if damage == "wrong type":
        return b'{"theta": 3}'
    file = io.BytesIO()
    if name.endswith(".npy"):
        array = np.load(io.BytesIO(content))
        np.save(file, array * np.nan if damage == "NaN" else array[:-1])
        return file.getvalue()
    with np.load(io.BytesIO(content)) as archive:
        arrays = {key: archive[key].copy() for key in archive}
    if damage == "NaN":
        vector = "first" if "first" in arrays else "theta" if "theta" in arrays else TUNED
        arrays[vector].flat[0] = np.nan
    elif damage == "other version":
        arrays["format"] = np.array("minires 0")
    elif "settings" in arrays:
        settings = json.loads(str(arrays["settings"]))
        arrays["settings"] = np.array(json.dumps(settings | {"model": "0" * 64}))
    else:
        own = next((key for key in ("run", "sweep") if key in arrays), None)
        if own:
            arrays[own] = np.array("0" * 16)
        else:  # moments or predictions, which fit nothing else
            arrays = {key: a[:-1] if a.ndim else a for key, a in arrays.items()}
            if "shape" in arrays:
                arrays["shape"] = np.array([len(arrays["first"])])
    np.savez(file, **arrays)
    return file.getvalue()


def damaged_json(value, name, damage):
    if damage == "wrong type":
        return b"[3]" if isinstance(value, dict) else b"{}"
    if damage == "NaN":
        return re.sub(r'("[a-z]+\d?": )[\d.e-]+', r"\1NaN", json.dumps(value), count=1).encode()
    if damage == "other version":
        return json.dumps(value | {"format": 1}).encode()
    if name == "run/config.json":
        return json.dumps(value | {"data_sha256": "0" * 64}).encode()
    if name.endswith("sweep.json"):
        return json.dumps(value | {"data_sha256": "0" * 64}).encode()
    own = "run" if "run" in value else "sweep"
    return json.dumps(value | {own: "0" * 16}).encode()


def read(place, name, dataset):
    """Do what reads the file."""
    command = name.partition("/")[0]
    words = {
        "run": [*RUN, str(place / "run")],
        "improve": test_improve.words(place, "improve", updates=2),
    }
    if command in words:
        options = cli.parser().parse_args(words[command])
        options.run(options)
    elif "pretrained" in name:
        sweep(place / "sweep", dataset, Inline())
    else:
        load_sweep(place / command)


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_one_error_names_the_file_and_the_rest_stays(whole, tmp_path, monkeypatch, name, damage):
    original, dataset = whole
    monkeypatch.setenv("MINIRES_CACHE", str(original / "cache"))
    command = name.partition("/")[0]
    if command == "improve":
        for needed in ("n.onnx", "val"):
            (tmp_path / needed).symlink_to(original / needed)
    shutil.copytree(original / command, tmp_path / command)
    for other in FILES[name][0]:
        (tmp_path / command / other).unlink()
    path = tmp_path / name
    path.write_bytes(damaged(path.read_bytes(), name, damage))
    before = contents(tmp_path / command)
    with pytest.raises((ValueError, FileExistsError)) as error:
        read(tmp_path, name, dataset)
    told = str(error.value)
    # A file may also be named by the one that it contradicts.
    assert path.name in told or path.parent.name in told, told
    assert "\n" not in told
    after = contents(tmp_path / command)
    new = {known for known in after.keys() - before.keys() if not known.startswith("data/")}
    assert not new
    assert {known: after[known] for known in before} == before


@pytest.mark.parametrize("how", ["refused", "stopped"])
@pytest.mark.parametrize("command", ["run", "sweep", "improve"])
def test_a_second_process_leaves_the_folder_as_it_was(
    whole, tmp_path, monkeypatch, capsys, command, how
):
    """Whether it is refused, or stopped by Ctrl-C before that: files, folders, dates."""
    original, _ = whole
    monkeypatch.setenv("MINIRES_CACHE", str(original / "cache"))
    out = tmp_path / command
    shutil.copytree(original / command, out)
    for name in ("results.json", "config.json", "cells/x.json", FOUND, improve.CHECKPOINT):
        if (out / name).parent.exists():
            (out / f"{name}.77.part").touch()  # the first process is writing it
    for name in ("results.json", "figure.png", "table.json"):
        (out / name).unlink(missing_ok=True)  # it is not done yet
    words = {
        "run": [*RUN, str(out), "--seeds", "2"],
        "sweep": [*test_study_sweep.COMMAND[3:], "--out", str(out)],
        "improve": test_improve.words(original, out, updates=4),
    }[command]
    if how == "stopped":
        monkeypatch.setattr(results, "_lock", stopped)
    with results.locked_folder(out) if how == "refused" else contextlib.nullcontext():
        if how == "stopped":
            (out / results.LOCK).touch()
        before = everything(out)
        assert len(before) > 5
        assert cli.main(words) == (2 if how == "refused" else 130)
        assert everything(out) == before
    if how == "refused":
        assert f"{out}: another process is at work in this folder" in capsys.readouterr().err


def stopped(*_):
    raise KeyboardInterrupt


def everything(folder):
    """{name: (time of writing, number of its place on the disk, content)}, of folders too."""
    return {
        str(path): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes() if path.is_file() else None,
        )
        for path in (folder, *folder.rglob("*"))
    }


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_read_is_what_was_written(whole):
    """The samples themselves are whole: else every damage would be found."""
    place, _ = whole
    assert load_sweep(place / "sweep") == load_sweep(place / "rows")
    assert load_arrays(place / "improve" / improve.CHECKPOINT)["updates"] == 2
    assert cli.main([*RUN, str(place / "run")]) == 0
    assert cli.main(test_improve.words(place, "improve", updates=2)) == 0


# --- checkpoints whose parts contradict each other ------------------------------------------------

VECTOR = np.arange(5, dtype=np.float32)


def improving():
    """A State of `minires improve` without a network: five weights and two statistics."""
    return improve_training.State(VECTOR, VECTOR[:2], Adam(0.05), 0.9, imagenet.Notes())


def tuning():
    """A Tuning of the pre-trained study."""
    subject = types.SimpleNamespace(theta=VECTOR, stats=VECTOR[:2])
    return pretrained.Tuning(subject, pretrained.Cell(0, 0.05))


def take_three_updates(state):
    """Three updates of all that a checkpoint holds."""
    for number in range(3):
        state.optimizer.step(state.theta, VECTOR + number)
        state.record(0.5)


def changed(name, change):
    """A damage: one array of a checkpoint becomes `change` of it."""
    return pytest.param(lambda arrays: {name: change(arrays[name])}, id=f"{name} {change.__doc__}")


def of(doc, function):
    function.__doc__ = doc
    return function


SHORTER = of("shorter", lambda a: a[:-1])
TEXT = of("text", lambda a: a.astype("U9"))
DATES = of("dates", lambda a: a.astype("M8[s]"))
COMPLEX = of("complex", lambda a: a.astype("c16"))
WIDE = of("of more bits", lambda a: a.astype("f8" if a.dtype == "f4" else "f2"))
ONE_MORE = of("one more", lambda a: a + 1)
MANY = of("a million millions", lambda a: a + 10**12)
BROKEN = of("and a half", lambda a: a + 0.5)
HUGE = of("beyond float32", lambda a: a + 1e60)
TWO = of("two of it", lambda a: np.stack([a, a]))
SQUARED = of("beyond its square", lambda a: a + 1e90)
NEGATIVE = of("negative", lambda a: -1 - a)
SINGLE = of("not its dtype", lambda a: np.array("float64"))
WRECK = of("of no characters", lambda a: np.array([0x41, 0x110000, 0x42], "u4").view("U3")[0])

AVERAGES = [
    *(changed("moments.count", how) for how in (ONE_MORE, BROKEN, TWO)),
    *(changed("ema.count", how) for how in (ONE_MORE, BROKEN, TWO)),
    *(changed(f"{own}.count", ONE_MORE) for own in ("moments_of_stats", "ema_of_stats")),
    *(changed(f"{own}.mean", how) for own in ("ema", "ema_of_stats") for how in (SHORTER, HUGE)),
    *(changed("moments.first", how) for how in (SHORTER, TEXT, WIDE)),
    *(changed("moments.offset", how) for how in (SHORTER, TEXT, HUGE)),
    *(changed("moments.m2", how) for how in (SHORTER, DATES, NEGATIVE, SQUARED)),
    changed("moments.format", WRECK), changed("moments.shape", ONE_MORE),
    changed("ema.dtype", SINGLE),
]  # fmt: skip
SHARED = [
    *(changed(name, how) for name in ("theta", "stats") for how in (SHORTER, TEXT, WIDE, COMPLEX)),
    *(changed("losses", how) for how in (SHORTER, TEXT, WIDE, COMPLEX, DATES, TWO)),
    *AVERAGES,
]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        *SHARED,
        *(changed("updates", how) for how in (ONE_MORE, MANY, BROKEN, TWO, TEXT)),
        *(changed("optimizer.count", how) for how in (ONE_MORE, BROKEN, TWO)),
        *(changed("optimizer.first", how) for how in (SHORTER, TEXT, WIDE)),
        *(changed("optimizer.second", how) for how in (SHORTER, NEGATIVE)),
        *(changed("optimizer.rate", how) for how in (ONE_MORE, NEGATIVE, TEXT, COMPLEX)),
        *(changed("settings", how) for how in (WRECK, TWO)),
        *(changed("notes", how) for how in (WRECK, TWO)),
        *(changed("format", how) for how in (WRECK, TWO)),
    ],
)
def test_a_checkpoint_of_improve_fits_itself(tmp_path, damage):
    path, state = tmp_path / "checkpoint.npz", improving()
    take_three_updates(state)
    state.save(path, {"rate": 0.05})
    arrays = load_arrays(path)
    again = improving()
    again.load(path, {"rate": 0.05})
    np.testing.assert_array_equal(again.moments.mean, state.moments.mean)
    np.savez(path, **arrays | damage(arrays))
    with pytest.raises(ValueError, match=r"checkpoint\.npz"):
        improving().load(path, {"rate": 0.05})


@pytest.mark.parametrize(
    "damage",
    [*SHARED, *(changed("seconds", how) for how in (TEXT, TWO, NEGATIVE)), changed("cell", WRECK)],
)
def test_an_unfinished_cell_of_the_pretrained_study_fits_itself(tmp_path, damage):
    path, state = tmp_path / "unfinished.npz", tuning()
    take_three_updates(state)
    state.save(path, "sweep")
    arrays = load_arrays(path)
    again = tuning()
    again.load(path, "sweep")
    np.testing.assert_array_equal(again.moments.mean, state.moments.mean)
    assert again.losses == state.losses
    np.savez(path, **arrays | damage(arrays))
    with pytest.raises(ValueError, match=r"unfinished\.npz"):
        tuning().load(path, "sweep")
