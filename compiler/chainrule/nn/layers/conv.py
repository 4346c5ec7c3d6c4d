"""Convolution and pooling over (batch, channels, ...), with PyTorch's arguments and layouts."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.errors import ShapeError
from chainrule.lang import functions as f
from chainrule.lang import windows
from chainrule.lang.arguments import flag
from chainrule.lang.manipulation import concat
from chainrule.lang.tensor import Tensor, TensorLike
from chainrule.nn.activations import Activation
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import activated, checked, count, floats, known

Ints = int | Sequence[int]


class _Conv(Layer):
    """Cross-correlation with `filters` learned kernels, over `axes` spatial axes."""

    axes: int
    takes: str

    def __init__(
        self,
        filters: int,
        kernel: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        activation: Activation = None,
        use_bias: bool = True,
        weight_init: object = None,
        bias_init: object = None,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        who = type(self).__name__
        self.filters, self.groups = count(f"{who}: filters", filters), count("groups", groups)
        if self.filters % self.groups:
            raise ShapeError(f"{who}: {filters} filters do not part into {groups} groups")
        self.kernel = each(f"{who}: kernel", kernel, self.axes, 1)
        self.stride = each(f"{who}: stride", stride, self.axes, 1)
        self.dilation = each(f"{who}: dilation", dilation, self.axes, 1)
        self.before, self.after = self._padding(padding)
        self.activation = checked(activation, who)
        self.use_bias = flag(f"{who}: use_bias", use_bias)
        self.weight_init, self.bias_init = weight_init, bias_init

    def _padding(self, given: Ints | str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many zeros stand before each axis, and how many more behind it."""
        who = type(self).__name__
        if not isinstance(given, str):
            return each(f"{who}: padding", given, self.axes, 0), (0,) * self.axes
        if given not in ("same", "valid"):
            raise ShapeError(f'{who}: padding is "same", "valid" or ints, not {given!r}')
        total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        if given == "valid":
            total = [0] * self.axes
        elif self.stride != (1,) * self.axes:
            raise ShapeError(f'{who}: padding "same" is for stride 1, not {self.stride}')
        return tuple(t // 2 for t in total), tuple(t % 2 for t in total)

    def forward(self, x: TensorLike) -> Tensor:
        who = type(self).__name__
        x = floats(x, who, self.axes + 2, self.takes)
        channels = known(x, 1, who)
        if channels % self.groups:
            raise ShapeError(
                f"{who}: the {channels} channels of {x.type} do not part into {self.groups} groups"
            )
        shape = (self.filters, channels // self.groups, *self.kernel)
        k = self.parameter("weight", shape, self.weight_init)
        for axis, more in enumerate(self.after, 2):
            if more:
                form = (*x.shape[:axis], more, *x.shape[axis + 1 :])
                x = concat([x, f.zeros(form, dtype=x.dtype)], axis=axis)
        z = windows.conv(x, k, self.stride, self.before, self.dilation, self.groups)
        if self.use_bias:
            b = self.parameter("bias", (self.filters,), self.bias_init)
            z = z + f.reshape(b, (self.filters, *(1,) * self.axes))
        return activated(self.activation, z)


class Conv1D(_Conv):
    """Cross-correlation over x (batch, in, length) with a kernel (filters, in/groups, kernel).

    Gives (batch, filters, (length + 2·padding - dilation·(kernel-1) - 1)//stride + 1), plus `bias`
    (filters,), and an activation of it. `padding` is how many zeros stand at each end, "valid" for
    none or "same" for as many as keep the length, at stride 1. The kernel is "weight". Raises
    ShapeError for what does not fit.
    """

    axes, takes = 1, "(batch, channels, length)"


class Conv2D(_Conv):
    """Cross-correlation over x (batch, in, h, w) with a kernel (filters, in/groups, kh, kw).

    Arguments are those of Conv1D, an int or one for each of the two axes.
    """

    axes, takes = 2, "(batch, channels, height, width)"


class MaxPool(Layer):
    """The largest of each window of x (batch, channels, ...); stride is the kernel by default."""

    def __init__(
        self,
        kernel: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        who, steps = type(self).__name__, kernel if stride is None else stride
        for what, given, least in (
            ("kernel", kernel, 1),
            ("stride", steps, 1),
            ("padding", padding, 0),
        ):
            axes = len(given) if isinstance(given, (tuple, list)) else 1
            each(f"{who}: {what}", given, axes, least)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: TensorLike) -> Tensor:
        return windows.max_pool(x, self.kernel, self.stride, self.padding)


class AvgPool(MaxPool):
    """The mean of each window of x (batch, channels, ...), where padding counts as zeros.

    The stride is the kernel by default.
    """

    def forward(self, x: TensorLike) -> Tensor:
        return windows.avg_pool(x, self.kernel, self.stride, self.padding)


class GlobalMaxPool(Layer):
    """The largest of each channel: (batch, channels, ...) gives (batch, channels)."""

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "GlobalMaxPool", least=3)
        return f.max(x, axis=tuple(range(2, x.ndim)))


class GlobalAvgPool(Layer):
    """The mean of each channel: (batch, channels, ...) gives (batch, channels)."""

    def forward(self, x: TensorLike) -> Tensor:
        x = floats(x, "GlobalAvgPool", least=3)
        return f.mean(x, axis=tuple(range(2, x.ndim)))


def each(what: str, value: object, axes: int, least: int) -> tuple[int, ...]:
    """An int for each of some axes. Raises ShapeError for anything else, or one below `least`."""
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(given) != axes:
        raise ShapeError(f"{what} is an int or {axes} of them, not {value!r}")
    return tuple(count(what, g, least) for g in given)
