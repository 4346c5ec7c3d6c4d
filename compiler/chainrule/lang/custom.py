"""`cr.custom_derivative`: a function of Tensors with a derivative of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import GradientError
from chainrule.ir.node import Node, apply
from chainrule.lang.tensor import Tensor, as_node
from chainrule.ops.custom import Custom

Function = Callable[..., Tensor]
Backward = Callable[..., Any]


def custom_derivative(
    function: Function | None = None, vjp: Backward | None = None, *, name: str | None = None
) -> Any:
    """`function` with the derivative `vjp(ct, out, *inputs)`: the cotangent of each input.

        @cr.custom_derivative(vjp=lambda ct, out, x: ct)      # a straight-through estimator
        def hard(x): return cr.sign(x)

    Everything is in Tensors, so that derivatives of any order follow; None is an input through
    which no derivative passes. With one input the cotangent may stand alone. The function takes
    Tensors by place, depends on nothing else, and prints as `name`, by default its own. Raises
    GradientError or ShapeError where a cotangent is not of its input's type.
    """
    if vjp is None:
        raise GradientError("a custom derivative needs vjp=: a function of (ct, out, *inputs)")
    if function is None:
        return lambda f: custom_derivative(f, vjp, name=name)
    own = str(getattr(function, "__name__", "f"))
    if (name is not None and not isinstance(name, str)) or not callable(function):
        raise GradientError(f"a custom derivative is of a function, not of {function!r}")
    label = name or ("f" if own == "<lambda>" else own)
    op = Custom(label, _forward(function, label), _backward(vjp, label))

    def wrapped(*operands: Any) -> Tensor:
        return Tensor(apply(op, *[as_node(o) for o in operands]))

    wrapped.__name__ = wrapped.__qualname__ = label
    wrapped.__doc__ = function.__doc__
    return wrapped


def _forward(function: Function, label: str) -> Callable[..., Node]:
    def forward(*inputs: Node) -> Node:
        result = function(*map(Tensor, inputs))
        if not isinstance(result, Tensor):
            raise GradientError(f"{label} gives one Tensor, not {result!r}")
        return result.node

    return forward


def _backward(vjp: Backward, label: str) -> Callable[..., Sequence[Node | None]]:
    def backward(ct: Node, out: Node, *inputs: Node) -> list[Node | None]:
        found = vjp(Tensor(ct), Tensor(out), *map(Tensor, inputs))
        parts = list(found) if isinstance(found, (tuple, list)) else [found]
        for part in parts:
            if part is not None and not isinstance(part, Tensor):
                raise GradientError(f"the derivative of {label} gives Tensors, not {part!r}")
        return [None if part is None else part.node for part in parts]

    return backward
