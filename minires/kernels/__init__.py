"""The few functions that are written for one processor: `cpu` and `gpu`, with the same names."""

import importlib

from minires.arrays import device_of


def kernels_of(array):
    """The kernel module for `array`: `minires.kernels.cpu` or `minires.kernels.gpu`."""
    return importlib.import_module(f"minires.kernels.{device_of(array)}")
