"""What is trained: models, initial weights and data, the same arrays for every peer.

A dense layer is `x @ W + b` with parameters W0, b0, W1, b1, ...; cross-entropy and binary
cross-entropy are means over rows, mse over all elements. Adam adds epsilon outside the root, after
the correction of bias (Kingma and Ba, 2015, algorithm 1), as PyTorch and optax do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: bytes a parameter that a step must move at the least: read and written, with its moments
_STATE_BYTES = {"sgd": 8, "momentum": 16, "adam": 24, "adamw": 24}


@dataclass(frozen=True)
class Workload:
    """A training step at fixed sizes: `kind` "mlp", "logreg" or "vae", with its `shape`.

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
        """Inputs and outputs of each dense layer."""
        if self.kind == "vae":
            d, h, z = (self.shape[n] for n in "dhz")
            return [(d, h), (h, z), (h, z), (z, h), (h, d)]
        return list(pairwise(self.shape["sizes"]))

    def params(self) -> dict[str, Array]:
        """Initial weights, uniform in ±sqrt(3/inputs): activations keep their scale."""
        random = np.random.default_rng([1, self.seed])
        made: dict[str, Array] = {}
        for i, (n, m) in enumerate(self.layers()):
            made[f"W{i}"] = (random.uniform(-1, 1, (n, m)) * np.sqrt(3 / n)).astype(np.float32)
            made[f"b{i}"] = np.zeros(m, np.float32)
        return made

    def data(self) -> dict[str, Array]:
        """All rows: a teacher's answers with noise, so that there is something to learn."""
        random = np.random.default_rng([2, self.seed])
        rows, width = self.nbatch * self.batch, self.layers()[0][0]
        if self.kind == "vae":
            patterns = random.random((10, width)) < 0.2
            flips = random.random((rows, width)) < 0.1
            x = patterns[random.integers(0, 10, rows)] ^ flips
            noise = random.standard_normal((rows, self.shape["z"]))
            return {"x": x.astype(np.float32), "eps": noise.astype(np.float32)}
        x = random.standard_normal((rows, width)).astype(np.float32)
        outputs = self.layers()[-1][1]
        answers = x @ random.standard_normal((width, outputs)) / np.sqrt(width)
        answers += 0.5 * random.standard_normal(answers.shape)
        if self.shape["loss"] == "ce":
            return {"x": x, "y": np.argmax(answers, axis=1).astype(np.int32)}
        if self.shape["loss"] == "bce":
            return {"x": x, "t": (answers[:, 0] > 0).astype(np.float32)}
        return {"x": x, "t": np.tanh(answers).astype(np.float32)}

    def flops(self) -> int:
        """Operations of the products of a step: forward, and both derivatives but the first dx."""
        products = [2 * self.batch * n * m for n, m in self.layers()]
        return 3 * sum(products) - products[0]

    def bytes(self) -> int:
        """Bytes that a step must move at the least: parameters, moments, the minibatch."""
        count = sum(n * m + m for n, m in self.layers())
        kind = "momentum" if self.opt.get("momentum") else self.opt["kind"]
        return _STATE_BYTES[kind] * count + 4 * self.batch * self.layers()[0][0]


def _sgd(rate: float) -> dict[str, Any]:
    return {"kind": "sgd", "lr": rate, "momentum": 0.0}


def _adam(rate: float, decay: float | None = None) -> dict[str, Any]:
    made = {"kind": "adam", "lr": rate, "b1": 0.9, "b2": 0.999, "eps": 1e-8}
    return made if decay is None else {**made, "kind": "adamw", "wd": decay}


def _mlp(sizes: list[int], act: str, loss: str = "ce", dropout: float = 0.0) -> dict[str, Any]:
    return {"sizes": sizes, "act": act, "loss": loss, "dropout": dropout}


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
    Workload(
        "small", "MLP 64-128-64-10 ReLU, Adam, batch 32", "mlp", 32,
        _adam(1e-3), _mlp([64, 128, 64, 10], "relu"), quick=True, nbatch=100, scan=100,
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
)  # fmt: skip
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
