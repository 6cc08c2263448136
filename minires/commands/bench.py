"""`minires bench`: how fast this machine trains, predicts and keeps moments.

Each time is the median of several rounds, after one round that does not count. On a GPU a round
ends when the device has finished all queued work. The last row is the speed of plain copying: it is
the limit for the update of the moments, which only moves memory.
"""

from typing import Any

import numpy as np

from minires import arrays
from minires.arrays import text
from minires.study.experiment import Config
from minires.training.timing import MOMENTS_BYTES, Problem, copy_seconds


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser("bench", help="time a step, a prediction, the moments' update")
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="where to compute (cpu)"
    )
    parser.add_argument("--network", default="lenet", help="as in `minires run` (lenet)")
    parser.add_argument("--batch", type=int, default=128, help="images in a mini-batch (128)")
    parser.add_argument("--replicas", type=int, default=1, help="networks side by side (1)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (5)")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.set_defaults(run=run)


def run(options: Any) -> int:
    """Measure, and print a table.

    Raises   ValueError for options that do not fit each other
    """
    for name in ("batch", "replicas", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}, expected 1 or more")
    if options.threads is not None:
        arrays.set_threads(options.threads)
    xp = arrays.module_for(options.device)
    config = Config(network=options.network, batch=options.batch)
    problem = Problem(config.model((28, 28, 1)), options.batch, options.replicas, options.device)
    where = (
        arrays.describe_gpus()[0] if xp is not np else text.counted(arrays.get_threads(), "thread")
    )
    side_by_side = f"{options.replicas} networks" if options.replicas > 1 else "one network"
    print(f"{options.network}, batch {options.batch}, {side_by_side}, {where}")
    rows = [("training step", problem.step_seconds(options.rounds), "")]
    if xp is not np:
        plain = problem.step_seconds(options.rounds, record=False)
        rows.append(("training step, not recorded", plain, ""))
    seconds = problem.predict_seconds(options.rounds)
    speed = f"{problem.replicas * len(problem.images) / seconds:,.0f} images/s"
    rows.append(("prediction", seconds, speed))
    seconds = problem.moments_seconds(options.rounds)
    speed = f"{problem.theta.size * MOMENTS_BYTES / seconds / 1e9:.0f} GB/s"
    rows.append(("update of the moments", seconds, speed))
    seconds, size = copy_seconds(xp, options.rounds)
    rows.append(("copying memory", seconds, f"{2 * size / seconds / 1e9:.0f} GB/s"))
    print(text.table([], [[name, f"{1e3 * s:.3f} ms", speed] for name, s, speed in rows]))
    if problem.reason:
        print(f"  (updates were not recorded: {problem.reason})")
    return 0
