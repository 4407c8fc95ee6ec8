"""Tasks: problems to train on, held-out problems that never meet them, and the verifier of answers."""

from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.data.tasks.files import FileTask, JsonlTask, ParquetTask
from rlhf_lightning.data.tasks.reasoning_gym import ReasoningGym

__all__ = ["ChainedArithmetic", "FileTask", "JsonlTask", "ParquetTask", "ReasoningGym"]
