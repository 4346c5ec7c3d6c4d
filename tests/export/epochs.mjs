// Epochs, their order and numbers of the optimizer, by the module alone.
import assert from "node:assert/strict";
import { Net } from "./net.js";

const ROWS = 70;
const x = new Float32Array(ROWS * 4).map((_, i) => Math.sin(i));
const y = new Int32Array(ROWS).map((_, i) => i % 3);
const whole = await Net.load();
const single = await Net.load();
whole.init(3);
single.init(3n);
const order = whole.shuffle(ROWS);
assert.deepEqual(order, single.shuffle(ROWS));
assert.deepEqual(
  Array.from(order, Number).sort((a, b) => a - b),
  Array.from({ length: ROWS }, (_, i) => i),
);
const losses = whole.steps({ x, y, batch: 32 }, order);
const expected = [];
for (let i = 0; i < ROWS; i += 32) {
  const rows = Array.from(order.slice(i, i + 32), Number);
  const some = rows.flatMap((r) => [...x.slice(4 * r, 4 * r + 4)]);
  expected.push(single.step({ x: some, y: rows.map((r) => y[r]) }));
}
assert.deepEqual([...losses], expected);
assert.deepEqual(whole.save(), single.save());
assert.equal(whole.steps({ x, y, batch: 64 }).length, 2);
assert.notDeepEqual(whole.shuffle(ROWS), order);

whole.learningRate = 0.5;
assert.equal(new Float32Array(whole.get("optimizer.learning_rate").buffer)[0], 0.5);

const before = whole.save();
const wrong = {
  "no batch": () => whole.steps({ x, y }),
  "too large": () => whole.steps({ x, y, batch: 65 }),
  "part of a row": () => whole.steps({ x: x.slice(1), y, batch: 32 }),
  "other rows": () => whole.steps({ x, y: y.slice(1), batch: 32 }),
  "short order": () => whole.steps({ x, y, batch: 32 }, [1, 2]),
  "no rows": () => whole.steps({ x, y, batch: 32 }, Array(ROWS).fill(ROWS)),
  negative: () => whole.steps({ x, y, batch: 32 }, Array(ROWS).fill(-1)),
  fraction: () => whole.steps({ x, y, batch: 32 }, Array(ROWS).fill(0.5)),
  "no number of rows": () => whole.shuffle(-1),
  rate: () => (whole.learningRate = -1),
  NaN: () => (whole.learningRate = NaN),
  "no number": () => (whole.learningRate = null),
  text: () => (whole.learningRate = "0.1"),
  "a name that ends early": () => whole.get("W1\0x"),
};
for (const [what, call] of Object.entries(wrong)) assert.throws(call, undefined, what);
assert.deepEqual(whole.save(), before);
const labels = y.with(40, 9);
assert.throws(() => whole.steps({ x, y: labels, batch: 32 }), { done: 1 });
