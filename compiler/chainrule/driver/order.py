"""What is called in which order, and where in memory: loops among kernels become loops of calls.

Carried values lie where the loop's result is wanted, else in a place of their own; where stacks of
them are kept, each is written behind the one before. A slice of a stack is the stack's own memory,
further on at each step; a value that is stacked is written where it is kept. What else a step
computes lies in places that the next step uses again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chainrule.codegen.steps import Call, Copy, Place, Repeat, Step
from chainrule.ir.node import Node
from chainrule.ir.size import Dim
from chainrule.loops.build import Built
from chainrule.ops.scan import Scan
from chainrule.schedule.buffers import LoopPlan, Made
from chainrule.schedule.kernel import Chain, Form, Kernel, bytes_of
from chainrule.schedule.reading import storage


class CallOrder:
    """The calls of a program.

    `scratch` are the table's entries for the workspace of each of `built`, by identity, `constants`
    the places of arrays that are part of the program; the slots of `loops` begin at entry `first`.
    """

    def __init__(
        self,
        built: Mapping[Kernel, Built],
        scratch: Mapping[int, Sequence[int]],
        constants: Mapping[Node, Place],
        loops: Mapping[Kernel, LoopPlan],
        first: int,
    ) -> None:
        self.built, self.scratch, self.constants = built, scratch, constants
        self.loops, self.first = loops, first

    def steps(
        self,
        kernels: Sequence[Kernel],
        places: dict[Node, Place],
        slots: Mapping[Made, Place],
        depth: int = 0,
    ) -> tuple[Step, ...]:
        """What runs kernels, in order; a value that updates a leaf lies where the leaf lies, and
        others in `slots`, from where they are computed to where they are computed again.

        They stand in `depth` loops.
        """
        out: list[Step] = []
        places.update(_in_place(kernels, places))
        for kernel in kernels:
            places.update({n: slots[kernel, n] for n in kernel.writes if (kernel, n) in slots})
            if kernel.form is Form.SCAN:
                out += self.loop(kernel, places, depth)
                continue
            made = self.built[kernel]
            memory = (places[n] for n in made.memory)
            out.append(Call(made.program, (*memory, *self.scratch[id(made)])))
        return tuple(out)

    def loop(self, kernel: Kernel, outer: Mapping[Node, Place], depth: int) -> list[Step]:
        """A loop: the carried values as they begin, what is done once, every step, and the ends."""
        op, inputs = kernel.anchor.op, kernel.anchor.inputs
        assert isinstance(op, Scan)
        body = op.body_of_step
        count, end = len(body.carries), len(body.carries) + len(body.ys)
        results = {_number(n): outer[n] for n in kernel.writes}
        mine = self.loops[kernel]
        chains = {chain.carry: chain for chain in kernel.chains}
        given = [outer[storage(n)] for n in inputs]
        places = dict(self.constants)
        begin: list[Step] = []
        first: list[Step] = []
        last: list[Step] = []
        finish: list[Step] = []
        wanted: list[tuple[Node, Place]] = []  # what each step computes, and where that is kept
        for i, leaf in enumerate(body.carries):
            size = bytes_of(leaf)
            if i in chains:
                links = _Links(chains[i], outer, op.length)
                places[leaf] = links.before.moved(depth, size)
                wanted.append((body.nexts[i], links.after.moved(depth, size)))
                begin.append(Copy(given[i], links.first, size))
                finish += [Copy(links.last, results[i], size)] if i in results else []
                continue
            if i in mine.carried:
                results[i] = self.own(mine.carried[i])
            places[leaf] = results[i]
            begin.append(Copy(given[i], places[leaf], size))
            if end + i in results:
                first.append(Copy(places[leaf], results[end + i].moved(depth, size), size))
        for leaf, place in zip(body.slices, given[count:], strict=False):
            places[leaf] = place.moved(depth, bytes_of(leaf))
        places |= dict(zip(body.constants, given[count + len(body.slices) :], strict=True))
        for inner in kernel.inside:
            made = self.built[inner]
            if made.once is not None:
                read = (places[made.memory[i]] for i in made.given)
                lasting = self.scratch[id(made)][len(made.scratch) :]
                begin.append(Call(made.once, (*read, *lasting)))
        places |= _in_place(kernel.inside, places)
        chained = {_number(chain.after) for chain in chains.values() if chain.after is not None}
        wanted += [
            (y, results[j].moved(depth, bytes_of(y)))
            for j, y in enumerate(body.ys, count)
            if j in results and j not in chained
        ]
        written = {n for k in kernel.inside for n, target in k.writes.items() if n is target}
        for value, row in wanted:
            home = storage(value)
            if home in written and home not in places:
                places[home] = row
            else:
                last.append(Copy(places[home], row, bytes_of(value)))
        slots = {
            made: self.own(mine.first + i).after(mine.plan.start.get(made, 0))
            for made, i in mine.plan.slot.items()
        }
        steps = self.steps(kernel.inside, places, slots, depth + 1)
        return [*begin, Repeat(op.length, (*first, *steps, *last), op.reverse), *finish]

    def own(self, slot: int) -> Place:
        """A slot of loops."""
        return Place(self.first + slot)


class _Links:
    """Where the values of a chain stand: the first and the last, and those of the slice at 0."""

    def __init__(self, chain: Chain, outer: Mapping[Node, Place], length: Dim) -> None:
        low = replace(outer[chain.stacks[0]], start=0)
        high = low.after(length * chain.row)
        self.first, self.last = (high, low) if chain.reverse else (low, high)
        self.before, self.after = (low.after(chain.start(after)) for after in (False, True))


def _in_place(kernels: Sequence[Kernel], places: Mapping[Node, Place]) -> dict[Node, Place]:
    return {
        value: places[target]
        for kernel in kernels
        if kernel.form is not Form.COPY
        for value, target in kernel.writes.items()
        if target is not value
    }


def _number(node: Node) -> int:
    assert isinstance(node.op, Scan)
    return node.op.output
