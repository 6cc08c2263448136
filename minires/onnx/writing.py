"""The same ONNX file with other weights.

Only the numbers change. An array keeps its type, and is stored as plain bytes, as nearly all files
store it. An array that the file *computes* from others (for example a batch norm's scale divided by
its deviation) becomes an initialiser of the same type, with the name that its node gave it.
Initialisers in a second file stay in a second file; other arrays there move into the first file.
"""

import os
from pathlib import Path

import numpy as np

from minires.arrays import Array, to_host
from minires.arrays.files import complete
from minires.onnx.graph import Network
from minires.onnx.reading import EXTERNAL, LISTS, import_onnx, narrow, stored_dtype

FLOAT = 1  # ONNX's number of float32
ALIGNMENT = 4096  # arrays in a second file begin at multiples of it, so they can be mapped


def save(network: Network, path: str | Path, theta: Array = None, stats: Array = None) -> None:
    """Write a network back to an ONNX file, with the same graph.

    network   from `minires.onnx.load`
    path      of the new file; initialisers that the network's own file keeps in other files go to
              `path` + ".data"
    theta     (P,) weights; None: the file's own
    stats     (S,) batch-norm statistics; None: the file's own
    Raises    ValueError when a vector does not fit, is in another layout or holds NaN, or when a
              number is too large for the type in which the file keeps it; OSError when the file
              cannot be written
    """
    path = os.fspath(path)
    for name, given, own in (("theta", theta, network.theta), ("stats", stats, network.stats)):
        if given is not None and given.shape != own.shape:
            raise ValueError(f"save: {name} is {given.shape}, this network has {own.shape}")
        if given is not None and not np.isfinite(to_host(given)).all():
            raise ValueError(f"save: {name} holds NaN or infinite numbers: training has diverged")
    if theta is not None:
        _check_layout(network, to_host(theta))
    arrays = network.arrays(
        *(to_host(own if given is None else given)
          for given, own in ((theta, network.theta), (stats, network.stats)))
    )  # fmt: skip
    changed = {
        name: array
        for name, array in arrays.items()
        if not np.array_equal(array, network.static[name].plain)
    }
    computed = []
    if changed:  # a weight that the file computes from another must not change with it: write it
        made = [name for name in arrays if name not in network.graph.location]
        graph = network.graph.model.graph
        computed = [name for name in made if _constant(network, graph, name) is None]
        changed = {name: arrays[name] for name in computed} | changed
    model = _with_arrays(network, changed, computed)
    if any(tensor.data_location == EXTERNAL for tensor in model.graph.initializer):
        _write_external(network, model, path, changed)
    _write(path, [model.SerializeToString()])


def _check_layout(network, theta):
    """Raise when θ is the file's own, but in the order of a network of this library.

    The two differ behind a Flatten: a file may have the channels first, (C, H, W), a network of
    this library has them last, (H, W, C). Fine-tuning moves θ by less than such a change of order.
    """
    other = network.theta.copy()
    for node, (depth, high, wide) in network.flattened:
        weights = network.layout[node.inputs[1]].view(other)
        first = weights.reshape(depth, high, wide, -1).transpose(1, 2, 0, 3)
        weights[...] = first.reshape(weights.shape).copy()
    if np.array_equal(other, network.theta):
        return
    near, far = (float(np.linalg.norm(theta - own)) for own in (other, network.theta))
    if near < far / 2:
        raise ValueError(
            "save: theta is in another layout than this file: behind Flatten its weights are in "
            "the order (H, W, C) of a network of this library. Write that network with "
            "minires.onnx.export(model, theta, stats, path)"
        )


def _constant(network, graph, name):
    """The message in a graph that holds the array of a Constant node; None for other nodes."""
    node = graph.node[network.maker[name].index]
    is_tensor = node.op_type == "Constant" and node.attribute[0].name == "value"
    return node.attribute[0].t if is_tensor else None


def _bytes_for(tensor, array):
    """An array as a tensor of the given type stores it: little-endian bytes."""
    dtype = stored_dtype(tensor).newbyteorder("<")
    try:
        return narrow(array, tensor.data_type).astype(dtype).tobytes()
    except ValueError as error:
        raise ValueError(f"save: {tensor.name!r}: {error}") from None


def _with_arrays(network, changed, computed):
    """The file's message with new arrays; those that lie in a second file come later."""
    onnx = import_onnx()
    model = onnx.ModelProto()
    model.CopyFrom(network.graph.model)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in (a.t for node in graph.node for a in node.attribute if a.HasField("t")):
        if tensor.data_location == EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            _fill(tensor, tensor.raw_data)  # `reading` has put the bytes there
    for name, array in changed.items():
        if name in computed:
            kind = _element_type(network, name)
            tensor = graph.initializer.add(name=name, data_type=kind, dims=array.shape)
            if model.ir_version < 4:  # then every initialiser is an input too
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        else:
            tensor = stored[name] if name in stored else _constant(network, graph, name)
        if tensor.data_location != EXTERNAL:
            _fill(tensor, _bytes_for(tensor, array))
    _unmake(network, graph, computed)
    return model


def _element_type(network, name):
    """ONNX's number of the type of floats that the file computes."""
    while name not in network.graph.location:
        node = network.maker[name]
        if node.operator in ("Constant", "ConstantOfShape"):
            tensors = [a.t for a in network.graph.model.graph.node[node.index].attribute]
            return tensors[0].data_type if tensors and tensors[0].data_type else FLOAT
        if node.operator == "Cast":
            return node["to"]
        if node.operator == "CastLike":
            name = node.inputs[1]
            continue
        # All floats that an operator sees are of one type, and so is what it makes of them.
        name = next(n for n in node.inputs if n and network.static[n].is_float)
    return network.graph.location[name].data_type


def _unmake(network, graph, names):
    """Remove the nodes that compute the given names, which are initialisers now."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for index in sorted({network.maker[name].index for name in names}, reverse=True):
        node = graph.node[index]
        if all(name in names for name in node.output if name):
            del graph.node[index]
            continue
        for place, name in enumerate(node.output):  # its other outputs are still needed
            if name in names:
                while name in taken:
                    name += "_computed"
                taken.add(name)
                node.output[place] = name


def _fill(tensor, content):
    """Give a tensor other numbers, as plain bytes."""
    for name in LISTS:
        tensor.ClearField(name)
    tensor.raw_data = content


def _write_external(network, model, path, changed):
    """Write the second file: every initialiser that the network's own file keeps elsewhere."""
    name = os.path.basename(path) + ".data"
    target = os.path.join(os.path.dirname(os.path.abspath(path)), name)
    kept = [t for t in model.graph.initializer if t.data_location == EXTERNAL]
    folder = os.path.dirname(os.path.abspath(network.path))
    used = {
        os.path.join(folder, entry.value)
        for tensor in kept
        for entry in tensor.external_data
        if entry.key == "location"
    }
    same = os.path.realpath(path) == os.path.realpath(network.path)
    if os.path.realpath(target) in map(os.path.realpath, used) and not same:
        raise ValueError(
            f"save: {target} belongs to {network.path}, whose weights it holds: choose another name"
        )
    pieces, offset = [], 0
    for tensor in kept:
        if tensor.name in changed:
            content = _bytes_for(tensor, changed[tensor.name])
        else:
            content = network.graph.outside[tensor.name]
        gap = -offset % ALIGNMENT
        pieces += [bytes(gap), content]
        offset += gap
        del tensor.external_data[:]
        entries = {"location": name, "offset": offset, "length": len(content)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        offset += len(content)
    _write(target, pieces)


def _write(path, pieces):
    with complete(path) as file:
        for piece in pieces:
            file.write(piece)
