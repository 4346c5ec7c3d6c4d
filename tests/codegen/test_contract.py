"""The matrix product's template: right for every size and layout, and bits that no tile changes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import compile_object
from chainrule.codegen.steps import Call
from chainrule.ir.loop import Apply, Buffer, Literal, Load, Local, Loop, Program, Store
from chainrule.ir.size import Dim, Size, evaluate
from chainrule.ir.types import DType, dtype, float32, float64
from chainrule.loops.contract import contraction_loops, packed_size
from chainrule.loops.interpret import interpret
from chainrule.loops.tiles import Contraction, tile_size
from chainrule.target import TARGETS

M, N, K = Size.symbol("m"), Size.symbol("n"), Size.symbol("k")


def matmul(
    m: Dim, n: Dim, k: Dim, target, kind: DType = float32, a_t=False, b_t=False, packed=None
):
    """out = act(a @ b + bias), any of the three sizes symbolic, factors as stored or transposed."""
    a, b = Buffer("a", kind, m * k), Buffer("b", kind, k * n)
    bias, out = Buffer("bias", kind, n), Buffer("out", kind, m * n)

    def epilogue(i: Dim, j: Dim, acc):
        return (Store(out, i * n + j, Apply("add", (acc, Load(bias, j)), kind)),)

    c = Contraction(
        (),
        m,
        n,
        k,
        (lambda i, q: Load(a, q * m + i)) if a_t else (lambda i, q: Load(a, i * k + q)),
        (lambda q, j: Load(b, j * k + q)) if b_t else (lambda q, j: Load(b, q * n + j)),
        kind,
        epilogue,
    )
    size = packed_size(c, target) if packed is None else packed
    work = None if size == 0 else Buffer("work", kind, size)
    names = sorted({s for d in (m, n, k) if isinstance(d, Size) for s in d.symbols()})
    buffers = (a, b, bias, out) + ((work,) if work else ())
    return Program("matmul", buffers, tuple(names), contraction_loops(c, target, work))


def arrays_for(program: Program, m: int, n: int, k: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kind = program.buffers[0].dtype.numpy
    sizes = {"m": m, "n": n, "k": k}
    out = {
        b.name: rng.standard_normal(evaluate(b.size, sizes)).astype(kind) for b in program.buffers
    }
    return out | {"out": np.full(m * n + 16, np.nan if kind.kind == "f" else 0, kind)}


def expected(arrays, m, n, k, a_t, b_t) -> np.ndarray:
    a = arrays["a"].astype(np.float64).reshape((k, m) if a_t else (m, k))
    b = arrays["b"].astype(np.float64).reshape((n, k) if b_t else (k, n))
    return (a.T if a_t else a) @ (b.T if b_t else b) + arrays["bias"].astype(np.float64)


SIZES = [
    (1, 1, 1),
    (1, 40, 7),
    (2, 10, 64),
    (3, 17, 5),
    (5, 16, 33),
    (7, 100, 3),
    (13, 32, 16),
    (14, 48, 20),
    (29, 65, 9),
    (33, 130, 40),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("symbolic", ["", "m", "k", "mk", "mnk"])
@pytest.mark.parametrize(("a_t", "b_t"), [(False, False), (True, True)])
def test_against_numpy(native, target, m, n, k, symbolic, a_t, b_t):
    dims = [s if name in symbolic else v for name, s, v in (("m", M, m), ("n", N, n), ("k", K, k))]
    program = matmul(*dims, target, a_t=a_t, b_t=b_t)
    arrays = arrays_for(program, m, n, k, seed=m * n + k)
    assert native(program, arrays, {"m": m, "n": n, "k": k}, target) == 0
    assert np.isnan(arrays["out"][m * n :]).all(), "writes past the end"
    want = expected(arrays, m, n, k, a_t, b_t)
    scale = np.abs(arrays["a"]).max() * np.abs(arrays["b"]).max() * k + 1
    assert np.abs(arrays["out"][: m * n].reshape(m, n) - want).max() < 1e-6 * scale


@pytest.mark.parametrize("m", [0, *range(1, 20)])
def test_one_program_for_every_batch(native, target, m):
    program = matmul(M, 20, 6, target)
    arrays = arrays_for(program, m, 20, 6, seed=m)
    native(program, arrays, {"m": m}, target)
    assert np.isnan(arrays["out"][m * 20 :]).all()
    if m:
        want = expected(arrays, m, 20, 6, False, False)
        np.testing.assert_allclose(
            arrays["out"][: m * 20].reshape(m, 20), want, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["float64", "int32", "int64"])
def test_other_element_types(native, target, kind):
    program = matmul(9, 37, 8, target, dtype(kind))
    arrays = arrays_for(program, 9, 37, 8, seed=3)
    if kind != "float64":
        rng = np.random.default_rng(3)
        arrays = {n: rng.integers(-9, 9, a.size).astype(kind) for n, a in arrays.items()}
    native(program, arrays, {}, target)
    want = expected(arrays, 9, 37, 8, False, False)
    np.testing.assert_allclose(arrays["out"][: 9 * 37].reshape(9, 37), want, rtol=1e-12, atol=1e-12)


@pytest.mark.smoke
@pytest.mark.parametrize("symbolic", [False, True])
def test_bits_do_not_depend_on_tiles(native, symbolic):
    """Every tile that any target would choose, and the interpreter, give one chain an element."""
    host = host_target()
    if not host.fma:
        pytest.skip("this machine has no fused multiply-add")
    m, n, k = 15, 50, 21
    shapes = itertools.product((64, 32, 16), (32, 16, 8))
    results = []
    for width, registers in shapes:
        chosen = replace(host, vector_bytes=width, vector_registers=registers)
        for b_t in (False, True):
            dims = (M, n, K) if symbolic else (m, n, k)
            program = matmul(*dims, chosen, b_t=b_t)
            arrays = arrays_for(program, m, n, k, seed=1)
            b = np.random.default_rng(5).standard_normal((k, n)).astype(np.float32)
            a = np.random.default_rng(6).standard_normal((m, k)).astype(np.float32)
            arrays["a"][:], arrays["b"][:] = a.ravel(), (b.T if b_t else b).ravel()
            arrays["bias"][:] = 0.5
            native(program, arrays, {"m": m, "k": k}, host)
            results.append(arrays["out"][: m * n])
    assert interpret(program, arrays, {"m": m, "k": k}) == 0
    for other in [*results[1:], arrays["out"][: m * n]]:
        assert (results[0] == other).all()


def test_groups_and_small_workspace(native, target):
    """A batched product: the group's loop is outermost, and one workspace serves every group."""
    g, m, n, k = 3, 6, 18, 5
    group = Size.symbol("g")
    a, b, out = (
        Buffer("a", float64, g * m * k),
        Buffer("b", float64, g * k * n),
        Buffer("out", float64, g * m * n),
    )
    c = Contraction(
        (("g", g),),
        m,
        n,
        k,
        lambda i, q: Load(a, group * (m * k) + i * k + q),
        lambda q, j: Load(b, group * (k * n) + j * k + q),
        float64,
        lambda i, j, acc: (
            Store(
                out, group * (m * n) + i * n + j, Apply("mul", (acc, Literal(2, float64)), float64)
            ),
        ),
    )
    work = Buffer("work", float64, packed_size(c, target))
    program = Program("grouped", (a, b, out, work), (), contraction_loops(c, target, work))
    rng = np.random.default_rng(0)
    arrays = {x.name: rng.standard_normal(x.size) for x in program.buffers}
    native(program, arrays, {}, target)
    want = 2 * arrays["a"].reshape(g, m, k) @ arrays["b"].reshape(g, n, k).transpose(0, 2, 1)
    np.testing.assert_allclose(arrays["out"].reshape(g, m, n), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", list(TARGETS))
def test_every_target_compiles(level):
    """Code for machines that are not here: nothing outside is called (compile_object checks)."""
    target = TARGETS[level]
    program = matmul(M, 37, K, target, b_t=True)
    call = Call(program, tuple(range(len(program.buffers))))
    native = compile_object(emit_module([call], program.sizes, target, epochs=True), target)
    assert native.code_size > 500
    assert "step:" in native.asm


def test_registers_suffice():
    """No tile is chosen that its target can't hold."""
    from chainrule.loops.walk import statements

    for target in TARGETS.values():
        for kind, m, n in itertools.product((float32, float64), (1, 7, 64, M), (10, 48, 128, N)):
            for s in statements(matmul(m, n, K, target, kind).body):
                local = [x for x in s.body if isinstance(x, Local)] if isinstance(s, Loop) else []
                cells = sum(math.prod(x.shape) for x in local)
                held = cells * target.registers_of(kind.itemsize, 16)
                assert held < target.vector_registers, (target.level, m, n, local)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("n", [1, 10, 40, 65])
@pytest.mark.parametrize("m", [1, 13, 29, 64])
@pytest.mark.parametrize("symbolic", [False, True])
def test_a_long_epilogue_waits_in_workspace(native, target, m, n, symbolic):
    """Tall tiles for long epilogues too: the same bits as from low ones."""
    rows = M if symbolic else m
    a, b = Buffer("a", float32, rows * 6), Buffer("b", float32, 6 * n)
    out, tile = Buffer("out", float32, rows * n), Buffer("tile", float32, 14 * 3 * 16)

    def epilogue(i: Dim, j: Dim, acc):
        value = acc
        for step in range(40):
            value = Apply("mul", (value, Literal(0.99, float32)), float32)
            value = Apply("add", (value, Literal(step / 16, float32)), float32)
        return (Store(out, i * n + j, value),)

    low = Contraction(
        (),
        rows,
        n,
        6,
        lambda i, q: Load(a, i * 6 + q),
        lambda q, j: Load(b, q * n + j),
        float32,
        epilogue,
    )
    size = tile_size(low, target)
    assert size <= tile.size and (size > 0 or m == 1 or target.vector_registers == 16)
    rng = np.random.default_rng(0)
    given = {"a": rng.standard_normal(m * 6), "b": rng.standard_normal(6 * n)}
    found = []
    for c in (low, replace(low, tile=tile)):
        body = contraction_loops(c, target, None)
        arrays = {name: x.astype(np.float32) for name, x in given.items()}
        arrays |= {"out": np.full(m * n + 16, np.nan, np.float32)}
        arrays |= {"tile": np.zeros(tile.size, np.float32)}
        program = Program("long", (a, b, out, tile), ("m",) if symbolic else (), body)
        assert native(program, arrays, {"m": m} if symbolic else {}, target) == 0
        assert np.isnan(arrays["out"][m * n :]).all()
        found.append(arrays["out"][: m * n])
    assert len(np.unique(found[0])) > m * n // 2
    np.testing.assert_array_equal(*found)
