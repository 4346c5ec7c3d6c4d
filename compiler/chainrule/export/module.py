"""A kernel as one LLVM module: the units of each variant, and the C interface over them.

Nothing here is written but what the caller gives: there are no globals besides constants, no calls
of anything outside, and no frame holds more than a few registers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chainrule.codegen.compact import Compact
from chainrule.codegen.epoch import COPY_FUNCTION
from chainrule.codegen.fork import FORK
from chainrule.codegen.function import emit_function
from chainrule.codegen.module import attributes
from chainrule.codegen.steps import calls_in
from chainrule.export import checks, extras, starting
from chainrule.export.codes import CODE
from chainrule.export.entries import Entries
from chainrule.export.golden import Golden
from chainrule.export.model import ALIGN, Model, Unit, Variant
from chainrule.export.philox import PHILOX, WORDS
from chainrule.export.processor import processor
from chainrule.export.text import finished, sectioned
from chainrule.export.units import UnitText
from chainrule.target import Target

_ATTRIBUTES = re.compile(r" #([01]) \{")
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


class ModuleText(Entries):
    """Writes the module of a model; `goldens` are the self-test's, one for each variant."""

    def __init__(self, model: Model, pointer_bits: int, goldens: Sequence[Golden]) -> None:
        super().__init__(model, pointer_bits, goldens)
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
            parts += [_renumbered(text, attribute) for text in of_variant]
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


def _renumbered(text: str, first: int) -> str:
    """Functions of attributes #0 and #1 with those of a variant, which begin at `first`."""
    return _ATTRIBUTES.sub(lambda found: f" #{first + int(found[1])} {{", text)


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
    for line in attributes(target, realigned=not model.small).splitlines():
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
