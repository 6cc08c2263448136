"""The networks of the paper, by name."""

from minires.networks.lenet import lenet, lenet_classic

NETWORKS = {
    "lenet": lenet,
    "lenet_classic": lenet_classic,
}

__all__ = ["NETWORKS", "lenet", "lenet_classic"]
