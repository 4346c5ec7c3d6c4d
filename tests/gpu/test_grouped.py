"""Products by a copy engine and panels, sm_90a: held to float64 in the simulator and as PTX, and
what would go wrong on a GPU without a wait, a fence or a barrier is refused by one or the other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import chainrule as cr
from chainrule.driver import gpu_tune
from chainrule.driver.gpu_report import GpuReport
from chainrule.errors import CompileError
from chainrule.ir.engine import Bring, Engage, Hear, MultiplyPanels
from chainrule.ir.loop import Barrier, Loop, Stmt, When
from chainrule.ir.node import Stmts
from chainrule.loops import grouped
from chainrule.loops.build import build_kernel
from chainrule.loops.choice import PANELS, Choice, gpu_candidates
from chainrule.loops.launch import Launch
from chainrule.loops.simulate import Race, simulate
from chainrule.schedule.kernel import Form
from chainrule.target.gpu import GPUS

PTXAS = shutil.which("ptxas")
needs_ptxas = pytest.mark.skipif(PTXAS is None, reason="no ptxas here: it comes with CUDA")


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile and one panel are worth it, so that what is run is small."""
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90a")
    monkeypatch.setattr(grouped, "TILES", 1)
    monkeypatch.setattr(grouped, "PANELS", 1)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def near(found: np.ndarray, exact: np.ndarray, magnitudes: np.ndarray, terms: int) -> None:
    """A sum of n terms in float32 in any order is off by n roundings of its terms' magnitudes at
    most (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, 4.2).
    """
    assert (np.abs(found - exact) <= (terms + 1) * 2.0**-24 * magnitudes).all()


def held(spec: str, sizes: Mapping[str, int], named: str = "") -> Any:
    """A product of float32 factors in bfloat16, run and held to float64; sizes of `named` letters
    are not known when it is compiled. The program.
    """
    a, b = spec.partition("->")[0].split(",")
    random = np.random.default_rng(1)
    shapes = [[f"size_{c}" if c in named else sizes[c] for c in text] for text in (a, b)]
    x, y = (cr.input(n, shape) for n, shape in zip("xy", shapes, strict=True))
    data = [random.standard_normal([sizes[c] for c in t]).astype(np.float32) for t in (a, b)]
    fn = cr.compile(cr.einsum(spec, x, y), backend="cuda", precision="bfloat16")
    found = fn(x=data[0], y=data[1])
    p, q = map(rounded, data)
    terms = int(np.prod([sizes[c] for c in a if c not in spec.partition("->")[2]]))
    near(found, np.einsum(spec, p, q), np.einsum(spec, np.abs(p), np.abs(q)), terms)
    return fn


def assembled(ptx: str, folder: Path) -> None:
    """ptxas takes it, and keeps all sums in registers."""
    file = folder / "module.ptx"
    file.write_text(ptx)
    command = [str(PTXAS), "-arch", "sm_90a", "-v", "-o", str(folder / "out.cubin"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[1-9]\d* bytes (stack|spill)", done.stderr)
    assert "wgmma" not in done.stderr  # it says where it puts one after the other
    # two blocks of 256 threads on a multiprocessor of 65,536 registers
    assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= 128


#: rows, columns and terms that fill tiles and panels, and others; each factor as it is and turned
PLAIN = {"m": 128, "n": 128, "k": 192}
ODD = {"m": 136, "n": 72, "k": 88, "g": 2, "h": 3}
BOTH = pytest.mark.parametrize("kind", ["gpu", "emulator"])


@BOTH
@pytest.mark.parametrize(
    ("spec", "sizes", "named"),
    [
        ("mk,kn->mn", {"m": 131, "n": 136, "k": 200}, ""),
        ("km,nk->mn", ODD, ""),
        ("gmk,gnk->gmn", ODD, "g"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (
            ("mk,kn->mn", PLAIN, ""), ("mk,nk->mn", PLAIN, ""), ("km,kn->mn", PLAIN, ""),
            ("km,nk->mn", PLAIN, ""), ("mk,kn->mn", {"m": 300, "n": 264, "k": 72}, "m"),
            ("km,kn->mn", {"m": 72, "n": 136, "k": 77}, "k"), ("gkm,gkn->gmn", ODD, ""),
            ("mgk,ngk->gmn", ODD, ""), ("mgk,gkn->mgn", ODD, "m"), ("mk,khn->mhn", ODD, ""),
            ("mk,nk->nm", {"m": 5, "n": 131, "k": 72}, ""),
        )),
    ],
)  # fmt: skip
def test_products_are_right(
    kind: str, spec: str, sizes: Mapping[str, int], named: str, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    request.getfixturevalue(kind)
    fn = held(spec, sizes, named)
    assert "bring" in fn.show("loops")
    if kind == "emulator" and PTXAS:
        assembled(fn.show("ptx"), tmp_path)


@BOTH
def test_what_follows_a_product_is_done_in_registers(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """A bias, an activation and a sum with what was there; of no, one and more rows."""
    request.getfixturevalue(kind)
    x, w, b = cr.input("x", ("batch", 136)), cr.input("w", (136, 72)), cr.input("b", (72,))
    old = cr.input("old", ("batch", 72))
    fn = cr.compile(cr.relu(x @ w + b) + old, backend="cuda", precision="bfloat16")
    assert fn.show("loops").count("panels") == 1
    random = np.random.default_rng(2)
    for rows in (0, 1, 130):
        feeds = {
            t.name: random.standard_normal([rows if d == "batch" else d for d in shape], np.float32)
            for t, shape in ((x, ("batch", 136)), (w, (136, 72)), (b, (72,)), (old, ("batch", 72)))
        }
        p, q = rounded(feeds["x"]), rounded(feeds["w"])
        exact = np.maximum(p @ q + feeds["b"], 0) + feeds["old"]
        sizes = np.abs(p) @ np.abs(q) + np.abs(feeds["b"]) + np.abs(feeds["old"])
        near(fn(**feeds), exact, sizes, 138)


def test_gradients_are_right(gpu: Any) -> None:
    """Of a loss whose three products are all of panels, beside the CPU's in bfloat16."""
    x, w = cr.input("x", (136, 72)), cr.input("w", (72, 128))
    outputs = cr.grad(cr.mean((x @ w) ** 2), [x, w])
    ours, native = (cr.compile(outputs, b, precision="bfloat16") for b in ("cuda", "cpu"))
    assert ours.show("loops").count("engage") == 3
    random = np.random.default_rng(3)
    feeds = {
        n: random.standard_normal(s, np.float32) for n, s in (("x", (136, 72)), ("w", (72, 128)))
    }
    for a, b in zip(ours(**feeds), native(**feeds), strict=True):
        # what is between products is rounded to bfloat16, to either side after sums in two orders
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4)


def test_a_run_of_steps_with_panels_is_near_the_cpus(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products of a small net, forward and back, in one recording; no kernel that stays."""
    monkeypatch.setattr(grouped, "PANELS", 0)
    random = np.random.default_rng(6)
    data = {"x": random.standard_normal((20, 64), np.float32),
            "y": random.integers(0, 8, 20).astype(np.int32)}  # fmt: skip
    losses = []
    for backend in ("cuda", "cpu"):
        x, y = cr.input("x", ("batch", 64)), cr.input("y", ("batch",), dtype="int32")
        net = cr.nn.Sequential([cr.nn.Dense(72, activation="gelu"), cr.nn.Dense(8)])
        step = cr.training_step(
            cr.losses.cross_entropy(net(x), y), cr.optim.Adam(1e-2), backend=backend,
            precision="bfloat16", seed=3,
        )  # fmt: skip
        losses.append(step.run(**data, batch_size=8, epochs=2, shuffle=False))
        if backend == "cuda":
            assert step.show("loops").count("engage") >= 4
            assert "@resident(" not in step.show("llvm")
    np.testing.assert_allclose(*losses, rtol=5e-3)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda x, w: x[:, :75] @ w[:75], "lines that begin anywhere"),
        (lambda x, w: cr.einsum("mk,hkn->hmn", x, cr.broadcast_to(w, (2, 83, 131))), "two axes"),
        (lambda x, w: cr.flip(x) @ w, "a factor that runs backwards"),
        (lambda x, w: cr.matmul(x[:, :1], w[:1]), "one term"),
    ],
)
def test_other_factors_go_another_way(build: Callable[..., cr.Tensor], why: str) -> None:
    x, w = cr.input("x", (136, 83)), cr.input("w", (83, 131))
    fn = cr.compile(build(x, w), backend="cuda", precision="bfloat16")
    assert "wgmma" not in fn.show("ptx"), why


@pytest.mark.parametrize("level", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_other_gpus_go_another_way(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", level)
    x = cr.input("x", (128, 128))
    text = cr.compile(x @ x, backend="cuda", precision="bfloat16").show("ptx")
    assert "wgmma" not in text and "mma.sync" in text


def test_few_tiles_and_other_precisions_go_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90a")
    for size, many in ((512, False), (1024, True)):
        x, y = cr.input("x", (size, size)), cr.input("y", (size, size))
        text = cr.compile(x @ y, backend="cuda", precision="bfloat16").show("ptx")
        assert ("wgmma" in text) == many
        for precision in (None, "tf32"):
            assert "wgmma" not in cr.compile(x @ y, "cuda", precision=precision).show("ptx")


# what the simulator refuses


def launch_of(rows: int = 136, terms: int = 264) -> Launch:
    """A product as it is launched."""
    x, w = (cr.input(n, s, dtype="bfloat16") for n, s in (("x", (rows, terms)), ("w", (terms, 72))))
    module = cr.compile(x @ w, "cuda", precision="bfloat16")._program.compiled.module  # type: ignore[attr-defined]
    return next(k for k in module.kernels.values() if k.places)


def changed(launch: Launch, change: Callable[[Stmt], Stmts]) -> Launch:
    """A launch of which each statement is changed to others."""

    def block(body: Stmts) -> Stmts:
        found = tuple(new for s in body for new in change(s))
        return tuple(
            replace(s, body=block(s.body)) if isinstance(s, Loop | When) else s for s in found
        )

    return replace(launch, program=replace(launch.program, body=block(launch.program.body)))


def run(launch: Launch) -> None:
    random = np.random.default_rng(4)
    arrays = {
        b.name: random.standard_normal(int(b.size)).astype(b.dtype.numpy)  # type: ignore[arg-type]
        for b in launch.program.buffers
    }
    assert simulate(launch, arrays, {}) == 0


def test_the_launch_that_is_changed_below_is_right() -> None:
    run(launch_of())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: () if isinstance(s, Hear) else (s,), "is multiplied before"),
        (lambda s: () if isinstance(s, Barrier) else (s,), "over what lanes may still read"),
        (lambda s: (replace(s, turn=s.turn + 1),) if isinstance(s, Hear) else (s,), "out of turn"),
        (lambda s: (s, s) if isinstance(s, Hear) else (s,), "out of turn"),
        (lambda s: (s, s) if isinstance(s, Bring) else (s,), "before it was heard"),
        (lambda s: () if isinstance(s, Bring) else (s,), "nobody rings"),
        (lambda s: () if isinstance(s, Engage) else (s,), "of no engine"),
        (lambda s: (replace(s, a=replace(s.a, at=s.a.at + 64 * 8 * 47)),)
         if isinstance(s, MultiplyPanels) else (s,), "does not lie in"),
        (lambda s: (replace(s, boxes=tuple(replace(b, at=b.at + 8) for b in s.boxes)),)
         if isinstance(s, Bring) else (s,), "as boxes do"),
        (lambda s: (replace(s, matrices=tuple(replace(m, offset=4) for m in s.matrices)),)
         if isinstance(s, Engage) else (s,), "16 bytes"),
    ],
)  # fmt: skip
def test_what_a_gpu_leaves_to_chance_is_refused(change: Callable[[Stmt], Stmts], said: str) -> None:
    with pytest.raises(CompileError, match=said):
        run(changed(launch_of(), change))


def test_a_copy_that_nobody_hears_is_refused() -> None:
    """The last panels are asked for, and not waited for."""
    one_less = changed(
        launch_of(),
        lambda s: (
            (replace(s, extent=s.extent - 1),)
            if isinstance(s, Loop) and s.var == "k'" and isinstance(s.extent, int)
            else (s,)
        ),
    )
    with pytest.raises(Race, match="nobody awaits"):
        run(one_less)


# what the emulator refuses of PTX


@pytest.mark.parametrize(
    "without",
    [
        r"wgmma\.fence\.sync\.aligned;",
        r"wgmma\.wait_group\.sync\.aligned 0;",
        r"wgmma\.commit_group\.sync\.aligned;",
        r"fence\.proxy\.async\.shared::cta;",
        r"fence\.proxy\.tensormap::generic\.acquire\.gpu [^;]*;",
        r"cp\.async\.bulk\.commit_group;",
        r"cp\.async\.bulk\.wait_group\.read 0;",
        r"tensormap\.cp_fenceproxy[^;]*;",
        r"@%p\d+ tensormap\.replace\.tile\.global_stride[^;]*;",
        r"@%p\d+ mbarrier\.init[^;]*;",
        r"@!there bra [^;]*;",
        r"mbarrier\.arrive\.expect_tx[^;]*;",
    ],
)
def test_ptx_without_a_wait_or_a_fence_is_refused(without: str, emulator: Any) -> None:
    x, w = cr.input("x", (128, 264)), cr.input("w", (264, 72))
    fn = cr.compile(x @ w, backend="cuda", precision="bfloat16")
    original = emulator.load
    emulator.load = lambda ptx: original(re.sub(without, "", ptx))
    assert re.search(without, fn.show("ptx"))
    random = np.random.default_rng(5)
    feeds = {"x": random.standard_normal((128, 264), np.float32),
             "w": random.standard_normal((264, 72), np.float32)}  # fmt: skip
    try:
        found = fn(**feeds)
    except (AssertionError, KeyError):
        return
    assert not np.allclose(found, feeds["x"] @ feeds["w"], rtol=0.1, atol=1)


# its code


def test_its_code_is_what_the_schedule_says() -> None:
    x, y = cr.input("x", (1024, 512)), cr.input("y", (512, 1024))
    text = cr.compile(x @ y, backend="cuda", precision="bfloat16").show("ptx")
    assert ".target sm_90a" in text and ".version 8.6" in text
    kernels = dict(re.findall(r"\.entry (kernel\w+)\(.*?\n\{(.*?)\n\}", text, re.S))
    (body,) = (b for b in kernels.values() if "wgmma" in b)
    # a panel of 64 terms, 16 at a time, once each: fence, four products, commit, wait
    shape = "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
    assert body.count(shape) == 4
    assert len(re.findall(r"1, 1, 1, 0, 1;", body)) == 4  # the right factor's lines are terms
    for word in ("fence", "commit_group", "wait_group"):
        assert body.count(f"wgmma.{word}.sync.aligned") == 1
    # two panels before the loop, one in it; of the right factor a box for 64 columns
    assert body.count("mbarrier.arrive.expect_tx.shared::cta.b64 _,") == 3
    assert len(re.findall(r"expect_tx[^;]*, 32768;", body)) == 3
    assert body.count("cp.async.bulk.tensor.2d") == 3 * 3
    assert body.count("mbarrier.init") == grouped.STAGES == 3
    assert body.count("mbarrier.try_wait.parity") == 1
    assert body.count("tensormap.cp_fenceproxy") == 2
    # bells are made, a panel may be brought over, and the result may lie where a factor did
    assert body.count("bar.sync") <= 3
    for slow in (".local", "st.shared.v", "ldmatrix", "mma.sync"):
        assert slow not in body


#: sizes at which no constant is changed, both ways of both factors, and of no known number of rows
LARGE = ["mk,kn->mn", "km,kn->mn", "mk,nk->mn", "km,nk->mn", "gmk,gkn->gmn"]


@needs_ptxas
@pytest.mark.parametrize(
    "spec", [LARGE[0], *(pytest.param(s, marks=pytest.mark.long) for s in LARGE[1:])]
)
def test_ptxas_takes_it_and_keeps_sums_in_registers(spec: str, tmp_path: Path) -> None:
    sizes = {"m": "rows", "n": 1024, "k": 1024, "g": 4}
    a, b = spec.partition("->")[0].split(",")
    if "m" in a[1:]:
        sizes["m"] = 1024
    x, y = (cr.input(n, [sizes[c] for c in t]) for n, t in (("x", a), ("y", b)))
    bias = cr.input("bias", (1024,))
    text = cr.compile(cr.gelu(cr.einsum(spec, x, y) + bias), "cuda", precision="bfloat16").show(
        "ptx"
    )
    assert "wgmma" in text
    assembled(text, tmp_path)


def test_the_report_says_which_way(gpu: Any) -> None:
    x = cr.input("x", (128, 128))
    fn = cr.compile(x @ x, backend="cuda", precision="bfloat16")
    report = fn.report()
    assert isinstance(report, GpuReport)
    assert any("panels" in k.factors for k in report.kernels)
    fn(x=np.zeros((128, 128), np.float32))
    (shared,) = {x.shared for x in fn.report().launches if x.shared and x.shared > 65536}
    assert shared == 1024 + launch_of().dynamic


def test_tuning_asks_for_panels_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are few too; a way that factors do not allow is refused, and other tiles stay."""
    monkeypatch.setattr(grouped, "TILES", 64)
    x = cr.input("x", (2, 64))
    made = cr.compile(x @ cr.input("w", (64, 128)), "cuda", precision="bfloat16")
    (kernel,) = (k for k in levels(made).kernels if k.form is Form.CONTRACT)
    asked, by_side = (
        build_kernel(kernel, "k", GPUS["sm_90a"], choice).launches[0]
        for choice in (Choice(way=PANELS), Choice(side=1))
    )
    assert asked.places and not by_side.places
    for target in (GPUS["sm_90"], GPUS["sm_80"]):
        with pytest.raises(CompileError, match="panels are of bfloat16"):
            build_kernel(kernel, "k", target, Choice(way=PANELS))
        assert Choice(way=PANELS) not in gpu_candidates(target)
    assert Choice(way=PANELS) in gpu_candidates(GPUS["sm_90a"])


def levels(fn: Any) -> Any:
    return fn._program.compiled.levels


def test_tuning_times_panels_on_a_gpu_that_has_them(
    emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator.capability = (9, 0)
    monkeypatch.setattr(gpu_tune, "TURNS", 1)  # an emulator's seconds are none to choose by
    x, w = cr.input("x", (128, 64)), cr.input("w", (64, 128))
    fn = cr.compile(x @ w, "cuda", precision="bfloat16", tune=True)
    text = str(fn.report())
    assert "our own, by sizes" in text and "a thread" in text
    feeds = {"x": np.ones((128, 64), np.float32), "w": np.ones((64, 128), np.float32)}
    np.testing.assert_array_equal(fn(**feeds), np.full((128, 128), 64, np.float32))
