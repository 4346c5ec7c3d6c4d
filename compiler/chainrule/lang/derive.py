"""Derivatives of Tensors are Tensors: the graph is stabilised, differentiated and simplified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from chainrule.autodiff.reverse import Derivation, differentiate
from chainrule.collector import uncollected
from chainrule.errors import DTypeError, GradientError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.ir.passes import in_bodies
from chainrule.lang.tensor import Tensor
from chainrule.ops.source import full
from chainrule.records import dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class Derived:
    """A derivation and what algebra made of its result: one node for each of `derivation.wrt`."""

    derivation: Derivation
    gradients: tuple[Node | None, ...]


@uncollected
def derive(results: Sequence[Node], seeds: Sequence[Node], wrt: Sequence[Node]) -> Derived:
    """Cotangents of `wrt` from `seeds`, the cotangents of `results`; None where nothing depends.

    The graph is brought to its stable form before it is differentiated: the derivative of a naive
    formula would overflow where the formula does. Nothing in `wrt` is rewritten meanwhile.
    """
    roots = stabilized(results, wrt)
    derivation = differentiate(roots[: len(results)], seeds, roots[len(results) :])
    found = tuple(g for g in derivation.gradients if g is not None)
    simple = iter(simplified(found, derivation.wrt))
    return Derived(derivation, tuple(g and next(simple) for g in derivation.gradients))


def stabilized(results: Sequence[Node], wrt: Sequence[Node]) -> tuple[Node, ...]:
    """The stable forms of results, then of `wrt`, which nothing looks through."""
    from chainrule.rewrite.passes import stabilize

    graph = in_bodies(stabilize, Graph((*results, *wrt)), kept=wrt)
    return stabilize(graph, opaque=wrt).outputs


def simplified(found: Sequence[Node], wrt: Sequence[Node]) -> tuple[Node, ...]:
    """Derivatives by `wrt` in simplest form."""
    from chainrule.rewrite.passes import simplify

    graph = in_bodies(simplify, Graph(tuple(found)), kept=wrt)
    return simplify(graph, opaque=wrt).outputs


def gradients(loss: Node, wrt: Sequence[Node], unused: str = "error") -> list[Node]:
    """The gradients of a scalar by nodes, in simplest form.

    A node that the loss does not depend on is a GradientError, or zeros with `unused="zeros"`.
    """
    if not isinstance(unused, str) or unused not in ("error", "zeros"):
        raise GradientError(f'unused is "error" or "zeros", not {unused!r}')
    if loss.type.shape != ():
        raise GradientError(
            f"a gradient is of a scalar, not of {loss.type}",
            "sum or average it first, or use cr.vjp",
        )
    check_floats(loss, *wrt)
    found = derive([loss], [full(1, loss.type.dtype, ())], wrt).gradients
    for gradient in found:
        if gradient is not None:
            provenance.set_loss(gradient, loss)
    return [_or_zeros(g, w, loss, unused) for g, w in zip(found, wrt, strict=True)]


def check_floats(*nodes: Node) -> None:
    """Refuse a node whose elements are no floats: it has no derivative, and none is by it."""
    for node in nodes:
        if not node.type.dtype.is_float:
            raise GradientError(
                f"only floats have derivatives: {node!r}", "convert with .astype(...)"
            )


def _or_zeros(gradient: Node | None, wrt: Node, of: Node, unused: str) -> Node:
    if gradient is not None:
        return gradient
    if unused == "zeros":
        return full(0, wrt.type.dtype, wrt.type.shape)
    raise GradientError(
        f"{_name(of)} does not depend on {_name(wrt)}",
        'for zeros instead: unused="zeros"',
    )


def _name(node: Node) -> str:
    return provenance.name_of(node) or repr(node)


def grad(loss: Tensor, wrt: Any, *, unused: str = "error") -> Any:
    """The gradient of a scalar by a Tensor, or by a list, tuple or dict of them in like structure.

    Raises GradientError where the loss is no float scalar or does not depend on what is asked for
    (`unused="zeros"` gives zeros). Gradients can be differentiated again.
    """
    return mapped(wrt, lambda nodes: gradients(_node(loss), nodes, unused))


def vjp(outputs: Any, wrt: Any, cotangents: Any) -> Any:
    """The product of cotangents with the Jacobian of `outputs` by `wrt`, in `wrt`'s structure.

    Zeros where nothing depends. Raises ShapeError or DTypeError where a cotangent is not of its
    output's type, GradientError for what is no float.
    """
    results, seeds = flatten(outputs), flatten(cotangents)
    if len(results) != len(seeds):
        raise ShapeError(f"{len(results)} outputs need as many cotangents, not {len(seeds)}")
    for result, seed in zip(results, seeds, strict=True):
        if result.type.shape != seed.type.shape:
            raise ShapeError(f"a cotangent of {result.type} has its shape, not {seed.type}")
        if result.type.dtype != seed.type.dtype:
            raise DTypeError(f"a cotangent of {result.type} has its type, not {seed.type}")
    check_floats(*results, *flatten(wrt))

    def cotangents_of(nodes: Sequence[Node]) -> list[Node]:
        found = derive(results, seeds, nodes).gradients
        return [_or_zeros(g, w, w, "zeros") for g, w in zip(found, nodes, strict=True)]

    return mapped(wrt, cotangents_of)


def hvp(loss: Tensor, wrt: Any, vectors: Any) -> Any:
    """The Hessian of a scalar by `wrt`, times `vectors`, in `wrt`'s structure."""
    nodes = flatten(wrt)
    slopes = gradients(_node(loss), nodes, "zeros")
    return vjp([Tensor(g) for g in slopes], wrt, [Tensor(v) for v in flatten(vectors)])


def flatten(structure: Any) -> list[Node]:
    """The nodes of a Tensor, or of a list, tuple or dict of Tensors, in order."""
    if isinstance(structure, dict):
        return [n for v in structure.values() for n in flatten(v)]
    if isinstance(structure, (list, tuple)):
        return [n for v in structure for n in flatten(v)]
    return [_node(structure)]


def mapped(structure: Any, function: Callable[[list[Node]], Sequence[Node]]) -> Any:
    """The structure with its Tensors replaced, all in one go, by those of `function`'s nodes."""
    return rebuilt(structure, map(Tensor, function(flatten(structure))))


def rebuilt(structure: Any, values: Iterable[Any]) -> Any:
    """The structure with values, in order, in the places of its Tensors."""
    rest = iter(values)

    def build(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: build(v) for k, v in part.items()}
        if isinstance(part, (list, tuple)):
            parts = [build(v) for v in part]
            return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        return next(rest)

    return build(structure)


def _node(tensor: object) -> Node:
    if not isinstance(tensor, Tensor):
        raise DTypeError(f"expected a Tensor, not {tensor!r}")
    return tensor.node
