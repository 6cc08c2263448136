"""Mistakes that running weight averages are known to make, one test for each.

Every test writes the wrong formula down, shows on data how wrong it is, and shows that
`Moments` is right on the same data.
"""

import numpy as np
import pytest

from minires.resampling.moments import Moments


def fold(thetas):
    moments = Moments(thetas.shape[1:])
    for theta in thetas:
        moments.update(theta)
    return moments


def relative_error(value, truth):
    return np.abs(value - truth) / np.abs(truth)


def test_the_first_snapshot_is_not_counted_twice():
    thetas = np.array([[0.0], [3.0]])

    mean, count = thetas[0].copy(), 1  # starts with the first snapshot …
    for theta in thetas:  # … and meets it again
        mean += (theta - mean) / (count + 1)
        count += 1

    assert mean[0] == pytest.approx(1 / 3 * 3.0)  # the two weigh 2/3 and 1/3
    assert fold(thetas).mean[0] == 1.5


def test_the_initial_weights_are_not_part_of_the_sum(rng):
    initial = rng.standard_normal(1000)
    thetas = initial + 0.01 * rng.standard_normal((5, 1000))

    total, squares = initial.copy(), initial**2  # not zeros
    for theta in thetas:
        total += theta
        squares += theta**2
    mean, variance = total / 5, squares / 5 - (total / 5) ** 2

    assert np.median(mean / thetas.mean(axis=0)) == pytest.approx(1.2, abs=0.01)
    assert (variance < 0).mean() > 0.97  # which a clamp at 0 would hide
    moments = fold(thetas)
    np.testing.assert_allclose(moments.mean, thetas.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, thetas.var(axis=0), rtol=1e-10)


def test_the_mean_is_divided_by_updates_not_by_epochs():
    epochs, batches = 7, 469
    last_ten = np.zeros((epochs * batches, 1))
    last_ten[-10:] = 1  # so the mean of these is the weight that the last ten carry

    mean = np.zeros(1)
    for step, theta in enumerate(last_ten):
        epoch = step // batches + 1
        mean += (theta - mean) / epoch

    assert mean[0] == pytest.approx(0.79, abs=0.005)
    assert fold(last_ten).mean[0] == pytest.approx(10 / 3283, rel=1e-12)


def test_no_difference_of_large_squares(rng):
    thetas = (0.1 + 1e-4 * rng.standard_normal((500, 5000))).astype(np.float32)
    truth = thetas.var(axis=0, dtype=np.float64)

    mean = square = np.zeros(5000, np.float32)
    for count, theta in enumerate(thetas):
        mean = mean * count / (count + 1) + theta / (count + 1)
        square = square * count / (count + 1) + theta**2 / (count + 1)
    variance = square - mean**2  # E[x²] − E[x]², in float32

    assert (variance < 0).mean() > 0.1  # which a clamp at 0 would hide
    assert np.median(relative_error(variance, truth)) > 0.5
    ours = fold(thetas).variance
    assert (ours > 0).all()
    assert relative_error(ours, truth).max() < 1e-6


def test_noise_is_multiplied_by_the_standard_deviation(rng):
    thetas = 0.01 * rng.standard_normal((50, 20_000)) + 1
    sigma = thetas.std(axis=0)
    moments = fold(thetas)

    wrong = moments.mean + moments.variance * rng.standard_normal(20_000)
    ours = moments.sample(1, rng)[0]

    in_sigmas = [((member - moments.mean) / sigma).std() for member in (wrong, ours)]
    assert in_sigmas[0] < 0.02  # a hundredth of the spread: hardly an ensemble at all
    assert in_sigmas[1] == pytest.approx(1, abs=0.03)


def test_a_scale_is_of_sigma_not_of_sigma_squared(rng):
    thetas = 0.01 * rng.standard_normal((50, 20_000)) + 1
    sigma = thetas.std(axis=0)
    moments = fold(thetas)

    wrong = moments.mean + np.sqrt(4 * moments.variance / 2) * rng.standard_normal(20_000)
    ours = moments.sample(1, rng, scale=4)[0]

    in_sigmas = [((member - moments.mean) / sigma).std() for member in (wrong, ours)]
    assert in_sigmas[0] == pytest.approx(2**0.5, abs=0.03)
    assert in_sigmas[1] == pytest.approx(4, abs=0.1)


def test_ten_thousand_updates_of_float32_are_not_summed_in_float32(rng):
    # A slow drift: late in the stream d/n is less than float32 can add to a mean of 0.1.
    drift = np.linspace(0, 3e-5, 10_000)[:, None]
    thetas = (0.1 + drift + 1e-5 * rng.standard_normal((10_000, 500))).astype(np.float32)
    truth = thetas.var(axis=0, dtype=np.float64)

    mean, m2 = np.zeros((2, 500), np.float32)
    for count, theta in enumerate(thetas, start=1):  # Welford's own formula
        difference = theta - mean
        mean += difference / np.float32(count)
        m2 += difference * (theta - mean)

    assert relative_error(m2 / 10_000, truth).min() > 0.1
    assert relative_error(fold(thetas).variance, truth).max() < 1e-6
