"""A model: an architecture, and the map from names to slices of one weight vector.

The paper speaks of θ ∈ ℝᴾ, and so does the code. All trainable weights are one contiguous
vector `theta` that the caller holds; a model holds none. Each layer sees its weights as views
of `theta`, and their gradients are written straight into views of one gradient vector. SGD,
running moments, resampling and checkpoints are then expressions on vectors.
"""

import contextlib
import copy
import functools
import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minires.arrays import (
    aligned,
    checks,
    empty_beside,
    restored_on_error,
    to_device,
    to_host,
    xp_of,
)
from minires.arrays.files import load_arrays, save_arrays
from minires.arrays.text import table
from minires.engine import ops
from minires.engine.autodiff import gradients, variable
from minires.kernels import runs_as_written
from minires.kernels.memory import empty
from minires.networks.folding import can_fold, fold_weights, folded_network, joined_network
from minires.networks.layers import Layer, Shape
from minires.networks.protocol import Array

PIXELS = 16 * 224 * 224  # of images that are predicted at once

MODES = ("train", "predict", "measure")


@dataclass(frozen=True, slots=True)
class Entry:
    """One named array within a vector.

    name         such as "conv2d_1.weight"
    start        the place of its first number in the vector
    shape        of the array
    initializer  a function from `minires.networks.layers` that makes its first values; None for
                 an array that is read from a file
    fans         (inputs, outputs) of a weight, which some initializers need
    """

    name: str
    start: int
    shape: Shape
    initializer: Callable | None = None
    fans: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def view(self, vector: Array) -> Array:
        """This array as a view of a vector.

        vector   (…, P)
        Returns  (…, *shape)
        """
        part = vector[..., self.start : self.start + self.size]
        return part.reshape((*vector.shape[:-1], *self.shape))


class Layout:
    """Where each array lies: the weights in θ, the statistics in `stats`.

    weights      [Entry, …] in the order of θ
    statistics   [Entry, …] in the order of stats
    rows         [(name, layer, input shape, output shape), …]: every layer, in order
    """

    def __init__(self):
        self.weights: list[Entry] = []
        self.statistics: list[Entry] = []
        self.rows: list[tuple[str, Layer, Shape, Shape]] = []
        self._of: dict[Layer, dict[str, Entry]] = {}
        self._path: list[str] = []
        self._used: dict[tuple[str, str], int] = {}

    def connect(self, layer: Layer, shape: Shape) -> Shape:
        """Let one part of a network declare its arrays, under its own name.

        layer    the part
        shape    of its input, without the batch
        Returns  the shape of its output
        Raises   TypeError when the part answers with anything but a shape
        """
        with self._scope(layer):
            output = layer.connect(shape, self)
            if not isinstance(output, tuple):
                raise TypeError(
                    f"{layer.kind}.connect returned {output!r}, expected a tuple: the shape of "
                    "its output without the batch"
                )
            self.rows.append((".".join(self._path), layer, shape, output))
        return output

    @contextlib.contextmanager
    def _scope(self, layer):
        """Within, names begin with that of `layer`."""
        prefix = ".".join(self._path)
        kind = layer.name or layer.kind.lower()
        number = self._used[prefix, kind] = self._used.get((prefix, kind), 0) + 1
        self._path.append(layer.name or f"{kind}_{number}")
        try:
            yield
        finally:
            self._path.pop()

    def add(
        self,
        layer: Layer,
        name: str,
        shape: Shape,
        initializer: Callable,
        fans: tuple[int, int] = (1, 1),
    ) -> Entry:
        """Declare a trainable array.

        layer        that owns it
        name         within the layer, such as "weight"
        shape        of the array
        initializer  a function from `minires.networks.layers`
        fans         (inputs, outputs), which some initializers need
        Returns      Entry; a layer that is in the network twice gets the same Entry both times
        Raises       ValueError when the two places need different shapes
        """
        return self._declare(self.weights, layer, name, shape, initializer, fans)

    def add_statistic(self, layer: Layer, name: str, shape: Shape, initializer: Callable) -> Entry:
        """Declare an array that training updates but no gradient reaches.

        layer, name, shape, initializer, Returns, Raises   as for `add`
        """
        return self._declare(self.statistics, layer, name, shape, initializer, (1, 1))

    def _declare(self, entries, layer, name, shape, initializer, fans):
        own, shape = self._of.setdefault(layer, {}), tuple(shape)
        if name in own:
            if own[name].shape != shape:
                raise ValueError(
                    f"{'.'.join(self._path)}: this very layer stands in the network already, with "
                    f"{name} {own[name].shape}, and here it would need {shape}: make another "
                    "layer with the same settings"
                )
            return own[name]
        start = entries[-1].start + entries[-1].size if entries else 0
        full_name = ".".join([*self._path, name])
        if any(entry.name == full_name for entry in entries):
            raise ValueError(
                f"two layers have the name {full_name!r}: give one of them another name"
            )
        entries.append(Entry(full_name, start, shape, initializer, fans))
        own[name] = entries[-1]
        return entries[-1]

    @property
    def owners(self) -> set[Layer]:
        """The layers that have arrays."""
        return set(self._of)

    def of(self, layer: Layer) -> dict[str, Entry]:
        """The arrays of one layer: {"weight": Entry, …}.

        layer    a part of the network
        """
        return self._of.get(layer, {})

    def __getitem__(self, key: "str | tuple[Layer, str]") -> Entry:
        """An entry by its full name, or by (layer, name within it)."""
        if not isinstance(key, str):
            layer, name = key
            return self._of[layer][name]
        for entry in (*self.weights, *self.statistics):
            if entry.name == key:
                return entry
        known = ", ".join(entry.name for entry in (*self.weights, *self.statistics))
        raise KeyError(f"no array is named {key!r}; there are {known}")


class ForwardPass:
    """One pass through a network: where layers find their weights, and what it is for.

    layout     the Layout of the network
    theta      (P,) or (R, P)
    stats      (S,) or (R, S)
    mode       "predict": dropout does nothing, batch norm uses the running statistics;
               "train": dropout drops, batch norm uses the batch's own and updates `stats` in place;
               "measure": like "predict", but batch norm as in "train", with `momentum`
    rng        for dropout: a Generator, or a list of R
    gradient   like theta, where the gradient will be written; None: no gradient is wanted
    momentum   in "measure": the share of the old statistics that is kept

    `auxiliary` collects [(weight, logits), …], which auxiliary heads add to the loss.
    """

    def __init__(
        self,
        layout: Layout,
        theta: Array,
        stats: Array = None,
        mode: str = "predict",
        rng: Any = None,
        gradient: Array = None,
        momentum: float = 0.0,
    ):
        self.layout, self.theta, self.stats = layout, theta, stats
        self.mode = checks.one_of("ForwardPass", "mode", mode, MODES)
        self.rng, self.gradient, self.momentum = rng, gradient, momentum
        weights = layout.weights if gradient is not None else ()
        self.variables = {e.name: variable(e.view(theta), e.view(gradient)) for e in weights}
        self.auxiliary = []

    def __getitem__(self, key: tuple[Layer, str]) -> Any:
        """A layer's weights: a view of θ, or in training a variable with a view of the gradient."""
        entry = self.layout[key]
        return self.variables[entry.name] if self.variables else entry.view(self.theta)

    def statistic(self, layer: Layer, name: str) -> Array:
        """A layer's running statistic, as a view of `stats`.

        layer   the layer
        name    "mean" or "variance"
        """
        return self.layout[layer, name].view(self.stats)


class Model:
    """A network for images of one shape: a `minires.networks.protocol.Classifier`.

        model = Model((28, 28, 1), Sequential(Flatten(), Dense(10)))
        theta = model.init(rng)

    input_shape   (H, W, C)
    network       the layer that maps (…, N, H, W, C) to logits (…, N, classes). Layers hold no
                  weights, so they may stand in other models too
    smoothing     label smoothing of the training loss, 0 <= smoothing < 1
    Raises        TypeError when `network` is no layer; ValueError when a setting does not fit
    """

    fixed_batch = None  # any number of images can be given

    def __init__(self, input_shape: Shape, network: Layer, smoothing: float = 0.0):
        if not isinstance(network, Layer):
            raise TypeError(
                f"Model: network is {network!r}, expected a layer, such as "
                "Sequential(Flatten(), Dense(10))"
            )
        shape = input_shape if np.ndim(input_shape) else (input_shape,)
        shape = (checks.whole_number("Model", "input_shape", n, 1) for n in shape)
        self.input_shape: Shape = tuple(shape)
        self.smoothing = checks.number_in("Model", "smoothing", smoothing, 0, 1)
        # How many images `logits` and `predict` take at once.
        self.batch = max(1, min(256, PIXELS // math.prod(self.input_shape[:2])))
        self._connect(network)

    def _connect(self, network):
        """Lay out the weights of a network."""
        self.network = network
        self.layout = Layout()
        output = network.connect(self.input_shape, self.layout)
        if len(output) != 1:
            raise ValueError(f"Model: the network ends with {output}, expected (classes,)")
        self.classes: int = output[0]
        self._joined = joined_network(network)
        self._can_fold = can_fold(network, self.layout)

    def apply(self, images: Array, forward: ForwardPass) -> Any:
        """One pass through the network: as it is written with plain kernels, else joined.

        images   (…, N, H, W, C)
        forward  a ForwardPass: the weights, and what the pass is for
        Returns  logits (…, N, classes)
        """
        return (self.network if runs_as_written() else self._joined).apply(images, forward)

    @property
    def folds(self) -> bool:
        """Whether predictions fold batch norm into the weights: not with plain kernels."""
        return self.stats_size > 0 and self._can_fold and not runs_as_written()

    @property
    def size(self) -> int:
        """P, the number of trainable weights."""
        return sum(entry.size for entry in self.layout.weights)

    @property
    def stats_size(self) -> int:
        """S, the number of statistics (0 without batch norm)."""
        return sum(entry.size for entry in self.layout.statistics)

    def init(
        self,
        rng: Any,
        replicas: int | None = None,
        dtype: Any = np.float32,
        device: str = "cpu",
    ) -> Array:
        """Choose random initial weights.

        rng       a Generator, or a list of R of them for R networks
        replicas  R, to make R networks from one Generator
        dtype     float32 or float64
        device    "cpu" or "gpu": where they are kept. They are made on the host, so both
                  get the same
        Returns   theta (P,) or (R, P); on a GPU `aligned`, so that it may be a part of an array
        Raises    TypeError when rng is no Generator; ValueError for another dtype
        """
        _check_dtype("init", dtype)
        if replicas is not None:
            replicas = checks.whole_number("Model.init", "replicas", replicas, 1)
            rng = checks.generator_of("Model.init", rng).spawn(replicas)
        if isinstance(rng, (list, tuple)):
            theta = np.stack([self.init(generator, dtype=dtype) for generator in rng])
        else:
            checks.generator_of("Model.init", rng)
            theta = np.empty(self.size, dtype)
            for entry in self.layout.weights:
                entry.view(theta)[...] = entry.initializer(rng, entry.shape, *entry.fans)
        return aligned(to_device(theta, device))

    def init_stats(
        self, replicas: int | None = None, dtype: Any = np.float32, device: str = "cpu"
    ) -> Array:
        """The statistics of an untrained network: mean 0 and variance 1.

        replicas  R, for R networks
        dtype     float32 or float64
        device    "cpu" or "gpu": where they are kept
        Returns   stats (S,) or (R, S)
        Raises    ValueError for another dtype
        """
        _check_dtype("init_stats", dtype)
        stats = np.empty(self.stats_size, dtype)
        for entry in self.layout.statistics:
            entry.view(stats)[...] = entry.initializer(None, entry.shape, 1, 1)
        if replicas is not None:
            stats = np.tile(stats, (replicas, 1))
        return to_device(stats, device)

    def loss_and_gradient(
        self, theta: Array, images: Array, labels: Array, stats: Array = None, rng: Any = None
    ) -> tuple[Any, Array]:
        """The mean training loss of a batch, and its gradient (the bracket of eq. 1).

        theta    (P,), or (R, P) for R networks at once; float32 or float64
        images   (N, H, W, C), dtype of theta; or (R, N, H, W, C), one batch per network
        labels   (N,) or (R, N) integers, or a list of them
        stats    (S,) or (R, S), updated in place, unless there is an error; needed with batch norm
                 only
        rng      a Generator, or a list of R; needed with dropout only
        Returns  loss: a number, or (R,); gradient: like theta
        Raises   ValueError when a shape, a dtype or a label does not fit
        """
        stats = self._check("loss_and_gradient", theta, images, stats)
        if rng is not None:
            checks.generator_of("loss_and_gradient", rng)
        gradient = empty_beside(theta)
        forward = ForwardPass(self.layout, theta, stats, "train", rng, gradient)
        with restored_on_error(stats):
            logits = self.apply(images, forward)
            loss = ops.softmax_cross_entropy(logits, labels, smoothing=self.smoothing)
            for weight, logits in forward.auxiliary:
                head = ops.softmax_cross_entropy(logits, labels, smoothing=self.smoothing)
                loss = loss + weight * head
            gradients(loss, forward.variables.values())
        return loss.data[()], gradient  # a number, not an array of no axes

    def measure(self, theta: Array, images: Array, stats: Array, momentum: float) -> None:
        """Move the batch-norm statistics towards those of one batch; no training.

        stats ← momentum · stats + (1 − momentum) · (mean and variance of this batch)

        Every batch-norm layer normalises by the batch, as in training. Dropout does nothing,
        since the statistics are measured for predictions.

        theta     (P,) or (R, P); left as it is
        images    (N, H, W, C), or (R, N, H, W, C), dtype of theta
        stats     (S,) or (R, S), float32 or float64, updated in place
        momentum  the share of the old statistics that is kept, from 0 to 1
        Raises    ValueError when a shape or a dtype does not fit
        """
        checks.theta_for("measure", theta, self.size)
        checks.images_for("measure", images, theta, self.input_shape)
        expected = (*theta.shape[:-1], self.stats_size)
        if stats.shape != expected:
            raise ValueError(f"measure: stats is {stats.shape}, expected {expected}")
        forward = ForwardPass(self.layout, theta, stats, "measure", momentum=momentum)
        self.apply(images, forward)

    def logits(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """The network's outputs before the softmax.

        theta    (P,), or (R, P): R networks in one pass over the images
        images   (N, H, W, C), or (R, N, H, W, C), dtype of theta
        stats    (S,) or (R, S); needed with batch norm only
        batch    how many images to take at once; `self.batch` without it
        Returns  (N, classes), or (R, N, classes), dtype of theta
        Raises   ValueError when a shape or a dtype does not fit, or batch is below 1
        """
        stats = self._check("logits", theta, images, stats)
        step = checks.batch_of("logits", batch) or self.batch
        model, forward = self, ForwardPass(self.layout, theta, stats)
        if self.folds:
            model, theta = self.fold(theta, stats)
            forward = ForwardPass(model.layout, theta)
        count = images.shape[-4]
        result = xp_of(theta).empty((*theta.shape[:-1], count, self.classes), theta.dtype)
        for start in range(0, count, step):
            part = slice(start, start + step)
            result[..., part, :] = model.apply(images[..., part, :, :, :], forward)
        return result

    def predict(
        self, theta: Array, images: Array, stats: Array = None, batch: int | None = None
    ) -> Array:
        """Class probabilities: softmax(logits).

        theta, images, stats, batch, Raises   as for `logits`
        Returns  (N, classes), or (R, N, classes), dtype of theta; each row sums to 1
        """
        return ops.softmax(self.logits(theta, images, stats, batch))

    def arrays(self, theta: Array) -> dict[str, Array]:
        """Every weight array by name.

        theta    (P,) or (R, P)
        Returns  {"conv2d_1.weight": view of theta, …}: writing into an array changes theta
        Raises   ValueError when theta does not fit
        """
        checks.theta_for("arrays", theta, self.size)
        return {entry.name: entry.view(theta) for entry in self.layout.weights}

    def save(self, path: str | Path, theta: Array, stats: Array = None) -> None:
        """Write weights and statistics to one .npz file, with the layout that they belong to.

        path     the file's name, used as it is; it appears only when it is complete
        theta    (P,) or (R, P)
        stats    (S,) or (R, S); needed with batch norm only
        Raises   ValueError when theta or stats does not fit; OSError
        """
        checks.theta_for("save", theta, self.size)
        stats = checks.stats_for("save", stats, theta, self.stats_size)
        arrays = {"theta": to_host(theta), "stats": to_host(stats)}
        save_arrays(path, format=np.array(_FORMAT), layout=np.array(self._described()), **arrays)

    def load(self, path: str | Path, device: str = "cpu") -> tuple[Array, Array]:
        """Read what `save` wrote, once the file's layout is known to be this model's.

        path     a file written by `save`
        device   "cpu" or "gpu": where the arrays are to live
        Returns  theta, stats
        Raises   FileNotFoundError; ValueError when the file is damaged, or another network's
        """
        content = load_arrays(path, "format", "layout", "theta", "stats")
        if str(content["format"]) != _FORMAT:
            raise ValueError(f"{path} was not written by Model.save: expected format {_FORMAT!r}")
        theirs, ours = str(content["layout"]).split("\n"), self._described().split("\n")
        if theirs != ours:
            only = [line for line in theirs if line not in ours]
            lacks = [line for line in ours if line not in theirs]
            raise ValueError(
                f"{path} holds another network's weights: it has "
                f"{', '.join(only[:3]) or 'the arrays in another order'}, this model has "
                f"{', '.join(lacks[:3]) or 'nothing else'}"
            )
        theta = checks.theta_for(f"load: {path}", content["theta"], self.size)
        stats = checks.stats_for(f"load: {path}", content["stats"], theta, self.stats_size)
        return to_device(theta, device), to_device(stats, device)

    def _described(self):
        """The layout as text: what `load` compares."""
        entries = *self.layout.weights, *self.layout.statistics
        shape = f"input {_times(self.input_shape)}"
        return "\n".join([shape, *(f"{entry.name} {_times(entry.shape)}" for entry in entries)])

    def fold(self, theta: Array, stats: Array) -> "tuple[Model, Array]":
        """A network without batch norm that predicts the same, up to rounding.

        theta    (P,) or (R, P)
        stats    (S,) or (R, S)
        Returns  a Model, and its weights (P',) or (R, P'): see `minires.networks.folding`
        Raises   ValueError when theta or stats does not fit; TypeError when a layer with parts or
                 statistics is not of a kind of this library
        """
        if not self._can_fold:
            raise TypeError("fold: layers with parts or statistics are not all of minires' kinds")
        checks.theta_for("fold", theta, self.size)
        stats = checks.stats_for("fold", stats, theta, self.stats_size)
        folded, origins = self._folded
        make = empty if xp_of(theta) is np else xp_of(theta).empty
        result = make((*theta.shape[:-1], folded.size), theta.dtype)
        fold_weights(origins, self.layout, folded.layout, theta, stats, result)
        return folded, result

    @functools.cached_property
    def _folded(self):
        network, origins = folded_network(self.network)
        folded = copy.copy(self)
        folded._connect(network)
        return folded, origins

    def _check(self, where, theta, images, stats):
        """Raise unless the arrays fit the model and one another; return the statistics."""
        checks.theta_for(where, theta, self.size)
        checks.images_for(where, images, theta, self.input_shape)
        return checks.stats_for(where, stats, theta, self.stats_size)

    def _rows(self):
        """The cells of `summary`: (name, output shape, number of weights, arrays)."""
        rows = []
        for name, layer, _, after in self.layout.rows:
            own = [e for e in self.layout.weights if e.name.rpartition(".")[0] == name]
            if layer.parts and not own:
                continue  # its parts have rows of their own
            shapes = ", ".join(f"{e.name.rpartition('.')[2]} {_times(e.shape)}" for e in own)
            rows.append(
                (name, _times(after), f"{sum(e.size for e in own):,}" if own else "", shapes)
            )
        return rows

    def _total(self):
        total = f"input {_times(self.input_shape)}, {self.size:,} weights"
        return total + (f", {self.stats_size:,} statistics" if self.stats_size else "")

    def summary(self) -> str:
        """The layers as a table: name, output shape, number of weights, their arrays."""
        return f"{table(_HEAD, [*self._rows(), None], align='lrrl')}\n{self._total()}"

    def __repr__(self) -> str:
        return f"<Model: {self._total()}, {self.classes} classes, {len(self._rows())} layers>"

    def _repr_html_(self) -> str:
        """The table of `summary`, for a notebook."""

        def row(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self._rows())
        caption = f"<caption>{html.escape(self._total())}</caption>"
        return f"<table>{caption}<thead>{row(_HEAD, 'th')}</thead><tbody>{body}</tbody></table>"


_HEAD = ("layer", "output", "weights", "arrays")
_FORMAT = "minires weights 1"


def _times(shape):
    return "×".join(map(str, shape))


def _check_dtype(where, dtype):
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"Model.{where}: dtype is {dtype!r}, expected float32 or float64")
