"""Backpropagation through a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Pullback, apply
from chainrule.ir.provenance import differential
from chainrule.ops.axes import Sum
from chainrule.ops.body import close, is_local, label_of, local, substituted
from chainrule.ops.contract import Contract, contract
from chainrule.ops.elementwise import TABLE
from chainrule.ops.layout import Permute, Reshape
from chainrule.ops.source import full

if TYPE_CHECKING:
    from chainrule.ops.scan import Scan


class Pull:
    """The derivative of a loop: a loop the other way round.

    It carries the cotangents of what the first one carried. What a step adds to the cotangent of a
    constant is summed up as it goes, or, where it is a product such as hᵀ @ dz, its factors are
    stacked and all steps are one product.
    """

    def __init__(
        self, op: Scan, cts: Mapping[int, Node], wanted: Sequence[bool], inputs: Sequence[Node]
    ) -> None:
        self.op, self.inputs, self.wanted = op, inputs, wanted
        self.body = op.body_of_step.opened()
        self.count = count = len(self.body.carries)
        self.end = count + len(self.body.ys)
        self.finals = {i: ct for i, ct in cts.items() if i < count}
        self.ys = {i - count: ct for i, ct in cts.items() if count <= i < self.end}
        self.befores = {i - self.end: ct for i, ct in cts.items() if i >= self.end}
        self.stacks: dict[Node, Node] = {}  # a leaf of a step -> its stack
        self.kept: dict[Node, Node] = {}  # what the reverse loop stacks -> what stands for it
        self.varying: set[Node] = set()
        for i, leaf in enumerate(self.body.carries):
            self.stacks[leaf] = apply(op.sibling(self.end + i), *inputs)
        self.stacks |= dict(zip(self.body.slices, inputs[count:], strict=False))

    def run(self, pullback: Pullback) -> tuple[Node | None, ...]:
        body, count = self.body, self.count
        active = self.active()
        back = sorted(active & self.useful(active))
        wrt = [body.carries[i] for i in back]
        wrt += [n for i, n in enumerate(body.leaves) if i >= count and self.wanted[i]]
        names = {i: differential(label_of(body.carries[i]), 1) for i in back}
        gs = {i: local(name, body.carries[i].type) for i, name in names.items()}
        seeds = [(body.nexts[i], gs[i]) for i in back]
        seeds += [(body.ys[j], self.slice(f"dy{j}", ct)) for j, ct in self.ys.items()]
        found: dict[Node, Node | None] = {}
        if seeds:
            results, cts = zip(*seeds, strict=True)
            found = dict(zip(wrt, pullback(results, cts, wrt), strict=True))
        nexts = [self.next(i, found.get(body.carries[i])) for i in back]
        return self.loop(gs, nexts, found)

    def active(self) -> set[int]:
        """The carried values that depend on what is wanted."""
        body, count = self.body, self.count
        mask = sum(1 << i for i, w in enumerate(self.wanted) if w and self.is_float(i))
        while True:
            grown = mask
            for i, new in enumerate(body.nexts):
                grown |= bool(body.influence[new] & mask) << i
            if grown == mask:
                return {i for i in range(count) if mask >> i & 1}
            mask = grown

    def useful(self, active: set[int]) -> set[int]:
        """The carried values on which a result with a cotangent depends."""
        body = self.body
        found = {*self.finals, *self.befores}
        while True:
            roots = [body.nexts[i] for i in found & active] + [body.ys[j] for j in self.ys]
            mask = 0
            for root in roots:
                mask |= body.influence[root]
            more = {i for i in range(self.count) if mask >> i & 1} - found
            if not more:
                return found
            found |= more

    def is_float(self, leaf: int) -> bool:
        return self.body.leaves[leaf].type.dtype.is_float

    def slice(self, label: str, stack: Node) -> Node:
        """What a step is given of a stack."""
        leaf = local(label, stack.type.with_shape(stack.type.shape[1:]))
        self.stacks[leaf] = stack
        return leaf

    def next(self, i: int, ct: Node | None) -> Node:
        """The cotangent of a carried value as a step begins."""
        if i in self.befores:
            given = self.slice("dh", self.befores[i])
            return given if ct is None else apply(TABLE["add"], ct, given)
        if ct is not None:
            return ct
        kind = self.body.carries[i].type
        return full(0, kind.dtype, kind.shape)

    def loop(
        self, gs: Mapping[int, Node], nexts: Sequence[Node], found: Mapping[Node, Node | None]
    ) -> tuple[Node | None, ...]:
        body, count = self.body, self.count
        slices = {n: ct for n in body.slices if (ct := found.get(n)) is not None}
        constants = {n: ct for n in body.constants if (ct := found.get(n)) is not None}
        self.kept = {ct: self.stand_in(ct) for ct in slices.values()}
        self.varying = self.changing(list(constants.values()))
        sums: dict[Node, Node] = {}
        late = sorted(constants, key=lambda n: constants[n].op.role != "contract")
        for n in late:
            total = self.over_steps(constants[n])
            if total is not None:
                sums[n] = total
        added = [n for n in constants if n not in sums]
        totals = {n: local(differential(label_of(n), 1), n.type) for n in added}
        carries = [*gs.values(), *totals.values()]
        after = [*nexts, *(apply(TABLE["add"], totals[n], constants[n]) for n in added)]
        begin = [self.finals.get(i) or _zeros(g) for i, g in gs.items()]
        begin += [_zeros(n) for n in added]
        results = self.reversed(carries, begin, after, list(self.kept))
        stood = dict(zip(self.kept.values(), results[len(carries) :], strict=True))
        out: list[Node | None] = [None] * len(self.inputs)
        for place, i in enumerate(gs):
            out[i] = results[place] if self.wanted[i] else None
        for i, leaf in enumerate(body.slices):
            out[count + i] = stood[self.kept[slices[leaf]]] if leaf in slices else None
        outer = dict(zip(body.constants, self.inputs[count + len(body.slices) :], strict=True))
        summed = dict(zip(sums, substituted(list(sums.values()), {**stood, **outer}), strict=True))
        for i, leaf in enumerate(body.constants, count + len(body.slices)):
            if leaf in summed:
                out[i] = summed[leaf]
            elif leaf in totals:
                out[i] = results[len(gs) + added.index(leaf)]
        return tuple(out)

    def reversed(
        self,
        carries: Sequence[Node],
        begin: Sequence[Node],
        nexts: Sequence[Node],
        ys: Sequence[Node],
    ) -> list[Node]:
        """Every result of the loop the other way round."""
        body, op = self.body, self.op
        outer = self.inputs[self.count + len(body.slices) :]
        roots = substituted([*nexts, *ys], dict(zip(body.constants, outer, strict=True)))
        read = set(walk(roots))
        slices = [n for n in self.stacks if n in read]
        steps, stacks = roots[: len(nexts)], roots[len(nexts) :]
        closed, constants = close(carries, slices, steps, stacks, outer)
        operands = (*begin, *(self.stacks[n] for n in slices), *constants)
        found = range(len(closed.roots))
        back = replace(op, body_of_step=closed, reverse=not op.reverse)
        return [apply(back.sibling(i), *operands) for i in found]

    # sums over all steps at once

    def over_steps(self, root: Node) -> Node | None:
        """The sum of a step's node over all steps, from stacks; None where it is added up.

        Of a sum, which has a term for each use of a constant in a step, it is that of the terms.
        """
        found: dict[Node, Node | None] = {}
        for node in walk([root], stop=self.is_term):
            if self.is_term(node):
                found[node] = self.term_over_steps(node)
            else:
                parts = [part for i in node.inputs if (part := found[i]) is not None]
                found[node] = apply(node.op, *parts) if len(parts) == len(node.inputs) else None
        return found[root]

    def is_term(self, node: Node) -> bool:
        """Whether a node is no sum, sign or shape of what can be summed instead."""
        sums = node.op.name in ("add", "neg") or isinstance(node.op, Permute | Reshape)
        return not sums or node in self.kept or node in self.stacks

    def term_over_steps(self, node: Node) -> Node | None:
        """The same of what is no sum."""
        op = node.op
        if isinstance(op, Contract):
            x, y = node.inputs
            if x in self.varying and y in self.varying:
                t = next(c for c in "tuvwxyzabcdefghijklmnopqrs" if c not in op.a + op.b)
                return contract(t + op.a, t + op.b, op.out, self.stack(x), self.stack(y))
            return None
        if isinstance(op, Sum) and (node.inputs[0] in self.kept or node.inputs[0] in self.stacks):
            return apply(Sum((0, *(a + 1 for a in op.axes))), self.stack(node.inputs[0]))
        if node in self.kept or node in self.stacks:
            return apply(Sum((0,)), self.stack(node))
        return None

    def changing(self, roots: Sequence[Node]) -> set[Node]:
        """The nodes of a step that are not the same at every step."""
        constants = set(self.body.constants)
        found: set[Node] = set()
        for node in walk(roots):
            if (is_local(node) and node not in constants) or any(i in found for i in node.inputs):
                found.add(node)
        return found

    def stack(self, node: Node) -> Node:
        """The stack of a node, or what stands for it until the loop is made."""
        if node in self.stacks:
            return self.stacks[node]
        if node not in self.kept:
            self.kept[node] = self.stand_in(node)
        return self.kept[node]

    def stand_in(self, node: Node) -> Node:
        return local("stack", self.op.stack_of(node.type))


def _zeros(like: Node) -> Node:
    return full(0, like.type.dtype, like.type.shape)
