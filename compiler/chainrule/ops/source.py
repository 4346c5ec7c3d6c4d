"""Sources: nodes without inputs. Leaves that are fed or kept, constants, sizes and indices."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import field
from functools import cached_property
from typing import Any

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.loop import IndexValue, Literal, Value
from chainrule.ir.node import Array, Index, Node, Op, Reader, Sample, apply, next_serial
from chainrule.ir.notation import ADD, ATOM, MULTIPLY, NEGATE, Notation
from chainrule.ir.size import Dim, Shape, known
from chainrule.ir.types import DType, TensorType, dtype, float64, int64
from chainrule.records import dataclass


@dataclass(frozen=True)
class Leaf(Op):
    """Something given: an `input` of a call, a `parameter` or a `state` that training changes.

    In the body of a loop, a `local`: what a step is given. It has no meaning outside.
    `serial` tells two leaves apart, and rises in the order of creation. `init` says how a parameter
    or a state begins; it is data for whoever makes the storage, not part of what the leaf is.
    """

    role = "leaf"

    kind: str
    label: str
    type: TensorType
    serial: int
    init: Any = field(default=None, compare=False, hash=False)

    @property
    def name(self) -> str:
        return self.kind

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.type

    def content(self, *inputs: TensorType) -> str | None:
        return None  # it is known by its place among what is given

    def notation(self, *inputs: Node) -> Notation:
        return Notation(escape(self.label), escape(latex_name(self.label)))

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        return iter(())


def leaf(kind: str, label: str, type: TensorType, init: Any = None) -> Node:
    """A new leaf: never merged with another."""
    node = apply(Leaf(kind, label, type, next_serial(), init))
    provenance.set_name(node, label)
    return node


def escape(text: str) -> str:
    """Text that a template gives back as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def latex_name(name: str) -> str:
    """A name in LaTeX: `W1` with its number as an index, longer names upright, Greek as Greek."""
    above, slash, below = name.partition("/∂")
    if slash and above.startswith("∂"):
        parts = latex_name(above[1:]), latex_name(below)
        return r"\frac{{\partial {}}}{{\partial {}}}".format(*parts)
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    stem = stem.removesuffix("_") if number else stem
    body = "\\" + stem if stem in _GREEK.split() else "".join(_letter(c) for c in stem)
    if (len(stem) != 1 and body == stem) or not stem.isalnum():
        body = rf"\mathrm{{{body}}}"
    return body + (f"_{{{number}}}" if number else "")


def latex_size(text: str) -> str:
    """A size, or an index made of sizes, in LaTeX: names upright, a product with a dot."""
    parts = re.split(r"([-+*%:()]|//)", text.replace(" ", ""))
    return "".join(_SIGNS.get(p, latex_name(p) if p.isidentifier() else p) for p in parts)


_SIGNS = {"*": r" \cdot ", "//": r" \div ", "%": r" \bmod "}


def _letter(c: str) -> str:
    """A character in LaTeX: a hat over y for ŷ, the command `beta` for β."""
    base, *marks = list(unicodedata.normalize("NFD", c))
    greek = unicodedata.name(base, "").removeprefix("GREEK SMALL LETTER ").lower()
    text = "\\" + greek if greek in _GREEK.split() else _TEX.get(base, base)
    for mark in marks:
        text = f"\\{_MARKS[mark]}{{{text}}}" if mark in _MARKS else text + mark
    return text


_MARKS = {"\u0302": "hat", "\u0303": "tilde", "\u0304": "bar", "\u0307": "dot"}
_TEX = {c: "\\" + c for c in "_#$%&{}"} | {
    "\\": r"\backslash{}",
    "^": r"\wedge{}",
    "~": r"\sim{}",
    " ": r"\ ",
}


_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau "
    "phi chi psi omega"
)


@dataclass(frozen=True)
class Full(Op):
    """One number at every index. Keyed by its bytes, since 0.0 == -0.0 and 1 == True."""

    role = "view"
    name = "full"
    data: bytes
    dtype: DType
    shape: Shape

    @cached_property
    def scalar(self) -> Array:
        """The number, as an array of rank 0."""
        return np.frombuffer(self.data, self.dtype.numpy).reshape(())

    @cached_property
    def value(self) -> float | int | bool:
        """The number."""
        value: float | int | bool = self.scalar.item()
        return value

    def infer(self, *inputs: TensorType) -> TensorType:
        if len(self.data) != self.dtype.itemsize:
            raise DTypeError(f"{len(self.data)} bytes are no number of {self.dtype}")
        return TensorType(self.dtype, self.shape)

    def ref(self, *inputs: Array) -> Array:
        return np.full(known(self.shape), self.scalar)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return Literal(self.value, self.dtype)

    def notation(self, *inputs: Node) -> Notation:
        text = format_number(self.value, self.dtype)
        return Notation(text, escape(_tex(text)), NEGATE if text.startswith("-") else ATOM)

    def explicit(self) -> str:
        """The tensor as a text that says its shape and, of integers, its type."""
        shape = ", ".join(map(str, self.shape)) + ("," if len(self.shape) == 1 else "")
        number = format_number(self.value, self.dtype)
        text = f"zeros(({shape}))" if number == "0" else f"full(({shape}), {number})"
        return text if self.dtype.is_float else f"{self.dtype}({text})"

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield full(2.5, float64, (2, 3)).op, []


def _tex(number: str) -> str:
    mantissa, e, exponent = number.partition("e")
    if e and exponent.lstrip("+-").isdigit():
        times = "" if mantissa == "1" else rf"{mantissa} \cdot "
        return rf"{times}10^{{{int(exponent)}}}"
    return number.replace("inf", r"\infty").replace("nan", r"\mathrm{nan}")


def format_number(value: float | int | bool, of: DType) -> str:
    """A number as it is written, as short as tells it apart in its type."""
    if isinstance(value, bool) or not of.is_float:
        return str(value)
    number: Any = of.numpy.type(value)
    rounded = (float(f"{float(number):.{digits}g}") for digits in range(1, 5))
    if of.bits == 16:  # four digits tell bfloat16s apart; ml_dtypes writes six
        number = next((r for r in rounded if of.numpy.type(r) == number), number)
    return str(number).removesuffix(".0")


def full(value: float | int | bool, of: DType, shape: Shape) -> Node:
    """The tensor with `value` everywhere. Raises DTypeError if the type can't hold it."""
    if of.is_integer and not of.bounds[0] <= value <= of.bounds[1]:
        raise DTypeError(f"{of} can't hold {value}")
    if of.is_float and isinstance(value, int) and value.bit_length() > 1023:
        raise DTypeError(f"{of} can't hold an integer of {value.bit_length()} bits")
    if of.is_float and isinstance(value, int) and value.bit_length() > 63:
        value = float(value)  # NumPy would keep it as an object
    with np.errstate(over="ignore"):
        return apply(Full(np.asarray(value).astype(of.numpy).tobytes(), of, shape))


@dataclass(frozen=True)
class Constant(Op):
    """An array that is part of the graph, keyed by its bytes."""

    role = "leaf"
    name = "constant"
    data: bytes = field(repr=False)
    type: TensorType

    @property
    def array(self) -> Array:
        """The array, read-only."""
        return np.frombuffer(self.data, self.type.dtype.numpy).reshape(known(self.type.shape))

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.type

    def content(self, *inputs: TensorType) -> str | None:
        return f"constant {hashlib.sha256(self.data).hexdigest()} {self.type!r}"

    def ref(self, *inputs: Array) -> Array:
        return self.array

    def notation(self, *inputs: Node) -> Notation:
        size = len(self.data) // self.type.dtype.itemsize
        text = str(self.array.tolist()) if size <= 4 else f"constant{list(self.type.shape)}"
        return Notation(text, text)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield constant(np.arange(6.0).reshape(2, 3)).op, []


def constant(array: Array, of: DType | None = None) -> Node:
    """The node of an array; one number everywhere becomes `Full`."""
    array = np.ascontiguousarray(array, (of or dtype(array.dtype)).numpy).reshape(np.shape(array))
    kind = TensorType(dtype(array.dtype), tuple(array.shape))
    data = array.tobytes()
    item = kind.dtype.itemsize
    if array.size and data == data[:item] * array.size:
        return apply(Full(data[:item], kind.dtype, kind.shape))
    return apply(Constant(data, kind))


@dataclass(frozen=True)
class SizeOf(Op):
    """The value of a size, as a number."""

    role = "view"
    name = "size"
    size: Dim
    dtype: DType

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType(self.dtype, ())

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(self.size, self.dtype.numpy)

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return IndexValue(self.size, self.dtype)

    def notation(self, *inputs: Node) -> Notation:
        text = str(self.size)
        terms = () if isinstance(self.size, int) else self.size.terms
        is_name = not terms or (len(terms) == 1 and len(terms[0][0]) == 1 and terms[0][1] == 1)
        binds = ATOM if is_name else MULTIPLY if len(terms) == 1 else ADD
        latex = latex_size(text)
        return Notation(escape(text), escape(latex), binds)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(7, float64), []


def size_of(size: Dim, of: DType) -> Node:
    """A size as a scalar: a literal where it is known."""
    return full(size, of, ()) if isinstance(size, int) else apply(SizeOf(size, of))


@dataclass(frozen=True)
class Iota(Op):
    """The index along one axis."""

    role = "view"
    indexed = True
    name = "iota"
    shape: Shape
    axis: int
    dtype: DType

    def infer(self, *inputs: TensorType) -> TensorType:
        if not 0 <= self.axis < len(self.shape):
            raise ShapeError(f"an index along axis {self.axis} does not fit {self.shape}")
        return TensorType(self.dtype, self.shape)

    def ref(self, *inputs: Array) -> Array:
        return np.asarray(np.indices(known(self.shape), self.dtype.numpy)[self.axis])

    def body(self, index: Index, out: TensorType, *inputs: Reader) -> Value:
        return IndexValue(index[self.axis], self.dtype)

    def notation(self, *inputs: Node) -> Notation:
        n, last = self.shape[self.axis], len(self.shape) - 1
        axes = ", ".join(":" if i == self.axis else "None" for i in range(self.axis, last + 1))
        at = f"[{axes}]" if self.axis < last else ""
        tex = rf"\operatorname{{arange}}({latex_size(str(n))})" + (f"_{{{at}}}" if at else "")
        return Notation(f"arange({n}){at}", escape(tex))

    @classmethod
    def words(cls) -> dict[str, Callable[..., Node]]:
        return {"arange": lambda n: apply(cls((n,), 0, int64))}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls((2, 3), 1, int64), []
        yield cls((4,), 0, float64), []
