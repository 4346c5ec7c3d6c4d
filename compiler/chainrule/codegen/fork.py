"""A step whose caller divides it: each region of a program is handed to a `parallel_for` of theirs.

    void parallel_for(void *context, void (*body)(void *argument, int32_t part),
                      void *argument, int32_t parts)

calls `body(argument, part)` for each part from 0 to below `parts`, in any order, at once or not,
and returns when all have ended. Parts never wait for each other (loops.regions), so it may do one
after the other, which is also what is done where it is null. The argument is a block in the frame
of what called it: the program's buffers, its sizes, the turns of the loops around the region, and
`parts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.codegen.entry import Entry
from chainrule.codegen.function import WHOLE, emit_function
from chainrule.codegen.module import CALL_WORK, shared_calls
from chainrule.codegen.steps import Call, Step
from chainrule.ir.loop import Program
from chainrule.loops.parts import work_of
from chainrule.loops.regions import Around, Region, every_region, regions_of
from chainrule.target import Target

#: a step can be divided among so many at most: the ends of shares are 32-bit integers
MOST_PARTS = 256
#: what the names of bodies end with
BODY = ".body"
#: what is handed down to where a region is begun
GIVEN = "ptr %parallel_for, ptr %context, i32 %parts"

#: `@fork`, which begins a region, and `@in_turn`, the parallel_for of those that have none. It goes
#: from the last part to the first, so that whoever tests with it sees that order does not matter.
FORK = """define internal void @in_turn(ptr %body, ptr %argument, i32 %parts) #0 {
entry:
  br label %each
each:
  %left = phi i32 [%parts, %entry], [%part, %each]
  %part = sub i32 %left, 1
  call void %body(ptr %argument, i32 signext %part)
  %more = icmp ne i32 %part, 0
  br i1 %more, label %each, label %done
done:
  ret void
}

define internal void @fork(ptr %parallel_for, ptr %context, ptr %body, ptr %block, i32 %parts) #0 {
entry:
  %one = icmp eq i32 %parts, 1
  %none = icmp eq ptr %parallel_for, null
  %alone = or i1 %one, %none
  br i1 %alone, label %here, label %there
here:
  call void @in_turn(ptr %body, ptr %block, i32 %parts)
  ret void
there:
  call void %parallel_for(ptr %context, ptr %body, ptr %block, i32 signext %parts)
  ret void
}"""


def forked(order: Sequence[Step]) -> dict[int, tuple[Region | Around, ...]]:
    """The programs of a step that parts may share, in regions, by their identities."""
    programs = {id(s.call.program): s.call.program for s in shared_calls(order)}
    found = {key: regions_of(program) for key, program in programs.items()}
    return {
        key: regions for key, regions in found.items() if regions is not None and _pays(regions)
    }


def _pays(regions: Sequence[Region | Around]) -> bool:
    """Whether a turn of a loop that parts meet in is enough work for its meetings, as far as that
    is known: an image's share of a convolution is not.
    """
    for loop in (part for part in regions if isinstance(part, Around)):
        inside = [work_of(region.program) for region in every_region(loop.body)]
        known = [work for work in inside if isinstance(work, int)]
        if len(known) == len(inside) and sum(known) < CALL_WORK * len(inside):
            return False
    return True


def fork_functions(
    program: Program, regions: Sequence[Region | Around], name: str, target: Target
) -> tuple[list[str], set[str]]:
    """The function of a program that begins its regions one after the other, and all that it needs:
    for each region what computes a part of it, and the body that a parallel_for calls.

    Its parameters are the program's buffers and sizes, then GIVEN.
    """
    block = _Block(program, max(len(r.program.sizes) for r in every_region(regions)))
    texts: list[str] = []
    declared: set[str] = set()
    names: dict[int, str] = {}
    for number, region in enumerate(every_region(regions)):
        names[id(region)] = f"{name}.r{number}"
        text, needed = emit_function(region.program, names[id(region)], target, parts=True)
        texts += [text, block.body(region.program, names[id(region)])]
        declared |= needed
    return [*texts, _Run(program, block, names).text(regions, name)], declared


class _Block:
    """The argument of a region's body."""

    def __init__(self, program: Program, numbers: int) -> None:
        self.program, self.parts = program, numbers
        self.kind = f"{{ [{len(program.buffers)} x ptr], [{numbers + 1} x i64] }}"

    def at(self, field: int, number: int) -> str:
        """Where a buffer's address (field 0) or a number (field 1) stands in %block."""
        return f"getelementptr {self.kind}, ptr %block, i32 0, i32 {field}, i32 {number}"

    def body(self, program: Program, name: str) -> str:
        """`void @NAME.body(block, part)`: one part of a region, which a parallel_for calls."""
        buffers, sizes = len(program.buffers), len(program.sizes)
        lines = []
        for i in range(buffers):
            lines += [f"%a{i} = {self.at(0, i)}", f"%b{i} = load ptr, ptr %a{i}"]
        for i in (*range(sizes), self.parts):
            lines += [f"%n{i} = {self.at(1, i)}", f"%s{i} = load i64, ptr %n{i}"]
        given = [f"ptr %b{i}" for i in range(buffers)] + [f"i64 %s{i}" for i in range(sizes)]
        lines += [
            f"%parts = trunc i64 %s{self.parts} to i32",
            f"%begun = mul i32 %part, {WHOLE}",
            f"%done = add i32 %begun, {WHOLE}",
            "%first = udiv i32 %begun, %parts",
            "%last = udiv i32 %done, %parts",
            *(f"%{wide} = zext i32 %{short} to i64" for wide, short in
              (("low", "first"), ("high", "last"), ("number", "part"))),
            f"%code = call i32 @{name}({', '.join(given)}, i64 %low, i64 %high, i64 %number, "
            "ptr null)",
            "ret void",
        ]  # fmt: skip
        head = f"define internal void @{name}{BODY}(ptr %block, i32 %part) #1 {{"
        return "\n".join([head, "entry:", *(f"  {line}" for line in lines), "}"])


class _Run(Entry):
    """The function that begins a program's regions."""

    def __init__(self, program: Program, block: _Block, names: Mapping[int, str]) -> None:
        super().__init__({}, program.sizes)
        self.program, self.box, self.regions = program, block, names
        self.around: dict[str, str] = {}

    def text(self, regions: Sequence[Region | Around], name: str) -> str:
        """The whole function."""
        buffers = [f"ptr %b{i}" for i in range(len(self.program.buffers))]
        sizes = [f"i64 %size{i}" for i in range(len(self.sizes))]
        self.lines.append(f"  %block = alloca {self.box.kind}, align 8")
        for i, pointer in enumerate(buffers):
            self.put(pointer, 0, i)
        for i, size in enumerate(sizes):
            self.put(size, 1, i)
        self.put(f"i64 {self.value('zext i32 %parts to i64')}", 1, self.box.parts)
        self.run(regions)
        head = f"define internal i32 @{name}({', '.join([*buffers, *sizes, GIVEN])}) #1 {{"
        return "\n".join([head, "entry:", *self.lines, "  ret i32 0", "}"])

    def put(self, what: str, field: int, number: int) -> None:
        at = self.value(self.box.at(field, number))
        self.lines.append(f"  store {what}, ptr {at}")

    def run(self, regions: Sequence[Region | Around]) -> None:
        for region in regions:
            if isinstance(region, Region):
                begun = f"ptr @{self.regions[id(region)]}{BODY}, ptr %block, i32 %parts"
                call = f"call void @fork(ptr %parallel_for, ptr %context, {begun})"
                self.lines.append(f"  {call}")
            else:
                self.turn(region)

    def turn(self, loop: Around) -> None:
        def body(i: str) -> None:
            self.put(f"i64 {i}", 1, len(self.sizes) + len(self.around))
            self.around[loop.var] = i
            self.run(loop.body)
            del self.around[loop.var]

        self.counted(self.number(loop.extent), body)

    def atom(self, atom: object) -> str:
        """A size, or the turn of a loop around."""
        if isinstance(atom, str) and atom in self.around:
            return self.around[atom]
        return super().atom(atom)  # type: ignore[arg-type]


class ForkEntry(Entry):
    """The function that runs the calls of a step, GIVEN what divides those of `shared` programs.

    One that is less than CALL_WORK is not divided: to begin it elsewhere would take longer.
    """

    def function(self, order: Sequence[Step], name: str = "i32 @step") -> str:
        """The text of the whole function."""
        self.read_sizes()
        self.steps(order)
        head = f"define {name}(ptr %table, ptr %sizes, {GIVEN}) #1 {{"
        return "\n".join([head, "entry:", *self.lines, "  ret i32 0", "}"])

    def call(self, call: Call) -> None:
        """A call; of what is shared in so many parts as it is worth."""
        if id(call.program) not in self.shared:
            super().call(call)
            return
        work = self.number(work_of(call.program))
        worth = self.value(f"icmp sge i64 {work}, {CALL_WORK}")
        parts = self.value(f"select i1 {worth}, i32 %parts, i32 1")
        self.called(call, f"ptr %parallel_for, ptr %context, i32 {parts}")
