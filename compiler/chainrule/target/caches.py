"""What the caches of a core are taken to hold, in bytes, wherever code is to run.

Loops are cut into pieces that stay near. A cut may depend neither on the machine that compiles nor
on the one that runs: a program is to be the same code from everywhere, and some cuts decide the
order of a sum. So these are constants, of a server's core of the 2020s. Each form of loops takes a
share, and says beside it what is to stay there. Shares were chosen by timing, not by a rule.
"""

from __future__ import annotations

#: the nearest cache, of which a vector is loaded in a few cycles
NEAREST = 2**15
#: the second one, which is the core's own as well; what is beyond, cores share
SECOND = 2**20
