"""Layers, losses and optimizers, each a few lines of expressions."""

from chainrule.nn.layer import Layer
from chainrule.nn.layers.combine import Residual, Sequential
from chainrule.nn.layers.dense import Dense, Dropout, Flatten

__all__ = ["Dense", "Dropout", "Flatten", "Layer", "Residual", "Sequential"]
