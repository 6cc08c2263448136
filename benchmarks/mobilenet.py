"""MobileNetV2 and Inception-V3: prediction and training against PyTorch and ONNX Runtime.

    python benchmarks/mobilenet.py                    all of it, some minutes
    python benchmarks/mobilenet.py inference training one part or more

Parts: inference, alone (batch 1), training, inception, memory, growth, threads (two against one),
floor (what a training step takes at least). All on as many threads, interleaved; medians and
quartiles. Needs the extra `bench`.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
from compare import THREADS, child_peak, interleave, own_peak, report, scaling

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for torch_networks

BATCH, SIZE = 16, 224
INCEPTION_BATCH, INCEPTION_SIZE = 8, 299
PARTS = ("inference", "alone", "training", "inception", "memory", "growth", "threads", "floor")


def _minires(name, size, batch):
    import minires

    minires.set_threads(THREADS)
    rng = np.random.default_rng(0)
    make = {"mobilenet_v2": minires.mobilenet_v2, "inception_v3": minires.inception_v3}[name]
    model = make(input_shape=(size, size, 3), variant="torch")
    images = rng.standard_normal((batch, size, size, 3), dtype=np.float32)
    return model, model.init(rng), model.init_stats(), images, rng


def minires_inference(name="mobilenet_v2", size=SIZE, batch=BATCH):
    """A function that computes the logits of one batch with minires."""
    model, theta, stats, images, _ = _minires(name, size, batch)
    return lambda: model.logits(theta, images, stats)


def minires_step(name="mobilenet_v2", size=SIZE, batch=BATCH):
    """A function that does one training step with minires."""
    import minires

    model, theta, stats, images, rng = _minires(name, size, batch)
    labels, optimizer = rng.integers(0, model.classes, batch), minires.SGD(1e-5)

    def step():
        _, gradient = model.loss_and_gradient(theta, images, labels, stats=stats, rng=rng)
        optimizer.step(theta, gradient)

    return step


def torch_network(name):
    """PyTorch, and the network in PyTorch."""
    import torch
    import torch_networks

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if name == "mobilenet_v2":
        network = torch_networks.torch_mobilenet_v2(1.0, 3, 1000, 2, (1e-5, 0.9, False))
    else:
        network = torch_networks.TorchInception(1.0, 3, 1000, "torch", auxiliary=False)
    return torch, network


def torch_inference(name="mobilenet_v2", size=SIZE, batch=BATCH, channels_last=False):
    """A function that computes the logits of one batch with PyTorch."""
    torch, network = torch_network(name)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.eval().to(memory_format=layout)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)

    def infer():
        with torch.inference_mode():
            return network(images)

    return infer


def torch_step(name="mobilenet_v2", size=SIZE, batch=BATCH, channels_last=False):
    """A function that does one training step with PyTorch."""
    torch, network = torch_network(name)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    labels = torch.randint(0, 1000, (batch,))

    def step():
        optimizer.zero_grad()
        output = network(images)
        output = output[0] if isinstance(output, tuple) else output
        torch.nn.functional.cross_entropy(output, labels).backward()
        optimizer.step()

    return step


def runtime_inference(name="mobilenet_v2", size=SIZE, batch=BATCH):
    """A function that computes the logits of one batch with ONNX Runtime."""
    import onnxruntime

    torch, network = torch_network(name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = os.path.join(folder, "network.onnx")
        torch.onnx.export(network.eval(), torch.zeros(batch, 3, size, size), path, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    return lambda: session.run(None, {name: images})


def inference(rounds, batch=BATCH):
    functions = {
        "minires": minires_inference(batch=batch),
        "PyTorch": torch_inference(batch=batch),
        "PyTorch, channels last": torch_inference(batch=batch, channels_last=True),
        "ONNX Runtime": runtime_inference(batch=batch),
    }
    times = interleave(functions, rounds)
    title = f"MobileNetV2 inference, {SIZE}×{SIZE}, batch {batch}, {THREADS} threads, per image"
    report(title, times, "PyTorch", per=batch)


def alone(rounds):
    inference(rounds, batch=1)


def training(rounds):
    functions = {
        "minires": minires_step(),
        "PyTorch": torch_step(),
        "PyTorch, channels last": torch_step(channels_last=True),
    }
    times = interleave(functions, rounds, calls=2)
    title = f"MobileNetV2 training step, {SIZE}×{SIZE}, batch {BATCH}, per image"
    report(title, times, "PyTorch", per=BATCH)


def inception(rounds):
    settings = {"name": "inception_v3", "size": INCEPTION_SIZE, "batch": INCEPTION_BATCH}
    functions = {
        "minires": minires_inference(**settings),
        "PyTorch": torch_inference(**settings),
        "PyTorch, channels last": torch_inference(**settings, channels_last=True),
        "ONNX Runtime": runtime_inference(**settings),
    }
    times = interleave(functions, rounds, calls=2)
    size = INCEPTION_SIZE
    title = f"Inception-V3 inference, {size}×{size}, batch {INCEPTION_BATCH}, per image"
    report(title, times, "PyTorch", per=INCEPTION_BATCH)


def memory(rounds):
    print(f"\npeak memory of a process that takes three MobileNetV2 steps, batch {BATCH}")
    for name in ("minires", "torch"):
        print(f"  {name:<28}{child_peak(__file__, '--peak', name):>7.0f} MiB")


def threads(rounds):
    settings = {"name": "inception_v3", "size": INCEPTION_SIZE, "batch": INCEPTION_BATCH}
    functions = {
        "MobileNetV2 predicts": minires_inference(),
        "MobileNetV2 trains": minires_step(),
        "Inception-V3 predicts": minires_inference(**settings),
        "PyTorch: MobileNetV2 predicts": torch_inference(),
        "PyTorch: MobileNetV2 trains": torch_step(),
        "PyTorch: Inception-V3 predicts": torch_inference(**settings),
    }
    scaling(functions, rounds)


def kernels_of(step):
    """The kernels in C that a step calls: how many, the shapes of their products, bytes moved.

    A shape is (rows, inner, columns, whether it is a gradient of weights). Bytes are those of the
    arrays of a megabyte and more, once for each kernel: smaller ones stay in the caches.
    """
    from minires.kernels import cpu

    with mock.patch.object(cpu, "call", wraps=cpu.call) as call:
        step()
    shapes, moved = [], 0
    for (name, _, *arguments), _ in call.call_args_list:
        sizes = [array.nbytes for array in arguments if isinstance(array, np.ndarray)]
        moved += sum(size for size in sizes if size >= 1 << 20)
        if name.startswith("convolve"):
            # In the order of `struct windows` of kernels/c/convolution.c.
            numbers = next(argument for argument in arguments if isinstance(argument, tuple))
            images, channels, kernel = numbers[2], numbers[5], numbers[6:8]
            output, out_channels = numbers[16:18], numbers[18]
            rows, inner = images * math.prod(output), math.prod(kernel) * channels
            shapes.append((rows, inner, out_channels, "weight" in name))
    return len(call.call_args_list), shapes, moved


def floor(rounds):
    """What a training step cannot do without: its products, and moving its arrays once a kernel."""
    import torch

    step = minires_step()
    step()
    count, shapes, moved = kernels_of(step)
    torch.set_num_threads(THREADS)
    matrices = {}
    for shape in shapes:
        rows, inner, columns, of_weights = shape
        x, other = torch.randn(rows, inner), torch.randn(rows if of_weights else inner, columns)
        matrices[shape] = (x.T if of_weights else x), other

    def products():
        for shape in shapes:
            torch.mm(*matrices[shape])

    source, target = np.ones((2, 1 << 26), np.float32)
    parts = np.split(target, THREADS), np.split(source, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:

        def copy():
            list(pool.map(np.copyto, *parts))

        functions = {"a training step": step, "PyTorch's products alone": products, "a copy": copy}
        times = interleave(functions, rounds, calls=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    speed = 2 * source.nbytes / medians["a copy"]
    multiplied = sum(math.prod(shape[:3]) for shape in shapes)
    print(f"\nMobileNetV2 training step, batch {BATCH}, {THREADS} threads: {count} kernels")
    for name in ("a training step", "PyTorch's products alone"):
        print(f"  {name:<28}{medians[name] * 1e3:>8.0f} ms")
    print(f"  {'moving its arrays alone':<28}{moved / speed * 1e3:>8.0f} ms")
    moved /= 1e9
    print(f"  {multiplied / 1e9:.1f} billion multiplications; {moved:.1f} GB read and written,")
    print(f"  at the {speed / 1e9:.0f} GB/s at which these cores copy")


def growth(rounds):
    print("\ncost of MobileNetV2 with minires, ms an image (and ns a pixel)")
    print(f"  {'size':<10}{'batch':>6}{'inference':>20}{'training step':>24}")
    cases = [(size, BATCH) for size in (96, 128, 160, 192, 224)]
    cases += [(SIZE, batch) for batch in (1, 2, 4, 8, 32)]
    for size, batch in cases:
        functions = {
            "inference": minires_inference(size=size, batch=batch),
            "step": minires_step(size=size, batch=batch),
        }
        times = interleave(functions, max(2, rounds // 4), calls=1)
        cells = ""
        for values in times.values():
            each = float(np.median(values)) / batch
            cells += f"{each * 1e3:>12.2f} ms {each * 1e9 / size**2:>6.0f} ns"
        print(f"  {f'{size}×{size}':<10}{batch:>6}{cells}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help="; ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peak", choices=("minires", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        step = {"minires": minires_step, "torch": torch_step}[options.peak]()
        for _ in range(3):
            step()
        print(own_peak())
        return
    for part in options.parts or PARTS:
        if part not in PARTS:
            parser.error(f"part is {part!r}, there are {', '.join(PARTS)}")
        globals()[part](options.rounds)


if __name__ == "__main__":
    main()
