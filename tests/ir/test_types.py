"""Element types against the array API standard's table and NumPy."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import types
from chainrule.ir.size import Size
from chainrule.ir.types import DTYPES, DType, bfloat16, check_shape, dtype, float32, promote

# Python array API standard 2024.12, "Type promotion rules", for the types there are here, and, for
# bfloat16, PyTorch's table and ml_dtypes'.
TABLE = """
int8   int8   int8  | int8   int16  int16 | int8   int32  int32 | int8   int64  int64
int16  int16  int16 | int16  int32  int32 | int16  int64  int64
int32  int32  int32 | int32  int64  int64 | int64  int64  int64
uint8  uint8  uint8 | uint8  uint32 uint32 | uint32 uint32 uint32
int8   uint8  int16 | int8   uint32 int64
int16  uint8  int16 | int16  uint32 int64
int32  uint8  int32 | int32  uint32 int64
int64  uint8  int64 | int64  uint32 int64
uint8  uint16 uint16 | uint8  uint64 uint64 | uint16 uint16 uint16 | uint16 uint32 uint32
uint16 uint64 uint64 | uint32 uint64 uint64 | uint64 uint64 uint64
int8   uint16 int32 | int16  uint16 int32 | int32  uint16 int32 | int64  uint16 int64
float32 float32 float32 | float32 float64 float64 | float64 float64 float64
bool   bool   bool
bfloat16 bfloat16 bfloat16 | bfloat16 float32 float32 | bfloat16 float64 float64
"""
ROWS = [tuple(row.split()) for line in TABLE.strip().splitlines() for row in line.split("|")]


@pytest.mark.parametrize(("a", "b", "meet"), ROWS)
def test_promotion_is_the_standards(a: str, b: str, meet: str) -> None:
    assert promote(DTYPES[a], DTYPES[b]) is DTYPES[meet]
    assert promote(DTYPES[b], DTYPES[a]) is DTYPES[meet]
    assert np.promote_types(DTYPES[a].numpy, DTYPES[b].numpy) == DTYPES[meet].numpy


@pytest.mark.parametrize("other", DTYPES.values(), ids=str)
def test_bfloat16_meets_others_as_in_pytorch(other: DType) -> None:
    torch = pytest.importorskip("torch")
    if not other.is_float:
        return  # the standard leaves that open, and so do we
    meet = torch.promote_types(torch.bfloat16, getattr(torch, other.name))
    assert str(meet) == f"torch.{promote(bfloat16, other)}"


def test_arithmetic_of_bfloat16_is_float32s() -> None:
    assert bfloat16.wide is float32 and bfloat16.itemsize == 2
    assert all(of.wide is of for of in DTYPES.values() if of is not bfloat16)


def test_without_ml_dtypes_an_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    types._bfloat16.cache_clear()
    with pytest.raises(DTypeError, match="install ml_dtypes"):
        _ = bfloat16.numpy
    assert promote(bfloat16, float32) is float32  # which asks for no arrays


def test_what_the_standard_leaves_open_is_refused() -> None:
    stated = {frozenset(row[:2]) for row in ROWS}
    for a in DTYPES.values():
        for b in DTYPES.values():
            if frozenset((a.name, b.name)) not in stated:
                with pytest.raises(DTypeError, match="do not promote"):
                    promote(a, b)


@pytest.mark.parametrize("of", DTYPES.values(), ids=str)
def test_names_and_numpy_types(of: DType) -> None:
    assert dtype(of) is dtype(of.name) is dtype(of.numpy) is dtype(of.numpy.type) is of
    assert of.itemsize == of.numpy.itemsize
    if of.is_integer:
        assert of.bounds == (np.iinfo(of.numpy).min, np.iinfo(of.numpy).max)
    if of.bits > 8:
        assert dtype(of.numpy.newbyteorder()) is of


@pytest.mark.parametrize("abstract", [np.generic, np.number, np.floating, np.integer])
def test_no_element_type_is_one_of_numpys_abstract_ones(abstract: type) -> None:
    assert not any(of == abstract for of in DTYPES.values())


def test_python_types_and_strangers() -> None:
    assert [str(dtype(t)) for t in (bool, int, float)] == ["bool", "int64", "float32"]
    for wrong in (None, "float16", "complex64", "no such", [], object()):
        with pytest.raises(DTypeError):
            dtype(wrong)


def test_shapes() -> None:
    n = Size.symbol("n")
    assert check_shape(("n", 3)) == (n, 3)
    assert check_shape(4) == (4,)
    assert check_shape("n") == (n,)
    assert check_shape([np.int64(2), n + 1]) == (2, n + 1)
    for wrong in (-1, (2.0,), (True,), ("a b",), (None,), (2**31, 2**31), (1,) * 33):
        with pytest.raises(ShapeError):
            check_shape(wrong)
