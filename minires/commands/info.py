"""`minires info`: the versions, threads, kernels and GPUs of this machine."""

import json


def add_parser(subparsers) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser("info", help="the versions, threads and GPUs of this machine")
    parser.set_defaults(run=run)


def run(options) -> int:
    """Print the facts about this machine as JSON."""
    import platform

    import numpy as np

    import minires
    from minires import arrays
    from minires.kernels import kernels_in_use

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
    return 0
