"""Attention whose scores are never in memory together, and its derivative.

Both are families: results that one pass over the queries computes together. Attention keeps the
logarithm of each row's sum of exponentials, from which its derivative has the weights again, a few
rows at a time (Dao, Fu, Ermon, Rudra, Ré, "FlashAttention", arXiv:2205.14135, algorithms 1 and 4).
They stand for `Attention` and the products of its derivative where a program is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from typing import ClassVar

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir.node import Array, Node, Op, Pullback, Sample, apply
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, product
from chainrule.ir.types import TensorType, bool_, float64
from chainrule.ops import reading
from chainrule.ops.attention import Attention, causal_mask, crossed, transposed
from chainrule.ops.axes import Sum
from chainrule.ops.build import call as op
from chainrule.ops.build import keep_axes
from chainrule.ops.composite import LogSumExp
from chainrule.ops.contract import matmul
from chainrule.ops.layout import Permute
from chainrule.ops.reduce import Max
from chainrule.records import dataclass


@dataclass(frozen=True)
class _Part(Op):
    """One result, `part`, of attention with scores q @ kᵀ * scale.

    Operands begin with q (..., n, d), k (..., m, d) and v (..., m, e) and may end with a mask
    (..., n, m), true where a query may see a key. A result that is `turned` has its rows before
    the last of the axes in front of them: what follows reads heads beside one another. With `tf32`
    a GPU with tensor cores may round factors of float32 to TF32.
    """

    role = "attend"
    part: str
    causal: bool
    scale: float
    turned: bool = False
    tf32: bool = field(default=False, kw_only=True)

    #: how many operands there are beside a mask
    count = 3

    @property
    def family(self) -> Hashable:
        return self.name, self.causal, self.scale, self.tf32

    def infer(self, *inputs: TensorType) -> TensorType:
        given, masks = inputs[: self.count], inputs[self.count :]
        whole = Attention(self.causal).infer(*given[:3], *masks)
        self.check(whole, *given)
        shape = self.shape_of(whole, *given)
        if self.turned:
            if self.part == "lse" or len(shape) < 3:
                raise ShapeError(f"{self.part} of {self.name} has no rows to turn: {shape}")
            shape = (*shape[:-3], shape[-2], shape[-3], shape[-1])
        return whole.with_shape(shape)

    def check(self, whole: TensorType, *given: TensorType) -> None:
        """Refuse operands that don't fit the result of attention."""

    def shape_of(self, whole: TensorType, *given: TensorType) -> Shape:
        """The shape of this part, not turned."""
        raise NotImplementedError

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        keys = inputs[1].shape[-2]  # of none there is no largest score
        return () if isinstance(keys, int) else (keys,)

    def place(self, lead: Shape, row: Dim, column: Dim) -> Shape:
        """Where the element of a row and column stands in the result, behind `lead`."""
        return (*lead[:-1], row, lead[-1], column) if self.turned else (*lead, row, column)

    def visible(self, scores: Shape, masks: Sequence[Node]) -> Node | None:
        """Where a query may see a key; None for everywhere."""
        masks = [causal_mask(scores), *masks] if self.causal else list(masks)
        return None if not masks else masks[0] if len(masks) == 1 else op("and_", *masks)

    def scores(self, *inputs: Node) -> Node:
        """q @ kᵀ * scale, and -inf where a query may not see a key."""
        q, k, *_ = inputs
        scores = op("mul", matmul(q, transposed(k)), self.scale)
        seen = self.visible(scores.type.shape, inputs[self.count :])
        return scores if seen is None else op("where", seen, scores, -math.inf)

    def expand_plainly(self, *inputs: Node) -> Node:
        """This part, not turned, in ops that keep all scores."""
        raise NotImplementedError

    def definition(self, *inputs: Node) -> Node:
        out = self.expand_plainly(*inputs)
        rank = out.type.rank
        swap = (*range(rank - 3), rank - 2, rank - 3, rank - 1)
        return apply(Permute(swap), out) if self.turned else out

    def pull(
        self, cts: Mapping[Op, Node], wanted: Sequence[bool], pullback: Pullback, *inputs: Node
    ) -> tuple[Node | None, ...]:
        """By its definition in ops that keep all scores."""
        results = [part.definition(*inputs) for part in cts]
        floats = [n for n, w in zip(inputs, wanted, strict=True) if w]
        found = dict(zip(floats, pullback(results, list(cts.values()), floats), strict=True))
        return tuple(found.get(n) if w else None for n, w in zip(inputs, wanted, strict=True))

    def notation(self, *inputs: Node) -> Notation:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "part"}
        if not self.tf32:
            del given["tf32"]
        shown = [f"{{{i}}}" for i in range(max(len(inputs), self.count))]
        shown += [f"{name}={value!r}" for name, value in given.items()]
        name, inside = f"attend_{self.part}", ", ".join(shown)
        tex = name.replace("_", r"\_")
        return Notation(f"{name}({inside})", rf"\operatorname{{{{{tex}}}}}\left({inside}\right)")

    parts: ClassVar[tuple[str, ...]]

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def word(part: str) -> reading.Word:
            return lambda *operands, **options: apply(cls(part, **options), *operands)

        return {f"attend_{part}": word(part) for part in cls.parts}

    def visible_scores(self, *inputs: Array) -> Array:
        """The scores in NumPy, -inf where a query may not see a key."""
        q, k, *_ = inputs
        s = np.asarray(np.matmul(q, k.swapaxes(-1, -2)) * self.scale, q.dtype)
        allowed = np.tri(*s.shape[-2:]) > 0 if self.causal else np.ones((), bool)
        for mask in inputs[self.count :]:
            allowed = allowed & mask
        return np.where(allowed, s, np.asarray(-np.inf, s.dtype))

    def turn(self, x: Array) -> Array:
        """A result in NumPy, turned if it is to be."""
        return np.ascontiguousarray(x.swapaxes(-3, -2)) if self.turned else x


@dataclass(frozen=True)
class Attend(_Part):
    """Attention, "out", and for each query the logarithm of the sum of the exponentials of its
    scores, "lse": 0 where it sees no key.
    """

    name = "attend"
    parts = ("out", "lse")
    letter = "h"

    def shape_of(self, whole: TensorType, *given: TensorType) -> Shape:
        return whole.shape if self.part == "out" else whole.shape[:-1]

    def reaches(self, operand: int) -> bool:
        return operand < (2 if self.part == "lse" else 3)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        if self.part == "lse":
            return 0
        q, k, v = inputs[:3]
        return 2 * product(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])

    def expand_plainly(self, *inputs: Node) -> Node:
        if self.part == "out":
            return Attention(self.causal, self.scale).expand(*inputs)
        scores = self.scores(*inputs)
        last = (scores.type.rank - 1,)
        blind = op("eq", apply(Max(last), scores), -math.inf)
        seen = op("where", keep_axes(blind, last), 0.0, scores)  # no -inf - -inf
        return op("where", blind, 0.0, apply(LogSumExp(*last), seen))

    def ref(self, *inputs: Array) -> Array:
        if self.part == "out":
            return self.turn(Attention(self.causal, self.scale).ref(*inputs))
        s = self.visible_scores(*inputs)
        top = s.max(axis=-1, keepdims=True, initial=-np.inf)
        top = np.where(top == -np.inf, 0, top)
        total = np.exp(s - top).sum(axis=-1)
        found = np.log(np.where(total == 0, 1, total)) + np.where(total == 0, 0, top[..., 0])
        return np.asarray(found, s.dtype)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        q, k, v = (TensorType(float64, s) for s in ((2, 3), (4, 3), (4, 2)))
        yield cls("out", False, 0.6), [q, k, v]
        yield cls("lse", True, 0.5), [q, k, v]
        q, k, v = (TensorType(float64, s) for s in ((2, 5, 3), (2, 3, 3), (2, 3, 2)))
        yield cls("out", True, 0.6, True), [q, k, v, TensorType(bool_, (2, 5, 3))]


@dataclass(frozen=True)
class AttendBack(_Part):
    """What the cotangent of attention gives for q, k or v: "dq", "dk", "dv".

    Operands are q, k, v, that cotangent, attention's "out" and "lse", and the mask. "dq" and "dk"
    are times `factor`: the scale, or 1 where what follows scales them.
    """

    name = "attend_back"
    parts = ("dq", "dk", "dv")
    letter = "t"
    factor: float = 1.0
    count = 6

    @property
    def family(self) -> Hashable:
        return self.name, self.causal, self.scale, self.factor, self.tf32

    def check(self, whole: TensorType, *given: TensorType) -> None:
        ct, out, lse = given[3:]
        if ct != whole or out != whole or lse != whole.with_shape(whole.shape[:-1]):
            shown = ", ".join(map(str, given))
            raise ShapeError(f"attend_back needs attention's result and its cotangent: {shown}")

    def shape_of(self, whole: TensorType, *given: TensorType) -> Shape:
        return given["qkv".index(self.part[1])].shape

    def reaches(self, operand: int) -> bool:
        return operand in ((0, 1, 3, 5) if self.part == "dv" else range(self.count))

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        """Of what all need, the weights count with "dv", their cotangent with "dq"."""
        q, k, v = inputs[:3]
        width = q.shape[-1] + v.shape[-1] if self.part == "dv" else q.shape[-1]
        width = width + v.shape[-1] if self.part == "dq" else width
        return 2 * product(q.shape[:-1]) * k.shape[-2] * width

    def expand_plainly(self, *inputs: Node) -> Node:
        q, k, v, ct, out, lse = inputs[:6]
        scores = self.scores(*inputs)
        last = (scores.type.rank - 1,)
        p = op("exp", op("sub", scores, keep_axes(lse, last)))
        if self.part == "dv":
            return crossed(p, ct)
        shift = apply(Sum(last), op("mul", ct, out))
        ds = op("mul", p, op("sub", matmul(ct, transposed(v)), keep_axes(shift, last)))
        return op("mul", matmul(ds, k) if self.part == "dq" else crossed(ds, q), self.factor)

    def ref(self, *inputs: Array) -> Array:
        q, k, v, ct, out, lse = inputs[:6]
        p = np.exp(self.visible_scores(*inputs) - lse[..., None])
        if self.part == "dv":
            return self.turn(np.asarray(np.matmul(p.swapaxes(-1, -2), ct)))
        shift = (ct * out).sum(axis=-1, keepdims=True)
        ds = p * (np.matmul(ct, v.swapaxes(-1, -2)) - shift)
        found = np.matmul(ds, k) if self.part == "dq" else np.matmul(ds.swapaxes(-1, -2), q)
        return self.turn(np.asarray(found * np.asarray(self.factor, q.dtype)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        q, k, v, out, lse = (TensorType(float64, s) for s in ((2, 3), (4, 3), (4, 2), (2, 2), (2,)))
        for part in cls.parts:
            yield cls(part, False, 0.6), [q, k, v, out, out, lse]
        shapes = ((2, 5, 3), (2, 3, 3), (2, 3, 2), (2, 5, 2), (2, 5))
        q, k, v, out, lse = (TensorType(float64, s) for s in shapes)
        mask = TensorType(bool_, (2, 5, 3))
        for part in cls.parts:
            yield cls(part, True, 0.6, True, 0.6), [q, k, v, out, out, lse, mask]
