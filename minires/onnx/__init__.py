"""ONNX in, better ONNX out: read a network, fine-tune it, write it back.

    network = minires.onnx.load("model.onnx")
    print(network.summary())
    theta, stats = network.theta.copy(), network.stats.copy()
    loss, gradient = network.loss_and_gradient(theta, images, labels, stats=stats, rng=rng)
    probabilities = network.predict(theta, images, stats)
    minires.onnx.save(network, "mean.onnx", theta=moments.mean, stats=stats)

`reading` checks a file that nobody vouches for, `graph` turns it into a network, `operators`
says what each operator does, `writing` puts new weights into the same file, and `matching`
gives a file's weights to the networks that are built here. The `onnx` package
is needed for parsing only, and imported when the first file is read.
"""

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


def load(path, memory=MEMORY, work=WORK, output=None):
    """Read a network from an ONNX file.

    path     of the file
    memory   bytes that its values may take at once for one image, and bytes of what it reads from
             other files or computes from its own arrays; what asks for more is refused. The
             process takes up to three times as much at loading, and four times the file
    work     time that one image may take, counted in multiplications of large matrices (a core
             does 2 · 10¹⁰ of them a second, or more); a tenth of it may pass at loading. A
             gradient takes two to four times as long
    output   name of the output that is wanted, of a file with several; None: all
    Returns  a Network
    Raises   FormatError when the file is damaged or breaks the rules, UnsupportedError with the
             complete list when it uses operators that are not implemented, SecurityError when
             it reaches outside its folder, for too much memory or for too much time (all three
             are OnnxError);
             OSError when it cannot be read
    """
    try:
        return Network(path, memory, work, output)
    except OnnxError as error:
        text = shown(error)  # names in a file come from outside
        if text.startswith(shown(path)) and text == str(error):
            raise
        text = text.removeprefix(f"{shown(path)}: ")
        if len(text) > 10_000:  # names in a file may be as long as the file
            text = f"{text[:10_000]} … and more"
        raise type(error)(f"{shown(path)}: {text}", *_details(error)) from error
    except MemoryError as error:
        raise SecurityError(
            f"{shown(path)}: there is not as much memory as this file needs"
        ) from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What no check foresaw: the file is at fault all the same.
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
