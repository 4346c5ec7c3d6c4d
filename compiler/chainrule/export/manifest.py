"""What the manifest of every kernel tells: the memory map, the functions, the codes."""

from __future__ import annotations

from typing import Any

from chainrule.export.codes import checks_of, faults
from chainrule.export.interface import Interface
from chainrule.export.minibatches import batch_size_of
from chainrule.export.model import ABI, ALIGN, Model
from chainrule_runtime.manifest import Tensor


def told_of(model: Model, workspace: int, align: int = ALIGN) -> dict[str, Any]:
    """A model that works in so many bytes at most, at multiples of `align`, as plain data."""
    interface = Interface(model)
    codes = checks_of([u.manifest for u in model.units.values()])

    def data(tensor: Tensor) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}

    functions = {
        name: {
            "sizes": [s.name for s in interface.sizes_of(unit)],
            "inputs": [data(t) for t in unit.manifest.feeds],
            "outputs": [data(t) for t in unit.manifest.outputs],
            "nonempty": [d for d in unit.manifest.nonempty if not isinstance(d, int)],
        }
        for name, unit in model.units.items()
    }
    tensors = [
        {
            "name": t.name, "dtype": t.dtype.name, "shape": list(t.shape), "role": t.role,
            "offset": model.offsets[t.name], "bytes": t.bytes, "members": t.members,
        }
        for t in model.kept
    ]  # fmt: skip
    return {
        "format": "chainrule-kernel",
        "abi": ABI,
        "name": model.name,
        "model": f"{model.digest:016x}",
        "align": align,
        "target": ", ".join(dict.fromkeys(v.target.triple for v in model.variants)),
        "variants": [
            {"level": v.target.level, "cpu": v.target.cpu, "features": v.target.features}
            for v in model.variants
        ],
        "state_bytes": model.state_bytes,
        "workspace_bytes": workspace,
        "sizes": model.most(),
        "members": model.members,
        "rows": batch_size_of(model) if model.sliced else None,
        "sliced": sorted(model.sliced),
        "tensors": tensors,
        "functions": functions,
        "numbers": [
            {
                "name": n.name,
                "function": f"set_{interface.numbers[n.called]}",
                "tensor": n.kept,
                "complement": n.complement,
            }
            for n in model.numbers
        ],
        "codes": {f.name: f.code for f in faults(codes)},
    }
