"""A kernel in Rust: a crate around the static library, without any other crate."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.export.header import declarations
from chainrule.export.interface import PARALLEL_FOR, Interface, Parameter
from chainrule.export.javascript import class_name
from chainrule.export.model import ALIGN, Model
from chainrule.export.packages import bound_of, elements, smallest
from chainrule_runtime.manifest import DimData, Tensor

_TYPES = {
    "float32": "f32", "float64": "f64", "int8": "i8", "int16": "i16", "int32": "i32",
    "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "bool": "u8",
    "bfloat16": "u16", "float16": "u16",
}  # fmt: skip
_C = {
    "size_t": "usize", "float": "f32", "double": "f64", "void": "c_void", "char": "c_char",
    "uint8_t": "u8", "uint16_t": "u16", "uint32_t": "u32", "uint64_t": "u64", "int8_t": "i8",
    "int16_t": "i16", "int32_t": "i32", "int64_t": "i64",
}  # fmt: skip
_KEYWORDS = """
    as async await become box crate do dyn extern final fn impl in let loop macro match mod move mut
    override priv pub ref self super trait try type typeof unsafe unsized use virtual where yield
    gen
""".split()  # noqa: SIM905


def crate(model: Model, version: str, archive: bytes, example: bool) -> dict[str, bytes]:
    """The files of the crate, by path."""
    folder, name = f"{model.name}-rs", model.name
    texts = {
        "Cargo.toml": f'[package]\nname = "{name}"\nversion = "{version}"\nedition = "2021"\n'
        f'description = "A training step as a self-contained kernel"\nlinks = "{name}"\n',
        "build.rs": _BUILD.replace("$NAME", name),
        "src/lib.rs": library(model),
    }
    if example:
        texts["examples/train.rs"] = _example(model)
        texts["tests/selftest.rs"] = _TEST.replace("$NAME", name).replace("$CLASS", _class(model))
    files = {f"{folder}/{path}": text.encode() for path, text in texts.items()}
    return files | {f"{folder}/lib{name}.a": archive}


def _class(model: Model) -> str:
    return class_name(model)


def library(model: Model) -> str:
    """The text of src/lib.rs: the C interface as it is, and a safe one over it."""
    interface = Interface(model)
    text = _LIBRARY.replace("$NAME", model.name).replace("$CLASS", _class(model))
    text = text.replace("$ALIGN", str(ALIGN)).replace("$DECLARED", "\n".join(_declared(model)))
    sizes = "".join(f", {_safe(interface.sizes[s.name])}: usize" for s in model.sizes)
    given = ", ".join(_safe(interface.sizes[s.name]) for s in model.sizes)
    text = text.replace("$SIZES", sizes.removeprefix(", ")).replace("$GIVEN", given)
    return text.replace("$UNITS", "\n".join(_units(model, interface)))


def _declared(model: Model) -> Iterator[str]:
    for result, name, parameters, said in declarations(model, Interface(model)):
        yield f"        /// {said.replace('NAME_', f'{model.name}_')}"
        listed = ", ".join(f"{_safe(p.name)}: {_type(p.kind)}" for p in parameters)
        yield f"        pub fn {model.name}_{name}({listed}) -> {_type(result)};"


def _type(kind: str) -> str:
    if kind.endswith(PARALLEL_FOR):
        body = 'unsafe extern "C" fn(*mut c_void, i32)'
        return f'Option<unsafe extern "C" fn(*mut c_void, {body}, *mut c_void, i32)>'
    words = kind.replace("*", " * ").split()
    if "*" not in words:
        return _C[words[0]]
    constant = words[0] == "const"
    return f"*{'const' if constant else 'mut'} {_C[words[1 if constant else 0]]}"


def _safe(name: str) -> str:
    return f"{name}_" if name in _KEYWORDS else name


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


def _units(model: Model, interface: Interface) -> Iterator[str]:
    names = {s: _safe(n) for s, n in interface.sizes.items()}
    said = {
        "step": "One step on a minibatch; the loss before the update.",
        "predict": "The outputs, as in inference.",
        "loss": "The loss, as in inference; nothing is changed.",
    }
    for name, unit in model.units.items():
        sizes = [names[s.name] for s in interface.sizes_of(unit)]
        feeds = interface.feed_parameters(unit)
        outputs = interface.output_parameters(unit, optional=name == "step")
        wanted = outputs if name == "predict" else outputs[:1]
        kinds = [_TYPES[_of(p).dtype] for p in wanted]
        one = [f"Vec<{k}>" if name == "predict" else k for k in kinds]
        result = one[0] if len(one) == 1 else f"({', '.join(one)})"
        parameters = ["&mut self", *(f"{s}: usize" for s in sizes)]
        parameters += [f"{_safe(p.name)}: &[{_TYPES[_of(p).dtype]}]" for p in feeds]
        yield f"    /// {said[name]}"
        yield f"    pub fn {name}({', '.join(parameters)}) -> Result<{result}, Error> {{"
        every = ", ".join(names[s.name] if names[s.name] in sizes else "1" for s in model.sizes)
        yield f"        self.reserve(unsafe {{ ffi::{model.name}_workspace_bytes({every}) }})?;"
        for p in feeds:
            own = _safe(p.name)
            yield f"        let count = {_count(_of(p), names)};"
            yield f"        if {own}.len() != count {{"
            yield f'            return Err(Error::Length("{p.name}", {own}.len(), count));'
            yield "        }"
        pointers = [f"{_safe(p.name)}.as_ptr()" for p in feeds]
        for i, p in enumerate(outputs):
            if p not in wanted:
                pointers.append("core::ptr::null_mut()")
                continue
            zero = f"0 as {_TYPES[_of(p).dtype]}"
            yield f"        let mut out{i} = vec![{zero}; {_count(_of(p), names)}];"
            pointers.append(f"out{i}.as_mut_ptr()")
        state = "self.state.as_mut_ptr().cast()" if name == "step" else "self.state.as_ptr().cast()"
        listed = [state, "bytes()", "self.workspace.as_mut_ptr().cast()",
                  f"self.workspace.len() * {ALIGN}", *sizes, *pointers]  # fmt: skip
        yield f"        check(unsafe {{ ffi::{model.name}_{name}({', '.join(listed)}) }})?;"
        found = [f"out{i}" if name == "predict" else f"out{i}[0]" for i, _ in enumerate(wanted)]
        yield f"        Ok({found[0] if len(found) == 1 else '(' + ', '.join(found) + ')'})"
        yield "    }"
        yield ""


def _of(parameter: Parameter) -> Tensor:
    assert parameter.tensor is not None
    return parameter.tensor


def _example(model: Model) -> str:
    interface, sizes = Interface(model), smallest(model)
    step = model.units["step"]
    lines, given = [], [str(sizes[s.name]) for s in interface.sizes_of(step)]
    for p in interface.feed_parameters(step):
        tensor, own = _of(p), _safe(p.name)
        kind, count = _TYPES[tensor.dtype], elements(tensor, sizes)
        value, i = f"made() as {kind}", "_"
        if kind not in ("f32", "f64"):
            value, i = f"(i % {bound_of(model, tensor, sizes) or 2}) as {kind}", "i"
        lines.append(
            f"    let {own}: Vec<{kind}> = (0..{count}usize).map(|{i}| {value}).collect();"
        )
        given.append(f"&{own}")
    text = _EXAMPLE.replace("$DATA", "\n".join(lines)).replace("$ARGUMENTS", ", ".join(given))
    return text.replace("$NAME", model.name).replace("$CLASS", _class(model))


_BUILD = """\
// The kernel lies beside this file, compiled; nothing else is linked.
fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    println!("cargo:rustc-link-search=native={folder}");
    println!("cargo:rustc-link-lib=static=$NAME");
    println!("cargo:rerun-if-changed={folder}/lib$NAME.a");
}
"""

_TEST = """\
#[test]
fn this_machine_computes_what_the_compilers_did() {
    $NAME::$CLASS::selftest().unwrap();
}
"""

_EXAMPLE = """\
// Trains $NAME on made-up data: put your own in its place.
use $NAME::$CLASS;

fn main() -> Result<(), $NAME::Error> {
    let mut word = 1u32;
    #[allow(unused_mut, unused_variables)]
    let mut made = || {
        word = word.wrapping_mul(1664525).wrapping_add(1013904223);
        (word >> 8) as f32 / 8388608.0 - 1.0
    };
$DATA
    let mut net = $CLASS::new(0)?;
    let first = net.step($ARGUMENTS)?;
    let mut last = first;
    for _ in 1..100 {
        last = net.step($ARGUMENTS)?;
    }
    println!("loss {first} at first, {last} after 100 steps");
    Ok(())
}
"""

_LIBRARY = """\
//! $NAME: a training step as a self-contained kernel, with the C interface of $NAME.h in `ffi`
//! and a safe one over it.
#![allow(non_snake_case)]

use core::ffi::c_void;
use std::fmt;

/// The functions as C has them; $NAME.h says the same.
pub mod ffi {
    use core::ffi::{c_char, c_void};

    extern "C" {
$DECLARED
    }
}

fn bytes() -> usize {
    unsafe { ffi::$NAME_state_bytes() }
}

#[derive(Clone, Copy)]
#[repr(C, align($ALIGN))]
struct Block([u8; $ALIGN]);

fn blocks(bytes: usize) -> Vec<Block> {
    vec![Block([0; $ALIGN]); bytes.div_ceil($ALIGN)]
}

/// What went wrong; nothing was changed then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A code of the interface, which says what it means.
    Code(i32),
    /// An array of that name has so many numbers, not so many.
    Length(&'static str, usize, usize),
    /// No tensor is called so.
    Name(String),
    /// Sizes that the kernel was not exported for.
    Sizes,
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Code(code) => {
                let text = unsafe { core::ffi::CStr::from_ptr(ffi::$NAME_strerror(*code)) };
                write!(out, "{}", text.to_string_lossy())
            }
            Error::Length(name, have, want) => {
                write!(out, "{name} has {have} numbers, not {want}")
            }
            Error::Name(name) => write!(out, "no tensor is called {name}"),
            Error::Sizes => write!(out, "$NAME does not take such sizes"),
        }
    }
}

impl std::error::Error for Error {}

fn check(code: i32) -> Result<(), Error> {
    if code == 0 {
        Ok(())
    } else {
        Err(Error::Code(code))
    }
}

/// A net and its optimizer, in memory of its own.
#[derive(Clone)]
pub struct $CLASS {
    state: Vec<Block>,
    workspace: Vec<Block>,
}

impl $CLASS {
    /// Begin: initial values, drawn from a seed.
    pub fn new(seed: u64) -> Result<Self, Error> {
        let mut state = blocks(bytes());
        let place: *mut c_void = state.as_mut_ptr().cast();
        check(unsafe { ffi::$NAME_init(place, bytes(), seed) })?;
        Ok(Self { state, workspace: Vec::new() })
    }

    /// Go on from what `save` gave, here or on another machine.
    pub fn load(saved: &[u8]) -> Result<Self, Error> {
        let mut state = blocks(bytes());
        let place: *mut c_void = state.as_mut_ptr().cast();
        let from: *const c_void = saved.as_ptr().cast();
        check(unsafe { ffi::$NAME_load(place, bytes(), from, saved.len()) })?;
        Ok(Self { state, workspace: Vec::new() })
    }

    /// The state as bytes.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        let mut saved = vec![0; bytes()];
        let (place, into) = (self.state.as_ptr().cast(), saved.as_mut_ptr().cast());
        check(unsafe { ffi::$NAME_save(place, bytes(), into, saved.len()) })?;
        Ok(saved)
    }

    fn index(name: &str) -> Result<i32, Error> {
        let text = std::ffi::CString::new(name).map_err(|_| Error::Name(name.into()))?;
        match unsafe { ffi::$NAME_tensor(text.as_ptr()) } {
            -1 => Err(Error::Name(name.into())),
            index => Ok(index),
        }
    }

    /// A copy of a tensor of the state, by its name.
    pub fn get(&self, name: &str) -> Result<Vec<u8>, Error> {
        let index = Self::index(name)?;
        let mut found = vec![0; unsafe { ffi::$NAME_tensor_bytes(index) }];
        let (place, into) = (self.state.as_ptr().cast(), found.as_mut_ptr().cast());
        check(unsafe { ffi::$NAME_get(place, bytes(), index, into, found.len()) })?;
        Ok(found)
    }

    /// Change a tensor of the state.
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        let index = Self::index(name)?;
        let (place, from) = (self.state.as_mut_ptr().cast(), value.as_ptr().cast());
        check(unsafe { ffi::$NAME_set(place, bytes(), index, from, value.len()) })
    }

    /// Whether this machine computes what the compiler's did.
    pub fn selftest() -> Result<(), Error> {
        let size = unsafe { ffi::$NAME_selftest_bytes() };
        check(unsafe { ffi::$NAME_selftest(blocks(size).as_mut_ptr().cast(), size) })
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Err(Error::Sizes);
        }
        if self.workspace.len() * $ALIGN < bytes {
            self.workspace = blocks(bytes);
        }
        Ok(())
    }

$UNITS}
"""
