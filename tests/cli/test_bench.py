"""`chainrule bench`: every peer trains the same thing, and a row that can't be trusted says so."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chainrule.cli import bench
from chainrule.cli.bench import processes, run, tables
from chainrule.cli.bench.reference import losses as reference_losses
from chainrule.cli.bench.reference import slopes
from chainrule.cli.bench.workloads import SEQUENCES, WORKLOADS, Workload
from chainrule.codegen.rates import Machine
from chainrule.errors import CompileError

ROOT = Path(__file__).parents[2]
PEERS = processes.peers()
COUNT = 20


def given(work: Workload) -> SimpleNamespace:
    """A workload as a worker sees it."""
    library = str(processes.HERE / "peers/dense.c")
    arrays = {"params": work.params, "data": work.data, "library": library}
    return SimpleNamespace(**work.plain(), **arrays)


def trained(peer: processes.Peer, work: Workload) -> list[float]:
    """The first losses of a peer in this process."""
    step = peer.module["make_step"](given(work), 1, **peer.options)
    found: list[float] = []
    while len(found) < COUNT:
        step(len(found))
        found += step.losses()
        step.sync()
    return found[:COUNT]


def apart(peer: processes.Peer, work: Workload) -> list[float]:
    """The same in a process of its own: others set how a thread rounds and flushes denormals."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writable, json.dumps(trained(peer, work)).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert text, "the peer failed, see above"
    found: list[float] = json.loads(text)
    return found


def smaller(name: str) -> Workload:
    """A workload of the same kind and layers that a test can afford."""
    work = WORKLOADS[name]
    narrow = {
        "lstm": {"vocab": 7, "embed": 5, "hidden": 6, "seq": 4},
        "gpt": {"vocab": 7, "layers": 2, "heads": 2, "d": 8, "ctx": 6},
        "vae": {"d": 20, "h": 12, "z": 3},
    }
    if work.kind in narrow:
        return replace(work, batch=3, shape=narrow[work.kind])
    if name == "cnn":
        conv = [(3, 4, 3, 1, False), (4, 4, 3, 1, True), (4, 6, 3, 1, True)]
        return replace(work, batch=2, shape={**work.shape, "conv": conv, "dense": [384, 8, 10]})
    return replace(work, batch=min(work.batch, 8))


@pytest.mark.parametrize("name", ["tiny", "logistic", "small-32", "deep", "mlp-1"])
def test_ours_trains_as_written_by_hand(name: str) -> None:
    check_losses("chainrule", WORKLOADS[name], trained)


@pytest.mark.parametrize("name", ["vae", "lenet", "cnn", "lstm", "gpt"])
def test_ours_trains_other_kinds_as_written_by_hand(name: str) -> None:
    check_losses("chainrule", smaller(name), trained)


def check_losses(peer: str, work: Workload, by: Any) -> None:
    truth = reference_losses(work, COUNT)
    assert truth is not None
    np.testing.assert_allclose(by(PEERS[peer], work), truth, rtol=run.TOLERANCE)


@pytest.mark.parametrize("name", ["tiny", "logistic", "deep", "vae", "lenet", "cnn", "lstm", "gpt"])
def test_the_slopes_of_the_reference_are_slopes(name: str) -> None:
    """Along a random direction, against the difference of two losses."""
    work, seed = smaller(name), 5
    rows = {n: a[: work.batch] for n, a in work.data().items()}
    weights = {n: w.astype(np.float64) for n, w in work.params().items()}
    _, found = slopes(work, weights, rows)
    random = np.random.default_rng(seed)
    ways = {n: random.standard_normal(w.shape) for n, w in weights.items()}
    by_hand = sum((found[n] * way).sum() for n, way in ways.items())

    def loss(step: float) -> float:
        return slopes(work, {n: w + step * ways[n] for n, w in weights.items()}, rows)[0]

    step = 1e-6  # cancellation leaves about 1e-16 / 1e-6; kinks within the step are rare
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(by_hand, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", WORKLOADS)
def test_figures_of_a_workload_fit_its_arrays(name: str) -> None:
    work = WORKLOADS[name]
    weights, data = work.params(), work.data()
    assert {n: w.shape for n, w in weights.items()} == work.shapes()
    assert all(len(a) == work.nbatch * work.batch for a in data.values())
    kind = "momentum" if work.opt.get("momentum") else work.opt["kind"]
    copies = {"sgd": 2, "momentum": 4, "adam": 6, "adamw": 6}[kind]  # each read and written
    row = data["xy"][0] if work.kind in SEQUENCES else data["x"][0]
    parameters = sum(w.nbytes for w in weights.values())
    assert work.bytes() == copies * parameters + work.batch * row.nbytes


def test_operations_are_counted() -> None:
    """A product of n·k·m multiply-adds is 2nkm operations, three times, or two where it reads data.

    The LeNet: 28² places of 25 terms, 6 kernels; 10² of 150, 16 kernels; then three products.
    """
    forward = [28**2 * 25 * 6, 10**2 * 150 * 16, 400 * 120, 120 * 84, 84 * 10]
    assert WORKLOADS["lenet"].products() == [64 * n for n in forward]
    assert WORKLOADS["lenet"].flops() == 64 * (6 * sum(forward) - 2 * forward[0])
    assert WORKLOADS["lstm"].flops() == 6 * 32 * 64 * (320 * 1024 + 256 * 64)


@pytest.mark.parametrize("work", ["tiny", "logistic"])
@pytest.mark.parametrize("name", [n for n in PEERS if n not in ("chainrule", "torch-compile")])
def test_peers_train_the_same(name: str, work: str) -> None:
    peer, workload = PEERS[name], WORKLOADS[work]
    if peer.missing() or name == "tinygrad":  # which wants a compiler that is seldom there
        pytest.skip(f"{name} is not here")
    why = peer.module["supports"](workload, 1, **peer.options)
    if why:
        pytest.skip(why)
    check_losses(name, workload, apart)


@pytest.mark.parametrize("work", ["vae", "lenet", "cnn", "lstm", "gpt"])
@pytest.mark.parametrize("name", ["torch", "jax-scan"])
def test_their_other_nets_are_ours(name: str, work: str) -> None:
    if PEERS[name].missing():
        pytest.skip(f"{name} is not here")
    check_losses(name, smaller(work), apart)


@pytest.mark.parametrize("work", ["small-32", "deep"])
@pytest.mark.parametrize("name", ["numpy", "c"])
def test_by_hand_is_as_by_hand(name: str, work: str) -> None:
    if name == "c" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    check_losses(name, WORKLOADS[work], apart)


def test_the_reference_descends_its_own_gradient() -> None:
    """Momentum 0 and a small rate: the loss on one minibatch falls by rate·|g|², to first order."""
    base = WORKLOADS["tiny"]
    for rate in (1e-4, 2e-4):
        work = Workload("one", "", "mlp", 8, {**base.opt, "lr": rate}, base.shape, nbatch=1)
        falls = reference_losses(work, 2)
        assert falls is not None
        slope = (falls[0] - falls[1]) / rate
        if rate == 1e-4:
            before = slope
    assert before > 0
    assert slope == pytest.approx(before, rel=1e-2)  # the second order is rate·|g|·|H|, ~1e-3


def test_losses_that_differ_are_said() -> None:
    rows = [
        processes.Row("a", losses=[1.0, 2.0]),
        processes.Row("b", losses=[1.0, 2.1]),
        processes.Row("c", "gone"),
    ]
    run.compare(rows, [1.0, 2.0])
    assert rows[0].note == "" and "another's" in rows[1].note and rows[2].note == "gone"


def test_not_a_number_is_no_agreement() -> None:
    row = processes.Row("a", losses=[float("nan")])
    run.compare([row], [1.0])
    assert row.note


def test_without_a_truth_means_are_compared() -> None:
    rows = [processes.Row(n, losses=[v, v]) for n, v in (("a", 1.0), ("b", 1.05), ("c", 2.0))]
    run.compare(rows, None)
    assert [bool(r.note) for r in rows] == [False, False, True]


def faulty(folder: Path, fault: str, needs: str = "") -> processes.Peer:
    """A peer that does nothing else."""
    file = folder / "bad_peer.py"
    file.write_text(
        f"VARIANTS = {{'bad': {{}}}}\nNEEDS = ({needs})\nSLOW = ()\nSETTINGS = {{'bad': ''}}\n"
        "def env(threads, cache): return {}\n"
        "def supports(spec, threads): return None\n"
        f"def make_step(spec, threads):\n    {fault}\n"
    )
    return processes.Peer("bad", file, runpy.run_path(str(file)))


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import os; os._exit(3)", "ended with 3"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_a_peer_that_fails_is_a_note(tmp_path: Path, fault: str, note: str) -> None:
    (row,) = run.measure(WORKLOADS["tiny"], [faulty(tmp_path, fault)], 1, 0.01, None, rounds=1)
    assert row.note == note
    assert not row.counts


def test_a_peer_that_is_missing_is_a_note(tmp_path: Path) -> None:
    bad = faulty(tmp_path, "pass", "'no_such_package',")
    (row,) = run.measure(WORKLOADS["tiny"], [bad], 1, 0.01, None, rounds=1)
    assert row.note == "no_such_package is not installed"


def test_a_peer_that_is_silent_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "pids"
    fault = (
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(told)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); time.sleep(60)"
    )
    monkeypatch.setattr(processes, "PATIENCE", 3.0)
    (row,) = run.measure(WORKLOADS["tiny"], [faulty(tmp_path, fault)], 1, 0.01, None, rounds=1)
    assert row.note == "no answer in 3 s"
    assert not left(map(int, told.read_text().split()))


def left(pids: Iterable[int], seconds: float = 30.0) -> list[int]:
    """Which processes still run when all that were killed have had time to end."""
    found, until = list(pids), time.monotonic() + seconds
    while found and time.monotonic() < until:
        time.sleep(0.01)
        found = [pid for pid in found if alive(pid)]
    return found


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    status = Path(f"/proc/{process}/status")
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


def test_ctrl_c_leaves_no_process() -> None:
    hears = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    heard = [sys.executable, "-c", f"{hears}from chainrule.cli import main; main()"]
    bench = subprocess.Popen(
        [*heard, "bench", "--workloads", "tiny", "--peers", "numpy", "--seconds", "20"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = Path(f"/proc/{bench.pid}/task/{bench.pid}/children")
    if not folder.exists():
        bench.kill()
        pytest.skip("this system does not list children")
    until = time.monotonic() + 60
    workers: list[int] = []
    while len(workers) < 2 and time.monotonic() < until:
        time.sleep(0.1)
        workers = [int(n) for n in folder.read_text().split()]
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130 and said.strip() == "interrupted"
    assert workers and not left(workers)


def test_a_peer_is_started_again_with_nothing_kept_and_with_what_it_kept() -> None:
    peers = [PEERS["numpy"], PEERS["chainrule-call"]]
    for row in run.measure(WORKLOADS["tiny"], peers, 1, 0.01, None, starts=2, rounds=1):
        assert not row.note
        assert len(row.cold) == len(row.warm) == 2 and min(row.cold + row.warm) > 0


def test_rates_of_the_machine_are_plausible() -> None:
    machine = Machine()
    flops, near, far = machine.flops(), machine.bandwidth(2**14), machine.bandwidth(2**27)
    assert 1e9 < flops < 1e12
    assert near > far > 5e8  # L1 and main memory


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CompileError, match="no workload 'huge'"):
        run.chosen_workloads("tiny,huge", False)
    with pytest.raises(CompileError, match="no peer 'abacus'"):
        run.chosen_peers("abacus", False)


COMMAND = [sys.executable, "-c", "from chainrule.cli import main; main()", "bench"]


def environment() -> dict[str, str]:
    """One in which the command is this tree's."""
    shelves = os.pathsep.join(str(ROOT / shelf) for shelf in ("compiler", "runtime"))
    return {**os.environ, "PYTHONPATH": shelves}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(), capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip


def test_the_command_prints_a_table_and_writes_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    peers = "c" if shutil.which("cc") else "chainrule"
    ran = command(
        "--workloads", "tiny", "--peers", peers, "--seconds", "0.01", "--json", str(file)
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "chainrule-call" in ran.stdout and "µs a step" in ran.stdout
    (measured,) = json.loads(file.read_text())["measured"]
    assert (measured["workload"], measured["threads"]) == ("tiny", 1)
    rows = {r["peer"]: r for r in measured["rows"]}
    for row in rows.values():
        assert row["note"] == ""
        assert len(row["seconds"]) == run.ROUNDS and min(row["seconds"]) > 0
        assert row["deviation"] < run.TOLERANCE and row["first_step"] > 0 and row["memory"] >= 0
    assert set(rows) >= {"chainrule", "chainrule-call"}


def test_markdown_is_all_that_is_printed() -> None:
    ran = command(
        "--workloads", "tiny", "--peers", "numpy", "--seconds", "0.01", "--starts", "1",
        "--markdown",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, *rest = ran.stdout.splitlines()
    assert first.startswith("`chainrule ")
    assert all(not line or line[0] in "|*" for line in rest)
    heads = [line for line in rest if re.match(r"\| (µs|seconds|peer)", line)]
    assert len(heads) == 3


def row(peer: str, *seconds: float, note: str = "") -> dict[str, Any]:
    made = processes.Row(peer, note, seconds=list(seconds))
    return run.as_data(made, run.Limits(arithmetic=1e-6, bytes=0.0))


def test_tables_say_how_many_times_and_why_not() -> None:
    rows = [row("chainrule", 2e-6, 4e-6, 3e-6), row("other", 6e-6), row("absent", note="gone")]
    lines = tables.lines(rows)
    assert lines[0][1:5] == ["3.00", "2.00 to 4.00", "1.00", "33% FMA"]
    assert lines[1][3] == "2.00"
    assert lines[2][:3] == ["absent", "", "gone"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workloads", "huge"), "no workload"),
        (("--threads", "1,many"), "no number of threads"),
        (("--threads", "100000"), "may use"),
        (("--seconds", "nan"), "no number of seconds"),
    ],
)
def test_the_command_refuses_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    ran = command(*arguments)
    assert ran.returncode == 1
    assert message in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_commands_in_the_docs_are_commands(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"(?m)^ {4}(chainrule bench .*)$", text)
    assert found
    for line in found:
        asked = bench.make_context("bench", shlex.split(line)[2:]).params
        run.chosen_workloads(asked["workloads"], asked["full"])
        run.chosen_peers(asked["peers"], asked["full"])


@pytest.mark.parametrize("name", ["tiny", "logistic"])
def test_the_c_of_two_nets_trains_them(name: str) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    file = ROOT / "benchmarks/handwritten.py"
    peer = processes.Peer("handwritten", file, runpy.run_path(str(file)))
    truth = reference_losses(WORKLOADS[name], COUNT)
    np.testing.assert_allclose(trained(peer, WORKLOADS[name]), truth, rtol=run.TOLERANCE)


def test_the_peer_of_other_harnesses_is_the_same() -> None:
    spec = importlib.util.spec_from_file_location(
        "chainrule_peer", ROOT / "benchmarks" / "chainrule_peer.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    step = module.make_step(given(WORKLOADS["tiny"]), 1, **module.VARIANTS["chainrule_call"])
    step(0)
    truth = reference_losses(WORKLOADS["tiny"], 1)
    assert truth is not None
    assert step.losses() == pytest.approx(truth, rel=run.TOLERANCE)


@pytest.mark.parametrize("name", ["tiny", "dropout"])
def test_the_truth_is_worked_out_in_a_process_of_its_own(name: str) -> None:
    assert run.truth_of(WORKLOADS[name]) == reference_losses(WORKLOADS[name], run.CHECKED)


def test_fewer_losses_are_checked_of_large_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LARGE", 1)
    truth = run.truth_of(WORKLOADS["tiny"])
    assert truth == reference_losses(WORKLOADS["tiny"], run.FEW)
    row = processes.Row("peer", losses=[*truth, 9.0], seconds=[1.0])
    run.compare([row], truth)
    assert row.counts and row.deviation == 0
