"""One file a framework: `<name>_peer.py`, loaded by its path in a process of its own (worker.py).

A peer file has `VARIANTS`, the columns it gives, by name, each with keyword arguments for the
functions below, and `SETTINGS`, what is to be said of each; `NEEDS`, packages that must be
installed, and `SLOW`, variants that are left out unless everything is asked for.
`env(threads, cache)` gives environment variables, `cache` being a folder, empty at first.
`supports(spec, threads)` says why a workload can't be run, or None. `make_step(spec, threads)`
gives an object: called with i, a multiple of its `steps_per_call`, it makes so many whole steps
from number i on, the k-th on minibatch k modulo `spec.nbatch`; `losses()` are those of its last
call, and `sync()` waits for what is not done yet.
"""
