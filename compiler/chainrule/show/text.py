"""Readable mathematics as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.node import Node
from chainrule.show.page import Line, arrange, write


def text(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """An expression as named bindings and then the result, one `name = expression` a line.

        h1 = relu(x @ W1 + b1)
        z2 = h1 @ W2 + b2
        dz2 = (softmax(z2) - onehot(y)) / batch
        dW2 = h1ᵀ @ dz2

    What a loop does at each step t stands before the rest: `h[t] = tanh(x[t] @ W + h[t-1] @ U)`.
    `names` are names to use in place of those the nodes have.
    """
    return texts([node], names)


def texts(nodes: Sequence[Node], names: Mapping[Node, str] | None = None) -> str:
    """Several expressions as one text, with the bindings they share."""
    page = arrange(nodes, names)
    loops = {n.op.family: n for n in page.order if n.op.family is not None}
    steps = [line for node in loops.values() for line in _step(node)]
    return "\n".join([*steps, *map(_line, write(page))])


def _line(line: Line) -> str:
    return f"{line.name} = {line.expression}" if line.name else line.expression


def _step(loop: Node) -> list[str]:
    """What a loop does at each step, one `name[t] = expression` a line."""
    steps, names = loop.op.recurrence(*loop.inputs)
    called = {node: name for name, node in steps.items()}
    return [_line(line) for line in write(arrange(list(called), {**names, **called}))]
