"""One quick look into every room: what a commit can afford."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.smoke
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 4)).astype("f4"), RNG.integers(0, 3, 7)
LOOKS: dict[str, Callable[[], Any]] = {}


def look(test: Callable[[], Any]) -> Callable[[], Any]:
    LOOKS[test.__name__] = test
    return test


def net() -> tuple[cr.Tensor, cr.Tensor]:
    """A small classifier's loss and its weight."""
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    w = cr.parameter("w", (4, 3))
    return cr.losses.cross_entropy((x @ w).named("z"), y), w


@look
def errors() -> None:
    with pytest.raises(cr.errors.ShapeError) as raised:
        cr.input("x", (2, 3)) @ cr.input("y", (4,))
    assert Path(__file__).name in str(raised.value)


@look
def config() -> None:
    from chainrule.config import KNOBS

    assert all(knob.doc and knob.variable.startswith("CHAINRULE_") for knob in KNOBS)


@look
def records() -> None:
    from chainrule.records import dataclass

    @dataclass(frozen=True)
    class Point:
        x: int

    assert Point(3) == Point(x=3) and hash(Point(3)) == hash(Point(3)) and "x=3" in repr(Point(3))


@look
def given() -> None:
    from chainrule.given import is_int, is_real

    assert is_int(np.int8(3)) and not is_int(True) and not is_int(3.0) and is_real(np.float32(0.5))


@look
def collector() -> None:
    import gc

    from chainrule.collector import waiting

    with waiting():
        assert not gc.isenabled()
    assert gc.isenabled()


@look
def target() -> None:
    from chainrule.target import LEVEL_FEATURES

    assert "avx512f" in LEVEL_FEATURES["x86-64-v4"]


@look
def ir() -> None:
    x, n = cr.input("x", ("n", 2)), cr.input("v", ("n",)).shape[0]
    assert (cr.exp(x) + 1).node is (cr.exp(x) + 1).node
    assert cr.reshape(x, (-1,)).shape == (2 * n,)


@look
def ops() -> None:
    from chainrule.ops.registry import ops

    for entry in ops():
        op, types = entry.samples[0]
        assert op.infer(*types).rank >= 0


@look
def autodiff() -> None:
    loss, w = net()
    x, y = cr.constant(X), cr.constant(Y.astype("i4"))
    assert cr.check_gradients(loss, [w], {"x": X, "y": Y, "w": np.ones((4, 3))}).deviation < 1
    assert cr.grad(cr.losses.cross_entropy(x @ w, y), w).shape == (4, 3)


@look
def rewrite() -> None:
    x = cr.input("x", (2,), dtype="float64")
    naive = cr.compile(cr.log(1 + cr.exp(x)))
    np.testing.assert_allclose(naive(x=[1e4, -1e4]), [1e4, 0])


@look
def schedule() -> None:
    loss, _ = net()
    step = cr.training_step(loss, cr.optim.SGD(0.1))
    assert any(k.form == "contract" and "w" in k.writes for k in step.report().kernels)


@look
def show() -> None:
    loss, w = net()
    assert "(softmax(z) - onehot(y)) / batch" in str(cr.grad(loss, w))
    assert cr.explain(loss, w).steps
    assert r"\top" in cr.grad(loss, w).latex()


@look
def loops() -> None:
    x = cr.input("x", ("n", 5))
    assert "vector for" in cr.compile(cr.tanh(x)).show("loops")


@look
def codegen() -> None:
    x = cr.input("x", ("n", 5))
    fn, slow = (cr.compile(cr.softmax(x @ x.T), backend=b) for b in ("cpu", "reference"))
    feed = RNG.standard_normal((19, 5)).astype("f4")
    np.testing.assert_allclose(fn(x=feed), slow(x=feed), rtol=1e-5, atol=1e-7)


@look
def driver() -> None:
    from chainrule.driver.lower import PASSES

    fn = cr.compile(cr.sum(cr.input("x", (3,))))
    assert [p.name for p in fn.report().passes] == [p.name for p in PASSES]


@look
def lang() -> None:
    x = cr.input("x", (2, 3), dtype="float64")
    outputs = {"sorted": cr.sort(x), "rows": x[::-1], "total": cr.einsum("ij->", x)}
    got = cr.compile(outputs)(x=[[3, 1, 2], [0, 5, 4]])
    assert got["sorted"].tolist() == [[1, 2, 3], [0, 4, 5]]
    assert got["rows"][0].tolist() == [0, 5, 4] and got["total"] == 15


@look
def nn() -> None:
    x = cr.input("x", (3,), dtype="float64")
    assert cr.compile(cr.losses.mse(x, 0.0 * x))(x=[1, 2, 3]) == pytest.approx(14 / 3)


@look
def datasets() -> None:
    assert len(cr.datasets.digits().y_test) == 359


@look
def train() -> None:
    step = cr.training_step(net()[0], cr.optim.Adam(0.1))
    losses = step.run(x=X, y=Y, batch_size=3, epochs=40)
    assert len(losses) == 120 and losses[-3:].mean() < losses[:3].mean()
    kept = step.state_dict()
    step(x=X, y=Y)
    step.load_state_dict(kept)
    assert step.steps == 120


@look
def export() -> None:
    from chainrule.export import is_identifier, targets_of

    (target,) = targets_of("wasm32", None, None, strict=False)
    assert target.format == "Wasm" and is_identifier("net") and not is_identifier("int")


@look
def cli() -> None:
    from chainrule.cli.doctor import TOLERANCE, self_test

    assert self_test() < TOLERANCE


@look
def runtime() -> None:
    fn = cr.compile(cr.sum(cr.input("x", ("n", 4)), axis=1))
    assert fn(x=X[:0]).shape == (0,) and fn(x=X[::2]).shape == (4,)
    with pytest.raises(cr.errors.FeedError):
        fn(x=X[:, :3])
    assert "chainrule_runtime" in sys.modules


@look
def interop() -> None:
    pytest.importorskip("sklearn")
    estimator = cr.ChainruleClassifier(hidden_layer_sizes=(), epochs=1, threads=1)
    assert estimator.fit(X, Y).predict(X).shape == (7,)


@pytest.mark.parametrize("room", LOOKS)
def test_room(room: str) -> None:
    LOOKS[room]()


def test_every_room_is_looked_into() -> None:
    package = ROOT / "compiler/chainrule"
    rooms = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "version"} | {"runtime"} == set(LOOKS)
