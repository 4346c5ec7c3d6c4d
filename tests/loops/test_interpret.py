"""The interpreter against NumPy written by hand: it is what native code is held against."""

from __future__ import annotations

import numpy as np

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Store,
)
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, float32, int64
from chainrule.loops.interpret import interpret

I, J, N = Size.symbol("i"), Size.symbol("j"), Size.symbol("n")


def test_combine_is_the_fixed_tree():
    x, y = Buffer("x", float32, N), Buffer("y", float32, 1)
    acc = Local("acc", float32, (), True)
    step = Set(acc, (), Apply("add", (Get(acc), Load(x, J)), float32))
    body = (
        acc,
        Set(acc, (), Literal(0.1, float32)),
        Loop("j", N, (step,), "vector"),
        Store(y, 0, Combine("add", acc)),
    )
    values = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    arrays = {"x": values, "y": np.zeros(1, np.float32)}
    assert interpret(Program("sum", (x, y), ("n",), body), arrays, {"n": 37}) == 0
    lanes = [np.float32(0.1)] * LANES
    for i, v in enumerate(values):
        lanes[i % LANES] = lanes[i % LANES] + v
    half = LANES // 2
    while half:
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        half //= 2
    assert arrays["y"][0] == lanes[0]


def test_gather_and_check():
    table, rows, out = (
        Buffer("table", float32, 12),
        Buffer("rows", int64, N),
        Buffer("out", float32, N * 3),
    )
    row = Load(rows, I)
    body = (
        Check(Apply("lt", (row, Literal(4, int64)), bool_), 5),
        Loop("j", 3, (Store(out, I * 3 + J, Load(table, J, row, 3)),), "vector"),
    )
    program = Program("take", (table, rows, out), ("n",), (Loop("i", N, body),))
    arrays = {
        "table": np.arange(12, dtype=np.float32),
        "rows": np.array([2, 0, 9, 1]),
        "out": np.zeros(12, np.float32),
    }
    assert interpret(program, arrays, {"n": 4}) == 5
    assert arrays["out"].tolist() == [6, 7, 8, 0, 1, 2, 0, 0, 0, 0, 0, 0]


def test_multiply_add_rounds_once_or_twice():
    x, y = Buffer("x", float32, 1), Buffer("y", float32, 1)
    value = Apply("fma", (Load(x, 0), Load(x, 0), Literal(-1.0, float32)), float32)
    program = Program("fma", (x, y), (), (Store(y, 0, value),))
    near = np.float32(1 + 2.0**-12)
    for fma, expected in ((True, 2.0**-11 + 2.0**-24), (False, np.float32(near * near) - 1)):
        arrays = {"x": np.array([near]), "y": np.zeros(1, np.float32)}
        interpret(program, arrays, {}, fma=fma)
        assert arrays["y"][0] == np.float32(expected)


def test_functions_come_from_their_recipes():
    x, y = Buffer("x", float32, 20), Buffer("y", float32, 20)
    value = Apply(
        "relu", (Apply("maximum", (Load(x, J), Literal(-1.0, float32)), float32),), float32
    )
    program = Program("relu", (x, y), (), (Loop("j", 20, (Store(y, J, value),), "vector"),))
    values = np.linspace(-2, 2, 20, dtype=np.float32)
    arrays = {"x": values, "y": np.zeros(20, np.float32)}
    interpret(program, arrays, {})
    assert (arrays["y"] == np.maximum(values, 0)).all()
