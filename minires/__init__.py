"""minires: better networks by weight resampling, from scratch in NumPy and CuPy.

    model = minires.lenet()
    theta = model.init(rng)                                     # (P,) float32
    loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
    theta -= rate * gradient                                    # eq. 1
    moments.update(theta)                                       # eqs. 2-3
    probabilities = model.predict(moments.mean, images)         # (N, classes)
    members = moments.sample(10, rng)                           # (10, P)
    ensemble = model.predict(members, images).mean(axis=0)      # (N, classes)

`train` and `fine_tune` do this for a `Task`; `layers` and `Model` make networks of your own;
`minires.data` gives images, `minires.onnx` reads and writes ONNX files, `minires.testing` judges
code, and `with minires.kernels("plain"):` computes without the compiled kernels.

Source   Liu, Tripathi, Kurup and Shah, "Make (Nearly) Every Neural Network Better: Generating
         Neural Network Ensembles by Weight Parameter Resampling", arXiv:1807.00847
"""

import importlib as _importlib

from minires.arrays import set_threads, to_device, to_host, xp_of
from minires.networks import (
    inception_v3,
    layers,
    lenet,
    lenet_classic,
    mobilenet_v1,
    mobilenet_v2,
)
from minires.networks.model import Model
from minires.networks.running_statistics import batch_norm_policies, reestimate_stats
from minires.resampling.averages import average
from minires.resampling.baselines import EMA, SWAG
from minires.resampling.moments import Moments
from minires.training import metrics, schedules
from minires.training.loop import Task, fine_tune, train
from minires.training.metrics import evaluate
from minires.training.optimizers import SGD, Adam

__version__ = "0.2.0"


def __getattr__(name):
    """`minires.data`, `.onnx` and `.testing` are read when they are first asked for."""
    if name in ("data", "onnx", "testing"):
        return _importlib.import_module(f"minires.{name}")
    raise AttributeError(f"module 'minires' has no attribute {name!r}")


def __dir__():
    return [*__all__, "data", "kernels", "onnx", "testing", "__version__"]


__all__ = [
    "EMA",
    "SGD",
    "SWAG",
    "Adam",
    "Model",
    "Moments",
    "Task",
    "average",
    "batch_norm_policies",
    "evaluate",
    "fine_tune",
    "inception_v3",
    "layers",
    "lenet",
    "lenet_classic",
    "metrics",
    "mobilenet_v1",
    "mobilenet_v2",
    "reestimate_stats",
    "schedules",
    "set_threads",
    "to_device",
    "to_host",
    "train",
    "xp_of",
]
