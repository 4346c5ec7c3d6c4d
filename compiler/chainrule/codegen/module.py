"""Programs in the order they are called, as one LLVM module with the entry `step`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chainrule.codegen.epoch import run_loop
from chainrule.codegen.function import emit_function
from chainrule.errors import CompileError
from chainrule.ir.loop import Program
from chainrule.loops.text import signature
from chainrule.loops.walk import has_check
from chainrule.target import Target


@dataclass(frozen=True)
class Call:
    """A program and where its buffers stand in the table, in the order of `program.buffers`.

    Two buffers of a call may share memory where the program works in place: where each element is
    read only by the iteration that writes it, and before it does.
    """

    program: Program
    buffers: tuple[int, ...]


def emit_module(
    calls: Sequence[Call], sizes: Sequence[str], target: Target, epochs: bool = False
) -> str:
    """LLVM text with one function for each distinct program, and `i32 @step(table, sizes)`.

    `table` is an array of buffer addresses, `sizes` an array of i64 in the order given here. The
    programs run in order; the first that leaves with a code other than 0 ends the step with it.
    With `epochs` there is also `i64 @run(block)`, see codegen.epoch.
    """
    names: dict[str, str] = {}
    known: dict[int, str] = {}
    texts: list[str] = []
    declarations: set[str] = set()
    steps: list[tuple[Call, str]] = []
    for i, call in enumerate(calls):
        _check_call(call, sizes)
        name = known.get(id(call.program))
        if name is None:
            key = signature(call.program)
            if key not in names:
                names[key] = f"kernel{i}"
                text, needed = emit_function(call.program, names[key], target)
                texts.append(text)
                declarations |= needed
            name = known[id(call.program)] = names[key]
        steps.append((call, name))
    texts.append(_entry(steps, sizes))
    if epochs:
        texts.append(run_loop())
    parts = [*texts, *sorted(declarations), _attributes(target), ""]
    return "\n\n".join([f'target triple = "{target.triple}"', *parts])


def _attributes(target: Target) -> str:
    width = target.vector_bytes * 8
    words = f'nounwind noinline "no-builtins" "prefer-vector-width"="{width}"'
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


def _entry(steps: Sequence[tuple[Call, str]], sizes: Sequence[str]) -> str:
    lines = ["define i32 @step(ptr %table, ptr %sizes) #1 {", "entry:"]
    for i, _ in enumerate(sizes):
        lines.append(f"  %where{i} = getelementptr i64, ptr %sizes, i64 {i}")
        lines.append(f"  %size{i} = load i64, ptr %where{i}, align 8")
    once = {name: call.program for call, name in steps}
    checked = {name for name, program in once.items() if has_check(program.body)}
    for i, (call, name) in enumerate(steps):
        for j, b in enumerate(call.buffers):  # loaded here, not all at once: few stay in registers
            lines.append(f"  %at{i}.{j} = getelementptr ptr, ptr %table, i64 {b}")
            lines.append(f"  %buffer{i}.{j} = load ptr, ptr %at{i}.{j}, align 8")
        arguments = [f"ptr %buffer{i}.{j}" for j, _ in enumerate(call.buffers)]
        arguments += [f"i64 %size{sizes.index(s)}" for s in call.program.sizes]
        lines.append(f"  %code{i} = call i32 @{name}({', '.join(arguments)})")
        if name in checked:
            lines.append(f"  %good{i} = icmp eq i32 %code{i}, 0")
            lines.append(f"  br i1 %good{i}, label %next{i}, label %bad{i}")
            lines += [f"bad{i}:", f"  ret i32 %code{i}", f"next{i}:"]
    return "\n".join([*lines, "  ret i32 0", "}"])
