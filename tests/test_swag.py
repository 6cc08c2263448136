"""SWAG and the noise that knows nothing of single weights, against their formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires import arrays
from minires.resampling.baselines import SWAG, isotropic_members
from minires.resampling.moments import Moments
from tests.helpers import generator, seeds


def walk(rng, updates, size, dtype=np.float64):
    """Weights that wander: (updates, size)."""
    return rng.standard_normal((updates, size)).cumsum(axis=0).astype(dtype)


def collected(history, rank, stride):
    swag = SWAG(history[0].shape, rank, stride)
    for theta in history:
        swag.update(theta)
    return swag


@given(seeds, st.integers(2, 5), st.integers(1, 4), st.integers(0, 3))
def test_swag_is_algorithm_1_of_its_paper(seed, rank, stride, rest):
    """Every stride-th θ; running mean and mean of squares; the last K columns θᵢ − θ̄ᵢ."""
    history = walk(generator(seed), (rank + 2) * stride + rest % stride, 7)
    swag = collected(history, rank, stride)
    mean, squares, columns, n = np.zeros(7), np.zeros(7), [], 0
    for i, theta in enumerate(history, 1):
        if i % stride == 0:
            mean = (n * mean + theta) / (n + 1)
            squares = (n * squares + theta**2) / (n + 1)
            columns = [*columns, theta - mean][-rank:]
            n += 1
    np.testing.assert_allclose(swag.moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(swag.moments.variance, squares - mean**2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.array(swag.deviations), columns, rtol=1e-12, atol=1e-13)


def test_a_member_is_equation_1_of_its_paper(xp, rng):
    history = walk(rng, 30, 50)
    swag = collected(xp.asarray(history), 4, 5)
    members = swag.sample(3, np.random.default_rng(8))
    d = np.stack([arrays.to_host(column) for column in swag.deviations], axis=1)  # (P, K)
    sigma = arrays.to_host(swag.moments.std)
    for member, own in zip(members, np.random.default_rng(8).spawn(3), strict=True):
        z1, z2 = own.standard_normal(50), own.standard_normal(4)
        expected = arrays.to_host(swag.moments.mean)
        expected = expected + sigma * z1 / np.sqrt(2) + d @ z2 / np.sqrt(2 * (4 - 1))
        np.testing.assert_allclose(arrays.to_host(member), expected, rtol=1e-12)


def test_many_members_have_the_covariance(rng):
    swag = collected(walk(rng, 12, 6), 5, 2)
    d = np.stack(list(swag.deviations), axis=1)
    expected = 0.5 * np.diag(swag.moments.variance) + d @ d.T / (2 * (5 - 1))
    members = swag.sample(10_000, rng)
    found = np.cov(members.T, ddof=0)
    # The standard error of a sample covariance: √((c_ii c_jj + c_ij²)/n); five of them.
    diagonal = np.diag(expected)
    error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / len(members))
    assert (np.abs(found - expected) < 5 * error).all()
    mean_error = np.sqrt(diagonal / len(members))
    assert (np.abs(members.mean(axis=0) - swag.moments.mean) < 5 * mean_error).all()


def test_the_diagonal_of_every_update_is_the_papers_gaussian(rng):
    history = walk(rng, 20, 9, np.float32)
    moments = Moments((9,))
    for theta in history:
        moments.update(theta)
    swag = collected(history, 3, 1)
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    assert np.array_equal(swag.moments.sample(4, one), moments.sample(4, other))


@given(seeds, st.integers(1, 6))
def test_a_member_does_not_depend_on_how_many_there_are(seed, k):
    swag = collected(walk(generator(seed), 8, 5, np.float32), 3, 2)
    few, many = (swag.sample(n, np.random.default_rng(seed)) for n in (k, 7))
    assert few.dtype == np.float32
    assert np.array_equal(few, many[:k])


def test_weights_that_rest_stay(rng):
    theta = rng.standard_normal(5)
    swag = collected(np.tile(theta, (9, 1)), 3, 1)
    assert np.array_equal(swag.sample(2, rng), np.tile(theta, (2, 1)))


def test_swag_says_what_is_missing(rng):
    with pytest.raises(ValueError, match="rank is 1, expected a whole number >= 2"):
        SWAG((3,), 1)
    swag = collected(walk(rng, 5, 3), 4, 2)
    with pytest.raises(ValueError, match="2 weights are collected, rank 4 needs as many"):
        swag.sample(1, rng)


def test_swag_keeps_copies(rng):
    """θ is changed in place by the next step; what was collected must not follow."""
    theta = rng.standard_normal(4)
    swag = SWAG(theta.shape, 2)
    for _ in range(4):
        theta += 1
        swag.update(theta)
    before = swag.sample(2, np.random.default_rng(0))
    theta[:] = 100
    assert np.array_equal(swag.sample(2, np.random.default_rng(0)), before)


# --- isotropic noise ----------------------------------------------------------------------


def test_isotropic_noise_is_its_formula(xp, rng):
    mean, std = rng.standard_normal(10), rng.random(10)
    parts = [slice(0, 4), slice(4, 5), slice(5, 10)]
    members = isotropic_members(
        xp.asarray(mean), xp.asarray(std), parts, 3, np.random.default_rng(4)
    )
    members = arrays.to_host(members)
    for member, own in zip(members, np.random.default_rng(4).spawn(3), strict=True):
        noise = own.standard_normal(10)
        for part in parts:
            s = np.sqrt(np.sum(std[part] ** 2) / len(std[part]))
            np.testing.assert_allclose(member[part], mean[part] + s * noise[part], rtol=1e-12)


@given(seeds)
def test_the_noise_is_as_strong_as_that_of_sigma_in_each_array(seed):
    rng = generator(seed)
    std = rng.random(400).astype(np.float32) * np.repeat([1, 100], 200).astype(np.float32)
    parts = [slice(0, 200), slice(200, 400)]
    k = 200
    noise = isotropic_members(np.zeros_like(std), std, parts, k, rng).astype(np.float64)
    for part in parts:
        squared = (noise[:, part] ** 2).sum(axis=1).mean()
        expected = (std[part].astype(np.float64) ** 2).sum()
        # χ² of 200 weights × 200 networks: a relative standard error of √(2/40,000) = 0.7 %.
        assert abs(squared / expected - 1) < 6 * np.sqrt(2 / (200 * k))
        assert np.ptp(noise[:, part].std(axis=0)) < noise[:, part].std()  # equal for all


def test_equal_sigmas_make_it_the_papers_noise(rng):
    """Where every weight of an array moves alike, knowing σ of each one adds nothing."""
    history = np.array([[0, 3, 5], [2, 5, 3], [4, 7, 1]], np.float32)
    moments = Moments((3,))
    for theta in history:
        moments.update(theta)
    ours = moments.sample(5, np.random.default_rng(2))
    other = isotropic_members(moments.mean, moments.std, [slice(0, 3)], 5, np.random.default_rng(2))
    np.testing.assert_allclose(other, ours, rtol=1e-6, atol=1e-6)
