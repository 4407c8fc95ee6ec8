"""``rlhf replay``: a run with one bad score, and the sequence that is named."""

import math

from rlhf_lightning.algorithms.transforms import ClipRewards
from rlhf_lightning.types import Rewards

SIZES = {"prompts_per_rollout": 4, "samples_per_prompt": 2, "updates_per_rollout": 2}


class BadOnce(ClipRewards):
    """Clips, and makes the reward of sequence 5 nan in rollout ``at``, counted from 0."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def __call__(self, rewards: Rewards) -> Rewards:
        values = rewards.values.clone()
        if self.calls == self.at:
            values[5] = math.nan
        self.calls += 1
        return Rewards(values, rewards.group_size, rewards.lengths, rewards.finished)


def fit(rlhf, config, name, *more):
    import rlhf_lightning.callbacks as callbacks

    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    sizes = [f"--model.init_args.{key}={value}" for key, value in SIZES.items()]
    spoiled = f"--model.init_args.reward_transforms=[{{class_path: {__name__}.BadOnce}}]"
    kept = f'--trainer.callbacks=[{{"class_path": "{callbacks.SkippedUpdates.__module__}.SkippedUpdates"}}]'
    outcome = rlhf("fit", "--config", config, "--run.name", name, *quiet, *sizes, spoiled, kept, *more)
    assert outcome.code == 0, outcome.err


def check(outcome):
    assert outcome.code == 0, outcome.err
    assert "update-000000-0001.safetensors: rollout 0, update 1" in outcome.out
    assert "reward nan of sequence 5" in outcome.out
    assert "gradient norm of policy: nan (in the run: nan)" in outcome.out
    assert outcome.out.count("→") >= 5  # the update's four sequences, and the bad reward


def test_grpo(rlhf, folder):
    fit(rlhf, "quickstart.yaml", "g", "--trainer.max_epochs=1")
    outcome = rlhf("replay", "--run", "runs/g")
    check(outcome)
    assert "first not finite: advantages is nan in sequence 0/0, token 0 of" in outcome.out
    assert "the run took up to 1 update(s) more" in outcome.out


def test_ppo_with_adapters_by_a_files_name_and_a_checkpoint(rlhf, folder):
    lora = '--model.init_args.lora={"rank": 2}'
    fit(rlhf, "tiny/ppo.yaml", "p", "--trainer.max_epochs=2", "--model.init_args.critic_warmup_rollouts=0", lora)
    name = "update-000000-0001.safetensors"
    check(rlhf("replay", "--run", "runs/p", "--file", name))
    outcome = rlhf("replay", "--run", "runs/p", "--file", name, "--checkpoint", "runs/p/checkpoints/last.ckpt")
    check(outcome)
    assert "last.ckpt, trained on 2 rollouts; they are not those that rollout 0 began with" in outcome.out
    assert "gradient norm of critic: nan" in outcome.out


def test_what_cannot_be(rlhf, folder):
    assert "nothing to replay" in rlhf("replay", "--run", "runs/none").error
    fit(rlhf, "quickstart.yaml", "good", "--trainer.max_epochs=1", "--model.init_args.reward_transforms=[]")
    assert "nothing to replay" in rlhf("replay", "--run", "runs/good").error
    assert "cannot be read" in rlhf("replay", "--run", "runs/good", "--file", "none").error


def test_the_nearest_checkpoint_stands_in_for_one_that_is_gone(tmp_path):
    from rlhf_lightning.cli.run_module import checkpoint_before
    from rlhf_lightning.runs import Run

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("rollout-000008", "rollout-000009", "last"):
        (folder / f"{name}.ckpt").touch()
    assert checkpoint_before(Run(tmp_path), 9).name == "rollout-000009.ckpt"
    assert checkpoint_before(Run(tmp_path), 3).name == "rollout-000008.ckpt"
    assert checkpoint_before(Run(tmp_path), 0) is None
