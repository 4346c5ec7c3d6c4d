"""Values computed again for a budget: the same bits in less memory, and an error that says how much
is needed where there is no way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.size import evaluate

Array = np.ndarray[Any, Any]
ROWS = 24


def deep(layers: int = 20, width: int = 32, act: Callable[[Any], Any] = cr.tanh) -> Any:
    h, t = cr.input("x", ("batch", width)), cr.input("t", ("batch", width))
    for i in range(layers):
        w = cr.parameter(f"W{i}", (width, width))
        h = act(h @ w + cr.parameter(f"b{i}", (width,)))
    return cr.losses.mse(h, t)


def dropout() -> Any:
    """Each layer draws; the number of the step, which they draw from, is updated in the step."""
    return deep(8, act=lambda z: cr.dropout(cr.gelu(z), 0.3))


def residual() -> Any:
    h, t = cr.input("x", ("batch", 16)), cr.input("t", ("batch", 16))
    for i in range(8):
        a, b = (cr.parameter(f"{n}{i}", (16, 16)) for n in "ab")
        h = h + cr.silu(cr.layer_norm(h, None, None) @ a) @ b
    return cr.losses.mse(h, t)


def images() -> Any:
    x, y = cr.input("x", ("batch", 2, 8, 8)), cr.input("y", ("batch",), dtype="int32")
    h, channels = x, 2
    for i in range(4):
        h = cr.relu(cr.conv(h, cr.parameter(f"k{i}", (6, channels, 3, 3)), padding=1))
        channels = 6
    h = cr.reshape(cr.max_pool(h, 2), (h.shape[0], -1))
    return cr.losses.cross_entropy(h @ cr.parameter("w", (96, 5)), y)


def attention() -> Any:
    h, t = cr.input("x", ("batch", 6, 16)), cr.input("t", ("batch", 6, 16))
    for i in range(4):
        q, k, v = (h @ cr.parameter(f"{n}{i}", (16, 16)) for n in "qkv")
        h = cr.layer_norm(h + cr.attention(q, k, v, causal=True), None, None)
    return cr.losses.mse(h, t)


def recurrent() -> Any:
    """Layers before and after a loop, which itself is not computed again."""
    xs, t = cr.input("x", (5, "batch", 12)), cr.input("t", (5, "batch", 12))
    u, h = cr.parameter("u", (12, 12)), xs
    for i in range(6):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (12, 12)))

    def cell(state: Any, now: Any) -> Any:
        state = cr.tanh(now + state @ u)
        return state, state

    _, h = cr.scan(cell, cr.zeros((xs.shape[1], 12)), h)
    for i in range(6, 12):
        h = cr.tanh(h @ cr.parameter(f"w{i}", (12, 12)))
    return cr.losses.mse(h, t)


def gated() -> Any:
    """A loop that keeps five values a step for its derivative, and one back."""
    h, t = cr.input("x", ("batch", 36, 6)), cr.input("t", ("batch", 36, 12))
    h = cr.nn.LSTM(6, return_sequences=True, bidirectional=True)(h)
    return cr.losses.mse(cr.nn.GRU(12, return_sequences=True)(h), t)


NETS = [deep, dropout, residual, images, attention, recurrent, gated]


def trained(step: cr.TrainingStep, steps: int = 4) -> tuple[list[float], dict[str, Array]]:
    rng = np.random.default_rng(7)
    feeds = {}
    for tensor in step.report().manifest.feeds:
        shape = tuple(d if isinstance(d, int) else ROWS for d in tensor.shape)
        whole = tensor.dtype == "int32"
        feeds[tensor.name] = (
            rng.integers(0, 5, shape).astype("i4") if whole else rng.standard_normal(shape, "f4")
        )
    losses = [step(**feeds) for _ in range(steps)]
    return losses, {name: array.copy() for name, array in step.parameters.items()}


def budgeted(loss: Any, share: float, before: int, **options: Any) -> cr.TrainingStep:
    budget = int(share * before), {"batch": ROWS}
    return cr.training_step(loss, cr.optim.Adam(1e-2), seed=3, memory_budget=budget, **options)


def least(loss: Any) -> int:
    """The least that an error says there is."""
    with pytest.raises(cr.errors.CompileError, match="can't be met") as error:
        cr.training_step(loss, cr.optim.Adam(1e-2), memory_budget=(1, {"batch": ROWS}))
    return int(error.value.what.split(" is ")[-1].split(" bytes")[0].replace(",", ""))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("make", "threads"), [(make, 1 + i % 2) for i, make in enumerate(NETS)])
def test_a_budget_changes_no_bit(make: Callable[[], Any], threads: int) -> None:
    loss = make()
    free = cr.training_step(loss, cr.optim.Adam(1e-2), seed=3, threads=threads)
    before = free.report().reserved(batch=ROWS)["arena"]
    wanted = trained(free)
    lowest = least(loss) / before
    assert lowest < 0.95
    for share in (0.05 + 0.95 * lowest, (1 + lowest) / 2, lowest):
        step = budgeted(loss, share + 1e-9, before, threads=threads)
        report = step.report()
        assert report.recomputed is not None
        assert report.recomputed.values or report.recomputed.steps
        assert report.recomputed.before == before
        taken = report.reserved(batch=ROWS)["arena"]
        assert taken == report.recomputed.after <= share * before + 1
        losses, parameters = trained(step)
        assert losses == wanted[0]
        for name, array in parameters.items():
            assert array.tobytes() == wanted[1][name].tobytes(), f"{name} at {share}"


def test_a_deep_net_needs_little_more_than_the_root_of_its_depth() -> None:
    """64 equal layers: their own values, one a layer, would be a half of what is kept without."""
    loss = deep(64)
    free = cr.training_step(loss, cr.optim.Adam(1e-2), threads=1).report()
    before = free.reserved(batch=ROWS)["arena"]
    report = budgeted(loss, 0.25, before, threads=1).report()
    assert report.reserved(batch=ROWS)["arena"] <= before // 4
    # every layer's product a second time is a third more than what a step has: two a layer behind
    extra = report.totals(batch=ROWS)["flops"] / free.totals(batch=ROWS)["flops"]
    assert 1 < extra < 4 / 3 + 0.05


def test_a_small_update_on_the_way_keeps_no_weight_waiting() -> None:
    """The last bias' new value is there when most is alive, and put in its place at the end: what
    it was made of need not be there again by then, when the weights have been updated.
    """
    h, y = cr.input("x", ("batch", 9, 16)), cr.input("y", ("batch",), dtype="int32")
    for i in range(4):
        q, k, v = (h @ cr.parameter(f"{n}{i}", (16, 16)) for n in "qkv")
        q, k, v = (cr.permute_dims(cr.reshape(t, (-1, 9, 8, 2)), (0, 2, 1, 3)) for t in (q, k, v))
        mixed = cr.permute_dims(cr.attention(q, k, v), (0, 2, 1, 3))
        h = cr.layer_norm(h + cr.reshape(mixed, (-1, 9, 16)), None, None)
    z = cr.mean(h, axis=1) @ cr.parameter("out", (16, 10)) + cr.parameter("b", (10,))
    loss = cr.losses.cross_entropy(z, y)
    before = cr.training_step(loss, cr.optim.Adam()).report().reserved(batch=ROWS)["arena"]
    assert budgeted(loss, 0.6, before).report().recomputed is not None


def test_a_loop_runs_again_in_segments() -> None:
    """Of what a loop of 36 steps keeps, that of some at a time; at most once more each."""
    loss = gated()
    free = cr.training_step(loss, cr.optim.SGD(0.1), threads=1).report()
    before = free.reserved(batch=ROWS)["arena"]
    report = budgeted(loss, 0.8, before, threads=1).report()
    assert report.recomputed is not None and report.recomputed.steps in (2, 3, 4, 6, 9, 12, 18)
    assert f"loops again {report.recomputed.steps} steps at a time" in str(report)
    flops = report.totals(batch=ROWS)["flops"], free.totals(batch=ROWS)["flops"]
    assert flops[1] < flops[0] < 4 / 3 * flops[1]
    said = evaluate(report.recomputed.flops, {"batch": ROWS})
    assert said == pytest.approx(flops[0] - flops[1], rel=0.05)  # which counts conversions too


def test_products_come_last() -> None:
    """The slope of tanh is made of what it gave, which waits for the weights anyway."""
    loss = deep(16)
    before = cr.training_step(loss, cr.optim.SGD(0.1)).report().reserved(batch=ROWS)["arena"]
    report = budgeted(loss, 0.7, before).report()
    assert {k.form for k in report.kernels if k.again} <= {"map", "rows", "columns"}


def test_what_fits_is_left_alone() -> None:
    loss = deep(4)
    free = cr.training_step(loss, cr.optim.SGD(0.1))
    arena = free.report().reserved(batch=ROWS)["arena"]
    step = cr.training_step(loss, cr.optim.SGD(0.1), memory_budget=(arena, {"batch": ROWS}))
    assert step.show("kernels") == free.show("kernels")
    found = step.report().recomputed
    assert found is not None and not found.values and found.flops == 0
    assert f"budget  {arena:,} bytes at batch={ROWS}" in str(step.report())
    with pytest.raises(cr.errors.CompileError, match="can't be met"):
        cr.training_step(deep(4), cr.optim.SGD(0.1), memory_budget=(100, {"batch": ROWS}))


def test_bytes_alone_hold_at_the_typical_size() -> None:
    loss = deep(8)
    arena = cr.training_step(loss, cr.optim.SGD(0.1)).report().reserved(batch=64)["arena"]
    step = cr.training_step(loss, cr.optim.SGD(0.1), memory_budget=arena // 2)
    assert step.report().reserved(batch=64)["arena"] <= arena // 2


def test_an_error_says_what_is_possible_and_what_is_large() -> None:
    loss = deep(8)
    with pytest.raises(cr.errors.CompileError) as error:
        cr.training_step(loss, cr.optim.SGD(0.1), memory_budget=1000)
    text = str(error.value)
    assert "1,000 bytes at batch=64 can't be met: the least found is" in text
    assert "f32[batch, 32], 8,192 bytes" in text and "test_recompute.py" in text
    assert "scan" not in text
    with pytest.raises(cr.errors.CompileError, match="the least") as error:
        cr.training_step(recurrent(), cr.optim.SGD(0.1), memory_budget=1000)
    assert "a scan runs again in equal segments" in str(error.value)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (0, "number of bytes"),
        (True, "number of bytes"),
        (1e6, "number of bytes"),
        ("1 GB", "number of bytes"),
        ((1000,), "number of bytes"),
        ((1000, 64), "number of bytes"),
        ((1000, {"rows": 64}), "the sizes are batch"),
        ((1000, {"batch": 0}), "memory_budget: the size batch is an int from 1 on, not 0"),
    ],
)
def test_budgets_that_are_none(budget: Any, text: str) -> None:
    with pytest.raises(cr.errors.CompileError, match=text):
        cr.training_step(deep(2), cr.optim.SGD(0.1), memory_budget=budget)


def test_the_reference_has_no_arena() -> None:
    with pytest.raises(cr.errors.CompileError, match="keeps every value"):
        cr.training_step(deep(2), cr.optim.SGD(0.1), backend="reference", memory_budget=10**9)


def test_a_compiled_function_takes_a_budget_too() -> None:
    loss = deep(16)
    weights = [f"W{i}" for i in range(16)]
    leaves = {n.op.label: n for n in cr.compile(loss)._program.compiled.feeds}
    grads = cr.grad(loss, [cr.Tensor(leaves[w]) for w in weights])
    free = cr.compile(grads)
    rng = np.random.default_rng(0)
    feeds = {
        t.name: rng.standard_normal([d if isinstance(d, int) else ROWS for d in t.shape], "f4")
        for t in free.report().manifest.feeds
    }
    arena = free.report().reserved(batch=ROWS)["arena"]
    tight = cr.compile(grads, memory_budget=(arena // 2, {"batch": ROWS}))
    assert tight.report().reserved(batch=ROWS)["arena"] <= arena // 2
    for a, b in zip(free(**feeds), tight(**feeds), strict=True):
        assert a.tobytes() == b.tobytes()
