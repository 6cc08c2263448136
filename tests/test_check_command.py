"""`minires check`: properties from a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minires.commands.cli import main

ANSWERS = '''
import numpy as np
from minires.testing import references


class Running(references.Welford):
    """Right."""


class Wrong(Running):
    @property
    def variance(self):
        return self.squares / max(self.count - 1, 1)


def multiply(x, y):
    return x * y, (lambda g: g * y, lambda g: g * x)


conv2d, conv2d_backward = references.conv2d, references.conv2d_backward
'''


@pytest.fixture
def answers(tmp_path, monkeypatch):
    (tmp_path / "answers.py").write_text(ANSWERS, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import numpy\nnumpy.nothing\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["moments", "answers.py:Running"],
        ["gradient", "answers.py:multiply", "--shapes", "2,2", "2,2"],
        ["convolution", "answers.py:conv2d,conv2d_backward"],
    ],
)
def test_a_right_answer_is_0(answers, capsys, arguments):
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out.startswith("✓ ")
    assert {path.name for path in answers.iterdir()} == {"answers.py", "broken.py"}


def test_a_wrong_answer_is_1_and_says_why(answers, capsys):
    assert main(["check", "moments", str(answers / "answers.py") + ":Wrong"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "✗ the variance is numpy.var\n    smallest counterexample: updates [0.0, "
    )


def test_shapes_that_need_a_sum_are_found_wanting(answers, capsys):
    assert main(["check", "gradient", "answers.py:multiply", "--shapes", "2,2", "2"]) == 1
    assert "a gradient has the shape of its input" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["moments", "nowhere.py:Running"], "there is no file nowhere.py"),
        (["moments", "answers.py:Runing"], "answers.py has no Runing; it has Running, Wrong, mult"),
        (["momentum", "answers.py:Running"], "there is no kind 'momentum'; the kinds: moments, "),
        (["moments", "answers.py"], "'answers.py' does not name code: write FILE:NAME"),
        (["moments", "C:\\answers.py"], "does not name code: write FILE:NAME"),
        (["moments"], "give a kind and a file"),
        ([], "give a kind and a file"),
        (["moments", "broken.py:Running"], "broken.py does not run: AttributeError"),
        (["moments", "answers.py:Running,Wrong"], "moments takes 1 name, not 2"),
        (["gradient", "answers.py:multiply"], "gradient needs the shapes of the inputs"),
        (["gradient", "answers.py:multiply", "--shapes", "2x3"], "expected whole numbers"),
    ],
)
def test_bad_input_is_2_and_one_line(answers, capsys, arguments, complaint):
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minires: check: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_the_kinds_are_listed(capsys):
    assert main(["check", "--list"]) == 0
    out = capsys.readouterr().out
    assert "moments                Judge a running mean and variance." in out
    assert "ece " in out


def test_the_matrix_of_one_kind(capsys):
    assert main(["check", "matmul", "--matrix"]) == 0
    assert "b  swapped transpose" in capsys.readouterr().out


def test_a_terminal_that_is_not_unicode_shows_ascii(answers):
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, "-m", "minires", "check", "moments", "answers.py:Wrong"],
        cwd=answers, env=environment, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.decode("cp1252").startswith("x the variance is numpy.var")
    assert done.stderr == b""


@pytest.mark.parametrize("where", ["the file", "the code"])
def test_code_that_ends_the_program_is_not_right(tmp_path, monkeypatch, capsys, where):
    monkeypatch.chdir(tmp_path)
    code = "class Running:\n    def __init__(self, shape):\n        exit()\n"
    (tmp_path / "run.py").write_text(code if where == "the code" else "exit()\n", "utf-8")
    assert main(["check", "moments", "run.py:Running"]) == 2
    assert re.search("run.py.*(SystemExit|ends the program)", capsys.readouterr().err)
