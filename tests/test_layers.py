"""Who may import whom: the table of rooms, held over every import that stands in the sources.

Read with `ast`, so that imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx
import pytest

ROOT = Path(__file__).parents[1]
SHELVES = (ROOT / "compiler", ROOT / "runtime")

# A room imports only rooms of lines above its own; rooms of one line don't import each other.
ROOMS = [
    {"version"},
    {"records", "given", "collector"},
    {"errors"},
    {"config"},
    {"target"},
    {"ir"},
    {"ops"},
    {"autodiff", "rewrite", "schedule"},
    {"show"},
    {"loops"},
    {"codegen"},
    {"export"},
    {"driver"},
    {"lang"},
    {"nn"},
    {"datasets"},
    {"train"},
    {"interop", "cli"},
    {"chainrule"},  # chainrule/__init__.py, which hands on public names
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
RUNTIME = "chainrule_runtime"
USES_RUNTIME = {"export", "driver", "train", "cli"}
DATASETS_USE = {"ops", "errors", "records"}
# What `chainrule bench` times: programs as users of each framework write them, each run by its path
# in a process of its own, and the program that runs them; no module of ours.
PEERS = ROOT / "compiler/chainrule/cli/bench/peers"
# Slow to import, so that only a function that needs one may do it; the command line is its own
# program and may start with its own.
HEAVY = {"sympy", "networkx", "llvmlite", "matplotlib", "ml_dtypes", "rich", "click"}
# What a program that is found compiled never needs: text and proofs, the levels below the graph,
# export, GPUs. A function that does need it imports it, so that such a program starts sooner
# (`test_imports.py` holds what is loaded then); anything else of ours stands at a module's head.
LATE = (
    "chainrule.show", "chainrule.export", "chainrule.train.export", "chainrule.train.asked",
    "chainrule.schedule", "chainrule.rewrite",
    "chainrule.loops", "chainrule.codegen.module", "chainrule.codegen.steps",
    "chainrule.codegen.rates",
    "chainrule.driver.lower", "chainrule.driver.levels", "chainrule.driver.report",
    "chainrule.driver.crews",
    "chainrule.driver.gpu", "chainrule.driver.gpu_report", f"{RUNTIME}.gpu",
)  # fmt: skip
# Packages that are imported by another name than they are installed by.
IMPORTED_AS = {"scikit_learn": "sklearn", "cuda_bindings": "cuda"}


class Import(NamedTuple):
    module: str
    line: int
    deep: bool  # inside a function


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import statement, with `from chainrule import errors` told as `chainrule.errors`."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, deep = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, deep) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            base = str(node.module)
            for alias in node.names:
                part = base == "chainrule" and alias.name in LEVEL
                yield Import(f"{base}.{alias.name}" if part else base, node.lineno, deep)
        inside = deep or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]


def room_of(module: str) -> str:
    """The room of a module of ours: `chainrule.ops.reduce` is in "ops"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "chainrule" else parts[0]


def declared() -> set[str]:
    """The packages that pyproject.toml says we use when running, by their import names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [w for e, ws in extras.items() if e != "dev" for w in ws]
    names = {wish.split(">")[0].split("[")[0].strip().replace("-", "_") for wish in wanted}
    return {IMPORTED_AS.get(name, name) for name in names}


def wrong_import(room: str, wanted: Import, packages: set[str]) -> str | None:
    """Why `room` may not make this import, or None."""
    top = wanted.module.split(".")[0]
    if top == "chainrule":
        late = wanted.deep and wanted.module.startswith(LATE)
        return wrong_room(room, room_of(wanted.module), wanted.deep and not late)
    if top == RUNTIME:
        allowed = room in USES_RUNTIME or room == RUNTIME
        return None if allowed else f"only {sorted(USES_RUNTIME)} import {RUNTIME}"
    if top in sys.stdlib_module_names or top == "numpy":
        return None
    if room == RUNTIME:
        if top in ("ml_dtypes", "cuda") and wanted.deep:
            return None  # where a program has bfloat16, or runs on a GPU
        return f"{RUNTIME} imports the standard library and NumPy alone"
    if top not in packages:
        return "it is no dependency in pyproject.toml"
    if top == "llvmlite" and room != "codegen":
        return "llvmlite is codegen's alone"
    if top in HEAVY and not wanted.deep and room != "cli":
        return "it is heavy: import it inside the function that needs it"
    return None


def wrong_room(room: str, other: str, deep: bool) -> str | None:
    if room == RUNTIME:
        return f"{RUNTIME} never imports chainrule"
    if other not in LEVEL:
        return f"{other} is no room: say in the table where it stands"
    if deep:
        return "inside a function only what is LATE is imported of ours"
    if other == room and room != "chainrule":
        return None
    if LEVEL[other] >= LEVEL[room]:
        return f"{other} does not stand to the left of {room}"
    if room == "datasets" and other not in DATASETS_USE:
        return f"datasets imports only {sorted(DATASETS_USE)}"
    return None


def wrong_calls(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Uses of the environment outside config.py, and imports that no table can see."""
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        if isinstance(node, ast.alias):
            name = node.name
        line = getattr(node, "lineno", 0)
        if name in ("environ", "environb", "getenv") and not module.endswith(".config"):
            yield line, f"{name}: the environment is read in config.py alone"
        if name in ("__import__", "import_module") and module != "chainrule":
            yield line, f"{name}: say it with an import statement"


def modules() -> dict[str, Path]:
    """Each module of ours by its import name."""
    found = {}
    for shelf in SHELVES:
        for path in sorted(set(shelf.rglob("*.py")) - set(PEERS.glob("*.py"))):
            name = ".".join(path.relative_to(shelf).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def complaints(module: str, source: str) -> list[str]:
    tree, room, packages = ast.parse(source), room_of(module), declared()
    if room not in LEVEL and room != RUNTIME:
        return [f"{module}: {room} is no room: say in the table where it stands"]
    found = [
        f"{module}:{wanted.line} imports {wanted.module}: {why}"
        for wanted in imports(tree)
        if (why := wrong_import(room, wanted, packages))
    ]
    return found + [f"{module}:{line} {why}" for line, why in wrong_calls(module, tree)]


@pytest.mark.smoke
def test_rooms_import_leftward() -> None:
    found = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert "chainrule.errors" in found
    wrong = [line for name, source in found.items() for line in complaints(name, source)]
    assert not wrong, "\n".join(wrong)


def test_shelves_are_no_packages() -> None:
    assert not [shelf for shelf in SHELVES if (shelf / "__init__.py").exists()]
    assert (ROOT / "compiler/chainrule/py.typed").exists()
    assert (ROOT / "runtime/chainrule_runtime/py.typed").exists()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("chainrule.ir.node", "from chainrule.ops.reduce import Sum"),
        ("chainrule.ir.node", "from chainrule import ops"),
        (
            "chainrule.ir.node",
            "import typing\nif typing.TYPE_CHECKING:\n import chainrule.ops",
        ),
        ("chainrule.rewrite.algebra", "import chainrule.autodiff"),
        ("chainrule.ops.reduce", "from chainrule import grad"),
        ("chainrule.lang.tensor", "def f():\n    from chainrule.driver import compile_graph"),
        ("chainrule.ops.reduce", "def f():\n    from chainrule.show.text import text"),
        ("chainrule.datasets.optdigits", "from chainrule.nn import Dense"),
        ("chainrule.loops.text", "import chainrule_runtime"),
        ("chainrule.loops.text", "def f():\n    import llvmlite"),
        ("chainrule.show.latex", "import sympy"),
        ("chainrule.show.latex", "def f():\n    import pandas"),
        ("chainrule.wing.corner", "import os"),
        ("chainrule.codegen.host", "import os\nos.environ['CHAINRULE_TARGET']"),
        ("chainrule.codegen.host", "from os import getenv"),
        ("chainrule.codegen.host", "import importlib\nimportlib.import_module('chainrule.lang')"),
        ("chainrule_runtime.kernel", "import chainrule.errors"),
        ("chainrule_runtime.kernel", "import llvmlite"),
    ],
)
def test_the_table_bites(module: str, source: str) -> None:
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "chainrule.ops.reduce",
            "from chainrule.ir.node import Op\nimport chainrule.ops.layout",
        ),
        ("chainrule.train.step", "from chainrule_runtime import run_block"),
        ("chainrule.lang.tensor", "def f():\n    from chainrule.show.text import text"),
        ("chainrule.codegen.host", "def f():\n    import llvmlite.binding"),
        ("chainrule.cli", "import click\nimport rich.table"),
        ("chainrule.config", "import os\nos.environ.get('CHAINRULE_TARGET')"),
        ("chainrule", "from chainrule.lang import grad\nfrom chainrule import errors"),
        ("chainrule_runtime.kernel", "import ctypes\nimport numpy as np"),
    ],
)
def test_the_table_lets_through(module: str, source: str) -> None:
    assert complaints(module, source) == []


EXPORT = "chainrule.export"


def test_no_module_of_export_needs_the_types_of_one_that_imports_it() -> None:
    room = ROOT / "compiler/chainrule/export"
    graph = networkx.DiGraph()
    for path in room.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):  # for types alone too
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(EXPORT):
                tail = (node.module or "").removeprefix(EXPORT).removeprefix(".")
                for name in [tail] if tail else [a.name for a in node.names]:
                    if (room / f"{name}.py").exists() and path.stem != "__init__":
                        graph.add_edge(path.stem, name)
    assert graph.number_of_edges() > 50
    assert not list(networkx.simple_cycles(graph))
