"""Every lesson runs, draws, accepts its solutions, and rejects its wrong answers."""

import ast
import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="lessons need the extra teach: pip install -e '.[teach]'")
pytest.importorskip("jupytext", reason="lessons need the extra teach: pip install -e '.[teach]'")

import nbformat
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbclient import NotebookClient

import minires
from minires.commands import lesson_bundle, lesson_pages
from minires.commands import lessons as commands
from minires.commands.cli import main
from minires.testing.classroom import COLOURS, rejected

pytestmark = pytest.mark.usefixtures("own_cache")  # digits are drawn once for all lessons
LESSONS = commands.lessons()
SECTIONS = ("## Predict", "## What would break this?", "## Three questions", "## Where this is")
COMMANDS = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=[each.path.stem for each in LESSONS])
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture
def shown(monkeypatch):
    """The figures that a lesson shows. Nobody draws them, and no window opens."""
    found = []

    def show(*args, **kwargs):
        found.extend(map(pyplot.figure, pyplot.get_fignums()))
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    with pyplot.rc_context():
        pyplot.switch_backend("agg")
        yield found
    pyplot.close("all")


def of(cells, kind):
    return [cell for cell in cells if cell.kind == kind]


def test_the_first_colours_are_told_apart_in_grey():
    red, green, blue = (np.array([int(c[i : i + 2], 16) for c in COLOURS[:4]]) for i in (1, 3, 5))
    grey = np.sort(0.299 * red + 0.587 * green + 0.114 * blue)
    assert np.diff(grey).min() > 30
    assert grey.max() < 180, "too light for white paper"


def run_as_a_student(lesson, names):
    """Run the student's notebook: it fails only where an answer is wanted."""
    small = {cell.source: cell.small for cell in lesson.cells() if cell.small}
    notebook = lesson_pages.notebook_of(lesson, teacher=False)
    nbformat.validate(notebook)
    stopped = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        try:
            exec(cell.source, names)
        except NotImplementedError:
            assert cell.metadata.tags[0] == "exercise"
            stopped.append(cell.metadata.tags[1])
        names.update(small.get(cell.source, {}))
    assert stopped == [cell.exercise for cell in of(lesson.cells(), "exercise")]
    hidden = {"solution", "wrong", "check"}
    assert not any(hidden & set(cell.metadata.get("tags", ())) for cell in notebook.cells)
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert not any("fmt: skip" in cell.source for cell in notebook.cells)
    assert "Shift + Enter runs a cell" in notebook.cells[0].source


@each_lesson
def test_a_lesson_runs_draws_and_rejects_its_wrong_answers(lesson, shown, capsys):
    """First as a student's notebook, then with the answers: twice, as people do."""
    names = {"__name__": "__main__"}
    run_as_a_student(lesson, names)
    as_a_student = len(shown)
    capsys.readouterr()
    cells = lesson.cells()
    commands.execute(cells, names, small=True, name=lesson.path.name)
    printed = capsys.readouterr().out
    # `rejected` raises where a check accepts; each of its reports has a counterexample.
    assert printed.count("smallest counterexample") == len(of(cells, "wrong"))
    assert printed.count("✓") >= len(of(cells, "check"))
    pictures = shown[as_a_student:]
    assert len(pictures) >= as_a_student >= 1
    for figure in pictures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())
        grey = picture[..., :3].mean(axis=-1)
        assert (grey < 128).mean() > 0.003, "a picture without ink"
        assert len(np.unique(picture.view(np.uint32))) > 20, "a picture of few colours"


@each_lesson
def test_a_lesson_has_all_its_parts(lesson):
    cells = lesson.cells()
    text = "\n".join(cell.source for cell in cells if not cell.code)
    assert all(section in text for section in SECTIONS)
    assert text.partition("## Three questions")[2].count("<details>") == 3
    assert not re.search(r"^[+*] ", text, re.MULTILINE), "a line that Markdown takes for a list"
    assert lesson.path.name.startswith(f"{lesson.number:02}_")
    assert lesson.minutes <= 20
    exercises = of(cells, "exercise")
    assert 1 <= len(exercises) <= 3
    for exercise in exercises:
        by_kind = {
            kind: [cell for cell in of(cells, kind) if cell.exercise == exercise.exercise]
            for kind in ("solution", "check", "wrong")
        }
        assert len(by_kind["solution"]) == len(by_kind["check"]) == 1
        assert by_kind["wrong"]
        stub, solution = (c.source for c in (exercise, by_kind["solution"][0]))
        assert commands.defined(stub) == commands.defined(solution)
        assert "NotImplementedError" in stub
        assert all(ast.get_docstring(node) for node in ast.parse(stub).body)


@each_lesson
def test_what_a_lesson_names_in_the_code_is_there(lesson):
    text = " ".join(cell.source for cell in lesson.cells() if not cell.code).replace("\n", " ")
    root = Path(minires.__file__).parent.parent
    paths = re.findall(r"`(minires/[\w./]+)`", text)
    assert paths, "it names no place in the code"
    assert [path for path in paths if not (root / path).exists()] == []
    for names, path in re.findall(r"((?:`\w+`(?:,| and)? )+)in `(minires/[\w/]+\.py)`", text):
        code = (root / path).read_text("utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^\s*(def|class) {name}\b", code, re.MULTILINE), (name, path)
    for command in re.findall(r"`minires (\w+)", text):
        assert command in COMMANDS, command


def test_there_are_twelve_lessons_in_order():
    assert [each.number for each in LESSONS] == list(range(1, 13))


def test_the_table_names_every_lesson_and_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["lessons"]) == 0
    printed = capsys.readouterr().out
    assert all(each.title in printed and each.purpose.split()[-1] in printed for each in LESSONS)
    assert max(map(len, printed.splitlines())) <= 80
    assert "`" not in printed, "marks of Markdown"


def answers_of(lesson, kind, path):
    cells = lesson.cells()
    sources = [cell.source for cell in cells if cell.kind in ("setup", kind)]
    path.write_text("\n\n".join(sources), "utf-8")
    return ["lessons", "check", str(lesson.number), str(path)]


@each_lesson
def test_stubs_are_not_answers(lesson, tmp_path, capsys):
    """So every check needs nothing but the cells of setup."""
    assert main(answers_of(lesson, "exercise", tmp_path / "stubs.py")) == 1
    count = len(of(lesson.cells(), "exercise"))
    printed = capsys.readouterr().out
    assert f"0 of {count} right" in printed
    assert printed.count("not written yet") == count


def test_solutions_are_answers(tmp_path, capsys):
    assert main(answers_of(commands.lesson(3), "solution", tmp_path / "mine.py")) == 0
    assert "3 of 3 right" in capsys.readouterr().out


def test_an_answer_may_be_a_notebook(tmp_path, capsys):
    lesson = commands.lesson(6)
    notebook = lesson_pages.notebook_of(lesson, teacher=False)
    solution = next(c for c in lesson.cells() if c.kind == "solution").source
    exercise = next(c for c in notebook.cells if "exercise" in c.metadata.get("tags", ()))
    exercise.source = f"%matplotlib inline\n{solution}\nprint('not to be run')"
    check_notebook(notebook, tmp_path, capsys)
    # Without a command of Jupyter's, a line of Python may begin with a per cent sign.
    exercise.source = f"{solution}\nrest = (\n    7\n    % 4\n)\nassert rest == 3"
    check_notebook(notebook, tmp_path, capsys)


def check_notebook(notebook, tmp_path, capsys):
    path = tmp_path / "mine.ipynb"
    path.write_text(nbformat.writes(notebook), "utf-8")
    assert main(["lessons", "check", "6", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 right" in printed
    assert "not to be run" not in printed


def test_a_helper_may_have_a_name_of_the_lesson_s(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(answers_of(commands.lesson(5), "solution", path)) == 0
    path.write_text(path.read_text("utf-8") + "\n\ndef convolution(x):\n    return x\n", "utf-8")
    capsys.readouterr()
    assert main(["lessons", "check", "5", str(path)]) == 0
    assert "3 of 3 right" in capsys.readouterr().out


def test_a_slip_in_a_name_and_a_forgotten_import_are_named(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "class Running:\n    def __init__(self, shape):\n        self.x = np.zeros(shape)"
    )
    assert main(["lessons", "check", "6", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "raised in line 3, in __init__: `import numpy as np` is missing at the top" in printed
    assert "mine.py defines no merge\n" in printed
    path.write_text("class Runing:\n    pass\n")
    assert main(["lessons", "check", "6", str(path)]) == 1
    assert "mine.py defines no Running (but Runing: a slip of the pen?)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("def f(:\n", r"answers\.py, line 1: SyntaxError"),
        ("x = 1\ny = x / 0\n", r"answers\.py, line 2: ZeroDivisionError"),
        ("\ufeffx = 1 / 0\n", r"answers\.py, line 1: ZeroDivisionError"),  # as Notepad saves it
        ("x = 'é'\n".encode("utf-16"), r"answers\.py is no text in UTF-8: save it as UTF-8"),
    ],
    ids=["syntax", "division", "mark", "another encoding"],
)
def test_a_file_that_does_not_run_is_told_with_its_line(content, told, tmp_path, capsys):
    path = tmp_path / "answers.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["lessons", "check", "6", str(path)]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_no_notebook_is_written_over_unasked(tmp_path, capsys):
    build = ["lessons", "build", "6", "--student", "--out", str(tmp_path)]
    assert main(build) == 0
    assert "open its notebooks in VS Code, or: pip install jupyterlab" in capsys.readouterr().out
    notebook = tmp_path / "06_running_moments.ipynb"
    first = notebook.read_bytes()
    notebook.write_text("answers", "utf-8")
    assert main(build) == 2
    assert "--replace" in capsys.readouterr().err
    assert notebook.read_text("utf-8") == "answers"
    assert main([*build, "--replace"]) == 0
    assert notebook.read_bytes() == first


def test_pages_are_run_and_need_nothing_from_elsewhere(tmp_path):
    assert main(["lessons", "build", "2", "--teacher", "--html", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "02_tape_of_scalars.html").read_text("utf-8")
    assert "data:image/png;base64," in page
    assert "smallest counterexample" in page
    for name in ("index.html", "answers.html", "02_tape_of_scalars.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert not re.search(r"<(script|link|iframe)\b", text)
        assert not re.search(r"""(src|@import)\s*=?\s*["'(]*https?:""", text)
    index = (tmp_path / "index.html").read_text("utf-8")
    assert 'href="answers.html"' in index
    assert 'href="02_tape_of_scalars.ipynb"' in index
    assert "thirty laptops" in index
    answers = (tmp_path / "answers.html").read_text("utf-8")
    assert "<details open>" in answers
    assert 'href="#lesson-2"' in answers
    assert 'id="lesson-2"' in answers
    assert "<details open>" not in page
    executed = nbformat.read(tmp_path / "02_tape_of_scalars.ipynb", 4)
    assert all(c.execution_count for c in executed.cells if c.cell_type == "code")


def test_a_page_leads_to_the_next(tmp_path):
    assert main(["lessons", "build", "2", "3", "--student", "--html", "--out", str(tmp_path)]) == 0
    names = ("02_tape_of_scalars.html", "03_arrays_and_broadcasting.html")
    second, third = ((tmp_path / name).read_text("utf-8") for name in names)
    assert f'<a href="{names[1]}">3. Arrays and broadcasting</a>' in second
    assert re.findall(r'href="([^"#]+)"', third) == ["index.html"]


def test_a_notebook_shows_three_lines_and_no_trace():
    """A student's cells, run by a kernel: a right answer, a wrong one, and none."""
    lesson = commands.lesson(3)
    answers = {cell.tags: cell.source for cell in lesson.cells() if cell.exercise == "matmul"}
    check = answers["check", "matmul"]
    solution = answers["solution", "matmul"]
    notebook = lesson_pages.notebook_of(lesson, teacher=False)
    setup, stub = (
        next(c for c in notebook.cells if c.metadata.get("tags") == tags)
        for tags in (["setup"], ["exercise", "matmul"])
    )
    notebook.cells = [setup, *(nbformat.v4.new_code_cell() for _ in range(2)), stub]
    notebook.cells[1].source = f"{solution}\n{check}"
    notebook.cells[2].source = f"{solution.replace('g @ w.T', 'g @ w')}\n{check}"
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    right, wrong, none = (cell.outputs[-1] for cell in notebook.cells[1:])
    assert right.text.startswith("✓")
    assert wrong.ename == "Falsified"
    assert wrong.traceback[0].startswith("✗")
    assert "smallest counterexample" in wrong.traceback[1]
    assert none.traceback == ["not written yet: raises NotImplementedError: two products, two "
                              "transposes"]  # fmt: skip


# Runs the wrong answers of lessons; prints what each is told, and the processor's seconds.
REJECTED = """
import contextlib, io, json, sys, time
from minires.commands import lessons
told = {}
for number in map(int, sys.argv[1:]):
    cells, names = lessons.lesson(number).cells(), {"__name__": "__main__"}
    lessons.execute([cell for cell in cells if cell.kind == "setup"], names)
    told[number] = []
    for cell in [cell for cell in cells if cell.kind == "wrong"]:
        printed, started = io.StringIO(), time.process_time()
        with contextlib.redirect_stdout(printed):
            lessons.execute([cell], names)
        told[number].append((printed.getvalue(), time.process_time() - started))
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    "numbers",
    [[3], pytest.param([number for number in range(1, 13) if number != 3], marks=pytest.mark.slow)],
    ids=["the third lesson", "the others"],
)
def test_a_wrong_answer_is_told_the_same_in_every_process_and_soon(numbers):
    processes = [told_in_a_process(REJECTED, *map(str, numbers), seed=seed) for seed in "12"]
    for number in numbers:
        first, again = (told[str(number)] for told in processes)
        assert len(first) == len(of(commands.lesson(number).cells(), "wrong"))
        assert [text for text, _ in first] == [text for text, _ in again]
        for text, _ in first:
            assert text.startswith("✗ ")
            assert text.splitlines()[1].startswith("    smallest counterexample: ")
            assert re.match("    [^ ]", text.splitlines()[2]), f"no hint: {text}"
        assert max(seconds for _, seconds in first + again) < 5, number


def told_in_a_process(program, *arguments, seed):
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


# --- what a kernel and a browser make of all of them ----------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """All lessons as the teacher has them: notebooks that a kernel has run, and pages."""
    out = tmp_path_factory.mktemp("pages")
    assert main(["lessons", "build", "--teacher", "--html", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_kernel_runs_every_notebook(pages):
    for lesson in LESSONS:
        notebook = nbformat.read(pages / f"{lesson.path.stem}.ipynb", 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code), lesson.title
        outputs = [output for cell in code for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in outputs), lesson.title
        text = "".join(output.get("text", "") for output in outputs)
        assert text.count("smallest counterexample") == len(of(lesson.cells(), "wrong"))
        errors = [output for output in outputs if output.get("name") == "stderr"]
        assert errors == [], lesson.title
        printed = [[output.get("name") for output in cell.outputs] for cell in code]
        assert all(names.count("stdout") <= 1 for names in printed), lesson.title


@pytest.mark.slow
def test_no_page_is_wider_than_a_telephone(pages, tmp_path):
    """Wide tables, code and pictures scroll, or shrink; the page does not move sideways."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome is installed")
    assert main(["lessons", "build", "--student", "--html", "--out", str(tmp_path)]) == 0
    every = sorted(pages.glob("*.html")) + sorted(tmp_path.glob("*.html"))
    assert len(every) == 2 * len(LESSONS) + 3
    for width in (390, 1280):
        for path, (needed, given) in zip(every, widths(browser, every, width), strict=True):
            assert given >= width - 20, "this browser shows the page in another width"
            assert needed <= given, f"{path.parent.name}/{path.name} at {width} pixels"


def widths(browser, paths, width):
    """[(pixels that a page needs, pixels that it has), …] in a window of this width."""
    frames = "".join(f'<iframe src="{path.as_uri()}" width="{width}"></iframe>' for path in paths)
    script = (
        "onload = () => document.body.innerText = JSON.stringify([...document.querySelectorAll("
        "'iframe')].map(f => f.contentDocument.documentElement)"
        ".map(e => [e.scrollWidth, e.clientWidth]))"
    )
    frame = paths[-1].parent / "widths.htm"
    frame.write_text(f"<body>{frames}<script>{script}</script></body>", "utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=60000", "--dump-dom", frame.as_uri()],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", check=True,
    )  # fmt: skip
    return json.loads(html.unescape(re.search(r"<body>(\[.*\])", done.stdout)[1]))


def test_a_wrong_answer_that_a_check_accepts_is_an_error(capsys):
    def checker(answer):
        if answer() != 1:
            raise AssertionError("✗ it is not 1")

    rejected(checker, lambda: 2)
    assert capsys.readouterr().out == "✗ it is not 1\n"
    with pytest.raises(AssertionError, match="checker accepts"):
        rejected(checker, lambda: 1)


def test_a_terminal_without_unicode_gets_words():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    with contextlib.redirect_stdout(stream):

        def action(options):
            print("θ ≥ 2σ: 猫")

        commands._in_any_terminal(action)(None)
    assert raw.getvalue().decode("ascii").startswith("theta >= 2sigma: ")


def test_run_keeps_pictures_where_no_window_opens(tmp_path, monkeypatch, capsys):
    lesson = tmp_path / "01_short.py"
    lesson.write_text(
        "# %% [markdown]\n# # 1. Short\n#\n# **After this lesson you can** draw.\n#\n"
        "# *1 minutes of yours, about 1 seconds of the computer's*\n\n"
        "# %%\nimport matplotlib.pyplot as plt\n\nplt.plot([1, 2])\nplt.show()\n",
        "utf-8",
    )
    monkeypatch.setattr(commands, "folder", lambda: tmp_path)
    assert main(["lessons", "run", "1", "--pictures", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures" / "01_short_1.png").stat().st_size > 1000
    assert "lesson 1, without its text, which is in " in capsys.readouterr().out
    assert main(["lessons", "run", "7"]) == 2
    assert "there is no lesson 7" in capsys.readouterr().err


# --- a stick for a class without a network --------------------------------------------------


def test_without_a_network_the_stick_says_what_is_missing(tmp_path, monkeypatch, capsys):
    asked = []

    def pip(*arguments, **_):
        asked.append(arguments)
        if arguments[0] == "wheel":
            (tmp_path / "wheels" / f"minires-{minires.__version__}-py3-none-any.whl").touch()
            return ""
        return "no matching distribution found for numpy"

    monkeypatch.setattr(lesson_bundle, "_pip", pip)
    bundle = ["lessons", "bundle", "--no-pages", "--out", str(tmp_path)]
    assert main([*bundle, "--platform", "windows", "--python", "3.12"]) == 1
    printed = capsys.readouterr()
    assert "windows, Python 3.12: no matching distribution" in printed.err
    assert "Give this command again with --replace when there is a network" in printed.err
    built = {path.stem for path in (tmp_path / "notebooks").glob("*.ipynb")}
    assert built >= {each.path.stem for each in LESSONS}
    assert (tmp_path / "README.md").is_file()
    assert "win_amd64" in asked[-1]
    assert asked[-1][asked[-1].index("--python-version") + 1] == "3.12"


def test_pip_s_own_reason_is_told(monkeypatch):
    assert "no such option" in lesson_bundle._pip("download", "--no-such-option").lower()


def test_an_installed_package_becomes_its_wheel_again(tmp_path):
    site, info = tmp_path / "site", tmp_path / "site" / "minires-1.0.dist-info"
    (site / "minires" / "__pycache__").mkdir(parents=True)
    info.mkdir()
    files = {
        "minires/__init__.py": "x = 1\n",
        "minires/__pycache__/__init__.pyc": "",
        "minires-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: minires\nVersion: 1.0\n",
        "minires-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        "minires-1.0.dist-info/INSTALLER": "pip\n",
    }
    for name, content in files.items():
        (site / name).write_text(content, "utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "minires").write_text("#!", "utf-8")
    rows = [*files, "../bin/minires", "minires-1.0.dist-info/RECORD"]
    (info / "RECORD").write_text("\n".join(f"{name},," for name in rows), "utf-8")
    wheel = lesson_bundle._repack(metadata.PathDistribution(info), tmp_path)
    assert wheel.name == "minires-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("minires/__init__.py") == b"x = 1\n"
        assert set(archive.namelist()) == {
            "minires/__init__.py",
            "minires-1.0.dist-info/METADATA",
            "minires-1.0.dist-info/WHEEL",
            "minires-1.0.dist-info/RECORD",
        }
        assert b"minires/__init__.py,sha256=" in archive.read("minires-1.0.dist-info/RECORD")


@pytest.mark.parametrize("add", [True, False])
def test_helpers_and_imports_may_stand_in_cells_of_their_own(tmp_path, capsys, add):
    lesson = commands.lesson(6)
    notebook = lesson_pages.notebook_of(lesson, teacher=False)
    solution = next(c for c in lesson.cells() if c.kind == "solution").source
    place = next(
        n for n, c in enumerate(notebook.cells) if "exercise" in c.metadata.get("tags", ())
    )
    notebook.cells[place].source = solution + "\nhelper(math.pi)"
    notebook.cells[place].source += "\nchecked = helper(math.pi)"
    if add:
        helper = "import math\n\nFACTOR = [1, -2.5]\n\ndef helper(x):\n    return FACTOR[0] * x\n"
        helper += "\nlong = print('not to be run')\nprint('not to be run')"
        notebook.cells.insert(place, nbformat.v4.new_code_cell(helper))
        notebook.cells.insert(place, nbformat.v4.new_code_cell("half a (line"))
    path = tmp_path / "mine.ipynb"
    path.write_text(nbformat.writes(notebook), "utf-8")
    assert main(["lessons", "check", "6", str(path)]) == (1 if add else 2)
    captured = capsys.readouterr()
    assert ("1 of 2 right" in captured.out) == add
    assert ("name 'helper' is not defined" in captured.err) != add
    assert "not to be run" not in captured.out


def test_answers_that_end_the_program_are_not_right(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("print('hello')\nexit()\n", "utf-8")
    assert main(["lessons", "check", "3", str(path)]) == 2
    assert "mine.py, line 2: SystemExit" in capsys.readouterr().err
    lesson = commands.lesson(3)
    assert main(answers_of(lesson, "solution", path)) == 0
    first = commands.defined(of(lesson.cells(), "exercise")[0].source)[0]
    path.write_text(path.read_text("utf-8") + f"\n\ndef {first}(*_):\n    exit()\n", "utf-8")
    capsys.readouterr()
    assert main(["lessons", "check", "3", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "it ends the program" in printed
    assert "2 of 3 right" in printed


# --- wheels for other computers ---------------------------------------------------------------


def make_wheel(folder, name, *needs, extra=""):
    """A wheel with nothing in it but what it needs."""
    path, info = folder / f"{name}-1-py3-none-any.whl", f"{name}-1.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1"]
    lines += [f"Provides-Extra: {extra}"] if extra else []
    lines += [f"Requires-Dist: {need}" for need in needs]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_wheels_are_those_that_the_other_computer_needs(tmp_path, monkeypatch):
    """Whatever this one is: pip alone would ask it, not the other."""
    pytest.importorskip("pip")
    index = tmp_path / "index"
    index.mkdir()
    needs = {
        "onwindows": "platform_system == 'Windows'", "onwin32": "sys_platform == 'win32'",
        "onlinux": "sys_platform == 'linux'", "ondarwin": "platform_system == 'Darwin'",
        "onarm": "platform_machine in 'arm64 aarch64'", "onold": "python_version < '3.12'",
    }  # fmt: skip
    for name in needs:
        make_wheel(index, name)
    own = make_wheel(
        index, "own", *(f"{n}; {m} and extra == 'teach'" for n, m in needs.items()), extra="teach"
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(lesson_bundle, "NEEDS", ())
    for platform, version, expected in (
        ("windows", "3.11", {"onwindows", "onwin32", "onold"}),
        ("macos", "3.13", {"ondarwin", "onarm"}),
        ("linux", "3.12", {"onlinux"}),
        ("musllinux_1_2_aarch64", "3.11", {"onlinux", "onarm", "onold"}),
    ):
        wheels = tmp_path / platform
        assert lesson_bundle._download(own, wheels, platform, version) == ""
        found = {path.name.partition("-")[0] for path in wheels.iterdir()}
        assert found == {"own", *expected}, platform
