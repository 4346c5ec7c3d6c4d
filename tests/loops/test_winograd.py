"""Convolutions by minimal filtering, held to NumPy. Of small whole numbers every sum of theirs,
with its halves and quarters, is exact in float32, so results are those of plain sums to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver import build, leaves_of
from chainrule.driver.lower import passes_for
from chainrule.export.targets import ARCHITECTURES
from chainrule.ir.graph import Graph
from chainrule.ir.loop import Note
from chainrule.ir.passes import run_passes
from chainrule.ir.size import evaluate, known
from chainrule.loops.arithmetic import arithmetic_of
from chainrule.loops.build import build_kernels
from chainrule.loops.filtering import FILTERS
from chainrule.loops.interpret import interpret
from chainrule.loops.walk import statements
from chainrule.schedule.fuse import fuse
from chainrule.target import target

Array = np.ndarray[Any, Any]

SEED = 17
#: batch, channels, kernels, extents, padding, window: of even and odd extents, of whole vectors of
#: channels and others, of fewer images than groups and of more, of one row and of several blocks of
#: tiles; three taps an axis first
THREES = [
    (2, 16, 16, (8, 8), 1),
    (1, 16, 32, (9, 11), 1),
    (1, 17, 63, (9, 8), 1),  # 17 don't fill vectors: plain sums
    (3, 24, 16, (16, 16), 0),
    (11, 16, 29, (7, 13), 2),
    (9, 30, 16, (12, 7), 1),
    (2, 64, 48, (32, 32), 1),
    (1, 16, 16, (3, 80), 1),
    (5, 16, 32, (137,), 1),
    (2, 32, 16, (130,), 0),
]
CASES = [(*case[:4], case[4:] * len(case[3]), (3,) * len(case[3])) for case in THREES] + [
    (2, 16, 17, (9, 10), (0, 0), (2, 2)),  # 17 don't fill vectors
    (2, 16, 16, (9, 10), (0, 0), (2, 2)),
    (2, 32, 16, (12, 9), (2, 1), (4, 4)),
    (9, 16, 32, (8, 9), (2, 2), (5, 5)),
    (2, 16, 16, (13, 8), (3, 3), (6, 6)),
    (3, 16, 29, (11, 9), (3, 2), (7, 7)),
    (2, 16, 16, (11, 24), (1, 0), (3, 1)),
    (2, 16, 16, (11, 12), (2, 0), (5, 2)),
    (2, 16, 32, (13, 20), (0, 3), (1, 7)),
    (2, 16, 16, (131,), (2,), (5,)),
    (3, 32, 16, (129,), (3,), (7,)),
]
LEVELS = ["x86-64-v4", "x86-64-v3", "generic"]
FILTERED = "by minimal filtering"


def three(case: Any, batch: int | str) -> list[cr.Tensor]:
    """A convolution and both of its derivatives, each with something that follows it."""
    _, channels, kernels, extents, padding, window = case
    x = cr.input("x", (batch, channels, *extents))
    k = cr.input("k", (kernels, channels, *window))
    b = cr.input("b", (kernels, *(1 for _ in extents)))
    z = cr.conv(x, k, padding=padding)
    d = cr.input("d", z.shape)
    dx, dk = cr.vjp([z], [x, k], [d])
    return [cr.relu(z + b), dx + x, dk - k]


def numbers(case: Any, draw: Callable[[tuple[int, ...]], Array]) -> dict[str, Array]:
    n, channels, kernels, extents, padding, window = case
    places = (e + 2 * p - w + 1 for e, p, w in zip(extents, padding, window, strict=True))
    shapes = {
        "x": (n, channels, *extents),
        "k": (kernels, channels, *window),
        "b": (kernels, *(1 for _ in extents)),
        "d": (n, kernels, *places),
    }
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def windows(x: Array, padding: tuple[int, ...], window: tuple[int, ...]) -> Array:
    around = ((0, 0), (0, 0), *((p, p) for p in padding))
    return sliding_window_view(np.pad(x, around), window, axis=tuple(range(2, x.ndim)))


def wanted(case: Any, feeds: dict[str, Array]) -> list[Array]:
    """The same in NumPy, in float64."""
    *_, extents, padding, window = case
    axes = len(extents)
    x, k, b, d = (feeds[name].astype(np.float64) for name in "xkbd")
    i, p = "ij"[:axes], "pq"[:axes]
    seen = windows(x, padding, window)
    z = np.einsum(f"nc{p}{i},oc{i}->no{p}", seen, k)
    turned = np.flip(k, axis=tuple(range(2, 2 + axes)))
    all_around = tuple(w - 1 for w in window)
    dx = np.einsum(f"no{p}{i},oc{i}->nc{p}", windows(d, all_around, window), turned)
    inner = tuple(slice(p, p + e) for e, p in zip(extents, padding, strict=True))
    dk = np.einsum(f"nc{p}{i},no{p}->oc{i}", seen, d)
    return [np.maximum(z + b, 0), dx[(slice(None), slice(None), *inner)] + x, dk - k]


def operations(z: cr.Tensor, batch: int) -> int:
    """The floating-point operations of a kernel that computes this for batches of any size."""
    graph = Graph((z.node,))
    made = build(graph, feeds=leaves_of([z.node]), outputs=["z"], threads=1, target=host_target())
    counts = [arithmetic_of(k.program, {"batch": batch}) for k in made.levels.built]
    return sum(known(tuple(n for n in counts if n is not None)))


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 6, 7])
def test_the_matrices_are_a_filter(taps: int) -> None:
    """Taps over two neighbours, for all of them: the form is linear in each."""
    f = FILTERS[taps]
    for tap, element in np.ndindex(taps, taps + 1):
        k, x = np.eye(taps)[tap], np.eye(taps + 1)[element]
        z = np.array(f.a) @ ((np.array(f.g) @ k) * (np.array(f.b) @ x))
        np.testing.assert_array_equal(z, [x[:taps] @ k, x[1:] @ k])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_whole_numbers_come_out_exactly(
    case: Any, threads: int, level: str, at_level: Callable[[str], None]
) -> None:
    at_level(level)
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, lambda shape: rng.integers(-3, 4, shape))
    results = cr.compile(three(case, "batch"), threads=threads)(**feeds)
    for got, want in zip(results, wanted(case, feeds), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("batch", [1, 3, 8, 21])
def test_a_batch_of_known_size(batch: int) -> None:
    """One image is shared by threads, of several each has its own."""
    case = (batch, 16, 16, (10, 9), (1, 1), (3, 3))
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, lambda shape: rng.integers(-3, 4, shape))
    results = cr.compile(three(case, batch), threads=2)(**feeds)
    for got, want in zip(results, wanted(case, feeds), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_group_for_each_of_a_few_images() -> None:
    """Sums of a kernel's gradient for groups without an image took longer than the product of one:
    there are none, and a batch's bits are those of a kernel for batches of that size.
    """
    case = (0, 16, 32, (8, 9), (1, 1), (3, 3))
    rng = np.random.default_rng(SEED)
    gradient = cr.compile(three(case, "batch")[2], threads=2)
    done = {n: operations(three(case, "batch")[2], n) for n in (1, 2, 7, 8, 9)}
    sums = 16 * 16 * 32  # numbers of a group, added to those of the first
    assert done[2] - done[1] == done[8] - done[7] == done[9] - done[8] + sums
    for batch in (1, 2, 7, 8, 9):
        feeds = numbers((batch, *case[1:]), rng.standard_normal)
        feeds = {name: feeds[name] for name in "xkd"}
        want = cr.compile(three(case, batch)[2], threads=1)(**feeds)
        np.testing.assert_array_equal(gradient(**feeds), want)


@pytest.mark.parametrize("batch", ["batch", 0])
def test_a_batch_of_nothing(batch: int | str) -> None:
    """Its sums are 0: a kernel's gradient is what follows it alone."""
    case = (0, 16, 16, (10, 9), (1, 1), (3, 3))
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, lambda shape: rng.integers(-3, 4, shape))
    z, dx, dk = cr.compile(three(case, batch), threads=2)(**feeds)
    assert z.shape == dx.shape == (0, 16, 10, 9)
    np.testing.assert_array_equal(dk, -feeds["k"])


@pytest.mark.parametrize("case", [c for c in CASES if 17 not in c], ids=str)
def test_rounding_is_that_of_sums(case: Any) -> None:
    """Against float64: a few roundings of the largest of the sums' terms, as of plain sums."""
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, rng.standard_normal)
    fn = cr.compile(three(case, "batch"), threads=1)
    assert str(fn.report()).count(FILTERED) == 3
    for got, want in zip(fn(**feeds), wanted(case, feeds), strict=True):
        # sums of n terms of size 1 are about sqrt(n) large, and rounded as often as they have terms
        # in float32: far below 16 units in the last place of the largest
        bound = 16 * np.finfo(np.float32).eps * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_level(
    case: Any, at_level: Callable[[str], None]
) -> None:
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, rng.standard_normal)
    want = cr.compile(three(case, "batch"), threads=1)(**feeds)

    def compare(threads: int) -> None:
        got = cr.compile(three(case, "batch"), threads=threads)(**feeds)
        for array, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(array, expected)

    compare(2)
    at_level("x86-64-v3")
    compare(1)


def test_what_is_not_finite_stays_where_it_is_read() -> None:
    case = (2, 16, 16, (12, 12), (1, 1), (3, 3))
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, lambda shape: rng.integers(1, 4, shape))
    feeds["x"][0, 3, 5, 6] = np.inf
    z = cr.compile(three(case, "batch")[0])(**{name: feeds[name] for name in "xkb"})
    touched = np.zeros(z.shape, bool)
    touched[0, :, 4:7, 5:8] = True
    np.testing.assert_array_equal(np.isfinite(z), ~touched)
    feeds["k"][5, 3, 0, 1] = np.inf
    z = cr.compile(three(case, "batch")[0])(**{name: feeds[name] for name in "xkb"})
    touched[:, 5] = True
    np.testing.assert_array_equal(np.isfinite(z), ~touched)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"window": 8},
        {"window": 1},
        {"dtype": "float64"},
        {"channels": 8},
        {"extent": 5},
        {"extent": 120, "axes": 1},  # at batch 1 they would take up to 1.5 times as long
        {"extent": 300, "axes": 1, "window": 2},  # 3 products for 4 gain nothing
    ],
    ids=str,
)
def test_other_convolutions_are_plain_sums(options: dict[str, Any]) -> None:
    channels, extent = options.pop("channels", 32), options.pop("extent", 12)
    window, dtype = options.pop("window", 3), options.pop("dtype", "float32")
    axes = options.pop("axes", 2)
    x = cr.input("x", ("batch", channels, *(extent for _ in range(axes))), dtype=dtype)
    shape = (32, channels // options.get("groups", 1), *(window for _ in range(axes)))
    z = cr.conv(x, cr.input("k", shape, dtype=dtype), padding=1, **options)
    assert FILTERED not in str(cr.compile(z).report())


@pytest.mark.parametrize(
    ("extents", "window", "channels"),
    [
        ((1, 256), (1, 3), 32),  # of every tile half is outside
        ((3, 256), (1, 3), 32),
        ((1, 256), (3, 3), 32),
        ((10, 10), (1, 3), 32),  # too few tiles for what kernels take
        ((14, 14), (7, 7), 256),  # of its kernels' gradient, more than stays near
    ],
)
def test_images_of_few_tiles_are_plain_sums(
    extents: tuple[int, ...], window: tuple[int, ...], channels: int
) -> None:
    """They took up to 1.5 times as long, and up to four times for one image."""
    x = cr.input("x", ("batch", channels, *extents))
    k = cr.input("k", (channels, channels, *window))
    z = cr.conv(x, k, padding=tuple(w // 2 for w in window))
    (dk,) = cr.vjp([z], [k], [cr.input("d", z.shape)])
    for tensor in (dk,) if channels == 256 else (z, dk):
        assert FILTERED not in str(cr.compile(tensor).report())


@pytest.mark.parametrize(
    ("precision", "level", "filtered"),
    [
        ("bfloat16", "x86-64-v3", False),
        ("bfloat16x3", "x86-64-v3", True),
        ("bfloat16x3", "x86-64-v4+amx", False),
    ],
)
def test_products_of_bfloat16_are_plain_sums(precision: str, level: str, filtered: bool) -> None:
    """But three of them for one of float32 are made only where blocks are multiplied: elsewhere
    that is a product of float32 as any other.
    """
    x = cr.input("x", ("batch", 32, 12, 12))
    z = cr.conv(x, cr.parameter("k", (32, 32, 3, 3)), padding=1)
    kernels = fuse(run_passes(Graph((z.node,)), passes_for(precision))[0])
    programs = [built.program for built in build_kernels(kernels, target(level))]
    notes = [s.text for p in programs for s in statements(p.body) if isinstance(s, Note)]
    assert any(FILTERED in note for note in notes) is filtered


@pytest.mark.sampled(2)
@pytest.mark.parametrize("level", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "case",
    [CASES[0], (9, 16, 16, (9, 10), (1, 1), (3, 3)), (2, 16, 16, (9, 8), (2, 2), (5, 5))],
    ids=str,
)
def test_loops_read_nothing_that_they_have_not_written(
    case: Any, backward: bool, level: str
) -> None:
    """One by one as written, over workspace of NaNs, with iterations that threads share from the
    last to the first: none reads what another one writes, or past the end.
    """
    rng = np.random.default_rng(SEED)
    feeds = numbers(case, lambda shape: rng.integers(-3, 4, shape))
    for tensor, want in zip(three(case, "batch"), wanted(case, feeds), strict=True):
        node = tensor.node
        (kernel,) = fuse(run_passes(Graph((node,)), passes_for(None))[0])
        (built,) = build_kernels([kernel], target(level))
        sizes = {"batch": case[0]}
        leaves = {leaf: feeds[str(leaf.op.label)] for leaf in leaves_of([node])}
        given = [
            leaves[m].reshape(-1) if m in leaves else np.full(want.size, np.nan, np.float32)
            for m in built.memory
        ]
        given += [np.full(evaluate(b.size, sizes), np.nan, np.float32) for b in built.scratch]
        names = [buffer.name for buffer in built.program.buffers]
        interpret(built.program, dict(zip(names, given, strict=True)), sizes, backward=backward)
        np.testing.assert_array_equal(given[len(built.memory) - 1].reshape(want.shape), want)


def test_a_microcontroller_has_no_room_for_tiles() -> None:
    x = cr.input("x", ("batch", 16, 12, 12))
    z = cr.conv(x, cr.parameter("k", (16, 16, 3, 3)), padding=1)
    kernels = fuse(run_passes(Graph((z.node,)), passes_for(None))[0])
    room = []
    for level in (ARCHITECTURES["thumbv7em"], target("generic")):
        (built,) = build_kernels(kernels, level)
        room.append(sum(known(tuple(b.size for b in built.scratch))))
    assert room[0] < room[1] / 2


def test_a_net_learns_as_the_reference_does() -> None:
    """Whole steps: bias, ReLU, pooling and Adam around the three products."""
    rng = np.random.default_rng(SEED)
    x, y = cr.input("x", ("batch", 3, 16, 16)), cr.input("y", ("batch",), dtype="int32")
    h = x
    for i, (inside, outside) in enumerate([(3, 16), (16, 16), (16, 32)]):
        weights = rng.standard_normal((outside, inside, 3, 3)) / np.sqrt(9 * inside)
        k = cr.parameter(f"k{i}", weights.shape, init=weights.astype(np.float32))
        h = cr.relu(cr.conv(h, k, padding=1) + cr.parameter(f"b{i}", (outside, 1, 1)))
    pooled = cr.reshape(cr.max_pool(h, 4), (-1, 32 * 16))
    head = rng.standard_normal((512, 10)).astype(np.float32) / 20
    loss = cr.losses.cross_entropy(pooled @ cr.parameter("w", (512, 10), init=head), y)
    feeds = {
        "x": rng.standard_normal((6, 3, 16, 16), dtype=np.float32),
        "y": rng.integers(0, 10, 6).astype(np.int32),
    }
    losses = []
    for backend in ("cpu", "reference"):
        step = cr.training_step(loss, cr.optim.Adam(1e-3), backend=backend)
        losses.append([float(step(**feeds)) for _ in range(5)])
    assert losses[0][-1] < 0.7 * losses[0][0]
    # five steps from the same numbers: roundings of float32, of which Adam's first steps make more
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)
