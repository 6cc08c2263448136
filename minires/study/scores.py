"""The scores of a sweep, put in order for the tests: which cell, which seed, what is missing."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The scores of one method. values[ℓ₁, ℓ₂, dropout, seed], NaN where not measured.

    Each view puts the seeds last and the cells to be taken together first.
    """

    l1: list
    l2: list
    dropout: list
    seeds: list
    values: np.ndarray

    @property
    def cells(self):
        """(cells, S)"""
        return self._views(self.values)

    @property
    def along_l1(self):
        """(cells, ℓ₁, S)"""
        return self._views(np.moveaxis(self.values, 0, 2), len(self.l1))

    @property
    def along_l2(self):
        """(cells, ℓ₂, S)"""
        return self._views(np.moveaxis(self.values, 1, 2), len(self.l2))

    @property
    def dropout_gain(self):
        """(cells, S): with the largest dropout minus without any; no cells if one is missing."""
        if len(self.dropout) < 2 or self.dropout[0] != 0:
            return np.empty((0, len(self.seeds)))
        return self._views(self.values[:, :, -1] - self.values[:, :, 0])

    def _views(self, values, *inner):
        cells = math.prod(values.shape[: values.ndim - 1 - len(inner)])
        return values.reshape(cells, *inner, len(self.seeds))


# A network that can tell nothing gives each of ten digits a tenth.
GUESSING = {"accuracy": 0.1, "nll": math.log(10)}


def grid(sweep, method, metric, optimizer="sgd", finetune_optimizer="sgd", diverged=False):
    """The scores of a method in all cells of one pair of optimizers, as a Grid.

    finetune_optimizer   None: the pre-trainings
    diverged             count a run whose loss became infinite as guessing; else as missing
    """
    everything = [*sweep.records, *sweep.diverged]
    records = [
        record
        for record in everything
        if record["cell"]["optimizer"] == optimizer
        and record["cell"]["finetune_optimizer"] == finetune_optimizer
    ]
    # Dropout and seeds are those of the whole sweep, so that any two grids can be subtracted.
    axes = [
        sorted({record["cell"][name] for record in found})
        for name, found in (
            ("l1", records), ("l2", records), ("dropout", everything), ("seed", everything)
        )
    ]  # fmt: skip
    places = [{value: place for place, value in enumerate(axis)} for axis in axes]
    values = np.full([len(axis) for axis in axes], np.nan)
    for record in records:
        cell = record["cell"]
        keys = cell["l1"], cell["l2"], cell["dropout"], cell["seed"]
        place = tuple(where[key] for where, key in zip(places, keys, strict=True))
        if "diverged" in record:
            values[place] = GUESSING[metric] if diverged else np.nan
        elif method in record["methods"]:
            values[place] = record["methods"][method][metric]
    return Grid(*axes, values)


def gather(sweep, value_of):
    """One value, or list of values, of each SGD cell that has it: (cells, …, S) with NaN.

    value_of   record → number or list, None where it was not measured
    """
    found = {}
    for record in sweep.records:
        cell = record["cell"]
        if cell["optimizer"] == cell["finetune_optimizer"] == "sgd":
            value = value_of(record)
            if value is not None:
                group = cell["l1"], cell["l2"], cell["dropout"]
                found.setdefault(group, {})[cell["seed"]] = np.asarray(value, float)
    seeds = sorted({seed for values in found.values() for seed in values})
    if not seeds:
        return np.empty((0, 0))
    hole = np.full_like(next(iter(found[min(found)].values())), np.nan)
    return np.stack(
        [
            np.stack([found[group].get(seed, hole) for seed in seeds], axis=-1)
            for group in sorted(found)
        ]
    )
