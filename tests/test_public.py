"""The names that `import chainrule as cr` gives."""

from __future__ import annotations

from types import ModuleType

import chainrule as cr

#: modules that are meant to be used so
ROOMS = {
    "callbacks",
    "datasets",
    "errors",
    "init",
    "losses",
    "metrics",
    "nn",
    "optim",
    "random",
    "regularizers",
    "schedules",
}


def test_all_names_what_is_there() -> None:
    found = {name for name, value in vars(cr).items() if not isinstance(value, ModuleType)}
    public = {name for name in found if not name.startswith("_")} | {"__version__"}
    assert set(cr.__all__) == public | ROOMS
    assert len(cr.__all__) == len(set(cr.__all__))


def test_everything_public_says_what_it_is() -> None:
    plain = {"__version__", "newaxis"}  # a text and None
    silent = [n for n in cr.__all__ if n not in plain and not getattr(cr, n).__doc__]
    assert not silent
