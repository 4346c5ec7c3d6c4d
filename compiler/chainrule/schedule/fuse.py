"""From a graph to kernels.

Nodes are visited by their distance from the leaves (what is made from leaves alone, when it is
first needed), and each joins the last kernel that computes
one of its operands if it fits that kernel's space, else begins a kernel. Joining only the last one
keeps the order of kernels a valid order whatever is joined. What a kernel needs from another lies
in memory; views, comparisons and numbers made from indices are worked out where they are read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.size import Dim
from chainrule.ops.elementwise import Cast
from chainrule.schedule.kernel import Form, Kernel, Test

#: Nodes one kernel may hold, so that its code stays small enough for LLVM to be quick.
MAX_NODES = 64


def storage(node: Node) -> Node:
    """The node whose memory holds a node's elements: reshapes share their operand's."""
    while node.op.role == "alias":
        node = node.inputs[0]
    return node


def fuse(graph: Graph, finite: Sequence[Node] = ()) -> list[Kernel]:
    """The kernels of a graph, in an order that computes everything before it is read.

    `finite` are nodes that must be finite before any update is made: a CHECK kernel tests each.
    """
    return _Fusion(graph, finite).run()


class _Fusion:
    def __init__(self, graph: Graph, finite: Sequence[Node]) -> None:
        self.graph, self.finite = _computed_updates(graph), finite
        self.kernels: list[Kernel] = []
        self.at: dict[Node, int] = {}
        self.hosts: dict[Node, Node] = {}
        self.tested: set[tuple[Node, Dim | None]] = set()

    def run(self) -> list[Kernel]:
        nodes, self.hosts = _order_of_visits(self.graph.nodes)
        for node in nodes:
            for operand, bound in node.op.bounds(*[i.type for i in node.inputs]):
                self.test(node.inputs[operand], bound)
            self.place(node)
        for root in (*self.graph.roots, *self.finite):
            self.store(root)
        for node in self.finite:
            self.test(node, None)
        _connect(self.kernels, self.graph)
        return _order(self.kernels, self.graph)

    def place(self, node: Node) -> None:
        role = node.op.role
        if role in ("leaf", "view", "light"):
            return
        if role == "alias":
            self.store(node.inputs[0])
            return
        for i in node.op.buffered:
            self.materialize(node.inputs[i])
        if role == "pointwise":
            self.join(node)
        elif role == "reduce":
            self.reduce(node)
        elif role in ("contract", "nest"):
            for operand in node.inputs:
                self.materialize(operand)
            self.begin(Kernel(Form(role), node.type.shape), node)
        else:
            raise CompileError(f"no loops are known for {node.op.name}, whose role is {role!r}")

    def begin(self, kernel: Kernel, node: Node) -> None:
        self.at[node] = len(self.kernels)
        kernel.nodes.append(node)
        self.kernels.append(kernel)

    def store(self, node: Node) -> None:
        """Make sure that a node's elements lie in memory, in row-major order."""
        node = storage(node)
        if node.op.role in ("view", "light") and node not in self.at:
            self.begin(Kernel(Form.MAP, node.type.shape), node)

    def materialize(self, node: Node) -> None:
        """Make sure that a node can be read from memory, if need be through index maps."""
        while node.op.role == "view" and len(node.inputs) == 1 and node not in self.at:
            if node.op.bounds(*[i.type for i in node.inputs]):
                break
            node = node.inputs[0]
        self.store(node)

    def latest(self, node: Node) -> int | None:
        """The last kernel that computes an operand of a node, or of the host it waited for."""
        readers = {node, self.hosts.get(node, node)}
        found = [self.at[b] for reader in readers for b, _ in bases(reader) if b in self.at]
        return max(found) if found else None

    def join(self, node: Node) -> None:
        last = self.latest(node)
        if last is None and node.type.shape == ():
            scalars = [k for k, kernel in enumerate(self.kernels) if kernel.form is Form.MAP and kernel.space == ()]
            last = scalars[-1] if scalars else None
        if last is not None and self.fits(node, self.kernels[last], last):
            self.kernels[last].nodes.append(node)
            self.at[node] = last
            return
        self.begin(Kernel(Form.MAP, node.type.shape), node)

    def fits(self, node: Node, kernel: Kernel, place: int) -> bool:
        """Whether a pointwise node can be computed in a kernel's loops."""
        if len(kernel.nodes) >= MAX_NODES or kernel.form in (Form.NEST, Form.CHECK):
            return False
        result = kernel.anchor.type.shape if kernel.form is Form.COLUMNS else kernel.space
        if node.type.shape != result and (kernel.form is not Form.ROWS or node.type.shape != kernel.rows):
            return False
        if any(self.at.get(storage(node.inputs[i])) == place for i in node.op.buffered):
            return False
        return all(
            _readable(base, path, node, kernel) for base, path in bases(node) if self.at.get(base) == place
        )

    def reduce(self, node: Node) -> None:
        (x,) = node.inputs
        axes = set(node.op.axes)  # type: ignore[attr-defined]
        rank, inner = x.type.rank, len(axes)
        if axes != set(range(rank - inner, rank)):
            if rank - 1 in axes:
                raise CompileError(f"{node.op.name} over axes {sorted(axes)} is to be split first")
            self.begin(Kernel(Form.COLUMNS, x.type.shape, inner), node)
            return
        last = self.latest(node)
        kernel = self.kernels[last] if last is not None else None
        if kernel is not None and last is not None and self.takes_fold(kernel, last, node, inner):
            kernel.form, kernel.inner = Form.ROWS, inner
            kernel.nodes.append(node)
            self.at[node] = last
            return
        self.begin(Kernel(Form.ROWS, x.type.shape, inner), node)

    def takes_fold(self, kernel: Kernel, place: int, node: Node, inner: int) -> bool:
        """Whether a kernel can fold its last axes in the same pass."""
        if kernel.space != node.inputs[0].type.shape or len(kernel.nodes) >= MAX_NODES:
            return False
        if kernel.form is not Form.MAP and (kernel.form is not Form.ROWS or kernel.inner != inner):
            return False
        trial = Kernel(Form.ROWS, kernel.space, inner, kernel.nodes)
        return all(_readable(b, p, node, trial) for b, p in bases(node) if self.at.get(b) == place)

    def test(self, node: Node, bound: Dim | None) -> None:
        if (node, bound) not in self.tested:
            self.tested.add((node, bound))
            self.materialize(node)
            test = Test(node, len(self.tested), bound)
            self.kernels.append(Kernel(Form.CHECK, node.type.shape, nodes=[node], test=test))


def _computed_updates(graph: Graph) -> Graph:
    """The graph with updates that only read memory made copies, so that each has a kernel."""
    updates = []
    for leaf, value in graph.updates:
        computed = storage(value).op.role not in ("leaf", "view", "light")
        updates.append((leaf, value if computed else apply(Cast(value.type.dtype), value)))
    return Graph(graph.outputs, tuple(updates))


def bases(node: Node) -> Iterable[tuple[Node, tuple[Node, ...]]]:
    """The computed or given nodes that a node reads, each with the views it is read through."""
    return [pair for operand in node.inputs for pair in sources(operand)]


def sources(node: Node) -> list[tuple[Node, tuple[Node, ...]]]:
    """The computed or given nodes behind a node, which is one itself or a view of some."""
    pending: list[tuple[Node, tuple[Node, ...]]] = [(node, ())]
    found = []
    while pending:
        n, path = pending.pop()
        if n.op.role == "alias":
            found.append((storage(n), (*path, n)))
        elif n.op.role == "view":
            pending.extend((i, (*path, n)) for i in n.inputs)
        elif n.op.role == "light":
            pending.extend((i, path) for i in n.inputs)
        else:
            found.append((n, path))
    return found


def _readable(base: Node, path: tuple[Node, ...], node: Node, kernel: Kernel) -> bool:
    """Whether a node of the kernel can use another's value where it stands: at the same index, or,
    row by row, a row's value at each place along the row.
    """
    if not path:
        return base.type.shape == node.type.shape or node.op.role == "reduce"
    if kernel.form is not Form.ROWS or len(path) != 1:
        return False
    axes = getattr(path[0].op, "axes", None)
    outer = len(kernel.rows)
    return (
        base.type.shape == kernel.rows
        and path[0].type.shape == kernel.space
        and axes == tuple(range(outer, len(kernel.space)))
        and path[0].op.name == "expand"
    )


def _order_of_visits(nodes: Sequence[Node]) -> tuple[list[Node], dict[Node, Node]]:
    """The nodes by their longest path from a leaf, and the hosts of those that are made late.

    A tensor that is made from leaves alone, such as 0.9 * m, waits for the first node that uses it
    together with something computed, its host, and is then made where that is made.
    """
    depth: dict[Node, int] = {}
    computed: set[Node] = set()
    for node in nodes:
        depth[node] = 1 + max((depth[i] for i in node.inputs), default=0)
        heavy = node.op.role not in ("leaf", "view", "light", "pointwise") or node.type.shape == ()
        if node.inputs and (heavy or any(i in computed for i in node.inputs)):
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


def _connect(kernels: Sequence[Kernel], graph: Graph) -> None:
    """Find what each kernel reads from memory, and which of its values others need there."""
    inside: dict[Node, Kernel] = {}
    for kernel in kernels:
        if kernel.form is not Form.CHECK:
            inside.update((node, kernel) for node in kernel.nodes)
    wanted: set[Node] = {storage(r) for r in graph.roots}
    for kernel in kernels:
        found = [p for n in kernel.nodes for p in (sources(n) if kernel.form is Form.CHECK else bases(n))]
        ours = None if kernel.form is Form.CHECK else kernel
        kernel.reads = tuple(dict.fromkeys(b for b, _ in found if ours is None or inside.get(b) is not ours))
        wanted.update(kernel.reads)
    for kernel in kernels:
        if kernel.form is not Form.CHECK:
            kernel.writes = {n: n for n in kernel.nodes if n in wanted}


def _order(kernels: list[Kernel], graph: Graph) -> list[Kernel]:
    """Let updates write their leaves in place, each after every other reader and every check."""
    writer = {node: kernel for kernel in kernels for node in kernel.writes}
    copies: list[Kernel] = []
    in_place: dict[Node, Kernel] = {}
    for leaf, value in graph.updates:
        kernel = writer.get(storage(value))
        shared = [v for _, v in graph.updates].count(value) > 1 or value in graph.outputs
        if kernel is None or shared or storage(value) is not value or not _safe(kernel, leaf):
            copies.append(_copy(leaf, value))
        else:
            kernel.writes[value] = leaf
            in_place[leaf] = kernel
    while True:
        order = _sorted(kernels, in_place, writer)
        if order is not None:
            return order + copies
        if not in_place:
            raise CompileError("kernels wait for each other in a circle; this is a bug of chainrule")
        leaf, kernel = in_place.popitem()
        value = next(v for v, target in kernel.writes.items() if target is leaf)
        kernel.writes[value] = value
        copies.append(_copy(leaf, value))


def _copy(leaf: Node, value: Node) -> Kernel:
    return Kernel(Form.COPY, leaf.type.shape, nodes=[value], reads=(storage(value),), writes={value: leaf})


def _safe(kernel: Kernel, leaf: Node) -> bool:
    """Whether a kernel reads a leaf only at the index at which it writes it, and before it does."""
    if kernel.form in (Form.NEST, Form.ROWS):
        return False
    nodes = kernel.nodes[1:] if kernel.form in (Form.CONTRACT, Form.COLUMNS) else kernel.nodes
    if kernel.form in (Form.CONTRACT, Form.COLUMNS) and any(b is leaf for b, _ in bases(kernel.anchor)):
        return False
    return all(not path for node in nodes for base, path in bases(node) if base is leaf)


def _sorted(
    kernels: list[Kernel], in_place: dict[Node, Kernel], writer: dict[Node, Kernel]
) -> list[Kernel] | None:
    """The kernels with data before use and reads before overwriting; None where that is a circle."""
    updating = set(map(id, in_place.values()))
    after: dict[int, set[int]] = {id(k): set() for k in kernels}
    checks = [k for k in kernels if k.form is Form.CHECK]
    for kernel in kernels:
        for base in kernel.reads:
            source = writer.get(base)
            if source is not None and source is not kernel:
                after[id(kernel)].add(id(source))
            overwriter = in_place.get(base)
            if overwriter is not None and overwriter is not kernel:
                after[id(overwriter)].add(id(kernel))
        if id(kernel) in updating:
            after[id(kernel)].update(id(c) for c in checks)
    return _topological(kernels, after)


def _topological(kernels: list[Kernel], after: dict[int, set[int]]) -> list[Kernel] | None:
    """The earliest order in which each kernel comes after those it waits for."""
    order: list[Kernel] = []
    followers: dict[int, list[int]] = {}
    for k, needs in after.items():
        for n in needs:
            followers.setdefault(n, []).append(k)
    place = {id(k): i for i, k in enumerate(kernels)}
    waiting = {k: len(needs) for k, needs in after.items()}
    ready = [place[k] for k, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    while ready:
        i = heapq.heappop(ready)
        order.append(kernels[i])
        for follower in followers.get(id(kernels[i]), ()):
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, place[follower])
    return order if len(order) == len(kernels) else None

