"""Tensors of known shapes, entry by entry, in any algebra of scalars: SymPy's, or our own nodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import reduce
from itertools import product
from typing import Any, Protocol

import numpy as np

from chainrule.errors import CompileError
from chainrule.ir.graph import walk
from chainrule.ir.loop import Apply, Get, IndexValue, Literal, Local, Value
from chainrule.ir.node import Array, Index, Node, rebuild
from chainrule.ir.size import Dim, known
from chainrule.ir.types import DType
from chainrule.ops.contract import Contract
from chainrule.ops.scan import Scan


class Algebra(Protocol):
    """What scalars are made of. Entries are of any kind that the algebra understands."""

    def number(self, value: float | int | bool, dtype: DType) -> Any: ...

    def index(self, dim: Dim, dtype: DType) -> Any: ...

    def call(self, fn: str, args: Sequence[Any], dtype: DType) -> Any: ...


def spelled_out(roots: Sequence[Node]) -> list[Node]:
    """The roots with each composite replaced by its definition."""
    roots = list(roots)
    while any(n.op.composite for n in walk(roots)):
        memo: dict[Node, Node] = {}
        for node in walk(roots):
            inputs = [memo[i] for i in node.inputs]
            defined = node.op.composite
            memo[node] = node.op.definition(*inputs) if defined else rebuild(node, inputs)
        roots = [memo[r] for r in roots]
    return roots


def entries(roots: Sequence[Node], leaves: Mapping[Node, Array], algebra: Algebra) -> list[Array]:
    """For each root the array of its entries, given those of the leaves.

    Raises CompileError where a size is not known or an op has no form entry by entry.
    """
    values: dict[Node, Array] = dict(leaves)
    loops: dict[Hashable, list[Array]] = {}
    for node in walk(roots, stop=values.__contains__):
        if node not in values:
            if any(not isinstance(d, int) for d in node.shape):
                raise CompileError(f"entries need known sizes: {node!r}")
            if isinstance(node.op, Scan):
                key = (node.op.family, node.inputs)
                if key not in loops:
                    loops[key] = _steps(node.op, [values[i] for i in node.inputs], algebra)
                values[node] = loops[key][node.op.output]
                continue
            values[node] = _entries(node, [values[i] for i in node.inputs], algebra)
    return [values[r] for r in roots]


def _entries(node: Node, inputs: Sequence[Array], algebra: Algebra) -> Array:
    op, dtype = node.op, node.dtype
    if isinstance(op, Contract):
        return _contraction(op, node, inputs, algebra)
    if combine := getattr(op, "combine", None):
        return _fold(combine, op.axes, inputs[0], dtype, algebra)  # type: ignore[attr-defined]
    try:
        return (
            _moved(node, inputs, algebra) if _only_moves(node) else _by_body(node, inputs, algebra)
        )
    except (NotImplementedError, TypeError, IndexError, AssertionError):
        raise CompileError(f"{op.name} has no form entry by entry: {node!r}") from None


def _steps(op: Scan, inputs: Sequence[Array], algebra: Algebra) -> list[Array]:
    """Every result of a loop, one step after the other."""
    body = op.body_of_step
    (length,) = known((op.length,))
    count, end = len(body.carries), len(body.carries) + len(body.slices)
    roots = spelled_out(body.roots)
    carried, constants = list(inputs[:count]), list(inputs[end:])
    stacks = [np.empty((length, *known(n.type.shape)), object) for n in (*body.ys, *body.carries)]
    for t in reversed(range(length)) if op.reverse else range(length):
        rows = [np.asarray(stack[t], object) for stack in inputs[count:end]]
        given = dict(zip(body.leaves, (*carried, *rows, *constants), strict=True))
        found = entries(roots, given, algebra)
        for stack, row in zip(stacks, (*found[count:], *carried), strict=True):
            stack[t] = row[()] if row.ndim == 0 else row
        carried = found[:count]
    return [*carried, *stacks]


def _only_moves(node: Node) -> bool:
    return node.op.role in ("nest", "alias")


def _moved(node: Node, inputs: Sequence[Array], algebra: Algebra) -> Array:
    """What an op does that moves entries and computes nothing, done by NumPy."""
    moved = np.asarray(node.op.ref(*inputs), object)
    for index, entry in np.ndenumerate(moved):
        if isinstance(entry, int):
            moved[index] = algebra.number(entry, node.dtype)
    return moved


def _by_body(node: Node, inputs: Sequence[Array], algebra: Algebra) -> Array:
    locals_ = [Local(f"in{k}", i.dtype) for k, i in enumerate(node.inputs)]
    readers = [_reader(local) for local in locals_]
    arrays = {local.name: array for local, array in zip(locals_, inputs, strict=True)}

    def read(name: str, index: Index) -> Any:
        return arrays[name][known(index)]

    def at(index: Index) -> Any:
        return spell(node.op.body(index, node.type, *readers), read, algebra)

    return filled(node, at)


def _reader(local: Local) -> Callable[[Index], Value]:
    return lambda index: Get(local, index)


def spell(value: Value, read: Callable[[str, Index], Any], algebra: Algebra) -> Any:
    """A scalar value of the loop grammar in an algebra; `read` gives what it reads of an input."""
    if isinstance(value, Get):
        return read(value.local.name, value.index)
    if isinstance(value, Literal):
        return algebra.number(value.value, value.dtype)
    if isinstance(value, IndexValue):
        return algebra.index(value.index, value.dtype)
    if isinstance(value, Apply):
        args = [spell(a, read, algebra) for a in value.args]
        return algebra.call(value.fn, args, value.dtype)
    raise CompileError(f"{type(value).__name__} has no form entry by entry")


def filled(node: Node, at: Callable[[tuple[int, ...]], Any]) -> Array:
    """The array of a node's shape with `at(index)` at each index."""
    shape = known(node.shape)
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = at(index)
    return array


def _contraction(op: Contract, node: Node, inputs: Sequence[Array], algebra: Algebra) -> Array:
    x, y = inputs
    sizes = dict(zip(op.a + op.b, x.shape + y.shape, strict=True))

    def at(index: tuple[int, ...]) -> Any:
        terms = []
        for summed in product(*(range(sizes[c]) for c in op.summed)):
            k = dict(zip(op.out + op.summed, index + summed, strict=True))
            pair = x[tuple(k[c] for c in op.a)], y[tuple(k[c] for c in op.b)]
            terms.append(algebra.call("mul", pair, node.dtype))
        return _total("add", terms, node.dtype, algebra)

    return filled(node, at)


def _fold(fn: str, axes: tuple[int, ...], x: Array, dtype: DType, algebra: Algebra) -> Array:
    kept = [a for a in range(x.ndim) if a not in axes]
    rows = np.transpose(x, (*kept, *axes)).reshape(*(x.shape[a] for a in kept), -1)
    out = np.empty(rows.shape[:-1], object)
    for index in np.ndindex(out.shape):
        out[index] = _total(fn, list(rows[index]), dtype, algebra)
    return out


def _total(fn: str, terms: Sequence[Any], dtype: DType, algebra: Algebra) -> Any:
    if not terms:
        return algebra.number(0, dtype)
    return reduce(lambda a, b: algebra.call(fn, (a, b), dtype), terms)
