"""Evaluating an ONNX network on photographs: minires, ONNX Runtime and PyTorch, on equal terms.

    python benchmarks/evaluate.py MODEL.onnx DIR --synsets FILE

The same arrays, the same batches, as many threads for each. First, what each predicts for every
photograph; then photographs a second, decoding excluded (all are decoded before) and included
(threads decode ahead, as in `minires evaluate`). Needs the extra `bench`.
"""

import argparse

import numpy as np
from compare import THREADS, interleave, report

from minires.data import imagenet


def minires_logits(path):
    """A function from a batch of photographs, as the file wants them, to logits."""
    import minires
    import minires.onnx

    minires.set_threads(THREADS)
    network = minires.onnx.load(path)
    return lambda images: network.logits(network.theta, images, network.stats)


def onnxruntime_logits(path):
    """The same with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def torch_logits(path):
    """The same with PyTorch: the graph node by node, batch norm folded into convolutions.

    It knows the operators of MobileNets only, NCHW.
    """
    import onnx
    import torch
    from torch.nn import functional

    torch.set_num_threads(THREADS)
    graph = onnx.load(path).graph
    weights = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    maker = {node.output[0]: node for node in graph.node}
    settings = {
        id(node): {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for node in graph.node
    }
    steps, alias = [], {}
    for node in graph.node:
        inputs = [alias.get(name, name) for name in node.input]
        known = settings[id(node)]
        if node.op_type == "BatchNormalization":
            scale, shift, mean, variance = (weights[name] for name in inputs[1:])
            factor = scale / (variance + known["epsilon"]).sqrt()
            kernel = maker[node.input[0]].input[1]
            weights[kernel] *= factor[:, None, None, None]
            # The convolution made its step already; its bias is looked up when it runs.
            weights[f"{kernel} bias"] = shift - mean * factor
            alias[node.output[0]] = inputs[0]
        else:
            steps.append((node.op_type, inputs, node.output[0], known))

    def run(images):
        # As they come, channels last in memory, which is PyTorch's faster layout here.
        values = {graph.input[0].name: torch.from_numpy(images), **weights}
        for kind, names, output, known in steps:
            x = values[names[0]]
            if kind == "Conv":
                top, left, bottom, right = known["pads"]
                pads = top, left
                if (top, left) != (bottom, right):
                    x, pads = functional.pad(x, (left, right, top, bottom)), 0
                bias = values[names[2]] if len(names) > 2 else values.get(f"{names[1]} bias")
                values[output] = functional.conv2d(
                    x, values[names[1]], bias, known["strides"], pads, groups=known["group"]
                )
            elif kind == "Clip":
                low, high = (float(values[name]) for name in names[1:])
                values[output] = x.clamp_(low, high)
            elif kind == "Add":
                values[output] = x + values[names[1]]
            elif kind == "GlobalAveragePool":
                values[output] = x.mean((2, 3), keepdim=True)
            elif kind == "Flatten":
                values[output] = x.flatten(1)
            elif kind == "Gemm":
                w = values[names[1]]
                values[output] = functional.linear(
                    x, w if known.get("transB") else w.T, values[names[2]]
                )
            else:
                raise ValueError(f"PyTorch by nodes: no {kind} here, use another network")
        return values[graph.output[0].name].numpy()

    def without_gradient(images):
        with torch.inference_mode():
            return run(images)

    return without_gradient


RUNTIMES = {
    "minires": minires_logits,
    "ONNX Runtime": onnxruntime_logits,
    "PyTorch": torch_logits,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("--synsets")
    parser.add_argument("--preset", default="keras", choices=tuple(imagenet.PRESETS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use the first so many photographs")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    options = parser.parse_args()

    pictures = imagenet.load(options.images, options.synsets)
    count = min(options.limit or len(pictures), len(pictures))
    plan = [
        np.arange(start, min(start + options.batch, count))
        for start in range(0, count, options.batch)
    ]

    def decoded():
        for batch in imagenet.batches(
            pictures, plan, options.preset, options.size, threads=THREADS
        ):
            yield batch.images.transpose(0, 3, 1, 2), batch.labels

    ready = list(decoded())
    labels = np.concatenate([batch for _, batch in ready])
    chosen = {"ONNX Runtime", *options.runtimes}  # the others are compared with it
    runtimes = {name: make(options.model) for name, make in RUNTIMES.items() if name in chosen}

    print(f"{options.model}, {len(labels)} photographs, batch {options.batch}, {THREADS} threads")
    logits = {
        name: np.concatenate([function(images) for images, _ in ready])
        for name, function in runtimes.items()
    }
    reference = logits["ONNX Runtime"]
    for name, found in logits.items():
        place = (found > found[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        same = (found.argmax(axis=1) == reference.argmax(axis=1)).sum()
        error = abs(found - reference).max() / abs(reference).max()
        print(
            f"  {name:<14} top-1 {100 * (place < 1).mean():.2f} %, top-5 "
            f"{100 * (place < 5).mean():.2f} %; same class as ONNX Runtime for {same} of "
            f"{len(labels)}, largest difference {error:.1e} of the largest logit"
        )

    def excluded(function):
        return lambda: [function(images) for images, _ in ready]

    def included(function):
        return lambda: [function(images) for images, _ in decoded()]

    for title, make in (("decoding excluded", excluded), ("decoding included", included)):
        functions = {name: make(function) for name, function in runtimes.items()}
        times = interleave(functions, options.rounds, calls=2)
        report(f"{title}: ms a photograph", times, "ONNX Runtime", per=len(labels))
        for name, seconds in times.items():
            print(f"  {name:<28}{len(labels) / np.median(seconds):>7.0f} photographs a second")

    times = interleave({"decoding alone": lambda: list(decoded())}, 1, calls=3)
    print(f"\ndecoding alone: {len(labels) / np.median(times['decoding alone']):.0f} a second")


if __name__ == "__main__":
    main()
