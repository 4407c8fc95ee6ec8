import torch
from sampler_models import CONFIGS, TOKENIZER, random_model

from rlhf_lightning.samplers._endings import Endings, eos_token_ids

CPU = torch.device("cpu")


def ids(*texts: str) -> torch.Tensor:
    return torch.tensor([TOKENIZER(text)["input_ids"] for text in texts])


def test_first_end_token_ends_and_counts():
    tokens = torch.tensor([[5, 6, 1, 7], [5, 9, 1, 1], [5, 5, 5, 5]])
    assert Endings([1, 9], (), TOKENIZER, CPU).find(tokens, 0).tolist() == [3, 2, 0]


def test_only_new_columns_are_looked_at():
    tokens = torch.tensor([[1, 6, 7, 1], [1, 6, 7, 8]])
    assert Endings([1], (), TOKENIZER, CPU).find(tokens, 1).tolist() == [4, 0]


def test_no_end_token_at_all():
    assert Endings([], (), TOKENIZER, CPU).find(torch.tensor([[1, 2]]), 0).tolist() == [0]


def test_a_stop_text_ends_where_it_is_complete():
    stops = Endings([1], ("ab", "xyz"), TOKENIZER, CPU)
    tokens = ids("..ab..ab", "..xy.xyz", "a.b.x.yz")
    assert stops.find(tokens, 0).tolist() == [4, 8, 0]


def test_a_stop_text_may_begin_before_the_new_columns():
    tokens = ids("long text, then a STOP!")
    assert Endings([], ("STOP",), TOKENIZER, CPU).find(tokens, 20).tolist() == [22]


def test_the_earlier_of_end_token_and_stop_text_wins():
    first_stop = torch.cat([ids("ab"), torch.tensor([[1]]), ids("c")], dim=1)
    first_end = torch.cat([ids("a"), torch.tensor([[1]]), ids("ab")], dim=1)
    stops = Endings([1], ("ab",), TOKENIZER, CPU)
    assert stops.find(first_stop, 0).tolist() == [2]
    assert stops.find(first_end, 0).tolist() == [2]


def test_end_tokens_of_all_three_places_are_joined():
    model = random_model("llama", eos_token_id=[7, 8])
    model.generation_config.eos_token_id = 9
    assert CONFIGS["llama"]().eos_token_id is None
    assert eos_token_ids(model, TOKENIZER) == (1, 7, 8, 9)
