"""What tempts code to read or write outside a buffer, or to give a wrong number in silence."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver.lower import PASSES
from chainrule.ir.graph import Graph
from chainrule.ir.loop import Buffer, Load
from chainrule.ir.node import Op, Types
from chainrule.ir.passes import run_passes
from chainrule.ir.size import Size, coefficient, symbols_of
from chainrule.loops.build import build_kernels
from chainrule.ops.layout import ravel
from chainrule.ops.registry import ops
from chainrule.schedule.fuse import fuse
from chainrule.schedule.kernel import Form, positions_of

Array = np.ndarray[Any, Any]
BACKENDS = ("cpu", "reference")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_slice_demands_what_the_slice_did(backend: str) -> None:
    """The slice itself is gone from the gradient; its adjoint would write beyond a shorter x."""
    x, y, z = cr.input("x", ("n",)), cr.input("y", (2,)), cr.input("z", ("n",))
    slope = cr.grad(cr.sum(x[2:4] * y) + cr.sum(x * z), x)
    fn = cr.compile(slope, backend=backend)
    given = {"y": np.ones(2, "f4"), "z": np.zeros(5, "f4")}
    assert list(fn(**given)) == [0, 0, 1, 1, 0]
    for n in (0, 1, 3):
        with pytest.raises(cr.errors.FeedError):
            fn(**given | {"z": np.ones(n, "f4")})


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_size_falls_below_zero(backend: str) -> None:
    """Of n - 3 elements each would be written in a masked vector of (n - 3) % 16 lanes."""
    n = Size.symbol("n")
    x = cr.input("x", ("n",))
    zeros = cr.zeros((n - 3,))
    for total in (cr.sum(cr.exp(zeros)), cr.sum(cr.cumulative_sum(cr.exp(zeros)))):
        fn = cr.compile(total + cr.sum(x), backend=backend)
        assert fn(x=np.zeros(4, "f4")) == 1
        with pytest.raises(cr.errors.FeedError):
            fn(x=np.zeros(2, "f4"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_computed_positions_are_tested_before_they_are_read_at(backend: str) -> None:
    x, y = cr.input("x", (5,)), cr.input("y", ("n",))
    fn = cr.compile(x[cr.astype(y * 2.0, "int32")], backend=backend)
    assert list(fn(x=np.arange(5, dtype="f4"), y=np.array([1.5, 0, 2], "f4"))) == [3, 0, 4]
    for bad in (1e9, -1e9, 2.5, -3.0):
        with pytest.raises(cr.errors.FeedError):
            fn(x=np.arange(5, dtype="f4"), y=np.full(3, bad, "f4"))


def test_every_read_at_positions_comes_after_their_test() -> None:
    """Whatever else has the positions' shape, and whichever kernels it could join."""
    x, y, i = cr.input("x", (5,)), cr.input("y", ("n",)), cr.input("i", ("n",), dtype="int32")
    made = cr.astype(cr.abs(y), "int32")
    outputs = [cr.exp(y), cr.exp(y) * x[i], x[made] + x[i] + cr.sum(y), x[made + i], cr.tanh(y)]
    graph, _ = run_passes(Graph(tuple(t.node for t in outputs)), PASSES)
    tested = set()
    for kernel in fuse(graph):
        if kernel.test is not None:
            tested.add((kernel.test.node, kernel.test.bound))
        else:
            assert all(pair in tested for node in kernel.nodes for pair in positions_of(node))
    assert len(tested) == 3


NARROWING = [
    ("int32", "int16"), ("int32", "int8"), ("int64", "int32"), ("int64", "int8"),
    ("int16", "uint8"), ("float64", "float32"), ("float32", "int8"), ("int32", "bool"),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 17, 33, 18, 31, 113])
@pytest.mark.parametrize(("wide", "narrow"), NARROWING)
def test_a_narrowed_tail_ends_where_its_buffer_ends(wide: str, narrow: str, size: int) -> None:
    """LLVM stores one lane of a narrowed vector as wide as it was."""
    x = cr.input("x", (size,), dtype=wide)
    fn = cr.compile(cr.astype(x, narrow))
    program: Any = fn._program  # type: ignore[attr-defined]
    given = np.ones(size, wide)
    itemsize = np.dtype(narrow).itemsize
    out = np.full(size * itemsize + 64, 0xA5, np.uint8)
    table = (ctypes.c_void_p * 2)(given.ctypes.data, out.ctypes.data)
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
    sizes = (ctypes.c_int64 * 1)()
    assert (
        step(program.compiled.step_address)(ctypes.addressof(table), ctypes.addressof(sizes)) == 0
    )
    assert (out[: size * itemsize].view(narrow) == 1).all()
    assert (out[size * itemsize :] == 0xA5).all()


VIEWS = [
    pytest.param(op, types, id=f"{entry.name}{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
    if op.role == "view" and not op.indexed and types
]


@pytest.mark.parametrize(("op", "types"), VIEWS)
def test_an_index_map_that_is_not_affine_says_so(op: Op, types: Types) -> None:
    """Reading at run-time positions steps through a view by one stride along each axis."""
    out = op.infer(*types)
    index = tuple(Size.symbol(f"i{axis}") for axis in range(out.rank))

    def reader(number: int) -> Any:
        buffer = Buffer(f"b{number}", types[number].dtype, 1)
        return lambda at: Load(buffer, ravel(at, types[number].shape))

    value = op.body(index, out, *map(reader, range(len(types))))
    assert isinstance(value, Load)
    for axis in range(out.rank):
        slope = coefficient(value.offset, f"i{axis}")
        assert slope is not None, f"{value.offset} is not affine"
        assert not symbols_of(slope[0])


def test_positions_in_a_view_that_no_stride_leads_through() -> None:
    x, i = cr.input("x", (3,)), cr.input("i", ("n",), dtype="int32")
    fn = cr.compile(cr.take(cr.roll(x, -1), i, axis=0))
    assert list(fn(x=np.arange(3, dtype="f4"), i=np.arange(3, dtype="i4"))) == [1, 2, 0]


def test_the_order_of_a_fold_does_not_depend_on_its_neighbours() -> None:
    """The same fold, straight through memory, of a view, and beside something broadcast."""
    rng = np.random.default_rng(5)
    for shape, axes in (((37, 19), (0, 1)), ((4, 5, 7), (1, 2)), ((16, 33), (0, 1))):
        x = cr.input("x", ("n", *shape[1:]))
        y = cr.input("y", (*shape[:0:-1], "n"))
        c = cr.input("c", (shape[-1],))
        alone = cr.compile(cr.sum(cr.exp(x), axis=axes))
        beside = cr.compile([cr.sum(cr.exp(x), axis=axes), cr.exp(x) * c])
        across = cr.compile(cr.sum(cr.exp(cr.permute_dims(y, range(len(shape))[::-1])), axis=axes))
        scaled = cr.compile(cr.sum(cr.exp(x) * c, axis=axes))
        a, ones = rng.standard_normal(shape).astype("f4") * 5, np.ones(shape[-1], "f4")
        want = alone(x=a)
        np.testing.assert_array_equal(beside(x=a, c=ones)[0], want)
        np.testing.assert_array_equal(across(y=a.transpose()), want)
        np.testing.assert_array_equal(scaled(x=a, c=ones), want)


def test_folds_of_crooked_rows_use_one_form() -> None:
    """What the test above compares are kernels that fold along rows, one of them in two walks."""
    x, c = cr.input("x", ("n", 3)), cr.input("c", (3,))
    graph, _ = run_passes(Graph((cr.sum(x * c).node,)), PASSES)
    kernels = fuse(graph)
    assert [k.form for k in kernels] == [Form.ROWS]
    (built,) = build_kernels(kernels, host_target())
    assert len(built.scratch) == 1


def test_an_input_may_be_called_self() -> None:
    fn = cr.compile(cr.input("self", ()) * 2.0)
    assert fn(**{"self": 3.0}) == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_softmax_of_nothing_is_refused_alike(backend: str) -> None:
    fn = cr.compile(cr.softmax(cr.input("x", (3, "n"))), backend=backend)
    with pytest.raises(cr.errors.FeedError):
        fn(x=np.ones((3, 0), "f4"))


@pytest.mark.parametrize("axes", [(0, 2), (0, 1, 3), (1, 3)])
def test_every_fold_over_axes_that_lie_apart(axes: tuple[int, ...]) -> None:
    x = cr.input("x", (2, 3, 2, 3), dtype="float64")
    a = np.random.default_rng(1).uniform(0.5, 2, (2, 3, 2, 3))
    for fold, numpy in ((cr.sum, np.sum), (cr.max, np.max), (cr.min, np.min), (cr.prod, np.prod)):
        got = cr.compile(fold(x, axis=axes))(x=a)
        np.testing.assert_allclose(got, numpy(a, axis=axes), rtol=1e-14)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([300, -1], "uint8"),
        ([np.nan], "int32"),
        ([np.inf], "int8"),
        ([2.0**63], "int64"),
        (np.array([2**64 - 1], "u8"), "int64"),
        (np.array([-1]), "uint64"),
    ],
)
def test_a_constant_that_its_type_can_not_hold(value: Any, dtype: str) -> None:
    for make in (cr.constant, lambda v, dtype: cr.state("s", (len(v),), init=v, dtype=dtype)):
        with pytest.raises(cr.errors.DTypeError, match="holds"):
            make(np.asarray(value), dtype=dtype)


def test_constants_at_the_ends_of_their_types() -> None:
    for dtype in ("int8", "uint8", "int64", "uint64"):
        info = np.iinfo(dtype)
        ends = np.array([info.min, info.max], dtype)
        cr.constant(float(info.min), dtype=dtype)
        got = cr.compile(cr.constant(ends, dtype=dtype))()
        np.testing.assert_array_equal(got, ends)


def test_a_number_too_large_for_any_float() -> None:
    with pytest.raises(cr.errors.DTypeError, match="can't hold"):
        cr.input("x", ()) + 10**400
