"""Generation in the training process: no second copy of the program, no server, no waiting for weights.

Each distinct prompt is read once and its keys and values serve all its samples; finished sequences leave the batch;
and a sequence's random draws depend on its seed and the token's position alone, so neither batch mates nor the number
of processes change it (beyond the rounding of matrix products, which may depend on the batch's shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import Decoding
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.registry import register
from rlhf_lightning.samplers._endings import Endings, eos_token_ids
from rlhf_lightning.samplers._loop import Drawn, generate
from rlhf_lightning.samplers._rollout import chunks, distinct, to_rollout
from rlhf_lightning.samplers._settings import dtype_of, sampling_params
from rlhf_lightning.samplers.decoders import choose_decoder
from rlhf_lightning.samplers.decoders._whole import ordinary_copy
from rlhf_lightning.types import Prompt, Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_lightning.protocols import Decoder


@register("sampler", "in_process")
class InProcessSampler(Sampler):
    """Our own generation loop on any transformers causal language model.

    Args:
        max_new_tokens: Longest response, in tokens, the end-of-sequence token included.
        temperature: Divides the logits; 0 is greedy decoding.
        top_k: Keep the k most likely tokens; 0 keeps all. Ties with the last one kept stay.
        top_p: Keep the smallest set of tokens whose probability reaches this, after top-k; 1 keeps all. Ties stay.
        stop: Texts that end a response when they appear in it; they stay in the response.
        batch_size: Most sequences decoded at once, which bounds the memory of keys and values. A prompt is read once
            for all its samples that are decoded together.
        dtype: Type of the weights used for decoding, such as ``bfloat16``; None takes the model's own. With another
            type than the trainer's, the log-probs are not exactly the trainer's.
        decoder: Name of a decoder plug-in, or ``auto``: the one of the model's architecture if there is one that
            supports all its features, else ``hf``.
        keep_special_tokens: Whether texts have the special tokens that the policy wrote, such as ``<think>``, for stop
            texts and scorers to see; what ends a response, and padding, is always left out.

    Attributes:
        params: The first five arguments.
        on_tokens: Called every few steps with the number of new tokens, if set.

    Raises:
        ConfigError: If an argument is out of range.
    """

    def __init__(
        self,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: list[str] | None = None,
        batch_size: int = 256,
        dtype: str | None = None,
        decoder: str = "auto",
        keep_special_tokens: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"sampler in_process: batch_size must be at least 1, got {batch_size}")
        self.params = sampling_params(
            "in_process", max_new_tokens, temperature, top_k, top_p, stop, keep_special_tokens
        )
        self.batch_size, self.dtype, self.decoder = batch_size, dtype_of(dtype), decoder
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._decoder: Decoder | None = None
        self._version: int | None = None
        self._holds = False

    @property
    def exact(self) -> bool:
        """Whether the log-probs are the trainer's own up to rounding: whole support, and the model's own type.

        And that has more than 16 bits, as far as is known (after ``bind``): a response alone has other log-probs there
        than in a packed row.
        """
        wide = self._model is None or torch.finfo(self._model.dtype).bits > 16
        return self.params.full_support and self.dtype is None and wide

    def decoding(self) -> Decoding:
        """The decoder's copy of the weights, and keys and values of a batch."""
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return Decoding(self.params.max_new_tokens, self.batch_size, dtype, self.decoder)

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the live policy; its weights are read at the next :meth:`sync`.

        Raises:
            ConfigError: If the decoder asked for does not exist or does not support the model.
        """
        self._model, self._tokenizer = model, tokenizer
        self._decoder, self._version = choose_decoder(self.decoder, model), None

    def hold_weights(self) -> None:
        """From now on a decoder that reads the live model is given a copy of it at each :meth:`sync`."""
        self._holds = True

    @torch.inference_mode()
    def sync(self, weights_version: int) -> None:
        """Takes the policy's weights as they are now.

        Raises:
            RuntimeError: If there is no policy yet.
        """
        if self._model is None or self._decoder is None:
            raise RuntimeError("sampler in_process: bind(model, tokenizer) must come before sync")
        self._decoder.load(self._model, self.dtype)
        if self._holds and self._decoder.reads_live:
            self._decoder.load(ordinary_copy(self._model), self.dtype)
        self._version = weights_version

    def release(self) -> None:
        """Frees the decoder's copy of the weights for training; the next :meth:`sync` copies them anew."""
        if self._decoder is not None:
            self._decoder, self._version = type(self._decoder)(), None

    @torch.no_grad()
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
            seeds: (P·G,) int64; a sequence's draws are a function of its seed alone.
            params: Overrides the sampler's own.

        Returns:
            The rollout, on the model's device, with the version of the last :meth:`sync`.

        Raises:
            RuntimeError: If the weights were never synced.
            ValueError: If the number of seeds is not P·G or a prompt is empty.
        """
        if self._model is None or self._tokenizer is None or self._version is None:
            raise RuntimeError("sampler in_process: bind(model, tokenizer) and sync(version) must come before sampling")
        if seeds.shape != (len(prompts) * samples_per_prompt,):
            raise ValueError(f"{len(prompts)}·{samples_per_prompt} seeds expected, got shape {tuple(seeds.shape)}")
        params = params or self.params
        eos, special = eos_token_ids(self._model, self._tokenizer), params.keep_special_tokens
        endings = Endings(eos, params.stop, self._tokenizer, self._model.device, special=special)
        texts, owner = distinct(prompts, samples_per_prompt)
        drawn = [
            self._draw(texts, owner[rows], seeds[rows], params, endings)
            for rows in chunks(len(owner), samples_per_prompt, self.batch_size)
        ]
        return to_rollout(prompts, drawn, params, self._tokenizer, eos, self._version)

    @torch.inference_mode()
    def _draw(
        self,
        texts: Sequence[tuple[int, ...]],
        owner: Tensor,
        seeds: Tensor,
        params: SamplingParams,
        endings: Endings,
    ) -> Drawn:
        assert self._decoder is not None
        used, local = torch.unique(owner, return_inverse=True)
        session = self._decoder.start([texts[index] for index in used.tolist()], local, params.max_new_tokens)
        return generate(session, seeds=seeds, params=params, endings=endings, on_tokens=self.on_tokens)
