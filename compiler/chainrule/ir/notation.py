"""How an operation is written: templates for text and LaTeX, with binding strengths.

`{0}`, `{1}` stand for the operands. A result that binds weaker than its place asks for is put in
parentheses. In a template the numbers of `operands` say how strongly each operand must bind. An op
that is written as the bare `{0}` is not seen at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainrule.records import dataclass

if TYPE_CHECKING:
    from chainrule.ir.node import Node

# From weak to strong: a = b, a < b, a + b, a @ b, a * b, -a, a**b, an atom such as f(a) or a name.
# A product of matrices binds weaker than one of elements: `(a @ b) ⊙ c` says which is which.
NONE, COMPARE, ADD, MATMUL, MULTIPLY, NEGATE, POWER, ATOM = range(8)


@dataclass(frozen=True)
class Notation:
    """`text` and `latex` templates, how strongly the result binds, and what the operands need.

    `latex_binds` and `latex_operands` say so where LaTeX differs: a fraction needs no parentheses.
    `shown` are the nodes that the holes stand for, where they are not the op's own operands.
    `signs` are the holes of which no more matters than whether they are above 0.
    """

    text: str
    latex: str
    binds: int = ATOM
    operands: tuple[int, ...] = ()
    latex_binds: int | None = None
    latex_operands: tuple[int, ...] | None = None
    shown: tuple[Node, ...] | None = None
    signs: tuple[int, ...] = ()


def call(name: str, count: int, latex: str | None = None) -> Notation:
    """`name(a, b)`, and in LaTeX an upright function name."""
    holes = ", ".join(f"{{{i}}}" for i in range(count))
    tex = latex or rf"\operatorname{{{name}}}".replace("_", r"\_").replace("{", "{{").replace(
        "}", "}}"
    )
    return Notation(f"{name}({holes})", rf"{tex}\left({holes}\right)")


def infix(
    symbol: str, latex: str, binds: int, left: int | None = None, right: int | None = None
) -> Notation:
    """`a symbol b`; by default both operands may bind as strongly as the result."""
    operands = (binds if left is None else left, binds if right is None else right)
    return Notation(f"{{0}} {symbol} {{1}}", f"{{0}} {latex} {{1}}", binds, operands)
