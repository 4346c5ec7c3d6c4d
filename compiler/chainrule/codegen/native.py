"""LLVM text to machine code, and machine code into this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from functools import cached_property
from threading import Lock
from typing import Any

from chainrule.codegen.formats import code_size, undefined_symbols
from chainrule.codegen.host import permits_tiles
from chainrule.errors import CompileError
from chainrule.records import dataclass
from chainrule.target import Target

OPTIMIZATION = 2

_OPTION = Lock()


@dataclass(frozen=True)
class NativeObject:
    """An object file in memory; `write` gives the LLVM text it was made of.

    `cached` tells whether it was found where it had been kept, and LLVM had nothing to do.
    """

    object: bytes
    write: Callable[[], str] = field(repr=False)
    target: Target
    cached: bool = False

    @cached_property
    def code_size(self) -> int:
        """Bytes of machine code in it."""
        return code_size(self.object)

    @cached_property
    def llvm(self) -> str:
        """The LLVM text it was made of; written again where it was not needed yet."""
        return self.write()

    @cached_property
    def asm(self) -> str:
        """The same code as assembly text; made when asked for."""
        return assembly(self)


class Loaded:
    """Code in this process; its functions live as long as it does."""

    def __init__(self, native: NativeObject) -> None:
        from llvmlite import binding

        if native.target.blocks and not permits_tiles():
            raise CompileError(f"the system refuses the tiles that {native.target.level} uses")
        empty = binding.parse_assembly(f'target triple = "{native.target.triple}"')
        # all sections in one stretch of memory: code reaches its constants within 2 GiB, and apart
        # they may lie further from each other where a process has mapped much
        machine = _machine(native.target)
        self._engine: Any = binding.create_mcjit_compiler(empty, machine, use_lmm=True)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(native.object))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function starts. Raises CompileError where there is none of the name."""
        found = int(self._engine.get_function_address(name))
        if not found:
            raise CompileError(f"the code has no function {name!r}")
        return found


def compile_object(llvm: str, target: Target, helpers: Mapping[str, str] = {}) -> NativeObject:
    """The module as an object file. Raises CompileError if anything outside would be called.

    `helpers` are functions by name, as LLVM text, that go in where code turns out to call them.
    """
    left = dict(helpers)
    while True:
        with _addresses_as_written(target):
            data = bytes(_machine(target).emit_object(_parsed(llvm)))
        missing = undefined_symbols(data)
        added = [left.pop(name) for name in list(left)[::-1] if name in missing]
        if not added:
            break
        added += [left.pop(n) for n in list(left) if any(f"@{n}(" in text for text in added)]
        llvm = "\n\n".join([llvm, *added])
    if missing:
        raise CompileError(
            f"the code for {target.level} calls {', '.join(missing)}",
            "scalar code may use machine operations only; this is a bug of chainrule",
        )
    return NativeObject(data, lambda: llvm, target)


def optimized(llvm: str, target: Target) -> str:
    """The module after LLVM's passes, of which code that was written for its speed needs none."""
    from llvmlite import binding

    module = _parsed(llvm)
    options = binding.create_pipeline_tuning_options(speed_level=OPTIMIZATION)
    options.slp_vectorization = options.loop_vectorization = False
    builder = binding.create_pass_builder(_machine(target), options)
    builder.getModulePassManager().run(module, builder)
    return str(module)


def assembly(native: NativeObject) -> str:
    """The code of an object as assembly text, compiled once more for it."""
    return assembled(native.llvm, native.target)


def assembled(llvm: str, target: Target) -> str:
    """A module as assembly text, which for a GPU is PTX. Raises CompileError if LLVM refuses it."""
    with _addresses_as_written(target):
        return str(_machine(target).emit_assembly(_parsed(llvm)))


def load(native: NativeObject) -> Loaded:
    """The object's functions, ready to be called."""
    return Loaded(native)


def data_layout(target: Target) -> str:
    """How types lie in memory there, as modules of LLVM say it."""
    return str(_machine(target).target_data)


@contextmanager
def _addresses_as_written(target: Target) -> Iterator[None]:
    """On x86-64, without LLVM's search for cheaper addresses in loops (loop strength reduction).

    Addresses are written for its modes of addressing, and as fast as what is found in a third of
    LLVM's time. The option is the process': it is set for as long as our own code is made.
    """
    from llvmlite import binding

    if not target.triple.startswith("x86_64"):
        yield
        return
    with _OPTION:
        try:
            binding.set_option("", "--disable-lsr=true")
            yield
        finally:
            binding.set_option("", "--disable-lsr=false")


def _parsed(llvm: str) -> Any:
    from llvmlite import binding

    try:
        module = binding.parse_assembly(llvm)
        module.verify()
    except RuntimeError as error:
        raise CompileError("LLVM refuses the code", str(error).strip()) from error
    return module


def _machine(target: Target) -> Any:
    """LLVM's code generator for a target: a new one, as an engine takes it over and frees it."""
    from llvmlite import binding

    if target.triple.split("-")[0] == binding.get_process_triple().split("-")[0]:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        binding.initialize_native_asmparser()
    else:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=OPTIMIZATION,
        reloc="pic",
        codemodel="small",
    )
