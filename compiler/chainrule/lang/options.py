"""Options that every compiled thing takes, and what is built of them so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.driver.sizes import check_number
from chainrule.errors import CompileError
from chainrule.given import is_int
from chainrule.ir.size import TYPICAL
from chainrule.schedule.budget import Budget

BACKENDS = ("cpu", "cuda", "reference")


def check_options(
    backend: str, threads: int | None, precision: str | None, **unbuilt: Any
) -> int | None:
    """The threads, as Python's int. Refuses what is not built: CompileError says what is.

    `unbuilt` are options by name that may only have their default, None.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise CompileError(
            f"no backend {backend!r} is built yet", f"there are {', '.join(BACKENDS)}"
        )
    if threads is not None and not _is_count(threads):
        raise CompileError(f"threads is None or an int from 1 on, not {threads!r}")
    if precision is not None:
        _check_precision(precision)
    for name, value in unbuilt.items():
        if value is not None:
            raise CompileError(f"{name}={value!r} is not built yet", f"leave {name} out")
    return None if threads is None else int(threads)


def _check_precision(precision: str) -> None:
    from chainrule.rewrite.narrow import PRECISIONS

    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise CompileError(
            f"there is no precision {precision!r}",
            f"there are {', '.join(PRECISIONS)}; with None each tensor's dtype decides",
        )


def check_budget(given: object, backend: str, symbols: Sequence[str] = ()) -> Budget | None:
    """A budget is None, bytes, or (bytes, {size: number}) with symbolic sizes of the program."""
    if given is None:
        return None
    pair = given if isinstance(given, tuple) else (given, {})
    if len(pair) != 2 or not _is_count(pair[0]) or not isinstance(pair[1], Mapping):
        raise CompileError(
            f"memory_budget is a number of bytes or (bytes, {{size: number}}), not {given!r}",
            'such as memory_budget=(50_000_000, {"batch": 1024})',
        )
    count, sizes = pair
    for name, number in sizes.items():
        check_number(name, number, symbols, "memory_budget: ")
    if backend == "reference":
        raise CompileError(
            f"backend={backend!r} keeps every value: it can't hold a memory_budget",
            "leave memory_budget out, or compile for the cpu",
        )
    return Budget(int(count), {s: int(sizes.get(s, TYPICAL)) for s in symbols})


def check_tune(given: object, backend: str, symbols: Sequence[str] = ()) -> dict[str, int] | None:
    """False for None, True for typical sizes, or {size: number} with sizes of the program."""
    if given is False:
        return None
    sizes = {} if given is True else given
    if not isinstance(sizes, Mapping):
        raise CompileError(
            f"tune is True, False or sizes, not {given!r}", 'such as tune={"batch": 128}'
        )
    for name, number in sizes.items():
        check_number(name, number, symbols, "tune: ")
    if backend == "reference":
        raise CompileError(f"backend={backend!r} has nothing to tune", "leave tune out")
    return {s: int(sizes.get(s, TYPICAL)) for s in symbols}


def _is_count(value: object, least: int = 1) -> bool:
    """Whether something is an int, NumPy's too, from `least` on."""
    return is_int(value) and value >= least


def check_seed(seed: int) -> int:
    """A seed is an int in [0, 2**64)."""
    if not _is_count(seed, least=0) or int(seed) >= 2**64:
        raise CompileError(f"a seed is an int from 0 to 2**64 - 1, not {seed!r}")
    return int(seed)


def check_flag(name: str, value: object) -> bool:
    """A flag is True or False."""
    if not isinstance(value, bool):
        raise CompileError(f"{name} is True or False, not {value!r}")
    return value
