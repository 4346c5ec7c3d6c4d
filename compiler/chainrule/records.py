"""`dataclass` as in the standard library, but worked out when the first instance is made.

`dataclasses` writes six methods of a frozen class as text and has Python compile each: some 0.4 ms
a class, more than half of what `import chainrule` took. A program that is found compiled makes
instances of few of the classes it imports; the others stay as they are written.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

#: What `dataclasses` gives a class unless it has its own, and what it tells others about it.
_METHODS = ("__init__", "__eq__", "__hash__", "__repr__")
_FACTS = ("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__signature__")

_finishing = threading.RLock()


class _Unfinished:
    """Stands on a class in the place of each of these; whoever asks for one has it finished, and
    gets that class' own, also where a subclass that has another asks by `super()`.
    """

    __slots__ = ("cls", "finish", "name")

    def __init__(self, cls: type, finish: Callable[[], None], name: str) -> None:
        self.cls = cls
        self.finish = finish
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        self.finish()
        if self.name not in vars(self.cls):
            return getattr(super(self.cls, owner if instance is None else instance), self.name)
        found = vars(self.cls)[self.name]
        return found.__get__(instance, owner) if hasattr(found, "__get__") else found


def _late(options: dict[str, Any], cls: type) -> type:
    def finish() -> None:
        with _finishing:
            if all(vars(cls).get(name) is stand_in for name, stand_in in stand_ins.items()):
                for name in stand_ins:
                    delattr(cls, name)
                dataclasses.dataclass(**options)(cls)

    names = (*(m for m in _METHODS if m not in vars(cls)), *_FACTS)
    stand_ins = {name: _Unfinished(cls, finish, name) for name in names}
    for name, stand_in in stand_ins.items():
        setattr(cls, name, stand_in)
    return cls


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`; with `slots`, which make another class, done at once."""
        made = dataclasses.dataclass(**options) if "slots" in options else partial(_late, options)
        return made if cls is None else made(cls)
