"""Settings shared by every test: one fixed Hypothesis profile, the backends, the data folder."""

import contextlib
import os
import shutil
import sys
import warnings
from pathlib import Path

# Workers that test at the same time share the cores: threads of each would only wait for those of
# the others. What threads may change has tests of its own, which choose their number.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("MINIRES_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        _workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.environ.setdefault(_name, str(max(1, (os.cpu_count() or 1) // _workers)))

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Packages that are to be treated as if they were not installed: see test_optional_packages.py.
for _name in os.environ.get("MINIRES_TESTS_WITHOUT", "").split():
    sys.modules[_name] = None

# The same examples on every machine and every run: a red test is a changed program.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


def pytest_configure():
    """Compile the kernels before the first test. Without a compiler NumPy runs all tests."""
    from minires.kernels import compiled

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (np.float64, np.float32):
            compiled.functions(np.dtype(kind))


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(20180702)


def _cupy_or_skip():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed (extra gpu12 or gpu13)")
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no CUDA GPU: {error}")
    if not found:
        pytest.skip("no CUDA GPU")
    return cupy


@contextlib.contextmanager
def _device(name):
    if name == "cupy":
        yield _cupy_or_skip()
        return
    import emulated_cupy

    if (reason := emulated_cupy.missing()) is not None:
        pytest.skip(reason)
    with emulated_cupy.installed(as_a_card=name == "as a card") as cupy:
        yield cupy


DEVICES = ["emulated", pytest.param("cupy", marks=pytest.mark.gpu)]


def pytest_generate_tests(metafunc):
    """A file of tests may name other DEVICES than these: "as a card" rounds as a card does."""
    if "device" in metafunc.fixturenames:
        devices = getattr(metafunc.module, "DEVICES", DEVICES)
        metafunc.parametrize("device", devices, indirect=True)


@pytest.fixture
def device(request):
    """CuPy: its stand-in on the host everywhere, the real one where there is a GPU (`-m gpu`)."""
    with _device(request.param) as cupy:
        yield cupy


@pytest.fixture(params=["numpy", *DEVICES])
def xp(request):
    """The array module: NumPy, and `device`."""
    if request.param == "numpy":
        yield np
        return
    with _device(request.param) as cupy:
        yield cupy


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache that the tests of a file share, and nobody else.

    The compiled kernels are in it already: else every process that a test starts would compile.
    """
    from minires.kernels import compiled

    folder = tmp_path_factory.mktemp("cache")
    if compiled.compilers():
        shutil.copytree(compiled.cache_folder(), folder / "minires" / "kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIRES_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def own_picture_style():
    """A lesson sets matplotlib's style; the next test finds the default one."""
    yield
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None and matplotlib.rcParams != matplotlib.rcParamsDefault:
        matplotlib.rcdefaults()


@pytest.fixture
def one_torch_thread():
    """PyTorch's threads wait for one another more than they work, where work is small."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data_dir():
    """The folder named by MINIRES_DATA; tests that need its files skip without it."""
    folder = os.environ.get("MINIRES_DATA")
    if not folder:
        pytest.skip("MINIRES_DATA is not set: no data folder to read")
    return Path(folder)
