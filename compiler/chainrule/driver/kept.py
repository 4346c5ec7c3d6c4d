"""What is kept of a compiled program on disk: its manifest as JSON, its constants, and its object
file, or its PTX with what is launched of it.

Nothing in it has a name of the user's but computed positions: tensors are called by their places
among feeds, kept leaves and outputs, "0", "1", ..., and get the names of the program at hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np

from chainrule.driver.tuning import Tuning, tuning_of
from chainrule.loops.choice import Choice
from chainrule_runtime import RuntimeFault
from chainrule_runtime.gpu.commands import (
    Command,
    GpuCode,
    KernelLaunch,
    Matrices,
    Product,
    Repeated,
    Spot,
)
from chainrule_runtime.manifest import Check, Manifest, Stage, Tensor, TunedThreads, element_type

#: in front of the name of a computed tensor, which is not among those that have places
_COMPUTED = "="
T = TypeVar("T")


def computed(name: str) -> str:
    """How a manifest without names calls a tensor that has no place in it, but a name."""
    return _COMPUTED + name


def named(manifest: Manifest, labels: Sequence[str]) -> Manifest:
    """A manifest whose tensors have the names of feeds, kept leaves and outputs, in this order."""

    def of(text: str) -> str:
        return text.removeprefix(_COMPUTED) if text.startswith(_COMPUTED) else labels[int(text)]

    def tensors(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(replace(t, name=of(t.name)) for t in given)

    return replace(
        manifest,
        feeds=tensors(manifest.feeds),
        kept=tensors(manifest.kept),
        outputs=tensors(manifest.outputs),
        checks=tuple(
            replace(c, what=of(c.what), feed=None if c.feed is None else of(c.feed))
            for c in manifest.checks
        ),
    )


def packed(manifest: Manifest, code: bytes, choices: Mapping[int, Choice]) -> bytes:
    """A manifest without names, an object file and what was chosen for kernels, as bytes."""
    data = asdict(replace(manifest, constants=()))
    data["choices"] = [[i, asdict(choice)] for i, choice in choices.items()]
    data["constants"] = [asdict(tensor) for tensor, _ in manifest.constants]
    arrays = (np.ascontiguousarray(array).tobytes() for _, array in manifest.constants)
    return b"".join([json.dumps(data, separators=(",", ":")).encode(), b"\n", *arrays, code])


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
        return _made(Product, data | matrices)
    return _made(KernelLaunch, {**data, "buffers": tuple(map(_spot, data["buffers"]))})


def _spot(data: dict[str, Any]) -> Spot:
    moves = tuple((loop, size) for loop, size in data["moves"])
    return Spot(data["entry"], moves, data["start"])


def _matrices(data: dict[str, Any]) -> Matrices:
    return _made(Matrices, data | {"spot": _spot(data["spot"])})


def unpacked(content: bytes) -> tuple[Manifest, bytes, dict[int, Choice]] | None:
    """What `packed` made bytes of; None of anything else."""
    try:
        end = content.index(b"\n")
        return _read(json.loads(content[:end]), memoryview(content)[end + 1 :])
    except (AttributeError, KeyError, RuntimeFault, TypeError, ValueError):
        return None


def _read(data: dict[str, Any], rest: memoryview) -> tuple[Manifest, bytes, dict[int, Choice]]:
    constants = []
    for tensor in _tensors(data["constants"]):
        dtype, shape = element_type(tensor.dtype), tuple(map(int, tensor.shape))  # type: ignore[arg-type]
        size = math.prod(shape) * dtype.itemsize
        array = np.frombuffer(rest[:size], dtype).reshape(shape).copy()  # a copy is aligned
        constants.append((tensor, array))
        rest = rest[size:]
    manifest = Manifest(
        sizes=tuple(data["sizes"]),
        feeds=_tensors(data["feeds"]),
        kept=_tensors(data["kept"]),
        constants=tuple(constants),
        outputs=_tensors(data["outputs"]),
        arena=tuple(map(tuple, data["arena"])),
        temporaries=tuple((place, slot) for place, slot in data["temporaries"]),
        checks=tuple(_made(Check, check) for check in data["checks"]),
        nonempty=tuple(data["nonempty"]),
        shared=tuple((work, times) for work, times in data["shared"]),
        call_work=data["call_work"],
        step_work=data["step_work"],
        stages=tuple(_made(Stage, stage) for stage in data["stages"]),
        tuned=None if data["tuned"] is None else _threads(data["tuned"]),
    )
    choices = {int(i): Choice(**choice) for i, choice in data["choices"]}
    return manifest, bytes(rest), choices


def _threads(data: dict[str, Any]) -> TunedThreads:
    pairs = {name: tuple(map(tuple, data[name])) for name in ("sizes", "seconds")}
    return TunedThreads(**{**data, **pairs})


def _tensors(data: Sequence[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(_made(Tensor, tensor) for tensor in data)


def _made(kind: Callable[..., T], data: dict[str, Any]) -> T:
    """A dataclass of its fields; JSON has lists for tuples."""
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})
