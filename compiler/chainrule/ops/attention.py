"""Attention: a softmax of which a mask shuts parts out, and the weighted sums that it makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.node import Array, Node, Op, Sample, apply
from chainrule.ir.notation import Notation, call
from chainrule.ir.size import Shape
from chainrule.ir.types import DType, TensorType, bool_, float64, int32
from chainrule.ops import reading
from chainrule.ops.axes import Sum
from chainrule.ops.build import broadcast, keep_axes
from chainrule.ops.build import call as op
from chainrule.ops.composite import Softmax
from chainrule.ops.contract import contract, matmul
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.layout import Permute
from chainrule.ops.reduce import Max
from chainrule.ops.source import Iota, size_of
from chainrule.records import dataclass


@dataclass(frozen=True)
class MaskedSoftmax(Op):
    """softmax(x) along the last axis over the elements that the mask, true there, lets in.

    The others are 0; a row that lets nothing in is 0 altogether, not NaN.
    """

    name = "masked_softmax"
    composite = True
    letter = "p"

    def infer(self, *inputs: TensorType) -> TensorType:
        x, mask = inputs
        check_accepts("masked_softmax", "float", x.dtype)
        if not mask.dtype.is_bool:
            raise DTypeError(f"masked_softmax takes a mask of bools: {x}, {mask}")
        if not x.rank or mask.shape != x.shape:
            raise ShapeError(f"masked_softmax takes a mask of the shape it masks: {x}, {mask}")
        return x

    def ref(self, *inputs: Array) -> Array:
        x, mask = inputs
        low = np.where(mask, x, -np.inf)
        top = low.max(axis=-1, keepdims=True, initial=-np.inf)
        e = np.exp(low - np.where(top == -np.inf, 0, top))
        total = e.sum(axis=-1, keepdims=True)
        return np.asarray(e / np.where(total == 0, 1, total), x.dtype)

    def reaches(self, operand: int) -> bool:
        return operand == 0

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        along = Softmax(inputs[0].type.rank - 1)
        return (*along.vjp(ct, out, inputs[0]), None)

    def expand(self, *inputs: Node) -> Node:
        x, mask = inputs
        if x.type.shape[-1] == 0:
            return x
        last = (x.type.rank - 1,)
        low = op("where", mask, x, -math.inf)
        top = apply(Max(last), low)
        top = op("where", op("eq", top, -math.inf), 0.0, top)  # not -inf - -inf
        below = op("sub", low, keep_axes(top, last))
        lost = op("lt", below, least_power(x.type.dtype))
        e = op("where", lost, 0.0, op("exp", op("where", lost, 0.0, below)))  # denormals are slow
        total = apply(Sum(last), e)
        return op("div", e, keep_axes(op("where", op("eq", total, 0.0), 1.0, total), last))

    def notation(self, *inputs: Node) -> Notation:
        return call("masked_softmax", 2)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def masked_softmax(x: Node, mask: Node) -> Node:
            return apply(cls(), x, broadcast(mask, x.type.shape))

        return {"masked_softmax": masked_softmax}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(), [TensorType(float64, (3, 4)), TensorType(bool_, (3, 4))]


@dataclass(frozen=True)
class Attention(Op):
    """softmax(q @ kᵀ / sqrt(d)) @ v (Vaswani et al., arXiv:1706.03762, equation 1).

    `q` is (..., n, d), `k` (..., m, d), `v` (..., m, e), and a mask, if there is one, (..., n, m):
    true where a query may see a key. With `causal` query i sees keys 0 to i alone. `scale` stands
    for 1 / sqrt(d).
    """

    name = "attention"
    composite = True
    letter = "h"
    causal: bool = False
    scale: float | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        q, k, v, *masks = inputs
        shown = ", ".join(map(str, inputs))
        check_accepts("attention", "float", q.dtype)
        if k.dtype != q.dtype or v.dtype != q.dtype:
            raise DTypeError(f"attention needs one element type: {shown}")
        if min(q.rank, k.rank, v.rank) < 2 or len({t.shape[:-2] for t in (q, k, v)}) > 1:
            raise ShapeError(f"attention takes matrices, or stacks of one shape: {shown}")
        if q.shape[-1] != k.shape[-1]:
            raise ShapeError(f"attention needs queries and keys of one size: {shown}")
        if k.shape[-2] != v.shape[-2]:
            raise ShapeError(f"attention needs a value for each key: {shown}")
        for mask in masks:
            if not mask.dtype.is_bool:
                raise DTypeError(
                    f"attention takes a mask of bools, true where a key is seen: {mask}"
                )
            if mask.shape != (*q.shape[:-1], k.shape[-2]):
                raise ShapeError(f"attention's mask has a row a query, a column a key: {shown}")
        return q.with_shape((*q.shape[:-1], v.shape[-1]))

    def reaches(self, operand: int) -> bool:
        return operand < 3

    def ref(self, *inputs: Array) -> Array:
        q, k, v, *masks = inputs
        size = q.shape[-1]
        scale = (1 / math.sqrt(size) if size else math.inf) if self.scale is None else self.scale
        s = np.asarray(np.matmul(q, k.swapaxes(-1, -2)) * scale, q.dtype)
        allowed = np.tri(*s.shape[-2:]) > 0 if self.causal else np.ones((), bool)
        for mask in masks:
            allowed = allowed & mask
        weights = MaskedSoftmax().ref(s, np.broadcast_to(allowed, s.shape))
        return np.asarray(np.matmul(weights, v))

    def scaled(self, x: Node, q: Node) -> Node:
        """`x` times the scale."""
        if self.scale is not None:
            return op("mul", x, self.scale)
        return op("div", x, op("sqrt", size_of(q.type.shape[-1], q.type.dtype)))

    def weights(self, *inputs: Node) -> Node:
        """How much each query takes of each value."""
        q, k, _, *masks = inputs
        scores = self.scaled(matmul(q, transposed(k)), q)
        if self.causal:
            masks = [causal_mask(scores.type.shape), *masks]
        if not masks:
            return apply(Softmax(scores.type.rank - 1), scores)
        mask = masks[0] if len(masks) == 1 else op("and_", *masks)
        return apply(MaskedSoftmax(), scores, mask)

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        q, k, v, *masks = inputs
        p = self.weights(*inputs)
        dp = matmul(ct, transposed(v))
        provenance.set_cotangent(dp, p)
        (ds,) = Softmax(p.type.rank - 1).vjp(dp, p, p)
        assert ds is not None
        dq = self.scaled(matmul(ds, k), q)
        dk = self.scaled(crossed(ds, q), q)
        return (dq, dk, crossed(p, ct), *(None for _ in masks))

    def expand(self, *inputs: Node) -> Node:
        return matmul(self.weights(*inputs), inputs[2])

    def notation(self, *inputs: Node) -> Notation:
        options = [f"{{{i}}}" for i in range(min(len(inputs), 3) or 3)]
        options += ["mask={3}"] if len(inputs) > 3 else []
        options += ["causal=True"] if self.causal else []
        options += [] if self.scale is None else [f"scale={self.scale!r}"]
        shown = ", ".join(options)
        return Notation(
            f"attention({shown})", rf"\operatorname{{{{attention}}}}\left({shown}\right)"
        )

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def attention(q: Node, k: Node, v: Node, mask: Node | None = None, **options: Any) -> Node:
            shape = (*q.type.shape[:-1], k.type.shape[-2])
            masks = () if mask is None else (broadcast(mask, shape),)
            return apply(cls(**options), q, k, v, *masks)

        return {"attention": attention}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        q, k, v = (TensorType(float64, s) for s in ((2, 3), (4, 3), (4, 2)))
        yield cls(), [q, k, v]
        yield cls(causal=True, scale=0.5), [q, k, v]
        yield cls(), [q, k, v, TensorType(bool_, (2, 4))]
        q, k, v = (TensorType(float64, s) for s in ((2, 5, 3), (2, 3, 3), (2, 3, 2)))
        yield cls(causal=True), [q, k, v, TensorType(bool_, (2, 5, 3))]


def least_power(dtype: DType) -> float:
    """The least x for which exp(x) is a normal number of an element type's arithmetic."""
    return math.log(2) * (-1022 if dtype.bits == 64 else -126)


def causal_mask(shape: Shape) -> Node:
    """True where the last axis' index is no larger than that of the axis before it."""
    rank = len(shape)
    column, row = (apply(Iota(shape, axis, int32)) for axis in (rank - 1, rank - 2))
    return op("le", column, row)


def transposed(x: Node) -> Node:
    """xᵀ of a stack of matrices."""
    rank = x.type.rank
    return apply(Permute((*range(rank - 2), rank - 1, rank - 2)), x)


def crossed(x: Node, y: Node) -> Node:
    """xᵀ @ y of stacks of matrices."""
    lead = "abcdefghijklmnopqrstuvw"[: x.type.rank - 2]
    return contract(f"{lead}xy", f"{lead}xz", f"{lead}yz", x, y)
