"""Imports go one way, and importing the library drags nothing heavy along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minires"

# What each module may import of the package. A name stands for the module and all within it.
ALLOWED = {
    "backend": set(),
    "files": set(),
    "kernels": {"backend", "kernels"},
    "autodiff": {"backend"},
    "ops": {"autodiff", "backend"},
    "convolution": {"ops", "autodiff", "backend"},
    "batch_norm": {"convolution", "ops", "autodiff", "backend"},
    "layers": {"batch_norm", "convolution", "ops", "autodiff", "backend"},
    "folding": {"layers", "convolution", "kernels", "backend"},
    "model": {"folding", "layers", "convolution", "ops", "autodiff", "backend"},
    "running_statistics": {"model", "layers", "autodiff", "backend"},
    "networks": {"networks", "model", "layers"},
    "optimizers": {"backend", "files"},
    "moments": {"backend", "files"},
    "metrics": {"backend", "files"},
    "resampling": {"moments", "backend", "files"},
    "capture": {"backend"},
    "training": {
        "capture", "running_statistics", "networks", "model", "layers", "optimizers", "moments",
        "metrics", "resampling", "files", "backend",
    },
}  # fmt: skip
# These stand above all of the former and may use them, but not what is above themselves.
UPPER = ["experiment", "bench", "figures", "study", "cli", "__main__"]
LIBRARY = set(ALLOWED)


def modules(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, known):
    """The full names of all that a file imports, wherever in it, strings for importlib too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found


KNOWN = {name_of(path) for path in modules(PACKAGE)}


def inner_imports(path):
    """What a file imports of this package: the first name below `minires`, or "" for itself."""
    return {
        name.partition(".")[2].partition(".")[0]
        for name in imports_of(path, KNOWN)
        if name.partition(".")[0] == "minires"
    }


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_go_one_way(module):
    place = PACKAGE / module
    files = modules(place) if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        assert inner_imports(path) <= ALLOWED[module], path


def test_the_allowed_imports_have_no_cycle():
    done = set()
    while len(done) < len(ALLOWED):
        ready = {m for m, needs in ALLOWED.items() if m not in done and needs - {m} <= done}
        assert ready, f"a cycle among {set(ALLOWED) - done}"
        done |= ready


@pytest.mark.parametrize("number", range(len(UPPER)))
def test_nothing_imports_what_stands_above_it(number):
    place = PACKAGE / UPPER[number]
    files = modules(place) if place.is_dir() else [place.with_suffix(".py")]
    for path in files:
        assert not inner_imports(path) & set(UPPER[number + 1 :]), path


def test_the_library_imports_nothing_from_above():
    for path in modules(PACKAGE):
        top = name_of(path).partition(".")[2].partition(".")[0]
        if top in LIBRARY:
            assert not inner_imports(path) & {*UPPER, "onnx"}, path


def test_every_module_has_a_place_in_the_order():
    known = LIBRARY | set(UPPER) | {"", "onnx"}
    assert {name_of(path).partition(".")[2].partition(".")[0] for path in modules(PACKAGE)} <= known


def test_data_tools_know_nothing_of_networks():
    for path in modules(ROOT / "data_tools"):
        roots = {name.partition(".")[0] for name in imports_of(path, KNOWN)}
        assert not roots & {"minires", "lessons", "tests", "torch"}, path


def test_the_library_needs_no_data():
    """Only what stands on top knows where images come from."""
    for path in modules(PACKAGE):
        top = name_of(path).partition(".")[2].partition(".")[0]
        if top in LIBRARY or top == "":
            assert "data_tools" not in {n.partition(".")[0] for n in imports_of(path, KNOWN)}, path


def test_autodiff_knows_no_numpy():
    path = PACKAGE / "autodiff.py"
    assert "numpy" not in {name.partition(".")[0] for name in imports_of(path, KNOWN)}


def test_importing_the_library_drags_nothing_heavy_along():
    """Checked in a fresh interpreter: this one has imported everything already."""
    heavy = (
        "matplotlib", "scipy", "onnx", "onnxruntime", "torch", "PIL", "cupy", "tqdm", "pooch",
        "pandas", "hypothesis", "data_tools", "minires.cli", "minires.experiment",
    )  # fmt: skip
    code = f"import sys, minires; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_asking_for_help_needs_neither_pictures_nor_networks():
    code = (
        "import sys, contextlib, io, minires.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    minires.cli.main(['--help'])\n"
        "print([name for name in ('matplotlib', 'scipy', 'torch', 'cupy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
