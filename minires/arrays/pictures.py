"""Matplotlib's figures, made for files: no screen, and none of a notebook's settings."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minires.arrays.files import complete


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Within, figures have matplotlib's own style, not that of a notebook or of a user's file."""
    with _any_backend():
        from matplotlib import style
    with style.context("default"):
        yield


@contextlib.contextmanager
def _any_backend():
    """Within, matplotlib can be imported whatever MPLBACKEND says.

    It says how a notebook or a desktop shows figures. Where it names something that is not
    installed here, matplotlib would refuse even to be imported.
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
    """Write a Figure as PNG; the file is complete or not there.

    figure     of `new_figure`
    path       the PNG file
    settings   of matplotlib's `savefig`
    """
    with complete(path) as file:
        figure.savefig(file, format="png", **settings)
