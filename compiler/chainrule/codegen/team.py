"""A step shared by several threads: how they are given work, wait for each other and go to sleep.

The block of memory that they meet in is described where Python fills it in,
chainrule_runtime.pool: the names below are its fields, at the same offsets. Who waits spins for a
while, then sleeps in the kernel (futex(2), FUTEX_WAIT_PRIVATE and FUTEX_WAKE_PRIVATE, by syscall(2)
of the C library, whose address stands in the block); who ends
a wait wakes sleepers only where there are some. Both sides first write their own word and then read
the other's, in one order for all (Dekker), so no waking is missed. A worker stands in the code of a
step only as long as its caller waits; between steps it is in that of `work`, which is never freed.

`code` may be set by the first part whenever a check fails; the others hear of it as `decided`, what
it was when they last met, so all parts leave at one place. Whether a step is shared at all is
decided by codegen.trial.
"""

from __future__ import annotations

from chainrule.target import Target

#: bytes from the start of the block; what different threads write lies in lines of its own
FIELDS = {
    "busy": 0,
    "arrived": 64,
    "phase": 128,
    "dozing": 192,
    "function": 256,
    "table": 264,
    "sizes": 272,
    "parts": 280,
    "code": 288,
    "modes": 292,
    "spin": 320,
    "workers": 328,
    "stop": 336,
    "jobs": 344,
    "clock": 352,
    "decided": 360,
    "syscall": 368,
    "finished": 384,
    "ended": 448,
    "waiting": 452,
}
#: then a box for each worker, so many bytes long, with these fields
BOXES, BOX = 512, 128
BOX_FIELDS = {"go": 0, "asleep": 4, "entered": 8}
_FUTEX, _WAIT, _WAKE = {"x86_64": 202, "aarch64": 98}, 128, 129


def has_threads(target: Target) -> bool:
    """Whether a step can be shared there: under Linux, where sleeping is known."""
    return "linux" in target.triple and _arch(target) in _FUTEX


def _arch(target: Target) -> str:
    arch = target.triple.split("-")[0]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(arch, arch)


def team_functions(target: Target) -> str:
    """The LLVM text of `barrier`, `share`, `work` and `dismiss`."""
    text, arch = _TEAM, _arch(target)
    for name, offset in FIELDS.items():
        text = text.replace(
            f"$AT {name}\n", f"  %at_{name} = getelementptr i8, ptr %team, i64 {offset}\n"
        )
    for name, offset in BOX_FIELDS.items():
        text = text.replace(
            f"$BOX {name}\n", f"  %box_{name} = getelementptr i8, ptr %box, i64 {offset}\n"
        )
    text = text.replace("$BOXES", str(BOXES)).replace("$SIZE", str(BOX))
    text = text.replace("$FUTEX", str(_FUTEX[arch]))
    return text + (_X86 if arch == "x86_64" else _ARM)


_TEAM = f"""
define internal void @rest(ptr %team, ptr %word, i32 %seen, ptr %asleep, i64 %spin) #0 {{
entry:
  br label %look
look:
  %turn = phi i64 [0, %entry], [%turn_next, %again]
  %now = load atomic i32, ptr %word acquire, align 4
  %changed = icmp ne i32 %now, %seen
  br i1 %changed, label %done, label %wait
wait:
  %turn_next = add i64 %turn, 1
  %patient = icmp slt i64 %turn, %spin
  br i1 %patient, label %pause, label %sleep
pause:
  call void @pause()
  br label %again
sleep:
  %before = atomicrmw add ptr %asleep, i32 1 seq_cst
  call void @futex(ptr %team, ptr %word, i64 {_WAIT}, i32 %seen)
  %after = atomicrmw sub ptr %asleep, i32 1 seq_cst
  br label %again
again:
  br label %look
done:
  ret void
}}

define internal void @wake(ptr %team, ptr %word, ptr %asleep) #0 {{
entry:
  %change = atomicrmw add ptr %word, i32 1 seq_cst
  %sleepers = load atomic i32, ptr %asleep seq_cst, align 4
  %some = icmp ne i32 %sleepers, 0
  br i1 %some, label %rouse, label %done
rouse:
  call void @futex(ptr %team, ptr %word, i64 {_WAKE}, i32 2147483647)
  br label %done
done:
  ret void
}}

define internal void @barrier(ptr %team) #0 {{
entry:
  %alone = icmp eq ptr %team, null
  br i1 %alone, label %done, label %arrive
arrive:
$AT arrived
$AT phase
$AT dozing
$AT parts
$AT spin
  %parts = load i64, ptr %at_parts, align 8
  %spin = load i64, ptr %at_spin, align 8
  %seen = load atomic i32, ptr %at_phase acquire, align 4
  %others = atomicrmw add ptr %at_arrived, i32 1 seq_cst
  %others_wide = sext i32 %others to i64
  %missing = sub i64 %parts, %others_wide
  %last = icmp eq i64 %missing, 1
  br i1 %last, label %open, label %stay
open:
$AT code
$AT decided
  %code = load atomic i32, ptr %at_code monotonic, align 4
  store i32 %code, ptr %at_decided, align 4
  store atomic i32 0, ptr %at_arrived monotonic, align 4
  call void @wake(ptr %team, ptr %at_phase, ptr %at_dozing)
  br label %done
stay:
  call void @rest(ptr %team, ptr %at_phase, i32 %seen, ptr %at_dozing, i64 %spin)
  br label %done
done:
  ret void
}}

define internal i32 @share(ptr %table, ptr %sizes, ptr %team, i64 %wanted, ptr %function) #0 {{
entry:
$AT busy
$AT workers
  %pair = cmpxchg ptr %at_busy, i32 0, i32 1 seq_cst seq_cst
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %count, label %refuse
refuse:
  ret i32 -1
count:
  %workers = load i64, ptr %at_workers, align 8
  %most = add i64 %workers, 1
  %fewer = icmp slt i64 %wanted, %most
  %parts = select i1 %fewer, i64 %wanted, i64 %most
  %several = icmp sgt i64 %parts, 1
  br i1 %several, label %publish, label %release
release:
  store atomic i32 0, ptr %at_busy release, align 4
  ret i32 -1
publish:
$AT function
$AT table
$AT sizes
$AT parts
$AT code
$AT modes
$AT jobs
$AT spin
$AT finished
$AT ended
$AT waiting
  %spin = load i64, ptr %at_spin, align 8
  %seen = load atomic i32, ptr %at_ended monotonic, align 4
  store atomic i32 0, ptr %at_finished monotonic, align 4
  store ptr %function, ptr %at_function, align 8
  store ptr %table, ptr %at_table, align 8
  store ptr %sizes, ptr %at_sizes, align 8
  store i64 %parts, ptr %at_parts, align 8
$AT decided
  store i32 0, ptr %at_decided, align 4
  store atomic i32 0, ptr %at_code monotonic, align 4
  call void @keep_modes(ptr %at_modes)
  %jobs = load i64, ptr %at_jobs, align 8
  %jobs_next = add i64 %jobs, 1
  store i64 %jobs_next, ptr %at_jobs, align 8
  br label %call_one
call_one:
  %w = phi i64 [1, %publish], [%w_next, %call_one]
  %w_before = sub i64 %w, 1
  %w_bytes = mul i64 %w_before, $SIZE
  %w_from = add i64 %w_bytes, $BOXES
  %box = getelementptr i8, ptr %team, i64 %w_from
$BOX go
$BOX asleep
  call void @wake(ptr %team, ptr %box_go, ptr %box_asleep)
  %w_next = add i64 %w, 1
  %w_more = icmp slt i64 %w_next, %parts
  br i1 %w_more, label %call_one, label %own
own:
  call void %function(ptr %table, ptr %sizes, i64 0, ptr %team)
  call void @rest(ptr %team, ptr %at_ended, i32 %seen, ptr %at_waiting, i64 %spin)
  %code = load atomic i32, ptr %at_code monotonic, align 4
  store atomic i32 0, ptr %at_busy release, align 4
  ret i32 %code
}}

define void @work(ptr %team, i64 %number) #1 {{
entry:
$AT function
$AT table
$AT sizes
$AT parts
$AT modes
$AT spin
$AT stop
$AT finished
$AT ended
$AT waiting
  %before = sub i64 %number, 1
  %bytes = mul i64 %before, $SIZE
  %from = add i64 %bytes, $BOXES
  %box = getelementptr i8, ptr %team, i64 %from
$BOX go
$BOX asleep
$BOX entered
  store atomic i32 1, ptr %box_entered seq_cst, align 4
  br label %next
next:
  %seen = phi i32 [0, %entry], [%job, %finish]
  %spin = load i64, ptr %at_spin, align 8
  call void @rest(ptr %team, ptr %box_go, i32 %seen, ptr %box_asleep, i64 %spin)
  %job = add i32 %seen, 1
  %stop = load atomic i32, ptr %at_stop seq_cst, align 4
  %over = icmp ne i32 %stop, 0
  br i1 %over, label %done, label %run
run:
  %function = load ptr, ptr %at_function, align 8
  %table = load ptr, ptr %at_table, align 8
  %sizes = load ptr, ptr %at_sizes, align 8
  %parts = load i64, ptr %at_parts, align 8
  call void @take_modes(ptr %at_modes)
  call void %function(ptr %table, ptr %sizes, i64 %number, ptr %team)
  %others = atomicrmw add ptr %at_finished, i32 1 seq_cst
  %others_wide = sext i32 %others to i64
  %missing = sub i64 %parts, %others_wide
  %last = icmp eq i64 %missing, 2
  br i1 %last, label %tell, label %finish
tell:
  call void @wake(ptr %team, ptr %at_ended, ptr %at_waiting)
  br label %finish
finish:
  br label %next
done:
  ret void
}}

define i64 @dismiss(ptr %team) #1 {{
entry:
$AT busy
$AT workers
$AT stop
  %pair = cmpxchg ptr %at_busy, i32 0, i32 1 seq_cst seq_cst
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %begin, label %refuse
refuse:
  ret i64 0
begin:
  %workers = load i64, ptr %at_workers, align 8
  store atomic i32 1, ptr %at_stop seq_cst, align 4
  br label %test
test:
  %w = phi i64 [0, %begin], [%w_next, %send]
  %more = icmp slt i64 %w, %workers
  br i1 %more, label %send, label %done
send:
  %bytes = mul i64 %w, $SIZE
  %from = add i64 %bytes, $BOXES
  %box = getelementptr i8, ptr %team, i64 %from
$BOX go
$BOX asleep
  call void @wake(ptr %team, ptr %box_go, ptr %box_asleep)
  %w_next = add i64 %w, 1
  br label %test
done:
  ret i64 1
}}

define internal void @futex(ptr %team, ptr %word, i64 %what, i32 %value) #1 {{
$AT syscall
  %syscall = load ptr, ptr %at_syscall, align 8
  %wide = zext i32 %value to i64
  %got = call i64 (i64, ...) %syscall(i64 $FUTEX, ptr %word, i64 %what, i64 %wide, i64 0)
  ret void
}}
"""

# rounding and flushing are modes of a thread: workers take over the caller's
_X86 = """
define internal void @pause() #1 {
  call void @llvm.x86.sse2.pause()
  ret void
}

define internal void @keep_modes(ptr %to) #1 {
  call void @llvm.x86.sse.stmxcsr(ptr %to)
  ret void
}

define internal void @take_modes(ptr %from) #1 {
  call void @llvm.x86.sse.ldmxcsr(ptr %from)
  ret void
}

declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)"""

# what yields there costs next to nothing, so who waits stops for the pipeline to empty
_ARM = """
define internal void @pause() #1 {
  call void @llvm.aarch64.isb(i32 15)
  ret void
}

define internal void @keep_modes(ptr %to) #1 {
  %modes = call i64 @llvm.aarch64.get.fpcr()
  %short = trunc i64 %modes to i32
  store i32 %short, ptr %to, align 4
  ret void
}

define internal void @take_modes(ptr %from) #1 {
  %short = load i32, ptr %from, align 4
  %modes = zext i32 %short to i64
  call void @llvm.aarch64.set.fpcr(i64 %modes)
  ret void
}

declare void @llvm.aarch64.isb(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)"""
