"""Parts of a plan against hand-made sums, and against what the sampler, the optimizer and peft really allocate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.planning.made import LLAMA, big, job, shape
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.holdings import Decoding, Updates
from rlhf_lightning.models.lora import LoRA
from rlhf_lightning.planning.job import Lengths, Model
from rlhf_lightning.planning.memory import peak, phases
from rlhf_lightning.planning.resolve import optimizer_of
from rlhf_lightning.planning.sampling import cache_bytes
from rlhf_lightning.planning.shapes import shape_of
from rlhf_lightning.planning.sharding import FSDP2, ZERO2, ZERO3, rule_of
from rlhf_lightning.planning.standing import gradients, states, weights
from rlhf_lightning.samplers.decoders import choose_decoder


def real(**changed):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**LLAMA, **changed}))


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_the_models_own(tied):
    found = shape(tie_word_embeddings=tied)
    assert found.parameters == sum(p.numel() for p in real(tie_word_embeddings=tied).parameters())
    assert (found.head == 0) == tied


def test_adapters_are_pefts_own():
    adapted = LoRA(rank=4)(real())
    assert shape().adapters(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_cache_is_the_decoders_own():
    model = real()
    decoder = choose_decoder("auto", model)
    decoder.load(model, None)
    session = decoder.start([[5] * 8, [6] * 8], torch.tensor([0, 0, 1, 1]), 16)
    held = [t for c in session._caches for t in (c._prompt_keys, c._prompt_values, c._keys, c._values)]
    whole = sum(t.untyped_storage().nbytes() for t in held)
    planned = cache_bytes(job(decoding=Decoding(16, 4), lengths=Lengths(8, 16)))
    assert planned == pytest.approx(whole * (1 + 1 / 3))  # one of three layers twice


@pytest.mark.parametrize("decoder", ["auto", "hf"])
def test_a_sampler_that_draws_ahead_holds_its_copy_while_the_policy_trains(decoder):
    """4 bytes of each weight beside the policy's own, and keys and values, in the update too."""
    plain, ahead = (job(decoding=Decoding(16, 8, decoder=decoder, ahead=ahead)) for ahead in (False, True))
    before, after = ({phase.name: phase.parts for phase in phases(run)} for run in (plain, ahead))
    assert "decoder's weights" not in before["update"] and "keys and values" not in before["update"]
    assert after["update"]["decoder's weights"] == 4 * shape().parameters
    assert after["update"]["keys and values"] == cache_bytes(ahead)
    kept, still_kept = (parts["update"].pop("kept from the rollout") for parts in (before, after))
    copied = sum(size for name, size in before["rollout"].items() if name == "decoder's weights")
    assert kept - still_kept == pytest.approx((copied + cache_bytes(plain)) / 4)  # of what was freed; here it is not
    assert {name: after["update"][name] for name in before["update"]} == before["update"]


ENGINE = Decoding(16, 8, reserved=0.6, cache=5000, sleeps=True)


def test_an_engine_on_cpu_keeps_its_weights_and_cache_while_the_policy_trains():
    """It sleeps on GPUs alone, and takes no share of a computer's memory."""
    run = job(decoding=ENGINE)
    update = {phase.name: phase.parts for phase in phases(run)}["update"]
    assert update["decoder's weights"] == 4 * shape().parameters
    assert update["keys and values"] == 5000
    assert "engine's share" not in update
    without = {phase.name: phase.parts for phase in phases(job(decoding=None))}["update"]
    assert update["kept from the rollout"] == without["kept from the rollout"]  # a pass's; the engine frees nothing


@pytest.mark.parametrize(("sleeps", "awake"), [(True, None), (False, 0.6e9)])
def test_an_engine_on_a_gpu_takes_its_share_and_gives_it_back_in_sleep(sleeps, awake):
    run = job(decoding=replace(ENGINE, sleeps=sleeps), on_cpu=False)
    parts = {phase.name: phase.parts for phase in phases(run)}
    assert parts["rollout"]["engine's share"] == 0.6e9  # of 1 GB
    assert parts["update"].get("engine's share") == awake
    assert not {"decoder's weights", "keys and values"} & parts["rollout"].keys()


def test_gradients_and_activations_are_not_there_together_on_a_gpu():
    """One micro-batch an update: the forward pass ends without gradients, the backward pass without activations."""
    run = job(decoding=None, on_cpu=False, updates=Updates(2, 4, 2, 256, 1, 64), framework=0.0)
    assert run.micro_batches == 1
    update = {phase.name: phase for phase in phases(run)}["update"]
    step = {phase.name: phase for phase in phases(run)}["optimizer step"]
    count = shape().parameters
    standing = (4 + 8) * count  # weights and Adam's states
    ends_forward = standing + update.parts["activations"]
    ends_backward = standing + 4 * count
    assert update.total > max(ends_forward, ends_backward)
    assert update.total < ends_forward + 4 * count
    assert "gradients" not in update.parts
    assert step.parts["gradients"] == 4 * count


def test_what_glm4_needs_by_hand():
    """9.4 B parameters: 4 bytes of weight each, and 4 of gradient and 8 of Adam's states where they train."""
    run = job(Model("policy", "glm", big(), 4, trained=True), Model("reference", "glm", big(), 4))
    count = 9_399_951_360
    assert big().parameters == count
    assert weights(run) == {"weights: policy": 4 * count, "weights: reference": 4 * count}
    assert gradients(run) == {"gradients": 4 * count}
    assert states(run) == {"optimizer states": 8 * count}


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        # weights, gradients, states, each of 16 ranks, in parameters; ZeRO keeps 4-byte masters with the states
        ("ddp", (4, 4 + 4, 8)),
        ("fsdp2", (4 / 16, 4 / 16, 8 / 16)),
        ("deepspeed_stage_1", (2, 2, 12 / 16)),
        ("deepspeed_stage_2", (2, 2 / 16, 12 / 16)),
        ("deepspeed_stage_3", (2 / 16, 2 / 16, 12 / 16)),
    ],
)
def test_what_each_strategy_divides(strategy, parts):
    run = job(Model("policy", "glm", big(), 4, trained=True), strategy=strategy, devices=16, autocast=2)
    count, buckets = big().parameters, 2 * run.rule.buckets
    found = [sum(part(run).values()) for part in (weights, gradients, states)]
    assert found == pytest.approx([count * parts[0], count * parts[1] + buckets, count * parts[2]])


def test_offload_moves_states_to_the_host():
    model = Model("policy", "glm", big(), 4, trained=True)
    run = job(model, strategy="deepspeed_stage_3_offload", devices=8, on_cpu=False, autocast=2, decoding=None)
    update = next(phase for phase in phases(run) if phase.name == "update")
    assert "optimizer states" not in update.parts and update.host["optimizer states"] == 8 * big().parameters


def test_a_critic_on_shared_weights_adds_its_adapters_alone():
    policy = Model("policy", "here", shape(), 4, trained=True, rank=4)
    critic = Model("critic", "here", shape(), 4, trained=True, scalar=True, rank=4, weights_of="policy")
    assert weights(job(policy, critic))["weights: critic"] == 4 * shape().adapters(4)
    sharded = job(policy, critic, strategy="fsdp2", devices=2)
    assert weights(sharded)["weights: critic"] == 2 * (shape().adapters(4) + shape().scalar_parameters)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_scorers_model_is_read_whole_by_each_rank_and_goes_to_devices_in_layers(on_cpu):
    scorer = Model("reward_model", "rm", big(), 2, scalar=True, late=True, served=True)
    policy = Model("policy", "here", shape(), 4, trained=True)
    run = job(policy, scorer, strategy="fsdp2", devices=64, per_node=8, on_cpu=on_cpu)
    load = next(phase for phase in phases(run) if phase.name == "load reward_model")
    whole = 2 * big().scalar_parameters
    outer = big().scalar_parameters - big().layers * big().per_layer
    assert load.parts["gathered weights"] == 2 * (2 * big().per_layer + outer)
    assert load.parts.get("whole: reward_model", 0) == (whole if on_cpu else 0)
    assert load.host.get("whole: reward_model", 0) == (0 if on_cpu else 8 * whole)


def test_checkpointing_lowers_the_peak_and_more_tokens_raise_it():
    plain = job(updates=Updates(1, 16, 4, 2048, 1, 64), decoding=None)
    less = job(updates=replace(plain.updates, checkpointing=True), decoding=None)
    more = job(updates=replace(plain.updates, prompts=32, token_budget=4096), decoding=None)
    assert peak(less).total < peak(plain).total < peak(more).total


@pytest.mark.parametrize(
    ("make", "states", "temporaries"),
    [
        (lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True), 2, (0, 0)),
        (lambda p: torch.optim.AdamW(p, lr=1e-3), 2, (0, 2)),
        (lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True), 2, (1, 0)),
        (lambda p: torch.optim.SGD(p, lr=1e-3), 0, (0, 0)),
        (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=False), 1, (0, 2)),
    ],
)
def test_an_optimizer_tells_what_it_keeps(make, states, temporaries):
    found = optimizer_of(make, on_cpu=True)
    assert (found.states, found.whole_temporaries, found.single_temporaries) == (states, *temporaries)


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        ("fsdp2", FSDP2),
        ({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}, replace(FSDP2, whole_file=False)),
        ({"class_path": "rlhf_lightning.strategies.fsdp2.FSDP2", "init_args": {}}, FSDP2),
        ({"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy", "init_args": {"stage": 3}}, ZERO3),
        ({"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}, ZERO2),
    ],
)
def test_a_strategy_is_known_by_name_and_by_class(strategy, rule):
    assert rule_of(strategy, 4) == rule


def test_a_scalar_head_stands_in_the_lm_heads_place():
    found = shape_of(AutoConfig.for_model(**LLAMA))
    assert found.parameters - found.scalar_parameters == 512 * 64 - 64
