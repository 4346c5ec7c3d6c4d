"""Kernels: nodes that are computed together, in one pass over one space of indices."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import field
from enum import Enum
from functools import lru_cache

from chainrule.ir.graph import walk
from chainrule.ir.node import Bound, Node
from chainrule.ir.size import Dim, Shape, product
from chainrule.ir.types import TensorType
from chainrule.ops.build import original
from chainrule.records import dataclass

#: Nodes one kernel may hold, so that its code stays small enough for LLVM to be quick.
MAX_NODES = 64


class Form(Enum):
    """What the loops of a kernel are like."""

    MAP = "map"  # every node has the shape `space`
    ROWS = "rows"  # for each row: folds over the last `inner` axes, and maps over them
    COLUMNS = "columns"  # one fold over leading or middle axes, then maps of its result
    CONTRACT = "contract"  # one product, then maps of its result
    NEST = "nest"  # an op's own loops
    CHECK = "check"  # leaves the program where a value is not allowed
    COPY = "copy"  # a new value put into its leaf
    ATTEND = "attend"  # attention or its derivative, some rows of scores at a time
    SCAN = "scan"  # the kernels of a body, in order, once for each step


@dataclass(frozen=True)
class Chain:
    """The values that a loop carries, one behind another in memory: the first, one a step more.

    All but the last are the stack `before`, all but the first the stack `after`, of which there is
    one at least; where slices go backward, so do they. `row` are the bytes of one.
    """

    carry: int
    before: Node | None
    after: Node | None
    row: Dim
    reverse: bool

    @property
    def stacks(self) -> tuple[Node, ...]:
        """Those that are there."""
        return tuple(n for n in (self.before, self.after) if n is not None)

    def start(self, after: bool) -> Dim:
        """Where a stack begins."""
        return self.row if after is not self.reverse else 0


@dataclass(eq=False)
class Kernel:
    """Nodes in order, the memory they read and write, and the space they share.

    `writes` maps a node to the node whose memory takes its value: itself, or the leaf it updates.
    `inside` are the kernels that a SCAN repeats; it runs `times` in all, in `depth` loops, at each
    step of the innermost of which what it reads of `fixed` is the same. Of a SCAN some stacks are
    `chains`. One that computes `again` what had been computed before saves the memory in between.
    """

    form: Form
    space: Shape
    inner: int = 0
    nodes: list[Node] = field(default_factory=list)
    reads: tuple[Node, ...] = ()
    writes: dict[Node, Node] = field(default_factory=dict)
    test: Test | None = None
    inside: tuple[Kernel, ...] = ()
    times: Dim = 1
    depth: int = 0
    fixed: frozenset[Node] = frozenset()
    chains: tuple[Chain, ...] = ()
    again: bool = False

    @property
    def flops(self) -> Dim:
        """Its floating-point operations, of all the times it runs."""
        total: Dim = 0
        for node in () if self.form in (Form.CHECK, Form.COPY) else self.nodes:
            total = total + node.op.flops(node.type, *[i.type for i in node.inputs])
        return total * self.times

    @property
    def tests(self) -> tuple[Test, ...]:
        """What it asks of values, itself or inside."""
        own = () if self.test is None else (self.test,)
        return own + tuple(t for kernel in self.inside for t in kernel.tests)

    def chain_of(self, node: Node) -> Chain | None:
        """The chain that a stack is part of."""
        return next((chain for chain in self.chains if node in chain.stacks), None)

    @property
    def anchor(self) -> Node:
        """The fold, product, nest or tested node the kernel is built around."""
        return self.nodes[0]

    @property
    def patch(self) -> Node | None:
        """What it puts into memory that holds the rest of its result, where that is all it does."""
        node = self.anchor
        if node.op.patches is None or len(self.nodes) > 1 or node not in self.writes:
            return None
        return node.inputs[node.op.patches] if self.writes[node] is node.inputs[0] else None

    @property
    def rows(self) -> Shape:
        """The axes of `space` that are not folded."""
        return self.space[: len(self.space) - self.inner]


def every(kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels and those inside them, each before what it repeats."""
    found: list[Kernel] = []
    for kernel in kernels:
        found += [kernel, *every(kernel.inside)]
    return found


@dataclass(frozen=True)
class Test:
    """What a CHECK kernel asks of every element: to be within a bound, or to be finite."""

    node: Node
    code: int
    bound: Bound | None = None

    __test__ = False


def bytes_of(node: Node) -> Dim:
    """The bytes of a node's elements."""
    return _bytes(node.type)


@lru_cache(maxsize=1 << 12)
def _bytes(of: TensorType) -> Dim:
    return product(of.shape) * of.dtype.itemsize


def positions_of(node: Node) -> list[tuple[Node, Bound]]:
    """The positions that a node reads at, and the bound within which each must have been tested."""
    pairs = node.op.bounds(*[i.type for i in node.inputs])
    return [(original(node.inputs[operand]), bound) for operand, bound in pairs]


def identity(kernel: Kernel) -> Hashable:
    """What a kernel does, with numbers in the place of nodes: equal ones have equal loops."""
    given = set(kernel.reads)
    inside = [n for n in walk(kernel.nodes, stop=given.__contains__) if n not in given]
    number: dict[Node, int] = {}
    for node in (*kernel.reads, *kernel.nodes, *inside, *kernel.writes.values()):
        number.setdefault(node, len(number))
    steps = tuple((number[n], n.op, tuple(number[i] for i in n.inputs)) for n in inside)
    memory = tuple(n.type for n in (*kernel.reads, *kernel.writes.values()))
    writes = tuple((number[value], number[leaf]) for value, leaf in kernel.writes.items())
    test = kernel.test and (kernel.test.code, kernel.test.bound, number[kernel.test.node])
    fixed = frozenset(number[node] for node in kernel.fixed)
    return kernel.form, kernel.space, kernel.inner, steps, memory, writes, test, fixed
