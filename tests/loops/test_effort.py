"""What programs ask of a machine, counted from loops: as by hand, and as it must be."""

from __future__ import annotations

import math
from typing import Any

import pytest

import chainrule as cr
from chainrule.ir.loop import Program
from chainrule.loops.effort import CALL, CHAIN, DIVISION, Effort, effort_of
from chainrule.target import TARGETS, Target
from chainrule.target.speeds import usual_speeds

LEVELS = ["x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64"]


def programs(*outputs: cr.Tensor, level: str = "x86-64-v4") -> list[Program]:
    """The programs of expressions, as they are made for a level."""
    from chainrule.driver import build, leaves_of
    from chainrule.ir.graph import Graph

    roots = [o.node for o in outputs]
    names = [str(i) for i in range(len(roots))]
    made = build(
        Graph(tuple(roots)), feeds=leaves_of(roots), outputs=names, threads=1, target=target(level)
    )
    return [b.program for b in made.levels.built]


def target(level: str) -> Target:
    """A level, for the machine that runs the tests to load: only its loops are looked at."""
    from dataclasses import replace

    from chainrule.codegen.host import host_target

    return replace(host_target(), vector_bytes=TARGETS[level].vector_bytes,
                   vector_registers=TARGETS[level].vector_registers)  # fmt: skip


def effort(program: Program, level: str = "x86-64-v4", **sizes: int) -> Effort:
    return effort_of(program, sizes, TARGETS[level])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("m", "k", "n"), [(16, 40, 64), (48, 33, 32), (8, 7, 160)])
def test_a_product_is_its_multiply_adds(m: int, k: int, n: int, level: str) -> None:
    x, w = cr.input("x", (m, k)), cr.input("w", (k, n))
    (program,) = programs(x @ w, level=level)
    found = effort(program, level)
    assert found.operations == m * k * n / (TARGETS[level].vector_bytes // 4)
    assert found.stores == m * n / (TARGETS[level].vector_bytes // 4)
    assert found.longest == 1


def test_an_epilogue_is_counted_for_each_vector_of_a_tile() -> None:
    """What is made of a local differs from vector to vector, as that does."""
    z = cr.input("x", (16, 40)) @ cr.input("w", (40, 64))
    more = cr.input("y", (16, 64)) + z
    (program,) = programs(more, cr.sqrt(more) + z)
    found = effort(program)
    assert found.operations == 16 * (64 // 16) * (40 + 3)
    assert sum(w.divisions for w in found.works.values()) == 16 * (64 // 16)


def test_divisions_go_on_beside_other_operations() -> None:
    """A root and eight operations take as long as the root alone, and beside sixty it is one."""
    x, speeds = cr.input("x", (16 * 4096,)), usual_speeds("x86-64-v4")

    def seconds(y: cr.Tensor, pairs: int) -> float:
        for i in range(pairs):
            y = cr.abs(y - (i + 0.5))
        (program,) = programs(y)
        return effort(program).seconds(speeds, TARGETS["x86-64-v4"])

    assert 8 < DIVISION < 60
    assert seconds(cr.sqrt(x), 4) == pytest.approx(seconds(cr.sqrt(x), 0), rel=0.01)
    assert seconds(cr.sqrt(x), 30) == pytest.approx(seconds(x, 30) * 61 / 60, rel=0.02)


def test_a_product_serves_every_size() -> None:
    x, w = cr.input("x", ("batch", 40)), cr.input("w", (40, 64))
    (program,) = programs(x @ w)
    for batch in (8, 24, 80):
        turns = 16  # of loops over tiles that none is left for
        assert 0 <= effort(program, batch=batch).operations - batch * 40 * 4 < turns


def test_products_along_images_are_what_windows_have_inside_them() -> None:
    """Of two axes of 7 and 9 that windows of 3 reach out of by 1, 19 times 25 terms."""
    x, k = cr.input("x", (32, 2, 7, 9)), cr.input("k", (8, 2, 3, 3))
    (program,) = programs(cr.conv(x, k, padding=1))
    terms = 32 // 16 * 8 * 2 * 19 * 25
    assert terms <= effort(program).operations < 1.2 * terms


@pytest.mark.parametrize("n", [16, 160, 16 * 999])
def test_a_map_reads_and_writes_each_element_once(n: int) -> None:
    x, y = cr.input("x", (n,)), cr.input("y", (n,))
    (program,) = programs(x * y + x)
    found = effort(program)
    assert [found.moved(b) for b in program.buffers] == [4 * n] * 3
    assert (found.operations, found.loads, found.stores) == (2 * n / 16, 2 * n / 16, n / 16)


def test_what_is_updated_in_place_costs_half_more() -> None:
    w = cr.parameter("w", (64, 48))
    loss = cr.mean((cr.input("x", (32, 64)) @ w) ** 2)
    step = cr.training_step(loss, cr.optim.SGD(0.1), threads=1)
    built = step._engine.compiled.levels.built
    moved = [
        effort(b.program).moved(b.program.buffers[b.memory.index(w.node)])
        for b in built
        if w.node in b.memory
    ]
    assert moved == [64 * 48 * 4, 64 * 48 * 4 * 1.5]


def test_a_chain_is_as_long_as_what_needs_each_other() -> None:
    x = cr.input("x", (160,))
    (sums,) = programs(((x + 1.0) * x + 1.0) * x)
    (beside,) = programs((x + 1.0) * (x + 2.0) + (x + 3.0) * (x + 4.0))
    assert (effort(sums).longest, effort(beside).longest) == (4, 3)


def test_a_fold_waits_for_itself() -> None:
    (program,) = programs(cr.sum(cr.input("x", (16 * 1000,))))
    assert effort(program).operations >= CHAIN * 1000


NETS: dict[str, Any] = {
    "product": lambda: cr.relu(cr.input("x", ("n", 300)) @ cr.input("w", (300, 200))),
    "transposed": lambda: cr.input("x", ("n", 300)).T @ cr.input("w", ("n", 200)),
    "softmax": lambda: cr.softmax(cr.input("x", ("n", 90))),
    "columns": lambda: cr.sum(cr.input("x", ("n", 90)), axis=0),
    "windows": lambda: cr.conv(cr.input("x", ("n", 3, 20, 20)), cr.input("k", (8, 3, 3, 3))),
    "taken": lambda: cr.take(cr.input("x", (70, 33)), cr.input("i", ("n",), dtype="int32"), axis=0),
    "sorted": lambda: cr.sort(cr.input("x", ("n", 12))),
}


@pytest.mark.parametrize("net", NETS)
def test_larger_caches_save_and_larger_sizes_cost(net: str) -> None:
    """Traffic from beyond a cache falls with its size, to nothing; all else grows with n."""
    for program in programs(NETS[net]()):
        for n in (16, 64):  # of fewer a product has other loops
            found, larger = (effort(program, n=size) for size in (n, 2 * n))
            traffic = [found.traffic(1 << i) for i in range(4, 40, 4)]
            assert traffic == sorted(traffic, reverse=True) and traffic[-1] == 0
            assert all(found.moved(b) <= larger.moved(b) for b in program.buffers)
            speeds = usual_speeds("x86-64-v4")
            one, two = (e.seconds(speeds, TARGETS["x86-64-v4"]) for e in (found, larger))
            assert 0 < one <= two < math.inf


def test_a_call_of_nothing_takes_the_time_of_a_call() -> None:
    speeds, level = usual_speeds("x86-64-v4"), TARGETS["x86-64-v4"]
    assert Effort().seconds(speeds, level) == pytest.approx(CALL / (speeds.flops / 32))


def test_rows_at_distances_of_a_power_of_two_evict_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a cache's sets a panel of such rows finds few: it comes from afar again and again, where
    it is read as it lies.
    """
    monkeypatch.setattr("chainrule.loops.contract.NEAR_BYTES", 2**40)
    traffic = []
    for n in (496, 512):
        x, w = cr.input("x", (96, 784)), cr.input("w", (784, n))
        (program,) = programs(x @ w)
        traffic.append(effort(program).traffic(2**20))
    assert traffic[1] > 4 * traffic[0]
