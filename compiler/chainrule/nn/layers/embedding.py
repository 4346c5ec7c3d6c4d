"""Layers that tell a net which token stands where: Embedding, and encodings of positions."""

from __future__ import annotations

import math

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.node import apply
from chainrule.ir.size import Dim
from chainrule.lang import creation, init
from chainrule.lang import functions as f
from chainrule.lang.manipulation import stack
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import count, floats, known
from chainrule.ops.index import Take


class Embedding(Layer):
    """A learned row for each of `tokens` numbers: integers (...) give (..., width).

    `weight` is (tokens, width), of the standard normal distribution by default. A number outside 0
    to tokens - 1 is a FeedError when called. Where it is `padding_idx`, the row is 0, and learns
    nothing. Its transpose may serve as a net's last layer, see `attend`. Raises DTypeError for what
    are no integers.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        padding_idx: int | None = None,
        weight_init: object = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.tokens, self.width = count("Embedding: tokens", tokens), count("width", width)
        self.weight_init = init.normal(0.0, 1.0) if weight_init is None else weight_init
        inside = isinstance(padding_idx, int) and 0 <= padding_idx < tokens
        if padding_idx is not None and not inside:
            raise ShapeError(f"Embedding: padding_idx is one of 0 to {tokens - 1}: {padding_idx!r}")
        self.padding_idx = padding_idx

    def forward(self, x: TensorLike) -> Tensor:
        ids = Tensor(as_node(x))
        if not ids.dtype.is_integer:
            raise DTypeError(
                f"Embedding takes the numbers of tokens, which are integers, not {ids.type}",
                'declare them so: cr.input(..., dtype="int32")',
            )
        rows = Tensor(apply(Take(0, ids.ndim, None), self._weight().node, ids.node))
        if self.padding_idx is None:
            return rows
        return f.where(f.expand_dims(ids == self.padding_idx, axis=-1), 0.0, rows)

    def attend(self, h: TensorLike) -> Tensor:
        """h @ weightᵀ, logits of every token from (..., width): weights shared with the input.

        Press and Wolf, Using the output embedding to improve language models (arXiv:1608.05859).
        """
        return floats(h, "Embedding.attend", least=1) @ self._weight().T

    def _weight(self) -> Tensor:
        return self.parameter("weight", (self.tokens, self.width), self.weight_init)


class SinusoidalPositions(Layer):
    """x + p over (..., time, width), with p[t, 2i] = sin(t/base^(2i/width)), p[t, 2i+1] the cosine.

    Vaswani et al. (arXiv:1706.03762), section 3.5; nothing is learned. x may begin at another
    `position` than 0, an integer or a Tensor of one.
    """

    def __init__(self, base: float = 10000.0, *, name: str | None = None) -> None:
        super().__init__(name)
        if not isinstance(base, (int, float)) or not 1 < base < math.inf:
            raise ShapeError(f"SinusoidalPositions: base is a number above 1, not {base!r}")
        self.base = float(base)

    def forward(self, x: TensorLike, position: TensorLike = 0) -> Tensor:
        x = floats(x, "SinusoidalPositions", least=2)
        width = known(x, -1, "SinusoidalPositions")
        rates = [self.base ** (-2 * i / width) for i in range((width + 1) // 2)]
        time = f.expand_dims(_places(x.shape[-2], position).astype(x.dtype.wide), axis=1)
        angle = time * creation.asarray(rates, dtype=x.dtype.wide)
        waves = stack([f.sin(angle), f.cos(angle)], axis=-1)
        table = f.reshape(waves, (x.shape[-2], 2 * len(rates)))
        return x + table[:, :width].astype(x.dtype)


class LearnedPositions(Layer):
    """x + weight[:time] over (..., time, width): a learned row for each of `positions` places.

    `weight` is (positions, width), normal with standard deviation 0.02 by default. A longer x is a
    ShapeError, or where its length is not known before, a FeedError when called. x may begin at
    another `position`, an integer or a Tensor of one.
    """

    def __init__(
        self, positions: int, weight_init: object = None, *, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.positions = count("LearnedPositions: positions", positions)
        self.weight_init = init.normal(0.0, 0.02) if weight_init is None else weight_init

    def forward(self, x: TensorLike, position: TensorLike = 0) -> Tensor:
        x = floats(x, "LearnedPositions", least=2)
        width, time = known(x, -1, "LearnedPositions"), x.shape[-2]
        weight = self.parameter("weight", (self.positions, width), self.weight_init)
        if isinstance(time, int):
            if time > self.positions:
                raise ShapeError(f"LearnedPositions has {self.positions} places, not {x.type}")
            if isinstance(position, int) and position == 0:
                return x + weight[:time]
        at = _places(time, position)
        return x + Tensor(apply(Take(0, 1, None), weight.node, at.node))


def _places(time: Dim, position: TensorLike) -> Tensor:
    """The places of `time` steps from a position on."""
    at = Tensor(as_node(position))
    if at.ndim or not at.dtype.is_integer:
        raise DTypeError(f"a position is one integer, not {at.type}")
    return creation.arange(time) + at
