"""RLHF you can understand, change and scale, on PyTorch Lightning.

``import rlhf_lightning as rl`` imports next to nothing. Modules, data, tasks, scorers, samplers and models are imported
when they are first asked for (``rl.GRPOModule``), and so are the packages (``rl.advantages.Group``).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlhf_lightning._moved import serve as _serve_old_paths
from rlhf_lightning._version import __version__

if TYPE_CHECKING:
    from rlhf_lightning.callbacks import default_callbacks, default_loggers
    from rlhf_lightning.data.demonstrations import DemonstrationData
    from rlhf_lightning.data.prompts import PromptData
    from rlhf_lightning.data.reward_data import RewardData
    from rlhf_lightning.data.tasks import ChainedArithmetic, JsonlTask, ParquetTask, ReasoningGym
    from rlhf_lightning.models import EmbeddedArithmetic, Folder, Hub, LoRA, SmolLM2, TinyLlama
    from rlhf_lightning.modules import GRPOModule, PPOModule, RewardModel, SFTModule
    from rlhf_lightning.registry import register
    from rlhf_lightning.samplers import DynamicSampler, InProcessSampler, RemoteSampler, VLLMSampler
    from rlhf_lightning.scorers import FormatScorer, FunctionScorer, RewardModelScorer, VerifierScorer
    from rlhf_lightning.types import Demonstration, Problem

_serve_old_paths()

_PLACES = {
    "callbacks": ("default_callbacks", "default_loggers"),
    "data.demonstrations": ("DemonstrationData",),
    "data.prompts": ("PromptData",),
    "data.reward_data": ("RewardData",),
    "models": ("EmbeddedArithmetic", "Folder", "Hub", "LoRA", "SmolLM2", "TinyLlama"),
    "modules": ("GRPOModule", "PPOModule", "RewardModel", "SFTModule"),
    "registry": ("register",),
    "samplers": ("DynamicSampler", "InProcessSampler", "RemoteSampler", "VLLMSampler"),
    "scorers": ("FormatScorer", "FunctionScorer", "RewardModelScorer", "VerifierScorer"),
    "data.tasks": ("ChainedArithmetic", "JsonlTask", "ParquetTask", "ReasoningGym"),
    "types": ("Demonstration", "Problem"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}
_PACKAGES: tuple[str, ...] = ("advantages", "algorithms", "callbacks", "data", "functional", "kl", "losses", "metrics")
_PACKAGES += ("models", "modules", "samplers", "scorers", "strategies", "tasks", "testing", "transforms")

__all__ = [
    "ChainedArithmetic",
    "Demonstration",
    "DemonstrationData",
    "DynamicSampler",
    "EmbeddedArithmetic",
    "Folder",
    "FormatScorer",
    "FunctionScorer",
    "GRPOModule",
    "Hub",
    "InProcessSampler",
    "JsonlTask",
    "LoRA",
    "PPOModule",
    "ParquetTask",
    "Problem",
    "PromptData",
    "ReasoningGym",
    "RemoteSampler",
    "RewardData",
    "RewardModel",
    "RewardModelScorer",
    "SFTModule",
    "SmolLM2",
    "TinyLlama",
    "VLLMSampler",
    "VerifierScorer",
    "__version__",
    "default_callbacks",
    "default_loggers",
    "register",
]


def __getattr__(name: str) -> Any:
    """Imports a name's module when it is asked for: ``rlhf`` has something to do before torch is imported."""
    if name in _PLACE_OF:
        return getattr(import_module(f"{__name__}.{_PLACE_OF[name]}"), name)
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    import difflib

    near = difflib.get_close_matches(name, [*_PLACE_OF, *_PACKAGES], n=1)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}" + (f". Did you mean {near[0]!r}?" if near else "")
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
