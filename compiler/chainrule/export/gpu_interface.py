"""The functions of a kernel for a GPU, over CUDA's driver interface: what NAME.h declares.

Memory is the caller's, on the GPU, and so is the stream that all is done on, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.export.extras import COUNT, FIXED, IN, INDEX, OUT, number_parameter
from chainrule.export.header import SAID, changed_by, safe
from chainrule.export.interface import Interface, Parameter, c_type, declared
from chainrule.export.model import Model, Unit
from chainrule_runtime.manifest import show

STREAM = Parameter("stream", "CUstream")
STATE = (Parameter("state", "CUdeviceptr"), Parameter("state_bytes", "size_t"))
WORKSPACE = (Parameter("workspace", "CUdeviceptr"), Parameter("workspace_bytes", "size_t"))
MEMORY = (Parameter("memory", "CUdeviceptr"), Parameter("bytes", "size_t"))
ROWS = Parameter("rows", "size_t")

#: what tells of tensors, as for a processor
TABLES = ("tensors", "tensor", "tensor_name", "tensor_bytes", "describe")
#: result, name after the prefix, parameters, what it does
Function = tuple[str, str, Sequence[Parameter], str]

_SAID = {
    "open": "Load the kernels, of the bytes of @N.cubin or of @N.ptx with a 0 behind them, into"
    " the current context.",
    "close": "Give the kernels back.",
    "state_bytes": "Bytes of a state: parameters, optimizer, step count, seed; no pointers inside.",
    "init": "Begin: initial values, drawn from the seed. Any seed is good.",
    "load": "Go on from what save wrote, here or on a CPU: n bytes of the host's memory. Waits.",
    "save": "Put the state into n bytes of the host's memory, NAME_STATE_BYTES at least, with a"
    " checksum. Waits.",
    "status": "Wait; 0, or the code of what stopped the calls since the last status, which is told"
    " once: of those after it none has done anything, the state is as the step before left it."
    " done, which may be NULL, is how many steps the last call of steps has made.",
    "strerror": "What a code means, in words; never NULL.",
    "step": "One step on a minibatch: forward, backward and update. The loss is that before the"
    " update; what comes after it may be 0.",
    "predict": "The outputs, as in inference.",
    "loss": "The loss, as in inference; no tensor is changed.",
    "workspace_bytes": "Bytes of workspace that a call needs; 0 for sizes that it does not take.",
    "steps": "One epoch: a step for each minibatch of the rows, the last one smaller where they do"
    " not divide. order has the number of each row, an int64, in the order in which they are taken."
    " losses is 0 or has room for one number a step.",
    "steps_workspace_bytes": "Bytes of workspace that steps needs for so many rows.",
    "shuffle": "Put the rows' order of the next epoch into order, int64s on the GPU, and count the"
    " epoch. order has room for 2 * rows words. The order is that of the compiler's own shuffling,"
    " from the seed.",
    "selftest": "Run on made-up data and compare with the compiler's own processor: losses are"
    " near, as sums may go another way. Needs NAME_SELFTEST_BYTES, aligned as a state. Waits.",
    "get": "Copy a tensor of the state into the host's memory; n is exactly its bytes. Waits.",
    "set": "Copy a tensor into the state from the host's memory; n is exactly its bytes. Waits.",
}


def interface_of(model: Model) -> Interface:
    """A model's names where functions have parameters of a GPU's too."""
    return Interface(model, ("net", "stream", "image"))


def net(model: Model, const: bool = True) -> Parameter:
    """The kernels, once they are loaded."""
    return Parameter("net", f"{'const ' if const else ''}{model.name}_net *")


def pointers(interface: Interface, unit: Unit, optional: bool) -> list[Parameter]:
    """What a unit is fed and what it gives back, as addresses on the GPU."""
    feeds = [
        Parameter(interface.feeds[t.name], "CUdeviceptr", tensor=t) for t in unit.manifest.feeds
    ]
    outputs = [
        Parameter(interface.outputs[t.name], "CUdeviceptr", None, t, optional and i > 0)
        for i, t in enumerate(unit.manifest.outputs)
    ]
    return [*feeds, *outputs]


def functions(model: Model) -> list[Function]:
    """Every function."""
    interface = interface_of(model)
    sizes = interface.size_parameters(model.sizes)
    begin = net(model), STREAM, *STATE
    at = STREAM, *STATE, INDEX
    found: list[Function] = [
        ("int32_t", "open", (net(model, False), Parameter("image", "const void *")), ""),
        ("int32_t", "close", (net(model, False),), ""),
        ("size_t", "state_bytes", (), ""),
        ("int32_t", "init", (*begin, Parameter("seed", "uint64_t")), ""),
        ("int32_t", "load", (STREAM, *STATE, Parameter("bytes", "const void *"), COUNT), ""),
        ("int32_t", "save", (STREAM, *STATE, Parameter("bytes", "void *"), COUNT), ""),
        ("int32_t", "status", (STREAM, *STATE, Parameter("done", "size_t *")), ""),
        *((FIXED[name][0], name, FIXED[name][1], "") for name in TABLES),
        ("int32_t", "get", (*at, OUT, COUNT), ""),
        ("int32_t", "set", (*at, IN, COUNT), ""),
        ("const char *", "strerror", (Parameter("code", "int32_t"),), ""),
        ("size_t", "workspace_bytes", sizes, ""),
        ("size_t", "selftest_bytes", (), ""),
        ("int32_t", "selftest", (net(model), STREAM, *MEMORY), ""),
    ]
    for name, unit in model.units.items():
        own = interface.size_parameters(interface.sizes_of(unit))
        parameters = *begin, *WORKSPACE, *own, *pointers(interface, unit, name == "step")
        found.append(("int32_t", name, parameters, ""))
    if model.sliced:
        found.append(("size_t", "steps_workspace_bytes", (ROWS, *sizes), ""))
        found.append(("int32_t", "steps", steps_parameters(model, interface), ""))
        order = Parameter("order", "CUdeviceptr"), Parameter("words", "size_t"), ROWS
        found.append(("int32_t", "shuffle", (*begin, *order), ""))
    found = [(r, n, p, _told(n, model)) for r, n, p, _ in found]
    by_name = {t.name: t for t in model.kept}
    for number in model.numbers:
        value = number_parameter(number, by_name[number.kept])
        told = f"Change {changed_by(number)}, which steps from now on use."
        name = f"set_{interface.numbers[number.called]}"
        found.append(("int32_t", name, (STREAM, *STATE, value), told))
    return found


def _told(function: str, model: Model) -> str:
    return (
        (_SAID.get(function) or SAID[function])
        .replace("NAME", model.name.upper())
        .replace("@N", model.name)
    )


def steps_parameters(model: Model, interface: Interface) -> list[Parameter]:
    """The parameters of `NAME_steps`."""
    unit = model.units["step"]
    feeds = pointers(interface, unit, True)[: len(unit.manifest.feeds)]
    return [
        net(model), STREAM, *STATE, *WORKSPACE, ROWS, *interface.size_parameters(model.sizes),
        Parameter("order", "CUdeviceptr"), *feeds, Parameter("losses", "CUdeviceptr"),
    ]  # fmt: skip


def commented(parameter: Parameter) -> str:
    """A parameter as C declares it; of an address what lies there is told."""
    text = declared(parameter.kind, parameter.name)
    if parameter.tensor is not None:
        shape = "".join(f"[{safe(show(d))}]" for d in parameter.tensor.shape)
        text += f" /* {c_type(parameter.tensor.dtype)} {shape or '*'} */"
    return text
