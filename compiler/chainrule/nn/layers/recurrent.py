"""Recurrent layers: RNN, LSTM and GRU, each one step that `cr.scan` repeats along time.

Equations and the order of gates are PyTorch's, so that its weights can be copied: a matrix here is
(in, out), the transpose of its.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainrule.errors import DTypeError, ShapeError
from chainrule.lang import functions as f
from chainrule.lang.arguments import flag
from chainrule.lang.manipulation import concat
from chainrule.lang.scan import scan
from chainrule.lang.tensor import Tensor, TensorLike, as_node
from chainrule.nn.activations import Activation
from chainrule.nn.layer import Layer
from chainrule.nn.layers.dense import activated, checked, count, floats, known

#: what is carried from step to step: h, of an LSTM h and c
State = tuple[Tensor, ...]


class _Recurrent(Layer):
    """What the recurrent layers share; a subclass says how many gates it has, and its `step`."""

    gates = 1
    carried: tuple[str, ...] = ("h",)

    def __init__(
        self,
        units: int,
        return_sequences: bool = False,
        return_state: bool = False,
        bidirectional: bool = False,
        use_bias: bool = True,
        weight_init: object = "glorot_uniform",
        state_init: object = "orthogonal",
        bias_init: object = "zeros",
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.units = count(f"{type(self).__name__}: units", units)
        who = type(self).__name__
        self.return_sequences = flag(f"{who}: return_sequences", return_sequences)
        self.return_state = flag(f"{who}: return_state", return_state)
        self.bidirectional = flag(f"{who}: bidirectional", bidirectional)
        self.use_bias = flag(f"{who}: use_bias", use_bias)
        self.weight_init, self.state_init = weight_init, state_init
        self.bias_init = bias_init

    def forward(self, x: TensorLike, initial: Any = None, mask: TensorLike | None = None) -> Any:
        who = type(self).__name__
        x = floats(x, who, 3, "(batch, time, features)")
        known(x, 2, who)
        seen = None if mask is None else self._seen(mask, x)
        if not self.bidirectional:
            state, hs = self._direction(x, self._begin(initial, x), seen, reverse=False)
            out, last = state[0] if hs is None else hs, _plain(state)
        else:
            begin = (None, None) if initial is None else initial
            if not isinstance(begin, Sequence) or len(begin) != 2:
                raise ShapeError(f"{who} begins in two states, one a direction, not in {begin!r}")
            ways = [
                self._direction(x, self._begin(b, x), seen, reverse=r)
                for b, r in zip(begin, (False, True), strict=True)
            ]
            out = concat([state[0] if hs is None else hs for state, hs in ways], axis=-1)
            last = tuple(_plain(state) for state, _ in ways)
        return (out, last) if self.return_state else out

    def step(self, z: Tensor, state: State, way: str) -> State:
        """The next state from a step's input, already times its weights, and the state before."""
        raise NotImplementedError

    def recur(self, h: Tensor, way: str) -> Tensor:
        """h @ state_weight."""
        shape = (self.units, self.gates * self.units)
        return h @ self.parameter(f"{way}state_weight", shape, self.state_init)

    def gate(self, z: Tensor, number: int) -> Tensor:
        """One gate's columns."""
        return z[:, number * self.units : (number + 1) * self.units]

    def _direction(
        self, x: Tensor, begin: State, seen: Tensor | None, reverse: bool
    ) -> tuple[State, Tensor | None]:
        """The state after the last step, and h after each: (batch, time, units)."""
        way, wide = "reverse_" if reverse else "", self.gates * self.units
        xs = f.permute_dims(x, (1, 0, 2))
        z = xs @ self.parameter(f"{way}input_weight", (x.shape[2], wide), self.weight_init)
        if self.use_bias:
            z = z + self.parameter(f"{way}bias", (wide,), self.bias_init)

        def step(state: State, now: tuple[Tensor, Tensor | None]) -> tuple[State, Tensor | None]:
            after = self.step(now[0], state, way)
            h = after[0]
            if now[1] is not None:
                real = f.expand_dims(now[1], axis=1)
                after = tuple(f.where(real, a, b) for a, b in zip(after, state, strict=True))
                h = f.where(real, h, 0.0)
            return after, h if self.return_sequences else None

        steps = None if seen is None else f.permute_dims(seen, (1, 0))
        if x.shape[1] == 1:  # one step is no loop
            state, h = step(begin, (z[0], None if steps is None else steps[0]))
            return state, None if h is None else f.expand_dims(h, axis=1)
        state, hs = scan(step, begin, (z, steps), reverse=reverse)
        return state, None if hs is None else f.permute_dims(hs, (1, 0, 2))

    def _begin(self, initial: Any, x: Tensor) -> State:
        """The state before the first step: zeros, or what was given."""
        shape = (x.shape[0], self.units)
        if initial is None:
            return tuple(f.zeros(shape, dtype=x.dtype) for _ in self.carried)
        given = initial if isinstance(initial, (tuple, list)) else (initial,)
        state = tuple(Tensor(as_node(t)) for t in given)
        wanted = x.type.with_shape(shape)
        if len(state) != len(self.carried) or any(t.type != wanted for t in state):
            shown = ", ".join(str(t.type) for t in state)
            names = " and ".join(self.carried)
            raise ShapeError(
                f"{type(self).__name__} begins with {names} of {wanted}, not with {shown}"
            )
        return state

    def _seen(self, mask: TensorLike, x: Tensor) -> Tensor:
        seen = Tensor(as_node(mask))
        if not seen.dtype.is_bool:
            raise DTypeError(
                f"{type(self).__name__} takes a mask of bools, True where a step is real, not "
                f"{seen.type}",
                "compare: cr.arange(time) < cr.expand_dims(lengths, axis=1)",
            )
        if seen.shape != x.shape[:2]:
            raise ShapeError(
                f"{type(self).__name__} takes a mask for each step of each row: {seen.type} for "
                f"{x.type}"
            )
        return seen


class RNN(_Recurrent):
    """h ← activation(x @ input_weight + h @ state_weight + bias) along time; tanh by default.

    x (batch, time, features) gives the last h (batch, units), or with `return_sequences` each
    (batch, time, units); with `return_state` the pair of that and the state after the last step,
    which `initial` takes. `bidirectional`: a second net with weights "reverse_..." goes the other
    way, its h concatenated, its state beside the first's. Where a `mask` (batch, time) of bools is
    False, the state stays as it is and h given out is 0; so each row ends, and the way back begins,
    at its last real step. `bias` is the sum of PyTorch's two. Raises ShapeError and DTypeError.
    """

    def __init__(
        self, units: int, activation: Activation = "tanh", *args: Any, **options: Any
    ) -> None:
        super().__init__(units, *args, **options)
        self.activation = checked(activation, "RNN")

    def step(self, z: Tensor, state: State, way: str) -> State:
        return (activated(self.activation, z + self.recur(state[0], way)),)


class LSTM(_Recurrent):
    """Long short-term memory: c ← f·c + i·g, h ← o·tanh(c) along time.

    With i, f, g, o = σ, σ, tanh, σ of the four parts of x @ input_weight + h @ state_weight + bias,
    in that order (Hochreiter and Schmidhuber, Neural Computation 9, 1997; Gers et al., 2000). The
    state is (h, c); all else is as in RNN.
    """

    gates = 4
    carried = ("h", "c")

    def step(self, z: Tensor, state: State, way: str) -> State:
        h, c = state
        z = z + self.recur(h, way)
        i, forget, o = (
            f.sigmoid(self.gate(z, n)).named(letter) for n, letter in ((0, "i"), (1, "f"), (3, "o"))
        )
        c = forget * c + i * f.tanh(self.gate(z, 2)).named("g")
        return o * f.tanh(c), c.named("c")


class GRU(_Recurrent):
    """Gated recurrent unit: h ← (1 - z)·n + z·h along time, with n = tanh(n_x + r·n_h).

    r and z are σ of the sum of the first two parts of x @ input_weight + bias and of
    h @ state_weight + state_bias, n_x and n_h the third part of each (Cho et al.,
    arXiv:1406.1078, with the reset after the product, as PyTorch has it). Both biases are
    PyTorch's; all else is as in RNN.
    """

    gates = 3

    def recur(self, h: Tensor, way: str) -> Tensor:
        z = super().recur(h, way)
        if not self.use_bias:
            return z
        return z + self.parameter(f"{way}state_bias", (3 * self.units,), self.bias_init)

    def step(self, z: Tensor, state: State, way: str) -> State:
        (h,) = state
        back = self.recur(h, way)
        r, keep = (f.sigmoid(self.gate(z, n) + self.gate(back, n)).named("rz"[n]) for n in (0, 1))
        new = f.tanh(self.gate(z, 2) + r * self.gate(back, 2)).named("n")
        return ((1.0 - keep) * new + keep * h,)


def _plain(state: State) -> Any:
    """A state of one Tensor as that Tensor."""
    return state[0] if len(state) == 1 else state
