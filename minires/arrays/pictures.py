"""Matplotlib's figures for files: they need no screen and ignore a notebook's settings."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minires.arrays.files import complete


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """In the block, figures have matplotlib's own style, not a notebook's or a user's."""
    with _any_backend():
        from matplotlib import style
    with style.context("default"):
        yield


@contextlib.contextmanager
def _any_backend():
    """In the block, matplotlib can be imported with any value of MPLBACKEND.

    This variable says how a notebook or a desktop shows figures. If it names a program that is not
    installed, matplotlib cannot even be imported.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(width: float, height: float, dots: int = 72) -> Any:
    """A matplotlib Figure that belongs to no window.

    width, height   in inches
    dots            per inch
    """
    with _any_backend():
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=dots, layout="constrained")


def save_png(figure: Any, path: str | Path, **settings: Any) -> None:
    """Write a Figure as PNG; the file is complete or does not exist.

    figure     of `new_figure`
    path       the PNG file
    settings   of matplotlib's `savefig`
    """
    with complete(path) as file:
        figure.savefig(file, format="png", **settings)
