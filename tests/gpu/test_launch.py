"""Which thread does what, and a simulator that refuses what a GPU would leave to chance."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.errors import CompileError
from chainrule.ir.loop import (
    Apply,
    Await,
    Barrier,
    Buffer,
    Close,
    Combine,
    Fetch,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Multiply,
    Program,
    Set,
    Stmt,
    Store,
    When,
    Words,
)
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, float32, float64, int64
from chainrule.loops.independent import shared_among_threads
from chainrule.loops.launch import Launch, launches_of
from chainrule.loops.simulate import Race, simulate

I, J, T, N = (Size.symbol(s) for s in "ijtn")
X, Y = Buffer("x", float64, 64), Buffer("y", float64, 64)


def run(body: tuple[Stmt, ...], parts: int, lanes: int) -> np.ndarray:
    """What is left in y; x holds 0, 1, 2, ..."""
    program = Program("test", (X, Y), (), body)
    arrays = {"x": np.arange(64.0), "y": np.zeros(64)}
    simulate(Launch(program, lanes, parts), arrays, {})
    return arrays["y"]


def split(extent: int, *body: Stmt) -> tuple[Stmt, ...]:
    return (Loop("i", extent, body, split=True),)


def test_a_part_is_an_iteration() -> None:
    y = run(split(64, Store(Y, I, Load(X, 63 - I))), 64, 1)
    np.testing.assert_array_equal(y, np.arange(64.0)[::-1])


def test_lanes_share_a_vector_loop_and_fold_in_one_tree() -> None:
    acc = Local("acc", float64, (), True)
    add = Set(acc, (), Apply("add", (Get(acc), Load(X, T)), float64))
    body = split(1, acc, Loop("t", 40, (add,), "vector"), Store(Y, 0, Combine("add", acc)))
    cells = [sum(range(lane, 40, 16)) for lane in range(16)]
    assert run(body, 1, 16)[0] == sum(cells)


def test_two_threads_at_one_element_are_a_race() -> None:
    with pytest.raises(Race, match="threads"):
        run(split(2, Store(Y, 0, IndexValue(I, float64))), 2, 1)


def test_one_part_that_reads_what_another_writes_is_a_race() -> None:
    body = split(32, Store(Y, I, Load(Y, (I + 1) % 32)))
    with pytest.raises(Race):
        run(body, 32, 1)


HAND_OVER = (
    Loop("t", 16, (Store(Y, T, Load(X, T)),), "vector"),
    Loop("t", 16, (Store(Y, T + 16, Load(Y, 15 - T)),), "vector"),
)


def test_lanes_that_do_not_wait_are_a_race() -> None:
    with pytest.raises(Race):
        run(split(1, *HAND_OVER), 1, 16)


def test_lanes_that_wait_are_none() -> None:
    first, second = HAND_OVER
    y = run(split(1, first, Barrier(lanes=True), second), 1, 16)
    np.testing.assert_array_equal(y[16:32], np.arange(16.0)[::-1])


def test_barriers_are_put_where_lanes_would_race() -> None:
    program = Program("test", (X, Y), (), split(1, *HAND_OVER))
    (launch,), _ = launches_of(program, 16)
    arrays = {"x": np.arange(64.0), "y": np.zeros(64)}
    simulate(launch, arrays, {})
    np.testing.assert_array_equal(arrays["y"][16:32], np.arange(16.0)[::-1])


def test_a_value_that_all_lanes_read_is_written_by_one_after_all_have() -> None:
    t = Local("t", float64)
    body = split(2, t, Set(t, (), Load(Y, I)), Store(Y, I, Apply("add", (Get(t), Get(t)), float64)))
    (launch,), _ = launches_of(Program("test", (X, Y), (), body), 16)
    assert any(isinstance(s, Barrier) for s in launch.program.body[0].body)
    simulate(launch, {"x": np.zeros(64), "y": np.ones(64)}, {})


S = Buffer("s", float64, 32, private=True)


def fetched(*body: Stmt) -> np.ndarray:
    """What is left in y of one part of 16 lanes with 32 elements of shared memory."""
    program = Program("test", (X, Y), (), split(1, *body))
    arrays = {"x": np.arange(64.0), "y": np.zeros(64)}
    simulate(Launch(program, 16, 1, shared=(S,)), arrays, {})
    return arrays["y"]


def fetch(offset: object, source: object) -> Stmt:
    return Loop("t", 16, (Fetch(S, offset, Load(X, source)),), "vector")  # type: ignore[arg-type]


#: each lane fetches what another reads
TURNED = Loop("t", 16, (Store(Y, T, Load(S, 15 - T)),), "vector")
OWN = Loop("t", 16, (Store(Y, T, Load(S, T)),), "vector")
MEET = Barrier(lanes=True)


def test_what_is_fetched_is_there_once_lanes_have_waited_and_met() -> None:
    y = fetched(fetch(T, T), Close(), Await(0), MEET, TURNED)
    np.testing.assert_array_equal(y[:16], np.arange(16.0)[::-1])
    y = fetched(fetch(T, T + 3), Close(), Await(0), OWN)  # a lane's own it need not meet for
    np.testing.assert_array_equal(y[:16], np.arange(16.0) + 3)


def test_what_was_asked_for_before_the_last_group_is_there() -> None:
    y = fetched(fetch(T, T), Close(), fetch(T + 16, T + 16), Close(), Await(1), MEET, TURNED,
                Await(0))  # fmt: skip
    np.testing.assert_array_equal(y[:16], np.arange(16.0)[::-1])


@pytest.mark.parametrize(
    "body",
    [
        (fetch(T, T), Close(), MEET, TURNED, Await(0)),  # read before it was waited for
        (fetch(T, T), Close(), OWN, Await(0)),  # one's own as well
        (fetch(T, T), Await(0), MEET, OWN),  # what is in no group yet is waited for by nobody
        (fetch(T, T), Close(), fetch(T + 16, T), Close(), Await(2), MEET, TURNED, Await(0)),
    ],
)
def test_what_has_not_come_is_not_read(body: tuple[Stmt, ...]) -> None:
    with pytest.raises(Race, match="before what was fetched into it has come"):
        fetched(*body)


@pytest.mark.parametrize(
    "body",
    [
        (fetch(T, T), Close(), Await(0), TURNED),  # each lane waits for its own alone
        (fetch(T, T), Close(), Await(0), MEET, TURNED, fetch(T, T), Close(), Await(0)),
        (Loop("t", 16, (Store(S, T, Load(X, T)),), "vector"), fetch(15 - T, T), Close(), Await(0)),
        (fetch(0, T), Close(), Await(0)),  # into one place
    ],
)
def test_lanes_meet_before_what_is_fetched_changes_hands(body: tuple[Stmt, ...]) -> None:
    with pytest.raises(Race):
        fetched(*body)


def test_what_nobody_waits_for_is_refused() -> None:
    with pytest.raises(Race, match="nobody awaits"):
        fetched(fetch(T, T), Close())


@pytest.mark.parametrize(("to", "source"), [(T + 17, T), (T, T + 49)])
def test_a_fetch_stays_inside(to: object, source: object) -> None:
    with pytest.raises(CompileError, match="elements"):
        fetched(fetch(to, source), Close(), Await(0))


def test_barriers_are_put_around_what_is_fetched() -> None:
    body = split(1, Loop("k", 2, (fetch(T, T + 16 * Size.symbol("k")), Close(), Await(0), TURNED)))
    program = Program("test", (X, Y, S), (), body)
    (launch,), _ = launches_of(program, 16)
    arrays = {"x": np.arange(64.0), "y": np.zeros(64)}
    simulate(launch, arrays, {})
    np.testing.assert_array_equal(arrays["y"][:16], np.arange(16.0, 32)[::-1])


W = Buffer("w", float32, 16 * 8 + 8 * 8, private=True)
SUMS = Local("sums", float32, (4,), True)


def multiplied(a: Words, b: Words, *between: Stmt) -> np.ndarray:
    """What a warp multiplies of shared memory that holds 0, 1, 2, ...: 16 rows of 8 columns."""
    given, out = Buffer("x", float32, 192), Buffer("y", float32, 128)
    fill = Loop("t", 192, (Store(W, T, Load(given, T)),), "vector")
    product = Loop("t", 32, (Multiply(SUMS, (), a, b, True),), "vector")
    stores = tuple(
        Store(out, (T // 4 + 8 * (r // 2)) * 8 + T % 4 * 2 + r % 2, Get(SUMS, (r,)))
        for r in range(4)
    )
    body = split(1, SUMS, fill, *between, product, Loop("t", 32, stores, "vector"))
    arrays = {"x": np.arange(192, dtype=np.float32), "y": np.zeros(128, np.float32)}
    simulate(Launch(Program("test", (given, out), (), body), 32, 1, shared=(W,)), arrays, {})
    return arrays["y"].reshape(16, 8)


ROWS, COLUMNS = Words(W, 0, 8), Words(W, 128, 8)


def test_a_warp_multiplies_lines_of_words() -> None:
    numbers = np.arange(192.0)
    a, b = numbers[:128].reshape(16, 8), numbers[128:].reshape(8, 8)
    np.testing.assert_array_equal(multiplied(ROWS, COLUMNS, MEET), (a @ b.T).astype(np.float32))


def test_words_that_others_wrote_are_not_multiplied_before_lanes_have_met() -> None:
    with pytest.raises(Race):
        multiplied(ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("a", "said"),
    [
        (Words(W, 0, 6), "not aligned"),
        (Words(W, 2, 8), "not aligned"),
        (Words(W, T // 16 * 4, 8), "several tiles"),
        (Words(W, 128, 8), "192 elements"),
    ],
)
def test_words_lie_as_the_instruction_wants(a: Words, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        multiplied(a, COLUMNS, MEET)


@pytest.mark.parametrize("offset", [-1, 64])
def test_outside_a_buffer_is_refused(offset: int) -> None:
    with pytest.raises(CompileError, match="64 elements"):
        run(split(1, Store(Y, 0, Load(X, I + offset))), 1, 1)


def test_what_a_guard_keeps_inside_is_not() -> None:
    y = run(split(80, When(((I, 64),), (Store(Y, I, Load(X, I)),))), 80, 1)
    np.testing.assert_array_equal(y, np.arange(64.0))


def test_a_test_reads_only_within_its_bounds() -> None:
    few = Apply("lt", (Load(X, I), Literal(10.0, float64)), bool_)  # X has 64 elements
    y = run(split(80, When(((I, 64),), (Store(Y, I, Load(X, I)),), few)), 80, 1)
    np.testing.assert_array_equal(y[:10], np.arange(10.0))
    assert not (y[10:] == np.arange(10.0, 64.0)).any()
    with pytest.raises(CompileError, match="64 elements"):
        run(split(80, When((), (Store(Y, I, Load(X, I)),), few)), 80, 1)


def test_a_barrier_that_not_all_lanes_come_to_is_refused() -> None:
    some = When(((T, 8),), (Barrier(lanes=True),))
    with pytest.raises(CompileError, match="not all lanes"):
        run(split(1, Loop("t", 16, (some,), "vector")), 1, 16)


def test_memory_of_a_part_is_in_shared_memory_where_it_fits() -> None:
    small, large = (
        Buffer(name, float64, size, private=True) for name, size in (("s", 16), ("l", 10_000))
    )
    body = split(3, Store(small, 0, Load(X, I)), Store(large, 0, Load(X, I)))
    (launch,), buffers = launches_of(Program("test", (X, Y, small, large), (), body), 256)
    assert launch.shared == (small,) and launch.own == (large,)
    assert [b.name for b in buffers] == ["x", "y", "l"]
    assert buffers[-1].size == 3 * 10_000 and not buffers[-1].private


def independent(*loops: Loop, body: Stmt) -> list[str]:
    """The loops that threads share."""
    nest: tuple[Stmt, ...] = (body,)
    for loop in reversed(loops):
        nest = (Loop(loop.var, loop.extent, nest),)
    (found,) = shared_among_threads(nest)
    names = []
    while isinstance(found, Loop):
        names += [found.var] if found.split else []
        found = found.body[0]
    return names


def store(offset: object, value: object = None) -> Store:
    return Store(Y, offset, value or Literal(0.0, float64))  # type: ignore[arg-type]


LOOPS = Loop("i", 4, ()), Loop("j", N, ())


def test_an_element_an_iteration_is_independent() -> None:
    assert independent(*LOOPS, body=store(I * N + J)) == ["i", "j"]
    assert independent(*LOOPS, body=store(I + 4 * J)) == ["i", "j"]


def test_iterations_that_meet_are_not() -> None:
    assert independent(*LOOPS, body=store(I + J)) == []
    assert independent(*LOOPS, body=store(2 * J)) == ["j"]
    assert independent(*LOOPS, body=store(I // 2 + 4 * J)) == []


def test_what_the_iteration_before_wrote_keeps_its_loop_in_order() -> None:
    before = Load(Y, I * N + J)
    assert independent(*LOOPS, body=store(I * N + J + 1, before)) == []
    assert independent(*LOOPS, body=store((I + 1) * N + J, before)) == ["j"]


def test_reading_backwards_is_as_reading_forwards() -> None:
    assert independent(*LOOPS, body=store((3 - I) * N + J)) == ["i", "j"]


def test_a_place_known_at_run_time_leaves_what_stands_below_it() -> None:
    at = Load(Buffer("at", int64, 4), I)
    put = Store(Y, J, Literal(1.0, float64), at, N)
    assert independent(*LOOPS, body=put) == ["j"]


def test_what_is_added_to_places_is_collected_by_them() -> None:
    at, (i, j) = Load(Buffer("at", int64, 4), I), (Loop("i", 4, ()), Loop("j", 8, ()))
    more = Apply("add", (Load(Y, J, at, 8), Literal(1.0, float64)), float64)
    assert independent(i, j, body=Store(Y, J, more, at, 8)) == ["place'", "j"]
    many, at = Buffer("many", float64, 8 * 1000), Load(Buffer("at", int64, 4), I)
    more = Apply("add", (Load(many, J, at, 8), Literal(1.0, float64)), float64)
    assert independent(i, j, body=Store(many, J, more, at, 8)) == ["run'", "j"]
    # two rows of four places: which row is no part of the place
    at = Load(Buffer("at", int64, 4), J)
    more = Apply("add", (Load(Y, 32 * I, at, 8), Literal(1.0, float64)), float64)
    assert independent(Loop("i", 2, ()), j, body=Store(Y, 32 * I, more, at, 8)) == []
