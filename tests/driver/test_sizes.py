"""What symbolic sizes are called never shows in what is computed; what they must be is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver.lower import PASSES
from chainrule.errors import CompileError, FeedError
from chainrule.ir.graph import Graph
from chainrule.ir.loop import Let, Loop
from chainrule.ir.node import apply
from chainrule.ir.passes import run_passes
from chainrule.loops.build import build_kernels
from chainrule.loops.walk import statements
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf
from chainrule.schedule.fuse import fuse
from chainrule.target import Target, target
from chainrule.target.gpu import gpu

# what loops, registers, buffers, parameters in C and functions of ours are called, and Unicode
OFTEN = "b l v w i0 r0 o0 c01 ga gk f d i j step head p0 b0 s0 v0 size0 model int größe"
MANY = """
    c e g h k m n o p q r s t u x y z i1 i2 r1 c0 c00 f0 j0 k0 p1 q0 w0 gb gc gi gj ta ti tj b1 s1
    v1 L0 L1 t0 where0 number0 element count batch entry table sizes part parts team low high out
    place one once group block row term panel threads state workspace seed for while return lambda
    None NULL size_t main _ __ _i λ
"""


def forms(x: Any, square: Any, ids: Any) -> list[Any]:
    """A bit of every form of loops, over a size."""
    w = cr.constant(np.linspace(-1, 1, 40, dtype=np.float64).reshape(8, 5))
    wide = cr.reshape(x, (-1, 2, 4))
    return [
        cr.sum(x, axis=0),
        cr.softmax(x, axis=1),
        cr.softmax(x, axis=0),
        cr.min(wide, axis=0),
        cr.tanh(x @ w),
        x.T @ x,
        cr.einsum("gij,gkj->gik", wide, wide),
        cr.einsum("kg,kmg->mg", x[:, :4], wide),
        cr.sort(x, axis=0),
        cr.argsort(x.T, axis=1),
        cr.cumulative_sum(x, axis=0),
        cr.cumulative_sum(x, axis=1),
        cr.take(x, ids, axis=0),
        cr.avg_pool(cr.reshape(x, (1, 2, -1, 4)), 2, stride=2, padding=1),
        cr.concat([x, 2.0 * x], axis=0),
        cr.sum(cr.square(square), axis=1),
        square + cr.arange(square.shape[0], dtype="float64"),
    ]


def wanted(x: Any, square: Any, ids: Any) -> list[Any]:
    """The same in NumPy."""
    w = np.linspace(-1, 1, 40).reshape(8, 5)
    wide = x.reshape(-1, 2, 4)
    e = np.exp(x)
    return [
        x.sum(0),
        e / e.sum(1, keepdims=True),
        e / e.sum(0),
        wide.min(0),
        np.tanh(x @ w),
        x.T @ x,
        np.einsum("gij,gkj->gik", wide, wide),
        np.einsum("kg,kmg->mg", x[:, :4], wide),
        np.sort(x, axis=0),
        np.argsort(x.T, axis=1, kind="stable"),
        x.cumsum(0),
        x.cumsum(1),
        x[ids],
        pooled(x.reshape(2, -1, 4)),
        np.concatenate([x, 2 * x]),
        (square**2).sum(1),
        square + np.arange(len(square)),
    ]


def pooled(images: Any) -> Any:
    """Means of windows of 2 by 2, side by side, of images within a border of 0."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))[:, : (images.shape[1] + 2) // 2 * 2]
    return padded.reshape(2, -1, 2, 3, 2).mean((2, 4))[None]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("names", [OFTEN, pytest.param(MANY, marks=pytest.mark.long)], ids=len)
def test_a_size_may_be_called_anything(names: str, backend: str) -> None:
    rng, outputs, feeds, truth = np.random.default_rng(0), {}, {}, {}
    for i, name in enumerate(names.split()):
        shapes = {"x": (name, 8), "square": (name, name), "ids": (name,)}
        of = {"x": "float64", "square": "float64", "ids": "int32"}
        leaves = {k: cr.input(f"{k} {i}", s, dtype=of[k]) for k, s in shapes.items()}
        n = 2 + i % 37
        given = {
            "x": rng.standard_normal((n, 8)),
            "square": rng.standard_normal((n, n)),
            "ids": rng.integers(0, n, n).astype(np.int32),
        }
        feeds |= {f"{k} {i}": v for k, v in given.items()}
        outputs[name], truth[name] = forms(**leaves), wanted(**given)
    got = cr.compile(outputs, backend=backend)(**feeds)
    for name in truth:
        for ours, want in zip(got[name], truth[name], strict=True):
            # sums of 40 float64 of about 1 in another order
            np.testing.assert_allclose(ours, want, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("of", [target("x86-64-v3"), gpu((9, 0))], ids=lambda t: t.level)
def test_no_loop_has_a_name_that_a_size_can_have(of: Target) -> None:
    seen = 0
    for entry in ops():
        for op, types in entry.samples:
            node = apply(op, *(leaf("input", f"x{i}", t) for i, t in enumerate(types)))
            graph, _ = run_passes(Graph((node,)), PASSES)
            try:
                built = build_kernels(fuse(graph), of)
            except CompileError:  # a GPU has not everything
                continue
            body = (s for b in built for s in statements(b.program.body))
            names = [s.var for s in body if isinstance(s, (Loop, Let))]
            assert not [n for n in names if n.isidentifier()], entry.name
            seen += len(names)
    assert seen


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("pool", [cr.max_pool, cr.avg_pool])
def test_a_window_must_fit_when_called(pool: Any, window: int, backend: str) -> None:
    """As where the size is known before: max pooling is opened by passes, its demand is kept."""
    z = pool(cr.input("x", ("rows", 1, "n")), window, 1)
    fn = cr.compile(z, backend=backend)
    assert fn(x=np.ones((2, 1, window), np.float32)).shape == (2, 1, 1)
    with pytest.raises(FeedError, match=f"the size n - {window - 1} is 0"):
        fn(x=np.ones((2, 1, window - 1), np.float32))
