"""The self-test: some steps from a fixed seed on made-up data, whose result is known by its digest.

The golden digest is what the compiler's own machine computed with the same functions, so whatever
differs in a single bit is seen: a processor, an emulator or a linker that does not do its work.
What that machine computed is held to the formulas, see export.differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from chainrule.export import differences
from chainrule.export.checks import signed
from chainrule.export.codes import CODE
from chainrule.export.entries import Entries
from chainrule.export.golden import Golden
from chainrule.export.interface import Parameter
from chainrule.export.model import Model
from chainrule.export.rehearsal import ANYTHING, FAR, SEED, STEPS, Plan
from chainrule.export.text import Code, number_text
from chainrule.export.units import output_bytes
from chainrule.ir.types import dtype as dtype_of
from chainrule_runtime.manifest import Tensor, element_type, evaluate


def memory_bytes(model: Model) -> int:
    """Bytes of memory that the self-test takes."""
    return Plan(model).bytes


def functions(module: Entries) -> list[str]:
    """`NAME_selftest`, `NAME_selftest_bytes`, and what they share."""
    plan = Plan(module.model)
    size = module.head("selftest_bytes", (), "iw")
    return [
        _golden(module, plan),
        *differences.functions(module, plan),
        *differences.movers(module.model),
        _selftest(module, plan),
        size.text(f"iw {plan.bytes}"),
    ]


def _golden(module: Entries, plan: Plan) -> str:
    """`i64 @golden(memory)`: the digest of what came out of all steps, for the state's variant."""
    model = module.model
    code = Code("internal i64 @golden(ptr %memory) #0")
    outputs = code.at("%memory", plan.outputs)
    code.do(f"call void @fill(ptr {outputs}, iw {plan.outputs_bytes}, i64 0)")
    workspace = code.at("%memory", plan.workspace)
    bounds = bounds_of(model, plan)
    for tensor, at in plan.feeds.values():
        _make_up(code, tensor, plan, code.at("%memory", at), bounds.get(tensor.name, (0, 2)))
    limits = list(_limits(model, plan))
    refused = sum(len(outside) for _, outside, _ in limits)
    kind = differences.kind_of(model)

    def run(name: str, sizes: Mapping[str, int | str]) -> None:
        """What a unit gives lies beside its outputs."""
        result = plan.call(code, module, name, sizes)
        code.store("i32", result, "%memory", plan.codes[name], align=4)

    def far() -> None:
        """The state is looked at, and then left for where functions are not near 0."""
        seen = code.value(f"call i64 @digest(ptr %memory, iw {model.state_bytes})")
        code.store("i64", seen, "%memory", plan.outputs)
        if kind:
            differences.move(code, model, kind, FAR)

    def step(turn: str) -> None:
        code.do(f"call void @fill(ptr {workspace}, iw {plan.need}, i64 {ANYTHING})")
        # first what is no label is refused, and changes nothing
        count = 0
        for tensor, outside, inside in limits:
            value = str(inside)
            for wrong in outside:
                this = code.value(f"icmp eq iw {turn}, {count}")
                bits = 8 * element_type(tensor.dtype).itemsize
                value = code.value(f"select i1 {this}, i{bits} {wrong}, i{bits} {value}")
                count += 1
            item = element_type(tensor.dtype).itemsize
            code.store(f"i{8 * item}", value, "%memory", plan.feeds[tensor.name][1], align=item)
        i = code.value(f"sub iw {turn}, {refused}")
        code.when(code.value(f"icmp eq iw {i}, {STEPS}"), far)
        sizes: dict[str, int | str] = dict(plan.sizes)
        for number, fewer in plan.fewer.items():
            this = code.value(f"icmp eq iw {i}, {number}")
            choose = {n: f"select i1 {this}, iw {m}, iw {sizes[n]}" for n, m in fewer.items()}
            sizes = {n: code.value(text) for n, text in choose.items()}

        def rest() -> None:
            for name in model.units:
                if name != "loss":
                    run(name, sizes)
            seen = code.value(f"call i64 @digest(ptr {outputs}, iw {plan.outputs_bytes})")
            code.store("i64", seen, "%memory", plan.total)

        run("loss", sizes)
        if kind:  # what is not a number has other bits elsewhere
            code.when(_is_finite(code, model, plan, kind), rest)
        else:
            rest()

    code.loop(str(refused + STEPS + 1), step)
    return code.text(f"i64 {code.load('i64', '%memory', plan.total)}")


def _is_finite(code: Code, model: Model, plan: Plan, kind: str) -> str:
    """Whether the loss is a number, of all members if there are several, as an i1."""
    (loss,) = model.units["loss"].manifest.outputs
    item = element_type(loss.dtype).itemsize
    infinite = number_text(math.inf, kind)

    def is_one(at: int | str) -> str:
        value = code.load(kind, "%memory", at, align=item)
        size = code.value(f"call {kind} @llvm.fabs.f{8 * item}({kind} {value})")
        return code.value(f"fcmp olt {kind} {size}, {infinite}")

    first = plan.places["loss", loss.name]
    if model.members is None:
        return is_one(first)
    good = code.local("i1", 1)
    code.store("i1", "true", good, align=1)

    def look(i: str) -> None:
        at = code.value(f"add iw {code.value(f'mul iw {i}, {item}')}, {first}")
        both = code.value(f"and i1 {code.load('i1', good, align=1)}, {is_one(at)}")
        code.store("i1", both, good, align=1)

    code.loop(str(model.members), look)
    return code.load("i1", good, align=1)


def _limits(model: Model, plan: Plan) -> Iterator[tuple[Tensor, list[int], int]]:
    """For each input of positions of a step, the numbers next to its range, and one within."""
    for check in model.units["step"].manifest.checks:
        if check.feed is not None and check.bound is not None and check.feed in plan.feeds:
            tensor = plan.feeds[check.feed][0]
            lowest = np.iinfo(element_type(tensor.dtype)).min
            least, above = evaluate(check.least, plan.sizes), evaluate(check.bound, plan.sizes)
            yield tensor, [n for n in (least - 1, above) if n >= lowest], least


def _selftest(module: Entries, plan: Plan) -> str:
    model = module.model
    parameters = (Parameter("memory", "void *"), Parameter("bytes", "size_t"))
    code = module.head("selftest", parameters)
    code.guard("@check_block(ptr %memory, iw %bytes)")
    small = code.value(f"icmp ult iw %bytes, {plan.bytes}")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    best = code.local("i32", 4)
    code.guard(f"@processor(ptr {best})")
    first = code.load("i32", best, align=4)
    bad = f"i32 {CODE['ERROR_SELFTEST']}"
    # the variants that this processor runs: the best one, and those below it
    for number, golden in enumerate(module.goldens):
        runs = code.value(f"icmp ule i32 {first}, {number}")
        begin = f"call void @begin(ptr %memory, i32 {number}, i64 {SEED})"

        def test(begin: str = begin, golden: Golden = golden) -> None:
            code.do(begin)
            have = code.value("call i64 @golden(ptr %memory)")
            code.leave_if(code.value(f"icmp ne i64 {have}, {signed(golden.digest)}"), bad)
            if golden.slope is not None:
                code.do(begin)
                code.leave_if(differences.is_other(code, model, golden.slope), bad)

        code.when(runs, test)
    return code.text("i32 0")


def bounds_of(model: Model, plan: Plan) -> dict[str, tuple[int, int]]:
    """For inputs of positions, the range that fits every check."""
    found: dict[str, tuple[int, int]] = {}
    for check in (c for u in model.units.values() for c in u.manifest.checks):
        if check.feed is None or check.bound is None:
            continue
        for sizes in (plan.sizes, *plan.fewer.values()):
            least, above = evaluate(check.least, sizes), evaluate(check.bound, sizes)
            before = found.get(check.feed, (least, above))
            found[check.feed] = max(least, before[0]), min(above, before[1])
    return found


def _make_up(code: Code, tensor: Tensor, plan: Plan, out: str, bounds: tuple[int, int]) -> None:
    """Data that is the same everywhere: the high bits of a congruential sequence.

    Numerical Recipes' 1664525 and 1013904223 (Press et al., section 7.1). Floats are of several
    magnitudes, from 1/16 to 8, so that functions are tried where they differ; those that the first
    step takes are 2**27 times less where it takes few, so that what is added to be no divisor of 0
    is seen in what an optimizer does.
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
            even = code.value(f"and i32 {word}, 1792")  # a power of 2 from -27 to -20 in 3 bits
            lowest = str((127 - 27) << 23)
            if 0 in plan.fewer:
                first = output_bytes(tensor, plan.fewer[0]) // item
                early = code.value(f"icmp ult iw {i}, {first}")
                lowest = code.value(f"select i1 {early}, i32 {(127 - 54) << 23}, i32 {lowest}")
            power = code.value(f"add i32 {code.value(f'shl i32 {even}, 15')}, {lowest}")
            scale = code.value(f"bitcast i32 {power} to float")
            scale = scale if item == 4 else code.value(f"fpext float {scale} to double")
            value = code.value(f"fmul {of} {real}, {scale}")
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
