"""What is added to places known at run time only: an embedding's gradient, whatever its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.ir.loop import Store
from chainrule.ir.size import evaluate
from chainrule.loops import independent
from chainrule.loops.text import show as loop_text
from chainrule.loops.walk import statements

COLUMNS, TOKENS = 6, 300


def gradient(rows: int | str, backend: str) -> Any:
    table = cr.input("table", (rows, COLUMNS))
    ids = cr.input("ids", ("tokens",), dtype="int32")
    scale = cr.input("scale", ("tokens", COLUMNS))
    made = cr.grad(cr.sum(cr.take(table, ids, axis=0) * scale), table)
    return cr.compile([made, table + 1], backend=backend)  # which tells how many rows there are


def feeds(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    ids = np.concatenate([rng.integers(0, rows, TOKENS // 2), np.full(TOKENS // 2, rows - 1)])
    return {
        "table": np.zeros((rows, COLUMNS), np.float32),
        "ids": rng.permutation(ids).astype(np.int32),
        "scale": rng.standard_normal((TOKENS, COLUMNS), np.float32),
    }


def launches(fn: Any) -> list[Any]:
    """The launches of a function that add to places known at run time."""
    found = fn._program.compiled.module.kernels.values()
    adds = [x for x in found if any(b.dtype.name == "int32" for b in x.program.buffers)]
    return [
        x
        for x in adds
        if any(isinstance(s, Store) for s in statements(x.program.body))
        and "add" in loop_text(x.program)
    ]


@pytest.mark.parametrize("rows", [5, 512, 513, 1000, "rows"])
def test_an_embeddings_gradient_has_the_bits_of_the_cpu(rows: int | str, gpu: Any) -> None:
    given = feeds(rows if isinstance(rows, int) else 777)
    ours, native = (gradient(rows, backend)(**given)[0] for backend in ("cuda", "cpu"))
    np.testing.assert_array_equal(ours, native)
    slow = np.zeros_like(native)
    np.add.at(slow, given["ids"], given["scale"])  # one after the other, in order
    np.testing.assert_array_equal(native, slow)


@pytest.mark.parametrize("rows", [700, "rows"])
def test_many_rows_are_shared_among_threads(
    rows: int | str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(independent, "THREADS", 48)
    fn, given = gradient(rows, "cuda"), feeds(700)
    np.testing.assert_array_equal(fn(**given)[0], gradient(rows, "cpu")(**given)[0])
    (launch,) = launches(fn)
    sizes = {"rows": 700, "tokens": TOKENS}
    assert evaluate(launch.parts, sizes) == 48  # eight runs of places, six columns each


@pytest.mark.parametrize(("rows", "parts"), [(512, 512 * 6), (513, 513 * 6), (50_000, 2730 * 6)])
def test_how_many_threads_add(rows: int, parts: int, gpu: Any) -> None:
    (launch,) = launches(gradient(rows, "cuda"))
    assert launch.parts == parts  # it was 6 from 513 rows on: one a column


def test_no_tokens_leave_zeros(gpu: Any) -> None:
    none = {"ids": np.zeros(0, np.int32), "scale": np.zeros((0, COLUMNS), np.float32)}
    for rows in (700, 0):
        table = np.zeros((rows, COLUMNS), np.float32)
        found, _ = gradient("rows", "cuda")(table=table, **none)
        np.testing.assert_array_equal(found, table)
