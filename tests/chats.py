"""Tokenizers of characters with special tokens and chat templates in the manner of well-known families."""

import string
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Special tokens (the first is the padding), the one that the tokenizer calls its end, and the template."""

    special: tuple[str, ...]
    eos: str
    bos: str | None
    end_of_turn: tuple[str, ...]
    template: str


LLAMA = Family(
    ("<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|end_of_text|>",
    "<|begin_of_text|>",
    ("<|eot_id|>",),
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ date_string }}\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
)
QWEN = Family(
    ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "<|endoftext|>",
    None,
    ("<|im_end|>",),
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
GEMMA = Family(
    ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    "<eos>",
    "<bos>",
    ("<end_of_turn>",),
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
)
FAMILIES = {"llama": LLAMA, "qwen": QWEN, "gemma": GEMMA}


def family_tokenizer(family: Family, *, template: bool = True):
    """The tokenizer; a special token's number is its place in ``special``, characters follow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*family.special, *string.printable])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=family.special[0]))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=family.special[0],
        eos_token=family.eos,
        bos_token=family.bos,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    made.add_special_tokens({"additional_special_tokens": list(family.special)})
    if template:
        made.chat_template = family.template
    return made


def family_reward_model(family: Family, folder, *, seed: int = 0, template: bool = True):
    """A random sequence classifier of one label as others publish them: no ``reward_model.json``."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = family_tokenizer(family, template=template)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), **sizes, num_labels=1, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def family_policy(family: Family, folder, *, seed: int = 0):
    """A random causal LM with the family's tokenizer, as a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = family_tokenizer(family)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends, max_position_embeddings=512))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
