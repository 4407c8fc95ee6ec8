"""``rlhf generate``: from a source's name, a folder, a configuration, a run and a checkpoint."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from tests.chats import QWEN, family_policy

from rlhf_lightning.models.tiny import TinyLlama

SHORT = ["--max_new_tokens", "6", "--json"]
PROMPTS = ["--prompt", "1+2=", "--prompt", "17+4="]


def rows(outcome) -> list[dict]:
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def greedy(model: torch.nn.Module, text: str, count: int) -> tuple[str, float]:
    """Plain greedy decoding, one full forward a token: the response, and the sum of its log-probs in nats."""
    tokenizer = TinyLlama().tokenizer()
    ids = tokenizer(text)["input_ids"]
    start, total = len(ids), 0.0
    with torch.no_grad():
        for _ in range(count):
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(logprobs.argmax()))
            total += float(logprobs.max())
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True), total


def assert_greedy(found: list[dict], model: torch.nn.Module) -> None:
    """The rows are what the model answers, down to the log-probs."""
    assert [row["prompt"] for row in found] == ["1+2=", "17+4="]
    for row in found:
        response, logprob = greedy(model, row["prompt"], 6)
        assert row["response"] == response
        assert row["logprob"] == pytest.approx(logprob, abs=1e-3)


def test_greedy_responses_are_the_models(rlhf):
    found = rows(rlhf("generate", "--model", "tiny-llama", *PROMPTS, *SHORT, "--temperature", "0"))
    assert_greedy(found, TinyLlama().load())


def test_draws_are_a_function_of_the_seed(rlhf):
    words = ["generate", "--model", "tiny-llama", *PROMPTS, *SHORT, "--n", "2"]
    first, again, other = (rows(rlhf(*words, "--seed", seed)) for seed in ("5", "5", "6"))
    assert first == again
    assert [row["response"] for row in first] != [row["response"] for row in other]
    assert len({row["response"] for row in first}) == 4
    assert all(row["tokens"] <= 6 for row in first)


def test_a_folder_and_a_configuration(rlhf, folder: Path):
    source = TinyLlama(hidden=16, layers=1, heads=2, seed=4)
    source.load().save_pretrained(folder / "weights")
    source.tokenizer().save_pretrained(folder / "weights")
    tiny = {"name": "tiny-llama", "hidden": 16, "layers": 1, "heads": 2, "seed": 4}
    config = {"model": {"class_path": "SFTModule", "init_args": {"policy": tiny}}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    words = [*PROMPTS, *SHORT, "--temperature", "0"]
    from_folder = rows(rlhf("generate", "--model", "weights", *words))
    from_config = rows(rlhf("generate", "--config", "tiny.yaml", *words))
    assert from_folder == from_config
    assert_greedy(from_folder, source.load())


def write_run(folder: Path, model: torch.nn.Module, policy: dict) -> Path:
    """A run folder whose checkpoint holds ``model``."""
    (folder / "runs/x/checkpoints").mkdir(parents=True)
    config = {"model": {"class_path": "SFTModule", "init_args": {"policy": policy, "lora": None}}}
    (folder / "runs/x/config.yaml").write_text(yaml.safe_dump(config))
    state = {f"policy.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "runs/x/checkpoints/last.ckpt")
    return folder / "runs/x"


@pytest.mark.parametrize("path", ["runs/x", "runs/x/checkpoints/last.ckpt"])
def test_a_run_answers_with_its_checkpoints_weights(rlhf, folder: Path, path):
    trained = TinyLlama(seed=9).load()
    write_run(folder, trained, {"name": "tiny-llama"})
    found = rows(rlhf("generate", "--model", path, *PROMPTS, *SHORT, "--temperature", "0"))
    assert_greedy(found, trained)
    assert abs(found[0]["logprob"] - greedy(TinyLlama().load(), "1+2=", 6)[1]) > 0.1


def test_a_checkpoint_of_another_model_is_refused(rlhf, folder: Path):
    write_run(folder, TinyLlama(hidden=32).load(), {"name": "tiny-llama"})
    assert "is of another model" in rlhf("generate", "--model", "runs/x", *PROMPTS).error


def test_a_checkpoint_with_missing_weights_is_refused(rlhf, folder: Path):
    run = write_run(folder, TinyLlama().load(), {"name": "tiny-llama"})
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    del saved["state_dict"]["policy.model.norm.weight"]
    torch.save(saved, run / "checkpoints/last.ckpt")
    assert "first 'model.norm.weight'" in rlhf("generate", "--model", "runs/x", *PROMPTS).error


def test_panels(rlhf):
    outcome = rlhf("generate", "--model", "tiny-llama", *PROMPTS, "--max_new_tokens", "6")
    assert outcome.code == 0
    assert "17+4=" in outcome.out
    assert "tokens" in outcome.out


def test_prompts_from_standard_input(rlhf, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2=\n3+4=\n"))
    found = rows(rlhf("generate", "--model", "tiny-llama", *SHORT))
    assert [row["prompt"] for row in found] == ["1+2=", "3+4="]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "tiny-llam"], "no model_source is called 'tiny-llam'. Did you mean 'tiny-llama'?"),
        (["--model", "./nope"], "model folder nope does not exist"),
        (["--model", "nope.ckpt"], "checkpoint nope.ckpt does not exist"),
        (["--model", "fake.yaml"], "does not lie in a run folder"),
        (["--model", "."], "has no config.json"),
        (["--config", "fake.yaml"], "fake.yaml: its model has no policy or model"),
        (["--config", "nope.yaml"], "--config: nope.yaml is neither in the working folder"),
        ([], "give either --model or --config"),
        (["--model", "tiny-llama", "--config", "fake.yaml"], "give either --model or --config"),
        (["--model", "tiny-llama", "--n", "0"], "--n must be at least 1, got 0"),
        (["--model", "tiny-llama", "--n", "x"], "argument --n: invalid int value: 'x'"),
        (["--model", "tiny-llama", "--temperature", "-1"], "--temperature must be 0 (greedy) or more, got -1.0"),
        (["--model", "tiny-llama", "--chat"], "--chat: the model's tokenizer has no chat template"),
        (["--model", "tiny-llama", "--max_new_tokens", "999"], "exceed the model's context of 256"),
        (["--model", "tiny-llama", "--temprature", "1"], "unrecognized arguments: --temprature"),
    ],
)
def test_bad_input(rlhf, words, expected):
    assert expected in rlhf("generate", *words, "--prompt", "1+2=").error


def test_no_prompt(rlhf, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no prompt" in rlhf("generate", "--model", "tiny-llama").error
    assert "has no token" in rlhf("generate", "--model", "tiny-llama", "--prompt", "").error


def test_chats_take_a_system_turn_and_arguments_of_the_template(rlhf, tmp_path):
    model = ["generate", "--model", str(family_policy(QWEN, tmp_path)), "--prompt", "1+1", *SHORT, "--chat"]
    (row,) = rows(rlhf(*model, "--system", "Add.", "--chat_template_kwargs", '{"enable_thinking": false}'))
    assert rows(rlhf(*model, "--system", "Add.", "--chat_template_kwargs", "{enable_thinking: false}")) == [row]
    assert row["prompt"] == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    for more, said in {
        ("--chat_template_kwargs", "{"): "--chat_template_kwargs is no JSON",
        ("--chat_template_kwargs", "3"): "must be a JSON object",
        ("--chat_template_kwargs", '{"enable_thinkin": 1}'): "Did you mean 'enable_thinking'",
    }.items():
        outcome = rlhf(*model, *more)
        assert outcome.code != 0 and said in outcome.err and "Traceback" not in outcome.err
    outcome = rlhf(*[word for word in model if word != "--chat"], "--system", "Add.")
    assert outcome.code != 0 and "give --chat too" in outcome.err


def test_special_tokens_are_shown_stop_a_response_and_can_be_left_out(rlhf, tmp_path):
    words = ["generate", "--model", str(family_policy(QWEN, tmp_path)), "--prompt", "1+1", "--json", "--n", "64"]
    words += ["--max_new_tokens", "24", "--seed", "3"]
    shown, hidden = rows(rlhf(*words)), rows(rlhf(*words, "--skip_special_tokens"))
    assert any("<think>" in row["response"] for row in shown)
    left = [row["response"] for row in shown]
    for token in ("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        left = [text.replace(token, "") for text in left]
    assert left == [row["response"] for row in hidden]
    stopped = rows(rlhf(*words, "--stop", "<think>"))
    assert all(row["response"].count("<think>") <= 1 for row in stopped)
    ends = [row for row in stopped if "<think>" in row["response"]]
    assert ends and all(row["response"].endswith("<think>") and row["finished"] for row in ends)
