"""The functions of a kernel with their parameters: what the header declares and the module defines.

Every function that can fail returns an int32_t, 0 or a code of export.codes.
"""

from __future__ import annotations

from collections.abc import Iterable

from chainrule.export.model import Model, Size, Unit
from chainrule.export.names import identifiers
from chainrule.records import dataclass
from chainrule_runtime.manifest import DimData, Tensor

_C = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    "bfloat16": "uint16_t",
    "float16": "uint16_t",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name and type in C; `size` if it is a symbolic size, `tensor` if data."""

    name: str
    kind: str
    size: str | None = None
    tensor: Tensor | None = None
    optional: bool = False


STATE = (Parameter("state", "void *"), Parameter("state_bytes", "size_t"))
CONST_STATE = (Parameter("state", "const void *"), Parameter("state_bytes", "size_t"))
WORKSPACE = (Parameter("workspace", "void *"), Parameter("workspace_bytes", "size_t"))
#: what the type of a function that divides a step is called, after the name of the kernel
PARALLEL_FOR = "_parallel_for"


def c_type(dtype: str) -> str:
    """What C calls an element; of bfloat16 its bits, of a bool a byte that is 0 or 1."""
    return _C.get(dtype, f"{dtype}_t")


def declared(kind: str, name: str) -> str:
    """A name with its type in front, as C declares it."""
    return kind + ("" if kind.endswith("*") else " ") + name


def prototype(result: str, name: str, parameters: Iterable[str]) -> str:
    """A function as C declares it, with parameters that are declared."""
    return f"{declared(result, name)}({', '.join(parameters) or 'void'})"


class Interface:
    """The parameters of a model's functions, by the model's own names made C's, none of those that
    are `taken`.
    """

    def __init__(self, model: Model, taken: Iterable[str] = ()) -> None:
        self.model = model
        units = model.units.values()
        feeds = [t.name for u in units for t in u.manifest.feeds]
        outputs = [t.name for u in units for t in u.manifest.outputs]
        sizes = [s.name for s in model.sizes]
        taken = [*taken, *(p.name for p in self.parallel)]
        # what begins like the header's constants may be one, which compilers put a number for
        own = f"{model.name.upper()}_"
        taken += [n for n in (*feeds, *outputs, *sizes) if n.startswith(own)]
        # what is fed and what is given back may have one name, and one tensor two outputs
        self.sizes = identifiers(sizes, taken)
        taken += self.sizes.values()
        self.feeds = identifiers(feeds, taken)
        self.outputs = identifiers(outputs, [*taken, *self.feeds.values()])
        self.tensors = identifiers(t.name for t in model.kept)
        self.numbers = identifiers(n.called for n in model.numbers)

    @property
    def parallel(self) -> list[Parameter]:
        """What functions are given by which a caller divides a step, where one can."""
        if self.model.parts == 1:
            return []
        hook = Parameter("parallel_for", f"{self.model.name}{PARALLEL_FOR}")
        return [hook, Parameter("context", "void *"), Parameter("parts", "int32_t")]

    def sizes_of(self, unit: Unit) -> list[Size]:
        """The symbolic sizes that a unit has, in order of appearance."""
        return [s for s in self.model.sizes if s.name in unit.manifest.sizes]

    def size_parameters(self, sizes: Iterable[Size]) -> list[Parameter]:
        """Sizes as parameters."""
        return [Parameter(self.sizes[s.name], "size_t", size=s.name) for s in sizes]

    def feed_parameters(self, unit: Unit) -> list[Parameter]:
        """What a unit is fed, in order of creation."""
        return [
            Parameter(self.feeds[t.name], f"const {c_type(t.dtype)} *", tensor=t)
            for t in unit.manifest.feeds
        ]

    def output_parameters(self, unit: Unit, optional: bool) -> list[Parameter]:
        """What a unit gives back; with `optional`, where all but the first may be null."""
        return [
            Parameter(
                self.outputs[t.name], f"{c_type(t.dtype)} *", tensor=t, optional=optional and i > 0
            )
            for i, t in enumerate(unit.manifest.outputs)
        ]

    def unit(self, name: str) -> list[Parameter]:
        """All parameters of the function that runs a unit."""
        unit = self.model.units[name]
        return [
            *(STATE if name == "step" else CONST_STATE),
            *WORKSPACE,
            *self.size_parameters(self.sizes_of(unit)),
            *self.feed_parameters(unit),
            *self.output_parameters(unit, optional=name == "step"),
        ]


def shape_text(shape: tuple[DimData, ...], text: list[str]) -> str:
    """A shape in a comment."""
    return f"[{', '.join(text)}]" if shape else "one number"
