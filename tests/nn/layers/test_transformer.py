"""Attention by heads and the transformer's block, against NumPy and PyTorch; a small GPT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import CompileError, DTypeError, FeedError, ShapeError
from chainrule.nn import (
    Dense,
    Embedding,
    Layer,
    LayerNorm,
    LearnedPositions,
    MultiHeadAttention,
    SinusoidalPositions,
    TransformerBlock,
)

Array = np.ndarray[Any, Any]
#: float64: sums of some tens of terms; float32 the same, with what norms cancel
TOLERANCE = {"float64": 1e-9, "float32": 5e-5}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]], bool)


def data(name: str = "x", time: int = 5, width: int = 6, dtype: str = "float64") -> Any:
    v = np.random.default_rng(time + width).normal(size=(3, time, width)).astype(dtype)
    return cr.input(name, ("batch", time, width), dtype=dtype), v


def attention(h: Any, heads: int, q: Array, k: Array, v: Array, allowed: Array) -> Array:
    """Attention by heads, one head at a time."""

    def dense(layer: str, x: Array) -> Array:
        return np.asarray(x @ h[f"attention1.{layer}.weight"] + h[f"attention1.{layer}.bias"])

    q, k, v = dense("query", q), dense("key", k), dense("value", v)
    width = q.shape[-1] // heads
    outs = []
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        s = q[..., part] @ np.swapaxes(k[..., part], 1, 2) / np.sqrt(width)
        e = np.where(allowed, np.exp(s - s.max(axis=-1, keepdims=True)), 0)
        outs.append(e / e.sum(axis=-1, keepdims=True) @ v[..., part])
    return dense("output", np.concatenate(outs, axis=-1))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_is_its_formula(held: Any, heads: int, causal: bool, masked: bool) -> None:
    x, v = data()
    m = cr.input("m", ("batch", 5), dtype="bool") if masked else None
    layer = MultiHeadAttention(heads, causal)
    h = held(layer(x, mask=m), layer, x=v, **({"m": MASK} if masked else {}))
    allowed = MASK[:, None, :] if masked else np.ones((3, 1, 5), bool)
    allowed = allowed & (np.tri(5) > 0) if causal else allowed
    h.to_numpy(attention(h.values, heads, v, v, v, allowed), 1e-12)


def test_attention_to_another_sequence(held: Any) -> None:
    x, v = data()
    z, w = data("z", 4, 3)
    allowed = np.random.default_rng(0).random((3, 5, 4)) < 0.6
    allowed[..., 0] = True
    m = cr.input("m", ("batch", 5, 4), dtype="bool")
    layer = MultiHeadAttention(2)
    h = held(layer(x, z, mask=m), layer, x=v, z=w, m=allowed)
    h.to_numpy(attention(h.values, 2, v, w, w, allowed), 1e-12)


def in_proj(t: Any, prefix: str) -> dict[str, Any]:
    """PyTorch's parameters of attention, from ours by name."""
    torch = pytest.importorskip("torch")
    three = [f"{prefix}.{n}" for n in ("query", "key", "value")]
    return {
        "in_proj_weight": torch.cat([t[f"{n}.weight"].T for n in three]),
        "in_proj_bias": torch.cat([t[f"{n}.bias"] for n in three]),
        "out_proj.weight": t[f"{prefix}.output.weight"].T,
        "out_proj.bias": t[f"{prefix}.output.bias"],
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_pytorchs(held: Any, masked: bool, causal: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x, v = data(dtype=dtype)
    m = cr.input("m", ("batch", 5), dtype="bool") if masked else None
    layer = MultiHeadAttention(2, causal)
    h = held(layer(x, mask=m), layer, x=v, **({"m": MASK} if masked else {}))
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=getattr(torch, dtype))
    options = {
        "key_padding_mask": torch.tensor(~MASK) if masked else None,
        "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None,
        "need_weights": False,
    }

    def reference(t: Any) -> Any:
        args = (t["x"], t["x"], t["x"])
        return torch.func.functional_call(theirs, in_proj(t, "attention1"), args, options)[0]

    h.to_torch(reference, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("activation", "hidden"), [("relu", 7), ("gelu", None)])
def test_a_block_is_pytorchs(
    held: Any, activation: str, hidden: int | None, norm_first: bool, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    x, v = data(dtype=dtype)
    m = cr.input("m", ("batch", 5), dtype="bool")
    layer = TransformerBlock(3, hidden, activation, norm_first=norm_first)
    h = held(layer(x, mask=m), layer, x=v, m=MASK)
    theirs = torch.nn.TransformerEncoderLayer(
        6,
        3,
        hidden or 24,
        dropout=0.0,
        activation=activation,
        batch_first=True,
        norm_first=norm_first,
        dtype=getattr(torch, dtype),
    )

    def reference(t: Any) -> Any:
        w = {f"self_attn.{n}": p for n, p in in_proj(t, "block1.attention").items()}
        for ours, name in (("up", "linear1"), ("down", "linear2")):
            w[f"{name}.weight"] = t[f"block1.{ours}.weight"].T
            w[f"{name}.bias"] = t[f"block1.{ours}.bias"]
        for name in ("norm1", "norm2"):
            w[f"{name}.weight"] = t[f"block1.{name}.scale"]
            w[f"{name}.bias"] = t[f"block1.{name}.shift"]
        options = {"src_key_padding_mask": torch.tensor(~MASK)}
        return torch.func.functional_call(theirs, w, (t["x"],), options)

    h.to_torch(reference, TOLERANCE[dtype])


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_is_made_of_its_layers(held: Any, norm_first: bool) -> None:
    x, v = data()
    layer = TransformerBlock(2, 8, "tanh", causal=True, norm_first=norm_first)
    h = held(layer(x), layer, x=v)
    t = {n.removeprefix("block1."): a for n, a in h.values.items()}
    near = {n.replace("attention.", "attention1."): a for n, a in t.items()}

    def norm(n: int, a: Array) -> Array:
        a = a - a.mean(axis=-1, keepdims=True)
        a = a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + 1e-5)
        return np.asarray(a * t[f"norm{n}.scale"] + t[f"norm{n}.shift"])

    def attend(a: Array) -> Array:
        return attention(near, 2, a, a, a, np.tri(5) > 0)

    def feed(a: Array) -> Array:
        hidden = np.tanh(a @ t["up.weight"] + t["up.bias"])
        return np.asarray(hidden @ t["down.weight"] + t["down.bias"])

    if norm_first:
        y = v + attend(norm(1, v))
        want = y + feed(norm(2, y))
    else:
        y = norm(1, v + attend(v))
        want = norm(2, y + feed(y))
    h.to_numpy(want, 1e-12)


def test_dropout_is_off_in_inference_and_on_in_training(held: Any) -> None:
    x, v = data()
    plain, dropped = TransformerBlock(2, 8), TransformerBlock(2, 8, dropout=0.5)
    h = held(plain(x), plain, x=v)
    (want,), _ = h.run()
    y = dropped(x)
    feeds = {n.replace("block1", "block2"): a for n, a in h.values.items() if n in plain.parameters}
    fn, trained = cr.compile(y), cr.compile(y, training=True)
    np.testing.assert_allclose(fn(x=v, **feeds), want, rtol=1e-12)
    assert not np.allclose(trained(x=v, **feeds), want)


def test_attention_with_a_cache_is_attention_without(held: Any) -> None:
    """Three positions at once, then one, then one: the formula's rows, over the whole sequence."""
    x, v = data(time=5)
    layer = MultiHeadAttention(2, causal=True)
    layer(x)
    cache, outs = layer.cache(x.shape[0], 7), []
    for first, end in ((0, 3), (3, 4), (4, 5)):
        out, cache = layer(x[:, first:end], cache=cache, position=first)
        outs.append(out)
    h = held(cr.concat(outs, axis=1), layer, x=v)
    h.to_numpy(attention(h.values, 2, v, v, v, np.tri(5) > 0), 1e-12)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_with_a_cache_in_a_loop(norm_first: bool, masked: bool) -> None:
    """One compiled loop, a position a step, gives what all positions at once give."""
    x, v = data(time=5)
    mask = cr.input("mask", ("batch", 5), dtype="bool") if masked else None
    block = TransformerBlock(2, 8, causal=True, norm_first=norm_first)
    whole = block(x, mask)

    def step(carry: Any, now: cr.Tensor) -> Any:
        cache, position = carry
        out, cache = block(cr.expand_dims(now, axis=1), mask=mask, cache=cache, position=position)
        return (cache, position + 1), out[:, 0]

    begin = (block.cache(x.shape[0], 5), cr.constant(0, dtype="int32"))
    _, outs = cr.scan(step, begin, cr.permute_dims(x, (1, 0, 2)))
    fn = cr.compile([whole, cr.permute_dims(outs, (1, 0, 2))])
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=t.shape) for n, t in block.parameters.items()}
    want, got = fn(x=v, **({"mask": MASK} if masked else {}), **feeds)
    # the same sums in the same order, of which those with what is not yet seen add zeros
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [4, "time"])
def test_positions_go_on_where_they_are_told(length: Any) -> None:
    x, at = cr.input("x", (2, length, 6)), cr.input("at", (), dtype="int32")
    learned, waves = LearnedPositions(7), SinusoidalPositions()
    fn = cr.compile([learned(x, at), waves(x, at), waves(cr.zeros((1, 7, 6)))])
    v = np.random.default_rng(1).normal(size=(2, 4, 6)).astype("f4")
    w = np.random.default_rng(2).normal(size=(7, 6)).astype("f4")
    got = fn(x=v, at=3, **{"learned_positions1.weight": w})
    np.testing.assert_array_equal(got[0], v + w[3:7])
    np.testing.assert_array_equal(got[1], v + got[2][0, 3:7])
    with pytest.raises(FeedError, match=r"outside \[0, 7\)(.|\n)*cr.clip\(x, 0, 6\)"):
        fn(x=v, at=4, **{"learned_positions1.weight": w})
    with pytest.raises(DTypeError, match="a position is one integer"):
        waves(x, 0.5)


def test_a_cache_that_is_full_is_refused() -> None:
    x, at = cr.input("x", (1, 1, 6), dtype="float64"), cr.input("at", (), dtype="int32")
    layer = MultiHeadAttention(2, causal=True)
    with pytest.raises(CompileError, match="MultiHeadAttention has no width before its first call"):
        layer.cache(1, 4)
    layer(x)
    with pytest.raises(ShapeError, match="a cache for 0 positions has no room for 1"):
        layer(x, cache=layer.cache(1, 0))
    out, cache = layer(x, cache=layer.cache(1, 4), position=at)
    fn = cr.compile([out, *cache])
    feeds = {n: np.ones(t.shape) for n, t in layer.parameters.items()}
    keys = fn(x=np.ones((1, 1, 6)), at=3, **feeds)[1]
    assert (keys[..., 3] == 7).all()
    assert not keys[..., :3].any()
    for wrong in (4, -1):
        with pytest.raises(FeedError, match=r"outside \[0, 4\)"):
            fn(x=np.ones((1, 1, 6)), at=wrong, **feeds)


class GPT(Layer):
    """Tokens in, logits of the next token out, one embedding for both."""

    def __init__(self, tokens: int, width: int, length: int, blocks: int, heads: int) -> None:
        self.tokens = Embedding(tokens, width, weight_init=cr.init.normal(std=0.1))
        self.places = LearnedPositions(length)
        self.blocks = [TransformerBlock(heads, causal=True) for _ in range(blocks)]
        self.norm = LayerNorm()

    def forward(self, ids: cr.Tensor) -> cr.Tensor:
        h = self.places(self.tokens(ids))
        for block in self.blocks:
            h = block(h)
        return self.tokens.attend(self.norm(h))


def test_a_small_gpt_learns_to_repeat() -> None:
    """Rows that repeat three tokens: from the fourth on, each is known from the third before."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.integers(0, 8, (512, 3)), (1, 4)).astype(np.int32)
    x = cr.input("x", ("n", 11), dtype="int32")
    y = cr.input("y", ("n", 11), dtype="int32")
    net = GPT(8, 32, 11, 2, 4)
    logits = net(x)
    assert "gpt1.blocks2.attention.query.weight" in net.parameters
    assert sum("tokens" in n for n in net.parameters) == 1
    loss = cr.losses.cross_entropy(logits[:, 2:], y[:, 2:])
    step = cr.training_step(loss, cr.optim.Adam(3e-3), outputs=logits)
    losses = step.run(x=rows[:, :-1], y=rows[:, 1:], batch_size=64, epochs=30)
    assert losses[0] > 1.8  # log 8 = 2.08 is a guess
    assert losses[-8:].mean() < 0.1
    guess = np.asarray(step.predict(x=rows[:64, :-1])).argmax(axis=-1)
    assert (guess[:, 2:] == rows[:64, 3:]).mean() > 0.97


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: MultiHeadAttention(0), ShapeError, "heads"),
        (lambda x: MultiHeadAttention(2, dropout=2.0), ShapeError, "rate"),
        (lambda x: MultiHeadAttention(4)(x), ShapeError, "6 wide, not 4 heads"),
        (lambda x: MultiHeadAttention(2)(x[0]), ShapeError, r"its axes are \(batch, time, width\)"),
        (lambda x: MultiHeadAttention(2)(x, mask=x[:, :, 0]), DTypeError, "mask of bools"),
        (lambda x: MultiHeadAttention(2)(x, mask=x[:, 0] > 0), ShapeError, r"\(batch, keys\)"),
        (lambda x: MultiHeadAttention(2)(x, cache=(x, x)), ShapeError, "cache is causal"),
        (lambda x: TransformerBlock(2, causal=True)(x, cache=x), ShapeError, "a pair of keys"),
        (
            lambda x: MultiHeadAttention(2, causal=True)(x, cache=(x, x)),
            ShapeError,
            r"f64\[batch, 2, 3, length\] and f64\[batch, 2, length, 3\]",
        ),
        (lambda x: TransformerBlock(2, 0), ShapeError, "hidden"),
        (lambda x: TransformerBlock(2)(Dense(6)(x[0])), ShapeError, "TransformerBlock takes"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(data()[0])


def test_equal_blocks_share_their_code() -> None:
    """A net twice as deep has the same native functions, and calls them more often."""
    reports = []
    for blocks in (2, 4):
        x = cr.input("x", ("n", 11), dtype="int32")
        net = GPT(8, 32, 11, blocks, 4)
        loss = cr.losses.cross_entropy(net(x)[:, :-1], x[:, 1:])
        reports.append(cr.training_step(loss, cr.optim.AdamW(1e-3), threads=1).report())
    small, large = reports
    assert len(large.kernels) > 1.5 * len(small.kernels)
    assert large.functions == small.functions
    assert large.code_size < 1.25 * small.code_size  # the calls, a few bytes for each operand
