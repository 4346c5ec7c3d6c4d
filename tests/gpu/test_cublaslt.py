"""Products that are tuned on a GPU: cuBLASLt, a stub of it over the simulated GPU's memory, and our
tiles; who is chosen, what is refused, and that nothing of it happens unasked.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
from chainrule.driver import gpu_tune
from chainrule.driver.tuning import Tuning
from chainrule_runtime.errors import DeviceError
from chainrule_runtime.gpu import blas as blas_module
from chainrule_runtime.gpu.blas import Blas
from chainrule_runtime.gpu.commands import ProductRun
from chainrule_runtime.gpu.driver import CudaGpu

CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler builds the stub")
STUB = Path(__file__).with_name("stub") / "cublaslt.c"


class Stub:
    """The library, and what it was told to do wrong."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def number(self, name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(self.library, name)

    def fail(self, word: str, status: int) -> None:
        (ctypes.c_char * 64).in_dll(self.library, "fails").value = word.encode()
        self.number("fails_with").value = status

    @property
    def multiplied(self) -> int:
        return self.number("multiplied").value


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("stub") / "libcublasLt.so"
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([CC or "cc", *strict, "-o", out, STUB, "-lm"], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture
def stub(library: ctypes.CDLL, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stub as the simulated GPU's library, which is faster than our kernels, all of which take
    as long.
    """
    made = Stub(library)
    gc.collect()  # what tests before this one left is given back now, not while this one counts
    for name in ("fails_with", "wrong", "knows_nothing", "alive", "multiplied"):
        made.number(name).value = 0
    made.fail("", 0)

    def is_memory(at: int, size: int) -> int:
        try:
            gpu.bytes_at(at, size)
        except DeviceError:
            return 0
        return 1

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)
    made.callback = kind(is_memory)  # type: ignore[attr-defined]
    place = ctypes.c_void_p.in_dll(library, "is_memory")
    place.value = ctypes.cast(made.callback, ctypes.c_void_p).value  # type: ignore[attr-defined]
    gpu.blas = Blas(library)

    def timed(commands: Sequence[Callable[[], None]]) -> list[float]:
        spent = []
        for command in commands:
            before = made.multiplied
            command()
            spent.append(2e-3 if made.multiplied == before else 1e-3)
        return spent

    monkeypatch.setattr(gpu, "timed", timed)
    monkeypatch.setattr(gpu_tune, "TURNS", 1)
    return made


def rng_of(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def tuning(fn: Any) -> Tuning:
    found = fn.report().tuning
    assert isinstance(found, Tuning)
    return found


def run(kind: str, x: np.ndarray, y: np.ndarray, out: np.ndarray, gpu: Any) -> ProductRun:
    """A product of arrays on the GPU, each where its own strides say."""
    places, steps = [], []
    for a in (x, y, out):
        base = a
        while base.base is not None:
            base = base.base
        at = gpu.allocate(base.nbytes)
        gpu.upload(at, np.ascontiguousarray(base))
        away = a.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        places.append(at + away)
        steps.append(tuple(s // a.itemsize for s in a.strides))
    count, rows, terms = x.shape
    sizes = count, rows, y.shape[2], terms
    return ProductRun(kind, *sizes, tuple(places), tuple(steps))  # type: ignore[arg-type]


LAYOUTS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "by rows": lambda g, m, n: rng_of(g, m, n),
    "by columns": lambda g, m, n: rng_of(g, n, m).transpose(0, 2, 1),
    "part of wider rows": lambda g, m, n: rng_of(g, m, n + 5)[:, :, 4 : n + 4],
    "groups inside": lambda g, m, n: rng_of(m, g, n).transpose(1, 0, 2),
    "one for all groups": lambda g, m, n: np.broadcast_to(rng_of(m, n), (g, m, n)),
}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("sizes", [(1, 5, 7, 3), (3, 1, 6, 4), (2, 6, 1, 5), (2, 4, 3, 1)])
def test_matrices_may_lie_in_any_plain_way(
    first: str, second: str, sizes: tuple[int, int, int, int], gpu: Any, stub: Stub
) -> None:
    g, m, n, k = sizes
    x, y = LAYOUTS[first](g, m, k), LAYOUTS[second](g, k, n)
    room = gpu.allocate(1 << 20), 1 << 20
    for whole in (np.zeros((g, m, n), np.float32), np.zeros((g, n, m), np.float32)):
        out = whole if whole.shape == (g, m, n) else whole.transpose(0, 2, 1)
        product = run("float32", x, y, out, gpu)
        gpu.multiply(product, room)
        gpu.download(whole, product.places[2])
        np.testing.assert_allclose(out, x @ y, rtol=1e-5, atol=1e-5)


def test_kinds_of_numbers(gpu: Any, stub: Stub) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    room = gpu.allocate(1 << 20), 1 << 20
    for kind, dtype, result, near in [
        ("float64", np.float64, np.float64, 1e-14),
        ("bfloat16", ml_dtypes.bfloat16, np.float32, 1e-6),
        ("tf32", np.float32, np.float32, 2e-3),
    ]:
        x, y = rng_of(1, 9, 33, dtype=dtype), rng_of(1, 33, 8, dtype=dtype)
        out = np.zeros((1, 9, 8), result)
        product = run(kind, x, y, out, gpu)
        gpu.multiply(product, room)
        gpu.download(out, product.places[2])
        want = x.astype(np.float64) @ y.astype(np.float64)
        apart = np.abs(out - want).max()
        assert apart < near * 10
        assert (apart > 1e-5) == (kind == "tf32")


def test_each_failure_is_told(gpu: Any, stub: Stub) -> None:
    x, y, out = rng_of(1, 4, 4), rng_of(1, 4, 4), rng_of(1, 4, 4)
    product, room = run("float32", x, y, out, gpu), (gpu.allocate(1 << 20), 1 << 20)
    for word, status, code in [
        ("cublasLtMatmulDescCreate", 3, "ALLOC_FAILED"),
        ("cublasLtMatrixLayoutSetAttribute", 7, "INVALID_VALUE"),
        ("cublasLtMatmulAlgoGetHeuristic", 15, "NOT_SUPPORTED"),
        ("cublasLtMatmul", 13, "EXECUTION_FAILED"),
        ("cublasLtMatmul", 99, "99"),
    ]:
        stub.fail(word, status)
        with pytest.raises(DeviceError, match=f"CUBLAS_STATUS_{code} to {word}"):
            gpu.multiply(product, room)
    stub.fail("", 0)
    with pytest.raises(DeviceError, match="INVALID_VALUE to cublasLtMatmul"):
        gpu.multiply(product, (room[0] + 8, 1 << 19))  # workspace begins at a multiple of 256
    stub.fail("cublasLtCreate", 1)
    with pytest.raises(DeviceError, match="NOT_INITIALIZED to cublasLtCreate"):
        Blas(stub.library)


def test_plans_are_made_once_and_given_back(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas_module, "_PLANS", 3)
    room = gpu.allocate(1 << 20), 1 << 20
    for n in (1, 2, 3, 1, 2, 3, 4):
        arrays = rng_of(1, n, 4), rng_of(1, 4, 4), rng_of(1, n, 4)
        gpu.multiply(run("float32", *arrays, gpu), room)
    assert stub.number("alive").value == 4  # of the last: a descriptor and three layouts


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blas_module, "_places", lambda name: [str(tmp_path / name)])
    blas_module.find.cache_clear()
    with pytest.raises(DeviceError, match="cuBLASLt is not installed"):
        blas_module.find(12080)


def test_another_library_is_tried_where_one_does_not_do(
    monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL, stub: Stub
) -> None:
    """One that lacks a function, be it that for its version, or does not start, is no end."""

    class Lacks:
        def __init__(self, word: str) -> None:
            self.word = word

        def __getattr__(self, word: str) -> Any:
            if word == self.word:
                raise AttributeError(word)
            return getattr(library, word)

    libraries = {"old": Lacks("cublasLtGetVersion"), "odd": Lacks("cublasLtMatmul"), "it": library}
    monkeypatch.setattr(blas_module.ctypes, "CDLL", libraries.__getitem__)

    def find(*found: str) -> Blas:
        monkeypatch.setattr(blas_module, "_places", lambda name: found if "12" in name else ())
        blas_module.find.cache_clear()
        try:
            return blas_module.find(12080)
        finally:
            blas_module.find.cache_clear()

    for found in (("old", "it"), ("odd", "old", "it")):
        assert find(*found).name == "cuBLASLt 12.8.5"
    with pytest.raises(DeviceError, match="this cuBLASLt has no cublasLtGetVersion"):
        find("old", "odd")


def test_all_of_a_product_but_itself_is_ready_before_it_is_recorded(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handles and algorithms are refused while a stream is captured."""

    class Function:
        def __init__(self, word: str) -> None:
            self.word = word

        def __call__(self, *given: Any) -> int:
            api.asked.append((self.word, *given))
            if self.word == "cublasLtMatmulAlgoGetHeuristic":
                given[-1]._obj.value = 1
            return 130100 if self.word == "cublasLtGetVersion" else 0

    class Library:
        def __getattr__(self, word: str) -> Function:
            setattr(self, word, Function(word))
            made: Function = self.__dict__[word]
            return made

    monkeypatch.setattr(blas_module, "_places", lambda name: [name])
    monkeypatch.setattr(blas_module.ctypes, "CDLL", lambda path: Library())
    monkeypatch.setattr(blas_module, "_PLANS", 2)
    monkeypatch.setattr(api, "cuStreamCreate", lambda flags: (0, 77), raising=False)
    blas_module.find.cache_clear()
    gpu = CudaGpu()
    places, steps = (4096, 8192, 12288), ((0, 4, 1),) * 3
    runs = [ProductRun("float32", 1, n, 4, 4, places, steps) for n in (4, 8, 12)]  # type: ignore[arg-type]
    ready = [gpu.multiplier(run, (256, 1 << 20)) for run in runs]
    made = len(api.asked)
    gpu.record(lambda: [ask() for ask in ready])  # type: ignore[arg-type, return-value]
    blas_module.find.cache_clear()
    assert api.words[:made].count("cublasLtMatmul") == 3  # so that their kernels are there
    assert api.words[made : made + 5] == [
        "cuStreamBeginCapture", *["cublasLtMatmul"] * 3, "cuStreamEndCapture",
    ]  # fmt: skip
    assert all(call[-1] == 77 for call in api.asked if call[0] == "cublasLtMatmul")


def test_a_library_is_looked_for_in_packages_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: ctypes.CDLL
) -> None:
    place = tmp_path / "nvidia" / "cublas" / "lib"
    place.mkdir(parents=True)
    shutil.copy(library._name, place / "libcublasLt.so.12")
    monkeypatch.syspath_prepend(str(tmp_path))
    blas_module.find.cache_clear()
    assert blas_module.find(12080).name == "cuBLASLt 12.8.5"
    blas_module.find.cache_clear()


def layer(
    rows: int | str = "batch", tune: Any = True, precision: str | None = None
) -> tuple[Any, dict[str, np.ndarray], Any]:
    x, w, b = cr.input("x", (rows, 11)), cr.input("w", (11, 18)), cr.input("b", (18,))
    fn = cr.compile(cr.relu(x @ w + b), backend="cuda", tune=tune, precision=precision)
    feeds = {"x": rng_of(9, 11), "w": rng_of(11, 18), "b": rng_of(18)}
    return fn, feeds, np.maximum(feeds["x"] @ feeds["w"] + feeds["b"], 0)


@pytest.mark.parametrize("rows", ["batch", 9])
def test_the_library_multiplies_where_it_is_faster(rows: int | str, gpu: Any, stub: Stub) -> None:
    fn, feeds, want = layer(rows, tune={"batch": 9} if rows == "batch" else True)
    before = stub.multiplied
    np.testing.assert_allclose(fn(**feeds), want, rtol=1e-5, atol=1e-5)
    assert stub.multiplied == before + 1
    assert gpu.calls[-6:].count("play") == 1  # one graph, in which product and map stand
    (product,) = tuning(fn).products
    assert product.ways[product.chosen].what == "cuBLASLt"
    assert product.ways[0].what == "our own, by sizes" and product.ways[0].seconds
    text = str(fn.report())
    assert "cuBLASLt" in text and "chosen" in text and "cuBLASLt 12.8.5" in text


def test_nothing_of_it_happens_unasked(gpu: Any, stub: Stub) -> None:
    fn, feeds, _ = layer(tune=False)
    fn(**feeds)
    assert stub.multiplied == 0 and "multiply" not in gpu.calls
    assert fn.report().tuning is None


def test_a_choice_is_found_again(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    layer()
    before = stub.multiplied
    fn, feeds, want = layer()
    assert stub.multiplied == before  # nothing was timed
    np.testing.assert_allclose(fn(**feeds), want, rtol=1e-5, atol=1e-5)
    (product,) = tuning(fn).products
    assert product.ways[product.chosen].what == "cuBLASLt"
    gpu.version = 12090  # another driver
    layer()
    assert stub.multiplied > before + 1


def test_what_could_not_be_timed_is_timed_the_next_time(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path / "cache"))
    room, gpu.room = gpu.room, 0  # others have it
    fn, *_ = layer()
    (product,) = tuning(fn).products
    assert all(way.seconds is None and "no room" in way.note for way in product.ways)
    gpu.room = room
    fn, *_ = layer()
    (product,) = tuning(fn).products
    assert product.ways[product.chosen].what == "cuBLASLt"


def test_a_wrong_library_is_refused(gpu: Any, stub: Stub) -> None:
    stub.number("wrong").value = 1
    x, y = cr.input("x", (20, 10)), cr.input("y", (10, 8))
    fn = cr.compile(x @ y, backend="cuda", tune=True)
    (product,) = tuning(fn).products
    (way,) = (w for w in product.ways if w.what == "cuBLASLt")
    assert way.seconds is None and way.note.startswith("refused: 1 of 160 numbers are off by more")
    assert product.chosen == 0
    before = stub.multiplied
    fn(x=rng_of(20, 10), y=rng_of(10, 8))
    assert stub.multiplied == before


@pytest.mark.parametrize("knows_nothing", [0, 1])
def test_a_library_that_fails_is_noted(knows_nothing: int, gpu: Any, stub: Stub) -> None:
    stub.number("knows_nothing").value = knows_nothing
    stub.fail("" if knows_nothing else "cublasLtMatmul", 14)
    fn, feeds, want = layer()
    (product,) = tuning(fn).products
    (way,) = (w for w in product.ways if w.what == "cuBLASLt")
    assert way.seconds is None and "CUBLAS_STATUS" in way.note and product.chosen == 0
    np.testing.assert_allclose(fn(**feeds), want, rtol=1e-5, atol=1e-5)


def test_where_there_is_no_library_tiles_are_timed(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(commands: Sequence[Callable[[], None]]) -> list[float]:
        for command in commands:
            command()
        return [1e-3 / (1 + i) for i in range(len(commands))]

    monkeypatch.setattr(gpu, "timed", timed)
    monkeypatch.setattr(gpu_tune, "TURNS", 1)
    monkeypatch.setattr(gpu_tune, "MOST", 1)
    fn, feeds, _ = layer()
    usual, *_ = layer(tune=False)
    (product,) = tuning(fn).products
    notes = {w.what: w.note for w in product.ways}
    assert notes.pop("cuBLASLt") == "cuBLASLt is not installed"
    assert set(notes.values()) == {""} and len(notes) == 4  # ours, and three other tiles
    assert product.chosen == 3 and "p" in fn.show("loops")
    assert fn.show("loops") != usual.show("loops")
    np.testing.assert_array_equal(fn(**feeds), usual(**feeds))  # tiles do not show in the bits


def test_where_there_is_no_gpu_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90")
    fn, *_ = layer()
    found = tuning(fn)
    assert not found.products and found.why
    assert "no product was timed: " in str(fn.report())


def test_code_for_another_gpu_is_not_timed(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90")
    fn, *_ = layer()
    assert tuning(fn).why == "the GPU here is sm_80, and code is for sm_90"
    assert stub.multiplied == 0


def test_what_a_library_can_not_take_is_noted(gpu: Any, stub: Stub) -> None:
    x, y = cr.input("x", (4, 5, 3)), cr.input("y", (5, 6, 3))  # groups are neighbours, not rows
    fn = cr.compile(cr.einsum("abg,bcg->acg", x, y), backend="cuda", tune=True)
    (product,) = tuning(fn).products
    assert {w.what: w.note for w in product.ways}["cuBLASLt"] == "factors lie in no plain way"


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precisions(precision: str, gpu: Any, stub: Stub) -> None:
    x, y = cr.input("x", (16, 64)), cr.input("y", (64, 24))
    fn = cr.compile(cr.relu(x @ y), backend="cuda", tune=True, precision=precision)
    feeds = {"x": rng_of(16, 64), "y": rng_of(64, 24)}
    before = stub.multiplied
    np.testing.assert_allclose(
        fn(**feeds), np.maximum(feeds["x"] @ feeds["y"], 0), rtol=0.05, atol=0.1
    )
    assert stub.multiplied == before + 1, tuning(fn)


@pytest.mark.parametrize(
    "spec", ["gab,gbc->gac", "agb,gbc->cga", "ab,bc->ca", "ba,cb->ac", "abd,bdf->af"]
)
def test_any_plain_product_may_be_the_librarys(spec: str, gpu: Any, stub: Stub) -> None:
    sizes = {"g": 3, "a": 5, "b": 6, "c": 7, "d": 4, "f": 9}
    first, second = spec.partition("->")[0].split(",")
    x, y = (cr.input(n, [sizes[c] for c in t]) for n, t in (("x", first), ("y", second)))
    fn = cr.compile(cr.einsum(spec, x, y), backend="cuda", tune=True)
    feeds = {"x": rng_of(*x.shape), "y": rng_of(*y.shape)}
    before = stub.multiplied
    want = np.einsum(spec, feeds["x"], feeds["y"])
    np.testing.assert_allclose(fn(**feeds), want, rtol=1e-5, atol=1e-5)
    assert stub.multiplied > before, tuning(fn)


def net(tune: Any, backend: str = "cuda") -> cr.TrainingStep:
    x, y = cr.input("x", ("batch", 20)), cr.input("y", ("batch",), dtype="int32")
    w, b = cr.parameter("W", (20, 30)), cr.parameter("b", (30,))
    v = cr.parameter("V", (30, 5))
    loss = cr.losses.cross_entropy(cr.tanh(x @ w + b) @ v, y)
    return cr.training_step(loss, cr.optim.Adam(1e-2), backend=backend, tune=tune)


def test_training_with_the_library(gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tune, "SHARE", 0.0)
    data = {"x": rng_of(20, 20), "y": np.arange(20, dtype=np.int32) % 5}
    monkeypatch.setattr(gpu_tune, "is_tiny", lambda built: False)
    step = net({"batch": 8})
    before = stub.multiplied
    losses = step.run(batch_size=8, shuffle=False, epochs=2, **data)
    # six steps, and once before the last minibatch's are recorded, which have a size of their own
    assert stub.multiplied - before == 7 * len(tuning(step).products)
    want = net(False, "cpu").run(batch_size=8, shuffle=False, epochs=2, **data)
    np.testing.assert_allclose(losses, want, rtol=1e-4)


def test_a_refused_step_changes_nothing(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tune, "SHARE", 0.0)
    monkeypatch.setattr(gpu_tune, "is_tiny", lambda built: False)
    step = net({"batch": 8})
    kept = {n: np.array(a) for n, a in step.parameters.items()}
    with pytest.raises(cr.errors.ChainruleError):
        step(x=np.full((8, 20), np.nan, np.float32), y=np.zeros(8, np.int32))
    for name, array in step.parameters.items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_step_that_one_kernel_goes_through_is_left_as_it_is(gpu: Any, stub: Stub) -> None:
    x, w = cr.input("x", ("batch", 3)), cr.parameter("w", (3, 2))
    step = cr.training_step(cr.mean((x @ w) ** 2), cr.optim.SGD(0.1), backend="cuda", tune=True)
    assert tuning(step).why == "one kernel goes through all steps of a run"
    assert stub.multiplied == 0


def test_a_parameter_that_is_a_product_waits_for_checks(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tune, "is_tiny", lambda built: False)
    x, s = cr.input("x", (6, 6)), cr.state("S", (6, 6), init="ones")
    loss = cr.sum(cr.parameter("w", (3,)) ** 2) + cr.sum(x) * 0.0
    step = cr.training_step(loss, cr.optim.SGD(0.1), updates={s: x @ x}, backend="cuda", tune=True)
    data = rng_of(6, 6)
    before = stub.multiplied
    step(x=data)
    assert stub.multiplied > before
    kept = np.array(step.parameters["S"]) if "S" in step.parameters else None
    with pytest.raises(cr.errors.ChainruleError):
        step(x=np.full((6, 6), np.inf, np.float32))
    if kept is not None:
        np.testing.assert_allclose(kept, data @ data, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(step.parameters["S"], kept)


def test_no_terms_are_zeros(gpu: Any, stub: Stub) -> None:
    x, y = cr.input("x", (4, "n")), cr.input("y", ("n", 6))
    fn = cr.compile(x @ y, backend="cuda", tune={"n": 8})
    assert tuning(fn).products[0].chosen
    before = stub.multiplied
    found = fn(x=np.zeros((4, 0), np.float32), y=np.zeros((0, 6), np.float32))
    np.testing.assert_array_equal(found, np.zeros((4, 6)))
    assert stub.multiplied == before


def test_a_gpu_that_is_lost_meanwhile_is_told(
    gpu: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(commands: Sequence[Callable[[], None]]) -> list[float]:
        raise DeviceError("the GPU is lost", lost=True)

    monkeypatch.setattr(gpu, "timed", lost)
    with pytest.raises(cr.errors.ChainruleError, match="the GPU is lost"):
        layer()


def test_no_room_to_time_is_noted(gpu: Any, stub: Stub) -> None:
    gpu.room = 1024
    fn, *_ = layer()
    (product,) = tuning(fn).products
    assert product.chosen == 0 and all("no room" in w.note for w in product.ways)
    assert not gpu.blocks
