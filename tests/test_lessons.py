"""The lessons run, print what they promise, and say nothing untrue."""

import numpy as np
import pytest

from lessons import lesson_1_running_moments, lesson_2_gradients, lesson_3_resampling


def test_lesson_1_prints_the_right_mean_and_variance(capsys):
    lesson_1_running_moments.main()
    printed = capsys.readouterr().out
    assert "after 10.0: mean 5.0000   variance 7.2000" in printed
    assert "numpy says   : mean 5.0000   variance 7.2000" in printed


def test_lesson_2_gradients_agree_with_differences(capsys):
    lesson_2_gradients.main()
    lines = capsys.readouterr().out.splitlines()
    by_gradient, numeric = (
        float(next(line for line in lines if start in line).split()[-1])
        for start in ("by the gradient", "by two evaluations")
    )
    np.testing.assert_allclose(by_gradient, numeric, rtol=1e-4)


@pytest.mark.parametrize("sizes", [{"train": 512, "test": 128, "epochs": 1, "updates": 5}])
def test_lesson_3_compares_four_predictions(sizes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    predictions = lesson_3_resampling.main(**sizes)
    assert [p.shape for p in predictions.values()] == [(128, 10)] * 4
    assert "ensemble of 10" in capsys.readouterr().out
