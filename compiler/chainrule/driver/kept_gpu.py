"""What is kept on disk of a program for a GPU: manifest, PTX, what is launched, and choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from chainrule.driver.kept import made, packed, unpacked
from chainrule.driver.tuning import Tuning, tuning_of
from chainrule.loops.choice import Choice
from chainrule_runtime.gpu.commands import (
    Command,
    GpuCode,
    KernelLaunch,
    Matrices,
    Product,
    Repeated,
    Spot,
)
from chainrule_runtime.manifest import Manifest


def packed_gpu(
    manifest: Manifest, code: GpuCode, choices: Mapping[int, Choice], tuned: Tuning | None
) -> bytes:
    """The same of a program for a GPU: a manifest without names, PTX, what is launched, what was
    chosen for kernels, and what was timed for that.
    """
    commands = [_command_data(c) for c in code.commands]
    told = {"commands": commands, "ptx": code.ptx, "resident": code.resident, "row": code.row}
    told["tuned"] = tuned and asdict(tuned)
    return packed(manifest, json.dumps(told, separators=(",", ":")).encode(), choices)


def unpacked_gpu(
    content: bytes,
) -> tuple[Manifest, GpuCode, dict[int, Choice], Tuning | None] | None:
    """What `packed_gpu` made bytes of; None of anything else."""
    found = unpacked(content)
    if found is None:
        return None
    try:
        data = json.loads(found[1])
        commands, resident = tuple(map(_command, data["commands"])), tuple(data["resident"])
        code = GpuCode(str(data["ptx"]), commands, (), resident, int(data["row"]))
        return found[0], code, found[2], data["tuned"] and tuning_of(data["tuned"])
    except (KeyError, TypeError, ValueError):
        return None


def _command_data(command: Command) -> dict[str, Any]:
    if isinstance(command, KernelLaunch | Product):
        return asdict(command)
    return asdict(replace(command, commands=())) | {
        "commands": [_command_data(c) for c in command.commands]
    }


def _command(data: dict[str, Any]) -> Command:
    if "commands" in data:
        inside = tuple(map(_command, data["commands"]))
        return Repeated(data["length"], inside, bool(data["reverse"]))
    if "kind" in data:
        matrices = {n: _matrices(data[n]) for n in ("first", "second", "result")}
        return made(Product, data | matrices)
    return made(KernelLaunch, {**data, "buffers": tuple(map(_spot, data["buffers"]))})


def _spot(data: dict[str, Any]) -> Spot:
    moves = tuple((loop, size) for loop, size in data["moves"])
    return Spot(data["entry"], moves, data["start"])


def _matrices(data: dict[str, Any]) -> Matrices:
    return made(Matrices, data | {"spot": _spot(data["spot"])})
