"""The one kind of node, and what an operation must say of itself.

A `Node` is an op, its inputs and the type inferred from them; it is immutable and interned, so two
equal expressions are one object and equality is identity. What a user called a node and where it
was written are not part of it: they stand in a side table (`provenance`).
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from chainrule.ir import provenance
from chainrule.ir.loop import Loop, Stmt, Value
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, Size, product, substitute
from chainrule.ir.types import TensorType

Array = np.ndarray[Any, Any]
Index = tuple[Dim, ...]
Stmts = tuple[Stmt, ...]
Types = Sequence[TensorType]
Reader = Callable[[Index], Value]
Writer = Callable[[Index, Value], Stmt]
Sample = tuple["Op", list[TensorType]]
O = TypeVar("O", bound="Op")


class Op:
    """What an operation is. A subclass is a frozen dataclass whose fields are its attributes.

    Every room asks the op, none asks which op it is:

    * `infer`   the result's type from the inputs' types; raises ShapeError or DTypeError
    * `ref`     its meaning in NumPy, on arrays whose sizes are known
    * `vjp`     cotangents of the inputs from the cotangent of the result; None where there is none
    * `reaches` whether an operand has a derivative at all, or only chooses
    * `expand`  for a composite: the same thing in other ops (then it needs no `body`)
    * `repeats` the axes along which a view only repeats; `flops` how much it computes
    * `body`    element `index` of the result as a scalar `Value`, reading its inputs
    * `nest`    or, where an element is not a function of its index: loops that write the result
    * `notation` how it prints
    * `samples` examples, from which the tests are generated
    """

    name: Any
    #: what its loops are like: "pointwise" an element from elements at the same index · "view" an
    #: index map, or a number from an index · "light" pointwise, and cheaper to compute again where
    #: it is read than to keep · "leaf" memory that is given · "alias" the operand's
    #: memory under another shape · "reduce" · "contract" · "nest" loops of its own
    role: str = "pointwise"
    #: whether an element depends on where it stands, and not on the operands' elements alone; also
    #: of a view whose index map is not affine, so that no stride leads from element to element
    indexed: bool = False
    #: operands that must lie in memory because they are read at places known only at run time
    buffered: tuple[int, ...] = ()
    #: what its result is called where it has no name: z for sums and products, h for activations
    letter: str = "t"
    #: whether it is a plain function of other ops, see `expand`
    composite: bool = False
    #: (low, high, seed) of the values the tests draw
    domain: tuple[float, float] = (-2.0, 2.0)

    def infer(self, *inputs: TensorType) -> TensorType:
        raise NotImplementedError

    def ref(self, *inputs: Array) -> Array:
        raise NotImplementedError

    def reaches(self, operand: int) -> bool:
        """Whether a derivative can pass to this operand; an operand that is no float, never."""
        return True

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        raise NotImplementedError

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Dim], ...]:
        """Which integer operands are positions, and the size each must stay below."""
        return ()

    def demands(self, *inputs: TensorType) -> tuple[Dim, ...]:
        """Sizes that must be at least 1 when the sizes are known, or the op has no meaning."""
        return ()

    def repeats(self) -> tuple[int, ...]:
        """For a view: the result's axes along which it repeats; all else is as it was."""
        return ()

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        """Operations on numbers, one an element by default, whatever its polynomial costs."""
        return product(out.shape) if self.role in ("pointwise", "light") else 0

    def expand(self, *inputs: Node) -> Node:
        raise NotImplementedError

    def definition(self, *inputs: Node) -> Node:
        """For a composite: what a textbook says it is, where `expand` guards against overflow."""
        return self.expand(*inputs)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        raise NotImplementedError

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        raise NotImplementedError

    def notation(self, *inputs: Node) -> Notation:
        raise NotImplementedError

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        raise NotImplementedError

    def resolve(self: O, sizes: dict[str, Dim]) -> O:
        """This op with symbolic sizes in its attributes replaced."""
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            new = _resolve(value, sizes)
            if new is not value:
                changed[field.name] = new
        return dataclasses.replace(self, **changed) if changed else self  # type: ignore[type-var]


def _resolve(value: Any, sizes: dict[str, Dim]) -> Any:
    if isinstance(value, Size):
        return substitute(value, sizes)
    if isinstance(value, tuple):
        new = tuple(_resolve(v, sizes) for v in value)
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    return value


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True, repr=False)
class Node:
    """An operation applied to inputs. Make one with `apply`."""

    op: Op
    inputs: tuple[Node, ...]
    type: TensorType

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def dtype(self) -> Any:
        return self.type.dtype

    def __repr__(self) -> str:
        label = provenance.name_of(self)
        return f"<{self.op.name}{' ' + label if label else ''}: {self.type}>"


_interned: weakref.WeakValueDictionary[tuple[Op, tuple[Node, ...]], Node]
_interned = weakref.WeakValueDictionary()


def apply(op: Op, *inputs: Node) -> Node:
    """The node `op(*inputs)`: the one that exists, or a new one of the type inferred."""
    key = (op, inputs)
    node = _interned.get(key)
    if node is None:
        node = Node(op, inputs, op.infer(*[i.type for i in inputs]))
        node = _interned.setdefault(key, node)
        provenance.created(node)
    return node


_serial = itertools.count()


def next_serial() -> int:
    """A number that tells leaves apart, rising in the order of creation."""
    return next(_serial)


def rebuild(node: Node, inputs: Sequence[Node]) -> Node:
    """The node with other inputs; itself where they are the same."""
    inputs = tuple(inputs)
    if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    with provenance.derived_from(node):
        return apply(node.op, *inputs)


def for_each(
    shape: Shape, body: Callable[[Index], Stmts], prefix: str = "i", inner: str = "serial"
) -> Stmts:
    """Loops over every index of a shape, in row-major order; `inner` is the last axis' mode."""
    names = [f"{prefix}{axis}" for axis in range(len(shape))]
    stmts = body(tuple(Size.symbol(n) for n in names))
    mode = inner
    for name, extent in zip(reversed(names), reversed(shape), strict=True):
        stmts, mode = (Loop(name, extent, stmts, mode),), "serial"
    return stmts
