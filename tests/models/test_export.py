"""Exported policies: the merged model's logits are the adapted policy's, and so are those of base and adapters."""

import json

import pytest
import torch

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.models import Folder, LoRA, TinyLlama
from rlhf_lightning.models.export import export_policy, rehearse
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


# ---- what failed at the end -----------------------------------------------------------------------------------------


def generation_config(model, **settings):
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"do_sample": False, "temperature": 0.9}, {"temperature"}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, {"temperature", "top_p", "top_k"}),
        ({"num_beams": 1, "length_penalty": 2.0}, {"length_penalty"}),
        ({"do_sample": True, "temperature": 0.9}, set()),
    ],
)
def test_a_generation_config_that_contradicts_itself_is_mended(tmp_path, caplog, settings, lost):
    model = generation_config(SOURCE.load(), **settings)
    export_policy(model, SOURCE.tokenizer(), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert lost.isdisjoint(written)
    kept = {name: value for name, value in settings.items() if name not in lost and value not in (False, 1)}
    assert kept.items() <= written.items()
    assert written["eos_token_id"] == 1
    said = [r.getMessage() for r in caplog.records if "generation_config.json" in r.getMessage()]
    assert all(name in said[0] for name in lost) if lost else not said


def test_what_ends_a_response_is_in_the_generation_config(tmp_path):
    export_policy(SOURCE.load(), SOURCE.tokenizer(), tmp_path / "out", ends=(1, 7))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, 7]


def test_nothing_is_left_of_an_export_that_failed(tmp_path, monkeypatch):
    model = SOURCE.load()
    monkeypatch.setattr(model, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    monkeypatch.setattr("rlhf_lightning.models.export._merged", lambda given: given)
    with pytest.raises(RunFolderError, match="out cannot be written: No space left"):
        export_policy(model, SOURCE.tokenizer(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_written_is_told_before_training():
    class Odd:
        def save_pretrained(self, folder):
            raise NotImplementedError("not this one")

    with pytest.raises(ConfigError, match="the tokenizer cannot be written, so no model could be exported: not this"):
        rehearse(Odd())
    rehearse(SOURCE.tokenizer(), "no-such-place")


def test_a_contradicting_generation_config_is_told_before_training(tmp_path, caplog):
    export_policy(SOURCE.load(), SOURCE.tokenizer(), tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9}')
    rehearse(SOURCE.tokenizer(), str(tmp_path / "base"))
    assert "temperature: 0.9 contradicts its other settings" in caplog.text
    loaded = Folder(str(tmp_path / "base")).load()
    export_policy(loaded, SOURCE.tokenizer(), tmp_path / "out")
    assert Folder(str(tmp_path / "out")).load().generation_config.temperature in (None, 1.0)
