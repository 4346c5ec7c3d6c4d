"""Names on a page: the user's, z1, h2, p1 by what a part is, and dz1 for the cotangent of z1.

The cotangent of a part that has no name, and would get none but t, is g1, g2, ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.size import symbols_of

#: How deep in a sum its products are looked for.
TERMS = 3
Parts = Mapping[Node, Sequence[Node]]


def name_all(
    order: Sequence[Node],
    parts: Parts,
    bound: Collection[Node],
    given: Mapping[Node, str],
    roots: Sequence[Node],
    inside: Collection[Node] = (),
) -> dict[Node, str]:
    """A name for each node that is bound, no two alike, but for a result that nobody named.

    Forward values are numbered first, in the order they are computed; so z2 is the same part of the
    same net on every page. Cotangents are named after them. Of what is `inside` a loop only what is
    bound has a number.
    """
    taken = {n.op.notation().text for n in order if not n.inputs} | _sizes(order)
    taken |= set(given.values())
    named = {n: provenance.user_name_of(n) for n in order if n.op.role == "leaf"}
    names = {n: name for n, name in named.items() if name is not None} | dict(given)
    taken |= set(names.values())
    counts: dict[str, int] = {}
    for root in roots:
        name = provenance.name_of(root)
        if name is not None and root in bound and root not in names:
            names[root] = _claim(name, taken, counts)
    used = {p for n in order for p in parts[n]}
    wanted = [n for n in order if n in bound and n not in names]
    wanted = [n for n in wanted if n in used or provenance.name_of(n) or len(roots) > 1]
    for node in (n for n in wanted if provenance.user_name_of(n)):
        names[node] = _claim(provenance.name_of(node) or "t", taken, counts)
    numbered, sums = _forward(order, parts, wanted)
    numbered = [n for n in numbered if n not in inside or n in bound]
    _number([n for n in numbered if n in bound or _letter(n, sums) != "t"], sums, names, taken)
    for node in wanted:
        if node not in names:
            base, depth = _origin(node)
            stem = provenance.user_name_of(base) or names.get(base)
            letter = "g" if depth else "t"
            own = provenance.differential(stem, depth) if stem else _next(letter, taken, counts)
            names[node] = _claim(own, taken, counts)
    return names


def _sizes(order: Iterable[Node]) -> set[str]:
    return {s for n in order if not n.inputs for d in n.shape for s in symbols_of(d)}


def _forward(
    order: Sequence[Node], parts: Parts, wanted: Sequence[Node]
) -> tuple[list[Node], set[Node]]:
    """The forward values that need a number: the bound, those a bound cotangent is of, and every
    sum of products that something else reads; and which are sums of products.
    """
    needed = {_origin(n)[0] for n in wanted}
    sums: set[Node] = set()
    read: set[Node] = set()
    for node in order:
        inside = [p for p in parts[node] if p in sums]
        if node.op.role == "contract" or (node.op.letter == "z" and inside):
            sums.add(node)
        if node.op.letter != "z":
            read.update(inside)
    here = set(order)
    sums.update(n for n in needed if n not in here and _adds_products(n))
    numbered = [n for n in order if n in needed or n in read]
    numbered += [n for n in dict.fromkeys(map(_first, wanted)) if n not in here]
    return [n for n in numbered if provenance.cotangent_of(n) is None], sums


def _adds_products(node: Node) -> bool:
    """Whether a node that is not on the page is a sum with a product in it."""
    terms = [node]
    for _ in range(TERMS):
        terms = [i for t in terms for i in ((t,) if t.op.role == "contract" else t.inputs)]
        if node.op.letter == "z" and any(t.op.role == "contract" for t in terms):
            return True
    return False


def _first(node: Node) -> Node:
    return _origin(node)[0]


def _origin(node: Node) -> tuple[Node, int]:
    """The forward value that a node is a cotangent of, of some order; itself where of none."""
    depth = 0
    while (of := provenance.cotangent_of(node)) is not None:
        node, depth = of, depth + 1
    return node, depth


def _number(
    nodes: Iterable[Node], sums: Collection[Node], names: dict[Node, str], taken: set[str]
) -> None:
    """Letters with numbers, for those that have no name. z is for sums of products and scalars."""
    counts: dict[str, int] = {}
    for node in nodes:
        if node in names or provenance.user_name_of(node) or not node.inputs:
            continue
        letter = _letter(node, sums)
        number = counts.get(letter, 0) + 1
        while f"{letter}{number}" in taken:
            number += 1
        counts[letter] = number
        names[node] = f"{letter}{number}"
        taken.add(names[node])


def _letter(node: Node, sums: Collection[Node]) -> str:
    is_plain = node.op.letter == "z" and node.type.rank and node not in sums
    return "t" if is_plain else node.op.letter


def _claim(name: str, taken: set[str], counts: dict[str, int]) -> str:
    """The name, or where it is taken the name with the first number that is not.

    `counts` are the last numbers that were taken so, from which the search goes on.
    """
    new = name if name not in taken else _numbered(f"{name}_", 2, taken, counts)
    taken.add(new)
    return new


def _next(letter: str, taken: set[str], counts: dict[str, int]) -> str:
    return _numbered(letter, 1, taken, counts)


def _numbered(stem: str, first: int, taken: set[str], counts: dict[str, int]) -> str:
    number = counts.get(stem, first - 1) + 1
    while f"{stem}{number}" in taken:
        number += 1
    counts[stem] = number
    return f"{stem}{number}"
