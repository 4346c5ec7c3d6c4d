"""`step` where threads may share it: shared or alone, whichever was measured to be faster.

Nobody can tell beforehand: another process may have the CPUs, caches may be too small for two. So
both are measured, in turn: steps are shared for a while, then done alone for a while, and what a
step took on average decides how long the next while is. The slower way gets no more than a trial,
the faster one PATIENCE times as long as the trial of the other has lost, so all trials together
cost about 1/PATIENCE of the time, however often conditions change. A long while of what was faster
and no longer is counts as one trial: what it lost is gone, and the next trial loses no more than
one does. The way that is taken never shows in a result: both have the same bits.

What is measured stands behind the sizes that a step is given (RECORD), one for each program and
combination of sizes, so a caller that holds the program's lock is alone with it.
"""

from __future__ import annotations

from chainrule.codegen.team import FIELDS

#: what stands behind the sizes, 8 bytes each, in the order in which chainrule_runtime.sharing fills
#: it in: the team or null, how many parts there should be, a byte for each shared call (whether it
#: is worth sharing) and one for each stage of a step (whether parts meet before it); then the
#: nanoseconds of a trial, and the while that lasts: 1 for shared, its length, its steps and the
#: nanoseconds they took; then the nanoseconds of a step alone and of one shared, when last measured
RECORD = (
    "team", "parts", "worth", "waits",
    "trial", "mode", "length", "count", "spent", "alone", "shared",
)  # fmt: skip
#: how many times what a trial lost must be gained before the next
PATIENCE = 128
#: one trial tells little where other processes come and go: 1/SMOOTH of it counts, and the rest is
#: what was known before; a while of LONG trials counts whole
SMOOTH, LONG = 4, 8
#: a trial's loss counts up to what its steps may lose and so many trials: a process that was
#: stopped meanwhile is not to pay for hours
STALL = 8
#: CLOCK_MONOTONIC of clock_gettime(2), under Linux
_MONOTONIC = 1


def trial_functions(sizes: int) -> str:
    """The LLVM text of `i32 @step(table, sizes)`, for a module that has `@alone` and `@part`.

    There are so many `sizes` before the record.
    """
    text = _TRIAL.replace("$BEFORE", str(sizes)).replace("$CLOCK", str(FIELDS["clock"]))
    for i, name in enumerate(RECORD):
        at = f"  %at_{name} = getelementptr i64, ptr %record, i64 {i}\n"
        text = text.replace(f"$AT {name}\n", at)
    return text


_TRIAL = f"""
define i32 @step(ptr %table, ptr %sizes) #1 {{
entry:
  %record = getelementptr i64, ptr %sizes, i64 $BEFORE
$AT team
  %team = load ptr, ptr %at_team, align 8
  %none = icmp eq ptr %team, null
  br i1 %none, label %simple, label %choose
choose:
$AT mode
$AT parts
  %begun = call i64 @now(ptr %team)
  %mode = load i64, ptr %at_mode, align 8
  %parts = load i64, ptr %at_parts, align 8
  %sharing = icmp ne i64 %mode, 0
  br i1 %sharing, label %ask, label %measured
ask:
  %told = call i32 @share(ptr %table, ptr %sizes, ptr %team, i64 %parts, ptr @part)
  %refused = icmp slt i32 %told, 0
  br i1 %refused, label %simple, label %note
measured:
  %own = call i32 @alone(ptr %table, ptr %sizes)
  br label %note
note:
  %code = phi i32 [%told, %ask], [%own, %measured]
  %ended = call i64 @now(ptr %team)
  %took = sub i64 %ended, %begun
  call void @note(ptr %record, i64 %took)
  ret i32 %code
simple:
  %plain = call i32 @alone(ptr %table, ptr %sizes)
  ret i32 %plain
}}

define internal void @note(ptr %record, i64 %took) #0 {{
entry:
$AT mode
$AT length
$AT count
$AT spent
  %length = load i64, ptr %at_length, align 8
  %count_before = load i64, ptr %at_count, align 8
  %spent_before = load i64, ptr %at_spent, align 8
  %count = add i64 %count_before, 1
  %spent = add i64 %spent_before, %took
  %over = icmp sge i64 %spent, %length
  br i1 %over, label %compare, label %go_on
go_on:
  store i64 %count, ptr %at_count, align 8
  store i64 %spent, ptr %at_spent, align 8
  ret void
compare:
$AT trial
$AT alone
$AT shared
  %mode = load i64, ptr %at_mode, align 8
  %sharing = icmp ne i64 %mode, 0
  %at_this = select i1 %sharing, ptr %at_shared, ptr %at_alone
  %at_other = select i1 %sharing, ptr %at_alone, ptr %at_shared
  %mean = sdiv i64 %spent, %count
  %before = load i64, ptr %at_this, align 8
  %other = load i64, ptr %at_other, align 8
  %trial = load i64, ptr %at_trial, align 8
  %long = mul i64 %trial, {LONG}
  %surely = icmp sge i64 %spent, %long
  %first = icmp eq i64 %before, 0
  %plain = or i1 %surely, %first
  %apart = sub i64 %mean, %before
  %some = sdiv i64 %apart, {SMOOTH}
  %smooth = add i64 %before, %some
  %this = select i1 %plain, i64 %mean, i64 %smooth
  store i64 %this, ptr %at_this, align 8
  %all_trials = mul i64 %trial, %count
  %in_trial = sdiv i64 %all_trials, %spent
  %tried = add i64 %in_trial, 1
  %longer_yet = icmp slt i64 %tried, %count
  %counted = select i1 %longer_yet, i64 %tried, i64 %count
  %more = sub i64 %mean, %other
  %lost_all = mul i64 %more, %counted
$AT parts
  %parts = load i64, ptr %at_parts, align 8
  %steps = mul i64 %counted, %parts
  %usual = mul i64 %other, %steps
  %stall = mul i64 %trial, {STALL}
  %bound = add i64 %usual, %stall
  %stalled = icmp sgt i64 %lost_all, %bound
  %lost = select i1 %stalled, i64 %bound, i64 %lost_all
  %gain = mul i64 %lost, {PATIENCE}
  %known = icmp ne i64 %other, 0
  %slower = icmp sgt i64 %this, %other
  %longer = icmp sgt i64 %gain, %trial
  %sure = and i1 %known, %slower
  %worse = and i1 %sure, %longer
  %length_next = select i1 %worse, i64 %gain, i64 %trial
  %mode_next = xor i64 %mode, 1
  store i64 %mode_next, ptr %at_mode, align 8
  store i64 %length_next, ptr %at_length, align 8
  store i64 0, ptr %at_count, align 8
  store i64 0, ptr %at_spent, align 8
  ret void
}}

define internal i64 @now(ptr %team) #1 {{
entry:
  %time = alloca [2 x i64], align 8
  %at_clock = getelementptr i8, ptr %team, i64 $CLOCK
  %clock = load ptr, ptr %at_clock, align 8
  %none = icmp eq ptr %clock, null
  br i1 %none, label %unknown, label %read
read:
  %failed = call i32 %clock(i32 {_MONOTONIC}, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %at_rest = getelementptr i64, ptr %time, i64 1
  %rest = load i64, ptr %at_rest, align 8
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %rest
  ret i64 %now
unknown:
  ret i64 0
}}"""
