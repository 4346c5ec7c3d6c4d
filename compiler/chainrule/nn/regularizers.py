"""Regularizers: what parameters cost, as expressions to add to a loss.

    loss = cr.losses.cross_entropy(z, y) + cr.regularizers.l2([W1, W2], 1e-4)

The parameters are a Tensor, a list of Tensors, a mapping of them by name, or whatever has such a
mapping as its `parameters`, as layers do. All have one element type, which is the result's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chainrule.errors import CompileError
from chainrule.lang import functions as f
from chainrule.lang.arguments import is_several
from chainrule.lang.tensor import Tensor
from chainrule.nn.numbers import check

__all__ = ["l1", "l1_l2", "l2"]


def l1(parameters: Any, factor: float = 0.01) -> Tensor:
    """factor · the sum of all |w|: Tibshirani, the lasso (J. R. Stat. Soc. B 58, 1996)."""
    return _sum(parameters, factor, f.abs)


def l2(parameters: Any, factor: float = 0.01) -> Tensor:
    """factor · the sum of all w², whose gradient is 2·factor·w: Hoerl & Kennard (1970), ridge."""
    return _sum(parameters, factor, f.square)


def l1_l2(parameters: Any, l1_factor: float = 0.01, l2_factor: float = 0.01) -> Tensor:
    """l1 + l2, each with its factor: Zou & Hastie, elastic net (J. R. Stat. Soc. B 67, 2005)."""
    tensors = _tensors(parameters)
    return l1(tensors, l1_factor) + l2(tensors, l2_factor)


def _sum(parameters: Any, factor: float, cost: Callable[[Tensor], Tensor]) -> Tensor:
    factor = check("factor", factor)
    first, *others = (f.sum(cost(w)) for w in _tensors(parameters))
    return factor * sum(others, first)


def _tensors(parameters: Any) -> list[Tensor]:
    given = parameters
    if not isinstance(given, (Tensor, Mapping)):
        given = getattr(given, "parameters", given)
    if isinstance(given, Mapping):
        given = list(given.values())
    tensors = [given] if isinstance(given, Tensor) else given
    if not is_several(tensors):
        raise CompileError(f"a regularizer takes parameters, not {parameters!r}")
    tensors = list(tensors)
    for w in tensors:
        if not isinstance(w, Tensor) or not w.dtype.is_float:
            raise CompileError(f"a regularizer takes Tensors of floats, not {w!r}")
    if not tensors:
        raise CompileError(
            "a regularizer takes parameters: there are none",
            "a layer has them from its first call on",
        )
    return tensors
