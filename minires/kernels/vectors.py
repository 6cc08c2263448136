"""Formulas that change whole vectors in place: the steps of SGD and Adam, the moments, EMA.

This is the one place where such a formula meets a processor. A student reads the formula where it
belongs, as four lines of NumPy in `SGD.step` or `Moments.update`. Here it is either applied to
one cache-sized block after another, or replaced by a kernel that does the same in one pass.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minires.arrays import each_block, to_host, xp_of
from minires.kernels import kernels_of


def apply_formula(
    formula: Callable,
    *vectors: Any,
    numbers: Sequence[Any] = (),
    settings: Sequence[float] = (),
    kernel: str | None = None,
    block: int = 1 << 15,
) -> None:
    """Change vectors in place, element by element.

    formula   called as formula(*blocks of the vectors, *numbers, *settings); changes the blocks
    vectors   (P,) or (R, P), contiguous, of equal shape; or None for one that is not needed
    numbers   what changes from step to step, such as the rate: one number each; or (R, 1), one
              for each network
    settings  what stays the same for all steps, one number each
    kernel    the function of a kernel module that does the same with the same arguments, if there
              is one; it takes each of the `numbers` as an array (1,) or (R,)
    block     how many elements to take at once on a CPU
    """
    first = vectors[0]
    fast = kernel and getattr(kernels_of(first), kernel, None)
    if fast:
        fast(*vectors, *(_beside(first, number) for number in numbers), *settings)
        return
    for own_vectors, own_numbers in _each_network(vectors, numbers):
        given = [vector for vector in own_vectors if vector is not None]
        rest = [None] * (len(vectors) - len(given))  # only the last may be None
        whole = partial(_with, formula, (*rest, *own_numbers, *settings))
        each_block(whole, *given, block=block)


def _with(formula, rest, *blocks):
    formula(*blocks, *rest)


def _beside(theta, number):
    """One number, or one for each network, as a vector on θ's device."""
    if xp_of(number) is np:
        number = np.asarray(number)
    dtype = np.int64 if number.dtype.kind in "iu" else theta.dtype
    return xp_of(theta).asarray(number, dtype).reshape(-1)


def _each_network(vectors, numbers):
    """The vectors and numbers of all networks at once; of one after another where numbers differ.

    Blocks of a flat vector do not end where a network ends. On a GPU, one network at a time keeps
    the temporary arrays small.
    """
    first = vectors[0]
    if all(np.ndim(number) == 0 for number in numbers) and (xp_of(first) is np or first.ndim < 2):
        yield vectors, [float(number) for number in numbers]  # float64 would widen float32
        return
    columns = [to_host(number).ravel().tolist() if np.ndim(number) else None for number in numbers]
    for place in range(len(first)):
        own = [vector if vector is None else vector[place] for vector in vectors]
        yield own, [c[place] if c else float(n) for c, n in zip(columns, numbers, strict=True)]
