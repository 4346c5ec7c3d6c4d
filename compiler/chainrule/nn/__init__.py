"""Layers, losses and optimizers, each a few lines of expressions."""

from chainrule.nn.layer import Layer
from chainrule.nn.layers.combine import Residual, Sequential
from chainrule.nn.layers.dense import Dense, Dropout, Flatten
from chainrule.nn.layers.norm import BatchNorm, LayerNorm, RMSNorm, tracked

__all__ = [
    "BatchNorm",
    "Dense",
    "Dropout",
    "Flatten",
    "Layer",
    "LayerNorm",
    "RMSNorm",
    "Residual",
    "Sequential",
    "tracked",
]
