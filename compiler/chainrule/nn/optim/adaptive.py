"""Adagrad, Adadelta and RMSprop: a step along the gradient, by a root of its squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

from chainrule.errors import FeedError
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim.optimizer import Common, Optimizer, Rate, Slots
from chainrule.nn.optim.values import (
    ABOVE_ZERO,
    DECAY,
    FRACTION,
    FROM_ZERO,
    Range,
    average,
    average_square,
    largest,
    off,
    quiet_square,
    shrunk,
)


class Adagrad(Optimizer):
    """Duchi, Hazan & Singer, Adaptive subgradient methods (JMLR 12, 2011), diagonal form.

    s ← s + g², w ← w - lr/(1 + (t-1)·lr_decay)·g/(sqrt(s) + eps): eps is added to the root, as in
    PyTorch. s begins as `initial_accumulator_value`. Weight decay is added to the gradient: g +
    weight_decay·w.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "lr_decay": FROM_ZERO,
        "eps": ABOVE_ZERO,
        "weight_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.lr_decay = FROM_ZERO.check("lr_decay", lr_decay)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)
        self.begin = FROM_ZERO.check("initial_accumulator_value", initial_accumulator_value)
        self.eps = ABOVE_ZERO.check("eps", eps)

    def init(self, w: Tensor) -> Slots:
        return {"s": f.full_like(w, self.begin)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        g = decayed(g, self.weight_decay, w)
        if not off(self.lr_decay):
            lr = lr / (1.0 + (t - 1).astype(w.dtype) * self.lr_decay)
        s = state["s"] + quiet_square(g)
        return w - lr * g / (f.sqrt(s) + self.eps), {"s": s}


class Adadelta(Optimizer):
    """Zeiler, ADADELTA: an adaptive learning rate method (2012, arXiv 1212.5701), algorithm 1.

    s ← ρ·s + (1-ρ)·g², d = sqrt(u + eps)/sqrt(s + eps)·g, u ← ρ·u + (1-ρ)·d², w ← w - lr·d: eps is
    added under both roots. Weight decay is added to the gradient: g + weight_decay·w.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "rho": DECAY,
        "eps": ABOVE_ZERO,
        "weight_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.rho = DECAY.check("rho", rho)
        self.eps = ABOVE_ZERO.check("eps", eps)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)

    def init(self, w: Tensor) -> Slots:
        return {"s": f.zeros_like(w), "u": f.zeros_like(w)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        g = decayed(g, self.weight_decay, w)
        s = average_square(self.rho, state["s"], g)
        d = f.sqrt(state["u"] + self.eps) / f.sqrt(s + self.eps) * g
        return w - lr * d, {"s": s, "u": average_square(self.rho, state["u"], d)}


class RMSprop(Optimizer):
    """Tieleman & Hinton, lecture 6.5 (Coursera, 2012); `centered` as Graves, arXiv 1308.0850.

    s ← α·s + (1-α)·g², w ← w - lr·g/(sqrt(s) + eps), as in PyTorch: eps is added to the root. With
    `centered` the root is of s - a², a ← α·a + (1-α)·g, and of 0 where rounding makes that less;
    with `momentum` w ← w - lr·m, m ← momentum·m + g/(sqrt(s) + eps). Weight decay is added to the
    gradient: g + weight_decay·w.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "alpha": DECAY,
        "eps": ABOVE_ZERO,
        "weight_decay": FROM_ZERO,
        "momentum": FRACTION,
    }

    def __init__(
        self,
        lr: Rate = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.alpha = DECAY.check("alpha", alpha)
        self.eps = ABOVE_ZERO.check("eps", eps)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)
        self.momentum = FRACTION.check("momentum", momentum)
        if not isinstance(centered, bool):
            raise FeedError(f"centered is True or False, not {centered!r}")
        self.centered = centered

    def init(self, w: Tensor) -> Slots:
        names = ["s", *["a"] * self.centered, *["m"] * (self.momentum != 0)]
        return {name: f.zeros_like(w) for name in names}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        g = decayed(g, self.weight_decay, w)
        changed = {"s": average_square(self.alpha, state["s"], g)}
        spread = changed["s"]
        if self.centered:
            changed["a"] = average(self.alpha, state["a"], g)
            square, most = f.square(changed["a"]), largest(w)  # infinity less infinity is NaN
            spread = f.maximum(spread - f.where(square > most, most, square), 0.0)
        direction = g / (f.sqrt(spread) + self.eps)
        if not off(self.momentum):
            changed["m"] = direction = shrunk(self.momentum, state["m"]) + direction
        return w - lr * direction, changed


def decayed(g: Tensor, weight_decay: float | Tensor, w: Tensor) -> Tensor:
    """The gradient with that of weight_decay·w²/2."""
    return g if off(weight_decay) else g + weight_decay * w
