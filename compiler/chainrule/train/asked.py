"""What is asked of an export, checked as far as the step does not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.codegen.fork import MOST_PARTS
from chainrule.errors import CompileError
from chainrule.export import is_identifier
from chainrule.given import is_int
from chainrule.records import dataclass
from chainrule.target import Target

#: the largest minibatch where nothing is said
MAX_BATCH = 64


@dataclass(frozen=True)
class Export:
    """What is asked for: the arguments of TrainingStep.export."""

    name: str
    target: str | Sequence[str]
    formats: Sequence[str] | None
    max_batch: int | None
    max_sizes: Mapping[str, int]
    cpu: str | Sequence[str] | None
    features: str | None
    determinism: str
    optimize: str | None
    examples: Sequence[str]
    max_parts: int = 1

    def check(self) -> None:
        """Raise CompileError for a name that C does not take, and options that there are not."""
        if not isinstance(self.name, str) or not is_identifier(self.name):
            raise CompileError(
                f"functions in C can't be called {self.name!r}_step",
                "a name is letters, digits and single underscores, and begins with a letter",
            )
        if self.determinism not in ("default", "strict"):
            raise CompileError(f'determinism is "default" or "strict", not {self.determinism!r}')
        if self.optimize not in (None, "speed", "size"):
            raise CompileError(f'optimize is "speed" or "size", not {self.optimize!r}')
        if not is_int(self.max_parts) or not 1 <= self.max_parts <= MOST_PARTS:
            raise CompileError(
                f"max_parts is an int from 1 to {MOST_PARTS}, not {self.max_parts!r}"
            )

    def check_parts(self, target: Target, small: bool) -> None:
        """Raise CompileError where a step can't be divided."""
        if self.max_parts > 1 and small:
            raise CompileError(
                "little code does not divide a step", 'max_parts=1, or optimize="speed"'
            )
        if self.max_parts > 1 and target.format == "Wasm":
            raise CompileError("a page runs a step on one thread", "leave max_parts out")

    def bound(self, size: str, rows: str | None) -> object:
        """The largest that a symbolic size may be, None where nothing says; `rows` is the batch's.

        Raises CompileError where that is said twice.
        """
        if size != rows:
            return self.max_sizes.get(size)
        if self.max_batch is None:
            return self.max_sizes.get(size, MAX_BATCH)
        if size in self.max_sizes:
            raise CompileError(
                f"max_batch={self.max_batch!r} and max_sizes={{{size!r}: "
                f"{self.max_sizes[size]!r}}} both bound the size {size}",
                "give one of them",
            )
        return self.max_batch
