"""docs/reference.md is what `python docs/reference.py` writes, and what it says is so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import chainrule as cr

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_up_to_date(reference: ModuleType) -> None:
    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == reference.page(), "run python docs/reference.py"


def test_everything_public_is_there(reference: ModuleType) -> None:
    listed = [name for names in reference.public().values() for name in names]
    listed += [*reference.MODULES]
    values = set(cr.__all__) - set(listed)
    plain = (type(cr.float32), float, str, type(None))
    assert all(isinstance(getattr(cr, name), plain) for name in values)
    assert sorted([*listed, *values]) == sorted(cr.__all__)
    assert len(listed) == len(set(listed))
    for module in reference.MODULES:
        assert reference.members(getattr(cr, module))


REFUSED: list[tuple[str, type[Exception], Callable[[Any], Any]]] = [
    ("nonzero", cr.errors.ShapeError, cr.nonzero),
    ("unique_values", cr.errors.ShapeError, cr.unique_values),
    ("mask", cr.errors.DTypeError, lambda x: x[x > 0]),
    ("mask of NumPy", cr.errors.DTypeError, lambda x: x[np.array([True, False, True])]),
    ("repeats", cr.errors.ShapeError, lambda x: cr.repeat(x, cr.argsort(x))),
    ("unique_all", cr.errors.ShapeError, cr.unique_all),
    ("unique_counts", cr.errors.ShapeError, cr.unique_counts),
    ("unique_inverse", cr.errors.ShapeError, cr.unique_inverse),
    ("arange", cr.errors.DTypeError, lambda x: cr.arange(cr.sum(x))),
    ("bool", cr.errors.DTypeError, bool),
    ("float", cr.errors.DTypeError, lambda x: float(cr.sum(x))),
    ("asarray", cr.errors.DTypeError, np.asarray),
    ("item", TypeError, lambda x: exec("x[0] = 1", {"x": x})),
]


@pytest.mark.parametrize(("error", "use"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_depends_on_data_is_refused(error: type[Exception], use: Callable[[Any], Any]) -> None:
    with pytest.raises(error):
        use(cr.input("x", (3,)))


@pytest.mark.parametrize("name", ["linalg", "fft"])
def test_what_is_said_to_be_missing_is(name: str) -> None:
    assert not hasattr(cr, name)
