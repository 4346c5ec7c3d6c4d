"""What was spelled out by hand becomes the function it is: activations, losses, norms, attention.

These forms are safe as they stand; the function has a name to print and a derivative of few terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Array, Node, apply
from chainrule.ir.size import static_product
from chainrule.ops import build
from chainrule.ops.attention import Attention, MaskedSoftmax
from chainrule.ops.axes import Expand, Sum
from chainrule.ops.composite import Pick
from chainrule.ops.contract import Contract, transpose
from chainrule.ops.source import Constant, Full, Iota, constant
from chainrule.rewrite.along import axes_of, number_of
from chainrule.rewrite.rule import Rule, Rules, See, recognize, rule

#: From here down a number is taken to mean minus infinity where it is added to scores.
LOW = -1e9
#: How many elements a constant may have that is looked into.
MODERATE = 2**22


def spellings(name: str, right: str, *left: str, **numbers: float | None) -> Iterator[Rule]:
    """Rules from several spellings to one."""
    for i, text in enumerate(left):
        yield rule(f"{name}_{i + 1}" if i else name, text, right, None, **numbers)


_MEAN = "repeat(mean(x))"
_LN, _RMS = "repeat(sqrt(var(x) + c))", "repeat(sqrt(mean(square(x)) + c))"
_LN_INVERSE, _RMS_INVERSE = "repeat(rsqrt(var(x) + c))", "repeat(rsqrt(mean(square(x)) + c))"
# what gelu multiplies x / 2 by; a is 1/sqrt(2), b is sqrt(2/pi), k is 0.044715
_BY_ERF = ("erf(x / r) + 1", "erf(x * a) + 1", "erfc(-(x / r))", "erfc(-(x * a))", "erfc(x * m)")
_BY_TANH = (
    "tanh((x * square(x) * k + x) * b) + 1",
    "tanh(x * (square(x) * k + 1) * b) + 1",
    "tanh(x * b * (square(x) * k + 1)) + 1",
)


def _halved(right: str, factors: tuple[str, ...]) -> Iterator[Rule]:
    """x * f / 2 is a function, for any of the factors f, wherever the 2 stands."""
    root = math.sqrt(2)
    ways = ("(x * ({f})) * 0.5", "(x * ({f})) / 2", "(x / 2) * ({f})", "x * (({f}) / 2)")
    yield from spellings(
        right.partition("(")[0], right, *(w.format(f=f) for f in factors for w in ways),
        r=root, a=1 / root, m=-1 / root, b=math.sqrt(2 / math.pi), k=0.044715,
    )  # fmt: skip


@recognize("sum", some=["mul"])
def sum_of_picked(node: Node, see: See) -> Node | None:
    """Given sum(one_hot(y) * x) over classes of a log_softmax or softmax, x[y].

    In those a NaN is in the whole row: none that the code shuts out is lost.
    """
    (product,) = node.inputs
    factors, last = see(product, "mul"), product.type.rank - 1
    assert isinstance(node.op, Sum)
    if not factors or last not in node.op.axes:
        return None
    for code, x in (factors, factors[::-1]):
        y = see(code, "one_hot")
        if y and _is_softmax(x, see):
            rest = tuple(a for a in node.op.axes if a != last)
            picked = apply(Pick(), x, y[0])
            return apply(Sum(rest), picked) if rest else picked
    return None


@recognize("take_along_axis")
def one_along_axis(node: Node, see: See) -> Node | None:
    """Given one element taken from each row of a log_softmax or softmax, x[y]."""
    x, at = node.inputs
    last = x.type.rank - 1
    if axes_of(node.op) != (last,) or at.type.shape[-1] != 1 or not _is_softmax(x, see):
        return None
    return build.keep_axes(apply(Pick(), x, build.squeeze(at, (last,))), (last,))


def _is_softmax(x: Node, see: See) -> bool:
    """Whether a node is a softmax along its last axis, or the logarithm of one."""
    found = see(x, "log_softmax") or see(x, "softmax")
    return bool(found) and axes_of(x.op) == (x.type.rank - 1,)


@recognize("softmax")
def softmax_of_masked(node: Node, see: See) -> Node | None:
    """Given softmax of x where a mask holds and of -inf elsewhere, masked_softmax(x, mask).

    Also where 0 and -inf are added. With a number as low as -1e9 instead of -inf only where the
    mask is known to let in something of each row: else that row would not be 0.
    """
    (z,) = node.inputs
    if axes_of(node.op) != (z.type.rank - 1,):
        return None
    choice = see(z, "where")
    ways = [choice] if choice else []
    for x, added in _either_way(see(z, "add")):
        chosen = see(_matrix(added), "where")
        if chosen and _is_zero(chosen[1]):
            ways.append((build.broadcast(chosen[0], z.type.shape), x, chosen[2]))
        if chosen and _is_zero(chosen[2]):
            ways.append((build.broadcast(chosen[0], z.type.shape), chosen[1], x))
        allowed = _lets_in(added)
        if allowed is not None:
            return apply(MaskedSoftmax(), x, allowed)
    for mask, x, y in ways:
        for seen, low in ((x, y), (y, x)):
            allowed = mask if seen is x else _not(mask)
            if _shuts_out(low, allowed):
                return apply(MaskedSoftmax(), seen, allowed)
    return None


def _either_way(operands: tuple[Node, ...] | None) -> tuple[tuple[Node, ...], ...]:
    return (operands, operands[::-1]) if operands else ()


def _is_zero(node: Node) -> bool:
    return isinstance(node.op, Full) and node.op.value == 0


def _not(mask: Node) -> Node:
    return build.broadcast(build.call("not_", _matrix(mask)), mask.type.shape)


def _shuts_out(low: Node, mask: Node) -> bool:
    """Whether a number is so low that what a mask refuses gets nothing."""
    if not isinstance(low.op, Full) or low.op.value > LOW:
        return False
    return low.op.value == -math.inf or is_causal(mask) or _some_in_each_row(_value(mask))


def _lets_in(added: Node) -> Node | None:
    """The mask for which an array of 0 and of numbers as low as -1e9 is added, if it is one."""
    values = _value(added) if isinstance(_matrix(added).op, Constant) else None
    if values is None or not np.isin(values[values > LOW], 0).all():
        return None
    allowed = values == 0
    if not (_some_in_each_row(allowed) or np.isneginf(values[~allowed]).all()):
        return None
    return build.broadcast(constant(allowed), added.type.shape)


def _some_in_each_row(mask: Array | None) -> bool:
    return mask is not None and bool(mask.any(axis=-1).all())


def _value(node: Node) -> Array | None:
    """What a node is, where that depends on no leaf and its sizes are known and moderate.

    Leading axes along which it only repeats are left off.
    """
    node = _matrix(node)
    nodes = walk([node])
    sized = all(isinstance(d, int) for n in nodes for d in n.type.shape)
    if not sized or max(static_product(n.type.shape) for n in nodes) > MODERATE:
        return None
    if any(not n.inputs and not isinstance(n.op, (Constant, Full, Iota)) for n in nodes):
        return None
    return evaluate([node], {})[0]


def _matrix(node: Node) -> Node:
    """What a node repeats along axes before its last two."""
    while isinstance(node.op, Expand) and max(node.op.axes) < node.type.rank - 2:
        (node,) = node.inputs
    return node


@recognize("contract", some=["softmax", "masked_softmax"])
def attention(node: Node, see: See) -> Node | None:
    """Given a softmax of q @ kᵀ * scale times v, attention of the three; a mask comes along."""
    for turned in (False, True):
        parts = _weighted(node, see, turned)
        if parts is not None:
            return parts
    return None


def _weighted(node: Node, see: See, turned: bool) -> Node | None:
    op = node.op
    assert isinstance(op, Contract)
    p, v = node.inputs[::-1] if turned else node.inputs
    a, b = (op.b, op.a) if turned else (op.a, op.b)
    if len(a) < 2:
        return None
    *lead, m, k = list(a)
    masked = see(p, "masked_softmax")
    weights = masked or (see(p, "softmax") if axes_of(p.op) == (p.type.rank - 1,) else None)
    n = [c for c in b if c not in (*lead, k)]
    if not weights or len(n) != 1 or set(b) != {*lead, k, *n} or set(op.out) != {*lead, m, *n}:
        return None
    found = scores_of(weights[0], see)
    if found is None:
        return None
    q, keys, scale = found
    values = transpose(v, [b.index(c) for c in (*lead, k, *n)])
    mask = masked[1:] if masked else ()
    causal = bool(mask) and is_causal(mask[0])
    out = apply(Attention(causal, scale), q, keys, values, *(() if causal else mask))
    written = [*lead, m, *n]
    return transpose(out, [written.index(c) for c in op.out])


def scores_of(s: Node, see: See) -> tuple[Node, Node, float | None] | None:
    """q, k and what their product is scaled by, None for 1 / sqrt(d)."""
    s, scale = unscaled(s, see)
    if not see(s, "contract") or not isinstance(s.op, Contract):
        return None
    op, *lead = s.op, *s.op.out[:-2]
    if len(op.out) < 2 or len(op.summed) != 1:
        return None
    row, column, d = *op.out[-2:], op.summed
    sides = ((op.a, s.inputs[0]), (op.b, s.inputs[1]))
    (a, q), (b, k) = sides if row in op.a else sides[::-1]
    if set(a) != {*lead, row, d} or set(b) != {*lead, column, d}:
        return None
    q, k = (transpose(x, [of.index(c) for c in (*lead, e, d)]) for of, x, e in
            ((a, q, row), (b, k, column)))  # fmt: skip
    (q, of_q), (k, of_k) = unscaled(q, see), unscaled(k, see)
    scale, size = scale * of_q * of_k, q.type.shape[-1]
    usual = (
        isinstance(size, int) and size and math.isclose(scale * math.sqrt(size), 1, rel_tol=1e-6)
    )
    return q, k, None if usual else scale


def unscaled(x: Node, see: See) -> tuple[Node, float]:
    """A node without the number it is multiplied with or divided by, and that number."""
    for name in ("mul", "div"):
        parts = see(x, name)
        if parts and isinstance(parts[1].op, Full) and parts[1].op.value:
            value = number_of(parts[1])
            return parts[0], value if name == "mul" else 1 / value
    return x, 1.0


def is_causal(mask: Node) -> bool:
    """Whether a mask lets query i see keys 0 to i."""
    mask = _matrix(mask)
    row, column = mask.type.rank - 2, mask.type.rank - 1
    test, holds = mask, True
    if mask.op.name == "not_":
        test, holds = mask.inputs[0], False
    if test.op.name in _ORDERS:
        first, second = (_index(i) for i in test.inputs)
        below, strict = _ORDERS[str(test.op.name)]
        pair = (first, second) if below else (second, first)
        if pair == ((column, row) if holds else (row, column)) and strict != holds:
            return True
    value = _value(mask)
    return value is not None and bool((value == (np.tri(*value.shape[-2:]) > 0)).all())


#: A comparison: whether it asks for the first to be lower, and strictly so.
_ORDERS = {"le": (True, False), "lt": (True, True), "ge": (False, False), "gt": (False, True)}


def _index(node: Node) -> int | None:
    """The axis whose index a node is at every place, if it is one."""
    if isinstance(node.op, Iota):
        return node.op.axis
    if not isinstance(node.op, Expand):
        return None
    inner = _index(node.inputs[0])
    kept = [i for i in range(node.type.rank) if i not in node.op.axes]
    return None if inner is None else kept[inner]


RECOGNITION = Rules(
    [
        # activations
        rule("silu", "x * sigmoid(x)", "silu(x)"),
        rule("mish", "x * tanh(softplus(x))", "mish(x)"),
        rule("softsign", "x / (1 + abs(x))", "softsign(x)"),
        rule("tanhshrink", "x - tanh(x)", "tanhshrink(x)"),
        rule("elu", "where(x > 0, x, expm1(x))", "elu(x)"),
        *_halved("gelu(x)", _BY_ERF),
        *_halved("gelu_tanh(x)", _BY_TANH),
        # norms
        rule("variance", "mean(square(x - repeat(mean(x))))", "var(x)"),
        *spellings(
            "layer_norm", "layer_norm(x, c)", f"(x - {_MEAN}) / {_LN}",
            f"(x - {_MEAN}) * {_LN_INVERSE}", c=None,
        ),
        *spellings(
            "scaled_layer_norm", "y * layer_norm(x, c)", f"(y * (x - {_MEAN})) / {_LN}",
            f"(y * (x - {_MEAN})) * {_LN_INVERSE}", c=None,
        ),
        *spellings(
            "rms_norm", "rms_norm(x, c)", f"x / {_RMS}", f"x * {_RMS_INVERSE}", c=None,
        ),
        *spellings("scaled_rms_norm", "y * rms_norm(x, c)", f"(y * x) / {_RMS}", c=None),
        # losses
        rule(
            "binary_cross_entropy",
            "y * log_sigmoid(x) + (1 - y) * log_sigmoid(-x)",
            "x * y - softplus(x)",
        ),
        rule("negative_mean_of_difference", "-(sum(x - y) / c)", "sum(y - x) / c"),
        rule("negative_sum_of_difference", "-sum(x - y)", "sum(y - x)"),
        sum_of_picked,
        one_along_axis,
        # attention
        softmax_of_masked,
        attention,
    ]
)  # fmt: skip
