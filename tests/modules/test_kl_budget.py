"""Runs that leave their KL budget."""

import logging
from functools import partial

import pytest
import torch
from conftest_modules import EvenTokens, grpo, prompts, trainer
from lightning.pytorch.callbacks import Callback

from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.callbacks import HeldOutEval, KLBudget, RolloutCheckpoint
from rlhf_lightning.errors import ConfigError


def measured(**changed):
    """A policy that moves, with a KL that is measured and does nothing."""
    adam = partial(torch.optim.AdamW, lr=1e-2)
    sizes = {"prompts_per_rollout": 32, "updates_per_rollout": 4}
    settings = {"kl_loss": KLTerm("k3", Fixed(0.0)), "optimizer": adam, **sizes}
    return grpo(scorers=[EvenTokens()], **{**settings, **changed})


saving = partial(trainer, enable_checkpointing=True)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    """KL of each rollout of a run without a budget, and the weights after each."""
    kept = []

    class Keep(RolloutCheckpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            kept.append(weights_of(pl_module))

    class Rows(Callback):
        def __init__(self):
            self.kls = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.kls.append(pl_module.rollout_metrics["kl/ref_k1_per_sequence"])

    rows, folder = Rows(), tmp_path_factory.mktemp("free")
    saving(folder, callbacks=[rows, Keep()], max_epochs=4).fit(measured(), datamodule=prompts())
    assert abs(rows.kls[0]) < 1e-6 < rows.kls[1] < rows.kls[2]
    return rows.kls, kept


def fit(tmp_path, budget, action, extra=(), epochs=4, **arguments):
    callbacks = [KLBudget(budget, action), *extra, RolloutCheckpoint(tmp_path / "checkpoints")]
    fitted, module = saving(tmp_path, callbacks=callbacks, max_epochs=epochs), measured()
    fitted.fit(module, datamodule=prompts(), **arguments)
    return fitted, module, callbacks[0]


def test_it_stops_at_the_edge_of_the_first_rollout_over_the_budget(tmp_path, free, caplog):
    kls, weights = free
    with caplog.at_level(logging.WARNING):
        fitted, module, budget = fit(tmp_path, (kls[1] + kls[2]) / 2, "stop")
    assert module.rollout_index == 3  # rollouts 0, 1 and 2: the third was over
    assert (fitted.current_epoch, fitted.should_stop) == (3, True)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["rlhf"]["rollout_index"] == 3
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(tensor, weights[2][name], rtol=0, atol=0)
    assert f"rollout 2 was {kls[2]:.4g} nats per sequence from the reference" in caplog.text
    assert "raise the KL coefficient" in budget.report_section(None).text


def test_rollback_gives_back_what_made_the_last_rollout_within(tmp_path, free):
    """Rollout 2 is over, rollout 1 within: its weights are those after rollout 0."""
    kls, weights = free
    _, module, budget = fit(tmp_path, (kls[1] + kls[2]) / 2, "rollback")
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(tensor, weights[0][name], rtol=0, atol=0)
    assert module.rollout_metrics == {"kl/rolled_back_to": 1.0}
    assert "again the one that made rollout 1" in budget.report_section(None).text
    for name in ("last.ckpt", "within_budget.ckpt"):
        saved = torch.load(tmp_path / "checkpoints" / name, weights_only=True)
        assert saved["rlhf"]["rollout_index"] == 1 and saved["optimizer_states"]


def test_going_on_after_a_rollback_repeats_what_came_then(tmp_path, free):
    kls, weights = free
    fit(tmp_path, (kls[1] + kls[2]) / 2, "rollback")
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, module, _ = fit(tmp_path, 100.0, "rollback", ckpt_path=last, weights_only=True)
    assert module.rollout_index == 4
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(tensor, weights[3][name], rtol=0, atol=0)


def test_rollback_after_the_first_update_gives_back_the_start(tmp_path, free):
    kls, _ = free
    _, module, _ = fit(tmp_path, kls[1] / 2, "rollback", extra=[HeldOutEval()])
    start = measured().generator.source.load().state_dict()
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=0)
    again = trainer(tmp_path, max_epochs=1)
    fresh = measured()
    last = tmp_path / "checkpoints" / "last.ckpt"
    again.fit(fresh, datamodule=prompts(), ckpt_path=last, weights_only=True)
    for name, tensor in weights_of(fresh).items():
        torch.testing.assert_close(tensor, free[1][0][name], rtol=0, atol=0)


def test_within_the_budget_nothing_happens(tmp_path, free):
    _, module, budget = fit(tmp_path, 1000.0, "stop", epochs=3)
    assert module.rollout_index == 3 and budget.report_section(None) is None
    for name, tensor in weights_of(module).items():
        torch.testing.assert_close(tensor, free[1][2][name], rtol=0, atol=0)


class _NoLoad:
    """A policy source that must not be asked for weights."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def load(self):
        raise AssertionError("weights were loaded")


def refused(tmp_path, callbacks, match, make=trainer, **changed):
    module = measured(**changed)
    module.generator.source = _NoLoad(module.generator.source)
    with pytest.raises(ConfigError, match=match):
        make(tmp_path, callbacks=callbacks).fit(module, datamodule=prompts())


def test_what_cannot_be_is_refused_before_weights_are_loaded(tmp_path):
    refused(tmp_path, [KLBudget(1.0)], "GRPOModule measures no KL to a reference: give it a kl_loss", kl_loss=None)
    refused(tmp_path, [HeldOutEval(), KLBudget(1.0)], "KLBudget must stand before HeldOutEval")
    refused(tmp_path, [KLBudget(1.0, "rollback")], "needs RolloutCheckpoint with every: 1")
    sparse = RolloutCheckpoint(tmp_path / "checkpoints", every=2)
    refused(tmp_path, [KLBudget(1.0, "rollback"), sparse], "needs RolloutCheckpoint with every: 1", make=saving)


def test_arguments_that_cannot_be():
    with pytest.raises(ConfigError, match="budget must be above 0"):
        KLBudget(0.0)
    with pytest.raises(ConfigError, match=r"KLBudget: action.*rolback.*rollback"):
        KLBudget(1.0, "rolback")
