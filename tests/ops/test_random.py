"""Random ops: the published vectors in the form of native code, and draws as nodes."""

from __future__ import annotations

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.ir.evaluate import evaluate
from chainrule.ir.formula import parse_recipe
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node, apply
from chainrule.ir.recipe import evaluate as run_recipe
from chainrule.ir.size import Size
from chainrule.ir.types import TensorType, bool_, float32, float64, int8, int32, uint64
from chainrule.loops.text import show
from chainrule.ops import build, philox
from chainrule.ops.random import (
    SEED_TYPE,
    STEP_TYPE,
    Bernoulli,
    Integers,
    Normal,
    Uniform,
    bind_draws,
    draw,
    seed_node,
    step_node,
)
from chainrule.ops.source import leaf
from chainrule_runtime.errors import RuntimeFault

# Random123 1.14, kat_vectors, philox4x32 10: counter, key, result
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip
KINDS = [
    pytest.param(lambda shape: Uniform(shape, float32), id="uniform32"),
    pytest.param(lambda shape: Uniform(shape, float64), id="uniform64"),
    pytest.param(lambda shape: Normal(shape, float32), id="normal32"),
    pytest.param(lambda shape: Normal(shape, float64), id="normal64"),
    pytest.param(lambda shape: Bernoulli(shape, bool_, 0.3), id="bernoulli"),
    pytest.param(lambda shape: Integers(shape, int32, 1000), id="integers"),
]
FIRST = np.array([0, 1], np.uint32)
LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]


def wide(i: int, *args: object) -> np.ndarray:
    """Word i of `wide_word`, whose operands are uint64."""
    names = ("e0", "e1", "step", "draw", "k0", "k1")
    given = {n: np.asarray(a, np.uint64) for n, a in zip(names, args, strict=True)}
    with np.errstate(over="ignore"):
        return run_recipe(parse_recipe(philox.wide_word(i)), uint64, given) & np.uint64(2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "want"), VECTORS)
def test_published_vectors_in_the_form_of_native_code(
    counter: tuple[int, ...], key: tuple[int, int], want: tuple[int, ...]
) -> None:
    assert [int(wide(i, *counter, *key)) for i in range(4)] == list(want)


def test_what_is_in_the_high_halves_does_not_matter() -> None:
    """Native code gives the whole index and the whole seed in the places of their low words."""
    rng = np.random.default_rng(1)
    element = rng.integers(0, 2**63, 200, dtype=np.uint64)
    seed = 0xFEDC_BA98_7654_3210
    high = np.uint64(32)
    want = philox.words(seed, 9, 5, element)
    for i in range(4):
        got = wide(i, element, element >> high, 9, 5, seed, np.uint64(seed) >> high)
        np.testing.assert_array_equal(got, want[:, i])


def compiled(node: Node, backend: str, seed: int) -> np.ndarray:
    return np.asarray(cr.compile(cr.Tensor(node), backend=backend, seed=seed)())


@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 5), (2, 0, 4), (7, 3, 49)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_native_numbers_are_the_documented_ones(kind, shape) -> None:
    op = kind(shape)
    node, seed = draw(op), 2**63 + 12345
    want = op.ref(np.uint64(seed), np.int32(0), FIRST)
    assert want.shape == shape
    for backend in ("cpu", "reference"):
        got = compiled(node, backend, seed)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_target_draws_the_same_bits(kind, level, at_level) -> None:
    at_level(level)
    op = kind((5, 13))
    got = compiled(draw(op), "cpu", 42)
    want = op.ref(np.uint64(42), np.int32(0), FIRST)
    if isinstance(op, Normal) and level == "x86-64-v2":  # which has no fused multiply-add
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    else:
        np.testing.assert_array_equal(got, want)


def test_a_symbolic_shape_counts_elements_row_by_row() -> None:
    x = cr.input("x", ("batch", 3))
    u = cr.random.uniform(("batch", 3))
    fn = cr.compile(x + u, seed=8)
    small, large = fn(x=np.zeros((2, 3), "f4")), fn(x=np.zeros((50, 3), "f4"))
    np.testing.assert_array_equal(large, philox.uniform(8, 0, 0, (50, 3)))
    np.testing.assert_array_equal(small, large[:2])


def test_draws_are_never_merged() -> None:
    op = Uniform((3,), float32)
    assert draw(op) is not draw(op)


def graph_of(count: int) -> Graph:
    draws = [draw(Uniform((4,), float32)) for _ in range(count)]
    return Graph((build.call("sub", draws[1], draws[0]), *draws[2:]))


def test_binding_numbers_draws_in_the_graphs_order() -> None:
    """Whatever else was drawn in the process before: equal graphs become one graph."""
    one = bind_draws(graph_of(4), seed_node(3), step_node(0))
    for _ in range(5):
        draw(Normal((2,), float32))
    other = bind_draws(graph_of(4), seed_node(3), step_node(0))
    assert one.outputs == other.outputs
    values = evaluate(one.outputs, {})
    first, second = (philox.uniform(3, 0, number, (4,)) for number in (0, 1))
    np.testing.assert_array_equal(values[0], first - second)
    np.testing.assert_array_equal(values[1], philox.uniform(3, 0, 2, (4,)))
    np.testing.assert_array_equal(values[2], philox.uniform(3, 0, 3, (4,)))


def test_a_graph_without_draws_is_left_alone() -> None:
    graph = Graph((leaf("input", "x", TensorType(float32, (3,))),))
    assert bind_draws(graph, seed_node(0), step_node(0)) is graph


def test_seed_and_step_may_be_values() -> None:
    seed, step = leaf("state", "seed", SEED_TYPE), leaf("state", "step", STEP_TYPE)
    graph = bind_draws(Graph((draw(Normal((2, 3), float64)),)), seed, step)
    feeds = {seed: np.uint64(2**64 - 1), step: np.int32(77)}
    (value,) = evaluate(graph.outputs, feeds)
    np.testing.assert_array_equal(value, philox.normal(2**64 - 1, 77, 0, (2, 3), "float64"))


def test_other_operands_are_refused() -> None:
    seed, step, number = draw(Uniform((), float32)).inputs
    with pytest.raises(DTypeError):
        apply(Uniform((), float32), step, seed, number)
    with pytest.raises(ShapeError):
        apply(Uniform((), float32), seed, step, seed)
    with pytest.raises(ShapeError):
        apply(Uniform((), float32), leaf("input", "s", TensorType(uint64, (1,))), step, number)
    with pytest.raises(FeedError):
        seed_node(2**64)


def test_a_draw_that_is_not_bound_is_not_compiled() -> None:
    from chainrule.driver.build import build as build_program

    with pytest.raises((CompileError, RuntimeFault), match="nothing gives <seed"):
        build_program(Graph((draw(Uniform((3,), float32)),)), feeds=[], outputs=["u"])


def test_integers_cover_their_range_and_wrap_into_narrow_types() -> None:
    op = Integers((4000,), int8, 256)  # 200 is -56 in int8, and -56 - 128 is 72 again
    drawn = op.ref(np.uint64(1), np.int32(0), FIRST)
    assert len(np.unique(drawn)) == 256
    bytes_ = cr.random.randint(-128, 128, (4000,), dtype="int8")
    for backend in ("cpu", "reference"):
        got = cr.compile(bytes_, seed=1, backend=backend)()
        np.testing.assert_array_equal(got, (drawn.astype(int) % 256 - 128).astype(np.int8))


def test_draws_that_differ_in_nothing_but_their_number_share_code() -> None:
    draws = [cr.random.bernoulli(0.5, ("batch", 6)) for _ in range(5)]
    x = cr.input("x", ("batch", 6))
    fn = cr.compile([cr.where(d, x, 0.0) for d in draws], seed=3)
    found = fn(x=np.ones((4, 6), "f4"))
    for number, got in enumerate(found):
        np.testing.assert_array_equal(got, philox.uniform(3, 0, number, (4, 6)) < 0.5)
    built = fn._program.compiled.levels.built  # type: ignore[attr-defined]
    assert len({b.program.name for b in built if "philox" in show(b.program)}) == 1


def test_sizes_resolve() -> None:
    op = Uniform((Size.symbol("n"), 2), float32)
    assert op.resolve({"n": 5}) == Uniform((5, 2), float32)
