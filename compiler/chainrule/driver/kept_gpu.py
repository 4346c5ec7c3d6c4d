"""What is kept on disk of a program for a GPU: manifest, PTX, and what is launched of it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from chainrule.driver.kept import made, packed, unpacked
from chainrule_runtime.gpu.commands import Command, GpuCode, KernelLaunch, Repeated, Spot
from chainrule_runtime.manifest import Manifest


def packed_gpu(manifest: Manifest, code: GpuCode) -> bytes:
    """The same of a program for a GPU: a manifest without names, PTX, and what is launched."""
    commands = [_command_data(c) for c in code.commands]
    told = {"commands": commands, "ptx": code.ptx, "resident": code.resident, "row": code.row}
    return packed(manifest, json.dumps(told, separators=(",", ":")).encode(), {})


def unpacked_gpu(content: bytes) -> tuple[Manifest, GpuCode] | None:
    """What `packed_gpu` made bytes of; None of anything else."""
    found = unpacked(content)
    if found is None:
        return None
    try:
        data = json.loads(found[1])
        commands, resident = tuple(map(_command, data["commands"])), tuple(data["resident"])
        return found[0], GpuCode(str(data["ptx"]), commands, (), resident, int(data["row"]))
    except (KeyError, TypeError, ValueError):
        return None


def _command_data(command: Command) -> dict[str, Any]:
    if isinstance(command, KernelLaunch):
        return asdict(command)
    return asdict(replace(command, commands=())) | {
        "commands": [_command_data(c) for c in command.commands]
    }


def _command(data: dict[str, Any]) -> Command:
    if "commands" in data:
        inside = tuple(map(_command, data["commands"]))
        return Repeated(data["length"], inside, bool(data["reverse"]))
    spots = tuple(
        Spot(s["entry"], tuple((loop, size) for loop, size in s["moves"]), s["start"])
        for s in data["buffers"]
    )
    return made(KernelLaunch, {**data, "buffers": spots})
