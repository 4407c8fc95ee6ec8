"""One sampler in one process: hands weights over and draws, and prints one line of JSON with what each took."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlhf_lightning.models.sources import SmolLM2
from rlhf_lightning.protocols import Sampler
from rlhf_lightning.samplers import InProcessSampler, RemoteSampler, VLLMSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.serving._server import Limits
from rlhf_lightning.serving.policy_server import PolicyServer
from rlhf_lightning.serving.served_policy import ServedPolicy
from rlhf_lightning.types import Problem, Prompt

PROMPTS, SAMPLES, NEW_TOKENS, SYNCS = 16, 8, 64, 3


def main() -> None:
    """Times the hand-overs (their canary included) and the draws, after one draw to warm up."""
    options = _parser().parse_args()
    source = SmolLM2()
    model, tokenizer = source.load(), source.tokenizer()
    with _KINDS[options.sampler](options.dtype) as sampler:
        sampler.bind(model, tokenizer)
        first, *syncs = [_seconds(sampler.sync, version) for version in range(1 + SYNCS)]
        prompts = _prompts(tokenizer)
        speeds = [_speed(sampler, prompts, number) for number in range(1 + options.draws)][1:]
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    report = {"first_sync": first, "syncs": syncs, "tokens_per_s": speeds, "gb": size}
    print("RESULT " + json.dumps(report), flush=True)


@contextmanager
def _in_process(dtype: str) -> Iterator[Sampler]:
    yield InProcessSampler(max_new_tokens=NEW_TOKENS, dtype=None if dtype == "float32" else dtype)


@contextmanager
def _vllm(dtype: str) -> Iterator[Sampler]:
    sampler = VLLMSampler(max_new_tokens=NEW_TOKENS, dtype=dtype, max_model_len=256, kv_cache_gb=1.0, eager=True)
    yield sampler
    sampler.close()


@contextmanager
def _remote(dtype: str) -> Iterator[Sampler]:
    policy = ServedPolicy(SmolLM2(), InProcessSampler(dtype=None if dtype == "float32" else dtype))
    policy.load(torch.device("cpu"))
    server = PolicyServer("127.0.0.1", 0, policy, limits=Limits(request_bytes=1 << 30, timeout=600.0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield RemoteSampler([server.url], max_new_tokens=NEW_TOKENS, requests_per_server=1)
    server.shutdown()
    server.close()
    policy.close()


_KINDS = {"in_process": _in_process, "vllm": _vllm, "remote": _remote}


def _seconds(work: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _speed(sampler: Sampler, prompts: list[Prompt], number: int) -> float:
    seeds = sample_seeds(number, 0, prompts, SAMPLES)
    began = time.perf_counter()
    rollout = sampler(prompts, samples_per_prompt=SAMPLES, seeds=seeds)
    return int(rollout.lengths.sum()) / (time.perf_counter() - began)


def _prompts(tokenizer: Any) -> list[Prompt]:
    questions = [f"Tell me a short story about the number {number}." for number in range(PROMPTS)]
    turns = [[{"role": "user", "content": question}] for question in questions]
    texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    return [
        Prompt(Problem(str(number), text), "benchmark", text, tuple(tokenizer(text)["input_ids"]), number)
        for number, text in enumerate(texts)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sampler", choices=list(_KINDS), required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--draws", type=int, default=2)
    return parser


if __name__ == "__main__":
    main()
