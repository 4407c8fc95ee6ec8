"""What modules share whose model generates: loading it, checking what can be checked before, and greedy evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.holdings import POLICY, HeldModel
from rlhf_lightning.models.context import context_length
from rlhf_lightning.models.export import rehearse
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import causal_lm, check_packable, packed_logprobs
from rlhf_lightning.models.prepare import load_to_train, skeleton, trainable, trained_dtype
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.evaluation import evaluate, greedy, sampled_metrics
from rlhf_lightning.protocols import ModelSource, Sampler, Scorer
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.samplers.wrappers import data_parallel as data_parallel_sampler
from rlhf_lightning.scorers import VerifierScorer
from rlhf_lightning.scorers.wrappers import data_parallel
from rlhf_lightning.types import PackedSequences, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.data.prompts import TaskData


class GeneratingModule(EpochModule):
    """A module around one causal LM that trains and is asked to generate.

    Args:
        policy: Where the model comes from.
        sampler: Generates with it.
        optimizer: Makes the optimizer from the parameter groups.
        warmup_updates: Linear warm-up; the learning rate is constant after it.
        max_grad_norm: Gradient norm limit a parameter group.
        lora: Low-rank adapters.
        gradient_checkpointing: Recompute activations in the backward pass.
        seed: Run seed.
        train_in_16_bits: Whether weights that train stay in a source's 16 bits.
        float32_logits: Whether the LM head multiplies in float32.
    """

    def __init__(
        self,
        policy: ModelSource,
        sampler: Sampler,
        optimizer: OptimizerCallable,
        warmup_updates: int,
        max_grad_norm: float | None,
        lora: LoRA | None,
        gradient_checkpointing: bool,
        seed: int,
        train_in_16_bits: bool = False,
        float32_logits: bool = False,
    ) -> None:
        super().__init__(optimizer, warmup_updates, max_grad_norm, seed)
        self.train_in_16_bits = train_in_16_bits
        self.policy_source, self.sampler = policy, sampler
        self.lora, self.gradient_checkpointing, self.float32_logits = lora, gradient_checkpointing, float32_logits
        self.verifier = VerifierScorer()
        self.policy: PreTrainedModel | None = None
        self._of_way = ""

    @property
    def data(self) -> TaskData:
        """The run's prompts."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def model(self) -> PreTrainedModel:
        """The policy, once it is loaded."""
        if self.policy is None:
            raise RuntimeError("the model is loaded by configure_model, which Lightning calls after setup")
        return self.policy

    def preflight(self, data: TaskData) -> None:
        """Checks all that can be checked without weights: prompts, tokenizer, architecture, what the sampler needs.

        Raises:
            RLHFError: Naming what cannot be.
        """
        context = self.context_length()
        bare = skeleton(self.policy_source.config())
        check_packable(bare)
        if self.lora is not None:
            self.lora.check(bare)
        self.tokenizer = self.policy_source.tokenizer()
        rehearse(self.tokenizer, self.policy_source.place)
        self.sampler.check(self.tokenizer, self.policy_source.config())
        data.bind_tokenizer(self.tokenizer, context_length=context, max_new_tokens=self.sampler.params.max_new_tokens)
        self._of_way = "\n".join(self._said_ways(data))

    def _said_ways(self, data: TaskData) -> Iterator[str]:
        """Which way each model's forward goes, those of one way in one line, and what it costs where they train."""
        holdings, roles = self.holdings(), defaultdict[str, list[str]](list)
        sources = {id(held.source): held.source for held in holdings.models}
        ways = {key: check_packable(skeleton(source.config())) for key, source in sources.items()}
        for held in holdings.models:
            way = ways[id(held.source)]
            costs = held.trained and not way.packed
            cost = way.cost(*self.typical_lengths(data), holdings.updates.samples) if costs else ""
            roles[f"{way}{cost}"].append(held.role)
        return (f"{', '.join(own)}: {said}" for said, own in roles.items())

    def describe(self) -> str:
        """Which way the models' forwards go, after the preflight."""
        return self._of_way

    def context_length(self) -> int:
        """Most tokens of prompt and response together."""
        return context_length(self.policy_source)

    def configure_model(self) -> None:
        """Loads the model and connects it."""
        if self.policy is not None:
            return
        self.load_trained()
        self.load_frozen()
        self.shard_models()
        self.sampler = data_parallel_sampler(self.sampler)
        self.sampler.bind(self.model, self.tokenizer)
        self.sampler.on_tokens = self.events.advance
        self.verifier.bind(self.data.tasks)

    def load_trained(self) -> None:
        """Loads the weights that train, as they are before the first update; a checkpoint's may be laid over them."""
        loaded = load_to_train(self.policy_source, lora=self.lora, sixteen_bits=self.train_in_16_bits)
        self.policy = trainable(
            loaded,
            lora=self.lora,
            gradient_checkpointing=self.gradient_checkpointing,
            float32_logits=self.float32_logits,
        )

    def load_frozen(self) -> None:
        """Loads what never trains, after :meth:`load_trained`; nothing by default."""

    def short_forwards(self) -> dict[str, tuple[torch.nn.Module, Callable[[PackedSequences], Tensor]]]:
        """The policy's log-probs."""
        return {"policy": (self.model, partial(packed_logprobs, self.model))}

    def models(self) -> dict[str, torch.nn.Module]:
        """The policy."""
        return {"policy": causal_lm(self.model)}

    def held_models(self) -> tuple[HeldModel, ...]:
        """The policy."""
        return (HeldModel(POLICY, self.policy_source, True, lora=self.lora, dtype=self._dtype_of(self.policy_source)),)

    def _dtype_of(self, source: ModelSource) -> str:
        return trained_dtype(source, lora=self.lora, sixteen_bits=self.train_in_16_bits)

    def to_rollout_mode(self) -> None:
        """Before sampling: evaluation mode, and a sampler that knows the weights of now."""
        self.model.eval()
        with self.sharding.gathered(self.model):
            self.sampler.sync(self.global_step)

    def parameter_groups(self) -> dict[str, Iterable[torch.nn.Parameter]]:
        """The policy's parameters."""
        return {"policy": self.model.parameters()}

    def identity(self) -> dict[str, Any]:
        """The model's source and the seed."""
        return {"policy": self.policy_source.identity(), "seed": self.seed}

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def measure(self, limit: int | None = None) -> dict[str, float]:
        """Greedy accuracy on held-out prompts."""
        return self.evaluate(self.data.held_out_prompts()[:limit])

    def evaluate(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Greedy accuracy of the model as it is now."""
        self.to_rollout_mode()
        with self.events.phase("evaluate"):
            metrics = evaluate(self.sampler, data_parallel(self.verifier), prompts, self._shared_proxy)
        self.sampler.release()
        return metrics

    @property
    def proxy(self) -> Scorer | None:
        """What the model is trained on in the verifier's place; None where the verifier is all there is."""
        return None

    @property
    def _shared_proxy(self) -> Scorer | None:
        return None if self.proxy is None else data_parallel(self.proxy)

    def measure_samples(
        self, limit: int | None = None, *, samples: int, best_of: Sequence[int], temperature: float
    ) -> dict[str, float]:
        """What ``samples`` samples a held-out prompt are worth; see :func:`~.evaluation.sampled_metrics`.

        The seeds are the same at each call, so that two measurements differ by the weights alone.
        """
        prompts = self.data.held_out_prompts()[:limit]
        seeds = sample_seeds(derive_seed("held-out samples", self.seed), 0, prompts, samples)
        params = replace(self.sampler.params, temperature=temperature)
        self.to_rollout_mode()
        with self.events.phase("evaluate"):
            rollout = self.sampler(prompts, samples_per_prompt=samples, seeds=seeds, params=params)
            metrics = sampled_metrics(rollout, data_parallel(self.verifier), self._shared_proxy, best_of=best_of)
        self.sampler.release()
        return metrics

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """Greedy accuracy on a batch of held-out prompts."""
        self.log_dict(self.evaluate(batch), batch_size=len(batch))

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, str]]:
        """Greedy responses to a batch of prompts."""
        self.to_rollout_mode()
        with self.events.phase("rollout"):
            rollout = greedy(self.sampler, batch)
        return [{"prompt": p.text, "response": text} for p, text in zip(batch, rollout.texts, strict=True)]
