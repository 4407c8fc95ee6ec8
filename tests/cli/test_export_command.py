"""``rlhf export``: a run's policy becomes a folder that answers as the run's checkpoint does."""

import json


def answers(rlhf, model):
    outcome = rlhf("generate", "--model", model, "--prompt", "17+8+4=", "--temperature", "0", "--json")
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
    assert outcome.code == 0 and "merged: a whole model" in outcome.out
    ours, theirs = answers(rlhf, "runs/p"), answers(rlhf, "merged")
    assert ours[0]["response"] == theirs[0]["response"]
    assert abs(ours[0]["logprob"] - theirs[0]["logprob"]) < 1e-3
    assert rlhf("export", "--model", "runs/p", "--out", "adapters", "--adapters").code == 0
    assert (folder / "adapters" / "adapter_config.json").is_file()


def test_what_cannot_be(rlhf, folder):
    (folder / "there").mkdir()
    assert "there exists already" in rlhf("export", "--model", "tiny-llama", "--out", "there").error
    assert "no adapters" in rlhf("export", "--model", "tiny-llama", "--out", "out", "--adapters").error
