"""`cr.elementwise`: an op of the user's own, from a formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.errors import ShapeError
from chainrule.ir.node import apply
from chainrule.lang.tensor import Tensor, TensorLike, operand
from chainrule.ops import build
from chainrule.ops.derive import define_elementwise


def elementwise(
    name: str, formula: str, params: Sequence[str] | None = None
) -> Callable[..., Tensor]:
    """A function of Tensors from a formula such as "x*tanh(log(1 + exp(x)))".

    Its derivative is derived by SymPy, stabilised and compiled like any other. The parameters are
    the formula's variables, in order of appearance unless `params` says otherwise. `name` only
    prints. Raises FormulaError where the formula is not one.
    """
    op = define_elementwise(name, formula, tuple(params) if params is not None else None)

    def function(*operands: TensorLike) -> Tensor:
        if len(operands) != len(op.params):
            wanted = f"{len(op.params)} operands, {', '.join(op.params)}"
            raise ShapeError(f"{name} takes {wanted}; not {len(operands)}")
        return Tensor(apply(op, *build.aligned(name, *[operand(o) for o in operands])))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{name}({', '.join(op.params)}) = {formula}"
    return function
