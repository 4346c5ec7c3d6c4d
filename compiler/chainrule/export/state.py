"""The bytes that NAME_load reads, made here: a state of the compiler's for a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from chainrule.export.checks import digest
from chainrule.export.model import (
    ABI,
    AT_ABI,
    AT_CHECKSUM,
    AT_EPOCH,
    AT_MODEL,
    AT_SIZE,
    MAGIC,
    Model,
)

Array = np.ndarray[Any, Any]


def state_bytes(model: Model, state: Mapping[str, Array], epochs: int) -> bytes:
    """A state as `NAME_save` would write it, from tensors by name and the epochs begun."""
    data = bytearray(model.state_bytes)

    def put(at: int, value: int, size: int) -> None:
        data[at : at + size] = value.to_bytes(size, "little")

    put(0, MAGIC, 8)
    put(AT_ABI, ABI, 4)
    put(AT_MODEL, model.digest, 8)
    put(AT_SIZE, model.state_bytes, 8)
    put(AT_EPOCH, epochs, 8)
    for tensor in model.kept:
        at, array = model.offsets[tensor.name], state[tensor.name]
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
        data[at : at + tensor.bytes] = little
    put(AT_CHECKSUM, digest(data), 8)
    return bytes(data)
