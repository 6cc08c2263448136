"""The picture of one experiment: the scores of all methods, and a few weights at every update."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays.files import load_arrays
from minires.arrays.pictures import default_style, new_figure, save_png
from minires.study.experiment import FINETUNED, Folder, collect, label_of

INK, GRID, PLAIN, OURS = "#1f2933", "#d9dee3", "#9aa5b1", "#0b7285"
POLICIES = (OURS, "o"), ("#e8590c", "s"), ("#5f3dc4", "^")  # colour and shape of each


def draw_folder(folder: Folder, results: dict, model: Any) -> None:
    """Write figure.png into the folder of a finished experiment.

    folder    minires.study.experiment.Folder
    results   what `minires.study.experiment.run` returned
    model     the network, for the names of weights
    """
    kept = load_arrays(folder.file(f"seed_{results['config']['seed']}_finetuned.npz"))
    names = [name_of(model, index) for index in kept["watched"]]
    draw_experiment(results, folder.file("figure.png"), kept["history"], names)


@default_style()
def draw_experiment(
    results: dict, path: Path, history: np.ndarray | None = None, names: Sequence[str] = ()
) -> None:
    """Plot accuracy and NLL of all methods, and a few weights at every update of fine-tuning.

    results   what `minires.study.experiment.run` returns
    path      the PNG file
    history   (updates, K): the watched weights after every update of fine-tuning
    names     K names, one for each of them
    """
    count = 0 if history is None else history.shape[1]
    keys = collect(results["records"])
    crowded = any(policy for _, _, policy in keys)
    high = 1.2 + (0.7 if crowded else 0.4) * len({key[:2] for key in keys}) + 0.5 * crowded
    figure = new_figure(11, high + 3.7 * (count > 0), 130)
    parts = figure.subfigures(2 if count else 1, 1, height_ratios=[high, 3.7] if count else None)
    top = parts[0] if count else parts
    _draw_methods(top, results)
    if count:
        _draw_weights(parts[1], history, names)
    save_png(figure, path)


def _draw_methods(part, results):
    rows = collect(results["records"])
    config = results["config"]
    part.suptitle(
        f"{config['network']} on {config['data']}: ℓ₁ {config['l1']}, ℓ₂ {config['l2']}, "
        f"{config['updates']} updates, {config['seeds']} seed" + "s" * (config["seeds"] > 1),
        fontsize=11,
        color=INK,
    )
    methods = list(dict.fromkeys(key[:2] for key in rows))
    policies = list(dict.fromkeys(key[2] for key in rows if key[2]))
    for axes, metric, title, factor in zip(
        part.subplots(1, 2, sharey=True),
        ("accuracy", "nll"),
        ("accuracy, % (right is better)", "negative log-likelihood (left is better)"),
        (100, 1),
        strict=True,
    ):
        for (method, members, policy), row in rows.items():
            values, y = row[metric] * factor, float(methods.index((method, members)))
            colour = PLAIN if method in ("pretrained", "finetuned") else OURS
            style = {"color": colour, "marker": "o", "ls": ""}
            if policy:  # each policy has its own height, colour and shape
                place = policies.index(policy)
                y += 0.24 * (place - (len(policies) - 1) / 2)
                style["color"], style["marker"] = POLICIES[place]
            axes.plot(values, np.full(len(values), y), ms=4, alpha=0.45, **style)
            spread = values.std(ddof=1) if len(values) > 1 else 0
            label = policy if (method, metric) == ("mean", "accuracy") else None
            axes.errorbar(values.mean(), y, xerr=spread, ms=8, capsize=3, label=label, **style)
        reference = rows[FINETUNED][metric].mean() * factor
        one_row_each(axes, [label_of(*key, None) for key in methods], reference, title)
    if policies:
        part.legend(
            title="batch-norm statistics",
            loc="outside lower center",
            ncols=len(policies),
            fontsize=8.5,
            title_fontsize=8.5,
            frameon=False,
        )


def one_row_each(axes: Any, labels: list[str], reference: float, title: str) -> None:
    """Axes with one row for each method, the first on top, and a line to compare with.

    axes        of Matplotlib; its points are plotted at the heights 0, 1, …
    labels      one for each method
    reference   where the vertical line stands
    title       above the axes
    """
    axes.axvline(reference, color=PLAIN, lw=1, ls=":")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, color=INK)
    tidy(axes)


def _draw_weights(part, history, names):
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
        axes.set_title(f"{name}\n{mean:+.4f} ± {std:.1g}", fontsize=8.5, color=INK)
        axes.set_xlim(0, updates * 1.26)
        axes.set_xticks([0, updates])
        tidy(axes)
    for axes in grid[-1]:
        axes.set_xlabel("update", fontsize=8.5, color=INK)


def tidy(axes: Any) -> None:
    """Light grid lines, small grey ticks, and no frame at the top and on the right.

    axes   of Matplotlib
    """
    axes.grid(axis="x", color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)


def name_of(model: Any, index: int) -> str:
    """The name of a weight by its index in θ, such as "conv2d_1.weight[3, 2, 0, 17]".

    model    the network
    index    from 0 to P − 1
    Raises   IndexError for another index
    """
    for entry in model.layout.weights:
        if entry.start <= index < entry.start + entry.size:
            place = np.unravel_index(index - entry.start, entry.shape)
            return f"{entry.name}[{', '.join(str(int(i)) for i in place)}]"
    raise IndexError(f"θ has {model.size} weights, there is no number {index}")
