"""What is minimised."""

from glmtune.objectives.sft import Batch, Objective, Sft

__all__ = ["Batch", "Objective", "Sft"]
