"""An exported kernel in Python: `load` and the functions of its C interface as methods."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Never

import numpy as np

from chainrule_runtime import artifact
from chainrule_runtime.divided import Division, parts_for
from chainrule_runtime.errors import ArtifactError, FeedError, NonFiniteError, RuntimeFault
from chainrule_runtime.feeds import Binder
from chainrule_runtime.manifest import Tensor, element_type, evaluate
from chainrule_runtime.memory import Array, Lock, address, aligned

_ROOM = 3
_FINITE = 12
#: codes that tell of a state or of bytes, not of what is fed
_STATES = range(5, 10)
#: functions that there is another of, which threads share
_DIVIDED = ("step", "steps", "predict", "loss")
_NUMBERS = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def load(path: str | os.PathLike[str], threads: int | None = 1) -> Kernel:
    """The kernel in a shared library that `step.export` wrote, `NAME.json` beside it.

    So many `threads` share a step, with the same bits; None is one for each CPU. It has to have
    been exported with `max_parts` of so many. The file is verified before it is mapped. Raises
    ArtifactError for one that is damaged, not of this kind, or for another machine.
    """
    library, about = artifact.read(path)
    parts = parts_for(threads, int(about.get("max_parts", 1)))
    return Kernel(artifact.mapped(os.fsdecode(path), library), about, parts)


class Kernel:
    """A training step that was compiled elsewhere: its state, and the memory it works in.

    Made by `load`. Calls from several threads wait for each other. Of an ensemble, tensors, losses,
    metrics, hyper-parameters and what it predicts have members along a first axis.
    """

    def __init__(self, library: ctypes.CDLL, own: dict[str, Any], parts: int = 1) -> None:
        self._division = Division(parts) if parts > 1 else None
        self._library, self.name = library, str(own["name"])
        self._lock = Lock()
        #: what the kernel tells of itself: sizes, tensors, functions, gradients
        self.about: dict[str, Any] = own
        self._strerror = self._function("strerror", ctypes.c_char_p)
        self._bytes = int(own["state_bytes"])
        self._state = aligned(self._bytes)
        self._workspace = aligned(0)
        self._functions = {
            name: _Function(name, data, own["sizes"]) for name, data in own["functions"].items()
        }
        self._tensors = {t["name"]: (i, t) for i, t in enumerate(own["tensors"])}
        self._epochs_native = own["rows"] is not None
        #: how many nets an ensemble has; None of one net
        self.members: int | None = own["members"]
        #: the metrics of the last step, by name
        self.metrics: dict[str, Any] = {}

    def _function(self, name: str, result: Any = ctypes.c_int32) -> Any:
        try:
            found = getattr(self._library, f"{self.name}_{name}")
        except AttributeError:
            raise ArtifactError(
                f"the library has no function {self.name}_{name}: its manifest tells of another"
            ) from None
        found.restype = result
        return found

    # training

    def init(self, seed: int = 0) -> None:
        """Begin: initial values drawn from a seed, an int from 0 to 2**64 - 1."""
        if not _is_whole(seed, 0) or int(seed) >= 2**64:
            raise FeedError(f"a seed is an int from 0 to 2**64 - 1, not {seed!r}")
        with self._lock.guard:
            self._call("init", *self._state_arguments(), ctypes.c_uint64(int(seed)))

    def step(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """One step on a minibatch; the loss before the update. Raises FeedError, NonFiniteError."""
        loss, *others = self._run("step", feeds, unnamed)
        names = [t.name for t in self._functions["step"].outputs[1:]]
        one = self.members is None
        self.metrics = {n: a.item() if one else a for n, a in zip(names, others, strict=True)}
        return self._told(loss)

    def _told(self, loss: Array) -> Any:
        """A loss as a float, -0 as 0; of an ensemble each member's."""
        return float(loss) + 0.0 if self.members is None else loss + 0.0

    def predict(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """What the model gives for inputs: an array, or where there are several, a dict of them."""
        if "predict" not in self._functions:
            raise RuntimeFault("this kernel predicts nothing", "training_step(..., outputs=z)")
        results = [self._members_first(a) for a in self._run("predict", feeds, unnamed)]
        outputs = self._functions["predict"].outputs
        if len(results) == 1:
            return results[0]
        return {t.name: a for t, a in zip(outputs, results, strict=True)}

    def loss(self, /, *unnamed: Never, **feeds: Any) -> Any:
        """The loss as in inference; nothing is changed."""
        return self._told(self._run("loss", feeds, unnamed)[0])

    def run(
        self, /, *, batch_size: int = 32, epochs: int = 1, shuffle: bool = True, **data: Any
    ) -> Array:
        """Whole epochs of minibatches, one native call each; the loss of each step, by member.

        Where a step fails, those before it are made. Raises FeedError and NonFiniteError.
        """
        function = self._functions["step"]
        if not self._epochs_native:
            raise RuntimeFault("this kernel's inputs have no rows to cut minibatches from")
        if not _is_whole(epochs, 0):
            raise FeedError(f"epochs is an int from 0 on, not {epochs!r}")
        arrays = function.binder.arrays(data)
        rows, sizes = self._cut(function, arrays, batch_size)
        order = np.zeros(2 * rows, np.uint64)
        steps = -(-rows // sizes[self.about["rows"]])
        kind = element_type(function.outputs[0].dtype)
        each = () if self.members is None else (self.members,)
        losses = np.zeros((epochs, steps, *each), kind)
        given = [ctypes.c_size_t(sizes[n]) for n in self.about["sizes"]]
        done = ctypes.c_size_t(0)
        with self._lock.guard:
            room = self._function("steps_workspace_bytes", ctypes.c_size_t)(*given)
            self._reserve(room)
            for epoch in range(epochs):
                if shuffle:
                    self._call(
                        "shuffle", *self._state_arguments(), ctypes.c_void_p(address(order)),
                        ctypes.c_size_t(order.size), ctypes.c_size_t(rows),
                    )  # fmt: skip
                self._call(
                    "steps", *self._state_arguments(), *self._workspace_arguments(),
                    ctypes.c_size_t(rows), *given,
                    ctypes.c_void_p(address(order) if shuffle else None),
                    *(ctypes.c_void_p(address(a)) for a in arrays),
                    ctypes.c_void_p(address(losses[epoch])), ctypes.byref(done),
                )  # fmt: skip
        return losses.reshape(-1, *each) + 0.0

    def _cut(
        self, function: _Function, arrays: Sequence[Array], batch_size: int
    ) -> tuple[int, dict[str, int]]:
        """The number of rows, and the sizes of a whole minibatch."""
        sliced, rows_name = self.about["sliced"], self.about["rows"]
        named = list(zip(function.binder.names, arrays, strict=True))
        counts = {len(a) for n, a in named if n in sliced and a.ndim}
        if len(counts) != 1 or 0 in counts:
            raise FeedError(f"{', '.join(sliced)} have one number of rows, not {sorted(counts)}")
        (rows,) = counts
        if not _is_whole(batch_size, 1):
            raise FeedError(f"batch_size is an int from 1 on, not {batch_size!r}")
        batch = min(rows, int(batch_size))
        shapes = [(batch, *a.shape[1:]) if n in sliced else a.shape for n, a in named]
        sizes = function.binder.sizes(shapes)
        function.check_sizes(sizes)
        return rows, {rows_name: batch, **sizes}

    def _run(self, name: str, feeds: Mapping[str, Any], unnamed: Sequence[object]) -> list[Array]:
        function = self._functions[name]
        if unnamed:
            taken = ", ".join(f"{n}=..." for n in function.binder.names)
            raise FeedError(
                f"{len(unnamed)} inputs are given without their names", f"it takes {taken}"
            )
        arrays = function.binder.arrays(feeds)
        sizes = function.binder.sizes([a.shape for a in arrays])
        function.check_sizes(sizes)
        given = [ctypes.c_size_t(sizes[n]) for n in function.sizes]
        outputs = [
            np.zeros(tuple(evaluate(d, sizes) for d in t.shape), element_type(t.dtype))
            for t in function.outputs
        ]
        with self._lock.guard:
            self._reserve(self._room(sizes))
            self._call(
                name, *self._state_arguments(), *self._workspace_arguments(), *given,
                *(ctypes.c_void_p(address(a)) for a in (*arrays, *outputs)),
            )  # fmt: skip
        return outputs

    def _room(self, sizes: Mapping[str, int]) -> int:
        """The workspace for sizes; those that a function has not are as small as can be."""
        given = [ctypes.c_size_t(sizes.get(n, 1)) for n in self.about["sizes"]]
        return int(self._function("workspace_bytes", ctypes.c_size_t)(*given))

    def _reserve(self, size: int) -> None:
        if self._workspace.nbytes < size:
            self._workspace = aligned(size)

    def _state_arguments(self) -> tuple[Any, ...]:
        return ctypes.c_void_p(address(self._state)), ctypes.c_size_t(self._bytes)

    def _workspace_arguments(self) -> tuple[Any, ...]:
        size = self._workspace.nbytes
        return ctypes.c_void_p(address(self._workspace)), ctypes.c_size_t(size)

    def _call(self, name: str, *arguments: Any) -> None:
        """One function, or the error that its code stands for."""
        if self._division is None or name not in _DIVIDED:
            code = self._function(name)(*arguments)
        else:
            code = self._division(self._function(f"{name}_parallel"), arguments)
        if not code:
            return
        said = self._strerror(ctypes.c_int32(code)).decode("utf-8")
        if code == _FINITE:
            raise NonFiniteError(said)
        if code in _STATES:
            raise ArtifactError(said)
        raise FeedError(said) if code > _ROOM else RuntimeFault(said)

    # what it knows

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of what the state holds: parameters, states, then the optimizer's own."""
        return tuple(self._tensors)

    @property
    def parameters(self) -> dict[str, Array]:
        """Copies of the parameters by name."""
        return {n: self.get(n) for n, (_, t) in self._tensors.items() if t["role"] == "parameter"}

    def get(self, name: str) -> Array:
        """A copy of a tensor of the state. Raises FeedError for a name that there is not."""
        index, tensor = self._tensor(name)
        array = np.zeros(tuple(tensor["shape"]), element_type(tensor["dtype"]))
        with self._lock.guard:
            self._call(
                "get", *self._state_arguments(), ctypes.c_int32(index),
                ctypes.c_void_p(address(array)), ctypes.c_size_t(array.nbytes),
            )  # fmt: skip
        return array if tensor["members"] is None else self._members_first(array)

    def _members_first(self, array: Array) -> Array:
        """What kernels have with members last, with members first."""
        return array if self.members is None else np.moveaxis(array, -1, 0)

    def set(self, name: str, value: Any) -> None:
        """Change a tensor of the state. Raises FeedError for what does not fit it."""
        index, tensor = self._tensor(name)
        shape, many = tuple(tensor["shape"]), tensor["members"] is not None
        seen = (*shape[-1:], *shape[:-1]) if many else shape
        binder = Binder([Tensor(name, tensor["dtype"], seen, 0)], ())
        arrays = binder.arrays({name: value})
        binder.sizes([a.shape for a in arrays])
        if many:
            arrays = [np.ascontiguousarray(np.moveaxis(a, 0, -1)) for a in arrays]
        with self._lock.guard:
            self._call(
                "set", *self._state_arguments(), ctypes.c_int32(index),
                ctypes.c_void_p(address(arrays[0])), ctypes.c_size_t(arrays[0].nbytes),
            )  # fmt: skip

    def _tensor(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in self._tensors:
            raise FeedError(f"no tensor is called {name!r}", f"there are {', '.join(self.tensors)}")
        found: tuple[int, dict[str, Any]] = self._tensors[name]
        return found

    @property
    def learning_rate(self) -> Any:
        """The learning rate, which may change between steps."""
        return self.number("learning_rate")

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.set_number("learning_rate", value)

    def number(self, name: str) -> Any:
        """A hyper-parameter of the optimizer; of an ensemble each member's."""
        number = self._number(name)
        kept = self.get(number["tensor"])
        # the shortest numbers that are these in their type: 0.001
        shown = [float(str(k)) for k in kept.reshape(-1)]
        values = [1.0 - value if number["complement"] else value for value in shown]
        return values[0] if self.members is None else np.array(values)

    def set_number(self, name: str, value: Any) -> None:
        """Change a hyper-parameter; of an ensemble to one number for all, or to as many as members.

        Raises FeedError for a number out of its range, when those of members before are changed.
        """
        number = self._number(name)
        kind = _NUMBERS[self._tensor(number["tensor"])[1]["dtype"]]
        count = 1 if self.members is None else self.members
        values = [value] * count if np.ndim(value) == 0 else list(value)
        if len(values) != count or (self.members is None and np.ndim(value)):
            raise FeedError(f"{name} is a number, or {count} of them, one a member")
        for one in values:
            if isinstance(one, bool) or not isinstance(one, int | float | np.number):
                raise FeedError(f"{name} is a number, not {one!r}")
        with self._lock.guard:
            for member, one in enumerate(values):
                whose = () if self.members is None else (ctypes.c_size_t(member),)
                given = kind(1.0 - one if number["complement"] else one)
                self._call(number["function"], *self._state_arguments(), *whose, given)

    def _number(self, name: str) -> dict[str, Any]:
        found = [n for n in self.about["numbers"] if n["name"] == name]
        if not found:
            known = ", ".join(n["name"] for n in self.about["numbers"])
            raise FeedError(f"no hyper-parameter is called {name!r}", f"there is {known}")
        number: dict[str, Any] = found[0]
        return number

    def selftest(self) -> None:
        """Raise RuntimeFault unless this machine computes what the compiler's did, bit for bit."""
        memory = aligned(int(self.about["selftest_bytes"]))
        place = ctypes.c_void_p(address(memory))
        self._call("selftest", place, ctypes.c_size_t(memory.nbytes))

    # keeping it

    def __reduce__(self) -> Never:
        """Refuse to be copied and pickled."""
        raise RuntimeFault("a kernel can't be copied or pickled", "save it, load another, and load")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, whole or not at all. Raises ArtifactError."""
        import tempfile

        with self._lock.guard:
            data = np.zeros(self._bytes, np.uint8)
            place = ctypes.c_void_p(address(data))
            self._call("save", *self._state_arguments(), place, ctypes.c_size_t(self._bytes))
        target = os.path.realpath(artifact.path_of(path))
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".state.")
            with os.fdopen(handle, "wb") as file:
                file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise ArtifactError(f"can't write {target}: {error.strerror or error}") from None
        finally:
            if temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save` or an export. Raises ArtifactError, changing nothing."""
        source = artifact.path_of(path)
        held = artifact.bytes_of(source, self._bytes, f"a state of this kernel: {self._bytes}")
        if len(held) != self._bytes:
            raise ArtifactError(
                f"{source} has {len(held)} bytes, a state of this kernel {self._bytes}"
            )
        data = aligned(len(held))
        data[:] = np.frombuffer(held, np.uint8)
        with self._lock.guard:
            place = ctypes.c_void_p(address(data))
            self._call("load", *self._state_arguments(), place, ctypes.c_size_t(data.size))


class _Function:
    """What a function of the interface takes and gives, as the kernel tells."""

    def __init__(self, name: str, data: Mapping[str, Any], most: Mapping[str, int]) -> None:
        self.name, self.sizes, self.most = name, list(data["sizes"]), most
        self.outputs = [_tensor(t) for t in data["outputs"]]
        rows = [{"terms": [[1, [s]]]} for s in self.sizes]
        self.binder = Binder(
            [_tensor(t) for t in data["inputs"]], self.sizes, [*data["nonempty"], *rows]
        )

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise FeedError for a size above what the kernel was exported for."""
        for name in self.sizes:
            if sizes[name] > self.most[name]:
                raise FeedError(
                    f"{name} is {sizes[name]}, this kernel takes {self.most[name]} at most",
                    f"export it with max_sizes={{{name!r}: {sizes[name]}}}",
                )


def _is_whole(value: object, least: int) -> bool:
    """Whether something is an int, NumPy's too, from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return int(value) >= least


def _tensor(data: Mapping[str, Any]) -> Tensor:
    return Tensor(data["name"], data["dtype"], tuple(data["shape"]), 0)
