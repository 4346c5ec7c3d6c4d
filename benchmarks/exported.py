"""Exported kernels of the smallest nets beside the step itself, C by hand, and CasADi's C.

    python benchmarks/exported.py [--seconds S] [--net tiny|logistic] [--sizes]

Peers more for `chainrule bench`: a kernel as it is, with determinism="strict", and in little code,
each called by a C loop over the minibatches. Weights, data, the check of the losses and the
interleaving are bench's own; CasADi's column needs the casadi package. With `--sizes`, which times
nothing, the bytes of code of a net 4-8-3 with Adam for every target.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import runpy
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
VARIANTS: dict[str, dict[str, Any]] = {
    "exported": {},
    "exported-strict": {"determinism": "strict"},
    "exported-size": {"optimize": "size"},
}
NEEDS = ("chainrule",)
SLOW = ()
SETTINGS = {
    "exported": "NAME_step in a C loop",
    "exported-strict": 'the same, determinism="strict"',
    "exported-size": 'the same, optimize="size"',
}
NETS = ("tiny", "logistic")
TARGETS = (
    "x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64-linux-gnu", "riscv64-linux-gnu", "wasm32",
    "thumbv7em-none-eabihf",
)  # fmt: skip
#: calls NAME_step for a run of minibatches, as any program in C would
LOOP = """
#include "net.h"
int32_t steps(void *state, void *work, size_t room, size_t batch, size_t wide, size_t count,
              const float *x, const KIND *y, float *losses) {
    for (size_t i = 0; i < count; i++) {
        int32_t code = net_step(state, NET_STATE_BYTES, work, room, batch, x + i * batch * wide,
                                y + i * batch, losses + i);
        if (code) return code;
    }
    return 0;
}
"""


def env(threads: int, cache: str, **_: Any) -> dict[str, str]:
    """What the worker runs in."""
    return {"CHAINRULE_CACHE": cache}


def supports(spec: Any, threads: int, **_: Any) -> str | None:
    """Why a workload can't be run, or None."""
    return None if spec.name in NETS else "written for the two smallest nets"


class ExportedStep:
    """A kernel in a C loop."""

    def __init__(self, spec: Any, options: dict[str, Any]) -> None:
        import chainrule as cr

        peer = runpy.run_path(str(HERE.with_name("chainrule_peer.py")))
        step = cr.training_step(
            peer["loss_of"](spec, spec.params()), peer["optimizer_of"](spec.opt), threads=1
        )
        self.batch, self.count = spec.batch, spec.nbatch
        self.steps_per_call = math.gcd(spec.scan, spec.nbatch)
        self.x, self.y = (np.ascontiguousarray(a) for a in spec.data().values())
        with tempfile.TemporaryDirectory() as folder:
            art = step.export(folder, "net", formats=("o", "h", "state"), **options)
            source, made = Path(folder, "loop.c"), Path(folder, "loop.so")
            source.write_text(
                LOOP.replace("KIND", "int32_t" if self.y.dtype.kind == "i" else "float")
            )
            command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", "-I", folder]
            subprocess.run([*command, source, art.files["net.o"], "-o", made], check=True)
            self.library = ctypes.CDLL(str(made))
            saved = art.files["net.state"].read_bytes()
        room = self.library.net_workspace_bytes
        room.restype = ctypes.c_size_t
        self.room = room(ctypes.c_size_t(self.batch))
        self.state, self.work = (_aligned(n) for n in (len(saved), self.room))
        size = ctypes.c_size_t(len(saved))
        code = self.library.net_load(_at(self.state), size, saved, size)
        assert code == 0, code
        self.last = np.zeros(self.steps_per_call, np.float32)

    def __call__(self, i: int) -> None:
        first = i % self.count * self.batch
        sizes = (self.room, self.batch, self.x[0].size, self.steps_per_call)
        code = self.library.steps(
            _at(self.state), _at(self.work), *map(ctypes.c_size_t, sizes),
            _at(self.x[first:]), _at(self.y[first:]), _at(self.last),
        )  # fmt: skip
        assert code == 0, code

    def losses(self) -> list[float]:
        """The losses of the last call's steps."""
        return [float(loss) for loss in self.last]

    def loss(self) -> float:
        """The loss of the last step."""
        return float(self.last[-1])

    def sync(self) -> None:
        """Nothing is left to do when a call returns."""


def _aligned(size: int) -> np.ndarray[Any, Any]:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def _at(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def make_step(spec: Any, threads: int, **options: Any) -> ExportedStep:
    """The workload, ready to run."""
    return ExportedStep(spec, options)


def sizes() -> None:
    """Print a table of the bytes of code, for speed and for size."""
    import chainrule as cr

    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    h = cr.tanh(x @ cr.parameter("W1", (4, 8)) + cr.parameter("b1", (8,)))
    z = h @ cr.parameter("W2", (8, 3)) + cr.parameter("b2", (3,))
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z)
    print('| target | `"speed"` | `"size"` |\n|---|---|---|')
    for target in TARGETS:
        found = []
        for optimize in ("speed", "size"):
            with tempfile.TemporaryDirectory() as folder:
                art = step.export(
                    folder, name="net", target=target, optimize=optimize, formats=("o", "json")
                )
                found.append(art.certificate["code_bytes"])
        print(f'| `"{target}"` | ' + " | ".join(f"{n:,}" for n in found) + " |")


def main() -> None:
    """Print a table for each net, or one of sizes."""
    from chainrule.cli.bench import processes, reference, run, tables
    from chainrule.cli.bench.workloads import WORKLOADS
    from chainrule.codegen.rates import Machine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a block of steps")
    parser.add_argument("--net", choices=NETS, help="one net alone")
    parser.add_argument("--sizes", action="store_true", help="bytes of code alone")
    asked = parser.parse_args()
    if asked.sizes:
        return sizes()
    peers, machine = processes.peers(), Machine()
    by_hand = HERE.with_name("handwritten.py")
    columns = [peers["chainrule"], *(processes.Peer(n, HERE, globals()) for n in VARIANTS)]
    columns.append(processes.Peer("handwritten", by_hand, runpy.run_path(str(by_hand))))
    columns += [peers[n] for n in ("casadi",) if not peers[n].missing()]
    for name in NETS if asked.net is None else (asked.net,):
        work = WORKLOADS[name]
        bound = run.limits(work, machine, machine.flops(), 1)
        truth = reference.losses(work, run.CHECKED)
        rows = run.measure(work, columns, 1, asked.seconds, truth)
        lines = tables.lines([run.as_data(r, bound) for r in rows])
        print(f"\n{work.title}\n")
        print(tables.markdown_table(tables.COLUMNS, lines))


if __name__ == "__main__":
    main()
