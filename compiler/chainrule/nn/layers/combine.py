"""Layers that are made of layers or of plain functions: one after another, and around one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chainrule.errors import DTypeError, ShapeError
from chainrule.lang.arguments import is_several
from chainrule.lang.tensor import Tensor
from chainrule.nn.activations import Function, activation
from chainrule.nn.layer import Layer


class Sequential(Layer):
    """Layers and functions, each on what the one before gives; a text is an activation's name.

    Without a name of its own its layers are named as if it were not there: "dense1", "dense2".
    """

    transparent = True

    def __init__(self, layers: Iterable[Any], *, name: str | None = None) -> None:
        super().__init__(name)
        if isinstance(layers, Layer) or not is_several(layers):
            raise DTypeError(f"Sequential takes a list of layers and functions, not {layers!r}")
        self.steps: list[Function] = [activation(step, "Sequential") for step in layers]

    def forward(self, x: Any) -> Any:
        for step in self.steps:
            x = applied(step, x, "Sequential")
        return x

    def _children(self) -> Iterator[tuple[str | None, Layer]]:
        yield from ((None, step) for step in self.steps if isinstance(step, Layer))

    def __getitem__(self, name: Any) -> Any:
        """The step of a number, or a tensor by name."""
        return self.steps[name] if isinstance(name, (int, slice)) else super().__getitem__(name)

    def __len__(self) -> int:
        return len(self.steps)


class Residual(Layer):
    """x + layer(x): what the layer learns is how its input differs (He et al., arXiv:1512.03385).

    `layer` is a layer, a function, or a list of such, one after another; `shortcut` another one,
    where sizes change: shortcut(x) + layer(x). Raises ShapeError where the two differ in shape.
    """

    transparent = True

    def __init__(self, layer: Any, shortcut: Any = None, *, name: str | None = None) -> None:
        super().__init__(name)
        self.layer = Sequential(layer) if isinstance(layer, (list, tuple)) else layer
        self.shortcut = shortcut
        for function in (self.layer, shortcut):
            activation(function, "Residual")

    def forward(self, x: Any) -> Any:
        way, around = activation(self.layer), activation(self.shortcut)
        straight, changed = applied(around, x, "Residual"), applied(way, x, "Residual")
        if straight.shape != changed.shape:
            raise ShapeError(
                f"Residual adds two of one shape: {straight.type} and {changed.type}",
                "give a shortcut that changes the sizes alike: Residual(layer, shortcut=Dense(n))",
            )
        return straight + changed

    def _children(self) -> Iterator[tuple[str | None, Layer]]:
        parts = (self.layer, self.shortcut)
        yield from ((None, part) for part in parts if isinstance(part, Layer))


def applied(function: Function, x: Any, who: str) -> Any:
    """What a layer or a function makes of x. Raises DTypeError where that is no Tensor."""
    y = function(x)
    if not isinstance(function, Layer) and not isinstance(y, Tensor):
        raise DTypeError(f"a function in {who} gives a Tensor, {function!r} gave {y!r}")
    return y
