"""Every elementwise function: native vectors have the bits that its recipe has in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.ir.loop import Apply, Buffer, Load, Loop, Program, Store
from chainrule.ir.recipe import run
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, dtype
from chainrule.loops.library import listing_of
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


@pytest.mark.sampled(2)
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


def _floats() -> list[tuple[str, str]]:
    return [(fn, kind) for fn, kind in _cases() if kind.startswith("float")]


@pytest.mark.parametrize(("fn", "kind"), _floats())
def test_special_values_are_those_of_numpy(fn, kind):
    """NaN stays NaN, poles and limits are where they are: machine code against NumPy's meaning."""
    op, of = TABLE[fn], dtype(kind)
    with np.errstate(over="ignore"):
        x = np.array(SPECIAL).astype(of.numpy)
    if fn in ("sin", "cos", "tan"):
        x = x[~(np.abs(x) > 1e5)]  # beyond that the angle's error is documented, not bounded
    grid = np.meshgrid(*[x] * (len(op.params) - (fn == "where")))
    arrays = [g.reshape(-1) for g in grid]
    if fn == "where":
        arrays.insert(0, np.arange(arrays[0].size) % 2 == 0)
    params, listing = listing_of(fn, tuple(dtype(a.dtype) for a in arrays))
    got = run(listing, dict(zip(params, arrays, strict=True)))
    want = op.ref(*arrays)
    if fn in ("floor_divide", "remainder"):  # exact while the quotient is: see the op
        with np.errstate(all="ignore"):
            near = ~(np.abs(arrays[0] / arrays[1]) > 1e4)
        got, want = got[near], want[near]
    # tiny arguments may come out as 0 where the exact result is subnormal in this type
    tolerance = 1e-5 if kind == "float32" else 1e-13
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-30, equal_nan=True)
