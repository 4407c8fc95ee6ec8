"""The contract of sources of judged responses: what it accepts, and what it refuses for which reason."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.data.rows import question_number
from rlhf_lightning.data.tasks import ChainedArithmetic
from rlhf_lightning.plugins import load_builtins
from rlhf_lightning.protocols import RewardSource
from rlhf_lightning.registry import plugins, resolve
from rlhf_lightning.reward_types import JudgedGroup, JudgedResponse, Pair, Step
from rlhf_lightning.testing import check_plugin
from rlhf_lightning.types import Problem

load_builtins()

ROWS = {
    "solutions": {"task": "t", "id": "p", "question": "q", "response": "a\nb", "correct": 1},
    "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "steps": {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
    "math_shepherd": {"input": "q Step 1: a ки", "label": "q Step 1: a +", "task": "MATH"},
    "prm800k": {
        "question": {"problem": "q"},
        "label": {"steps": [{"completions": [{"text": "a", "rating": 1}]}], "finish_reason": "give_up"},
    },
}


def test_every_built_in_source_is_checked_here():
    assert {*ROWS, "demonstrations"} == set(plugins("reward_data"))


@pytest.mark.parametrize("name", ROWS)
def test_built_in_file_sources_keep_the_contract(name, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(ROWS[name]) + "\n") * 3)
    cls = resolve("reward_data", name)
    check_plugin(cls, make=lambda: cls(str(path))).raise_on_failure()


def test_demonstrations_keep_the_contract():
    cls = resolve("reward_data", "demonstrations")
    check_plugin(cls, make=lambda: cls(ChainedArithmetic(held_out=4), size=50)).raise_on_failure()


class Good(RewardSource):
    label = "good"
    responses = (JudgedResponse("a\nb", 1.0, (Step(1, 0.5), Step(3))), JudgedResponse("c"))
    pairs = (Pair(0, 1),)

    def open(self, *, delimiter="\n", chat=False):
        self.ready = 3

    def __len__(self):
        return self.ready

    def group(self, index):
        return JudgedGroup(Problem(f"p{index}", f"q{index}"), self.label, self.responses, self.pairs)

    def question_key(self, index):
        return question_number(self.group(index).problem)


class Empty(Good):
    def __len__(self):
        return 0


class Changes(Good):
    read = 0

    def group(self, index):
        Changes.read += 1
        return JudgedGroup(Problem(f"p{index}", "q"), f"label {Changes.read}", self.responses)


class OwnKeys(Good):
    def question_key(self, index):
        return index


class PairOutside(Good):
    pairs = (Pair(0, 2),)


class SelfPair(Good):
    pairs = (Pair(1, 1),)


class Certain(Good):
    responses = (JudgedResponse("a", 1.1),)
    pairs = ()


class StepOutside(Good):
    responses = (JudgedResponse("a", None, (Step(2, 1.0),)),)
    pairs = ()


class StepsBack(Good):
    responses = (JudgedResponse("abc", None, (Step(2), Step(1))),)
    pairs = ()


class NoResponses(Good):
    responses = ()
    pairs = ()


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (Good, set()),
        (Empty, {"opens"}),
        (Changes, {"the same each time"}),
        (OwnKeys, {"questions"}),
        (PairOutside, {"groups"}),
        (SelfPair, {"groups"}),
        (Certain, {"groups"}),
        (StepOutside, {"groups"}),
        (StepsBack, {"groups"}),
        (NoResponses, {"groups"}),
    ],
)
def test_sources(cls, failing):
    assert {r.name for r in check_plugin(cls).results if not r.passed} == failing
