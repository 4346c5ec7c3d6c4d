"""A small net in scalars, as a lecture writes one neuron: every weight by its own name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chainrule.autodiff.reverse import differentiate
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph, walk
from chainrule.ir.node import Array, Node
from chainrule.ir.size import Dim
from chainrule.ir.types import DType, TensorType
from chainrule.ops import build
from chainrule.ops.source import Leaf, full, leaf
from chainrule.rewrite.passes import stabilize
from chainrule.show.entries import entries, filled, spelled_out
from chainrule.show.lines import write
from chainrule.show.local import by_parts
from chainrule.show.page import Line, arrange

#: Entries of all leaves together that are still worth reading one by one.
SMALL = 100


def scalars(node: Node) -> str:
    """A net of known, small sizes spelled out: each value, then ∂L/∂w for each parameter's entry.

    Entry (i, j) of W is `Wij`, counted from 1. Without parameters the derivatives are those by
    every float that is fed; a node that is no scalar is spelled without derivatives. Raises
    CompileError where a size is not known or more than 100 numbers are fed.
    """
    (root,) = spelled_out([node])
    leaves = {n: _named_entries(n) for n in walk([root]) if isinstance(n.op, Leaf)}
    if sum(a.size for a in leaves.values()) > SMALL:
        raise CompileError(f"more than {SMALL} scalars are not spelled out: {node!r}")
    parts = [n for n in walk([root]) if n.inputs and provenance.user_name_of(n)]
    *arrays, values = entries([*parts, root], leaves, Scalars())
    for part, array in zip(parts, arrays, strict=True):
        _name_entries(part, array)
    results = list(values.flat)
    if node.type.rank or not node.dtype.is_float:
        return "\n".join(_lines(results, "y"))
    wanted = [w for n, array in leaves.items() if _is_wanted(n, leaves) for w in array.flat]
    return "\n".join(_with_gradients(results[0], wanted))


def _with_gradients(loss: Node, wanted: Sequence[Node]) -> list[str]:
    (stable,) = stabilize(Graph((loss,)), opaque=wanted).outputs
    derivation = differentiate([stable], [full(1, loss.dtype, ())], wanted)
    name = provenance.name_of(stable) or provenance.LOSS
    gradients = zip(wanted, derivation.gradients, strict=True)
    shown = {w: g for w, g in gradients if g is not None}
    within = {n: g for n, g in derivation.cotangents.items() if n not in shown}
    partials: dict[Node, str] = {}
    for n, g in (within | shown).items():
        if g.inputs and provenance.name_of(n) is not None:
            partials.setdefault(g, f"∂{name}/∂{provenance.name_of(n)}")
    partials = {g: partials[g] for g in walk(partials) if g in partials}
    local = by_parts(partials)
    given = {local[g]: partial for g, partial in partials.items() if local[g].inputs}
    known = {stable: name} if stable.inputs else {}
    forward: list[Line] = []
    if not given.keys().isdisjoint(walk([stable])):  # J = (ŷ - t)²/2 is not to be read off ∂J/∂ŷ
        forward = write(arrange([stable], known))
        known = {n.node: n.name for n in forward if n.name}
    page = arrange([stable, *local.values()], given | known, known if forward else ())
    written = [*forward, *(n for n in write(page) if not (forward and n.node in known))]
    lines = [f"{n.name} = {n.expression}" for n in written if n.name]
    for w, g in shown.items():
        partial = f"∂{name}/∂{provenance.name_of(w)}"
        value = local.get(g, g)
        if page.names.get(value) != partial:
            lines.append(f"{partial} = {page.names.get(value) or _alone(value)}")
    return lines


def _alone(node: Node) -> str:
    return write(arrange([node]))[-1].expression


def _is_wanted(node: Node, leaves: dict[Node, Array]) -> bool:
    kinds = {n.op.name for n in leaves}
    return node.dtype.is_float and (node.op.name == "parameter" or "parameter" not in kinds)


def _lines(results: Sequence[Node], name: str) -> Iterator[str]:
    names = {r: f"{name}{i}" for i, r in enumerate(results, 1) if r.inputs}
    page = arrange(results, {r: provenance.name_of(r) or n for r, n in names.items()})
    for line in write(page):
        yield f"{line.name} = {line.expression}" if line.name else line.expression


def _named_entries(node: Node) -> Array:
    """Leaves of rank 0 named after their places; a leaf of rank 0 stays itself."""
    op = node.op
    assert isinstance(op, Leaf)
    if any(not isinstance(d, int) for d in node.shape):
        raise CompileError(f"a net in scalars needs known sizes: {node!r}")
    scalar = TensorType(node.dtype, ())

    def entry(index: Sequence[int]) -> Node:
        return leaf(op.kind, _entry(op.label, index, node), scalar) if index else node

    return filled(node, entry)


def _entry(label: str, index: Sequence[int], node: Node) -> str:
    """`w1`, `W12`; with underscores where digits would run together."""
    places = [str(i + 1) for i in index]
    short = all(isinstance(d, int) and d < 10 for d in node.shape) or len(places) == 1
    digits = ("" if short else "_").join(places)
    return label + ("_" if label[-1:].isdigit() else "") + digits


def _name_entries(part: Node, array: Array) -> None:
    name = provenance.user_name_of(part) or ""
    for index, entry in np.ndenumerate(array):
        if entry.inputs:
            provenance.set_name(entry, _entry(name, index, part) if index else name)


class Scalars:
    """The algebra of our own nodes of rank 0."""

    def number(self, value: float | int | bool, dtype: DType) -> Node:
        """A number."""
        return full(value, dtype, ())

    def index(self, dim: Dim, dtype: DType) -> Node:
        """A size or an index, which is known here."""
        assert isinstance(dim, int)
        return full(dim, dtype, ())

    def call(self, fn: str, args: Sequence[Any], dtype: DType) -> Node:
        """An op of the table."""
        return build.cast(args[0], dtype) if fn == "cast" else build.call(fn, *args)
