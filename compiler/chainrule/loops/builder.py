"""What every form of kernel needs: buffers, how a node's element is read, computed and stored.

A value that is used twice or stored has a local of its own; everything is read before anything is
written, so a kernel may write where it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.ir.loop import Buffer, Get, Load, Local, Loop, Set, Stmt, Store, Value
from chainrule.ir.node import Index, Node, Reader, Stmts, for_each
from chainrule.ir.size import Dim, Shape, Size, product
from chainrule.ir.types import DType
from chainrule.loops.choice import BY_SIZES, Choice
from chainrule.ops.layout import ravel
from chainrule.schedule.kernel import Form, Kernel
from chainrule.schedule.reading import bases, sources, storage
from chainrule.target import Target

#: what becomes of an element, given where it stands and its sum
Maps = Callable[[Index, Value], Stmts]


class Builder:
    """A kernel that is being built: its memory in order, and the values its nodes have by now.

    `scratch` are workspace buffers, which follow those of `memory`; then come `lasting` ones, which
    the statements in `once` fill, for as long as what is `fixed` stays the same. Views that were
    `laid` down in a buffer are read from there. Of a product whose second factor may be packed or
    read where it stands, `free_rows` are the rows, which decide.
    """

    def __init__(self, kernel: Kernel, target: Target, choice: Choice = BY_SIZES) -> None:
        self.kernel, self.target, self.choice = kernel, target, choice
        self.memory = memory_of(kernel)
        self.buffers = {
            node: Buffer(f"b{i}", node.type.dtype, product(node.type.shape))
            for i, node in enumerate(self.memory)
        }
        self.scratch: list[Buffer] = []
        self.lasting: list[Buffer] = []
        self.once: Stmts = ()
        self.free_rows: Dim | None = None
        self.values: dict[Node, Value] = {}
        self.laid: dict[Node, Reader] = {}
        self.locals: dict[tuple[Node, bool], Local] = {}
        self.uses = _uses(kernel)
        joined = (part for node in kernel.nodes if node.op.joins for part in node.inputs)
        self.stored = {*kernel.writes, *joined} if kernel.form is not Form.NEST else set()
        self.read = frozenset(kernel.reads)

    def reader(self, node: Node) -> Reader:
        """How an element of a node is read, wherever its value is."""
        if node in self.values:
            return lambda index: self.values[node]
        if node in self.laid:
            return self.laid[node]
        if storage(node) in self.read:
            buffer, shape = self.buffers[storage(node)], node.type.shape
            return lambda index: Load(buffer, ravel(index, shape))
        readers = [self.reader(i) for i in node.inputs]
        return lambda index: node.op.body(index, node.type, *readers)

    def local(self, node: Node, lanes: bool) -> Local:
        """The local of a node: one cell, or one a lane."""
        made = Local(f"t{len(self.locals)}", node.type.dtype, (), lanes)
        return self.locals.setdefault((node, lanes), made)

    def workspace(self, node: Node, size: Dim, private: bool = False) -> Buffer:
        """A scratch buffer of a node's element type."""
        return self.scratch_of(node.type.dtype, size, private)

    def scratch_of(self, of: DType, size: Dim, private: bool = False) -> Buffer:
        """A scratch buffer; of a private one each part has its own."""
        made = Buffer(f"s{len(self.scratch)}", of, size, private)
        self.scratch.append(made)
        return made

    def last(self, node: Node, size: Dim) -> Buffer:
        """A lasting buffer of a node's element type."""
        made = Buffer(f"l{len(self.lasting)}", node.type.dtype, size)
        self.lasting.append(made)
        return made

    def is_fixed(self, node: Node) -> bool:
        """Whether a node is the same each time the kernel runs."""
        read = [base for base, _ in sources(node)]
        return bool(read) and self.kernel.fixed.issuperset(read)

    def compute(self, nodes: Sequence[Node], index: Index, lanes: bool) -> list[Stmt]:
        """Statements that give each node, element `index`, a value that others can use."""
        out: list[Stmt] = []
        for node in nodes:
            if node.op.joins:
                continue
            readers = [self.reader(i) for i in node.inputs]
            value = node.op.body(index, node.type, *readers)
            if not lanes or self.uses.get(node, 0) > 1 or node in self.stored:
                cell = self.local(node, lanes)
                out.append(Set(cell, (), value))
                value = Get(cell)
            self.values[node] = value
        return out

    def store(self, nodes: Sequence[Node], index: Index) -> list[Stmt]:
        """Statements that write the nodes' elements where others need them in memory."""
        out: list[Stmt] = []
        for node in nodes:
            if node not in self.kernel.writes:
                continue
            buffer, shape = self.buffers[self.kernel.writes[node]], node.type.shape
            if not node.op.joins:
                out.append(Store(buffer, ravel(index, shape), self.values[node]))
                continue
            types = [part.type for part in node.inputs]
            for i, part in enumerate(node.inputs):
                at = ravel(node.op.stands(types, i, index), shape)
                out.append(Store(buffer, at, self.values[part]))
        return out


def memory_of(kernel: Kernel) -> tuple[Node, ...]:
    """The nodes whose memory a kernel uses, in the order of its buffers."""
    return tuple(dict.fromkeys([*kernel.reads, *kernel.writes.values()]))


def _uses(kernel: Kernel) -> dict[Node, int]:
    """How often each node of a kernel is read inside it, through views too."""
    mine = set(kernel.nodes)
    counts: dict[Node, int] = {}
    for node in kernel.nodes:
        for base, _ in bases(node):
            if base in mine:
                counts[base] = counts.get(base, 0) + 1
    return counts


def is_straight(nodes: Sequence[Node], kernel: Kernel, runs: Sequence[set[int]] = ()) -> bool:
    """Whether everything read or written has the loops' own shape, or is one number (or one a row).

    With `runs`, axes that are walked as one, it may also repeat, along all of a run or none of it.
    """
    outer = len(kernel.rows) if kernel.form is Form.ROWS else 0
    for node in nodes:
        if (
            node.op.role == "view"
            or node.op.joins
            or node.op.buffered
            or any(map(_by_place, node.inputs))
        ):
            return False
        for base, path in bases(node):
            rank = base.type.rank
            if path and path[-1].op.role == "alias":  # the same memory, by other sizes
                rank, path = path[-1].type.rank, path[:-1]
            if len(path) == 1 and runs and _repeats_runs(path[0], runs):
                continue
            if rank > outer and path:
                return False
            if any(v.op.repeats() != tuple(range(outer, v.type.rank)) for v in path):
                return False
    return True


def _repeats_runs(view: Node, runs: Sequence[set[int]]) -> bool:
    repeated = set(view.op.repeats())
    return bool(repeated) and all(repeated & run in (run, set()) for run in runs)


def _by_place(node: Node) -> bool:
    """Whether a value that is worked out where it is read depends on where that is."""
    pending = [node]
    while pending:
        n = pending.pop()
        if n.op.role in ("view", "light"):
            if n.op.indexed:
                return True
            pending.extend(n.inputs)
    return False


def vectors(
    shape: Shape, straight: bool, body: Callable[[Index], Stmts], prefix: str = "i"
) -> Stmts:
    """Loops over a shape, the last axis in vectors; over memory walked straight through, one."""
    if not shape:
        return body(())
    var = f"{prefix}{len(shape)}'"
    if straight:
        at: Index = (*([0] * (len(shape) - 1)), Size.symbol(var))
        return (Loop(var, product(shape), body(at), "vector"),)
    last = max((i for i, d in enumerate(shape) if d != 1), default=len(shape) - 1)
    tail: Index = tuple(0 for _ in shape[last + 1 :])

    def inner(lead: Index) -> Stmts:
        return (Loop(var, shape[last], body((*lead, Size.symbol(var), *tail)), "vector"),)

    return for_each(shape[:last], inner, prefix)
