"""The C source of a kernel for a GPU, over CUDA's driver: how a state begins, and is kept."""

from __future__ import annotations

import json
from textwrap import wrap

from chainrule.export import gpu_selftest, gpu_text
from chainrule.export.checks import FACTOR, FIRST, SHIFT
from chainrule.export.codes import checks_of, faults
from chainrule.export.extras import number_parameter, range_of
from chainrule.export.gpu import (
    CHECK_STATE,
    GpuKernel,
    bytes_of,
    head_of,
    line_of,
    number_of,
)
from chainrule.export.gpu_minibatches import Minibatches
from chainrule.export.gpu_units import ONE
from chainrule.export.model import (
    ABI,
    AT_ABI,
    AT_CHECKSUM,
    AT_DONE,
    AT_MODEL,
    AT_SIZE,
    AT_STATUS,
    HEAD,
    MAGIC,
    Drawn,
    Given,
    Number,
    Same,
    StateTensor,
)


def source(kernel: GpuKernel) -> str:
    """The text of NAME.c."""
    return _Source(kernel).text()


class _Source(Minibatches):
    """Writes the source of a kernel."""

    def text(self) -> str:
        """All of it."""
        model = self.model
        parts = [self.opening(), self.init(), self.moving(), self.status(), self.tensors()]
        for name, unit in model.units.items():
            parts += [self.plan(name, unit), self.run(name, unit), self.call(name, unit)]
        parts.append(self.workspace_bytes())
        if model.sliced:
            parts += [self.staging(), self.steps(), self.shuffle()]
        parts += [self.selftest(), *(self.setter(n) for n in model.numbers)]
        parts.append(self.strerror())
        sizes: list[str] = []
        for text in gpu_text.SIZES:  # each calls those behind it
            name = text.partition("(")[0].split()[-1]
            if any(f"{name}(" in part for part in (*parts, *sizes)):
                sizes.insert(0, text)
        whole = [gpu_text.HEAD, self.common(), *sizes, *parts]
        return "\n\n".join(whole).replace("@N", self.name).replace("@U", self.name.upper())

    def common(self) -> str:
        """What is asked of memory, and of sizes."""
        programs = [x.program for x in self.kernel.module.kernels.values()]
        most = max(len(p.buffers) + len(p.sizes) for p in programs)
        text = gpu_text.COMMON.replace("MOST_", str(most + 1))
        if not any(self.asked):
            return text.replace("shared_[kernel]", "0")
        sizes = ", ".join(map(str, self.asked))
        return f"static const int shared_[] = {{{sizes}}};\n\n" + text.replace(
            "shared_[kernel]", "(unsigned int)shared_[kernel]"
        )

    @property
    def asked(self) -> list[int]:
        """Bytes of shared memory that each kernel is given at launch."""
        return [launch.dynamic for launch in self.kernel.module.kernels.values()]

    def opening(self) -> str:
        """`NAME_open`, `NAME_close` and `NAME_state_bytes`."""
        names = ",\n    ".join(f'"{n}"' for n in self.kernel.names)
        count = len(self.kernel.names)
        body = [
            "int i_, code_;",
            "if (!net || !image) return @U_ERROR_NULL;",
            "DO_(told_(cuModuleLoadData(&net->module, image)));",
            "code_ = told_(cuModuleGetGlobal(&net->data, NULL, net->module, \"data\"));",
            f"for (i_ = 0; i_ < {count} && !code_; i_++)",
            "    code_ = told_(cuModuleGetFunction(&net->kernel[i_], net->module, names_[i_]));",
            *self.allowed(),
            "if (code_) cuModuleUnload(net->module);",
            "return code_;",
        ]  # fmt: skip
        close = ["return net ? told_(cuModuleUnload(net->module)) : @U_ERROR_NULL;"]
        return "\n\n".join(
            [
                f"static const char *const names_[] = {{\n    {names}\n}};",
                self.define("open", body),
                self.define("close", close),
                self.define("state_bytes", ["return @U_STATE_BYTES;"]),
            ]
        )

    def allowed(self) -> list[str]:
        """Let kernels have the shared memory that they are given."""
        if not any(self.asked):
            return []
        word = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        return [
            f"for (i_ = 0; i_ < {len(self.asked)} && !code_; i_++)",
            "    if (shared_[i_])",
            f"        code_ = told_(cuFuncSetAttribute(net->kernel[i_], {word},",
            "            shared_[i_]));",
        ]

    def init(self) -> str:
        """`NAME_init`: the head, the seed, and each tensor as it begins."""
        model = self.model
        seed = self.offsets[model.seed]
        body = [
            "if (!net) return @U_ERROR_NULL;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            "DO_(told_(cuMemsetD8Async(state, 0, @U_STATE_BYTES, stream)));",
            f"DO_(copy_(stream, state, {self.data(head_of(model))}, {HEAD}));",
            f"DO_(word_(stream, state + {seed}, (uint32_t)seed));",
            f"DO_(word_(stream, state + {seed + 4}, (uint32_t)(seed >> 32)));",
        ]
        late = []
        for tensor in model.kept:
            if isinstance(tensor.begin, Same):
                source_ = self.at(tensor.begin.name)
                late.append(
                    f"DO_(copy_(stream, {self.at(tensor.name)}, {source_}, {tensor.bytes}));"
                )
            elif tensor.elements:
                body += self.begin(tensor)
        return self.define("init", [*body, *late, "return @U_OK;"])

    def begin(self, tensor: StateTensor) -> list[str]:
        """What gives a tensor the numbers that it begins with."""
        out, begin = self.at(tensor.name), tensor.begin
        if isinstance(begin, Drawn):
            name = self.kernel.begins[begin.distribution, tensor.dtype, 1]
            given = [self.at(self.model.seed), self.data(number_of(begin))]
            given += [self.data(line_of(begin, tensor.dtype)), out, str(tensor.elements)]
            return [self.over(name, str(tensor.elements), given)]
        assert isinstance(begin, Given)
        data, same = bytes_of(begin, tensor.dtype, tensor.elements)
        if not any(data):
            return []
        if not same:
            return [f"DO_(copy_(stream, {out}, {self.data(data)}, {tensor.bytes}));"]
        count, word = tensor.elements, int.from_bytes(data, "little")
        if len(data) < 8:
            call = f"cuMemsetD{8 * len(data)}Async({out}, {word:#x}u, {count}, stream)"
            return [f"DO_(told_({call}));"]
        halves = (word & 0xFFFFFFFF, word >> 32)
        return [
            f"DO_(told_(cuMemsetD2D32Async({out} + {4 * i}, 8, {half:#x}u, 1, {count}, stream)));"
            for i, half in enumerate(halves)
            if half
        ]

    def moving(self) -> str:
        """`NAME_load` and `NAME_save`."""
        head = gpu_text.CHECK_HEAD.format(
            magic=MAGIC, abi=ABI, at_abi=AT_ABI, at_model=AT_MODEL, at_size=AT_SIZE,
            model=self.model.digest,
        )  # fmt: skip
        digest = gpu_text.DIGEST.format(
            first=FIRST, factor=FACTOR, shift=SHIFT, abi=AT_ABI // 8, sum=AT_CHECKSUM // 8
        )
        load = [
            "uint64_t sum_;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            "if (!bytes) return @U_ERROR_NULL;",
            f"if (n < {HEAD}) return @U_ERROR_ROOM;",
            "DO_(head_(bytes));",
            "if (n < @U_STATE_BYTES) return @U_ERROR_ROOM;",
            f"memcpy(&sum_, (const unsigned char *)bytes + {AT_CHECKSUM}, 8);",
            "if (sum_ != digest_(bytes)) return @U_ERROR_DAMAGED;",
            "DO_(told_(cuMemcpyHtoDAsync(state, bytes, @U_STATE_BYTES, stream)));",
            f"DO_(word_(stream, state + {AT_ABI + 4}, 0));",
            f"DO_(told_(cuMemsetD8Async(state + {AT_CHECKSUM}, 0, {HEAD - AT_CHECKSUM}, stream)));",
            "return told_(cuStreamSynchronize(stream));",
        ]
        save = [
            "uint64_t sum_;",
            "int32_t status_;",
            "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
            "if (!bytes) return @U_ERROR_NULL;",
            "if (n < @U_STATE_BYTES) return @U_ERROR_ROOM;",
            "DO_(told_(cuMemcpyDtoHAsync(bytes, state, @U_STATE_BYTES, stream)));",
            "DO_(told_(cuStreamSynchronize(stream)));",
            "DO_(head_(bytes));",
            f"memcpy(&status_, (unsigned char *)bytes + {AT_STATUS}, 4);",
            "if (status_) return status_;",
            f"memset((unsigned char *)bytes + {AT_CHECKSUM}, 0, {HEAD - AT_CHECKSUM});",
            "sum_ = digest_(bytes);",
            f"memcpy((unsigned char *)bytes + {AT_CHECKSUM}, &sum_, 8);",
            "return @U_OK;",
        ]
        return "\n\n".join([head, digest, self.define("load", load), self.define("save", save)])

    def status(self) -> str:
        """`NAME_status`, and what each call begins with."""
        body = [
            f"unsigned char begin_[{HEAD}];",
            "int32_t status_;",
            "uint64_t done_;",
            "if (done) *done = 0;",
            "DO_(begin_of_(stream, state, state_bytes, begin_));",
            f"memcpy(&status_, begin_ + {AT_STATUS}, 4);",
            f"memcpy(&done_, begin_ + {AT_DONE}, 8);",
            "if (done) *done = (size_t)done_;",
            f"if (status_) DO_(word_(stream, state + {AT_STATUS}, 0));",
            "return status_;",
        ]
        guard = [
            "static int32_t guard_(const @N_net *net, CUstream stream, CUdeviceptr state)",
            "{",
            "    " + self.launch(CHECK_STATE, "1", ONE, ["state"]),
            "    return @U_OK;",
            "}",
        ]
        begin = gpu_text.BEGIN_OF.format(head=HEAD)
        return "\n\n".join([begin, self.define("status", body), "\n".join(guard)])

    def tensors(self) -> str:
        """What tells of tensors, and brings one to the host or from there."""
        kept, offsets = self.model.kept, self.offsets
        rows = [f"    {{{_string(t.name)}, {offsets[t.name]}, {t.bytes}}}" for t in kept]
        about = json.dumps(self.model.about).encode() + b"\0"
        lines = wrap(
            ", ".join(map(str, about)), 96, initial_indent="    ", subsequent_indent="    "
        )
        tables = gpu_text.TENSORS.format(rows=",\n".join(rows), about="\n".join(lines))
        known = f"index >= 0 && index < {len(kept)}"

        def move(copy: str, host: str) -> list[str]:
            return [
                f"unsigned char begin_[{HEAD}];",
                "DO_(begin_of_(stream, state, state_bytes, begin_));",
                f"if (!{host}) return @U_ERROR_NULL;",
                f"if (!({known}) || n != tensors_[index].bytes) return @U_ERROR_NAME;",
                f"DO_(told_({copy}));",
                "return told_(cuStreamSynchronize(stream));",
            ]

        place = "state + tensors_[index].at"
        bodies = {
            "tensors": [f"return {len(kept)};"],
            "tensor": [
                "int32_t i_;",
                f"for (i_ = 0; name && i_ < {len(kept)}; i_++)",
                "    if (!strcmp(name, tensors_[i_].name)) return i_;",
                "return -1;",
            ],
            "tensor_name": [f"return {known} ? tensors_[index].name : NULL;"],
            "tensor_bytes": [f"return {known} ? tensors_[index].bytes : 0;"],
            "describe": ["return about_;"],
            "get": move(f"cuMemcpyDtoHAsync(out, {place}, n, stream)", "out"),
            "set": move(f"cuMemcpyHtoDAsync({place}, in, n, stream)", "in"),
        }
        return "\n\n".join([tables, *(self.define(n, body) for n, body in bodies.items())])

    def selftest(self) -> str:
        """`NAME_selftest` and `NAME_selftest_bytes`."""
        golden = self.kernel.golden
        unit = self.model.units["step"]
        sizes = [str(golden.sizes[s.name]) for s in self.interface.sizes_of(unit)]
        body = gpu_selftest.body(self.model, golden, sizes)
        size = self.define("selftest_bytes", ["return @U_SELFTEST_BYTES;"])
        return "\n\n".join([gpu_selftest.MADE_UP, self.define("selftest", body), size])

    def setter(self, number: Number) -> str:
        """`NAME_set_learning_rate`, and the like."""
        (kept,) = [t for t in self.model.kept if t.name == number.kept]
        kind = number_parameter(number, kept).kind
        end = "f" if kind == "float" else ""
        low, high = (f"{x.hex()}{end}" for x in range_of(number, kept))
        words = 1 if kind == "float" else 2
        stores = [
            f"DO_(word_(stream, state + {self.offsets[kept.name] + 4 * i}, words_[{i}]));"
            for i in range(words)
        ]
        return self.define(
            f"set_{self.interface.numbers[number.called]}",
            [
                f"uint32_t words_[{words}];",
                "DO_(block_(state, state_bytes, @U_STATE_BYTES));",
                f"if (!(value >= {low} && value <= {high})) return @U_ERROR_VALUE;",
                f"memcpy(words_, &value, {4 * words});",
                *stores,
                "return @U_OK;",
            ],
        )

    def strerror(self) -> str:
        """`NAME_strerror`: never null."""
        codes = checks_of([u.manifest for u in self.units])
        upper = self.name.upper()
        texts = [(f.name, f.text.replace("NAME", upper)) for f in faults(codes)]
        cases = [f"case @U_{key}: return {_string(text)};" for key, text in texts]
        return self.define(
            "strerror",
            [
                "const char *text_ = NULL;",
                "if (code >= @U_ERROR_CUDA) {",
                "    cuGetErrorString((CUresult)(code - @U_ERROR_CUDA), &text_);",
                '    return text_ ? text_ : "the driver answered a code that it does not know";',
                "}",
                "switch (code) {",
                *cases,
                "}",
                'return "no code of this interface";',
            ],
        )


def _string(text: str) -> str:
    """A string of C: what is not plain ASCII as octal escapes of its UTF-8."""
    plain = {*range(32, 127)} - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'
