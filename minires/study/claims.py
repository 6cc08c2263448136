"""The paper's claims about MNIST, tested with the data of a sweep: one function, one verdict.

A verdict is "supported", "not supported" or "inconclusive"; propositions.py explains these. The
accuracy decides, in pairs of the same seed. The negative log-likelihood (NLL) is only reported.
"""

from dataclasses import replace

import numpy as np

from minires.arrays.text import counted
from minires.study.grid import OPTIMIZERS, TESTING
from minires.study.propositions import (
    MARGIN,
    NLL,
    PERCENT,
    POINTS,
    RATE,
    SHARE,
    Claim,
    Part,
    Test,
    Unit,
    at_most,
    describe,
    mean_and_spread,
    more,
    p_text,
    proposition,
    rising,
    same,
    size,
    unknown,
)
from minires.study.scores import curve, gather, grid
from minires.study.statistics import (
    ALPHA,
    LEAST_SEEDS,
    best_of_the_others,
    complete,
    holm,
    middle,
    p_different,
    p_equivalent,
    p_greater,
    p_less,
    p_mcnemar,
)
from minires.study.store import Sweep

# A smaller gain counts as marginal, a larger loss as a loss. It is the smallest difference between
# two networks that 10,000 images can show, a little more than one standard error.
VISIBLE = 0.001
INNER_L1 = (0.15, 0.3)  # the paper's range of ℓ₁
LOST = 0.5  # with an accuracy below this, a network has forgotten what it knew
ADAM_CEILING = 0.993  # C11
FREE, CHEAP = 0.05, 0.10  # C16: "nothing" and "marginally" are at most 5 % and 10 % more time
EXACT = 1e-5  # C17: the largest relative error; the weights themselves are known to 6e-8
FEW, ABOUT = 1 / 20, 0.8  # C9: "few updates" and "about one epoch", both in epochs
SCATTERS = Unit(1, 2, " × the standard deviation")


def _picked_by_the_others(values, metric):
    """(K, S) → (S,): for each seed its value at the setting that is best for the other seeds."""
    best = best_of_the_others(values if metric == "accuracy" else -values)
    return values[best, np.arange(len(best))]


def _c1(sweep):
    """Is the best ℓ₁ inside the paper's range, and every measured ℓ₁ outside it worse?

    For each seed, the other seeds choose the best ℓ₁ inside. So its score is not too high by luck.
    """
    low, high = INNER_L1
    rates = grid(sweep, "pretrained", "accuracy", finetune_optimizer=None).l1
    inside = [low <= rate <= high for rate in rates]

    def loss_at(outer):
        def of(metric):
            found = grid(sweep, "pretrained", metric, finetune_optimizer=None)
            values = complete(found.along_l1[-1:])  # (1, ℓ₁, S), the largest dropout
            if not values.size or not any(inside):
                return np.empty((0, 0))
            inner = _picked_by_the_others(values[0][inside], metric)
            return (inner - values[0][rates.index(outer)])[None]

        return of

    parts = [
        more(f"pre-training with ℓ₁ {rate:g} is worse than with the best ℓ₁ inside", loss_at(rate))
        for rate, within in zip(rates, inside, strict=True)
        if not within
    ]
    for side, there in (
        (f"below {low}", any(rate < low for rate in rates)),
        (f"above {high}", any(rate > high for rate in rates)),
    ):
        if not there:
            parts.append(unknown(f"pre-training with ℓ₁ {side} is worse", "not measured"))

    def means():
        found = grid(sweep, "pretrained", "accuracy", finetune_optimizer=None)
        rows = []
        for place, rate in enumerate(found.l1):
            values = found.values[place, 0, -1]
            values = values[np.isfinite(values)]
            if len(values):
                rows.append((f"  pre-trained, ℓ₁ {rate:g}", mean_and_spread(values)))
        return rows

    return Claim(
        "C1",
        "ℓ₁ ∈ {.15, .2, .25, .3} brackets the best training rate; outside it is worse.",
        "signed ranks of the pre-trained networks, best ℓ₁ inside − each ℓ₁ outside",
        parts,
        [means],
    )


def _plain(sweep, metric):
    """What plain fine-tuning reached, at every ℓ₁ and ℓ₂."""
    return grid(sweep, "finetuned", metric)


def _plain_by_rates(sweep, metric):
    """The same as an array (ℓ₁, ℓ₂, S); empty when nothing was measured."""
    values = complete(np.moveaxis(_plain(sweep, metric).values, 2, 0))
    return middle(values) if values.size else np.empty(0)


def _corner(sweep):
    """The part of C2 about the corner: the upper half of ℓ₁ with the lower half of ℓ₂.

    Both halves include the median. For each seed, the other seeds choose the best rates in the
    corner and the best ones elsewhere.
    """
    says = (
        f"no other rates are better by {POINTS.edge(MARGIN['accuracy'])} or more than a high ℓ₁ "
        "with a low ℓ₂"
    )
    rates = _plain(sweep, "accuracy")
    if min(len(rates.l1), len(rates.l2)) < 2:
        return unknown(says, "not measured: this needs two ℓ₁ and two ℓ₂ or more")
    high = np.array(rates.l1) >= np.median(rates.l1)
    low = np.array(rates.l2) <= np.median(rates.l2)
    in_corner = high[:, None] & low

    def lost(metric):
        values = _plain_by_rates(sweep, metric)
        if not values.size:
            return np.empty((0, 0))
        elsewhere, there = (
            _picked_by_the_others(values[where], metric) for where in (~in_corner, in_corner)
        )
        return (elsewhere - there)[None]

    return at_most(says, lost, MARGIN["accuracy"])


def _best_rates(sweep):
    """A row that names the rates at which plain fine-tuning was best; none without values."""
    values, rates = _plain_by_rates(sweep, "accuracy"), _plain(sweep, "accuracy")
    if not values.size:
        return []
    table = np.median(values, axis=-1)
    row, column = np.unravel_index(table.argmax(), table.shape)
    where = f"ℓ₁ {rates.l1[row]:g}, ℓ₂ {rates.l2[column]:g}"
    return [("  the best rates, by the median over seeds", f"{where}: {SHARE.phrase(table.max())}")]


def _c2(sweep):
    """Does plain fine-tuning improve as ℓ₁ rises and as ℓ₂ falls, and is it best in that corner?"""
    rates = _plain(sweep, "accuracy")
    return Claim(
        "C2",
        "Plain fine-tuning is best at a high ℓ₁ and a low ℓ₂.",
        "Page's trend test over seeds, the change along the straight line; signed ranks, the best "
        "rates elsewhere − the best of a high ℓ₁ with a low ℓ₂",
        [
            rising(
                "plain fine-tuning improves with ℓ₁",
                lambda metric: _plain(sweep, metric).along_l1,
                rates.l1,
            ),
            rising(
                "plain fine-tuning improves as ℓ₂ falls",
                lambda metric: _plain(sweep, metric).along_l2[:, ::-1],
                -np.array(rates.l2)[::-1],
            ),
            _corner(sweep),
        ],
        [lambda: _best_rates(sweep)],
    )


def _prefers_larger_l2(sweep, optimizer, method="mean", name="the mean model"):
    """Is a method's best ℓ₂ larger than plain fine-tuning's? Does its gain grow with ℓ₂?"""

    def scores(method, metric, diverged=True):
        return grid(sweep, method, metric, optimizer, diverged=diverged)

    l2 = np.array(scores("finetuned", "accuracy").l2)

    def best(method, metric):
        """(cells, S): the best ℓ₂ of each seed; the mean of several that are equally good."""
        values = scores(method, metric).along_l2 * (1 if metric == "accuracy" else -1)
        is_best = values == values.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a missing cell has no best ℓ₂
            return (is_best * l2[:, None]).sum(axis=1) / is_best.sum(axis=1)

    def step_up(metric):
        return best(method, metric) - best("finetuned", metric)

    def gain(metric):
        plain = scores("finetuned", metric, diverged=False)
        return scores(method, metric, diverged=False).along_l2 - plain.along_l2

    says = f"the best ℓ₂ of {name} is larger than that of plain fine-tuning"
    if len(l2) < 2:
        larger = unknown(says, "not measured: this needs two ℓ₂ or more")
    else:
        larger = more(says, step_up, margin=0, unit=RATE)
    return [larger, rising(f"the gain of {name} grows with ℓ₂", gain, l2)]


def _c3(sweep):
    """The mean model decides. The ensembles, and its own slope along ℓ₂, are only reported."""
    l2 = grid(sweep, "mean", "accuracy").l2

    def beside():
        own = rising(
            "  reported only: the mean model's own accuracy rises with ℓ₂",
            lambda metric: grid(sweep, "mean", metric).along_l2,
            l2,
        )
        rows = own.numbers()
        for members in (3, 10):
            name = f"  an ensemble of {members}"
            for part in _prefers_larger_l2(sweep, "sgd", f"ensemble_{members}", name.strip()):
                for what, text in part.numbers():
                    rows.append(("  reported only: " + what.strip(), text))
        return rows

    return Claim(
        "C3",
        "In comparison with plain fine-tuning, resampled models prefer a larger ℓ₂.",
        "signed ranks of each seed's best ℓ₂; Page's trend test of the gain along ℓ₂",
        _prefers_larger_l2(sweep, "sgd"),
        [beside],
    )


def _no_loss_along_l2(sweep, optimizer, method="mean", name="the mean model"):
    """Is no ℓ₂ much worse than the best ℓ₂?

    For each seed, the other seeds choose the best ℓ₂. All losses are shown to be below the bound
    when the one with the largest p-value is. One loss is shown to be above it with Holm's
    correction. Here the mean over all cells counts, and one run that forgot what it knew is enough
    against "no loss".
    """
    says = f"no ℓ₂ costs {name} {POINTS.edge(VISIBLE)} or more"

    def losses(metric):
        """(ℓ₂, S)"""
        found = grid(sweep, method, metric, optimizer)
        values = complete(found.along_l2)
        if not values.size:
            return np.empty((0, 0)), found.l2
        values = values.mean(axis=0)
        loss = _picked_by_the_others(values, metric) - values
        return (loss if metric == "accuracy" else -loss), found.l2

    loss, l2 = losses("accuracy")
    if not loss.size or len(l2) < 2:
        return unknown(says, "not measured: this needs two ℓ₂ or more")
    worst = loss.mean(axis=1).argmax()
    found = (
        f"the largest loss, at ℓ₂ {l2[worst]:g}, is {POINTS.phrase(loss[worst].mean(), '')} on "
        f"average and {POINTS.write(np.median(loss[worst]), '')} in the median"
    )
    seeds = loss.shape[1]
    if seeds < LEAST_SEEDS:
        few = f"{found}, but {counted(seeds, 'seed')}: too few"
        return replace(unknown(says, few), numbers=lambda: [(says, few)])
    runs = grid(sweep, method, "accuracy", optimizer).along_l2
    lost = (runs < LOST).sum(axis=(0, 2))  # of each ℓ₂
    mixed = f"{lost.sum()} of {np.isfinite(runs).sum()} runs were lost" if lost.any() else ""
    pro = p_less(loss, VISIBLE).max()
    con = holm(p_greater(loss, VISIBLE)).min()

    def numbers():
        tested = f"signed ranks, the largest p of all ℓ₂: {p_text(pro)}"
        rows = [(says, f"{found}; {tested}; {counted(seeds, 'seed')}")]
        for rate, row, gone in zip(l2, loss, lost, strict=True):
            text = size(row, POINTS)
            if gone:
                text += f"; {counted(gone, 'run')} below {SHARE.edge(LOST)}"
            rows.append((f"  loss at ℓ₂ {rate:g}", text))
        beside, _ = losses("nll")
        text = f"{NLL.phrase(beside.mean(axis=1).max())}"
        rows.append(("  the largest loss of NLL", text))
        return rows

    limit = f"surely more than {POINTS.edge(VISIBLE)} somewhere"
    return Part(says, pro, con, found, limit, mixed, numbers)


def _c4(sweep):
    """Non-inferiority: every ℓ₂ of the mean model compared with its best ℓ₂."""

    def plain():
        part = _no_loss_along_l2(sweep, "sgd", "finetuned", "plain fine-tuning")
        return [("  reported only: " + what.strip(), text) for what, text in part.numbers()]

    return Claim(
        "C4",
        "Resampled models do not degrade over the wide range of ℓ₂.",
        f"signed ranks, best ℓ₂ − each ℓ₂ against {POINTS.edge(VISIBLE)}",
        [_no_loss_along_l2(sweep, "sgd")],
        [plain],
    )


def _c5(sweep):
    return Claim(
        "C5",
        "Dropout helps plain fine-tuning.",
        "signed ranks, with − without dropout",
        [
            more(
                "plain fine-tuning is better with dropout",
                lambda metric: grid(sweep, "finetuned", metric).dropout_gain,
            )
        ],
    )


def _c6(sweep):
    """An interaction: |g| < g₀. g is the mean model's gain through dropout, g₀ plain fine-tuning's.

    |g| < g₀ when g₀ − g > 0 and g₀ + g > 0. If dropout surely harms plain fine-tuning, both signs
    change, since "matters" is about sizes only.
    """

    def gains(metric):
        plain = grid(sweep, "finetuned", metric).dropout_gain
        mean = grid(sweep, "mean", metric).dropout_gain
        measured = complete(np.stack([plain, mean], axis=1))  # (cells, 2, S)
        return measured[:, 0], measured[:, 1]

    plain, _ = gains("accuracy")
    gain = middle(plain) if plain.size else np.zeros(1)
    sign = -1 if p_different(gain) < ALPHA and np.median(gain) < 0 else 1

    def less(metric):
        plain, mean = gains(metric)
        return sign * (plain - mean)

    def no_reversal(metric):
        plain, mean = gains(metric)
        return sign * (plain + mean)

    def each():
        rows = []
        for name, gain in zip(
            ("plain fine-tuning", "the mean model"), gains("accuracy"), strict=True
        ):
            if gain.size:
                rows.append((f"  gain of {name} through dropout", describe(middle(gain), POINTS)))
        return rows

    return Claim(
        "C6",
        "Dropout matters less after resampling.",
        "signed ranks of the interaction: difference and sum of the two gains through dropout",
        [
            more("dropout changes plain fine-tuning more than the mean model", less),
            more("it does not change the mean model as much in the other direction", no_reversal),
        ],
        [each],
    )


def _difference(sweep, method, other, *optimizers):
    """metric → (cells, S): a method minus another one of the same run; by SGD unless named."""

    def of(metric):
        first, second = (
            grid(sweep, name, metric, *optimizers, diverged=False) for name in (method, other)
        )
        return first.cells - second.cells

    return of


def _c7(sweep):
    """Equivalence must be shown: that no difference was found is not enough.

    McNemar's tests of all pairs of networks are only reported.
    """

    def mcnemar():
        rows = []
        for optimizer, name in OPTIMIZERS.items():
            pairs = [
                record["mcnemar"]["mean_vs_ensemble_3"]
                for record in sweep.records
                if record["cell"]["optimizer"] == optimizer
                and "mean_vs_ensemble_3" in record.get("mcnemar", {})
            ]
            if pairs:
                p_values = np.array([p_mcnemar(*pair) for pair in pairs])
                text = (
                    f"of {len(pairs)} pairs of networks {(p_values < ALPHA).sum()} differ with "
                    f"p < {ALPHA}, {(holm(p_values) < ALPHA).sum()} after Holm's correction"
                )
                rows.append((f"  McNemar, run by run, trained with {name}", text))
        return rows

    return Claim(
        "C7",
        "The mean model and an ensemble of 3 do not differ significantly.",
        f"TOST by signed ranks, margin ± {POINTS.edge(MARGIN['accuracy'])}",
        [
            same(
                "an ensemble of 3 is as good as the mean model",
                _difference(sweep, "ensemble_3", "mean"),
            )
        ],
        [mcnemar],
    )


def _c8(sweep):
    gain = _difference(sweep, "ensemble_10", "mean")

    def against_three():
        of = _difference(sweep, "ensemble_10", "ensemble_3")
        return more("  reported only: it is better than an ensemble of 3", of, margin=0).numbers()

    def cost():
        return [("  its cost", "ten predictions instead of one")]

    return Claim(
        "C8",
        "An ensemble of 10 is marginally better, at ten times the cost.",
        f"signed ranks, ensemble of 10 − mean model against 0 and {POINTS.edge(VISIBLE)}",
        [
            more("an ensemble of 10 is better than the mean model", gain, margin=0),
            at_most(f"the gain is below {POINTS.edge(VISIBLE)}", gain, VISIBLE),
        ],
        [against_three, cost],
    )


def _c9(sweep):
    """Is a mean over a twentieth of an epoch worse, and is the curve flat before it ends?

    Two neighbouring points do not show that a curve is flat: a rising curve has small steps, too.
    So every measured number of updates, from half of all on and from about an epoch on, must be
    equivalent to all updates. A gain after about an epoch contradicts the claim.
    """
    counts, values = curve(sweep, "updates", "updates", "accuracy")
    says_few = "the mean over all updates is better than over the first few"
    says_flat = "nothing more is gained after about an epoch"
    statement = "The moments need enough updates; about one epoch is enough."
    test = "signed ranks, and TOST, along the accuracy against the number of updates averaged"
    if len(counts) < 3:
        return Claim("C9", statement, test, [unknown(says_few, "not measured")])
    epoch = (sweep.settings["train"] or 60_000) // sweep.settings["batch"]
    *before, end = counts
    few = max([count for count in before if count <= FEW * epoch], default=before[0])
    near = min(before, key=lambda count: abs(count - epoch))
    later = [count for count in before if count >= near or 2 * count >= end]
    margin = MARGIN["accuracy"]

    def from_few(metric):
        found = curve(sweep, "updates", "updates", metric)[1]
        return found[:, -1] - found[:, counts.index(few)]

    def from_later(metric):
        """(cells, later, S)"""
        found = curve(sweep, "updates", "updates", metric)[1]
        return found[:, -1:] - found[:, [counts.index(count) for count in later]]

    def after_an_epoch(data):
        data = data[..., later.index(near), :]
        return p_greater(data, margin) if near >= ABOUT * epoch else np.ones(data.shape[:-1])[()]

    flat = Test(
        f"TOST ± {POINTS.edge(margin)}, the largest p",
        lambda data: p_equivalent(data, margin).max(axis=-1),
        after_an_epoch,
        after_an_epoch,
        f"after {near} surely more than {POINTS.edge(margin)}",
        lambda data: data[..., 0, :],
        MARGIN["nll"],
    )

    def along():
        cells, rows = complete(values), []
        for place, earlier in enumerate(before if cells.size else []):
            gain = middle(cells[:, -1] - cells[:, place])
            rows.append((f"  {end} updates against {earlier}", describe(gain, POINTS)))
        return rows

    few_part = more(f"{says_few} ({end} against {few}; an epoch has {epoch})", from_few)
    if end < ABOUT * epoch:
        ends = f"not measured: the curve ends after {end} updates, an epoch has {epoch}"
        flat_part = unknown(says_flat, ends)
    else:
        says = f"from {later[0]} updates on nothing more is gained ({end} against {_list(later)})"
        flat_part = proposition(says, from_later, flat, POINTS, ("accuracy", "nll"))
    return Claim("C9", statement, test, [few_part, flat_part], [along])


def _list(numbers):
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def _c10(sweep):
    """C3 and C4 again for networks trained with Adam, and whether resampling helps at all."""

    gain = _difference(sweep, "mean", "finetuned", "adam")
    return Claim(
        "C10",
        "Trained with Adam and fine-tuned with SGD: the same pattern.",
        "as C3 and C4; signed ranks, mean model − plain fine-tuning",
        [
            more("the mean model is better than plain fine-tuning", gain),
            *_prefers_larger_l2(sweep, "adam"),
            _no_loss_along_l2(sweep, "adam"),
        ],
    )


def _c11(sweep):
    """Plain fine-tuning by Adam, its mean model, and the best other method of Fig. 2."""

    def level(method):
        return lambda metric: grid(sweep, method, metric, "adam", "adam", diverged=False).cells

    def best_other(metric):
        by_sgd, by_adam = (
            grid(sweep, "mean", metric, "adam", which).along_l2 for which in ("sgd", "adam")
        )
        if len(by_sgd) != len(by_adam):
            return np.empty((0, 0))
        values = complete(np.concatenate([by_sgd, by_adam], axis=1))  # (dropout, ℓ₂, S)
        if not values.size or values.shape[1] < 2:  # Adam and at least one ℓ₂ of SGD
            return np.empty((0, 0))
        *_, by_adam = values = middle(values)
        return (_picked_by_the_others(values[:-1], metric) - by_adam)[None]

    says = f"plain fine-tuning by Adam stays below {ADAM_CEILING}"
    if sweep.settings["data"] == "mnist" and "data_name" not in sweep.settings:
        ceiling = at_most(says, level("finetuned"), ADAM_CEILING, SHARE, ("accuracy",))
        mean = complete(level("mean")("accuracy"))
        if mean.size and np.median(middle(mean)) < ADAM_CEILING:
            # A small network stays below with every method: true, but not because of averaging.
            beside = f"so does its mean model, {SHARE.phrase(np.median(middle(mean)))}"
            ceiling = replace(ceiling, found=f"{ceiling.found}; {beside}")
    else:
        ceiling = unknown(says, "the number is about MNIST")
    return Claim(
        "C11",
        "Fine-tuned with Adam, plain stays below 0.993; resampling its iterates is best.",
        "signed ranks; for each seed, the other seeds choose the best ℓ₂ of SGD",
        [
            ceiling,
            more(
                "its mean model is better", _difference(sweep, "mean", "finetuned", "adam", "adam")
            ),
            at_most(
                "the best mean model fine-tuned by SGD is better by less than "
                f"{POINTS.edge(MARGIN['accuracy'])}",
                best_other,
                MARGIN["accuracy"],
            ),
        ],
    )


def _c12(sweep):
    """Marginal means: smaller than the standard deviation over seeds at the same rates."""

    def both(metric):
        return [grid(sweep, "mean", metric, "adam", which) for which in ("sgd", "adam")]

    def gain(metric):
        return np.concatenate([found.dropout_gain for found in both(metric)])

    def gain_in_scatters(metric):
        cells = [found.dropout_gain_in_scatters for found in both(metric)]
        return np.concatenate(cells)

    return Claim(
        "C12",
        "Trained with Adam, dropout gains only marginally, given the scatter.",
        "signed ranks of the gain divided by the standard deviation over seeds, and of a loss",
        [
            at_most(
                "the mean model's gain through dropout is below the scatter over seeds",
                gain_in_scatters,
                1.0,
                SCATTERS,
            ),
            at_most(
                "dropout costs the mean model nothing that matters",
                lambda metric: -gain(metric),
                MARGIN["accuracy"],
            ),
        ],
    )


def _c16(sweep):
    """Compares seconds of one step, one update of the moments and one prediction in the same cell.

    The ratio of a seed is the median over its cells, so a worker that had to wait matters little.
    """

    def ratio(above, below):
        def of(metric):
            cells = gather(sweep, lambda record: _ratio(record.get("seconds", {}), above, below))
            if not cells.size:
                return cells
            measured = cells[:, np.isfinite(cells).any(axis=0)]
            return np.nanmedian(measured, axis=0)[None]

        return of

    def more_time(metric):
        return ratio("predict_mean", "predict_finetuned")(metric) - 1

    return Claim(
        "C16",
        "The mean model costs nothing at inference and marginally in training.",
        "signed ranks over seeds of ratios of measured seconds; clocks are noisy",
        [
            at_most(
                f"predicting takes less than {PERCENT.edge(FREE)} longer",
                more_time,
                FREE,
                PERCENT,
                ("seconds",),
            ),
            at_most(
                f"the moments take less than {PERCENT.edge(CHEAP)} of a training step",
                ratio("moments", "step"),
                CHEAP,
                PERCENT,
                ("seconds",),
            ),
        ],
    )


def _ratio(seconds, above, below):
    if above not in seconds or not seconds.get(below):
        return None
    return seconds[above] / seconds[below]


def _c17(sweep):
    """This is arithmetic, not chance: one error above the bound contradicts it."""
    says = "mean and variance agree with those of all weights kept"
    errors = [
        max(record["moments_check"]["mean"], record["moments_check"]["variance"])
        for record in sweep.records
        if "moments_check" in record
    ]
    if errors:
        worst = max(errors)
        exact = worst <= EXACT
        found = f"largest relative error {worst:.1e} in {counted(len(errors), 'run')}"
        part = Part(
            says,
            0.0 if exact else 1.0,
            1.0 if exact else 0.0,
            found,
            f"allowed {EXACT:g}",
            numbers=lambda: [(says, found)],
        )
    else:
        part = unknown(says, "not measured")
    return Claim(
        "C17",
        "Eqs. 2-3 equal the population mean and variance of θ¹ … θᵀ.",
        f"relative error compared with float64 over the kept history, at most {EXACT:g}",
        [part],
    )


CLAIMS = (_c1, _c2, _c3, _c4, _c5, _c6, _c7, _c8, _c9, _c10, _c11, _c12, _c16, _c17)


TOO_SMALL = "too small to judge: this profile only shows that everything works"


def is_too_small(sweep: Sweep) -> bool:
    """Whether the sweep's profile is too small for verdicts."""
    return sweep.settings.get("profile") in TESTING


def verdicts(sweep: Sweep) -> list:
    """The verdicts on all claims about MNIST.

    A profile that only shows that everything works gives no verdicts. Nor do networks that only
    guess: they are all equally good, which would look like an answer. So if more than half of the
    runs were lost, only the claims about time and arithmetic are judged.

    sweep     a `minires.study.store.Sweep`
    Returns   [Verdict, …], C1 to C12, C16, C17
    """
    found = [claim(sweep) for claim in CLAIMS]
    runs = [record for record in sweep.records if "finetuned" in record["methods"]]
    lost = sum(record["methods"]["finetuned"]["accuracy"] < LOST for record in runs)
    lost += sum(record["cell"]["l2"] is not None for record in sweep.diverged)
    total = len(runs) + sum(record["cell"]["l2"] is not None for record in sweep.diverged)
    if is_too_small(sweep):
        small = unknown("the sweep can judge", TOO_SMALL)
        found = [replace(claim, parts=[small], beside=[]) for claim in found]
    elif 2 * lost > total:
        guess = unknown("the networks have learned", f"{lost} of {total} runs were lost")
        found = [
            claim if claim.claim in ("C16", "C17") else replace(claim, parts=[guess], beside=[])
            for claim in found
        ]
    return [claim.verdict() for claim in found]
