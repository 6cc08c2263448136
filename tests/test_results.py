"""Folders of results: one process at a time, files that are what they say."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minires.arrays import limits
from minires.arrays.files import load_json
from minires.arrays.results import LOCK, check, locked_folder, settle
from minires.study.experiment import is_score

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys
from minires.arrays.results import locked_folder
with locked_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_and_touches_nothing(tmp_path):
    with locked_folder(tmp_path) as folder:
        (folder / "x.7.part").write_text("the first one's")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        with (
            pytest.raises(BlockingIOError, match="another process is at work in this folder"),
            locked_folder(tmp_path),
        ):
            pytest.fail("held twice")
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert os.listdir(tmp_path) == ["x.7.part"]
    with locked_folder(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_another_process_holds_it_until_it_is_killed(tmp_path):
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked_folder(tmp_path):
            pytest.fail("held twice")
        other.kill()
        other.wait()
        with locked_folder(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


def test_a_new_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with pytest.raises(ValueError, match="refused"), locked_folder(tmp_path / "a" / "b"):
        raise ValueError("refused")
    assert os.listdir(tmp_path) == []
    with locked_folder(tmp_path / "a" / "b") as folder:
        (folder / "result").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["result"]


def test_the_lock_of_a_killed_process_does_not_matter(tmp_path):
    (tmp_path / LOCK).touch()
    with locked_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written_the_remedy_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"nothing can be written there .*: name another folder"),
        locked_folder(tmp_path / "file" / "x"),
    ):
        pytest.fail("a folder in a file")


def test_settings_stay_the_same(tmp_path):
    assert settle(tmp_path, "config.json", {"rate": 0.2, "seeds": 1}) is None
    assert settle(tmp_path, "config.json", {"rate": 0.2, "seeds": 2}, ("seeds",))["seeds"] == 1
    assert load_json(tmp_path / "config.json") == {"rate": 0.2, "seeds": 2}
    with pytest.raises(ValueError, match=r"other settings \(rate was 0\.2, now 0\.3, more was"):
        settle(tmp_path, "config.json", {"rate": 0.3, "seeds": 2, "more": 1})
    assert load_json(tmp_path / "config.json") == {"rate": 0.2, "seeds": 2}


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"x"', '{"rate": NaN}', "", "{", "[" * 9999]
)
def test_settings_that_are_none_are_named_and_kept(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        settle(tmp_path, "config.json", {"rate": 0.2})
    assert path.read_text() == content


SCHEMA = {"n": int, "x": (float, None), "name?": str, "rows": [{"a": float}], "more?": {"*": bool}}
GOOD = {"n": 1, "x": None, "rows": [{"a": 1}, {"a": 0.5}]}


def test_what_fits_a_schema():
    check("f", GOOD, SCHEMA)
    check("f", GOOD | {"name": "x", "more": {"q": True}}, SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1.5}, r"f is damaged or not of this program: n is 1\.5, expected a whole number"),
        ({"n": True}, "n is True, expected a whole number"),
        ({"x": "1"}, "x is '1', expected a finite number or null"),
        ({"x": float("nan")}, "x is nan, expected a finite number or null"),
        ({"x": float("inf")}, "x is inf"),
        ({"rows": {}}, "rows is {}, expected a list"),
        ({"rows": [{"a": 1}, {"a": [1]}]}, r"rows\[1\]\.a is \[1\], expected a finite number"),
        ({"rows": [{}]}, r"rows\[0\] is {}, expected also a"),
        ({"other": 1}, "expected no other"),
        ({"more": {"q": 1}}, r"more\.q is 1, expected true or false"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check("f", GOOD | change, SCHEMA)


def test_what_fits_is_named(tmp_path, monkeypatch):
    """10 bytes in any case, and 3 for each: of 100 free bytes 30 fit."""
    monkeypatch.setattr(limits, "available_memory", lambda: 100)
    limits.check_memory(10, 3, 30, "--members")
    with pytest.raises(MemoryError, match=r"--members 31: .*: --members 30 would fit"):
        limits.check_memory(10, 3, 31, "--members")
    with pytest.raises(MemoryError, match="not even --members 1 would fit"):
        limits.check_memory(99, 3, 1, "--members")
    monkeypatch.setattr(limits, "available_memory", lambda: None)  # the system does not say
    limits.check_memory(10, 3, 10**9, "--members")
    with pytest.raises(OSError, match=r"--seeds 9000000000: .*: --seeds \d+ would fit"):
        limits.check_disk(tmp_path / "not" / "there", 0, 10**9, 9 * 10**9, "--seeds")


def test_this_machine_says_how_much_memory_is_free():
    free = limits.available_memory()
    assert free is None or 10**6 < free < 10**15


def test_what_a_function_expects_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"x is -1, expected a number from 0 to a million$"):
        check("f", {"x": -1}, {"x": is_score})
