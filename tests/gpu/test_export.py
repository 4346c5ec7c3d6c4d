"""Steps exported for a GPU: their C compiles strictly, and trains on a simulated GPU to the CPU's
bits, through a stand-in for CUDA's driver interface.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli
from chainrule.codegen import ptx, ptxas
from chainrule.export import Artifact, gpu_selftest
from chainrule.export.artifact import GPU_FORMATS
from chainrule.export.gpu_files import gpu_formats
from chainrule.export.model import AT_EPOCH
from chainrule.loops import grouped
from chainrule.ops import philox
from chainrule_runtime.manifest import Tensor

CC, CXX = shutil.which("cc"), shutil.which("c++")
STREAM, SEED, ROWS, CLASSES = 0x1234, 5, 22, 3


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


c_driver = _beside("c_driver")
#: as it is, before a fixture stands in for it
PTX = ptx.GpuModule.ptx


def small() -> cr.TrainingStep:
    """Dropout, a metric, an output; what is drawn, given as an array and as one number."""
    x, y = cr.input("x", ("batch", 6)), cr.input("y", ("batch",), dtype="int32")
    scale = cr.parameter("scale", (8,), init=np.linspace(0.5, 1.5, 8, dtype=np.float32))
    w = cr.parameter("W", (6, 8), init=cr.init.truncated_normal(0.0, 0.3))
    h = cr.dropout(cr.tanh(x @ w) * scale, 0.3)
    z = h @ cr.parameter("V", (8, CLASSES)) + cr.parameter("b", (CLASSES,), init=cr.init.ones())
    hit = cr.mean(cr.astype(cr.equal(cr.argmax(z, axis=1), y), "float32"))
    return cr.training_step(
        cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), metrics={"accuracy": hit},
        outputs=z.named("z"), seed=SEED,
    )  # fmt: skip


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 6), np.float32)
    return {"x": x, "y": rng.integers(0, CLASSES, ROWS).astype(np.int32)}


@dataclass
class OnGpu:
    """An exported step, its functions in C, and the memory they are given."""

    artifact: Artifact
    library: ctypes.CDLL
    driver: Any

    def __post_init__(self) -> None:
        told = self.artifact.certificate
        self.name, self.bytes = self.artifact.name, told["state_bytes"]
        self.net = ctypes.create_string_buffer(16 + 8 * len(told["kernels"]))
        self.state = self.driver.room(self.bytes)
        self.room = told["workspace_bytes"] + 4096
        self.workspace = self.driver.room(self.room)
        self.code = told["codes"]

    def open(self) -> int:
        image = self.artifact.files[f"{self.name}.ptx"].read_bytes() + b"\0"
        return self("open", self.net, image)

    def function(self, word: str) -> Any:
        return getattr(self.library, f"{self.name}_{word}")

    def __call__(self, word: str, *given: Any) -> Any:
        """A function; whole numbers are words of 8 bytes."""
        return self.function(word)(
            *(ctypes.c_uint64(g) if isinstance(g, (int, np.integer)) else g for g in given)
        )

    def on_state(self, word: str, *given: Any, state: int | None = None) -> int:
        """A function of the kernels, the stream and the state."""
        return self(word, self.net, STREAM, state or self.state, self.bytes, *given)

    def working(self, word: str, *given: Any) -> int:
        return self.on_state(word, self.workspace, self.room, *given)

    def status(self) -> tuple[int, int]:
        done = ctypes.c_size_t(99)
        code = self("status", STREAM, self.state, self.bytes, ctypes.byref(done))
        return code, done.value

    def saved(self) -> bytes:
        out = ctypes.create_string_buffer(self.bytes)
        assert self("save", STREAM, self.state, self.bytes, out, self.bytes) == 0
        return out.raw

    def tensors(self) -> dict[str, np.ndarray]:
        content = self.saved()
        return {
            t["name"]: np.frombuffer(content, t["dtype"], int(np.prod(t["shape"])), t["offset"])
            .reshape(t["shape"])
            for t in self.artifact.certificate["tensors"]
        }  # fmt: skip

    def same(self, step: cr.TrainingStep) -> None:
        """It has the step's tensors, bit for bit."""
        wanted = step.state_dict()
        for name, array in self.tensors().items():
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


_kept: dict[Any, tuple[Artifact, ctypes.CDLL, list[tuple[ptx.GpuModule, str]]]] = {}


def loaded(
    make: Any, folder: Path, gpu: Any, patch: pytest.MonkeyPatch, target: str = "sm_80"
) -> OnGpu:
    """A step exported, once, and its kernels loaded, on a GPU that knows them by their PTX."""
    if CC is None:
        pytest.skip("no C compiler is here")
    if make not in _kept:
        modules: list[tuple[ptx.GpuModule, str]] = []

        def translate(module: ptx.GpuModule) -> str:
            modules.append((module, PTX(module)))
            return modules[-1][1]

        patch.setattr(ptx.GpuModule, "ptx", translate)
        art = make().export(folder, name="net", target=target, max_batch=16, examples=("c",))
        library = c_driver.library(art.files["net.c"], folder, CC)
        library.net_strerror.restype = ctypes.c_char_p
        for word in ("workspace_bytes", "steps_workspace_bytes"):
            if hasattr(library, f"net_{word}"):
                getattr(library, f"net_{word}").restype = ctypes.c_size_t
        _kept[make] = art, library, modules
    art, library, modules = _kept[make]
    for module, text in modules:
        gpu.knows(module, text)
    on_gpu = OnGpu(art, library, c_driver.Driver(gpu, library))
    assert on_gpu.open() == 0
    return on_gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def made(folder: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> OnGpu:
    """The small net on a simulated GPU."""
    return loaded(small, folder, gpu, monkeypatch)


def batch(at: int, size: int) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(a[at : at + size]) for name, a in data().items()}


def trains_as_the_step_does(net: OnGpu) -> None:
    """Init, steps of two sizes, prediction and loss: the bits of the step on the CPU."""
    step, driver = small(), net.driver
    assert net.on_state("init", SEED) == 0
    net.same(step)
    for at, size in ((0, 16), (16, 6)):
        feeds = batch(at, size)
        x, y, loss, hit = (driver.put(a) for a in (*feeds.values(), *np.zeros((2, 1), "f4")))
        assert net.working("step", size, x, y, loss, hit) == 0
        assert net.status() == (0, 0)
        assert driver.get(loss, (), "f4") == np.float32(step(**feeds))
        assert driver.get(hit, (), "f4") == np.float32(step.metrics["accuracy"])
    assert net.working("step", size, x, y, loss, 0) == 0  # the metric is wanted by nobody
    step(**feeds)
    net.same(step)
    z = driver.put(np.zeros((6, CLASSES), np.float32))
    assert net.working("predict", 6, x, z) == 0
    np.testing.assert_array_equal(driver.get(z, (6, CLASSES), "f4"), step.predict(x=feeds["x"]))
    net.same(step)
    assert driver.streams == {STREAM}


def test_a_simulated_gpu_trains_it_to_the_bits_of_the_cpu(made: OnGpu) -> None:
    trains_as_the_step_does(made)


def test_so_does_its_ptx(folder: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trains_as_the_step_does(loaded(small, folder, emulator, monkeypatch))


def paneled(backend: str = "cpu") -> cr.TrainingStep:
    """A layer whose products are all large enough for panels, if one tile is."""
    x = cr.input("x", ("batch", 64))
    w = cr.parameter("W", (64, 72), init=cr.init.normal(0.0, 0.3))
    return cr.training_step(
        cr.mean((x @ w) ** 2), cr.optim.SGD(0.1), precision="bfloat16", backend=backend, seed=SEED
    )


def test_panels_are_given_their_shared_memory_by_c(
    tmp_path: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits are those of the step in Python on the same GPU."""
    monkeypatch.setattr(grouped, "TILES", 1)
    monkeypatch.setattr(grouped, "PANELS", 1)
    monkeypatch.setenv("CHAINRULE_GPU", "sm_90a")
    net = loaded(paneled, tmp_path, emulator, monkeypatch, "sm_90a")
    monkeypatch.setattr(ptx.GpuModule, "ptx", PTX)
    assert net.driver.allowed and "wgmma" in (tmp_path / "net.ptx").read_text()
    assert "of compute capability 9.0 alone (sm_90a)" in (tmp_path / "net.h").read_text()
    step = paneled("cuda")
    assert "wgmma" in step.show("ptx") and net.on_state("init", SEED) == 0
    x = np.random.default_rng(0).standard_normal((16, 64), np.float32)
    loss = net.driver.put(np.zeros(1, np.float32))
    assert net.working("step", 16, net.driver.put(x), loss) == 0
    assert net.driver.get(loss, (), "f4") == np.float32(step(x=x))
    net.same(step)


@pytest.mark.parametrize("size", [pytest.param(16, marks=pytest.mark.long), 7])
def test_an_epoch_takes_rows_in_their_order(made: OnGpu, size: int) -> None:
    made.on_state("init", SEED)
    step, rows = small(), data()
    x, y = map(made.driver.put, rows.values())
    order = np.random.default_rng(1).permutation(ROWS)
    losses = made.driver.put(np.zeros(-(-ROWS // size), np.float32))
    need = made("steps_workspace_bytes", ROWS, size)
    assert 0 < need <= made.room
    given = ROWS, size, made.driver.put(order), x, y, losses
    assert made.on_state("steps", made.workspace, need - 1, *given) == made.code["ERROR_ROOM"]
    assert made.on_state("steps", made.workspace, need, *given) == 0
    assert made.status() == (0, -(-ROWS // size))
    wanted = step.run(**{n: a[order] for n, a in rows.items()}, batch_size=size, shuffle=False)
    np.testing.assert_array_equal(made.driver.get(losses, wanted.shape, "f4"), wanted)
    made.same(step)


@pytest.mark.parametrize("rows", [1, 2, 22, 64, pytest.param(300, marks=pytest.mark.long)])
def test_shuffle_gives_the_orders_of_the_compiler(made: OnGpu, rows: int) -> None:
    made.on_state("init", SEED)
    order = made.driver.put(np.full(2 * rows, -1))
    given = order, 2 * rows - 1, rows
    assert made.on_state("shuffle", *given) == made.code["ERROR_ROOM"]
    for epoch in range(2):
        assert made.on_state("shuffle", order, 2 * rows, rows) == 0
        assert made.status() == (0, 0)
        wanted = philox.permutation(SEED, epoch, rows)
        np.testing.assert_array_equal(made.driver.get(order, (rows,), "i8"), wanted)


def test_shuffled_epochs_train_as_run_does(made: OnGpu) -> None:
    made.on_state("init", SEED)
    step, rows, driver = small(), data(), made.driver
    x, y, order = map(driver.put, (*rows.values(), np.zeros(2 * ROWS, np.int64)))
    for _ in range(2):
        assert made.on_state("shuffle", order, 2 * ROWS, ROWS) == 0
        assert made.working("steps", ROWS, 9, order, x, y, 0) == 0
    assert made.status() == (0, 3)
    step.run(**rows, batch_size=9, epochs=2)
    made.same(step)


def test_the_last_epoch_that_has_32_bits_is_the_last(made: OnGpu) -> None:
    made.on_state("init", SEED)
    made.driver.gpu.bytes_at(made.state + AT_EPOCH, 8)[:] = [0, 0, 0, 0, 1, 0, 0, 0]
    order = made.driver.put(np.zeros(8, np.int64))
    assert made.on_state("shuffle", order, 8, 4) == 0
    assert made.status()[0] == made.code["ERROR_VALUE"]


def test_tensors_by_number_and_name(made: OnGpu) -> None:
    made.on_state("init", SEED)
    step, told, library = small(), made.artifact.certificate, made.library
    library.net_tensor_name.restype = library.net_describe.restype = ctypes.c_char_p
    library.net_tensor_bytes.restype = ctypes.c_size_t
    state = ctypes.c_uint64(STREAM), ctypes.c_uint64(made.state), ctypes.c_size_t(made.bytes)
    names = [t["name"] for t in told["tensors"]]
    header = made.artifact.files["net.h"].read_text()
    assert library.net_tensors() == len(names)
    for i, name in enumerate(names):
        array = np.ascontiguousarray(step.state_dict()[name])
        assert (
            library.net_tensor_name(i) == name.encode() and library.net_tensor(name.encode()) == i
        )
        assert re.search(rf"#define NET_TENSOR_\w+ {i} /\* {re.escape(name)}: ", header)
        assert library.net_tensor_bytes(i) == array.nbytes
        out, size = np.zeros_like(array), ctypes.c_size_t(array.nbytes)
        assert library.net_get(*state, i, out.ctypes.data_as(ctypes.c_void_p), size) == 0
        np.testing.assert_array_equal(out, array)
        given = np.full_like(array, 3)
        assert library.net_set(*state, i, given.ctypes.data_as(ctypes.c_void_p), size) == 0
        np.testing.assert_array_equal(made.tensors()[name], given)
        short = ctypes.c_size_t(array.nbytes - 1)
        for move in (library.net_get, library.net_set):
            assert (
                move(*state, i, out.ctypes.data_as(ctypes.c_void_p), short)
                == made.code["ERROR_NAME"]
            )
            assert move(*state, i, None, size) == made.code["ERROR_NULL"]
            for outside in (-1, len(names)):
                place = out.ctypes.data_as(ctypes.c_void_p)
                assert move(*state, outside, place, size) == made.code["ERROR_NAME"]
    assert library.net_tensor(b"none") == library.net_tensor(None) == -1
    assert library.net_tensor_name(-1) is library.net_tensor_name(len(names)) is None
    assert json.loads(library.net_describe())["tensors"] == told["tensors"]
    made.driver.gpu.bytes_at(made.state, 8)[:] = 0
    assert library.net_get(*state, 0, None, ctypes.c_size_t(0)) == made.code["ERROR_STATE"]


def test_the_self_test_finds_what_the_processor_did(made: OnGpu) -> None:
    made.library.net_selftest_bytes.restype = ctypes.c_size_t
    size = made.library.net_selftest_bytes()
    memory = made.driver.room(size)

    def tested(room: int = size) -> int:
        return int(made("selftest", made.net, STREAM, memory, room))

    assert tested() == 0
    assert tested(size - 1) == made.code["ERROR_ROOM"]
    whole = made.driver.gpu.run

    def off(
        launch: Any, blocks: int, threads: int, arguments: tuple[int, ...], shared: int = 0
    ) -> None:
        """A GPU that draws a wrong beginning."""
        whole(launch, blocks, threads, arguments, shared)
        if launch.program.name == "begin_truncated_float32_1":
            made.driver.gpu.bytes_at(arguments[3], 4 * 48).view(np.float32)[:] *= 1.5

    made.driver.gpu.run = off
    assert tested() == made.code["ERROR_SELFTEST"]


def test_so_does_its_ptx_in_the_self_test(
    folder: Path, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = loaded(small, folder, emulator, monkeypatch)
    net.library.net_selftest_bytes.restype = ctypes.c_size_t
    size = net.library.net_selftest_bytes()
    assert net("selftest", net.net, STREAM, net.driver.room(size), size) == 0


ON_THE_HOST = """#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef void *CUstream;
typedef char *CUdeviceptr;
enum { NET_OK };
#define DO_(call) call
static int32_t told_(int code) { return code; }
static int cuStreamSynchronize(CUstream s) { (void)s; return 0; }
static int cuMemcpyHtoDAsync(char *to, const void *from, size_t n, CUstream s)
{ (void)s; memcpy(to, from, n); return 0; }
MADE_UP
static char out[BYTES];
int main(void)
{
    make_up_(0, out, 3000, KIND, ITEM, LEAST, ABOVE);
    return fwrite(out, 1, sizeof out, stdout) != sizeof out;
}
"""


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32", "int64", "bool"])
def test_c_makes_up_the_same_data(dtype: str, tmp_path: Path) -> None:
    if CC is None:
        pytest.skip("no C compiler is here")
    least, above = bounds = (0, 2) if dtype == "bool" else (3, 14)
    wanted = gpu_selftest.made_up(Tensor("x", dtype, (3000,), 0), {}, bounds)
    given = {"MADE_UP": gpu_selftest.MADE_UP.replace("@U", "NET"), "BYTES": wanted.nbytes}
    given |= {"KIND": "'f'" if "float" in dtype else "'i'", "ITEM": wanted.itemsize}
    text = ON_THE_HOST
    for word, value in (given | {"LEAST": least, "ABOVE": above}).items():
        text = text.replace(word, str(value))
    source = tmp_path / "made.c"
    source.write_text(text)
    subprocess.run([CC, "-std=c99", "-O1", "-Wall", "-o", tmp_path / "made", source], check=True)
    done = subprocess.run([tmp_path / "made"], capture_output=True, check=True)
    assert done.stdout == wanted.tobytes()


def test_the_example_trains(made: OnGpu, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = made.artifact.files
    assert CC is not None
    more = files["net.c"], "-Dmain=example_main"
    example = tmp_path / "example.c"
    text = files["net_example.c"].read_text()
    example.write_text(text.replace("STEPS = 100", "STEPS = 6"))
    assert example.read_text() != text
    library = c_driver.library(example, tmp_path, CC, f"-I{files['net.h'].parent}", *more)
    driver = c_driver.Driver(made.driver.gpu, library)
    words = (ctypes.c_char_p * 2)(b"example", str(files["net.ptx"]).encode())
    assert library.example_main(2, words) == 0
    ctypes.CDLL(None).fflush(None)
    first, last = map(
        float, re.findall(r"loss ([\d.]+) at first, ([\d.]+) after", capfd.readouterr().out)[0]
    )
    assert last < first
    assert library.example_main(1, words) == 1
    driver.fails["cuInit"] = 100
    assert library.example_main(2, words) == 1


def test_a_state_goes_between_gpu_and_cpu(made: OnGpu) -> None:
    step, bytes_ = small(), made.artifact.files["net.state"].read_bytes()
    assert made("load", STREAM, made.state, made.bytes, bytes_, len(bytes_)) == 0
    made.same(step)
    assert made.saved() == bytes_
    damaged = bytes_[:200] + bytes([bytes_[200] ^ 1]) + bytes_[201:]
    code = made("load", STREAM, made.state, made.bytes, damaged, len(damaged))
    assert code == made.code["ERROR_DAMAGED"]
    made.same(step)


def test_what_a_kernel_finds_stops_all_that_follows(made: OnGpu) -> None:
    made.on_state("init", SEED)
    step, bad = small(), batch(0, 16)
    bad["y"][3] = CLASSES
    x, y, good, loss = (made.driver.put(a) for a in
                        (*bad.values(), batch(0, 16)["y"], np.zeros(1, "f4")))  # fmt: skip
    assert made.working("step", 16, x, y, loss, 0) == 0
    assert made.working("step", 16, x, good, loss, 0) == 0  # nothing happens
    code, _ = made.status()
    assert code == made.code["ERROR_DATA0"]
    assert b"y holds a number outside [0, 3)" in made.library.net_strerror(code)
    made.same(step)
    assert made.working("step", 16, x, good, loss, 0) == 0
    assert made.status() == (0, 0)
    step(**batch(0, 16))
    made.same(step)


def test_steps_stop_where_one_fails(made: OnGpu) -> None:
    made.on_state("init", SEED)
    step, rows = small(), data()
    rows["x"][17] = np.nan
    x, y, order = map(made.driver.put, (*rows.values(), np.arange(ROWS)))
    assert made.working("steps", ROWS, 8, order, x, y, 0) == 0
    assert made.status() == (made.code["ERROR_FINITE"], 2)
    for at in (0, 8):
        step(**batch(at, 8))
    made.same(step)
    outside = made.driver.put(np.array([*range(ROWS - 1), ROWS]))
    assert made.working("steps", ROWS, 8, outside, x, y, 0) == 0
    assert made.status() == (made.code["ERROR_VALUE"], 0)
    made.same(step)


def test_wrong_arguments_are_told_before_anything_is_asked(made: OnGpu) -> None:
    made.on_state("init", SEED)
    x, y, loss = (made.driver.put(a) for a in (*batch(0, 16).values(), np.zeros(1, "f4")))
    del made.driver.asked[:]
    given, code = (16, x, y, loss, 0), made.code
    assert made("step", None, STREAM, made.state, made.bytes, made.workspace, made.room,
                *given) == code["ERROR_NULL"]  # fmt: skip
    assert made.on_state("step", made.workspace, 1, *given) == code["ERROR_ROOM"]
    assert made.on_state("step", made.workspace + 8, 1, *given) == code["ERROR_ALIGN"]
    for wrong, name in {
        (0, x, y, loss, 0): "SIZE", (17, x, y, loss, 0): "SIZE", (16, 0, y, loss, 0): "NULL",
        (16, x, y, 0, 0): "NULL", (16, x + 4, y, loss, 0): "ALIGN",
    }.items():  # fmt: skip
        assert made.working("step", *wrong) == code[f"ERROR_{name}"]
    rate = ctypes.c_float
    set_rate = made.function("set_learning_rate")
    state = ctypes.c_uint64(made.state), ctypes.c_size_t(made.bytes)
    assert set_rate(ctypes.c_uint64(STREAM), *state, rate(-1.0)) == code["ERROR_VALUE"]
    assert set_rate(ctypes.c_uint64(STREAM), *state, rate(np.nan)) == code["ERROR_VALUE"]
    assert made.driver.asked == []
    assert set_rate(ctypes.c_uint64(STREAM), *state, rate(0.25)) == 0
    assert made.tensors()["optimizer.learning_rate"] == 0.25
    assert made("workspace_bytes", 17) == made("workspace_bytes", 0) == 0


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_memory_that_is_no_state_is_not_trained_on(made: OnGpu, fill: int) -> None:
    x, y, loss = (made.driver.put(a) for a in (*batch(0, 16).values(), np.zeros(1, "f4")))
    made.driver.gpu.bytes_at(made.state, made.bytes)[:] = fill
    assert made.working("step", 16, x, y, loss, 0) == 0
    assert made.status()[0] == made.code["ERROR_STATE"]
    held = made.driver.gpu.bytes_at(made.state, made.bytes)
    assert (np.delete(held, range(48, 52)) == fill).all()


def test_the_driver_s_codes_come_through(made: OnGpu) -> None:
    made.driver.fails["cuLaunchKernel"] = 2
    code = made.on_state("init", SEED)
    assert code == 1024 + 2
    assert made.library.net_strerror(code) == b"out of memory"
    assert (
        made.library.net_strerror(1024 + 999) == b"the driver answered a code that it does not know"
    )
    made.driver.fails = {"cuModuleGetFunction": c_driver.NOT_FOUND}
    before = made.driver.asked.count("cuModuleUnload")
    assert made.open() == 1024 + c_driver.NOT_FOUND
    assert made.driver.asked.count("cuModuleUnload") == before + 1  # nothing stays loaded


@pytest.mark.long
def test_a_loop_over_slices(tmp_path: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches once a slice, forward and back, over sizes that are symbols and no rows."""

    def looped() -> cr.TrainingStep:
        x, w = cr.input("x", ("time", 2, 3)), cr.parameter("w", (3, 3))
        final, ys = cr.scan(lambda h, v: (cr.tanh(h @ w + v), h * 2), cr.zeros_like(x[0]), x)
        return cr.training_step(cr.mean(final**2) + cr.mean(ys**2), cr.optim.SGD(0.1), seed=SEED)

    step = looped()
    net = loaded(looped, tmp_path, gpu, monkeypatch)
    net.on_state("init", SEED)
    for times in (5, 2):
        x = np.random.default_rng(times).standard_normal((times, 2, 3)).astype(np.float32)
        at, loss = net.driver.put(x), net.driver.put(np.zeros(1, np.float32))
        assert net.working("step", times, at, loss) == 0
        assert net.driver.get(loss, (), "f4") == np.float32(step(x=x))
    net.same(step)


def test_c_and_cpp_take_the_header(made: OnGpu, tmp_path: Path) -> None:
    header = made.artifact.files["net.h"]
    source = tmp_path / "use.c"
    source.write_text('#include "net.h"\n#include "net.h"\nint use(void) { return NET_KERNELS; }\n')
    words = ["-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{c_driver.STUB}", "-c"]
    for compiler, of in ((CC, ["-std=c99"]), (CXX, ["-std=c++11", "-x", "c++"])):
        if compiler:
            out = tmp_path / "use.o"
            subprocess.run(
                [compiler, *of, *words, f"-I{header.parent}", source, "-o", out], check=True
            )


def test_files_of_an_export(made: OnGpu) -> None:
    files = made.artifact.files
    shown = CliRunner().invoke(cli, ["inspect", str(files["net.ptx"])])
    assert shown.exit_code == 0 and "for sm_80" in shown.output
    assert re.search(r"kernels +\d+; (\d+ registers|ptxas would)", shown.output)
    without = set() if ptxas.find() else {"net.cubin"}
    assert set(files) == {f"net.{f}" for f in GPU_FORMATS} - without | {"net_example.c"}
    told = json.loads(files["net.json"].read_text())
    text = files["net.ptx"].read_text()
    assert told["level"] == "sm_80" and ".target sm_80" in text
    assert [k["name"] for k in told["kernels"]] == re.findall(r"\.entry (\w+)\(", text)
    if ptxas.find():
        assert files["net.cubin"].read_bytes()[:4] == b"\x7fELF"
        assert all(0 < k["registers"] <= 255 and k["stack_bytes"] == 0 for k in told["kernels"])


def test_without_ptxas_a_cubin_is_refused_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptxas.shutil, "which", lambda _: None)
    with pytest.raises(cr.errors.CompileError, match="ptxas, which is not found"):
        small().export(tmp_path, target="sm_80", formats=("cubin",))
    assert set(GPU_FORMATS) - set(gpu_formats()) == {"cubin"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"formats": ("so",)}, r"no format is called \['so'\] for a GPU"),
        ({"determinism": "strict"}, "no determinism"),
        ({"optimize": "size"}, "no optimize"),
        ({"cpu": "sm_80"}, "no cpu"),
        ({"examples": ("js",)}, "no examples but in C"),
    ],
)
def test_what_a_gpu_s_export_does_not_have(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(cr.errors.CompileError, match=said):
        small().export(tmp_path, target="sm_80", **options)


def test_the_manifest_tells_what_the_header_does(tmp_path: Path) -> None:
    told = small().export(tmp_path, target="sm_80", formats=("h", "json")).certificate
    header = (tmp_path / "net.h").read_text()
    for word, key in (
        ("ALIGN", "align"),
        ("DATA_ALIGN", "data_align"),
        ("STATE_BYTES", "state_bytes"),
    ):
        assert f"#define NET_{word} {told[key]}\n" in header
    assert told["ptx_bytes"] > 1000


@pytest.mark.parametrize(("target", "taken"), [("host", False), ("sm_80", True)])
def test_names_of_a_gpu_s_parameters_are_taken_there_alone(
    target: str, taken: bool, tmp_path: Path
) -> None:
    inputs = [cr.input(name, ("n", 3)) for name in ("net", "stream", "image")]
    total = sum(inputs[1:], inputs[0]) @ cr.parameter("w", (3, 2))
    step = cr.training_step(cr.mean(total**2), cr.optim.SGD(0.1))
    step.export(tmp_path, "k", target=target, formats=("h",))
    header = (tmp_path / "k.h").read_text()
    for name in ("net", "stream", "image"):
        assert (re.search(rf"\b{name}_2\b", header) is not None) == taken


@pytest.mark.parametrize("target", ["host", "sm_80"])
def test_sizes_that_are_one_in_capitals_are_bounded_apart(target: str, tmp_path: Path) -> None:
    x, y = cr.input("x", ("t", 3)), cr.input("y", ("T", 3))
    loss = cr.mean(x @ cr.parameter("w", (3,))) ** 2 + cr.mean(y) ** 2
    step = cr.training_step(loss, cr.optim.SGD(0.1))
    step.export(tmp_path, "k", target=target, formats=("h",), max_sizes={"t": 8, "T": 9})
    defined = re.findall(r"#define (K_MAX_T\w*) (\d+)", (tmp_path / "k.h").read_text())
    assert len(dict(defined)) == 2 and sorted(n for _, n in defined) == ["8", "9"]


def test_files_of_gpus_are_not_for_others(tmp_path: Path) -> None:
    with pytest.raises(cr.errors.CompileError, match=r"\['ptx'\] for a processor"):
        small().export(tmp_path, formats=("ptx",))


def test_an_orthogonal_beginning_is_refused(tmp_path: Path) -> None:
    x, w = cr.input("x", ("n", 4)), cr.parameter("w", (4, 4), init=cr.init.orthogonal())
    step = cr.training_step(cr.mean((x @ w) ** 2), cr.optim.SGD(0.1))
    with pytest.raises(cr.errors.CompileError, match="w begins orthogonal"):
        step.export(tmp_path, target="sm_80")
