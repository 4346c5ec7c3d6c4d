"""What is trained: models, initial weights and data, the same arrays for every peer.

A dense layer is `x @ W + b` with parameters W0, b0, W1, b1, ...; a convolution (a correlation, as
everywhere) has kernels K0, K1, ... of shape (out, in, size, size) and biases kb0, kb1, ..., images
are (batch, channels, side, side). Cross-entropy and binary cross-entropy are means over rows, and
over all places of a sequence, mse over all elements. Adam adds epsilon outside the root, after the
correction of bias (Kingma and Ba, 2015, algorithm 1), as PyTorch and optax do; AdamW decays every
parameter.

A sequence is `xy`, one token longer than what the net reads: token t + 1 is the answer at t. The
LSTM has gates in the order input, forget, cell, output, matrices Wih and Whh, biases bih and bhh,
as PyTorch has; the GPT has the names of GPT-2 and norms before each block (epsilon 1e-5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_Shapes = dict[str, tuple[int, ...]]
#: kinds whose data are tokens
SEQUENCES = ("lstm", "gpt")
#: bytes a parameter that a step must move at the least: read and written, with its moments
_STATE_BYTES = {"sgd": 8, "momentum": 16, "adam": 24, "adamw": 24}


@dataclass(frozen=True)
class Workload:
    """A training step at fixed sizes, of a `kind` (mlp, logreg, cnn, lstm, gpt or vae) and `shape`.

    Minibatch k of `nbatch` is rows [k*batch, (k+1)*batch); `scan` is how many steps a peer may
    make in one call. What `draws` random numbers has no losses that peers could share.
    """

    name: str
    title: str
    kind: str
    batch: int
    opt: Mapping[str, Any]
    shape: Mapping[str, Any]
    quick: bool = False
    nbatch: int = 20
    scan: int = 20
    seed: int = 0
    draws: bool = field(default=False)

    def plain(self) -> dict[str, Any]:
        """The workload as data."""
        return asdict(self)

    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each dense layer that has a bias."""
        if self.kind == "vae":
            d, h, z = (self.shape[n] for n in "dhz")
            return [(d, h), (h, z), (h, z), (z, h), (h, d)]
        if self.kind == "lstm":
            return [(self.shape["hidden"], self.shape["vocab"])]
        return list(pairwise(self.shape.get("sizes") or self.shape.get("dense", ())))

    def shapes(self) -> _Shapes:
        """The shape of each parameter."""
        found: _Shapes = {}
        if self.kind == "cnn":
            for i, (inward, outward, size, _, _) in enumerate(self.shape["conv"]):
                found |= {f"K{i}": (outward, inward, size, size), f"kb{i}": (outward,)}
        if self.kind == "lstm":
            words, width, hidden = (self.shape[n] for n in ("vocab", "embed", "hidden"))
            found |= {"emb": (words, width), "Wih": (width, 4 * hidden), "bih": (4 * hidden,)}
            found |= {"Whh": (hidden, 4 * hidden), "bhh": (4 * hidden,)}
        if self.kind == "gpt":
            found |= _gpt_shapes(**self.shape)
        for i, (n, m) in enumerate(self.layers()):
            found |= {f"W{i}": (n, m), f"b{i}": (m,)}
        return found

    def params(self) -> dict[str, Array]:
        """Initial weights.

        Matrices and kernels are uniform in ±sqrt(3/inputs), so that activations keep their scale;
        what is looked up has a deviation of 1, a scale is 1, a bias 0.
        """
        random = np.random.default_rng([1, self.seed])
        made: dict[str, Array] = {}
        scales = {
            "lnfg",
            *(f"ln{k}g_{i}" for i in range(self.shape.get("layers", 0)) for k in (1, 2)),
        }
        for name, shape in self.shapes().items():
            if len(shape) == 1:
                made[name] = np.full(shape, float(name in scales), np.float32)
                continue
            looked_up = name in ("emb", "wte", "wpe")
            inputs = 1 if looked_up else math.prod(shape[1:]) if len(shape) == 4 else shape[0]
            values = random.uniform(-1, 1, shape) * np.sqrt(3 / inputs)
            made[name] = values.astype(np.float32)
        return made

    def data(self) -> dict[str, Array]:
        """All rows: a teacher's answers with noise, so that there is something to learn."""
        random = np.random.default_rng([2, self.seed])
        rows = self.nbatch * self.batch
        if self.kind in SEQUENCES:
            return {"xy": _sentences(random, rows, self._length() + 1, self.shape["vocab"])}
        if self.kind == "vae":
            width = self.shape["d"]
            patterns = random.random((10, width)) < 0.2
            flips = random.random((rows, width)) < 0.1
            flipped = patterns[random.integers(0, 10, rows)] ^ flips
            noise = random.standard_normal((rows, self.shape["z"]))
            return {"x": flipped.astype(np.float32), "eps": noise.astype(np.float32)}
        channels, side = self.shape.get("image", (self.layers()[0][0], 1))
        width, outputs = channels * side * side, self.layers()[-1][1]
        x: Array = random.standard_normal((rows, width), np.float32)
        answers = x @ random.standard_normal((width, outputs)) / np.sqrt(width)
        answers += 0.5 * random.standard_normal(answers.shape)
        if self.kind == "cnn":
            x = x.reshape(rows, channels, side, side)
        if self.shape["loss"] == "ce":
            return {"x": x, "y": np.argmax(answers, axis=1).astype(np.int32)}
        if self.shape["loss"] == "bce":
            return {"x": x, "t": (answers[:, 0] > 0).astype(np.float32)}
        return {"x": x, "t": np.tanh(answers).astype(np.float32)}

    def products(self) -> list[int]:
        """Multiply-adds of each product of the forward pass, in order."""
        dense = [self.batch * n * m for n, m in self.layers()]
        if self.kind == "cnn":
            return [*self._convolutions(), *dense]
        if self.kind not in SEQUENCES:
            return dense
        length, words = self._length(), self.shape["vocab"]
        places = self.batch * length
        if self.kind == "lstm":
            width, hidden = self.shape["embed"], self.shape["hidden"]
            return [places * (width + hidden) * 4 * hidden, places * hidden * words]
        width = self.shape["d"]
        block, attention = 12 * places * width**2, 2 * places * length * width
        return [*self.shape["layers"] * [block, attention], places * width * words]

    def _length(self) -> int:
        """Tokens that a net of sequences reads."""
        return int(self.shape["seq" if self.kind == "lstm" else "ctx"])

    def _convolutions(self) -> list[int]:
        side, found = self.shape["image"][1], []
        for inward, outward, size, padding, pooled in self.shape["conv"]:
            side += 2 * padding - size + 1
            found.append(self.batch * side**2 * inward * outward * size**2)
            side = side // 2 if pooled else side
        return found

    def flops(self) -> int:
        """Operations of the products of a step: forward, and both derivatives but that of data."""
        products = self.products()
        return 6 * sum(products) - (0 if self.kind in SEQUENCES else 2 * products[0])

    def bytes(self) -> int:
        """Bytes that a step must move at the least: parameters, moments, the minibatch."""
        count = sum(math.prod(shape) for shape in self.shapes().values())
        kind = "momentum" if self.opt.get("momentum") else self.opt["kind"]
        return _STATE_BYTES[kind] * count + 4 * self.batch * self._width()

    def _width(self) -> int:
        """Numbers in a row of the data."""
        if self.kind in SEQUENCES:
            return self._length() + 1
        channels, side = self.shape.get("image", (self.layers()[0][0], 1))
        return int(channels * side * side)


def _gpt_shapes(vocab: int, ctx: int, d: int, layers: int, heads: int) -> _Shapes:
    found: _Shapes = {"wte": (vocab, d), "wpe": (ctx, d)}
    for i in range(layers):
        for k, into in (
            (1, (("qkv", d, 3 * d), ("o", d, d))),
            (2, (("fc", d, 4 * d), ("pr", 4 * d, d))),
        ):
            found |= {f"ln{k}g_{i}": (d,), f"ln{k}b_{i}": (d,)}
            for name, n, m in into:
                found |= {f"W{name}_{i}": (n, m), f"b{name}_{i}": (m,)}
    return found | {"lnfg": (d,), "lnfb": (d,), "W0": (d, vocab)}


def _sentences(random: np.random.Generator, rows: int, length: int, words: int) -> Array:
    """Tokens, of which seven in ten follow from the one before."""
    follows = random.permutation(words)
    tokens = random.integers(0, words, (rows, length))
    bound = random.random((rows, length)) < 0.7
    for t in range(1, length):
        tokens[:, t] = np.where(bound[:, t], follows[tokens[:, t - 1]], tokens[:, t])
    return tokens.astype(np.int32)


def _sgd(rate: float, momentum: float = 0.0) -> dict[str, Any]:
    return {"kind": "sgd", "lr": rate, "momentum": momentum}


def _adam(rate: float, decay: float | None = None) -> dict[str, Any]:
    made = {"kind": "adam", "lr": rate, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    return made if decay is None else {**made, "kind": "adamw", "wd": decay}


def _mlp(sizes: list[int], act: str, loss: str = "ce", dropout: float = 0.0) -> dict[str, Any]:
    return {"sizes": sizes, "act": act, "loss": loss, "dropout": dropout}


def _cnn(image: tuple[int, int], conv: list[tuple[int, ...]], dense: list[int]) -> dict[str, Any]:
    """Each convolution is (in, out, size, padding, pooled), with ReLU and 2x2 max-pooling after."""
    return {"image": image, "conv": conv, "dense": dense, "loss": "ce"}


_WIDE = [784, 512, 256, 10]
_ALL = (
    Workload(
        "tiny", "MLP 4-16-3 tanh, SGD, batch 8", "mlp", 8,
        _sgd(0.05), _mlp([4, 16, 3], "tanh"), quick=True, nbatch=500, scan=100,
    ),
    Workload(
        "logistic", "logistic regression of 30 features, SGD, batch 32", "logreg", 32,
        _sgd(0.05), {"sizes": [30, 1], "loss": "bce"}, quick=True, nbatch=500, scan=100,
    ),
    *(
        Workload(
            f"small-{batch}", f"MLP 64-128-64-10 ReLU, Adam, batch {batch}", "mlp", batch,
            _adam(1e-3), _mlp([64, 128, 64, 10], "relu"),
            quick=batch == 32, nbatch=100, scan=100,
        )
        for batch in (1, 32, 256)
    ),
    Workload(
        "deep", "64 layers of width 32 tanh, SGD, batch 16", "mlp", 16,
        _sgd(0.01), _mlp([32] * 65, "tanh", "mse"), nbatch=100, scan=100,
    ),
    *(
        Workload(
            f"mlp-{batch}", f"MLP 784-512-256-10 ReLU, Adam, batch {batch}", "mlp", batch,
            _adam(1e-3 if batch > 1 else 1e-4), _mlp(_WIDE, "relu"), quick=batch == 32,
        )
        for batch in (1, 32, 128, 1024)
    ),
    Workload(
        "dropout", "MLP 784-512-256-10 with dropout 0.5, AdamW, batch 128", "mlp", 128,
        _adam(1e-3, 1e-2), _mlp(_WIDE, "relu", dropout=0.5), draws=True,
    ),
    Workload(
        "vae", "VAE 784-400-20-400-784, Adam, batch 128", "vae", 128,
        _adam(1e-3), {"d": 784, "h": 400, "z": 20},
    ),
    Workload(
        "lenet", "LeNet-like CNN of 1x28x28, SGD with momentum, batch 64", "cnn", 64,
        _sgd(0.01, 0.9),
        _cnn((1, 28), [(1, 6, 5, 2, True), (6, 16, 5, 0, True)], [400, 120, 84, 10]),
    ),
    Workload(
        "cnn", "CNN of 3x32x32, 32-32-64-64 kernels 3x3, Adam, batch 64", "cnn", 64,
        _adam(3e-4),
        _cnn(
            (3, 32),
            [
                (3, 32, 3, 1, False), (32, 32, 3, 1, True),
                (32, 64, 3, 1, False), (64, 64, 3, 1, True),
            ],
            [4096, 256, 10],
        ),
        nbatch=10, scan=10,
    ),
    Workload(
        "lstm", "LSTM 64-256 over 64 tokens, Adam, batch 32", "lstm", 32,
        _adam(1e-3), {"vocab": 64, "embed": 64, "hidden": 256, "seq": 64},
        nbatch=10, scan=10,
    ),
    Workload(
        "gpt", "GPT of 4 layers, width 128, 4 heads, 128 tokens, AdamW, batch 16", "gpt", 16,
        _adam(5e-4, 0.1), {"vocab": 65, "layers": 4, "heads": 4, "d": 128, "ctx": 128},
        nbatch=10, scan=10,
    ),
)  # fmt: skip
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
