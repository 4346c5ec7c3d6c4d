"""Training: a step compiled as one program, and runs of many steps in one call."""

from chainrule.train.step import TrainingStep, training_step

__all__ = ["TrainingStep", "training_step"]
