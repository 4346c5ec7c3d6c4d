"""Questions about statements and values that interpreter, printer and code generation all ask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.loop import (
    LANES,
    Apply,
    Barrier,
    Blocks,
    Buffer,
    Check,
    Combine,
    Fetch,
    Get,
    IndexValue,
    Let,
    Load,
    Local,
    Loop,
    Multiply,
    Program,
    Set,
    Stmt,
    Store,
    Value,
    When,
)
from chainrule.ir.size import Dim, Remainder, symbols_of

#: statements that hold others, and those that change a local
_NESTS = (Loop, When)
_SETS = (Set, Multiply, MultiplyPanels)


def operands(value: Value) -> tuple[Value, ...]:
    """The values a value is made from directly."""
    if isinstance(value, Apply):
        return value.args
    return (value.index,) if isinstance(value, Load) and value.index is not None else ()


def postorder(*roots: Value) -> list[Value]:
    """Every value under the roots once (as an object), operands first; no recursion."""
    seen: set[int] = set()
    order: list[Value] = []
    stack: list[tuple[Value, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        value, done = stack.pop()
        if done:
            order.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            under = operands(value)
            if under:
                stack.append((value, True))
                stack += [(v, False) for v in under[::-1]]
            else:
                order.append(value)
    return order


def shared(*roots: Value) -> list[Value]:
    """The operations that are used more than once under the roots, operands first."""
    order = postorder(*roots)
    uses: dict[int, int] = {}
    for value in [*roots, *(v for user in order for v in operands(user))]:
        uses[id(value)] = uses.get(id(value), 0) + 1
    return [v for v in order if isinstance(v, Apply) and uses[id(v)] > 1]


def statements(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement of a body and of the loops in it."""
    stack = [iter(body)]
    while stack:
        for s in stack[-1]:
            yield s
            if isinstance(s, _NESTS):
                stack.append(iter(s.body))
                break
        else:
            stack.pop()


def stored_buffers(body: Iterable[Stmt]) -> frozenset[Buffer]:
    """The buffers a body writes."""
    found: set[Buffer] = set()
    for s in statements(body):
        if isinstance(s, Store | Fetch):
            found.add(s.buffer)
        elif isinstance(s, Blocks):
            found.add(s.sums)
        elif isinstance(s, Bring):
            found |= {box.to for box in s.boxes}
        elif isinstance(s, Engage):
            found |= {s.room, s.desk}
    return frozenset(found)


def loaded_buffers(body: Iterable[Stmt]) -> frozenset[Buffer]:
    """The buffers a body reads."""
    found: set[Buffer] = set()
    for s in statements(body):
        found |= {v.buffer for v in postorder(*values_of(s)) if isinstance(v, Load)}
        if isinstance(s, Blocks):
            found |= {s.left.buffer, s.right.buffer, *([s.sums] if s.more else [])}
    return frozenset(found)


def set_locals(body: Iterable[Stmt]) -> frozenset[Local]:
    """The locals a body writes."""
    return frozenset(s.local for s in statements(body) if isinstance(s, _SETS))


def has_check(body: Iterable[Stmt]) -> bool:
    """Whether a body may leave its program early."""
    return any(isinstance(s, Check) for s in statements(body))


def multiplies_blocks(s: Stmt) -> bool:
    """Whether a statement multiplies blocks, and no parts meet in between."""
    found = list(statements((s,)))
    return any(isinstance(i, Blocks) for i in found) and not any(
        isinstance(i, Barrier) for i in found
    )


def factors_of(program: Program) -> str:
    """What a product's factors are taken as where that is not what they are, and how; else ''."""
    for s in statements(program.body):
        if isinstance(s, MultiplyPanels):
            return "bfloat16 on tensor cores, panels by the copy engine"
        if isinstance(s, Multiply):
            return f"{'TF32' if s.tf32 else 'bfloat16'} on tensor cores"
        if isinstance(s, Blocks):
            return f"{'two bfloat16' if s.parts > 1 else 'bfloat16'} in blocks (AMX)"
        if any(isinstance(v, Apply) and v.fn == "dot2" for v in postorder(*values_of(s))):
            return "bfloat16 in pairs"
    return ""


def merged_locals(body: Sequence[Stmt]) -> frozenset[Local]:
    """The locals with lanes that a masked iteration must leave in its absent lanes as they were.

    Nobody sees an absent lane of the others: they are not combined, and each vector loop that reads
    a cell has set it before, or all that touch the local have one extent of at most LANES.
    """
    values = [v for s in statements(body) for v in postorder(*values_of(s))]
    merged = {v.local for v in values if isinstance(v, Combine)}
    carried: set[Local] = set()
    extents: dict[Local, set[Dim]] = {}
    for loop in statements(body):
        if not isinstance(loop, Loop) or loop.mode != "vector":
            continue
        done: set[tuple[Local, tuple[Dim, ...]]] = set()
        for s in statements(loop.body):
            for v in postorder(*values_of(s)):
                if isinstance(v, Get):
                    extents.setdefault(v.local, set()).add(loop.extent)
                    carried |= {v.local} if (v.local, v.index) not in done else set()
            if isinstance(s, Set):
                extents.setdefault(s.local, set()).add(loop.extent)
                done.add((s.local, s.index))
    for local in carried:
        short = all(at_most(extent, LANES) for extent in extents[local])
        if not short or len(extents[local]) > 1:
            merged.add(local)
    return frozenset(merged)


def carried_locals(body: Iterable[Stmt]) -> frozenset[Local]:
    """The locals of which some value is read where it was not set just before, in the same body.

    What the others hold is never wanted by another iteration, nor after a loop.
    """
    found: set[Local] = set()
    bodies: list[Iterable[Stmt]] = [body]
    while bodies:
        done: set[tuple[Local, tuple[Dim, ...]]] = set()
        for s in bodies.pop():
            for v in postorder(*values_of(s)):
                if isinstance(v, Get | Combine) and (v.local, v.index) not in done:
                    found.add(v.local)
            if isinstance(s, Loop | When):
                bodies.append(s.body)
                again = set_locals(s.body)  # it may set them, or not: both come together after it
                done = {cell for cell in done if cell[0] not in again}
            elif isinstance(s, Set):
                done.add((s.local, s.index))
            elif isinstance(s, Multiply | MultiplyPanels):
                found.add(s.local)
    return frozenset(found)


def at_most(extent: Dim, bound: int) -> bool:
    """Whether a size is known not to exceed a bound: a number, or a remainder."""
    if isinstance(extent, int):
        return extent <= bound
    if len(extent.terms) != 1:
        return False
    monomial, c = extent.terms[0]
    if c != 1 or len(monomial) != 1 or not isinstance(monomial[0], Remainder):
        return False
    denominator = monomial[0].denominator
    return isinstance(denominator, int) and 0 < denominator <= bound + 1


def symbols_in(body: Iterable[Stmt]) -> frozenset[str]:
    """The sizes a body speaks of: every symbol in it that is not one of its loop variables."""
    named: set[str] = set()
    bound: set[str] = set()
    for s in statements(body):
        dims: list[Dim] = []
        if isinstance(s, Loop):
            bound.add(s.var)
            dims.append(s.extent)
        elif isinstance(s, Let):
            bound.add(s.var)
            dims.append(s.value)
        elif isinstance(s, Set | Multiply):
            dims += s.index
        elif isinstance(s, Store):
            dims += (s.offset, s.stride)
        elif isinstance(s, Fetch):
            dims.append(s.offset)
        elif isinstance(s, Engage):
            dims += (d for m in s.matrices for d in (m.offset, m.lines, m.along, m.apart))
        elif isinstance(s, Bring):
            dims += (s.bell, *(d for box in s.boxes for d in (box.line, box.first, box.at)))
        elif isinstance(s, Hear):
            dims += (s.bell, s.turn)
        elif isinstance(s, Blocks):
            dims += (s.at, s.left.offset, s.left.apart, s.right.offset, s.right.apart, s.steps)
        elif isinstance(s, When):
            dims += (dim for pair in s.bounds for dim in pair)
        for value in postorder(*values_of(s)):
            dims += dims_of(value)
        for dim in dims:
            named |= symbols_of(dim)
    return frozenset(named - bound)


def values_of(stmt: Stmt) -> tuple[Value, ...]:
    """The values a statement holds directly."""
    if isinstance(stmt, Set):
        return (stmt.value,)
    if isinstance(stmt, Store):
        return (stmt.value, stmt.index) if stmt.index is not None else (stmt.value,)
    if isinstance(stmt, Multiply):  # of each factor the first of its words
        return tuple(Load(words.buffer, words.at) for words in (stmt.a, stmt.b))
    if isinstance(stmt, Fetch):
        return (stmt.source,)
    if isinstance(stmt, When) and stmt.test is not None:
        return (stmt.test,)
    if isinstance(stmt, MultiplyPanels):
        return tuple(Load(panel.buffer, panel.at) for panel in (stmt.a, stmt.b))
    if isinstance(stmt, Bring):  # of each box the first element
        matrices = [stmt.engine.matrices[box.matrix] for box in stmt.boxes]
        return tuple(Load(m.source, m.offset) for m in matrices)
    return (stmt.condition,) if isinstance(stmt, Check) else ()


def dims_of(value: Value) -> tuple[Dim, ...]:
    """The index polynomials a value holds directly."""
    if isinstance(value, Load):
        return (value.offset, value.stride)
    if isinstance(value, IndexValue):
        return (value.index,)
    return value.index if isinstance(value, Get | Combine) else ()
