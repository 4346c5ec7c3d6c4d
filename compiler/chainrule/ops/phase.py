"""What differs between training and inference: two values, of which compilation keeps one.

A graph as written holds both, so that one expression serves a step's loss and its predictions.
Where nobody has chosen, as in derivations and finite differences, it is training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Array, Node, Op, Sample, apply, rebuild
from chainrule.ir.notation import MULTIPLY, Notation
from chainrule.ir.passes import in_bodies
from chainrule.ir.types import TensorType, bool_, float32, float64
from chainrule.ops import build
from chainrule.ops.elementwise import check_accepts
from chainrule.ops.random import Bernoulli, draw
from chainrule.ops.reading import Word
from chainrule.ops.source import Full, format_number, full
from chainrule.records import dataclass


@dataclass(frozen=True)
class Switched(Op):
    """An op that is one thing in training and another in inference: `in_phase` says which."""

    composite = True

    def in_phase(self, training: bool, *inputs: Node) -> Node:
        """What it is in a phase, in ops that have none."""
        raise NotImplementedError

    def expand(self, *inputs: Node) -> Node:
        return self.in_phase(True, *inputs)


@dataclass(frozen=True)
class Phase(Switched):
    """The first operand in training, the second in inference. Make one with `phase`."""

    name = "phase"

    def infer(self, *inputs: TensorType) -> TensorType:
        one, other = inputs
        if one.shape != other.shape:
            raise ShapeError(f"phase needs values of one shape: {one}, {other}")
        if one.dtype != other.dtype:
            raise DTypeError(f"phase needs values of one type: {one}, {other}")
        return one

    def in_phase(self, training: bool, *inputs: Node) -> Node:
        return inputs[0 if training else 1]

    def ref(self, *inputs: Array) -> Array:
        return inputs[0]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        none = full(0, ct.type.dtype, ct.type.shape)
        return phase(ct, none), phase(none, ct)

    def notation(self, *inputs: Node) -> Notation:
        cases = r"{0} & \text{{training}} \\ {1} & \text{{inference}}"
        return Notation("phase({0}, {1})", rf"\begin{{{{cases}}}}{cases}\end{{{{cases}}}}")

    @classmethod
    def words(cls) -> dict[str, Word]:
        return {"phase": phase}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(), [TensorType(float64, (2, 3))] * 2


def phase(training: Node, inference: Node) -> Node:
    """A value in training and one in inference; where they are the same, that one."""
    return training if training is inference else apply(Phase(), training, inference)


@dataclass(frozen=True)
class Tracked(Switched):
    """Of a minibatch's value, what is kept of such, and what that is to be next: the first in
    training, the second in inference. A training step makes the third the next value of the second.

    The second is a state. Nothing has a derivative by the third. Make one with `tracked`.
    """

    name = "tracked"

    def infer(self, *inputs: TensorType) -> TensorType:
        batch, kept, after = inputs
        shown = ", ".join(map(str, inputs))
        if not batch.shape == kept.shape == after.shape:
            raise ShapeError(f"tracked needs values of one shape: {shown}")
        if not batch.dtype == kept.dtype == after.dtype:
            raise DTypeError(f"tracked needs values of one type: {shown}")
        return batch

    def reaches(self, operand: int) -> bool:
        return operand < 2

    def in_phase(self, training: bool, *inputs: Node) -> Node:
        return inputs[0 if training else 1]

    def ref(self, *inputs: Array) -> Array:
        return inputs[0]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        none = full(0, ct.type.dtype, ct.type.shape)
        return phase(ct, none), phase(none, ct), None

    def notation(self, *inputs: Node) -> Notation:
        shown = "{0}, {1}, {2}"
        tex = rf"\operatorname{{{{tracked}}}}\left({shown}\right)"
        return Notation(f"tracked({shown})", tex)

    @classmethod
    def words(cls) -> dict[str, Word]:
        return {"tracked": tracked}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(), [TensorType(float64, (2, 3))] * 3


def tracked(batch: Node, kept: Node, after: Node) -> Node:
    """A minibatch's value in training, the kept one, of which `after` is the next, in inference."""
    return apply(Tracked(), batch, kept, after)


@dataclass(frozen=True)
class Dropout(Switched):
    """In training x / (1 - rate) where the second operand, a mask, holds, else 0; in inference x.

    Linear in x: the cotangent of x is the same of the cotangent, `back` (it prints otherwise). What
    a mask drops is 0 whatever it was, infinite or NaN too. (Srivastava et al., JMLR 15, 2014, with
    the scale in training.)
    """

    name = "dropout"
    letter = "h"
    rate: float
    back: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        x, mask = inputs
        check_accepts("dropout", "float", x.dtype)
        if mask.shape != x.shape:
            raise ShapeError(f"dropout needs a mask of the same shape: {x}, {mask}")
        if not mask.dtype.is_bool:
            raise DTypeError(f"dropout needs a mask of bools: {mask}")
        return x

    def in_phase(self, training: bool, *inputs: Node) -> Node:
        x, mask = inputs
        if not training:
            return x
        if self.rate == 1:
            return full(0, x.type.dtype, x.type.shape)
        return build.call("where", mask, build.call("mul", x, 1 / (1 - self.rate)), 0.0)

    def ref(self, *inputs: Array) -> Array:
        x, mask = inputs
        scale = x.dtype.type(1 / (1 - self.rate) if self.rate < 1 else 0)
        dropped: Array = np.where(mask, x * scale, x.dtype.type(0))
        return dropped

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return apply(Dropout(self.rate, True), ct, inputs[1]), None

    def notation(self, *inputs: Node) -> Notation:
        if self.back:
            keep = format_number(1 - self.rate, float32)
            if inputs and isinstance(inputs[0].op, Full) and inputs[0].op.value == 1:
                tex = rf"\frac{{{{{{0}}}}}}{{{{{keep}}}}}"
                return Notation(f"{{0}} / {keep}", tex, MULTIPLY, (MULTIPLY,), shown=inputs[1:])
            tex = rf"\frac{{{{{{0}} \odot {{1}}}}}}{{{{{keep}}}}}"
            return Notation(f"{{0}} ⊙ {{1}} / {keep}", tex, MULTIPLY, (MULTIPLY, MULTIPLY))
        drawn = len(inputs) == 2 and inputs[1].op.draws  # else it is given, and is to be seen
        if not drawn:
            return self.with_mask()
        shown = f"{{0}}, {format_number(self.rate, float64)}"
        tex = rf"\operatorname{{{{dropout}}}}\left({shown}\right)"
        return Notation(f"dropout({shown})", tex, shown=inputs[:1])

    def with_mask(self) -> Notation:
        """How it is written where something else reads its mask too."""
        shown = f"{{0}}, {format_number(self.rate, float64)}, {{1}}"
        return Notation(f"dropout({shown})", rf"\operatorname{{{{dropout}}}}\left({shown}\right)")

    @classmethod
    def words(cls) -> dict[str, Word]:
        return {"dropout": lambda x, rate, mask: apply(cls(float(rate)), x, mask)}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        operands = [TensorType(float64, (2, 3)), TensorType(bool_, (2, 3))]
        yield cls(0.5), operands
        yield cls(0.2, True), operands


def dropout(x: Node, rate: float) -> Node:
    """`x` with a new mask; rate 0 drops nothing."""
    if rate == 0:
        return x
    return apply(Dropout(rate), x, draw(Bernoulli(x.type.shape, bool_, 1 - rate)))


def resolve_phase(graph: Graph, training: bool) -> Graph:
    """Switched ops disappear: what they are in training appears, or what they are in inference."""
    graph = in_bodies(lambda body: resolve_phase(body, training), graph)
    if not any(isinstance(node.op, Switched) for node in graph.nodes):
        return graph
    memo: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = [memo[i] for i in node.inputs]
        if isinstance(node.op, Switched):
            with provenance.derived_from(node):
                memo[node] = provenance.inherit(node.op.in_phase(training, *inputs), node)
        else:
            memo[node] = provenance.inherit(rebuild(node, inputs), node)
    return graph.with_roots([memo[r] for r in graph.roots])
