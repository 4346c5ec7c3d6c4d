"""The subscripts of einsum: letters for axes, read as NumPy reads them."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim
from chainrule.ir.types import int64
from chainrule.ops import build
from chainrule.ops.contract import transpose
from chainrule.ops.gather import Gather
from chainrule.ops.source import Iota

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DOTS = "..."


def read(text: str, nodes: Sequence[Node]) -> tuple[list[str], str, list[Node]]:
    """The letters of each operand and of the result, and the operands they are of.

    Afterwards each letter stands once in an operand, with one size in all: "..." has become
    letters, a letter that stood twice a diagonal, and an axis of size 1 beside a longer one is
    gone. Raises ShapeError for anything that does not fit.
    """
    inputs, arrow, out = text.replace(" ", "").partition("->")
    parts = inputs.split(",")
    if len(parts) != len(nodes) or not nodes:
        raise ShapeError(f"einsum: {text!r} is of {len(parts)} operands, not {len(nodes)}")
    if not arrow:  # NumPy's rule: what broadcasts, then what stands once, in order of the alphabet
        letters = inputs.replace(_DOTS, "").replace(",", "")
        out = _DOTS * (_DOTS in inputs) + "".join(
            sorted(c for c in set(letters) if letters.count(c) == 1)
        )
    for part in (*parts, out):
        rest = part.replace(_DOTS, "", 1)
        if strange := [c for c in rest if c not in LETTERS]:
            raise ShapeError(f"einsum names axes by letters, not by {strange[0]!r}: {text!r}")
    if twice := [c for c in out.replace(_DOTS, "") if out.count(c) > 1]:
        raise ShapeError(f"einsum: {twice[0]!r} stands twice in the result: {text!r}")
    if missing := [c for c in out.replace(_DOTS, "") if c not in inputs]:
        raise ShapeError(f"einsum: {missing[0]!r} of the result is in no operand: {text!r}")
    parts, out = _without_dots(text, parts, out, nodes)
    pairs = [_diagonals(part, node) for part, node in zip(parts, nodes, strict=True)]
    return _fitted(text, pairs, out)


def _without_dots(
    text: str, parts: Sequence[str], out: str, nodes: Sequence[Node]
) -> tuple[list[str], str]:
    """Letters in the place of "...", the same from the last axis on."""
    hidden = [n.type.rank - len(p.replace(_DOTS, "")) for p, n in zip(parts, nodes, strict=True)]
    free = [c for c in LETTERS if c not in text]
    most = max(hidden)
    for part, node, count in zip(parts, nodes, hidden, strict=True):
        if count < 0 or (count and _DOTS not in part) or most > len(free):
            raise ShapeError(f"einsum: {part!r} does not fit {node.type}")
    last = "".join(free[:most])
    found = [p.replace(_DOTS, last[most - count :]) for p, count in zip(parts, hidden, strict=True)]
    return found, out.replace(_DOTS, last)


def _diagonals(part: str, node: Node) -> tuple[str, Node]:
    """Each letter once: where it stood twice, what lies on the diagonal."""
    while len(set(part)) < len(part):
        second = next(j for j, c in enumerate(part) if c in part[:j])
        node = _diagonal(node, part.index(part[second]), second)
        part = part[:second] + part[second + 1 :]
    return part, node


def _diagonal(x: Node, first: int, second: int) -> Node:
    """The elements whose indices along two axes, first < second, are equal; along the first."""
    size = x.type.shape[first]
    if size != x.type.shape[second]:
        raise ShapeError(f"a diagonal needs axes of one size: {first} and {second} of {x.type}")
    along = apply(Iota((size,), 0, int64))
    front = apply(Gather((first, second), (size, size), 1), x, along, along)
    return transpose(front, [*range(1, first + 1), 0, *range(first + 1, front.type.rank)])


def _fitted(
    text: str, pairs: Sequence[tuple[str, Node]], out: str
) -> tuple[list[str], str, list[Node]]:
    """The operands without axes of size 1 that stand beside longer ones; all sizes agree."""
    sizes: dict[str, Dim] = {}
    for part, node in pairs:
        for c, size in zip(part, node.type.shape, strict=True):
            if sizes.setdefault(c, size) == 1:
                sizes[c] = size
            if size not in (1, sizes[c]):
                shown = ", ".join(str(n.type) for _, n in pairs)
                raise ShapeError(
                    f"einsum {text!r} does not fit {shown}", f"{c!r} is {sizes[c]} and {size}"
                )
    parts, nodes = [], []
    for part, node in pairs:
        shape = node.type.shape
        gone = [i for i, c in enumerate(part) if shape[i] == 1 and sizes[c] != 1]
        parts.append("".join(c for i, c in enumerate(part) if i not in gone))
        nodes.append(build.squeeze(node, gone))
    return parts, out, nodes
