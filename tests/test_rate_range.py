"""The rates that `minires improve` proposes: where the loss begins to rise, and what is below."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minires import SGD
from minires.commands import rate_range

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
from test_evaluate import command, write_network, write_pictures


def bowl(curvature, hardness=(0.0,), kinds=200):
    """An examination whose loss is ½ Σ cᵢ θᵢ² and the batch's own: SGD diverges above 2 / max c."""
    curvatures = curvature * np.geomspace(1e-3, 1, kinds)
    calls = []

    def loss_and_gradient(theta, images, labels, stats, rng, classes):
        calls.append(images)
        loss = 0.5 * curvatures @ theta**2 / curvature + hardness[images[0] % len(hardness)]
        return loss, curvatures * theta

    def batches(plan):
        return ((np.full(4, number), np.zeros(4, int), None) for number, _ in enumerate(plan))

    return SimpleNamespace(
        network=SimpleNamespace(loss_and_gradient=loss_and_gradient), batches=batches,
        whole_batches=lambda *arrays: arrays, targets=lambda labels: (labels, None), notes="",
        own_vectors=lambda: (np.ones(kinds), np.zeros(2)), compared=np.arange(10), calls=calls,
    )  # fmt: skip


def largest(examination):
    return rate_range.largest_rate(examination, np.arange(40), SGD(1.0), 4, seed=0)


@pytest.mark.parametrize("steps", [10, 15, 25])
def test_the_range_ends_where_the_loss_rises(steps):
    curvature = 1.5**steps
    found = largest(bowl(curvature))
    assert 2 / curvature < found < 40 / curvature
    # The grid and the loss are scaled together: so is the answer.
    assert found * curvature == pytest.approx(largest(bowl(1.5**20)) * 1.5**20)


def test_a_harder_batch_is_no_rise():
    """Batches whose losses differ by more than the rise that ends the test."""
    assert largest(bowl(1e4, hardness=(0, 5, 1, 9))) == largest(bowl(1e4))


def test_each_update_shows_a_new_batch_to_both_networks():
    examination = bowl(1e4)
    largest(examination)
    shown = [images[0] for images in examination.calls]
    assert shown == [number // 2 for number in range(len(shown))]
    assert 20 < len(shown) < 2 * len(rate_range.RATES)


@pytest.mark.parametrize(("rise", "ends"), [(0.09, False), (0.11, True)])
def test_a_tenth_of_guessing_ends_the_test(rise, ends):
    """Ten classes: guessing costs ln 10. From the fifth batch on the updates cost a share of it."""
    examination = bowl(1e-9)  # so flat that no rate changes the loss
    plain, start = examination.network.loss_and_gradient, examination.own_vectors()[0]

    def dearer(theta, images, *arguments, **settings):
        loss, gradient = plain(theta, images, *arguments, **settings)
        moved = images[0] >= 5 and not np.array_equal(theta, start)
        return loss + moved * rise * math.log(10), gradient

    examination.network.loss_and_gradient = dearer
    assert largest(examination) == rate_range.RATES[3 if ends else -2]


def test_a_loss_that_is_no_number_ends_the_test():
    examination = bowl(1e4)
    plain = examination.network.loss_and_gradient

    def lost(theta, images, *arguments, **settings):
        loss, gradient = plain(theta, images, *arguments, **settings)
        return (math.nan if images[0] == 6 else loss), gradient

    examination.network.loss_and_gradient = lost
    assert largest(examination) == rate_range.RATES[4]  # batch 6 would judge the sixth rate
    examination.network.loss_and_gradient = lambda *a, **s: (math.inf, plain(*a, **s)[1])
    with pytest.raises(
        ValueError, match=r"rises, or is no number, at the rate 1e-06 already.*preset"
    ):
        largest(examination)


def test_five_rates_over_a_decade_and_a_half():
    found = rate_range.proposed(0.09)
    assert found == [0.001, 0.0023, 0.0055, 0.013, 0.03]


def test_the_command_names_rates_and_writes_nothing(tmp_path, capsys):
    write_network(tmp_path / "n.onnx")
    write_pictures(tmp_path / "val", each=8)
    line = ["improve", tmp_path / "n.onnx", "--images", tmp_path / "val", "--updates", 6]
    line += ["--batch", 5, "--members", 0]
    assert command(*line, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.startswith("rates to try, one --out each: ")
    rates = [float(rate) for rate in said.split(": ")[1].split(" (")[0].split(", ")]
    assert rates == pytest.approx(rate_range.proposed(3 * rates[-1]), rel=0.05)
    assert 1e-3 < rates[-1] < 10
    assert not (tmp_path / "out").exists()
