"""What works where only NumPy and its like are installed: all but what the others are for.

Any test can be run as if packages were missing: MINIRES_TESTS_WITHOUT="pooch dask" pytest …
"""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import minires

pytestmark = pytest.mark.usefixtures("own_cache")
MISSING = "pooch dask distributed onnx onnxruntime cupy torch hypothesis jupytext nbconvert"
ROOT = Path(__file__).resolve().parent.parent


HIDE = f"""import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def without(code):
    """Run Python code in a process of its own, in which packages are missing."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_optional_packages():
    prefix = "minires."
    names = [m.name for m in pkgutil.walk_packages(minires.__path__, prefix)]
    names = [n for n in names if "__main__" not in n and not n.startswith("minires.lessons")]
    assert len(names) > 80
    code = (
        "import importlib\n"
        "failed = []\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        failed.append((name, str(error)))\n"
        "print(failed)"
    )
    assert without(code) == "[]\n"


def test_a_network_trains_and_is_averaged_without_optional_packages():
    code = """
import minires, numpy as np
rng = np.random.default_rng(0)
model = minires.lenet_classic()
images = rng.random((64, *model.input_shape), np.float32)
labels = rng.integers(10, size=64)
theta, moments, optimizer = model.init(rng), minires.Moments(model.size), minires.SGD(0.05)
for _ in range(3):
    loss, gradient = model.loss_and_gradient(theta, images, labels, rng=rng)
    optimizer.step(theta, gradient)
    moments.update(theta)
print(moments.count, model.predict(moments.mean, images).shape)
"""
    assert without(code) == "3 (64, 10)\n"
