"""From a graph to kernels.

Nodes are visited by their distance from the leaves (what is made from leaves and single numbers
alone, when it is first needed), and each joins the last kernel that computes one of its operands if
it fits that kernel's space, else begins a kernel. Joining only the last one keeps the order of
kernels a valid order whatever is joined. What a kernel needs from another lies in memory; views,
comparisons and numbers made from indices are worked out where they are read. Positions are read by
no kernel before they have been tested: those that are given are tested first of all.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence

from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Bound, Node
from chainrule.ir.size import Shape
from chainrule.ops.axes import Reduce
from chainrule.ops.layout import merged
from chainrule.ops.scan import Scan
from chainrule.schedule.chains import by_chains
from chainrule.schedule.kernel import (
    MAX_NODES,
    Chain,
    Form,
    Kernel,
    Test,
    bytes_of,
    every,
    positions_of,
)
from chainrule.schedule.order import Positions, order_kernels
from chainrule.schedule.reading import bases, sources, storage

#: Forms whose loops have no place for nodes that follow.
_CLOSED = (Form.NEST, Form.ATTEND, Form.CHECK, Form.SCAN)


def fuse(
    graph: Graph,
    finite: Sequence[Node] = (),
    codes: Iterator[int] | None = None,
    tested: Positions = (),
) -> list[Kernel]:
    """The kernels of a graph, in an order that computes everything before it is read.

    The graph has been through `materialize`. `finite` are nodes that must be finite before any
    update is made: a CHECK kernel tests each. Tests leave with the next of `codes`, 1, 2, ...; of
    positions `tested` there is none. Raises CompileError.
    """
    fusion = _Fusion(graph, finite, codes or itertools.count(1))
    fusion.tested.update(dict.fromkeys(tested, -1))
    return order_kernels(fusion.run(), graph, tested)


class _Fusion:
    def __init__(self, graph: Graph, finite: Sequence[Node], codes: Iterator[int]) -> None:
        self.graph, self.finite, self.codes = graph, frozenset(finite), codes
        self.kernels: list[Kernel] = []
        self.at: dict[Node, int] = {}
        self.hosts: dict[Node, Node] = {}
        self.readers: dict[Node, list[Node]] = {}  # the hosts that read a node
        self.last: dict[Node, int] = {}  # the last kernel so far that computes a host's operand
        self.tested: dict[tuple[Node, Bound | None], int] = {}
        self.maps: dict[Shape, int] = {}  # the last map of each shape
        self.folds: dict[tuple[Shape, int], int] = {}  # the last fold of so many of its axes
        self.families: dict[Hashable, int] = {}
        self.users = Counter(i for node in graph.nodes for i in node.inputs)
        self.roots = frozenset(map(storage, graph.roots))

    def run(self) -> list[Kernel]:
        nodes, self.hosts = _order_of_visits(self.graph.nodes)
        for host in dict.fromkeys(self.hosts.values()):
            for base, _ in bases(host):
                self.readers.setdefault(base, []).append(host)
        positions = [pair for node in nodes for pair in positions_of(node)]
        for operand, bound in positions:
            if all(source.op.role == "leaf" for source, _ in sources(operand)):
                self.test(operand, bound)
        for node in nodes:
            for operand, bound in positions_of(node):
                self.test(operand, bound)
            self.place(node)
            if node in self.finite:  # as early as can be: no update is made before
                self.store(node)
                self.test(node, None)
        for root in self.graph.roots:
            self.store(root)
        self.kernels = by_chains(self.kernels)
        _connect(self.kernels, self.graph)
        for kernel in self.kernels:
            if kernel.form is Form.SCAN:
                kernel.chains = _chains(kernel, self.roots)
                kernel.inside = tuple(_steps(kernel, self.codes))
                _repeated(kernel)
        return self.kernels

    def place(self, node: Node) -> None:
        role = node.op.role
        if role in ("leaf", "view", "light"):
            return
        if role == "alias":
            self.store(node)
        elif role == "pointwise":
            self.join(node)
        elif role == "reduce":
            self.reduce(node)
        elif role in ("scan", "attend"):
            self.together(node)
        elif role in ("contract", "nest"):
            place = self.where_joined(node) if node.op.joins else None
            if place is not None:
                self.enter(place, node)
                return
            self.begin(Kernel(Form(role), node.type.shape), node)
        else:
            raise CompileError(f"no loops are known for {node.op.name}, whose role is {role!r}")

    def together(self, node: Node) -> None:
        """All results of a family are computed by one kernel."""
        family = (node.op.family, node.inputs)
        if family in self.families:
            self.enter(self.families[family], node)
            return
        self.families[family] = len(self.kernels)
        form = Form(node.op.role)
        self.begin(Kernel(form, () if form is Form.SCAN else node.type.shape), node)

    def begin(self, kernel: Kernel, node: Node) -> None:
        self.kernels.append(kernel)
        self.enter(len(self.kernels) - 1, node)

    def enter(self, place: int, node: Node) -> None:
        self.kernels[place].nodes.append(node)
        self.at[node] = place
        for host in self.readers.get(node, ()):
            self.last[host] = max(place, self.last.get(host, place))

    def store(self, node: Node) -> None:
        """Make sure that a node's elements lie in memory, in row-major order."""
        node = storage(node)
        if node.op.role in ("view", "light") and node not in self.at:
            self.begin(Kernel(Form.MAP, node.type.shape), node)

    def latest(self, node: Node) -> int | None:
        """The last kernel that computes an operand of a node, or of the host it waited for."""
        found = [self.at[base] for base, _ in bases(node) if base in self.at]
        host = self.hosts.get(node)
        return max([*found, self.last[host]] if host in self.last else found, default=None)

    def join(self, node: Node) -> None:
        last = self.latest(node)
        if last is None:  # it can be anywhere: beside what else has its shape
            last = self.maps.get(node.type.shape)
        tested = max((self.tested[pair] for pair in positions_of(node)), default=-1)
        if last is not None and last < tested:
            last = None
        beside = self.maps.get(node.type.shape, -1)
        for place in () if last is None else (last, *([beside] if beside > last else [])):
            if self.fits(node, place):
                self.enter(place, node)
                return
        self.maps[node.type.shape] = len(self.kernels)
        self.begin(Kernel(Form.MAP, node.type.shape), node)

    def where_joined(self, node: Node) -> int | None:
        """The kernel that can put together what a node joins, as it computes it."""
        parts = [storage(part) for part in node.inputs]
        place = self.at.get(parts[0])
        if place is None or any(self.at.get(part) != place for part in parts):
            return None
        kernel = self.kernels[place]
        if kernel.form is Form.ATTEND:
            return place if self.joins_all(node, parts) else None
        takes = kernel.form in (Form.MAP, Form.CONTRACT) and len(kernel.nodes) < MAX_NODES
        same = all(part.type.shape == kernel.space for part in node.inputs)
        if node.type.shape == kernel.space:  # of nothing: what reads it would be taken in as well
            return None
        return place if takes and same else None

    def joins_all(self, node: Node, parts: Sequence[Node]) -> bool:
        """Whether parts of attention are wanted for nothing but what joins them, and each of its
        operands has neighbouring axes of one as one, at most.
        """
        pairs = list(zip(parts, node.inputs, strict=True))
        if len(set(parts)) < len(parts) or not self.roots.isdisjoint(parts):
            return False
        for part, operand in pairs:
            shape = part.type.shape
            if merged((0,) * len(shape), shape, operand.type.shape) is None:
                return False
            while part is not operand:
                (above,) = operand.inputs
                if self.users[above] != 1 or above in self.finite:
                    return False
                operand = above
        return all(self.users[operand] == 1 for operand in node.inputs)

    def fits(self, node: Node, place: int) -> bool:
        """Whether a pointwise node can be computed in a kernel's loops."""
        kernel = self.kernels[place]
        if len(kernel.nodes) >= MAX_NODES or kernel.form in _CLOSED:
            return False
        shapes = [kernel.anchor.type.shape if kernel.form is Form.COLUMNS else kernel.space]
        if kernel.form is Form.ROWS:
            shapes.append(kernel.rows)
        if node.type.shape not in shapes:
            return False
        by_index = (s for i in node.op.buffered for s in sources(node.inputs[i]))
        if any(self.at.get(base) == place for base, _ in by_index):
            return False
        return self.sees(node, place, kernel)

    def sees(self, node: Node, place: int, kernel: Kernel) -> bool:
        """Whether what a node reads of a kernel's values is there where it reads it."""
        inside = (source for source in bases(node) if self.at.get(source[0]) == place)
        return all(_readable(base, path, node, kernel) for base, path in inside)

    def reduce(self, node: Node) -> None:
        (x,), fold = node.inputs, node.op
        assert isinstance(fold, Reduce)
        rank, inner = x.type.rank, len(fold.axes)
        if set(fold.axes) != set(range(rank - inner, rank)):
            if rank - 1 in fold.axes:
                raise CompileError(f"{fold.name} over axes {fold.axes} is to be split first")
            self.begin(Kernel(Form.COLUMNS, x.type.shape, inner), node)
            return
        last, rows = self.latest(node), (x.type.shape, inner)
        beside = self.folds.get(rows, -1)
        for place in (last, beside if last is None or beside > last else None):
            if place is not None and place >= 0 and self.takes_fold(place, node, inner):
                self.kernels[place].form, self.kernels[place].inner = Form.ROWS, inner
                self.folds[rows] = max(place, beside)
                self.enter(place, node)
                return
        self.folds[rows] = len(self.kernels)
        self.begin(Kernel(Form.ROWS, x.type.shape, inner), node)

    def takes_fold(self, place: int, node: Node, inner: int) -> bool:
        """Whether a kernel can fold its last axes in the same pass."""
        kernel = self.kernels[place]
        if kernel.space != node.inputs[0].type.shape or len(kernel.nodes) >= MAX_NODES:
            return False
        if kernel.form is not Form.MAP and (kernel.form is not Form.ROWS or kernel.inner != inner):
            return False
        if any(n.op.joins for n in kernel.nodes):  # a map alone puts things together
            return False
        return self.sees(node, place, Kernel(Form.ROWS, kernel.space, inner, kernel.nodes))

    def test(self, node: Node, bound: Bound | None) -> None:
        if (node, bound) not in self.tested:
            self.tested[node, bound] = len(self.kernels)
            test = Test(node, next(self.codes), bound)
            self.kernels.append(Kernel(Form.CHECK, node.type.shape, nodes=[node], test=test))


def _chains(loop: Kernel, roots: Collection[Node]) -> tuple[Chain, ...]:
    """The carried values of which stacks are kept, where nobody outside asks for one of them."""
    op = loop.anchor.op
    assert isinstance(op, Scan)
    body = op.body_of_step
    found: list[Chain] = []
    made = {n.op.output: n for n in loop.writes if isinstance(n.op, Scan) and n not in roots}
    count, end = len(body.carries), len(body.carries) + len(body.ys)
    for i, new in enumerate(body.nexts):
        alike = (made[j] for j, y in enumerate(body.ys, count) if y is new and j in made)
        chain = Chain(i, made.get(end + i), next(alike, None), bytes_of(new), op.reverse)
        found += [chain] if chain.stacks else []
    return tuple(found)


def _step(loop: Kernel) -> Graph:
    """What a loop repeats: values of chains are results, the other carried ones are updated."""
    op = loop.anchor.op
    (graph,) = op.bodies()
    assert isinstance(op, Scan)
    chained = {op.body_of_step.carries[chain.carry] for chain in loop.chains}
    results = tuple(op.body_of_step.nexts[chain.carry] for chain in loop.chains)
    updates = tuple(pair for pair in graph.updates if pair[0] not in chained)
    return Graph((*graph.outputs, *results), updates)


def _steps(loop: Kernel, codes: Iterator[int]) -> list[Kernel]:
    """The kernels that a loop repeats; positions that it is given have been tested before it."""
    op = loop.anchor.op
    assert isinstance(op, Scan)
    body = op.body_of_step
    tested = [(body.leaves[number], bound) for number, bound in body.positions]
    return fuse(_step(loop), codes=codes, tested=tested)


def _repeated(loop: Kernel) -> None:
    """Tell the kernels inside a loop how often they run, and what is the same each time."""
    op = loop.anchor.op
    assert isinstance(op, Scan)
    for kernel in every(loop.inside):
        kernel.times, kernel.depth = kernel.times * op.length, kernel.depth + 1
    for kernel in loop.inside:
        kernel.fixed = frozenset(kernel.reads).intersection(op.body_of_step.constants)


def _readable(base: Node, path: tuple[Node, ...], node: Node, kernel: Kernel) -> bool:
    """Whether a node of the kernel can use another's value where it stands: at the same index, or,
    row by row, a row's value at each place along the row.
    """
    if not path:
        return base.type.shape == node.type.shape or node.op.role == "reduce"
    if kernel.form is not Form.ROWS or len(path) != 1 or base.type.shape != kernel.rows:
        return False
    along = tuple(range(len(kernel.rows), len(kernel.space)))
    return path[0].type.shape == kernel.space and path[0].op.repeats() == along


def _order_of_visits(nodes: Sequence[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """The nodes by their longest path from a leaf, and the hosts of those that are made late.

    A tensor that is made from leaves and single numbers alone, such as 0.9 * m, waits for the first
    node that uses it together with something computed, its host, and is then made where that is
    made.
    """
    depth: dict[Node, int] = {}
    computed: set[Node] = set()
    single = _numbers(nodes)
    for node in nodes:
        depth[node] = 1 + max((depth[i] for i in node.inputs), default=0)
        cheap = node.op.role in ("leaf", "view", "light", "pointwise")
        if node.op.role == "view" and single.issuperset(node.inputs):
            single.add(node)
        waits = cheap and node not in single
        if node.inputs and not (waits and single.issuperset(computed.intersection(node.inputs))):
            computed.add(node)
    hosts: dict[Node, Node] = {}
    for node in reversed(nodes):
        host = node if node in computed else hosts.get(node)
        if host is None:
            continue
        for i in node.inputs:
            if i not in computed and (i not in hosts or depth[host] < depth[hosts[i]]):
                hosts[i] = host
    late = {n: h for n, h in hosts.items() if n.op.role == "pointwise"}

    time: dict[Node, float] = {}
    for node in nodes:
        wanted = depth[late[node]] - 0.5 if node in late else depth[node]
        time[node] = max((time[i] for i in node.inputs), default=wanted)
        time[node] = max(time[node], wanted)
    return sorted(nodes, key=time.__getitem__), late


def _numbers(nodes: Sequence[Node]) -> set[Node]:
    """Single numbers, and rows of such, one a model of many, that all else only reads repeated."""
    found: set[Node] = set()
    read: set[Node] = set()
    otherwise: set[Node] = set()
    for node in reversed(nodes):
        rank = node.type.rank
        if rank == 0 or (rank == 1 and node.inputs and node in read and node not in otherwise):
            found.add(node)
        repeats = rank > 1 and node.op.role == "view" and node.op.repeats() == (*range(rank - 1),)
        read.update(node.inputs)
        if not repeats and not (rank == 1 and node in found):
            otherwise.update(node.inputs)
    return found


def _connect(kernels: Sequence[Kernel], graph: Graph) -> None:
    """Find what each kernel reads from memory, and which of its values others need there."""
    inside: dict[Node, Kernel] = {}
    for kernel in kernels:
        if kernel.test is None:
            inside.update((node, kernel) for node in kernel.nodes)
    wanted = {storage(root) for root in graph.roots}
    for kernel in kernels:
        read = sources if kernel.test is not None else bases
        found = dict.fromkeys(base for node in kernel.nodes for base, _ in read(node))
        mine = kernel if kernel.test is None else None
        kernel.reads = tuple(base for base in found if mine is None or inside.get(base) is not mine)
        wanted.update(kernel.reads)
    for kernel in kernels:
        if kernel.test is None:
            kernel.writes = {n: n for n in kernel.nodes if n in wanted}
