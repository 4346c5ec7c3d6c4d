"""What a user holds: a `Tensor` is a node with operators. It has no value until compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import EllipsisType, ModuleType
from typing import Any, NoReturn, Union

import numpy as np

from chainrule.errors import CompileError, DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import DType, Kind, TensorType, dtype
from chainrule.lang.beside import as_array, listed, plain
from chainrule.lang.indexing import Part, subscript
from chainrule.ops import build
from chainrule.ops.contract import matmul, transpose
from chainrule.ops.source import Full, constant, full, size_of

TensorLike = Union[
    "Tensor", bool, int, float, Size, "np.ndarray[Any, Any]", "np.generic", list[Any]
]
Index = Union[int, Size, slice, None, EllipsisType, "Tensor", "np.ndarray[Any, Any]", list[int]]


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

    @property
    def size(self) -> Dim:
        """The number of elements, an int or a `Size`."""
        return product(self.shape)

    @property
    def device(self) -> str:
        """Always "cpu": where an expression runs is chosen when it is compiled."""
        return "cpu"

    def to_device(self, device: object, /, *, stream: object = None) -> Tensor:
        """The same tensor. Raises CompileError for any device but "cpu"."""
        check_device(device)
        return self

    def __array_namespace__(self, /, *, api_version: str | None = None) -> ModuleType:
        if api_version not in (None, "2021.12", "2022.12", "2023.12", "2024.12"):
            raise CompileError(f"version {api_version!r} of the array API is not one of ours")
        return sys.modules["chainrule"]

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
        from chainrule.show.text import text

        return text(self.node)

    def latex(self) -> str:
        """The expression as LaTeX: named bindings, then the result."""
        from chainrule.show.latex import latex

        return latex(self.node)

    def sympy(self) -> Any:
        """The expression as SymPy: a scalar or a matrix expression."""
        from chainrule.show.symbolic import to_sympy

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

    def __index__(self) -> int:
        self._no_value("an index")

    def __complex__(self) -> complex:
        self._no_value("complex()")

    def __dlpack__(self, **kwargs: Any) -> NoReturn:
        self._no_value("an array")

    def __dlpack_device__(self) -> NoReturn:
        self._no_value("an array")

    def __setitem__(self, index: object, value: object) -> NoReturn:
        raise DTypeError(
            f"an expression doesn't change, and no element of it: {self!r}",
            "make another with cr.where, cr.concat or cr.scatter_add",
        )

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
        return power(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return power(other, self)

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

    def astype(self, to: object, *, copy: bool = True, device: object = None) -> Tensor:
        """Each element converted to another type; `copy` says nothing to an expression."""
        check_device(device)
        return Tensor(build.cast(self.node, dtype(to)))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        return Tensor(subscript(self.node, tuple(map(_part, parts))))


def _part(part: Index) -> Part:
    if isinstance(part, list):
        return constant(as_array(part) if part else np.zeros(0, np.int64))
    return as_node(part) if isinstance(part, (Tensor, np.ndarray)) else part


def check_device(device: object) -> None:
    """Refuse any device but "cpu"."""
    if device is not None and not (isinstance(device, str) and device == "cpu"):
        raise CompileError(
            f'an expression is on no device but "cpu": {device!r}',
            "where it runs is chosen when it is compiled: cr.compile(x, backend=...)",
        )


def as_node(value: object, beside: Tensor | None = None) -> Node:
    """The node of a Tensor, an array, a number, a list of numbers or a size; the last three take
    the type of the Tensor beside.
    """
    if isinstance(value, Tensor):
        return value.node
    if beside is not None:
        if isinstance(value, Size):
            return size_of(value, _scalar_dtype(0, beside.dtype))
        number = plain(value)
        if number is not None:
            return full(number, _scalar_dtype(number, beside.dtype), ())
        array = listed(value, beside.dtype)
        if array is not None:
            return constant(array, beside.dtype)
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        return constant(np.asarray(value, np.float32 if isinstance(value, float) else None))
    return constant(as_array(value))


def _scalar_dtype(value: bool | int | float, beside: DType) -> DType:
    fits = beside.is_float or (beside.is_integer and not isinstance(value, float))
    if isinstance(value, bool):
        fits = beside.kind is Kind.BOOL
    if not fits:
        raise DTypeError(
            f"{value!r} does not promote to {beside}", "convert with .astype(...) first"
        )
    return beside


def as_nodes(operands: Sequence[object]) -> list[Node]:
    """Nodes of operands; lists of numbers have the type of the first Tensor of numbers."""
    beside = _first_of_numbers(operands)
    return [as_node(o, beside) for o in operands]


def operand(value: object, beside: Tensor | None = None) -> Node | bool | int | float:
    """A node, or a plain number that will take its form from the other operands."""
    number = plain(value)
    return as_node(value, beside) if number is None else number


def power(x: TensorLike, y: TensorLike) -> Tensor:
    """x to the power y. Raises DTypeError for integers to a power known to be below 0."""
    out = elementwise("pow", x, y)
    by = out.node.inputs[1].op
    if out.dtype.is_integer and isinstance(by, Full) and by.value < 0:
        raise DTypeError(
            f"integers to the power {by.value} are no integers: {out.type}",
            'convert first: x.astype("float32")',
        )
    return out


def elementwise(fn: str, *operands: TensorLike) -> Tensor:
    """The elementwise op called `fn`, broadcast and promoted as the array API standard says."""
    return Tensor(build.call(fn, *side_by_side(operands)))


def side_by_side(operands: Sequence[object]) -> list[Node | bool | int | float]:
    """What an elementwise op is applied to.

    A size, a number and a list of numbers have the type of the first Tensor of numbers.
    """
    beside = _first_of_numbers(operands)
    return [operand(o, beside) for o in operands]


def _first_of_numbers(operands: Sequence[object]) -> Tensor | None:
    tensors = (o for o in operands if isinstance(o, Tensor) and o.dtype.kind is not Kind.BOOL)
    return next(tensors, None)
