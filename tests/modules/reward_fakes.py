"""Reward data made in memory: additions with known step labels, and preference pairs among them."""

from itertools import islice
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.data.judged import render_groups, step_ends
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, RenderedGroup, Step


def judged_groups(count: int, *, solutions: int = 3, pairs_every: int = 3, **task: Any) -> list[JudgedGroup]:
    """Groups of a few solutions each; every ``pairs_every``-th is of task ``chat``, with a pair and without labels."""
    arithmetic = ChainedArithmetic(**task)
    groups = []
    demonstrations = arithmetic.demonstrations()
    for index in range(count):
        first, *others = islice(demonstrations, solutions)
        texts = [(first.response, first.correct), *((d.response, d.correct) for d in others)]
        if pairs_every and index % pairs_every == 0:
            right, wrong = JudgedResponse(f"={first.problem.answer}"), JudgedResponse("=7", finished=False)
            groups.append(JudgedGroup(first.problem, "chat", (wrong, right), (Pair(1, 0, 0.5),)))
            continue
        responses = []
        for text, _ in texts:
            labels = arithmetic.check_steps(first.problem, text)
            steps = tuple(Step(end, float(ok)) for end, ok in zip(step_ends(text), labels, strict=True))
            responses.append(JudgedResponse(text, arithmetic.verify(first.problem, text), steps))
        groups.append(JudgedGroup(first.problem, "math", tuple(responses)))
    return groups


class FakeRewardData(LightningDataModule):
    """To the contract of RewardData, over groups in memory."""

    chat, system, delimiter = False, None, "\n"

    def __init__(self, groups: list[JudgedGroup] | None = None, held_out: int = 8) -> None:
        super().__init__()
        self.groups = judged_groups(40) if groups is None else groups
        self.held_out = held_out
        self.rendered: list[RenderedGroup] = []

    def bind_tokenizer(self, tokenizer: Any, context_length: int | None = None) -> None:
        self.rendered = render_groups(Renderer(tokenizer), self.groups)

    def describe(self) -> str:
        return f"{len(self.groups)} groups in memory"

    def train_groups(self, start: int, count: int) -> list[RenderedGroup]:
        train = self.rendered[self.held_out :]
        return [train[position % len(train)] for position in range(start, start + count)]

    def held_out_groups(self) -> list[RenderedGroup]:
        return self.rendered[: self.held_out]

    def train_dataloader(self) -> Any:
        return self.trainer.lightning_module.train_batches()

    def val_dataloader(self) -> Any:
        return [] if self.trainer.state.fn == "fit" else self.test_dataloader()

    def test_dataloader(self) -> Any:
        return DataLoader(self.held_out_groups(), batch_size=4, collate_fn=list)
