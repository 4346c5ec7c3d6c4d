"""Readable mathematics as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.node import Node
from chainrule.show.lines import write
from chainrule.show.page import Line, arrange


def text(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """An expression as named bindings and then the result, one `name = expression` a line.

        h1 = relu(x @ W1 + b1)
        z2 = h1 @ W2 + b2
        dz2 = (softmax(z2) - onehot(y)) / batch
        dW2 = h1ᵀ @ dz2

    A loop stands as it begins, and below that its steps; `h` alone is then the stack of all h[t]:

        h[-1] = zeros((batch, 16))
        for t = 0..time-1:
            h[t] = tanh(x[t] @ W + h[t-1] @ U)

    `names` are names to use in place of those the nodes have.
    """
    return texts([node], names)


def texts(nodes: Sequence[Node], names: Mapping[Node, str] | None = None) -> str:
    """Several expressions as one text, with the bindings they share."""
    return "\n".join(map(line_text, write(arrange(nodes, names))))


def line_text(line: Line) -> str:
    """A line as text, indented where it is a step of a loop."""
    indent = "    " * line.inside
    return f"{indent}{line.name} = {line.expression}" if line.name else indent + line.expression
