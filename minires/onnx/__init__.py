"""ONNX in, better ONNX out: read a network, fine-tune it, write it back.

    network = minires.onnx.load("model.onnx")
    print(network.summary())
    theta, stats = network.theta.copy(), network.stats.copy()
    loss, gradient = network.loss_and_gradient(theta, images, labels, stats=stats, rng=rng)
    probabilities = network.predict(theta, images, stats)
    minires.onnx.save(network, "mean.onnx", theta=moments.mean, stats=stats)

`reading` checks a file, which may be damaged or hostile. `graph` turns it into a network,
`operators` says what each operator does, `limits` bounds memory and time. `writing` puts new
weights into the same file, `exporting` writes a network of this library, and `transfer` gives a
file's weights to a network of this library. The `onnx` package is needed for parsing only, and
imported when the first file is read.
"""

from pathlib import Path

from minires.arrays.text import shown
from minires.onnx.errors import (
    FormatError,
    MismatchError,
    OnnxError,
    SecurityError,
    UnsupportedError,
)
from minires.onnx.exporting import export
from minires.onnx.graph import MEMORY, WORK, Network
from minires.onnx.transfer import native, transfer
from minires.onnx.writing import save


def load(
    path: str | Path, memory: int = MEMORY, work: int = WORK, output: str | None = None
) -> Network:
    """Read a network from an ONNX file.

    path     of the file
    memory   bytes that its values may take at the same time for one image; and bytes that it may
             read from other files or compute from its own arrays. Loading may take three times as
             much, and four times the size of the file
    work     time that one image may take, in multiplications of large matrices: a core does
             2 · 10¹⁰ of them a second, or more. Loading may take a tenth of it. A gradient takes
             two to four times as long
    output   name of the one output to keep, if the file has several; None: all
    Returns  a Network
    Raises   FormatError when the file is damaged or breaks the rules of ONNX; UnsupportedError,
             which lists all operators that are not implemented; SecurityError when the file asks
             for another folder, or for more memory or time than it may take (all three are
             OnnxError); OSError when it cannot be read
    """
    try:
        return Network(path, memory, work, output)
    except OnnxError as error:
        text = shown(error)  # names in a file come from outside
        if text.startswith(shown(path)) and text == str(error):
            raise
        text = text.removeprefix(f"{shown(path)}: ")
        if len(text) > 10_000:  # a name may be as long as the file
            text = f"{text[:10_000]} … and more"
        raise type(error)(f"{shown(path)}: {text}", *_details(error)) from error
    except MemoryError as error:
        raise SecurityError(
            f"{shown(path)}: the system has too little memory for this file"
        ) from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # No check has found it, but the fault is the file's.
        raise FormatError(f"{shown(path)}: {type(error).__name__}: {shown(error)}") from error


def _details(error):
    return [error.operators] if isinstance(error, UnsupportedError) else []


__all__ = [
    "FormatError",
    "MismatchError",
    "Network",
    "OnnxError",
    "SecurityError",
    "UnsupportedError",
    "export",
    "load",
    "native",
    "save",
    "transfer",
]
