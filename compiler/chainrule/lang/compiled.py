"""`cr.compile`: from expressions to a function of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Never, NoReturn

from chainrule import driver
from chainrule.errors import CompileError
from chainrule.ir import provenance
from chainrule.ir.graph import Graph
from chainrule.ir.node import Node
from chainrule.lang.arguments import refuse_unnamed
from chainrule.lang.derive import flatten, rebuilt
from chainrule.lang.options import (
    check_budget,
    check_flag,
    check_options,
    check_seed,
    check_tune,
)
from chainrule.ops.phase import resolve_phase
from chainrule.ops.random import bind_draws, seed_node, step_node
from chainrule.ops.source import Leaf

if TYPE_CHECKING:
    from chainrule.driver.report import Report


class Function:
    """A compiled expression: arrays in by name, new NumPy arrays out in the structure asked for.

    It is pure: parameters and states are fed like inputs, NaN and inf are numbers to it.
    """

    def __init__(
        self,
        outputs: Any,
        backend: str,
        training: bool,
        seed: int,
        threads: int | None,
        precision: str | None,
        memory_budget: object = None,
        tune: object = False,
    ) -> None:
        nodes = flatten(outputs)
        if not nodes:
            raise CompileError("there is nothing to compile", "give Tensors, as a list or dict")
        self._structure, self.backend = outputs, backend
        leaves = driver.leaves_of(nodes)
        check_names(leaves)
        self.inputs = [_label(n) for n in leaves]
        names = [f"{i}" for i in range(len(nodes))]
        graph = bind_draws(
            resolve_phase(Graph(tuple(nodes)), training), seed_node(seed), step_node(0)
        )
        sizes = driver.sizes_of(leaves)
        budget = check_budget(memory_budget, backend, sizes)
        timed = check_tune(tune, backend, sizes)
        self._program = driver.program(
            graph, leaves, names, backend, threads, precision, budget, timed
        )

    def __call__(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """Compute the outputs. Raises FeedError where a feed is missing, unknown or unfit."""
        if unnamed:
            refuse_unnamed(unnamed, self.inputs)
        return rebuilt(self._structure, self._program.call(feeds))

    def show(self, level: str) -> str:
        """The program at a level: graph, passes, optimized, kernels, loops, llvm, asm (cpu) or ptx
        (cuda).
        """
        return self._program.show(level)

    def report(self, measure: bool = False, sizes: Mapping[str, int] | None = None) -> Report:
        """Passes, kernels with flops, bytes and times, memory plan, code size.

        Times are predicted for symbolic `sizes` as given, such as `{"batch": 32}`, others 64. With
        `measure` each kernel is timed too, on made-up numbers, and the machine is calibrated first
        unless it has been, which takes a second.
        """
        return self._program.report(check_flag("measure", measure), sizes)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied and pickled."""
        raise CompileError(
            "a compiled function can't be copied or pickled",
            "Tensors can: compile what it is of again",
        )

    def __repr__(self) -> str:
        return f"<compiled function of {', '.join(self.inputs)}, backend {self.backend!r}>"


def compile(
    outputs: Any,
    backend: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    training: bool = False,
    seed: int = 0,
    memory_budget: int | tuple[int, Mapping[str, int]] | None = None,
    tune: bool | Mapping[str, int] = False,
) -> Function:
    """Compile a Tensor, or a list, tuple or dict of them, to a function with that structure.

    `backend` is "cpu" (native code), "cuda" (an NVIDIA GPU, see docs/cuda.md) or "reference"
    (NumPy, slow and obvious). Every size that is
    not known is known at the call: one compilation serves all. `training` says whether dropout and
    batch statistics are active; `seed` decides what is drawn, the same numbers at each call: those
    of the first step of a training step. At most so many `threads` share a call, None for every CPU
    that this process may use; the result has the same bits for each number of them. With
    `precision` "bfloat16" products of float32 tensors take bfloat16 factors and add up in float32;
    "bfloat16x3" is near float32: each factor is two bfloat16 where that is faster; "tf32" rounds
    factors to TF32 on GPUs that have tensor cores. With `tune` the products that take longest are
    timed in a handful of ways, at the sizes given, such as `{"batch": 128}`, or 64 each with True,
    then calls on 1, 2, 4 ... of the `threads`; what is fastest is kept with the compiled code, and
    has the same bits. On a GPU cuBLASLt is one of the ways, where it is installed: its sums have an
    order of their own. Raises CompileError for an option that is not built.
    """
    threads = check_options(backend, threads, precision)
    seed = check_seed(seed)
    check_flag("training", training)
    return Function(outputs, backend, training, seed, threads, precision, memory_budget, tune)


def check_names(leaves: list[Node]) -> None:
    """Refuse two leaves of one name: a feed could not tell them apart."""
    seen: dict[str, Node] = {}
    for leaf in leaves:
        other = seen.setdefault(_label(leaf), leaf)
        if other is not leaf:
            lines = [str(line) for n in (other, leaf) if (line := provenance.line_of(n))]
            raise CompileError(
                f"two leaves are called {_label(leaf)!r}: {other.type} and {leaf.type}",
                *(f"one at {line}" for line in lines),
                "give each a name of its own; a layer takes it as name=",
            )


def _label(leaf: Node) -> str:
    assert isinstance(leaf.op, Leaf)
    return leaf.op.label
