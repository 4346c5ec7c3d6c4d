"""What the native epoch loop `i64 run(RunBlock *)` is told, and where it leaves what it did.

Step k of `step`..`last - 1` works on minibatch k % steps_per_epoch of epoch k // steps_per_epoch:
rows start = batch_size * (k % steps_per_epoch) up to start + batch_size or `rows`, whichever is
less. It sets sizes[batch_index] to their number (nothing where the index is -1), puts the rows of
every sliced input in place, calls the step, copies the logged scalars and advances `step`. Every
field is 8 bytes; addresses are 0 where there is nothing. The compiler writes the same fields in the
same order (chainrule.codegen.epoch), and a test holds the two to each other.
"""

from __future__ import annotations

import ctypes

#: what `run` returns, beside the positive code of a step that refused its input
FINISHED = 0


class SlicedInput(ctypes.Structure):
    """An input of which each step sees a minibatch of rows.

    With an order, rows are copied to `staging` (batch_size * row_bytes); without, the step is
    pointed into `source`. table[table_index] is what the step reads.
    """

    source: int
    staging: int
    row_bytes: int
    table_index: int
    _fields_ = (
        ("source", ctypes.c_void_p),
        ("staging", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("table_index", ctypes.c_int64),
    )


class LoggedScalar(ctypes.Structure):
    """A scalar result to keep: element k of `destination` is what it was after step k.

    `itemsize` is 1, 4 or 8 bytes.
    """

    table_index: int
    itemsize: int
    destination: int
    _fields_ = (
        ("table_index", ctypes.c_int64),
        ("itemsize", ctypes.c_int64),
        ("destination", ctypes.c_void_p),
    )


class RunBlock(ctypes.Structure):
    """The argument of `run`.

    `step` is the first step to run; afterwards the step that was not finished, or `last`. `order`
    holds `rows` int64 row numbers for each epoch in turn, from step 0 on.
    """

    table: int
    sizes: int
    step: int
    last: int
    steps_per_epoch: int
    rows: int
    batch_size: int
    batch_index: int
    order: int
    input_count: int
    inputs: int
    log_count: int
    logs: int
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("steps_per_epoch", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("batch_size", ctypes.c_int64),
        ("batch_index", ctypes.c_int64),
        ("order", ctypes.c_void_p),
        ("input_count", ctypes.c_int64),
        ("inputs", ctypes.c_void_p),
        ("log_count", ctypes.c_int64),
        ("logs", ctypes.c_void_p),
    )
