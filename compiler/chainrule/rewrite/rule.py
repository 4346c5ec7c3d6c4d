"""Rewrite rules as data, and the one engine that applies them.

A rule is two formulas in the language users write, `rule("log_of_exp", "log(exp(x))", "x")`, or,
where axes and shapes matter, a named function from a node to its replacement, or None. Operands of
commutative ops match in either order; a number matches a tensor that has it everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.formula import Call, Formula, Name, Number, parse
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, rebuild
from chainrule.ir.passes import count_rules
from chainrule.ops.elementwise import spell
from chainrule.ops.source import Full

Bindings = Mapping[str, Node]
Guard = Callable[[Bindings], bool]
COMMUTATIVE = {"add", "mul", "maximum", "minimum", "eq", "ne", "and_", "or_", "xor"}
#: Rewrites of one node after which the rules are taken to undo each other.
MAX_STEPS = 200


@dataclass(frozen=True)
class Rule:
    """`lhs` becomes `rhs` where `when` holds of what its variables are bound to."""

    name: str
    lhs: str
    rhs: str
    when: Guard | None = None

    @cached_property
    def pattern(self) -> Call:
        """The left side, parsed."""
        tree = parse(self.lhs)
        assert isinstance(tree, Call)
        return tree

    @property
    def roots(self) -> tuple[str, ...]:
        """The op a node must have for the rule to be tried."""
        return (self.pattern.fn,)

    @cached_property
    def needs(self) -> frozenset[str]:
        """The ops that must be among those of the operands for the rule to be tried."""
        return frozenset(
            part.fn if isinstance(part, Call) else "full"
            for part in self.pattern.args
            if not isinstance(part, Name)
        )

    def __call__(self, node: Node, opaque: Collection[Node]) -> Node | None:
        for bindings in _operands_match(self.pattern, node, {}, opaque):
            if self.when is None or self.when(bindings):
                return spell(parse(self.rhs), bindings, like=node)
        return None


@dataclass(frozen=True)
class Recognizer:
    """A rule in code: `function(node, see)` for nodes whose op has one of the names `roots`.

    `see(node, name)` is the node's operands where its op is called so and may be looked through,
    else None. The docstring says what is given and what results.
    """

    name: str
    roots: tuple[str, ...]
    function: Callable[[Node, See], Node | None]
    needs: frozenset[str] = frozenset()

    def __call__(self, node: Node, opaque: Collection[Node]) -> Node | None:
        return self.function(node, lambda n, name: n.inputs if _is(n, name, opaque) else None)


See = Callable[[Node, str], "tuple[Node, ...] | None"]
AnyRule = Rule | Recognizer


def rule(name: str, lhs: str, rhs: str, when: Guard | None = None) -> Rule:
    """A rule as two formulas."""
    return Rule(name, lhs, rhs, when)


def recognize(*roots: str) -> Callable[[Callable[[Node, See], Node | None]], Recognizer]:
    """Decorate a function as a rule for nodes of the ops named."""
    return lambda function: Recognizer(function.__name__, roots, function)


def _is(node: Node, name: str, opaque: Collection[Node]) -> bool:
    return node.op.name == name and node not in opaque


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
    elif _is(node, pattern.fn, opaque):
        yield from _operands_match(pattern, node, bound, opaque)


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

    def __add__(self, other: Rules) -> Rules:
        return Rules(self.all + other.all)

    def apply(self, node: Node, opaque: Collection[Node]) -> tuple[Node, AnyRule] | None:
        """What the first rule that fits makes of a node."""
        candidates = self.by_root.get(node.op.name)
        if candidates is None:
            return None
        operands = {i.op.name for i in node.inputs}
        for r in candidates:
            new = r(node, opaque) if r.needs <= operands else None
            if new is not None and new is not node:
                return new, r
        return None


def rewrite(graph: Graph, rules: Rules, opaque: Collection[Node] = ()) -> Graph:
    """The graph with rules applied from the leaves up until none fits."""
    return graph.with_roots(Rewriter(rules, opaque).run(graph.roots))


class Rewriter:
    """One run of a rule set. A node in `opaque` is not replaced and not looked through."""

    def __init__(self, rules: Rules, opaque: Collection[Node] = ()) -> None:
        self.rules, self.opaque = rules, set(opaque)
        self.memo: dict[Node, Node] = {}
        self.applied: Counter[str] = Counter()
        self.steps = 0

    def run(self, roots: Sequence[Node]) -> list[Node]:
        """The normal forms of roots."""
        normal = [self.normal(r) for r in roots]
        count_rules(self.applied)
        return normal

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
        with provenance.derived_from(node):
            found = self.rules.apply(node, self.opaque)
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

    def used(self, rule: AnyRule, node: Node, new: Node) -> None:
        """Told of each rule as it puts `new` in the place of `node`; here nothing."""

    def loop(self) -> CompileError:
        """The error of rules that lead back to where they began, or nowhere."""
        common = ", ".join(name for name, _ in self.applied.most_common(3))
        return CompileError(f"rewrite rules undo each other: {common}")

    def settle(self, node: Node, normal: Node) -> None:
        self.memo[node] = provenance.inherit(normal, node)
        self.memo.setdefault(normal, normal)
