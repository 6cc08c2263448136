"""What a pre-trained sweep found: scores, paired differences, and verdicts on C13 to C15.

Two methods are compared photograph by photograph, on the same photographs. Chance has two sources,
and for each there is a test:

- Other photographs would give other differences. So each photograph's difference is averaged over
  the seeds, and Student's t-test is made over the photographs. The page also gives McNemar's exact
  test of each seed.
- Other seeds show the photographs in another order. So a difference counts only if every seed
  agrees.

The best rate of a method is chosen on other photographs, if the sweep has them. Otherwise it is
chosen on the photographs that methods are compared on, as in the paper: then every method looks
better than it is.

An argument means the same in all of this file:

    found    Findings, as from `load`
    method   a key of `METHODS`
    metric   "accuracy" or "nll"; scores know "ece" too
    rate     ℓ₂ of the fine-tuning; None for the base
    seed     of the fine-tuning; the base has none
    seeds    a list of them
    says     the proposition, a sentence
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from minires.arrays.files import load_json, save_json
from minires.arrays.results import check
from minires.arrays.text import counted
from minires.study.figures import number
from minires.study.pretrained import PROFILE, Cell, read_cells
from minires.study.propositions import (
    SUPPORTED,
    Claim,
    Part,
    Unit,
    Verdict,
    p_text,
    unknown,
)
from minires.study.statistics import ALPHA, p_mcnemar, student_interval
from minires.study.store import (
    ROWS,
    SETTINGS,
    check_kept,
    make_folder_of,
    name_of_sweep,
    write_rows,
)
from minires.training.metrics import calibration_error

METRICS = ("accuracy", "nll")
SIGNS = {"accuracy": 1, "nll": -1}  # of a difference that is a gain
UNITS = {"accuracy": Unit(100, 2, " points"), "nll": Unit(1, 4, "")}
IMAGENET, QUARTER, PAPER_UPDATES, PAPER_BATCH = 1_281_167, 0.25, 10_000, 32
METHODS = {
    "base": "base",
    "finetuned": "fine-tuned",
    "ema": "moving average (EMA)",
    "mean": "mean model",
    "mean_recomputed": "mean, statistics recomputed",
    "mean_last": "mean, statistics of the last update",
    "ensemble_3": "ensemble of 3",
    "ensemble_10": "ensemble of 10",
}


# --- what the folder holds ------------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """A sweep as far as it has come.

    settings   what sweep.json says
    base       the record of the network as its file has it
    records    {Cell: record} of finished fine-tunings, in order
    diverged   {Cell: reason} of those whose loss became infinite
    """

    settings: dict
    base: dict
    records: dict
    diverged: dict

    @property
    def rates(self) -> list:
        """The rates that were tried, in order."""
        return sorted({cell.rate for cell in self.records})

    @property
    def methods(self) -> list:
        """The methods that were measured, in order; the base first."""
        measured = {name for record in self.records.values() for name in record["pictures"]}
        return [name for name in METHODS if name in measured | {"base"}]

    @property
    def labels(self) -> np.ndarray:
        """(N,) the classes of the photographs."""
        return np.array(self.base["labels"])

    def seeds(self, *rates: float) -> list:
        """The seeds that have a finished cell at each of the rates (None: the base).

        rates   ℓ₂, or None for the base
        """
        found = [
            {cell.seed for cell in self.records if cell.rate == rate} for rate in rates if rate
        ]
        return sorted(set.intersection(*found)) if found else []

    def pictures(self, method: str, rate: float | None, seed: int | None) -> dict:
        """What one network predicts: as from `minires.study.pretrained.pictures_of`."""
        record = self.base if method == "base" else self.records[Cell(seed, rate)]
        return record["pictures"][method]

    def values(self, method: str, rate: float | None, metric: str, seeds: list) -> np.ndarray:
        """(seeds, N) for each photograph: whether its class was recognised, or its NLL."""
        found = [self.pictures(method, rate, seed) for seed in seeds]
        if metric == "nll":
            return np.array([each["nll"] for each in found], float)
        return np.array([each["predicted"] for each in found]) == self.labels[None]

    def score(self, method: str, rate: float | None, metric: str) -> np.ndarray:
        """(seeds,) accuracy, NLL or ECE of a method at a rate."""
        seeds = [0] if method == "base" else self.seeds(rate)
        if metric != "ece":
            return self.values(method, rate, metric, seeds).astype(float).mean(axis=1)
        sure = np.array([self.pictures(method, rate, seed)["confidence"] for seed in seeds])
        return np.atleast_1d(calibration_error(sure, self.values(method, rate, "accuracy", seeds)))

    def gain(self, metric: str, first: tuple, second: tuple) -> np.ndarray:
        """(seeds, N): how much better the first is than the second; negative where it is worse.

        first, second   (method, rate); the rate of "base" is None
        """
        seeds = self.seeds(first[1], second[1])
        difference = self.values(*first, metric, seeds).astype(float)
        difference = difference - self.values(*second, metric, seeds)
        return SIGNS[metric] * difference

    @property
    def chooses_apart(self) -> bool:
        """Whether the best rate is chosen on other photographs than methods are compared on."""
        return "choose" in self.settings["images"]

    def best_rate(self, method: str, metric: str) -> float | None:
        """The rate with the best mean over the seeds; of equal ones the smallest."""
        if method == "base":
            return None
        found = {}
        for rate in self.rates:
            if self.chooses_apart:
                cells = [self.records[Cell(seed, rate)] for seed in self.seeds(rate)]
                score = np.mean([record["choose"][method][metric] for record in cells])
            else:
                score = self.score(method, rate, metric).mean()
            found[rate] = SIGNS[metric] * score
        return max(found, key=lambda rate: (found[rate], -rate))


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder holds a sweep of this profile."""
    path = Path(folder) / SETTINGS
    if not path.exists():
        return False
    settings = load_json(path)
    return isinstance(settings, dict) and settings.get("profile") == PROFILE


def load(folder: str | Path) -> Findings:
    """Read the folder of a sweep, finished or not, or its rows; nothing in it is changed.

    Raises   FileNotFoundError, ValueError for a folder without a base, or a damaged file
    """
    folder = Path(folder)
    settings = load_json(folder / SETTINGS)
    kinds = {"images": {"*": int}, "updates": int, "batch": int, "model": str, "classes": [str]}
    check(folder / SETTINGS, settings, {**kinds, "*": object})
    _, found = read_cells(folder)
    base = found.pop(Cell(), None)
    if base is None:
        raise ValueError(f"{folder} holds no base yet: let the sweep finish its first cell")
    pictures = len(base["labels"])
    for cell, record in found.items():
        for method, each in record.get("pictures", {}).items():
            if len(each["nll"]) != pictures:
                raise ValueError(f"{folder}: {cell.key}, {method}: not of {pictures} pictures")
    return Findings(
        settings=settings,
        base=base,
        records={cell: record for cell, record in found.items() if "pictures" in record},
        diverged={c: record["diverged"] for c, record in found.items() if "diverged" in record},
    )


def save_rows(found: Findings, folder: str | Path) -> None:
    """Write a sweep as two small files from which `load` reads the same.

    The same sweep gives the same bytes. `minires report` makes the page from them.

    folder   made if it does not exist
    Raises   ValueError when it holds another sweep, or cells that this one lacks
    """
    folder, name = Path(folder), name_of_sweep(found.settings)
    make_folder_of(name, folder)
    if (folder / ROWS).exists():
        check_kept(folder, read_cells(folder)[1], [Cell(), *found.records, *found.diverged])
    lost = {cell: {"cell": vars(cell), "diverged": why} for cell, why in found.diverged.items()}
    records = sorted({**found.records, **lost}.items(), key=lambda item: item[0].order)
    rows = [found.base, *(record for _, record in records)]
    write_rows(folder / ROWS, name, rows, separators=(",", ":"))
    save_json(folder / SETTINGS, found.settings)


# --- differences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another.

    mean       over photographs and seeds
    low, high  its 95 % interval over photographs, by Student's t
    p          of the t-test over photographs, two-sided; 1 if all differences are equal
    by_seed    (seeds,) the mean of each seed
    mcnemar    for accuracy: p-values of McNemar's test, one for each seed; for NLL None
    """

    mean: float
    low: float
    high: float
    p: float
    by_seed: np.ndarray
    mcnemar: list | None

    @classmethod
    def of(cls, gain: np.ndarray, metric: str) -> "Difference":
        """The Difference of some gains.

        gain   (seeds, N), as from `Findings.gain`
        """
        over_seeds = gain.mean(axis=0)
        low, high = student_interval(over_seeds)
        with np.errstate(invalid="ignore", divide="ignore"):
            p = float(stats.ttest_1samp(over_seeds, 0.0).pvalue) if np.ptp(over_seeds) else 1.0
        mcnemar = None
        if metric == "accuracy":
            mcnemar = [p_mcnemar(int((g > 0).sum()), int((g < 0).sum())) for g in gain]
        return cls(float(over_seeds.mean()), low, high, p, gain.mean(axis=1), mcnemar)

    @property
    def p_above(self) -> float:
        """One-sided: the probability of so large a mean, if the methods did not differ."""
        return self.p / 2 if self.mean > 0 else 1 - self.p / 2

    @property
    def p_below(self) -> float:
        """One-sided: the probability of so small a mean, if the methods did not differ."""
        return self.p / 2 if self.mean < 0 else 1 - self.p / 2

    def words(self, metric: str) -> str:
        """The difference as text: "accuracy +1.20 points [0.30, 2.10]", "NLL −0.02 [−0.03, −0.01]".

        The signs are those of the metric: a better NLL is smaller, so its difference is negative.
        """
        unit, sign = UNITS[metric], SIGNS[metric]
        low, high = sorted((sign * self.low, sign * self.high))
        name = {"accuracy": "accuracy", "nll": "NLL"}[metric]
        bounds = f"[{unit.write(low)}, {unit.write(high)}]"
        return f"{name} {unit.write(sign * self.mean)}{unit.name} {bounds}"


def ahead(found: Findings, metric: str, says: str, first: tuple, second: tuple) -> Part:
    """The proposition that one method is better than another, as a Part of a claim.

    first, second   (method, rate)
    """
    if not found.seeds(first[1], second[1]):
        return unknown(says, "not measured")
    difference = Difference.of(found.gain(metric, first, second), metric)
    against = int((difference.by_seed * np.sign(difference.mean) < 0).sum())
    seeds = len(difference.by_seed)
    mixed = f"{against} of {counted(seeds, 'seed')} with the opposite sign" if against else ""

    def numbers():
        unit = UNITS[metric]
        text = f"{difference.words(metric)}, {p_text(difference.p)}, over {found.labels.size:,} "
        text += "pictures; by seed "
        text += ", ".join(unit.write(SIGNS[metric] * value) for value in difference.by_seed)
        if difference.mcnemar:
            text += f"; McNemar {', '.join(map(p_text, difference.mcnemar))}"
        return [(says, text)]

    pro, con, words = difference.p_above, difference.p_below, difference.words(metric)
    if against:  # only what every seed shows can contradict
        con = 1.0
    if min(pro, con) < ALPHA and difference.low <= 0 <= difference.high:
        words += f"; one-sided {p_text(min(pro, con))}"  # the interval, two-sided, does not show it
    return Part(says, pro, con, words, "the opposite", mixed, numbers)


# --- the claims -----------------------------------------------------------------------------


def verdicts(found: Findings, metric: str) -> list:
    """The verdicts on C13, C14 and C15, by accuracy or by NLL: [Verdict, …]."""
    if not found.records:
        return []
    best = {method: found.best_rate(method, metric) for method in ("finetuned", "mean")}
    base, mean, tuned = ("base", None), ("mean", best["mean"]), ("finetuned", best["finetuned"])

    def part(says, first, second):
        return ahead(found, metric, says, first, second)

    test = "Student's t over pictures, the seeds' differences averaged; every seed must agree"
    claims = [
        Claim(
            "C13",
            "Inception-V3: the mean model is better than the base and than the best fine-tuning, "
            "by very little.",
            test,
            [
                part(f"the mean model (ℓ₂ {number(mean[1])}) is better than the base", mean, base),
                part(f"and than the best fine-tuning (ℓ₂ {number(tuned[1])})", mean, tuned),
            ],
        ),
        Claim(
            "C14",
            "MobileNet: fine-tuning helps, resampling helps more in all cases.",
            test,
            [
                part(
                    f"the best fine-tuning (ℓ₂ {number(tuned[1])}) is better than the base",
                    tuned,
                    base,
                ),
                *(
                    part(
                        f"at ℓ₂ {number(rate)} the mean model is better than fine-tuning",
                        ("mean", rate),
                        ("finetuned", rate),
                    )
                    for rate in found.rates
                ),
            ],
        ),
    ]
    return [*(claim.verdict() for claim in claims), _c15(found)]


def _c15(found):
    """This is arithmetic, not chance: 25 % of ImageNet's training set in batches of 32."""
    updates = QUARTER * IMAGENET / PAPER_BATCH
    settings = found.settings
    passes = settings["updates"] * settings["batch"] / settings["images"]["train"]
    reason = (
        f"{100 * QUARTER:.0f} % of {IMAGENET:,} pictures are {updates:,.0f} batches of "
        f"{PAPER_BATCH}. Here each cell made {settings['updates']:,} updates of "
        f"{settings['batch']}, {passes:.1f} passes over {settings['images']['train']:,} pictures; "
        "whether the paper's number is needed was not measured."
    )
    return Verdict(
        "C15", "25 % of ImageNet are 10,000 updates.", SUPPORTED, [], reason,
        [("shown", reason)], "arithmetic",
    )  # fmt: skip


def differs(found: Findings) -> list:
    """How this sweep differs from the paper's experiment, in sentences."""
    settings, pictures = found.settings, found.settings["images"]
    classes, seeds = len(settings["classes"]), len({cell.seed for cell in found.records})
    paper_passes = PAPER_UPDATES * PAPER_BATCH / IMAGENET
    passes = settings["updates"] * settings["batch"] / pictures["train"]
    lines = [
        f"The network is {settings['model']}; the paper's were TF-slim's Inception-V3 of 2016 and "
        "MobileNetV2 1.0.",
        f"{classes:,} classes"
        + (f" compete, of the {settings['outputs']:,} outputs" if settings["among"] else "")
        + "; in the paper all 1,000.",
        f"{settings['updates']:,} updates of {settings['batch']}, {passes:.1f} passes over "
        f"{pictures['train']:,} pictures; in the paper {PAPER_UPDATES:,} updates, "
        f"{paper_passes:.2f} of a pass over {IMAGENET:,}.",
        f"{pictures['test']:,} test pictures; in the paper 50,000.",
        f"{counted(seeds, 'seed')}; in the paper one.",
        "Pictures are neither flipped nor cut at random.",
    ]
    if found.chooses_apart:
        lines.append(
            f"The best rate is chosen on {pictures['choose']:,} other pictures; in the paper on "
            "the test pictures."
        )
    return lines


# --- the table ------------------------------------------------------------------------------

HEADS = ("ℓ₂", "method", "accuracy %", "Δ base", "Δ tuned", "NLL", "Δ base", "Δ tuned", "ECE %")


def table(found: Findings) -> list:
    """Rows of text for `HEADS`: every method at every rate, means over seeds.

    Δ is the difference to the base, or to fine-tuning at the same rate; if an NLL is smaller, its
    Δ is negative. ± is half the width of the 95 % interval over pictures.
    """
    rows = [_row(found, "base", None)]
    for rate in found.rates:
        rows += [_row(found, name, rate) for name in found.methods if name != "base"]
    return rows


def _row(found, method, rate):
    cells = ["" if rate is None else f"{number(rate)}", METHODS[method]]
    for metric, digits in (("accuracy", 2), ("nll", 4)):
        unit = UNITS[metric]
        cells.append(f"{unit.factor * found.score(method, rate, metric).mean():.{digits}f}")
        for other in (("base", None), ("finetuned", rate)):
            if method == "base" or method == other[0]:
                cells.append("")
                continue
            difference = Difference.of(found.gain(metric, (method, rate), other), metric)
            half = (difference.high - difference.low) / 2
            cells.append(
                f"{unit.write(SIGNS[metric] * difference.mean)} ± {unit.factor * half:.{digits}f}"
            )
    cells.append(f"{100 * found.score(method, rate, 'ece').mean():.2f}")
    return cells


def text_table(found: Findings) -> str:
    """The table as text."""
    from minires.arrays import text

    rows = table(found)
    starts = [n for n, row in enumerate(rows) if n and row[0] != rows[n - 1][0]]
    for start in reversed(starts):
        rows.insert(start, None)
    return text.table(list(HEADS), rows, align="ll")
