"""Layer norm, RMS norm and attention: what transformers are made of."""

from __future__ import annotations

import math

from chainrule.errors import DTypeError, ShapeError
from chainrule.given import is_real
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Shape
from chainrule.ir.types import promote
from chainrule.lang.arguments import flag
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.ops import build
from chainrule.ops.attention import Attention
from chainrule.ops.normalization import EPS, LayerNorm, RmsNorm


def layer_norm(
    h: TensorLike,
    scale: TensorLike | None = None,
    shift: TensorLike | None = None,
    eps: float = EPS,
) -> Tensor:
    """(h - mean(h)) / sqrt(var(h) + eps) over the last axis, times `scale`, plus `shift`.

    Both have the last axis' shape, and either may be None (Ba et al., arXiv:1607.06450). Raises
    ShapeError and DTypeError where they do not fit.
    """
    x = as_node(h)
    out = apply(LayerNorm(_last(x, "layer_norm"), _small(eps, "layer_norm")), x)
    if scale is not None:
        out = build.call("mul", out, _row(scale, x, "layer_norm's scale"))
    if shift is not None:
        out = build.call("add", out, _row(shift, x, "layer_norm's shift"))
    return Tensor(out)


def rms_norm(h: TensorLike, scale: TensorLike | None = None, eps: float = EPS) -> Tensor:
    """h / sqrt(mean(h²) + eps) over the last axis, times `scale`, which may be None.

    (Zhang and Sennrich, arXiv:1910.07467.) Raises ShapeError and DTypeError where they do not fit.
    """
    x = as_node(h)
    out = apply(RmsNorm(_last(x, "rms_norm"), _small(eps, "rms_norm")), x)
    return Tensor(out if scale is None else build.call("mul", out, _row(scale, x, "its scale")))


def attention(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    causal: bool = False,
    mask: TensorLike | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q @ kᵀ * scale) @ v: each query's mean of the values, weighed by its match with keys.

    `q` is (..., n, d), `k` (..., m, d) and `v` (..., m, e); what stands before broadcasts. `scale`
    is 1 / sqrt(d) by default. With `causal` query i sees keys 0 to i. A `mask` of bools, which
    broadcasts to (..., n, m), is True where a query may see a key, as in PyTorch; with both, a key
    is seen that both let through. A query that sees no key gives zeros. (Vaswani et al.,
    arXiv:1706.03762.) Raises ShapeError and DTypeError where operands do not fit.
    """
    operands = [as_node(t) for t in (q, k, v)]
    shown = ", ".join(str(n.type) for n in operands)
    for node in operands:
        if node.type.rank < 2:
            raise ShapeError(
                f"attention takes matrices, or stacks of them: {shown}",
                "a query is a row: cr.expand_dims(q, axis=0)",
            )
    dtype = operands[0].type.dtype
    for node in operands[1:]:
        dtype = promote(dtype, node.type.dtype)
    lead = build.broadcast_shapes([n.type.shape[:-2] for n in operands], "attention", operands)
    q_, k_, v_ = (
        build.broadcast(build.cast(n, dtype), (*lead, *n.type.shape[-2:])) for n in operands
    )
    masks: list[Node] = []
    if mask is not None:
        masks = [_seen(as_node(mask), (*lead, q_.type.shape[-2], k_.type.shape[-2]))]
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        raise DTypeError(f"attention's scale is a finite number, not {scale!r}")
    op = Attention(flag("causal", causal), None if scale is None else float(scale))
    return Tensor(apply(op, q_, k_, v_, *masks))


def _seen(mask: Node, shape: Shape) -> Node:
    if not mask.type.dtype.is_bool:
        raise DTypeError(
            f"attention takes a mask of bools, not {mask.type}",
            "True where a query may see a key; of numbers to be added: mask > -1",
        )
    try:
        return build.broadcast(mask, shape)
    except ShapeError as error:
        raise ShapeError(f"attention's mask: {error.what}", *error.details) from None


def _last(x: Node, name: str) -> tuple[int, ...]:
    if not x.type.rank:
        raise ShapeError(f"{name} needs an axis: {x.type}")
    return (x.type.rank - 1,)


def _row(of: TensorLike, x: Node, what: str) -> Node:
    node = as_node(of)
    if node.type.shape != x.type.shape[-1:] and node.type.rank:
        raise ShapeError(
            f"{what} has the shape of the last axis: {node.type} for {x.type}",
            f"{x.type.shape[-1]} numbers",
        )
    return node


def _small(eps: float, name: str) -> float:
    if not is_real(eps) or not 0 <= eps < 1e300:
        raise DTypeError(f"{name}'s eps is a number from 0 up, not {eps!r}")
    return float(eps)
