"""Where scalar functions get their machine operations from, for interpreter and code alike."""

from __future__ import annotations

from functools import lru_cache

from chainrule.errors import CompileError
from chainrule.ir.recipe import Listing, lookup, parameters, typed
from chainrule.ir.types import DType
from chainrule.ops import pairs, philox
from chainrule.ops.elementwise import TABLE
from chainrule.ops.recipes import RECIPES


@lru_cache(maxsize=4096)
def listing_of(fn: str, dtypes: tuple[DType, ...]) -> tuple[tuple[str, ...], Listing]:
    """The names of a function's operands and its machine operations, for operands of these types.

    Raises CompileError where there is no such function, FormulaError where there is none for the
    element type.
    """
    library = (
        RECIPES | {name: op.native for name, op in TABLE.items()} | philox.NATIVE | pairs.NATIVE
    )
    if fn not in library:
        raise CompileError(f"no function is called {fn!r}", f"there are {', '.join(TABLE)}")
    of = dtypes[-1]
    recipe = lookup(library, fn, of)
    params = TABLE[fn].params if fn in TABLE else parameters(recipe)
    types = dict(zip(params, dtypes, strict=True))
    return params, typed(recipe, types, of, library)
