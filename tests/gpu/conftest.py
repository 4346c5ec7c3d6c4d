"""Programs for a GPU are run on a simulated one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from chainrule.codegen import ptx
from chainrule_runtime.gpu import driver

_spec = importlib.util.spec_from_file_location("fake_gpu", Path(__file__).with_name("fake.py"))
assert _spec and _spec.loader
fake_gpu: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_gpu)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The simulated GPU that programs find; what they are compiled to it knows."""
    made = fake_gpu.FakeGpu()

    def translate(module: ptx.GpuModule) -> str:
        text = original(module)
        made.knows(module, text)
        return text

    original = ptx.GpuModule.ptx
    monkeypatch.setattr(ptx.GpuModule, "ptx", translate)
    monkeypatch.setattr(driver, "find", lambda: made)
    return made
