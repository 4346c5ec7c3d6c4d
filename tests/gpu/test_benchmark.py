"""benchmarks/gpu.py, as far as a simulated GPU goes: it finds what is right and what is wrong."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chainrule.driver import gpu_tune

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/gpu.py"))


def test_what_is_right_is_found_right(gpu: Any) -> None:
    assert list(SCRIPT["wrong_ops"](["exp", "sum", "contract"])) == []
    spec = next(iter(SCRIPT["WORKLOADS"].values()))
    assert list(SCRIPT["wrong_nets"]([spec], steps=3)) == []


def test_what_is_wrong_is_told(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(gpu).download

    def spoil(self: Any, array: np.ndarray, at: int) -> None:
        original(self, array, at)
        if array.dtype.kind == "f":
            array += 1

    monkeypatch.setattr(type(gpu), "download", spoil)
    assert any(line.startswith("exp 0: 1 from the CPU") for line in SCRIPT["wrong_ops"](["exp"]))


def test_without_a_gpu_it_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, api: Any
) -> None:
    api.fails["cuInit"] = "CUDA_ERROR_NO_DEVICE"
    monkeypatch.setattr(SCRIPT["driver"], "find", SCRIPT["driver"].CudaGpu)
    assert SCRIPT["main"]([]) == 2
    assert "no GPU is to be seen here" in capsys.readouterr().out


def test_launches_are_timed_alone(gpu: Any) -> None:
    cr = SCRIPT["cr"]
    x = cr.input("x", (4, 4))
    feeds = {"x": np.ones((4, 4), np.float32)}
    assert SCRIPT["kernel_seconds"](x @ x, feeds, times=2) > 0
    assert gpu.calls.count("play") == 1 + 2 * SCRIPT["BLOCKS"]


def test_products_have_rows_with_what_is_aimed_at(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tune, "TURNS", 1)
    monkeypatch.setattr(gpu_tune, "MOST", 1)
    scope = SCRIPT["PRODUCTS"]["rows_of"].__globals__
    monkeypatch.setitem(scope, "SIZES", (4096,))
    monkeypatch.setitem(scope, "LAYERS", ((4, 3, 5),))
    monkeypatch.setitem(scope, "torch_product", lambda arrays, kind: 1e-6)
    monkeypatch.setitem(scope, "jax_product", lambda arrays, kind: None)
    usual, row = scope["row"], []

    def small(out: Any, inputs: Any, work: int, precision: Any, aim: str) -> Any:
        if work > 1000:
            row.append((precision, aim))
            return ("",) * 7
        return usual(out, inputs, work, precision, aim)

    monkeypatch.setitem(scope, "row", small)
    for precision, aims in ((None, ["", ""]), ("bfloat16", ["80%", "100%"])):
        square, layer = scope["rows_of"](precision)
        assert len(square) == len(layer) == len(scope["HEAD"])
        assert [row[-1][1], layer[-1]] == aims
        assert layer[3].startswith("our own") and layer[6].endswith("%")


def test_a_step_is_one_launch_at_most(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT["launches_of"].__globals__, "STEPS", 3)
    spec = next(iter(SCRIPT["WORKLOADS"].values()))
    assert 0 < float(SCRIPT["launches_of"](spec)) <= 1
    with SCRIPT["launch_by_launch"]():
        assert SCRIPT["launches_of"](spec) == "1"
    assert gpu.play.__self__ is gpu  # as it was


def test_both_ways_of_many_steps_are_compared(gpu: Any) -> None:
    spec = next(iter(SCRIPT["WORKLOADS"].values()))
    calls = SCRIPT["step_calls"](spec)
    assert [name for name in calls if "torch" not in name] == ["chainrule", "launch by launch"]
    usual = SCRIPT["epochs"].PER_LAUNCH
    with SCRIPT["launch_by_launch"]():
        assert SCRIPT["epochs"].PER_LAUNCH == 0
    assert SCRIPT["epochs"].PER_LAUNCH == usual > 0
