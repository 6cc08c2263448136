"""θ and statistics from PyTorch's `state_dict`, and back. PyTorch itself is not needed.

    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    theta, stats = from_state_dict(model, state)
    state = to_state_dict(model, theta, stats, like=state)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

Both know the same layers in the same order; the arrays lie differently:

                  PyTorch             here
    convolution   (O, C, kh, kw)      (kh, kw, C, O)
    depthwise     (C, 1, kh, kw)      (kh, kw, C)
    dense         (out, in)           (in, out)
    behind Flatten  in = C·H·W        in = H·W·C: the rows are in another order (batch norm too)
    batch norm    weight, bias, running_mean, running_var    scale, shift, mean, variance
"""

from collections.abc import Mapping

import numpy as np

from minires.networks import layers
from minires.networks.model import Model
from minires.networks.protocol import Array

NAMES = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}


def _pairs(model, state):
    """For each array of a model: (entry, name in the state_dict, to ours, to theirs)."""
    groups = {}
    for name in state:
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, []).append(last)
    waiting = list(groups.items())
    flattened = None
    for path, layer, before, _ in model.layout.rows:
        if isinstance(layer, layers.Flatten):
            flattened = before
        own = model.layout.of(layer)
        if not own:
            continue
        if not waiting:
            raise ValueError(f"from_state_dict: nothing is left for the layer {path}")
        prefix, found = waiting.pop(0)
        is_norm = isinstance(layer, layers.BatchNorm)  # its num_batches_tracked is not among NAMES
        names = {
            NAMES[last] if is_norm else last: last for last in found if not is_norm or last in NAMES
        }
        if set(names) != set(own):
            raise ValueError(
                f"from_state_dict: the layer {path} has {sorted(own)}, {prefix!r} has {found}"
            )
        for name, last in names.items():
            entry = own[name]
            forth, back = _laid_out(layer, name, entry.shape, flattened)
            yield entry, f"{prefix}.{last}" if prefix else last, forth, back
        if isinstance(layer, layers.Dense):
            flattened = None
    if waiting:
        raise ValueError(f"from_state_dict: the model has no layer for {waiting[0][0]!r}")


def _laid_out(layer, name, shape, flattened):
    """Functions from PyTorch's array to ours, and back."""
    if isinstance(layer, layers.BatchNorm) and flattened is not None:
        high, wide, depth = flattened
        return (
            lambda a: a.reshape(depth, high, wide).transpose(1, 2, 0).reshape(shape),
            lambda a: a.reshape(high, wide, depth).transpose(2, 0, 1).reshape(shape),
        )
    if name != "weight":
        return np.asarray, np.asarray
    if isinstance(layer, layers.DepthwiseConv2D):
        return lambda a: a[:, 0].transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1)[:, None]
    if isinstance(layer, layers.Conv2D):
        return lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
    if flattened is None or flattened[:2] == (1, 1):
        return np.transpose, np.transpose
    high, wide, depth = flattened

    def forth(a):
        return a.reshape(-1, depth, high, wide).transpose(2, 3, 1, 0).reshape(shape)

    def back(a):
        return a.reshape(high, wide, depth, -1).transpose(3, 2, 0, 1).reshape(-1, shape[0])

    return forth, back


def from_state_dict(model: Model, state: Mapping[str, Array]) -> tuple[Array, Array]:
    """The weights and statistics of a model, from PyTorch's.

    model    a minires.Model
    state    dict of arrays by name, in the order of the module's layers
    Returns  theta (P,), stats (S,), float32
    Raises   ValueError when layers or shapes differ
    """
    theta = np.empty(model.size, np.float32)
    stats = np.empty(model.stats_size, np.float32)
    for entry, name, forth, _ in _pairs(model, state):
        array = forth(np.asarray(state[name]))
        if array.shape != entry.shape:
            raise ValueError(
                f"from_state_dict: {name} is {np.shape(state[name])}, which makes {array.shape}; "
                f"{entry.name} is {entry.shape}"
            )
        entry.view(stats if entry in model.layout.statistics else theta)[...] = array
    return theta, stats


def to_state_dict(
    model: Model, theta: Array, stats: Array | None, like: Mapping[str, Array]
) -> dict[str, Array]:
    """The arrays of a PyTorch module, from the weights of a model.

    model         a minires.Model
    theta, stats  (P,) and (S,); stats None without batch norm
    like          a state_dict of the module, arrays by name: for the names, and for what the model
                  does not have, such as num_batches_tracked
    Returns       dict of arrays with the names of `like`
    Raises        ValueError when layers or shapes differ
    """
    state = {name: np.array(array) for name, array in like.items()}
    for entry, name, _, back in _pairs(model, like):
        vector = stats if entry in model.layout.statistics else theta
        array = back(entry.view(vector))
        if array.shape != state[name].shape:
            raise ValueError(f"to_state_dict: {name} is {state[name].shape}, ours {array.shape}")
        state[name] = np.ascontiguousarray(array, state[name].dtype)
    return state
