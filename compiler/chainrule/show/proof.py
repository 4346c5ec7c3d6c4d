"""A derivation as a proof: the chain rule step by step, as a lecture writes it, and its replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from chainrule.autodiff.reverse import Derivation, Step
from chainrule.errors import GradientError, Location
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ops.source import Full, latex_name, leaf
from chainrule.records import dataclass
from chainrule.rewrite.passes import simplify
from chainrule.show.latex import LATEX, latex, latex_rows
from chainrule.show.lines import write
from chainrule.show.local import by_parts
from chainrule.show.page import TEXT, Line, Style, arrange, seen
from chainrule.show.replay import Check, check_gradient, check_step
from chainrule.show.text import line_text, text

#: Paths from the loss to the parameter that are still written out in the first line.
MANY = 4


@dataclass(frozen=True)
class ProofStep:
    """One use of the chain rule by one op.

    `rule` is the op's, in general: `out = relu(x)  ⇒  dx = dout ⊙ [out > 0]`; `line` is where the
    op was written; `contribution` is what `cotangent` of `node` gives for its `operand`, with those
    of `others`, further results of the same loop.
    """

    rule: str
    line: Location | None
    node: Node
    operand: int
    cotangent: Node
    contribution: Node
    others: tuple[tuple[Node, Node], ...] = ()

    def holds(self) -> bool:
        """Whether the step agrees with finite differences of the op, at random points."""
        results = ((self.node, self.cotangent), *self.others)
        return check_step(results, self.operand, self.contribution)


@dataclass(frozen=True)
class Link:
    """The derivative by one named value, from those of the values that read it.

    `above` are the names of those, `steps` which of the proof's steps lead from them to this one,
    `partial` and `local` the derivative's name and what it is.
    """

    name: str
    above: tuple[str, ...]
    steps: tuple[int, ...]
    partial: str
    local: Node


@dataclass(frozen=True)
class Proof:
    """The chain rule from a loss to one parameter.

    `str()` and `.latex()` write it, `.check()` replays it in numbers. `steps` are the uses of the
    chain rule on the paths from `loss` to `wrt`, in order; `links` lead from one named value to the
    next.
    """

    loss: str
    wrt: str
    steps: tuple[ProofStep, ...]
    links: tuple[Link, ...]
    forward: tuple[tuple[Node, str], ...]
    derivation: Derivation
    by: Node
    gradient: Node

    def __str__(self) -> str:
        blocks = [self._product(), "where\n" + _indented(_written(self.forward, TEXT))]
        shown: set[str] = set()
        for number, link in enumerate(self.links, 1):
            rules = [self.steps[i] for i in link.steps if self.steps[i].rule not in shown]
            shown.update(s.rule for s in rules)
            blocks.append(_block(number, self.loss, link, rules, self._local(link, TEXT)))
        return "\n\n".join([*blocks, f"simplified\n{_indented(text(self.gradient))}"])

    def latex(self) -> str:
        """The proof as LaTeX: the product, what its parts are, each factor, the result."""
        factors = [_factors(path, self.loss, LATEX) for path in self._paths()]
        total = (
            r" \cdot ".join(factors[0])
            if len(factors) == 1
            else " + ".join(r" \cdot ".join(f) for f in factors)
        )
        whole = latex_name(f"∂{self.loss}/∂{self.wrt}")
        rows = [
            f"{whole} &= {total}" if factors else f"{whole} &= \\sum_{{\\text{{paths}}}} \\cdots"
        ]
        rows += latex_rows(_lines(self.forward, LATEX))
        for link in self.links:
            rows += latex_rows(self._local(link, LATEX))
        body = " \\\\\n".join(rows)
        return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}\n\n{latex(self.gradient)}"

    def check(self) -> Check:
        """Replay: each step against finite differences of its op, then the simplified gradient
        against the derived one and against finite differences of the loss.
        """
        for i, step in enumerate(self.steps):
            if not step.holds():
                where = f" at {step.line}" if step.line else ""
                return Check(False, i, f"step {i + 1} does not hold: {step.rule}{where}")
        return check_gradient(self.derivation, self.by, self.gradient, len(self.steps))

    def _product(self) -> str:
        whole = f"∂{self.loss}/∂{self.wrt}"
        paths = self._paths()
        if not paths:
            return f"{whole} = the sum over {self._count()} paths, link by link"
        return f"{whole} = " + " + ".join(" · ".join(_factors(p, self.loss, TEXT)) for p in paths)

    def _count(self) -> int:
        """How many paths lead from the loss to the parameter."""
        counts = {self.loss: 1}
        for link in self.links:
            counts[link.name] = sum(counts[a] for a in link.above)
        return counts[self.wrt]

    def _paths(self) -> list[list[str]]:
        """The names along each path, the loss first; none where there are too many to write."""
        if self._count() > MANY:
            return []
        above = {link.name: link.above for link in self.links}
        open_, done = [[self.wrt]], []
        while open_:
            path = open_.pop()
            if path[-1] == self.loss:
                done.append(path[::-1])
            else:
                open_.extend([*path, a] for a in reversed(above[path[-1]]))
        return done

    def _local(self, link: Link, style: Style) -> list[Line]:
        """What a link's derivative is, in the names of the forward pass."""
        names = {n: name for n, name in self.forward if seen(n) is not seen(link.local)}
        own = {link.local: link.partial} if link.local.inputs else {}
        lines = write(arrange([link.local], names | own, names), style)
        partial = style.name(link.local, link.partial)
        return [n if n.name or n.heads else replace(n, name=partial) for n in lines]


def explain(derivation: Derivation, wrt: Node, simplified: Node) -> Proof:
    """The proof of one gradient of a derivation. Raises GradientError where there is none.

    `wrt` is one of `derivation.wrt`, `simplified` the gradient in its final form.
    """
    used = _on_the_way(derivation.steps, wrt)
    if wrt not in derivation.cotangents:
        raise GradientError(f"{derivation.result!r} does not depend on {wrt!r}")
    names = _waypoints(derivation, wrt, simplified, used)
    partials = {
        derivation.cotangents[n]: f"∂{names[derivation.result]}/∂{name}"
        for n, name in reversed(names.items())
        if n is not derivation.result and derivation.cotangents[n].inputs
    }
    local = by_parts(partials)
    links = _links(derivation, used, names, local)
    forward = [(n, name) for n, name in names.items() if n.inputs and n is not wrt]
    return Proof(
        names[derivation.result],
        names[wrt],
        tuple(_step(s) for s in used),
        tuple(links),
        tuple(reversed(forward)),
        derivation,
        wrt,
        simplified,
    )


def _on_the_way(steps: Sequence[Step], wrt: Node) -> list[Step]:
    """The steps on paths to `wrt`, in order."""
    leads, used = {wrt}, []
    for step in reversed(steps):
        if step.node.inputs[step.operand] in leads:
            leads.add(step.node)
            used.append(step)
    return used[::-1]


def _waypoints(
    derivation: Derivation, wrt: Node, simplified: Node, used: Sequence[Step]
) -> dict[Node, str]:
    """The values on the way that have a name on the gradient's page, the loss first."""
    result = derivation.result
    page = arrange([result, simplified])
    loss = provenance.user_name_of(result) or provenance.LOSS
    names = {result: loss}
    for node in (s.node for s in used):
        if node is not result and node in page.names and node.inputs:
            names[node] = page.names[node]
    names.pop(wrt, None)
    names[wrt] = provenance.name_of(wrt) or page.names.get(wrt) or "x"
    return names


def _links(
    derivation: Derivation, used: Sequence[Step], names: dict[Node, str], local: dict[Node, Node]
) -> list[Link]:
    """One link for each named value but the loss, in the order the chain rule comes to them."""
    above: dict[Node, dict[str, None]] = {}
    steps: dict[Node, dict[int, None]] = {}
    for i, step in enumerate(used):
        source, target = step.node, step.node.inputs[step.operand]
        start = source in names
        above.setdefault(target, {}).update({names[source]: None} if start else above[source])
        before = {} if start else steps[source]
        steps.setdefault(target, {}).update(before | {i: None})
    found = []
    for node, name in names.items():
        if node is derivation.result:
            continue
        ct = derivation.cotangents[node]
        partial = f"∂{names[derivation.result]}/∂{name}"
        found.append(Link(name, tuple(above[node]), tuple(steps[node]), partial, local.get(ct, ct)))
    return found


def _step(step: Step) -> ProofStep:
    line = provenance.line_of(step.node)
    rule = _rule(step.node, step.operand)
    return ProofStep(
        rule, line, step.node, step.operand, step.cotangent, step.contribution, step.others
    )


def _rule(node: Node, operand: int) -> str:
    """What the op of a node does to any cotangent, in letters of its own.

    What a loop does takes lines: those that follow in the proof.
    """
    letters = "xyuvw" if len(node.inputs) <= 5 else [f"x{i}" for i in range(len(node.inputs))]
    inputs = [
        i if isinstance(i.op, Full) else leaf("input", letters[k], i.type)
        for k, i in enumerate(node.inputs)
    ]
    out, ct = leaf("input", "out", node.type), leaf("input", "dout", node.type)
    forms = node.op.notation(*inputs)
    value = forms.text.format(*(_letter(i) for i in forms.shown or inputs))
    if node.op.family is not None:
        return f"out = {value}  ⇒  d{letters[operand]} by a loop the other way round"
    contribution = node.op.vjp(ct, out, *inputs)[operand]
    assert contribution is not None
    (simple,) = simplify(Graph((contribution,))).outputs
    return f"out = {value}  ⇒  d{letters[operand]} = {write(arrange([simple]))[-1].expression}"


def _letter(node: Node) -> str:
    return node.op.notation(*node.inputs).text


def _written(named: Sequence[tuple[Node, str]], style: Style) -> str:
    return "\n".join(map(line_text, _lines(named, style)))


def _lines(named: Sequence[tuple[Node, str]], style: Style) -> list[Line]:
    names = {n: name for n, name in named if n.inputs}
    return [n for n in write(arrange([n for n, _ in named], names), style) if n.name or n.heads]


def _factors(path: Sequence[str], loss: str, style: Style) -> list[str]:
    names = [f"∂{a}/∂{b}" for a, b in pairwise(path)]
    return names if style is TEXT else [latex_name(n) for n in names]


def _block(
    number: int,
    loss: str,
    link: Link,
    steps: Sequence[ProofStep],
    lines: Sequence[Line],
) -> str:
    products = [
        f"∂{a}/∂{link.name}" if a == loss else f"∂{loss}/∂{a} · ∂{a}/∂{link.name}"
        for a in link.above
    ]
    head = f"{number}. {link.partial}"
    if products != [link.partial]:
        head += f" = {' + '.join(products)}"
    rows = [_rule_line(s) for s in steps]
    rows += map(line_text, lines)
    return f"{head}\n{_indented(chr(10).join(rows))}"


def _rule_line(step: ProofStep) -> str:
    where = f"   # {step.line}".split("    ")[0] if step.line else ""
    return f"{step.rule}{where}"


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())
