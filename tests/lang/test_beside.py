"""Numbers, NumPy's scalars, lists and arrays beside a Tensor: whose type the result has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr

NUMBERS = [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.longdouble(0.5), np.int64(2)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("of", ["float32", "float64", "bfloat16"])
def test_a_scalar_of_numpy_beside_a_tensor_takes_its_type(number: Any, of: str) -> None:
    x = cr.input("x", ("n", 2), dtype=of)
    for result in (x / number, number * x, x**number, cr.maximum(x, number), cr.clip(x, number)):
        assert str(result.dtype) == of
    assert str(cr.where(x > 0, x, number).dtype) == of
    assert str(cr.where(x > 0, number, number).dtype) in ("float32", "int64")


def test_whole_scalars_keep_integers_and_are_refused_where_a_type_cant_hold_them() -> None:
    i = cr.input("i", (3,), dtype="int8")
    assert str((i * np.int64(3)).dtype) == "int8"
    with pytest.raises(cr.errors.DTypeError, match="int8 can't hold 300"):
        i + np.int64(300)
    with pytest.raises(cr.errors.DTypeError, match="number 2"):
        i * np.float64(2)


def test_a_list_of_numbers_beside_a_tensor_takes_its_type_and_an_array_keeps_its_own() -> None:
    x, i = cr.input("x", (2,)), cr.input("i", (2,), dtype="int8")
    for result in (x * [0.5, 1], [1, 2] * x, x @ [[1.0], [2.0]], cr.matmul([1, 2.5], x)):
        assert str(result.dtype) == "float32"
    assert str((i * [1, 2]).dtype) == "int8"
    assert str((x * np.array([0.5, 1.0])).dtype) == str((x * np.array(0.5)).dtype) == "float64"
    with pytest.raises(cr.errors.DTypeError, match="float64 numbers does not promote to int8"):
        i * [0.5, 1.0]
    with pytest.raises(cr.errors.DTypeError, match="bool numbers does not promote to float32"):
        x * [True, False]
    with pytest.raises(cr.errors.DTypeError, match="from 1 to 300 is no int8"):
        i * [1, 300]
    with pytest.raises(cr.errors.ShapeError, match="rows of one length"):
        x * [[1.0], [1.0, 2.0]]
    y = cr.compile(x * [0.1, np.float64(0.2)])(x=np.float32([1, 1]))
    np.testing.assert_array_equal(y, np.float32([0.1, 0.2]))
