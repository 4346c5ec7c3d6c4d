"""Printed mathematics read back: a text and what its names stand for become nodes.

Print leaves out what a reader sees: that a vector is repeated along rows, how many classes a
one-hot code has, the element type of a number. It is taken from what stands beside it; FormulaError
says where that does not tell. A name bound in a line may be used in those below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import FormulaError, ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Shape, Size, symbols_of
from chainrule.ir.types import TensorType, check_shape, float32
from chainrule.ops import build
from chainrule.ops.axes import folded_axes, implied_axes
from chainrule.ops.composite import Pick
from chainrule.ops.contract import matmul
from chainrule.ops.elementwise import TABLE
from chainrule.ops.gather import Gather
from chainrule.ops.index import OneHot, Take
from chainrule.ops.layout import Place, Slice
from chainrule.ops.registry import SPELLED, WORDS
from chainrule.ops.source import constant, full, size_of
from chainrule.show.grammar import Range, is_plain, read, split_page
from chainrule.show.ranges import divided, is_size, range_of, size_arithmetic
from chainrule.show.sequences import Index, Named, Sequences, head_of, indexed, moved
from chainrule.show.values import (
    Code,
    Filled,
    Indicator,
    fitted,
    is_open,
    number_of,
    numbers,
    transposed,
    with_axes,
)

#: How two sizes are divided, which as tensors are divided so.
_SIZED = {"floordiv": "floor_divide", "mod": "remainder"}
_CONSTANTS: dict[str, float | bool | None] = {
    "None": None,
    "inf": float("inf"),
    "nan": float("nan"),
    "True": True,
    "False": False,
}


def parse(
    text: str,
    inputs: Mapping[str, Node],
    functions: Mapping[str, Callable[..., Node]] | None = None,
    like: TensorType | None = None,
) -> Node:
    """The node that the last line of a page says.

    `inputs` are what its names stand for, whatever a line of the page says they are, `functions`
    those of the user's own; sizes go by their names. The result is of the type of `like`, if that
    is given: a number printed alone does not say its shape. Raises FormulaError, ShapeError or
    DTypeError with the place in the text.
    """
    reading = _Reading(inputs, functions or {})
    value: Any = None
    for indent, name, formula in split_page(text):
        reading.close(indent)
        head = head_of(name, formula)
        if head is not None:
            reading.open(indent, *head)
        elif name is not None and name in inputs:
            value = inputs[name]
        else:
            value = read(formula, reading, reading.odd)
            reading.say(name, value)
    reading.close(0)
    return reading.result(value, like)


#: what stands for a node that is not made yet
_OPEN = (Indicator, Code, Filled, Named, Index)


class _Reading:
    """The meaning of formulas, given what names stand for."""

    def __init__(
        self, inputs: Mapping[str, Node], functions: Mapping[str, Callable[..., Node]]
    ) -> None:
        self.names: dict[str, Any] = {}
        for node in inputs.values():
            for symbol in {s for d in node.shape for s in symbols_of(d)}:
                self.names[symbol] = Size.symbol(symbol)
        self.odd: set[str] = set()
        self.sequences = Sequences()
        for name, node in inputs.items():
            self.bind(name, node)
        self.functions = functions
        floats = [n.dtype for n in inputs.values() if n.dtype.is_float]
        self.float = floats[0] if floats else float32

    def bind(self, name: str, value: Any) -> None:
        """Let a name stand for a value in what is read from here on."""
        self.names[name] = value
        if not is_plain(name):
            self.odd.add(name)

    # loops

    def open(self, indent: int, letter: str, first: str, last: str) -> None:
        """Begin the steps of a loop."""
        ends = tuple(read(end, self, self.odd) for end in (first, last))
        if not all(map(is_size, ends)):
            raise FormulaError(f"a loop goes from size to size, not from {first} to {last}")
        self.sequences.start(letter, (ends[0], ends[1]), indent)

    def close(self, indent: int) -> None:
        """End the loops in which a line does not stand."""
        while self.sequences.open and indent <= self.sequences.open[-1].indent:
            self.sequences.finish()

    def say(self, name: str | None, value: Any) -> None:
        """What a line says of a name: of one with an index, of a sequence."""
        of = indexed(name)
        if name is None or of is None:
            if name is not None:
                self.bind(name, value)
            return
        sequence, index = of
        inside = self.sequences.open
        if inside and index == inside[-1].letter:
            self.sequences.say(sequence, self.node(value))
            return
        place = read(index, self, self.odd)
        if not is_size(place):
            raise FormulaError(f"{name} is said of no step of a loop that is open here")
        self.sequences.begin[sequence] = (place, self.node(value))

    def begin_sum(self, letter: str) -> None:
        """From here to `end_sum` a letter is the number of a step."""
        self.sequences.sums.append(letter)

    def end_sum(self, letter: str, value: Any) -> Node:
        """The sum over the steps."""
        self.sequences.sums.pop()
        return self.sequences.total(letter, self.node(value))

    # the parts of a formula

    def number(self, value: float | int) -> float | int:
        return value

    def name(self, name: str) -> Any:
        if self.sequences.is_letter(name):
            return Index(name)
        if name in self.sequences:
            return Named(name)
        if name in self.names:
            return self.names[name]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        known = ", ".join(sorted(map(str, self.names)))
        if name == "constant":
            raise FormulaError(f"the text does not hold the whole of {name}: give it as an input")
        raise FormulaError(f"{name!r} is not known here", f"there are {known}")

    def brackets(self, items: Sequence[Any]) -> Any:
        """`[c]` of a condition, several tensors, or the numbers of a small constant."""
        if len(items) == 1 and isinstance(items[0], Node):
            if not items[0].dtype.is_bool:
                raise FormulaError(f"brackets hold a condition, not {items[0].type}")
            return Indicator(items[0])
        if len(items) > 1 and all(isinstance(i, Node) and is_open(i) for i in items):
            return tuple(items)
        try:
            array = np.asarray(numbers(items))
        except (ValueError, TypeError):
            raise FormulaError("brackets hold one condition, or the numbers of an array") from None
        return constant(array, self.float) if array.dtype.kind == "f" else constant(array)

    def index(self, x: Any, parts: Sequence[Any]) -> Any:
        """`x[2:5, :]`, or `x[y]` of integers: of each row its element, or else rows."""
        if isinstance(x, Filled) and len(parts) == len(x.shape) > 0:
            chosen = tuple(map(range_of, parts, x.shape))
            return Filled(x.shape, x.fill, chosen)
        if isinstance(x, Named) and len(parts) == 1 and not isinstance(parts[0], Node):
            return self.sequences.at(x.name, parts[0])
        node = self.node(x)
        if len(parts) == 1 and isinstance(parts[0], Index):
            if parts[0].offset:
                raise FormulaError("one beside a step there are values of sequences alone")
            return self.sequences.row(node, parts[0].letter)
        if any(p is None for p in parts):
            return with_axes(node, parts)
        if len(parts) == 1 and isinstance(parts[0], Node):
            (at,) = parts
            one_a_row = at.type.shape == node.type.shape[:-1] and node.type.rank > 0
            if one_a_row or not node.type.rank:
                return apply(Pick(), node, at)
            return apply(Take(0, at.type.rank, node.type.shape[0]), node, at)
        if 1 < len(parts) <= node.type.rank and all(isinstance(p, Node) for p in parts):
            sizes, axes = node.type.shape[: len(parts)], tuple(range(len(parts)))
            return apply(Gather(axes, sizes, parts[0].type.rank), node, *parts)
        if len(parts) != node.type.rank or not parts:
            raise FormulaError(f"an index of {node.type} is a range for each axis, or integers")
        ranges = map(range_of, parts, node.type.shape)
        starts, counts, steps = zip(*ranges, strict=True)
        return apply(Slice(starts, counts, steps), node)

    def call(self, fn: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if fn in self.functions:
            if not all(isinstance(v, (int, float)) for v in options.values()):
                raise FormulaError(f"the options of {fn} are numbers")
            return self.functions[fn](*map(self.node, args), **options)
        if fn in _SIZED and all(map(is_size, args)):
            return divided(fn, *args)
        if fn in ("onehot", "zeros", "full", "set"):
            return fitted(fn, getattr(self, fn), args, options)
        if fn in ("matmul", "transpose"):
            return self.matmul(*args) if fn == "matmul" else transposed(self.node(args[0]))
        fn = SPELLED.get((fn, len(args)), _SIZED.get(fn, fn))
        if fn in TABLE and not options:
            return self.elementwise(fn, args)
        if fn in WORDS:
            return self.function(fn, args, options)
        own = ", ".join([*self.functions, *WORDS, *TABLE])
        raise FormulaError(f"no function is called {fn!r}", f"there are {own}")

    # functions

    def function(self, fn: str, args: Sequence[Any], options: dict[str, Any]) -> Any:
        if args and isinstance(args[0], Code):
            code = args[0]
            return Code(code.of, lambda n, of: self.applied(fn, [code.make(n, of)], options))
        return self.applied(fn, [self.operand(a) for a in args], options)

    def applied(self, fn: str, args: Sequence[Any], options: dict[str, Any]) -> Node:
        node: Node = fitted(fn, WORDS[fn], args, options)
        return node

    def onehot(self, y: Any, n: Any = None) -> Any:
        of = self.node(y)
        if n is not None:
            (size,) = check_shape((n,))
            return apply(OneHot(size, self.float), of)
        return Code(of, lambda n, dtype: apply(OneHot(n, dtype), of))

    def zeros(self, shape: Any) -> Filled:
        return self.full(shape, 0)

    def full(self, shape: Any, value: Any) -> Filled:
        sizes = shape if isinstance(shape, tuple) else (shape,)
        if not all(map(is_size, sizes)) or not isinstance(value, (int, float)):
            raise FormulaError("zeros and full take a shape of sizes, full a number after it")
        return Filled(check_shape(sizes), value)

    def set(self, of: Any, value: Any) -> Node:
        if not isinstance(of, Filled) or not of.ranges:
            raise FormulaError("what is set is a part of zeros: zeros((3, 4))[1:3, :].set(x)")
        starts, counts, steps = zip(*of.ranges, strict=True)
        x = build.broadcast(self.lift(self.node(value), counts), counts)
        return apply(Place(starts, of.shape, steps, of.fill), x)

    def matmul(self, x: Any, y: Any) -> Any:
        if isinstance(x, Code):
            other = self.node(y)
            return matmul(
                x.make(other.type.shape[-2 if other.type.rank > 1 else 0], other.dtype), other
            )
        if isinstance(y, Code):
            left = self.node(x)
            if not y.of.type.rank and left.type.rank:
                return matmul(left, y.make(left.type.shape[-1], left.dtype))
            return Code(y.of, lambda n, of: matmul(left, y.make(n, of)))
        return matmul(self.node(x), self.node(y))

    def elementwise(self, fn: str, args: Sequence[Any]) -> Any:
        op = TABLE[fn]
        if (index := moved(fn, args)) is not None:
            return index
        args = [self.node(a) if isinstance(a, (Named, Index)) else a for a in args]
        if len(args) != len(op.params):
            raise FormulaError(f"{fn} takes {len(op.params)} operands, not {len(args)}")
        if any(isinstance(a, (str, tuple, Range)) for a in args):
            raise FormulaError(f"{fn} takes tensors and numbers")
        if fn in ("add", "sub", "mul", "neg") and all(is_size(a) for a in args):
            return size_arithmetic(fn, args)
        if fn == "mul" and any(isinstance(a, Node) and a.dtype.is_bool for a in args):
            args = [Indicator(a) if isinstance(a, Node) and a.dtype.is_bool else a for a in args]
        if fn == "mul" and any(isinstance(a, Indicator) for a in args):
            x, c = args if isinstance(args[1], Indicator) else args[::-1]
            return self.elementwise("where", (c.condition, self.operand(x), 0))
        codes = [a for a in args if isinstance(a, Code)]
        if codes:
            return self.with_codes(fn, args, codes[0])
        return self.spelled(fn, [self.operand(a) for a in args])

    def with_codes(self, fn: str, args: Sequence[Any], code: Code) -> Any:
        """Beside a tensor of one axis more than the classes a one-hot code has its last size."""
        rank = code.of.type.rank + 1
        beside = [a for a in args if isinstance(a, Node) and a.type.rank >= rank]
        if beside:
            n, dtype = beside[0].type.shape[-1], beside[0].dtype
            dtype = dtype if dtype.is_float else self.float
            return self.elementwise(
                fn, [a.make(n, dtype) if isinstance(a, Code) else a for a in args]
            )
        return Code(
            code.of,
            lambda n, of: self.elementwise(
                fn, [a.make(n, of) if isinstance(a, Code) else a for a in args]
            ),
        )

    def spelled(self, fn: str, args: Sequence[Any]) -> Any:
        nodes = [a for a in args if isinstance(a, Node)]
        if not nodes and not any(isinstance(a, Size) for a in args):
            return number_of(fn, args)
        dtypes = [a.dtype for a in nodes if not a.dtype.is_bool]
        floats = [d for d in dtypes if d.is_float]
        default = floats[0] if floats else dtypes[0] if dtypes and fn != "div" else self.float
        sized = [size_of(a, default) if isinstance(a, Size) else a for a in args]
        cast = [
            build.cast(a, default) if floats and isinstance(a, Node) and a.dtype.is_integer else a
            for a in sized
        ]
        return build.call(fn, *self.lifted(cast))

    def lifted(self, args: Sequence[Any]) -> list[Any]:
        """The operands with axes of size 1 put where mathematics leaves out that they repeat."""
        nodes = [a for a in args if isinstance(a, Node)]
        rank = max((n.type.rank for n in nodes), default=0)
        widest = [n for n in nodes if n.type.rank == rank]
        try:
            shape = build.broadcast_shapes([n.type.shape for n in widest])
        except ShapeError:
            if not any(map(folded_axes, widest)):
                raise
            return self.lifted([self.unfolded(a) if a in widest else a for a in args])
        return [self.lift(a, shape) if isinstance(a, Node) else a for a in args]

    def unfolded(self, x: Node) -> Node:
        """A node with the axes put back, of size 1, that a sum took."""
        gone = folded_axes(x)
        return build.keep_axes(x, gone[1]) if gone else x

    def lift(self, x: Node, shape: Shape) -> Node:
        """A node of as many axes as a shape, where a reader puts them."""
        if x.type.rank in (0, len(shape)):
            return x
        axes = implied_axes(x, shape)
        if axes is None:
            shown = ", ".join(map(str, shape))
            raise ShapeError(f"{x.type} does not fit into ({shown}) in one way")
        return build.keep_axes(x, axes)

    # values as nodes

    def operand(self, value: Any) -> Any:
        """A node, or a number, a size or a tuple, which what they stand beside gives a type."""
        return self.node(value) if isinstance(value, _OPEN) else value

    def node(self, value: Any) -> Node:
        if isinstance(value, Node):
            return value
        if isinstance(value, Named):
            return self.sequences.whole(value.name)
        if isinstance(value, Index):
            return self.sequences.number(value)
        if isinstance(value, Indicator):
            return build.call(
                "where", value.condition, 1, 0, like=full(1, self.float, value.condition.shape)
            )
        if isinstance(value, Code):
            raise FormulaError(
                "the text does not say how many classes a one-hot code has", "write onehot(y, 10)"
            )
        if isinstance(value, Size):
            return size_of(value, self.float)
        if isinstance(value, Filled) and not value.ranges:
            return full(value.fill, self.float, value.shape)
        if isinstance(value, bool):
            return constant(np.asarray(value))
        if isinstance(value, (int, float)):
            return full(value, self.float, ())
        raise FormulaError(f"{value!r} is no tensor")

    def result(self, value: Any, like: TensorType | None) -> Node:
        if like is None:
            return self.node(value)
        if isinstance(value, Code) and like.rank:
            value = value.make(like.shape[-1], like.dtype)
        if isinstance(value, (bool, int, float)):
            return full(value, like.dtype, like.shape)
        node = build.cast(self.node(value), like.dtype)
        return build.broadcast(self.lift(node, like.shape), like.shape)
