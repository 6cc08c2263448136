"""Small ONNX files for the tests, written with the onnx package."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def node(operator, inputs, outputs, **attributes):
    """A node; inputs and outputs are names separated by spaces ("-" for none)."""
    inputs, outputs = (
        ["" if name == "-" else name for name in names.split()] for names in (inputs, outputs)
    )
    return helper.make_node(
        operator, inputs, outputs, name=f"{operator}_{outputs[0]}", **attributes
    )


def write(path, nodes, arrays=None, shape=(None, 3, 8, 8), outputs=("y",), opset=13, ir=8, dtype=1):
    """Write a model with an input `x` of `shape` (None: free) and outputs of unknown shape."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("x", dtype, ["N" if n is None else n for n in shape])],
            [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(a), name) for name, a in (arrays or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir,
    )
    onnx.save(model, path)
    return model


def runtime(path):
    """A function that runs a file in onnxruntime, on one thread: inputs by name → outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # a refusal is an exception, not a message
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return lambda **inputs: session.run(None, inputs)


def classifier(rng, opset=13):
    """Nodes and arrays of a little network with all that matters: bn, depthwise, shared, Gemm."""

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32) / 3

    arrays = {
        "w1": normal(6, 3, 3, 3),
        "scale": 1 + normal(6),
        "shift": normal(6),
        "mean": normal(6),
        "var": 1 + normal(6) ** 2,
        "w2": normal(6, 1, 3, 3),
        "b2": normal(6),
        "w3": normal(5, 6),
        "b3": normal(5),
        "six": np.array(6, np.float32),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        node("Conv", "x w1", "c1", strides=[2, 2], pads=[0, 0, 1, 1]),
        node("BatchNormalization", "c1 scale shift mean var", "n1", epsilon=1e-3),
        node("Clip", "n1 zero six", "a1"),
        node("Conv", "a1 w2 b2", "c2", group=6, pads=[1, 1, 1, 1]),
        node("Relu", "c2", "a2"),
        node("GlobalAveragePool", "a2", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w3 b3", "y", transB=1),
    ]
    return nodes, arrays


def loaded(rng):
    """A network from a file, its θ and statistics: what tests of any network ask for."""
    import tempfile
    from pathlib import Path

    import minires.onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write(path, *classifier(rng))
        network = minires.onnx.load(path)
    return network, network.theta, network.stats
