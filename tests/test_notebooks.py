"""A notebook's manners: a kernel of its own runs cells, is interrupted, and goes on."""

import os
import sys

import pytest

pytest.importorskip("ipykernel", reason="notebooks need the extra teach: pip install -e '.[teach]'")
pytest.importorskip("jupytext", reason="notebooks need the extra teach: pip install -e '.[teach]'")

import nbformat
from jupyter_client.manager import start_new_kernel
from nbconvert.preprocessors import ExecutePreprocessor

from minires.commands import lesson_pages
from minires.commands import lessons as commands

QUIET = ["--log-level=ERROR"]


@pytest.fixture(scope="module")
def kernel():
    """A running kernel: (its manager, its client)."""
    manager, client = start_new_kernel(kernel_name="python3", extra_arguments=QUIET)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def run(kernel):
    """Runs a cell and returns its messages [(type, content), …]; `at` sees each as it comes."""

    def execute(code, at=None):
        messages = []

        def take(message):
            messages.append((message["msg_type"], message["content"]))
            if at is not None:
                at(*messages[-1])

        kernel[1].execute_interactive(code, output_hook=take, timeout=120)
        return messages

    return execute


def texts(messages, kind):
    return [content["data"]["text/plain"] for found, content in messages if found == kind]


TASK = """
import numpy as np, minires
from minires.training.loop import Task
rng = np.random.default_rng(0)
images = rng.uniform(-1, 1, (256, 12, 12, 1)).astype(np.float32)
labels = rng.integers(0, 3, 256)
model = minires.lenet(input_shape=(12, 12, 1), channels=(2, 3), hidden=8, classes=3)
theta, stats = model.init(rng), model.init_stats()
task, moments = Task(model, images, labels, batch=32), minires.Moments(theta.shape)
def train(updates):
    minires.train(task, theta, stats, minires.SGD(0.1), updates, moments=[(moments, theta)])
"""


def test_models_and_moments_are_shown_as_tables(run):
    shown = [
        content["data"]
        for name in ("model", "moments")
        for kind, content in run(f"{TASK}\n{name}")
        if kind == "execute_result"
    ]
    assert [page["text/html"][:7] for page in shown] == ["<table>", "<table>"]
    assert "conv2d_1" in shown[0]["text/html"]
    assert shown[1]["text/plain"].startswith("<Moments: shape (")


def test_a_bar_stands_below_the_cell_and_goes(run):
    messages = run(f"{TASK}\ntrain(200)")
    bars = texts(messages, "display_data") + texts(messages, "update_display_data")
    assert bars[0].startswith("training (seed 0):   0%|")
    assert bars[-1] == ""
    assert not [kind for kind, _ in messages if kind == "stream"], "nothing red on stderr"


@pytest.mark.parametrize("kernels", ["cpu", "plain"])
def test_an_interrupted_training_goes_on(kernel, run, kernels):
    run(f"{TASK}\nminires.kernels({kernels!r}).__enter__()\ntrain(5)")
    sent = []

    def interrupt(kind, content):
        if kind == "update_display_data" and not sent:  # the bar moves: it trains
            sent.append(kind)
            kernel[0].interrupt_kernel()

    (error,) = [c for kind, c in run("train(10**5)", interrupt) if kind == "error"]
    assert error["ename"] == "KeyboardInterrupt"
    after = run("""
done = moments.count
assert 5 < done < 10**5 and np.isfinite(theta).all()
train(20)
assert moments.count == done + 20
p = model.predict(moments.mean, images)
assert np.isfinite(p).all() and abs(p.sum(axis=-1) - 1).max() < 1e-5
print(np.isfinite(moments.sample(2, rng)).all(), model.size)
""")
    printed = "".join(content["text"] for kind, content in after if kind == "stream")
    assert printed.startswith("True"), after


# --- a student's notebook, from the first cell to the last --------------------------------


def answered(lesson, kind, number=0):
    """A student's notebook with each exercise answered by a cell of this kind."""
    cells = lesson.cells()
    notebook = lesson_pages.notebook_of(lesson, teacher=False)
    small = {cell.source: cell.small for cell in cells if cell.small}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if tags[:1] == ["exercise"]:
            check = next(c.source for c in cells if c.tags == ("check", tags[1]))
            own = [c.source for c in cells if c.tags == (kind, tags[1])]
            answer = own[min(number, len(own) - 1)]
            if kind == "wrong":  # the same code, under the name that was asked for
                name = commands.defined(next(c.source for c in cells if c.tags == tuple(tags)))[0]
                answer = answer.partition("\n\n\nrejected(")[0]
                answer += f"\n\n\n{name} = {commands.defined(answer)[0]}"
            cell.source = f"{answer}\n\n\n{check}"
        cell.source += "".join(f"\n{n} = {v!r}" for n, v in small.get(cell.source, {}).items())
    return notebook


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(each.number, marks=() if each.number == 6 else pytest.mark.slow)
        for each in commands.lessons()
    ],
)
@pytest.mark.usefixtures("own_cache")
def test_a_student_s_notebook_through_nbconvert(number, monkeypatch):
    """With the right answers each check says what holds; with wrong ones it says why not."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    lesson = commands.lesson(number)
    for kind in ("solution", "wrong"):
        notebook = answered(lesson, kind)
        settings = {"timeout": 300, "kernel_name": "python3", "extra_arguments": QUIET}
        ExecutePreprocessor(allow_errors=kind == "wrong", **settings).preprocess(notebook)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            outputs = cell.get("outputs", [])
            errors = [output for output in outputs if output.output_type == "error"]
            if "exercise" not in cell.metadata.get("tags", []):
                assert not errors, errors
            elif kind == "solution":
                assert outputs[-1].text.startswith("✓"), outputs
            else:
                assert [error.ename for error in errors] == ["Falsified"], outputs
                assert errors[0].traceback[0].startswith("✗")
                assert "smallest counterexample" in errors[0].traceback[1]
