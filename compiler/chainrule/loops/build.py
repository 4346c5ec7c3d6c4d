"""From kernels to loops: what each op says of one element, put into the loops of its kernel's form.

A value that is used twice or stored has a local of its own; everything is read before anything is
written, so a kernel may write where it reads. Loops over memory that is walked straight through are
made one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chainrule.ir.loop import (
    LANES,
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Stmt,
    Store,
    Value,
)
from chainrule.ir.node import Index, Node, Reader, Stmts, for_each
from chainrule.ir.size import Dim, Shape, Size, product, symbols_of
from chainrule.ir.types import bool_
from chainrule.loops.contract import Contraction, contraction_loops, packed_size
from chainrule.loops.walk import symbols_in
from chainrule.ops.axes import Reduce
from chainrule.ops.contract import Contract
from chainrule.ops.layout import ravel
from chainrule.schedule.fuse import sources, storage
from chainrule.schedule.kernel import Form, Kernel
from chainrule.target import Target

#: Vectors of columns that a fold over rows keeps in registers at once.
COLUMN_VECTORS = 4


@dataclass(frozen=True)
class Built:
    """A kernel's program; `memory` are the nodes its buffers belong to, in order, `scratch` the
    workspace buffers that follow them.
    """

    program: Program
    memory: tuple[Node, ...]
    scratch: tuple[Buffer, ...]


def build_kernel(kernel: Kernel, name: str, target: Target) -> Built:
    """The loops of a kernel."""
    return _Builder(kernel, target).build(name)


class _Builder:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.kernel, self.target = kernel, target
        written = list(kernel.writes.values())
        self.memory = tuple(dict.fromkeys([*kernel.reads, *written]))
        self.buffers = {
            n: Buffer(f"b{i}", n.type.dtype, product(n.type.shape))
            for i, n in enumerate(self.memory)
        }
        self.scratch: list[Buffer] = []
        self.values: dict[Node, Value] = {}
        self.locals: dict[tuple[Node, bool], Local] = {}
        self.uses = _uses(kernel)

    def build(self, name: str) -> Built:
        body = _FORMS[self.kernel.form](self)
        buffers = (*self.buffers.values(), *self.scratch)
        body = (*self.locals.values(), *body)
        sizes = symbols_in(body) | {s for b in buffers for s in symbols_of(b.size)}
        program = Program(name, buffers, tuple(sorted(sizes)), body)
        return Built(program, self.memory, tuple(self.scratch))

    # reading

    def reader(self, node: Node) -> Reader:
        """How an element of a node is read, wherever its value is."""
        node_storage = storage(node)
        if node in self.values:
            return lambda index: self.values[node]
        if node_storage in self.buffers and self.kernel_reads(node_storage):
            buffer, shape = self.buffers[node_storage], node.type.shape
            return lambda index: Load(buffer, ravel(index, shape))
        readers = [self.reader(i) for i in node.inputs]
        return lambda index: node.op.body(index, node.type, *readers)

    def kernel_reads(self, node: Node) -> bool:
        return node in self.kernel.reads

    def local(self, node: Node, lanes: bool) -> Local:
        made = Local(f"t{len(self.locals)}", node.type.dtype, (), lanes)
        return self.locals.setdefault((node, lanes), made)

    def compute(self, nodes: Sequence[Node], index: Index, lanes: bool) -> list[Stmt]:
        """Statements that give each node, element `index`, a value that others can use."""
        out: list[Stmt] = []
        for node in nodes:
            readers = [self.reader(i) for i in node.inputs]
            value = node.op.body(index, node.type, *readers)
            if not lanes or self.uses.get(node, 0) > 1 or node in self.kernel.writes:
                cell = self.local(node, lanes)
                out.append(Set(cell, (), value))
                value = Get(cell)
            self.values[node] = value
        return out

    def store(self, nodes: Sequence[Node], index: Index) -> list[Stmt]:
        """Statements that write the nodes' elements where others need them in memory."""
        out: list[Stmt] = []
        for node in nodes:
            if node in self.kernel.writes:
                buffer = self.buffers[self.kernel.writes[node]]
                out.append(Store(buffer, ravel(index, node.type.shape), self.values[node]))
        return out

    # forms

    def map(self) -> Stmts:
        """Every element by itself."""
        nodes = self.kernel.nodes
        straight = _straight(nodes, self.kernel)

        def body(index: Index) -> Stmts:
            return (*self.compute(nodes, index, bool(index)), *self.store(nodes, index))

        return vectors(self.kernel.space, straight, body)

    def copy(self) -> Stmts:
        """A value put into the leaf it updates."""
        ((value, leaf),) = self.kernel.writes.items()
        read = self.reader(value)
        write = self.buffers[leaf]
        shape = leaf.type.shape
        return vectors(shape, True, lambda i: (Store(write, ravel(i, shape), read(i)),))

    def check(self) -> Stmts:
        """Each element tested; in row-major order, so that the first bad one is met first."""
        test = self.kernel.test
        assert test is not None
        read = self.reader(test.node)

        def body(index: Index) -> Stmts:
            value = read(index)
            if test.bound is None:
                holds: Value = Apply(
                    "lt",
                    (Apply("abs", (value,), value.dtype), Literal(float("inf"), value.dtype)),
                    bool_,
                )
            else:
                low = Apply("ge", (value, Literal(0, value.dtype)), bool_)
                high = Apply("lt", (value, IndexValue(test.bound, value.dtype)), bool_)
                holds = Apply("and_", (low, high), bool_)
            return (Check(holds, test.code),)

        return for_each(self.kernel.space, body)

    def nest(self) -> Stmts:
        """The op's own loops."""
        node = self.kernel.anchor
        buffer, shape = self.buffers[node], node.type.shape
        return node.op.nest(
            [i.type for i in node.inputs],
            lambda index, value: Store(buffer, ravel(index, shape), value),
            lambda index: Load(buffer, ravel(index, shape)),
            *[self.reader(i) for i in node.inputs],
        )

    def rows(self) -> Stmts:
        """For each row a few passes along it: each folds what the next one needs."""
        kernel = self.kernel
        stage = _stages(kernel)
        inner = kernel.space[len(kernel.rows) :]
        straight = _straight(
            [n for n in kernel.nodes if n.type.shape == kernel.space or _is_fold(n)], kernel
        )
        last = max(stage.values(), default=0)
        crossing = _crossing(kernel, stage)
        saved = {n: self.save(n, inner) for n in crossing}

        def row(index: Index) -> Stmts:
            out: list[Stmt] = []
            for number in range(last + 1):
                out += self.stage(number, index, stage, saved, straight)
            return tuple(out)

        return for_each(kernel.rows, row, "r")

    def save(self, node: Node, inner: Shape) -> Buffer:
        """Memory in which a row of a value waits for a later pass."""
        made = Buffer(f"s{len(self.scratch)}", node.type.dtype, product(inner))
        self.scratch.append(made)
        return made

    def stage(
        self,
        number: int,
        row: Index,
        stage: Mapping[Node, int],
        saved: Mapping[Node, Buffer],
        straight: bool,
    ) -> list[Stmt]:
        """One pass along a row, then the scalars that follow from its folds."""
        kernel = self.kernel
        inner = kernel.space[len(row) :]
        mine = [n for n in kernel.nodes if stage[n] == number]
        folds = [n for n in mine if _is_fold(n)]
        along = [n for n in mine if n.type.shape == kernel.space and not _is_fold(n) and inner]
        cells = {n: self.local(n, True) for n in folds}
        out: list[Stmt] = [Set(cells[n], (), _identity(n)) for n in folds]

        def body(index: Index) -> Stmts:
            at = (*row, *index)
            place = ravel(index, inner)
            for node, buffer in saved.items():
                if stage[node] < number:
                    self.values[node] = Load(buffer, place)
            stmts = self.compute(along, at, True)
            for fold in folds:
                value = self.reader(fold.inputs[0])(at)
                stmts.append(Set(cells[fold], (), _combine(fold, Get(cells[fold]), value)))
            stmts += [Store(saved[n], place, self.values[n]) for n in along if n in saved]
            return (*stmts, *self.store(along, at))

        if along or folds:
            out += vectors(inner, straight, body, f"c{number}")
        for fold in folds:
            total = self.local(fold, False)
            out.append(Set(total, (), Combine(_fold_op(fold).combine, cells[fold])))
            self.values[fold] = Get(total)
        scalars = [n for n in mine if n not in along and n not in folds]
        return [*out, *self.compute(scalars, row, False), *self.store([*folds, *scalars], row)]

    def columns(self) -> Stmts:
        """A fold over leading axes: blocks of columns in registers while the rows go by."""
        kernel = self.kernel
        fold, rest = kernel.anchor, kernel.nodes[1:]
        axes = _fold_op(fold).axes
        kept = [i for i in range(len(kernel.space)) if i not in axes]
        read = self.reader(fold.inputs[0])
        reduced = tuple(kernel.space[a] for a in axes)
        outer = tuple(kernel.space[a] for a in kept[:-1])
        width = kernel.space[kept[-1]]
        lane, vector = Size.symbol("l"), Size.symbol("v")

        def block(lead: Index, start: Dim, count: int, last: Dim) -> Stmts:
            acc = Local(f"a{count}", fold.type.dtype, (count,), True)

            def over(make: Callable[[Dim, Dim], Stmts]) -> Stmts:
                whole = count if last == LANES else count - 1
                full = Loop(
                    "v",
                    whole,
                    (Loop("l", LANES, make(vector, start + vector * LANES + lane), "vector"),),
                    "unroll",
                )
                part = Loop("l", last, make(whole, start + whole * LANES + lane), "vector")
                return (*((full,) if whole else ()), *((part,) if whole < count else ()))

            def add(at: Index) -> Stmts:
                def step(v: Dim, column: Dim) -> Stmts:
                    index: list[Dim] = [0] * len(kernel.space)
                    for axis, i in zip((*axes, *kept), (*at, *lead, column), strict=True):
                        index[axis] = i
                    return (Set(acc, (v,), _combine(fold, Get(acc, (v,)), read(tuple(index)))),)

                return over(step)

            def finish(v: Dim, column: Dim) -> Stmts:
                self.values[fold] = Get(acc, (v,))
                index = (*lead, column)
                return (*self.compute(rest, index, True), *self.store([fold, *rest], index))

            start_at = Set(acc, (vector,), _identity(fold))
            return (
                acc,
                Loop("v", count, (start_at,), "unroll"),
                *for_each(reduced, add, "r"),
                *over(finish),
            )

        return for_each(outer, lambda lead: _column_blocks(lead, width, block), "o")

    def contract(self) -> Stmts:
        """One product as a scheduled template, with the maps that follow it in its epilogue."""
        layout = ContractLayout.of(self.kernel)
        if layout is None:
            return self.plain_contract()
        node, rest = self.kernel.anchor, self.kernel.nodes[1:]
        first, second = (self.reader(i) for i in layout.order(node.inputs))

        def epilogue(m: Dim, n: Dim, acc: Value) -> Stmts:
            self.values[node] = acc
            index = layout.out(m, n)
            return (*self.compute(rest, index, True), *self.store([node, *rest], index))

        contraction = Contraction(
            layout.groups,
            layout.m,
            layout.n,
            layout.k,
            lambda m, k: first(layout.first(m, k)),
            lambda k, n: second(layout.second(k, n)),
            node.type.dtype,
            epilogue,
        )
        size = packed_size(contraction, self.target)
        packed = None
        if size != 0:
            packed = Buffer("s0", node.type.dtype, size)
            self.scratch.append(packed)
        return contraction_loops(contraction, self.target, packed)

    def plain_contract(self) -> Stmts:
        """A product whose axes no template takes: one sum of products an element."""
        node, rest = self.kernel.anchor, self.kernel.nodes[1:]
        op = node.op
        assert isinstance(op, Contract)
        sizes = dict(
            zip(op.a + op.b, node.inputs[0].type.shape + node.inputs[1].type.shape, strict=True)
        )
        x, y = (self.reader(i) for i in node.inputs)
        acc = Local("acc", node.type.dtype)

        def element(index: Index) -> Stmts:
            at = dict(zip(op.out, index, strict=True))

            def add(k: Index) -> Stmts:
                full = at | dict(zip(op.summed, k, strict=True))
                left, right = x(tuple(full[c] for c in op.a)), y(tuple(full[c] for c in op.b))
                if node.type.dtype.is_float:
                    return (Set(acc, (), Apply("fma", (left, right, Get(acc)), acc.dtype)),)
                term = Apply("mul", (left, right), acc.dtype)
                return (Set(acc, (), Apply("add", (Get(acc), term), acc.dtype)),)

            self.values[node] = Get(acc)
            return (
                Set(acc, (), Literal(0, acc.dtype)),
                *for_each(tuple(sizes[c] for c in op.summed), add, "k"),
                *self.compute(rest, index, False),
                *self.store([node, *rest], index),
            )

        return (acc, *for_each(node.type.shape, element))


_FORMS: dict[Form, Callable[[_Builder], Stmts]] = {
    Form.MAP: _Builder.map,
    Form.ROWS: _Builder.rows,
    Form.COLUMNS: _Builder.columns,
    Form.CONTRACT: _Builder.contract,
    Form.NEST: _Builder.nest,
    Form.CHECK: _Builder.check,
    Form.COPY: _Builder.copy,
}


@dataclass(frozen=True)
class ContractLayout:
    """How a product's letters become group, row, column and summed indices.

    `a` and `b` are the operands' letters with the one that holds the columns second.
    """

    swapped: bool
    a: str
    b: str
    letters: str
    groups: tuple[tuple[str, Dim], ...]
    row: str
    column: str
    inner: str
    sizes: Mapping[str, Dim]

    @staticmethod
    def of(kernel: Kernel) -> ContractLayout | None:
        """The layout of a product kernel, or None where the template does not take it."""
        node = kernel.anchor
        op = node.op
        assert isinstance(op, Contract)
        if not node.type.dtype.is_float or not op.out or not op.summed:
            return None
        sizes = dict(
            zip(op.a + op.b, node.inputs[0].type.shape + node.inputs[1].type.shape, strict=True)
        )
        straight = _straight(kernel.nodes[1:], kernel) and all(
            not path for i in node.inputs for _, path in sources(i)
        )
        column_last = op.out[-1]
        swapped = column_last not in op.b or (column_last in op.a and column_last in op.b)
        if column_last in op.a and column_last in op.b:
            return None
        a, b = (op.b, op.a) if swapped else (op.a, op.b)
        rows = [c for c in op.out if c in a and c not in b]
        columns = [c for c in op.out if c in b and c not in a]
        group = [c for c in op.out if c in a and c in b]
        row = _run(rows, [a, op.out], straight)
        column = _run(columns, [b, op.out], straight)
        inner = _run(list(op.summed), [a, b], straight)
        if len(inner) != len(op.summed):
            return None
        outer = [c for c in op.out if c in group or c not in row + column]
        groups = tuple((f"g{c}", sizes[c]) for c in outer)
        return ContractLayout(swapped, a, b, op.out, groups, row, column, inner, sizes)

    def order(self, inputs: Sequence[Node]) -> Sequence[Node]:
        """The operands, the one with the columns second."""
        return inputs[::-1] if self.swapped else inputs

    def size(self, letters: str) -> Dim:
        return product(tuple(self.sizes[c] for c in letters))

    @property
    def m(self) -> Dim:
        return self.size(self.row)

    @property
    def n(self) -> Dim:
        return self.size(self.column)

    @property
    def k(self) -> Dim:
        return self.size(self.inner)

    def index(self, letters: str, places: Mapping[str, Dim]) -> Index:
        """An index by letters: of a run of letters the last takes the whole flat position."""
        at: dict[str, Dim] = {name[1:]: Size.symbol(name) for name, _ in self.groups}
        for run, place in places.items():
            at.update(dict.fromkeys(run[:-1], 0))
            if run:
                at[run[-1]] = place
        return tuple(at[c] for c in letters)

    def first(self, m: Dim, k: Dim) -> Index:
        return self.index(self.a, {self.row: m, self.inner: k})

    def second(self, k: Dim, n: Dim) -> Index:
        return self.index(self.b, {self.inner: k, self.column: n})

    def out(self, m: Dim, n: Dim) -> Index:
        return self.index(self.letters, {self.row: m, self.column: n})


def _run(letters: list[str], where: Sequence[str], straight: bool) -> str:
    """The longest run at the end of `letters` that lies together, in order, wherever it occurs."""
    for start in range(len(letters)):
        run = "".join(letters[start:])
        if len(run) == 1 or (straight and all(run in text for text in where)):
            return run
    return ""


def vectors(
    shape: Shape, straight: bool, body: Callable[[Index], Stmts], prefix: str = "i"
) -> Stmts:
    """Loops over a shape, the last axis in vectors; over memory walked straight through, one loop."""
    if not shape:
        return body(())
    var = f"{prefix}{len(shape)}"
    if straight:
        at: Index = (*([0] * (len(shape) - 1)), Size.symbol(var))
        return (Loop(var, product(shape), body(at), "vector"),)
    last = max((i for i, d in enumerate(shape) if d != 1), default=len(shape) - 1)
    tail: Index = tuple(0 for _ in shape[last + 1 :])

    def inner(lead: Index) -> Stmts:
        return (Loop(var, shape[last], body((*lead, Size.symbol(var), *tail)), "vector"),)

    return for_each(shape[:last], inner, prefix)


def _column_blocks(
    lead: Index, width: Dim, block: Callable[[Index, Dim, int, Dim], Stmts]
) -> Stmts:
    """Blocks of COLUMN_VECTORS vectors, then what is left of the columns."""
    wide = COLUMN_VECTORS * LANES
    start = Size.symbol("b") * wide
    out: list[Stmt] = []
    if not isinstance(width, int):
        out.append(Loop("b", width // wide, block(lead, start, COLUMN_VECTORS, LANES)))
        rest = width // wide * wide
        middle = rest + Size.symbol("w") * LANES
        out.append(Loop("w", (width - rest) // LANES, block(lead, middle, 1, LANES)))
        out += block(lead, width // LANES * LANES, 1, width % LANES)
        return tuple(out)
    if width // wide:
        out.append(Loop("b", width // wide, block(lead, start, COLUMN_VECTORS, LANES)))
    rest = width % wide
    if rest:
        out += block(lead, width - rest, -(-rest // LANES), (rest - 1) % LANES + 1)
    return tuple(out)


def _is_fold(node: Node) -> bool:
    return node.op.role == "reduce"


def _fold_op(node: Node) -> Reduce:
    assert isinstance(node.op, Reduce)
    return node.op


def _identity(fold: Node) -> Value:
    return Literal(_fold_op(fold).identity(fold.type.dtype), fold.type.dtype)


def _combine(fold: Node, acc: Value, value: Value) -> Value:
    return Apply(_fold_op(fold).combine, (acc, value), fold.type.dtype)


def _uses(kernel: Kernel) -> dict[Node, int]:
    """How often each node of a kernel is read inside it, through views too."""
    mine = set(kernel.nodes)
    counts: dict[Node, int] = {}
    for node in kernel.nodes:
        for operand in node.inputs:
            for base, _ in sources(operand):
                if base in mine:
                    counts[base] = counts.get(base, 0) + 1
    return counts


def _straight(nodes: Sequence[Node], kernel: Kernel) -> bool:
    """Whether everything read has the loops' own shape, or is one number (or one a row)."""
    outer = len(kernel.rows) if kernel.form is Form.ROWS else 0
    for node in nodes:
        for base, path in [p for i in node.inputs for p in sources(i)]:
            for view in path:
                axes = getattr(view.op, "axes", ())
                repeats = view.op.name == "expand" and axes == tuple(range(outer, view.type.rank))
                if not (repeats and base.type.rank <= outer):
                    return False
            del base
        if any(_indexed(i) for i in node.inputs) or node.op.role == "view" or node.op.buffered:
            return False
    return True


def _indexed(node: Node) -> bool:
    """Whether a value depends on where it stands: an index, or a one-hot code."""
    pending = [node]
    while pending:
        n = pending.pop()
        if n.op.role in ("view", "light"):
            if n.op.name in ("iota", "one_hot"):
                return True
            pending.extend(n.inputs)
    return False


def _stages(kernel: Kernel) -> dict[Node, int]:
    """The pass along the row in which each node can be computed: one after each fold it needs."""
    stage: dict[Node, int] = {}
    mine = set(kernel.nodes)
    for node in kernel.nodes:
        along = node.type.shape == kernel.space and not _is_fold(node)
        number = 0
        for base in (b for i in node.inputs for b, _ in sources(i) if b in mine):
            done = _is_fold(base) or (base.type.shape != kernel.space)
            number = max(number, stage[base] + (1 if done and (along or _is_fold(node)) else 0))
        stage[node] = number
    return stage


def _crossing(kernel: Kernel, stage: Mapping[Node, int]) -> list[Node]:
    """Nodes along the row that a later pass needs again."""
    mine = set(kernel.nodes)
    found: dict[Node, None] = {}
    for node in kernel.nodes:
        for base in (b for i in node.inputs for b, _ in sources(i) if b in mine):
            if base.type.shape == kernel.space and not _is_fold(base) and stage[base] < stage[node]:
                found[base] = None
    return list(found)
