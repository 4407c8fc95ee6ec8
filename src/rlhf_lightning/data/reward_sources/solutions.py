"""Solutions as ``rlhf sample`` writes them and ``rlhf label-steps`` labels them."""

from __future__ import annotations

from rlhf_lightning.data.reward_sources._files import FileSource
from rlhf_lightning.data.rows import Field
from rlhf_lightning.data.steps import step_ends
from rlhf_lightning.errors import DataError
from rlhf_lightning.registry import register
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Step
from rlhf_lightning.types import Problem


@register("reward_data", "solutions")
class Solutions(FileSource):
    """Sampled solutions with their verifier's score, one a line; those of a problem stand on consecutive lines.

    Fields: ``task``, ``id``, ``question``, ``response``, ``correct`` (0 to 1, or null); optional ``answer``,
    ``messages`` (the turns of a conversation), ``finished`` (false for one that was cut off), ``failed`` (true where
    the verifier was: then nothing is known of the solution), and ``steps``, a list of ``{end, label}`` with the
    characters up to each step's end, and the probability that it is right (or null). Without ``steps`` the delimiter
    cuts, and no step has a label. Unless ``label`` is given, a group counts as the ``task`` of its lines.

    The paper's scaling of data (§4.3.1: 5, 10, 20 or 40 solutions of ⅛, ¼, ½ or all of the prompts) is
    ``max_solutions`` and ``prompt_fraction`` of one file; smaller settings are subsets of larger ones.
    """

    name = "solutions"
    written_by = (
        " (rlhf sample writes such files, and rlhf label-steps labels their steps; those of tiny/orm.yaml and "
        "tiny/prm.yaml: rlhf sample --config tiny/sample.yaml && rlhf label-steps --config tiny/label_steps.yaml)"
    )

    def parse(self, fields: Field) -> JudgedGroup:
        """One solution."""
        task, id = fields["task"].text(), fields["id"].text()
        metadata: dict[str, object] = {"place": fields.row.place}
        if messages := fields.get("messages"):
            metadata["messages"] = messages.turns()
        answer = fields.get("answer")
        problem = Problem(id, fields["question"].text(), answer.text() if answer else "", metadata)
        counts_as = task if self.label == self.name else self.label
        return JudgedGroup(problem, counts_as, (self._response(fields),))

    def continues(self, group: JudgedGroup, row: JudgedGroup) -> bool:
        """Whether task and problem are the same.

        Raises:
            DataError: If the problem is, but its question is not.
        """
        same = (group.task, group.problem.id) == (row.task, row.problem.id)
        if same and group.problem.question != row.problem.question:
            raise DataError(
                f"{row.problem.metadata['place']}: field 'question' must be that of the line before, which has the "
                f"same id {row.problem.id!r}"
            )
        return same

    def _response(self, fields: Field) -> JudgedResponse:
        text, correct = fields["response"].text(), fields["correct"].label()
        finished, failed = fields.get("finished"), fields.get("failed")
        return JudgedResponse(
            text,
            correct=None if failed and failed.flag() else correct,
            steps=self._steps(fields, text),
            finished=finished.flag() if finished else True,
        )

    def _steps(self, fields: Field, text: str) -> tuple[Step, ...]:
        given = fields.get("steps")
        if given is None:
            return tuple(Step(end) for end in step_ends(text, self.delimiter))
        steps: list[Step] = []
        for item in given:
            end, before = item["end"].whole(), steps[-1].end if steps else 0
            if not before < end <= len(text):
                item["end"].refuse(f"above {before} and at most {len(text)}: the characters up to the step's end")
            steps.append(Step(end, item["label"].label()))
        edges = [0, *(step.end for step in steps)]
        kept = [
            step
            for step, before in zip(steps, edges, strict=False)
            if text[before : step.end].removeprefix(self.delimiter if before else "").strip()
        ]
        self._left_out["empty steps left out"] += len(steps) - len(kept)
        return tuple(kept)
