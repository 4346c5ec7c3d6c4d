"""Optimizers: how a parameter follows its gradient, as expressions.

    class HeavyBall(cr.optim.Optimizer):
        def init(self, w): return {"m": cr.zeros_like(w)}
        def update(self, w, g, state, lr, t):
            m = 0.9 * state["m"] + g
            return w - lr * m, {"m": m}

Trajectories are PyTorch's. One thing is part of the meaning on every backend: numbers so small that
a product with them would be denormal count as 0 (see `quiet`), since a decaying average would
otherwise spend its days among denormals, where processors are slow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from chainrule.errors import CompileError, FeedError
from chainrule.lang import functions as f
from chainrule.lang.tensor import Tensor

Slots = Mapping[str, Tensor]
_LARGEST = float(np.finfo(np.float64).max)


class Optimizer:
    """A rule for updates. A subclass says what it remembers of each parameter, and the rule.

    `lr` is the learning rate that training begins with. Raises FeedError unless it is above 0.
    """

    lr = 0.01  # for a subclass that has an __init__ of its own

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = check("lr", lr, above=0.0)

    def init(self, w: Tensor) -> Slots:
        """What is remembered of a parameter, as it is before the first step; by default nothing."""
        return {}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        """The next parameter and the next state, of the same names and types.

        `g` is the gradient; `lr` is a scalar of w's element type; `t` counts steps, an int32 that
        is 1 in the first.
        """
        raise CompileError(f"{type(self).__name__} is an optimizer without an update")


class SGD(Optimizer):
    """Gradient descent, with momentum m ← momentum·m + g (Polyak 1964) if that is not 0.

    The step is -lr·m, with `nesterov` -lr·(g + momentum·m) (Nesterov 1983, in the form of Sutskever
    et al., ICML 2013, section 2). Weight decay is added to the gradient: g + weight_decay·w.
    """

    def __init__(
        self,
        lr: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        self.momentum = check("momentum", momentum, least=0.0, below=1.0)
        self.weight_decay = check("weight_decay", weight_decay, least=0.0)
        if not isinstance(nesterov, bool):
            raise FeedError(f"nesterov is True or False, not {nesterov!r}")
        self.nesterov = nesterov
        if nesterov and self.momentum == 0:
            raise FeedError("nesterov looks ahead along the momentum, which is 0", "momentum=0.9")

    def init(self, w: Tensor) -> Slots:
        return {"m": f.zeros_like(w)} if self.momentum else {}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        if self.weight_decay:
            g = g + self.weight_decay * w
        if not self.momentum:
            return w - lr * g, {}
        m = shrunk(self.momentum, state["m"]) + g
        direction = g + self.momentum * m if self.nesterov else m
        return w - lr * direction, {"m": m}


class Adam(Optimizer):
    """Kingma & Ba, Adam: a method for stochastic optimization (ICLR 2015), algorithm 1.

    m ← β1·m + (1-β1)·g, v ← β2·v + (1-β2)·g², w ← w - lr·m̂/(sqrt(v̂) + eps) with m̂ = m/(1-β1ᵗ)
    and v̂ = v/(1-β2ᵗ): eps is added to the root of the corrected v̂, as in the paper and PyTorch.
    Weight decay is added to the gradient: g + weight_decay·w.
    """

    decoupled = False

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise FeedError(f"betas are two numbers, not {betas!r}")
        self.beta1 = check("the first of betas", betas[0], least=0.0, below=1.0)
        self.beta2 = check("the second of betas", betas[1], least=0.0, below=1.0)
        self.eps = check("eps", eps, above=0.0)
        self.weight_decay = check("weight_decay", weight_decay, least=0.0)

    def init(self, w: Tensor) -> Slots:
        return {"m": f.zeros_like(w), "v": f.zeros_like(w)}

    def update(
        self, w: Tensor, g: Tensor, state: Slots, lr: Tensor, t: Tensor
    ) -> tuple[Tensor, Slots]:
        if self.weight_decay and self.decoupled:
            w = w - lr * self.weight_decay * w
        elif self.weight_decay:
            g = g + self.weight_decay * w
        m = shrunk(self.beta1, state["m"]) + shrunk(1 - self.beta1, g)
        v = shrunk(self.beta2, state["v"]) + shrunk_square(1 - self.beta2, g)
        time = t.astype(w.dtype)
        rate = lr / one_minus_power(self.beta1, time)
        root = f.sqrt(v) * (1.0 / f.sqrt(one_minus_power(self.beta2, time)))
        return w - rate * m / (root + self.eps), {"m": m, "v": v}


class AdamW(Adam):
    """Adam with decoupled weight decay: Loshchilov & Hutter (ICLR 2019), algorithm 2.

    w ← w·(1 - lr·weight_decay) before Adam's step, which does not see the decay; eps as in Adam.
    """

    decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)


def quiet(x: Tensor, floor: float) -> Tensor:
    """x, or 0 where |x| < floor; the test stands before a product, since the product is slow."""
    return f.where(f.abs(x) < floor, 0.0, x)


def shrunk(factor: float, x: Tensor) -> Tensor:
    """factor·x for a factor in [0, 1], with 0 for a product below the smallest normal number."""
    return factor * quiet(x, smallest(x) / factor) if factor else f.zeros_like(x)


def shrunk_square(factor: float, x: Tensor) -> Tensor:
    """factor·x² for a factor in (0, 1], with 0 for a product below the smallest normal number."""
    return factor * f.square(quiet(x, math.sqrt(smallest(x) / factor)))


def smallest(x: Tensor) -> float:
    """The smallest normal number of x's element type: 2**-126 or 2**-1022."""
    return float(np.finfo(x.dtype.name).tiny)


def one_minus_power(base: float, t: Tensor) -> Tensor:
    """1 - baseᵗ as -expm1(t·log(base)), which keeps its digits where baseᵗ is near 1."""
    return -f.expm1(t * math.log(base)) if base else f.ones_like(t)


def check(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float = 0.0,
    below: float = math.inf,
) -> float:
    """The value as a float, 0.0 for -0.0. Raises FeedError unless it is a number in the range told.

    The range begins with `least`, or beyond `above` if that is given, and ends before `below`.
    """
    low = f"from {least}" if above is None else f"above {above}"
    high = f" to below {below}" if below < math.inf else ", finite"
    wanted = f"{name} is a number {low}{high}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise FeedError(f"{wanted}, not {value!r}")
    begins = value >= least if above is None else value > above
    if not (begins and value < below and value <= _LARGEST):
        raise FeedError(f"{wanted}, not {value!r}")
    return float(value) + 0.0
