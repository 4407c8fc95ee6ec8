"""What ``rlhf export`` writes is read by vLLM as it is, in several files, and says what transformers says of it."""

import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.models.export import export_policy
from rlhf_lightning.models.prepare import trainable

TOLERANCE = 1e-4
"""Nats a token, in float32."""


def adapted():
    """As after training: adapters that change something."""
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    model = trainable(source.load(), lora=LoRA(rank=4), gradient_checkpointing=False)
    make = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=make)
    return model.eval(), source.tokenizer()


def test_an_exported_policy_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # vLLM takes it away; back at the end
    from vllm import LLM, SamplingParams

    folder = tmp_path / "policy"
    export_policy(*adapted(), folder, shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert len(list(folder.glob("*.safetensors"))) > 1
    engine = LLM(str(folder), dtype="float32", max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=2 * 10**8)
    prompt = [5, 9, 3, 17, 30, 2]
    (answer,) = engine.generate(
        {"prompt_token_ids": prompt}, SamplingParams(temperature=0.0, max_tokens=12, logprobs=0, ignore_eos=True)
    )
    drawn = list(answer.outputs[0].token_ids)
    theirs = torch.tensor([step[token].logprob for step, token in zip(answer.outputs[0].logprobs, drawn, strict=True)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + drawn])).logits[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == drawn
    ours = logits.log_softmax(-1).gather(1, torch.tensor(drawn)[:, None])[:, 0]
    torch.testing.assert_close(theirs, ours, atol=TOLERANCE, rtol=0)
