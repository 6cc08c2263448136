"""The files of a sweep: cells are written, read and checked here, and made into a table.

`minires.study.sweep` names the files of a folder.
"""

import gzip
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import text
from minires.arrays.files import complete, load_arrays, load_json, save_arrays, save_json
from minires.arrays.results import check
from minires.study.experiment import METRICS, is_score
from minires.study.grid import Cell, Setting
from minires.study.scores import by_setting
from minires.training import loop

FORMAT = 2  # of the folder: each cell is a file
SETTINGS, ROWS, DEEP = "sweep.json", "cells.jsonl.gz", "deep_ensembles.json"
WAITING = "predictions.npz"  # of seeds that are still too few for a deep ensemble
LARGEST = 1 << 28  # the most bytes that the rows of a sweep may have
DEEP_MEMBERS = 5  # networks in a deep ensemble


def _share(value):
    """a number from 0 to 1"""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _count(value):
    """a whole number from 0 up"""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _some(value):
    """a whole number from 1 up"""
    return _count(value) and value > 0


def _optimizer(value):
    """sgd or adam"""
    return value in ("sgd", "adam")


def _pair(kind):
    def pair(value):
        return isinstance(value, list) and len(value) == 2 and all(map(kind, value))

    pair.__doc__ = f"a list of two, each {kind.__doc__}"
    return pair


def _finite(value):
    """a finite number"""
    return isinstance(value, int | float) and abs(value) < math.inf


SCORES = {**dict.fromkeys(METRICS, is_score), "accuracy": _share}
CELL = {
    "optimizer": _optimizer,
    "l1": float,
    "dropout": float,
    "seed": _count,
    "finetune_optimizer": (_optimizer, None),
    "l2": (float, None),
}
BINS = {"confidence": [(_share, None)], "accuracy": [(_share, None)], "count": [_count]}
LAYER = {"name": str, "filters": [float], "relative": (float, None), "quantiles": [float]}
LINE = {name: [float] for name in ("position", "train_loss", "test_loss")}
POINTS = dict.fromkeys(("pretrained", "finetuned", "mean"), _pair(_finite))
PLANE = {"x": [float], "y": [float], "test_loss": [[float]], "points": POINTS}
AXES = {"ensemble": "members", "updates": "updates", "noise": "scale"}  # of each kind of curve
RECORD = {
    "sweep": str,
    "cell": CELL,
    "diverged?": str,
    "methods?": {"*": SCORES},
    "mcnemar?": {"*": _pair(_count)},
    "curves?": {
        f"{name}?": {axis: [float], "accuracy": [float], "nll": [float]}
        for name, axis in AXES.items()
    },
    "reliability?": {"*": BINS},
    "moments_check?": {"weights": _count, "mean": float, "variance": float},
    "portrait?": {"sigma": [LAYER], "line": LINE, "plane": PLANE},
    "seconds?": {"*": float},
    "made?": {"*": str},  # versions, kernels, processor and date
}
TIMED = ("seconds", "made")  # these differ each time that a cell is computed
KIND = {
    "format": int, "data": str, "train": _count, "updates": _count, "batch": _some,
    "profile?": str, "network?": {"name": str, "*": object}, "data_sha256?": str, "data_name?": str,
    "device?": str,
    "l1?": [float], "l1_outside?": [float], "l2?": [float], "dropout?": [float],
    "baselines?": [float], "curves?": [float], "adam?": bool, "*": object,
}  # fmt: skip
DEEP_ENSEMBLE = {
    "cell": {name: kind for name, kind in CELL.items() if name != "seed"},
    "seeds": [int],
    "members": int,
    **SCORES,
}


def name_of_sweep(settings: dict) -> str:
    """A code for the settings of a sweep. Each of its cells carries it, so others are noticed.

    settings   what its sweep.json says
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The finished cells of a sweep. Each has a file, which is complete or does not exist.

    folder   of the sweep, with its sweep.json, held by `locked_folder`
    Raises   ValueError when a file is damaged, or belongs to another sweep
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.name, self.records = read_cells(self.folder)

    def add(self, record: dict) -> None:
        """Keep the record of a finished cell; it is on the disk when this returns.

        Raises   OSError when the disk is full; then no part of the file is left
        """
        path = cell_file(self.folder, Cell(**record["cell"]))
        path.parent.mkdir(exist_ok=True)
        save_json(path, {"sweep": self.name, **record})
        self.records.append(record)


def cell_file(folder: Path, cell: Cell) -> Path:
    """The path of the record of a cell."""
    return Path(folder) / "cells" / f"{cell.key}.json"


def read_cells(folder: Path) -> tuple[str, list]:
    """The name of the sweep in a folder, and the sorted records of its cells.

    Raises   FileNotFoundError when it holds no sweep; ValueError, which names a damaged file
    """
    if (folder / "results.jsonl").exists():
        raise ValueError(
            f"{folder} holds a sweep of an earlier version of minires, which kept its cells in "
            "results.jsonl: name another folder with --out"
        )
    if not (folder / SETTINGS).exists():
        raise FileNotFoundError(
            f"{folder} holds no sweep (no {SETTINGS}): `minires sweep --out {folder}` makes one"
        )
    settings = load_json(folder / SETTINGS)
    check(folder / SETTINGS, settings, KIND)
    if settings["format"] != FORMAT:
        raise ValueError(
            f"{folder / SETTINGS} is of format {settings['format']}, this version of minires reads "
            f"{FORMAT}: name another folder with --out"
        )
    name, found, paths = name_of_sweep(settings), {}, {}
    if (folder / ROWS).exists():
        for number, row in enumerate(read_rows(folder / ROWS), 1):
            place = f"{folder / ROWS}, line {number}"
            record = _checked(place, row, name)
            cell = Cell(**record["cell"])
            found[cell], paths[cell] = record, place
    for path in sorted((folder / "cells").glob("*.json")):
        record = _checked(path, load_json(path), name)
        cell = Cell(**record["cell"])
        if path.stem != cell.key:
            raise ValueError(f"{path} holds another cell, {cell.key}: remove it")
        found[cell], paths[cell] = record, path
    _check_methods(found, paths)
    return name, [found[cell] for cell in sorted(found, key=lambda cell: cell.order)]


def _checked(path, record, name):
    """Check a record, and return it without the name of its sweep."""
    check(path, record, RECORD)
    if record["sweep"] != name:
        raise ValueError(f"{path} belongs to another sweep: remove it, and it is computed again")
    if ("diverged" in record) == ("methods" in record):
        raise ValueError(
            f"{path} must have either scores, or the reason why there are none: remove it"
        )
    tuned = record["cell"]["l2"] is not None
    if tuned != (record["cell"]["finetune_optimizer"] is not None):
        raise ValueError(
            f"{path}: of fine-tuning it names the optimizer or the rate, but not both: remove it"
        )
    needed = {"pretrained", "finetuned", "mean"} if tuned else {"pretrained"}
    methods = record.get("methods", {name: {} for name in needed})
    if not needed <= set(methods):
        raise ValueError(f"{path} lacks scores of {', '.join(sorted(needed - set(methods)))}")
    for what, columns in _columns(record):
        if len(set(map(len, columns))) != 1:
            raise ValueError(f"{path} has {what} of unequal lengths: remove it")
    return {key: value for key, value in record.items() if key != "sweep"}


def _columns(record):
    """The lists of a record that must have the same length: (what they are, the lists), …"""
    for name, curve in record.get("curves", {}).items():
        yield f"a curve ({name})", curve.values()
    for bins in record.get("reliability", {}).values():
        yield "bins", bins.values()
    if portrait := record.get("portrait"):
        line, plane = portrait["line"], portrait["plane"]
        yield "a line of losses", line.values()
        yield "a plane of losses", (plane["y"], plane["test_loss"])
        yield "a plane of losses", (plane["x"], *plane["test_loss"])
        yield "quantiles", ("12345", *(layer["quantiles"] for layer in portrait["sigma"]))


def _check_methods(found, paths):
    """Check that cells that differ only in their seed have the same methods."""
    first = {}
    for cell, record in found.items():
        if "methods" in record:
            known = first.setdefault(cell.setting, cell)
            ours, theirs = set(record["methods"]), set(found[known]["methods"])
            if ours != theirs:
                differ = ", ".join(sorted(map(text.shown, ours ^ theirs)))
                raise ValueError(
                    f"{paths[cell]} and {paths[known]} do not have the same methods ({differ}): "
                    "remove the one that is wrong, and it is computed again"
                )


def read_rows(path: Path) -> list:
    """The lines of a compressed file of JSON.

    path     of the file
    Raises   ValueError, which names it, when it is damaged
    """
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)  # a small file can unpack to a thousand times its size
        if not content:
            raise ValueError("it is empty")
        if len(content) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST >> 20} MiB")
        return [json.loads(line) for line in content.splitlines()]
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def write_rows(path: Path, name: str, records: Iterable[dict], **style: Any) -> None:
    """Write records as the lines of a compressed file of JSON; `read_rows` reads them.

    path      of the file
    name      of the sweep, which each line carries
    records   the same ones give the same bytes
    style     options of `json.dumps`
    """
    with complete(path) as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as rows:
        for record in records:
            line = json.dumps({"sweep": name, **record}, allow_nan=False, **style)
            rows.write(line.encode() + b"\n")


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found so far.

    settings        what sweep.json says
    records         one for each finished cell, sorted
    deep_ensembles  of the fine-tuned networks of several seeds
    diverged        records of cells whose loss became infinite: they have no scores
    waiting         predictions of seeds that are still too few for a deep ensemble of DEEP_MEMBERS:
                    {key of a cell: (N, classes)}, and the labels (N,)
    """

    settings: dict
    records: list
    deep_ensembles: list
    diverged: list
    waiting: dict = field(default_factory=dict, compare=False, repr=False)


def load_sweep(folder: str | Path) -> Sweep:
    """Read the folder of a sweep, finished or not, or its rows; nothing in it is changed.

    Raises   FileNotFoundError when it holds no sweep; ValueError, which names a damaged file
    """
    folder = Path(folder)
    name, records = read_cells(folder)
    deep_ensembles, waiting = _deep_ensembles(folder, records, name)
    return Sweep(
        settings=load_json(folder / SETTINGS),
        records=[record for record in records if "diverged" not in record],
        deep_ensembles=deep_ensembles,
        diverged=[record for record in records if "diverged" in record],
        waiting=waiting,
    )


def save_rows(sweep: Sweep, folder: str | Path) -> None:
    """Write a sweep as a few small files from which `load_sweep` reads the same.

    A repository keeps these files: `minires report` makes the page from them, and
    `minires sweep --out` goes on from them. The same sweep gives the same bytes. Predictions are
    kept only for seeds that are still too few for a deep ensemble of DEEP_MEMBERS.

    folder   made if it does not exist
    Raises   ValueError when it holds another sweep, or cells that this one lacks
    """
    folder, name = Path(folder), name_of_sweep(sweep.settings)
    make_folder_of(name, folder)
    records = [*sweep.records, *sweep.diverged]
    if (folder / ROWS).exists():
        kept = (Cell(**record["cell"]) for record in read_cells(folder)[1])
        check_kept(folder, kept, (Cell(**record["cell"]) for record in records))
    records.sort(key=lambda record: Cell(**record["cell"]).order)
    write_rows(folder / ROWS, name, records, ensure_ascii=False)
    save_json(folder / DEEP, [e for e in sweep.deep_ensembles if e["members"] == DEEP_MEMBERS])
    if sweep.waiting:
        save_arrays(folder / WAITING, sweep=np.array(name), **sweep.waiting)
    else:
        (folder / WAITING).unlink(missing_ok=True)
    save_json(folder / SETTINGS, sweep.settings)


def check_free(folder: Path, *names: str) -> None:
    """Check that nothing lies where a new sweep puts its files: it may change and remove them.

    In a folder that has a sweep's settings they are the sweep's own.

    names    of files and folders in it
    Raises   ValueError when one is there, and not an empty folder
    """
    if (folder / SETTINGS).exists():
        return
    for name in names:
        path = folder / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ValueError(
                f"{path} is there, but no {SETTINGS} that says what it belongs to: name another "
                "folder with --out"
            )


def check_kept(folder: Path, kept: Iterable, cells: Iterable) -> None:
    """Check that rows in a folder would not be replaced by fewer.

    kept     the cells that it holds
    cells    those that are to be written
    Raises   ValueError when some would be lost
    """
    if lost := set(kept) - set(cells):
        raise ValueError(
            f"{folder} holds {text.counted(len(lost), 'cell')} that this sweep lacks: name another "
            "folder with --rows"
        )


def make_folder_of(name: str, folder: Path) -> None:
    """Make a folder for the rows of a sweep, unless it is there.

    name     of the sweep, from `name_of_sweep`
    Raises   ValueError when it holds another sweep, or cells without their settings
    """
    if (folder / SETTINGS).exists():
        fits = name_of_sweep(load_json(folder / SETTINGS)) == name
    else:
        fits = not (folder / ROWS).exists() and not any(folder.glob("cells/*"))
    if not fits:
        raise ValueError(f"{folder} holds another sweep: name another folder with --rows")
    folder.mkdir(parents=True, exist_ok=True)


def _deep_ensembles(folder, records, sweep):
    """Average what the networks of several seeds predict, wherever predictions were kept.

    Returns  ([{"cell" without its seed, "seeds", "members", accuracy, nll, brier, ece}, …],
             predictions of seeds that are fewer than DEEP_MEMBERS: `Sweep.waiting`)
    """
    found, waiting, predictions = [], {}, _predictions(folder, sweep)
    if (folder / DEEP).exists():
        found = load_json(folder / DEEP)
        check(folder / DEEP, found, [DEEP_ENSEMBLE])
    known = {Cell(seed=seed, **entry["cell"]).key for entry in found for seed in entry["seeds"]}

    def is_new(record):
        key = Cell(**record["cell"]).key
        return key in predictions and key not in known

    for setting, group in by_setting(records, is_new).items():
        if "labels" not in predictions:
            raise ValueError(f"{folder}: labels.npy is missing from its predictions")
        labels, cells = predictions["labels"](), [Cell(**record["cell"]) for record in group]
        for start in range(0, len(cells), DEEP_MEMBERS):
            chosen = cells[start : start + DEEP_MEMBERS]
            networks = [predictions[cell.key]() for cell in chosen]
            try:
                average = np.mean(networks, axis=0, dtype=np.float64).astype(np.float32)
                scores = loop.score(average, labels)
            except ValueError as error:
                raise ValueError(
                    f"{folder}: predictions do not fit together ({error}): remove them and their "
                    "cells"
                ) from error
            if len(chosen) < DEEP_MEMBERS:
                waiting |= {"labels": labels}
                waiting |= {c.key: n for c, n in zip(chosen, networks, strict=True)}
            found.append(
                {
                    "cell": setting._asdict(),
                    "seeds": [cell.seed for cell in chosen],
                    "members": len(chosen),
                    **scores,
                }
            )
    return sorted(found, key=lambda entry: (str(entry["cell"]), entry["seeds"])), waiting


def _predictions(folder, sweep):
    """All predictions that were kept: {key of a cell, or "labels": a function that reads them}."""
    found = {}
    if (folder / WAITING).exists():
        path = folder / WAITING
        arrays = load_arrays(path, "sweep")
        if str(arrays.pop("sweep")) != sweep:
            raise ValueError(f"{path} belongs to another sweep: remove it")
        for name, array in arrays.items():
            found[name] = partial(_sound, path, array, name)
    for path in (folder / "predictions").glob("*.npy"):
        found[path.stem] = partial(_load, path)
    return found


def _load(path):
    """The array of a .npy file; it is checked before it is read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can make NumPy raise anything
        raise ValueError(f"{path} is damaged ({error}): remove it and the cell") from error
    return _sound(path, array, path.stem)


def _sound(path, array, name):
    """Check labels (N,), or the probabilities (N, classes) that a network predicted."""
    kinds, axes = ("iu", 1) if name == "labels" else ("f", 2)
    if array.dtype.kind not in kinds or array.ndim != axes or not np.isfinite(array).all():
        raise ValueError(f"{path} does not hold predictions: remove it and the cell")
    return np.asarray(array)


# --- the table ----------------------------------------------------------------------------


def tabulate(sweep: Sweep) -> dict:
    """All that a sweep found, without what differs each time that a cell is computed.

    Returns  dict for table.json: "settings", "rows" (mean and standard deviation over seeds
             for each cell and method, and their paired difference to "finetuned"),
             "deep_ensembles", "records", "diverged"
    """

    def timeless(records):
        return [{k: v for k, v in record.items() if k not in TIMED} for record in records]

    return {
        "settings": sweep.settings,
        "rows": _rows(sweep.records),
        "deep_ensembles": sweep.deep_ensembles,
        "records": timeless(sweep.records),
        "diverged": timeless(sweep.diverged),
    }


def _rows(records):
    groups, rows = by_setting(records), []
    for setting in sorted(groups, key=lambda each: Cell(seed=0, **each._asdict()).order):
        seeds = [record["methods"] for record in groups[setting]]
        for method in seeds[0]:
            row = {"cell": setting._asdict(), "method": method, "seeds": len(seeds)}
            for metric in METRICS:
                values = np.array([methods[method][metric] for methods in seeds])
                row[metric] = _summary(values)
                if "finetuned" in seeds[0]:
                    plain = np.array([methods["finetuned"][metric] for methods in seeds])
                    row[metric]["delta"] = _summary(values - plain)
            rows.append(row)
    return rows


def _summary(values):
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": deviation}


def text_table(table: dict) -> str:
    """The table as text: a block for each cell, Δ against fine-tuned, same seed.

    table   as from `tabulate`
    """
    heads = ["", "accuracy %", "Δ", "NLL", "Δ"]
    rows, starts = [], {}
    deep = {}
    for entry in table["deep_ensembles"]:
        deep.setdefault(Setting(**entry["cell"]), []).append(entry)
    for cell, group in itertools.groupby(table["rows"], key=lambda row: row["cell"]):
        group = list(group)
        start = f"{cell['optimizer']} {cell['l1']:g}, dropout {cell['dropout']:g}"
        after = f", then {cell['finetune_optimizer']} {cell['l2']:g}" if cell["l2"] else ""
        starts[len(rows)] = f"{start}{after} ({text.counted(group[0]['seeds'], 'seed')})"
        for row in group:
            accuracy, nll = row["accuracy"], row["nll"]
            rows.append([
                f"  {row['method']}",
                _spread(accuracy, 100, 2), _spread(accuracy.get("delta"), 100, 2, "+"),
                _spread(nll, 1, 4), _spread(nll.get("delta"), 1, 4, "+"),
            ])  # fmt: skip
        for entry in deep.get(Setting(**cell), []):
            name = f"  deep_ensemble of {entry['members']}"
            rows.append([name, f"{100 * entry['accuracy']:.2f}", "", f"{entry['nll']:.4f}", ""])
    head, rule, *lines = text.table(heads, rows).split("\n")
    found = ["mean ± standard deviation over seeds (ddof 1); Δ against fine-tuned, same seed"]
    found += [head, rule]
    for number, line in enumerate(lines):
        found += ["", starts[number]] if number in starts else []
        found.append(line)
    if table["diverged"]:
        lost = text.counted(len(table["diverged"]), "cell")
        found += ["", f"{lost} diverged; diverged cells have no scores"]
    return "\n".join(found)


def _spread(summary, factor, digits, sign=""):
    if summary is None:
        return ""
    mean = f"{factor * summary['mean']:{sign}.{digits}f}"
    return mean if summary["sd"] is None else f"{mean} ± {factor * summary['sd']:.{digits}f}"
