"""Things by the name that they go by in a text."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from chainrule.errors import CompileError

T = TypeVar("T")


def by_name(
    kind: str, table: Mapping[str, T], name: object, others: Mapping[str, str] | None = None
) -> T:
    """What a table has under a name; `kind` says what that is.

    Raises CompileError for another name, with what it is called here if `others` says so, or those
    that are near, or else all of them.
    """
    if not isinstance(name, str):
        raise CompileError(f"there is no {kind} {name!r}", f"by name: {', '.join(table)}")
    if name in table:
        return table[name]
    if others and name in others:
        raise CompileError(f"there is no {kind} called {name!r}", f"here it is {others[name]}")
    near = get_close_matches(name.lower(), table, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(table)}"
    raise CompileError(f"there is no {kind} called {name!r}", hint)
