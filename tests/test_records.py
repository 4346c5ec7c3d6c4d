"""Classes finished at their first use are the dataclasses of the standard library."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chainrule.ir.loop import Buffer
from chainrule.ir.types import float32
from chainrule.records import dataclass

ROOT = Path(__file__).parents[1]
SHELVES = [str(ROOT / "compiler"), str(ROOT / "runtime")]
PLAIN: Any = dataclasses.dataclass


def pair(make: Any) -> type:
    @make(frozen=True)
    class Pair:
        """With a word on it, as ours are: `dataclasses` is not asked for its fields."""

        a: int
        b: tuple[int, ...] = field(default=(), repr=False)

        def total(self) -> int:
            return self.a + sum(self.b)

    return Pair


def counted(make: Any) -> type:
    @make
    class Counted:
        names: list[str] = field(default_factory=list)
        count: int = field(init=False, compare=False)

        def __post_init__(self) -> None:
            self.count = len(self.names)

        def __hash__(self) -> int:
            return 7

    return Counted


def marked(make: Any) -> type:
    @make(frozen=True)
    class Marked:
        """Fields of every kind."""

        a: float
        b: list[int] = field(default_factory=list, hash=False)
        c: int = field(default=3, compare=False)
        d: int = field(init=False, default=4)
        e: list[int] = field(init=False, default_factory=list, hash=False)
        f: int = field(default=1, kw_only=True)

        def __post_init__(self) -> None:
            object.__setattr__(self, "c", self.c + 1)

    return Marked


def alone(make: Any) -> type:
    @make(frozen=True, eq=False)
    class Alone:
        """Equal to itself alone."""

        a: int = 1

        def __repr__(self) -> str:
            return "alone"

    return Alone


def empty(make: Any) -> type:
    @make(frozen=True)
    class Empty:
        pass

    return Empty


def told(cls: type) -> list[Any]:
    """All that one can see of a class and its instances, each by whatever asks for it first."""
    one: Any = cls
    return [
        [f.name for f in dataclasses.fields(one)],
        str(inspect.signature(cls)),
        one.__dataclass_params__.frozen,
        one.__match_args__,
        sorted(
            name
            for name in vars(cls)
            if name not in ("__doc__", "__dict__", "__weakref__", "__signature__")
        ),
    ]


FIRST: dict[str, Callable[[Any], object]] = {
    "fields": dataclasses.fields,
    "signature": inspect.signature,
    "match_args": lambda cls: cls.__match_args__,
    "params": lambda cls: cls.__dataclass_params__,
    "is_dataclass": dataclasses.is_dataclass,
    "instance": lambda cls: cls(a=1) if cls.__name__ in ("Pair", "Marked") else cls(),
    "nothing": id,
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("make_class", [pair, counted, marked, alone, empty])
def test_a_class_is_what_dataclasses_makes_of_it(
    make_class: Callable[[Any], type], first: str
) -> None:
    ours, plain = make_class(dataclass), make_class(PLAIN)
    FIRST[first](ours)
    assert told(ours) == told(plain)


def test_instances_are_equal_hashed_shown_replaced_and_frozen_alike() -> None:
    ours, plain = pair(dataclass), pair(PLAIN)
    a, b = ours(1, (2, 3)), plain(1, b=(2, 3))
    assert repr(a) == repr(b) == "pair.<locals>.Pair(a=1)"
    assert hash(a) == hash(b) and a == ours(1, (2, 3)) != ours(1)
    assert a.total() == 6 and dataclasses.replace(a, a=2).total() == 7
    assert dataclasses.asdict(a) == dataclasses.asdict(b)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.a = 3
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument"):
        ours()
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'c'"):
        ours(1, c=2)
    cls = counted(dataclass)
    made = cls(["x", "y"])
    assert made.count == 2 and hash(made) == 7
    assert made == cls(["x", "y"]) and made != cls([])


def test_fields_are_begun_compared_and_hashed_as_they_say() -> None:
    both = [
        [cls(1.0), cls(1.0, [2]), cls(a=1.0, c=9), cls(2.0)]
        for cls in (marked(dataclass), marked(PLAIN))
    ]
    ours, plain = both
    assert list(map(repr, ours)) == list(map(repr, plain))
    assert list(map(hash, ours[:3])) == list(map(hash, plain[:3]))
    assert [[x == y for y in ours] for x in ours] == [[x == y for y in plain] for x in plain]
    assert ours[0].b is not ours[2].b and ours[0].e == [] and ours[0].d == 4
    assert ours[0] != plain[0] and ours[0] != 1.0
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'a'"):
        del ours[0].a
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'z'"):
        ours[0].z = 1
    lone = alone(dataclass)
    assert lone() != lone() and repr(lone()) == "alone" and len({lone(), lone()}) == 2
    none = empty(dataclass)
    assert none() == none() and hash(none()) == hash(empty(PLAIN)())


def test_what_holds_itself_is_shown() -> None:
    one = pair(dataclass)(1, [])
    one.b.append(one)
    holds = marked(dataclass)(1.0, [])
    holds.b.append(holds)
    assert repr(holds).count("...") == 1 and "(a=1)" in repr(one)


def test_a_subclass_takes_over_the_fields_whoever_makes_it() -> None:
    for make in (dataclass, PLAIN):

        @make(frozen=True)
        class Triple(pair(dataclass)):  # type: ignore[misc]
            """One more."""

            c: int = 0

        assert [f.name for f in dataclasses.fields(Triple)] == ["a", "b", "c"]
        assert Triple(1, (2,), 3).total() == 3
        assert repr(Triple(1)).endswith("Triple(a=1, c=0)")


def test_a_subclass_that_is_none_can_be_the_first_that_is_made() -> None:
    class Named(pair(dataclass)):  # type: ignore[misc]
        def total(self) -> int:
            return 0

    assert Named(1).total() == 0 and Named(1) == Named(1) and Named(1) != Named(2)


def test_a_subclass_may_make_itself_and_the_first_by_super() -> None:
    class Named(pair(dataclass)):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__(len(name))

        def __repr__(self) -> str:
            return f"Named: {super().__repr__()}"

    assert (
        repr(Named("one"))
        == "Named: test_a_subclass_may_make_itself_and_the_first_by_super.<locals>.Named(a=3)"
    )


def test_an_instance_read_back_is_one_where_none_was_made() -> None:
    code = (
        f"import sys, pickle; sys.path[:0] = {SHELVES!r}; "
        "a, b = (pickle.loads(bytes.fromhex(sys.argv[1])) for _ in range(2)); "
        "assert a is not b and a == b and hash(a) == hash(b); print(a)"
    )
    shown = pickle.dumps(Buffer("x", float32, 3)).hex()
    ran = subprocess.run(
        [sys.executable, "-c", code, shown], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.strip() == repr(Buffer("x", float32, 3)), ran.stderr


class Base:
    """A base that is no dataclass, with what a field of a subclass has for a default."""

    c = 5


def nested(make: Any) -> type:
    @make(frozen=True)
    class Outer:
        """With what is no field."""

        a: int
        shared: ClassVar[int] = 3
        b: int = 1

    @make(frozen=True)
    class Inner(Outer, Base):
        """With its bases' fields."""

        c: int
        b: int = 2  # in its base's place, with a default of its own

    return Inner


def mutable(make: Any) -> type:
    @make
    class Mutable:
        a: int = 0

    return Mutable


@pytest.mark.parametrize("make_class", [nested, mutable])
def test_bases_defaults_and_what_can_not_be_hashed(make_class: Callable[[Any], type]) -> None:
    ours, plain = make_class(dataclass), make_class(PLAIN)
    assert told(ours)[:-1] == told(plain)[:-1]
    assert repr(ours(7)) == repr(plain(7)) and ours(7) == ours(7)
    assert (ours.__hash__ is None) == (plain.__hash__ is None) == (make_class is mutable)
    assert getattr(ours, "c", None) == getattr(plain, "c", None)


STORM = """
import dataclasses, signal
from chainrule.records import dataclass

class Alarm(Exception): pass

def ring(*_):
    if armed:
        raise Alarm

signal.signal(signal.SIGALRM, ring)

def one():
    @dataclass(frozen=True)
    class One:
        a: int
        b: tuple = dataclasses.field(default=(), repr=False)
    return One

armed, cut = False, 0
for i in range(300):
    cls = one()
    try:  # one alarm, at another place each time
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 2e-6 * (i + 1))
            cls(1, (2,))
        finally:
            armed = False
    except Alarm:
        cut += 1
    made = cls(1, (2,))
    assert made == cls(1, (2,)) and hash(made) == hash((1, (2,)))
    assert repr(made) == "one.<locals>.One(a=1)"
    assert [f.name for f in dataclasses.fields(cls)] == ["a", "b"] and cls.b == ()
    try:
        made.a = 2
    except dataclasses.FrozenInstanceError:
        pass
    else:
        raise AssertionError("not frozen")
print("cut" if cut > 20 else cut)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
def test_what_a_handler_raises_leaves_no_half_of_a_class() -> None:
    """As Ctrl-C may; in a process of its own: it may arise anywhere, in pytest's hooks too."""
    code = f"import sys; sys.path[:0] = {SHELVES!r}\n{STORM}"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.stdout.strip() == "cut", ran.stdout + ran.stderr


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_that_make_the_first_instance_at_once_all_get_one(hasty: None) -> None:
    for _ in range(50):
        cls = pair(dataclass)
        start = threading.Barrier(4)
        found: list[object] = []

        def make(cls: type = cls, start: Any = start, found: Any = found) -> None:
            start.wait()
            found.append(cls(1))

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [cls(1)] * 4


BODIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "own equality": {"__eq__": lambda self, other: True},
    "own hash": {"__hash__": lambda self: 5},
    "both": {"__eq__": lambda self, other: True, "__hash__": lambda self: 5},
    "no hash": {"__hash__": None},
    "no hash, own equality": {"__eq__": lambda self, other: True, "__hash__": None},
    "own text": {"__repr__": lambda self: "own"},
    "own beginning": {"__init__": lambda self: vars(self).update(a=3)},
    "own setattr": {"__setattr__": object.__setattr__},
    "a list for all": {"a": []},
    "a field of no type": {"b": dataclasses.field(default=1)},
    "own slots": {"__slots__": ("a",)},
    "what has none after what has one": {"b": None, "__annotations__": {"b": "int", "a": "int"}},
}


def outcome(make: Callable[..., Any]) -> Any:
    """What a call gives, or the kind of error it raises."""
    try:
        return make()
    except (TypeError, ValueError, SyntaxError) as error:
        return "TypeError" if isinstance(error, SyntaxError) else type(error).__name__


@pytest.mark.parametrize("options", [{"frozen": True}, {"frozen": True, "eq": False}, {}], ids=str)
@pytest.mark.parametrize("doc", [None, "What it is."], ids=["silent", "told"])
@pytest.mark.parametrize("body", BODIES)
def test_what_a_class_has_itself_is_left_alone_or_refused(
    body: str, doc: str | None, options: dict[str, bool]
) -> None:
    def look(make: Any) -> list[Any]:
        space = {"__annotations__": {"a": "int"}, "__module__": __name__, "__doc__": doc}
        space |= BODIES[body]
        cls = outcome(lambda: make(**options)(type("Own", (), space)))
        if isinstance(cls, str):
            return [cls]
        args = () if "__init__" in BODIES[body] else (3,)
        one = outcome(lambda: cls(*args))
        if isinstance(one, str):
            return [one]
        same, shown = one == outcome(lambda: cls(*args)), "" if not args else repr(one)
        number = outcome(lambda: hash(one)) if options.get("eq", True) else None
        bare = outcome(lambda: bool(cls()))
        return [same, shown, number, cls.__hash__ is None, bare]

    assert look(dataclass) == look(PLAIN)


def test_order_and_classes_that_are_not_frozen_are_the_standard_library_s() -> None:
    @dataclass(frozen=True, order=True)
    class Ordered:
        a: int

    assert Ordered(1) < Ordered(2)
    for outer, inner in (({"frozen": True}, {}), ({}, {"frozen": True})):

        @dataclass(**outer)
        class Outer:
            a: int

        with pytest.raises(TypeError, match="cannot inherit"):

            @dataclass(**inner)
            class Inner(Outer):
                """With a word on it, and without."""

        with pytest.raises(TypeError, match="cannot inherit"):

            @dataclass(**inner)
            class Silent(Outer):
                pass


def test_a_default_is_there_before_any_instance() -> None:
    assert pair(dataclass).b == ()  # type: ignore[attr-defined]


def test_an_instance_read_back_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="'name'"):
        pickle.loads(pickle.dumps(Buffer("x", float32, 3))).name = "y"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is of Python 3.13")
def test_copies_with_changes() -> None:
    from copy import replace  # type: ignore[attr-defined]

    assert replace(pair(dataclass)(1, (2,)), a=4).total() == 6


PLAIN_ANNOTATIONS = """
class Base:
    "Annotations that are no text."

    a: int
    b: tuple[int, ...] = ()

class Child(Base):
    "One field more, and one that is none."

    c: float = 0.5
    d: ClassVar[int] = 3

class Bare(Child):
    "No annotations at all."
"""


def test_annotations_that_are_no_text() -> None:
    """As in a module that says nothing of annotations: Python 3.14 works them out when asked."""
    found = []
    for make in (dataclass, PLAIN):
        names: dict[str, Any] = {"ClassVar": ClassVar}
        exec(compile(PLAIN_ANNOTATIONS, "plain", "exec", dont_inherit=True), names)
        kinds = [make(frozen=True)(names[name]) for name in ("Base", "Child", "Bare")]
        found.append([[(f.name, f.type, f.default) for f in dataclasses.fields(k)] for k in kinds])
        assert repr(kinds[2](1, (2,))) == "Bare(a=1, b=(2,), c=0.5)"
    assert found[0] == found[1] and [len(fields) for fields in found[0]] == [2, 3, 3]


def test_annotations_that_are_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a class of Python 3.14 holds, on any version, and what `dataclasses` makes of it."""

    def asking(**options: Any) -> Callable[[Any], type]:
        def make(cls: Any) -> type:
            cls.__annotations__ = vars(cls)["__annotate__"](3)
            made: type = PLAIN(**options)(cls)
            return made

        return make

    def annotate(format: int) -> dict[str, Any]:
        return {"a": int, "b": str}

    monkeypatch.setattr(dataclasses, "dataclass", asking)
    body = {"__annotate__": staticmethod(annotate), "__doc__": "Two fields.", "b": "c"}
    made: Any = dataclass(frozen=True)(type("Late", (), body))
    assert [(f.name, f.type) for f in dataclasses.fields(made)] == [("a", int), ("b", str)]
    assert made(1) == made(1, "c") and repr(made(1)) == "Late(a=1, b='c')"
