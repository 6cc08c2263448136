"""What a sweep has found, in order: its records by setting, its scores as arrays for the tests.

All tables, figures and verdicts get their records from here.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.study.grid import Cell, Setting


def by_setting(
    records: Iterable[dict], having: Callable[[dict], Any] = lambda record: True
) -> dict[Setting, list]:
    """Group records that differ only in their seed.

    records   of a sweep
    having    record → whether to take it
    Returns   {Setting: its records in the order of seeds}, in the order of `Setting.order`
    """
    groups = defaultdict(list)
    for record in filter(having, records):
        groups[Cell(**record["cell"]).setting].append(record)
    return {
        setting: sorted(groups[setting], key=lambda record: record["cell"]["seed"])
        for setting in sorted(groups, key=lambda setting: setting.order)
    }


@dataclass(frozen=True)
class Grid:
    """The scores of one method: values[ℓ₁, ℓ₂, dropout, seed], NaN where not measured.

    Each property below is a view of `values`: the cells are the first axis, the seeds the last.
    """

    l1: list
    l2: list
    dropout: list
    seeds: list
    values: np.ndarray

    @property
    def cells(self) -> np.ndarray:
        """(cells, S)"""
        return self._views(self.values)

    @property
    def along_l1(self) -> np.ndarray:
        """(cells, ℓ₁, S)"""
        return self._views(np.moveaxis(self.values, 0, 2), len(self.l1))

    @property
    def along_l2(self) -> np.ndarray:
        """(cells, ℓ₂, S)"""
        return self._views(np.moveaxis(self.values, 1, 2), len(self.l2))

    @property
    def dropout_gain(self) -> np.ndarray:
        """(cells, S): the score with the largest dropout minus that without; empty without both."""
        without, with_most = np.moveaxis(self._pairs, 1, 0)
        return with_most - without

    @property
    def dropout_gain_in_scatters(self) -> np.ndarray:
        """(cells, S): that gain divided by the standard deviation over seeds (ddof 1), NaN if zero.

        The variance is the mean of two: that with dropout and that without.
        """
        pairs = self._pairs
        seeds = np.isfinite(pairs).sum(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            away = pairs - np.nansum(pairs, axis=-1, keepdims=True) / seeds
            variance = np.nansum(away**2, axis=-1, keepdims=True) / (seeds - 1)
            return self.dropout_gain / np.sqrt(variance.mean(axis=1))

    @property
    def _pairs(self):
        """(cells, 2, S): without dropout, and with the largest; empty without both."""
        if len(self.dropout) < 2 or self.dropout[0] != 0:
            return np.empty((0, 2, len(self.seeds)))
        return self._views(self.values[:, :, [0, -1]], 2)

    def _views(self, values, *inner):
        cells = math.prod(values.shape[: values.ndim - 1 - len(inner)])
        return values.reshape(cells, *inner, len(self.seeds))


# A network that knows nothing gives each of ten digits the probability 0.1.
GUESSING = {"accuracy": 0.1, "nll": math.log(10)}


def grid(
    sweep: Any,
    method: str,
    metric: str,
    optimizer: str = "sgd",
    finetune_optimizer: str | None = "sgd",
    diverged: bool = True,
) -> Grid:
    """The scores of a method in all cells of one pair of optimizers, as a Grid.

    finetune_optimizer   None: the pre-trainings
    diverged             True: a diverged run scores like guessing, for comparing runs (rates, with
                         and without dropout). False: its score is NaN, for comparing the methods
                         of one run, since a diverged run has none
    """
    everything = [*sweep.records, *sweep.diverged]
    records = [
        record
        for record in everything
        if record["cell"]["optimizer"] == optimizer
        and record["cell"]["finetune_optimizer"] == finetune_optimizer
    ]
    # All grids have the dropouts and seeds of the whole sweep, so that they can be subtracted.
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


def gather(sweep: Any, value_of: Callable[[dict], Any]) -> np.ndarray:
    """One value, or list of values, of each SGD cell that has it: (cells, …, S) with NaN.

    value_of   record → number or list; None where nothing was measured
    """
    groups = by_setting(sweep.records, lambda r: _by_sgd(r) and value_of(r) is not None)
    if not groups:
        return np.empty((0, 0))
    records = [record for group in groups.values() for record in group]
    seeds = sorted({record["cell"]["seed"] for record in records})
    shape = np.shape(value_of(records[0]))
    values = np.full((len(groups), *shape, len(seeds)), np.nan)
    for place, group in enumerate(groups.values()):
        for record in group:
            values[place, ..., seeds.index(record["cell"]["seed"])] = value_of(record)
    return values


def curve(sweep: Any, key: str, axis: str, metric: str) -> tuple[list, np.ndarray]:
    """The scores along a curve, at the positions that all SGD cells with this curve share.

    key       "ensemble", "updates" or "noise"
    axis      the name of its positions in the records
    Returns   (positions, (cells, positions, S) with NaN)
    """
    curves = [r["curves"][key] for r in sweep.records if _by_sgd(r) and key in r.get("curves", {})]
    positions = sorted(set.intersection(*(set(each[axis]) for each in curves)) if curves else ())

    def along(record):
        found = record.get("curves", {}).get(key)
        return found and [found[metric][found[axis].index(position)] for position in positions]

    return positions, gather(sweep, along)


def _by_sgd(record):
    return record["cell"]["optimizer"] == record["cell"]["finetune_optimizer"] == "sgd"
