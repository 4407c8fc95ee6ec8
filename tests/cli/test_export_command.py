"""``rlhf export``: a run's policy becomes a folder that answers as the run's checkpoint does."""

import json

import yaml
from tests.chats import QWEN, family_policy


def answers(rlhf, model):
    return generated(rlhf, model, "--prompt", "17+8+4=")


def generated(rlhf, model, *words):
    outcome = rlhf("generate", "--model", model, *words, "--temperature", "0", "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in outcome.out.splitlines()]


def fit(rlhf, name, *more):
    small = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
    sizes = [f"--model.init_args.{key}=2" for key in ("prompts_per_rollout", "samples_per_prompt")]
    one = ["--model.init_args.updates_per_rollout=1", "--model.init_args.critic_warmup_rollouts=0"]
    outcome = rlhf("fit", "--config", "tiny/ppo.yaml", "--run.name", name, *small, *sizes, *one, *more)
    assert outcome.code == 0, outcome.err


def test_a_runs_policy_with_adapters(rlhf, folder):
    fit(rlhf, "p", '--model.init_args.lora={"rank": 2}', "--model.init_args.optimizer.init_args.lr=0.01")
    outcome = rlhf("export", "--model", "runs/p", "--out", "merged")
    assert outcome.code == 0 and "merged: the whole policy" in outcome.out
    ours, theirs = answers(rlhf, "runs/p"), answers(rlhf, "merged")
    assert ours[0]["response"] == theirs[0]["response"]
    assert abs(ours[0]["logprob"] - theirs[0]["logprob"]) < 1e-3
    assert rlhf("export", "--model", "runs/p", "--out", "adapters", "--adapters").code == 0
    assert (folder / "adapters" / "adapter_config.json").is_file()
    again = answers(rlhf, "adapters")
    assert again[0]["response"] == ours[0]["response"] and abs(again[0]["logprob"] - ours[0]["logprob"]) < 1e-3
    for named in ("adapters", '{"name": "folder", "path": "adapters"}'):
        seen = rlhf("fit", "--config", "tiny/ppo.yaml", f"--model.policy={named}", "--print_config")
        assert seen.code == 0, seen.err
        policy = yaml.safe_load(seen.out)["model"]["init_args"]["policy"]
        assert policy["class_path"].endswith("Folder") and policy["init_args"]["path"] == "adapters"


def test_a_runs_critic_with_its_head(rlhf, folder):
    """Loaded by transformers alone, it says what the checkpoint's weights say, computed here without ours."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    fit(rlhf, "c")
    outcome = rlhf("export", "--model", "runs/c", "--part", "critic", "--out", "critic", "--shard-size", "100KB")
    assert outcome.code == 0 and "critic: the whole critic" in outcome.out, outcome.err
    assert len(list((folder / "critic").glob("*.safetensors"))) > 1
    model = AutoModelForSequenceClassification.from_pretrained(folder / "critic", num_labels=1).eval()
    saved = torch.load(folder / "runs/c/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert rlhf("export", "--model", "embedded-arithmetic", "--out", "start").code == 0
    plain = AutoModelForCausalLM.from_pretrained(folder / "start").model.eval()
    body = {name.removeprefix("critic.model.model."): w for name, w in saved.items() if "critic.model.model." in name}
    plain.load_state_dict(body)
    head = saved["critic.model.score.weight"]
    assert head.abs().sum() > 0
    ids = torch.tensor([[5, 9, 11, 7]])
    with torch.no_grad():
        want = plain(input_ids=ids).last_hidden_state[0, -1] @ head[0]
        got = model(input_ids=ids).logits[0, 0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_adapters_that_cannot_be_are_told_before_anything_is_loaded(rlhf):
    for lora, said in {
        '{"rank": 0}': "rank must be at least 1, got 0",
        '{"target_modules": ["q_prj"]}': "no layer is called 'q_prj'. Did you mean 'q_proj'",
        '{"target_modules": ["lm_head"]}': "the LM head takes no adapters",
    }.items():
        outcome = rlhf("fit", "--config", "tiny/ppo.yaml", "--run.name", "x", f"--model.init_args.lora={lora}")
        assert outcome.code != 0 and said in outcome.error and "Traceback" not in outcome.err


def test_a_chat_that_was_trained_ends_its_turns_wherever_it_is_read(rlhf, folder):
    """Trained on a base model whose tokenizer's end is another token than the template's."""
    base = family_policy(QWEN, folder / "base")
    rows = [{"prompt": f"{n}", "response": "ab"} for n in range(8)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "chained_arithmetic", "held_out": 2, "train_size": 4}
    words = [
        *("--model.policy", str(base), "--data.path=sft.jsonl", f"--data.task={json.dumps(task)}", "--data.chat=true"),
        *("--model.batch_size=8", "--model.updates_per_epoch=30", "--model.optimizer.init_args.lr=0.01"),
        *("--trainer.max_epochs=1", "--trainer.callbacks=[]", "--model.sampler.max_new_tokens=4"),
    ]
    outcome = rlhf("fit", "--config", "tiny/sft.yaml", "--run.name", "s", *words)
    assert outcome.code == 0, outcome.err
    assert rlhf("export", "--model", "runs/s", "--out", "chat").code == 0
    for model in ("runs/s", "chat"):
        (row,) = generated(rlhf, model, "--chat", "--prompt", "3", "--max_new_tokens", "8")
        assert (row["response"], row["tokens"], row["finished"]) == ("ab", 3, True)
    assert json.loads((folder / "chat/generation_config.json").read_text())["eos_token_id"] == [1, 3]


def test_what_cannot_be(rlhf, folder):
    (folder / "there").mkdir()
    assert "there exists already" in rlhf("export", "--model", "tiny-llama", "--out", "there").error
    assert "no adapters" in rlhf("export", "--model", "tiny-llama", "--out", "out", "--adapters").error
    assert "no run with a checkpoint" in rlhf("export", "--model", "there", "--part", "critic", "--out", "out").error
    both = rlhf("export", "--model", "there", "--part", "critic", "--adapters", "--out", "out")
    assert "only a policy's" in both.error
