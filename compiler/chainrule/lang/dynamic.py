"""Slices that begin where integers of the graph say: caches that grow, windows that move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_int
from chainrule.ir.node import Node, apply
from chainrule.ir.types import check_shape, int64
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops.dynamic import DynamicSlice, DynamicUpdateSlice
from chainrule.ops.source import full


def dynamic_slice(x: TensorLike, starts: Any, sizes: Any) -> Tensor:
    """`sizes` elements of x along its axes, from `starts` on: integers or integer scalars.

    A start below 0 counts from the end, and one from which the slice would not fit is moved to
    where it does, as JAX's is. Raises ShapeError for sizes above those of x, DTypeError for starts
    that are no integers.
    """
    node = as_node(x)
    wanted = check_shape(sizes)
    at = _starts("dynamic_slice", starts, node)
    if len(wanted) != node.type.rank:
        raise ShapeError(f"dynamic_slice needs a size for each axis: {node.type}, {sizes!r}")
    return Tensor(apply(DynamicSlice(node.type.shape, wanted), node, *at))


def dynamic_update_slice(x: TensorLike, update: TensorLike, starts: Any) -> Tensor:
    """x with `update`, of as many axes, put where `starts` say, as in `dynamic_slice`.

    As the next value of a state it is written into the state's memory. Raises ShapeError where it
    does not fit, DTypeError where the element types differ or a start is no integer.
    """
    node = as_node(x)
    new = as_node(update, Tensor(node))
    if new.type.rank != node.type.rank:
        raise ShapeError(
            f"dynamic_update_slice needs an update of as many axes: {node.type}, {new.type}"
        )
    at = _starts("dynamic_update_slice", starts, node)
    return Tensor(apply(DynamicUpdateSlice(new.type.shape), node, new, *at))


def _starts(name: str, starts: Any, x: Node) -> list[Node]:
    """A start for each axis of x, from a sequence, or a Tensor or an array of one axis."""
    if isinstance(starts, (Tensor, np.ndarray)) and starts.ndim == 1:
        tensor = starts if isinstance(starts, Tensor) else Tensor(as_node(starts))
        starts = list(tensor)
    given = list(starts) if isinstance(starts, Sequence) else [starts]
    if len(given) != x.type.rank:
        raise ShapeError(f"{name} needs a start for each axis of {x.type}, not {len(given)}")
    return [_start(name, s) for s in given]


def _start(name: str, start: Any) -> Node:
    if is_int(start):
        if not int64.bounds[0] <= start <= int64.bounds[1]:
            raise DTypeError(f"{name} takes int64 starts, not {start}")
        return full(int(start), int64, ())
    node = as_node(start)
    if not node.type.dtype.is_integer or node.type.dtype.name == "uint64":
        raise DTypeError(f"{name} takes starts that fit int64, not {node.type}", "use astype")
    return node
