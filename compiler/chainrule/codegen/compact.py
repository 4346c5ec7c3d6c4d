"""Programs as short functions that share what they can: what is alike in them is written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chainrule.codegen.alike import merged
from chainrule.codegen.assigned import runs
from chainrule.codegen.outlined import Nest, Place, columns, nests, shared
from chainrule.codegen.shared import Shared
from chainrule.codegen.short import ShortFunction
from chainrule.codegen.spots import Called, Part, Spot, common
from chainrule.ir.loop import LANES, Buffer, Loop, Program
from chainrule.ir.size import evaluate, symbols_of
from chainrule.loops.walk import statements
from chainrule.target import Target


class Compact(Shared):
    """Writes the functions of `programs`, and keeps them with all else that they call.

    These are all that there will be: what is alike in them is written once, and a buffer that lies
    in one place in all `calls` is no parameter. `word` is the integer that addresses have.
    """

    def __init__(
        self,
        programs: Iterable[Program],
        target: Target,
        prefix: str,
        word: str,
        ready: Mapping[str, str],
        calls: Iterable[Called] = (),
    ) -> None:
        super().__init__(target, prefix, ready)
        self.word, self.alike = word, merged(programs)
        #: the sizes of a program that may be 0: some that it is told, never those of the model
        self.zeros: dict[int, set[str]] = {}
        longest: dict[int, dict[str, int]] = {}
        for found in self.alike.values():
            told = found.program.sizes[::-1][: len(found.numbers)][::-1]
            zeros = self.zeros.setdefault(id(found.program), set())
            most = longest.setdefault(id(found.program), {})
            for name, number in zip(told, found.numbers, strict=True):
                zeros |= {name} if number < 1 else set()
                most[name] = max(number, most.get(name, 0))
        self.spots: dict[int, tuple[Spot | None, ...]] = {}
        for program, where in calls:
            key = id(self.alike[id(program)].program)
            pairs = zip(self.spots.setdefault(key, tuple(where)), where, strict=True)
            self.spots[key] = tuple(a if a == b else None for a, b in pairs)
        self.parts: dict[tuple[int, int], Part] = {}
        self.take_out({id(a.program): a.program for a in self.alike.values()}, longest)
        self.names: dict[int, str] = {}

    def take_out(
        self, programs: Mapping[int, Program], longest: Mapping[int, Mapping[str, int]]
    ) -> None:
        """Find the loops that are functions of their own, those of at most so many rounds."""
        owners: dict[int, Program] = {}
        found: list[Nest] = []
        for key, program in programs.items():
            for nest in nests(program, is_short(program, longest[key])):
                owners[id(nest)] = program
                found.append(nest)
        for number, group in enumerate(shared(found)):
            program, places, numbers = columns(group)
            mine = [owners[id(nest)] for nest in group]
            self.zeros[id(program)] = {
                size
                for size, column in zip(program.sizes, numbers, strict=True)
                if not all(runs(n, self.positive(o)) for n, o in zip(column, mine, strict=True))
            }
            self.spots[id(program)] = tuple(
                common([self.spot_of(p, o) for p, o in zip(column, mine, strict=True)])
                for column in places
            )
            name = f"{self.prefix}part{number}"
            for i, nest in enumerate(group):
                of_nest = [column[i] for column in places], [column[i] for column in numbers]
                self.parts[id(mine[i]), id(nest.loop)] = Part(name, program, *of_nest)

    def positive(self, program: Program) -> frozenset[str]:
        """The sizes of a program that are 1 at least."""
        return frozenset(program.sizes) - self.zeros[id(program)]

    def spot_of(self, place: Place, program: Program) -> Spot | None:
        """Where a place in a buffer of a program lies, if that is known."""
        if not isinstance(place.of, Buffer) or not isinstance(place.at, int):
            return None
        spot = self.known(program)[program.buffers.index(place.of)]
        return spot and Spot(spot.base, spot.offset + place.at * place.of.dtype.itemsize)

    def part(self, program: Program, loop: Loop) -> Part | None:
        """The function that stands for a loop of a program, where one does."""
        part = self.parts.get((id(program), id(loop)))
        if part is not None and part.name not in self.functions:
            self.functions[part.name] = ShortFunction(self, part.program).text(part.name)
        return part

    def known(self, program: Program) -> tuple[Spot | None, ...]:
        """Where the buffers of a program lie that its function is not told."""
        found = self.alike.get(id(program))
        key = id(program if found is None else found.program)
        return self.spots.get(key, (None,) * len(program.buffers))

    def function(self, program: Program) -> tuple[str, tuple[int, ...]]:
        """The function of a program: its name, and the numbers it is told after the sizes."""
        found = self.alike[id(program)]
        if id(found.program) not in self.names:
            name = f"{self.prefix}kernel{len(self.names)}"
            self.names[id(found.program)] = name
            self.functions[name] = ShortFunction(self, found.program).text(name)
        return self.names[id(found.program)], found.numbers


def is_short(program: Program, longest: Mapping[str, int]) -> bool:
    """Whether no vector loop is longer than its lanes; sizes that are told are so long at most."""
    extents = [
        s.extent for s in statements(program.body) if isinstance(s, Loop) and s.mode == "vector"
    ]
    if any(not symbols_of(e) <= longest.keys() for e in extents):
        return False
    return all(evaluate(e, longest) <= LANES for e in extents)
