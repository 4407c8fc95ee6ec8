"""Generation by vLLM in the training process: one engine that lives as long as the run and gets weights in place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rlhf_lightning import ranks
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.models.context import longest_sequence
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.registry import check_choice, register
from rlhf_lightning.samplers import _vllm_engine as vllm_engine
from rlhf_lightning.samplers._canary import ask_canary, check_tolerance, compare_canary, tolerance_for
from rlhf_lightning.samplers._endings import eos_token_ids
from rlhf_lightning.samplers._rows import rollout_of
from rlhf_lightning.samplers._settings import dtype_of, sampling_params
from rlhf_lightning.samplers._vllm_policy import adapter_rank, plain_config, vocabulary_in, with_class_name
from rlhf_lightning.samplers._vocabulary import check_same, vocabulary_of
from rlhf_lightning.samplers._weights import buckets, effective_weights
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FILE_BYTES = 2 << 30
"""Size of the safetensors files through which weights go to workers of other processes."""

GPU_SHARE = 0.92
"""What vLLM takes of a GPU unless told otherwise (vLLM 0.32, ``CacheConfig.gpu_memory_utilization``)."""

SEQUENCES = 256
"""Sequences that it decodes at once unless told otherwise (vLLM 0.32, ``arg_utils``; 1024 on an H100)."""


@register("sampler", "vllm")
class VLLMSampler(Sampler):
    """vLLM in this process; each :meth:`sync` loads the policy's weights in place, without a restart.

    Weights go through memory, one tensor at a time, adapters merged; with ``tensor_parallel_size`` above 1 through
    safetensors files. After each sync a canary compares the engine's log-probs with the trainer's own forward: an
    engine that kept an old weight ends the run. Its log-probs are of the distribution drawn from, and differ from the
    trainer's by rounding, so the trainer computes its own; the mismatch is logged (``kl/sampler_*``, ``importance/*``)
    and the policy loss ``importance`` corrects for it.

    A sequence's draws depend on its seed, but vLLM's matrix products depend on the batch beside it, so that a token may
    turn out otherwise in another batch.

    Args:
        max_new_tokens: Longest response, in tokens, the end-of-sequence token included.
        temperature: Divides the logits; 0 is greedy decoding; else at least 0.01.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches this, after top-k; 1 keeps all.
        stop: Texts that end a response when they appear in it; they stay in the response.
        dtype: Type of the engine's weights, such as ``bfloat16``; None takes the model's own.
        lora: How a policy with adapters is handed over: ``merged``, as whole weights; or ``adapters``, the base once
            and then the adapters alone, which is less to move and slower to multiply with. ``auto`` merges in float32
            alone: weights of 16 bits round small adapters away.
        max_model_len: Longest prompt with its response, in tokens; None takes the model's own limit.
        kv_cache_gb: Memory for keys and values in GB (1e9 bytes); None leaves it to vLLM, on CPU 1.07 GB.
        eager: Run without compiled graphs: starts faster, and on GPU decodes slower.
        sleep: On GPU, give the engine's memory to training between rollouts.
        model: Folder of the engine's own configuration and tokenizer, where they are not the policy's.
        canary_tolerance: Mean difference of log-probs to bear after a sync, nats a token; None: by type, 0.001 for
            float32, 0.125 for bfloat16.
        engine: Any further arguments of ``vllm.LLM`` (``tensor_parallel_size``, ``gpu_memory_utilization``, …).
        keep_special_tokens: Whether texts have the special tokens that the policy wrote, such as ``<think>``, for stop
            texts and scorers to see; what ends a response, and padding, is always left out.

    Raises:
        ConfigError: If an argument is out of range.
    """

    owns_weights = True

    def __init__(
        self,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: list[str] | None = None,
        dtype: str | None = None,
        lora: Literal["auto", "merged", "adapters"] = "auto",
        max_model_len: int | None = None,
        kv_cache_gb: float | None = None,
        eager: bool = False,
        sleep: bool = True,
        model: str | None = None,
        canary_tolerance: float | None = None,
        engine: dict[str, Any] | None = None,
        keep_special_tokens: bool = True,
    ) -> None:
        self.params = sampling_params("vllm", max_new_tokens, temperature, top_k, top_p, stop, keep_special_tokens)
        _check_temperature(self.params, ConfigError)
        check_choice(lora, ("auto", "merged", "adapters"), "sampler vllm: lora")
        check_tolerance("vllm", canary_tolerance)
        for name, value in {"max_model_len": max_model_len, "kv_cache_gb": kv_cache_gb}.items():
            if value is not None and not value > 0:
                raise ConfigError(f"sampler vllm: {name} must be above 0, got {value}")
        self.dtype, self.lora, self.adapters = dtype_of(dtype, "vllm"), lora, lora == "adapters"
        self.max_model_len = max_model_len
        self.kv_cache_gb, self.eager, self.sleep, self.folder = kv_cache_gb, eager, sleep, model
        self.canary_tolerance, self.more = canary_tolerance, dict(engine or {})
        self.difference = 0.0
        self._engine: vllm_engine.VLLMEngine | None = None
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._version: int | None = None
        self._syncs, self._has_base = 0, False

    @property
    def exact(self) -> bool:
        """Never: another engine rounds otherwise."""
        return False

    def decoding(self) -> Decoding:
        """The engine's share of a GPU, given back in sleep; on CPU and with ``kv_cache_gb`` its weights and cache."""
        told = None if self.kv_cache_gb is None else int(self.kv_cache_gb * 1e9)
        return Decoding(
            self.params.max_new_tokens,
            int(self.more.get("max_num_seqs", SEQUENCES)),
            None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            reserved=0.0 if told else float(self.more.get("gpu_memory_utilization", GPU_SHARE)),
            cache=told or vllm_engine.CPU_CACHE_BYTES,
            sleeps=self.sleep,
        )

    def check(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
        """Looks for vLLM, for heads that it can compute, and for a vocabulary that is the policy's.

        Raises:
            ConfigError: Naming what is missing or differs.
        """
        vllm_engine.check_installed()
        text = config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        vllm_engine.check_head_size(int(head))
        if self.folder is not None:
            check_same(vocabulary_of(tokenizer, config), vocabulary_in(self.folder), f"sampler vllm: {self.folder}")

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the live policy; the engine starts at the first :meth:`sync`.

        Raises:
            ConfigError: If this process is one of several that train.
        """
        if ranks.world_size() > 1:
            raise ConfigError(
                "sampler vllm: in process it serves runs of one process; with several, serve the policy with "
                "rlhf serve-policy and use the sampler remote"
            )
        self._model, self._tokenizer, self._version, self._has_base = model, tokenizer, None, False
        if self.lora == "auto":
            self.adapters = hasattr(model, "peft_config") and (self.dtype or model.dtype).itemsize < 4

    def sync(self, weights_version: int) -> None:
        """Hands over the policy's weights as they are now, and checks that the engine computes with them.

        Raises:
            RuntimeError: If there is no policy yet.
            SyncError: If the engine's log-probs are not the trainer's.
        """
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("sampler vllm: bind(model, tokenizer) must come before sync")
        self._version = None
        engine = self._started(self._model, self._tokenizer)
        engine.wake()
        self._hand_over(engine, self._model)
        self._version = weights_version
        coarsest = tolerance_for(self._model.dtype, self.dtype or self._model.dtype)
        tolerance = coarsest if self.canary_tolerance is None else self.canary_tolerance
        tokens = min(len(self._tokenizer), engine.vocab_size)
        try:
            asked = ask_canary(self, tokens)
            self.difference = compare_canary(asked, self._model, tolerance=tolerance, where="sampler vllm")
        except BaseException:
            self._version = None
            raise

    def release(self) -> None:
        """On GPU, puts the engine to sleep until the next :meth:`sync`."""
        self._version = None
        if self._engine is not None:
            self._engine.sleep()

    def close(self) -> None:
        """Ends the engine, for another one in this process."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._version = None, None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        *,
        samples_per_prompt: int,
        seeds: Tensor,
        params: SamplingParams | None = None,
    ) -> Rollout:
        """Draws ``samples_per_prompt`` responses a prompt.

        Args:
            prompts: P prompts; none may be empty.
            samples_per_prompt: G.
            seeds: (P·G,) int64.
            params: Overrides the sampler's own.

        Returns:
            The rollout, on the model's device, with the version of the last :meth:`sync`.

        Raises:
            RuntimeError: If the weights were never synced, or were released.
            ValueError: If the number of seeds is not P·G, a prompt is empty, or the temperature is between 0 and 0.01.
        """
        if self._engine is None or self._version is None:
            raise RuntimeError("sampler vllm: bind(model, tokenizer) and sync(version) must come before sampling")
        assert self._model is not None and self._tokenizer is not None
        params = params or self.params
        _check_temperature(params, ValueError)
        requests = _requests(prompts, samples_per_prompt, seeds)
        eos = eos_token_ids(self._model, self._tokenizer)
        rows = self._engine.generate(requests, params, eos=eos, on_tokens=self.on_tokens)
        return rollout_of(prompts, rows, params, self._tokenizer, eos, self._version, self._model.device)

    def _started(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> vllm_engine.VLLMEngine:
        if self._engine is not None:
            return self._engine
        vllm_engine.check_installed()
        with tempfile.TemporaryDirectory(prefix="rlhf-vllm-") as own:
            folder = Path(self.folder or own)
            if self.folder is None:
                with_class_name(model).save_pretrained(own)
                tokenizer.save_pretrained(own)
            engine = vllm_engine.VLLMEngine(folder, self._settings(model))
        rows = int(plain_config(model).get_text_config().vocab_size)
        if engine.vocab_size != rows:
            raise ConfigError(f"sampler vllm: the engine gives {engine.vocab_size} logits, the policy {rows}")
        self._engine = engine
        return engine

    def _settings(self, model: PreTrainedModel) -> vllm_engine.EngineSettings:
        config = plain_config(model).get_text_config()
        return vllm_engine.EngineSettings(
            dtype=str(self.dtype or model.dtype).removeprefix("torch."),
            max_model_len=self.max_model_len or longest_sequence(config),
            kv_cache_bytes=None if self.kv_cache_gb is None else int(self.kv_cache_gb * 1e9),
            lora_rank=adapter_rank(model) if self.adapters else 0,
            sleep=self.sleep,
            eager=self.eager,
            more=self.more,
        )

    def _hand_over(self, engine: vllm_engine.VLLMEngine, model: PreTrainedModel) -> None:
        if not (self.adapters and self._has_base):
            self._hand_over_weights(engine, model)
            self._has_base = True
        if self.adapters:
            self._syncs += 1
            with tempfile.TemporaryDirectory(prefix="rlhf-lora-") as folder:
                model.save_pretrained(folder, save_embedding_layers=False)
                engine.load_adapters(Path(folder), self._syncs)

    def _hand_over_weights(self, engine: vllm_engine.VLLMEngine, model: PreTrainedModel) -> None:
        weights = effective_weights(model, adapters=not self.adapters)
        with torch.no_grad():
            if engine.in_memory:
                engine.load(weights)
                return
            from safetensors.torch import save_file

            with tempfile.TemporaryDirectory(prefix="rlhf-weights-") as folder:
                for number, bundle in enumerate(buckets(weights, FILE_BYTES)):
                    save_file(bundle, Path(folder) / f"model-{number:05}.safetensors")
                engine.load_folder(Path(folder))


def _requests(prompts: Sequence[Prompt], samples_per_prompt: int, seeds: Tensor) -> list[vllm_engine.Request]:
    if seeds.shape != (len(prompts) * samples_per_prompt,):
        raise ValueError(f"{len(prompts)}·{samples_per_prompt} seeds expected, got shape {tuple(seeds.shape)}")
    empty = [number for number, prompt in enumerate(prompts) if not prompt.tokens]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens")
    owners = [prompt.tokens for prompt in prompts for _ in range(samples_per_prompt)]
    return [vllm_engine.Request(prompt, seed) for prompt, seed in zip(owners, seeds.tolist(), strict=True)]


def _check_temperature(params: SamplingParams, error: type[Exception]) -> None:
    if 0 < params.temperature < vllm_engine.COLDEST:
        raise error(
            f"sampler vllm: temperature {params.temperature} is below {vllm_engine.COLDEST}, which vLLM would draw at "
            "instead: take 0 for greedy decoding"
        )
