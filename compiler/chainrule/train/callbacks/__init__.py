"""Callbacks: what happens between the epochs, or between the steps, of `fit`.

A callback is a class with those of Keras' methods that it needs; `self.model` is the model.

    class Print(cr.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            print(epoch, logs["loss"])

Epochs that nobody looks at run together in one native call, so a method that is not there costs
nothing.
"""

from chainrule.train.callbacks.base import Callback
from chainrule.train.callbacks.logs import CSVLog, JSONLog
from chainrule.train.callbacks.saving import Checkpoint
from chainrule.train.callbacks.tensorboard import TensorBoard
from chainrule.train.callbacks.watching import EarlyStopping, LRSchedule, ReduceLROnPlateau

__all__ = [
    "CSVLog",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "JSONLog",
    "LRSchedule",
    "ReduceLROnPlateau",
    "TensorBoard",
]
