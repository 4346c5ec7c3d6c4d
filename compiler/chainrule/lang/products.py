"""Products over named axes: einsum of any number of operands, tensordot and vecdot."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import ShapeError
from chainrule.ir.node import Node, apply
from chainrule.ir.types import promote
from chainrule.lang.arguments import several, whole, words
from chainrule.lang.functions import _axis
from chainrule.lang.subscripts import LETTERS, read
from chainrule.lang.tensor import Tensor, TensorLike, as_nodes
from chainrule.ops import build
from chainrule.ops.axes import Sum
from chainrule.ops.contract import einsum as einsum_nodes
from chainrule.ops.contract import transpose


def einsum(subscripts: str, /, *operands: TensorLike) -> Tensor:
    """A sum of products over named axes: `einsum("bij,bjk->bik", p, q)`.

    Of one operand it sums and permutes axes; a letter that stands twice in one is its diagonal.
    More than two are multiplied from left to right, each axis summed as soon as nothing to come
    has it. "..." stands for axes that broadcast, and an axis of size 1 stretches. Without "->" the
    result has "..." and each letter that stands once, in order of the alphabet.
    """
    text = words("what einsum computes", subscripts)
    parts, out, nodes = read(text, as_nodes(operands))
    letters, total = parts[0], nodes[0]
    for i in range(1, len(nodes)):
        later = set(out).union(*parts[i + 1 :])
        kept = "".join(dict.fromkeys(c for c in letters + parts[i] if c in later))
        kept = out if i == len(nodes) - 1 else kept
        total = einsum_nodes(f"{letters},{parts[i]}->{kept}", total, nodes[i])
        letters = kept
    lone = tuple(i for i, c in enumerate(letters) if c not in out)
    total = apply(Sum(lone), total) if lone else total
    letters = "".join(c for c in letters if c in out)
    return Tensor(transpose(total, [letters.index(c) for c in out]))


def tensordot(
    x1: TensorLike, x2: TensorLike, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2
) -> Tensor:
    """Products summed over axes: the last of x1 with the first of x2, or those named in pairs."""
    x, y = as_nodes((x1, x2))
    rank = x.type.rank
    if isinstance(axes, int):
        if not 0 <= axes <= min(rank, y.type.rank):
            raise ShapeError(f"tensordot over {axes} axes does not fit {x.type}, {y.type}")
        axes = (range(rank - axes, rank), range(axes))
    pair = [several("axes", a) for a in several("axes", axes)]
    if len(pair) != 2:
        raise ShapeError(f"tensordot takes a number of axes or two sequences, not {axes!r}")
    first = [_axis(a, rank, x) for a in pair[0]]
    second = [_axis(a, y.type.rank, y) for a in pair[1]]
    if len(first) != len(second) or len({*first}) < len(first) or len({*second}) < len(second):
        raise ShapeError(f"tensordot needs its axes in pairs: {axes}")
    a = list(LETTERS[:rank])
    b = list(LETTERS[rank : rank + y.type.rank])
    for i, j in zip(first, second, strict=True):
        b[j] = a[i]
    out = [c for c in a if c not in b] + [c for c in b if c not in a]
    return einsum(f"{''.join(a)},{''.join(b)}->{''.join(out)}", Tensor(x), Tensor(y))


def vecdot(x1: TensorLike, x2: TensorLike, /, *, axis: int = -1) -> Tensor:
    """The products along an axis summed; the other axes broadcast."""
    x, y = as_nodes((x1, x2))
    axis = whole("axis", axis, -64, 64)
    if axis >= 0 and x.type.rank == y.type.rank:
        axis = _axis(axis, x.type.rank, x) - x.type.rank
    if axis >= 0:
        raise ShapeError(f"vecdot counts its axis from the end, since the others broadcast: {axis}")
    x, y = (_last(n, axis) for n in (x, y))
    if x.type.shape[-1] != y.type.shape[-1]:
        raise ShapeError(f"vecdot needs vectors of one length: {x.type}, {y.type}")
    shape = build.broadcast_shapes([x.type.shape, y.type.shape], "vecdot", [x, y])
    dtype = promote(x.type.dtype, y.type.dtype)
    x, y = (build.cast(build.broadcast(n, shape), dtype) for n in (x, y))
    lead = LETTERS[: len(shape) - 1]
    return Tensor(einsum_nodes(f"{lead}Z,{lead}Z->{lead}", x, y))


def _last(x: Node, axis: int) -> Node:
    place = _axis(axis, x.type.rank, x)
    return transpose(x, [a for a in range(x.type.rank) if a != place] + [place])
