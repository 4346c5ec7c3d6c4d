"""Products, shapes and joining: PyTorch's operators spelled in chainrule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch_table import TABLE as t
from torch_table import (
    entry,
    like,
    narrow,
    need,
    wide,
)

import chainrule as cr

T = Any

# products


def scaled(x: T, beta: float, product: T, alpha: float) -> T:
    product = product if alpha == 1 else product * like(alpha, product)
    if beta == 0:
        return product
    return (x if beta == 1 else x * like(beta, x)) + product


for name, product in {
    "addmm": cr.matmul,
    "addmm:decomposed": cr.matmul,
    "addmv": cr.matmul,
    "baddbmm": cr.matmul,
    "addr": cr.outer,
    "addbmm": lambda a, b: cr.einsum("bij,bjk->ik", a, b),
}.items():
    t[name] = lambda x, a, b, beta=1, alpha=1, f=product: scaled(x, beta, f(a, b), alpha)
for name in ("matmul", "mm", "bmm", "bmm:triton_optimized", "mv", "dot", "vdot"):
    t[name] = lambda x, y: x @ y
t["outer"] = cr.outer
t["einsum"] = lambda operands, equation: cr.einsum(equation, *operands)


@entry("inner")
def inner(x: T, y: T) -> T:
    return x * y if 0 in (x.ndim, y.ndim) else cr.tensordot(x, y, axes=((-1,), (-1,)))


@entry("tensordot")
def tensordot(x: T, y: T, dims: Any = 2) -> T:
    pairs = [] if isinstance(dims, int) else zip(*dims, strict=True)
    need(all(x.shape[a] == y.shape[b] for a, b in pairs), "a sum over axes that broadcast")
    return cr.tensordot(x, y, axes=dims)


@entry("linalg.vecdot")
def vecdot(x: T, y: T, dim: int = -1) -> T:
    return cr.sum(x * y, axis=dim)


@entry("linalg.multi_dot")
def multi_dot(operands: Sequence[T]) -> T:
    out = operands[0]
    for y in operands[1:]:
        out = out @ y
    return out


@entry("kron")
def kron(x: T, y: T) -> T:
    rank = max(x.ndim, y.ndim)
    x, y = (cr.reshape(a, ((1,) * (rank - a.ndim)) + a.shape) for a in (x, y))
    left = cr.reshape(x, [n for d in x.shape for n in (d, 1)])
    right = cr.reshape(y, [n for d in y.shape for n in (1, d)])
    return cr.reshape(left * right, [a * b for a, b in zip(x.shape, y.shape, strict=True)])


@entry("cross", "linalg.cross")
def cross(x: T, y: T, dim: int = -1) -> T:
    def turned(a: T, by: int) -> T:
        return cr.roll(a, by, axis=dim)

    x, y = cr.broadcast_arrays(x, y)
    return turned(x, -1) * turned(y, -2) - turned(x, -2) * turned(y, -1)


@entry("nn.functional.linear")
def linear(x: T, weight: T, bias: T | None = None) -> T:
    y = x @ (weight.T if weight.ndim == 2 else weight)
    return y if bias is None else y + bias


@entry("nn.functional.bilinear")
def bilinear(x: T, y: T, weight: T, bias: T | None = None) -> T:
    lead = "pqrs"[: x.ndim - 1]
    out = cr.einsum(f"{lead}i,oij,{lead}j->{lead}o", x, weight, y)
    return out if bias is None else out + bias


@entry("linalg.matrix_power")
def matrix_power(x: T, n: int) -> T:
    need(n >= 0, "no inverse")
    out = cr.broadcast_to(cr.eye(x.shape[-1], dtype=x.dtype), x.shape)
    for _ in range(n):
        out = out @ x
    return out


# shapes

for name in ("reshape", "view", "view_copy", "_unsafe_view"):
    t[name] = lambda x, shape: cr.reshape(x, tuple(shape))
for name in ("reshape_as", "view_as"):
    t[name] = lambda x, y: cr.reshape(x, y.shape)
t["ravel"] = lambda x: cr.reshape(x, (-1,)) if 0 not in x.shape else cr.reshape(x, (0,))


@entry("flatten")
def flatten(x: T, start_dim: int = 0, end_dim: int = -1) -> T:
    x = wide(x)
    start, end = start_dim % x.ndim, end_dim % x.ndim
    middle = math.prod(x.shape[start : end + 1])
    return cr.reshape(x, (*x.shape[:start], middle, *x.shape[end + 1 :]))


@entry("unflatten")
def unflatten(x: T, dim: int, sizes: Sequence[int]) -> T:
    dim %= x.ndim
    return cr.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


for name in ("permute", "permute_copy"):
    t[name] = lambda x, dims: cr.permute_dims(x, dims)


@entry("transpose", "transpose_copy")
def transpose(x: T, a: int, b: int) -> T:
    if x.ndim == 0:
        return x
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return cr.permute_dims(x, axes)


for name in ("t", "t_copy", "T", "H"):
    t[name] = lambda x: x.T if x.ndim == 2 else x
for name in ("mT", "mH"):
    t[name] = lambda x: x.mT
t["movedim"] = lambda x, source, to: cr.moveaxis(x, source, to)
t["flip"] = lambda x, dims: cr.flip(x, axis=tuple(dims)) if len(tuple(dims)) else x
t["fliplr"] = lambda x: cr.flip(x, axis=1)
t["flipud"] = lambda x: cr.flip(x, axis=0)


@entry("roll")
def roll(x: T, shifts: Any, dims: Any = None) -> T:
    shifts = shifts if isinstance(shifts, int) else tuple(shifts)
    dims = dims if dims is None or isinstance(dims, int) else tuple(dims)
    if dims == () or (dims is None and not isinstance(shifts, int)):
        dims, shifts = None, shifts if isinstance(shifts, int) else shifts[0]
    return cr.roll(x, shifts, axis=dims)


@entry("rot90")
def rot90(x: T, k: int = 1, dims: Sequence[int] = (0, 1)) -> T:
    a, b = dims
    for _ in range(k % 4):
        x = transpose(cr.flip(x, axis=b), a, b)
    return x


@entry("expand", "expand_copy", "broadcast_to")
def expand(x: T, shape: Sequence[int]) -> T:
    lead = len(shape) - x.ndim
    to = [x.shape[i - lead] if n == -1 else n for i, n in enumerate(shape)]
    return cr.broadcast_to(x, tuple(to))


t["expand_as"] = lambda x, y: cr.broadcast_to(x, y.shape)
t["broadcast_tensors"] = lambda *xs: cr.broadcast_arrays(*xs)
t["sum_to_size"] = lambda x, *shape: sum_to(x, shape)


def sum_to(x: T, shape: Any) -> T:
    to = tuple(shape[0]) if shape and isinstance(shape[0], (tuple, list)) else tuple(shape)
    lead = x.ndim - len(to)
    axes = [*range(lead), *(lead + i for i, n in enumerate(to) if n == 1)]
    return cr.reshape(cr.sum(x, axis=tuple(axes)), to)


@entry("squeeze", "squeeze:multiple", "squeeze_copy")
def squeeze(x: T, dim: Any = None) -> T:
    given = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = tuple(a % max(x.ndim, 1) for a in given)
    axes = tuple(a for a in axes if x.ndim and x.shape[a] == 1)
    return cr.squeeze(x, axis=axes) if axes else x


for name in ("unsqueeze", "unsqueeze_copy"):
    t[name] = lambda x, dim: cr.expand_dims(x, axis=dim)


@entry("narrow", "narrow_copy")
def narrowed(x: T, dim: int, start: Any, length: int) -> T:
    need(isinstance(start, int), "a start that is a tensor")
    return narrow(x, dim, start % x.shape[dim] if start < 0 else start, length)


@entry("slice")
def slice_(x: T, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> T:
    ranges = [slice(None)] * x.ndim
    ranges[dim] = slice(start, end, step)
    return x[tuple(ranges)]


@entry("select")
def select(x: T, dim: int, index: int) -> T:
    return x[(*[slice(None)] * (dim % x.ndim), index)]


@entry("__getitem__")
def getitem(x: T, index: Any) -> T:
    parts = index if isinstance(index, tuple) else (index,)
    need(
        all(not isinstance(p, cr.Tensor) or not p.dtype.is_bool for p in parts),
        "a shape that depends on data",
    )
    return x[index]


@entry("chunk", "unsafe_chunk")
def chunk(x: T, chunks: int, dim: int = 0) -> Any:
    size = -(-x.shape[dim] // chunks)
    return split(x, size, dim)


@entry("split", "split:list_args", "unsafe_split", "split_with_sizes", "split_with_sizes_copy")
def split(x: T, sizes: Any, dim: int = 0) -> Any:
    n = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)]
    starts = np.cumsum([0, *sizes])
    return [narrow(x, dim, int(a), int(k)) for a, k in zip(starts, sizes, strict=False)]


@entry("tensor_split", "hsplit", "vsplit", "dsplit")
def tensor_split(x: T, at: Any, dim: int = 0) -> Any:
    need(not isinstance(at, cr.Tensor), "places that are a tensor")
    n = x.shape[dim]
    if isinstance(at, int):
        at = np.cumsum([n // at + (i < n % at) for i in range(at)])[:-1]
    ends = [0, *(int(a) for a in at), n]
    return [narrow(x, dim, a, b - a) for a, b in pairwise(ends)]


t["hsplit"] = lambda x, at: tensor_split(x, at, 0 if x.ndim == 1 else 1)
t["dsplit"] = lambda x, at: tensor_split(x, at, 2)

for name in ("unbind", "unbind_copy"):
    t[name] = lambda x, dim=0: cr.unstack(x, axis=dim)
t["stack"] = lambda xs, dim=0: cr.stack(xs, axis=dim)


@entry("cat")
def cat(xs: Sequence[T], dim: int = 0) -> T:
    kept = [x for x in xs if x.shape != (0,)] or list(xs)  # PyTorch ignores empty vectors
    return cr.concat(kept, axis=dim)


def raised(xs: Sequence[T], rank: int) -> list[T]:
    return [cr.reshape(x, (1,) * (rank - x.ndim) + x.shape) for x in xs]


t["hstack"] = lambda xs: cr.concat([wide(x) for x in xs], axis=0 if xs[0].ndim < 2 else 1)
t["vstack"] = lambda xs: cr.concat(raised(xs, 2), axis=0)
t["column_stack"] = lambda xs: cr.concat(
    [x if x.ndim > 1 else cr.reshape(x, (-1, 1)) for x in xs], axis=1
)
t["dstack"] = lambda xs: cr.concat([atleast_3d(x) for x in xs], axis=2)


def atleast_3d(x: T) -> T:
    if x.ndim == 1:
        return cr.reshape(x, (1, -1, 1))
    return cr.reshape(x, x.shape + (1,) * (3 - x.ndim)) if x.ndim < 3 else x


t["atleast_1d"] = lambda *xs: each([wide(x) for x in listed(xs)])
t["atleast_2d"] = lambda *xs: each([raised([x], 2)[0] if x.ndim < 2 else x for x in listed(xs)])
t["atleast_3d"] = lambda *xs: each([atleast_3d(x) for x in listed(xs)])


def listed(xs: Any) -> Any:
    return xs[0] if isinstance(xs[0], (list, tuple)) else xs


def each(xs: list[T]) -> Any:
    return xs if len(xs) > 1 else xs[0]


t["meshgrid:variadic_tensors"] = lambda *xs, indexing="ij": cr.meshgrid(*xs, indexing=indexing)
t["meshgrid:list_of_tensors"] = lambda xs, indexing="ij": cr.meshgrid(*xs, indexing=indexing)
t["repeat"] = lambda x, times: cr.tile(x, tuple(times))
t["tile"] = lambda x, times: cr.tile(x, tuple(times))


@entry("repeat_interleave")
def repeat(x: T, repeats: Any, dim: int | None = None, output_size: Any = None) -> T:
    need(isinstance(repeats, int), "repeats that are a tensor")
    return cr.repeat(wide(x) if x.ndim == 0 else x, repeats, axis=dim)


@entry("diff")
def diff(x: T, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> T:
    need(x.shape[dim] > 0, "differences of nothing")
    return cr.diff(x, n=n, axis=dim, prepend=prepend, append=append)


t["tril"], t["triu"] = (
    (lambda x, k=0, f=f: f(x, k=k))
    for f in (cr.tril, cr.triu)  # of matrices
)


def places(x: T, chosen: Any) -> T:
    """The elements of x at places that are known: `chosen` is a function of their numbers."""
    numbers = chosen(np.arange(math.prod(x.shape)).reshape(x.shape))
    return cr.take(cr.reshape(x, (math.prod(x.shape),)), np.ascontiguousarray(numbers), axis=0)


def diagonal(x: T, offset: int = 0, dim1: int = 0, dim2: int = 1) -> T:
    return places(x, lambda n: np.diagonal(n, offset, dim1, dim2))


t["diagonal"] = t["diagonal_copy"] = diagonal
t["linalg.diagonal"] = lambda x, offset=0, dim1=-2, dim2=-1: diagonal(x, offset, dim1, dim2)
t["trace"] = lambda x: cr.sum(diagonal(x))


@entry("diag")
def diag(x: T, diagonal: int = 0) -> T:
    if x.ndim == 2:
        return t["diagonal"](x, diagonal)
    n = x.shape[0] + abs(diagonal)
    full = cr.zeros((n * n,), dtype=x.dtype)
    at = np.diagonal(np.arange(n * n).reshape(n, n), diagonal)
    return cr.reshape(cr.scatter_add(full, np.ascontiguousarray(at), x), (n, n))


t["diagflat"] = lambda x, offset=0: diag(cr.reshape(x, (math.prod(x.shape),)), offset)


@entry("unfold", "unfold_copy")
def unfold(x: T, dim: int, size: int, step: int) -> T:
    if x.ndim == 0:
        return wide(x)
    return places(
        x,
        lambda n: np.moveaxis(
            np.lib.stride_tricks.sliding_window_view(n, size, dim)[
                (*[slice(None)] * (dim % n.ndim), slice(None, None, step))
            ],
            -1,
            -1,
        ),
    )


@entry("as_strided", "as_strided_copy")
def as_strided(x: T, size: Any, stride: Any, storage_offset: int = 0) -> T:
    at = np.asarray(storage_offset)
    for length, by in zip(size, stride, strict=True):
        at = at[..., None] + by * np.arange(length)
    need(at.size == 0 or at.max() < math.prod(x.shape), "storage beyond the tensor")
    return cr.take(cr.reshape(x, (-1,)), at, axis=0)
