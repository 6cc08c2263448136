"""Imports go one way, and importing the library drags nothing heavy along."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minires"

MOST_ROOMS, MOST_LEVELS = 15, 7
ENTRANCES = {"", "__main__"}  # `import minires` and `python -m minires`: they hold no code


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


def rooms():
    """Each room of the house (a folder or file of `minires`), and the rooms that it uses."""
    house = {}
    for path in modules(PACKAGE):
        room = name_of(path).partition(".")[2].partition(".")[0]
        house.setdefault(room, set()).update(inner_imports(path) - {room})
    return {room: uses - ENTRANCES for room, uses in house.items() if room not in ENTRANCES}


def levels(house):
    """The floor of each room: one above the highest room that it uses. ValueError for a circle."""
    floor = {}
    while len(floor) < len(house):
        ready = {room for room in set(house) - set(floor) if house[room] <= set(floor)}
        if not ready:
            raise ValueError(f"a circle of imports among {sorted(set(house) - set(floor))}")
        floor |= {
            room: 1 + max((floor[below] for below in house[room]), default=0) for room in ready
        }
    return floor


def test_the_house_is_small_and_has_no_circle():
    house = rooms()
    assert len(house) + len(ENTRANCES) <= MOST_ROOMS, sorted(house)
    assert max(levels(house).values()) <= MOST_LEVELS, levels(house)


def test_a_circle_is_seen():
    with pytest.raises(ValueError, match="circle"):
        levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_data_know_nothing_of_networks():
    assert rooms()["data"] == set()


def test_the_library_needs_no_data():
    """Only what stands on top knows where images come from."""
    house = rooms()
    assert {room for room in house if "data" in house[room]} <= {"study", "commands"}


def test_autodiff_knows_no_numpy():
    path = PACKAGE / "engine" / "autodiff.py"
    assert "numpy" not in {name.partition(".")[0] for name in imports_of(path, KNOWN)}


def test_importing_the_library_drags_nothing_heavy_along():
    """Checked in a fresh interpreter: this one has imported everything already."""
    heavy = (
        "matplotlib", "scipy", "onnx", "onnxruntime", "torch", "PIL", "cupy", "tqdm", "pooch",
        "pandas", "hypothesis", "minires.data", "minires.commands.cli", "minires.study.experiment",
    )  # fmt: skip
    code = f"import sys, minires; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_asking_for_help_needs_neither_pictures_nor_networks():
    code = (
        "import sys, contextlib, io, minires.commands.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    minires.commands.cli.main(['--help'])\n"
        "print([name for name in ('matplotlib', 'scipy', 'torch', 'cupy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_package_imports_nothing_that_the_wheel_lacks():
    beside = {path.parent.name for path in ROOT.glob("*/*.py")} - {"minires"}
    assert beside >= {"data_tools", "lessons", "tests"}
    for path in modules(PACKAGE):
        assert not beside & {name.partition(".")[0] for name in imports_of(path, KNOWN)}, path


def test_the_wheel_holds_one_package_alone():
    """A top-level `lessons` or `tests` of ours would collide with those of others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["minires"]
    assert all(place.startswith("minires/") for place in wheel.get("force-include", {}).values())
