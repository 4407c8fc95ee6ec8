import string
from pathlib import Path

import pytest

from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Demonstration, Problem

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] == 'forbidden' %}"
    "{{ raise_exception('no such system') }}{% endif %}"
    "[{{ m['role'][0] }}]{{ m['content'] }}|{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def tokenizer_of():
    """Makes a tokenizer of characters: ``<pad>`` 0, ``<eos>`` 1, ``<bos>`` 2, then the printable characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, adds_bos=False, chat_template=None, eos="<eos>"):
        vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *string.printable])}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        inner.decoder = decoders.Fuse()
        if adds_bos:
            inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
        special = {"pad_token": "<pad>", "eos_token": eos, "bos_token": "<bos>"}
        return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=chat_template, **special)

    return make


@pytest.fixture
def tokenizer(tokenizer_of):
    return tokenizer_of(chat_template=TEMPLATE)


class Listed(Task):
    """A task of given questions; a question's demonstration repeats it in capitals."""

    def __init__(self, train, held_out, name="listed"):
        self.name = name
        self._train = [Problem(f"t{i}", q) for i, q in enumerate(train)]
        self._held_out = [Problem(f"h{i}", q) for i, q in enumerate(held_out)]

    def train_problems(self):
        return self._train

    def held_out_problems(self):
        return self._held_out

    def verify(self, problem, response):
        return float(response == problem.question.upper())

    def demonstrations(self):
        return (Demonstration(p, p.question.upper()) for p in self._train)


@pytest.fixture
def listed():
    return Listed


@pytest.fixture
def published():
    """The folder of real published files, where it lies beside this project."""
    above = [folder / "shared" / "benchmarks" for folder in Path(__file__).parents[3:]]
    found = next((folder for folder in above if folder.is_dir()), None)
    return found or pytest.skip("the published files are not beside this project")
