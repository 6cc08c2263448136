"""Sweeps made up for tests: every field of a real one, with effects that the test chooses.

    synthetic_sweep()                              # the paper's claims come out
    synthetic_sweep(effects=Effects(dropout_plain=-0.2))
    synthetic_sweep(seeds=3, l1=(0.2,), l2=(0.05, 0.15), adam=False)

Accuracies are sums of a level, the effects below and noise with three parts: what all cells of
a seed share, what the methods of one fine-tuning share, and each method's own.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from minires.study.grid import ADAM_RATE, Cell, nearest
from minires.study.store import Sweep

INNER_L1 = (0.15, 0.2, 0.25, 0.3)
OUTER_L1 = (0.05, 0.6)
L2 = (0.05, 0.1, 0.15, 0.2, 0.25)
BASELINES = (
    "decayed", "swa", "swag", "swag_low_rank", "snapshot", "isotropic_10", "mc_dropout_10",
)  # fmt: skip
UPDATES = (1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500)
BINS = 15


@dataclass(frozen=True)
class Effects:
    """Sizes of what is built in, in percentage points of accuracy where nothing else is said.

    inner_l1         what a pre-training with a rate outside .15 … .3 loses
    l1_plain         gain of plain fine-tuning for each .05 of ℓ₁
    l2_plain         the same for ℓ₂ (negative: a small ℓ₂ is better)
    l2_mean          the same for the mean model and the ensembles
    resampled        gain of the mean model over plain fine-tuning at ℓ₂ = .05
    dropout_plain    gain of plain fine-tuning through dropout, SGD-trained
    dropout_mean     the same of the mean model and the ensembles
    ensemble_3       gain of 3 networks over the mean model
    ensemble_10      gain of 10
    adam_plain       what fine-tuning with Adam gains over the level 99.1
    adam_resampled   gain of the mean model over that
    dropout_adam     gain of everything through dropout, Adam-trained
    adam_pattern     factor of the slopes along ℓ₂ and of `resampled` in Adam-trained cells
    time_constant    of the accuracy against the number of updates averaged, in updates
    moments_seconds  one moments update over one step of training
    clock_noise      standard deviation of every measured time, relative
    predict_ratio    prediction with the mean model over that with the fine-tuned one
    moments_error    relative
    seed_noise, path_noise, method_noise   standard deviations, percentage points
    """

    inner_l1: float = 0.30
    l1_plain: float = 0.04
    l2_plain: float = -0.06
    l2_mean: float = 0.012
    resampled: float = 0.06
    dropout_plain: float = 0.15
    dropout_mean: float = 0.03
    ensemble_3: float = 0.0
    ensemble_10: float = 0.02
    adam_plain: float = -0.1
    adam_resampled: float = 0.5
    dropout_adam: float = 0.01
    adam_pattern: float = 1.0
    time_constant: float = 60.0
    moments_seconds: float = 0.03
    clock_noise: float = 0.01
    predict_ratio: float = 1.0
    moments_error: float = 1e-7
    seed_noise: float = 0.05
    path_noise: float = 0.02
    method_noise: float = 0.01


NOTHING = Effects(
    inner_l1=0, l1_plain=0, l2_plain=0, l2_mean=0, resampled=0, dropout_plain=0, dropout_mean=0,
    ensemble_3=0, ensemble_10=0, adam_plain=0, adam_resampled=0, dropout_adam=0,
)  # fmt: skip


def synthetic_sweep(
    seeds=10,
    effects=None,
    l1=INNER_L1,
    l2=L2,
    outer=OUTER_L1,
    dropouts=(0.5, 0.0),
    adam=True,
    baselines=True,
    curves=True,
    test=10_000,
    random_state=0,
):
    """A Sweep as `load_sweep` would return it.

    seeds          how many, from 0
    effects        Effects
    l1, l2         learning rates that are crossed
    outer          further ℓ₁ with a pre-training only
    dropouts       rates
    adam           also cells trained with Adam, fine-tuned with SGD and with Adam
    baselines      further methods in the cells of the middle ℓ₁ and ℓ₂
    curves         curves, reliability, moments check and the portrait there
    test           images: accuracies are multiples of 1/test
    random_state   of the noise
    """
    make = _Maker(effects or Effects(), test, np.random.default_rng(random_state))
    middle_l1, middle_l2, most = nearest(l1, 0.2), nearest(l2, 0.15), max(dropouts)
    records, deep_ensembles = [], []
    for optimizer in ("sgd", "adam") if adam else ("sgd",):
        rates = (*l1, *outer) if optimizer == "sgd" else (ADAM_RATE,)
        for rate, dropout in itertools.product(sorted(rates), dropouts):
            if rate in outer and dropout != most:
                continue
            for seed in range(seeds):
                start = {"optimizer": optimizer, "l1": rate, "dropout": dropout, "seed": seed}
                pretrained = make.pretraining(start)
                records.append(pretrained)
                if rate in outer:
                    continue
                tunings = [("sgd", value) for value in l2]
                if optimizer == "adam":
                    tunings.append(("adam", ADAM_RATE))
                for finetune_optimizer, value in tunings:
                    more = {"finetune_optimizer": finetune_optimizer, "l2": value}
                    record = make.finetuning(start | more, pretrained)
                    showcase = (
                        (optimizer, finetune_optimizer) == ("sgd", "sgd")
                        and (rate, value, dropout) == (middle_l1, middle_l2, most)
                    )  # fmt: skip
                    if showcase and baselines:
                        make.add_baselines(record)
                    if showcase and curves:
                        make.add_curves(record)
                    if showcase and curves and seed == 0:
                        make.add_portrait(record)
                    records.append(record)
    records.sort(key=lambda record: Cell(**record["cell"]).order)
    for first in range(0, seeds if baselines else 0, 5):
        group = list(range(first, min(first + 5, seeds)))
        cell = {
            "optimizer": "sgd", "l1": middle_l1, "dropout": most,
            "finetune_optimizer": "sgd", "l2": middle_l2,
        }  # fmt: skip
        deep = {"cell": cell, "seeds": group, "members": len(group)}
        deep_ensembles.append(deep | make.scores(0.9935))
    settings = {
        "format": 2,
        "profile": "synthetic",
        "network": {"name": "lenet"},
        "members": 10,
        "data": "mnist",
        "data_sha256": "0" * 64,
        "train": 60_000,
        "test": test,
        "epochs": 2,
        "updates": UPDATES[-1],
        "batch": 128,
        "l1": list(l1),
        "l1_outside": list(outer),
        "l2": list(l2),
        "dropout": list(dropouts),
        "adam": adam,
        "baselines": [middle_l2],
        "curves": [middle_l2],
    }
    return Sweep(settings, records, deep_ensembles, diverged=[])


class _Maker:
    def __init__(self, effects, test, rng):
        self.effects = effects
        self.test = test
        self.rng = rng
        self.shared = {}  # what all cells of a seed have in common; of a seed and dropout

    def noise(self, deviation):
        return deviation / 100 * self.rng.standard_normal()

    def scores(self, accuracy):
        """The four metrics that go with an accuracy, which gets whole images."""
        accuracy = float(np.clip(round(accuracy * self.test) / self.test, 0, 1))
        error = 1 - accuracy
        factor = math.exp(0.02 * self.rng.standard_normal())
        return {
            "accuracy": accuracy,
            "nll": 3.1 * error * factor,
            "brier": 1.5 * error * factor,
            "ece": 0.3 * error * factor,
        }

    def pretraining(self, start):
        effects = self.effects
        seed, key = start["seed"], (start["seed"], start["dropout"])
        if seed not in self.shared:
            self.shared[seed] = self.noise(effects.seed_noise)
        if key not in self.shared:
            self.shared[key] = self.shared[seed] + self.noise(effects.path_noise)
        accuracy = 0.9870 + self.shared[key] + self.noise(effects.path_noise)
        if start["l1"] in OUTER_L1:
            accuracy -= effects.inner_l1 / 100
        return {
            "cell": start | {"finetune_optimizer": None, "l2": None},
            "methods": {"pretrained": self.scores(accuracy)},
            "seconds": {"cell": 100.0 + self.rng.random(), "step": 0.1},
        }

    def finetuning(self, cell, pretrained):
        effects = self.effects
        level = self.shared[cell["seed"], cell["dropout"]] + self.noise(effects.path_noise)
        with_dropout = cell["dropout"] > 0
        if cell["finetune_optimizer"] == "adam":
            plain = 0.991 + level + effects.adam_plain / 100
            mean = plain + effects.adam_resampled / 100
        else:
            # Steps of .05 along ℓ₂, and along ℓ₁ where there is a choice of it.
            steps = (cell["l2"] - 0.05) / 0.05
            pattern = 1.0 if cell["optimizer"] == "sgd" else effects.adam_pattern
            plain = 0.9920 + level + pattern * effects.l2_plain / 100 * steps
            mean = 0.9920 + level
            mean += pattern * (effects.resampled + effects.l2_mean * steps) / 100
            if cell["optimizer"] == "sgd":
                plain += effects.l1_plain / 100 * (cell["l1"] - 0.15) / 0.05
        if cell["optimizer"] == "adam":
            plain += with_dropout * effects.dropout_adam / 100
            mean += with_dropout * effects.dropout_adam / 100
        else:
            plain += with_dropout * effects.dropout_plain / 100
            mean += with_dropout * effects.dropout_mean / 100
        levels = {
            "finetuned": plain,
            "mean": mean,
            "draw": mean - 0.0002,
            "ensemble_3": mean + effects.ensemble_3 / 100,
            "ensemble_10": mean + effects.ensemble_10 / 100,
            "ema": mean - 0.0001,
        }
        methods = {"pretrained": dict(pretrained["methods"]["pretrained"])}
        for name, accuracy in levels.items():
            methods[name] = self.scores(accuracy + self.noise(effects.method_noise))
        return {
            "cell": cell,
            "methods": methods,
            "mcnemar": {
                **{
                    name: self.discordant(methods["finetuned"], methods[name])
                    for name in ("mean", "ensemble_3", "ensemble_10")
                },
                "mean_vs_ensemble_3": self.discordant(methods["mean"], methods["ensemble_3"]),
            },
            "seconds": {
                "cell": 80.0 + self.rng.random(),
                "step": self.clock(0.1),
                "moments": self.clock(0.1 * effects.moments_seconds),
                "predict_mean": self.clock(1.5 * effects.predict_ratio),
                "predict_finetuned": self.clock(1.5),
            },
        }

    def clock(self, seconds):
        return seconds * math.exp(self.effects.clock_noise * self.rng.standard_normal())

    def discordant(self, first, second):
        """[only the first right, only the second right], as few beyond their difference."""
        difference = round((second["accuracy"] - first["accuracy"]) * self.test)
        both = int(self.rng.integers(2, 6))
        return [both + max(0, -difference), both + max(0, difference)]

    def add_baselines(self, record):
        record["methods"] |= {
            name: self.scores(0.9922 + self.noise(0.05))
            for name in BASELINES
            if name != "mc_dropout_10" or record["cell"]["dropout"]
        }

    def add_curves(self, record):
        effects = self.effects
        mean = record["methods"]["mean"]["accuracy"]
        start = record["methods"]["pretrained"]["accuracy"]
        large = record["methods"]["ensemble_10"]["accuracy"]

        def curve(axis, values, accuracies):
            scores = [self.scores(accuracy) for accuracy in accuracies]
            parts = {m: [score[m] for score in scores] for m in ("accuracy", "nll")}
            return {axis: list(values), **parts}

        one = record["methods"]["draw"]["accuracy"]
        members = range(1, 11)
        scale = [quarter / 4 for quarter in range(9)]
        record["curves"] = {
            "ensemble": curve(
                "members", members, [large - (large - one) * math.exp(1 - k) for k in members]
            ),
            "updates": curve(
                "updates",
                UPDATES,
                [
                    mean
                    - (mean - start) * math.exp(-t / effects.time_constant)
                    + self.noise(effects.method_noise)
                    for t in UPDATES
                ],
            ),
            "noise": curve("scale", scale, [mean - 0.0004 * s * s for s in scale]),
        }
        record["reliability"] = {
            name: self.reliability(record["methods"][name]["accuracy"])
            for name in ("finetuned", "mean", "ensemble_10")
        }
        record["moments_check"] = {
            "weights": 64,
            "mean": effects.moments_error,
            "variance": 3 * effects.moments_error,
        }

    def reliability(self, accuracy):
        centres = (np.arange(BINS) + 0.5) / BINS
        count = np.full(BINS, self.test // 500)
        count[:3] = 0  # ten classes: no largest probability below a tenth
        count[-1] = self.test - count[:-1].sum()
        right = np.clip(centres - 0.03, 0, 1)
        right[-1] = accuracy
        return {
            "confidence": [float(c) if n else None for c, n in zip(centres, count, strict=True)],
            "accuracy": [float(a) if n else None for a, n in zip(right, count, strict=True)],
            "count": [int(n) for n in count],
        }

    def add_portrait(self, record):
        layers = {
            "conv2d_1.weight": 32, "conv2d_1.bias": 1, "conv2d_2.weight": 64, "conv2d_2.bias": 1,
            "dense_1.weight": 128, "dense_1.bias": 1, "dense_2.weight": 10, "dense_2.bias": 1,
        }  # fmt: skip
        sigma = []
        for name, outputs in layers.items():
            filters = 1e-3 * np.exp(0.3 * self.rng.standard_normal(outputs))
            sigma.append(
                {
                    "name": name,
                    "filters": filters.tolist(),
                    "relative": 0.02,
                    "quantiles": np.quantile(filters, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
                }
            )
        position = np.linspace(-0.5, 2.5, 31)
        bowl = (position - 1.8) ** 2
        x, y = np.linspace(-2, 4, 21), np.linspace(-2, 3, 21)
        points = {"pretrained": [0.0, 0.0], "finetuned": [2.0, 0.0], "mean": [1.4, 0.9]}
        distance = (x - 1.4) ** 2 + (y[:, None] - 0.9) ** 2
        record["portrait"] = {
            "sigma": sigma,
            "line": {
                "position": position.tolist(),
                "train_loss": (0.008 + 0.01 * bowl).tolist(),
                "test_loss": (0.022 + 0.012 * bowl).tolist(),
            },
            "plane": {
                "x": x.tolist(),
                "y": y.tolist(),
                "test_loss": (0.022 + 0.01 * distance).tolist(),
                "points": points,
            },
        }
