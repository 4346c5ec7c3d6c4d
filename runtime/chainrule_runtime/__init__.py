"""What runs a compiled program: the standard library and NumPy alone, never the compiler."""

from __future__ import annotations

from chainrule_runtime.epochs import EpochLoop, Minibatches, Outcome
from chainrule_runtime.errors import ArtifactError, FeedError, NonFiniteError, RuntimeFault
from chainrule_runtime.feeds import Binder
from chainrule_runtime.kernel import Kernel, load
from chainrule_runtime.manifest import Check, Manifest, Tensor
from chainrule_runtime.memory import Lock, Storage
from chainrule_runtime.program import Crew, Program, check_positions, non_finite, threads_for

__all__ = [
    "ArtifactError",
    "Binder",
    "Check",
    "Crew",
    "EpochLoop",
    "FeedError",
    "Kernel",
    "Lock",
    "Manifest",
    "Minibatches",
    "NonFiniteError",
    "Outcome",
    "Program",
    "RuntimeFault",
    "Storage",
    "Tensor",
    "check_positions",
    "load",
    "non_finite",
    "threads_for",
]
