"""The driver: all levels of the compiler in order, what it did, and programs to call."""

from chainrule.driver.build import PASSES, Compiled, build, leaves_of
from chainrule.driver.gpu import build_gpu, commands_of, copies, gpu_target
from chainrule.driver.gpu_report import report_gpu, show_gpu
from chainrule.driver.levels import LEVELS, show
from chainrule.driver.lower import Lowered, lower
from chainrule.driver.program import narrowed, program, raise_ours
from chainrule.driver.report import Report, report
from chainrule.driver.sizes import sizes_of

__all__ = [
    "LEVELS",
    "PASSES",
    "Compiled",
    "Lowered",
    "Report",
    "build",
    "build_gpu",
    "commands_of",
    "copies",
    "gpu_target",
    "leaves_of",
    "lower",
    "narrowed",
    "program",
    "raise_ours",
    "report",
    "report_gpu",
    "show",
    "show_gpu",
    "sizes_of",
]
