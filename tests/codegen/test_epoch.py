"""The native epoch loop: minibatches in order, rows gathered, scalars logged."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from chainrule.codegen.epoch import BLOCK, INPUT, LOG
from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import compile_object, load
from chainrule.codegen.steps import Call
from chainrule.ir.loop import (
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Store,
)
from chainrule.ir.size import Size
from chainrule.ir.types import bool_, float32, int64
from chainrule_runtime.runblock import FINISHED, LoggedScalar, RunBlock, SlicedInput

N, J, I = Size.symbol("n"), Size.symbol("j"), Size.symbol("i")
ROWS, WIDTH, BATCH, EPOCHS = 10, 21, 4, 2
STEPS = 3


@pytest.fixture(scope="module")
def run():
    """A step that sums its rows, adds the labels and the rows' count, and refuses label 99."""
    x, y = Buffer("x", float32, N * WIDTH), Buffer("y", int64, N)
    out, seen = Buffer("out", float32, 1), Buffer("seen", int64, 1)
    acc = Local("acc", float32, (), True)
    total, labels = Combine("add", acc), Local("labels", int64)
    fine = Apply("ne", (Load(y, I), Literal(99, int64)), bool_)
    count = Apply("add", (Get(labels), IndexValue(N * 1000, int64)), int64)
    body = (
        acc,
        labels,
        Loop(
            "i",
            N,
            (Check(fine, 7), Set(labels, (), Apply("add", (Get(labels), Load(y, I)), int64))),
        ),
        Loop(
            "j", N * WIDTH, (Set(acc, (), Apply("add", (Get(acc), Load(x, J)), float32)),), "vector"
        ),
        Store(out, 0, total),
        Store(seen, 0, count),
    )
    program = Program("sums", (x, y, out, seen), ("n",), body)
    target = host_target()
    text = emit_module([Call(program, (0, 1, 2, 3))], ("n",), target, epochs=True)
    return load(compile_object(text, target))


def start(loaded, labels, order, first=0):
    x = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    stage_x, stage_y = np.zeros((BATCH, WIDTH), np.float32), np.zeros(BATCH, np.int64)
    out, seen = np.zeros(1, np.float32), np.zeros(1, np.int64)
    logs = np.full(STEPS * EPOCHS, np.nan, np.float32), np.zeros(STEPS * EPOCHS, np.int64)
    table = (ctypes.c_void_p * 4)(0, 0, out.ctypes.data, seen.ctypes.data)
    sizes = (ctypes.c_int64 * 1)(0)
    inputs = (SlicedInput * 2)(
        SlicedInput(x.ctypes.data, stage_x.ctypes.data, WIDTH * 4, 0),
        SlicedInput(labels.ctypes.data, stage_y.ctypes.data, 8, 1),
    )
    logged = (LoggedScalar * 2)(
        LoggedScalar(2, 4, logs[0].ctypes.data), LoggedScalar(3, 8, logs[1].ctypes.data)
    )
    block = RunBlock(
        table=ctypes.addressof(table),
        sizes=ctypes.addressof(sizes),
        step=first,
        last=STEPS * EPOCHS,
        steps_per_epoch=STEPS,
        rows=ROWS,
        batch_size=BATCH,
        batch_index=0,
        order=order.ctypes.data if order is not None else None,
        input_count=2,
        inputs=ctypes.addressof(inputs),
        log_count=2,
        logs=ctypes.addressof(logged),
    )
    code = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(loaded.address("run"))(
        ctypes.byref(block)
    )
    return code, block, logs


@pytest.mark.smoke
@pytest.mark.parametrize("shuffled", [False, True])
def test_epochs(run, shuffled):
    labels = np.arange(ROWS)
    order = np.concatenate([np.random.default_rng(e).permutation(ROWS) for e in range(EPOCHS)])
    code, block, logs = start(run, labels, order if shuffled else None)
    assert (code, block.step) == (FINISHED, 6)
    rows = order.reshape(EPOCHS, ROWS) if shuffled else np.tile(np.arange(ROWS), (EPOCHS, 1))
    x = np.arange(ROWS * WIDTH).reshape(ROWS, WIDTH)
    batches = [rows[e, s * BATCH : (s + 1) * BATCH] for e in range(EPOCHS) for s in range(STEPS)]
    assert logs[0].tolist() == [x[b].sum() for b in batches]
    assert logs[1].tolist() == [b.sum() + 1000 * len(b) for b in batches]


def test_resumes_in_the_middle(run):
    _, _, logs = start(run, np.arange(ROWS), None, first=4)
    assert np.isnan(logs[0][:4]).all()
    assert logs[1][4:].tolist() == [4 + 5 + 6 + 7 + 4000, 8 + 9 + 2000]


def test_a_refused_step_says_which(run):
    labels = np.arange(ROWS)
    labels[9] = 99
    code, block, _ = start(run, labels, None)
    assert (code, block.step) == (7, 2)


def test_runtime_and_compiler_agree_on_the_block():
    for fields, structure in ((BLOCK, RunBlock), (INPUT, SlicedInput), (LOG, LoggedScalar)):
        assert tuple(name for name, _ in structure._fields_) == fields
        assert ctypes.sizeof(structure) == 8 * len(fields)
