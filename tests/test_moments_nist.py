"""The univariate reference sets of NIST's Statistical Reference Datasets (StRD).

Their certified values have 15 digits. The numbers in a set are decimal; as float64 they are
off by up to half a unit in the last place, and where the numbers are large compared with
their deviation that alone costs digits: exact arithmetic on the float64 numbers of NumAcc3
reaches 9.5 digits of σ, on those of NumAcc4 8.3. No summation can give more.

Source: https://www.itl.nist.gov/div898/strd/univ/homepage.html
"""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from minires.resampling.moments import Moments

MADE_BY_RULE = {
    "numacc1": (["10000001", "10000003", "10000002"], "10000002", "1"),
    "numacc2": (["1.2"] + ["1.1", "1.3"] * 500, "1.2", "0.1"),
    "numacc3": (["1000000.2"] + ["1000000.1", "1000000.3"] * 500, "1000000.2", "0.1"),
    "numacc4": (["10000000.2"] + ["10000000.1", "10000000.3"] * 500, "10000000.2", "0.1"),
}


def correct_digits(value, certified):
    """−log₁₀ of the relative error, 16 where there is none."""
    certified = Fraction(certified)
    error = abs(Fraction(float(value)) - certified) / abs(certified)
    return min(16.0, -math.log10(error)) if error else 16.0


def moments_of(numbers):
    moments = Moments(1, ddof=1)
    for number in numbers:
        moments.update(np.array([number]))
    return moments


@pytest.mark.parametrize(
    ("name", "least"), [("numacc1", 15), ("numacc2", 15), ("numacc3", 9.4), ("numacc4", 8.2)]
)
def test_sets_made_by_rule(name, least):
    numbers, mean, sigma = MADE_BY_RULE[name]
    moments = moments_of([float(number) for number in numbers])
    assert correct_digits(moments.mean[0], mean) >= 15
    assert correct_digits(moments.std[0], sigma) >= least


@pytest.mark.parametrize(
    ("name", "least"), [("lottery", 15), ("lew", 15), ("mavro", 13), ("michelso", 13.5)]
)
def test_sets_measured(data_dir, name, least):
    path = data_dir / "nist" / f"{name}.txt"
    if not path.exists():
        pytest.skip(f"MINIRES_DATA holds no nist/{name}.txt")
    head, *numbers = path.read_text().split("\n")
    mean, sigma = re.search(r"certified mean (\S+), .*\(ddof 1\) (\S+)", head).groups()
    moments = moments_of([float(number) for number in numbers if number])
    assert correct_digits(moments.mean[0], mean) >= 15
    assert correct_digits(moments.std[0], sigma) >= least


@pytest.mark.parametrize("name", MADE_BY_RULE)
def test_no_digit_is_lost_that_the_float64_numbers_have(name):
    numbers = [float(number) for number in MADE_BY_RULE[name][0]]
    exact = [Fraction(number) for number in numbers]
    mean = sum(exact) / len(exact)
    variance = sum((number - mean) ** 2 for number in exact) / (len(exact) - 1)
    assert correct_digits(moments_of(numbers).variance[0], variance) >= 14
