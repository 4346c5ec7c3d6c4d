"""Operations on nodes as a user would write them: numbers beside nodes, broadcasting, promotion.

Broadcasting becomes explicit here, so that no op and no derivative ever meets two shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.errors import DTypeError, FormulaError, ShapeError
from chainrule.ir.formula import Formula, Name, Number, parse
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Shape
from chainrule.ir.types import DType, bool_, float32, int64, promote
from chainrule.ops.axes import Expand
from chainrule.ops.cast import Cast
from chainrule.ops.elementwise import TABLE
from chainrule.ops.layout import Reshape
from chainrule.ops.source import Full, full

Scalar = bool | int | float
Operand = Node | Scalar


def call(fn: str, *operands: Operand, like: Node | None = None) -> Node:
    """The elementwise op called `fn`; a plain number takes its shape and type from its sibling.

    `like` gives them where every operand whose type counts is a number.
    """
    if fn not in TABLE:
        raise FormulaError(f"no function is called {fn!r}", f"there are {', '.join(TABLE)}")
    nodes = [o for o in operands if isinstance(o, Node)]
    shape = broadcast_shapes([n.type.shape for n in ([like] if like else []) + nodes], fn, nodes)
    chosen = operands[1:] if fn == "where" else operands
    dtype = _common_dtype(fn, chosen, like)
    dtypes: list[DType | None] = [dtype] * len(operands)
    if fn == "where":
        dtypes[0] = None
    aligned = [_align(o, shape, d) for o, d in zip(operands, dtypes, strict=True)]
    return apply(TABLE[fn], *aligned)


def aligned(name: str, *operands: Operand) -> list[Node]:
    """Operands brought to one shape and one element type, as for an elementwise op `name`."""
    nodes = [o for o in operands if isinstance(o, Node)]
    shape = broadcast_shapes([n.type.shape for n in nodes], name, nodes)
    dtype = _common_dtype(name, operands, None)
    return [_align(o, shape, dtype) for o in operands]


def _common_dtype(fn: str, operands: Sequence[Operand], like: Node | None) -> DType:
    typed = [o.type.dtype for o in operands if isinstance(o, Node)]
    if not typed:
        typed = [like.type.dtype] if like else [_default_dtype(operands)]
    dtype = typed[0]
    for other in typed[1:]:
        try:
            dtype = promote(dtype, other)
        except DTypeError as error:
            shown = ", ".join(str(o.type) if isinstance(o, Node) else str(o) for o in operands)
            raise DTypeError(f"{fn} of {shown}: {error.what}", *error.details) from None
    for o in operands:
        if isinstance(o, Node) or dtype.is_float:
            continue
        if isinstance(o, float) or (dtype.is_bool and not isinstance(o, bool)):
            raise DTypeError(
                f"{fn} of {dtype} and the number {o!r}: they do not promote to one type",
                "say which you mean with x.astype(...)",
            )
    return dtype


def _default_dtype(operands: Sequence[Operand]) -> DType:
    if any(isinstance(o, float) for o in operands):
        return float32
    return int64 if any(not isinstance(o, bool) for o in operands) else bool_


def _align(operand: Operand, shape: Shape, dtype: DType | None) -> Node:
    if not isinstance(operand, Node):
        return full(operand, dtype or bool_, shape)
    return broadcast(cast(operand, dtype) if dtype else operand, shape)


def cast(x: Node, to: DType) -> Node:
    """`x` as another element type; x itself where it is that already."""
    return x if x.type.dtype == to else apply(Cast(to), x)


def copy(x: Node) -> Node:
    """The same elements, computed once more: a node with memory of its own."""
    return apply(Cast(x.type.dtype), x)


def original(x: Node) -> Node:
    """What a node is a copy of, or the node."""
    is_copy = isinstance(x.op, Cast) and x.inputs[0].type == x.type
    return x.inputs[0] if is_copy else x


def broadcast_shapes(
    shapes: Sequence[Shape], fn: str = "broadcast", nodes: Sequence[Node] = ()
) -> Shape:
    """The shape that shapes meet in, aligned from the last axis; ShapeError where they do not."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for axis in range(-rank, 0):
        dims = dict.fromkeys(s[axis] for s in shapes if len(s) >= -axis and s[axis] != 1)
        if len(dims) > 1:
            shown = " and ".join(str(n.type) for n in nodes) or " and ".join(map(str, shapes))
            unequal = " != ".join(map(str, dims))
            hint = "sizes must be equal, or one of them 1"
            if not all(isinstance(d, int) for d in dims):
                hint += "; sizes of different names may differ"
            raise ShapeError(
                f"{fn} needs shapes that broadcast: {shown}", f"{unequal} at axis {axis}: {hint}"
            )
        out.extend(dims or (1,))
    return tuple(out)


def broadcast(x: Node, shape: Shape) -> Node:
    """`x` repeated to `shape`, its axes aligned to the last ones; an axis of size 1 stretches."""
    if x.type.shape == shape:
        return x
    lead = len(shape) - x.type.rank
    if lead < 0 or any(d not in (1, shape[lead + i]) for i, d in enumerate(x.type.shape)):
        raise ShapeError(f"{x.type} does not broadcast to ({', '.join(map(str, shape))})")
    stretched = tuple(i for i, d in enumerate(x.type.shape) if d == 1 and shape[lead + i] != 1)
    return expand(squeeze(x, stretched), shape, (*range(lead), *(lead + i for i in stretched)))


def expand(x: Node, shape: Shape, axes: tuple[int, ...]) -> Node:
    """`x` with new axes, numbered as in the result, along which it repeats."""
    if not axes:
        return x
    if isinstance(x.op, Full):
        return apply(Full(x.op.data, x.op.dtype, shape))
    return apply(Expand(shape, tuple(sorted(axes))), x)


def squeeze(x: Node, axes: Sequence[int]) -> Node:
    """`x` without axes of size 1."""
    if not axes:
        return x
    kept = tuple(i for i in range(x.type.rank) if i not in axes)
    shape = tuple(x.type.shape[i] for i in kept)
    if isinstance(x.op, Expand):
        ours = tuple(a for a in x.op.axes if a not in axes)
        if len(x.op.axes) - len(ours) == len(axes):
            return expand(x.inputs[0], shape, tuple(kept.index(a) for a in ours))
    if isinstance(x.op, Full):
        return apply(Full(x.op.data, x.op.dtype, shape))
    return apply(Reshape(shape), x)


def keep_axes(x: Node, axes: Sequence[int]) -> Node:
    """`x` with axes of size 1 put back at the places named: what `keepdims` does."""
    rank = x.type.rank + len(axes)
    rest = iter(x.type.shape)
    return expand(x, tuple(1 if i in axes else next(rest) for i in range(rank)), tuple(axes))


def formula(text: str | Formula, bindings: Mapping[str, Node], like: Node | None = None) -> Node:
    """The nodes a formula spells, its variables bound. A bare number has the form of `like`."""
    tree = parse(text) if isinstance(text, str) else text
    value = _build(tree, bindings, like)
    if isinstance(value, Node):
        return value
    if like is None:
        raise FormulaError(f"the formula {text} has no variable to take its shape from")
    return full(value, like.type.dtype, like.type.shape)


def _build(tree: Formula, bindings: Mapping[str, Node], like: Node | None) -> Operand:
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Name):
        if tree.name not in bindings:
            there = f"there are {', '.join(bindings)}"
            raise FormulaError(f"{tree.name!r} is not a variable here", there)
        return bindings[tree.name]
    args = [_build(a, bindings, like) for a in tree.args]
    if all(not isinstance(a, Node) for a in args):
        like = like or next(iter(bindings.values()), None)
    return call(tree.fn, *args, like=like if tree.fn in TABLE and _untyped(tree.fn, args) else None)


def _untyped(fn: str, args: Sequence[Operand]) -> bool:
    values = args[1:] if fn == "where" else args
    return all(not isinstance(a, Node) for a in values)
