"""The order of elements along an axis, found in time linear in their number.

A radix sort from the least significant digit (Knuth, The Art of Computer Programming 3, 5.2.5):
elements become unsigned keys of the same order, and are dealt out by one byte of their keys after
another. It compares nothing and each deal keeps the order of equals, so it is stable; its time
does not depend on the data, and no size has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.loop import (
    Apply,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Set,
    Store,
    Value,
)
from chainrule.ir.node import (
    Array,
    Index,
    Node,
    Op,
    Reader,
    Sample,
    Stmts,
    Types,
    Writer,
    apply,
    for_each,
)
from chainrule.ir.notation import Notation
from chainrule.ir.size import Dim, Size, product
from chainrule.ir.types import (
    DTYPES,
    DType,
    Kind,
    TensorType,
    bool_,
    float32,
    float64,
    int64,
)
from chainrule.ops import build, reading
from chainrule.records import dataclass

#: Values of a digit: one byte of a key.
_DIGITS = 256
#: Up to so many elements each is compared with each, 16 at a time: dealing costs more, measured.
FEW = 64


@dataclass(frozen=True)
class ArgSort(Op):
    """The places of the elements in order along an axis, as int64; equal ones keep theirs.

    0.0 and -0.0 are equal, and a NaN is above all numbers, as NumPy and PyTorch have it; so the
    NaNs come last, or first in a `descending` order.
    """

    role = "nest"
    name = "argsort"
    axis: int
    descending: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if not 0 <= self.axis < x.rank:
            raise ShapeError(f"argsort along axis {self.axis} does not fit {x}")
        if x.dtype.is_float and x.dtype not in (float32, float64):
            raise DTypeError(f"argsort orders float32 and float64, not {x}")
        return x.with_dtype(int64)

    def flops(self, out: TensorType, *inputs: TensorType) -> Dim:
        return product(out.shape)

    def ref(self, *inputs: Array) -> Array:
        (x,) = inputs
        if not self.descending:
            return np.argsort(x, axis=self.axis, kind="stable")
        backward = np.argsort(np.flip(x, self.axis), axis=self.axis, kind="stable")
        return np.asarray(x.shape[self.axis] - 1 - np.flip(backward, self.axis))

    def workspace(self, types: Types) -> tuple[tuple[DType, Dim], ...]:
        (x,) = types
        size, key = x.shape[self.axis], _key_type(x.dtype)
        if isinstance(size, int) and size <= FEW:
            return ((key, size),)
        return (key, size), (int64, size), (key, size), (int64, size), (int64, _digits(key))

    def nest(self, types: Types, write: Writer, result: Reader, *inputs: Reader) -> Stmts:
        (x,) = types
        size, read = x.shape[self.axis], inputs[0]
        work = [Row(reader) for reader in inputs[1:]]
        lead = (*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :])

        def row(index: Index) -> Stmts:
            def at(place: Dim) -> Index:
                return (*index[: self.axis], place, *index[self.axis + 1 :])

            def key(place: Dim) -> Value:
                return _key(read(at(place)), self.descending)

            out = Row(lambda place: result(at(place[0])))
            if isinstance(size, int) and size <= FEW:
                return _by_comparing(size, key, out, *work)
            return _by_dealing(size, key, out, *work)

        return for_each(lead, row)

    def notation(self, *inputs: Node) -> Notation:
        order = ", descending=True" if self.descending else ""
        tex = rf"\operatorname{{{{argsort}}}}_{{{{{self.axis}}}}}\left({{0}}\right)"
        return Notation(f"argsort({{0}}, axis={self.axis}{order})", tex)

    @classmethod
    def words(cls) -> dict[str, reading.Word]:
        def order(x: Node, axis: int = -1, descending: bool = False) -> Node:
            return apply(cls(reading.axis_of(axis, x), descending), x)

        return {"argsort": order}

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield cls(1), [TensorType(float64, (2, 7))]
        yield cls(0, True), [TensorType(float32, (5, 2))]
        yield cls(0), [TensorType(int64, (FEW + 40,))]
        yield cls(1, True), [TensorType(float64, (2, FEW + 1))]
        yield cls(0), [TensorType(bool_, (9,))]


def argsort(x: Node, axis: int, descending: bool) -> Node:
    """The node of an order; elements of 16 bits are ordered as the float32 that they are."""
    return apply(ArgSort(axis, descending), build.cast(x, float32) if _is_short(x) else x)


def _is_short(x: Node) -> bool:
    return x.type.dtype.is_float and x.type.dtype.bits < 32


class Row:
    """A run of memory: the elements that a reader of one index reads, to load and to store."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def place(self, at: Dim) -> Load:
        load = self.reader((at,))
        assert isinstance(load, Load)
        return load

    def load(self, at: Dim | Value) -> Load:
        """An element, at an index that is known or at one that is a value."""
        if isinstance(at, int | Size):
            return self.place(at)
        first, second = self.place(0), self.place(1)
        return Load(first.buffer, first.offset, at, second.offset - first.offset)

    def store(self, at: Dim | Value, value: Value) -> Store:
        """A statement that writes an element."""
        to = self.load(at)
        return Store(to.buffer, to.offset, value, to.index, to.stride)


def _key_type(of: DType) -> DType:
    return DTYPES[f"uint{max(of.bits, 8)}"]


def _digits(key: DType) -> int:
    """The numbers of elements of each value of each digit."""
    return _DIGITS * key.itemsize


def _key(value: Value, descending: bool) -> Value:
    """An unsigned number of the order of the value."""
    key = _key_type(value.dtype)
    if value.dtype.is_float:
        value = _ordered_bits(value)
    signed = value.dtype.kind is Kind.INT
    if value.dtype != key:
        value = Apply("cast", (value,), key)
    if signed:
        value = Apply("xor", (value, Literal(1 << (key.bits - 1), key)), key)
    return Apply("not_", (value,), key) if descending else value


def _ordered_bits(x: Value) -> Value:
    """A signed integer of the order of a float: the bits, those of negative numbers turned round.

    Adding 0 makes -0 a 0; every NaN becomes the largest number.
    """
    signed = DTYPES[f"int{x.dtype.bits}"]
    bits = Apply("bits", (Apply("add", (x, Literal(0.0, x.dtype)), x.dtype),), signed)
    largest = Literal(2 ** (signed.bits - 1) - 1, signed)
    sign = Apply("ashr", (bits, Literal(signed.bits - 1, signed)), signed)
    turned = Apply("xor", (bits, Apply("and_", (sign, largest), signed)), signed)
    return Apply("where", (Apply("ne", (x, x), bool_), largest, turned), signed)


def _by_comparing(size: Dim, key: Callable[[Dim], Value], out: Row, keys: Row) -> Stmts:
    """Each element goes where the number of those before it says, found by comparing all.

    Before it go the smaller ones, and of the equal ones those that stand before it.
    """
    i, j = Size.symbol("i'"), Size.symbol("j'")
    before = Local("before", int64, (), lanes=True)
    own, other = keys.load(i), keys.load(j)
    earlier = Apply("lt", (IndexValue(j, int64), IndexValue(i, int64)), bool_)
    equal = Apply("and_", (Apply("eq", (other, own), bool_), earlier), bool_)
    goes_before = Apply("or_", (Apply("lt", (other, own), bool_), equal), bool_)
    one, none = Literal(1, int64), Literal(0, int64)
    more = Apply("where", (goes_before, one, none), int64)
    count = Set(before, (), Apply("add", (Get(before), more), int64))
    return (
        Loop("i'", size, (keys.store(i, key(i)),)),
        Loop(
            "i'",
            size,
            (
                before,
                Loop("j'", size, (count,), "vector"),
                out.store(Combine("add", before), IndexValue(i, int64)),
            ),
        ),
    )


def _by_dealing(size: Dim, key: Callable[[Dim], Value], out: Row, *work: Row) -> Stmts:
    """A deal for each digit, from the last; where each digit's elements start is counted first."""
    keys, places, other_keys, other_places, starts = work
    i, d = Size.symbol("i'"), Size.symbol("d'")
    of = keys.place(0).dtype
    total = Local("total", int64)
    own = Local("own", of)
    one = Literal(1, int64)
    counts: Stmts = ()
    sums: Stmts = ()
    deals: Stmts = ()
    here, there = (keys, places), (other_keys, other_places)
    for digit in range(of.itemsize):
        at = _digit(Get(own), digit)
        counts += (starts.store(at, Apply("add", (starts.load(at), one), int64)),)
        start = starts.load(d + _DIGITS * digit)
        count = Local(f"count{digit}", int64)
        sums += (
            Set(total, (), Literal(0, int64)),
            count,
            Loop(
                "d'",
                _DIGITS,
                (
                    Set(count, (), start),
                    Store(start.buffer, start.offset, Get(total)),
                    Set(total, (), Apply("add", (Get(total), Get(count)), int64)),
                ),
            ),
        )
        last = digit == of.itemsize - 1
        place: Value = here[1].load(i) if digit else IndexValue(i, int64)
        to = Local(f"to{digit}", int64)
        moves: Stmts = (
            (out.store(Get(to), place),)
            if last
            else (there[0].store(Get(to), Get(own)), there[1].store(Get(to), place))
        )
        deals += (
            to,
            Loop(
                "i'",
                size,
                (
                    Set(own, (), here[0].load(i)),
                    Set(to, (), starts.load(at)),
                    *moves,
                    starts.store(at, Apply("add", (Get(to), one), int64)),
                ),
            ),
        )
        here, there = there, here
    zero = starts.store(d, Literal(0, int64))
    return (
        total,
        own,
        Loop("d'", _digits(of), (zero,), "vector"),
        Loop("i'", size, (Set(own, (), key(i)), keys.store(i, Get(own)), *counts)),
        *sums,
        *deals,
    )


def _digit(key: Value, digit: int) -> Value:
    """Where the numbers of a key's digit stand: its value, after those of the digits before it."""
    of = key.dtype
    if digit:
        key = Apply("lshr", (key, Literal(8 * digit, of)), of)
    if of.itemsize > 1:
        key = Apply("and_", (key, Literal(_DIGITS - 1, of)), of)
    wide = Apply("cast", (key,), int64)
    return Apply("add", (wide, Literal(_DIGITS * digit, int64)), int64) if digit else wide
