"""Kill `minires run`, `sweep` and `improve` again and again: nothing finished may be lost.

    python tests/torture/kills.py --count 1000 --folder /tmp/kills

A chain is one folder of results: the command is started, killed, started again, … and at last left
alone. Then the folder must be that of a command that nothing happened to, bit for bit. After every
kill each finished file must be whole, and those from before must still be there, untouched.

A kill is one of SIGKILL, SIGTERM and SIGINT (Ctrl-C), sent

    before, after   a change of the file system: a rename, a file forced to the disk, a file
                    removed, a folder made; each is counted, and one is drawn
    torn            while a file is written: it is cut in half first, as a full cache would leave it
    later           a random time after such a change, from outside

The commands run in forks of this process, which has imported everything, and pictures are not
drawn, so that a kill costs less than a second. Given again, the same command line goes on with the
count that was reached.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MINIRES_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from test_evaluate import write_network, write_pictures  # noqa: E402

from minires.arrays.files import load_arrays, load_json  # noqa: E402
from minires.arrays.pictures import new_figure  # noqa: E402
from minires.commands import cli, improve  # noqa: E402
from minires.data import glyphs  # noqa: E402, F401
from minires.study import crews, experiment_figure, which_lenet  # noqa: E402, F401
from minires.study import sweep as study_sweep  # noqa: E402, F401

COMMANDS = ("run", "improve", "sweep")
TURNS = ("run", "improve", "sweep", "run", "improve")  # a sweep takes longest
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
AIMS = ("before", "after", "torn", "later")
CHAIN = 12  # kills of one folder at most
EXITS = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15}, signal.SIGINT: {130, -2}}


def words_of(command, folder, out):
    """The command line of the smallest work that has all stages."""
    if command == "run":
        return [
            "run", "--train", "64", "--test", "32", "--epochs", "1", "--updates", "3",
            "--batch", "32", "--network", "lenet_classic", "--members", "3", "--seeds", "2",
            "--out", str(out), "--quiet", "--resume",
        ]  # fmt: skip
    if command == "sweep":
        return [
            "sweep", "--train", "64", "--test", "20", "--epochs", "1", "--updates", "3",
            "--batch", "32", "--seeds", "1", "--workers", "1", "--out", str(out), "--quiet",
        ]  # fmt: skip
    return [
        "improve", str(folder / "n.onnx"), "--images", str(folder / "val"), "--rate", "0.05",
        "--updates", "4", "--batch", "5", "--members", "2", "--holdout", "0.25", "--ema", "0.9",
        "--optimizer", "adam", "--checkpoint-every", "0", "--out", str(out),
    ]  # fmt: skip


# --- in the child -------------------------------------------------------------------------


def watch_file_system(hit):
    """Call `hit(number, moment, file descriptor or None)` around every change of a file system."""
    number = 0

    def watched(function, has_file=False):
        def call(*arguments, **options):
            nonlocal number
            own, number = number, number + 1
            hit(own, "before", arguments[0] if has_file else None)
            result = function(*arguments, **options)
            hit(own, "after", None)
            return result

        return call

    for name in ("replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
    os.fsync = watched(os.fsync, has_file=True)
    return lambda: number


def child(words, log, told, target=None, aim=None, how=None):
    """Carry a command out in this process, and end it; dies on the way where that is asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    for number, stream in ((1, log), (2, log)):
        os.dup2(stream, number)
    crews.multiprocessing.get_context = lambda kind, real=crews.multiprocessing.get_context: real(
        "fork"
    )
    main = os.getpid()

    def hit(number, moment, file):
        if os.getpid() != main or number != target:
            return
        if aim == "later":
            if moment == "after":
                os.write(told, b"!")
            return
        if aim == "torn" and file is not None and moment == "before":
            os.ftruncate(file, os.fstat(file).st_size // 2)
        if moment == ("before" if aim == "torn" else aim):
            os.write(told, b"!")
            os.kill(main, how)

    count = watch_file_system(hit)
    code = 1
    try:
        code = cli.main(words)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            os.write(told, b"." + str(count()).encode())
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# --- in the parent ------------------------------------------------------------------------


def warm_up():
    """Import what the commands import late, and fill matplotlib's caches; no thread is started."""
    import scipy.stats  # noqa: F401

    cli.parser()
    figure = new_figure(4, 3)
    figure.subplots(1, 2)[0].set_title("ℓ₁ − 0.5")
    # To draw a picture takes longer than all the rest. It is written as ever.
    type(figure).savefig = lambda self, file, **settings: file.write(b"a picture")


def start(words, log, **kill):
    """Fork a child; returns its number and the end of a pipe on which it tells what happens."""
    reading, writing = os.pipe()
    with open(log, "w") as file:
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            child(words, file.fileno(), writing, **kill)
    os.close(writing)
    return pid, reading


def finish(pid, reading):
    """Wait for a child and its workers; returns its exit code and what it told."""
    _, status = os.waitpid(pid, 0)
    told = b""
    while part := os.read(reading, 4096):  # ends when no worker is left
        told += part
    os.close(reading)
    return os.waitstatus_to_exitcode(status), told


def contents(out):
    """{name: bytes} of all the files of a folder."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def comparable(name, content):
    """What must be equal in a file: all of it, but for the seconds in a cell's record."""
    if name.startswith("cells/"):
        record = json.loads(content)
        record.pop("seconds", None)
        return record
    if name.endswith(".npz"):  # a zip file carries dates
        import io

        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {key: (arrays[key].dtype, arrays[key].tobytes()) for key in arrays}
    return content


def finished_files(out):
    """{name: (bytes, time of writing)} of what must survive, each of them whole."""
    kept = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or name.endswith((".part", ".lock")) or name.startswith("data/"):
            continue
        if path.suffix == ".npz":
            load_arrays(path)
        elif path.suffix == ".json":
            load_json(path)
        elif path.suffix == ".npy":
            np.load(path)
        # Weights are no finished stage before what follows them is there.
        after = {
            "seed_": name.replace("_moments.npz", "_finetuned.npz"),
            "pretrained/": f"cells/{path.stem}.json",
            "cells/": name,
        }
        if any(name.startswith(start) and (out / last).exists() for start, last in after.items()):
            kept[name] = (path.read_bytes(), path.stat().st_mtime_ns)
    return kept


def updates_in(out):
    """How many updates the checkpoint of `improve` has, if there is one."""
    path = out / improve.CHECKPOINT
    return int(load_arrays(path, "updates")["updates"]) if path.exists() else 0


class Campaign:
    """All the chains, and what came of them.

    folder   where they lie; `kills.json` in it says what was reached
    seed     of all that is drawn
    """

    def __init__(self, folder, seed):
        self.folder, self.seed = Path(folder), seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "kills.json"
        self.found = {"chains": 0, "kills": 0, "lost": [], "unequal": [], "by": {}, "seconds": 0.0}
        if self.file.exists():
            self.found = json.loads(self.file.read_text())
        if not (self.folder / "n.onnx").exists():
            write_pictures(self.folder / "val", each=8)
            write_network(self.folder / "n.onnx", dropout=True)
        self.expected, self.changes, self.pause = {}, {}, {}
        for command in COMMANDS:
            out = self.folder / f"whole-{command}"
            for _ in range(2):  # the first one may make data, and compile kernels
                shutil.rmtree(out, ignore_errors=True)
                began = time.monotonic()
                code, told = self.carry_out(command, out)
                if code != 0:
                    raise SystemExit(f"{command}: exit code {code}: see {self.folder / 'log'}")
            self.expected[command] = contents(out)
            self.changes[command] = int(told.partition(b".")[2])
            self.pause[command] = (time.monotonic() - began) / self.changes[command]
            print(
                f"{command}: {time.monotonic() - began:.2f} s, {self.changes[command]} changes of "
                f"the file system, {len(self.expected[command])} files", flush=True,
            )  # fmt: skip

    def carry_out(self, command, out, **kill):
        words = words_of(command, self.folder, out)
        pid, reading = start(words, self.folder / "log", **kill)
        return finish(pid, reading)

    def go_on(self, count):
        """Chain after chain until so many kills are done."""
        while self.found["kills"] < count:
            began = time.monotonic()
            self.chain(self.found["chains"])
            self.found["chains"] += 1
            self.found["seconds"] += time.monotonic() - began
            self.file.write_text(json.dumps(self.found, indent=1))
            print(
                f"{self.found['kills']} kills, {len(self.found['lost'])} lost, "
                f"{len(self.found['unequal'])} unequal, {self.found['seconds']:.0f} s", flush=True,
            )  # fmt: skip

    def chain(self, number):
        """One folder, killed until its work is done."""
        rng = random.Random(f"{self.seed} {number}")
        command = TURNS[number % len(TURNS)]
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        by = Counter(self.found["by"])
        for _ in range(CHAIN):
            how, aim = rng.choice(SIGNALS), rng.choice(AIMS)
            target = rng.randrange(self.changes[command] // rng.choice((1, 2, 4)) + 1)
            before = self.survivors(out)
            code, hit = self.kill(command, out, target, aim, how, rng)
            where = f"chain {number}, {command}, {how.name} {aim} {target}"
            if hit:
                self.found["kills"] += 1
                by[f"{command} {how.name} {aim}"] += 1
                if code not in EXITS[how] | {0}:  # 0: it came too late to be noticed
                    self.found["unequal"].append(f"{where}: exit code {code}: {self.last_words()}")
            elif code != 0:
                self.found["unequal"].append(f"{where}: exit code {code}: {self.last_words()}")
            self.compare(where, out, before)
            if not hit:
                break  # it went through to the end
        before = self.survivors(out)
        code, _ = self.carry_out(command, out)
        where = f"chain {number}, {command}, at last"
        if code != 0:
            self.found["unequal"].append(f"{where}: exit code {code}: {self.last_words()}")
        self.compare(where, out, before)
        ours, theirs = contents(out), self.expected[command]
        differ = sorted(ours.keys() ^ theirs.keys()) + [
            name
            for name in sorted(ours.keys() & theirs.keys())
            if comparable(name, ours[name]) != comparable(name, theirs[name])
        ]
        if differ:
            self.found["unequal"].append(f"{where}: {differ}")
            shutil.copytree(out, self.folder / f"unequal-{number}", dirs_exist_ok=True)
        self.found["by"] = dict(by)

    def survivors(self, out):
        """What must be there after the next kill: finished files, and updates of a checkpoint."""
        try:
            return (finished_files(out), updates_in(out)) if out.exists() else ({}, 0)
        except ValueError:
            return {}, 0  # noted before

    def compare(self, where, out, before):
        """Note what a kill has cost."""
        try:
            files, updates = (finished_files(out), updates_in(out)) if out.exists() else ({}, 0)
        except ValueError as error:
            self.found["lost"].append(f"{where}: {error}")
            return
        gone = [name for name in before[0] if files.get(name) != before[0][name]]
        if gone or updates < before[1]:
            self.found["lost"].append(f"{where}: {gone}, {before[1]} updates, now {updates}")

    def kill(self, command, out, target, aim, how, rng):
        """Start a command and kill it; returns its exit code, and whether it was hit."""
        words = words_of(command, self.folder, out)
        pid, reading = start(words, self.folder / "log", target=target, aim=aim, how=how)
        first = os.read(reading, 1)
        if aim == "later" and first == b"!":
            time.sleep(rng.random() * 2 * self.pause[command])
            os.kill(pid, how)
        code, _ = finish(pid, reading)
        return code, first == b"!"

    def last_words(self):
        return (self.folder / "log").read_text()[-600:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    options = parser.parse_args()
    warm_up()
    campaign = Campaign(options.folder.resolve(), options.seed)
    campaign.go_on(options.count)
    found = campaign.found
    print(json.dumps(found, indent=1))
    return 1 if found["lost"] or found["unequal"] else 0


if __name__ == "__main__":
    sys.exit(main())
