"""The C source of a kernel for a GPU, of an epoch: minibatches are cut and stepped over there."""

from __future__ import annotations

from chainrule.export import gpu_interface
from chainrule.export.gpu import (
    ADVANCE,
    CHECK_ORDER,
    SHUFFLE_KEYS,
    SORT_FIRST,
    SORT_REST,
    Placed,
)
from chainrule.export.gpu_units import ONE, Names, Units, rounded
from chainrule.export.interface import Parameter
from chainrule.export.model import (
    AT_DONE,
    AT_EPOCH,
)
from chainrule.loops.launch import BLOCK
from chainrule_runtime.manifest import element_type


class Minibatches(Units):
    """Writes the functions that take many steps."""

    @property
    def batch(self) -> str:
        """The size that minibatches have."""
        return self.model.sizes[0].name

    @property
    def last(self) -> dict[str, str]:
        """What sizes are called where a minibatch is the last of its epoch."""
        return {**self.own, self.batch: "last_"}

    def of_step(self, names: Names) -> str:
        """The sizes of a step as arguments."""
        unit = self.model.units["step"]
        return "".join(f"{names[s.name]}, " for s in self.interface.sizes_of(unit))

    def all_of(self, names: Names) -> str:
        """All sizes as arguments."""
        return "".join(f"{names[s.name]}, " for s in self.model.sizes)

    def rows_checks(self, result: str) -> list[str]:
        """Leave for numbers that an epoch can't have; from here on `last_` is known."""
        units = [self.model.units["step"]]
        return [
            *self.bounds(self.model.sizes, result),
            f"if (rows < 1 || rows > (size_t)1 << 38) return {result};",
            f"last_ = ((int64_t)rows - 1) % {self.own[self.batch]} + 1;",
            *self.demands(units, self.own, result),
            *self.demands(units, self.last, result),
        ]

    def staging(self) -> str:
        """`NAME_steps_workspace_bytes`: a step's, of a full minibatch or of the last, then the
        rows of each input that is cut, then the loss.
        """
        unit = self.model.units["step"]
        needs = [self.size_of(t) for t in unit.manifest.feeds if t.name in self.model.sliced]
        needs.append(str(element_type(unit.manifest.outputs[0].dtype).itemsize))
        room = len(Placed(unit.manifest).held) + len(unit.manifest.arena) + 1
        names = {**self.interface.sizes, self.batch: "last_"}
        lines = [
            f"static size_t stage_(int64_t last_, {self.sizes()}size_t *where_)",
            "{",
            f"    size_t at_[{room}], end_ = plan_step_({self.of_step(self.interface.sizes)}at_);",
            f"    size_t less_ = plan_step_({self.of_step(names)}at_);",
            "    if (less_ > end_) end_ = less_;",
            *(f"    where_[{i}] = end_, end_ += {rounded(n)};" for i, n in enumerate(needs)),
            *(f"    (void){self.interface.sizes[s.name]};" for s in self.model.sizes),
            "    return end_;",
            "}",
        ]
        body = [
            *self.signed(self.model.sizes),
            f"size_t where_[{len(needs)}];",
            "int64_t last_;",
            *self.rows_checks("0"),
            f"return stage_(last_, {self.all_of(self.own)}where_);",
        ]
        return "\n\n".join(["\n".join(lines), self.define("steps_workspace_bytes", body)])

    def steps(self) -> str:
        """`NAME_steps`."""
        manifest = self.model.units["step"].manifest
        feeds = gpu_interface.steps_parameters(self.model, self.interface)
        feeds = [p for p in feeds if p.tensor is not None]
        staged = [p for p in feeds if p.tensor and p.tensor.name in self.model.sliced]
        places = [
            f"workspace + where_[{staged.index(p)}]" if p in staged else p.name for p in feeds
        ]
        loss, home = manifest.outputs[0], f"workspace + where_[{len(staged)}]"
        done, batch = f"state + {AT_DONE}", self.own[self.batch]
        now = self.of_step({**self.own, self.batch: "now_"})
        log = [home, "losses", done, "1", "count_"]
        body = [
            *self.signed(self.model.sizes),
            f"size_t where_[{len(staged) + 1}];",
            *(f"CUdeviceptr {n}[{max(1, count)}];" for n, count in
              (("given_", len(feeds)), ("out_", len(manifest.outputs)))),
            "int64_t k_, count_, now_, last_;",
            "if (!net) return @U_ERROR_NULL;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            *(f"DO_(address_({p.name}, 0));" for p in feeds),
            "DO_(address_(order, 0));",
            "DO_(address_(losses, 1));",
            *self.rows_checks("@U_ERROR_SIZE"),
            "DO_(block_(workspace, workspace_bytes, "
            f"stage_(last_, {self.all_of(self.own)}where_)));",
            f"count_ = ((int64_t)rows - 1) / {batch} + 1;",
            f"DO_(told_(cuMemsetD32Async({done}, 0, 2, stream)));",
            "DO_(guard_(net, stream, state));",
            self.over(CHECK_ORDER, "(int64_t)rows", ["order", "rows"]),
            *(f"given_[{i}] = {text};" for i, text in enumerate(places)),
            f"out_[0] = {home};",
            *(f"out_[{i}] = 0;" for i in range(1, len(manifest.outputs))),
            "for (k_ = 0; k_ < count_; k_++) {",
            f"    now_ = k_ < count_ - 1 ? {batch} : last_;",
            *(f"    {self.gather(p, i)}" for i, p in enumerate(staged)),
            f"    DO_(run_step_(net, stream, state, workspace, {now}given_, out_));",
            "    if (losses)",
            "        " + self.launch(f"log_{loss.dtype}", "1", BLOCK, log),
            "    " + self.launch(ADVANCE, "1", ONE, [done]),
            "}",
            "return @U_OK;",
        ]  # fmt: skip
        return self.define("steps", body)

    def shuffle(self) -> str:
        """`NAME_shuffle`: rows sorted by words of theirs, as philox.permutation has them."""
        keys, pairs = "order + 8*rows", "(((int64_t)rows - 1) / (2*wide_) + 1) * wide_"

        def step(kernel: str) -> str:
            return self.over(kernel, pairs.replace("wide_", "half_"), sizes)

        sizes = ["order", keys, "rows", "half_", pairs.replace("wide_", "half_")]
        given = [self.at(self.model.seed), f"state + {AT_EPOCH}", "order", keys, "rows"]
        body = [
            "int64_t wide_, half_;",
            "if (!net) return @U_ERROR_NULL;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            "DO_(address_(order, 0));",
            "if (rows < 1 || rows > 4294967295) return @U_ERROR_SIZE;",
            "if (words / 2 < rows) return @U_ERROR_ROOM;",
            "DO_(guard_(net, stream, state));",
            self.over(SHUFFLE_KEYS, "(int64_t)rows", given),
            "for (wide_ = 1; wide_ < (int64_t)rows; wide_ *= 2) {",
            "    half_ = wide_;",
            f"    {step(SORT_FIRST)}",
            "    for (half_ = wide_ / 2; half_ > 0; half_ /= 2)",
            f"        {step(SORT_REST)}",
            "}",
            self.launch(ADVANCE, "1", ONE, [f"state + {AT_EPOCH}"]),
            "return @U_OK;",
        ]
        return self.define("shuffle", body)

    def gather(self, parameter: Parameter, number: int) -> str:
        """The rows of a minibatch, brought together."""
        assert parameter.tensor is not None
        row = self.product([1, *parameter.tensor.shape[1:]], self.own)
        buffers = parameter.name, "order", f"state + {AT_DONE}", f"workspace + where_[{number}]"
        sizes = "now_", row, "rows", "count_", self.own[self.batch], "0", "1"
        return self.over(f"gather_{parameter.tensor.dtype}", f"now_*{row}", [*buffers, *sizes])
