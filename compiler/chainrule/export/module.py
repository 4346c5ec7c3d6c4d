"""A kernel as one LLVM module: the units of each variant, and the C interface over them.

Nothing here is written but what the caller gives: there are no globals besides constants, no calls
of anything outside, and no frame holds more than a few registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.codegen.compact import Compact
from chainrule.codegen.epoch import COPY_FUNCTION
from chainrule.codegen.fork import FORK, GIVEN
from chainrule.codegen.function import emit_function
from chainrule.codegen.module import attributes
from chainrule.codegen.steps import calls_in
from chainrule.export import checks, extras, starting
from chainrule.export.codes import CODE, checks_of, faults
from chainrule.export.interface import PARALLEL_FOR, Interface, Parameter
from chainrule.export.model import ALIGN, AT_VARIANT, Model, Unit, Variant
from chainrule.export.philox import PHILOX, WORDS
from chainrule.export.processor import processor
from chainrule.export.selftest import Golden
from chainrule.export.text import Code, constant, finished, sectioned
from chainrule.export.units import UnitText
from chainrule.target import Target
from chainrule_runtime.manifest import element_type

#: what LLVM is told of functions that are to be little code
SMALL = "minsize optsize"
#: codegen.epoch.COPY_FUNCTION in a few instructions
SHORT_COPY = """
define internal void @copy(ptr %to, ptr %from, i64 %bytes) alwaysinline #0 {
entry:
  %count = trunc i64 %bytes to iw
  call void @copy_short(ptr %to, ptr %from, iw %count)
  ret void
}

define internal void @copy_short(ptr %to, ptr %from, iw %count) noinline #0 {
entry:
  br label %test
test:
  %i = phi iw [0, %entry], [%next, %body]
  %more = icmp ult iw %i, %count
  br i1 %more, label %body, label %done
body:
  %source = getelementptr i8, ptr %from, iw %i
  %target = getelementptr i8, ptr %to, iw %i
  %value = load i8, ptr %source, align 1
  store i8 %value, ptr %target, align 1
  %next = add iw %i, 1
  br label %test
done:
  ret void
}"""


class Data:
    """The constants of a module: equal bytes are one global."""

    def __init__(self) -> None:
        self.names: dict[bytes, str] = {}

    def __call__(self, data: bytes) -> str:
        return self.names.setdefault(data, f"data{len(self.names)}")

    def texts(self, align: int, section: str) -> list[str]:
        """The globals."""
        return [constant(n, data or b"\0", align, section) for data, n in self.names.items()]


class ModuleText:
    """Writes the module of a model; `goldens` are the self-test's, one for each variant."""

    def __init__(self, model: Model, pointer_bits: int, goldens: Sequence[Golden]) -> None:
        self.goldens = goldens
        self.model, self.interface = model, Interface(model)
        self.size = f"i{pointer_bits}"
        self.data = Data()
        self.codes = checks_of([u.manifest for u in model.units.values()])
        self.offsets = model.offsets
        self.tables: list[str] = []

    def text(self, layout: str) -> str:
        """The whole module, for a target of that data layout."""
        parts: list[str] = []
        declared: set[str] = set()
        attribute = 1
        kinds = [baseline(self.model)]
        for number, variant in enumerate(self.model.variants):
            write = self.short if self.model.small else self.fast
            of_variant, needed = write(number, variant)
            declared |= needed
            # #0 are kernels, #1 is what calls them
            numbered = [
                t.replace(" #0 {", f" #{attribute} {{").replace(" #1 {", f" #{attribute + 1} {{")
                for t in of_variant
            ]
            parts += numbered
            kinds += _attributes_of(self.model, number)
            attribute += 2
        if self.model.sliced or self.model.small:
            parts.append(PHILOX)
        parts.append(SHORT_COPY if self.model.small else COPY_FUNCTION)
        parts += [FORK] if self.model.parts > 1 else []
        parts += [*checks.functions(self.model, self.data), *starting.common(self.model, self.data)]
        parts.append(processor([v.target for v in self.model.variants], CODE["ERROR_CPU"]))
        parts += [*self.units(), *extras.functions(self.model, self.interface, self.data, self)]
        groups = [f"attributes #{i} = {{ {words} }}" for i, words in enumerate(kinds)]
        triple = self.model.variants[0].target.triple
        elf = self.model.variants[0].target.format == "ELF"
        finished_parts = [finished(part, self.size) for part in parts]
        head = [f'target datalayout = "{layout}"', f'target triple = "{triple}"']
        body = [
            *head,
            *self.tables,
            *self.data.texts(8 if self.model.small else ALIGN, ".rodata" if elf else ""),
            *(sectioned(text) if elf else text for text in finished_parts),
            *sorted(declared | declared_intrinsics(parts)),
            *groups,
            "",
        ]
        return "\n\n".join(body)

    def fast(self, number: int, variant: Variant) -> tuple[list[str], set[str]]:
        """All functions of a variant, and what they declare."""
        names: dict[str, str] = {}
        found: list[str] = []
        declared: set[str] = set()
        for unit_name, unit in variant.units.items():
            unit_text = self.unit_text(number, unit_name, unit)
            texts, needed = unit_text.kernels(names)
            found += [*texts, unit_text.bytes(), unit_text.run()]
            declared |= needed
        begins: dict[starting.Draws, str] = {}
        for key, program in starting.programs(self.model).items():
            begins[key] = f"v{number}.{program.name}"
            text, needed = emit_function(program, begins[key], variant.target)
            found.append(text)
            declared |= needed
        found.append(starting.begin(self.model, number, self.data, begins))
        return found, declared

    def short(self, number: int, variant: Variant) -> tuple[list[str], set[str]]:
        """The same in little code."""
        begin = starting.programs(self.model)
        calls = [c.program for u in variant.units.values() for c in calls_in(u.calls)]
        prefix = f"v{number}."
        units = [self.unit_text(number, name, unit) for name, unit in variant.units.items()]
        compact = Compact(
            [*calls, *begin.values()], variant.target, prefix, self.size, WORDS,
            [call for unit in units for call in unit.calls()],
        )  # fmt: skip
        found: list[str] = []
        by_name = dict(zip(variant.units, units, strict=True))
        step, loss = by_name["step"], by_name["loss"]
        first = loss if step.begins_with(loss) else None
        for unit_text in units:
            code = unit_text.short_code(compact, first if unit_text is step else None)
            found += [code, unit_text.bytes(), unit_text.run()]
        begins = {key: compact.function(program)[0] for key, program in begin.items()}
        found.append(starting.begin(self.model, number, self.data, begins))
        self.tables += [f"@{name} = private {text}" for text, name in compact.tables.items()]
        return [*found, *compact.functions.values()], compact.declarations

    def unit_text(self, number: int, name: str, unit: Unit) -> UnitText:
        """The writer of one unit of one variant."""
        target = self.model.variants[number].target
        return UnitText(
            f"v{number}.{name}", unit, target, self.interface, self.offsets, self.codes, self.data,
            self.model.fixed, self.model.parts,
        )  # fmt: skip

    # the exported functions of units

    def head(self, name: str, parameters: Sequence[Parameter], result: str = "i32") -> Code:
        """A function that others call."""
        shown = ", ".join(f"{self.kind(p)} %{p.name}" for p in parameters)
        return Code(f"dso_local {result} @{self.model.name}_{name}({shown}) #0")

    def kind(self, parameter: Parameter) -> str:
        """The LLVM type of a parameter."""
        if "*" in parameter.kind or parameter.kind.endswith(PARALLEL_FOR):
            return "ptr"
        fixed = {"size_t": "iw", "float": "float", "double": "double"}
        return fixed.get(parameter.kind) or f"i{int(parameter.kind.strip('uint_'))}"

    def units(self) -> list[str]:
        """The function for each unit, and the one that says how much workspace they need."""
        return [self.workspace_bytes(), *(self.run_unit(name) for name in self.model.units)]

    def workspace_bytes(self) -> str:
        """`size_t NAME_workspace_bytes(sizes)`: 0 for sizes that the kernel does not take."""
        sizes = self.interface.size_parameters(self.model.sizes)
        code = self.head("workspace_bytes", sizes, "iw")
        for size in self.model.sizes:
            code.leave_if(self.out_of_range(code, size.name), "iw 0")
        most = "0"
        for name in self.model.units:
            most = code.maximum(most, self.most_needed(code, name))
        return code.text(f"iw {most}")

    def most_needed(self, code: Code, name: str) -> str:
        """The bytes of workspace of a unit, whichever variant runs it, as an iw."""
        most = "0"
        for number, variant in enumerate(self.model.variants):
            most = code.maximum(most, self.needed(code, number, name, variant.units[name]))
        return most

    def needed(self, code: Code, number: int, name: str, unit: Unit) -> str:
        """The bytes of workspace of a unit, as an iw."""
        return code.value(f"call iw @v{number}.{name}.bytes({self.size_arguments(unit)})")

    def size_arguments(self, unit: Unit) -> str:
        """The sizes of a unit as arguments of functions of ours."""
        sizes = self.interface.sizes_of(unit)
        return ", ".join(f"iw %{self.interface.sizes[s.name]}" for s in sizes)

    def out_of_range(self, code: Code, size: str) -> str:
        """Whether a symbolic size is 0 or above the largest."""
        (most,) = [s.most for s in self.model.sizes if s.name == size]
        below = code.value(f"sub iw %{self.interface.sizes[size]}, 1")
        return code.value(f"icmp uge iw {below}, {most}")

    def check_sizes(self, code: Code, unit: Unit) -> None:
        """Leave where sizes are not what a unit takes."""
        bad = f"i32 {CODE['ERROR_SIZE']}"
        for size in self.interface.sizes_of(unit):
            code.leave_if(self.out_of_range(code, size.name), bad)
        known = {s.name: f"%{self.interface.sizes[s.name]}" for s in self.model.sizes}
        for dim in unit.manifest.nonempty:
            if isinstance(dim, dict):
                number = code.number(dim, known)
                code.leave_if(code.value(f"icmp slt iw {number}, 1"), bad)

    def check_call(self, code: Code, needed: str) -> None:
        """Leave where there is no state, or not so many bytes of workspace."""
        given = "ptr %state, iw %state_bytes, ptr %workspace, iw %workspace_bytes"
        code.guard(f"@check_call({given}, iw {needed})")

    def check_pointers(self, code: Code, parameters: Sequence[Parameter]) -> None:
        """Leave where data is null or is not aligned to its elements."""
        needed: dict[int, list[str]] = {}
        for parameter in parameters:
            assert parameter.tensor is not None
            mask = element_type(parameter.tensor.dtype).itemsize - 1
            if not parameter.optional:
                needed.setdefault(mask, []).append(f"ptr %{parameter.name}")
                continue
            there = code.value(f"icmp ne ptr %{parameter.name}, null")
            call = f"@check_pointer(ptr %{parameter.name}, iw {mask})"
            code.when(there, lambda call=call: code.guard(call))  # type: ignore[misc]
        for mask, pointers in needed.items():
            for first in range(0, len(pointers), checks.TOGETHER):
                few = pointers[first : first + checks.TOGETHER]
                few += [few[-1]] * (checks.TOGETHER - len(few))
                code.guard(f"@check_data(iw {mask}, {', '.join(few)})")

    def run_unit(self, name: str) -> str:
        """The function that runs a unit: checks, then the state's variant of it."""
        unit = self.model.units[name]
        parameters = self.interface.unit(name)
        code = self.divided(name, parameters)
        self.check_sizes(code, unit)
        self.check_call(code, self.most_needed(code, name))
        outputs = self.interface.output_parameters(unit, optional=name == "step")
        feeds = self.interface.feed_parameters(unit)
        self.check_pointers(code, [*feeds, *outputs])
        pointers = [f"ptr %{p.name}" for p in (*feeds, *outputs)]
        sizes = [self.size_arguments(unit)] if unit.manifest.sizes else []

        def run(number: int) -> str:
            arguments = ", ".join(["ptr %state", "ptr %workspace", *sizes, *pointers, *self.given])
            return code.value(f"call i32 @v{number}.{name}({arguments})")

        return code.text(f"i32 {self.by_variant(code, run)}") + self.whole(name, parameters)

    @property
    def given(self) -> list[str]:
        """What else functions are given by which a caller divides a step."""
        return [GIVEN] if self.model.parts > 1 else []

    def divided(self, name: str, parameters: Sequence[Parameter]) -> Code:
        """A function that others call, who may divide its work."""
        more = self.interface.parallel
        if not more:
            return self.head(name, parameters)
        code = self.head(f"{name}_parallel", [*parameters, *more])
        below = code.value("sub i32 %parts, 1")
        bad = code.value(f"icmp uge i32 {below}, {self.model.parts}")
        code.leave_if(bad, f"i32 {CODE['ERROR_VALUE']}")
        return code

    def whole(self, name: str, parameters: Sequence[Parameter]) -> str:
        """The same function without what divides it, where that is another one."""
        if not self.interface.parallel:
            return ""
        code = self.head(name, parameters)
        same = ", ".join(f"{self.kind(p)} %{p.name}" for p in parameters)
        call = f"@{self.model.name}_{name}_parallel({same}, ptr null, ptr null, i32 1)"
        return "\n\n" + code.text(f"i32 {code.value(f'call i32 {call}')}")

    def by_variant(self, code: Code, run: Callable[[int], str]) -> str:
        """What `run` gives for the variant that the state was begun for."""
        if len(self.model.variants) == 1:
            return run(0)
        chosen = code.load("i32", "%state", AT_VARIANT, align=4)
        for number in range(len(self.model.variants)):
            this = code.value(f"icmp eq i32 {chosen}, {number}")
            then, following = code.label(), code.label()
            code.do(f"br i1 {this}, label %{then}, label %{following}")
            code.open(then)
            code.do(f"ret i32 {run(number)}")
            code.open(following)
        return str(CODE["ERROR_STATE"])

    def faults(self) -> list[tuple[int, str]]:
        """Each code and what it means."""
        upper = self.model.name.upper()
        return [(f.code, f.text.replace("NAME_", f"{upper}_")) for f in faults(self.codes)]


def declared_intrinsics(parts: Sequence[str]) -> set[str]:
    """What functions of the interface use of LLVM's: one instruction each."""
    kinds = {"float": "f32", "double": "f64"}
    return {
        f"declare {kind} @llvm.{word}.{short}({kind})"
        for word in ("sqrt", "fabs")
        for kind, short in kinds.items()
        if any(f"@llvm.{word}.{short}(" in part for part in parts)
    }


def baseline(model: Model) -> str:
    """The attributes of what runs on every machine of the triple."""
    words = f'nounwind {SMALL if model.small else "noinline"} "no-builtins"'
    return words + _framed(model.variants[0].target)


def _framed(target: Target) -> str:
    """That nothing lies below the end of the stack: frames are to tell all that is used of it."""
    return " noredzone" if target.arch.startswith("x86") else ""


def _attributes_of(model: Model, number: int) -> list[str]:
    """The attributes of a variant's kernels and of what calls them, as words."""
    target = model.variants[number].target
    found = []
    for line in attributes(target).splitlines():
        words = line[line.index("{") + 1 : line.rindex("}")].strip()
        if model.small:
            words = words.replace("noinline ", "").replace("nounwind", f"nounwind {SMALL}")
        words += _framed(target)
        if len(model.variants) > 1 or target.level != "generic":
            words += f' "target-cpu"="{target.cpu}"'
            if target.features:
                words += f' "target-features"="{target.features}"'
        found.append(words)
    return found
