"""What a copy engine and products of panels do, for the emulator of PTX: from "PTX ISA 9.0",
NVIDIA, 2025, sections tensors, tensormap.replace, mbarrier, cp.async.bulk.tensor, wgmma, and of the
memory model proxies.

All that goes on by itself ends as late as it may: copies come when a bell is asked for them the
second time, sums when their group is waited for. What they write holds garbage until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Place = tuple[int, int]  # a block, and an address in its shared memory
MAP_BYTES, GROUP = 128, 128
#: fields of a tensor map that take a dimension's number
_BY_DIMENSION = ("box_dim", "global_dim", "global_stride", "element_stride")


@dataclass
class Bell:
    """An mbarrier: arrivals it still waits for, bytes under way, and how often it was complete."""

    count: int
    pending: int
    bytes_left: int = 0
    phase: int = 0
    copies: list[tuple[Array, Array]] = field(default_factory=list)
    asked: bool = False


@dataclass
class Multiply:
    """A wgmma.mma_async of one group of four warps that nobody has waited for yet."""

    threads: slice
    block: int
    a: int
    b: int
    turned: tuple[bool, bool]
    registers: list[str]


class Engine:
    """The part of the machine that has these; the machine is in `ptx_machine`."""

    registers: dict[str, Array]
    memory: Mapping[int, Array]
    shared: Array
    block: Array
    mask: Array
    count: int
    read: Callable[[str, str], Array]
    address: Callable[[str], Array]

    def start(self) -> None:
        self.unfenced = np.zeros(self.shared.shape, np.int64)  # the thread that wrote a byte, or 0
        self.drafts: dict[Place, dict[Any, int]] = {}
        self.maps: dict[int, dict[Any, int]] = {}
        self.seen: set[tuple[int, int]] = set()  # maps that a thread may name
        # acquired, but what the engine knew before may still be there, until a group closed behind
        # that was waited for: PTX does not ask for it, what ptxas makes of an acquire does
        self.settling: dict[tuple[int, int], bool] = {}
        self.bells: dict[Place, Bell] = {}
        self.asking = np.zeros(self.count, bool)  # threads that were told that a bell has not rung
        self.idle = 0  # how often all had been told so since one last rang
        self.open: dict[int, list[Multiply]] = {}  # by group: what no commit has closed
        self.closed: dict[int, list[list[Multiply]]] = {}
        self.busy: dict[str, Array] = {}
        self.changed: dict[str, Array] = {}  # registers that were written since wgmma.fence

    def finished(self) -> bool:
        copies = any(bell.copies for bell in self.bells.values())
        return not copies and not any(self.open.values()) and not any(self.closed.values())

    def engine(self, text: str, word: list[str], operands: list[str]) -> None:
        if text.startswith("tensormap.replace.tile"):
            self.replace(word[3], operands)
        elif text.startswith("tensormap.cp_fenceproxy"):
            self.copy_map(text, operands)
        elif text.startswith("fence"):
            self.fence(text, operands)
        elif text.startswith("mbarrier"):
            self.bell(text, operands)
        elif text.startswith(("cp.async.bulk.commit_group", "cp.async.bulk.wait_group")):
            self.settle(text, operands)
        elif text.startswith("cp.async.bulk"):
            self.bring(text, operands)
        else:
            self.group(text, word, operands)

    def mine(self, operand: str) -> list[Place]:
        """The block and the address that each active thread gives."""
        at, rows = self.address(operand), np.flatnonzero(self.mask)
        return [(int(self.block[t]), int(at[t])) for t in rows]

    # maps of tensors

    def replace(self, name: str, operands: list[str]) -> None:
        for place in self.mine(operands[0]):
            block, at = place
            assert at % MAP_BYTES == 0, "misaligned"
            if place not in self.drafts:
                assert not self.shared[block, at : at + MAP_BYTES].any(), "no map to be changed"
            draft = self.drafts.setdefault(place, {})
            thread = int(np.flatnonzero(self.mask & (self.block == block))[0])
            value = int(self.read(operands[-1], "u64")[thread])
            draft[(name, int(operands[1])) if name in _BY_DIMENSION else name] = value

    def copy_map(self, text: str, operands: list[str]) -> None:
        for number, (place, target) in enumerate(
            zip(self.mine(operands[1]), self.mine(operands[0]), strict=True)
        ):
            warp = number // 32
            assert operands[2] == str(MAP_BYTES) and target[1] % MAP_BYTES == 0, text
            assert self.mask.reshape(-1, 32)[self.mask.reshape(-1, 32).any(axis=1)].all(), warp
            self.maps[target[1]] = dict(self.drafts[place])
            self.bytes_of(target[1], MAP_BYTES)  # it is memory

    def fence(self, text: str, operands: list[str]) -> None:
        if text == "fence.proxy.tensormap::generic.acquire.gpu":
            at = self.address(operands[0])
            self.settling |= {(int(t), int(at[t])): False for t in np.flatnonzero(self.mask)}
        elif text == "fence.proxy.async.shared::cta":
            mine = np.isin(self.unfenced, np.flatnonzero(self.mask) + 1)
            self.unfenced[mine] = 0
        else:
            assert text == "fence.mbarrier_init.release.cluster", text

    def settle(self, text: str, operands: list[str]) -> None:
        """A group of nothing, closed and waited for."""
        mine = [one for one in self.settling if self.mask[one[0]]]
        if text == "cp.async.bulk.commit_group":
            self.settling |= dict.fromkeys(mine, True)
            return
        assert text == "cp.async.bulk.wait_group.read" and operands == ["0"], text
        self.seen |= {one for one in mine if self.settling.pop(one)}

    def bytes_of(self, at: int, size: int) -> Array:
        for first, block in self.memory.items():
            if first <= at and at + size <= first + len(block):
                return block[at - first : at - first + size]
        raise AssertionError("outside memory")

    # bells, and what they ring for

    def bell(self, text: str, operands: list[str]) -> None:
        if text == "mbarrier.init.shared::cta.b64":
            for block, at in self.mine(operands[0]):
                assert at % 8 == 0 and (block, at) not in self.bells
                count = int(operands[1])
                self.bells[block, at] = Bell(count, count)
                thread = int(np.flatnonzero(self.mask & (self.block == block))[0])
                self.unfenced[block, at : at + 8] = thread + 1
        elif text == "mbarrier.arrive.expect_tx.shared::cta.b64":
            for place in self.mine(operands[1]):
                bell = self.bells[place]
                bell.bytes_left += int(operands[2])
                bell.pending -= 1
                assert bell.pending >= 0
        else:
            assert text == "mbarrier.try_wait.parity.shared::cta.b64", text
            parity = self.read(operands[2], "u32")
            rung = np.zeros(self.count, bool)
            places = self.mine(operands[1])
            for place in dict.fromkeys(places):
                self.ring(place)
            for thread, place in zip(np.flatnonzero(self.mask), places, strict=True):
                rung[thread] = self.bells[place].phase % 2 != parity[thread]
            self.asking |= self.mask & ~rung
            self.idle = 0 if rung.any() else self.idle
            self.write(operands[0], rung, "pred")  # type: ignore[attr-defined]

    def ring(self, place: Place) -> None:
        """What a bell waits for comes, if it is asked for the second time."""
        bell = self.bells[place]
        if bell.pending or not bell.asked:
            bell.asked = True
            return
        for at, data in bell.copies:
            self.shared[place[0], at] = data
            bell.bytes_left -= data.size
        assert bell.bytes_left == 0, "a bell waits for bytes that nobody brings"
        bell.copies, bell.pending, bell.asked = [], bell.count, False
        bell.phase += 1

    def bring(self, text: str, operands: list[str]) -> None:
        wanted = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        assert text == wanted, text
        chart, place = operands[1].strip("[]").split(", {")
        first, line = (self.read(o.strip(" }"), "s32") for o in place.split(","))
        for thread in np.flatnonzero(self.mask):
            block = int(self.block[thread])
            to, at, bell = (
                int(self.address(o)[thread]) for o in (operands[0], f"[{chart}]", operands[2])
            )
            assert (int(thread), at) in self.seen, "a map that was not fenced"
            assert not self.unfenced[block, bell : bell + 8].any(), "a bell that was not fenced"
            data = self.box(self.maps[at], int(first[thread]), int(line[thread]))
            where = to + np.arange(data.size)
            assert to % MAP_BYTES == 0, "misaligned"
            assert where[-1] < self.shared.shape[1], "outside shared memory"
            assert not self.unfenced[block, where].any(), "written, and not fenced"
            where = swizzled(where)
            self.shared[block, where] = 0xFF
            self.bells[block, bell].copies.append((where, data.reshape(-1)))

    def box(self, told: Mapping[Any, int], first: int, line: int) -> Array:
        """The bytes of a box of two dimensions, lines of 128; 0 for what is outside."""
        wanted = {"rank": 1, "elemtype": 10, "interleave_layout": 0, "swizzle_mode": 3,
                  "fill_mode": 0, ("element_stride", 0): 1, ("element_stride", 1): 1}  # fmt: skip
        assert {k: told[k] for k in wanted} == wanted
        start, apart = told["global_address"], told["global_stride", 0]
        along, lines = told["global_dim", 0], told["global_dim", 1]
        wide, high = told["box_dim", 0], told["box_dim", 1]
        assert start % 16 == 0 and apart % 16 == 0 and apart < 2**40
        assert 0 < along <= 2**32 and 0 < lines <= 2**32 and apart >= along * 2
        assert wide * 2 == 128 and 0 < high <= 256
        data = np.zeros((high, 128), np.uint8)
        for row in range(high):
            begin, end = max(first, 0), min(first + wide, along)
            if 0 <= line + row < lines and begin < end:
                at = start + (line + row) * apart + 2 * begin
                data[row, 2 * (begin - first) : 2 * (end - first)] = self.bytes_of(
                    at, 2 * (end - begin)
                )
        return data

    # products of panels

    def group(self, text: str, word: list[str], operands: list[str]) -> None:
        here = self.mask.reshape(-1, GROUP)
        groups = np.flatnonzero(here.any(axis=1))
        assert "sync" in word and "aligned" in word and here[groups].all(), "not all of a group"
        if word[1] == "fence":
            for name in list(self.changed):
                self.changed[name] = self.changed[name] & ~self.mask
        elif word[1] == "mma_async":
            assert text == "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16", text
            for group in map(int, groups):
                self.open.setdefault(group, []).append(self.asked(group, operands))
        elif word[1] == "commit_group":
            for group in map(int, groups):
                self.closed.setdefault(group, []).append(self.open.pop(group, []))
        else:
            assert word[1] == "wait_group", text
            for group in map(int, groups):
                waiting = self.closed.get(group, [])
                while len(waiting) > int(operands[0]):
                    for product in waiting.pop(0):
                        self.multiply_panels(product)

    def asked(self, group: int, operands: list[str]) -> Multiply:
        threads = slice(group * GROUP, (group + 1) * GROUP)
        names = [n.strip() for n in operands[0].strip("{}").split(",")]
        assert len(names) == 64 and operands[3:6] == ["1", "1", "1"], operands[3:]
        for name in names:
            changed = self.changed.get(name)
            assert changed is None or not changed[threads].any(), "no wgmma.fence"
            self.busy.setdefault(name, np.zeros(self.count, bool))[threads] = True
        a, b = (self.read(o, "u64")[threads] for o in operands[1:3])
        assert (a == a[0]).all() and (b == b[0]).all(), "a group multiplies several tiles"
        turned = operands[6] == "1", operands[7] == "1"
        return Multiply(threads, int(self.block[threads][0]), int(a[0]), int(b[0]), turned, names)

    def multiply_panels(self, m: Multiply) -> None:
        """Sums in float64, rounded once; fragments as the ISA draws them for D."""
        a, b = (
            self.factor(m.a, m.block, 64, m.turned[0]),
            self.factor(m.b, m.block, 128, m.turned[1]),
        )
        made = a @ b.T
        thread = np.arange(GROUP)
        for r, name in enumerate(m.registers):
            row = thread // 32 * 16 + thread % 32 // 4 + 8 * (r // 2 % 2)
            column = 8 * (r // 4) + thread % 4 * 2 + r % 2
            self.busy[name][m.threads] = False
            held = self.registers[name][m.threads].view("f4")
            held[:] = (held.astype("f8") + made[row, column]).astype("f4")

    def factor(self, descriptor: int, block: int, lines: int, turned: bool) -> Array:
        """Rows, or columns, by 16 terms, from where a descriptor says they are."""
        start, leading, stride = ((descriptor >> s & 0x3FFF) << 4 for s in (0, 16, 32))
        assert descriptor >> 62 == 1, "not the 128-byte swizzle"
        assert descriptor >> 46 & 0xFFFF == 0, "the swizzle begins elsewhere"
        assert descriptor >> 14 & 3 == 0 and descriptor >> 30 & 3 == 0
        i, k = np.arange(lines)[:, None], np.arange(16)[None]
        if turned:  # lines of 64 rows or columns, eight terms to an atom
            at = start + i // 64 * leading + i % 64 * 2 + k // 8 * stride + k % 8 * 128
        else:
            at = start + i // 8 * stride + i % 8 * 128 + k * 2
        at = swizzled(at)
        assert at.max() + 2 <= self.shared.shape[1], "outside shared memory"
        assert not self.unfenced[block, at].any(), "written, and not fenced"
        low, high = (self.shared[block, at + i].astype(np.uint32) for i in (0, 1))
        return (low << 16 | high << 24).astype(np.uint32).view("f4").astype("f8")


def swizzled(at: Array) -> Array:
    """Where a byte lies in the 128-byte swizzle: bits 4 to 6 of the address exclusive or 7 to 9."""
    return at ^ ((at >> 7 & 7) << 4)
