"""Programs for a GPU are run on a simulated one, or by an emulator of the PTX that it would get."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from chainrule.codegen import ptx
from chainrule_runtime.gpu import driver


def beside(name: str) -> Any:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fake, _, ptx_machine = map(beside, ("fake", "ptx_engine", "ptx_machine"))


class PtxGpu(fake.FakeGpu):  # type: ignore[misc, name-defined]
    """A GPU whose modules are what is parsed of their PTX, and run as that."""

    def load(self, ptx: str) -> Any:
        self.calls.append("load")
        return ptx_machine.parse(ptx)

    def arguments_of(self, kernel: Any) -> int:
        return len(kernel.parameters)

    def run(
        self, kernel: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        ptx_machine.Machine(kernel, blocks, threads, arguments, self.blocks, shared).run()


def simulated(made: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A simulated GPU that programs find; what is compiled meanwhile it knows by its text, which
    LLVM need not translate.
    """

    def translate(module: ptx.GpuModule) -> str:
        made.knows(module, module.llvm)
        return module.llvm

    monkeypatch.setattr(ptx.GpuModule, "ptx", translate)
    monkeypatch.setattr(driver, "find", lambda: made)
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The simulated GPU that programs find."""
    return simulated(fake.FakeGpu(), monkeypatch)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes one that is lost after so many steps."""
    return lambda plays: simulated(fake.FailingGpu(plays), monkeypatch)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that runs PTX."""
    made = PtxGpu()
    monkeypatch.setattr(driver, "find", lambda: made)
    return made


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What cuda-bindings would be, writing down what it is asked."""
    made = fake.FakeApi()
    monkeypatch.setattr(driver, "_bindings", lambda: made)
    return made
