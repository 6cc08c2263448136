"""The floor of the house: where arrays live, threads, files."""

from minires.arrays.device import (
    Array,
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
from minires.arrays.workers import default_threads, get_threads, set_threads, threads

__all__ = [
    "Array",
    "default_threads",
    "describe_blas",
    "describe_cuda",
    "describe_gpus",
    "describe_processor",
    "device_of",
    "get_threads",
    "module_for",
    "set_threads",
    "threads",
    "to_device",
    "to_host",
    "xp_of",
]
