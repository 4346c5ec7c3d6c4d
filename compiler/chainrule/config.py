"""Every environment variable that chainrule reads: one table, typed, and read only here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from chainrule.records import dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class Knob(Generic[T]):
    """An environment variable: its name, what it is where unset, how its text is read, what for."""

    variable: str
    default: T
    read: Callable[[str], T]
    doc: str

    def value(self) -> T:
        """The variable's value now; the default where it is unset or empty."""
        text = os.environ.get(self.variable, "")
        return self.read(text) if text else self.default


TARGET = Knob(
    "CHAINRULE_TARGET",
    "",
    str,
    "compile for this instruction level (x86-64-v2, x86-64-v3, x86-64-v4, x86-64-v4+bf16, "
    "x86-64-v4+amx, aarch64, generic) instead of the best one that this machine has",
)

CACHE = Knob(
    "CHAINRULE_CACHE",
    "",
    str,
    "keep compiled code in this folder (~ is your home) instead of the user's cache folder; off "
    "keeps none",
)

GPU = Knob(
    "CHAINRULE_GPU",
    "",
    str,
    'with backend="cuda" compile for this GPU (sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120) '
    "instead of the one that is here",
)

#: what docs and `chainrule doctor` list
KNOBS: tuple[Knob[str], ...] = (TARGET, CACHE, GPU)


def environment(without: Iterable[str], own: Mapping[str, str]) -> dict[str, str]:
    """What another process is to run in: all that this one has but some, and what it wants."""
    return {**{k: v for k, v in os.environ.items() if k not in set(without)}, **own}


def cache_folder() -> Path | None:
    """Where compiled code is kept; None where it is not, as where that is in a home that is not
    known.

    The XDG base directory specification says where a user's caches lie.
    """
    chosen = CACHE.value()
    if chosen.lower() in ("off", "0", "no", "false", "none"):
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "chainrule"
    except RuntimeError:
        return None
