"""The native epoch loop: minibatches, steps and logging without a return to Python.

`i64 @run(ptr %block)` calls `@step` once a minibatch. The block is described where Python fills it
in, chainrule_runtime.runblock.RunBlock; the names below are its fields, in order.
"""

from __future__ import annotations

BLOCK = (
    "table",
    "sizes",
    "step",
    "last",
    "steps_per_epoch",
    "rows",
    "batch_size",
    "batch_index",
    "order",
    "input_count",
    "inputs",
    "log_count",
    "logs",
)
INPUT = ("source", "staging", "row_bytes", "table_index")
LOG = ("table_index", "itemsize", "destination")
_POINTERS = {
    "table",
    "sizes",
    "order",
    "inputs",
    "logs",
    "source",
    "staging",
    "destination",
}


def run_loop() -> str:
    """The LLVM text of `@run`, for a module that defines `@step` and has COPY_FUNCTION."""
    kept = [name for name in BLOCK if name != "step"]
    fields = "\n".join(_field(name, BLOCK, "%block") for name in kept)
    sliced = "\n".join(_field(name, INPUT, "%input", "in_") for name in INPUT)
    logged = "\n".join(_field(name, LOG, "%log", "log_") for name in LOG)
    text = _RUN.replace("$FIELDS", fields).replace("$INPUT", sliced).replace("$LOG", logged)
    return text.replace("$STEP", str(BLOCK.index("step")))


def _field(name: str, fields: tuple[str, ...], base: str, prefix: str = "") -> str:
    kind = "ptr" if name in _POINTERS else "i64"
    at = f"%at_{prefix}{name}"
    return (
        f"  {at} = getelementptr i64, ptr {base}, i64 {fields.index(name)}\n"
        f"  %{prefix}{name} = load {kind}, ptr {at}, align 8"
    )


_RUN = """
define i64 @run(ptr %block) #1 {
entry:
$FIELDS
  %at_step = getelementptr i64, ptr %block, i64 $STEP
  %first = load i64, ptr %at_step, align 8
  %has_batch = icmp sge i64 %batch_index, 0
  %batch_at = getelementptr i64, ptr %sizes, i64 %batch_index
  %ordered = icmp ne ptr %order, null
  br label %test
test:
  %k = phi i64 [%first, %entry], [%k_next, %finished]
  %more = icmp slt i64 %k, %last
  br i1 %more, label %start, label %done
done:
  ret i64 0
start:
  %epoch = udiv i64 %k, %steps_per_epoch
  %in_epoch = urem i64 %k, %steps_per_epoch
  %row = mul i64 %in_epoch, %batch_size
  %rest = sub i64 %rows, %row
  %short = icmp slt i64 %rest, %batch_size
  %count = select i1 %short, i64 %rest, i64 %batch_size
  br i1 %has_batch, label %resize, label %inputs_start
resize:
  store i64 %count, ptr %batch_at, align 8
  br label %inputs_start
inputs_start:
  %epoch_rows = mul i64 %epoch, %rows
  %order_row = add i64 %epoch_rows, %row
  %order_at = getelementptr i64, ptr %order, i64 %order_row
  br label %inputs_test
inputs_test:
  %i = phi i64 [0, %inputs_start], [%i_next, %input_done]
  %inputs_more = icmp slt i64 %i, %input_count
  br i1 %inputs_more, label %input_load, label %call
input_load:
  %i_words = mul i64 %i, 4
  %input = getelementptr i64, ptr %inputs, i64 %i_words
$INPUT
  %slot = getelementptr ptr, ptr %table, i64 %in_table_index
  br i1 %ordered, label %gather, label %point
point:
  %row_at = mul i64 %row, %in_row_bytes
  %window = getelementptr i8, ptr %in_source, i64 %row_at
  store ptr %window, ptr %slot, align 8
  br label %input_done
gather:
  store ptr %in_staging, ptr %slot, align 8
  br label %gather_test
gather_test:
  %r = phi i64 [0, %gather], [%r_next, %gather_row]
  %gather_more = icmp slt i64 %r, %count
  br i1 %gather_more, label %gather_row, label %input_done
gather_row:
  %number_at = getelementptr i64, ptr %order_at, i64 %r
  %number = load i64, ptr %number_at, align 8
  %from_bytes = mul i64 %number, %in_row_bytes
  %from = getelementptr i8, ptr %in_source, i64 %from_bytes
  %to_bytes = mul i64 %r, %in_row_bytes
  %to = getelementptr i8, ptr %in_staging, i64 %to_bytes
  call void @copy(ptr %to, ptr %from, i64 %in_row_bytes)
  %r_next = add i64 %r, 1
  br label %gather_test
input_done:
  %i_next = add i64 %i, 1
  br label %inputs_test
call:
  %code = call i32 @step(ptr %table, ptr %sizes)
  %good = icmp eq i32 %code, 0
  br i1 %good, label %logs_test, label %failed
failed:
  %code_wide = sext i32 %code to i64
  ret i64 %code_wide
logs_test:
  %j = phi i64 [0, %call], [%j_next, %log_load]
  %logs_more = icmp slt i64 %j, %log_count
  br i1 %logs_more, label %log_load, label %finished
log_load:
  %j_words = mul i64 %j, 3
  %log = getelementptr i64, ptr %logs, i64 %j_words
$LOG
  %log_slot = getelementptr ptr, ptr %table, i64 %log_table_index
  %scalar = load ptr, ptr %log_slot, align 8
  %log_bytes = mul i64 %k, %log_itemsize
  %log_to = getelementptr i8, ptr %log_destination, i64 %log_bytes
  call void @copy(ptr %log_to, ptr %scalar, i64 %log_itemsize)
  %j_next = add i64 %j, 1
  br label %logs_test
finished:
  %k_next = add i64 %k, 1
  store i64 %k_next, ptr %at_step, align 8
  br label %test
}
"""

#: `void @copy(to, from, bytes)`, which what stands here and loops over slices call
COPY_FUNCTION = """
define internal void @copy(ptr %to, ptr %from, i64 %bytes) #0 {
entry:
  %wide = and i64 %bytes, -64
  %words = and i64 %bytes, -4
  br label %wide_test
wide_test:
  %a = phi i64 [0, %entry], [%a_next, %wide_body]
  %a_more = icmp ult i64 %a, %wide
  br i1 %a_more, label %wide_body, label %word_test
wide_body:
  %a_from = getelementptr i8, ptr %from, i64 %a
  %a_to = getelementptr i8, ptr %to, i64 %a
  %a_value = load <16 x i32>, ptr %a_from, align 1
  store <16 x i32> %a_value, ptr %a_to, align 1
  %a_next = add i64 %a, 64
  br label %wide_test
word_test:
  %b = phi i64 [%wide, %wide_test], [%b_next, %word_body]
  %b_more = icmp ult i64 %b, %words
  br i1 %b_more, label %word_body, label %byte_test
word_body:
  %b_from = getelementptr i8, ptr %from, i64 %b
  %b_to = getelementptr i8, ptr %to, i64 %b
  %b_value = load i32, ptr %b_from, align 1
  store i32 %b_value, ptr %b_to, align 1
  %b_next = add i64 %b, 4
  br label %word_test
byte_test:
  %c = phi i64 [%words, %word_test], [%c_next, %byte_body]
  %c_more = icmp ult i64 %c, %bytes
  br i1 %c_more, label %byte_body, label %done
byte_body:
  %c_from = getelementptr i8, ptr %from, i64 %c
  %c_to = getelementptr i8, ptr %to, i64 %c
  %c_value = load i8, ptr %c_from, align 1
  store i8 %c_value, ptr %c_to, align 1
  %c_next = add i64 %c, 1
  br label %byte_test
done:
  ret void
}"""
