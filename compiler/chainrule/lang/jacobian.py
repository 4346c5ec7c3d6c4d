"""Jacobians and Hessians: one cotangent after the other, in a loop that is compiled once.

Row i of a Jacobian is the product of the i-th basis vector with it, which reverse mode gives. The
rows are the slices of a scan: nothing is unrolled, so sizes may be symbolic, and what does not
depend on the basis vector, the forward pass above all, is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.errors import GradientError
from chainrule.ir import provenance
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, product
from chainrule.ir.types import TensorType, int64
from chainrule.lang.derive import _node, derive, flatten, gradients, mapped
from chainrule.lang.scan import scan
from chainrule.lang.tensor import Tensor
from chainrule.ops import build
from chainrule.ops.body import substituted
from chainrule.ops.cast import Cast
from chainrule.ops.index import OneHot
from chainrule.ops.layout import Reshape
from chainrule.ops.scan import Scan
from chainrule.ops.source import Iota, full, leaf, size_of


def jacobian(y: Tensor, x: Any) -> Any:
    """The derivative of each element of `y` by each of `x`: of shape `(*y.shape, *x.shape)`.

        J = cr.jacobian(cr.tanh(x @ W), x)

    `x` is a Tensor, or a list, tuple or dict of them, which gives like structure. Zeros where
    nothing depends. Raises GradientError for what is no float.
    """
    node = _node(y)
    return mapped(x, lambda nodes: rows(node, nodes))


def hessian(loss: Tensor, w: Any) -> Any:
    """The second derivatives of a scalar: of shape `(*w.shape, *w.shape)`.

    With a list, tuple or dict of tensors, that structure of rows of blocks, each row of the same
    structure: block [i][j], of shape `(*w[i].shape, *w[j].shape)`, is the Jacobian of the gradient
    by `w[i]` by `w[j]`. Zeros where nothing depends.
    """
    node, wrt = _node(loss), flatten(w)
    slopes = iter(gradients(node, wrt, "zeros"))

    def block(_: Tensor) -> Any:
        slope = next(slopes)
        return mapped(w, lambda nodes: rows(slope, nodes, "H"))

    return _each(w, block)


def rows(y: Node, wrt: Sequence[Node], name: str = "J") -> list[Node]:
    """The Jacobian of a node by each of others."""
    for node in (y, *wrt):
        if not node.type.dtype.is_float:
            raise GradientError(
                f"only floats have derivatives: {node!r}", "convert with .astype(...)"
            )
    seed = leaf("cotangent", "ct", y.type)
    if y.type.rank == 0:
        seed = full(1, y.type.dtype, ())
    found = derive([y], [seed], wrt).gradients
    there = [g for g in found if g is not None]
    stacks = iter(there if y.type.rank == 0 else _stacked(y.type, seed, there, name))
    return [
        full(0, n.type.dtype, (*y.type.shape, *n.type.shape))
        if g is None
        else _shaped(next(stacks), (*y.type.shape, *n.type.shape))
        for n, g in zip(wrt, found, strict=True)
    ]


def _stacked(of: TensorType, seed: Node, found: Sequence[Node], name: str) -> list[Node]:
    """Each of `found` with every basis vector in turn in the place of `seed`, stacked; a row of it
    prints by a name.
    """
    count = product(of.shape)

    def row(_: None, i: Tensor) -> tuple[None, list[Tensor]]:
        basis = _basis(of, i.node)
        return None, [Tensor(n) for n in substituted(found, {seed: basis})]

    _, stacks = scan(row, None, Tensor(apply(Iota((count,), 0, int64))))
    made = flatten(stacks)
    for node in made:
        if isinstance(node.op, Scan):
            provenance.set_name(node.op.body_of_step.ys[node.op.output], name)
    return made


def _basis(of: TensorType, i: Node) -> Node:
    """The tensor with a 1 at its i-th element, in row-major order, and 0 elsewhere."""
    if of.rank == 1:
        return apply(OneHot(of.shape[0], of.dtype), i)
    return apply(
        Cast(of.dtype), build.call("eq", _numbered(of.shape), build.broadcast(i, of.shape))
    )


def _numbered(shape: tuple[Dim, ...]) -> Node:
    """The number of each element, in row-major order."""
    total = apply(Iota(shape, len(shape) - 1, int64))
    for axis in reversed(range(len(shape) - 1)):
        step = build.broadcast(size_of(product(shape[axis + 1 :]), int64), shape)
        far = build.call("mul", apply(Iota(shape, axis, int64)), step)
        total = build.call("add", far, total)
    return total


def _shaped(node: Node, shape: tuple[Dim, ...]) -> Node:
    return node if node.type.shape == shape else apply(Reshape(shape), node)


def _each(structure: Any, function: Any) -> Any:
    """The structure with what a function makes of each of its Tensors."""
    if isinstance(structure, dict):
        return {k: _each(v, function) for k, v in structure.items()}
    if isinstance(structure, list | tuple):
        parts = [_each(v, function) for v in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return function(structure)
