"""Whatever a public function is given, it refuses in our own words or it works: never a bare error.

A call that does not fit a signature is Python's own TypeError, raised where the call stands.
"""

from __future__ import annotations

import inspect
import operator
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError

#: These run what they are given, so that an error may well be the caller's own.
RUN = {"scan", "custom_derivative", "elementwise"}
FUNCTIONS = sorted(
    n for n in cr.__all__ if inspect.isfunction(getattr(cr, n)) and n not in {*RUN, "compile"}
)
OPERATORS = "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift eq lt getitem"
METHODS: tuple[Callable[[Any], Any], ...] = (
    operator.neg, operator.invert, abs, bool, float, int, len, hash, iter, str, repr,
    operator.index, lambda t: t.T, lambda t: t.mT, lambda t: t.latex(),
)  # fmt: skip


class Foreign:
    shape = (3,)
    dtype = "float32"


def tensors() -> list[Any]:
    return [
        cr.input("x", (3, 4)),
        cr.input("y", ("batch", 4)),
        cr.input("i", (3,), dtype="int32"),
        cr.input("b", (3, 4), dtype="bool"),
        cr.input("s", ()),
        cr.input("z", (0, 4)),
        cr.input("w", (4, 4), dtype="float64"),
        cr.input("p", (2, 3, 8, 8)),
        cr.input("u", (3,), dtype="uint8"),
    ]


def hostile(given: list[Any]) -> list[Any]:
    x, y, i = given[:3]
    batch = y.shape[0]
    numbers = [0, 1, 2, -1, -5, 3, 2**31, 2**40, 2**63, 2**70, -(2**70), 10**400, 0.5, -0.0, 1j]
    odd = [float("nan"), float("inf"), None, True, False, batch, batch - 5, batch * 2**62]
    words = ["", "x", "batch", "a b", "float32", "complex64", "ij,jk->ik", "->", "...", b"x"]
    shapes = [(), (0,), (1, 0), (0, 0), (-1,), (-1, -1), ("batch",), (2.0,), (None,), ((1,),)]
    lists = [[], {}, [x, x], [x, i], [x, None], {"a": x}, {"a": 3}, {1, 2}, [[1], [1, 2]], [1, 2]]
    arrays = [np.ones((3, 4)), np.float32(2), np.array(["a"]), np.array([object()]), np.arange(3)]
    more = [np.ones(3, complex), np.zeros(0), object(), Foreign(), slice(None), ..., range(3)]
    return [*given, *numbers, *odd, *words, *shapes, *lists, *arrays, *more, cr.float32, float, cr]


def arguments(
    rng: random.Random, function: Any, pool: list[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Values for a signature's parameters: those without a default, and some of the others."""
    args: list[Any] = []
    named: dict[str, Any] = {}
    for p in inspect.signature(function).parameters.values():
        wanted = p.default is p.empty or rng.random() < 0.4
        value = rng.choice(pool[:9] if rng.random() < 0.4 else pool)
        if p.kind is p.VAR_POSITIONAL:
            args += rng.choices(pool, k=rng.randint(0, 3))
        elif p.kind is p.KEYWORD_ONLY and wanted:
            named[p.name] = value
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            if not wanted:
                break
            args.append(value)
    return args, named


@contextmanager
def refused(what: str, seed: int) -> Iterator[None]:
    """Lets our errors pass, and a TypeError of the call itself; fails for any other."""
    try:
        yield
    except ChainruleError:
        pass
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, TypeError) and frames[-1].filename == __file__:
            return
        pytest.fail(f"seed {seed}: {what}: {type(error).__name__}: {error} in {frames[-1]}")


@pytest.mark.parametrize("seed", range(3))
def test_functions(seed: int) -> None:
    rng = random.Random(seed)
    pool = hostile(tensors())
    for _ in range(1500):
        name = rng.choice(FUNCTIONS)
        function = getattr(cr, name)
        args, named = arguments(rng, function, pool)
        with refused(f"{name}(*{args!r}, **{named!r})", seed):
            out = function(*args, **named)
            if isinstance(out, cr.Tensor):
                str(out), out.latex()


def test_operators() -> None:
    rng = random.Random(0)
    given = tensors()
    pool = hostile(given)
    functions = [getattr(operator, name) for name in OPERATORS.split()]
    for _ in range(1500):
        a, b, f, m = rng.choice(given), rng.choice(pool), rng.choice(functions), rng.choice(METHODS)
        with refused(f"{f.__name__}({a!r}, {b!r})", 0):
            f(a, b)
        with refused(f"{m}({a!r})", 0):
            m(a)
        index = tuple(rng.choices(pool, k=2))
        with refused(f"{a!r}[{index!r}]", 0):
            a[index]
        ends = slice(*rng.choices(pool, k=3))
        with refused(f"{a!r}[{ends!r}]", 0):
            a[ends]


def test_compiling_and_feeding() -> None:
    rng = random.Random(0)
    pool = hostile(tensors())
    x, i = cr.input("x", ("batch", 3)), cr.input("i", ("batch",), dtype="int32")
    total, taken = cr.compile(cr.sum(x) * 1.0), cr.compile(cr.take(x, i, axis=0))
    rows = np.ones((4, 3), np.float32)
    options = ("backend", "threads", "precision", "training", "seed")
    for _ in range(400):
        value, option = rng.choice(pool), rng.choice(options)
        with refused(f"feed {value!r}", 0):
            total(x=value)
        with refused(f"positions {value!r}", 0):
            taken(x=rows, i=value)
        with refused(f"compile {option} {value!r}", 0):
            cr.compile(x + 1, **{option: value})
        with refused(f"show {value!r}", 0):
            total.show(value)
        with refused(f"leaf {value!r}", 0):
            cr.input("v", value, dtype=rng.choice(pool))
        with refused(f"parameter {value!r}", 0):
            cr.parameter("v", (2, 3), init=value)
        with refused(f"step {value!r}", 0):
            cr.training_step(value, rng.choice(pool))
        with refused(f"gradient {value!r}", 0):
            cr.grad(value, rng.choice(pool))
