"""Compile a program, run it on arrays, hold it against the interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import compile_object, load
from chainrule.codegen.steps import Call
from chainrule.ir.loop import Program
from chainrule.loops.interpret import interpret
from chainrule.target import LEVEL_FEATURES, TARGETS, Target

Arrays = Mapping[str, np.ndarray]
LEVELS = ["generic", *LEVEL_FEATURES]


def _targets() -> list[Target]:
    host = host_target()
    if host.level not in LEVELS:
        return [host]
    return [TARGETS[level] for level in LEVELS[1 : LEVELS.index(host.level) + 1]] or [host]


@pytest.fixture(params=_targets(), ids=lambda t: t.level)
def target(request: pytest.FixtureRequest) -> Target:
    """Each level this machine can run."""
    return request.param


def run_native(program: Program, arrays: Arrays, sizes: Mapping[str, int], target: Target) -> int:
    """Run a program natively; arrays are written in place."""
    call = Call(program, tuple(range(len(program.buffers))))
    loaded = load(compile_object(emit_module([call], program.sizes, target), target))
    step = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(
        loaded.address("step")
    )
    pointers = [arrays[b.name].ctypes.data for b in program.buffers]
    table = (ctypes.c_void_p * len(pointers))(*pointers)
    values = (ctypes.c_int64 * max(1, len(program.sizes)))(*[sizes[s] for s in program.sizes])
    return int(step(table, values))


@pytest.fixture
def native() -> Callable[..., int]:
    return run_native


@pytest.fixture
def check(target: Target) -> Callable[..., dict[str, np.ndarray]]:
    """Native code and the interpreter must leave the same bits and the same code."""

    def run(program: Program, arrays: Arrays, **sizes: int) -> dict[str, np.ndarray]:
        ours = {name: a.copy() for name, a in arrays.items()}
        meant = {name: a.copy() for name, a in arrays.items()}
        code = run_native(program, ours, sizes, target)
        assert code == interpret(program, meant, sizes, fma=target.fma)
        for name in arrays:
            same = (ours[name] == meant[name]) | (
                (ours[name] != ours[name]) & (meant[name] != meant[name])
            )
            assert same.all(), f"{name}: {ours[name][~same][:5]} but {meant[name][~same][:5]}"
        return ours

    return run
