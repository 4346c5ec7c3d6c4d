"""Gradient descent, with momentum or a sign."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

from chainrule.errors import FeedError
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim.optimizer import Common, Optimizer, Rate, Slots
from chainrule.nn.optim.values import DECAY, FRACTION, FROM_ZERO, Range, average, off, shrunk


class SGD(Optimizer):
    """Gradient descent, with momentum m ← momentum·m + g (Polyak 1964) if that is not 0.

    The step is -lr·m, with `nesterov` -lr·(g + momentum·m) (Nesterov 1983, in the form of Sutskever
    et al., ICML 2013, section 2). With `dampening` m takes only (1 - dampening)·g, but all of the
    first g, as in PyTorch. Weight decay is added to the gradient: g + weight_decay·w.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "momentum": FRACTION,
        "dampening": FRACTION,
        "weight_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.momentum = FRACTION.check("momentum", momentum)
        self.dampening = FRACTION.check("dampening", dampening)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)
        if not isinstance(nesterov, bool):
            raise FeedError(f"nesterov is True or False, not {nesterov!r}")
        self.nesterov = nesterov
        if nesterov and self.momentum == 0:
            raise FeedError("nesterov looks ahead along the momentum, which is 0", "momentum=0.9")
        if self.dampening and (nesterov or not self.momentum):
            raise FeedError("dampening holds back plain momentum: there is none", "momentum=0.9")

    def init(self, w: Tensor) -> Slots:
        return {"m": f.zeros_like(w)} if self.momentum else {}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        if not off(self.weight_decay):
            g = g + self.weight_decay * w
        if off(self.momentum):
            return w - lr * g, {}
        held = g if off(self.dampening) else f.where(t == 1, 1.0, 1 - self.dampening) * g
        m = shrunk(self.momentum, state["m"]) + held
        direction = g + self.momentum * m if self.nesterov else m
        return w - lr * direction, {"m": m}


class Lion(Optimizer):
    """Chen et al., Symbolic discovery of optimization algorithms (NeurIPS 2023), algorithm 2.

    w ← w - lr·(sign(β1·m + (1-β1)·g) + weight_decay·w), then m ← β2·m + (1-β2)·g. The decay is
    decoupled; there is no epsilon.
    """

    hyperparameters: ClassVar[Mapping[str, Range]] = {
        "beta1": DECAY,
        "beta2": DECAY,
        "weight_decay": FROM_ZERO,
    }

    def __init__(
        self,
        lr: Rate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(lr, **common)
        self.beta1, self.beta2 = two_decays(betas)
        self.weight_decay = FROM_ZERO.check("weight_decay", weight_decay)

    def init(self, w: Tensor) -> Slots:
        return {"m": f.zeros_like(w)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        direction = f.sign(average(self.beta1, state["m"], g))
        if not off(self.weight_decay):
            direction = direction + self.weight_decay * w
        return w - lr * direction, {"m": average(self.beta2, state["m"], g)}


def two_decays(betas: tuple[float, float]) -> tuple[float, float]:
    """Two factors from 0 to below 1. Raises FeedError for anything else."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise FeedError(f"betas are two numbers, not {betas!r}")
    first, second = betas
    return DECAY.check("the first of betas", first), DECAY.check("the second of betas", second)
