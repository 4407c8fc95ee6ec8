"""``rlhf label-steps``: process labels from completions drawn after every prefix of a solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from rlhf_lightning.data.judged import step_starts
from rlhf_lightning.data.prompts import as_list
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.errors import ConfigError, DataError, RunFolderError
from rlhf_lightning.labelling.completions import Completions
from rlhf_lightning.labelling.output import Output
from rlhf_lightning.labelling.prefixes import Steps, cut_into_steps
from rlhf_lightning.labelling.progress import JobProgress
from rlhf_lightning.labelling.rollouts import Responder, template_settings
from rlhf_lightning.labelling.solutions import Solution, by_question, demonstrated, read_solutions
from rlhf_lightning.labelling.step_methods import METHODS, Count
from rlhf_lightning.labelling.summary import LabelSummary
from rlhf_lightning.protocols import ModelSource, Sampler, Scorer, Task
from rlhf_lightning.registry import filled
from rlhf_lightning.samplers.in_process import InProcessSampler
from rlhf_lightning.scorers.verifier import VerifierScorer

_IDENTITY = ("task", "id", "sample", "response")


class LabelSteps:
    """Labels each step of each solution by what a policy makes of it, and appends the solutions to a file as they come.

    After each prefix (a solution's first i steps) the policy completes the solution N times, and the verifier judges:

    - ``hard``: a step is right if any completion is (Math-Shepherd, Eq. 3); ``soft``: its label is their share (Eq. 4).
    - ``binary_search``: the first wrong step of each wrong solution is searched (OmegaPRM), which asks about few
      prefixes of long solutions; steps before it count as right, those from it on as wrong.

    The last step's label is the verdict on the whole solution. Prefixes that solutions of a problem share are completed
    once; all prefixes of some problems are completed together, each read once for its N completions. A job that was
    stopped goes on where it was, and completes nothing twice.

    Args:
        policy: The model that completes: a source, a model folder, a run folder or a checkpoint.
        task: The tasks of the solutions, with the arguments that those were sampled with.
        out: The file, JSON lines: the solution's own line, with ``steps``, ``method`` and ``completer``. A step is
            ``{end, text, label, rollouts, successes}``: ``end`` counts the characters up to its end, ``label`` is the
            probability that it is right (null when unknown), and the rest is what came of its prefix's completions
            (0 rollouts where the label follows from others).
        solutions: File that ``rlhf sample`` wrote.
        demonstrations: Or the number of demonstrations to take from each task.
        sampler: Draws the completions; in process at temperature 1 when not given.
        verifier: Judges them; the tasks' own verifiers, each within 5 s, when not given. A score of at least 0.5 is
            right. A completion whose verifier fails does not count.
        method: ``hard``, ``soft`` or ``binary_search``.
        rollouts: N, completions a prefix.
        delimiter: What stands between two steps.
        chat: Whether prompts go through the tokenizer's chat template.
        system: The system's turn of chats that begin with none of their own.
        chat_template_kwargs: What else the chat template is told, such as ``{enable_thinking: false}``.
        questions_per_batch: Problems that are completed and written together; at most so many are lost when stopped.
        label: What the policy is called in the file; its identity when not given.
        seed: Of all draws.

    Raises:
        ConfigError: If a value is out of range, or not exactly one of ``solutions`` and ``demonstrations`` is given.
    """

    resumes = True
    config_defaults: ClassVar[dict[str, Any]] = {"sampler": InProcessSampler, "verifier": VerifierScorer}

    def __init__(
        self,
        policy: ModelSource,
        task: Task | list[Task],
        out: str,
        solutions: str | None = None,
        demonstrations: int | None = None,
        sampler: Sampler | None = None,
        verifier: Scorer | None = None,
        method: Literal["hard", "soft", "binary_search"] = "hard",
        rollouts: int = 8,
        delimiter: str = "\n",
        chat: bool = False,
        system: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        questions_per_batch: int = 16,
        label: str | None = None,
        seed: int = 1,
    ) -> None:
        counts = {"rollouts": rollouts, "demonstrations": demonstrations, "questions_per_batch": questions_per_batch}
        for key, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        if (solutions is None) == (demonstrations is None):
            raise ConfigError("give exactly one of solutions (a file of rlhf sample) and demonstrations (their number)")
        if not delimiter:
            raise ConfigError("delimiter must not be empty")
        parts = filled(type(self), sampler=sampler, verifier=verifier)
        if rollouts > 1 and not parts["sampler"].params.temperature > 0:
            raise ConfigError(f"rollouts is {rollouts}, but at the sampler's temperature of 0 all of them are the same")
        self.responder = Responder(policy, label=label, **parts)
        self.tasks = {task.name: task for task in as_list(task)}
        self.out, self.solutions, self.demonstrations = out, solutions, demonstrations
        self.method_name, self.method = method, METHODS[method]
        self.completions = Completions(self.responder, rollouts, seed)
        self.delimiter, self.chat, self.system = delimiter, chat, system
        self.chat_template_kwargs = chat_template_kwargs
        self.questions_per_batch = questions_per_batch

    def run(self) -> None:
        """Labels what is missing, and prints a summary."""
        solutions = self._solutions()
        tokenizer = self.responder.tokenizer()
        renderer = Renderer(tokenizer, self.chat, self.system, self.chat_template_kwargs)
        output = Output(self.out, self._settings())
        written = output.open()
        self._take_up(output, written, solutions)
        missing = [batch for batch in by_question(solutions, self.questions_per_batch) if batch.stop > len(written)]
        for batch in missing:
            self._cut(renderer, solutions, batch)  # refuses what does not fit before a model is loaded
        summary, progress = LabelSummary(), JobProgress("solutions", len(solutions), len(written))
        summary.add(written)
        if missing:
            self.responder.start(tokenizer, self.tasks)
            with progress:
                for batch in missing:
                    cut = self._cut(renderer, solutions, batch)
                    drawn = self.completions.ask(self.method, cut)
                    rows = [self._row(steps) for steps in cut[max(0, len(written) - batch.start) :]]
                    output.add(rows)
                    summary.add(rows)
                    progress.advance(len(rows), drawn)
        print(summary.text(progress, output))

    def _solutions(self) -> list[Solution]:
        if self.solutions is not None:
            return read_solutions(self.solutions, self.tasks)
        return demonstrated(self.tasks, self.demonstrations or 0)

    def _settings(self) -> dict[str, Any]:
        """What a line depends on, beside the solution itself."""
        return {
            "job": "label-steps",
            **self.responder.settings(),
            "verifier": type(self.responder.verifier).__name__,
            "method": self.method_name,
            "rollouts": self.completions.rollouts,
            "delimiter": self.delimiter,
            "chat": self.chat,
            "system": self.system,
            **template_settings(self.chat_template_kwargs),
            "seed": self.completions.seed,
        }

    def _take_up(self, output: Output, written: Sequence[Mapping[str, Any]], solutions: Sequence[Solution]) -> None:
        """Learns what the file holds already.

        Raises:
            RunFolderError: If it is not of these solutions.
        """
        for number, row in enumerate(written):
            fields = solutions[number].fields if number < len(solutions) else {}
            if any(row.get(name) != fields.get(name) for name in _IDENTITY):
                raise RunFolderError(
                    f"{output.path}, line {number + 1}: is not the solution that stands there in "
                    f"{self.solutions or 'the demonstrations'}. Write elsewhere: --out OTHER"
                )
            counts = [Count(step["rollouts"], step["successes"]) for step in row.get("steps", [])]
            self.completions.remember(Steps.of(solutions[number], self.delimiter), counts)

    def _cut(self, renderer: Renderer, solutions: Sequence[Solution], batch: range) -> list[Steps]:
        """The steps of a batch of solutions.

        Raises:
            DataError: If a prefix leaves no room for a completion.
        """
        cut = cut_into_steps(renderer, solutions[batch.start : batch.stop], self.delimiter)
        for steps in cut:
            for prompt in steps.prompts[-1:]:
                if len(prompt.tokens) >= self.responder.context:
                    raise DataError(
                        f"solution {steps.solution.fields.get('sample')} of problem {prompt.problem.id} (task "
                        f"{prompt.task}): {len(prompt.tokens)} tokens before its last step leave no room in a context "
                        f"of {self.responder.context}"
                    )
        return cut

    def _row(self, steps: Steps) -> dict[str, Any]:
        counts, text = self.completions.counts(steps), steps.solution.response
        ends, right = steps.ends, steps.solution.right
        labels = self.method.labels(counts, len(ends), right) if ends else []
        starts = step_starts(text, self.delimiter)
        return {
            **steps.solution.fields,
            "steps": [
                {
                    "end": end,
                    "text": text[start:end],
                    "label": label,
                    "rollouts": counts.get(i, Count()).rollouts,
                    "successes": counts.get(i, Count()).successes,
                }
                for i, (start, end, label) in enumerate(zip(starts, ends, labels, strict=True), start=1)
            ],
            "method": self.method_name,
            "completer": self.responder.name,
        }
