"""Looking at expressions: on a page, their proofs, in scalars, and as graphs for networkx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainrule.ir.node import Node
from chainrule.lang.derive import _node, derive, flatten, gradients
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import full
from chainrule.records import dataclass

if TYPE_CHECKING:
    from chainrule.show.proof import Proof


@dataclass(frozen=True)
class Page:
    """Several expressions with the bindings that they share; `str()` and `.latex()` write it."""

    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        from chainrule.show.text import texts

        return texts(self.nodes)

    def latex(self) -> str:
        """The page as one `aligned` block."""
        from chainrule.show.latex import latex_lines

        return latex_lines(self.nodes)


def page(tensors: Any) -> Page:
    """A Tensor, or a list, tuple or dict of them, such as the gradients of a net, on one page.

    What several of them read is bound once.
    """
    return Page(tuple(flatten(tensors)))


def explain(loss: Tensor, wrt: Tensor) -> Proof:
    """The derivation of `cr.grad(loss, wrt)` by the chain rule, step by step.

    `str()` and `.latex()` write it, `.steps` holds the steps and `.check()` replays them in
    numbers. Raises GradientError where there is no gradient.
    """
    from chainrule.show import proof

    of, by = _node(loss), _node(wrt)
    (simplified,) = gradients(of, [by])
    derivation = derive([of], [full(1, of.type.dtype, ())], [by]).derivation
    return proof.explain(derivation, derivation.wrt[0], simplified)


def scalars(tensor: Tensor) -> str:
    """A small expression in scalars, as a lecture writes one neuron; of a loss its derivatives too.

    Raises CompileError where a size is not known, or for more numbers than one would read.
    """
    from chainrule.show import scalars as numbers

    return numbers.scalars(_node(tensor))


def to_networkx(tensors: Any) -> Any:
    """All that a Tensor, or a list, tuple or dict of them, depends on, as a `networkx.DiGraph`.

    Nodes have `op`, `shape`, `dtype` and `name`; edges lead from an operand to what is made of it.
    """
    from chainrule.show import network

    return network.to_networkx(flatten(tensors))
