"""What a sweep leaves behind: its records, read and written, and the table made of them.

`minires.study.sweep` says what lies in the folder.
"""

import itertools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minires.arrays.files import load_json
from minires.study.experiment import METRICS
from minires.study.grid import Cell
from minires.training import loop

GROUP = 5  # networks in a deep ensemble


class Store:
    """The finished cells, one line of JSON each, in a file that only grows.

        with Store(folder / "results.jsonl") as store:
            store.append(record)

    A line goes to the file in a single write, and to the disk before `append` returns. A
    process that is killed in between leaves at most one line without an end, the last; the
    next to open the file cuts it off.

    path     the file, made if need be
    Raises   BlockingIOError while another process has it open (where the system can tell);
             ValueError when the file is damaged
    """

    def __init__(self, path):
        self.path = Path(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._file = os.open(self.path, flags, 0o644)
        try:
            self._lock()
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(self._file, whole)
            self.records = _parse(self.path, content[:whole])
        except BaseException:
            self.close()
            raise

    def append(self, record):
        """Add a finished cell."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "the disk is full"
        if written < len(line):
            os.ftruncate(self._file, before)
            raise OSError(f"{self.path}: {reason}: make room, and run the command again")
        self.records.append(record)

    def close(self):
        """Give the file free."""
        os.close(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _lock(self):
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path.parent}: another sweep is at work here: wait for it, or name "
                "another folder with --out"
            ) from error


def _parse(path, content):
    """The records in the whole lines of a file; ValueError names a line that makes no sense."""
    records, seen = [], {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = json.loads(line)
            cell = Cell(**record["cell"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a record of a cell ({error})") from error
        if cell in seen:
            raise ValueError(f"{path}: lines {seen[cell]} and {number} are the same cell")
        seen[cell] = number
        records.append(record)
    return records


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found so far.

    settings        what sweep.json says
    records         one for each finished cell, sorted
    deep_ensembles  of the fine-tuned networks of several seeds
    diverged        records of cells whose loss became infinite: they have no scores
    """

    settings: dict
    records: list
    deep_ensembles: list
    diverged: list


def load_sweep(folder):
    """Read the folder of a sweep, finished or not; nothing in it is changed.

    Returns  Sweep
    Raises   FileNotFoundError when it holds no sweep; ValueError when it is damaged
    """
    folder = Path(folder)
    if not (folder / "sweep.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no sweep (no sweep.json): `minires sweep --out {folder}` makes one"
        )
    results = folder / "results.jsonl"
    content = results.read_bytes() if results.exists() else b""
    records = _parse(results, content[: content.rfind(b"\n") + 1])
    records.sort(key=lambda record: Cell(**record["cell"]).order)
    return Sweep(
        settings=load_json(folder / "sweep.json"),
        records=[record for record in records if "diverged" not in record],
        deep_ensembles=_deep_ensembles(folder / "predictions", records),
        diverged=[record for record in records if "diverged" in record],
    )


def _deep_ensembles(folder, records):
    """Networks of several seeds averaged, wherever their predictions were kept.

    Returns  [{"cell" without its seed, "seeds", "members", accuracy, nll, brier, ece}, …]
    """
    groups = {}
    for record in records:  # sorted: seeds come in order
        cell = Cell(**record["cell"])
        if (folder / f"{cell.key}.npy").exists():
            group = {name: value for name, value in asdict(cell).items() if name != "seed"}
            groups.setdefault(tuple(group.items()), []).append(cell)
    found = []
    for group, cells in sorted(groups.items(), key=lambda item: str(item[0])):
        labels = np.load(folder / "labels.npy")
        for start in range(0, len(cells), GROUP):
            chosen = cells[start : start + GROUP]
            networks = [np.load(folder / f"{cell.key}.npy") for cell in chosen]
            average = np.mean(networks, axis=0, dtype=np.float64).astype(np.float32)
            found.append(
                {
                    "cell": dict(group),
                    "seeds": [cell.seed for cell in chosen],
                    "members": len(chosen),
                    **loop.score(average, labels),
                }
            )
    return found


# --- the table ----------------------------------------------------------------------------


def tabulate(sweep):
    """All that a sweep found, without anything that differs from run to run.

    Returns  dict for table.json: "settings", "rows" (mean and standard deviation over seeds
             for each cell and method, and their paired difference to "finetuned"),
             "deep_ensembles", "records", "diverged"
    """

    def timeless(records):
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    return {
        "settings": sweep.settings,
        "rows": _rows(sweep.records),
        "deep_ensembles": sweep.deep_ensembles,
        "records": timeless(sweep.records),
        "diverged": timeless(sweep.diverged),
    }


def _rows(records):
    groups = {}
    for record in records:
        group = {name: value for name, value in record["cell"].items() if name != "seed"}
        groups.setdefault(Cell(seed=0, **group), []).append(record["methods"])
    rows = []
    for cell, seeds in sorted(groups.items(), key=lambda item: item[0].order):
        group = {name: value for name, value in asdict(cell).items() if name != "seed"}
        for method in seeds[0]:
            row = {"cell": group, "method": method, "seeds": len(seeds)}
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


def text_table(table):
    """The table as text: a block for each pre-training, Δ against fine-tuned, same seed."""
    lines = ["accuracy % and NLL, mean ± standard deviation over seeds (ddof 1);"]
    lines += ["Δ against fine-tuned, paired by seed", ""]
    head = f"  {'':26} {'accuracy %':>15} {'Δ':>15} {'NLL':>17} {'Δ':>18}"
    deep = {}
    for entry in table["deep_ensembles"]:
        deep.setdefault(str(entry["cell"]), []).append(entry)
    for cell, rows in itertools.groupby(table["rows"], key=lambda row: row["cell"]):
        rows = list(rows)
        start = f"{cell['optimizer']} {cell['l1']:g}, dropout {cell['dropout']:g}"
        after = f", then {cell['finetune_optimizer']} {cell['l2']}" if cell["l2"] else ""
        lines += [f"{start}{after} ({rows[0]['seeds']} seeds)", head]
        for row in rows:
            accuracy, nll = row["accuracy"], row["nll"]
            text = f"  {row['method']:26} {_spread(accuracy, 100, 2):>15}"
            text += f" {_spread(accuracy.get('delta'), 100, 2, '+'):>15}"
            text += f" {_spread(nll, 1, 4):>17} {_spread(nll.get('delta'), 1, 4, '+'):>18}"
            lines.append(text)
        for entry in deep.get(str(cell), []):
            name = f"deep_ensemble of {entry['members']}"
            text = f"  {name:26} {100 * entry['accuracy']:15.2f} {'':15} {entry['nll']:17.4f}"
            lines.append(text)
        lines.append("")
    if table["diverged"]:
        lines.append(f"{len(table['diverged'])} cells diverged and have no scores")
    return "\n".join(lines).rstrip()


def _spread(summary, factor, digits, sign=""):
    if summary is None:
        return ""
    mean = f"{factor * summary['mean']:{sign}.{digits}f}"
    return mean if summary["sd"] is None else f"{mean} ± {factor * summary['sd']:.{digits}f}"
