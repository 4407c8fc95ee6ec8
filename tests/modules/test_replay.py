"""Skipped updates are kept in files, and run again to the numbers of training."""

import json
import math

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from safetensors import safe_open

from rlhf_lightning import axes
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.callbacks import SkippedUpdates
from rlhf_lightning.errors import ConfigError, DataError, NonFiniteError
from rlhf_lightning.modules.replay import replay, sequence_tokens
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.types import Rewards, UpdateBatch

MAKERS = {
    "grpo": lambda **more: grpo(scorers=[EvenTokens()], kl_loss=KLTerm("k3", Fixed(0.1)), **more),
    "ppo": lambda **more: ppo(scorers=[EvenTokens()], kl_reward=KLTerm("k1", Fixed(0.1)), **more),
}


class Spoiled(RewardTransform):
    """Puts a value in place of one reward."""

    name = "spoiled"

    def __init__(self, value, sequence=0):
        self.value, self.sequence = value, sequence

    def __call__(self, rewards):
        values = rewards.values.clone()
        values[self.sequence] = self.value
        return Rewards(values, rewards.group_size, rewards.lengths, rewards.finished)


def fit(module, path, *callbacks, **more):
    trainer(path, callbacks=list(callbacks), **more).fit(module, datamodule=prompts())
    return module


def load_update(path):
    return axes.load(path, UpdateBatch, "update")


def fresh(maker, **more):
    """A module with the weights that training began with."""
    module = MAKERS[maker](**more)
    module.load_trained()
    return module


def same_tensors(first, second):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(first, name), getattr(second, name)) for name in vars(first) if name != "packed")
    ) and all(torch.equal(getattr(first.packed, name), getattr(second.packed, name)) for name in vars(first.packed))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_file_holds_the_update_bit_for_bit(tmp_path, maker):
    kept = []
    module = MAKERS[maker](token_budget=100)
    cut = module.cut
    module.cut = lambda experience: kept.extend(cut(experience)) or kept
    fit(module, tmp_path)
    size = kept[0].micro_batches
    assert size > 1
    axes.save(tmp_path / "a" / "u.safetensors", kept[:size], "update", {"rollout": 3})
    batches, note = load_update(tmp_path / "a" / "u.safetensors")
    assert note == {"rollout": 3} and len(batches) == size
    assert all(same_tensors(*pair) for pair in zip(batches, kept[:size], strict=True))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["u.safetensors"]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no tensors")
    for name in ("text", "missing"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load_update(tmp_path / name)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(DataError, match="holds no update"):
        load_update(tmp_path / "other")


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("token_budget", [100, 10_000])
def test_a_finite_update_replays_to_the_loss_and_gradient_of_training(tmp_path, record, maker, token_budget):
    kept = []
    settings = {"updates_per_rollout": 1, "token_budget": token_budget}
    module = MAKERS[maker](**settings)
    cut = module.cut
    module.cut = lambda experience: kept.extend(cut(experience)) or kept
    fit(module, tmp_path, record)
    axes.save(tmp_path / "u", kept, "update")
    found = replay(fresh(maker, **settings), load_update(tmp_path / "u")[0])
    logged = {name: value for name, value in record.rows[0].items() if name.startswith("loss/")}
    assert found.bad is None and len(found.sequences) == 24
    assert found.loss == pytest.approx(self_loss(maker, logged), abs=1e-6)
    for name, norm in found.grad_norms.items():
        assert norm == pytest.approx(record.rows[0][f"grad_norm/{name}"], rel=1e-4)
    for name, value in logged.items():
        assert sum(s.loss[name] for s in found.sequences) == pytest.approx(value, abs=1e-6)
    assert [s.ratio for s in found.sequences] == pytest.approx([1.0] * 24, abs=1e-4)


def self_loss(maker, logged):
    return sum(logged.values()) if maker == "ppo" else logged["loss/policy"] + logged["loss/kl"]


@pytest.mark.parametrize(("maker", "value"), [("grpo", math.nan), ("ppo", math.nan), ("ppo", math.inf)])
def test_a_skipped_update_is_kept_and_names_its_sequence(tmp_path, maker, value):
    """Sequence 13 stands in the fourth group, the first of the second update, as its second response."""
    settings = {"reward_transforms": [Spoiled(value, 13)]}
    module = MAKERS[maker](**settings)
    fit(module, tmp_path, SkippedUpdates(tmp_path))
    assert [p.name for p in (tmp_path / "replay").iterdir()] == ["update-000000-0001.safetensors"]
    batches, note = load_update(tmp_path / "replay" / "update-000000-0001.safetensors")
    assert (note["rollout"], note["update"]) == (0, 1) and not math.isfinite(float(note["norms"]["policy"]))
    assert [row["sequence"] for row in note["rewards"]] == [13] and note["rewards"][0]["bad"] == {"reward": str(value)}
    found = replay(fresh(maker, **settings), batches)
    assert not all(math.isfinite(norm) for norm in found.grad_norms.values())
    first = (found.bad.tensor, found.bad.micro_batch, found.bad.row, found.bad.token)
    group_wide = maker == "grpo"  # the group's mean is spoiled with it
    assert first == (("advantages", 0, 0, 0) if group_wide else ("returns", 0, 1, 0))
    prompts_of_four = {found.sequences[i].prompt for i in range(4)}
    assert len(prompts_of_four) == 1


def test_a_number_that_is_made_in_the_forward_is_found(tmp_path):
    module = MAKERS["ppo"](updates_per_rollout=1)
    kept = []
    cut = module.cut
    module.cut = lambda experience: kept.extend(cut(experience)) or kept
    fit(module, tmp_path)
    bad = fresh("ppo", updates_per_rollout=1)
    with torch.no_grad():
        bad.critic.model.score.weight[0, 0] = math.inf
    found = replay(bad, kept).bad
    assert found.tensor == "values" and (found.micro_batch, found.row, found.token) == (0, 0, 0)
    finite = replay(fresh("ppo", updates_per_rollout=1), kept)
    assert finite.bad is None


def test_a_gradient_alone_can_be_bad(tmp_path):
    module = MAKERS["grpo"](updates_per_rollout=1)
    kept = []
    cut = module.cut
    module.cut = lambda experience: kept.extend(cut(experience)) or kept
    fit(module, tmp_path)
    bad = fresh("grpo", updates_per_rollout=1)
    name, parameter = next((n, p) for n, p in bad.named_parameters() if n.endswith("norm.weight"))
    parameter.register_hook(lambda gradient: gradient * math.nan)
    found = replay(bad, kept).bad
    assert found.tensor == f"gradient of {name}" and found.row is None and math.isnan(found.value)


def test_only_the_newest_files_are_kept_and_the_abort_is_among_them(tmp_path):
    settings = {"reward_transforms": [Spoiled(math.nan)], "updates_per_rollout": 1, "max_nonfinite_in_a_row": 4}
    module = MAKERS["ppo"](**settings)
    with pytest.raises(NonFiniteError):
        fit(module, tmp_path, SkippedUpdates(tmp_path, keep=2), max_epochs=6)
    names = sorted(p.name for p in (tmp_path / "replay").iterdir())
    assert names == ["update-000002-0000.safetensors", "update-000003-0000.safetensors"]
    with pytest.raises(ConfigError, match="keep"):
        SkippedUpdates(keep=0)


def test_files_are_safetensors_with_readable_metadata(tmp_path):
    module = MAKERS["grpo"](reward_transforms=[Spoiled(math.nan)])
    fit(module, tmp_path, SkippedUpdates(tmp_path))
    with safe_open(next((tmp_path / "replay").iterdir()), framework="pt") as file:
        assert json.loads(file.metadata()["note"])["rollout"] == 0
        assert "0/packed.input_ids" in file.keys()  # noqa: SIM118


def test_prompts_and_responses_are_those_of_the_rollout(tmp_path):
    seen = {}
    module = MAKERS["grpo"](updates_per_rollout=1)
    explore = module.explore
    module.explore = lambda: seen.setdefault("experience", explore())
    cut = module.cut
    module.cut = lambda experience: seen.setdefault("batches", cut(experience))
    fit(module, tmp_path)
    rollout = seen["experience"].rollout
    for row in range(24):
        prompt, response = sequence_tokens(seen["batches"][0], row)
        assert prompt == tuple(rollout.prompt_of(row).tokens)
        assert response == tuple(rollout.tokens[row, : int(rollout.lengths[row])].tolist())
