"""Native code does what the interpreter says, bit for bit, on every level of this machine."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.codegen import native
from chainrule.codegen.elf import undefined_symbols
from chainrule.codegen.host import host_target
from chainrule.codegen.module import emit_module
from chainrule.codegen.native import compile_object
from chainrule.codegen.steps import Call
from chainrule.errors import CompileError
from chainrule.ir.loop import (
    Apply,
    Buffer,
    Check,
    Combine,
    Get,
    IndexValue,
    Literal,
    Load,
    Local,
    Loop,
    Program,
    Set,
    Store,
    Value,
)
from chainrule.ir.machine import MACHINE
from chainrule.ir.size import Size
from chainrule.ir.types import (
    DTYPES,
    DType,
    bool_,
    dtype,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint32,
)
from chainrule.target import target as level

I, J, N = Size.symbol("i"), Size.symbol("j"), Size.symbol("n")
SEED = 7


def values(kind: DType, count: int, seed: int = SEED) -> np.ndarray:
    """Values of every magnitude an operation may meet."""
    rng = np.random.default_rng(seed)
    if kind.is_bool:
        return rng.integers(0, 2, count).astype(bool)
    if kind.is_integer:
        low = 0 if kind.name.startswith("u") else -100
        return rng.integers(low, 100, count).astype(kind.numpy)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)).astype(kind.numpy)


def vector_map(extent: object, out: Buffer, value: Value) -> Program:
    """out[j] = value, over `extent` elements."""
    inputs = {v.buffer for v in _loads(value)}
    buffers = (*sorted(inputs - {out}, key=lambda b: b.name), out)
    sizes = () if isinstance(extent, int) else ("n",)
    return Program("map", buffers, sizes, (Loop("j", extent, (Store(out, J, value),), "vector"),))


def _loads(value: Value) -> list[Load]:
    from chainrule.loops.walk import postorder

    return [v for v in postorder(value) if isinstance(v, Load)]


@pytest.mark.parametrize("extent", [1, 15, 16, 17, 40, 64, 65, 100])
@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "int8", "bool"])
def test_known_tails(check, extent, kind):
    of = dtype(kind)
    x, y, out = (Buffer(name, of, extent) for name in ("x", "y", "out"))
    fn = "xor" if of.is_bool else "mul"
    arrays = {
        "x": values(of, extent),
        "y": values(of, extent, 8),
        "out": np.zeros(extent, of.numpy),
    }
    check(vector_map(extent, out, Apply(fn, (Load(x, J), Load(y, J)), of)), arrays)


def test_symbolic_tails(native, target):
    x, out = Buffer("x", float32, N), Buffer("out", float32, N)
    program = vector_map(N, out, Apply("add", (Load(x, J), Literal(0.1, float32)), float32))
    for n in range(41):
        arrays = {"x": values(float32, 41), "out": np.full(48, 5, np.float32)}
        assert native(program, arrays, {"n": n}, target) == 0
        assert (arrays["out"][:n] == arrays["x"][:n] + np.float32(0.1)).all()
        assert (arrays["out"][n:] == 5).all(), f"n={n} writes past its end"


OPERATIONS = [
    (op.name, of)
    for op in MACHINE.values()
    for of in DTYPES
    if op.kind in ("same", "compare", "select", "logic")
    and (DTYPES[of].is_float or op.name not in ("div", "sqrt", "copysign"))
    and (DTYPES[of].is_integer or op.name not in ("quotient", "shl", "lshr", "ashr"))
    and (op.kind != "logic" or not DTYPES[of].is_float)
    and (op.kind != "same" or not DTYPES[of].is_bool)
    and (op.name != "mulhi" or of == "uint32")
    and (of != "bfloat16" or op.kind == "select")  # which computes in float32
]


@pytest.mark.parametrize("of", list(DTYPES))
def test_machine_operations(check, of):
    """Every operation on the element types it takes, scalar and vector, in one program."""
    kind, extent = DTYPES[of], 37
    body, arrays, buffers = [], {}, []
    operands = [Buffer(name, kind, extent) for name in ("x", "y", "z")]
    chosen = Buffer("c", bool_, extent)
    for seed, b in enumerate([*operands, chosen]):
        arrays[b.name] = values(b.dtype, extent, seed)
    divisor = values(kind, extent, 1)
    arrays["y"] = np.where(divisor == 0, np.ones_like(divisor), divisor)
    shift = Buffer("shift", kind, extent)
    arrays["shift"] = np.random.default_rng(SEED).integers(0, kind.bits, extent).astype(kind.numpy)
    for name in [name for name, on in OPERATIONS if on == of]:
        op = MACHINE[name]
        read = [Load(b, J) for b in operands][: op.arity]
        if op.kind == "select":
            read = [Load(chosen, J), *read[1:]]
        if name in ("shl", "lshr", "ashr"):
            read[1] = Load(shift, J)
        result = Buffer(name, bool_ if op.kind == "compare" else kind, 2 * extent)
        arrays[name] = np.zeros(2 * extent, result.dtype.numpy)
        value = Apply(name, tuple(read), result.dtype)
        body += [Loop("j", extent, (Store(result, J, value),), "vector")]
        body += [Loop("j", extent, (Store(result, J + extent, value),))]
        buffers.append(result)
    program = Program("ops", (*operands, chosen, shift, *buffers), (), tuple(body))
    check(program, arrays)


@pytest.mark.parametrize("source", list(DTYPES))
def test_casts(check, source):
    of, extent = DTYPES[source], 19
    x = Buffer("x", of, extent)
    outs = [Buffer(f"to_{d}", d, extent) for d in DTYPES.values()]
    body = tuple(
        Loop("j", extent, (Store(o, J, Apply("cast", (Load(x, J),), o.dtype)),), "vector")
        for o in outs
    )
    arrays = {o.name: np.zeros(extent, o.dtype.numpy) for o in outs}
    arrays["x"] = np.abs(values(of, extent)) if not of.is_bool else values(of, extent)
    if of.is_float:
        arrays["x"] = np.minimum(arrays["x"], 100)
    check(Program("casts", (x, *outs), (), body), arrays)


@pytest.mark.parametrize("kind", [float32, float64])
def test_bits_of_floats(check, kind):
    extent, word = 18, int32 if kind is float32 else int64
    x, b, back = Buffer("x", kind, extent), Buffer("b", word, extent), Buffer("back", kind, extent)
    cut = Apply("to_int", (Load(x, J),), word)
    body = Loop(
        "j",
        extent,
        (
            Store(b, J, Apply("add", (Apply("bits", (Load(x, J),), word), cut), word)),
            Store(back, J, Apply("float_of_bits", (Apply("bits", (Load(x, J),), word),), kind)),
        ),
        "vector",
    )
    arrays = {
        "x": values(kind, extent),
        "b": np.zeros(extent, word.numpy),
        "back": np.zeros(extent, kind.numpy),
    }
    out = check(Program("bits", (x, b, back), (), (body,)), arrays)
    assert (out["back"] == arrays["x"]).all()


@pytest.mark.parametrize("columns", [1, 10, 16, 33, 64, 100])
@pytest.mark.parametrize(
    ("fn", "kind"),
    [("add", float32), ("mul", float64), ("add", int32), ("maximum", float32), ("or_", bool_)],
)
def test_row_reductions(check, columns, fn, kind):
    """Lane cells keep what absent lanes had, and Combine folds them in the one tree."""
    x, out = Buffer("x", kind, N * columns), Buffer("out", kind, N)
    acc = Local("acc", kind, (), True)
    step = Apply(fn, (Get(acc), Load(x, I * columns + J)), kind)
    body = (
        acc,
        Set(acc, (), Literal(1, kind)),
        Loop("j", columns, (Set(acc, (), step),), "vector"),
        Store(out, I, Combine(fn, acc)),
    )
    program = Program("rows", (x, out), ("n",), (Loop("i", N, body),))
    check(program, {"x": values(kind, 5 * columns), "out": np.zeros(5, kind.numpy)}, n=5)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 47])
def test_symbolic_reduction(check, n):
    x, out = Buffer("x", float32, N), Buffer("out", float32, 1)
    acc = Local("acc", float32, (2,), True)
    body = (
        acc,
        Loop(
            "j", N, (Set(acc, (1,), Apply("add", (Get(acc, (1,)), Load(x, J)), float32)),), "vector"
        ),
        Store(out, 0, Combine("add", acc, (1,))),
    )
    check(
        Program("sum", (x, out), ("n",), body),
        {"x": values(float32, n), "out": np.ones(1, np.float32)},
        n=n,
    )


def test_scalar_recurrence(check):
    """A local carried through a serial loop that may not run, inside one that does."""
    x, out = Buffer("x", float64, N * 3), Buffer("out", float64, 3)
    acc = Local("acc", float64)
    inner = Loop(
        "j",
        N,
        (
            Set(
                acc,
                (),
                Apply("fma", (Get(acc), Literal(0.5, float64), Load(x, I * N + J)), float64),
            ),
        ),
    )
    program = Program(
        "recur", (x, out), ("n",), (Loop("i", 3, (acc, inner, Store(out, I, Get(acc)))),)
    )
    for n in (0, 1, 6):
        check(program, {"x": values(float64, 3 * n), "out": np.ones(3)}, n=n)


def test_unrolled_tile(check):
    x, y, out = (
        Buffer("x", float32, N * 3),
        Buffer("y", float32, N * 40),
        Buffer("out", float32, 120),
    )
    acc = Local("acc", float32, (3, 3), True)
    k, v = Size.symbol("k"), Size.symbol("v")

    def over(body):
        whole = Loop("v", 2, (Loop("j", 16, body(v), "vector"),), "unroll")
        return (whole, Loop("j", 8, body(2), "vector"))

    def multiply(v):
        args = (Load(x, k * 3 + I), Load(y, k * 40 + v * 16 + J), Get(acc, (I, v)))
        return (Loop("i", 3, (Set(acc, (I, v), Apply("fma", args, float32)),), "unroll"),)

    body = (
        acc,
        Loop("k", N, over(multiply)),
        Loop(
            "i", 3, over(lambda v: (Store(out, I * 40 + v * 16 + J, Get(acc, (I, v))),)), "unroll"
        ),
    )
    arrays = {"x": values(float32, 15), "y": values(float32, 200), "out": np.zeros(120, np.float32)}
    check(Program("tile", (x, y, out), ("n",), body), arrays, n=5)


@pytest.mark.parametrize("extent", [16, 21, "n"])
def test_gathers_and_strides(check, extent):
    """Strides, divisions and run-time indices of the vector variable; rows chosen at run time."""
    n = 21
    x, rows = Buffer("x", float32, 3 * n * 5), Buffer("rows", int64, n)
    outs = [Buffer(f"out{i}", float32, 3 * n) for i in range(6)]
    row = Load(rows, 2)
    reads = [
        Load(x, J * 3 + 1),
        Load(x, (J // 4) * 3 + J % 4),
        Load(x, n - J),
        Load(x, 1, Load(rows, J), 3),
        Load(x, J, row, 5),
        Load(x, J * 2, row, 3),
    ]
    body = [
        Loop("j", N if extent == "n" else extent, (Store(o, J, r),), "vector")
        for o, r in zip(outs, reads, strict=True)
    ]
    body.append(Loop("j", 11, (Store(outs[0], J * 3 + 2, Load(x, J)),), "vector"))
    arrays = {o.name: np.zeros(3 * n, np.float32) for o in outs}
    arrays |= {
        "x": values(float32, 3 * n * 5),
        "rows": np.random.default_rng(SEED).integers(0, n, n),
    }
    check(Program("gather", (x, rows, *outs), ("n",), tuple(body)), arrays, n=n)


def test_stores_where_the_data_says(check):
    """Scatter-add of rows: a run-time index in a serial loop, with a vector loop inside it."""
    x, rows, out = (
        Buffer("x", float32, 5 * 20),
        Buffer("rows", int64, 5),
        Buffer("out", float32, 80),
    )
    row = Load(rows, I)
    total = Apply("add", (Load(out, J, row, 20), Load(x, I * 20 + J)), float32)
    body = (
        Loop("i", 5, (Loop("j", 20, (Store(out, J, total, row, 20),), "vector"),)),
        Loop("i", 5, (Store(out, 3, Literal(2.0, float32), row, 7),)),
    )
    arrays = {
        "x": values(float32, 100),
        "rows": np.array([3, 0, 3, 1, 0]),
        "out": np.zeros(80, np.float32),
    }
    check(Program("scatter", (x, rows, out), (), body), arrays)


@pytest.mark.parametrize("extent", [5, 16, 21])
def test_cells_that_absent_lanes_keep(check, extent):
    """A cell set under a short mask and read under a longer one; a temporary; a carried cell."""
    x, out = Buffer("x", float32, 64), Buffer("out", float32, 64)
    kept, own, carried = (Local(name, float32, (2,), True) for name in ("kept", "own", "carried"))
    add = lambda a, b: Apply("add", (a, b), float32)  # noqa: E731
    body = (
        kept,
        own,
        carried,
        Set(kept, (0,), Literal(5.0, float32)),
        Loop("j", 3, (Set(kept, (0,), Load(x, J)),), "vector"),
        Loop(
            "j",
            extent,
            (Set(own, (1,), Load(x, J)), Store(out, J, add(Get(own, (1,)), Get(kept, (0,))))),
            "vector",
        ),
        Loop(
            "i",
            4,
            (
                Loop(
                    "j",
                    extent,
                    (Set(carried, (0,), add(Get(carried, (0,)), Load(x, J + I))),),
                    "vector",
                ),
            ),
        ),
        Loop("j", extent, (Store(out, J + 32, Get(carried, (0,))),), "vector"),
    )
    check(
        Program("cells", (x, out), (), body),
        {"x": values(float32, 64), "out": np.zeros(64, np.float32)},
    )


def test_floor_division_of_negatives(check):
    x, out = Buffer("x", int32, 40), Buffer("out", int32, 80)
    body = (
        Loop("j", 20, (Store(out, J, IndexValue((J - 9) // 4, int32)),), "vector"),
        Loop("j", 20, (Store(out, J + 20, IndexValue((J - 9) % 4, int32)),), "vector"),
        Loop("j", 20, (Store(out, J + 40, IndexValue((J - 9) // 4, int32)),)),
        Loop("j", 20, (Store(out, J + 60, IndexValue((J - N) % (N - 5), int32)),)),
    )
    check(
        Program("floor", (x, out), ("n",), body),
        {"x": values(int32, 40), "out": np.zeros(80, np.int32)},
        n=9,
    )


def test_index_values(check):
    outs = [Buffer(f"o{i}", d, 4 * N) for i, d in enumerate((uint32, float32, int64, int8))]
    body = tuple(
        Loop(
            "i",
            4,
            (Loop("j", N, (Store(o, I * N + J, IndexValue(I * N + J * 3, o.dtype)),), "vector"),),
        )
        for o in outs
    )
    check(
        Program("iota", tuple(outs), ("n",), body),
        {o.name: np.zeros(76, o.dtype.numpy) for o in outs},
        n=19,
    )


def test_checks_leave_at_once(check):
    x, out = Buffer("x", int64, N), Buffer("out", int64, N)
    good = Apply("lt", (Load(x, I), Literal(10, int64)), bool_)
    body = (
        Loop("i", N, (Check(good, 3), Store(out, I, Load(x, I)))),
        Check(Apply("lt", (IndexValue(N, int64), Literal(8, int64)), bool_), 9),
    )
    program = Program("checked", (x, out), ("n",), body)
    for last in (5, 50):
        x_values = np.array([1, 2, 3, last, 4])
        out = check(program, {"x": x_values, "out": np.zeros(5, np.int64)}, n=5)
        assert out["out"][4] == (0 if last == 50 else 4)
    check(program, {"x": np.zeros(8, np.int64), "out": np.zeros(8, np.int64)}, n=8)


def test_in_place_and_reread(check):
    """A load after a store to the same place sees it; one of another iteration is not hoisted."""
    x = Buffer("x", float32, 20)
    twice = Apply("add", (Load(x, J), Load(x, J)), float32)
    body = (
        Loop(
            "i",
            3,
            (
                Loop(
                    "j",
                    20,
                    (
                        Store(x, J, twice),
                        Store(x, J, Apply("mul", (Load(x, J), Literal(0.75, float32)), float32)),
                    ),
                    "vector",
                ),
            ),
        ),
        Loop(
            "i",
            5,
            (
                Store(x, 0, Apply("add", (Load(x, 0), Literal(1.0, float32)), float32)),
                Store(x, 1, Load(x, 0)),
            ),
        ),
    )
    check(Program("place", (x,), (), body), {"x": values(float32, 20)})


def test_masked_quotient_divides_by_one(check):
    x, y, out = (Buffer(name, int32, 21) for name in ("x", "y", "out"))
    value = Apply("quotient", (Load(x, J), Load(y, J)), int32)
    check(
        vector_map(21, out, value),
        {
            "x": values(int32, 21),
            "y": np.arange(1, 22, dtype=np.int32),
            "out": np.zeros(21, np.int32),
        },
    )


def test_equal_programs_share_code():
    target = host_target()

    def program(tag: str) -> Program:
        x, out = Buffer(f"x{tag}", float32, 64), Buffer(f"out{tag}", float32, 64)
        return Program(
            f"relu{tag}",
            (x, out),
            (),
            (
                Loop(
                    f"j{tag}",
                    64,
                    (
                        Store(
                            out,
                            Size.symbol(f"j{tag}"),
                            Apply("neg", (Load(x, Size.symbol(f"j{tag}")),), float32),
                        ),
                    ),
                    "vector",
                ),
            ),
        )

    text = emit_module([Call(program("a"), (0, 1)), Call(program("b"), (1, 2))], (), target)
    assert text.count("define internal") == 1
    assert undefined_symbols(compile_object(text, target).object) == []


def test_refusals():
    x, out = Buffer("x", float32, 16), Buffer("out", float32, 16)
    program = vector_map(16, out, Load(x, J))
    with pytest.raises(CompileError, match="2 buffers"):
        emit_module([Call(program, (3,))], (), host_target())
    same = vector_map(16, out, Literal(1.0, float32))
    everywhere = Program(
        "bad", same.buffers, (), (Loop("j", 16, (Store(out, 0, Literal(1.0, float32)),), "vector"),)
    )
    with pytest.raises(CompileError, match="every lane"):
        emit_module([Call(everywhere, (0,))], (), host_target())
    with pytest.raises(CompileError, match="LLVM refuses"):
        compile_object("define nonsense", host_target())


def test_outside_names_are_refused():
    """A call that LLVM would make a library call of never gets as far as running."""
    text = """
define float @f(float %x) {
  %y = call float @llvm.exp.f32(float %x)
  ret float %y
}
declare float @llvm.exp.f32(float)
"""
    with pytest.raises(CompileError, match="calls expf"):
        compile_object(text, host_target())


WALK = """
target triple = "x86_64-unknown-linux-gnu"
define void @walk(ptr %x, i64 %n, i64 %by) {
entry:
  br label %again
again:
  %i = phi i64 [0, %entry], [%next, %again]
  %at = mul i64 %i, %by
  %p = getelementptr float, ptr %x, i64 %at
  store float 1.0, ptr %p
  %q = getelementptr float, ptr %p, i64 %i
  store float 2.0, ptr %q
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %again, label %end
end:
  ret void
}
"""


def test_others_who_use_llvm_in_this_process_find_it_as_it_was():
    """Our own code goes without a pass, which is an option of the whole process."""
    target = level("x86-64-v3")

    def theirs() -> bytes:
        return bytes(native._machine(target).emit_object(native._parsed(WALK)))

    before = theirs()
    assert compile_object(WALK, target).object != before  # else it would not tell
    assert theirs() == before
    with pytest.raises(CompileError):
        compile_object(WALK.replace("i64 %next, %n", "i64 %next, %m"), target)
    assert theirs() == before


def test_assembly_is_of_the_same_code_as_the_object():
    target = level("x86-64-v3")
    made = compile_object(WALK, target)
    assert made.code_size and "imul" in made.asm  # which the pass would have made a sum
