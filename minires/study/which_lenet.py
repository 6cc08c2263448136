"""Which LeNet did the paper use? It does not say. The profile which-lenet tries eight.

Each candidate differs from the default in one thing, and is a small sweep of its own. The findings
say with which candidates claims C1, C5 and C11 hold, and which reach the accuracies that the paper
shows, 99.3 % and more.

    DIR/CANDIDATE/…         a sweep like any other: `minires report DIR/CANDIDATE` shows it
    DIR/which-lenet.json    the findings, for all candidates
"""

import numpy as np

from minires.arrays import text
from minires.study.claims import ADAM_CEILING, verdicts
from minires.study.grid import ADAM_RATE, OUTSIDE, TRIED_L1, Candidate
from minires.study.store import Sweep

REACH = 0.993  # the accuracy axes of the paper's figures begin about here
CLAIMS = ("C1", "C5", "C11")


def findings(candidate: Candidate, sweep: Sweep) -> dict:
    """The findings about one candidate.

    candidate   the `grid.Candidate` that the sweep computed
    Returns     dict: "candidate"; "weights", how many; "scores", {what: mean accuracy over seeds};
                "best", the name of the largest score; "reaches", whether it is `REACH` or more;
                "claims", {"C1": {"outcome", "points": {what: difference}, "agrees"}, …}. `agrees`
                tells only whether the direction is right (None: not measured). It is not a test
    """
    means = _mean_scores(sweep)
    on, off = max(candidate.dropout), min(candidate.dropout)
    outcomes = {verdict.claim: verdict.outcome for verdict in verdicts(sweep)}
    claims = {}
    for claim, parts in _differences(means, on, off).items():
        measured = {what: value for what, value in parts.items() if np.isfinite(value)}
        whole = len(measured) == len(parts)
        claims[claim] = {
            "outcome": outcomes[claim],
            "points": {what: 100 * value for what, value in measured.items()},
            "agrees": all(value > 0 for value in measured.values()) if whole else None,
        }
    scores = {
        f"{optimizer} {l1:g}, dropout {dropout:g}: {method}": value
        for (optimizer, l1, dropout, method), value in means.items()
    }
    best = max(scores, key=scores.get, default=None)
    return {
        "candidate": candidate.name,
        "weights": candidate.model(on, (28, 28, 1)).size,
        "seeds": len({record["cell"]["seed"] for record in sweep.records}),
        "scores": scores,
        "best": best,
        "reaches": None if best is None else scores[best] >= REACH,
        "claims": claims,
    }


def _mean_scores(sweep):
    """{(optimizer, ℓ₁, dropout, method): the mean accuracy over seeds}."""
    found = {}
    for record in sweep.records:
        cell = record["cell"]
        start = cell["optimizer"], cell["l1"], cell["dropout"]
        for method, scores in record["methods"].items():
            found.setdefault((*start, method), []).append(scores["accuracy"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def _differences(means, on, off):
    """{claim: {what: by how much the accuracy is higher, NaN where a part is not measured}}.

    Where the claim holds, each is positive. `on` and `off` are the two shares of dropout.
    """

    def at(optimizer, method, dropout=on, l1=None):
        rate = l1 or (TRIED_L1 if optimizer == "sgd" else ADAM_RATE)
        return means.get((optimizer, rate, dropout, method), np.nan)

    inner = at("sgd", "pretrained")
    plain = [at("adam", "finetuned", dropout) for dropout in (on, off)]
    mean = [at("adam", "mean", dropout) for dropout in (on, off)]
    return {
        "C1": {f"{TRIED_L1:g} − {l1:g}": inner - at("sgd", "pretrained", l1=l1) for l1 in OUTSIDE},
        "C5": {"dropout": at("sgd", "finetuned") - at("sgd", "finetuned", off)},
        "C11": {
            f"plain below {ADAM_CEILING}": ADAM_CEILING - max(plain),
            "mean − plain": (sum(mean) - sum(plain)) / 2,
        },
    }


def table(rows: list) -> str:
    """The findings of all candidates as text, one line for each.

    rows   as from `findings`
    """
    heads = ["candidate", "weights", "best %", "≥ 99.3"]
    for claim in CLAIMS:
        heads += [claim, "points"]
    lines = []
    for row in rows:
        best = f"{100 * row['scores'][row['best']]:.2f}" if row["best"] else ""
        line = [row["candidate"], f"{row['weights']:,}", best, WORDS[row["reaches"]]]
        for claim in CLAIMS:
            found = row["claims"][claim]
            points = " ".join(f"{value:+.2f}" for value in found["points"].values())
            line += [WORDS[found["agrees"]], points]
        lines.append(line)
    least, seeds = (f((row["seeds"] for row in rows), default=0) for f in (min, max))
    some = f"{least} to " if least < seeds else ""
    notes = [
        "",
        f"{some}{text.counted(seeds, 'seed')}; percentage points. yes, no: whether the direction "
        "is right. One accuracy is known to ± 0.08 only, so differences of one seed show little.",
        f"C1: ℓ₁ {TRIED_L1:g} minus {OUTSIDE[0]:g} and {OUTSIDE[1]:g} (with --outside). C5: plain "
        "fine-tuning, dropout on minus off.",
        f"C11, trained and fine-tuned with Adam: {ADAM_CEILING} minus plain; mean model minus "
        "plain.",
        "best: the best of all methods, by SGD and by Adam, with dropout and without.",
    ]
    return "\n".join([text.table(heads, lines), *notes])


WORDS = {True: "yes", False: "no", None: "–"}
