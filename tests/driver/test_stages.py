"""Parts that have not met never touch what another one writes: shown by interpreting each part."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule.codegen.module as module
import chainrule.driver.lower as lower
import chainrule_runtime.program as program
from chainrule.codegen.function import WHOLE
from chainrule.codegen.host import host_target
from chainrule.codegen.module import shared_calls
from chainrule.codegen.steps import Call, Copy, Place, Repeat, Step, stretches
from chainrule.codegen.team import has_threads
from chainrule.ir.loop import LANES, Barrier, Buffer, Load, Loop, Stmt, Store
from chainrule.ir.size import evaluate
from chainrule.loops.interpret import Machine
from chainrule.loops.walk import has_check
from chainrule_runtime.manifest import Stage
from chainrule_runtime.sharing import meetings

SEED = 20
Places = set[int]  # addresses of elements


# where parts meet, by table


A, B, C = -1, -2, -3  # memory within a step
KEPT = 3


def done(call: int | None, reads: Sequence[int] = (), writes: Sequence[int] = ()) -> Stage:
    """A stage without a meeting inside."""
    return Stage(call, tuple(reads), tuple(writes), tuple(reads), tuple(writes))


@pytest.mark.parametrize(
    ("stages", "worth", "waits"),
    [
        # what was written is read, by others or by any that share
        ([done(0, [], [A]), done(1, [A], [B])], "11", "01"),
        ([done(0, [], [A]), done(1, [A], [B])], "10", "01"),
        ([done(0, [], [A]), done(1, [A], [B])], "01", "01"),
        ([done(0, [], [A]), done(1, [A], [B])], "00", "00"),
        # both only read; one writes what the other has read, or what it has written
        ([done(0, [A], [B]), done(1, [A], [C])], "11", "00"),
        ([done(0, [A], [B]), done(1, [C], [A])], "11", "01"),
        ([done(0, [C], [A]), done(1, [B], [A])], "11", "01"),
        # a meeting serves all that came before
        ([done(0, [], [A]), done(1, [A], [B]), done(2, [A], [C])], "111", "010"),
        ([done(0, [], [A]), Stage(meeting=True), done(1, [A], [B])], "11", "00"),
        # one that meets inside: what comes first decides, and after it all have met
        ([done(0, [], [A]), Stage(1, (A, C), (B, C), (KEPT,), (C,), True), done(2, [A], [])],
         "111", "000"),
        ([done(0, [], [A]), Stage(1, (A, C), (B, C), (KEPT,), (C,), True), done(2, [A], [])],
         "101", "010"),
        ([done(0, [], [C]), Stage(1, (A, C), (B, C), (KEPT,), (C,), True)], "11", "01"),
        # after a check: before what it tested is read, what stands behind it, what outlives a step,
        # and another check; all parts do, even where one does the work
        ([Stage(None, (A,), (), checked=(A,)), done(0, [A], [B])], "1", "01"),
        ([Stage(None, (A,), (C,), checked=(A,)), done(0, [C], [B])], "0", "01"),
        ([Stage(None, (A,), (), checked=(A,)), done(0, [C], [B])], "1", "00"),
        ([Stage(None, (A,), (), checked=(A,)), done(0, [], [KEPT])], "0", "01"),
        ([Stage(None, (A,), (), checked=(A,)), done(0, [C], [B]),
          Stage(None, (B,), (), checked=(B,))], "0", "001"),
        # a meeting inside is not where they hear of it
        ([Stage(None, (A,), (), checked=(A,)), Stage(0, (C,), (B,), (), (C,), True),
          done(1, [], [KEPT])], "11", "001"),
    ],
)  # fmt: skip
def test_where_parts_meet(stages: list[Stage], worth: str, waits: str) -> None:
    found = meetings(stages, [w == "1" for w in worth])
    assert "".join(str(int(w)) for w in found) == waits


# what parts touch, by interpreting their loops


@dataclass
class Touched:
    """Addresses that one part reads and writes."""

    reads: Places = field(default_factory=set)
    writes: Places = field(default_factory=set)

    def add(self, other: Touched) -> None:
        self.reads |= other.reads
        self.writes |= other.writes


class Part(Machine):
    """The interpreter of one part: its share of split loops, and what it touches in them."""

    def begin(self, part: int, parts: int, meet: threading.Barrier) -> None:
        self.low, self.high = part * WHOLE // parts, (part + 1) * WHOLE // parts
        self.touched = Touched()
        self.between = [self.touched]
        self.meet = meet

    def turned(self, loop: Loop, order: range) -> range:
        if not loop.split:
            return order
        count = order.stop // LANES if loop.mode == "vector" else len(order)
        start, stop = count * self.low // WHOLE, count * self.high // WHOLE
        return order[start:] if self.high == WHOLE else order[start:stop]

    def addresses(self, buffer: Buffer, at: Any) -> Places:
        array = self.buffers[buffer.name]
        return set(np.ravel(array.ctypes.data + np.asarray(at) * array.itemsize).tolist())

    def statement(self, s: Stmt) -> None:
        if isinstance(s, Barrier):
            self.touched = Touched()
            self.between.append(self.touched)
            self.meet.wait(60)
        if isinstance(s, Store):
            moved = None if s.index is None else self.value(s.index)
            self.touched.writes |= self.addresses(s.buffer, self.place(s, moved))
        super().statement(s)

    def part_of(self, v: Any, known: dict[int, Any]) -> Any:
        if isinstance(v, Load):
            index = None if v.index is None else known[id(v.index)]
            self.touched.reads |= self.addresses(v.buffer, self.place(v, index))
        return super().part_of(v, known)


#: for a stage, what each part touches between its meetings inside; None where all parts meet
Trace = list[tuple[int, list[list[Touched]]] | None]


class Tracer:
    """Runs the calls of a compiled program on the memory that the runtime gave it, part by part."""

    def __init__(self, native: Any, sizes: dict[str, int], parts: int) -> None:
        self.table, self.sizes, self.parts = native.table, sizes, parts
        self.loops: list[int] = []
        self.trace: Trace = []

    def steps(self, order: Sequence[Step], shared: set[int], stage: int = 0) -> int:
        """Run steps whose first stage has that number; the number of the stage that follows."""
        for stretch in stretches(order, shared):
            if isinstance(stretch, Repeat):
                self.trace.append(None)
                after = stage
                for t in self.turns(stretch):
                    self.loops.append(t)
                    after = self.steps(stretch.steps, shared, stage)
                    self.loops.pop()
                    self.trace.append(None)
                stage = after
            elif isinstance(stretch, Call):
                self.trace.append((stage, self.call(stretch, self.parts)))
                stage += 1
            else:
                own = Touched()
                for touched in self.alone(stretch):
                    own.add(touched)
                self.trace.append((stage, [[own]]))
                stage += 1
        return stage

    def turns(self, loop: Repeat) -> range:
        turns = range(evaluate(loop.length, self.sizes))
        return turns[::-1] if loop.reverse else turns

    def alone(self, steps: Sequence[Step]) -> Iterator[Touched]:
        for step in steps:
            if isinstance(step, Call):
                yield from (touched for (touched,) in self.call(step, 1))
            elif isinstance(step, Repeat):
                for t in self.turns(step):
                    self.loops.append(t)
                    yield from self.alone(step.steps)
                    self.loops.pop()
            else:
                yield self.copy(step)

    def copy(self, copy: Copy) -> Touched:
        size = evaluate(copy.size, self.sizes)
        source, target = self.address(copy.source), self.address(copy.target)
        ctypes.memmove(target, source, size)
        return Touched(set(range(source, source + size, 4)), set(range(target, target + size, 4)))

    def address(self, place: int | Place) -> int:
        entry, moves = (place, ()) if isinstance(place, int) else (place.entry, place.moves)
        moved = sum(self.loops[loop] * evaluate(size, self.sizes) for loop, size in moves)
        return int(self.table[entry] or 0) + moved

    def call(self, call: Call, parts: int) -> list[list[Touched]]:
        machines, meet = [], threading.Barrier(parts)
        for part in range(parts):
            machine = Part(self.buffers(call, part), dict(self.sizes), host_target().fma)
            machine.begin(part, parts, meet)
            machines.append(machine)
        threads = [threading.Thread(target=m.block, args=(call.program.body,)) for m in machines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [list(t) for t in zip(*(m.between for m in machines), strict=True)]

    def buffers(self, call: Call, part: int) -> dict[str, Any]:
        found = {}
        for buffer, place in zip(call.program.buffers, call.buffers, strict=True):
            size = evaluate(buffer.size, self.sizes) * buffer.dtype.itemsize
            at = self.address(place) + (part * -(-size // 64) * 64 if buffer.private else 0)
            raw = (ctypes.c_char * size).from_address(at)
            found[buffer.name] = np.frombuffer(raw, buffer.dtype.numpy)
        return found


def conflicts(trace: Trace, stages: Sequence[Stage], worth: Sequence[bool]) -> list[int]:
    """Stages at which a part touches what another writes, or writes what it touches, unmet."""
    work = [s for s in stages if not s.meeting]
    waits, parts = meetings(stages, worth), max(len(s) for e in trace if e for s in e[1])
    since = [Touched() for _ in range(parts)]
    bad: list[int] = []
    for event in trace:
        if event is None:
            since = [Touched() for _ in range(parts)]
            continue
        number, segments = event
        call = work[number].call
        shared = call is not None and worth[call]
        if waits[number]:
            since = [Touched() for _ in range(parts)]
        for i, segment in enumerate(segments):
            if i and shared:
                since = [Touched() for _ in range(parts)]
            for part, touched in enumerate(segment):
                since[part if shared else 0].add(touched)
            for p, one in enumerate(since):
                for other in since[:p] + since[p + 1 :]:
                    if one.writes & (other.reads | other.writes):
                        bad.append(number)
    return bad


def mlp() -> tuple[cr.Tensor, tuple[Any, ...]]:
    h = x = cr.input("x", ("batch", 20))
    for i, (n, m) in enumerate(((20, 35), (35, 17), (17, 5))):
        h = cr.relu(h) if i else x
        h = h @ cr.parameter(f"W{i}", (n, m)) + cr.parameter(f"b{i}", (m,))
    return h, ("batch", 20)


def attention() -> tuple[cr.Tensor, tuple[Any, ...]]:
    x = cr.input("x", ("batch", 4, 6))
    q, k, v = (x @ cr.parameter(n, (6, 6)) for n in "qkv")
    weights = cr.softmax(cr.einsum("bij,bkj->bik", q, k))
    h = cr.layer_norm(cr.mean(weights @ v, axis=1), scale=cr.parameter("g", (6,)))
    return h @ cr.parameter("W", (6, 5)), ("batch", 4, 6)


def convolution() -> tuple[cr.Tensor, tuple[Any, ...]]:
    x = cr.input("x", ("batch", 2, 5, 5))
    h = cr.relu(cr.conv(x, cr.parameter("K", (3, 2, 3, 3))))
    return cr.reshape(h, ("batch", 27)) @ cr.parameter("W", (27, 5)), ("batch", 2, 5, 5)


def recurrent() -> tuple[cr.Tensor, tuple[Any, ...]]:
    x = cr.input("x", (3, "batch", 6))
    W, V = cr.parameter("W", (6, 8)), cr.parameter("V", (8, 8))
    h0 = cr.zeros(("batch", 8))

    def body(h: cr.Tensor, x: cr.Tensor) -> tuple[cr.Tensor, None]:
        return cr.tanh(x @ W + h @ V), None

    h, _ = cr.scan(body, h0, x)
    return h @ cr.parameter("U", (8, 5)), (3, "batch", 6)


@pytest.mark.skipif(not has_threads(host_target()), reason="no threads here")
@pytest.mark.parametrize("net", [mlp, attention, convolution, recurrent], ids=lambda f: f.__name__)
def test_parts_keep_out_of_each_others_way(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, room in (("CALL_WORK", module), ("CALL_WORK", lower), ("STEP_WORK", lower)):
        monkeypatch.setattr(room, name, 0)
    monkeypatch.setattr(program, "usable_cpus", lambda: 8)
    parts, random = 3, np.random.default_rng(SEED)
    for batch in (1, 7):
        logits, shape = net()
        loss = cr.losses.cross_entropy(logits, cr.input("t", ("batch",), dtype="int32"))
        step = cr.training_step(loss, cr.optim.Adam(1e-2), threads=parts)
        x = random.standard_normal([batch if d == "batch" else d for d in shape])
        given = {"x": x.astype(np.float32), "t": random.integers(0, 5, batch).astype(np.int32)}
        step(**given)
        compiled, native = step._engine.compiled, step._engine._program
        tracer = Tracer(native, {"batch": batch}, parts)
        shared = shared_calls(compiled.levels.calls)
        stages = native.manifest.stages
        count = tracer.steps(compiled.levels.calls, {id(s.call.program) for s in shared})
        assert count == sum(not s.meeting for s in stages)
        assert any(has_check(c.program.body) for c in compiled.levels.calls if isinstance(c, Call))
        for i in range(40):
            often = (1, 0, 0.5)[i] if i < 3 else random.random()
            worth = [bool(w) for w in random.random(len(shared)) < often]
            bad = conflicts(tracer.trace, stages, worth)
            assert not bad, f"seed {SEED}, batch {batch}, shared {worth}: stages {bad}"
        # the detector sees what it should: without any meeting there are conflicts
        blind = [Stage(s.call, meeting=s.meeting) for s in stages]
        assert conflicts(tracer.trace, blind, [True] * len(shared))


def test_a_step_meets_seldom() -> None:
    """The updates of all layers run without a meeting between them."""
    if not has_threads(host_target()):
        pytest.skip("no threads here")
    logits, _ = mlp()
    loss = cr.losses.cross_entropy(logits, cr.input("t", ("batch",), dtype="int32"))
    step = cr.training_step(loss, cr.optim.Adam(1e-2), threads=2)
    stages = step._engine.compiled.manifest.stages
    calls = [s for s in stages if s.call is not None]
    waits = meetings(stages, [True] * len(calls))
    updates = [i for i, s in enumerate(stages) if s.call is not None and max(s.writes) >= 0]
    assert len(updates) > 1 and not any(waits[i] for i in updates[1:])
