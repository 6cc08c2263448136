"""What can be wrong with an ONNX file: three kinds of error, one family."""

import unicodedata

# Control and format characters, lone surrogates, unassigned ones, line and paragraph separators.
HARMFUL = {"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"}


def shown(text: object) -> str:
    """Text from outside (a path, a name in a file), made safe to show on a terminal.

    Control characters could move the cursor, ring the bell or turn the direction of writing.
    Each becomes its escape, such as \\x1b, and so does a newline: what is shown is one line.

    text      anything; `str` of it is taken
    Returns   str of printable characters
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in HARMFUL
        else character
        for character in str(text)
    )


class OnnxError(ValueError):
    """The family: catch this to catch every refusal of a file."""


class FormatError(OnnxError):
    """The file is damaged, or breaks the rules of ONNX."""


class UnsupportedError(OnnxError):
    """The file is valid, but uses something that is not implemented here.

    operators   every operator that is missing, not just the first: a list of
                (operator, opset version, node name)
    """

    def __init__(self, message, operators=()):
        super().__init__(message)
        self.operators = list(operators)


class SecurityError(OnnxError):
    """The file asks for what no honest network needs: other folders, or all of the memory."""


class MismatchError(OnnxError):
    """The file holds another network than the one that is to take its weights."""
