"""chainrule as a peer of other harnesses of whole training steps: what `chainrule bench` runs.

A peer module is found by its name, `<name>_peer.py`; `spec` gives the sizes of a workload, its
initial weights and its data (NumPy), and `make_step` an object that runs steps. It is read by its
path, so that nothing of chainrule is imported before the harness asks for it.
"""

from __future__ import annotations

import runpy
from pathlib import Path

SHELF = Path(__file__).resolve().parents[1] / "compiler"
_OURS = runpy.run_path(str(SHELF / "chainrule/cli/bench/peers/chainrule_peer.py"))

VARIANTS = {"chainrule": {"whole": True}, "chainrule_call": {"whole": False}}
IMPORTS = ["chainrule"]
env, supports, make_step = _OURS["env"], _OURS["supports"], _OURS["make_step"]
loss_of, optimizer_of = _OURS["loss_of"], _OURS["optimizer_of"]
