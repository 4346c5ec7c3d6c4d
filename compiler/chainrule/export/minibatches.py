"""Many steps in one call, and the order of rows: what TrainingStep.run does, for C."""

from __future__ import annotations

from chainrule.export.codes import CODE
from chainrule.export.entries import Entries
from chainrule.export.interface import STATE, WORKSPACE, Interface, Parameter
from chainrule.export.model import ALIGN, AT_EPOCH, Model, round_up
from chainrule.export.philox import signed
from chainrule.export.text import Code
from chainrule.export.units import output_bytes
from chainrule.ops import philox
from chainrule_runtime.manifest import Tensor, element_type

SAID = {
    "steps": "One epoch: a step for each minibatch of the rows, the last one smaller where they do"
    " not divide. The rows are taken as `order` numbers them, or as they stand where it is NULL."
    " losses is NULL or has room for the loss of every step. done, which may be NULL, is how many"
    " steps were made, also where the next one failed.",
    "steps_workspace_bytes": "Bytes of workspace that steps needs: those of a step, and room for"
    " the rows of a minibatch.",
    "shuffle": "Put the rows' order of the next epoch into order[0] to order[rows - 1], and"
    " count the epoch. order has room for 2 * rows words. The order is that of the compiler's own"
    " shuffling, from the seed.",
}

SHUFFLE_PARAMETERS = (
    *STATE,
    Parameter("order", "uint64_t *"),
    Parameter("words", "size_t"),
    Parameter("rows", "size_t"),
)


def batch_size_of(model: Model) -> str:
    """The symbolic size that minibatches have."""
    return model.sizes[0].name


def _loss_bytes(model: Model) -> int:
    """Bytes of what a step gives as its loss: one number, or one for each member."""
    return output_bytes(model.units["step"].manifest.outputs[0], model.most())


def _data(model: Model) -> list[Tensor]:
    return list(model.units["step"].manifest.feeds)


def steps_parameters(model: Model, interface: Interface) -> list[Parameter]:
    """The parameters of `NAME_steps`."""
    unit = model.units["step"]
    sizes = interface.size_parameters(model.sizes)
    loss = interface.output_parameters(unit, optional=False)[0]
    return [
        *STATE,
        *WORKSPACE,
        Parameter("rows", "size_t"),
        *sizes,
        Parameter("order", "const uint64_t *"),
        *interface.feed_parameters(unit),
        Parameter("losses", loss.kind),
        Parameter("done", "size_t *"),
    ]


def functions(module: Entries) -> list[str]:
    """`NAME_steps`, `NAME_steps_workspace_bytes` and `NAME_shuffle`, where data has rows."""
    if not module.model.sliced:
        return []
    return [_workspace(module), _steps(module), _shuffle(module)]


def _row_bytes(module: Entries, code: Code, tensor: Tensor) -> str:
    sizes = {s.name: f"%{module.interface.sizes[s.name]}" for s in module.model.sizes}
    total = str(element_type(tensor.dtype).itemsize)
    for dim in tensor.shape[1:]:
        total = code.value(f"mul iw {total}, {code.number(dim, sizes)}")
    return total


def _staging(module: Entries, code: Code) -> tuple[list[str], str]:
    """Where the rows of each sliced input go, from the workspace's end on, and how much that is."""
    model = module.model
    batch = f"%{module.interface.sizes[batch_size_of(model)]}"
    at, starts = str(round_up(_loss_bytes(model))), []
    for tensor in _data(model):
        if tensor.name in model.sliced:
            starts.append(at)
            bytes_ = code.value(f"mul iw {batch}, {_row_bytes(module, code, tensor)}")
            more = code.value(f"add iw {bytes_}, {ALIGN - 1}")
            at = code.value(f"add iw {at}, {code.value(f'and iw {more}, {-ALIGN}')}")
    return starts, at


def _workspace(module: Entries) -> str:
    model = module.model
    parameters = module.interface.size_parameters(model.sizes)
    code = module.head("steps_workspace_bytes", parameters, "iw")
    listed = ", ".join(f"iw %{p.name}" for p in parameters)
    base = code.value(f"call iw @{model.name}_workspace_bytes({listed})")
    code.leave_if(code.value(f"icmp eq iw {base}, 0"), "iw 0")
    _, more = _staging(module, code)
    return code.text(f"iw {code.value(f'add iw {base}, {more}')}")


def _steps(module: Entries) -> str:
    """The loop: for each minibatch its rows, pointed at or gathered, and one step."""
    model, interface = module.model, module.interface
    unit = model.units["step"]
    name = model.name
    parameters = steps_parameters(model, interface)
    code = module.divided("steps", parameters)
    _check_aligned(module, code, unit.manifest.outputs[0])
    there = code.value("icmp ne ptr %done, null")
    code.when(there, lambda: code.store("iw", "0", "%done", align=4))
    module.check_sizes(code, unit)
    arguments = ", ".join(f"iw %{p.name}" for p in interface.size_parameters(model.sizes))
    module.check_call(code, code.value(f"call iw @{name}_steps_workspace_bytes({arguments})"))
    feeds = interface.feed_parameters(unit)
    module.check_pointers(code, feeds)
    batch = interface.sizes[batch_size_of(model)]
    code.leave_if(code.value("icmp eq iw %rows, 0"), f"i32 {CODE['ERROR_SIZE']}")
    ordered = code.value("icmp ne ptr %order, null")
    code.when(ordered, lambda: _check_order(code))
    base = code.value(f"call iw @{name}_workspace_bytes({arguments})")
    starts, _ = _staging(module, code)
    loss_at = code.at("%workspace", base)
    places = [code.at(loss_at, s) for s in starts]
    above = code.value("sub iw %rows, 1")
    count = code.value(f"add iw {code.value(f'udiv iw {above}, %{batch}')}, 1")
    item = _loss_bytes(model)

    def step(k: str) -> None:
        row = code.value(f"mul iw {k}, %{batch}")
        rest = code.value(f"sub iw %rows, {row}")
        short = code.value(f"icmp ult iw {rest}, %{batch}")
        now = code.value(f"select i1 {short}, iw {rest}, iw %{batch}")
        pointers, sliced = [], 0
        for parameter in feeds:
            assert parameter.tensor is not None
            if parameter.tensor.name not in model.sliced:
                pointers.append(f"%{parameter.name}")
                continue
            bytes_ = _row_bytes(module, code, parameter.tensor)
            place, source = places[sliced], f"%{parameter.name}"
            sliced += 1
            window = code.at(source, code.value(f"mul iw {row}, {bytes_}"))

            def gather(source: str = source, place: str = place, bytes_: str = bytes_) -> None:
                def one(r: str) -> None:
                    at = code.value(f"add iw {row}, {r}")
                    number = code.load("iw", "%order", code.value(f"shl iw {at}, 3"))
                    origin = code.at(source, code.value(f"mul iw {number}, {bytes_}"))
                    target = code.at(place, code.value(f"mul iw {r}, {bytes_}"))
                    code.copy(target, origin, bytes_)

                code.loop(now, one)

            code.when(ordered, gather)
            pointers.append(code.value(f"select i1 {ordered}, ptr {place}, ptr {window}"))
        named = [p.name for p in interface.size_parameters(interface.sizes_of(unit))]
        sizes = [now if n == batch else f"%{n}" for n in named]
        outputs = [f"ptr {loss_at}", *["ptr null"] * (len(unit.manifest.outputs) - 1)]
        given = ", ".join(
            [
                "ptr %state, iw %state_bytes",
                f"ptr %workspace, iw {base}",
                *(f"iw {s}" for s in sizes),
                *(f"ptr {p}" for p in pointers),
                *outputs,
                *module.given,
            ]
        )
        code.guard(f"@{name}_step{'_parallel' if module.given else ''}({given})")
        wanted = code.value("icmp ne ptr %losses, null")

        def log() -> None:
            at = code.value(f"mul iw {k}, {item}")
            if model.members is not None:
                code.copy(code.at("%losses", at), loss_at, item)
                return
            kind = f"i{8 * item}"
            code.store(kind, code.load(kind, loss_at, align=item), "%losses", at, align=item)

        code.when(wanted, log)
        made = code.value(f"add iw {k}, 1")
        code.when(there, lambda: code.store("iw", made, "%done", align=4))

    code.loop(count, step)
    return code.text("i32 0") + module.whole("steps", parameters)


def _check_aligned(module: Entries, code: Code, loss: Tensor) -> None:
    """Leave where losses or done, which may be null, are not aligned to what they hold."""
    low = "0"
    for name, item in (
        ("losses", element_type(loss.dtype).itemsize),
        ("done", int(module.size[1:]) // 8),
    ):
        address = code.value(f"ptrtoint ptr %{name} to iw")
        low = code.value(f"or iw {low}, {code.value(f'and iw {address}, {item - 1}')}")
    code.leave_if(code.value(f"icmp ne iw {low}, 0"), f"i32 {CODE['ERROR_ALIGN']}")


def _check_order(code: Code) -> None:
    """Leave where a number of the order is no row."""
    code.guard("@check_pointer(ptr %order, iw 7)")

    def check(i: str) -> None:
        number = code.load("i64", "%order", code.value(f"shl iw {i}, 3"))
        code.leave_if(code.value(f"icmp uge i64 {number}, {rows}"), f"i32 {CODE['ERROR_VALUE']}")

    rows = code.wide("%rows")
    code.loop("%rows", check)


def _shuffle(module: Entries) -> str:
    """Sort (word, row) pairs, by steps that become a third each time: no stack, little code.

    Shell, A high-speed sorting procedure, CACM 2(7), 1959. The last step is 1.
    """
    model = module.model
    code = module.head("shuffle", SHUFFLE_PARAMETERS)
    code.guard("@check_state(ptr %state, iw %state_bytes)")
    code.guard("@check_pointer(ptr %order, iw 7)")
    many = code.value(f"icmp ugt i64 {code.wide('%rows')}, 4294967295")
    code.leave_if(many, f"i32 {CODE['ERROR_SIZE']}")
    pairs = code.value("lshr iw %words, 1")
    small = code.value(f"icmp ult iw {pairs}, %rows")
    code.leave_if(small, f"i32 {CODE['ERROR_ROOM']}")
    seed = code.load("i64", "%state", model.offsets[model.seed])
    epoch = code.load("i64", "%state", AT_EPOCH)
    last = code.value(f"icmp ugt i64 {epoch}, 4294967295")
    code.leave_if(last, f"i32 {CODE['ERROR_VALUE']}")
    keys = code.at("%order", code.value("shl iw %rows, 3"))

    words = halves(code, seed)
    turn, _ = halves(code, epoch)

    def fill(i: str) -> None:
        row = code.wide(i)
        low, high = halves(code, row)
        given = (low, high, turn, str(signed(philox.SHUFFLE_DRAW)), *words)
        word = code.value(f"call i64 @philox({', '.join(f'i32 {w}' for w in given)})")
        at = code.value(f"shl iw {i}, 3")
        code.store("i64", word, keys, at)
        code.store("i64", row, "%order", at)

    code.loop("%rows", fill)
    code.do(f"call void @sort(ptr {keys}, ptr %order, iw %rows)")
    code.store("i64", code.value(f"add i64 {epoch}, 1"), "%state", AT_EPOCH)
    return code.text("i32 0") + "\n\n" + _SORT


def halves(code: Code, word: str) -> tuple[str, str]:
    """An i64 as two i32, the lower one first."""
    high = code.value(f"lshr i64 {word}, 32")
    low, up = (code.value(f"trunc i64 {part} to i32") for part in (word, high))
    return low, up


#: the rows by their keys, ascending; equal keys by row. Keys stay where they are, and rows are
#: words of which the high halves are 0.
_SORT = """define internal void @sort(ptr %keys, ptr %rows, iw %n) #0 {
entry:
  br label %narrow
narrow:
  %wide = phi iw [%n, %entry], [%gap, %turned]
  %more = icmp ugt iw %wide, 1
  br i1 %more, label %begin, label %done
begin:
  %third = udiv iw %wide, 3
  %gap = add iw %third, 1
  br label %turn
turn:
  %i = phi iw [%gap, %begin], [%i_next, %placed]
  %left = icmp ult iw %i, %n
  br i1 %left, label %place, label %turned
turned:
  br label %narrow
place:
  %j = phi iw [%i, %turn], [%below, %swap]
  %inside = icmp uge iw %j, %gap
  br i1 %inside, label %compare, label %placed
compare:
  %below = sub iw %j, %gap
  %ra = getelementptr i64, ptr %rows, iw %j
  %rb = getelementptr i64, ptr %rows, iw %below
  %p = load i32, ptr %ra, align 8
  %q = load i32, ptr %rb, align 8
  %pw = zext i32 %p to iw
  %qw = zext i32 %q to iw
  %ka = getelementptr i64, ptr %keys, iw %pw
  %kb = getelementptr i64, ptr %keys, iw %qw
  %x = load i64, ptr %ka, align 8
  %y = load i64, ptr %kb, align 8
  %xw = zext i64 %x to i128
  %yw = zext i64 %y to i128
  %xh = shl i128 %xw, 32
  %yh = shl i128 %yw, 32
  %pl = zext i32 %p to i128
  %ql = zext i32 %q to i128
  %a = or i128 %xh, %pl
  %b = or i128 %yh, %ql
  %before = icmp ult i128 %a, %b
  br i1 %before, label %swap, label %placed
swap:
  store i32 %q, ptr %ra, align 8
  store i32 %p, ptr %rb, align 8
  br label %place
placed:
  %i_next = add iw %i, 1
  br label %turn
done:
  ret void
}"""
