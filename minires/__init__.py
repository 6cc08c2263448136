"""minires: better networks by weight resampling, from scratch in NumPy and CuPy.

    model = minires.lenet()
    theta = model.init(rng)                                     # (P,) float32
    loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
    theta -= rate * gradient                                    # eq. 1
    moments.update(theta)                                       # eqs. 2-3
    probabilities = model.predict(moments.mean, images)         # (N, classes)
    members = moments.sample(10, rng)                           # (10, P)
    ensemble = model.predict(members, images).mean(axis=0)      # (N, classes)

Source   Liu, Tripathi, Kurup and Shah, "Make (Nearly) Every Neural Network Better: Generating
         Neural Network Ensembles by Weight Parameter Resampling", arXiv:1807.00847
"""

import importlib

from minires.arrays import set_threads, to_device, to_host, xp_of
from minires.networks import inception_v3, lenet, lenet_classic, mobilenet_v1, mobilenet_v2
from minires.networks.model import Model
from minires.networks.running_statistics import batch_norm_policies, reestimate_stats
from minires.resampling.moments import Moments
from minires.training.optimizers import SGD, Adam

__version__ = "0.2.0"


def __getattr__(name):
    """`minires.onnx` is read when it is first asked for."""
    if name == "onnx":
        return importlib.import_module("minires.onnx")
    raise AttributeError(f"module 'minires' has no attribute {name!r}")


__all__ = [
    "SGD",
    "Adam",
    "Model",
    "Moments",
    "batch_norm_policies",
    "inception_v3",
    "lenet",
    "lenet_classic",
    "mobilenet_v1",
    "mobilenet_v2",
    "reestimate_stats",
    "set_threads",
    "to_device",
    "to_host",
    "xp_of",
]
