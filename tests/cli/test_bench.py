"""`chainrule bench`: every peer trains the same thing, and a row that can't be trusted says so."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from chainrule.cli.bench import run
from chainrule.cli.bench.machine import Machine
from chainrule.cli.bench.reference import losses as reference_losses
from chainrule.cli.bench.workloads import WORKLOADS, Workload
from chainrule.errors import CompileError

ROOT = Path(__file__).parents[2]
PEERS = run.peers()
COUNT = 20


def given(work: Workload) -> SimpleNamespace:
    """A workload as a worker sees it."""
    library = str(run.HERE / "peers/dense.c")
    arrays = {"params": work.params, "data": work.data, "library": library}
    return SimpleNamespace(**work.plain(), **arrays)


def trained(peer: run.Peer, work: Workload) -> list[float]:
    """The first losses of a peer in this process."""
    step = peer.module["make_step"](given(work), 1, **peer.options)
    found: list[float] = []
    while len(found) < COUNT:
        step(len(found))
        found += step.losses()
        step.sync()
    return found[:COUNT]


def apart(peer: run.Peer, work: Workload) -> list[float]:
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


@pytest.mark.parametrize("name", ["tiny", "logistic", "small", "deep", "mlp-1", "vae"])
def test_ours_trains_as_written_by_hand(name: str) -> None:
    work = WORKLOADS[name]
    truth = reference_losses(work, COUNT)
    found = trained(PEERS["chainrule"], work)
    assert truth is not None
    np.testing.assert_allclose(found, truth, rtol=run.TOLERANCE)


@pytest.mark.parametrize("work", ["tiny", "logistic"])
@pytest.mark.parametrize("name", [n for n in PEERS if n not in ("chainrule", "torch-compile")])
def test_peers_train_the_same(name: str, work: str) -> None:
    peer, workload = PEERS[name], WORKLOADS[work]
    if peer.missing() or name == "tinygrad":  # which wants a compiler that is seldom there
        pytest.skip(f"{name} is not here")
    why = peer.module["supports"](workload, 1, **peer.options)
    if why:
        pytest.skip(why)
    truth = reference_losses(workload, COUNT)
    assert truth is not None
    np.testing.assert_allclose(apart(peer, workload), truth, rtol=run.TOLERANCE)


@pytest.mark.parametrize("name", ["torch", "jax-scan"])
def test_their_vae_is_ours(name: str) -> None:
    test_peers_train_the_same(name, "vae")


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
    rows = [run.Row("a", losses=[1.0, 2.0]), run.Row("b", losses=[1.0, 2.1]), run.Row("c", "gone")]
    run.compare(rows, [1.0, 2.0])
    assert rows[0].note == "" and "another's" in rows[1].note and rows[2].note == "gone"


def test_not_a_number_is_no_agreement() -> None:
    row = run.Row("a", losses=[float("nan")])
    run.compare([row], [1.0])
    assert row.note


def test_without_a_truth_means_are_compared() -> None:
    rows = [run.Row(n, losses=[v, v]) for n, v in (("a", 1.0), ("b", 1.05), ("c", 2.0))]
    run.compare(rows, None)
    assert [bool(r.note) for r in rows] == [False, False, True]


@pytest.mark.parametrize("fault", ["raise ValueError('no luck')", "import os; os._exit(3)"])
def test_a_peer_that_fails_is_a_note(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "bad_peer.py"
    file.write_text(
        "VARIANTS = {'bad': {}}\nNEEDS = ()\nSLOW = ()\n"
        "def env(threads, cache): return {}\n"
        "def supports(spec, threads): return None\n"
        f"def make_step(spec, threads):\n    {fault}\n"
    )
    import runpy

    bad = run.Peer("bad", file, runpy.run_path(str(file)))
    (row,) = run.measure(WORKLOADS["tiny"], [bad], 1, 0.01, rounds=1)
    assert row.note in ("ValueError: no luck", "ended with 3")
    assert not row.counts


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


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    shelves = os.pathsep.join(str(ROOT / shelf) for shelf in ("compiler", "runtime"))
    return subprocess.run(
        [sys.executable, "-c", "from chainrule.cli import main; main()", "bench", *arguments],
        env={**os.environ, "PYTHONPATH": shelves},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_the_command_prints_a_table_and_writes_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    peers = "c" if shutil.which("cc") else "chainrule"
    ran = command(
        "--workloads", "tiny", "--peers", peers, "--seconds", "0.01", "--json", str(file)
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "chainrule-call" in ran.stdout and "µs a step" in ran.stdout
    rows = {r["peer"]: r for r in json.loads(file.read_text())["workloads"]["tiny"]["rows"]}
    for row in rows.values():
        assert row["note"] == ""
        assert len(row["seconds"]) == run.ROUNDS and min(row["seconds"]) > 0
        assert row["deviation"] < run.TOLERANCE and row["first_step"] > 0
    assert set(rows) >= {"chainrule", "chainrule-call"}


def test_the_command_refuses_in_a_line() -> None:
    ran = command("--workloads", "huge")
    assert ran.returncode == 1
    assert "no workload" in ran.stderr and "Traceback" not in ran.stderr


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
