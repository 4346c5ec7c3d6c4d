"""A function with a derivative of the user's own: it prints by its name and computes as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import Any

from chainrule.errors import GradientError, ShapeError
from chainrule.ir.describe import described
from chainrule.ir.evaluate import evaluate
from chainrule.ir.graph import walk
from chainrule.ir.node import Array, Node, Op, Sample
from chainrule.ir.notation import Notation, call
from chainrule.ir.types import TensorType, dtype, float64
from chainrule.ops import build
from chainrule.ops.source import Leaf, escape, leaf
from chainrule.records import dataclass

Rule = Callable[..., Sequence[Node | None]]


@dataclass(frozen=True, eq=False)
class Custom(Op):
    """`forward(*inputs)`, whose cotangents are `backward(ct, out, *inputs)`, one for each input.

    `forward` must depend on nothing but its operands, as no derivative could pass to anything else.
    """

    label: str
    forward: Callable[..., Node] = field(repr=False)
    backward: Rule = field(repr=False)
    composite = True
    stepwise = True
    own_derivative = True
    _traces: dict[Any, tuple[list[Node], Node]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What no op of ours is called."""
        return f"custom:{self.label}"

    def trace(self, types: Sequence[TensorType]) -> tuple[list[Node], Node]:
        """Stand-ins for operands of some types, and what the function makes of them."""
        key = tuple(types)
        if key not in self._traces:
            given = [leaf("input", f"{self.label}.{i}", t) for i, t in enumerate(types)]
            result = self.forward(*given)
            for node in walk([result]):
                if isinstance(node.op, Leaf) and node not in given:
                    raise GradientError(
                        f"{self.label} reads {node!r}, to which no derivative could pass",
                        "make it an argument of the function",
                    )
            self._traces[key] = given, result
        return self._traces[key]

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.trace(inputs)[1].type

    def content(self, *inputs: TensorType) -> str | None:
        given = [leaf("input", f"{self.label}.{i}", t) for i, t in enumerate(inputs)]
        meaning = described([self.forward(*given)], given)
        return meaning and f"custom {hashlib.sha256(meaning.encode()).hexdigest()}"

    def ref(self, *inputs: Array) -> Array:
        given, result = self.trace([TensorType(dtype(a.dtype), a.shape) for a in inputs])
        return evaluate([result], dict(zip(given, inputs, strict=True)))[0]

    def vjp(self, ct: Node, out: Node, *inputs: Node) -> tuple[Node | None, ...]:
        found = tuple(self.backward(ct, out, *inputs))
        if len(found) != len(inputs):
            raise GradientError(
                f"the derivative of {self.label} gives {len(found)} cotangents for its "
                f"{len(inputs)} operands"
            )
        for cotangent, node in zip(found, inputs, strict=True):
            if cotangent is not None and cotangent.type != node.type:
                raise ShapeError(
                    f"the derivative of {self.label}: a cotangent of {node.type} has its type, "
                    f"not {cotangent.type}"
                )
        return found

    def expand(self, *inputs: Node) -> Node:
        return self.forward(*inputs)

    def notation(self, *inputs: Node) -> Notation:
        label = escape(self.label)
        tex = rf"\operatorname{{{label}}}".replace("_", r"\_").replace("{", "{{").replace("}", "}}")
        return call(label, len(inputs) or 1, tex)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        def square(x: Node) -> Node:
            return build.call("square", x)

        def slope(ct: Node, out: Node, x: Node) -> tuple[Node, ...]:
            return (build.call("mul", build.call("mul", ct, x), 2),)

        yield cls("squared", square, slope), [TensorType(float64, (2, 3))]
