"""What `import minires` offers, what is said of it, and how its objects show themselves."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires
from minires.commands import cli
from minires.networks.layers import Dense, Flatten, Sequential

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minires"

# Every public function explains and types its arguments, and says which errors it raises.
#
# Public is what stands at the top of a file, or in a class there, without an underscore in front;
# what is nested in a function is not. A docstring explains an argument in a line that begins with
# its name, or with several names. What means the same everywhere in a file or a room may be
# explained once: in the docstring of the file or of the room, after SHARED. A fast kernel says "As
# `plain.X`" and takes the same arguments: they are explained and typed there.
#
# In `testing`, X_suite and X_properties take what check_X takes, which explains it. An answer in
# mistakes.py or references.py needs no docstring: the check of its kind explains its arguments.
SHARED = "An argument means the same"


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text("utf-8"))


def sources():
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def public_functions(path):
    """[(name, node, docstring that must name the arguments), …] of all that is public in a file."""
    tree, found = tree_of(path), []
    answers = answers_in(tree)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name in answers:
            continue
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.FunctionDef):
            found.append((node.name, node, ast.get_docstring(node)))
            continue
        found.append((node.name, None, ast.get_docstring(node)))
        for inner in node.body:
            if not isinstance(inner, ast.FunctionDef):
                continue
            if inner.name == "__init__":
                found.append((node.name, inner, ast.get_docstring(node)))
            elif not inner.name.startswith("_"):
                found.append((f"{node.name}.{inner.name}", inner, ast.get_docstring(inner)))
    return found


def answers_in(tree):
    """The functions and classes that a file lists as answers to an exercise, right or wrong."""
    lists = {"_right", "_wrong", "Answer"}
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in lists:
            named |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        for decorator in getattr(node, "decorator_list", ()):
            if getattr(getattr(decorator, "func", None), "id", None) in lists:
                named.add(node.name)
    return named


def arguments_of(node):
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return [argument for argument in every if argument.arg not in ("self", "cls")]


INHERITED = {"apply", "connect", "settings"}  # of layers: said once, in `Layer`


def explained(text):
    """The words that a docstring explains: they begin a line, alone or in a list of names."""
    words = set()
    for line in text.splitlines():
        head = re.match(r"\s*((?:\*{0,2}\w+,\s+)*\*{0,2}\w+)\s{2,}|\s*((?:\w+,\s+)*\w+)$", line)
        if head:
            words |= set(re.findall(r"\w+", head.group(0)))
    return words


def shared_by(path):
    """What the docstrings of a file and of its room say of arguments that mean the same there."""
    texts = [
        ast.get_docstring(tree_of(place)) or ""
        for place in (path, path.with_name("__init__.py"))
        if place.exists()
    ]
    return "\n".join(text.partition(SHARED)[2] for text in texts)


@functools.cache
def plain_kernels():
    return {name: node for name, node, _ in public_functions(PACKAGE / "kernels/plain.py")}


def as_plain(node, text):
    """Whether a docstring sends to a kernel of `plain.py`, and that takes the same arguments."""
    other = re.match(r"As `plain\.(\w+)`", text or "")
    if not other or node is None:
        return False
    twin = plain_kernels().get(other.group(1))
    return twin is not None and signature(twin) == signature(node)


def signature(node):
    """The names of a function's arguments, and their defaults."""
    return [a.arg for a in arguments_of(node)], [ast.dump(d) for d in node.args.defaults]


def undocumented(path):
    found, shared = [], explained(shared_by(path))
    public = public_functions(path)
    checks = {name: text for name, _, text in public if name.startswith("check_")}
    for name, node, text in public:
        if name.rpartition(".")[2] in INHERITED and not name.startswith("Layer."):
            continue
        if not text:
            found.append(f"{path.name}: {name} has no docstring")
            continue
        if node is not None and not as_plain(node, text):
            check = re.sub(r"^(\w+?)_(suite|properties)$", r"check_\1", name)
            words = explained(text) | shared | explained(checks.get(check) or "")
            found += [
                f"{path.name}: {name} says nothing of {argument.arg}"
                for argument in arguments_of(node)
                if argument.arg not in words
            ]
    return found


def silent(path):
    """Public functions that raise an error themselves, and whose docstring has no "Raises"."""
    found, shared = [], shared_by(path)
    for name, node, text in public_functions(path):
        # X_properties raises what check_X raises.
        inherited = name.rpartition(".")[2] in INHERITED and not name.startswith("Layer.")
        inherited |= name.endswith("_properties")
        said = re.search(r"(?m)^\s*([\w, ]+, )?Raises\b", f"{text}\n{shared}")
        if node is None or inherited or said:
            continue
        if any(isinstance(part, ast.Raise) and part.exc for part in own_parts(node)):
            found.append(f"{path.name}: {name} raises an error and does not say so")
    return found


def own_parts(function):
    """Everything in a function but the functions that are defined in it."""
    waiting = list(function.body)
    while waiting:
        part = waiting.pop()
        if not isinstance(part, (ast.FunctionDef, ast.Lambda)):
            yield part
            waiting += ast.iter_child_nodes(part)


def untyped(path):
    found = []
    for name, node, text in public_functions(path):
        if node is None or name.rpartition(".")[2] in INHERITED or as_plain(node, text):
            continue
        lacks = [a.arg for a in arguments_of(node) if a.annotation is None and a.arg != "layers"]
        if node.returns is None and node.name != "__init__":
            lacks.append("the result")
        found += [f"{path.name}: {name} has no type for {what}" for what in lacks]
    return found


def test_every_public_function_documents_every_argument():
    assert [line for path in sources() for line in undocumented(path)] == []


def test_public_functions_that_raise_an_error_say_so():
    assert [line for path in sources() for line in silent(path)] == []


def test_public_functions_carry_type_hints():
    assert [line for path in sources() for line in untyped(path)] == []


def test_a_kernel_may_send_to_the_plain_one_only_if_it_takes_the_same(tmp_path):
    path = tmp_path / "sample.py"
    same, other = "array", "array, count"
    path.write_text(
        f'def f({same}):\n    """As `plain.sum_rows`, fast."""\n\n\n'
        f'def g({other}):\n    """As `plain.sum_rows`."""\n\n\n'
        f'def h({same}):\n    """As `plain.nothing`."""\n'
    )
    assert undocumented(path) == [
        "sample.py: g says nothing of array",
        "sample.py: g says nothing of count",
        "sample.py: h says nothing of array",
    ]


def test_an_error_that_nobody_mentions_is_found(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        'def f(x):\n    """Half.\n\n    x   1\n    """\n    if x:\n        raise ValueError\n\n\n'
        'def g():\n    """Nine.\n\n    Raises   ValueError\n    """\n    raise ValueError\n\n\n'
        'def h():\n    """A function."""\n\n    def inner():\n        raise ValueError\n\n'
        "    return inner\n"
    )
    assert silent(path) == ["sample.py: f raises an error and does not say so"]


def test_what_is_missing_is_found(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        'def f(x, y):\n    """Adds.\n\n    x   a number\n    """\n\n\ndef g():\n    pass\n'
    )
    assert undocumented(path) == [
        "sample.py: f says nothing of y",
        "sample.py: g has no docstring",
    ]
    assert len(untyped(path)) == 4


def test_what_a_room_or_a_check_explains_needs_no_second_word(tmp_path):
    (tmp_path / "__init__.py").write_text(
        f'"""A room.\n\nw   no\n\n{SHARED}:\n\n    x   a number\n"""\n'
    )
    path = tmp_path / "sample.py"
    path.write_text(
        f'"""A file.\n\n{SHARED}:\n\n    y, z   numbers\n"""\n\n\n'
        'def f(x, y, z, w):\n    """Adds."""\n\n\n'
        'def check_sum(v):\n    """Judges.\n\n    v   code\n    """\n\n\n'
        'def sum_suite(v, u):\n    """`check_sum` for pytest."""\n\n\n'
        'def other_suite(v):\n    """Another."""\n\n\n'
        '@_wrong("sum", "nothing is added")\ndef nothing(a):\n    return 0\n\n\n'
        'def right(a):\n    return a\n\n\nLIST = [Answer("sum", "all", (right,))]\n\n\n'
        'def outer():\n    """Has one inside."""\n\n    def inner(a):\n        pass\n'
    )
    assert undocumented(path) == [
        "sample.py: f says nothing of w",
        "sample.py: sum_suite says nothing of u",
        "sample.py: other_suite says nothing of v",
    ]


def test_the_face_offers_what_it_lists_and_nothing_else():
    code = (
        "import minires, types\n"
        "inner = {n for n, v in vars(minires).items() if isinstance(v, types.ModuleType)\n"
        "         and v.__name__ == f'minires.{n}'}\n"
        "public = {n for n in vars(minires) if not n.startswith('_')}\n"
        "print(sorted(public - inner - set(minires.__all__)), set(minires.__all__) - public,\n"
        "      'minires.onnx' in __import__('sys').modules, minires.onnx.__name__,\n"
        "      minires.data.scale.__name__)  # error messages name it\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] set() False minires.onnx scale"
    assert set(minires.__all__) <= set(dir(minires))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = minires.nothing


def test_the_parts_of_a_first_program_are_at_hand(rng):
    """A network, a task, training, fine-tuning, averages and scores, all from `minires.…`."""
    layers = minires.layers
    network = layers.Sequential(layers.Flatten(), layers.Dense(3))
    model = minires.Model((2, 3, 1), network)
    images = rng.standard_normal((40, 2, 3, 1)).astype(np.float32)
    labels = (images.sum(axis=(1, 2, 3)) > 0).astype(int)
    task = minires.Task(model, images, labels, batch=8, quiet=True)
    theta, stats = model.init(rng), model.init_stats()
    schedule = minires.schedules.cosine(30)
    minires.train(task, theta, stats, minires.SGD(0.5), 30, schedule=schedule)
    tuned = minires.fine_tune(task, theta, stats, minires.SGD(0.1), 20)
    members = tuned.moments.sample(4, rng)
    ensemble = minires.average(model.predict(members, images))
    assert minires.evaluate(ensemble, labels)["accuracy"] > 0.8
    assert minires.metrics.accuracy(ensemble, labels) > 0.8


def test_objects_show_what_they_are():
    model = minires.Model((2, 3, 1), Sequential(Flatten(), Dense(3)))
    assert repr(model) == "<Model: input 2×3×1, 21 weights, 3 classes, 2 layers>"
    task = minires.Task(model, np.zeros((4, 2, 3, 1), np.float32), [0] * 4, batch=2)
    assert repr(task) == f"<Task: 4 images for {model!r}, batch 2, seed 0>"
    moments = minires.Moments((3,), stride=2)
    assert repr(moments) == ("<Moments: shape (3,), ddof 0, burn_in 0, stride 2, seen 0, count 0>")
    assert repr(minires.EMA(0.9)) == "<EMA: decay 0.9, 0 updates>"
    assert repr(minires.SWAG((3,), 4)) == (
        "<SWAG: shape (3,), rank 4, stride 1, 0 weights collected>"
    )
    assert repr(minires.SGD(0.1)) == (
        "SGD(rate=0.1, momentum=0.0, weight_decay=0.0)  # 0 steps taken"
    )
    assert repr(minires.Adam()).startswith("Adam(rate=0.001, beta1=0.9, beta2=0.999, eps")


def test_notebooks_show_tables_in_which_names_are_escaped():
    layer = Dense(3)
    layer.name = "<script>"
    model = minires.Model((2, 3, 1), Sequential(Flatten(), layer))
    table = model._repr_html_()
    assert "<td>&lt;script&gt;</td><td>3</td><td>21</td>" in table
    assert "<script>" not in table
    assert "<tr><th>stride</th><td>1</td></tr>" in minires.Moments((3,))._repr_html_()


def test_arrays_of_replicas_keep_the_leading_axis(rng):
    model = minires.Model((2, 3, 1), Sequential(Flatten(), Dense(3)))
    theta = model.init(rng, replicas=2)
    arrays = model.arrays(theta)
    assert {name: array.shape for name, array in arrays.items()} == {
        "dense_1.weight": (2, 6, 3),
        "dense_1.bias": (2, 3),
    }


def test_the_version_is_said_once_and_alike(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"minires {minires.__version__}\n"
    assert f'version = "{minires.__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"version: {minires.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_a_file_that_is_missing_or_closed_is_told_with_a_remedy(monkeypatch, capsys, tmp_path):
    missing = str(tmp_path / "no such.onnx")
    assert cli.main(["evaluate", missing, "--images", str(tmp_path)]) == 2
    assert (
        f"minires: there is no file or folder {missing}: check its name" in capsys.readouterr().err
    )

    def refuse(options):
        raise PermissionError(13, "Permission denied", "closed/net.onnx")

    monkeypatch.setattr("minires.commands.info.run", refuse)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == (
        "minires: closed/net.onnx: no permission to read or write it: name another place\n"
    )


def test_the_bare_command_shows_the_commands(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "train, fine-tune with moments, compare" in printed.err


def test_type_checkers_are_told_that_there_are_hints():
    assert (PACKAGE / "py.typed").exists()
