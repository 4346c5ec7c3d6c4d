"""What holds for every test: nothing is read from or left in the user's cache of compiled code, and
processes that tests start share their bytecode. Of a test marked `sampled(n)` about one case in n
is run by default, always the same ones, and the rest as `long`.
"""

import os
from pathlib import Path
from zlib import crc32

import pytest

os.environ["CHAINRULE_CACHE"] = "off"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # nothing next to the sources, then
    folder = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder))


@pytest.hookimpl(tryfirst=True)  # before what is long is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            (share,) = mark.args
            if crc32(item.nodeid.encode()) % share:
                item.add_marker(pytest.mark.long)
