"""Run the lessons as the teacher has them, and count: seconds, pictures, exercises, wrong answers.

    python benchmarks/lessons.py                        # all twelve, a process each
    python benchmarks/lessons.py 8 11 --kernels plain

Solutions are checked and wrong answers rejected on the way; where that fails the benchmark ends.
"processor" adds up what all cores worked: on a busy machine it says more than the seconds do. The
exit code is 1 when a lesson takes more than twice the seconds that its head says.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time

from minires.arrays.text import table
from minires.commands import lessons


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", type=int, nargs="*", help="their numbers (all)")
    parser.add_argument("--kernels", default="cpu", choices=("plain", "cpu"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(lessons.lesson(options.one))))
        return 0
    chosen = [each for each in lessons.lessons() if each.number in options.lessons] or (
        lessons.lessons()
    )
    rows, total, late = [], 0.0, []
    for lesson in chosen:
        found = in_a_process(lesson.number, options.kernels)
        total += found["seconds"]
        if found["seconds"] > 2 * lesson.seconds:
            late.append(lesson.number)
        numbers = [found[name] for name in ("pictures", "exercises", "wrong")]
        rows.append([lesson.number, lesson.title, f"{found['seconds']:.1f}"])
        rows[-1] += [f"{found['processor']:.1f}", lesson.seconds, *numbers]
        print(f"{lesson.number}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    heads = ["", "lesson", "seconds", "processor", "said", "pictures", "exercises", "rejected"]
    print(table(heads, rows, align="ll"))
    print(f"kernels {options.kernels}, {total:.0f} s in all")
    if late:
        print(f"more than twice the time that is said: lessons {late}")
    return 1 if late else 0


def in_a_process(number, kernels):
    """What `run` gives, from a process that has loaded nothing yet; its start is counted too."""
    command = [sys.executable, __file__, "--one", str(number)]
    environment = os.environ | {"MINIRES_KERNELS": kernels}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"seconds": time.perf_counter() - started}


def run(lesson):
    """Run a lesson here. Returns how many pictures, exercises and rejected answers it has."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    shown = []

    def show():
        for number in pyplot.get_fignums():
            pyplot.figure(number).savefig(io.BytesIO())
            shown.append(number)
        pyplot.close("all")

    pyplot.show = show
    printed, cells = io.StringIO(), lesson.cells()
    with contextlib.redirect_stdout(printed):
        lessons.execute(cells, {"__name__": "__main__"}, name=lesson.path.name)
    return {
        "processor": time.process_time(),
        "pictures": len(shown),
        "exercises": sum(cell.kind == "exercise" for cell in cells),
        "wrong": printed.getvalue().count("smallest counterexample"),
    }


if __name__ == "__main__":
    sys.exit(main())
