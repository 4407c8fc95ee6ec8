"""How ranks share items; what needs real processes is in tests/scale."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from rlhf_lightning import ranks
from rlhf_lightning.axes import fitted, join, rows_of, take
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.modules.batches import for_all_ranks, own_batches
from rlhf_lightning.modules.trainer_checks import check_ranks
from rlhf_lightning.types import Problem, Prompt, Rollout, SamplingParams, Scores, StepScores


@pytest.fixture
def among(monkeypatch):
    def place(rank, size):
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: size)

    return place


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3), (3, 3), (10, 4)])
def test_shares_are_neighbours_that_cover_all_once(among, count, size):
    shares = []
    for rank in range(size):
        among(rank, size)
        assert ranks.owns(count)
        shares.append(list(ranks.own_share(count)))
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_without_items_repeats_the_last_and_owns_nothing(among):
    among(2, 4)
    assert list(ranks.own_share(2)) == [1]
    assert not ranks.owns(2)
    with pytest.raises(ValueError, match="no items"):
        ranks.own_share(0)


@pytest.mark.parametrize(("count", "size"), [(1, 3), (6, 3), (7, 3), (2, 5)])
def test_all_ranks_take_as_many_turns_and_each_item_is_done_by_one(among, count, size):
    turns, done = [], []
    for rank in range(size):
        among(rank, size)
        taken = ranks.in_turn(count)
        turns.append(len(taken))
        done += [number for number in taken if ranks.does(number)]
    assert len(set(turns)) == 1
    assert sorted(done) == list(range(count))


def test_one_process_is_all_there_is():
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert list(ranks.own_share(3)) == ranks.in_turn(3) == [0, 1, 2]
    assert ranks.gathered("x") == ["x"]
    assert ranks.total([1, 2.5]) == ranks.largest([1, 2.5]) == [1, 2.5]


@dataclass(frozen=True)
class Piece:
    name: str
    micro_batches: int
    tokens: int = 1


def test_each_rank_takes_its_micro_batches_of_an_update(among):
    update = [Piece(name, 4) for name in "abcd"]
    among(1, 2)
    assert for_all_ranks(3) == 4
    assert own_batches(update) == [Piece("b", 2), Piece("d", 2)]


class FakeTrainer:
    def __init__(self, world_size, deals_out):
        self.world_size, self.gradient_clip_val = world_size, None
        self._accelerator_connector = type("Connector", (), {"use_distributed_sampler": deals_out})


def test_more_ranks_than_responses_are_refused():
    check_ranks(FakeTrainer(4, False), 4)
    check_ranks(FakeTrainer(1, True), 1)
    with pytest.raises(ConfigError, match=r"5 processes cannot share an update of 4 responses.*at most 4 devices"):
        check_ranks(FakeTrainer(5, False), 4)
    with pytest.raises(ConfigError, match="use_distributed_sampler must be false"):
        check_ranks(FakeTrainer(2, True), 4)


def rollout(lengths, start=0):
    """Two responses a prompt; token b,t is 100·(start + b) + t."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    tokens = (100 * (start + torch.arange(len(lengths)))[:, None] + torch.arange(width)) * mask
    prompts = tuple(Prompt(Problem(str(start + i), ""), "t", "", (1,), i) for i in range(len(lengths) // 2))
    texts = tuple(f"{start + b}" for b in range(len(lengths)))
    return Rollout(prompts, tokens, mask, -tokens.float(), mask[:, 0], texts, SamplingParams(), 7)


def test_rollouts_join_and_part_again():
    first, second = rollout([3, 1, 2, 2]), rollout([1, 5], start=4)
    whole = join([first, second])
    assert whole.tokens.shape == (6, 5) and whole.lengths.tolist() == [3, 1, 2, 2, 1, 5]
    assert [prompt.problem.id for prompt in whole.prompts] == ["0", "1", "4"]
    back = whole.take_groups([2, 0])
    assert back.texts == ("4", "5", "0", "1") and back.weights_version == 7
    assert back.tokens[1].tolist() == [500, 501, 502, 503, 504] and back.tokens[3].tolist() == [100, 0, 0, 0, 0]
    assert whole.take_groups([1]).tokens.shape == (2, 2)


def test_scores_join_and_part_with_their_steps():
    def scored(values, width):
        steps = StepScores(torch.ones(len(values), width), torch.ones(len(values), width, dtype=torch.bool))
        own = torch.tensor(values)
        return Scores(own, {"a": own * 10}, own > 2, steps)

    whole = fitted(join([scored([1.0, 2.0], 3), scored([3.0, 4.0], 1)]), T=4)
    assert whole.steps.values.sum(1).tolist() == [3, 3, 1, 1] and whole.steps.ends.shape == (4, 4)
    part = fitted(take(whole, B=rows_of([1], 2)), T=2)
    assert part.values.tolist() == [3, 4] and part.parts["a"].tolist() == [30, 40] and part.failed.all()
    assert part.steps.values.tolist() == [[1, 0], [1, 0]]
    stepless = Scores(torch.ones(2), {"a": torch.ones(2)}, torch.zeros(2, dtype=torch.bool))
    assert join([stepless, stepless]).steps is None
    mixed = join([stepless, scored([1.0, 2.0], 3)]).steps  # responses without scores have no steps
    assert mixed.ends.tolist() == [[False] * 3] * 2 + [[True] * 3] * 2 and mixed.values.sum(1).tolist() == [0, 0, 3, 3]


ENDS = """
import atexit, os, sys
from rlhf_lightning import ranks
import torch.distributed as dist

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

kept = Aborts()  # as PyTorch's threads may, when Python is torn down
dist.init_process_group("gloo")
atexit.register(print, "registered", end=" ")
print("done", end=" ")
ranks.end(3)
"""


def test_a_process_of_several_ends_without_being_torn_down():
    """And one alone is left to end as it does."""
    for world, code, said in ((2, 3, "done registered "), (1, -signal.SIGABRT, "")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", ENDS], env=os.environ | meeting | {"RANK": str(rank)}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )
            for rank in range(world)
        ]  # fmt: skip
        ended = [process.communicate(timeout=60)[0] for process in started]
        assert [process.returncode for process in started] == [code] * world
        assert all(said in text for text in ended)
