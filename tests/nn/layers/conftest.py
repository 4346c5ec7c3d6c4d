"""What the tests of layers share: a layer's values and derivatives beside those of a reference."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.graph import walk
from chainrule.ir.size import substitute

Array = np.ndarray[Any, Any]


class Held:
    """A layer's outputs, from arrays for every leaf, held to references.

    The arrays of parameters and states are drawn by name, so that they are the same in every run;
    inputs are given.
    """

    def __init__(self, outputs: Any, layer: cr.nn.Layer, **feeds: Array) -> None:
        self.outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        self.leaves = {**layer.parameters, **layer.states}
        drawn = {name: _drawn(name, t) for name, t in self.leaves.items()}
        self.values: dict[str, Array] = {**drawn, **feeds}
        inputs = {n: _leaf(self.outputs, n) for n in feeds if n not in self.leaves}
        self.wrt = {
            n: t
            for n, t in {**inputs, **self.leaves}.items()
            if t.dtype.is_float and n not in layer.states
        }
        rng = np.random.default_rng(7)
        sizes = {
            str(d): np.shape(feeds[n])[i]
            for n, t in inputs.items()
            for i, d in enumerate(t.shape)
            if not isinstance(d, int)
        }
        for i, y in enumerate(self.outputs):
            shape = tuple(substitute(d, sizes) for d in y.shape)
            self.values[f"ct{i}"] = rng.normal(size=shape).astype(y.dtype.name)  # type: ignore[arg-type]
        self.cotangents = [
            cr.input(f"ct{i}", y.shape, dtype=y.dtype) for i, y in enumerate(self.outputs)
        ]

    @property
    def loss(self) -> cr.Tensor:
        """A sum of all outputs, each element times a number of its own."""
        terms = [cr.sum(o * c) for o, c in zip(self.outputs, self.cotangents, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def run(self, training: bool = False) -> tuple[list[Array], dict[str, Array]]:
        """Outputs and derivatives of `loss`, by natively compiled code."""
        slopes = cr.grad(self.loss, self.wrt, unused="zeros")
        fn = cr.compile({"y": self.outputs, "d": slopes}, training=training)
        got = fn(**{n: self.values[n] for n in fn.inputs})
        return list(got["y"]), dict(got["d"])

    def to_numpy(self, want: Any, rtol: float, training: bool = False) -> None:
        """Values to those of a reference in NumPy, derivatives to finite differences."""
        fn = cr.compile(self.outputs, training=training)
        got = fn(**{n: self.values[n] for n in fn.inputs})
        for g, w in zip(got, want if isinstance(want, (list, tuple)) else [want], strict=True):
            np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol)
        feeds = {n: self.values[n] for n in cr.compile(self.loss).inputs}
        wrt = list(self.wrt.values())
        cr.check_gradients(self.loss, wrt, feeds, directions=2, coordinates=2)

    def to_torch(
        self,
        reference: Callable[[Mapping[str, Any]], Any],
        rtol: float,
        training: bool = False,
    ) -> None:
        """Values and derivatives to those of a function of PyTorch's tensors by name."""
        torch = pytest.importorskip("torch")
        tensors = {n: torch.tensor(v) for n, v in self.values.items()}
        for n in self.wrt:
            tensors[n].requires_grad_(True)
        outs = reference(tensors)
        outs = list(outs) if isinstance(outs, (tuple, list)) else [outs]
        total = sum((o * tensors[f"ct{i}"]).sum() for i, o in enumerate(outs))
        total.backward()
        values, slopes = self.run(training)
        for i, (got, want) in enumerate(zip(values, outs, strict=True)):
            _close(f"output {i}", got, want.detach().numpy(), rtol)
        for n, got in slopes.items():
            grad = tensors[n].grad
            want = np.zeros_like(got) if grad is None else grad.numpy()
            _close(f"the gradient of {n}", got, want, rtol)


def _close(what: str, got: Array, want: Array, rtol: float) -> None:
    """Within rtol of the largest element: sums of terms of either sign may cancel."""
    assert got.shape == want.shape, what
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale, err_msg=what)


def _drawn(name: str, tensor: cr.Tensor) -> Array:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.normal(size=tensor.shape) * 0.5  # type: ignore[arg-type]
    if name.endswith("variance"):
        drawn = np.abs(drawn) + 0.5
    return drawn.astype(tensor.dtype.name)


def _leaf(outputs: Sequence[cr.Tensor], name: str) -> cr.Tensor:
    nodes = walk([o.node for o in outputs])
    return next(cr.Tensor(n) for n in nodes if getattr(n.op, "label", "") == name)


@pytest.fixture
def held() -> type[Held]:
    return Held


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
