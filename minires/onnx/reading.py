"""Reads a file that may be damaged or hostile, and makes a graph that is checked.

An ONNX file is a protobuf message: fields of (number, type, length, content), nested. The `onnx`
package decodes messages, but it checks little. This file checks, in this order:

1. The bytes, before any object is made of them. Every length stays within its message, and every
   string is UTF-8. There are limits for the depth of nesting, for the number of fields, and for
   the numbers that are written one by one.
2. The operators. An error lists all that are not implemented, not only the first.
3. Every node, by the standard's own schema of its operator: attributes, their types, the number of
   inputs and outputs. Every name is defined once, before its use.
4. Every array. Its shape must agree with the number of its bytes, before memory is allocated.
   Arrays in other files are read only from regular files in the model's own folder, and only up to
   a limit for all of them.

Source   https://github.com/onnx/onnx/blob/main/docs/IR.md, docs/ExternalData.md
"""

import functools
import heapq
import math
import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minires.onnx.errors import FormatError, SecurityError, UnsupportedError

OPSETS = range(7, 29)  # the versions of the standard whose operators are implemented
DEPTH = 64  # nested messages, at most; a graph of plain nodes needs six
FIELDS = 1_000_000  # fields of the whole file, at most; a network of 1,000 nodes has about 30,000
PACKED = 1 << 27  # bytes of whole numbers in arrays that are written one by one, at most
# Fields of whole numbers: one byte of the file can become 8 bytes of an array or 40 of a list.
LISTED = dict.fromkeys(("ints", "floats", "dims"), "list")
LISTED |= dict.fromkeys(("int32_data", "int64_data", "uint64_data"), "numbers")


def import_onnx() -> ModuleType:
    """The `onnx` package.

    Raises   ImportError that says how to install it
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "ONNX files are parsed with the onnx package, which is not installed: "
            "pip install 'minires[onnx]'"
        ) from error
    return onnx


# --- bytes --------------------------------------------------------------------------------

SIGNATURES = {
    b"PK\x03\x04": "a zip archive (a PyTorch or Keras file, perhaps)",
    b"\x89HDF": "an HDF5 file (Keras, perhaps)",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"TFL3": "a TensorFlow Lite file",
}


def read_bytes(path: str | Path) -> bytes:
    """The content of a model file.

    path     of the file
    Returns  bytes
    Raises   FormatError when it is empty, too large, or recognisably something else;
             OSError when it cannot be read
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        folder = "this is a folder: name the .onnx file in it"
        is_folder = stat.S_ISDIR(status.st_mode)
        raise FormatError(f"{path}: {folder if is_folder else 'not a regular file'}")
    if status.st_size >= 1 << 31:
        raise FormatError(
            f"{path}: {status.st_size:,} bytes, but a protobuf message has less than 2 GiB: "
            "save the model with external data"
        )
    with open(path, "rb") as file:
        data = file.read()
    if not data:
        raise FormatError(f"{path}: the file is empty")
    if data.startswith(b"version https://git-lfs"):
        size = data.partition(b"size ")[2].split(b"\n")[0].decode("ascii", "replace")[:20]
        raise FormatError(
            f"{path}: this is a Git LFS pointer, not the model ({size} bytes) itself: "
            "run `git lfs pull`, or download the file"
        )
    if data[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise FormatError(
            f"{path}: this is a web page (HTML), probably an error message saved by a download: "
            "open it in a browser, then download the model again"
        )
    for signature, name in SIGNATURES.items():
        if data.startswith(signature):
            raise FormatError(f"{path}: this is {name}, not an ONNX model")
    return data


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a whole number: seven bits per byte, the lowest first.

    data      the bytes of the file
    at, end   offsets of its first byte, and of the end of its message
    Returns   the number, and the offset behind it
    Raises    FormatError when it does not end
    """
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise FormatError(f"a number at offset {at} does not end")


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Go through the fields of a message.

    data         the bytes of the file
    start, end   offsets of the message
    Yields       (number, wire type, start and end of the content)
    Raises       FormatError when a field does not end within the message
    """
    at = start
    while at < end:
        tag, begin = varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, stop = varint(data, begin, end)
        elif wire == 1:
            stop = begin + 8
        elif wire == 2:
            length, begin = varint(data, begin, end)
            stop = begin + length
        elif wire == 5:
            stop = begin + 4
        else:
            raise FormatError(
                f"field {number} at offset {at} has the unknown type {wire}: the file is not an "
                "ONNX model, or it is damaged"
            )
        if stop > end or number == 0:
            raise FormatError(
                f"field {number} at offset {at} should end at {stop:,}, but its message ends at "
                f"{end:,}: the file is truncated or damaged, download it again"
            )
        yield number, wire, begin, stop
        at = stop


def walk(data: bytes, descriptor: Any) -> None:
    """Check the bytes of a message and of all messages in it, without making any object.

    data         the bytes
    descriptor   the message's type, as protobuf describes it
    Raises       FormatError when they are damaged; SecurityError when a limit is exceeded
    """
    kinds = {}

    def parts(descriptor):
        """For each field number: the type of message it holds, or a word, or None."""
        if descriptor.full_name not in kinds:
            kinds[descriptor.full_name] = {f.number: _kind(f) for f in descriptor.fields}
        return kinds[descriptor.full_name]

    count = packed = 0
    waiting = [(0, len(data), descriptor, 1)]
    while waiting:
        start, end, descriptor, depth = waiting.pop()
        known = parts(descriptor)
        for number, wire, begin, stop in fields(data, start, end):
            kind = known.get(number)
            count += 1 if kind != "list" else 1 + stop - begin
            packed += 0 if kind != "numbers" else stop - begin
            if count > FIELDS or packed > PACKED:
                raise SecurityError(
                    f"more than {FIELDS:,} fields, or more than {PACKED:,} bytes of numbers that "
                    "are written one by one: no network needs so many. If the weights are stored "
                    "number by number, save the file again with raw data"
                )
            if kind in (None, "list", "numbers") or wire != 2:
                continue
            if kind == "text":
                try:
                    data[begin:stop].decode()
                except UnicodeDecodeError:
                    raise FormatError(f"the text at offset {begin} is not UTF-8") from None
            elif depth == DEPTH:
                raise SecurityError(f"messages are nested {depth} deep at offset {begin}")
            else:
                waiting.append((begin, stop, kind, depth + 1))


def _kind(field):
    """What a field holds: a type of message, "text", or a word of `LISTED`; None for the rest."""
    if field.message_type:
        return field.message_type
    return "text" if field.type == field.TYPE_STRING else LISTED.get(field.name)


def parse(data: bytes) -> Any:
    """The bytes of a file as a message.

    data      the bytes
    Returns   onnx.ModelProto
    Raises    FormatError or SecurityError, as `walk`
    """
    onnx = import_onnx()
    walk(data, onnx.ModelProto.DESCRIPTOR)
    graph = [part for part in fields(data, 0, len(data)) if part[0] == 7]
    if len(graph) != 1:
        raise FormatError(f"the file holds {len(graph)} graphs, expected one")
    from google.protobuf.message import DecodeError

    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise FormatError(f"the file is not an ONNX model: {error}") from None


# --- the graph ----------------------------------------------------------------------------


@dataclass
class Node:
    """One node: an operator, the names of its inputs and outputs ("" for none), its settings.

    node["axis"] is the value of an attribute; None when it has neither a value nor a default.
    """

    operator: str
    version: int  # the version of the standard that last changed the operator
    name: str
    inputs: list
    outputs: list
    attributes: dict
    index: int  # its place in the file

    def __getitem__(self, name):
        return self.attributes.get(name)

    def __str__(self):
        return f"{self.operator} {self.name!r}"


@dataclass
class Signature:
    """An input or an output: its name, type and shape; None for a size that is free."""

    name: str
    dtype: np.dtype
    shape: tuple | None


@dataclass
class Graph:
    """The content of a file, checked."""

    model: object  # the onnx.ModelProto
    opset: int
    nodes: list
    arrays: dict  # name → array: the initialisers, floats as float32
    inputs: list
    outputs: list
    location: dict  # name → protobuf tensor of an initialiser
    outside: dict  # name → bytes of an initialiser that lies in another file


def read(path: str | Path, operators: Container[str], memory: int) -> Graph:
    """Read and check a file.

    path        of the model
    operators   the names of the operators that are implemented
    memory      bytes that all arrays in other files may take in total
    Returns     a Graph
    Raises      FormatError, UnsupportedError or SecurityError; OSError when it cannot be read
    """
    model = parse(read_bytes(path))
    opset = _check_header(model)
    _check_operators(model, opset, operators)
    folder = Folder(os.path.dirname(os.path.abspath(path)), memory)
    graph = model.graph
    arrays, location, outside = {}, {}, {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in arrays:
            raise FormatError(f"two initialisers are named {tensor.name!r}, or none is named")
        arrays[tensor.name] = read_tensor(tensor, folder, outside)
        location[tensor.name] = tensor
    inputs = [_signature(value) for value in graph.input if value.name not in arrays]
    outputs = [_signature(value, typed=False) for value in graph.output]
    outputs = list({value.name: value for value in outputs}.values())  # some files repeat one
    nodes = [_read_node(n, i, opset, folder) for i, n in enumerate(graph.node)]
    nodes = _sorted(_without_copies(nodes))
    _check_names(nodes, arrays, inputs, outputs)
    return Graph(model, opset, nodes, arrays, inputs, outputs, location, outside)


def _check_header(model):
    onnx = import_onnx()
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise FormatError(
            f"IR version {model.ir_version}, expected 3 to {onnx.IR_VERSION} "
            "(a later one needs a later onnx package)"
        )
    versions = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise FormatError(f"two versions of the operator set {domain!r} are imported")
    if "" not in versions:
        raise FormatError("the file does not say which operator set (opset) it uses")
    if versions[""] not in OPSETS:
        error = FormatError if versions[""] < 1 else UnsupportedError
        raise error(
            f"operator set {versions['']}: supported are {OPSETS[0]} to {OPSETS[-1]}; "
            "convert the file with onnx.version_converter"
        )
    if not model.graph.node or not model.graph.output:
        raise FormatError("the graph has no nodes or no outputs")
    return versions[""]


def _check_operators(model, opset, operators):
    """Raise one error that lists everything that is not implemented."""
    missing = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            missing.append((f"{node.domain}.{node.op_type}", 0, node.name))
        elif node.op_type not in operators:
            missing.append((node.op_type, opset, node.name))
    if missing:
        by_name = {}
        for operator, _, name in missing:
            by_name.setdefault(operator, []).append(name)
        listed = ", ".join(
            f"{operator} ({len(names)}×, first in node {names[0]!r})"
            for operator, names in sorted(by_name.items())
        )
        quantised = any(
            "Quantize" in operator or "QLinear" in operator or "Integer" in operator
            for operator in by_name
        )
        remedy = "; export the float network instead of the quantised one" if quantised else ""
        raise UnsupportedError(f"opset {opset}: not implemented: {listed}{remedy}", missing)
    for name in ("functions", "training_info"):
        if len(getattr(model, name)):
            raise UnsupportedError(f"the file has {name}, which are not implemented")
    if len(model.graph.sparse_initializer):
        raise UnsupportedError("sparse initialisers are not implemented")


def _read_node(node, index, opset, folder):
    where = f"{node.op_type} {node.name!r} (node {index})"
    known_as = _rules(node.op_type, opset)
    if known_as is None:
        raise FormatError(f"{where}: opset {opset} has no such operator")
    for kind, names, (low, high) in (
        ("inputs", node.input, known_as.inputs),
        ("outputs", node.output, known_as.outputs),
    ):
        left_out = {place for place, name in enumerate(names) if not name and kind == "inputs"}
        if not low <= len(names) <= high or "" in names[:low] or left_out - known_as.optional:
            raise FormatError(
                f"{where}: {kind} {list(names)}, expected {low}"
                + (f" to {high}" if high != low else "")
            )
    attributes = dict(known_as.defaults)
    seen = set()
    for attribute in node.attribute:
        name = attribute.name
        kind = known_as.types.get(name)
        if kind is None or name in seen or attribute.ref_attr_name:
            raise FormatError(f"{where}: attribute {name!r} is unknown, repeated or a reference")
        if attribute.type != kind:
            word = import_onnx().AttributeProto.AttributeType.Name
            raise FormatError(
                f"{where}: attribute {name!r} has type {word(attribute.type)}, "
                f"expected {word(kind)}"
            )
        seen.add(name)
        attributes[name] = _attribute_value(attribute, folder, where)
    for name in known_as.required:
        if name not in seen:
            raise FormatError(f"{where}: attribute {name!r} is missing")
    inputs, outputs = list(node.input), list(node.output)
    return Node(node.op_type, known_as.version, node.name, inputs, outputs, attributes, index)


@dataclass
class Rules:
    """What the standard says of an operator in one version of the operator set."""

    version: int  # that last changed it
    inputs: tuple  # (fewest, most)
    optional: frozenset  # places of inputs that may be left out
    outputs: tuple
    types: dict  # attribute → ONNX's number of its type
    defaults: dict  # attribute → its value where none is given
    required: list  # attributes that must be given


@functools.cache
def _rules(operator, opset):
    """The Rules of an operator, or None where the operator set does not have it."""
    onnx = import_onnx()
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
    if schema.deprecated:
        return None
    attributes, optional = schema.attributes, onnx.defs.OpSchema.FormalParameterOption.Optional
    return Rules(
        schema.since_version,
        (schema.min_input, schema.max_input),
        frozenset(n for n, known in enumerate(schema.inputs) if known.option == optional),
        (schema.min_output, schema.max_output),
        {name: int(known.type.value) for name, known in attributes.items()},
        {
            name: _attribute_value(known.default_value, None, operator)
            for name, known in attributes.items()
            if known.default_value.type
        },
        [name for name, known in attributes.items() if known.required],
    )


def _attribute_value(attribute, folder, where):
    """An attribute as a Python value.

    The program that wrote a float meant 0.9, not 0.8999999762. So of all decimals that round to the
    stored float32, the shortest is taken. In float32 it is the same number.
    """
    types = type(attribute)
    if attribute.type == types.FLOAT:
        return _decimal(attribute.f)
    if attribute.type == types.INT:
        return attribute.i
    if attribute.type == types.STRING:
        return attribute.s.decode("utf-8", "replace")
    if attribute.type == types.TENSOR:
        return read_tensor(attribute.t, folder)
    if attribute.type == types.FLOATS:
        return [float(value) for value in attribute.floats]
    if attribute.type == types.INTS:
        return list(attribute.ints)
    raise UnsupportedError(f"{where}: attribute {attribute.name!r} has a type not implemented")


def _decimal(value):
    return float(str(np.float32(value)))


def _signature(value, typed=True):
    """The name, type and shape of an input or output."""
    onnx = import_onnx()
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        if kind is None and not typed:
            return Signature(value.name, None, None)
        raise UnsupportedError(f"{value.name!r} is a {kind}, expected a tensor")
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if dtype is None:
        known = onnx.TensorProto.DataType.values()
        error = UnsupportedError if tensor.elem_type in known[1:] else FormatError
        raise error(f"{value.name!r} has elements of type {tensor.elem_type}")
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.WhichOneof("value") == "dim_value" and d.dim_value != -1 else None
            for d in tensor.shape.dim  # some files have −1 for any size
        )
        if any(size is not None and size < 0 for size in shape) or len(shape) > RANK:
            raise FormatError(f"{value.name!r} has the shape {shape}")
    return Signature(value.name, dtype, shape)


def _without_copies(nodes):
    """The nodes without copies of an Identity: of equal ones, only the first."""
    seen, kept = {}, []
    for node in nodes:
        key = node.operator, tuple(node.inputs), tuple(node.outputs)
        twin = seen.setdefault(key, node)
        if twin is node or node.operator != "Identity":
            kept.append(node)
    return kept


def _sorted(nodes):
    """The nodes in an order in which each comes after the nodes whose results it uses.

    If they are in such an order already, nothing changes. Nodes in a circle come last.
    """
    maker = {}
    for i, node in enumerate(nodes):
        maker.update((name, i) for name in reversed(node.outputs) if name and name not in maker)
    needs = [{maker[name] for name in node.inputs if name in maker} for node in nodes]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return nodes
    users = [[] for _ in nodes]
    for i, need in enumerate(needs):
        for earlier in need:
            users[earlier].append(i)
    left = [len(need) for need in needs]
    ready, order = [i for i, count in enumerate(left) if not count], []
    heapq.heapify(ready)
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            left[user] -= 1
            if not left[user]:
                heapq.heappush(ready, user)
    return [nodes[i] for i in order] + [
        nodes[i] for i in sorted(set(range(len(nodes))) - set(order))
    ]


def _check_names(nodes, arrays, inputs, outputs):
    """Raise unless every name is defined once, and before it is used."""
    known = set(arrays)
    for value in inputs:
        if not value.name or value.name in known:
            raise FormatError(f"two inputs are named {value.name!r}, or an input has no name")
        known.add(value.name)
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise FormatError(
                    f"{node}: input {name!r} is not defined before it is used, in any order of the "
                    "nodes: it must be an input, an initialiser, or the output of another node"
                )
        for name in node.outputs:
            if name and name in known:
                raise FormatError(f"{node}: output {name!r} is defined twice")
            known.add(name)
    for value in outputs:
        if value.name not in known:
            raise FormatError(f"no node computes the output {value.name!r}")


# --- arrays -------------------------------------------------------------------------------

RANK = 16  # axes of an array, at most
EXTERNAL = 1  # the value of a tensor's data_location if its numbers are in another file
BFLOAT16 = 16
DTYPES = {  # ONNX's number of a type → the type in which it is computed
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(bool),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
    BFLOAT16: np.dtype(np.float32),
}
# The type in which an array is stored, if it is another one.
STORED = {BFLOAT16: np.dtype(np.uint16)}
# Name of a list in a tensor → the types whose numbers it may hold, if they are not raw bytes.
LISTS = {
    "float_data": (1,),
    "int32_data": (2, 3, 4, 5, 6, 9, 10, BFLOAT16),
    "int64_data": (7,),
    "double_data": (11,),
    "uint64_data": (12, 13),
}
EXTERNAL_KEYS = {"location", "offset", "length", "checksum", "basepath"}


def read_tensor(
    tensor: Any, folder: "Folder", outside: dict[str, bytes] | None = None
) -> np.ndarray:
    """The array in a tensor message: floats of any width as float32.

    tensor   the message
    folder   the `Folder` of the model, where its numbers may lie in another file
    outside  a dict that gets the bytes from another file, under the tensor's name; None: the
             message gets them. They are kept for saving, since that file may change until then
    Returns  NumPy array
    Raises   FormatError when sizes disagree; UnsupportedError for a type not in DTYPES;
             SecurityError when it reaches outside its folder or for too much memory
    """
    name = f"tensor {tensor.name!r}"
    if tensor.data_type not in DTYPES:
        known = import_onnx().TensorProto.DataType
        if tensor.data_type in known.values() and tensor.data_type:
            text = known.Name(tensor.data_type)
            raise UnsupportedError(f"{name}: elements of type {text} are not implemented")
        raise FormatError(f"{name}: {tensor.data_type} is not a type of elements")
    dtype = stored_dtype(tensor)
    shape = tuple(tensor.dims)
    if any(not 0 <= size < 1 << 40 for size in shape) or len(shape) > RANK:
        raise FormatError(f"{name}: the shape {shape} is impossible")
    count = math.prod(shape)
    size = count * dtype.itemsize
    lists = [f for f in LISTS if len(getattr(tensor, f))]
    if len(lists) + bool(tensor.raw_data) + (tensor.data_location == EXTERNAL) > 1:
        raise FormatError(f"{name}: the numbers are given twice, as {lists} and as bytes")
    if len(tensor.string_data) or tensor.HasField("segment"):
        raise UnsupportedError(f"{name}: strings and segments are not implemented")
    if tensor.data_location == EXTERNAL:
        raw = folder.read(tensor, size)
        if outside is None:
            tensor.raw_data = raw
        else:
            outside[tensor.name] = raw
    elif lists:
        if tensor.data_type not in LISTS[lists[0]]:
            raise FormatError(f"{name}: its type {tensor.data_type} is not kept in {lists[0]}")
        numbers = getattr(tensor, lists[0])
        if len(numbers) != count:
            raise FormatError(
                f"{name}: shape {shape} needs {count:,} numbers, has {len(numbers):,}"
            )
        kind = {"float_data": np.float32, "double_data": np.float64, "uint64_data": np.uint64}
        numbers = np.fromiter(numbers, kind.get(lists[0], np.int64), count)
        if tensor.data_type in (10, BFLOAT16):
            raw = numbers.astype(np.uint16).tobytes()
        else:
            raw = numbers.astype(dtype).tobytes()
    else:
        raw = tensor.raw_data
    if len(raw) != size:
        raise FormatError(
            f"{name}: shape {shape} of {dtype} needs {size:,} bytes, the file has {len(raw):,}"
        )
    array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    return widen(array, tensor.data_type)


def stored_dtype(tensor: Any) -> np.dtype:
    """The type in which a tensor's numbers are stored (bfloat16: as its 16 bits).

    tensor   the message
    """
    return STORED.get(tensor.data_type, DTYPES[tensor.data_type])


def widen(array: np.ndarray, data_type: int) -> np.ndarray:
    """Floats of any width as float32; other numbers as they are.

    array       as it is stored
    data_type   ONNX's number of its type
    """
    if data_type == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    return array


def narrow(array: np.ndarray, data_type: int) -> np.ndarray:
    """Back from float32 or float64 to the type that a tensor stores.

    array       of floats
    data_type   ONNX's number of that type
    Returns     an array as it is stored
    Raises      ValueError when a number does not fit
    """
    if data_type == BFLOAT16:
        bits = np.asarray(array, np.float32).view(np.uint32)
        # Round to the nearest; if two are equally near, to the even one.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        narrowed = array.astype(DTYPES[data_type])
    if (np.isinf(narrowed) & np.isfinite(array)).any():
        raise ValueError(f"a weight of {np.abs(array).max():g} does not fit in {narrowed.dtype}")
    return narrowed


class Folder:
    """A model's folder: the only place where its arrays may lie in other files.

    path     of the folder
    memory   bytes that all of these arrays may take in total
    """

    def __init__(self, path: str | Path, memory: int):
        self.path, self.memory = os.path.realpath(path), memory
        self.asked = 0

    def read(self, tensor: Any, size: int) -> bytes:
        """The bytes of a tensor that are kept in another file.

        tensor   the message
        size     how many bytes its shape needs
        Returns  bytes
        Raises   FormatError when they are not there; SecurityError for another folder, a link, or
                 more than the limit
        """
        name = f"tensor {tensor.name!r}"
        entries = {}
        for entry in tensor.external_data:
            if entry.key in entries or entry.key not in EXTERNAL_KEYS:
                raise FormatError(f"{name}: external data has {entry.key!r} twice, or unknown")
            entries[entry.key] = entry.value
        offset, length = (
            _whole(entries.get(key, default), key, name)
            for key, default in (("offset", "0"), ("length", str(size)))
        )
        if length != size:
            raise FormatError(f"{name}: needs {size:,} bytes, external data has {length:,}")
        # A sparse file takes no space on disk but claims terabytes, and tensors may share bytes.
        self.asked += size
        if self.asked > self.memory:
            raise SecurityError(
                f"{name}: with these {size:,} bytes, arrays in other files take {self.asked:,}; "
                f"the limit is {self.memory:,}: load(…, memory=…) raises it, if you trust the file"
            )
        descriptor = self.open(entries.get("location", ""), name)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise SecurityError(f"{name}: {entries['location']!r} is not a regular file")
        with os.fdopen(descriptor, "rb") as file:
            if offset + length > status.st_size:
                raise FormatError(
                    f"{name}: bytes {offset:,} to {offset + length:,} of "
                    f"{entries['location']!r}, which has {status.st_size:,}"
                )
            file.seek(offset)
            return file.read(length)

    def open(self, location: str, name: str) -> int:
        """Open a file of this folder, without following a link.

        location   its path within the folder
        name       of the tensor, for the message
        Returns    a file descriptor
        Raises     SecurityError for a path that leaves the folder, or that has a link in it;
                   FormatError when the file cannot be opened
        """
        parts = location.split("/")
        if (
            not location
            or "\0" in location
            or "\\" in location
            or os.path.isabs(location)
            or os.path.splitdrive(location)[0]
            or any(part in ("", "..") for part in parts)
        ):
            raise SecurityError(
                f"{name}: external data at {location!r}: expected a plain path within {self.path}"
            )
        path = os.path.join(self.path, *parts)
        if os.path.realpath(path) != os.path.normpath(path):
            raise SecurityError(f"{name}: external data at {location!r} lies behind a link")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            return os.open(path, flags | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise FormatError(
                f"{name}: its numbers are in {location!r}, which cannot be opened "
                f"({error.strerror}): put that file beside the model"
            ) from None


def _whole(text, key, name):
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise FormatError(f"{name}: external data has {key} {text!r}, expected a whole number")
    return int(text)
