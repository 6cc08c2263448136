"""Schedules of the learning rate: which share of the rate each update uses.

A schedule is a function of the number of the update, t = 0, 1, … `train` multiplies the rate of
the optimizer by its value:

    train(task, theta, stats, SGD(0.2), 1000, schedule=cosine(1000))
"""

import math
from collections.abc import Callable

from minires.arrays.checks import number_in, whole_number

Schedule = Callable[[int], float]


def constant(number: int) -> float:
    """The rate stays as it is.

    number   of the update, from 0
    Returns  1
    """
    return 1


def linear(updates: int, final: float = 0.0) -> Schedule:
    """The rate falls along a straight line.

    share(t) = 1 − (1 − final) t/T, and `final` from t = T on

    updates  T: the share would be `final` at t = T; the last update is t = T − 1
    final    the share at the end, in [0, 1]
    Returns  a schedule
    Raises   ValueError when a setting is out of its range
    """
    whole_number("linear", "updates", updates, 1)
    _share("linear", "final", final)
    return lambda t: 1 - (1 - final) * (min(t, updates) / updates)


def cosine(updates: int, final: float = 0.0) -> Schedule:
    """The rate falls along half a wave of the cosine: slowly, then fast, then slowly.

    share(t) = final + (1 − final) (1 + cos(π t/T)) / 2, and `final` from t = T on

    updates  T: the share would be `final` at t = T; the last update is t = T − 1
    final    the share at the end, in [0, 1]
    Returns  a schedule
    Raises   ValueError when a setting is out of its range
    Source   Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5
    """
    whole_number("cosine", "updates", updates, 1)
    _share("cosine", "final", final)
    return lambda t: final + (1 - final) * (1 + math.cos(math.pi * min(t, updates) / updates)) / 2


def cyclic(length: int, lowest: float = 0.01) -> Schedule:
    """In each cycle the rate falls along a line; then it jumps back. SWA averages weights so.

    s = ((t mod c) + 1)/c,   share(t) = (1 − s) + lowest · s

    length   c, updates in a cycle
    lowest   the share at the end of a cycle, in [0, 1]
    Returns  a schedule
    Raises   ValueError when a setting is out of its range
    Source   Izmailov et al. 2018, arXiv:1803.05407, §3.2, with α₁ = ℓ and α₂ = lowest · ℓ
    """
    whole_number("cyclic", "length", length, 1)
    _share("cyclic", "lowest", lowest)

    def share(t):
        position = (t % length + 1) / length
        return (1 - position) + lowest * position

    return share


def _share(where, name, value):
    if value != 1:
        number_in(where, name, value, 0, 1)
