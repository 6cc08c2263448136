"""The few functions that are worth writing for a CPU: convolution, pooling, batch norm, products.

The arithmetic is in `cpu.c`, which `compiled.py` compiles. Here stand its names, with the shapes
of all arrays, and the results are made. Where there is no C compiler, or where arrays are neither
float32 nor float64, NumPy does the same in `tiled.py`.

Arrays carry their replica axis explicitly here, `x (1 | R, N, H, W, C)`, `w (R, kh, kw, C, O)`:
one network is R = 1, and an input shared by R networks is copied into windows only once.
`minires.convolution` and `minires.batch_norm` take any leading axes.
"""

import functools

from minires.backend import get_threads
from minires.kernels import compiled, tiled

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2}


def call(name, dtype, *arguments):
    """Call a function of `cpu.c`.

    Raises   MemoryError when the system has none left for its intermediate results
    """
    if compiled.functions(dtype)[name](*arguments, get_threads()):
        raise MemoryError(f"{name}: no memory for intermediate results")


def in_c(function):
    """Runs a function of this file, or the one of `tiled.py` where its first array needs that."""
    otherwise = getattr(tiled, function.__name__)

    @functools.wraps(function)
    def choose(array, *rest, **named):
        fast = compiled.functions(array.dtype) is not None
        return (function if fast else otherwise)(array, *rest, **named)

    return choose


# --- written in NumPy still ---------------------------------------------------------------

matmul = tiled.matmul
convolve = tiled.convolve
convolve_and_pool = tiled.convolve_and_pool
convolve_weight_gradient = tiled.convolve_weight_gradient
convolve_input_gradient = tiled.convolve_input_gradient
unpool = tiled.unpool
max_pool = tiled.max_pool
max_pool_gradient = tiled.max_pool_gradient
mean_pool = tiled.mean_pool
mean_pool_gradient = tiled.mean_pool_gradient
norm_moments = tiled.norm_moments
normalize = tiled.normalize
norm_sums = tiled.norm_sums
norm_gradient = tiled.norm_gradient
depthwise = tiled.depthwise
depthwise_weight_gradient = tiled.depthwise_weight_gradient
depthwise_input_gradient = tiled.depthwise_input_gradient
