"""Every op there is, with its samples: what tests and the generated documentation run over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from chainrule.ir.node import Op, Sample
from chainrule.ir.notation import Notation
from chainrule.ops import (
    along,
    assemble,
    attend,
    attention,
    axes,
    batch_norm,
    cast,
    composite,
    contract,
    convolution,
    custom,
    dynamic,
    each,
    gather,
    index,
    layout,
    max_pooling,
    normalization,
    padding,
    phase,
    pooling,
    product,
    random,
    reduce,
    running,
    scan,
    sort,
    source,
    windows,
)
from chainrule.ops.activations import ACTIVATIONS
from chainrule.ops.elementwise import TABLE, Elementwise
from chainrule.ops.reading import Word, plain
from chainrule.records import dataclass

# importing them defines ops
_ROOMS = (
    along, assemble, attend, attention, axes, batch_norm, cast, composite, contract, convolution,
    custom, dynamic, each, gather, index, layout, max_pooling, normalization, padding, phase,
    pooling, product, random, reduce, running, scan, sort, source, windows,
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


def _words() -> dict[str, Word]:
    """What is written f(x, y, option=z), from what the ops say; no two may say the same."""
    found: dict[str, Word] = {name: plain(op) for name, op in ACTIVATIONS.items()}
    for kind in (k for k in _classes(Op) if k not in _NEEDS_DATA):
        for name, word in kind.words().items():
            if name in found:
                raise ValueError(f"two ops are written {name}()")
            found[name] = word
    return found


#: What elementwise ops are written as that are not written by their names: `max(x, y)`, `and(c, d)`
SPELLED: dict[tuple[str, int], str] = {
    (form.text.partition("(")[0], len(op.params)): name
    for name, op in TABLE.items()
    if isinstance(form := op.math, Notation) and re.match(r"[a-z]\w*\(", form.text)
}

#: What else is written as a function, by its name.
WORDS: dict[str, Word] = _words()

#: The classes of ops that are in no table, by name.
KINDS: dict[str, type[Op]] = {k.__name__: k for k in _classes(Op) if k not in _NEEDS_DATA}


@cache
def ops() -> tuple[Entry, ...]:
    """Every op there is, with its samples: the elementwise ones, then the others by name."""
    return (*_elementwise(), *sorted(_others(), key=lambda e: e.name))
