"""What runs a compiled program: the standard library and NumPy alone, never the compiler."""

from __future__ import annotations

from chainrule_runtime.epochs import EpochLoop, Outcome
from chainrule_runtime.errors import FeedError, NonFiniteError, RuntimeFault
from chainrule_runtime.feeds import Binder
from chainrule_runtime.manifest import Check, Manifest, Tensor
from chainrule_runtime.memory import Storage
from chainrule_runtime.program import Program

__all__ = [
    "Binder",
    "Check",
    "EpochLoop",
    "FeedError",
    "Manifest",
    "NonFiniteError",
    "Outcome",
    "Program",
    "RuntimeFault",
    "Storage",
    "Tensor",
]
