"""`cr.elementwise`: an op of the user's own, from a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chainrule.errors import FormulaError, ShapeError
from chainrule.given import is_real
from chainrule.ir.node import apply
from chainrule.lang.tensor import Tensor, TensorLike, side_by_side
from chainrule.ops import build
from chainrule.ops.derive import define_elementwise


def elementwise(
    name: str,
    formula: Any,
    params: Mapping[str, float] | Sequence[str] | None = None,
    *,
    args: Sequence[str] | None = None,
) -> Callable[..., Tensor]:
    """A function of Tensors from a formula such as "x*tanh(log(1 + exp(x)))".

        celu = cr.elementwise("celu", "Max(0, x) + Min(0, a*(exp(x/a) - 1))", params={"a": 1.0})
        celu(x); celu(x, a=0.5)
        soft = cr.elementwise("soft", "Piecewise((x - t, x > t), (x + t, x < -t), (0, True))")

    Its derivatives are derived by SymPy, stabilised and compiled like any other. The formula is a
    text in SymPy's spelling, which our own parser reads, or an expression of SymPy's. Its variables
    are the function's arguments, in order of appearance (of an expression, of the alphabet) unless
    `args` says otherwise; those that `params` gives a number are parameters: a call may give them
    another by name. (`params` as a sequence of names is `args`.) A branch that is not chosen passes
    nothing on, neither a value nor a derivative. `name` only prints. Raises FormulaError where the
    formula is not one of real numbers.
    """
    if params is not None and not isinstance(params, Mapping):
        if args is not None:
            raise FormulaError("params holds numbers by name where args names the arguments")
        params, args = None, params
    if not isinstance(name, str):
        raise FormulaError(f"a name is a text, not {name!r}")
    if not isinstance(formula, str) and not hasattr(formula, "free_symbols"):
        raise FormulaError(f"a formula is a text or an expression of SymPy's, not {formula!r}")
    numbers = {k: _number(name, k, v) for k, v in (params or {}).items()}
    order = tuple(args) if args is not None else None
    op = define_elementwise(name, formula, order, tuple(numbers.items()))

    def function(*operands: TensorLike, **given: float) -> Tensor:
        if len(operands) != len(op.params):
            wanted = f"{len(op.params)} operands, {', '.join(op.params)}"
            raise ShapeError(f"{name} takes {wanted}; not {len(operands)}")
        chosen = op
        if given:
            if strange := [k for k in given if k not in numbers]:
                there = f"its parameters are {', '.join(numbers) or 'none'}"
                raise FormulaError(f"{name} has no parameter {strange[0]!r}", there)
            own = {k: _number(name, k, v) for k, v in given.items()}
            changed = tuple((k, v) for k, v in own.items() if v != numbers[k])
            if changed:
                every = tuple((numbers | own).items())
                chosen = define_elementwise(name, formula, op.params, every, changed)
        return Tensor(apply(chosen, *build.aligned(name, *side_by_side(operands))))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{name}({', '.join(op.params)}) = {formula}"
    return function


def _number(name: str, parameter: str, value: object) -> float:
    if not is_real(value):
        raise FormulaError(f"{name}: the parameter {parameter!r} is a number, not {value!r}")
    return float(value)
