"""How much code one training step is: the distinct lines of minires that it executes.

    python benchmarks/lines.py

Counts, per file, the lines that one step of the slim LeNet runs (loss, gradient, SGD),
with the plain kernels and with the fast ones. A step before it has filled all caches and pools.
Lines run by helper threads count too. What a student has to read is about these lines.
"""

import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import minires

PACKAGE = Path(minires.__file__).parent


class Lines:
    """Collects {file: lines executed} within a `with` block, in all threads that start in it."""

    def __init__(self):
        self.found = {}

    def _trace(self, frame, event, _):
        path = frame.f_code.co_filename
        if not path.startswith(str(PACKAGE)):
            return None
        self.found.setdefault(Path(path).relative_to(PACKAGE).as_posix(), set())
        return self._line

    def _line(self, frame, event, _):
        if event == "line":
            path = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()
            self.found[path].add(frame.f_lineno)
        return self._line

    def __enter__(self):
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)
        threading.settrace(None)


def lines_of_a_step(kernels):
    """{file: number of lines} of one training step of LeNet on the kernels of that name."""
    rng = np.random.default_rng(0)
    model = minires.lenet()
    theta, optimizer = model.init(rng), minires.SGD(0.01)
    images = rng.standard_normal((16, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, 10, 16)

    def step():
        _, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
        optimizer.step(theta, gradient)

    lines = Lines()
    with minires.kernels(kernels):
        step()
        minires.set_threads(minires.arrays.get_threads())  # new threads, traced from their start
        with lines:
            step()
    return {path: len(numbers) for path, numbers in sorted(lines.found.items())}


def main():
    counts = {name: lines_of_a_step(name) for name in ("plain", "cpu")}
    files = sorted(set().union(*counts.values()))
    print(f"{'lines executed by one LeNet step':<36}" + "".join(f"{name:>8}" for name in counts))
    for path in files:
        print(f"{path:<36}" + "".join(f"{count.get(path, 0):>8}" for count in counts.values()))
    print(f"{'in all':<36}" + "".join(f"{sum(c.values()):>8}" for c in counts.values()))


if __name__ == "__main__":
    main()
