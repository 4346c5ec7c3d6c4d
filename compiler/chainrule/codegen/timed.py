"""`step` with a clock: the nanoseconds of each call, added up where the caller wants them."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.codegen.entry import Entry
from chainrule.codegen.epoch import COPY_FUNCTION
from chainrule.codegen.module import attributes, emit_functions
from chainrule.codegen.steps import Call, Step, calls_in
from chainrule.target import Target

#: CLOCK_MONOTONIC of clock_gettime(2), by system
MONOTONIC = {"linux": 1, "darwin": 6}
#: CLOCK_THREAD_CPUTIME_ID, which stands still while others have the processor
OF_THREAD = {"linux": 3, "darwin": 16}


def timed_module(
    order: Sequence[Step], sizes: Sequence[str], target: Target, clock: tuple[int, int], to: int
) -> str:
    """LLVM text with `i32 @step(table, sizes)` for one thread, as `emit_module` has it.

    `clock` is where clock_gettime starts in this process and the number of its clock; call number i
    of `calls_in(order)` adds its nanoseconds to the i-th of the i64 from address `to` on, the clock
    reading itself those of two readings with nothing between to the one after the last call's.
    """
    texts, known, declarations = emit_functions(order, sizes, target)
    entry = TimedEntry(known, sizes, to, calls_in(order))
    texts.append(entry.function(order))
    texts.append(_CLOCK.replace("$CLOCK", str(clock[0])).replace("$NUMBER", str(clock[1])))
    texts.append(COPY_FUNCTION)
    parts = [*texts, *sorted(declarations), attributes(target, realigned=True), ""]
    return "\n\n".join([f'target triple = "{target.triple}"', *parts])


class TimedEntry(Entry):
    """The function `step`, which looks at the clock before and after each call."""

    def __init__(
        self, names: dict[int, str], sizes: Sequence[str], to: int, calls: Sequence[Call]
    ) -> None:
        super().__init__(names, sizes)
        self.to = to
        self.place = {id(call): i for i, call in enumerate(calls)}

    def function(self, order: Sequence[Step], name: str = "i32 @step") -> str:
        """The text of the whole function."""
        begun = self.value("call i64 @now()")
        self.spent(begun, len(self.place))
        return super().function(order, name)

    def call(self, call: Call) -> None:
        begun = self.value("call i64 @now()")
        self.numbered = begun, self.place[id(call)]
        super().call(call)

    def called(self, call: Call, share: str) -> str:
        """The code that a call leaves with, once its time has been noted."""
        code = super().called(call, share)
        self.spent(*self.numbered)
        return code

    def spent(self, begun: str, number: int) -> None:
        """Add the time since `begun`."""
        took = self.value(f"sub i64 {self.value('call i64 @now()')}, {begun}")
        at = self.value(f"inttoptr i64 {self.to + 8 * number} to ptr")
        before = self.value(f"load i64, ptr {at}, align 8")
        self.lines.append(
            f"  store i64 {self.value(f'add i64 {before}, {took}')}, ptr {at}, align 8"
        )


_CLOCK = """
define internal i64 @now() #1 {
  %time = alloca [2 x i64], align 8
  %clock = inttoptr i64 $CLOCK to ptr
  %failed = call i32 %clock(i32 $NUMBER, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %at_rest = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %at_rest, align 8
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %rest
  ret i64 %now
}"""
