"""The functions that run the calls of a module in order: `step`, and what each part of it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from chainrule.codegen.function import WHOLE
from chainrule.codegen.spots import Spot, given
from chainrule.codegen.steps import Call, Copy, Place, Repeat, Step, calls_in, stretches
from chainrule.codegen.team import FIELDS
from chainrule.codegen.trial import RECORD
from chainrule.ir.size import Atom, Dim, Quotient, Size
from chainrule.loops.walk import has_check


class Entry:
    """The function `step`, which is being written: calls, copies, and loops around them.

    `names` are the functions by the identity of their programs, of which those in `shared` take a
    part's parameters. Where there are such, the sizes are followed by codegen.trial.RECORD, and
    what is written is `alone`, which `step` may call.
    """

    def __init__(
        self, names: Mapping[int, str], sizes: Sequence[str], shared: frozenset[int] = frozenset()
    ) -> None:
        self.names, self.sizes, self.shared = names, sizes, shared
        self.lines: list[str] = []
        self.count = 0
        self.block = "entry"
        self.loops: list[str] = []  # the slice that each loop around here has come to
        self.checked: dict[int, bool] = {}

    def function(self, order: Sequence[Step], name: str = "i32 @step") -> str:
        """The text of the whole function, called `alone` where parts may share it."""
        self.read_sizes()
        self.steps(order)
        name = "internal i32 @alone" if self.shared else name
        head = [f"define {name}(ptr %table, ptr %sizes) #1 {{", "entry:"]
        return "\n".join([*head, *self.lines, "  ret i32 0", "}"])

    def read_sizes(self) -> None:
        for i, _ in enumerate(self.sizes):
            self.lines.append(f"  %where{i} = getelementptr i64, ptr %sizes, i64 {i}")
            self.lines.append(f"  %size{i} = load i64, ptr %where{i}, align 8")

    def steps(self, order: Sequence[Step]) -> None:
        for step in order:
            if isinstance(step, Call):
                self.call(step)
            elif isinstance(step, Copy):
                self.copy(step)
            else:
                self.repeat(step)

    def value(self, text: str) -> str:
        """The register that holds an instruction's result."""
        self.count += 1
        self.lines.append(f"  %v{self.count} = {text}")
        return f"%v{self.count}"

    def open(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def call(self, call: Call) -> None:
        whole = f"i64 0, i64 {WHOLE}, i64 0, ptr null"
        code = self.called(call, whole if id(call.program) in self.shared else "")
        if self.checks(call):
            good = self.value(f"icmp eq i32 {code}, 0")
            n = self.count
            self.lines.append(f"  br i1 {good}, label %next{n}, label %bad{n}")
            self.lines += [f"bad{n}:", f"  ret i32 {code}"]
            self.open(f"next{n}")

    def called(self, call: Call, share: str) -> str:
        """The code that a call leaves with; `share` is what a shared function is told besides."""
        # addresses are loaded here, not all at once: few stay in registers
        arguments = [f"ptr {self.address(place)}" for place in call.buffers]
        arguments += [f"i64 %size{self.sizes.index(s)}" for s in call.program.sizes]
        arguments += [share] if share else []
        return self.value(f"call i32 @{self.names[id(call.program)]}({', '.join(arguments)})")

    def checks(self, call: Call) -> bool:
        """Whether a call may leave with a code other than 0."""
        key = id(call.program)
        if key not in self.checked:
            self.checked[key] = has_check(call.program.body)
        return self.checked[key]

    def copy(self, copy: Copy) -> None:
        target, source = self.address(copy.target), self.address(copy.source)
        size = self.number(copy.size)
        self.lines.append(f"  call void @copy(ptr {target}, ptr {source}, i64 {size})")

    def repeat(self, loop: Repeat) -> None:
        length = self.number(loop.length)

        def slice_(place: str) -> None:
            if loop.reverse:
                place = self.value(f"sub i64 {length}, {place}")
                place = self.value(f"sub i64 {place}, 1")
            self.loops.append(place)
            self.steps(loop.steps)
            self.loops.pop()

        self.counted(length, slice_)

    def counted(self, length: str, body: Callable[[str], None]) -> None:
        """`body(i)` for i from 0 to an i64, which is left out."""
        self.count += 1
        n, before = self.count, self.block
        self.lines.append(f"  br label %head{n}")
        self.open(f"head{n}")
        at = len(self.lines)
        more = self.value(f"icmp slt i64 %t{n}, {length}")
        self.lines.append(f"  br i1 {more}, label %body{n}, label %after{n}")
        self.open(f"body{n}")
        body(f"%t{n}")
        self.lines += [f"  %again{n} = add i64 %t{n}, 1", f"  br label %head{n}"]
        phi = f"  %t{n} = phi i64 [0, %{before}], [%again{n}, %{self.block}]"
        self.lines.insert(at, phi)
        self.open(f"after{n}")

    def address(self, place: int | Place) -> str:
        """The pointer to where a buffer starts now."""
        place = Place(place) if isinstance(place, int) else place
        pointer = self.base(place.entry)
        if place.start != 0:
            start = self.number(place.start)
            pointer = self.value(f"getelementptr i8, ptr {pointer}, i64 {start}")
        for loop, size in place.moves:
            by = self.value(f"mul i64 {self.loops[loop]}, {self.number(size)}")
            pointer = self.value(f"getelementptr i8, ptr {pointer}, i64 {by}")
        return pointer

    def base(self, entry: int) -> str:
        """The pointer that stands in the table."""
        at = self.value(f"getelementptr ptr, ptr %table, i64 {entry}")
        return self.value(f"load ptr, ptr {at}")

    def number(self, dim: Dim) -> str:
        """A size as an i64."""
        if not isinstance(dim, Size):
            return str(dim)
        total = ""
        for monomial, coefficient in dim.terms:
            term = str(coefficient)
            for atom in monomial:
                term = self.value(f"mul i64 {term}, {self.atom(atom)}")
            total = self.value(f"add i64 {total}, {term}") if total else term
        return total

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return f"%size{self.sizes.index(atom)}"
        over, under = self.number(atom.numerator), self.number(atom.denominator)
        rest = self.value(f"srem i64 {over}, {under}")
        below = self.value(f"icmp slt i64 {rest}, 0")  # sizes divide as in Python, downward
        if isinstance(atom, Quotient):
            whole, less = (
                self.value(f"sdiv i64 {over}, {under}"),
                self.value(f"zext i1 {below} to i64"),
            )
            return self.value(f"sub i64 {whole}, {less}")
        more = self.value(f"select i1 {below}, i64 {under}, i64 0")
        return self.value(f"add i64 {rest}, {more}")


class ShortEntry(Entry):
    """The same as a function that has every pointer and size as a parameter, not in a table.

    `numbers` are what functions are told after the sizes, by the identity of their programs; both
    are as wide as addresses, `word`. `spots` are the buffers that they know.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        sizes: Sequence[str],
        numbers: Mapping[int, Sequence[int]],
        word: str,
        spots: Mapping[int, Sequence[Spot | None]],
    ) -> None:
        super().__init__(names, sizes)
        self.numbers, self.word, self.spots = numbers, word, spots

    def function(self, order: Sequence[Step], name: str = "i32 @step", places: int = 0) -> str:
        """The text of the whole function."""
        self.steps(order)
        head = f"define {name}({', '.join(self.parameters(places))}) #1 {{"
        return "\n".join([head, "entry:", *self.lines, "  ret i32 0", "}"])

    def begin(self, name: str, places: int) -> None:
        """Call the same of other steps first, which has so many places."""
        listed = ", ".join(self.parameters(places))
        code = self.value(f"call i32 @{name}({listed})")
        good = self.value(f"icmp eq i32 {code}, 0")
        self.lines.append(f"  br i1 {good}, label %begun, label %not_begun")
        self.lines += ["not_begun:", f"  ret i32 {code}"]
        self.open("begun")

    def parameters(self, places: int) -> list[str]:
        """What the function is given: what buffers lie in, each buffer, and each size."""
        listed = ["ptr %state", "ptr %workspace", *(f"ptr %p{i}" for i in range(places))]
        return [*listed, *(f"i64 %size{i}" for i, _ in enumerate(self.sizes))]

    def called(self, call: Call, share: str) -> str:
        """The code that a call leaves with."""
        pointers = [f"ptr {self.address(place)}" for place in call.buffers]
        arguments = given(self.spots[id(call.program)], pointers)
        for size in call.program.sizes:
            short = self.value(f"trunc i64 %size{self.sizes.index(size)} to {self.word}")
            arguments.append(f"{self.word} {short}")
        arguments += [f"{self.word} {n}" for n in self.numbers[id(call.program)]]
        return self.value(f"call i32 @{self.names[id(call.program)]}({', '.join(arguments)})")

    def base(self, entry: int) -> str:
        """The parameter that stands for an entry of the table."""
        return f"%p{entry}"


class PartEntry(Entry):
    """The function `part`, which each thread of a team runs: the same calls in the same order.

    The first part does alone what is not shared. Parts wait for each other before a stage where the
    byte for it says so, and around and at the end of what a loop repeats; where one has left with a
    code by then, all do.
    """

    def function(self, order: Sequence[Step], name: str = "void @part") -> str:
        """The text of the whole function."""
        self.read_sizes()
        self.read_part([c for c in calls_in(order) if id(c.program) in self.shared])
        self.turn, self.stage, self.single = 0, 0, False
        self.steps(order)
        head = f"define internal {name}(ptr %table, ptr %sizes, i64 %part, ptr %team) #1 {{"
        return "\n".join([head, "entry:", *self.lines, "  ret void", "}"])

    def read_part(self, calls: Sequence[Call]) -> None:
        """This part's share, and which calls are worth sharing."""
        at = self.value(f"getelementptr i8, ptr %team, i64 {FIELDS['parts']}")
        parts = self.value(f"load i64, ptr {at}, align 8")
        begun, done = self.value(f"mul i64 %part, {WHOLE}"), self.value("add i64 %part, 1")
        done = self.value(f"mul i64 {done}, {WHOLE}")
        self.lines += [f"  %low = udiv i64 {begun}, {parts}", f"  %high = udiv i64 {done}, {parts}"]
        self.lines.append("  %first = icmp eq i64 %part, 0")
        self.lines.append(f"  %code_at = getelementptr i8, ptr %team, i64 {FIELDS['code']}")
        self.lines.append(f"  %decided_at = getelementptr i8, ptr %team, i64 {FIELDS['decided']}")
        worth, self.waits = self.recorded("worth"), self.recorded("waits")
        for i, _ in enumerate(calls):
            self.lines.append(f"  %worth{i} = icmp ne i8 {self.byte(worth, i)}, 0")

    def recorded(self, name: str) -> str:
        """The pointer that the record behind the sizes has under a name."""
        at = self.value(
            f"getelementptr i64, ptr %sizes, i64 {len(self.sizes) + RECORD.index(name)}"
        )
        return self.value(f"load ptr, ptr {at}, align 8")

    def byte(self, start: str, number: int) -> str:
        at = self.value(f"getelementptr i8, ptr {start}, i64 {number}")
        return self.value(f"load i8, ptr {at}, align 1")

    def steps(self, order: Sequence[Step]) -> None:
        if self.single:
            super().steps(order)
            return
        for stretch in stretches(order, self.shared):
            if isinstance(stretch, Repeat):
                self.meet()
                self.repeat(stretch)
                continue
            self.wait()
            if isinstance(stretch, Call):
                self.together(stretch)
            else:
                self.alone(stretch)
        if self.loops:
            self.meet()

    def alone(self, steps: Sequence[Step]) -> None:
        """What the first part does; a code is put where all will see it."""
        self.count += 1
        n = self.count
        self.lines.append(f"  br i1 %first, label %alone{n}, label %joined{n}")
        self.open(f"alone{n}")
        self.joined = f"joined{n}"
        self.single = True
        super().steps(steps)
        self.single = False
        self.lines.append(f"  br label %joined{n}")
        self.open(f"joined{n}")

    def call(self, call: Call) -> None:
        code = self.called(call, "")
        if self.checks(call):
            good = self.value(f"icmp eq i32 {code}, 0")
            n = self.count
            self.lines.append(f"  br i1 {good}, label %next{n}, label %bad{n}")
            self.lines += [
                f"bad{n}:",
                f"  store atomic i32 {code}, ptr %code_at monotonic, align 4",
            ]
            self.lines.append(f"  br label %{self.joined}")
            self.open(f"next{n}")

    def together(self, call: Call) -> None:
        """A shared call; where it is not worth sharing, the first part makes it."""
        worth, self.turn = f"%worth{self.turn}", self.turn + 1
        mine = self.value(f"or i1 %first, {worth}")
        n = self.count
        self.lines.append(f"  br i1 {mine}, label %mine{n}, label %made{n}")
        self.open(f"mine{n}")
        low = self.value(f"select i1 {worth}, i64 %low, i64 0")
        high = self.value(f"select i1 {worth}, i64 %high, i64 {WHOLE}")
        team = self.value(f"select i1 {worth}, ptr %team, ptr null")
        self.called(call, f"i64 {low}, i64 {high}, i64 %part, ptr {team}")
        self.lines.append(f"  br label %made{n}")
        self.open(f"made{n}")

    def wait(self) -> None:
        """Meet before a stage, if its byte says so."""
        wanted = self.value(f"icmp ne i8 {self.byte(self.waits, self.stage)}, 0")
        self.stage += 1
        n = self.count
        self.lines.append(f"  br i1 {wanted}, label %wait{n}, label %go{n}")
        self.open(f"wait{n}")
        self.meet()
        self.lines.append(f"  br label %go{n}")
        self.open(f"go{n}")

    def meet(self) -> None:
        """Until all parts are here, which then leave together if one has left with a code."""
        self.lines.append("  call void @barrier(ptr %team)")
        code = self.value("load i32, ptr %decided_at, align 4")
        good = self.value(f"icmp eq i32 {code}, 0")
        n = self.count
        self.lines.append(f"  br i1 {good}, label %met{n}, label %leave{n}")
        self.lines += [f"leave{n}:", "  ret void"]
        self.open(f"met{n}")
