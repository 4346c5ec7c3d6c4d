"""A loop with carried state: one body for every slice of the stacks it reads, in order.

A loop has many results and a node has one type, so a loop is a family of nodes with the same body
and operands, each naming the result it is. They are computed together. Its derivative is a loop the
other way round over what the first one has kept. (P. Werbos, Backpropagation through time, 1990.)
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import field, replace

import numpy as np

from chainrule.errors import FeedError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Array, Bound, Node, Op, Pullback, Sample, within
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, known, substitute
from chainrule.ir.size import evaluate as number_of
from chainrule.ir.types import TensorType, float64
from chainrule.ops import build
from chainrule.ops.body import Body, close, local, resolved
from chainrule.ops.contract import contract
from chainrule.ops.through import Pull
from chainrule.records import dataclass


@dataclass(frozen=True)
class Scan(Op):
    """Result `output` of `length` steps of a body, from the last slice to the first if `reverse`.

    Operands are the carried values as they begin, the stacks, and what is the same at every step.
    Results are, in order: the carried values after the last step; a stack of each of the body's ys;
    and a stack of each carried value as it was when each step began.
    """

    role = "scan"
    name = "scan"
    letter = "h"
    body_of_step: Body = field(repr=False)
    length: Dim
    reverse: bool
    output: int

    def infer(self, *inputs: TensorType) -> TensorType:
        body = self.body_of_step
        if len(inputs) != len(body.leaves):
            raise ShapeError(f"a scan of {len(body.leaves)} operands is given {len(inputs)}")
        first = len(body.carries)
        for i, (leaf, given) in enumerate(zip(body.leaves, inputs, strict=True)):
            stacked = first <= i < first + len(body.slices)
            wanted = self.stack_of(leaf.type) if stacked else leaf.type
            if given != wanted:
                raise ShapeError(f"operand {i} of a scan is {wanted}, not {given}")
        for leaf, new in zip(body.carries, body.nexts, strict=True):
            if leaf.type != new.type:
                raise ShapeError(f"a scan carries {leaf.type}, its body gives {new.type}")
        count = len(body.carries)
        if self.output < count:
            return body.carries[self.output].type
        return self.stack_of((*body.ys, *body.carries)[self.output - count].type)

    def stack_of(self, row: TensorType) -> TensorType:
        """The type of a stack of one row a step."""
        return row.with_shape((self.length, *row.shape))

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        return self.body_of_step.positions

    def bodies(self) -> tuple[Graph, ...]:
        return (self.body_of_step.graph,)

    def content(self, *inputs: TensorType) -> str | None:
        step = self.body_of_step.content
        return step and f"scan {step} {self.length!r} {self.reverse} {self.output}"

    def with_bodies(self, graphs: Sequence[Graph]) -> Op:
        return replace(self, body_of_step=self.body_of_step.with_graph(graphs[0]))

    @property
    def family(self) -> Hashable:
        return self.body_of_step, self.length, self.reverse

    def sibling(self, output: int) -> Scan:
        """Another result of the same loop."""
        return replace(self, output=output)

    def resolve(self, sizes: dict[str, Dim]) -> Scan:
        length, body = substitute(self.length, sizes), resolved(self.body_of_step, sizes)
        return replace(self, length=length, body_of_step=body)

    def ref(self, *inputs: Array) -> Array:
        body, (steps,) = self.body_of_step, known((self.length,))
        count, end = len(body.carries), len(body.carries) + len(body.slices)
        widen = any(a.dtype != n.type.dtype.numpy for a, n in zip(inputs, body.leaves, strict=True))
        carried = list(inputs[:count])
        constants = dict(zip(body.constants, inputs[end:], strict=True))
        rows: dict[int, Array] = {}
        wanted = (*body.ys, *body.carries)[self.output - count] if self.output >= count else None
        for t in range(steps - 1, -1, -1) if self.reverse else range(steps):
            given = dict(zip(body.carries, carried, strict=True)) | constants
            given |= {n: a[t] for n, a in zip(body.slices, inputs[count:end], strict=True)}
            _check_positions(body, given, widen)
            roots = [*body.nexts, *([wanted] if wanted is not None else [])]
            values = evaluate(roots, given, widen=widen)
            carried = values[:count]
            if wanted is not None:
                rows[t] = values[count]
        if wanted is None:
            return np.asarray(carried[self.output])
        kind = wanted.type.dtype.numpy if not widen or not wanted.type.dtype.is_float else float
        stack = np.empty((steps, *known(wanted.type.shape)), kind)
        for t, row in rows.items():
            stack[t] = row
        return stack

    def reaches(self, operand: int) -> bool:
        body = self.body_of_step
        count, ys = len(body.carries), len(body.ys)
        own = self.output if self.output < count else self.output - count - ys
        if operand == own and (self.output >= count or not _runs(self.length)):
            return True  # it begins so, and where there is no step, it ends so
        row = own if own >= 0 and self.output >= count else self.output
        return bool(body.reach[row] >> operand & 1)

    def pull(
        self, cts: Mapping[Op, Node], wanted: Sequence[bool], pullback: Pullback, *inputs: Node
    ) -> tuple[Node | None, ...]:
        by_output = {op.output: ct for op, ct in cts.items() if isinstance(op, Scan)}
        return Pull(self, by_output, wanted, inputs).run(pullback)

    def narrow(self, used: Collection[Op]) -> tuple[Mapping[Op, Op], tuple[int, ...]] | None:
        body = self.body_of_step
        count, end = len(body.carries), len(body.carries) + len(body.ys)
        outputs = sorted(op.output for op in used if isinstance(op, Scan))
        ys = [i for i in range(len(body.ys)) if count + i in outputs]
        carries = {i for i in range(count) if i in outputs or end + i in outputs}
        while True:
            roots = [*(body.nexts[i] for i in sorted(carries)), *(body.ys[i] for i in ys)]
            read = set(walk(roots))
            more = {i for i, leaf in enumerate(body.carries) if leaf in read} - carries
            if not more:
                break
            carries |= more
        kept = [
            i for i, leaf in enumerate(body.leaves) if (i in carries if i < count else leaf in read)
        ]
        if len(kept) == len(body.leaves) and len(ys) == len(body.ys):
            return None
        left = sorted(carries)
        small = Body(
            tuple(body.carries[i] for i in left),
            tuple(n for n in body.slices if n in read),
            tuple(n for n in body.constants if n in read),
            tuple(body.nexts[i] for i in left),
            tuple(body.ys[i] for i in ys),
        )
        places = [*left, *(count + i for i in ys), *(end + i for i in left)]
        made: dict[Op, Op] = {
            self.sibling(old): replace(self, body_of_step=small, output=places.index(old))
            for old in outputs
        }
        return made, tuple(kept)

    def notation(self, *inputs: Node) -> Notation:
        body = self.body_of_step
        count, ys = len(body.carries), len(body.ys)
        holes = ", ".join(f"{{{i}}}" for i in range(len(body.leaves)))
        what, place = ("final", self.output)
        if self.output >= count + ys:
            what, place = "before", self.output - count - ys
        elif self.output >= count:
            what, place = "ys", self.output - count
        name = f"scan.{what}{place + 1 if (ys if what == 'ys' else count) > 1 else ''}"
        tex = rf"\operatorname{{{{{name}}}}}\left({holes}\right)"
        return Notation(f"{name}({holes})", tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        row, matrix = TensorType(float64, (2,)), TensorType(float64, (2, 2))
        h, x, w = local("h", row), local("x", row), local("w", matrix)
        new = build.call("tanh", build.call("add", contract("k", "kn", "n", h, w), x))
        body, _ = close((h,), (x,), (new,), (build.call("mul", new, x),))
        for output, reverse in ((0, False), (1, True), (2, False)):
            yield cls(body, 3, reverse, output), [row, TensorType(float64, (3, 2)), matrix]


def _runs(length: Dim) -> bool:
    """Whether a loop is known to have a step."""
    return isinstance(length, int) and length > 0


def _check_positions(body: Body, given: Mapping[Node, Array], widen: bool) -> None:
    """Refuse positions that a step would read at and that are none."""
    pairs = [
        (node, node.inputs[operand], bound)
        for node in walk(body.roots)
        for operand, bound in node.op.bounds(*[i.type for i in node.inputs])
    ]
    values = evaluate([p for _, p, _ in pairs], given, widen=widen) if pairs else []
    for (node, _, bound), array in zip(pairs, values, strict=True):
        low, high = (number_of(d, {}) for d in within(bound))
        if array.size and not (array.min() >= low and array.max() < high):
            bad = array[(array < low) | (array >= high)].reshape(-1)[0]
            raise FeedError(
                f"a step of a scan reads position {bad}, where only {low} to {high - 1} "
                "have a meaning",
                f"it is read by {node.op.name}",
            )
