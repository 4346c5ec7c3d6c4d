"""What `chainrule demo --save DIR` leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from chainrule.errors import ArtifactError
from chainrule.records import dataclass
from chainrule.train.step import TrainingStep

CHECKPOINT, CURVE, REPORT = "digits.safetensors", "loss.png", "report.txt"


@dataclass(frozen=True)
class Files:
    """A folder that can be written to."""

    folder: Path

    @classmethod
    def into(cls, folder: Path) -> Files:
        """The folder, made if need be. Raises ArtifactError, before anything is trained."""
        if find_spec("matplotlib") is None:
            raise ArtifactError(
                "the loss curve needs matplotlib, which is not installed",
                "pip install matplotlib",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ArtifactError(f"{folder} can't be written to: {error.strerror}") from None
        return cls(folder)

    def write(self, step: TrainingStep, losses: Sequence[float], report: str) -> tuple[str, ...]:
        """Write checkpoint, loss curve and report; their names. Raises ArtifactError."""
        try:
            step.save(self.folder / CHECKPOINT)
            plot(losses, self.folder / CURVE)
            (self.folder / REPORT).write_text(report, encoding="utf-8")
        except ArtifactError:
            raise
        except OSError as error:
            raise ArtifactError(f"{self.folder} can't be written to: {error}") from None
        return CHECKPOINT, CURVE, REPORT


def plot(losses: Sequence[float], path: Path) -> None:
    """The mean loss of each epoch as a curve, without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(range(1, len(losses) + 1), losses)
    axes.set(xlabel="epoch", ylabel="mean loss", title="handwritten digits, 64-128-64-10")
    figure.savefig(path, dpi=150)
