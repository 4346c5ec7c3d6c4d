"""What holds for every test: nothing is read from or left in the user's cache of compiled code."""

import os

os.environ["CHAINRULE_CACHE"] = "off"
