"""PyTorch's own operator samples (its OpInfos) through the public names: values and gradients.

`torch_table` spells each operator; all samples of one are one program. Where PyTorch is not
installed this is skipped. `pytest -m long tests/ops/test_torch_samples.py -s` runs every sample
there is in both types and on both backends, and prints what was run and what was not, with why.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chainrule as cr

Array = np.ndarray[Any, Any]


def load(name: str) -> Any:
    """A module beside this one, which the next may import."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    invocations = pytest.importorskip("torch.testing._internal.common_methods_invocations")

table = load("torch_table")
for part in ("folds", "shapes", "indexing", "layers", "losses"):
    load(f"torch_{part}")


def name_of(op: Any) -> str:
    return f"{op.name}:{op.variant_test_name}" if op.variant_test_name else str(op.name)


OPS = {name_of(op): op for op in invocations.op_db}
#: of the largest of an array: some 1e6 roundings of float64; of float32 200, and what PyTorch's own
#: float32 is off, four times over
TOLERANCE = {"float64": 1e-9, "float32": 2.0**-16}
#: PyTorch has 1/6 and 1/alpha in float32 there, whatever the type
ROUGH = {"nn.functional.hardsigmoid": 1e-7, "nn.functional.celu": 1e-7}
#: it says "derivative for ... is not implemented"
ONCE = {"nn.functional.hardsigmoid", "nn.functional.scaled_dot_product_attention"}


def leaves_of(tree: Any) -> Iterator[Any]:
    """PyTorch's tensors in nested lists, tuples and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves_of(value)


def replaced(tree: Any, tensors: dict[int, Any]) -> Any:
    """The same nest with other things for its tensors."""
    if isinstance(tree, torch.Tensor):
        return tensors[id(tree)]
    if isinstance(tree, dict):
        return {k: replaced(v, tensors) for k, v in tree.items()}
    if isinstance(tree, torch.Size):
        return tuple(tree)
    return (
        type(tree)(replaced(v, tensors) for v in tree) if isinstance(tree, (list, tuple)) else tree
    )


def kind_of(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def array(tensor: Any) -> Array:
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
        return array(tensor.float()).astype(cr.bfloat16.numpy)
    return np.array(tensor.detach().numpy(force=True))


def seed_for(i: int, shape: Any) -> Array:
    """A cotangent: quarters, the same numbers in every type."""
    return np.random.default_rng(i).integers(2, 7, tuple(shape)).astype("f4") / 4


@dataclass
class Theirs:
    """What PyTorch makes of a sample: values, and gradients of the outputs that have them."""

    values: list[Array]
    smooth: list[int]
    slopes: list[Array] = field(default_factory=list)
    curved: list[int] = field(default_factory=list)
    seconds: list[Array] = field(default_factory=list)


def ask(op: Any, given: Any, order: int, wide: bool = False) -> Theirs:
    """Run a sample in PyTorch; `wide`, with float64 for float32."""
    copies: dict[int, Any] = {}
    for leaf in leaves_of(given):
        copy = leaf.detach().clone()
        copy = copy.double() if wide and copy.dtype == torch.float32 else copy
        copies[id(leaf)] = copy.requires_grad_(leaf.requires_grad)
    wrt = [leaf for leaf in copies.values() if leaf.requires_grad]
    x, args, kwargs = replaced(given, copies)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = list(leaves_of(op(x, *args, **kwargs)))
    floats = [i for i, t in enumerate(outputs) if t.requires_grad and t.is_floating_point()]
    theirs = Theirs([array(t) for t in outputs], floats if wrt else [])
    if not theirs.smooth:
        return theirs
    slopes = _slopes([outputs[i] for i in theirs.smooth], wrt, order > 1)
    theirs.slopes = [array(s) for s in slopes]
    theirs.curved = [i for i, s in enumerate(slopes) if order > 1 and s.requires_grad]
    if theirs.curved:
        seconds = _slopes([slopes[i] for i in theirs.curved], wrt, False)
        theirs.seconds = [array(s) for s in seconds]
    return theirs


def _slopes(outputs: list[Any], wrt: list[Any], again: bool) -> list[Any]:
    seeds = [torch.tensor(seed_for(i, t.shape), dtype=t.dtype) for i, t in enumerate(outputs)]
    found = torch.autograd.grad(outputs, wrt, seeds, allow_unused=True, create_graph=again)
    return [torch.zeros_like(x) if s is None else s for s, x in zip(found, wrt, strict=True)]


@dataclass
class Run:
    """The samples of one operator, put together to one program."""

    op: Any
    dtype: str
    order: int = 1
    outputs: dict[str, Any] = field(default_factory=dict)
    feeds: dict[str, Array] = field(default_factory=dict)
    expected: dict[str, Array] = field(default_factory=dict)
    truth: dict[str, Array] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    count: int = 0

    def add(self, sample: Any) -> None:
        """One sample: its value and its gradients, or why not."""
        number = f"s{self.count + self.skipped.total()}"
        given = (sample.input, sample.args, sample.kwargs)
        try:
            self._spell(number, given)
        except table.Absent as why:
            self.skipped[str(why)] += 1
        else:
            self.count += 1

    def _spell(self, number: str, given: Any) -> None:
        inputs: dict[int, Any] = {}
        feeds: dict[str, Array] = {}
        wrt: list[Any] = []
        for i, leaf in enumerate(leaves_of(given)):
            if id(leaf) in inputs:
                continue
            kind, name = kind_of(leaf), f"{number}_{i}"
            table.need("complex" not in kind and kind != "float16", f"no {kind}")
            x = inputs[id(leaf)] = cr.input(name, tuple(leaf.shape), dtype=kind)
            feeds[name] = array(leaf)
            wrt += [x] if leaf.requires_grad else []
        theirs = ask(self.op, given, self.order)
        x, args, kwargs = replaced(given, inputs)
        spelled = table.TABLE[name_of(self.op)](x, *args, **kwargs)
        found = {"out": list(spelled) if isinstance(spelled, (list, tuple)) else [spelled]}
        if theirs.smooth:
            smooth = [found["out"][i] for i in theirs.smooth]
            found["grad"] = self._vjp(f"{number}_ct", smooth, wrt, feeds)
        if theirs.curved:
            curved = [found["grad"][i] for i in theirs.curved]
            found["second"] = self._vjp(f"{number}_v", curved, wrt, feeds)
        for kind, ours in found.items():
            self.outputs |= {f"{number} {kind}{i}": t for i, t in enumerate(ours)}
        self.feeds |= feeds
        self.expected |= named(number, theirs)
        if self.dtype == "float32":
            self.truth |= named(number, ask(self.op, given, self.order, wide=True))

    @staticmethod
    def _vjp(name: str, outputs: list[Any], wrt: list[Any], feeds: dict[str, Array]) -> list[Any]:
        seeds = []
        for i, t in enumerate(outputs):
            feeds[f"{name}{i}"] = seed_for(i, t.shape)
            seeds.append(cr.input(f"{name}{i}", t.shape, dtype=t.dtype))
        return list(cr.vjp(outputs, wrt, seeds))

    def wrong(self, backend: str) -> list[str]:
        """What differs from PyTorch's, in words."""
        if not self.outputs:
            return []
        fn = cr.compile(self.outputs, backend=backend)
        known = set(fn.inputs)
        got = fn(**{k: v for k, v in self.feeds.items() if k in known})
        tolerance = max(TOLERANCE[self.dtype], ROUGH.get(name_of(self.op), 0.0))
        out = []
        for key, want in self.expected.items():
            if problem := differs(got[key], want, tolerance, self.truth.get(key)):
                out.append(f"{name_of(self.op)} {key}: {problem}")
        return out


def named(number: str, theirs: Theirs) -> dict[str, Array]:
    parts = {"out": theirs.values, "grad": theirs.slopes, "second": theirs.seconds}
    return {f"{number} {k}{i}": v for k, values in parts.items() for i, v in enumerate(values)}


def differs(got: Array, want: Array, tolerance: float, truth: Array | None = None) -> str | None:
    """What is different, in words. NaNs and infinities must stand where PyTorch's stand.

    With `truth`, in float64, `got` may be four times as far from it as `want` is.
    """
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return f"{got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    if want.dtype.kind != "f":
        return None if np.array_equal(got, want) else f"{got} is not {want}"
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return f"{got[~finite]} is not {want[~finite]}"
    a, b = got[finite].astype("f8"), want[finite].astype("f8")
    scale = np.abs(b).max(initial=1e-3)
    errors = [np.abs(a - b).max(initial=0.0) / scale]
    allowed = tolerance
    if truth is not None and truth.shape == want.shape:
        c = truth[finite].astype("f8")
        errors.append(np.abs(a - c).max(initial=0.0) / scale)
        allowed += 4 * np.abs(b - c).max(initial=0.0) / scale
    error = min(errors)
    return None if error <= allowed else f"off by {error:.3g} of the largest, {allowed:.3g} allowed"


def samples_of(op: Any, dtype: str, at_most: int) -> list[Any]:
    kind = getattr(torch, dtype)
    if kind not in op.dtypes:
        return []
    torch.manual_seed(0)
    found = list(op.sample_inputs("cpu", kind, requires_grad=op.supports_autograd))
    return found[:: -(-len(found) // at_most)] if found else []


def run(name: str, dtype: str, at_most: int, order: int = 1) -> Run:
    runs = Run(OPS[name], dtype, order)
    for sample in samples_of(OPS[name], dtype, at_most):
        runs.add(sample)
    return runs


NAMES = sorted(set(OPS) & set(table.TABLE))
FEW, ALL = 4, 10_000


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name: str) -> None:
    assert run(name, "float64", FEW).wrong("reference") == []


@pytest.mark.parametrize("name", NAMES[::4])
def test_native(name: str) -> None:
    assert run(name, "float32", FEW).wrong("cpu") == []


@pytest.mark.parametrize("name", [n for n in NAMES[1::4] if n not in ONCE])
def test_second_derivatives(name: str) -> None:
    if not OPS[name].supports_gradgrad:
        pytest.skip("PyTorch has none")
    assert run(name, "float64", FEW, order=2).wrong("reference") == []


@pytest.mark.long
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("dtype", "order"), [("float64", 1), ("float32", 1), ("float64", 2)])
def test_every_sample(dtype: str, order: int, backend: str) -> None:
    done, skipped, wrong = 0, Counter[str](), []
    for name in NAMES:
        if order > 1 and (name in ONCE or not OPS[name].supports_gradgrad):
            continue
        runs = run(name, dtype, ALL, order)
        wrong += runs.wrong(backend)
        done += runs.count
        skipped += runs.skipped
    print(f"\n{len(NAMES)} of {len(OPS)} operators, {dtype}, order {order}, {backend}: {done} run")
    for reason, count in skipped.most_common():
        print(f"  {count:6} not: {reason}")
    assert wrong == []
