"""Pictures of one experiment. Drawn without a screen, written as PNG."""

import numpy as np

from minires.experiment import FINETUNED, collect, label_of
from minires.files import complete

INK, GRID, PLAIN, OURS = "#1f2933", "#d9dee3", "#9aa5b1", "#0b7285"


def draw_experiment(results, path, history=None, names=()):
    """Accuracy and NLL of every method, and how a few weights lived.

    results   what `minires.experiment.run` returns
    path      the PNG file
    history   (updates, K): the watched weights after every fine-tuning update
    names     K names for them
    """
    from matplotlib.figure import Figure

    count = 0 if history is None else history.shape[1]
    high = 1.2 + 0.4 * len(collect(results["records"]))
    figure = Figure(figsize=(11, high + 3.7 * (count > 0)), layout="constrained", dpi=130)
    parts = figure.subfigures(2 if count else 1, 1, height_ratios=[high, 3.7] if count else None)
    top = parts[0] if count else parts
    _draw_methods(top, results)
    if count:
        _draw_lives(parts[1], history, names)
    with complete(path) as file:
        figure.savefig(file, format="png")


def _draw_methods(part, results):
    rows = collect(results["records"])
    config = results["config"]
    part.suptitle(
        f"{config['network']} on {config['data']}: ℓ₁ {config['l1']}, ℓ₂ {config['l2']}, "
        f"{config['updates']} updates, {config['seeds']} seed" + "s" * (config["seeds"] > 1),
        fontsize=11,
        color=INK,
    )
    labels = [label_of(*key) for key in rows]
    colours = [PLAIN if key[0] in ("pretrained", "finetuned") else OURS for key in rows]
    for axes, metric, title, factor in zip(
        part.subplots(1, 2, sharey=True),
        ("accuracy", "nll"),
        ("accuracy, % (right is better)", "negative log-likelihood (left is better)"),
        (100, 1),
        strict=True,
    ):
        for y, (row, colour) in enumerate(zip(rows.values(), colours, strict=True)):
            values = row[metric] * factor
            axes.plot(values, np.full(len(values), y), "o", ms=4, color=colour, alpha=0.45)
            spread = values.std(ddof=1) if len(values) > 1 else 0
            axes.errorbar(values.mean(), y, xerr=spread, fmt="o", ms=8, color=colour, capsize=3)
        reference = rows[FINETUNED][metric].mean() * factor
        axes.axvline(reference, color=PLAIN, lw=1, ls=":")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(title, fontsize=10, color=INK)
        _tidy(axes)


def _draw_lives(part, history, names):
    updates, count = history.shape
    part.suptitle(
        "Six weights while fine-tuning, and the Gaussian that the moments fit"
        if count == 6
        else "Weights while fine-tuning, and the Gaussian that the moments fit",
        fontsize=11,
        color=INK,
    )
    columns = (count + 1) // 2
    grid = part.subplots(2, columns, squeeze=False)
    for axes, values, name in zip(grid.flat, history.T.astype(float), names, strict=False):
        mean, std = values.mean(), values.std()
        axes.plot(np.arange(1, updates + 1), values, color=OURS, lw=0.8)
        axes.axhline(mean, color=INK, lw=0.8)
        low, high = values.min(), values.max()
        pad = 0.15 * max(high - low, 1e-12)
        heights = np.linspace(low - pad, high + pad, 200)
        if std > 0:
            bell = np.exp(-0.5 * ((heights - mean) / std) ** 2)
            start = updates * 1.02
            axes.fill_betweenx(
                heights, start, start + bell * updates * 0.22, color=OURS, alpha=0.25
            )
            axes.plot(start + bell * updates * 0.22, heights, color=OURS, lw=1)
        axes.set_title(f"{name}   {mean:+.4f} ± {std:.1g}", fontsize=8.5, color=INK)
        axes.set_xlim(0, updates * 1.26)
        axes.set_xticks([0, updates])
        _tidy(axes)
    for axes in grid[-1]:
        axes.set_xlabel("update", fontsize=8.5, color=INK)


def _tidy(axes):
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
