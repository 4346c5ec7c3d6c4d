"""Many models in one graph: what is one's own, what is of every one, an op done for each.

A graph of many is written as that of one. Its leaves hold all of them, along a last axis; `own` is
the part of whichever model the graph is read for, `every` what it makes of each, side by side. The
pass `spread` takes both out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.loop import LANES, Loop, Stmt, Store, Value
from chainrule.ir.node import (
    Array,
    Bound,
    Index,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    Types,
    Writer,
    apply,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, TensorType, bool_, float64, int64, uint32
from chainrule.ops.index import Take
from chainrule.ops.layout import Permute
from chainrule.ops.random import SEED_TYPE, STEP_TYPE, Bernoulli
from chainrule.ops.running import CumulativeSum
from chainrule.records import dataclass

_MODEL = Size.symbol("model'")


@dataclass(frozen=True)
class Own(Op):
    """Of a leaf that holds all models, the part of one. Make one with `own`."""

    role = "leaf"
    name = "own"

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_shape(inputs[0].shape[:-1])

    def notation(self, *inputs: Node) -> Notation:
        return Notation("{0}", "{0}")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        return iter(())


@dataclass(frozen=True)
class Every(Op):
    """A value of each of `count` models, side by side. Make one with `every`."""

    role = "leaf"
    name = "every"
    count: int

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_shape((*inputs[0].shape, self.count))

    def notation(self, *inputs: Node) -> Notation:
        return Notation("{0}", "{0}")

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        return iter(())


def own(all_models: Node) -> Node:
    """One model's part of a leaf."""
    return provenance.inherit(apply(Own(), all_models), all_models)


def every(value: Node, count: int) -> Node:
    """A value of each model."""
    return provenance.inherit(apply(Every(count), value), value)


def models_of(graph: Graph) -> int | None:
    """How many models a graph is of; None for a graph that is of no more than itself."""
    return next((n.op.count for n in graph.roots if isinstance(n.op, Every)), None)


@dataclass(frozen=True)
class Each(Op):
    """`op` for each of `count` models. Operand i has their axis last where `wide[i]`.

    The elements of a model are computed as the op computes them alone, from that model's elements
    of the wide operands and from the whole of those that all share.
    """

    name = "each"
    op: Op
    count: int
    wide: tuple[bool, ...]

    def __post_init__(self) -> None:
        for fact in ("role", "indexed", "buffered", "letter", "moves", "rounds", "domain"):
            object.__setattr__(self, fact, getattr(self.op, fact))

    def narrow_types(self, inputs: Types) -> list[TensorType]:
        """The operands' types as one model sees them."""
        pairs = zip(inputs, self.wide, strict=True)
        return [t.with_shape(t.shape[:-1]) if wide else t for t, wide in pairs]

    def infer(self, *inputs: TensorType) -> TensorType:
        one = self.op.infer(*self.narrow_types(inputs))
        return one.with_shape((*one.shape, self.count))

    def ref(self, *inputs: Array) -> Array:
        def of(model: int) -> Iterator[Array]:
            pairs = zip(inputs, self.wide, strict=True)
            return (a[..., model] if wide else a for a, wide in pairs)

        return np.stack([self.op.ref(*of(model)) for model in range(self.count)], axis=-1)

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return self.op.bounds(*self.narrow_types(inputs))

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        return self.op.demands(*self.narrow_types(inputs))

    def repeats(self) -> tuple[int, ...]:
        return self.op.repeats()

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        one = out.with_shape(out.shape[:-1])
        return self.count * self.op.flops(one, *self.narrow_types(inputs))

    def reaches(self, operand: int) -> bool:
        return False

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return (None,) * len(inputs)

    def resolve(self, sizes: dict[str, Dim]) -> Each:
        return replace(self, op=self.op.resolve(sizes))

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        readers = self.readers(index[-1], inputs)
        return self.op.body(index[:-1], out.with_shape(out.shape[:-1]), *readers)

    def readers(self, model: Dim, inputs: Sequence[Reader]) -> list[Reader]:
        """How one model reads the operands."""

        def of_one(read: Reader) -> Reader:
            return lambda index: read((*index, model))

        pairs = zip(inputs, self.wide, strict=True)
        return [of_one(read) if wide else read for read, wide in pairs]

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        count = len(types)
        stmts = self.op.nest(
            self.narrow_types(types),
            lambda index, value: write((*index, _MODEL), value),
            lambda index: result((*index, _MODEL)),
            *self.readers(_MODEL, inputs[:count]),
            *inputs[count:],
        )
        if len(inputs) > count or not _only_stores(stmts):  # workspace is used in turn
            return (Loop("model'", self.count, stmts),)
        own = any(w and t.dtype.is_integer for w, t in zip(self.wide, types, strict=True))
        mode = "serial" if own else "vector"  # lanes store at one place, not at places of their own
        return tuple(_innermost(s, self.count, mode) for s in stmts)

    def workspace(self, types: Types) -> tuple[tuple[DType, Dim], ...]:
        return self.op.workspace(self.narrow_types(types))

    def notation(self, *inputs: Node) -> Notation:
        holes = ", ".join(f"{{{i}}}" for i in range(len(self.wide)))
        tex = rf"\operatorname{{{{each}}}}_{{{{{self.count}}}}}\left({holes}\right)"
        return Notation(f"each({self.op.name}, {self.count}, {holes})", tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(Permute((1, 0)), 3, (True,)), [TensorType(float64, (2, 4, 3))]
        yield cls(CumulativeSum(0), 2, (True,)), [TensorType(float64, (5, 2))]
        table, at = TensorType(float64, (3, 2, LANES + 1)), TensorType(int64, (4,))
        yield cls(Take(0, 1), LANES + 1, (True, False)), [table, at]
        seeds = TensorType(SEED_TYPE.dtype, (3,))
        draw = cls(Bernoulli((4, 5), bool_, 0.5), 3, (True, False, False))
        yield draw, [seeds, STEP_TYPE, TensorType(uint32, (2,))]


def _only_stores(stmts: Stmts) -> bool:
    """Whether there are loops around stores, and nothing else."""
    return all(_only_stores(s.body) if isinstance(s, Loop) else isinstance(s, Store) for s in stmts)


def _innermost(stmt: Stmt, count: int, mode: str) -> Stmt:
    """A nest with the loop over models put inside: what others do in between does not matter."""
    assert isinstance(stmt, Loop | Store)
    if isinstance(stmt, Store):
        return Loop("model'", count, (stmt,), mode)
    if all(isinstance(s, Store) for s in stmt.body):
        inside: Stmts = (Loop("model'", count, stmt.body, mode),)
    else:
        inside = tuple(_innermost(s, count, mode) for s in stmt.body)
    return replace(stmt, body=inside, mode="serial")
