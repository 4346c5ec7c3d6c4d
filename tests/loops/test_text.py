"""How programs print, and when two are the same code."""

from __future__ import annotations

from chainrule.ir.loop import (
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Note,
    Program,
    Set,
    Store,
)
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, float32, int64
from chainrule.loops.text import outline, show, signature


def rows(tag: str = "", columns: int = 10, note: str = "row sums") -> Program:
    i, j, n = Size.symbol(f"i{tag}"), Size.symbol(f"j{tag}"), Size.symbol(f"n{tag}")
    x, y = Buffer(f"x{tag}", float32, n * columns), Buffer(f"y{tag}", float32, n)
    at = Buffer(f"at{tag}", int64, n)
    acc = Local(f"acc{tag}", float32, (), True)
    square = Apply("mul", (Load(x, i * columns + j), Load(x, i * columns + j)), float32)
    twice = Apply("add", (square, square), float32)
    body = (
        Note(note),
        Check(Apply("lt", (Load(at, i), IndexValue(n, int64)), bool_), 2),
        acc,
        Loop(
            f"j{tag}", columns, (Set(acc, (), Apply("add", (Get(acc), twice), float32)),), "vector"
        ),
        Store(y, i, Apply("sub", (Combine("add", acc), Load(x, 0, Load(at, i), columns)), float32)),
        Store(y, i, Literal(-0.0, float32)),
    )
    return Program(f"rows{tag}", (x, y, at), (f"n{tag}",), (Loop(f"i{tag}", n, body),))


def test_show():
    assert show(rows()).splitlines() == [
        "rows(x: f32[10*n], y: f32[n], at: i64[n], n):",
        "  for i in 0..n:",
        "    # row sums",
        "    check lt(at[i], i64(n)) else 2",
        "    lanes acc: f32",
        "    vector for j in 0..10:",
        "      t0 = mul(x[10*i + j], x[10*i + j])",
        "      acc = add(acc, add(t0, t0))",
        "    y[i] = sub(combine add acc, x[0 + <at[i]>*(10)])",
        "    y[i] = -0.0:f32",
    ]


def test_names_do_not_count():
    assert signature(rows()) == signature(rows("other", note="something else"))
    assert signature(rows()) != signature(rows(columns=11))
    assert outline(rows()) == outline(rows("other", note="something else"))
    assert outline(rows()) != outline(rows(columns=11))


def test_a_dag_does_not_print_as_its_tree():
    x = Buffer("x", float32, 1)
    value = Load(x, 0)
    for _ in range(60):
        value = Apply("add", (value, value), float32)
    text = show(Program("deep", (x,), (), (Store(x, 0, value),)))
    assert len(text.splitlines()) == 61
