"""`minires info`: versions, threads, kernels, GPUs; with --check, whether they compute right."""

import json
import time
from typing import Any

REPORT = """\
Please report this: the table, the lines above it, and the command that you used. Until then
MINIRES_KERNELS=plain uses none of the kernels that failed, on a CPU and on a GPU; it is slower."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser("info", help="the versions, threads and GPUs of this machine")
    parser.add_argument(
        "--check", action="store_true", help="compare every kernel with its definition"
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="what to check (cpu)"
    )
    parser.set_defaults(run=run)


def run(options: Any) -> int:
    """Print the facts about this machine as JSON; then a table of checks, if asked.

    Returns  the exit code: 1 when a check failed
    """
    import platform

    import numpy as np

    import minires
    from minires import arrays
    from minires.kernels import kernels_in_use

    if options.check:
        arrays.module_for(options.device)  # before anything is printed
    facts = {
        "minires": minires.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": arrays.describe_processor(),
        "threads": arrays.get_threads(),
        "kernels": kernels_in_use(),
        "blas": arrays.describe_blas(),
        "gpus": arrays.describe_gpus(),
    }
    if isinstance(facts["gpus"], list):
        facts["cuda"] = arrays.describe_cuda()
    print(json.dumps(facts, indent=2))
    return _check(options.device) if options.check else 0


def _check(device):
    from minires.arrays import text
    from minires.commands.machine_check import HEADS, findings

    start, found = time.perf_counter(), []
    for finding in text.progress(findings(device), desc="checking", unit="check", leave=False):
        found.append(finding)
    failed = sum(not finding.passed for finding in found)
    print(text.table(HEADS, [finding.cells() for finding in found]))
    seconds = time.perf_counter() - start
    print(f"{len(found) - failed} of {len(found)} checks passed, in {seconds:.0f} s")
    if failed:
        print(REPORT)
    return 1 if failed else 0
