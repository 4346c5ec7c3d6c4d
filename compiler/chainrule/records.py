"""`dataclass` as in the standard library, without the time it takes for a frozen class.

`dataclasses` writes six methods of a frozen class as text and has Python compile each: some 0.4 ms
a class, more than half of what `import chainrule` took. Here five of them are made without text,
and `__init__`, which is called most, gets one at the first call: a program that is found compiled
makes instances of few of the classes it imports.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from reprlib import recursive_repr
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any

Fields = Sequence[dataclasses.Field[Any]]


class _None:
    """The default of what a factory makes when nothing is given."""

    def __repr__(self) -> str:
        return "<factory>"


_NONE = _None()


@dataclasses.dataclass(frozen=True)
class _Model:
    """What `dataclasses` writes of a class and of a field, for others to be like."""

    a: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Unequal:
    """The same of a class whose instances equal themselves alone."""


_PARAMS = {
    True: _Model.__dataclass_params__,  # type: ignore[attr-defined]
    False: _Unequal.__dataclass_params__,  # type: ignore[attr-defined]
}
_FIELD = dataclasses.fields(_Model)[0]._field_type  # type: ignore[attr-defined]
#: methods that are the same in all classes, where this version of Python has them
_SAME = {name: vars(_Model)[name] for name in ("__replace__",) if name in vars(_Model)}


def _frozen(eq: bool, cls: type) -> type:
    """What `dataclasses.dataclass(frozen=True, eq=eq)` does to a class."""
    own = dict(vars(cls))
    named = _named(cls, own)
    setattr(cls, "__dataclass_params__", _PARAMS[eq])  # noqa: B010
    setattr(cls, "__dataclass_fields__", named)  # noqa: B010
    fields = [f for f in named.values() if f._field_type is _FIELD]  # type: ignore[attr-defined]
    if "__match_args__" not in own:
        taken = (f.name for f in fields if f.init and not f.kw_only)
        setattr(cls, "__match_args__", tuple(taken))  # noqa: B010
    made = {**_init(cls, fields), **_shown(fields), **(_compared(fields) if eq else {}), **_SAME}
    if "__eq__" in own and own.get("__hash__") is None:
        own.pop("__hash__", None)  # it is Python that put None there
    for name in made.keys() - own.keys():
        setattr(cls, name, made[name])
    for name, method in _fixed(cls, frozenset(f.name for f in fields)).items():
        if name in own:
            raise TypeError(f"Cannot overwrite attribute {name} in class {cls.__name__}")
        setattr(cls, name, method)
    return cls


def _named(cls: type, own: Mapping[str, Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a class by name, its bases' first, with their defaults in the class.

    What `dataclasses` finds, at a third of the time; where an annotation may be no field, it looks,
    and where there is a function in place of the annotations: so Python 3.14 has it in modules that
    don't say `from __future__ import annotations` (PEPs 649 and 749).
    """
    types = own.get("__annotations__", {})
    late = not types and getattr(cls, "__annotate__", None) is not None
    text = " ".join(t if isinstance(t, str) else repr(t) for t in types.values())
    strange = any(word in text for word in ("ClassVar", "InitVar", "KW_ONLY"))
    if strange or late or not cls.__doc__ or hasattr(cls, "__abstractmethods__"):
        derived = any(map(dataclasses.is_dataclass, cls.__mro__[1:]))
        dataclasses.dataclass(init=False, repr=False, eq=False, frozen=derived)(cls)
        return dict(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    for base in cls.__mro__[:0:-1]:
        known = vars(base).get("__dataclass_fields__")
        if known is not None:
            if not base.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise TypeError("cannot inherit frozen dataclass from a non-frozen one")
            found.update(known)
    for name, kind in types.items():
        found[name] = _field(cls, name, kind)
    for name, value in own.items():
        if isinstance(value, dataclasses.Field) and name not in types:
            raise TypeError(f"{name!r} is a field but has no type annotation")
    return found


def _field(cls: type, name: str, kind: Any) -> Any:
    """What is annotated as a field, its default in the class."""
    given: Any = getattr(cls, name, dataclasses.MISSING)
    own = isinstance(given, dataclasses.Field)
    if isinstance(given, MemberDescriptorType):
        given = dataclasses.MISSING  # it is a slot
    field: Any = given if own else dataclasses.field(default=given)
    field.name, field.type, field._field_type = name, kind, _FIELD
    if field.kw_only is dataclasses.MISSING:
        field.kw_only = False
    if field.default.__class__.__hash__ is None:
        raise ValueError(
            f"mutable default {type(field.default)} for field {name} is not allowed: "
            "use default_factory"
        )
    if own and field.default is dataclasses.MISSING:
        delattr(cls, name)
    elif own:
        setattr(cls, name, field.default)
    return field


def _init(cls: type, fields: Fields) -> dict[str, Any]:
    def __init__(self: object, *args: object, **options: object) -> None:
        """Another takes its place when it is called first: at once, whoever comes between."""
        made = _written(cls, fields)
        setattr(cls, "__init__", made)  # noqa: B010
        made(self, *args, **options)

    return {"__init__": __init__, "__signature__": _Signature(cls, fields)}


class _Signature:
    """What `inspect` is told that a class takes; a subclass that is none of these has its own."""

    def __init__(self, cls: type, fields: Fields) -> None:
        self.cls, self.fields = cls, fields

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if owner is not self.cls:
            raise AttributeError("__signature__")
        whole = inspect.signature(_written(self.cls, self.fields))
        return whole.replace(parameters=list(whole.parameters.values())[1:])


def _written(cls: type, fields: Fields) -> Any:
    """The text of an `__init__`, compiled."""
    missing = dataclasses.MISSING
    known: dict[str, Any] = {"set__": object.__setattr__, "none__": _NONE}
    given: dict[bool, list[str]] = {False: ["self"], True: ["*"]}
    body = []
    for f in fields:
        made = f"made__{f.name}"
        factory = f.default_factory is not missing
        known[made] = f.default_factory if factory else f.default
        if f.init:
            default = "none__" if factory else made
            alone = known[made] is missing
            given[bool(f.kw_only)].append(f.name if alone else f"{f.name}={default}")
            value = f"{made}() if {f.name} is none__ else {f.name}" if factory else f.name
            body.append(f"set__(self, {f.name!r}, {value})")
        elif factory:
            body.append(f"set__(self, {f.name!r}, {made}())")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    names = given[False] + (given[True] if len(given[True]) > 1 else [])
    exec("\n ".join([f"def __init__({', '.join(names)}):", *(body or ["pass"])]), known)
    method = known["__init__"]
    method.__qualname__ = f"{cls.__qualname__}.__init__"
    method.__annotations__ = {**{f.name: f.type for f in fields if f.init}, "return": None}
    return method


def _shown(fields: Fields) -> dict[str, Any]:
    names = [f.name for f in fields if f.repr]

    @recursive_repr("...")
    def __repr__(self: object) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in names)
        return f"{self.__class__.__qualname__}({', '.join(values)})"

    return {"__repr__": __repr__}


def _compared(fields: Fields) -> dict[str, Any]:
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


def _fixed(cls: type, names: frozenset[str]) -> dict[str, Any]:
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


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        """As `dataclasses.dataclass`, which it is but for classes that are frozen and no more.

        Those take no `InitVar`.
        """
        quick = options.get("frozen") and options.keys() <= {"frozen", "eq"}
        made = (
            partial(_frozen, options.get("eq", True)) if quick else dataclasses.dataclass(**options)
        )
        return made if cls is None else made(cls)
