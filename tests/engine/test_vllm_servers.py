"""Two servers with real vLLM behind them; one is killed in the middle of a rollout."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from own_forward import TOLERANCE, errors, prompts

from rlhf_lightning.models import TinyLlama
from rlhf_lightning.samplers import RemoteSampler
from rlhf_lightning.samplers.seeds import sample_seeds

pytestmark = pytest.mark.slow

ENGINE = "{name: vllm, max_model_len: 128, kv_cache_gb: 0.2, eager: true}"
POLICY = "{name: tiny-llama, hidden: 64, layers: 2, heads: 2, context_length: 128}"


@pytest.fixture(scope="module")
def servers():
    command = [sys.executable, "-m", "rlhf_lightning.cli", "serve-policy", f"--policy={POLICY}", f"--sampler={ENGINE}"]
    started = [subprocess.Popen([*command, "--port=0"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        yield [(process, _url(process)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _url(process):
    for line in process.stdout:
        if line.startswith("serving "):
            return next(word for word in line.split() if word.startswith("http"))
    raise AssertionError(f"the server ended with {process.wait()}")


def test_a_vllm_server_killed_mid_rollout_is_noticed_and_its_prompts_are_redone(servers):
    (victim, its_url), (_, other) = servers
    source = TinyLlama(hidden=64, layers=2, heads=2, context_length=128)
    model, tokenizer = source.load(), source.tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)  # other weights than those the servers began with
    sampler = RemoteSampler([its_url, other], max_new_tokens=90, timeout=60, retries=1, backoff=0.0, heartbeat=0.5)
    sampler.check(tokenizer, source.config())
    sampler.bind(model, tokenizer)
    sampler.sync(5)
    asked = prompts(tokenizer, *(f"{n}+{n + 1}=" for n in range(40)))
    seeds = sample_seeds(0, 0, asked, 8)
    busy = next(server for server in sampler.servers if server.url == its_url)

    def kill():
        until = time.monotonic() + 60
        while time.monotonic() < until and busy.health()["in_flight"] == 0:
            time.sleep(0.002)
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    rollout = sampler(asked, samples_per_prompt=8, seeds=seeds)
    killer.join(60)
    assert victim.wait(10) == -signal.SIGKILL
    assert len(sampler.lost) == 1 and its_url in sampler.lost[0]
    assert len(rollout.texts) == 40 * 8 and rollout.prompts == tuple(asked)
    assert rollout.weights_version == 5
    assert errors(model, rollout).max() < TOLERANCE  # each response belongs to its prompt, drawn with these weights
