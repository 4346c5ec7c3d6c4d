"""Whether a local is read before all that is read of it was set: only then must it begin as 0."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from chainrule.ir.loop import Combine, Get, Local, Loop, Set, Stmt
from chainrule.ir.size import Dim
from chainrule.loops.walk import postorder, values_of

#: how much is set: nothing, the lane of this iteration, those of a loop that long, or all lanes
Known = Literal["none", "lane", "all"] | tuple[Dim]


def is_read_unset(local: Local, following: Sequence[Stmt], positive: Collection[str]) -> bool:
    """Whether what follows reads cells of a local that nothing has set; True where it is unclear.

    `positive` are the sizes that are 1 at least.
    """
    if any(size != 1 for size in local.shape):
        return not _is_filled_first(local, following)
    return _Walk(local, positive).after(following, "none", None) is None


def runs(extent: Dim, positive: Collection[str]) -> bool:
    """Whether a loop is known to run at least once."""
    if isinstance(extent, int):
        return extent >= 1
    return all(c > 0 and all(f in positive for f in factors) for factors, c in extent.terms)


class _Walk:
    """One local through statements in the order in which they run."""

    def __init__(self, local: Local, positive: Collection[str]) -> None:
        self.local, self.positive = local, positive

    def after(self, body: Iterable[Stmt], known: Known, lane: Dim | None) -> Known | None:
        """What is set after a body, in a vector loop of extent `lane` if in any; None where the
        body reads what is not.
        """
        now: Known | None = known
        for s in body:
            if now is None:
                return None
            now = self.loop(s, now, lane) if isinstance(s, Loop) else self.single(s, now, lane)
        return now

    def single(self, s: Stmt, known: Known, lane: Dim | None) -> Known | None:
        for value in postorder(*values_of(s)):
            if not isinstance(value, Get | Combine) or value.local != self.local:
                continue
            whole = isinstance(value, Combine) or lane is None
            if known == "none" or (whole and known != "all"):
                return None
        if isinstance(s, Set) and s.local == self.local and known != "all":
            return "all" if lane is None or not self.local.lanes else "lane"
        return known

    def loop(self, loop: Loop, known: Known, lane: Dim | None) -> Known | None:
        if loop.mode == "vector" and lane is None:
            inside = "lane" if known == (loop.extent,) else known
            if inside not in ("all", "lane"):
                inside = "none"
            end = self.after(loop.body, inside, loop.extent)
            if end == "lane":
                return (loop.extent,)
        else:
            end = self.after(loop.body, known, lane)
        if end is None:
            return None
        return end if runs(loop.extent, self.positive) else known


def _is_filled_first(local: Local, following: Sequence[Stmt]) -> bool:
    """Whether what follows first of all writes every cell of a local."""
    for s in following:
        if not isinstance(s, Loop | Set):
            if _reads(s, local):
                return False
            continue
        shape = list(local.shape)
        while isinstance(s, Loop) and s.mode == "unroll" and len(s.body) == 1:
            if not shape or s.extent != shape.pop(0):
                return False
            s = s.body[0]
        if not isinstance(s, Set):
            return False
        if _reads(s, local):
            return False
        if s.local == local:
            return not shape
    return False


def _reads(s: Stmt, local: Local) -> bool:
    values = postorder(*values_of(s))
    return any(isinstance(v, Get | Combine) and v.local == local for v in values)
