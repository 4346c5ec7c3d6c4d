"""Convolution, pooling, embeddings and positions against NumPy and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import DTypeError, FeedError, ShapeError
from chainrule.nn import (
    AvgPool,
    Conv1D,
    Conv2D,
    Embedding,
    GlobalAvgPool,
    GlobalMaxPool,
    LearnedPositions,
    MaxPool,
    SinusoidalPositions,
)

Array = np.ndarray[Any, Any]
#: float64: sums of some tens of products; float32 likewise
TOLERANCE = {"float64": 1e-9, "float32": 2e-5}


def given(*sizes: int, dtype: str = "float64") -> tuple[cr.Tensor, Array]:
    v = np.random.default_rng(sum(sizes)).normal(size=(3, *sizes)).astype(dtype)
    return cr.input("x", ("n", *sizes), dtype=dtype), v


def correlate(x: Array, k: Array, stride: int, pad: tuple[int, int], dilation: int) -> Array:
    """Cross-correlation by its definition, over one or two axes."""
    axes = k.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[pad] * axes])
    reach = [dilation * (n - 1) + 1 for n in k.shape[2:]]
    out = [(n - r) // stride + 1 for n, r in zip(x.shape[2:], reach, strict=True)]
    y = np.zeros((x.shape[0], k.shape[0], *out))
    for at in np.ndindex(*out):
        cut = tuple(
            slice(stride * i, stride * i + r, dilation) for i, r in zip(at, reach, strict=True)
        )
        window = x[(slice(None), slice(None), *cut)].reshape(x.shape[0], -1)
        y[(slice(None), slice(None), *at)] = window @ k.reshape(k.shape[0], -1).T
    return y


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv1d_is_its_definition(held: Any, kernel: int, padding: Any, dilation: int) -> None:
    x, v = given(2, 9)
    layer = Conv1D(3, kernel, padding=padding, dilation=dilation)
    total = dilation * (kernel - 1)
    ends = {"same": (total // 2, total - total // 2), "valid": (0, 0)}
    pad = ends[padding] if isinstance(padding, str) else (padding, padding)
    h = held(layer(x), layer, x=v)
    want = correlate(v, h.values["conv1d1.weight"], 1, pad, dilation)
    assert padding != "same" or want.shape[2] == 9
    h.to_numpy(want + h.values["conv1d1.bias"][:, None], 1e-12)


def test_conv2d_is_its_definition(held: Any) -> None:
    x, v = given(2, 7, 6)
    layer = Conv2D(3, (3, 2), stride=2, padding=1, activation="tanh", use_bias=False)
    h = held(layer(x), layer, x=v)
    assert list(layer.parameters) == ["conv2d1.weight"]
    h.to_numpy(np.tanh(correlate(v, h.values["conv2d1.weight"], 2, (1, 1), 1)), 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel": 3, "padding": "same", "dilation": (1, 2)},
        {"kernel": (4, 2), "padding": "same"},
        {"kernel": 2, "groups": 2, "stride": 3},
        {"kernel": (1, 3), "groups": 4, "dilation": 2, "padding": 2},
        {"kernel": 7, "padding": 3, "stride": 2},
    ],
)
def test_conv2d_is_pytorchs(held: Any, options: dict[str, Any], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x, v = given(4, 8, 9, dtype=dtype)
    options = {"kernel": 3, **options}
    layer = Conv2D(8, **options)
    y = layer(x)
    del options["kernel"]

    def reference(t: Any) -> Any:
        return torch.nn.functional.conv2d(t["x"], t["conv2d1.weight"], t["conv2d1.bias"], **options)

    held(y, layer, x=v).to_torch(reference, TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 2}, {"groups": 2, "dilation": 3}])
def test_conv1d_is_pytorchs(held: Any, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    x, v = given(4, 11)
    layer = Conv1D(6, 3, **options)

    def reference(t: Any) -> Any:
        return torch.nn.functional.conv1d(t["x"], t["conv1d1.weight"], t["conv1d1.bias"], **options)

    held(layer(x), layer, x=v).to_torch(reference, 1e-9)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, None, 0), (3, 2, 1), ((2, 3), 1, 0)])
def test_pools_are_pytorchs(held: Any, kernel: Any, stride: Any, padding: int) -> None:
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x, v = given(2, 7, 6)
    for layer, theirs in ((MaxPool, f.max_pool2d), (AvgPool, f.avg_pool2d)):
        pool = layer(kernel, stride, padding)
        held(pool(x), pool, x=v).to_torch(lambda t: theirs(t["x"], kernel, stride, padding), 1e-12)  # noqa: B023


def test_pools_are_what_they_say(held: Any) -> None:
    x, v = given(2, 6)
    cut = v.reshape(3, 2, 3, 2)
    for layer, want in (
        (MaxPool(), cut.max(axis=-1)),
        (AvgPool(), cut.mean(axis=-1)),
        (GlobalMaxPool(), v.max(axis=-1)),
        (GlobalAvgPool(), v.mean(axis=-1)),
    ):
        held(layer(x), layer, x=v).to_numpy(want, 1e-14)


def test_sizes_of_images_may_be_known_only_when_called() -> None:
    x = cr.input("x", ("n", 2, "h", "w"))
    layer = Conv2D(3, 3, padding="same")
    fn = cr.compile(GlobalAvgPool()(layer(x)))
    feeds = {n: np.ones(layer[n].shape, np.float32) for n in layer.parameters}  # type: ignore[arg-type]
    assert fn(x=np.ones((2, 2, 5, 4), np.float32), **feeds).shape == (2, 3)


# tokens and positions


def test_an_embedding_gives_rows(held: Any) -> None:
    ids = cr.input("ids", ("n", 4), dtype="int32")
    at = np.array([[0, 2, 2, 1], [4, 4, 0, 3]], np.int32)
    layer = Embedding(5, 3)
    h = held(layer(ids), layer, ids=at)
    assert layer["weight"].dtype == cr.float32
    h.to_numpy(h.values["embedding1.weight"][at], 0)


def test_an_embedding_is_pytorchs(held: Any) -> None:
    torch = pytest.importorskip("torch")
    ids = cr.input("ids", ("n", 4), dtype="int64")
    at = np.array([[0, 2, 2, 1], [4, 4, 0, 3]])
    for padding in (None, 2):
        layer = Embedding(5, 3, padding_idx=padding)
        h = held(layer(ids), layer, ids=at)
        if padding is not None:
            h.values[f"{layer.name}.weight"][padding] = 0

        def reference(t: Any, layer: Any = layer, padding: Any = padding) -> Any:
            f = torch.nn.functional
            return f.embedding(t["ids"], t[f"{layer.name}.weight"], padding_idx=padding)

        h.to_torch(reference, 1e-7)


def test_padding_is_zeros_and_learns_nothing(held: Any) -> None:
    ids = cr.input("ids", ("n",), dtype="int32")
    layer = Embedding(4, 2, padding_idx=0)
    h = held(layer(ids), layer, ids=np.array([0, 3, 0], np.int32))
    (got,), slopes = h.run()
    assert (got[[0, 2]] == 0).all()
    assert (slopes["embedding1.weight"][0] == 0).all()
    assert (slopes["embedding1.weight"][3] != 0).all()


@pytest.mark.parametrize("bad", [-1, 5])
def test_a_token_that_is_none_is_refused(bad: int) -> None:
    ids = cr.input("ids", ("n",), dtype="int32")
    layer = Embedding(5, 2)
    fn = cr.compile(layer(ids))
    with pytest.raises(FeedError, match=str(bad)):
        fn(**{"ids": np.array([0, bad]), "embedding1.weight": np.ones((5, 2))})


def test_input_and_output_may_share_an_embedding(held: Any) -> None:
    ids = cr.input("ids", ("n",), dtype="int32")
    layer = Embedding(5, 3)
    h = held(layer.attend(layer(ids)), layer, ids=np.array([1, 4], np.int32))
    assert list(layer.parameters) == ["embedding1.weight"]
    w = h.values["embedding1.weight"]
    h.to_numpy(w[[1, 4]] @ w.T, 1e-6)  # float32


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("length", [6, "t"])
def test_sinusoidal_positions_are_their_formula(held: Any, width: int, length: Any) -> None:
    x = cr.input("x", ("n", length, width), dtype="float64")
    v = np.random.default_rng(0).normal(size=(2, 6, width))
    table = np.zeros((6, width))
    for t in range(6):
        for j in range(width):
            angle = t / 10000 ** (2 * (j // 2) / width)
            table[t, j] = np.cos(angle) if j % 2 else np.sin(angle)
    layer = SinusoidalPositions()
    held(layer(x), layer, x=v).to_numpy(v + table, 1e-12)


@pytest.mark.parametrize("length", [6, "t"])
def test_learned_positions_are_rows(held: Any, length: Any) -> None:
    x = cr.input("x", ("n", length, 3), dtype="float64")
    v = np.random.default_rng(0).normal(size=(2, 6, 3))
    layer = LearnedPositions(8)
    h = held(layer(x), layer, x=v)
    h.to_numpy(v + h.values["learned_positions1.weight"][:6], 1e-15)


def test_there_are_only_so_many_positions() -> None:
    with pytest.raises(ShapeError, match="has 4 places"):
        LearnedPositions(4)(cr.input("x", ("n", 5, 2)))
    fn = cr.compile(LearnedPositions(4)(cr.input("x", ("n", "t", 2))))
    with pytest.raises(FeedError, match="4"):
        fn(**{"x": np.ones((1, 5, 2)), "learned_positions1.weight": np.ones((4, 2))})


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Conv2D(0, 3), ShapeError, "Conv2D: filters"),
        (lambda: Conv2D(3, 3, groups=2), ShapeError, "do not part"),
        (lambda: Conv2D(3, (3, 3, 3)), ShapeError, "kernel is an int or 2"),
        (lambda: Conv2D(3, 3, padding="sane"), ShapeError, '"same", "valid"'),
        (lambda: Conv2D(3, 3, padding=-1), ShapeError, "padding"),
        (lambda: Conv2D(3, 3, 2, "same"), ShapeError, "stride 1"),
        (lambda: Conv2D(4, 3, groups=4)(cr.input("x", ("n", 3, 5, 5))), ShapeError, "3 channels"),
        (lambda: Conv2D(3, 3)(cr.input("x", ("n", 3, 5))), ShapeError, "Conv2D takes .* rank 4"),
        (lambda: Conv1D(3, 9)(cr.input("x", ("n", 3, 5))), ShapeError, "in layer conv1d1"),
        (lambda: MaxPool(0), ShapeError, "MaxPool: kernel is an int of at least 1, not 0"),
        (lambda: AvgPool((2, 0)), ShapeError, "AvgPool: kernel"),
        (lambda: MaxPool(2, (1, 0)), ShapeError, "MaxPool: stride"),
        (lambda: MaxPool(2, padding=-1), ShapeError, "MaxPool: padding"),
        (lambda: MaxPool(9)(cr.input("x", ("n", 3, 5))), ShapeError, "in layer max_pool1"),
        (lambda: GlobalAvgPool()(cr.input("x", ("n", 3))), ShapeError, "rank at least 3"),
        (lambda: Embedding(0, 3), ShapeError, "tokens"),
        (lambda: Embedding(5, 3, padding_idx=5), ShapeError, "padding_idx is one of 0 to 4"),
        (lambda: Embedding(5, 3)(cr.input("x", ("n",))), DTypeError, "integers"),
        (lambda: SinusoidalPositions(0), ShapeError, "base"),
        (lambda: SinusoidalPositions()(cr.input("x", (3,))), ShapeError, "rank"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
