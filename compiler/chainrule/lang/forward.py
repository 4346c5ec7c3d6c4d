"""Jacobian times tangents: forward mode on Tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.autodiff.forward import push_forward
from chainrule.errors import DTypeError, GradientError, ShapeError
from chainrule.ir.node import Node
from chainrule.lang.derive import flatten, mapped, simplified, stabilized
from chainrule.ops.source import full


def jvp(outputs: Any, wrt: Any, tangents: Any) -> Any:
    """The Jacobian of `outputs` by `wrt` times `tangents`, in the structure of `outputs`.

        dy = cr.jvp(y, [x, w], [dx, dw])         # dy = ∂y/∂x · dx + ∂y/∂w · dw

    Zeros where nothing depends. Raises ShapeError or DTypeError where a tangent is not of the type
    of what it is a tangent of, GradientError for what is no float.
    """
    nodes, directions = flatten(wrt), flatten(tangents)
    _check(nodes, directions)

    def pushed(results: list[Node]) -> list[Node]:
        for result in results:
            if not result.type.dtype.is_float:
                raise GradientError(f"only floats have derivatives: {result!r}")
        found = _derive(results, nodes, directions)
        return [
            full(0, r.type.dtype, r.type.shape) if t is None else t
            for r, t in zip(results, found, strict=True)
        ]

    return mapped(outputs, pushed)


def _derive(
    results: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Node]
) -> list[Node | None]:
    """Tangents in simplest form, of the stable form of the results."""
    roots = stabilized(results, wrt)
    here = roots[len(results) :]
    found = push_forward(roots[: len(results)], here, tangents)
    simple = iter(simplified([t for t in found if t is not None], here))
    return [t and next(simple) for t in found]


def _check(wrt: Sequence[Node], tangents: Sequence[Node]) -> None:
    if len(wrt) != len(tangents):
        raise ShapeError(f"{len(wrt)} tensors need as many tangents, not {len(tangents)}")
    for node, tangent in zip(wrt, tangents, strict=True):
        if not node.type.dtype.is_float:
            raise GradientError(f"only floats have derivatives: {node!r}")
        if node.type.shape != tangent.type.shape:
            raise ShapeError(f"a tangent of {node.type} has its shape, not {tangent.type}")
        if node.type.dtype != tangent.type.dtype:
            raise DTypeError(f"a tangent of {node.type} has its type, not {tangent.type}")
