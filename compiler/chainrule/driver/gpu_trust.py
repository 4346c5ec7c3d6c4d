"""Whether code for one generation of GPUs alone is used on the GPU that is here: where a trial said
so, once, in a process of its own, which may hang or fault and harm nothing. What came of it is kept
by device and driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from chainrule import config
from chainrule.codegen.cache import key_of, object_cache
from chainrule.records import dataclass
from chainrule.target import Target
from chainrule.target.gpu import ALONE, GPUS, gpu, ptx_of
from chainrule_runtime.gpu.driver import Gpu

#: seconds that the process may take: it compiles ten kernels, and the driver translates them
PATIENCE = 180.0
#: the module that makes the trial, and what its line begins with
TRIAL, TOLD = "chainrule.driver.gpu_trial", "chainrule: "


@dataclass(frozen=True)
class Trial:
    """What came of it: whether the level is used, and why, in words; whether that is for good."""

    used: bool
    why: str
    final: bool = True


def target_here(here: Gpu) -> tuple[Target, str]:
    """What to compile for on a GPU, and what a trial said of it, if there was one."""
    usual = gpu(here.capability, here.ptx_version)
    for level, capability in ALONE.items():
        if capability == here.capability and here.ptx_version >= ptx_of(GPUS[level]):
            found = kept(here, level)
            return (GPUS[level] if found.used else usual), f"{level}: {found.why}"
    return usual, ""


#: what this process has found, by device, driver and level
_known: dict[tuple[str, int, int, str], Trial] = {}


def kept(here: Gpu, level: str) -> Trial:
    """What came of the trial of a level on a GPU, which is made where it was not yet."""
    name = here.name, here.version, here.ptx_version, level
    if name in _known:
        return _known[name]
    cache, key = object_cache(), key_of(["trial", *map(str, name)])
    content = cache.get(key) if cache else None
    found = _read(content.decode(errors="replace")) if content else None
    if found is None:
        found = apart(level)
        if cache and found.final:
            cache.put(key, written(found).encode())
    _known[name] = found
    return found


def apart(level: str) -> Trial:
    """The trial in a process of its own."""
    if not sys.executable or getattr(sys, "frozen", False):
        return Trial(False, "not tried: there is no Python here to try it in", False)
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", TRIAL, level]
    try:
        done = subprocess.run(
            command, env=config.environment((), {"PYTHONPATH": paths}), capture_output=True,
            encoding="utf-8", errors="replace", timeout=PATIENCE, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(False, f"a trial has not ended within {PATIENCE:.0f} seconds")
    except OSError as error:
        return Trial(False, f"not tried: {error}", False)
    lines = [t.removeprefix(TOLD) for t in done.stdout.splitlines() if t.startswith(TOLD)]
    found = _read(lines[-1]) if lines else None
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    return found or Trial(False, f"a trial ended with {done.returncode}: {last}", False)


def written(found: Trial) -> str:
    """A trial as a line of text."""
    return json.dumps({"used": found.used, "why": found.why, "final": found.final})


def _read(text: str) -> Trial | None:
    try:
        data: Any = json.loads(text)
        return Trial(data["used"] is True, str(data["why"]), data["final"] is True)
    except (KeyError, TypeError, ValueError):
        return None
