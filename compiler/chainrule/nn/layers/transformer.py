"""What transformers are made of: attention by several heads, and the block around it."""

from __future__ import annotations

from typing import Any

from chainrule.errors import CompileError, DTypeError, ShapeError
from chainrule.ir.node import apply
from chainrule.ir.size import Dim, Size
from chainrule.lang import creation, normalization, random
from chainrule.lang import functions as f
from chainrule.lang.arguments import flag
from chainrule.lang.dynamic import dynamic_update_slice
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.activations import Activation
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import Dropout, activated, checked, count, floats, known
from chainrule.nn.layers.norm import LayerNorm
from chainrule.ops.attention import Attention
from chainrule.ops.index import Take

#: keys and values of what came before
Cache = tuple[Tensor, Tensor]
#: what all that is attended to is
_AXES = "(batch, time, width)"


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

    With a `cache`, the keys and values of what came before, the query holds what comes next, from
    `position` on, an integer or a Tensor of one: the result is a pair, of the output and the cache
    with these keys and values put in. An empty one is `cache(batch, length)`.
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
        self.heads = count("MultiHeadAttention: heads", heads)
        self.causal = flag("MultiHeadAttention: causal", causal)
        use_bias = flag("MultiHeadAttention: use_bias", use_bias)
        self.dropout = Dropout(dropout).rate
        self.query, self.key, self.value, self.output = (
            _Projection(use_bias, weight_init) for _ in range(4)
        )

    def forward(
        self,
        query: TensorLike,
        key: TensorLike | None = None,
        value: TensorLike | None = None,
        mask: TensorLike | None = None,
        cache: Cache | None = None,
        position: TensorLike = 0,
    ) -> Any:
        query = floats(query, "MultiHeadAttention", 3, _AXES)
        if cache is not None and (key is not None or not self.causal):
            raise ShapeError(
                "MultiHeadAttention with a cache is causal, and keys are the query's own",
                "MultiHeadAttention(heads, causal=True)(x, cache=cache, position=n)",
            )
        key = query if key is None else floats(key, "MultiHeadAttention", 3, _AXES)
        value = key if value is None else floats(value, "MultiHeadAttention", 3, _AXES)
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
        causal, past = self.causal, None
        if cache is not None:
            cache, past = _extended(cache, k, v, position)
            causal, k, v = False, cache[0].mT, cache[1]
        seen = None if mask is None else _seen(mask, query.shape[1], (key.shape[0], k.shape[2]))
        if past is not None:
            seen = past if seen is None else seen & past
        if self.dropout:
            h = self._with_dropout(q, k, v, causal, seen)
        else:
            h = normalization.attention(q, k, v, causal, seen)
        together = f.permute_dims(h, (0, 2, 1, 3))
        out: Tensor = self.output(f.reshape(together, query.shape), width)
        return out if cache is None else (out, cache)

    def cache(self, batch: Dim, length: Dim) -> Cache:
        """An empty cache, keys and values, for `length` positions of so many rows.

        Keys are zeros (batch, heads, width / heads, length), one beside another for a query to meet
        many at a time, values (batch, heads, length, width / heads). Raises CompileError before the
        first call, when the width is not known.
        """
        if not self.query.built:
            raise CompileError(
                f"{self!r} has no width before its first call, so no cache",
                "call it on what it reads, then: layer.cache(batch, length)",
            )
        weight = self.query["weight"]
        size = weight.shape[1] // self.heads
        keys, values = (
            f.zeros((batch, self.heads, *shape), dtype=weight.dtype)
            for shape in ((size, length), (length, size))
        )
        return keys, values

    def _parted(self, x: Tensor) -> Tensor:
        """(batch, time, width) as (batch, heads, time, width / heads)."""
        batch, time, width = x.shape
        assert isinstance(width, int)
        parts = f.reshape(x, (batch, time, self.heads, width // self.heads))
        return f.permute_dims(parts, (0, 2, 1, 3))

    def _with_dropout(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None
    ) -> Tensor:
        shape = (*q.shape[:-1], k.shape[-2])
        masks = [] if seen is None else [f.broadcast_to(seen, shape).node]
        weights = Attention(causal).weights(q.node, k.node, v.node, *masks)
        return random.dropout(Tensor(weights), self.dropout) @ v


def _extended(cache: Cache, k: Tensor, v: Tensor, position: TensorLike) -> tuple[Cache, Tensor]:
    """The cache with keys and values put in from a position on, and which of it each query sees.

    The position is looked up among those from which all fit, which refuses others when called.
    """
    if not isinstance(cache, (tuple, list)) or len(cache) != 2:
        raise ShapeError(f"a cache is a pair of keys and values, not {cache!r}")
    keys, values = (Tensor(as_node(t)) for t in cache)
    length = values.shape[2] if values.ndim == 4 else Size.symbol("length")
    batch, heads, new, width = k.shape
    wanted = [k.type.with_shape((batch, heads, *s)) for s in ((width, length), (length, width))]
    if [keys.type, values.type] != wanted:
        shown = " and ".join(map(str, wanted))
        raise ShapeError(f"a cache holds {shown}, not {keys.type} and {values.type}")
    if isinstance(length, int) and isinstance(new, int) and new > length:
        raise ShapeError(f"a cache for {length} positions has no room for {new}: {k.type}")
    at = Tensor(as_node(position))
    if at.ndim or not at.dtype.is_integer:
        raise DTypeError(f"a position is one integer, not {at.type}")
    fitting = creation.arange(length - new + 1)
    at = Tensor(apply(Take(0, 0, None), fitting.node, at.node))
    keys = dynamic_update_slice(keys, k.mT, (0, 0, 0, at))
    values = dynamic_update_slice(values, v, (0, 0, at, 0))
    column, row = creation.arange(length), f.expand_dims(creation.arange(new), axis=1)
    return (keys, values), column <= at + row


def _seen(mask: TensorLike, queries: Dim, keys: tuple[Dim, Dim]) -> Tensor:
    """A mask for every head: (batch, 1, n or 1, m), for the keys (batch, m)."""
    seen = Tensor(as_node(mask))
    if not seen.dtype.is_bool:
        raise DTypeError(
            f"MultiHeadAttention takes a mask of bools, True where a key is seen, not {seen.type}",
            "compare: ids != 0",
        )
    if seen.shape == keys:
        seen = f.expand_dims(seen, axis=1)
    elif seen.shape != (keys[0], queries, keys[1]):
        raise ShapeError(
            f"MultiHeadAttention takes a mask (batch, keys) or (batch, queries, keys), "
            f"not {seen.type}: (batch, keys) is ({keys[0]}, {keys[1]})"
        )
    return f.expand_dims(seen, axis=1)


class TransformerBlock(Layer):
    """Attention, then two dense layers, each added to what it works on, with layer norms.

    By default the norms come first: x + attention(norm1(x)), then of that x + feed(norm2(x)), where
    feed is down(activation(up(x))) (Xiong et al., arXiv:2002.04745); with `norm_first=False` after
    each sum, as in Vaswani et al. (arXiv:1706.03762). `hidden` is the width between `up` and
    `down`, by default four times that of x (batch, time, width). `dropout` is that of attention's
    weights, of what is added and of what `down` reads; `causal`, `mask`, `cache` and `position` are
    as in MultiHeadAttention. The same as PyTorch's TransformerEncoderLayer.
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
        self.norm_first = flag("TransformerBlock: norm_first", norm_first)
        self.dropout = Dropout(dropout).rate
        use_bias = flag("TransformerBlock: use_bias", use_bias)
        self.norm1, self.norm2 = LayerNorm(eps, shift=use_bias), LayerNorm(eps, shift=use_bias)
        self.attention = MultiHeadAttention(heads, causal, dropout, use_bias, weight_init)
        self.up, self.down = (_Projection(use_bias, weight_init) for _ in range(2))

    def forward(
        self,
        x: TensorLike,
        mask: TensorLike | None = None,
        cache: Cache | None = None,
        position: TensorLike = 0,
    ) -> Any:
        h = floats(x, "TransformerBlock", 3, _AXES)
        read = self.norm1(h) if self.norm_first else h
        seen = self.attention(read, mask=mask, cache=cache, position=position)
        if cache is not None:
            seen, cache = seen
        h = h + random.dropout(seen, self.dropout)
        if self.norm_first:
            out = h + self._feed(self.norm2(h))
        else:
            h = self.norm1(h)
            out = self.norm2(h + self._feed(h))
        return out if cache is None else (out, cache)

    def cache(self, batch: Dim, length: Dim) -> Cache:
        """An empty cache for `length` positions of so many rows: that of its attention."""
        return self.attention.cache(batch, length)

    def _feed(self, x: Tensor) -> Tensor:
        width = known(x, 2, "TransformerBlock")
        h = activated(self.activation, self.up(x, self.hidden or 4 * width))
        return random.dropout(self.down(random.dropout(h, self.dropout), width), self.dropout)
