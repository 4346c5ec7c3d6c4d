"""`dataclass` as in the standard library, but worked out when the first instance is made.

`dataclasses` writes six methods of a frozen class as text and has Python compile each: some 0.4 ms
a class, more than half of what `import chainrule` took. A program that is found compiled makes
instances of few of the classes it imports; the others stay as they are written. Frozen ones that
are made get what they are shown, compared and hashed by without text.

Until then a stand-in is where each method will be. All is made on a model of the class, then put in
the place of the stand-ins one by one: who asks in between, from another thread or from the handler
of a signal, finds a method or a stand-in, and what a handler raises leaves nothing half done.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

#: What `dataclasses` gives a class unless it has its own, and what it tells others about it.
_METHODS = ("__init__", "__eq__", "__hash__", "__repr__")
_FACTS = ("__dataclass_fields__", "__dataclass_params__", "__match_args__")


class _StandIn:
    """Whoever asks a class for what is not made yet has it made, and gets that class' own, also
    where a subclass that has another asks by `super()`.
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


def _model(cls: type, options: dict[str, Any]) -> type:
    """A dataclass with no bases, of all the fields of `cls` and the methods that it has itself."""
    written = {n: v for n, v in dict(vars(cls)).items() if not isinstance(v, _StandIn)}
    fields: dict[str, Any] = {}
    for base in filter(dataclasses.is_dataclass, cls.__mro__[-1:0:-1]):
        fields.update((field.name, field) for field in dataclasses.fields(base))
    types = {name: field.type for name, field in fields.items()}
    own = inspect.get_annotations(cls)
    space = {**fields, **{n: written[n] for n in (*own, *_METHODS) if n in written}}
    for name in (n for n in own if n not in written):
        space.pop(name, None)
        if hasattr(cls, name):  # a default that a base has
            space[name] = getattr(cls, name)
    if hasattr(cls, "__post_init__"):
        space["__post_init__"] = cls.__post_init__
    told = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    model = type(cls.__name__, (), {**told, "__annotations__": {**types, **own}})
    for name, value in space.items():
        setattr(model, name, value)
    return dataclasses.dataclass(**options)(model)


def _shown(fields: Sequence[dataclasses.Field[Any]]) -> dict[str, Any]:
    names = [f.name for f in fields if f.repr]

    @recursive_repr("...")
    def __repr__(self: object) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({', '.join(values)})"

    return {"__repr__": __repr__}


def _compared(fields: Sequence[dataclasses.Field[Any]]) -> dict[str, Any]:
    compared = _values([f.name for f in fields if f.compare])
    hashed = _values([f.name for f in fields if (f.compare if f.hash is None else f.hash)])

    def __eq__(self: object, other: object) -> Any:
        same = other.__class__ is self.__class__
        return compared(self) == compared(other) if same else NotImplemented

    def __hash__(self: object) -> int:
        return hash(hashed(self))

    return {"__eq__": __eq__, "__hash__": __hash__}


def _values(names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
    """What gives the attributes of these names."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda self: tuple([getattr(self, name) for name in names])


def _frozen(cls: type, names: frozenset[str]) -> dict[str, Any]:
    """What refuses to change an instance, but for what a subclass adds that is no dataclass."""

    def __setattr__(self: object, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)  # type: ignore[arg-type]

    def __delattr__(self: object, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)  # type: ignore[arg-type]

    return {"__setattr__": __setattr__, "__delattr__": __delattr__}


def _made(cls: type, options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What is to be put on a class, MISSING for what is to be taken from it.

    `__init__` is the last, so that who finds the true one finds all.
    """
    plain = options.get("frozen") and options.keys() <= {"frozen", "eq"}
    model = _model(cls, {"frozen": True, "eq": False, "repr": False} if plain else options)
    found = {name: vars(model).get(name, dataclasses.MISSING) for name in names}
    if plain:
        own = dataclasses.fields(model)
        methods = {**_shown(own), **(_compared(own) if options.get("eq", True) else {})}
        found |= {name: method for name, method in methods.items() if name in names}
    fields = found["__dataclass_fields__"]
    for name, value in dict(vars(cls)).items():
        if isinstance(value, dataclasses.Field):
            found[name] = fields[name].default
    if options.get("frozen"):
        found |= _frozen(cls, frozenset(fields))
    return dict(sorted(found.items(), key=lambda pair: pair[0] == "__init__"))


def _late(options: dict[str, Any], cls: type) -> type:
    made: list[dict[str, Any]] = []

    def finish() -> None:
        if not made:
            made.append(_made(cls, options, names))
        for name, value in made[0].items():  # what is put there first changes what is read
            if value is not dataclasses.MISSING:
                setattr(cls, name, value)
            elif isinstance(vars(cls).get(name), _StandIn | dataclasses.Field):
                with suppress(AttributeError):  # another thread was faster
                    delattr(cls, name)

    names = (*(m for m in _METHODS if m not in vars(cls)), *_FACTS, "__signature__")
    for name in names:
        setattr(cls, name, _StandIn(cls, finish, name))
    return cls


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`; with `slots`, which make another class, done at once."""
        made = dataclasses.dataclass(**options) if "slots" in options else partial(_late, options)
        return made if cls is None else made(cls)
