"""What a user holds: a `Tensor` is a node with operators. It has no value until compiled."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from types import EllipsisType
from typing import Any, NoReturn, Union

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim, Size
from chainrule.ir.types import DType, Kind, TensorType, dtype
from chainrule.ops import build
from chainrule.ops.contract import matmul, transpose
from chainrule.ops.index import Take
from chainrule.ops.layout import Slice
from chainrule.ops.source import constant, full
from chainrule.show.latex import latex
from chainrule.show.symbolic import to_sympy
from chainrule.show.text import text

TensorLike = Union["Tensor", bool, int, float, "np.ndarray[Any, Any]", "np.generic", list[Any]]
Index = Union[int, slice, None, EllipsisType, "Tensor", "np.ndarray[Any, Any]", list[int]]


class Tensor:
    """An expression: symbolic, typed, immutable.

    Operators work elementwise with NumPy's broadcasting; `@` is the matrix product. Comparing gives
    a boolean Tensor. A Tensor has no value: `bool()` and `float()` raise DTypeError.
    """

    __slots__ = ("__weakref__", "node")
    __array_ufunc__ = None
    node: Node

    def __init__(self, node: Node) -> None:
        self.node = node

    # what it is

    @property
    def name(self) -> str | None:
        """The name it prints by, if it has one."""
        return provenance.name_of(self.node)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Sizes, each an int or a `Size`."""
        return self.node.type.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.node.type.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.node.type.rank

    @property
    def type(self) -> TensorType:
        """Element type and shape together."""
        return self.node.type

    def named(self, name: str) -> Tensor:
        """The same tensor, which prints as `name` from now on."""
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise ShapeError(f"a name is printable text, not {name!r}")
        provenance.set_name(self.node, name)
        return self

    def __repr__(self) -> str:
        label = f" {self.name}" if self.name else ""
        return f"<Tensor{label}: {self.node.type}>"

    def __str__(self) -> str:
        return text(self.node)

    def latex(self) -> str:
        """The expression as LaTeX: named bindings, then the result."""
        return latex(self.node)

    def sympy(self) -> Any:
        """The expression as SymPy: a scalar or a matrix expression."""
        return to_sympy(self.node)

    # what it is not

    def _no_value(self, what: str) -> NoReturn:
        raise DTypeError(
            f"{what} of an expression has no value before it is compiled: {self!r}",
            "compile it with cr.compile, or choose inside the graph with cr.where",
        )

    def __bool__(self) -> bool:
        self._no_value("the truth")

    def __float__(self) -> float:
        self._no_value("float()")

    def __int__(self) -> int:
        self._no_value("int()")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._no_value("an array")

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape or not isinstance(self.shape[0], int):
            raise ShapeError(f"only a known first axis can be iterated over: {self!r}")
        return (self[i] for i in range(self.shape[0]))

    def __len__(self) -> int:
        if not self.shape or not isinstance(self.shape[0], int):
            raise ShapeError(f"the length is not known before the call: {self!r}")
        return self.shape[0]

    # arithmetic

    def __add__(self, other: TensorLike) -> Tensor:
        return elementwise("add", self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return elementwise("add", other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return elementwise("sub", self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return elementwise("sub", other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return elementwise("mul", self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return elementwise("mul", other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return elementwise("div", self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return elementwise("div", other, self)

    def __floordiv__(self, other: TensorLike) -> Tensor:
        return elementwise("floor_divide", self, other)

    def __rfloordiv__(self, other: TensorLike) -> Tensor:
        return elementwise("floor_divide", other, self)

    def __mod__(self, other: TensorLike) -> Tensor:
        return elementwise("remainder", self, other)

    def __rmod__(self, other: TensorLike) -> Tensor:
        return elementwise("remainder", other, self)

    def __lshift__(self, other: TensorLike) -> Tensor:
        return elementwise("left_shift", self, other)

    def __rlshift__(self, other: TensorLike) -> Tensor:
        return elementwise("left_shift", other, self)

    def __rshift__(self, other: TensorLike) -> Tensor:
        return elementwise("right_shift", self, other)

    def __rrshift__(self, other: TensorLike) -> Tensor:
        return elementwise("right_shift", other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return elementwise("pow", self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return elementwise("pow", other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return Tensor(matmul(self.node, as_node(other, self)))

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return Tensor(matmul(as_node(other, self), self.node))

    def __neg__(self) -> Tensor:
        return elementwise("neg", self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return elementwise("abs", self)

    def __lt__(self, other: TensorLike) -> Tensor:
        return elementwise("lt", self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return elementwise("le", self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return elementwise("gt", self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return elementwise("ge", self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return elementwise("eq", self, other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return elementwise("ne", self, other)  # type: ignore[arg-type]

    __hash__ = object.__hash__

    def __and__(self, other: TensorLike) -> Tensor:
        return elementwise("and_", self, other)

    def __or__(self, other: TensorLike) -> Tensor:
        return elementwise("or_", self, other)

    def __xor__(self, other: TensorLike) -> Tensor:
        return elementwise("xor", self, other)

    def __rand__(self, other: TensorLike) -> Tensor:
        return elementwise("and_", other, self)

    def __ror__(self, other: TensorLike) -> Tensor:
        return elementwise("or_", other, self)

    def __rxor__(self, other: TensorLike) -> Tensor:
        return elementwise("xor", other, self)

    def __invert__(self) -> Tensor:
        return elementwise("not_", self)

    # form

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix. Raises ShapeError for other ranks, which have `mT`."""
        if self.ndim != 2:
            raise ShapeError(f".T is for matrices: {self!r}", "use .mT or cr.permute_dims")
        return Tensor(transpose(self.node, (1, 0)))

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        if self.ndim < 2:
            raise ShapeError(f".mT needs two axes: {self!r}")
        lead = range(self.ndim - 2)
        return Tensor(transpose(self.node, (*lead, self.ndim - 1, self.ndim - 2)))

    def astype(self, to: object) -> Tensor:
        """Each element converted to another type."""
        return Tensor(build.cast(self.node, dtype(to)))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        return Tensor(_subscript(self.node, index if isinstance(index, tuple) else (index,)))


def as_node(value: object, beside: Tensor | None = None) -> Node:
    """The node of a Tensor, an array or a number; a bare number takes its sibling's type."""
    if isinstance(value, Tensor):
        return value.node
    if isinstance(value, (bool, int, float)):
        if beside is not None:
            return full(value, _scalar_dtype(value, beside.dtype), ())
        return constant(np.asarray(value, np.float32 if isinstance(value, float) else None))
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"a {type(value).__name__} is not a tensor: {value!r}")
    dtype(array.dtype)
    return constant(array)


def _scalar_dtype(value: bool | int | float, beside: DType) -> DType:
    fits = beside.is_float or (beside.is_integer and not isinstance(value, float))
    if isinstance(value, bool):
        fits = beside.kind is Kind.BOOL
    if not fits:
        raise DTypeError(
            f"{value!r} does not promote to {beside}", "convert with .astype(...) first"
        )
    return beside


def operand(value: object) -> Node | bool | int | float:
    """A node, or a plain number that will take its form from the other operands."""
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        return value
    return as_node(value)


def elementwise(fn: str, *operands: TensorLike) -> Tensor:
    """The elementwise op called `fn`, broadcast and promoted as the array API standard says."""
    return Tensor(build.call(fn, *[operand(o) for o in operands]))


def _subscript(x: Node, parts: tuple[Index, ...]) -> Node:
    """Basic indexing, and one integer tensor. Each part is an axis, a new axis, or `...`."""
    taking = [p for p in parts if isinstance(p, (Tensor, np.ndarray, list))]
    axes = len([p for p in parts if p is not None and p is not Ellipsis])
    rank = x.type.rank
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if axes > rank:
        raise ShapeError(f"{axes} indices for {rank} axes: {x.type}")
    if len(dots) > 1:
        raise ShapeError("an index holds one '...'")
    at = dots[0] if dots else len(parts)
    parts = (*parts[:at], *([slice(None)] * (rank - axes)), *parts[at + 1 :])
    if taking:
        return _take(x, parts)
    ranges: list[tuple[Dim, Dim, int]] = []
    dropped: list[int] = []
    added: list[int] = []
    for part in parts:
        place = len(ranges)
        if part is None:
            added.append(place + len(added) - len(dropped))
            continue
        ranges.append(_range(part, x.type.shape[place], x))
        if not isinstance(part, slice):
            dropped.append(place)
    if any(r != (0, size, 1) for r, size in zip(ranges, x.type.shape, strict=True)):
        starts, counts, steps = zip(*ranges, strict=True)
        x = apply(Slice(starts, counts, steps), x)
    x = build.squeeze(x, dropped)
    return build.keep_axes(x, added) if added else x


def _take(x: Node, parts: tuple[Index, ...]) -> Node:
    places = [i for i, p in enumerate(parts) if isinstance(p, (Tensor, np.ndarray, list))]
    rest = [p for i, p in enumerate(parts) if i not in places]
    if len(places) > 1 or any(p != slice(None) for p in rest):
        raise ShapeError(
            "an integer tensor indexes one axis, with ':' for the others",
            "take one axis after another, or use cr.take",
        )
    positions = as_node(parts[places[0]])
    if positions.type.dtype.is_bool:
        raise DTypeError(
            f"a mask chooses as many elements as the data says: {positions.type} of {x.type}",
            "shapes are known before the data: choose with cr.where(mask, x, 0)",
        )
    return apply(Take(places[0], positions.type.rank), x, positions)


def _range(part: Index, size: Dim, x: Node) -> tuple[Dim, Dim, int]:
    """`(start, count, step)` of an index or a slice along an axis of the given size."""
    if isinstance(part, (int, np.integer)) and not isinstance(part, bool):
        i = int(part)
        if isinstance(size, int) and not -size <= i < size:
            raise ShapeError(f"index {i} is outside an axis of size {size}: {x.type}")
        return (i if i >= 0 else size + i), 1, 1
    if not isinstance(part, slice):
        raise ShapeError(
            f"an index is an int, a slice, None, '...' or an integer tensor, not {part!r}"
        )
    first, last, by = (_end(end) for end in (part.start, part.stop, part.step))
    step = 1 if by is None else by
    if not isinstance(step, int) or step == 0:
        raise ShapeError(f"a slice's step is a number other than 0, not {step}")
    if step > 0:
        start, stop = _place(first, size, 0, size), _place(last, size, size, size)
        count = (stop - start + step - 1) // step
    else:
        start, stop = _place(first, size, size - 1, size - 1), _place(last, size, -1, size - 1)
        count = (start - stop - step - 1) // -step
    return start, max(count, 0) if isinstance(count, int) else count, step


def _end(end: object) -> Dim | None:
    if end is None or isinstance(end, Size):
        return end
    try:
        return operator.index(end)  # type: ignore[arg-type]
    except TypeError:
        raise ShapeError(f"a slice is made of ints and sizes, not of {end!r}") from None


def _place(end: Dim | None, size: Dim, default: Dim, most: Dim) -> Dim:
    """An end of a slice as a place: from the far end where it is negative, cut off at known ends.

    Where the size is symbolic the place must be there when the size is known; the op demands it.
    """
    if end is None:
        return default
    at = size + end if isinstance(end, int) and end < 0 else end
    if not isinstance(at, int) or not isinstance(most, int):
        return at
    return min(max(at, 0 if most == size else -1), most)
