"""Readable mathematics as LaTeX, for amsmath."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.notation import Notation
from chainrule.ops.source import latex_name, latex_size
from chainrule.show.lines import write
from chainrule.show.page import Line, Style, arrange, seen
from chainrule.show.steps import Loop

_D = r"\mathrm{d}"


def _binds(notation: Notation) -> int:
    return notation.binds if notation.latex_binds is None else notation.latex_binds


def _needs(notation: Notation) -> tuple[int, ...]:
    return notation.operands if notation.latex_operands is None else notation.latex_operands


def _name(node: Node, name: str) -> str:
    """A name; the differential of a name where the node is a cotangent and called so."""
    if name.endswith("]"):
        stem, _, index = name[:-1].rpartition("[")
        base = _name(node, stem)
        if base.endswith("}") and "_{" in base:
            return f"{base[:-1]},{latex_size(index)}}}"
        return f"{base}_{{{latex_size(index)}}}"
    order, of = 0, provenance.cotangent_of(node)
    while of is not None:
        order, of = order + 1, provenance.cotangent_of(of)
    owner, dot, own = name.rpartition(".")
    if not order or not own.startswith("d" * order) or own == "d" * order:
        return latex_name(name)
    return _D * order + latex_name(owner + dot + own[order:])


LATEX = Style(lambda n: n.latex, _binds, _needs, _name, r"\left(%s\right)")


def latex(node: Node, names: Mapping[Node, str] | None = None) -> str:
    r"""An expression as an `aligned` block: named bindings, then the result.

    A result that is a gradient of J by W stands as `\frac{\partial J}{\partial W}`, by the loss'
    own name, J where it has none.
    """
    return latex_lines([node], names)


def latex_lines(nodes: Sequence[Node], names: Mapping[Node, str] | None = None) -> str:
    """Several expressions as one `aligned` block, with the bindings they share."""
    page = arrange(nodes, names)
    results = {seen(n) for n in nodes}
    lines = write(page, LATEX)
    rows = latex_rows(lines, results)
    if len(rows) == 1 and lines[0].name is None:
        return lines[0].expression
    body = " \\\\\n".join(rows)
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def latex_rows(lines: Sequence[Line], results: Collection[Node] = ()) -> list[str]:
    """The lines as rows of an `aligned` block; the first step of a loop says which steps there are.

    Of `results` the name is that of the derivative.
    """
    rows: list[str] = []
    steps = ""
    for line in lines:
        if line.heads is not None:
            steps = _which_steps(line.heads)
        else:
            rows.append(_row(line, line.node in results) + steps)
            steps = ""
    return rows


def _which_steps(loop: Loop) -> str:
    first, last = map(latex_size, loop.span)
    return rf" \quad {loop.letter} = {first}, \dots, {last}"


def _row(line: Line, is_result: bool) -> str:
    if line.name is None:
        return f"&{line.expression}"
    name, of = line.name, line.name.removeprefix(_D)
    if is_result and of != name and not of.startswith(_D):
        loss = latex_name(provenance.loss_of(line.node))
        name = rf"\frac{{\partial {loss}}}{{\partial {of}}}"
    return f"{name} &= {line.expression}"
