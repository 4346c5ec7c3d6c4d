"""What can't be meant is refused where it is written: by kind, operands, the user's line, a hint.

A row of the table is what somebody might write, the kind of error it must be, and what the message
must say: the operands' types, and how to mend it where there is a way.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import (
    ChainruleError,
    CompileError,
    DTypeError,
    FeedError,
    GradientError,
    ShapeError,
)

Write = Callable[[], Any]
Row = tuple[type[ChainruleError], Write, tuple[str, ...]]


def f32(*shape: int | str, name: str = "x") -> Any:
    return cr.input(name, shape)


def i32(*shape: int | str, name: str = "i") -> Any:
    return cr.input(name, shape, dtype="int32")


def flag(*shape: int | str) -> Any:
    return cr.input("flag", shape, dtype="bool")


class Foreign:
    """A tensor of some other library."""

    shape = (3,)
    dtype = "float32"


def function() -> Any:
    return cr.compile(f32(3), backend="reference")


def step() -> Any:
    loss = cr.mean(f32(1, name="t") * cr.parameter("w", (1,)))
    return cr.training_step(loss, cr.optim.SGD(0.1), backend="reference")


def leaked() -> Any:
    """What a scan's body saw, kept beyond it."""
    kept = []

    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        kept.append(carry * x)
        return carry + x, None

    cr.scan(body, cr.zeros(()), f32("time"))
    return kept[0]


def repeated() -> Any:
    return f32(3, name="twin") + f32(3, name="twin")


def mixed_scan() -> Any:
    return cr.scan(lambda c, x: (c, x), cr.zeros(()), [f32("a"), f32("b", name="y")])


TABLE: dict[str, Row] = {
    # graphs that are none
    "tensor of another library": (DTypeError, lambda: f32(3) + Foreign(), ("Foreign",)),
    "array of objects": (DTypeError, lambda: f32(3) + np.array([object()] * 3), ("ndarray",)),
    "array of strings": (DTypeError, lambda: cr.exp(np.array(["a"])), ("ndarray", "'a'")),
    "complex number": (DTypeError, lambda: f32(3) * 1j, ("complex",)),
    "complex array": (DTypeError, lambda: cr.constant(np.ones(2, complex)), ("complex",)),
    "None": (DTypeError, lambda: f32(3) + None, ("NoneType",)),
    "a string": (DTypeError, lambda: f32(3) + "3", ("str",)),
    "a ragged list": (ShapeError, lambda: cr.constant([[1.0], [1.0, 2.0]]), ("array",)),
    "tensor leaked from a scan": (CompileError, lambda: cr.compile(leaked()), ("scan",)),
    "repeated names": (CompileError, lambda: cr.compile(repeated()), ("twin", "f32[3]", "name")),
    "no tensor to compile": (DTypeError, lambda: cr.compile(3.0), ("3.0",)),
    "truth of a tensor": (DTypeError, lambda: bool(f32(3) > 0), ("bool[3]", "cr.where")),
    "inputs without names": (FeedError, lambda: function()(np.ones(3)), ("1 inputs", "x=...")),
    "a minibatch without names": (FeedError, lambda: step()([1.0]), ("1 inputs", "t=...")),
    "a function pickled": (
        CompileError,
        lambda: pickle.dumps(function()),
        ("copied or pickled", "compile"),
    ),
    "a training step pickled": (
        CompileError,
        lambda: pickle.dumps(step()),
        ("copied or pickled", "load_state_dict"),
    ),
    "number of a tensor": (DTypeError, lambda: float(f32()), ("f32[]", "cr.compile")),
    "index of a tensor": (DTypeError, lambda: [1, 2][i32()], ("i32[]",)),
    # shapes
    "negative size": (ShapeError, lambda: cr.input("x", (-1,)), ("-1",)),
    "a float as a size": (ShapeError, lambda: cr.input("x", (2.0,)), ("2.0",)),
    "a name with a space": (
        ShapeError,
        lambda: cr.input("x", ("batch size",)),
        ("'batch size'", "batch"),
    ),
    "None as a size": (ShapeError, lambda: cr.input("x", (None, 3)), ("None",)),
    "a nested shape": (ShapeError, lambda: cr.input("x", ((2, 3), 4)), ("(2, 3)",)),
    "True as a size": (ShapeError, lambda: cr.input("x", (True,)), ("True",)),
    "a rank beyond all": (ShapeError, lambda: cr.input("x", (1,) * 40), ("40", "32")),
    "more than memory counts": (ShapeError, lambda: cr.input("x", (2**40,) * 2), (str(2**40),)),
    "a product beyond": (
        ShapeError,
        lambda: cr.outer(f32(2**40), f32(2**40, name="y")),
        (f"f32[{2**40}]",),
    ),
    "concat beyond": (
        ShapeError,
        lambda: cr.concat([f32(2**58, name="x"), f32(2**58, name="y")]),
        (f"f32[{2**58}]",),
    ),
    "broadcast beyond": (ShapeError, lambda: cr.broadcast_to(f32(), (2**40, 2**40)), ("2",)),
    # names
    "a name that is no text": (ShapeError, lambda: cr.input(3, (2,)), ("3",)),
    "an empty name": (ShapeError, lambda: cr.input("", (2,)), ("''",)),
    "a name of two lines": (ShapeError, lambda: f32(2).named("a\nb"), ("'a\\nb'",)),
    "a name that is a number": (ShapeError, lambda: f32(2).named(3), ("3",)),
    # element types
    "no such type": (DTypeError, lambda: cr.input("x", (2,), dtype="float31"), ("float31", "32")),
    "complex type": (DTypeError, lambda: cr.input("x", (2,), dtype="complex64"), ("complex64",)),
    "None as a type": (DTypeError, lambda: cr.input("x", (2,), dtype=None), ("None",)),
    "float and int": (
        DTypeError,
        lambda: f32(3) + i32(3),
        ("f32[3], i32[3]", "float32 and int32", "astype"),
    ),
    "bool and int": (DTypeError, lambda: flag(3) + i32(3), ("bool[3], i32[3]", "astype")),
    "bool and a number": (DTypeError, lambda: flag(3) + 1, ("bool", "1", "astype")),
    "int and a fraction": (DTypeError, lambda: i32(3) * 0.5, ("int32", "0.5", "astype")),
    "uint64 and int64": (
        DTypeError,
        lambda: cr.input("u", (2,), dtype="uint64") + cr.input("s", (2,), dtype="int64"),
        ("u64[2], i64[2]", "astype"),
    ),
    "exp of ints": (DTypeError, lambda: cr.exp(i32(3)), ("int32", "astype")),
    "a number too large": (DTypeError, lambda: cr.full((2,), 300, dtype="int8"), ("300", "int8")),
    # axes
    "axis beyond": (ShapeError, lambda: cr.sum(f32(3, 4), axis=2), ("axis 2", "f32[3, 4]")),
    "axis below": (ShapeError, lambda: cr.sum(f32(3, 4), axis=-3), ("axis -3", "f32[3, 4]")),
    "axis twice": (ShapeError, lambda: cr.sum(f32(3, 4), axis=(0, -2)), ("f32[3, 4]",)),
    "a float as an axis": (ShapeError, lambda: cr.sum(f32(3, 4), axis=1.0), ("1.0",)),
    "sort of a scalar": (ShapeError, lambda: cr.sort(f32()), ("f32[]",)),
    "softmax beyond": (ShapeError, lambda: cr.softmax(f32(3), axis=1), ("axis 1", "f32[3]")),
    "axes that do not permute": (
        ShapeError,
        lambda: cr.permute_dims(f32(3, 4), (0, 0)),
        ("(0, 0)", "f32[3, 4]"),
    ),
    "squeeze of more than 1": (ShapeError, lambda: cr.squeeze(f32(3, 1), axis=0), ("f32[3, 1]",)),
    "expand_dims beyond": (ShapeError, lambda: cr.expand_dims(f32(3), axis=5), ("f32[3]", "5")),
    # sizes that do not fit
    "matmul": (
        ShapeError,
        lambda: f32("batch", 784) @ f32(512, 10, name="w"),
        ("f32[batch, 784] @ f32[512, 10]", "784", "512"),
    ),
    "matmul of a scalar": (ShapeError, lambda: f32(3) @ f32(name="y"), ("f32[3]", "f32[]")),
    "sum of unlike shapes": (
        ShapeError,
        lambda: f32(3, 4) + f32(5, name="y"),
        ("f32[3, 4]", "f32[5]", "4 != 5", "axis -1"),
    ),
    "batch against time": (
        ShapeError,
        lambda: f32("batch", 3) + f32("time", 3, name="y"),
        ("f32[batch, 3]", "f32[time, 3]", "batch != time", "axis -2", "names"),
    ),
    "batch against time in a product": (
        ShapeError,
        lambda: f32(3, "batch") @ f32("time", 3, name="y"),
        ("f32[3, batch] @ f32[time, 3]", "batch", "time"),
    ),
    "a size against a number": (
        ShapeError,
        lambda: f32("batch") + f32(3, name="y"),
        ("f32[batch]", "f32[3]", "batch != 3"),
    ),
    "where": (
        ShapeError,
        lambda: cr.where(flag(2), f32(3), 0.0),
        ("bool[2]", "f32[3]"),
    ),
    "where by numbers": (DTypeError, lambda: cr.where(f32(3), f32(3), 0.0), ("f32[3]", "!= 0")),
    "reshape to another count": (
        ShapeError,
        lambda: cr.reshape(f32(3, 4), (5, 2)),
        ("f32[3, 4]", "(5, 2)"),
    ),
    "reshape with two unknowns": (
        ShapeError,
        lambda: cr.reshape(f32(3, 4), (-1, -1)),
        ("-1",),
    ),
    "broadcast_to less": (ShapeError, lambda: cr.broadcast_to(f32(3), (2,)), ("f32[3]", "(2)")),
    "concat of unlike": (
        ShapeError,
        lambda: cr.concat([f32(3, 4), f32(3, 5, name="y")], axis=0),
        ("f32[3, 4]", "f32[3, 5]", "axis 0"),
    ),
    "concat of an array of one number": (ShapeError, lambda: cr.concat(np.array(3)), ("array(3)",)),
    "layers that are a number": (
        DTypeError,
        lambda: cr.nn.Sequential(np.array(3)),
        ("array(3)",),
    ),
    "an array as a flag": (
        DTypeError,
        lambda: cr.nn.LayerNorm(scale=np.ones(3)),
        ("scale", "True"),
    ),
    "a text as a flag": (DTypeError, lambda: cr.nn.Dense(3, use_bias="no"), ("use_bias", "'no'")),
    "an initialiser as a flag": (
        DTypeError,
        lambda: cr.nn.LSTM(3, return_sequences=cr.init.zeros()),
        ("LSTM: return_sequences",),
    ),
    "how attention is masked": (
        DTypeError,
        lambda: cr.attention(f32(3, 2), f32(3, 2), f32(3, 2), causal="yes"),
        ("causal", "'yes'"),
    ),
    "concat of nothing": (ShapeError, lambda: cr.concat([]), ()),
    "stack of unlike": (
        ShapeError,
        lambda: cr.stack([f32(3), f32(4, name="y")]),
        ("f32[3]", "f32[4]"),
    ),
    "einsum of unlike": (
        ShapeError,
        lambda: cr.einsum("ij,jk->ik", f32(3, 4), f32(5, 6, name="y")),
        ("f32[3, 4]", "f32[5, 6]", "ij,jk->ik"),
    ),
    "einsum of another rank": (
        ShapeError,
        lambda: cr.einsum("ijk->i", f32(3, 4)),
        ("f32[3, 4]", "ijk->i"),
    ),
    "einsum of no such letter": (
        ShapeError,
        lambda: cr.einsum("ij->ik", f32(3, 4)),
        ("ij->ik", "k"),
    ),
    "einsum of fewer operands": (
        ShapeError,
        lambda: cr.einsum("ij,jk->ik", f32(3, 4)),
        ("ij,jk->ik",),
    ),
    # windows
    "kernel larger than the image": (
        ShapeError,
        lambda: cr.conv(f32(1, 1, 3, 3), f32(1, 1, 5, 5, name="k")),
        ("f32[1, 1, 3, 3]", "f32[1, 1, 5, 5]"),
    ),
    "kernel of other channels": (
        ShapeError,
        lambda: cr.conv(f32(1, 2, 8), f32(4, 3, 3, name="k")),
        ("f32[1, 2, 8]", "f32[4, 3, 3]"),
    ),
    "no stride": (
        ShapeError,
        lambda: cr.conv(f32(1, 1, 8), f32(1, 1, 3, name="k"), stride=0),
        ("stride", "0"),
    ),
    "window larger than the image": (
        ShapeError,
        lambda: cr.max_pool(f32(1, 1, 3), 5),
        ("f32[1, 1, 3]", "5"),
    ),
    # places
    "index beyond": (ShapeError, lambda: f32(3)[3], ("index 3", "f32[3]")),
    "more indices than axes": (ShapeError, lambda: f32(3)[0, 0], ("2 indices", "f32[3]")),
    "a float as an index": (ShapeError, lambda: f32(3)[1.0], ("1.0",)),
    "a slice that stands still": (ShapeError, lambda: f32(3)[::0], ("step",)),
    "a mask": (DTypeError, lambda: f32(3)[flag(3)], ("bool[3]", "f32[3]", "where")),
    "float positions": (
        DTypeError,
        lambda: cr.take(f32(3), f32(2, name="p"), axis=0),
        ("f32[2]", "astype"),
    ),
    "top_k of more": (ShapeError, lambda: cr.top_k(f32(3), 4), ("3", "4")),
    "one_hot of fractions": (DTypeError, lambda: cr.one_hot(f32(3), 4), ("f32[3]",)),
    "one_hot of a negative number": (ShapeError, lambda: cr.one_hot(i32(3), -1), ("-1",)),
    "shape that data decides": (ShapeError, lambda: cr.nonzero(f32(3)), ("data", "cr.where")),
    # nothing to fold
    "max of nothing": (ShapeError, lambda: cr.max(f32(0)), ("f32[0]",)),
    "argmin of nothing": (ShapeError, lambda: cr.argmin(f32(3, 0), axis=1), ("f32[3, 0]",)),
    # derivatives
    "gradient of a vector": (
        GradientError,
        lambda: cr.grad((x := f32(3)) * 2, x),
        ("f32[3]", "cr.vjp"),
    ),
    "gradient by integers": (
        GradientError,
        lambda: cr.grad(cr.sum(f32(3)), i32(3)),
        ("i32[3]", "astype"),
    ),
    "gradient of integers": (
        GradientError,
        lambda: cr.grad(cr.sum(x := i32(3)), x),
        ("i64[]", "astype"),
    ),
    "gradient by what is not there": (
        GradientError,
        lambda: cr.grad(cr.sum(f32(3).named("loss")), f32(2, name="other")),
        ("other", 'unused="zeros"'),
    ),
    "gradient by no tensor": (DTypeError, lambda: cr.grad(cr.sum(f32(3)), "x"), ("'x'",)),
    "cotangent of another shape": (
        ShapeError,
        lambda: cr.vjp((x := f32(3)) * 2, x, f32(4, name="ct")),
        ("f32[3]", "f32[4]"),
    ),
    # loops
    "scan over unlike sizes": (ShapeError, mixed_scan, ("f32[a]", "f32[b]")),
    # options
    "no such backend": (
        CompileError,
        lambda: cr.compile(f32(3), backend="tpu"),
        ("tpu", "cpu"),
    ),
    "a negative slope of time": (CompileError, lambda: cr.compile(f32(3), threads=0), ("0",)),
    "no step to show": (CompileError, lambda: cr.compile(f32(3) + 1).show("soup"), ("soup",)),
}

#: Who else stands between the row and what is wrong with it.
HELPERS: dict[str, tuple[Write, ...]] = {
    "tensor leaked from a scan": (leaked,),
    "repeated names": (repeated,),
    "scan over unlike sizes": (mixed_scan,),
}


def lines_of(function: Write) -> set[int]:
    """The lines of a function, and of those written in it."""
    codes, lines = [function.__code__], set()
    while codes:
        code = codes.pop()
        lines |= {line for _, _, line in code.co_lines() if line is not None}
        codes += [c for c in code.co_consts if isinstance(c, type(code))]
    return lines


@pytest.mark.parametrize("name", TABLE)
def test_refused_where_it_is_written(name: str) -> None:
    kind, write, said = TABLE[name]
    with pytest.raises(kind) as caught:
        write()
    error = caught.value
    assert error.where is not None and error.where.filename == __file__, error
    assert error.where.line in set().union(*map(lines_of, (write, *HELPERS.get(name, ()))))
    for part in said:
        assert part in str(error), f"{part!r} is not in: {error}"
