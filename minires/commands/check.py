"""`minires check KIND FILE:NAME`: test somebody's code with properties that must hold."""

import argparse
import importlib
import importlib.util
import sys
import textwrap
from pathlib import Path
from typing import Any

from minires.testing.judging import Falsified, judge, readable


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `minires`."""
    parser = subparsers.add_parser(
        "check",
        help="test your own code with properties that must hold",
        description="Try the code NAME in FILE on many inputs, and say which properties hold. If "
        "one does not hold, show the smallest input that breaks it. The exit code is 0 when all "
        "hold, 1 when one does not, 2 when there is no code to try.",
        epilog="example: minires check moments answers.py:Running",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help="what the code is; --list shows all kinds"
    )
    parser.add_argument(
        "code",
        nargs="?",
        metavar="FILE:NAME",
        help="FILE:NAME1,NAME2 for a function and its backward pass",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="SHAPE",
        help="for `gradient`: shapes of the inputs, as 2,3 3",
    )
    parser.add_argument("--list", action="store_true", help="show the kinds, and what each expects")
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="show which property catches which known mistake (with KIND: for that kind only)",
    )
    parser.set_defaults(run=run)


def run(options: Any) -> int:
    """Carry out the command; returns the exit code.

    Raises   ValueError for options that do not fit each other
    """
    from minires.testing.kinds import KINDS

    if options.kind is not None and options.kind not in KINDS:
        raise ValueError(f"check: there is no kind {options.kind!r}; the kinds: {', '.join(KINDS)}")
    if options.list:
        print(readable(_list(KINDS)))
        return 0
    if options.matrix:
        from minires.testing.mistakes import matrix

        print(matrix([options.kind] if options.kind else KINDS))
        return 0
    if options.kind is None or options.code is None:
        raise ValueError(
            "check: give a kind and a file, as in `minires check moments answers.py:Running` "
            "(`minires check --list` names the kinds)"
        )
    judged, settings = _load(options.kind, options.code), {}
    if options.kind == "gradient":
        settings["shapes"] = _shapes(options.shapes)
    try:
        print(judge(options.kind, KINDS[options.kind](*judged, **settings)))
    except Falsified as falsified:
        print(falsified)
        return 1
    except SystemExit as error:
        raise ValueError(f"check: {options.code} ends the program: exit({error})") from error
    return 0


def _load(kind, code):
    """The code that FILE:NAME, or FILE:NAME1,NAME2, names, as a tuple."""
    from minires.testing.kinds import WITH_BACKWARD

    file, colon, names = code.rpartition(":")
    if not colon or not file or not names or "/" in names or "\\" in names:
        raise ValueError(
            f"check: {code!r} does not name code: write FILE:NAME, as in answers.py:Running"
        )
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"check: there is no file {file}")
    names = names.split(",")
    if len(names) > (2 if kind in WITH_BACKWARD else 1):
        raise ValueError(
            f"check: {kind} takes {1 + (kind in WITH_BACKWARD)} name, not {len(names)}"
        )
    module = _run_file(path)
    for name in names:
        if not hasattr(module, name):
            raise ValueError(f"check: {file} has no {name}; it has {_names_in(module)}")
    return tuple(getattr(module, name) for name in names)


def _run_file(path):
    """The file as a module; an error in it is told in one line."""
    spec = importlib.util.spec_from_file_location("_checked", path.resolve())
    if spec is None:
        raise ValueError(f"check: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # the file may import others from its own folder
    sys.modules[spec.name] = module
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"check: {path} does not run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = write
    return module


def _names_in(module):
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(own) if own else "no function or class of its own"


def _shapes(texts):
    if not texts:
        raise ValueError("check: gradient needs the shapes of the inputs: --shapes 2,3 3")
    try:
        return [tuple(int(n) for n in text.split(",") if n) for text in texts]
    except ValueError:
        raise ValueError(f"check: --shapes is {texts}, expected whole numbers: 2,3 3") from None


def _list(kinds):
    """Every kind, with the first sentence of the function that checks it."""
    from minires import testing

    owner = {
        "max_pooling": "pooling", "mean_pooling": "pooling", "sgd": "optimizer",
        "adam": "optimizer", "geometric": "average", "vote": "average",
        **dict.fromkeys(("accuracy", "nll", "brier", "ece"), "metric"),
    }  # fmt: skip
    lines = []
    for kind in kinds:
        words = textwrap.dedent(getattr(testing, "check_" + owner.get(kind, kind)).__doc__ or "")
        lines.append(f"{kind:22} {words.splitlines()[0]}")
    return "\n".join([*lines, "", "More: help(minires.testing.check_moments), and so on."])
