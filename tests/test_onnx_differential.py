"""Convolution and pooling nodes drawn at random, against onnxruntime.

Every setting that moves a window is drawn: border at each side by itself, `auto_pad`, strides,
dilation, groups, `ceil_mode`, whether the border counts. Cases that onnxruntime refuses (a
dilated SAME convolution, say) are drawn again; a case that it runs and minires refuses fails.

Two kinds of pooling are not drawn, because onnxruntime departs from the specification there:
windows larger than the image with its border (it rounds a negative number of steps towards
zero, and answers; here that is an error), and dilated SAME pooling (it leaves the dilation out
of the border, and gives fewer outputs than ⌈size / stride⌉). Nor are transposed SAME convolutions
whose kernels leave gaps (it gives fewer outputs than size · stride).
"""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx_models import node, runtime, write

import minires.onnx


def draw(rng, operator):
    """A node, its weights, and the images it sees."""
    size = rng.integers(3, 13, 2).tolist()
    kernel = rng.integers(1, 5, 2).tolist()
    group, depth, many = rng.integers(1, 4), rng.integers(1, 4), rng.integers(1, 4)
    channels = int(group * depth)
    settings = {"kernel_shape": kernel}
    if rng.random() < 0.8:
        settings["strides"] = rng.integers(1, 4, 2).tolist()
    if rng.random() < 0.4:
        settings["dilations"] = rng.integers(1, 4, 2).tolist()
    border = rng.choice(["none", "pads", "pads", "auto"])
    if border == "pads":
        settings["pads"] = [int(rng.integers(0, k)) for k in kernel * 2]
    elif border == "auto":
        settings["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]))
    arrays, inputs = {}, "x"
    if operator == "ConvTranspose":
        arrays["w"] = rng.standard_normal((channels, many, *kernel)).astype(np.float32)
        inputs, settings["group"] = "x w", int(group)
        steps = zip(settings.get("strides", [1, 1]), settings.get("dilations", [1, 1]), strict=True)
        if rng.random() < 0.5:
            settings["output_padding"] = [int(rng.integers(0, max(pair))) for pair in steps]
        if border == "none" and rng.random() < 0.5:
            settings["output_shape"] = [int(n + rng.integers(4, 9)) for n in size]
        if rng.random() < 0.5:
            arrays["b"] = rng.standard_normal(group * many).astype(np.float32)
            inputs = "x w b"
    elif operator == "Conv":
        arrays["w"] = rng.standard_normal((group * many, depth, *kernel)).astype(np.float32)
        inputs, settings["group"] = "x w", int(group)
        if rng.random() < 0.5:
            arrays["b"] = rng.standard_normal(group * many).astype(np.float32)
            inputs = "x w b"
    elif border != "auto":
        settings["ceil_mode"] = int(rng.integers(2))
    if operator == "AveragePool":
        settings["count_include_pad"] = int(rng.integers(2))
    images = rng.standard_normal((2, channels, *size)).astype(np.float32)
    return node(operator, inputs, "y", **settings), arrays, images, settings


def comparable(operator, size, settings):
    """Whether specification and onnxruntime agree on what the settings mean."""
    dilations = settings.get("dilations", [1, 1])
    pads = settings.get("pads", [0] * 4)
    if operator == "Conv":
        return True
    if operator == "ConvTranspose":
        steps = zip(
            settings["kernel_shape"], settings.get("strides", [1, 1]), dilations, strict=True
        )
        gaps = any(d * (k - 1) + 1 < s for k, s, d in steps)
        return not (gaps and settings.get("auto_pad", "NOTSET").startswith("SAME"))
    if settings.get("auto_pad", "NOTSET").startswith("SAME"):
        return dilations == [1, 1]
    return all(
        d * (k - 1) + 1 <= n + before + after
        for n, k, d, before, after in zip(
            size, settings["kernel_shape"], dilations, pads[:2], pads[2:], strict=True
        )
    )


def compare(path, seed, count, operators=("Conv", "MaxPool", "AveragePool")):
    """Run `count` cases on both; returns how many onnxruntime refused."""
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        NotImplemented,
        RuntimeException,
    )

    rng = np.random.default_rng(seed)
    done = refused = 0
    while done < count:
        operator = operators[done % len(operators)]
        one, arrays, images, settings = draw(rng, operator)
        if not comparable(operator, images.shape[2:], settings):
            continue
        write(path, [one], arrays, shape=(None, *images.shape[1:]), opset=19)
        try:
            (expected,) = runtime(path)(x=images)
        except (Fail, InvalidArgument, NotImplemented, RuntimeException):
            refused += 1
            continue
        found = minires.onnx.load(path).run(images)
        assert found.shape == expected.shape, one
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(one))
        done += 1
    return refused


def test_convolution_and_pooling_agree_with_onnxruntime(tmp_path):
    compare(tmp_path / "model.onnx", seed=1, count=150)


def test_transposed_convolutions_agree_with_onnxruntime(tmp_path):
    compare(tmp_path / "model.onnx", seed=3, count=200, operators=("ConvTranspose",))


@pytest.mark.slow
def test_a_thousand_convolutions_and_poolings_agree_with_onnxruntime(tmp_path):
    compare(tmp_path / "model.onnx", seed=2, count=1000)
