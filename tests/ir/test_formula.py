"""The grammar of formulas, and what is refused and where."""

from __future__ import annotations

import math
import operator
import random

import pytest

from chainrule.errors import FormulaError
from chainrule.ir.formula import Call, Formula, Name, Number, fold, names, parse, parse_recipe

MEANING = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "exp": math.exp,
}


def value(formula: Formula, **at: float) -> float:
    result: float = fold(formula, float, at.__getitem__, lambda fn, args: MEANING[fn](*args))
    return result


def spell(rng: random.Random, depth: int) -> str:
    """A random formula in the grammar that Python reads alike."""
    if depth == 0:
        return rng.choice(["x", "y", "2", "0.5", "1.5e-1"])
    a, b = spell(rng, depth - 1), spell(rng, depth - 1)
    return rng.choice(
        [f"{a} + {b}", f"{a} - {b}", f"{a}*{b}", f"-{a}", f"({a})", f"({a})**2", f"({a})/({b})"]
    )


@pytest.mark.parametrize("seed", range(60))
def test_formulas_mean_what_python_means_by_them(seed: int) -> None:
    text = spell(random.Random(seed), 4)
    at = {"x": 1.25, "y": -0.75}
    try:
        expected = eval(text, {}, at)  # the independent reading; the texts are our own
    except ZeroDivisionError:
        return
    assert value(parse(text), **at) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("x", Name("x")),
        ("-2", Number(-2)),
        ("2**-x", Call("pow", (Number(2), Call("neg", (Name("x"),))))),
        ("-x**2", Call("neg", (Call("pow", (Name("x"), Number(2))),))),
        ("x**y**2", Call("pow", (Name("x"), Call("pow", (Name("y"), Number(2)))))),
        ("x - y - 1", Call("sub", (Call("sub", (Name("x"), Name("y"))), Number(1)))),
        ("x/y*2", Call("mul", (Call("div", (Name("x"), Name("y"))), Number(2)))),
        ("x + y < 2", Call("lt", (Call("add", (Name("x"), Name("y"))), Number(2)))),
        ("f(x, 1)", Call("f", (Name("x"), Number(1)))),
        ("--x", Name("x")),
        ("α*β", Call("mul", (Name("α"), Name("β")))),
    ],
)
def test_trees(text: str, tree: Formula) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ("x +", 3),
        ("x y", 2),
        ("(x", 2),
        ("f(x,)", 4),
        ("x.real", 1),
        ("x; y", 1),
        ("[x]", 0),
        ("'x'", 0),
        ("lambda: x", 6),
        ("x ** ** y", 5),
        ("x == y == z", 7),
        ("f()", 2),
        ("1..2", 2),
    ],
)
def test_errors_point_at_the_place(text: str, place: int) -> None:
    with pytest.raises(FormulaError) as caught:
        parse(text)
    assert caught.value.details[-1] == " " * place + "^"


def test_depth_and_height_are_limited() -> None:
    for text in ("(" * 5000 + "x" + ")" * 5000, "f(" * 5000 + "x" + ")" * 5000, "x" + "**x" * 5000):
        with pytest.raises(FormulaError, match="nests at most"):
            parse(text)
    with pytest.raises(FormulaError, match="operations high"):
        parse("+".join(["x"] * 5000))
    assert parse("-" * 5001 + "x") == Call("neg", (Name("x"),))
    assert len(names(parse("+".join(["x"] * 150)))) == 1


def test_nothing_is_evaluated() -> None:
    tree = parse("__import__(os)")
    assert tree == Call("__import__", (Name("os"),))
    with pytest.raises(FormulaError):
        parse("(1).__class__")


def test_names_stand_in_order_of_appearance() -> None:
    assert names(parse("b*x + a*x**b")) == ("b", "x", "a")


def test_recipes() -> None:
    recipe = parse_recipe("t = x*x  # squared\nu = t + 1; u*t")
    assert [name for name, _ in recipe.bindings] == ["t", "u"]
    for wrong in ("", "t = x\nu = ", "2 = x\nx", "x + 1\nx"):
        with pytest.raises(FormulaError):
            parse_recipe(wrong)
