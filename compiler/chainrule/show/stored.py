"""Graphs in files: every node as one entry of plain data, read back through the ops themselves.

Printed mathematics leaves out what a reader sees, and is what a person reads; this leaves out
nothing, so that what is compiled from it has the same bits. An entry is the op's name, the numbers
of its operands' entries, its attributes, and the user's name for it. What is read is data: an
attribute is of the type that its op declares, and each node is inferred anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ArtifactError, ChainruleError
from chainrule.ir import provenance
from chainrule.ir.formula import Call, Formula, Name, Number
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, Op, apply
from chainrule.ir.size import Dim, Quotient, Remainder, Size
from chainrule.ir.types import DType, TensorType, check_shape
from chainrule.ir.types import dtype as dtype_of
from chainrule.ops.activations import ACTIVATIONS
from chainrule.ops.body import Body
from chainrule.ops.composite import Defined
from chainrule.ops.elementwise import TABLE, Elementwise
from chainrule.ops.registry import KINDS
from chainrule.ops.source import Constant, Leaf, leaf

Array = np.ndarray[Any, Any]
_KINDS = ("input", "parameter", "state")
_LARGEST = 2**62
#: attributes that passes set, and users never
_DERIVED = ("role",)


def written(roots: Sequence[Node]) -> tuple[list[Any], list[int], dict[str, Array]]:
    """Entries for every node, the number of each root's, and the arrays of constants by name.

    Raises ArtifactError for an op that is a Python function.
    """
    store = _Writing()
    leaves = [n for n in _everything(roots) if isinstance(n.op, Leaf) and n.op.kind in _KINDS]
    for node in sorted(leaves, key=lambda n: n.op.serial):  # type: ignore[attr-defined]
        store.add(node)
    return store.entries, [store.number(r) for r in roots], store.arrays


def _everything(roots: Sequence[Node]) -> list[Node]:
    """The nodes that roots depend on; loops read nothing that is not among them."""
    return walk(roots)


class _Writing:
    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.arrays: dict[str, Array] = {}
        self._numbers: dict[Node, int] = {}

    def number(self, root: Node) -> int:
        """The number of a node's entry, which is made if need be, with those it depends on."""
        for node in walk([root], stop=self._numbers.__contains__):
            if node not in self._numbers:
                self.add(node)
        return self._numbers[root]

    def add(self, node: Node) -> None:
        """Make a node's entry, after those of its operands."""
        entry = [*self._said(node.op), [self._numbers[i] for i in node.inputs]]
        name = provenance.user_name_of(node)
        self.entries.append([*entry, name] if name is not None else entry)
        self._numbers[node] = len(self.entries) - 1

    def _said(self, op: Op) -> tuple[str, Any]:
        if isinstance(op, Leaf):
            serial = op.serial if op.kind == "local" else None
            return op.kind, [op.label, _TYPE.write(op.type), serial]
        if isinstance(op, Elementwise):
            return f"elementwise.{op.name}", None
        if isinstance(op, Defined) and ACTIVATIONS.get(op.label) == op:
            return f"activation.{op.label}", None
        if isinstance(op, Constant):
            name = f"constant{len(self.arrays)}"
            self.arrays[name] = np.array(op.array)
            return "array", name
        if KINDS.get(type(op).__name__) is not type(op):
            raise _unstorable(op)
        found: dict[str, Any] = {}
        for field in dataclasses.fields(op):  # type: ignore[arg-type]
            value = getattr(op, field.name)
            if field.name in _DERIVED:
                continue
            if field.type == "Body":
                groups = (value.carries, value.slices, value.constants, value.nexts, value.ys)
                found[field.name] = [[self.number(n) for n in group] for group in groups]
            elif str(field.type) in _FIELDS:
                found[field.name] = _FIELDS[str(field.type)].write(value)
            else:
                raise _unstorable(op)
        return type(op).__name__, found


def _unstorable(op: Op) -> ArtifactError:
    return ArtifactError(
        f"{op.name} is a Python function, and a file holds data alone",
        "cr.elementwise makes an op of a formula, which can be written; or keep step.save's state",
    )


def read(entries: Any, roots: Sequence[Any], arrays: Mapping[str, Array]) -> list[Node]:
    """The nodes of entries that `written` made. Raises ArtifactError for anything else."""
    if not isinstance(entries, list):
        raise ArtifactError("a graph is a list of entries")
    nodes: list[Node] = []
    for number, entry in enumerate(entries):
        try:
            node = _entry(entry, nodes, arrays)
        except ArtifactError as error:
            raise ArtifactError(f"node {number} of the graph: {error.what}") from None
        except ChainruleError as error:
            raise ArtifactError(f"node {number} of the graph: {error.what}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(f"node {number} of the graph is none: {error!r}") from None
        nodes.append(node)
    return [at(nodes, r) for r in roots]


def at(nodes: Sequence[Node], number: Any) -> Node:
    """The node of a number. Raises ArtifactError."""
    if type(number) is not int or not 0 <= number < len(nodes):
        raise ArtifactError(f"there is no node {number!r}")
    return nodes[number]


def _entry(entry: Any, nodes: list[Node], arrays: Mapping[str, Array]) -> Node:
    if not isinstance(entry, list) or len(entry) not in (3, 4) or not isinstance(entry[0], str):
        raise ArtifactError(f"{str(entry)[:60]} is no entry")
    kind, said, numbers, *name = entry
    inputs = tuple(at(nodes, n) for n in numbers)
    if kind in (*_KINDS, "local"):
        node = _leaf(kind, said)
    elif kind == "array":
        array = arrays[said]
        node = apply(Constant(array.tobytes(), TensorType(dtype_of(array.dtype), array.shape)))
    else:
        node = _applied(_op(kind, said, nodes), inputs)
    if name:
        provenance.set_name(node, _text(name[0]))
    return node


def _applied(op: Op, inputs: tuple[Node, ...]) -> Node:
    """A node of an op whose attributes nobody has checked yet."""
    axes = getattr(op, "axes", ())
    if isinstance(axes, tuple) and len(set(axes)) < len(axes):
        raise ArtifactError(f"{op.name} names an axis twice")
    node = apply(op, *inputs)
    sizes = (*node.shape, *op.demands(*(i.type for i in inputs)))
    least = (0,) * node.type.rank + (1,) * (len(sizes) - node.type.rank)
    if any(isinstance(d, int) and d < n for d, n in zip(sizes, least, strict=True)):
        raise ArtifactError(f"{op.name} reads, or makes, what is not there: {node.type}")
    return node


def _leaf(kind: str, said: Any) -> Node:
    label, of, serial = _text(said[0]), _TYPE.read(said[1]), said[2]
    if kind == "local":
        if type(serial) is not int or not -_LARGEST < serial < 0:
            raise ArtifactError("what a step of a loop is given has a number")
        return apply(Leaf(kind, label, of, serial))
    return leaf(kind, label, of, np.zeros((), of.dtype.numpy) if kind != "input" else None)


def _op(kind: str, said: Any, nodes: list[Node]) -> Op:
    family, _, name = kind.partition(".")
    if family == "elementwise":
        return TABLE[name]
    if family == "activation":
        return ACTIVATIONS[name]
    cls = KINDS.get(kind)
    if cls is None or not isinstance(said, dict):
        raise ArtifactError(f"there is no op {kind[:60]!r}")
    fields = {f.name: str(f.type) for f in dataclasses.fields(cls) if f.name not in _DERIVED}  # type: ignore[arg-type]
    if said.keys() != fields.keys() or any(t not in (*_FIELDS, "Body") for t in fields.values()):
        raise ArtifactError(f"{kind} has {', '.join(fields) or 'nothing'}, not {', '.join(said)}")
    values = {
        n: _body(said[n], nodes) if fields[n] == "Body" else _FIELDS[fields[n]].read(said[n])
        for n in fields
    }
    return cls(**values)


def _body(said: Any, nodes: list[Node]) -> Body:
    groups = [tuple(at(nodes, n) for n in group) for group in said]
    body = Body(*groups)
    own = body.leaves
    if len(set(own)) < len(own) or not all(_is_local(n) for n in own):
        raise ArtifactError("what a step of a loop is given are leaves of its own")
    for node in walk(body.roots):
        if isinstance(node.op, Leaf) and node not in own:
            raise ArtifactError("a loop reads what it is not given")
    return body


def _is_local(node: Node) -> bool:
    return isinstance(node.op, Leaf) and node.op.kind == "local"


# attributes, by the types that ops declare


@dataclasses.dataclass(frozen=True)
class _Field:
    """How an attribute is written as plain data and read back, checked."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _wrong(value: Any, wanted: str) -> ArtifactError:
    return ArtifactError(f"{str(value)[:60]} is no {wanted}")


def _plain(kind: type, *more: type | None) -> _Field:
    kinds = {kind, *(type(None) if m is None else m for m in more)}

    def read_plain(value: Any) -> Any:
        if type(value) not in kinds or (type(value) is int and abs(value) >= _LARGEST):
            raise _wrong(value, " or ".join(k.__name__ for k in kinds))
        return value

    return _Field(lambda value: value, read_plain)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
        raise _wrong(value, "text")
    return value


def _tuple(of: _Field) -> _Field:
    def read_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _wrong(value, "list")
        return tuple(of.read(v) for v in value)

    return _Field(lambda value: [of.write(v) for v in value], read_all)


def _optional(of: _Field) -> _Field:
    return _Field(
        lambda value: None if value is None else of.write(value),
        lambda value: None if value is None else of.read(value),
    )


def _write_dim(dim: Dim) -> Any:
    if isinstance(dim, int):
        return dim
    return [[c, [_write_atom(a) for a in atoms]] for atoms, c in dim.terms]


def _write_atom(atom: Any) -> Any:
    if isinstance(atom, str):
        return atom
    sign = "//" if isinstance(atom, Quotient) else "%"
    return [sign, _write_dim(atom.numerator), _write_dim(atom.denominator)]


def _read_dim(value: Any) -> Dim:
    if type(value) is int and abs(value) < _LARGEST:
        return value
    if not isinstance(value, list):
        raise _wrong(value, "size")
    total: Dim = 0
    for count, atoms in value:
        term = _plain(int).read(count)
        for atom in atoms:
            term = term * _read_atom(atom)
        total = total + term
    return total


def _read_atom(atom: Any) -> Dim:
    if isinstance(atom, str):
        if not atom.isidentifier():
            raise _wrong(atom, "name of a size")
        return Size.symbol(atom)
    sign, numerator, denominator = atom
    if sign not in ("//", "%"):
        raise _wrong(sign, "division")
    made = Quotient if sign == "//" else Remainder
    return Size({(made(_read_dim(numerator), _read_dim(denominator)),): 1})


def _write_formula(tree: Formula) -> Any:
    if isinstance(tree, Number):
        return tree.value
    return tree.name if isinstance(tree, Name) else [tree.fn, *map(_write_formula, tree.args)]


def _read_formula(value: Any) -> Formula:
    if type(value) in (int, float):
        return Number(value)
    if isinstance(value, str):
        return Name(_text(value))
    fn, *args = value
    if fn not in TABLE or len(args) != len(TABLE[fn].params):
        raise _wrong(fn, "function of so many operands")
    return Call(fn, tuple(map(_read_formula, args)))


def _read_dtype(value: Any) -> DType:
    return dtype_of(_text(value))


def _read_bytes(value: Any) -> bytes:
    return bytes.fromhex(_text(value))


_DIM = _Field(_write_dim, _read_dim)
_SHAPE = _Field(_tuple(_DIM).write, lambda value: check_shape(_tuple(_DIM).read(value)))
_DTYPE = _Field(str, _read_dtype)
_TYPE = _Field(
    lambda of: [str(of.dtype), _SHAPE.write(of.shape)],
    lambda value: TensorType(_read_dtype(value[0]), _SHAPE.read(value[1])),
)
_FORMULA = _Field(_write_formula, _read_formula)
_NUMBERS = _tuple(_plain(int))
_FIELDS: dict[str, _Field] = {
    "int": _plain(int),
    "bool": _plain(bool),
    "str": _Field(_text, _text),
    "float": _plain(float),
    "float | int": _plain(float, int),
    "float | None": _plain(float, None),
    "bytes": _Field(bytes.hex, _read_bytes),
    "Dim": _DIM,
    "Dim | None": _optional(_DIM),
    "Shape": _tuple(_DIM),
    "Ints": _NUMBERS,
    "tuple[int, ...]": _NUMBERS,
    "DType": _DTYPE,
    "TensorType": _TYPE,
    "tuple[str, ...]": _tuple(_Field(_text, _text)),
    "Formula": _FORMULA,
    "tuple[Formula, ...]": _tuple(_FORMULA),
    "tuple[tuple[str, float], ...]": _Field(
        lambda value: [list(pair) for pair in value],
        lambda value: tuple((_text(n), _plain(float).read(v)) for n, v in value),
    ),
}
