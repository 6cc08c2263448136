"""Notebooks and pages from the lessons' scripts, made with jupytext and nbconvert.

    student   an exercise and its check are one cell; solutions and wrong answers are left out
    teacher   everything, run from top to bottom

A page is one file: style and pictures are inside, formulas are plain text. So it opens from a USB
stick on any computer.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minires.commands.lessons import TEACH, folder

LONGEST = 600  # the most seconds that one cell may take
HOW = (
    "\n\n*Shift + Enter runs a cell. In an exercise, write your answer where it says `raise "
    "NotImplementedError`, and run the cell: its last line judges the answer.*"
)


@dataclass
class Page:
    """One lesson as a notebook, and how long it took to run."""

    lesson: object
    notebook: object
    seconds: float | None = None
    files: list = field(default_factory=list)


def build(lessons: list, out: Path, teacher: bool, html: bool, replace: bool = False) -> list[Page]:
    """Write notebooks to a folder, and pages if they are wanted.

    lessons   a list of Lesson
    out       the folder; made if it does not exist
    teacher   with solutions and wrong answers
    html      also make pages. The teacher's are run, and get an index and an answer sheet
    replace   replace notebooks that exist already
    Returns   a list of Page
    Raises    ValueError when a notebook exists already; ImportError without the packages;
              RuntimeError when a lesson does not run
    """
    modules = _modules()
    paths = [out / f"{lesson.path.stem}.ipynb" for lesson in lessons]
    there = [path.name for path in paths if path.exists()]
    if there and not replace:
        raise ValueError(
            f"{out} holds {there[0]} already, perhaps with somebody's answers: give another "
            "--out, or --replace to write over it"
        )
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for lesson, path in zip(lessons, paths, strict=True):
        page = Page(lesson, notebook_of(lesson, teacher))
        if teacher and html:
            page.seconds = run_notebook(page.notebook, lesson.path.name)
            print(f"{path.stem}: {page.seconds:.0f} s", flush=True)
        path.write_text(modules["nbformat"].writes(page.notebook) + "\n", "utf-8")
        page.files.append(path)
        pages.append(page)
    if html:
        _write_pages(pages, out, teacher)
    return pages


def notebook_of(lesson: Any, teacher: bool) -> Any:
    """A lesson as a notebook, not run.

    lesson    `minires.commands.lessons.Lesson`
    teacher   with solutions and wrong answers; else each exercise is one cell with its check
    Returns   an nbformat notebook
    """
    modules = _modules()
    source = modules["jupytext"].read(lesson.path)
    checks = {_tags(cell)[1]: cell for cell in source.cells if _tags(cell)[:1] == ["check"]}
    cells = []
    for cell in source.cells:
        kind = (_tags(cell) or [""])[0]
        if not teacher:
            if kind in ("solution", "wrong", "check"):
                continue
            if kind == "exercise":
                cell.source += "\n\n\n" + checks[_tags(cell)[1]].source
        cell.source = cell.source.replace("  # fmt: skip", "")
        cell.metadata = {"tags": _tags(cell)} if kind else {}
        cells.append(cell)
    if not teacher:
        cells[0].source += HOW
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = modules["nbformat"].v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for number, cell in enumerate(cells):  # the same file at every build
        cell.id = f"cell-{number}"
    return notebook


def run_notebook(notebook: Any, name: str) -> float:
    """Run a notebook in place. Returns seconds; RuntimeError when a cell fails.

    notebook   as `notebook_of` returns it
    name       of the lesson, for the error
    Returns    the seconds that it took
    Raises     RuntimeError when a cell fails
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    started = time.monotonic()
    try:
        NotebookClient(
            notebook, timeout=LONGEST, kernel_name="python3", extra_arguments=["--log-level=ERROR"]
        ).execute()
    except (CellExecutionError, CellTimeoutError) as error:
        raise RuntimeError(f"{name} does not run: {str(error).strip()}") from error
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a progress bar that has gone leaves an empty line
            cell.outputs = [output for output in cell.outputs if not _empty(output)]
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # what is printed at once is one block
    return time.monotonic() - started


def _empty(output):
    return output.get("data") == {"text/plain": ""}


def size_of(path: Path) -> str:
    """A file's size as text, such as "1.2 MB".

    path   of the file
    """
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


# --- pages ----------------------------------------------------------------------------------


def _write_pages(pages, out, teacher):
    template, render_markdown = _template(), _modules()["markdown"]
    for page, after in zip(pages, [*pages[1:], None], strict=True):
        path = out / f"{page.lesson.path.stem}.html"
        title = f"{page.lesson.number}. {page.lesson.title}"
        html = template.render(
            title=title, body=_body(page.notebook), following=after and after.lesson, home=True
        )
        path.write_text(html, "utf-8")
        page.files.append(path)
    readme = render_markdown((folder() / "README.md").read_text("utf-8")) if teacher else ""
    if teacher:
        answers = out / "answers.html"
        parts = [
            (page.lesson, _body(_answers(page.notebook)).replace("<details>", "<details open>"))
            for page in pages
        ]
        answers.write_text(template.render(title="Answer sheet", parts=parts, home=True), "utf-8")
    rows = [
        {
            "lesson": page.lesson,
            "seconds": page.seconds,
            "files": [(path.name, path.suffix[1:], size_of(path)) for path in page.files],
        }
        for page in pages
    ]
    for row in rows:
        row["files"].sort(key=lambda file: file[1])
    index = template.render(title="Lessons", rows=rows, readme=readme, teacher=teacher)
    (out / "index.html").write_text(index, "utf-8")


def _answers(notebook):
    """The cells of the answer sheet: every exercise with its text, solution, check and mistakes."""
    wanted = ("exercise", "solution", "check", "wrong")
    cells = []
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        kind = (_tags(cell) or [""])[0]
        folded = cell.cell_type == "markdown" and "<details" in cell.source
        if kind in wanted or folded:
            if kind == "exercise" and before is not None and before.cell_type == "markdown":
                cells.append(before)
            cells.append(cell)
    kept = notebook.copy()
    kept.cells = list(dict.fromkeys(map(id, cells)))
    by_id = {id(cell): cell for cell in cells}
    kept.cells = [by_id[key] for key in kept.cells]
    return kept


def _body(notebook):
    """The notebook's cells as HTML, without a page around them."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    return body


def _template():
    import jinja2
    from pygments.formatters import HtmlFormatter

    place = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(place), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["light"] = HtmlFormatter(style="default").get_style_defs(".highlight")
    environment.globals["dark"] = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return environment.get_template("lesson_page.html")


def _tags(cell):
    return list(cell.metadata.get("tags", ()))


def _modules():
    try:
        import jupytext
        import nbclient  # noqa: F401
        import nbformat
        from nbconvert.filters.markdown import markdown2html
    except ImportError as error:
        raise ImportError(f"this needs the package {error.name}: {TEACH}") from error
    return {"jupytext": jupytext, "nbformat": nbformat, "markdown": markdown2html}
