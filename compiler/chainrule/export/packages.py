"""A kernel as other programs' builds take it: CMake, pkg-config, Arduino, and programs in C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chainrule.export.interface import Interface, Parameter, c_type
from chainrule.export.model import Model
from chainrule.target import Target
from chainrule_runtime.manifest import Tensor, evaluate


def cmake(name: str) -> str:
    """The text of NAMEConfig.cmake, by which find_package gives the library NAME::NAME."""
    return (
        f"# find_package({name} CONFIG REQUIRED), target_link_libraries(... {name}::{name})\n"
        f"if(NOT TARGET {name}::{name})\n"
        f"  add_library({name}::{name} STATIC IMPORTED)\n"
        f"  set_target_properties({name}::{name} PROPERTIES\n"
        f'    IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{name}.a"\n'
        f'    INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}")\n'
        f"endif()\n"
    )


def pkg_config(name: str, version: str) -> str:
    """The text of NAME.pc: the static library, wherever the file lies."""
    return (
        f"prefix=${{pcfiledir}}\n"
        f"Name: {name}\n"
        f"Description: a training step as a self-contained kernel\n"
        f"Version: {version}\n"
        f"Cflags: -I${{prefix}}\n"
        f"Libs: ${{prefix}}/lib{name}.a\n"
    )


def arduino(
    name: str, version: str, target: Target, header: bytes, archive: bytes
) -> dict[str, bytes]:
    """An Arduino library with the code precompiled, by path (Arduino's Library specification)."""
    folder = f"{name}-arduino"
    properties = [
        f"name={name}",
        f"version={version}",
        "author=chainrule",
        "maintainer=chainrule",
        "sentence=A neural network that learns on the device.",
        "paragraph=A training step as a self-contained kernel: no library, no allocation.",
        "category=Data Processing",
        "url=https://example.org",
        "architectures=*",
        f"includes={name}.h",
        "precompiled=full",
        f"ldflags=-l{name}",
        "",
    ]
    return {
        f"{folder}/library.properties": "\n".join(properties).encode(),
        f"{folder}/src/{name}.h": header,
        f"{folder}/src/{target.cpu}/lib{name}.a": archive,
    }


def smallest(model: Model) -> dict[str, int]:
    """Sizes to begin with: a few rows, and as many of everything else as there may be."""
    return {s.name: min(8, s.most) if i == 0 else s.most for i, s in enumerate(model.sizes)}


def elements(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """How many numbers a tensor holds at given sizes."""
    count = 1
    for dim in tensor.shape:
        count *= evaluate(dim, sizes)
    return count


def bound_of(model: Model, tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """Below what an input of positions is to stay; 0 where nothing is asked of it."""
    checks = [c for u in model.units.values() for c in u.manifest.checks]
    bounds = [evaluate(c.bound, sizes) for c in checks if c.feed == tensor.name and c.bound]
    return min(bounds, default=0)


def c_selftest(model: Model) -> str:
    """A program in C that runs the self-test: 0 where the machine computes right."""
    name, upper = model.name, model.name.upper()
    return f"""/* Runs the self-test of {name}: 0 where this machine does what the compiler's did.
   cc {name}_selftest.c lib{name}.a -o selftest && ./selftest */
#include "{name}.h"

#include <stdio.h>

static _Alignas({upper}_ALIGN) unsigned char memory[{upper}_SELFTEST_BYTES];

int main(void) {{
    int32_t code = {name}_selftest(memory, sizeof memory);
    puts(code ? {name}_strerror(code) : "{name}: all is well");
    return code != 0;
}}
"""


def c_example(model: Model) -> str:
    """A program in C that trains on made-up data, to begin one's own with."""
    name, upper = model.name, model.name.upper()
    functions = (f"{name}_{f}" for f in ("init", "step", "strerror", "workspace_bytes"))
    interface = Interface(model, [*_EXAMPLE_TAKES, *functions])
    step = model.units["step"]
    sizes = smallest(model)
    own = interface.sizes_of(step)
    feeds = interface.feed_parameters(step)
    loss, *others = interface.output_parameters(step, optional=False)
    lines = [f"static {declared_array(p, elements(_tensor(p), sizes))};" for p in feeds]
    fill = [filled(model, p, sizes) for p in feeds]
    given = [str(sizes[s.name]) for s in own]
    arguments = ", ".join([*given, *(p.name for p in feeds), "&loss", *("NULL" for _ in others)])
    room = ", ".join(str(sizes[s.name]) for s in model.sizes)
    return f"""/* Trains {name} on made-up data: put your own in its place.
   cc {name}_example.c lib{name}.a -o example && ./example */
#include "{name}.h"

#include <stdio.h>

enum {{ STEPS = 100 }};

static _Alignas({upper}_ALIGN) unsigned char state[{upper}_STATE_BYTES];
static _Alignas({upper}_ALIGN) unsigned char workspace[{_workspace(model)}];
{MADE if any("made()" in line for line in fill) else ""}
int main(void) {{
{block(lines, "    ")}
    int32_t code = {name}_init(state, sizeof state, 0);
    if (code || {name}_workspace_bytes({room}) > sizeof workspace) {{
        puts({name}_strerror(code));
        return 1;
    }}
{block(fill, "    ")}
    {c_type(_tensor(loss).dtype)} loss = 0, first = 0;
    for (int step = 0; step < STEPS; step++) {{
        code = {name}_step(state, sizeof state, workspace, sizeof workspace, {arguments});
        if (code) {{
            puts({name}_strerror(code));
            return 1;
        }}
        if (step == 0) first = loss;
    }}
    printf("loss %g at first, %g after %d steps\\n", (double)first, (double)loss, STEPS);
    return 0;
}}
"""


#: what the example in C calls by its name
_EXAMPLE_TAKES = """
    code first i loss made printf puts state step workspace STEPS BUFSIZ EOF stderr stdin stdout
""".split()  # noqa: SIM905
#: what makes data up
MADE = """
/* numbers from -1 to 1, the same every time */
static float made(void) {
    static uint32_t word = 1;
    word = word * 1664525u + 1013904223u;
    return (float)(word >> 8) / 8388608.0f - 1.0f;
}
"""


def _workspace(model: Model) -> str:
    return f"{model.name.upper()}_{'MAX_' if model.sizes else ''}WORKSPACE_BYTES"


def _tensor(parameter: Parameter) -> Tensor:
    assert parameter.tensor is not None
    return parameter.tensor


def declared_array(parameter: Parameter, count: int) -> str:
    """An array for what a parameter is given, as C declares it."""
    return f"{c_type(_tensor(parameter).dtype)} {parameter.name}[{max(1, count)}]"


def filled(model: Model, parameter: Parameter, sizes: Mapping[str, int]) -> str:
    """What fills that array."""
    tensor = _tensor(parameter)
    count, of = elements(tensor, sizes), c_type(tensor.dtype)
    value = "made()"
    if of not in ("float", "double"):
        value = f"({of})(i % {bound_of(model, tensor, sizes) or 2})"
    return f"for (size_t i = 0; i < {count}; i++) {parameter.name}[i] = {value};"


def block(lines: Sequence[str], indent: str = "") -> str:
    """Lines of C."""
    return "\n".join(indent + line for line in lines)
