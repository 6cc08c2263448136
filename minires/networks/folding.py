"""Folding: in prediction, batch norm multiplies each channel by a number and adds another.

    scale · (w ∗ x − mean) / √(variance + ε) + shift  =  (a · w) ∗ x + (shift − a · mean)

with a = scale / √(variance + ε). So the weights of the convolution before it are multiplied by
the factor, and its bias takes the offset. Then the batch norm is no longer needed. The numbers
are the same, up to rounding, and every image is read and written once less.

Joining: a max pooling and a ReLU after a convolution are computed in the same pass, in training
too. In prediction, a pointwise, a depthwise and a pointwise convolution are one pass.
"""

import copy
import math
from typing import Any

from minires.arrays import xp_of
from minires.engine.convolution import MOST_POOLED, borders
from minires.kernels import kernels_of
from minires.kernels.plain import output_size
from minires.networks.layers import (
    Activation,
    Affine,
    AuxiliaryHead,
    BatchNorm,
    Branches,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalMeanPool,
    Layer,
    MaxPool,
    MeanPool,
    Residual,
    Sequential,
    _Chain,
)

CONTAINERS = (Sequential, Residual, Branches, AuxiliaryHead)
LEAVES = (
    Activation, Affine, BatchNorm, Conv2D, Dense, DepthwiseConv2D, Dropout, Flatten,
    GlobalMeanPool, MaxPool, MeanPool,
)  # fmt: skip


def _is(layer: Layer, *kinds: type) -> bool:
    """Whether a layer is of one of these kinds, its `connect` and `apply` not overridden."""
    own = type(layer)
    return any(
        issubclass(own, kind) and own.connect is kind.connect and own.apply is kind.apply
        for kind in kinds
    )


# --- joining ------------------------------------------------------------------------------


class JoinedConv2D(Layer):
    """A convolution, and the pooling and activation after it, in one pass.

    convolution   a Conv2D
    """

    def __init__(self, convolution: Conv2D):
        self.convolution = convolution
        self.activation, self.pool = convolution.activation, None

    def takes(self, layer: Layer) -> bool:
        """Take in the layer that follows, if possible.

        layer    the one after the convolution
        Returns  whether it was taken in
        """
        is_relu = _is(layer, Activation) and layer.function in ("relu", "relu6")
        if is_relu and self.activation is None:
            self.activation = layer.function
            return True
        # The largest of all, then cut at zero, is the same in either order.
        tiles = _is(layer, MaxPool) and layer.stride == layer.window and layer.padding == 0
        if tiles and self.pool is None and math.prod(layer.window) <= MOST_POOLED:
            self.pool = layer.window
            return True
        return False

    def apply(self, x, forward):
        return self.convolution.apply(x, forward, activation=self.activation, pool=self.pool)


class JoinedSeparable(_Chain):
    """A pointwise convolution or none, a depthwise and a pointwise one, in one pass."""

    def apply(self, x, forward):
        *first, middle, last = self.layers
        if forward.gradient is not None or x.ndim < 4:
            return super().apply(x, forward)

        def weights(layer, axes):
            weight, bias = forward[layer, "weight"], forward[layer, "bias"]
            return weight.reshape(-1, *weight.shape[-axes:]), bias.reshape(-1, bias.shape[-1])

        expand = weights(first[0].convolution, 2) if first else None
        filters, project = weights(middle, 3), weights(last.convolution, 2)
        images, size = x.reshape(-1 if x.size else 1, *x.shape[-4:]), x.shape[-3:-1]
        padding = borders(middle.padding, size, middle.kernel, middle.stride)
        channels = expand[0].shape[-2] if expand else filters[0].shape[-1]
        fits = (
            (x.shape[-1], x.dtype) == (channels, filters[0].dtype)
            and len(images) in (1, len(filters[0]))
            and min(output_size(size, middle.kernel, middle.stride, padding)) >= 1
        )
        if not fits:  # the layer that does not take it says so
            return super().apply(x, forward)
        y = kernels_of(x).separable(
            images,
            expand,
            filters,
            project,
            middle.stride,
            padding,
            [first[0].activation if first else None, middle.activation, last.activation],
        )
        return y.reshape(*forward.theta.shape[:-1], *y.shape[1:])


def _is_pointwise(layer):
    if not isinstance(layer, JoinedConv2D) or layer.pool is not None:
        return False
    own = layer.convolution
    return (
        own.kernel == own.stride == (1, 1) and own.padding in (0, "same", "valid") and own.has_bias
    )


def _join_separable(layers):
    """The same layers, separable convolutions among them joined."""
    joined = []
    for layer in layers:
        middle = joined[-1] if joined else None
        if (
            _is_pointwise(layer)
            and _is(middle, DepthwiseConv2D)
            and middle.dilation == (1, 1)
            and middle.has_bias
        ):
            start = -2 if len(joined) > 1 and _is_pointwise(joined[-2]) else -1
            layer = JoinedSeparable(*joined[start:], layer)
            del joined[start:]
        joined.append(layer)
    return joined


def joined_network(network: Layer) -> Layer:
    """The same network, pooling and activations done together with the convolutions before them.

    network  a layer, with all its parts
    Returns  a layer that takes the very same weights from the same layout; a container of another
             kind, which may do anything with its parts, stays what it is
    """
    if not _is(network, *CONTAINERS):
        return network
    twin = copy.copy(network)
    is_chain = isinstance(network, _Chain)
    layers = []
    for layer in map(joined_network, network.parts):
        before = layers[-1] if layers and is_chain else None
        if isinstance(before, JoinedConv2D) and before.takes(layer):
            continue
        layers.append(JoinedConv2D(layer) if _is(layer, Conv2D) else layer)
    twin.layers = tuple(_join_separable(layers) if is_chain else layers)
    return twin


# --- folding ------------------------------------------------------------------------------


def can_fold(network: Layer, layout: Any) -> bool:
    """Whether it is known where every layer finds its weights and statistics.

    A layer that is not of this library may have weights of its own. It may have no parts and no
    statistics, and hold no other layer, whose weights it could ask for.

    network  a layer, with all its parts
    layout   of the network
    """
    leaves, waiting = set(), [network]
    while waiting:
        layer = waiting.pop()
        if layer.parts:
            if not _is(layer, *CONTAINERS):
                return False
            waiting += layer.parts
            continue
        leaves.add(layer)
        if _is(layer, *LEAVES):
            continue
        has_statistics = any(entry in layout.statistics for entry in layout.of(layer).values())
        if has_statistics or _knows_layers(layer):
            return False
    return leaves.issuperset(layout.owners)


def _knows_layers(layer):
    """Whether an attribute of a layer is a layer, or holds some."""
    values = list(vars(layer).values())
    for value in vars(layer).values():
        values += value.values() if isinstance(value, dict) else ()
        values += value if isinstance(value, list | tuple | set) else ()
    return any(isinstance(value, Layer) for value in values)


def folded_network(network: Layer) -> tuple[Layer, list[tuple[Layer, tuple]]]:
    """The same network without batch norm and auxiliary heads, and where its weights come from.

    network  a layer, with all its parts
    Returns  a layer that no model knows yet, and a list of (layer, origin): the origin is
             (the layer it was,), or (convolution, batch norm)
    """
    origins = []
    return _folded(network, origins), origins


def _folded(layer, origins):
    if not layer.parts:
        twin = Affine(layer.activation) if _is(layer, BatchNorm) else copy.copy(layer)
        twin.name = None  # a layer that stands twice has two twins
        origins.append((twin, (layer,)))
        return twin
    twin = copy.copy(layer)
    waiting = [part for part in layer.parts if not isinstance(part, AuxiliaryHead)]
    layers = []
    while waiting:
        part = waiting.pop(0)
        if isinstance(layer, _Chain) and waiting and _merges(part, waiting[0]):
            norm = waiting.pop(0)
            merged = copy.copy(part)
            merged.has_bias, merged.activation, merged.name = True, norm.activation, None
            origins.append((merged, (part, norm)))
            layers.append(merged)
        else:
            layers.append(_folded(part, origins))
    twin.layers = tuple(layers)
    return twin


def _merges(layer, follows):
    convolution = _is(layer, Conv2D, DepthwiseConv2D) and layer.activation is None
    return convolution and _is(follows, BatchNorm)


def fold_weights(
    origins: list[tuple[Layer, tuple]],
    layout: Any,
    folded_layout: Any,
    theta: Any,
    stats: Any,
    result: Any,
) -> None:
    """Write the weights of a folded network.

    origins        as from `folded_network`
    layout         of the original network
    folded_layout  of the folded network
    theta          (P,) or (R, P): weights of the original network
    stats          (S,) or (R, S): its statistics
    result         (P',) or (R, P'), written to
    """
    for layer, (first, *norm) in origins:
        own, new = layout.of(first), folded_layout.of(layer)
        if norm:
            factor, offset = _factor_and_offset(norm[0], layout, theta, stats)
            if first.has_bias:
                offset = offset + factor * own["bias"].view(theta)
            weight = own["weight"].view(theta)
            ones = (1,) * (weight.ndim - factor.ndim)
            across = factor.reshape(*factor.shape[:-1], *ones, factor.shape[-1])
            xp_of(theta).multiply(weight, across, out=new["weight"].view(result))
            new["bias"].view(result)[...] = offset
        elif _is(first, BatchNorm):
            factor, offset = _factor_and_offset(first, layout, theta, stats)
            new["scale"].view(result)[...] = factor
            new["shift"].view(result)[...] = offset
        else:
            for name, entry in own.items():
                new[name].view(result)[...] = entry.view(theta)


def _factor_and_offset(norm, layout, theta, stats):
    """What a batch norm does to each channel: y = factor · x + offset."""
    own = layout.of(norm)
    mean, variance = own["mean"].view(stats), own["variance"].view(stats)
    factor = 1 / xp_of(theta).sqrt(variance + theta.dtype.type(norm.epsilon))
    if norm.has_scale:
        factor = factor * own["scale"].view(theta)
    return factor, own["shift"].view(theta) - factor * mean
