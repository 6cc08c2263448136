"""`minires report DIR`: what a sweep found, as one HTML file that needs nothing else.

The page holds its figures, its numbers and its few lines of script itself: no network, no
server. The claims come first, then the figures with captions that say what to see. What the
sweep does not hold, a sentence says so. The frame of the page is report.html beside this file.

Everything that comes from the records is escaped before it stands in the page.
"""

import json
import re
import sys
from dataclasses import fields, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from minires.arrays.files import complete
from minires.study import figures

DARK = (
    "color-scheme: dark; --page: #13161b; --sheet: #1b2027; --ink: #e7e9ec; --muted: #9fa8b5; "
    "--rule: #2e343d; --accent: #6cb4f5; --on-accent: #0d1117; --warm: #f2975c; --sky: #86d9ee; "
    "--green: #4fc9a2;"
)
DATA = {"mnist": "MNIST", "glyphs": "glyphs, digits made on the spot"}

# How an outcome looks: class, and an icon that needs no colour to be told from the others.
OUTCOMES = {
    "supported": (
        "yes",
        '<circle cx="8" cy="8" r="8" fill="currentColor"/>'
        '<path d="M4.3 8.3l2.6 2.6 4.8-5.4" fill="none" stroke="var(--page)" stroke-width="1.9"/>',
    ),
    "not supported": (
        "no",
        '<circle cx="8" cy="8" r="8" fill="currentColor"/><path d="M5.2 5.2l5.6 5.6M10.8 5.2l-5.6 '
        '5.6" fill="none" stroke="var(--page)" stroke-width="1.9"/>',
    ),
    "inconclusive": (
        "open",
        '<circle cx="8" cy="8" r="7.1" fill="none" stroke="currentColor" stroke-width="1.6" '
        'stroke-dasharray="2.6 1.9"/><path d="M4.6 8h6.8" stroke="currentColor" '
        'stroke-width="1.8"/>',
    ),
}


# The same for a proposition.
STATES = {
    "shown": OUTCOMES["supported"],
    "contradicted": OUTCOMES["not supported"],
    "open": OUTCOMES["inconclusive"],
}


# --- the command --------------------------------------------------------------------------


def add_parser(subparsers):
    """Add `minires report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="one HTML page of what a sweep found",
        description="Write one self-contained HTML file: verdicts on the paper's claims, figures, "
        "tables, sliders. The sweep may still be running.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (DIR/report.html)")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="the figures as PNG files too")
    parser.set_defaults(run=run)


def run(options):
    """Carry out `minires report`; returns the exit code."""
    from minires.study.store import load_sweep

    sweep = load_sweep(options.folder)
    panels = figures.draw_all(sweep)
    out = options.out or options.folder / "report.html"
    with complete(out, "w") as file:
        file.write(write_page(sweep, panels, options.folder))
    if options.png:
        figures.write_pngs(panels, options.png)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


# --- the page -----------------------------------------------------------------------------


def write_page(sweep, panels=None, folder=None):
    """The whole page, the same text whenever the sweep is the same.

    sweep     what `minires.study.store.load_sweep` returns
    panels    what `figures.draw_all` returns, if it was called already
    folder    where the sweep lies, for the command that the page names
    Returns   HTML
    """
    from minires.study.claims import verdicts

    panels = figures.draw_all(sweep) if panels is None else panels
    data = {}
    sections = [
        ("claims", "Claims", _claims(verdicts(sweep))),
        ("sweep", "The sweep", _about(sweep, folder)),
        ("figure-1", "Figure 1", _figure_1(sweep, panels)),
        ("figure-2", "Figure 2", _figure_2(sweep, panels)),
        ("baselines", "Baselines", _baselines(sweep, panels)),
        ("ensemble", "Ensemble size", _dial(sweep, panels, "ensemble", data)),
        ("updates", "Updates", _dial(sweep, panels, "updates", data)),
        ("noise", "Noise dial", _dial(sweep, panels, "noise", data)),
        ("reliability", "Calibration", _reliability(sweep, panels)),
        ("sigma", "σ of the weights", _sigma(sweep, panels)),
        ("landscape", "Landscape", _landscape(sweep, panels)),
        ("cells", "All settings", _cells(sweep)),
    ]
    frame = Template(files("minires.study").joinpath("report.html").read_text("utf-8"))
    data_name = str(sweep.settings.get("data"))
    title = f"Weight resampling on {DATA.get(data_name, data_name).partition(',')[0]}"
    return frame.substitute(
        title=escape(title),
        dark=DARK,
        lead=_lead(sweep),
        notice=_unfinished(sweep),
        contents="".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title"'
            + (f' data-dial="{key}"' if key in data else "")
            + f">{body}</section>"
            for key, _, body in sections
        ),
        footer=_footer(sweep),
        data=_embed(data),
    )


def _embed(data):
    """Data as JSON that can stand in a script element: a "<" in a string might end it."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _glue(text):
    """Escaped text whose numbers stay on a line with what they are numbers of."""
    text = re.sub(r"\bp ([=<]) (?=\d)", "p\u00a0\\1\u00a0", text)
    text = re.sub(r"(?<=\d) (?=(points|%|seeds?|runs?|cells?|updates)\b|%)", "\u00a0", text)
    text = re.sub(r"(?<=ℓ[₁₂]) (?=\d)", "\u00a0", text)
    return escape(re.sub(r"± (?=\d)", "±\u00a0", text))


def _heading(key, text):
    return f'<h2 id="{key}-title">{text}</h2>'


def _missing(text):
    return f'<p class="missing">{text}</p>'


def _figure(panels, caption, slider=""):
    """Panels beside each other, as many as fit, and below them what to see."""
    groups = {}
    for panel in panels:
        groups.setdefault(panel.layout, []).append(panel.to_svg())
    drawn = "".join(
        f'<div class="panels {layout}">{"".join(drawings)}</div>'
        for layout, drawings in groups.items()
    )
    # A panel alone has its caption beside it, where there is room.
    alone = ' class="alone"' if len(panels) == 1 else ""
    return f"<figure{alone}>{drawn}{slider}<figcaption>{caption}</figcaption></figure>"


def _table(head, rows, words=1, ours=()):
    """A table in a box that scrolls.

    head    headings
    rows    lists of cells; the first is the row's heading
    words   how many of the first columns are text, not numbers
    ours    indices of rows to mark
    """
    kinds = [' class="word"' if i < words else "" for i in range(len(head))]
    lines = [f'<th scope="col"{kind}>{escape(h)}</th>' for kind, h in zip(kinds, head, strict=True)]
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells = "".join(
            f"<td{kind}>{escape(c)}</td>" for kind, c in zip(kinds[1:], rest, strict=True)
        )
        mark = ' class="ours"' if index in ours else ""
        body.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(head[0])} table">'
        f"<table><thead><tr>{''.join(lines)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


# --- the head of the page -----------------------------------------------------------------


def _lead(sweep):
    """The answer in two sentences."""
    tuned = [
        records
        for setting, records in figures.by_setting(sweep.records).items()
        if setting.l2 is not None
    ]
    if not tuned:
        return '<p class="lead">No fine-tuning has finished yet.</p>'
    gains = [figures.differences_of(records, "mean", "accuracy").mean() for records in tuned]
    losses = [figures.differences_of(records, "mean", "nll").mean() for records in tuned]
    ahead, lower = sum(gain > 0 for gain in gains), sum(loss < 0 for loss in losses)
    text = (
        "A network is trained, fine-tuned, and the average of its weights over all updates of the "
        "fine-tuning, the <em>mean model</em>, is set against the fine-tuned network. The mean "
        f"model is ahead in accuracy in {ahead} of {len(tuned)} settings "
        f"(by {_signed(np.median(gains), 2)} percentage points in the median, from "
        f"{_signed(min(gains), 2)} to {_signed(max(gains), 2)}), and its negative log-likelihood "
        f"(NLL) is lower in {lower} of {len(tuned)}."
    )
    return f'<p class="lead">{text}</p>{_brief(sweep)}'


def _brief(sweep):
    """What it rests on, in a line."""
    records = [*sweep.records, *sweep.diverged]
    seeds = figures.say_seeds([{record["cell"]["seed"] for record in records}])
    words = [_network(sweep.settings), seeds, f"{len(records):,} runs: {_outcome_of(sweep)}"]
    return f'<p class="brief">{_glue("; ".join(words))}.</p>'


def missing_cells(sweep):
    """How many cells of the sweep's profile are not there yet; None for a profile unknown here."""
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


def _unfinished(sweep):
    """What is missing: it stands before everything else."""
    missing = missing_cells(sweep)
    if not missing:
        return ""
    total = missing + len(sweep.records) + len(sweep.diverged)
    return _note(
        f"Not complete: of the {total} cells of the profile {sweep.settings['profile']} "
        f"{missing} {'is' if missing == 1 else 'are'} missing, all its seeds counted. What "
        "follows is what the finished ones say."
    )


def _lost(sweep):
    """What went wrong, and what became of it."""
    notes = ""
    if sweep.diverged:
        cells = figures.by_setting(sweep.diverged)
        count = len(sweep.diverged)
        notes += _note(
            f"The loss became infinite in {count} cell{'s' * (count > 1)}, which "
            f"{'have' if count > 1 else 'has'} no scores: {_name_all(cells)}. Where the verdicts "
            "compare runs with each other, such a run counts as a network that guesses; where they "
            "compare the methods of one run, it is missing."
        )
    fallen = figures.by_setting(sweep.records, collapsed=True)
    if fallen:
        count = sum(map(len, fallen.values()))
        cells, them, are = ("cells", "them", "they are") if count > 1 else ("cell", "it", "it is")
        names = _name_all(fallen)
        notes += _note(
            f"In {count} {cells} the network collapsed: the accuracy of its last iterate is below "
            f"{100 * figures.COLLAPSED:.0f} %. The verdicts take {them} as {are}; figures and "
            f"tables leave {them} out. {names[0].upper() + names[1:]}."
        )
    return notes


def _name_all(settings):
    return "; ".join(f"{figures.describe(s)} ({len(r)})" for s, r in settings.items())


def _note(text):
    return f'<p class="note">{_glue(text)}</p>'


def _about(sweep, folder):
    """What was computed, and what went wrong on the way."""
    return _heading("sweep", "What was computed") + _facts(sweep, folder) + _lost(sweep)


def _facts(sweep, folder):
    """The settings, and the command that made the sweep."""
    settings, records = sweep.settings, sweep.records
    cells = [record["cell"] for record in records]
    seeds = sorted({cell["seed"] for cell in cells})
    data = str(settings.get("data"))
    images = [
        f"{_count(settings.get(k))} {word}" for k, word in (("train", "training"), ("test", "test"))
    ]
    rates = sorted({c["l1"] for c in cells if c["optimizer"] == "sgd" and c["l2"] is not None})
    steps = sorted({c["l2"] for c in cells if c["finetune_optimizer"] == "sgd"})
    names = sorted({c["optimizer"] for c in cells}, key=lambda name: name != "sgd")
    optimizers = " and ".join({"sgd": "SGD", "adam": "Adam"}.get(n, n) for n in names)
    dropouts = sorted({c["dropout"] for c in cells})
    facts = [
        ("data", f"{DATA.get(data, data)}: {' and '.join(images)} images"),
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
    lines = []
    for name, value in facts:
        text = escape(str(value))
        if name == "command":
            text = f"<code>{text}</code>"
        lines.append(f"<dt>{name}</dt><dd>{text}</dd>")
    return f'<dl class="facts">{"".join(lines)}</dl>'


def _network(settings):
    """lenet (channels 4, 8, hidden 256)"""
    network = settings.get("network")
    if not isinstance(network, dict):
        return str(network)
    options = ", ".join(f"{k} {_plain(v)}" for k, v in network.items() if k != "name")
    return f"{network.get('name')}{f' ({options})' if options else ''}"


def _outcome_of(sweep):
    """279 finished, 9 of them collapsed; 1 diverged"""
    collapsed = sum(map(figures.has_collapsed, sweep.records))
    text = f"{len(sweep.records):,} finished"
    text += f", {collapsed} of them collapsed" if collapsed else ""
    return text + (f"; {len(sweep.diverged)} diverged" if sweep.diverged else "")


def _command(settings, folder):
    """What to type for the same sweep."""
    from minires.study.grid import PROFILES

    profile = PROFILES.get(settings.get("profile"))
    words = ["minires sweep", f"--profile {settings.get('profile')}"]
    whole = {"train": 60_000, "test": 10_000} if settings.get("data") == "mnist" else {}
    for name in ("data", "train", "test", "epochs", "updates", "batch"):
        usual = getattr(profile, name, None)
        if usual is None:  # all that there are
            usual = whole.get(name)
        if settings.get(name, usual) != usual:
            words.append(f"--{name} {settings[name]}")
    if settings.get("device", "cpu") != "cpu":
        words.append(f"--device {settings['device']}")
    return " ".join([*words, *([f"--out {folder}"] if folder is not None else [])])


def _count(value):
    return "all" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value):
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(numbers):
    """0–3, 7 for [0, 1, 2, 3, 7]."""
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _signed(value, digits):
    return f"{value:+.{digits}f}".replace("-", "−")


def _footer(sweep):
    from minires import __version__

    return (
        "<p>How to read the numbers. Two methods of one seed start from the same pre-trained "
        "network and see the same batches, so differences are paired by seed. Bars on scores are "
        "the standard deviation over seeds (ddof 1); bars and bands on differences are 95 % "
        "bootstrap intervals of the mean, which with few seeds are too narrow. Accuracy in per "
        "cent, its differences in percentage points. Learning rates are read off the test set, "
        "as in the paper: there is no validation split.</p>"
        "<p>How the verdicts are reached. A claim is taken apart into propositions. One is shown, "
        "or contradicted, where a test says so at α = 0.05; a claim is supported when all are "
        "shown, and not supported when one is contradicted (Holm's correction over its "
        "propositions). Tests are of ranks, exact, paired by seed, on the mean over the middle "
        "half of the cells; below five seeds nothing is decided. “No difference” is tested for "
        "equivalence (TOST). The claims are not corrected for each other: of fourteen one may "
        "well come out by chance.</p>"
        "<p>The method: Liu, Tripathi, Kurup, Shah, <cite>Make (Nearly) Every Neural Network "
        "Better: Generating Neural Network Ensembles by Weight Parameter Resampling</cite>, "
        f"arXiv:1807.00847. Written by minires {escape(__version__)}. SHA-256 of the data: "
        f"<code>{escape(str(sweep.settings.get('data_sha256')))}</code>.</p>"
    )


# --- the sections -------------------------------------------------------------------------


def _claims(verdicts):
    """The table of verdicts: the reason that the page exists."""
    tally = []
    for outcome, (kind, icon) in OUTCOMES.items():
        count = sum(verdict.outcome == outcome for verdict in verdicts)
        tally.append(f"<li>{_badge(kind, icon, f'{count} {outcome}')}</li>")
    rows = []
    for verdict in verdicts:
        kind, icon = OUTCOMES[verdict.outcome]
        rows.append(
            f'<tr role="row"><td role="cell" class="number">{escape(verdict.claim)}</td>'
            f'<th role="rowheader" scope="row" class="statement">{escape(verdict.statement)}</th>'
            f'<td role="cell" class="verdict-cell">{_badge(kind, icon, verdict.outcome)}</td>'
            f'<td role="cell" class="why">{_reason(verdict)}{_numbers(verdict)}</td>'
            "</tr>"
        )
    # The roles keep it a table for screen readers where a phone stacks the cells.
    heads = "".join(
        f'<th role="columnheader" scope="col">{name}</th>'
        for name in ("No.", "The paper says", "Verdict", "Why")
    )
    return (
        _heading("claims", "What the paper claims, and what came out")
        + f'<ul class="tally">{"".join(tally)}</ul>'
        + '<table class="claims" role="table"><thead role="rowgroup">'
        + f'<tr role="row">{heads}</tr></thead><tbody role="rowgroup">{"".join(rows)}</tbody>'
        + "</table>"
    )


def _reason(verdict):
    """The propositions of a claim, each with what came of it."""
    lines = ""
    for state, sentence in verdict.parts:
        kind, icon = STATES[state]
        # The word stands in the sentence: the icon is for the eye that skims.
        svg = f'<svg viewBox="0 0 16 16" aria-hidden="true">{icon}</svg>'
        lines += f'<li class="{kind}">{svg}<span>{_glue(sentence)}</span></li>'
    return f'<ul class="parts">{lines}</ul>'


def _numbers(verdict):
    """All numbers behind a verdict, to unfold; those that only stand beside it are indented."""
    if not verdict.numbers:
        return ""
    lines = ""
    for label, text in verdict.numbers:
        kind = ' class="beside"' if label.startswith(" ") else ""
        lines += f"<dt{kind}>{_glue(label.strip())}</dt><dd>{_glue(text)}</dd>"
    return (
        f'<details><summary aria-label="Numbers of {escape(verdict.claim)}">Numbers</summary>'
        f"<p>Test: {escape(verdict.test)}.</p>"
        f'<dl class="numbers">{lines}</dl></details>'
    )


def _badge(kind, icon, text):
    svg = f'<svg viewBox="0 0 16 16" aria-hidden="true">{icon}</svg>'
    return f'<span class="verdict {kind}">{svg}{escape(text)}</span>'


def _seeds(sweep, optimizer, tuned=True):
    """How many seeds a point of a figure stands for, and what its crosses are."""
    groups = {
        setting: records
        for setting, records in figures.by_setting(sweep.records).items()
        if setting.optimizer == optimizer and (setting.l2 is not None) == tuned
    }
    lost = any(
        setting.optimizer == optimizer and (setting.l2 is not None) == tuned
        for setting in figures.count_lost(sweep)
    )
    text = f"Each point: {figures.say_seeds(groups.values())}."
    return text + " ✕ counts networks that collapsed or diverged; they are left out." * lost


def _figure_1(sweep, panels):
    heading = _heading("figure-1", "Figure 1: trained with SGD")
    if not panels["figure-1"]:
        body = _missing("The sweep holds no fine-tuning of a network trained with SGD yet.")
    else:
        seeds = _seeds(sweep, "sgd")
        body = _figure(
            panels["figure-1"],
            "<b>Is the mean model flat where fine-tuning falls?</b> Each group is one ℓ₁; within "
            "it ℓ₂ grows from left to right. Look at how steeply the grey lines move with ℓ₂, "
            "how little the blue and orange ones do, and how far the dashed lines (without "
            f"dropout) lie from the solid ones. Bars: standard deviation over seeds. {seeds}",
        ) + _figure(
            panels["figure-1-differences"],
            "<b>The same, paired by seed.</b> What all methods of a seed share cancels, so these "
            "bars (95 % intervals of the mean difference) are the ones to judge by. Where a bar "
            "clears the line at zero, averaging has changed the network for the better or worse. "
            f"{seeds}",
        )
    if panels["pretraining"]:
        body += _figure(
            panels["pretraining"],
            "<b>Before fine-tuning.</b> The accuracy that training alone reaches; the shaded "
            "rates are those that are fine-tuned. The paper says that rates outside do worse. "
            f"Bars: standard deviation over seeds. {_seeds(sweep, 'sgd', tuned=False)}",
        )
    return heading + body


def _figure_2(sweep, panels):
    heading = _heading("figure-2", "Figure 2: trained with Adam")
    if not panels["figure-2"]:
        yet = " yet" if sweep.settings.get("adam", True) else ": its profile has none"
        return heading + _missing(
            f"The sweep holds no SGD fine-tuning of a network trained with Adam{yet}."
        )
    return (
        heading
        + _figure(
            panels["figure-2"],
            "<b>The same pattern after Adam?</b> Left to right ℓ₂ of fine-tuning with SGD. "
            "Straight lines are fine-tuning with Adam, which has no ℓ₂ here: in the colour of "
            "the text its mean model (the paper's black line), in grey its last iterate. Bars: "
            "standard deviation over seeds. " + _seeds(sweep, "adam"),
        )
        + _figure(
            panels["figure-2-differences"],
            "<b>The same, paired by seed.</b> Each mean model against the last iterate of its own "
            "fine-tuning; the straight line is the mean model of Adam's iterates against Adam's "
            "last. Bars: 95 % intervals of the mean difference. " + _seeds(sweep, "adam"),
        )
    )


def _baselines(sweep, panels):
    heading = _heading("baselines", "Other ways to spend the same updates")
    settings = figures.baseline_settings(sweep)
    if not settings:
        return heading + _missing("The sweep holds no cell with the other methods yet.")
    heads = list(dict.fromkeys(setting[:4] for setting in settings))
    # The one nearest the middle is shown, the others unfold.
    shown = min(range(len(heads)), key=lambda i: abs(heads[i][3] - 0.15))
    first, more = "", ""
    for number, head in enumerate(heads, 1):
        drawn = [p for p in panels["baselines"] if p.name.startswith(f"baselines-{number}-")]
        same = {s: records for s, records in settings.items() if s[:4] == head}
        words = escape(figures.describe(next(iter(same))).rpartition(",")[0])
        body = _figure(
            drawn,
            f"<b>Is any of them better than the plain mean?</b> Networks {words}. Difference to "
            "the last iterate of plain fine-tuning, paired by seed, with 95 % intervals over "
            f"{figures.say_seeds(same.values())}. All "
            "methods had the same number of updates, but for the deep ensemble (a mark for each "
            "group of seeds, unpaired): it had as many trainings as it has members.",
        ) + "".join(
            f"<h3>Networks {escape(figures.describe(s))}, {len(records)} seeds</h3>"
            + _baseline_table(sweep, s, records)
            for s, records in same.items()
        )
        if number - 1 == shown:
            first = body
        else:
            more += f"<details><summary>Networks {words}</summary>{body}</details>"
    return heading + first + more


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
            name += f" of {max(entry['members'] for entry in deep)}"
        paired = method not in ("finetuned", "deep_ensemble")
        rows.append([
            name,
            _with_deviation(scores["accuracy"], 2),
            _difference(records, method, "accuracy", paired),
            _with_deviation(scores["nll"], 4), _difference(records, method, "nll", paired),
            f"{scores['brier'].mean():.4f}", f"{scores['ece'].mean():.2f}",
        ])  # fmt: skip
    head = ["method", "accuracy %", "Δ points", "NLL", "Δ NLL", "Brier", "ECE %"]
    return _table(head, rows, ours=ours)


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
    """+0.05 [+0.03, +0.07]"""
    digits = 3 if metric == "accuracy" else 4
    mean, low, high = (_signed(value, digits) for value in triple)
    return mean if np.isnan(triple[1]) else f"{mean} [{low},\u00a0{high}]"


# Heading, caption, the slider's label and where it starts (a position, or the last one).
DIALS = {
    "ensemble": (
        "How many networks?",
        "<b>When does another network stop paying?</b> Ensembles of the first k drawn networks. "
        "Every one of them is a whole prediction more, the mean model is a single one. Bands: "
        "95 % intervals of the difference paired by seed.",
        "networks in the ensemble",
        3,
    ),
    "updates": (
        "How many updates?",
        "<b>How soon is the mean good?</b> The mean of the first t updates of fine-tuning, "
        "against the last iterate of all of them: where the line crosses zero, the average has "
        "overtaken the network that was trained to the end. Bands: 95 % intervals.",
        "updates averaged",
        None,
    ),
    "noise": (
        "The noise dial",
        "<b>How much of σ does a network bear?</b> Weights mean + s·σ·ε with the same ε at every "
        "s: at 0 the mean model, at 1 a drawn network, beyond it more noise than the paper adds. "
        "Means of three draws; bands: 95 % intervals.",
        "noise scale s",
        1,
    ),
}


def _dial(sweep, panels, key, data):
    """A curve with a slider along it; puts the slider's numbers into `data`."""
    title, caption, label, start = DIALS[key]
    heading = _heading(key, title)
    if not panels[key]:
        return heading + _missing(f"The sweep holds no curve over {label} yet.")
    positions, table = figures.curve_table(sweep, key)
    names = figures.short_names(table)
    start = positions.index(start) if start in positions else len(positions) - 1
    cells, readout = {}, ""
    for row, (setting, curve) in enumerate(table.items()):
        columns = {
            "accuracy": [f"{value:.2f} %" for value in curve["accuracy"]],
            "to fine-tuned, points": [
                _say_interval(triple, "accuracy") for triple in curve["accuracy_difference"]
            ],
            "NLL": [f"{value:.4f}" for value in curve["nll"]],
            "to fine-tuned, NLL": [
                _say_interval(triple, "nll") for triple in curve["nll_difference"]
            ],
        }
        if len(table) > 1:
            readout += f"<h3>{escape(names[setting])}</h3>"
        pairs = ""
        for column, (name, values) in enumerate(columns.items()):
            cells[f"{row}-{column}"] = values
            pairs += (
                f'<div><dt>{name}</dt><dd data-cell="{row}-{column}">{values[start]}</dd></div>'
            )
        readout += f'<dl class="readout">{pairs}</dl>'
    data[key] = {"positions": [figures.number(p) for p in positions], "cells": cells}
    slider = (
        f'<div class="dial"><label for="{key}-slider"><span>{label}</span>'
        f'<output for="{key}-slider">{escape(data[key]["positions"][start])}</output></label>'
        f'<input type="range" id="{key}-slider" min="0" max="{len(positions) - 1}" step="1" '
        f'value="{start}">{readout}</div>'
    )
    held = figures.curve_records(sweep, key)
    words = "; ".join(escape(figures.describe(setting)) for setting in table)
    words += f"; {figures.say_seeds(held.values())}"
    return heading + _figure(panels[key], f"{caption} Networks: {words}.", slider)


def _reliability(sweep, panels):
    heading = _heading("reliability", "Can the probabilities be believed?")
    if not panels["reliability"]:
        return heading + _missing("The sweep holds no reliability bins yet.")
    held = [
        kept
        for records in figures.by_setting(sweep.records).values()
        if (kept := [record for record in records if "reliability" in record])
    ]
    return heading + _figure(
        panels["reliability"],
        "<b>Is 80 % sure right in 80 % of cases?</b> On the diagonal, yes; above it the network is "
        "surer than it admits, below it less right than it thinks. Larger marks stand for more "
        "images, faint ones for so few that their share says little; the lower panel counts them "
        "(logarithmically): nearly all lie in the last bin. "
        f"The test images of {figures.say_seeds(held)} together.",
    )


def _portrait_of(sweep):
    setting, seed, _ = figures.find_portrait(sweep)
    return escape(f"One network, seed {seed}: {figures.describe(setting)}.")


def _sigma(sweep, panels):
    heading = _heading("sigma", "Where the weights move")
    if not panels["sigma"]:
        return heading + _missing("The sweep holds no map of σ yet.")
    return heading + _figure(
        panels["sigma"],
        "<b>Which weights does SGD shake most?</b> Left: a strip for each layer, a field for each "
        "filter or unit (in large layers sorted and thinned out to 128), stronger where the "
        "standard deviation over the updates is larger. Right: "
        "its spread within each layer, and its size relative to the weights. "
        + _portrait_of(sweep),
    )


def _landscape(sweep, panels):
    heading = _heading("landscape", "The way through the landscape")
    drawn = panels["line"] + panels["plane"]
    if not drawn:
        return heading + _missing("The sweep holds no losses along a way yet.")
    return heading + _figure(
        drawn,
        "<b>Does the mean lie at the bottom of the valley on whose wall fine-tuning bounces?</b> "
        "Loss along the straight lines from the pre-trained network to the fine-tuned one and on "
        "to the mean, a little beyond both ends; and on the plane through the three (stronger "
        "means a larger loss; distances are lengths in the space of weights). "
        + _portrait_of(sweep),
    )


def _cells(sweep):
    """Every setting, for those who want to look one up."""
    heading = _heading("cells", "All settings")
    settings = figures.by_setting(sweep.records)
    tuned = {setting: records for setting, records in settings.items() if setting.l2 is not None}
    if not tuned:
        return heading + _missing("The sweep holds no fine-tuning yet.")
    names = {"sgd": "SGD", "adam": "Adam"}
    rows = []
    for setting, records in tuned.items():
        rows.append([
            f"{names.get(setting.optimizer, setting.optimizer)} {figures.number(setting.l1)}",
            f"{names.get(setting.finetune_optimizer, setting.finetune_optimizer)} "
            f"{figures.number(setting.l2)}",
            figures.number(setting.dropout), str(len(records)),
            _with_deviation(figures.values_of(records, "finetuned", "accuracy"), 2),
            _with_deviation(figures.values_of(records, "mean", "accuracy"), 2),
            _difference(records, "mean", "accuracy"),
            _with_deviation(figures.values_of(records, "finetuned", "nll"), 4),
            _with_deviation(figures.values_of(records, "mean", "nll"), 4),
            _difference(records, "mean", "nll"),
        ])  # fmt: skip
    head = ["trained, ℓ₁", "fine-tuned, ℓ₂", "dropout", "seeds", "fine-tuned, %", "mean, %",
            "Δ points", "fine-tuned, NLL", "mean, NLL", "Δ NLL"]  # fmt: skip
    summary = f"Fine-tuned and mean model in each of {len(rows)} settings"
    return heading + f"<details><summary>{summary}</summary>{_table(head, rows, words=2)}</details>"
