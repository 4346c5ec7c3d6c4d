"""How an operation is written: templates for text and LaTeX, with binding strengths.

`{0}`, `{1}` stand for the operands. A result that binds weaker than its place asks for is put in
parentheses. In a template the numbers of `operands` say how strongly each operand must bind.
"""

from __future__ import annotations

from dataclasses import dataclass

# From weak to strong: a = b, a < b, a + b, a * b, -a, a @ b, a**b, an atom such as f(a) or a name.
NONE, COMPARE, ADD, MULTIPLY, NEGATE, MATMUL, POWER, ATOM = range(8)


@dataclass(frozen=True)
class Notation:
    """`text` and `latex` templates, how strongly the result binds, and what the operands need."""

    text: str
    latex: str
    binds: int = ATOM
    operands: tuple[int, ...] = ()

    def operand(self, i: int) -> int:
        """The binding strength operand `i` needs to stand without parentheses."""
        return self.operands[i] if i < len(self.operands) else NONE


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
