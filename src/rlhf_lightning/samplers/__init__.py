"""Samplers: how responses are drawn from a policy."""

from rlhf_lightning.samplers._random import mix, uniforms
from rlhf_lightning.samplers.dynamic import DynamicSampler
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.samplers.remote import RemoteSampler
from rlhf_lightning.samplers.scripted import ScriptedSampler
from rlhf_lightning.samplers.vllm import VLLMSampler
from rlhf_lightning.samplers.wrappers import SamplerWrapper

__all__ = [
    "DynamicSampler",
    "InProcessSampler",
    "RemoteSampler",
    "SamplerWrapper",
    "ScriptedSampler",
    "VLLMSampler",
    "mix",
    "uniforms",
]
