"""What the lessons share: the look of their pictures, a bar, and how a wrong answer is shown."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minires.arrays import text

# Told apart on a projector, in print and by a colour-blind eye: each has its own dashes, and the
# first four have four greys.
COLOURS = ("#0b3954", "#d55e00", "#7fa8d1", "#7b2d8b", "#2f9e44", "#868e96")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))


def picture_style() -> None:
    """Make Matplotlib draw for a projector: large letters, thick lines, and dashes that differ."""
    from cycler import cycler
    from matplotlib import rcParams

    rcParams.update(
        {
            "axes.grid": True,
            "axes.labelsize": 13,
            "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=DASHES),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 14,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.wspace": 0.06,
            "figure.dpi": 110,
            "figure.figsize": (9, 4.6),
            "font.size": 12,
            "grid.alpha": 0.35,
            "image.cmap": "cividis",
            "legend.frameon": False,
            "lines.linewidth": 2.2,
            "savefig.dpi": 110,
        }
    )


def bar(steps: Iterable, what: str) -> Iterator:
    """Go through `steps`; below the cell a bar shows how far it is, and goes away at the end.

    steps   such as range(500)
    what    is done in one word, such as "training"
    """
    return iter(text.progress(steps, desc=what, leave=False))


def rejected(check: Callable, answer: Any, *arguments: Any, **settings: Any) -> None:
    """Print what a check says to a wrong answer.

    check       a `check_…` of `minires.testing`
    answer      what it is to judge, and its other arguments
    arguments   of the check
    settings    its named arguments
    Raises      AssertionError when the check finds nothing wrong
    """
    try:
        check(answer, *arguments, **settings)
    except AssertionError as error:
        print(error)
        return
    raise AssertionError(f"{check.__name__} accepts {answer.__name__}, which is wrong")
