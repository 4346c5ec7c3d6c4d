"""Windows and normalisation: PyTorch's operators spelled in chainrule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch_table import TABLE as t
from torch_table import (
    entry,
    need,
)

import chainrule as cr

T = Any


def ints(value: Any, rank: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


def per_channel(v: T | None, rank: int, fill: float) -> Any:
    return fill if v is None else cr.reshape(v, (-1, *[1] * (rank - 2)))


# windows


def conv(
    x: T,
    weight: T,
    bias: T | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> T:
    single = x.ndim < weight.ndim
    x = cr.expand_dims(x, axis=0) if single else x
    rank = weight.ndim - 2
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(ints(dilation, rank), weight.shape[2:], strict=True)]
        around = [n for total in totals[::-1] for n in (total // 2, total - total // 2)]
        x, padding = t["constant_pad_nd"](x, around), 0
    y = cr.conv(
        x,
        weight,
        stride=ints(stride, rank),
        padding=ints(padding, rank),
        dilation=ints(dilation, rank),
        groups=groups,
    )
    y = y if bias is None else y + per_channel(bias, y.ndim, 0.0)
    return cr.squeeze(y, axis=0) if single else y


def conv_transpose(
    x: T,
    weight: T,
    bias: T | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> T:
    """The adjoint of a convolution: its vjp by what it convolves, wherever that is taken."""
    single = x.ndim < weight.ndim
    x = cr.expand_dims(x, axis=0) if single else x
    rank = weight.ndim - 2
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(
            x.shape[2:],
            *(ints(v, rank) for v in (stride, padding, dilation)),
            weight.shape[2:],
            ints(output_padding, rank),
            strict=True,
        )
    ]
    z = cr.zeros((x.shape[0], weight.shape[1] * groups, *sizes), dtype=x.dtype)
    forward = cr.conv(
        z,
        weight,
        stride=ints(stride, rank),
        padding=ints(padding, rank),
        dilation=ints(dilation, rank),
        groups=groups,
    )
    need(forward.shape == x.shape, "an output padding beyond the stride")
    y = cr.vjp([forward], [z], [x])[0]
    y = y if bias is None else y + per_channel(bias, y.ndim, 0.0)
    return cr.squeeze(y, axis=0) if single else y


for n in (1, 2, 3):
    t[f"nn.functional.conv{n}d"] = conv
    t[f"nn.functional.conv_transpose{n}d"] = conv_transpose


def pooled(function: Any, rank: int, x: T, kernel: Any, stride: Any, padding: Any) -> T:
    single = x.ndim < rank + 2
    x = cr.expand_dims(x, axis=0) if single else x
    kernel = ints(kernel, rank)
    stride = kernel if stride is None or stride == () else ints(stride, rank)
    y = function(x, kernel, stride, ints(padding, rank))
    return cr.squeeze(y, axis=0) if single else y


def max_pool(rank: int) -> Any:
    def spelled(
        x: T,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> T:
        need(set(ints(dilation, rank)) == {1}, "windows of a maximum with holes")
        need(not return_indices, "the places of a pool's maxima")
        need(not ceil_mode, "windows that are cut off")
        return pooled(cr.max_pool, rank, x, kernel_size, stride, padding)

    return spelled


def avg_pool(rank: int) -> Any:
    def spelled(
        x: T,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> T:
        need(not ceil_mode, "windows that are cut off")
        y = pooled(cr.avg_pool, rank, x, kernel_size, stride, padding)
        whole = math.prod(ints(kernel_size, rank))
        if divisor_override is not None:
            return y * (whole / divisor_override)
        if not count_include_pad and any(ints(padding, rank)):
            ones = pooled(cr.avg_pool, rank, cr.ones_like(x), kernel_size, stride, padding)
            return y / ones
        return y

    return spelled


for n in (1, 2, 3):
    t[f"nn.functional.max_pool{n}d"] = max_pool(n)
    t[f"nn.functional.avg_pool{n}d"] = avg_pool(n)


def adaptive(rank: int) -> Any:
    def spelled(x: T, output_size: Any) -> T:
        wanted = [output_size] * rank if output_size is None else output_size
        wanted = [wanted] * rank if isinstance(wanted, int) else list(wanted)
        wanted = wanted * rank if len(wanted) == 1 else wanted
        extents = x.shape[x.ndim - rank :]
        wanted = [n if w is None else w for w, n in zip(wanted, extents, strict=True)]
        even = all(n % w == 0 for n, w in zip(extents, wanted, strict=True))
        need(even, "windows of different sizes")
        kernel = [n // w for n, w in zip(extents, wanted, strict=True)]
        return pooled(cr.avg_pool, rank, x, kernel, None, 0)

    return spelled


for n in (1, 2, 3):
    t[f"nn.functional.adaptive_avg_pool{n}d"] = adaptive(n)


@entry("nn.functional.pixel_shuffle")
def pixel_shuffle(x: T, upscale_factor: int) -> T:
    r, (*lead, c, h, w) = upscale_factor, x.shape
    k = len(lead)
    y = cr.reshape(x, (*lead, c // r**2, r, r, h, w))
    y = cr.permute_dims(y, (*range(k), k, k + 3, k + 1, k + 4, k + 2))
    return cr.reshape(y, (*lead, c // r**2, h * r, w * r))


@entry("nn.functional.pixel_unshuffle")
def pixel_unshuffle(x: T, downscale_factor: int) -> T:
    r, (*lead, c, h, w) = downscale_factor, x.shape
    k = len(lead)
    y = cr.reshape(x, (*lead, c, h // r, r, w // r, r))
    y = cr.permute_dims(y, (*range(k), k, k + 2, k + 4, k + 1, k + 3))
    return cr.reshape(y, (*lead, c * r**2, h // r, w // r))


@entry("nn.functional.channel_shuffle")
def channel_shuffle(x: T, groups: int) -> T:
    n, c, *rest = x.shape
    y = cr.permute_dims(
        cr.reshape(x, (n, groups, c // groups, *rest)), (0, 2, 1, *range(3, len(rest) + 3))
    )
    return cr.reshape(y, x.shape)


# normalisation


def normal(x: T, axes: Sequence[int], eps: float) -> T:
    distance = x - cr.mean(x, axis=axes, keepdims=True)
    return distance / cr.sqrt(cr.var(x, axis=axes, keepdims=True) + eps)


@entry("nn.functional.layer_norm")
def layer_norm(
    x: T, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> T:
    if len(shape) == 1 and hasattr(cr, "layer_norm") and eps > 0:
        return cr.layer_norm(x, weight, bias, eps=eps)
    y = normal(x, tuple(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@entry("nn.functional.rms_norm")
def rms_norm(x: T, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> T:
    eps = {"float32": 2.0**-23, "float64": 2.0**-52}[str(x.dtype.name)] if eps is None else eps
    axes = tuple(range(-len(shape), 0))
    y = x * cr.rsqrt(cr.mean(cr.square(x), axis=axes, keepdims=True) + eps)
    return y if weight is None else y * weight


@entry("nn.functional.group_norm")
def group_norm(x: T, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> T:
    n, c = x.shape[:2]
    each = math.prod(x.shape[1:]) // num_groups
    y = cr.reshape(normal(cr.reshape(x, (n, num_groups, each)), (-1,), eps), x.shape)
    assert c % num_groups == 0
    return y * per_channel(weight, x.ndim, 1.0) + per_channel(bias, x.ndim, 0.0)


@entry("nn.functional.instance_norm")
def instance_norm(
    x: T,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> T:
    need(use_input_stats, "running statistics")
    y = normal(x, tuple(range(2, x.ndim)), eps)
    return y * per_channel(weight, x.ndim, 1.0) + per_channel(bias, x.ndim, 0.0)


@entry("nn.functional.batch_norm", "nn.functional.batch_norm:without_cudnn")
def batch_norm(
    x: T,
    running_mean: T,
    running_var: T,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> T:
    need(0 not in x.shape and x.ndim > 1, "nothing to normalise")
    if training:
        y = normal(x, (0, *range(2, x.ndim)), eps)
    else:
        y = x - per_channel(running_mean, x.ndim, 0.0)
        y = y / cr.sqrt(per_channel(running_var, x.ndim, 0.0) + eps)
    return y * per_channel(weight, x.ndim, 1.0) + per_channel(bias, x.ndim, 0.0)


@entry("nn.functional.normalize")
def normalize(x: T, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> T:
    norm = t["linalg.vector_norm"](x, p, dim, keepdim=True)
    return x / cr.reshape(cr.maximum(norm, eps), norm.shape if x.ndim else ())


@entry("nn.functional.cosine_similarity")
def cosine_similarity(x: T, y: T, dim: int = 1, eps: float = 1e-8) -> T:
    x, y = cr.broadcast_arrays(x, y)
    norms = [cr.maximum(t["linalg.vector_norm"](a, 2, dim), eps) for a in (x, y)]
    return t["sum"](x * y, dim) / (norms[0] * norms[1])


@entry("nn.functional.pairwise_distance")
def distance(x: T, y: T, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> T:
    return t["linalg.vector_norm"](x - y + eps, p, -1, keepdim)


@entry("nn.functional.scaled_dot_product_attention")
def attention(
    q: T,
    k: T,
    v: T,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> T:
    need(dropout_p == 0.0, "random numbers")
    need(not enable_gqa, "grouped queries")
    boolean = attn_mask is None or attn_mask.dtype.is_bool
    if hasattr(cr, "attention") and boolean and q.shape[:-2] == k.shape[:-2]:
        return cr.attention(q, k, v, causal=is_causal, mask=attn_mask, scale=scale)
    s = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        rows, columns = (cr.arange(n) for n in s.shape[-2:])
        s = cr.where(cr.expand_dims(rows, axis=1) >= columns, s, -math.inf)
    if attn_mask is not None:
        s = cr.where(attn_mask, s, -math.inf) if boolean else s + attn_mask
    return cr.softmax(s) @ v
