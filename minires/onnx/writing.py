"""The same ONNX file with other weights.

Where the numbers of an array lie in the file as plain bytes, and they nearly always do, the new
ones are written over them and not another byte changes. Otherwise the message is built again by
protobuf: an array that was stored number by number becomes plain bytes; one that the file
*computes* from others (a batch norm's scale over its deviation, say) becomes an initialiser of
the same type, which takes its name from the node that computed it. Initialisers in a second
file stay in a second file; the rest of what lies there comes into the first.
"""

import os

import numpy as np

from minires.arrays import to_host
from minires.arrays.files import complete
from minires.onnx.reading import EXTERNAL, fields, import_onnx, narrow, stored_dtype

# Fields of the protobuf messages, by the numbers that onnx.proto gives them.
GRAPH = 7
INITIALIZER, NODE = 5, 1
ATTRIBUTE, TENSOR = 5, 5
NUMBERS = (4, 9, 10)  # float_data, raw_data, double_data
FLOAT = 1
ALIGNMENT = 4096  # of arrays in a second file, so that they can be mapped


def save(network, path, theta=None, stats=None):
    """Write a network back to an ONNX file, with the same graph.

    network   as loaded
    path      of the new file; arrays that the network's own file keeps in others go to
              `path` + ".data"
    theta     (P,) weights; the file's own without it
    stats     (S,) batch-norm statistics; the file's own without it
    Raises    ValueError when a vector does not fit, is in another layout, holds NaN, or a
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
    if changed:  # what the file computes from an array must not follow it, if it is a weight
        computed = {name: a for name, a in arrays.items() if _tensor_of(network, name) is None}
        changed = computed | changed
    tensors = {name: _tensor_of(network, name) for name in changed}
    data = None if _reaches_outside(network) else _overwrite(network, changed, tensors)
    if data is not None:
        _write(path, [data])
        return
    model = _rebuild(network, changed, tensors)
    if any(tensor.data_location == EXTERNAL for tensor in model.graph.initializer):
        _write_external(network, model, path, changed)
    _write(path, [model.SerializeToString()])


def _check_layout(network, theta):
    """Raise when θ is the file's own, but in the order of a network that was built here.

    The two differ behind a Flatten: a file may read the channels first, (C, H, W), a network built
    here reads the pixels first, (H, W, C). Fine-tuning moves θ by less than such a change of order.
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
            "the order (H, W, C) of a network that was built here. Write that network with "
            "minires.onnx.export(model, theta, stats, path)"
        )


def _reaches_outside(network):
    """Whether any of the file's numbers lie in another file."""
    graph = network.graph.model.graph
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    tensors = (*graph.initializer, *(a.t for a in attributes if a.HasField("t")))
    return any(tensor.data_location == EXTERNAL for tensor in tensors)


def _tensor_of(network, name):
    """The message that holds an array: an initialiser, a Constant node's, or None."""
    if name in network.graph.location:
        return network.graph.location[name]
    node = network.graph.model.graph.node[network.maker[name].index]
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return node.attribute[0].t
    return None


def _bytes_for(tensor, array):
    """An array as a tensor of the given type stores it: little-endian bytes."""
    dtype = stored_dtype(tensor).newbyteorder("<")
    try:
        return narrow(array, tensor.data_type).astype(dtype).tobytes()
    except ValueError as error:
        raise ValueError(f"save: {tensor.name!r}: {error}") from None


def _overwrite(network, changed, tensors):
    """The file's bytes with new numbers over the old ones, or None where that cannot be."""
    if None in tensors.values():
        return None
    data = bytearray(network.serialized)
    places = _places(network.serialized)
    for name, array in changed.items():
        maker = network.maker.get(name)
        key = ("node", maker.index) if maker else ("initializer", name)
        content = _bytes_for(tensors[name], array)
        place = places.get(key)
        if place is None or place[1] - place[0] != len(content):
            return None
        data[slice(*place)] = content
    return data


def _places(data):
    """Where the numbers of every tensor that keeps them as plain bytes lie in a file.

    Returns   ("initializer", name) or ("node", index) → (start, end)
    """

    def parts(span, number):
        return [(b, e) for n, wire, b, e in fields(data, *span) if n == number and wire == 2]

    (graph,) = parts((0, len(data)), GRAPH)
    places = {}

    def note(key, tensor):
        found = [(b, e) for n, w, b, e in fields(data, *tensor) if n in NUMBERS and w == 2]
        if len(found) == 1:
            places[key] = found[0]

    for tensor in parts(graph, INITIALIZER):
        names = parts(tensor, 8)
        if len(names) == 1:
            note(("initializer", data[slice(*names[0])].decode()), tensor)
    for index, node in enumerate(parts(graph, NODE)):
        tensors = [t for attribute in parts(node, ATTRIBUTE) for t in parts(attribute, TENSOR)]
        if len(tensors) == 1:
            note(("node", index), tensors[0])
    return places


def _rebuild(network, changed, tensors):
    """The model as a message, with new arrays (initialisers in other files apart)."""
    onnx = import_onnx()
    model = onnx.ModelProto.FromString(network.serialized)
    graph = model.graph
    for new, old in zip(graph.node, network.graph.model.graph.node, strict=True):
        for attribute, read in zip(new.attribute, old.attribute, strict=True):
            if attribute.HasField("t") and attribute.t.data_location == EXTERNAL:
                attribute.t.ClearField("data_location")
                attribute.t.ClearField("external_data")
                _fill(attribute.t, read.t.raw_data)
    by_name = {tensor.name: tensor for tensor in graph.initializer}
    for name, array in changed.items():
        old = tensors[name]
        if name in by_name:
            if by_name[name].data_location != EXTERNAL:
                _fill(by_name[name], _bytes_for(old, array))
        elif old is not None:
            node = graph.node[network.maker[name].index]
            _fill(node.attribute[0].t, _bytes_for(old, array))
        else:
            kind = _element_type(network, name)
            new = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
            new.raw_data = _bytes_for(new, array)
            graph.initializer.append(new)
            if model.ir_version < 4:  # then every initialiser is an input too
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    _unmake(network, graph, [name for name, old in tensors.items() if old is None])
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
    """Let no node compute the given names any more: they are initialisers now."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for index in sorted({network.maker[name].index for name in names}, reverse=True):
        node = graph.node[index]
        if all(name in names for name in node.output if name):
            del graph.node[index]
            continue
        for place, name in enumerate(node.output):  # the others are still wanted
            if name in names:
                while name in taken:
                    name += "_computed"
                taken.add(name)
                node.output[place] = name


def _fill(tensor, content):
    """Give a tensor other numbers, as plain bytes."""
    for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
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
