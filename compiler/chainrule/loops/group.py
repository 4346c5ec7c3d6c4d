"""What attention is in every form of its loops: whose operands it reads, which scores a query sees,
and what becomes of a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from chainrule.ir.loop import Apply, IndexValue, Literal, Store, Value
from chainrule.ir.node import Index, Node
from chainrule.ir.size import Dim, Size, known
from chainrule.ir.types import bool_, int32
from chainrule.loops.builder import Builder
from chainrule.ops.attend import Attend, AttendBack
from chainrule.ops.attention import least_power
from chainrule.ops.layout import merged, ravel, unravel
from chainrule.schedule.reading import storage

GROUP = Size.symbol("group'")


class Group:
    """A group's `n` queries and `m` keys of width `d`, and values of width `e`.

    `wanted` are the results that are asked for, by part, those of them that are `joined` as a part
    of a whole; `read` has a reader for each operand.
    """

    def __init__(self, b: Builder) -> None:
        node = b.kernel.anchor
        assert isinstance(node.op, Attend | AttendBack)
        self.b, self.op, self.dtype = b, node.op, node.type.dtype
        q, k, v = (n.type.shape for n in node.inputs[:3])
        self.lead, self.n, self.m = q[:-2], q[-2], k[-2]
        self.d, self.e = known((q[-1], v[-1]))
        names = ("q", "k", "v", "ct", "out", "lse")[: node.op.count]
        self.read = {x: b.reader(n) for x, n in zip(names, node.inputs, strict=False)}
        self.masks = [b.reader(n) for n in node.inputs[node.op.count :]]
        whole = [n for n in b.kernel.nodes if n.op.joins]
        self.joined = {storage(x): (n, i) for n in whole for i, x in enumerate(n.inputs)}
        asked = b.kernel.writes.keys() | self.joined.keys()
        parts = (n for n in b.kernel.nodes if n in asked and not n.op.joins)
        self.wanted = {part_of(n).part: n for n in parts}
        self.at = unravel(GROUP, self.lead)

    def number(self, value: float) -> Value:
        """A number of the operands' element type."""
        return Literal(value, self.dtype)

    def apply(self, fn: str, *args: Value) -> Value:
        """A function of numbers of that type."""
        return Apply(fn, args, self.dtype)

    # what a score becomes

    def scaled(self, product: Value) -> Value:
        """The score of a query's product with a key."""
        return self.apply("mul", product, self.number(self.op.scale))

    def weight(self, product: Value, lse: Value) -> Value:
        """Its weight, from the logarithm of the sum of the row's exponentials."""
        below = self.apply("neg", lse)
        return self.power(self.apply("fma", product, self.number(self.op.scale), below))

    def pulled(self, weight: Value, product: Value, shift: Value) -> Value:
        """The cotangent of a score, from that of its weight and the mean of the row's."""
        return self.apply("mul", weight, self.apply("sub", product, shift))

    def power(self, x: Value) -> Value:
        """exp(x), and 0 where that is below the least normal number: slow, and lost in any sum."""
        lost, none = Apply("lt", (x, self.number(least_power(self.dtype))), bool_), self.number(0)
        exponential = self.apply("exp", self.apply("where", lost, none, x))
        return self.apply("where", lost, none, exponential)

    def unless(self, value: Value, missing: float, otherwise: float) -> Value:
        """A value, but where it is one that stands for none."""
        test = Apply("eq", (value, self.number(missing)), bool_)
        return self.apply("where", test, self.number(otherwise), value)

    def top(self, largest: Value) -> Value:
        """What is taken from a row's scores: their largest, 0 of a row that sees no key."""
        return self.unless(largest, -math.inf, 0)

    def total(self, sum_: Value) -> Value:
        """A row's sum of exponentials, 1 where it sees no key."""
        return self.unless(sum_, 0, 1)

    def lse(self, top: Value, total: Value) -> Value:
        """The logarithm of the sum of the exponentials of a row's scores."""
        return self.apply("add", top, self.apply("log", total))

    def nothing(self, of: Value) -> Value:
        """What a number is worth to whom it is hidden from: 0, but NaN if it is not finite."""
        return self.apply("mul", of, self.number(0))

    def where(self, tests: Sequence[Value], value: Value, otherwise: Value) -> Value:
        """A value where all tests hold."""
        for test in tests:
            value = self.apply("where", test, value, otherwise)
        return value

    def sees(self, row: Dim, key: Dim, tall: int) -> list[Value]:
        """Whether a query may see a key, as for its place in the order, if that matters.

        Of blocks that are so `tall` the last may have rows that are no queries: they must not see
        keys that no query does.
        """
        if not self.op.causal:
            return []
        tests: list[Value] = [Apply("le", (IndexValue(key, int32), IndexValue(row, int32)), bool_)]
        beyond = self.n != self.m and self.n % tall != 0 and not self.masks
        return [*tests, self.is_below(row, self.n)] if beyond else tests

    def is_below(self, index: Dim, end: Dim) -> Value:
        """Whether there is such a query, or such a key."""
        return Apply("lt", (IndexValue(index, int32), IndexValue(end, int32)), bool_)

    def store(self, part: str, row: Dim, column: Dim, value: Value) -> Store:
        """An element of a result written."""
        node = self.wanted[part]
        index = part_of(node).place(self.at, row, column)
        return self._written(node, index, value)

    def store_row(self, part: str, row: Dim, value: Value) -> Store:
        """A number of a query written."""
        node = self.wanted[part]
        return self._written(node, (*self.at, row), value)

    def _written(self, node: Node, index: Index, value: Value) -> Store:
        writes, shape = self.b.kernel.writes, node.type.shape
        if node not in self.joined:
            return Store(self.b.buffers[writes[node]], ravel(index, shape), value)
        whole, operand = self.joined[node]
        types = [x.type for x in whole.inputs]
        inside = merged(index, shape, types[operand].shape)
        assert inside is not None
        at = ravel(whole.op.stands(types, operand, inside), whole.type.shape)
        return Store(self.b.buffers[writes[whole]], at, value)


def part_of(node: Node) -> Attend | AttendBack:
    """A node's op: a part of attention or of its derivative."""
    assert isinstance(node.op, Attend | AttendBack)
    return node.op


def from_zero(a: Dim) -> Dim:
    """A size that may be below 0, or 0."""
    return a - least(a, 0)


def least(a: Dim, b: Dim) -> Dim:
    """The lesser of two sizes that are no further apart than 2**30."""
    over = a - b
    return a - over * ((over + 2**30) // (2**30 + 1))
