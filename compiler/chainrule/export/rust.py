"""A kernel in Rust: a crate around the static library, without any other crate."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.export.header import declarations
from chainrule.export.interface import PARALLEL_FOR, Interface
from chainrule.export.javascript import class_name
from chainrule.export.model import ALIGN, Model
from chainrule.export.packages import bound_of, elements, smallest
from chainrule.export.rust_functions import HOOK, RESERVED, TYPES, C, Functions, safe, tensor_of


def crate(model: Model, version: str, archive: bytes, example: bool) -> dict[str, bytes]:
    """The files of the crate, by path."""
    folder, name = f"{model.name}-rs", model.name
    texts = {
        "Cargo.toml": f'[package]\nname = "{_called(name)}"\nversion = "{version}"\n'
        'edition = "2021"\n'
        f'description = "A training step as a self-contained kernel"\nlinks = "{name}"\n',
        "build.rs": _BUILD.replace("$NAME", name),
        "src/lib.rs": library(model),
    }
    if example:
        texts["examples/train.rs"] = _example(model)
        texts["tests/selftest.rs"] = _TEST.replace("$NAME", _called(name)).replace(
            "$CLASS", _class(model)
        )
    files = {f"{folder}/{path}": text.encode() for path, text in texts.items()}
    return files | {f"{folder}/lib{name}.a": archive}


def _called(name: str) -> str:
    """What the crate is called: `digits` is `digits`, `self` is `self_net`."""
    return f"{name}_net" if name in RESERVED else name


def _class(model: Model) -> str:
    return class_name(model)


def library(model: Model) -> str:
    """The text of src/lib.rs: the C interface as it is, and a safe one over it."""
    text = _LIBRARY.replace("$NAME", model.name).replace("$CLASS", _class(model))
    text = text.replace("$ALIGN", str(ALIGN)).replace("$DECLARED", "\n".join(_declared(model)))
    text = text.replace("$HOOK", HOOK if model.parts > 1 else "")
    return text.replace("$UNITS", Functions(model).text())


def _declared(model: Model) -> Iterator[str]:
    for result, name, parameters, said in declarations(model, Interface(model)):
        yield f"        /// {said.replace('NAME_', f'{model.name.upper()}_')}"
        listed = ", ".join(f"{safe(p.name)}: {_type(p.kind)}" for p in parameters)
        yield f"        pub fn {model.name}_{name}({listed}) -> {_type(result)};"


def _type(kind: str) -> str:
    if kind.endswith(PARALLEL_FOR):
        body = 'unsafe extern "C" fn(*mut c_void, i32)'
        return f'Option<unsafe extern "C" fn(*mut c_void, {body}, *mut c_void, i32)>'
    words = kind.replace("*", " * ").split()
    if "*" not in words:
        return C[words[0]]
    constant = words[0] == "const"
    return f"*{'const' if constant else 'mut'} {C[words[1 if constant else 0]]}"


def _example(model: Model) -> str:
    interface, sizes = Interface(model, ["first", "last", "made", "net", "word"]), smallest(model)
    step = model.units["step"]
    lines, given = [], [str(sizes[s.name]) for s in interface.sizes_of(step)]
    for p in interface.feed_parameters(step):
        tensor, own = tensor_of(p), safe(p.name)
        kind, count = TYPES[tensor.dtype], elements(tensor, sizes)
        value, i = f"made() as {kind}", "_"
        if kind not in ("f32", "f64"):
            value, i = f"(i % {bound_of(model, tensor, sizes) or 2}) as {kind}", "i"
        lines.append(
            f"    let {own}: Vec<{kind}> = (0..{count}usize).map(|{i}| {value}).collect();"
        )
        given.append(f"&{own}")
    text = _EXAMPLE.replace("$DATA", "\n".join(lines)).replace("$ARGUMENTS", ", ".join(given))
    return text.replace("$NAME", _called(model.name)).replace("$CLASS", _class(model))


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

/// What went wrong; nothing was changed then, but by steps that were made before.
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
    /// After so many steps were made, a code of the interface.
    After(usize, i32),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Code(code) => write!(out, "{}", said(*code)),
            Error::After(done, code) => write!(out, "after {done} steps: {}", said(*code)),
            Error::Length(name, have, want) => {
                write!(out, "{name} has {have} numbers, not {want}")
            }
            Error::Name(name) => write!(out, "no tensor is called {name}"),
            Error::Sizes => write!(out, "$NAME does not take such sizes"),
        }
    }
}

impl std::error::Error for Error {}

fn said(code: i32) -> String {
    let text = unsafe { core::ffi::CStr::from_ptr(ffi::$NAME_strerror(code)) };
    text.to_string_lossy().into_owned()
}

fn check(code: i32) -> Result<(), Error> {
    if code == 0 {
        Ok(())
    } else {
        Err(Error::Code(code))
    }
}

$HOOK
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
