"""Where scalar functions get their machine operations from, for interpreter and code alike."""

from __future__ import annotations

from functools import lru_cache

from chainrule.errors import CompileError
from chainrule.ir.formula import Recipe, names, parse_recipe
from chainrule.ir.types import DType
from chainrule.ops.elementwise import TABLE
from chainrule.ops.recipes import RECIPES


@lru_cache(maxsize=4096)
def recipe_of(fn: str, dtype: DType) -> Recipe:
    """The machine code of `fn` on operands of `dtype`, which other functions may be part of.

    Raises CompileError where there is no such function, or none for the element type.
    """
    native = TABLE[fn].native if fn in TABLE else RECIPES.get(fn)
    if native is None:
        raise CompileError(f"no function is called {fn!r}", f"there are {', '.join(TABLE)}")
    if isinstance(native, str):
        return parse_recipe(native)
    kind = "bool" if dtype.is_bool else "float" if dtype.is_float else "int"
    text = native.get(dtype.name, native.get(kind))
    if text is None:
        raise CompileError(f"{fn} has no code for {dtype}", f"it has some for {', '.join(native)}")
    return parse_recipe(text)


@lru_cache(maxsize=4096)
def parameters_of(fn: str, recipe: Recipe) -> tuple[str, ...]:
    """The names that stand for the operands: the op's own, else those free in the recipe."""
    if fn in TABLE:
        return TABLE[fn].params
    bound = {name for name, _ in recipe.bindings}
    formulas = [formula for _, formula in recipe.bindings] + [recipe.result]
    free = dict.fromkeys(n for formula in formulas for n in names(formula))
    return tuple(n for n in free if n not in bound)
