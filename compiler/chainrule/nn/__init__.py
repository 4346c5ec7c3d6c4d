"""Losses, metrics, optimizers, schedules and regularizers, each a few lines of expressions."""
