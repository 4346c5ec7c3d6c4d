"""Kernels around a product: the scheduled template where it fits, else plain loops."""

from __future__ import annotations

from chainrule.ir.loop import Apply, Get, Literal, Local, Set, Value
from chainrule.ir.node import Index, Stmts, for_each
from chainrule.ir.size import Dim
from chainrule.loops.builder import Builder
from chainrule.loops.contract import Contraction, contraction_loops, packed_size
from chainrule.loops.layout import ContractLayout, letter_sizes
from chainrule.ops.contract import Contract


def product_loops(b: Builder) -> Stmts:
    """One product, with the maps that follow it in its epilogue."""
    layout = ContractLayout.of(b.kernel)
    return _plain(b) if layout is None else _scheduled(b, layout)


def _scheduled(b: Builder, layout: ContractLayout) -> Stmts:
    node, rest = b.kernel.anchor, b.kernel.nodes[1:]
    first, second = (b.reader(i) for i in layout.order(node.inputs))

    def epilogue(m: Dim, n: Dim, acc: Value) -> Stmts:
        b.values[node] = acc
        index = layout.out(m, n)
        return (*b.compute(rest, index, True), *b.store([node, *rest], index))

    contraction = Contraction(
        layout.groups,
        layout.m,
        layout.n,
        layout.k,
        lambda m, k: first(layout.first(m, k)),
        lambda k, n: second(layout.second(k, n)),
        node.type.dtype,
        epilogue,
    )
    size = packed_size(contraction, b.target)
    packed = b.workspace(node, size) if size != 0 else None
    return contraction_loops(contraction, b.target, packed)


def _plain(b: Builder) -> Stmts:
    """A product whose axes no template takes: one sum of products an element."""
    node, rest = b.kernel.anchor, b.kernel.nodes[1:]
    op, dtype = node.op, node.type.dtype
    assert isinstance(op, Contract)
    sizes = letter_sizes(node)
    x, y = (b.reader(i) for i in node.inputs)
    acc = Local("acc", dtype)

    def element(index: Index) -> Stmts:
        at = dict(zip(op.out, index, strict=True))

        def add(k: Index) -> Stmts:
            full = at | dict(zip(op.summed, k, strict=True))
            left, right = x(tuple(full[c] for c in op.a)), y(tuple(full[c] for c in op.b))
            if dtype.is_float:
                return (Set(acc, (), Apply("fma", (left, right, Get(acc)), dtype)),)
            term = Apply("mul", (left, right), dtype)
            return (Set(acc, (), Apply("add", (Get(acc), term), dtype)),)

        b.values[node] = Get(acc)
        return (
            Set(acc, (), Literal(0, dtype)),
            *for_each(tuple(sizes[c] for c in op.summed), add, "k"),
            *b.compute(rest, index, False),
            *b.store([node, *rest], index),
        )

    return (acc, *for_each(node.type.shape, element))
