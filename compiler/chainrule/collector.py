"""Python's collector of cycles, which waits where many objects are made that stay.

It would visit all of them again and again, a quarter of the time, and find nothing to free.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class waiting:
    """A context in which nothing is collected.

    With `settle` all objects count as old at its end: else they would all be visited once more, as
    the young ones that they are. It is for what a process does once, since what is old is collected
    seldom.
    """

    __slots__ = ("collects", "settle")

    def __init__(self, settle: bool = False) -> None:
        self.settle = settle

    def __enter__(self) -> None:
        self.collects = gc.isenabled()
        gc.disable()

    def __exit__(self, *error: object) -> None:
        if not self.collects:
            return
        if self.settle and not gc.get_freeze_count():  # what somebody froze stays so
            gc.freeze()  # to the permanent ones, and from there
            gc.unfreeze()  # to the oldest
        gc.enable()


_settled = False


def uncollected(function: Callable[P, R]) -> Callable[P, R]:
    """A function during which nothing is collected; the first to return settles the objects."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        global _settled
        if not gc.isenabled():
            return function(*args, **options)
        settle, _settled = not _settled, True
        with waiting(settle):
            return function(*args, **options)

    return run
