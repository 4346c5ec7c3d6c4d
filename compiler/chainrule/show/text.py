"""Readable mathematics as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.ir.node import Node
from chainrule.show.page import arrange, write


def text(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """An expression as named bindings and then the result, one `name = expression` a line.

        h1 = relu(x @ W1 + b1)
        z2 = h1 @ W2 + b2
        dz2 = (softmax(z2) - onehot(y)) / batch
        dW2 = h1ᵀ @ dz2

    `names` are names to use in place of those the nodes have.
    """
    return texts([node], names)


def texts(nodes: Sequence[Node], names: Mapping[Node, str] | None = None) -> str:
    """Several expressions as one text, with the bindings they share."""
    lines = write(arrange(nodes, names))
    return "\n".join(f"{n.name} = {n.expression}" if n.name else n.expression for n in lines)
