"""Models: where they come from, how they are made ready, and the packed forward over them."""

from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.sources import EmbeddedArithmetic, Folder, Hub, SmolLM2
from rlhf_lightning.models.tiny import TinyLlama

__all__ = ["EmbeddedArithmetic", "Folder", "Hub", "LoRA", "SmolLM2", "TinyLlama"]
