"""Exported policies: the merged model's logits are the adapted policy's, and so are those of base and adapters."""

import pytest
import torch

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models import Folder, LoRA, TinyLlama
from rlhf_lightning.models.export import export_policy
from rlhf_lightning.models.lora import adapters_off
from rlhf_lightning.models.prepare import trainable

SOURCE = TinyLlama(hidden=32, layers=2, heads=2)
TOKENS = torch.tensor([[5, 9, 3, 17, 30, 2], [8, 8, 40, 1, 7, 11]])


@pytest.fixture
def policy():
    """As after training: adapters that do change something."""
    model = trainable(SOURCE.load(), lora=LoRA(rank=4), gradient_checkpointing=False)
    make = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=make)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_merged_logits_are_the_policys(tmp_path, policy):
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "out")
    folder = Folder(str(tmp_path / "out"))
    torch.testing.assert_close(logits(folder.load()), logits(policy), atol=2e-5, rtol=0)
    assert float((logits(policy) - logits(SOURCE.load())).abs().max()) > 1e-2
    assert not any("lora" in name for name in folder.load().state_dict())
    assert folder.tokenizer().get_vocab() == SOURCE.tokenizer().get_vocab()


def test_adapters_beside_their_base_are_the_policy(tmp_path, policy):
    from peft import PeftModel

    export_policy(policy, SOURCE.tokenizer(), tmp_path / "out", adapters=True)
    again = PeftModel.from_pretrained(SOURCE.load(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), logits(policy), atol=1e-6, rtol=0)
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 100_000


def test_exporting_leaves_the_policy_as_it_was(tmp_path, policy):
    before = logits(policy)
    export_policy(policy, SOURCE.tokenizer(), tmp_path / "out")
    assert torch.equal(logits(policy), before)
    with adapters_off(policy):
        torch.testing.assert_close(logits(policy), logits(SOURCE.load()), atol=1e-6, rtol=0)


def test_a_model_without_adapters_is_written_as_it_is(tmp_path):
    export_policy(SOURCE.load(), SOURCE.tokenizer(), tmp_path / "out")
    assert torch.equal(logits(Folder(str(tmp_path / "out")).load()), logits(SOURCE.load()))


def test_what_cannot_be(tmp_path, policy):
    (tmp_path / "there").mkdir()
    with pytest.raises(RunFolderError, match="there exists already"):
        export_policy(policy, SOURCE.tokenizer(), tmp_path / "there")
    with pytest.raises(ConfigError, match="no adapters"):
        export_policy(SOURCE.load(), SOURCE.tokenizer(), tmp_path / "out", adapters=True)
    assert not (tmp_path / "out").exists()
