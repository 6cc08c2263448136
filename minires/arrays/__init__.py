"""The floor of the house: where arrays live, threads, files."""

from minires.arrays.device import (
    Array,
    aligned,
    can_be_stepped,
    describe_blas,
    describe_cuda,
    describe_gpus,
    describe_processor,
    device_of,
    empty_beside,
    module_for,
    restored_on_error,
    stepped,
    to_device,
    to_host,
    xp_of,
)
from minires.arrays.workers import default_threads, get_threads, set_threads, threads

__all__ = [
    "Array",
    "aligned",
    "can_be_stepped",
    "default_threads",
    "describe_blas",
    "describe_cuda",
    "describe_gpus",
    "describe_processor",
    "device_of",
    "empty_beside",
    "get_threads",
    "module_for",
    "restored_on_error",
    "set_threads",
    "stepped",
    "threads",
    "to_device",
    "to_host",
    "xp_of",
]
