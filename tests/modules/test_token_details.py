"""Tokens of a response as text and numbers, with tokenizers that make it hard."""

import pytest
import torch

from rlhf_lightning.models import EmbeddedArithmetic
from rlhf_lightning.modules.token_details import token_details, token_pieces
from rlhf_lightning.types import Advantages, Experience, Problem, Prompt, Rollout, SamplingParams, Scores

END = 256


class Bytes:
    """A token a byte; 256 is special. Half a character decodes to U+FFFD, as byte-level tokenizers do."""

    def decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return bytes(token for token in tokens if token != END).decode("utf-8", errors="replace")


class Words:
    """A token a word with a space before it, which goes away at the beginning of a text, as SentencePiece's does."""

    words = (" the", " cat", " sat", "s")

    def decode(self, tokens, skip_special_tokens):
        return "".join(self.words[token] for token in tokens).removeprefix(" ")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["a", "b", ""]),
        ("a\u00e9b", ["a", "", "\u00e9", "b", ""]),
        ("\u4e2d", ["", "", "\u4e2d", ""]),
        ("\U0001f600!", ["", "", "", "\U0001f600", "!", ""]),
        ("", [""]),
    ],
)
def test_a_piece_a_token_and_a_character_at_its_last_byte(text, pieces):
    assert token_pieces([*text.encode(), END], text, Bytes()) == pieces


def test_a_character_that_was_cut_off_goes_to_the_last_token():
    tokens = [*"a\u4e2d".encode()][:-1]
    text = Bytes().decode(tokens, skip_special_tokens=True)
    assert text == "a\ufffd"
    assert "".join(token_pieces(tokens, text, Bytes())) == text
    assert token_pieces(tokens, text, Bytes())[0] == "a"


def test_a_space_before_a_word_stays_with_its_word():
    tokens = [0, 1, 3, 2, 1]
    text = Words().decode(tokens, skip_special_tokens=True)
    assert token_pieces(tokens, text, Words()) == ["the", " cat", "s", " sat", " cat"]


def test_pieces_join_to_the_text_even_if_it_is_not_what_the_tokens_decode_to():
    assert token_pieces([0, 1, 2], "the cats", Words()) == ["the", " cat", "s"]
    assert token_pieces([], "", Words()) == []


def experience(ref: torch.Tensor | None, values: torch.Tensor | None) -> tuple[Experience, object]:
    tokenizer = EmbeddedArithmetic().tokenizer()
    ids = tokenizer("12\n=3", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*ids, tokenizer.eos_token_id], [ids[0], tokenizer.eos_token_id, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    prompt = Prompt(Problem("p", "1+2="), "t", "1+2=", (1, 2), 0)
    texts = tuple(tokenizer.batch_decode([tokens[0], tokens[1, :2]], skip_special_tokens=True))
    numbers = torch.arange(12.0).view(2, 6)
    rollout = Rollout((prompt,), tokens, mask, -numbers, torch.tensor([True, True]), texts, SamplingParams(6))
    scores = Scores(torch.zeros(2), {}, torch.tensor([False, False]))
    advantages = Advantages(numbers * 10)
    return Experience(rollout, scores, torch.zeros(2), advantages, -numbers / 4, ref, {}, values), tokenizer


def test_numbers_of_one_response_without_its_padding():
    made, tokenizer = experience(torch.full((2, 6), -0.5), torch.full((2, 6), 0.25))
    assert token_details(made, 1, tokenizer) == {
        "tokens": ["1", ""],
        "logprobs": [-1.5, -1.75],
        "ref_logprobs": [-0.5, -0.5],
        "values": [0.25, 0.25],
        "advantages": [60.0, 70.0],
    }
    assert token_details(made, 0, tokenizer)["tokens"] == ["1", "2", "\n", "=", "3", ""]


def test_no_reference_and_no_critic_are_none():
    details = token_details(*experience(None, None)[:1], 0, experience(None, None)[1])
    assert details["ref_logprobs"] is None and details["values"] is None
