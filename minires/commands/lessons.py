"""`minires lessons`: list, run, build, check and bundle the lessons.

A lesson is one *percent script*: a Python file whose cells begin with `# %%`. It runs as it is;
notebooks and pages are made from it. Tags say what a cell is for:

    setup                  imports, and whatever the checks of this lesson need
    sizes                  how much is computed; tests use `small={…}` beside the tag instead
    exercise NAME          a function that raises NotImplementedError: the student writes it
    solution NAME          a right answer
    wrong NAME             an answer that looks right but is wrong, and what the check says to it
    check NAME             the call that judges the answer
"""

import ast
import difflib
import re
import runpy
import shutil
import sys
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minires
from minires.arrays.text import prepare_streams, table

SCRIPTS = "[0-9][0-9]_*.py"
TEACH = 'install it with: pip install "minires[teach]"'
PURPOSE = re.compile(r"\*\*After this lesson you can\*\* (.+?)\n\n", re.DOTALL)
TIMES = re.compile(r"\*(\d+) minutes of yours, about (\d+) seconds? of the computer's\*")


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "lessons",
        help="lessons to run, to hand out, and to check",
        description="Lessons: each has one idea, and exercises that check themselves. Without an "
        "action, the command lists them.",
    )
    parser.set_defaults(run=_in_any_terminal(_list))
    actions = parser.add_subparsers(metavar="ACTION")

    run = actions.add_parser("run", help="run one lesson here")
    run.add_argument("lesson", type=int, help="its number")
    run.add_argument(
        "--pictures", type=Path, help="folder for its pictures (default: show them in windows)"
    )
    run.set_defaults(run=_in_any_terminal(_run))

    build = actions.add_parser("build", help="make notebooks and pages")
    build.add_argument("lessons", type=int, nargs="*", help="their numbers (all)")
    reader = build.add_mutually_exclusive_group(required=True)
    reader.add_argument("--student", action="store_true", help="exercises without their answers")
    reader.add_argument("--teacher", action="store_true", help="with solutions and wrong answers")
    build.add_argument(
        "--html",
        action="store_true",
        help="also make pages; the teacher's are run first, so that they show pictures",
    )
    build.add_argument("--out", type=Path, required=True, help="folder to write to")
    build.add_argument(
        "--replace", action="store_true", help="replace notebooks that are in the folder already"
    )
    build.set_defaults(run=_in_any_terminal(_build))

    check = actions.add_parser("check", help="judge somebody's answers to a lesson")
    check.add_argument("lesson", type=int, help="its number")
    check.add_argument("answers", type=Path, help="a Python file or a notebook; it will be run")
    check.set_defaults(run=_in_any_terminal(_check))

    bundle = actions.add_parser("bundle", help="fill a USB stick for a class without a network")
    bundle.add_argument("--out", type=Path, required=True, help="folder to write to")
    bundle.add_argument(
        "--platform",
        nargs="+",
        default=["windows", "macos", "linux"],
        help="for which computers: windows, macos, macos-intel, linux, linux-arm, or a tag of pip",
    )
    bundle.add_argument(
        "--python",
        nargs="+",
        default=[f"{sys.version_info.major}.{sys.version_info.minor}"],
        help="for which versions of Python, such as 3.12 (the version of this Python)",
    )
    bundle.add_argument("--no-pages", action="store_true", help="leave the executed pages out")
    bundle.add_argument(
        "--replace", action="store_true", help="replace notebooks that are in the folder already"
    )
    bundle.set_defaults(run=_in_any_terminal(_bundle))


# --- what a lesson is -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson: its text, whether it is code, its tags, and its sizes in tests."""

    source: str
    code: bool
    tags: tuple
    small: dict

    @property
    def kind(self) -> str:
        """The first tag; "" for a cell that every reader gets unchanged."""
        return self.tags[0] if self.tags else ""

    @property
    def exercise(self) -> str:
        """The name of the exercise that the cell belongs to, or ""."""
        return self.tags[1] if len(self.tags) > 1 else ""


@dataclass(frozen=True)
class Lesson:
    """A lesson, and what its first lines say about it.

    path      the percent script
    number    from 1
    title     in a few words
    purpose   what a reader can do afterwards
    minutes   of the reader's time
    seconds   of the computer's, on two cores
    """

    path: Path
    number: int
    title: str
    purpose: str
    minutes: int
    seconds: int

    def cells(self) -> list[Cell]:
        """The cells in order. Raises ImportError without the package that reads them."""
        notebook = _jupytext().read(self.path)
        return [
            Cell(
                cell.source,
                cell.cell_type == "code",
                tuple(cell.metadata.get("tags", ())),
                dict(cell.metadata.get("small", {})),
            )
            for cell in notebook.cells
        ]


def folder() -> Path:
    """Where the scripts are: in the installed package, or beside it in a checkout.

    Raises   FileNotFoundError when they are in neither
    """
    package = Path(minires.__file__).resolve().parent
    for place in (package / "lessons", package.parent / "lessons"):
        if any(place.glob(SCRIPTS)):
            return place
    raise FileNotFoundError(
        f"there are no lessons in {package / 'lessons'} or {package.parent / 'lessons'}: "
        "install minires again"
    )


def lessons() -> list[Lesson]:
    """All lessons in order."""
    return [_read(path) for path in sorted(folder().glob(SCRIPTS))]


def lesson(number: int) -> Lesson:
    """One lesson by its number. ValueError when there is none.

    number   from 1
    Raises   ValueError when there is none
    """
    known = {each.number: each for each in lessons()}
    if number not in known:
        raise ValueError(f"there is no lesson {number}; there are {_span(known)}")
    return known[number]


def execute(cells: list[Cell], names: dict, small: bool = False, name: str = "lesson") -> None:
    """Run code cells in one dictionary of names.

    cells   of a lesson
    names   the dictionary, changed in place
    small   whether the small sizes of a cell replace the values that it sets
    name    for error messages
    """
    for number, cell in enumerate(cells, 1):
        if cell.code:
            exec(compile(cell.source, f"<{name}, cell {number}>", "exec"), names)
            if small:
                names.update(cell.small)


def defined(source: str) -> list[str]:
    """The functions and classes that a cell defines.

    source   of the cell
    """
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds)]


def _read(path):
    lines = path.read_text("utf-8").splitlines()
    text = "\n".join(line[2:] for line in lines if line.startswith("#"))
    title = re.search(r"^# (\d+)\. (.+)$", text, re.MULTILINE)
    purpose, times = PURPOSE.search(text), TIMES.search(text)
    if not (title and purpose and times):
        raise ValueError(
            f"{path}: a lesson begins with its number and title, what one can do after it, and "
            "its times, like the other lessons"
        )
    said = purpose[1].replace("\n", " ").replace("`", "").rstrip(".")
    return Lesson(path, int(title[1]), title[2], said, int(times[1]), int(times[2]))


def _span(numbers):
    return f"lessons {min(numbers)} to {max(numbers)}"


def _jupytext():
    try:
        import jupytext
    except ImportError as error:
        raise ImportError(f"this needs the package jupytext: {TEACH}") from error
    return jupytext


# --- the actions ----------------------------------------------------------------------------


def _list(options):
    heads = ["lesson", "", "minutes", "afterwards you can"]
    rows = []
    for each in lessons():
        first, *more = textwrap.wrap(each.purpose, max(30, shutil.get_terminal_size().columns - 50))
        rows.append([each.number, each.title, each.minutes, first])
        rows += [["", "", "", line] for line in more]
    print(table(heads, rows, align="llll"))
    print(
        "\nminires lessons run 1                    run one here"
        "\nminires lessons build --student --out D  notebooks to work in"
        "\nminires lessons --help                   the other actions"
    )
    return 0


def _run(options):
    chosen = lesson(options.lesson)
    from matplotlib import pyplot

    place = options.pictures
    if place is None and pyplot.get_backend().lower() == "agg":
        place = Path()  # no window can be opened here
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        pyplot.switch_backend("agg")
        shown, pyplot.show = pyplot.show, _Saver(place, chosen)
    print(
        f"lesson {chosen.number}, without its text, which is in {chosen.path}",
        "(an exercise shows what is said to right answers and, with ✗, to wrong ones)",
        sep="\n",
        flush=True,
    )
    try:
        runpy.run_path(str(chosen.path), run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "minires":
            raise
        raise ImportError(
            f"lesson {chosen.number} needs the package {error.name}: {TEACH}"
        ) from error
    finally:
        if place is not None:
            pyplot.show = shown
    return 0


class _Saver:
    """Replaces `pyplot.show` when no window can be opened: pictures become files."""

    def __init__(self, place, chosen):
        self.place, self.stem, self.count = place, chosen.path.stem, 0

    def __call__(self, *args, **kwargs):
        from matplotlib import pyplot

        for number in pyplot.get_fignums():
            self.count += 1
            path = self.place / f"{self.stem}_{self.count}.png"
            pyplot.figure(number).savefig(path)
            pyplot.close(number)
            print(f"[picture: {path}]")


def _check(options):
    chosen = lesson(options.lesson)
    cells = chosen.cells()
    answers = _answers(options.answers, chosen)
    names = {"__name__": "__main__"}
    execute([cell for cell in cells if cell.kind == "setup"], names, name=chosen.path.name)
    right = 0
    exercises = [cell for cell in cells if cell.kind == "exercise"]
    for number, exercise in enumerate(exercises, 1):
        wanted = defined(exercise.source)
        print(f"{number}. {', '.join(wanted)}")
        missing = [name for name in wanted if name not in answers]
        if missing:
            near = [n for name in missing for n in difflib.get_close_matches(name, answers, 1)]
            near = f" (but {' and '.join(near)}: a slip of the pen?)" if near else ""
            missing = " and no ".join(missing)
            print(f"not answered: {options.answers.name} defines no {missing}{near}\n")
            continue
        check = next(c for c in cells if c.kind == "check" and c.exercise == exercise.exercise)
        try:
            own = {name: answers[name] for name in wanted}
            execute([check], names | own, name=f"check of {exercise.exercise}")
        except AssertionError as error:
            print(f"{error}\n")
        except NotImplementedError:
            print("not written yet: it raises NotImplementedError\n")
        except SystemExit:
            print("it ends the program: it calls exit\n")
        else:
            right += 1
            print()
    print(f"{right} of {len(exercises)} right")
    return 0 if right == len(exercises) else 1


def _answers(path, chosen):
    """{name: value} of everything that somebody's file or notebook defines."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".ipynb":
        try:
            cells = _jupytext().read(path).cells
        except Exception as error:  # a damaged notebook can raise anything
            raise ValueError(f"{path} cannot be read as a notebook: {error}") from error
        try:
            source = "\n\n".join(_definitions(cell) for cell in cells if cell.cell_type == "code")
        except SyntaxError as error:
            raise ValueError(f"{path}: {error.msg}: {(error.text or '').strip()}") from error
    else:
        try:
            source = path.read_text("utf-8-sig")  # some editors put a mark in front
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8") from error
    names = {"__name__": "answers"}
    try:
        exec(compile(source, str(path), "exec"), names)
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        line = next((e.lineno for e in reversed(trace) if e.filename == str(path)), None)
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else line
        where = f"{path}, line {line}" if line and path.suffix != ".ipynb" else str(path)
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    return {name: value for name, value in names.items() if not name.startswith("__")}


HELPERS = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _definitions(cell):
    """What answers need of a notebook's cell, as source.

    Of a cell for answers, all but the calls on lines of their own, such as checks. Of any other,
    which somebody may have added, functions, classes, imports and constants: the rest may take
    minutes.
    """
    is_own = bool({"setup", "exercise"} & set(cell.metadata.get("tags", ())))
    lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        try:
            tree = ast.parse("\n".join(lines))  # without the commands of Jupyter
        except SyntaxError:
            if is_own:
                raise
            return ""
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, HELPERS)
        or _is_constant(node)
        or (is_own and not isinstance(node, ast.Expr))
    ]
    return ast.unparse(tree)


def _is_constant(node):
    """Whether a statement is NAME = a number, text, or a list or the like of those."""
    if not isinstance(node, ast.Assign):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return True


def _chosen(numbers):
    return [lesson(number) for number in dict.fromkeys(numbers)] if numbers else lessons()


def _build(options):
    from minires.commands import lesson_pages

    lesson_pages.build(
        _chosen(options.lessons),
        options.out,
        teacher=options.teacher,
        html=options.html,
        replace=options.replace,
    )
    print(f"{options.out} is ready")
    if options.student:
        print("open its notebooks in VS Code, or: pip install jupyterlab; jupyter lab")
    return 0


def _bundle(options):
    from minires.commands import lesson_bundle

    return lesson_bundle.bundle(
        options.out,
        platforms=options.platform,
        pythons=options.python,
        pages=not options.no_pages,
        replace=options.replace,
    )


# --- terminals ------------------------------------------------------------------------------


def _in_any_terminal(action):
    """An action with output for any terminal: θ becomes "theta" if the terminal has no θ."""

    def run(options):
        prepare_streams()
        return action(options)

    return run
