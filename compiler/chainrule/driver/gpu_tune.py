"""Products timed in several ways on the GPU that is here, and the fastest of each kept.

The first way is ours by sizes; others are tiles of other sizes, which have the same bits, and ways
whose sums have an order of their own. Each runs on the same made-up numbers, with what follows the
product in its kernel; where results are not near the first's it is not taken, whatever it spends.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.codegen.ptx import emit_gpu_module
from chainrule.codegen.steps import Call
from chainrule.driver.gpu_commands import commands_of, is_tiny
from chainrule.driver.program import raise_ours
from chainrule.driver.tuning import ProductTimed, Tuning, WayTimed
from chainrule.errors import CompileError
from chainrule.ir.size import evaluate, product
from chainrule.loops.build import Built, build_kernel
from chainrule.loops.builder import Builder
from chainrule.loops.choice import CUBLASLT, Choice, gpu_candidates
from chainrule.loops.layout import letter_sizes
from chainrule.loops.outside import lies_plainly
from chainrule.loops.text import signature
from chainrule.ops.cast import widens
from chainrule.ops.contract import Contract
from chainrule.records import dataclass
from chainrule.schedule.kernel import Form, Kernel
from chainrule.schedule.reading import sources
from chainrule.target import Target
from chainrule.target.gpu import gpu as target_of
from chainrule.target.gpu import lasting
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import driver
from chainrule_runtime.gpu.blas import room_for
from chainrule_runtime.gpu.commands import resolved
from chainrule_runtime.gpu.program import asked

Array = np.ndarray[Any, Any]
#: so many products are timed at most, those that are more than such a share of all products' work
PRODUCTS, SHARE = 8, 0.02
#: what has to be gained for a way to be chosen; medians of so many turns, each of about so many
#: seconds, and so many kernels at most
GAIN, TURNS, SECONDS, MOST = 0.03, 5, 1e-3, 64


class Tuner:
    """Times products for a target at some sizes, on the GPU that is here; `found` is what came of
    it. `device` is that GPU in words, with its driver and library, by which choices are kept: ""
    where there is none, or none of that target, and then `asked` is None.

    A program that runs over minibatches (`epochs`) and is so small that one kernel goes through its
    steps is left as it is: that is faster than any product is.
    """

    def __init__(self, target: Target, sizes: Mapping[str, int], epochs: bool) -> None:
        self.target, self.sizes, self.epochs = target, dict(sizes), epochs
        self.gpu: driver.Gpu | None = None
        self.device = self.missing = why = ""
        try:
            here = driver.find()
            self.gpu = here
            level = target_of(here.capability, here.ptx_version).level
            if level != lasting(target).level:
                why = f"the GPU here is {level}, and code is for {target.level}"
        except DeviceError as fault:
            why = fault.what
        if self.gpu and not why:
            self.device = f"{self.gpu.name}, CUDA {self.gpu.version}, {self._library(self.gpu)}"
        self.found = Tuning(self.device, tuple(sorted(self.sizes.items())), (), why)

    @property
    def asked(self) -> tuple[tuple[str, int], ...] | None:
        """The sizes, where there is something to time on."""
        return self.found.sizes if self.device else None

    def _library(self, gpu: driver.Gpu) -> str:
        try:
            with gpu.entered():
                return gpu.library()
        except DeviceError as fault:
            self.missing = fault.what
            return "no cuBLASLt"

    def __call__(self, kernels: Sequence[Kernel], built: Sequence[Built]) -> dict[int, Choice]:
        """The choices that are faster than what sizes say, by the number of the kernel."""
        assert self.gpu is not None
        if self.epochs and is_tiny(built):
            self.found = replace(self.found, why="one kernel goes through all steps of a run")
            return {}
        choices: dict[int, Choice] = {}
        timed: list[ProductTimed] = []
        for i in _dearest(kernels, built, self.sizes):
            ways = _ways(kernels[i], built[i], self.target, self.missing)
            try:
                with self.gpu.entered():
                    found = measured(self.gpu, kernels[i], ways, self.sizes, self.target)
            except DeviceError as lost:
                raise_ours(lost)
            best = chosen(found)
            timed.append(ProductTimed(i, tuple(found), best))
            if best:
                choices[i] = replace(ways[best].choice, why="fastest of those timed")
        self.found = replace(self.found, products=tuple(timed))
        return choices


@dataclass(frozen=True)
class Way:
    """A way to make a product; not `built` where `note` says why it can't be."""

    what: str
    choice: Choice
    built: Built | None
    note: str = ""


def _dearest(
    kernels: Sequence[Kernel], built: Sequence[Built], sizes: Mapping[str, int]
) -> list[int]:
    """The first kernels of the products' programs that are most work, all calls together."""
    first: dict[int, int] = {}
    work: dict[int, int] = {}
    for i, (kernel, b) in enumerate(zip(kernels, built, strict=True)):
        op = kernel.anchor.op if kernel.form is Form.CONTRACT else None
        if isinstance(op, Contract) and op.summed and kernel.anchor.type.dtype.is_float:
            number = first.setdefault(id(b.program), i)
            done = evaluate(kernel.times, sizes) * evaluate(kernel.flops, sizes)
            work[number] = work.get(number, 0) + done
    least = SHARE * sum(work.values())
    return sorted((i for i, w in work.items() if w > least), key=lambda i: -work[i])[:PRODUCTS]


def _ways(kernel: Kernel, now: Built, target: Target, missing: str) -> list[Way]:
    """What sizes say, then each other way once; `missing` says why there is no library."""
    ways = [Way("our own, by sizes", Choice(), now)]
    known = {signature(now.program)}
    for choice in gpu_candidates(target):
        if choice.way == CUBLASLT:
            note = missing or ("" if _is_plain(kernel, target) else "factors lie in no plain way")
            made = None if note else build_kernel(kernel, now.program.name, target, choice)
            ways.append(Way("cuBLASLt", choice, made, note))
            continue
        try:
            made = build_kernel(kernel, now.program.name, target, choice)
        except CompileError as refused:
            ways.append(Way(_called(choice), choice, None, refused.what))
            continue
        if signature(made.program) not in known:
            known.add(signature(made.program))
            ways.append(Way(_called(choice), choice, made))
    return ways


def _is_plain(kernel: Kernel, target: Target) -> bool:
    return lies_plainly(Builder(kernel, target))


def _called(choice: Choice) -> str:
    return choice.way or f"our own, {choice.side}x{choice.side} a thread"


def chosen(ways: Sequence[WayTimed]) -> int:
    """The number of the way that is fastest, where that gains enough over the first, else 0."""
    usual = ways[0].seconds
    known = [(way.seconds, i) for i, way in enumerate(ways) if way.seconds is not None]
    if usual is None or not known:
        return 0
    seconds, best = min(known)
    return best if seconds < (1 - GAIN) * usual else 0


def measured(
    gpu: driver.Gpu,
    kernel: Kernel,
    ways: Sequence[Way],
    sizes: Mapping[str, int],
    target: Target,
) -> list[WayTimed]:
    """Seconds of each way, on the same operands; of one that fails, or whose results are not near
    the first's, why it is out. The GPU is the thread's. Raises DeviceError where it is lost.
    """
    notes = [way.note for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    first = ways[0].built
    assert first is not None
    trial = _Trial(gpu, kernel, first, sizes, target)
    try:
        trial.begin()
        plays: dict[int, tuple[Callable[[], None], int]] = {}
        for i, way in enumerate(ways):
            if way.built is not None:
                try:
                    play = trial.play(way.built)
                    notes[i] = trial.differs()
                    plays |= {} if notes[i] else {i: play}
                except (DeviceError, CompileError) as fault:
                    if isinstance(fault, DeviceError) and fault.lost:
                        raise
                    notes[i] = fault.what
        for _ in range(TURNS if 0 in plays else 0):
            spent = gpu.timed([go for go, _ in plays.values()])
            for (i, (_, times)), s in zip(plays.items(), spent, strict=True):
                seconds[i].append(s / times)
    except DeviceError as fault:  # such as no room for operands
        if fault.lost:
            raise
        notes = [note or fault.what for note in notes]
    trial.release()
    return [
        WayTimed(way.what, statistics.median(s) if s else None, note)
        for way, s, note in zip(ways, seconds, notes, strict=True)
    ]


class _Trial:
    """A kernel's operands on the GPU, made up, and what the first way made of them."""

    def __init__(
        self,
        gpu: driver.Gpu,
        kernel: Kernel,
        first: Built,
        sizes: Mapping[str, int],
        target: Target,
    ) -> None:
        self.gpu, self.kernel, self.sizes, self.target = gpu, kernel, sizes, target
        self.owned: list[int] = []
        self.modules: list[Any] = []
        self.recordings: list[Any] = []
        self.results: list[Array] = []
        self.tolerance, self.share = nearness(kernel, sizes)
        self.arrays = made_up(kernel, first, sizes)
        written = set(kernel.writes.values())
        self.written = [i for i, node in enumerate(first.memory) if node in written]
        self.places: list[int] = []
        self.status, self.workspace = 0, (0, 0)

    def begin(self) -> None:
        """Send the operands. Raises DeviceError where they have no room."""
        self.status = self.room(4)
        for array in self.arrays:
            self.places.append(self.room(array.nbytes))
            self.gpu.upload(self.places[-1], array)

    def room(self, size: int) -> int:
        """Memory for the trial."""
        self.owned.append(self.gpu.allocate(size))
        return self.owned[-1]

    def spare(self) -> tuple[int, int]:
        """The workspace of cuBLASLt."""
        if not self.workspace[0]:
            size = room_for(self.gpu.capability)
            self.workspace = self.room(size), size
        return self.workspace

    def play(self, way: Built) -> tuple[Callable[[], None], int]:
        """Run a way once; then what runs it several times in a row, and how many."""
        asks = self._asks(way)
        once = self._recorded(asks, 1)
        for i in self.written:  # which a way may have read as well
            self.gpu.upload(self.places[i], self.arrays[i])
        self.gpu.clear(self.status, 4)
        (spent,) = self.gpu.timed([lambda: self.gpu.play(once)])
        times = max(1, min(MOST, int(SECONDS / max(spent, 1e-9))))
        return self._player(asks, times), times

    def _player(self, asks: Sequence[Callable[[], None]], times: int) -> Callable[[], None]:
        recording = self._recorded(asks, times)
        return lambda: self.gpu.play(recording)

    def _recorded(self, asks: Sequence[Callable[[], None]], times: int) -> Any:
        def go() -> None:
            for _ in range(times):
                for ask in asks:
                    ask()

        self.recordings.append(self.gpu.record(go))
        return self.recordings[-1]

    def _asks(self, way: Built) -> list[Callable[[], None]]:
        """What asks for each launch of a way, and for its product if a library makes it."""
        module, loaded = emit_gpu_module([way.launches], {}, self.target), None
        if way.launches:
            loaded = self.gpu.load(module.ptx())
            self.modules.append(loaded)
        scratch = way.program.buffers[len(self.places) :]
        sizes = [evaluate(b.size, self.sizes) * b.dtype.itemsize for b in scratch]
        table = dict(enumerate([*self.places, *map(self.room, sizes)]))
        call = Call(way.program, tuple(table))
        commands = commands_of([call], [way], module.names)
        runs = resolved(commands, self.sizes, table, self.status)
        return [asked(self.gpu, r, lambda n: self.gpu.kernel(loaded, n), self.spare) for r in runs]

    def differs(self) -> str:
        """How what was written is not near what the first way wrote, in words; "" where it is."""
        self.gpu.wait()
        found = [np.empty_like(self.arrays[i]) for i in self.written]
        for i, array in zip(self.written, found, strict=True):
            self.gpu.download(array, self.places[i])
        if not self.results:
            self.results = found
        told = (
            not_near(a, b, self.tolerance, self.share)
            for a, b in zip(self.results, found, strict=True)
        )
        return next(filter(None, told), "")

    def release(self) -> None:
        """Give back what the trial had, once nothing is at work there."""
        self.gpu.wait()
        for recording in self.recordings:
            self.gpu.forget(recording)
        for module in self.modules:
            self.gpu.unload(module)
        for at in self.owned:
            self.gpu.release(at)


def made_up(kernel: Kernel, first: Built, sizes: Mapping[str, int]) -> list[Array]:
    """Operands: factors such that a product's elements are about 1 in size, others from 0 to 1, and
    zeros where they are whole.
    """
    random = np.random.default_rng(0)
    factors = {base for x in kernel.anchor.inputs for base, _ in sources(x)}
    wide = math.sqrt(3) / _terms(kernel, sizes) ** 0.25
    made = []
    for node, buffer in zip(first.memory, first.program.buffers, strict=False):
        count, kind = evaluate(buffer.size, sizes), buffer.dtype.numpy
        if not buffer.dtype.is_float:
            made.append(np.zeros(count, kind))
            continue
        low, high = (-wide, wide) if node in factors else (0, 1)
        made.append(random.uniform(low, high, count).astype(kind))
    return made


def _terms(kernel: Kernel, sizes: Mapping[str, int]) -> int:
    op = kernel.anchor.op
    assert isinstance(op, Contract)
    letters = letter_sizes(kernel.anchor)
    return max(1, evaluate(product(tuple(letters[c] for c in op.summed)), sizes))


def nearness(kernel: Kernel, sizes: Mapping[str, int]) -> tuple[float, float]:
    """How far results of two ways may be apart, in their root mean square, and what share of them
    may be farther: none of a product alone; as many where a map follows, which may jump.

    Rounding errors of sums of n terms of either sign grow like the root of n (Higham and Mary, "A
    New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019), 10
    times as much is allowed; tensor cores cut sums off instead, which adds up (Fasi and others,
    "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7, 2021); and TF32 has 10
    bits of a factor.
    """
    node, terms = kernel.anchor, _terms(kernel, sizes)
    op = node.op
    assert isinstance(op, Contract)
    unit = 2.0**-53 if node.type.dtype.itemsize == 8 else 2.0**-24
    far = 32 * unit * math.sqrt(terms)
    if op.tf32 or any(map(widens, node.inputs)):
        far += unit * terms / 4
    if op.tf32:
        far += 2.0**-7
    return far, far if len(kernel.nodes) > 1 else 0.0


def not_near(first: Array, other: Array, tolerance: float, share: float) -> str:
    """How one array is not near another, in words; "" where it is."""
    if first.dtype.kind in "biu":
        far, scale, worst = np.not_equal(first, other), 1.0, 1.0
    else:
        a, b = first.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(a)
        scale = math.sqrt(np.mean(a[finite] ** 2)) if finite.any() else 1.0
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        far = ~(same | (apart <= tolerance * scale))
        worst = float(np.max(apart[far], initial=0.0)) / (scale or 1.0)
    count = int(np.count_nonzero(far))
    if count <= share * first.size:
        return ""
    return (
        f"refused: {count} of {first.size} numbers are off by more than {tolerance:.1g} of their "
        f"size, up to {worst:.2g}"
    )
