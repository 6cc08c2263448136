"""Reverse-mode automatic differentiation in one page. It knows no layer and no NumPy.

A differentiable function returns its result and, for each of its inputs, a *pullback*: a function
that turns the gradient of the result into the gradient of that input:

    @op
    def multiply(x, y):
        return x * y, (lambda g: g * y,
                       lambda g: g * x)

Called with plain arrays, `multiply` returns a plain array and nothing is recorded. Called
with at least one `Tensor` it returns a `Tensor`, whose *node* remembers the pullbacks and
the nodes of the inputs. `gradients` then walks the nodes from the last to the first.

Three things are done here, and not in the ops:
- broadcasting is undone: a pullback may return the gradient in the result's shape;
- gradients that meet at one node are added;
- a node is emptied as soon as it has been used, and with it the arrays its pullbacks hold.

Nodes refer to their inputs only, never forward, so there are no reference cycles: memory is
free as soon as the last name for it is gone. There are no second derivatives, and no operation
changes a Tensor in place.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minires.arrays import Array, xp_of
from minires.kernels.sums import sum_to_shape

Shape = tuple[int, ...]
_serial = itertools.count()


class Node:
    """One recorded step: how the gradient of its result goes on to its inputs.

    shape     of the result
    parents   [(node of an input, pullback), …]; None once used
    first     a function of the gradient that is called once, before the pullbacks; or None
    """

    __slots__ = ("first", "parents", "serial", "shape")

    def __init__(self, shape: Shape, parents: Sequence | None, first: Callable | None = None):
        self.serial = next(_serial)  # inputs are always older than what is made from them
        self.shape = shape
        self.parents = parents
        self.first = first


class Variable(Node):
    """The node of a variable: it has no inputs.

    shape   of the variable
    out     the array in which its gradient is to be written, or None
    """

    __slots__ = ("out",)

    def __init__(self, shape: Shape, out: Array = None):
        super().__init__(shape, parents=())
        self.out = out


def takes_out(pullback: Callable) -> Callable:
    """Mark a pullback(g, out=None) that can write its result to the array `out`, if that fits.

    So a large gradient is written into its place in a vector, not copied there. The pullback
    returns its result in both cases.

    pullback   the function
    Returns    it
    """
    pullback.takes_out = True
    return pullback


class Tensor:
    """An array and the node that remembers how it was made.

    data   the array (NumPy or CuPy)
    node   its node, or None for a constant
    """

    __slots__ = ("__weakref__", "data", "node")
    __array_ufunc__ = None  # so that `array + tensor` comes to Tensor.__radd__

    def __init__(self, data: Array, node: Node | None = None):
        self.data = data
        self.node = node

    @property
    def shape(self) -> Shape:
        """The array's."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The array's."""
        return self.data.ndim

    @property
    def dtype(self) -> Any:
        """The array's."""
        return self.data.dtype

    def __repr__(self):
        kind = "constant" if self.node is None else "tensor"
        return f"<{kind} {self.data.dtype} {self.data.shape}>"


def variable(array: Array, out: Array = None) -> Tensor:
    """A Tensor with respect to which gradients are wanted.

    array    its value
    out      an array of the same shape in which to write its gradient, instead of a new one
    """
    return Tensor(array, Variable(array.shape, out))


def data_of(value: Any) -> Any:
    """The array in a Tensor; anything else as it is.

    value   a Tensor, an array or a number
    """
    return value.data if isinstance(value, Tensor) else value


def op(function: Callable) -> Callable:
    """Make a function of arrays differentiable.

    function   takes arrays first, settings by keyword; returns (result, pullbacks) with one
               pullback for each array argument, in order. A pullback maps the gradient of the
               result to that of the argument; see also `takes_out`. If all pullbacks begin with
               the same step, the function may return (result, pullbacks, first): the step `first`
               is done once, and each pullback gets its result
    Returns    a function of arrays or Tensors, with the same settings
    """

    @functools.wraps(function)
    def recorded(*inputs, **settings):
        if settings and any(isinstance(value, Tensor) for value in settings.values()):
            raise TypeError(f"{function.__name__}: give Tensors by position, not by keyword")
        result, pullbacks, *first = function(*map(data_of, inputs), **settings)
        # Only the pullbacks that lead to a variable are kept, and with them only their arrays.
        pairs = zip(inputs, pullbacks, strict=False)
        pairs = [(getattr(value, "node", None), pullback) for value, pullback in pairs]
        parents = [(node, pullback) for node, pullback in pairs if node is not None]
        if parents:
            return Tensor(result, Node(result.shape, parents, *first))
        return Tensor(result) if any(isinstance(i, Tensor) for i in inputs) else result

    return recorded


def gradients(output: Tensor, variables: Iterable[Tensor], seed: Array = None) -> list[Array]:
    """The gradients of `output` with respect to each variable.

    output     a Tensor; if it is not a scalar, the gradient of the sum of its elements
    variables  Tensors made by `variable`
    seed       the gradient of the output to start from, like the output; None: ones
    Returns    a list of arrays, one for each variable; zeros if the output does not depend on it.
               Do not change them: two of them, or one and the seed, may be the same array
    Raises     RuntimeError when this graph was used before, since its memory is released then;
               ValueError for a Tensor that is not a variable, for integers, and for a seed of
               another shape than the output
    """
    variables = list(variables)
    for wanted in variables:
        if not isinstance(wanted.node, Variable):
            raise ValueError(
                f"gradients: {wanted!r} is not a variable: make it with `variable(array)`"
            )
        if wanted.dtype.kind not in "fc":
            raise ValueError(
                f"gradients: {wanted!r} holds integers, which have no gradient: convert them with "
                ".astype(float)"
            )
    if seed is None:
        seed = xp_of(output.data).ones_like(output.data)
    elif seed.shape != output.shape or seed.dtype.kind not in "fc":
        raise ValueError(
            f"gradients: seed is {seed.dtype} {seed.shape}, expected floats {output.shape}, the "
            "shape of the output"
        )
    found = {} if output.node is None else _walk(output.node, seed)
    return [_collect(wanted, found.get(wanted.node)) for wanted in variables]


def _walk(last, seed):
    """Visit nodes from the newest to the oldest: each after all nodes that were made from it.

    Returns  {node of a variable: its gradient}
    """
    found, summed = {last: seed}, set()  # a gradient that is a sum made here may be changed
    waiting = [(-last.serial, last)]
    while waiting:
        _, node = heapq.heappop(waiting)
        if node.parents is None:
            raise RuntimeError(
                "gradients: this graph was used before and its memory is released: "
                "compute the output again"
            )
        if isinstance(node, Variable):  # it keeps its gradient
            continue
        gradient, parents, node.parents = found.pop(node), node.parents, None
        if node.first is not None:
            gradient, node.first = node.first(gradient), None
        while parents:
            parent, pullback = parents.pop()
            if parent not in found:
                heapq.heappush(waiting, (-parent.serial, parent))
                found[parent] = _pull(pullback, gradient, parent)
            elif parent in summed:
                found[parent] += sum_to_shape(pullback(gradient), parent.shape)
            else:
                found[parent] = found[parent] + sum_to_shape(pullback(gradient), parent.shape)
                summed.add(parent)
            del pullback  # and with it the arrays it holds
    return found


def _pull(pullback, gradient, parent):
    """The first gradient that reaches a node, written to the variable's `out` if there is one."""
    if isinstance(parent, Variable) and hasattr(pullback, "takes_out"):
        return sum_to_shape(pullback(gradient, parent.out), parent.shape)
    return sum_to_shape(pullback(gradient), parent.shape)


def _collect(variable, gradient):
    """The gradient of a variable (None: zeros), in the variable's `out` if there is one."""
    if gradient is None:
        gradient = xp_of(variable.data).zeros_like(variable.data)
    out = variable.node.out
    if out is None or gradient is out:
        return gradient
    out[...] = gradient
    return out
