"""The methods of a kernel's class in JavaScript that are given data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chainrule.export.interface import Interface
from chainrule.export.minibatches import batch_size_of
from chainrule.export.model import Model, Size, Unit
from chainrule_runtime.manifest import DimData, Tensor

ARRAY = {
    "float32": "Float32Array", "float64": "Float64Array", "int8": "Int8Array",
    "int16": "Int16Array", "int32": "Int32Array", "int64": "BigInt64Array",
    "uint8": "Uint8Array", "uint16": "Uint16Array", "uint32": "Uint32Array",
    "uint64": "BigUint64Array", "bool": "Uint8Array", "bfloat16": "Uint16Array",
}  # fmt: skip
_SHUFFLE = """\
  shuffle(rows) {
    const words = 2 * this.#whole(rows);
    const at = this.#begin(0).room(BigUint64Array, words);
    this.#call("shuffle", ...this.#own(), at, words, rows);
    return this.#copy(BigUint64Array, at, rows);
  }
"""


def given(dtype: str) -> str:
    """The types of an array that a method is given."""
    array = ARRAY[dtype]
    if dtype == "bool":
        return f"{array} | boolean[] | number[]"
    return f"{array} | {'bigint' if array.startswith('Big') else 'number'}[]"


def _number(dim: DimData, names: dict[str, str]) -> str:
    """A size as an expression in JavaScript."""
    if isinstance(dim, int):
        return str(dim)
    terms = []
    for coefficient, factors in dim["terms"]:
        parts = [str(coefficient)] if coefficient != 1 or not factors else []
        for factor in factors:
            if isinstance(factor, str):
                parts.append(names[factor])
                continue
            kind, over, under = factor
            a, b = f"({_number(over, names)})", f"({_number(under, names)})"
            parts.append(
                f"Math.floor({a} / {b})" if kind == "//" else f"((({a} % {b}) + {b}) % {b})"
            )
        terms.append(" * ".join(parts))
    return " + ".join(terms) or "0"


def units(model: Model, interface: Interface) -> Iterator[str]:
    """The methods that are given data; locals of theirs begin in in_, out_ and size_."""
    names = {s.name: f"size_{interface.sizes[s.name]}" for s in model.sizes}
    for name, unit in model.units.items():
        sizes = interface.sizes_of(unit)
        feeds = [interface.feeds[t.name] for t in unit.manifest.feeds]
        yield f"  {name}(feeds) {{"
        yield f'    this.#check(feeds, {feeds!r}, "{name}");'
        yield from _told_sizes(unit, sizes, interface, names)
        every = ", ".join(names[s.name] if s in sizes else "1" for s in model.sizes)
        yield f'    const room = this.#room("workspace_bytes"{f", {every}" if every else ""});'
        yield "    const place = this.#begin(room);"
        arguments = []
        for t in unit.manifest.feeds:
            own = interface.feeds[t.name]
            yield _put(t, own, _count(t.shape, names))
            arguments.append(f"in_{own}")
        for t in unit.manifest.outputs:
            room = f"place.room({ARRAY[t.dtype]}, {_count(t.shape, names)})"
            yield f"    const out_{interface.outputs[t.name]} = {room};"
            arguments.append(f"out_{interface.outputs[t.name]}")
        listed = ", ".join([*(names[s.name] for s in sizes), *arguments])
        yield f'    this.#call("{name}", ...this.#own(), this.#workspace, room, {listed});'
        results = [(interface.outputs[t.name], ARRAY[t.dtype]) for t in unit.manifest.outputs]
        if name == "predict" and len(results) > 1:
            parts = [f"{own}: this.#copy({kind}, out_{own})" for own, kind in results]
            yield f"    return {{ {', '.join(parts)} }};"
        else:
            own, kind = results[0]
            yield f"    return this.#copy({kind}, out_{own}){'' if name == 'predict' else '[0]'};"
        yield "  }"
        yield ""


def _put(tensor: Tensor, own: str, count: str) -> str:
    """The line that copies an array into the module's memory."""
    bits = ", true" if tensor.dtype == "bool" else ""
    given_ = f'{ARRAY[tensor.dtype]}, feeds.{own}, {count}, "{own}"{bits}'
    return f"    const in_{own} = place.put({given_});"


def _count(shape: Sequence[DimData], names: dict[str, str]) -> str:
    return " * ".join(f"({_number(d, names)})" for d in shape) or "1"


def _told_sizes(
    unit: Unit, sizes: Sequence[Size], interface: Interface, names: dict[str, str], but: str = ""
) -> Iterator[str]:
    """The sizes of a unit: what is said, or what the first input tells that has one alone along an
    axis, all others being known; never of the size `but`.
    """
    for size in sizes:
        told = "undefined"
        for t in unit.manifest.feeds:
            others = [d for d in t.shape if d != {"terms": [[1, [size.name]]]}]
            known = len(others) + 1 == len(t.shape) and all(isinstance(d, int) for d in others)
            if known and size.name != but:
                told = f"feeds.{interface.feeds[t.name]}.length / ({_count(others, names)})"
                break
        yield f"    const {names[size.name]} = feeds.{interface.sizes[size.name]} ?? {told};"


def steps(model: Model, interface: Interface) -> Iterator[str]:
    """What makes a step for each minibatch of rows, and what gives their order."""
    unit = model.units["step"]
    names = {s.name: f"size_{interface.sizes[s.name]}" for s in model.sizes}
    feeds = [interface.feeds[t.name] for t in unit.manifest.feeds]
    batch = batch_size_of(model)
    yield "  steps(feeds, order) {"
    yield f'    this.#check(feeds, {feeds!r}, "steps");'
    yield from _told_sizes(unit, model.sizes, interface, names, batch)
    every = ", ".join(names[s.name] for s in model.sizes)
    yield f'    const room = this.#room("steps_workspace_bytes", {every});'
    yield "    const place = this.#begin(room);"
    first = next(t for t in unit.manifest.feeds if t.name in model.sliced)
    row = _count(first.shape[1:], names)
    yield f"    const rows = this.#whole(feeds.{interface.feeds[first.name]}.length / ({row}));"
    arguments = []
    for t in unit.manifest.feeds:
        own = interface.feeds[t.name]
        count = _count(t.shape, names)
        if t.name in model.sliced:
            count = f"rows * ({_count(t.shape[1:], names)})"
        yield _put(t, own, count)
        arguments.append(f"in_{own}")
    loss = ARRAY[unit.manifest.outputs[0].dtype]
    yield "    const taken = order == null ? 0 : place.order(order, rows);"
    yield f"    const losses = place.room({loss}, Math.ceil(rows / {names[batch]}));"
    yield "    const done = place.room(Uint32Array, 1);"
    listed = ", ".join(["rows", every, "taken", *arguments, "losses", "done"])
    yield "    try {"
    yield f'      this.#call("steps", ...this.#own(), this.#workspace, room, {listed});'
    yield "    } catch (error) {"
    yield "      error.done = this.#copy(Uint32Array, done)[0];"
    yield "      throw error;"
    yield "    }"
    yield f"    return this.#copy({loss}, losses);"
    yield "  }"
    yield ""
    yield from _SHUFFLE.splitlines()
