"""What holds for every test: nothing is read from or left in the user's cache of compiled code, and
processes that tests start share their bytecode. Of a test marked `sampled(n)` about one case in n
is run by default, always the same ones, and the rest as `long`.

Python's collector waits while tests are collected, and what there is then counts as permanent: it
is a million objects that stay, and each collection during a test would visit all of them.

A file whose tests make the same few programs again and again, and are not about compiling, uses
`compiled_once`: `pytestmark = pytest.mark.usefixtures("compiled_once")`.
"""

import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from zlib import crc32

import pytest

os.environ["CHAINRULE_CACHE"] = "off"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # nothing next to the sources, then
    folder = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before what is long is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            (share,) = mark.args
            if crc32(item.nodeid.encode()) % share:
                item.add_marker(pytest.mark.long)


@pytest.fixture
def at_level(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the rest of a test compile for a level, or skips it where this machine is below."""
    from chainrule.codegen.host import host_target
    from chainrule.errors import CompileError

    def chosen(level: str) -> None:
        monkeypatch.setenv("CHAINRULE_TARGET", level)
        try:
            host_target()
        except CompileError as error:
            pytest.skip(str(error))

    return chosen


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what a file's tests compile until its last: equal programs are compiled once.

    It is not for a file whose tests change the compiler, as a cache can't tell.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHAINRULE_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield
