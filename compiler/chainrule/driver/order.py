"""What is called in which order, and where in memory: loops among kernels become loops of calls.

Carried values lie where the loop's result is wanted, else in a place of their own; a slice of a
stack is the stack's own memory, further on at each step; a value that is stacked is written where
it is kept. What else a step computes lies in places that the next step uses again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.codegen.steps import Call, Copy, Place, Repeat, Step
from chainrule.ir.node import Node
from chainrule.ir.size import Dim
from chainrule.loops.build import Built
from chainrule.ops.scan import Scan
from chainrule.schedule.buffers import Made, bytes_of, plan_buffers
from chainrule.schedule.kernel import Form, Kernel
from chainrule.schedule.reading import storage


class CallOrder:
    """The calls of a program. `slots` are the bytes that each place for loops holds in turn.

    `scratch` are the table's entries for the workspace of each of `built`, by identity, `constants`
    the places of arrays that are part of the program; the places for loops begin at entry `first`.
    """

    def __init__(
        self,
        built: Mapping[Kernel, Built],
        scratch: Mapping[int, Sequence[int]],
        constants: Mapping[Node, Place],
        first: int,
    ) -> None:
        self.built, self.scratch, self.constants = built, scratch, constants
        self.first = first
        self.slots: list[dict[Dim, None]] = []
        self.lasting: dict[Kernel, list[Place]] = {}

    def steps(
        self,
        kernels: Sequence[Kernel],
        places: dict[Node, Place],
        slots: Mapping[Made, Place],
        depth: int = 0,
        used: int = 0,
    ) -> tuple[Step, ...]:
        """What runs kernels, in order; a value that updates a leaf lies where the leaf lies, and
        others in `slots`, from where they are computed to where they are computed again.

        They stand in `depth` loops, which use the first `used` places for loops.
        """
        out: list[Step] = []
        places.update(_in_place(kernels, places))
        for kernel in kernels:
            places.update({n: slots[kernel, n] for n in kernel.writes if (kernel, n) in slots})
            if kernel.form is Form.SCAN:
                out += self.loop(kernel, places, depth, used)
                continue
            made = self.built[kernel]
            memory = (places[n] for n in made.memory)
            lasting = self.lasting.get(kernel, ())
            out.append(Call(made.program, (*memory, *self.scratch[id(made)], *lasting)))
        return tuple(out)

    def loop(
        self, kernel: Kernel, outer: Mapping[Node, Place], depth: int, used: int
    ) -> list[Step]:
        """A loop: the carried values as they begin, what is done once, then every step."""
        op, inputs = kernel.anchor.op, kernel.anchor.inputs
        assert isinstance(op, Scan)
        body = op.body_of_step
        count, end = len(body.carries), len(body.carries) + len(body.ys)
        results = {_number(n): outer[n] for n in kernel.writes}
        given = [outer[storage(n)] for n in inputs]
        places = dict(self.constants)
        begin: list[Step] = []
        first: list[Step] = []
        last: list[Step] = []
        for i, leaf in enumerate(body.carries):
            size = bytes_of(leaf)
            if i not in results:
                results[i], used = self.slot(used, (size,)), used + 1
            places[leaf] = results[i]
            begin.append(Copy(given[i], places[leaf], size))
            if end + i in results:
                first.append(Copy(places[leaf], results[end + i].moved(depth, size), size))
        for leaf, place in zip(body.slices, given[count:], strict=False):
            places[leaf] = place.moved(depth, bytes_of(leaf))
        places |= dict(zip(body.constants, given[count + len(body.slices) :], strict=True))
        for inner in kernel.inside:
            made = self.built[inner]
            sizes = [(b.size * b.dtype.itemsize,) for b in made.lasting]
            lasting = [self.slot(used + i, size) for i, size in enumerate(sizes)]
            self.lasting[inner], used = lasting, used + len(lasting)
            if made.once is not None:
                read = (places[made.memory[i]] for i in made.given)
                begin.append(Call(made.once, (*read, *lasting)))
        places |= _in_place(kernel.inside, places)
        written = {n for k in kernel.inside for n, target in k.writes.items() if n is target}
        for j, y in enumerate(body.ys, count):
            if j not in results:
                continue
            row, home = results[j].moved(depth, bytes_of(y)), storage(y)
            if home in written and home not in places:
                places[home] = row
            else:
                last.append(Copy(places[home], row, bytes_of(y)))
        plan = plan_buffers(kernel.inside, list(places))
        own = [self.slot(used + i, sizes) for i, sizes in enumerate(plan.slots)]
        slots = {made: own[i] for made, i in plan.slot.items()}
        steps = self.steps(kernel.inside, places, slots, depth + 1, used + len(own))
        return [*begin, Repeat(op.length, (*first, *steps, *last), op.reverse)]

    def slot(self, number: int, sizes: Sequence[Dim]) -> Place:
        """A place for loops, which is to hold so many bytes among others."""
        while number >= len(self.slots):
            self.slots.append({})
        self.slots[number].update(dict.fromkeys(sizes))
        return Place(self.first + number)


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
