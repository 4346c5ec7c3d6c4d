"""Kernels in Python whose steps threads share: the bits of one thread, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule_runtime
from chainrule_runtime import FeedError, RuntimeFault

MOST = 3
Loaded = Callable[[int | None], chainrule_runtime.Kernel]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose products are worth dividing."""
    x, y = cr.input("x", ("batch", 300)), cr.input("y", ("batch",), dtype="int32")
    z = cr.nn.Dense(10)(cr.relu(cr.nn.Dense(512)(x)))
    step = cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-3), outputs=z)
    folder = tmp_path_factory.mktemp("divided")
    step.export(folder, "net", formats=("so", "json"), max_batch=160, max_parts=MOST)
    return folder / "net.so"


@pytest.fixture
def loaded(library: Path, linker: None) -> Loaded:
    def load(threads: int | None) -> chainrule_runtime.Kernel:
        kernel = chainrule_runtime.load(library, threads=threads)
        kernel.init(seed=3)
        return kernel

    return load


def data(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(7)
    x = random.standard_normal((rows, 300)).astype(np.float32)
    return {"x": x, "y": random.integers(0, 10, rows).astype(np.int32)}


def all_of(kernel: chainrule_runtime.Kernel) -> dict[str, bytes]:
    return {name: kernel.get(name).tobytes() for name in kernel.tensors}


@pytest.mark.parametrize("threads", [2, MOST, None])
def test_the_bits_of_one_thread(loaded: Loaded, threads: int | None) -> None:
    given = data(160)
    one, many = loaded(1), loaded(threads)
    for kernel in (one, many):
        kernel.losses = [kernel.step(**given), *kernel.run(**given, batch_size=60, epochs=2)]  # type: ignore[attr-defined]
    assert one.losses == many.losses  # type: ignore[attr-defined]
    assert all_of(one) == all_of(many)
    assert one.loss(**given) == many.loss(**given)
    np.testing.assert_array_equal(one.predict(x=given["x"]), many.predict(x=given["x"]))


def test_threads_are_called(loaded: Loaded) -> None:
    kernel = loaded(MOST)
    kernel.step(**data(160))
    named = [t.name for t in threading.enumerate() if t.name.startswith("chainrule_")]
    assert len(named) >= 2, "there was work to divide"


def test_faults_are_those_of_one_thread(loaded: Loaded) -> None:
    kernel = loaded(2)
    before = all_of(kernel)
    given = data(20)
    given["y"][3] = 10
    with pytest.raises(FeedError, match="y holds a number outside"):
        kernel.step(**given)
    assert all_of(kernel) == before


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_what_is_no_number_of_threads(library: Path, linker: None, threads: Any) -> None:
    with pytest.raises(FeedError, match="threads is an int from 1 on"):
        chainrule_runtime.load(library, threads=threads)


def test_more_threads_than_it_was_exported_for(library: Path, linker: None, digits_net) -> None:
    with pytest.raises(RuntimeFault, match="divided in 3 parts at most, not in 4"):
        chainrule_runtime.load(library, threads=4)
    alone = digits_net.artifact.files["digits.so"]
    with pytest.raises(RuntimeFault, match=r"one thread(.|\n)*max_parts=2"):
        chainrule_runtime.load(alone, threads=2)
    chainrule_runtime.load(alone, threads=None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_threads_of_its_own(loaded: Loaded) -> None:
    kernel, given = loaded(2), data(160)
    kernel.step(**given)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            loss = kernel.step(**given)
            code = 0 if loss > 0 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupt_leaves_whole_steps(loaded: Loaded) -> None:
    """A handler that raises does so after the call that it interrupts, which is made whole."""
    kernel, given = loaded(2), data(160)

    def handler(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    caught = 0
    try:
        for i in range(20):
            with contextlib.suppress(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (i + 1))
                for _ in range(200):
                    kernel.step(**given)
                caught -= 1
            caught += 1
            with contextlib.suppress(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught
    steps = int(kernel.get("optimizer.step"))
    one = loaded(1)
    for _ in range(steps):
        one.step(**given)
    assert all_of(kernel) == all_of(one)
