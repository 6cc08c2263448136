"""How far the known mistakes of public code lead astray, on weights as fine-tuning has them.

That each is rejected by a property is in the matrix; here the wrong classes of
`minires.testing.mistakes` meet `Moments` on the same data.
"""

import numpy as np
import pytest

from minires.resampling.moments import Moments
from minires.testing import mistakes


def fold(moments, thetas):
    for theta in thetas:
        moments.update(theta)
    return moments


def ours(thetas):
    return fold(Moments(thetas.shape[1:]), thetas)


def relative_error(value, truth):
    return np.abs(value - truth) / np.abs(truth)


def test_the_first_snapshot_is_not_counted_twice():
    thetas = np.array([[0.0], [3.0]])
    wrong = fold(mistakes.FirstCountedTwice((1,)), thetas)
    assert wrong.mean[0] == pytest.approx(1 / 3 * 3.0)  # the two weigh 2/3 and 1/3
    assert ours(thetas).mean[0] == 1.5


def test_sums_do_not_start_at_the_first_weights(rng):
    thetas = rng.standard_normal(1000) + 0.01 * rng.standard_normal((5, 1000))
    wrong = fold(mistakes.StartsAtACopy(), thetas)
    assert np.median(wrong.mean / thetas.mean(axis=0)) == pytest.approx(1.2, abs=0.01)
    assert (wrong.variance == 0).mean() > 0.97  # below zero, which its clamp hides
    moments = ours(thetas)
    np.testing.assert_allclose(moments.mean, thetas.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, thetas.var(axis=0), rtol=1e-10)


def test_the_mean_is_divided_by_updates_not_by_epochs():
    class Epochs(mistakes.DividedByEpoch):
        batches = 469

    last_ten = np.zeros((7 * 469, 1))
    last_ten[-10:] = 1  # so the mean of these is the weight that the last ten carry
    assert fold(Epochs((1,)), last_ten).mean[0] == pytest.approx(0.79, abs=0.005)
    assert ours(last_ten).mean[0] == pytest.approx(10 / 3283, rel=1e-12)


def test_no_difference_of_large_squares(rng):
    thetas = (0.1 + 1e-4 * rng.standard_normal((500, 5000))).astype(np.float32)
    truth = thetas.var(axis=0, dtype=np.float64)
    variance = fold(mistakes.DifferenceOfSquares(), thetas).variance
    assert variance.dtype == np.float32
    assert (variance < 1e-29).mean() > 0.1  # below zero, which its clamp hides
    assert np.median(relative_error(variance, truth)) > 0.5
    moments = ours(thetas)
    assert (moments.variance > 0).all()
    assert relative_error(moments.variance, truth).max() < 1e-6


@pytest.mark.parametrize(
    ("wrong", "scale", "spread", "room"),
    [
        # A hundredth of the spread: hardly an ensemble at all.
        (mistakes.variance_as_sigma, 1.0, 0.01, 0.01),
        (mistakes.scale_of_variance, 4.0, 2.0, 0.05),
    ],
    ids=["variance as σ", "scale of σ²"],
)
def test_noise_is_multiplied_by_the_scale_and_the_standard_deviation(
    rng, wrong, scale, spread, room
):
    thetas = 0.01 * rng.standard_normal((50, 20_000)) + 1
    sigma, moments = thetas.std(axis=0), ours(thetas)

    def in_sigmas(member):
        return ((member - moments.mean) / sigma).std()

    theirs = wrong(moments.mean, moments.variance, 1, rng, scale=scale)[0]
    assert in_sigmas(theirs) == pytest.approx(spread, abs=room)
    assert in_sigmas(moments.sample(1, rng, scale=scale)[0]) == pytest.approx(scale, rel=0.03)


def test_ten_thousand_updates_of_float32_are_not_summed_in_float32(rng):
    # A slow drift: late in the stream d/n is less than float32 can add to a mean of 0.1.
    drift = np.linspace(0, 3e-5, 10_000)[:, None]
    thetas = (0.1 + drift + 1e-5 * rng.standard_normal((10_000, 500))).astype(np.float32)
    truth = thetas.var(axis=0, dtype=np.float64)
    wrong = fold(mistakes.WelfordFloat32((500,)), thetas)
    assert relative_error(wrong.variance, truth).min() > 0.1
    assert relative_error(ours(thetas).variance, truth).max() < 1e-6
