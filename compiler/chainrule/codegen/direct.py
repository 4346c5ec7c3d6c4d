"""The direct call: a step on the arrays of a Python call, whose headers are read natively.

`double @direct(ptr %feeds, ptr %block)` is called with the interpreter's lock held, on a dict of
arrays by name. Where every array is what the last plan was made for, it enters their addresses in
the table, gives the lock back while `@step` runs and returns the loss; anything else is NaN, and
whoever called looks closer by the ordinary way. A loss that is NaN is no number to be returned, so
the two can't be taken for each other. The block is described where Python fills it in,
chainrule_runtime.direct.DirectBlock; the names below are its fields, in order.
"""

from __future__ import annotations

BLOCK = (
    "table",
    "sizes",
    "loss",
    "loss_bytes",
    "array_type",
    "dict_size",
    "dict_get",
    "save_thread",
    "restore_thread",
    "input_count",
    "inputs",
    "span_count",
    "spans",
)
INPUT = ("key", "dtype", "rank", "shape", "bytes", "table_index")
SPAN = ("start", "end")
#: where CPython and NumPy keep what an array's header says (ndarraytypes.h: PyArrayObject_fields);
#: the runtime makes no block where an array of its own does not have them there
HEADER = {"type": 8, "data": 16, "rank": 24, "shape": 32, "dtype": 56, "flags": 64}
#: NPY_ARRAY_C_CONTIGUOUS and NPY_ARRAY_ALIGNED
FLAGS = 0x0001 | 0x0100
_NUMBERS = {
    "loss_bytes",
    "input_count",
    "span_count",
    "rank",
    "bytes",
    "table_index",
    "start",
    "end",
}


def direct_call() -> str:
    """The LLVM text of `@direct`, for a module that defines `@step`."""
    text = _DIRECT
    for place, fields, base in (
        ("BLOCK", BLOCK, "%block"),
        ("INPUT", INPUT, "%input"),
        ("SPAN", SPAN, "%span"),
    ):
        text = text.replace(f"${place}", "\n".join(_field(f, fields, base) for f in fields))
    for name, offset in HEADER.items():
        kind = "i32" if name in ("rank", "flags") else "ptr"
        text = text.replace(
            f"$HEADER {name}",
            f"  %at_header_{name} = getelementptr i8, ptr %array, i64 {offset}\n"
            f"  %header_{name} = load {kind}, ptr %at_header_{name}",
        )
    return text.replace("$FLAGS", str(FLAGS))


def _field(name: str, fields: tuple[str, ...], base: str) -> str:
    kind = "i64" if name in _NUMBERS else "ptr"
    return (
        f"  %at_{name} = getelementptr i64, ptr {base}, i64 {fields.index(name)}\n"
        f"  %{name} = load {kind}, ptr %at_{name}, align 8"
    )


_DIRECT = """
define double @direct(ptr %feeds, ptr %block) #1 {
entry:
$BLOCK
  %given = call i64 %dict_size(ptr %feeds)
  %complete = icmp eq i64 %given, %input_count
  br i1 %complete, label %inputs_test, label %refuse
refuse:
  ret double 0x7FF8000000000000
inputs_test:
  %i = phi i64 [0, %entry], [%i_next, %input_done]
  %inputs_more = icmp slt i64 %i, %input_count
  br i1 %inputs_more, label %input_load, label %go
input_load:
  %i_words = mul i64 %i, 6
  %input = getelementptr i64, ptr %inputs, i64 %i_words
$INPUT
  %array = call ptr %dict_get(ptr %feeds, ptr %key)
  %there = icmp ne ptr %array, null
  br i1 %there, label %type_test, label %refuse
type_test:
$HEADER type
  %is_array = icmp eq ptr %header_type, %array_type
  br i1 %is_array, label %header_test, label %refuse
header_test:
$HEADER rank
$HEADER dtype
$HEADER flags
$HEADER shape
$HEADER data
  %rank_wide = sext i32 %header_rank to i64
  %rank_fits = icmp eq i64 %rank_wide, %rank
  %dtype_fits = icmp eq ptr %header_dtype, %dtype
  %flags_set = and i32 %header_flags, $FLAGS
  %flags_fit = icmp eq i32 %flags_set, $FLAGS
  %both_fit = and i1 %rank_fits, %dtype_fits
  %all_fit = and i1 %both_fit, %flags_fit
  br i1 %all_fit, label %shape_test, label %refuse
shape_test:
  %axis = phi i64 [0, %header_test], [%axis_next, %shape_step]
  %axes_more = icmp slt i64 %axis, %rank
  br i1 %axes_more, label %shape_step, label %span_start
shape_step:
  %have_at = getelementptr i64, ptr %header_shape, i64 %axis
  %have = load i64, ptr %have_at, align 8
  %want_at = getelementptr i64, ptr %shape, i64 %axis
  %want = load i64, ptr %want_at, align 8
  %axis_next = add i64 %axis, 1
  %axis_fits = icmp eq i64 %have, %want
  br i1 %axis_fits, label %shape_test, label %refuse
span_start:
  %first = ptrtoint ptr %header_data to i64
  %past = add i64 %first, %bytes
  br label %span_test
span_test:
  %s = phi i64 [0, %span_start], [%s_next, %span_step]
  %spans_more = icmp slt i64 %s, %span_count
  br i1 %spans_more, label %span_step, label %input_done
span_step:
  %s_words = mul i64 %s, 2
  %span = getelementptr i64, ptr %spans, i64 %s_words
$SPAN
  %s_next = add i64 %s, 1
  %is_before = icmp sle i64 %past, %start
  %is_after = icmp sge i64 %first, %end
  %apart = or i1 %is_before, %is_after
  br i1 %apart, label %span_test, label %refuse
input_done:
  %slot = getelementptr ptr, ptr %table, i64 %table_index
  store ptr %header_data, ptr %slot, align 8
  %i_next = add i64 %i, 1
  br label %inputs_test
go:
  %thread = call ptr %save_thread()
  %code = call i32 @step(ptr %table, ptr %sizes)
  call void %restore_thread(ptr %thread)
  %good = icmp eq i32 %code, 0
  br i1 %good, label %result, label %refuse
result:
  %narrow = icmp eq i64 %loss_bytes, 4
  br i1 %narrow, label %single, label %double
single:
  %loss_single = load float, ptr %loss, align 4
  %loss_extended = fpext float %loss_single to double
  %found_single = fadd double %loss_extended, 0.0
  ret double %found_single
double:
  %loss_double = load double, ptr %loss, align 8
  %found_double = fadd double %loss_double, 0.0
  ret double %found_double
}"""
