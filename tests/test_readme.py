"""What the README tells a reader to type works: its Python runs, its commands are understood."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import minires
from minires.commands import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "lessons").glob("README.md"))]
BLOCKS = [
    (f"{page.parent.name}/{page.name}", language, code)
    for page in PAGES
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]
PYTHON = [code for _, language, code in BLOCKS if language == "python"]
TYPED = [
    line.partition("  #")[0].strip()
    for _, language, code in BLOCKS
    if language in ("", "sh", "console")
    for line in code.replace("\\\n", " ").splitlines()
]
COMMANDS = [
    found[1]
    for line in TYPED
    if (found := re.search(r"(?:^|python -m )(minires .*)", line)) and ";" not in line
]


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_a_page_runs(code, tmp_path, monkeypatch):
    """With a few random images in place of the reader's own data."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, 10, 8)
    names = {
        "minires": minires,
        "np": np,
        "images": images,
        "labels": labels,
        "batches": [(images, labels)] * 3,
        "rate": np.float32(0.01),
    }
    exec(compile(code, "README.md", "exec"), names)
    if "ensemble" in names:
        np.testing.assert_allclose(names["ensemble"].sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_a_page_is_understood(line):
    arguments = shlex.split(line)[1:]
    options = cli.parser().parse_args(arguments)
    assert callable(options.run)


def test_pages_tell_something():
    assert len(PYTHON) >= 1
    assert len(COMMANDS) >= 8


def test_the_readme_leads_each_reader():
    """Students, teachers and users; on Windows too; and no table before its words are explained."""
    text = PAGES[0].read_text("utf-8")
    heads = [text.index(head) for head in ("\n## To learn", "\n## To teach", "\n## To use")]
    assert heads == sorted(heads)
    assert ".venv\\Scripts\\activate" in TYPED[: TYPED.index("minires run")]
    before = " ".join(text[: text.index("\n| | accuracy")].split())
    for explained in (
        "a learning rate, ℓ₁", "its own, ℓ₂", "*mean model* has", "*sampled network* has",
        "*ensemble* averages", "NLL is", "± is",
    ):  # fmt: skip
        assert explained in before


def test_pictures_and_links_of_a_page_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_counts_the_wrong_answers():
    from minires.testing.mistakes import MISTAKES

    assert f"{len(MISTAKES)} wrong answers," in (ROOT / "README.md").read_text("utf-8")
