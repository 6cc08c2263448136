"""The networks of the paper, by name; and what they are made of: `layers`, `model`."""

from minires.networks import layers
from minires.networks.inception import inception_v3
from minires.networks.lenet import lenet, lenet_classic
from minires.networks.mobilenet import mobilenet_v1, mobilenet_v2

NETWORKS = {
    "lenet": lenet,
    "lenet_classic": lenet_classic,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "inception_v3": inception_v3,
}

__all__ = [
    "NETWORKS",
    "inception_v3",
    "layers",
    "lenet",
    "lenet_classic",
    "mobilenet_v1",
    "mobilenet_v2",
]
