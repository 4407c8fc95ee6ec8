"""A model that trains and is asked to generate: loading it, what can be checked before, and evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf_lightning.data.order import derive_seed
from rlhf_lightning.events import Events
from rlhf_lightning.functional import best_of_n
from rlhf_lightning.holdings import POLICY, HeldModel, Holdings
from rlhf_lightning.models.context import context_length
from rlhf_lightning.models.export import rehearse
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.models.packed import check_packable
from rlhf_lightning.models.prepare import load_to_train, skeleton, trainable, trained_dtype
from rlhf_lightning.pipeline import greedy
from rlhf_lightning.protocols import ModelSource, Sampler, Scorer
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.samplers.wrappers import data_parallel as data_parallel_sampler
from rlhf_lightning.scorers import MixtureScorer, VerifierScorer, combine
from rlhf_lightning.scorers.wrappers import data_parallel
from rlhf_lightning.statistics import of_rewards
from rlhf_lightning.strategies import Sharding
from rlhf_lightning.task_protocols import Task
from rlhf_lightning.types import Prompt, Rollout, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhf_lightning.data.prompts import TaskData


class Generator:
    """A causal LM that trains, its tokenizer, and the sampler that draws with it.

    Args:
        source: Where the model comes from.
        sampler: Draws responses.
        seed: Run seed.
        lora: Low-rank adapters.
        gradient_checkpointing: Recompute activations in the backward pass.
        sixteen_bits: Whether weights that train stay in a source's 16 bits.
        float32_logits: Whether the LM head multiplies in float32.

    Attributes:
        sampler: As given.
        drawing: The sampler with its work shared over ranks, once it is bound.
        tokenizer: After the preflight.
    """

    def __init__(
        self,
        source: ModelSource,
        sampler: Sampler,
        *,
        seed: int,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        sixteen_bits: bool = False,
        float32_logits: bool = False,
    ) -> None:
        self.source, self.sampler, self.seed = source, sampler, seed
        self.lora, self.gradient_checkpointing = lora, gradient_checkpointing
        self.sixteen_bits, self.float32_logits = sixteen_bits, float32_logits
        self.verifier = VerifierScorer()
        self.tokenizer: PreTrainedTokenizerBase | None = None

    # ---- before the first epoch -------------------------------------------------------------------------------------

    def preflight(self, data: TaskData, limit: int | None = None) -> None:
        """Checks all that can be checked without weights: prompts, tokenizer, architecture, what the sampler needs.

        Args:
            data: The run's prompts; they are tokenized here.
            limit: Most tokens of prompt and response together, where it is less than the model's.

        Raises:
            RLHFError: Naming what cannot be.
        """
        context = context_length(self.source)
        bare = skeleton(self.source.config())
        check_packable(bare)
        if self.lora is not None:
            self.lora.check(bare)
        self.tokenizer = self.source.tokenizer()
        rehearse(self.tokenizer, self.source.place)
        self.sampler.check(self.tokenizer, self.source.config())
        most = context if limit is None else min(context, limit)
        data.bind_tokenizer(self.tokenizer, context_length=most, max_new_tokens=self.sampler.params.max_new_tokens)

    def load(self) -> PreTrainedModel:
        """The model as it is before the first update; a checkpoint's weights may be laid over it."""
        loaded = load_to_train(self.source, lora=self.lora, sixteen_bits=self.sixteen_bits)
        settings = {"gradient_checkpointing": self.gradient_checkpointing, "float32_logits": self.float32_logits}
        return trainable(loaded, lora=self.lora, **settings)  # type: ignore[arg-type]

    def bind(self, model: PreTrainedModel, sharding: Sharding, events: Events, tasks: Mapping[str, Task]) -> None:
        """Connects the sampler with the model, and the verifier with the run's tasks.

        Args:
            model: On its ranks.
            sharding: Where its weights are.
            events: Told which phase is on, and of tokens that are drawn.
            tasks: By name.
        """
        self._sharding, self._events = sharding, events
        self.drawing = data_parallel_sampler(self.sampler)
        self.drawing.bind(model, self.tokenizer)  # type: ignore[arg-type]
        self.drawing.on_tokens = events.advance
        self.verifier.bind(tasks)

    def dtype_of(self, source: ModelSource) -> str:
        """Type of the weights of a model that trains like this one."""
        return trained_dtype(source, lora=self.lora, sixteen_bits=self.sixteen_bits)

    def held_models(self) -> tuple[HeldModel, ...]:
        """The model, for a plan."""
        return (HeldModel(POLICY, self.source, True, lora=self.lora, dtype=self.dtype_of(self.source)),)

    # ---- while it trains --------------------------------------------------------------------------------------------

    def begin(self, model: nn.Module, version: int) -> None:
        """Before sampling: evaluation mode, and a sampler that knows the weights of now.

        Args:
            model: The module's of now: a strategy may have wrapped the one that was bound (FSDP 1).
            version: Updates that its weights have seen.
        """
        model.eval()
        with self._sharding.gathered(model):
            self.drawing.sync(version)

    def evaluate(
        self, model: nn.Module, prompts: Sequence[Prompt], version: int, proxy: Scorer | None = None
    ) -> dict[str, float]:
        """Greedy accuracy of the model as it is now: the paper's policy evaluation (§4.1).

        Args:
            model: As of :meth:`begin`.
            prompts: Held out.
            version: Updates that the weights have seen.
            proxy: What the model is trained on in the verifier's place; it scores the same responses.
        """
        self.begin(model, version)
        with self._events.phase("evaluate"):
            rollout = greedy(self.drawing, prompts)
            metrics = accuracy_metrics(rollout, data_parallel(self.verifier)(rollout))
            if proxy is not None:
                measured = of_rewards("held_out/proxy", data_parallel(proxy)(rollout).values.float())
                metrics |= {"held_out/proxy": measured.pop("held_out/proxy_mean"), **measured}
        self.drawing.release()
        return metrics

    def evaluate_samples(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        version: int,
        proxy: Scorer | None = None,
        *,
        samples: int,
        best_of: Sequence[int],
        temperature: float,
    ) -> dict[str, float]:
        """What ``samples`` samples per held-out prompt are worth; see :func:`sampled_metrics`.

        The seeds are the same at each call, so that two measurements differ by the weights alone.
        """
        seeds = sample_seeds(derive_seed("held-out samples", self.seed), 0, prompts, samples)
        params = replace(self.sampler.params, temperature=temperature)
        self.begin(model, version)
        with self._events.phase("evaluate"):
            rollout = self.drawing(prompts, samples_per_prompt=samples, seeds=seeds, params=params)
            own = None if proxy is None else data_parallel(proxy)
            metrics = sampled_metrics(rollout, data_parallel(self.verifier), own, best_of=best_of)
        self.drawing.release()
        return metrics

    def respond(self, model: nn.Module, prompts: Sequence[Prompt], version: int) -> list[dict[str, str]]:
        """One greedy response per prompt, as plain values."""
        self.begin(model, version)
        with self._events.phase("rollout"):
            rollout = greedy(self.drawing, prompts)
        return [{"prompt": p.text, "response": text} for p, text in zip(prompts, rollout.texts, strict=True)]


def said_ways(holdings: Holdings, lengths: tuple[float, float]) -> str:
    """Which way each model's forward goes, those of one way in one line, and what it costs where they train.

    Args:
        holdings: The models.
        lengths: Mean tokens of a prompt and of a response.
    """
    roles = defaultdict[str, list[str]](list)
    sources = {id(held.source): held.source for held in holdings.models}
    ways = {key: check_packable(skeleton(source.config())) for key, source in sources.items()}
    for held in holdings.models:
        way = ways[id(held.source)]
        cost = way.cost(*lengths, holdings.updates.samples) if held.trained and not way.packed else ""
        roles[f"{way}{cost}"].append(held.role)
    return "\n".join(f"{', '.join(own)}: {said}" for said, own in roles.items())


def accuracy_metrics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """Mean verifier score, overall and per task, with length and the share cut off."""
    tasks = sorted({prompt.task for prompt in rollout.prompts})
    by_task = {
        f"held_out/accuracy/{task}": _mean_of(scores, [p.task == task for p in rollout.prompts])
        for task in tasks
        if len(tasks) > 1
    }
    return {
        "held_out/accuracy": float(scores.values.mean()),
        **by_task,
        "held_out/length_mean": float(rollout.drawn.float().mean()),
        "held_out/truncated": float((~rollout.finished).float().mean()),
    }


def proxy_of(scorer: MixtureScorer) -> Scorer | None:
    """The part of a run's score that is not the verifier's, weighted as in the run; None where there is none."""
    weighed = zip(scorer.scorers, scorer.weights, strict=True)
    others = [(part, weight) for part, weight in weighed if weight and not isinstance(part, VerifierScorer)]
    return combine(*zip(*others, strict=True)) if others else None


def sampled_metrics(
    rollout: Rollout, verifier: Scorer, proxy: Scorer | None, *, best_of: Sequence[int]
) -> dict[str, float]:
    """What several samples a prompt are worth, each N over all subsets of the samples (unbiased).

    Args:
        rollout: K samples a prompt.
        verifier: The truth.
        proxy: Chooses one of N; a sample it cannot score is never chosen over one it can.
        best_of: Sizes N, up to K.

    Returns:
        ``held_out/sampled_accuracy``, ``held_out/pass_at_<N>``, and with a proxy ``held_out/best_of_<N>``.
    """
    size = (len(rollout.prompts), rollout.group_size)
    correct = verifier(rollout).values.view(size)
    metrics = {"held_out/sampled_accuracy": float(correct.mean())}
    metrics |= {f"held_out/pass_at_{n}": float(best_of_n(correct, correct, n=n).mean()) for n in best_of}
    if proxy is None:
        return metrics
    said = proxy(rollout)
    chosen_by = said.values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    chosen_by = chosen_by.masked_fill(said.failed, -torch.inf).view(size)
    return {**metrics, **{f"held_out/best_of_{n}": float(best_of_n(chosen_by, correct, n=n).mean()) for n in best_of}}


def _mean_of(scores: Scores, chosen: list[bool]) -> float:
    return float(scores.values[torch.tensor(chosen)].mean())
