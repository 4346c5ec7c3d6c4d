"""docs/feeds.md as a table: what converts, to what, and what is refused, with its words."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from chainrule_runtime.errors import FeedError, RuntimeFault
from chainrule_runtime.feeds import Binder, convert
from chainrule_runtime.manifest import Tensor

F32 = Tensor("x", "float32", (2, 3), 0)
I32 = Tensor("y", "int32", (3,), 0)
BASE = np.arange(6, dtype=np.float32).reshape(2, 3)


class HasArray:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return BASE.copy()


class HasDLPack:
    def __dlpack__(self, **options: Any) -> Any:
        return BASE.copy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return BASE.__dlpack_device__()


class Broken:
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise RuntimeError("it lies on a GPU")


def unaligned(a: np.ndarray) -> np.ndarray:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def readonly(a: np.ndarray) -> np.ndarray:
    b = a.copy()
    b.flags.writeable = False
    return b


CONVERTS = {
    "as it is": BASE,
    "read-only": readonly(BASE),
    "Fortran order": np.asfortranarray(BASE),
    "negative strides": BASE[::-1, ::-1][::-1, ::-1].copy()[::-1][::-1],
    "every other": np.repeat(BASE, 2, axis=1)[:, ::2],
    "unaligned": unaligned(BASE),
    "byte-swapped": BASE.astype(">f4"),
    "float64": BASE.astype(np.float64),
    "float16": BASE.astype(np.float16),
    "long double": BASE.astype(np.longdouble),
    "int64": BASE.astype(np.int64),
    "uint8": BASE.astype(np.uint8),
    "list": BASE.tolist(),
    "list of ints": [[0, 1, 2], [3, 4, 5]],
    "tuple of arrays": (BASE[0], BASE[1]),
    "a subclass": BASE.view(np.memmap),
    "__array__": HasArray(),
    "__dlpack__": HasDLPack(),
    "read-only byte-swapped": readonly(BASE.astype(">f8")),
}


@pytest.mark.parametrize("value", CONVERTS.values(), ids=CONVERTS.keys())
def test_converts(value: Any) -> None:
    before = np.array(value) if isinstance(value, np.ndarray) else None
    out = convert(F32, value)
    assert type(out) is np.ndarray and out.dtype == np.float32
    assert out.flags.c_contiguous and out.flags.aligned
    np.testing.assert_array_equal(out, BASE)
    if before is not None:
        np.testing.assert_array_equal(np.asarray(value), before)


def test_what_fits_already_is_not_copied() -> None:
    assert convert(F32, BASE) is BASE
    ro = readonly(BASE)
    assert np.shares_memory(convert(F32, ro), ro)


@pytest.mark.parametrize("value", [BASE[:, ::-1], np.broadcast_to(BASE[0], (2, 3))])
def test_odd_strides(value: np.ndarray) -> None:
    out = convert(F32, value)
    np.testing.assert_array_equal(out, value)
    assert out.flags.c_contiguous


REFUSED = {
    "complex": (BASE.astype(complex), "complex128", "real"),
    "objects": (BASE.astype(object), "Python objects", "astype"),
    "text": ("abc", "text", "convert"),
    "texts": (["1", "2"], "text", "convert"),
    "bytes": (b"abc", "bytes", "convert"),
    "None": (None, "NoneType", "an array"),
    "a generator": ((row for row in BASE), "generator", "an array"),
    "dates": (np.zeros(3, "datetime64[s]"), "datetime64", "astype"),
    "spans of time": (np.zeros(3, "timedelta64[s]"), "timedelta64", "timedelta64"),
    "records": (np.zeros(3, [("a", "f4")]), "structured", "fields"),
    "masked": (np.ma.masked_array(BASE, BASE > 2), "masked", "filled"),
    "ragged": ([[1.0], [1.0, 2.0]], "list", "inhomogeneous"),
    "huge ints": ([2**70], "Python objects", "astype"),
    "foreign failure": (Broken(), "Broken", "it lies on a GPU"),
    "a dict": ({"a": 1}, "dict", "an array"),
}


@pytest.mark.parametrize(("value", "got", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(value: Any, got: str, remedy: str) -> None:
    with pytest.raises(FeedError) as error:
        convert(F32, value)
    text = str(error.value)
    assert "x is f32[2, 3]" in text and got in text and remedy in text


def test_sparse_is_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(FeedError, match="toarray"):
        convert(F32, sparse.csr_matrix(BASE))


INTEGERS = {
    "int64": np.array([1, 2, 3]),
    "int8": np.array([1, 2, 3], np.int8),
    "uint32": np.array([1, 2, 3], np.uint32),
    "uint64": np.array([1, 2, 3], np.uint64),
    "byte-swapped": np.array([1, 2, 3], ">i8"),
    "list": [1, 2, 3],
}


@pytest.mark.parametrize("value", INTEGERS.values(), ids=INTEGERS.keys())
def test_integers(value: Any) -> None:
    out = convert(I32, value)
    assert out.dtype == np.int32 and out.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "position", "number"),
    [
        (np.array([0, 2**31, 0]), "[1]", "2147483648"),
        (np.array([0, 0, -(2**31) - 1]), "[2]", "-2147483649"),
        (np.array([2**63, 0, 0], np.uint64), "[0]", "9223372036854775808"),
        ([0, 2**40, 2**41], "[1]", "1099511627776"),
    ],
)
def test_integers_out_of_range(value: Any, position: str, number: str) -> None:
    with pytest.raises(FeedError) as error:
        convert(I32, value)
    assert f"{position} is {number}" in str(error.value) and "2147483647" in str(error.value)


@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), [1.0, 2.0], np.array([np.nan]), 1.5])
def test_floats_are_no_integers(value: Any) -> None:
    with pytest.raises(FeedError, match="fractions"):
        convert(I32, value)


def test_unsigned_and_bool() -> None:
    u8, flag = Tensor("u", "uint8", (2,), 0), Tensor("b", "bool", (2,), 0)
    assert convert(u8, [0, 255]).dtype == np.uint8  # a list's ints have no width
    assert convert(u8, np.array([True, False])).tolist() == [1, 0]
    with pytest.raises(FeedError, match="every value fits"):
        convert(u8, np.array([1, 2]))  # signed to unsigned is not NumPy's same_kind
    with pytest.raises(FeedError, match=r"\[1\] is 256"):
        convert(u8, [0, 256])
    with pytest.raises(FeedError, match="x != 0"):
        convert(flag, np.array([0, 1]))
    assert convert(flag, [True, False]).tolist() == [True, False]
    assert convert(F32, np.ones((2, 3), bool)).dtype == np.float32


def test_floats_beyond_range_are_infinite() -> None:
    out = convert(F32, [[1e300, -1e300, 1e-300]])
    assert out.tolist() == [[np.inf, -np.inf, 0.0]]


def test_scalars_keep_rank_0() -> None:
    scalar = Tensor("s", "float32", (), 0)
    for value in (2, 2.0, True, np.float64(2), np.array(2.0)):
        assert convert(scalar, value).shape == ()


def test_torch_and_dataframes() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(convert(F32, torch.tensor(BASE)), BASE)
    np.testing.assert_array_equal(convert(F32, torch.tensor(BASE).T.contiguous().T), BASE)
    with pytest.raises(FeedError, match="grad"):
        convert(F32, torch.tensor(BASE, requires_grad=True))


def names(**shapes: tuple[Any, ...]) -> Binder:
    sizes: list[str] = []
    for shape in shapes.values():
        sizes += [d for d in shape if isinstance(d, str) and d not in sizes]
    feeds = [
        Tensor(n, "float32", tuple(symbol(d) if isinstance(d, str) else d for d in s), i)
        for i, (n, s) in enumerate(shapes.items())
    ]
    return Binder(feeds, sizes)


def symbol(name: str) -> dict[str, Any]:
    return {"terms": [[1, [name]]]}


def line(slope: int, name: str, rest: int) -> dict[str, Any]:
    return {"terms": [[slope, [name]], [rest, []]]}


def test_names() -> None:
    binder = names(pixels=("batch", 784), target=("batch",))
    with pytest.raises(FeedError, match="target is not given") as error:
        binder.arrays({"pixels": 1})
    assert "pixels: f32[batch, 784]" in str(error.value)
    with pytest.raises(FeedError, match="did you mean 'target'"):
        binder.arrays({"pixels": 1, "traget": 1})
    with pytest.raises(FeedError, match="no input 'z'"):
        binder.arrays({"pixels": 1, "target": 1, "z": 1})


def test_shapes() -> None:
    binder = names(x=("batch", 784), y=("batch",))
    assert binder.sizes([(32, 784), (32,)]) == {"batch": 32}
    with pytest.raises(FeedError, match="axis 1 is 783, not 784") as error:
        binder.sizes([(32, 783), (32,)])
    assert "x is f32[batch, 784], got an array of shape (32, 783)" in str(error.value)
    with pytest.raises(FeedError, match="axis 0 is 31, not 32") as error:
        binder.sizes([(32, 784), (31,)])
    assert "batch is what x of shape (32, 784) makes it" in str(error.value)
    with pytest.raises(FeedError, match="it has 1 axes, not 2"):
        binder.sizes([(784,), (32,)])
    with pytest.raises(FeedError, match="it has 2 axes, not 1"):
        binder.sizes([(32, 784), (32, 1)])


def test_sizes_given_through_polynomials() -> None:
    feeds = [
        Tensor("x", "float32", (line(2, "n", 1),), 0),
        Tensor("y", "float32", ({"terms": [[1, ["n", "m"]]]},), 1),
    ]
    binder = Binder(feeds, ["m", "n"])
    assert binder.sizes([(7,), (12,)]) == {"n": 3, "m": 4}
    with pytest.raises(FeedError, match="no n makes"):
        binder.sizes([(8,), (12,)])
    with pytest.raises(FeedError, match="no m makes"):
        binder.sizes([(7,), (13,)])
    square = Binder([Tensor("x", "float32", ({"terms": [[1, ["n", "n"]]]},), 0)], ["n"])
    with pytest.raises(FeedError, match="does not tell"):
        square.sizes([(9,)])


def test_empty_ones_are_refused_where_they_have_no_meaning() -> None:
    feeds = [Tensor("x", "float32", (symbol("batch"),), 0)]
    assert Binder(feeds, ["batch"]).sizes([(0,)]) == {"batch": 0}
    with pytest.raises(FeedError, match="the size batch is 0"):
        Binder(feeds, ["batch"], [symbol("batch")]).sizes([(0,)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_copy_beyond_memory(dtype: Any) -> None:
    vast = np.broadcast_to(np.zeros((1, 3), dtype), (2**50, 3))
    with pytest.raises(FeedError, match="no room for a copy"):
        convert(F32, vast)


def test_many_wrong_names_make_a_short_error() -> None:
    with pytest.raises(FeedError, match="and 4995 more") as error:
        Binder([F32], []).check_names({f"y{i}" * 1000: 0 for i in range(5000)})
    assert len(str(error.value)) < 1000


BF16 = Tensor("x", "bfloat16", (2, 3), 0)


def bfloat16(a: Any) -> np.ndarray:
    return np.asarray(a).astype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.mark.parametrize(
    "of", ["float16", "float32", "float64", "longdouble", "int8", "int64", "uint64", "bool"]
)
def test_numbers_become_bfloat16(of: str) -> None:
    got = convert(BF16, BASE.astype(of))
    np.testing.assert_array_equal(got, bfloat16(BASE.astype(of)))


def test_bfloat16_arrays_are_read_where_they_lie() -> None:
    a = bfloat16(BASE)
    assert convert(BF16, a) is a or np.shares_memory(convert(BF16, a), a)
    for other in (a[:, ::-1], np.asfortranarray(a), readonly(a), a.T.T, unaligned(a)):
        got = convert(BF16, other)
        assert got.flags.c_contiguous and got.flags.aligned
        np.testing.assert_array_equal(got, np.asarray(other))
    assert convert(BF16, [[1.5] * 3] * 2).dtype == a.dtype
    assert convert(F32, a).dtype == np.float32


def test_beyond_its_range_bfloat16_is_infinite() -> None:
    assert np.isinf(convert(BF16, np.full((2, 3), 3.4e38))).all()
    assert np.isinf(convert(BF16, np.full((2, 3), 1e300))).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (BASE.astype(complex), "real and imaginary part"),
        (BASE.astype("U3"), "text"),
        (BASE.astype("S3"), "bytes"),
        (BASE.astype(object), "Python objects"),
        (BASE.astype("M8[s]"), "feed numbers"),
        (np.zeros((2, 3), "V2"), "plain numbers"),
        (np.zeros((2, 3), [("a", "f4")]), "structured records"),
        ("abc", "text"),
        (None, "NoneType"),
        (Broken(), "it lies on a GPU"),
    ],
)
def test_what_is_no_bfloat16(value: Any, says: str) -> None:
    with pytest.raises(FeedError, match=says):
        convert(BF16, value)


def test_bfloat16_is_no_integer() -> None:
    with pytest.raises(FeedError, match="lose their fractions"):
        convert(I32, bfloat16(np.zeros(3)))


def test_bfloat16_of_pytorch_is_told_how_to_come() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    with pytest.raises(FeedError, match=r"x\.float\(\)"):
        convert(BF16, x)
    np.testing.assert_array_equal(convert(BF16, x.float()), bfloat16(np.ones((2, 3))))


def test_bfloat16_of_others_comes_as_an_array() -> None:
    class Foreign:
        dtype = "bfloat16"

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return bfloat16(BASE)

    np.testing.assert_array_equal(convert(BF16, Foreign()), bfloat16(BASE))


def test_without_ml_dtypes_a_program_of_bfloat16_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(RuntimeFault, match="install ml_dtypes"):
        Binder([BF16], [])
