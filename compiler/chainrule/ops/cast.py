"""Conversion to another element type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from functools import partial

import numpy as np

from chainrule.ir.loop import Apply, Value
from chainrule.ir.node import Array, Index, Node, Op, Reader, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.types import (
    DTYPES,
    DType,
    TensorType,
    bfloat16,
    bool_,
    float32,
    float64,
    int64,
)
from chainrule.records import dataclass


def _cast(to: DType, x: Node) -> Node:
    return x if x.type.dtype == to else apply(Cast(to), x)


@dataclass(frozen=True)
class Cast(Op):
    """Each element converted to another element type, as NumPy's astype."""

    name = "cast"
    rounds = True
    to: DType
    role: str = field(default="pointwise", repr=False)

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_dtype(self.to)

    def ref(self, *inputs: Array) -> Array:
        with np.errstate(all="ignore"):
            return inputs[0].astype(self.to.numpy)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        source = inputs[0].type.dtype
        return (apply(Cast(source), ct) if source.is_float and self.to.is_float else None,)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return Apply("cast", (inputs[0](index),), self.to)

    def notation(self, *inputs: Node) -> Notation:
        return Notation(f"{self.to}({{0}})", rf"\mathrm{{{{{self.to}}}}}\left({{0}}\right)")

    @classmethod
    def words(cls) -> dict[str, Callable[..., Node]]:
        return {str(of): partial(_cast, of) for of in DTYPES.values()}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(float32), [TensorType(float64, (2, 3))]
        yield cls(float64), [TensorType(bool_, (3,))]
        yield cls(int64), [TensorType(float64, (3,))]


def cast(x: Node, to: DType) -> Node:
    """`x` as another element type; itself where it has that."""
    return x if x.type.dtype == to else apply(Cast(to), x)


def widens(node: Node) -> bool:
    """Whether a node is a bfloat16 as float32."""
    narrow = isinstance(node.op, Cast) and node.inputs[0].dtype == bfloat16
    return narrow and node.dtype == float32
