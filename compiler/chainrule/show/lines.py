"""The lines of a page, and where the steps of a loop stand among them."""

from __future__ import annotations

from dataclasses import replace

from chainrule.ir.node import Node
from chainrule.ir.notation import ATOM, Notation
from chainrule.ops.scan import Scan
from chainrule.show.page import TEXT, Line, Page, Style, Written, seen, with_shapes
from chainrule.show.steps import indexed


def write(page: Page, style: Style = TEXT) -> list[Line]:
    """The lines of a page: what is bound, then every root that has no name."""
    lines: list[Line] = []
    written: dict[Node, Written] = {}
    blocks = Blocks(page, style, written, lines)
    for node in page.order:
        form, name = page.forms[node], page.names.get(node)
        now = style.compose(form.notation, [written[p] for p in form.parts])
        now = blocks.result(node, now)
        if node in page.bound and name is not None:
            blocks.lines(node).append(Line(style.name(node, name), now[0], node))
        if name is not None and (node in page.bound or not form.parts):
            now = style.name(node, name), ATOM
        written[node] = now
        blocks.close(node)
    last = [r for r in page.roots if r not in page.bound or r not in page.names]
    return lines + [Line(None, written[r][0], r) for r in last]


class Blocks:
    """Where the lines of steps go: with those of their loop, when all of them are there."""

    def __init__(
        self, page: Page, style: Style, written: dict[Node, Written], top: list[Line]
    ) -> None:
        self.page, self.style, self.written, self.top = page, style, written, top
        self.owners = page.loops.owners(page.order) if page.loops else {}
        self.inside: dict[Node, list[Line]] = {s: [] for s in page.loops.of_steps}

    def lines(self, node: Node) -> list[Line]:
        """The lines to which that of a node belongs."""
        owner = self.owners.get(node)
        return self.top if owner is None else self.inside[owner.steps]

    def result(self, node: Node, now: Written) -> Written:
        """A result of a loop, by what its steps are called; what else a node is, stays."""
        if not isinstance(node.op, Scan) or node not in self.page.forms:
            return now
        if not self.page.forms[node].parts:
            return now
        loop = self.page.loops.loop_of(node)
        what, i = loop.place(node.op.output)
        if what != "row":
            return now
        row = loop.rows[i]
        if row in self.page.loops.carried or row in self.page.loops.stack_of:
            return self.whole(row)
        base = self.base(row) or loop.others[i]
        text = self.style.name(row, base)
        if node in self.page.bound:
            return self.style.compose(indexed("{0}", loop.index(what)), [(text, ATOM)])
        return text, ATOM

    def whole(self, row: Node) -> Written:
        """The stack of what a step is given."""
        loops = self.page.loops
        if row in loops.stack_of:
            return self.written[loops.stack_of[row]]
        loop, i = loops.carried[row]
        return self.style.compose(indexed(loop.labels[i], loop.index("before")), [])

    def base(self, row: Node) -> str | None:
        """What a value of a step is called, without its index."""
        name = self.page.names.get(row)
        return name.rpartition("[")[0] if name is not None and row in self.page.bound else None

    def close(self, node: Node) -> None:
        """Where all that the steps of a loop compute is there, write it."""
        loop = self.page.loops.of_steps.get(node)
        if loop is None:
            return
        out, steps = self.lines(node), self.inside[node]
        for label, init in zip(loop.labels, loop.inits, strict=True):
            out.append(self.line(label, loop.first, init))
        for label, new in zip(loop.labels, loop.nexts, strict=True):
            if self.base(new) != label:
                steps.append(self.line(label, loop.letter, new))
        for i, row in enumerate(loop.rows):
            given = row in self.page.loops.carried or row in self.page.loops.stack_of
            used = (node, i) in self.page.loops.used
            if used and not given and self.base(row) is None:
                steps.append(self.line(loop.others[i], loop.letter, row))
        first, last = loop.span
        out.append(Line(None, f"for {loop.letter} = {first}..{last}:", node, heads=loop))
        out.extend(replace(n, inside=n.inside + 1) for n in steps)

    def line(self, label: str, index: str, node: Node) -> Line:
        """`h[-1] = zeros((batch, 16))`, with all that says what the node is."""
        notation, parts = with_shapes(Notation("{0}", "{0}"), [node])
        text = self.style.compose(notation, [self.written[seen(p)] for p in parts])[0]
        name = self.style.compose(indexed("{0}", index), [(self.style.name(node, label), ATOM)])[0]
        return Line(name, text, node)
