"""Types and steps of recipes."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import DTypeError, FormulaError
from chainrule.ir.formula import parse_recipe
from chainrule.ir.recipe import bfloat16_bits, evaluate, parameters, run, typed
from chainrule.ir.types import DType, bool_, float32, float64, int32, int64, uint32


def steps(text: str, params: dict[str, DType], dtype: DType = float32) -> list[str]:
    return str(typed(parse_recipe(text), params, dtype)).splitlines()


@pytest.mark.parametrize(
    ("text", "params", "want"),
    [
        ("x + 1", {"x": float32}, ["out: f32 = add(x, f32 1.0)", "out"]),
        ("2 - x", {"x": int64}, ["out: i64 = sub(i64 2, x)", "out"]),
        ("7", {}, ["f32 7.0"]),
        ("x", {"x": bool_}, ["x"]),
        ("where(x > 0, 1, 0)", {"x": int32}, [
            "out.1: bool = gt(x, i32 0)", "out: f32 = where(out.1, f32 1.0, f32 0.0)", "out"]),
        ("k = shl(bits(x), 23)\nfloat_of_bits(k)", {"x": float32}, [
            "k.1: i32 = bits(x)", "k: i32 = shl(k.1, i32 23)",
            "out: f32 = float_of_bits(k)", "out"]),
        ("float_of_bits(5)", {}, ["out: f32 = float_of_bits(i32 5)", "out"]),
        ("cast(x) * 2", {"x": uint32}, [
            "out.1: f32 = cast(x)", "out: f32 = mul(out.1, f32 2.0)", "out"]),
        ("c = 3\nx * c", {"x": float32}, ["out: f32 = mul(x, f32 3.0)", "out"]),
    ],
)  # fmt: skip
def test_types(text: str, params: dict[str, DType], want: list[str]) -> None:
    assert steps(text, params) == want


@pytest.mark.parametrize(
    ("text", "params", "error"),
    [
        ("x + y", {"x": float32, "y": float64}, DTypeError),
        ("x + 1.5", {"x": int32}, DTypeError),
        ("x + 300", {"x": DType("int8", "i8", int32.kind, 8)}, DTypeError),
        ("x + y", {"x": float32}, FormulaError),
        ("nosuch(x)", {"x": float32}, FormulaError),
        ("fma(x, x)", {"x": float32}, FormulaError),
        ("where(x, x, x)", {"x": float32}, DTypeError),
        ("sqrt(x)", {"x": int32}, DTypeError),
        ("shl(x, 1)", {"x": float32}, DTypeError),
        ("mulhi(x, x)", {"x": int32}, DTypeError),
        ("xor(x, x)", {"x": float32}, DTypeError),
    ],
)
def test_refusals(text: str, params: dict[str, DType], error: type[Exception]) -> None:
    with pytest.raises(error):
        typed(parse_recipe(text), params, float32)


def test_other_recipes_are_expanded() -> None:
    library = {
        "cube": "s = x * x\ns * x",
        "six": {"float": "cube(x) * cube(x)", "int64": "x * 6"},
        "loop": "loop(x)",
        "less": "x - y",
    }
    x = np.array([1.0, 2.0])
    recipe = parse_recipe("s = x + 1\nsix(s) - s")
    assert evaluate(recipe, float64, {"x": x}, library).tolist() == [62.0, 726.0]
    listing = typed(recipe, {"x": float64}, float64, library)
    assert len({s.name for s in listing.steps}) == len(listing.steps)
    whole = evaluate(parse_recipe("six(x)"), int64, {"x": np.array([7])}, library)
    assert whole.dtype == np.int64
    assert whole.tolist() == [42]
    assert evaluate(parse_recipe("less(1, x)"), float64, {"x": x}, library).tolist() == [0.0, -1.0]
    with pytest.raises(FormulaError, match="calls itself"):
        evaluate(parse_recipe("loop(x)"), float64, {"x": x}, library)
    with pytest.raises(FormulaError, match="no code for"):
        typed(parse_recipe("six(x)"), {"x": int32}, int32, library)


def test_evaluation_broadcasts_and_rounds_to_the_type() -> None:
    x, y = np.float32([[0.1], [0.2]]), np.float32([1, 2, 3])
    found = evaluate(parse_recipe("x * y + 0.1"), float32, {"x": x, "y": y})
    assert found.dtype == np.float32
    assert np.array_equal(found, x * y + np.float32(0.1))
    assert evaluate(parse_recipe("4"), int32, {"x": x}).shape == (2, 1)
    assert evaluate(parse_recipe("x"), float32, {"x": np.float32(2)}).shape == ()
    assert x[0, 0] == np.float32(0.1)


def test_parameters_are_the_free_names_in_order() -> None:
    assert parameters(parse_recipe("a = y * 2\nb = a + x\nb * y")) == ("y", "x")


def test_rounding_to_bfloat16_is_that_of_ml_dtypes() -> None:
    """Every upper half of a float32, with lower halves that lie at and beside the ties."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = ((np.arange(2**16, dtype=np.uint32) << 16)[:, None] | lower).reshape(-1).view(np.float32)
    with np.errstate(all="ignore"):
        want = x.astype(ml_dtypes.bfloat16).view(np.uint16)
        got = run(bfloat16_bits(), {"x": x}).astype(np.uint16)
    np.testing.assert_array_equal(got, want)
