"""A page of mathematics: which parts of an expression get a name of their own.

An expression is a graph; written out in full it would explode. A part is bound to a name where
mathematics would name it: where the user did, where it is used more than once, where one layer
reads another, and where a line would get long. So a page is linear in the size of its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.notation import ATOM, NONE, Notation
from chainrule.show.naming import name_all

#: Characters that an expression may have before its parts are named.
WIDTH = 60
#: An expression this short is repeated rather than named.
SHORT = 10
#: What stands for a name while names are not yet known.
_NAME = ("abc", ATOM)
_ATOM = Notation(_NAME[0], _NAME[0])

Written = tuple[str, int]


@dataclass(frozen=True)
class Form:
    """How a node is written: a notation, and the nodes in its holes."""

    notation: Notation
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Page:
    """What is to be written: every node that is seen, parts first, and which of them are bound.

    `names` holds the bound, the atoms, and parts of a forward pass that a cotangent is named after.
    """

    roots: tuple[Node, ...]
    order: tuple[Node, ...]
    forms: Mapping[Node, Form]
    bound: frozenset[Node]
    names: Mapping[Node, str]


@dataclass(frozen=True)
class Style:
    """A way of writing: the template, its bindings, how a node's name is spelled, parentheses."""

    template: Callable[[Notation], str]
    binds: Callable[[Notation], int]
    needs: Callable[[Notation], tuple[int, ...]]
    name: Callable[[Node, str], str]
    parentheses: str

    def compose(self, notation: Notation, parts: Sequence[Written]) -> Written:
        """An expression and how strongly it binds, from those in its holes."""
        needs = self.needs(notation)
        texts = [
            text if binds >= (needs[i] if i < len(needs) else NONE) else self.parentheses % text
            for i, (text, binds) in enumerate(parts)
        ]
        return self.template(notation).format(*texts), self.binds(notation)


TEXT = Style(lambda n: n.text, lambda n: n.binds, lambda n: n.operands, lambda _, s: s, "(%s)")


@dataclass(frozen=True)
class Line:
    """`name = expression`, or an expression alone; `node` is what it says."""

    name: str | None
    expression: str
    node: Node


def seen(node: Node) -> Node:
    """The node itself, or the operand of a view that is written as its bare operand."""
    while node.op.role == "view" and node.inputs and node.op.notation(*node.inputs).text == "{0}":
        (node,) = node.inputs
    return node


def arrange(
    roots: Sequence[Node], names: Mapping[Node, str] | None = None, atoms: Iterable[Node] = ()
) -> Page:
    """The page of some expressions.

    `names` are names to use whatever else the nodes are called; of `atoms` no more is said than the
    name.
    """
    given = {seen(n): name for n, name in (names or {}).items()}
    closed = {seen(a) for a in atoms}
    roots = tuple(seen(r) for r in roots)
    order, forms = _forms(roots, closed)
    bound = _Binder(order, forms, given, roots).bound
    parts = {n: f.parts for n, f in forms.items()}
    names = name_all(order, parts, bound | closed, given, roots)
    return Page(roots, tuple(order), forms, frozenset(bound), names)


def write(page: Page, style: Style = TEXT) -> list[Line]:
    """The lines of a page: what is bound, then every root that has no name."""
    lines: list[Line] = []
    written: dict[Node, Written] = {}
    for node in page.order:
        form, name = page.forms[node], page.names.get(node)
        now = style.compose(form.notation, [written[p] for p in form.parts])
        if node in page.bound and name is not None:
            lines.append(Line(style.name(node, name), now[0], node))
        if name is not None and (node in page.bound or not form.parts):
            now = style.name(node, name), ATOM
        written[node] = now
    last = [r for r in page.roots if r not in page.bound or r not in page.names]
    return lines + [Line(None, written[r][0], r) for r in last]


def _forms(roots: Sequence[Node], atoms: set[Node]) -> tuple[list[Node], dict[Node, Form]]:
    """The nodes that are seen, parts first, each with its form."""
    forms: dict[Node, Form] = {}
    order: list[Node] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in forms:
                forms[node] = Form(_ATOM, ()) if node in atoms else _form(node)
                stack.append((node, True))
                stack.extend((p, False) for p in reversed(forms[node].parts))
    return order, forms


def _form(node: Node) -> Form:
    notation = node.op.notation(*node.inputs)
    parts = node.inputs if notation.shown is None else notation.shown
    return Form(notation, tuple(map(seen, parts)))


@dataclass
class _Binder:
    """Decides what is bound, parts first; lengths are taken with names of three letters."""

    order: Sequence[Node]
    forms: Mapping[Node, Form]
    given: Mapping[Node, str]
    roots: Sequence[Node]
    bound: set[Node] = field(default_factory=set)
    written: dict[Node, Written] = field(default_factory=dict)
    layered: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        uses = self.uses()
        for node in self.order:
            text = self.settle(node)
            named = node in self.given or provenance.name_of(node) is not None
            shared = (uses[node] > 1 or _is_error(node)) and len(text) > SHORT
            if self.is_expression(node) and (named or shared):
                self.bound.add(node)
            if node not in self.bound and (_is_layer(node) or self.holds_layer(node)):
                self.layered.add(node)

    def uses(self) -> dict[Node, int]:
        """How often each node is read, 2 for more; what a view shows is read where the view is."""
        uses = dict.fromkeys(self.order, 0)
        for node in reversed(self.order):
            count = max(uses[node], 1) if _is_view(node) else 1
            for part in self.forms[node].parts:
                uses[part] = min(uses[part] + count, 2)
        return uses

    def settle(self, node: Node) -> str:
        """Write a node, binding what is in it where one layer reads another or a line is long."""
        form = self.forms[node]
        if _is_layer(node):
            for part in form.parts:
                if part in self.layered:
                    self.bind(part)
        text = self.compose(node)
        while len(text) > WIDTH:
            free = [p for p in form.parts if self.size(p) > SHORT]
            if not free:
                break
            self.bind(max(free, key=self.size))
            text = self.compose(node)
        return text

    def compose(self, node: Node) -> str:
        form = self.forms[node]
        parts = [_NAME if p in self.bound else self.written[p] for p in form.parts]
        self.written[node] = TEXT.compose(form.notation, parts)
        return self.written[node][0]

    def size(self, part: Node) -> int:
        """The characters a part has where it is not bound and can be."""
        free = part not in self.bound and self.forms[part].parts
        return len(self.written[part][0]) if free else 0

    def bind(self, part: Node) -> None:
        """Bind a part, or what it shows where it is a view of an expression that is long."""
        views = []
        while _is_view(part) and self.size(self.forms[part].parts[0]) > SHORT:
            views.append(part)
            part = self.forms[part].parts[0]
        self.bound.add(part)
        for view in reversed(views):
            self.compose(view)
            if not self.holds_layer(view):
                self.layered.discard(view)

    def holds_layer(self, node: Node) -> bool:
        return any(p in self.layered and p not in self.bound for p in self.forms[node].parts)

    def is_expression(self, node: Node) -> bool:
        return bool(self.forms[node].parts) and not _is_view(node)


def _is_view(node: Node) -> bool:
    return bool(node.inputs) and node.op.role in ("view", "alias")


def _is_error(node: Node) -> bool:
    """Whether a node is the cotangent of a sum of products: what layers pass back to each other."""
    of = provenance.cotangent_of(node)
    products = (of, *map(seen, of.inputs)) if of is not None and of.op.letter == "z" else ()
    return any(p.op.role == "contract" for p in products)


def _is_layer(node: Node) -> bool:
    """Whether an element depends on many of the operand's, so that what it reads is a layer."""
    return node.op.role in ("contract", "nest") or node.op.letter == "p"
