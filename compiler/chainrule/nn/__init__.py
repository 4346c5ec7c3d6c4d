"""Losses, initialisers and optimizers, each a few lines of expressions."""
