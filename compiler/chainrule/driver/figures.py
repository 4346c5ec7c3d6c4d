"""Kernels in figures: what they do, how it was chosen, and how long it should take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from chainrule.codegen.steps import calls_in
from chainrule.driver.build import Compiled
from chainrule.driver.predict import Prediction
from chainrule.ir import provenance
from chainrule.ir.node import Node
from chainrule.ir.size import Dim
from chainrule.loops.chosen import chosen
from chainrule.loops.walk import factors_of
from chainrule.ops.scan import Scan
from chainrule.records import dataclass
from chainrule.schedule.kernel import Form, Kernel, bytes_of
from chainrule_runtime.sharing import share


@dataclass(frozen=True)
class KernelFigures:
    """A kernel: its form, the ops in it, what it writes (a leaf that it updates by the leaf's
    name), floating-point operations and bytes moved, as sizes.

    An elementwise op counts as one operation an element, whatever its polynomial; a product as two
    for each multiply-add. Bytes are those of each tensor read or written, once. A kernel in a loop
    counts as often as it runs. A `shared` one is split among threads where it is large enough, of
    which `parts` do at the report's sizes. `factors` says what a product takes its factors as,
    where that is not what they are, and `chosen` how it is computed, and why.

    In seconds, of one thread and all the times it runs: `predicted` from the machine's speeds,
    `bound` by what, and `measured` where that was asked for.
    """

    name: str
    form: str
    ops: tuple[str, ...]
    writes: tuple[str, ...]
    flops: Dim
    bytes: Dim
    shared: bool = False
    again: bool = False
    factors: str = ""
    parts: int = 1
    chosen: tuple[str, ...] = ()
    predicted: float = 0.0
    bound: str = ""
    measured: float | None = None


def kernel_figures(
    compiled: Compiled,
    sizes: Mapping[str, int],
    threads: int,
    predicted: Sequence[Prediction],
    times: Sequence[float | None],
) -> tuple[KernelFigures, ...]:
    """The kernels of a program with their times at some sizes, where so many threads may share."""
    levels, shared = compiled.levels, compiled.shared
    sharing = share(compiled.manifest, sizes, threads)
    turns = iter(sharing.worth)
    programs = {id(s.call.program) for s in levels.shared} if shared else set()
    before = {id(b.once) for b in levels.built if b.once is not None}
    calls = (
        (id(call.program), bool(id(call.program) in programs and sharing.parts > 1 and next(turns)))
        for call in calls_in(levels.calls)
    )
    worth = iter([split for program, split in calls if program not in before])
    found, target = [], compiled.native.target
    reasons = {id(levels.built[i].program): choice.why for i, choice in levels.choices.items()}
    for i, (k, b, p, t) in enumerate(
        zip(levels.kernels, levels.built, predicted, times, strict=True)
    ):
        parts = sharing.parts if k.form is not Form.SCAN and next(worth) else 1
        found.append(
            replace(
                figures(k, f"kernel{i}"),
                shared=i in shared,
                factors=factors_of(b.program),
                parts=parts,
                chosen=(
                    *chosen(b.program, [*map(label, b.memory)], target),
                    *((why,) if (why := reasons.get(id(b.program))) else ()),
                ),
                predicted=p.seconds,
                bound=p.bound,
                measured=t,
            )
        )
    return tuple(found)


def figures(kernel: Kernel, name: str) -> KernelFigures:
    """A kernel's operations and bytes, as sizes, of all the times it runs in a call."""
    ops = (
        ()
        if kernel.form in (Form.CHECK, Form.COPY)
        else tuple(str(n.op.name) for n in kernel.nodes)
    )
    written = tuple(map(label, kernel.writes.values()))
    return KernelFigures(
        name,
        kernel.form.value,
        ops or (kernel.form.value,),
        written,
        kernel.flops,
        _moved(kernel) * kernel.times,
        again=kernel.again,
    )


def _moved(kernel: Kernel) -> Dim:
    """The bytes of what a kernel reads and writes, once each.

    Of a loop those that it copies itself: what it carries, as it begins and as each step does.
    """
    op = kernel.anchor.op
    if kernel.patch is not None:
        return 2 * bytes_of(kernel.patch)
    if not isinstance(op, Scan):
        return total(map(bytes_of, {*kernel.reads, *kernel.writes}))
    body = op.body_of_step
    kept = (n for n in kernel.writes if _output(n) >= len(body.carries) + len(body.ys))
    return 2 * total(map(bytes_of, (*body.carries, *kept)))


def _output(node: Node) -> int:
    assert isinstance(node.op, Scan)
    return node.op.output


def total(sizes: Iterable[Dim]) -> Dim:
    """The sum of sizes."""
    total: Dim = 0
    for size in sizes:
        total = total + size
    return total


def label(node: Node) -> str:
    """What a node is called: as the user did, or as its op is."""
    return provenance.name_of(node) or str(node.op.name)
