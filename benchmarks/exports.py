"""The networks that people have: milliseconds per image, minires and ONNX Runtime.

    python tests/exported_networks.py DIR              # writes the files; needs torchvision, timm
    python benchmarks/exports.py DIR                   # times every .onnx file there

Random images, the same for both, as many threads for each. The ratio is minires / ONNX Runtime.
"""

import argparse
import functools
import statistics
from pathlib import Path

import numpy as np
from compare import THREADS, interleave
from evaluate import onnxruntime_logits

import minires
import minires.onnx


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    minires.set_threads(THREADS)
    rng, ratios = np.random.default_rng(0), []
    print(f"batch {options.batch}, {THREADS} threads, medians and quartiles of milliseconds")
    print(f"{'file':<36}{'image':>11}{'minires':>24}{'ONNX Runtime':>24}{'ratio':>7}")
    for path in sorted(options.folder.glob("*.onnx")):
        network = minires.onnx.load(path)
        shape = (options.batch, *network.declared_shape[1:])
        images = rng.standard_normal(shape).astype(np.float32)
        functions = {"ours": network.run, "theirs": onnxruntime_logits(path)}
        bound = {name: functools.partial(call, images) for name, call in functions.items()}
        times = interleave(bound, options.rounds)
        cells = []
        for seconds in times.values():
            each = (1e3 * second / options.batch for second in seconds)
            low, middle, high = statistics.quantiles(each, n=4)
            cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
        ratios.append(statistics.median(times["ours"]) / statistics.median(times["theirs"]))
        size = "×".join(map(str, shape[1:]))
        print(
            f"{path.stem:<36}{size:>11}{cells[0]:>24}{cells[1]:>24}{ratios[-1]:>7.2f}", flush=True
        )
    print(f"median of {len(ratios)} ratios: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
