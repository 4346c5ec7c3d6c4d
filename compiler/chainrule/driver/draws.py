"""Initial values drawn natively where they are many: to the bits of `ops.philox`, which takes ten
times as long for a uniform number and seventy times for a normal one.

What draws is compiled once on a machine, when so many are wanted that it pays at once, and kept
beside programs; where it is kept already, it is taken for fewer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from chainrule.codegen.cache import key_of, object_cache
from chainrule.codegen.host import host_target
from chainrule.codegen.native import NativeObject, compile_object, load
from chainrule.driver.kept import packed, unpacked
from chainrule.ir.loop import LANES
from chainrule.ir.types import float32
from chainrule.target import Target
from chainrule_runtime.manifest import Manifest

Array = np.ndarray[Any, Any]

#: seconds that NumPy takes for a number of each distribution, and beside that for a tensor
NUMBER: Mapping[str, float] = {"uniform": 50e-9, "normal": 350e-9}
TENSOR = 1e-4
#: seconds of NumPy's from which native code is loaded, and from which it is compiled
LOAD, COMPILE = 4e-3, 20e-3
#: what is kept beside the code
_ABOUT = Manifest(
    sizes=("n",), feeds=(), kept=(), constants=(), outputs=(), arena=(), temporaries=(), checks=()
)


class Drawing:
    """Native code that fills tensors of float32 with numbers of a distribution."""

    def __init__(self, native: NativeObject) -> None:
        self.native, self._code = native, load(native)
        address = self._code.address("step")
        self._step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(address)

    def fill(self, out: Array, seed: int, number: int, scale: float, shift: float) -> None:
        """Let `out`, contiguous, be scale · drawn + shift, of draw `number` in step 0."""
        count = -(-out.size // LANES)
        whole = out if out.size == count * LANES else np.empty(count * LANES, np.float32)
        given: list[Array] = [
            np.array([seed], np.uint64),
            np.array([number], np.uint32),
            np.array([scale, shift], np.float32),
            whole,
        ]
        table = (ctypes.c_void_p * len(given))(*(a.ctypes.data for a in given))
        self._step(ctypes.addressof(table), ctypes.addressof(ctypes.c_int64(count)))
        if whole is not out:
            out[...] = whole[: out.size].reshape(out.shape)


#: what this process has loaded, by distribution and target
_loaded: dict[tuple[str, Target], Drawing] = {}


def drawings(wanted: Mapping[str, tuple[int, int]]) -> dict[str, Drawing]:
    """What draws natively, by distribution, of those of which so many tensors with so many numbers
    are wanted; without those that NumPy draws as soon.

    Bits are NumPy's wherever multiply-add is fused; elsewhere nothing is native.
    """
    found = {}
    for distribution, (tensors, numbers) in wanted.items():
        if distribution in NUMBER:
            seconds = tensors * TENSOR + numbers * NUMBER[distribution]
            if seconds >= LOAD and (drawing := _drawing(distribution, seconds)) is not None:
                found[distribution] = drawing
    return found


def _drawing(distribution: str, seconds: float) -> Drawing | None:
    """What draws; None where it would have to be compiled for less than that takes."""
    target = host_target()
    if not target.fma or (distribution, target) in _loaded:
        return _loaded.get((distribution, target))
    native = _kept(distribution, target, seconds >= COMPILE)
    if native is None:
        return None
    _loaded[distribution, target] = drawing = Drawing(native)
    return drawing


def _kept(distribution: str, target: Target, compiled: bool) -> NativeObject | None:
    """The code as it was kept, else as it is `compiled`, else None."""
    cache, key = object_cache(), key_of(["initial values", distribution, repr(target)])
    content = cache.get(key) if cache else None
    found = unpacked(content) if content else None
    if found is not None:
        return NativeObject(found[1], partial(_text, distribution, target), target, cached=True)
    if not compiled:
        return None
    native = compile_object(_text(distribution, target), target)
    if cache:
        cache.put(key, packed(_ABOUT, native.object, {}))
    return native


def _text(distribution: str, target: Target) -> str:
    """LLVM's text of `i32 step(table, sizes)`, whose table is of the buffers of `drawing`."""
    from chainrule.codegen.module import emit_module
    from chainrule.codegen.steps import Call
    from chainrule.loops.begin import drawing

    program = drawing(distribution, float32, vectors=True)
    return emit_module([Call(program, (0, 1, 2, 3))], ("n",), target)
