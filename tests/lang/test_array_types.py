"""Element types, promotion, constants and devices, as the array API standard 2024.12 has them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import chainrule as cr

xp = pytest.importorskip("array_api_strict")

SIGNED = ("int8", "int16", "int32", "int64")
WHOLE = (*SIGNED, "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float32", "float64")
EVERY = ("bool", *WHOLE, *FLOATS)
PAIRS = list(itertools.product(EVERY, EVERY))


def strict_type(a: str, b: str) -> str | None:
    try:
        return str(np.dtype(xp.result_type(getattr(xp, a), getattr(xp, b))._np_dtype))
    except TypeError:
        return None


def test_types_promote_as_the_table_says() -> None:
    for a, b in PAIRS:
        want = strict_type(a, b)
        first, second = (cr.input(n, (2,), dtype=d) for n, d in (("a", a), ("b", b)))
        if want is None:
            with pytest.raises(cr.errors.DTypeError, match="do not promote"):
                cr.result_type(first, getattr(cr, b))
            with pytest.raises(cr.errors.DTypeError, match="do not promote"):
                cr.equal(first, second)
            continue
        assert cr.result_type(getattr(cr, a), second) == want
        assert cr.where(first == first, first, second).dtype == want
        assert cr.concat([first, second]).dtype == want
        if a != "bool":
            assert (first + second).dtype == want


def test_can_cast_and_isdtype() -> None:
    kinds_of_types = (
        "bool", "signed integer", "unsigned integer", "integral", "real floating",
        "complex floating", "numeric",
    )  # fmt: skip
    for a in EVERY:
        ours, theirs = getattr(cr, a), getattr(xp, a)
        for b in EVERY:
            to = strict_type(a, b)
            assert cr.can_cast(ours, getattr(cr, b)) == (to == b)
            assert cr.isdtype(ours, getattr(cr, b)) == (a == b)
        for kind in kinds_of_types:
            assert cr.isdtype(ours, kind) == xp.isdtype(theirs, kind)
        assert cr.isdtype(ours, ("bool", cr.int8)) == (a in ("bool", "int8"))
    assert cr.can_cast(cr.input("x", (), dtype="int8"), cr.int16)
    with pytest.raises(cr.errors.DTypeError, match="no kind"):
        cr.isdtype(cr.int8, "whole")


def test_limits_of_types() -> None:
    for name in FLOATS:
        for part in ("bits", "eps", "max", "min", "smallest_normal"):
            got = getattr(cr.finfo(getattr(cr, name)), part)
            assert got == getattr(np.finfo(name), part)
            assert type(got) in (int, float)
        assert cr.finfo(cr.input("x", (), dtype=name)).dtype is getattr(cr, name)
    for name in WHOLE:
        info, want = cr.iinfo(getattr(cr, name)), np.iinfo(name)
        assert (info.bits, info.max, info.min) == (want.bits, want.max, want.min)
        assert info.dtype is getattr(cr, name)
    for wrong in (lambda: cr.finfo(cr.int8), lambda: cr.iinfo(cr.float32)):
        with pytest.raises(cr.errors.DTypeError):
            wrong()


def test_a_type_equals_what_stands_for_it() -> None:
    x = cr.input("x", (2,))
    assert x.dtype == "float32" == cr.float32
    assert x.dtype == np.float32 and np.dtype("float32") == x.dtype
    assert x.dtype != "float64" and x.dtype != np.float64 and x.dtype != 3 and x.dtype is not None
    assert np.zeros(2, x.dtype).dtype == np.float32
    assert {x.dtype: 1}["float32"] == 1


def test_numbers_take_the_type_beside_them() -> None:
    i, f, b = (
        cr.input(n, (2,), dtype=d) for n, d in (("i", "int8"), ("f", "float32"), ("b", "bool"))
    )
    assert (i + 1).dtype == "int8" and (1.5 * f).dtype == "float32" and (b & True).dtype == "bool"
    assert cr.result_type(i, 1) == "int8" and cr.result_type(cr.float64, 1.0, 2) == "float64"
    for wrong in (lambda: i + 1.5, lambda: b + 1, lambda: i + 300, lambda: f + 1j):
        with pytest.raises(cr.errors.DTypeError):
            wrong()


def test_default_types() -> None:
    for made in (cr.zeros(2), cr.ones(2), cr.empty(2), cr.eye(2), cr.linspace(0, 1, 2)):
        assert made.dtype == "float32"
    assert cr.full(2, 0.5).dtype == cr.arange(0.5).dtype == "float32"
    assert cr.full(2, 5).dtype == cr.arange(3).dtype == "int64"
    assert cr.full(2, False).dtype == "bool" and cr.full(2, np.float64(1)).dtype == "float32"
    assert cr.argmax(cr.zeros(2)).dtype == "int64"


def test_constants_and_the_namespace() -> None:
    assert (cr.pi, cr.e, cr.inf, cr.newaxis) == (np.pi, np.e, np.inf, None)
    assert np.isnan(cr.nan)
    x = cr.input("x", ("batch", 3))
    assert x.__array_namespace__() is cr
    assert x.__array_namespace__(api_version="2024.12") is cr
    with pytest.raises(cr.errors.CompileError, match="2031"):
        x.__array_namespace__(api_version="2031.12")
    assert cr.__array_api_version__ == "2024.12"
    info = cr.__array_namespace_info__()
    assert info.capabilities()["data-dependent shapes"] is False
    assert info.default_dtypes()["integral"] == cr.int64
    assert {*info.dtypes()} == {*EVERY}
    assert {*info.dtypes(kind="real floating")} == {*FLOATS}
    assert info.default_device() in info.devices()


def test_devices() -> None:
    x = cr.input("x", (2, 3))
    assert (x.device, x.size, x.ndim) == ("cpu", 6, 2)
    assert x.to_device("cpu") is x
    assert cr.zeros((2,), device="cpu").shape == (2,)
    made = (
        lambda d: cr.zeros((2,), device=d), lambda d: cr.arange(3, device=d),
        lambda d: cr.astype(x, "float64", device=d), x.to_device,
    )  # fmt: skip
    for make in made:
        with pytest.raises(cr.errors.CompileError, match="no device but"):
            make("cuda:0")


def test_what_comes_from_elsewhere() -> None:
    torch_like = np.arange(4, dtype="int16")
    assert cr.from_dlpack(torch_like).dtype == "int16"
    assert (
        cr.empty((2, 3)).shape == (2, 3)
        and cr.empty_like(cr.zeros(2, dtype="int8")).dtype == "int8"
    )
    assert cr.asarray([0.5, 1.0]).dtype == "float32" and cr.asarray(np.ones(2)).dtype == "float64"
    x = cr.input("x", (2,))
    assert cr.asarray(x) is x and cr.asarray(x, copy=False) is x
    with pytest.raises(ValueError, match="copy=False"):
        cr.asarray([1.0], copy=False)
    with pytest.raises(cr.errors.FeedError, match="__dlpack__"):
        cr.from_dlpack([1.0])
