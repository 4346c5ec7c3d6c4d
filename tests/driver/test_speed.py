"""What a report predicts and measures, what tuning chooses, and that neither shows in a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.codegen.host import host_target
from chainrule.driver import calibrate, clock, lower, tune
from chainrule.driver.tune import tuned
from chainrule.errors import CompileError
from chainrule.ir.graph import Graph
from chainrule.loops.choice import Choice, candidates
from chainrule.loops.text import show
from chainrule.target.speeds import Speeds, usual_speeds

SPEEDS = Speeds(2e11, ((2**15, 3e11), (2**20, 1.5e11), (0, 2e10)), 1e-6, 3e-7)
can_measure = pytest.mark.skipif(not clock.can_measure(), reason="no clock for native code here")


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has measured nothing, and of which others learn nothing."""
    monkeypatch.setattr(calibrate, "_here", {})
    monkeypatch.setattr(clock, "SECONDS", 0.0)
    calibrate._known.cache_clear()
    yield
    calibrate._known.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calibration finds SPEEDS at once; how often it was made."""
    made: list[int] = []
    monkeypatch.setattr(calibrate, "_measured", lambda: made.append(1) or SPEEDS)
    return made


def net(**options: Any) -> cr.TrainingStep:
    x, t = cr.input("x", ("batch", 40)), cr.input("t", ("batch",), dtype="int32")
    h = cr.tanh(x @ cr.parameter("W", (40, 70)) + cr.parameter("b", (70,)))
    loss = cr.losses.cross_entropy(h @ cr.parameter("V", (70, 33)), t)
    return cr.training_step(loss, cr.optim.Adam(1e-2), **options)


def data(batch: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    x = random.standard_normal((batch, 40)).astype(np.float32)
    return {"x": x, "t": random.integers(0, 33, batch).astype(np.int32)}


def bits(step: cr.TrainingStep) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in step.state_dict().items()}


# calibration


def test_the_usual_speeds_are_taken_until_others_are_measured(
    folder: Path, measured: list[int]
) -> None:
    assert calibrate.speeds() == usual_speeds(host_target().level)
    assert calibrate.calibrated() is None and not measured
    assert calibrate.calibrate() == calibrate.speeds() == calibrate.calibrated() == SPEEDS


def test_speeds_are_kept_for_other_processes(
    folder: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate.calibrate()
    monkeypatch.setattr(calibrate, "_here", {})
    calibrate._known.cache_clear()
    assert calibrate.calibrated() == SPEEDS
    (file,) = folder.glob("*.object")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"9" + whole[-2:])
    calibrate._known.cache_clear()
    assert calibrate.calibrated() is None
    file.write_bytes(whole)
    file.chmod(0o666)
    calibrate._known.cache_clear()
    assert calibrate.calibrated() is None


def test_another_machine_has_speeds_of_its_own(
    folder: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate.calibrate()
    key = calibrate._key()
    monkeypatch.setattr(calibrate.os, "cpu_count", lambda: 999)
    assert calibrate._key() != key


def test_without_a_cache_speeds_live_as_long_as_the_process(measured: list[int]) -> None:
    calibrate.calibrate()
    assert calibrate.calibrated() == SPEEDS


def test_sharing_waits_for_what_a_machine_needs(measured: list[int]) -> None:
    assert calibrate.worth_sharing(100, 1000) == (100, 1000)
    calibrate.calibrate()
    usual = usual_speeds(host_target().level)
    call, step = calibrate.worth_sharing(10**6, 10**6)
    faster = 2e11 / usual.flops
    assert call == pytest.approx(1e6 * min(1, faster * 3e-7 / usual.meeting), rel=1e-5)
    assert step == pytest.approx(1e6 * min(1, faster * 1e-6 / usual.fork), rel=1e-5)
    assert calibrate.worth_sharing(0, 0) == (0, 0)


def test_a_machine_can_be_measured() -> None:
    found = calibrate._measured()
    assert 1e9 < found.flops < 1e12
    rates = [rate for _, rate in found.reads]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 5e8
    assert 1e-8 < found.meeting < 1e-4 and 1e-7 < found.fork < 1e-3


# reports


def test_a_report_predicts_without_measuring(measured: list[int]) -> None:
    report = net().report(sizes={"batch": 96})
    assert not measured and not report.calibrated and report.measured is None
    assert report.sizes == {"batch": 96}
    assert report.predicted == pytest.approx(sum(k.predicted for k in report.kernels))
    products = [k for k in report.kernels if k.form == "contract"]
    assert products and all(k.predicted > 0 and k.bound for k in products)
    flops = report.totals(batch=96)["flops"]
    assert report.predicted > flops / report.speeds.flops
    assert any("tiles" in text for k in products for text in k.chosen)
    text = str(report)
    assert "of one thread at batch 96" in text and "usual ones of" in text


def test_more_rows_are_predicted_to_take_longer() -> None:
    step = net(threads=1)
    seconds = [step.report(sizes={"batch": n}).predicted for n in (8, 64, 512, 4096)]
    assert seconds == sorted(seconds)
    assert seconds[-1] / seconds[-2] == pytest.approx(8, rel=0.5)


@can_measure
def test_kernels_are_measured_on_copies(measured: list[int]) -> None:
    step = net()
    step(**data(9))
    before = bits(step)
    report = step.report(measure=True, sizes={"batch": 9})
    assert measured and report.calibrated and report.speeds == SPEEDS
    assert bits(step) == before
    assert all(k.measured is not None and k.measured > 0 for k in report.kernels)
    assert report.measured == pytest.approx(sum(k.measured or 0.0 for k in report.kernels))
    assert report.as_dict()["measured"] == report.measured
    step(**data(9))  # which goes on as if nothing had been measured
    other = net()
    for _ in range(2):
        other(**data(9))
    assert bits(step) == bits(other)


@can_measure
def test_the_kernels_of_a_loop_are_measured_where_they_are_repeated(measured: list[int]) -> None:
    x, w = cr.input("x", ("time", 3, 20)), cr.input("w", (20, 20))
    final, _ = cr.scan(lambda h, row: (cr.tanh(h @ w + row), None), cr.zeros((3, 20)), x)
    report = cr.compile(final).report(measure=True, sizes={"time": 50})
    times = {k.form: k.measured for k in report.kernels}
    assert times["scan"] == 0.0 and (times["contract"] or 0.0) > 0


@can_measure
def test_what_reads_at_places_is_measured(measured: list[int]) -> None:
    table, places = cr.input("table", (50, 8)), cr.input("places", ("n",), dtype="int32")
    assert cr.compile(cr.take(table, places, axis=0)).report(measure=True).measured


def test_sizes_that_are_none_are_refused() -> None:
    step = net()
    with pytest.raises(CompileError, match="the sizes are batch"):
        step.report(sizes={"rows": 3})
    for number in (0, True, 2.5):
        with pytest.raises(CompileError, match=f"the size batch is an int from 1 on, not {number}"):
            step.report(sizes={"batch": number})
    with pytest.raises(CompileError, match="measure is True or False"):
        step.report(measure="yes")  # type: ignore[arg-type]


# tuning


@pytest.mark.parametrize("threads", [1, 2])
def test_every_choice_has_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way a product may be tuned, in forward and backward products and updates."""
    plain = net(threads=threads)
    for batch in (1, 37, 160):
        plain(**data(batch))
    texts = set()
    monkeypatch.setattr(calibrate, "_measured", lambda: SPEEDS)
    ways = [*candidates(host_target()), Choice(packed_from=24), Choice(8, 2, packed_from=96)]
    for choice in ways[threads - 1 :: 5] + ways[-2:]:
        everywhere = dict.fromkeys(range(99), choice)
        monkeypatch.setattr(lower, "tuned", lambda *_, found=everywhere: found)
        step = net(threads=threads, tune=True)
        texts.add(step.show("loops"))
        for batch in (1, 37, 160):
            step(**data(batch))
        assert bits(step) == bits(plain), choice
    assert len(texts) > 3  # they were other loops


def wide(**options: Any) -> cr.TrainingStep:
    """A net with products that packing may pay for."""
    x, t = cr.input("x", ("batch", 784)), cr.input("t", ("batch",), dtype="int32")
    h = cr.relu(x @ cr.parameter("W", (784, 512)))
    loss = cr.losses.cross_entropy(h @ cr.parameter("V", (512, 33)), t)
    return cr.training_step(loss, cr.optim.Adam(1e-2), **options)


def data_of(batch: int) -> dict[str, Any]:
    return {**data(batch), "x": np.ones((batch, 784), np.float32) / np.arange(1, 785, dtype="f4")}


#: caches from which a factor is as quickly read where it stands; and those of a Xeon, of which the
#: third is slow to read twice
NEAR = Speeds(1e11, ((2**15, 2e11), (2**20, 1.9e11), (2**25, 1.8e11), (0, 1.7e11)), 1e-6, 3e-7)
SLOW = Speeds(2.25e11, ((2**15, 3e11), (2**21, 1.6e11), (2**25, 2.9e10), (0, 1.6e10)), 1e-6, 3e-7)


@pytest.mark.parametrize("threads", [1, 2])
def test_where_a_machine_is_known_the_model_says_what_is_packed(
    threads: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its speeds: a program of before is not found again, and has the same bits."""
    by_sizes = wide(threads=threads)
    steps = {}
    for speeds in (NEAR, SLOW):
        monkeypatch.setattr(calibrate, "_measured", lambda speeds=speeds: speeds)
        calibrate.calibrate()
        steps[speeds] = wide(threads=threads)
        again = wide(threads=threads)
        assert again._engine.compiled.native.cached  # type: ignore[attr-defined]
        assert again.show("loops") == steps[speeds].show("loops")
    near, slow = (s._engine.compiled.levels.choices for s in steps.values())  # type: ignore[attr-defined]
    assert all(c.packed_from > 12 for c in near.values()) and slow.keys() < near.keys()
    told = [text for k in steps[NEAR].report().kernels for text in k.chosen]
    assert any("rows on, where it should pay" in text for text in told)
    for step in (by_sizes, *steps.values()):
        for batch in (1, 12, 37, 160, 300):
            step(**data_of(batch))
    assert bits(by_sizes) == bits(steps[NEAR]) == bits(steps[SLOW])


def test_where_nothing_is_known_a_copy_is_for_many_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that the second cache does not hold is copied from 96 rows on, by itself; speeds
    say something else.
    """

    def copies(rows: int) -> bool:
        z = cr.relu(cr.input("x", (rows, 784)) @ cr.input("w", (784, 512)))
        (kernel,) = cr.compile(z, threads=1).report().kernels
        return "w packed" in kernel.chosen

    assert "batch//96" in wide(threads=1).show("loops")
    assert not copies(95)
    assert copies(96)
    monkeypatch.setattr(calibrate, "_measured", lambda: SLOW)
    calibrate.calibrate()
    assert "batch//96" not in wide(threads=1).show("loops")


def test_near_weights_are_copied_where_what_follows_is_long_or_a_factor_lies_across() -> None:
    """Else they are left, as the second cache holds them."""
    x, w = cr.input("x", (64, 300)), cr.parameter("w", (300, 256))
    across, back = cr.input("a", (300, 64)), cr.parameter("w", (256, 300))

    def copies(z: cr.Tensor) -> bool:
        (kernel,) = cr.compile(z, threads=1).report().kernels
        return "w packed" in kernel.chosen

    assert not copies(cr.relu(x @ w + cr.parameter("b", (256,))))
    assert copies(cr.gelu(x @ w))
    assert copies(cr.relu(across.T @ w))
    assert copies(cr.relu(x @ back.T))


def test_of_known_rows_the_model_packs_or_not(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(rows: int, speeds: Speeds) -> set[Choice]:
        monkeypatch.setattr(calibrate, "_measured", lambda: speeds)
        calibrate.calibrate()
        fn = cr.compile(cr.input("x", (rows, 784)) @ cr.input("w", (784, 512)))
        return {*fn._program.compiled.levels.choices.values()}  # type: ignore[attr-defined]

    (choice,) = found(16, NEAR)
    assert choice.packed is False and "should take longer" in choice.why
    assert not found(1000, NEAR)


def test_an_export_does_not_depend_on_this_machine(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = []
    for calibrating in (False, True):
        if calibrating:
            monkeypatch.setattr(calibrate, "_measured", lambda: NEAR)
            calibrate.calibrate()
        x = cr.input("x", ("batch", 784)).node
        graph = Graph(((cr.Tensor(x) @ cr.parameter("W", (784, 512))).node,))
        kept = [n for n in graph.nodes if n.op.role == "leaf" and n is not x]
        made = lower.lower(graph, host_target(), feeds=[x], kept=kept, outputs=["z"])
        loops.append([show(c.program) for c in made.calls])
    assert loops[0] == loops[1]


def first_is_slowest(calls: Sequence[Any], *_: Any) -> list[float]:
    return [1.0 / (i + 1) for i, _ in enumerate(calls)]


def test_what_was_chosen_is_kept_with_the_program(
    folder: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "measure_programs", first_is_slowest)
    first = net(tune={"batch": 96})
    choices = first._engine.compiled.levels.choices  # type: ignore[attr-defined]
    assert choices and all(isinstance(c, Choice) for c in choices.values())

    def never(*_: Any) -> list[float]:
        raise AssertionError("it was timed before")

    monkeypatch.setattr(tune, "measure_programs", never)
    second = net(tune={"batch": 96})
    native = second._engine.compiled.native  # type: ignore[attr-defined]
    assert native.cached
    assert second.show("loops") == first.show("loops") != net().show("loops")
    report = second.report()
    assert any("fastest of those timed" in k.chosen for k in report.kernels)
    first(**data(37)), second(**data(37))
    assert bits(first) == bits(second)


@can_measure
def test_a_handful_of_ways_is_timed(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    measure = tune.measure_programs

    def counted(calls: Sequence[Any], memory: Any, sizes: Mapping[str, int], target: Any) -> Any:
        counts.append(len(calls))
        seconds = measure(calls, memory, sizes, target)
        assert len(seconds) == len(calls) and min(seconds) > 0
        return seconds

    monkeypatch.setattr(tune, "measure_programs", counted)
    x, w = cr.input("x", ("batch", 40)), cr.input("w", (40, 64))
    cr.compile(x @ w, tune=True, threads=1)
    assert len(counts) == 1 and 2 <= counts[0] <= tune.WAYS


def test_a_system_without_a_clock_is_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "can_measure", lambda: False)
    assert tuned([], [], {}, host_target(), SPEEDS) == {}


@pytest.mark.parametrize("given", [{"rows": 3}, {"batch": 0}, 3, "yes", None])
def test_what_is_no_tuning_is_refused(given: Any) -> None:
    with pytest.raises(CompileError, match="tune"):
        net(tune=given)
    x = cr.input("x", ("batch", 4))
    with pytest.raises(CompileError, match="tune"):
        cr.compile(x @ x.T, tune=given)


def test_the_reference_has_nothing_to_tune() -> None:
    with pytest.raises(CompileError, match="nothing to tune"):
        net(tune=True, backend="reference")


def test_a_model_is_tuned(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "measure_programs", first_is_slowest)
    net = cr.nn.Sequential([cr.nn.Dense(70, "relu"), cr.nn.Dense(33)])
    histories = []
    for tuning in (False, True):
        model = cr.Model(net, optimizer=cr.optim.Adam(1e-2), tune=tuning, seed=3)
        d = data(64)
        histories.append(model.fit(d["x"], d["t"], epochs=2, verbose=0).history)
    assert histories[0] == histories[1]


def test_vectors_on_the_stack_lie_in_one_line() -> None:
    """A step took 1.3 times as long where a process's stack began at an odd multiple of 16."""
    if host_target().vector_bytes < 64 or not host_target().arch.startswith("x86"):
        pytest.skip("vectors are no lines here")
    x, y = cr.input("x", ("batch", 32)), cr.input("y", ("batch", 32))
    h = cr.tanh(x @ cr.parameter("u", (32, 32)) + cr.parameter("b", (32,)))
    loss = cr.losses.mse(h @ cr.parameter("w", (32, 32)), y)
    asm = cr.training_step(loss, cr.optim.SGD(0.1), threads=1).show("asm")
    on_stack = [line for line in asm.splitlines() if "(%rsp)" in line and "%zmm" in line]
    assert on_stack, "this net puts nothing there: take another"
    assert all("vmovaps" in line for line in on_stack), on_stack
