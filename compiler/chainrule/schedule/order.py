"""The order in which kernels run, and which updates are made in place.

An update overwrites its leaf where it is computed if every other kernel that reads the old value
can run before, and every check has passed; the others are computed beside it and copied at the end.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Bound, Node
from chainrule.ops.layout import Slice
from chainrule.ops.scan import Scan
from chainrule.schedule.kernel import Form, Kernel, bytes_of, positions_of
from chainrule.schedule.reading import bases, sources, storage

#: For each kernel, by its number, the kernels that must have run before it.
Needs = Mapping[int, set[int]]
#: Positions, by the node that holds them and the bound within which they have to be.
Positions = Collection[tuple[Node, Bound]]


def order_kernels(kernels: list[Kernel], graph: Graph, tested: Positions = ()) -> list[Kernel]:
    """The kernels in the order they run, copies last; updates in place where that can be.

    The kernels come in an order that computes everything before it is read; what each writes is
    changed to say where. Positions `tested` have been so before any of them runs. Raises
    CompileError where kernels wait for each other, or read at positions that nothing tests.
    """
    number = {node: i for i, kernel in enumerate(kernels) for node in kernel.writes}
    uses = Counter([*(value for _, value in graph.updates), *graph.outputs])
    in_place: dict[Node, int] = {}
    copied: list[tuple[Node, Node]] = []
    for leaf, value in graph.updates:
        writer = number[storage(value)]
        alone = uses[value] == 1 and storage(value) is value
        if alone and reads_at_its_index(kernels[writer], leaf):
            kernels[writer].writes[value] = leaf
            in_place[leaf] = writer
        else:
            copied.append((leaf, value))
    while True:
        needs = _needs(kernels, number, in_place, tested)
        order = _topological(needs)
        if len(order) == len(kernels):
            break
        leaf = _one_in_a_circle(needs, set(order), in_place)
        writes = kernels[in_place.pop(leaf)].writes
        value = next(v for v, target in writes.items() if target is leaf)
        writes[value] = value
        copied.append((leaf, value))
    return [*(kernels[i] for i in order), *(copy_into(leaf, value) for leaf, value in copied)]


def copy_into(leaf: Node, value: Node) -> Kernel:
    """A kernel that puts a value that lies elsewhere into its leaf."""
    reads = (storage(value),)
    return Kernel(Form.COPY, leaf.type.shape, nodes=[value], reads=reads, writes={value: leaf})


def reads_at_its_index(kernel: Kernel, node: Node) -> bool:
    """Whether a kernel reads a node only at the index at which it writes, and before it does."""
    if kernel.form in (Form.NEST, Form.ATTEND, Form.ROWS, Form.SCAN):
        return False
    nodes = kernel.nodes
    if kernel.form in (Form.CONTRACT, Form.COLUMNS):
        if any(base is node for base, _ in bases(kernel.anchor)):
            return False
        nodes = kernel.nodes[1:]
    by_index = (n.inputs[i] for n in nodes for i in n.op.buffered)
    if any(base is node for operand in by_index for base, _ in sources(operand)):
        return False
    readers = [(n, path) for n in nodes for base, path in bases(n) if base is node]
    return all(n.op.role != "view" and not path for n, path in readers)


def writes_behind(loop: Kernel, stack: Node, value: Node) -> bool:
    """Whether a loop that reads a stack, slice by slice, may write another where that lies: each
    step writes its slice when all of the step have read theirs.
    """
    op = loop.anchor.op
    if not isinstance(op, Scan) or not isinstance(value.op, Scan) or loop.chain_of(value):
        return False
    body = op.body_of_step
    count, y = len(body.carries), value.op.output - len(body.carries)
    at = [i for i, operand in enumerate(loop.anchor.inputs) if storage(operand) is stack]
    if len(at) != 1 or not 0 <= at[0] - count < len(body.slices) or not 0 <= y < len(body.ys):
        return False
    old, home = body.slices[at[0] - count], storage(body.ys[y])
    writers = [i for i, k in enumerate(loop.inside) if k.writes.get(home) is home]
    given_out = old in map(storage, body.roots)  # at the end of the step
    fits = old.type.shape == home.type.shape and bytes_of(old) == bytes_of(home)
    if given_out or not fits or len(writers) != 1:
        return False
    readers = [i for i, k in enumerate(loop.inside) if old in k.reads]
    (last,) = writers
    kernel = loop.inside[last]
    in_place = reads_at_its_index(kernel, old) or _reads_its_parts(kernel, old, home)
    return all(i < last or (i == last and in_place) for i in readers)


def _reads_its_parts(kernel: Kernel, node: Node, whole: Node) -> bool:
    """Whether a map that writes a whole, part by part, reads of another just what lies there."""
    if kernel.form is not Form.MAP or not whole.op.joins:
        return False
    if any(
        base is node
        for n in kernel.nodes
        for i in n.op.buffered
        for base, _ in sources(n.inputs[i])
    ):
        return False
    types, origin = [part.type for part in whole.inputs], (0,) * len(kernel.space)
    starts = [whole.op.stands(types, i, origin) for i in range(len(types))]
    paths = [path for n in kernel.nodes for base, path in bases(n) if base is node]
    return all(
        len(path) == 1
        and isinstance(path[0].op, Slice)
        and path[0].op.starts in starts
        and path[0].type.shape == kernel.space
        and set(path[0].op.steps) == {1}
        for path in paths
    )


def _needs(
    kernels: Sequence[Kernel],
    writer: Mapping[Node, int],
    in_place: Mapping[Node, int],
    tested: Positions,
) -> Needs:
    """What must come first: data and the test of positions before their use, every use before it
    is overwritten, all tests before anything is.
    """
    needs: dict[int, set[int]] = {i: set() for i in range(len(kernels))}
    for i, kernel in enumerate(kernels):
        for base in kernel.reads:
            if base in writer:
                needs[i].add(writer[base])
            if base in in_place:
                needs[in_place[base]].add(i)
    checks = {(k.test.node, k.test.bound): i for i, k in enumerate(kernels) if k.test is not None}
    testing = [i for i, k in enumerate(kernels) if k.tests]
    for i in in_place.values():
        needs[i].update(testing)
    for i, kernel in enumerate(kernels):
        if kernel.test is None:
            positions = {pair for node in kernel.nodes for pair in positions_of(node)}
            needs[i].update(_test_of(pair, checks) for pair in positions.difference(tested))
    for i in needs:
        needs[i].discard(i)
    return needs


def _test_of(position: tuple[Node, Bound], checks: Mapping[tuple[Node, Bound | None], int]) -> int:
    """The kernel that tests a position."""
    if position not in checks:
        raise CompileError("nothing tests positions that are read at; this is a bug of chainrule")
    return checks[position]


def _followers(needs: Needs) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {i: set() for i in needs}
    for i, before in needs.items():
        for b in before:
            found[b].add(i)
    return found


def _topological(needs: Needs) -> list[int]:
    """The numbers, each after those it needs and otherwise as they come; none behind a circle."""
    followers = _followers(needs)
    missing = {i: len(before) for i, before in needs.items()}
    ready = [i for i, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for follower in followers[i]:
            missing[follower] -= 1
            if missing[follower] == 0:
                heapq.heappush(ready, follower)
    return order


def _one_in_a_circle(needs: Needs, done: set[int], in_place: Mapping[Node, int]) -> Node:
    """A leaf whose update in place is part of a circle: neither before all circles nor behind."""
    stuck = {i: before - done for i, before in needs.items() if i not in done}
    behind = set(_topological(_followers(stuck)))
    circling = [leaf for leaf, i in in_place.items() if i in stuck and i not in behind]
    if circling:
        return circling[-1]
    raise CompileError("kernels wait for each other in a circle; this is a bug of chainrule")
