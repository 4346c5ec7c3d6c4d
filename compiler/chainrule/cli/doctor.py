"""`chainrule doctor`: what will work on this machine, and a test of the whole way down."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from chainrule.cli.page import Page, told
from chainrule.codegen import ptxas
from chainrule.codegen.cache import is_ours
from chainrule.codegen.host import about_tiles, describe_host, host_target
from chainrule.codegen.team import has_threads
from chainrule.config import GPU, KNOBS, cache_folder
from chainrule.driver.calibrate import calibrate, calibrated, speeds
from chainrule.driver.gpu import gpu_target
from chainrule.driver.gpu_trust import target_here
from chainrule.errors import ChainruleError
from chainrule.lang import functions as f
from chainrule.lang.compiled import compile
from chainrule.lang.derive import grad
from chainrule.lang.leaves import input
from chainrule.target import LEVEL_FEATURES
from chainrule.version import __version__
from chainrule_runtime import RuntimeFault, threads_for
from chainrule_runtime.gpu import driver as gpu

NEEDED = ("numpy", "llvmlite", "sympy", "networkx", "click", "rich")
EXTRAS = {
    "cuda-bindings": "backend=\"cuda\": pip install 'chainrule[cuda]'",
    "matplotlib": "loss curves: pip install matplotlib",
    "torch": "a peer in tests and benchmarks",
    "jax": "a peer in benchmarks",
    "pytest": "the tests: pip install -e '.[dev]'",
}
LINKERS = ("cc", "gcc", "clang", "ld", "ld.lld", "zig")
TOLERANCE = 1e-5


def run(page: Page, measure: bool = False) -> bool:
    """Print what is there; whether the self-test went well. With `measure` the machine's speeds are
    measured first, and kept.
    """
    if measure:
        calibrate()
    page.heading("Versions")
    page.table(("what", "version"), _versions())
    page.heading("Machine")
    page.table(("what", "here"), _machine())
    page.heading("Optional")
    page.table(("package", "version", "what for"), _extras())
    page.heading("Environment variables")
    page.table(
        ("variable", "now", "what it does"),
        [(k.variable, str(k.value() or "unset"), k.doc) for k in KNOBS],
    )
    page.heading("Self-test", "derive, compile and run a small program; compare it with NumPy")
    return _report_test(page)


def _versions() -> list[tuple[str, str]]:
    python = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    packages = [(name, installed(name) or "missing") for name in NEEDED]
    return [("chainrule", __version__), ("Python", python), *packages]


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> list[tuple[str, str, str]]:
    return [(name, installed(name) or "not installed", why) for name, why in EXTRAS.items()]


def _machine() -> list[tuple[str, str]]:
    host = describe_host()
    linkers = [name for name in LINKERS if shutil.which(name)]
    if installed("ziglang"):
        linkers.append("ziglang (Python package)")
    return [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("CPU", f"{host.cpu} as LLVM knows it"),
        ("instructions", _levels(host.features)),
        ("target", _target()),
        *([("tiles", about_tiles())] if about_tiles() else []),
        ("LLVM", host.llvm),
        ("cores", _cores()),
        ("threads", _threads()),
        ("speeds", _speeds()),
        ("linkers", ", ".join(linkers) or "none; none is needed to train"),
        ("CUDA", gpu.describe()),
        ("CUDA target", _gpu_target()),
        ("cuBLASLt", _library()),
        ("ptxas", _ptxas()),
        ("cache", _cache()),
    ]


def _gpu_target() -> str:
    """What code for a GPU is made for, and why."""
    try:
        level = gpu_target().level
    except ChainruleError as error:
        return "; ".join([error.what, *error.details])
    if GPU.value():
        return f"{level}, as {GPU.variable} says"
    try:
        said = target_here(gpu.find())[1]
    except RuntimeFault:
        return f"{level}, which every later GPU runs too: none is here to ask"
    return f"{level}, for the GPU and the driver that are here" + (said and f"; {said}")


def _library() -> str:
    """Which library may multiply, where that is asked for."""
    try:
        return f"{gpu.find().library()}: tried where `tune=` asks for it"
    except RuntimeFault as fault:
        return f"none is tried: {fault.what}"


def _ptxas() -> str:
    path = ptxas.find()
    if path is None:
        return "none: cubins and registers are told by it alone; to train, the driver is enough"
    return f"{path}, {ptxas.version(path)}"


def _levels(features: frozenset[str]) -> str:
    """Each level of x86-64 and what it lacks here; other machines have one level."""
    if not features & set(LEVEL_FEATURES["x86-64-v2"]):
        return "one level, chosen by the architecture"
    lacking = {level: sorted(set(bits) - features) for level, bits in LEVEL_FEATURES.items()}
    return "; ".join(f"{k} {'without ' + ', '.join(v) if v else 'yes'}" for k, v in lacking.items())


def _target() -> str:
    try:
        target = host_target()
    except ChainruleError as error:
        return error.what
    lanes = target.vector_bytes // 4
    return f"{target.level}: {target.vector_registers} vectors of {lanes} float32"


def _cache() -> str:
    folder = cache_folder()
    if folder is None:
        return "off: what is compiled lives as long as the process"
    try:
        if not is_ours(folder.stat()):
            return f"{folder} is not used: others may write it (chmod 700 mends that)"
    except OSError:
        return f"{folder}, made when something is compiled"
    files = [f.stat().st_size for f in folder.glob("*.object")]
    return f"{folder}: {len(files)} programs, {sum(files) / 2**20:.1f} MiB"


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{os.cpu_count()}, of which this process may use {usable}"


def _speeds() -> str:
    try:
        whose = (
            "as measured" if calibrated() else "usual ones, chainrule doctor --calibrate measures"
        )
        return f"{speeds()} ({whose})"
    except ChainruleError:
        return "nothing is compiled here"


def _threads() -> str:
    try:
        several = has_threads(host_target())
    except ChainruleError:
        several = False
    if not several:
        return "1: steps are shared among threads under Linux on x86-64 and aarch64 only"
    return f"{threads_for(None)} at most, by affinity and the control group's quota"


def _report_test(page: Page) -> bool:
    start = time.perf_counter()
    try:
        error = self_test()
    except ChainruleError as fault:
        page.say(f"failed: {told(fault)}", style="bold red")
        return False
    milliseconds = (time.perf_counter() - start) * 1e3
    good = error < TOLERANCE
    verdict = "passed" if good else "failed"
    page.say(
        f"{verdict} in {milliseconds:.0f} ms: the largest relative error is {error:.1e}",
        style="bold green" if good else "bold red",
    )
    return good


def self_test() -> float:
    """The largest relative error of a compiled gradient against the reference in NumPy."""
    x, w = input("x", ("batch", 8)), input("w", (8, 5))
    loss = f.mean(f.softplus(f.tanh(x @ w)))
    wanted = {"loss": loss, "dw": grad(loss, w)}
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal((11, 8)), "w": random.standard_normal((8, 5))}
    native, truth = compile(wanted)(**feeds), compile(wanted, backend="reference")(**feeds)
    return max(
        float(np.max(np.abs(native[name] - truth[name])) / np.max(np.abs(truth[name])))
        for name in wanted
    )
