"""Random graphs and their gradients on a simulated GPU, where no two threads race, mean the same.

They are held to native code, which is held to the reference elsewhere, of the same seeds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr

_spec = importlib.util.spec_from_file_location(
    "grown_graphs", Path(__file__).parents[1] / "test_random_graphs.py"
)
assert _spec and _spec.loader
graphs: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)

SIZES = (1, 19, 70)  # one, more than 16 lanes with a tail, more than a tile


def check(seed: int, order: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, last = graphs.grow(rng)
    outputs = graphs.with_gradients(inputs, last, order)
    native = graphs.compiled(outputs)
    if native is None:
        return
    simulated = cr.compile(outputs, backend="cuda")
    for n in SIZES:
        feeds = graphs.feeds_of(native, inputs, n, rng)
        got, want = graphs.results(simulated, feeds), graphs.results(native, feeds)
        assert (got is None) == (want is None), f"seed {seed}, n = {n}: only one of them refuses"
        for i, (a, b) in enumerate(zip(got or [], want or [], strict=True)):
            scale = np.abs(b).max(initial=0.0)
            if not np.isfinite(scale) or scale > 1e6:
                continue  # exp of exp of ...: what is lost there says nothing
            # long folds are in another order: 1e5 roundings of 1e-16, of the largest element
            np.testing.assert_allclose(
                a,
                b,
                rtol=1e-9,
                atol=1e-9 * scale + 1e-11,
                err_msg=f"seed {seed}, n = {n}, output {i}",
            )


@pytest.mark.parametrize("seed", range(5000, 5004))
def test_values_and_gradients(seed: int, gpu: Any) -> None:
    check(seed, order=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5100, 5110))
def test_second_derivatives(seed: int, gpu: Any) -> None:
    check(seed, order=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20_000, 20_300))
def test_many(seed: int, gpu: Any) -> None:
    check(seed, order=1 + seed % 2)
