"""Code for one generation of GPUs alone is used where a trial on that GPU said that it is right and
faster, and nowhere else.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import chainrule as cr
from chainrule.cli.doctor import _gpu_target
from chainrule.codegen.engine import EngineCode
from chainrule.driver import gpu_trial, gpu_trust
from chainrule.driver.gpu import gpu_target
from chainrule.driver.gpu_trust import Trial
from chainrule.loops import grouped
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.driver import CudaGpu

#: groups, rows, columns and terms that an emulator can do
FEW = (1, 136, 72, 72)
RIGHT, WRONG = Trial(True, "right and faster"), Trial(False, "wrong by a lot")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHAINRULE_GPU", raising=False)
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_trust, "_known", {})


@pytest.fixture
def hopper(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An emulated GPU of compute capability 9.0, on which small products are tried."""
    emulator.capability = (9, 0)
    monkeypatch.setattr(grouped, "TILES", 1)
    monkeypatch.setattr(grouped, "PANELS", 1)
    return emulator


def says(found: Trial, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have trials come out so; the levels that they are asked for."""
    asked: list[str] = []

    def apart(level: str) -> Trial:
        asked.append(level)
        return found

    monkeypatch.setattr(gpu_trust, "apart", apart)
    return asked


def test_a_trial_decides_and_is_kept(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, level in ((RIGHT, "sm_90a"), (WRONG, "sm_90")):
        hopper.name = f"one where it is {level}"
        asked = says(found, monkeypatch)
        for _ in range(2):
            assert gpu_target().level == level
            monkeypatch.setattr(gpu_trust, "_known", {})  # as in the next process
        assert asked == ["sm_90a"]
        target, said = gpu_trust.target_here(hopper)
        assert (target.level, said) == (level, f"sm_90a: {found.why}")
        assert found.why in _gpu_target()


def test_another_driver_is_tried_anew(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may translate the same PTX to other code, be it right or wrong now."""
    asked = says(WRONG, monkeypatch)
    for hopper.version in (13000, 13010):
        assert gpu_target().level == "sm_90"
    assert len(asked) == 2


def test_what_is_not_final_is_tried_again(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says(Trial(False, "no room", False), monkeypatch)
    for _ in range(2):
        assert gpu_target().level == "sm_90"
        monkeypatch.setattr(gpu_trust, "_known", {})
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("capability", "ptx", "level"),
    [
        ((8, 9), 90, "sm_89"),
        ((10, 0), 90, "sm_100"),
        ((9, 0), 85, "sm_90"),
        ((12, 0), 90, "sm_120"),
    ],
)
def test_other_gpus_and_older_drivers_are_not_tried(
    capability: tuple[int, int],
    ptx: int,
    level: str,
    emulator: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator.capability, emulator.ptx_version = capability, ptx
    asked = says(RIGHT, monkeypatch)
    assert gpu_trust.target_here(emulator) == (gpu_target(), "")
    assert gpu_target().level == level and not asked


def test_a_report_says_why_not(hopper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    says(WRONG, monkeypatch)
    x = cr.input("x", (128, 128))
    fn = cr.compile(x @ x, backend="cuda", precision="bfloat16")
    assert "wrong by a lot" in str(fn.report())
    assert "wrong by a lot" in fn.report().as_dict()["level_note"]
    assert "wgmma" not in fn.show("ptx")


def test_a_trial_holds_every_order_to_the_usual_way(
    hopper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"sm_90a": 1.0, "sm_90": 2.0}
    monkeypatch.setattr(gpu_trial, "_seconds", lambda sizes, target: times[target.level])
    found = gpu_trial.tried(hopper, "sm_90a", FEW, FEW)
    assert found.used and "faster" in found.why
    times["sm_90"] = 0.5
    found = gpu_trial.tried(hopper, "sm_90a", FEW, FEW)
    assert (found.used, found.final) == (False, True) and "no faster" in found.why


def test_a_trial_sees_panels_that_are_read_wrong(
    hopper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor whose columns are those of the panel's first half twice."""
    right = EngineCode.described

    def wrong(self: Any, panel: Any, further: str) -> str:
        text: str = right(self, panel, further)
        return self.pure(f"and i64 {text}, {~(0x3FFF << 16)}", text) if panel.turned else text

    monkeypatch.setattr(EngineCode, "described", wrong)
    found = gpu_trial.tried(hopper, "sm_90a", FEW, FEW)
    assert not found.used and "is wrong here by" in found.why


def test_one_is_timed_by_the_gpus_clock(hopper: Any) -> None:
    found = gpu_trial.tried(hopper, "sm_90a", FEW, FEW)
    assert not found.used and "TFLOP/s" in found.why  # of the emulator's clock all take as long


def test_a_process_without_a_gpu_decides_nothing() -> None:
    found = gpu_trust.apart("sm_90a")
    assert not found.used and not found.final and "a trial failed" in found.why


def test_a_process_that_hangs_or_dies_is_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_trust, "PATIENCE", 0.01)
    assert not gpu_trust.apart("sm_90a").used
    monkeypatch.undo()

    def died(*given: Any, **options: Any) -> Any:
        return subprocess.CompletedProcess(given, -11, "half a line", "")

    monkeypatch.setattr(subprocess, "run", died)
    found = gpu_trust.apart("sm_90a")
    assert not found.used and "ended with -11" in found.why


def test_a_process_may_say_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no text, and lines that only look like a word of a trial's."""
    for said in (r"\377\376", "chainrule: null\\n", 'chainrule: {"used": 1}\\n'):
        program = f"import os; os.write(1, b'{said}'); os.write(2, b'\\377')"
        original = subprocess.run
        monkeypatch.setattr(
            subprocess,
            "run",
            lambda c, **o: original([c[0], "-c", program], **o),  # noqa: B023
        )
        found = gpu_trust.apart("sm_90a")
        assert not found.used and not found.final and "ended with 0" in found.why
        monkeypatch.undo()


def test_what_a_trial_says_is_read(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fails() -> Any:
        raise DeviceError("a kernel has failed", lost=True)

    monkeypatch.setattr(driver, "find", fails)
    gpu_trial.main("sm_90a")
    said = capsys.readouterr().out

    def done(*given: Any, **options: Any) -> Any:
        return subprocess.CompletedProcess(given, 0, "noise\n" + said, "")

    monkeypatch.setattr(subprocess, "run", done)
    assert gpu_trust.apart("sm_90a") == Trial(False, "a trial failed: a kernel has failed")


def test_shared_memory_is_asked_of_the_driver(api: Any) -> None:
    gpu = CudaGpu()
    api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = "most"
    del api.asked[:]
    gpu.launch("k", 1, 256, (), 99456)
    gpu.launch("k", 1, 256, (), 1024)
    assert api.words == ["cuFuncSetAttribute", "cuLaunchKernel", "cuLaunchKernel"]
    assert api.asked[0] == ("cuFuncSetAttribute", "k", "most", 99456)
    assert [call[8] for call in api.asked[1:]] == [99456, 1024]
    assert gpu.attributes("k", 256, 4096).shared == 2048 + 4096
