"""The C header of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chainrule.export import minibatches
from chainrule.export.codes import checks_of, faults
from chainrule.export.extras import FIXED, member_parameter, number_parameter
from chainrule.export.interface import STATE, Interface, Parameter, declared, prototype
from chainrule.export.model import ABI, ALIGN, Model, Number
from chainrule.export.names import largest_names
from chainrule.export.selftest import memory_bytes
from chainrule_runtime.manifest import show

#: what the functions do
SAID = {
    "state_bytes": "Bytes of a state: parameters, optimizer, step count, seed; no pointers inside.",
    "init": "Begin: initial values, drawn from the seed. Any seed is good.",
    "save": "Put the state into n bytes, NAME_STATE_BYTES at least, with a checksum.",
    "load": "Go on from what save wrote, here or on another machine; else the state is untouched.",
    "tensors": "How many tensors a state holds.",
    "tensor": "The number of a tensor, by the name it has in the model; -1 where there is none.",
    "tensor_name": "The name of a tensor; NULL where there is none.",
    "tensor_bytes": "The bytes of a tensor; 0 where there is none.",
    "get": "Copy a tensor out of the state; n is exactly its bytes.",
    "set": "Copy a tensor into the state; n is exactly its bytes.",
    "describe": "The kernel's manifest, as JSON.",
    "strerror": "What a code means, in words; never NULL.",
    "step": "One step on a minibatch: forward, backward and update. The loss is that before the"
    " update; what comes after it may be NULL.",
    "predict": "The outputs, as in inference.",
    "loss": "The loss, as in inference; nothing is changed.",
    "workspace_bytes": "Bytes of workspace that a call needs; 0 for sizes that it does not take.",
    "selftest": "Run on made-up data and compare with the compiler's own machine, bit for bit."
    " Needs NAME_SELFTEST_BYTES, aligned as a state.",
    "selftest_bytes": "Bytes of memory that the self-test takes.",
}


_PARALLEL = (
    "What {0} does, its work divided into so many parts, from 1 to NAME_MAX_PARTS, by"
    " parallel_for; where that is NULL, they are done one after the other. The bits are the same."
)
_PARALLEL_FOR = """\
/* Calls body(argument, part) for each part from 0 to below parts, once, in any order, on any
   threads, at once or not, and returns when all of these calls have. Where threads round or flush
   numbers otherwise than the caller's, so will their parts. */
typedef void (*NAME_parallel_for)(void *context, void (*body)(void *argument, int32_t part),
    void *argument, int32_t parts);
"""


_ENSEMBLE = "   An ensemble: losses, outputs and tensors end in an axis of its {}_MEMBERS members."


def header(model: Model, certificate: Mapping[str, Any]) -> str:
    """The text of NAME.h."""
    interface, name = Interface(model), model.name
    upper = name.upper()
    constants = [
        ("ABI", str(ABI)),
        ("ALIGN", str(ALIGN)),
        ("STATE_BYTES", str(model.state_bytes)),
        ("SELFTEST_BYTES", str(memory_bytes(model))),
        *([("MAX_PARTS", str(model.parts))] if model.parts > 1 else []),
        *([] if model.members is None else [("MEMBERS", str(model.members))]),
    ]
    names = largest_names(interface.sizes)
    bounds = [(f"MAX_{names[s.name]}", str(s.most)) for s in model.sizes]
    workspace = "WORKSPACE_BYTES" if not model.sizes else "MAX_WORKSPACE_BYTES"
    bounds.append((workspace, str(certificate["workspace_bytes"])))
    tensors = [
        (f"TENSOR_{interface.tensors[t.name]}", f"{i}", tensor_text(t.name, t.dtype.name, t.shape))
        for i, t in enumerate(model.kept)
    ]
    codes = checks_of([u.manifest for u in model.units.values()])
    errors = [(f.name, str(f.code), f.text) for f in faults(codes)]
    lines = [
        f"/* {name}: a training step as a self-contained kernel, for {certificate['target']}.",
        "   Every buffer is the caller's: nothing is allocated, nothing is kept between calls but",
        "   in the state, and no other library is needed. States and workspaces begin at a",
        f"   multiple of {upper}_ALIGN bytes. Any thread may call any function, as long as no two",
        "   use one state or one workspace at once. A function that returns an int32_t gives 0 or",
        "   one of the codes below, and has changed nothing then.",
        *([] if model.members is None else [_ENSEMBLE.format(upper)]),
        "",
        *_about(certificate),
        "*/",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        *(f"#define {upper}_{key} {value}" for key, value in (*constants, *bounds)),
        "",
        "/* tensors of the state, by number */",
        *(f"#define {upper}_{k} {v} /* {safe(text)} */" for k, v, text in tensors),
        "",
        "/* codes */",
        *(
            f"#define {upper}_{k} {v} /* {safe(text.replace('NAME_', f'{upper}_'))} */"
            for k, v, text in errors
        ),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        *(_PARALLEL_FOR.replace("NAME", name).splitlines() if model.parts > 1 else []),
        *_functions(model, interface),
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def declarations(
    model: Model, interface: Interface
) -> list[tuple[str, str, Sequence[Parameter], str]]:
    """Every function: result, name without the prefix, parameters, what it does."""
    units = [("int32_t", u, interface.unit(u), SAID[u]) for u in model.units]
    fixed = [(r, n, p, SAID[n]) for n, (r, p) in FIXED.items()]
    work = interface.size_parameters(model.sizes)
    by_name = {t.name: t for t in model.kept}
    whose = "" if model.members is None else " of a member"
    setters = [
        (
            "int32_t",
            f"set_{interface.numbers[n.called]}",
            (*STATE, *member_parameter(model), number_parameter(n, by_name[n.kept])),
            f"Change {changed_by(n)}{whose}, which steps from now on use.",
        )
        for n in model.numbers
    ]
    memory = (Parameter("memory", "void *"), Parameter("bytes", "size_t"))
    more = [
        ("size_t", "workspace_bytes", work, SAID["workspace_bytes"]),
        ("size_t", "selftest_bytes", (), SAID["selftest_bytes"]),
        ("int32_t", "selftest", memory, SAID["selftest"]),
    ]
    several = []
    if model.sliced:
        several = [
            ("size_t", "steps_workspace_bytes", work, minibatches.SAID["steps_workspace_bytes"]),
            (
                "int32_t",
                "steps",
                minibatches.steps_parameters(model, interface),
                minibatches.SAID["steps"],
            ),
            ("int32_t", "shuffle", minibatches.SHUFFLE_PARAMETERS, minibatches.SAID["shuffle"]),
        ]
    called = [(u[1], u[2]) for u in (*units, *several) if u[1] in ("steps", *model.units)]
    parallel = [
        ("int32_t", f"{n}_parallel", [*p, *interface.parallel], _PARALLEL.format(n))
        for n, p in (called if model.parts > 1 else [])
    ]
    return [*fixed, *more, *units, *several, *parallel, *setters]


def changed_by(number: Number) -> str:
    """What setting a number changes, in words."""
    return f"what {number.name} lacks of 1" if number.complement else f"the {number.name}"


def _functions(model: Model, interface: Interface) -> Iterable[str]:
    for result, name, parameters, said in declarations(model, interface):
        yield f"/* {said.replace('NAME', model.name.upper())} */"
        shown = prototype(result, f"{model.name}_{name}", map(commented, parameters))
        yield from wrapped(f"{shown};")
        yield ""


def commented(parameter: Parameter) -> str:
    """A parameter as C declares it; of an array its shape is told."""
    text = declared(parameter.kind, parameter.name)
    if parameter.tensor is not None:
        shape = ", ".join(map(show, parameter.tensor.shape))
        text += f" /* [{safe(shape)}] */" if shape else ""
    return text


def wrapped(text: str) -> list[str]:
    """A declaration in lines of 100 columns."""
    lines, rest = [], text
    while len(rest) > 100 and ", " in rest[:100]:
        at = rest.rindex(", ", 0, 100) + 1
        lines.append(rest[:at])
        rest = "    " + rest[at:].lstrip()
    return [*lines, rest]


def tensor_text(name: str, dtype: str, shape: Sequence[int]) -> str:
    """A tensor of the state, for a comment."""
    return f"{name}: {dtype}{list(shape)}"


def _about(certificate: Mapping[str, Any]) -> list[str]:
    lines = [
        f"   state      {certificate['state_bytes']} bytes",
        f"   workspace  {certificate['workspace_bytes']} bytes at most",
        f"   stack      {certificate['stack_bytes']} bytes at most, beside what a caller has",
        *(
            [f"   a part     {part} bytes of stack at most, on a thread of its own"]
            if (part := certificate.get("part_stack_bytes"))
            else []
        ),
        f"   code       {certificate['code_bytes']} bytes",
        f"   a step     {certificate['flops']} floating-point operations",
    ]
    lines += ["", "   The gradients, as the step computes them:", ""]
    return lines + [f"     {safe(line)}" for line in certificate["mathematics"].splitlines()]


def safe(text: str) -> str:
    """Text that ends no comment and begins none."""
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/").replace("??", "? ?")
