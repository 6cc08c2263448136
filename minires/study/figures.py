"""The figures of the MNIST study: vector graphics for a page, or PNG files for a README.

Every function below takes a sweep and returns a list of Panels; the list is empty if the records
hold nothing to plot. A panel is one small picture with its own axes, 400 points wide. So a page
shows two panels side by side, and a phone one below the other.

Each colour has a role. A PNG has the colours of the light theme. In an SVG each colour becomes a
CSS variable (`var(--accent)`), so that one picture serves both themes.

In all figures the mean model is blue, plain fine-tuning grey, ensembles orange. A solid line or a
full mark is with dropout, a dashed line or an open mark without.

An argument means the same in all of this file:

    groups   lists of records, one list for each point of a figure
    key      a kind of curve: "ensemble", "updates" or "noise"
"""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape

from minires.arrays.pictures import default_style, new_figure, save_png
from minires.study.grid import OPTIMIZERS, Setting
from minires.study.scores import by_setting
from minires.study.store import Sweep

# Colour-blind safe (after Okabe and Ito), with contrast for lines and text on white.
INK, MUTED, RULE, PAGE = "#1f2430", "#5d6572", "#e1e4e8", "#ffffff"
ACCENT, WARM, SKY, GREEN = "#0b62a8", "#bf5200", "#2b93c4", "#00805c"
VARIABLES = {
    INK: "ink", MUTED: "muted", RULE: "rule", PAGE: "page",
    ACCENT: "accent", WARM: "warm", SKY: "sky", GREEN: "green",
}  # fmt: skip

METHODS = {
    "pretrained": "pre-trained",
    "finetuned": "fine-tuned",
    "decayed": "fine-tuned, rate decayed",
    "ema": "moving average (EMA)",
    "mean": "mean model",
    "swa": "SWA, ends of cycles",
    "draw": "1 sampled network",
    "ensemble_3": "ensemble of 3",
    "ensemble_10": "ensemble of 10",
    "isotropic_10": "isotropic noise, 10",
    "swag": "SWAG, diagonal, 10",
    "swag_low_rank": "SWAG, low rank, 10",
    "snapshot": "snapshots of cycles (FGE)",
    "mc_dropout_10": "MC dropout, 10",
    "deep_ensemble": "deep ensemble",
}
COLOURS = {
    "pretrained": MUTED, "finetuned": MUTED, "mean": ACCENT, "draw": WARM,
    "ensemble_3": SKY, "ensemble_10": WARM, "deep_ensemble": GREEN,
}  # fmt: skip
MARKS = {"finetuned": "o", "mean": "o", "ensemble_3": "^", "ensemble_10": "s"}
FACTORS = {"accuracy": 100, "nll": 1, "brier": 1, "ece": 100}
COLLAPSED = 0.5  # accuracy, of ten classes
TITLE_SIZE, LABEL_SIZE, NOTE_SIZE = 12, 11, 10  # sizes of letters, in points
WIDTH = 400
BESIDE = 0.06  # the distance of series at the same tick, as a share of the ticks' distance


# --- what the records hold -----------------------------------------------------------------


def has_collapsed(record: dict) -> bool:
    """Whether the last iterate of a cell is hardly better than guessing."""
    method = "pretrained" if record["cell"]["l2"] is None else "finetuned"
    return record.get("methods", {}).get(method, {}).get("accuracy", 1) < COLLAPSED


def shown(sweep: Sweep, having: Callable = lambda record: True) -> dict[Setting, list]:
    """The records that figures and tables show: {Setting: its records in the order of seeds}.

    One collapsed network among ten changes a mean by nine points and hides everything else. So
    figures and tables leave such cells out, and say how many there are. Only the last iterate
    decides, never the mean model: if only the mean model fails, the cell stays in.

    having   record → whether to take it, if it has not collapsed
    """
    return by_setting(sweep.records, lambda r: not has_collapsed(r) and having(r))


def count_lost(sweep: Sweep) -> dict[Setting, int]:
    """{Setting: how many of its networks collapsed, or diverged}."""
    lost = [*filter(has_collapsed, sweep.records), *sweep.diverged]
    return {setting: len(records) for setting, records in by_setting(lost).items()}


def say_bars(groups: Iterable[list]) -> str:
    """A sentence about the bars of differences: intervals, or none if there are too few seeds."""
    from minires.study.statistics import LEAST_SEEDS

    if max(map(len, groups), default=0) < LEAST_SEEDS:
        return f"No bars: fewer than {LEAST_SEEDS} seeds are too few for an interval."
    return "Bars: 95 % intervals of the mean difference."


def say_seeds(groups: Iterable) -> str:
    """The number of seeds of several lists of records: "10 seeds", or "8 to 10 seeds"."""
    sizes = sorted({len(records) for records in groups})
    few, many = sizes[0], sizes[-1]
    seeds = "1 seed" if many == 1 else f"{many} seeds"
    return seeds if few == many else f"{few} to {seeds}"


def values_of(records: list, method: str, metric: str) -> np.ndarray:
    """(seeds,) the scores of a method, in the metric's unit (shares in per cent)."""
    scores = [r["methods"][method][metric] for r in records if method in r["methods"]]
    return np.array(scores, float) * FACTORS[metric]


def differences_of(
    records: list, method: str, metric: str, reference: str = "finetuned"
) -> np.ndarray:
    """(seeds,) method − reference of the same seed, in points or the metric's unit.

    reference   the method that is subtracted
    """
    both = [r for r in records if method in r["methods"] and reference in r["methods"]]
    return values_of(both, method, metric) - values_of(both, reference, metric)


def with_deviation(values: np.ndarray) -> tuple:
    """(mean, and one standard deviation (ddof = 1) below and above it: NaN for one value).

    values   (seeds,)
    """
    from minires.study import statistics

    mean, deviation = statistics.spread(values)
    return mean, mean - deviation, mean + deviation


def with_interval(values: np.ndarray) -> tuple:
    """(mean, and the ends of its 95 % interval: NaN below five values).

    values   (seeds,)
    """
    from minires.study import statistics

    return np.mean(values), *statistics.interval(values)


def number(value: float) -> str:
    """A learning rate as one reads it: 0.15, 0.00005.

    value   the rate
    """
    return np.format_float_positional(value, trim="-")


def name_dropout(dropout: float) -> str:
    """A share of dropped units as text.

    dropout   the share
    """
    return "with dropout" if dropout else "without dropout"


def describe(setting: Setting) -> str:
    """A setting as text."""
    words = f"trained with {OPTIMIZERS[setting.optimizer]} at ℓ₁ {number(setting.l1)}"
    if setting.l2 is not None:
        fine = OPTIMIZERS[setting.finetune_optimizer]
        words += f", fine-tuned with {fine} at ℓ₂ {number(setting.l2)}"
    return f"{words}, {name_dropout(setting.dropout)}"


def short_names(settings: Iterable[Setting]) -> dict[Setting, str]:
    """{setting: a short text that distinguishes it from the others}.

    settings   those that stand in one picture
    """
    settings = list(settings)
    if len({s.rates for s in settings}) == 1:
        return {s: name_dropout(s.dropout) for s in settings}
    return {
        s: f"{OPTIMIZERS[s.optimizer]} {number(s.l1)} → {OPTIMIZERS[s.finetune_optimizer]} "
        f"{number(s.l2)}, {name_dropout(s.dropout)}"
        for s in settings
    }


# --- a panel, and what it can become --------------------------------------------------------


@dataclass
class Panel:
    """One picture.

    name     what its file is called
    label    what it shows, for those who do not see it
    figure   a matplotlib Figure
    cursor   (axes, positions): a line that a slider moves to one of the positions
    """

    name: str
    label: str
    figure: object
    cursor: tuple = field(default=None, repr=False)

    def to_svg(self) -> str:
        """The panel as the text of one <svg> element, to stand in a page among others.

        Colours are CSS variables, the font is the page's. Of the names of elements only those
        that the drawing itself refers to are left, each with the panel's name before it.
        """
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with _style(self.name):
            _lay_out(self.figure)
            shift = self._place_cursor()
            self.figure.savefig(text, format="svg", transparent=True, metadata=nothing)
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        for unwanted in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
            svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
        svg = svg.replace('id="cursor"', f'class="cursor" data-shift="{shift}"')
        used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
        svg = re.sub(
            r' id="([^"]+)"',
            lambda m: f' id="{self.name}-{m[1]}"' if m[1] in used else "",
            svg,
        )
        svg = re.sub(r'xlink:href="#|url\(#', lambda m: _local(m[0]) + self.name + "-", svg)
        svg = re.sub(r'\b(d|transform|x|y|points)="[^"]*"', _round_numbers, svg)
        # The size and weight of letters stay; the family is the page's.
        svg = re.sub(r"font: ([\d. a-z]*?)([\d.]+)px [^;\"]*", _letters, svg)
        svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
        for colour, name in VARIABLES.items():
            svg = svg.replace(colour, f"var(--{name})")
        width, height = (round(72 * inches) for inches in self.figure.get_size_inches())
        start = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.label)}"'
        return re.sub(r"<svg[^>]*", lambda m: start, svg, count=1).strip()

    def to_png(self, path: Path, dots: int = 120) -> None:
        """Write the panel on white, `dots` pixels an inch.

        path   of the file
        dots   pixels per inch
        """
        with _style(self.name):
            _lay_out(self.figure)
            sliders = [] if self.cursor is None else [self.cursor[0].lines[-1]]
            for line in sliders:
                line.set_visible(False)
            save_png(self.figure, path, dpi=dots, facecolor=PAGE, pil_kwargs={"optimize": True})
            for line in sliders:
                line.set_visible(True)

    def _place_cursor(self):
        """How far each position lies from the first one, in the drawing's units, as JSON."""
        if self.cursor is None:
            return ""
        axes, positions = self.cursor
        places = axes.transData.transform([(p, 0) for p in positions])[:, 0]
        return json.dumps([round(float(p - places[0]), 1) for p in places]).replace(" ", "")


def _style(name):
    import contextlib

    import matplotlib

    stack = contextlib.ExitStack()
    stack.enter_context(matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}))
    stack.enter_context(warnings.catch_warnings())
    # The font that measures texts may lack a letter of a layer's name; the browser's font has it.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    return stack


def _lay_out(figure):
    """Find room for all labels only once; matplotlib would do it for every file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def _local(reference):
    return reference.replace("xlink:", "")


def _round_numbers(match):
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", match[0])


def _letters(match):
    weight = match[1].strip()
    return f"font-size: {match[2]}px" + (f"; font-weight: {weight}" if weight else "")


def new_canvas(width: float, height: float) -> Any:
    """A figure of so many points.

    width     in points
    height    in points
    Returns   a matplotlib Figure
    """
    return new_figure(width / 72, height / 72)


def tidy(axes: Any, x: str = "", y: str = "", grid: str = "y") -> None:
    """Thin lines, words in ink, no box.

    axes   of matplotlib
    x      words below the axes
    y      words beside the axes
    grid   "x" or "y": across which axis lines are drawn
    """
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=MUTED)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=MUTED, rotation_mode="anchor")
    axes.grid(axis=grid, color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=LABEL_SIZE, labelcolor=MUTED, color=RULE, length=3)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)


def put_head(figure: Any, title: str, handles: Iterable = (), columns: int = 1) -> None:
    """The title, and below it the legend, both at the left edge.

    figure    of matplotlib
    title     of the panel
    handles   entries of the legend, as from `new_handle`
    columns   of the legend
    """
    legend = figure.legend(
        handles=list(handles), title=title, loc="outside upper left", ncols=columns, frameon=False,
        alignment="left", title_fontproperties={"size": TITLE_SIZE, "weight": "bold"},
        fontsize=LABEL_SIZE, labelcolor=INK, handlelength=2.5, columnspacing=1.4,
        handletextpad=0.5, borderpad=0.2,
    )  # fmt: skip
    legend.get_title().set_color(INK)


def new_handle(
    label: str, colour: str, mark: str = "", line: Any = "-", full: bool = True, width: float = 1.6
) -> Any:
    """An entry of a legend.

    label    its text
    colour   of line and mark
    mark     a marker of matplotlib; "": none
    line     a line style of matplotlib
    full     whether the mark is filled
    width    of the line, in points
    """
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=colour, marker=mark, ls=line, lw=width, ms=5.5, label=label,
        markerfacecolor=colour if full else PAGE,
    )  # fmt: skip


def _look(dropout):
    """Line style, and whether marks are full."""
    return ("-", True) if dropout else ((0, (4, 2.2)), False)


def _dropout_handles(dropouts, colour=INK, mark="o"):
    handles = []
    for dropout in sorted(dropouts, reverse=True):
        line, full = _look(dropout)
        handles.append(new_handle(name_dropout(dropout), colour, mark, line, full))
    return handles


# --- figures over the learning rates --------------------------------------------------------


def accuracy_over_rates(sweep: Sweep, optimizer: str = "sgd") -> list[Panel]:
    """The paper's Figures 1 ("sgd") and 2 ("adam"): accuracy over ℓ₁, and within it over ℓ₂.

    A panel with dropout and one without. Points are means over seeds, bars the standard deviation.
    Fine-tuning with Adam has no ℓ₂ to lie over; as in the paper its mean model is a black line,
    here with plain Adam below it.
    """
    shown = ("finetuned", "mean", "ensemble_3", "ensemble_10")
    name = "figure-1" if optimizer == "sgd" else "figure-2"
    panels = [
        _over_rates(
            sweep, optimizer, f"{name}-dropout-{number(dropout)}", shown, {dropout},
            lambda r, m: with_deviation(values_of(r, m, "accuracy")),
            "test accuracy, %", f"Test accuracy, {name_dropout(dropout)}",
        )
        for dropout in sorted(dropouts_of(sweep, optimizer), reverse=True)
    ]  # fmt: skip
    limits = [axes.get_ylim() for panel in panels for axes in panel.figure.axes]
    for axes in (axes for panel in panels for axes in panel.figure.axes):
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return panels


def differences_over_rates(sweep: Sweep, optimizer: str = "sgd") -> list[Panel]:
    """Mean model − fine-tuned, paired by seed, in three metrics; bars are 95 % intervals."""
    number_of, dropouts = 1 if optimizer == "sgd" else 2, dropouts_of(sweep, optimizer)
    if not dropouts:
        return []
    return [
        _over_rates(
            sweep, optimizer, f"figure-{number_of}-{metric}", ("mean",), dropouts,
            lambda r, m, metric=metric: with_interval(differences_of(r, m, metric)),
            unit, f"Mean model minus fine-tuned: {title}", zero=True,
        )
        for metric, unit, title in (
            ("accuracy", "points of accuracy (up is better)", "accuracy"),
            ("nll", "NLL (down is better)", "NLL"),
            ("ece", "points of ECE (down is better)", "calibration error"),
        )
    ]  # fmt: skip


def dropouts_of(sweep: Sweep, optimizer: str) -> set[float]:
    """The dropouts of all networks that one optimizer trained and SGD fine-tuned."""
    return {
        s.dropout for s in shown(sweep) if (s.optimizer, s.finetune_optimizer) == (optimizer, "sgd")
    }


def _over_rates(sweep, optimizer, name, methods, dropouts, measure, unit, title, zero=False):
    """One panel: groups of one ℓ₁, two in a row; within a group every ℓ₂ from left to right."""
    groups = {
        s: r for s, r in shown(sweep).items() if s.optimizer == optimizer and s.dropout in dropouts
    }
    over = {(s.l1, s.l2, s.dropout): r for s, r in groups.items() if s.finetune_optimizer == "sgd"}
    beside = {s: r for s, r in groups.items() if s.finetune_optimizer == "adam"}
    fallen = {}
    for s, count in count_lost(sweep).items():
        found = s.optimizer == optimizer and s.dropout in dropouts
        if found and s.finetune_optimizer == "sgd":
            fallen[s.l1, s.l2] = fallen.get((s.l1, s.l2), 0) + count
    rates = sorted({l1 for l1, _, _ in over})
    columns = min(2, len(rates))
    rows = [rates[i : i + columns] for i in range(0, len(rates), columns)]
    figure = new_canvas(WIDTH, (66 if zero else 84) + (260 if len(rows) == 1 else 220) * len(rows))
    all_axes = figure.subplots(len(rows), 1, squeeze=False, sharey=True)[:, 0]
    for axes, row in zip(all_axes, rows, strict=True):
        _draw_row(axes, row, columns, over, fallen, methods, measure, zero)
        lines = _draw_beside(axes, beside, zero, measure) if beside else []
        tidy(axes, y=unit)
    _crop(all_axes, least=0 if zero else 1)  # a point of accuracy is not far
    if zero:
        handles = _dropout_handles(dropouts)
    else:
        line, full = _look(max(dropouts))
        handles = [new_handle(METHODS[m], COLOURS[m], MARKS[m], line, full) for m in methods]
    put_head(figure, title, handles + lines, 2)
    label = f"{title}: {unit} of {', '.join(METHODS[m] for m in methods)} for ℓ₁ "
    label += f"{', '.join(map(number, rates))}, each with every ℓ₂"
    return Panel(name, label, figure)


def _draw_row(axes, rates, places, over, fallen, methods, measure, zero):
    """Groups of one ℓ₁ each beside each other; within a group ℓ₂ runs from left to right."""
    steps = sorted({l2 for _, l2, _ in over} | {l2 for _, l2 in fallen})
    pitch = 0.84 / len(steps)
    dropouts = sorted({dropout for _, _, dropout in over}, reverse=True)
    series = [(method, dropout) for method in methods for dropout in dropouts]
    ticks = {}
    if zero:
        axes.axhline(0, color=MUTED, lw=1)
    for place, l1 in enumerate(rates):
        if place:
            axes.axvline(place - 0.5, color=RULE, lw=0.8)
        centres = {l2: place + (i - (len(steps) - 1) / 2) * pitch for i, l2 in enumerate(steps)}
        ticks |= {x: number(l2) for l2, x in centres.items()}
        for l2, x in centres.items():
            _count_fallen(axes, x, fallen.get((l1, l2), 0))
        axes.annotate(
            f"ℓ₁ = {number(l1)}", (place, 0), (0, -23), ("data", "axes fraction"),
            "offset points", fontsize=LABEL_SIZE, color=INK, ha="center", va="top",
        )  # fmt: skip
        for rank, (method, dropout) in enumerate(series):
            # Almost on the tick: a small shift keeps the bars apart.
            aside = (rank - (len(series) - 1) / 2) * BESIDE * pitch
            points = []
            for l2, x in centres.items():
                records = over.get((l1, l2, dropout), [])
                if any(method in r["methods"] for r in records):
                    points.append((x + aside, *measure(records, method)))
            if points:
                _draw_points(axes, np.array(points), COLOURS[method], MARKS[method], dropout)
    axes.set_xlim(-0.5, places - 0.5)
    axes.set_xticks(list(ticks), ticks.values())
    axes.annotate("ℓ₂ =", (0, 0), (-4, -6), "axes fraction", "offset points", fontsize=LABEL_SIZE,
                  color=MUTED, ha="right", va="top")  # fmt: skip


def _count_fallen(axes, x, count):
    if count:
        axes.annotate(f"✕ {count}", (x, 1), (0, 7), ("data", "axes fraction"), "offset points",
                      fontsize=NOTE_SIZE, color=MUTED, ha="center")  # fmt: skip


def _crop(all_axes, least):
    """If a few settings failed, choose the scale for the others, and say so.

    A point is off the scale when its distance to the median is more than ten times the median
    distance, and more than `least`. This is done only if it makes the scale three times finer. A
    triangle at the edge stands for each such point.
    """
    drawn = {
        axes: [line for line in axes.lines if line.get_transform().contains_branch_seperately(
            axes.transData)[1]]
        for axes in all_axes
    }  # fmt: skip
    heights = np.concatenate([line.get_ydata() for lines in drawn.values() for line in lines])
    middle = np.median(heights)
    reach = max(least, 10 * np.median(abs(heights - middle)))
    inside = heights[abs(heights - middle) <= reach]
    if not reach or np.ptp(heights) < 3 * np.ptp(inside):
        return
    pad = 0.12 * np.ptp(inside)
    bottom, top = inside.min() - pad, inside.max() + pad
    for axes in all_axes:
        axes.set_ylim(bottom, top)
        gone = []
        for line in drawn[axes]:
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                if not bottom <= y <= top:
                    gone.append(y)
                    axes.plot(x, bottom if y < bottom else top, "v" if y < bottom else "^", ms=7,
                              color=line.get_color(), clip_on=False, zorder=4)  # fmt: skip
        if gone:
            farthest = max(gone, key=lambda y: abs(y - middle))
            words = "▼ off the scale, down to" if farthest < bottom else "▲ off the scale, up to"
            axes.annotate(
                f"{words} {farthest:.3g}".replace("-", "−"), (0.02, 0.03),
                xycoords="axes fraction", fontsize=NOTE_SIZE, color=MUTED, zorder=5,
                bbox={"facecolor": PAGE, "alpha": 0.85, "lw": 0, "pad": 1.5},
            )  # fmt: skip


def _draw_points(axes, points, colour, mark, dropout, size=4.2):
    line, full = _look(dropout)
    x, y, low, high = points.T
    axes.vlines(x, low, high, color=colour, lw=0.9, alpha=0.45)
    axes.plot(x, y, color=colour, ls=line, lw=1.3, marker=mark, ms=size, mew=1.1,
              markerfacecolor=colour if full else PAGE)  # fmt: skip


def _draw_beside(axes, beside, zero, measure):
    """Adam's fine-tuning as straight lines, since it has one ℓ₂. Returns handles of the legend."""
    handles, dropouts = [], {setting.dropout for setting in beside}
    line_of_most = _look(max(dropouts))[0]
    for method, colour, words in (
        ("mean", INK, "mean model"),
        ("finetuned", MUTED, "fine-tuned"),
    ):
        if zero and method == "finetuned":
            continue
        for setting, records in beside.items():
            line, _ = _look(setting.dropout)
            axes.axhline(measure(records, method)[0], color=colour, ls=line, lw=1.6, zorder=1.5)
        handles.append(new_handle(f"{words}, by Adam", colour, line=line_of_most))
    return handles


def pretraining_over_rates(sweep: Sweep) -> list[Panel]:
    """The accuracy of the pre-trained networks over ℓ₁ of SGD: is the paper's range the best?"""
    trained = {s: r for s, r in shown(sweep).items() if s.optimizer == "sgd"}
    groups = {s: r for s, r in trained.items() if s.l2 is None}
    if not groups:
        return []
    figure = new_canvas(WIDTH, 300)
    axes = figure.subplots()
    fallen = {}
    for s, count in count_lost(sweep).items():
        if s.finetune_optimizer is None and s.optimizer == "sgd":
            fallen[s.l1] = fallen.get(s.l1, 0) + count
    rates = sorted({s.l1 for s in groups} | set(fallen))
    place = {rate: i for i, rate in enumerate(rates)}
    tuned = {s.l1 for s in trained if s.l2 is not None}
    if tuned:
        inner = [place[rate] for rate in rates if rate in tuned]
        if inner:
            axes.axvspan(inner[0] - 0.4, inner[-1] + 0.4, color=ACCENT, alpha=0.07, lw=0)
    dropouts = sorted({s.dropout for s in groups}, reverse=True)
    most = BESIDE * len(rates) / 6  # as far on the page, whatever the number of rates
    for dropout, aside in zip(dropouts, np.linspace(-most, most, len(dropouts)), strict=True):
        points = [
            (place[s.l1] + aside, *with_deviation(values_of(records, "pretrained", "accuracy")))
            for s, records in groups.items()
            if s.dropout == dropout
        ]
        _draw_points(axes, np.array(points), MUTED, "o", dropout)
    for rate, count in fallen.items():
        _count_fallen(axes, place[rate], count)
    axes.set_xticks(range(len(rates)), [number(rate) for rate in rates])
    axes.set_xlim(-0.5, len(rates) - 0.5)
    tidy(axes, "ℓ₁", "test accuracy, %")
    put_head(figure, "Pre-trained networks", _dropout_handles(dropouts, MUTED), 2)
    label = f"Test accuracy of the pre-trained networks for ℓ₁ {', '.join(map(number, rates))}"
    return [Panel("pretraining", label, figure)]


# --- baselines ------------------------------------------------------------------------------


EXTRA = {"decayed", "swa", "swag", "swag_low_rank", "snapshot", "isotropic_10", "mc_dropout_10"}


def baseline_settings(sweep: Sweep) -> dict[Setting, list]:
    """{Setting: records} of the cells in which the other methods were measured."""
    return shown(sweep, lambda record: EXTRA & set(record["methods"]))


def deep_ensembles_of(sweep: Sweep, setting: Setting) -> list[dict]:
    """The deep ensembles of a setting that have as many members as its largest one."""
    own = [entry for entry in sweep.deep_ensembles if Setting(**entry["cell"]) == setting]
    most = max((entry["members"] for entry in own), default=0)
    return [entry for entry in own if entry["members"] == most]


def baselines(sweep: Sweep) -> list[Panel]:
    """All methods at equal budget: difference to fine-tuned, paired by seed, with 95 % intervals.

    Three panels, accuracy, NLL and ECE, for each setting apart from dropout.
    """
    settings = baseline_settings(sweep)
    panels = []
    for number_of, rates in enumerate(dict.fromkeys(s.rates for s in settings), 1):
        same = {s: records for s, records in settings.items() if s.rates == rates}
        for metric, unit in (
            ("accuracy", "points of accuracy"), ("nll", "NLL"), ("ece", "points of ECE")
        ):  # fmt: skip
            panels.append(_draw_baselines(sweep, same, metric, unit, number_of))
    return panels


def _draw_baselines(sweep, settings, metric, unit, number_of):
    deep = {s: deep_ensembles_of(sweep, s) for s in settings}
    held = {m for records in settings.values() for r in records for m in r["methods"]}
    held |= {"deep_ensemble"} if any(deep.values()) else set()
    shown = [m for m in METHODS if m in held and m not in ("pretrained", "finetuned")]
    figure = new_canvas(WIDTH, 92 + 21 * len(shown))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, lw=1)
    asides = np.linspace(-0.16, 0.16, len(settings)) if len(settings) > 1 else [0]
    for aside, (setting, records) in zip(asides, settings.items(), strict=True):
        _, full = _look(setting.dropout)
        base = values_of(records, "finetuned", metric).mean()
        for row, method in enumerate(shown):
            colour = COLOURS.get(method, INK)
            look = {"color": colour, "mew": 1.1, "markerfacecolor": colour if full else PAGE}
            if method == "deep_ensemble":
                values = [e[metric] * FACTORS[metric] - base for e in deep[setting]]
                axes.plot(values, [row + aside] * len(values), "D", ms=4.6, **look)
                continue
            values = differences_of(records, method, metric)
            if len(values):
                middle, low, high = with_interval(values)
                axes.plot([low, high], [row + aside] * 2, color=colour, lw=1.1)
                axes.plot(middle, row + aside, "o", ms=5.2, **look)
    axes.set_yticks(range(len(shown)), [METHODS[m] for m in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    better = "right is better" if metric == "accuracy" else "left is better"
    tidy(axes, f"{unit} ({better})", grid="x")
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.spines["left"].set_visible(False)
    handles = _points_only(_dropout_handles({s.dropout for s in settings}))
    put_head(figure, f"Difference to fine-tuned: {unit}", handles, 2)
    label = f"Difference of each method to plain fine-tuning in {unit}; the table gives the numbers"
    return Panel(f"baselines-{number_of}-{metric}", label, figure)


def _points_only(handles):
    for handle in handles:
        handle.set_linestyle("")
    return handles


# --- curves ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The texts and the colour of one kind of curve.

    key      its name in the records
    axis     the name of its values along x
    x        words below the axis
    title    words above
    colour   of its lines
    log      whether x is logarithmic
    """

    key: str
    axis: str
    x: str
    title: str
    colour: str
    log: bool = False


CURVES = {
    "ensemble": Curve("ensemble", "members", "networks in the ensemble", "Ensemble size", WARM),
    "updates": Curve("updates", "updates", "updates averaged", "Updates averaged", ACCENT, True),
    "noise": Curve("noise", "scale", "noise scale s", "Noise dial: mean + s·σ·ε", WARM),
}


def curve_records(sweep: Sweep, key: str) -> dict[Setting, list]:
    """{Setting: the records that have a curve of one kind}."""
    return shown(sweep, lambda record: key in record.get("curves", {}))


def curve_table(sweep: Sweep, key: str) -> tuple[list, dict]:
    """The curves of one kind, averaged over seeds.

    Returns   (positions, {Setting: row}): what the records have in common along x, and in
              row["accuracy"] and row["nll"] the means over seeds, one for each position; in
              row["accuracy_difference"] and row["nll_difference"] that to fine-tuned of the
              same seed: (mean, low, high) for each position, with the 95 % interval
    """
    curve, held = CURVES[key], curve_records(sweep, key)
    if not held:
        return [], {}
    lists = [r["curves"][key][curve.axis] for records in held.values() for r in records]
    positions = sorted(set(lists[0]).intersection(*lists[1:]))
    table = {}
    for setting, records in held.items():
        row = table[setting] = {}
        for metric in ("accuracy", "nll"):
            base = values_of(records, "finetuned", metric)
            scores = FACTORS[metric] * np.array(
                [[_at(r["curves"][key], curve.axis, metric, p) for p in positions] for r in records]
            )
            row[metric] = scores.mean(axis=0).tolist()
            row[f"{metric}_difference"] = [with_interval(column - base) for column in scores.T]
    return positions, table


def _at(curve, axis, metric, position):
    return curve[metric][curve[axis].index(position)]


def curves(sweep: Sweep, key: str) -> list[Panel]:
    """Accuracy and NLL along one of CURVES, as the difference to fine-tuned of the same seed.

    The bands are 95 % intervals. The thin line at zero is the last iterate.
    """
    positions, table = curve_table(sweep, key)
    if not positions:
        return []
    curve = CURVES[key]
    names = short_names(table)
    heads = list(dict.fromkeys(s.rates for s in table))
    palette = [curve.colour, GREEN, SKY, MUTED]
    panels = []
    for metric, unit in (("accuracy", "points of accuracy"), ("nll", "NLL")):
        figure = new_canvas(WIDTH, 300)
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, lw=1)
        handles = []
        for setting, row in table.items():
            colour = palette[heads.index(setting.rates) % len(palette)]
            middle, low, high = np.array(row[f"{metric}_difference"]).T
            line, full = _look(setting.dropout)
            axes.fill_between(positions, low, high, color=colour, alpha=0.13, lw=0)
            axes.plot(positions, middle, color=colour, ls=line, lw=1.5, marker="o", ms=4.2,
                      mew=1.1, markerfacecolor=colour if full else PAGE)  # fmt: skip
            handles.append(new_handle(names[setting], colour, "o", line, full))
        if curve.log:
            axes.set_xscale("log")
            ticks = [p for p in (1, 10, 100, 500, 1000) if positions[0] <= p <= positions[-1]]
            axes.set_xticks(ticks, map(number, ticks))
            axes.set_xticks([], minor=True)
        elif len(positions) <= 12:
            axes.set_xticks(positions, [number(p) for p in positions])
        better = "up is better" if metric == "accuracy" else "down is better"
        tidy(axes, curve.x, f"difference to fine-tuned ({better})")
        put_head(figure, f"{curve.title}: {unit}", handles, 2 if len(heads) == 1 else 1)
        # The last line drawn is the slider's.
        axes.axvline(positions[0], color=INK, lw=1, gid="cursor")
        label = f"{curve.title}: difference to fine-tuned in {unit} over {curve.x}"
        panels.append(Panel(f"{key}-{metric}", label, figure, cursor=(axes, positions)))
    return panels


# --- calibration ----------------------------------------------------------------------------


# With fewer images in a bin, its share is only a rough guess: the mark is faint, without a line.
FEW = 20


def reliability_records(sweep: Sweep) -> dict[Setting, list]:
    """{Setting: the records that have bins of confidence}."""
    return shown(sweep, lambda record: "reliability" in record)


def reliability(sweep: Sweep) -> list[Panel]:
    """Accuracy over confidence in 15 bins, all seeds together; below, how many images lie there."""
    held = reliability_records(sweep)
    names = short_names(held)
    panels = []
    for number_of, (setting, records) in enumerate(held.items(), 1):
        entries = [record["reliability"] for record in records]
        methods = [m for m in ("finetuned", "mean", "ensemble_10") if all(m in e for e in entries)]
        figure = new_canvas(WIDTH, 370)
        above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
        above.plot([0, 1], [0, 1], color=MUTED, lw=1)
        for rank, method in enumerate(methods):
            confidence, accuracy, count = pool_bins([entry[method] for entry in entries])
            colour, mark = COLOURS[method], MARKS[method]
            # The area of a mark grows with the logarithm of the images it stands for.
            many = count >= FEW
            above.plot(confidence[many], accuracy[many], color=colour, lw=1.1, alpha=0.6)
            for chosen, strength in ((many, 0.9), (~many, 0.3)):
                above.scatter(
                    confidence[chosen], accuracy[chosen], marker=mark, color=colour, lw=0,
                    s=8 + 9 * np.log10(np.maximum(count[chosen], 1)), alpha=strength,
                )  # fmt: skip
            bins = len(count)
            width = 0.8 / bins / len(methods)
            centres = (np.arange(bins) + 0.5) / bins + (rank - (len(methods) - 1) / 2) * width
            below.bar(centres, count, width, color=colour, lw=0)
        below.set_yscale("log")
        below.set_xlim(0, 1.02)
        above.set_ylim(0, 1.02)
        title = f"Reliability, {names[setting]}" if len(held) > 1 else "Reliability"
        tidy(above, "", "share that is right")
        tidy(below, "confidence", "images")
        below.set_ylim(bottom=0.8)
        figure.align_ylabels()
        handles = [new_handle(METHODS[m], COLOURS[m], MARKS[m], width=1.1) for m in methods]
        put_head(figure, title, handles, 3)
        label = f"Reliability diagram, {describe(setting)}: share of right answers over confidence"
        panels.append(Panel(f"reliability-{number_of}", label, figure))
    return panels


def pool_bins(entries: list[dict]) -> tuple:
    """The bins of several seeds as one: (confidence, accuracy, count), NaN in empty bins.

    entries   bins of each seed, as a record's "reliability" has them
    """
    count = np.array([e["count"] for e in entries], float)
    total = count.sum(axis=0)

    def pooled(name):
        values = np.array([[np.nan if v is None else v for v in e[name]] for e in entries], float)
        sums = np.where(count > 0, values * count, 0).sum(axis=0)
        return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)

    return pooled("confidence"), pooled("accuracy"), total


# --- the portrait ---------------------------------------------------------------------------


def find_portrait(sweep: Sweep) -> tuple | None:
    """(Setting, seed, portrait) of the first record that has one, or None."""
    for setting, (record, *_) in shown(sweep, lambda record: record.get("portrait")).items():
        return setting, record["cell"]["seed"], record["portrait"]
    return None


def portrait(sweep: Sweep, part: str) -> list[Panel]:
    """One part of the portrait of one network: "sigma", "line" or "plane".

    part   which one
    """
    found = find_portrait(sweep)
    if not found or not found[2].get(part):
        return []
    return {"sigma": _draw_sigma, "line": _draw_line, "plane": _draw_plane}[part](found[2][part])


def _draw_sigma(layers):
    """σ of every filter as a strip for each layer, and σ's quantiles in each."""
    from matplotlib.colors import to_rgba

    names = [name if len(name) <= 24 else name[:23] + "…" for name in (x["name"] for x in layers)]
    rows = range(len(layers))
    height = 78 + 26 * len(layers)

    strips = new_canvas(WIDTH, height)
    axes = strips.subplots()
    logs = [np.log10(np.maximum(np.asarray(layer["filters"], float), 1e-30)) for layer in layers]
    real = np.concatenate([log[log > -30] for log in logs]) if logs else np.zeros(1)
    low, high = (real.min(), real.max()) if len(real) else (0, 1)
    for row, log in zip(rows, logs, strict=True):
        strength = np.clip((log - low) / max(high - low, 1e-9), 0, 1)
        # An eye cannot distinguish forty steps of strength; so few keep the file small.
        colours = [to_rgba(ACCENT, 0.06 + 0.94 * round(s * 40) / 40) for s in strength]
        edges = np.linspace(0, 1, len(log) + 1)
        axes.bar(edges[:-1], 0.7, np.diff(edges), row - 0.35, align="edge", color=colours, lw=0)
        axes.text(1.015, row, str(len(log)), fontsize=NOTE_SIZE, color=MUTED, va="center")
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_ylim(len(layers) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    words = f"faint: σ = {10**low:.1g};  strong: σ = {10**high:.1g}"
    tidy(axes, f"filters or units   ({words})", grid="x")
    put_head(strips, "σ of each filter, layer by layer")
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.spines[["left", "bottom"]].set_visible(False)

    ranges = new_canvas(WIDTH, height)
    axes = ranges.subplots()
    for row, layer in zip(rows, layers, strict=True):
        q5, q25, q50, q75, q95 = layer["quantiles"]
        axes.plot([q5, q95], [row, row], color=ACCENT, lw=1.2, solid_capstyle="butt")
        axes.plot([q25, q75], [row, row], color=ACCENT, lw=5, alpha=0.45, solid_capstyle="butt")
        axes.plot(q50, row, "o", color=ACCENT, ms=5)
        if layer.get("relative") is not None:
            axes.annotate(f"{100 * layer['relative']:.1f} %", (1, row), (4, 0),
                          ("axes fraction", "data"), "offset points", fontsize=NOTE_SIZE,
                          color=MUTED, va="center", annotation_clip=False)  # fmt: skip
    ends = [q for layer in layers for q in (layer["quantiles"][0], layer["quantiles"][-1])]
    if min(ends) > 0 and max(ends) > 12 * min(ends):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=4)
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_ylim(len(layers) - 0.45, -0.55)
    axes.annotate("σ / w", (1, 1), (4, 0), "axes fraction", "offset points", fontsize=NOTE_SIZE,
                  color=MUTED)  # fmt: skip
    tidy(axes, "σ: median, middle half, 5 to 95 %", grid="x")
    put_head(ranges, "σ in each layer, and relative to the weights")
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.spines["left"].set_visible(False)
    return [
        Panel("sigma-map", "Standard deviation of each filter's weights, layer by layer", strips),
        Panel("sigma-ranges", "Quantiles of the weights' standard deviation by layer", ranges),
    ]


STATIONS = {"pretrained": "pre-trained", "finetuned": "fine-tuned", "mean": "mean model"}


def _draw_line(line):
    """Loss along the straight lines from pre-trained to fine-tuned to the mean."""
    figure = new_canvas(WIDTH, 330)
    axes = figure.subplots()
    for place in range(3):
        axes.axvline(place, color=RULE, lw=0.8)
    position = np.array(line["position"], float)
    for key, colour, style in (("train_loss", MUTED, (0, (4, 2.2))), ("test_loss", ACCENT, "-")):
        loss = np.array(line[key], float)
        axes.plot(position, loss, color=colour, ls=style, lw=1.6)
        at = [int(np.abs(position - place).argmin()) for place in range(3)]
        axes.plot(position[at], loss[at], "o", color=colour, ms=5)
    losses = np.concatenate([line["train_loss"], line["test_loss"]]).astype(float)
    if losses.min() > 0 and losses.max() > 15 * losses.min():
        axes.set_yscale("log")
    axes.set_xticks(range(3), STATIONS.values())
    tidy(axes, "", "loss (NLL)")
    handles = [new_handle("test", ACCENT), new_handle("training", MUTED, line=(0, (4, 2.2)))]
    put_head(figure, "Loss along the way", handles, 2)
    label = "Training and test loss on the line from pre-trained to fine-tuned to the mean model"
    return [Panel("loss-line", label, figure)]


def _draw_plane(plane):
    """Test loss on the plane through the three networks."""
    tall = np.ptp(plane["y"]) / np.ptp(plane["x"])
    figure = new_canvas(WIDTH, 68 + 340 * float(np.clip(tall, 0.3, 1.6)))
    axes = figure.subplots()
    loss = np.array(plane["test_loss"], float)
    low, high = np.nanmin(loss), np.nanmax(loss)
    if not high > low:
        return []
    # Levels are dense near the best network, where the interesting differences are.
    levels = low + (high - low) * np.linspace(0, 1, 10) ** 2
    strengths = np.linspace(0.02, 0.5, len(levels) - 1)
    axes.contourf(plane["x"], plane["y"], loss, levels,
                  colors=[(*_rgb(ACCENT), s) for s in strengths])  # fmt: skip
    lines = axes.contour(plane["x"], plane["y"], loss, levels[1:-1], colors=ACCENT, linewidths=0.7,
                         alpha=0.55)  # fmt: skip
    axes.clabel(lines, lines.levels[::2], fontsize=NOTE_SIZE, fmt=lambda v: f"{v:.3g}", colors=INK)
    points = {name: plane["points"][name] for name in STATIONS if name in plane["points"]}
    route = np.array(list(points.values()))
    axes.plot(*route.T, color=INK, lw=1, ls=(0, (2, 2)))
    for name, (x, y) in points.items():
        colour = {"pretrained": INK, "finetuned": INK, "mean": ACCENT}[name]
        axes.plot(x, y, "o", ms=7, color=colour, markeredgecolor=PAGE, mew=1.2)
        below = y < route[:, 1].mean()
        share = (x - plane["x"][0]) / (plane["x"][-1] - plane["x"][0])
        axes.annotate(
            STATIONS[name], (x, y), (0, -8 if below else 8), textcoords="offset points",
            fontsize=LABEL_SIZE, color=colour, va="top" if below else "bottom", weight="bold",
            bbox={"facecolor": PAGE, "alpha": 0.75, "lw": 0, "pad": 1.2},
            ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="box")
    tidy(axes, "distance in θ", "distance in θ")
    put_head(figure, "Test loss on the plane through the three")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    label = "Contours of the test loss on the plane through the pre-trained, the fine-tuned and "
    return [Panel("loss-plane", label + "the mean network", figure)]


def _rgb(colour):
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


# --- all of them ----------------------------------------------------------------------------


@default_style()
def draw_all(sweep: Sweep) -> dict[str, list[Panel]]:
    """Every panel that the records allow, by the name of its section."""
    return {
        "figure-1": accuracy_over_rates(sweep, "sgd"),
        "figure-1-differences": differences_over_rates(sweep, "sgd"),
        "pretraining": pretraining_over_rates(sweep),
        "figure-2": accuracy_over_rates(sweep, "adam"),
        "figure-2-differences": differences_over_rates(sweep, "adam"),
        "baselines": baselines(sweep),
        "ensemble": curves(sweep, "ensemble"),
        "updates": curves(sweep, "updates"),
        "noise": curves(sweep, "noise"),
        "reliability": reliability(sweep),
        "sigma": portrait(sweep, "sigma"),
        "line": portrait(sweep, "line"),
        "plane": portrait(sweep, "plane"),
    }


def write_pngs(sections: dict, folder: Path) -> list[Path]:
    """Write every panel as PNG.

    sections   what `draw_all` returns
    folder     made if need be
    Returns    the paths
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for panel in (panel for panels in sections.values() for panel in panels):
        paths.append(folder / f"{panel.name}.png")
        panel.to_png(paths[-1])
    return paths
