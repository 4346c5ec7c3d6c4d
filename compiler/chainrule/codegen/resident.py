"""A kernel that stays for many steps of a tiny net: one block goes through what would be launched,
of each launch through one block after the other, and its threads meet in between.

What it goes through stands in a table of words, a row of ROW + as many as a kernel takes at most
for each run: the number of the kernel, its blocks, whether it is of an epoch's last minibatch, then
what it is given. So one such kernel serves all sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from chainrule.codegen.threads import emit_body
from chainrule.loops.launch import Launch
from chainrule.target import Target

#: what the kernel is called, and the words of a row before what its kernel is given
RESIDENT, ROW = "resident", 3
#: its parameters: the table, and how many rows it has; steps from the first up to the last, so many
#: of which are an epoch; the status
_PARAMETERS = "ptr %table, i64 %runs, i64 %first, i64 %last, i64 %period, ptr %status"
#: the bytes that a block may have of shared memory on every GPU, and what they are called
_SHARED, _ROOM = 48 * 1024, f"@{RESIDENT}.room"
_BYTES = {"i8": 1, "i16": 2, "bfloat": 2, "i32": 4, "float": 4, "i64": 8, "double": 8}
_BARRIER = "@llvm.nvvm.barrier.cta.sync.aligned.all"
_MEET = f"call void {_BARRIER}(i32 0)"

_STEPS = """begin:
  br label %step
step:
  %at = phi i64 [%first, %begin], [%after, %stepped]
  %more = icmp slt i64 %at, %last
  br i1 %more, label %all, label %leave
all:
  %place = urem i64 %at, %period
  %end = sub i64 %period, 1
  %ends = icmp eq i64 %place, %end
  %which = zext i1 %ends to i64
  br label %run
run:
  %r = phi i64 [0, %all], [%r_next, %done]
  %left = icmp slt i64 %r, %runs
  br i1 %left, label %look, label %stepped
look:
  %words = mul i64 %r, WIDTH
  %row = getelementptr i64, ptr %table, i64 %words
  %at_blocks = getelementptr i64, ptr %row, i64 1
  %at_which = getelementptr i64, ptr %row, i64 2
  %kind = load i64, ptr %row, align 8
  %blocks = load i64, ptr %at_blocks, align 8
  %wanted = load i64, ptr %at_which, align 8
  %mine = icmp eq i64 %wanted, %which
  br i1 %mine, label %case0, label %done"""

_JUDGE = f"""judge:
  %code = load i32, ptr %status, align 4
  {_MEET}
  %good = icmp eq i32 %code, 0
  br i1 %good, label %done, label %leave
done:
  %r_next = add i64 %r, 1
  br label %run
stepped:
  %after = add i64 %at, 1
  br label %step
leave:
  ret void"""


def row_of(kernels: Mapping[str, Launch]) -> int:
    """The words of a row of the table."""
    return ROW + max(len(x.program.buffers) + len(x.program.sizes) for x in kernels.values())


def emit_resident(kernels: Mapping[str, Launch], target: Target) -> tuple[str, set[str]] | None:
    """The kernel's LLVM text, for all of these by their numbers, and the declarations it needs;
    None where one has no room in shared memory, which they use in turn, or asks for it at launch.
    """
    if any(launch.dynamic for launch in kernels.values()):
        return None
    cases: list[str] = []
    declarations = {f"declare void {_BARRIER}(i32)"}
    most = 0
    for number, (name, launch) in enumerate(kernels.items()):
        body = emit_body(replace(launch, whole=True), f"{RESIDENT}.{name}", target, "%block")
        declarations |= body.declarations
        places, size = _places(body.shared)
        most = max(most, size)
        text = "\n".join(body.lines)
        for stretch, at in places.items():
            text = text.replace(f"{stretch} to ptr", f"{at} to ptr")
        cases += _case(number, launch, text)
    if most > _SHARED:
        return None
    head = [
        "entry:",
        "  %before = load i32, ptr %status, align 4",
        f"  {_MEET}",
        "  %may = icmp eq i32 %before, 0",
        "  br i1 %may, label %begin, label %leave",
        _STEPS.replace("WIDTH", str(row_of(kernels))),
    ]
    room = f"{_ROOM} = internal addrspace(3) global [{max(16, most)} x i8] undef, align 16"
    define = f"define ptx_kernel void @{RESIDENT}({_PARAMETERS}) #0 {{"
    cases += [f"case{len(kernels)}:", "  br label %done"]
    return "\n".join([room, define, *head, *cases, _JUDGE, "}"]), declarations


def _places(shared: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Where each stretch of a kernel's shared memory lies in what all have, and its bytes."""
    places: dict[str, str] = {}
    end = 0
    for line in shared:
        found = re.match(r"(@\S+) = .* \[(\d+) x (\w+)\]", line)
        assert found is not None
        places[found[1]] = f"getelementptr (i8, ptr addrspace(3) {_ROOM}, i64 {end})"
        end += -(-int(found[2]) * _BYTES[found[3]] // 16) * 16
    return places, end


def _case(number: int, launch: Launch, body: str) -> list[str]:
    """What is done where a row has this number: its words are read, and all blocks gone through."""
    me, program = f"k{number}", launch.program
    lines = [
        f"case{number}:",
        f"  %{me}.this = icmp eq i64 %kind, {number}",
        f"  br i1 %{me}.this, label %{me}.given, label %case{number + 1}",
        f"{me}.given:",
    ]
    names = [f"b{i}" for i in range(len(program.buffers))]
    names += [f"s{i}" for i in range(len(program.sizes))]
    for i, name in enumerate(names):
        word = f"%{me}.{name}" if name[0] == "s" else f"%{me}.{name}.word"
        lines += [
            f"  %{me}.{name}.at = getelementptr i64, ptr %row, i64 {ROW + i}",
            f"  {word} = load i64, ptr %{me}.{name}.at, align 8",
        ]
        if name[0] == "b":  # of the GPU's memory, so that accesses are of that
            lines += [
                f"  %{me}.{name}.there = inttoptr i64 {word} to ptr addrspace(1)",
                f"  %{me}.{name} = addrspacecast ptr addrspace(1) %{me}.{name}.there to ptr",
            ]
    lines += [
        f"  br label %{me}.each",
        f"{me}.each:",
        f"  %{me}.block = phi i64 [0, %{me}.given], [%{me}.following, %{me}.over]",
        f"  %{me}.some = icmp slt i64 %{me}.block, %blocks",
        f"  br i1 %{me}.some, label %{me}.begin, label %judge",
        f"{me}.begin:",
        _named(body, me),
        f"  br label %{me}.over",
        f"{me}.over:",
        f"  {_MEET}",
        f"  %{me}.following = add i64 %{me}.block, 1",
        f"  br label %{me}.each",
    ]
    return lines


def _named(text: str, me: str) -> str:
    """Lines of a body with names of its own; where it returns the next block follows."""
    text = re.sub(r"%(?!status\b)(?=\w)", f"%{me}.", text)
    text = re.sub(r"^(\w+):", rf"{me}.\1:", text, flags=re.M)
    return re.sub(r"^  ret void$", f"  br label %{me}.over", text, flags=re.M)
