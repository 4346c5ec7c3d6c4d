"""`Layer`: a function on Tensors that has parameters of its own.

    class Scale(cr.nn.Layer):
        def forward(self, x):
            return x * self.parameter("scale", (x.shape[-1],), init="ones")

At its first call a layer gets its name, names its children and makes its parameters, whose sizes
follow from what it is called on. A later call shares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field
from types import MappingProxyType
from typing import Any, ClassVar

from chainrule.errors import ChainruleError, CompileError, DTypeError, ShapeError
from chainrule.ir.types import check_shape
from chainrule.ir.types import dtype as as_dtype
from chainrule.lang import leaves
from chainrule.lang.arguments import flag
from chainrule.lang.tensor import Tensor
from chainrule.nn.scope import Scope, kind_of, remember, scope_of
from chainrule.records import dataclass

#: the layer whose `forward` is at work
_caller: ContextVar[Layer | None] = ContextVar("caller", default=None)
#: how to take back what the outermost call has done, should it fail
_journal: ContextVar[list[Callable[[], object]] | None] = ContextVar("journal", default=None)


@dataclass
class Record:
    """What is known of a layer: first what it was given, since its first call the rest.

    `scope` is where its children are named; `adopted` are layers that its `forward` called and that
    are in no attribute.
    """

    given: str | None = None
    trainable: bool = True
    name: str | None = None
    scope: Scope | None = None
    dtype: object = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    adopted: list[Layer] = field(default_factory=list)
    built: bool = False


class Layer:
    """A function on Tensors with parameters: a subclass says in `forward` what it computes.

    Sizes are inferred from the first call, later ones share the parameters; other sizes are then a
    ShapeError. `name` is by default the class and the lowest number that is free: "dense1", counted
    among what is built on the same inputs; in an attribute of another layer it is that layer's name
    and the attribute's: "attention1.query". Tensors are called "dense1.weight".
    """

    #: what layers of the class are called, before their number; by default its name in snake case
    kind = ""
    #: whether it has no name unless it is given one, and its children are named as if beside it
    transparent = False
    #: how often layers were frozen or unfrozen
    freezings: ClassVar[int] = 0

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            if not isinstance(name, str) or not name.isprintable() or not name.strip(". "):
                raise ShapeError(f"a layer's name is printable text, not {name!r}")
            self._record.given = name

    @property
    def _record(self) -> Record:
        """What is known of it; made when asked for, so that a subclass need not call __init__."""
        record: Record | None = self.__dict__.get("_record")
        if record is None:
            record = self.__dict__["_record"] = Record()
        return record

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the layer computes: Tensors from Tensors. A subclass says it."""
        raise CompileError(f"{type(self).__name__} is a layer without a forward")

    def __call__(self, /, *inputs: Any, **options: Any) -> Any:
        record, caller = self._record, _caller.get()
        tensors = list(_tensors((inputs, options)))
        with _whole_or_not_at_all():
            around = self._enter(caller, tensors)
            if record.dtype is None:
                floats = (t.dtype for t in tensors if t.dtype.is_float)
                record.dtype = next(floats, "float32")
                _later(lambda: vars(record).update(dtype=None))
            token = _caller.set(self)
            try:
                result = self.forward(*inputs, **options)
                made = list(_tensors(result))
                if not made:
                    raise CompileError(f"{self!r} gives a Tensor, or several, not {result!r}")
            except ChainruleError as error:
                raise self._told(error, tensors) from None
            finally:
                _caller.reset(token)
            if not record.built:
                record.built = True
                _later(lambda: vars(record).update(built=False))
        if around is not None:
            remember((t.node for t in (*tensors, *made)), around)
        return result

    def _told(self, error: ChainruleError, tensors: list[Tensor]) -> ChainruleError:
        """The error, which says in which layer it arose."""
        if not any(line.startswith("in layer ") for line in error.details):
            shown = ", ".join(str(t.type) for t in tensors)
            where = f"in layer {self._record.name or type(self).__name__}, called on {shown}"
            error.details = (where, *error.details)
        return error

    # parameters

    def parameter(self, name: str, shape: Any, init: Any = None, dtype: object = None) -> Tensor:
        """A tensor that training changes: made at the first call, the same one after.

        `init` is as in `cr.parameter`; `dtype` that of the first float Tensor that the layer was
        called on, else float32. Raises ShapeError where the shape is not that of the first call.
        """
        return self._keep(leaves.parameter, name, shape, init, dtype)

    def state(self, name: str, shape: Any, init: Any = None, dtype: object = None) -> Tensor:
        """A tensor that lives between steps; how it changes, `cr.nn.tracked` or `updates=` says."""
        return self._keep(leaves.state, name, shape, init, dtype)

    def _keep(
        self, make: Callable[..., Tensor], name: str, shape: Any, init: Any, dtype: object
    ) -> Tensor:
        if not isinstance(name, str):
            raise ShapeError(f"{self!r}: the name of a {make.__name__} is text, not {name!r}")
        record = self._record
        known = record.tensors.get(name)
        if known is None:
            if record.name is None:
                raise CompileError(
                    f"{self!r} has no name yet that its {name} could be called by",
                    "ask for it in forward: layers are named, and sizes known, at the first call",
                )
            of = record.dtype if dtype is None else dtype
            made = make(f"{record.name}.{name}", shape, init=init, dtype=of or "float32")
            record.tensors[name] = made
            _later(lambda: record.tensors.pop(name))
            return made
        if known.node.op.name != make.__name__:
            raise CompileError(
                f"{record.name}: its {name} is a {known.node.op.name}, not a {make.__name__}",
                "give one of them another name",
            )
        wanted = known.type.with_shape(check_shape(shape))
        if wanted != known.type:
            raise ShapeError(
                f"{record.name} was first called on other sizes: its {name} is {known.type}, now "
                f"it would be {wanted}",
                "a layer keeps its sizes: make another layer for others",
            )
        if dtype is not None and as_dtype(dtype) != known.dtype:
            raise DTypeError(f"{record.name}: its {name} is {known.type}, not of {dtype}")
        return known

    def __getitem__(self, name: Any) -> Tensor:
        """A parameter or state, by its own name or its full one: layer["weight"]."""
        own = self._record.tensors.get(name) if isinstance(name, str) else None
        found = own if own is not None else {**self.parameters, **self.states}.get(name)
        if found is None:
            there = ", ".join((*self.parameters, *self.states)) or "none before its first call"
            raise CompileError(f"{self!r} has no tensor called {name!r}", f"there are: {there}")
        return found

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Its parameters by name, its children's included; none before the first call."""
        return self._kept("parameter", lambda _: True)

    @property
    def trainable_parameters(self) -> Mapping[str, Tensor]:
        """Its parameters by name, without those of frozen layers."""
        return self._kept("parameter", lambda layer: layer.trainable)

    @property
    def states(self) -> Mapping[str, Tensor]:
        """Its states by name, its children's included."""
        return self._kept("state", lambda _: True)

    def _kept(self, kind: str, within: Callable[[Layer], bool]) -> Mapping[str, Tensor]:
        tensors = (t for layer in _walk(self, within) for t in layer._record.tensors.values())
        return MappingProxyType({t.name: t for t in tensors if t.node.op.name == kind})  # type: ignore[misc]

    # what it is

    @property
    def name(self) -> str | None:
        """Its name; before the first call that which it was given, or None."""
        return self._record.name or self._record.given

    @property
    def built(self) -> bool:
        """Whether it was called, so that it has its parameters."""
        return self._record.built

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its children."""
        return tuple(dict.fromkeys((*(c for _, c in self._children()), *self._record.adopted)))

    @property
    def trainable(self) -> bool:
        """Whether training changes its parameters; setting it, freezes its children or not, too."""
        return self._record.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in _walk(self, lambda _: True):
            layer._record.trainable = flag("trainable", value)
        Layer.freezings += 1

    def freeze(self) -> Layer:
        """Leave its parameters, and its children's, as they are in training. Gives the layer."""
        self.trainable = False
        return self

    def unfreeze(self) -> Layer:
        """Let training change its parameters and its children's again. Gives the layer."""
        self.trainable = True
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.name}" if self.name else type(self).__name__

    def __setattr__(self, name: str, value: Any) -> None:
        own = getattr(type(self), name, None)
        if name in _TAKEN or (isinstance(own, property) and own.fset is None):
            raise CompileError(
                f"{name} is something that every layer has: keep {value!r} under another name"
            )
        object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: all but tensors, so that it makes its own."""
        given = Record(self._record.given, self._record.trainable)
        return {**vars(self), "_record": given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    # names

    def _children(self) -> Iterator[tuple[str | None, Layer]]:
        """The layers in its attributes, and what each is called there."""
        for attribute, value in vars(self).items():
            if attribute != "_record":
                yield from _labelled(attribute.strip("_"), value)

    def _enter(self, caller: Layer | None, tensors: list[Tensor]) -> Scope | None:
        """Take a name, if it has none, and the scope of the inputs, if no other layer calls it."""
        record = self._record
        if caller is None:
            around = scope_of([t.node for t in tensors])
            if record.scope is None:
                self._settle(around, None)
            else:
                self._name_children()
                around.take(n.removeprefix(around.prefix).split(".")[0] for n in self.parameters)
            return around
        if record.scope is None:
            caller._name_children()
        if record.scope is None:
            caller._adopt(self)
        self._name_children()
        return None

    def _settle(self, around: Scope, label: str | None) -> None:
        """Take a name in a scope, and name the children."""
        record = self._record
        label = record.given or label
        if label is None and type(self).__dict__.get("transparent", False):
            record.scope = around
        else:
            label = label or around.fresh(self.kind or kind_of(type(self)))
            around.take([label])
            record.name = around.prefix + label
            record.scope = Scope(f"{record.name}.")
            _later(lambda: around.free(label))
        _later(lambda: vars(record).update(name=None, scope=None))
        self._name_children()

    def _name_children(self) -> None:
        scope = self._record.scope
        if scope is not None:
            for label, child in self._children():
                if child._record.scope is None:
                    child._settle(scope, label)

    def _adopt(self, child: Layer) -> None:
        """Take in a layer that `forward` calls and that is in no attribute."""
        record = self._record
        if record.built:
            raise CompileError(
                f"{self!r} was called before and now calls a new layer, {child!r}",
                "make layers in __init__ and keep them in attributes: a call shares what they have",
            )
        record.adopted.append(child)
        _later(lambda: record.adopted.remove(child))
        assert record.scope is not None
        child._settle(record.scope, None)


_TAKEN = ("parameter", "state", "freeze", "unfreeze")


def _tensors(structure: Any) -> Iterator[Tensor]:
    """The Tensors in a structure of tuples, lists and dicts."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, (list, tuple)):
        for part in structure:
            yield from _tensors(part)
    elif isinstance(structure, dict):
        for part in structure.values():
            yield from _tensors(part)


def _labelled(label: str, value: Any) -> Iterator[tuple[str, Layer]]:
    """The layers in an attribute: blocks1, blocks2, ... those of a list, heads.left of a dict."""
    if isinstance(value, Layer):
        yield label, value
    elif isinstance(value, (list, tuple)):
        stem = f"{label}_" if label[-1:].isdigit() else label
        for i, part in enumerate(value, 1):
            yield from _labelled(f"{stem}{i}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _labelled(f"{label}.{key}", part)


def _walk(layer: Layer, within: Callable[[Layer], bool]) -> Iterator[Layer]:
    """A layer and those in it, each once, as far as `within` holds."""
    seen: set[Layer] = set()
    stack = [layer]
    while stack:
        one = stack.pop()
        if one not in seen and within(one):
            seen.add(one)
            yield one
            stack += reversed(one.layers)


@contextmanager
def _whole_or_not_at_all() -> Iterator[None]:
    """Within it, what layers note of their first call is taken back if the outermost call fails."""
    if _journal.get() is not None:
        yield
        return
    undo: list[Callable[[], object]] = []
    token = _journal.set(undo)
    try:
        yield
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    finally:
        _journal.reset(token)


def _later(undo: Callable[[], object]) -> None:
    """Note how to take something back."""
    journal = _journal.get()
    if journal is not None:
        journal.append(undo)
