"""A graph as text: one typed assignment a line, in an order that depends on the graph alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from chainrule.errors import Location
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.size import Size
from chainrule.ir.types import DType

#: Bytes of an attribute that are worth reading.
_LONG = 40


def graph_text(graph: Graph) -> str:
    """Every node as `%3 = contract[ab,bc->ac] %x, %W1 : f32[batch, 128]   # h1  mlp.py:14`.

    Leaves stand first by their labels; outputs and updates end it. The body of a loop stands,
    indented, below the first node that is a result of it.
    """
    nodes = graph.nodes
    names = _names(nodes)
    rows = [(_assignment(n, names), _comment(n)) for n in nodes]
    width = min(max((len(code) for code, _ in rows), default=0), 72)
    lines: list[str] = []
    shown: set[Graph] = set()
    for node, (code, note) in zip(nodes, rows, strict=True):
        lines.append(f"{code:<{width}}   # {note}" if note else code)
        for body in node.op.bodies():
            if body not in shown:
                shown.add(body)
                lines += [f"    {line}" for line in graph_text(body).splitlines()]
    lines += [f"return {', '.join(names[o] for o in graph.outputs)}"] if graph.outputs else []
    lines += [f"update {names[leaf]} <- {names[value]}" for leaf, value in graph.updates]
    return "\n".join(lines)


def _names(nodes: Sequence[Node]) -> dict[Node, str]:
    """%label for leaves, %0, %1, ... for the rest; a label that is taken gets its leaf's number."""
    names: dict[Node, str] = {}
    taken: set[str] = set()
    count = 0
    for node in nodes:
        label = getattr(node.op, "label", None)
        if label is None:
            names[node], count = f"%{count}", count + 1
            continue
        name = f"%{label}" if not label.isdigit() else f"%'{label}'"
        while name in taken:
            name += "'"
        names[node] = name
        taken.add(name)
    return names


def _assignment(node: Node, names: dict[Node, str]) -> str:
    operands = ", ".join(names[i] for i in node.inputs)
    shown = attributes(node)
    call = f"{node.op.name}[{shown}]" if shown else str(node.op.name)
    return f"{names[node]} = {call}{' ' if operands else ''}{operands} : {node.type}"


def attributes(node: Node) -> str:
    """What an op is besides its name, on a few characters: `ab,bc->ac` or `axes=(0,)`."""
    op = node.op
    if op.name != getattr(type(op), "name", None):
        return ""
    if hasattr(op, "spec"):
        return str(op.spec)
    if hasattr(op, "value"):
        return str(op.value)
    shown: list[str] = []
    fields: Any = dataclasses.fields(op) if dataclasses.is_dataclass(op) else ()
    for field in fields:
        value = getattr(op, field.name)
        if field.repr and value != node.type:
            shown.append(f"{field.name}={_show(value)}")
    return ", ".join(shown)


def _show(value: object) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_show(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, (Size, DType)):
        return str(value)
    text = repr(value)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _comment(node: Node) -> str:
    name, where = provenance.name_of(node), provenance.line_of(node)
    label = name if name is not None and name != getattr(node.op, "label", None) else None
    return "  ".join(part for part in (label, _place(where)) if part)


def _place(where: Location | None) -> str:
    return str(where).split("    ")[0] if where else ""
