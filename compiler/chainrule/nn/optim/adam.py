"""Adam and its kin: a step along the mean gradient, by the root of the mean square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

from chainrule.errors import FeedError
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim.optimizer import Common, Optimizer, Rate, Slots
from chainrule.nn.optim.sgd import two_decays
from chainrule.nn.optim.values import (
    ABOVE_ZERO,
    DECAY,
    FROM_ZERO,
    Range,
    average,
    average_square,
    off,
    one_minus_power,
)


class Adam(Optimizer):
    """Kingma & Ba, Adam: a method for stochastic optimization (ICLR 2015), algorithm 1.

    m ← β1·m + (1-β1)·g, v ← β2·v + (1-β2)·g², w ← w - lr·m̂/(sqrt(v̂) + eps) with m̂ = m/(1-β1ᵗ)
    and v̂ = v/(1-β2ᵗ): eps is added to the root of the corrected v̂, as in the paper and PyTorch.
    Weight decay is added to the gradient: g + weight_decay·w.
    """

    decoupled = False
    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY,
        "beta2": DECAY,
        "eps": ABOVE_ZERO,
        "weight_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.beta1, self.beta2 = two_decays(betas)
        self.eps = ABOVE_ZERO.check("eps", eps)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)

    def init(self, w: Tensor) -> Slots:
        return {"m": f.zeros_like(w), "v": f.zeros_like(w)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        m, v = self.moments(self.slope(w, g), state)
        time = t.astype(w.dtype)
        lacking = one_minus_power(self.beta1, time)
        if self.decoupled and not off(self.weight_decay):
            return self.moved(w, lr, m / self.spread(v, time, lacking)), {"m": m, "v": v}
        return w - lr / lacking * m / self.spread(v, time), {"m": m, "v": v}

    def slope(self, w: Tensor, g: Tensor) -> Tensor:
        """The gradient, with that of the weight decay if it is not decoupled."""
        return g if self.decoupled or off(self.weight_decay) else g + self.weight_decay * w

    def moments(self, g: Tensor, state: Slots) -> tuple[Tensor, Tensor]:
        """The next m and v."""
        m = average(self.beta1, state["m"], g)
        return m, average_square(self.beta2, state["v"], g)

    def moved(self, w: Tensor, lr: Tensor, step: Tensor) -> Tensor:
        """The parameter after a step, and after a weight decay that the step does not see."""
        if self.decoupled and not off(self.weight_decay):
            step = step + self.weight_decay * w
        return w - lr * step

    def spread(self, v: Tensor, time: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """scale·(sqrt(v̂) + eps)."""
        root = f.rsqrt(one_minus_power(self.beta2, time))
        return f.sqrt(v) * (scale * root) + scale * self.eps


class AdamW(Adam):
    """Adam with decoupled weight decay: Loshchilov & Hutter (ICLR 2019), algorithm 2.

    w ← w·(1 - lr·weight_decay) before Adam's step, which does not see the decay; eps as in Adam.
    """

    decoupled = True

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, **common)


class NAdam(Adam):
    """Dozat, Incorporating Nesterov momentum into Adam (ICLR workshop 2016), with PyTorch's terms.

    With μₜ = β1·(1 - 0.96^(t·momentum_decay)/2) and Pₜ = μ₁·…·μₜ: w ← w - lr·((1-μₜ)/(1-Pₜ)·g +
    μₜ₊₁/(1-Pₜ₊₁)·m)/(sqrt(v̂) + eps), m, v and v̂ as in Adam: eps is added to the root of v̂.
    Weight decay is added to the gradient, or with `decoupled_weight_decay` is AdamW's.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        **Adam.hyperparameters,
        "momentum_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, **common)
        self.momentum_decay = FROM_ZERO.check("momentum_decay", momentum_decay)
        if not isinstance(decoupled_weight_decay, bool):
            raise FeedError(
                f"decoupled_weight_decay is True or False, not {decoupled_weight_decay!r}"
            )
        self.decoupled = decoupled_weight_decay

    def init(self, w: Tensor) -> Slots:
        return {**super().init(w), "product": f.ones((), dtype=w.dtype)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        g = self.slope(w, g)
        m, v = self.moments(g, state)
        time = t.astype(w.dtype)
        now, then = self.weight(time), self.weight(time + 1.0)
        product = state["product"] * now
        mean = (1.0 - now) / (1.0 - product) * g + then / (1.0 - product * then) * m
        moved = self.moved(w, lr, mean / self.spread(v, time))
        return moved, {"m": m, "v": v, "product": product}

    def weight(self, time: Tensor) -> Tensor:
        """μₜ."""
        return self.beta1 * (1.0 - 0.5 * f.pow(0.96, time * self.momentum_decay))
