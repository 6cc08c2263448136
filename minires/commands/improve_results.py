"""The second stage of `minires improve`: compare networks, show the scores, write ONNX files."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays.text import counted, say, table
from minires.commands.evaluate import (
    Examination,
    Outcomes,
    describe_notes,
    predictions,
    standard_error,
    summarize,
    with_error,
    without_nan,
)
from minires.commands.improve_training import State, training_batches
from minires.networks.running_statistics import POLICIES, stats_by_policy
from minires.training.loop import stream


def contenders(job: Any, state: State) -> dict[str, tuple]:
    """The networks to compare: their weights and the statistics that go with them.

    job      `minires.commands.improve.Job`
    state    State after the last update
    Returns  {name: (theta, stats)} on the device of `state`, sampled networks as "member 1", …
             The mean model is "mean" with the policy of --batch-norm. When the network has
             statistics, it appears once more for every other policy
    """
    options, network = job.options, job.examination.network
    mean, averaged = state.moments.mean, state.moments_of_stats.mean

    def with_stats(theta, averaged, policy=options.batch_norm):
        last = state.stats
        return theta, stats_by_policy(policy, network, theta, averaged, last, training_batches(job))

    found = {
        "base": job.examination.own_vectors(),
        "fine-tuned": (state.theta, state.stats),
        "EMA": with_stats(state.ema.mean, state.ema_of_stats.mean),
        "mean": with_stats(mean, averaged),
    }
    if state.stats.size:
        for policy in POLICIES:
            if policy != options.batch_norm:
                found[f"mean, statistics {policy}"] = with_stats(mean, averaged, policy)
    if options.members:
        rng = stream(options.seed, "sampled networks")
        for number, theta in enumerate(state.moments.sample(options.members, rng), 1):
            found[f"member {number}"] = with_stats(theta, averaged)
    return found


def compare(
    examination: Examination, networks: dict, pictures: Any, indices: np.ndarray, batch: int
) -> dict[str, Outcomes]:
    """Show held-out photographs to all networks.

    examination  how photographs are prepared, and which classes compete
    networks     as `contenders` gives them; the ensemble of all members is added
    pictures     minires.data.imagenet.Pictures that hold the held-out photographs
    indices      of these
    batch        photographs at once
    Returns      {name: Outcomes}, members replaced by "ensemble of K"
    Raises       ValueError when none of them can be used
    """
    parts = defaultdict(list)
    for labels, found, _ in predictions(
        examination, networks, indices, batch, pictures, desc="comparing"
    ):
        members = [found.pop(name) for name in list(found) if name.startswith("member")]
        if members:
            mean = np.mean(members, axis=0, dtype=np.float64)
            # In the members' type, so that the least probability, and the largest NLL, are theirs.
            found[f"ensemble of {len(members)}"] = mean.astype(members[0].dtype)
        for name, probabilities in found.items():
            parts[name].append(examination.outcomes(probabilities, labels))
    if not parts:
        raise ValueError(f"none of {len(indices)} held-out pictures can be used")
    return {name: Outcomes.joined(found) for name, found in parts.items()}


def score_all(outcomes: dict[str, Outcomes]) -> list[dict]:
    """The scores of every network, and its differences to the base, photograph by photograph.

    The errors of the differences are those of paired samples. Two networks that are wrong on the
    same photographs differ by much less than the error of either.

    outcomes  {name: Outcomes}, "base" among them
    Returns   list of dicts: "name", all of `summarize`, and "top1_difference", "nll_difference",
              each with its "…_error"
    """
    base, rows = outcomes["base"], []
    for name, found in outcomes.items():
        row = {"name": name, **summarize(found)}
        for key in ("top1", "nll"):
            difference = getattr(found, key).astype(float) - getattr(base, key).astype(float)
            row[f"{key}_difference"] = float(difference.mean())
            row[f"{key}_difference_error"] = standard_error(difference)
        rows.append(row)
    return rows


def is_worse(rows: list[dict]) -> bool:
    """Whether the mean model's NLL is above the base's by more than two standard errors.

    rows   as from `score_all`
    """
    mean = next(row for row in rows if row["name"] == "mean")
    return mean["nll_difference"] > 2 * mean["nll_difference_error"]


def score_table(rows: list[dict]) -> str:
    """The scores as text; ± is one standard error, Δ the paired difference to the base.

    rows   as from `score_all`
    """
    heads = ["network", "top-1 %", "Δ", "top-5 %", "NLL", "Δ", "ECE %"]
    lines = []
    for row in rows:
        plain = row["name"] == "base"
        lines.append(
            [
                row["name"],
                with_error(row, "top1", 2, 100),
                "" if plain else with_error(row, "top1_difference", 2, 100, "+"),
                with_error(row, "top5", 2, 100),
                with_error(row, "nll", 4),
                "" if plain else with_error(row, "nll_difference", 4, 1, "+"),
                with_error(row, "ece", 2, 100),
            ]
        )
    return table(heads, lines)


def plot(rows: list[dict], losses: list[float], path: Path) -> None:
    """Write the comparison and the training loss as one picture (PNG).

    rows     as from `score_all`, the base first
    losses   of every update
    path     of the picture
    """
    from minires.arrays.pictures import default_style, new_figure, save_png
    from minires.study.experiment_figure import INK, OURS, PLAIN, one_row_each, tidy

    others = [row for row in rows if row["name"] != "base"]
    names = [row["name"] for row in others]
    with default_style():
        figure = new_figure(11, 1.7 + 0.36 * len(others), 130)
        figure.suptitle(
            f"Against the base (top-1 {100 * rows[0]['top1']:.1f} %, NLL {rows[0]['nll']:.3f}) on "
            f"the same {rows[0]['images']:,} held-out pictures; bars: one standard error",
            fontsize=10, color=INK,
        )  # fmt: skip
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
        for axes, key, factor, title, labels in (
            (left, "top1_difference", 100, "top-1, points (right is better)", names),
            (middle, "nll_difference", 1, "NLL (left is better)", [""] * len(names)),
        ):
            for height, row in enumerate(others):
                axes.errorbar(
                    row[key] * factor, height, xerr=row[f"{key}_error"] * factor, fmt="o",
                    capsize=3, color=PLAIN if row["name"] in ("fine-tuned", "EMA") else OURS,
                )  # fmt: skip
            one_row_each(axes, labels, 0, title)
        width = max(1, len(losses) // 50)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        right.plot(np.arange(1, len(losses) + 1), losses, color=PLAIN, lw=0.6)
        right.plot(np.arange(width, len(losses) + 1), smooth, color=OURS, lw=1.4)
        right.set_title("training loss, by update", fontsize=10, color=INK)
        tidy(right)
        save_png(figure, path)


def write_networks(job: Any, state: State, networks: dict, out: Path) -> None:
    """Write moments.npz, mean.onnx and member_1.onnx, … into a folder; no other members stay there.

    job        `minires.commands.improve.Job`
    state      State after the last update
    networks   as `contenders` gives them
    out        the folder
    """
    import minires.onnx

    state.moments.save(out / "moments.npz")
    written = []
    for name, (theta, stats) in networks.items():
        if name == "mean" or name.startswith("member"):
            written.append(out / f"{name.replace(' ', '_')}.onnx")
            minires.onnx.save(job.examination.network, written[-1], theta=theta, stats=stats)
    # Members of an earlier command with more of them are from another distribution.
    for path in set(out.glob("member_*.onnx")).difference(written):
        path.unlink()


def report(job: Any, settings: dict, state: State, rows: list[dict], out: Path) -> None:
    """Write results.json and figure.png into a folder, and print the table.

    job        `minires.commands.improve.Job`
    settings   its settings
    state      State after the last update
    rows       as from `score_all`
    out        the folder
    """
    from minires.arrays.files import save_json

    options, examination = job.options, job.examination
    say(*describe_notes(examination))
    save_json(
        out / "results.json",
        {
            "settings": settings | {"updates": options.updates, "members": options.members},
            "outputs": examination.outputs,
            "training_images": len(job.training),
            "notes": examination.notes.lines(),
            "networks": [without_nan(row) for row in rows],
            "losses": state.losses,
        },
    )
    plot(rows, state.losses, out / "figure.png")
    print(score_table(rows))
    print(
        f"{counted(rows[0]['images'], 'held-out picture')}; ± is one standard error, Δ the "
        "difference to the base, photograph by photograph"
    )
    if state.stats.size:
        print(f"batch-norm statistics of averaged networks: {options.batch_norm}, unless named")
    if is_worse(rows):
        print(
            "the mean model is worse than the base, by more than two standard errors of NLL: give "
            f"a lower rate than {options.rate:g}, or no --rate, and minires names some to try"
        )
    members = counted(options.members, "member")
    say(f"mean.onnx, {members}, moments.npz, results.json, figure.png: in {out}")
