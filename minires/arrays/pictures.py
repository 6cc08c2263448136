"""Matplotlib's figures, made for files: no screen, and none of a notebook's settings."""

import os
from pathlib import Path

from minires.arrays.files import complete


def new_figure(width: float, height: float, dots: int = 72):
    """A matplotlib Figure that belongs to no window.

    MPLBACKEND says how a notebook or a desktop shows figures. Where it names something that is
    not installed here, matplotlib would refuse even to be imported, so it is left out.

    width, height   in inches
    dots            per inch
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return Figure(figsize=(width, height), dpi=dots, layout="constrained")


def save_png(figure, path: str | Path, **settings) -> None:
    """Write a Figure as PNG; the file is complete or not there.

    figure     of `new_figure`
    path       the PNG file
    settings   of matplotlib's `savefig`
    """
    with complete(path) as file:
        figure.savefig(file, format="png", **settings)
