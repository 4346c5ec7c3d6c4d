"""benchmarks/gpu.py, as far as a simulated GPU goes: it finds what is right and what is wrong."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def test_both_ways_of_many_steps_are_compared(gpu: Any) -> None:
    spec = next(iter(SCRIPT["WORKLOADS"].values()))
    calls = SCRIPT["step_calls"](spec)
    assert [name for name in calls if "torch" not in name] == ["chainrule", "launch by launch"]
    usual = SCRIPT["epochs"].PER_LAUNCH
    with SCRIPT["launch_by_launch"]():
        assert SCRIPT["epochs"].PER_LAUNCH == 0
    assert SCRIPT["epochs"].PER_LAUNCH == usual > 0
