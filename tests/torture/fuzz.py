"""Damaged files of every kind that is read: one family of errors, little memory, little time.

    python tests/torture/fuzz.py --count 500000 --folder /tmp/fuzz

Valid files are damaged at random: bytes changed, cut out, repeated; numbers, names and types inside
them replaced by nasty ones. Each is read as a user would, and what was accepted is used: a table is
made of it, images are predicted. Then it counts as

    accepted   it was read, and could be used
    refused    by an error of its family: ValueError or OSError; OnnxError; a picture left out
    wrong      anything else: another exception, a warning, a result that is none
    slow       more than ten seconds
    large      more than 1 GiB of memory

A thousand inputs at a time run in a fork of this process, whose memory is limited. Given again, the
same command line goes on with the count that was reached.
"""

import argparse
import contextlib
import copy
import gzip
import io
import json
import math
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MINIRES_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import kills  # noqa: E402  (puts the project on the path)
import numpy as np  # noqa: E402
import test_onnx_safety as onnx_files  # noqa: E402
from test_imagenet import encoded, photograph  # noqa: E402

import minires  # noqa: E402
from minires.arrays.files import load_arrays, load_json  # noqa: E402
from minires.arrays.results import settle  # noqa: E402
from minires.commands import improve, improve_training  # noqa: E402
from minires.data import imagenet, mnist  # noqa: E402
from minires.resampling.moments import Moments  # noqa: E402
from minires.study import experiment, figures, report  # noqa: E402
from minires.study.store import load_sweep, tabulate, text_table  # noqa: E402
from minires.training.optimizers import Adam  # noqa: E402

PART = 1000  # inputs in a fork
SECONDS, MEMORY = 10, 1 << 30
SHARES = {"pictures": 26, "idx": 34, "onnx": 12, "npz": 13, "json": 15}  # of a hundred inputs
NUMBERS = (0, 1, 2, 7, 8, 9, 28, 127, 128, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


class TooSlow(BaseException):
    """An input that takes too long; no handler of errors catches it."""


# --- damage -------------------------------------------------------------------------------


def damaged(data, rng):
    """Bytes with one to four faults: changed, cut out, repeated, cut off."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        at = int(rng.integers(len(data)))
        if rng.random() < 0.5:  # headers stand at the beginning
            at = min(at, int(rng.integers(64)))
        length = int(rng.integers(1, 9))
        kind = rng.integers(7)
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length * int(rng.integers(1, 20))]
        elif kind == 4:
            number = NUMBERS[rng.integers(len(NUMBERS))]
            data[at : at + 4] = struct.pack(rng.choice([">I", "<I"]), number)
        elif kind == 5:
            data[at : at + length] = rng.bytes(length)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def nasty_value(rng, value=None):
    """Something that JSON can hold, and that is hardly what was expected."""
    choices = (
        None, True, False, 0, 1, -1, 2, 10**400, -(10**30), 1e308, -1e308, 0.5, 1e-320, math.nan,
        math.inf, "", "x", "\x1b[31m", "\ud800", "../../x", "1", [], {}, [[]], [1], {"": 0},
        [None], {"mean": {}}, "sgd", "adam", 0.25,
    )  # fmt: skip
    if isinstance(value, (int, float)) and abs(value) < 1e300 and rng.random() < 0.3:
        return value * float(rng.choice([-1, 0, 0.5, 2, 1e9, 1e300]))
    return choices[rng.integers(len(choices))]


def damaged_value(value, rng):
    """A JSON value with one to three faults, at any depth."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        holder, key, inner = None, None, value
        while isinstance(inner, (dict, list)) and inner and rng.random() > 0.12:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            holder, key = inner, keys[rng.integers(len(keys))]
            inner = inner[key]
        if holder is None:
            if rng.random() < 0.05:
                value = nasty_value(rng)
            continue
        kind = rng.integers(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(nasty_value(rng))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder += holder[: int(rng.integers(1, 4))]
        elif kind == 3 and isinstance(holder, dict):
            holder[str(rng.choice(["more", "seed", "l2", "mean", "x"]))] = nasty_value(rng)
        else:
            holder[key] = nasty_value(rng, inner)
    return value


def damaged_json(content, rng):
    """The bytes of a JSON file: damaged as text, or as a value."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    value = damaged_value(json.loads(content), rng)
    return json.dumps(value, ensure_ascii=bool(rng.integers(2))).encode("utf-8", "surrogatepass")


# --- the kinds ----------------------------------------------------------------------------


class Idx:
    """Images and labels in the format of MNIST, packed or not."""

    family = (ValueError, OSError)

    def __init__(self, samples, folder):
        rng = np.random.default_rng(0)
        images = struct.pack(">4I", 0x0803, 3, 28, 28) + rng.bytes(3 * 784)
        labels = struct.pack(">2I", 0x0801, 5) + bytes([0, 9, 3, 4, 1])
        self.valid = [(mnist.read_images, images), (mnist.read_labels, labels)]
        self.path = folder / "idx"

    def try_one(self, rng):
        read, data = self.valid[rng.integers(2)]
        packed = rng.integers(3)  # 1: damaged and packed, 2: packed and damaged
        data = damaged(data, rng) if packed < 2 else gzip.compress(data, 1)
        data = gzip.compress(data, 1) if packed == 1 else data
        self.path.write_bytes(damaged(data, rng) if packed == 2 else data)
        found = read(self.path)
        if read is mnist.read_images:
            assert found.dtype == np.uint8
            assert found.ndim == 4
            assert found.shape[1:] == (28, 28, 1)
            assert len(found)
        else:
            assert found.dtype == np.int64
            assert found.ndim == 1
            assert 0 <= found.min() <= found.max() <= 9


class Npz:
    """Arrays: stages of a run, moments, a network's weights, a checkpoint of `improve`."""

    family = (ValueError, OSError)

    def __init__(self, samples, folder):
        self.path = folder / "x.npz"
        model = minires.mobilenet_v1(0.125, input_shape=(8, 8, 1), classes=3)
        theta, stats = model.init(np.random.default_rng(0)), model.init_stats()
        model.save(self.path, theta, stats)
        weights = self.path.read_bytes()
        moments = Moments((5,))
        for row in np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32):
            moments.update(row)
        moments.save(self.path)
        own = self.path.read_bytes()
        run, checkpoint = samples / "run", samples / "improve" / improve.CHECKPOINT
        shown = load_arrays(checkpoint)
        settings = json.loads(str(shown["settings"]))

        def restore(path):
            notes = imagenet.Notes()
            state = improve_training.State(shown["theta"], shown["stats"], Adam(0.05), 0.9, notes)
            state.load(path, settings)
            state.optimizer.step(state.theta, np.ones_like(state.theta))
            state.record(0.5)
            return variance_of(state.moments), state.ema.mean, state.notes.lines()

        def load_moments(path):
            return variance_of(Moments.load(path))

        def variance_of(moments):
            assert np.isfinite(moments.mean).all()
            try:
                return moments.variance
            except FloatingPointError as error:  # float32 weights of 1e20 have such variances
                if "exceed 3.4e+38" not in str(error):
                    raise

        config = experiment.Config(**load_json(run / "results.json")["config"])
        network = config.model((28, 28, 1))
        stage = str(load_arrays(run / "seed_0_finetuned.npz")["run"])
        experiments = experiment.Experiment(
            config, network, None, None, None, None, experiment.Folder(folder, stage), True
        )

        def load_stage(path):
            folder = experiments.folder
            folder.load(path.name, theta=(network.size,), stats=(0,))
            experiment.load_finetuned(experiments, path.name, "moments.npz")

        (folder / "moments.npz").write_bytes((run / "seed_0_moments.npz").read_bytes())
        self.valid = [
            (model.load, weights),
            (load_moments, own),
            (restore, checkpoint.read_bytes()),
            (load_stage, (run / "seed_0_finetuned.npz").read_bytes()),
        ]

    def try_one(self, rng):
        read, data = self.valid[rng.choice(4, p=[0.35, 0.35, 0.25, 0.05])]
        self.path.write_bytes(
            damaged(data, rng) if rng.random() < 0.3 else self.repacked(data, rng)
        )
        read(self.path)

    def repacked(self, data, rng):
        """The archive with damage inside its arrays, or other arrays in it."""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = list(parts)[rng.integers(len(parts))]
        kind = rng.integers(7)
        if kind == 0:
            del parts[name]
        elif kind == 1:
            parts[str(rng.choice(["../x.npy", "x", "theta.npy", "é.npy"]))] = parts[name]
        elif kind == 2:
            other = list(parts)[rng.integers(len(parts))]
            parts[name] = parts[other]
        elif kind == 3:
            array = np.load(io.BytesIO(parts[name]))
            shape = [(), (0,), (1,), (5,), array.shape[::-1], (2, *array.shape)][rng.integers(6)]
            kinds = ["f4", "f8", "f2", "i8", "u1", "U9", "c8", "?", ">f4", "M8[s]"]
            file = io.BytesIO()
            with np.errstate(all="ignore"), contextlib.suppress(ValueError):
                np.save(file, np.resize(array, shape).astype(kinds[rng.integers(len(kinds))]))
            parts[name] = file.getvalue()
        elif kind == 4:
            array = np.load(io.BytesIO(parts[name])).copy()
            if array.dtype.kind == "f" and array.size:
                array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, -1, 1e30])
            elif array.dtype.kind in "iu" and array.size:
                array.flat[rng.integers(array.size)] = rng.choice([-1, 0, 10**9, 2**62])
            elif array.dtype.kind == "U" and not array.ndim:
                text = damaged(str(array).encode(), rng).decode("utf-8", "replace")
                array = np.array(text)
            file = io.BytesIO()
            np.save(file, array)
            parts[name] = file.getvalue()
        else:
            parts[name] = damaged(parts[name], rng)
        file = io.BytesIO()
        method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return file.getvalue()


class Json:
    """Settings, records, cells and tables of results; what is accepted is made a table of."""

    family = (ValueError, OSError)

    def __init__(self, samples, folder):
        self.run, self.sweep, self.accepted = folder / "run", folder / "sweep", 0
        self.run.mkdir(exist_ok=True)
        (self.sweep / "cells").mkdir(parents=True, exist_ok=True)
        records = samples / "run" / "seed_0_records.json"
        self.config = load_json(samples / "run" / "config.json")
        stage = load_json(records)["run"]
        self.folder = experiment.Folder(self.run, stage)
        self.files = [
            (
                self.read_config,
                self.run / "config.json",
                (samples / "run/config.json").read_bytes(),
            ),
            (self.read_records, self.run / records.name, records.read_bytes()),
        ]
        cells = sorted((samples / "sweep" / "cells").glob("sgd_0.2_dropout_0.5_seed_0*"))
        cells += sorted((samples / "sweep" / "cells").glob("sgd_0.1_dropout_0.5_seed_0*"))[:1]
        others = [samples / "sweep" / "sweep.json", *cells[:3]]
        deep = [{"cell": {k: v for k, v in load_json(cells[1])["cell"].items() if k != "seed"}}]
        deep[0] |= {"seeds": [0], "members": 1}
        deep[0] |= dict.fromkeys(experiment.METRICS, 0.5)
        for path in others:
            own = self.sweep / path.relative_to(samples / "sweep")
            own.write_bytes(path.read_bytes())
            self.files.append((self.read_sweep, own, path.read_bytes()))
        own = self.sweep / "deep_ensembles.json"
        own.write_text(json.dumps(deep))
        self.files.append((self.read_sweep, own, own.read_bytes()))
        self.rows = gzip.compress(b"".join(
            json.dumps(load_json(path)).encode() + b"\n" for path in cells[:1]
        ), 1)  # fmt: skip
        self.files.append((self.read_sweep, self.sweep / "cells.jsonl.gz", self.rows))

    def try_one(self, rng):
        read, path, content = self.files[rng.integers(len(self.files))]
        if path.suffix == ".gz":
            inner = damaged_json(gzip.decompress(content), rng)
            new = damaged(content, rng) if rng.random() < 0.3 else gzip.compress(inner, 1)
        else:
            new = damaged_json(content, rng)
        path.write_bytes(new)
        try:
            read(path)
        finally:
            if path.suffix == ".gz":
                path.unlink()
            elif read == self.read_sweep:
                path.write_bytes(content)

    def read_config(self, path):
        settle(self.run, path.name, self.config, ("seeds",), write=False)

    def read_records(self, path):
        records = experiment.load_records(self.folder, path.name, 0)
        json.dumps(records, allow_nan=False)
        assert experiment.table(records)

    def read_sweep(self, path):
        sweep = load_sweep(self.sweep)
        table = tabulate(sweep)
        json.dumps(table, allow_nan=False)
        assert text_table(table)
        self.accepted += 1
        if self.accepted % 40 == 0:  # what a page says takes a hundred times as long
            assert report.content_of(sweep, {}, self.sweep)
        if self.accepted % 1000 == 0:  # and a page with its figures ten times that
            assert report.write_page(sweep, figures.draw_all(sweep), self.sweep)


class Pictures:
    """Photographs: PNG, JPEG, GIF, BMP, WebP and what else this Pillow reads."""

    family = (imagenet._Refused,)

    def __init__(self, samples, folder):
        from PIL import Image

        photo = photograph(0, (24, 20))
        self.valid = [encoded(photo)]
        modes = {"PNG": ["RGB", "L", "P", "RGBA", "I;16", "1"], "JPEG": ["RGB", "L", "CMYK"]}
        for name in imagenet._formats():
            for mode in modes.get(name, ["RGB", "L"]):
                file = io.BytesIO()
                with contextlib.suppress(OSError, KeyError, ValueError):
                    picture = photo.convert("I" if mode == "I;16" else mode)
                    if mode == "I;16":
                        picture = Image.fromarray(
                            np.asarray(photo.convert("L")).astype("<u2") * 257
                        )
                    picture.save(file, name)
                    self.valid.append(file.getvalue())
        moving = io.BytesIO()
        photo.save(moving, "GIF", save_all=True, append_images=[photo.rotate(90)])
        self.valid.append(moving.getvalue())

    def try_one(self, rng):
        data = self.valid[rng.integers(len(self.valid))]
        new = damaged(data, rng)
        if data[:4] == b"\x89PNG" and rng.random() < 0.6:
            new = self.damaged_chunk(data, rng)
        picture, _ = imagenet.decode(new)
        assert picture.mode == "RGB"
        assert np.asarray(picture).shape[2] == 3

    def damaged_chunk(self, data, rng):
        """A PNG whose chunks are damaged, but have the right checksums."""
        chunks, at = [], 8
        while at < len(data):
            (length,) = struct.unpack_from(">I", data, at)
            chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
            at += 12 + length
        chunk = chunks[rng.integers(len(chunks))]
        if chunk[0] == b"IDAT" and rng.random() < 0.7:
            with contextlib.suppress(zlib.error):
                chunk[1] = zlib.compress(damaged(zlib.decompress(chunk[1]), rng), 1)
        elif rng.random() < 0.8:
            chunk[1] = damaged(chunk[1], rng)
        else:
            chunks.insert(int(rng.integers(len(chunks))), chunk)
        return data[:8] + b"".join(
            struct.pack(">I", len(content)) + name + content
            + struct.pack(">I", zlib.crc32(name + content))
            for name, content in chunks
        )  # fmt: skip


class Onnx:
    """Networks of other programs; what is accepted predicts two images."""

    family = (minires.onnx.OnnxError,)

    def __init__(self, samples, folder):
        self.path = folder / "x.onnx"
        self.models = list(onnx_files.seeds(self.path, np.random.default_rng(0)))
        self.models.append(onnx_files.onnx.load(samples / "n.onnx"))
        for network in (minires.lenet(), minires.mobilenet_v1(0.125, input_shape=(8, 8, 1))):
            theta, stats = network.init(np.random.default_rng(0)), network.init_stats()
            minires.onnx.export(network, theta, stats, self.path)
            if self.path.stat().st_size < 1 << 19:
                self.models.append(onnx_files.onnx.load(self.path))
        self.data = [model.SerializeToString() for model in self.models]

    def try_one(self, rng):
        which, kind = rng.integers(len(self.models)), rng.integers(10)
        if kind < 6:
            new = onnx_files.mutated(self.models[which], rng)
        elif kind < 9:
            new = onnx_files.flipped(self.data[which], rng)
        else:
            new = damaged(self.data[which], rng)
        outcome = onnx_files.survives(self.path, new)
        assert outcome in onnx_files.OUTCOMES, outcome
        return outcome == "loaded"


KINDS = {"json": Json, "idx": Idx, "npz": Npz, "pictures": Pictures, "onnx": Onnx}


# --- a thousand at a time -----------------------------------------------------------------


def part_of(kind, name, number, seed, writing):
    """Try a thousand inputs; what came of them is written to a pipe."""

    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGPROF, too_slow)
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of address space, now in use
    resource.setrlimit(resource.RLIMIT_AS, (resource.getpagesize() * pages + MEMORY,) * 2)
    counts, faults, slowest = Counter(), [], 0.0
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*the declaration is ignored")  # of ONNX outputs: honest
    for index in range(PART):
        rng = np.random.default_rng((seed, *name.encode(), number, index))
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcome = "refused" if kind.try_one(rng) is False else "accepted"
        except BaseException as error:
            outcome = outcome_of(error, kind.family)
            if outcome != "refused":
                told = "".join(traceback.format_exception(error, limit=-3))
                faults.append(f"{name} {number} {index} {outcome}: {told[-1500:]}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts[outcome] += 1
        slowest = max(slowest, time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"counts": counts, "faults": faults[:20], "slowest": slowest, "peak": peak * 1024}
    os.write(writing, json.dumps(found).encode())


def outcome_of(error, family):
    """What an exception means for the input that caused it."""
    if isinstance(error, TooSlow):
        return "slow"
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return "large"  # some errors of the family stand for a memory that is full
    return "refused" if isinstance(error, family) else "wrong"


def in_fork(kind, name, number, seed):
    """`part_of` in a process of its own: what it says, or how it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            part_of(kind, name, number, seed, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    told = b""
    while part := os.read(reading, 1 << 16):
        told += part
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if not told:
        fault = f"{name} {number}: the process died ({os.waitstatus_to_exitcode(status)})"
        return {"counts": {"wrong": 1}, "faults": [fault], "slowest": 0, "peak": 0}
    return json.loads(told)


def make_samples(folder):
    """Results of the three commands, to be damaged."""
    samples = folder / "samples"
    if not (samples / "run" / "results.json").exists():
        kills.write_pictures(samples / "val", each=8)
        kills.write_network(samples / "n.onnx", dropout=True)
        for command in kills.COMMANDS:
            words = kills.words_of(command, samples, samples / command)
            code, _ = kills.finish(*kills.start(words, folder / "log"))
            if code != 0:
                raise SystemExit(f"{command}: exit code {code}: see {folder / 'log'}")
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500_000, help="inputs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these")
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kills.warm_up()
    samples = make_samples(folder)
    bad = 0
    for name in options.kinds:
        file = folder / f"{name}.json"
        kind = KINDS[name](samples, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"parts": 0, "counts": {}, "faults": [], "seconds": 0.0, "slowest": 0, "peak": 0}
        if file.exists():
            found = json.loads(file.read_text())
        while found["parts"] * PART * 100 < options.count * SHARES[name]:
            began = time.monotonic()
            new = in_fork(kind, name, found["parts"], options.seed)
            found["counts"] = dict(Counter(found["counts"]) + Counter(new["counts"]))
            found["faults"] += new["faults"]
            found["parts"] += 1
            found["seconds"] += time.monotonic() - began
            found["slowest"] = max(found["slowest"], new["slowest"])
            found["peak"] = max(found["peak"], new["peak"] - before)
            file.write_text(json.dumps(found, indent=1))
        bad += sum(found["counts"].get(outcome, 0) for outcome in ("wrong", "slow", "large"))
        print(name, json.dumps(found, indent=1), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
