"""The ONNX standard's own tests of single operators, and its real networks without weights.

The onnx package generates a model, inputs and expected outputs for every operator. All cases
whose operators are implemented here are run; what is skipped is skipped for one of the reasons
listed below, and the numbers of both are checked, so that no case disappears unseen.
"""

import functools
import re
import sys
import types
from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, numpy_helper  # noqa: E402
from onnx.backend.test.loader import load_model_tests  # noqa: E402

import minires.onnx  # noqa: E402
from minires.arrays import to_host  # noqa: E402
from minires.onnx import UnsupportedError  # noqa: E402
from minires.onnx.operators import OPERATORS  # noqa: E402

# Why a case is not run: what the refusal says → what it means.
REASONS = {
    r"elements of type \d+": "types: float8, float4, whole numbers of 2 or 4 bits, strings",
    r"cast to type \d+": "types: float8, float4, whole numbers of 2 or 4 bits, strings",
    r"is a (sequence|optional)_type": "types: sequences and optional values",
    r"only images \(N, C, H, W\)": "images with one or three axes of pixels",
    r"training mode": "the file's own training mode",
    r"only 'constant'": "borders that repeat the image",
    r"indices of the maxima": "maxima of whole numbers, or their places",
    r"whole numbers that depend on the input|DequantizeLinear .*: blocks": "quantised values",
    r"a single number is implemented": "powers with an array of exponents",
    r"antialias 1": "averages over many pixels when an image is made smaller",
    r"coordinate_transformation_mode": "a part of an image that is cut out and resized",
    r"remainders of floats": "remainders of floats",
    r"has no largest number": "the largest number of none",
    r"operator set 1:": "an operator set that is too old",
}
# Here the standard's own computation takes a length that is no whole number. ONNX Runtime and
# PyTorch round it before, and so is it done here: see the tests of Resize in test_onnx_real_files.
OTHERWISE = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


@functools.cache
def cases():
    """The standard's cases of single operators that are implemented."""
    # LpPool's pixels are added up in Python, for more than a second, and it is not implemented.
    assert "LpPool" not in OPERATORS
    name = "onnx.backend.test.case.node.lppool"
    sys.modules.setdefault(name, types.ModuleType(name))
    return [
        case
        for case in load_model_tests(kind="node")
        if case.model is not None
        and case.name not in OTHERWISE
        and all(
            node.op_type in OPERATORS and node.domain in ("", "ai.onnx")
            for node in case.model.graph.node
        )
    ]


def reason_of(error):
    """Which of the reasons a refusal gives."""
    (reason,) = (text for pattern, text in REASONS.items() if re.search(pattern, str(error)))
    return reason


def as_array(value):
    """An expected value; bfloat16 as float32."""
    array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def tolerance(declared):
    """What half a unit in the last place of the declared type allows."""
    return {TensorProto.BFLOAT16: 2**-8, TensorProto.FLOAT16: 2**-10}.get(declared, 1e-3)


def compare_all(path, device=None):
    """Run every case, on a device; returns the names of those that are implemented."""
    passed, skipped = [], Counter()
    for case in cases():
        onnx.save(case.model, path)
        try:
            network = minires.onnx.load(path)
            ((given, outputs),) = case.data_sets
            names = [value.name for value in network.inputs]
            inputs = dict(zip(names, map(as_array, given), strict=True))
            theta = None
            if device is not None:
                wide = any(array.dtype == np.float64 for array in inputs.values())
                theta = device.asarray(network.theta, np.float64 if wide else np.float32)
            found = network.run(inputs, theta=theta)
        except UnsupportedError as error:
            skipped[reason_of(error)] += 1
            continue
        found = found if isinstance(found, tuple) else (found,)
        for array, value, declared in zip(found, outputs, case.model.graph.output, strict=True):
            array, expected = to_host(array), as_array(value)
            assert array.shape == expected.shape, case.name
            if expected.dtype.kind == "f":
                limit = tolerance(declared.type.tensor_type.elem_type)
                if case.name.endswith("_bf16_expanded"):  # many nodes, each of which rounds
                    limit *= 4
                np.testing.assert_allclose(
                    array.astype(np.float64), expected, rtol=limit, atol=1e-7, err_msg=case.name
                )
            else:
                assert array.dtype == expected.dtype, case.name
                np.testing.assert_array_equal(array, expected, err_msg=case.name)
        passed.append(case.name)
    print(f"{len(passed)} passed, {sum(skipped.values())} skipped: {dict(skipped)}")
    return passed


@pytest.mark.filterwarnings("ignore")  # of the package that makes the cases
def test_operators_as_the_standard_tests_them(tmp_path):
    passed = compare_all(tmp_path / "model.onnx")
    assert len(passed) >= 735
    assert {"test_basic_conv_with_padding", "test_averagepool_2d_ceil", "test_relu"} <= {*passed}


@pytest.mark.filterwarnings("ignore")
def test_operators_on_a_device_as_the_standard_tests_them(device, tmp_path):
    assert len(compare_all(tmp_path / "model.onnx", device)) >= 300


LIGHT = {  # name → trainable weights; every one comes out of a ConstantOfShape node
    "bvlc_alexnet": 60_965_224,
    "densenet121": 8_062_504,
    "inception_v1": 6_998_552,
    "inception_v2": 11_214_888,
    "resnet50": 25_557_032,
    "shufflenet": 1_393_320,
    "squeezenet": 1_235_496,
    "vgg19": 143_667_240,
    "zfnet512": 87_250_536,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_real_graphs_with_constant_weights(name, rng, tmp_path):
    from pathlib import Path

    from onnx_models import runtime

    path = Path(onnx.__file__).parent / f"backend/test/data/light/light_{name}.onnx"
    if not path.exists():
        pytest.skip(f"this onnx package lacks {path.name}")
    if name in ("squeezenet", "zfnet512"):
        # Logits all equal, and 10¹⁰ or more: behind the softmax only rounding is left.
        model = onnx.load(path)
        model.graph.output[0].name = model.graph.node[-1].input[0]
        path = tmp_path / path.name
        onnx.save(model, path)
    network = minires.onnx.load(path)
    images = rng.uniform(size=network.declared_shape).astype(np.float32)
    (expected,) = runtime(path)(**{network.input_name: images})
    found = network.run(images)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert network.theta.size == LIGHT[name]
