"""What transformers are made of: attention by several heads, and the block around it."""

from __future__ import annotations

from chainrule.errors import DTypeError, ShapeError
from chainrule.ir.size import Dim
from chainrule.lang import functions as f
from chainrule.lang import normalization, random
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.activations import Activation
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import Dropout, activated, checked, count, floats, known
from chainrule.nn.layers.norm import LayerNorm
from chainrule.ops.attention import Attention


class _Projection(Layer):
    """x @ weight + bias, of as many columns as its caller says."""

    def __init__(self, use_bias: bool, weight_init: object) -> None:
        super().__init__()
        self.use_bias, self.weight_init = use_bias, weight_init

    def forward(self, x: Tensor, units: int) -> Tensor:
        z = x @ self.parameter("weight", (known(x, -1, "a projection"), units), self.weight_init)
        return z + self.parameter("bias", (units,)) if self.use_bias else z


class MultiHeadAttention(Layer):
    """Attention by `heads` heads, each on its part of the width (Vaswani et al., arXiv:1706.03762).

    Of query (batch, n, width), and key and value (batch, m, ...), by default the query and the key,
    gives (batch, n, width): `output` of the heads' attention(query·W, key·W, value·W), beside one
    another. The four matrices are the layers `query`, `key`, `value` and `output`, PyTorch's
    transposed. With `causal` query i sees keys 0 to i. A `mask` of bools, (batch, m) or
    (batch, n, m), is True where a key may be seen; that of PyTorch's layer is the other way round.
    `dropout` is that of the weights. Raises ShapeError and DTypeError.
    """

    kind = "attention"

    def __init__(
        self,
        heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        use_bias: bool = True,
        weight_init: object = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.heads, self.causal = count("MultiHeadAttention: heads", heads), bool(causal)
        self.dropout = Dropout(dropout).rate
        self.query, self.key, self.value, self.output = (
            _Projection(bool(use_bias), weight_init) for _ in range(4)
        )

    def forward(
        self,
        query: TensorLike,
        key: TensorLike | None = None,
        value: TensorLike | None = None,
        mask: TensorLike | None = None,
    ) -> Tensor:
        query = floats(query, "MultiHeadAttention", least=3, most=3)
        key = query if key is None else floats(key, "MultiHeadAttention", least=3, most=3)
        value = key if value is None else floats(value, "MultiHeadAttention", least=3, most=3)
        width = known(query, 2, "MultiHeadAttention")
        if width % self.heads:
            raise ShapeError(
                f"MultiHeadAttention: {query.type} is {width} wide, not {self.heads} heads' width",
                f"a multiple of {self.heads} parts evenly",
            )
        q, k, v = (
            self._parted(layer(x, width)).named(letter)
            for letter, layer, x in (
                ("q", self.query, query),
                ("k", self.key, key),
                ("v", self.value, value),
            )
        )
        seen = None if mask is None else _seen(mask, query.shape[1], key)
        if self.dropout:
            h = self._with_dropout(q, k, v, seen)
        else:
            h = normalization.attention(q, k, v, self.causal, seen)
        together = f.permute_dims(h, (0, 2, 1, 3))
        out: Tensor = self.output(f.reshape(together, query.shape), width)
        return out

    def _parted(self, x: Tensor) -> Tensor:
        """(batch, time, width) as (batch, heads, time, width / heads)."""
        batch, time, width = x.shape
        assert isinstance(width, int)
        parts = f.reshape(x, (batch, time, self.heads, width // self.heads))
        return f.permute_dims(parts, (0, 2, 1, 3))

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        shape = (*q.shape[:-1], k.shape[-2])
        masks = [] if seen is None else [f.broadcast_to(seen, shape).node]
        weights = Attention(self.causal).weights(q.node, k.node, v.node, *masks)
        return random.dropout(Tensor(weights), self.dropout) @ v


def _seen(mask: TensorLike, queries: Dim, key: Tensor) -> Tensor:
    """A mask for every head: (batch, 1, n or 1, m)."""
    seen = Tensor(as_node(mask))
    if not seen.dtype.is_bool:
        raise DTypeError(
            f"MultiHeadAttention takes a mask of bools, True where a key is seen, not {seen.type}",
            "compare: ids != 0",
        )
    batch, keys = key.shape[:2]
    if seen.shape == (batch, keys):
        seen = f.expand_dims(seen, axis=1)
    elif seen.shape != (batch, queries, keys):
        raise ShapeError(
            f"MultiHeadAttention takes a mask (batch, keys) or (batch, queries, keys), "
            f"not {seen.type}: keys are {key.type}"
        )
    return f.expand_dims(seen, axis=1)


class TransformerBlock(Layer):
    """Attention, then two dense layers, each added to what it works on, with layer norms.

    By default the norms come first: x + attention(norm1(x)), then of that x + feed(norm2(x)), where
    feed is down(activation(up(x))) (Xiong et al., arXiv:2002.04745); with `norm_first=False` after
    each sum, as in Vaswani et al. (arXiv:1706.03762). `hidden` is the width between `up` and
    `down`, by default four times that of x (batch, time, width). `dropout` is that of attention's
    weights, of what is added and of what `down` reads; `causal` and `mask` are as in
    MultiHeadAttention. The same as PyTorch's TransformerEncoderLayer.
    """

    kind = "block"

    def __init__(
        self,
        heads: int,
        hidden: int | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        causal: bool = False,
        norm_first: bool = True,
        use_bias: bool = True,
        weight_init: object = None,
        eps: float = 1e-5,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.hidden = None if hidden is None else count("TransformerBlock: hidden", hidden)
        self.activation = checked(activation, "TransformerBlock")
        self.norm_first, self.dropout = bool(norm_first), Dropout(dropout).rate
        self.norm1, self.norm2 = LayerNorm(eps, shift=use_bias), LayerNorm(eps, shift=use_bias)
        self.attention = MultiHeadAttention(heads, causal, dropout, use_bias, weight_init)
        self.up, self.down = (_Projection(bool(use_bias), weight_init) for _ in range(2))

    def forward(self, x: TensorLike, mask: TensorLike | None = None) -> Tensor:
        h = floats(x, "TransformerBlock", least=3, most=3)
        if self.norm_first:
            h = h + self._attend(self.norm1(h), mask)
            return h + self._feed(self.norm2(h))
        h = self.norm1(h + self._attend(h, mask))
        out: Tensor = self.norm2(h + self._feed(h))
        return out

    def _attend(self, x: Tensor, mask: TensorLike | None) -> Tensor:
        return random.dropout(self.attention(x, mask=mask), self.dropout)

    def _feed(self, x: Tensor) -> Tensor:
        width = known(x, 2, "TransformerBlock")
        h = activated(self.activation, self.up(x, self.hidden or 4 * width))
        return random.dropout(self.down(random.dropout(h, self.dropout), width), self.dropout)
