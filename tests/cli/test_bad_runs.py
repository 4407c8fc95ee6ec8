"""What cannot be trained is refused by `rlhf fit` with exit code 2, in one line, before any model is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.cli import main
from rlhf_lightning.models import TinyLlama


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch):
    def load(self):
        raise AssertionError("a model was loaded")

    for name in ("tiny.TinyLlama", "sources.Folder", "sources.SmolLM2", "sources.Hub"):
        monkeypatch.setattr(f"rlhf_lightning.models.{name}.load", load)


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        status = main(["fit", "--config", "tiny/grpo.yaml", "--run.name", "bad", *words])
        error = capsys.readouterr().err
        assert status == 2, error
        assert error.startswith("error: ") and "Traceback" not in error
        return error

    return run


def jsonl(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def row(question: str = "1+1=", answer: str = "2") -> str:
    return json.dumps({"question": question, "answer": answer})


def task(path: str, **more: object) -> str:
    settings = {"name": "jsonl", "path": path, "verifier": "exact", "held_out_fraction": 0.5, **more}
    return "--data.init_args.task=" + json.dumps(settings)


def test_one_sample_with_a_group_estimator(fit):
    error = fit("--model.init_args.advantage=group", "--model.init_args.samples_per_prompt=1")
    assert "samples_per_prompt is 1" in error and "at least 2" in error


def test_more_updates_than_prompts(fit):
    error = fit("--model.init_args.updates_per_rollout=99")
    assert "updates_per_rollout (99)" in error and "Nearest: updates_per_rollout 16" in error


def test_unknown_key_names_the_nearest(fit):
    error = fit("--model.init_args.sample_per_prompt=4")
    assert "sample_per_prompt" in error and "samples_per_prompt" in error


def test_unknown_plugin_names_the_nearest(fit):
    error = fit("--model.init_args.advantage=reinforse")
    assert "reinforse" in error and "reinforce" in error


def test_wrong_type_names_the_key(fit):
    error = fit("--model.init_args.samples_per_prompt=many")
    assert "samples_per_prompt" in error and "many" in error


def test_unknown_aggregation_names_the_nearest(fit):
    error = fit("--model.init_args.aggregation=token_mean")
    assert "token_mean" in error and "token-mean" in error


def test_missing_prompt_file_names_the_nearest(fit, tmp_path):
    jsonl(tmp_path / "problems.jsonl", row(), row("2+2=", "4"))
    error = fit(task("problms.jsonl"))
    assert "problms.jsonl" in error and "problems.jsonl" in error


def test_malformed_line_is_named(fit, tmp_path):
    path = jsonl(tmp_path / "p.jsonl", row(), row("2+2=", "4"), '{"question": "3+3=", ')
    error = fit(task(path))
    assert "p.jsonl" in error and "line 3" in error


def test_missing_field_is_named_with_those_there_are(fit, tmp_path):
    path = jsonl(tmp_path / "p.jsonl", row(), json.dumps({"questoin": "2+2=", "answer": "4"}))
    error = fit(task(path))
    assert "line 2" in error and "question" in error and "questoin" in error


def test_empty_prompt_set(fit, tmp_path):
    assert "empty" in fit(task(jsonl(tmp_path / "p.jsonl")))


def test_prompt_longer_than_the_context(fit, tmp_path):
    path = jsonl(tmp_path / "p.jsonl", row(), row("2+2=", "4"), row("9" * 300 + "+1=", "?"))
    error = fit(task(path))
    assert "300" in error or "302" in error or "303" in error
    assert "256" in error or "240" in error


def test_chat_with_a_tokenizer_that_has_no_template(fit):
    error = fit("--data.init_args.chat=true")
    assert "chat template" in error and "chat: false" in error


def test_model_folder_without_tokenizer(fit, tmp_path):
    TinyLlama(hidden=32, layers=1, heads=2).config().save_pretrained(tmp_path / "model")
    error = fit('--model.init_args.policy={"name": "folder", "path": "model"}')
    assert "model has no tokenizer.json" in error


def test_missing_model_folder(fit):
    assert "nowhere does not exist" in fit('--model.init_args.policy={"name": "folder", "path": "nowhere"}')


def test_existing_run_folder(fit, tmp_path):
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "metrics.csv").write_text("rollout\n")
    error = fit()
    assert "--ckpt_path last" in error and "--run.name" in error
    assert (tmp_path / "runs" / "bad" / "metrics.csv").read_text() == "rollout\n"


def test_a_folder_of_other_things_is_no_run_to_go_on_with(fit, tmp_path):
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "notes.txt").write_text("mine")
    assert "exists already and is never overwritten" in fit("--ckpt_path", "auto")


def test_unwritable_run_folder(fit, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be" in fit("--run.root", str(tmp_path / "file"))


def test_prompt_and_response_over_the_token_budget(fit):
    error = fit("--model.init_args.token_budget=8")
    assert "token_budget" in error


def test_gae_without_a_critic(fit):
    error = fit("--model.init_args.advantage=gae")
    assert "GAE needs the values of a critic" in error and "PPOModule" in error


PPO = ("--config", "tiny/ppo.yaml")


def test_critic_whose_vocabulary_differs(fit, tmp_path):
    TinyLlama(hidden=32, layers=1, heads=2).config().save_pretrained(tmp_path / "other")
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    words = Tokenizer(models.WordLevel({"<eos>": 0, "one": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(tmp_path / "other")
    error = fit(*PPO, '--model.init_args.critic={"name": "folder", "path": "other"}')
    assert "critic: its tokenizer is not the policy's" in error and "leave critic out" in error


def test_reward_model_without_a_head_as_critic(fit, tmp_path):
    source = TinyLlama(hidden=32, layers=1, heads=2)
    source.tokenizer().save_pretrained(tmp_path / "lm")
    source.config().save_pretrained(tmp_path / "lm")
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "lm" / "model.safetensors")
    error = fit(*PPO, '--model.init_args.critic={"name": "reward-model", "path": "lm"}')
    assert "no scalar head" in error and "tiny/orm.yaml" in error


def test_critic_of_its_own_and_shared(fit):
    error = fit(*PPO, "--model.init_args.critic=tiny-llama", "--model.init_args.shared_backbone=true")
    assert "shared_backbone" in error and "leave critic out" in error
