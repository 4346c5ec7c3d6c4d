"""Parameters in groups, each with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Unpack

from chainrule.errors import CompileError
from chainrule.lang.tensor import Tensor
from chainrule.nn.optim.optimizer import Common, Optimizer

Members = str | Tensor | tuple[str | Tensor, ...]


class Groups(Optimizer):
    """Optimizers for groups of parameters, and one for the rest.

        cr.optim.Groups(cr.optim.AdamW(1e-3), {"*.bias": cr.optim.AdamW(1e-3, weight_decay=0.0)})

    A group is a pattern of names (`*` stands for anything, as in file names), a parameter, or a
    tuple of such; a parameter is in the first group that it fits. Hyper-parameters of the groups
    are called "group1.momentum" and so on, in order; those of the rest have no prefix. Clipping,
    accumulation and averaging are over all groups together, so they are options of this one alone:
    raises CompileError where a member has its own, and, when a step is made, for a group that
    nothing is in.
    """

    def __init__(
        self, rest: Optimizer, groups: Mapping[Members, Optimizer], **common: Unpack[Common]
    ) -> None:
        if not isinstance(groups, Mapping):
            raise CompileError(f"groups are optimizers by pattern or parameter, not {groups!r}")
        for member in (rest, *groups.values()):
            if not isinstance(member, Optimizer) or isinstance(member, Groups):
                raise CompileError(f"a group's optimizer is one of cr.optim, not {member!r}")
            own = [n for n in ("clip_value", "clip_norm", "ema") if getattr(member, n) is not None]
            if own or member.accumulate != 1:
                name = own[0] if own else "accumulate"
                raise CompileError(
                    f"{name} is over all groups together: it can't be that of one",
                    f"cr.optim.Groups(..., {name}=...)",
                )
        super().__init__(rest.lr, **common)
        self.rest, self.groups = rest, dict(groups)

    def assigned(self, parameters: Mapping[str, Tensor]) -> dict[str, int]:
        """The group of each parameter by name, counted from 1; 0 is the rest."""
        kinds = [members if isinstance(members, tuple) else (members,) for members in self.groups]
        places = {name: _place(name, w, kinds) for name, w in parameters.items()}
        for place, members in enumerate(kinds, 1):
            if place not in places.values():
                shown = ", ".join(m if isinstance(m, str) else str(m.name) for m in members)
                raise CompileError(
                    f"no parameter that is trained is in group {place}: {shown}",
                    f"the parameters are {', '.join(parameters)}",
                )
        return places


def _place(name: str, w: Tensor, kinds: Sequence[tuple[str | Tensor, ...]]) -> int:
    for place, members in enumerate(kinds, 1):
        for member in members:
            if fnmatchcase(name, member) if isinstance(member, str) else member.node is w.node:
                return place
    return 0
