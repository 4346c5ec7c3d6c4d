"""Recipes with types: straight-line scalar code as three-address steps, and its NumPy evaluation.

A recipe (`formula.parse_recipe`) leaves types and calls of other recipes open. `typed` settles
both, once, for the evaluator here and for every code generator:

* a literal takes the type of the operand beside it; where all are literals, the type expected from
  outside; where nothing is expected, the recipe's type (what becomes a float: an integer)
* comparisons give bool, `bits` and `to_int` a signed integer, `float_of_bits` and `to_float` a
  float, each of the operand's width; `cast` gives the recipe's type; all else keeps its type
* a call of anything but a machine operation is another recipe of the library, and is expanded
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from functools import cache
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, FormulaError
from chainrule.ir.formula import Formula, Name, Number, Recipe, names, parse_recipe
from chainrule.ir.loop import Literal
from chainrule.ir.machine import MACHINE, MachineOp
from chainrule.ir.types import (
    DType,
    bool_,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
)
from chainrule.ir.types import (
    dtype as dtype_of,
)
from chainrule.records import dataclass

Array = np.ndarray[Any, Any]
#: Recipes by name: one text, or texts by element type ("float32") or family ("float", "int").
#: The parameters of one are its free names, in order of appearance.
Library = Mapping[str, "str | Mapping[str, str]"]
Operand = str | Literal
_SIGNED = {8: int8, 16: int16, 32: int32, 64: int64}
_FLOAT = {32: float32, 64: float64}


@dataclass(frozen=True)
class Step:
    """`name = fn(args)`: one machine operation; an operand is a parameter, a step or a literal."""

    name: str
    fn: str
    args: tuple[Operand, ...]
    dtype: DType


@dataclass(frozen=True)
class Listing:
    """Steps in order, each using only parameters and earlier ones, and what the result is."""

    steps: tuple[Step, ...]
    result: Operand
    dtype: DType

    def __str__(self) -> str:
        show = [*(f"{s.name}: {s.dtype.short} = {s.fn}{_show(s.args)}" for s in self.steps)]
        return "\n".join([*show, _show((self.result,))[1:-1]])


def _show(args: tuple[Operand, ...]) -> str:
    parts = [a if isinstance(a, str) else f"{a.dtype.short} {a.value!r}" for a in args]
    return f"({', '.join(parts)})"


def typed(
    recipe: Recipe, params: Mapping[str, DType], dtype: DType, library: Library | None = None
) -> Listing:
    """The steps of a recipe on parameters of the given types.

    `dtype` is the recipe's type: of literals that nothing else decides, and of `cast`. Raises
    FormulaError for an unknown name or function or a wrong number of operands, DTypeError where
    operands differ or an operation does not take them.
    """
    builder = _Builder(library or {})
    scope: dict[str, tuple[Operand, DType]] = {name: (name, t) for name, t in params.items()}
    builder.used.update(params)
    result, result_type = builder.recipe(recipe, scope, dtype)
    return Listing(tuple(builder.steps), result, result_type)


def evaluate(
    recipe: Recipe, dtype: DType, args: Mapping[str, Array], library: Library | None = None
) -> Array:
    """What a recipe gives for arrays (which broadcast), in NumPy, rounding as the machine does."""
    arrays = {name: np.asarray(value) for name, value in args.items()}
    listing = typed(recipe, {n: dtype_of(a.dtype) for n, a in arrays.items()}, dtype, library)
    return run(listing, arrays)


def run(listing: Listing, args: Mapping[str, Array]) -> Array:
    """Carry out steps on arrays; the result has the shape they broadcast to."""
    values = dict(args)
    last = {a: step for step in listing.steps for a in step.args if isinstance(a, str)}

    def value(operand: Operand) -> Array:
        if isinstance(operand, str):
            return values[operand]
        return np.asarray(operand.value, operand.dtype.numpy)

    for step in listing.steps:
        extra = (step.dtype.numpy,) if MACHINE[step.fn].kind == "cast" else ()
        values[step.name] = MACHINE[step.fn].ref(*map(value, step.args), *extra)
        for operand in step.args:
            if isinstance(operand, str) and last[operand] is step and operand != listing.result:
                values.pop(operand, None)  # a large array is not kept longer than it is read
    shape = np.broadcast_shapes(*(a.shape for a in args.values()))
    return np.array(np.broadcast_to(value(listing.result), shape))


@cache
def bfloat16_bits() -> Listing:
    """The bits, in the lower half of an int32, of a float32 `x` rounded to bfloat16.

    To nearest, ties to even; of a NaN its sign and the quiet one without a payload, as ml_dtypes
    has it.
    """
    return typed(parse_recipe(_TO_BFLOAT16), {"x": float32}, int32)


# half a unit is added, less one where the last bit is even; a NaN could overflow into a number
_TO_BFLOAT16 = """
b = bits(x)
nearest = b + (32767 + and_(lshr(b, 16), 1))
nan = or_(shl(lshr(b, 31), 31), 2143289344)
lshr(where(x == x, nearest, nan), 16)
"""


def parameters(recipe: Recipe) -> tuple[str, ...]:
    """The free names of a recipe, in order of appearance."""
    free: dict[str, None] = {}
    bound: set[str] = set()
    for name, formula in (*recipe.bindings, ("", recipe.result)):
        free.update(dict.fromkeys(n for n in names(formula) if n not in bound))
        bound.add(name)
    return tuple(free)


def lookup(library: Library, fn: str, dtype: DType) -> Recipe:
    """The library's recipe of that name for an element type; FormulaError where there is none."""
    if fn not in library:
        raise FormulaError(f"no function is called {fn!r}")
    entry = library[fn]
    if isinstance(entry, str):
        return parse_recipe(entry)
    family = "bool" if dtype.is_bool else "float" if dtype.is_float else "int"
    text = entry.get(dtype.name, entry.get(family))
    if text is None:
        raise FormulaError(f"{fn} has no code for {dtype}", f"it has some for {', '.join(entry)}")
    return parse_recipe(text)


@dataclass
class _Builder:
    library: Library
    steps: list[Step] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    count: dict[str, int] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    def recipe(
        self, recipe: Recipe, scope: dict[str, tuple[Operand, DType]], dtype: DType
    ) -> tuple[Operand, DType]:
        for name, formula in recipe.bindings:
            scope[name] = _Lowering(self, scope, dtype, name).binding(formula, None)
        return _Lowering(self, scope, dtype, "out").binding(recipe.result, dtype)

    def emit(self, hint: str, fn: str, args: list[Operand], dtype: DType) -> tuple[str, DType]:
        self.count[hint] = self.count.get(hint, 0) + 1
        name = f"{hint}.{self.count[hint]}"
        self.used.add(name)
        self.steps.append(Step(name, fn, tuple(args), dtype))
        return name, dtype

    def expand(self, fn: str, args: list[Operand], dtype: DType) -> tuple[Operand, DType]:
        if fn in self.within:
            raise FormulaError(f"the recipe {fn} calls itself: {' -> '.join((*self.within, fn))}")
        recipe = lookup(self.library, fn, dtype)
        free = parameters(recipe)
        _check_count(fn, len(free), len(args))
        outer, self.within = self.within, (*self.within, fn)
        scope = {name: (arg, dtype) for name, arg in zip(free, args, strict=True)}
        result = self.recipe(recipe, scope, dtype)
        self.within = outer
        return result


@dataclass
class _Lowering:
    """The formula of one binding."""

    builder: _Builder
    scope: dict[str, tuple[Operand, DType]]
    default: DType
    hint: str

    def binding(self, formula: Formula, expected: DType | None) -> tuple[Operand, DType]:
        """Lower the whole formula; the step that ends it has the plain name, where it is free."""
        first = len(self.builder.steps)
        operand, dtype = self.lower(formula, expected)
        steps = self.builder.steps
        if len(steps) > first and operand == steps[-1].name and self.hint not in self.builder.used:
            self.builder.used.add(self.hint)
            steps[-1] = replace(steps[-1], name=self.hint)
            operand = self.hint
        return operand, dtype

    def lower(self, formula: Formula, expected: DType | None) -> tuple[Operand, DType]:
        if isinstance(formula, Number):
            return _literal(formula.value, expected or self.default)
        if isinstance(formula, Name):
            if formula.name not in self.scope:
                raise FormulaError(f"in a recipe: {formula.name!r} is not defined")
            return self.scope[formula.name]
        op = MACHINE.get(formula.fn)
        if op is None:
            args, dtype = self.same(formula.args, expected)
            return self.builder.expand(formula.fn, args, dtype)
        _check_count(op.name, op.arity, len(formula.args))
        if op.kind == "select":
            chosen, condition = self.lower(formula.args[0], bool_)
            if not condition.is_bool:
                raise DTypeError(f"where chooses by a bool, not by {condition}")
            args, dtype = self.same(formula.args[1:], expected)
            return self.builder.emit(self.hint, op.name, [chosen, *args], dtype)
        if op.kind in ("float_of_bits", "to_float"):
            expected = _SIGNED.get(self.default.bits)
        elif op.kind in _CONVERTS:
            expected = None
        args, dtype = self.same(formula.args, expected)
        return self.builder.emit(self.hint, op.name, args, _result(op, dtype, self.default))

    def same(
        self, formulas: tuple[Formula, ...], expected: DType | None
    ) -> tuple[list[Operand], DType]:
        """Operands of one type: first those that have one of their own, then the literals."""
        done = {i: self.lower(f, None) for i, f in enumerate(formulas) if not self.is_open(f)}
        types = {dtype for _, dtype in done.values()}
        if len(types) > 1:
            raise DTypeError(f"operands of one type are needed, not {_join(types)}")
        dtype = types.pop() if types else expected or self.default
        args = [done[i] if i in done else self.lower(f, dtype) for i, f in enumerate(formulas)]
        return [operand for operand, _ in args], dtype

    def is_open(self, formula: Formula) -> bool:
        """Whether only literals decide a formula's type."""
        if isinstance(formula, Number):
            return True
        if isinstance(formula, Name):
            return False
        op = MACHINE.get(formula.fn)
        if op is not None and op.kind in _CONVERTS:
            return False
        return all(self.is_open(a) for a in formula.args[op is not None and op.kind == "select" :])


_CONVERTS = ("compare", "bits", "float_of_bits", "to_int", "to_float", "cast")


def _result(op: MachineOp, dtype: DType, default: DType) -> DType:
    wants_float = op.name in ("div", "fma", "sqrt", "copysign", "bits", "to_int")
    wants_integer = op.name in ("quotient", "shl", "lshr", "ashr", "float_of_bits", "to_float")
    if (
        (wants_float and not dtype.is_float)
        or (wants_integer and not dtype.is_integer)
        or (op.kind == "logic" and dtype.is_float)
        or (op.name == "mulhi" and dtype.name != "uint32")
        or (op.name in ("float_of_bits", "to_float") and dtype.bits not in _FLOAT)
    ):
        raise DTypeError(f"{op.name} does not take {dtype}", f"{op.name}: {op.doc}")
    if op.kind == "compare":
        return bool_
    if op.kind in ("bits", "to_int"):
        return _SIGNED[dtype.bits]
    if op.kind in ("float_of_bits", "to_float"):
        return _FLOAT[dtype.bits]
    return default if op.kind == "cast" else dtype


def _literal(value: float | int, dtype: DType) -> tuple[Operand, DType]:
    if dtype.is_float:
        with np.errstate(over="ignore"):
            return Literal(float(dtype.numpy.type(value)), dtype), dtype
    if isinstance(value, float):
        raise DTypeError(f"the literal {value!r} stands where {dtype} is needed")
    if dtype.is_bool:
        return Literal(bool(value), dtype), dtype
    low = -(2 ** (dtype.bits - 1)) if dtype in _SIGNED.values() else 0
    if not low <= value < low + 2**dtype.bits:
        raise DTypeError(f"the literal {value} does not fit {dtype}")
    return Literal(value, dtype), dtype


def _check_count(fn: str, wanted: int, given: int) -> None:
    if wanted != given:
        raise FormulaError(f"{fn} takes {wanted} operands, not {given}")


def _join(types: set[DType]) -> str:
    return " and ".join(sorted(map(str, types)))
