"""Scalar heads on families for which transformers has no sequence classifier."""

import json

import pytest
import torch
from tests.families import Family

from rlhf_lightning.functional.packing import pack_groups
from rlhf_lightning.models.export import export_scalar
from rlhf_lightning.models.reward_folder import RewardCard, RewardModelFolder, save_reward_model
from rlhf_lightning.models.scalar import packed_scalars, scalar_head, scalar_model
from rlhf_lightning.models.sources import Folder

PROMPT, RESPONSES = [5, 6, 7, 8], [[20, 21, 22, 23], [26, 27]]


def headed(kind, **values):
    model = scalar_model(Family(kind, **values).load())
    with torch.no_grad():
        head = scalar_head(model)
        head.weight.copy_(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


def row():
    tokens = torch.tensor([[20, 21, 22, 23], [26, 27, 0, 0]])
    return pack_groups([PROMPT], tokens, torch.tensor([[True] * 4, [True, True, False, False]]))


def by_hand(kind, head, **values):
    """The head's product with the hidden states of a plain forward of each sequence, at the places that predict."""
    model, found = Family(kind, **values).load(), []
    with torch.no_grad():
        for response in RESPONSES:
            ids = torch.tensor([PROMPT + response])
            hidden = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
            found.append(hidden[len(PROMPT) - 1 : -1] @ head.weight[0])
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["mamba", "granite", "falcon_h1"])
def test_scores_are_the_heads_products_and_survive_the_folder(tmp_path, kind):
    model = headed(kind)
    want = by_hand(kind, scalar_head(model))
    with torch.no_grad():
        got = packed_scalars(model, row(), row().predict_index)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)

    save_reward_model(model, Family(kind).tokenizer(), RewardCard("process", base="x"), tmp_path / "rm")
    source = RewardModelFolder(str(tmp_path / "rm"), context_length=64)
    assert source.card.supervision == "process"
    read = source.load()
    with torch.no_grad():
        torch.testing.assert_close(packed_scalars(read, row(), row().predict_index), want, rtol=0, atol=1e-4)
        ids = torch.tensor([PROMPT + RESPONSES[0]])
        assert float(read(input_ids=ids[:, :-1]).logits) == pytest.approx(float(want[3]), abs=1e-4)
        padded = torch.tensor([[*PROMPT, 26, 0]])
        seen = read(input_ids=padded, attention_mask=(padded > 0).long()).logits
        assert float(seen) == pytest.approx(float(want[5]), abs=1e-4)

    export_scalar(read, Family(kind).tokenizer(), tmp_path / "again")
    again = RewardModelFolder(str(tmp_path / "again")).load()
    assert {n: p.tolist() for n, p in again.state_dict().items()} == {
        n: p.tolist() for n, p in read.state_dict().items()
    }


def test_where_transformers_has_a_classifier_it_is_that(tmp_path):
    model = headed("llama")
    assert type(model).__name__ == "LlamaForSequenceClassification"
    save_reward_model(model, Family("llama").tokenizer(), RewardCard(), tmp_path / "rm")
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_a_plain_folder_of_one_without_a_classifier_goes_on_as_a_reward_model(tmp_path):
    from rlhf_lightning.models.reward_folder import with_head

    save_reward_model(headed("granite"), Family("granite").tokenizer(), RewardCard(), tmp_path / "rm")
    assert isinstance(with_head(Folder(str(tmp_path / "rm"))), RewardModelFolder)


def test_a_model_without_heads_is_counted_for_plans():
    from rlhf_lightning.planning.shapes import shape_of

    source = Family("mamba")
    assert shape_of(source.config()).parameters == sum(p.numel() for p in source.load().parameters())
