"""Numbers of a training for TensorBoard."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from chainrule.errors import CompileError
from chainrule.train.callbacks.base import Array, Callback, Logs, path_of

_BINS = 30


class TensorBoard(Callback):
    """Write the numbers of each epoch, and with `histograms` the parameters', to a folder.

    Needs the extra `tensorboard`; `fit` raises CompileError without it.
    """

    def __init__(self, folder: str | os.PathLike[str] = "logs", histograms: bool = False) -> None:
        self.folder, self.histograms = path_of("folder", folder), histograms
        self._writer: Any = None

    def on_train_begin(self, logs: Logs) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise CompileError(
                "TensorBoard is not installed", "pip install 'chainrule[tensorboard]'"
            ) from None
        self._writer = EventFileWriter(self.folder)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=n, simple_value=v) for n, v in logs.items()]
        if self.histograms:
            arrays = self.model.step.parameters.items()
            values += [Summary.Value(tag=n, histo=_histogram(a)) for n, a in arrays]
        event = Event(wall_time=time.time(), step=epoch, summary=Summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _histogram(array: Array) -> Any:
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto

    numbers = array.astype(np.float64).ravel()
    counts, edges = np.histogram(numbers, _BINS)
    return HistogramProto(
        min=numbers.min(),
        max=numbers.max(),
        num=numbers.size,
        sum=numbers.sum(),
        sum_squares=(numbers**2).sum(),
        bucket_limit=edges[1:],
        bucket=counts.astype(np.float64),
    )
