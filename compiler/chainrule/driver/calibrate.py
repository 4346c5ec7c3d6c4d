"""How fast this machine is: measured once, in about a second, and kept beside compiled programs.

Nothing is measured unless it is asked for; until then the usual speeds of the instruction level are
taken. What is kept is found by the machine's features and this compiler's version, and read as
carefully as code is. Speeds decide what is predicted, which candidates are timed and whether
threads are worth their meetings: none of it shows in a result.
"""

from __future__ import annotations

import os
from functools import lru_cache

from chainrule.codegen.cache import key_of, object_cache
from chainrule.codegen.host import describe_host, host_target
from chainrule.target.speeds import Speeds, read_speeds, usual_speeds
from chainrule_runtime.pool import TEAM, usable_cpus

#: bytes of the blocks that are read, and of one that is larger than all of them: what lies in
#: between is as fast as the next larger one
BLOCKS = (2**15, 2**18, 2**20, 2**22, 2**24, 2**26)
FAR = 2**27
#: by how much a fork or a meeting may differ from the usual one
FACTOR = 4


def speeds() -> Speeds:
    """This machine's: as they were measured, or the usual ones of its level."""
    return calibrated() or usual_speeds(host_target().level)


def calibrated() -> Speeds | None:
    """This machine's speeds, if they have been measured."""
    cache = object_cache()
    return _known(host_target().level, str(cache.folder) if cache else "")


def worth_sharing(call_work: int, step_work: int) -> tuple[int, int]:
    """How much work a call and a step must be for threads to share them: so much on a usual machine
    of this level, less where a calibrated one needs less time to meet than that takes. Never more:
    where sharing loses, trials find out, and what is shared in part moves memory to and fro.
    """
    here, usual = calibrated(), usual_speeds(host_target().level)
    if here is None:
        return call_work, step_work
    faster = here.flops / usual.flops
    call, step = here.meeting / usual.meeting, here.fork / usual.fork
    return int(call_work * min(1, faster * call)), int(step_work * min(1, faster * step))


def calibrate() -> Speeds:
    """Measure this machine's speeds, and keep them."""
    found = _measured()
    cache = object_cache()
    if cache is not None:
        cache.put(_key(), found.text().encode())
    _known.cache_clear()
    _here[host_target().level] = found
    return found


#: what this process has measured, by instruction level
_here: dict[str, Speeds] = {}


@lru_cache(maxsize=8)
def _known(level: str, folder: str) -> Speeds | None:
    cache = object_cache() if folder else None
    content = cache.get(_key()) if cache else None
    found = read_speeds(content.decode(errors="replace")) if content else None
    return found or _here.get(level)


def _key() -> bytes:
    host = describe_host()
    features = " ".join(sorted(host.features))
    return key_of(["speeds", host_target().level, host.cpu, features, str(os.cpu_count())])


def _measured() -> Speeds:
    from chainrule.codegen.rates import Machine

    machine, usual = Machine(), usual_speeds(host_target().level)
    rates = [machine.bandwidth(size) for size in (*BLOCKS, FAR)]
    # a moment that was another's shows as a near cache slower than one farther away
    nearest = [max(rates[i:]) for i in range(len(rates))]
    fork, meeting = usual.fork, usual.meeting
    if machine.shares and usable_cpus() > 1:
        TEAM.want(2, *machine.crew)
        if TEAM.workers:
            # where other processes want the CPUs, the clock tells of them
            fork, meeting = map(_near, machine.sharing(TEAM.address), (fork, meeting))
    reads = tuple(zip((*BLOCKS, 0), nearest, strict=True))
    return Speeds(machine.flops(), reads, fork, meeting)


def _near(found: float, usual: float) -> float:
    """A time, as far as it is not implausibly far from the usual one."""
    return min(max(found, usual / FACTOR), usual * FACTOR)
