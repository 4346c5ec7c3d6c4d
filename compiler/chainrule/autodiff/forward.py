"""Forward mode, without a second set of rules: reverse mode, twice.

The cotangents of `wrt` are linear in the cotangents of the results, whatever those are; so their
own derivative by them, contracted with tangents, is the Jacobian times the tangents. (J. Townsend,
A new trick for calculating Jacobian vector products, 2017.)
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.autodiff.reverse import Derivation, differentiate
from chainrule.errors import GradientError
from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node
from chainrule.ops.source import leaf


def push_forward(
    results: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Node]
) -> list[Node | None]:
    """The tangents of `results` where those of `wrt` are `tangents`; None where nothing depends.

    Derivatives are total, as in reverse mode. Raises GradientError where a user's own derivative is
    not linear in its cotangent.
    """
    unknown = {r: leaf("cotangent", "ct", r.type) for r in dict.fromkeys(results)}
    back = differentiate(list(unknown), list(unknown.values()), wrt)
    known = [(g, t) for g, t in zip(back.gradients, tangents, strict=True) if g is not None]
    if not known:
        return [None] * len(results)
    pulled, seeds = zip(*known, strict=True)
    twice = differentiate(pulled, seeds, list(unknown.values()), note=False)
    found = dict(zip(unknown, twice.gradients, strict=True))
    _check_linear([g for g in twice.gradients if g is not None], set(unknown.values()))
    _name_tangents(back, twice)
    return [found[r] for r in results]


def _check_linear(found: Sequence[Node], unknown: set[Node]) -> None:
    if not unknown.isdisjoint(walk(found)):
        raise GradientError(
            "a derivative is not linear in its cotangent, so there is no forward mode through it",
            "a custom derivative multiplies its cotangent by what does not depend on it",
        )


def _name_tangents(back: Derivation, twice: Derivation) -> None:
    """Let the tangent of z print as dz: it is the cotangent of the cotangent of z."""
    for node, ct in back.cotangents.items():
        tangent = twice.cotangents.get(ct)
        if tangent is not None and tangent.inputs and node.inputs:
            provenance.set_cotangent(tangent, node)
