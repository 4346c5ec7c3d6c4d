"""Kernels without folds: maps, copies into leaves, checks, and the loops an op brings along."""

from __future__ import annotations

from chainrule.ir.loop import Apply, Check, IndexValue, Literal, Load, Note, Store, Value
from chainrule.ir.node import Index, Stmts, for_each, within
from chainrule.ir.types import bool_, int64
from chainrule.loops.builder import Builder, is_straight, vectors
from chainrule.loops.parts import shared_nest, split_outermost
from chainrule.loops.scattered import adds_by_columns
from chainrule.ops.layout import ravel
from chainrule.ops.scan import Scan
from chainrule.schedule.kernel import Test


def map_loops(b: Builder) -> Stmts:
    """Every element by itself; of what is patched in place, those that differ."""
    nodes = b.kernel.nodes
    if b.kernel.patch is not None:
        return patch_loops(b)

    def body(index: Index) -> Stmts:
        return (*b.compute(nodes, index, bool(index)), *b.store(nodes, index))

    nest = vectors(b.kernel.space, is_straight(nodes, b.kernel), body)
    return split_outermost(nest, len(b.kernel.space))


def patch_loops(b: Builder) -> Stmts:
    """Of a result that lies in the place of an operand, what differs."""
    node = b.kernel.anchor
    types, readers = [i.type for i in node.inputs], [b.reader(i) for i in node.inputs]
    return shared_nest(node.op.patch(types, readers[0], *readers), len(b.kernel.space))


def copy_loops(b: Builder) -> Stmts:
    """A value put into the leaf it updates."""
    ((value, leaf),) = b.kernel.writes.items()
    read, write, shape = b.reader(value), b.buffers[leaf], leaf.type.shape
    return split_outermost(
        vectors(shape, True, lambda i: (Store(write, ravel(i, shape), read(i)),)), 1
    )


def scan_loops(b: Builder) -> Stmts:
    """None of its own: the entry calls the kernels inside, once for each step."""
    op = b.kernel.anchor.op
    assert isinstance(op, Scan)
    order = ", from the last" if op.reverse else ""
    return (Note(f"for each of {op.length} slices{order}: the kernels inside"),)


def check_loops(b: Builder) -> Stmts:
    """Each element tested; in row-major order, so that the first bad one is met first."""
    test = b.kernel.test
    assert test is not None
    read = b.reader(test.node)
    return for_each(b.kernel.space, lambda i: (Check(_holds(test, read(i)), test.code),))


def _holds(test: Test, value: Value) -> Value:
    if test.bound is None:
        if value.dtype != value.dtype.wide:
            value = Apply("cast", (value,), value.dtype.wide)
        infinity = Literal(float("inf"), value.dtype)
        return Apply("lt", (Apply("abs", (value,), value.dtype), infinity), bool_)
    at = value if value.dtype == int64 else Apply("cast", (value,), int64)
    least, above = (IndexValue(end, int64) for end in within(test.bound))
    low, high = Apply("ge", (at, least), bool_), Apply("lt", (at, above), bool_)
    return Apply("and_", (low, high), bool_)


def own_loops(b: Builder) -> Stmts:
    """The op's own loops on a CPU."""
    return adds_by_columns(nest_loops(b))


def nest_loops(b: Builder) -> Stmts:
    """The op's own loops."""
    node = b.kernel.anchor
    buffer, shape = b.buffers[node], node.type.shape
    types = [i.type for i in node.inputs]
    work = [b.scratch_of(of, size) for of, size in node.op.workspace(types)]
    return node.op.nest(
        types,
        lambda index, value: Store(buffer, ravel(index, shape), value),
        lambda index: Load(buffer, ravel(index, shape)),
        *[b.reader(i) for i in node.inputs],
        *[lambda index, w=w: Load(w, index[0]) for w in work],
    )
