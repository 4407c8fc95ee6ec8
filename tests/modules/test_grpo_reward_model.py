"""GRPO against a reward model: in a mixture, frozen, out of the checkpoint, and never swapped by a resumed run."""

import threading

import pytest
import torch
from conftest_modules import grpo, prompts, trainer

from rlhf_lightning.algorithms.advantages import Process
from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.scorers import FormatScorer, RemoteScorer, RewardModelScorer, VerifierScorer
from rlhf_lightning.scorers.judge import RewardJudge
from rlhf_lightning.serving import ServeRM


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, make_reward_model):
    return make_reward_model(tmp_path_factory.mktemp("rm") / "orm")


def scored_by(folder, **changed):
    scorers = [RewardModelScorer(str(folder)), VerifierScorer(), FormatScorer("[0-9]+")]
    return grpo(scorers=scorers, scorer_weights=[0.5, 0.0, 2.0], **changed)


def test_the_mixture_is_what_is_optimised_and_each_part_is_logged(tmp_path, record, reward_model):
    module = scored_by(reward_model)
    trainer(tmp_path, callbacks=[record], max_epochs=2).fit(module, datamodule=prompts())
    for row in record.rows:
        expected = 0.5 * row["score/reward_model"] + 2.0 * row["score/format"]
        assert row["reward/raw_mean"] == pytest.approx(expected, abs=1e-5)
        assert row["reward/raw_std"] > 0 and row["score/verifier"] >= 0
    assert record.rows[0]["score/reward_model"] != record.rows[1]["score/reward_model"]


def test_the_reward_model_neither_trains_nor_stands_in_the_checkpoint(tmp_path, reward_model):
    module = scored_by(reward_model)
    fitted = trainer(tmp_path)
    fitted.fit(module, datamodule=prompts())
    scorer = module.scorer.scorers[0]
    fresh = RewardModelScorer(str(reward_model)).judge.model.state_dict()
    for name, tensor in scorer.judge.model.state_dict().items():
        assert torch.equal(tensor, fresh[name])
    fitted.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert not [name for name in saved["state_dict"] if "score" in name]
    assert saved["rlhf"]["identity"]["scorers"] == f"reward_model: {scorer.identity()}"


def test_a_run_does_not_resume_with_another_reward_model(tmp_path, reward_model, make_reward_model):
    fitted = trainer(tmp_path)
    fitted.fit(scored_by(reward_model), datamodule=prompts())
    fitted.save_checkpoint(tmp_path / "x.ckpt")
    other = scored_by(make_reward_model(tmp_path / "other", seed=9))
    with pytest.raises(ConfigError, match="the checkpoint's scorers is 'reward_model: folder"):
        trainer(tmp_path, max_epochs=2).fit(other, datamodule=prompts(), ckpt_path=tmp_path / "x.ckpt")


def test_a_missing_reward_model_is_told_before_the_policy_loads(tmp_path, monkeypatch):
    from rlhf_lightning.models import TinyLlama

    def load(self):
        raise AssertionError("the policy was loaded")

    monkeypatch.setattr(TinyLlama, "load", load)
    with pytest.raises(ModelSourceError, match=r"scorer reward_model: .*rlhf fit --config tiny/orm\.yaml"):
        trainer(tmp_path).fit(scored_by(tmp_path / "nowhere"), datamodule=prompts())


def test_a_served_process_model_drives_the_policy_as_one_in_process(tmp_path, record, make_reward_model):
    folder = make_reward_model(tmp_path / "prm", seed=1, supervision="process")
    job, found = ServeRM(str(folder), port=0), []
    with job.bound(judge := RewardJudge(str(folder))) as server:
        judge.load(torch.device("cpu"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for scorer in (RewardModelScorer(str(folder), label="prm"), RemoteScorer(server.url, label="prm")):
            module = grpo(scorers=[scorer], advantage=Process())
            trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
            found.append({k: v for k, v in record.rows[-1].items() if not k.startswith(("time/", "speed/"))})
        server.shutdown()
        thread.join(10)
    assert found[0]["advantage/abs_mean"] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_a_process_model_drives_the_policy(tmp_path, record, make_reward_model):
    folder = make_reward_model(tmp_path / "prm", seed=1, supervision="process")
    module = grpo(scorers=[RewardModelScorer(str(folder))], advantage=Process())
    trainer(tmp_path, callbacks=[record], max_epochs=8).fit(module, datamodule=prompts())
    assert record.rows[0]["advantage/abs_mean"] > 0
    assert record.rows[-1]["score/reward_model"] > record.rows[0]["score/reward_model"] + 0.1
