"""Layers, losses, metrics, optimizers, schedules and regularizers: a few lines each."""

from chainrule.nn.layer import Layer
from chainrule.nn.layers.combine import Residual, Sequential
from chainrule.nn.layers.conv import (
    AvgPool,
    Conv1D,
    Conv2D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
)
from chainrule.nn.layers.dense import Dense, Dropout, Flatten
from chainrule.nn.layers.embedding import Embedding, LearnedPositions, SinusoidalPositions
from chainrule.nn.layers.norm import BatchNorm, LayerNorm, RMSNorm, tracked
from chainrule.nn.layers.recurrent import GRU, LSTM, RNN
from chainrule.nn.layers.transformer import MultiHeadAttention, TransformerBlock

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AvgPool",
    "BatchNorm",
    "Conv1D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Layer",
    "LayerNorm",
    "LearnedPositions",
    "MaxPool",
    "MultiHeadAttention",
    "RMSNorm",
    "Residual",
    "Sequential",
    "SinusoidalPositions",
    "TransformerBlock",
    "tracked",
]
