"""Rewrite rules as data, and the one engine that applies them.

A rule is two formulas in the language users write, `rule("log_of_exp", "log(exp(x))", "x")`, or,
where axes and shapes matter, a named function from a node to its replacement, or None. Operands of
commutative ops match in either order; a number matches a tensor that has it everywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.formula import Call, Formula, Name, Number, names, parse
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, rebuild
from chainrule.ir.passes import count_rules
from chainrule.ops.elementwise import spell
from chainrule.ops.source import Full
from chainrule.records import dataclass
from chainrule.rewrite.along import (
    AXES,
    axes_of,
    is_along,
    is_count,
    op_behind,
    speaks_of_axes,
    spell_along,
)

Bindings = Mapping[str, Node]
Guard = Callable[[Bindings], bool]
COMMUTATIVE = {"add", "mul", "maximum", "minimum", "eq", "ne", "and_", "or_", "xor"}
#: Rewrites of one node after which the rules are taken to undo each other.
MAX_STEPS = 200


@dataclass(frozen=True)
class Rule:
    """`lhs` becomes `rhs` where `when` holds of what its variables are bound to.

    `numbers` are the variables that must be numbers: each about what it says, as exactly as a
    float32, or a user who writes eight digits, knows it; one that is None may be any from 0 to 1.
    """

    name: str
    lhs: str
    rhs: str
    when: Guard | None = None
    numbers: tuple[tuple[str, float | None], ...] = ()

    @cached_property
    def pattern(self) -> Call:
        """The left side, parsed."""
        tree = parse(self.lhs)
        assert isinstance(tree, Call)
        return tree

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """The op a node must have for the rule to be tried."""
        return (op_behind(self.pattern.fn),)

    @cached_property
    def wanted(self) -> tuple[str | None, ...]:
        """The op that each operand must have; None for any."""
        parts = self.pattern.args
        if self.pattern.fn == "mean":
            return ("sum", None)
        named = (op_behind(p.fn) if isinstance(p, Call) else "full" for p in parts)
        return tuple(None if isinstance(p, Name) else n for p, n in zip(parts, named, strict=True))

    def fits(self, met: Sequence[str]) -> bool:
        """Whether the rule could match a node, given its op's name and its operands'."""
        operands = met[1:]
        ways = (operands, operands[::-1]) if met[0] in COMMUTATIVE else (operands,)
        return any(
            all(w in (None, n) for w, n in zip(self.wanted, way, strict=True)) for way in ways
        )

    @cached_property
    def twins(self) -> tuple[tuple[int, int], ...]:
        """The places of operands that must be one node: those of x in `x * x`."""
        parts = self.pattern.args
        pairs = combinations(range(len(parts)), 2)
        return tuple(
            (i, j) for i, j in pairs if isinstance(parts[i], Name) and parts[i] == parts[j]
        )

    def __call__(self, node: Node, opaque: Collection[Node]) -> Node | None:
        for i, j in self.twins:
            if node.inputs[i] is not node.inputs[j]:
                return None
        if not _may_match(self.pattern, node):
            return None
        for bindings in _match(self.pattern, node, {}, opaque):
            if self.holds(bindings):
                return self.spell(parse(self.rhs), bindings, node)
        return None

    def holds(self, bound: Bindings) -> bool:
        """Whether what the variables are bound to is what the rule asks for."""
        numbers = all(_is_about(bound[name], value) for name, value in self.numbers)
        return numbers and (self.when is None or self.when(bound))

    @cached_property
    def spell(self) -> Callable[[Formula, Bindings, Node], Node]:
        """How the right side becomes nodes."""
        plain = not (speaks_of_axes(self.pattern) or speaks_of_axes(parse(self.rhs)))
        return spell if plain else spell_along


@dataclass(frozen=True)
class Recognizer:
    """A rule in code: `function(node, see)` for nodes whose op has one of the names `roots`.

    `see(node, name)` is the node's operands where its op is called so and may be looked through,
    else None. The docstring says what is given and what results. One operand at least must be of an
    op called as one of `some`, and all of ops in `only`, where these name any.
    """

    name: str
    roots: tuple[str, ...]
    function: Callable[[Node, See], Node | None]
    some: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()

    def fits(self, met: Sequence[str]) -> bool:
        """Whether the rule could match a node, given its op's name and its operands'."""
        operands = met[1:]
        one = not self.some or not self.some.isdisjoint(operands)
        return one and (not self.only or self.only.issuperset(operands))

    def __call__(self, node: Node, opaque: Collection[Node]) -> Node | None:
        return self.function(node, lambda n, name: n.inputs if _is(n, name, opaque) else None)


See = Callable[[Node, str], "tuple[Node, ...] | None"]
AnyRule = Rule | Recognizer


def rule(name: str, lhs: str, rhs: str, when: Guard | None = None, **numbers: float | None) -> Rule:
    """A rule as two formulas; of `numbers` those that the left side speaks of."""
    told = tuple((n, v) for n, v in numbers.items() if n in names(parse(lhs)))
    return Rule(name, lhs, rhs, when, told)


def recognize(
    *roots: str, some: Iterable[str] = (), only: Iterable[str] = ()
) -> Callable[[Callable[[Node, See], Node | None]], Recognizer]:
    """Decorate a function as a rule for nodes of the ops named, with such operands."""
    some, only = frozenset(some), frozenset(only)
    return lambda function: Recognizer(function.__name__, roots, function, some, only)


def _is_about(node: Node, value: float | None) -> bool:
    if not isinstance(node.op, Full):
        return False
    if value is None:
        return bool(0 <= node.op.value < 1)
    return math.isclose(node.op.value, value, rel_tol=1e-6)


def _is(node: Node, name: str, opaque: Collection[Node]) -> bool:
    return node.op.name == name and node not in opaque


def _may_match(pattern: Call, node: Node) -> bool:
    """False where the operands' ops and numbers rule a match out: what decides nearly all."""
    if pattern.fn == "mean":
        return bool(node.inputs[0].op.name == "sum")
    ways = (node.inputs, node.inputs[::-1]) if pattern.fn in COMMUTATIVE else (node.inputs,)
    return any(all(map(_may_be, pattern.args, way)) for way in ways)


def _may_be(pattern: Formula, node: Node) -> bool:
    if isinstance(pattern, Number):
        return isinstance(node.op, Full) and node.op.value == pattern.value
    if isinstance(pattern, Call):
        return bool(node.op.name == op_behind(pattern.fn)) and _may_match(pattern, node)
    return True


def _match(
    pattern: Formula, node: Node, bound: dict[str, Node], opaque: Collection[Node]
) -> Iterator[dict[str, Node]]:
    """The ways to bind a pattern's variables, added to those bound, so that it is the node."""
    if isinstance(pattern, Name):
        known = bound.get(pattern.name)
        if known is None:
            yield {**bound, pattern.name: node}
        elif known is node:
            yield bound
    elif isinstance(pattern, Number):
        if isinstance(node.op, Full) and node.op.value == pattern.value:
            yield bound
    elif pattern.fn == "mean":
        yield from _mean_match(pattern, node, bound, opaque)
    elif _is(node, op_behind(pattern.fn), opaque):
        if is_along(pattern.fn):
            if AXES in bound and axes_of(bound[AXES].op) != axes_of(node.op):
                return
            bound = {**bound, AXES: node}
        yield from _operands_match(pattern, node, bound, opaque)


def _mean_match(
    pattern: Call, node: Node, bound: dict[str, Node], opaque: Collection[Node]
) -> Iterator[dict[str, Node]]:
    """A mean is a sum divided by how many were summed."""
    if not _is(node, "div", opaque) or not _is(node.inputs[0], "sum", opaque):
        return
    total, count = node.inputs
    if is_count(count, total.inputs[0], axes_of(total.op)):
        yield from _match(Call("sum", pattern.args), total, bound, opaque)


def _operands_match(
    pattern: Call, node: Node, bound: dict[str, Node], opaque: Collection[Node]
) -> Iterator[dict[str, Node]]:
    yield from _all_match(pattern.args, node.inputs, bound, opaque)
    if pattern.fn in COMMUTATIVE and node.inputs[0] is not node.inputs[1]:
        yield from _all_match(pattern.args, node.inputs[::-1], bound, opaque)


def _all_match(
    patterns: Sequence[Formula],
    nodes: Sequence[Node],
    bound: dict[str, Node],
    opaque: Collection[Node],
) -> Iterator[dict[str, Node]]:
    if not patterns:
        yield bound
        return
    for first in _match(patterns[0], nodes[0], bound, opaque):
        yield from _all_match(patterns[1:], nodes[1:], first, opaque)


class Rules:
    """An ordered set of rules, looked up by the op at their root."""

    def __init__(self, rules: Iterable[AnyRule]) -> None:
        self.all = tuple(rules)
        self.by_root: dict[str, list[AnyRule]] = {}
        for r in self.all:
            for root in r.roots:
                self.by_root.setdefault(root, []).append(r)
        #: those that the names of an op and its operands do not rule out, as they are met
        self.by_names: dict[tuple[str, ...], list[AnyRule]] = {}

    def __add__(self, other: Rules) -> Rules:
        return Rules(self.all + other.all)

    def fitting(self, node: Node) -> Sequence[AnyRule]:
        """The rules that the names of a node's op and its operands' do not rule out."""
        name = node.op.name
        candidates = self.by_root.get(name)
        if candidates is None:
            return ()
        met = (name, *[i.op.name for i in node.inputs])
        found = self.by_names.get(met)
        if found is None:
            found = self.by_names[met] = [r for r in candidates if r.fits(met)]
        return found


def rewrite(graph: Graph, rules: Rules, opaque: Collection[Node] = ()) -> Graph:
    """The graph with rules applied from the leaves up until none fits."""
    return graph.with_roots(Rewriter(rules, opaque).run(graph))


class Rewriter:
    """One run of a rule set. A node in `opaque` is not replaced and not looked through."""

    def __init__(self, rules: Rules, opaque: Collection[Node] = ()) -> None:
        self.rules, self.opaque = rules, set(opaque)
        self.memo: dict[Node, Node] = {}
        self.applied: Counter[str] = Counter()
        self.steps = 0

    def run(self, graph: Graph) -> list[Node]:
        """The normal forms of a graph's roots."""
        memo, fitting = self.memo, self.rules.fitting
        for node in graph.nodes:  # operands first: each finds the forms of its own
            if node not in memo:
                if not fitting(node) and all([memo[i] is i for i in node.inputs]):
                    memo[node] = node
                else:
                    self.normal(node)
        count_rules(self.applied)
        return [memo[r] for r in graph.roots]

    def normal(self, root: Node) -> Node:
        """The node that no rule changes, equal in value to `root`."""
        stack = [root]
        becomes: dict[Node, Node] = {}
        begun: set[Node] = set()  # and not in memo: they wait for what stands above them
        while stack:
            node = stack[-1]
            if node in self.memo:
                stack.pop()
                continue
            waiting = [n for n in (becomes.get(node), *node.inputs) if n and n not in self.memo]
            if waiting:
                begun.add(node)
                if not begun.isdisjoint(waiting):
                    raise self.loop()
                stack.extend(reversed(waiting))
                continue
            if node in becomes:
                self.settle(node, self.memo[becomes[node]])
                continue
            built = rebuild(node, [self.memo[i] for i in node.inputs])
            if node in self.opaque:
                self.opaque.add(built)
                self.settle(node, built)
            elif built is not node:
                becomes[node] = built
            else:
                self.step(node, becomes)
        return self.memo[root]

    def step(self, node: Node, becomes: dict[Node, Node]) -> None:
        """Apply one rule to a node whose operands are in normal form."""
        fitting = self.rules.fitting(node)
        found = self.first(fitting, node) if fitting else None
        if found is None:
            self.settle(node, node)
            return
        new, used = found
        becomes[node] = new
        self.applied[used.name] += 1
        self.used(used, node, new)
        self.steps += 1
        if self.steps > MAX_STEPS * (len(self.memo) + 100):
            raise self.loop()

    def first(self, rules: Sequence[AnyRule], node: Node) -> tuple[Node, AnyRule] | None:
        """What the first of some rules that applies makes of a node."""
        with provenance.derived_from(node):
            for rule in rules:
                new = rule(node, self.opaque)
                if new is not None and new is not node:
                    return new, rule
        return None

    def used(self, rule: AnyRule, node: Node, new: Node) -> None:
        """Told of each rule as it puts `new` in the place of `node`; here nothing."""

    def loop(self) -> CompileError:
        """The error of rules that lead back to where they began, or nowhere."""
        common = ", ".join(name for name, _ in self.applied.most_common(3))
        return CompileError(f"rewrite rules undo each other: {common}")

    def settle(self, node: Node, normal: Node) -> None:
        self.memo[node] = provenance.inherit(normal, node)
        self.memo.setdefault(normal, normal)
