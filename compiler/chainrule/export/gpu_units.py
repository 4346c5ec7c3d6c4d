"""The C source of a kernel for a GPU, of a unit: its launches in order, and what they lie in.

Names of its own that stand beside the model's end in an underscore, as no name of a model does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chainrule.export import gpu_interface
from chainrule.export.gpu import (
    ROOM_ALIGN,
    GpuKernel,
    Placed,
)
from chainrule.export.header import wrapped
from chainrule.export.interface import declared, prototype
from chainrule.export.model import (
    AT_STATUS,
    Size,
    Unit,
)
from chainrule.loops.launch import BLOCK
from chainrule_runtime.gpu.commands import Command, KernelLaunch, Repeated, Spot
from chainrule_runtime.manifest import DimData, Tensor, element_type

#: what C calls symbolic sizes
Names = Mapping[str, str]
#: threads of the kernels around a step, as loops.minibatch has them
ONE = 32


class Units:
    """Writes the functions of a kernel's units."""

    def __init__(self, kernel: GpuKernel) -> None:
        self.kernel, self.model = kernel, kernel.model
        self.name, self.interface = kernel.model.name, gpu_interface.interface_of(kernel.model)
        self.number = {name: i for i, name in enumerate(kernel.names)}
        self.offsets = self.model.offsets
        self.functions = {f[1]: f for f in gpu_interface.functions(self.model)}

    @property
    def units(self) -> list[Unit]:
        return list(self.model.units.values())

    def define(self, name: str, body: Iterable[str]) -> str:
        """A function of the interface."""
        result, _, parameters, _ = self.functions[name]
        plain = (declared(p.kind, p.name) for p in parameters)
        head = wrapped(prototype(result, f"{self.name}_{name}", plain))
        return "\n".join([*head, "{", *(f"    {line}" for line in body), "}"])

    def dim(self, dim: DimData, names: Names | None = None) -> str:
        """A size as an expression in C, of symbolic ones by the names they have there."""
        if isinstance(dim, int):
            return str(dim)
        terms = [
            "*".join([*([str(c)] if c != 1 or not f else []), *(self.factor(x, names) for x in f)])
            for c, f in dim["terms"]
        ]
        return " + ".join(terms).replace("+ -", "- ") or "0"

    def factor(self, factor: Any, names: Names | None) -> str:
        if isinstance(factor, str):
            return (names or self.interface.sizes)[factor]
        kind, numerator, denominator = factor
        word = "quotient_" if kind == "//" else "rest_"
        return f"{word}({self.dim(numerator, names)}, {self.dim(denominator, names)})"

    def size_of(self, tensor: Tensor, names: Names | None = None) -> str:
        """The bytes of a tensor, as an expression."""
        return self.product([element_type(tensor.dtype).itemsize, *tensor.shape], names)

    def product(self, dims: Sequence[DimData], names: Names | None = None) -> str:
        """Sizes multiplied, as an expression."""
        return "*".join(str(d) if isinstance(d, int) else f"({self.dim(d, names)})" for d in dims)

    @property
    def own(self) -> dict[str, str]:
        """What sizes are called in functions of the interface, as signed numbers."""
        return {name: f"{called}_n_" for name, called in self.interface.sizes.items()}

    def sizes(self, unit: Unit | None = None, kind: str = "int64_t ") -> str:
        """The sizes of a unit, or all, as parameters; with no kind, as arguments."""
        sizes = self.model.sizes if unit is None else self.interface.sizes_of(unit)
        return "".join(f"{kind}{self.interface.sizes[s.name]}, " for s in sizes)

    def signed(self, sizes: Iterable[Size]) -> list[str]:
        """Their declarations, once they were looked at."""
        return [
            f"const int64_t {self.own[s.name]} = (int64_t){self.interface.sizes[s.name]};"
            for s in sizes
        ]

    def data(self, content: bytes) -> str:
        """Where bytes of the module lie."""
        return f"net->data + {self.kernel.data[content]}"

    def at(self, tensor: str) -> str:
        """Where a tensor of the state lies."""
        return f"state + {self.offsets[tensor]}"

    def launch(self, name: str, blocks: str, threads: int, values: Sequence[str]) -> str:
        """A launch of a kernel."""
        given = ", ".join(f"(uint64_t)({v})" for v in (*values, f"state + {AT_STATUS}"))
        head = f"net, stream, {self.number[name]} /* {name} */, {blocks}, {threads}"
        return f"DO_(launch_({head}, {len(values) + 1}, (uint64_t[]){{{given}}}));"

    def over(self, name: str, count: str, values: Sequence[str]) -> str:
        """A kernel of a thread for each of so many."""
        return self.launch(name, f"(({count}) + {BLOCK - 1}) / {BLOCK}", BLOCK, values)

    def plan(self, name: str, unit: Unit) -> str:
        """Where each result and each slot begins in the workspace; how much there must be."""
        placed = Placed(unit.manifest)
        needs = [self.size_of(t) for t in placed.held]
        for slot in unit.manifest.arena:
            most = "0"
            for dim in slot:
                most = f"larger_({most}, {self.dim(dim)})"
            needs.append(most)
        lines = [
            f"static size_t plan_{name}_({self.sizes(unit)}size_t *at_)",
            "{",
            "    size_t end_ = 0;",
        ]
        for i, need in enumerate(needs):
            lines.append(f"    at_[{i}] = end_, end_ += {rounded(need)};")
        unused = [
            f"    (void){self.interface.sizes[s.name]};" for s in self.interface.sizes_of(unit)
        ]
        return "\n".join([*lines, *unused, "    (void)at_;", "    return end_;", "}"])

    def run(self, name: str, unit: Unit) -> str:
        """All that a call launches: addresses by place, then the launches in order."""
        manifest, placed = unit.manifest, Placed(unit.manifest)
        held = {t.place: i for i, t in enumerate(placed.held)}
        place: dict[int, str] = {}
        place |= {t.place: f"given_[{i}]" for i, t in enumerate(manifest.feeds)}
        place |= {t.place: self.at(t.name) for t in manifest.kept}
        for tensor, array in manifest.constants:
            place[tensor.place] = self.data(array.tobytes()) if array.size else "net->data"
        late: list[str] = []
        for i, tensor in enumerate(manifest.outputs):
            if tensor.place in place:
                move = f"copy_(stream, out_[{i}], p_[{tensor.place}], {self.size_of(tensor)})"
                late.append(f"if (out_[{i}]) DO_({move});")
            else:
                room = f"workspace + at_[{held[tensor.place]}]"
                place[tensor.place] = f"out_[{i}] ? out_[{i}] : {room}"
        for entry, slot in manifest.temporaries:
            place[entry] = f"workspace + at_[{len(placed.held) + slot}]"
        lines = [
            f"static int32_t run_{name}_(const @N_net *net, CUstream stream, CUdeviceptr state,",
            f"    CUdeviceptr workspace, {self.sizes(unit)}const CUdeviceptr *given_,",
            "    const CUdeviceptr *out_)",
            "{",
            f"    size_t at_[{len(placed.held) + len(manifest.arena) + 1}];",
            f"    CUdeviceptr p_[{manifest.places + 1}];",
            f"    plan_{name}_({self.sizes(unit, '')}at_);",
            "    (void)workspace, (void)given_, (void)out_;",
            *(f"    p_[{i}] = {text};" for i, text in sorted(place.items())),
        ]
        lines += [f"    {line}" for line in self.commands(self.kernel.commands[name])]
        return "\n".join([*lines, *(f"    {line}" for line in late), "    return @U_OK;", "}"])

    def commands(self, commands: Sequence[Command], depth: int = 0) -> Iterable[str]:
        """Launches in order, loops around them."""
        for command in commands:
            if isinstance(command, KernelLaunch):
                values = [*(self.spot(s) for s in command.buffers), *map(self.dim, command.sizes)]
                yield self.launch(command.name, self.dim(command.blocks), command.threads, values)
                continue
            assert isinstance(command, Repeated), "nothing that is exported was tuned"
            i, length = f"i{depth}_", self.dim(command.length)
            order = f"{i} = 0; {i} < {length}; {i}++"
            if command.reverse:
                order = f"{i} = {length} - 1; {i} >= 0; {i}--"
            yield f"for (int64_t {order}) {{"
            yield from (f"    {line}" for line in self.commands(command.commands, depth + 1))
            yield "}"

    def spot(self, spot: Spot) -> str:
        """An address: an entry of the table, and bytes further on."""
        moves = [f"i{loop}_*({self.dim(size)})" for loop, size in spot.moves]
        start = [self.dim(spot.start)] if spot.start != 0 else []
        return " + ".join([f"p_[{spot.entry}]", *start, *moves])

    def call(self, name: str, unit: Unit) -> str:
        """The function that runs a unit."""
        manifest, sizes = unit.manifest, self.interface.sizes_of(unit)
        parameters = gpu_interface.pointers(self.interface, unit, name == "step")
        feeds, outputs = parameters[: len(manifest.feeds)], parameters[len(manifest.feeds) :]
        room = len(Placed(manifest).held) + len(manifest.arena) + 1
        given = "".join(f"{self.own[s.name]}, " for s in sizes)
        body = [
            *self.signed(sizes),
            f"size_t at_[{room}];",
            *_listed("given_", [p.name for p in feeds]),
            *_listed("out_", [p.name for p in outputs]),
            "if (!net) return @U_ERROR_NULL;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            *(f"DO_(address_({p.name}, {int(p.optional)}));" for p in parameters),
            *self.bounds(sizes, "@U_ERROR_SIZE"),
            *self.demands([unit], self.own, "@U_ERROR_SIZE"),
            f"DO_(block_(workspace, workspace_bytes, plan_{name}_({given}at_)));",
            "DO_(guard_(net, stream, state));",
            f"return run_{name}_(net, stream, state, workspace, {given}given_, out_);",
        ]
        return self.define(name, body)

    def bounds(self, sizes: Iterable[Size], result: str) -> list[str]:
        """Leave for sizes out of range."""
        names = [(self.interface.sizes[s.name], s.most) for s in sizes]
        return [f"if ({n} < 1 || {n} > {most}) return {result};" for n, most in names]

    def demands(self, units: Iterable[Unit], names: Names, result: str) -> list[str]:
        """Leave for sizes that have no meaning."""
        found = (d for u in units for d in u.manifest.nonempty if not isinstance(d, int))
        texts = dict.fromkeys(self.dim(d, names) for d in found)
        return [f"if ({text} < 1) return {result};" for text in texts]

    def workspace_bytes(self) -> str:
        """`NAME_workspace_bytes`."""
        rooms = [len(Placed(u.manifest).held) + len(u.manifest.arena) for u in self.units]
        body = [*self.signed(self.model.sizes), f"size_t at_[{max(rooms) + 1}], most_ = 0, need_;"]
        body += self.bounds(self.model.sizes, "0") + self.demands(self.units, self.own, "0")
        for name, unit in self.model.units.items():
            given = "".join(f"{self.own[s.name]}, " for s in self.interface.sizes_of(unit))
            body += [f"need_ = plan_{name}_({given}at_);", "if (need_ > most_) most_ = need_;"]
        return self.define("workspace_bytes", [*body, "return most_;"])


def _listed(name: str, values: Sequence[str]) -> list[str]:
    """An array of addresses, which C wants of one element at least."""
    lines = [f"CUdeviceptr {name}[{max(1, len(values))}];"]
    return [*lines, *(f"{name}[{i}] = {v};" for i, v in enumerate(values))]


def rounded(need: str) -> str:
    """So many bytes, up to where the next stretch of workspace begins."""
    return f"((size_t)({need}) + {ROOM_ALIGN - 1}) / {ROOM_ALIGN} * {ROOM_ALIGN}"
