"""Every elementwise function: native vectors have the bits that its recipe has in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.ir.loop import Apply, Buffer, Load, Loop, Program, Store
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, dtype
from chainrule.ops.elementwise import TABLE

J = Size.symbol("j")
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, 88.5, -87.5, 0.5, 3e38, -3e38]


def _cases() -> list[tuple[str, str]]:
    takes = {
        "float": ("float32", "float64"),
        "numeric": ("float32", "float64", "int64"),
        "logic": ("int64", "bool"),
        "integer": ("int64", "int32", "uint8"),
        "any": ("float32", "float64", "int64", "bool"),
    }
    return [(op.name, kind) for op in TABLE.values() for kind in takes[op.accepts]]


@pytest.mark.parametrize(("fn", "kind"), _cases())
def test_native_is_the_recipe(check, fn, kind):
    op, of = TABLE[fn], dtype(kind)
    extent = 53
    rng = np.random.default_rng(11)
    names = [p for p in op.params if not (fn == "where" and p == "c")]
    arrays, reads = {}, {}
    for p in names:
        drawn = rng.standard_normal(extent) * 10.0 ** rng.integers(-2, 2, extent)
        drawn[: len(SPECIAL)] = rng.permutation(SPECIAL)
        safe = drawn if of.is_float else rng.integers(0, 2 if of.is_bool else 9, extent)
        with np.errstate(over="ignore"):
            arrays[p] = safe.astype(of.numpy)
        reads[p] = Load(Buffer(p, of, extent), J)
    if fn == "where":
        arrays["c"] = rng.integers(0, 2, extent).astype(bool)
        reads["c"] = Load(Buffer("c", bool_, extent), J)
    out = Buffer("out", bool_ if op.result == "bool" else of, extent)
    value = Apply(fn, tuple(reads[p] for p in op.params), out.dtype)
    body = (Loop("j", extent, (Store(out, J, value),), "vector"),)
    program = Program(fn, (*(reads[p].buffer for p in op.params), out), (), body)
    check(program, arrays | {"out": np.zeros(extent, out.dtype.numpy)})
