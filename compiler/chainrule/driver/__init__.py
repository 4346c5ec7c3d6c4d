"""The driver: all levels of the compiler in order, and what it did."""

from chainrule.driver.build import PASSES, Compiled, build, leaves_of
from chainrule.driver.report import LEVELS, Report, report, show

__all__ = ["LEVELS", "PASSES", "Compiled", "Report", "build", "leaves_of", "report", "show"]
