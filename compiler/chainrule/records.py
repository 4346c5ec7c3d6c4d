"""`dataclass` as in the standard library, but worked out when the first instance is made.

`dataclasses` writes six methods of a frozen class as text and has Python compile each: some 0.4 ms
a class, more than half of what `import chainrule` took. A program that is found compiled makes
instances of few of the classes it imports; the others stay as they are written. Frozen classes that
are made get the same methods without text, all but `__init__`, as it is what is called most.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

#: What `dataclasses` gives a class unless it has its own, and what it tells others about it.
_METHODS = ("__init__", "__eq__", "__hash__", "__repr__")
_FACTS = ("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__signature__")

_finishing = threading.RLock()


class _Unfinished:
    """Stands on a class in the place of each of these; whoever asks for one has it finished."""

    __slots__ = ("finish", "name")

    def __init__(self, finish: Callable[[], None], name: str) -> None:
        self.finish = finish
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        self.finish()
        return getattr(owner if instance is None else instance, self.name)


def _late(options: dict[str, Any], cls: type) -> type:
    def finish() -> None:
        with _finishing:
            if all(vars(cls).get(name) is stand_in for name, stand_in in stand_ins.items()):
                for name in stand_ins:
                    delattr(cls, name)
                _make(options, cls)

    names = (*(m for m in _METHODS if m not in vars(cls)), *_FACTS)
    stand_ins = {name: _Unfinished(finish, name) for name in names}
    for name, stand_in in stand_ins.items():
        setattr(cls, name, stand_in)
    return cls


def _make(options: dict[str, Any], cls: type) -> None:
    """What `dataclasses.dataclass(**options)` does to a class."""
    own = dict(vars(cls))
    apart = options.keys() - {"frozen", "eq"} or not options.get("frozen", False)
    if apart or any(hasattr(base, "__dataclass_fields__") for base in cls.__mro__[1:]):
        dataclasses.dataclass(**options)(cls)
        return
    hashes = "__hash__" in own and not (own["__hash__"] is None and "__eq__" in own)
    if not cls.__doc__:
        cls.__doc__ = cls.__name__  # its signature takes longer to work out than all the rest
    dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    fields = dataclasses.fields(cls)
    params: Any = cls.__dataclass_params__  # type: ignore[attr-defined]
    params.init = params.repr = params.frozen = True
    params.eq = options.get("eq", True)
    methods = [_init(cls, fields), _repr(tuple(f.name for f in fields if f.repr))]
    if params.eq:
        methods.append(_eq(_values([f.name for f in fields if f.compare])))
        hashed = [f.name for f in fields if (f.compare if f.hash is None else f.hash)]
        methods += [] if hashes else [_hash(_values(hashed))]
    methods += _frozen(cls, frozenset(f.name for f in fields))
    for method in methods:
        if method.__name__ not in own or method.__name__ == "__hash__":
            method.__qualname__ = f"{cls.__qualname__}.{method.__name__}"
            setattr(cls, method.__name__, method)


class _None:
    """Stands for what was not given, and is made anew each time."""

    def __repr__(self) -> str:
        return "<factory>"


_NONE = _None()


def _init(cls: type, fields: Sequence[dataclasses.Field[Any]]) -> Any:
    missing = dataclasses.MISSING
    known: dict[str, Any] = {"set__": object.__setattr__, "none__": _NONE}
    given, body = [], []
    for f in fields:
        made = f"made__{f.name}"
        factory = f.default_factory is not missing
        known[made] = f.default_factory if factory else f.default
        if f.init:
            default = "none__" if factory else made
            given.append(f.name if known[made] is missing else f"{f.name}={default}")
            value = f"{made}() if {f.name} is none__ else {f.name}" if factory else f.name
            body.append(f"set__(self, {f.name!r}, {value})")
        elif factory:
            body.append(f"set__(self, {f.name!r}, {made}())")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    head = f"def __init__({', '.join(['self', *given])}):"
    exec("\n ".join([head, *(body or ["pass"])]), known)
    method = known["__init__"]
    method.__annotations__ = {**{f.name: f.type for f in fields if f.init}, "return": None}
    return method


def _values(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the fields of these names as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda self: ()
    get = attrgetter(names[0])
    return lambda self: (get(self),)


def _repr(names: Sequence[str]) -> Any:
    @recursive_repr("...")
    def __repr__(self: Any) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    return __repr__


def _eq(values: Callable[[Any], tuple[Any, ...]]) -> Any:
    def __eq__(self: Any, other: Any) -> bool:
        if other.__class__ is self.__class__:
            return values(self) == values(other)
        return NotImplemented

    return __eq__


def _hash(values: Callable[[Any], tuple[Any, ...]]) -> Any:
    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __hash__


def _frozen(cls: Any, names: Collection[str]) -> list[Any]:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return [__setattr__, __delattr__]


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`; with `slots`, which make another class, done at once."""
        made = dataclasses.dataclass(**options) if "slots" in options else partial(_late, options)
        return made if cls is None else made(cls)
