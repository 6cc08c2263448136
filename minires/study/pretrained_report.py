"""`minires report DIR` of a pre-trained sweep: the paper's Figures 3 and 4, and the verdicts.

The page is pretrained.html.j2, which shares style and tables with the page of the MNIST study.

An argument means the same in all of this file:

    found   `pretrained_findings.Findings`
"""

import shlex
from pathlib import Path

import numpy as np
from markupsafe import Markup

from minires.data.imagenet import PRESETS
from minires.study import figures
from minires.study.pretrained_findings import (
    HEADS,
    METHODS,
    METRICS,
    Difference,
    Findings,
    differs,
    table,
    verdicts,
)
from minires.study.report import DARK, OUTCOMES, STATES, template

DRAWN = ("finetuned", "ema", "mean", "ensemble_3", "ensemble_10")
POLICIES = ("mean", "mean_recomputed", "mean_last")
COLOURS = figures.COLOURS | {
    "ema": figures.GREEN, "mean_recomputed": figures.GREEN, "mean_last": figures.WARM,
}  # fmt: skip
MARKS = {**figures.MARKS, "ema": "D", "mean_recomputed": "D", "mean_last": "s"}
NAMES = {"accuracy": "accuracy", "nll": "NLL"}
WORDS = {"accuracy": "test accuracy, %", "nll": "NLL (down is better)"}
DELTAS = {"accuracy": "points of accuracy (up is better)", "nll": "NLL (down is better)"}


def draw_all(found: Findings) -> dict:
    """Every panel, by the name of its section."""
    if not found.records:
        return {"figure": [], "differences": [], "policies": []}
    policies = [name for name in POLICIES if name in found.methods]
    return {
        "figure": [_over_rates(found, metric, DRAWN) for metric in METRICS],
        "differences": [
            _differences(found, metric, other)
            for other in ("finetuned", "base")
            for metric in METRICS
        ],
        "policies": [
            _over_rates(found, metric, ("finetuned", *policies), "policies-")
            for metric in METRICS
            if len(policies) > 1
        ],
    }  # fmt: skip


def _places(found):
    """Where each rate stands on a logarithmic axis."""
    return np.log10(found.rates)


def _axes(found, title, y, handles):
    figure = figures.new_canvas(figures.WIDTH, 350)
    axes = figure.subplots()
    axes.set_xticks(_places(found), [figures.number(rate) for rate in found.rates])
    figures.tidy(axes, "ℓ₂, the rate of fine-tuning", y)
    figures.put_head(figure, title, handles, 2)
    return figure, axes


def _asides(found, count):
    """How far series lie beside each other, so that bars can be told apart."""
    places = _places(found)
    step = np.diff(places).min() if len(places) > 1 else 1
    return (np.arange(count) - (count - 1) / 2) * 0.07 * step


def _over_rates(found, metric, methods, name=""):
    """A score over the rates, the base as a line; bars from the lowest to the highest seed."""
    factor = figures.FACTORS[metric]
    handles = [figures.new_handle("base", figures.INK, line=(0, (4, 2.2)))]
    handles += [
        figures.new_handle(METHODS[method], COLOURS[method], MARKS[method]) for method in methods
    ]
    title = {"accuracy": "Test accuracy", "nll": "Test NLL"}[metric]
    title += " by batch-norm statistics" * bool(name)
    figure, axes = _axes(found, title, WORDS[metric], handles)
    base = factor * found.score("base", None, metric)[0]
    axes.axhline(base, color=figures.INK, ls=(0, (4, 2.2)), lw=1.3)
    for method, aside in zip(methods, _asides(found, len(methods)), strict=True):
        scores = [factor * found.score(method, rate, metric) for rate in found.rates]
        x, y = _places(found) + aside, np.array([each.mean() for each in scores])
        lows, highs = ([pick(each) for each in scores] for pick in (min, max))
        axes.vlines(x, lows, highs, color=COLOURS[method], lw=0.9, alpha=0.5)
        axes.plot(x, y, color=COLOURS[method], marker=MARKS[method], ms=4.5, lw=1.4)
    label = f"{WORDS[metric]} of {', '.join(METHODS[m] for m in methods)} at rates "
    label += f"{', '.join(map(figures.number, found.rates))}; the base has {base:.4g}"
    return figures.Panel(f"pretrained-{name}{metric}", label, figure)


def _differences(found, metric, other):
    """Differences to fine-tuning at the same rate, or to the base, with 95 % intervals."""
    methods = [name for name in DRAWN if name != other]
    handles = [figures.new_handle(METHODS[name], COLOURS[name], MARKS[name]) for name in methods]
    words = {"finetuned": "fine-tuning at the same rate", "base": "the base"}[other]
    title = f"Difference to {words}: {NAMES[metric]}"
    figure, axes = _axes(found, title, DELTAS[metric], handles)
    axes.axhline(0, color=figures.MUTED, lw=1)
    factor = figures.FACTORS[metric] * (-1 if metric == "nll" else 1)
    for method, aside in zip(methods, _asides(found, len(methods)), strict=True):
        rows = []
        for rate in found.rates:
            pair = (other, None if other == "base" else rate)
            difference = Difference.of(found.gain(metric, (method, rate), pair), metric)
            rows.append((difference.mean, difference.low, difference.high))
        mean, low, high = factor * np.array(rows).T
        x = _places(found) + aside
        axes.vlines(x, low, high, color=COLOURS[method], lw=0.9, alpha=0.5)
        axes.plot(x, mean, color=COLOURS[method], marker=MARKS[method], ms=4.5, lw=1.4)
    return figures.Panel(f"pretrained-{metric}-minus-{other}", title, figure)


def write_page(found: Findings, panels: dict, folder: Path | None = None) -> str:
    """The whole page, the same text whenever the sweep is the same.

    found     as from `pretrained_findings.load`
    panels    as from `draw_all`
    folder    where the sweep lies, for the command that the page names
    Returns   HTML
    """
    from minires import __version__

    groups = [(metric, verdicts(found, metric)) for metric in METRICS]
    outcomes = {metric: [verdict.outcome for verdict in group] for metric, group in groups}
    rows = table(found)
    return template("pretrained.html.j2").render(
        title=f"A pre-trained network, resampled: {found.settings['model']}",
        dark=Markup(DARK),
        findings=found,
        differs=differs(found),
        groups=groups,
        names={"accuracy": "By accuracy", "nll": "By negative log-likelihood"},
        tally={m: {o: found_.count(o) for o in OUTCOMES} for m, found_ in outcomes.items()},
        outcomes=OUTCOMES,
        states=STATES,
        panels=panels,
        facts=facts(found, folder),
        heads=HEADS,
        rows=rows,
        ours=[n for n, row in enumerate(rows) if row[1] == METHODS["mean"]],
        version=__version__,
    )


def facts(found: Findings, folder: Path | None = None) -> list:
    """What was computed, where and how long: [(name, text), …]."""
    settings, made = found.settings, found.base["made"]
    seconds = sum(sum(record["seconds"].values()) for record in found.records.values())
    pictures = ", ".join(f"{n:,} {kind}" for kind, n in settings["images"].items())
    seeds = sorted({cell.seed for cell in found.records})
    return [
        ("network", f"{settings['model']}, {settings['weights']:,} weights, "
         f"{settings['statistics']:,} batch-norm statistics"),
        ("pictures", f"{pictures}; {settings['size']} × {settings['size']}"),
        ("fine-tuning", f"{settings['updates']:,} updates of {settings['batch']}, SGD, ℓ₂ "
         f"{', '.join(map(figures.number, found.rates))}; no momentum"),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("cells", f"{len(found.records)} finished"
         + (f", {len(found.diverged)} diverged" if found.diverged else "")),
        ("time", f"{seconds / 3600:.1f} hours"),
        ("machine", f"{made['processor']}, {made['date']}"),
        ("made by", f"minires {made['minires']}, NumPy {made['numpy']}, kernels {made['kernels']}"),
        ("preparation", settings["preset"]),
        ("command", command(found, folder)),
    ]  # fmt: skip


def command(found: Findings, folder: Path | None = None) -> str:
    """What to type for the same sweep, where the files lie in the folder at hand.

    "…" stands for options that the settings do not name: a preparation that is no preset, and the
    order of the classes where the network has more of them than the pictures.
    """
    settings = found.settings
    folders = {name: shlex.quote(where) for name, where in settings["folders"].items()}
    preset = settings["preset"]
    is_open = preset not in PRESETS or settings["outputs"] > len(settings["classes"])
    words = [
        f"minires sweep --profile pretrained --model {shlex.quote(settings['model'])}",
        f"--images {folders['train']} --test-images {folders['test']}",
        *([f"--choose-images {folders['choose']}"] if "choose" in folders else []),
        *([f"--preset {preset}"] if preset in PRESETS else []),
        *(["…"] if is_open else []),
        *(["--among"] if settings["among"] else []),
        *([f"--device {settings['device']}"] if settings["device"] != "cpu" else []),
        f"--rates {','.join(map(figures.number, found.rates))}",
        f"--updates {settings['updates']} --batch {settings['batch']}",
        f"--seeds {1 + max((cell.seed for cell in found.records), default=0)}",
        *([f"--out {shlex.quote(str(folder))}"] if folder is not None else []),
    ]
    return " ".join(words)
