"""Schedules: the learning rate as a function of the step, compiled into it.

    step = cr.training_step(loss, cr.optim.SGD(cr.schedules.cosine(0.1, steps=1000)))
    step = cr.training_step(loss, cr.optim.SGD(lambda t: 0.1 / cr.sqrt(t.astype("float32"))))

A schedule is a function of t, an int32 Tensor that is 1 in the first update, and gives a rate. With
k = t - 1 the rates are those that PyTorch's schedulers have after k calls of their `step()`, one an
update. Past its last step a schedule stays where it ended.

`step.learning_rate` is then the rate that the whole schedule is scaled by: at first the `lr` given
here, 1 for a function of one's own. Steps are counted as integers; in float32 they are exact up to
2**24 = 16 777 216, in a step that trains float64 beyond all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.given import is_int
from chainrule.ir.evaluate import evaluate
from chainrule.lang import functions as f
from chainrule.lang.arguments import one_of
from chainrule.lang.elementary import clip
from chainrule.lang.tensor import Tensor, as_node
from chainrule.nn.lookup import by_name
from chainrule.nn.numbers import check

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "get",
    "linear",
    "linear_warmup",
    "multi_step",
    "one_cycle",
    "polynomial",
    "step",
]


class Schedule:
    """A learning rate `base`, times a factor that depends on the step.

    `factor` takes t and an element type, and gives a scalar of that type.
    """

    def __init__(self, base: float, factor: Callable[[Tensor, Any], Tensor]) -> None:
        self.base = check("lr", base, above=0.0)
        self.factor = factor

    def __call__(self, t: Tensor) -> Tensor:
        """The rate in step t, counted from 1, in float32."""
        return self.base * self.factor(t, "float32")

    def at(self, t: int) -> float:
        """The rate in step t, counted from 1, as a number in float64."""
        if not is_int(t) or not 1 <= t < 2**31:
            raise FeedError(f"steps are counted from 1, so t is no {t!r}")
        (value,) = evaluate([self.factor(f.full((), int(t), dtype="int32"), "float64").node], {})
        return self.base * float(value)


def schedule_of(rate: Any) -> Schedule:
    """A schedule from a number, from a function of t, or from a schedule.

    A function's result is checked when it is used: DTypeError or ShapeError unless it is a scalar.
    """
    if isinstance(rate, Schedule):
        return rate
    if not callable(rate):
        return constant(rate)

    def factor(t: Tensor, dtype: Any) -> Tensor:
        result = Tensor(as_node(rate(t)))
        if not result.dtype.is_float:
            raise DTypeError(f"a schedule gives a float, not {result.type}", '.astype("float32")')
        if result.ndim:
            raise ShapeError(f"a schedule gives one rate for a step, not {result.type}")
        return result.astype(dtype)

    return Schedule(1.0, factor)


def constant(lr: float) -> Schedule:
    """The same rate in every step."""
    return _of_steps(lr, f.ones_like)


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """lr·factor^⌊k/every⌋: PyTorch's StepLR(step_size=every, gamma=factor)."""
    every, factor = _steps("every", every), check("factor", factor, above=0.0)
    return Schedule(lr, lambda t, dtype: f.pow(factor, ((t - 1) // every).astype(dtype)))


def multi_step(lr: float, at: Sequence[int], factor: float = 0.1) -> Schedule:
    """lr, multiplied by factor after each of some numbers of steps: PyTorch's MultiStepLR."""
    factor = check("factor", factor, above=0.0)
    if isinstance(at, str) or not isinstance(at, Sequence):
        raise FeedError(f"at is a list of numbers of steps, not {at!r}")
    places = [_steps("each of at", n) for n in at]

    def passed(t: Tensor, dtype: Any) -> Tensor:
        one = f.ones((), dtype=dtype)
        counts = [f.where(t > n, one, 0.0) for n in places]
        return f.pow(factor, sum(counts, f.zeros((), dtype=dtype)))

    return Schedule(lr, passed)


def exponential(lr: float, factor: float) -> Schedule:
    """lr·factor^k: PyTorch's ExponentialLR(gamma=factor)."""
    factor = check("factor", factor, above=0.0)
    return _of_steps(lr, lambda k: f.pow(factor, k))


def polynomial(lr: float, steps: int, power: float = 1.0, final: float = 0.0) -> Schedule:
    """final + (lr - final)·(1 - k/steps)^power; with final=0 PyTorch's PolynomialLR."""
    steps, end = _steps("steps", steps), _share(lr, final)
    power = check("power", power, above=0.0)
    return _of_steps(
        lr, lambda k: end + (1.0 - end) * f.pow(1.0 - f.minimum(k, steps) / steps, power)
    )


def linear(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """A straight line from lr to final: PyTorch's LinearLR(1, final/lr, total_iters=steps)."""
    steps, end = _steps("steps", steps), _share(lr, final)
    return _of_steps(lr, lambda k: 1.0 + (end - 1.0) * f.minimum(k, steps) / steps)


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """final + (lr - final)·(1 + cos(π·k/steps))/2: Loshchilov & Hutter, SGDR (ICLR 2017).

    PyTorch's CosineAnnealingLR(T_max=steps, eta_min=final) up to k = steps; PyTorch's rises again
    after that, this one stays at final.
    """
    steps, end = _steps("steps", steps), _share(lr, final)
    return _of_steps(lr, lambda k: _wave(f.minimum(k, steps) / steps, 1.0, end))


def cosine_restarts(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """`cosine` that begins anew after each `steps` steps: PyTorch's CosineAnnealingWarmRestarts."""
    steps, end = _steps("steps", steps), _share(lr, final)

    def factor(t: Tensor, dtype: Any) -> Tensor:
        return _wave(((t - 1) % steps).astype(dtype) / steps, 1.0, end)

    return Schedule(lr, factor)


def linear_warmup(
    lr: float | Schedule | Callable[[Tensor], Tensor], steps: int, start: float = 0.0
) -> Schedule:
    """A straight line from start·lr up to lr in `steps` steps, then lr, which may be a schedule.

    PyTorch's SequentialLR of LinearLR(start_factor=start, total_iters=steps) and the other, with
    milestones=[steps]. The other's first step is the one after the warm-up, and its first rate is
    what the line leads to. With start=0, the first update has rate 0.
    """
    steps, then = _steps("steps", steps), schedule_of(lr)
    start = check("start", start, least=0.0)
    if start > 1:
        raise FeedError(f"start is a share of lr, from 0 to 1, not {start!r}")

    def factor(t: Tensor, dtype: Any) -> Tensor:
        k = (t - 1).astype(dtype)
        first = f.ones((), dtype="int32")
        line = (start + (1.0 - start) * k / steps) * then.factor(first, dtype)
        return f.where(t <= steps, line, then.factor(f.maximum(t - steps, 1), dtype))

    return Schedule(then.base, factor)


def one_cycle(
    lr: float,
    steps: int,
    pct_start: float = 0.3,
    anneal: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """From lr/div_factor up to lr, then down to lr/div_factor/final_div_factor: Smith, 1708.07120.

    It rises for the share `pct_start` of `steps`, along a cosine or a line (`anneal` is "cos" or
    "linear"). PyTorch's OneCycleLR(max_lr=lr, total_steps=steps, cycle_momentum=False).
    """
    steps = _steps("steps", steps)
    share = check("pct_start", pct_start, above=0.0, below=1.0)
    low = 1 / check("div_factor", div_factor, above=0.0)
    end = low / check("final_div_factor", final_div_factor, above=0.0)
    shape = {"cos": _wave, "linear": _line}[one_of("anneal", anneal, "cos", "linear")]
    top, last = share * steps - 1, steps - 1
    if not 0 < top < last:
        raise FeedError(f"{steps} steps leave none to rise or to fall with pct_start={share}")

    def factor(k: Tensor) -> Tensor:
        rise, fall = f.minimum(k / top, 1.0), clip(k - top, 0.0, last - top) / (last - top)
        return f.where(k <= top, shape(rise, low, 1.0), shape(fall, 1.0, end))

    return _of_steps(lr, factor)


def _of_steps(lr: float, factor: Callable[[Tensor], Tensor]) -> Schedule:
    """The schedule of a factor that is a function of how many steps were made, as a float."""
    return Schedule(lr, lambda t, dtype: factor((t - 1).astype(dtype)))


def _wave(x: Tensor, begin: float, end: float) -> Tensor:
    """Half a cosine from begin at x = 0 to end at x = 1."""
    return end + (begin - end) * 0.5 * (1.0 + f.cos(math.pi * x))


def _line(x: Tensor, begin: float, end: float) -> Tensor:
    return begin + (end - begin) * x


def _steps(name: str, value: int) -> int:
    if not is_int(value) or value < 1:
        raise FeedError(f"{name} is a number of steps, an int from 1 on, not {value!r}")
    return int(value)


def _share(lr: float, final: float) -> float:
    """What the final rate is of the first. Raises FeedError for numbers that are no rates."""
    return check("final", final) / check("lr", lr, above=0.0)


#: each schedule by the name that it goes by in a text
BY_NAME: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "step": step,
    "multi_step": multi_step,
    "exponential": exponential,
    "polynomial": polynomial,
    "linear": linear,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "linear_warmup": linear_warmup,
    "one_cycle": one_cycle,
}


def get(name: str) -> Callable[..., Schedule]:
    """The function that makes a schedule, by its name. Raises CompileError with near names."""
    return by_name("schedule", BY_NAME, name)
