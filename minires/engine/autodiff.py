"""Reverse-mode automatic differentiation in one page. It knows no layer and no NumPy.

A function of arrays becomes differentiable by saying, beside its result, how a gradient of
the result is pulled back to each of its inputs:

    @op
    def multiply(x, y):
        return x * y, (lambda g: g * y,
                       lambda g: g * x)

Called with plain arrays, `multiply` returns a plain array and nothing is recorded. Called
with at least one `Tensor` it returns a `Tensor`, whose *node* remembers the pullbacks and
the nodes of the inputs. `gradients` then walks the nodes from the last to the first.

Three things are done here so that no op has to:
- broadcasting is undone: a pullback may return the gradient in the result's shape;
- gradients that meet at one node are added;
- a node is emptied as soon as it has been used, and with it the arrays its pullbacks hold.

Nodes refer to their inputs only, never forward, so there are no reference cycles: memory is
free the moment the last name for it goes. There is no double backward and no in-place Tensor.
"""

import functools
import heapq
import itertools

from minires.arrays import xp_of
from minires.kernels.sums import sum_to_shape

_serial = itertools.count()


class Node:
    """One recorded step: where gradients gather, and how they go on to the inputs."""

    __slots__ = ("first", "gradient", "owned", "parents", "serial", "shape")

    def __init__(self, shape, parents, first=None):
        self.serial = next(_serial)  # inputs are always older than what is made from them
        self.shape = shape
        self.parents = parents  # [(node, pullback), …]; None once used
        self.first = first  # what is done to the gradient before every pullback, if anything
        self.gradient = None
        self.owned = False  # may `gradient` be changed in place?

    def receive(self, pullback, gradient):
        """Pull `gradient` back and add the result to this node's own."""
        pulled = sum_to_shape(pullback(gradient), self.shape)
        if self.gradient is None:
            self.gradient = pulled
        elif self.owned:
            self.gradient += pulled
        else:
            self.gradient, self.owned = self.gradient + pulled, True


class Variable(Node):
    """The node of a variable: it has no inputs, and keeps its gradient, perhaps in `out`."""

    __slots__ = ("out",)

    def __init__(self, shape, out=None):
        super().__init__(shape, parents=())
        self.out = out

    def receive(self, pullback, gradient):
        """As `Node.receive`; what comes first is written to `out`."""
        if self.out is None or self.gradient is not None:
            super().receive(pullback, gradient)
            return
        takes_out = getattr(pullback, "takes_out", False)
        pulled = pullback(gradient, self.out) if takes_out else pullback(gradient)
        pulled = sum_to_shape(pulled, self.shape)
        if pulled is not self.out:
            self.out[...] = pulled
        self.gradient, self.owned = self.out, True


def takes_out(pullback):
    """Marks a pullback(g, out=None) that may write its result to the array `out`, if that fits.

    It returns the result in any case. So a large gradient is written where it belongs, not copied.
    """
    pullback.takes_out = True
    return pullback


class Tensor:
    """An array and the node that remembers how it was made.

    `data`  the array (NumPy or CuPy)
    `node`  its node, or None for a constant
    """

    __slots__ = ("__weakref__", "data", "node")
    __array_ufunc__ = None  # so that `array + tensor` comes to Tensor.__radd__

    def __init__(self, data, node=None):
        self.data = data
        self.node = node

    @property
    def shape(self):
        return self.data.shape

    @property
    def ndim(self):
        return self.data.ndim

    @property
    def dtype(self):
        return self.data.dtype

    def __repr__(self):
        kind = "constant" if self.node is None else "tensor"
        return f"<{kind} {self.data.dtype} {self.data.shape}>"


def variable(array, out=None):
    """A Tensor with respect to which gradients are wanted.

    array    its value
    out      an array of the same shape in which to write its gradient, instead of a new one
    """
    return Tensor(array, Variable(array.shape, out))


def data_of(value):
    """The array in a Tensor; anything else as it is."""
    return value.data if isinstance(value, Tensor) else value


def op(function):
    """Make a function of arrays differentiable.

    function   takes arrays first, settings by keyword; returns (result, pullbacks) with one
               pullback for each array argument, in order. A pullback maps the gradient of the
               result to that of the argument; see also `takes_out`. Where all pullbacks begin
               with the same step, it may stand behind them: (result, pullbacks, first). It is
               done once, and each pullback is given what it returns
    """

    @functools.wraps(function)
    def recorded(*inputs, **settings):
        result, pullbacks, *first = function(*map(data_of, inputs), **settings)
        # Only the pullbacks that lead to a variable are kept, and with them only their arrays.
        parents = [
            (value.node, pullback)
            for value, pullback in zip(inputs, pullbacks, strict=False)
            if isinstance(value, Tensor) and value.node is not None
        ]
        if parents:
            return Tensor(result, Node(result.shape, parents, *first))
        return Tensor(result) if any(isinstance(i, Tensor) for i in inputs) else result

    return recorded


def gradients(output, variables, seed=None):
    """The gradients of `output` with respect to each variable.

    output     a Tensor; if it is not a scalar, the gradient of the sum of its elements
    variables  Tensors made by `variable`
    seed       what to start from instead of ones: an array of the output's shape
    Returns    a list of arrays, one a variable, zeros where the output does not depend on it.
               To be read, not changed: two of them, or one and the seed, may be the same array
    Raises     RuntimeError when this graph has been used before: its memory is gone;
               ValueError for a Tensor that is not a variable, for integers, and for a seed of
               another shape than the output
    """
    variables = list(variables)
    for wanted in variables:
        if not isinstance(wanted.node, Variable):
            raise ValueError(f"gradients: {wanted!r} is no variable: make it with `variable`")
        if wanted.dtype.kind not in "fc":
            raise ValueError(
                f"gradients: {wanted!r} holds integers, which have no gradient: convert them with "
                ".astype(float)"
            )
    if seed is not None and (seed.shape != output.shape or seed.dtype.kind not in "fc"):
        raise ValueError(
            f"gradients: seed is {seed.dtype} {seed.shape}, expected floats {output.shape}, the "
            "shape of the output"
        )
    reached = []
    try:
        if output.node is not None:
            xp = xp_of(output.data)
            output.node.gradient = xp.ones_like(output.data) if seed is None else seed
            _walk(output.node, reached)
        return [_collect(v) for v in variables]
    finally:  # after an error too, and for variables not asked for: nothing stays behind
        for node in reached:
            node.gradient, node.owned = None, False


def _walk(last, reached):
    """Visit nodes from the newest to the oldest: none before all that was made from it.

    reached   a list that takes in every node that is given a gradient
    """
    waiting = [(-last.serial, last)]
    reached.append(last)
    while waiting:
        _, node = heapq.heappop(waiting)
        if node.parents is None:
            raise RuntimeError(
                "gradients: this graph has been walked before and its memory released; "
                "compute the output again"
            )
        if isinstance(node, Variable):  # it keeps its gradient
            continue
        gradient, node.gradient = node.gradient, None
        parents, node.parents = node.parents, None
        if node.first is not None:
            gradient, node.first = node.first(gradient), None
        while parents:
            parent, pullback = parents.pop()
            if parent.gradient is None:
                heapq.heappush(waiting, (-parent.serial, parent))
                reached.append(parent)
            parent.receive(pullback, gradient)
            del pullback  # and with it the arrays it holds


def _collect(variable):
    node = variable.node
    if node.gradient is not None:
        return node.gradient
    if node.out is None:
        return xp_of(variable.data).zeros_like(variable.data)
    node.out[...] = 0
    return node.out
