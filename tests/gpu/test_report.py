"""What is told of a program for a GPU, and what of it is kept on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen import ptx, ptxas
from chainrule.driver import kept, kept_gpu
from chainrule.driver.gpu_report import ALL, GpuReport
from chainrule.driver.tuning import ProductTimed, Tuning, WayTimed
from chainrule.loops.choice import Choice
from chainrule.target.gpu import occupancy
from chainrule_runtime.gpu.commands import (
    GpuCode,
    KernelLaunch,
    Matrices,
    Product,
    Repeated,
    Spot,
)
from chainrule_runtime.gpu.driver import CudaGpu


def layer() -> cr.Function:
    x, w = cr.input("x", ("n", 8)), cr.input("w", (8, 4))
    return cr.compile(cr.softmax(x @ w), backend="cuda")


def feeds(n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((n, 8), np.float32), "w": np.ones((8, 4), np.float32)}


@pytest.mark.parametrize(
    ("level", "threads", "registers", "shared", "share"),
    [  # by hand: the blocks that there is room for, times their warps
        ("sm_80", 256, 32, 0, 1.0),
        ("sm_80", 256, 255, 0, 1 / 8),  # 65536 / (255 -> 8192 a warp) = 8 warps: one block
        ("sm_80", 256, 32, 44 * 1024, 3 * 8 / 64),  # 164 / 45 = 3 blocks
        ("sm_75", 256, 32, 32 * 1024, 2 * 8 / 32),  # 64 / 32 = 2 blocks, nothing for the system
        ("sm_90", 32, 16, 0, 0.5),  # 32 blocks at most, a warp each
        ("sm_89", 256, 64, 0, 4 * 8 / 48),  # 65536 / 2048 = 32 warps
    ],
)
def test_the_share_of_threads(
    level: str, threads: int, registers: int, shared: int, share: float
) -> None:
    assert occupancy(level, threads, registers, shared) == pytest.approx(share, rel=1e-12)


def test_what_ptxas_says_is_read() -> None:
    said = """ptxas info    : 16 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4096 bytes smem, 384 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 384 bytes cmem[0]
"""
    assert ptxas.resources(said) == {
        "a": ptxas.Resources(40, 4096, 24, 20), "b": ptxas.Resources(8, 0, 0, 0)
    }  # fmt: skip


def test_before_a_call_nobody_knows_without_ptxas(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptxas.shutil, "which", lambda _: None)
    report = layer().report()
    assert isinstance(report, GpuReport) and report.told_by == ""
    assert [x.registers for x in report.launches] == [None, None]
    assert "told by nobody" in str(report)


def test_after_a_call_the_driver_tells(gpu: Any) -> None:
    fn = layer()
    fn(**feeds())
    report = fn.report(sizes={"n": 100})
    assert report.told_by == "the driver"
    first = report.launches[0]
    assert (first.registers, first.shared, first.local, first.occupancy) == (32, 1024, 0, 0.5)
    assert [x.blocks for x in report.launches] == [7, 7]  # 100 rows, 16 a block of each
    assert "32" in str(report) and report.as_dict()["launches"][0]["occupancy"] == 0.5


@pytest.mark.skipif(ptxas.find() is None, reason="no ptxas here: it comes with CUDA")
def test_else_ptxas_does() -> None:
    report = layer().report()
    assert report.told_by.startswith("ptxas")
    assert all(x.registers and x.occupancy for x in report.launches)


def test_measured_kernels_tell_what_they_achieved(gpu: Any) -> None:
    """The simulated GPU says that launches take 1, 2, 3, ... microseconds."""
    step = cr.training_step(
        cr.mean((cr.input("x", ("n", 8)) @ cr.parameter("w", (8, 4))) ** 2), cr.optim.SGD(0.1),
        backend="cuda",
    )  # fmt: skip
    before = step.state_dict()
    report = step.report(measure=True, sizes={"n": 16})
    commands = step._engine.compiled.code.commands  # type: ignore[attr-defined]
    assert [k.measured for k in report.kernels] == pytest.approx(
        [sum(1e-6 * (i + 1) for i, c in enumerate(commands) if c.part_of == number)
         for number in range(len(report.kernels))]
    )  # fmt: skip
    assert "GFLOP/s" in str(report)
    json.dumps(report.as_dict())
    for name, array in step.state_dict().items():
        np.testing.assert_array_equal(array, before[name])  # copies were trained


def test_a_rate_is_what_a_kernel_does_by_its_time(gpu: Any) -> None:
    x, w = cr.input("x", ("n", 8)), cr.input("w", (8, 4))
    report = cr.compile(x @ w, backend="cuda").report(measure=True, sizes={"n": 16})
    moved = 4 * (16 * 8 + 8 * 4 + 16 * 4)
    assert report.achieved() == {"kernel0": pytest.approx((moved / 1e-6, 2 * 16 * 8 * 4 / 1e-6))}


def test_times_ask_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.__import__", _refusing(__import__))
    with pytest.raises(cr.errors.DeviceError, match="cuda-bindings"):
        layer().report(measure=True)


def _refusing(original: Any) -> Any:
    def find(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cuda"):
            raise ImportError(name)
        return original(name, *rest, **more)

    return find


def test_the_driver_is_asked_by_its_names(api: Any) -> None:
    gpu = CudaGpu()
    takes = gpu.attributes("k", 256)
    assert (takes.registers, takes.shared, takes.local, takes.occupancy) == (40, 2048, 8, 0.5)
    done: list[int] = []
    del api.asked[:]
    assert gpu.timed([lambda: done.append(1), lambda: done.append(2)]) == [0.25e-3] * 2
    assert done == [1, 2]
    assert api.words.count("cuEventCreate") == api.words.count("cuEventDestroy") == 3


COMMANDS = (
    KernelLaunch("a", (Spot(0), Spot(1, ((0, 4), (1, {"terms": [[8, ["n"]]]})), 64)),
                 (3, {"terms": [[1, ["n"]]]}), {"terms": [[1, [["//", 7, 2]]]]}, 256, 5),
    Repeated({"terms": [[1, ["n"]]]}, (KernelLaunch("b", (Spot(2),), (), 1, 32),
             Repeated(2, (), True)), False),
    Product("tf32", (1, {"terms": [[1, ["n"]]]}, 4, 5), Matrices(Spot(0), (0, 5, 1)),
            Matrices(Spot(1, ((0, 4),), 8), (0, 1, 5)), Matrices(Spot(2), (0, 4, 1)), 3),
)  # fmt: skip
TUNING = Tuning(
    "a GPU", (("n", 7),), (ProductTimed(3, (WayTimed("ours", 2e-3), WayTimed("b", None, "no")), 0),)
)


def test_what_is_kept_is_what_it_was() -> None:
    manifest = layer()._program.compiled.manifest  # type: ignore[attr-defined]
    code = GpuCode("some PTX", COMMANDS, (), ("a", "b"), 7)
    choices = {3: Choice(side=4, why="fast"), 5: Choice(way="cublaslt")}
    for tuned in (TUNING, None):
        content = kept_gpu.packed_gpu(manifest, code, choices, tuned)
        assert kept_gpu.unpacked_gpu(content) == (manifest, code, choices, tuned)
    assert kept_gpu.unpacked_gpu(content[:-9]) is None
    assert kept_gpu.unpacked_gpu(kept.packed(manifest, b"an object file", {})) is None


def test_a_program_is_translated_once_on_a_machine(
    tmp_path: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    first = layer()
    result = first(**feeds())

    def translated_again(module: ptx.GpuModule) -> str:
        raise AssertionError

    monkeypatch.setattr(ptx.GpuModule, "ptx", translated_again)
    again = layer()
    np.testing.assert_array_equal(again(**feeds()), result)
    assert again.show("ptx") == first.show("ptx")
    assert "parts of" in again.show("loops")  # made again, where it is asked for
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90")
    with pytest.raises(AssertionError):  # other code
        layer()


def test_steps_and_their_names_are_kept(
    tmp_path: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))

    def trained(name: str) -> np.ndarray:
        x = cr.input("x", ("n", 3))
        loss = cr.mean((x @ cr.parameter(name, (3, 2))) ** 2)
        step = cr.training_step(loss, cr.optim.SGD(0.1), backend="cuda")
        step.run(x=np.ones((4, 3), np.float32), batch_size=2)
        return step.parameters[name]

    first = trained("w")
    monkeypatch.setattr(ptx.GpuModule, "ptx", None)
    np.testing.assert_array_equal(trained("other"), first)


def test_what_stays_for_many_steps_is_told_too() -> None:
    step = cr.training_step(
        cr.mean((cr.input("x", ("n", 3)) @ cr.parameter("w", (3, 2))) ** 2),
        cr.optim.SGD(0.1),
        backend="cuda",
    )
    report = step.report()
    (stays,) = (x for x in report.launches if x.kernel == ALL)
    assert (stays.name, stays.blocks, stays.threads) == ("resident", 1, 256)
    assert "all, in a run" in str(report)
