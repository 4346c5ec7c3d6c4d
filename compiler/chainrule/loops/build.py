"""From kernels to loops: what each op says of one element, put into the loops of its form."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from chainrule.ir.loop import Buffer, Program
from chainrule.ir.node import Node, Stmts
from chainrule.ir.size import Dim, symbols_of
from chainrule.loops.attend import attend_loops
from chainrule.loops.builder import Builder, memory_of
from chainrule.loops.choice import BY_SIZES, CUBLASLT, Choice
from chainrule.loops.folds import column_loops, row_loops
from chainrule.loops.launch import Launch, launches_of
from chainrule.loops.maps import check_loops, copy_loops, map_loops, own_loops, scan_loops
from chainrule.loops.outside import Outside, outside_product
from chainrule.loops.products import product_loops
from chainrule.loops.threads import THREAD_FORMS
from chainrule.loops.walk import stored_buffers, symbols_in
from chainrule.records import dataclass
from chainrule.schedule.kernel import Form, Kernel, identity
from chainrule.target import Target

_FORMS: dict[Form, Callable[[Builder], Stmts]] = {
    Form.MAP: map_loops,
    Form.ROWS: row_loops,
    Form.COLUMNS: column_loops,
    Form.CONTRACT: product_loops,
    Form.NEST: own_loops,
    Form.ATTEND: attend_loops,
    Form.CHECK: check_loops,
    Form.COPY: copy_loops,
    Form.SCAN: scan_loops,
}


@dataclass(frozen=True)
class Built:
    """A kernel's program; `memory` are the nodes its buffers belong to, in order, `scratch` the
    workspace buffers that follow them. On a GPU `launches` are what it is run by, after a product
    that is made `outside`, if one is. Of a product that may pack its second factor or not, `rows`
    are the result's.

    In a loop there may be more buffers, `lasting`, which `once` has filled before the loop: its own
    are those of memory numbered in `given`, then the lasting ones.
    """

    program: Program
    memory: tuple[Node, ...]
    scratch: tuple[Buffer, ...]
    lasting: tuple[Buffer, ...] = ()
    once: Program | None = None
    given: tuple[int, ...] = ()
    launches: tuple[Launch, ...] = ()
    rows: Dim | None = None
    outside: Outside | None = None


def build_kernels(
    kernels: Sequence[Kernel],
    target: Target,
    choices: Mapping[int, Choice] | None = None,
    usual: Choice = BY_SIZES,
) -> list[Built]:
    """The loops of kernels; those that differ in names alone share the first one's program, of
    which there may be a choice other than the `usual` one, by the number of the kernel.
    """
    chosen = choices or {}
    first: dict[Hashable, Built] = {}
    found: list[Built] = []
    for i, kernel in enumerate(kernels):
        key = identity(kernel), kernel.depth > 0  # a slice may begin anywhere
        if key not in first:
            first[key] = build_kernel(kernel, f"kernel{i}", target, chosen.get(i, usual))
        found.append(replace(first[key], memory=memory_of(kernel)))
    return found


def build_kernel(kernel: Kernel, name: str, target: Target, choice: Choice = BY_SIZES) -> Built:
    """The loops of a kernel."""
    builder = Builder(kernel, target, choice)
    if target.threads:
        return _for_threads(builder, name)
    form = _FORMS[kernel.form](builder)
    body = (*builder.locals.values(), *form)
    memory, lasting = (*builder.buffers.values(),), (*builder.lasting,)
    written = stored_buffers(body)  # of what was asked for, some ways of a product write nothing
    scratch = tuple(b for b in builder.scratch if b in written)
    program = _program(name, (*memory, *scratch, *lasting), body)
    built = Built(program, builder.memory, scratch, lasting, rows=builder.free_rows)
    if not builder.once:
        return built
    given = tuple(i for i, node in enumerate(builder.memory) if node in kernel.fixed)
    once = _program(f"{name}_once", (*(memory[i] for i in given), *lasting), builder.once)
    return replace(built, once=once, given=given)


def _for_threads(builder: Builder, name: str) -> Built:
    """The loops of a kernel for a GPU, and its launches."""
    kernel, choice, outside = builder.kernel, builder.choice, None
    if kernel.form is Form.CONTRACT and choice.way == CUBLASLT:
        outside, loops, lanes = outside_product(builder)
    else:
        loops, lanes = THREAD_FORMS[kernel.form](builder)
    body = (*builder.locals.values(), *loops)
    program = _program(name, (*builder.buffers.values(), *builder.scratch), body)
    if not lanes:
        return Built(program, builder.memory, tuple(builder.scratch), outside=outside)
    launches, buffers = launches_of(program, lanes, kernel.depth == 0)
    scratch = tuple(b for b in buffers if b not in builder.buffers.values())
    program = replace(program, buffers=buffers)
    return Built(program, builder.memory, scratch, launches=launches, outside=outside)


def _program(name: str, buffers: tuple[Buffer, ...], body: Stmts) -> Program:
    sizes = symbols_in(body) | {s for b in buffers for s in symbols_of(b.size)}
    return Program(name, buffers, tuple(sorted(sizes)), body)
