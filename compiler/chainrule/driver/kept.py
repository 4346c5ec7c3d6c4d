"""What is kept of a compiled program on disk: its manifest as JSON, its constants, and its object
file; of one for a GPU see `kept_gpu`.

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

from chainrule.loops.choice import Choice
from chainrule_runtime import RuntimeFault
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
        checks=tuple(made(Check, check) for check in data["checks"]),
        nonempty=tuple(data["nonempty"]),
        shared=tuple((work, times) for work, times in data["shared"]),
        call_work=data["call_work"],
        step_work=data["step_work"],
        stages=tuple(made(Stage, stage) for stage in data["stages"]),
        tuned=None if data["tuned"] is None else _threads(data["tuned"]),
    )
    choices = {int(i): Choice(**choice) for i, choice in data["choices"]}
    return manifest, bytes(rest), choices


def _threads(data: dict[str, Any]) -> TunedThreads:
    pairs = {name: tuple(map(tuple, data[name])) for name in ("sizes", "seconds")}
    return TunedThreads(**{**data, **pairs})


def _tensors(data: Sequence[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(made(Tensor, tensor) for tensor in data)


def made(kind: Callable[..., T], data: dict[str, Any]) -> T:
    """A dataclass of its fields; JSON has lists for tuples."""
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})
