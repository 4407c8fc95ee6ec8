"""The paper's runs: §4.1's schedule, §3.2's rewards before the advantages, the KL penalty of Eq. 3 in the reward."""

import pytest
import yaml

from rlhf_lightning.configfiles import find_config, shipped_configs
from rlhf_lightning.modules.plan import BatchPlan

RUNS = [name for name in shipped_configs() if name.startswith("paper/") and name.endswith("_rm.yaml")]


def arguments(name):
    return yaml.safe_load(find_config(name).read_text())["model"]["init_args"]


def test_both_algorithms_with_each_reward_model():
    wanted = {f"paper/{kind}_{size}_rm.yaml" for kind in ("ppo", "grpo") for size in ("9b", "32b", "200b")}
    assert wanted <= set(RUNS)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("samples", [1, 2, 4, 8, 16])
def test_rollouts_of_1024_m_and_a_step_per_128_m(name, samples):
    given = arguments(name)
    sizes = [given[key] for key in ("updates_per_rollout", "epochs_per_rollout", "token_budget")]
    plan = BatchPlan(given["prompts_per_rollout"], samples, *sizes)
    assert plan.samples_per_rollout == 1024 * samples
    assert plan.samples_per_rollout / plan.steps_per_rollout == 128 * samples
    assert given["warmup_updates"] == 0  # a constant learning rate


@pytest.mark.parametrize("name", RUNS)
def test_rewards_are_clipped_then_normalized_and_shrunk_only_without_a_critic(name):
    given = arguments(name)
    steps = [step if isinstance(step, str) else step["name"] for step in given["reward_transforms"]]
    shrunk = ["asymmetric_shrink"] if "/grpo" in name else []
    assert steps == ["clip", "group_normalize", *shrunk]
    assert given["kl_reward"]["estimator"] == "k1" and "kl_loss" not in given
    estimator = given["advantage"]
    assert estimator == "reinforce" if "/grpo" in name else estimator["name"] == "gae"
    assert name.split("_")[1] in given["scorers"][0]["path"]
