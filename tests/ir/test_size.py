"""Sizes against the integers they stand for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.ir.size import (
    Dim,
    Size,
    coefficient,
    divide,
    evaluate,
    known,
    product,
    substitute,
    symbols_of,
)

N, M = Size.symbol("n"), Size.symbol("m")
VALUES = st.fixed_dictionaries({"n": st.integers(1, 50), "m": st.integers(1, 50)})
SIZES = st.recursive(
    st.one_of(st.integers(-9, 9), st.sampled_from([N, M])),
    lambda inner: st.builds(
        lambda f, a, b: f(a, b),
        st.sampled_from([lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b]),
        inner,
        inner,
    ),
    max_leaves=8,
)


@given(SIZES, SIZES, SIZES, VALUES)
def test_ring_identities(a: Dim, b: Dim, c: Dim, at: dict[str, int]) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert a * (b + c) == a * b + a * c
    assert a - a == 0
    assert (a + b) - b == a
    for got, want in (
        (a + b, evaluate(a, at) + evaluate(b, at)),
        (a - b, evaluate(a, at) - evaluate(b, at)),
        (a * b, evaluate(a, at) * evaluate(b, at)),
        (-a, -evaluate(a, at)),
    ):
        assert evaluate(got, at) == want


@given(SIZES, st.integers(1, 9), VALUES)
def test_floor_and_remainder_by_a_number(a: Dim, b: int, at: dict[str, int]) -> None:
    assert evaluate(a // b, at) == evaluate(a, at) // b
    assert evaluate(a % b, at) == evaluate(a, at) % b
    assert evaluate((a // b) * b + a % b, at) == evaluate(a, at)
    if isinstance(a, Size):
        assert (a + b) // b == a // b + 1
        assert (a + b) % b == a % b


@given(SIZES, SIZES, VALUES)
def test_floor_and_remainder_by_a_size(a: Dim, b: Dim, at: dict[str, int]) -> None:
    below = evaluate(b, at)
    if below == 0 or b == 0:
        return
    assert evaluate(a // b, at) == evaluate(a, at) // below
    assert evaluate(a % b, at) == evaluate(a, at) % below


@given(SIZES, SIZES)
def test_division_undoes_multiplication(a: Dim, b: Dim) -> None:
    if b != 0:
        assert divide(a * b, b) == a
        assert (a * b) // b == a
        assert (a * b) % b == 0


@given(SIZES, VALUES)
def test_coefficient_splits_linear_sizes(a: Dim, at: dict[str, int]) -> None:
    found = coefficient(a, "n")
    if found is None:
        return
    slope, rest = found
    assert slope * N + rest == a
    assert "n" not in symbols_of(slope) | symbols_of(rest)


def test_coefficient_is_none_where_a_symbol_is_not_linear() -> None:
    assert coefficient(N * N, "n") is None
    assert coefficient(N // 2, "n") is None
    assert coefficient(N * M + 3, "n") == (M, 3)
    assert coefficient(7, "n") == (0, 7)


@given(SIZES, SIZES, VALUES)
def test_substitution_is_evaluation(a: Dim, b: Dim, at: dict[str, int]) -> None:
    assert substitute(a, {**at}) == evaluate(a, at)
    inner = evaluate(b, at)
    assert evaluate(substitute(a, {"n": b}), at) == evaluate(a, {**at, "n": inner})


@given(SIZES)
def test_equal_sizes_hash_and_print_alike(a: Dim) -> None:
    again = (a + N) - N
    assert again == a
    assert hash(again) == hash(a)
    assert str(again) == str(a)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (N * 2 + 1, "2*n + 1"),
        (N - 1, "n - 1"),
        (-1 * N, "-n"),
        (N * M, "m*n"),
        ((N + 1) // 2, "((n + 1)//2)"),
        ((N * 2 + 3) // 2, "n + 1"),
        ((N * 3) // 2, "(n//2) + n"),
        (7 % N, "(7%n)"),
    ],
)
def test_how_sizes_print(size: Dim, text: str) -> None:
    assert str(size) == text


def test_a_size_is_no_number_and_no_condition() -> None:
    size: Any = N
    for wrong in (lambda: size * 2.0, lambda: 2.0 + size, lambda: size // 1.5, lambda: bool(size)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ZeroDivisionError):
        N // 0
    assert N != 1
    assert product((2, N, 3)) == N * 6
    with pytest.raises(TypeError, match="n is not known"):
        known((2, N))


def test_a_sign_asked_for_by_dividing_takes_small_numbers() -> None:
    """The lesser of two sizes: its parts fit into 32 bits where the sizes do."""
    sign = (M * 32 + 40 - N + 2**30) // (2**30 + 1)
    assert str(sign) == "((32*m - n + 39)//1073741825) + 1"
    for at in range(4):
        for n in (1, 39, 40, 41, 100, 2**30):
            assert evaluate(sign, {"m": at, "n": n}) == (32 * at + 40 > n)
