import pytest

from rlhf_lightning.data.render import Renderer
from rlhf_lightning.errors import ConfigError, ModelSourceError
from rlhf_lightning.types import Problem

ASK = ("task", 4, Problem("p", "1+2="))


def render(tokenizer, problem=ASK, **arguments):
    (prompt,) = Renderer(tokenizer, **arguments).render([problem])
    return prompt


def test_plain_prompts_are_the_question_alone(tokenizer):
    prompt = render(tokenizer)
    assert (prompt.text, prompt.task, prompt.index, prompt.problem) == ("1+2=", "task", 4, ASK[2])
    # string.printable begins with 0123456789, after three special tokens
    assert prompt.tokens[0] == 4
    assert prompt.tokens[2] == 5
    assert len(prompt.tokens) == 4


def test_a_bos_only_where_the_tokenizer_puts_one_and_never_twice_in_a_chat(tokenizer_of):
    with_bos = tokenizer_of(adds_bos=True, chat_template="<bos>{{ messages[0]['content'] }}")
    assert render(with_bos).tokens == (2, *render(tokenizer_of()).tokens)
    assert render(with_bos).text == "1+2="
    assert render(with_bos, chat=True).tokens == (2, *render(tokenizer_of()).tokens)


def test_chats_go_through_the_template(tokenizer):
    assert render(tokenizer, chat=True).text == "[u]1+2=|[a]"
    assert render(tokenizer, chat=True, system="Add.").text == "[s]Add.|[u]1+2=|[a]"
    assert tokenizer.decode(list(render(tokenizer, chat=True).tokens)) == "[u]1+2=|[a]"


def test_whole_conversations_are_kept(tokenizer):
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "1+2=")]
    messages = [{"role": role, "content": content} for role, content in turns]
    problem = Problem("p", "1+2=", metadata={"messages": messages})
    assert render(tokenizer, ("task", 0, problem), chat=True).text == "[u]hi|[a]yes|[u]1+2=|[a]"


def test_responses_end_with_eos(tokenizer):
    renderer = Renderer(tokenizer)
    prompts = renderer.render([ASK, ASK])
    assert renderer.responses(prompts, ["3", ""]) == [(6, 1), (1,)]


def test_responses_are_encoded_as_they_stand_after_the_prompt():
    """A tokenizer that merges ``ab``: across the prompt's edge the prompt's own tokens stay as they are."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "ab": 3, "c": 4}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    renderer = Renderer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>"))
    prompts = renderer.render([("task", 0, Problem("p", "ca")), ("task", 1, Problem("p", "c"))])
    assert [p.tokens for p in prompts] == [(4, 1), (4,)]
    assert renderer.responses(prompts, ["b", "ab"]) == [(2, 0), (3, 0)]


def test_missing_templates_and_ends_say_what_to_do(tokenizer_of):
    with pytest.raises(ModelSourceError, match=r"has no chat template, but chat is true.*chat: false"):
        Renderer(tokenizer_of(), chat=True)
    no_eos = Renderer(tokenizer_of(eos=None))
    with pytest.raises(ModelSourceError, match="no end-of-sequence token"):
        no_eos.responses(no_eos.render([ASK]), ["3"])


def test_a_system_turn_needs_a_chat_that_allows_it(tokenizer):
    with pytest.raises(ConfigError, match="system is a turn of a chat"):
        Renderer(tokenizer, system="Add.")
    with pytest.raises(ModelSourceError, match="refuses problem p: no such system"):
        render(tokenizer, chat=True, system="forbidden")
