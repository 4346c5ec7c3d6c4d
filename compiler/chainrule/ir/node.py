"""The one kind of node, and what an operation must say of itself.

A `Node` is an op, its inputs and the type inferred from them; it is immutable and interned, so two
equal expressions are one object and equality is identity. What a user called a node and where it
was written are not part of it: they stand in a side table (`provenance`).
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import provenance
from chainrule.ir.loop import Loop, Stmt, Value
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Shape, Size, product, substitute
from chainrule.ir.types import DType, TensorType, check_count
from chainrule.records import dataclass

if TYPE_CHECKING:
    from chainrule.ir.graph import Graph

Array = np.ndarray[Any, Any]
Index = tuple[Dim, ...]
Stmts = tuple[Stmt, ...]
Types = Sequence[TensorType]
Reader = Callable[[Index], Value]
Writer = Callable[[Index, Value], Stmt]
Sample = tuple["Op", list[TensorType]]
#: reverse mode, handed to ops that hold graphs: results, their cotangents, leaves -> cotangents
Nodes = Sequence["Node"]
Pullback = Callable[[Nodes, Nodes, Nodes], "Sequence[Node | None]"]
O = TypeVar("O", bound="Op")


@dataclass(frozen=True)
class FromEnd:
    """What positions in [-size, size) must stay within: those below 0 count from the end."""

    size: Dim


Bound = Dim | FromEnd


def within(bound: Bound) -> tuple[Dim, Dim]:
    """The least position that a bound allows, and the first above."""
    return (-bound.size, bound.size) if isinstance(bound, FromEnd) else (0, bound)


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
    * `stands`  of one that `joins` its operands: where in the result an operand's element is
    * `patch`   of one that `patches` its first operand: loops that do so in place
    * `content` all that decides what it computes, as text, by which compiled code is kept
    * `bodies`  graphs that are part of it; `family`, `pull`, `narrow`: of an op of several results
    * `notation` how it prints; `words` how that is read back, where it is written as a function
    * `samples` examples, from which the tests are generated
    """

    name: Any
    #: what its loops are like: "pointwise" an element from elements at the same index · "view" an
    #: index map, or a number from an index · "light" pointwise, and cheaper to compute again where
    #: it is read than to keep · "leaf" memory that is given · "alias" the operand's
    #: memory under another shape · "reduce" · "contract" · "nest" loops of its own · "attend" some
    #: rows of products after another · "scan" a body that is repeated
    role: str = "pointwise"
    #: whether an element depends on where it stands, and not on the operands' elements alone; also
    #: of a view whose index map is not affine, so that no stride leads from element to element
    indexed: bool = False
    #: operands that must lie in memory because they are read at places known only at run time
    buffered: tuple[int, ...] = ()
    #: the operand that the result differs by from the first one, as a part of it; see `patch`
    patches: int | None = None
    #: whether it only puts operands together, so that who computes them can write them there
    joins: bool = False
    #: what its result is called where it has no name: z for sums and products, h for activations
    letter: str = "t"
    #: whether it is above 0 just where its operand is, so that a sign can be read off either
    rectifies: bool = False
    #: whether it is a plain function of other ops, see `expand`
    composite: bool = False
    #: where it has no derivative, so that it needs no `vjp`: why, which the error says
    undifferentiable: str = ""
    #: whether its elements are its operands' elements, or numbers that are given: it moves them and
    #: computes nothing. Views, leaves and aliases do so anyway
    moves: bool = False
    #: whether it only rounds its operand to the element type of the result
    rounds: bool = False
    #: of a composite: whether each op that it stands for rounds its own result, as where users
    #: wrote it; else it is one function, rounded once
    stepwise: bool = False
    #: whether it draws random numbers; its operands are then seed, step and numbers of the draw
    draws: bool = False
    #: whether its derivative is the user's own, which `content` does not tell
    own_derivative: bool = False
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

    def bounds(self, *inputs: TensorType) -> tuple[tuple[int, Bound], ...]:
        """Which integer operands are positions, and the size each must stay below, from 0 on or
        `FromEnd`.
        """
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

    def content(self, *inputs: TensorType) -> str | None:
        """All that decides what it computes, as text that is equal in every process, without names.

        None where that can't be told, as of an op that is defined outside.
        """
        return repr(self) if type(self).__module__.startswith("chainrule.") else None

    def bodies(self) -> tuple[Graph, ...]:
        """Graphs that are part of the op, such as what a loop does at each step."""
        return ()

    def with_bodies(self, graphs: Sequence[Graph]) -> Op:
        """The op with other graphs, of the same results, in the places of its `bodies`."""
        return self

    @property
    def family(self) -> Hashable:
        """What an op with several results shares with those that compute the others: nodes of equal
        family and inputs are computed together. None for an op of one result.
        """
        return None

    def narrow(self, used: Collection[Op]) -> tuple[Mapping[Op, Op], tuple[int, ...]] | None:
        """Of a family of which only `used` is needed: what each becomes, and which operands those
        still read. None where nothing is to be gained.
        """
        return None

    def pull(
        self, cts: Mapping[Op, Node], wanted: Sequence[bool], pullback: Pullback, *inputs: Node
    ) -> tuple[Node | None, ...]:
        """Of a family: cotangents of the operands that are `wanted`, from those of its results."""
        raise NotImplementedError

    def expand(self, *inputs: Node) -> Node:
        raise NotImplementedError

    def definition(self, *inputs: Node) -> Node:
        """For a composite: what a textbook says it is, where `expand` guards against overflow."""
        return self.expand(*inputs)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        raise NotImplementedError

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        raise NotImplementedError

    def stands(self, types: Types, operand: int, index: Index) -> Index:
        """Where in the result an element of an operand is."""
        raise NotImplementedError(f"{self.name} joins nothing")

    def patch(self, types: Types, result: Reader, *inputs: Reader) -> Stmts:
        """Where the result lies in the first operand's memory: loops that write what differs."""
        raise NotImplementedError

    def workspace(self, types: Types) -> tuple[tuple[DType, Dim], ...]:
        """Memory that `nest` needs for itself: a reader of one index follows the inputs for each.

        What a loop finds there is what it wrote itself.
        """
        return ()

    def notation(self, *inputs: Node) -> Notation:
        raise NotImplementedError

    @classmethod
    def words(cls) -> dict[str, Callable[..., Node]]:
        """The functions it is written as: of each what it makes of nodes, and options by name."""
        return {}

    def folds(self, x: TensorType) -> tuple[int, ...]:
        """The axes of an operand of type `x` that go: a reader sees which when they come back."""
        return ()

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
        types = [i.type for i in inputs]
        result = op.infer(*types)
        if not inputs or result.shape is not types[0].shape:
            _check_count(result, op, types)
        node = Node(op, inputs, result)
        node = _interned.setdefault(key, node)
        provenance.created(node)
    return node


def _check_count(result: TensorType, op: Op, types: Types) -> None:
    try:
        check_count(result.shape)
    except ShapeError as error:
        of = f" of {', '.join(map(str, types))}" if types else ""
        raise ShapeError(f"{op.name}{of}: {error.what}", *error.details) from None


_serial = itertools.count()


def next_serial() -> int:
    """A number that tells leaves apart, rising in the order of creation."""
    return next(_serial)


def rebuild(node: Node, inputs: Sequence[Node]) -> Node:
    """The node with other inputs; itself where they are the same."""
    inputs = tuple(inputs)
    if inputs == node.inputs:  # of nodes, equality is identity
        return node
    with provenance.derived_from(node):
        return apply(node.op, *inputs)


def for_each(
    shape: Shape, body: Callable[[Index], Stmts], prefix: str = "i", inner: str = "serial"
) -> Stmts:
    """Loops over every index of a shape, in row-major order; `inner` is the last axis' mode."""
    names = [f"{prefix}{axis}'" for axis in range(len(shape))]
    stmts = body(tuple(Size.symbol(n) for n in names))
    mode = inner
    for name, extent in zip(reversed(names), reversed(shape), strict=True):
        stmts, mode = (Loop(name, extent, stmts, mode),), "serial"
    return stmts
