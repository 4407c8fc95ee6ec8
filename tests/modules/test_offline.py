"""An offline module of another package: DPO on EpochModule and Reference, without sampler, scorers or holdings."""

from dataclasses import dataclass

import pytest
import torch
from conftest_modules import trainer
from lightning import LightningDataModule
from torch.nn.functional import logsigmoid

from rlhf_lightning.cli.plans import holdings_of
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.models.packed import packed_logprobs
from rlhf_lightning.models.prepare import load_to_train, trainable
from rlhf_lightning.modules.batches import Epoch, Loss
from rlhf_lightning.modules.epoch import EpochModule
from rlhf_lightning.modules.reference import Reference
from rlhf_lightning.types import PackedSequences

BETA = 0.1
PAIRS = [([5, 6, 7], [8, 9], [10, 11, 12]), ([13, 14], [15, 16, 17], [18])]


@dataclass(frozen=True)
class PairBatch:
    packed: PackedSequences
    micro_batches: int = 1

    @property
    def tokens(self) -> int:
        return self.packed.targets.numel()


class DPO(EpochModule):
    updates_per_epoch = smallest_update = prompts_seen = 2

    def __init__(self, lora=None):
        super().__init__(lambda groups: torch.optim.SGD(groups, lr=1.0), 0, None, seed=1)
        self.source, self.lora, self.policy = TinyLlama(hidden=32, layers=2, heads=2), lora, None
        self.reference, self.losses = Reference(adapters=lora is not None), []

    def preflight(self, data):
        """Nothing can be wrong."""

    def load_trained(self):
        loaded = load_to_train(self.source, lora=self.lora, sixteen_bits=False)
        self.policy = trainable(loaded, lora=self.lora, gradient_checkpointing=False, float32_logits=False)

    def load_frozen(self):
        self.reference.load(self.policy)

    def models(self):
        return {"policy": self.policy}

    def parameter_groups(self):
        return {"policy": self.policy.parameters()}

    def identity(self):
        return {"policy": self.source.identity()}

    def make_batches(self):
        return Epoch([pair(*tokens) for tokens in PAIRS])

    def update_loss(self, batch):
        new = batch.packed.to_rows(packed_logprobs(self.policy, batch.packed)).sum(1)
        ref = batch.packed.to_rows(self.reference.logprobs(self.policy, batch.packed)).sum(1)
        chosen, rejected = new - ref
        loss = -logsigmoid(BETA * (chosen - rejected))
        self.losses.append(loss.detach())
        return Loss(loss, {"loss/dpo": loss})


class Pairs(LightningDataModule):
    def train_dataloader(self):
        return self.trainer.lightning_module.train_batches()


def pair(prompt, chosen, rejected):
    width = max(len(chosen), len(rejected))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in (chosen, rejected)])
    mask = torch.arange(width) < torch.tensor([[len(chosen)], [len(rejected)]])
    return PairBatch(pack_groups([prompt], tokens, mask))


def summed_logprob(model, prompt, response):
    """By one forward over the sequence alone."""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum()


def by_hand(lora):
    """Two steps of gradient descent on the formula, over unpacked sequences; their losses."""
    module = DPO(lora)
    module.load_trained()
    start = DPO(lora)
    start.load_trained()
    policy, losses = module.policy.train(), []
    for prompt, chosen, rejected in PAIRS:
        with torch.no_grad():
            ref = [summed_logprob(start.policy, prompt, response) for response in (chosen, rejected)]
        new = [summed_logprob(policy, prompt, response) for response in (chosen, rejected)]
        loss = -torch.log(1 / (1 + torch.exp(-BETA * ((new[0] - ref[0]) - (new[1] - ref[1])))))
        trained = [p for p in policy.parameters() if p.requires_grad]
        for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.data -= gradient
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_dpo_trains_on_a_reference_without_a_sampler(tmp_path, lora):
    torch.manual_seed(0)
    want = by_hand(lora)
    torch.manual_seed(0)
    module = DPO(lora)
    fitted = trainer(tmp_path)
    fitted.fit(module, datamodule=Pairs())
    assert fitted.global_step == 2 and module.rollout_index == 1 and len(module.losses) == 2
    torch.testing.assert_close(torch.stack(module.losses), torch.stack(want), rtol=1e-4, atol=1e-6)
    assert float(module.losses[0]) == pytest.approx(0.6931472, abs=1e-6)  # -log σ(0): it begins as its reference
    assert (module.reference.model is None) == (lora is not None)


def test_a_plan_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"DPO does not say what it holds \(holdings\)"):
        holdings_of(DPO())
