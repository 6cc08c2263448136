"""What can be known of a GPU without one: kernels compile, CuPy has every name, errors help."""

import ast
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


def compile_for(nvrtc, source, *options):
    """PTX, the assembly of GPUs, and the compiler's remarks."""
    program = nvrtc.createProgram(source, "gpu.cu", [], [])
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getPTX(program), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("index", ["int", "long long"])
def test_every_kernel_compiles_for_a_gpu(nvrtc, capability, real, index):
    options = gpu.options(real, index)
    arch = f"--gpu-architecture=compute_{capability}"
    assembly, remarks = compile_for(nvrtc, gpu.source(), arch, *options)
    text = assembly.decode() if isinstance(assembly, bytes) else assembly
    kernels = [line.split("(")[0].split()[-1] for line in text.splitlines() if ".entry" in line]
    written = [
        line.split("(")[0].split()[-1]
        for line in gpu.source().splitlines()
        if "__global__ void" in line
    ]
    assert sorted(kernels) == sorted(written)
    assert f".target sm_{capability}" in text
    assert not remarks.strip("\0\n "), remarks


def test_only_comments_have_other_than_plain_characters():
    text = gpu.SOURCE.read_text("utf-8")
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    assert code.isascii()
    assert not text.isascii()
    assert gpu.source().isascii()


def launched():
    """The names of the kernels that gpu.py launches."""
    tree = ast.parse(Path(gpu.__file__).read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "_launch"
    }


def test_every_kernel_is_used_and_every_used_kernel_is_there():
    source = gpu.source()
    written = {
        line.split("(")[0].split()[-1] for line in source.splitlines() if "__global__ void" in line
    }
    assert launched() == written


# --- names of CuPy ------------------------------------------------------------------------


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
    with pytest.raises(RuntimeError, match="this machine has none: run on the CPU"):
        arrays.to_device(np.ones(2), "gpu")


def test_a_card_is_described(device):
    cards = arrays.describe_gpus()
    assert len(cards) == device.cuda.runtime.getDeviceCount()
    assert "GiB" in cards[0]
    assert "compute capability" in cards[0]
