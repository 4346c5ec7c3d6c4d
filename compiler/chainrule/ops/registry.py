"""Every op there is, with its samples: what tests and the generated documentation run over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chainrule.ir.node import Op, Sample
from chainrule.ops import (
    along,
    assemble,
    axes,
    composite,
    contract,
    convolution,
    custom,
    index,
    layout,
    pooling,
    product,
    reduce,
    source,
    windows,
)
from chainrule.ops.elementwise import TABLE, Elementwise

# importing them defines ops
_ROOMS = (
    along, assemble, axes, composite, contract, convolution, custom, index, layout,
    pooling, product, reduce, source, windows,
)  # fmt: skip
_NEEDS_DATA = (Elementwise, source.Leaf)  # listed above by name, and given from outside


@dataclass(frozen=True)
class Entry:
    """An op by name: `kind` is its class, or the one op of its name in the elementwise table."""

    name: str
    kind: type[Op] | Op
    samples: tuple[Sample, ...]


def _elementwise() -> Iterator[Entry]:
    for name, op in TABLE.items():
        yield Entry(name, op, tuple(op.samples_of()))


def _classes(base: type[Op]) -> Iterator[type[Op]]:
    """The classes of ops; one that others derive from is only their base."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("chainrule.ops."):
            yield from _classes(kind) if kind.__subclasses__() else (kind,)


def _others() -> Iterator[Entry]:
    for kind in _classes(Op):
        samples = tuple(kind.samples()) if kind not in _NEEDS_DATA else ()
        if samples:
            yield Entry(str(samples[0][0].name), kind, samples)


OPS: tuple[Entry, ...] = (*_elementwise(), *sorted(_others(), key=lambda e: e.name))
