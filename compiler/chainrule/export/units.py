"""A unit as LLVM text: its kernels, the table of addresses, the call, and the bytes it works in.

A workspace begins with the table and the sizes, which native code of ours is called with; results
that may not be written yet, and the slots of the arena, follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from chainrule.codegen.compact import Compact
from chainrule.codegen.entry import Entry, ShortEntry
from chainrule.codegen.fork import GIVEN, ForkEntry, fork_functions, forked
from chainrule.codegen.module import emit_functions
from chainrule.codegen.spots import Called, Spot
from chainrule.codegen.steps import Call, Place, calls_in, entries
from chainrule.export.codes import own_code
from chainrule.export.interface import Interface, Parameter
from chainrule.export.model import ALIGN, Unit, round_up
from chainrule.export.text import Code
from chainrule.loops.text import signature
from chainrule.loops.walk import stored_buffers
from chainrule.target import Target
from chainrule_runtime.manifest import Manifest, Tensor, element_type, evaluate


def output_bytes(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor at given sizes."""
    bytes_ = element_type(tensor.dtype).itemsize
    for dim in tensor.shape:
        bytes_ *= evaluate(dim, sizes)
    return bytes_


class Placed:
    """Where each buffer of a unit lies: an argument, a part of the state, data, or workspace.

    In little code nothing is worked out that can be known: with sizes that are `fixed`, workspace
    is laid out for these, whatever the sizes of a call, and holds no table.
    """

    def __init__(self, manifest: Manifest, fixed: Mapping[str, int] | None = None) -> None:
        self.manifest, self.fixed = manifest, fixed
        self.table_bytes = round_up(8 * manifest.places)
        self.head = self.table_bytes + round_up(8 * max(1, len(manifest.sizes)))
        self.head = self.head if fixed is None else 0
        given = {t.place for t in (*manifest.feeds, *manifest.kept)}
        given |= {t.place for t, _ in manifest.constants}
        #: outputs that have a buffer in the workspace until the call has come to its end
        self.held: list[Tensor] = []
        #: outputs that native code writes where the caller wants them
        self.direct: list[Tensor] = []
        for tensor in manifest.outputs:
            if tensor.place in given:
                continue
            given.add(tensor.place)
            late = bool(manifest.checks) or not tensor.shape
            (self.held if late else self.direct).append(tensor)

    def bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of workspace at given sizes."""
        return self.starts(sizes)[-1]

    def starts(self, sizes: Mapping[str, int]) -> list[int]:
        """Where each held output and each slot begins, and where the last one ends.

        In little code the smallest lie first: instructions hold short distances.
        """
        known = sizes if self.fixed is None else self.fixed
        held = (output_bytes(t, known) for t in self.held)
        slots = (max([0, *(evaluate(d, known) for d in s)]) for s in self.manifest.arena)
        rooms = list(map(round_up, (*held, *slots)))
        order = list(range(len(rooms)))
        if self.fixed is not None:
            order.sort(key=rooms.__getitem__)
        ends = list(accumulate((rooms[i] for i in order), initial=self.head))
        begins = dict(zip(order, ends, strict=False))
        return [*(begins[i] for i in range(len(rooms))), ends[-1]]


class UnitText:
    """Writes the functions of one unit of one variant."""

    def __init__(
        self,
        name: str,
        unit: Unit,
        target: Target,
        interface: Interface,
        offsets: dict[str, int],
        codes: dict[str, int],
        data: Callable[[bytes], str],
        fixed: Mapping[str, int] | None,
        parts: int,
    ) -> None:
        self.name, self.unit, self.target = name, unit, target
        self.interface, self.offsets, self.codes, self.data = interface, offsets, codes, data
        self.manifest, self.placed = unit.manifest, Placed(unit.manifest, fixed)
        self.given = GIVEN if parts > 1 else ""
        self.sizes = interface.sizes_of(unit)
        self.size_of = {s.name: f"%{interface.sizes[s.name]}" for s in self.sizes}

    def kernels(self, names: dict[str, str]) -> tuple[list[str], set[str]]:
        """The functions that compute, and one that calls them in order; what they declare."""
        shared = forked(self.unit.calls) if self.given else {}
        calls = calls_in(self.unit.calls)
        texts, known, declared = emit_functions(
            [c for c in calls if id(c.program) not in shared],
            self.manifest.sizes,
            self.target,
            prefix=f"{self.name}.",
            names=names,
        )
        programs = {id(c.program): c.program for c in calls}
        for number, (key, regions) in enumerate(shared.items()):
            told = f"shared {signature(programs[key])}"
            if told not in names:
                names[told] = f"{self.name}.shared{number}"
                more, needed = fork_functions(programs[key], regions, names[told], self.target)
                texts += more
                declared |= needed
            known[key] = names[told]
        write = ForkEntry if self.given else Entry
        entry = write(known, self.manifest.sizes, frozenset(shared))
        code = entry.function(self.unit.calls, f"internal i32 @{self.name}.code")
        return [*texts, code], declared

    def calls(self) -> list[Called]:
        """The calls with where their buffers lie, as far as that is known here."""
        spots = {t.place: Spot("state", self.offsets[t.name]) for t in self.manifest.kept}
        starts = [Spot("workspace", start) for start in self.placed.starts({})]
        held = self.placed.held
        spots |= {t.place: spot for t, spot in zip(held, starts, strict=False)}
        spots |= {place: starts[len(held) + slot] for place, slot in self.manifest.temporaries}

        def spot(place: int | Place) -> Spot | None:
            place = Place(place) if isinstance(place, int) else place
            found = spots.get(place.entry)
            if found is None or place.moves or not isinstance(place.start, int):
                return None
            return Spot(found.base, found.offset + place.start)

        return [(c.program, list(map(spot, c.buffers))) for c in calls_in(self.unit.calls)]

    def short_code(self, compact: Compact, first: UnitText | None = None) -> str:
        """The one that calls them, where they are short functions that units share; what a unit
        does that comes first is called.
        """
        steps = self.unit.calls
        if first is not None:
            done = set(map(id, first.unit.calls))
            steps = tuple(s for s in steps if id(s) not in done)
        programs = [call.program for call in calls_in(steps)]
        functions = {id(p): compact.function(p) for p in programs}
        names = {key: name for key, (name, _) in functions.items()}
        numbers = {key: told for key, (_, told) in functions.items()}
        spots = {id(p): compact.known(p) for p in programs}
        entry = ShortEntry(names, self.manifest.sizes, numbers, "iw", spots)
        if first is not None:
            entry.begin(f"{first.name}.code", first.manifest.places)
        head = f"internal i32 @{self.name}.code"
        return entry.function(steps, head, self.manifest.places)

    def begins_with(self, other: UnitText) -> bool:
        """Whether this unit may make the calls of another one first, all of which it makes."""
        others = set(map(id, other.unit.calls))
        same = self.placed.starts({}) == other.placed.starts({})
        if not same or not others <= set(map(id, self.unit.calls)):
            return False
        slots = dict(self.manifest.temporaries)
        read, written = set[tuple[str, int]](), set[tuple[str, int]]()
        for call in self.unit.calls:  # those that are to wait, and what they touch
            if not isinstance(call, Call):
                return False
            of_call = [("slot", slots[e]) if e in slots else ("place", e) for e in entries(call)]
            into = {
                where
                for where, b in zip(of_call, call.program.buffers, strict=True)
                if b in stored_buffers(call.program.body)
            }
            if id(call) not in others:
                read |= set(of_call)
                written |= into
            elif into & read or set(of_call) & written:
                return False
        return True

    def bytes(self) -> str:
        """`iw @NAME.bytes(sizes)`: how much workspace there must be."""
        code = Code(f"internal iw @{self.name}.bytes({self._size_parameters()}) #0")
        return code.text(f"iw {self._slots(code)[-1]}")

    def _size_parameters(self) -> str:
        return ", ".join(f"iw {s}" for s in self.size_of.values())

    def _slots(self, code: Code) -> list[str]:
        """Where each held output and each slot begins, and where the last one ends."""
        if self.placed.fixed is not None:
            return [str(start) for start in self.placed.starts({})]
        at = str(self.placed.head)
        starts = [at]
        for bytes_ in (
            *(self.bytes_of(code, t) for t in self.placed.held),
            *(self._slot(code, slot) for slot in self.manifest.arena),
        ):
            at = code.value(f"add iw {at}, {self._rounded(code, bytes_)}")
            starts.append(at)
        return starts

    def _slot(self, code: Code, slot: Sequence[object]) -> str:
        most = "0"
        for dim in slot:
            most = code.maximum(most, code.number(dim, self.size_of))  # type: ignore[arg-type]
        return most

    def _rounded(self, code: Code, bytes_: str) -> str:
        more = code.value(f"add iw {bytes_}, {ALIGN - 1}")
        return code.value(f"and iw {more}, {-ALIGN}")

    def bytes_of(self, code: Code, tensor: Tensor) -> str:
        """The bytes of a tensor, as an iw."""
        total = str(element_type(tensor.dtype).itemsize)
        for dim in tensor.shape:
            total = code.value(f"mul iw {total}, {code.number(dim, self.size_of)}")
        return total

    def run(self) -> str:
        """`i32 @NAME(state, workspace, sizes, feeds, outputs)`: one call on what is checked.

        Where a caller may divide it, what it is GIVEN follows.
        """
        feeds = self.interface.feed_parameters(self.unit)
        outputs = self.interface.output_parameters(self.unit, optional=False)
        parameters = ["ptr %state", "ptr %workspace"]
        parameters += [f"iw {s}" for s in self.size_of.values()]
        parameters += [f"ptr %{p.name}" for p in (*feeds, *outputs)]
        parameters += [self.given] if self.given else []
        code = Code(f"internal i32 @{self.name}({', '.join(parameters)}) #0")
        places = self._places(code, feeds, outputs)
        result = code.value(f"call i32 @{self.name}.code({self._passed(code, places)})")
        for check in self.manifest.checks:
            bad = code.value(f"icmp eq i32 {result}, {check.code}")
            code.leave_if(bad, f"i32 {own_code(check, self.codes)}")
        direct = {t.name for t in self.placed.direct}
        for parameter in outputs:
            if parameter.tensor is not None and parameter.tensor.name not in direct:
                self._give(code, parameter, parameter.tensor, places[parameter.tensor.place])
        return code.text("i32 0")

    def _passed(self, code: Code, places: Mapping[int, str]) -> str:
        """The arguments of the code: the table and the sizes, which are put where they belong."""
        if self.placed.fixed is not None:
            pointers = [f"ptr {places.get(i, 'null')}" for i in range(self.manifest.places)]
            given = (code.wide(self.size_of[s]) for s in self.manifest.sizes)
            sizes_ = (f"i64 {s}" for s in given)
            return ", ".join(["ptr %state", "ptr %workspace", *pointers, *sizes_])
        for place, pointer in sorted(places.items()):
            entry = code.value(f"getelementptr ptr, ptr %workspace, iw {place}")
            code.do(f"store ptr {pointer}, ptr {entry}")
        sizes = code.at("%workspace", self.placed.table_bytes)
        for i, size in enumerate(self.manifest.sizes):
            code.store("i64", code.wide(self.size_of[size]), sizes, 8 * i)
        return ", ".join([f"ptr %workspace, ptr {sizes}", *([self.given] if self.given else [])])

    def _give(self, code: Code, parameter: Parameter, tensor: Tensor, pointer: str) -> None:
        """Copy a result to where it is wanted, unless that is nowhere."""
        wanted = code.value(f"icmp ne ptr %{parameter.name}, null")

        def copy() -> None:
            code.copy(f"%{parameter.name}", pointer, self.bytes_of(code, tensor))

        code.when(wanted, copy)

    def _places(
        self, code: Code, feeds: Sequence[Parameter], outputs: Sequence[Parameter]
    ) -> dict[int, str]:
        """The pointer for each place of the table."""
        found: dict[int, str] = {}
        for parameter in feeds:
            assert parameter.tensor is not None
            found[parameter.tensor.place] = f"%{parameter.name}"
        for tensor in self.manifest.kept:
            found[tensor.place] = code.at("%state", self.offsets[tensor.name])
        for tensor, array in self.manifest.constants:
            found[tensor.place] = f"@{self.data(array.tobytes())}"
        starts = [code.at("%workspace", start) for start in self._slots(code)[:-1]]
        for tensor, start in zip(self.placed.held, starts, strict=False):
            found[tensor.place] = start
        slots = starts[len(self.placed.held) :]
        for place, slot in self.manifest.temporaries:
            found[place] = slots[slot]
        direct = {t.name for t in self.placed.direct}
        for parameter in outputs:
            assert parameter.tensor is not None
            if parameter.tensor.name in direct:
                found[parameter.tensor.place] = f"%{parameter.name}"
        return found
