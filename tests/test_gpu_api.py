"""What can be known of a GPU without one: kernels compile, CuPy has every name, errors help."""

import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import arrays
from minires.kernels import gpu

MOST_REGISTERS = 80  # of 65,536 that 3 blocks of 256 threads share
PACKAGE = Path(minires.__file__).parent
BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"

# --- NVIDIA's compiler --------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvrtc():
    pytest.importorskip("cupy", reason="CuPy is not installed (extra test, gpu12 or gpu13)")
    try:
        nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVIDIA's compiler is not installed (nvidia-cuda-nvrtc): {error}")
    return nvrtc


# Ampere, Hopper, Blackwell for data centres and for desks.
ARCHITECTURES = (80, 90, 100, 120)


def compile_for(nvrtc, capability, *options):
    """The program for a card, as CuPy has it made, and all that the compiler says of it."""
    known = nvrtc.getSupportedArchs()
    if capability not in known:
        pytest.skip(f"this NVRTC knows no capability {capability / 10:.1f}, only {known}")
    program = nvrtc.createProgram(gpu.source(), "gpu.cu", [], [])
    asked = f"--gpu-architecture=sm_{capability}", "-ftz=true", "--ptxas-options=-v"
    try:
        nvrtc.compileProgram(program, (*options, *asked))
        return nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def written():
    """The names of the kernels in gpu.cu."""
    return re.findall(r"__global__ void (\w+)\(", gpu.source())


def report(log):
    """{kernel: (registers, (bytes on the stack, spilled, of shared memory, and barriers))}."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stack, *spilled = map(int, re.search(r"(\d+) bytes stack.* (\d+).* (\d+)", part).groups())
        used = re.search(r"Used (\d+) registers, used (\d+) barriers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        memory = stack, sum(spilled), int(shared[1]) if shared else 0
        found[part.split("'")[0]] = int(used[1]), (*memory, int(used[2]))
    return found


@pytest.mark.parametrize("capability", ARCHITECTURES)
@pytest.mark.parametrize(
    ("real", "index"),
    [
        ("float", "int"),
        pytest.param("double", "int", marks=pytest.mark.slow),
        pytest.param("float", "long long", marks=pytest.mark.slow),
        pytest.param("double", "long long", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles_for_every_card(nvrtc, capability, real, index):
    """Without a remark of the compiler; 256 threads of each find room, with nothing spilled.

    No kernel has shared memory or barriers: so none can wait where others do not.
    """
    log = compile_for(nvrtc, capability, *gpu.options(real, index))
    assert "warning" not in log.lower(), log
    assert "error" not in log.lower(), log
    found = report(log)
    assert sorted(found) == sorted(written())
    for name, (registers, rest) in found.items():
        assert registers <= MOST_REGISTERS, f"{name}: {registers} registers"
        assert rest == (0, 0, 0, 0), f"{name}: stack, spilled, shared, barriers {rest}"
    assert "atomic" not in gpu.source()  # and no order of threads changes a sum


def test_what_the_compiler_remarks_is_seen(nvrtc, monkeypatch):
    """A value that is never used; and an array that does not fit the registers."""
    capability = max(set(ARCHITECTURES) & set(nvrtc.getSupportedArchs()))
    kernel = """extern "C" __global__ void f(float* y, int n) {
        float many[100]; for (int k = 0; k < 100; k++) many[k] = y[k * n];
        __syncthreads();
        for (int k = 0; k < n; k++) y[k] = many[(k * n) % 100]; int unused = n; }"""
    monkeypatch.setattr(gpu, "source", lambda: kernel)
    log = compile_for(nvrtc, capability)
    assert "warning" in log
    stack, _, _, barriers = report(log)["f"][1]
    assert stack >= 400
    assert barriers == 1


def test_only_comments_have_other_than_plain_characters():
    text = gpu.SOURCE.read_text("utf-8")
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    assert code.isascii()
    assert not text.isascii()
    assert gpu.source().isascii()


def launched():
    """The names that gpu.py gives to `_launch`, and all other words that it holds."""
    nodes = list(ast.walk(ast.parse(Path(gpu.__file__).read_text("utf-8"))))
    calls = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "_launch"]
    named = {c.args[0].value for c in calls if isinstance(c.args[0], ast.Constant)}
    return named, {n.value for n in nodes if isinstance(n, ast.Constant)}


def test_every_kernel_is_used_and_every_used_kernel_is_there():
    named, words = launched()
    assert named <= set(written()) <= words


# --- names of CuPy ------------------------------------------------------------------------


@functools.cache
def used_names():
    """{dotted name after `xp`: [(file, line, call or None)]} in the package and the benchmark."""
    found = {}
    for path in [*sorted(PACKAGE.rglob("*.py")), BENCHMARK]:
        tree = ast.parse(path.read_text("utf-8"))
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                name = dotted(node)
                if name is not None:
                    place = path.name, node.lineno, calls.get(id(node))
                    found.setdefault(name, []).append(place)
    return found


def dotted(node):
    """ "cuda.Stream" for the expression `xp.cuda.Stream`, `self.xp.…`, `cupy.…`, `xp_of(x).…`."""
    parts = []
    while isinstance(node, ast.Attribute):
        if node.attr == "xp":  # self.xp
            return ".".join(reversed(parts)) or None
        parts.append(node.attr)
        node = node.value
    root = (
        node.id if isinstance(node, ast.Name)
        else node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        else None
    )  # fmt: skip
    return ".".join(reversed(parts)) if root in ("xp", "cupy", "xp_of") else None


# Of the module itself, and so of no use to ask CuPy for.
NUMPY_TOO = {"__name__"}


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed (extra test, gpu12 or gpu13)")


def test_cupy_has_every_name_that_the_package_uses(cupy):
    names = {name: places for name, places in used_names().items() if name not in NUMPY_TOO}
    assert {"matmul", "asarray", "empty", "cuda.get_current_stream"} <= set(names)
    assert {"cuda.using_allocator", "cuda.runtime.deviceGetAttribute"} <= set(names)
    for name, places in names.items():
        value = cupy
        for part in name.split("."):
            assert hasattr(value, part), f"cupy has no {name} ({places[0][:2]})"
            value = getattr(value, part)


def test_cupy_takes_every_argument_that_the_package_gives(cupy):
    checked = 0
    for name, places in used_names().items():
        function = cupy
        for part in name.split("."):
            function = getattr(function, part, None)
        for path, line, call in places:
            if call is None or any(isinstance(a, ast.Starred) for a in call.args):
                continue
            keywords = {k.arg: None for k in call.keywords if k.arg is not None}
            if isinstance(function, cupy.ufunc):
                assert set(keywords) <= {"out", "casting", "dtype"}, (name, path, line)
                assert len(call.args) in (function.nin, function.nin + function.nout), (path, line)
                checked += 1
                continue
            try:
                signature = inspect.signature(function)
            except (TypeError, ValueError):
                continue
            signature.bind(*[None] * len(call.args), **keywords)
            checked += 1
    assert checked > 50


# --- no GPU -------------------------------------------------------------------------------


class _Driver:
    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, count):
        self.count = count

    def getDeviceCount(self):
        if self.count is None:
            raise self.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.count


def machine(monkeypatch, count):
    """CuPy on a machine whose driver counts that many GPUs, or is missing."""
    import types

    driver = _Driver(count)
    module = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=driver))
    monkeypatch.setitem(sys.modules, "cupy", module)


def test_a_gpu_without_a_driver_names_the_remedy(monkeypatch):
    machine(monkeypatch, None)
    with pytest.raises(RuntimeError, match=r"finds none \(.*no CUDA-capable device.*\): install"):
        arrays.to_device(np.ones(2), "gpu")
    assert "no CUDA-capable device" in arrays.describe_gpus()


def test_a_driver_without_a_gpu(monkeypatch):
    machine(monkeypatch, 0)
    with pytest.raises(RuntimeError, match="this machine has none: use the CPU"):
        arrays.to_device(np.ones(2), "gpu")


def test_a_card_is_described(device):
    cards = arrays.describe_gpus()
    assert len(cards) == device.cuda.runtime.getDeviceCount()
    assert "GiB" in cards[0]
    assert "compute capability" in cards[0]
