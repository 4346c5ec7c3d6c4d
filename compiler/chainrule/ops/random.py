"""Random numbers as nodes: each element is a function of seed, step, draw and its own place.

A draw's operands are the seed, the step and the numbers of the draw: its own, and the next one's.
Until a graph is compiled the first two are placeholders and the third tells draws apart, so that no
two merge; `bind_draws` puts in what they are and numbers the draws in the graph's own order. See
docs/random.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.loop import Apply, IndexValue, Literal, Loop, Value
from chainrule.ir.node import (
    Array,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    Types,
    Writer,
    apply,
    next_serial,
    rebuild,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, Size, known, product
from chainrule.ir.types import DType, TensorType, bool_, float32, float64, int32, uint32, uint64
from chainrule.ops import philox
from chainrule.ops.source import constant, full
from chainrule.records import dataclass

SEED_TYPE, STEP_TYPE = TensorType(uint64, ()), TensorType(int32, ())
_NUMBER_TYPE = TensorType(uint32, (2,))
#: the first so many words of an element, each a uint32
Words = Callable[[int], tuple[Value, ...]]
_OWN = (SEED_TYPE, STEP_TYPE, _NUMBER_TYPE)


@dataclass(frozen=True)
class _Placeholder(Op):
    """What a compiled graph has a number for; where none is put in, it is 0."""

    role = "leaf"
    kind = SEED_TYPE

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.kind

    def ref(self, *inputs: Array) -> Array:
        return np.zeros((), self.kind.dtype.numpy)

    def notation(self, *inputs: Node) -> Notation:
        return Notation(str(self.name), rf"\mathrm{{{{{self.name}}}}}")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(), []


@dataclass(frozen=True)
class Seed(_Placeholder):
    """The seed of whatever is compiled."""

    name = "seed"
    kind = SEED_TYPE


@dataclass(frozen=True)
class Step(_Placeholder):
    """How many steps of training have been made."""

    name = "step"
    kind = STEP_TYPE


_SEED, _STEP = apply(Seed()), apply(Step())


@dataclass(frozen=True)
class _Draw(Op):
    """A tensor of random numbers, of which element i depends on i and on three numbers alone."""

    role = "nest"
    draws = True
    domain = (0.0, 99.0)
    shape: Shape
    dtype: DType

    def infer(self, *inputs: TensorType) -> TensorType:
        if [t.shape for t in inputs] != [t.shape for t in _OWN]:
            raise ShapeError(f"{self.name} takes seed and step, each a scalar, and two numbers")
        if inputs != _OWN:
            raise DTypeError(f"{self.name} takes a uint64 seed, an int32 step, uint32 numbers")
        return TensorType(self.dtype, self.shape)

    def reaches(self, operand: int) -> bool:
        return False

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (None,) * len(inputs)

    def number(self, drawn: Words) -> Value:
        """An element from as many words as it asks for."""
        raise NotImplementedError

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        seed, step, number = inputs[0](()), inputs[1](()), inputs[2]((0,))
        size = product(self.shape)
        lead = (0,) * (len(self.shape) - 1)
        place: Dim = Size.symbol("element'") if self.shape else 0
        where = IndexValue(place, uint64)
        counter = (where, _high(where), *(Apply("cast", (v,), uint64) for v in (step, number)))
        key = (seed, _high(seed))

        def words(count: int) -> tuple[Value, ...]:
            wide = (Apply(f"philox_{i}", (*counter, *key), uint64) for i in range(count))
            return tuple(Apply("cast", (w,), uint32) for w in wide)

        value = self.number(words)
        if not self.shape:
            return (write((), value),)
        return (Loop("element'", size, (write((*lead, place), value),), "vector"),)

    def numbers(self, *inputs: Array) -> tuple[int, int, int, tuple[int, ...]]:
        """Seed, step, number and shape, as numbers."""
        seed, step, (number, _) = inputs
        return int(seed), int(step), int(number), known(self.shape)


def _high(value: Value) -> Value:
    """The high word of a uint64."""
    return Apply("lshr", (value, Literal(32, uint64)), uint64)


@dataclass(frozen=True)
class Uniform(_Draw):
    """Floats in [0, 1), multiples of 2**-24 or, in float64, of 2**-53."""

    name = "uniform"
    letter = "u"

    def ref(self, *inputs: Array) -> Array:
        return philox.uniform(*self.numbers(*inputs), self.dtype)

    def number(self, drawn: Words) -> Value:
        return _real("uniform_of_words", self.dtype, drawn)

    def notation(self, *inputs: Node) -> Notation:
        tex = r"\mathcal{{U}}\left({0}, {1}\right)"
        return Notation("uniform({0}, {1})", tex, shown=_both(self.dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((3, 5), float32), list(_OWN)
        yield cls((7,), float64), list(_OWN)


@dataclass(frozen=True)
class Normal(_Draw):
    """Floats of the standard normal distribution."""

    name = "normal"
    letter = "ε"

    def ref(self, *inputs: Array) -> Array:
        return philox.normal(*self.numbers(*inputs), self.dtype)

    def number(self, drawn: Words) -> Value:
        return _real("normal_of_words", self.dtype, drawn)

    def notation(self, *inputs: Node) -> Notation:
        tex = r"\mathcal{{N}}\left({0}, {1}\right)"
        return Notation("normal({0}, {1})", tex, shown=_both(self.dtype))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((3, 5), float32), list(_OWN)
        yield cls((7,), float64), list(_OWN)


def _both(of: DType) -> tuple[Node, Node]:
    """0 and 1: the ends of the uniform distribution, mean and deviation of the normal one."""
    return full(0, of, ()), full(1, of, ())


@dataclass(frozen=True)
class Integers(_Draw):
    """Whole numbers in [0, n), n below 2**32: the first word times n, over 2**32.

    Each has the same probability up to 2**-32 (Lemire, ACM TOMACS 29, 2019, without its rejection).
    """

    name = "randint"
    letter = "k"
    n: int

    def infer(self, *inputs: TensorType) -> TensorType:
        if not self.dtype.is_integer or not 0 < self.n < 2**32:
            raise DTypeError(f"randint makes at most 2**32 - 1 integers, not {self.n} {self.dtype}")
        return super().infer(*inputs)

    def ref(self, *inputs: Array) -> Array:
        seed, step, number, shape = self.numbers(*inputs)
        words = philox.words(seed, step, number, math.prod(shape))[:, 0].astype(np.uint64)
        drawn = words * np.uint64(self.n) >> np.uint64(32)
        return drawn.astype(self.dtype.numpy).reshape(shape)

    def number(self, drawn: Words) -> Value:
        (word,) = drawn(1)
        number = Apply("mulhi", (word, Literal(self.n, uint32)), uint32)
        return Apply("cast", (number,), self.dtype)

    def notation(self, *inputs: Node) -> Notation:
        ends = full(0, uint32, ()), full(self.n, uint32, ())
        tex = r"\operatorname{{randint}}\left({0}, {1}\right)"
        return Notation("randint({0}, {1})", tex, shown=ends)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((4, 5), int32, 6), list(_OWN)


@dataclass(frozen=True)
class Bernoulli(_Draw):
    """True where a uniform float32 is less than `p`: with that probability."""

    name = "bernoulli"
    letter = "mask"
    p: float

    def ref(self, *inputs: Array) -> Array:
        return philox.uniform(*self.numbers(*inputs)) < np.float32(self.p)

    def number(self, drawn: Words) -> Value:
        number = _real("uniform_of_words", float32, drawn)
        return Apply("lt", (number, Literal(self.p, float32)), bool_)

    def notation(self, *inputs: Node) -> Notation:
        tex = r"\operatorname{{bernoulli}}\left({0}\right)"
        return Notation("bernoulli({0})", tex, shown=(full(self.p, float32, ()),))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((3, 5), bool_, 0.5), list(_OWN)


def _real(function: str, of: DType, drawn: Words) -> Value:
    """A float made from words."""
    unit = Literal(philox.UNIT[of.name], of)
    return Apply(function, (*drawn(philox.WORDS[function][of.name]), unit), of)


def draw(op: Op) -> Node:
    """A new draw, which is no other's equal."""
    return apply(op, _SEED, _STEP, _numbered(next_serial()))


def number_of(node: Node) -> int:
    """The number of a draw: they rise as draws are made."""
    return int(node.inputs[2].op.ref()[0])


def bind_draws(graph: Graph, seed: Node, step: Node) -> Graph:
    """Placeholders disappear: every draw depends on `seed` and `step`, scalars of the types above.

    Draws are numbered from 0 in the graph's order, operands first; so the numbers do not depend on
    what else a process has built. They lie in memory: draws that differ in nothing else share code.
    """
    if not any(node.op.draws for node in graph.nodes):
        return graph
    memo: dict[Node, Node] = {}
    count = 0
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        if node.op.draws:
            inputs = [seed, step, _numbered(count)]
            count += 1
        memo[node] = provenance.inherit(rebuild(node, inputs), node)
    return graph.with_roots([memo[r] for r in graph.roots])


def _numbered(number: int) -> Node:
    """The numbers of a draw. Of one number alone a literal would be made, and code for each."""
    return constant(np.array([number, number + 1], np.uint32))


def seed_node(seed: int) -> Node:
    """A seed as the number that draws are bound to. Raises FeedError where it is none."""
    return full(philox.check_seed(seed), uint64, ())


def step_node(step: int) -> Node:
    """A step as the number that draws are bound to."""
    return full(step, int32, ())
