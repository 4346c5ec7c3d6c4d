"""What was timed on a GPU for the products of a program, as data that is kept with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chainrule.records import dataclass


@dataclass(frozen=True)
class WayTimed:
    """One way to make a product: seconds of the whole kernel, None where `note` says why not."""

    what: str
    seconds: float | None
    note: str = ""


@dataclass(frozen=True)
class ProductTimed:
    """The ways of a kernel's product, by its number: that of our own by sizes first. The way of
    number `chosen` is in the program.
    """

    kernel: int
    ways: tuple[WayTimed, ...]
    chosen: int = 0


@dataclass(frozen=True)
class Tuning:
    """What was timed `on` a GPU, which its driver and library are told with, at some sizes; `why`
    says why nothing was.
    """

    on: str
    sizes: tuple[tuple[str, int], ...]
    products: tuple[ProductTimed, ...] = ()
    why: str = ""

    @property
    def lasts(self) -> bool:
        """Whether it would come out so again: what could not be timed, as for want of room, may."""
        return all(product.ways[0].seconds is not None for product in self.products)

    def lines(self) -> Iterator[tuple[str, str, str, str]]:
        """Each way of each product as a row: its kernel, way, microseconds, what came of it."""
        for product in self.products:
            for i, way in enumerate(product.ways):
                spent = "" if way.seconds is None else f"{way.seconds * 1e6:.1f}"
                chosen = "chosen" if i == product.chosen else ""
                yield f"kernel{product.kernel}", way.what, spent, way.note or chosen


def tuning_of(data: Mapping[str, Any]) -> Tuning:
    """What `asdict` made of one, as JSON has it."""
    products = tuple(
        ProductTimed(p["kernel"], tuple(WayTimed(**way) for way in p["ways"]), p["chosen"])
        for p in data["products"]
    )
    sizes = tuple((str(name), int(size)) for name, size in data["sizes"])
    return Tuning(str(data["on"]), sizes, products, str(data["why"]))
