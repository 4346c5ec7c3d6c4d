"""Indexing and padding: PyTorch's operators spelled in chainrule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch_shapes import raised
from torch_table import TABLE as t
from torch_table import (
    entry,
    like,
    narrow,
    need,
    of,
    wide,
)

import chainrule as cr

T = Any

# padding

t["constant_pad_nd"] = lambda x, around, value=0: pad(x, around, "constant", value)


@entry("nn.functional.pad:constant")
def pad(x: T, pad: Sequence[int], mode: str = "constant", value: Any = 0) -> T:
    value = 0 if value is None else value
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.ndim - 1 - i
        x = narrow(x, axis, max(-before, 0), x.shape[axis] - max(-before, 0) - max(-after, 0))
        ends = [
            cr.full((*x.shape[:axis], n, *x.shape[axis + 1 :]), value, dtype=x.dtype)
            for n in (max(before, 0), max(after, 0))
        ]
        x = cr.concat([ends[0], x, ends[1]], axis=axis)
    return x


@entry(
    "nn.functional.pad:reflect",
    "nn.functional.pad:replicate",
    "nn.functional.pad:circular",
    "nn.functional.pad:replicate_negative",
)
def pad_by(x: T, pad: Sequence[int], mode: str = "constant", value: Any = None) -> T:
    kind = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        axis = x.ndim - 1 - i
        at = np.arange(max(-before, 0), x.shape[axis] - max(-after, 0))
        need(at.size > 0, "ends of nothing")
        at = np.pad(at, (max(before, 0), max(after, 0)), kind)
        x = cr.take(x, at, axis=axis)
    return x


# indexing


@entry("gather")
def gather(x: T, dim: int, index: T, sparse_grad: bool = False) -> T:
    if x.ndim == 0:
        return cr.reshape(cr.take(wide(x), wide(index), axis=0), index.shape)
    need(index.ndim == x.ndim, "an empty index of another rank")
    for axis, n in enumerate(index.shape):
        x = x if axis == dim % x.ndim else narrow(x, axis, 0, n)
    return cr.take_along_axis(x, index, axis=dim)


@entry("take_along_dim")
def take_along(x: T, index: T, dim: int | None = None) -> T:
    if dim is None:
        x, index, dim = cr.reshape(x, (-1,)), cr.reshape(index, (-1,)), 0
    return cr.take_along_axis(x, cr.where(index < 0, index + x.shape[dim], index), axis=dim)


@entry("index_select")
def index_select(x: T, dim: int, index: T) -> T:
    y = cr.take(wide(x), index, axis=dim)
    return cr.reshape(y, ()) if x.ndim == 0 else y


@entry("take")
def take(x: T, index: T) -> T:
    need(0 not in x.shape, "no elements")
    flat = cr.reshape(x, (-1,))
    n = flat.shape[0]
    return cr.take(flat, cr.where(index < 0, index + n, index), axis=0)


@entry("nn.functional.embedding")
def embedding(weight: T, index: T, **options: Any) -> T:
    need(set(options) <= {"padding_idx"}, "norms of an embedding")
    return cr.take(weight, index, axis=0)


t["nn.functional.one_hot"] = lambda y, num_classes=-1: one_hot(y, num_classes)


def one_hot(y: T, classes: int) -> T:
    need(classes > 0, "a shape that depends on data")
    return cr.one_hot(y, classes, dtype="int64")


@entry("index_add")
def index_add(x: T, dim: int, index: T, source: T, alpha: float = 1) -> T:
    scaled = source * like(alpha, source)
    if x.ndim == 0:
        return cr.reshape(cr.scatter_add(wide(x), wide(index), wide(scaled)), ())
    return cr.scatter_add(x, wide(index), scaled, axis=dim)


@entry("scatter_add")
def scatter_add(x: T, dim: int, index: T, source: T) -> T:
    if x.ndim == 0:
        return cr.reshape(cr.scatter_add(wide(x), wide(index), wide(source)), ())
    dim %= x.ndim
    strides = np.cumprod([1, *x.shape[::-1]])[-2::-1]
    flat = cr.zeros(index.shape, dtype="int64")
    for axis, by in enumerate(strides):
        place = [1] * index.ndim
        place[axis] = index.shape[axis]
        along_axis = cr.reshape(cr.arange(index.shape[axis]), place)
        flat = flat + (index.astype("int64") if axis == dim else along_axis) * int(by)
    source = x_slice(source, index.shape)
    out = cr.scatter_add(cr.reshape(x, (-1,)), cr.reshape(flat, (-1,)), cr.reshape(source, (-1,)))
    return cr.reshape(out, x.shape)


def x_slice(x: T, shape: Sequence[int]) -> T:
    return x[tuple(slice(0, n) for n in shape)]


@entry("index_fill")
def index_fill(x: T, dim: int, index: T, value: Any) -> T:
    rows = wide(x)
    hit = cr.any(cr.one_hot(wide(index), rows.shape[dim], dtype="bool"), axis=0)
    shape = [1] * rows.ndim
    shape[dim] = -1
    y = cr.where(cr.reshape(hit, shape), like(value, x), rows)
    return cr.reshape(y, x.shape)


@entry("trapezoid", "trapz")
def trapezoid(y: T, x: Any = None, dx: float = 1, dim: int = -1) -> T:
    need(x is None or x.ndim == y.ndim, "spacing of another rank")
    n = y.shape[dim]
    sums = (narrow(y, dim, 1, n - 1) + narrow(y, dim, 0, n - 1)) / 2
    if x is None:
        return cr.sum(sums * float(dx), axis=dim)
    return cr.sum(sums * cr.diff(x, axis=dim), axis=dim)


@entry("block_diag")
def block_diag(*xs: T) -> T:
    xs = tuple(raised([x], 2)[0] if x.ndim < 2 else x for x in xs)
    columns = sum(x.shape[1] for x in xs)
    rows, start = [], 0
    for x in xs:
        rows.append(pad(x, (start, columns - start - x.shape[1])))
        start += x.shape[1]
    return cr.concat(rows, axis=0)


def likewise(function: Any) -> Any:
    return lambda x, dtype=None, **_: of(function(x), dtype)


t["zeros_like"], t["ones_like"] = likewise(cr.zeros_like), likewise(cr.ones_like)
