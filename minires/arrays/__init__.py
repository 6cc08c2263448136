"""The floor of the house: where arrays live, threads, memory, files."""

from minires.arrays.device import (
    describe_blas,
    describe_cuda,
    describe_gpus,
    describe_processor,
    device_of,
    module_for,
    to_device,
    to_host,
    xp_of,
)
from minires.arrays.memory import empty, release_memory
from minires.arrays.workers import (
    default_threads,
    each_block,
    get_threads,
    run_tiles,
    set_threads,
    single_threaded_blas,
    threads,
    within_tile,
)

__all__ = [
    "default_threads",
    "describe_blas",
    "describe_cuda",
    "describe_gpus",
    "describe_processor",
    "device_of",
    "each_block",
    "empty",
    "get_threads",
    "module_for",
    "release_memory",
    "run_tiles",
    "set_threads",
    "single_threaded_blas",
    "threads",
    "to_device",
    "to_host",
    "within_tile",
    "xp_of",
]
