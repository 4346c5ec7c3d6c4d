"""Padding that a product lays down itself: of an image at a time, before its windows are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chainrule.ir.loop import Barrier, Load, Loop, Store, Value
from chainrule.ir.node import Index, Node, Stmts
from chainrule.ir.size import Dim, product
from chainrule.loops.builder import Builder
from chainrule.loops.layout import ContractLayout, letter_of
from chainrule.loops.parts import shared
from chainrule.ops.layout import ravel
from chainrule.ops.padding import Padded
from chainrule.ops.windows import Window
from chainrule.records import dataclass


@dataclass(frozen=True)
class Laid:
    """Loops that lay images down: once for `all`, `first` in the groups that are `images` or, where
    sums are over images, at `each` step of the outer ones, where every part has an image of its
    own: to lay it down takes less than to wait for others twice a step.
    """

    all: Stmts = ()
    first: Stmts = ()
    each: Stmts = ()
    images: frozenset[str] = frozenset()

    @staticmethod
    def of(b: Builder, layout: ContractLayout) -> Laid:
        """What has to be laid down, which is read from where it lies from now on."""
        found = Laid()
        operands = layout.order(b.kernel.anchor.inputs)
        for node, letters in zip(operands, (layout.a, layout.b), strict=True):
            found = found.with_(b, layout, node, letters)
        return found

    def with_(self, b: Builder, layout: ContractLayout, node: Node, letters: str) -> Laid:
        """With an operand's image too, if it is windows of one that is padded."""
        windows, view = node.op, node.inputs[0] if node.inputs else node
        padding = view.op
        if not isinstance(windows, Window) or not isinstance(padding, Padded):
            return self
        images = letters[: windows.axis - 1]
        many = {c for c in images if layout.sizes[c] != 1}
        groups = many & {letter_of(var) for var, _ in layout.groups}
        if not many <= groups | set(layout.outer):
            return self
        (x,), shape, stepped = view.inputs, view.type.shape[len(images) :], many & set(layout.outer)
        memory = b.workspace(view, product(shape), bool(groups or stepped))

        def write(index: Index, value: Value) -> Stmts:
            return (Store(memory, ravel(index[len(images) :], shape), value),)

        at = layout.index(letters, {})[: len(images)]
        nests = padding.lay(x.type, write, b.reader(x), at)
        b.laid[view] = lambda index: Load(memory, ravel(index[len(images) :], shape))
        if not many:
            nests = nests if groups else (*shared(nests), Barrier())
            return replace(self, all=self.all + nests)
        if stepped:
            return replace(self, each=self.each + nests)
        return replace(self, first=self.first + nests, images=self.images | groups)

    def in_groups(self, groups: Sequence[tuple[str, Dim]], body: Stmts) -> Stmts:
        """Loops over groups, those over images outside."""
        outer = [g for g in groups if letter_of(g[0]) in self.images]
        for var, extent in reversed([g for g in groups if g not in outer]):
            body = (Loop(var, extent, body),)
        body = (*self.first, *body)
        for var, extent in reversed(outer):
            body = (Loop(var, extent, body),)
        return body
