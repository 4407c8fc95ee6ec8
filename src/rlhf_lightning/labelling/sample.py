"""``rlhf sample``: scored solutions to a task's prompts, the data that outcome reward models are trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.labelling.output import Output
from rlhf_lightning.labelling.progress import JobProgress
from rlhf_lightning.labelling.rollouts import Responder, answer_of, template_settings
from rlhf_lightning.protocols import ModelSource, Sampler, Scorer, Task
from rlhf_lightning.registry import filled
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.scorers.verifier import VerifierScorer
from rlhf_lightning.types import Prompt, Rollout, Scores

SPLITS = ("train", "held_out")


class SampleSolutions:
    """Draws several solutions a prompt, scores them, and appends them to a file, prompt by prompt.

    Subsets are nested: a solution's seed is a function of (seed, prompt, number of the sample) and the prompts are
    taken in an order that the seed gives, so that 5 solutions a prompt are the first 5 of 40, and 1/8 of the prompts
    the first 1/8 of all (up to rounding in matrix products whose shape differs). A job that was stopped goes on where
    it was; with more prompts it adds to the file.

    Args:
        policy: The model that answers: a source, a model folder, a run folder or a checkpoint.
        task: Where problems and verifiers come from; one, or several put together.
        out: The file, JSON lines: one solution a line, those of a prompt together.
        sampler: Draws the solutions; in process at temperature 1 when not given.
        verifier: Scores them; the tasks' own verifiers, each within 5 s, when not given.
        samples: Solutions a prompt.
        prompts: Number of prompts; all when neither this nor ``fraction`` is given.
        fraction: Or their share, as 0.125.
        split: Whether they are ``train`` or ``held_out`` prompts.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        chat_template_kwargs: What else the chat template is told, such as ``{enable_thinking: false}``.
        drop_long: Leave out prompts that are too long, instead of refusing them.
        prompts_per_batch: Prompts that are sampled and written together; at most so many are lost when it is stopped.
        label: What the policy is called in the file; its identity when not given.
        seed: Of the order of prompts and of all draws.

    Raises:
        ConfigError: If a value is out of range.
    """

    resumes = True
    config_defaults: ClassVar[dict[str, Any]] = {"sampler": InProcessSampler, "verifier": VerifierScorer}

    def __init__(
        self,
        policy: ModelSource,
        task: Task | list[Task],
        out: str,
        sampler: Sampler | None = None,
        verifier: Scorer | None = None,
        samples: int = 8,
        prompts: int | None = None,
        fraction: float | None = None,
        split: Literal["train", "held_out"] = "train",
        chat: bool = False,
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        drop_long: bool = False,
        prompts_per_batch: int = 32,
        label: str | None = None,
        seed: int = 1,
    ) -> None:
        for key, value in {"samples": samples, "prompts": prompts, "prompts_per_batch": prompts_per_batch}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ConfigError(f"fraction must be in (0, 1], got {fraction}")
        if prompts is not None and fraction is not None:
            raise ConfigError("give either prompts or fraction, not both (null leaves one out)")
        parts = filled(type(self), sampler=sampler, verifier=verifier)
        if samples > 1 and not parts["sampler"].params.temperature > 0:
            raise ConfigError(f"samples is {samples}, but at the sampler's temperature of 0 all of them are the same")
        self.responder = Responder(policy, label=label, **parts)
        self.data = PromptData(
            task, chat, system, drop_long=drop_long, seed=seed, chat_template_kwargs=chat_template_kwargs
        )
        self.out, self.samples, self.split, self.seed = out, samples, split, seed
        self.wanted, self.fraction, self.prompts_per_batch = prompts, fraction, prompts_per_batch

    def run(self) -> None:
        """Samples what is missing, and prints a summary."""
        tokenizer = self.responder.tokenizer()
        room = self.responder.sampler.params.max_new_tokens
        self.data.bind_tokenizer(tokenizer, context_length=self.responder.context, max_new_tokens=room)
        prompts = self._prompts()
        output = Output(self.out, self._settings())
        summary = _Summary(self.samples)
        done = self._done(output, prompts, summary)
        progress = JobProgress("prompts", len(prompts), done)
        if done < len(prompts):
            self.responder.start(tokenizer, self.data.tasks)
            with progress:
                for fresh in self._batches(prompts, done):
                    rows = self._sample(fresh)
                    output.add(rows)
                    summary.add(rows)
                    progress.advance(len(rows) // self.samples, len(rows))
        print(summary.text(progress, output))

    def _prompts(self) -> list[Prompt]:
        """The prompts asked for, in the seed's order."""
        held_out = self.data.held_out_prompts()
        size = self.data.usable if self.split == SPLITS[0] else len(held_out)
        count = size if self.fraction is None else math.ceil(size * self.fraction)
        count = count if self.wanted is None else self.wanted
        if count > size:
            raise ConfigError(f"prompts: {count} are asked for, but there are {size} {self.split} prompts")
        return self.data.train_prompts(0, count) if self.split == SPLITS[0] else held_out[:count]

    def _settings(self) -> dict[str, Any]:
        """What a line depends on; the number of prompts is not among it, as more may be added."""
        return {
            "job": "sample",
            **self.responder.settings(),
            "verifier": type(self.responder.verifier).__name__,
            "tasks": list(self.data.tasks),
            "split": self.split,
            "samples": self.samples,
            "chat": self.data.chat,
            "system": self.data.system,
            **template_settings(self.data.chat_template_kwargs),
            "seed": self.seed,
        }

    def _done(self, output: Output, prompts: Sequence[Prompt], summary: _Summary) -> int:
        """How many prompts are in the file already; the solutions of one that was cut off are taken away.

        Raises:
            RunFolderError: If they are not those that this job would have written.
        """
        written = output.open()
        done, cut = divmod(len(written), self.samples)
        if cut:
            output.keep(done * self.samples)
        for number, row in enumerate(written[: done * self.samples]):
            place, sample = divmod(number, self.samples)
            if place >= len(prompts):
                break
            expected = (prompts[place].task, prompts[place].problem.id, prompts[place].problem.question, sample)
            if (row.get("task"), row.get("id"), row.get("question"), row.get("sample")) != expected:
                raise RunFolderError(
                    f"{output.path}, line {number + 1}: is of another problem than this job's {expected[:2]}. "
                    "The task has changed since: write elsewhere: --out OTHER"
                )
        done = min(done, len(prompts))
        summary.add(written[: done * self.samples])
        return done

    def _batches(self, prompts: Sequence[Prompt], done: int) -> Iterator[tuple[Sequence[Prompt], int]]:
        """Batches with what is missing, and how many of their prompts are written already.

        They begin where they would have begun without a stop, and are sampled whole: their shape decides how matrix
        products are rounded.
        """
        size = self.prompts_per_batch
        for start in range(done // size * size, len(prompts), size):
            yield prompts[start : start + size], max(0, done - start)

    def _sample(self, batch: tuple[Sequence[Prompt], int]) -> list[dict[str, Any]]:
        prompts, skipped = batch
        seeds = sample_seeds(self.seed, SPLITS.index(self.split), prompts, self.samples)
        rollout = self.responder.sampler(prompts, samples_per_prompt=self.samples, seeds=seeds)
        scores = self.responder.verifier(rollout)
        return [self._row(rollout, scores, b) for b in range(skipped * self.samples, len(rollout.texts))]

    def _row(self, rollout: Rollout, scores: Scores, b: int) -> dict[str, Any]:
        prompt, text = rollout.prompt_of(b), rollout.texts[b]
        problem = prompt.problem
        return {
            "task": prompt.task,
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            **({"messages": list(problem.turns)} if problem.turns else {}),
            "sample": b % rollout.group_size,
            "response": text,
            "finished": bool(rollout.finished[b]),
            "length": int(rollout.lengths[b]),
            "correct": float(scores.values[b]),
            "failed": bool(scores.failed[b]),
            "answer_found": answer_of(self.data.tasks[prompt.task], problem, text),
            "policy": self.responder.name,
            "seed": self.seed,
        }


class _Summary:
    """How right the solutions are."""

    def __init__(self, samples: int) -> None:
        self.samples, self.scores, self.failed, self.cut = samples, [], 0, 0  # type: ignore[var-annotated]

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.scores += [float(row["correct"]) for row in rows]
        self.failed += sum(bool(row["failed"]) for row in rows)
        self.cut += sum(not row["finished"] for row in rows)

    def text(self, progress: JobProgress, output: Output) -> str:
        groups = [self.scores[at : at + self.samples] for at in range(0, len(self.scores), self.samples)]
        kinds = Counter("all" if min(g) >= 0.5 else "none" if max(g) < 0.5 else "some" for g in groups)
        rate = f", {progress.rate:.0f} solutions/s" if progress.rollouts else ", nothing was missing"
        return "\n".join(
            [
                f"{len(self.scores)} solutions to {len(groups)} prompts in {output.path}{rate}",
                f"right: {sum(self.scores) / len(self.scores):.1%} of the solutions; "
                + ", ".join(f"{kind} of a prompt's for {kinds[kind] / len(groups):.1%}" for kind in _KINDS),
                f"cut off: {self.cut}, not to be verified: {self.failed}",
                f"label their steps: rlhf label-steps --solutions {output.path} …",
            ]
        )


_KINDS = ("all", "some", "none")
