"""Activations that are formulas of other ops: each has a name, and a derivative that stays finite.

At a kink the derivative is PyTorch's. A test derives each again by SymPy.
"""

from __future__ import annotations

from chainrule.ir.formula import parse
from chainrule.ops.composite import Defined

_SOFT = "tanh(softplus(x))"
_S = "sigmoid(1.5957691216057308*x*(1 + 0.044715*square(x)))"  # 2 sqrt(2 / pi)
_SLOPE = "1.5957691216057308*(1 + 0.134145*square(x))"
_SCALE, _SCALE_ALPHA = "1.0507009873554805", "1.7580993408473766"

#: name -> meaning, derivative; gelu_tanh is Hendrycks & Gimpel's (arXiv:1606.08415) approximation,
#: selu's numbers are Klambauer et al.'s (arXiv:1706.02515), mish is Misra's (arXiv:1908.08681)
_FORMULAS = {
    "silu": ("x*sigmoid(x)", "sigmoid(x) + out*(1 - sigmoid(x))"),
    "gelu": (
        "0.5*x*erfc(-0.7071067811865476*x)",
        "0.5*erfc(-0.7071067811865476*x) + 0.3989422804014327*x*exp(-0.5*square(x))",
    ),
    "gelu_tanh": (f"x*{_S}", f"where({_S}*(1 - {_S}) == 0, {_S}, {_S} + out*(1 - {_S})*{_SLOPE})"),
    "mish": (f"x*{_SOFT}", f"{_SOFT} + x*sigmoid(x)*(1 - square({_SOFT}))"),
    "softsign": ("x/(1 + abs(x))", "1/square(1 + abs(x))"),
    "tanhshrink": ("x - tanh(x)", "square(tanh(x))"),
    "hard_sigmoid": (
        "relu6(x + 3)/6",
        "where(out <= 0, 0, where(out >= 1, 0, 0.16666666666666666))",
    ),
    "hard_swish": (
        "x*relu6(x + 3)/6",
        "where(x <= -3, 0, where(x >= 3, 1, x/3 + 0.5))",
    ),
    "hard_tanh": (
        "where(x <= -1, -1, where(x >= 1, 1, x))",
        "where(x <= -1, 0, where(x >= 1, 0, 1))",
    ),
    "elu": ("where(x > 0, x, expm1(x))", "where(x > 0, 1, exp(x))"),
    "selu": (
        f"where(x > 0, {_SCALE}*x, {_SCALE_ALPHA}*expm1(x))",
        f"where(x > 0, {_SCALE}, {_SCALE_ALPHA}*exp(x))",
    ),
}

#: The ops, by name.
ACTIVATIONS = {
    name: Defined(name, ("x",), parse(meaning), (parse(derivative),))
    for name, (meaning, derivative) in _FORMULAS.items()
}
