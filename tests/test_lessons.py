"""The lessons run, print what they promise, and say nothing untrue."""

import numpy as np
import pytest
from helpers import assert_gradient

from lessons import lesson_1_running_moments, lesson_2_gradients, lesson_3_resampling
from minires import Moments
from minires.engine.autodiff import op


def test_lesson_1_prints_the_right_mean_and_variance(capsys):
    lesson_1_running_moments.main()
    printed = capsys.readouterr().out
    assert "after 10.0: mean 5.0000   variance 7.2000" in printed
    assert "numpy says   : mean 5.0000   variance 7.2000" in printed
    assert "for 100% of the weights" in printed


def test_lesson_1_s_exercise_comes_out_as_its_answer_says(rng):
    weights = (0.1 + 1e-4 * rng.standard_normal((500, 10))).astype(np.float32)
    moments = Moments(10)
    moments.update(weights[0] + 1)
    for theta in weights:
        moments.update(theta)
    assert np.allclose(moments.std, np.sqrt(500) / 501, rtol=0.01)
    assert np.round(moments.std, 3).max() == np.float32(0.045)


def test_lesson_2_gradients_agree_with_differences(capsys):
    lesson_2_gradients.main()
    lines = capsys.readouterr().out.splitlines()
    by_gradient, numeric = (
        float(next(line for line in lines if start in line).split()[-1])
        for start in ("by the gradient", "by two evaluations")
    )
    np.testing.assert_allclose(by_gradient, numeric, rtol=1e-4)
    ours, by_hand = (
        next(line for line in lines if start in line).split()[-1]
        for start in ("dy/dx at 0.5", "by hand")
    )
    assert ours == by_hand


def test_lesson_2_s_exercise_comes_out_as_its_answer_says(rng):
    @op
    def swish(x):
        s = 1 / (1 + np.exp(-x))
        return x * s, (lambda g: g * (s + x * s * (1 - s)),)

    assert_gradient(swish, rng.standard_normal(5), rng=rng)


@pytest.mark.parametrize("sizes", [{"train": 512, "test": 128, "epochs": 1, "updates": 5}])
def test_lesson_3_compares_four_predictions(sizes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    predictions = lesson_3_resampling.main(**sizes)
    assert [p.shape for p in predictions.values()] == [(128, 10)] * 4
    assert "ensemble of 10" in capsys.readouterr().out
