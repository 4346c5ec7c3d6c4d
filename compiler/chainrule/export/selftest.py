"""The self-test: some steps from a fixed seed on made-up data, whose result is known by its digest.

The golden digest is what the compiler's own machine computed with the same functions, so whatever
differs in a single bit is seen: a processor, an emulator or a linker that does not do its work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainrule.errors import CompileError
from chainrule.export.checks import signed
from chainrule.export.codes import CODE
from chainrule.export.interface import Parameter
from chainrule.export.model import Model, fits, round_up
from chainrule.export.text import Code
from chainrule.export.units import Placed, output_bytes
from chainrule.ir.types import dtype as dtype_of
from chainrule_runtime.manifest import Tensor, evaluate

if TYPE_CHECKING:
    from chainrule.export.module import ModuleText

STEPS = 3
SEED = 1
#: sizes that are tried in turn: the first that all shapes of the model have a meaning with
_TRIED = (3, 2, 1, 4, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)


def test_sizes(model: Model) -> dict[str, int]:
    """The symbolic sizes that the self-test runs with."""
    most = model.most()
    manifests = [u.manifest for u in model.units.values()]
    for tried in (*_TRIED, None):
        sizes = {n: m if tried is None else min(tried, m) for n, m in most.items()}
        shapes = [d for m in manifests for t in (*m.feeds, *m.outputs) for d in t.shape]
        if fits(manifests, sizes) and all(evaluate(d, sizes) >= 0 for d in shapes):
            return sizes
    raise CompileError(
        "no sizes within max_sizes have a meaning in all of this model",
        f"they are {', '.join(f'{n} <= {m}' for n, m in most.items())}",
    )


class _Plan:
    """Where the self-test's blocks lie in the memory it is given."""

    def __init__(self, model: Model) -> None:
        self.sizes = test_sizes(model)
        self.workspace = model.state_bytes
        need = max(
            Placed(u.manifest, model.fixed).bytes(self.sizes)
            for v in model.variants
            for u in v.units.values()
        )
        at = self.workspace + need
        self.need = need
        self.feeds: dict[str, tuple[Tensor, int]] = {}
        for unit in model.units.values():
            for tensor in unit.manifest.feeds:
                if tensor.name not in self.feeds:
                    self.feeds[tensor.name] = tensor, at
                    at += round_up(output_bytes(tensor, self.sizes))
        self.outputs = at
        self.outputs_bytes = 0
        self.places: dict[tuple[str, str], int] = {}
        for name, unit in model.units.items():
            for tensor in unit.manifest.outputs:
                self.places[name, tensor.name] = at
                at += round_up(output_bytes(tensor, self.sizes))
        self.outputs_bytes = at - self.outputs
        self.bytes = at


def memory_bytes(model: Model) -> int:
    """Bytes of memory that the self-test takes."""
    return _Plan(model).bytes


def functions(module: ModuleText) -> list[str]:
    """`NAME_selftest`, `NAME_selftest_bytes`, and what they share."""
    plan = _Plan(module.model)
    size = module.head("selftest_bytes", (), "iw")
    return [
        _golden(module, plan),
        _selftest(module, plan),
        size.text(f"iw {plan.bytes}"),
    ]


def _golden(module: ModuleText, plan: _Plan) -> str:
    """`i64 @golden(memory)`: the digest of what came out of all steps, for the state's variant."""
    model, name = module.model, module.model.name
    code = Code("internal i64 @golden(ptr %memory) #0")
    state = "%memory"
    code.do(f"call void @clear(ptr {code.at(state, plan.outputs)}, iw {plan.outputs_bytes})")
    bounds = _bounds(model, plan.sizes)
    for tensor, at in plan.feeds.values():
        _make_up(code, tensor, plan, code.at(state, at), bounds.get(tensor.name, (0, 2)))
    codes = "0"
    for unit_name in ("step",) * STEPS + tuple(n for n in model.units if n != "step"):
        unit = model.units[unit_name]
        arguments = [f"ptr {state}", f"iw {model.state_bytes}"]
        arguments += [f"ptr {code.at(state, plan.workspace)}", f"iw {plan.need}"]
        sizes = module.interface.sizes_of(unit)
        arguments += [f"iw {plan.sizes[s.name]}" for s in sizes]
        pointers = [plan.feeds[t.name][1] for t in unit.manifest.feeds]
        pointers += [plan.places[unit_name, t.name] for t in unit.manifest.outputs]
        arguments += [f"ptr {code.at(state, at)}" for at in pointers]
        result = code.value(f"call i32 @{name}_{unit_name}({', '.join(arguments)})")
        wide = code.value(f"zext i32 {result} to i64")
        codes = code.value(f"add i64 {code.value(f'mul i64 {codes}, 257')}, {wide}")
    kept = code.value(f"call i64 @digest(ptr {state}, iw {model.state_bytes})")
    outputs = code.at(state, plan.outputs)
    given = code.value(f"call i64 @digest(ptr {outputs}, iw {plan.outputs_bytes})")
    turned = code.value(f"mul i64 {given}, 31")
    both = code.value(f"xor i64 {kept}, {turned}")
    return code.text(f"i64 {code.value(f'add i64 {both}, {codes}')}")


def _selftest(module: ModuleText, plan: _Plan) -> str:
    model = module.model
    parameters = (Parameter("memory", "void *"), Parameter("bytes", "size_t"))
    code = module.head("selftest", parameters)
    code.guard("@check_block(ptr %memory, iw %bytes)")
    small = code.value(f"icmp ult iw %bytes, {plan.bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    best = code.local("i32", 4)
    code.guard(f"@processor(ptr {best})")
    first = code.load("i32", best, align=4)
    # the variants that this processor runs: the best one, and those below it
    for number in range(len(model.variants)):
        runs = code.value(f"icmp ule i32 {first}, {number}")

        def test(number: int = number) -> None:
            code.do(f"call void @begin(ptr %memory, i32 {number}, i64 {SEED})")
            have = code.value("call i64 @golden(ptr %memory)")
            other = code.value(f"icmp ne i64 {have}, {signed(module.goldens[number])}")
            code.leave_if(other, f"i32 {CODE['ERROR_SELFTEST']}")

        code.when(runs, test)
    return code.text("i32 0")


def _bounds(model: Model, sizes: dict[str, int]) -> dict[str, tuple[int, int]]:
    """For inputs of positions, the range that fits every check."""
    found: dict[str, tuple[int, int]] = {}
    for check in (c for u in model.units.values() for c in u.manifest.checks):
        if check.feed is not None and check.bound is not None:
            least, above = evaluate(check.least, sizes), evaluate(check.bound, sizes)
            before = found.get(check.feed, (least, above))
            found[check.feed] = max(least, before[0]), min(above, before[1])
    return found


def _make_up(code: Code, tensor: Tensor, plan: _Plan, out: str, bounds: tuple[int, int]) -> None:
    """Data that is the same everywhere: the high bits of a congruential sequence.

    Numerical Recipes' 1664525 and 1013904223 (Press et al., section 7.1).
    """
    kind = dtype_of(tensor.dtype)
    item = kind.itemsize
    elements = output_bytes(tensor, plan.sizes) // item

    def store(i: str) -> None:
        scaled = code.value(f"add iw {code.value(f'mul iw {i}, 1664525')}, 1013904223")
        word = code.value(f"trunc iw {scaled} to i32")
        mixed = code.value(f"mul i32 {word}, 1664525")
        at = code.value(f"mul iw {i}, {item}")
        if kind.is_float:
            signed = code.value(f"ashr i32 {mixed}, 8")  # 24 bits: a float holds them all
            if item < 4:
                high = code.value(f"lshr i32 {mixed}, 25")  # 0x3F80 and above: from 1 on
                bits = code.value(f"or i32 {high}, 16256")
                code.store("i16", code.value(f"trunc i32 {bits} to i16"), out, at, align=2)
                return
            of = "float" if item == 4 else "double"
            real = code.value(f"sitofp i32 {signed} to {of}")
            value = code.value(f"fmul {of} {real}, 0x3E80000000000000")  # 2 to the power of -23
            code.store(of, value, out, at, align=item)
            return
        low, above = (0, 2) if kind.is_bool else bounds
        high = code.value(f"lshr i32 {mixed}, 16")
        rest = code.value(f"urem i32 {high}, {max(1, min(above - low, 1 << 16))}")
        number = code.value(f"add i32 {rest}, {low}")
        width = 8 * item
        if width != 32:
            convert = "sext" if width > 32 else "trunc"
            number = code.value(f"{convert} i32 {number} to i{width}")
        code.store(f"i{width}", number, out, at, align=item)

    code.loop(str(elements), store)
