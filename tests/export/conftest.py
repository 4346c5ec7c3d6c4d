"""Training steps that are exported in tests, with data for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr
import chainrule_runtime
from chainrule.export import Artifact

Net = tuple[cr.TrainingStep, Callable[[int, int], dict[str, Any]]]
SEED = 31


def digits() -> Net:
    """The demo's net on handwritten digits."""
    data = cr.datasets.digits()
    x, y = cr.input("x", ("batch", 64)), cr.input("y", ("batch",), dtype="int32")
    h = cr.relu(x @ cr.parameter("W1", (64, 48)) + cr.parameter("b1", (48,))).named("h")
    z = (h @ cr.parameter("W2", (48, 10)) + cr.parameter("b2", (10,))).named("z")
    hit = cr.mean(cr.astype(cr.equal(cr.argmax(z, axis=1), y), "float32"))
    step = cr.training_step(
        cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-3), metrics={"accuracy": hit}, outputs=z
    )

    def batch(i: int, size: int) -> dict[str, Any]:
        rows = (np.arange(size) + i * size) % len(data.x_train)
        return {"x": data.x_train[rows], "y": data.y_train[rows].astype(np.int32)}

    return step, batch


def images() -> Net:
    """A convolution, pooling, dropout; normal and truncated beginnings; momentum."""
    x, t = cr.input("x", ("batch", 2, 9, 9)), cr.input("t", ("batch",), dtype="int32")
    kernel = cr.parameter("K", (4, 2, 3, 3), init=cr.init.normal(0.0, 0.2))
    h = cr.dropout(cr.max_pool(cr.relu(cr.conv(x, kernel, padding=1)), 3), 0.25)
    w = cr.parameter("W", (36, 5), init=cr.init.truncated_normal(0.0, 0.3))
    z = (cr.reshape(h, ("batch", 36)) @ w).named("z")
    step = cr.training_step(
        cr.losses.cross_entropy(z, t), cr.optim.SGD(0.05, momentum=0.9), outputs=z, seed=SEED
    )
    return step, _made(x=(2, 9, 9), t=5)


def words() -> Net:
    """An LSTM, a scan with its reverse; a start from an array and one from a number."""
    x, t = cr.input("x", ("batch", 6, 5)), cr.input("t", ("batch",), dtype="int32")
    last = cr.nn.LSTM(7)(x)
    bias = cr.parameter("bias", (3,), init=np.array([0.5, -0.25, 0.125], np.float32))
    scale = cr.parameter("scale", (3,), init=cr.init.ones())
    z = ((last @ cr.parameter("W", (7, 3)) + bias) * scale).named("z")
    step = cr.training_step(cr.losses.cross_entropy(z, t), cr.optim.AdamW(1e-2), outputs=z)
    return step, _made(x=(6, 5), t=3)


def places() -> Net:
    """A transformer's block, over so many places that their scores are not kept."""
    x, t = cr.input("x", ("batch", 50, 6)), cr.input("t", ("batch",), dtype="int32")
    h = cr.nn.TransformerBlock(2, hidden=8, causal=True)(x)
    z = (cr.mean(h, axis=1) @ cr.parameter("W", (6, 3))).named("z")
    step = cr.training_step(cr.losses.cross_entropy(z, t), cr.optim.Adam(1e-2), outputs=z)
    return step, _made(x=(50, 6), t=3)


def _made(x: tuple[int, ...], t: int) -> Callable[[int, int], dict[str, Any]]:
    def batch(i: int, size: int) -> dict[str, Any]:
        random = np.random.default_rng(SEED + i)
        return {
            "x": random.standard_normal((size, *x)).astype(np.float32),
            "t": random.integers(0, t, size).astype(np.int32),
        }

    return batch


NETS = {"digits": digits, "images": images, "places": places, "words": words}

FORMATS = ("o", "a", "so", "h", "ll", "json", "safetensors", "state")
LINKERS = ("cc", "gcc", "clang", "ld.lld")


@dataclass
class Exported:
    """A net, its data, and the kernel that was exported of it before any step."""

    step: cr.TrainingStep
    batch: Callable[[int, int], dict[str, Any]]
    artifact: Artifact

    def kernel(self) -> chainrule_runtime.Kernel:
        """A kernel of its own, with the state that the step began with."""
        name = self.artifact.name
        kernel = chainrule_runtime.load(self.artifact.files[f"{name}.so"])
        kernel.load(self.artifact.files[f"{name}.state"])
        return kernel


def require_linker() -> None:
    """Skip what needs a shared library where nothing makes one."""
    if not any(map(shutil.which, LINKERS)):
        pytest.skip(f"no linker is here: {', '.join(LINKERS)}")


@pytest.fixture
def linker() -> None:
    require_linker()


_exported: dict[tuple[str, str], Artifact] = {}


def exported(name: str, folder: Path, optimize: str = "speed") -> Exported:
    """A net of NETS as it begins; the kernel is compiled once."""
    require_linker()
    step, batch = NETS[name]()
    key = name, optimize
    if key not in _exported:
        options = {"formats": FORMATS, "max_batch": 32, "optimize": optimize}
        _exported[key] = step.export(folder / optimize, name=name, **options)
    return Exported(step, batch, _exported[key])


def lecture() -> cr.TrainingStep:
    """The lecture's net: 4-8-3, tanh, cross-entropy, Adam."""
    x, y = cr.input("x", ("batch", 4)), cr.input("y", ("batch",), dtype="int32")
    h = cr.tanh(x @ cr.parameter("W1", (4, 8)) + cr.parameter("b1", (8,)))
    z = h @ cr.parameter("W2", (8, 3)) + cr.parameter("b2", (3,))
    return cr.training_step(cr.losses.cross_entropy(z, y), cr.optim.Adam(1e-2), outputs=z)


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=["digits", "images", "words"])
def net(request: pytest.FixtureRequest, export_folder: Path) -> Exported:
    return exported(request.param, export_folder)


@pytest.fixture(params=[(n, o) for n in sorted(NETS) for o in ("speed", "size")], ids="-".join)
def any_net(request: pytest.FixtureRequest, export_folder: Path) -> Exported:
    return exported(request.param[0], export_folder, request.param[1])


@pytest.fixture
def lecture_step() -> cr.TrainingStep:
    return lecture()


@pytest.fixture
def digits_nets(export_folder: Path) -> Callable[[str], Exported]:
    return lambda optimize: exported("digits", export_folder, optimize)


@pytest.fixture
def places_net(export_folder: Path) -> Exported:
    return exported("places", export_folder)


@pytest.fixture
def digits_net(export_folder: Path) -> Exported:
    return exported("digits", export_folder)
