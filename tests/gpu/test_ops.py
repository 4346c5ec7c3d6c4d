"""Every op on a GPU that is simulated, and as PTX that is emulated: the bits of the CPU."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from chainrule.driver import program
from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.ir.node import Op, apply
from chainrule.ir.types import TensorType
from chainrule.ops.registry import ops
from chainrule.ops.source import leaf

FIRST = [pytest.param(*entry.samples[0], id=str(entry.name)) for entry in ops()]
SAMPLES = [
    pytest.param(op, types, id=f"{entry.name}-{i}")
    for entry in ops()
    for i, (op, types) in enumerate(entry.samples)
]
#: ops whose kernels are of every form, and have every kind of instruction
VARIED = "contract softmax sum take scatter_add cumulative_sum argsort scan erf conv cast uniform"


def draw(op: Op, types: Sequence[TensorType]) -> list[np.ndarray]:
    """Operands within the op's domain, the same for the same op."""
    rng = np.random.default_rng(zlib.crc32(str(op.name).encode()))
    low, high = op.domain
    return [
        rng.uniform(low, high, t.shape).astype(t.dtype.numpy)
        if not t.dtype.is_bool
        else rng.random(t.shape) < 0.5
        for t in types
    ]


def check(op: Op, types: list[TensorType]) -> None:
    leaves = [leaf("input", f"x{i}", t) for i, t in enumerate(types)]
    graph = Graph((apply(op, *leaves),))
    feeds = dict(zip((f"x{i}" for i in range(len(types))), draw(op, types), strict=True))
    results = []
    for backend in ("cpu", "cuda"):
        try:
            results += program(graph, leaves, ["out"], backend).call(feeds)
        except CompileError as error:  # a leaf that nothing gives a value
            results.append(error.what)
    native, ours = results
    np.testing.assert_array_equal(ours, native)


@pytest.mark.parametrize(("op", "types"), FIRST[::3])
def test_an_op_has_the_bits_of_the_cpu(op: Op, types: list[TensorType], gpu: Any) -> None:
    check(op, types)


@pytest.mark.parametrize(("op", "types"), [p for p in FIRST if p.id in VARIED.split()])
def test_its_ptx_has(op: Op, types: list[TensorType], emulator: Any) -> None:
    check(op, types)


@pytest.mark.long
@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_every_sample_has(op: Op, types: list[TensorType], gpu: Any) -> None:
    check(op, types)


@pytest.mark.long
@pytest.mark.parametrize(("op", "types"), SAMPLES)
def test_the_ptx_of_every_sample_has(op: Op, types: list[TensorType], emulator: Any) -> None:
    check(op, types)
