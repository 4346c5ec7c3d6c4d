"""How much memory a program may take."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.records import dataclass


@dataclass(frozen=True)
class Budget:
    """So many bytes for the arena, where each symbolic size is as given."""

    bytes: int
    sizes: Mapping[str, int]

    def __str__(self) -> str:
        where = ", ".join(f"{name}={n}" for name, n in self.sizes.items())
        return f"{self.bytes:,} bytes" + (f" at {where}" if where else "")
