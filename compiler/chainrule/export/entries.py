"""Functions of the interface: what they are given, what they test, and whose code they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chainrule.codegen.fork import GIVEN
from chainrule.export.checks import TOGETHER
from chainrule.export.codes import CODE, checks_of, faults
from chainrule.export.golden import Golden
from chainrule.export.interface import PARALLEL_FOR, Interface, Parameter
from chainrule.export.model import AT_VARIANT, Model, Unit
from chainrule.export.text import Code, constant
from chainrule_runtime.manifest import element_type


class Data:
    """The constants of a module: equal bytes are one global."""

    def __init__(self) -> None:
        self.names: dict[bytes, str] = {}

    def __call__(self, data: bytes) -> str:
        return self.names.setdefault(data, f"data{len(self.names)}")

    def texts(self, align: int, section: str) -> list[str]:
        """The globals."""
        return [constant(n, data or b"\0", align, section) for data, n in self.names.items()]


class Entries:
    """What functions that a caller calls are made with; `goldens` as the self-test has them."""

    def __init__(self, model: Model, pointer_bits: int, goldens: Sequence[Golden]) -> None:
        self.goldens = goldens
        self.model, self.interface = model, Interface(model)
        self.size = f"i{pointer_bits}"
        self.data = Data()
        self.codes = checks_of([u.manifest for u in model.units.values()])
        self.offsets = model.offsets

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
            for first in range(0, len(pointers), TOGETHER):
                few = pointers[first : first + TOGETHER]
                few += [few[-1]] * (TOGETHER - len(few))
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
