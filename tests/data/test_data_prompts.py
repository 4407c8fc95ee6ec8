import logging
from collections import Counter

import pytest
from lightning import LightningModule, Trainer

from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.tasks import ChainedArithmetic, JsonlTask
from rlhf_lightning.errors import ConfigError, DataError

LETTERS = list("abcdefghij")


@pytest.fixture
def bound(tokenizer, listed):
    def make(train=LETTERS, held_out=("x", "y", "z"), context=None, room=0, **arguments):
        data = PromptData(listed(train, held_out), **arguments)
        data.bind_tokenizer(tokenizer, context_length=context, max_new_tokens=room)
        return data

    return make


def test_rollouts_go_through_every_prompt_once_an_epoch(bound):
    data = bound()
    seen = [p.text for rollout in range(10) for p in data.train_prompts(rollout, 3)]
    assert Counter(seen) == Counter(dict.fromkeys(LETTERS, 3))


def test_a_rollout_is_a_function_of_seed_and_index(bound):
    late = bound().train_prompts(7, 4)
    fresh = bound()
    for rollout in range(7):
        fresh.train_prompts(rollout, 4)
    assert fresh.train_prompts(7, 4) == late
    assert [p.text for p in bound(seed=2).train_prompts(0, 10)] != [p.text for p in bound().train_prompts(0, 10)]


def test_a_prompt_met_twice_in_a_rollout_gets_another_index(bound):
    prompts = bound().train_prompts(0, 25)
    indices = [p.index for p in prompts]
    assert len(set(indices)) == 25
    assert all(p.text == LETTERS[p.index % 10] for p in prompts)
    assert sorted(indices)[:20] == list(range(20))


def test_further_prompts_are_the_others_each_once(bound):
    data = bound()
    own = data.train_prompts(0, 4)
    further = list(data.further_prompts(0, own))
    assert sorted(p.text for p in [*own, *further]) == LETTERS
    assert all(p.text == LETTERS[p.index] for p in further)
    assert list(data.further_prompts(0, data.train_prompts(0, 25))) == []


def test_further_prompts_are_a_function_of_seed_and_rollout(bound):
    orders = [[p.text for p in bound(seed=seed).further_prompts(rollout, [])] for seed in (1, 2) for rollout in (0, 1)]
    again = [p.text for p in bound().further_prompts(0, [])]
    assert again == orders[0]
    assert len({tuple(order) for order in orders}) == 4


def test_further_prompts_leave_out_what_is_too_long(bound, caplog):
    data = bound(train=["ab", "abc", "b", "abcd"], max_prompt_tokens=2, drop_long=True)
    assert sorted(p.text for p in data.further_prompts(0, [])) == ["ab", "b"]


def test_held_out_prompts_are_fixed_and_never_trained_on(tokenizer):
    task = ChainedArithmetic(terms=2, max_operand=6, held_out=8)
    data = PromptData(task)
    data.bind_tokenizer(tokenizer)
    held_out = [p.text for p in data.held_out_prompts()]
    assert held_out == [p.question for p in task.held_out_problems()]
    trained = {p.text for rollout in range(20) for p in data.train_prompts(rollout, 16)}
    assert trained == {p.question for p in task.train_problems()}
    assert not trained & set(held_out)


def test_several_tasks_are_put_together(tokenizer, listed):
    data = PromptData([listed("abc", "x", "first"), listed("de", "yz", "second")])
    data.bind_tokenizer(tokenizer)
    prompts = sorted(data.train_prompts(0, 5), key=lambda p: p.index)
    assert [(p.task, p.text) for p in prompts] == [*(("first", c) for c in "abc"), *(("second", c) for c in "de")]
    assert [(p.index, p.task, p.text) for p in data.held_out_prompts()] == [
        (0, "first", "x"), (1, "second", "y"), (2, "second", "z"),
    ]  # fmt: skip
    assert list(data.tasks) == ["first", "second"]


def test_chat_prompts(bound):
    assert bound(chat=True, system="S").held_out_prompts()[0].text == "[s]S|[u]x|[a]"


def test_a_prompt_that_leaves_no_room_is_named_before_anything_loads(tokenizer, tmp_path):
    path = tmp_path / "asks.jsonl"
    path.write_text('{"question": "abc", "answer": "1"}\n{"question": "abcdefgh", "answer": "1"}\n' * 1)
    data = PromptData(JsonlTask(str(path), str(path.with_name("test.jsonl")), verifier="exact"))
    path.with_name("test.jsonl").write_text('{"question": "x", "answer": "1"}\n')
    data.bind_tokenizer(tokenizer, context_length=16, max_new_tokens=8)
    said = r"'abcdefgh' \(task jsonl, problem asks.jsonl:2, .*asks.jsonl, line 2\) has 8 tokens, but at most 7 fit "
    with pytest.raises(DataError, match=said + r"\(context 16, less 9 for the response\)"):
        data.bind_tokenizer(tokenizer, context_length=16, max_new_tokens=9)


def test_held_out_prompts_and_the_users_own_limit_are_checked_too(bound):
    with pytest.raises(DataError, match=r"'long one'.*problem h1\) has 8 tokens, but at most 7 fit"):
        bound(held_out=("x", "long one"), context=20, room=13)
    with pytest.raises(DataError, match=r"has 3 tokens, but at most 2 fit \(max_prompt_tokens 2\)"):
        bound(train=["ab", "abc"], max_prompt_tokens=2)


def test_long_prompts_are_left_out_on_request_and_counted(bound, caplog):
    with caplog.at_level(logging.WARNING):
        data = bound(train=["a", "bbb", "c", "ddd", "e"], max_prompt_tokens=2, drop_long=True)
    assert "2 of 5 training prompts are too long and left out" in caplog.text
    assert sorted(p.text for p in data.train_prompts(0, 3)) == ["a", "c", "e"]
    assert {p.index for p in data.train_prompts(1, 3)} == {0, 2, 4}


def test_a_late_long_prompt_of_an_unlisted_set_is_refused_when_drawn(tokenizer):
    task = ChainedArithmetic(terms=2, max_operand=200, held_out=8, train_size=5000)
    data = PromptData(task, max_prompt_tokens=7)  # only three digits and three digits make eight
    with pytest.raises(DataError, match="has 8 tokens, but at most 7 fit"):
        data.bind_tokenizer(tokenizer)
        data.train_prompts(0, 5000)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"train": []}, "task listed: the set of training prompts is empty"),
        ({"held_out": []}, "task listed: the held-out set is empty"),
        ({"train": ["a", ""]}, r"prompt '' \(task listed, problem t1\) is empty"),
    ],
)
def test_empty_sets_and_prompts_are_refused(bound, sets, said):
    with pytest.raises(DataError, match=said):
        bound(**sets)


def test_impossible_arguments_are_refused(bound, tokenizer, listed):
    with pytest.raises(ConfigError, match=r"max_new_tokens \(16\) leaves no room for a prompt in a context of 16"):
        bound(context=16, room=16)
    with pytest.raises(ConfigError, match="two tasks have one name"):
        PromptData([listed("a", "b"), listed("c", "d")])
    with pytest.raises(ConfigError, match="eval_batch_size must be at least 1, got 0"):
        PromptData(listed("a", "b"), eval_batch_size=0)
    with pytest.raises(RuntimeError, match="bind_tokenizer"):
        PromptData(listed("a", "b")).train_prompts(0, 1)


class Reader(LightningModule):
    """Notes what it is given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.trained, self.validated = [], []

    def train_batches(self):
        return ["first", "second"]

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)

    def validation_step(self, batch, batch_idx):
        self.validated.append([p.text for p in batch])

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def configure_optimizers(self):
        return None


@pytest.fixture
def trainer(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **quiet)


def test_fitting_gets_the_modules_batches_and_no_validation(bound, trainer):
    module = Reader()
    trainer.fit(module, datamodule=bound())
    assert module.trained == ["first", "second"]
    assert module.validated == []


def test_validation_gets_the_held_out_prompts_in_batches(bound, trainer):
    module = Reader()
    trainer.validate(module, datamodule=bound(eval_batch_size=2), verbose=False)
    assert module.validated == [["x", "y"], ["z"]]


def test_a_module_without_batches_is_refused(bound, trainer):
    class Other(Reader):
        train_batches = property()

    with pytest.raises(ConfigError, match="Other makes no batches"):
        trainer.fit(Other(), datamodule=bound())
