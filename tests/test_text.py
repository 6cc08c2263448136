"""Text for terminals: any terminal, any text."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from minires.arrays import text
from minires.arrays.text import shown, table

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("outside", "safe"),
    [
        ("plain ± ℓ₁ 数字 é", "plain ± ℓ₁ 数字 é"),
        ("red\x1b[31m", "red\\x1b[31m"),
        ("bell\a", "bell\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("abc\u202etxt", "abc\\u202etxt"),  # turns the direction of writing
        ("a\u2028b\u200b", "a\\u2028b\\u200b"),
        ("not utf-8 \udc80", "not utf-8 \\udc80"),
        (Path("x\x9by"), "x\\x9by"),  # the eight-bit form of ESC [
    ],
)
def test_outside_text_is_made_harmless(outside, safe):
    assert shown(outside) == safe


def test_a_table_has_aligned_columns_and_rules():
    lines = table(["name", "a", "b"], [["x\n", "1", "-22.5"], None, ["long", "100", ""]]).split(
        "\n"
    )
    assert lines == [
        "name    a      b",
        "────  ───  ─────",
        "x\\n     1  -22.5",
        "────  ───  ─────",
        "long  100",
    ]
    assert table([], [["one", "two", "3"]], align="ll") == "one  two  3"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "ℓ₁ 0.2: 99.1 ± 0.2 … − ─ Δ é 数"),
        ("cp1252", "l1 0.2: 99.1 ± 0.2 … - - d é \\u6570"),
        ("ascii", "l1 0.2: 99.1 +/- 0.2 ... - - d \\u00e9 \\u6570"),
    ],
)
def test_every_encoding_can_be_written_to(monkeypatch, encoding, written):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    text.prepare_streams()
    print("ℓ₁ 0.2: 99.1 ± 0.2 … − ─ Δ é 数")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding).strip() == written


@pytest.mark.parametrize("closed", [None, "closed"])
def test_without_stderr_nothing_is_said_and_nothing_breaks(monkeypatch, capsys, closed):
    stream = None
    if closed:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    text.say("lost")
    assert list(text.progress([1, 2], desc="lost")) == [1, 2]
    assert capsys.readouterr().out == ""
    text.prepare_streams()
    text.say("also lost")
    sys.stderr.close()


def test_messages_are_one_line_each(capsys):
    text.say("a\x1bb", "c\nd")
    assert capsys.readouterr().err == "a\\x1bb\nc\\nd\n"


def test_a_closed_stderr_is_not_the_next_file(tmp_path):
    """With 2>&- the number 2 is free: the next file that is opened must not get it."""
    code = (
        "import os, sys\n"
        "from minires.arrays.text import prepare_streams\n"
        "prepare_streams()\n"
        f"assert os.open({str(tmp_path / 'x')!r}, os.O_CREAT | os.O_WRONLY) > 2\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code], cwd=ROOT, check=False
    )
    assert done.returncode == 0
