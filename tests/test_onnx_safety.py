"""Files that are damaged, hostile or merely something else: one family of errors, no harm."""

import contextlib
import copy
import os
import time
import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, numpy_helper  # noqa: E402
from onnx_models import classifier, node, write  # noqa: E402

import minires.onnx  # noqa: E402
from minires.onnx import FormatError, OnnxError, SecurityError, UnsupportedError, reading  # noqa: E402


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


BAD = {  # file → (error, words that its message must hold)
    "00_good": None,
    "01_empty": (FormatError, "empty"),
    "02_truncated": (FormatError, "truncated"),
    "03_lfs_pointer": (FormatError, "Git LFS pointer, not the model .13964571 bytes"),
    "04_html": (FormatError, "web page"),
    "05_random": (FormatError, "not an ONNX model|truncated or damaged"),
    "10_ext_ok": None,
    "11_ext_dotdot": (SecurityError, "secret.bin"),
    "16_ext_neg_offset": (FormatError, "offset '-4'"),
    "18_ext_missing": (FormatError, "put that file beside the model"),
    "30_raw_short": (FormatError, "needs 432 bytes, the file has 100"),
    "31_dims_huge": (FormatError, "the file has 0"),
    "32_dims_negative": (FormatError, "impossible"),
    "34_dtype_undefined": (FormatError, "not a type"),
    "36_bfloat16_weight": None,
    "40_undefined_input": (FormatError, "'NOPE' is not defined"),
    "42_cycle": (FormatError, "not defined before it is used"),
    "44_output_missing": (FormatError, "no node computes the output 'zzz'"),
    "45_unknown_op": (UnsupportedError, "FooBar"),
    "46_custom_domain": (UnsupportedError, "com.microsoft"),
    "48_no_opset": (FormatError, "opset"),
    "50_no_graph": (FormatError, "0 graphs"),
    "53_conv_bad_group": (FormatError, "3 channels in 2 groups"),
    "54_conv_channels_mismatch": (FormatError, "5 channels"),
    "57_conv_stride0": (FormatError, "strides is"),
    "58_autopad_and_pads": (FormatError, "both auto_pad"),
    "60_attr_wrong_type": (FormatError, "has type FLOAT, expected INT"),
    "62_too_few_inputs": (FormatError, "expected 2 to 3"),
    "66_bn_negative_var": (FormatError, "negative variance"),
    "69_bn_training_mode": (UnsupportedError, "training mode"),
    "70_if_subgraph": (UnsupportedError, "If"),
    "80_valid_packed_dims_unpacked_floats": None,
}


@pytest.mark.parametrize("name", BAD)
def test_every_kind_of_bad_file(data_dir, name):
    path = data_dir / "onnx_bad" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    if BAD[name] is None:
        assert minires.onnx.load(path).theta.size > 0
        return
    error, words = BAD[name]
    with pytest.raises(error, match=words) as caught:
        minires.onnx.load(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


def test_no_bad_file_is_forgotten(data_dir):
    folder = data_dir / "onnx_bad"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    assert {file.stem for file in folder.glob("*.onnx")} == set(BAD)


def test_a_missing_file_and_a_folder_are_errors_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        minires.onnx.load(tmp_path / "none.onnx")
    with pytest.raises(FormatError, match=r"a folder: name the \.onnx file in it"):
        minires.onnx.load(tmp_path)


@pytest.mark.parametrize(("start", "name"), [(b"PK\x03\x04", "zip"), (b"\x1f\x8b", "gzip")])
def test_other_formats_are_recognised(path, start, name):
    path.write_bytes(start + bytes(100))
    with pytest.raises(FormatError, match=name):
        minires.onnx.load(path)


# --- other files --------------------------------------------------------------------------


def external(path, location, offset="0", length="432", count=1):
    """A model whose weights lie in another file."""
    model = write(path, [node("Conv", f"x w{i}", f"y{i}") for i in range(count)], outputs=["y0"])
    for i in range(count):
        tensor = TensorProto(name=f"w{i}", data_type=1, dims=[4, 3, 3, 3], data_location=1)
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)
    onnx.save(model, path)


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "/etc/passwd",
        "a/../../w.bin",
        "a\\w.bin",
        "C:w.bin",
        "",
        "..",
        "w\0.bin",
        "a//b",
    ],
)
def test_paths_that_leave_the_folder(path, location):
    (path.parent / "C:w.bin").write_bytes(bytes(432))
    external(path, location)
    if location == "C:w.bin" and os.name == "posix":
        minires.onnx.load(path)  # a plain name here, a drive on Windows
        return
    with pytest.raises(SecurityError, match="expected a plain path within"):
        minires.onnx.load(path)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links and pipes as POSIX has them")
def test_links_and_pipes_are_not_read(path, tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "w.bin").write_bytes(bytes(432))
    (inside / "link.bin").symlink_to(outside / "w.bin")
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    for location, words in [
        ("link.bin", "behind a link"),
        ("folder/w.bin", "behind a link"),
        ("pipe", "not a regular file"),
    ]:
        external(inside / "model.onnx", location)
        with pytest.raises(SecurityError, match=words):
            minires.onnx.load(inside / "model.onnx")
    external(inside / "model.onnx", ".")
    with pytest.raises(OnnxError):
        minires.onnx.load(inside / "model.onnx")


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        ("8", "432", "which has 432"),
        ("0", "431", "needs 432 bytes, external data has 431"),
        ("1" + "0" * 15, "432", "which has 432"),
        ("0", "1" + "0" * 18, "whole number"),
        ("zero", "432", "whole number"),
        ("٣", "432", "whole number"),
    ],
)
def test_ranges_outside_of_the_other_file(path, offset, length, words):
    (path.parent / "w.bin").write_bytes(bytes(432))
    external(path, "w.bin", offset, length)
    with pytest.raises(FormatError, match=words):
        minires.onnx.load(path)


def test_other_files_are_read_up_to_a_limit_in_all(path):
    # Tensors may share their bytes, and a file of no size can claim terabytes of zeros.
    (path.parent / "w.bin").write_bytes(bytes(432))
    external(path, "w.bin", count=300)
    minires.onnx.load(path, memory=300 * 432)
    with pytest.raises(SecurityError, match="arrays in other files take 129,600; the limit is"):
        minires.onnx.load(path, memory=300 * 432 - 1)
    with open(path.parent / "w.bin", "r+b") as file:
        file.truncate(1 << 41)
    model = onnx.load(path, load_external_data=False)
    for i, tensor in enumerate(model.graph.initializer):
        tensor.dims[:] = [1 << 22]
        del tensor.external_data[1:]
        tensor.external_data.add(key="offset", value=str(i << 32))
    onnx.save(model, path)
    with pytest.raises(SecurityError, match="50,331,648; the limit is 50,000,000"):
        minires.onnx.load(path, memory=50_000_000)


# --- too much -----------------------------------------------------------------------------


def doublings(first, count, axis):
    """Nodes that join an array to itself again and again; the last is named "all"."""
    names = [first, *(f"t{i}" for i in range(count - 1)), "all"]
    return [node("Concat", f"{names[i]} {names[i]}", names[i + 1], axis=axis) for i in range(count)]


def chain(count, operator, **settings):
    """Nodes one behind the other, from an expanded image to "y"."""
    names = ["e", *(f"n{i}" for i in range(count - 1)), "y"]
    nodes = [node(operator, names[i], names[i + 1], **settings) for i in range(count)]
    return [node("Expand", "x large", "e"), *nodes]


def corners_of_large(count):
    """Nodes that make large arrays and keep of each a view of one number."""
    nodes = []
    for i in range(count):
        nodes += [node("Expand", "x large", f"e{i}"), node("Slice", f"e{i} zeros ones", f"s{i}")]
    return [*nodes, node("Sum", " ".join(f"s{i}" for i in range(count)), "y")]


ARRAYS = {
    "square": np.array([1 << 20, 1 << 20]),
    "many": np.array([1 << 40, 3, 1, 1]),
    "large": np.array([1, 3, 1000, 1000]),
    "tiny": np.array([300_000, 3, 1, 1]),
    "column": np.array([-1, 1]),
    "row": np.array([1, -1]),
    "zeros": np.zeros(4, np.int64),
    "ones": np.ones(4, np.int64),
    "w": np.ones((1, 3, 1, 1), np.float32),
    "filters": np.array([3_000_000, 1, 1, 1]),
    "groups": np.array([1_500_000, 2, 1, 1]),
    "slopes": np.ones((1, 1 << 20), np.float32),
    "larger": np.array([1, 3, 2000, 2000]),
}
HUGE = {  # nodes of a small file that asks for a lot, and what is said of it; None: not tried
    "constant of shape": (
        "memory", [node("ConstantOfShape", "square", "c"), node("Add", "x c", "y")],
    ),
    "expand": ("memory", [node("Expand", "x many", "y")]),
    "concat": ("memory", [*doublings("x", 60, 2), node("Relu", "all", "y")]),
    "concat of one array": (
        "memory", [node("Expand", "x large", "e"), node("Concat", "e " * 50, "y", axis=3)],
    ),
    "convolution": ("memory", [node("Conv", "x w", "y", pads=[1 << 30] * 4)]),
    "strides": ("memory", [node("Conv", "x w", "y", pads=[1 << 30] * 4, strides=[1 << 30] * 2)]),
    "pooling": ("memory", [node("MaxPool", "x", "y", kernel_shape=[9_000] * 2, pads=[8_999] * 4)]),
    "padding": ("memory", [node("Pad", "x", "y", pads=[0, 0, 1 << 40, 0, 0, 0, 0, 0])]),
    "product": (
        "memory",
        [
            node("Reshape", "x column", "a"),
            *doublings("a", 15, 0),
            node("Transpose", "all", "t", perm=[1, 0]),
            node("MatMul", "all t", "y"),
        ],
    ),
    "channels": ("memory", [node("LRN", "x", "y", size=(1 << 40) + 1)]),
    "views of large arrays": ("memory", corners_of_large(60)),
    "one array very often": (
        "multiplications", [node("Expand", "x large", "e"), node("Sum", "e " * 9_000, "y")],
    ),
    "arrays that are kept": (
        "memory",
        [
            node("Expand", "x large", "e"),
            *(node("Tanh", "e", f"t{i}") for i in range(40)),
            node("Sum", " ".join(f"t{i}" for i in range(40)), "y"),
        ],
    ),
    "outer product": (
        "memory",
        [
            node("Expand", "x large", "e"),
            node("Reshape", "e column", "c"),
            node("Reshape", "e row", "r"),
            node("Max", "c r", "y"),
        ],
    ),
    "slopes": (
        "the slope is",
        [node("Expand", "x large", "e"), node("Reshape", "e column", "c"),
         node("PRelu", "c slopes", "y")],
    ),
    "filters of one channel": (
        "memory",
        [
            node("ConstantOfShape", "filters", "f"),
            node("Expand", "x large", "e"),
            node("Conv", "e f", "y", group=3, strides=[999, 999]),
        ],
    ),
    "groups": (
        "multiplications",
        [
            node("ConstantOfShape", "groups", "f"),
            node("Expand", "x large", "e"),
            node("Reshape", "e images", "i"),
            node("Conv", "i f", "y", group=1_500_000),
        ],
    ),
    "tiny products": (
        "multiplications", [node("Expand", "x tiny", "e"), node("MatMul", "e e", "y")],
    ),
    "whole numbers": (
        None,
        [node("Expand", "x large", "e"), node("Cast", "e", "i", to=7), node("MatMul", "i i", "y")],
    ),
    "taps": (
        "multiplications",
        [node("Expand", "x large", "e"), node("MaxPool", "e", "y", kernel_shape=[300, 300])],
    ),
    "all taps": (None, [node("Expand", "x larger", "e"), node("GlobalMaxPool", "e", "y")]),
    "windows that overhang": (
        "memory",
        [
            node("Expand", "x large", "e"),
            node("AveragePool", "e", "y", kernel_shape=[1, 90_000], strides=[1, 3], ceil_mode=1,
                 count_include_pad=1, pads=[0, 89_999, 0, 89_999]),
        ],
    ),
    "a long chain": (None, chain(900, "Tanh")),
    "neighbours": ("memory", chain(9, "LRN", size=301)),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_small_files_that_ask_for_a_lot(path, name):
    """Within seconds and within the memory that was allowed, whatever becomes of them."""
    words, nodes = HUGE[name]
    used = {word for one in nodes for word in one.input}
    arrays = {key: array for key, array in ARRAYS.items() if key in used}
    if "images" in used:
        arrays["images"] = np.array([1, 3_000_000, 1, 1])
    write(path, nodes, arrays, shape=(1, 3, 1, 1), opset=10 if name == "padding" else 13)
    memory = 1 << 28
    start = time.process_time()
    tracemalloc.start()
    try:
        if words is None:
            minires.onnx.load(path, memory=memory)
        else:
            with pytest.raises(OnnxError, match=words):
                minires.onnx.load(path, memory=memory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 2 * memory


MANY = {  # many small things, where work that grows with their square would take minutes
    "nodes and constants": (
        [node("Add", f"{f'n{i - 1}' if i else 'x'} c{i}", f"n{i}") for i in range(12_000)],
        {f"c{i}": np.float32(i) for i in range(12_000)},
    ),
    "nodes and weights": (
        [node("Mul", f"{f'n{i - 1}' if i else 'x'} c{i}", f"n{i}") for i in range(12_000)],
        {f"c{i}": np.ones((3, 1, 1), np.float32) for i in range(12_000)},
    ),
    "norms of one large variance": (
        [node("BatchNormalization", f"{f'n{i - 1}' if i else 'x'} s s v v", f"n{i}")
         for i in range(3_000)],
        {"s": np.ones(1_000_000, np.float32), "v": np.ones(1_000_000, np.float32)},
    ),
    "parts": (
        [node("Split", "x", " ".join(f"n{i}" for i in range(30_000)), axis=3)], {},
    ),
    "views of a weight": (
        [node("Gather", "w i", f"n{i}") for i in range(2_000)],
        {"w": np.ones((1, 3, 1000, 100), np.float32), "i": np.array([0])},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_many_small_things(path, name):
    nodes, arrays = MANY[name]
    shape = {"parts": (1, 1, 1, 30_000), "norms of one large variance": (1, 1_000_000)}
    last = nodes[-1].output[-1]
    use = [node("Add", f"x {last}", "y")] if name == "views of a weight" else []
    use = use or [node("Relu", last, "y")]
    write(path, [*nodes, *use], arrays, shape=shape.get(name, (1, 3, 1, 1)), opset=11)
    start = time.process_time()
    with contextlib.suppress(SecurityError):
        minires.onnx.load(path, memory=1 << 28)
    assert time.process_time() - start < 10


def test_outputs_that_are_many_copies_of_one_array(path):
    nodes = [node("Expand", "x large", "e"), node("Neg", "x", "n")]
    nodes += [node("Transpose", "e", f"y{i}", perm=[0, 1, 3, 2]) for i in range(60)]
    large = {"large": ARRAYS["large"]}
    outputs = [f"y{i}" for i in range(60)]
    write(path, nodes, large, shape=(1, 3, 1, 1), outputs=outputs)
    network = minires.onnx.load(path, memory=1 << 28)
    with pytest.raises(SecurityError, match="memory"):
        network.run(np.zeros((1, 3, 1, 1), np.float32))
    write(path, nodes, large, outputs=["n", "n"])
    images = np.ones((1, 3, 1, 1), np.float32)
    write(path, nodes[1:2], outputs=["n", "n"], shape=(1, 3, 1, 1))
    np.testing.assert_array_equal(minires.onnx.load(path).run(images), -images)


def peak_of(function):
    """The most memory that Python's objects and arrays take during a call, bytes."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("where", ["computed", "inside", "outside"])
def test_memory_at_loading(path, rng, where):
    """At most three times `memory`, and three times the file (protobuf keeps one more, unseen).

    Weights that the file computes take it once, θ once, and the values of one image once.
    """
    names, count = [f"w{i}" for i in range(12)], 12 * 500 * 500 * 4
    nodes = [node("MatMul", f"{f'n{i - 1}' if i else 'x'} w{i}", f"n{i}") for i in range(12)]
    arrays = {name: rng.standard_normal((500, 500)).astype(np.float32) for name in names}
    if where == "computed":
        made = [node("ConstantOfShape", "square", name) for name in names]
        nodes, arrays = [*made, *nodes], {"square": np.array([500, 500])}
    model = write(path, [*nodes, node("Relu", "n11", "y")], arrays, shape=(1, 500))
    if where == "outside":
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    memory = count + 4_000_000
    limit = 3 * path.stat().st_size + 3 * memory
    minires.onnx.load(path)  # what is imported on the way does not count
    peak = peak_of(lambda: minires.onnx.load(path, memory=memory))
    assert 2 * count < peak < limit
    if where != "inside":
        with pytest.raises(SecurityError, match="memory=…"):
            minires.onnx.load(path, memory=count - 1)


def test_arrays_in_other_files_and_computed_ones_share_the_memory(path):
    (path.parent / "w.bin").write_bytes(bytes(432))
    external(path, "w.bin", count=300)
    model = onnx.load(path, load_external_data=False)
    model.graph.node.insert(0, node("ConstantOfShape", "shape", "made"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([100, 100]), "shape"))
    onnx.save(model, path)
    minires.onnx.load(path, memory=300 * 432 + 160_000)
    with pytest.raises(SecurityError, match="289,600 bytes; the limit is 289,599"):
        minires.onnx.load(path, memory=300 * 432 + 159_999)


def test_a_cast_to_wider_numbers_is_counted_as_wide(path):
    nodes = [
        node("Cast", "x", "b", to=9),
        node("Cast", "b", "i", to=7),
        node("Cast", "i", "y", to=1),
    ]
    write(path, nodes, shape=(1, 1, 1000, 1000))
    minires.onnx.load(path, memory=45_000_000)
    with pytest.raises(SecurityError, match="memory"):
        minires.onnx.load(path, memory=30_000_000)


def test_a_huge_declared_image(path):
    write(path, [node("Relu", "x", "y")], shape=(1, 3, 1 << 30, 1 << 30))
    with pytest.raises(SecurityError, match="memory"):
        minires.onnx.load(path)


def message(number, content):
    """A field of a protobuf message: its number and its content."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_nested_graphs_and_endless_numbers(path):
    graph = b""
    for _ in range(3000):
        graph = message(1, message(5, message(6, graph)))  # graph → node → attribute → graph
    path.write_bytes(message(7, graph))
    with pytest.raises(SecurityError, match="nested"):
        minires.onnx.load(path)
    path.write_bytes(b"\x08" + b"\xff" * 11)
    with pytest.raises(FormatError, match="does not end"):
        minires.onnx.load(path)


def test_more_empty_messages_than_fields_are_allowed(path, monkeypatch):
    """A fifth of the limit, for a fifth of the time."""
    assert reading.FIELDS == 1_000_000
    monkeypatch.setattr(reading, "FIELDS", 200_000)
    path.write_bytes(message(7, message(1, b"") * 300_000))
    start = time.process_time()
    with pytest.raises(SecurityError, match="more than 200,000 fields"):
        minires.onnx.load(path)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("where", ["attribute", "dims", "numbers"])
def test_whole_numbers_that_take_more_memory_than_their_bytes(path, where):
    nodes, arrays = [node("Transpose", "x", "y", perm=[1])], {"w": np.float32(1)}
    model = write(path, nodes, arrays)
    tensor = model.graph.initializer[0]
    if where == "attribute":
        model.graph.node[0].attribute[0].ints[:] = [1] * 1_100_000
    elif where == "dims":
        tensor.dims[:] = [1] * 1_100_000
    else:
        tensor.data_type = TensorProto.INT64
        tensor.ClearField("raw_data")
        tensor.dims[:] = [(1 << 27) + 1]
    data = model.SerializeToString()
    if where == "numbers":  # without making them all
        model.graph.initializer.pop()
        inner = tensor.SerializeToString() + message(7, bytes((1 << 27) + 1))
        graph = model.graph.SerializeToString() + message(5, inner)
        model.ClearField("graph")
        data = model.SerializeToString() + message(7, graph)
    path.write_bytes(data)
    with pytest.raises(SecurityError, match="one by one"):
        minires.onnx.load(path)


@pytest.mark.parametrize("shape", [(1,) * 100, (1, 0, 1 << 62, 1 << 62), (0, 1 << 62), (1 << 62,)])
def test_shapes_that_no_array_has(path, shape):
    write(path, [node("Relu", "x", "y")], shape=shape)
    if 0 in shape or len(shape) == 1:
        minires.onnx.load(path)  # nothing to try: there is no such image, or no such batch
    else:
        with pytest.raises(FormatError, match="has the shape"):
            minires.onnx.load(path)
    model = write(path, [node("Add", "x w", "y")], {"w": np.zeros(0, np.float32)})
    model.graph.initializer[0].dims[:] = shape
    onnx.save(model, path)
    with pytest.raises(FormatError):
        minires.onnx.load(path)


def test_an_error_is_no_longer_than_a_page(path):
    write(path, [node("Relu", "x", "a" * 1_000_000), node("Relu", "b" * 1_000_000, "y")])
    with pytest.raises(FormatError, match=r"not defined|and more") as caught:
        minires.onnx.load(path)
    assert len(str(caught.value)) < 20_000


def test_no_memory_left_is_an_error_of_the_family(path, monkeypatch):
    write(path, [node("Relu", "x", "y")])
    monkeypatch.setattr(reading, "read_bytes", lambda path: np.empty(1 << 60, np.uint8))
    with pytest.raises(SecurityError, match="too little memory"):
        minires.onnx.load(path)


def test_text_that_is_none(path, rng):
    nodes, arrays = classifier(rng)
    write(path, nodes, arrays)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Conv_c1", b"Conv\xff\xfe1"))
    with pytest.raises(FormatError, match="not UTF-8"):
        minires.onnx.load(path)


def test_weights_that_are_not_numbers(path, rng):
    nodes, arrays = classifier(rng)
    arrays["w1"][0, 0, 0, 0] = np.nan
    write(path, nodes, arrays)
    with pytest.raises(FormatError, match="'w1' is to be trained, but holds NaN"):
        minires.onnx.load(path)


@pytest.mark.parametrize("fault", ["twice", "both", "segment", "sparse", "functions"])
def test_rare_faults(path, rng, fault):
    nodes, arrays = classifier(rng)
    model = write(path, nodes, arrays)
    tensor = model.graph.initializer[0]
    if fault == "twice":
        model.graph.initializer.append(tensor)
    elif fault == "both":
        tensor.float_data.append(1)
    elif fault == "segment":
        tensor.segment.begin = 3
    elif fault == "sparse":
        model.graph.sparse_initializer.add().dims.append(3)
    else:
        model.functions.add().name = "f"
    onnx.save(model, path)
    with pytest.raises((FormatError, UnsupportedError)):
        minires.onnx.load(path)


def test_only_optional_inputs_may_be_left_out(path):
    """An empty name stands for an input that is not there: never one of a concatenation's."""
    write(path, [node("Concat", "x -", "y", axis=1)])
    with pytest.raises(FormatError, match=r"Concat.*: inputs \['x', ''\], expected 1 to"):
        minires.onnx.load(path)


# --- fuzzing ------------------------------------------------------------------------------


def survives(path, data):
    """Load damaged bytes: a network that runs, or one of our errors. Returns which."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        network = minires.onnx.load(path, memory=1 << 28)
        shape = [2 if size is None else min(size, 8) for size in network.declared_shape or (2, 3)]
        network.run(np.zeros(shape, np.float32))
        outcome = "loaded"
    except OnnxError as error:
        outcome = type(error).__name__
    except ValueError as error:  # of `run`, and it must say which input it means
        outcome = "loaded" if "input" in str(error) else str(error)
    assert time.process_time() - start < 10
    return outcome


def flipped(data, rng):
    """The bytes with one to eight of them changed."""
    damaged = bytearray(data)
    for at in rng.integers(0, len(data), int(rng.integers(1, 9))):
        damaged[at] = rng.integers(256)
    return bytes(damaged)


OUTCOMES = {"loaded", "FormatError", "UnsupportedError", "SecurityError"}
NUMBERS = [0, 1, -1, 2, 3, 7, 255, -(1 << 31), 1 << 31, (1 << 62) - 1, -(1 << 63), (1 << 63) - 1]
WORDS = ["", "x", "y", "w1", "c1", "Conv", "Reshape", "SAME_UPPER", "/etc/passwd", "\0", "é"]


def mutated(model, rng):
    """A message with one to four of its fields changed, removed or repeated, at any depth."""
    model = copy.deepcopy(model)
    for _ in range(int(rng.integers(1, 5))):
        message = model
        while True:
            fields = [(d, v) for d, v in message.ListFields() if not rng.random() < 0.1]
            if not fields:
                break
            # The message's own graph counts for more than its strings.
            field, value = fields[rng.integers(len(fields))]
            if field.message_type is None or rng.random() < 0.1:
                change(message, field, value, rng)
                break
            repeated = not hasattr(value, "ListFields")
            message = value[rng.integers(len(value))] if repeated else value
    return model.SerializeToString()


def change(message, field, value, rng):
    """Change, remove or repeat one field of a message."""
    kinds = {field.TYPE_STRING: WORDS, field.TYPE_BYTES: [w.encode() for w in WORDS]}
    floats = [0.0, np.nan, np.inf, -1.0, 1e38]
    choices = kinds.get(field.type, floats if field.cpp_type in (5, 6) else NUMBERS)
    new = choices[rng.integers(len(choices))]
    try:
        if isinstance(value, (int, float, str, bytes)):
            setattr(message, field.name, new)
        elif field.message_type is not None and hasattr(value, "ListFields"):
            message.ClearField(field.name)
        elif rng.random() < 0.3:
            del value[rng.integers(len(value))]
        elif field.message_type is not None:
            value.add().CopyFrom(value[rng.integers(len(value))])
        elif rng.random() < 0.5:
            value[rng.integers(len(value))] = new
        else:
            value.append(new)
    except (ValueError, TypeError):  # the number does not fit this field
        message.ClearField(field.name)


def seeds(path, rng):
    """Models to damage: the little classifier, and one with shapes that are computed."""
    nodes, arrays = classifier(rng)
    yield write(path, nodes, arrays, shape=(1, 3, 8, 8))
    arrays = {
        "i": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
        "starts": np.array([1]),
        "ends": np.array([9]),
        "w": rng.standard_normal((2 * 81, 4)).astype(np.float32),
    }
    nodes = [
        node("Constant", "-", "two", value=numpy_helper.from_array(np.array([2.0], np.float32))),
        node("Pad", "x pads", "p"),
        node("Slice", "p starts ends rest", "s"),
        node("Slice", "s starts ends starts", "t"),
        node("MaxPool", "s", "m", kernel_shape=[1, 1], auto_pad="SAME_UPPER"),
        node("Split", "m", "a b", axis=1, split=[2, 1]),
        node("Transpose", "a", "at", perm=[0, 2, 3, 1]),
        node("Mul", "at two", "am"),
        node("Shape", "x", "n"),
        node("Gather", "n i", "n0"),
        node("Unsqueeze", "n0", "n1", axes=[0]),
        node("Concat", "n1 rest", "shape", axis=0),
        node("Reshape", "am shape", "f"),
        node("ReduceMean", "f", "r", axes=[1], keepdims=1),
        node("Sub", "f r", "z"),
        node("Softmax", "z", "y"),
    ]
    nodes[0].ClearField("input")
    for one in nodes:
        if one.op_type == "Slice" and one.input[3] == "starts":
            one.input[3] = "axes"
    yield write(path, nodes, arrays, shape=(1, 3, 8, 8), opset=11)


def fuzz(path, rng, flips, mutations, step):
    """Damage the models in three ways; returns how many inputs had which outcome."""
    outcomes = {}

    def note(data):
        outcome = survives(path, data)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    for model in seeds(path, rng):
        data = model.SerializeToString()
        assert survives(path, data) == "loaded"
        for end in range(1, len(data), step):
            note(data[:end])
        for _ in range(flips):
            note(flipped(data, rng))
        for _ in range(mutations):
            note(mutated(model, rng))
    return outcomes


@pytest.mark.filterwarnings("error")
def test_damaged_files_do_no_harm(path, rng):
    outcomes = fuzz(path, rng, flips=75, mutations=125, step=26)
    assert sum(outcomes.values()) > 450
    assert set(outcomes) <= OUTCOMES
    assert outcomes["loaded"] > 25  # or the damage is too coarse to reach the graph
    assert outcomes["FormatError"] > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_many_damaged_files_do_no_harm(path, rng):
    outcomes = fuzz(path, rng, flips=8000, mutations=12000, step=1)
    print(f"{sum(outcomes.values()):,} damaged files: {outcomes}")
    assert set(outcomes) <= OUTCOMES
    assert sum(outcomes.values()) > 40_000
