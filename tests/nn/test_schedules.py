"""Schedules beside their formulas, beside PyTorch's, and in a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.nn import schedules as s
from chainrule.nn.schedules import Schedule

STEPS = 130


def cycle(k: int, steps: int, share: float, linear: bool) -> float:
    top, low, end = share * steps - 1, 1 / 25, 1 / 25e4
    k = min(k, steps - 1)
    a, b, x = (low, 1, k / top) if k <= top else (1, end, (k - top) / (steps - 1 - top))
    return a + (b - a) * x if linear else b + (a - b) * (1 + math.cos(math.pi * x)) / 2


# a schedule, its formula with k steps made, and PyTorch's with how long that is compared
CASES: list[tuple[Schedule, Callable[[int], float], Callable[[Any, Any], Any] | None, int]] = [
    (s.constant(0.3), lambda k: 0.3, lambda t, o: t.ConstantLR(o, 1.0), STEPS),
    (s.step(0.3, 7, 0.5), lambda k: 0.3 * 0.5 ** (k // 7), lambda t, o: t.StepLR(o, 7, 0.5), STEPS),
    (
        s.multi_step(0.3, [5, 50], 0.2),
        lambda k: 0.3 * 0.2 ** ((k >= 5) + (k >= 50)),
        lambda t, o: t.MultiStepLR(o, [5, 50], 0.2),
        STEPS,
    ),
    (
        s.exponential(0.3, 0.97),
        lambda k: 0.3 * 0.97**k,
        lambda t, o: t.ExponentialLR(o, 0.97),
        STEPS,
    ),
    (
        s.cosine(0.3, 100, 0.01),
        lambda k: 0.01 + 0.29 * (1 + math.cos(math.pi * min(k, 100) / 100)) / 2,
        lambda t, o: t.CosineAnnealingLR(o, 100, 0.01),
        101,
    ),
    (
        s.cosine_restarts(0.3, 40, 0.01),
        lambda k: 0.01 + 0.29 * (1 + math.cos(math.pi * (k % 40) / 40)) / 2,
        lambda t, o: t.CosineAnnealingWarmRestarts(o, 40, eta_min=0.01),
        STEPS,
    ),
    (
        s.linear(0.3, 50, 0.03),
        lambda k: 0.3 - 0.27 * min(k, 50) / 50,
        lambda t, o: t.LinearLR(o, 1.0, 0.1, 50),
        STEPS,
    ),
    (
        s.polynomial(0.3, 50, 2.0),
        lambda k: 0.3 * (1 - min(k, 50) / 50) ** 2,
        lambda t, o: t.PolynomialLR(o, 50, 2.0),
        STEPS,
    ),
    (
        s.polynomial(0.3, 50, 1.5, 0.1),
        lambda k: 0.1 + 0.2 * (1 - min(k, 50) / 50) ** 1.5,
        None,
        STEPS,
    ),
    (
        s.linear_warmup(0.3, 20, 1 / 3),
        lambda k: 0.3 * (1 / 3 + 2 / 3 * min(k, 20) / 20),
        lambda t, o: t.LinearLR(o, 1 / 3, total_iters=20),
        STEPS,
    ),
    (
        s.linear_warmup(s.cosine(0.3, 100), 20, 0.1),
        lambda k: (
            0.3 * (0.1 + 0.9 * k / 20)
            if k < 20
            else 0.15 * (1 + math.cos(math.pi * min(k - 20, 100) / 100))
        ),
        lambda t, o: t.SequentialLR(
            o, [t.LinearLR(o, 0.1, total_iters=20), t.CosineAnnealingLR(o, 100)], [20]
        ),
        121,
    ),
    (
        s.one_cycle(0.3, 100),
        lambda k: 0.3 * cycle(k, 100, 0.3, False),
        lambda t, o: t.OneCycleLR(o, 0.3, 100, cycle_momentum=False),
        100,
    ),
    (
        s.one_cycle(0.3, 60, 0.5, "linear"),
        lambda k: 0.3 * cycle(k, 60, 0.5, True),
        lambda t, o: t.OneCycleLR(
            o, 0.3, 60, pct_start=0.5, anneal_strategy="linear", cycle_momentum=False
        ),
        60,
    ),
]


def rates(schedule: Schedule, dtype: str = "float64", backend: str = "cpu") -> np.ndarray:
    """The rate of each step, measured: with a gradient of 1, it is how far the parameter goes."""
    w = cr.parameter("w", (), init=0.0, dtype=dtype)
    step = cr.training_step(w * 1.0, cr.optim.SGD(schedule), backend=backend)
    found = []
    for _ in range(STEPS):
        step.parameters["w"][...] = 0.0
        step()
        found.append(-float(step.parameters["w"]))
    return np.array(found)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_against_the_formula(case: Any) -> None:
    schedule, formula, _, _ = case
    expected = np.array([formula(k) for k in range(STEPS)])
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose([schedule.at(k + 1) for k in range(STEPS)], expected, 1e-12, 1e-15)
    # float32: a few roundings, of numbers up to the largest rate
    np.testing.assert_allclose(rates(schedule, "float32"), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_against_torch(case: Any) -> None:
    torch = pytest.importorskip("torch")
    schedule, _, theirs, count = case
    if theirs is None:
        pytest.skip("PyTorch has no polynomial that ends above 0")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = theirs(torch.optim.lr_scheduler, optimizer)
    for k in range(count):
        assert schedule.at(k + 1) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15
        )
        optimizer.step()
        scheduler.step()


def test_a_function_of_ones_own() -> None:
    def halves(t: cr.Tensor) -> cr.Tensor:
        return 1.0 / (2.0 * t.astype("float64"))

    expected = [1 / (2 * (k + 1)) for k in range(STEPS)]
    np.testing.assert_allclose(rates(halves), expected, rtol=1e-14)  # type: ignore[arg-type]
    np.testing.assert_allclose(rates(s.linear_warmup(halves, 10))[10:], expected[:-10], rtol=1e-14)
    assert s.linear_warmup(halves, 10).at(6) == 0.25
    backwards = rates(halves, backend="reference")  # type: ignore[arg-type]
    np.testing.assert_allclose(backwards, expected, rtol=1e-14)


def test_a_whole_run_follows_it_in_one_call() -> None:
    """The rates of steps inside `run` are those of single steps."""
    x, w = cr.input("x", ("n",)), cr.parameter("w", (), init=0.0, dtype="float64")
    loss = cr.mean(x).astype("float64") * 0.0 + w
    step = cr.training_step(loss, cr.optim.SGD(s.cosine(0.3, 10)))
    losses = step.run(x=np.zeros(24, np.float32), batch_size=2, shuffle=False)
    expected = -np.cumsum([0.15 * (1 + math.cos(math.pi * min(k, 10) / 10)) for k in range(12)])
    np.testing.assert_allclose(losses[1:], expected[:-1], rtol=1e-12)


def test_the_learning_rate_scales_it() -> None:
    w = cr.parameter("w", (), init=0.0, dtype="float64")
    step = cr.training_step(w * 1.0, cr.optim.SGD(s.exponential(0.5, 0.5)))
    assert step.learning_rate == 0.5
    step()
    step.learning_rate = 1.0
    step()
    assert float(step.parameters["w"]) == -0.5 - 0.5
    step = cr.training_step(w * 1.0, cr.optim.SGD(lambda t: 0.5 / t.astype("float64")))
    assert step.learning_rate == 1.0


def test_called_with_a_tensor_it_is_an_expression() -> None:
    t = cr.input("t", (), dtype="int32")
    fn = cr.compile(s.linear(1.0, 4)(t))
    assert [float(fn(t=k)) for k in (1, 3, 5, 9)] == [1.0, 0.5, 0.0, 0.0]


def test_counts_are_exact_far_out() -> None:
    """In float64 to the end of int32; in float32 what is left of a count beyond 2**24 is even."""
    assert s.linear(1.0, 2**31 - 1).at(2**31 - 1) == pytest.approx(1 / (2**31 - 1), rel=1e-6)
    t = cr.input("t", (), dtype="int32")
    fn = cr.compile(s.step(1.0, 10**7, 0.5)(t))  # counts in integers, so exact in float32 too
    assert float(fn(t=2 * 10**7 + 1)) == 0.25 and float(fn(t=2 * 10**7)) == 0.5


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: s.constant(0.0), "lr is a number above 0"),
    (lambda: s.cosine(-1.0, 10), "lr"),
    (lambda: s.cosine(0.1, 0), "steps is a number of steps"),
    (lambda: s.cosine(0.1, 2.5), "steps"),  # type: ignore[arg-type]
    (lambda: s.cosine(0.1, 10, final=-1.0), "final"),
    (lambda: s.step(0.1, 0), "every"),
    (lambda: s.step(0.1, 5, math.nan), "factor"),
    (lambda: s.multi_step(0.1, [3, 0]), "each of at"),
    (lambda: s.multi_step(0.1, 3), "at is a list"),  # type: ignore[arg-type]
    (lambda: s.exponential(0.1, 0.0), "factor"),
    (lambda: s.linear_warmup(0.1, 5, start=2.0), "start"),
    (lambda: s.one_cycle(0.1, 2), "none to rise"),
    (lambda: s.one_cycle(0.1, 10, pct_start=1.0), "pct_start"),
    (lambda: s.polynomial(0.1, 5, power=0.0), "power"),
    (lambda: s.constant(0.1).at(0), "counted from 1"),
]


@pytest.mark.parametrize(("make", "text"), BAD)
def test_ranges(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(FeedError, match=text):
        make()


def test_what_is_no_rate() -> None:
    w = cr.parameter("w", (), init=0.0)
    for rate, kind, text in (
        (lambda t: t, DTypeError, "a schedule gives a float"),
        (lambda t: cr.zeros(3), ShapeError, "one rate for a step"),
    ):
        with pytest.raises(kind, match=text):
            cr.training_step(w * 1.0, cr.optim.SGD(rate))
    with pytest.raises(DTypeError, match="anneal is 'cos' or 'linear'"):
        s.one_cycle(0.1, 10, anneal="cosine")


def test_by_name() -> None:
    assert s.get("one_cycle") is s.one_cycle
    with pytest.raises(CompileError, match="'cosin'") as error:
        s.get("cosin")
    assert "did you mean cosine" in str(error.value)
