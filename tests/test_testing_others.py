"""The properties pointed at code that is not ours: PyTorch, HIPS autograd, scikit-learn."""

import numpy as np
import pytest

from minires.testing import Falsified, check_gradient, check_metric, check_moments


def averager(torch):
    """AveragedModel of θ and of θ²: a running mean, and the variance as SWAG has it."""

    class Averager:
        def __init__(self, shape):
            def module():
                layer = torch.nn.ParameterList([torch.zeros(shape, dtype=torch.float64)])
                return torch.optim.swa_utils.AveragedModel(layer), layer

            self.first, self.source = module()
            self.second, self.squared = module()

        def update(self, theta):
            with torch.no_grad():
                self.source[0].copy_(torch.from_numpy(theta))
                self.squared[0].copy_(self.source[0] ** 2)
            self.first.update_parameters(self.source)
            self.second.update_parameters(self.squared)

        @property
        def mean(self):
            return self.first.module[0].detach().numpy()

        @property
        def variance(self):
            difference = self.second.module[0] - self.first.module[0] ** 2
            return difference.detach().clamp(min=1e-30).numpy()

    return Averager


def test_the_mean_of_pytorch_holds_and_a_difference_of_squares_does_not(one_torch_thread):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
    with pytest.raises(Falsified) as falsified:
        check_moments(averager(torch))
    failed = [failure.name for failure in falsified.value.failures]
    assert any(held.startswith("the mean is numpy.mean") for held in falsified.value.held)
    assert "a constant stream has variance 0" in failed
    assert "a large mean leaves the variance as it is" in failed


@pytest.mark.parametrize("name", ["tanh", "exp", "sinc", "abs", "maximum"])
def test_autograd_s_functions(name):
    autograd = pytest.importorskip("autograd", reason="autograd is not installed")
    import autograd.numpy as anp

    function = getattr(anp, name)
    shapes = [(3,), (3,)] if name == "maximum" else [(3,)]

    def judged(*arrays):
        numbers = tuple(range(len(arrays)))
        pull, result = autograd.make_vjp(lambda own: function(*own))(arrays)
        return result, lambda g: tuple(pull(np.asarray(g))[i] for i in numbers)

    check_gradient(judged, shapes, (0.1, 2.0))


@pytest.mark.parametrize(("kind", "name"), [("nll", "log_loss"), ("accuracy", "accuracy_score")])
def test_scikit_learn_s_metrics(kind, name):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    if kind == "accuracy":
        check_metric(lambda p, labels: metrics.accuracy_score(labels, p.argmax(axis=1)), kind)
    else:
        check_metric(
            lambda p, labels: metrics.log_loss(labels, p, labels=list(range(p.shape[1]))), kind
        )


def test_scikit_learn_s_brier_score_of_two_classes_is_halved_unless_asked():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")

    def brier(p, labels, **options):
        classes = list(range(p.shape[1]))
        if p.shape[1] == 2:
            return metrics.brier_score_loss(labels, p[:, 1], labels=classes, **options)
        return metrics.brier_score_loss(labels, p, labels=classes, **options)

    check_metric(lambda p, labels: brier(p, labels, scale_by_half=False), "brier")
    with pytest.raises(Falsified):
        check_metric(brier, "brier")
