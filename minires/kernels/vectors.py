"""Formulas that change whole vectors in place: the steps of SGD and Adam, the moments, EMA.

Such a formula stands where a student looks for it: as four lines of NumPy in `SGD.step` or
`Moments.update`. With plain kernels it is applied as it is written. Otherwise a kernel that does
the same in one pass replaces it, if there is one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minires.arrays import xp_of
from minires.kernels import kernels_of, runs_as_written

COUNTS = {"fold_moments"}  # kernels whose numbers count something; those of all others are like θ


def apply_formula(
    formula: Callable, *vectors: Any, numbers: Sequence[Any] = (), settings: Sequence[float] = (),
    kernel: str | None = None,
) -> None:  # fmt: skip
    """Change vectors in place, element by element.

    formula   called as formula(*vectors, *numbers, *settings); changes the vectors
    vectors   (P,) or (R, P), contiguous or `arrays.aligned`, of equal shape; or None for one that
              is not needed
    numbers   what changes from step to step, such as the rate: one number each; or (R, 1), one
              for each network
    settings  what stays the same for all steps, one number each
    kernel    the function of a kernel module that does the same with the same arguments, if there
              is one; it takes each of the `numbers` as an array (1,) or (R,)
    """
    like = vectors[0]
    fast = kernel and not runs_as_written() and getattr(kernels_of(like), kernel)
    if fast:
        dtype = np.int64 if kernel in COUNTS else like.dtype
        given = (_beside(like, number, dtype).reshape(-1) for number in numbers)
        fast(*vectors, *given, *settings)
        return
    # Python's own numbers do not widen float32 to float64; an array of float64 would.
    own = (_beside(like, n, like.dtype) if np.ndim(n) else float(n) for n in numbers)
    formula(*vectors, *own, *settings)


def _beside(theta, number, dtype):
    """One number, or one for each network, as an array on θ's device."""
    if xp_of(number) is np:
        number = np.asarray(number)
    return xp_of(theta).asarray(number, dtype)
