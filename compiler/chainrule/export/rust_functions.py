"""The methods of a kernel's safe interface in Rust.

Names of the model's own have no two underscores beside each other: locals here end in two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chainrule.export.extras import number_parameter
from chainrule.export.header import changed_by
from chainrule.export.interface import Interface, Parameter
from chainrule.export.minibatches import batch_size_of
from chainrule.export.model import ALIGN, Model, Size
from chainrule_runtime.manifest import DimData, Tensor

TYPES = {
    "float32": "f32", "float64": "f64", "int8": "i8", "int16": "i16", "int32": "i32",
    "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "bool": "u8",
    "bfloat16": "u16", "float16": "u16",
}  # fmt: skip
C = {
    "size_t": "usize", "float": "f32", "double": "f64", "void": "c_void", "char": "c_char",
    "uint8_t": "u8", "uint16_t": "u16", "uint32_t": "u32", "uint64_t": "u64", "int8_t": "i8",
    "int16_t": "i16", "int32_t": "i32", "int64_t": "i64",
}  # fmt: skip
KEYWORDS = """
    as async await become box crate do dyn extern final fn impl in let loop macro match mod move mut
    override priv pub ref self super trait try type typeof unsafe unsized use virtual where yield
    gen Ok Err Some None Block
""".split()  # noqa: SIM905
#: what no crate of a caller's is called
RESERVED = [*KEYWORDS, "Self", *"alloc core proc_macro std test".split()]  # noqa: SIM905
_SAID = {
    "step": "One step on a minibatch; the loss before the update.",
    "predict": "The outputs, as in inference.",
    "loss": "The loss, as in inference; nothing is changed.",
}
_DIVIDED = ", divided into so many parts by `each__`: the same bits"


def safe(name: str) -> str:
    """A name that is no word of Rust's, and no value that a pattern would be compared with."""
    return f"{name}_" if name in KEYWORDS else name


def tensor_of(parameter: Parameter) -> Tensor:
    """What a parameter that is data points at."""
    assert parameter.tensor is not None
    return parameter.tensor


def _number(dim: DimData, names: dict[str, str]) -> str:
    """A size as an expression in Rust."""
    if isinstance(dim, int):
        return str(dim)
    terms = []
    for coefficient, factors in dim["terms"]:
        parts = [str(coefficient)] if coefficient != 1 or not factors else []
        for factor in factors:
            if isinstance(factor, str):
                parts.append(f"{names[factor]} as i64")
                continue
            kind, over, under = factor
            word = "div_euclid" if kind == "//" else "rem_euclid"
            parts.append(f"(({_number(over, names)}) as i64).{word}({_number(under, names)})")
        terms.append(" * ".join(f"({p})" for p in parts))
    return " + ".join(terms) or "0"


def _count(tensor: Tensor, names: dict[str, str]) -> str:
    parts = [f"({_number(d, names)}) as usize" for d in tensor.shape] or ["1"]
    return " * ".join(f"({p})" if len(parts) > 1 else p for p in parts)


class Functions:
    """Writes the methods of a model."""

    def __init__(self, model: Model) -> None:
        self.model, self.interface = model, Interface(model)
        self.names = {s: safe(n) for s, n in self.interface.sizes.items()}
        self.name = model.name

    def text(self) -> str:
        """All of them."""
        kinds = ("", "_parallel") if self.model.parts > 1 else ("",)
        lines: list[str] = []
        for name in self.model.units:
            for kind in kinds:
                lines += [*self.unit(name, kind), ""]
        if self.model.sliced:
            for kind in kinds:
                lines += [*self.steps(kind), ""]
            lines += [*self.shuffle(), ""]
        for number in self.model.numbers:
            lines += [*self.setter(self.interface.numbers[number.called], number.called), ""]
        return "\n".join(lines)

    def given(self, sizes: Sequence[Size], feeds: Sequence[Parameter], more: str) -> list[str]:
        """The parameters of a method that is given data."""
        order = ["order: Option<&[u64]>"] if more.startswith("steps") else []
        return [
            "&mut self",
            *(f"{self.names[s.name]}: usize" for s in sizes),
            *order,
            *(f"{safe(p.name)}: &[{TYPES[tensor_of(p).dtype]}]" for p in feeds),
            *(["each__: Each<'_>", "parts: i32"] if more.endswith("_parallel") else []),
        ]

    def unit(self, name: str, kind: str) -> Iterator[str]:
        """What runs a unit once."""
        unit, names = self.model.units[name], self.names
        of_unit = self.interface.sizes_of(unit)
        sizes = [names[s.name] for s in of_unit]
        feeds = self.interface.feed_parameters(unit)
        outputs = self.interface.output_parameters(unit, optional=name == "step")
        wanted = outputs if name == "predict" else outputs[:1]
        kinds = [TYPES[tensor_of(p).dtype] for p in wanted]
        one = [f"Vec<{k}>" if name == "predict" else k for k in kinds]
        result = one[0] if len(one) == 1 else f"({', '.join(one)})"
        listed = ", ".join(self.given(of_unit, feeds, name + kind))
        yield f"    /// {_SAID[name][:-1]}{_DIVIDED if kind else ''}."
        yield f"    pub fn {name}{kind}({listed}) -> Result<{result}, Error> {{"
        every = ", ".join(names[s.name] if s in of_unit else "1" for s in self.model.sizes)
        yield f"        self.reserve(unsafe {{ ffi::{self.name}_workspace_bytes({every}) }})?;"
        for p in feeds:
            yield from self.has(p, _count(tensor_of(p), names))
        pointers = [f"{safe(p.name)}.as_ptr()" for p in feeds]
        for i, p in enumerate(outputs):
            if p not in wanted:
                pointers.append("core::ptr::null_mut()")
                continue
            zero = f"0 as {TYPES[tensor_of(p).dtype]}"
            yield f"        let mut out{i}__ = vec![{zero}; {_count(tensor_of(p), names)}];"
            pointers.append(f"out{i}__.as_mut_ptr()")
        yield from self.called(name, kind, [*sizes, *pointers])
        yield "        crate::check(code__)?;"
        found = [f"out{i}__" if name == "predict" else f"out{i}__[0]" for i, _ in enumerate(wanted)]
        yield f"        Ok({found[0] if len(found) == 1 else '(' + ', '.join(found) + ')'})"
        yield "    }"

    def has(self, p: Parameter, count: str) -> Iterator[str]:
        """Leave where an array has another length."""
        own = safe(p.name)
        yield f"        let count__ = {count};"
        yield f"        if {own}.len() != count__ {{"
        yield f'            return Err(Error::Length("{p.name}", {own}.len(), count__));'
        yield "        }"

    def called(self, name: str, kind: str, arguments: Sequence[str]) -> Iterator[str]:
        """Call a function of the kernel on the state and the workspace."""
        changes = name in ("step", "steps")
        state = f"self.state.{'as_mut_ptr' if changes else 'as_ptr'}().cast()"
        room = f"self.workspace.len() * {ALIGN}"
        listed = [state, "crate::bytes()", "self.workspace.as_mut_ptr().cast()", room, *arguments]
        if kind:
            yield "        let mut hook__ = Hook { each: each__, failed: None };"
            yield "        let context__: *mut c_void = core::ptr::addr_of_mut!(hook__).cast();"
            listed += ["Some(crate::divide)", "context__", "parts"]
        call = f"ffi::{self.name}_{name}{kind}({', '.join(listed)})"
        yield f"        let code__ = unsafe {{ {call} }};"
        if kind:
            yield "        if let Some(cause) = hook__.failed {"
            yield "            std::panic::resume_unwind(cause);"
            yield "        }"

    def steps(self, kind: str) -> Iterator[str]:
        """What makes a step for each minibatch of rows."""
        model, names = self.model, self.names
        unit = model.units["step"]
        feeds = self.interface.feed_parameters(unit)
        loss = TYPES[unit.manifest.outputs[0].dtype]
        batch = names[batch_size_of(model)]
        listed = ", ".join(self.given(model.sizes, feeds, f"steps{kind}"))
        yield "    /// One epoch: a step for each minibatch of the rows, taken as `order` numbers"
        yield f"    /// them; the loss of each before its update{_DIVIDED if kind else ''}."
        yield f"    pub fn steps{kind}({listed}) -> Result<Vec<{loss}>, Error> {{"
        every = ", ".join(names[s.name] for s in model.sizes)
        needed = f"ffi::{self.name}_steps_workspace_bytes({every})"
        yield f"        self.reserve(unsafe {{ {needed} }})?;"
        rows = [p for p in feeds if tensor_of(p).name in model.sliced]
        first = tensor_of(rows[0])
        one = _count(Tensor(first.name, first.dtype, first.shape[1:], 0), names)
        yield f"        let rows__ = {safe(rows[0].name)}.len() / ({one});"
        for p in feeds:
            tensor = tensor_of(p)
            if p not in rows:
                yield from self.has(p, _count(tensor, names))
                continue
            row = _count(Tensor(tensor.name, tensor.dtype, tensor.shape[1:], 0), names)
            yield from self.has(p, f"rows__ * ({row})")
        yield "        if let Some(order) = order {"
        yield "            if order.len() != rows__ {"
        yield '                return Err(Error::Length("order", order.len(), rows__));'
        yield "            }"
        yield "        }"
        yield "        let order__ = order.map_or(core::ptr::null(), |order| order.as_ptr());"
        yield f"        let mut losses__ = vec![0 as {loss}; rows__.div_ceil({batch})];"
        yield "        let mut done__ = 0usize;"
        pointers = [f"{safe(p.name)}.as_ptr()" for p in feeds]
        sizes = [names[s.name] for s in model.sizes]
        ends = ["losses__.as_mut_ptr()", "&mut done__"]
        yield from self.called("steps", kind, ["rows__", *sizes, "order__", *pointers, *ends])
        yield "        if code__ != 0 && done__ > 0 {"
        yield "            return Err(Error::After(done__, code__));"
        yield "        }"
        yield "        crate::check(code__)?;"
        yield "        Ok(losses__)"
        yield "    }"

    def shuffle(self) -> Iterator[str]:
        """What gives the order of an epoch."""
        yield "    /// The order of so many rows in the next epoch, for `steps`; counts the epoch."
        yield "    pub fn shuffle(&mut self, rows: usize) -> Result<Vec<u64>, Error> {"
        yield "        if rows > u32::MAX as usize {"
        yield "            return Err(Error::Sizes);"
        yield "        }"
        yield "        let mut order = vec![0u64; 2 * rows];"
        yield "        let (place, words) = (self.state.as_mut_ptr().cast(), order.as_mut_ptr());"
        call = f"ffi::{self.name}_shuffle(place, bytes(), words, order.len(), rows)"
        yield f"        check(unsafe {{ {call} }})?;"
        yield "        order.truncate(rows);"
        yield "        Ok(order)"
        yield "    }"

    def setter(self, own: str, called: str) -> Iterator[str]:
        """What changes a number of the optimizer."""
        (number,) = [n for n in self.model.numbers if n.called == called]
        (kept,) = [t for t in self.model.kept if t.name == number.kept]
        kind = C[number_parameter(number, kept).kind]
        yield f"    /// Change {changed_by(number)}, which steps from now on use."
        yield f"    pub fn set_{own}(&mut self, value: {kind}) -> Result<(), Error> {{"
        yield "        let place = self.state.as_mut_ptr().cast();"
        yield f"        check(unsafe {{ ffi::{self.name}_set_{own}(place, bytes(), value) }})"
        yield "    }"


#: what divides a step by a function of the caller's, where one can
HOOK = """
/// Divides a step: is given a function and a number of parts, calls the function for each part
/// from 0 to below that number, in any order, on any threads, and returns when all of these have.
/// What it leaves out is done after it, and what it calls twice is done once.
pub type Each<'a> = &'a dyn Fn(&(dyn Fn(i32) + Sync), i32);

struct Hook<'a> {
    each: Each<'a>,
    failed: Option<Box<dyn std::any::Any + Send>>,
}

struct Work {
    body: unsafe extern "C" fn(*mut c_void, i32),
    argument: *mut c_void,
}

// the kernel's parts may run on any threads at once, each of them once
unsafe impl Sync for Work {}

impl Work {
    fn part(&self, number: i32) {
        unsafe { (self.body)(self.argument, number) }
    }
}

unsafe extern "C" fn divide(
    context: *mut c_void,
    body: unsafe extern "C" fn(*mut c_void, i32),
    argument: *mut c_void,
    parts: i32,
) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let hook = unsafe { &mut *context.cast::<Hook>() };
    let work = Work { body, argument };
    let begun: Vec<AtomicBool> = (0..parts).map(|_| AtomicBool::new(false)).collect();
    let once = |number: i32| {
        let part = usize::try_from(number).ok().and_then(|i| begun.get(i));
        if part.is_some_and(|begun| !begun.swap(true, Ordering::Relaxed)) {
            work.part(number);
        }
    };
    let each = std::panic::AssertUnwindSafe(|| (hook.each)(&once, parts));
    let done = std::panic::catch_unwind(each);
    (0..parts).for_each(once);
    if let Err(cause) = done {
        hook.failed.get_or_insert(cause);
    }
}
"""
