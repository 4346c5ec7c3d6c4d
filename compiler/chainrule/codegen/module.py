"""Programs in the order they are called, as one LLVM module with the entry `step`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from chainrule.codegen.direct import direct_call
from chainrule.codegen.entry import Entry, PartEntry
from chainrule.codegen.epoch import COPY_FUNCTION, run_loop
from chainrule.codegen.function import emit_function
from chainrule.codegen.steps import Call, Repeat, Step, calls_in
from chainrule.codegen.team import team_functions
from chainrule.codegen.trial import trial_functions
from chainrule.errors import CompileError
from chainrule.ir.size import Dim
from chainrule.loops.parts import is_split, work_of
from chainrule.loops.text import outline, signature
from chainrule.loops.walk import has_check
from chainrule.target import Target

#: a call that does less is done by one thread: the others would wait longer than it takes; a step
#: whose shared calls do less in all wakes nobody (loops.parts.work_of counts)
CALL_WORK, STEP_WORK = 200_000, 1_000_000
#: what a stack is a multiple of when a function is called
STACK_BYTES = 16


def emit_module(
    order: Sequence[Step],
    sizes: Sequence[str],
    target: Target,
    epochs: bool = False,
    shared: Sequence[Shared] = (),
) -> str:
    """LLVM text with one function for each distinct program, and `i32 @step(table, sizes)`.

    `table` is an array of buffer addresses, `sizes` an array of i64 in the order given here. The
    programs run in `order`; the first that leaves with a code other than 0 ends the step with it.
    With `epochs` there are also `i64 @run(block)` and `double @direct(feeds, block)`, see
    codegen.epoch and codegen.direct. A team may share the calls that are `shared`, of those
    that `shared_calls` finds, see codegen.team, codegen.entry and codegen.trial.
    """
    split = frozenset(id(s.call.program) for s in shared)
    texts, known, declarations = emit_functions(order, sizes, target, split)
    texts.append(Entry(known, sizes, split).function(order))
    if split:
        texts += [PartEntry(known, sizes, split).function(order), team_functions(target)]
        texts.append(trial_functions(len(sizes)))
    if epochs:
        texts += [run_loop(), direct_call()]
    if epochs or any(not isinstance(step, Call) for step in order):
        texts.append(COPY_FUNCTION)
    parts = [*texts, *sorted(declarations), attributes(target, realigned=True), ""]
    return "\n\n".join([f'target triple = "{target.triple}"', *parts])


def emit_functions(
    order: Sequence[Step],
    sizes: Sequence[str],
    target: Target,
    shared: frozenset[int] = frozenset(),
    prefix: str = "",
    names: dict[str, str] | None = None,
) -> tuple[list[str], dict[int, str], set[str]]:
    """One function for each distinct program of a step, their names, and what they declare.

    Names go by the identity of programs and begin with `prefix`; those of `shared` programs take a
    part's parameters. `names` are functions that are there already, by signature; new ones are
    added to it.
    """
    programs = {id(call.program): call.program for call in calls_in(order)}
    outlines = {key: outline(program) for key, program in programs.items()}
    times = Counter(outlines.values())
    alone = {key for key, o in outlines.items() if names is None and times[o] == 1}
    names = {} if names is None else names
    known: dict[int, str] = {}
    texts: list[str] = []
    declarations: set[str] = set()
    for i, call in enumerate(calls_in(order)):
        _check_call(call, sizes)
        name = known.get(id(call.program))
        if name is None:
            # the whole text, which takes long to write, only where another's may be the same
            key = str(i) if id(call.program) in alone else signature(call.program)
            if key not in names:
                names[key] = f"{prefix}kernel{i}"
                text, needed = emit_function(
                    call.program, names[key], target, id(call.program) in shared
                )
                texts.append(text)
                declarations |= needed
            known[id(call.program)] = names[key]
    return texts, known, declarations


class Shared(NamedTuple):
    """A call that threads may share, how often it is made, and how much it does each time."""

    call: Call
    times: Dim
    work: Dim


def shared_calls(order: Sequence[Step], times: Dim = 1) -> list[Shared]:
    """The calls that threads may share, in order."""
    found: list[Shared] = []
    for step in order:
        if isinstance(step, Repeat):
            found += shared_calls(step.steps, times * step.length)
        elif isinstance(step, Call) and is_split(step.program) and not has_check(step.program.body):
            work = work_of(step.program)
            if not isinstance(work, int) or work >= CALL_WORK:
                found.append(Shared(step, times, work))
    return found


def attributes(target: Target, realigned: bool = False) -> str:
    """What is said of kernels, #0, and of what calls them, #1.

    Kernels that are `realigned` round the stack down to whole vectors, so that one put there for a
    while never lies in two lines: else LLVM takes it as it comes, at a multiple of 16 bytes.
    """
    width = target.vector_bytes * 8
    words = f'nounwind noinline "no-builtins" "prefer-vector-width"="{width}"'
    if realigned and target.vector_bytes > STACK_BYTES:
        words += ' "stackrealign"'
    return f'attributes #0 = {{ {words} }}\nattributes #1 = {{ nounwind "no-builtins" }}'


def _check_call(call: Call, sizes: Sequence[str]) -> None:
    program = call.program
    if len(call.buffers) != len(program.buffers):
        raise CompileError(
            f"{program.name} has {len(program.buffers)} buffers, {len(call.buffers)} were given"
        )
    missing = [s for s in program.sizes if s not in sizes]
    if missing:
        raise CompileError(f"{program.name} needs the sizes {missing}, the step has {list(sizes)}")
