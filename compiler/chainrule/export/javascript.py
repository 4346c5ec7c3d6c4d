"""A kernel in a web page or in Node: an ES module around NAME.wasm, and its types."""

from __future__ import annotations

import re

from chainrule.export.interface import Interface
from chainrule.export.javascript_methods import ARRAY, given, steps, units
from chainrule.export.minibatches import batch_size_of
from chainrule.export.model import Model
from chainrule.export.packages import bound_of, elements, smallest

#: what the modules in JavaScript and the crates in Rust use by these names
_TAKEN = """
    ALIGN BigInt BigInt64Array BigUint64Array Error Float32Array Float64Array Int16Array Int32Array
    Int8Array JSON Map Math Number Promise RangeError Response TextDecoder TextEncoder TypeError URL
    Uint16Array Uint32Array Uint8Array WebAssembly
    Block Box Clone Copy Each Eq Err Fn FnMut FnOnce Formatter From Hook Into Iterator None Ok
    Option PartialEq Result Self Send Some String Sync Vec Work
""".split()  # noqa: SIM905


def module(model: Model) -> str:
    """The text of NAME.js."""
    interface = Interface(model)
    text = _MODULE.replace("$NAME", model.name).replace("$CLASS", class_name(model))
    methods = [*units(model, interface), *(steps(model, interface) if model.sliced else [])]
    text = text.replace("$UNITS", "\n".join(methods))
    setters = [
        f"  set {_camel(interface.numbers[n.called])}(value) {{\n"
        f'    this.#change("set_{interface.numbers[n.called]}", value);\n  }}'
        for n in model.numbers
    ]
    return text.replace("$SETTERS", "\n".join(setters))


def class_name(model: Model) -> str:
    """What the class is called: `digits` is a `Digits`, `map` a `MapNet`."""
    name = model.name[0].upper() + model.name[1:]
    return f"{name}Net" if name in _TAKEN else name


def types(model: Model) -> str:
    """The text of NAME.d.ts."""
    interface = Interface(model)
    lines = [
        f"/** {model.name}: a training step, compiled to WebAssembly. */",
        f"export declare class {class_name(model)} {{",
        "  /** Compile the module: its bytes, or where they are; by default beside this file. */",
        f"  static load(source?: URL | Response | BufferSource): Promise<{class_name(model)}>;",
        "  /** Begin: initial values, drawn from a seed from 0 to 2**64 - 1. */",
        "  init(seed?: number | bigint): void;",
    ]
    said = {
        "step": "One step on a minibatch; the loss before the update.",
        "predict": "What the model gives for inputs.",
        "loss": "The loss as in inference; nothing is changed.",
    }
    for name, unit in model.units.items():
        feeds = "; ".join(
            f"{interface.feeds[t.name]}: {given(t.dtype)}" for t in unit.manifest.feeds
        )
        sizes = "".join(f"; {interface.sizes[s.name]}?: number" for s in interface.sizes_of(unit))
        result = "number"
        if name == "predict":
            outputs = unit.manifest.outputs
            of = [f"{interface.outputs[t.name]}: {ARRAY[t.dtype]}" for t in outputs]
            result = ARRAY[outputs[0].dtype] if len(outputs) == 1 else f"{{ {'; '.join(of)} }}"
        lines += [f"  /** {said[name]} */", f"  {name}(feeds: {{ {feeds}{sizes} }}): {result};"]
    if model.sliced:
        lines += _types_of_steps(model, interface)
    for number in model.numbers:
        lines.append(f"  set {_camel(interface.numbers[number.called])}(value: number);")
    lines += [
        "  /** A tensor of the state, by the name it has in the model: a copy of its bytes. */",
        "  get(name: string): Uint8Array;",
        "  set(name: string, bytes: ArrayBufferView): void;",
        "  /** The state, which load takes again, here or on any other machine. */",
        "  save(): Uint8Array;",
        "  load(bytes: Uint8Array): void;",
        "  /** Throws unless this machine computes what the compiler's did, bit for bit. */",
        "  selftest(): void;",
        "  /** The kernel's manifest. */",
        "  describe(): any;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _types_of_steps(model: Model, interface: Interface) -> list[str]:
    unit = model.units["step"]
    batch = batch_size_of(model)
    listed = [f"{interface.feeds[t.name]}: {given(t.dtype)}" for t in unit.manifest.feeds]
    listed += [
        f"{interface.sizes[s.name]}{'' if s.name == batch else '?'}: number" for s in model.sizes
    ]
    feeds = "; ".join(listed)
    order = "order?: BigUint64Array | number[]"
    return [
        "  /** One epoch: a step for each minibatch of the rows, as `order` numbers them; the loss",
        "   * of each. An error's `done` is how many steps were made before it. */",
        f"  steps(feeds: {{ {feeds} }}, {order}): {ARRAY[unit.manifest.outputs[0].dtype]};",
        "  /** The order of so many rows in the next epoch; counts the epoch. */",
        "  shuffle(rows: number): BigUint64Array;",
    ]


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda m: m[1].upper(), name)


def selftest(model: Model) -> str:
    """A program that runs the self-test in Node."""
    text = """\
// Runs the self-test of $NAME: node $NAME_selftest.mjs
import { $CLASS } from "./$NAME.js";

const net = await $CLASS.load();
net.selftest();
console.log("$NAME: all is well");
"""
    return text.replace("$NAME", model.name).replace("$CLASS", class_name(model))


def example(model: Model) -> str:
    """A program that trains on made-up data in Node, to begin one's own with."""
    interface, sizes = Interface(model), smallest(model)
    lines = []
    for tensor in model.units["step"].manifest.feeds:
        own, kind = interface.feeds[tensor.name], ARRAY[tensor.dtype]
        value = "made()"
        if not kind.startswith("Float"):
            wide = "BigInt" if kind.startswith("Big") else ""
            value = f"{wide}(i % {bound_of(model, tensor, sizes) or 2})"
        count = elements(tensor, sizes)
        lines.append(f"  {own}: new {kind}({count}).map((_, i) => {value}),")
    lines += [f"  {interface.sizes[s]}: {n}," for s, n in sizes.items()]
    text = """\
// Trains $NAME on made-up data: put your own in its place. node $NAME_example.mjs
import { $CLASS } from "./$NAME.js";

let word = 1;
const made = () => {
  word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
  return (word >>> 8) / 8388608 - 1;
};
const feeds = {
$DATA
};

const net = await $CLASS.load();
net.init(0);
const first = net.step(feeds);
let last = first;
for (let step = 1; step < 100; step++) last = net.step(feeds);
console.log(`loss ${first} at first, ${last} after 100 steps`);
"""
    text = text.replace("$DATA", "\n".join(lines))
    return text.replace("$NAME", model.name).replace("$CLASS", class_name(model))


_MODULE = """\
// $NAME: a training step, compiled to WebAssembly. Nothing is imported and nothing is fetched
// but $NAME.wasm; all memory is the module's own.

const ALIGN = 64;
const up = (n) => Math.ceil(n / ALIGN) * ALIGN;

export class $CLASS {
  #wasm;
  #state;
  #bytes;
  #workspace;
  #sizes = new Map();

  static async load(source = new URL("$NAME.wasm", import.meta.url)) {
    if (source instanceof URL && source.protocol === "file:" && "process" in globalThis) {
      const { readFile } = await import("node:fs/promises"); // which fetch does not do there
      source = await readFile(source);
    }
    if (source instanceof URL) source = await fetch(source);
    if (typeof Response !== "undefined" && source instanceof Response) {
      source = await source.arrayBuffer();
    }
    const { instance } = await WebAssembly.instantiate(source, {});
    return new $CLASS(instance);
  }

  constructor(instance) {
    this.#wasm = instance.exports;
    this.#bytes = this.#wasm.$NAME_state_bytes();
    this.#state = up(this.#wasm.__heap_base.value);
    this.#workspace = this.#state + up(this.#bytes);
    this.init();
  }

  init(seed = 0) {
    const whole = BigInt(seed);
    if (whole < 0n || whole >= 2n ** 64n) throw new RangeError(`no seed is ${seed}`);
    this.#grow(this.#workspace);
    this.#call("init", ...this.#own(), whole);
  }

$UNITS
$SETTERS

  get(name) {
    const index = this.#index(name);
    const size = this.#wasm.$NAME_tensor_bytes(index);
    const at = this.#begin(0).room(Uint8Array, size);
    this.#call("get", ...this.#own(), index, at, size);
    return this.#copy(Uint8Array, at, size);
  }

  set(name, bytes) {
    const index = this.#index(name);
    if (!ArrayBuffer.isView(bytes)) throw new TypeError(`${name} is set by a typed array`);
    const data = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const at = this.#begin(0).put(Uint8Array, data, data.length, name);
    this.#call("set", ...this.#own(), index, at, data.length);
  }

  save() {
    const at = this.#begin(0).room(Uint8Array, this.#bytes);
    this.#call("save", ...this.#own(), at, this.#bytes);
    return this.#copy(Uint8Array, at, this.#bytes);
  }

  load(bytes) {
    const at = this.#begin(0).put(Uint8Array, bytes, bytes.length, "the state");
    this.#call("load", ...this.#own(), at, bytes.length);
  }

  selftest() {
    const size = this.#wasm.$NAME_selftest_bytes();
    this.#call("selftest", this.#begin(0).room(Uint8Array, size), size);
  }

  describe() {
    return JSON.parse(this.#text(this.#wasm.$NAME_describe()));
  }

  #change(name, value) {
    if (typeof value !== "number") throw new TypeError(`no number is ${value}`);
    this.#call(name, ...this.#own(), value);
  }

  #own() {
    return [this.#state, this.#bytes];
  }

  #room(what, ...sizes) {
    const whole = sizes.every((n) => Number.isSafeInteger(n) && n > 0 && n < 2 ** 31);
    const room = whole ? this.#wasm[`$NAME_${what}`](...sizes) >>> 0 : 0;
    if (room === 0) throw new RangeError(`$NAME does not take the sizes ${sizes}`);
    return room;
  }

  #whole(rows) {
    if (Number.isSafeInteger(rows) && rows >= 0 && rows < 2 ** 28) return rows;
    throw new RangeError(`no number of rows is ${rows}`);
  }

  #index(name) {
    const data = new TextEncoder().encode(`${name}\\0`);
    const at = this.#begin(0).put(Uint8Array, data, data.length, name);
    const index = data.indexOf(0) === data.length - 1 ? this.#wasm.$NAME_tensor(at) : -1;
    if (index < 0) throw new RangeError(`no tensor is called ${name}`);
    return index;
  }

  #check(feeds, names, what) {
    for (const name of names) {
      if (feeds?.[name]?.length === undefined) {
        throw new TypeError(`${what} needs the array ${name}`);
      }
    }
  }

  // memory behind the workspace, for one call
  #begin(room) {
    let end = this.#workspace + up(room);
    this.#sizes.clear();
    const take = (kind, count) => {
      const at = end;
      end += up(count * kind.BYTES_PER_ELEMENT);
      this.#grow(end);
      this.#sizes.set(at, count);
      return at;
    };
    const put = (kind, data, count, name, bits = false) => {
      if (data.length !== count) {
        throw new RangeError(`${name} has ${data.length} numbers, not ${count}`);
      }
      const at = take(kind, count);
      const held = new kind(this.#wasm.memory.buffer, at, count);
      held.set(data);
      if (kind !== Float32Array && kind !== Float64Array) {
        const bit = (given) => (bits && typeof given === "boolean" ? Number(given) : given);
        const i = held.findIndex((whole, i) => whole !== bit(data[i]));
        if (i >= 0) throw new RangeError(`${name}[${i}] is ${data[i]}, which its type has not`);
      }
      return at;
    };
    const order = (data, rows) => put(BigUint64Array, Array.from(data, BigInt), rows, "order");
    return { room: take, put, order };
  }

  #grow(end) {
    const memory = this.#wasm.memory;
    const missing = end - memory.buffer.byteLength;
    if (missing > 0) memory.grow(Math.ceil(missing / 65536));
  }

  #copy(kind, at, count = this.#sizes.get(at)) {
    return new kind(this.#wasm.memory.buffer, at, count).slice();
  }

  #text(at) {
    const bytes = new Uint8Array(this.#wasm.memory.buffer);
    return new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)));
  }

  #call(name, ...args) {
    const code = this.#wasm[`$NAME_${name}`](...args);
    if (code !== 0) throw new Error(this.#text(this.#wasm.$NAME_strerror(code)));
  }
}
"""
