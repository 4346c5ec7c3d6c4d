"""Printed mathematics read back, gradients compared, unstable forms found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from chainrule.errors import DTypeError, FormulaError
from chainrule.ir.node import Node
from chainrule.lang.arguments import several, words
from chainrule.lang.derive import flatten
from chainrule.lang.tensor import Tensor

if TYPE_CHECKING:
    from chainrule.show.compare import Comparison
    from chainrule.show.lint import Lint


def parse(
    text: str,
    inputs: Mapping[str, Tensor | Callable[..., Tensor]] | Iterable[Tensor],
    *,
    like: Tensor | None = None,
) -> Tensor:
    r"""The expression that a text says, as `str` of a Tensor writes it: its last line.

        cr.parse("z = x @ W + b\nsum(relu(z)) / batch", [x, W, b])

    `inputs` are Tensors by name, or Tensors that have one; functions of Tensors among them, by
    name, are those of the user's own. Sizes of inputs go by their names. What print leaves out
    (that a vector repeats, how many classes `onehot` has) is taken from what stands beside it, and
    from `like` for the type of the result. An array of more than four elements is not in the text.
    Raises FormulaError, ShapeError or DTypeError with the place that is wrong.
    """
    from chainrule.show.parse import parse as parse_nodes

    text = words("what is parsed", text)
    if like is not None and not isinstance(like, Tensor):
        raise DTypeError(f"like is a Tensor, not {like!r}")
    named = _named(inputs)
    nodes = {k: v.node for k, v in named.items() if isinstance(v, Tensor)}
    functions = {k: _function(v) for k, v in named.items() if not isinstance(v, Tensor)}
    return Tensor(parse_nodes(text, nodes, functions, None if like is None else like.type))


def compare(first: Any, second: Any) -> Comparison:
    """What differs between two expressions, or two structures of them, whatever things are called.

    Equal graphs are equal with other names of inputs and sizes; an input of both stands for itself.
    The result is true where nothing differs; `str()` says the first places that do, with the user's
    lines. It compares forms: x * y and y * x differ.
    """
    from chainrule.show import compare as comparing

    return comparing.compare(flatten(first), flatten(second))


def lint(expression: Any) -> Lint:
    """The unstable forms in an expression, or a structure of them, and what becomes of each.

    Of every form that a rule of stability knows: the rule's name, the form, what takes its place
    and the user's line. The result is true where none is found.
    """
    from chainrule.show import lint as linting

    return linting.lint(flatten(expression))


def _named(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        inputs = {t.name if isinstance(t, Tensor) else t: t for t in several("inputs", inputs)}
    named = dict(inputs)
    for name, value in named.items():
        if not isinstance(name, str) or not (isinstance(value, Tensor) or callable(value)):
            raise FormulaError(f"an input is a Tensor with a name, not {name!r}: {value!r}")
    return named


def _function(function: Callable[..., Tensor]) -> Callable[..., Node]:
    return lambda *nodes, **options: function(*map(Tensor, nodes), **options).node
