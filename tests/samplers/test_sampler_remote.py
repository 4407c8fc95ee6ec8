"""The sampler ``remote`` over real sockets: what servers draw is what the trainer would, whoever of them dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from sampler_models import prompts
from tests.served import served

from rlhf_lightning.errors import ConfigError, RemoteError, SyncError
from rlhf_lightning.models import EmbeddedArithmetic, LoRA, TinyLlama
from rlhf_lightning.samplers import InProcessSampler, RemoteSampler
from rlhf_lightning.samplers.seeds import sample_seeds
from rlhf_lightning.serving._server import Limits
from rlhf_lightning.serving.served_policy import ServedPolicy
from rlhf_lightning.types import SamplingParams

QUICK = {"retries": 0, "backoff": 0.0, "heartbeat": 0.2, "timeout": 20.0}
SOURCE = {"hidden": 32, "layers": 2, "heads": 2}
QUESTIONS = [f"{n}+{n + 1}=" for n in range(10)]


@contextmanager
def serving(*, seed=1, sampler=None, source=None, weights_root=None, **settings):
    """A server of a policy with other weights than the trainer's."""
    policy = ServedPolicy(
        source or TinyLlama(**SOURCE, seed=seed), sampler or InProcessSampler(), weights_root=weights_root
    )
    with served(policy, **settings) as server:
        yield server


def trained(lora=None):
    source = TinyLlama(**SOURCE)
    model, generator = source.load(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return (lora(model) if lora else model), source.tokenizer()


def bound(servers, policy=None, **settings):
    sampler = RemoteSampler([server.url for server in servers], **{"max_new_tokens": 8, **QUICK, **settings})
    sampler.bind(*(policy or trained()))
    return sampler


def draw(sampler, samples=3, questions=QUESTIONS, params=None):
    asked = prompts(*questions)
    return sampler(asked, samples_per_prompt=samples, seeds=sample_seeds(0, 0, asked, samples), params=params)


def in_process(policy, **settings):
    sampler = InProcessSampler(max_new_tokens=8, **settings)
    sampler.bind(*policy)
    sampler.sync(0)
    return sampler


def same(mine, theirs):
    """Token for token: a response depends on its seed and the weights, not on who draws it."""
    assert theirs.tokens.tolist() == mine.tokens.tolist()
    assert theirs.finished.tolist() == mine.finished.tolist() and theirs.texts == mine.texts
    torch.testing.assert_close(theirs.logprobs, mine.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("most", [10_000, 10**9])
def test_servers_draw_what_the_trainer_would(count, most):
    policy = trained()
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(seed=n + 1)) for n in range(count)]
        sampler = bound(servers, policy)
        sampler._parcel = replace(sampler._parcel, bucket_bytes=most)  # several parts, or one
        sampler.check(policy[1], TinyLlama(**SOURCE).config())
        sampler.sync(3)
        told = []
        sampler.on_tokens = told.append
        rollout = draw(sampler)
        drawn = [server.done for server in servers]
    same(draw(in_process(policy)), rollout)
    assert rollout.weights_version == 3 and not sampler.exact and sampler.lost == []
    assert sum(told) == int(rollout.mask.sum()) and len(told) >= 4
    assert min(drawn) > 4 and sum(drawn) == 30 + 4 * count  # each server answered its canary


def test_a_sync_brings_changed_weights_to_all():
    policy = trained()
    with serving(seed=1) as one, serving(seed=2) as two:
        sampler = bound([one, two], policy)
        sampler.sync(1)
        before = draw(sampler)
        with torch.no_grad():
            policy[0].model.embed_tokens.weight.mul_(1.3)
            policy[0].model.norm.weight.add_(0.5)
        sampler.sync(2)
        after = draw(sampler)
        assert one.policy.version == two.policy.version == 2
    same(draw(in_process(policy)), after)
    assert before.tokens.tolist() != after.tokens.tolist()


def test_adapters_arrive_merged_and_by_a_shared_folder(tmp_path):
    model, tokenizer = trained(LoRA(rank=4, alpha=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    with serving(weights_root=tmp_path) as server:
        sampler = bound([server], (model, tokenizer), weights_folder=str(tmp_path / "run"))
        sampler.sync(1)
        same(draw(in_process((model, tokenizer))), draw(sampler))
    assert list((tmp_path / "run").iterdir()) == []  # taken away again


def test_other_samplings_and_stop_texts_are_the_trainers_to_say():
    policy = trained()
    params = SamplingParams(6, 0.7, top_k=9, top_p=0.9, stop=("7",))
    with serving(sampler=InProcessSampler(max_new_tokens=2, temperature=0.1)) as server:
        sampler = bound([server], policy)
        sampler.sync(0)
        same(draw(in_process(policy), params=params), draw(sampler, params=params))
        assert sampler([], samples_per_prompt=3, seeds=torch.zeros(0, dtype=torch.int64)).texts == ()


def test_who_hangs_is_given_up_and_its_groups_drawn_by_the_other():
    policy, hangs = trained(), threading.Event()

    class Hanging(InProcessSampler):
        calls = 0

        def __call__(self, *args, **settings):
            Hanging.calls += 1
            if Hanging.calls > 1:  # the first is the canary
                dead.health = no_answer
                hangs.wait(20)
            return super().__call__(*args, **settings)

    def no_answer():
        raise OSError("no answer")

    with serving(sampler=Hanging()) as dead, serving(seed=2) as alive:
        sampler = bound([dead, alive], policy, heartbeat=0.05)
        sampler.sync(0)
        rollout = draw(sampler)
        hangs.set()
        assert [server.url for server in sampler._ready] == [alive.url]
    same(draw(in_process(policy)), rollout)
    assert Hanging.calls == 2 and len(sampler.lost) == 1 and dead.url in sampler.lost[0]


def test_a_server_that_comes_back_with_old_weights_is_not_drawn_from():
    policy = trained()
    with serving(seed=1) as one, serving(seed=2) as two:
        sampler = bound([one, two], policy)
        sampler.sync(4)
        one.policy.version = None  # as after a restart
        same(draw(in_process(policy)), draw(sampler))
        assert "weights here are of version None, 4 was asked for" in sampler.lost[0]
        sampler.sync(5)
        assert [server.url for server in sampler._ready] == [one.url, two.url]


def test_nobody_left_is_told_with_each_reason():
    policy = trained()
    with serving() as server:
        sampler = bound([server], policy)
        sampler.sync(0)
    with pytest.raises(RemoteError, match=r"no server is left: the policy server at .*resume from the last checkpoint"):
        draw(sampler)
    with pytest.raises(RemoteError, match="no server took the weights"):
        sampler.sync(1)
    with pytest.raises(RuntimeError, match="sync"):
        draw(sampler)
    with pytest.raises(RemoteError, match="rlhf serve-policy"):
        sampler.check(policy[1], TinyLlama(**SOURCE).config())


def test_a_server_that_keeps_old_weights_is_found_out():
    class Stuck(InProcessSampler):
        def sync(self, weights_version):
            if self._version is None:
                super().sync(weights_version)
            self._version = weights_version

    policy = trained()
    with serving(sampler=Stuck()) as server:
        sampler = bound([server], policy)
        sampler.sync(0)
        with torch.no_grad():
            policy[0].model.layers[0].self_attn.v_proj.weight.mul_(3)
        with pytest.raises(SyncError, match=f"{server.url}: after the weights were handed over"):
            sampler.sync(1)
        with pytest.raises(RuntimeError, match="sync"):
            draw(sampler)


def test_another_vocabulary_is_told_before_weights_load():
    with serving(source=EmbeddedArithmetic()) as server:
        sampler = RemoteSampler([server.url], **QUICK)
        source = TinyLlama(**SOURCE)
        sampler.check(source.tokenizer(), source.config())  # the same characters
        wider = source.config()
        wider.vocab_size = 128
        with pytest.raises(ConfigError, match=f"{server.url} has another vocabulary than the policy: 98 logits"):
            sampler.check(source.tokenizer(), wider)


def test_another_architecture_does_not_take_the_weights():
    fewer, more = (TinyLlama(hidden=32, layers=layers, heads=2) for layers in (1, 3))
    with serving(source=fewer) as server, pytest.raises(RemoteError, match=r"HTTP 400 .*layers\.1\..*: there is none"):
        bound([server]).sync(0)
    with serving(source=more) as server, pytest.raises(RemoteError, match=r"9 weights did not come, first 'model\.lay"):
        bound([server]).sync(0)


def test_a_token_is_asked_for(monkeypatch):
    monkeypatch.setenv("POLICY_TOKEN", "0123456789abcdef")
    with serving(token="0123456789abcdef") as server:
        with pytest.raises(RemoteError, match="token_env"):
            bound([server]).sync(0)
        sampler = bound([server], token_env="POLICY_TOKEN")
        sampler.sync(0)
        assert len(draw(sampler).texts) == 30


def test_too_large_a_request_says_what_to_change():
    small = Limits(request_bytes=1000)
    with serving(limits=small) as server, pytest.raises(RemoteError, match="bucket_mb, or raise --max_request_bytes"):
        bound([server]).sync(0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"urls": []}, "at least one server, and each once"),
        ({"urls": ["http://127.0.0.1:1", "http://127.0.0.1:1/"]}, "each once"),
        ({"urls": ["http://far.example:1"]}, "a server on another machine asks for a token"),
        ({"urls": ["http://127.0.0.1:1"], "bucket_mb": 0}, "bucket_mb must be above 0"),
        ({"urls": ["http://127.0.0.1:1"], "retries": -1}, "retries and backoff must be at least 0"),
        ({"urls": ["http://127.0.0.1:1"], "dtype": "float"}, "sampler remote: dtype 'float' is unknown"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        RemoteSampler(**settings)


# ---- killed ---------------------------------------------------------------------------------------------------------

JOB = """
import sys, torch
torch.set_num_threads(1)
from rlhf_lightning.cli import main
sys.exit(main(["serve-policy", "--policy=embedded-arithmetic", "--port=0", "--device=cpu"]))
"""


@pytest.fixture
def victim():
    """A server in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", JOB], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split(" at ")[1].split(" ")[0]
        finally:
            process.kill()


def test_a_server_killed_mid_rollout_is_noticed_and_nothing_is_lost_or_twice(victim):
    with serving(source=EmbeddedArithmetic()) as other:
        killed_mid_rollout(*victim, other.url)


def killed_mid_rollout(victim, its_url, other_url):
    source = EmbeddedArithmetic()
    policy = source.load(), source.tokenizer()
    sampler = RemoteSampler([its_url, other_url], max_new_tokens=200, temperature=1.5, **{**QUICK, "retries": 1})
    sampler.check(policy[1], source.config())
    sampler.bind(*policy)
    sampler.sync(1)
    asked = prompts(*(f"{n}+{n + 1}=" for n in range(64)))
    seeds = sample_seeds(0, 0, asked, 8)
    busy = next(server for server in sampler.servers if server.url == its_url)

    def kill():
        until = time.monotonic() + 20
        while time.monotonic() < until and busy.health()["in_flight"] == 0:
            time.sleep(0.002)
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    rollout = sampler(asked, samples_per_prompt=8, seeds=seeds)
    killer.join(20)
    assert victim.wait(10) == -signal.SIGKILL
    assert len(sampler.lost) == 1 and its_url in sampler.lost[0]
    ours = InProcessSampler(max_new_tokens=200, temperature=1.5)
    ours.bind(*policy)
    ours.sync(0)
    expected = ours(asked, samples_per_prompt=8, seeds=seeds)
    assert len(rollout.texts) == 64 * 8 and rollout.prompts == tuple(asked)
    # rounding in products of another shape may turn a token in a long response; a lost, doubled or misplaced group
    # would turn eight whole responses
    alike = [a == b for a, b in zip(rollout.texts, expected.texts, strict=True)]
    assert sum(alike) >= 64 * 8 - 5
    again = sampler(asked, samples_per_prompt=8, seeds=seeds)  # by the one that is left
    assert len(again.texts) == 64 * 8 and len(sampler.lost) == 1
    sampler.sync(2)
    assert [server.url for server in sampler._ready] == [other_url]
