"""What this machine can do at best, by kernels of ours: multiply-adds and bytes a second, and how
soon two threads that share a step hear of each other.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import numpy as np

from chainrule.codegen.host import host_target
from chainrule.codegen.module import attributes
from chainrule.codegen.native import compile_object, load
from chainrule.codegen.team import has_threads, team_functions

#: multiply-adds in flight: two units of four cycles want 8, and 12 fit 16 registers
_CHAINS = 12
_ROUNDS = 20
#: bytes that lie in a cache together
_LINE = 64
#: bytes that one call reads at the least, so that it is no call that is timed
_LEAST = 2**22
_SECONDS = 0.02


#: times that parts meet in one step, of which those of a step without are taken off
_MEETINGS = 64
#: so many steps in a row are looked at
_STEPS = 8


def _text(lanes: int) -> str:
    """`fma(n, out)`: n times _CHAINS vector multiply-adds; `read(x, n, rounds, out)`: sums."""
    v = f"<{lanes} x float>"
    chains = range(_CHAINS)
    phis = "\n".join(f"%a{i} = phi {v} [zeroinitializer, %top], [%b{i}, %loop]" for i in chains)
    steps = "\n".join(
        f"%b{i} = call {v} @llvm.fmuladd({v} %a{i}, {v} splat (float 0.5), {v} splat (float 1.0))"
        for i in chains
    ).replace("@llvm.fmuladd", f"@llvm.fmuladd.v{lanes}f32")
    stores = "\n".join(
        f"%p{i} = getelementptr {v}, ptr %out, i64 {i}\nstore {v} %b{i}, ptr %p{i}, align 4"
        for i in chains
    )
    loads = "\n".join(
        f"%j{i} = add i64 %k, {i}\n%q{i} = getelementptr {v}, ptr %x, i64 %j{i}\n"
        f"%l{i} = load {v}, ptr %q{i}, align 4\n%b{i} = fadd {v} %a{i}, %l{i}"
        for i in chains
    )
    return f"""
declare {v} @llvm.fmuladd.v{lanes}f32({v}, {v}, {v})
define void @fma(i64 %n, ptr %out) {{
top:
  br label %loop
loop:
  %k = phi i64 [0, %top], [%next, %loop]
  {phis}
  {steps}
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  {stores}
  ret void
}}
define void @read(ptr %x, i64 %n, i64 %rounds, ptr %out) {{
top:
  %all = mul i64 %n, %rounds
  br label %loop
loop:
  %done = phi i64 [0, %top], [%next, %loop]
  %k = phi i64 [0, %top], [%again, %loop]
  {phis}
  {loads}
  %next = add i64 %done, {_CHAINS}
  %on = add i64 %k, {_CHAINS}
  %whole = icmp slt i64 %on, %n
  %again = select i1 %whole, i64 %on, i64 0
  %more = icmp slt i64 %next, %all
  br i1 %more, label %loop, label %end
end:
  {stores}
  ret void
}}
"""


def _sharing(meetings: int) -> str:
    """`steps(team, n, to)`: n steps shared by two parts, each of which meets so often or never."""
    meet = "\n".join(["  call void @barrier(ptr %team)"] * meetings)
    part = "ptr %table, ptr %sizes, i64 %part, ptr %team"
    return f"""
define void @never({part}) {{
  ret void
}}
define void @often({part}) {{
{meet}
  ret void
}}
define void @steps(ptr %team, i64 %n, i64 %often) {{
top:
  %meets = icmp ne i64 %often, 0
  %function = select i1 %meets, ptr @often, ptr @never
  br label %loop
loop:
  %k = phi i64 [0, %top], [%next, %loop]
  %code = call i32 @share(ptr null, ptr null, ptr %team, i64 2, ptr %function)
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}}
"""


class Machine:
    """The best rates of one core, measured when asked for; `shares` tells whether two may share."""

    def __init__(self) -> None:
        target = host_target()
        self.lanes = target.vector_bytes // 4
        self.level = target.level
        self.shares = has_threads(target)
        text = _text(self.lanes)
        if self.shares:
            text += "\n".join([_sharing(_MEETINGS), team_functions(target), attributes(target)])
        self._code = load(compile_object(text, target))
        self._out = np.zeros(_CHAINS * self.lanes, np.float32)

    def flops(self) -> float:
        """Floating-point operations a second, two for each multiply-add."""
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)
        fma, count = kind(self._code.address("fma")), 20_000
        seconds = _best(lambda: fma(count, self._out.ctypes.data))
        return 2.0 * count * _CHAINS * self.lanes / seconds

    def bandwidth(self, size: int) -> float:
        """Bytes a second, read from a block of about so many bytes, wherever it fits."""
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        read = ctypes.CFUNCTYPE(None, pointer, number, number, pointer)(self._code.address("read"))
        vector = 4 * self.lanes
        count = max(1, size // (vector * _CHAINS)) * _CHAINS
        rounds = -(-_LEAST // (count * vector))
        block = np.ones(count * self.lanes + _LINE // 4, np.float32)
        at = -(-block.ctypes.data // _LINE) * _LINE  # a load that lies in two lines takes two
        out = self._out.ctypes.data
        return rounds * count * vector / _best(lambda: read(at, count, rounds, out))

    @property
    def crew(self) -> tuple[int, int, object]:
        """What a team is hired with: its code's addresses, and what keeps that alive."""
        return self._code.address("work"), self._code.address("dismiss"), self._code

    def sharing(self, team: int) -> tuple[float, float]:
        """Seconds that a shared step costs two threads of a team, and each time that they meet."""
        number = ctypes.c_int64
        steps = ctypes.CFUNCTYPE(None, ctypes.c_void_p, number, number)(self._code.address("steps"))

        def least(often: int) -> float:
            """Seconds of a step, of some in a row while both threads had a CPU."""
            begun, looks = time.perf_counter(), [float("inf")]
            while time.perf_counter() - begun < 3 * _SECONDS:
                one = time.perf_counter()
                steps(team, _STEPS, often)
                looks.append(time.perf_counter() - one)
            return min(looks) / _STEPS

        without, with_all = least(0), least(1)
        return without, max(with_all - without, 0.0) / _MEETINGS


def _best(run: Callable[[], object]) -> float:
    """Seconds of one run: the least of some rounds, each long enough for the clock, and shorter
    than the time that another process takes when its turn comes.
    """
    times, best = 1, float("inf")
    run()
    for _ in range(_ROUNDS):
        while True:
            begun = time.perf_counter()
            for _ in range(times):
                run()
            spent = time.perf_counter() - begun
            if spent >= _SECONDS / _ROUNDS:
                break
            times *= 2
        best = min(best, spent / times)
    return best
