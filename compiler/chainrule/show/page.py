"""A page of mathematics: which parts of an expression get a name of their own.

An expression is a graph; written out in full it would explode. A part is bound to a name where
mathematics would name it: where the user did, where it is used more than once, where one layer
reads another, and where a line would get long. So a page is linear in the size of its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace

from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.notation import ATOM, NONE, Notation
from chainrule.ops.axes import Expand
from chainrule.ops.phase import Dropout
from chainrule.ops.source import Full, escape
from chainrule.records import dataclass
from chainrule.show.naming import TERMS, name_all
from chainrule.show.steps import Loop, Loops

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
    loops: Loops


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
    """`name = expression`, or an expression alone; `node` is what it says.

    `inside` are the loops of which it is a step, and `heads` one whose steps follow.
    """

    name: str | None
    expression: str
    node: Node
    inside: int = 0
    heads: Loop | None = None


def seen(node: Node) -> Node:
    """The node itself, or the operand of a view that is written as its bare operand."""
    while node.op.role == "view" and node.inputs:
        notation = node.op.notation(*node.inputs)
        if notation.text != "{0}":
            break
        (node,) = notation.shown or node.inputs
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
    loops = Loops(roots, given.values(), closed)
    found = _forms(roots, closed, loops)
    draws = {n for n in found[0] if n.op.draws}
    if loops or draws:  # now that it is known of what the page speaks
        loops.settled = True
        found = _forms(roots, closed, loops, draws)
    steps = _named_steps(loops, given)
    order, forms = _signs_shown(*found, {*roots, *given, *closed, *steps})
    bound = _Binder(order, forms, given | steps, roots, loops, _stepped(loops)).bound
    parts = {n: f.parts for n, f in forms.items()}
    inside = {n for n in order if loops and loops.depth(n)}
    names = name_all(order, parts, bound | closed, given | steps, roots, inside)
    for node in bound & inside:
        if node in names:
            names[node] += f"[{loops.letters[loops.depth(node) - 1]}]"
    return Page(roots, tuple(order), forms, frozenset(bound), names, loops)


def _named_steps(loops: Loops, given: Mapping[Node, str]) -> dict[Node, str]:
    """What the values are called that loops carry."""
    named: dict[Node, str] = {}
    for loop in loops.found.values():
        for node, label in zip(loop.nexts, loop.labels, strict=True):
            if node not in given and loops.is_step(node):
                named.setdefault(node, label)
    return named


def _stepped(loops: Loops) -> set[Node]:
    """What has to have a name, as it is written with an index."""
    given = {*loops.stack_of, *loops.carried}
    found = {n for n in loops.stack_of.values() if n not in given}
    for loop in loops.found.values():
        found.update(n for n in (*loop.nexts, *loop.rows) if loops.is_step(n))
    return {n for n in found if n.op.family is None}


def _forms(
    roots: Sequence[Node], atoms: set[Node], loops: Loops, draws: Collection[Node] = ()
) -> tuple[list[Node], dict[Node, Form]]:
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
                forms[node] = Form(_ATOM, ()) if node in atoms else _any_form(node, loops, draws)
                stack.append((node, True))
                stack.extend((p, False) for p in reversed(forms[node].parts))
    return order, forms


def _signs_shown(
    order: list[Node], forms: dict[Node, Form], kept: set[Node]
) -> tuple[list[Node], dict[Node, Form]]:
    """`[relu(x) > 0]` as `[x > 0]` where nothing else on the page reads the rectified value."""
    only: dict[Node, bool] = {}
    for form in forms.values():
        for hole, part in enumerate(form.parts):
            if part.op.rectifies:
                only[part] = only.get(part, True) and hole in form.notation.signs
    bare = {n for n, sign in only.items() if sign and n not in kept and not _is_named(n)}
    if not bare:
        return order, forms
    there: dict[Node, Form] = {}
    for node in order:
        form = forms[node]
        parts = tuple(seen(p.inputs[0]) if p in bare else p for p in form.parts)
        there[node] = form if parts == form.parts else Form(form.notation, parts)
    return [n for n in order if n not in bare], there


def _is_elementwise(node: Node) -> bool:
    """Whether an element is one of the operands' at its place, so that what repeats may be left out
    and a number stand for a tensor.
    """
    plain = node.op.role in ("pointwise", "light") and not node.op.buffered
    return plain and not _is_layer(node) and all(i.shape == node.shape for i in node.inputs)


def _is_named(node: Node) -> bool:
    return provenance.name_of(node) is not None


def _any_form(node: Node, loops: Loops, draws: Collection[Node]) -> Form:
    """How a node is written. `draws` are the random numbers of which the page speaks by name."""
    if isinstance(node.op, Dropout) and not node.op.back and node.inputs[1] in draws:
        return Form(node.op.with_mask(), tuple(map(seen, node.inputs)))
    if node in loops.of_steps:
        shown = [p for i in loops.parts(node) for p in with_shapes(Notation("{0}", "{0}"), [i])[1]]
        return Form(Notation("", ""), tuple(map(seen, shown)))
    special = loops.form(node)
    if special is None:
        return _form(node)
    notation, parts = special
    return Form(notation, tuple(map(seen, parts)))


def _form(node: Node) -> Form:
    notation = node.op.notation(*node.inputs)
    if notation.text == "{0}" and isinstance(node.op, Expand):  # read by what shows it in full
        notation = node.op.explicit()
    parts = node.inputs if notation.shown is None else notation.shown
    if isinstance(node.op, Expand):
        return Form(notation, tuple(parts))
    if not _is_elementwise(node):
        notation, parts = with_shapes(notation, parts)
    hidden = [h for n in (node, *node.inputs) for h in _hidden(n)]
    if len(hidden) == 1 and hidden[0] in parts and _is_alone(hidden[0], node):
        notation, parts = with_shapes(notation, parts, hidden)
    return Form(notation, tuple(p if p in hidden else seen(p) for p in parts))


def with_shapes(
    notation: Notation, parts: Sequence[Node], only: Sequence[Node] | None = None
) -> tuple[Notation, tuple[Node, ...]]:
    """The notation with numbers, and with what repeats, written as the tensors they are: nothing
    beside them says the shape. `only` are those of the parts that need it.
    """
    text, shown = notation.text, list(parts)
    for hole, part in enumerate(parts):
        if only is not None and part not in only:
            continue
        if isinstance(part.op, Full) and part.type.rank:
            text = text.replace(f"{{{hole}}}", escape(part.op.explicit()))
        elif isinstance(part.op, Expand):
            whole = part.op.in_full().replace("{0}", f"{{{hole}}}")
            text = text.replace(f"{{{hole}}}", whole)
            (shown[hole],) = part.inputs
    new = notation if text == notation.text else replace(notation, text=text)
    return new, tuple(shown)


def _is_alone(view: Node, reader: Node) -> bool:
    """Whether nothing that an elementwise op reads beside a view has the axes it repeats along."""
    assert isinstance(view.op, Expand)
    others = [i for i in reader.inputs if i is not view and i.type.rank and i.op.name != "full"]
    leads = view.op.axes == tuple(range(len(view.op.axes)))
    return _is_elementwise(reader) and (leads or not others)


def _hidden(node: Node) -> list[Node]:
    """The operands that repeat along axes which nothing beside them has.

    Those of an elementwise op of which none has all the axes.
    """
    wide = [i for i in node.inputs if i.type.rank and i.op.name != "full"]
    views = [i for i in wide if isinstance(i.op, Expand)]
    if not _is_elementwise(node) or any(seen(i).type.rank == i.type.rank for i in wide):
        return []
    return [i for i in views if i.op.axes != tuple(range(len(i.op.axes)))] or views[:1]  # type: ignore[attr-defined]


@dataclass
class _Binder:
    """Decides what is bound, parts first; lengths are taken with names of three letters."""

    order: Sequence[Node]
    forms: Mapping[Node, Form]
    given: Mapping[Node, str]
    roots: Sequence[Node]
    loops: Loops
    forced: set[Node]
    bound: set[Node] = field(default_factory=set)
    written: dict[Node, Written] = field(default_factory=dict)
    layered: set[Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        uses = self.uses()
        negated = self.negated()
        for node in self.order:
            text = self.settle(node)
            named = node in self.given or provenance.name_of(node) is not None
            # a draw is bound too: written twice it would be another one
            often = uses[node] > 1
            error = (_is_error(node) and (often or node not in negated)) or node.op.draws
            short = len(text) <= SHORT and not (often and (error or _is_product(node)))
            wanted = named or node in self.forced or ((often or error) and not short)
            if self.is_expression(node) and wanted:
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

    def negated(self) -> set[Node]:
        """The nodes that are read by a minus sign."""
        forms = (f for f in self.forms.values() if f.notation.text == "-{0}")
        return {part for form in forms for part in form.parts}

    def settle(self, node: Node) -> str:
        """Write a node, binding what is in it where one layer reads another or a line is long."""
        form = self.forms[node]
        if _is_layer(node) and not self.loops.is_total(node):
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
    terms = [of] if (of := provenance.cotangent_of(node)) is not None else []
    for _ in range(TERMS):
        terms = [seen(i) for t in terms for i in (t.inputs if t.op.letter == "z" else ())] + [
            t for t in terms if t.op.role == "contract"
        ]
    return any(t.op.role == "contract" for t in terms)


def _is_product(node: Node) -> bool:
    """Whether a node is a product of tensors with axes, or of sums of them the last."""
    for part in (node, *node.inputs) if node.op.letter == "z" else ():
        if seen(part).op.role == "contract" and part.type.rank:
            return True
    return False


def _is_layer(node: Node) -> bool:
    """Whether an element depends on many of the operand's, so that what it reads is a layer."""
    return node.op.role in ("contract", "nest") or node.op.letter == "p"
