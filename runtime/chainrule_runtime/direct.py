"""A training step called directly: array headers are read by native code, not by Python.

It serves the call that is made most: NumPy arrays of the very types and shapes of the call before,
contiguous, aligned and apart from what is kept. For all else it gives NaN and has done nothing, or
nothing but a step that changed nothing, and the ordinary way decides. Addresses are read from the
arrays at each call, never remembered.
"""

from __future__ import annotations

import ctypes
import platform
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from chainrule_runtime.memory import Array

_DIRECT = ctypes.PYFUNCTYPE(ctypes.c_double, ctypes.py_object, ctypes.c_void_p)
#: offsets in an array's header, as the compiled code reads it
_TYPE, _DATA, _RANK, _SHAPE, _DTYPE, _FLAGS = 8, 16, 24, 32, 56, 64


class DirectInput(ctypes.Structure):
    """What an array must be: its name, dtype object, shape; and where its address goes."""

    _fields_ = (
        ("key", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("table_index", ctypes.c_int64),
    )


class Span(ctypes.Structure):
    """Memory that no input may lie in: from `start` to before `end`."""

    _fields_ = (("start", ctypes.c_int64), ("end", ctypes.c_int64))


class DirectBlock(ctypes.Structure):
    """The second argument of `direct`; `loss` points to a float of `loss_bytes`, 4 or 8."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("loss_bytes", ctypes.c_int64),
        ("array_type", ctypes.c_void_p),
        ("dict_size", ctypes.c_void_p),
        ("dict_get", ctypes.c_void_p),
        ("save_thread", ctypes.c_void_p),
        ("restore_thread", ctypes.c_void_p),
        ("input_count", ctypes.c_int64),
        ("inputs", ctypes.c_void_p),
        ("span_count", ctypes.c_int64),
        ("spans", ctypes.c_void_p),
    )


class DirectCall:
    """A program's direct call for arrays of given types and shapes: `call(feeds)` is the loss.

    `inputs` are (name, dtype, shape, place in the table). NaN where the ordinary way must be taken.
    """

    def __init__(
        self,
        direct_address: int,
        table: int,
        sizes: int,
        loss: Array,
        inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...], int]],
        spans: Iterable[tuple[int, int]],
    ) -> None:
        shapes = [(ctypes.c_int64 * max(1, len(shape)))(*shape) for _, _, shape, _ in inputs]
        apart = [Span(start, end) for start, end in spans]
        self._inputs = (DirectInput * max(1, len(inputs)))(
            *(
                DirectInput(
                    id(name),
                    id(dtype),
                    len(shape),
                    ctypes.addressof(native),
                    int(np.prod(shape, dtype=object)) * dtype.itemsize,
                    place,
                )
                for (name, dtype, shape, place), native in zip(inputs, shapes, strict=True)
            )
        )
        self._spans = (Span * max(1, len(apart)))(*apart)
        self._alive = list(inputs), shapes, loss
        api = ctypes.pythonapi
        self._block = DirectBlock(
            table=table,
            sizes=sizes,
            loss=loss.ctypes.data,
            loss_bytes=loss.itemsize,
            array_type=id(np.ndarray),
            dict_size=_function(api.PyDict_Size),
            dict_get=_function(api.PyDict_GetItemWithError),
            save_thread=_function(api.PyEval_SaveThread),
            restore_thread=_function(api.PyEval_RestoreThread),
            input_count=len(inputs),
            inputs=ctypes.addressof(self._inputs),
            span_count=len(apart),
            spans=ctypes.addressof(self._spans),
        )
        self._address = ctypes.addressof(self._block)
        self._direct: Callable[[dict[str, Any], int], float] = _DIRECT(direct_address)

    def __call__(self, feeds: dict[str, Any]) -> float:
        """The loss of one step, or NaN."""
        return self._direct(feeds, self._address)


def _function(of: Any) -> int | None:
    return ctypes.cast(of, ctypes.c_void_p).value


@lru_cache(maxsize=1)
def headers_are_known() -> bool:
    """Whether an array's header is where native code looks for it: CPython with its lock."""
    plain = platform.python_implementation() == "CPython" and not any(
        sysconfig.get_config_var(name) for name in ("Py_GIL_DISABLED", "Py_DEBUG", "Py_TRACE_REFS")
    )
    if not plain or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    array = np.zeros((3, 5), np.int16)
    at = id(array)

    def word(offset: int) -> int:
        return int(ctypes.c_int64.from_address(at + offset).value)

    def half(offset: int) -> int:
        return int(ctypes.c_int32.from_address(at + offset).value)

    shape = word(_SHAPE)
    return (
        word(_TYPE) == id(np.ndarray)
        and word(_DATA) == array.ctypes.data
        and half(_RANK) == 2
        and [ctypes.c_int64.from_address(shape + 8 * i).value for i in (0, 1)] == [3, 5]
        and word(_DTYPE) == id(array.dtype)
        and half(_FLAGS) == array.flags.num
    )
