"""A product on a GPU that a library makes, of factors that lie plainly in memory: where each of
their elements is, and the kernel that does what follows the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from chainrule.errors import CompileError
from chainrule.ir.loop import Apply, Buffer, Load, Value
from chainrule.ir.node import Index, Stmts
from chainrule.ir.size import Dim, Size, coefficient, is_nonnegative, product, symbols_of
from chainrule.ir.types import bfloat16, float32, float64
from chainrule.loops.builder import Builder
from chainrule.loops.layout import letter_sizes
from chainrule.loops.threads import each
from chainrule.ops.contract import Contract
from chainrule.ops.layout import ravel
from chainrule.records import dataclass


@dataclass(frozen=True)
class Lying:
    """Matrices in a buffer: the first element of the first, and how far it is from one of them to
    the next, from a row to the next, and from a column.
    """

    buffer: Buffer
    start: Dim
    steps: tuple[Dim, Dim, Dim]


@dataclass(frozen=True)
class Outside:
    """Products that a library makes: so many, of so many rows, columns and terms of a sum; `kind`
    is one of the runtime's (`chainrule_runtime.gpu.blas.KINDS`).
    """

    kind: str
    sizes: tuple[Dim, Dim, Dim, Dim]
    first: Lying
    second: Lying
    result: Lying


def lies_plainly(b: Builder) -> bool:
    """Whether a library can make the product of a kernel."""
    return _factors(b) is not None


def outside_product(b: Builder) -> tuple[Outside, Stmts, int]:
    """The product of a kernel by a library, then loops for what follows it, and a part's lanes: 0
    where nothing does.

    The result goes to workspace, but where it is all there is and nothing kept: a library knows of
    no check that failed before. Raises CompileError where factors do not lie plainly in memory.
    """
    found = _factors(b)
    if found is None:
        raise CompileError(
            f"{b.kernel.anchor!r} is no product of plain memory", "leave it to our own kernels"
        )
    kind, axes, first, second = found
    node, rest = b.kernel.anchor, b.kernel.nodes[1:]
    shape, op = node.type.shape, node.op
    assert isinstance(op, Contract)
    alone = not rest and b.kernel.writes.get(node) is node
    to = b.buffers[node] if alone else b.workspace(node, product(shape))
    dense = ravel(tuple(map(_symbol, op.out)), shape)
    result = _lying(to, dense, op.out, axes[:3])
    assert result is not None
    sizes = axes[0].size, axes[1].size, axes[2].size, axes[3].size
    outside = Outside(kind, sizes, first, second, result)
    if alone:
        return outside, (), 0

    def after(index: Index) -> Stmts:
        b.values[node] = Load(to, ravel(index, shape))
        return (*b.compute(rest, index, False), *b.store([node, *rest], index))

    return outside, each(shape, after), 1


@dataclass(frozen=True)
class _Axis:
    """Letters that are walked as one: each lies as many steps apart as what follows it is long."""

    letters: str
    sizes: tuple[Dim, ...]

    @property
    def size(self) -> Dim:
        return product(self.sizes)

    def step(self, slopes: Mapping[str, Dim]) -> Dim | None:
        """How far it is to the next place along it, where letters lie so far apart each; None where
        they can't be walked as one.
        """
        long = [(c, d) for c, d in zip(self.letters, self.sizes, strict=True) if d != 1]
        if not long:
            return 1
        for (c, _), (d, size) in pairwise(long):
            if slopes[c] != slopes[d] * size:
                return None
        return slopes[long[-1][0]]


_Found = tuple[str, tuple[_Axis, _Axis, _Axis, _Axis], Lying, Lying]


def _factors(b: Builder) -> _Found | None:
    """The kind of a product, its axes and where its factors lie; None where a library can't."""
    node = b.kernel.anchor
    op = node.op
    if not isinstance(op, Contract) or node.type.dtype not in (float32, float64):
        return None
    loads = []
    for operand, letters in zip(node.inputs, (op.a, op.b), strict=True):
        loads.append(_plain(b.reader(operand)(tuple(map(_symbol, letters)))))
    x, y = loads
    if x is None or y is None or x.dtype != y.dtype or x.dtype not in _KINDS:
        return None
    kind = "tf32" if op.tf32 and x.dtype == float32 else _KINDS[x.dtype]
    for axes in _axes(op, letter_sizes(node)):
        groups, rows, columns, terms = axes
        first = _lying(x.buffer, x.offset, op.a, (groups, rows, terms))
        second = _lying(y.buffer, y.offset, op.b, (groups, terms, columns))
        dense = ravel(tuple(map(_symbol, op.out)), node.type.shape)
        result = _lying(x.buffer, dense, op.out, (groups, rows, columns))
        if first and second and result:
            return kind, axes, first, second
    return None


_KINDS = {float32: "float32", bfloat16: "bfloat16", float64: "float64"}


def _symbol(letter: str) -> Size:
    return Size.symbol(f"{letter}'")


def _plain(value: Value) -> Load | None:
    """What is read, where that is memory as it is, or bfloat16 there."""
    if isinstance(value, Apply) and value.fn == "cast" and value.dtype == float32:
        (inner,) = value.args
        if isinstance(inner, Load) and inner.dtype == bfloat16 and inner.index is None:
            return inner
        return None
    if isinstance(value, Load) and value.index is None and value.dtype != bfloat16:
        return value
    return None


def _axes(op: Contract, sizes: Mapping[str, Dim]) -> Iterator[tuple[_Axis, _Axis, _Axis, _Axis]]:
    """The axes of groups, rows, columns and terms, letters in the order of the result or a factor:
    those of an axis must lie in one order in all.
    """
    for order in dict.fromkeys((op.out + op.summed, op.a + op.b, op.b + op.a)):
        letters = list(dict.fromkeys(order))

        def axis(in_: str, out: str, letters: Sequence[str] = letters) -> _Axis:
            mine = "".join(c for c in letters if c in in_ and c not in out)
            return _Axis(mine, tuple(sizes[c] for c in mine))

        both = "".join(c for c in op.a if c in op.b)
        shared = "".join(c for c in both if c in op.out)
        yield axis(shared, ""), axis(op.out, op.b), axis(op.out, op.a), axis(both, op.out)


def _lying(buffer: Buffer, offset: Dim, letters: str, axes: Sequence[_Axis]) -> Lying | None:
    """Matrices at an offset in terms of letters; None where no library takes them so: one of rows
    and columns has neighbours side by side, the other at least as far apart as those reach.
    """
    slopes: dict[str, Dim] = {}
    for c in letters:
        found = coefficient(offset, f"{c}'")
        if found is None:
            return None
        slopes[c], offset = found
    known = {f"{c}'" for c in letters}
    if any(symbols_of(d) & known for d in (*slopes.values(), offset)):
        return None
    group, row, column = (axis.step(slopes) for axis in axes)
    if group is None or row is None or column is None or not is_nonnegative(group):
        return None
    _, rows, columns = (axis.size for axis in axes)
    by_columns = row == 1 and is_nonnegative(column - rows)
    by_rows = column == 1 and is_nonnegative(row - columns)
    if rows == 1 or columns == 1:
        by_rows = is_nonnegative(row) and is_nonnegative(column)
    return Lying(buffer, offset, (group, row, column)) if by_columns or by_rows else None
