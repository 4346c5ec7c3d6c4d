"""Looking at expressions: proofs, scalars and graphs for networkx."""

from __future__ import annotations

from typing import Any

from chainrule.errors import GradientError
from chainrule.lang.derive import derive, flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import full
from chainrule.show import network, proof, symbolic


def explain(loss: Tensor, wrt: Tensor) -> proof.Proof:
    """The derivation of `cr.grad(loss, wrt)`, step by step.

    `str()` and `.latex()` write it, `.steps` holds the steps and `.check()` replays them in
    numbers. Raises GradientError where there is no gradient.
    """
