"""RewardModel inside Lightning: what it learns, resumes, measures and leaves behind."""

import json
import math

import pytest
import torch
from conftest_modules import trainer
from reward_fakes import FakeRewardData, judged_groups

from rlhf_lightning.callbacks import RewardModelExport, RolloutCheckpoint
from rlhf_lightning.callbacks.held_out import HeldOutEval
from rlhf_lightning.data.judged import render_groups
from rlhf_lightning.data.render import Renderer
from rlhf_lightning.errors import ConfigError, DataError
from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.models.reward_folder import RewardModelFolder
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.models.sources import EMBEDDED, Folder
from rlhf_lightning.modules import RewardModel


def module(**changed):
    settings = {
        "backbone": TinyLlama(hidden=32, layers=2, heads=2),
        "supervision": "process",
        "batch_size": 8,
        "updates_per_epoch": 3,
        "optimizer": lambda p: torch.optim.AdamW(p, lr=3e-3),
    }
    return RewardModel(**{**settings, **changed})


def weights_of(trained):
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def test_the_first_loss_is_that_of_scores_of_zero(tmp_path, record):
    still = module(
        updates_per_epoch=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), correctness_weight=0.5,
        preference_weight=2.0, task_weights={"chat": 3.0}, token_budget=60,
    )  # fmt: skip
    trainer(tmp_path, callbacks=[record]).fit(still, datamodule=FakeRewardData())
    (row,) = record.rows
    margin = math.log(1 + math.exp(0.5))  # of every pair
    assert row["loss/correctness"] == pytest.approx(0.5 * math.log(2), abs=1e-5)
    assert row["loss/preference"] == pytest.approx(2.0 * 3.0 * margin, abs=1e-5)
    assert row["loss/reward"] == pytest.approx(row["loss/correctness"] + row["loss/preference"], abs=1e-5)


@pytest.mark.parametrize("supervision", ["outcome", "process"])
def test_it_learns(tmp_path, record, supervision):
    trained = module(supervision=supervision, updates_per_epoch=15)
    data = FakeRewardData(judged_groups(120, carry_error=0.9), held_out=40)
    trainer(tmp_path, callbacks=[HeldOutEval(every=100), record], max_epochs=4).fit(trained, datamodule=data)
    assert record.rows[-1]["loss/reward"] < 0.6 * record.rows[0]["loss/reward"]
    assert trained.rollout_metrics["held_out/pairwise_accuracy"] > 0.9
    assert record.rows[0]["held_out/auroc"] == 0.5  # all scores begin at 0
    assert trained.prompts_seen == 4 * 15 * 8


@pytest.mark.parametrize("budget", [40, 120])
def test_weights_do_not_depend_on_the_token_budget(tmp_path, budget):
    whole, cut = (module(token_budget=b, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)) for b in (9999, budget))
    for one in (whole, cut):
        trainer(tmp_path).fit(one, datamodule=FakeRewardData())
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(cut)[name], tensor, atol=2e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, lora):
    whole = module(lora=lora)
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=FakeRewardData())
    trainer(tmp_path, max_epochs=1, callbacks=[RolloutCheckpoint(tmp_path)], enable_checkpointing=True).fit(
        module(lora=lora), datamodule=FakeRewardData()
    )
    resumed = module(lora=lora)
    trainer(tmp_path, max_epochs=3).fit(resumed, datamodule=FakeRewardData(), ckpt_path=tmp_path / "last.ckpt",
                                        weights_only=True)  # fmt: skip
    assert resumed.rollout_index == 3
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], tensor), name


def test_a_checkpoint_of_the_other_supervision_is_refused(tmp_path):
    callbacks = [RolloutCheckpoint(tmp_path)]
    fitted = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    fitted.fit(module(), datamodule=FakeRewardData())
    with pytest.raises(ConfigError, match="supervision is 'process', but this run's is 'outcome'"):
        trainer(tmp_path, max_epochs=2).fit(
            module(supervision="outcome"), datamodule=FakeRewardData(), ckpt_path=tmp_path / "last.ckpt",
            weights_only=True,
        )  # fmt: skip


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_the_exported_folder_scores_like_the_trained_model(tmp_path, lora):
    trained, data = module(lora=lora), FakeRewardData()
    trainer(tmp_path, callbacks=[RewardModelExport(tmp_path)], max_epochs=2).fit(trained, datamodule=data)
    source = RewardModelFolder(str(tmp_path / "reward_model"))
    assert source.card.supervision == "process" and source.card.tasks == ("chat", "math")
    assert source.card.base == trained.identity()["backbone"] and source.card.delimiter == "\n"
    groups = render_groups(Renderer(source.tokenizer()), data.groups[:8])
    assert groups == data.held_out_groups()
    got, want = (
        [[*s.steps, s.final] for own in score_groups(m, groups, process=True, token_budget=500) for s in own]
        for m in (source.load(), trained.model)
    )
    assert max(abs(z) for row in want for z in row) > 0.05
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert "rlhf_packed" not in (tmp_path / "reward_model" / "config.json").read_text()
    assert not list(tmp_path.glob(".reward_model*"))


def test_an_exported_folder_is_measured_and_trained_on(tmp_path):
    first, data = module(), FakeRewardData()
    trainer(tmp_path, callbacks=[RewardModelExport(tmp_path)], max_epochs=2).fit(first, datamodule=data)
    again = module(backbone=Folder(str(tmp_path / "reward_model")))
    (measured,) = trainer(tmp_path).test(again, datamodule=FakeRewardData(), verbose=False)
    assert measured == pytest.approx(first.measure(), abs=1e-5)
    assert measured["held_out/correctness_loss"] != pytest.approx(0.6931, abs=1e-3)


def test_lora_trains_adapters_and_head_alone(tmp_path):
    trained = module(lora=LoRA(rank=2), head_lr=1e-2)
    before = trained.backbone_source.load().state_dict()
    fitted = trainer(tmp_path, callbacks=[RolloutCheckpoint(tmp_path)], enable_checkpointing=True)
    fitted.fit(trained, datamodule=FakeRewardData())
    names = {n for n, p in trained.model.named_parameters() if p.requires_grad}
    assert "score.weight" in names and all("lora_" in n or n == "score.weight" for n in names) and len(names) > 10
    kept = trained.model.state_dict()
    assert torch.equal(kept["model.layers.0.self_attn.q_proj.base_layer.weight"],
                       before["model.layers.0.self_attn.q_proj.weight"])  # fmt: skip
    assert {g["name"]: g["lr"] for g in fitted.optimizers[0].param_groups} == {"backbone": 3e-3, "head": 1e-2}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert len(saved) == len(names)


def test_validate_and_test_measure_all_held_out_groups_at_once(tmp_path):
    data = FakeRewardData(judged_groups(30), held_out=12)
    trained = module()
    trainer(tmp_path, max_epochs=3).fit(trained, datamodule=data)
    want = trained.measure()
    for run in ("validate", "test"):
        (got,) = getattr(trainer(tmp_path), run)(trained, datamodule=data, verbose=False)
        assert got == pytest.approx(want, abs=1e-6)
    assert {"held_out/auroc", "held_out/pairwise_accuracy", "held_out/first_error_f1"} <= set(want)
    assert len(trained.rollout_samples) == sum(len(g.group.responses) for g in data.held_out_groups()[:8])
    json.dumps(trained.rollout_samples)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, recomputed = module(), module(gradient_checkpointing=True)
    for one in (plain, recomputed):
        trainer(tmp_path).fit(one, datamodule=FakeRewardData())
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(recomputed)[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"supervision": "proces"}, "Did you mean 'process'"),
        ({"average": "response"}, "Did you mean 'responses'"),
        ({"task_weights": {"math": -1.0}}, "task_weights.math must be 0 or more, got -1.0"),
        ({"correctness_weight": 0.0, "preference_weight": 0.0}, "both 0: nothing would be learnt"),
    ],
)
def test_what_cannot_be(changed, message):
    with pytest.raises(ConfigError, match=message):
        module(**changed)


def test_weights_in_bfloat16_train_and_export(tmp_path):
    data = FakeRewardData()
    trained = module(backbone=Folder(str(EMBEDDED / "arithmetic"), dtype="bfloat16"), lora=LoRA(rank=2))
    trainer(tmp_path, callbacks=[RewardModelExport(tmp_path)], max_epochs=2).fit(trained, datamodule=data)
    types = {p.requires_grad: p.dtype for p in trained.model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    source = RewardModelFolder(str(tmp_path / "reward_model"), dtype="bfloat16")
    got, want = (
        [s.final for own in score_groups(m, data.held_out_groups(), process=True, token_budget=500) for s in own]
        for m in (source.load(), trained.model)
    )
    assert got == pytest.approx(want, abs=0.05) and len(set(want)) > 5


def test_a_precision_that_converts_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"bf16-true is not for packed batches.*set dtype"):
        trainer(tmp_path, precision="bf16-true").fit(module(), datamodule=FakeRewardData())


def test_preflight_refuses_before_any_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyLlama, "load", lambda self: pytest.fail("weights were loaded"))
    pairs_only = FakeRewardData(judged_groups(20, pairs_every=1))
    with pytest.raises(ConfigError, match="no step of the first 8 groups has a label"):
        module().preflight(pairs_only)
    module(supervision="outcome").preflight(pairs_only)
    with pytest.raises(ConfigError, match="token_budget: 9 is below"):
        module(token_budget=9).preflight(FakeRewardData())
    unlabelled = [g for g in judged_groups(20) if g.task == "math"]
    for group in unlabelled:
        object.__setattr__(group, "responses", tuple(type(r)(r.text) for r in group.responses))
    with pytest.raises(DataError, match="nothing to learn"):
        module(supervision="outcome").preflight(FakeRewardData(unlabelled))
