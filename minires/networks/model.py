"""A model: an architecture, and the map from names to slices of one weight vector.

The paper speaks of θ ∈ ℝᴾ, and so does the code. All trainable weights are one contiguous
vector `theta` that the caller holds; a model holds none. Each layer sees its weights as views
of `theta`, and their gradients are written straight into views of one gradient vector. SGD,
running moments, resampling and checkpoints are then expressions on vectors.
"""

import contextlib
import copy
import functools
import math
from dataclasses import dataclass

import numpy as np

from minires.arrays import empty, run_tiles, single_threaded_blas, to_device, xp_of
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.kernels import runs_as_written
from minires.networks.folding import fold_weights, folded_network, joined_network

GROUP_PIXELS = 8 * 224 * 224  # of the images that one thread takes through a network at once
LEAST_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One named array within a vector."""

    name: str
    start: int
    shape: tuple
    initializer: object
    fans: tuple

    @property
    def size(self):
        return math.prod(self.shape)

    def view(self, vector):
        """This array as a view of `vector` (…, P): (…, *shape)."""
        part = vector[..., self.start : self.start + self.size]
        return part.reshape(*vector.shape[:-1], *self.shape)


class Layout:
    """From names to slices: where each weight lies in θ, each statistic in `stats`."""

    def __init__(self):
        self.weights = []
        self.statistics = []
        self.rows = []  # (name, layer, input shape, output shape) in order
        self._path = []
        self._used = {}
        self._layers = []

    @contextlib.contextmanager
    def scope(self, layer):
        """Within, names begin with that of `layer`."""
        prefix = ".".join(self._path)
        kind = layer.name or layer.kind.lower()
        number = self._used[prefix, kind] = self._used.get((prefix, kind), 0) + 1
        self._path.append(layer.name or f"{kind}_{number}")
        declared = len(self.weights)
        try:
            yield
            if layer in self._layers and len(self.weights) > declared:
                raise ValueError(
                    f"{'.'.join(self._path)}: this very layer stands in the network already, and "
                    "would forget its weights there: make another one with the same settings"
                )
            self._layers.append(layer)
        finally:
            self._path.pop()

    def add(self, name, shape, initializer, fans=(1, 1)):
        """Declare a trainable array."""
        return self._declare(self.weights, name, shape, initializer, fans)

    def add_statistic(self, name, shape, initializer):
        """Declare an array that training updates but no gradient reaches."""
        return self._declare(self.statistics, name, shape, initializer, (1, 1))

    def _declare(self, entries, name, shape, initializer, fans):
        start = entries[-1].start + entries[-1].size if entries else 0
        name = ".".join([*self._path, name])
        if any(entry.name == name for entry in entries):
            raise ValueError(f"two layers want the name {name!r}: give one another name")
        entries.append(Entry(name, start, tuple(shape), initializer, fans))
        return entries[-1]

    def record(self, layer, before, after):
        """Note a connected layer for `summary`."""
        self.rows.append((".".join(self._path), layer, before, after))

    def __getitem__(self, name):
        for entry in (*self.weights, *self.statistics):
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in (*self.weights, *self.statistics))
        raise KeyError(f"no array is named {name!r}; there are {known}")


class Run:
    """One pass through a network: its weights, and whether it trains.

    theta      (P,) or (R, P)
    stats      (S,) or (R, S), updated in place by a pass that trains
    training   whether dropout drops and batch norm uses the batch's own statistics
    rng        for dropout
    gradient   like theta: record the pass, its gradient is to be written here
    momentum   take the statistics of this batch, training or not, with this momentum
               instead of each layer's own
    auxiliary  [(weight, logits), …]: what auxiliary heads add to the loss
    """

    def __init__(self, theta, stats, training=False, rng=None, gradient=None, momentum=None):
        self.theta, self.stats = theta, stats
        self.training, self.rng, self.gradient = training, rng, gradient
        self.momentum = momentum
        self.variables = {}
        self.auxiliary = []

    def __getitem__(self, entry):
        """A weight: a plain view of θ, or in training a variable whose gradient is a view too."""
        if self.gradient is None:
            return entry.view(self.theta)
        if entry.name not in self.variables:
            out = entry.view(self.gradient)
            self.variables[entry.name] = variable(entry.view(self.theta), out)
        return self.variables[entry.name]


def _pass_through(model, images, run, result):
    """Write a model's outputs for `images` (…, N, H, W, C) to `result` (…, N, classes).

    What a few images need stays in the cache from layer to layer, so each thread takes a group
    of them through the whole network. Where that makes few groups, threads share each layer.
    """
    count, height, width = images.shape[-4:-1]
    group = max(1, GROUP_PIXELS // (height * width))

    def pass_group(number):
        part = slice(number * group, (number + 1) * group)
        result[..., part, :] = model.apply(images[..., part, :, :, :], run)

    if xp_of(images) is np and count >= LEAST_GROUPS * group:
        run_tiles(pass_group, -(-count // group))
    else:
        result[...] = model.apply(images, run)


class Model:
    """A network for images of one shape.

    input_shape   (H, W, C)
    network       the layer that maps (…, N, H, W, C) to logits (…, N, classes); the model takes
                  a copy, so that layers, which remember where their weights lie, may be used
                  for another model too
    smoothing     label smoothing of the training loss
    """

    batch = 256  # images that `logits` and `predict` take at once

    def __init__(self, input_shape, network, smoothing=0.0):
        self.smoothing = smoothing
        self._connect(input_shape, copy.deepcopy(network))

    def _connect(self, input_shape, network):
        """Lay out the weights of a network that nobody else has."""
        self.input_shape, self.network = tuple(input_shape), network
        self.layout = Layout()
        output = network.connect(self.input_shape, self.layout)
        if len(output) != 1:
            raise ValueError(f"Model: the network ends with {output}, expected (classes,)")
        self.classes = output[0]
        self._joined = joined_network(network)

    def apply(self, images, run):
        """One pass through the network: as it is written with plain kernels, else joined.

        images   (…, N, H, W, C)
        run      a Run: the weights, and whether they are trained
        Returns  logits (…, N, classes)
        """
        return (self.network if runs_as_written() else self._joined).apply(images, run)

    @property
    def size(self):
        """P, the number of trainable weights."""
        return sum(entry.size for entry in self.layout.weights)

    @property
    def stats_size(self):
        """S, the number of statistics (0 without batch norm)."""
        return sum(entry.size for entry in self.layout.statistics)

    def init(self, rng, replicas=None, dtype=np.float32, device="cpu"):
        """Draw initial weights.

        rng       a Generator, or a list of R of them for R networks
        replicas  R, to draw R networks from one Generator
        Returns   theta (P,) or (R, P)
        """
        if replicas is not None:
            rng = rng.spawn(replicas)
        if isinstance(rng, (list, tuple)):
            theta = np.stack([self.init(generator, dtype=dtype) for generator in rng])
        else:
            theta = np.empty(self.size, dtype)
            for entry in self.layout.weights:
                entry.view(theta)[...] = entry.initializer(rng, entry.shape, *entry.fans)
        return to_device(theta, device)

    def init_stats(self, replicas=None, dtype=np.float32, device="cpu"):
        """The statistics of an untrained network: (S,) or (R, S)."""
        stats = np.empty(self.stats_size, dtype)
        for entry in self.layout.statistics:
            entry.view(stats)[...] = entry.initializer(None, entry.shape, 1, 1)
        if replicas is not None:
            stats = np.tile(stats, (replicas, 1))
        return to_device(stats, device)

    @single_threaded_blas
    def loss_and_gradient(self, theta, images, labels, stats=None, rng=None):
        """The mean training loss of a batch, and its gradient (the bracket of eq. 1).

        theta    (P,), or (R, P) for R networks at once
        images   (N, H, W, C), dtype of theta; or (R, N, H, W, C), one batch a network
        labels   (N,) or (R, N) integers
        stats    (S,) or (R, S), updated in place; needed with batch norm only
        rng      a Generator, or a list of R; needed with dropout only
        Returns  loss: a number, or (R,); gradient: like theta
        Raises   ValueError when a shape or a type disagrees
        """
        stats = self._check(theta, images, stats)
        gradient = empty(theta.shape, theta.dtype, like=theta)
        run = Run(theta, stats, training=True, rng=rng, gradient=gradient)
        logits = self.apply(images, run)
        loss = ops.softmax_cross_entropy(logits, labels, smoothing=self.smoothing)
        for weight, logits in run.auxiliary:
            head = ops.softmax_cross_entropy(logits, labels, smoothing=self.smoothing)
            loss = loss + weight * head
        gradients(loss, run.variables.values())
        for entry in self.layout.weights:
            if entry.name not in run.variables:  # a weight that this pass had no use for
                entry.view(gradient)[...] = 0
        return loss.data[()], gradient  # a number, not an array of no axes

    @single_threaded_blas
    def logits(self, theta, images, stats=None, batch=None):
        """The network's outputs before the softmax, `batch` images at a time.

        theta    (P,), or (R, P): R networks in one pass over the images
        images   (N, H, W, C), or (R, N, H, W, C)
        Returns  (N, classes), or (R, N, classes)
        """
        stats = self._check(theta, images, stats)
        model, run = self, Run(theta, stats)
        if self.stats_size and not runs_as_written():
            model, theta = self.fold(theta, stats)
            run = Run(theta, None)
        xp = xp_of(theta)
        count, step = images.shape[-4], batch or self.batch
        result = xp.empty((*theta.shape[:-1], count, self.classes), theta.dtype)
        for start in range(0, count, step):
            part = slice(start, start + step)
            _pass_through(model, images[..., part, :, :, :], run, result[..., part, :])
        return result

    def predict(self, theta, images, stats=None, batch=None):
        """Class probabilities: (N, classes), or (R, N, classes). Arguments as for `logits`."""
        return ops.softmax(self.logits(theta, images, stats, batch))

    def fold(self, theta, stats):
        """A network without batch norm that predicts the same, up to rounding.

        theta    (P,) or (R, P)
        stats    (S,) or (R, S)
        Returns  a Model, and its weights (P',) or (R, P'): see `minires.networks.folding`
        """
        folded, origins = self._folded
        result = empty((*theta.shape[:-1], folded.size), theta.dtype, like=theta)
        fold_weights(origins, theta, stats, result)
        return folded, result

    @functools.cached_property
    def _folded(self):
        network, origins = folded_network(self.network)
        folded = copy.copy(self)
        folded._connect(self.input_shape, network)  # these very layers: `origins` names them
        return folded, origins

    def _check(self, theta, images, stats):
        """Raise unless the arrays fit the model and one another; return the statistics."""
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.size:
            raise ValueError(
                f"theta is {theta.shape}, this model has {self.size:,} weights: "
                f"expected ({self.size},) or (R, {self.size})"
            )
        lead = theta.shape[:-1]
        shapes = [4, 5] if lead else [4]
        if (
            images.ndim not in shapes
            or images.shape[-3:] != self.input_shape
            or (images.ndim == 5 and images.shape[0] != lead[0])
        ):
            wanted = ", ".join(map(str, self.input_shape))
            also = f" or ({lead[0]}, N, {wanted})" if lead else ""
            raise ValueError(f"images are {images.shape}, expected (N, {wanted}){also}")
        if images.dtype != theta.dtype:
            raise ValueError(
                f"images are {images.dtype}, theta is {theta.dtype}: convert the images "
                "(data_tools.scale makes float32 in [−1, 1] of bytes)"
            )
        if stats is None:
            if self.stats_size:
                raise ValueError(
                    f"this model has {self.stats_size:,} batch-norm statistics: "
                    "pass stats=, from model.init_stats()"
                )
            return xp_of(theta).empty((*lead, 0), theta.dtype)
        if stats.shape != (*lead, self.stats_size):
            raise ValueError(f"stats is {stats.shape}, expected {(*lead, self.stats_size)}")
        return stats

    def summary(self):
        """The layers as a table: name, output shape, number of weights."""
        rows = []
        for name, layer, _, after in self.layout.rows:
            own = [e for e in self.layout.weights if e.name.rpartition(".")[0] == name]
            if hasattr(layer, "layers") and not own:
                continue  # its parts have rows of their own
            shapes = ", ".join(f"{e.name.rpartition('.')[2]} {_times(e.shape)}" for e in own)
            rows.append(
                (name, _times(after), f"{sum(e.size for e in own):,}" if own else "", shapes)
            )
        head = ("layer", "output", "weights", "arrays")
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
        line = "  ".join("─" * width for width in widths)

        def text(row):
            cells = [row[0].ljust(widths[0]), row[1].rjust(widths[1])]
            cells += [row[2].rjust(widths[2]), row[3].ljust(widths[3])]
            return "  ".join(cells).rstrip()

        total = f"input {_times(self.input_shape)}, {self.size:,} weights"
        if self.stats_size:
            total += f", {self.stats_size:,} statistics"
        return "\n".join([text(head), line, *map(text, rows), line, total])


def _times(shape):
    return "×".join(map(str, shape))
