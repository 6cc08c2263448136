"""What can be wrong with an ONNX file: four kinds of error, with one base class."""

from collections.abc import Sequence
from typing import Any


class OnnxError(ValueError):
    """The base class: whoever catches it catches every refusal of a file."""


class FormatError(OnnxError):
    """The file is damaged, or breaks the rules of ONNX."""


class UnsupportedError(OnnxError):
    """The file is valid, but uses something that is not implemented here.

    message     the text
    operators   every operator that is missing, not just the first: a list of
                (operator, opset version, node name)
    """

    def __init__(self, message: str, operators: Sequence[tuple[str, int, str]] = ()):
        super().__init__(message)
        self.operators = list(operators)


class SecurityError(OnnxError):
    """The file asks for what no real network needs: other folders, or too much memory or time."""


class MismatchError(OnnxError):
    """The file holds another network than the one that should take its weights."""

    matched = 0  # how many layers agree, counted from the output


def unsupported(node: Any, text: str) -> UnsupportedError:
    """The error for a node that asks for something that is not implemented.

    node   the `reading.Node`
    text   what is not implemented
    """
    return UnsupportedError(f"{node}: {text}", [(node.operator, node.version, node.name)])
