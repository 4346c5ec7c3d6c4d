"""The self-test's sizes, and where what it works on lies."""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.errors import CompileError
from chainrule.export.entries import Entries
from chainrule.export.model import ALIGN, Model, fits, round_up
from chainrule.export.text import Code
from chainrule.export.units import Placed, output_bytes
from chainrule_runtime.manifest import Tensor, evaluate

STEPS = 3
#: how far parameters are moved at last: functions are not near 0 there
FAR = "32.0"
#: both words of it count
SEED = 0x1234567890ABCDEF
#: sizes that are tried in turn: the first that all shapes of the model have a meaning with. 47 rows
#: are whole vectors, and tiles of every height; what they need beyond ROOM is tested with fewer.
#: Of the steps numbered so others have fewer yet, if these are sizes too: less than a tile.
_TRIED = (47, 3, 2, 1, 4, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
ROOM = 1 << 24
#: what workspace is full of before a step, which must not show: large numbers, and no positions
ANYTHING = 0x4F004F004F004F00
FEWER = {0: 1, STEPS - 1: 7}


def test_sizes(model: Model) -> dict[str, int]:
    """The symbolic sizes that the self-test runs with."""
    for tried in _TRIED:
        sizes = {n: min(tried, m) for n, m in model.most().items()}
        if not _have_meaning(model, sizes):
            continue
        manifests = [u.manifest for u in model.units.values()]
        if tried != _TRIED[0] or max(Placed(m).bytes(sizes) for m in manifests) <= ROOM:
            return sizes
    if _have_meaning(model, model.most()):
        return model.most()
    raise CompileError(
        "no sizes within max_sizes have a meaning in all of this model",
        f"they are {', '.join(f'{n} <= {m}' for n, m in model.most().items())}",
    )


def _have_meaning(model: Model, sizes: Mapping[str, int]) -> bool:
    manifests = [u.manifest for u in model.units.values()]
    shapes = [d for m in manifests for t in (*m.feeds, *m.outputs) for d in t.shape]
    return fits(manifests, sizes) and all(evaluate(d, sizes) >= 0 for d in shapes)


class Plan:
    """Where the self-test's blocks lie in the memory it is given."""

    def __init__(self, model: Model) -> None:
        self.sizes = test_sizes(model)
        #: the sizes of the steps that have others
        self.fewer: dict[int, dict[str, int]] = {}
        for number, tried in FEWER.items():
            sizes = {n: min(tried, m) for n, m in self.sizes.items()}
            if _have_meaning(model, sizes):
                self.fewer[number] = sizes
        self.workspace = model.state_bytes
        need = max(
            Placed(u.manifest, model.fixed).bytes(self.sizes)
            for v in model.variants
            for u in v.units.values()
        )
        at = self.workspace + need
        self.need = need
        self.feeds: dict[str, tuple[Tensor, int]] = {}
        for unit in model.units.values():
            for tensor in unit.manifest.feeds:
                if tensor.name not in self.feeds:
                    self.feeds[tensor.name] = tensor, at
                    at += round_up(output_bytes(tensor, self.sizes))
        self.outputs = at
        # the digest of the state lies there first, then the codes: two words of a head do not count
        #: where the code that each unit gives is put
        self.codes = {name: at + 16 + 4 * i for i, name in enumerate(model.units)}
        #: where the digest of all that came out so far is put, which the next one is of too
        self.total = at + 48
        at += ALIGN
        self.places: dict[tuple[str, str], int] = {}
        for name, unit in model.units.items():
            for tensor in unit.manifest.outputs:
                self.places[name, tensor.name] = at
                at += round_up(output_bytes(tensor, self.sizes))
        self.outputs_bytes = at - self.outputs
        self.bytes = at

    def call(self, code: Code, module: Entries, name: str, sizes: Mapping[str, int | str]) -> str:
        """The code that a unit gives on the data that was made up, as an i32."""
        model, unit = module.model, module.model.units[name]
        arguments = [f"ptr %memory, iw {model.state_bytes}"]
        arguments += [f"ptr {code.at('%memory', self.workspace)}, iw {self.need}"]
        arguments += [f"iw {sizes[s.name]}" for s in module.interface.sizes_of(unit)]
        pointers = [self.feeds[t.name][1] for t in unit.manifest.feeds]
        pointers += [self.places[name, t.name] for t in unit.manifest.outputs]
        arguments += [f"ptr {code.at('%memory', at)}" for at in pointers]
        if model.parts > 1:  # one after the other, from the last to the first
            arguments += ["ptr null", "ptr null", f"i32 {model.parts}"]
            name += "_parallel"
        return code.value(f"call i32 @{model.name}_{name}({', '.join(arguments)})")
