"""Looking at expressions: their proofs, in scalars, and as graphs for networkx."""

from __future__ import annotations

from typing import Any

from chainrule.lang.derive import derive, flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import full
from chainrule.show import network, proof
from chainrule.show import scalars as numbers


def explain(loss: Tensor, wrt: Tensor) -> proof.Proof:
    """The derivation of `cr.grad(loss, wrt)` by the chain rule, step by step.

    `str()` and `.latex()` write it, `.steps` holds the steps and `.check()` replays them in
    numbers. Raises GradientError where there is no gradient.
    """
    (of,), (by,) = flatten(loss), flatten(wrt)
    (simplified,) = gradients(of, [by])
    derivation = derive([of], [full(1, of.type.dtype, ())], [by]).derivation
    return proof.explain(derivation, derivation.wrt[0], simplified)


def scalars(tensor: Tensor) -> str:
    """A small expression in scalars, as a lecture writes one neuron; of a loss its derivatives too.

    Raises CompileError where a size is not known, or for more numbers than one would read.
    """
    return numbers.scalars(tensor.node)


def to_networkx(tensors: Any) -> Any:
    """All that a Tensor, or a list, tuple or dict of them, depends on, as a `networkx.DiGraph`.

    Nodes have `op`, `shape`, `dtype` and `name`; edges lead from an operand to what is made of it.
    """
    return network.to_networkx(flatten(tensors))
