import json

import pytest
import torch
from sampler_models import TOKENIZER, prompts, random_model

from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.registry import resolve
from rlhf_lightning.samplers import ScriptedSampler


def bound(**arguments) -> ScriptedSampler:
    sampler = ScriptedSampler(**arguments)
    sampler.bind(random_model("llama", eos_token_id=1), TOKENIZER)
    sampler.sync(4)
    return sampler


def test_responses_come_in_order_and_start_over():
    sampler = bound(responses={"1+1=": ["2", "3"], "2+2=": ["44"]}, max_new_tokens=3)
    rollout = sampler(prompts("1+1=", "2+2="), samples_per_prompt=3, seeds=torch.zeros(6).long())
    assert rollout.texts == ("2", "3", "2", "44", "44", "44")
    assert rollout.lengths.tolist() == [2, 2, 2, 3, 3, 3]
    assert rollout.tokens[0].tolist() == [TOKENIZER("2")["input_ids"][0], 1, 0]
    assert rollout.finished.all() and rollout.weights_version == 4
    assert rollout.logprobs.tolist() == torch.zeros(6, 3).tolist()


def test_a_long_response_is_cut_off():
    rollout = bound(responses={"x": ["12345"]}, max_new_tokens=4)(
        prompts("x"), samples_per_prompt=1, seeds=torch.zeros(1)
    )
    assert rollout.texts == ("1234",) and rollout.finished.tolist() == [False]


def test_a_file_gives_responses_and_logprobs(tmp_path):
    file = tmp_path / "script.jsonl"
    file.write_text(json.dumps({"prompt": "x", "responses": ["7"], "logprobs": [[-0.5, -0.25]]}) + "\n\n")
    rollout = bound(path=str(file))(prompts("x"), samples_per_prompt=1, seeds=torch.zeros(1))
    torch.testing.assert_close(rollout.logprobs, torch.tensor([[-0.5, -0.25]]))


def test_an_unknown_prompt_names_the_nearest():
    with pytest.raises(DataError, match=r"'1\+1= '.*nearest recorded: '1\+1='"):
        bound(responses={"1+1=": ["2"]})(prompts("1+1= "), samples_per_prompt=1, seeds=torch.zeros(1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"responses": ["a"]}', "line 2: .*'prompt'"),
        ('{"prompt": "a", "responses": []}', "line 2: field 'responses'"),
        ('{"prompt": "a", "responses": ["b"], "logprobs": []}', "line 2: field 'logprobs'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "script.jsonl"
    file.write_text('{"prompt": "ok", "responses": ["yes"]}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        ScriptedSampler(path=str(file))


def test_logprobs_of_another_length_are_refused(tmp_path):
    file = tmp_path / "script.jsonl"
    file.write_text(json.dumps({"prompt": "x", "responses": ["7"], "logprobs": [[-0.5]]}))
    with pytest.raises(DataError, match="1 logprobs for 2 tokens"):
        bound(path=str(file))(prompts("x"), samples_per_prompt=1, seeds=torch.zeros(1))


def test_exactly_one_source_is_asked_for():
    with pytest.raises(ConfigError, match="exactly one"):
        ScriptedSampler()
    with pytest.raises(ConfigError, match="exactly one"):
        ScriptedSampler(responses={}, path="x")
    with pytest.raises(DataError, match="does not exist"):
        ScriptedSampler(path="nowhere.jsonl")


def test_sampling_before_sync_is_refused_and_the_name_is_registered():
    assert resolve("sampler", "scripted") is ScriptedSampler
    with pytest.raises(RuntimeError, match="sync"):
        ScriptedSampler(responses={})([], samples_per_prompt=1, seeds=torch.zeros(0))
