"""What can be wrong with an ONNX file: three kinds of error, one family."""


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

    matched = 0  # layers that agree, from the output
