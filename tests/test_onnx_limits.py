"""Small hostile files in a process of their own, whose memory and time the system limits.

Each is loaded and, if that goes well, run on one image. It must end with an error of ours long
before the system would have to end it: a limit that is hit, or a count that was forgotten, shows
as a killed process.
"""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("resource", reason="the system cannot limit a process")
from onnx import numpy_helper  # noqa: E402
from onnx_models import node, write  # noqa: E402

MEMORY, WORK = 1 << 26, 2 * 10**10  # bytes; multiplications, about a second
SECONDS = 4  # of the processor, after which the system ends a process

# Loads and runs each file in a fork, within limits; prints what became of them as JSON.
HARNESS = """
import json, os, resource, sys
import numpy as np
import minires.onnx
from minires.onnx import reading
reading.import_onnx()
memory, work, seconds = map(int, sys.argv[1:4])
pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc") else 0

def outcome(path, shape):
    try:
        network = minires.onnx.load(path, memory=memory, work=work)
    except minires.onnx.OnnxError as error:
        return "load", type(error).__name__, str(error)[:2000]
    try:
        network.run(np.ones(shape, np.float32))
    except minires.onnx.OnnxError as error:
        return "run", type(error).__name__, str(error)[:2000]
    return "run", "ran", ""

results = {}
for name, path, shape in json.loads(sys.argv[4]):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        most = pages * os.sysconf("SC_PAGE_SIZE") + 4 * memory + (1 << 28)
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            found = outcome(path, shape)
        except BaseException as error:
            found = "fault", type(error).__name__, str(error)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    _, status, usage = os.wait4(child, 0)
    found = json.loads(told) if told else ["killed", str(status), ""]
    results[name] = [*found, usage.ru_utime + usage.ru_stime]
print(json.dumps(results))
"""


def chain(count, operator, first="e", others="", **settings):
    """Nodes one behind the other, from `first` to "y"."""
    names = [first, *(f"n{i}" for i in range(count - 1)), "y"]
    return [node(operator, f"{a} {others}", b, **settings) for a, b in pairwise(names)]


def joined(first, count):
    """Nodes that join an array to itself again and again, up to "y"."""
    names = [first, *(f"n{i}" for i in range(count - 1)), "y"]
    return [node("Concat", f"{a} {a}", b, axis=3) for a, b in pairwise(names)]


def filled(shape, name):
    """A node that makes an array of ones, of a shape that is an array of the file."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    return node("ConstantOfShape", shape, name, value=one)


ARRAYS = {
    "large": [1, 3, 500, 500],
    "image": [1, 3, 800, 800],
    "picture": [1, 3, 1000, 1000],
    "small": [1, 3, 50, 50],
    "plane": [1, 1, 1400, 1400],
    "square": [1200, 1200],
    "pixels": [1 << 20, 3, 1 << 10, 1 << 10],
    "kernel": [1, 3, 400, 400],
    "channels": [1, 800_000, 1, 1],
    "kernels": [800_000, 2, 1, 1],
    "nothing": [0, 0, 1, 1],
    "products": [300_000, 1, 1],
    "pairs": [-1, 2],
    "borders": [0, 0, 30_000, 30_000, 0, 0, 30_000, 30_000],
    "indices": [0] * 1000,
    "zeros": [0, 0, 0, 0],
    "axes": [0, 1, 2, 3],
    "ones": [1, 1, 1, 1],
    "row": [1, 1, 1, 20_000],
    "column": [1, 1, 20_000, 1],
    "scales": [1.0, 1.0, 30_000.0, 30_000.0],
}
LINES = [filled("row", "r"), filled("column", "c")]
LARGE, IMAGE = node("Expand", "x large", "e"), node("Expand", "x image", "e")
TIME, SPACE, UNKNOWN = "work=…) raises", "memory=…) raises", "not implemented"
FILES = {  # name → nodes, where it ends, words of the error
    "a long chain": ([LARGE, *chain(4_000, "Tanh")], "run", TIME),
    "many steps on one number": (chain(5_000, "Tanh", "x"), "run", TIME),
    "a chain of constants": (
        [filled("large", "e"), *chain(5_000, "Tanh")[:-1], node("Add", "x n4998", "y")],
        "load", TIME,
    ),
    "constants that are kept": (
        [*(filled("picture", f"c{i}") for i in range(99)),
         node("Sum", " ".join(["x", *(f"c{i}" for i in range(99))]), "y")],
        "load", SPACE,
    ),
    "one array very often": ([LARGE, node("Sum", "e " * 9_000, "y")], "load", TIME),
    "products of matrices": (
        [node("Expand", "x square", "e"), *chain(100, "MatMul", others="e")], "run", TIME,
    ),
    "products of whole numbers": (
        [node("Expand", "x square", "e"), node("Cast", "e", "i", to=7),
         *chain(500, "MatMul", "i", "i")],
        "load", TIME,
    ),
    "tiny products": (
        [node("Expand", "x products", "e"), node("MatMul", "e e", "y")], "load", TIME,
    ),
    "a giant kernel": (
        [filled("kernel", "w"), IMAGE, node("Conv", "e w", "y")], "load", TIME,
    ),
    "a giant border": (
        [filled("large", "w"), node("Conv", "x w", "y", pads=[1 << 20] * 4)],
        "load", SPACE,
    ),
    "many groups": (
        [filled("kernels", "w"), node("Expand", "x channels", "e"),
         node("Conv", "e w", "y", group=400_000)],
        "load", TIME,
    ),
    "no channels in many groups": (
        [node("Slice", "x zeros zeros axes", "e"), filled("nothing", "w"),
         node("Conv", "e w", "y", group=1 << 40)],
        "load", "groups",
    ),
    "many taps": ([IMAGE, node("MaxPool", "e", "y", kernel_shape=[400, 400])], "load", TIME),
    "windows as large as the image": (
        [node("Expand", "x plane", "e"),
         *(node("AveragePool", "e", f"a{i}", kernel_shape=[1400, 1400]) for i in range(9)),
         node("Sum", " ".join(f"a{i}" for i in range(9)), "y")],
        "run", TIME,
    ),
    "a wide border of taps": (
        [node("AveragePool", "x", "y", kernel_shape=[9_000] * 2, pads=[8_999] * 4)],
        "load", SPACE,
    ),
    "neighbours": ([node("Expand", "x small", "e"), *chain(50, "LRN", size=301)], "run", TIME),
    "softmax of pairs": (
        [LARGE, node("Reshape", "e pairs", "p"), *chain(100, "Softmax", "p")], "run", TIME,
    ),
    "many parts": (
        [node("Split", "x", " ".join(f"n{i}" for i in range(100_000)), axis=3),
         node("Relu", "n0", "y")],
        "load", TIME,
    ),
    "axes without end": (chain(3_000, "Unsqueeze", "x", axes=[0]), "load", "Unsqueeze"),
    "an expanded pixel": ([node("Expand", "x pixels", "y")], "load", SPACE),
    "doublings": ([LARGE, *joined("e", 60)], "run", SPACE),
    "a border of pixels": ([node("Pad", "x borders", "y")], "load", SPACE),
    "a row and a column": (
        [*LINES, node("Add", "r c", "s"), node("Add", "x s", "y")], "load", SPACE,
    ),
    "a row against a column": (
        [*LINES, node("Greater", "r c", "m"), node("Where", "m x x", "y")], "load", SPACE,
    ),
    "a row or a column": (
        [*LINES, node("Greater", "x x", "m"), node("Where", "m r c", "y")], "load", SPACE,
    ),
    "the larger of a row and a column": (
        [*LINES, node("Max", "x r c", "y")], "load", SPACE,
    ),
    "indices of indices": (
        [node("Gather", "x indices", "a", axis=3), node("Gather", "a indices", "b", axis=2),
         node("Gather", "b indices", "y", axis=1)],
        "run", SPACE,
    ),
    "tiles": ([node("Tile", "x ones", "y")], "load", UNKNOWN),
    "a larger image": ([node("Resize", "x - scales", "y")], "load", SPACE),
    "sums over letters": ([node("Einsum", "x", "y", equation="abcd->dcba")], "load", UNKNOWN),
    "an endless loop": ([node("Loop", "", "y", body=onnx.GraphProto())], "load", UNKNOWN),
}  # fmt: skip
OLD = ("many parts", "axes without end")  # their axes are attributes
SHAPES = {
    "many parts": (1, 1, 1, 100_000),
    "many groups": (1, 1, 1, 1),
    "windows as large as the image": (1, 1, 1, 1),
    "many steps on one number": (1, 1, 1, 1),
    "tiny products": (1, 1, 1),
    "products of matrices": (1, 1),
    "products of whole numbers": (1, 1),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every file: name → where it ended, the error's type and words, seconds."""
    folder, jobs = tmp_path_factory.mktemp("hostile"), []
    for number, (name, (nodes, _, _)) in enumerate(FILES.items()):
        used = {word for one in nodes for word in one.input}
        kept = {key: np.array(array) for key, array in ARRAYS.items() if key in used}
        shape, path = SHAPES.get(name, (1, 3, 1, 1)), folder / f"{number}.onnx"
        write(path, nodes, kept, shape=shape, opset=11 if name in OLD else 13)
        jobs.append((name, str(path), shape))
    words = [sys.executable, "-c", HARNESS, MEMORY, WORK, SECONDS, json.dumps(jobs)]
    done = subprocess.run(list(map(str, words)), capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_ends_soon_with_an_error_of_ours(outcomes, name):
    _, place, words = FILES[name]
    ended, kind, text, seconds = outcomes[name]
    print(f"{seconds:.1f} s, {ended}: {kind}: {text[:200]}")
    assert words in text, (ended, kind, text)
    assert ended == place
    assert seconds < SECONDS / 2
