"""Writes docs/rules.md from the rules themselves: `python docs/rules.py`. A test compares them."""

from __future__ import annotations

from pathlib import Path

from chainrule.rewrite.canonical import CANONICAL
from chainrule.rewrite.lookup import LOOKUPS
from chainrule.rewrite.lower import LOWERING
from chainrule.rewrite.outward import OUTWARD
from chainrule.rewrite.recognition import RECOGNITION
from chainrule.rewrite.rule import AnyRule, Rule, Rules
from chainrule.rewrite.simplify import SIMPLIFY
from chainrule.rewrite.stability import STABILITY

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# The rules

Every rule by which expressions are rewritten, in the order in which they are tried. This page is
written by `python docs/rules.py`; [Add a rule](add-a-rule.md) says how a rule is read, and how one
is added. A test evaluates both sides of each over its domain, with NaN too: no rule hides one.

In a rule `x`, `y`, `z` and `w` are any expressions. In those about axes `sum`, `max` and `mean`
take some axes away, `repeat` puts the same ones back, and `softmax`, `var`, `layer_norm`, ... are
along them. Operands of `+`, `*` and the like match in either order. A `c` or `d` is a number, of
the kind that the rule can work with: one above 0 where its logarithm is taken, of moderate size
where numbers are multiplied.
"""
SETS: dict[str, tuple[str, Rules]] = {
    "Canonical forms": ("One spelling for what can be spelled in several ways.", CANONICAL),
    "Stable forms": ("What overflows or cancels, and what takes its place.", STABILITY),
    "Recognised forms": ("What is spelled out by hand, and the function it is.", RECOGNITION),
    "Numbers outward": ("After a derivative: what is divided by, is divided by last.", OUTWARD),
    "Simple forms": ("After a derivative: what the chain rule spelled at length.", SIMPLIFY),
    "Rows looked up": (
        "Before products are ordered: a table is multiplied, not its rows.",
        LOOKUPS,
    ),
    "Forms for loops": ("The last forms, from which loops are made.", LOWERING),
}


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for title, (about, rules) in SETS.items():
        data = [r for r in rules.all if isinstance(r, Rule)]
        code = [r for r in rules.all if not isinstance(r, Rule)]
        parts.append(f"## {title}\n\n{about}\n")
        if data:
            parts.append(
                "\n".join(["| rule | given | becomes |", "|---|---|---|", *map(row, data)])
            )
            parts.append("")
        if code:
            parts.append("\n".join(map(item, code)))
            parts.append("")
    return "\n".join(parts)


def row(rule: Rule) -> str:
    """A rule in formulas as a row of its table."""
    given = f"`{rule.lhs}`".replace("|", r"\|")
    numbers = [f"`{n}` {'from 0 to 1' if v is None else f'≈ {v:.6g}'}" for n, v in rule.numbers]
    where = f", {', '.join(numbers)}" if numbers else ""
    return f"| {rule.name} | {given}{where} | `{rule.rhs}` |"


def item(rule: AnyRule) -> str:
    """A rule in code: what its docstring says of it."""
    assert not isinstance(rule, Rule)
    text = " ".join((rule.function.__doc__ or "").split())
    return f"- {rule.name}: {text[:1].lower()}{text[1:]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
