"""`cr.scan`: a loop with carried state, written as one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chainrule.errors import CompileError, DTypeError, ShapeError
from chainrule.ir import provenance
from chainrule.ir.graph import walk
from chainrule.ir.node import Node, apply, next_serial
from chainrule.ir.size import Dim
from chainrule.ir.types import check_shape
from chainrule.lang.arguments import flag
from chainrule.lang.tensor import Tensor, as_node
from chainrule.ops.body import close, local
from chainrule.ops.random import number_of
from chainrule.ops.scan import Scan

#: a step: what is carried and a slice of each stack -> what is carried on, and what is stacked
Step = Callable[[Any, Any], tuple[Any, Any]]


def scan(
    body: Step,
    init: Any,
    xs: Any = None,
    length: int | str | Dim | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """A loop over axis 0 of `xs`: `(final, ys)`, as JAX's `lax.scan`.

        def step(h, x):
            h = cr.tanh(x @ W + h @ U)
            return h, h

        final, hs = cr.scan(step, h0, xs)      # xs (time, batch, n), hs (time, batch, m)

    `body(carry, x)` is called once, with Tensors that stand for any step, and gives the next carry
    and a y; `ys` is the stack of those. Carry, x and y are each a Tensor, None, or tuples, lists
    and dicts of such. With no `xs`, `length` says how many steps there are; with `reverse` they go
    from the last slice to the first, and y stands where its x stood. What does not depend on carry
    or x is computed once, outside. Raises ShapeError or DTypeError where the carry does not keep
    its form and type, or stacks differ in length, CompileError for random numbers drawn in the
    body.
    """
    begin, stacks = _nodes(init, "init"), _nodes(xs, "xs")
    steps, backward = _length(stacks, length), flag("reverse", reverse)
    carries = [local(_name(n, "h"), n.type) for n in begin]
    slices = [local(_name(n, "x"), n.type.with_shape(n.type.shape[1:])) for n in stacks]
    for node in (*carries, *slices):
        provenance.set_around(node, (*begin, *stacks))
    serial = next_serial()
    if not callable(body):
        raise ShapeError(f"the body of a scan is a function of (carry, x), not {body!r}")
    result = body(_filled(init, carries), _filled(xs, slices))
    if not isinstance(result, tuple) or len(result) != 2:
        raise ShapeError(
            f"the body of a scan gives a pair (carry, y), not {_shown(result)}",
            "for no y give None: return carry, None",
        )
    after, y = result
    _check_form(init, after)
    nexts, ys = _nodes(after, "the carry"), _nodes(y, "y")
    _check_types(carries, nexts)
    _check_draws([*nexts, *ys], serial)
    closed, constants = close(carries, slices, nexts, ys)
    operands = (*begin, *stacks, *constants)
    results = [apply(Scan(closed, steps, backward, i), *operands) for i in range(len(closed.roots))]
    for made, node in zip(results[len(nexts) :], ys, strict=True):
        _name_stack(made, node)
    return _filled(init, results[: len(nexts)]), _filled(y, results[len(nexts) :])


def _length(stacks: Sequence[Node], length: int | str | Dim | None) -> Dim:
    """How many steps there are."""
    given = None if length is None else check_shape((length,))[0]
    if not stacks and given is None:
        raise ShapeError("a scan without xs needs a length", "cr.scan(body, init, length=n)")
    for node in stacks:
        if node.type.rank == 0:
            raise ShapeError(
                f"a scan goes over axis 0 of xs, and {node!r} has none",
                "what is the same at every step the body can read as it is",
            )
        if given is None:
            given = node.type.shape[0]
        if node.type.shape[0] != given:
            shown = ", ".join(str(n.type) for n in stacks)
            raise ShapeError(
                f"a scan goes over stacks of one length: {shown}",
                f"{given} != {node.type.shape[0]} (axis 0 of {node!r})",
            )
    assert given is not None
    return given


def _name(node: Node, otherwise: str) -> str:
    return provenance.name_of(node) or otherwise


def _name_stack(stack: Node, row: Node) -> None:
    """Let the stack of what the user called h print as hs."""
    name = provenance.user_name_of(row)
    if name is not None and row.inputs:
        provenance.set_name(stack, f"{name}s")


def _check_form(init: Any, after: Any) -> None:
    if _form(init) != _form(after):
        raise ShapeError(
            f"the carry must keep its form: it begins as {_shown(init)}, "
            f"the body gives {_shown(after)}"
        )


def _check_types(carries: Sequence[Node], nexts: Sequence[Node]) -> None:
    for old, new in zip(carries, nexts, strict=True):
        what = f"the carry must keep its type: {provenance.name_of(old)} begins as {old.type}, "
        where = provenance.line_of(new)
        if old.type.shape != new.type.shape:
            hint = "let it begin in the shape it has after a step, such as cr.zeros(shape)"
            raise ShapeError(f"{what}the body gives {new.type}", hint, where=where)
        if old.type.dtype != new.type.dtype:
            hint = "convert one of them with .astype(...)"
            raise DTypeError(f"{what}the body gives {new.type}", hint, where=where)


def _check_draws(roots: Sequence[Node], since: int) -> None:
    """Refuse random numbers drawn in the body: they would be the same at every step."""
    for node in walk(roots):
        if node.op.draws and number_of(node) >= since:
            raise CompileError(
                f"{node.op.name} draws random numbers in the body of a scan",
                "draw them outside, with a leading axis, and pass them as xs",
                where=provenance.line_of(node),
            )


# structures: None, a Tensor, or tuples, lists and dicts of such


def _nodes(structure: Any, what: str) -> list[Node]:
    """The nodes in a structure, in order."""
    if structure is None:
        return []
    if isinstance(structure, dict):
        return [n for k in _keys(structure) for n in _nodes(structure[k], what)]
    if isinstance(structure, list | tuple):
        return [n for v in structure for n in _nodes(v, what)]
    try:
        return [as_node(structure)]
    except (DTypeError, TypeError, ValueError):
        raise DTypeError(f"{what} of a scan is made of Tensors, not of {structure!r}") from None


def _filled(structure: Any, nodes: Sequence[Node]) -> Any:
    """The structure with Tensors of the nodes, in order, in the places of what it holds."""
    rest = iter(nodes)

    def build(part: Any) -> Any:
        if part is None:
            return None
        if isinstance(part, dict):
            made = {k: build(part[k]) for k in _keys(part)}
            return {k: made[k] for k in part}
        if isinstance(part, list | tuple):
            parts = [build(v) for v in part]
            return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        return Tensor(next(rest))

    return build(structure)


def _keys(structure: dict[Any, Any]) -> list[Any]:
    """The keys of a dict, in an order that does not depend on how it was filled."""
    return sorted(structure, key=str)


def _form(structure: Any) -> Any:
    """A structure without what it holds, to be compared."""
    if structure is None:
        return None
    if isinstance(structure, dict):
        return dict, tuple((k, _form(structure[k])) for k in _keys(structure))
    if isinstance(structure, list | tuple):
        return type(structure), tuple(map(_form, structure))
    return "."


def _shown(structure: Any) -> str:
    """A structure on one line, its Tensors by their types."""
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{k!r}: {_shown(v)}" for k, v in structure.items()) + "}"
    if isinstance(structure, list | tuple):
        inner = ", ".join(map(_shown, structure))
        return f"[{inner}]" if isinstance(structure, list) else f"({inner})"
    return str(structure.type) if isinstance(structure, Tensor) else repr(structure)
