"""The driver: all levels of the compiler in order, what it did, and programs to call.

What is named here is all that a program needs which is found compiled; what makes, shows and
measures one is in the modules beside, imported where it is asked for.
"""

from chainrule.driver.build import Compiled, build, leaves_of
from chainrule.driver.draws import Drawing, drawings
from chainrule.driver.program import narrowed, program, raise_ours
from chainrule.driver.sizes import sizes_of

__all__ = [
    "Compiled",
    "Drawing",
    "build",
    "drawings",
    "leaves_of",
    "narrowed",
    "program",
    "raise_ours",
    "sizes_of",
]
