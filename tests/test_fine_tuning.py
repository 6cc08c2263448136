"""A fine-tuning that stops after any update: its arrays are all that the next updates need."""

import numpy as np
import pytest

from minires import EMA, SGD, Adam, Moments
from minires.training.fine_tuning import FineTuning

SIZES = 5, 2  # of θ and of the statistics


class Network:
    """Its loss is ‖θ − images‖² / 2; each batch moves the statistics half-way to its labels."""

    def loss_and_gradient(self, theta, images, labels, stats, rng=None, classes=None):
        stats += (labels - stats) / 2
        return ((theta - images) ** 2).sum() / 2, theta - images


def shown(first, last):
    """The batches of the updates from `first` on, with their own random numbers."""
    for number in range(first, last):
        rng = np.random.default_rng(number)
        yield tuple(rng.standard_normal(size).astype(np.float32) for size in SIZES)


def begun(optimizer):
    theta, stats = (np.arange(size, dtype=np.float32) for size in SIZES)
    return FineTuning(theta, stats, optimizer, 0.5)


def test_an_update_is_a_step_and_goes_into_every_average():
    tuning, plain = begun(SGD(0.1)), np.arange(SIZES[0], dtype=np.float32)
    seen, stats = [], np.arange(SIZES[1], dtype=np.float32)
    moments, ema = (Moments(size) for size in SIZES), (EMA(0.5), EMA(0.5))
    moments = list(moments)
    for images, labels in shown(0, 4):
        plain = plain - np.float32(0.1) * (plain - images)
        stats = stats + (labels - stats) / 2
        seen.append(plain)
        for vector, *averages in ((plain, moments[0], ema[0]), (stats, moments[1], ema[1])):
            for average in averages:
                average.update(vector)
    tuning.go_on(Network(), shown(0, 4), 4)
    assert tuning.updates == len(tuning.losses) == 4
    np.testing.assert_allclose(tuning.theta, plain, rtol=1e-6)
    np.testing.assert_allclose(tuning.stats, stats, rtol=1e-6)
    for own, expected in zip(
        (tuning.moments, tuning.moments_of_stats, tuning.ema, tuning.ema_of_stats),
        (*moments, *ema),
        strict=True,
    ):
        np.testing.assert_allclose(own.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(tuning.moments.variance, np.var(seen, axis=0), rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.1)])
def test_restored_it_goes_on_with_the_same_bits(make):
    whole, first, second = begun(make()), begun(make()), begun(make())
    whole.go_on(Network(), shown(0, 7), 7)
    first.go_on(Network(), shown(0, 3), 3)
    second.restore(first.arrays())
    assert second.updates == 3
    second.go_on(Network(), shown(3, 7), 7)
    ours, expected = second.arrays(), whole.arrays()
    assert set(ours) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, name)


def test_saves_are_made_when_due_at_the_end_and_after_ctrl_c():
    for every, expected in ((0.0, [1, 2, 3, 4]), (1e9, [4])):
        tuning, saved = begun(SGD(0.1)), []
        tuning.go_on(Network(), shown(0, 4), 4, lambda: saved.append(tuning.updates), every)  # noqa: B023
        assert saved == expected

    def stops():
        yield from shown(0, 2)
        raise KeyboardInterrupt

    tuning, saved = begun(SGD(0.1)), []
    with pytest.raises(KeyboardInterrupt):
        tuning.go_on(Network(), stops(), 4, lambda: saved.append(tuning.updates), 1e9)
    assert saved == [2]


def test_half_an_update_is_not_saved(monkeypatch):
    tuning, saved, record = begun(SGD(0.1)), [], FineTuning.record

    def stop(self, loss):
        if self.updates == 2:
            raise KeyboardInterrupt
        record(self, loss)

    monkeypatch.setattr(FineTuning, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        tuning.go_on(Network(), shown(0, 4), 4, lambda: saved.append(tuning.updates))
    assert saved == []


def test_a_loss_that_is_no_number_changes_nothing():
    tuning = begun(SGD(0.25))
    tuning.go_on(Network(), shown(0, 2), 2)
    before = {name: array.copy() for name, array in tuning.arrays().items()}
    images = np.full(SIZES[0], np.inf, np.float32)
    with pytest.raises(FloatingPointError, match=r"inf at update 3: lower the rate \(now 0\.25\)"):
        tuning.update(Network(), images, np.zeros(2, np.float32))
    for name, array in tuning.arrays().items():
        np.testing.assert_array_equal(array, before[name], name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("updates", lambda a: a + 1),
        ("updates", lambda a: a * 0),
        ("losses", lambda a: a[:-1]),
        ("losses", lambda a: a * np.nan),
        ("theta", lambda a: a[:-1]),
        ("theta", lambda a: a.astype(np.float64)),
        ("stats", lambda a: a * np.nan),
        ("optimizer.count", lambda a: a + 1),
        ("optimizer.velocity", lambda a: a[:-1]),
        ("moments.count", lambda a: a + 1),
        ("ema_of_stats.count", lambda a: a + 1),
    ],
)
def test_arrays_that_contradict_one_another_are_refused(name, change):
    tuning = begun(SGD(0.1, momentum=0.9))
    tuning.go_on(Network(), shown(0, 3), 3)
    arrays = tuning.arrays()
    assert name in arrays
    with pytest.raises((LookupError, TypeError, ValueError, ArithmeticError)):
        begun(SGD(0.1, momentum=0.9)).restore(arrays | {name: change(arrays[name])})
