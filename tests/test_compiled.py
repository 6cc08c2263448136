"""Compiling the kernels in C: all that can go wrong costs speed only, and is said in one line."""

import ctypes
import os
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minires.kernels import compiled, cpu, memory, plain

ROOT = Path(__file__).resolve().parent.parent
SMALL = """
#include <stdint.h>
#define EXPORT __attribute__((visibility("default")))
EXPORT int twice(const real *x, real *y, int64_t count, int64_t threads) {
    for (int64_t i = 0; i < count; i++) y[i] = 2 * x[i];
    return (int)(threads - threads);
}
"""
needs_compiler = pytest.mark.skipif(not compiled.compilers(), reason="there is no C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a small source that is compiled at once."""
    source, parts = tmp_path / "small.c", tmp_path / "c"
    source.write_text(SMALL)
    parts.mkdir()
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "SOURCE", source)
    monkeypatch.setattr(compiled, "PARTS", parts)
    return tmp_path / "cache" / "minires" / "kernels"


def twice(path, dtype=np.float64):
    x = np.arange(5, dtype=dtype)
    y = np.empty_like(x)
    assert compiled.load(path, x.dtype)["twice"](x, y, 5, 1) == 0
    np.testing.assert_array_equal(y, 2 * x)


@needs_compiler
def test_a_library_is_compiled_once(cache, monkeypatch):
    path = compiled.build("double")
    twice(path)
    monkeypatch.setattr(compiled, "_compile", None)  # would raise
    assert compiled.build("double") == path
    assert cache.stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_another_source_processor_or_precision_is_another_library(cache, monkeypatch):
    paths = [compiled.build("double"), compiled.build("float")]
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    paths.append(compiled.build("double"))
    compiled.SOURCE.write_text(SMALL + "\n")
    paths.append(compiled.build("double"))
    assert len(set(paths)) == 4


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 100])
def test_a_damaged_library_or_index_is_compiled_again(cache, content):
    path = compiled.build("double")
    for victim in (path, next(cache.glob("*.txt"))):
        victim.write_bytes(content)
        twice(compiled.build("double"))


@needs_compiler
def test_several_at_once_do_not_disturb_each_other(cache):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(compiled.build, ["double"] * 4))
    for path in paths:
        twice(path)
    assert not list(cache.glob(".part-*"))


@needs_compiler
def test_several_processes_at_once(cache):
    code = (
        "import sys; from pathlib import Path; from minires.kernels import compiled\n"
        "compiled.SOURCE, compiled.PARTS = map(Path, sys.argv[1:])\n"
        "import numpy as np\n"
        "compiled.load(compiled.build('double'), np.dtype(float))"
    )
    command = [sys.executable, "-c", code, str(compiled.SOURCE), str(compiled.PARTS)]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/compiler -x", r"'/no/such/compiler' does not run"),
        (f"{sys.executable} -c 'raise SystemExit(\"error: no stdio.h\")'", "error: no stdio.h"),
    ],
)
def test_a_compiler_that_fails(cache, monkeypatch, command, message):
    monkeypatch.setenv("CC", command)
    with pytest.raises(compiled.Unavailable, match=message) as error:
        compiled.build("double")
    assert "\n" not in str(error.value)


def test_no_compiler(cache, monkeypatch):
    monkeypatch.setattr(compiled, "compilers", list)
    with pytest.raises(compiled.Unavailable, match=r"pip install 'minires\[fast\]'"):
        compiled.build("double")


@needs_compiler
def test_a_source_with_an_error_names_it(cache):
    compiled.SOURCE.write_text("int wrong(void) { return nothing; }")
    with pytest.raises(compiled.Unavailable, match="nothing"):
        compiled.build("double")


def test_a_cache_that_cannot_be_made(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path / "file"))
    with pytest.raises(compiled.Unavailable, match=r"cannot be made .* with MINIRES_CACHE"):
        compiled.build("double")


@needs_compiler
def test_a_cache_that_cannot_be_written_to(cache, monkeypatch):
    def refuse(**_):
        raise PermissionError("read-only")

    monkeypatch.setattr(compiled.tempfile, "mkstemp", refuse)
    with pytest.raises(compiled.Unavailable, match=r"cannot be written to .*read-only"):
        compiled.build("double")


@pytest.mark.skipif(os.name != "posix", reason="no owners and modes here")
def test_a_cache_of_somebody_else(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    with pytest.raises(compiled.Unavailable, match="belongs to another user"):
        compiled.build("double")


@pytest.mark.skipif(os.name != "posix", reason="no owners and modes here")
def test_a_cache_into_which_others_may_write(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(compiled.Unavailable, match="others may write into"):
        compiled.build("double")


def test_a_library_that_the_system_refuses(tmp_path):
    (tmp_path / "no.so").write_bytes(b"no library")
    with pytest.raises(compiled.Unavailable, match=r"cannot be loaded .* MINIRES_CACHE"):
        compiled.load(tmp_path / "no.so", np.dtype(float))


def test_without_a_compiler_there_is_one_warning_and_numpy_computes(cache, monkeypatch, rng):
    monkeypatch.setattr(compiled, "_loaded", {})
    monkeypatch.setattr(compiled, "compilers", list)
    x, w = rng.standard_normal((1, 2, 6, 5, 3)), rng.standard_normal((1, 3, 3, 3, 4))
    case = x, w, None, (1, 1), ((1, 1), (1, 1)), (1, 1), "relu"
    with pytest.warns(RuntimeWarning, match="there is no C compiler"):
        y = cpu.convolve(*case)
    np.testing.assert_array_equal(y, plain.convolve(*case))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpu.convolve(*(a.astype(np.float32) for a in (x, w)), *case[2:])


@needs_compiler
def test_a_kernel_refuses_what_it_would_misread(cache):
    function = compiled.load(compiled.build("double"), np.dtype(float))["twice"]
    x = np.ones(4)
    for wrong in (x.astype(np.float32), x[::2]):
        with pytest.raises(Exception, match="not a contiguous array of float64"):
            function(wrong, x, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ziglang", "clang", "gcc"])
def test_the_kernels_of_every_compiler_agree_with_plain(name, tmp_path):
    """Compilers differ: a loop that one compiles as meant, another once ended too early."""
    command = name
    if name == "ziglang":
        pytest.importorskip("ziglang", reason="the extra `fast` is not installed")
        command = f"{sys.executable} -m ziglang cc"
    elif shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         "tests/test_kernels.py", "tests/test_depthwise.py", "tests/test_optimizers.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CC": command, "MINIRES_CACHE": str(tmp_path), "MINIRES_KERNELS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@needs_compiler
def test_ctrl_c_while_an_argument_is_converted_is_ctrl_c():
    class Interrupted:
        @property
        def dtype(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cpu.call("sum_rows", np.dtype(np.float64), Interrupted(), None, None, None)
    with pytest.raises(ctypes.ArgumentError, match="not a contiguous array"):
        cpu.call("sum_rows", np.dtype(np.float64), np.zeros(3, np.float32), None, None, None)


def test_what_an_editor_keeps_beside_the_sources_is_none(cache):
    before = compiled.sources()
    (compiled.PARTS / ".part.c.swp").write_bytes(b"\xff\xfe")
    (compiled.PARTS / ".#part.c").symlink_to("nobody@nowhere")
    (compiled.PARTS / "part.c~").write_text("old")
    assert compiled.sources() == before


def test_a_user_without_a_home_gets_a_reason(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINIRES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled.Path, "home", nowhere)
    with pytest.raises(compiled.Unavailable, match=r"no folder for a cache .* MINIRES_CACHE"):
        compiled.cache_folder()


@needs_compiler
def test_a_library_that_is_loaded_goes_on_when_the_other_cannot_be_built(cache, monkeypatch):
    monkeypatch.setattr(compiled, "_loaded", {})
    single, double = np.dtype(np.float32), np.dtype(np.float64)
    found = compiled.functions(single)
    assert found
    monkeypatch.setattr(compiled, "compilers", list)
    with pytest.warns(RuntimeWarning, match="there is no C compiler"):
        assert compiled.functions(double) is None
    assert compiled.functions(single) is found


def test_a_float32_average_needs_no_library_for_doubles(monkeypatch, rng):
    asked = []
    monkeypatch.setattr(compiled, "functions", lambda dtype: asked.append(dtype))
    mean, theta = np.zeros(5), rng.standard_normal(5).astype(np.float32)
    cpu.fold_average(mean, theta, np.array([0.5]))
    assert asked == [np.float32]
    np.testing.assert_allclose(mean, theta / 2, rtol=1e-6)


@needs_compiler
def test_a_source_that_changes_while_it_is_compiled_is_not_kept(cache, monkeypatch):
    compile_, (first, *_) = compiled._compile, compiled.compilers()
    monkeypatch.setattr(compiled, "compilers", lambda: [first])

    def changing(*arguments):
        compile_(*arguments)
        compiled.SOURCE.write_text(SMALL + "\n")

    monkeypatch.setattr(compiled, "_compile", changing)
    with pytest.raises(compiled.Unavailable, match="changed while it was compiled"):
        compiled.build("float")
    assert not list(compiled.cache_folder().glob("*.txt"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("module", [compiled, memory])
def test_a_child_has_locks_of_its_own(module):
    """A thread that holds the lock at a fork is not in the child, and would never open it."""
    held = module._lock
    with held:
        module._after_fork()
        assert module._lock is not held
        with module._lock:  # would wait for ever if it were the old one
            pass
