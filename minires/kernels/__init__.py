"""The kernels: the arithmetic that takes nearly all of a network's time.

Every kernel exists in three modules, under the same name:

    plain   the definition, a few lines each, for NumPy and CuPy arrays alike
    cpu     the same for NumPy arrays, fast
    gpu     the same for CuPy arrays, fast

The fast ones are used, unless a block of code or the environment chooses `plain`:

    with minires.kernels("plain"): ...
    MINIRES_KERNELS=plain python …

With "plain" a network also runs as it is written: no two layers are joined, no batch norm is
folded into the layer in front of it.
"""

import contextlib
import contextvars
import importlib
import os
import sys
import types
from collections.abc import Iterator

import numpy as np

from minires.arrays import Array, device_of

KERNELS = (
    *("matmul", "sum_rows", "activate_gradient"),
    *("convolve", "convolve_weight_gradient", "convolve_input_gradient"),
    *("convolve_and_pool", "unpool"),
    *("depthwise", "depthwise_weight_gradient", "depthwise_input_gradient", "separable"),
    *("max_pool", "max_pool_gradient", "mean_pool", "mean_pool_gradient"),
    *("norm_moments", "norm_factors", "normalize", "norm_sums", "norm_slopes", "norm_gradient"),
    *("uniform", "step_sgd", "step_adam", "fold_moments", "fold_average"),
)
CHOICES = ("plain", "cpu")
VARIABLE = "MINIRES_KERNELS"

# None: what the environment says.
_chosen = contextvars.ContextVar("minires.kernels", default=None)


def chosen_kernels() -> str:
    """Which kernels are in use: "plain", or "cpu", which means the fast ones.

    Returns  the choice of the innermost `with minires.kernels(…)`; without one that of the
             environment variable MINIRES_KERNELS; without both "cpu". On a GPU "cpu" means the
             kernels of `gpu`
    Raises   ValueError when the environment variable has another value
    """
    return _chosen.get() or _valid(os.environ.get(VARIABLE) or "cpu", VARIABLE)


def kernels_in_use() -> str:
    """Which kernels compute on the CPU, in words that are kept beside a result: kernels round
    differently.

    Returns  "plain"; "cpu"; or "cpu, not compiled", when no C compiler could be used and the
             kernels in C are replaced by those of `plain`
    """
    name = chosen_kernels()
    if name == "cpu":
        compiled = importlib.import_module("minires.kernels.compiled")
        if compiled.functions(np.dtype(np.float32)) is None:
            return "cpu, not compiled"
    return name


def runs_as_written() -> bool:
    """Whether networks run layer by layer, nothing joined, nothing folded: with plain kernels."""
    return chosen_kernels() == "plain"


def kernels_of(array: Array) -> types.ModuleType:
    """The kernel module for `array`: `minires.kernels.plain`, `.cpu` or `.gpu`.

    array   NumPy or CuPy
    """
    name = "plain" if chosen_kernels() == "plain" else device_of(array)
    return importlib.import_module(f"minires.kernels.{name}")


@contextlib.contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Within a `with` block of this thread, use the kernels called `name`, "plain" or "cpu".

    name     "plain" or "cpu", which means the fast ones
    Raises   ValueError for another name
    """
    token = _chosen.set(_valid(name, "minires.kernels"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _valid(name, where):
    if name not in CHOICES:
        raise ValueError(f"{where} is {name!r}, expected 'plain' or 'cpu'")
    return name


class _Kernels(types.ModuleType):
    """This package, which can also be called: `minires.kernels("plain")`, see `use_kernels`."""

    def __call__(self, name):
        return use_kernels(name)


sys.modules[__name__].__class__ = _Kernels
