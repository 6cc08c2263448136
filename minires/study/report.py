"""`minires report DIR`: the findings of a sweep as one HTML file that needs nothing else.

The page contains its figures, its numbers and its short script. It needs no network and no server.
The claims come first, then the figures with captions that explain them. For everything that the
sweep does not hold, a sentence says so.

The page itself is report.html.j2, a Jinja2 template in this folder; the functions here compute its
content. Jinja2 escapes everything that comes from the records.

An argument means the same in all of this file:

    panels   every panel by the name of its section, as `figures.draw_all` returns them
"""

import re
import shlex
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from minires.arrays.text import shown
from minires.study import figures
from minires.study.grid import CANDIDATES, OPTIMIZERS
from minires.study.scores import by_setting
from minires.study.store import Sweep

DARK = (
    "color-scheme: dark; --page: #13161b; --sheet: #1b2027; --ink: #e7e9ec; --muted: #9fa8b5; "
    "--rule: #2e343d; --accent: #6cb4f5; --on-accent: #0d1117; --warm: #f2975c; --sky: #86d9ee; "
    "--green: #4fc9a2;"
)
DATA = {"mnist": "MNIST", "glyphs": "glyphs, digits made by the program"}
# The look of each outcome of a claim and of each state of a proposition: a class of the style
# sheet, and an icon that can be recognized without colours.
OUTCOMES = {"supported": "yes", "not supported": "no", "inconclusive": "open"}
STATES = {"shown": "yes", "contradicted": "no", "open": "open"}
CONTENTS = (
    ("claims", "Claims"), ("sweep", "The sweep"), ("figure-1", "Figure 1"),
    ("figure-2", "Figure 2"), ("baselines", "Baselines"), ("ensemble", "Ensemble size"),
    ("updates", "Updates"), ("noise", "Noise dial"), ("reliability", "Calibration"),
    ("sigma", "σ of the weights"), ("landscape", "Landscape"), ("cells", "All settings"),
)  # fmt: skip
# For each slider: heading, label, and its first position (None: the last one).
DIALS = {
    "ensemble": ("How many networks?", "networks in the ensemble", 3),
    "updates": ("How many updates?", "updates averaged", None),
    "noise": ("The noise dial", "noise scale s", 1),
}


# --- the page -----------------------------------------------------------------------------


def write_page(sweep: Sweep, panels: dict | None = None, folder: Path | None = None) -> str:
    """The whole page. The same sweep gives the same text.

    sweep     what `minires.study.store.load_sweep` returns
    panels    what `figures.draw_all` returns, if it was called already
    folder    of the sweep, for the command that the page shows
    Returns   HTML
    """
    panels = figures.draw_all(sweep) if panels is None else panels
    return template().render(**content_of(sweep, panels, folder))


def template(name: str = "report.html.j2") -> Any:
    """A page without content; text from outside is escaped, and made harmless by `shown`.

    name   of its file beside this one
    """

    def harmless(value):
        return value if isinstance(value, Markup) or not isinstance(value, str) else shown(value)

    environment = Environment(
        loader=FunctionLoader(
            lambda name: files("minires.study").joinpath(name).read_text("utf-8")
        ),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["glue"] = glue
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(name)


def content_of(sweep: Sweep, panels: dict, folder: Path | None = None) -> dict:
    """All values that the template needs, by name."""
    from minires import __version__
    from minires.study.claims import TOO_SMALL, is_too_small, verdicts

    found = verdicts(sweep)
    outcomes = [verdict.outcome for verdict in found]
    dials = [dial_of(sweep, key) for key in DIALS]
    return {
        "title": f"Weight resampling on {data_of(sweep.settings).partition(',')[0]}",
        "dark": Markup(DARK),
        "lead": lead_of(sweep),
        "brief": brief_of(sweep),
        "too_small": TOO_SMALL if is_too_small(sweep) else None,
        "unfinished": unfinished(sweep),
        "contents": CONTENTS,
        "verdicts": found,
        "outcomes": OUTCOMES,
        "states": STATES,
        "tally": {outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        "facts": facts_of(sweep, folder),
        "lost": lost_of(sweep),
        "panels": panels,
        "seeds": lambda optimizer, tuned=True: seeds_of(sweep, optimizer, tuned),
        "bars": lambda optimizer: figures.say_bars(groups_of(sweep, optimizer, True).values()),
        "has_adam": sweep.settings.get("adam", True),
        "baselines": baselines_of(sweep, panels),
        "dials": dials,
        "reliability": reliability_of(sweep),
        "portrait": portrait_of(sweep),
        "cells": cells_of(sweep),
        "version": __version__,
        "sha256": str(sweep.settings.get("data_sha256")),
        "data": {dial["key"]: slider_of(dial) for dial in dials if dial["rows"]},
    }


def glue(text: str) -> str:
    """Text in which a number and its unit stay on one line.

    text   of the page
    """
    text = re.sub(r"\bp ([=<]) (?=\d)", "p\u00a0\\1\u00a0", text)
    text = re.sub(r"(?<=\d) (?=(points|%|seeds?|runs?|cells?|updates)\b|%)", "\u00a0", text)
    text = re.sub(r"(?<=ℓ[₁₂]) (?=\d)", "\u00a0", text)
    return re.sub(r"± (?=\d)", "±\u00a0", text)


# --- the head of the page -----------------------------------------------------------------


def lead_of(sweep: Sweep) -> dict | None:
    """The numbers of the first sentence; None if nothing is fine-tuned yet."""
    tuned = figures.shown(sweep, _is_tuned)
    if not tuned:
        return None
    gains, losses = (
        [figures.differences_of(records, "mean", metric).mean() for records in tuned.values()]
        for metric in ("accuracy", "nll")
    )
    return {
        "count": len(tuned),
        "ahead": sum(gain > 0 for gain in gains),
        "lower": sum(loss < 0 for loss in losses),
        "median": _signed(np.median(gains), 2),
        "least": _signed(min(gains), 2),
        "most": _signed(max(gains), 2),
    }


def _is_tuned(record):
    return record["cell"]["l2"] is not None


def brief_of(sweep: Sweep) -> str:
    """What was computed, in one line."""
    records = [*sweep.records, *sweep.diverged]
    seeds = figures.say_seeds([{record["cell"]["seed"] for record in records}])
    return "; ".join(
        [_network(sweep.settings), seeds, f"{len(records):,} runs: {_outcome_of(sweep)}"]
    )


def missing_cells(sweep: Sweep) -> int | None:
    """How many cells of the sweep's profile are missing; None for an unknown profile."""
    from minires.study.grid import PROFILES

    profile = PROFILES.get(sweep.settings.get("profile"))
    if profile is None:
        return None
    records = [*sweep.records, *sweep.diverged]
    known = {field.name for field in fields(profile)} - {"name", "network", "options"}
    same = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in sweep.settings.items()
        if name in known
    }
    seeds = max([r["cell"]["seed"] + 1 for r in records], default=0)
    profile = replace(profile, **same)
    wanted = replace(profile, seeds=max(profile.seeds, seeds)).cells()
    done = {tuple(r["cell"][f.name] for f in fields(wanted[0])) for r in records}
    return sum(tuple(getattr(c, f.name) for f in fields(c)) not in done for c in wanted)


def unfinished(sweep: Sweep) -> list:
    """A list of one sentence that says how many cells are missing; empty if none are."""
    missing = missing_cells(sweep)
    if not missing:
        return []
    total = missing + len(sweep.records) + len(sweep.diverged)
    return [
        f"Not complete: of the {total} cells of the profile {sweep.settings['profile']} {missing} "
        f"{'is' if missing == 1 else 'are'} missing, counting all its seeds. This page is about "
        "the finished ones."
    ]


def lost_of(sweep: Sweep) -> list:
    """Sentences about cells that diverged or collapsed, and how they are counted."""
    from minires.study.claims import is_too_small

    notes, has_verdicts = [], not is_too_small(sweep)
    if sweep.diverged:
        cells = by_setting(sweep.diverged)
        count = len(sweep.diverged)
        notes.append(
            f"The loss became infinite in {count} cell{'s' * (count > 1)}, which "
            f"{'have' if count > 1 else 'has'} no scores: {_name_all(cells)}."
            + " When the verdicts compare runs, such a run counts as a network that guesses. When "
            "they compare the methods of one run, it is left out." * has_verdicts
        )
    fallen = by_setting(sweep.records, figures.has_collapsed)
    if fallen:
        count = sum(map(len, fallen.values()))
        cells, them, are = ("cells", "them", "they are") if count > 1 else ("cell", "it", "it is")
        names = _name_all(fallen)
        notes.append(
            f"In {count} {cells} the network collapsed: the accuracy of its last iterate is below "
            f"{100 * figures.COLLAPSED:.0f} %. Figures and tables leave {them} out."
            + f" The verdicts count {them} as {are}." * has_verdicts
            + f" {names[0].upper() + names[1:]}."
        )
    return notes


def _name_all(settings):
    return "; ".join(f"{figures.describe(s)} ({len(r)})" for s, r in settings.items())


def data_of(settings: dict) -> str:
    """What the images are called: by their files where these are not the original MNIST.

    settings   what a sweep's sweep.json says
    """
    data = str(settings.get("data"))
    return settings.get("data_name") or DATA.get(data, data)


def facts_of(sweep: Sweep, folder: Path | None) -> list[tuple]:
    """The settings, and the command that computes the same sweep."""
    settings, records = sweep.settings, sweep.records
    cells = [record["cell"] for record in records]
    seeds = sorted({cell["seed"] for cell in cells})
    images = [
        f"{_count(settings.get(k))} {word}" for k, word in (("train", "training"), ("test", "test"))
    ]
    rates = sorted({c["l1"] for c in cells if c["optimizer"] == "sgd" and c["l2"] is not None})
    steps = sorted({c["l2"] for c in cells if c["finetune_optimizer"] == "sgd"})
    trained = {c["optimizer"] for c in cells}
    optimizers = " and ".join(w for name, w in OPTIMIZERS.items() if name in trained)
    dropouts = sorted({c["dropout"] for c in cells})
    return [
        ("data", f"{data_of(settings)}: {' and '.join(images)} images"),
        ("network", _network(settings)),
        ("training", f"{_plain(settings.get('epochs'))} epochs in batches of "
         f"{_plain(settings.get('batch'))}, {optimizers}"
         + (f", ℓ₁ {_plain(rates)}" if rates else "")),
        ("fine-tuning", f"{_plain(settings.get('updates'))} updates"
         + (f", ℓ₂ {_plain(steps)}" if steps else "")),
        ("dropout", _plain(dropouts) if dropouts else "–"),
        ("seeds", f"{len(seeds)} ({_ranges(seeds)})" if seeds else "none yet"),
        ("runs", _outcome_of(sweep)),
        ("command", _command(settings, folder)),
    ]  # fmt: skip


def _network(settings):
    """The network and its options, as "lenet (channels 4, 8, hidden 256)"."""
    network = settings.get("network")
    if not isinstance(network, dict):
        return str(network)
    options = ", ".join(f"{k} {_plain(v)}" for k, v in network.items() if k != "name")
    return f"{network.get('name')}{f' ({options})' if options else ''}"


def _outcome_of(sweep):
    """Counts, as "279 finished, 9 of them collapsed; 1 diverged"."""
    collapsed = sum(map(figures.has_collapsed, sweep.records))
    text = f"{len(sweep.records):,} finished"
    text += f", {collapsed} of them collapsed" if collapsed else ""
    return text + (f"; {len(sweep.diverged)} diverged" if sweep.diverged else "")


def _command(settings, folder):
    """The command that computes the same sweep."""
    from minires.study.grid import PROFILES

    name = str(settings.get("profile"))
    profile = PROFILES.get(name)
    words = ["minires sweep", f"--profile {name}"]
    if name in {candidate.name for candidate in CANDIDATES}:  # a part of a larger command
        words = ["minires sweep --profile which-lenet", f"--only {name}"]
        folder = None if folder is None else Path(folder).parent
    whole = {"train": 60_000, "test": 10_000} if settings.get("data") == "mnist" else {}
    for name in ("data", "train", "test", "epochs", "updates", "batch"):
        usual = getattr(profile, name, None)
        if usual is None:  # all images
            usual = whole.get(name)
        if settings.get(name, usual) != usual:
            words.append(f"--{name} {settings[name]}")
    if settings.get("data_name"):
        words.append("--data-dir DIR")
    if settings.get("device", "cpu") != "cpu":
        words.append(f"--device {settings['device']}")
    if folder is not None:
        words.append(f"--out {shlex.quote(str(folder))}")
    return " ".join(words)


def _count(value):
    return "all" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value):
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(numbers):
    """Whole numbers as text: "0–3, 7" for [0, 1, 2, 3, 7]."""
    ranges = []
    for n in numbers:
        if ranges and n == ranges[-1][1] + 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in ranges)


def _signed(value, digits):
    return f"{value:+.{digits}f}".replace("-", "−")


# --- the sections -------------------------------------------------------------------------


def groups_of(sweep: Sweep, optimizer: str, tuned: bool) -> dict:
    """{Setting: records} of the networks trained by one optimizer, fine-tuned (`tuned`) or not.

    tuned   fine-tuned networks, or those that are only pre-trained
    """
    return {
        setting: records
        for setting, records in figures.shown(sweep).items()
        if setting.optimizer == optimizer and (setting.l2 is not None) == tuned
    }


def seeds_of(sweep: Sweep, optimizer: str, tuned: bool = True) -> str:
    """Sentences that say how many seeds a point of a figure has, and what its crosses mean.

    tuned   as for `groups_of`
    """
    lost = any(
        setting.optimizer == optimizer and (setting.l2 is not None) == tuned
        for setting in figures.count_lost(sweep)
    )
    text = f"Each point: {figures.say_seeds(groups_of(sweep, optimizer, tuned).values())}."
    return text + " ✕ counts networks that collapsed or diverged; they are left out." * lost


def baselines_of(sweep: Sweep, panels: dict) -> list:
    """The settings in which other methods were measured; the one with ℓ₂ nearest 0.15 is first."""
    settings, groups = figures.baseline_settings(sweep), []
    for number, rates in enumerate(dict.fromkeys(setting.rates for setting in settings), 1):
        same = {s: records for s, records in settings.items() if s.rates == rates}
        groups.append(
            {
                "l2": next(iter(same)).l2,
                "words": figures.describe(next(iter(same))).rpartition(",")[0],
                "panels": [
                    p for p in panels["baselines"] if p.name.startswith(f"baselines-{number}-")
                ],
                "seeds": figures.say_seeds(same.values()),
                "bars": figures.say_bars(same.values()),
                "tables": [_baseline_table(sweep, s, records) for s, records in same.items()],
            }
        )
    shown_first = min(groups, key=lambda group: abs(group["l2"] - 0.15), default=None)
    return sorted(groups, key=lambda group: group is not shown_first)


def _baseline_table(sweep, setting, records):
    deep = figures.deep_ensembles_of(sweep, setting)
    rows, ours = [], []
    for method, name in figures.METHODS.items():
        scores = {
            metric: (
                np.array([entry[metric] for entry in deep]) * figures.FACTORS[metric]
                if method == "deep_ensemble"
                else figures.values_of(records, method, metric)
            )
            for metric in figures.FACTORS
        }
        if not len(scores["accuracy"]):
            continue
        if method == "mean":
            ours.append(len(rows))
        if method == "deep_ensemble":
            name += f" of {deep[0]['members']}"
        paired = method not in ("finetuned", "deep_ensemble")
        rows.append([
            name,
            _with_deviation(scores["accuracy"], 2),
            _difference(records, method, "accuracy", paired),
            _with_deviation(scores["nll"], 4), _difference(records, method, "nll", paired),
            f"{scores['brier'].mean():.4f}", f"{scores['ece'].mean():.2f}",
        ])  # fmt: skip
    title = f"{figures.describe(setting)}, {figures.say_seeds([records])}"
    return {"title": title, "rows": rows, "ours": ours}


def _with_deviation(values, digits):
    mean, low, _ = figures.with_deviation(values)
    text = f"{mean:.{digits}f}"
    return text if np.isnan(low) else f"{text} ± {mean - low:.{digits}f}"


def _difference(records, method, metric, paired=True):
    if not paired:
        return ""
    values = figures.differences_of(records, method, metric)
    return _say_interval(figures.with_interval(values), metric) if len(values) else ""


def _say_interval(triple, metric):
    """A difference and its interval, as "+0.05 [+0.03, +0.07]"."""
    digits = 3 if metric == "accuracy" else 4
    mean, low, high = (_signed(value, digits) for value in triple)
    return mean if np.isnan(triple[1]) else f"{mean} [{low},\u00a0{high}]"


def dial_of(sweep: Sweep, key: str) -> dict:
    """A curve with a slider: the positions of the slider, and the numbers at each of them.

    key   of `DIALS`
    """
    title, label, start = DIALS[key]
    positions, table = figures.curve_table(sweep, key)
    names, rows = figures.short_names(table), {}
    for setting, curve in table.items():
        rows[names[setting]] = {
            "accuracy": [f"{value:.2f} %" for value in curve["accuracy"]],
            "to fine-tuned, points": [
                _say_interval(triple, "accuracy") for triple in curve["accuracy_difference"]
            ],
            "NLL": [f"{value:.4f}" for value in curve["nll"]],
            "to fine-tuned, NLL": [
                _say_interval(triple, "nll") for triple in curve["nll_difference"]
            ],
        }
    held = figures.curve_records(sweep, key).values()
    words = "; ".join(figures.describe(setting) for setting in table)
    return {
        "key": key,
        "title": title,
        "label": label,
        "start": positions.index(start) if start in positions else len(positions) - 1,
        "positions": [figures.number(p) for p in positions],
        "rows": rows,
        "bars": figures.say_bars(held).replace("Bars", "Bands").replace("bars", "bands"),
        "networks": f"{words}; {figures.say_seeds(held)}" if held else "",
    }


def slider_of(dial: dict) -> dict:
    """All numbers of a dial at all positions, for the page's script.

    dial   as from `dial_of`
    """
    cells = {
        f"{row}-{column}": values
        for row, columns in enumerate(dial["rows"].values())
        for column, values in enumerate(columns.values())
    }
    return {"positions": dial["positions"], "cells": cells}


def reliability_of(sweep: Sweep) -> dict:
    """The number of seeds with bins of confidence, and the share of images in the last bin."""
    held = figures.reliability_records(sweep).values()
    counts = [
        bins["count"]
        for records in held
        for record in records
        for bins in record["reliability"].values()
    ]
    if not counts:
        return {}
    share = np.sum(counts, axis=0)[-1] / np.sum(counts)
    return {"seeds": figures.say_seeds(held), "share": f"{100 * share:.0f} %"}


def portrait_of(sweep: Sweep) -> str:
    """A sentence that names the network of the portrait."""
    found = figures.find_portrait(sweep)
    return f"One network, seed {found[1]}: {figures.describe(found[0])}." if found else ""


def cells_of(sweep: Sweep) -> list:
    """One row for each setting, for the table at the end."""
    names, rows = OPTIMIZERS, []
    for setting, records in figures.shown(sweep, _is_tuned).items():
        rows.append([
            f"{names[setting.optimizer]} {figures.number(setting.l1)}",
            f"{names[setting.finetune_optimizer]} {figures.number(setting.l2)}",
            figures.number(setting.dropout), str(len(records)),
            _with_deviation(figures.values_of(records, "finetuned", "accuracy"), 2),
            _with_deviation(figures.values_of(records, "mean", "accuracy"), 2),
            _difference(records, "mean", "accuracy"),
            _with_deviation(figures.values_of(records, "finetuned", "nll"), 4),
            _with_deviation(figures.values_of(records, "mean", "nll"), 4),
            _difference(records, "mean", "nll"),
        ])  # fmt: skip
    return rows
